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
from rumlib.device import as_seed, check_fields
from rumlib.metrics import jensen_shannon
from rumlib.models import Factory
from rumlib.rum import RUM, as_algorithms, as_order, check_parts, sequence
from rumlib.scores import Score
from rumlib.train import Recipe, accuracy, correct, cost, derive_seed, fit, predict

# -- Judges -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeldOut:
    """As if a retrained model knew the forget set as well as the original knows held-out data of the same classes.

    (1 - |a_S - v|) (1 - |a_R - o_R|): a the accuracies of the unlearned model on forget and retain set, o_R that of the
    original, v that of the original on `validation`, weighted by the classes of the forget set. Raises ValueError for a
    class of the forget set without a held-out example.

    Source: the criterion by which SCRUB+R rewinds (Kurmanji et al., NeurIPS 2023, arXiv 2302.09880), beside one that
    keeps the retain set, which is proposed here.
    """

    validation: Examples

    def __call__(self, model: nn.Module, original: nn.Module, forget: Examples, retain: Examples) -> float:
        right = correct(predict(original, self.validation), self.validation.y).float()
        expected = sum(int((forget.y == c).sum()) * right[self.validation.y == c].mean().item()
                       for c in _classes(forget, self.validation))
        return _near(model, original, forget, retain, expected / len(forget))


@dataclass(frozen=True)
class Memorized:
    """As if a retrained model knew of the forget set what the original knows and has not memorized.

    As `HeldOut`, with v = o_S - mean memorization of S: by its definition, memorization is what accuracy on an example
    loses when the example is left out of training. Proposed here.

    >>> forget, retain = Examples(torch.rand(4, 2), [0, 1, 0, 1]).split([True, True, False, False])
    >>> model = torch.nn.Linear(2, 2)
    >>> Memorized(Score("none is memorized", [0.0] * 4))(model, model, forget, retain)
    1.0
    """

    score: Score

    def __call__(self, model: nn.Module, original: nn.Module, forget: Examples, retain: Examples) -> float:
        expected = accuracy(original, forget) - self.score.of(forget).mean().item()
        return _near(model, original, forget, retain, min(max(expected, 0.0), 1.0))


@dataclass(frozen=True)
class JensenShannon:
    """RF-JSD: the unlearned model on the forget set, class by class, against the original on held-out data.

    (1 - JSD / ln 2) (1 - |a_R - o_R|): JSD the divergence of the two mean predictions for a class, averaged over the
    examples of the forget set; the second factor as in `HeldOut`. Raises ValueError as it does.

    Source: LoTUS, CVPR 2025 (arXiv 2503.18314).
    """

    validation: Examples

    def __call__(self, model: nn.Module, original: nn.Module, forget: Examples, retain: Examples) -> float:
        ours, theirs = predict(model, forget).softmax(1), predict(original, self.validation).softmax(1)
        total = 0.0
        for c in _classes(forget, self.validation):
            p, q = ours[forget.y == c].mean(0), theirs[self.validation.y == c].mean(0)
            total += int((forget.y == c).sum()) * jensen_shannon(p, q).item()
        kept = 1 - abs(accuracy(model, retain) - accuracy(original, retain))
        return (1 - total / len(forget) / math.log(2)) * kept


def _classes(forget: Examples, validation: Examples) -> list[int]:
    """The classes of the forget set, of each of which there must be a held-out example."""
    classes = forget.y.unique().tolist()
    missing = sorted(set(classes) - set(validation.y.tolist()))
    if missing:
        raise ValueError(f"no held-out example of class {', '.join(map(str, missing))}, which the forget set has")
    return classes


