"""Files of finished results: each there as a whole, or not at all.

    store = Store(folder / "results")
    store.write("run", identity, {"tow": 0.9, "tensors": {...}}, seconds=0.2)
    store.read("run", digest_of(identity))                   # None where there is none, or where it is damaged
    put(path, data)                                          # any file, written whole
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shutil
import time
import traceback
import uuid
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from rumlib.lab.keys import digest_of, parse

HOUR = 3600
FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))            # Windows knows no quota


@dataclass(frozen=True)
class Store:
    """Finished results in a folder: <kind>/<key>.json with the identity and values of each, tensors in safetensors
    beside it, large ones in another file, <key>.large, and <key>.failed for one that could not be computed.

    A file is written under a temporary name, forced to the disk and renamed; so are the tensors, before the file that
    speaks of them. One that is damaged is set aside, reported and computed again. Large tensors (weights) are for the
    few who need them: a result whose own are not there is whole for all others.
    """

    folder: Path

    def path(self, kind: str, key: str) -> Path:
        return self.folder / kind / f"{key}.json"

    def read(self, kind: str, key: str) -> dict | None:
        """A result: its "identity", its "values", in them "tensors" if it has any (and of "large" ones the hash), the
        "seconds" that it took, and where it was "made". None if it is not there."""
        path = self.path(kind, key)
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            result = parse(text, key)
            if "tensors" in result["values"]:
                data = path.with_suffix(".safetensors").read_bytes()
                if hashlib.sha256(data).hexdigest() != result["values"]["tensors"]:
                    raise ValueError(f"the checksum of {key}.safetensors does not fit")
                result["values"]["tensors"] = safetensors.torch.load(data)
            return result
        except (ValueError, OSError) as problem:
            _set_aside(path, problem, path.with_suffix(".safetensors"))
            return None

    def large(self, kind: str, key: str) -> dict[str, Tensor] | None:
        """The large tensors of a result; None if they are not there."""
        result, path = self.read(kind, key), self.path(kind, key).with_suffix(".large")
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            warnings.warn(f"results of kind {kind!r} are here without their weights, as published results are; those "
                          f"that are needed are computed again", stacklevel=2)
            return None
        if result and hashlib.sha256(data).hexdigest() == result["values"]["large"]:
            return safetensors.torch.load(data)
        _set_aside(path, "its checksum does not fit")
        return None

    def write(self, kind: str, identity: Mapping, values: dict, seconds: float = 0.0) -> dict:
        """Keep a result, and return what `read` would."""
        if "tensors" in values:
            values = {**values, "tensors": {name: tensor.cpu() for name, tensor in values["tensors"].items()}}
        if "large" in values:
            path = self.path(kind, digest_of(identity)).with_suffix(".large")
            values = {**values, "large": _put_tensors(path, values["large"])}
        return self.keep(kind, {"identity": identity, "values": values, "seconds": round(seconds, 4), "made": here()})

    def keep(self, kind: str, result: dict) -> dict:
        """Keep a result as `read` gives it: without its large tensors, unless they are there already."""
        path, kept = self.path(kind, digest_of(result["identity"])), result
        if "tensors" in result["values"]:
            checksum = _put_tensors(path.with_suffix(".safetensors"), result["values"]["tensors"])
            kept = {**result, "values": {**result["values"], "tensors": checksum}}
        put(path, json.dumps({**kept, "checksum": digest_of(kept)}, indent=1).encode())
        path.with_suffix(".failed").unlink(missing_ok=True)
        return result

    def remove(self, kind: str, key: str) -> None:
        """Forget a result, or that it failed."""
        for ending in (".json", ".safetensors", ".large", ".failed"):    # tensors without values are no result
            self.path(kind, key).with_suffix(ending).unlink(missing_ok=True)

    def fail(self, kind: str, identity: Mapping, failure: Failure) -> None:
        """Record that a result could not be computed."""
        put(self.path(kind, digest_of(identity)).with_suffix(".failed"),
            json.dumps({"identity": identity, **asdict(failure)}, indent=1).encode())

    def failed(self, kind: str, key: str) -> bool:
        """Whether the last attempt to compute a result failed."""
        return self.path(kind, key).with_suffix(".failed").exists()

    def sweep(self) -> None:
        """Remove what processes that were killed have left half-written: to write a file takes seconds."""
        for path in self.folder.glob("*/.*.tmp"):
            with suppress(FileNotFoundError):                # another process was quicker
                if time.time() - path.stat().st_mtime > HOUR:
                    path.unlink()


def put(path: Path, data: bytes) -> None:
    """Write a file so that after any interruption, of the machine too, it is there as a whole or not at all. Raises
    OSError, naming the folder, if the disk is full."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)                          # the folder is not forced to the disk: this would take
    except BaseException as problem:                         # twice as long again, to save the last from a crash
        temporary.unlink(missing_ok=True)
        if isinstance(problem, OSError) and problem.errno in FULL:
            free = shutil.disk_usage(path.parent).free
            raise OSError(problem.errno, f"the disk that holds {path.parent} is full: {free / 1e6:.0f} MB are free, "
                          f"{len(data) / 1e6:.1f} MB were to be written") from problem
        raise


def _set_aside(path: Path, why: object, *others: Path) -> None:
    warnings.warn(f"{path} is damaged ({why}); it is set aside as {path.name}.damaged and computed again", stacklevel=3)
    for file in (path, *others):
        with suppress(FileNotFoundError):                    # it has no tensors, or another process was quicker
            os.replace(file, f"{file}.damaged")


def _put_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write them, and return their checksum."""
    data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
    put(path, data)
    return hashlib.sha256(data).hexdigest()


@cache
def here() -> dict[str, str]:
    """What decides about rounding beyond the key of a result."""
    return {"torch": version("torch"), "cpu": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"}


@dataclass(frozen=True)
class Failure:
    """What happened instead of a result."""

    result: str                                              # its kind and arguments
    problem: str
    where: str                                               # file, line and function
    trace: str

    @classmethod
    def of(cls, result: str, problem: Exception) -> Failure:
        frames = traceback.extract_tb(problem.__traceback__)
        own = [frame for frame in frames if "site-packages" not in frame.filename] or frames
        at = f"{Path(own[-1].filename).name}:{own[-1].lineno} in {own[-1].name}"
        return cls(result, f"{type(problem).__name__}: {problem}", at, "".join(traceback.format_exception(problem)))

    def __str__(self) -> str:
        return f"{self.result}: {self.problem} ({self.where})"
