"""Published results: what a study has computed, in few small files without weights, for those who have no GPU and for
the next machine.

    python -m rumlib.lab.results cifar10                         # make publish: into figures/cifar10/results/
    python -m rumlib.lab.results cifar10 figures/cifar10/results # make unpack FROM=...: into runs/cifar10/

    pack(folder, results, {"profile": ...})                  # manifest.json, cells-*.jsonl.gz, tensors-*.safetensors
    found = Published(folder)                                # checks all that is there, or refuses it
    found.find(identity)                                     # a result, or NotPublished that names what is lacking

Published are the results that are done and that a notebook's last run has asked for. `make paper FROM=...` reads them
and computes nothing. A result is found by what it is about: its kind, the data, model and recipe of its study, its
arguments; the manifest tells what has made it. Unpacked, those that the present code, data and kind of device ask for
are read back by the next run, and the others are stale. Nothing is rounded: a RUM is named by the hash of its scores.
Published results come from strangers, so all is checked before any of it is used.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path

import safetensors.torch
from torch import Tensor

from rumlib.data import label_hash
from rumlib.lab import banks, computations, files, settings
from rumlib.lab.check import survey
from rumlib.lab.codehash import PACKAGE
from rumlib.lab.files import brief
from rumlib.lab.keys import codes, differences, digest_of
from rumlib.lab.memo import NotPublished, asked_for
from rumlib.lab.profiles import profile
from rumlib.lab.store import put
from rumlib.lab.study import Study

FORMAT = 2                                                   # of the files; 1 had older names, see RENAMED
KINDS = computations.KINDS | banks.KINDS
LIMIT = 16 * 2**20                                           # bytes of a file: what hosts of code and reviewers take
LINE = 2**20                                                 # bytes of a result without its tensors
HEADER = 1024                                                # bytes for the name, dtype and shape of a tensor
MANIFEST, UNPACKED = "manifest.json", "unpacked.json"        # the second: as a notebook that asked for all unpacked
NAMED = re.compile(r"cells-\d{3}\.jsonl(\.gz)?|tensors-\d{3}\.safetensors")
ORIGIN = {"format": int, "profile": str, "studies": dict, "cells": dict, "files": dict}
RESULT = {"what": str, "study": str, "code": str, "arguments": dict, "values": dict, "seconds": (int, float),
          "made": dict}
# Kinds of results as format 1 calls them. Classes and functions have a dotted path there, which `modern` leaves out.
RENAMED = {"right": "original_correct", "placed": "embedding_bands", "alike": "matched_sets", "apart": "entanglement",
           "given": "apply"}


# -- Names ------------------------------------------------------------------------------------------------------------


def modern(identity: Mapping, *, code: bool = True) -> dict:
    """An identity under the present names: kinds renamed, classes and functions without the path of their module. One
    that has the present names stays as it is; `code` says whether hashes of code stay."""
    return {**identity, "what": RENAMED.get(identity["what"], identity["what"]),
            **{part: _modern(identity[part], code) for part in ("study", "arguments")}}


def about(identity: Mapping) -> dict:
    """What a result is about: its identity without what has made it."""
    found = modern(identity, code=False)
    study = {name: found["study"][name] for name in ("data", "model", "recipe")}
    return {"what": found["what"], "study": study, "arguments": found["arguments"]}


def _modern(value, code: bool):
    if isinstance(value, list):
        return [_modern(v, code) for v in value]
    if not isinstance(value, Mapping):
        return value
    named = "code" in value and ("class" in value or "function" in value)    # a field may well be called "code"
    return {name: _own_name(v) if named and name in ("class", "function") else _modern(v, code)
            for name, v in value.items() if code or not named or name != "code"}


def _own_name(dotted: object) -> str:
    """The qualified name in "module.qualified.name": it begins with the first capital, or before "<locals>"."""
    parts = str(dotted).split(".")
    starts = [k for k, part in enumerate(parts[:-1]) if part[:1].isupper() or parts[k + 1] == "<locals>"]
    return ".".join(parts[min(starts, default=-1):])


def _present(value):
    """With the present code of all classes and functions."""
    if isinstance(value, list):
        return [_present(v) for v in value]
    if not isinstance(value, Mapping):
        return value
    name = value.get("class", value.get("function")) if "code" in value else None
    own = {} if name is None or not PACKAGE.find(name) else {"code": PACKAGE.code(PACKAGE.find(name))}
    return {**{key: _present(v) for key, v in value.items()}, **own}


# -- Written ----------------------------------------------------------------------------------------------------------


def pack(folder: Path, results: Iterable[dict], origin: Mapping, *, compress: bool = True) -> dict:
    """Write results, each as `rumlib.lab.memo.Store.read` gives it, and return the manifest. What was in the folder
    before is replaced. `origin` says where they come from: "profile", "studies", name -> identity, and what else is
    worth knowing. Raises ValueError where two are about the same, so that one could be taken for the other."""
    names = {digest_of(identity): name for name, identity in origin["studies"].items()}
    unique = {digest_of(result["identity"]): result for result in results}       # two studies may share some
    results = dict(sorted(unique.items(), key=lambda found: (found[1]["identity"]["what"], found[0])))
    known, lines, tensors = {}, [], {}
    for key, result in results.items():
        identity, values = result["identity"], dict(result["values"])
        twin = known.setdefault(digest_of(about(identity)), key)
        if twin != key:
            raise ValueError(f"{identity['what']}/{key} and {identity['what']}/{twin} differ in their code alone: give "
                             f"what differs as an argument")
        own = sorted(values.pop("tensors", {}).items())      # safetensors knows no order
        tensors |= {f"{key}/{name}": files.shortened(tensor) for name, tensor in own}
        told = {name: [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for name, tensor in own}
        line = {"what": identity["what"], "study": names[digest_of(identity["study"])], "code": identity["code"],
                "arguments": identity["arguments"], "seconds": result["seconds"], "made": result["made"],
                "values": files.spelled(values) | ({"tensors": told} if own else {})}
        lines.append(json.dumps(line).encode() + b"\n")
    lines = _parts(((line, len(line)) for line in lines), min(LINE, LIMIT))
    shards = _parts(((named, named[1].nbytes + 200) for named in tensors.items()), LIMIT)    # 200: in the header
    ending, zipped = (".jsonl.gz", partial(gzip.compress, mtime=0)) if compress else (".jsonl", bytes)
    written = {f"cells-{k:03}{ending}": zipped(b"".join(part)) for k, part in enumerate(lines)}
    written |= {f"tensors-{k:03}.safetensors": safetensors.torch.save(dict(part)) for k, part in enumerate(shards)}
    manifest = {"format": FORMAT, **origin, "cells": dict(Counter(one["identity"]["what"] for one in results.values())),
                "files": {name: {"bytes": len(data), "sha256": _hash(data)} for name, data in written.items()}}
    written[MANIFEST] = json.dumps(manifest, indent=1).encode() + b"\n"          # the last: it speaks of the others
    for name, data in written.items():
        put(folder / name, data)
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
                             f"return them as tensors, weights under \"large\", or cut the computation into parts")
        if total + size > LIMIT:
            yield part
            part, total = [], 0
        part.append(thing)
        total += size
    if part:
        yield part


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# -- Read -------------------------------------------------------------------------------------------------------------


class Published:
    """The published results in a folder. Raises FileNotFoundError if there are none; ValueError if any file of theirs
    is damaged, of another format, or not what `pack` writes."""

    def __init__(self, folder: str | Path):
        self.folder, self.changed = Path(folder), set()
        if not (self.folder / MANIFEST).exists():
            raise FileNotFoundError(f"no published results in {folder}: it has no {MANIFEST}; make publish writes them")
        data = files.read(self.folder / MANIFEST, LINE)
        self.manifest, self.digest = self._checked(files.parse(data, self.folder / MANIFEST)), _hash(data)[:16]
        results = [self._result(line) for line in self._lines()]
        told = {f"{key}/{name}": kind for _, key, line in results
                for name, kind in line["values"].get("tensors", {}).items()}
        self._tensors = self._load(len(told))
        wrong = [name for name, kind in told.items() if not files.is_shortened(self._tensors.get(name), kind)]
        if wrong or len(told) < len(self._tensors):
            raise ValueError(f"the tensors in {self.folder} are not those of its results: "
                             f"{wrong[0] if wrong else 'some belong to none'}; fetch them again")
        self._results = {digest_of(about(result[0])): result for result in results}
        if len(self._results) < len(results) or Counter(line["what"] for *_, line in results) != self.manifest["cells"]:
            raise ValueError(f"{self.folder} has a result twice, or not as many as its {MANIFEST} says; fetch it again")

    def _checked(self, found: object) -> dict:
        where = self.folder / MANIFEST
        files.check(found, ORIGIN, where, more=True)
        if found["format"] not in (1, FORMAT):
            raise ValueError(f"the results in {self.folder} are of format {brief(found['format'])}; this code reads "
                             f"formats 1 and {FORMAT}")
        for name, told in found["files"].items():
            files.check(told, {"bytes": int, "sha256": str}, f"{brief(name)} in {where}")
            if not NAMED.fullmatch(name):
                raise ValueError(f"{where} names {brief(name)}; files are called cells-000.jsonl, "
                                 f"tensors-000.safetensors and so on")
        for name, study in found["studies"].items():
            files.check(study, {"data": list, "model": dict, "recipe": str}, f"study {brief(name)}", more=True)
        return found

    def _files(self, ending: str) -> Iterator[tuple[Path, bytes]]:
        for name, told in self.manifest["files"].items():
            if name.endswith(ending):
                path = self.folder / name
                data = files.read(path, LIMIT) if path.exists() else b""
                if (len(data), _hash(data)) != (told["bytes"], told["sha256"]):
                    raise ValueError(f"{path} is damaged or lost: its checksum is not that of the {MANIFEST}; fetch it "
                                     f"again")
                yield path, data

    def _lines(self) -> Iterator[bytes]:
        for path, data in (*self._files(".jsonl"), *self._files(".jsonl.gz")):
            data = files.unzipped(data, LIMIT, path) if path.name.endswith(".gz") else data
            if data.count(b"\n") > len(data) // 64 or max(map(len, data.splitlines()), default=0) > LINE:
                raise ValueError(f"{path} has lines that are too short for a result, or longer than {LINE} bytes")
            yield from data.splitlines()

    def _result(self, text: bytes) -> tuple[dict, str, dict]:
        """(identity, what its tensors are named by, what its line says)."""
        where = f"a result in {self.folder}"
        line = files.check(files.parse(text, where), RESULT, where)
        if RENAMED.get(line["what"], line["what"]) not in KINDS:
            raise ValueError(f"{where} is of kind {brief(line['what'])}; kinds are {', '.join(sorted(KINDS))}")
        if line["study"] not in self.manifest["studies"]:
            raise ValueError(f"{where} is of study {brief(line['study'])}, which the {MANIFEST} does not name")
        files.check(line["values"], {name: kind for name, kind in (("tensors", dict), ("large", str))
                                     if name in line["values"]}, f"\"values\" of {where}", more=True)
        files.check(line["made"], {"torch": str, "cpu": str}, f"\"made\" of {where}")
        identity = {"what": line["what"], "code": line["code"], "study": self.manifest["studies"][line["study"]],
                    "arguments": line["arguments"]}
        return modern(identity) if self.manifest["format"] == 1 else identity, digest_of(identity), line

    def _load(self, expected: int) -> dict[str, Tensor]:
        found = {}
        for path, data in self._files(".safetensors"):
            if int.from_bytes(data[:8], "little") > HEADER * (expected + 1):
                raise ValueError(f"{path} has a header for more tensors than its results have")
            try:
                found |= safetensors.torch.load(data)
            except Exception as problem:                     # its own, KeyError, ValueError: it promises none
                raise ValueError(f"{path} holds no tensors: {problem}; fetch it again") from problem
        return found

    def _given(self, identity: dict, key: str, line: dict) -> dict:
        values = files.restored({name: value for name, value in line["values"].items() if name != "tensors"})
        if "tensors" in line["values"]:
            values["tensors"] = {name: files.lengthened(self._tensors[f"{key}/{name}"], *kind)
                                 for name, kind in line["values"]["tensors"].items()}
        return {"identity": identity, "values": values, "seconds": line["seconds"], "made": line["made"]}

    def __iter__(self) -> Iterator[tuple[str, dict]]:
        """(name of its study, result) of all."""
        return ((result[2]["study"], self._given(*result)) for result in self._results.values())

    def find(self, identity: Mapping) -> dict:
        """The result that is about the same as this identity, as `rumlib.lab.memo.Store.read` would give it. Raises
        NotPublished, saying in what the nearest one differs."""
        wanted, what = about(identity), identity["what"]
        found = self._results.get(digest_of(wanted))
        if found is None:
            others = (differences(other, wanted) for other in (about(one) for one, *_ in self._results.values())
                      if other["what"] == wanted["what"])
            nearest = min(others, key=len, default=None)
            why = "they have none of this kind" if nearest is None else f"the nearest differs in {', '.join(nearest)}"
            raise NotPublished(f"the published results in {self.folder} lack one of kind {what!r}: {why}. Take those "
                               f"that fit this data, profile and number of seeds, or compute it: run without FROM (at "
                               f"the scale of the papers, on a GPU)")
        self.changed |= {f"{what}: {name}" for name in differences(modern(found[0]), modern(identity))}
        return self._given(*found)

    def origin(self) -> dict:
        """Where they come from, and in what the present code and device differ from those that have made the results
        that were asked for so far."""
        told = {name: value for name, value in self.manifest.items() if name not in ("studies", "cells", "files")}
        return {**told, "manifest": self.digest, "changed since": sorted(self.changed)}


opened = cache(Published)                                    # the results in a folder, once for all of a process


# -- Commands ---------------------------------------------------------------------------------------------------------


def studies(which: str, home: Path, *, asked: bool = True) -> list[Study]:
    """A profile's own study, that of whole classes and that of synthetic flips; those that a notebook has asked for
    results, or all."""
    found = [Study(p, quiet=True, home=home) for p in profile(which).parts]
    return [study for study in found if study.manifest.parent.exists() or not asked]


def publish(which: str, home: Path) -> tuple[Path, dict, int]:
    """Pack the finished results of a profile. Returns the folder, the manifest, and how many were asked for and are not
    there. Raises ValueError if none is."""
    results, missing, asking = [], 0, studies(which, home)
    for study in asking:
        rows = survey(study.store.folder.parent)
        found = (study.store.read(row["kind"], row["key"]) for row in rows if row["state"] == "done")
        results += [result for result in found if result is not None]            # a damaged one was set aside
        missing += sum(row["state"] in ("missing", "failed", "damaged") for row in rows)
    if not results:
        raise ValueError(f"nothing is finished that could be published: make paper PROFILE={which}")
    told, named = asking[0].provenance(), {study.profile.name: study for study in asking}
    kept = ("profile", "commit", "dirty", "device", "machine", "versions", "code", "lock")
    origin = {**{name: told[name] for name in kept},
              "made": sorted({" ".join(result["made"].values()) for result in results}),
              "seeds": {name: list(study.profile.seeds) for name, study in named.items()},
              "labels": {name: [label_hash(study.train.y), label_hash(study.test.y)] for name, study in named.items()},
              "core seconds": round(sum(result["seconds"] for result in results), 1), "missing": missing,
              "studies": {name: study.identity for name, study in named.items()}}
    folder = home / "figures" / which / "results"
    return folder, pack(folder, results, origin), missing


def unpack(which: str, folder: Path, home: Path) -> tuple[int, int]:
    """Put published results among the finished ones of a profile, those that are not there. Returns how many these are,
    and how many of all the present code, data and device ask for. Raises ValueError where they are of another profile.
    """
    published, added, present = Published(folder), 0, 0      # all of it is checked before anything is written
    if (other := published.manifest["profile"]) != which:
        raise ValueError(f"the results in {folder} are of profile {brief(other)}, not {which!r}")
    if published.manifest["format"] == 1:                    # all would be stale: what computes was hashed otherwise
        raise ValueError(f"the results in {folder} are of format 1, which is read (make paper FROM={folder}) and not "
                         f"gone on from")
    for study in studies(which, home, asked=False):
        found = [result for name, result in published if name == study.profile.name]
        for result in found:
            kind, key = result["identity"]["what"], digest_of(result["identity"])
            if not study.store.path(kind, key).exists():
                study.store.keep(kind, result)
                added += 1
            present += _present(result["identity"]) == result["identity"] and (
                result["identity"]["study"], result["identity"]["code"]) == (
                study.identity, PACKAGE.code(PACKAGE.kinds[kind]))
        if found:
            identities = {digest_of(result["identity"]): result for result in found}
            put(study.manifest.with_name(UNPACKED), asked_for(study.identity, {
                (one["identity"]["what"], key): (one["seconds"], codes(one["identity"]))
                for key, one in identities.items()}))
    return added, present


def main(which: str = "laptop", folder: str = "") -> None:
    home = settings.home()
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
