"""Audits of unlearned models themselves: what their weights still know, whatever their answers say.

    relearning(model, learn, watched, recipe)                # (epochs + 1,) accuracy, before and after each epoch
    linear_probe(model, known, examples)                     # accuracy of a new last layer on the model's features
    cka_by_layer(a, b, examples)                             # likeness of two models' representations, layer by layer
    quantised(model, bits=4)                                 # the model with weights of so many bits
    prototype_attack(model, few, test)                       # a forgotten class, back from a few of its images
    fallen_to(model, examples)                               # which classes these are called, as shares
    HeadOnly(RandomLabel())                                  # the control: unlearns in the last layer alone
    compared(found, expected)                                # flagged, if models differ from oracles in the mean

No number here is good or bad by itself. An oracle never saw the forget set, and still relearns a part of it. So each
audit is read beside that of several oracles: `compared` flags a difference from them in either direction.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, sqrt

import torch
from torch import Tensor, nn

from rumlib.algorithms.base import Algorithm, validate_inputs
from rumlib.algorithms.layers import layers
from rumlib.data import Examples
from rumlib.device import check_values
from rumlib.models import anchor
from rumlib.train import Recipe, accuracy, check_compatible, correct, features, fit, predict

# -- Does the knowledge come back? ------------------------------------------------------------------------------------


def relearning(model: nn.Module, learn: Examples, watched: Examples, recipe: Recipe, *, seed: int = 0) -> Tensor:
    """(recipe.epochs + 1,) accuracy on `watched` before and after each epoch of training on with `learn`.

    learn    the retain set, with or without a few forgotten examples; `watched`: forgotten examples that are not in it
    recipe   each epoch is run with it anew, momentum and schedule included; take a small learning rate

    A model that hides what it knows comes back faster than an oracle learns. Raises ValueError where `watched` shares
    examples with `learn`, and what `rumlib.fit` raises. Source: arXiv 2505.22310.
    """
    check_compatible(model, watched, "watched")
    if shared := int(torch.isin(watched.index, learn.index).sum()):
        raise ValueError(f"{shared} of the {len(watched)} watched examples are among those that are learnt: split them "
                         f"first, e.g. few, watched = forget.split(mask)")
    found, once = [accuracy(model, watched)], replace(recipe, epochs=1)
    for epoch in range(recipe.epochs):
        model = fit(model, learn, once, seed=seed + epoch)
        found.append(accuracy(model, watched))
    return torch.tensor(found)


def linear_probe(model: nn.Module, known: Examples, examples: Examples, *, penalty: float = 1e-3) -> float:
    """Accuracy on `examples`, in [0, 1], of a new linear layer on the penultimate features, fitted to `known`.

    penalty  of the squared weights, relative to the number of known examples; features are standardised

    Near the original's although the answers are an oracle's: the edit is in the last layer. The layer is the solution
    of least squares on one-hot labels, so that nothing is drawn. Raises what `check_compatible` raises. Source: arXiv
    2604.08271.
    """
    check_values("linear_probe", penalty=(penalty, "(0, inf)"))
    for name, part in (("known", known), ("examples", examples)):
        check_compatible(model, part, name)
    x, z = (features(model, part).double() for part in (known, examples))
    mean, std = x.mean(0), x.std(0).clamp(min=1e-6)
    x, z = (torch.cat([(part - mean) / std, torch.ones(len(part), 1)], 1) for part in (x, z))
    y = nn.functional.one_hot(known.y, predict(model, known[:2]).shape[1]).double()
    ridge = penalty * len(x) * torch.eye(x.shape[1], dtype=torch.float64)
    return correct(z @ torch.linalg.solve(x.T @ x + ridge, x.T @ y), examples.y).double().mean().item()


def quantised(model: nn.Module, bits: int) -> nn.Module:
    """A copy whose weight matrices and kernels are rounded to so many bits, 2 to 16: symmetric, with one scale for each
    output. Biases and normalisations stay. If rounding brings forgotten answers back, unlearning has moved the weights
    by less than a step of the rounding.

    >>> quantised(nn.Linear(3, 2), bits=2).weight.unique().numel() <= 6             # -s, 0 and s of each of two rows
    True
    """
    check_values("quantised", bits=(bits, "int [2, 16]"))
    anchor(model)
    rounded = copy.deepcopy(model).eval()
    with torch.no_grad():
        for weight in rounded.parameters():
            if weight.ndim > 1:
                rows = weight.flatten(1)
                step = rows.abs().amax(1).clamp(min=1e-12) / (2 ** (bits - 1) - 1)
                step = step.view(-1, *[1] * (weight.ndim - 1))
                weight.copy_((weight / step).round() * step)
    return rounded


# -- Where does it lie? -----------------------------------------------------------------------------------------------


def cka(a: Tensor, b: Tensor) -> float:
    """Linear centred kernel alignment of two representations (n, d) and (n, e) of the same examples, in [0, 1]; 1:
    equal but for a rotation and one factor. Raises ValueError for other shapes, fewer than two examples or a constant
    representation. Source: Kornblith and others, arXiv 1905.00414.

    >>> a = torch.tensor([[1.0, 0], [0, 1], [1, 1]])
    >>> round(cka(a, 3 * a.flip(1)), 6)
    1.0
    """
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b) or len(a) < 2:
        raise ValueError(f"cka compares (n, d) and (n, e) of the same two or more examples; got {tuple(a.shape)} and "
                         f"{tuple(b.shape)}")
    a, b = (x.double() - x.double().mean(0) for x in (a, b))
    own = (a.T @ a).norm() * (b.T @ b).norm()
    if not own > 0:
        raise ValueError("a representation that is the same for all examples has no alignment")
    return ((a.T @ b).square().sum() / own).item()


def cka_by_layer(a: nn.Module, b: nn.Module, examples: Examples) -> list[float]:
    """`cka` of two models of one architecture: of the inputs of every layer but the first, and last of the logits."""
    parts = [[group[0] for group in layers(model)] for model in (a, b)]
    if len(parts[0]) != len(parts[1]):
        raise ValueError(f"the models have {len(parts[0])} and {len(parts[1])} layers: only models of one architecture "
                         f"are compared layer by layer")
    found = [cka(features(a, examples, layer=of_a), features(b, examples, layer=of_b))
             for of_a, of_b in list(zip(*parts, strict=True))[1:]]
    return [*found, cka(predict(a, examples), predict(b, examples))]


# -- Whole classes ----------------------------------------------------------------------------------------------------


def prototype_attack(model: nn.Module, few: Examples, test: Examples) -> float:
    """How well a forgotten class comes back from a few of its images, without training: balanced accuracy in [0, 1].

    few   images of one forgotten class;  test: images of this class and of others

    The weights of the class in the last linear layer become the mean feature of the few images, less the mean feature
    that `test` has, as long as those of the other classes are on average; its bias becomes their mean. Returned is the
    mean of the accuracy on the class and of that on the others, since a layer that calls everything by that class is no
    attack. Raises ValueError where `few` has several classes or `test` lacks one of the two kinds, or for a model that
    does not end with a linear layer. Source: arXiv 2506.01318, there without the centring.
    """
    for name, part in (("few", few), ("test", test)):
        check_compatible(model, part, name)
    classes = few.y.unique()
    if len(classes) > 1:
        raise ValueError(f"the prototype is of one class; the few images have {classes.tolist()}")
    own, others = test.split_classes(int(classes))
    attacked = copy.deepcopy(model).eval()
    last = _head(attacked)
    direction = features(model, few).mean(0) - features(model, test).mean(0)
    rest = torch.arange(len(last.weight)) != classes
    with torch.no_grad():
        length = last.weight[rest].norm(dim=1).mean()
        last.weight[int(classes)] = (direction / direction.norm().clamp(min=1e-12)).to(last.weight) * length
        if last.bias is not None:
            last.bias[int(classes)] = last.bias[rest].mean()
    return (accuracy(attacked, own) + accuracy(attacked, others)) / 2


def fallen_to(model: nn.Module, examples: Examples) -> Tensor:
    """(classes,) share of the examples that are called each class. Of a forgotten class: oracles spread it over its
    neighbours in a way of their own, and another way betrays that something was done."""
    check_compatible(model, examples, "examples")
    logits = predict(model, examples)
    return torch.bincount(logits.argmax(1), minlength=logits.shape[1]) / len(logits)


def neighbour_distance(shares: Tensor, oracles: Sequence[Tensor]) -> float:
    """Half the sum of |differences| of `fallen_to` from its mean over several oracles, in [0, 1]; 0: as theirs."""
    return (shares - torch.stack(list(oracles)).mean(0)).abs().sum().item() / 2


# -- The control ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeadOnly:
    """Unlearning in the last linear layer alone, by the inner algorithm: a negative control, not a method.

    Its answers can be made those of an oracle, and all other weights are the original's, bit by bit. Audits that do not
    flag it are blind. Raises TypeError for an inner algorithm whose weights cannot be restricted, ValueError for a
    model that does not end with a linear layer. Source of the control: arXiv 2503.06991 and 2604.08271.
    """

    inner: Algorithm

    def __post_init__(self):
        if not isinstance(self.inner, Algorithm):
            raise TypeError(f"HeadOnly needs an Algorithm whose weights it can restrict, e.g. HeadOnly(RandomLabel()); "
                            f"got {self.inner!r}")

    def __call__(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int = 0) -> nn.Module:
        validate_inputs(model, forget, retain)
        head = {id(p) for p in _head(model).parameters()}
        only = {name: torch.full_like(p, id(p) in head, dtype=torch.bool) for name, p in model.named_parameters()}
        return self.inner.unlearn(model, forget, retain, seed=seed, only=only)


def _head(model: nn.Module) -> nn.Linear:
    """The last linear layer, if it is the last of all."""
    last = layers(model)[-1][0] if layers(model) else None
    if not isinstance(last, nn.Linear):
        raise ValueError(f"the model must end with a nn.Linear layer; it ends with {type(last).__name__}")
    return last


# -- The verdict ------------------------------------------------------------------------------------------------------


def compared(found: Sequence[float], expected: Sequence[float], *, margin: float = 0.05,
             level: float = 0.99) -> dict[str, float | bool]:
    """Whether models differ from oracles in an audit: the difference of the means, with Welch's interval.

    found, expected  a number for each audited model, and for each of several oracles; at least two each
    margin           the smallest difference that matters, in the units of the audit

    Returns difference, low, high and flagged: the interval excludes 0 and the difference is `margin` or more, in either
    direction. The level is 0.99 since one model is put to many audits. Raises ValueError for fewer than two numbers,
    for numbers that are not finite, and for a margin or level out of range.

    >>> compared([0.9, 0.92, 0.91], [0.5, 0.52, 0.48])["flagged"], compared([0.51, 0.5], [0.5, 0.52, 0.48])["flagged"]
    (True, False)
    """
    from scipy.special import stdtrit

    check_values("compared", margin=(margin, "[0, inf)"), level=(level, "(0, 1)"))
    a, b = (torch.as_tensor(values, dtype=torch.float64).flatten() for values in (found, expected))
    if min(len(a), len(b)) < 2 or not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError(f"give two or more finite numbers of audited models and of oracles; got {len(a)} and {len(b)}")
    parts = [(x.var() / len(x)).item() for x in (a, b)]
    freedom = sum(parts) ** 2 / sum(p * p / (len(x) - 1) for p, x in zip(parts, (a, b), strict=True)) if sum(
        parts) else inf
    half = float(stdtrit(freedom, (1 + level) / 2)) * sqrt(sum(parts)) if sum(parts) else 0.0
    difference = (a.mean() - b.mean()).item()
    return {"difference": difference, "low": difference - half, "high": difference + half,
            "flagged": abs(difference) > half and abs(difference) >= margin}
