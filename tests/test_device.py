"""Devices, recorded steps and models that take turns: on a GPU where there is one, and as far as a CPU can show them.
It runs the same code, but for recorded steps: it runs them where a GPU would replay them."""

import copy
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from planted import make_model, make_normed, same, tiny
from torch import nn

import rumlib as rum
from rumlib import algorithms
from rumlib.algorithms.base import Algorithm
from rumlib.device import pick, tf32
from rumlib.ensemble import fit_many, in_turns, uses_rng
from rumlib.graphs import WARM_UP, Recorded, recordable, streams
from rumlib.lab import computations, protocol
from rumlib.models import build
from rumlib.proxies import TRACED
from rumlib.train import Descent, cross_entropy, epochs

CPU = torch.device("cpu")
DEVICES = ("cpu", *["cuda"] * torch.cuda.is_available())
common = dict(epochs=5, lr=0.1, batch_size=25, schedule="linear", clip=1.0)      # 111 are retained: a tail of 11
relabel = rum.RandomLabel(**common)
RECORDED = (rum.Finetune(**common), rum.L1Sparse(**common), rum.NegGrad(**{**common, "batch_size": 5}),
            rum.NegGradPlus(**common), rum.Scrub(**common, max_steps=3), relabel, rum.SalUn(relabel),
            rum.SalUn(relabel, mask="tanh"), algorithms.BadTeacher(**common), algorithms.UNSIR(**common),
            algorithms.LastLayers(**common), algorithms.BoundaryShrink(**common), algorithms.BoundaryExpand(**common),
            rum.Finetune(**common, amp=True),
            rum.TopK(**common, tolerance=None, sim_weight=0.1, scope="selected"))


@pytest.fixture(params=DEVICES)
def device(request):
    return pick(request.param)


@pytest.fixture
def rehearsed(monkeypatch):
    """Every step that can be recorded is; counts them."""
    monkeypatch.setenv("RUM_GRAPHS", "on")
    counted, record = [], Recorded.record

    def counting(self, recording, batch):
        counted.append(batch)
        record(self, recording, batch)

    monkeypatch.setattr(Recorded, "record", counting)
    return counted


# -- Recorded steps ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", RECORDED, ids=lambda a: f"{type(a).__name__}{'-amp' * getattr(a, 'amp', False)}")
def test_recorded_steps_unlearn_the_same_model_at_the_same_cost(algorithm, device, planted, rehearsed, monkeypatch):
    problem = copy.deepcopy(planted.model).to(device), planted.forget.to(device), planted.retain.to(device)
    with rum.train.cost() as recorded:
        one = algorithm(*problem, seed=3)
    assert rehearsed and next(one.parameters()).device.type == device.type
    monkeypatch.setenv("RUM_GRAPHS", "off")
    with rum.train.cost() as plain:
        other = algorithm(*problem, seed=3)
    assert same(one, other)
    assert (recorded.examples, recorded.steps, recorded.passes) == (plain.examples, plain.steps, plain.passes)


@pytest.mark.parametrize("options", [{}, {"clip": 0.5, "warmup": 0.2}, {"amp": True}, {"momentum": 0.0}], ids=str)
@pytest.mark.parametrize("make", [make_model, make_normed], ids=["mlp", "batch norm"])
def test_recorded_steps_train_the_same_model(make, options, device, planted, rehearsed, monkeypatch):
    data = (tiny(planted.train, 123) if make is make_normed else planted.train).to(device)
    recipe = rum.Recipe(epochs=6, lr=0.1, batch_size=50, **options)      # 50, 50, 23
    one = rum.fit(make, data, recipe, seed=1)
    assert [len(batch[1]) for batch in rehearsed] == [50, 23]
    monkeypatch.setenv("RUM_GRAPHS", "off")
    assert same(one, rum.fit(make, data, recipe, seed=1))


def test_a_loss_that_promises_nothing_is_not_recorded(planted, rehearsed):
    @dataclass(frozen=True)
    class Mine(rum.Finetune):
        def loss(self, model, original, forget, retain):
            return F.cross_entropy(model(retain.x), retain.y)

    @dataclass(frozen=True)
    class Promised(Mine):
        @recordable
        def loss(self, model, original, forget, retain):
            return super().loss(model, original, forget, retain)

    assert not getattr(Algorithm.loss, "recordable", False)
    Mine(**common)(planted.model, planted.forget, planted.retain)
    rum.fit(make_model, planted.train, rum.Recipe(epochs=5), probe=rum.proxies.Curvature(planted.train))
    assert not rehearsed
    Promised(**common)(planted.model, planted.forget, planted.retain)
    assert rehearsed


