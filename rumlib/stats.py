"""What rows say together: a mean with its interval and its n, and differences paired over the seeds.

    summarise(rows, by=["level", "algorithm"], of="tow")             # mean, 95 % interval, n
    contrast(rows, better={...}, worse={...}, of="tow")              # paired over the seeds
    equivalence(differences, margin=0.02)                            # equivalent, better, worse or inconclusive
    tow_between(evaluation, reference)                               # ToW and ToW-MIA, two columns of a row
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit

from rumlib.metrics import Evaluation, tow_from_accuracies

SHARES = {"tow", "tow_mia", "forget", "retain", "test", "mia", "mia_gap", "differs", "accuracy", "factor_forget",
          "factor_retain", "factor_test", "test_retain", "test_forget",
          "class_mia"}                                       # columns of rows whose values lie in [0, 1]


def tow_between(found: Evaluation, reference: Evaluation) -> dict[str, float]:
    """ToW and ToW-MIA of two evaluations; ToW-MIA is NaN if one of them was not attacked."""
    rest_u, rest_r = (found.retain, found.test), (reference.retain, reference.test)
    row = {"tow": tow_from_accuracies(unlearned=(found.forget, *rest_u), retrained=(reference.forget, *rest_r))}
    mia = math.isfinite(found.mia) and math.isfinite(reference.mia)
    row["tow_mia"] = tow_from_accuracies(unlearned=(found.mia, *rest_u), retrained=(reference.mia, *rest_r)) \
        if mia else math.nan
    return row


def summarise(rows: pd.DataFrame | list[dict], by: list[str] | str, of: str) -> pd.DataFrame:
    """mean, low, high (Student t, 95 %) and n of column `of`, for each combination of the columns `by`.

    Of a column of `SHARES` no interval leaves [0, 1]: where Student's would, that of the bootstrap takes its place.
    With n = 1 there is no interval: low and high are NaN. Raises ValueError for missing columns and missing values,
    which would drop out silently, and for values that are no finite numbers.

    >>> rows = [dict(algorithm="SalUn", seed=seed, tow=tow) for seed, tow in enumerate((0.90, 0.92, 0.94))]
    >>> summarise(rows, by="algorithm", of="tow").round(3)
               mean   low  high  n
    algorithm                     
    SalUn      0.92  0.87  0.97  3
    """
    names = [by] if isinstance(by, str) else list(by)
    frame = _table(rows, [*names, of])
    if frame[names].isna().any(axis=None):
        raise ValueError(f"{int(frame[names].isna().any(axis=1).sum())} of {len(frame)} rows have no value in "
                         f"{', '.join(names)}: they would be left out of every group")
    _measured(frame[of], of)
    table = frame.groupby(by, sort=False)[of].apply(lambda values: pd.Series(
        interval(values, bounds=(0.0, 1.0) if of in SHARES else None))).unstack()
    return table.astype({"n": int})


def contrast(rows: pd.DataFrame | list[dict], better: Mapping, worse: Mapping, of: str) -> dict:
    """The difference of column `of` between two selections of rows, paired over their seeds.

    better, worse   column -> value: which rows are meant

    Returns mean, low, high (Student t, 95 %), n and the verdict on "better is larger": "holds" if the interval lies
    above 0, "opposite" if below, "open" if it holds 0 (or there is a single seed). Raises ValueError for missing
    columns and values, and where the two do not have the same seeds.

    >>> rows = [dict(algorithm=a, seed=s, tow=t + s / 100) for a, t in (("A", 0.9), ("B", 0.5)) for s in range(3)]
    >>> contrast(rows, better={"algorithm": "A"}, worse={"algorithm": "B"}, of="tow")["verdict"]
    'holds'
    """
    found = interval(paired(rows, better, worse, of))
    found["verdict"] = "holds" if found["low"] > 0 else "opposite" if found["high"] < 0 else "open"
    return found


def paired(rows: pd.DataFrame | list[dict], first: Mapping, second: Mapping, of: str) -> pd.Series:
    """Column `of` of the first selection of rows minus that of the second (column -> value), seed by seed. Several rows
    of one seed are averaged first. Raises what `contrast` raises."""
    frame = _table(rows, [*first, *second, "seed", of])
    chosen = [frame[(frame[list(which)] == pd.Series(which)).all(axis=1)] for which in (first, second)]
    for part in chosen:
        _measured(part[of], of)
    a, b = (part.groupby("seed")[of].mean() for part in chosen)
    if a.empty or set(a.index) != set(b.index):
        raise ValueError(f"{dict(first)} has seeds {list(a.index)} and {dict(second)} has {list(b.index)}; "
                         f"a paired difference needs the same ones")
    return a - b.loc[a.index]


def equivalence(differences: Iterable[float], margin: float = 0.02, level: float = 0.95) -> dict:
    """What paired differences say, in one word. This is the one rule of the project; every other verdict follows it.

    "equivalent"    two one-sided t tests show that the mean lies between -margin and +margin, on whichever side of 0:
                    a difference too small to matter is neither better nor worse, however sure it is
    "better"        else, if the interval (Student t at `level`) lies above 0;  "worse" if it lies below
    "inconclusive"  else, as always with n = 1

    Returns mean, low, high, n, p (the larger one of the two tests) and the verdict. Raises ValueError for differences
    that are not finite, margin <= 0 or level outside (0, 1).
    """
    differences = [float(value) for value in differences]
    if not differences or not all(map(math.isfinite, differences)) or not margin > 0 or not 0 < level < 1:
        raise ValueError(f"give finite differences, margin > 0 and level in (0, 1); got {len(differences)} "
                         f"differences, {margin} and {level}")
    found = interval(differences, level)
    n, spread = found["n"], _standard_error(differences)
    nearest = margin - abs(found["mean"])                    # to the end of the margin that is the harder one
    found["p"] = (math.nan if n == 1 else float(stdtr(n - 1, -nearest / spread)) if spread else float(nearest <= 0))
    found["verdict"] = ("equivalent" if found["p"] < 1 - level else "better" if found["low"] > 0
                        else "worse" if found["high"] < 0 else "inconclusive")
    return found


def interval(values: Iterable[float], level: float = 0.95,
             bounds: tuple[float, float] | None = None) -> dict[str, float]:
    """mean, low and high of the Student-t interval, and n; low and high are NaN for a single value.

    Where that interval leaves the `bounds` of the measured quantity, low and high are quantiles of the means of 9,999
    bootstrap samples, always the same ones (Efron, 1979): they stay within the values.
    """
    values = [float(v) for v in values]
    n, mean = len(values), sum(values) / len(values)
    half = math.nan if n == 1 else float(stdtrit(n - 1, (1 + level) / 2)) * _standard_error(values)
    low, high = mean - half, mean + half
    if bounds and (low < bounds[0] or high > bounds[1]):
        means = np.random.default_rng(0).choice(values, (9999, n)).mean(axis=1)
        low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return {"mean": mean, "low": low, "high": high, "n": n}


def _standard_error(values: list[float]) -> float:
    n, mean = len(values), sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n) if n > 1 else math.nan


def _table(rows: pd.DataFrame | list[dict], columns: list[str]) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    missing = [name for name in dict.fromkeys(columns) if name not in frame]
    if missing:
        raise ValueError(f"the rows have no column {', '.join(missing)}; they have {', '.join(map(str, frame))[:200]}")
    return frame


def _measured(values: pd.Series, of: str) -> None:
    numbers = pd.to_numeric(values, errors="coerce")
    if numbers.isna().any() or not numbers.map(math.isfinite).all():
        wrong = int((numbers.isna() | numbers.abs().eq(math.inf)).sum())
        raise ValueError(f"{wrong} of {len(values)} rows have no {of} that is a finite number (a run diverged, or was "
                         f"not attacked); leave them out on purpose or not at all")
