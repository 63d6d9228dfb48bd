"""Cheap stand-ins for memorization, at the price of one training run or less (arXiv 2410.16516).

    trace = Trace(train); fit(make_model, train, recipe, trace=trace)
    score = from_trace("confidence", trace)                        # or another one of TRACED, from the same run
    score = loss_curvature(model, train)                           # or from a Curvature, collected while training
    score = holdout_retraining(model, train, holdout)              # examples that the model was not trained on
    score = proxy("confidence", trace)                             # the three of them by name, as a study needs them

In every Score, higher means more memorized.
"""

from __future__ import annotations

import time
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rumlib.data import Examples, as_input
from rumlib.device import check_values, finished, is_official
from rumlib.scores import Score
from rumlib.train import Recipe, check_compatible, evaluating, fit, predict

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

    Two passes more for each batch: it costs about as much again as the training itself (`seconds` of it, complete
    after `flush`).
    """

    def __init__(self, examples: Examples, *, step: float = 0.01):
        self.index, self.step = examples.index, step
        self.seen, self.curvature = torch.zeros(2, len(examples)).unbind()
        self.seconds = 0.0
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._rows = 0

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rows: Tensor) -> None:
        with self._timed(x.device):
            self._waiting.append((curvature(model, x, y, step=self.step).float(), rows))
        self._rows += len(rows)
        if self._rows >= len(self.seen):                     # once an epoch: a GPU is not waited for batch by batch
            self.flush()

    def flush(self) -> None:
        """Take into account what has been seen since the last epoch was complete."""
        if not self._waiting:
            return
        finished()
        self.seconds += sum(start.elapsed_time(end) for start, end in self._marks) / 1000
        begun = time.perf_counter()
        found, rows = (torch.cat(parts).cpu() for parts in zip(*self._waiting, strict=True))
        self._waiting, self._marks, self._rows = [], [], 0
        self.curvature.index_add_(0, rows, found)
        self.seen.index_add_(0, rows, torch.ones(len(rows)))
        self.seconds += time.perf_counter() - begun

    @contextmanager
    def _timed(self, device: torch.device):
        """On a GPU the clock is the GPU's own, which is read when it has finished."""
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._marks.append((start, end))
        else:
            start = time.perf_counter()
            yield
            self.seconds += time.perf_counter() - start


# Fine-tuning on held-out examples: the official defaults, but for their stop after 4 epochs without a lower loss. (On
# the digits smaller batches and long, large steps rank best.)
HOLDOUT = Recipe(epochs=30, lr=0.1, batch_size=256, schedule="constant")


def proxy(name: str, source: Trace | Curvature | nn.Module, examples: Examples | None = None, *,
          holdout: Examples | None = None, recipe: Recipe = HOLDOUT, seed: int = 0, compat: str | None = None) -> Score:
    """The proxy of that name: `from_trace` for the names in TRACED, `loss_curvature` or `holdout_retraining`.

    Raises ValueError for an unknown name, and TypeError for a source that it cannot be computed from.

    >>> examples = Examples(torch.rand(20, 3), [0, 1] * 10)
    >>> trace = Trace(examples)
    >>> _ = fit(nn.Linear(3, 2), examples, Recipe(epochs=2), trace=trace)
    >>> len(proxy("confidence", trace))
    20
    """
    check_values("proxy", name=(name, PROXIES))
    if name in TRACED:
        return from_trace(name, source)
    if name == "loss_curvature":
        return loss_curvature(source, examples)
    return holdout_retraining(source, examples, holdout, recipe=recipe, seed=seed, compat=compat)


def from_trace(name: str, trace: Trace) -> Score:
    """A proxy from the Trace of a training run, as mean over its epochs.

    confidence          1 - probability of the true class
    max_confidence      1 - largest probability
    entropy             of the probabilities, in nats
    binary_accuracy     share of epochs in which the example was classified wrong

    Raises ValueError for another name, or if an example was never seen. Source: arXiv 2410.16516; confidence also in
    arXiv 2406.01257, section 6.
    """
    check_values("from_trace", name=(name, TRACED))
    _needs(name, trace, Trace)
    trace.flush()
    mean = _mean(trace, getattr(trace, name), "trace")
    return Score(name, mean if name == "entropy" else 1 - mean, trace.index)


def loss_curvature(source: Curvature | nn.Module, examples: Examples | None = None) -> Score:
    """|change of the input gradient of the loss over a small step along its sign|, for each example (see `curvature`).

    From a Curvature collected while training, as mean over its epochs; or from a trained model and `examples`.
    Raises ValueError if an example was never seen, TypeError for another source. Source: arXiv 2410.16516.
    """
    _needs("loss_curvature", source, Curvature, nn.Module)
    if isinstance(source, nn.Module):
        _scored("loss_curvature", source, examples)
        model, source, weight = source, Curvature(examples), next(source.parameters())
        for rows in torch.arange(len(examples)).split(256):
            source(model, as_input(examples.x[rows], weight), examples.y[rows].to(weight.device), rows)
    source.flush()
    return Score("loss_curvature", _mean(source, source.curvature, "probe"), source.index)


def holdout_retraining(model: nn.Module, examples: Examples, holdout: Examples | None, *, recipe: Recipe = HOLDOUT,
                       seed: int = 0, compat: str | None = None) -> Score:
    """How far the model's predictions on `examples`, which it was trained on, move when it is fine-tuned on `holdout`.

    Symmetric KL divergence, in nats. `holdout` must be a part of the training data that was set aside, told by its
    index. With compat="official" any examples will do, also the test set of the published code, which then leaks into
    the forget sets.

    Raises ValueError for an empty holdout set or one that shares examples. Source: arXiv 2410.16516.
    """
    _needs("holdout_retraining", model, nn.Module)
    leaks = is_official(compat)
    if holdout is None or not len(holdout):
        raise ValueError("holdout_retraining needs holdout=, examples that the model was not trained on")
    _scored("holdout_retraining", model, examples)
    shared = torch.isin(holdout.index, examples.index)
    if shared.any() and not leaks:
        raise ValueError(f"{int(shared.sum())} examples of the holdout set are among those to score: hold out a part "
                         f"of the training data (the test set only with compat='official')")
    before, after = (predict(m, examples).softmax(1) for m in (model, fit(model, holdout, recipe, seed=seed)))
    return Score("holdout_retraining", symmetric_kl(before, after), examples.index)


def _needs(name: str, source, *kinds: type) -> None:
    if not isinstance(source, kinds):
        raise TypeError(f"the proxy {name!r} needs {' or '.join(f'a {kind.__name__}' for kind in kinds)}; got a "
                        f"{type(source).__name__}")


def _scored(name: str, model: nn.Module, examples: Examples | None) -> None:
    if examples is None:
        raise ValueError(f"the proxy {name!r} of a model needs the examples to score")
    check_compatible(model, examples, "examples")


def _mean(source: Trace | Curvature, sums: Tensor, argument: str) -> Tensor:
    unseen = int((source.seen == 0).sum())
    if unseen:
        raise ValueError(f"the {type(source).__name__.lower()} has not seen {unseen} examples: pass it to "
                         f"fit(..., {argument}=) for at least one epoch")
    return sums / source.seen


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
