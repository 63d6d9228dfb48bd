"""Whether a run of the notebooks would give what is there already: then `make paper` runs none of them.

    note(run, sources)                                       # after the last notebook
    unchanged(run, sources)                                  # before the first, another time
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rumlib.lab.store import put

if TYPE_CHECKING:
    from rumlib.lab.run import Run

NOTE = "finished.json"                                       # remove it, and all notebooks run again


def state(run: Run, sources: Iterable[Path]) -> dict[str, object]:
    """What the run depends on (the package, its pins, the notebooks, published results, tables of other profiles), the
    names of its results, and the files that it has made."""
    package = Path(__file__).parents[1]
    told = {name: value for name, value in run.told if name != "RUM_UNTIL"}
    made = (run.figures / run.profile, run.folder)
    return {
        "package": _digest([*package.rglob("*.py"), *package.rglob("*.json"), package.parent / "requirements.lock"]),
        "notebooks": _digest(sources),
        "told": told, "published": _digest(Path(told["RUM_FROM"]).iterdir() if "RUM_FROM" in told else ()),
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith("RUM_")},
        "tables": _digest(run.figures.glob("*/*.csv")),
        "made": [_digest(path for path in folder.glob("*") if path.name != NOTE) for folder in made],
        "results": hashlib.sha256("".join(sorted(
            str(path) for path in run.home.glob(f"runs/{run.profile}*/results/*/*"))).encode()).hexdigest()}


def unchanged(run: Run, sources: Iterable[Path]) -> bool:
    """Whether the run would give what is there."""
    try:
        return json.loads((run.folder / NOTE).read_text()) == state(run, sources)
    except (OSError, ValueError):
        return False


def note(run: Run, sources: Iterable[Path]) -> None:
    """Put on file what `unchanged` compares."""
    put(run.folder / NOTE, json.dumps(state(run, sources), indent=1).encode())


def _digest(paths: Iterable[Path]) -> str:
    whole = hashlib.sha256()
    for path in sorted(path for path in paths if path.is_file()):
        whole.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()
