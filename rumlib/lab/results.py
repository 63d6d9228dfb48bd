"""Published results: what a study has computed, in few small files without weights, for those who have no GPU and for
the next machine.

    python -m rumlib.lab.results cifar10                         # make publish: into figures/cifar10/results/
    python -m rumlib.lab.results cifar10 figures/cifar10/results # make unpack FROM=...: into runs/cifar10/

    pack(folder, results, {"commit": ...})                   # manifest.json, cells-*.jsonl, tensors-*.safetensors
    found = Packed(folder)                                   # checks every file, or refuses all of them
    found.find(identity)                                     # a result, or NotPublished that names what is lacking

Published are the results that are done and that a notebook's last run has asked for. `make paper FROM=...` makes
notebooks and figures from them and computes nothing. Unpacked, they are finished results: those that the present code,
data and kind of device ask for are read back by the next run, and `make status` calls the others stale.

Nothing is rounded: values are JSON, bool tensors packed bits, integers as short as they can be; floats stay as they are,
because a RUM is named by the hash of the scores that refine it. The same results give the same bytes. No file is larger
than LIMIT, and none is unpickled. A published result is found by what it is about: its kind, the data, model and recipe
of its study, its arguments. Code, kind of device, precision and release of torch have made it; the manifest tells them.

Whoever takes published results takes them from a stranger. So all is checked before any of it is used: names, kinds,
sizes, checksums, types and shapes.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from rumlib.data import label_hash
from rumlib.lab import files
from rumlib.lab.check import survey
from rumlib.lab.files import brief
from rumlib.lab.memo import NotPublished, differences, digest_of, memoized, put
from rumlib.lab.profiles import profile
from rumlib.lab.study import Study, find_home

FORMAT = 2                                                   # of the files; 1 had older names, see RENAMED
LIMIT = 16 * 2**20                                           # bytes of a file: what hosts of code and reviewers take
LINE = 2**20                                                 # bytes of a result without its tensors
MANIFEST = "manifest.json"
UNPACKED = "unpacked.json"                                   # as a notebook that has asked for all that was unpacked
NAMED = re.compile(r"cells-\d{3,4}\.jsonl|tensors-\d{3,4}\.safetensors")
ORIGIN = {"format": int, "profile": str, "studies": dict, "cells": dict, "files": dict}
RESULT = {"what": str, "study": str, "code": str, "arguments": dict, "values": dict, "seconds": (int, float), "made": dict}
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16,
    torch.float32, torch.float64)}
# Kinds of results as format 1 calls them. Classes and functions have a dotted path there, which `modern` leaves out.
RENAMED = {"right": "original_correct", "placed": "embedding_bands", "alike": "matched_sets", "apart": "entanglement",
           "given": "apply"}


# -- Names ------------------------------------------------------------------------------------------------------------


def modern(identity: Mapping) -> dict:
    """An identity under the present names: kinds renamed, classes and functions without the path of their module. One
    that has the present names stays as it is."""
    return {**identity, "what": RENAMED.get(identity["what"], identity["what"]),
            **{part: _modern(identity[part]) for part in ("study", "arguments")}}


def _modern(value):
    if isinstance(value, list):
        return [_modern(v) for v in value]
    if not isinstance(value, Mapping):
        return value
    return {name: _own_name(v) if name in ("class", "function") and isinstance(v, str) else _modern(v)
            for name, v in value.items()}


def _own_name(dotted: str) -> str:
    """The qualified name in "module.qualified.name": it begins with the first capital, or before "<locals>"."""
    parts = dotted.split(".")
    starts = [k for k, part in enumerate(parts) if part[:1].isupper() or parts[k + 1:k + 2] == ["<locals>"]]
    return ".".join(parts[min(starts, default=-1):])


def about(identity: Mapping) -> dict:
    """What a result is about: its identity without what has made it."""
    identity = modern(identity)
    study = {name: _uncoded(identity["study"][name]) for name in ("data", "model", "recipe")}
    return {"what": identity["what"], "study": study, "arguments": _uncoded(identity["arguments"])}


def _uncoded(value):
    if isinstance(value, list):
        return [_uncoded(v) for v in value]
    if not isinstance(value, Mapping):
        return value
    coded = "class" in value or "function" in value          # an algorithm may well have a field called "code"
    return {name: _uncoded(v) for name, v in value.items() if not (coded and name == "code")}


@cache
def known_kinds() -> frozenset[str]:
    """The kinds of results that there are."""
    return frozenset(RENAMED.get(name, name) for name, _ in inspect.getmembers(
        Study, lambda member: isinstance(member, memoized)))


# -- Written ----------------------------------------------------------------------------------------------------------


def pack(folder: Path, cells: Iterable[dict], origin: Mapping) -> dict:
    """Write results, each as `rumlib.lab.memo.Store.read` gives it, and return the manifest. What was in the folder
    before is replaced. `origin` says where they come from: "studies", name -> identity, and what else is worth knowing.

    Raises ValueError where two are about the same, so that one could be taken for the other.
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
        values = {name: _spelled(value) for name, value in cell["values"].items() if name != "tensors"}
        if "tensors" in cell["values"]:
            values["tensors"] = {}
            for name, tensor in sorted(cell["values"]["tensors"].items()):           # safetensors knows no order
                tensors[f"{key}/{name}"] = _short(tensor)
                values["tensors"][name] = [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        line = {"what": identity["what"], "study": names[digest_of(identity["study"])], "code": identity["code"],
                "arguments": identity["arguments"], "values": values, "seconds": cell["seconds"], "made": cell["made"]}
        lines.append(json.dumps(line, allow_nan=False).encode() + b"\n")
    lines = _parts(((line, len(line)) for line in lines), min(LINE, LIMIT))
    shards = _parts(((named, named[1].nbytes + 200) for named in tensors.items()), LIMIT)    # 200: in the header
    written = {f"cells-{k:03}.jsonl": b"".join(part) for k, part in enumerate(lines)}
    written |= {f"tensors-{k:03}.safetensors": safetensors.torch.save(dict(part)) for k, part in enumerate(shards)}
    manifest = {**origin, "format": FORMAT, "cells": dict(Counter(cell["identity"]["what"] for cell in cells)),
                "files": {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
                          for name, data in written.items()}}
    for name, data in written.items():
        put(folder / name, data)
    put(folder / MANIFEST, json.dumps(manifest, indent=1).encode() + b"\n")      # the last: it speaks of the others
    for path in folder.iterdir():
        if NAMED.fullmatch(path.name) and path.name not in written:
            path.unlink()
    return manifest


def _parts(sized: Iterable[tuple[object, int]], most: int) -> Iterator[list]:
    """Things in their order, cut into parts of at most LIMIT bytes. Raises ValueError for one above `most`."""
    part, total = [], 0
    for thing, size in sized:
        if size > most:
            raise ValueError(f"{size / 2**20:.0f} MiB of one result do not fit, at most {most / 2**20:.0f} MiB do: "
                             f"return them as tensors, weights under \"large\", or cut the computation into smaller ones")
        if total + size > LIMIT:
            yield part
            part, total = [], 0
        part.append(thing)
        total += size
    if part:
        yield part


def _spelled(value):
    """JSON has no NaN and no infinity: they are {"float": "nan"}."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, Mapping):
        return {name: _spelled(v) for name, v in value.items()}
    return [_spelled(v) for v in value] if isinstance(value, list | tuple) else value


def _restored(value):
    if isinstance(value, list):
        return [_restored(v) for v in value]
    if not isinstance(value, Mapping):
        return value
    if value.keys() == {"float"} and value["float"] in ("nan", "inf", "-inf"):
        return float(value["float"])
    return {name: _restored(v) for name, v in value.items()}


def _short(tensor: Tensor) -> Tensor:
    """The same content in fewer bytes: bits of a bool tensor, the shortest integers."""
    if tensor.dtype == torch.bool:
        return torch.from_numpy(np.packbits(tensor.numpy()))
    if tensor.is_floating_point():
        return tensor.contiguous()
    shorter = [k for k in (torch.uint8, torch.int16, torch.int32) if k.itemsize < tensor.itemsize]
    low, high = (tensor.min(), tensor.max()) if tensor.numel() else (0, 0)
    return tensor.to(next((k for k in shorter if torch.iinfo(k).min <= low and high <= torch.iinfo(k).max), tensor.dtype))


def _long(stored: Tensor, dtype: str, shape: list[int]) -> Tensor:
    if dtype == "bool":
        return torch.from_numpy(np.unpackbits(stored.numpy(), count=math.prod(shape))).bool().view(shape)
    return stored.to(DTYPES[dtype]).view(shape)


def _is_stored(stored: Tensor | None, told: object) -> bool:
    """Whether a tensor is what its line says, dtype and shape, so that `_long` makes it without loss."""
    if not (stored is not None and isinstance(told, list) and len(told) == 2 and isinstance(told[0], str)
            and told[0] in DTYPES and isinstance(told[1], list) and len(told[1]) <= 8
            and all(type(size) is int and size >= 0 for size in told[1])):
        return False
    dtype, shape = DTYPES[told[0]], told[1]
    if dtype == torch.bool:
        return (stored.dtype, list(stored.shape)) == (torch.uint8, [-(-math.prod(shape) // 8)]) and max(
            shape, default=0) <= 8 * LIMIT
    return list(stored.shape) == shape and torch.promote_types(stored.dtype, dtype) == dtype and \
        stored.is_floating_point() == dtype.is_floating_point and stored.dtype != torch.bool


# -- Read -------------------------------------------------------------------------------------------------------------


class Packed:
    """The published results in a folder. Raises FileNotFoundError if there are none; ValueError if any file of theirs
    is damaged, of another format, or not what `pack` writes."""

    def __init__(self, folder: str | Path):
        self.folder, self.changed = Path(folder), set()
        try:
            data = files.read(self.folder / MANIFEST, LINE)
        except FileNotFoundError:
            raise FileNotFoundError(f"no published results in {folder}: it has no {MANIFEST}; make publish writes "
                                    f"them") from None
        self.digest = hashlib.sha256(data).hexdigest()[:16]
        self.manifest = self._manifest(data)
        texts = [text for name in self.manifest["files"] if name.endswith(".jsonl") for text in self._lines(name)]
        found = [self._result(text) for text in texts]
        self._tensors = self._load(sum(len(line["values"].get("tensors", ())) for _, _, line in found))
        self._cells = {digest_of(about(identity)): each for each in found for identity in each[:1]}
        self._check(found)

    def _manifest(self, data: bytes) -> dict:
        found = files.check(files.parse(data, self.folder / MANIFEST), ORIGIN, self.folder / MANIFEST, more=True)
        if found["format"] not in (1, FORMAT):
            raise ValueError(f"the results in {self.folder} are of format {brief(found['format'])}; this code reads "
                             f"formats 1 and {FORMAT}")
        for name, told in found["files"].items():
            files.check(told, {"bytes": int, "sha256": str}, f"{brief(name)} in {self.folder / MANIFEST}")
            if not NAMED.fullmatch(name):
                raise ValueError(f"{self.folder / MANIFEST} names {brief(name)}; files are called cells-000.jsonl, "
                                 f"tensors-000.safetensors and so on")
        for name, study in found["studies"].items():
            files.check(study, dict.fromkeys(("data", "model", "recipe"), object), f"study {brief(name)}", more=True)
        return found

    def _read(self, name: str) -> bytes:
        path, told = self.folder / name, self.manifest["files"][name]
        try:
            data = files.read(path, LIMIT)
        except FileNotFoundError:
            data = b""
        if (len(data), hashlib.sha256(data).hexdigest()) != (told["bytes"], told["sha256"]):
            raise ValueError(f"{path} is damaged or lost: it is not what {MANIFEST} was written for; fetch it again")
        return data

    def _lines(self, name: str) -> list[bytes]:
        data = self._read(name)
        if data.count(b"\n") > len(data) // 64:
            raise ValueError(f"{self.folder / name} has lines that are too short for a result")
        return data.splitlines()

    def _result(self, text: bytes) -> tuple[dict, str, dict]:
        """(identity, name of its tensors, what its line says)."""
        where = f"a result in {self.folder}"
        if len(text) > LINE:
            raise ValueError(f"{where} has {len(text)} bytes; at most {LINE} are read")
        line = files.check(files.parse(text, where), RESULT, where)
        if RENAMED.get(line["what"], line["what"]) not in known_kinds():
            raise ValueError(f"{where} is of kind {brief(line['what'])}; kinds are {', '.join(sorted(known_kinds()))}")
        if line["study"] not in self.manifest["studies"]:
            raise ValueError(f"{where} is of study {brief(line['study'])}, which {MANIFEST} does not name")
        files.check(line["made"], {"torch": str, "cpu": str}, f"\"made\" of {where}", more=True)
        files.check(line["values"], {name: kind for name, kind in (("tensors", dict), ("large", str))
                                     if name in line["values"]}, f"\"values\" of {where}", more=True)
        if line["seconds"] < 0:
            raise ValueError(f"{where} took {brief(line['seconds'])} seconds")
        identity = {"what": line["what"], "code": line["code"], "study": self.manifest["studies"][line["study"]],
                    "arguments": line["arguments"]}
        return modern(identity) if self.manifest["format"] == 1 else identity, digest_of(identity), line

    def _load(self, expected: int) -> dict[str, Tensor]:
        """All tensors, whose names a few hundred bytes of header hold each."""
        found = {}
        for name in (name for name in self.manifest["files"] if name.endswith(".safetensors")):
            data = self._read(name)
            if int.from_bytes(data[:8], "little") > 1024 * (expected + 1):
                raise ValueError(f"{self.folder / name} has a header for more tensors than its results have")
            try:
                found |= safetensors.torch.load(data)
            except Exception as problem:                     # its own, KeyError, ValueError: it promises none
                raise ValueError(f"{self.folder / name} holds no tensors: {problem}; fetch it again") from problem
        return found

    def _check(self, found: list[tuple[dict, str, dict]]) -> None:
        """Raise ValueError unless each result is there once, and each tensor belongs to one."""
        if len(self._cells) < len(found):
            raise ValueError(f"{self.folder} has two results about the same; take neither, and fetch them again")
        told = {f"{key}/{name}": kind for _, key, line in found for name, kind in line["values"].get("tensors", {}).items()}
        for name, kind in told.items():
            if not _is_stored(self._tensors.get(name), kind):
                raise ValueError(f"tensor {brief(name)} in {self.folder} is not the {brief(kind)} of its result")
        counts = Counter(line["what"] for _, _, line in found)
        if told.keys() != self._tensors.keys() or counts != self.manifest["cells"]:
            raise ValueError(f"{self.folder} does not hold the results that {MANIFEST} counts, or not their tensors alone")

    def _cell(self, identity: dict, key: str, line: dict) -> dict:
        values = _restored({name: value for name, value in line["values"].items() if name != "tensors"})
        if "tensors" in line["values"]:
            values["tensors"] = {name: _long(self._tensors[f"{key}/{name}"], *kind)
                                 for name, kind in line["values"]["tensors"].items()}
        return {"identity": identity, "values": values, "seconds": line["seconds"], "made": line["made"]}

    def __iter__(self) -> Iterator[tuple[str, dict]]:
        """(name of its study, result) of all."""
        return ((each[2]["study"], self._cell(*each)) for each in self._cells.values())

    def find(self, identity: Mapping) -> dict:
        """The result that is about the same as this identity, as `rumlib.lab.memo.Store.read` would give it. Raises
        NotPublished, saying in what the nearest one differs."""
        wanted = about(identity)
        found = self._cells.get(digest_of(wanted))
        if found is None:
            others = (differences(about(other), wanted) for other, *_ in self._cells.values()
                      if modern(other)["what"] == wanted["what"])
            nearest = min(others, key=len, default=None)
            why = "they have none of this kind" if nearest is None else f"the nearest differs in {', '.join(nearest)}"
            raise NotPublished(f"the published results in {self.folder} lack one of kind {identity['what']!r}: {why}. "
                               f"Take those that fit this data, profile and number of seeds, or compute it: run "
                               f"without FROM (at the scale of the papers, on a GPU)")
        self.changed |= {f"{identity['what']}: {name}" for name in differences(modern(found[0]), modern(identity))}
        return self._cell(*found)

    def origin(self) -> dict:
        """Where they come from, and in what the present code and device differ from those that have made the results
        that were asked for so far."""
        told = {name: value for name, value in self.manifest.items() if name not in ("studies", "cells", "files")}
        return {**told, "manifest": self.digest, "changed since": sorted(self.changed)}


@cache
def opened(folder: Path) -> Packed:
    """The results in that folder, once for all studies of a process."""
    return Packed(folder)


# -- Commands ---------------------------------------------------------------------------------------------------------


def studies(which: str, home: Path) -> list[Study]:
    """Those of a profile that a notebook has asked for results: its own, and that of whole classes."""
    found = [Study(p, quiet=True, home=home) for p in (profile(which), profile(which).for_classes())]
    return [study for study in found if study.manifest.parent.exists()]


def publish(which: str, home: Path) -> tuple[Path, dict, int]:
    """Pack the finished results of a profile. Returns the folder, the manifest, and how many were asked for and are not
    there. Raises ValueError if none is."""
    cells, missing, asking = [], 0, studies(which, home)
    for study in asking:
        table = survey(study)
        done = table["asked"] & (table["state"] == "done")
        cells += [study.store.read(kind, key) for kind, key in table.loc[done, ["kind", "key"]].itertuples(index=False)]
        missing += int((table["asked"] & table["state"].isin(["missing", "failed"])).sum())
    cells = [cell for cell in cells if cell is not None]     # one that is damaged was set aside
    if not cells:
        raise ValueError(f"nothing is finished that could be published: make paper PROFILE={which}")
    told, named = asking[0].provenance(), {study.profile.name: study for study in asking}
    kept = ("profile", "commit", "dirty", "device", "machine", "versions", "code", "lock")
    origin = {**{name: told[name] for name in kept},
              "made": sorted({" ".join(cell["made"].values()) for cell in cells}),
              "seeds": {name: list(study.profile.seeds) for name, study in named.items()},
              "labels": {name: [label_hash(study.train.y), label_hash(study.test.y)] for name, study in named.items()},
              "core seconds": round(sum(cell["seconds"] for cell in cells), 1), "missing": missing,
              "studies": {name: study.identity for name, study in named.items()}}
    folder = asking[0].home / "figures" / which / "results"
    return folder, pack(folder, cells, origin), missing


def unpack(which: str, folder: Path, home: Path) -> tuple[int, int]:
    """Put published results among the finished ones of a profile, those that are not there. Returns how many these are,
    and how many of all the present code, data and device ask for. Raises ValueError where they are of another profile.
    """
    packed = Packed(folder)                                  # all of it is checked before anything is written
    if packed.manifest["profile"] != which:
        raise ValueError(f"the results in {folder} are of profile {brief(packed.manifest['profile'])}, not {which!r}")
    added = present = 0
    for p in (profile(which), profile(which).for_classes()):
        study, keys = Study(p, quiet=True, home=home), []
        for cell in (cell for name, cell in packed if name == p.name):
            kind, key = cell["identity"]["what"], digest_of(cell["identity"])
            keys.append((kind, key))
            if not study.store.path(kind, key).exists():
                study.store.keep(kind, cell)
                added += 1
        if keys:
            put(study.manifest.with_name(UNPACKED), json.dumps({"cells": keys}).encode())
            table = survey(study)
            present += int((table.set_index(["kind", "key"]).loc[keys, "state"] == "done").sum())
    return added, present


def main(which: str = "laptop", folder: str = "") -> None:
    home = find_home()
    if folder:
        added, present = unpack(which, Path(folder), home)
        print(f"{added} results unpacked into {home}/runs/{which}/; of those in {folder} the present code, data and "
              f"device ask for {present}, and the others are stale")
        return
    place, manifest, missing = publish(which, home)
    for name, file in manifest["files"].items():
        print(f"{file['bytes'] / 2**20:8.2f} MiB  {place / name}")
    print(f"{sum(manifest['cells'].values())} results, {manifest['core seconds']:.0f} s of one core"
          + f"; {missing} more were asked for and are not there: make status PROFILE={which}" * (missing > 0))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (ValueError, FileNotFoundError) as problem:
        sys.exit(f"{problem}")
