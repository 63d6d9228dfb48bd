"""The numbered notebooks, executed headless by papermill: what `make paper` and `make grid` run.

    python -m rumlib.paper laptop                            # into runs/laptop/, figures into figures/laptop/
    python -m rumlib.paper "smoke laptop" "2 4"              # each with 2 and with 4 seeds: runs/smoke-x2/, ...

The sources are never written to. Finished cells of a study are remembered, so that running again resumes; the notebooks
of a grid share those of their profile. What they compute goes where RUM_ENGINE says (`rumlib.engine`).
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rumlib import engine
from rumlib.profiles import profile
from rumlib.study import find_home

SIDE_BY_SIDE = (os.cpu_count() or 1) + 1                     # notebooks at a time; those of a profile take turns


@dataclass(frozen=True)
class Run:
    """All numbered notebooks at a profile, on its own number of seeds (None) or another."""

    profile: str
    seeds: int | None
    home: Path

    def __post_init__(self):
        profile(self.profile).check()                        # an unknown profile or missing data: say so at once
        if self.seeds is not None and self.seeds < 1:
            raise ValueError(f"a notebook needs at least 1 seed; got {self.seeds}")

    @property
    def folder(self) -> Path:
        return self.home / "runs" / (self.profile if self.seeds is None else f"{self.profile}-x{self.seeds}")

    @property
    def figures(self) -> Path:
        """Those of another number of seeds lie beside their notebooks."""
        return Path(os.environ.get("RUM_FIGURES") or self.home / "figures") if self.seeds is None \
            else self.folder / "figures"

    def execute(self, source: Path, place: int = 0) -> None:
        import papermill

        self.folder.mkdir(parents=True, exist_ok=True)
        start, name = time.perf_counter(), source.stem if self.seeds is None else f"{source.stem}-x{self.seeds}"
        told = {"RUM_NOTEBOOK": name, "RUM_FIGURES": str(self.figures)}          # its kernel; whose cells it asks for
        papermill.execute_notebook(
            source, self.folder / source.name, kernel_name="python3", cwd=source.parent,
            parameters={"profile": self.profile, "seeds": self.seeds, "quiet": True},
            extra_arguments=["--log-level=ERROR", f"--IPKernelApp.exec_lines=import os; os.environ.update({told!r})"],
            progress_bar={"desc": name, "unit": " cells", "leave": False, "position": place})
        print(f"{self.folder.name:<16} {source.stem:<32} {time.perf_counter() - start:6.1f} s", flush=True)


def execute(runs: list[Run], home: Path) -> None:
    """Execute every numbered notebook of these runs. Raises the first error, once all others have ended."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    engine.share()
    *sources, last = sorted((home / "notebooks").glob("[0-9]*.ipynb"))
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        for stage in (sources, [last]):                      # the last one gathers what the others have written
            started = [pool.submit(run.execute, source, place) for run in runs for place, source in enumerate(stage)]
            for done in started:
                done.result()
    for run in runs:
        print(f"Executed notebooks: {run.folder}/   figures and tables: {run.figures / run.profile}/")


def main(profiles: str = "laptop", seeds: str = "") -> None:
    home = find_home()
    if not seeds.replace(" ", "").isdecimal() and seeds:
        raise ValueError(f"SEEDS must be numbers of seeds, as in SEEDS='2 4'; got {seeds!r}")
    numbers = [int(number) for number in seeds.split()] or [None]
    execute([Run(name, number, home) for name in profiles.split() for number in numbers], home)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (ValueError, FileNotFoundError) as problem:
        sys.exit(f"{problem}")
