"""Unlearning a class by linear algebra, without a gradient: ClassProjection. How far apart two sets lie: separability.

    unlearned = ClassProjection(alpha_retain=100.0, alpha_forget=3.0)(model, forget, retain)
    table = ClassProjection((10.0, 100.0), (1.0, 3.0)).grid(model, forget, retain)     # chosen on training data
    spaces = ClassProjection().spaces(model, forget, retain)                 # the costly part, once for any alphas:
    unlearned = spaces.project(30.0, 3.0)
    separability(model, forget, retain)                                      # layer -> share, in [0, 1]

The inputs of layers are seen through hooks, so that the code of the model does not matter: any `nn.Linear`, `nn.Conv2d`
and `nn.MultiheadAttention` that a forward pass calls. What is kept of them is a d x d matrix per layer, d the width of
its input (of a convolution: channels x height x width of the kernel), however many examples there are.
"""

from __future__ import annotations

import copy
import inspect
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import ceil, inf, prod
from typing import NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rumlib.algorithms.base import validate_inputs
from rumlib.algorithms.weights import Weights
from rumlib.data import Examples, as_input
from rumlib.device import check_fields
from rumlib.train import accuracy, count_examples, predict, seeded

BLOCK = 2**22                                                # numbers gathered at a time: 32 MiB in float64


@dataclass(frozen=True)
class ClassProjection:
    """Make every layer blind to the directions in which the forget set reaches it and the retain set does not.

    Its weight W (out, d) becomes W (I - P_dis)^T, P_dis = P_f (I - P_r). P = alpha C ((alpha - 1) C + I)^-1 for either
    set, C the second moments, not centred and of trace 1, of what the original model gives the layer: the published
    form by singular vectors, without their decomposition. Weights of linear layers, convolutions and attention change,
    and nothing else: a layer that no forward pass calls, or whose weight requires no gradient, stays as it is.

    alpha_*      how much of a direction that a set hardly uses counts as its own: the larger, the more. Tuples are
                 searched for the best acc_r (1 - acc_f) on the training data given (see `grid`)
    samples      N forgotten examples and N // classes of each retained class, at random; None: all
    rows         input vectors (patches, tokens) per layer and set, at random; None: all
    scored       examples of each set that a search is scored on, at random; None: all
    granularity  "classes": whole classes go. "examples", experimental: the retain set may hold the same classes
    crop         in images wider than three kernels, convolutions see one random window of that size, as published
    chunk        images at a time
    compat       "official": of each retained class the first examples by index, not random ones

    Raises ValueError for sets that share a class where whole classes should go; TypeError, ValueError or
    FloatingPointError for layers that cannot be projected.

    Source: Kodge, Saha and Roy, TMLR 2024 (arXiv 2312.00761); the defaults are those of their code for CIFAR-10.
    """

    alpha_retain: float | tuple[float, ...] = 100.0
    alpha_forget: float | tuple[float, ...] = 3.0
    samples: int | None = 900
    rows: int | None = 10_000
    scored: int | None = 10_000
    granularity: str = "classes"
    crop: bool = False
    chunk: int = 256
    compat: str | None = None

    def __post_init__(self):
        for name in ("alpha_retain", "alpha_forget"):
            values = alphas(getattr(self, name))
            if not values or not all(isinstance(v, int | float) and 0 < v < inf for v in values):
                raise ValueError(f"{name} must be a positive number, or a tuple of such to search; "
                                 f"got {getattr(self, name)!r}")
        check_fields(self, chunk="int [1, inf)", **dict.fromkeys(("samples", "rows", "scored"), "int [1, inf) or None"),
                     granularity=("classes", "examples"), compat=(None, "official"))

    def __call__(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int = 0) -> nn.Module:
        spaces = self.spaces(model, forget, retain, seed=seed)
        if not self.searches:
            return spaces.project(self.alpha_retain, self.alpha_forget)
        found = best(self._search(spaces, forget, retain, seed))
        return spaces.model if found.alpha_retain is None else spaces.project(*found[:2])

    def grid(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int = 0) -> pd.DataFrame:
        """What a call tries, a `Trial` per row, and which of them it takes: the column `chosen`.

        The first row is the original model, without alphas: it stays if nothing scores higher. As published, an
        alpha_forget is left out that is at most a thousandth of alpha_retain, and so are all larger ones after one that
        brings the retained accuracy below the best score or the forgotten one below chance.
        """
        if not self.searches:
            raise ValueError(f"nothing to search: give alpha_retain or alpha_forget as a tuple of values; got {self}")
        tried = self._search(self.spaces(model, forget, retain, seed=seed), forget, retain, seed)
        return pd.DataFrame(tried).assign(chosen=[trial is best(tried) for trial in tried])

    def spaces(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int = 0) -> Spaces:
        """What the layers of `model` are given by each of the sets: all that a projection depends on."""
        validate_inputs(model, forget, retain)
        shared = sorted(set(forget.y.tolist()) & set(retain.y.tolist()))
        if shared and self.granularity == "classes":
            raise ValueError(f"class {shared[0]} is in the forget set and in the retain set: give whole classes, as "
                             f"train.split_classes({shared[0]}) cuts them, or granularity='examples'")
        student = copy.deepcopy(model).eval()
        sites(student)                                       # refuses what cannot be projected, before any pass
        with seeded(seed, "ClassProjection") as random:
            gone, kept = self._sampled(forget, retain, random)
            look = partial(moments, student, rows=self.rows, crop=self.crop, chunk=self.chunk, random=random)
            return Spaces(student, retain=look(kept), forget=look(gone))

    @property
    def searches(self) -> bool:
        """Whether there are alphas to choose from."""
        return isinstance(self.alpha_retain, tuple) or isinstance(self.alpha_forget, tuple)

    def _sampled(self, forget: Examples, retain: Examples, random: torch.Generator) -> tuple[Examples, Examples]:
        if self.samples is None:
            return forget, retain
        classes = retain.y.unique().tolist()
        share = self.samples // len(classes)
        if not share:
            raise ValueError(f"samples={self.samples} is fewer than one for each of the {len(classes)} retained "
                             f"classes; choose at least {len(classes)}, or None for all")
        gone = torch.randperm(len(forget), generator=random)[:self.samples]
        order = retain.index.argsort().cpu() if self.compat else torch.randperm(len(retain), generator=random)
        y = retain.y.cpu()[order]
        return forget[gone], retain[torch.cat([order[y == c][:share] for c in classes])]

    def _search(self, spaces: Spaces, forget: Examples, retain: Examples, seed: int) -> list[Trial]:
        with seeded(seed, "scored") as random:
            sets = [s[torch.randperm(len(s), generator=random)[:self.scored]] for s in (retain, forget)]
        chance = 1 / predict(spaces.model, forget[:1]).shape[1]
        tried = [Trial.of(spaces.model, *sets)]
        for r in alphas(self.alpha_retain):
            for f in sorted(value for value in alphas(self.alpha_forget) if value > r / 1000):
                tried.append(Trial.of(spaces.project(r, f), *sets, alphas=(r, f)))
                if tried[-1].retain < best(tried).score or tried[-1].forget < chance:
                    break
        return tried


