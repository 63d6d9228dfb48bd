"""Tug of war, the membership attack, disagreement."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import echo

import rumlib as rum

fraction = st.floats(0, 1)
three = st.tuples(fraction, fraction, fraction)


def confident(p, first=0):
    """Examples of class 0 to which `echo(2)` gives the probabilities p."""
    p = torch.as_tensor(p, dtype=torch.float32)
    return rum.Examples(torch.stack([p, 1 - p], 1).log(), torch.zeros(len(p), dtype=torch.int64),
                        first + torch.arange(len(p)))


def uniform(low, high, n, seed):
    return low + (high - low) * np.random.RandomState(seed).rand(n)


# -- ToW --------------------------------------------------------------------------------------------------------------


@given(three, three)
def test_tow_lies_between_0_and_1_and_does_not_ask_which_is_larger(u, r):
    tow = rum.tow_from_accuracies(unlearned=u, retrained=r)
    assert 0 <= tow <= 1
    assert tow == rum.tow_from_accuracies(unlearned=r, retrained=u)
    assert rum.tow_from_accuracies(unlearned=u, retrained=u) == 1
    assert tow <= 1 - max(abs(a - b) for a, b in zip(u, r, strict=True)) + 1e-12


def test_tow_of_models_is_tow_of_their_accuracies(planted):
    sets = planted.forget, planted.retain, planted.test
    u, r = (tuple(rum.accuracy(model, part) for part in sets) for model in (planted.model, planted.oracle))
    assert rum.tow(planted.model, planted.oracle, *sets) == rum.tow_from_accuracies(unlearned=u, retrained=r)
    assert rum.tow(planted.oracle, planted.oracle, *sets) == 1
    assert rum.tow(planted.model, planted.oracle, *sets) == 0            # known by heart against unknown


def test_tow_mia_compares_the_attack_instead_of_the_forget_accuracy(planted):
    sets = planted.forget, planted.retain, planted.test
    u, r = (rum.evaluate(model, *sets) for model in (planted.model, planted.oracle))
    expected = (1 - abs(u.mia - r.mia)) * (1 - abs(u.retain - r.retain)) * (1 - abs(u.test - r.test))
    assert rum.tow_mia(planted.model, planted.oracle, *sets) == pytest.approx(expected, abs=1e-12)
    assert rum.tow_mia(planted.oracle, planted.oracle, *sets) == 1


def test_an_evaluation_is_made_of_its_parts(planted):
    sets = planted.forget, planted.retain, planted.test
    found = rum.evaluate(planted.model, *sets)
    assert (found.forget, found.retain, found.test) == tuple(rum.accuracy(planted.model, part) for part in sets)
    members = planted.retain[planted.retain.index.argsort()[:len(planted.test)]]
    assert found.mia == rum.svc_mia(planted.model, members, planted.test, planted.forget)
    assert math.isnan(rum.evaluate(planted.model, *sets, mia=False).mia)


def test_the_attacker_knows_the_first_retained_examples_by_index_as_many_as_test_images():
    """Known members are confident, the others are not: taken for members, they would look like the test images."""
    p = torch.cat([torch.linspace(0.9, 0.99, 10), torch.linspace(0.2, 0.4, 10)])
    retain, test, forget = confident(p), confident(p[10:]), confident(p[:5] - 1e-4, first=20)
    for order in (torch.arange(20), torch.arange(20).flip(0)):
        assert rum.evaluate(echo(2), forget, retain[order], test).mia == 0


# -- The attack -------------------------------------------------------------------------------------------------------


def test_the_attack_tells_apart_what_can_be_told_apart():
    members, nonmembers = confident(uniform(0.9, 0.99, 100, 0)), confident(uniform(0.1, 0.5, 100, 1))
    like = {"members": uniform(0.9, 0.99, 40, 2), "nonmembers": uniform(0.1, 0.5, 40, 3)}
    attack = {name: rum.svc_mia(echo(2), members, nonmembers, confident(p)) for name, p in like.items()}
    assert attack == {"members": 0, "nonmembers": 1}
    half = confident(np.concatenate(list(like.values())))
    assert rum.svc_mia(echo(2), members, nonmembers, half) == 0.5


@pytest.mark.parametrize("members, nonmembers, called", [(300, 100, 0), (100, 300, 1)])
def test_without_a_difference_the_attack_follows_the_larger_set(members, nonmembers, called):
    sets = (confident(np.linspace(0.2, 0.8, n)) for n in (members, nonmembers, 50))
    assert rum.svc_mia(echo(2), *sets) == called


@settings(max_examples=10)
@given(st.integers(0, 1000))
def test_the_attack_does_not_depend_on_order_or_seed(seed):
    sets = [confident(uniform(low, low + 0.6, 60, k)) for k, low in enumerate((0.3, 0.1, 0.2))]
    found = rum.svc_mia(echo(2), *sets)
    shuffled = [part[torch.randperm(60, generator=torch.Generator().manual_seed(seed))] for part in sets]
    assert rum.svc_mia(echo(2), *shuffled, seed=seed) == pytest.approx(found, abs=0.02)      # one borderline point
    assert rum.svc_mia(echo(2), *sets, seed=seed) == rum.svc_mia(echo(2), *sets, seed=seed)


# -- Disagreement, accuracy -------------------------------------------------------------------------------------------


def test_disagreement_is_the_share_of_different_answers():
    data = rum.Examples(torch.eye(4), [0, 1, 2, 3])
    other = echo(4)
    other.weight.data[[0, 1]] = other.weight.data[[1, 0]]    # swaps the answers 0 and 1
    assert rum.metrics.disagreement(echo(4), other, data) == 0.5
    assert rum.metrics.disagreement(other, other, data) == 0


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30))
def test_accuracy_is_the_share_of_right_answers(pairs):
    answers, y = torch.tensor(pairs).T
    logits = torch.nn.functional.one_hot(answers, 3).float()
    right = sum(a == b for a, b in pairs)
    assert rum.accuracy(echo(3), rum.Examples(logits, y)) == pytest.approx(right / len(pairs))


def test_a_model_that_answers_nan_is_never_right_and_cannot_be_attacked():
    broken = echo(2)
    broken.weight.data.fill_(math.nan)
    data = confident([0.5, 0.9])
    assert rum.accuracy(broken, data) == 0
    with pytest.raises(FloatingPointError, match="NaN"):
        rum.svc_mia(broken, data, data, data)
