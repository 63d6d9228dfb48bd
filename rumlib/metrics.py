"""How near an unlearned model is to one that never saw the forget set.

    tow(unlearned, retrained, forget, retain, test)          # 1: as retrained in accuracy on all three sets
    tow_mia(unlearned, retrained, forget, retain, test)      # the same with a membership attack on the forget set
    disagreement(unlearned, retrained, examples)             # share of examples that the two classify differently
    evaluate(model, forget, retain, test)                    # the four numbers behind them, from one pass over the data
    svc_mia(model, members, nonmembers, target, "entropy")   # the attack by any of its five features
    mia_gap(unlearned, retrained, forget, retain, test)      # by how much the attack tells the two apart
    accuracies(model, {"validation": v, "low": low})         # of any named sets; disagreements(a, b, sets) likewise
    weight_distance(a, b), weight_cosine(a, b)               # in the space of weights
    acceleration(spent, reference)                           # how many times cheaper than retraining
    forgetting_rate(a, a_u), retention(a, a_u)               # of accuracies, from the original to the unlearned model
    similarity(a, b, examples)                               # of predictions, 1: the same
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, log, nan

import torch
from torch import Tensor, nn

from rumlib.data import Examples
from rumlib.train import Cost, accuracy, correct, predict

FEATURES = ("confidence", "correctness", "entropy", "modified_entropy", "probabilities")


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
    more forgotten, but the right value is that of the retrained model, not 1 (NeurIPS 2024, section 6).
    """
    sets = (forget, retain, test)
    return evaluation([predict(model, s) for s in sets], sets, mia=mia, seed=seed)


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
    return Evaluation(*accuracies, mia=_called_nonmember(members, nonmembers, target, seed))


def tow(unlearned: nn.Module, retrained: nn.Module, forget: Examples, retain: Examples, test: Examples) -> float:
    """Tug of war, in [0, 1]; 1 is indistinguishable from retraining in accuracy on forget, retain and test set.

    (1 - d_forget) (1 - d_retain) (1 - d_test), d the absolute difference of accuracies (NeurIPS 2024, section 3).
    """
    u, r = (evaluate(model, forget, retain, test, mia=False) for model in (unlearned, retrained))
    return tow_from_accuracies(unlearned=(u.forget, u.retain, u.test), retrained=(r.forget, r.retain, r.test))


def tow_mia(unlearned: nn.Module, retrained: nn.Module, forget: Examples, retain: Examples, test: Examples, *,
            seed: int = 0) -> float:
    """ToW with the membership attack in place of the forget accuracy, in [0, 1].

    (1 - d_mia) (1 - d_retain) (1 - d_test), d_mia the difference of `Evaluation.mia` (NeurIPS 2024, section 6).
    """
    u, r = (evaluate(model, forget, retain, test, seed=seed) for model in (unlearned, retrained))
    return tow_from_accuracies(unlearned=(u.mia, u.retain, u.test), retrained=(r.mia, r.retain, r.test))


def tow_from_accuracies(*, unlearned: tuple[float, float, float], retrained: tuple[float, float, float]) -> float:
    """ToW from accuracies (forget, retain, test), or (mia, retain, test) for ToW-MIA, given as fractions."""
    _fractions(*unlearned, *retrained)
    dS, dR, dT = (abs(u - r) for u, r in zip(unlearned, retrained, strict=True))
    return (1 - dS) * (1 - dR) * (1 - dT)


def disagreement(a: nn.Module, b: nn.Module, examples: Examples) -> float:
    """Share of examples that two models classify differently, in [0, 1]; 0 is best against a retrained model."""
    return (predict(a, examples).argmax(1) != predict(b, examples).argmax(1)).float().mean().item()


def accuracies(model: nn.Module, sets: Mapping[str, Examples]) -> dict[str, float]:
    """Share of examples classified right in each of the named sets: validation, test, the parts of a forget set."""
    return {name: accuracy(model, examples) for name, examples in sets.items()}


