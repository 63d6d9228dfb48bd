"""Unlearning in one step, from gradients of single examples: InfluenceUnlearning."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rumlib.algorithms.base import validate_inputs
from rumlib.algorithms.weights import mean_gradient, slopes, trainable, unflatten, weighted_gradient
from rumlib.data import Examples
from rumlib.device import check_fields


@dataclass(frozen=True)
class InfluenceUnlearning:
    """Undo the influence of the forget set on the weights: theta + alpha F^-1 v, one step and no training.

    v = |S|/N (mean gradient of forget set - mean gradient of retain set), N = |S| + |R|, F the empirical Fisher
    information of `samples` retain examples, its inverse applied by the WoodFisher recursion.

    alpha    factor of the step, finite (RUM: 1 to 100)
    samples  the first retain examples by position; 1002 because the published loop breaks at its index 1001
    n        the constant of the recursion, whatever `samples` is: so published
    exact    the recursion never leaves the direction of the first gradient: it corrects v along that one alone. True
             solves (I + sum g g' / n) k = v instead, by conjugate gradients over the same examples
    chunk    examples at a time: memory grows with it and not with `samples`

    The model is evaluated in eval mode; BatchNorm statistics stay as they are. Nothing is drawn: `seed` has no effect.
    Raises FloatingPointError for a step that is not finite.

    Source: Izzo et al., AISTATS 2021 (arXiv 2002.10077); the recursion of Singh and Alistarh, NeurIPS 2020 (arXiv
    2004.14340); row "IU" of RUM (arXiv 2406.01257).
    """

    alpha: float = 10.0
    samples: int = 1002
    n: int = 1000
    exact: bool = False
    chunk: int = 128

    def __post_init__(self):
        check_fields(self, alpha="(-inf, inf)", samples="int [1, inf)", n="int [1, inf)", chunk="int [1, inf)")

    def __call__(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int = 0) -> nn.Module:
        validate_inputs(model, forget, retain)
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
