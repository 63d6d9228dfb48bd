"""The contract of everything that unlearns, and the three algorithms that need no loss of their own.

An algorithm is any callable ``(model, forget, retain, *, seed) -> model`` that leaves `model` as it was and returns a
new one. Most are subclasses of `Algorithm` and hold their hyper-parameters as fields and their idea in `loss`:

    @dataclass(frozen=True)
    class Uniform(Algorithm):
        weight: float = 0.5

        def loss(self, model, original, forget, retain):
            ...
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rumlib.data import Examples
from rumlib.graphs import recordable
from rumlib.models import Factory, describe
from rumlib.train import (
    Batch,
    Recipe,
    batch_count,
    check_compatible,
    count_passes,
    descend,
    fit,
    predict,
    seeded,
    shuffled,
)


@dataclass(frozen=True)
class Algorithm:
    """Unlearning by descent on a loss. The fields are the hyper-parameters, the repr is the identity of a run.

    A subclass writes `loss`, and `batches` where an epoch is not "one step per retain batch, each paired with a
    forget batch". Defaults of the fields follow the official code (SGD with momentum 0.9 and weight decay 5e-4,
    constant learning rate).
    """

    epochs: int = 5
    lr: float = 0.01
    batch_size: int = 256
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "constant"
    clip: float | None = None
    amp: bool = False

    def __post_init__(self):
        self.recipe()                                        # refuses impossible values

    def recipe(self) -> Recipe:
        return Recipe(epochs=self.epochs, lr=self.lr, batch_size=self.batch_size, momentum=self.momentum,
                      weight_decay=self.weight_decay, schedule=self.schedule, clip=self.clip, amp=self.amp)

    def __call__(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int = 0,
                 only: dict[str, Tensor] | None = None, start: nn.Module | None = None) -> nn.Module:
        """A new model without `forget`. `only` restricts learning to some weights (see `rumlib.train.descend`);
        `start` is the model that learning starts from, if not from `model`."""
        validate_inputs(model, forget, retain)
        original = copy.deepcopy(model).eval().requires_grad_(False)
        student = copy.deepcopy(model if start is None else start)
        with seeded(seed, type(self).__name__) as random:
            prepared = self.prepare(original, forget, retain)

            def stream():
                for number in range(self.epochs):
                    epoch = Epoch(number, self.epochs, self.batch_size, original, random, prepared)
                    if self.done(student, epoch):
                        return
                    count_passes()
                    yield from self.batches(forget, retain, epoch)

            def loss(student, *batch):
                return self.loss(student, original, *batch)

            if getattr(self.loss, "recordable", False):
                recordable(loss)
            return descend(student, stream(), loss, self.recipe(), steps=self.steps(forget, retain), only=only)

    def prepare(self, original: nn.Module, forget: Examples, retain: Examples):
        """What all epochs need and is made once, under the seed: they find it in `Epoch.prepared`."""
        return None

    def done(self, model: nn.Module, epoch: Epoch) -> bool:
        """Whether to stop before this epoch."""
        return False

    def loss(self, model: nn.Module, original: nn.Module, forget: Batch, retain: Batch) -> Tensor:
        """What a step minimises: `model` is the student in train mode, `original` the frozen model in eval mode; the
        rest is what `batches` yields. Marked with `rumlib.graphs.recordable`, which is a promise, it can run several
        times faster on a GPU."""
        raise NotImplementedError(f"{type(self).__name__} must define loss(model, original, forget, retain)")

    def batches(self, forget: Examples, retain: Examples, epoch: Epoch) -> Iterator[tuple]:
        """The steps of one epoch: each item is what `loss` is given. By default one step per retain batch; the forget
        batches of the epoch come round again in the same order."""
        around = cycle(list(epoch.shuffled(forget)))
        for batch in epoch.shuffled(retain):
            yield next(around), batch

    def steps(self, forget: Examples, retain: Examples) -> int:
        """How many steps all epochs take if none is left out, for schedules."""
        return self.epochs * count(retain, self.batch_size)


@dataclass(frozen=True)
class Epoch:
    """What an algorithm may ask for while it lays out an epoch."""

    number: int                                              # from 0
    of: int                                                  # how many there are
    batch_size: int
    original: nn.Module
    random: torch.Generator
    prepared: object = None                                  # what `Algorithm.prepare` made

    def shuffled(self, examples: Examples) -> Iterator[Batch]:
        """`examples` once, in random order, in batches on the device of the model."""
        return shuffled(examples, self.batch_size, self.random, weight=next(self.original.parameters()))

    def classes(self, examples: Examples) -> int:
        """How many classes the model knows."""
        return predict(self.original, examples[:2]).shape[1]


def count(examples: Examples, batch_size: int) -> int:
    """Number of batches in one pass."""
    return batch_count(len(examples), batch_size)


@dataclass(frozen=True)
class Keep:
    """Do nothing: what RUM does to examples that the model would classify the same without having seen them."""

    def __call__(self, model, forget, retain, *, seed=0):
        validate_inputs(model, forget, retain)
        return copy.deepcopy(model).eval()


@dataclass(frozen=True, repr=False)
class Retrain:
    """Train anew on the retain set: the oracle that all others are measured against."""

    make_model: Factory
    recipe: Recipe

    def __post_init__(self):
        if isinstance(self.make_model, nn.Module):
            raise TypeError("Retrain needs a factory, a function that makes a new model, and not a trained model")

    def __call__(self, model, forget, retain, *, seed=0):
        validate_inputs(model, forget, retain)
        return fit(self.make_model, retain, self.recipe, seed=seed)

    def __repr__(self) -> str:
        return f"Retrain({describe(self.make_model)}, {self.recipe})"


def validate_inputs(model: nn.Module, forget: Examples, retain: Examples) -> None:
    """Refuse, before anything is trained, what cannot be unlearned."""
    for name, examples in (("forget", forget), ("retain", retain)):
        if not len(examples):
            raise ValueError(f"the {name} set is empty")
        check_compatible(model, examples)


def official(compat: str | None) -> bool:
    """Whether compat="official" was asked for. Raises ValueError for anything but that and None."""
    if compat not in (None, "official"):
        raise ValueError(f'compat must be None or "official"; got {compat!r}')
    return compat is not None


def xent(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of the batch, averaged."""
    return F.cross_entropy(model(batch.x), batch.y)
