"""The identity of a result, which JSON can hold: its key, what differs from another one, and the code that it names.

    key = digest_of(identity)                                # the name of its file
    parse((folder / f"{key}.json").read_bytes(), key)        # what that holds, or ValueError

To look at what a study has done takes this alone, without torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping


def digest_of(value: object) -> str:
    """Hash of anything that JSON can hold; the key of a result is that of its identity."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:24]


def differences(one, other, name: str = "") -> list[str]:
    """Where two values that JSON can hold differ: "study.data", "arguments.algorithm.fields.lr"."""
    if one == other:
        return []
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        names = dict.fromkeys((*one, *other))
        return [part for key in names for part in differences(one.get(key), other.get(key), f"{name}.{key}".strip("."))]
    return [name]


def codes(identity: object) -> dict[str, str]:
    """Name -> hash of all code that an identity names: of the kind of result, and of classes and functions in it."""
    if isinstance(identity, list):
        return {name: code for part in identity for name, code in codes(part).items()}
    if not isinstance(identity, Mapping):
        return {}
    names = [identity[key] for key in ("what", "class", "function") if key in identity and "code" in identity]
    return {**{name: identity["code"] for name in names}, **codes(list(identity.values()))}


def parse(text: bytes, key: str) -> dict:
    """What the file of a result holds. Raises ValueError where it is not whole, or is not the result with this key."""
    try:
        result = json.loads(text)
        kept = {name: result[name] for name in ("identity", "values", "seconds", "made")}
        whole = result.get("checksum") == digest_of(kept)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise ValueError(f"it cannot be read: {problem!r}") from problem
    if not whole:
        raise ValueError("its checksum does not fit its values")
    if digest_of(kept["identity"]) != key:
        raise ValueError("it is the file of another result")
    return kept
