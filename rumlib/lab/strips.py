"""Figures that compare choices: what each row loses in every run, each line beside one reference, shares of verdicts.

    strips(rows, summary, "selector", "regret")              # every run as a faint point, the mean with its interval
    beside(summary, "request", "way", "always retrained")    # one panel for each line, the reference in grey behind it
    stacked(table, plots.VERDICTS)                           # one bar of shares for each line of a table of counts
"""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from rumlib import plots

PALE = "#BBBBBB"


def strips(rows: pd.DataFrame, summary: pd.DataFrame, row: str, value: str, *, ax: Axes, xlabel: str = "",
           title: str = "") -> Axes:
    """One line of points for each group: every value of `rows` faint, the mean of `summary` with its interval above.

    rows     tidy values, with the columns `row` and `value`
    summary  as from `rumlib.summarise` by `row`: its order is that of the figure, from top to bottom
    """
    for k, (name, line) in enumerate(summary.iterrows()):
        values = rows.loc[rows[row] == name, value].to_numpy()
        ax.scatter(values, k + 0.26 * np.cos(2.4 * np.arange(len(values))), s=9, color=PALE, linewidths=0, zorder=1)
        ax.errorbar(line["mean"], k, xerr=plots._bars(line.to_frame().T), color=plots.INK, marker="o", markersize=6,
                    elinewidth=2, capsize=3, zorder=3)
    ax.set(yticks=range(len(summary)), yticklabels=list(summary.index), xlabel=xlabel, title=title,
           ylim=(len(summary) - 0.5, -0.95))                     # room for the name of a reference
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", visible=True)
    return ax


def beside(summary: pd.DataFrame, x: str, line: str, reference: str, *, marked: Mapping[str, set] | None = None,
           xlabel: str = "", ylabel: str = "ToW", title: str = "") -> Figure:
    """One panel for each value of `line` but the `reference`, which is drawn in grey in all: means with 95 % intervals.

    summary  as from `rumlib.summarise` by `x` and `line`
    marked   line -> values of x whose points are drawn open
    """
    frame = summary.reset_index()
    names = [name for name in dict.fromkeys(frame[line]) if name != reference]
    figure, axes = plt.subplots(-(-len(names) // 2), 2, figsize=(5.4, 2.1 * -(-len(names) // 2) + 0.5), sharex=True,
                                sharey=True, squeeze=False)
    known = frame[frame[line] == reference]
    for k, (ax, name) in enumerate(zip(axes.flat, names, strict=False)):
        part, colour = frame[frame[line] == name], plots.colour(name, k)
        ax.fill_between(known[x], known["low"], known["high"], color="#E4E4E4", linewidth=0)
        ax.plot(known[x], known["mean"], color="#777777", linewidth=1.2, label=reference)
        ax.errorbar(part[x], part["mean"], yerr=plots._bars(part), color=colour, linewidth=1.4, capsize=2)
        for at, mean in zip(part[x], part["mean"], strict=True):
            is_open = at in (marked or {}).get(name, ())
            ax.plot(at, mean, marker="o", color=colour, markersize=5, markerfacecolor="white" if is_open else colour)
        ax.set_title(fill(name, 38), fontsize=9.5, color=plots.ink(colour))
        ax.set_xticks(sorted(set(frame[x])))
    for ax in axes.flat[len(names):]:
        ax.axis("off")
    axes[0, 0].annotate(reference, (0.98, 0.04), xycoords="axes fraction", ha="right", fontsize=8.5, color="#555555")
    figure.supxlabel(xlabel, fontsize=10)
    figure.supylabel(ylabel, fontsize=10)
    figure.suptitle(title, fontsize=10.5, x=0.02, ha="left")
    return figure


def stacked(table: pd.DataFrame, looks: Mapping[str, tuple[str, str]], *, title: str = "",
            xlabel: str = "share of the comparisons (numbers: how many)") -> Axes:
    """One bar for each line of a table of counts, as shares; the counts stand in it.

    table  its index are the labels; of its columns those that `looks` names are drawn, in that order
    looks  column -> (colour, marker), as `plots.VERDICTS`
    """
    labels = [fill(str(name), 50) for name in table.index]
    lines = np.array([label.count("\n") + 1 for label in labels])
    at = np.cumsum(0.55 + 0.45 * lines) - (0.55 + 0.45 * lines) / 2
    ax = plt.subplots(figsize=(6.2, 1.0 + 0.25 * float(at[-1] + 0.5)))[1]
    looks = {name: look for name, look in looks.items() if name in table}
    left, of = np.zeros(len(table)), table[list(looks)].sum(axis=1).to_numpy()
    for name, (colour, _) in looks.items():
        share = table[name].to_numpy() / of
        ax.barh(at, share, left=left, height=0.72, color=colour)
        for y, start, width, count in zip(at, left, share, table[name], strict=True):
            if count:
                ax.text(start + width / 2, y, str(count), ha="center", va="center", fontsize=7.5,
                        color="black" if colour in ("#999999", "#DDDDDD") else "white")
        left = left + share
    ax.set(yticks=at, xlim=(0, 1), ylim=(at[-1] + 0.8, -0.1), xlabel=xlabel, xticks=[0, 0.5, 1])
    ax.set_xticklabels(["0 %", "50 %", "100 %"])
    ax.set_yticklabels(labels, fontsize=7.5)
    ax.grid(visible=False)
    ax.figure.legend(handles=[Patch(color=colour, label=name) for name, (colour, _) in looks.items()],
                     loc="outside lower center", ncols=len(looks), fontsize=8.5)
    ax.figure.suptitle(title, fontsize=10.5, x=0.02, ha="left")
    return ax
