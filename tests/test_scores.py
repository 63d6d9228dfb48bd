"""Scores and what is picked by them, the subset estimator, the confidence proxy, entanglement."""

from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planted import echo, make_model, recipe
from torch import nn

import rumlib as rum
from rumlib.scores import bank, margin

LEVELS = ("low", "medium", "high", "mix")
values = st.lists(st.integers(-5, 5).map(float), min_size=3, max_size=40)       # whole numbers: many ties


def rows(mask):
    return mask.nonzero()[:, 0].tolist()


# -- Picking ----------------------------------------------------------------------------------------------------------


@given(values, st.data())
def test_every_level_has_the_size_asked_for(values, data):
    n = data.draw(st.integers(1, len(values)))
    for level in LEVELS:
        mask = rum.Score("s", values).pick(n, level)
        assert mask.dtype == torch.bool and len(mask) == len(values) and mask.sum() == n


@given(values, st.data())
def test_low_and_high_are_the_extremes_and_ties_go_to_the_first(values, data):
    n = data.draw(st.integers(1, len(values)))
    score = rum.Score("s", values)
    by = sorted(range(len(values)), key=lambda i: (values[i], i))
    assert rows(score.pick(n, "low")) == sorted(by[:n])
    by = sorted(range(len(values)), key=lambda i: (-values[i], i))
    assert rows(score.pick(n, "high")) == sorted(by[:n])


@given(values, st.floats(-5, 5, width=32), st.data())
def test_medium_is_nearest_to_the_middle_and_ties_go_to_the_first(values, middle, data):
    n = data.draw(st.integers(1, len(values)))
    by = sorted(range(len(values)), key=lambda i: (abs(np.float32(values[i]) - np.float32(middle)), i))
    assert rows(rum.Score("s", values, middle=middle).pick(n, "medium")) == sorted(by[:n])


@given(values, st.integers(1, 13))
def test_a_mix_is_a_third_of_each_that_never_overlap(values, third):
    third = min(third, len(values) // 3)
    score = rum.Score("s", values)
    mix = score.pick(3 * third, "mix")
    high = score.pick(third, "high")
    ordered = sorted(values)
    assert (mix & high).sum() == third
    assert sorted(score.values[mix].tolist())[:third] == ordered[:third]
    assert mix.sum() == 3 * third


def test_the_thirds_of_a_mix_are_what_the_levels_pick_alone():
    score = rum.Score("s", torch.rand(60, generator=torch.Generator().manual_seed(0)))
    parts = [score.pick(5, level) for level in ("low", "medium", "high")]
    assert torch.equal(score.pick(15, "mix"), parts[0] | parts[1] | parts[2])


@given(st.integers(0, 2), st.integers(1, 10))
def test_what_a_mix_has_over_goes_to_the_middle(over, third):
    score = rum.Score("s", torch.arange(60.0), middle=30.0)
    mix = score.pick(3 * third + over, "mix")
    assert (score.values[mix] < third).sum() == third
    assert (score.values[mix] >= 60 - third).sum() == third


# -- Scores and examples ----------------------------------------------------------------------------------------------


@given(st.permutations(range(12)), st.permutations(range(12)), st.integers(1, 12))
def test_values_find_their_examples_by_index(score_order, data_order, n):
    index = torch.tensor([100 - 3 * i for i in score_order])
    score = rum.Score("s", torch.tensor(score_order, dtype=torch.float32), index)
    examples = rum.Examples(torch.zeros(n, 1), torch.zeros(n, dtype=torch.int64),
                            torch.tensor([100 - 3 * i for i in data_order[:n]]))
    assert score.of(examples).tolist() == data_order[:n]


def test_the_digest_of_a_score_is_that_of_values_and_index():
    score = rum.Score("s", [1.0, 2, 3])
    assert score.digest == rum.Score("s", [1.0, 2, 3], [0, 1, 2]).digest
    assert len({score.digest, rum.Score("s", [1.0, 2, 4]).digest, rum.Score("s", [1.0, 2, 3], [0, 2, 1]).digest}) == 3


# -- Memorization -----------------------------------------------------------------------------------------------------


def test_a_model_that_memorizes_everything_scores_one_and_one_that_does_not_scores_zero():
    included = torch.rand(40, 7, generator=torch.Generator().manual_seed(0)) < 0.5
    for correct, memorized in ((included, 1), (~included, -1), (torch.ones_like(included), 0),
                               (torch.zeros_like(included), 0)):
        found, stderr = rum.memorization_from(correct, included)
        assert found.tolist() == [memorized] * 7
        assert stderr.tolist() == [0] * 7


def test_the_standard_error_is_the_spread_of_repeated_estimates():
    random = torch.Generator().manual_seed(0)
    included = torch.rand(60, 20000, generator=random) < 0.7
    chance = torch.where(included, 0.9, 0.4)                 # of being classified right, with and without
    found, stderr = rum.memorization_from(torch.rand(chance.shape, generator=random) < chance, included)
    assert found.mean().item() == pytest.approx(0.5, abs=0.005)
    assert stderr.square().mean().sqrt().item() == pytest.approx(found.std().item(), rel=0.03)


def test_a_single_model_on_one_side_has_no_standard_error():
    _, stderr = rum.memorization_from([[1], [0], [1]], [[True], [True], [False]])
    assert stderr.isnan().all()


def test_random_labels_in_many_dimensions_are_memorized():
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 1, 8, 8, generator=random), torch.randint(0, 10, (60,), generator=random)
    short = rum.Recipe(epochs=30, lr=0.05, batch_size=16, schedule="linear")
    make = partial(rum.models.mlp, shape=(1, 8, 8), hidden=(64,))
    score = rum.memorization(make, rum.Examples(x, y), short, models=24, fraction=0.5)
    assert score.values.mean() > 0.85
    assert score.stderr.mean() < 0.2