def test_a_replay_sees_its_own_batch_and_returns_what_was_recorded():
    seen = []

    def step(pair, factor, nothing):
        assert nothing is None
        seen.append((pair[0].clone(), float(factor), type(factor)))
        return len(pair[0])

    recorded = Recorded(step, CPU)
    batches = [((torch.full((n,), float(k)), torch.zeros(1)), k / 10, None) for k in range(8) for n in (2, 3)]
    assert [recorded(*batch) for batch in batches] == [2, 3] * 8
    for (x, factor, _), ((given, _), number, _) in zip(seen, batches, strict=True):
        assert torch.equal(x, given) and factor == pytest.approx(number)
    assert [kind for *_, kind in seen] == [float] * 2 * WARM_UP + [torch.Tensor] * 2 * (8 - WARM_UP)
    places = [recording.batch[0][0].data_ptr() for recording in recorded.recordings.values()]
    assert len(set(places)) == 2                             # of either length its own


def test_a_trace_sees_every_batch_of_recorded_steps(device, planted, rehearsed, monkeypatch):
    recipe, data, traces = rum.Recipe(epochs=6, batch_size=50), planted.train.to(device), []
    for mode in ("on", "off"):
        monkeypatch.setenv("RUM_GRAPHS", mode)
        traces.append(rum.proxies.Trace(data))
        rum.fit(make_model, data, recipe, trace=traces[-1])
    assert len(rehearsed) == 2 and (traces[0].seen == 6).all()
    for name in TRACED:
        assert torch.equal(*(getattr(trace, name) for trace in traces))


def test_operations_are_counted_in_steps_that_are_launched(planted, rehearsed):
    assert rum.metrics.flops(rum.Finetune(**common), planted.model, planted.forget, planted.retain) > 0
    assert not rehearsed


def test_another_wish_for_graphs_is_refused(planted, monkeypatch):
    monkeypatch.setenv("RUM_GRAPHS", "yes")
    with pytest.raises(ValueError, match="RUM_GRAPHS must be auto, on or off; got 'yes'"):
        rum.fit(make_model, planted.train, rum.Recipe(epochs=1))


def test_a_descent_restarts_as_a_new_one(planted):
    recipe, other = rum.Recipe(epochs=2, batch_size=25), build(make_model, 7).state_dict()

    def run(descent):
        random = torch.Generator().manual_seed(0)
        for _ in descent.steps(epochs(planted.train, recipe, random, next(descent.model.parameters())), of=10):
            pass

    model = build(make_model, 1)
    with Descent(model, cross_entropy, recipe) as descent:
        run(descent)
        descent.restart(other)
        run(descent)
    expected = build(make_model, 7)
    with Descent(expected, cross_entropy, recipe) as descent:
        run(descent)
    assert same(model, expected)


# -- Taking turns -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("graphs", ["on", "off"])
@pytest.mark.parametrize("at_once", [1, 2, 5, 9])
def test_models_in_turns_are_those_trained_one_after_the_other(at_once, graphs, device, planted, monkeypatch):
    """Models with BatchNorm, subsets of different lengths, more models than lanes and more lanes than models."""
    monkeypatch.setenv("RUM_GRAPHS", graphs)
    data = tiny(planted.train, 100).to(device)
    recipe = rum.Recipe(epochs=4, lr=0.1, batch_size=20, schedule="linear", clip=1.0)
    subsets = [torch.randperm(100, generator=torch.Generator().manual_seed(k))[:50 + k] for k in range(5)]
    before = torch.random.get_rng_state()
    with rum.train.cost() as spent:
        models = fit_many(make_normed, data, subsets, recipe, seeds=[5, 6, 7, 8, 9], at_once=at_once)
    assert torch.equal(before, torch.random.get_rng_state())
    assert (spent.examples, spent.passes) == (4 * (250 + 10), 20)
    for model, subset, seed in zip(models, subsets, range(5, 10), strict=True):
        assert same(model, rum.fit(make_normed, data[subset], recipe, seed=seed)) and not model.training


