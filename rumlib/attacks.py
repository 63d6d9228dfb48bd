"""What banks of models tell: how far unlearned models are from oracles, example by example.

    margins = torch.stack([log_odds(predict(m, forget), forget.y) for m in models])      # a bank: (models, examples)
    klom(oracles, unlearned)                                 # (examples,) divergence of the two distributions
    forgetting_quality(oracles, unlearned)                   # the score of the NeurIPS 2023 contest
    ulira_scores(oracles, unlearned, target)                 # attacks give (models, examples) scores,
    rmia(target, out, population, population_out)            # higher: rather a member
    paired_auc(of_unlearned, of_oracles)                     # (pairs,), 0.5: the attack sees no difference
    normalised(value, original=, oracle=)                    # 0: as far as the original, 1: as near as an oracle

A bank holds margins of models that differ in their training seed: oracles never saw the forget set, unlearned models
saw it and unlearned it. Small banks give a perfect unlearner values other than 0 and 1, so every metric is to be read
beside its null, that of oracles against other oracles, and banks too small for a metric are refused.
"""

from __future__ import annotations

from math import ceil, inf, log

import torch
from torch import Tensor

from rumlib.device import as_seed, check_values

LEAST, LEAST_BINNED = 20, 100                                # models: see `klom`
DELTA, CAP, GRID = 1e-5, 50.0, 10                            # of the contest; GRID: its thresholds for a unit, of 100


def log_odds(logits: Tensor, y: Tensor) -> Tensor:
    """(n,) log(p / (1 - p)) of the true class, float64, from the logits and therefore finite where p rounds to 1."""
    z, y = logits.double(), y.cpu()[:, None]
    return z.gather(1, y)[:, 0] - z.scatter(1, y, -inf).logsumexp(1)


# -- Distances of two banks -------------------------------------------------------------------------------------------


def klom(oracles: Tensor, unlearned: Tensor, bins: int | None = None) -> Tensor:
    """KL divergence of the margins of the oracles from those of the unlearned models, for each example, in nats.

    oracles    (M, examples) margins of M models that never saw the forget set
    unlearned  (N, examples) margins of N unlearned models
    bins       None: both are taken as normal; a number: that of the bins of two histograms over their common range,
               margins clipped at +-100 and 1e-5 added to each share (20 bins in published code)

    Returns (examples,) values, at least 0. Two banks of the *same* distribution do not give 0: by simulation the median
    is 0.07 with 20 models each, 0.05 with 30 and 0.01 with 100; with 20 bins it is 1.8 with 30 models each and 0.3 with
    100. So banks of fewer than 20 models are refused, and of fewer than 100 with bins. Reviewers ask for the median and
    the 95th percentile over forget, retain and test set.

    Raises TypeError for what is no bank, ValueError for banks too small or of different examples. Source: arXiv
    2410.23232; the normal variant is proposed here, since histograms need hundreds of models.

    >>> rows = torch.linspace(-1, 1, 20)[:, None]
    >>> round(klom(rows, rows + rows.std()).item(), 4)       # one standard deviation apart: 1 / 2
    0.5
    """
    check_values("klom", bins=(bins, "int [2, inf) or None"))
    o, u = _banks("klom", oracles, unlearned, LEAST if bins is None else LEAST_BINNED,
                  "a normal fit to fewer models calls equal banks different" if bins is None else
                  "histograms of fewer models differ by chance alone; leave out bins= for a normal fit")
    if bins is None:
        mean_o, mean_u, std_o, std_u = o.mean(0), u.mean(0), *(x.std(0).clamp(min=1e-6) for x in (o, u))
        return (std_u / std_o).log() + (std_o**2 + (mean_o - mean_u) ** 2) / (2 * std_u**2) - 0.5
    o, u = o.clamp(-100, 100), u.clamp(-100, 100)
    low, high = torch.minimum(o.amin(0), u.amin(0)), torch.maximum(o.amax(0), u.amax(0))
    width = (high - low).clamp(min=1e-12) / bins
    p, q = (_shares(((x - low) / width).long().clamp(max=bins - 1), bins) for x in (o, u))
    return (p * (p / q).log()).sum(0)


