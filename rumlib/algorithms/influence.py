"""Unlearning in one step, from gradients of single examples: InfluenceUnlearning."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from rumlib.algorithms.base import accept
from rumlib.data import Examples, as_input
from rumlib.train import count_examples

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class InfluenceUnlearning:
    """Undo the influence of the forget set on the weights: theta + alpha F^-1 v, one step and no training.

    v = |S|/N (mean gradient of forget set - mean gradient of retain set), F the empirical Fisher information of
    `samples` retain examples, its inverse applied by the WoodFisher recursion (Singh and Alistarh, NeurIPS 2020; Izzo
    et al., AISTATS 2021; row "IU" of the NeurIPS 2024 paper).

    samples  the first retain examples by position; 1002 because the published loop breaks at its index 1001
    n        the constant of the recursion, whatever `samples` is: so published
    exact    the recursion never leaves the direction of the first gradient: it corrects v along that one alone. True
             solves (I + sum g g' / n) k = v instead, by conjugate gradients over the same examples
    chunk    examples at a time: memory grows with it and not with `samples`

    The model is evaluated in eval mode; BatchNorm statistics stay as they are. Nothing is drawn: `seed` has no effect.
    """

    alpha: float = 10.0
    samples: int = 1002
    n: int = 1000
    exact: bool = False
    chunk: int = 128

    def __post_init__(self):
        if self.samples < 1 or self.n < 1 or self.chunk < 1:
            raise ValueError(f"samples, n and chunk must be at least 1; got {self}")

    def __call__(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int = 0) -> nn.Module:
        accept(model, forget, retain)
        student = copy.deepcopy(model).eval()
        share = len(forget) / (len(forget) + len(retain))
        v = share * (mean_gradient(student, forget, self.chunk) - mean_gradient(student, retain, self.chunk))
        sampled = retain[:self.samples]
        k = self.inverse(student, sampled, v) if self.exact else self.recursion(student, sampled, v)
        with torch.no_grad():
            for p, step in zip(trainable(student).values(), unflatten(student, k).values(), strict=True):
                p += self.alpha * step
        if not all(p.isfinite().all() for p in student.parameters()):
            raise FloatingPointError(f"the step is not finite; lower alpha={self.alpha}")
        return student

    def recursion(self, model: nn.Module, sampled: Examples, v: Tensor) -> Tensor:
        """k after o = g_1; for g = g_2, ...: t = o.g; k -= (k.g / (n + t)) o; o -= (t / (n + t)) o; k = v before.

        At all times o = a g_1 and k = v - b g_1, so that two numbers per example are enough, v.g and g_1.g: derivatives
        of its loss in two directions, which one forward pass gives for a whole chunk.
        """
        first = mean_gradient(model, sampled[:1], self.chunk)
        a, b = 1.0, 0.0
        for vg, fg in slopes(model, sampled, (v, first), self.chunk)[1:].tolist():
            t = a * fg
            a, b = a - t / (self.n + t) * a, b + (vg - b * fg) / (self.n + t) * a
        return v - b * first

    def inverse(self, model: nn.Module, sampled: Examples, v: Tensor, *, tolerance: float = 1e-6) -> Tensor:
        """k with (I + sum g g' / n) k = v, up to a residual of `tolerance` |v|, or what 100 iterations reach."""
        def fisher(k):
            return k + weighted_gradient(model, sampled, slopes(model, sampled, (k,), self.chunk)[:, 0] / self.n,
                                         self.chunk)

        k, rest = torch.zeros_like(v), v.clone()
        way, size = rest, rest @ rest
        for _ in range(100):                                 # few are needed: few eigenvalues differ from 1
            if size <= (tolerance * v.norm())**2:
                break
            moved = fisher(way)
            step = size / (way @ moved)
            k, rest = k + step * way, rest - step * moved
            before, size = size, rest @ rest
            way = rest + size / before * way
        return k


# -- Gradients of many single examples at once ------------------------------------------------------------------------


def slopes(model: nn.Module, examples: Examples, directions: tuple[Tensor, ...], chunk: int) -> Tensor:
    """(n, directions): the derivative of each example's loss along each direction (weights flattened), exactly, by
    forward differentiation: no gradient of a single example is ever stored."""
    parts = [unflatten(model, direction) for direction in directions]
    along = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}    # (directions, *shape)
    found = []
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)       # torch's own, about torch.jit, at its first jvp
        warnings.filterwarnings("ignore", "There is a performance drop")      # of pooling, not worth a word
        for x, y in chunks(model, examples, chunk):
            def slope(direction, x=x, y=y):
                return jvp(lambda weights: losses(model, weights, x, y), (weights_of(model),), (direction,))[1]

            found.append(vmap(slope)(along).T)
            count_examples(len(directions) * len(y))
    return torch.cat(found)


def weighted_gradient(model: nn.Module, examples: Examples, weights: Tensor, chunk: int) -> Tensor:
    """Flat sum over the examples of weight (n,) times gradient of the loss; memory: two sets of weights."""
    learned = list(trainable(model).values())
    total = torch.zeros(sum(p.numel() for p in learned), dtype=learned[0].dtype, device=learned[0].device)
    parts = unflatten(model, total).values()                 # views
    for (x, y), w in zip(chunks(model, examples, chunk), weights.split(chunk), strict=True):
        with torch.enable_grad():
            loss = F.cross_entropy(model(x), y, reduction="none") @ w.to(x)
        for part, g in zip(parts, torch.autograd.grad(loss, learned, materialize_grads=True), strict=True):
            part += g                                        # zeros for a layer that the loss does not reach
        count_examples(len(y))
    return total


def mean_gradient(model: nn.Module, examples: Examples, chunk: int) -> Tensor:
    """Flat mean of the gradients of all examples."""
    return weighted_gradient(model, examples, torch.full((len(examples),), 1 / len(examples)), chunk)


def squared_gradients(model: nn.Module, examples: Examples, chunk: int, *,
                      of: Callable[[Tensor], Tensor] = Tensor.square) -> Weights:
    """Name -> mean over the examples of the squared gradient of each one's loss, or of another function `of` it;
    memory: `chunk` sets of weights."""
    def loss(weights, x, y):
        return losses(model, weights, x[None], y[None])[0]

    total = {name: torch.zeros_like(p) for name, p in weights_of(model).items()}
    for x, y in chunks(model, examples, chunk):
        for name, g in vmap(grad(loss), (None, 0, 0))(weights_of(model), x, y).items():   # (chunk, *shape)
            total[name] += of(g).sum(0) / len(examples)
        count_examples(len(y))
    return total


def losses(model: nn.Module, weights: Weights, x: Tensor, y: Tensor) -> Tensor:
    """(n,) cross-entropy of each example with these weights in place of the model's; the model is in eval mode."""
    return F.cross_entropy(functional_call(model, weights, (x,)), y, reduction="none")


def chunks(model: nn.Module, examples: Examples, chunk: int):
    weight = next(model.parameters())
    for x, y in zip(examples.x.split(chunk), examples.y.split(chunk), strict=True):
        yield as_input(x, weight), y.to(weight.device)


def trainable(model: nn.Module) -> Weights:
    """Name -> parameter, without those that were frozen."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def weights_of(model: nn.Module) -> Weights:
    return {name: p.detach() for name, p in trainable(model).items()}


def unflatten(model: nn.Module, flat: Tensor) -> Weights:
    """A flat vector as tensors of the shapes of the weights."""
    weights = weights_of(model)
    parts = flat.split([p.numel() for p in weights.values()])
    return {name: part.view_as(p) for (name, p), part in zip(weights.items(), parts, strict=True)}
