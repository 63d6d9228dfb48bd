"""Is it still so? Finished cells computed again, and figures held against the present.

    python -m rumlib.lab.verify laptop                           # make verify PROFILE=laptop: a sample of its cells
    python -m rumlib.lab.verify figures/laptop/overview.json     # make verify FIGURE=...: what has changed since
    verify(Study("laptop"), sample=12, seed=0)               # one row per cell of the sample
    explain(json.loads(path.read_text()), Study("laptop"))   # one row per difference

A cell must come out bit by bit as it is on file, times apart, where torch and the kind of processor are those that made
it. Elsewhere sums round differently and training carries that on: then TOLERANCE says how much may differ.
"""

from __future__ import annotations

import importlib
import json
import random
import sys
from collections.abc import Mapping
from dataclasses import is_dataclass
from itertools import chain, zip_longest
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from rumlib.lab import engine
from rumlib.lab.check import survey
from rumlib.lab.codehash import PACKAGE
from rumlib.lab.memo import differences, digest_of, factory, here, parse
from rumlib.lab.study import ForgetSet, Study
from rumlib.proxies import TRACED
from rumlib.scores import Score

# Of shares, such as accuracies, and of the norm of a tensor. Between AVX2 and AVX-512, 0.0007 was the most on digits.
TOLERANCE = 0.02


# -- Cells ------------------------------------------------------------------------------------------------------------


def verify(study: Study, *, sample: int = 12, seed: int = 0) -> pd.DataFrame:
    """Compute cells again and compare them with what is on file. One row each: kind, key, verdict ("equal", "within
    tolerance", "differs", "not made again") and what was found.

    The sample is drawn from the finished cells, all kinds in turn. A cell with an argument that is not on file (a
    user's own algorithm or score, held-out examples) cannot be made again from here; its notebook can do that.
    """
    cells = survey(study)
    cells = cells[cells["state"] == "done"]
    drawn, known, tasks, rows = draw(cells, sample, seed), things(study, cells), {}, {}
    for kind, key in drawn:
        cell = parse(study.store.path(kind, key).read_bytes(), key)
        try:
            tasks[kind, key] = (study, kind, rebuilt(study, kind, cell["identity"], known))
        except LookupError as problem:
            rows[kind, key] = ("not made again", f"{problem.args[0]}")
    for k, values in engine.run(_again, list(tasks.values()), workers=study.workers,
                                 gpu=study.device.type != "cpu"):
        kind, key = list(tasks)[k]
        cell = study.store.read(kind, key)
        if cell is None or isinstance(values, str):
            rows[kind, key] = ("differs", "damaged" if cell is None else values)
        else:
            large = study.store.large(kind, key) if "large" in cell["values"] else None
            stored = {**cell["values"], "large": large or values["large"]} if "large" in values else cell["values"]
            rows[kind, key] = compare(stored, values, exact=cell["made"] == here())
    return pd.DataFrame([(*cell, *rows[cell]) for cell in drawn], columns=["kind", "key", "verdict", "found"])


def draw(cells: pd.DataFrame, sample: int, seed: int) -> list[tuple[str, str]]:
    """At most that many (kind, key), the kinds in turn."""
    chance = random.Random(seed)
    kinds = [chance.sample(keys, len(keys)) for keys in ([(kind, key) for key in sorted(part["key"])]
                                                         for kind, part in cells.groupby("kind"))]
    return [cell for cell in chain(*zip_longest(*kinds)) if cell is not None][:sample]


def things(study: Study, cells: pd.DataFrame) -> dict[str, object]:
    """What is named by its hash in identities and can be had from what is on file: the data, forget sets, and scores
    (memorization, proxies, and what is planted in the data)."""
    found = [study.train, study.test, *(Score(name, values, study.train.index)
                                        for name, values in study.train.info.items())]
    for kind, key in zip(cells["kind"], cells["key"], strict=True):
        if kind in ("oracle", "requests") and (cell := study.store.read(kind, key)):
            found += [ForgetSet(name, index) for name, index in cell["values"]["tensors"].items()
                      if name.startswith("forget")]
    with study.within():
        if (cells["kind"] == "bank").any():
            found.append(study.score)
        for kind in ("original", "probed"):
            for key in cells[cells["kind"] == kind]["key"]:
                asked = parse(study.store.path(kind, key).read_bytes(), key)["identity"]["arguments"]
                found += [study.proxy(name, asked["seed"]) for name in ([asked["name"]] if "name" in asked else TRACED)]
    return {thing.digest: thing for thing in found}


def rebuilt(study: Study, kind: str, identity: Mapping, known: Mapping[str, object]) -> tuple:
    """The arguments of a cell, from its identity. Raises LookupError for what is not on file. Only classes of this
    package are made, from plain fields: what a file says is not executed."""
    method = getattr(type(study), kind)
    arguments = tuple(_built(identity["arguments"][name], study, known, name) for name in method.names)
    differ = differences(method.identity(study, *arguments), identity)
    if differ:
        raise LookupError(f"another {', '.join(differ)}")
    return arguments


