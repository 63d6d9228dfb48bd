"""What a study is planned to take: against closed forms, and against what a study asks for and leaves on disk."""

from dataclasses import replace
from functools import partial

import pytest
import torch

import rumlib as rum
from rumlib.lab.plan import IMAGENET, Pilots, Plan, main, measured, operations, stated, work
from rumlib.lab.profiles import PROFILES
from rumlib.lab.sketch import Sizes, ask, sizes

SMOKE = rum.lab.profile("smoke")
TINY = replace(                                              # small, but of its wrong labels some are known by heart
    SMOKE, name="tiny", options=dict(n=200, n_test=40, flips=0.2), make_model=partial(rum.models.mlp, hidden=(64,)),
    device="cpu", recipe=rum.Recipe(epochs=12, lr=0.2, batch_size=32), set_size=20, further={}, seeds=(0,),
    notebooks=("pretraining", "scoring", "memorization", "entanglement", "rum", "rum_ablations"),
    score_models=33)
UNIT = Pilots({"original": 1.0}, evaluation=0.1, attack=10.0, placing=2.0, memory=100.0, source="made up")


# -- What it asks for -------------------------------------------------------------------------------------------------


def test_the_results_of_a_plan_are_those_of_the_study(tmp_path, monkeypatch):
    monkeypatch.setenv("RUM_ENGINE", "serial")
    study, plan = rum.lab.Study(TINY, quiet=True, home=tmp_path), Plan(TINY, UNIT, 1)
    for name in plan.notebooks:
        ask(study, name)
    left = {kind: len(list(study.store.folder.glob(f"{kind}/*.json"))) for kind in plan.results["kind"].unique()}
    planned = plan.results["kind"].value_counts().to_dict()
    oracles = planned.pop("oracle")                          # parts by two scores may be the same examples
    assert planned == {kind: n for kind, n in left.items() if kind != "oracle"} and left["bank"] == 2
    assert left["oracle"] <= oracles <= 1.1 * left["oracle"]
    disk = sum(path.stat().st_size for path in study.store.folder.glob("*/*"))
    assert plan.results["GB"].sum() * 1e9 == pytest.approx(disk, rel=0.35)
    for kind, tolerance in {"original": 0, "oracle": 0.1, "run": 0.02}.items():
        planned = sum(examples for task in plan.tasks if task.kind == kind for _, examples in plan.trained(task))
        spent = sum(study.store.read(kind, path.stem)["values"]["examples"]
                    for path in study.store.folder.glob(f"{kind}/*.json"))
        assert planned == pytest.approx(spent, rel=tolerance)


@pytest.mark.parametrize("name", [*PROFILES, "imagenet"])
def test_every_profile_can_be_planned_without_its_data(name, monkeypatch, tmp_path):
    monkeypatch.setenv("RUM_DATA", str(tmp_path))
    p = PROFILES.get(name, IMAGENET)
    tasks = Plan(p, UNIT, 1).tasks
    studies = p.draws + bool(p.flips)
    assert sum(task.size for task in tasks if task.kind == "bank") == studies * p.score_models
    assert {task.seed for task in tasks if task.kind == "original"} >= {*p.seeds, *p.tuning_seeds}
    assert all(task.size < sizes(p).n for task in tasks if task.kind == "run")


def test_a_twin_with_synthetic_errors_is_planned_as_the_study_itself():
    p = rum.lab.profile("cifar10n-cpu")
    alone = Plan(replace(p, flips={}), UNIT, 1).results["kind"].value_counts()
    more = Plan(p, UNIT, 1).results["kind"].value_counts() - alone
    assert more.to_dict() == {"bank": alone["bank"], "original": 1, "probed": 2, "oracle": 0, "run": 0}


@pytest.mark.parametrize("name", ["smoke", "laptop"])
def test_the_sizes_of_known_data_are_theirs(name):
    p = rum.lab.profile(name)
    train, test = rum.load(p.data, **p.options)
    assert sizes(p) == Sizes(len(train), len(test), tuple(train.x.shape[1:]), 10, width=train.x.element_size())
    assert sizes(rum.lab.profile("cifar10-small")) == Sizes(2000, 2000, (3, 16, 16), 4)
    two = replace(SMOKE, data="cifar100", options=dict(classes=(3, 4)))
    assert sizes(two) == Sizes(1000, 200, (3, 32, 32), 2)


# -- What it costs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm, examples", [
    (rum.Finetune(epochs=3, batch_size=64), 3 * 1024),
    (rum.NegGrad(epochs=3, batch_size=64), 3 * 128),
    (rum.NegGradPlus(epochs=2, batch_size=64), 2 * (1024 + 16 * 64)),
    (rum.RandomLabel(epochs=2, batch_size=64), 2 * 1152),
    (rum.SalUn(rum.RandomLabel(epochs=4, batch_size=64)), 4 * 1152 + 128),
    (rum.Keep(), 0),
])
def test_an_algorithm_costs_what_it_passes(algorithm, examples):
    assert [found for _, found in work(algorithm, 128, 1024)] == [examples]


def test_a_rum_costs_what_its_steps_do_on_what_is_left():
    tune = rum.Finetune(epochs=1, batch_size=50)
    assert [found for _, found in work(rum.RUM(rum.Shuffled(2), (tune, tune)), 200, 1000)] == [1100, 1000]
    left_out = rum.RUM(rum.Shuffled(2), (tune, rum.Keep()), waiting="leave_out")
    assert [found for _, found in work(left_out, 200, 1000)] == [1000, 0]


