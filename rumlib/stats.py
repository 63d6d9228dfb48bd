"""What rows say together: a mean with its interval and its n, and differences paired over the seeds.

    summarise(rows, by=["level", "algorithm"], of="tow")     # mean, 95 % interval, n
    contrast(rows, "tow", better={...}, worse={...})         # paired over the seeds
    tow_between(evaluation, reference)                       # ToW and ToW-MIA, two columns of a row
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import pandas as pd
from scipy.special import stdtrit

from rumlib.metrics import Evaluation, tow_from_accuracies


def tow_between(found: Evaluation, reference: Evaluation) -> dict[str, float]:
    """ToW and ToW-MIA of two evaluations."""
    rest_u, rest_r = (found.retain, found.test), (reference.retain, reference.test)
    row = {"tow": tow_from_accuracies(unlearned=(found.forget, *rest_u), retrained=(reference.forget, *rest_r))}
    mia = math.isfinite(found.mia) and math.isfinite(reference.mia)
    row["tow_mia"] = tow_from_accuracies(unlearned=(found.mia, *rest_u), retrained=(reference.mia, *rest_r)) \
        if mia else math.nan
    return row


def summarise(rows: pd.DataFrame | list[dict], by: list[str] | str, of: str) -> pd.DataFrame:
    """mean, low, high (Student t, 95 %) and n of column `of`, for each combination of the columns `by`.

    With n = 1 there is no interval: low and high are NaN. Raises ValueError if a value is missing.
    """
    frame = pd.DataFrame(rows)
    missing = [name for name in [*([by] if isinstance(by, str) else by), of] if name not in frame]
    if missing:
        raise ValueError(f"the rows have no column {', '.join(missing)}; they have {', '.join(frame)}")
    if frame[of].isna().any():
        raise ValueError(f"{int(frame[of].isna().sum())} of {len(frame)} rows have no {of} (a run diverged, or was not "
                         f"attacked); leave them out on purpose or not at all")
    table = frame.groupby(by, sort=False)[of].apply(lambda values: pd.Series(interval(values))).unstack()
    return table.astype({"n": int})


def interval(values: Iterable[float]) -> dict[str, float]:
    """mean, low and high of the 95 % Student-t interval, and n."""
    values = [float(v) for v in values]
    n, mean = len(values), sum(values) / len(values)
    if n == 1:
        return {"mean": mean, "low": math.nan, "high": math.nan, "n": 1}
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)
    half = float(stdtrit(n - 1, 0.975)) * spread
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def contrast(rows: pd.DataFrame, of: str, better: Mapping, worse: Mapping) -> dict:
    """The difference of column `of` between two selections of rows, paired over their seeds.

    Returns mean, low, high (Student t, 95 %), n and the verdict on "better is larger": "holds" if the interval lies
    above 0, "opposite" if below, "open" if it holds 0 (or there is a single seed).
    """
    a, b = (rows[(rows[list(which)] == pd.Series(which)).all(axis=1)].groupby("seed")[of].agg(
        lambda values: values.mean(skipna=False)) for which in (better, worse))
    if a.empty or set(a.index) != set(b.index):
        raise ValueError(f"{dict(better)} has seeds {list(a.index)} and {dict(worse)} has {list(b.index)}; "
                         f"a paired difference needs the same ones")
    if a.isna().any() or b.isna().any():
        raise ValueError(f"a run of {dict(better)} or {dict(worse)} has no {of} (it diverged, or was not attacked)")
    found = interval(a - b.loc[a.index])
    found["verdict"] = "holds" if found["low"] > 0 else "opposite" if found["high"] < 0 else "open"
    return found
