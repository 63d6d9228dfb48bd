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

import errno
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from rumlib.device import pick
from rumlib.lab import engine
from rumlib.lab.check import survey
from rumlib.lab.profiles import profile
from rumlib.lab.results import Packed, studies
from rumlib.lab.study import find_home

SIDE_BY_SIDE = (os.cpu_count() or 1) + 1                     # notebooks at a time; those of a profile take turns
ON_CUDA = 4                                                  # each has a context there, which takes half a gigabyte
FULL = (errno.ENOSPC, errno.EDQUOT)
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
    stages, ends = plan_stages(runs, home), {}
    on_cuda = any(pick(profile(run.profile).device).type == "cuda" for run in runs)
    at_once = min(SIDE_BY_SIDE, ON_CUDA) if on_cuda else SIDE_BY_SIDE
    with ExitStack() as stack:
        for run in runs:
            stack.enter_context(alone(run.folder))
        stack.enter_context(telling_damage(runs, home))
        engine.share()
        for stage in stages:
            with ThreadPoolExecutor(at_once) as pool:
                started = {f"{run.folder.name} {source.stem}": pool.submit(run.execute, source, place)
                           for run in runs for place, source in enumerate(stage)
                           if profile(run.profile).includes(source.stem)}
                for name, done in started.items():
                    try:
                        done.result()
                    except (PapermillExecutionError, OSError) as problem:
                        ends[name] = why(problem)
            if ends:
                say_why(ends, runs, home)
    for run in runs:
        print(f"Executed notebooks: {run.folder}/   figures and tables: {run.figures / run.profile}/")


def plan_stages(runs: list[Run], home: Path) -> tuple[list[Path], list[Path]]:
    """The notebooks, and after them the last one, which gathers what the others have written. Raises FileNotFoundError
    where there are none."""
    sources = sorted((home / "notebooks").glob("[0-9]*.ipynb"))
    if not sources:
        raise FileNotFoundError(f"there are no numbered notebooks in {home / 'notebooks'}: run this in the folder of the "
                                f"project, or name it in RUM_HOME")
    if runs[0].told:
        live = [source for source in sources if is_live(source)]
        sources = [source for source in sources if source not in live]
        print(f"Left out, as they train models themselves: {', '.join(source.stem for source in live) or 'none'}")
    return sources[:-1], sources[-1:]


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder of a run: two that execute the same notebooks would move each other's files away. Raises
    ValueError, naming the other process, where it is held. The system gives it back when a process ends, even killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / ".running"
    try:
        with FileLock(folder / ".running.lock", blocking=False):
            note.write_text(f"process {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
            yield
    except Timeout:
        who = note.read_text() if note.exists() else "another process"
        raise ValueError(f"{folder} is in use by {who}: wait until it has ended, or stop it and start this again (what it "
                         f"has finished is kept)") from None


@contextmanager
def telling_damage(runs: list[Run], home: Path) -> Iterator[None]:
    """At the end, also after an error, say what else only the notebooks say: results that were damaged, or failed."""
    folders = [home / "runs" / p.name / "cells" for which in dict.fromkeys(run.profile for run in runs)
               for p in (profile(which), profile(which).for_classes())]

    def found(ending: str) -> dict[Path, int]:               # renaming changes the time of the entry, not of the content
        return {path: path.stat().st_ctime_ns for folder in folders for path in folder.glob(f"*/*.{ending}")}

    damaged = found("damaged")
    try:
        yield
    finally:
        new = {path.with_name(path.name.partition(".")[0]) for path, when in found("damaged").items()
               if damaged.get(path) != when}
        if new:
            print(f"{len(new)} damaged results were set aside and are computed again: *.damaged in "
                  f"{', '.join(sorted({str(path.parent) for path in new}))}; if this goes on, check the disk")
        if failed := found("failed"):
            print(f"{len(failed)} results failed, and the next run tries them again: make status says why")


def is_live(source: Path) -> bool:
    """Whether the notebook says that it trains models outside of cells."""
    import nbformat

    return any("live" in cell.metadata.get("tags", ()) for cell in nbformat.read(source, as_version=4).cells)


def why(problem: Exception) -> tuple[str, str]:
    """The name of what ended a notebook, and the line that says what to do. Raises the error if one line is not enough.
    """
    name, told = getattr(problem, "ename", "OSError"), getattr(problem, "evalue", str(problem))
    if name in ENDS:
        return name, told
    if name == "OSError" and any(f"[Errno {number}]" in told for number in FULL):
        return name, f"the disk is full: {told}. Make room and run again; what is finished is kept"
    raise problem


def say_why(ends: Mapping[str, tuple[str, str]], runs: list[Run], home: Path) -> None:
    """Raise SystemExit: with LEFT where it was the time alone."""
    for name, (_, line) in ends.items():
        print(f"{name}: {line}", file=sys.stderr)
    if {kind for kind, _ in ends.values()} != {"TimeIsUp"}:
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
