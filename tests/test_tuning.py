"""Searches, the choice on tuning seeds, and the file of what was chosen."""

import json
import sys

import pandas as pd
import pytest
import torch
from studies import environ, mine, open_study

import rumlib as rum
from rumlib.lab import Cell, profile, protocol, tables, tuned, tuning, vary
from rumlib.lab.sketch import Sketch
from rumlib.lab.tuning import ByStep, publish


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    with environ():
        yield open_study(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def forget(study):
    return mine(study)


def asked(searching):
    return next(searching)


# -- Searches ---------------------------------------------------------------------------------------------------------


def test_learning_rates_are_tried_as_they_come():
    assert asked(tuning.search((0.1, 0.01))) == [{"lr": 0.1}, {"lr": 0.01}]


def test_a_grid_is_every_combination_or_a_fixed_number_of_them():
    space = {"lr": (1, 2, 3), "alpha": (4, 5)}
    whole = asked(tuning.search(space))
    assert len(whole) == 6 and {"lr": 2, "alpha": 5} in whole
    some = asked(tuning.search(space, trials=4))
    assert len(some) == 4 and all(setting in whole for setting in some)
    assert some == asked(tuning.search(space, trials=4))
    assert asked(tuning.search(space, trials=10)) == whole


@pytest.mark.parametrize("space, trials, words", [((), None, "nothing to try"), ({"lr": ()}, None, "nothing to try"),
                                                  ((0.1,), 0, "at least 1"), ({"lr": object()}, None, "trials=")])
def test_a_search_that_cannot_be_is_refused(space, trials, words):
    with pytest.raises(ValueError, match=words):
        next(tuning.search(space, trials))


def test_without_optuna_a_space_of_distributions_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"rumlib\[tune\]"):
        next(tuning.search({"lr": object()}, 5))


def test_optuna_searches_within_the_budget_and_learns():
    optuna = pytest.importorskip("optuna")
    space = {"lr": optuna.distributions.FloatDistribution(1e-3, 1, log=True)}

    def run():
        searching, tried = tuning.search(space, 30), []
        settings = next(searching)
        while settings:
            tows = [float("nan") if s["lr"] > 0.9 else 1 - abs(torch.tensor(s["lr"] / 0.05).log10().item()) / 3
                    for s in settings]
            tried += list(zip(tows, [s["lr"] for s in settings], strict=True))
            try:
                settings = searching.send(tows)
            except StopIteration:
                break
        return tried

    tried = run()
    assert len(tried) == 30 and tried == run()
    assert max(tried)[1] == pytest.approx(0.05, rel=0.3)


# -- The choice -------------------------------------------------------------------------------------------------------


def test_the_best_setting_of_a_grid_is_chosen_on_the_tuning_seeds(study, forget):
    cells = {("a", "plus", 2): (forget, rum.NegGradPlus(epochs=2, batch_size=32),
                                {"lr": (0.01, 0.1), "alpha": (0.9, 0.99)}),
             ("a", "salun", 2): (forget, rum.SalUn(rum.RandomLabel(epochs=2, batch_size=32)),
                                 {"keep": (0.1, 0.5), "lr": (0.1,)}),
             ("a", "influence", 0): (forget, rum.InfluenceUnlearning(), {"alpha": (1.0, 10.0)})}
    chosen, record = study.tune(cells)
    assert list(record["name"].value_counts(sort=False)) == [4, 2, 2]
    for name, algorithm in chosen.items():
        mine = record[[other == name for other in record["name"]]]
        assert mine["chosen"].sum() == 1 and mine.loc[mine["chosen"], "tow"].item() == mine["tow"].max()
        setting = mine.loc[mine["chosen"], "setting"].item()
        assert all(f"{field}={value!r}" in repr(algorithm) for field, value in setting.items())
    plus = record.iloc[0]
    by_hand = study.unlearn(Cell(forget, vary(cells[plus["name"]][1], **plus["setting"]), seed, mia=False)
                            for seed in (100, 101))
    assert plus["tow"] == pytest.approx(by_hand["tow"].mean())


