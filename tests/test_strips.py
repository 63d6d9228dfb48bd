"""What is drawn where: runs and means, lines beside a reference, shares of counts."""

import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.collections import PathCollection

import rumlib as rum
from rumlib import plots
from rumlib.lab import strips


def test_every_run_and_the_mean_with_its_interval_are_drawn():
    rows = pd.DataFrame([{"way": way, "seed": seed, "loss": base + seed / 10} for way, base in (("b", 1), ("a", 2))
                         for seed in range(3)])
    ax = strips.strips(rows, rum.summarise(rows, "way", "loss"), "way", "loss", ax=plt.subplots()[1])
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["b", "a"]
    runs = [points.get_offsets() for points in ax.collections if isinstance(points, PathCollection)]
    np.testing.assert_allclose([part[:, 0] for part in runs], [[1, 1.1, 1.2], [2, 2.1, 2.2]])
    assert all(abs(part[:, 1] - k).max() < 0.4 for k, part in enumerate(runs))       # each in its own row
    np.testing.assert_allclose([bars[0].get_xdata()[0] for bars in ax.containers], [1.1, 2.1])


def test_each_line_has_a_panel_with_the_reference_behind_it():
    rows = [{"request": k, "way": way, "tow": 0.5 + k / 10 + seed / 100} for way in ("once", "always", "never")
            for k in (1, 2) for seed in range(3)]
    figure = strips.beside(rum.summarise(rows, ["request", "way"], "tow"), "request", "way", "always",
                           marked={"never": {2}})
    assert [ax.get_title(loc="left") or ax.get_title() for ax in figure.axes] == ["once", "never"]
    for ax in figure.axes:
        np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), [0.61, 0.71])                    # of the reference
    is_open = [[line.get_markerfacecolor() == "white" for line in ax.get_lines() if line.get_marker() == "o"]
               for ax in figure.axes]
    assert is_open == [[False, False], [False, True]]


def test_bars_are_shares_with_the_counts_in_them():
    table = pd.DataFrame({"holds": [3, 0], "opposite": [1, 0], "equivalent": [0, 0], "inconclusive": [0, 2]},
                         index=["C1: a claim", "C2: " + "a long claim " * 8])
    ax = strips.stacked(table, plots.VERDICTS)
    widths = np.array([[bar.get_width() for bar in bars] for bars in ax.containers])
    np.testing.assert_allclose(widths.T, [[0.75, 0.25, 0, 0], [0, 0, 0, 1]])
    assert [text.get_text() for text in ax.texts] == ["3", "1", "2"]                # no word where there is nothing
    labels = [tick.get_text() for tick in ax.get_yticklabels()]
    assert labels[0] == "C1: a claim" and "\n" in labels[1] and ax.yaxis_inverted()