@pytest.mark.parametrize("forget, retain", [(512, 16 * 1024), (8 * 1024, 8 * 1024)])
@pytest.mark.parametrize("algorithm", [rum.Finetune(epochs=1), rum.NegGrad(epochs=2), rum.NegGradPlus(epochs=3),
                                       rum.Scrub(epochs=2), rum.InfluenceUnlearning()],
                         ids=lambda algorithm: type(algorithm).__name__)
def test_a_large_set_costs_what_the_line_through_smaller_ones_says(algorithm, forget, retain):
    [(_, planned)] = work(algorithm, forget, retain)
    n, model = forget + retain, rum.models.mlp(shape=(1, 1, 1), hidden=())
    data = rum.Examples(torch.rand(n, 1, 1, 1), torch.arange(n) % 10)
    with rum.train.cost() as real:
        algorithm(model, *data.split(torch.arange(n) < forget))
    assert planned == real.examples


def test_a_chooser_costs_its_budget():
    first, refine = rum.Finetune(epochs=1), rum.Shuffled(3)
    auto = rum.AutoRUM(refine, (first,), rum.choose.HeldOut(None), orders=((0, 1, 2), (2, 1, 0)), budget=4.0)
    assert work(auto, 100, 1000) == [(first, 2 * 4.0 * 1000)]


def test_hours_are_examples_at_the_rates_of_pilots():
    plan = Plan(replace(SMOKE, score_models=40), UNIT, 1)
    table = plan.table()
    assert table.loc["subset models", "models"] == 40 and table.loc["subset models", "results"] == 2
    assert table.loc["subset models", "training h"] == pytest.approx(40 * 420 * 8 / 3600)
    assert table.loc["retrained", "other h"] == pytest.approx(
        table.loc["retrained", "results"] * (900 * 0.1 + 10) / 3600)
    assert table.loc["entanglement", "other h"] == pytest.approx((3 + 13 + 3) * 2 / 3600)
    assert table.loc["all", "wall h"] == pytest.approx(plan.hours)
    assert table.drop("all").sum().to_dict() == pytest.approx(table.loc["all"].to_dict())
    assert plan.memory == 100 + (600 + 300) * (64 * 4 + 16)


def test_more_devices_take_less_time_but_no_less_than_the_longest_cell():
    one, many, endless = (Plan(SMOKE, UNIT, devices).table()["wall h"] for devices in (1, 2, 10**6))
    assert many["rum_ablations runs"] == pytest.approx(one["rum_ablations runs"] / 2)
    assert endless["subset models"] == one["subset models"]              # a single cell
    assert (endless <= many).all() and endless["all"] > 0


def test_a_stated_rate_is_operations_over_it():
    make_model = partial(rum.models.mlp, shape=(1, 8, 8), hidden=(100,))
    assert operations(make_model, (1, 8, 8)) == 2 * (64 * 100 + 100 * 10)
    rates = stated(replace(SMOKE, make_model=make_model), 2.0)
    assert rates.train == {"original": pytest.approx(3 * 14_800 / 2e12), "bank": pytest.approx(3 * 14_800 / 2e12)}
    assert rates.evaluation == pytest.approx(14_800 / 2e12)


def test_pilots_cover_every_algorithm_and_agree_with_a_run():
    found = measured(SMOKE)
    assert {"original", "bank", "loss_curvature", "holdout_retraining", "Finetune", "TopK", "SSD"} <= set(found.train)
    assert min(found.train.values()) >= 0 and min(found.evaluation, found.attack, found.placing) > 0
    with rum.train.cost() as spent:
        rum.fit(SMOKE.make_model, rum.load(SMOKE.data, **SMOKE.options)[0], SMOKE.recipe)
    assert 1 / 6 < found.train["original"] * spent.examples / spent.seconds < 6      # a loaded machine included


# -- The command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments, problem", [
    (["smoke", "devices=0"], "devices must be a positive whole number; got '0'"),
    (["smoke", "devices=2.5"], "devices must be a positive whole number; got '2.5'"),
    (["smoke", "tflops=-1"], "tflops must be a positive number; got '-1'"),
    (["smoke", "tflops=inf"], "tflops must be a positive number; got 'inf'"),
    (["nothing"], "unknown profile 'nothing'; choose one of"),
    (["smoke", "gpus=2"], "unknown option gpus; there are devices= and tflops="),
])
def test_impossible_plans_are_refused(arguments, problem):
    with pytest.raises(ValueError, match=problem):
        main(*arguments)
    with pytest.raises(ValueError, match="devices must be a whole number at least 1"):
        Plan(SMOKE, UNIT, 0)


def test_the_command_prints_stages_memory_and_assumptions(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RUM_HOME", str(tmp_path))
    monkeypatch.setenv("RUM_ENGINE", "serial")
    main("smoke", "devices=2", "tflops=")                    # as the Makefile says that none are given
    printed = capsys.readouterr().out
    assert {"subset models", "proxies", "originals", "retrained", "entanglement", "memorization tuning",
            "memorization runs", "without_oracle runs", "all", "memory of one worker"} <= {
                line.split("  ")[0].split(":")[0] for line in printed.splitlines()}
    assert "measured on this machine (cpu)" in printed and "2 workers" in printed
