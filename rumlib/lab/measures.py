"""The paper's measures of unlearned models, from rows of `Study.unlearn`: what its tables hold.

    rows = measured(rows, study, sets)                       # columns for the factors of ToW, the MIA gap, disagreement
    rows = with_retrained(rows, ["level"])                   # the oracle as one more algorithm
    table = tabled(rows, ["level", "algorithm"])             # mean, interval and n of every measure, a line each
    compact(table)                                           # "0.951 ± 0.020", one column for each measure
    wide(rows, "algorithm", "variant", "tow")                # one measure: "0.951 ± 0.020" in rows and columns
    holm(p)                                                  # p values corrected for their number

Source: arXiv 2406.01257, Tables 5 to 14.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
from scipy.special import stdtr

from rumlib.lab.computations import ForgetSet
from rumlib.lab.study import Study
from rumlib.stats import summarise

SETS = ("forget", "retain", "test")
MEASURES = {
    "tow": "ToW", "factor_forget": "1 - dF", "factor_retain": "1 - dR", "factor_test": "1 - dT", "tow_mia": "ToW-MIA",
    "forget": "forget", "retain": "retain", "test": "test", "mia": "MIA", "mia_gap": "MIA gap", "differs": "differs"}
WORDS = {                                                    # names of the code, as a reader says them
    "confidence": "confidence", "max_confidence": "largest confidence", "binary_accuracy": "wrong in training",
    "holdout_retraining": "held-out retraining", "loss_curvature": "loss curvature", "entropy": "entropy",
    "centrality": "nearness to the centroid", "chance": "chance (random parts)"}


def measured(rows: pd.DataFrame, study: Study, sets: Iterable[ForgetSet]) -> pd.DataFrame:
    """The rows with the factors of ToW, the gap of the membership attack to the oracle, and `differs`: the share of all
    examples of forget, retain and test set on which the unlearned model and the oracle disagree. `sets` are the forget
    sets of the rows.

    The rows need the accuracies of an unlearned model and of its oracle, and the columns differs_forget, ..., as
    `Study.unlearn` gives them. Raises KeyError for rows without them.
    """
    found = {f"factor_{of}": 1 - (rows[of] - rows[f"oracle_{of}"]).abs() for of in SETS}
    found["mia_gap"] = (rows["mia"] - rows["oracle_mia"]).abs()
    gone, n = rows["set"].map({forget.name: len(forget) for forget in sets}), len(study.train)
    counts = zip((gone, n - gone, len(study.test)), SETS, strict=True)
    found["differs"] = sum(count * rows[f"differs_{of}"] for count, of in counts) / (n + len(study.test))
    return rows.assign(**found)


def with_retrained(rows: pd.DataFrame, by: Sequence[str], label: str = "Retrained") -> pd.DataFrame:
    """The rows and, for every seed and combination of the columns `by`, the oracle as one more algorithm."""
    oracles = rows.drop_duplicates([*by, "seed"]).copy()
    for of in (*SETS, "mia"):
        oracles[of] = oracles[f"oracle_{of}"]
    perfect = {name: 1.0 for name in MEASURES if name.startswith(("tow", "factor"))}
    oracles = oracles.assign(algorithm=label, looks=0, mia_gap=0.0, differs=0.0, **perfect)
    return pd.concat([rows, oracles], ignore_index=True)


def tabled(rows: pd.DataFrame, by: Sequence[str], measures: Mapping[str, str] = MEASURES) -> pd.DataFrame:
    """mean, low, high (Student t, 95 %) and n of every measure, one line for each combination of the columns `by` and
    each measure."""
    return pd.concat({label: summarise(rows, list(by), name) for name, label in measures.items()}, names=["measure"]) \
        .reorder_levels([*by, "measure"])


def compact(table: pd.DataFrame) -> pd.DataFrame:
    """The lines of `tabled` as text, "mean ± half the interval", one column for each measure."""
    text = [f"{mean:.3f}" if low != low else f"{mean:.3f} ± {(high - low) / 2:.3f}"
            for mean, low, high in table[["mean", "low", "high"]].itertuples(index=False)]
    order = list(dict.fromkeys(table.index.get_level_values("measure")))
    lines = list(dict.fromkeys(table.index.droplevel("measure")))
    return pd.Series(text, table.index).unstack("measure").loc[lines, order]


def readable(rows: pd.DataFrame, by: Sequence[str], measures: Mapping[str, str] = MEASURES) -> pd.DataFrame:
    """`tabled` rows as text (see `compact`), one line for each combination of the columns `by`."""
    return compact(tabled(rows, by, measures))


def spent(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Settings looked at, and examples passed forward and backward, for each combination of the columns `by`."""
    return rows.groupby(list(by), sort=False)[["looks", "examples"]].mean().round().astype(int)


def wide(rows: pd.DataFrame, row: str, column: str, of: str) -> pd.DataFrame:
    """One measure as text, "mean ± half the interval": a line for each value of `row`, a column for each of `column`,
    in the order in which they come; empty where there is none."""
    text = readable(rows, [row, column], {of: of})[of].unstack()
    return text.loc[list(dict.fromkeys(rows[row])), list(dict.fromkeys(rows[column]))].fillna("")


def said(found: pd.DataFrame) -> pd.Series:
    """Comparisons (columns mean, low, high and verdict) as text: "+0.022 [+0.003, +0.041] holds"."""
    return pd.Series([f"{mean:+.3f} [{low:+.3f}, {high:+.3f}] {verdict}" for mean, low, high, verdict in
                      found[["mean", "low", "high", "verdict"]].itertuples(index=False)], found.index, dtype=object)


def two_sided(differences: Iterable[float]) -> float:
    """p of the two-sided t test of paired differences against 0; NaN for a single one.

    >>> round(two_sided([0.0, 0.02]), 3)
    0.5
    """
    values = pd.Series(list(differences), dtype=float)
    if len(values) < 2:
        return math.nan
    spread = values.std() / math.sqrt(len(values))
    return float(2 * stdtr(len(values) - 1, -abs(values.mean()) / spread)) if spread else float(values.mean() == 0)


def holm(p: Iterable[float]) -> list[float]:
    """The p values corrected for their number: Holm's step-down method. Of the findings with a corrected p below 0.05,
    the probability that any is wrong is at most 0.05, however they depend on each other. NaN counts as 1.

    Source: Holm, A simple sequentially rejective multiple test procedure, 1979.

    >>> [round(value, 3) for value in holm([0.01, 0.04, 0.03, 0.005])]
    [0.03, 0.06, 0.06, 0.02]
    """
    values = [1.0 if math.isnan(value) else value for value in p]
    corrected, largest = [0.0] * len(values), 0.0
    for rank, k in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[k]))
        corrected[k] = largest
    return corrected
