"""Cheap stand-ins for memorization, at the price of one training run or less (arXiv 2410.16516).

    trace = Trace(train); fit(make_model, train, recipe, trace=trace)
    score = proxy("confidence", trace)                             # from one ordinary training run, as five others
    score = proxy("holdout_retraining", model, train, holdout=held_out)
"""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rumlib.data import Examples, as_input
from rumlib.device import finished
from rumlib.scores import Score
from rumlib.train import Recipe, evaluating, fit, predict

TRACED = ("confidence", "max_confidence", "entropy", "binary_accuracy")
PROXIES = (*TRACED, "holdout_retraining", "loss_curvature")


class Trace:
    """What one training run shows of each example, collected from the training forward passes themselves.

    Pass it to ``fit(..., trace=trace)``. Each example is seen once an epoch: in train mode, before the step. The fields
    named in TRACED hold sums over the epochs that are complete, (n,) each; `seconds`, what collecting them took.
    """

    def __init__(self, examples: Examples):
        self.index = examples.index
        self.seen, *sums = torch.zeros(1 + len(TRACED), len(examples)).unbind()
        self.confidence, self.max_confidence, self.entropy, self.binary_accuracy = sums
        self.seconds = 0.0
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        self._rows = 0

    def __call__(self, rows: Tensor, logits: Tensor, y: Tensor) -> None:
        self._waiting.append((rows, logits, y))
        self._rows += len(rows)
        if self._rows >= len(self.seen):                     # once an epoch: batch by batch it takes ten times as long
            self.flush()

    def flush(self) -> None:
        """Take into account what has been seen since the last epoch was complete."""
        if not self._waiting:
            return
        finished()                                           # the training itself, whose time does not count here
        start = time.perf_counter()
        rows, logits, y = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting, self._rows = [], 0
        logp = logits.float().log_softmax(1)                 # finite, and so is p log p where p underflows to 0
        p = logp.exp()
        best = p.max(1)
        for sums, values in ((self.seen, torch.ones(len(y))),
                             (self.confidence, p.gather(1, y[:, None])[:, 0]),
                             (self.max_confidence, best.values),
                             (self.entropy, -(p * logp).sum(1)),
                             (self.binary_accuracy, (best.indices == y).float())):
            sums.index_add_(0, rows.cpu(), values.cpu())
        self.seconds += time.perf_counter() - start


class Curvature:
    """The curvature of the loss at each example, summed over the batches of a training run; ``fit(..., probe=probe)``.

    Two passes more for each batch: it costs about as much again as the training itself (`seconds` of it).
    """

    def __init__(self, examples: Examples, *, step: float = 0.01):
        self.index, self.step = examples.index, step
        self.seen, self.curvature = torch.zeros(2, len(examples)).unbind()
        self.seconds = 0.0

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rows: Tensor) -> None:
        finished()                                           # as in `Trace`, though here for every batch
        start = time.perf_counter()
        found, rows = curvature(model, x, y, step=self.step).float().cpu(), rows.cpu()
        self.curvature.index_add_(0, rows, found)
        self.seen.index_add_(0, rows, torch.ones(len(rows)))
        self.seconds += time.perf_counter() - start


# Fine-tuning on held-out examples: the official defaults, but for their stop after 4 epochs without a lower loss. (On
# the digits smaller batches and long, large steps rank best.)
HOLDOUT = Recipe(epochs=30, lr=0.1, batch_size=256, schedule="constant")