def disagreements(a: nn.Module, b: nn.Module, sets: Mapping[str, Examples]) -> dict[str, float]:
    """`disagreement` on each of the named sets, and "overall", on all their examples together."""
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
    shapes, others = ({name: tuple(p.shape) for name, p in m.named_parameters()} for m in (model, other))
    if shapes != others:
        raise ValueError(f"the models differ in architecture: {dict(shapes.items() ^ others.items())}")
    return torch.cat([p.detach().double().cpu().flatten() for p in model.parameters()])


def acceleration(spent: Cost, reference: Cost, of: str = "seconds") -> float:
    """Run-time efficiency: how many times less was spent than for the reference (retraining); above 1 is cheaper.

    of: "seconds", "examples", "steps" or "passes". Infinite where nothing was spent.
    """
    if of not in ("seconds", "examples", "steps", "passes"):
        raise ValueError(f"cost is counted in seconds, examples, steps and passes; got {of!r}")
    return getattr(reference, of) / getattr(spent, of) if getattr(spent, of) else inf


# -- Membership inference ---------------------------------------------------------------------------------------------


def svc_mia(model: nn.Module, members: Examples, nonmembers: Examples, target: Examples, feature: str = "confidence", *,
            seed: int = 0, compat: str | None = None) -> float:
    """Share of `target` that a support-vector machine calls non-member, in [0, 1].

    It is fitted on one feature of members and non-members, RBF kernel, C = 3, gamma = "auto", as in the official code.
    feature: "confidence", the one that the papers report, or another one of `attack_feature`.
    """
    sets = (members, nonmembers, target)
    return _called_nonmember(*(attack_feature(predict(model, s), s.y, feature, compat=compat) for s in sets), seed)


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
    if feature not in FEATURES:
        raise ValueError(f"unknown feature {feature!r}; choose one of {', '.join(FEATURES)}")
    if compat not in (None, "official"):
        raise ValueError(f'compat must be None or "official"; got {compat!r}')
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


def _called_nonmember(members: Tensor, nonmembers: Tensor, target: Tensor, seed: int) -> float:
    from sklearn.svm import SVC

    x, label = torch.cat([members, nonmembers]), torch.arange(len(members) + len(nonmembers)) < len(members)
    if not x.isfinite().all() or not target.isfinite().all():
        raise FloatingPointError("the model gives NaN or infinite logits: it cannot be attacked")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    machine = SVC(C=3, gamma="auto", kernel="rbf").fit(x[order].view(len(x), -1).numpy(), label[order].numpy())
    return float(1 - machine.predict(target.view(len(target), -1).numpy()).mean())


# -- Forgetting, retention, similarity, acceleration ------------------------------------------------------------------
#
# What the paper of Top-K and Random-k reports (Zuo et al., IEEE TKDE 2025). Verified of it is the abstract: forgetting
# and retention rates assess both kinds of data, and acceleration is fewer epochs and less time for each. Its formulas
# are not, so every docstring says where its own is from. Accuracies and shares are fractions in [0, 1], as in the
# columns of a study's rows.


def forgetting_rate(source: float, unlearned: float) -> float:
    """Share of what the original knew of the forget set that is forgotten, in [0, 1]: (a - a_u) / a, clipped.

    a, a_u: accuracy of the original and of the unlearned model on the forget set. Proposed here. Raises ValueError for
    a = 0: an original that knows nothing of the forget set has nothing to forget.
    """
    _fractions(source, unlearned)
    if source == 0:
        raise ValueError("the original classifies none of the forget set right: there is nothing that it could forget")
    return min(max((source - unlearned) / source, 0.0), 1.0)


def forgetting_rate_calibrated(source: float, unlearned: float, retrained: float) -> float:
    """Forgetting in units of what retraining forgets: (a - a_u) / (a - a*); 1: as much, above 1: more, below 0: none.

    The accuracies on the forget set of the original, the unlearned and the retrained model. Proposed here. NaN where
    retraining forgets nothing, a = a*: then there is no unit.
    """
    _fractions(source, unlearned, retrained)
    return (source - unlearned) / (source - retrained) if source != retrained else nan


