"""A number for each example: how strongly it is memorized, or anything else that forget sets are chosen by.

    score = memorization(make_model, train, recipe, models=128)    # subset estimator, with its standard error
    score = Score("my own", values, train.index)
    score = Score.read("published.npz", "memorization", train, labels="labels")    # only if the order is proven
    forget, retain = train.split(score.pick(100, "high"))          # or low, medium, mix
    entanglement(features(model, forget), features(model, retain)) # of a whole forget set; also mmd
    bands, neighbours, matched                                     # forget sets that differ in entanglement

Cheap stand-ins for memorization are in `rumlib.proxies`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rumlib.columns import columns
from rumlib.data import IDS, Examples, as_tensor, digest, label_hash
from rumlib.device import check_values, is_official
from rumlib.ensemble import fit_many
from rumlib.models import Factory, check_factory
from rumlib.train import Recipe, correct, derive_seed, predict

LEVELS = ("low", "medium", "high", "mix")


@dataclass(frozen=True, eq=False)
class Score:
    """A number per example; higher means more memorized (or more of whatever `name` says).

    values  (n,) real numbers, kept as float32
    index   (n,) int64, which example of the data set each value belongs to; 0..n-1 if not given
    stderr  (n,) standard errors, if the estimator knows them
    middle  the value around which "medium" lies; None: the median
    bank    what a subset estimator saw of its models, for other uses of the same trainings

    Raises ValueError or TypeError for values that are no finite real numbers and for an index that repeats.

    >>> Score("loss", [0.1, 2.5, 0.3]).pick(1, "high")
    tensor([False,  True, False])
    """

    name: str
    values: Tensor
    index: Tensor | None = None
    stderr: Tensor | None = None
    middle: float | None = None
    bank: Bank | None = None

    def __post_init__(self):
        values = _real(self.values, f"the values of score {self.name!r}").float()
        index = torch.arange(len(values)) if self.index is None else _real(self.index, f"index of score {self.name!r}")
        if values.ndim != 1 or not len(values) or index.shape != values.shape:
            raise ValueError(f"a score needs one value and one index per example; got values {tuple(values.shape)}, "
                             f"index {tuple(index.shape)}")
        if self.stderr is not None and len(self.stderr) != len(values):
            raise ValueError(f"stderr of score {self.name!r} must have one value for each of the {len(values)} "
                             f"examples; got {len(self.stderr)}")
        if not values.isfinite().all():
            raise ValueError(f"score {self.name!r} is not finite for {int((~values.isfinite()).sum())} examples, "
                             f"first at position {int((~values.isfinite()).nonzero()[0])}")
        if index.dtype not in (*IDS, torch.uint8):
            raise TypeError(f"the index of score {self.name!r} must be whole numbers; got {index.dtype}. Give the "
                            f"index of the examples, examples.index")
        if len(index.unique()) < len(index):
            raise ValueError(f"score {self.name!r} has several values for one example: index must not repeat")
        if self.middle is not None and not -torch.inf < self.middle < torch.inf:
            raise ValueError(f"middle of score {self.name!r} must be a finite number or None; got {self.middle}")
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "index", index.long())

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

        The labels must prove that its order is that of `examples.index`. Either `labels` names the column of the file
        that holds them. Or `labels_hash` is their `rumlib.data.label_hash`; then `examples` must be the whole data set.
        Nothing is unpickled, and sizes are checked before memory is taken.

        Raises FileNotFoundError without the file, ValueError if the file is damaged, larger than a file of scores can
        be or does not hold what is asked for, or if the proof fails.
        """
        read = columns(Path(path), [column for column in (key, labels) if column is not None])
        values, last = read[key], int(examples.index.max())
        if last >= len(values):
            raise ValueError(f"{path} has {len(values)} values; examples go up to index {last}")
        if labels is not None:
            theirs = torch.tensor(read[labels])
            if len(theirs) != len(values):
                raise ValueError(f"{path} has {len(values)} values and {len(theirs)} labels")
            differ = theirs[examples.index] != examples.y
            if differ.any():
                raise ValueError(f"{path} is in another order, or of other data: the labels of {int(differ.sum())} of "
                                 f"{len(examples)} examples differ")
        elif labels_hash is None:
            raise ValueError("nothing proves the order of the file: give labels=, its column of labels, or "
                             "labels_hash=")
        elif not torch.equal(examples.index, torch.arange(len(values))):
            raise ValueError(f"labels_hash speaks of all {len(values)} examples in order; got {len(examples)}")
        elif label_hash(examples.y) != labels_hash:
            raise ValueError(f"{path} is in another order, or of other data: the labels hash to "
                             f"{label_hash(examples.y)}, not {labels_hash}")
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
        the thirds never overlap (arXiv 2406.01257, section 5: 1,000 of each make the forget set of RUM). Raises
        ValueError for another level, and for n outside 1..len(self).

        >>> Score("loss", [0.1, 2.5, 0.3, 0.2]).pick(2, "low")
        tensor([ True, False, False,  True])
        """
        check_values("pick", level=(level, LEVELS))
        if not hasattr(n, "__index__") or not 0 < n <= len(self):
            raise ValueError(f"cannot pick {n!r} examples from a pool of {len(self)}; choose a whole number in "
                             f"1..{len(self)}")
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


def _real(values, what: str) -> Tensor:
    """A tensor of them. Raises TypeError for what is no real number."""
    found = as_tensor(values, what)
    if found.is_complex():
        raise TypeError(f"{what} must be real numbers; got {found.dtype}. Take the real part or the magnitude")
    return found


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
    random `fraction` of `train` and evaluated without augmentation.

    make_model  a function that makes an untrained model

    Returns the Score in [-1, 1], with its standard error in `.stderr` and what the models said in `.bank`.
    Raises ValueError, before anything is trained, if an example is in all or in none of the subsets.
    Source: Feldman 2020, Feldman and Zhang 2020, as in arXiv 2406.01257 (400 models, fraction 0.7).

    >>> train = Examples(torch.rand(40, 3), [0, 1] * 20)
    >>> memorization(lambda: torch.nn.Linear(3, 2), train, Recipe(epochs=1), models=16).name
    'memorization'
    """
    check_factory(make_model)
    _counts(subset_masks(len(train), range(models), fraction, seed))
    return bank(make_model, train, recipe, range(models), fraction=fraction, seed=seed).score(train.index)