def _shares(which: Tensor, bins: int) -> Tensor:
    """(bins, examples) of the numbers of bins (models, examples), 1e-5 added to each."""
    found = torch.zeros(bins, which.shape[1], dtype=torch.float64)
    found = found.scatter_add_(0, which, torch.ones_like(which, dtype=torch.float64)) / len(which) + 1e-5
    return found / found.sum(0)


def forgetting_quality(oracles: Tensor, unlearned: Tensor, *, double: bool = True) -> float:
    """The forgetting quality F of the NeurIPS 2023 contest, in [0, 1]: the mean points of the examples.

    oracles    (N, examples) margins of models that never saw the forget set
    unlearned  (N, examples) margins of as many unlearned models
    double     whether the attacker also tries two thresholds (see `contest_epsilon`)

    An example has 1 point where its epsilon is below 0.5, half a point below 1, a quarter below 1.5 and so on, and none
    from ceil(log(N - 1)) on. Oracles against other oracles score about 0.35 with single thresholds, not 1, at any N. So
    read F / F(oracles, other oracles). The contest has N = 512 and multiplies F by the accuracies on retain and test
    set, relative to those of the oracles. Raises what `contest_epsilon` raises. Source: arXiv 2406.09073.

    >>> forgetting_quality(torch.randn(20, 5), 100 + torch.randn(20, 5))
    0.0
    """
    epsilon = contest_epsilon(oracles, unlearned, double=double)
    half = (epsilon / 0.5).floor()                           # the number of the bin
    points = torch.where(half + 1 <= 2 * ceil(log(len(oracles) - 1)), 0.5**half, 0.0)
    return points.mean().item()


def contest_epsilon(oracles: Tensor, unlearned: Tensor, *, double: bool = True) -> Tensor:
    """(examples,) how well the best threshold tells unlearned models from oracles by the margin of an example: the
    largest epsilon of (epsilon, 1e-5)-differential privacy that its error rates rule out.

    The larger median is "positive". Of each threshold epsilon = max(log(1 - d - FPR) - log FNR, log(1 - d - FNR) -
    log FPR); it is infinite where both rates are 0, and a threshold with one rate of 0 is left out. Two thresholds,
    with `double`, enclose the bank of the smaller range, each shifted by up to 2. An example on which one bank is a
    hundred times narrower than the other has 50. Single thresholds are tried at every margin, pairs on a grid of 0.1
    (in the published code: 0.01).

    Raises TypeError for what is no bank, ValueError for banks of fewer than 20 models or of different sizes.
    """
    o, u = _banks("the contest's score", oracles, unlearned, LEAST,
                  "error rates come in steps of 1 / models, and epsilon goes up to log(models - 1)")
    if len(o) != len(u):
        raise ValueError(f"the contest's score needs as many oracles as unlearned models; got {len(o)} and {len(u)}")
    above = o.quantile(0.5, 0) > u.quantile(0.5, 0)
    positive, negative = torch.where(above, o, u), torch.where(above, u, o)
    thresholds = torch.cat([positive, negative])
    missed = (positive < thresholds[:, None]).double().mean(1)                           # (thresholds, examples)
    found = _epsilon(missed, (negative >= thresholds[:, None]).double().mean(1)).amax(0)
    spread = torch.stack([x.amax(0) - x.amin(0) for x in (positive, negative)])
    if double:
        narrow = spread[0] < spread[1]
        inside, outside = torch.where(narrow, positive, negative), torch.where(narrow, negative, positive)
        found = torch.maximum(found, _epsilon_between(inside, outside))
    peaked = spread.amin(0) < 0.01 * spread.amax(0)
    return torch.where(peaked, CAP, found.clamp(max=CAP))


