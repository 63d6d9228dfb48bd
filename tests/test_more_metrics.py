"""Metrics beyond ToW: attacks by other features, named sets, weights, cost."""

import copy

import pytest
import torch
from torch import nn

import rumlib as rum
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
    with pytest.raises(ValueError, match="seconds, examples, steps and passes"):
        rum.metrics.acceleration(spent, reference, of="flops")


def test_a_model_identical_to_the_oracle_is_perfect():
    everything, test = says(0, 1, 2, 2, 1, 0), says(1, 1)
    forget, retain = everything[:3], everything[3:]
    assert rum.tow(echo(), echo(), forget, retain, test) == 1
    assert rum.tow_mia(echo(), echo(), forget, retain, test) == 1
