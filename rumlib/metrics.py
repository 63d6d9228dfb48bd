"""How near an unlearned model is to the oracle, a model that never saw the forget set.

    tow(unlearned, oracle, forget, retain, test)             # 1: as the oracle in accuracy on all three sets
    tow_mia(unlearned, oracle, forget, retain, test)         # with an attack on the forget set; mia_gap: this alone
    evaluate(model, forget, retain, test)                    # the four numbers behind them, from one pass over the data
    svc_mia(model, members, nonmembers, target, "entropy")   # the attack by any of its five features
    disagreement, similarity, weight_distance, weight_cosine # of two models, in predictions or in weights
    accuracies(model, {"low": low}), disagreements(...)      # of any named sets
    class_accuracies, class_mia, confusion, ulira            # forgotten classes
    forgetting_rate(a, a_u), retention, acceleration, flops  # from accuracies alone; cost
    klom, rmia, ulira_scores, forgetting_quality             # from banks of many models: `rumlib.attacks`

Accuracies and shares are fractions in [0, 1]. Functions of models and sets raise ValueError or TypeError for sets that
are empty, that the model cannot take or whose labels it does not know, and for a retain set that still holds the forget
set; and FloatingPointError for models whose logits are not finite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, log, nan, prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rumlib.attacks import called_nonmember, log_likelihood_ratio, log_odds
from rumlib.attacks import forgetting_quality as forgetting_quality
from rumlib.attacks import klom as klom
from rumlib.attacks import rmia as rmia
from rumlib.attacks import ulira_scores as ulira_scores
from rumlib.data import Examples, check_disjoint
from rumlib.device import check_values
from rumlib.graphs import unrecorded
from rumlib.models import anchor
from rumlib.train import Cost, accuracy, check_compatible, correct, predict

if TYPE_CHECKING:
    import pandas as pd

FEATURES = ("confidence", "correctness", "entropy", "modified_entropy", "probabilities")


def _check(model: nn.Module, sets: Mapping[str, Examples]) -> None:
    for name, examples in sets.items():
        check_compatible(model, examples, name)


def _logits(model: nn.Module, **sets: Examples) -> list[Tensor]:
    """(n, classes) of each of the sets."""
    _check(model, sets)
    found = [predict(model, examples) for examples in sets.values()]
    for name, logits in zip(sets, found, strict=True):
        wrong = int((~logits.isfinite()).any(1).sum())
        if wrong:
            raise FloatingPointError(f"the model gives NaN or infinite logits for {wrong} of {len(logits)} examples "
                                     f"({name}): it diverged, and cannot be compared or attacked")
    return found


def _logits_of_both(a: nn.Module, b: nn.Module, examples: Examples) -> list[Tensor]:
    found = [*_logits(a, examples=examples), *_logits(b, examples=examples)]
    if found[0].shape != found[1].shape:
        raise ValueError(f"the models know {found[0].shape[1]} and {found[1].shape[1]} classes: only models of the "
                         f"same classes can be compared")
    return found


@dataclass(frozen=True)
class Evaluation:
    """Accuracies on forget, retain and test set, and the membership attack on the forget set; all in [0, 1]."""

    forget: float
    retain: float
    test: float
    mia: float = nan


def evaluate(model: nn.Module, forget: Examples, retain: Examples, test: Examples, *, mia: bool = True,
             seed: int = 0) -> Evaluation:
    """The numbers that ToW and ToW-MIA compare, in eval mode without augmentation.

    The attacker of `mia` knows retained examples (members: the first by index, as many as there are test images) and
    the test images (non-members); the number is the share of the forget set that it calls non-member. Higher means
    more forgotten, but the right value is that of the oracle, not 1. Source: arXiv 2406.01257, section 6.
    """
    logits = _logits(model, forget=forget, retain=retain, test=test)
    check_disjoint(forget, retain)
    return evaluation(logits, (forget, retain, test), mia=mia, seed=seed)


def evaluation(logits: Sequence[Tensor], sets: Sequence[Examples], *, mia: bool = True, seed: int = 0) -> Evaluation:
    """`evaluate` from the logits (n, classes) that a model gave for (forget, retain, test)."""
    _, retain, test = sets
    accuracies = [correct(l, s.y).float().mean().item() for l, s in zip(logits, sets, strict=True)]
    if not mia:
        return Evaluation(*accuracies)
    target, members, nonmembers = (confidence(l, s.y) for l, s in zip(logits, sets, strict=True))
    n = min(len(retain), len(test))
    members = members[retain.index.argsort()[:n]]
    nonmembers = nonmembers[torch.linspace(0, len(test) - 1, n).long()]      # spread: test sets can be sorted by class
    return Evaluation(*accuracies, mia=called_nonmember(members, nonmembers, target, seed))


def tow(unlearned: nn.Module, retrained: nn.Module, forget: Examples, retain: Examples, test: Examples) -> float:
    """Tug of war, in [0, 1]; 1 is indistinguishable from retraining in accuracy on forget, retain and test set.

    (1 - d_forget) (1 - d_retain) (1 - d_test), d the absolute difference of accuracies. Source: arXiv 2406.01257,
    section 3.
    """
    u, r = (evaluate(model, forget, retain, test, mia=False) for model in (unlearned, retrained))
    return tow_from_accuracies(unlearned=(u.forget, u.retain, u.test), retrained=(r.forget, r.retain, r.test))


def tow_mia(unlearned: nn.Module, retrained: nn.Module, forget: Examples, retain: Examples, test: Examples, *,
            seed: int = 0) -> float:
    """ToW with the membership attack in place of the forget accuracy, in [0, 1].

    (1 - d_mia) (1 - d_retain) (1 - d_test), d_mia the absolute difference of `Evaluation.mia`. Source: arXiv
    2406.01257, section 6.
    """
    u, r = (evaluate(model, forget, retain, test, seed=seed) for model in (unlearned, retrained))
    return tow_from_accuracies(unlearned=(u.mia, u.retain, u.test), retrained=(r.mia, r.retain, r.test))


def tow_from_accuracies(*, unlearned: tuple[float, float, float], retrained: tuple[float, float, float]) -> float:
    """ToW from accuracies (forget, retain, test), or (mia, retain, test) for ToW-MIA, given as fractions.

    Raises ValueError for values outside [0, 1] or other than three of them, TypeError for what is no number.

    >>> round(tow_from_accuracies(unlearned=(0.8, 0.9, 0.7), retrained=(0.6, 1.0, 0.7)), 3)
    0.72
    """
    if not len(unlearned) == len(retrained) == 3:
        raise ValueError(f"ToW needs three accuracies (forget, retain, test) of each model; got {len(unlearned)} of "
                         f"the unlearned and {len(retrained)} of the retrained one")
    _fractions(*unlearned, *retrained)
    dS, dR, dT = (abs(u - r) for u, r in zip(unlearned, retrained, strict=True))
    return (1 - dS) * (1 - dR) * (1 - dT)


def disagreement(a: nn.Module, b: nn.Module, examples: Examples) -> float:
    """Share of examples that two models classify differently, in [0, 1]; 0 is best against a retrained model."""
    of_a, of_b = _logits_of_both(a, b, examples)
    return (of_a.argmax(1) != of_b.argmax(1)).float().mean().item()


def accuracies(model: nn.Module, sets: Mapping[str, Examples]) -> dict[str, float]:
    """Share classified right in each of the named sets; logits that are not finite count as wrong."""
    _check(model, sets)
    return {name: accuracy(model, examples) for name, examples in sets.items()}


def disagreements(a: nn.Module, b: nn.Module, sets: Mapping[str, Examples]) -> dict[str, float]:
    """`disagreement` on each of the named sets, and "overall", on all their examples together."""
    if not sets:
        raise ValueError("disagreements needs at least one set, e.g. {'forget': forget}; got {}")
    shares = {name: disagreement(a, b, examples) for name, examples in sets.items()}
    total = sum(share * len(sets[name]) for name, share in shares.items())
    return {**shares, "overall": total / sum(len(examples) for examples in sets.values())}


def weight_distance(a: nn.Module, b: nn.Module) -> float:
    """Euclidean distance of the parameters of two models of one architecture; 0: the same. No buffers."""
    return (_flat(a, b) - _flat(b, a)).norm().item()


def weight_cosine(a: nn.Module, b: nn.Module) -> float:
    """Cosine of the angle between the parameters of two models of one architecture, in [-1, 1]; 1: one direction."""
    return torch.nn.functional.cosine_similarity(_flat(a, b), _flat(b, a), dim=0).item()


def _flat(model: nn.Module, other: nn.Module) -> Tensor:
    for module in (model, other):
        anchor(module)                                       # refuses what is no model
    shapes, others = ({name: tuple(p.shape) for name, p in m.named_parameters()} for m in (model, other))
    if shapes != others:
        raise ValueError(f"the models differ in architecture: {str(dict(shapes.items() ^ others.items()))[:200]}")
    return torch.cat([p.detach().double().cpu().flatten() for p in model.parameters()])


def acceleration(spent: Cost, reference: Cost, of: str = "seconds") -> float:
    """How many times less was spent than for the reference (retraining), `of` "seconds", "examples", "steps" or
    "passes". Infinite where nothing was spent."""
    check_values("acceleration", of=(of, ("seconds", "examples", "steps", "passes")))
    for name, found in (("spent", spent), ("reference", reference)):
        if not isinstance(found, Cost):
            raise TypeError(f"{name} must be what `with rumlib.train.cost() as spent` gives; got {found!r}")
    return getattr(reference, of) / getattr(spent, of) if getattr(spent, of) else inf


# -- Membership inference ---------------------------------------------------------------------------------------------


def svc_mia(model: nn.Module, members: Examples, nonmembers: Examples, target: Examples, feature: str = "confidence", *,
            seed: int = 0, compat: str | None = None) -> float:
    """Share of `target` that a support-vector machine calls non-member, in [0, 1].

    It is fitted on one feature of members and non-members, RBF kernel, C = 3, gamma = "auto", as in the official code.
    feature: "confidence", the one that the papers report, or another one of `attack_feature`.

    >>> sure, unsure = (Examples([[x, 0.0]] * 9, [0] * 9) for x in (9.0, 0.5))
    >>> svc_mia(nn.Linear(2, 2), members=sure, nonmembers=unsure, target=unsure)
    1.0
    """
    sets = (members, nonmembers, target)
    logits = _logits(model, members=members, nonmembers=nonmembers, target=target)
    return called_nonmember(*(attack_feature(l, s.y, feature, compat=compat)
                               for l, s in zip(logits, sets, strict=True)), seed)


def mia_gap(unlearned: nn.Module, retrained: nn.Module, forget: Examples, retain: Examples, test: Examples, *,
            seed: int = 0) -> float:
    """|MIA of unlearned - MIA of retrained|, of `Evaluation.mia`, in [0, 1]; 0: the attack tells nothing."""
    u, r = (evaluate(model, forget, retain, test, seed=seed) for model in (unlearned, retrained))
    return abs(u.mia - r.mia)


def attack_feature(logits: Tensor, y: Tensor, feature: str, *, compat: str | None = None) -> Tensor:
    """What the attacker looks at, (n,), or (n, classes) for "probabilities"; p is softmax of the logits.

    confidence         p_y                              correctness    1 if the largest p is p_y, else 0
    entropy            -sum p log p, in nats            probabilities  p itself
    modified_entropy   -(1 - p_y) log p_y - sum over c != y of p_c log(1 - p_c) (Song and Mittal, USENIX Security 2021);
                       with compat="official" what the published code computes: -(1 - p_c) log p_c for each class c that
                       is the label of any example of the set, -p_c log p_c for the others
    """
    check_values("attack_feature", feature=(feature, FEATURES), compat=(compat, (None, "official")))
    y, p = y.cpu(), logits.softmax(1)
    match feature:
        case "confidence":
            return confidence(logits, y)
        case "correctness":
            return correct(logits, y).float()
        case "entropy":
            return -(p * _log(p)).sum(1)
        case "probabilities":
            return p
    own = torch.zeros_like(p, dtype=torch.bool).scatter(1, y[:, None], True)
    if compat:
        own[:, y.unique()] = True
        return -torch.where(own, (1 - p) * _log(p), p * _log(p)).sum(1)
    return -torch.where(own, (1 - p) * _log(p), p * _log(1 - p)).sum(1)


def _log(p: Tensor) -> Tensor:
    return p.clamp(min=1e-30).log()


def confidence(logits: Tensor, y: Tensor) -> Tensor:
    """(n,) probability given to the true class."""
    return logits.softmax(1).gather(1, y.cpu()[:, None])[:, 0]


def class_accuracies(model: nn.Module, forget: Examples, test: Examples) -> dict[str, float]:
    """Accuracy on the test images of the classes in the forget set, "forget", and on all others, "retain".

    ACC_f and ACC_r of arXiv 2312.00761. Raises ValueError if the test set has no image of one of these classes.
    """
    _check(model, {"forget": forget, "test": test})
    of_forgotten, of_retained = test.split_classes(*forget.y.unique().tolist())
    return accuracies(model, {"retain": of_retained, "forget": of_forgotten})


def class_mia(model: nn.Module, forget: Examples, retain: Examples, test: Examples, *, seed: int = 0) -> float:
    """Share of the test images of forgotten classes that an attacker calls forgotten, in [0, 1]; higher is better.

    The attacker of `svc_mia` knows by their confidence the training images, retained (members) and forgotten
    (non-members). Near 1 for a retrained model, near 0 for the original. Source: arXiv 2312.00761, section 5.
    """
    _check(model, {"forget": forget, "retain": retain, "test": test})
    check_disjoint(forget, retain)
    gone = torch.isin(test.y, forget.y)
    if not gone.any():
        raise ValueError(f"the test set has no image of the forgotten classes {forget.y.unique().tolist()}")
    return svc_mia(model, members=retain, nonmembers=forget, target=test[gone], seed=seed)


def confusion(model: nn.Module, examples: Examples, *, normalize: str | None = None) -> pd.DataFrame:
    """How many examples of each class (rows) are predicted as which class (columns), by name if the classes have
    names. normalize: as in scikit-learn; "true": shares of each row."""
    import pandas as pd
    from sklearn.metrics import confusion_matrix

    (logits,) = _logits(model, examples=examples)
    classes = range(logits.shape[1])
    counts = confusion_matrix(examples.y.cpu(), logits.argmax(1), labels=classes, normalize=normalize)
    names = examples.names if len(examples.names) == len(classes) else classes
    return pd.DataFrame(counts, pd.Index(names, name="class"), pd.Index(names, name="predicted"))


@dataclass(frozen=True)
class Likelihood:
    """How well the attack `ulira` does on a pair of models that it has not seen, and on a target; all in [0, 1]."""

    auc: float                                               # of telling unlearned from retrained, 0.5: by chance
    balanced_accuracy: float                                 # at the threshold where both errors are equal
    recall: float                                            # share of examples that call the target unlearned there


def ulira(unlearned: Sequence[nn.Module], retrained: Sequence[nn.Module], target: nn.Module,
          examples: Examples) -> Likelihood:
    """Tell unlearned from retrained models by a likelihood ratio per example (U-LiRA; Hayes et al., 2024).

    Model k of `unlearned` was trained on all data and unlearned, model k of `retrained` never saw the forget set; the
    last pair is held out to try the attack on, the others give each example its two normal distributions of log odds
    (standard deviation at least 1e-6). `examples` are those of the forget set; `target`: a model of neither list.
    """
    if len(unlearned) != len(retrained) or len(unlearned) < 3:
        raise ValueError(f"U-LiRA needs three pairs of models or more, two to fit and one to hold out; got "
                         f"{len(unlearned)} unlearned and {len(retrained)} retrained models")
    from sklearn.metrics import roc_auc_score, roc_curve

    models = (*unlearned, *retrained, target)
    odds = torch.stack([log_odds(*_logits(m, examples=examples), examples.y) for m in models], 1)
    u, r = odds[:, :-1].chunk(2, dim=1)                                      # (n, pairs) each
    fitted = [moment for known in (u[:, :-1], r[:, :-1]) for moment in (known.mean(1), known.std(1).clamp(min=1e-6))]
    held, label = torch.cat([u[:, -1:], r[:, -1:]], 1), torch.tensor([1, 0]).expand(len(u), 2)
    ratio = log_likelihood_ratio(torch.cat([held, odds[:, -1:]], 1), *fitted)              # (n, 3)
    score, label = ratio[:, :2].flatten(), label.flatten()
    fpr, tpr, thresholds = roc_curve(label, score)
    equal = abs(fpr + tpr - 1).argmin()
    return Likelihood(auc=float(roc_auc_score(label, score)), balanced_accuracy=float(tpr[equal] + 1 - fpr[equal]) / 2,
                      recall=(ratio[:, 2] >= thresholds[equal]).double().mean().item())


# What torch's counter does not know: a Cholesky factor of d x d, and the solution for n right-hand sides.
SOLVING = {torch.ops.aten.linalg_cholesky_ex: lambda a, *_, **__: prod(a) * a[-1] // 3,
           torch.ops.aten.cholesky_solve: lambda b, *_, **__: 2 * prod(b) * b[-2]}


def flops(algorithm: Callable, model: nn.Module, forget: Examples, retain: Examples, *, seed: int = 0) -> int:
    """Floating-point operations of one call of an algorithm: two for a multiplication and addition, forward and
    backward, by torch's counter; d^3 / 3 for a Cholesky factor of d x d, 2 n d^2 to use it on n vectors. Elementwise
    work (activations, the optimizer) is not counted."""
    from torch.utils.flop_counter import FlopCounterMode  # here: it takes a fifth of a second to import
    from torch.utils.module_tracker import ModuleTracker
    # No account per module: the hooks that it takes break `torch.autograd.grad` by an image (UNSIR).
    untracked = type("Untracked", (ModuleTracker,), {"__enter__": lambda self: self, "__exit__": lambda self, *_: None})
    counter = FlopCounterMode(display=False, custom_mapping=SOLVING)
    counter.mod_tracker = untracked()
    with counter, unrecorded():
        algorithm(model, forget, retain, seed=seed)
    return counter.get_total_flops()


# What the paper of Top-K and Random-k reports (arXiv 2401.04385). Only its abstract is verified, not its formulas, so
# every docstring says where its own comes from. a, a_u, a*: accuracy of the original, unlearned and retrained model.


def forgetting_rate(original: float, unlearned: float) -> float:
    """(a - a_u) / a on the forget set, clipped to [0, 1]. Proposed here. Raises ValueError for a = 0."""
    _fractions(original, unlearned)
    if original == 0:
        raise ValueError("the original classifies none of the forget set right: there is nothing that it could forget")
    return min(max((original - unlearned) / original, 0.0), 1.0)


def forgetting_rate_calibrated(original: float, unlearned: float, retrained: float) -> float:
    """(a - a_u) / (a - a*) on the forget set: 1 forgets as much as retraining does, above 1 more, below 0 nothing. NaN
    for a = a*. Proposed here."""
    _fractions(original, unlearned, retrained)
    return (original - unlearned) / (original - retrained) if original != retrained else nan


def forgetting_rate_mia(original: float, unlearned: float) -> float:
    """Share of what an attack called member before that it calls non-member in the end: (AF - BF) / BT; at most 1.

    original, unlearned: the shares of the forget set that the attack on either model calls non-member
    (`Evaluation.mia`), which are BF and AF over its size; BT = 1 - BF. Negative where more are called member than
    before, NaN where none was. Forsaken (arXiv 2003.10933) introduced the rate; this formula of it is unverified.
    """
    _fractions(original, unlearned)
    return (unlearned - original) / (1 - original) if original != 1 else nan


def retention(original: float, unlearned: float) -> float:
    """Memory retention rate a_u / a on the retain or test set. Proposed here. Raises ValueError for a = 0."""
    _fractions(original, unlearned)
    if original == 0:
        raise ValueError("the original classifies nothing right: there is nothing that could be retained")
    return unlearned / original


def similarity(a: nn.Module, b: nn.Module, examples: Examples) -> float:
    """How indistinguishable two models are by their predictions, in [0, 1]: 1 - mean JSD(p_a(x), p_b(x)) / ln 2, by
    the Jensen-Shannon divergence of their probabilities. Proposed here."""
    logits = torch.stack(_logits_of_both(a, b, examples)).double()
    return 1 - jensen_shannon(*logits.softmax(2)).mean().item() / log(2)


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """(n,) the divergence of distributions p and q (n, classes), in nats: 0 if equal, ln 2 if disjoint."""
    middle = (p + q) / 2
    entropy = -(torch.xlogy(p, p) + torch.xlogy(q, q)).sum(-1) / 2
    return (-torch.xlogy(middle, middle).sum(-1) - entropy).clamp(min=0)


def analytic_acceleration(forget: int, retain: int, *, retraining: int, repair: float, scored: bool = True,
                          reached: float = 1.0) -> float:
    """What `acceleration` over retraining should be, from counts of examples and epochs alone.

    |D_r| E_r (F + B_in + B_w) / (|D_u| (F + B_in + B_w) + |D_r| E_u (F + B_in + q B_w)): retraining takes E_r epochs,
    the repair E_u, and the scores one pass over the forget set (none if not `scored`). Forward pass F, backward pass to
    inputs B_in and backward pass to weights B_w cost alike; the last is needed for the share q = `reached` of the
    layers (1, but with scope="selected" see `layers_reached`). Proposed here. Infinite where nothing is done.
    """
    check_values("analytic_acceleration", forget=(forget, "[1, inf)"), retain=(retain, "[1, inf)"),
                 retraining=(retraining, "[1, inf)"), repair=(repair, "[0, inf)"), reached=(reached, "[0, 1]"))
    F = B_in = B_w = 1
    spent = forget * scored * (F + B_in + B_w) + retain * repair * (F + B_in + reached * B_w)
    return retain * retraining * (F + B_in + B_w) / spent if spent else inf


def overlap(a: Tensor, b: Tensor) -> float:
    """Jaccard index of two selections of weights, in [0, 1]; about k / (2 - k) for random ones of the share k. Raises
    ValueError for two empty ones."""
    both, either = torch.isin(a.unique(), b).sum().item(), len(torch.cat([a, b]).unique())
    if not either:
        raise ValueError("two empty selections have no overlap")
    return both / either


def _fractions(*values: float) -> None:
    for value in values:
        if not hasattr(value, "__float__"):
            raise TypeError(f"accuracies must be fractions in [0, 1]; got {value!r}")
        if not 0 <= value <= 1:
            remedy = ("Divide percentages by 100" if 1 < value <= 100 else "Give the share of right answers"
                      if value == value else "The set was empty, or the model diverged or was not attacked")
            raise ValueError(f"accuracies must be fractions in [0, 1]; got {value}. {remedy}")