def _epsilon_between(inside: Tensor, outside: Tensor) -> Tensor:
    """(examples,) the largest epsilon of calling "inside" what lies between two thresholds."""
    width, shifts = inside.amax(0) - inside.amin(0), torch.arange(-2 * GRID, 2 * GRID + 1) / GRID
    right = inside.amax(0) + shifts[:, None]                                             # (shifts, examples)
    both = torch.arange(-4 * GRID, 4 * GRID + 1) / GRID      # a left one: maximum - width + two shifts
    left = inside.amax(0) - width + both[:, None]
    pairs = torch.arange(len(shifts))[:, None] + torch.arange(len(shifts))               # the left one of each pair

    def share(x):                                            # (shifts, shifts, examples) of a bank between them
        x = x.T.contiguous().sort().values                   # searched row by row
        until = torch.searchsorted(x, right.T.contiguous(), right=True).T
        before = torch.searchsorted(x, left.T.contiguous()).T
        return (until[:, None] - before[pairs]).clamp(min=0).double() / x.shape[1]

    return _epsilon(1 - share(inside), share(outside)).flatten(0, 1).amax(0)


def _epsilon(fnr: Tensor, fpr: Tensor) -> Tensor:
    """Epsilon of rates of missed and of false positives; 0 where it is negative or left out."""
    def side(a, b):
        return (1 - DELTA - a).clamp(min=1e-300).log() - b.log()

    found = torch.maximum(side(fpr, fnr), side(fnr, fpr)).clamp(min=0)
    known = (fpr > 1e-9) & (fnr > 1e-9)                      # sums of shares round
    return torch.where(known, found, torch.where((fpr <= 1e-9) & (fnr <= 1e-9), inf, 0.0))


# -- Attacks ----------------------------------------------------------------------------------------------------------


def rmia(target: Tensor, out: Tensor, population: Tensor, population_out: Tensor, a: float = 0.3) -> Tensor:
    """Robust membership inference: how many members of the population an example outdoes, as a share in [0, 1].

    target          (..., examples) probabilities of the true class, of the model or models under attack
    out             (references, examples) those of models that did not see the example; NaN where one did
    population      (..., others) of the target on examples that nobody saw
    population_out  (references, others) of the references on these
    a               how much larger the probability of a model that saw the example is; 0.3 in published code

    r(x) = p_target(x) / ((1 + a) / 2 * mean p_out(x) + (1 - a) / 2); the share of z with r(x) / r(z) > 1. Returns
    (..., examples) shares; higher: rather a member. Works with one or two references; every example needs one at least.

    Raises TypeError for what is no tensor of probabilities, ValueError for shapes that do not fit, values outside
    [0, 1], an example that every reference saw. Source: arXiv 2312.03262; privacy meter, `ml_privacy_meter/attacks.py`.

    >>> half = torch.full((2, 3), 0.5)
    >>> rmia(torch.tensor([0.9, 0.1]), half[:, :2], torch.tensor([0.2, 0.5, 0.8]), half)
    tensor([1., 0.])
    """
    check_values("rmia", a=(a, "[0, 1]"))
    named = {"target": target, "out": out, "population": population, "population_out": population_out}
    for name, values in named.items():
        if not isinstance(values, Tensor) or not values.is_floating_point():
            raise TypeError(f"rmia: {name} must be a tensor of probabilities; got {type(values).__name__}")
        if ((values < 0) | (values > 1)).any() or (name != "out" and values.isnan().any()):
            raise ValueError(f"rmia: {name} must hold probabilities in [0, 1]; got {values.min().item():.3g} to "
                             f"{values.max().item():.3g}. Of margins take margins.sigmoid()")
    for one, references in ((target, out), (population, population_out)):
        if references.ndim != 2 or one.shape[-1:] != references.shape[1:] or not references.numel():
            raise ValueError(f"rmia: references are (models, examples) for the examples of the target; got "
                             f"{tuple(references.shape)} for {tuple(one.shape)}")
    if unknown := int(out.isnan().all(0).sum()):
        raise ValueError(f"rmia: {unknown} of {out.shape[1]} examples were seen by every reference model: add models "
                         f"that did not see them")

    def ratio(p, references):
        return p / ((1 + a) / 2 * references.nanmean(0) + (1 - a) / 2)

    x, z = ratio(target, out), ratio(population, population_out).sort(-1).values
    below = torch.searchsorted(z.expand(*x.shape[:-1], -1).contiguous(), x.contiguous())
    return below.to(target.dtype) / z.shape[-1]


