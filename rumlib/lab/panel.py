"""The model bank read: every metric with its null, the agreement of metrics, and the verdicts of the audits.

    bank = Bank.of(study, banked(study))                     # margins of oracles, originals and unlearned models
    panel = measured(bank, "high")                           # metric by algorithm: value, null, normalised value
    agreement(bank, "high")                                  # Kendall's tau of each two metrics, with intervals
    verdicts(found)                                          # audit by algorithm: flagged, or as the oracles

A null is what oracles score against other oracles, over random halves of twice as many. Values are normalised between
the original, 0, and that null, 1. Where the null is too wide for that the metric is refused, in words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rumlib.algorithms.base import Keep
from rumlib.attacks import (
    forgetting_quality,
    klom,
    loss_scores,
    normalised,
    paired_auc,
    rmia,
    svc_shares,
    ulira_scores,
)
from rumlib.audits import compared
from rumlib.lab import banks
from rumlib.lab.computations import ForgetSet
from rumlib.lab.protocol import Table
from rumlib.lab.study import Study
from rumlib.metrics import tow_from_accuracies
from rumlib.stats import interval

ORACLE = 1000                                                # the first seed of the oracles: no original has it
SUBSETS = 64                                                 # models of the memorization estimator that attackers have
SPLITS, HALVES = 100, 100                                    # of the null; of the intervals of differences
WIDEST = 0.1                                                 # null, of the distance from the original to it


# -- The bank ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Margins:
    """What models of one kind say: margins (models, examples) of forget, retain and test set, `accuracies` (models, 3)
    on these, and of the forget set the scores of RMIA and, `called`, the share that an SVC calls members."""

    forget: Tensor
    retain: Tensor
    test: Tensor
    accuracies: Tensor
    rmia: Tensor
    called: Tensor

    def __len__(self) -> int:
        return len(self.forget)

    def __getitem__(self, models) -> Margins:
        return Margins(*(getattr(self, f.name)[models] for f in fields(self)))


@dataclass(frozen=True, eq=False)
class Bank:
    """oracles: set -> Margins of twice as many; originals: set -> Margins; unlearned: (set, algorithm) -> Margins."""

    sets: Mapping[str, ForgetSet]
    oracles: Mapping[str, Margins]
    originals: Mapping[str, Margins]
    unlearned: Mapping[tuple[str, str], Margins]

    @classmethod
    def of(cls, study: Study, table: Table) -> Bank:
        """The bank of the algorithms in this table, tuned as they are on file or by search."""
        tuned, _ = study.tune(table.spaces, on_file=True)
        asked = {name[:2]: (table.spaces[name][0], algorithm) for name, algorithm in tuned.items()}
        sets = {name: forget for (name, _), (forget, _) in asked.items()}
        n, p = study.profile.bank, study.profile
        halves = [tuple(range(ORACLE + k * n, ORACLE + (k + 1) * n)) for k in (0, 1)]
        seeds = tuple(range(n))
        many = partial(study.compute_many, what="bank")
        chunks = range(0, min(SUBSETS, p.score_models), p.score_chunk)
        parts = [part["tensors"] for part in many(banks.subset_bank, [
            (range(k, min(k + p.score_chunk, p.score_models)), p.fraction, p.scored_by) for k in chunks])]
        known = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        known["out"] = known["train"].float().sigmoid().masked_fill(known["included"], torch.nan)
        known["index"] = study.train.index
        said = [many(banks.oracle_bank, [(forget, half) for forget in sets.values()]) for half in halves]
        originals = many(banks.unlearned_bank, [(forget, Keep(), seeds) for forget in sets.values()])
        unlearned = many(banks.unlearned_bank, [(*way, seeds) for way in asked.values()])

        def margins(forget, *found):
            return _margins(forget, known, {name: torch.cat([one["tensors"][name] for one in found]).float()
                                            for name in found[0]["tensors"]})

        return cls(sets, {name: margins(forget, *pair) for (name, forget), pair in zip(
            sets.items(), zip(*said, strict=True), strict=True)},
            {name: margins(forget, one) for (name, forget), one in zip(sets.items(), originals, strict=True)},
            {name: margins(forget, one) for (name, (forget, _)), one in zip(asked.items(), unlearned, strict=True)})

    def algorithms(self, name: str) -> dict[str, Margins]:
        """Those of a set, by their labels."""
        return {algorithm: found for (own, algorithm), found in self.unlearned.items() if own == name}


def _margins(forget: ForgetSet, known: Mapping[str, Tensor], said: dict[str, Tensor]) -> Margins:
    rows = torch.searchsorted(known["index"], forget.index)
    outdone = rmia(said["forget"].sigmoid(), known["out"][:, rows], said["test"].sigmoid(),
                   known["test"].float().sigmoid())
    return Margins(**said, rmia=outdone, called=svc_shares(said["retain"], said["test"], said["forget"]))


# -- Metrics ----------------------------------------------------------------------------------------------------------


def tow_distance(oracles: Margins, found: Margins) -> float:
    """1 - ToW, on average over pairs of models."""
    pairs = zip(found.accuracies.tolist(), oracles.accuracies.tolist(), strict=True)
    return 1 - float(np.mean([tow_from_accuracies(unlearned=tuple(u), retrained=tuple(r)) for u, r in pairs]))


def ulira_halves(oracles: Margins, found: Margins) -> tuple[Tensor, Tensor]:
    """Scores of every second model of both banks, by normal distributions fitted to the others: (of found, of
    oracles)."""
    return tuple(ulira_scores(oracles.forget[::2], found.forget[::2], one.forget[1::2]) for one in (found, oracles))


AUCS: dict[str, Callable[[Margins, Margins], Tensor]] = {    # label -> (pairs,): the attacks
    "loss": lambda o, u: paired_auc(loss_scores(u.forget), loss_scores(o.forget)),
    "RMIA": lambda o, u: paired_auc(u.rmia, o.rmia),
    "U-LiRA": lambda o, u: paired_auc(*ulira_halves(o, u))}
METRICS: dict[str, Callable[[Margins, Margins], float]] = {  # label -> of (oracles, found); the original's is larger
    "1 - ToW": tow_distance,
    "SVC": lambda o, u: u.called.mean().item(),
    **{label: lambda o, u, attack=attack: attack(o, u).mean().item() for label, attack in AUCS.items()},
    "KLOM": lambda o, u: klom(o.forget, u.forget).median().item(),
    "KLOM p95": lambda o, u: klom(o.forget, u.forget).quantile(0.95).item(),
    "1 - F": lambda o, u: 1 - forgetting_quality(o.forget, u.forget)}


def null(oracles: Margins, metric: Callable, splits: int = SPLITS) -> np.ndarray:
    """(splits,) what one random half of the oracles scores against the other."""
    random, half = torch.Generator().manual_seed(0), len(oracles) // 2
    drawn = (torch.randperm(2 * half, generator=random) for _ in range(splits))
    return np.array([metric(oracles[rows[:half]], oracles[rows[half:]]) for rows in drawn])


def measured(bank: Bank, name: str) -> pd.DataFrame:
    """Every metric of every algorithm on a set: `value`, the mean null and its 95 % range, the value of the original,
    `normalised` (0: as the original, 1: as an oracle) and, where that is NaN, `why`. "Oracle" is the second half of the
    oracles, treated as an algorithm."""
    oracles, rows = bank.oracles[name], []
    half = len(oracles) // 2
    first, second = oracles[:half], oracles[half:]
    ways = {"Original": bank.originals[name], "Oracle": second, **bank.algorithms(name)}
    for label, metric in METRICS.items():
        try:
            values = {way: metric(first, found) for way, found in ways.items()}
            by_chance = null(oracles, metric)
        except ValueError as refused:                        # a bank too small for the metric
            rows += [{"metric": label, "algorithm": way, "why": str(refused)} for way in ways]
            continue
        low, high = np.quantile(by_chance, [0.025, 0.975])
        own = {"metric": label, "null": by_chance.mean(), "null low": low, "null high": high,
               "original": values["Original"]}
        apart = abs(values["Original"] - own["null"])
        wide = "" if high - low <= WIDEST * apart else (
            f"no scale: the original lies {apart:.3g} from the null, which is {high - low:.3g} wide")
        rows += [{**own, "algorithm": way, "value": value, "why": wide, "normalised": np.nan if wide else normalised(
            value, original=own["original"], oracle=own["null"])} for way, value in values.items()]
    return pd.DataFrame(rows).assign(set=name)


def attacked(bank: Bank, name: str, level: float = 0.99) -> pd.DataFrame:
    """The AUC of every attack on every algorithm, with its Student-t interval over the pairs of models."""
    oracles, half = bank.oracles[name], len(bank.oracles[name]) // 2
    ways = {"Original": bank.originals[name], "Oracle": oracles[half:], **bank.algorithms(name)}
    return pd.DataFrame([{"set": name, "attack": label, "algorithm": way,
                          **interval(attack(oracles[:half], found).tolist(), level)}
                         for label, attack in AUCS.items() for way, found in ways.items()])


def calibrated(bank: Bank, name: str, level: float = 0.99, splits: int = SPLITS) -> dict[str, float]:
    """Attack -> share of random halves of the oracles whose AUC against the other half has 0.5 in its interval."""
    def covers(oracles, found, attack):
        own = interval(attack(oracles, found).tolist(), level)
        return own["low"] <= 0.5 <= own["high"]

    return {label: float(null(bank.oracles[name], partial(covers, attack=attack), splits).mean())
            for label, attack in AUCS.items()}


# -- Do metrics agree? ------------------------------------------------------------------------------------------------


RANKING = tuple(label for label in METRICS if label != "1 - F")          # which is too coarse for banks of this size


def distances(bank: Bank, name: str, models: Tensor | None = None) -> pd.DataFrame:
    """algorithm by metric (of RANKING): how far from the null, of some of the models of each side or of all."""
    oracles, half = bank.oracles[name], len(bank.oracles[name]) // 2
    first = oracles[:half] if models is None else oracles[models]
    other = oracles[half:] if models is None else oracles[half + models]
    found = {way: one if models is None else one[models] for way, one in bank.algorithms(name).items()}
    own = {label: METRICS[label](first, other) for label in RANKING}
    return pd.DataFrame({label: {way: abs(METRICS[label](first, one) - own[label]) for way, one in found.items()}
                         for label in RANKING})


def agreement(bank: Bank, name: str, halves: int = HALVES) -> pd.DataFrame:
    """Kendall's tau between the orders that each two metrics give the algorithms of a set, with 95 % intervals over
    random halves of the models (see `_spread`)."""
    def tau(models=None):
        return distances(bank, name, models).corr("kendall")

    point = tau()
    low, high = _spread(tau, len(bank.originals[name]), halves, point.to_numpy())
    return pd.DataFrame([{"set": name, "one": one, "other": other, "tau": point.iloc[i, j], "low": low[i, j],
                          "high": high[i, j]} for i, one in enumerate(point) for j, other in enumerate(point) if i < j])


def differences(bank: Bank, name: str, one: str, other: str, metrics: Iterable[str],
                halves: int = HALVES) -> pd.DataFrame:
    """Metric by metric, what `one` algorithm scores less than the `other` ("Original": the model before unlearning),
    with 95 % intervals over random halves of the models (see `_spread`); above 0: `one` is nearer to the oracle."""
    oracles, half = bank.oracles[name], len(bank.originals[name])
    ways = {"Original": bank.originals[name], **bank.algorithms(name)}
    rows = []
    for label in metrics:
        def less(models, metric=METRICS[label]):
            return metric(oracles[models], ways[other][models]) - metric(oracles[models], ways[one][models])

        mean = less(torch.arange(half))
        low, high = _spread(less, half, halves, np.array(mean))
        rows.append({"set": name, "one": one, "other": other, "metric": label, "mean": mean, "low": low, "high": high})
    return pd.DataFrame(rows)


def _spread(of: Callable[[Tensor], object], models: int, halves: int, like: np.ndarray) -> np.ndarray:
    """(2, ...) the 2.5 and 97.5 % points of a statistic of random halves of the models, whose variance is that of
    independent banks of full size; NaN where half a bank is too small for a metric."""
    random = torch.Generator().manual_seed(0)
    try:
        drawn = [of(torch.randperm(models, generator=random)[:models // 2]) for _ in range(halves)]
    except ValueError:
        return np.full((2, *like.shape), np.nan)
    return np.nanquantile(np.array(drawn, dtype=float), [0.025, 0.975], axis=0)


# -- Audits -----------------------------------------------------------------------------------------------------------


def audited(study: Study, table: Table) -> dict[tuple[str, str], dict[str, Tensor]]:
    """(set, algorithm) -> audit -> tensor (models, ...), of a quarter as many models as a bank has; "Expected" are the
    oracles that all others are compared with, "Oracle" other oracles, "Original" the models before unlearning."""
    n = study.profile.bank
    k, tuned = max(2, n // 4), study.tune(table.spaces, on_file=True)[0]
    sets = {name[0]: space[0] for name, space in table.spaces.items()}
    originals, first, second = (tuple(range(start, start + k)) for start in (0, ORACLE, ORACLE + n))
    others = tuple(tuple(range(seeds[-1] + 1, seeds[-1] + 4)) for seeds in (originals, first))
    asked = {}
    for name, forget in sets.items():
        asked |= {(name, "Expected"): (forget, None, first), (name, "Oracle"): (forget, None, second),
                  (name, "Original"): (forget, Keep(), originals)}
        asked |= {key[:2]: (forget, way, originals) for key, way in tuned.items() if key[0] == name}
    found = study.compute_many(banks.audits, [(*one, others) for one in asked.values()], "audits")
    return {key: one["tensors"] for key, one in zip(asked, found, strict=True)}


def _of(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Audit -> (models,) the number that is compared with that of the oracles."""
    found = {"forget accuracy": tensors["forget"], "relearning, retained": tensors["relearning, retained"][:, -1],
             "relearning, a few": tensors["relearning, a few"][:, -1], "linear probe": tensors["linear probe"],
             "CKA": (tensors["CKA original"] - tensors["CKA oracle"])[:, -2],
             "int8": tensors["int8"] - tensors["forget"], "int4": tensors["int4"] - tensors["forget"]}
    if "prototype" in tensors:
        found["prototype"] = tensors["prototype"]
        known = expected["fallen to"]
        found["neighbour"] = torch.stack([
            (shares - known[torch.arange(len(known)) != k].mean(0)).abs().sum() / 2 if tensors is expected
            else (shares - known.mean(0)).abs().sum() / 2 for k, shares in enumerate(tensors["fallen to"])])
    return found


def verdicts(found: Mapping[tuple[str, str], Mapping[str, Tensor]]) -> pd.DataFrame:
    """One line for each set, algorithm and audit: the mean number, that of the oracles, the difference with its 99 %
    interval, and whether the audit flags the algorithm (see `rumlib.audits.compared`). "forget accuracy" is no audit
    but what the model answers."""
    rows = []
    for (name, way), tensors in found.items():
        if way != "Expected":
            expected = found[name, "Expected"]
            known = _of(expected, expected)
            rows += [{"set": name, "algorithm": way, "audit": audit, "value": values.mean().item(),
                      "oracles": known[audit].mean().item(), **compared(values, known[audit])}
                     for audit, values in _of(tensors, expected).items()]
    return pd.DataFrame(rows)
