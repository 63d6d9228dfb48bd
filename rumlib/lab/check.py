"""What a study has done, what is left to do, and whether it comes out again.

    python -m rumlib.lab.check status laptop                 # make status: results by kind and state, with their cost
    python -m rumlib.lab.check clean-stale laptop            # make clean-stale: remove those that are stale
    python -m rumlib.lab.check verify laptop 12              # make verify: a sample of its results, computed again
    python -m rumlib.lab.check explain figures/laptop/overview.json  # make verify FIGURE=...: what has changed since

done      there, and asked for by the last run of a notebook
unasked   there, of the present code, and asked for by no notebook's last run
missing   asked for by the last run of a notebook, and not there
failed    raised an error when it was last computed; the next run tries it again
stale     of other code than the present one, or of other data or settings: it is not read back any more
damaged   not whole: its checksum does not fit; the next run sets it aside and computes it again

For `status` nothing is computed, and torch is not imported: what notebooks have asked for, and of what code, is on file
(`rumlib.lab.memo`). Files are read only where that does not tell, or with `deep`: then damage is seen that no run has
met yet. A result that is computed again must come out bit by bit as it is on file, times apart, where torch
and the kind of processor are those that made it. Elsewhere sums round differently and training carries that on: then
TOLERANCE says how much may differ.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import chain, zip_longest
from pathlib import Path
from statistics import median

from rumlib.lab import settings
from rumlib.lab.codehash import PACKAGE
from rumlib.lab.keys import codes, differences, digest_of, parse

STATES = ("done", "unasked", "missing", "failed", "stale", "damaged")
# Of shares, such as accuracies, and of the norm of a tensor. Between AVX2 and AVX-512, 0.0007 was the most on digits.
TOLERANCE = 0.02


# -- What there is ----------------------------------------------------------------------------------------------------


def survey(folder: Path, *, deep: bool = False) -> list[dict]:
    """One row per result under `folder` (runs/<profile>): kind, key, state, the "seconds" that it took (of one that is
    not there, the median of its kind), and why: what is other than now, or what happened if it failed or is damaged.
    deep: read every result, also those that a notebook has asked for."""
    paths = sorted((folder / "asked").glob("*.json"), key=os.path.getmtime)
    lists = [found for path in paths if (found := asked(path))]
    wanted = {name: own for found in lists for name, own in found["results"].items()}
    study, present, rows = lists[-1]["study"] if lists else None, _PresentCodes(), {}
    for path in sorted((folder / "results").glob("*/*.json")):
        own = wanted.get((path.parent.name, path.stem))
        rows[path.parent.name, path.stem] = _judge(path, own, study, present) if deep or own is None else _told(
            own, study, present)
    for ending, state in ((".failed", "failed"), (".json.damaged", "damaged")):
        for path in sorted((folder / "results").glob(f"*/*{ending}")):
            why = _json(path).get("problem", "") if state == "failed" else "set aside"
            rows.setdefault((path.parent.name, path.name.removesuffix(ending)), {"state": state, "why": why})
    for name in wanted.keys() - rows.keys():
        rows[name] = {"state": "missing", "why": ", ".join(_changed(wanted[name]["codes"], present))}
    taken = defaultdict(list)
    for (kind, _), row in rows.items():
        taken[kind] += [row["seconds"]] if row.get("seconds") is not None else []
    usual = {kind: median(seconds) for kind, seconds in taken.items() if seconds}
    return [{"kind": kind, "key": key, "seconds": usual.get(kind), **row} for (kind, key), row in rows.items()]


def _told(own: Mapping, study: Mapping, present: Mapping) -> dict:
    """State, reason and seconds of a result that is there, by what the notebook tells that asked for it."""
    why = _changed(own["codes"], present) + (differences(own["study"], study, "study") if study else [])
    return {"state": "stale" if why else "done", "why": ", ".join(why), "seconds": own["seconds"]}


def _judge(path: Path, own: Mapping | None, study: Mapping | None, present: Mapping) -> dict:
    """The same by its own file."""
    try:
        result = parse(path.read_bytes(), path.stem)
        tensors = result["values"].get("tensors")
        if tensors and hashlib.sha256(path.with_suffix(".safetensors").read_bytes()).hexdigest() != tensors:
            raise ValueError("the checksum of its tensors does not fit")
    except (ValueError, OSError) as problem:
        return {"state": "damaged", "why": str(problem)}
    identity = result["identity"]
    why = _changed(codes(identity), present) + (differences(identity.get("study"), study, "study") if study else [])
    state = "stale" if why else "unasked" if own is None else "done"
    return {"state": state, "why": ", ".join(why), "seconds": result["seconds"]}


def asked(path: Path) -> dict | None:
    """What the last run of a notebook tells: the "study", and "results" in the order in which they were asked for,
    (kind, key) -> their "codes", name -> hash, "seconds" and "study". None where the file is damaged."""
    found = _json(path)
    try:
        return {"study": found["study"], "results": {
            (f"{kind}", f"{key}"): {"codes": {name: found["codes"][name] for name in names}, "seconds": seconds,
                                    "study": found["study"]}
            for kind, key, seconds, *names in found["results"]}}
    except (KeyError, TypeError, ValueError):
        return None


def _json(path: Path) -> dict:
    """A file of the lab's own; {} where it is damaged, or is not there."""
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError, FileNotFoundError):
        return {}
    return found if isinstance(found, dict) else {}


