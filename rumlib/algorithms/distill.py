"""Unlearning against a frozen teacher: Scrub."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rumlib.algorithms.base import Algorithm, count
from rumlib.graphs import recordable


@dataclass(frozen=True)
class Scrub(Algorithm):
    """Leave the teacher on the forget set, stay with it on the retain set.

    Each of the first `max_steps` epochs begins with a pass over the forget set that maximises KL(teacher, student);
    every epoch ends with a pass over the retain set that minimises gamma CE + beta KL. Kurmanji et al., NeurIPS 2023.
    """

    lr: float = 5e-3
    beta: float = 0.5
    gamma: float = 0.9
    max_steps: int = 5
    temperature: float = 4.0

    def __post_init__(self):
        super().__post_init__()
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive; got {self.temperature}")

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
