"""Every environment variable of the lab, in one place. (The core reads two: RUM_DATA, where data sets are, and
RUM_DEVICE, what computes.)

    RUM_ENGINE     loky | serial | dask: where the work runs (`rumlib.lab.engine`)
    RUM_HOME       the folder of the project, with `runs` and `figures` in it
    RUM_FIGURES    where figures go, if not to <home>/figures
    RUM_FROM       a folder of published results: everything is read from there, and nothing is computed
    RUM_UNTIL      a time, in seconds since 1970, after which no computation is started
    RUM_NOTEBOOK   the name of the notebook that runs, for the list of what it has asked for
    RUM_VERIFY     a file that lists results (JSON, "kind/key"); they are computed again when they are asked for
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

ENGINES = ("loky", "serial", "dask")


def home() -> Path:
    """RUM_HOME, or the nearest folder above that holds `notebooks`, or the current one."""
    if "RUM_HOME" in os.environ:
        return Path(os.environ["RUM_HOME"])
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "notebooks").is_dir()), here)


def figures(home: Path) -> Path:
    return Path(os.environ.get("RUM_FIGURES") or home / "figures")


def engine() -> str:
    """The engine that RUM_ENGINE names. Raises ValueError for an unknown one."""
    name = os.environ.get("RUM_ENGINE", "loky")
    if name not in ENGINES:
        raise ValueError(f"unknown engine RUM_ENGINE={name!r}; choose one of {', '.join(ENGINES)}")
    return name


def published() -> Path | None:
    return Path(os.environ["RUM_FROM"]) if os.environ.get("RUM_FROM") else None


def until() -> float:
    try:
        return float(os.environ.get("RUM_UNTIL", "inf"))
    except ValueError:
        raise ValueError(f"RUM_UNTIL is a time in seconds since 1970; got {os.environ['RUM_UNTIL']!r}") from None


def notebook() -> str:
    """The name of the notebook, or script, that runs: RUM_NOTEBOOK, what Jupyter says, or that of the program."""
    return Path(os.environ.get("RUM_NOTEBOOK") or os.environ.get("JPY_SESSION_NAME") or sys.argv[0] or "python").stem


def verified() -> frozenset[str]:
    """What RUM_VERIFY lists. Raises ValueError where it names no such file."""
    name = os.environ.get("RUM_VERIFY")
    try:
        return frozenset(json.loads(Path(name).read_text())) if name else frozenset()
    except (OSError, ValueError, TypeError) as problem:
        raise ValueError(f"RUM_VERIFY names a JSON file with a list of results; {name!r} is none: {problem}") from None


def plain_name(name: str, what: str) -> str:
    """The name, if a file of it stays in its folder. Raises ValueError for a path, an empty or a hidden name."""
    if not isinstance(name, str) or not name.strip() or name.startswith(".") or set(name) & set("/\\\0"):
        raise ValueError(f"the name of {what} becomes a file and cannot be {name!r}: no / or \\, no dot in front, not "
                         f"empty")
    return name
