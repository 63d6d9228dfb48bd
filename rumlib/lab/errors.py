"""Wrong labels: how well a score finds them, and whether a model has memorized or learned them.

    table = ranked(wrong, {"loss": loss, ...})               # AUROC and precision at k of each score, with intervals
    agreed(study)                                            # how often models give an example its label
    standing(study)                                          # each wrong label: memorized, learned or resisted

A wrong label is one that differs from that of the data set: ``study.train.info["flipped"]``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from torch import Tensor

from rumlib.lab.study import Study


def auroc(wrong: np.ndarray, values: np.ndarray) -> float:
    """The probability that a wrong label (bool (n,), True) has a higher value than a right one; ties count half.

    >>> auroc(np.array([True, False, False]), np.array([0.5, 0.1, 0.5]))
    0.75
    """
    ranks, count = rankdata(values), wrong.sum()
    return float((ranks[wrong].mean() - (count + 1) / 2) / (len(wrong) - count))


def precision(wrong: np.ndarray, values: np.ndarray, k: int) -> float:
    """Share of wrong labels among the k highest values; of equal values the first in order count.

    >>> precision(np.array([True, False, True]), np.array([0.9, 0.5, 0.1]), k=2)
    0.5
    """
    return float(wrong[(-values).argsort(kind="stable")[:k]].mean())


def ranked(wrong: Tensor, scores: Mapping[str, Tensor], draws: int = 200) -> pd.DataFrame:
    """AUROC and precision at k = number of wrong labels of each score, a row each, with 95 % bootstrap intervals.

    wrong   bool (n,);  scores: name -> (n,), higher where a label should be wrong
    draws   bootstrap samples of the examples, the same for each score

    Columns auroc, precision (and auroc low, ...), and "more low" and "more high": the interval of the AUROC minus that
    of the first score. Intervals are about the choice of examples, not about other trainings.
    """
    wrong, random = wrong.numpy(), np.random.default_rng(0)
    samples = [random.integers(0, len(wrong), len(wrong)) for _ in range(draws)]
    rows, first = [], None
    for name, values in ((name, values.numpy()) for name, values in scores.items()):
        drawn = np.array([[auroc(wrong[at], values[at]), precision(wrong[at], values[at], int(wrong[at].sum()))]
                          for at in samples])
        first = drawn[:, 0] if first is None else first
        row = {"score": name, "auroc": auroc(wrong, values), "precision": precision(wrong, values, int(wrong.sum()))}
        for what, sample in (("auroc", drawn[:, 0]), ("precision", drawn[:, 1]), ("more", drawn[:, 0] - first)):
            row[f"{what} low"], row[f"{what} high"] = np.quantile(sample, (0.025, 0.975)).tolist()
        rows.append(row)
    return pd.DataFrame(rows).set_index("score")


def agreed(study: Study) -> dict[str, Tensor]:
    """How often the subset models give each training example its label, (n,): "inside", those that were trained on it,
    and "outside", those that were not."""
    bank = study.score.bank
    return {side: (bank.correct & there).sum(0) / there.sum(0)
            for side, there in (("inside", bank.included), ("outside", ~bank.included))}


def standing(study: Study) -> pd.DataFrame:
    """One row for each wrong label: inside, outside (see `agreed`), its true class, the class given, its index, and how
    it stands in the models.

    "learned": at least half of the models that were not trained on it give the wrong label. "memorized": models trained
    on it give the wrong label more often than the others, by more than 0.5. "resisted": neither. Column `among first`:
    whether its memorization is among the k highest, k the number of wrong labels.
    """
    train, wrong = study.train, study.train.info["flipped"]
    names = train.names or [str(c) for c in range(int(train.y.max()) + 1)]
    frame = pd.DataFrame({**{side: values[wrong].numpy() for side, values in agreed(study).items()},
                          "clean": [names[c] for c in train.info["clean"][wrong]],
                          "given": [names[c] for c in train.y[wrong]], "index": train.index[wrong]})
    frame["how"] = np.select([frame["outside"] >= 0.5, frame["inside"] - frame["outside"] > 0.5],
                             ["learned", "memorized"], "resisted")
    ranks = study.score.values.argsort(descending=True).argsort()[wrong].numpy()
    return frame.assign(**{"among first": ranks < int(wrong.sum())})
