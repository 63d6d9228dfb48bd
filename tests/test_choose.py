"""Judges against hand-made cases; the choice against planted candidates; the twin against its definition."""

import math
from dataclasses import replace

import pytest
import torch
from planted import echo, make_model, recipe, same

import rumlib as rum
from rumlib.metrics import jensen_shannon
from rumlib.train import derive_seed

finetune = rum.Finetune(epochs=2, lr=0.1, batch_size=16)


def said(*classes, truth):
    """Examples whose x are the logits that `echo` gives: it answers `classes` where `truth` is right."""
    return rum.Examples(20.0 * torch.eye(3)[list(classes)], torch.tensor(truth))


@pytest.fixture(scope="module")
def score(planted):
    """Memorization of the planted problem by 24 models, with its bank."""
    return rum.memorization(make_model, planted.train, recipe, models=24, seed=1)


# -- Judges -----------------------------------------------------------------------------------------------------------


def test_held_out_examples_count_by_the_classes_of_the_forget_set():
    """Class 0: right half the time; class 1: always. A forget set of three 0 and one 1: (3 / 2 + 1) / 4 = .625."""
    validation = said(0, 2, 1, truth=[0, 0, 1])
    forget, retain = said(0, 0, 1, 2, truth=[0, 0, 0, 1]), said(0, 1, truth=[0, 1])       # half right; all right
    model = echo(3)
    assert rum.HeldOut(validation)(model, model, forget, retain) == pytest.approx(1 - abs(0.5 - 0.625))


def test_what_is_memorized_should_be_lost():
    """The original knows both examples, with memorization .2 and .8: a retrained model would know half of them."""
    forget, retain = said(0, 1, truth=[0, 1]), said(0, 1, 2, truth=[0, 1, 2])
    original = echo(3)
    judge = rum.Memorized(rum.Score("m", torch.tensor([0.2, 0.8]), forget.index))
    assert judge(original, original, forget, retain) == pytest.approx(0.5)
    wrong = torch.nn.Linear(3, 3, bias=False)
    wrong.weight.data = torch.eye(3)[[1, 0, 2]]              # takes 0 for 1 and 1 for 0: only the 2 is retained
    assert judge(wrong, original, forget, retain) == pytest.approx((1 - 0.5) * (1 - 2 / 3))


def test_jensen_shannon_is_zero_for_equal_and_ln_2_for_disjoint():
    one, two = torch.tensor([1.0, 0, 0]), torch.tensor([0, 0.5, 0.5])
    assert jensen_shannon(two, two) == pytest.approx(0, abs=1e-7)
    assert jensen_shannon(one, two) == pytest.approx(math.log(2))
    p, q = torch.tensor([0.5, 0.5, 0]), torch.tensor([0.25, 0.25, 0.5])
    expected = 0.5 * math.log(0.5 / 0.375) + 0.25 * math.log(0.25 / 0.375) + 0.25 * math.log(2)
    assert jensen_shannon(p, q) == pytest.approx(expected)


def test_predictions_are_compared_class_by_class():
    """On class 0 as the original on held-out data, on class 1 (a third of the set) the very opposite."""
    validation, retain = said(0, 1, truth=[0, 1]), said(0, truth=[0])
    forget = said(0, 0, 2, truth=[0, 0, 1])
    found = rum.JensenShannon(validation)(echo(3), echo(3), forget, retain)
    assert found == pytest.approx(2 / 3, abs=1e-4)


@pytest.mark.parametrize("judge", [rum.HeldOut, rum.JensenShannon])
def test_a_judge_needs_held_out_examples_of_each_class(judge):
    with pytest.raises(ValueError, match="no held-out example of class 2"):
        judge(said(0, 1, truth=[0, 1]))(echo(3), echo(3), said(2, truth=[2]), said(0, truth=[0]))


# -- Choosing ---------------------------------------------------------------------------------------------------------


def against(oracle):
    """A judge that knows the answer."""
    def judge(model, original, forget, retain):
        return (1 - abs(rum.accuracy(model, forget) - rum.accuracy(oracle, forget))) * rum.accuracy(model, retain)

    return judge


class Give:
    """A step that gives this model, whatever it is asked to forget, and counts how often it is tried."""

    def __init__(self, model):
        self.model, self.tried = model, 0

    def __call__(self, model, forget, retain, *, seed=0):
        self.tried += 1
        return self.model


def diverge(model, forget, retain, *, seed=0):
    raise FloatingPointError("training diverged")


def test_the_best_candidate_is_chosen(planted, score):
    bad = rum.build(make_model, 9)
    candidates = (diverge, Give(bad), Give(planted.oracle))
    auto = rum.AutoRUM(rum.Refine(score, 2), candidates, against(planted.oracle))
    assert same(auto(planted.model, planted.forget, planted.retain), planted.oracle)
    chosen, _ = auto.settle(planted.model, planted.forget, planted.retain)
    assert chosen.order == (1, 0) and chosen.steps[1] is candidates[2]


def test_nothing_is_done_where_nothing_is_enough(planted, score):
    give = Give(planted.oracle)
    auto = rum.AutoRUM(rum.Refine(score, 3), (give,), against(planted.model))
    assert same(auto(planted.model, planted.forget, planted.retain), planted.model)
    assert auto.settle(planted.model, planted.forget, planted.retain)[0].steps == (rum.Keep(),) * 3
    assert give.tried == 0


