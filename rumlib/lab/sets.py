"""Forget sets of a study: by memorization, by entanglement, by class, or by a mask of one's own.

    study.levels()["high"], study.levels()["mix"]            # the most memorized examples; RUM's mix of three levels
    study.entanglement_sets(), study.matched_sets()          # by entanglement; the same at equal memorization
    study.forget_set("mine", mask), study.class_set(3)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rumlib.data import Examples
from rumlib.lab import computations as made
from rumlib.lab.computations import ForgetSet
from rumlib.lab.memo import Memoized


def forget_set(study: Memoized, name: str, mask: Tensor, **facts: float) -> ForgetSet:
    """The training examples under the mask as a forget set of this study."""
    gone, _ = study.train.split(mask)
    return _noted(study, name, gone, {"memorization": study.score.values[mask].mean().item(), **facts})


def class_set(study: Memoized, c: int) -> ForgetSet:
    """All of a class as a forget set; memorization is not asked for."""
    name = study.train.names[c] if c < len(study.train.names) else c
    return _noted(study, f"class {name}", study.train.split_classes(c)[0], {})


def _noted(study: Memoized, name: str, gone: Examples, facts: Mapping[str, float]) -> ForgetSet:
    chosen = ForgetSet(name, gone.index.sort().values, facts)
    study.splits[name] = chosen.digest
    return chosen


def levels(study: Memoized) -> dict[str, ForgetSet]:
    """Forget sets of low, medium and high memorization, and RUM's mix of all three."""
    p = study.profile
    return {level: study.forget_set(level, study.score.pick(p.mix if level == "mix" else p.set_size, level))
            for level in ("low", "medium", "high", "mix")}


def bands(study: Memoized) -> list[ForgetSet]:
    """Forget sets by distance from the centroid in the original model's embedding, each with its measured
    entanglement score."""
    found, count = _bands(study), study.profile.bands
    return [_entangled(study, f"band {k}", found[f"band {k}"]) for k in range(count)]


def entanglement_sets(study: Memoized) -> dict[str, ForgetSet]:
    """Forget sets of controlled entanglement as the paper makes them, from bands by distance from the centroid.

    The farthest band is low, by definition. High is the band of the highest measured score among those that leave room
    for another one; medium lies between these two, with the score nearest to the mean of theirs.
    Source: arXiv 2406.01257, section 4.1: sets at progressively smaller distances, until the score varies as wanted.
    """
    *nearer, far = study.bands()                             # from the nearest to the farthest
    if len(nearer) < 2:
        raise ValueError(f"low, medium and high entanglement need at least 3 bands; got bands={len(nearer) + 1}")
    score = [band.facts["entanglement"] for band in (*nearer, far)]
    high = max(range(len(nearer) - 1), key=lambda k: score[k])
    middle = (score[-1] + score[high]) / 2
    medium = min(range(high + 1, len(nearer)), key=lambda k: abs(score[k] - middle))
    return {"ES low": far, "ES medium": nearer[medium], "ES high": nearer[high]}


def matched_sets(study: Memoized) -> dict[str, ForgetSet]:
    """Forget sets of low, medium and high entanglement score and one histogram of memorization."""
    p, names = study.profile, {level: f"matched {level}" for level in ("low", "medium", "high")}
    found = made.matched_sets(study, study.score, p.set_size, p.seeds[0])["tensors"]
    return {name: _entangled(study, name, found[level]) for level, name in names.items()}


def distance(study: Memoized) -> Tensor:
    """How far each training example lies from the centroid in the original model's embedding, (n,)."""
    return _bands(study)["distance"]


def entanglement(study: Memoized, forget: ForgetSet) -> dict[str, float]:
    """Entanglement score and MMD (the root, as published) of a forget set with the rest, in the original model's
    embedding."""
    return made.entanglement(study, forget, study.profile.seeds[0])


def _bands(study: Memoized) -> dict[str, Tensor]:
    return made.embedding_bands(study, study.profile.seeds[0], study.profile.bands)["tensors"]


def _entangled(study: Memoized, name: str, rows: Tensor) -> ForgetSet:
    """The training examples in these rows, with their entanglement score among the facts."""
    mask = torch.zeros(len(study.train), dtype=torch.bool)
    mask[rows] = True
    score = study.entanglement(ForgetSet(name, study.train.index[mask].sort().values))["entanglement"]
    return study.forget_set(name, mask, entanglement=score)
