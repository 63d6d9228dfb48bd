"""RUM, the refined-unlearning meta-algorithm: cut the forget set into homogeneous parts, unlearn each with the
algorithm that suits it, in sequence (arXiv 2406.01257, section 5).

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

import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import NamedTuple

import torch
from torch import nn

from rumlib.algorithms.base import validate_inputs
from rumlib.data import Examples
from rumlib.device import as_seed, check_fields
from rumlib.scores import Score
from rumlib.train import derive_seed

NAMES = {2: ("low", "high"), 3: ("low", "medium", "high")}


@dataclass(frozen=True)
class Refine:
    """Cut a forget set into parts, ascending in a score: disjoint and covering.

    score  of each example (see `rumlib.scores.Score`)
    parts  their number: then sizes differ by at most one. Or the values at which to cut, ascending: then part k holds
           the scores from the k-th value (included) to the next

    A call with a forget set returns the list of its parts. Raises ValueError for a part that would be empty.

    Source: arXiv 2406.01257, section 5: three parts by memorization.

    >>> forget = Examples(torch.rand(6, 2), [0] * 6)
    >>> [part.index.tolist() for part in Refine(Score("loss", [6, 5, 4, 3, 2, 1]), parts=3)(forget)]
    [[4, 5], [2, 3], [0, 1]]
    """

    score: Score
    parts: int | tuple[float, ...] = 3

    def __post_init__(self):
        if isinstance(self.parts, str) or not isinstance(self.parts, Iterable):
            check_fields(self, parts="int [1, inf)")
            return
        try:
            values = tuple(float(value + 0.0) for value in self.parts)
        except TypeError:
            raise TypeError(f"parts is a number of parts, or the values at which to cut; got {self.parts!r}") from None
        if not all(a < b for a, b in pairwise((-inf, *values, inf))):            # nor NaN
            raise ValueError(f"the values at which to cut must ascend and be finite; got parts={values}")
        object.__setattr__(self, "parts", values)

    def __len__(self) -> int:
        return len(self.parts) + 1 if isinstance(self.parts, tuple) else self.parts

    @property
    def names(self) -> tuple[str, ...]:
        """What the parts are called: low, medium and high, or by number."""
        return NAMES.get(len(self), tuple(f"part {k}" for k in range(1, len(self) + 1)))

    def __call__(self, forget: Examples) -> list[Examples]:
        values = self.score.of(forget)
        if not isinstance(self.parts, tuple):
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
    """Cut a forget set into that many equal parts at random, drawn from `seed`: what refinement is compared with.

    A call with a forget set returns the list of its parts. Raises ValueError where there are more parts than examples.

    Source: "shuffle" of arXiv 2406.01257, section 6.

    >>> [len(part) for part in Shuffled(parts=3)(Examples(torch.rand(7, 2), [0] * 7))]
    [3, 2, 2]
    """

    parts: int = 3
    seed: int = 0

    def __post_init__(self):
        check_fields(self, parts="int [1, inf)")
        as_seed(self.seed)

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
    """Unlearn part after part. Step by step, the model of the step before is unlearned further.

    refine   forget set -> list of its parts, e.g. `Refine` or `Shuffled`
    steps    steps[k] is the algorithm for part k
    order    the sequence of the parts; None: 0, 1, 2, ...
    waiting  "retain": the retain set of a step is all data minus the parts unlearned so far, the present one included.
             "leave_out": parts that still wait are not in it, as the official code has it for entanglement

    Step k of the sequence is given seed + k, and its method `within(original)`, if it has one, the model before the
    first step (see `SalUn`). Raises ValueError or TypeError where steps, parts and order do not fit; an error in a step
    carries a note of the step, its part and its seed.

    Source: arXiv 2406.01257, section 5.
    """

    refine: Callable[[Examples], list[Examples]]
    steps: tuple
    order: tuple[int, ...] | None = None
    waiting: str = "retain"

    def __post_init__(self):
        if not callable(self.refine):
            raise TypeError(f"refine cuts a forget set into parts, e.g. Refine(score, parts=3); got {self.refine!r}")
        object.__setattr__(self, "steps", as_algorithms(self.steps, "steps"))
        parts = len(self.refine) if hasattr(self.refine, "__len__") else len(self.steps)
        if len(self.steps) != parts:
            raise ValueError(f"{parts} parts need {parts} steps, one algorithm each; got {len(self.steps)}")
        object.__setattr__(self, "order", as_order(self.order, parts))
        check_fields(self, waiting=("retain", "leave_out"))

    def __call__(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int = 0) -> nn.Module:
        *_, last = self.stages(model, forget, retain, seed=seed)
        return last.model

    def stages(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int = 0, done: int = 0,
               original: nn.Module | None = None) -> Iterator[Stage]:
        """Step by step what has happened. With `done`, that many steps are left out: `model` is the one after them, and
        `original` the one before the first (None: unknown)."""
        validate_inputs(model, forget, retain)
        seed, parts = as_seed(seed), self.refine(forget)
        check_parts(parts, forget)
        if len(parts) != len(self.steps):
            raise ValueError(f"{self.refine!r} gave {len(parts)} parts for {len(self.steps)} steps, one algorithm each")
        original = model if original is None and not done else original
        for k, (part, known) in enumerate(sequence(parts, self.order, retain, self.waiting)):
            if k >= done:
                step = self.steps[part]
                try:
                    step = step.within(original) if hasattr(step, "within") else step
                    model = step(model, parts[part], known, seed=seed + k)
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

    requests  disjoint parts of the training data; those still to come are known until they come
    retain    the rest of the training data
    renew     ``renew(model, gone, retain)`` may say, after a request, that the model has drifted too far: then
    retrain   (an algorithm, e.g. `Retrain`) makes it anew from what is left

    Yields a `Request` for each. Raises ValueError, before anything is trained, for sets that overlap.
    """
    if (retrain is None) != (renew is None):
        raise ValueError("renew says when to retrain and retrain says how: give both or neither")
    seed, requests, gone = as_seed(seed), list(requests), None
    for k, request in enumerate(requests):
        validate_inputs(model, request, sum(requests[k + 1:], start=retain))
    for k, request in enumerate(requests):
        left = sum(requests[k + 1:], start=retain)
        gone = request if gone is None else gone + request
        model = algorithm(model, request, left, seed=seed + k)
        renewed = renew is not None and renew(model, gone, left)
        if renewed:
            model = retrain(model, gone, left, seed=seed + k)
        yield Request(gone, left, model, renewed)


