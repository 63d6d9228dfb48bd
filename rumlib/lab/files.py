"""Files that a stranger may have written: read within bounds, or refused before anything is made of them.

    data = read(folder / "manifest.json", 2**20)             # a regular file of at most 1 MiB
    kept = parse(data, folder / "manifest.json")             # strict JSON, nested at most DEPTH levels
    check(kept, {"format": int, "files": dict}, "the manifest")

All of them raise ValueError with one line that names the file and the fault.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as brief

DEPTH = 32                                                   # levels of JSON; a RUM of RUMs needs about 12


def read(path: Path, most: int, *, links: bool = False) -> bytes:
    """The content of a regular file of at most `most` bytes; `links` says that a link to one will do. Raises
    FileNotFoundError where there is none."""
    try:
        found = os.stat(path, follow_symlinks=links)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no {path}") from None
    except (OSError, ValueError) as problem:
        raise ValueError(f"{path} cannot be read: {problem}") from problem
    if not stat.S_ISREG(found.st_mode):                      # to open a pipe would wait for ever
        raise ValueError(f"{path} is a link, folder, pipe or device; put the file itself there")
    if found.st_size > most:
        raise ValueError(f"{path} is larger than what belongs there: {found.st_size} bytes; at most {most} are read")
    with open(path, "rb") as file:
        return file.read(found.st_size)


def parse(data: bytes, where: object) -> object:
    """What JSON says: no name twice, no NaN or infinite number, at most DEPTH levels."""
    try:
        found = json.loads(data, parse_constant=_finite, parse_float=_finite, object_pairs_hook=_once)
        _shallow(found, DEPTH)
        return found
    except (ValueError, RecursionError) as problem:
        raise ValueError(f"{where} is not the JSON that belongs there: {problem}") from problem


def check(found: object, types: Mapping[str, type | tuple], where: object, *, more: bool = False) -> dict:
    """The dictionary, if it has these names with values of these types; `more` says that it may have others too."""
    if not isinstance(found, dict):
        raise ValueError(f"{where} is {brief(found)}, where names and values belong")
    wrong = [name for name, kind in types.items() if name not in found or not _is(found[name], kind)]
    wrong += [] if more else [name for name in found if name not in types]
    if wrong:
        raise ValueError(f"{where} has {brief(wrong[0])} = {brief(found.get(wrong[0], 'nothing'))}, which does not belong "
                         f"there; expected are {', '.join(types)}")
    return found


def _is(value: object, kind: type | tuple) -> bool:
    """True is an integer to Python, and none here."""
    return isinstance(value, kind) and (not isinstance(value, bool) or kind is bool)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:20]} is no finite number")
    return value


def _once(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _shallow(value: object, left: int) -> None:
    if not left:
        raise ValueError(f"it is nested more than {DEPTH} levels deep")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if isinstance(part, dict | list):
            _shallow(part, left - 1)
