"""Unlearning by false labels, and by choosing which weights may learn: RandomLabel, SalUn."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rumlib.algorithms.base import Algorithm, count, validate_inputs, xent
from rumlib.data import Examples, as_input
from rumlib.device import check_fields, is_official
from rumlib.graphs import recordable
from rumlib.train import count_examples


@dataclass(frozen=True)
class RandomLabel(Algorithm):
    """Teach random labels for the forget set amid the retain set.

    CE of the shuffled union; the false labels are drawn anew each epoch, uniformly over all classes, the true one
    included.

    Source: Graves et al., AAAI 2021 (arXiv 2010.10981); "RL_og" of the official code of RUM.
    """

    seed_name = "RandomLabel"

    def batches(self, forget, retain, epoch):
        y = torch.randint(epoch.classes(forget), (len(forget),), generator=epoch.random)
        relabelled = Examples(forget.x, y, forget.index)
        for batch in epoch.shuffled(relabelled + retain):
            yield None, batch

    def steps(self, forget, retain):
        return self.epochs * count(forget + retain, self.batch_size)

    @recordable
    def loss(self, model, original, _, mixed):
        return xent(model, mixed)


@dataclass(frozen=True)
class SalUn:
    """Let the inner algorithm move only the weights that matter most to the forget set.

    inner   an `Algorithm`
    keep    the share of all weights that may learn: those with the largest saliency, the |gradient of the forget loss|
            at the original model; the others stay bit-identical, weight decay and momentum included
    mask    "hard", or a soft mask that multiplies gradients by a function of s, the saliency in units of the least one
            that `keep` would let learn: "sigmoid", 1 / (1 + exp(1 - s)), or "tanh", tanh(s)
    compat  "official": what the code of RUM does. The model takes SGD steps up the forget loss, at lr 0.01, while
            gradients are summed; the int(keep * n) weights with the smallest sums may learn; as only gradients are
            masked, weight decay and momentum move the other weights all the same. In every step of a RUM the mask is
            made from the model before the first step

    Raises TypeError for an inner algorithm whose weights cannot be restricted, ValueError for values out of range.

    Source: Fan et al., ICLR 2024 (arXiv 2310.12508); RUM (arXiv 2406.01257) keeps 0.3 to 0.7.
    """

    inner: Algorithm
    keep: float = 0.5
    mask: str = "hard"
    compat: str | None = None

    def __post_init__(self):
        if not isinstance(self.inner, Algorithm):
            raise TypeError(f"SalUn needs an Algorithm whose weights it can restrict, e.g. SalUn(RandomLabel()); "
                            f"got {self.inner!r}")
        check_fields(self, keep="(0, 1]", mask=("hard", "sigmoid", "tanh"))
        if is_official(self.compat) and self.mask != "hard":
            raise ValueError(f"compat='official' knows the hard mask only; got mask={self.mask!r}")

    def __call__(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int = 0,
                 original: nn.Module | None = None) -> nn.Module:
        """The contract; with compat="official" the mask is made from `original`, if it is given."""
        validate_inputs(model, forget, retain)
        if self.compat:
            only = published_mask(model if original is None else original, forget, self.keep, self.inner.batch_size)
        elif self.mask == "hard":
            only = saliency_mask(model, forget, self.keep)
        else:
            only = soft_mask(model, forget, self.keep, self.mask)
        return self.inner.unlearn(model, forget, retain, seed=seed, only=only)

    def within(self, original: nn.Module | None) -> Callable:
        """This algorithm as a step of a RUM that began with `original` (see `rumlib.rum.RUM`)."""
        if self.compat and original is None:
            raise ValueError("compat='official' makes its mask from the model before the first step: give "
                             "stages(..., original=...)")
        return partial(self, original=original) if self.compat else self


def saliency_mask(model: nn.Module, forget: Examples, keep: float) -> dict[str, Tensor]:
    """Parameter name -> bool tensor, True for the share `keep` of all weights with the largest |sum of gradients|."""
    size = saliency(model, forget)
    return largest(size, round(keep * sum(s.numel() for s in size.values())))


def published_mask(model: nn.Module, forget: Examples, keep: float, batch_size: int) -> dict[str, Tensor]:
    """Name -> 1.0 for the int(keep * n) of all n weights with the smallest |sum of gradients|, taken while the model
    climbs the loss at the published learning rate, else 0.0: a factor for gradients."""
    size = saliency(model, forget, batch_size, climb=0.01)
    number = int(keep * sum(s.numel() for s in size.values()))
    return {name: chosen.float() for name, chosen in largest({k: -s for k, s in size.items()}, number).items()}


def soft_mask(model: nn.Module, forget: Examples, keep: float, mask: str) -> dict[str, Tensor]:
    """Name -> factors for gradients, from 0 to 1 (see `SalUn`)."""
    size = saliency(model, forget)
    flat = torch.cat([s.flatten() for s in size.values()])
    unit = flat.topk(max(round(keep * len(flat)), 1)).values[-1].clamp(min=torch.finfo(flat.dtype).tiny)
    return {name: torch.sigmoid(s / unit - 1) if mask == "sigmoid" else torch.tanh(s / unit)
            for name, s in size.items()}


def saliency(model: nn.Module, forget: Examples, batch_size: int = 256, *,
             climb: float | None = None) -> dict[str, Tensor]:
    """Name -> |sum of gradients| of the loss of all examples, in eval mode; with `climb`, a learning rate, of the mean
    losses of the batches, while a copy of the model takes an SGD step up after each."""
    model = copy.deepcopy(model).eval()
    weight = next(model.parameters())
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=climb or 0.0, momentum=0.9, weight_decay=5e-4)    # official
    for x, y in zip(forget.x.split(batch_size), forget.y.split(batch_size), strict=True):
        optimizer.zero_grad()
        with torch.enable_grad():
            logits = model(as_input(x, weight))
            loss = -F.cross_entropy(logits, y.to(logits.device), reduction="mean" if climb else "sum")
            loss.backward()
        count_examples(len(y))
        for name, p in model.named_parameters():
            if p.grad is not None:                           # a frozen weight has none
                total[name] += p.grad
        if climb:
            optimizer.step()
    return {name: gradient.abs() for name, gradient in total.items()}


def largest(size: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    """Name -> bool tensor, True for so many of all weights, the largest."""
    flat = torch.cat([s.flatten() for s in size.values()])
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[flat.topk(number).indices] = True
    parts = chosen.split([s.numel() for s in size.values()])
    return {name: part.view_as(s) for (name, s), part in zip(size.items(), parts, strict=True)}
