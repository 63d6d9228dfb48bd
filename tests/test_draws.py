"""What notebooks 06 and 07 compare: verdicts over draws of the data, corrections, and the figures of both."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import stats

import rumlib as rum
from rumlib import plots
from rumlib.lab import draws, measures

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def off_screen():
    plt.switch_backend("agg")
    yield
    plt.close("all")


@pytest.fixture
def table():
    """Six draws in which refining low to high is 0.1 better than random parts by A, and worse by B, and a mixed RUM is
    0.2 better than either."""
    tow = {("A", draws.UP): 0.7, ("A", "shuffled"): 0.6, ("A", draws.LONGER): 0.7,
           ("B", draws.UP): 0.5, ("B", "shuffled"): 0.6, ("B", draws.LONGER): 0.5,
           ("nothing > A > B", "RUM low to high"): 0.9}
    further = {way for pair in draws.COMPARISONS.values() for way in pair} - {draws.UP, "shuffled", draws.LONGER}
    tow |= {("A", way): 0.7 for way in further}              # by A alone, as refined low to high
    return pd.DataFrame([{"algorithm": name, "variant": variant, "draw": draw,
                          "tow": value + 0.1 * draw + 0.001 * RANDOM.standard_normal()}
                         for (name, variant), value in tow.items() for draw in range(6)])


def test_differences_are_paired_within_a_draw(table):
    found = draws.verdicts(draws.differences(table))
    line = found.loc["low to high - shuffled", "A"]
    assert line["mean"] == pytest.approx(0.1, abs=0.002) and line["high"] - line["low"] < 0.01        # draws: by .5
    assert found.loc["low to high - shuffled"]["verdict"].tolist() == ["better", "worse"]
    assert line["positive"] == "6/6" and line["survives"] and found["settled"].all()
    assert set(found.index.get_level_values(0)) == set(draws.COMPARISONS)
    assert found.loc["low to high - once, 3x epochs", "A"]["verdict"] == "equivalent"


def test_a_mixed_rum_is_compared_with_each_algorithm(table):
    found = draws.verdicts(draws.mixed_differences(table), ("minus", "RUM", "algorithm"))
    against = found.loc[draws.UP].loc["nothing > A > B, low to high"]
    assert against["mean"].round(2).to_dict() == {"A": 0.2, "B": 0.4} and against["survives"].all()


def test_a_verdict_among_many_that_say_nothing_does_not_survive():
    values = np.array([0.020, 0.011, -0.004, 0.012, -0.002, 0.011])
    rows = [{"comparison": what, "algorithm": "A", "difference": value * (1 if what == 0 else 10 * (-1) ** k)}
            for what in range(40) for k, value in enumerate(values)]
    alone, among = (draws.verdicts(pd.DataFrame(part)) for part in (rows[:6], rows))
    assert alone["verdict"].item() == among["verdict"].iloc[0] == "equivalent"
    assert alone["survives"].item() and not among["survives"].any()
    assert among["settled"].tolist() == [False, *[True] * 39]


def test_the_six_orders_are_compared_within_a_draw():
    orders = [draws.UP, draws.DOWN, "low > high > medium", "medium > low > high"]
    rows = pd.DataFrame([{"algorithm": "SalUn", "variant": order, "draw": draw, "tow": 0.1 * draw + 0.01 * k}
                         for k, order in enumerate(orders) for draw in range(3)])
    found = draws.centred(pd.concat([rows, rows.assign(variant="once")]))
    assert found["difference"].groupby(found["order"], sort=False).mean().round(3).to_dict() == {
        "low > medium > high": -0.015, "high > medium > low": -0.005, "low > high > medium": 0.005,
        "medium > low > high": 0.015}
    assert found["difference"].groupby(found["order"]).std().max() < 1e-9


def test_two_sided_is_the_t_test_of_scipy():
    values = RANDOM.standard_normal(7) + 0.5
    assert measures.two_sided(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert np.isnan(measures.two_sided([0.1])) and measures.two_sided([0.0, 0.0]) == 1


def test_holm_keeps_the_order_and_is_between_none_and_bonferroni():
    p = RANDOM.uniform(size=20) ** 3
    found = np.array(measures.holm(p))
    assert (np.diff(found[np.argsort(p)]) >= 0).all() and (found >= p).all() and (found <= np.minimum(1, 20 * p)).all()
    assert measures.holm([0.02]) == [0.02] and measures.holm([float("nan"), 0.02]) == [1.0, 0.04]


def test_another_seed_is_the_tow_of_one_oracle_against_the_next():
    rows = pd.DataFrame([{"seed": seed, "oracle_forget": 0.1 * seed, "oracle_retain": 1.0, "oracle_test": 0.8}
                         for seed in (0, 1, 3) for _ in range(2)])
    assert measures.another_seed(rows).round(6).to_dict("list") == {"seed": [0, 1, 3], "tow": [0.9, 0.8, 0.7]}
    assert measures.another_seed(rows[rows["seed"] < 3])["tow"].round(6).tolist() == [0.9]
    assert measures.another_seed(rows[rows["seed"] < 1]).empty


def test_one_measure_stands_in_rows_and_columns():
    rows = pd.DataFrame([{"algorithm": name, "variant": way, "seed": seed, "tow": 0.5 + 0.1 * seed}
                         for name, way in (("b", "once"), ("a", "once"), ("a", "thrice")) for seed in range(2)])
    text = measures.wide(rows, "algorithm", "variant", "tow")
    assert text.index.tolist() == ["b", "a"] and text.columns.tolist() == ["once", "thrice"]
    assert text.loc["b", "thrice"] == "" and text.loc["a", "once"].startswith("0.550 ± 0.")


def test_members_of_a_group_stand_beside_their_mean():
    rows = [{"row": row, "algorithm": name, "seed": seed, "tow": 0.5 + 0.1 * k + 0.01 * seed}
            for row in ("x", "y") for k, name in enumerate(("Fine-tune", "SalUn")) for seed in range(3)]
    each = rum.summarise(rows, ["row", "algorithm"], "tow")
    together = rum.summarise(pd.DataFrame(rows).groupby(["row", "seed"])["tow"].mean().reset_index(), "row", "tow")
    ax = plots.averaged(each, together)
    assert [line.get_xdata().round(2).tolist() for line in ax.get_lines()[:2]] == [[0.51, 0.51], [0.61, 0.61]]
    assert ax.containers[0][0].get_xdata().astype(float).round(2).tolist() == [0.56, 0.56]


def test_a_yardstick_that_is_far_to_the_left_is_named_and_keeps_the_range():
    ax = plt.subplots()[1]
    ax.set_xlim(0.8, 0.9)
    plots.yardsticks(ax, 0.5, 0.95)
    words = " ".join(text.get_text() for text in ax.texts)
    assert "← doing nothing: 0.50" in words and "retrained" in words
    assert ax.get_xlim()[0] == 0.8 and ax.get_xlim()[1] > 0.95
    plots.yardsticks(ax, 0.85, None)
    assert "doing nothing" in [text.get_text() for text in ax.texts]


def test_open_markers_are_verdicts_that_do_not_survive(table):
    found = draws.verdicts(draws.differences(table)).reset_index()
    found["settled"] = found["algorithm"] == "A"
    figure = plots.differences(found, "comparison", "algorithm", sure="settled", margin=0.02, columns=2)
    faces = [bars[0].get_markerfacecolor() for bars in figure.axes[0].containers]
    assert faces[0] == plots.SAYS["better"][0] and faces[1] == "white"
    assert [ax.get_title() for ax in figure.axes] == list(dict.fromkeys(found["comparison"]))
