"""Unlearning by what is known to be wrong: BadTeacher (a teacher that knows nothing), UNSIR (images of nothing)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from rumlib.algorithms.base import Algorithm, check_movable, count
from rumlib.algorithms.distill import distillation
from rumlib.algorithms.layers import reset
from rumlib.data import Batch
from rumlib.device import send
from rumlib.graphs import recordable
from rumlib.train import count_examples, predict


@dataclass(frozen=True)
class BadTeacher(Algorithm):
    """Learn the forget set from an untrained model, the retain set from the original.

    T^2 KL(teacher, student) over the shuffled union, both softened by the temperature T.

    temperature  T, above 0

    Source: Chundawat et al., AAAI 2023 (arXiv 2205.08096).
    """

    temperature: float = 1.0

    seed_name, rules = "BadTeacher", dict(temperature="(0, inf)")

    def prepare(self, original, forget, retain):
        bad = copy.deepcopy(original)
        reset(bad.modules())
        taught = torch.cat([predict(bad, forget), predict(original, retain)])    # (n, classes), once for all epochs
        return taught.to(next(original.parameters()).device)

    def batches(self, forget, retain, epoch):
        for batch in epoch.shuffled(forget + retain):
            yield epoch.prepared[batch.rows], batch

    def steps(self, forget, retain):
        return self.epochs * count(forget + retain, self.batch_size)

    @recordable
    def loss(self, model, original, taught, mixed):
        return distillation(model(mixed.x), taught, self.temperature)


@dataclass(frozen=True)
class UNSIR(Algorithm):
    """Impair the classes of the forget set with noise that the model is worst at, then repair with the retain set.

    A method for whole classes: images of noise are learned by Adam at lr 0.1, which minimise -CE + penalty |x|^2; then
    the model is trained by CE on the retain set, in the first epochs with that noise under the forgotten classes.

    impair       how many epochs show the noise; the others repair
    noise        images per class
    noise_steps  steps that these are learned in
    penalty      weight of |x|^2, at least 0
    share        of the noise in each batch that shows it, in [0, 1)

    Source: Tarun et al., TNNLS 2023 (arXiv 2111.08947); steps and penalty of the official code of class unlearning by
    SVD (arXiv 2312.00761).
    """

    impair: int = 1
    noise: int = 64
    noise_steps: int = 40
    penalty: float = 0.1
    share: float = 0.125

    seed_name = "UNSIR"
    rules: ClassVar = dict(impair="int [0, inf)", noise="int [1, inf)", noise_steps="int [0, inf)",
                           penalty="[0, inf)", share="[0, 1)")

    def prepare(self, original, forget, retain):
        check_movable(self, forget)
        weight = next(original.parameters())
        y = forget.y.unique().repeat_interleave(self.noise).to(weight.device)
        x = torch.randn(len(y), *forget.x.shape[1:]).to(weight.device).requires_grad_(True)
        adam = torch.optim.Adam([x], lr=0.1)
        for _ in range(self.noise_steps):
            size = x.square().flatten(1).sum(1).mean()
            loss = -F.cross_entropy(original(x.to(weight.dtype)), y) + self.penalty * size
            x.grad, = torch.autograd.grad(loss, x)
            adam.step()
            count_examples(len(y))
        return x.detach().to(weight.dtype), y

    def batches(self, forget, retain, epoch):
        x, y = epoch.prepared
        for batch in epoch.shuffled(retain):
            if epoch.number < self.impair:
                size = max(round(len(batch.y) * self.share / (1 - self.share)), 1)
                rows = send(torch.randint(len(y), (size,), generator=epoch.random), y.device)
                batch = Batch(torch.cat([batch.x, x[rows]]), torch.cat([batch.y, y[rows]]), batch.rows)
            yield None, batch

    @recordable
    def loss(self, model, original, _, mixed):
        return F.cross_entropy(model(mixed.x), mixed.y)