def test_mislabelled_points_are_memorized_and_others_are_not(planted):
    score = rum.memorization(make_model, planted.train, recipe, models=32, fraction=0.7)
    assert score.values[planted.wrong].mean() > 0.6
    assert score.values[~planted.wrong].mean() < 0.2
    assert torch.equal(score.index, planted.train.index)


def test_a_bank_trained_in_parts_is_the_bank_trained_at_once(planted):
    short = rum.Recipe(epochs=5, batch_size=16)
    whole = bank(make_model, planted.train, short, range(8))
    parts = bank(make_model, planted.train, short, range(5, 8)) + bank(make_model, planted.train, short, range(5))
    parts = parts.part(torch.tensor([3, 4, 5, 6, 7, 0, 1, 2]))
    assert torch.equal(whole.included, parts.included)
    assert torch.equal(whole.correct, parts.correct)
    torch.testing.assert_close(whole.margin, parts.margin, rtol=1e-2, atol=1e-2)
    assert (whole.included.sum(1) == round(0.7 * len(planted.train))).all()
    assert len(whole.included.unique(dim=0)) == 8
    assert torch.equal(whole.correct, whole.margin > 0)


def test_the_halves_of_a_bank_share_no_model_and_judge_the_same_examples(planted):
    whole = bank(make_model, planted.train, rum.Recipe(epochs=2, batch_size=16), range(10))
    even, odd = whole.halves(planted.train.index)
    assert torch.equal(even.index, odd.index) and 0 < len(even) <= len(planted.train)
    expected = rum.memorization_from(whole.correct[::2, even.index], whole.included[::2, even.index])[0]
    assert torch.equal(even.values, expected)
    assert torch.equal(odd.bank.correct, whole.correct[1::2, odd.index])


@given(st.lists(st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=3), min_size=1, max_size=8))
def test_the_margin_is_to_the_best_other_class(logits):
    for y in range(3):
        expected = [row[y] - max(row[:y] + row[y + 1:]) for row in logits]
        found = margin(torch.tensor(logits), torch.full((len(logits),), y))
        torch.testing.assert_close(found, torch.tensor(expected))


# -- Confidence -------------------------------------------------------------------------------------------------------


def test_confidence_is_averaged_over_the_epochs():
    data = rum.Examples(torch.zeros(3, 1), [0, 1, 1], [7, 8, 9])
    trace = rum.proxies.Trace(data)
    for p in (0.2, 0.6):                                     # two epochs, each in two batches
        logits = torch.tensor([[1 - p, p]]).log()
        trace(torch.tensor([2, 0]), logits.expand(2, 2), data.y[[2, 0]])
        trace(torch.tensor([1]), logits, data.y[[1]])
    score = rum.proxy("confidence", trace)
    torch.testing.assert_close(score.values, torch.tensor([0.4, 0.6, 0.6]))      # 1 - mean probability of the label
    assert score.index.tolist() == [7, 8, 9]


