"""Figures in one style, from tidy data frames and plain values. Functions return Axes, or a Figure of several panels.

    style()                                                  # once per notebook
    levels(summary, "level", "algorithm")                    # means with intervals, one line per algorithm
    dots(summary, "algorithm", "variant")                    # the same for unordered groups, as points in rows
    ranked(summary, "algorithm", each=rows)                  # one algorithm per row, in its own colour
    forest(found, "claim", "what", "verdict")                # differences, coloured by their verdict
    grid(table, label="share")                               # a table of shares as shades, with their numbers
    against_cost(table, "algorithm", "variant")              # one panel per algorithm
    averaged(each, together)                                 # members of a group as small markers, and their mean
    differences(found, "comparison", "algorithm", sure="survives", margin=0.02)     # a grid of small panels
    histogram(values, {"low": values_low, ...})
    gallery({"low": [(image, caption), ...]})
    scheme()                                                 # RUM as a drawing

The colours are the eight of Okabe and Ito, which colour-blind readers can distinguish. Lines have a label at their end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#333333"
BLUE, ORANGE, GREEN, RED, PINK, SKY, GREY, BLACK = SPARE = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#999999", "#000000")
DARKER = {ORANGE: "#946600", GREEN: "#007A59", RED: "#B85100", PINK: "#A3487B", SKY: "#1F78AD", GREY: "#6B6B6B",
          "#BBBBBB": "#6B6B6B"}                              # for text on white: a contrast of 4.5 at least
MARKERS = "osD^vP*X"
LOOKS = {                                                    # one colour and one marker for each, in all figures
    "Fine-tune": (BLUE, "o"), "L1-sparse": (SKY, "s"), "NegGrad": (GREY, "D"), "NegGrad+": (ORANGE, "^"),
    "SCRUB": (GREEN, "v"), "Random label": (RED, "P"), "SalUn": (PINK, "*"), "Influence": (BLACK, "X"),
    "Original": ("#BBBBBB", "o"), "Nothing": ("#BBBBBB", "o"), "Retrained": (BLACK, "o"),
    "SSD": (BLUE, "D"), "Fisher": (SKY, "^"), "Bad teacher": (ORANGE, "v"), "UNSIR": (GREEN, "P"),
    "Boundary shrink": (RED, "X"), "Boundary expand": (PINK, "o"), "CF-1": (GREY, "s"), "EU-1": (BLACK, "^"),
    "Projection": (BLACK, "s"), "Top-K": (GREEN, "s"), "Random-k": (SKY, "D"), "Global noise": (ORANGE, "o"),
    "low": (SKY, "o"), "medium": (ORANGE, "s"), "high": (RED, "D"), "retain": (BLACK, "^"), "test": (GREY, "v"),
    "once": ("#BBBBBB", "o"), "once, 3x epochs": ("#555555", "s"), "shuffled": (SKY, "D"),
    "RUM^F low to high": (BLUE, "^"), "RUM^F high to low": (ORANGE, "v"), "mixed RUM": (GREEN, "P"),
    "low to high": (BLUE, "^"), "high to low": (ORANGE, "v")}


def style() -> None:
    """Set the style of all figures, for print 8 cm wide."""
    plt.rcParams.update({
        "figure.dpi": 110, "savefig.dpi": 160, "savefig.bbox": "tight", "font.size": 10, "axes.titlesize": 10.5,
        "axes.labelsize": 10, "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False,
        "axes.edgecolor": INK, "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK,
        "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True,
        "patch.edgecolor": "white", "patch.linewidth": 0.5,
        "patch.force_edgecolor": True, "grid.color": "#EBEBEB", "legend.frameon": False,
        "figure.constrained_layout.use": True})


def colour(name: str, k: int = 0) -> str:
    """That of a name in `LOOKS`; the k-th spare one for others."""
    return LOOKS.get(name, (SPARE[k % len(SPARE)],))[0]


def marker(name: str, k: int = 0) -> str:
    return LOOKS[name][1] if name in LOOKS else MARKERS[k % len(MARKERS)]


def ink(colour: str) -> str:
    """A colour for text: dark enough to be read on white."""
    return DARKER.get(colour, colour)


def pretty(name: str) -> str:
    return name.replace("RUM^F", r"RUM$^\mathcal{F}$")


def levels(summary: pd.DataFrame, x: str, line: str, *, ax: Axes | None = None, ylabel: str = "ToW",
           title: str = "") -> Axes:
    """Means with 95 % intervals over ordered groups `x`, one labelled line per value of `line`.

    summary  as from `rumlib.summarise`: columns mean, low, high, n; index levels named by `x` and `line`
    """
    ax = ax or plt.subplots(figsize=(5.2, 3.6))[1]
    frame = summary.reset_index()
    places = list(dict.fromkeys(frame[x]))
    names = list(dict.fromkeys(frame[line]))
    ends = {}
    for k, name in enumerate(names):
        part = frame[frame[line] == name].set_index(x).loc[places]
        at = np.arange(len(places)) + 0.035 * (k - (len(names) - 1) / 2)
        ax.errorbar(at, part["mean"], yerr=_bars(part), color=colour(name, k), marker=marker(name, k), markersize=5,
                    linewidth=1.4, elinewidth=1.2, capsize=2)
        ends[name] = (part["mean"].iloc[-1], colour(name, k))
    ax.set(xticks=range(len(places)), xticklabels=places, ylabel=ylabel, title=title, xlim=(-0.2, len(places) - 0.8))
    label_ends(ax, ends)
    return ax


def dots(summary: pd.DataFrame, row: str, hue: str, *, ax: Axes | None = None, xlabel: str = "ToW", title: str = "",
         legend: bool = True) -> Axes:
    """Means with 95 % intervals as points: one row per value of `row`, a colour and a marker per value of `hue`."""
    frame = summary.reset_index()
    places, names = list(dict.fromkeys(frame[row])), list(dict.fromkeys(frame[hue]))
    ax = ax or plt.subplots(figsize=(5.6, 0.5 + 0.5 * len(places)))[1]
    for k, name in enumerate(names):
        part = frame[frame[hue] == name]
        at = [places.index(value) + 0.7 * ((k + 0.5) / len(names) - 0.5) for value in part[row]]
        ax.errorbar(part["mean"], at, xerr=_bars(part), linestyle="none", color=colour(name, k), marker=marker(name, k),
                    markersize=5, elinewidth=1.2, capsize=2, label=pretty(name))
    for edge in np.arange(len(places) - 1) + 0.5:
        ax.axhline(edge, color="#EBEBEB", linewidth=0.8)
    ax.set(yticks=range(len(places)), yticklabels=places, xlabel=xlabel, title=title, ylim=(len(places) - 0.5, -0.5))
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", visible=True)
    if legend:
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1), handletextpad=0.3)
    return ax


def ranked(summary: pd.DataFrame, row: str, *, ax: Axes | None = None, each: pd.DataFrame | None = None,
           of: str = "tow", xlabel: str = "ToW", title: str = "") -> Axes:
    """Means with 95 % intervals, one row per value of `row`, each in the colour and with the marker of its name.

    summary  as from `rumlib.summarise`;  each: rows whose columns `row` and `of` are drawn as small points behind
    """
    frame = summary.reset_index()
    ax = ax or plt.subplots(figsize=(5.4, 0.6 + 0.32 * len(frame)))[1]
    for k, name in enumerate(frame[row]):
        if each is not None:
            values = each.loc[each[row] == name, of]
            ax.scatter(values, [k] * len(values), s=9, color=colour(name, k), alpha=0.35, linewidths=0)
        part = frame.iloc[[k]]
        ax.errorbar(part["mean"], [k], xerr=_bars(part), color=colour(name, k), marker=marker(name, k), markersize=6,
                    elinewidth=1.4, capsize=3)
    ax.set(yticks=range(len(frame)), yticklabels=frame[row], xlabel=xlabel, title=title, ylim=(len(frame) - 0.5, -0.7))
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", visible=True)
    return ax


def grid(table: pd.DataFrame, *, ax: Axes | None = None, label: str = "", title: str = "", xlabel: str = "",
         ylabel: str = "", percent: bool = False) -> Axes:
    """A table of values in [0, 1] as shades on one scale, with its numbers in the cells and a colour bar with `label`.

    percent  write the values as whole per cents, and none below 0.5 %; else with two decimals
    """
    ax = ax or plt.subplots(figsize=(1.6 + 0.5 * table.shape[1], 1.1 + 0.36 * table.shape[0]))[1]
    shades = ax.imshow(table, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for r, row in enumerate(table.to_numpy()):
        for c, value in enumerate(row):
            if not percent or value >= 0.005:
                ax.text(c, r, f"{100 * value:.0f}" if percent else f"{value:.2f}", ha="center", va="center", fontsize=8,
                        color="white" if value > 0.6 else INK)
    ax.set(xticks=range(table.shape[1]), xticklabels=table.columns, yticks=range(table.shape[0]),
           yticklabels=table.index, xlabel=xlabel, ylabel=ylabel, title=title)
    if max(len(str(name)) for name in table.columns) > 5:
        ax.tick_params(axis="x", rotation=45)
    ax.grid(visible=False)
    ax.figure.colorbar(shades, ax=ax, label=label)
    return ax


VERDICTS = {"holds": ("#0072B2", "o"), "opposite": ("#D55E00", "X"), "equivalent": ("#009E73", "s"),
            "inconclusive": ("#999999", "D"), "not testable": ("#DDDDDD", "o")}


def forest(found: pd.DataFrame, group: str, row: str, verdict: str, *, xlabel: str = "difference (right: as claimed)",
           title: str = "", headings: Mapping[str, str] | None = None) -> Axes:
    """Differences with their intervals, one below the other and grouped; the colour and the marker are the verdict's.

    found     columns mean, low and high, and those that `group`, `row` and `verdict` name
    headings  group -> what stands above it, if not its name; up to about 25 lines can be read in print
    """
    texts = {name: fill((headings or {}).get(name, name), 84) for name in dict.fromkeys(found[group])}
    room = sum(1.5 + text.count("\n") for text in texts.values())
    ax = plt.subplots(figsize=(6.2, 1.1 + 0.19 * (len(found) + room)))[1]
    at, ticks, labels = 0.0, [], []
    for name, text in texts.items():
        at += 0.5 * text.count("\n")
        ax.annotate(text, (0.01, at), xycoords=("figure fraction", "data"), fontsize=8, weight="bold", va="center",
                    annotation_clip=False, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
        ax.axhline(at - 0.75 - 0.5 * text.count("\n"), color="#EBEBEB", linewidth=0.8)
        at += 0.5 * text.count("\n")
        for line in found[found[group] == name].to_dict("records"):
            at += 1
            colour, marker = VERDICTS[line[verdict]]
            ax.errorbar(line["mean"], at, xerr=_bars(pd.DataFrame([line])), color=colour, marker=marker, markersize=4,
                        elinewidth=1.2, label=line[verdict])
            ticks, labels = [*ticks, at], [*labels, line[row]]
        at += 1.5
    ax.axvline(0, color=INK, linewidth=0.8)
    ax.set(yticks=ticks, ylim=(at - 0.6, -0.9), xlabel=xlabel)
    ax.set_yticklabels(labels, fontsize=8)
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", visible=True)
    known = dict(zip(*ax.get_legend_handles_labels()[::-1], strict=True))
    ax.figure.legend(known.values(), known, loc="outside lower center", ncols=len(known), handletextpad=0.3, fontsize=9)
    ax.figure.suptitle(title, fontsize=10.5, x=0.01, ha="left")
    return ax


def against_cost(table: pd.DataFrame, panel: str, variant: str, *, ylabel: str = "ToW", title: str = "") -> Figure:
    """Means with 95 % intervals against the column `examples`, the cost: one panel per value of `panel`.

    A line joins the first two values of `variant`, the plain algorithm at two costs. A point above the line is better
    than the plain algorithm at the same cost. Points of like cost lie on each other: each has its name beside it.
    """
    frame = table.reset_index()
    panels, variants = list(dict.fromkeys(frame[panel])), list(dict.fromkeys(frame[variant]))
    figure, axes = plt.subplots(-(-len(panels) // 3), 3, figsize=(6.6, 0.9 + 2.1 * -(-len(panels) // 3)), sharey=True,
                                sharex=True, squeeze=False)
    for ax, name in zip(axes.flat, panels, strict=False):
        mine = frame[frame[panel] == name].set_index(variant)
        line = mine.loc[variants[:2]]
        ax.plot(line["examples"] / 1000, line["mean"], color="#BBBBBB", linewidth=1.2, zorder=1)
        for k, way in enumerate(variants):
            part = mine.loc[[way]]
            ax.errorbar(part["examples"] / 1000, part["mean"], yerr=_bars(part), linestyle="none", elinewidth=0.9,
                        color=colour(way, k), marker=marker(way, k), markersize=5, markerfacecolor="none",
                        markeredgewidth=1.3, label=pretty(way))
        ax.set_title(name, fontsize=9.5)
    for ax, name in zip(axes.flat, panels, strict=False):    # when all panels have their range
        _name_points(ax, frame[(frame[panel] == name) & (frame[variant] != variants[0])], variant)
    for ax in axes.flat[len(panels):]:
        ax.axis("off")
    axes.flat[min(len(panels) - 1, axes.size - 2)].set_xlabel("thousand examples passed forward and backward")
    figure.supylabel(ylabel, fontsize=10)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, handletextpad=0.3,
                  fontsize=9)
    figure.suptitle(title, fontsize=10.5, x=0.02, ha="left")
    return figure


def averaged(each: pd.DataFrame, together: pd.DataFrame, *, ax: Axes | None = None, xlabel: str = "ToW",
             title: str = "", named: Mapping[str, str] | None = None) -> Axes:
    """One row for each group: a small marker for each of its members, and their mean with its 95 % interval in black.

    each      means of the members: index (row, member), column mean; a member has the look of its name
    together  mean, low and high of each row, in the order in which the rows are drawn
    named     row -> the words that stand beside it, if others
    """
    places, members = list(together.index), list(dict.fromkeys(each.index.get_level_values(1)))
    ax = ax or plt.subplots(figsize=(5.2, 0.9 + 0.42 * len(places)))[1]
    for k, name in enumerate(members):
        part = each.xs(name, level=1)["mean"]
        ax.plot(part, [places.index(row) + 0.2 for row in part.index], linestyle="none", color=colour(name, k),
                marker=marker(name, k), markersize=4.5, alpha=0.9, label=name)
    ax.errorbar(together["mean"], [k - 0.17 for k in range(len(places))], xerr=_bars(together), linestyle="none",
                color="black", marker="|", markersize=11, markeredgewidth=2.2, elinewidth=2.2, label="their mean, 95 %")
    for edge in np.arange(len(places) - 1) + 0.5:
        ax.axhline(edge, color="#EBEBEB", linewidth=0.8)
    ax.set(yticks=range(len(places)), yticklabels=[(named or {}).get(row, pretty(row)) for row in places],
           xlabel=xlabel, title=title, ylim=(len(places) - 0.5, -0.5))
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", visible=True)
    return ax


def yardsticks(ax: Axes, nothing: float | None, again: float | None) -> None:
    """Reference lines at the ToW of doing nothing and of retraining with another seed, where they are known. One that
    lies left of all that is drawn is named at the edge, with an arrow: the axis keeps its range."""
    low, high = ax.get_xlim()
    if again is not None:
        reference(ax, again, "")
        ax.annotate("retrained,\nother seed", (again, 0), xycoords=("data", "axes fraction"), xytext=(3, 4),
                    textcoords="offset points", fontsize=8, color=INK, annotation_clip=False)
        ax.set_xlim(low, max(high, again + 0.02 * (high - low)))
    if nothing is not None and nothing < low:
        ax.annotate(f"\u2190 doing nothing: {nothing:.2f}", (0, 0), xycoords="axes fraction", xytext=(3, 4),
                    textcoords="offset points", fontsize=8, color=INK)
    elif nothing is not None:
        reference(ax, nothing, "doing nothing")


SAYS = {"better": VERDICTS["holds"], "worse": VERDICTS["opposite"], "equivalent": VERDICTS["equivalent"],
        "inconclusive": VERDICTS["inconclusive"]}


def differences(found: pd.DataFrame, panel: str, row: str, *, sure: str, margin: float, columns: int = 3,
                title: str = "", xlabel: str = "difference of ToW (right: the first is better)") -> Figure:
    """Differences with 95 % intervals in a grid of small panels that share rows and axis; the band is +- the margin.

    found  columns mean, low, high, verdict (better, worse, equivalent, inconclusive), and those that `panel` and `row`
           name; a marker is filled where the column `sure` is True: decided after a correction for many comparisons
    """
    panels, places = list(dict.fromkeys(found[panel])), list(dict.fromkeys(found[row]))
    down = -(-len(panels) // columns)
    figure, axes = plt.subplots(down, columns, figsize=(1.3 + 1.75 * columns, 1.2 + (0.35 + 0.21 * len(places)) * down),
                                sharex=True, sharey=True, squeeze=False)
    for ax, name in zip(axes.flat, panels, strict=False):
        ax.axvspan(-margin, margin, color="#F0F0F0", zorder=0)
        ax.axvline(0, color=INK, linewidth=0.8, zorder=1)
        for line in found[found[panel] == name].to_dict("records"):
            of, shape = SAYS[line["verdict"]]
            ax.errorbar(line["mean"], places.index(line[row]), xerr=_bars(pd.DataFrame([line])), color=of, marker=shape,
                        markersize=5.5, elinewidth=1.4, capsize=2, markerfacecolor=of if line[sure] else "white")
        ax.set_title(name, fontsize=9.5)
        ax.set(yticks=range(len(places)), yticklabels=places, ylim=(len(places) - 0.5, -0.5))
        ax.grid(axis="y", visible=False)
    for ax in axes.flat[len(panels):]:
        ax.axis("off")
    keys = [plt.Line2D([], [], color=of, marker=shape, markerfacecolor="white", linestyle="none", label=name)
            for name, (of, shape) in SAYS.items() if name in set(found["verdict"])]
    keys += [plt.Line2D([], [], color=INK, marker="o", linestyle="none", label="filled: survives Holm")]
    figure.legend(handles=keys, loc="outside lower center", ncols=3, handletextpad=0.2, columnspacing=1.2, fontsize=9)
    axes.flat[min(len(panels) - 1, axes.size - 1 - columns // 2)].set_xlabel(xlabel)
    figure.suptitle(title, fontsize=10.5, x=0.02, ha="left")
    return figure


def histogram(values: Sequence[float], picked: Mapping[str, Sequence[float]], *, ax: Axes | None = None,
              xlabel: str = "memorization") -> Axes:
    """Distribution of a score over all examples. Labelled bars above it show the range of each picked set."""
    ax = ax or plt.subplots(figsize=(5.2, 3.2))[1]
    values, picked = np.asarray(values), {name: np.asarray(part) for name, part in picked.items()}
    edges = np.linspace(min(0, values.min()), max(1, values.max()), 41)
    ax.hist(values, bins=edges, color="#BBBBBB")
    ax.set(yscale="log", xlabel=xlabel, ylabel="examples (log scale)")
    for k, (name, part) in enumerate(picked.items()):
        at = 1.04 + 0.07 * k
        middle, half = (part.min() + part.max()) / 2, max((part.max() - part.min()) / 2, 0.008)
        ax.plot([middle - half, middle + half], [at, at], color=colour(name, k), linewidth=4, solid_capstyle="round",
                transform=ax.get_xaxis_transform(), clip_on=False)
        edge = part.min() > 0.7
        ax.annotate(f"{name}: {part.min():.2f} to {part.max():.2f}", (part.min() if edge else part.max(), at),
                    xycoords=ax.get_xaxis_transform(), xytext=(-7 if edge else 7, 0), textcoords="offset points",
                    ha="right" if edge else "left", va="center", fontsize=8.5, color=ink(colour(name, k)),
                    annotation_clip=False)
    return ax


def gallery(groups: Mapping[str, Sequence[tuple]], *, title: str = "") -> Figure:
    """One row of (image, caption) pairs per group; images (c, h, w) in [0, 1] or uint8."""
    wide, across, down = max(len(row) for row in groups.values()), 1.18, 1.62            # in widths of an image
    figure, ax = plt.subplots(figsize=(0.75 * across * wide + 0.9, 0.75 * down * len(groups) + 0.3))
    for r, (name, images) in enumerate(groups.items()):      # one Axes for all: so many would take seconds to lay out
        ax.text(-0.2, -down * r - 0.5, name, ha="right", va="center", fontsize=10, color=ink(colour(name)))
        for c, (image, caption) in enumerate(images):
            picture = np.moveaxis(np.asarray(image.cpu() if hasattr(image, "cpu") else image), 0, -1)
            ax.imshow(picture if picture.shape[-1] == 3 else picture[..., 0], cmap="gray_r", interpolation="nearest",
                      extent=(across * c, across * c + 1, -down * r - 1, -down * r))
            ax.text(across * c + 0.5, -down * r + 0.05, caption, ha="center", va="bottom", fontsize=8)
    ax.set(xlim=(0, across * wide), ylim=(-down * len(groups) + 0.5, 0.5))
    ax.axis("off")
    figure.suptitle(title, fontsize=10.5, x=0.02, ha="left")
    return figure


def scatter(x: Sequence[float], y: Sequence[float], *, ax: Axes | None = None, xlabel: str = "", ylabel: str = "",
            title: str = "") -> Axes:
    """Points; more than 100 of them are drawn small and transparent."""
    ax = ax or plt.subplots(figsize=(4, 3.4))[1]
    size, alpha = (7, 0.3) if len(x) > 100 else (22, 0.8)
    ax.scatter(x, y, s=size, color=SPARE[0], alpha=alpha, linewidths=0, rasterized=True)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    return ax


def reference(ax: Axes, at: float, label: str, *, across: bool = False) -> None:
    """A dashed line with its name at a value of the x axis, or of the y axis: doing nothing, retraining with another
    seed. `across`: the line is horizontal."""
    line, place, where = ((ax.axhline, (0.01, at), ("axes fraction", "data")) if across else
                          (ax.axvline, (at, 0.99), ("data", "axes fraction")))
    line(at, color=INK, linewidth=0.8, linestyle="--", zorder=0.9)
    ax.annotate(label, place, xycoords=where, xytext=(2, 2) if across else (3, -1), textcoords="offset points",
                fontsize=8, color=INK, va="bottom" if across else "top", annotation_clip=False)


def scheme(steps: Sequence[str] = ("nothing", "fine-tune", "SalUn"),
           parts: Sequence[str] = ("low", "medium", "high"), score: str = "memorization") -> Figure:
    """RUM as a drawing: the forget set is refined into parts, each part has a step, and the result is compared with the
    oracle by ToW. Steps and parts are in the order in which they run. Raises ValueError for unequal numbers of them.

    Source: after the figure of arXiv 2406.01257, section 5.
    """
    if len(steps) != len(parts):
        raise ValueError(f"a RUM has one step for each part; got {len(steps)} steps and {len(parts)} parts")
    across, last = 1.5, 1.5 * (len(parts) + 1)
    figure, ax = plt.subplots(figsize=(1.12 * (len(parts) + 2), 3.5))

    def box(x: float, y: float, text: str, edge: str = INK, face: str = "white") -> None:
        ax.text(x, y, text, ha="center", va="center", fontsize=10, color=ink(edge), linespacing=1.25,
                bbox={"boxstyle": "round,pad=0.45", "facecolor": face, "edgecolor": edge, "linewidth": 1.3})

    def arrow(start: tuple[float, float], end: tuple[float, float], text: str = "", style: str = "->",
              at: tuple[float, float] = (0, 0.1), **how) -> None:
        ax.annotate("", end, start, arrowprops={"arrowstyle": style, "color": INK, "linewidth": 1.2, **how})
        ax.text((start[0] + end[0]) / 2 + at[0], (start[1] + end[1]) / 2 + at[1], text, ha="center", va="bottom",
                fontsize=9, color=INK)

    box(0, 2, "forget\nset")
    box(0, 1, "original\nmodel", face="#EEEEEE")
    for k, (part, step) in enumerate(zip(parts, steps, strict=True)):
        x = across * (k + 1)
        box(x, 2, part, colour(part, k))
        box(x, 1, f"step {k + 1}\n{step}", colour(part, k))
        arrow((x, 1.84), (x, 1.24))
        arrow((x - across + 0.54, 1), (x - 0.54, 1))
    arrow((0.4, 2), (across - 0.42, 2))
    ax.text((across + last) / 2 - across / 2, 2.42, f"refine by {score}", ha="center", fontsize=9.5, color=INK)
    ax.plot([across - 0.5] * 2 + [last - across + 0.5] * 2, [2.26, 2.34, 2.34, 2.26], color=INK, linewidth=1)
    box(last, 1, "unlearned\nmodel", face="#EEEEEE")
    arrow((last - across + 0.52, 1), (last - 0.62, 1))
    box(0, 0, "retain\nset")
    box(last, 0, "oracle", face="#EEEEEE")
    arrow((0.4, 0), (last - 0.5, 0), "train a new model without the forget set", at=(0, 0.05))
    arrow((last, 0.2), (last, 0.76), "ToW", "<->", at=(0.3, -0.08))
    words = ", ".join(f"{part}: {step}" for part, step in zip(parts, steps, strict=True))
    ax.set(title="RUM: refine the forget set, then unlearn it part by part",
           xlabel=f"{words}; the result is compared with the oracle by ToW",                # for the alternative text
           xlim=(-0.6, last + 0.75), ylim=(-0.35, 2.6))
    ax.axis("off")
    return figure


def label_ends(ax: Axes, ends: Mapping[str, tuple[float, str]], gap: float = 0.055) -> None:
    """Write names beside the right ends of lines, at least `gap` of the height of the axes apart."""
    for (name, (_, of)), y in zip(ends.items(), _apart(ax, [y for y, _ in ends.values()], gap), strict=True):
        ax.annotate(name, (1, y), xycoords=("axes fraction", "data"), xytext=(3, 0), textcoords="offset points",
                    va="center", fontsize=9, color=ink(of), annotation_clip=False)


def _name_points(ax: Axes, points: pd.DataFrame, variant: str) -> None:
    """Write the name of each point of `against_cost` beside it, where there is more room, with a line to the point."""
    (left, right), at = ax.get_xlim(), points["examples"] / 1000
    side, away = ("right", -0.1) if at.mean() > left + 0.6 * (right - left) else ("left", 0.1)
    beside = (at.min() if away < 0 else at.max()) + away * (right - left)
    heights = np.array(_apart(ax, points["mean"], 0.085))
    heights += points["mean"].mean() - heights.mean()        # as many are above their points as below
    for name, x, mean, y in zip(points[variant], at, points["mean"], heights, strict=True):
        ax.annotate(name.removeprefix("RUM^F "), (x, mean), (beside, y), va="center", ha=side, fontsize=7.5,
                    color=ink(colour(name)), arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.7})


def _apart(ax: Axes, values: Sequence[float], gap: float) -> list[float]:
    """Heights for texts beside these values: as near as they can be, at least `gap` of the height of the axes apart."""
    (low, high), order, heights = ax.get_ylim(), np.argsort(values, kind="stable"), []
    gap, ascending = gap * (high - low), np.asarray(values)[order].tolist()
    for value in ascending:
        heights.append(max(value, heights[-1] + gap) if heights else value)
    excess = heights[-1] - max(high, ascending[-1]) if heights else 0
    if excess > 0:                                           # too many at the top: slide the pile down
        heights = [min(h, heights[-1] - excess - gap * (len(heights) - 1 - k)) for k, h in enumerate(heights)]
    return [height for _, height in sorted(zip(order, heights, strict=True))]


def _bars(part: pd.DataFrame) -> np.ndarray:
    return np.nan_to_num(np.stack([part["mean"] - part["low"], part["high"] - part["mean"]]).astype(float))
