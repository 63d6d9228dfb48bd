"""RUM, the refined-unlearning meta-algorithm: cut the forget set into homogeneous parts, unlearn each with the
algorithm that suits it, in sequence (NeurIPS 2024, section 5).

    refine = Refine(memorization, parts=3)                   # equal parts: low, medium, high
    refine = Refine(memorization, parts=(0.25, 0.75))        # or cut where the score passes these values
    rum = RUM(refine, steps=(Keep(), Finetune(), SalUn(RandomLabel())))
    unlearned = rum(model, forget, retain, seed=0)           # an algorithm like any other, also a step of another RUM
    RUM(refine, steps=(Finetune(),) * 3)                     # RUM^F: refinement alone
    RUM(Shuffled(parts=3), steps=(Finetune(),) * 3)          # its control: as many passes, random parts
    for stage in rum.stages(model, forget, retain): ...      # what happens on the way
    for request in stream(rum, model, requests, retain): ... # one request for deletion after the other
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import NamedTuple

import torch
from torch import nn

from rumlib.algorithms.base import validate_inputs
from rumlib.data import Examples
from rumlib.scores import Score
from rumlib.train import derive_seed

WAITING = ("retain", "leave_out")


NAMES = {2: ("low", "high"), 3: ("low", "medium", "high")}


@dataclass(frozen=True)
class Refine:
    """Cut a forget set into parts, ascending in a score: disjoint and covering.

    `parts` is their number, then sizes differ by at most one; or the values at which to cut, ascending, then part k
    holds the scores from the k-th value (included) to the next. Raises ValueError for a part that would be empty.
    """

    score: Score
    parts: int | tuple[float, ...] = 3

    def __post_init__(self):
        if not isinstance(self.parts, int):
            object.__setattr__(self, "parts", tuple(float(value) for value in self.parts))
            if not all(a < b for a, b in pairwise((-inf, *self.parts))):         # nor NaN
                raise ValueError(f"the values at which to cut must ascend; got parts={self.parts}")
        _check_parts(len(self))

    def __len__(self) -> int:
        return self.parts if isinstance(self.parts, int) else len(self.parts) + 1

    @property
    def names(self) -> tuple[str, ...]:
        """What the parts are called: low, medium and high, or by number."""
        return NAMES.get(len(self), tuple(f"part {k}" for k in range(1, len(self) + 1)))

    def __call__(self, forget: Examples) -> list[Examples]:
        values = self.score.of(forget)
        if isinstance(self.parts, int):
            return _cut(forget, values.argsort(stable=True), self.parts)
        part = torch.bucketize(values, torch.tensor(self.parts), right=True)
        empty = [name for k, name in enumerate(self.names) if not (part == k).any()]
        if empty:
            raise ValueError(f"cut at {self.parts}, {', '.join(empty)} of {self.score.name} would be empty: the forget "
                             f"set has {values.min():.3g} to {values.max():.3g}; choose other values, or a number of "
                             f"equal parts")
        return [forget[part == k] for k in range(len(self))]


@dataclass(frozen=True)
class Shuffled:
    """Cut a forget set into equal parts at random: what refinement has to be compared with."""

    parts: int = 3
    seed: int = 0

    def __post_init__(self):
        _check_parts(self.parts)

    def __len__(self) -> int:
        return self.parts

    def __call__(self, forget: Examples) -> list[Examples]:
        random = torch.Generator().manual_seed(derive_seed(self.seed, "shuffled parts"))
        return _cut(forget, torch.randperm(len(forget), generator=random), self.parts)


class Stage(NamedTuple):
    """What a step has done: number of the part, its examples, the algorithm, and the model after it."""

    part: int
    forget: Examples
    step: Callable
    model: nn.Module


@dataclass(frozen=True)
class RUM:
    """Unlearn part after part; steps[k] is the algorithm for part k, `order` the sequence (None: 0, 1, 2, ...).

    Step by step the model of the step before is unlearned further. Its retain set is all data minus the parts
    unlearned so far, the present one included: parts that still wait count as retained (waiting="retain", as the
    published code does for memorization) or are left out of it (waiting="leave_out", as it does for entanglement).
    An error in a step carries a note of the step, its part and its seed.
    """

    refine: Callable[[Examples], list[Examples]]
    steps: tuple
    order: tuple[int, ...] | None = None
    waiting: str = "retain"

    def __post_init__(self):
        object.__setattr__(self, "steps", tuple(self.steps))
        parts = len(self.refine) if hasattr(self.refine, "__len__") else len(self.steps)
        if len(self.steps) != parts or not self.steps:
            raise ValueError(f"{parts} parts need {parts} steps, one algorithm each; got {len(self.steps)}")
        for step in self.steps:
            if not callable(step):
                raise TypeError(f"a step is an algorithm, e.g. Finetune(); got {step!r}")
        check_order(self.order, parts, self.waiting)

    def __call__(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int = 0) -> nn.Module:
        *_, last = self.stages(model, forget, retain, seed=seed)
        return last.model

    def stages(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int = 0,
               done: int = 0) -> Iterator[Stage]:
        """Step by step what has happened. With `done`, that many steps are left out: `model` is the one after them."""
        validate_inputs(model, forget, retain)
        parts = self.refine(forget)
        if len(parts) != len(self.steps):
            raise ValueError(f"{self.refine!r} gave {len(parts)} parts for {len(self.steps)} steps, one algorithm each")
        for k, (part, known) in enumerate(sequence(parts, self.order, retain, self.waiting)):
            if k >= done:
                try:
                    model = self.steps[part](model, parts[part], known, seed=seed + k)
                except Exception as problem:
                    problem.add_note(f"in step {k + 1} of {len(parts)}: {self.steps[part]!r} on part {part} "
                                     f"({len(parts[part])} examples, {parts[part].digest}), seed {seed + k}")
                    raise
                yield Stage(part, parts[part], self.steps[part], model)


def sequence(parts: list[Examples], order: tuple[int, ...] | None, retain: Examples,
             waiting: str) -> Iterator[tuple[int, Examples]]:
    """(part number, retain set of its step), in order."""
    order = order or tuple(range(len(parts)))
    for k, part in enumerate(order):
        later = order[k + 1:] if waiting == "retain" else ()             # not yet forgotten, so still known
        yield part, sum((parts[other] for other in later), start=retain)


def check_order(order: tuple[int, ...] | None, parts: int, waiting: str) -> None:
    if order is not None and sorted(order) != list(range(parts)):
        raise ValueError(f"order must name each of the parts 0..{parts - 1} once; got {order}")
    if waiting not in WAITING:
        raise ValueError(f"waiting must be one of {', '.join(WAITING)}; got {waiting!r}")


class Request(NamedTuple):
    """What a request for deletion has led to: all that is gone by now, all that is left, the model, and whether it was
    trained anew."""

    gone: Examples
    retain: Examples
    model: nn.Module
    renewed: bool


def stream(algorithm: Callable, model: nn.Module, requests: Iterable[Examples], retain: Examples, *, seed: int = 0,
           retrain: Callable | None = None,
           renew: Callable[[nn.Module, Examples, Examples], bool] | None = None) -> Iterator[Request]:
    """Unlearn one request after the other, each from the model that the one before has left.

    `requests` are disjoint parts of the training data and `retain` is the rest of it: requests still to come are known
    until they come. After each, ``renew(model, gone, retain)`` may say that the model has drifted too far: then
    `retrain` (an algorithm, e.g. `Retrain`) makes it anew from what is left.
    """
    if (retrain is None) != (renew is None):
        raise ValueError("renew says when to retrain and retrain says how: give both or neither")
    requests, gone = list(requests), None
    for k, request in enumerate(requests):
        left = sum(requests[k + 1:], start=retain)
        gone = request if gone is None else gone + request
        model = algorithm(model, request, left, seed=seed + k)
        renewed = renew is not None and renew(model, gone, left)
        if renewed:
            model = retrain(model, gone, left, seed=seed + k)
        yield Request(gone, left, model, renewed)


def _check_parts(parts: int) -> None:
    if parts < 1:
        raise ValueError(f"parts must be at least 1; got {parts}")


def _cut(forget: Examples, order: torch.Tensor, parts: int) -> list[Examples]:
    if len(forget) < parts:
        raise ValueError(f"a forget set of {len(forget)} examples cannot be cut into {parts} parts")
    return [forget[rows.sort().values] for rows in order.tensor_split(parts)]
