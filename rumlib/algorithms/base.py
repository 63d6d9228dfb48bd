"""The contract of everything that unlearns, and the three algorithms that need no loss of their own.

An algorithm is any callable ``(model, forget, retain, *, seed) -> model`` that leaves `model` as it was and returns a
new one. Most are subclasses of `Algorithm` and hold their hyper-parameters as fields and their idea in `loss`:

    @dataclass(frozen=True)
    class Uniform(Algorithm):
        weight: float = 0.5

        def loss(self, model, original, forget, retain):
            ...

In the formulas of this package, CE is the cross-entropy averaged over a batch; _f and _r stand for forget and retain
set; theta are the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rumlib.data import Batch, Examples, batch_count, check_disjoint, shuffled
from rumlib.device import check_fields
from rumlib.graphs import recordable
from rumlib.models import Factory, check_factory, describe
from rumlib.train import Recipe, check_compatible, count_passes, descend, fit, predict, seeded


@dataclass(frozen=True)
class Algorithm:
    """Unlearning by descent on a loss. The fields are the hyper-parameters, the repr is the identity of a run.

    epochs        passes over the data, as `batches` lays them out (by default over the retain set)
    lr            learning rate of SGD, above 0
    batch_size    examples per step; of each set, where a step sees both
    momentum      of SGD, as are
    weight_decay  (added to the gradient: lr * weight_decay * theta per step)
    schedule      of the learning rate, clip: largest norm of the gradient, amp: bf16 autocast (see `rumlib.Recipe`)

    The defaults follow the official code of RUM (arXiv 2406.01257): SGD with momentum 0.9 and weight decay 5e-4,
    constant learning rate. A subclass writes `loss`, and `batches` and `steps` where an epoch is not "one step per
    retain batch, each paired with a forget batch". `seed_name` is what the seeds of its random numbers derive from: a
    subclass that names none draws as its base does, and renaming a class changes no number. `rules` says what values
    the fields of a subclass may have (see `rumlib.device.check_values`).
    """

    epochs: int = 5
    lr: float = 0.01
    batch_size: int = 256
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "constant"
    clip: float | None = None
    amp: bool = False

    seed_name: ClassVar[str] = "Algorithm"
    rules: ClassVar[dict[str, str | tuple]] = {}

    def __post_init__(self):
        self.recipe()                                        # refuses impossible values
        check_fields(self, **self.rules)

    def recipe(self) -> Recipe:
        return Recipe(epochs=self.epochs, lr=self.lr, batch_size=self.batch_size, momentum=self.momentum,
                      weight_decay=self.weight_decay, schedule=self.schedule, clip=self.clip, amp=self.amp)

    def __call__(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int = 0) -> nn.Module:
        """A new model without `forget`, in eval mode; `model` is left as it was.

        Raises ValueError or TypeError, before anything is trained, for what `validate_inputs` refuses;
        FloatingPointError if the weights diverge.
        """
        validate_inputs(model, forget, retain)
        return self.unlearn(model, forget, retain, seed=seed)

    def unlearn(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int,
                only: dict[str, Tensor] | None = None, start: nn.Module | None = None) -> nn.Module:
        """What a call does with inputs that are valid, for algorithms made of this one. `only` restricts learning to
        some weights (see `rumlib.train.descend`); learning starts from `start`, if not from `model`."""
        check_mask(model, only)
        original = copy.deepcopy(model).eval().requires_grad_(False)
        student = copy.deepcopy(model if start is None else start)
        with seeded(seed, self.seed_name) as random:
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
    """Do nothing: what RUM does to examples that the model would classify the same without having seen them.

    Source: arXiv 2406.01257, section 5: the step for the least memorized part.

    >>> forget, retain = Examples(torch.rand(4, 2), [0, 1, 0, 1]).split([True, False, False, False])
    >>> model = nn.Linear(2, 2)
    >>> kept = Keep()(model, forget, retain)
    >>> kept is model, bool((kept.weight == model.weight).all())
    (False, True)
    """

    def __call__(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int = 0) -> nn.Module:
        validate_inputs(model, forget, retain)
        return copy.deepcopy(model).eval()


@dataclass(frozen=True, repr=False)
class Retrain:
    """Train anew on the retain set: the oracle that all others are measured against.

    make_model  a function that makes an untrained model
    recipe      how it is trained: the `rumlib.Recipe` of the original, for a fair comparison

    Raises TypeError for a model in place of the factory, ValueError for a factory whose models share their weights.
    """

    make_model: Factory
    recipe: Recipe

    def __post_init__(self):
        check_factory(self.make_model)
        if not isinstance(self.recipe, Recipe):
            raise TypeError(f"Retrain needs the Recipe of the original, e.g. Recipe(epochs=30); got {self.recipe!r}")

    def __call__(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int = 0) -> nn.Module:
        validate_inputs(model, forget, retain)
        return fit(self.make_model, retain, self.recipe, seed=seed)

    def __repr__(self) -> str:
        return f"Retrain({describe(self.make_model)}, {self.recipe})"


# -- What is refused --------------------------------------------------------------------------------------------------


def validate_inputs(model: nn.Module, forget: Examples, retain: Examples) -> None:
    """Refuse, before anything is trained, what cannot be unlearned.

    Raises TypeError for sets that are not `Examples`; ValueError for an empty set, for one that the model cannot take
    (see `rumlib.train.check_compatible`), and for a retain set that still holds examples of the forget set.
    """
    check_compatible(model, forget, "the forget set")
    check_compatible(model, retain, "the retain set")
    check_disjoint(forget, retain)


def check_mask(model: nn.Module, only: dict[str, Tensor] | None) -> None:
    """Raise ValueError for a mask that was made for another model."""
    for name, p in model.named_parameters() if only is not None else ():
        if p.requires_grad and (name not in only or only[name].shape != p.shape):
            raise ValueError(f"the mask is that of another model: it has nothing of shape {tuple(p.shape)} for the "
                             f"weights {name!r}")


def xent(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of the batch, averaged.

    >>> round(xent(torch.zeros_like, Batch(torch.rand(5, 2), torch.tensor([0, 1, 0, 1, 0]), torch.arange(5))).item(), 4)
    0.6931
    """
    return F.cross_entropy(model(batch.x), batch.y)
