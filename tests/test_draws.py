"""What notebooks 06 and 07 compare: verdicts over draws of the data, corrections, and the figures of both."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rumlib.lab import draws, measures

pytestmark = pytest.mark.usefixtures("off_screen")
RANDOM = np.random.default_rng(0)


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
    assert line["positive"] == "6/6" and line["survives"] and found["survives"].all()
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


def test_the_six_orders_are_compared_within_a_draw():
    orders = [draws.UP, draws.DOWN, "low > high > medium", "medium > low > high"]
    rows = pd.DataFrame([{"algorithm": "SalUn", "variant": order, "draw": draw, "tow": 0.1 * draw + 0.01 * k}
                         for k, order in enumerate(orders) for draw in range(3)])
    found = draws.centred(pd.concat([rows, rows.assign(variant="once")]))
    assert found["difference"].groupby(found["order"], sort=False).mean().round(3).to_dict() == {
        "low > medium > high": -0.015, "high > medium > low": -0.005, "low > high > medium": 0.005,
        "medium > low > high": 0.015}
    assert found["difference"].groupby(found["order"]).std().max() < 1e-9


def test_orders_are_contrasted_within_a_draw():
    orders = {draws.UP: 0.0, draws.DOWN: 0.2, "medium > high > low": 0.4, "low > high > medium": 0.1}
    six = draws.centred(pd.DataFrame([
        {"algorithm": name, "variant": order, "draw": draw, "tow": 0.1 * draw + more + 0.001 * draw * (more > 0.1)}
        for order, more in orders.items() for draw in range(3) for name in ("SalUn", "Fine-tune")]))
    found = draws.contrasted(six, six["order"].str.endswith("> low"))
    assert found["mean"] == pytest.approx(0.251) and found["n"] == 3 and found["verdict"] == "better"


def test_two_sided_is_the_t_test_of_scipy():
    values = RANDOM.standard_normal(7) + 0.5
    assert measures.two_sided(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert np.isnan(measures.two_sided([0.1])) and measures.two_sided([0.0, 0.0]) == 1


def test_holm_keeps_the_order_and_is_between_none_and_bonferroni():
    p = RANDOM.uniform(size=20) ** 3
    found = np.array(measures.holm(p))
    assert (np.diff(found[np.argsort(p)]) >= 0).all() and (found >= p).all() and (found <= np.minimum(1, 20 * p)).all()
    assert measures.holm([0.02]) == [0.02] and measures.holm([float("nan"), 0.02]) == [1.0, 0.04]
