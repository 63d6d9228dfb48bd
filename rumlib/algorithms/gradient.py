"""Plain descent and ascent: Finetune, L1Sparse, NegGrad, NegGradPlus."""

from __future__ import annotations

from dataclasses import dataclass

from rumlib.algorithms.base import Algorithm, count, xent
from rumlib.graphs import recordable


@dataclass(frozen=True)
class Finetune(Algorithm):
    """Train on with the retain set, and let the forget set fade.

    Cross-entropy of the retain set; baseline of the NeurIPS 2024 paper (10 epochs, lr 0.01 to 0.1 there).
    """

    def batches(self, forget, retain, epoch):
        for batch in epoch.shuffled(retain):
            yield None, batch

    @recordable
    def loss(self, model, original, forget, retain):
        return xent(model, retain)


@dataclass(frozen=True)
class L1Sparse(Algorithm):
    """Fine-tune under a sparsity penalty that fades out: sparse models are said to unlearn more easily.

    CE_r + alpha (1 - e/E) |theta|_1 over all weights, e the epoch from 0. Jia et al., NeurIPS 2023.
    """

    alpha: float = 1e-4

    def batches(self, forget, retain, epoch):
        for batch in epoch.shuffled(retain):
            yield self.alpha * (1 - epoch.number / epoch.of), batch

    @recordable
    def loss(self, model, original, strength, retain):
        return xent(model, retain) + strength * sum(p.abs().sum() for p in model.parameters())


@dataclass(frozen=True)
class NegGrad(Algorithm):
    """Climb the loss of the forget set, and look at nothing else: -CE_f. Golatkar et al., CVPR 2020."""

    lr: float = 1e-4

    def batches(self, forget, retain, epoch):
        for batch in epoch.shuffled(forget):
            yield batch, None

    def steps(self, forget, retain):
        return self.epochs * count(forget, self.batch_size)

    @recordable
    def loss(self, model, original, forget, retain):
        return -xent(model, forget)


@dataclass(frozen=True)
class NegGradPlus(Algorithm):
    """Climb the loss of the forget set while descending that of the retain set.

    alpha CE_r - (1 - alpha) CE_f, one step per retain batch. Kurmanji et al., NeurIPS 2023.
    """

    alpha: float = 0.95

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha weighs retain against forget loss, in [0, 1]; got {self.alpha}")

    @recordable
    def loss(self, model, original, forget, retain):
        return self.alpha * xent(model, retain) - (1 - self.alpha) * xent(model, forget)
