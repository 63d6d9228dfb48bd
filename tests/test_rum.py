"""Refinement and the meta-algorithm. That any algorithm can be a step is in test_algorithms."""

from itertools import chain, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planted import make_model, recipe, same

import rumlib as rum

finetune = rum.Finetune(epochs=2, lr=0.1, batch_size=16)


def numbered(n):
    return rum.Examples(torch.zeros(n, 1), torch.zeros(n, dtype=torch.int64), torch.arange(n) + 50)


def indices(parts):
    return [part.index.tolist() for part in parts]


class Watch:
    """A step that does nothing but write down what it is given."""

    def __init__(self):
        self.seen = []

    def __call__(self, model, forget, retain, *, seed=0):
        self.seen.append((forget.index.tolist(), retain.index.tolist(), seed))
        return model


@pytest.fixture
def score(planted):
    return rum.Score("position", torch.arange(len(planted.train)).float(), planted.train.index)


# -- Refinement -------------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 7), st.integers(0, 1000))
def test_parts_are_disjoint_covering_and_of_one_size(n, parts, seed):
    parts = min(parts, n)
    forget = numbered(n)
    values = torch.randint(0, 5, (n,), generator=torch.Generator().manual_seed(seed)).float()
    score = rum.Score("s", values, forget.index)
    for refine in (rum.Refine(score, parts), rum.Shuffled(parts, seed)):
        cut = refine(forget)
        assert sorted(chain(*indices(cut))) == forget.index.tolist()
        assert all(i == sorted(i) for i in indices(cut))
        assert max(map(len, cut)) - min(map(len, cut)) <= 1
    cut = rum.Refine(score, parts)(forget)
    assert all(score.of(a).max() <= score.of(b).min() for a, b in pairwise(cut))


def test_ties_are_cut_in_order():
    forget = numbered(6)
    refine = rum.Refine(rum.Score("s", torch.zeros(6), forget.index), parts=3)
    assert indices(refine(forget)) == [[50, 51], [52, 53], [54, 55]]


def test_random_parts_depend_on_their_seed_alone():
    forget = numbered(30)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        once = indices(rum.Shuffled(3)(forget))
        torch.manual_seed(2)
        assert indices(rum.Shuffled(3)(forget)) == once
    assert indices(rum.Shuffled(3, seed=1)(forget)) != once


# -- The meta-algorithm -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("refine", [rum.Shuffled(1), None], ids=["shuffled", "refined"])
def test_one_part_is_the_algorithm_alone(refine, planted, score):
    one = rum.RUM(refine or rum.Refine(score, parts=1), steps=(finetune,))
    assert same(one(planted.model, planted.forget, planted.retain, seed=7),
                finetune(planted.model, planted.forget, planted.retain, seed=7))


def test_keeping_every_part_keeps_the_model(planted):
    keep = rum.RUM(rum.Shuffled(3), steps=(rum.Keep(),) * 3)
    assert same(keep(planted.model, planted.forget, planted.retain), planted.model)


def test_what_waits_is_still_retained(planted, score):
    """For the paper's 3,000 of 45,000: retain sets of 44,000, 43,000 and 42,000. Here 12 of 123."""
    watch = Watch()
    rum.RUM(rum.Refine(score, 3), steps=(watch,) * 3)(planted.model, planted.forget, planted.retain, seed=5)
    gone, everything = set(), set(planted.train.index.tolist())
    for k, (forget, retain, seed) in enumerate(watch.seen):
        gone |= set(forget)
        assert (len(forget), len(retain), seed) == (4, 119 - 4 * k, 5 + k)
        assert set(retain) == everything - gone and len(set(retain)) == len(retain)
    assert [forget[0] for forget, _, _ in watch.seen] == sorted(forget[0] for forget, _, _ in watch.seen)


def test_what_waits_may_be_left_out(planted, score):
    watch = Watch()
    leave = rum.RUM(rum.Refine(score, 3), steps=(watch,) * 3, waiting="leave_out")
    leave(planted.model, planted.forget, planted.retain)
    assert [retain for _, retain, _ in watch.seen] == [planted.retain.index.tolist()] * 3


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_order_decides_what_comes_first_and_steps_stay_with_their_part(order, planted, score):
    watches = Watch(), Watch(), Watch()
    parts = indices(rum.Refine(score, 3)(planted.forget))
    meta = rum.RUM(rum.Refine(score, 3), steps=watches, order=order)
    met = [stage.part for stage in meta.stages(planted.model, planted.forget, planted.retain, seed=5)]
    assert met == list(order)
    for k, part in enumerate(order):
        ((forget, retain, seed),) = watches[part].seen
        assert (forget, len(retain), seed) == (parts[part], 119 - 4 * k, 5 + k)


def test_the_last_stage_is_the_result(planted, score):
    meta = rum.RUM(rum.Refine(score, 3), steps=(rum.Keep(), finetune, rum.RandomLabel(epochs=1)))
    stages = [stage.model for stage in meta.stages(planted.model, planted.forget, planted.retain, seed=2)]
    assert same(stages[0], planted.model) and not same(stages[1], stages[2])
    assert same(stages[-1], meta(planted.model, planted.forget, planted.retain, seed=2))