def _built(value, study: Study, known: Mapping[str, object], where: str):
    if isinstance(value, list):
        return tuple(_built(v, study, known, where) for v in value)
    if not isinstance(value, dict):
        return value
    if "digest" in value:
        if value["digest"] not in known:
            raise LookupError(f"{where}, which hashes to {value['digest']}, is not on file")
        return known[value["digest"]]
    for make_model in (study.profile.make_model, study.profile.scored_by.make_model):
        if value == factory(make_model):
            return make_model
    name = value.get("class", value.get("function", ""))
    home, _, own = name.rpartition(".")
    kind = getattr(importlib.import_module(home), own) if name.startswith("rumlib.") and name in PACKAGE else None
    if not (is_dataclass(kind) and isinstance(kind, type)):
        raise LookupError(f"{name} does not come with rumlib")
    return kind(**{field: _built(v, study, known, f"{where}.{field}") for field, v in value["fields"].items()})


def _again(study: Study, kind: str, arguments: tuple) -> dict | str:
    with study.within():
        try:
            return getattr(type(study), kind).compute(study, *arguments)
        except Exception as problem:
            return f"now raises {problem!r}"


def compare(stored: Mapping, found: Mapping, *, exact: bool) -> tuple[str, str]:
    """(verdict, the largest difference) of the values of a cell; times are left out."""
    apart = ("tensors", "large")
    stored, found = ({**{k: v for k, v in values.items() if not k.endswith("seconds") and k not in apart},
                      **values.get("tensors", {}), **values.get("large", {})} for values in (stored, found))
    if stored.keys() != found.keys():
        return "differs", f"has {', '.join(stored.keys() ^ found.keys())} on one side only"
    distances = {name: distance(value, found[name]) for name, value in stored.items()}
    worst = max(distances, key=distances.get)
    if distances[worst] == 0:
        return "equal", ""
    verdict = "within tolerance" if distances[worst] <= TOLERANCE and not exact else "differs"
    return verdict, f"{worst} by {distances[worst]:.2g}"


def distance(a, b) -> float:
    """0 if equal; of numbers the absolute difference, of bool tensors the share that differs, of other tensors the norm
    of the difference over that of the first. Counts and whatever else is not a float must be equal: infinite if not."""
    if isinstance(a, Tensor):
        return _apart(a, b)
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b)
    return 0.0 if a == b else float("inf")


def _apart(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    if torch.equal(a, b):
        return 0.0
    if not a.is_floating_point():
        return (a != b).float().mean().item() if a.dtype == torch.bool else float("inf")
    a, b = a.double(), b.double()
    return ((a - b).norm() / a.norm().clamp(min=1e-12)).nan_to_num(nan=float("inf")).item()


# -- Figures ----------------------------------------------------------------------------------------------------------


def explain(origin: Mapping, study: Study) -> pd.DataFrame:
    """How the present differs from that of a figure, given its provenance: rows (what, then, now)."""
    present = json.loads(json.dumps(study.provenance()))
    told = ("commit", "dirty", "lock", "code", "data", "seeds", "tuning seeds", "device", "published", "machine",
            "versions")
    rows = [(name, *(_at(side, name) for side in (origin, present))) for name in differences(
        *({key: side.get(key) for key in told} for side in (origin, present)))]
    return pd.DataFrame([*rows, *_cells(origin, study)], columns=["what", "then", "now"])


def _at(side: Mapping, name: str) -> object:
    value = side
    for key in name.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return "not recorded" if value is None else value


def _cells(origin: Mapping, study: Study) -> list[tuple]:
    """Whether the notebook of the figure asks for the same cells as then, and what became of these."""
    count = sum(origin["cells"].get(how, 0) for how in ("computed", "read back"))
    manifest = study.manifest.with_name(f"{origin.get('notebook')}.json")
    if not manifest.exists():
        return [("cells", f"{count} of {origin.get('notebook', 'a notebook not recorded')}", "no run of it here")]
    asked = [tuple(cell) for cell in json.loads(manifest.read_bytes())["cells"]][:count]
    if digest_of(asked) != origin["cells"].get("digest"):
        return [("cells", f"{count}: {origin['cells'].get('digest')}", f"others in its last run: {digest_of(asked)}")]
    cells = survey(study).set_index(["kind", "key"]).loc[asked]
    changed = cells[cells["state"] != "done"].groupby(["state", "why"]).size()
    return [("cells", "done", f"{n} {state}{': other ' + why if why else ''}") for (state, why), n in changed.items()]


# -- From the command line --------------------------------------------------------------------------------------------


def main(what: str, sample: str = "12", seed: str = "0") -> bool:
    """Whether all is as it was."""
    if what.endswith(".json"):
        origin = json.loads(Path(what).read_text())
        found = explain(origin, Study(origin["profile"], quiet=True))
        print(found.to_string(index=False) if len(found) else f"{what}: all that it was made with is as it was")
        return not len(found)
    study = Study(what, quiet=True)
    found = verify(study, sample=int(sample), seed=int(seed))
    print(found.to_string(index=False) if len(found) else f"No finished cells in {study.store.folder}")
    return not (found["verdict"] == "differs").any()


if __name__ == "__main__":
    try:
        sys.exit(0 if main(*(sys.argv[1:] or ["laptop"])) else 1)
    except (ValueError, FileNotFoundError) as problem:
        sys.exit(f"{problem}")
