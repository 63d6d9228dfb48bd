"""Searches, the choice on tuning seeds, and the file of what was chosen."""

import json
import sys

import pytest
import torch
from studies import environ, mine, open_study

import rumlib as rum
from rumlib.lab import Cell, profile, tuned, tuning, vary
from rumlib.lab.tuning import publish


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
    found = tuned("laptop")
    p = profile("laptop")
    for (level, name, budget), entry in found.items():
        assert level in ("low", "medium", "high") and budget in p.budgets
        best = max(trial["tow"] for trial in entry["search"] if trial["tow"] is not None)
        assert entry["tow"] == best and {**entry["values"], "tow": best} in entry["search"], name
    assert {(level, name, budget) for level in ("low", "medium", "high") for name in (*p.algorithms, *p.further)
            for budget in p.budgets} == set(found)