def _near(model: nn.Module, other: nn.Module, forget: Examples, retain: Examples, expected: float) -> float:
    """ToW on forget and retain set against the other model, of which `expected` is the accuracy on the forget set."""
    dS = abs(accuracy(model, forget) - expected)
    dR = abs(accuracy(model, retain) - accuracy(other, retain))
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

    For each part it first tries to do nothing and then the candidates, until the judge holds one to be good enough,
    considering all that has been unlearned so far, or the budget is spent; then it goes on with the best of those
    tried. A candidate that diverges is passed over.

    refine      forget set -> list of its parts, e.g. `Refine`
    candidates  algorithms
    judge       ``(model, original, forget, retain) -> float``: how near, where 1 means as retrained
    orders      sequences of the parts to try, of which the one with the best end is taken; None: last part to first
    enough      the estimate at which no further candidate is tried
    budget      of each order: examples passed through training, in units of the retain set
    waiting     as in `RUM`

    Proposed here. Raises ValueError for a judge that gives NaN.
    """

    refine: Callable[[Examples], list[Examples]]
    candidates: tuple
    judge: Callable[[nn.Module, nn.Module, Examples, Examples], float]
    orders: tuple[tuple[int, ...], ...] | None = None
    enough: float = 0.97
    budget: float = math.inf
    waiting: str = "retain"

    def __post_init__(self):
        for name, example in (("refine", "Refine(score, parts=3)"), ("judge", "HeldOut(validation)")):
            if not callable(getattr(self, name)):
                raise TypeError(f"AutoRUM: {name} must be a function, e.g. {example}; got {getattr(self, name)!r}")
        object.__setattr__(self, "candidates", as_algorithms(self.candidates, "candidates"))
        if self.orders is not None and not self.orders:
            raise ValueError("orders names the sequences to try; give at least one, or None")
        for order in self.orders or ():
            as_order(order, len(order))
        check_fields(self, waiting=("retain", "leave_out"), budget="(0, inf]", enough="[-inf, inf]")

    def __call__(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int = 0) -> nn.Module:
        return self.settle(model, forget, retain, seed=seed)[1]

    def settle(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int = 0) -> tuple[RUM, nn.Module]:
        """(the RUM that was chosen, the model that it unlearns to with this seed)."""
        found = [list(self.choices(model, forget, retain, order, seed=seed)) for order in self.orders or (None,)]
        best = max(found, key=lambda choices: choices[-1].estimate)
        steps = {choice.part: choice.step for choice in best}
        chosen = RUM(self.refine, tuple(steps[part] for part in range(len(steps))), tuple(steps), self.waiting)
        return chosen, best[-1].model

    def choices(self, model: nn.Module, forget: Examples, retain: Examples, order: tuple[int, ...] | None = None, *,
                seed: int = 0) -> Iterator[Choice]:
        """Part by part, what is chosen."""
        validate_inputs(model, forget, retain)
        seed, original, parts, gone = as_seed(seed), model, self.refine(forget), None
        check_parts(parts, forget)
        order = as_order(order, len(parts)) or tuple(reversed(range(len(parts))))
        with cost() as spent:
            for k, (part, known) in enumerate(sequence(parts, order, retain, self.waiting)):
                gone = parts[part] if gone is None else gone + parts[part]
                best = None
                for step in (Keep(), *self.candidates):
                    if best and (best.estimate >= self.enough or spent.examples > self.budget * len(retain)):
                        break
                    applied = step.within(original) if hasattr(step, "within") else step
                    try:
                        tried = applied(model, parts[part], known, seed=seed + k)
                    except FloatingPointError:
                        continue
                    estimate = self.judge(tried, original, gone, retain)
                    if not hasattr(estimate, "__float__") or math.isnan(estimate):
                        raise ValueError(f"the judge must give a number, 1 for as retrained; {self.judge!r} gave "
                                         f"{'NaN' if hasattr(estimate, '__float__') else repr(estimate)}")
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
    the real forget set. It costs two trainings of about the size of the subset.

    auto        refined by a score from `rumlib.memorization`, which keeps what its models saw
    make_model  what the estimator trained, and with which
    recipe
    number      which model of the estimator

    Source: the idea of Twin Machine Unlearning (arXiv 2501.08615), here per part and with memorization.
    """

    auto: AutoRUM
    make_model: Factory
    recipe: Recipe
    number: int = 0

    def __post_init__(self):
        if not isinstance(self.auto, AutoRUM) or not isinstance(self.recipe, Recipe):
            raise TypeError(f"Calibrated needs an AutoRUM, a factory and a Recipe; got {type(self.auto).__name__}, "
                            f"{type(self.make_model).__name__} and {type(self.recipe).__name__}")
        bank = getattr(getattr(self.auto.refine, "score", None), "bank", None)
        if bank is None:
            raise ValueError("a twin needs the subset models of the memorization estimator: refine by a score from "
                             "rumlib.memorization, which keeps what they saw")
        check_fields(self, number=f"int [0, {len(bank.included)})")      # the models of the estimator

    def __call__(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int = 0) -> nn.Module:
        return self.settle(model, forget, retain, seed=seed)[1]

    def settle(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int = 0) -> tuple[RUM, nn.Module]:
        """(the RUM that was chosen on the twin, the model that it unlearns to with this seed)."""
        validate_inputs(model, forget, retain)
        gone, known = self.twin(forget, retain)
        reference = fit(self.make_model, known, self.recipe, seed=derive_seed(seed, "twin", self.number))
        original = fit(self.make_model, known + gone, self.recipe, seed=derive_seed(seed, "twin", self.number))

        def judge(model, original, forget, retain):
            return _near(model, reference, forget, retain, accuracy(reference, forget))

        chosen, _ = replace(self.auto, judge=judge).settle(original, gone, known, seed=seed)
        return chosen, chosen(model, forget, retain, seed=seed)

    def twin(self, forget: Examples, retain: Examples, *, max_gap: float = 0.25) -> tuple[Examples, Examples]:
        """(forget, retain) of the twin: matched examples from outside the subset, and the subset.

        Each example of the forget set is matched with another of its class whose score differs by at most `max_gap`, no
        one twice, so that the differences are smallest in all. Those without a match are left out.
        """
        from scipy.optimize import linear_sum_assignment  # here: it takes an eighth of the time to import rumlib

        score, everything = self.auto.refine.score, forget + retain
        inside = Score("in the subset", score.bank.included[self.number].float(), score.index)
        known = everything[inside.of(everything) == 1]
        pool = retain[inside.of(retain) == 0]
        far = (score.of(forget)[:, None] - score.of(pool)).abs() + 10.0 * (forget.y[:, None] != pool.y)
        rows, columns = linear_sum_assignment(far.numpy())
        chosen = torch.as_tensor(columns)[far[rows, columns] <= max_gap]
        if len(chosen) < len(self.auto.refine):
            raise ValueError(f"only {len(chosen)} of {len(forget)} examples have a match outside the subset: a twin of "
                             f"this forget set cannot be made")
        return pool[chosen.sort().values], known