def test_a_rum_is_a_step_of_a_rum(planted):
    inner = rum.RUM(rum.Shuffled(2), steps=(finetune, rum.RandomLabel(epochs=1)))
    outer = rum.RUM(rum.Shuffled(2), steps=(inner, rum.Keep()))
    unlearned = outer(planted.model, planted.forget, planted.retain, seed=1)
    assert not same(unlearned, planted.model)
    assert eval(repr(outer), {name: getattr(rum, name) for name in rum.__all__}) == outer


@pytest.mark.parametrize("parts", [2, 4])
def test_a_refinement_of_one_s_own_must_have_a_part_for_each_step(parts, planted):
    """Found before the first step is paid for: no part may be left unforgotten, no step unused."""
    watch = Watch()
    meta = rum.RUM(lambda forget: rum.Shuffled(parts)(forget), steps=(watch,) * 3)
    with pytest.raises(ValueError, match="3 steps"):
        meta(planted.model, planted.forget, planted.retain)
    assert not watch.seen


def test_vary_reaches_the_algorithms_inside():
    meta = rum.RUM(rum.Shuffled(3), steps=(rum.Keep(), rum.Finetune(), rum.SalUn(rum.RandomLabel())))
    varied = rum.lab.vary(meta, lr=0.5, epochs=9)
    assert varied.steps == (rum.Keep(), rum.Finetune(lr=0.5, epochs=9), rum.SalUn(rum.RandomLabel(lr=0.5, epochs=9)))
    assert rum.lab.vary(rum.SalUn(rum.RandomLabel()), keep=0.2) == rum.SalUn(rum.RandomLabel(), keep=0.2)
    assert rum.lab.vary(meta, order=(2, 1, 0)).order == (2, 1, 0)
    with pytest.raises(ValueError, match="no field rate"):
        rum.lab.vary(rum.Finetune(), rate=0.5)
    with pytest.raises(TypeError, match="frozen dataclass"):
        rum.lab.vary(Watch(), lr=0.5)


# -- Values to cut at, stages, streams --------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1, width=32), min_size=3, max_size=40), st.sampled_from([0.125, 0.5, 0.75]))
def test_parts_are_cut_at_the_values_given(values, at):
    forget, values = numbered(len(values)), torch.tensor(values)
    refine = rum.Refine(rum.Score("s", values, forget.index), parts=(at,))
    if (values < at).any() and (values >= at).any():
        low, high = refine(forget)
        assert indices([low, high]) == [forget.index[values < at].tolist(), forget.index[values >= at].tolist()]
    else:
        with pytest.raises(ValueError, match=r"would be empty"):
            refine(forget)


def test_parts_have_names(score):
    assert rum.Refine(score, 3).names == rum.Refine(score, (0.2, 0.8)).names == ("low", "medium", "high")
    assert rum.Refine(score, 4).names == ("part 1", "part 2", "part 3", "part 4")
    with pytest.raises(ValueError, match="ascend"):
        rum.Refine(score, (0.8, 0.2))
    with pytest.raises(ValueError, match="3 parts need 3 steps"):
        rum.RUM(rum.Refine(score, (0.2, 0.8)), steps=(finetune,) * 2)


def test_a_failing_step_names_itself_its_part_and_its_seed(planted, score):
    def fail(model, forget, retain, *, seed=0):
        raise RuntimeError("out of memory")

    meta = rum.RUM(rum.Refine(score, 3), steps=(finetune, fail, finetune), order=(2, 1, 0))
    stages = meta.stages(planted.model, planted.forget, planted.retain, seed=40)
    assert next(stages).part == 2
    with pytest.raises(RuntimeError, match="out of memory") as raised:
        next(stages)
    (note,) = raised.value.__notes__
    assert "step 2 of 3" in note and "fail" in note and "part 1 (4 examples" in note and "seed 41" in note


@pytest.mark.parametrize("done", [0, 1, 2])
def test_stages_go_on_from_where_they_were(done, planted, score):
    meta = rum.RUM(rum.Refine(score, 3), steps=(finetune, rum.RandomLabel(epochs=1), finetune), order=(1, 2, 0))
    models = [planted.model, *(s.model for s in meta.stages(planted.model, planted.forget, planted.retain, seed=3))]
    *_, last = meta.stages(models[done], planted.forget, planted.retain, seed=3, done=done)
    assert same(last.model, models[-1])


def test_a_stream_of_parts_is_a_rum(planted, score):
    refine = rum.Refine(score, 3)
    *_, last = rum.rum.stream(finetune, planted.model, refine(planted.forget), planted.retain, seed=6)
    assert same(last.model, rum.RUM(refine, (finetune,) * 3)(planted.model, planted.forget, planted.retain, seed=6))
    assert sorted(last.gone.index.tolist()) == sorted(planted.forget.index.tolist())
    assert last.retain.index.tolist() == planted.retain.index.tolist()


def test_a_stream_is_renewed_when_it_is_told_to(planted, score):
    retrain = rum.Retrain(make_model, recipe)
    seen = list(rum.rum.stream(rum.Keep(), planted.model, rum.Refine(score, 3)(planted.forget), planted.retain, seed=6,
                           retrain=retrain, renew=lambda model, gone, retain: len(gone) == 8))
    assert [request.renewed for request in seen] == [False, True, False]
    assert same(seen[0].model, planted.model)
    assert same(seen[1].model, rum.fit(make_model, seen[1].retain, recipe, seed=7))
    assert same(seen[2].model, seen[1].model)
    with pytest.raises(ValueError, match="both or neither"):
        next(rum.rum.stream(rum.Keep(), planted.model, [planted.forget], planted.retain, retrain=retrain))