def test_a_trace_sees_each_example_once_an_epoch_before_the_step(planted):
    trace, frozen = rum.proxies.Trace(planted.train), rum.Recipe(epochs=3, lr=1e-12, batch_size=50)
    rum.fit(planted.model, planted.train, frozen, trace=trace)
    assert (trace.seen == 3).all()
    known = rum.predict(planted.model, planted.train).softmax(1)[range(len(planted.train)), planted.train.y]
    torch.testing.assert_close(trace.confidence / 3, known)


def test_what_is_learned_late_has_a_high_proxy(planted):
    trace = rum.proxies.Trace(planted.train)
    rum.fit(make_model, planted.train, replace(recipe, epochs=10), trace=trace)
    assert (rum.proxy("confidence", trace).pick(12, "high") & planted.wrong).sum() >= 10


# -- Entanglement -----------------------------------------------------------------------------------------------------


@given(st.integers(2, 30), st.integers(1, 30), st.integers(1, 6), st.floats(0.1, 10), st.integers(0, 10**6))
def test_entanglement_does_not_change_with_place_orientation_or_scale(n, m, d, scale, seed):
    random = torch.Generator().manual_seed(seed)
    r = torch.randn(n, d, generator=random, dtype=torch.float64)
    s = torch.randn(m, d, generator=random, dtype=torch.float64) + 1
    found = rum.entanglement(s, r)
    shift = torch.randn(d, generator=random, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(d, d, generator=random, dtype=torch.float64)).Q
    assert found >= 0
    for moved in ((r + shift, s + shift), (r @ turn, s @ turn), (r * scale, s * scale), (r[torch.randperm(n)], s)):
        assert rum.entanglement(*moved) == pytest.approx(found, rel=1e-6)
    assert rum.entanglement(r, s) == found


def test_entanglement_has_its_closed_form():
    """Two sets of spread 1 whose means lie 2 apart: intra 1 + 1, inter (1 + 1) / 2."""
    r, s = torch.tensor([[-1.0, 1], [-1, -1]]), torch.tensor([[1.0, 1], [1, -1]])
    assert rum.entanglement(s, r) == 2
    assert rum.entanglement(s + torch.tensor([2.0, 0]), r) == 0.5        # 4 apart: inter 4


@given(st.integers(1, 60), st.data())
def test_bands_are_disjoint_and_ascend_in_distance(n, data):
    count = data.draw(st.integers(1, n))
    embedding = torch.randn(n, 3, generator=torch.Generator().manual_seed(n))
    found = rum.scores.bands(embedding, count)
    together = torch.cat(found).tolist()
    assert len(found) == count and {len(band) for band in found} == {n // count}
    assert len(set(together)) == len(together) == count * (n // count)
    distance = (embedding - embedding.mean(0)).norm(dim=1)
    assert all(distance[a].max() <= distance[b].min() for a, b in pairwise(found))
    left = set(range(n)) - set(together)
    assert all(distance[i] >= distance[found[-1]].max() for i in left)


def test_features_are_the_input_of_the_last_linear_layer(planted):
    by_hand = planted.model[:-1](planted.test.x)
    torch.testing.assert_close(rum.features(planted.model, planted.test), by_hand.detach())
    assert rum.features(planted.model, planted.test).shape[1] == planted.model[-1].in_features
    assert torch.equal(rum.features(planted.model, planted.test, layer=planted.model[2]),
                       planted.model[:2](planted.test.x))


def test_features_of_a_network_without_a_linear_layer_need_a_name(planted):
    with pytest.raises(ValueError, match="layer="):
        rum.features(nn.Sequential(nn.Conv2d(1, 3, 4), nn.Flatten()), planted.test)


def test_features_leave_no_hook_behind(planted):
    model = echo(3)
    data = rum.Examples(torch.zeros(5, 3), torch.zeros(5, dtype=torch.int64))
    rum.features(model, data)
    assert not model._forward_pre_hooks
