"""Unlearning against a frozen teacher: Scrub."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from rumlib.algorithms.base import Algorithm, count
from rumlib.graphs import recordable


@dataclass(frozen=True)
class Scrub(Algorithm):
    """Leave the teacher on the forget set, stay with it on the retain set.

    The teacher w_o is the original model, the student w_u the new one; d(x) = T^2 KL(p(x; w_o), p(x; w_u)) of their
    predictions softened by the temperature T. Each of the first `max_steps` epochs begins with a pass over the forget
    set that minimises -d; every epoch ends with one over the retain set that minimises gamma CE_r + beta d.

    beta         weight of staying with the teacher on the retain set, at least 0
    gamma        weight of the cross-entropy there, at least 0
    max_steps    how many epochs begin with a pass over the forget set
    temperature  T, above 0

    Source: Kurmanji et al., NeurIPS 2023 (arXiv 2302.09880); the defaults are those of the official code of RUM.
    """

    lr: float = 5e-3
    beta: float = 0.5
    gamma: float = 0.9
    max_steps: int = 5
    temperature: float = 4.0

    seed_name = "Scrub"
    rules: ClassVar = dict(beta="[0, inf)", gamma="[0, inf)", max_steps="int [0, inf)", temperature="(0, inf)")

    def batches(self, forget, retain, epoch):
        if epoch.number < self.max_steps:
            for batch in epoch.shuffled(forget):
                yield batch, None
        for batch in epoch.shuffled(retain):
            yield None, batch

    def steps(self, forget, retain):
        return (self.epochs * count(retain, self.batch_size)
                + min(self.epochs, self.max_steps) * count(forget, self.batch_size))

    @recordable
    def loss(self, model, original, forget, retain):
        if retain is None:
            return -self.divergence(model(forget.x), original, forget.x)
        logits = model(retain.x)
        return (self.gamma * F.cross_entropy(logits, retain.y)
                + self.beta * self.divergence(logits, original, retain.x))

    def divergence(self, logits: Tensor, teacher, x: Tensor) -> Tensor:
        with torch.no_grad():
            taught = teacher(x)
        return distillation(logits, taught, self.temperature)


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher, student) of logits (batch, classes) softened by the temperature T, averaged over the batch."""
    p = (teacher / temperature).log_softmax(1)               # in float32, under autocast too
    q = (student / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(q, p, log_target=True, reduction="batchmean")