def bank(make_model: Factory, train: Examples, recipe: Recipe, numbers: Iterable[int], *, fraction: float = 0.7,
         seed: int = 0) -> Bank:
    """Train the subset models with these numbers. Each depends on (seed, its number) alone, so that banks can be
    trained in parts, anywhere, and added."""
    numbers = list(numbers)
    included = subset_masks(len(train), numbers, fraction, seed)
    right, margins = torch.zeros_like(included), torch.zeros(included.shape, dtype=torch.float16)
    subsets, seeds = [row.nonzero()[:, 0] for row in included], [derive_seed(seed, "subset model", k) for k in numbers]
    for k, model in enumerate(fit_many(make_model, train, subsets, recipe, seeds=seeds)):
        logits = predict(model, train)
        right[k], margins[k] = correct(logits, train.y), margin(logits, train.y).half()
    return Bank(included, right, margins)


def subset_masks(n: int, numbers: Iterable[int], fraction: float, seed: int) -> Tensor:
    """(models, n) bool: which examples are in the subset of each number."""
    size = round(fraction * n) if 0 < fraction < 1 else 0
    if not 0 < size < n:
        raise ValueError(f"fraction must leave a subset and a rest of {n} examples; got {fraction}")
    generators = [torch.Generator().manual_seed(derive_seed(seed, "subset", number)) for number in numbers]
    included = torch.zeros(len(generators), n, dtype=torch.bool)
    for row, random in zip(included, generators, strict=True):
        row[torch.randperm(n, generator=random)[:size]] = True
    return included


def _counts(included: Tensor) -> Tensor:
    """(2, n): in how many subsets each example is, and in how many it is not. Both must be at least 1."""
    inside = included.double()
    counts = torch.stack([inside.sum(0), (1 - inside).sum(0)])
    if (counts == 0).any():
        one_sided = (counts == 0).any(0).nonzero()[:, 0]
        raise ValueError(f"{len(one_sided)} examples are in all or in none of the {len(included)} subsets, e.g. "
                         f"position {int(one_sided[0])}: train more models")
    return counts


