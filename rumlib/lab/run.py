"""The numbered notebooks, executed headless by papermill: what `make paper` and `make grid` run.

    python -m rumlib.lab.run laptop                            # into runs/laptop/, figures into figures/laptop/
    python -m rumlib.lab.run "smoke laptop" "2 4"              # each with 2 and with 4 seeds: runs/smoke-x2/, ...
    python -m rumlib.lab.run cifar10 "" 8                      # a piece: no cell is started after 8 minutes
    python -m rumlib.lab.run cifar10 "" "" figures/cifar10/results         # from published results: nothing is computed

The sources are never written to. Finished cells of a study are memoized, so that running again resumes; the notebooks
of a grid share those of their profile. What they compute goes where RUM_ENGINE says (`rumlib.lab.engine`).

As long as something is left, a piece ends with exit status 75 (EX_TEMPFAIL: try again; make has its own, 2), and the
same command goes on. A notebook that has not run to its end is <name>.unfinished.ipynb; one that was finished before
stays. Those tagged `live` train models outside of cells, for the reader to watch: neither a piece nor published results
have room for that, and leave them out.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rumlib.lab import engine
from rumlib.lab.check import survey
from rumlib.lab.profiles import profile
from rumlib.lab.results import Packed, studies
from rumlib.lab.study import find_home

SIDE_BY_SIDE = (os.cpu_count() or 1) + 1                     # notebooks at a time; those of a profile take turns
LEFT = 75                                                    # exit status: the time was up
ENDS = ("TimeIsUp", "Stopped", "NotPublished")               # errors that say all in one line (`rumlib.lab.memo`)


@dataclass(frozen=True)
class Run:
    """All numbered notebooks at a profile, on its own number of seeds (None) or another."""

    profile: str
    seeds: int | None
    home: Path
    told: tuple[tuple[str, str], ...] = ()                   # environment of its notebooks: RUM_UNTIL, RUM_FROM

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
        told = {"RUM_NOTEBOOK": name, "RUM_FIGURES": str(self.figures), **dict(self.told)}      # the kernel's
        unfinished = self.folder / f"{source.stem}.unfinished.ipynb"
        papermill.execute_notebook(
            source, unfinished, kernel_name="python3", cwd=source.parent,
            parameters={"profile": self.profile, "seeds": self.seeds, "quiet": True},
            extra_arguments=["--log-level=ERROR", f"--IPKernelApp.exec_lines=import os; os.environ.update({told!r})"],
            progress_bar={"desc": name, "unit": " cells", "leave": False, "position": place})
        unfinished.replace(self.folder / source.name)
        print(f"{self.folder.name:<16} {source.stem:<32} {time.perf_counter() - start:6.1f} s", flush=True)


def execute(runs: list[Run], home: Path) -> None:
    """Execute the numbered notebooks of these runs. Raises the first error, once all others have ended; SystemExit,
    with what is to be done, where the notebooks themselves are not to blame."""
    from papermill.exceptions import PapermillExecutionError

    warnings.filterwarnings("ignore", category=DeprecationWarning)
    engine.share()
    sources, ends = sorted((home / "notebooks").glob("[0-9]*.ipynb")), {}
    if runs[0].told:
        live = [source for source in sources if is_live(source)]
        sources = [source for source in sources if source not in live]
        print(f"Left out, as they train models themselves: {', '.join(source.stem for source in live) or 'none'}")
    *sources, last = sources
    for stage in (sources, [last]):                          # the last one gathers what the others have written
        with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
            started = {f"{run.folder.name} {source.stem}": pool.submit(run.execute, source, place)
                       for run in runs for place, source in enumerate(stage)
                       if profile(run.profile).includes(source.stem)}
            for name, done in started.items():
                try:
                    done.result()
                except PapermillExecutionError as problem:
                    if problem.ename not in ENDS:
                        raise
                    ends[name] = problem
        if ends:
            say_why(ends, runs, home)
    for run in runs:
        print(f"Executed notebooks: {run.folder}/   figures and tables: {run.figures / run.profile}/")


def is_live(source: Path) -> bool:
    """Whether the notebook says that it trains models outside of cells."""
    import nbformat

    return any("live" in cell.metadata.get("tags", ()) for cell in nbformat.read(source, as_version=4).cells)


def say_why(ends: Mapping[str, Exception], runs: list[Run], home: Path) -> None:
    """Raise SystemExit: with LEFT where it was the time alone."""
    for name, problem in ends.items():
        print(f"{name}: {problem.evalue}", file=sys.stderr)
    if {problem.ename for problem in ends.values()} != {"TimeIsUp"}:
        sys.exit(1)
    for which in dict.fromkeys(run.profile for run in runs):
        for study in studies(which, home):
            cells = survey(study)
            missing = cells[cells["asked"] & cells["state"].isin(["missing", "failed"])]
            print(f"{study.profile.name}: {(cells['state'] == 'done').sum()} cells done; of those asked for so far "
                  f"{len(missing)} are left, by what others took {missing['seconds'].sum() / 60:.0f} minutes of one "
                  f"core (make status PROFILE={study.profile.name})")
    sys.exit(LEFT)


def main(profiles: str = "laptop", seeds: str = "", minutes: str = "", published: str = "") -> None:
    home, told = find_home(), {}
    if not seeds.replace(" ", "").isdecimal() and seeds:
        raise ValueError(f"SEEDS must be numbers of seeds, as in SEEDS='2 4'; got {seeds!r}")
    if minutes and published:
        raise ValueError("MINUTES bounds what is computed, and with FROM nothing is: give one of them")
    if minutes:
        if not minutes.replace(".", "", 1).isdecimal():
            raise ValueError(f"MINUTES must be a number, as in MINUTES=8; got {minutes!r}")
        told["RUM_UNTIL"] = str(time.time() + 60 * float(minutes))
    if published:
        told["RUM_FROM"] = str(Packed(Path(published)).folder.resolve())         # says at once if they are damaged
    numbers = [int(number) for number in seeds.split()] or [None]
    execute([Run(name, number, home, tuple(told.items())) for name in profiles.split() for number in numbers], home)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (ValueError, FileNotFoundError) as problem:
        sys.exit(f"{problem}")
