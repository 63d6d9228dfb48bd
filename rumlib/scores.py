"""A number for each example: how strongly it is memorized, or anything else that forget sets are chosen by.

    score = memorization(make_model, train, recipe, models=128)    # subset estimator, with its standard error
    trace = Trace(train); fit(make_model, train, recipe, trace=trace)
    score = proxy("confidence", trace)                             # from one ordinary training run, as five others
    score = proxy("holdout_retraining", model, train, holdout=held_out)
    score = Score("my own", values, train.index)
    score = Score.read("published.npz", "memorization", train, labels="labels")    # only if the order is proven
    forget, retain = train.split(score.pick(100, "high"))          # or low, medium, mix
    entanglement(features(model, retain), features(model, forget)) # of a whole forget set; also mmd
    bands, neighbours, matched                                     # forget sets that differ in entanglement
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rumlib.data import Examples, digest, label_hash
from rumlib.ensemble import fit_many
from rumlib.models import Factory
from rumlib.train import Recipe, correct, derive_seed, predict

LEVELS = ("low", "medium", "high", "mix")


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

    @classmethod
    def read(cls, path: str | Path, key: str, examples: Examples, *, labels: str | None = None,
             labels_hash: str | None = None, name: str | None = None, middle: float | None = None) -> Score:
        """Published values, column `key` of a .npz or .csv file with one value per example of the whole data set.

        That its order is that of `examples.index` has to be proven by the labels: `labels` names the column of the file
        that holds them, or `labels_hash` is their `rumlib.label_hash` (then `examples` must be the whole data set).
        Nothing is unpickled. Raises ValueError if the file does not hold what is asked for or the proof fails.
        """
        columns = _columns(Path(path), [name for name in (key, labels) if name is not None])
        values = columns[key]
        if values.ndim != 1 or not np.issubdtype(values.dtype, np.number):
            raise ValueError(f"{key!r} of {path} must be one number per example; got {values.dtype} {values.shape}")
        if int(examples.index.max()) >= len(values):
            raise ValueError(f"{path} has {len(values)} values; examples go up to index {int(examples.index.max())}")
        if labels is not None:
            theirs = torch.tensor(columns[labels])
            if len(theirs) != len(values):
                raise ValueError(f"{path} has {len(values)} values and {len(theirs)} labels")
            differ = theirs[examples.index] != examples.y
            if differ.any():
                raise ValueError(f"{path} is in another order, or of other data: the labels of {int(differ.sum())} of "
                                 f"{len(examples)} examples differ")
        elif labels_hash is not None:
            if not torch.equal(examples.index, torch.arange(len(values))):
                raise ValueError(f"labels_hash speaks of all {len(values)} examples in order; got {len(examples)}")
            if label_hash(examples.y) != labels_hash:
                raise ValueError(f"{path} is in another order, or of other data: the labels hash to "
                                 f"{label_hash(examples.y)}, not {labels_hash}")
        else:
            raise ValueError("nothing proves the order of the file: give labels=, its column of labels, or "
                             "labels_hash=")
        return cls(name or key, torch.tensor(values)[examples.index], examples.index, middle=middle)

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
        middle = self.values.quantile(0.5) if self.middle is None else self.middle
        key = {"low": self.values, "high": -self.values, "medium": (self.values - middle).abs()}[level]
        return torch.where(free, key, torch.inf).argsort(stable=True)


# -- Memorization -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Bank:
    """What is kept of the subset models: no weights, only what each said about each example.

    included  (models, n) bool, was the example in the model's subset
    correct   (models, n) bool, did the model classify it right
    margin    (models, n) float16, logit of the true class minus the largest other logit; None where it was left behind
    """

    included: Tensor
    correct: Tensor
    margin: Tensor | None = None

    def score(self, index: Tensor) -> Score:
        """The memorization score that these models give."""
        values, stderr = memorization_from(self.correct, self.included)
        return Score("memorization", values, index, stderr, middle=0.5, bank=self)

    def part(self, models) -> Bank:
        """The bank of some of the models (a mask, positions or a slice)."""
        return self._each(lambda matrix: matrix[models])

    def halves(self, index: Tensor) -> tuple[Score, Score]:
        """Scores from the models of even and of odd number: how much two independent estimates agree.

        Few models leave some examples in all or in none of a half's subsets; those are left out of both.
        """
        even, odd = self.part(slice(0, None, 2)), self.part(slice(1, None, 2))
        judged = torch.stack([half.included.any(0) & ~half.included.all(0) for half in (even, odd)]).all(0)
        return tuple(half._each(lambda matrix: matrix[:, judged]).score(index[judged]) for half in (even, odd))

    def __add__(self, other: Bank) -> Bank:
        return self._each(lambda mine, theirs: torch.cat([mine, theirs]), other)

    def _each(self, change: Callable, *others: Bank) -> Bank:
        """The bank of changed matrices."""
        matrices = zip(*((b.included, b.correct, b.margin) for b in (self, *others)), strict=True)
        return Bank(*(None if any(m is None for m in same) else change(*same) for same in matrices))


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
        random = torch.Generator().manual_seed(derive_seed(seed, "subset", number))
        subsets.append(torch.randperm(len(train), generator=random)[:size].sort().values)
        seeds.append(derive_seed(seed, "subset model", number))
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


def _columns(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    """These columns of the file and no others: beside the scores there may be gigabytes of influences."""
    def check(present):
        for name in names:
            if name not in present:
                raise ValueError(f"{path} has no {name!r}; it has {', '.join(present)}")

    if path.suffix == ".csv":
        import pandas as pd

        frame = pd.read_csv(path)
        check(list(frame))
        return {name: frame[name].to_numpy() for name in names}
    if path.suffix != ".npz":
        raise ValueError(f"published scores are read from .npz and .csv files; got {path.name}")
    if not zipfile.is_zipfile(path):                         # NumPy would take it for a pickle
        raise ValueError(f"{path} is no file of arrays") if path.exists() else FileNotFoundError(f"there is no {path}")
    with np.load(path, allow_pickle=False) as file:
        check(file.files)
        try:
            return {name: file[name] for name in names}
        except ValueError as problem:
            raise ValueError(f"{path} holds Python objects, which are never unpickled: {problem}") from problem


# -- Entanglement -----------------------------------------------------------------------------------------------------


def entanglement(retain_features: Tensor, forget_features: Tensor, *, compat: str | None = None,
                 batch_size: int = 256) -> float:
    """Entanglement score of a forget set with the rest, from embeddings (n, d) of the original model; >= 0.

    ES = intra / inter: the two mean squared distances to the own mean, over half the squared distances of the means
    from their unweighted middle. Higher is more entangled (NeurIPS 2024, section 4.1). With compat="official" each mean
    embedding is the mean of the means of batches, so that a short last batch counts too much.
    """
    r, s = retain_features.double(), forget_features.double()
    if not len(r) or not len(s):
        raise ValueError(f"entanglement needs both sets; got {len(r)} retain and {len(s)} forget embeddings")
    if compat not in (None, "official"):
        raise ValueError(f'compat must be None or "official"; got {compat!r}')
    size = batch_size if compat else max(len(r), len(s))
    mean_r, mean_s = (torch.stack([batch.mean(0) for batch in part.split(size)]).mean(0) for part in (r, s))
    middle = (mean_r + mean_s) / 2
    intra = (r - mean_r).square().sum(1).mean() + (s - mean_s).square().sum(1).mean()
    inter = ((mean_r - middle).square().sum() + (mean_s - middle).square().sum()) / 2
    return (intra / inter).item()


def mmd(a: Tensor, b: Tensor, gamma: float = 1.0, *, block: int = 2048) -> float:
    """Squared maximum mean discrepancy of two sets of embeddings (n, d) and (m, d); >= 0, 0 for equal sets.

    Biased V-statistic, kernel exp(-gamma |x - y|^2), gamma 1 as published (which reports the root of the result); never
    more than block x block kernel values in memory.
    """
    def mean(a, b):
        blocks = (torch.cdist(x, y) for x in a.split(block) for y in b.split(block))
        return sum(torch.exp(-gamma * distance.square()).sum() for distance in blocks) / (len(a) * len(b))

    a, b = a.double(), b.double()
    if not len(a) or not len(b):
        raise ValueError(f"mmd needs two sets; got {len(a)} and {len(b)} embeddings")
    return (mean(a, a) + mean(b, b) - 2 * mean(a, b)).item()


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


def neighbours(embedding: Tensor, seed: int, k: int) -> Tensor:
    """Positions, ascending, of the example at position `seed` and its k nearest in the embedding (n, d)."""
    if not 0 < k < len(embedding):
        raise ValueError(f"k must be in 1..{len(embedding) - 1}; got {k}")
    distance = (embedding - embedding[seed]).norm(dim=1)
    distance[seed] = -1                                      # before any double of it
    return distance.argsort(stable=True)[:k + 1].sort().values


def matched(values: Tensor, embedding: Tensor, n: int, *, bins: int = 20) -> dict[str, Tensor]:
    """Three forget sets of n examples, positions ascending, alike in `values` and different in entanglement.

    Of each of `bins` equal groups by `values` (n_all,), such as memorization, every set takes as many. Within groups
    they are chosen along the first principal component of the embedding (n_all, d): from its end, where a set lies
    apart from the rest, from the middle, where it lies amid the rest, or from between. Named low, medium and high by
    their measured `entanglement`.
    """
    if not bins <= n <= len(values) // 2:
        raise ValueError(f"choose n in {bins}..{len(values) // 2} (bins to half of all examples); got {n}")
    centred = (embedding - embedding.mean(0)).double()
    along = centred @ torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -1]
    groups = values.argsort(stable=True).tensor_split(bins)
    sizes = [len(part) for part in torch.arange(n).tensor_split(bins)]
    sets = []
    for place in (1.0, 0.75, 0.5):
        rows = []
        for group, size in zip(groups, sizes, strict=True):
            start = round(place * (len(group) - size))
            rows.append(group[along[group].argsort(stable=True)[start:start + size]])
        sets.append(torch.cat(rows).sort().values)
    everything = torch.arange(len(values))
    sets.sort(key=lambda rows: entanglement(embedding[~torch.isin(everything, rows)], embedding[rows]))
    return dict(zip(("low", "medium", "high"), sets, strict=True))
