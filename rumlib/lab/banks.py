"""The bank of a study: what many models say of a few examples, and audits of models. Computed here, read in `panel`.

    oracle_bank(study, forget, seeds)["tensors"]["forget"]   # margins (models, examples) of oracles
    unlearned_bank(study, forget, algorithm, seeds)          # of unlearned models, one for each original
    subset_bank(study, range(32), 0.7, how)                  # of the models of the memorization estimator
    audits(study, forget, algorithm, seeds, others)          # numbers (models,) of each audit

Kept are predictions, as float16 margins (log odds of the true class), and never weights. Small networks train in
stacks, so that fifty oracles cost little more than five. Results are found by the code that makes them, as those of
`rumlib.lab.computations`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from rumlib.algorithms import Retrain
from rumlib.attacks import log_odds
from rumlib.audits import cka_by_layer, fallen_to, linear_probe, prototype_attack, quantised, relearning
from rumlib.data import Examples
from rumlib.ensemble import fit_many
from rumlib.lab.computations import ForgetSet, split
from rumlib.lab.memo import Computation, Memoized, memoize
from rumlib.scores import subset_masks
from rumlib.train import accuracy, derive_seed, predict

WATCHED = 200                                                # examples of retain and of test set, at most
FEW = 5                                                      # every fifth forgotten example is shown to a relearner


# -- Models, trained together and kept in memory while a process needs them --------------------------------------------


@lru_cache(maxsize=4)
def originals(study: Memoized, seeds: tuple[int, ...]) -> list[nn.Module]:
    """Models trained on everything."""
    return _trained(study, study.train, seeds)


@lru_cache(maxsize=8)
def oracles(study: Memoized, forget: ForgetSet, seeds: tuple[int, ...]) -> list[nn.Module]:
    """Models trained without the forget set."""
    return _trained(study, split(study, forget)[1], seeds)


def _trained(study: Memoized, examples: Examples, seeds: tuple[int, ...]) -> list[nn.Module]:
    everything = [torch.arange(len(examples))] * len(seeds)
    return fit_many(study.profile.make_model, examples, everything, study.profile.recipe, seeds=list(seeds))


def _unlearned(study: Memoized, forget: ForgetSet, algorithm: Callable | None, seeds: tuple[int, ...]) -> list:
    if algorithm is None:
        return oracles(study, forget, seeds)
    sets = split(study, forget)
    return [algorithm(model, *sets, seed=seed) for model, seed in zip(originals(study, seeds), seeds, strict=True)]


# -- Predictions -------------------------------------------------------------------------------------------------------


@memoize("oracle_bank")
def oracle_bank(study: Memoized, forget: ForgetSet, seeds: tuple[int, ...]) -> dict:
    """What models say that never saw the forget set."""
    return _said(study, forget, oracles(study, forget, seeds))


@memoize("unlearned_bank")
def unlearned_bank(study: Memoized, forget: ForgetSet, algorithm: Callable, seeds: tuple[int, ...]) -> dict:
    """What models say that unlearned the forget set, each from an original of its own."""
    return _said(study, forget, _unlearned(study, forget, algorithm, seeds))


def _said(study: Memoized, forget: ForgetSet, models: list[nn.Module]) -> dict:
    """Margins (models, examples) of the forget set and of some of the others, and accuracies (models, 3) on all."""
    sets = dict(zip(("forget", "retain", "test"), (*split(study, forget), study.test), strict=True))
    seen = {"forget": sets["forget"], "retain": some(sets["retain"]), "test": some(sets["test"])}
    found = {name: torch.stack([_margins(model, part) for model in models]) for name, part in seen.items()}
    right = [[accuracy(model, part) for part in sets.values()] for model in models]
    return {"tensors": {**found, "accuracies": torch.tensor(right)}}


def some(examples: Examples) -> Examples:
    """At most WATCHED of them, evenly spread."""
    return examples[torch.linspace(0, len(examples) - 1, min(WATCHED, len(examples))).long()]


def _margins(model: nn.Module, examples: Examples) -> Tensor:
    return log_odds(predict(model, examples), examples.y).clamp(-60, 60).half()


@memoize("subset_bank")
def subset_bank(study: Memoized, numbers: range, fraction: float, how: Retrain) -> dict:
    """What subset models of the memorization estimator with these numbers say of the training data and of some of the
    test data, and which examples each was trained on."""
    included = subset_masks(len(study.train), numbers, fraction, 0)
    seeds = [derive_seed(0, "subset model", k) for k in numbers]
    models = fit_many(how.make_model, study.train, [row.nonzero()[:, 0] for row in included], how.recipe, seeds=seeds)
    return {"tensors": {"included": included, "train": torch.stack([_margins(m, study.train) for m in models]),
                        "test": torch.stack([_margins(m, some(study.test)) for m in models])}}


# -- Audits ------------------------------------------------------------------------------------------------------------


@memoize("audits")
def audits(study: Memoized, forget: ForgetSet, algorithm: Callable | None, seeds: tuple[int, ...],
           others: tuple[tuple[int, ...], tuple[int, ...]]) -> dict:
    """Every audit of unlearned models, or of oracles where there is no algorithm: tensors (models, ...).

    others  seeds of the originals and of the oracles whose representations theirs are compared with
    """
    gone, kept = split(study, forget)
    few, rest = gone.split(torch.arange(len(gone)) % FEW == 0)
    p, test = study.profile, some(study.test)
    slowly = replace(p.recipe, epochs=5, lr=p.recipe.lr / 10, schedule="constant", warmup=0.0)
    models = _unlearned(study, forget, algorithm, seeds)
    known = originals(study, others[0]), oracles(study, forget, others[1])
    found = {
        "forget": [accuracy(m, rest) for m in models],
        "relearning, retained": [relearning(m, kept, rest, slowly, seed=s) for m, s in zip(models, seeds, strict=True)],
        "relearning, a few": [relearning(m, kept + few, rest, slowly, seed=s)
                              for m, s in zip(models, seeds, strict=True)],
        "linear probe": [linear_probe(m, kept + few, rest) for m in models],
        "int8": [accuracy(quantised(m, 8), rest) for m in models],
        "int4": [accuracy(quantised(m, 4), rest) for m in models],
        "CKA original": [_likeness(m, known[0], rest) for m in models],
        "CKA oracle": [_likeness(m, known[1], rest) for m in models]}
    if not set(gone.y.tolist()) & set(kept.y.tolist()):
        found["fallen to"] = [fallen_to(m, rest) for m in models]
        if len(gone.y.unique()) == 1:
            found["prototype"] = [prototype_attack(m, few, test) for m in models]
    return {"tensors": {name: torch.stack([torch.as_tensor(value, dtype=torch.float32) for value in values])
                        for name, values in found.items()}}


def _likeness(model: nn.Module, known: list[nn.Module], examples: Examples) -> Tensor:
    """(layers,) mean `cka_by_layer` to other models of one kind."""
    return torch.tensor([cka_by_layer(model, other, examples) for other in known]).mean(0)


KINDS = {found.kind: found for found in tuple(vars().values()) if isinstance(found, Computation)}
