"""What the notebook on fine-grained perturbation computes from the rows of `Study.unlearn` and `Study.depth`.

    sets = random_sets(study, (0.01, 0.1))                   # share -> forget set
    rows = rated(rows, study, sets.values())                 # forgetting rates, retention and acceleration as columns
    smallest(rows)                                           # k*: the least share of weights that forgets nearly most
    over_generators(degrees)                                 # unlearning degrees, a mean over the generators

The rates are proposals of this project (see `rumlib.metrics`): of arXiv 2401.04385 only the abstract is verified.
"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
import torch

from rumlib.lab import computations as made
from rumlib.lab.computations import ForgetSet
from rumlib.lab.study import Study
from rumlib.metrics import forgetting_rate, forgetting_rate_calibrated, retention

RATES = ("FR", "FR calibrated", "MRR", "MRR test", "acceleration", "in examples")
DEGREES = ("degree", "on_test", "on_retain", "adjusted", "adjusted_retain")


def random_sets(study: Study, shares: Iterable[float], *, seed: int = 7) -> dict[float, ForgetSet]:
    """Share of the training data -> forget set of so many examples, drawn at random; a smaller one is part of a larger
    one."""
    n = len(study.train)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))

    def drawn(share: float) -> ForgetSet:
        mask = torch.zeros(n, dtype=torch.bool)
        mask[order[:round(share * n)]] = True
        return study.forget_set(f"{share:.0%} at random", mask)

    return {share: drawn(share) for share in shares}


def rated(rows: pd.DataFrame, study: Study, sets: Iterable[ForgetSet]) -> pd.DataFrame:
    """The rows of `Study.unlearn` with the columns `RATES`, which compare with the original and the retrained model.

    FR             share of the forget set's accuracy that is lost, in [0, 1]
    FR calibrated  the loss in units of what retraining loses: 1 is as much; NaN where retraining loses nothing
    MRR, MRR test  accuracy on retain and test set as a share of the original's
    acceleration   seconds of retraining over seconds of unlearning;  in examples: the same in examples passed
    """
    named = {forget.name: forget for forget in sets}

    def rates(row: pd.Series) -> dict[str, float]:
        forget, seed = named[row["set"]], row["seed"]
        right, gone = made.original_correct(study, seed)["tensors"], torch.isin(study.train.index, forget.index)
        masks = {"forget": right["train"][gone], "retain": right["train"][~gone], "test": right["test"]}
        a, oracle = {name: mask.float().mean().item() for name, mask in masks.items()}, made.oracle(study, forget, seed)
        values = (forgetting_rate(a["forget"], row["forget"]),
                  forgetting_rate_calibrated(a["forget"], row["forget"], row["oracle_forget"]),
                  retention(a["retain"], row["retain"]), retention(a["test"], row["test"]),
                  oracle["seconds"] / row["seconds"], oracle["examples"] / max(row["examples"], 1))
        return dict(zip(RATES, values, strict=True))

    return rows.join(pd.DataFrame([rates(row) for _, row in rows.iterrows()], index=rows.index))


def smallest(rows: pd.DataFrame, *, near: float = 0.95, least: float = 0.98) -> dict[str, str | None]:
    """k* of each value of the column `ratio`: the first k, in the order of the rows, whose mean calibrated forgetting
    rate is at least `near` times the best one, among those whose mean MRR is at least `least`; None if none keeps it.
    """
    means = rows.groupby(["ratio", "k"], sort=False)[["FR calibrated", "MRR"]].mean()
    kept = means.loc[means["MRR"] >= least, "FR calibrated"]
    close = kept[kept >= near * kept.groupby("ratio").transform("max")].reset_index()
    first = close.groupby("ratio", sort=False)["k"].first()
    return {ratio: first.get(ratio) for ratio in rows["ratio"].unique()}


def over_generators(degrees: pd.DataFrame) -> pd.DataFrame:
    """The rows of `Study.depth` for one forget set, with the column `method`, averaged over the generators: a row for
    each method, seed and kind of images ("clean", "shifted" or "noise")."""
    images = degrees["probe"].str.split().str[0]
    return degrees.assign(images=images).groupby(["method", "seed", "images"], as_index=False, sort=False)[
        list(DEGREES)].mean()
