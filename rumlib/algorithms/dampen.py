"""Unlearning without training, weight by weight, from how much each one matters to whom: SSD, Fisher."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from rumlib.algorithms.base import validate_inputs
from rumlib.algorithms.weights import Weights, chunks, squared_gradients, trainable
from rumlib.data import Examples
from rumlib.device import check_fields
from rumlib.train import count_examples, predict, seeded


@dataclass(frozen=True)
class SSD:
    """Selective synaptic dampening: shrink the weights that matter far more to the forget set than to all data.

    Where I_f > alpha I_D: theta *= min(1, lambda I_D / I_f), with I the `importance` of a weight, I_f for the forget
    set and I_D for forget and retain set together. Nothing is drawn: `seed` has no effect.

    alpha       how many times as important a weight must be to the forget set, above 0
    dampening   lambda, at least 0: the smaller, the more the weights chosen shrink
    batch_size  examples whose mean loss has one gradient

    Source: Foster et al., AAAI 2024 (arXiv 2308.07707); defaults as in the official code of class unlearning by SVD
    (arXiv 2312.00761).
    """

    alpha: float = 10.0
    dampening: float = 1.0
    batch_size: int = 64

    def __post_init__(self):
        check_fields(self, alpha="(0, inf)", dampening="[0, inf)", batch_size="int [1, inf)")

    def __call__(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int = 0) -> nn.Module:
        validate_inputs(model, forget, retain)
        student = copy.deepcopy(model).eval()
        i_f, i_d = (importance(student, examples, self.batch_size) for examples in (forget, forget + retain))
        with torch.no_grad():
            for name, p in trainable(student).items():
                factor = (self.dampening * i_d[name] / i_f[name]).clamp(max=1)
                p.copy_(torch.where(i_f[name] > self.alpha * i_d[name], factor * p, p))
        return student


@dataclass(frozen=True)
class Fisher:
    """Fisher forgetting: noise on every weight, strong where the retain set would not notice.

    theta + alpha F^(-1/4) epsilon, epsilon standard normal, F the diagonal of the Fisher information of the retain set
    with one label per example drawn from the model.

    alpha  how strong the noise is, at least 0 (alpha^4 = lambda sigma^2 in the paper)
    floor  least value of F, above 0
    chunk  examples whose gradients are held at a time

    Source: Golatkar et al., CVPR 2020 (arXiv 1911.04933).
    """

    alpha: float = 2e-3
    floor: float = 1e-8
    chunk: int = 64

    def __post_init__(self):
        check_fields(self, alpha="[0, inf)", floor="(0, inf)", chunk="int [1, inf)")

    def __call__(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int = 0) -> nn.Module:
        validate_inputs(model, forget, retain)
        student = copy.deepcopy(model).eval()
        with seeded(seed, "Fisher") as random, torch.no_grad():
            drawn = predict(student, retain).softmax(1).multinomial(1, generator=random)[:, 0]
            information = squared_gradients(student, Examples(retain.x, drawn, retain.index), self.chunk)
            for name, p in trainable(student).items():
                noise = torch.randn(p.shape, generator=random).to(p.device)
                p += self.alpha * information[name].clamp(min=self.floor) ** -0.25 * noise
        return student


def importance(model: nn.Module, examples: Examples, batch_size: int) -> Weights:
    """Name -> mean over batches, in order, of the squared gradient of a batch's mean loss; `model` is in eval mode."""
    weights = trainable(model)
    total = {name: torch.zeros_like(p) for name, p in weights.items()}
    batches = list(chunks(model, examples, batch_size))
    for x, y in batches:
        with torch.enable_grad():
            loss = F.cross_entropy(model(x), y)
        count_examples(len(y))
        for name, g in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            total[name] += g.square() / len(batches)
    return total