def test_they_do_take_turns(planted):
    recipe, order = rum.Recipe(epochs=1, batch_size=41), []

    class Heard(nn.Linear):
        def forward(self, x):
            if self.training and torch.is_grad_enabled():
                order.append(id(self))
            return super().forward(x)

    make = partial(nn.Sequential, nn.Flatten())
    in_turns(lambda: make(Heard(16, 3)), planted.train, [(torch.arange(123), seed) for seed in range(3)], recipe, 3)
    assert order[:3] == order[3:6] == order[6:] and len(set(order)) == 3


def test_models_that_draw_numbers_are_trained_one_by_one(planted):
    def dropping():
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.Dropout(0.5), nn.ReLU(), nn.Linear(32, 3))

    assert uses_rng(dropping(), planted.train) and not uses_rng(make_normed(), tiny(planted.train, 20))
    recipe, subsets = rum.Recipe(epochs=2, batch_size=25), [torch.arange(60), torch.arange(50, 110)]
    for model, subset, seed in zip(fit_many(dropping, planted.train, subsets, recipe, seeds=[1, 2], at_once=2),
                                   subsets, (1, 2), strict=True):
        assert same(model, rum.fit(dropping, planted.train[subset], recipe, seed=seed))


def test_want_of_memory_says_what_to_change(planted):
    class Greedy(nn.Linear):
        def forward(self, x):
            if self.training:
                raise torch.OutOfMemoryError("none is left")
            return super().forward(x)

    with pytest.raises(torch.OutOfMemoryError, match=r"none is left\n.*batch_size=20\).*AT_ONCE\)"):
        rum.fit(nn.Sequential(nn.Flatten(), Greedy(16, 3)), planted.train, rum.Recipe(batch_size=20))


def test_one_that_diverges_is_reported(planted):
    with pytest.raises(FloatingPointError, match=r"lower lr=1e\+30"):
        fit_many(make_normed, tiny(planted.train, 60), [torch.arange(40), torch.arange(20, 60)],
                     rum.Recipe(epochs=2, lr=1e30), seeds=[1, 2], at_once=2)


# -- Devices ----------------------------------------------------------------------------------------------------------


def test_the_device_is_that_of_the_environment_unless_it_is_named(monkeypatch):
    monkeypatch.setenv("RUM_DEVICE", "cpu")
    assert pick() == pick("cpu") == CPU
    monkeypatch.setenv("RUM_DEVICE", "tpu")
    assert pick("cpu") == CPU
    with pytest.raises(ValueError, match="unknown device 'tpu'; choose one of auto, cuda, mps, cpu"):
        pick()


def test_a_device_that_is_not_there_is_refused_before_any_data_is_read(tmp_path):
    """Device 99 of a kind is nowhere."""
    absent = replace(rum.lab.profile("smoke"), name="absent", device="cuda:99", data="cifar10",
                     options={"root": tmp_path})
    for open_study in (absent.check, partial(rum.lab.Study, absent, quiet=True, home=tmp_path)):
        with pytest.raises(ValueError, match=r"there is no device 'cuda:99'.* RUM_DEVICE.* cpu"):
            open_study()


def test_queues_are_asked_for_before_cuda_starts():
    assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] and os.environ["CUBLAS_WORKSPACE_CONFIG"]       # by the import


def test_tf32_is_on_for_cuda_alone_and_inside_alone():
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags]
    with tf32(CPU):
        assert [flag.allow_tf32 for flag in flags] == before
    with pytest.raises(KeyError), tf32(torch.device("cuda")):
        assert [flag.allow_tf32 for flag in flags] == [True, True]
        raise KeyError
    assert [flag.allow_tf32 for flag in flags] == before


def test_costs_of_another_thread_are_its_own(planted):
    with rum.train.cost() as spent, ThreadPoolExecutor(1) as pool:
        pool.submit(rum.fit, make_model, planted.train, rum.Recipe(epochs=1)).result()
    assert spent.steps == 0


def test_streams_are_as_many_as_asked_for():
    with streams(CPU, 3) as places:
        assert len(places) == 3
        for place in places:
            with place:
                pass


def test_labels_stay_where_examples_are_chosen(planted):
    """Wherever the images are, labels and index stay on the CPU."""
    data = rum.Examples((planted.train.x * 255).to(torch.uint8), planted.train.y)
    for part in (*data.split(planted.wrong), *data.split_classes(1)):
        assert (part.y.device, part.index.device) == (CPU, CPU)
    assert rum.Examples(planted.train.x, planted.train.y.to(torch.int32)).y.dtype == torch.int64