class Trial(NamedTuple):
    """Alphas (None: the original model), accuracies on training data in [0, 1], and retain (1 - forget)."""

    alpha_retain: float | None
    alpha_forget: float | None
    retain: float
    forget: float
    score: float

    @classmethod
    def of(cls, model: nn.Module, retain: Examples, forget: Examples, alphas: Sequence = (None, None)) -> Trial:
        count_examples(len(retain) + len(forget))
        acc_r, acc_f = accuracy(model, retain), accuracy(model, forget)
        return cls(*alphas, acc_r, acc_f, acc_r * (1 - acc_f))


def best(tried: list[Trial]) -> Trial:
    """The first with the highest score, so that the original model stays unless another one is strictly better."""
    return max(tried, key=lambda trial: trial.score)


def alphas(value: float | tuple[float, ...]) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,)


# -- The projection ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Spaces:
    """The inputs of a model's layers: name of a `Site` -> C (groups, d, d) of the retain and of the forget set."""

    model: nn.Module
    retain: Weights
    forget: Weights

    def project(self, alpha_retain: float, alpha_forget: float) -> nn.Module:
        """A new model with W (I - P_dis)^T = W - W (I - P_r) P_f in place of each W."""
        student = copy.deepcopy(self.model)
        places = sites(student)
        for name, c_r in self.retain.items():
            w = places[name].read()
            apart = w - through(w, c_r, alpha_retain)
            places[name].write(w - through(apart, self.forget[name], alpha_forget))
        return student

    def separability(self, alpha_retain: float, alpha_forget: float) -> dict[str, float]:
        """Name of a `Site` -> |P_dis| / |P_f|, in Frobenius norm."""
        found = {}
        for name, c_r in self.retain.items():
            p_f = projection(self.forget[name], alpha_forget)
            size = p_f.norm().clamp(min=1e-300)              # 0 of 0: a layer that the forget set gives nothing
            found[name] = ((p_f - through(p_f, c_r, alpha_retain)).norm() / size).item()
        return found


