"""The model bank of a study: what is kept of the models, and how it is read."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import studies
import torch
from studies import environ, open_study

import rumlib as rum
from rumlib.attacks import log_odds
from rumlib.lab import banks, panel, profile, protocol
from rumlib.scores import subset_masks

KEPT = ("Fine-tune", "NegGrad", "NegGrad+", "Random label")
TINY = replace(
    studies.TINY, bank=20, make_model=partial(rum.models.mlp, hidden=(64,)), score_models=16, set_size=12, further={},
    recipe=rum.Recipe(epochs=20, lr=0.2, batch_size=32), tuning_seeds=(100,),
    algorithms={name: studies.TINY.algorithms[name] for name in KEPT})


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("bank")


@pytest.fixture(scope="module")
def study(home):
    with environ():
        yield open_study(home, TINY)


@pytest.fixture(scope="module")
def bank(study):
    return panel.Bank.of(study, protocol.banked(study))


def test_a_bank_has_what_its_profile_says(bank):
    assert list(bank.sets) == ["low", "medium", "high", "ES low", "ES high"]
    assert list(bank.algorithms("high")) == list(KEPT) and list(bank.algorithms("ES low")) == ["Fine-tune", "NegGrad+",
                                                                                              "NegGrad"]
    assert {len(found) for found in bank.oracles.values()} == {40}
    assert {len(found) for found in (*bank.originals.values(), *bank.unlearned.values())} == {20}
    assert bank.originals["high"].forget.shape == (20, 12) and bank.originals["high"].test.shape == (20, 60)
    assert ((bank.originals["high"].rmia >= 0) & (bank.originals["high"].rmia <= 1)).all()


def test_margins_are_those_of_models_trained_one_by_one(study, bank):
    """Oracles of seeds 1000 and on, and unlearned models that start from the original of their own seed."""
    forget, retain = study.split(bank.sets["high"])
    oracle = rum.fit(TINY.make_model, retain, TINY.recipe, seed=1003)
    expected = log_odds(rum.predict(oracle, forget), forget.y)
    assert bank.oracles["high"].forget[3].tolist() == pytest.approx(expected.tolist(), abs=0.02)
    assert bank.oracles["high"].accuracies[3, 2].item() == pytest.approx(rum.accuracy(oracle, study.test), abs=0.02)
    ((tuned, *_),) = [study.tune({"one": protocol.banked(study).spaces["high", "Fine-tune", 2]})[0].values()]
    original = rum.fit(TINY.make_model, study.train, TINY.recipe, seed=5)
    unlearned = tuned(original, forget, retain, seed=5)
    expected = log_odds(rum.predict(unlearned, forget), forget.y)
    assert bank.unlearned["high", "Fine-tune"].forget[5].tolist() == pytest.approx(expected.tolist(), abs=0.05)


def test_subset_models_are_those_of_the_memorization_estimator(study):
    part = banks.subset_bank(study, range(16), TINY.fraction, TINY.scored_by)["tensors"]
    assert torch.equal(part["included"], subset_masks(len(study.train), range(16), TINY.fraction, 0))
    assert torch.equal(part["included"], study.score.bank.included)
    right = study.score.bank.correct                         # positive log odds: more probable than all others together
    assert (right | (part["train"] <= 0.02)).all()
    assert part["train"].dtype == torch.float16 and part["test"].shape == (16, 60)


def test_a_bank_is_read_back(home, bank):
    with environ():
        again = open_study(home, TINY)
        other = panel.Bank.of(again, protocol.banked(again))
    assert again.used["computed"] == 0
    assert torch.equal(other.unlearned["high", "NegGrad+"].forget, bank.unlearned["high", "NegGrad+"].forget)
    assert not list((home / "runs" / "tiny" / "results" / "unlearned_bank").glob("*.large"))         # no weights


def test_oracles_are_normalised_to_one_and_the_original_to_zero(bank):
    found = panel.measured(bank, "high")
    assert set(found["metric"]) == set(panel.METRICS) and set(found["algorithm"]) == {"Original", "Oracle", *KEPT}
    scaled = found[found["why"] == ""]
    assert "KLOM" in set(scaled["metric"])
    assert (scaled[scaled["algorithm"] == "Original"]["normalised"] == 0).all()
    assert scaled[scaled["algorithm"] == "Oracle"]["normalised"].between(0.85, 1.15).all()
    assert found[found["why"] != ""]["normalised"].isna().all()


def test_a_metric_without_a_scale_or_with_too_few_models_is_refused_in_words(bank):
    few = replace(bank, oracles={"high": bank.oracles["high"][:16]}, originals={"high": bank.originals["high"][:8]},
                  unlearned={("high", "Fine-tune"): bank.unlearned["high", "Fine-tune"][:8]})
    refused = panel.measured(few, "high").drop_duplicates("metric").set_index("metric")["why"]
    assert "klom needs at least 20 oracles; got 8" in refused["KLOM"]
    assert "the contest's score needs at least 20 oracles" in refused["1 - F"]
    same = replace(bank, originals={"high": bank.oracles["high"][20:]})
    told = panel.measured(same, "high")
    assert told["why"].str.startswith("no scale: the original lies").all() and told["normalised"].isna().all()


def test_metrics_agree_with_themselves(bank):
    """Of an order that every metric must see, tau is 1; half of a bank of 20 is too small for intervals."""
    shifted = {("high", str(k)): panel.Margins(*(
        value + k if name in ("forget", "retain", "test") else value.clone() for name, value in vars(
            bank.oracles["high"][20:]).items())) for k in range(1, 4)}
    one = replace(bank, unlearned=shifted)
    found = panel.agreement(one, "high", 5).set_index(["one", "other"])
    assert found.loc[("loss", "KLOM"), "tau"] == 1 and np.isnan(found.loc[("loss", "KLOM"), "low"])
    less = panel.differences(one, "high", "1", "3", ("KLOM", "loss"), 5).set_index("metric")
    assert (less["mean"] > 0).all()                          # the smaller shift is nearer


def test_audits_of_a_study(study):
    found = panel.audited(study, protocol.audited(study))
    assert {len(one["linear probe"]) for one in found.values()} == {5}
    assert found["class", "Oracle"]["fallen to"].shape == (5, 10) and "prototype" not in found["high", "Oracle"]
    table = panel.verdicts(found).set_index(["set", "algorithm", "audit"]).sort_index()
    assert table.loc[("class", "Original", "forget accuracy"), "flagged"]
    assert table.loc[("class", "Head only", "CKA"), "difference"] == pytest.approx(
        table.loc[("class", "Original", "CKA"), "difference"], abs=1e-3)             # the same features
    assert {"relearning, a few", "linear probe", "int4", "neighbour", "prototype"} <= set(
        table.loc[("class", "Oracle")].index)


def test_profiles_without_a_bank_leave_its_notebook_out():
    assert profile("laptop").includes("11_has_it_forgotten") and profile("laptop").bank >= 30
    assert not profile("cifar10").includes("11_has_it_forgotten")
