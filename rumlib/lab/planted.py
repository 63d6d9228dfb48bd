"""The positive control of entanglement: forget sets whose entanglement is planted, at equal memorization.

    facts(study)                                             # entanglement score and memorization of both sets
    rows, record = run(study)                                # the paper's algorithms on both, tuned as everywhere

If ToW can see entanglement at all, it must be lower on the overlapping set than on the isolated one. Every seed draws
other data, so that the intervals are over draws of the data. The data and the model: `rumlib.lab.computations.plant`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pandas as pd

from rumlib.lab import computations as made
from rumlib.lab import protocol
from rumlib.lab.computations import ForgetSet
from rumlib.lab.study import Study
from rumlib.lab.tuning import choose, has_field, vary

BATCH = 32


def facts(study: Study) -> pd.DataFrame:
    """Entanglement score and mean memorization of each planted set, in the draw of the first reporting seed."""
    return pd.DataFrame(made.planted_facts(study, study.profile.seeds[0])["rows"])


def run(study: Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tune the paper's algorithms on the tuning seeds, for each planted set, and report them on the others. Returns the
    rows, labelled as those of `protocol.on_levels`, and the record of the choice."""
    p, budget = study.profile, study.profile.budgets[-1]
    places = {place: ForgetSet(place, mask.nonzero()[:, 0]) for place, mask in made.plant(0)[2].items()}
    spaces = {(place, name, budget): (forget, _small(way), space)
              for name, (way, space) in protocol.of_the_paper(p, budget).items() for place, forget in places.items()}

    def evaluate(tried: list[tuple]) -> pd.DataFrame:
        rows = _rows(study, [(forget, algorithm) for forget, algorithm, _ in tried], p.tuning_seeds)
        return rows.groupby("cell").agg(tow=("tow", lambda tow: tow.astype(float).mean(skipna=False)),
                                        diverged=("diverged", "sum"))

    chosen, record = choose(spaces, evaluate)
    looks = record["name"].value_counts(sort=False).to_dict()
    labels = pd.DataFrame([{"cell": k, **dict(zip(protocol.COLUMNS, name, strict=True)), "looks": looks[name]}
                           for k, name in enumerate(chosen)])
    rows = _rows(study, [(spaces[name][0], algorithm) for name, algorithm in chosen.items()], p.seeds)
    return labels.merge(rows, on="cell").drop(columns="cell"), record


def _rows(study: Study, asked: list[tuple[ForgetSet, Callable]], seeds: Iterable[int]) -> pd.DataFrame:
    tasks = [(seed, tuple((forget.name, algorithm) for forget, algorithm in asked)) for seed in seeds]
    found = study.compute_many(made.planted, tasks, "planted sets")
    return pd.DataFrame([{"cell": k, "seed": seed, **row} for (seed, _), one in zip(tasks, found, strict=True)
                         for k, row in enumerate(one["rows"])])


def _small(algorithm: Callable) -> Callable:
    """The algorithm for the few planted points."""
    return vary(algorithm, batch_size=BATCH) if has_field(algorithm, "batch_size") else algorithm
