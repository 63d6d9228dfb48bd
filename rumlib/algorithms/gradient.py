"""Plain descent and ascent: Finetune, L1Sparse, NegGrad, NegGradPlus."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rumlib.algorithms.base import Algorithm, count, xent
from rumlib.graphs import recordable


@dataclass(frozen=True)
class Finetune(Algorithm):
    """Train on with the retain set, and let the forget set fade: CE_r.

    Source: a baseline of RUM (arXiv 2406.01257, appendix A.2: 10 epochs, lr 0.01 to 0.1).
    """

    seed_name = "Finetune"

    def batches(self, forget, retain, epoch):
        for batch in epoch.shuffled(retain):
            yield None, batch

    @recordable
    def loss(self, model, original, forget, retain):
        return xent(model, retain)


@dataclass(frozen=True)
class L1Sparse(Algorithm):
    """Fine-tune under a sparsity penalty that fades out: sparse models are said to unlearn more easily.

    CE_r + alpha (1 - e/E) |theta|_1 over all weights, in epoch e = 0, ..., E - 1.

    alpha  weight of the penalty, at least 0 (RUM: 1e-6 to 1e-4)

    Source: Jia et al., NeurIPS 2023 (arXiv 2304.04934); the fading as in the official code of RUM.
    """

    alpha: float = 1e-4

    seed_name, rules = "L1Sparse", dict(alpha="[0, inf)")

    def batches(self, forget, retain, epoch):
        for batch in epoch.shuffled(retain):
            yield self.alpha * (1 - epoch.number / epoch.of), batch

    @recordable
    def loss(self, model, original, strength, retain):
        norms = torch._foreach_norm(list(model.parameters()), 1)             # together: each alone is a kernel on a GPU
        return xent(model, retain) + strength * torch.stack(norms).sum()


@dataclass(frozen=True)
class NegGrad(Algorithm):
    """Climb the loss of the forget set, and look at nothing else: -CE_f.

    Source: Golatkar et al., CVPR 2020 (arXiv 1911.04933).
    """

    lr: float = 1e-4

    seed_name = "NegGrad"

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

    alpha CE_r - (1 - alpha) CE_f, one step per retain batch, each paired with a forget batch.

    alpha  weight of the retain set against the forget set, in [0, 1]; 1 is fine-tuning (RUM: 0.85 to 0.99)

    Source: Kurmanji et al., NeurIPS 2023 (arXiv 2302.09880).
    """

    alpha: float = 0.95

    seed_name, rules = "NegGradPlus", dict(alpha="[0, 1]")

    @recordable
    def loss(self, model, original, forget, retain):
        return self.alpha * xent(model, retain) - (1 - self.alpha) * xent(model, forget)
