"""Choosing what to unlearn each part with, when there is no retrained model to compare with.

    auto = AutoRUM(Refine(memorization, parts=3), (RandomLabel(lr=0.2), Finetune(lr=0.2)), Memorized(memorization))
    unlearned = auto(model, forget, retain, seed=0)          # an algorithm like any other
    chosen, unlearned = auto.settle(model, forget, retain, seed=0)     # and the RUM that it has settled on
    Calibrated(auto, make_model, recipe)                     # chooses on a twin problem whose answer is known

A judge guesses, without that model, how near an unlearned one is to it: `HeldOut`, `Memorized`, `JensenShannon`, or any
callable ``(model, original, forget, retain) -> float``, where 1 means as retrained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import nn

from rumlib.algorithms.base import Keep, validate_inputs
from rumlib.data import Examples
from rumlib.metrics import jensen_shannon
from rumlib.models import Factory
from rumlib.rum import RUM, check_order, sequence
from rumlib.scores import Score
from rumlib.train import Recipe, accuracy, correct, cost, derive_seed, fit, predict

# -- Judges -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeldOut:
    """As if a retrained model knew the forget set as well as the original knows held-out data of the same classes.

    (1 - |a_S - v|) (1 - |a_R - o_R|): a the accuracies of the unlearned model on forget and retain set, o_R that of the
    original, v that of the original on `validation`, weighted by the classes of the forget set. The criterion by which
    SCRUB+R rewinds (Kurmanji et al., NeurIPS 2023), beside one that keeps the retain set, which is proposed here.
    """

    validation: Examples

    def __call__(self, model: nn.Module, original: nn.Module, forget: Examples, retain: Examples) -> float:
        right = correct(predict(original, self.validation), self.validation.y).float()
        counts = forget.y.bincount(minlength=int(self.validation.y.max()) + 1)
        missing = [c for c in counts.nonzero()[:, 0].tolist() if not (self.validation.y == c).any()]
        if missing:
            raise ValueError(f"no held-out example of class {', '.join(map(str, missing))}, which the forget set has")
        expected = sum(int(counts[c]) * right[self.validation.y == c].mean().item() for c in counts.nonzero()[:, 0])
        return _near(model, original, forget, retain, expected / len(forget))


@dataclass(frozen=True)
class Memorized:
    """As if a retrained model knew of the forget set what the original knows and has not memorized.

    As `HeldOut`, with v = o_S - mean memorization of S: by its definition, memorization is what accuracy on an example
    loses when the example is left out of training. Proposed here.
    """

    score: Score

    def __call__(self, model: nn.Module, original: nn.Module, forget: Examples, retain: Examples) -> float:
        expected = accuracy(original, forget) - self.score.of(forget).mean().item()
        return _near(model, original, forget, retain, min(max(expected, 0.0), 1.0))


@dataclass(frozen=True)
class JensenShannon:
    """RF-JSD: the unlearned model on the forget set, class by class, against the original on held-out data.

    (1 - JSD / ln 2) (1 - |a_R - o_R|): JSD the divergence of the two mean predictions for a class, averaged over the
    examples of the forget set (LoTUS, CVPR 2025); the second factor as in `HeldOut`.
    """

    validation: Examples

    def __call__(self, model: nn.Module, original: nn.Module, forget: Examples, retain: Examples) -> float:
        ours, theirs = predict(model, forget).softmax(1), predict(original, self.validation).softmax(1)
        total = 0.0
        for c in forget.y.unique().tolist():
            if not (self.validation.y == c).any():
                raise ValueError(f"no held-out example of class {c}, which the forget set has")
            p, q = ours[forget.y == c].mean(0), theirs[self.validation.y == c].mean(0)
            total += int((forget.y == c).sum()) * jensen_shannon(p, q).item()
        kept = 1 - abs(accuracy(model, retain) - accuracy(original, retain))
        return (1 - total / len(forget) / math.log(2)) * kept


def _near(model: nn.Module, original: nn.Module, forget: Examples, retain: Examples, expected: float) -> float:
    """ToW on forget and retain set, with an expected accuracy in place of that of a retrained model."""
    dS = abs(accuracy(model, forget) - expected)
    dR = abs(accuracy(model, retain) - accuracy(original, retain))
    return (1 - dS) * (1 - dR)


# -- Choosing ---------------------------------------------------------------------------------------------------------


class Choice(NamedTuple):
    """A step that was chosen: for which part, what, how near the judge holds the model after it, and that model."""

    part: int
    step: Callable
    estimate: float
    model: nn.Module


@dataclass(frozen=True)
class AutoRUM:
    """RUM that chooses the step of each part on its way, without the retrained model.

    For each part it first tries to do nothing and then the `candidates`, until the `judge` holds one to be good
    `enough`, considering all that has been unlearned so far, or more examples have passed through training than
    `budget` times the retain set has; then it goes on with the best of those tried. A candidate that diverges is passed
    over. With several `orders` (None: from the last part to the first) all are run, each within the budget, and the one
    with the best end is taken.
    """

    refine: Callable[[Examples], list[Examples]]
    candidates: tuple
    judge: Callable[[nn.Module, nn.Module, Examples, Examples], float]
    orders: tuple[tuple[int, ...], ...] | None = None
    enough: float = 0.97
    budget: float = math.inf
    waiting: str = "retain"

    def __post_init__(self):
        object.__setattr__(self, "candidates", tuple(self.candidates))
        if not self.candidates or not all(map(callable, self.candidates)):
            raise ValueError(f"candidates are algorithms to choose from, e.g. Finetune(); got {self.candidates}")
        if self.orders is not None and not self.orders:
            raise ValueError("orders names the sequences to try; give at least one, or None")
        for order in self.orders or (None,):
            check_order(order, len(order or ()), self.waiting)
        if self.budget <= 0:
            raise ValueError(f"budget counts passes over the retain set, above 0; got {self.budget}")

    def __call__(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int = 0) -> nn.Module:
        return self.settle(model, forget, retain, seed=seed)[1]

    def settle(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int = 0) -> tuple[RUM, nn.Module]:
        """The RUM that was chosen, and the model that it unlearns to with this seed."""
        found = [list(self.choices(model, forget, retain, order, seed=seed)) for order in self.orders or (None,)]
        best = max(found, key=lambda choices: choices[-1].estimate)
        steps = {choice.part: choice.step for choice in best}
        chosen = RUM(self.refine, tuple(steps[part] for part in range(len(steps))), tuple(steps), self.waiting)
        return chosen, best[-1].model

    def choices(self, model: nn.Module, forget: Examples, retain: Examples, order: tuple[int, ...] | None = None, *,
                seed: int = 0) -> Iterator[Choice]:
        """Part by part, what is chosen."""
        validate_inputs(model, forget, retain)
        original, parts, gone = model, self.refine(forget), None
        order = order or tuple(reversed(range(len(parts))))
        with cost() as spent:
            for k, (part, known) in enumerate(sequence(parts, order, retain, self.waiting)):
                gone = parts[part] if gone is None else gone + parts[part]
                best = None
                for step in (Keep(), *self.candidates):
                    if best and (best.estimate >= self.enough or spent.examples > self.budget * len(retain)):
                        break
                    try:
                        tried = step(model, parts[part], known, seed=seed + k)
                    except FloatingPointError:
                        continue
                    estimate = self.judge(tried, original, gone, retain)
                    if best is None or estimate > best.estimate:
                        best = Choice(part, step, estimate, tried)
                model = best.model
                yield best


@dataclass(frozen=True)
class Calibrated:
    """Choose the steps on a twin of the problem whose answer is known, then take them to the real one.

    The twin: a model of the memorization estimator is the retrained model of one that was trained on its subset and on
    some examples more. These are drawn from the retain set to match the forget set in class and in score (`twin`). The
    steps that `auto` chooses on the twin, with ToW on forget and retain set against that model as its judge, unlearn
    the real forget set. It costs two trainings of about the size of the subset, one of which the memorization estimator
    has done already, and keeps if asked to. The idea is that of Twin Machine Unlearning (arXiv 2501.08615), per part
    and with memorization; proposed here.
    """

    auto: AutoRUM
    make_model: Factory
    recipe: Recipe
    number: int = 0                                          # which model of the estimator

    def __post_init__(self):
        bank = getattr(getattr(self.auto.refine, "score", None), "bank", None)
        if bank is None:
            raise ValueError("a twin needs the subset models of the memorization estimator: refine by a score from "
                             "rumlib.memorization, which keeps what they saw")
        if not 0 <= self.number < len(bank.included):
            raise ValueError(f"the estimator has {len(bank.included)} models; got number={self.number}")

    def __call__(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int = 0) -> nn.Module:
        return self.settle(model, forget, retain, seed=seed)[1]

    def settle(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int = 0) -> tuple[RUM, nn.Module]:
        """The RUM that was chosen on the twin, and the model that it unlearns to with this seed."""
        validate_inputs(model, forget, retain)
        gone, known = self.twin(forget, retain)
        reference = fit(self.make_model, known, self.recipe, seed=derive_seed(seed, "twin", self.number))
        original = fit(self.make_model, known + gone, self.recipe, seed=derive_seed(seed, "twin", self.number))

        def judge(model, original, forget, retain):
            d = [abs(accuracy(model, part) - accuracy(reference, part)) for part in (forget, retain)]
            return (1 - d[0]) * (1 - d[1])

        chosen, _ = replace(self.auto, judge=judge).settle(original, gone, known, seed=seed)
        return chosen, chosen(model, forget, retain, seed=seed)

    def twin(self, forget: Examples, retain: Examples, *, apart: float = 0.25) -> tuple[Examples, Examples]:
        """(forget, retain) of the twin: matched examples from outside the subset, and the subset.

        Each example of the forget set is matched with another of its class whose score differs by at most `apart`, no
        one twice, so that the differences are smallest in all. Those without a match are left out.
        """
        from scipy.optimize import linear_sum_assignment  # here: it takes an eighth of the time to import rumlib

        score, everything = self.auto.refine.score, forget + retain
        inside = Score("in the subset", score.bank.included[self.number].float(), score.index)
        known = everything[inside.of(everything) == 1]
        pool = retain[inside.of(retain) == 0]
        far = (score.of(forget)[:, None] - score.of(pool)).abs() + 10.0 * (forget.y[:, None] != pool.y)
        rows, columns = linear_sum_assignment(far.numpy())
        chosen = torch.as_tensor(columns)[far[rows, columns] <= apart]
        if len(chosen) < len(self.auto.refine):
            raise ValueError(f"only {len(chosen)} of {len(forget)} examples have a match outside the subset: a twin of "
                             f"this forget set cannot be made")
        return pool[chosen.sort().values], known
