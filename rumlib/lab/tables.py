"""Tables of a study: what many results say, one row each.

    chosen, record = study.tune({name: (forget_set, algorithm, rates)})   # settings, on the tuning seeds only
    rows = study.unlearn([Cell(forget_set, algorithm, seed, {"algorithm": "Fine-tune"}), ...])
    rows = study.watch(cells)                                # a RUM step by step
    rows = study.depth(cells, SPDGAN())                      # unlearning degrees
    rows = study.stream(forget_sets, ways, seeds)            # one request for deletion after the other
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import pandas as pd

from rumlib.lab import computations as made
from rumlib.lab import tuning
from rumlib.lab.computations import ForgetSet, union
from rumlib.lab.memo import Failure, Memoized, identify, plain
from rumlib.rum import RUM
from rumlib.spdgan import SPDGAN


@dataclass(frozen=True, eq=False)
class Cell:
    """One unlearning run: which set, by what, with which seed; `labels` are columns of its row."""

    forget: ForgetSet
    algorithm: Callable
    seed: int
    labels: Mapping[str, object] = field(default_factory=dict)
    mia: bool = True                                         # also attack: not needed where settings are tuned

    def __post_init__(self):
        object.__setattr__(self, "seed", plain(self.seed))
        if type(self.seed) is not int:
            raise TypeError(f"the seed of a cell is an integer; got {self.seed!r}")
        if not callable(self.algorithm) or isinstance(self.algorithm, type):
            raise TypeError(f"{self.algorithm!r} is no algorithm; give one such as Finetune(), or a function "
                            f"(model, forget, retain, *, seed) -> model")


def tune(study: Memoized, spaces: Mapping[object, tuple], *, trials: int | None = None,
         on_file: bool = False) -> tuple[dict, pd.DataFrame]:
    """Choose learning rates, or values of other fields, by ToW against the retrained oracle, on the tuning seeds.

    `spaces` maps a name to (forget set, algorithm, space), `trials` bounds the settings tried for each; with `on_file`,
    what the package has on file for these very sets, spaces and seeds is read instead. Returns the chosen algorithms,
    and the record of all that was tried (see `rumlib.lab.tuning.choose`), whose ``attrs["source"]`` says which.
    """
    if on_file and (found := tuning.on_file(study.profile, spaces)):
        return found
    return tuning.choose(spaces, lambda tried: _tried(study, tried), trials)


def _tried(study: Memoized, tried: list[tuple]) -> pd.DataFrame:
    """Mean ToW over the tuning seeds and number of diverged runs, one row for each setting that is tried."""
    seeds = study.profile.tuning_seeds
    begun = {k: one for k, one in enumerate(tried) if one[2] is not None}
    rows = pd.concat([
        study.unlearn(Cell(forget, algorithm, seed, {"trial": k}, mia=False)
                      for k, (forget, algorithm, steps) in enumerate(tried) if steps is None for seed in seeds),
        first_steps(study, begun, seeds)])
    rows = rows.reindex(columns=["trial", "tow", "diverged"])            # no tow at all if every run diverged
    return rows.groupby("trial").agg(tow=("tow", lambda tow: tow.astype(float).mean(skipna=False)),
                                     diverged=("diverged", "sum"))


def unlearn(study: Memoized, cells: Iterable[Cell]) -> pd.DataFrame:
    """Run all cells, in any order and on all cores; one row each, in their order."""
    cells = list(cells)
    for cell in cells:
        identify(cell.algorithm)                             # refuses what has no identity before anything is trained
    seeds = list(dict.fromkeys(c.seed for c in cells))
    pairs = list(dict.fromkeys((c.forget, c.seed) for c in cells))
    originals = study.try_compute(made.original, [(seed,) for seed in seeds], "original models")
    oracles = study.try_compute(made.oracle, pairs, "retrained models")
    there = {*_done(seeds, originals)}, {*_done(pairs, oracles)}
    runs = [c for c in cells if c.seed in there[0] and (c.forget, c.seed) in there[1]]
    rows = study.try_compute(made.run, [(c.forget, c.algorithm, c.seed, c.mia) for c in runs], "unlearning")
    study.refuse_failures([*originals, *oracles, *rows])
    return pd.DataFrame([{"set": cell.forget.name, "seed": cell.seed, **cell.labels, **row["values"]}
                         for cell, row in zip(cells, rows, strict=True)])


def first_steps(study: Memoized, tried: Mapping[int, tuple[ForgetSet, RUM, int]], seeds: Iterable[int]) -> pd.DataFrame:
    """RUMs after their first steps, each beside the model retrained without what is gone by then: one row for each
    trial -> (forget set, RUM, steps done) and seed."""
    seeds, tasks = list(seeds), []
    for trial, (forget, rum, done) in tried.items():
        gone, _ = made.split(study, forget)
        parts = [ForgetSet("part", part.index.sort().values) for part in rum.refine(gone)]
        order = rum.order or range(len(parts))
        steps = tuple(rum.steps[k] for k in order[:done])
        tasks += [(trial, tuple(parts[k] for k in order), steps, rum.waiting, seed) for seed in seeds]
    study.originals(seeds)
    study.oracles({union(parts[:len(steps)]): None for _, parts, steps, *_ in tasks}, seeds)
    before = {(parts, steps[:-1], *rest): None for _, parts, steps, *rest in tasks if steps[1:]}
    study.compute_many(made.stage, before, "steps before")
    found = study.compute_many(made.step, [task[1:] for task in tasks], "steps")
    return pd.DataFrame([{"trial": task[0], "seed": task[-1], **row} for task, row in zip(tasks, found, strict=True)])


def watch(study: Memoized, cells: Iterable[Cell]) -> pd.DataFrame:
    """RUMs step by step: one row for each cell, step (0: before the first) and set watched, with the accuracy of
    the model, and that of the oracle."""
    cells = _prepared(study, cells)
    found = study.compute_many(made.dynamics, [(c.forget, c.algorithm, c.seed) for c in cells], "steps")
    return pd.DataFrame([{**cell.labels, "seed": cell.seed, "step": row["step"], "part": row["part"], "of": name,
                          "accuracy": row[name], "oracle": one["oracle"][name]}
                         for cell, one in zip(cells, found, strict=True) for row in one["rows"]
                         for name in one["oracle"]])


def depth(study: Memoized, cells: Iterable[Cell], config: SPDGAN, numbers: tuple[int, ...] = (0, 1, 2)) -> pd.DataFrame:
    """Unlearning degrees: one row for each cell and probe (see `rumlib.spdgan.probes`)."""
    other = study.profile.tuning_seeds[0]
    cells = _prepared(study, cells, other)
    pairs = {(c.forget, c.seed): None for c in cells}
    study.compute_many(made.generator, [(forget, config, seed, number, other)
                                        for forget, seed in pairs for number in numbers], "generators")
    found = study.compute_many(made.degrees, [(c.forget, c.algorithm, c.seed, config, numbers, other)
                                             for c in cells], "degrees")
    return pd.DataFrame([{"set": cell.forget.name, "seed": cell.seed, **cell.labels, **row}
                         for cell, one in zip(cells, found, strict=True) for row in one["rows"]])


def _prepared(study: Memoized, cells: Iterable[Cell], *more: int) -> list[Cell]:
    """The cells, once their models are trained, and the oracles of `more` seeds."""
    cells = list(cells)
    seeds = {cell.seed: None for cell in cells}
    study.originals(seeds)
    study.oracles({cell.forget: None for cell in cells}, [*seeds, *more])
    return cells


def stream(study: Memoized, forgets: Iterable[ForgetSet], ways: Mapping[str, tuple],
           seeds: Iterable[int]) -> pd.DataFrame:
    """Requests for deletion one after the other; `ways` maps a label to (algorithm, when to retrain, see
    `computations.requests`). One row for each way, seed and request."""
    forgets, seeds = tuple(forgets), list(seeds)
    tasks = [(way, seed) for way in ways for seed in seeds]
    study.originals(seeds)
    study.oracles([union(forgets[:k + 1]) for k in range(len(forgets))], seeds)
    found = study.compute_many(made.requests, [(forgets, ways[way][0], seed, ways[way][1]) for way, seed in tasks],
                              "requests")
    return pd.DataFrame([{"way": way, "seed": seed, **row} for (way, seed), one in zip(tasks, found, strict=True)
                         for row in one["rows"]])


def _done(tasks: list, results: list) -> list:
    """Those of the tasks whose results did not fail."""
    return [task for task, result in zip(tasks, results, strict=True) if not isinstance(result, Failure)]
