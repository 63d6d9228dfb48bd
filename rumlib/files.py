"""Columns of numbers from files of strangers: sizes are checked before memory is taken, and nothing is unpickled.

    columns(path, ["memorization", "labels"])                # of a .npz or .csv file, by name
"""

from __future__ import annotations

import csv
import zipfile
import zlib
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

import numpy as np

# What a file of one number per example may hold: the largest public set of images, ImageNet-21k, has 14 million.
MOST_VALUES, MOST_BYTES, LONGEST_LINE = 20_000_000, 2 ** 30, 2 ** 16


def columns(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    """Columns of numbers, (n,) each, of a .npz or .csv file. The others are not read: there may be gigabytes of them.

    Raises FileNotFoundError without the file, and ValueError for a file that is damaged, does not hold these columns
    exactly once, or claims to be larger than a file of scores can be.
    """
    if path.suffix not in (".npz", ".csv"):
        raise ValueError(f"published scores are read from .npz and .csv files; got {path.name}")
    if not path.is_file():
        raise ValueError(f"{path} is no regular file") if path.exists() else FileNotFoundError(f"there is no {path}")
    try:
        return (_csv if path.suffix == ".csv" else _npz)(path, names)
    except (zipfile.BadZipFile, zlib.error, csv.Error, EOFError, NotImplementedError, RuntimeError, SyntaxError,
            MemoryError, UnicodeError) as problem:
        kind = "text" if path.suffix == ".csv" else "file of arrays"
        raise ValueError(f"{path} is no {kind}, or damaged: {str(problem)[:80]}. Fetch it again") from problem


def _present(path: Path, names: Iterable[str], present: list[str]) -> None:
    for name in names:
        if present.count(name) != 1:
            shown = ", ".join(column[:30] for column in present[:8]) + (" ..." if len(present) > 8 else "")
            raise ValueError(f"{path} has {'several' if name in present else 'no'} {name!r}; it has {shown}")


def _npz(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as file:
        _present(path, names, [name.removesuffix(".npy") for name in file.namelist()])
        members = {name: file.getinfo(f"{name}.npy") for name in names}
        if any(m.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for m in members.values()):
            raise zipfile.BadZipFile("compressed in a way that NumPy does not use")
        found = {}
        for name, member in members.items():
            with file.open(member) as stream:
                found[name] = _array(stream, member.file_size, f"{name!r} of {path}")
        return found


def _array(stream: BinaryIO, size: int, what: str) -> np.ndarray:
    """The numbers (n,) of a .npy file of that size. What its header claims is checked before memory is taken."""
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{what} has the format {version}, which is none of plain numbers")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, _, dtype = read(stream)
    except ValueError as problem:                            # of several lines
        raise ValueError(f"{what} has no header of an array, or a damaged one. Fetch it again") from problem
    if dtype.hasobject:
        raise ValueError(f"{what} holds Python objects, which are never unpickled")
    if len(shape) != 1 or dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise ValueError(f"{what} must be one number per example; got {dtype} {str(shape)[:60]}")
    if not 0 <= shape[0] <= MOST_VALUES:
        raise ValueError(f"{what} claims {shape[0]:.3g} values; a file of scores has at most {MOST_VALUES:,}")
    wanted = shape[0] * dtype.itemsize
    content = stream.read(wanted + 1) if stream.tell() + wanted == size else b""
    if len(content) != wanted:
        raise ValueError(f"{what} claims {shape[0]} values and does not have that size: it is damaged. Fetch it again")
    return np.frombuffer(content, dtype).astype("f8" if dtype.kind == "f" else "i8")


def _csv(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size:.3g} bytes; a file of scores has at most {MOST_BYTES:,}")
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(_lines(file, path))
        header = next(rows, [])
        _present(path, names, header)
        at, found = [header.index(name) for name in names], [array("d") for _ in names]
        for row in filter(None, rows):                       # a spreadsheet may end in an empty line
            if len(row) != len(header):
                raise ValueError(f"{path} has {len(row)} fields in line {rows.line_num} and {len(header)} in its "
                                 f"header: which column is which cannot be told")
            for place, column in zip(at, found, strict=True):
                column.append(_number(row[place], f"{header[place]!r} of {path}", rows.line_num))
    return {name: np.array(column) for name, column in zip(names, found, strict=True)}


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    while line := file.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise ValueError(f"{path} has a line of {LONGEST_LINE:,} characters or more: it is no table of scores")
        yield line


def _number(text: str, what: str, line: int) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{what} must be one number per example; line {line} has {text[:40]!r}") from None
