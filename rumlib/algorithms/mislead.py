"""Unlearning by what is known to be wrong: BadTeacher (a teacher that knows nothing), UNSIR (images of nothing)."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from rumlib.algorithms.base import Algorithm, count
from rumlib.algorithms.distill import distillation
from rumlib.algorithms.layers import reset
from rumlib.device import send
from rumlib.graphs import recordable
from rumlib.train import Batch, count_examples, predict


@dataclass(frozen=True)
class BadTeacher(Algorithm):
    """Learn the forget set from an untrained model, the retain set from the original.

    KL(teacher, student) over the shuffled union, both softened by `temperature`. Chundawat et al., AAAI 2023.
    """

    temperature: float = 1.0

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

    A method for whole classes. `noise` images per class are learned by Adam, `noise_steps` steps at lr 0.1 that
    minimise -CE + penalty |x|^2; in the first `impair` epochs they make up the share `share` of each batch beside the
    retained examples; the other epochs repair. Tarun et al., TNNLS 2023; steps and penalty of the published code of
    class unlearning by SVD (TMLR 2024).
    """

    impair: int = 1
    noise: int = 64
    noise_steps: int = 40
    penalty: float = 0.1
    share: float = 0.125

    def prepare(self, original, forget, retain):
        device = next(original.parameters()).device
        y = forget.y.unique().repeat_interleave(self.noise).to(device)
        x = torch.randn(len(y), *forget.x.shape[1:]).to(device).requires_grad_(True)
        adam = torch.optim.Adam([x], lr=0.1)
        for _ in range(self.noise_steps):
            loss = -F.cross_entropy(original(x), y) + self.penalty * x.square().flatten(1).sum(1).mean()
            x.grad, = torch.autograd.grad(loss, x)
            adam.step()
            count_examples(len(y))
        return x.detach(), y

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
