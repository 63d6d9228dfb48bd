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
damaged   set aside, since its checksum does not fit; the next run computes it again

Nothing is computed for the first two, and torch is not imported: what notebooks have asked for, and of what code, is on
file (`rumlib.lab.memo`). A result that is computed again must come out bit by bit as it is on file, times apart, where
torch and the kind of processor are those that made it. Elsewhere sums round differently and training carries that on:
then TOLERANCE says how much may differ.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping
from itertools import chain, zip_longest
from pathlib import Path
from statistics import median

from rumlib.lab import settings
from rumlib.lab.codehash import PACKAGE, codes, differences

STATES = ("done", "unasked", "missing", "failed", "stale", "damaged")
# Of shares, such as accuracies, and of the norm of a tensor. Between AVX2 and AVX-512, 0.0007 was the most on digits.
TOLERANCE = 0.02


# -- What there is ----------------------------------------------------------------------------------------------------


def survey(folder: Path) -> list[dict]:
    """One row per result under `folder` (runs/<profile>): kind, key, state, the "seconds" that it took (those of a
    missing one are the median of its kind), and why: what is of other code, or what happened if it failed."""
    asked, present, rows = _asked(folder), _present_codes(), {}
    for path in sorted((folder / "results").glob("*/*.json")):
        kind, key = path.parent.name, path.stem
        why = _stale(asked[kind, key], present) if (kind, key) in asked else _unasked(path, asked, present)
        state = "stale" if why else "done" if (kind, key) in asked else "unasked"
        rows[kind, key] = {"state": state, "why": why}
    for path in sorted((folder / "results").glob("*/*.failed")):
        told = _json(path).get("problem", "")
        rows.setdefault((path.parent.name, path.stem), {"state": "failed", "why": told})
    for path in sorted((folder / "results").glob("*/*.json.damaged")):
        name = path.parent.name, path.name.partition(".")[0]
        rows.setdefault(name, {"state": "damaged", "why": ""})
    for name in asked.keys() - rows.keys():
        rows[name] = {"state": "missing", "why": _stale(asked[name], present)}
    taken = {}
    for (kind, key), row in rows.items():
        row["seconds"] = asked.get((kind, key), {}).get("seconds")
        taken.setdefault(kind, []).extend([row["seconds"]] if row["seconds"] is not None else [])
    for (kind, _), row in rows.items():
        if row["seconds"] is None and row["state"] in ("missing", "failed", "damaged") and taken[kind]:
            row["seconds"] = median(taken[kind])
    return [{"kind": kind, "key": key, **row} for (kind, key), row in rows.items()]


def _asked(folder: Path) -> dict[tuple[str, str], dict]:
    """(kind, key) -> what the last runs of notebooks tell of a result: its "codes", name -> hash, its "seconds", the
    hash of its "study"."""
    found = {}
    for path in sorted((folder / "asked").glob("*.json")):
        told = _json(path)
        for kind, key, seconds, *names in told.get("results", []):
            found[kind, key] = {"codes": {name: told["codes"][name] for name in names}, "seconds": seconds,
                                "study": told["study"]}
    return found


def _json(path: Path) -> dict:
    """A file of the lab's own; {} where it is damaged, as if it were not there."""
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _present_codes() -> dict[str, str | None]:
    """A look-up of the present hash of a name, of a kind of result or of a class or function; None where the package
    has no such definition: a user's own is not to be judged from here."""
    class Codes(dict):
        def __missing__(self, name):
            found = PACKAGE.kinds.get(name) or PACKAGE.find(name)
            self[name] = found and PACKAGE.code(found)
            return self[name]
    return Codes()


def _stale(asked: Mapping, present: Mapping) -> str:
    """The names whose code is another now."""
    return ", ".join(name for name, code in asked["codes"].items() if present[name] not in (None, code))


def _unasked(path: Path, asked: Mapping, present: Mapping) -> str:
    """Why a result that no notebook asked for will not be read back; "" where it will."""
    identity = _json(path).get("identity", {})
    studies = [one["study"] for one in asked.values()][-1:]
    other = differences(identity.get("study"), studies[0], "study") if studies else []
    return ", ".join(filter(None, [_stale({"codes": codes(identity)}, present), *other]))


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


def status(which: str) -> None:
    folder = settings.home() / "runs" / which
    rows = survey(folder)
    if not rows:
        print(f"No results in {folder} yet: make paper PROFILE={which}")
        return
    print(table(rows))
    for row in [row for row in rows if row["state"] == "failed"][:10]:
        print(f"failed: {row['kind']}/{row['key']}: {row['why']}")
    reasons = [row["why"] for row in rows if row["state"] in ("stale", "missing") and row["why"]]
    for reason in sorted(set(reasons), key=reasons.count, reverse=True)[:5]:
        print(f"stale: {reasons.count(reason)} results, other {reason}")