def proxy(name: str, source: Trace | Curvature | nn.Module, examples: Examples | None = None, *,
          holdout: Examples | None = None, recipe: Recipe = HOLDOUT, seed: int = 0, compat: str | None = None) -> Score:
    """A stand-in for memorization at the price of one training run, or less (arXiv 2410.16516). In every Score, higher
    means more memorized.

    From a Trace of the training, as means over its epochs:
        confidence          1 - probability of the true class
        max_confidence      1 - largest probability
        entropy             of the probabilities, in nats
        binary_accuracy     share of epochs in which the example was classified wrong
    From a Curvature of the training, as mean over its epochs, or from a trained model and `examples`:
        loss_curvature      |change of the input gradient of the loss over a small step along its sign|
    From a trained model and `examples` that it was trained on:
        holdout_retraining  symmetric KL divergence between the model's predictions before and after fine-tuning on
                            `holdout`, examples that it was not trained on, with `recipe` and `seed`. They must be a
                            part of the training data set aside, told by their index: with compat="official" any will
                            do, so also the test set of the published code, which then leaks into the forget sets
    """
    if name not in PROXIES:
        raise ValueError(f"unknown proxy {name!r}; choose one of {', '.join(PROXIES)}")
    wanted = Trace if name in TRACED else nn.Module if name == "holdout_retraining" else (Curvature, nn.Module)
    if not isinstance(source, wanted):
        raise TypeError(f"the proxy {name!r} needs {_article(wanted)}; got a {type(source).__name__}")
    if isinstance(source, nn.Module) and examples is None:
        raise ValueError(f"the proxy {name!r} of a model needs the examples to score")
    if name == "holdout_retraining":
        return Score(name, _moved(source, examples, holdout, recipe, seed, compat), examples.index)
    if name == "loss_curvature" and isinstance(source, nn.Module):
        probe, weight = Curvature(examples), next(source.parameters())
        for rows in torch.arange(len(examples)).split(256):
            probe(source, as_input(examples.x[rows], weight), examples.y[rows].to(weight.device), rows)
        source = probe
    if isinstance(source, Trace):
        source.flush()
    if (source.seen == 0).any():
        kind = type(source).__name__
        raise ValueError(f"the {kind.lower()} has not seen {int((source.seen == 0).sum())} examples: pass it to "
                         f"fit(..., {'trace' if kind == 'Trace' else 'probe'}=) for at least one epoch")
    mean = (source.curvature if name == "loss_curvature" else getattr(source, name)) / source.seen
    return Score(name, mean if name in ("entropy", "loss_curvature") else 1 - mean, source.index)


def _article(kinds: type | tuple[type, ...]) -> str:
    return " or ".join(f"a {kind.__name__}" for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))


def _moved(model: nn.Module, examples: Examples, holdout: Examples | None, recipe: Recipe, seed: int,
           compat: str | None) -> Tensor:
    if compat not in (None, "official"):
        raise ValueError(f'compat must be None or "official"; got {compat!r}')
    if holdout is None or not len(holdout):
        raise ValueError("holdout_retraining needs holdout=, examples that the model was not trained on")
    shared = torch.isin(holdout.index, examples.index)
    if shared.any() and not compat:
        raise ValueError(f"{int(shared.sum())} examples of the holdout set are among those to score: hold out a part "
                         f"of the training data (the test set only with compat='official')")
    before, after = (predict(m, examples).softmax(1) for m in (model, fit(model, holdout, recipe, seed=seed)))
    return symmetric_kl(before, after)


def symmetric_kl(p: Tensor, q: Tensor) -> Tensor:
    """(n,) half the sum of both KL divergences between rows of probabilities (n, classes), cut off at 1e-10."""
    p, q = p.clamp(min=1e-10), q.clamp(min=1e-10)
    return ((p - q) * (p.log() - q.log())).sum(1) / 2


def curvature(model: nn.Module, x: Tensor, y: Tensor, *, step: float = 0.01) -> Tensor:
    """(n,) for each example |grad L(x + z) - grad L(x)|, gradients by x in eval mode, z = step sign(grad L(x)) of
    length `step`; not divided by it, as published."""
    def slope(x):
        x = x.detach().requires_grad_(True)
        return torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), x)[0]

    with evaluating(model), torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        before = slope(x)
        way = before.sign()
        z = step * way / (way.flatten(1).norm(dim=1).view(-1, *[1] * (x.ndim - 1)) + 1e-7)
        return (slope(x + z) - before).flatten(1).norm(dim=1)