def memorization_from(correct: Tensor, included: Tensor) -> tuple[Tensor, Tensor]:
    """(values, stderr), each (n,), from bool matrices (models, n): what was right, and what was in the subset.

    The standard error is that of a difference of two means; NaN where one side has a single model.
    Raises ValueError for matrices of other shapes, and if an example is in all or in none of the subsets.

    >>> memorization_from(correct=[[True], [True], [True], [False]], included=[[True], [True], [False], [False]])
    (tensor([0.5000]), tensor([0.5000]))
    """
    correct, included = torch.as_tensor(correct), torch.as_tensor(included)
    if correct.shape != included.shape or correct.ndim != 2:
        raise ValueError(f"correct and included must both be (models, n); got {tuple(correct.shape)} and "
                         f"{tuple(included.shape)}")
    if not all(((m == 0) | (m == 1)).all() for m in (correct, included)):
        raise ValueError("correct and included must hold True and False, or 1 and 0")
    inside, right, counts = included.double(), correct.double(), _counts(included)
    rate = torch.stack([(right * inside).sum(0), (right * (1 - inside)).sum(0)]) / counts
    variance = rate * (1 - rate) / (counts - 1)              # of the mean: s^2 / count with s^2 the sample variance
    return (rate[0] - rate[1]).float(), variance.sum(0).sqrt().float()


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """(n,) logit of the true class minus the largest other: positive where the model is right."""
    others = logits.scatter(-1, y[:, None], -torch.inf)
    return logits.gather(-1, y[:, None])[:, 0] - others.max(-1).values


# -- Entanglement -----------------------------------------------------------------------------------------------------


def entanglement(forget_features: Tensor, retain_features: Tensor, *, compat: str | None = None,
                 batch_size: int = 256) -> float:
    """Entanglement score of a forget set with the retain set, from embeddings (n, d) of the original model; >= 0.

    ES = intra / inter. intra: the mean squared distances of both sets to their own mean, added. inter: half the sum of
    the squared distances of the two means from the point midway. Higher is more entangled, infinite where the means
    coincide; swapping the sets changes nothing. With compat="official" each mean is the mean of the means of batches,
    so that a short last batch counts too much.

    Raises ValueError for an empty set, for embeddings that are not finite or differ in d, and where both sets are one
    and the same point. Source: arXiv 2406.01257, section 4.1.

    >>> entanglement(torch.tensor([[1.0, 1], [1, -1]]), torch.tensor([[-1.0, 1], [-1, -1]]))
    2.0
    """
    s, r = _embeddings("entanglement", forget_features, retain_features)
    size = batch_size if is_official(compat) else max(len(r), len(s))
    mean_r, mean_s = (torch.stack([batch.mean(0) for batch in part.split(size)]).mean(0) for part in (r, s))
    middle = (mean_r + mean_s) / 2
    intra = (r - mean_r).square().sum(1).mean() + (s - mean_s).square().sum(1).mean()
    inter = ((mean_r - middle).square().sum() + (mean_s - middle).square().sum()) / 2
    if not intra and not inter:
        raise ValueError(f"entanglement of {len(s)} and {len(r)} embeddings that are all the same point is undefined")
    return (intra / inter).item()


def mmd(a: Tensor, b: Tensor, gamma: float | str = 1.0, *, block: int = 2048) -> float:
    """Squared maximum mean discrepancy of two sets of embeddings (n, d) and (m, d); >= 0, 0 for equal sets.

    Biased V-statistic in float64, kernel exp(-gamma |x - y|^2).

    gamma  above 0; 1 as published, where the root of the result is reported. Where squared distances are far above 1,
           that kernel is 0 for all pairs, and the result says nothing. "median": 1 / (2 s^2) with s the median distance
           of two different embeddings of both sets together (of at most `block` of them, evenly spaced)
    block  at most block x block values of the kernel are in memory, on the device of `a`. Tens of thousands of
           embeddings take minutes on a CPU and less than a second on a GPU

    Raises ValueError for an empty set, for embeddings that are not finite or differ in d, for another gamma, and for
    "median" where most embeddings are one and the same point.
    Source: arXiv 2406.01257, section 4.1; the median heuristic: Gretton et al., JMLR 13 (2012), section 8.

    >>> round(mmd(torch.tensor([[0.0]]), torch.tensor([[1.0]])), 4)                  # 2 - 2 / e
    1.2642
    >>> round(mmd(torch.tensor([[0.0]]), torch.tensor([[9.0]]), gamma="median"), 4)  # 2 - 2 / sqrt(e)
    0.7869
    """
    def mean(a, b):
        blocks = (torch.cdist(x, y) for x in a.split(block) for y in b.split(block))
        return sum(torch.exp(-gamma * distance.square()).sum() for distance in blocks) / (len(a) * len(b))

    a, b = _embeddings("mmd", a, b)
    if gamma == "median":
        gamma = _median_gamma(torch.cat([a, b]), block)
    check_values("mmd", gamma=(gamma, "(0, inf)"))
    return (mean(a, a) + mean(b, b) - 2 * mean(a, b)).item()