def ulira_scores(oracles: Tensor, unlearned: Tensor, target: Tensor) -> Tensor:
    """The attack U-LiRA on every model of a bank: the log likelihood ratio of its margins, "unlearned" to "oracle".

    oracles, unlearned  (M, examples) and (N, examples) margins that normal distributions are fitted to, two for each
                        example; the standard deviations are at least 1e-6
    target              (models, examples) margins of other models, oracles or unlearned

    Returns (models, examples) scores; higher: rather unlearned. The models of the target must be no part of the other
    two banks: fit to one half and attack the other. (With folds in turns pairs would not be independent, and intervals
    too narrow.) Raises TypeError for what is no bank, ValueError for fewer than 8 models to fit to. Source: Hayes and
    others, arXiv 2403.01218; `rumlib.metrics.ulira` is the same attack on models, with one pair held out.
    """
    o, u = _banks("U-LiRA", oracles, unlearned, 8, "two normal distributions per example are fitted")
    _, x = _banks("U-LiRA", oracles, target, 1, "")
    moments = [m for bank in (u, o) for m in (bank.mean(0), bank.std(0).clamp(min=1e-6))]
    return log_likelihood_ratio(x.T, *moments).T


def log_likelihood_ratio(x: Tensor, mean_u: Tensor, std_u: Tensor, mean_r: Tensor, std_r: Tensor) -> Tensor:
    """log N(x; mean_u, std_u) - log N(x; mean_r, std_r) for x (n, models) and moments (n,), those of each example."""
    u, r = (torch.distributions.Normal(mean[:, None], std[:, None]) for mean, std in ((mean_u, std_u), (mean_r, std_r)))
    return u.log_prob(x) - r.log_prob(x)


def loss_scores(margins: Tensor) -> Tensor:
    """The simplest attack: minus the cross-entropy, log p of the true class, from margins of any shape. Higher: rather
    a member. Source: Yeom and others, arXiv 1709.01604."""
    return torch.nn.functional.logsigmoid(margins)


def svc_shares(members: Tensor, nonmembers: Tensor, target: Tensor, *, seed: int = 0) -> Tensor:
    """(models,) share of the target examples that a support-vector machine calls members, for each model of a bank:
    the attack of ToW-MIA, from margins (models, examples) of retained, of test and of forgotten examples."""
    sets = [margins.float().sigmoid() for margins in (members, nonmembers, target)]
    return torch.tensor([1 - called_nonmember(*one, seed) for one in zip(*sets, strict=True)])


def called_nonmember(members: Tensor, nonmembers: Tensor, target: Tensor, seed: int) -> float:
    """The share of the target that a support-vector machine, fitted to members and non-members, calls non-member."""
    seed = as_seed(seed)                                     # before scikit-learn is imported, which takes seconds
    from sklearn.svm import SVC

    x, label = torch.cat([members, nonmembers]), torch.arange(len(members) + len(nonmembers)) < len(members)
    if not x.isfinite().all() or not target.isfinite().all():            # `evaluation` is given logits unchecked
        raise FloatingPointError("the model gives NaN or infinite logits: it cannot be attacked")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    machine = SVC(C=3, gamma="auto", kernel="rbf").fit(x[order].view(len(x), -1).numpy(), label[order].numpy())
    return float(1 - machine.predict(target.view(len(target), -1).numpy()).mean())


# -- What an attack achieves ------------------------------------------------------------------------------------------