# -- What is refused --------------------------------------------------------------------------------------------------


def as_algorithms(steps: Iterable[Callable], name: str) -> tuple:
    """Algorithms as a tuple. Raises ValueError where there are none, TypeError for other things."""
    found = tuple(steps) if isinstance(steps, Iterable) else ()
    if isinstance(steps, Iterable) and not found:
        raise ValueError(f"{name} needs at least one algorithm, e.g. (Finetune(),); got ()")
    if not found or not all(callable(step) and not isinstance(step, type) for step in found):
        raise TypeError(f"{name} is a tuple of algorithms, e.g. (Keep(), Finetune()); got {steps!r}")
    return found


def as_order(order: Iterable[int] | None, parts: int) -> tuple[int, ...] | None:
    """The order as a tuple of ints, or None. Raises ValueError where it is not each of the parts once."""
    try:
        found = None if order is None else tuple(map(operator.index, order))
    except TypeError:
        found = ()
    if found is not None and sorted(found) != list(range(parts)):
        raise ValueError(f"order must name each of the parts 0..{parts - 1} once; got {order}")
    return found


def check_parts(parts: list[Examples], forget: Examples) -> None:
    """Raise ValueError where a refinement gave parts that are not the forget set, each example once; TypeError where it
    gave no list of Examples."""
    if not isinstance(parts, list | tuple) or not all(isinstance(part, Examples) for part in parts):
        raise TypeError(f"a refinement gives a list of Examples, e.g. [forget[mask], forget[~mask]]; got "
                        f"{parts!r:.200}")
    found = torch.cat([forget.index[:0], *(part.index for part in parts)])
    if not torch.equal(found.sort().values, forget.index.sort().values):
        raise ValueError(f"the parts must hold each example of the forget set once; they hold {len(found)} examples "
                         f"({len(found.unique())} different ones), the forget set {len(forget)}")


def _cut(forget: Examples, order: torch.Tensor, parts: int) -> list[Examples]:
    if len(forget) < parts:
        raise ValueError(f"a forget set of {len(forget)} examples cannot be cut into {parts} parts")
    return [forget[rows.sort().values] for rows in order.tensor_split(parts)]