def test_the_chosen_rum_unlearns_to_the_same_model(planted, score):
    candidates = (finetune, rum.RandomLabel(epochs=3, lr=0.1, batch_size=16))
    auto = rum.AutoRUM(rum.Refine(score, 2), candidates, against(planted.oracle), enough=2)
    chosen, one = auto.settle(planted.model, planted.forget, planted.retain, seed=4)
    assert same(one, chosen(planted.model, planted.forget, planted.retain, seed=4))
    assert same(one, auto(planted.model, planted.forget, planted.retain, seed=4))
    assert any(isinstance(step, rum.Finetune | rum.RandomLabel) for step in chosen.steps)


def test_a_spent_budget_ends_the_search(planted, score):
    """Two epochs over 111 to 117 retained examples: past a budget of 1.5 passes after the first of five."""
    late = Give(planted.oracle)
    auto = rum.AutoRUM(rum.Refine(score, 2), (finetune, late), lambda *_: 0.0, budget=1.5)
    auto(planted.model, planted.forget, planted.retain)
    assert late.tried == 0
    replace(auto, budget=100)(planted.model, planted.forget, planted.retain)
    assert late.tried == 2


def test_the_order_with_the_best_end_is_taken(planted, score):
    def first_is(model, original, forget, retain):           # the judge of the whole likes parts joined low to high
        return float(score.of(forget)[0] < score.of(forget)[-1])

    auto = rum.AutoRUM(rum.Refine(score, 2), (finetune,), first_is, orders=((1, 0), (0, 1)), enough=2)
    assert auto.settle(planted.model, planted.forget, planted.retain)[0].order == (0, 1)


@pytest.mark.parametrize("bad, match", [
    (dict(candidates=()), "candidates"), (dict(candidates=(3,)), "candidates"), (dict(orders=()), "at least one"),
    (dict(orders=((0, 0),)), "once"), (dict(budget=0), "budget"), (dict(waiting="drop"), "waiting")])
def test_what_cannot_be_chosen_from_is_refused(bad, match, score):
    good = dict(refine=rum.Refine(score, 2), candidates=(finetune,), judge=rum.Memorized(score))
    with pytest.raises((TypeError, ValueError), match=match):
        rum.AutoRUM(**{**good, **bad})


# -- The twin ---------------------------------------------------------------------------------------------------------


def test_the_twin_is_unseen_by_its_oracle_and_like_the_forget_set(planted, score):
    mask = torch.zeros(len(planted.train), dtype=torch.bool)
    mask[::5] = True                                         # some mislabelled, most not
    forget, retain = planted.train.split(mask)
    auto = rum.AutoRUM(rum.Refine(score, 2), (finetune,), rum.Memorized(score))
    calibrated = rum.Calibrated(auto, make_model, recipe)
    gone, known = calibrated.twin(forget, retain)
    inside = set(score.index[score.bank.included[0]].tolist())
    assert set(known.index.tolist()) == inside
    assert not set(gone.index.tolist()) & (inside | set(forget.index.tolist()))
    assert len(gone.index.unique()) == len(gone) <= len(forget)
    for c in range(3):
        assert (gone.y == c).sum() <= (forget.y == c).sum()
    unlearned = calibrated(planted.model, forget, retain, seed=1)
    chosen, _ = calibrated.settle(planted.model, forget, retain, seed=1)
    assert same(unlearned, chosen(planted.model, forget, retain, seed=1))


def test_a_twin_needs_the_subset_models(planted, score):
    plain = rum.Score("m", score.values, score.index)
    with pytest.raises(ValueError, match="memorization"):
        rum.Calibrated(rum.AutoRUM(rum.Refine(plain, 2), (finetune,), rum.Memorized(plain)), make_model, recipe)
    auto = rum.AutoRUM(rum.Refine(score, 2), (finetune,), rum.Memorized(score))
    with pytest.raises(ValueError, match="number=24"):
        rum.Calibrated(auto, make_model, recipe, number=24)
    pool_is_too_far = replace(auto, refine=rum.Refine(replace(score, values=torch.where(
        torch.isin(score.index, planted.forget.index), 9.0, score.values)), 2))
    with pytest.raises(ValueError, match="match"):
        rum.Calibrated(pool_is_too_far, make_model, recipe)(planted.model, planted.forget, planted.retain)


def test_the_judge_of_the_twin_is_tow_against_its_retrained_model(planted, score):
    judges = []

    class Watched(rum.AutoRUM):
        def settle(self, *problem, seed=0):
            judges.append((self.judge, problem))
            return super().settle(*problem, seed=seed)

    auto = Watched(rum.Refine(score, 2), (finetune,), rum.Memorized(score))
    calibrated = rum.Calibrated(auto, make_model, recipe, number=3)
    calibrated(planted.model, *planted.train.split(planted.train.index % 5 == 0), seed=4)
    ((judge, (original, gone, known)),) = judges
    reference = rum.fit(make_model, known, recipe, seed=derive_seed(4, "twin", 3))
    assert judge(reference, original, gone, known) == 1
    worse = rum.build(make_model, 7)
    d = [abs(rum.accuracy(worse, part) - rum.accuracy(reference, part)) for part in (gone, known)]
    assert min(d) > 0.1 and judge(worse, original, gone, known) == pytest.approx((1 - d[0]) * (1 - d[1]))
