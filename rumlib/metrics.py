"""How near an unlearned model is to one that never saw the forget set.

    tow(unlearned, retrained, forget, retain, test)          # 1: as retrained in accuracy on all three sets
    tow_mia(unlearned, retrained, forget, retain, test)      # the same with a membership attack on the forget set
    attack(model, forget, retain, test)                      # that attack: share of the forget set called non-member
    disagreement(unlearned, retrained, examples)             # share of examples that the two classify differently
    evaluate(model, forget, retain, test)                    # the four numbers behind them, from one pass over the data
"""

from __future__ import annotations

from dataclasses import dataclass
from math import nan

import torch
from torch import Tensor, nn

from rumlib.data import Examples
from rumlib.train import correct, predict

FEATURES = ("confidence",)


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
    logits = [predict(model, s) for s in sets]
    accuracies = [correct(l, s.y).float().mean().item() for l, s in zip(logits, sets, strict=True)]
    if not mia:
        return Evaluation(*accuracies)
    target, members, nonmembers = (confidence(l, s.y) for l, s in zip(logits, sets, strict=True))
    n = min(len(retain), len(test))
    members = members[retain.index.argsort()[:n]]
    return Evaluation(*accuracies, mia=_called_nonmember(members, nonmembers[:n], target, seed))


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
    for value in (*unlearned, *retrained):
        if not 0 <= value <= 1:
            raise ValueError(f"accuracies must be fractions in [0, 1]; got {value}. Divide percentages by 100")
    dS, dR, dT = (abs(u - r) for u, r in zip(unlearned, retrained, strict=True))
    return (1 - dS) * (1 - dR) * (1 - dT)


def disagreement(a: nn.Module, b: nn.Module, examples: Examples) -> float:
    """Share of examples that two models classify differently, in [0, 1]; 0 is best against a retrained model."""
    return (predict(a, examples).argmax(1) != predict(b, examples).argmax(1)).float().mean().item()


# -- Membership inference ---------------------------------------------------------------------------------------------


def svc_mia(model: nn.Module, members: Examples, nonmembers: Examples, target: Examples, feature: str = "confidence", *,
            seed: int = 0) -> float:
    """Share of `target` that a support-vector machine calls non-member, in [0, 1].

    It is fitted on one feature of members and non-members, RBF kernel, C = 3, gamma = "auto", as in the official code.
    feature: "confidence", the probability given to the true class.
    """
    if feature not in FEATURES:
        raise ValueError(f"unknown feature {feature!r}; choose one of {', '.join(FEATURES)}")
    sets = (members, nonmembers, target)
    return _called_nonmember(*(confidence(predict(model, s), s.y) for s in sets), seed)


def confidence(logits: Tensor, y: Tensor) -> Tensor:
    """(n,) probability given to the true class."""
    return logits.softmax(1).gather(1, y.cpu()[:, None])[:, 0]


def _called_nonmember(members: Tensor, nonmembers: Tensor, target: Tensor, seed: int) -> float:
    from sklearn.svm import SVC

    x, label = torch.cat([members, nonmembers]), torch.arange(len(members) + len(nonmembers)) < len(members)
    if not x.isfinite().all() or not target.isfinite().all():
        raise FloatingPointError("the model gives NaN or infinite logits: it cannot be attacked")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    machine = SVC(C=3, gamma="auto", kernel="rbf").fit(x[order, None].numpy(), label[order].numpy())
    return float(1 - machine.predict(target[:, None].numpy()).mean())
