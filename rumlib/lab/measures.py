"""The paper's measures of unlearned models, from rows of `Study.unlearn`: what its tables hold.

    rows = measured(rows, study, sets)                       # columns for the factors of ToW, the MIA gap, disagreement
    rows = with_retrained(rows, ["level"])                   # the oracle as one more algorithm
    table = tabled(rows, ["level", "algorithm"])             # mean, interval and n of every measure, a line each
    compact(table)                                           # "0.951 ± 0.020", one column for each measure

Source: arXiv 2406.01257, Tables 5 to 14.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from rumlib.lab.computations import ForgetSet
from rumlib.lab.study import Study
from rumlib.stats import summarise

SETS = ("forget", "retain", "test")
MEASURES = {
    "tow": "ToW", "factor_forget": "1 - dF", "factor_retain": "1 - dR", "factor_test": "1 - dT", "tow_mia": "ToW-MIA",
    "forget": "forget", "retain": "retain", "test": "test", "mia": "MIA", "mia_gap": "MIA gap", "differs": "differs"}


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