class _PresentCodes(dict):
    """The present hash of a name, of a kind of result or of a class or function; None where the package has no such
    definition: a user's own is not to be judged from here."""

    def __missing__(self, name: str) -> str | None:
        found = PACKAGE.kinds.get(name) or PACKAGE.find(name)
        self[name] = found and PACKAGE.code(found)
        return self[name]


def _changed(own: Mapping[str, str], present: Mapping) -> list[str]:
    """The names whose code is another now."""
    return [name for name, code in own.items() if present[name] not in (None, code)]


def table(rows: list[dict]) -> str:
    """Number of results by kind and state, and what they took, or will take, in seconds of one core."""
    kinds = [*dict.fromkeys(row["kind"] for row in rows), "all"]
    states = [state for state in STATES if state == "done" or any(row["state"] == state for row in rows)]
    lines = [["", *states, *(f"{state} s" for state in states if state in ("done", "missing"))]]
    for kind in kinds:
        own = [row for row in rows if kind in (row["kind"], "all")]
        count = [sum(row["state"] == state for row in own) for state in states]
        spent = [sum(row["seconds"] or 0 for row in own if row["state"] == state)
                 for state in states if state in ("done", "missing")]
        lines.append([kind, *map(str, count), *(f"{seconds:.1f}" for seconds in spent)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in lines)


def _folder(which: str) -> Path:
    return settings.home() / "runs" / settings.plain_name(which, "a profile")


def status(which: str) -> None:
    folder = _folder(which)
    rows = survey(folder)
    print(table(rows) if rows else f"No results in {folder} yet: make paper PROFILE={which}")
    for state in ("failed", "damaged"):
        for row in [row for row in rows if row["state"] == state][:10]:
            print(f"{state}: {row['kind']}/{row['key']}: {row['why']}")
    reasons = [row["why"] for row in rows if row["state"] in ("stale", "missing") and row["why"]]
    for reason in sorted(set(reasons), key=reasons.count, reverse=True)[:5]:
        print(f"stale: {reasons.count(reason)} results, other {reason}")
    for path in sorted((folder / "asked").glob("*.json")):
        if asked(path) is None:
            print(f"damaged: asked/{path.name} does not say what that notebook asked for; run the notebook again")
    if aside := len(list((folder / "results").glob("*/*.damaged"))):
        print(f"{aside} damaged files were set aside: make clean-stale PROFILE={which} removes them")


def clean_stale(which: str) -> int:
    """Remove the files of stale and damaged results, and return how many results these were. Waits for a run to end."""
    folder = _folder(which)
    if not (folder / "results").is_dir():
        return 0
    from filelock import FileLock

    with FileLock(folder / "results" / ".lock"):
        gone = [row for row in survey(folder, deep=True) if row["state"] in ("stale", "damaged")]
        files = [(folder / "results" / row["kind"]).glob(f"{row['key']}.*") for row in gone]
        for path in [*chain(*files), *(folder / "results").glob("*/*.damaged")]:
            path.unlink(missing_ok=True)
    return len(gone)


# -- Computed again ---------------------------------------------------------------------------------------------------


def verify(which: str, sample: int = 12, seed: int = 0) -> list[dict]:
    """Compute a sample of the finished results again and compare them with what is on file. One row each: kind, key,
    verdict ("equal", "within tolerance", "differs", "not asked for") and what was found.

    The notebooks that have asked for them run once more, and compute them when they ask: a result has all its arguments
    only there. The sample takes all kinds in turn.
    """
    folder = _folder(which)
    done = [row for row in survey(folder) if row["state"] == "done"]
    drawn, listed = draw(done, sample, seed), folder / "verify.json"
    if not drawn:
        return []
    notebooks = [path.stem for path in sorted((folder / "asked").glob("*.json"))
                 if (found := asked(path)) and found["results"].keys() & set(drawn)]
    listed.write_text(json.dumps([f"{kind}/{key}" for kind, key in drawn]))
    compared = [folder / "verified" / f"{kind}-{key}.json" for kind, key in drawn]
    for path in compared:
        path.unlink(missing_ok=True)
    run = subprocess.run([sys.executable, "-m", "rumlib.lab.run", which, "", "", "", " ".join(notebooks)], env={
        **os.environ, "RUM_VERIFY": str(listed.resolve()), "RUM_FIGURES": str(folder / "verified")})
    if run.returncode:
        raise ValueError(f"the notebooks {', '.join(notebooks)} did not run to their end (see above), so that nothing "
                         f"can be said of what they ask for")
    return [{"kind": kind, "key": key, **(_json(path) or {"verdict": "not asked for", "found": ""})}
            for (kind, key), path in zip(drawn, compared, strict=True)]


def draw(rows: list[dict], sample: int, seed: int) -> list[tuple[str, str]]:
    """At most that many (kind, key), the kinds in turn."""
    chance, kinds = random.Random(seed), {}
    for row in sorted(rows, key=lambda row: (row["kind"], row["key"])):
        kinds.setdefault(row["kind"], []).append((row["kind"], row["key"]))
    shuffled = [chance.sample(keys, len(keys)) for keys in kinds.values()]
    return [one for one in chain(*zip_longest(*shuffled)) if one is not None][:sample]


def compare(stored: Mapping, found: Mapping, *, exact: bool) -> dict[str, str]:
    """Verdict on the values of a result, and the largest difference found; times are left out."""
    apart = ("tensors", "large")
    stored, found = ({**{k: v for k, v in values.items() if not k.endswith("seconds") and k not in apart},
                      **values.get("tensors", {}), **values.get("large", {})} for values in (stored, found))
    if stored.keys() != found.keys():
        return {"verdict": "differs", "found": f"has {', '.join(stored.keys() ^ found.keys())} on one side only"}
    distances = {name: distance(value, found[name]) for name, value in stored.items()}
    most = max(distances.values(), default=0.0)
    if not most:
        return {"verdict": "equal", "found": ""}
    worst = next(name for name, value in distances.items() if value == most)
    return {"verdict": "within tolerance" if most <= TOLERANCE and not exact else "differs",
            "found": f"{worst} by {most:.2g}"}


def distance(a: object, b: object) -> float:
    """0 if equal; of numbers the absolute difference, of bool tensors the share that differs, of other tensors the norm
    of the difference over that of the first; of lists and dictionaries the largest inside. Counts and whatever else is
    not a float must be equal: infinite if not."""
    a, b = (list(side) if isinstance(side, tuple) else side for side in (a, b))      # JSON gives back a list for one
    if isinstance(a, dict):
        return distance(list(a.values()), [b[name] for name in a]) if isinstance(b, dict) and a.keys() == b.keys() \
            else math.inf
    if isinstance(a, list) and isinstance(b, list):
        return max(map(distance, a, b), default=0.0) if len(a) == len(b) else math.inf
    if isinstance(a, float) and isinstance(b, float):
        return 0.0 if repr(a) == repr(b) else math.inf if math.isnan(a - b) else abs(a - b)
    if not (hasattr(a, "is_floating_point") and hasattr(b, "is_floating_point")):
        return 0.0 if type(a) is type(b) and a == b else math.inf
    if a.shape != b.shape or a.dtype != b.dtype:
        return math.inf
    if a.numpy(force=True).tobytes() == b.numpy(force=True).tobytes():
        return 0.0
    if not a.is_floating_point():
        return (a != b).float().mean().item() if str(a.dtype) == "torch.bool" else math.inf
    a, b = a.cpu().double(), b.cpu().double()
    return ((a - b).norm() / a.norm().clamp(min=1e-12)).nan_to_num(nan=math.inf).item()


# -- Figures ----------------------------------------------------------------------------------------------------------


def explain(figure: Path) -> list[tuple[str, object, object]]:
    """How the present differs from what a figure was made with, given its file of provenance: rows (what, then, now).
    Raises FileNotFoundError or ValueError for any other file."""
    from rumlib.lab.study import Study

    if not figure.exists():
        raise FileNotFoundError(f"there is no {figure}; give the .json beside a figure")
    if not isinstance((origin := _json(figure)).get("profile"), str):
        raise ValueError(f"{figure} does not say where a figure comes from; give the .json beside a figure")
    study = Study(origin["profile"], quiet=True)
    present = json.loads(json.dumps(study.provenance()))
    told = ("commit", "dirty", "lock", "code", "data", "seeds", "tuning seeds", "device", "published", "machine",
            "versions")
    rows = [(name, _at(origin, name), _at(present, name)) for name in differences(
        *({key: side.get(key) for key in told} for side in (origin, present)))]
    return [*rows, *_results(origin, settings.home() / "runs" / study.profile.name)]


def _at(side: Mapping, name: str) -> object:
    value = side
    for key in name.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return "not recorded" if value is None else value


def _results(origin: Mapping, folder: Path) -> Iterator[tuple[str, object, object]]:
    """Whether the notebook of the figure asks for the same results as then, and what became of these."""
    then, name = origin.get("results", {}), origin.get("notebook", "a notebook not recorded")
    count = then.get("computed", 0) + then.get("read back", 0)
    found = asked(folder / "asked" / f"{name}.json")
    names = list(map(list, found["results"]))[:count] if found else []
    if found is None:
        yield "results", f"{count} of {name}", "no run of it here"
    elif digest_of(names) != then.get("digest"):
        yield "results", f"{count}: {then.get('digest')}", f"others in its last run: {digest_of(names)}"
    else:
        states = [row["state"] for row in survey(folder) if [row["kind"], row["key"]] in names]
        for state in sorted(set(states) - {"done"}):
            yield "results", "done", f"{states.count(state)} {state}"


# -- From the command line --------------------------------------------------------------------------------------------


def main(what: str, which: str, sample: str = "12", seed: str = "0") -> bool:
    """Whether all is as it was."""
    if what == "status":
        status(which)
    elif what == "clean-stale":
        print(f"{clean_stale(which)} stale or damaged results removed from runs/{which}/")
    elif what == "verify":
        rows = verify(which, int(sample), int(seed))
        print("\n".join(f"{row['kind']:<18} {row['key']}  {row['verdict']:<18} {row['found']}" for row in rows)
              or f"No finished results in runs/{which}/")
        return not any(row["verdict"] in ("differs", "not asked for") for row in rows)
    elif what == "explain":
        rows = explain(Path(which))
        print("\n".join(f"{name}: {then} then, {now} now" for name, then, now in rows)
              or f"{which}: all that it was made with is as it was")
        return not rows
    else:
        raise ValueError(f"unknown command {what!r}; there are status, clean-stale, verify and explain")
    return True


if __name__ == "__main__":
    try:
        sys.exit(0 if main(*sys.argv[1:]) else 1)
    except (ValueError, FileNotFoundError) as problem:
        sys.exit(f"{problem}")
