"""RUM, the refined-unlearning meta-algorithm: cut the forget set into homogeneous parts, unlearn each with the
algorithm that suits it, in sequence (NeurIPS 2024, section 5).

    refine = Refine(memorization, parts=3)                   # low, medium, high
    rum = RUM(refine, steps=(Keep(), Finetune(), SalUn(RandomLabel())))
    unlearned = rum(model, forget, retain, seed=0)           # an algorithm like any other, also a step of another RUM
    RUM(refine, steps=(Finetune(),) * 3)                     # RUM^F: refinement alone
    RUM(Shuffled(parts=3), steps=(Finetune(),) * 3)          # its control: as many passes, random parts
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from rumlib.algorithms.base import accept
from rumlib.data import Examples
from rumlib.scores import Score
from rumlib.train import derive

WAITING = ("retain", "leave_out")


@dataclass(frozen=True)
class Refine:
    """Cut a forget set into equal parts, ascending in a score: disjoint, covering, sizes differing by at most one."""

    score: Score
    parts: int = 3

    def __post_init__(self):
        _check_parts(self.parts)

    def __call__(self, forget: Examples) -> list[Examples]:
        return _cut(forget, self.score.of(forget).argsort(stable=True), self.parts)


@dataclass(frozen=True)
class Shuffled:
    """Cut a forget set into equal parts at random: what refinement has to be compared with."""

    parts: int = 3
    seed: int = 0

    def __post_init__(self):
        _check_parts(self.parts)

    def __call__(self, forget: Examples) -> list[Examples]:
        random = torch.Generator().manual_seed(derive(self.seed, "shuffled parts"))
        return _cut(forget, torch.randperm(len(forget), generator=random), self.parts)


@dataclass(frozen=True)
class RUM:
    """Unlearn part after part; steps[k] is the algorithm for part k, `order` the sequence (None: 0, 1, 2, ...).

    Step by step the model of the step before is unlearned further. Its retain set is all data minus the parts
    unlearned so far, the present one included: parts that still wait count as retained (waiting="retain", as the
    published code does for memorization) or are left out of it (waiting="leave_out", as it does for entanglement).
    """

    refine: Callable[[Examples], list[Examples]]
    steps: tuple
    order: tuple[int, ...] | None = None
    waiting: str = "retain"

    def __post_init__(self):
        object.__setattr__(self, "steps", tuple(self.steps))
        parts = getattr(self.refine, "parts", len(self.steps))
        if len(self.steps) != parts or not self.steps:
            raise ValueError(f"{parts} parts need {parts} steps, one algorithm each; got {len(self.steps)}")
        for step in self.steps:
            if not callable(step):
                raise TypeError(f"a step is an algorithm, e.g. Finetune(); got {step!r}")
        if self.order is not None and sorted(self.order) != list(range(parts)):
            raise ValueError(f"order must name each of the parts 0..{parts - 1} once; got {self.order}")
        if self.waiting not in WAITING:
            raise ValueError(f"waiting must be one of {', '.join(WAITING)}; got {self.waiting!r}")

    def __call__(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int = 0) -> nn.Module:
        *_, (_, unlearned) = self.stages(model, forget, retain, seed=seed)
        return unlearned

    def stages(self, model: nn.Module, forget: Examples, retain: Examples, *,
               seed: int = 0) -> Iterator[tuple[int, nn.Module]]:
        """(part number, model after its step), step by step."""
        accept(model, forget, retain)
        parts = self.refine(forget)
        if len(parts) != len(self.steps):
            raise ValueError(f"{self.refine!r} gave {len(parts)} parts for {len(self.steps)} steps, one algorithm each")
        order = self.order or tuple(range(len(parts)))
        for k, part in enumerate(order):
            known = retain
            if self.waiting == "retain":                     # not yet forgotten, so still known
                known = sum((parts[later] for later in order[k + 1:]), start=retain)
            model = self.steps[part](model, parts[part], known, seed=seed + k)
            yield part, model


def _check_parts(parts: int) -> None:
    if parts < 1:
        raise ValueError(f"parts must be at least 1; got {parts}")


def _cut(forget: Examples, order: torch.Tensor, parts: int) -> list[Examples]:
    if len(forget) < parts:
        raise ValueError(f"a forget set of {len(forget)} examples cannot be cut into {parts} parts")
    return [forget[rows.sort().values] for rows in order.tensor_split(parts)]
