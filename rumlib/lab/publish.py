"""Finished cells for those who have no GPU, and for the next machine.

    python -m rumlib.lab.publish cifar10                         # make publish: into figures/cifar10/results/
    python -m rumlib.lab.publish cifar10 figures/cifar10/results # make unpack FROM=...: into runs/cifar10/

Published are the cells that are done and that a notebook's last run has asked for, without weights (`rumlib.lab.results`).
They lie beside the figures, since they are the numbers behind them, and ship with the project, not with the package.

`make paper FROM=...` makes notebooks and figures from them and computes nothing. Unpacked, they are finished cells:
those that the present code, data and kind of device ask for are read back by the next run, which goes on from there,
and `make status` calls the others stale. Weights are computed again where a cell that is missing needs them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rumlib.data import label_hash
from rumlib.lab.check import survey
from rumlib.lab.memo import digest_of, put
from rumlib.lab.profiles import profile
from rumlib.lab.results import Packed, pack
from rumlib.lab.settings import home as find_home
from rumlib.lab.study import Study

UNPACKED = "unpacked.json"                                   # as a notebook that has asked for all that was unpacked


def studies(which: str, home: Path) -> list[Study]:
    """Those of a profile that a notebook has asked for cells: its own, and that of whole classes."""
    found = [Study(p, quiet=True, home=home) for p in (profile(which), profile(which).for_classes())]
    return [study for study in found if study.manifest.parent.exists()]


def publish(which: str, home: Path) -> tuple[Path, dict, int]:
    """Pack the finished cells of a profile. Returns the folder, the manifest, and how many cells were asked for and are
    not there. Raises ValueError if none is."""
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
    """Put published cells among the finished ones of a profile, those that are not there. Returns how many these are,
    and how many of all the present code, data and device ask for. Raises ValueError where they are of another profile.
    """
    packed = Packed(folder)
    if packed.manifest["profile"] != which:
        raise ValueError(f"the results in {folder} are of profile {packed.manifest['profile']!r}, not {which!r}")
    added = present = 0
    for p in (profile(which), profile(which).for_classes()):
        study, keys = Study(p, quiet=True, home=home), []
        for name, cell in packed:
            if name == p.name:
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


def main(which: str, folder: str = "") -> None:
    home = find_home()
    if folder:
        added, present = unpack(which, Path(folder), home)
        print(f"{added} cells unpacked into {home}/runs/{which}/; of those in {folder} the present code, data and "
              f"device ask for {present}, and the others are stale")
        return
    folder, manifest, missing = publish(which, home)
    for name, file in manifest["files"].items():
        print(f"{file['bytes'] / 2**20:8.2f} MiB  {folder / name}")
    print(f"{sum(manifest['cells'].values())} cells, {manifest['core seconds']:.0f} s of one core"
          + f"; {missing} more were asked for and are not there: make status PROFILE={which}" * (missing > 0))


if __name__ == "__main__":
    try:
        main(*(sys.argv[1:] or ["laptop"]))
    except (ValueError, FileNotFoundError) as problem:
        sys.exit(f"{problem}")