def test_a_budget_bounds_the_trials_of_each(study, forget):
    space = {"lr": (0.01, 0.03, 0.1), "alpha": (0.9, 0.99)}
    _, record = study.tune({"plus": (forget, rum.NegGradPlus(epochs=1, batch_size=32), space)}, trials=2)
    assert len(record) == 2


def test_a_rate_that_diverges_is_never_chosen(study, forget):
    ascent = rum.NegGrad(epochs=5, batch_size=2, momentum=0.99)
    chosen, record = study.tune({"up": (forget, ascent, (1e-4, 1e30))})
    assert chosen["up"].lr == 1e-4 and record["diverged"].tolist() == [0, 2]
    with pytest.raises(FloatingPointError, match="up: every setting"):
        study.tune({"up": (forget, ascent, (1e30,))})


def test_a_field_is_varied_where_it_is():
    deep = rum.RUM(rum.Shuffled(3), (rum.Keep(), rum.SalUn(rum.RandomLabel()), rum.Finetune()))
    assert [getattr(step, "lr", None) for step in vary(deep, lr=0.5).steps] == [None, None, 0.5]
    assert vary(deep, lr=0.5).steps[1].inner.lr == 0.5 and vary(deep, keep=0.1).steps[1].keep == 0.1
    for algorithm in (deep, rum.Finetune(), rum.SalUn(rum.RandomLabel())):
        with pytest.raises(ValueError, match="has no field rate"):
            vary(algorithm, rate=1)


# -- Step by step -----------------------------------------------------------------------------------------------------


class Named:                                                 # a forget set of which nothing but its name is asked
    digest = "mine"


def test_each_step_is_chosen_for_itself_and_given_those_before_it():
    steps = (rum.Finetune(), rum.Keep(), rum.Finetune())
    down = rum.RUM(rum.Shuffled(3), steps, order=(2, 1, 0))
    seen = []

    def evaluate(tried):
        """Part 2 is best at .1, and part 0 at the rate that part 2 has not."""
        seen.append([done for _, _, done in tried])
        tows = []
        for _, algorithm, done in tried:
            last, first = algorithm.steps[2].lr, algorithm.steps[0].lr
            tows.append(1 - abs(last - 0.1) if done == 1 else float(first != last))
        return pd.DataFrame({"tow": tows, "diverged": 0})

    rates = (0.01, 0.1)
    chosen, record = tuning.choose({"rum": (Named, down, ByStep((rates, None, rates)))}, evaluate)
    assert [step.lr for step in chosen["rum"].steps[::2]] == [0.01, 0.1] and seen == [[1, 1], [3, 3]]
    assert record["part"].tolist() == ["part 3"] * 2 + ["part 1"] * 2 and record["chosen"].sum() == 2
    together, record = tuning.choose({"rum": (Named, down, rates)}, lambda tried: pd.DataFrame(
        {"tow": [algorithm.steps[0].lr for _, algorithm, done in tried if done is None], "diverged": 0}))
    assert [step.lr for step in together["rum"].steps[::2]] == [0.1, 0.1] and len(record) == 2


@pytest.mark.parametrize("waiting", ["retain", "leave_out"])
@pytest.mark.parametrize("order", [None, (2, 0, 1)])
def test_the_steps_of_a_rum_are_judged_as_they_are_run(study, forget, order, waiting):
    steps = (rum.Finetune(epochs=1, batch_size=32), rum.SalUn(rum.RandomLabel(epochs=1, batch_size=32)),
             rum.NegGradPlus(epochs=1, batch_size=32))
    meta = rum.RUM(rum.Shuffled(3), steps, order=order, waiting=waiting)
    begun = tables.first_steps(study, {k: (forget, meta, k) for k in (1, 2, 3)}, [0])
    whole = study.unlearn([Cell(forget, meta, 0)])
    assert begun["tow"].iloc[2] == whole["tow"].item() and begun["forget"].iloc[2] == whole["forget"].item()
    parts = meta.refine(study.split(forget)[0])
    order = order or (0, 1, 2)
    first = study.forget_set("first", torch.isin(study.train.index, parts[order[0]].index))
    retain = study.split(first)[1]
    if waiting == "leave_out":
        retain = retain[~torch.isin(retain.index, forget.index)]
    by_hand = steps[order[0]](study.model(0), parts[order[0]], retain, seed=0)
    assert begun["forget"].iloc[0] == rum.accuracy(by_hand, parts[order[0]])


