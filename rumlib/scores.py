"""A number for each example: how strongly it is memorized, or anything else that forget sets are chosen by.

    score = memorization(make_model, train, recipe, models=128)    # subset estimator, with its standard error
    trace = Trace(train); fit(make_model, train, recipe, trace=trace)
    score = proxy("confidence", trace)                             # from one ordinary training run
    score = Score("my own", values, train.index)
    forget, retain = train.split(score.pick(100, "high"))          # or low, medium, mix
    entanglement(features(model, retain), features(model, forget)) # of a whole forget set
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from rumlib.data import Examples, digest
from rumlib.models import Factory
from rumlib.train import Recipe, correct, derive, fit_many, predict

LEVELS = ("low", "medium", "high", "mix")
PROXIES = ("confidence",)


@dataclass(frozen=True, eq=False)
class Score:
    """A number per example; higher means more memorized (or more of whatever `name` says).

    values  (n,) float       index  (n,) int64, which example of the data set each value belongs to
    stderr  (n,) standard errors, if the estimator knows them
    middle  the value around which "medium" lies; None: the median
    bank    what a subset estimator saw of its models, for other uses of the same trainings
    """

    name: str
    values: Tensor
    index: Tensor | None = None
    stderr: Tensor | None = None
    middle: float | None = None
    bank: Bank | None = None

    def __post_init__(self):
        values = torch.as_tensor(self.values).float()
        index = torch.arange(len(values)) if self.index is None else torch.as_tensor(self.index)
        if values.ndim != 1 or not len(values) or index.shape != values.shape:
            raise ValueError(f"a score needs one value and one index per example; got values {tuple(values.shape)}, "
                             f"index {tuple(index.shape)}")
        if not values.isfinite().all():
            raise ValueError(f"score {self.name!r} is not finite for {int((~values.isfinite()).sum())} examples, "
                             f"first at position {int((~values.isfinite()).nonzero()[0])}")
        if len(index.unique()) < len(index):
            raise ValueError(f"score {self.name!r} has several values for one example: index must not repeat")
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "index", index)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def digest(self) -> str:
        return digest(self.values, self.index)

    def __repr__(self) -> str:
        return f"Score({self.name!r}, n={len(self)}, {self.digest})"

    def of(self, examples: Examples) -> Tensor:
        """The values of these examples, in their order. Raises ValueError if the score does not cover one of them."""
        order = self.index.argsort()
        at = torch.searchsorted(self.index[order], examples.index).clamp(max=len(self) - 1)
        rows = order[at]
        unknown = self.index[rows] != examples.index
        if unknown.any():
            raise ValueError(f"score {self.name!r} does not cover {int(unknown.sum())} of {len(examples)} examples, "
                             f"e.g. index {int(examples.index[unknown][0])}")
        return self.values[rows]

    def pick(self, n: int, level: str) -> Tensor:
        """Mask (len(self),) of n examples: the lowest, the highest, those nearest to `middle`, or a third of each.

        Ties go to the first in order. In "mix", high is picked first, then low, then medium from what is left, so that
        the thirds never overlap (NeurIPS 2024, section 5: 1,000 of each make the forget set of RUM).
        """
        if level not in LEVELS:
            raise ValueError(f"unknown level {level!r}; choose one of {', '.join(LEVELS)}")
        if not 0 < n <= len(self):
            raise ValueError(f"cannot pick {n} examples from a pool of {len(self)}; choose 1..{len(self)}")
        mask = torch.zeros(len(self), dtype=torch.bool)
        if level == "mix":
            sizes = {"high": n // 3, "low": n // 3, "medium": n - 2 * (n // 3)}
            for part, size in sizes.items():
                mask[self._ranked(part, free=~mask)[:size]] = True
        else:
            mask[self._ranked(level, free=~mask)[:n]] = True
        return mask

    def _ranked(self, level: str, free: Tensor) -> Tensor:
        middle = self.values.median() if self.middle is None else self.middle
        key = {"low": self.values, "high": -self.values, "medium": (self.values - middle).abs()}[level]
        return torch.where(free, key, torch.inf).argsort(stable=True)


# -- Memorization -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Bank:
    """What is kept of the subset models: no weights, only what each said about each example.

    included  (models, n) bool, was the example in the model's subset
    correct   (models, n) bool, did the model classify it right
    margin    (models, n) float16, logit of the true class minus the largest other logit
    """

    included: Tensor
    correct: Tensor
    margin: Tensor

    def score(self, index: Tensor) -> Score:
        """The memorization score that these models give."""
        values, stderr = memorization_from(self.correct, self.included)
        return Score("memorization", values, index, stderr, middle=0.5, bank=self)

    def part(self, models) -> Bank:
        """The bank of some of the models (a mask, positions or a slice)."""
        return Bank(self.included[models], self.correct[models], self.margin[models])

    def halves(self, index: Tensor) -> tuple[Score, Score]:
        """Scores from the models of even and of odd number: how much two independent estimates agree.

        Few models leave some examples in all or in none of a half's subsets; those are left out of both.
        """
        even, odd = self.part(slice(0, None, 2)), self.part(slice(1, None, 2))
        judged = torch.stack([half.included.any(0) & ~half.included.all(0) for half in (even, odd)]).all(0)
        return tuple(Bank(*(matrix[:, judged] for matrix in (half.included, half.correct, half.margin)))
                     .score(index[judged]) for half in (even, odd))

    def __add__(self, other: Bank) -> Bank:
        return Bank(*(torch.cat([getattr(self, f), getattr(other, f)]) for f in ("included", "correct", "margin")))


def memorization(make_model: Factory, train: Examples, recipe: Recipe, *, models: int = 256, fraction: float = 0.7,
                 seed: int = 0) -> Score:
    """Memorization of every training example, estimated with models trained on random subsets.

    mem_i = P[correct on i | i in the subset] - P[correct on i | i not in it], over `models` models, each trained on a
    random `fraction` of `train` and evaluated without augmentation. Feldman 2020; Feldman and Zhang 2020, as in the
    NeurIPS 2024 paper (400 models, fraction 0.7). The standard error is in ``.stderr``; what the models said, in
    ``.bank``.
    """
    return bank(make_model, train, recipe, range(models), fraction=fraction, seed=seed).score(train.index)


def bank(make_model: Factory, train: Examples, recipe: Recipe, numbers: Iterable[int], *, fraction: float = 0.7,
         seed: int = 0) -> Bank:
    """Train the subset models with these numbers. Each depends on (seed, its number) alone, so that banks can be
    trained in parts, anywhere, and added."""
    size = round(fraction * len(train))
    if not 0 < size < len(train):
        raise ValueError(f"fraction must leave a subset and a rest of {len(train)} examples; got {fraction}")
    subsets, seeds = [], []
    for number in numbers:
        random = torch.Generator().manual_seed(derive(seed, "subset", number))
        subsets.append(torch.randperm(len(train), generator=random)[:size].sort().values)
        seeds.append(derive(seed, "subset model", number))
    included = torch.zeros(len(subsets), len(train), dtype=torch.bool)
    for row, subset in zip(included, subsets, strict=True):
        row[subset] = True
    right, margins = torch.zeros_like(included), torch.zeros(included.shape, dtype=torch.float16)
    for k, model in enumerate(fit_many(make_model, train, subsets, recipe, seeds=seeds)):
        logits = predict(model, train)
        right[k], margins[k] = correct(logits, train.y), margin(logits, train.y).half()
    return Bank(included, right, margins)


def memorization_from(correct: Tensor, included: Tensor) -> tuple[Tensor, Tensor]:
    """(values, stderr), each (n,), from bool matrices (models, n): what was right, and what was in the subset.

    The standard error is that of a difference of two means; NaN where one side has a single model.
    """
    correct, included = torch.as_tensor(correct), torch.as_tensor(included)
    if correct.shape != included.shape or correct.ndim != 2:
        raise ValueError(f"correct and included must both be (models, n); got {tuple(correct.shape)} and "
                         f"{tuple(included.shape)}")
    inside, right = included.double(), correct.double()
    counts = torch.stack([inside.sum(0), (1 - inside).sum(0)])                          # (2, n): in, out
    if (counts == 0).any():
        one_sided = (counts == 0).any(0).nonzero()[:, 0]
        raise ValueError(f"{len(one_sided)} examples are in all or in none of the {len(correct)} subsets, e.g. "
                         f"position {int(one_sided[0])}: train more models")
    rate = torch.stack([(right * inside).sum(0), (right * (1 - inside)).sum(0)]) / counts
    variance = rate * (1 - rate) / (counts - 1)              # of the mean: s^2 / count with s^2 the sample variance
    return (rate[0] - rate[1]).float(), variance.sum(0).sqrt().float()


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """(n,) logit of the true class minus the largest other: positive where the model is right."""
    others = logits.scatter(-1, y[:, None], -torch.inf)
    return logits.gather(-1, y[:, None])[:, 0] - others.max(-1).values


# -- Proxies ----------------------------------------------------------------------------------------------------------


class Trace:
    """What one training run shows of each example, collected from the training forward passes themselves.

    Pass it to ``fit(..., trace=trace)``. Each example is seen once an epoch: in train mode, before the step.
    """

    def __init__(self, examples: Examples):
        self.index = examples.index
        self.seen = torch.zeros(len(examples))
        self.confidence = torch.zeros(len(examples))         # sum over epochs of the probability of the true class

    def __call__(self, rows: Tensor, logits: Tensor, y: Tensor) -> None:
        p = logits.float().softmax(1).gather(1, y[:, None])[:, 0].cpu()
        self.confidence[rows] += p
        self.seen[rows] += 1


def proxy(name: str, trace: Trace) -> Score:
    """A stand-in for memorization at the price of one training run (arXiv 2410.16516).

    "confidence": the probability of the true class, averaged over the epochs. It falls with memorization, so the
    score is 1 - confidence: in every Score, higher means more memorized.
    """
    if name not in PROXIES:
        raise ValueError(f"unknown proxy {name!r}; choose one of {', '.join(PROXIES)}")
    if (trace.seen == 0).any():
        raise ValueError(f"the trace has not seen {int((trace.seen == 0).sum())} examples: pass it to fit(..., trace=) "
                         f"for at least one epoch")
    return Score(name, 1 - trace.confidence / trace.seen, trace.index)


# -- Entanglement -----------------------------------------------------------------------------------------------------


def entanglement(retain_features: Tensor, forget_features: Tensor) -> float:
    """Entanglement score of a forget set with the rest, from embeddings (n, d) of the original model; >= 0.

    ES = intra / inter: the two mean squared distances to the own mean, over half the squared distances of the means
    from their unweighted middle. Higher is more entangled (NeurIPS 2024, section 4.1).
    """
    r, s = retain_features.double(), forget_features.double()
    if not len(r) or not len(s):
        raise ValueError(f"entanglement needs both sets; got {len(r)} retain and {len(s)} forget embeddings")
    mean_r, mean_s = r.mean(0), s.mean(0)
    middle = (mean_r + mean_s) / 2
    intra = (r - mean_r).square().sum(1).mean() + (s - mean_s).square().sum(1).mean()
    inter = ((mean_r - middle).square().sum() + (mean_s - middle).square().sum()) / 2
    return (intra / inter).item()


def bands(embedding: Tensor, count: int) -> list[Tensor]:
    """Positions of `count` equal bands by distance from the centroid of all embeddings (n, d), nearest first.

    The forget sets of controlled entanglement are such bands; which one is low, medium or high has to be measured,
    since the score is not monotone in the distance (spec of the paper's code: 15 bands of 3,000).
    """
    size = len(embedding) // count
    if size < 1:
        raise ValueError(f"{len(embedding)} examples cannot be cut into {count} bands")
    distance = (embedding - embedding.mean(0)).norm(dim=1)
    return [band.sort().values for band in distance.argsort(stable=True)[:size * count].split(size)]
