"""Columns of numbers from files of strangers: sizes are checked before memory is taken, and nothing is unpickled.

    columns(path, ["memorization", "y"])     # of a .npz, .csv or .pt file
    rows(path, ["id"])                       # (number of the line, fields) of a .csv file
"""

from __future__ import annotations

import csv
import pickletools
import re
import zipfile
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

import numpy as np

# What a file of one number per example may hold: the largest public set of images, ImageNet-21k, has 14 million.
MOST_VALUES, MOST_BYTES, LONGEST_LINE = 20_000_000, 2 ** 30, 2 ** 16
MOST_PICKLED, MOST_INSTRUCTIONS = 2 ** 25, 10_000           # of a .pt file; the labels of CIFAR-10N are 2.4 MB in 150


def columns(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    """Columns of numbers, (n,) each, of a .npz or .csv file, or of whole numbers of a .pt file (a dictionary of NumPy
    arrays). The others of a .npz file are not read: there may be gigabytes of them.

    Raises FileNotFoundError without the file, and ValueError for a file that is damaged, does not hold these columns
    exactly once, or claims to be larger than a file of scores can be.
    """
    if path.suffix not in (".npz", ".csv", ".pt"):
        raise ValueError(f"columns of numbers are read from .npz and .csv files, and labels from .pt files; got "
                         f"{path.name}")
    if not path.is_file():
        raise ValueError(f"{path} is no regular file") if path.exists() else FileNotFoundError(f"there is no {path}")
    if path.suffix == ".csv":
        found = [array("d") for _ in names]
        for line, fields in rows(path, names):
            for name, text, column in zip(names, fields, found, strict=True):
                try:
                    column.append(float(text))
                except ValueError:
                    raise ValueError(f"{name!r} of {path} must be one number per example; line {line} has "
                                     f"{text[:40]!r}") from None
        return {name: np.array(column) for name, column in zip(names, found, strict=True)}
    try:
        return _torch(path, names) if path.suffix == ".pt" else _npz(path, names)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, SyntaxError,
            MemoryError, UnicodeError) as problem:
        raise ValueError(f"{path} is no file of arrays, or damaged: {str(problem)[:80]}. Fetch it again") from problem


def _npz(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as file:
        held = [name.removesuffix(".npy") for name in file.namelist()]
        for name in names:
            if held.count(name) != 1:
                raise ValueError(f"{path} has {'several' if name in held else 'no'} {name!r}; it has {_shown(held)}")
        members = {name: file.getinfo(f"{name}.npy") for name in names}
        if any(m.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for m in members.values()):
            raise zipfile.BadZipFile("compressed in a way that NumPy does not use")
        found = {}
        for name, member in members.items():
            with file.open(member) as stream:
                found[name] = _array(stream, member.file_size, f"{name!r} of {path}")
        return found


def _torch(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    """Arrays of whole numbers from a dictionary that torch.save has written. The pickle in it is read as a list of
    instructions, none of which is carried out: after its name an array has its bytes, as one long text."""
    with zipfile.ZipFile(path) as file:
        inside = [member for member in file.infolist() if member.filename.endswith("data.pkl")]
        if len(inside) != 1 or inside[0].file_size > MOST_PICKLED:
            raise ValueError(f"{path} has no single data.pkl of at most {MOST_PICKLED:,} bytes: it is no dictionary of "
                             f"labels. Fetch it again")
        pickled = file.read(inside[0])
    found, kinds, name = {}, set(), ""
    try:
        for k, (instruction, value, _) in enumerate(pickletools.genops(pickled)):
            if k == MOST_INSTRUCTIONS:
                raise ValueError(f"more than {MOST_INSTRUCTIONS:,} instructions")
            if "UNICODE" in instruction.name and value in names:
                name = value
            elif "UNICODE" in instruction.name and re.fullmatch("[iu][1248]", value):
                kinds.add(value)
            elif ("UNICODE" in instruction.name or "BYTES" in instruction.name) and len(value) > 16 and name:
                found[name], name = value if isinstance(value, bytes) else value.encode("latin1"), ""
        (kind,) = kinds
        return {name: np.frombuffer(found[name], np.dtype(f"<{kind}")).astype("i8") for name in names}
    except (ValueError, KeyError) as problem:
        raise ValueError(f"{path} does not hold {_shown(names)} as NumPy arrays of whole numbers of one type, or is "
                         f"damaged ({str(problem)[:60]}). Fetch it again") from problem


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


def rows(path: Path, names: list[str]) -> Iterator[tuple[int, list[str]]]:
    """(number of the line, fields under these names) of all lines of a CSV file that hold anything. Empty fields at the
    end of a line, as spreadsheets write them, are passed over."""
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size:.3g} bytes; a file of scores has at most {MOST_BYTES:,}")
    with path.open(newline="", encoding="utf-8-sig") as file:
        header, reader = [], csv.reader(_lines(file, path), skipinitialspace=True, strict=True)
        try:
            for row in reader:
                row = [field.strip() for field in row]
                while len(row) > len(header) and not row[-1]:
                    row.pop()
                if not header:
                    header, at = row, row and [_place(path, name, row) for name in names]
                elif any(row):
                    if len(row) != len(header):
                        raise ValueError(f"line {reader.line_num} of {path} has {len(row)} fields, the first line "
                                         f"names {len(header)}: put a field that holds a comma in quotes, and no field "
                                         f"less")
                    yield reader.line_num, [row[place] for place in at]
        except (csv.Error, UnicodeDecodeError) as problem:
            raise ValueError(f"{path} is no CSV file in UTF-8: line {reader.line_num + 1}: {problem}") from problem
    if not header:
        raise ValueError(f"{path} is no CSV file: it is empty")


def _place(path: Path, name: str, header: list[str]) -> int:
    alike = [column for column in header if column.casefold().split() == str(name).casefold().split()]
    if len(alike) > 1:
        raise ValueError(f"the column {name!r} of {path} is ambiguous: its first line names {alike}. Rename all but "
                         f"one")
    if name not in header:
        raise ValueError(f"{path} has no column {name!r}; its first line names {_shown(header)}. Ask for one of these "
                         f"(column=, key=, labels=), or put the names above, with commas between them")
    return header.index(name)


def _shown(names: list[str]) -> str:
    return ", ".join(repr(name[:30]) for name in names[:8]) + " ..." * (len(names) > 8)


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    while line := file.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise ValueError(f"{path} has a line of {LONGEST_LINE:,} characters or more: it is no table of numbers")
        yield line