def clean_stale(which: str) -> int:
    """Remove the files of stale and damaged results, and return how many these were. Waits for a run to end."""
    from filelock import FileLock

    folder = settings.home() / "runs" / which
    if not (folder / "results").is_dir():
        return 0
    with FileLock(folder / "results" / ".lock"):
        gone = [row for row in survey(folder) if row["state"] in ("stale", "damaged")]
        for row in gone:
            for path in (folder / "results" / row["kind"]).glob(f"{row['key']}.*"):
                path.unlink(missing_ok=True)
    return len(gone)


# -- Computed again ---------------------------------------------------------------------------------------------------


def verify(which: str, sample: int = 12, seed: int = 0) -> list[dict]:
    """Compute a sample of the finished results again and compare them with what is on file. One row each: kind, key,
    verdict ("equal", "within tolerance", "differs", "not asked for") and what was found.

    The notebooks that have asked for them run once more, and compute them when they ask: a result has all its arguments
    only there. The sample takes all kinds in turn.
    """
    folder = settings.home() / "runs" / which
    done = [row for row in survey(folder) if row["state"] == "done"]
    drawn, listed = draw(done, sample, seed), folder / "verify.json"
    notebooks = [path.stem for path in sorted((folder / "asked").glob("*.json"))
                 if {(kind, key) for kind, key, *_ in _json(path).get("results", [])} & set(drawn)]
    if not drawn:
        return []
    listed.write_text(json.dumps([f"{kind}/{key}" for kind, key in drawn]))
    for kind, key in drawn:
        (folder / "verified" / f"{kind}-{key}.json").unlink(missing_ok=True)
    subprocess.run([sys.executable, "-m", "rumlib.lab.run", which, "--only", *notebooks], check=True,
                   env={**os.environ, "RUM_VERIFY": str(listed.resolve()), "RUM_FIGURES": str(folder / "verified")})
    told = [_json(folder / "verified" / f"{kind}-{key}.json") if (folder / "verified" / f"{kind}-{key}.json").exists()
            else {"verdict": "not asked for", "found": ""} for kind, key in drawn]
    return [{"kind": kind, "key": key, **row} for (kind, key), row in zip(drawn, told, strict=True)]


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
    worst = max(distances, key=distances.get)
    if distances[worst] == 0:
        return {"verdict": "equal", "found": ""}
    verdict = "within tolerance" if distances[worst] <= TOLERANCE and not exact else "differs"
    return {"verdict": verdict, "found": f"{worst} by {distances[worst]:.2g}"}


def distance(a: object, b: object) -> float:
    """0 if equal; of numbers the absolute difference, of bool tensors the share that differs, of other tensors the norm
    of the difference over that of the first. Counts and whatever else is not a float must be equal: infinite if not."""
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b)
    if not hasattr(a, "is_floating_point"):
        return 0.0 if json.dumps(a) == json.dumps(b) else float("inf")   # a list comes back for a tuple
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    if (a == b).all():
        return 0.0
    if not a.is_floating_point():
        return (a != b).float().mean().item() if str(a.dtype) == "torch.bool" else float("inf")
    a, b = a.cpu().double(), b.cpu().double()
    return ((a - b).norm() / a.norm().clamp(min=1e-12)).nan_to_num(nan=float("inf")).item()


# -- Figures ----------------------------------------------------------------------------------------------------------


def explain(origin: Mapping) -> list[tuple[str, object, object]]:
    """How the present differs from that of a figure, given its provenance: rows (what, then, now)."""
    from rumlib.lab.study import Study

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
    from rumlib.lab.codehash import digest_of

    then, manifest = origin.get("results", {}), folder / "asked" / f"{origin.get('notebook')}.json"
    count = then.get("computed", 0) + then.get("read back", 0)
    asked = [[kind, key] for kind, key, *_ in _json(manifest).get("results", [])][:count] if manifest.exists() else None
    if asked is None:
        yield "results", f"{count} of {origin.get('notebook', 'a notebook not recorded')}", "no run of it here"
    elif digest_of(asked) != then.get("digest"):
        yield "results", f"{count}: {then.get('digest')}", f"others in its last run: {digest_of(asked)}"
    else:
        states = [row["state"] for row in survey(folder) if [row["kind"], row["key"]] in asked]
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
        rows = explain(json.loads(Path(which).read_text()))
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
