"""Unlearning by false labels, and by choosing which weights may learn: RandomLabel, SalUn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rumlib.algorithms.base import Algorithm, accept, count, xent
from rumlib.data import Examples, as_input
from rumlib.train import evaluating


@dataclass(frozen=True)
class RandomLabel(Algorithm):
    """Teach random labels for the forget set amid the retain set.

    Cross-entropy of the shuffled union; the false labels are drawn anew each epoch, uniformly over all classes, the
    true one included. Graves et al., AAAI 2021; "RL_og" of the NeurIPS 2024 code.
    """

    def batches(self, forget, retain, epoch):
        y = torch.randint(epoch.classes(forget), (len(forget),), generator=epoch.random).to(forget.y.device)
        relabelled = Examples(forget.x, y, forget.index)
        for batch in epoch.shuffled(relabelled + retain):
            yield None, batch

    def steps(self, forget, retain):
        return self.epochs * count(forget + retain, self.batch_size)

    def loss(self, model, original, _, mixed):
        return xent(model, mixed)


@dataclass(frozen=True)
class SalUn:
    """Let the inner algorithm move only the weights that matter most to the forget set. Fan et al., ICLR 2024.

    The share `keep` of all weights with the largest |gradient of the forget loss| at the original model may learn; the
    others stay bit-identical, weight decay and momentum included. (The published code of RUM keeps the smallest.)
    """

    inner: Algorithm
    keep: float = 0.5

    def __post_init__(self):
        if not isinstance(self.inner, Algorithm):
            raise TypeError(f"SalUn needs an Algorithm whose weights it can restrict, e.g. SalUn(RandomLabel()); "
                            f"got {self.inner!r}")
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep is the share of weights that may learn, in (0, 1]; got {self.keep}")

    def __call__(self, model, forget, retain, *, seed=0):
        accept(model, forget, retain)
        return self.inner(model, forget, retain, seed=seed, only=saliency_mask(model, forget, self.keep))


def saliency_mask(model: nn.Module, forget: Examples, keep: float) -> dict[str, Tensor]:
    """Parameter name -> bool tensor, True for the share `keep` of all weights with the largest |sum of gradients|."""
    weights = dict(model.named_parameters())
    device = next(model.parameters()).device
    total = [torch.zeros_like(p) for p in weights.values()]
    with evaluating(model), torch.enable_grad():
        for x, y in zip(forget.x.split(256), forget.y.split(256), strict=True):
            loss = torch.nn.functional.cross_entropy(model(as_input(x, device)), y.to(device), reduction="sum")
            for sum_, gradient in zip(total, torch.autograd.grad(loss, list(weights.values())), strict=True):
                sum_ += gradient
    flat = torch.cat([t.abs().flatten() for t in total])
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[flat.topk(round(keep * len(flat))).indices] = True
    parts = chosen.split([p.numel() for p in weights.values()])
    return {name: part.view_as(p) for (name, p), part in zip(weights.items(), parts, strict=True)}
