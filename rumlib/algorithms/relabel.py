"""Unlearning by false labels, and by choosing which weights may learn: RandomLabel, SalUn."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rumlib.algorithms.base import Algorithm, count, official, validate_inputs, xent
from rumlib.data import Examples, as_input
from rumlib.graphs import recordable
from rumlib.train import count_examples


@dataclass(frozen=True)
class RandomLabel(Algorithm):
    """Teach random labels for the forget set amid the retain set.

    Cross-entropy of the shuffled union; the false labels are drawn anew each epoch, uniformly over all classes, the
    true one included. Graves et al., AAAI 2021; "RL_og" of the NeurIPS 2024 code.
    """

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
    """Let the inner algorithm move only the weights that matter most to the forget set. Fan et al., ICLR 2024.

    keep    the share of all weights that may learn: those with the largest saliency, the |gradient of the forget loss|
            at the original model; the others stay bit-identical, weight decay and momentum included
    mask    "hard", or a soft mask that multiplies gradients by a function of s, the saliency in units of the least one
            that `keep` would let learn: "sigmoid", 1 / (1 + exp(1 - s)), or "tanh", tanh(s)
    compat  "official": what the code of RUM does. The model takes SGD steps up the forget loss while gradients are
            summed, the share `keep` with the smallest sums may learn, and as only gradients are masked, weight decay
            and momentum move the other weights all the same
    """

    inner: Algorithm
    keep: float = 0.5
    mask: str = "hard"
    compat: str | None = None

    def __post_init__(self):
        if not isinstance(self.inner, Algorithm):
            raise TypeError(f"SalUn needs an Algorithm whose weights it can restrict, e.g. SalUn(RandomLabel()); "
                            f"got {self.inner!r}")
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep is the share of weights that may learn, in (0, 1]; got {self.keep}")
        if self.mask not in MASKS:
            raise ValueError(f"mask must be one of {', '.join(MASKS)}; got {self.mask!r}")
        official(self.compat)
        if self.compat and self.mask != "hard":
            raise ValueError(f"compat='official' knows the hard mask only; got mask={self.mask!r}")

    def __call__(self, model, forget, retain, *, seed=0):
        validate_inputs(model, forget, retain)
        if self.compat:
            only = published_mask(model, forget, self.keep, self.inner.lr, self.inner.batch_size)
        elif self.mask == "hard":
            only = saliency_mask(model, forget, self.keep)
        else:
            only = soft_mask(model, forget, self.keep, self.mask)
        return self.inner(model, forget, retain, seed=seed, only=only)


MASKS = ("hard", "sigmoid", "tanh")


def saliency_mask(model: nn.Module, forget: Examples, keep: float) -> dict[str, Tensor]:
    """Parameter name -> bool tensor, True for the share `keep` of all weights with the largest |sum of gradients|."""
    return largest(saliency(model, forget), keep)


def published_mask(model: nn.Module, forget: Examples, keep: float, lr: float, batch_size: int) -> dict[str, Tensor]:
    """Name -> 1.0 for the share `keep` of all weights with the smallest |sum of gradients|, taken while the model
    climbs the loss at this learning rate, else 0.0: a factor for gradients."""
    size = saliency(model, forget, batch_size, climb=lr)
    return {name: smallest.float() for name, smallest in largest(size, keep, sign=-1).items()}


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


def largest(size: dict[str, Tensor], keep: float, *, sign: int = 1) -> dict[str, Tensor]:
    """Name -> bool tensor, True for the share `keep` of all weights that is largest (sign=-1: smallest)."""
    flat = torch.cat([s.flatten() for s in size.values()])
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[(sign * flat).topk(round(keep * len(flat))).indices] = True
    parts = chosen.split([s.numel() for s in size.values()])
    return {name: part.view_as(s) for (name, s), part in zip(size.items(), parts, strict=True)}
