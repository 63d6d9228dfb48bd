"""The numbered notebooks, executed headless by papermill: what `make paper` and `make grid` run.

    python -m rumlib.lab.run laptop                            # into runs/laptop/, figures into figures/laptop/
    python -m rumlib.lab.run "smoke laptop" "2 4"              # each with 2 and with 4 seeds: runs/smoke-x2/, ...
    python -m rumlib.lab.run cifar10 "" 8                      # a piece: no cell is started after 8 minutes
    python -m rumlib.lab.run cifar10 "" "" figures/cifar10/results         # from published results: nothing is computed

The sources are never written to. Finished results are kept, so that running again resumes; the notebooks of a grid
share those of their profile. As long as something is left, a piece ends with exit status 75 (EX_TEMPFAIL; make has its
own, 2). A notebook that has not run to its end is <name>.unfinished.ipynb. Notebooks tagged `live` train models outside
of cells, for the reader to watch; a piece and published results leave them out.
"""

from __future__ import annotations

import errno
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rumlib.device import pick
from rumlib.lab import engine, files, settings
from rumlib.lab.check import survey
from rumlib.lab.profiles import profile
from rumlib.lab.results import Published, studies
from rumlib.lab.unchanged import NOTE, note, unchanged

SIDE_BY_SIDE = (os.cpu_count() or 1) + 1                     # notebooks at a time; those of a profile take turns
ON_CUDA = 4                                                  # each has a context there, which takes half a gigabyte
GATHERS = "_claims"                                          # of the notebook that gathers what the others have written
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
        return settings.figures(self.home) if self.seeds is None else self.folder / "figures"

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


def execute(runs: list[Run], home: Path, only: Sequence[str] = ()) -> None:
    """Execute the numbered notebooks of these runs, or `only` some of them, by name. Raises the first error, once all
    others have ended; SystemExit, with what is to be done, where the notebooks themselves are not to blame."""
    sources = numbered(home, with_live=not runs[0].told)
    for run in [] if only else [run for run in runs if unchanged(run, sources)]:
        print(f"{run.folder.name}: nothing has changed since the last run; to run anyway, remove {run.folder / NOTE}")
        runs = [one for one in runs if one != run]
    if not runs:
        return
    last = [source for source in sources if source.stem.endswith(GATHERS)]
    stages = ([source for source in sources if source not in last], last)
    from papermill.exceptions import PapermillExecutionError  # takes seconds

    warnings.filterwarnings("ignore", category=DeprecationWarning)
    on_cuda = any(pick(profile(run.profile).device).type == "cuda" for run in runs)
    with ExitStack() as stack:
        for run in runs:
            stack.enter_context(files.hold(run.folder))
        stack.enter_context(telling_damage(runs, home))
        engine.share()
        for stage in stages:
            ends = {}
            with ThreadPoolExecutor(ON_CUDA if on_cuda else SIDE_BY_SIDE) as pool:
                started = {f"{run.folder.name} {source.stem}": pool.submit(run.execute, source, place)
                           for run in runs for place, source in enumerate(stage)
                           if profile(run.profile).includes(source.stem) and source.stem in (only or [source.stem])}
                for name, done in started.items():
                    try:
                        done.result()
                    except (PapermillExecutionError, OSError) as problem:
                        ends[name] = in_one_line(problem)
            if ends:
                say_why(ends, runs, home)
    for run in runs:
        if not only:
            note(run, sources)
        print(f"Executed notebooks: {run.folder}/   figures and tables: {run.figures / run.profile}/")


def numbered(home: Path, *, with_live: bool) -> list[Path]:
    """The notebooks in their order. Raises FileNotFoundError where there are none."""
    sources = sorted((home / "notebooks").glob("[0-9]*.ipynb"))
    live = [] if with_live else [source for source in sources if is_live(source)]
    if not with_live:
        print(f"Left out, as they train models themselves: {', '.join(source.stem for source in live) or 'none'}")
    if len(sources) == len(live):
        raise FileNotFoundError(f"no numbered notebooks to run in {home / 'notebooks'}: run this in the folder of the "
                                f"project, or name it in RUM_HOME")
    return [source for source in sources if source not in live]