def _median_gamma(points: Tensor, most: int) -> float:
    """1 / (2 s^2), s the median distance of two of the points."""
    points = points[torch.linspace(0, len(points) - 1, min(most, len(points)), dtype=torch.float64).round().long()]
    middle = torch.nn.functional.pdist(points).median().item()
    if not middle:
        raise ValueError(f"most of {len(points)} embeddings are the same point, so that their median distance is 0; "
                         f"give gamma as a number")
    return 1 / (2 * middle ** 2)


def _embeddings(what: str, *sets: Tensor) -> list[Tensor]:
    """The sets as float64, on the device of the first."""
    found = [_real(embedding, f"embeddings for {what}").to(torch.as_tensor(sets[0]).device) for embedding in sets]
    shapes = [tuple(embedding.shape) for embedding in found]
    if any(len(shape) != 2 for shape in shapes) or shapes[0][1:] != shapes[1][1:]:
        raise ValueError(f"{what} needs two sets of embeddings (n, d) of one width d; got {shapes[0]} and {shapes[1]}")
    if any(0 in shape for shape in shapes):
        raise ValueError(f"{what} needs both sets; got {shapes[0]} and {shapes[1]} embeddings")
    for embedding in found:
        if not embedding.isfinite().all():
            raise ValueError(f"{what} needs finite embeddings; {int((~embedding.isfinite()).any(1).sum())} of "
                             f"{len(embedding)} are not: the model may have diverged")
    return [embedding.double() for embedding in found]


def bands(embedding: Tensor, count: int) -> list[Tensor]:
    """Positions of `count` equal bands by distance from the centroid of all embeddings (n, d), nearest first.

    The forget sets of controlled entanglement are such bands; which one is low, medium or high has to be measured,
    since the score is not monotone in the distance. The published code cuts 45,000 examples into 15 bands of 3,000.
    Raises ValueError for more bands than examples.
    """
    check_values("bands", count=(count, "int [1, inf)"))
    _embeddings("bands", embedding, embedding)
    size = len(embedding) // count
    if size < 1:
        raise ValueError(f"{len(embedding)} examples cannot be cut into {count} bands")
    distance = (embedding - embedding.mean(0)).norm(dim=1)
    return [band.sort().values for band in distance.argsort(stable=True)[:size * count].split(size)]


def neighbours(embedding: Tensor, anchor: int, k: int) -> Tensor:
    """Positions, ascending, of the example at position `anchor` and its k nearest in the embedding (n, d).

    Raises ValueError for an anchor outside 0..n-1 and for k outside 1..n-1.
    """
    _embeddings("neighbours", embedding, embedding)
    check_values("neighbours", anchor=(anchor, f"int [0, {len(embedding)})"), k=(k, f"int [1, {len(embedding)})"))
    distance = (embedding - embedding[anchor]).norm(dim=1)
    distance[anchor] = -1                                      # before any double of it
    return distance.argsort(stable=True)[:k + 1].sort().values


def matched(values: Tensor, embedding: Tensor, n: int, *, bins: int = 20) -> dict[str, Tensor]:
    """Three forget sets of n examples, positions ascending, alike in `values` and different in entanglement.

    Of each of `bins` equal groups by `values` (n_all,), such as memorization, every set takes as many. Within groups
    they are chosen along the first principal component of the embedding (n_all, d): from its end, where a set lies
    apart from the rest, from the middle, where it lies amid the rest, or from between. Named low, medium and high by
    their measured `entanglement`. Raises ValueError for n outside bins..n_all / 2.
    """
    values, _ = _real(values, "values"), _embeddings("matched", embedding, embedding)
    if values.ndim != 1 or len(values) != len(embedding) or not values.isfinite().all():
        raise ValueError(f"values must be one finite number for each of the {len(embedding)} embeddings; got shape "
                         f"{tuple(values.shape)}, {int((~values.isfinite()).sum())} of them not finite")
    if not all(hasattr(k, "__index__") for k in (bins, n)) or not 1 <= bins <= n <= len(values) // 2:
        raise ValueError(f"choose whole numbers bins from 1 and n in bins..{len(values) // 2} (half of all examples); "
                         f"got bins={bins!r}, n={n!r}")
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
    sets.sort(key=lambda rows: entanglement(embedding[rows], embedding[~torch.isin(everything, rows)]))
    return dict(zip(("low", "medium", "high"), sets, strict=True))