def paired_auc(of_unlearned: Tensor, of_oracles: Tensor) -> Tensor:
    """(pairs,) how often a score of the k-th unlearned model is above one of the k-th oracle, ties half: the area under
    the ROC curve, over the examples. 0.5: the attack sees no difference; below: more was forgotten than by retraining.
    Pairs are independent where models are, so that their mean has a Student-t interval (`rumlib.stats.interval`).

    of_unlearned, of_oracles  (models, examples) scores; as many pairs as the smaller bank has models

    >>> paired_auc(torch.tensor([[3.0, 1.0]]), torch.tensor([[2.0, 0.0]]))
    tensor([0.7500])
    """
    pairs = min(len(of_unlearned), len(of_oracles))
    u, o = of_unlearned[:pairs, :, None], of_oracles[:pairs, None]
    return ((u > o).to(u.dtype) + 0.5 * (u == o)).mean((1, 2))


def roc(of_unlearned: Tensor, of_oracles: Tensor) -> tuple[Tensor, Tensor]:
    """(false-positive rates, true-positive rates) of all thresholds on scores of any shape, from (0, 0) to (1, 1)."""
    scores = torch.cat([of_unlearned.flatten(), of_oracles.flatten()])
    label = torch.arange(len(scores)) < of_unlearned.numel()
    order = scores.argsort(descending=True, stable=True)
    last = torch.cat([scores[order].diff() != 0, torch.tensor([True])])                  # of equal scores
    rates = [torch.cat([torch.zeros(1), part[order].cumsum(0)[last] / part.sum()]) for part in (~label, label)]
    return rates[0], rates[1]


def tpr_at(of_unlearned: Tensor, of_oracles: Tensor, fpr: float) -> float:
    """The true-positive rate at a false-positive rate of at most `fpr`. Raises ValueError where there are too few
    scores to see so small a rate."""
    check_values("tpr_at", fpr=(fpr, "(0, 1]"))
    if of_oracles.numel() * fpr < 1:
        raise ValueError(f"a false-positive rate of {fpr:g} needs at least {ceil(1 / fpr)} scores of oracles; got "
                         f"{of_oracles.numel()}")
    false, true = roc(of_unlearned, of_oracles)
    return true[false <= fpr][-1].item()


def normalised(value: float, *, original: float, oracle: float) -> float:
    """Where a value of any metric lies between that of the original, 0, and that of an oracle, 1. Above 1: beyond the
    oracle. Raises ValueError where the two are the same: then the metric has no scale.

    >>> normalised(0.6, original=0.9, oracle=0.5)
    0.75
    """
    if original == oracle:
        raise ValueError(f"the metric gives {original:g} for the original and an oracle alike: it has no scale here")
    return round((original - value) / (original - oracle), 12)


def _banks(what: str, oracles: Tensor, unlearned: Tensor, least: int, why: str) -> tuple[Tensor, Tensor]:
    """Both in float64. Raises TypeError or ValueError for what are no banks, or too small ones."""
    for name, bank in (("oracles", oracles), ("unlearned", unlearned)):
        if not isinstance(bank, Tensor) or not bank.is_floating_point():
            raise TypeError(f"{what}: {name} must be a tensor of margins (models, examples); got "
                            f"{type(bank).__name__}")
        if bank.ndim != 2 or not bank.shape[1]:
            raise ValueError(f"{what}: {name} must be (models, examples); got shape {tuple(bank.shape)}")
        if len(bank) < least:
            raise ValueError(f"{what} needs at least {least} {name}; got {len(bank)}: {why}. Train more, with other "
                             f"seeds")
        if not bank.isfinite().all():
            raise ValueError(f"{what}: {int((~bank.isfinite()).sum())} margins of {name} are not finite: leave out the "
                             f"models that diverged")
    if oracles.shape[1] != unlearned.shape[1]:
        raise ValueError(f"{what}: both banks must be of the same examples; got {oracles.shape[1]} and "
                         f"{unlearned.shape[1]}")
    return oracles.double(), unlearned.double()