@pytest.mark.parametrize("algorithm, spaces, words", [
    (rum.Finetune(), ((0.1,),), "a space for each step of a RUM"),
    (rum.RUM(rum.Shuffled(2), (rum.Keep(), rum.Finetune())), ((0.1,),), "got 1 spaces"),
    (rum.RUM(rum.Shuffled(2), (rum.Keep(), rum.Finetune())), (None, None), "nothing to choose"),
    (rum.RUM(rum.Shuffled(2), (rum.Keep(), rum.Finetune())), (None, ()), "nothing to try")])
def test_spaces_that_do_not_fit_the_steps_are_refused(study, forget, algorithm, spaces, words):
    with pytest.raises(ValueError, match=words):
        study.tune({"x": (forget, algorithm, ByStep(spaces))})


def test_all_ways_that_are_compared_have_as_many_looks():
    for name in ("laptop", "cifar10-small", "cifar10-cpu", "cifar10"):
        p = profile(name)
        asked = Sketch(p, "rum"), Sketch(p, "rum_ablations")
        tables = [table(asked[0]) for table in (protocol.rum_variants, protocol.mixed_rums, protocol.by_proxies,
                                                protocol.orders, protocol.left_out, protocol.one_rate)]
        for table in tables:
            for _, _, space in table.spaces.values():
                spaces = [one for one in space.spaces if one] if isinstance(space, ByStep) else [space]
                assert sum(len(next(tuning.search(one))) for one in spaces) == 3 * p.looks
                assert all(len(set(one["lr"])) == len(one["lr"]) for one in spaces)


# -- The file ---------------------------------------------------------------------------------------------------------


def test_what_was_chosen_is_on_file_with_its_search(study, forget, tmp_path):
    finetune = rum.Finetune(epochs=1, batch_size=32)
    chosen, record = study.tune({("low", "Fine-tune", 1): (forget, finetune, (0.01, 0.1))})
    path = publish(study.profile, record, folder=tmp_path)
    assert path == tmp_path / "tiny.json" and "chosen with the retrained oracle" in json.loads(path.read_text())["how"]
    entry = tuned("tiny", tmp_path)["low", "Fine-tune", 1]
    assert vary(finetune, **entry["values"]) == chosen["low", "Fine-tune", 1]
    assert [set(trial) for trial in entry["search"]] == [{"lr", "tow"}] * 2
    assert entry["forget"] == forget.digest and entry["seeds"] == [100, 101]
    _, record = study.tune({("high", "Fine-tune", 1): (forget, finetune, (0.01,))})
    publish(study.profile, record, folder=tmp_path)
    assert list(tuned("tiny", tmp_path)) == [("low", "Fine-tune", 1), ("high", "Fine-tune", 1)]
    with pytest.raises(FileNotFoundError, match="'huge'; there is tiny"):
        tuned("huge", tmp_path)


def test_the_package_ships_what_was_chosen_for_the_laptop():
    found, p = tuned("laptop"), profile("laptop")
    for name, entry in found.items():
        best = max(trial["tow"] for trial in entry["search"] if trial["tow"] is not None)
        assert entry["tow"] == best and {**entry["values"], "tow": best} in entry["search"], name
        assert entry["seeds"] == list(p.tuning_seeds)
    (budget,) = p.budgets
    ways = {"": protocol.candidates(p, budget) | protocol.NOTHING}
    ways |= dict.fromkeys(("ES ", "matched "), protocol.of_the_paper(p, budget))
    assert set(found) == {(f"{of}{level}", name, budget) for of, some in ways.items() for name in some
                          for level in ("low", "medium", "high")}
