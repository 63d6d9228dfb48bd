"""Figures: drawn from what `summarise` gives, and kept with their numbers and their origin."""

import json
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import rumlib as rum
from rumlib import plots
from rumlib.lab.profiles import LAPTOP
from rumlib.lab.provenance import described, save

pytestmark = pytest.mark.usefixtures("off_screen")
ALGORITHMS = (*LAPTOP.algorithms, *LAPTOP.further, "Original")


@pytest.fixture
def summary():
    rows = [{"algorithm": name, "level": level, "seed": seed, "tow": 0.1 * k + 0.2 * j + 0.01 * seed}
            for k, name in enumerate(("Fine-tune", "my own")) for j, level in enumerate(("low", "medium", "high"))
            for seed in range(3)]
    return rum.summarise(rows, by=["algorithm", "level"], of="tow")


def test_a_figure_is_kept_with_its_numbers_and_its_origin(summary, tmp_path):
    ax = plots.levels(summary, "level", "algorithm")
    study = SimpleNamespace(figures=tmp_path / "new", provenance=lambda: {"commit": "abc", "seeds": [0, 1, 2]})
    save(study, ax, "mine", table=summary)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["mine.csv", "mine.json", "mine.png"]
    kept = pd.read_csv(tmp_path / "new" / "mine.csv").set_index(["algorithm", "level"])
    pd.testing.assert_frame_equal(kept, summary, rtol=1e-5)
    assert json.loads((tmp_path / "new" / "mine.json").read_text()) == {
        "figure": "mine", "commit": "abc", "seeds": [0, 1, 2]}


def test_lines_go_through_the_means_and_bars_to_the_ends_of_the_intervals(summary):
    ax = plots.levels(summary, "level", "algorithm")
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["low", "medium", "high"]
    for bars, name in zip(ax.containers, ("Fine-tune", "my own"), strict=True):
        part = summary.loc[name]
        np.testing.assert_allclose(bars[0].get_ydata().astype(float), part["mean"])
        ends = np.array([segment[:, 1] for segment in bars[2][0].get_segments()])
        np.testing.assert_allclose(ends, part[["low", "high"]].to_numpy(float))


def test_a_single_run_is_drawn_without_an_interval():
    rows = [{"algorithm": "a", "level": level, "tow": 0.5} for level in ("low", "high")]
    ax = plots.levels(rum.summarise(rows, by=["algorithm", "level"], of="tow"), "level", "algorithm")
    assert all(np.ptp(segment[:, 1]) == 0 for segment in ax.containers[0][2][0].get_segments())


def test_a_forest_has_each_difference_in_the_colour_of_its_verdict():
    found = pd.DataFrame([{"claim": claim, "what": what, "mean": mean, "low": mean - 0.1, "high": mean + 0.1,
                           "verdict": said} for claim, what, mean, said in (
        ("C1", "a", 0.3, "holds"), ("C1", "b", 0.0, "inconclusive"), ("C2", "a", -0.3, "opposite"))])
    ax = plots.forest(found, "claim", "what", "verdict", headings={"C1": "C1: what it says"})
    assert [text.get_text() for text in ax.texts] == ["C1: what it says", "C2"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a", "b", "a"]
    drawn = {bars.get_label(): bars[0].get_color() for bars in ax.containers}
    assert drawn == {said: plots.VERDICTS[said][0] for said in ("holds", "inconclusive", "opposite")}
    ends = [segment[:, 0].tolist() for bars in ax.containers for segment in bars[2][0].get_segments()]
    np.testing.assert_allclose(ends, [[0.2, 0.4], [-0.1, 0.1], [-0.4, -0.2]])
    assert all(a < b for a, b in zip(ax.get_yticks(), ax.get_yticks()[1:], strict=False))


def test_points_against_cost_lie_at_their_cost_and_each_has_its_name():
    variants, examples = ["once", "once, 3x epochs", "shuffled", "RUM^F low to high"], [1000, 3000, 3050, 3050]
    table = pd.DataFrame([{"algorithm": name, "variant": variant, "examples": cost, "mean": 0.9, "low": 0.8, "high": 1}
                          for name in ("A", "B") for variant, cost in zip(variants, examples, strict=True)])
    for ax in plots.against_cost(table, "algorithm", "variant").axes[:2]:
        assert [bars[0].get_xdata().item() for bars in ax.containers] == [cost / 1000 for cost in examples]
        names = {text.get_text(): text.get_position()[1] for text in ax.texts}
        assert set(names) == {"once, 3x epochs", "shuffled", "low to high"}
        assert min(np.diff(sorted(names.values()))) > 0.01   # of one mean, and not on each other


def test_a_marker_is_filled_only_where_the_finding_is_sure():
    found = pd.DataFrame([{"panel": "p", "row": row, "mean": mean, "low": mean - 0.1, "high": mean + 0.1,
                           "verdict": verdict, "survives": row == "a"}
                          for row, mean, verdict in (("a", 0.3, "better"), ("b", 0.2, "better"),
                                                     ("c", 0.0, "inconclusive"))])
    ax = plots.differences(found, "panel", "row", sure="survives", margin=0.02).axes[0]
    filled = [bars[0].get_markerfacecolor() != "white" for bars in ax.containers]
    assert filled == [True, False, False]


def test_a_figure_says_in_words_what_it_shows():
    figure, (left, right) = plt.subplots(1, 2)
    left.set(xlabel="memorization", ylabel="ToW")
    left.set_title("ToW falls", loc="left")
    right.set_xlabel("cost")
    figure.suptitle("Two\n panels")
    assert described(figure) == "Two panels. ToW falls; ToW against memorization. cost"


def test_an_algorithm_looks_the_same_in_every_figure():
    assert len({plots.LOOKS[name] for name in ALGORITHMS}) == len(ALGORITHMS)
    frame = pd.DataFrame([{"algorithm": name, "level": level, "tow": 0.5} for name in ("SalUn", "SSD")
                          for level in ("low", "high")])
    for draw, more in ((plots.levels, ("level", "algorithm")), (plots.dots, ("level", "algorithm"))):
        for order in (frame, frame[::-1]):
            ax = draw(rum.summarise(order, ["algorithm", "level"], "tow"), *more)
            lines = [bars[0] for bars in ax.containers]
            drawn = {(line.get_color(), line.get_marker()) for line in lines}
            assert drawn == {plots.LOOKS["SalUn"], plots.LOOKS["SSD"]}


def test_the_scheme_of_rum_shows_each_step_below_its_part():
    figure = plots.scheme(("nothing", "scrub"), ("easy", "hard"), "loss")
    at = {text.get_text(): text.get_position() for text in figure.axes[0].texts if text.get_text()}
    assert {"forget\nset", "original\nmodel", "unlearned\nmodel", "oracle", "ToW", "refine by loss"} <= set(at)
    for part, step in (("easy", "step 1\nnothing"), ("hard", "step 2\nscrub")):
        assert at[part][0] == at[step][0] and at[part][1] > at[step][1]
    assert at["easy"][0] < at["hard"][0] < at["unlearned\nmodel"][0] == at["oracle"][0]
    assert "easy: nothing, hard: scrub" in described(figure)
    with pytest.raises(ValueError, match="got 3 steps and 2 parts"):
        plots.scheme(("a", "b", "c"), ("low", "high"))
