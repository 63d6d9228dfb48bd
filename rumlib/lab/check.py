"""What a study has done, and what is left to do.

    python -m rumlib.lab.check laptop                           # make status: cells by kind and state, with their cost
    python -m rumlib.lab.check laptop --clean-stale             # make clean-stale: remove those that are stale
    cells = survey(Study("laptop"))                          # one row per cell

done      there, and what the present code, data and settings ask for; `unasked` of them by no notebook's last run
missing   asked for by the last run of a notebook, and not there: never computed, or only with other code or data
failed    raised an error when it was last computed; the next run tries it again
stale     belongs to other code, data or settings than the present ones: it will never be read back with these
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import cache

import pandas as pd

from rumlib.lab.codehash import PACKAGE
from rumlib.lab.memo import differences, digest_of
from rumlib.lab.study import Study

STATES = ("done", "missing", "failed", "stale")


def survey(study: Study) -> pd.DataFrame:
    """One row per cell: kind, key, state, asked (by a notebook's last run), seconds that it took (or, where it is
    missing, that others of its kind took: the median), and why: what differs if it is stale, what happened if it
    failed. Only the descriptions of cells are read: whether tensors are whole is seen when they are used."""
    asked, rows, wanted = _asked(study), {}, set()
    for path in sorted(study.store.folder.glob("*/*.json")) + sorted(study.store.folder.glob("*/*.failed")):
        kind, key = path.parent.name, path.stem
        if (kind, key) in rows:
            continue                                         # it failed once, and is there now
        try:
            cell = json.loads(path.read_bytes())
            if digest_of(cell["identity"]) != key:
                raise ValueError("another cell's")
            present = renewed(study, cell["identity"])
        except (ValueError, KeyError, TypeError):            # damaged: for the next run, it is not there
            continue
        differ = differences(cell["identity"], present)
        state = "stale" if differ else "failed" if path.suffix == ".failed" else "done"
        why = ", ".join(differ) or cell.get("problem", "")
        rows[kind, key] = (state, (kind, key) in asked, cell.get("seconds"), why)
        if state == "stale" and (kind, key) in asked:
            wanted.add((kind, digest_of(present)))
    for cell in (asked | dict.fromkeys(wanted)).keys() - rows.keys():
        rows[cell] = ("missing", True, None, "")
    table = pd.DataFrame([(*cell, *row) for cell, row in rows.items()],
                         columns=["kind", "key", "state", "asked", "seconds", "why"])
    table["seconds"] = table["seconds"].astype(float)
    usual = table[table["state"].isin(["done", "stale"])].groupby("kind")["seconds"].median().to_dict()
    return table.fillna({"seconds": table["kind"].map(usual).where(table["state"] == "missing")})


def renewed(study: Study, identity: Mapping) -> dict:
    """The identity that a cell has with the present code, data and settings."""
    method = getattr(type(study), identity["what"], None)
    return {**identity, "code": method and method.code(study), "study": study.identity,
            "arguments": _renewed(identity.get("arguments"))}


def _renewed(value):
    if isinstance(value, list):
        return [_renewed(v) if isinstance(v, dict | list) else v for v in value]
    if not isinstance(value, dict):
        return value
    own = {key: _renewed(v) if isinstance(v, dict | list) else v for key, v in value.items()}
    name = value.get("class") or value.get("function") or ""
    if name.startswith(f"{PACKAGE.name}."):                  # a user's own is not to be judged from here
        own["code"] = _present(name)
    return own


@cache
def _present(name: str) -> str | None:
    return PACKAGE.code(name) if name in PACKAGE else None


def _asked(study: Study) -> dict[tuple[str, str], None]:
    found = {}
    for path in sorted(study.manifest.parent.glob("*.json")):
        found |= {(kind, key): None for kind, key in json.loads(path.read_bytes())["cells"]}
    return found


def table(cells: pd.DataFrame) -> pd.DataFrame:
    """Number of cells and seconds of one core by kind and state."""
    groups = cells.groupby(["kind", "state"], sort=False)
    counts = groups.size().unstack(fill_value=0).reindex(columns=STATES, fill_value=0)
    counts.insert(1, "unasked", cells[(cells["state"] == "done") & ~cells["asked"]].groupby("kind").size())
    spent = groups["seconds"].sum().unstack().reindex(columns=STATES)
    found = counts.join(spent.drop(columns="failed").add_suffix(" s")).fillna(0)
    found.loc["all"] = found.sum()
    return found.round(1).astype({name: int for name in counts})


def clean_stale(study: Study) -> int:
    """Remove the files of stale cells, and return how many cells these were. Waits for a run of the study to end."""
    with study.alone():
        cells = survey(study)
        stale = cells[cells["state"] == "stale"]
        for kind, key in zip(stale["kind"], stale["key"], strict=True):
            study.store.remove(kind, key)
    return len(stale)


def main(which: str, *options: str) -> None:
    study = Study(which, quiet=True)
    if options == ("--clean-stale",):
        print(f"{clean_stale(study)} stale cells removed from {study.store.folder}")
    elif options:
        raise ValueError(f"unknown option {' '.join(options)}; there is --clean-stale")
    cells = survey(study)
    if cells.empty:
        print(f"No cells in {study.store.folder} yet: make paper PROFILE={which}")
        return
    print(table(cells).to_string())
    for cell in cells[cells["state"] == "failed"].head(10).itertuples():
        print(f"failed: {cell.kind}/{cell.key}: {cell.why}")
    why = cells[cells["state"] == "stale"]["why"].value_counts()
    for reason, count in why.head(5).items():
        print(f"stale: {count} cells, other {reason}")


if __name__ == "__main__":
    try:
        main(*(sys.argv[1:] or ["laptop"]))
    except (ValueError, FileNotFoundError) as problem:
        sys.exit(f"{problem}")
