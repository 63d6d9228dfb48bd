"""Metrics beyond ToW: attacks by other features, named sets, weights, cost."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import rumlib as rum
from rumlib import metrics
from rumlib.metrics import FEATURES


def echo(classes=3):
    model = nn.Linear(classes, classes, bias=False)
    nn.init.eye_(model.weight)
    return model.eval()


def says(*classes, y=None):
    """Examples whose logits, given by `echo`, name these classes."""
    x = 5 * torch.eye(3)[list(classes)]
    return rum.Examples(x, torch.tensor(y if y is not None else classes))


@pytest.mark.parametrize("feature", FEATURES)
def test_an_attack_tells_sure_members_from_others(feature):
    """Members are known by heart, others guessed at; the target is one kind or the other."""
    random = torch.Generator().manual_seed(0)
    y = torch.randint(3, (60,), generator=random)
    members = rum.Examples(8 * torch.eye(3)[y] + 0.1 * torch.randn(60, 3, generator=random), y)
    others = rum.Examples(0.3 * torch.randn(60, 3, generator=random), y)
    args = (echo(), members[:40], others[:40])
    low, high = rum.svc_mia(*args, members[40:], feature), rum.svc_mia(*args, others[40:], feature)
    assert low == 0
    assert high > (0.4 if feature == "correctness" else 0.95)      # a third of the guesses are right


def test_attack_features_of_certain_and_of_ignorant_predictions():
    logits, y = torch.tensor([[100.0, 0, 0], [0, 100.0, 0], [0, 0, 0]]), torch.zeros(3, dtype=torch.long)
    third = torch.log(torch.tensor(3.0)).item()
    values = {name: rum.metrics.attack_feature(logits, y, name) for name in FEATURES}
    assert values["confidence"].tolist() == pytest.approx([1, 0, 1 / 3])
    assert values["correctness"].tolist() == [1, 0, 1]
    assert values["entropy"].tolist() == pytest.approx([0, 0, third])
    assert values["probabilities"].shape == (3, 3)
    # 0 where the right class is certain, large where a wrong one is; entropy cannot tell these apart
    certain, wrong, _ = values["modified_entropy"].tolist()
    assert certain == pytest.approx(0, abs=1e-6) and wrong > 60
    assert values["modified_entropy"].isfinite().all()


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="confidence, correctness, entropy"):
        rum.svc_mia(echo(), says(0), says(1), says(2), "loss")
    with pytest.raises(ValueError, match="official"):
        rum.metrics.attack_feature(torch.zeros(1, 3), torch.zeros(1).long(), "entropy", compat="v1")


def test_the_mia_gap_of_a_model_with_itself_is_zero_and_symmetric():
    random = torch.Generator().manual_seed(0)
    forget, retain, test = (rum.Examples(torch.randn(40, 3, generator=random), torch.arange(40) % 3) for _ in range(3))
    other = echo()
    other.weight.data *= 4
    gap = rum.metrics.mia_gap(echo(), other, forget, retain, test)
    assert rum.metrics.mia_gap(echo(), echo(), forget, retain, test) == 0
    assert gap == rum.metrics.mia_gap(other, echo(), forget, retain, test)
    u, r = (rum.evaluate(m, forget, retain, test).mia for m in (echo(), other))
    assert gap == abs(u - r) and gap > 0


def test_accuracies_and_disagreements_of_named_sets():
    sets = {"low": says(0, 1, 2, 0), "high": says(0, 1, y=(2, 1))}
    assert rum.metrics.accuracies(echo(), sets) == {"low": 1, "high": 0.5}
    shifted = echo()
    shifted.weight.data = torch.eye(3)[[0, 2, 1]]            # calls 1 what is 2 and the other way round
    assert rum.metrics.disagreements(echo(), shifted, sets) == {"low": 0.5, "high": 0.5, "overall": pytest.approx(0.5)}
    uneven = {"all": says(1, 2, 1, 2, 1, 2), "none": says(0, 0)}
    assert rum.metrics.disagreements(echo(), shifted, uneven) == {"all": 1, "none": 0, "overall": 0.75}


def test_distance_and_angle_of_weights():
    a = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    b = copy.deepcopy(a)
    b[1].running_mean += 1                                   # statistics are no weights
    assert rum.metrics.weight_distance(a, b) == 0 and rum.metrics.weight_cosine(a, b) == pytest.approx(1)
    with torch.no_grad():
        b[0].weight[0, 0] += 3
        b[2].bias[0] += 4
    assert rum.metrics.weight_distance(a, b) == pytest.approx(5) == rum.metrics.weight_distance(b, a)
    for p in b.parameters():
        p.data *= -2
    assert rum.metrics.weight_cosine(b, b) == pytest.approx(1)
    with torch.no_grad():
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            p.copy_(-3 * q)
    assert rum.metrics.weight_cosine(a, b) == pytest.approx(-1)
    with pytest.raises(ValueError, match="architecture"):
        rum.metrics.weight_distance(a, nn.Linear(3, 4))


def test_acceleration_is_the_ratio_of_costs():
    spent, reference = rum.train.Cost(100, 10, 0.5), rum.train.Cost(1000, 50, 4.0)
    assert rum.metrics.acceleration(spent, reference) == 8
    assert rum.metrics.acceleration(spent, reference, of="examples") == 10
    assert rum.metrics.acceleration(spent, reference, of="steps") == 5
    assert rum.metrics.acceleration(rum.train.Cost(), reference) == float("inf")
    with pytest.raises(ValueError, match="seconds, examples, steps, passes"):
        rum.metrics.acceleration(spent, reference, of="flops")


def test_a_model_identical_to_the_oracle_is_perfect():
    forget, test = says(0, 1, 2), says(1, 1)
    retain = rum.Examples(forget.x + 0.1, forget.y)          # no copies of the forget set
    assert rum.tow(echo(), echo(), forget, retain, test) == 1
    assert rum.tow_mia(echo(), echo(), forget, retain, test) == 1


# -- Counts, shares and doors -----------------------------------------------------------------------------------------


def test_analytic_acceleration_counts_every_pass():
    """Retraining takes 4 epochs of 6; to score 2 and to repair for 3 epochs of 6 takes 3 passes each, or 2.5 where half
    of the layers need no gradients of weights."""
    count = rum.metrics.analytic_acceleration
    assert count(2, 6, retraining=4, repair=3) == pytest.approx(6 * 4 * 3 / (2 * 3 + 6 * 3 * 3))
    assert count(2, 6, retraining=4, repair=3, reached=0.5) == pytest.approx(6 * 4 * 3 / (2 * 3 + 6 * 3 * 2.5))
    assert count(2, 6, retraining=4, repair=3, reached=0) == pytest.approx(6 * 4 * 3 / (2 * 3 + 6 * 3 * 2))
    assert count(1, 1, retraining=1, repair=0) == 1          # the least of each
    for few in ((0, 1, 1), (1, 0, 1), (1, 1, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            count(*few[:2], retraining=few[2], repair=0)


def test_the_attack_takes_test_examples_from_all_over_the_set(monkeypatch):
    """Four retained examples and ten test images: the test images at 0, 3, 6 and 9, not the first or the last four."""
    seen = {}
    monkeypatch.setattr(metrics, "called_nonmember", lambda *given: seen.update(zip("mnts", given, strict=True)) or 1)
    y = torch.zeros(10, dtype=torch.long)
    test = rum.Examples(torch.stack([torch.arange(10.0), torch.zeros(10), torch.zeros(10)], 1), y)
    retain = rum.Examples(test.x[:4] / 2, y[:4], torch.tensor([7, 5, 9, 3]))
    rum.evaluate(echo(), rum.Examples(test.x[:2] + 0.1, y[:2]), retain, test, seed=5)
    of_test, of_retain = (metrics.confidence(rum.predict(echo(), part), part.y) for part in (test, retain))
    assert torch.equal(seen["n"], of_test[[0, 3, 6, 9]]) and torch.equal(seen["m"], of_retain[[3, 1, 0, 2]])
    assert seen["s"] == 5 and len(seen["t"]) == 2


def test_seeds_of_all_kinds_of_integers_give_the_same_attack(planted):
    sets = planted.retain, planted.test, planted.forget
    found = {rum.svc_mia(planted.model, *sets, seed=kind(3)) for kind in (int, np.int64, np.uint8, torch.tensor)}
    assert len(found) == 1


def test_sets_in_their_own_order_need_no_index_of_their_own():
    """Two sets that count from 0 each are no overlap where their content differs."""
    forget, retain, test = says(0, 1), says(1, 2), says(2, 0)
    assert rum.tow(echo(), echo(), forget, retain, test) == 1