# -- The paper's profiles at toy size ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """The study of the profile cifar10 on sixty random images, with small networks: every step that is recorded on a
    GPU is rehearsed."""
    home = tmp_path_factory.mktemp("home")
    random = np.random.default_rng(0)
    for part, n in (("train", 20), ("test", 6)):
        for c in "abc":
            (home / part / c).mkdir(parents=True)
            for k in range(n):
                Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(home / part / c / f"{k}.png")
    p = rum.lab.profile("cifar10")
    small = partial(rum.models.small_resnet, shape=(3, 32, 32), classes=3, widths=(4, 8))
    profile = replace(
        p, name="toy", data=str(home), device="cpu", make_model=small, workers=1, seeds=(0,),
        recipe=replace(p.recipe, epochs=2, batch_size=16),
        score_model=partial(rum.models.small_resnet, shape=(3, 32, 32), classes=3, widths=(4, 4, 4)),
        score_recipe=replace(p.score_recipe, epochs=1, batch_size=16), fraction=0.5, score_models=10, set_size=6,
        mix_size=9, bands=4, budgets=(1,), rates={1: p.rates[p.budgets[0]][:1]}, ascent_rates=p.ascent_rates[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUM_GRAPHS", "on")
        patch.setenv("RUM_ENGINE", "serial")
        yield rum.lab.Study(profile, quiet=True, home=home)


def test_the_toy_study_scores_unlearns_and_refines(toy):
    levels = toy.levels()
    assert {name: len(level) for name, level in levels.items()} == {"low": 6, "medium": 6, "high": 6, "mix": 9}
    assert toy.score.bank.included.shape == (10, 60) and len(toy.bands()) == 4
    assert toy.train.x.dtype == torch.uint8
    refined = rum.RUM(rum.Refine(toy.score), (rum.Keep(), *[rum.Finetune(epochs=1, batch_size=16, amp=True)] * 2))
    rows = toy.unlearn(rum.lab.Cell(levels["mix"], algorithm, 0, {"algorithm": name}) for name, algorithm in
                       {**{name: alg for name, (alg, _) in protocol.candidates(toy.profile, 1).items()},
                        "RUM": refined}.items())
    assert len(rows) == 8 + 1 and not rows["diverged"].any()
    assert rows["tow"].between(0, 1).all()
    assert {name: toy.provenance()[name] for name in ("device", "profile")} == {"device": "cpu", "profile": "toy"}


def test_what_another_model_scored_depends_on_that_model(toy):
    of, chunk = computations.bank.identity, range(4)
    how, p = toy.profile.scored_by, toy.profile
    assert (how.make_model, how.recipe) == (p.score_model, p.score_recipe)
    other = replace(p, score_recipe=replace(p.score_recipe, lr=0.02)).scored_by
    assert of(toy, chunk, 0.5, how) == of(toy, chunk, 0.5, how) != of(toy, chunk, 0.5, other)
    plain = replace(p, score_model=None, score_recipe=None).scored_by
    assert (plain.make_model, plain.recipe) == (p.make_model, p.recipe)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "tiny_imagenet"])
def test_the_papers_profiles_hold_together(name):
    p = rum.lab.profile(name)
    assert p.score_models >= 100 and (p.set_size, p.mix, len(p.seeds)) == (3000, 3000, 3)
    assert not set(p.seeds) & set(p.tuning_seeds) and set(p.rates) == set(p.budgets)
    assert all(getattr(a, "inner", a).amp for a in p.algorithms.values())
    size = 64 if name == "tiny_imagenet" else 32
    for make in (p.make_model, p.scored_by.make_model):
        model = build(make, 0).eval()
        with torch.no_grad():
            logits = model(torch.rand(1, 3, size, size))
        assert logits.shape == (1, {"cifar10": 10, "cifar100": 100, "tiny_imagenet": 200}[name])


def test_the_rate_of_the_score_falls_after_epochs_16_21_and_26():
    recipe = rum.lab.profile("cifar10").scored_by.recipe
    rates = [recipe.rate(69 * epoch, 69 * 30) for epoch in range(30)]
    expected = [0.01] * 16 + [0.001] * 5 + [1e-4] * 5 + [1e-5] * 4
    assert rates == pytest.approx(expected) and recipe.rate(69 * 16 - 1, 69 * 30) == pytest.approx(0.01)