def forgetting_rate_mia(source: float, unlearned: float) -> float:
    """Share of what an attack called member before that it calls non-member in the end: (AF - BF) / BT; at most 1.

    source, unlearned: the shares of the forget set that the attack on either model calls non-member (`Evaluation.mia`),
    which are BF and AF over its size; BT = 1 - BF. Forsaken (arXiv 2003.10933) introduced the rate, as that of turning
    from memorized to unknown; this formula of it is unverified. Negative where more are called member than before, NaN
    where none was.
    """
    _fractions(source, unlearned)
    return (unlearned - source) / (1 - source) if source != 1 else nan


def retention(source: float, unlearned: float) -> float:
    """Memory retention rate: a_u / a, on the retain set or on the test set; 1: nothing lost, above 1: gained.

    a, a_u: accuracy of the original and of the unlearned model. Proposed here. Raises ValueError for a = 0.
    """
    _fractions(source, unlearned)
    if source == 0:
        raise ValueError("the original classifies nothing right: there is nothing that could be retained")
    return unlearned / source


def similarity(a: nn.Module, b: nn.Module, examples: Examples) -> float:
    """How indistinguishable two models are by their predictions, in [0, 1]: 1 - mean JSD(p_a(x), p_b(x)) / ln 2.

    JSD is the Jensen-Shannon divergence of their probabilities, at most ln 2, which disjoint ones have. Proposed here;
    beside it see `disagreement` and `weight_cosine`. Raises FloatingPointError for logits that are not finite.
    """
    logits = torch.stack([predict(model, examples).double() for model in (a, b)])
    if not logits.isfinite().all():
        raise FloatingPointError("a model gives NaN or infinite logits: its predictions cannot be compared")
    p = logits.softmax(2)                                    # (2, n, classes)
    entropy = -torch.xlogy(p, p).sum(2)
    middle = p.mean(0)
    divergence = -torch.xlogy(middle, middle).sum(1) - entropy.mean(0)
    return 1 - divergence.clamp(min=0).mean().item() / log(2)


def analytic_acceleration(forget: int, retain: int, *, retraining: int, repair: float, scored: bool = True,
                          reached: float = 1.0) -> float:
    """What `acceleration` over retraining should be, from counts of examples and epochs alone.

    |D_r| E_r (F + B_in + B_w) / (|D_u| (F + B_in + B_w) + |D_r| E_u (F + B_in + q B_w)): retraining takes E_r epochs,
    the repair E_u, and the scores one pass over the forget set (none if not `scored`). Forward pass F, backward pass to
    inputs B_in and backward pass to weights B_w cost alike; the last is needed for the share q = `reached` of the
    layers (1, but with scope="selected" see `layers_reached`). Proposed here. Infinite where nothing is done.
    """
    if min(forget, retain, retraining) < 1 or repair < 0 or not 0 <= reached <= 1:
        raise ValueError(f"sizes and epochs of retraining must be at least 1, repair at least 0 and reached in [0, 1]; "
                         f"got {forget}, {retain}, {retraining}, {repair}, {reached}")
    F = B_in = B_w = 1
    spent = forget * scored * (F + B_in + B_w) + retain * repair * (F + B_in + reached * B_w)
    return retain * retraining * (F + B_in + B_w) / spent if spent else inf


def overlap(a: Tensor, b: Tensor) -> float:
    """Share of the positions in either of two selections of weights that are in both (Jaccard index), in [0, 1].

    Of two independent random selections of the share k it is about k / (2 - k). Raises ValueError for two empty ones.
    """
    both, either = torch.isin(a.unique(), b).sum().item(), len(torch.cat([a, b]).unique())
    if not either:
        raise ValueError("two empty selections have no overlap")
    return both / either


def _fractions(*values: float) -> None:
    for value in values:
        if not 0 <= value <= 1:
            raise ValueError(f"accuracies must be fractions in [0, 1]; got {value}. Divide percentages by 100")