def projection(c: Tensor, alpha: float) -> Tensor:
    """P (..., d, d) = alpha C ((alpha - 1) C + I)^-1, for C symmetric, positive semidefinite and of trace 1.

    With C = U diag(s) U^T it is the published form, U diag(alpha s / ((alpha - 1) s + 1)) U^T.
    """
    return through(torch.eye(c.shape[-1]).to(c).expand_as(c), c, alpha)


def through(w: Tensor, c: Tensor, alpha: float) -> Tensor:
    """w P(alpha) for w (..., n, d), without P: d^3 / 3 operations for its factor, and no product of two d x d."""
    m = (alpha - 1) * c + torch.eye(c.shape[-1]).to(c)       # its eigenvalues lie between 1 and alpha
    return torch.cholesky_solve(alpha * (w @ c).mT, torch.linalg.cholesky(m)).mT


EVERYTHING = ClassProjection(samples=None, rows=None, granularity="examples")


def separability(model: nn.Module, forget: Examples, retain: Examples, *, by: ClassProjection = EVERYTHING,
                 seed: int = 0) -> dict[str, float]:
    """Layer -> |P_dis| / |P_f|, in [0, 1]: which share of the directions of the forget set the retain set leaves alone.

    0: it shares them all; 1: none. The opposite of entanglement, and without a gradient or an embedding. `by` says with
    which alphas and samples: by default the published alphas for CIFAR-10 and all examples.
    """
    if by.searches:
        raise ValueError(f"separability needs one alpha_retain and one alpha_forget; got {by}")
    return by.spaces(model, forget, retain, seed=seed).separability(by.alpha_retain, by.alpha_forget)


# -- Where a model multiplies vectors by a matrix ---------------------------------------------------------------------


class Site(NamedTuple):
    """The rows of a weight that multiply one kind of vector; in a grouped convolution, group by group."""

    weight: nn.Parameter
    rows: slice = slice(None)
    groups: int = 1

    def read(self) -> Tensor:
        """(groups, out, d), float64."""
        return double(self.weight.detach()[self.rows].flatten(1).unflatten(0, (self.groups, -1)))

    def write(self, matrix: Tensor) -> None:
        part = self.weight.data[self.rows]
        part.copy_(matrix.reshape(part.shape))


def sites(model: nn.Module) -> dict[str, Site]:
    """Name -> site, for the layers whose weight requires a gradient; an attention has q, k and v beside its `out_proj`.

    Raises ValueError, TypeError or FloatingPointError, naming the layer, for what cannot be projected.
    """
    found: dict[str, Site] = {}
    for name, module in model.named_modules():
        match module:
            case nn.Linear():
                found[name] = Site(module.weight)
            case nn.Conv2d():
                found[name] = Site(module.weight, groups=module.groups)
            case nn.MultiheadAttention(in_proj_weight=None):                 # keys or values of another width
                found |= {f"{name}.{part}": Site(getattr(module, f"{part}_proj_weight")) for part in "qkv"}
            case nn.MultiheadAttention(embed_dim=d):
                found |= {f"{name}.{part}": Site(module.in_proj_weight, slice(k * d, (k + 1) * d))
                          for k, part in enumerate("qkv")}
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    for name, site in found.items():
        if not isinstance(site.weight, nn.Parameter):
            raise TypeError(f"the weight of layer {name!r} is computed from other tensors, so that a projection of it "
                            f"would not last; remove its parametrization first")
        if owners[id(site.weight)] > 1:
            raise ValueError(f"layer {name!r} shares its weight with another layer: give each its own copy first")
        if not site.weight.isfinite().all():
            raise FloatingPointError(f"the weight of layer {name!r} holds NaN or infinite values")
    found = {name: site for name, site in found.items() if site.weight.requires_grad}
    if not found:
        raise ValueError("the model has nothing to project: no nn.Linear, nn.Conv2d or nn.MultiheadAttention whose "
                         "weight requires a gradient")
    return found


# -- What is multiplied there -----------------------------------------------------------------------------------------


def moments(model: nn.Module, examples: Examples, *, rows: int | None, crop: bool, chunk: int,
            random: torch.Generator) -> Weights:
    """Name of a site -> C (groups, d, d), float64: the mean outer product of the vectors it is given, of trace 1."""
    sums: dict[str, Tensor | int] = defaultdict(int)
    batches = examples.x.tensor_split(ceil(len(examples) / chunk))           # of nearly equal size
    most = inf if rows is None else ceil(rows / len(batches))

    def see(names: Sequence[str], layer: nn.Module, x: Tensor) -> None:
        if not x.isfinite().all():
            raise FloatingPointError(f"layer {names[0]!r} is given NaN or infinite values")
        if isinstance(layer, nn.Conv2d):
            x = patches(layer, window(layer, x, random) if crop else x)
        found = gram(x if x.ndim == 6 else x.flatten(0, -2), getattr(layer, "groups", 1), most, random)
        for name in names:
            sums[name] = sums[name] + found

    weight = next(model.parameters())
    with watched(model, see), torch.no_grad():
        for x in batches:
            model(as_input(x, weight))
            count_examples(len(x))
    if not sums:
        raise ValueError(f"no forward pass calls a layer that can be projected, of {', '.join(sites(model))}")
    return {name: scaled(sums[name]) for name in sites(model) if name in sums}


