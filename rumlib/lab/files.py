"""Files that a stranger may have written: read within bounds, or refused before anything is made of them; and the form
in which published results keep their values.

    data = read(folder / "manifest.json", 2**20)             # a regular file of at most 1 MiB
    kept = parse(data, folder / "manifest.json")             # strict JSON, nested at most DEPTH levels
    check(kept, {"format": int, "files": dict}, "the manifest")
    with hold(folder): ...                                   # alone among processes
"""

from __future__ import annotations

import json
import math
import os
import stat
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from reprlib import repr as brief

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

DEPTH = 32                                                   # levels of JSON; a RUM of RUMs needs about 12
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16,
    torch.float32, torch.float64)}
SHORT = (torch.uint8, torch.int16, torch.int32)


def read(path: Path, most: int, *, links: bool = False) -> bytes:
    """The content of a regular file of at most `most` bytes; `links` says that a link to one will do. Raises
    FileNotFoundError where there is none, ValueError for anything else."""
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


def unzipped(data: bytes, most: int, where: object) -> bytes:
    """What gzip has compressed, if it is at most `most` bytes: no more is ever made of it."""
    reader = zlib.decompressobj(wbits=31)
    try:
        found = reader.decompress(data, most + 1)
    except zlib.error as problem:
        raise ValueError(f"{where} is no gzip file: {problem}") from problem
    if len(found) > most or not reader.eof or reader.unused_data:
        raise ValueError(f"{where} is cut off, or holds more than {most} bytes")
    return found


def parse(data: bytes, where: object) -> object:
    """What JSON says. Raises ValueError for a name that stands twice, NaN, infinite numbers, and beyond DEPTH."""
    try:
        found = json.loads(data, parse_constant=_finite, parse_float=_finite, object_pairs_hook=_once)
        _shallow(found, DEPTH)
        return found
    except (ValueError, RecursionError) as problem:
        raise ValueError(f"{where} is not the JSON that belongs there: {problem}") from problem


def check(found: object, types: Mapping[object, type | tuple], where: object, *, more: bool = False) -> dict:
    """The dictionary, if it has these names with values of these types; `more` says that it may have others too. Raises
    ValueError if not. No type is bool, and True is no integer here."""
    if not isinstance(found, dict):
        raise ValueError(f"{where} is {brief(found)}, where names and values belong")
    wrong = [name for name, kind in types.items()
             if not isinstance(found.get(name, ...), kind) or isinstance(found[name], bool)]
    wrong += [] if more else [name for name in found if name not in types]
    if wrong:
        raise ValueError(f"{where} has {brief(wrong[0])} = {brief(found.get(wrong[0], 'nothing'))}, which does not "
                         f"belong there: expected are {', '.join(map(str, types))}")
    return found


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
    for part in value.values() if isinstance(value, dict) else value:
        if isinstance(part, dict | list):
            _shallow(part, left - 1)


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Have a folder alone: two runs would move each other's files away. Raises ValueError, naming the other process,
    where it is held. The system gives it back when a process ends, even if it is killed."""
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / ".running"                               # beside the lock: Windows lets nobody read a locked file
    try:
        with FileLock(folder / ".running.lock", blocking=False):
            note.write_text(f"process {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
            yield
    except Timeout:
        who = note.read_text() if note.exists() else "another process"
        raise ValueError(f"{folder} is in use by {who}: wait until it has ended, or stop it and run this again (what "
                         f"it has finished is kept)") from None


# -- Values -----------------------------------------------------------------------------------------------------------


def spelled(value: object) -> object:
    """A value for JSON, which has no NaN and no infinity: they are {"float": "nan"}."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, Mapping):
        return {name: spelled(v) for name, v in value.items()}
    return [spelled(v) for v in value] if isinstance(value, list | tuple) else value


def restored(value: object) -> object:
    """What was spelled."""
    if isinstance(value, list):
        return [restored(v) for v in value]
    if not isinstance(value, Mapping):
        return value
    if value.keys() == {"float"} and value["float"] in ("nan", "inf", "-inf"):
        return float(value["float"])
    return {name: restored(v) for name, v in value.items()}


def shortened(tensor: Tensor) -> Tensor:
    """The same content in fewer bytes: bits of a bool tensor, the shortest integers; floats as they are."""
    if tensor.dtype == torch.bool:
        return torch.from_numpy(np.packbits(tensor.numpy()))
    if tensor.is_floating_point():
        return tensor.contiguous()
    low, high = (tensor.min(), tensor.max()) if tensor.numel() else (0, 0)
    return tensor.to(next((k for k in SHORT if k.itemsize < tensor.itemsize and torch.iinfo(k).min <= low
                           and high <= torch.iinfo(k).max), tensor.dtype))


def lengthened(stored: Tensor, dtype: str, shape: list[int]) -> Tensor:
    """What was shortened."""
    if dtype == "bool":
        return torch.from_numpy(np.unpackbits(stored.numpy(), count=math.prod(shape))).bool().view(shape)
    return stored.to(DTYPES[dtype])


def is_shortened(stored: Tensor | None, told: object) -> bool:
    """Whether `lengthened(stored, *told)` is without loss, and no larger than what is stored allows."""
    if stored is None or not (isinstance(told, list) and len(told) == 2 and isinstance(told[1], list)):
        return False
    name, shape = told
    if not (isinstance(name, str) and name in DTYPES and all(type(size) is int and size >= 0 for size in shape)):
        return False
    if name == "bool":
        return (stored.dtype, list(stored.shape)) == (torch.uint8, [-(-math.prod(shape) // 8)]) and \
            math.prod(max(size, 1) for size in shape) < 2**40
    dtype = DTYPES[name]
    shorter = stored.dtype in SHORT and dtype in (*SHORT, torch.int64) and stored.itemsize < dtype.itemsize
    return list(stored.shape) == shape and (stored.dtype == dtype or shorter)
