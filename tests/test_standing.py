"""Where an algorithm stands: ranks, verdicts and cards from rows whose answer is known."""

from dataclasses import replace

import pandas as pd
import pytest
from studies import TINY, forget_set, open_study

import rumlib as rum
from rumlib.lab import computations
from rumlib.lab.standing import card, price, retrained_again, standings

MEANS = {("Good", "low"): 0.9, ("Good", "high"): 0.8, ("Odd", "low"): 0.95, ("Odd", "high"): 0.1,
         ("Original", "low"): 0.92, ("Original", "high"): 0.2}
ROWS = pd.DataFrame([dict(algorithm=name, level=level, seed=seed, tow=mean + 0.01 * seed, examples=500)
                     for (name, level), mean in MEANS.items() for seed in range(3)])
RECORD = pd.DataFrame([dict(name=(level, name, 5), setting={"lr": lr}, chosen=lr == 0.1)
                       for name, level in MEANS for lr in (0.1, 0.5)])


@pytest.fixture
def lines():
    return standings(ROWS, "level", retraining=1000)


def test_ranks_are_among_those_that_do_something(lines):
    assert lines["rank"].dropna().to_dict() == {
        ("Good", "low"): 2, ("Good", "high"): 1, ("Odd", "low"): 1, ("Odd", "high"): 2}
    assert set(lines["ranked"].dropna()) == {2} and set(lines["cost"]) == {0.5}


def test_what_differs_by_the_same_on_every_seed_is_significant(lines):
    assert lines["against"].to_dict() == {
        ("Good", "low"): "significantly worse", ("Good", "high"): "significantly better", ("Original", "low"): "",
        ("Odd", "low"): "significantly better", ("Odd", "high"): "significantly worse", ("Original", "high"): ""}


def test_without_doing_nothing_there_is_nothing_to_compare_with():
    lines = standings(ROWS[ROWS["algorithm"] != "Original"], "level", retraining=1000)
    assert set(lines["against"]) == {""} and set(lines["ranked"]) == {2}


def test_a_card_says_where_an_algorithm_is_best_and_worst_and_what_was_tried(lines):
    text = card(lines, RECORD, "Odd")
    assert "**Best set**: *low*, ToW 0.960" in text and "the largest mean there; significantly better than" in text
    assert "**Worst set**: *high*, ToW 0.110" in text
    assert "0.700 below the best method there; significantly worse than doing nothing." in text
    assert "Not significantly better than doing nothing on *high*." in text
    assert "| `lr` 0.1 | 0.50 |" in text and "Values tried: `lr` 0.1, 0.5." in text


@pytest.mark.parametrize("seeds, pairs", [(1, []), (2, [(0, 1)]), (3, [(0, 1), (1, 2), (2, 0)])])
def test_each_oracle_is_compared_with_the_next_one(seeds, pairs, tmp_path):
    study = open_study(tmp_path, replace(TINY, seeds=tuple(range(seeds))))
    forget = forget_set(study, 12)
    found = retrained_again(study, {"a": forget})
    assert [(row["seed"], row["other"]) for row in found.to_dict("records")] == pairs
    assert not len(found) or found["tow"].between(0, 1).all()


def test_a_score_costs_the_examples_that_its_models_were_trained_on(tmp_path):
    study = open_study(tmp_path, TINY)
    p, found = study.profile, price(study)
    unit = (len(study.train) - p.mix) * p.recipe.epochs
    with rum.train.cost() as spent:
        computations.probed.compute(study, "holdout_retraining", 0)
    assert found["holdout_retraining"] == pytest.approx(spent.examples / unit)
    bank = study._banks[0]["tensors"]["included"]
    assert found["memorization"] == pytest.approx(p.score_models * bank[0].sum().item() * p.recipe.epochs / unit)
    assert found["confidence"] == 0


def test_a_card_of_what_is_never_better_than_nothing_says_so(lines):
    text = card(lines.loc[[("Odd", "high")]], RECORD, "Odd")
    assert "On no set is it significantly better than doing nothing. **Worst set**: *high*" in text


def test_a_card_gives_no_verdict_that_was_not_compared(lines):
    text = card(lines.assign(against=""), RECORD, "Good")
    assert "**Best set**: *high*" in text and "than doing nothing" not in text.partition("**Best")[2]


def test_a_card_of_what_was_not_run_says_so(lines):
    assert card(lines, RECORD, "SSD") == "SSD is not among the algorithms of this profile."