@contextmanager
def telling_damage(runs: list[Run], home: Path) -> Iterator[None]:
    """At the end, also after an error, say what else the notebooks alone say: which results were damaged, or failed."""
    names = {p.name for run in runs for p in profile(run.profile).parts}

    def found(ending: str) -> set[tuple[Path, int]]:         # what is renamed has another ctime, and the same mtime
        paths = (path for name in names for path in (home / "runs" / name).glob(f"*/*/*.{ending}"))
        return {(path, path.stat().st_ctime_ns) for path in paths}

    before = found("damaged")
    try:
        yield
    finally:
        if new := {path.parent / path.name.partition(".")[0] for path, _ in found("damaged") - before}:
            print(f"{len(new)} damaged results were set aside (*.damaged) to be computed again, e.g. {min(new)}: if "
                  f"this happens often, check the disk")
        if failed := found("failed"):
            print(f"{len(failed)} results failed, e.g. {min(failed)[0]}: the next run tries them again")


def is_live(source: Path) -> bool:
    """Whether the notebook says that it trains models outside of cells."""
    import nbformat

    return any("live" in cell.metadata.get("tags", ()) for cell in nbformat.read(source, as_version=4).cells)


def in_one_line(problem: Exception) -> tuple[str, str]:
    """The name of what ended a notebook, and what to do. Raises the error again if that takes more than one line."""
    name, told = getattr(problem, "ename", "OSError"), getattr(problem, "evalue", str(problem))
    if name == "OSError" and any(f"[Errno {number}]" in told for number in (errno.ENOSPC, errno.EDQUOT)):
        return name, f"the disk is full ({told}): make room and run again; what is finished is kept"
    if name not in ENDS:
        raise problem
    return name, told


def say_why(ends: Mapping[str, tuple[str, str]], runs: list[Run], home: Path) -> None:
    """Raise SystemExit: with LEFT where it was the time alone."""
    for name, (_, line) in ends.items():
        print(f"{name}: {line}", file=sys.stderr)
    if {kind for kind, _ in ends.values()} != {"TimeIsUp"}:
        sys.exit(1)
    for which in dict.fromkeys(run.profile for run in runs):
        for study in studies(which, home):
            rows = survey(study.store.folder.parent)
            left = [row["seconds"] or 0 for row in rows if row["state"] in ("missing", "failed", "damaged")]
            print(f"{study.profile.name}: {sum(row['state'] == 'done' for row in rows)} results done; of those asked "
                  f"for so far {len(left)} are left, by what others took {sum(left) / 60:.0f} minutes of one core "
                  f"(make status PROFILE={study.profile.name})")
    sys.exit(LEFT)


def main(profiles: str = "laptop", seeds: str = "", minutes: str = "", published: str = "", only: str = "") -> None:
    home, told = settings.home(), {}
    if not seeds.replace(" ", "").isdecimal() and seeds:
        raise ValueError(f"SEEDS must be numbers of seeds, as in SEEDS='2 4'; got {seeds!r}")
    if minutes and published:
        raise ValueError("MINUTES bounds what is computed, and with FROM nothing is: give one of them")
    if minutes:
        if not minutes.replace(".", "", 1).isdecimal():
            raise ValueError(f"MINUTES must be a number, as in MINUTES=8; got {minutes!r}")
        told["RUM_UNTIL"] = str(time.time() + 60 * float(minutes))
    if published:
        told["RUM_FROM"] = str(Published(Path(published)).folder.resolve())         # says at once if they are damaged
    numbers = [int(number) for number in seeds.split()] or [None]
    runs = [Run(name, number, home, tuple(told.items())) for name in profiles.split() for number in numbers]
    execute(list(dict.fromkeys(runs)), home, only.split())


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (ValueError, FileNotFoundError) as problem:
        sys.exit(f"{problem}")
