"""Unlearning by noise on few weights, then repair: TopK, RandomK, RandomTopK.

    TopK(k=0.01)                                             # the hundredth of all weights that matters most to forget
    TopK(k=500, score="fisher", ranking="layer")             # 500 weights, as large a share of every layer
    RandomK(k=1.0)                                           # noise on all weights: what choosing is compared with
    RandomK(k=1.0, last=1)                                   # noise on the last layer
    TopK().select(model, forget, retain, seed=0)             # which weights those are: positions in the flat vector

Zuo et al., IEEE TKDE 2025 (arXiv 2401.04385). What is verified of this paper is its abstract: few parameters are
perturbed, the top K or K at random, instead of all or of the last layers. Everything else here is a proposal of this
project: importance, noise, repair, the mixture.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from rumlib.algorithms.base import Algorithm, validate_inputs, xent
from rumlib.algorithms.distill import distillation
from rumlib.algorithms.layers import layers, reset
from rumlib.algorithms.weights import Weights, mean_gradient, squared_gradients, trainable, unflatten
from rumlib.data import Examples, batch_count
from rumlib.graphs import recordable
from rumlib.train import accuracy, evaluating, seeded

FLOOR = 1e-8                                                 # of the retain set's Fisher information in "ratio"


@dataclass(frozen=True)
class Perturbation(Algorithm):
    """Perturb k weights, all others bit-identical, then fine-tune on the retain set. A subclass chooses the weights.

    k           a share of the weights that can be chosen, float in (0, 1], or their number, int; 0: do nothing
    ranking     "global", or "layer": as large a share of each layer
    perturb     "gauss": plus sigma N(0, 1); "gauss_rel": plus sigma N(0, 1) times the standard deviation of the weights
                of that parameter; "zero"; "reinit": drawn anew as for a new model
    biases      whether parameters with one dimension, biases and the scales of normalisations, can be chosen
    last        choose in the last layers only, so many of them (see `LastLayers`); None: in all
    scope       of the repair: "all" weights learn, or those "selected", so that all others stay bit-identical for good
    tolerance   stop before an epoch, the first one included, at which the accuracy on the validation set is back at the
                original's, less this; None: run all `epochs`
    validation  the share of the retain set, drawn from the seed, that is watched for this
    held_out    whether no repair step sees it. The original was trained on it, as on the forget set, and forgets it
                alike: such a validation set is rarely back before the forget set is
    sim_weight  of KL(original, model) + KL(model, original) on the forget set in the loss of the repair: from the code
                of a third party; it holds on to what is to be forgotten

    `rumlib.cost` counts the epochs that the repair took as `passes`. BatchNorm statistics are no weights: the repair
    moves them in either scope. Raises ValueError where there are fewer than k weights to choose from.
    """

    k: float | int = 0.01
    ranking: str = "global"
    perturb: str = "gauss"
    sigma: float = 0.1
    biases: bool = True
    last: int | None = None
    scope: str = "all"
    tolerance: float | None = 0.005
    validation: float = 0.1
    held_out: bool = False
    sim_weight: float = 0.0

    seed_name = "Perturbation"
    rules: ClassVar = dict(
        ranking=("global", "layer"), scope=("all", "selected"), perturb=("gauss", "gauss_rel", "zero", "reinit"),
        sigma="[0, inf)", sim_weight="[0, inf)", last="int [1, inf) or None", validation="(0, 1]",
        tolerance="[0, 1) or None")

    def __post_init__(self):
        super().__post_init__()
        if not ((type(self.k) is int and self.k >= 0) or (isinstance(self.k, float) and 0 < self.k <= 1)):
            raise ValueError(f"k is a share of the weights, float in (0, 1], or their number, int >= 0; got {self.k!r}")

    def unlearn(self, model, forget, retain, *, seed, only=None, start=None):
        if only is not None:
            raise ValueError(f"{type(self).__name__} chooses its weights itself: set k and scope='selected'")
        chosen = self.select(model, forget, retain, seed=seed)
        if not len(chosen):
            return copy.deepcopy(model).eval()
        disturbed = self.disturb(model, chosen, seed=seed)
        only = marked(model, chosen) if self.scope == "selected" else None
        return super().unlearn(model, forget, retain, seed=seed, only=only, start=disturbed)

    # -- which weights

    def select(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int = 0) -> Tensor:
        """(k,) positions of the weights that a call with these arguments perturbs, ascending, in the vector of all
        trainable parameters, each flattened, in their order. Raises ValueError if there are fewer than k."""
        validate_inputs(model, forget, retain)
        may, sizes = self.candidates(model)
        count = self.amount(int(may.count_nonzero()))
        with seeded(seed, self.seed_name, "selection") as random, evaluating(model):
            values = self.values(model, forget, retain).float().cpu()
            if not values.max().isfinite():                  # which NaN is not, and no copy is made
                raise FloatingPointError("the gradients of the model are not finite: nothing can be chosen by them")
            values[~may] = -1
            allowed = [int(part.count_nonzero()) for part in may.split(sizes)]
            starts = accumulate(sizes, initial=0)
            return torch.cat([start + self.choose(part, n, random) for start, part, n in
                              zip(starts, values.split(sizes), shares(count, allowed), strict=False)])

    def candidates(self, model: nn.Module) -> tuple[Tensor, list[int]]:
        """(P,) bool, which weights can be chosen, and the sizes of the groups in which they are ranked."""
        weights, layer = trainable(model), layer_of(model)
        if not weights:
            raise ValueError("all parameters are frozen (requires_grad is False): there is nothing to choose from")
        first = 0 if self.last is None else len(layers(model)) - self.last
        if first < 0:
            raise ValueError(f"last={self.last} layers were to be perturbed; the model has {len(layers(model))}")
        may = torch.cat([torch.full((p.numel(),), layer[name] >= first and (self.biases or p.ndim > 1))
                         for name, p in weights.items()])
        sizes = [0] * len(layers(model))
        for name, p in weights.items():
            sizes[layer[name]] += p.numel()
        return may, sizes if self.ranking == "layer" else [len(may)]

    def amount(self, available: int) -> int:
        """How many of the weights that can be chosen: a share chooses at least one."""
        count = self.k if isinstance(self.k, int) else max(round(self.k * available), 1)
        if count > available:
            raise ValueError(f"k={self.k} weights were to be chosen; {available} can be")
        return count

    def values(self, model: nn.Module, forget: Examples, retain: Examples) -> Tensor:
        """(P,) how much each weight matters, at least 0; `model` is in eval mode."""
        raise NotImplementedError(f"{type(self).__name__} must define values(model, forget, retain)")

    def choose(self, values: Tensor, n: int, random: torch.Generator) -> Tensor:
        """n positions of one group, ascending; those of value -1 cannot be chosen."""
        raise NotImplementedError(f"{type(self).__name__} must define choose(values, n, random)")

    # -- what happens to them

    def disturb(self, model: nn.Module, chosen: Tensor, *, seed: int = 0) -> nn.Module:
        """What the repair starts from: a new model whose chosen weights, positions as from `select`, are perturbed, and
        all others bit-identical."""
        check_positions(model, chosen)
        disturbed = copy.deepcopy(model).eval()
        with seeded(seed, self.seed_name, "noise") as random, torch.no_grad():
            theta = flatten(trainable(disturbed))
            at = chosen.to(theta.device)
            theta[at] = self.moved(disturbed, theta[at], at, random)
            for p, part in zip(trainable(disturbed).values(), unflatten(disturbed, theta).values(), strict=True):
                p.copy_(part)
        return disturbed

    def moved(self, model: nn.Module, values: Tensor, at: Tensor, random: torch.Generator) -> Tensor:
        """(k,) the new values of the chosen weights."""
        if self.perturb == "zero":
            return torch.zeros_like(values)
        if self.perturb == "reinit":
            fresh = copy.deepcopy(model)
            reset(fresh.modules())
            return flatten(trainable(fresh))[at]
        noise = torch.randn(len(values), generator=random).to(values)
        if self.perturb == "gauss_rel":
            noise *= flatten({name: p.std(correction=0).expand_as(p) for name, p in trainable(model).items()})[at]
        return values + self.sigma * noise

    # -- repair

    def prepare(self, original, forget, retain):
        """(what is trained on, what is watched, the accuracy there at which the repair is done)"""
        if self.tolerance is None:
            return retain, None, None
        rows = torch.randperm(len(retain))
        watched = retain[rows[:self.watched(len(retain))].sort().values]
        kept = retain[rows[self.spared(len(retain)):].sort().values]
        return kept, watched, accuracy(original, watched) - self.tolerance

    def watched(self, n: int) -> int:
        """How many of n retain examples are the validation set."""
        return max(round(self.validation * n), 1)

    def spared(self, n: int) -> int:
        """How many of n retain examples no repair step sees. Raises ValueError if that leaves none."""
        if self.tolerance is None or not self.held_out:
            return 0
        if self.watched(n) >= n:
            raise ValueError(f"holding out {self.watched(n)} of {n} retain examples leaves none to train on; lower "
                             f"validation={self.validation} or set held_out=False")
        return self.watched(n)

    def done(self, model, epoch):
        _, watched, goal = epoch.prepared
        return watched is not None and accuracy(model, watched) >= goal

    def steps(self, forget, retain):
        return self.epochs * batch_count(len(retain) - self.spared(len(retain)), self.batch_size)

    def batches(self, forget, retain, epoch):
        kept, *_ = epoch.prepared
        if self.sim_weight:
            yield from super().batches(forget, kept, epoch)
        else:
            for batch in epoch.shuffled(kept):
                yield None, batch

    @recordable
    def loss(self, model, original, forget, retain):
        if forget is None:
            return xent(model, retain)
        with torch.no_grad():
            before = original(forget.x)
        now = model(forget.x)
        return xent(model, retain) + self.sim_weight * (distillation(now, before, 1.0) + distillation(before, now, 1.0))


@dataclass(frozen=True)
class TopK(Perturbation):
    """Perturb the weights that matter most to the forget set, by `score`, at the model to be unlearned, in eval mode.

    grad_mean  |gradient of the mean loss|           fisher  mean of the squared gradients of single examples
    abs        mean of their absolute values         ratio   fisher over that of the retain set, as SSD weighs them

    The rankings differ strongly. The loss is the cross-entropy; of equally important weights the first are taken.
    `chunk` examples are seen at a time: all scores but the first hold as many sets of weights.

    Source: Zuo et al., IEEE TKDE 2025 (arXiv 2401.04385); all four scores are proposals of this project.
    """

    score: str = "grad_mean"
    chunk: int = 64

    seed_name = "TopK"
    rules: ClassVar = Perturbation.rules | dict(score=("grad_mean", "fisher", "abs", "ratio"), chunk="int [1, inf)")

    def values(self, model, forget, retain):
        match self.score:
            case "grad_mean":
                return mean_gradient(model, forget, self.chunk).abs_()
            case "abs":
                return flatten(squared_gradients(model, forget, self.chunk, of=Tensor.abs))
            case "fisher":
                return flatten(squared_gradients(model, forget, self.chunk))
        mine, theirs = (flatten(squared_gradients(model, examples, self.chunk)) for examples in (forget, retain))
        return mine / (theirs + FLOOR)

    def choose(self, values, n, random):
        return top(values, n)


@dataclass(frozen=True)
class RandomK(Perturbation):
    """Perturb k weights drawn at random without replacement: no gradients needed. With k=1.0, all of them.

    Source: Zuo et al., IEEE TKDE 2025 (arXiv 2401.04385).
    """

    seed_name = "RandomK"

    def values(self, model, forget, retain):
        return torch.zeros(sum(p.numel() for p in trainable(model).values()))

    def choose(self, values, n, random):
        return draw((values >= 0).nonzero()[:, 0], n, random)


@dataclass(frozen=True)
class RandomTopK(TopK):
    """Between the two: k weights drawn from those that matter most, or some from the top and some from all others.

    factor  the k weights are drawn from the `factor` times k that matter most, at least 1
    mix     instead, this share of the k is taken from the top and the rest drawn from all others: 0 is RandomK, 1 TopK

    Source: Zuo et al., IEEE TKDE 2025 (arXiv 2401.04385), are said to have a mixture; both are proposals of this
    project.
    """

    factor: float = 4.0
    mix: float | None = None

    seed_name = "RandomTopK"
    rules: ClassVar = TopK.rules | dict(factor="[1, inf)", mix="[0, 1] or None")

    def choose(self, values, n, random):
        allowed = int((values >= 0).count_nonzero())
        if self.mix is None:
            return draw(top(values, min(round(self.factor * n), allowed)), n, random)
        first = top(values, round(self.mix * n))
        others = (values.index_fill(0, first, -1) >= 0).nonzero()[:, 0]
        return torch.cat([first, draw(others, n - len(first), random)]).sort().values


# -- Positions in the vector of all weights ---------------------------------------------------------------------------


def top(values: Tensor, n: int) -> Tensor:
    """(n,) positions of the largest values, ascending; of equal ones the first. Partitions, which takes linear time and
    a copy of the values; sorting takes ten times as long."""
    if not n:
        return torch.empty(0, dtype=torch.int64)
    least = float(np.partition(values.numpy(), len(values) - n)[len(values) - n])
    above, equal = ((values > least).nonzero()[:, 0], (values == least).nonzero()[:, 0])
    return torch.cat([above, equal[:n - len(above)]]).sort().values


def draw(positions: Tensor, n: int, random: torch.Generator) -> Tensor:
    """n of the positions, without replacement, ascending."""
    return positions[torch.randperm(len(positions), generator=random)[:n]].sort().values


def shares(count: int, sizes: list[int]) -> list[int]:
    """`count` divided among groups in proportion to their sizes, rounded so that nothing is lost."""
    ends = [count * end // sum(sizes) for end in accumulate(sizes, initial=0)]
    return [b - a for a, b in pairwise(ends)]


def marked(model: nn.Module, chosen: Tensor) -> Weights:
    """Name -> bool tensor, True at the chosen positions."""
    check_positions(model, chosen)
    mask = torch.zeros(sum(p.numel() for p in trainable(model).values()), dtype=torch.bool)
    mask[chosen] = True
    return unflatten(model, mask.to(next(model.parameters()).device))


def check_positions(model: nn.Module, chosen: Tensor) -> None:
    """Raise ValueError for positions that were chosen in another model."""
    last = sum(p.numel() for p in trainable(model).values()) - 1
    if chosen.is_floating_point() or (len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) <= last):
        raise ValueError(f"positions of weights are whole numbers in 0..{last} for this model; got {chosen.dtype}, "
                         f"{chosen.min()} to {chosen.max()}: choose them with `select` and the same model")


def flatten(weights: Weights) -> Tensor:
    """(P,) all of them in one vector."""
    return torch.cat([p.detach().flatten() for p in weights.values()])


def layer_of(model: nn.Module) -> dict[str, int]:
    """Name of each trainable parameter -> the number of its layer; one that is shared belongs to the first."""
    number = {id(p): k for k, layer in reversed(list(enumerate(layers(model)))) for module in layer
              for p in module.parameters(recurse=False)}
    return {name: number[id(p)] for name, p in trainable(model).items()}


def layers_reached(model: nn.Module, chosen: Tensor) -> float:
    """Share of the layers of which a weight is chosen: q of `rumlib.metrics.analytic_acceleration`."""
    found = {layer for name, layer in layer_of(model).items() if marked(model, chosen)[name].any()}
    return len(found) / len(layers(model))