def scaled(c: Tensor) -> Tensor:
    """C (groups, d, d) with trace 1, or 0 where no vector differs from 0."""
    trace = c.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    return c / torch.where(trace > 0, trace, 1)


@contextmanager
def watched(model: nn.Module, see: Callable[[Sequence[str], nn.Module, Tensor], None]) -> Iterator[None]:
    """Whenever the model is called inside, see(names of sites, layer, input) for each layer on its way."""
    places = sites(model)
    with ExitStack() as stack:
        # the fused path of attention calls no layer
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        for name, module in model.named_modules():
            if isinstance(module, nn.MultiheadAttention):
                feeds = partial(attended, name, side_by_side(module))
            elif name in places:
                feeds = partial(called, name)
            else:
                continue

            def hook(module, args, kwargs, feeds=feeds):
                for names, layer, x in feeds(module, args, kwargs):
                    if names := [name for name in names if name in places]:
                        see(names, layer, x)

            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


def called(name, layer, args, kwargs):
    """A linear layer or convolution is given the one thing it is called with."""
    yield [name], layer, next(iter((*args, *kwargs.values())))


def attended(name, twin, layer, args, kwargs):
    """Attention multiplies query, key and value, which are one tensor in self-attention, and then what the heads gave:
    neither by calling a layer."""
    given = inspect.signature(layer.forward).bind(*args, **kwargs).arguments
    parts = [given[part] for part in ("query", "key", "value")]
    for x in {id(x): x for x in parts}.values():
        yield [f"{name}.{letter}" for letter, part in zip("qkv", parts, strict=True) if part is x], layer, x
    yield [f"{name}.out_proj"], layer, twin(*args, **kwargs)[0]


def side_by_side(attention: nn.MultiheadAttention) -> nn.MultiheadAttention:
    """The same attention with the identity for `out_proj`: it gives what that layer is given."""
    twin = copy.deepcopy(attention)
    with torch.no_grad():
        nn.init.eye_(twin.out_proj.weight)
        if twin.out_proj.bias is not None:
            nn.init.zeros_(twin.out_proj.bias)
    return twin


def patches(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """(n, height, width, channels, kernel height, kernel width): what the kernel sees where it stops, as a view."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)          # torch's own, "same" included
    for axis, size, step, gap in zip((2, 3), layer.kernel_size, layer.stride, layer.dilation, strict=True):
        x = x.unfold(axis, gap * (size - 1) + 1, step)[..., ::gap]
    return x.permute(0, 2, 3, 1, 4, 5)


def window(layer: nn.Conv2d, x: Tensor, random: torch.Generator) -> Tensor:
    """A random part of all images, three kernels high and wide, unless they are no wider."""
    if x.shape[-1] <= 3 * layer.kernel_size[-1]:
        return x
    for axis, kernel in zip((2, 3), layer.kernel_size, strict=True):
        size = min(3 * kernel, x.shape[axis])
        start = int(torch.randint(x.shape[axis] - size + 1, (), generator=random))
        x = x.narrow(axis, start, size)
    return x


def gram(vectors: Tensor, groups: int, most: float, random: torch.Generator) -> Tensor:
    """(groups, d, d) float64: the sum of a a^T over the vectors, at random no more than `most` of them.

    The first half of the dimensions of `vectors` says where one is, the second half holds it.
    """
    half = vectors.ndim // 2
    where, width = vectors.shape[:half], prod(vectors.shape[half:])
    n = prod(where)
    order = torch.arange(n) if n <= most else torch.randperm(n, generator=random)[:int(most)]
    total = 0
    for part in order.to(vectors.device).split(max(BLOCK // width, 1)):
        a = double(vectors[torch.unravel_index(part, where)]).reshape(len(part), groups, -1).movedim(1, 0)
        total = total + a.mT @ a                             # (groups, rows, d)
    return total


def double(x: Tensor) -> Tensor:
    """In float64, which mps does not have."""
    return x.cpu().double() if x.device.type == "mps" else x.double()
