"""What rows say together: means with intervals, and paired contrasts."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import rumlib as rum


def rows(of="tow", /, **columns):
    return pd.DataFrame([{"algorithm": name, "seed": seed, of: value}
                         for name, values in columns.items() for seed, value in enumerate(values)])


def test_the_interval_of_three_values_has_its_closed_form():
    """t(.975, 2) = 4.302653; mean 2, standard error 1 / sqrt(3)."""
    found = rum.summarise(rows("seconds", a=[1, 2, 3]), by="algorithm", of="seconds").loc["a"]
    assert found["mean"] == 2 and found["n"] == 3
    assert found["high"] == pytest.approx(2 + 4.302653 / math.sqrt(3), rel=1e-6)
    assert found["low"] == pytest.approx(2 - 4.302653 / math.sqrt(3), rel=1e-6)


def test_a_single_run_has_no_interval():
    found = rum.summarise(rows(a=[0.5]), by="algorithm", of="tow").loc["a"]
    assert (found["mean"], found["n"]) == (0.5, 1)
    assert math.isnan(found["low"]) and math.isnan(found["high"])


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12).filter(lambda v: np.std(v) > 1e-6))
def test_the_interval_is_scipys(values):
    found = rum.summarise(rows("seconds", a=values), by="algorithm", of="seconds").loc["a"]
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert (found["low"], found["high"]) == (pytest.approx(low, abs=1e-12), pytest.approx(high, abs=1e-12))
    share = rum.summarise(rows(a=values), by="algorithm", of="tow").loc["a"]
    assert 0 <= share["low"] <= share["mean"] <= share["high"] <= 1
    if low >= 0 and high <= 1:                               # else that of the bootstrap
        assert (share["low"], share["high"]) == (found["low"], found["high"])


def test_an_interval_of_shares_that_would_leave_its_bounds_is_that_of_the_bootstrap():
    """Of 0 and 1 a bootstrap sample has the mean 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4; of .9, .9, 1, 1 the mean
    lies in [.9, 1], and is .9 or 1 with 1/16 each."""
    found = rum.summarise(rows(a=[0, 1], b=[0.9, 0.9, 1, 1]), by="algorithm", of="tow")
    assert found.loc["a", ["low", "high"]].tolist() == [0, 1]
    assert found.loc["b", ["low", "high"]].tolist() == [pytest.approx(0.9), pytest.approx(1.0)]


def test_groups_keep_their_order_and_their_own_n():
    found = rum.summarise(rows(zebra=[1, 2], ape=[1, 2, 3]), by=["algorithm"], of="tow")
    assert found["n"].to_dict() == {"zebra": 2, "ape": 3} and list(found.index) == ["zebra", "ape"]
    assert list(found.columns) == ["mean", "low", "high", "n"]


def test_rows_may_be_dictionaries():
    assert rum.summarise([{"a": 1, "tow": 0.5}, {"a": 1, "tow": 1.0}], by="a", of="tow").loc[1, "mean"] == 0.75


def test_missing_values_and_columns_are_refused():
    with pytest.raises(ValueError, match=r"1 of 2 rows have no tow.*diverged"):
        rum.summarise(rows(a=[0.5, None]), by="algorithm", of="tow")
    with pytest.raises(ValueError, match=r"no column level, mia; they have algorithm, seed, tow"):
        rum.summarise(rows(a=[0.5]), by=["algorithm", "level"], of="mia")


# -- Contrasts --------------------------------------------------------------------------------------------------------

A, B = {"algorithm": "a"}, {"algorithm": "b"}


@pytest.mark.parametrize("a, b, verdict", [
    ([0.9, 0.8, 0.7], [0.5, 0.41, 0.29], "holds"),
    ([0.5, 0.41, 0.29], [0.9, 0.8, 0.7], "opposite"),
    ([0.9, 0.3, 0.6], [0.5, 0.5, 0.5], "open"),
    ([0.9], [0.1], "open"),
])
def test_the_verdict_is_where_the_interval_lies(a, b, verdict):
    found = rum.stats.contrast(rows(a=a, b=b), A, B, of="tow")
    assert found["verdict"] == verdict
    assert found["mean"] == pytest.approx(np.mean(np.subtract(a, b))) and found["n"] == len(a)


def test_a_contrast_is_paired_by_seed_and_not_by_row():
    table = rows(a=[0.9, 0.5, 0.1], b=[0.8, 0.4, 0.0])
    found = rum.stats.contrast(table, A, B, of="tow")
    assert found["low"] == pytest.approx(0.1) and found["high"] == pytest.approx(0.1)
    assert rum.stats.contrast(table.sample(frac=1, random_state=1), A, B, of="tow") == pytest.approx(found)


def test_several_rows_of_a_seed_are_averaged_first():
    table = pd.concat([rows(a=[0.2, 0.4], b=[0.1, 0.1]), rows(a=[0.4, 0.8])])
    found = rum.stats.contrast(table, A, B, of="tow")
    assert found["n"] == 2 and found["mean"] == pytest.approx(0.35)


def test_paired_differences_are_those_of_the_seeds():
    found = rum.stats.paired(rows(a=[0.9, 0.5], b=[0.8, 0.1]).sample(frac=1, random_state=2), A, B, of="tow")
    assert found.sort_index().tolist() == pytest.approx([0.1, 0.4])


def test_a_contrast_of_different_seeds_is_refused():
    with pytest.raises(ValueError, match="needs the same ones"):
        rum.stats.contrast(rows(a=[1, 2, 3], b=[1, 2]), A, B, of="tow")
    with pytest.raises(ValueError, match="needs the same ones"):
        rum.stats.contrast(rows(a=[1, 2, 3]), A, B, of="tow")


def test_a_contrast_with_a_diverged_run_is_refused():
    """Its mean would be NaN and its verdict "open", as if the data were undecided."""
    with pytest.raises(ValueError, match="diverged"):
        rum.stats.contrast(rows(a=[0.9, None, 0.8], b=[0.1, 0.2, 0.1]), A, B, of="tow")


# -- Equivalence ------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-0.1, 0.1), min_size=2, max_size=12).filter(lambda v: np.std(v) > 1e-6))
def test_the_two_one_sided_tests_are_scipys(differences):
    found = rum.stats.equivalence(differences, margin=0.02)
    above = stats.ttest_1samp(differences, -0.02, alternative="greater").pvalue
    below = stats.ttest_1samp(differences, 0.02, alternative="less").pvalue
    assert found["p"] == pytest.approx(max(above, below), abs=1e-9)
    low, high = stats.t.interval(0.90, len(differences) - 1, np.mean(differences), stats.sem(differences))
    inside = low > -0.02 and high < 0.02                     # the same test, as a 90 % interval
    assert (found["verdict"] == "equivalent") == inside or found["p"] == pytest.approx(0.05, abs=1e-6)


@pytest.mark.parametrize("differences, verdict", [
    ([0.001, -0.002, 0.0015, 0.0], "equivalent"), ([0.010, 0.011, 0.009, 0.010], "equivalent"),
    ([0.10, 0.12, 0.11, 0.09], "better"), ([-0.10, -0.12, -0.11, -0.09], "worse"), ([0.1, -0.1, 0.05], "inconclusive"),
    ([0.0], "inconclusive"), ([0.01, 0.01], "equivalent"), ([0.05, 0.05], "better"), ([0.02, 0.02], "better"),
])
def test_what_is_said_of_differences(differences, verdict):
    found = rum.stats.equivalence(differences)
    assert found["verdict"] == verdict and found["n"] == len(differences)


def test_a_stricter_level_needs_more():
    differences = [0.005, -0.01, 0.012, 0.0]
    assert rum.stats.equivalence(differences, level=0.9)["verdict"] == "equivalent"
    assert rum.stats.equivalence(differences, level=0.99)["verdict"] == "inconclusive"
    assert rum.stats.equivalence(differences, margin=0.2, level=0.99)["verdict"] == "equivalent"
