"""Published results: finished cells in few small files, without weights.

    pack(folder, cells, {"commit": ...})                     # manifest.json, cells-*.jsonl, tensors-*.safetensors
    found = Packed(folder)                                   # checks every file
    found.find(identity)                                     # a cell, or NotPublished that names what is lacking

Who has them can make every table and figure again, on a laptop, to the last digit. So nothing is rounded: values are
JSON, bool tensors packed bits, integers as short as they can be. Tensors of floats are few and stay float32: a RUM is
named by the hash of the scores that refine it, and rounded ones would be other scores. The same cells give the same
bytes. No file is larger than LIMIT, and none is unpickled.

Here a cell is found by what it is about: its kind, the data, model and recipe of its study, its arguments. The code,
the kind of device, the precision and the release of torch are what has made it: the manifest tells, and so do figures.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from rumlib.lab.codehash import differences, digest_of
from rumlib.lab.memo import NotPublished
from rumlib.lab.store import put

FORMAT = 1                                                   # of the files
LIMIT = 16 * 2**20                                           # bytes of a file: what hosts of code and reviewers take
MANIFEST = "manifest.json"


def about(identity: Mapping) -> dict:
    """What a cell is about: its identity without what has made it."""
    study = {name: _uncoded(identity["study"][name]) for name in ("data", "model", "recipe")}
    return {"what": identity["what"], "study": study, "arguments": _uncoded(identity["arguments"])}


def _uncoded(value):
    if isinstance(value, list):
        return [_uncoded(v) for v in value]
    if not isinstance(value, Mapping):
        return value
    coded = "class" in value or "function" in value          # an algorithm may well have a field called "code"
    return {name: _uncoded(v) for name, v in value.items() if not (coded and name == "code")}


# -- Written ----------------------------------------------------------------------------------------------------------


def pack(folder: Path, cells: Iterable[dict], origin: Mapping) -> dict:
    """Write cells, each as `rumlib.lab.memo.Store.read` gives it, and return the manifest. What was in the folder before
    is replaced. `origin` says where they come from: "studies", name -> identity, and what else is worth knowing.

    Raises ValueError where two cells are about the same, so that one could be taken for the other.
    """
    names = {digest_of(identity): name for name, identity in origin["studies"].items()}
    cells = sorted(cells, key=lambda cell: (cell["identity"]["what"], digest_of(cell["identity"])))
    known, lines, tensors = {}, [], {}
    for cell in cells:
        identity, key = cell["identity"], digest_of(cell["identity"])
        twin = known.setdefault(digest_of(about(identity)), key)
        if twin != key:
            raise ValueError(f"{identity['what']}/{key} and {identity['what']}/{twin} differ in their code alone: give "
                             f"what differs as an argument")
        values = {name: value for name, value in cell["values"].items() if name != "tensors"}
        if "tensors" in cell["values"]:
            values["tensors"] = {}
            for name, tensor in sorted(cell["values"]["tensors"].items()):           # safetensors knows no order
                tensors[f"{key}/{name}"] = _short(tensor)
                values["tensors"][name] = [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        line = {"what": identity["what"], "study": names[digest_of(identity["study"])], "code": identity["code"],
                "arguments": identity["arguments"], "values": values, "seconds": cell["seconds"], "made": cell["made"]}
        lines.append(json.dumps(line).encode() + b"\n")
    lines = _parts((line, len(line)) for line in lines)
    shards = _parts((named, named[1].nbytes + 200) for named in tensors.items())         # less than 200: in the header
    files = {f"cells-{k:03}.jsonl": b"".join(part) for k, part in enumerate(lines)}
    files |= {f"tensors-{k:03}.safetensors": safetensors.torch.save(dict(part)) for k, part in enumerate(shards)}
    manifest = {"format": FORMAT, **origin, "cells": dict(Counter(cell["identity"]["what"] for cell in cells)),
                "files": {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
                          for name, data in files.items()}}
    for name, data in files.items():
        put(folder / name, data)
    put(folder / MANIFEST, json.dumps(manifest, indent=1).encode() + b"\n")      # the last: it speaks of the others
    for path in [*folder.glob("cells-*.jsonl"), *folder.glob("tensors-*.safetensors")]:
        if path.name not in files:
            path.unlink()
    return manifest


def _parts(sized: Iterable[tuple[object, int]]) -> Iterator[list]:
    """Things in their order, cut into parts of at most LIMIT bytes. Raises ValueError for one that is larger."""
    part, total = [], 0
    for thing, size in sized:
        if size > LIMIT:
            raise ValueError(f"{size / 2**20:.0f} MiB of one cell do not fit into a file of {LIMIT / 2**20:.0f} MiB: "
                             f"return them under \"large\", or cut the cell into smaller ones")
        if total + size > LIMIT:
            yield part
            part, total = [], 0
        part.append(thing)
        total += size
    if part:
        yield part


def _short(tensor: Tensor) -> Tensor:
    """The same content in fewer bytes: bits of a bool tensor, the shortest integers."""
    if tensor.dtype == torch.bool:
        return torch.from_numpy(np.packbits(tensor.numpy()))
    if tensor.is_floating_point():
        return tensor.contiguous()
    kinds = (torch.uint8, torch.int16, torch.int32)
    low, high = (tensor.min(), tensor.max()) if tensor.numel() else (0, 0)
    return tensor.to(next((k for k in kinds if torch.iinfo(k).min <= low and high <= torch.iinfo(k).max), tensor.dtype))


def _long(stored: Tensor, dtype: str, shape: list[int]) -> Tensor:
    if dtype == "bool":
        bits = np.unpackbits(stored.numpy(), count=int(np.prod(shape)))
        return torch.from_numpy(bits).bool().view(shape)
    return stored.to(getattr(torch, dtype)).view(shape)


# -- Read -------------------------------------------------------------------------------------------------------------


class Packed:
    """The published results in a folder. Raises FileNotFoundError if there are none, ValueError if a file of theirs is
    damaged, or of another format."""

    def __init__(self, folder: Path):
        self.folder, self.changed = folder, set()
        if not (folder / MANIFEST).exists():
            raise FileNotFoundError(f"no published results in {folder}: it has no {MANIFEST}; make publish writes them")
        self.manifest = json.loads((folder / MANIFEST).read_bytes())
        if self.manifest.get("format") != FORMAT:
            raise ValueError(f"the results in {folder} are of format {self.manifest.get('format')}; this code reads "
                             f"format {FORMAT}")
        for name, told in self.manifest["files"].items():
            path = folder / name
            if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != told["sha256"]:
                raise ValueError(f"{path} is damaged or lost: its checksum is not that of the {MANIFEST}")

    def _files(self, ending: str) -> list[bytes]:
        return [(self.folder / name).read_bytes() for name in self.manifest["files"] if name.endswith(ending)]

    @cached_property
    def _cells(self) -> dict[str, tuple[dict, dict]]:
        """What each cell is about, hashed -> (its identity, its line)."""
        lines = [json.loads(line) for data in self._files(".jsonl") for line in data.splitlines()]
        found = [({"what": line["what"], "code": line["code"], "study": self.manifest["studies"][line["study"]],
                   "arguments": line["arguments"]}, line) for line in lines]
        return {digest_of(about(identity)): (identity, line) for identity, line in found}

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        return {name: tensor for data in self._files(".safetensors")
                for name, tensor in safetensors.torch.load(data).items()}

    def _cell(self, identity: dict, line: dict) -> dict:
        values, key = dict(line["values"]), digest_of(identity)
        if "tensors" in values:
            values["tensors"] = {name: _long(self._tensors[f"{key}/{name}"], *kind)
                                 for name, kind in values["tensors"].items()}
        return {"identity": identity, "values": values, "seconds": line["seconds"], "made": line["made"]}

    def __iter__(self) -> Iterator[tuple[str, dict]]:
        """(name of its study, cell) of all."""
        return ((line["study"], self._cell(identity, line)) for identity, line in self._cells.values())

    def find(self, identity: Mapping) -> dict:
        """The cell that is about the same as this identity, as `rumlib.lab.memo.Store.read` would give it. Raises
        NotPublished, saying in what the nearest one differs."""
        wanted = about(identity)
        found = self._cells.get(digest_of(wanted))
        if found is None:
            others = (differences(about(other), wanted) for other, _ in self._cells.values()
                      if other["what"] == wanted["what"])
            nearest = min(others, key=len, default=None)
            why = "they have none of this kind" if nearest is None else f"the nearest differs in {', '.join(nearest)}"
            raise NotPublished(f"the published results in {self.folder} lack a cell of kind {wanted['what']!r}: {why}. "
                               f"Take those that fit this data, profile and number of seeds, or compute it: run "
                               f"without FROM (at the scale of the papers, on a GPU)")
        self.changed |= {f"{wanted['what']}: {name}" for name in differences(found[0], identity)}
        return self._cell(*found)

    def origin(self) -> dict:
        """Where they come from, and in what the present code and device differ from those that have made the cells
        that were asked for so far."""
        told = {name: value for name, value in self.manifest.items() if name not in ("studies", "cells", "files")}
        return {**told, "manifest": hashlib.sha256((self.folder / MANIFEST).read_bytes()).hexdigest()[:16],
                "changed since": sorted(self.changed)}


@cache
def opened(folder: Path) -> Packed:
    """The results in that folder, once for all studies of a process."""
    return Packed(folder)
