"""What the notebooks on memorization and on entanglement share: forget sets in numbers, settings, figures of a factor.

    described(study, study.levels())                         # size, ES, MMD and memorization of each forget set
    edges(record, names)                                     # which chosen values lie at an end of their grid
    settings(record, names), search_errors(study, record, "memorization")       # what the search chose and missed
    again = other_seed(study, sets)                          # oracles compared with oracles of another seed
    falls(rows, "C2", "low", "high", names)                  # paired differences of ToW between two levels
    factor(rows, {"low": 0.0, "high": 1.0}, names, "C2")     # ToW on a real axis, and those differences beside it

Rows have the columns level, algorithm, seed, tow and tow_mia, as `rumlib.lab.protocol.on_levels` gives them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rumlib import plots
from rumlib.lab import claims, measures, protocol, tuning
from rumlib.lab.computations import ForgetSet
from rumlib.lab.standing import retrained_again
from rumlib.lab.study import Study
from rumlib.stats import summarise

AGAIN = "Retrained, other seed"
AGAIN_INK = "#777777"                                        # black is taken: by Influence, and by Retrained in panels
DASHED = {"Original": "doing nothing", AGAIN: "retrained, other seed"}       # references, and what figures call them


# -- Forget sets ------------------------------------------------------------------------------------------------------


def described(study: Study, sets: Mapping[str, ForgetSet]) -> pd.DataFrame:
    """Size, mean distance from the centroid, ES, MMD (the root, two widths of the kernel), mean and standard deviation
    of memorization, and hash of forget sets, one line each."""
    rows, distance = {}, study.distance()
    for name, forget in sets.items():
        mask = torch.isin(study.train.index, forget.index)
        found, gone = study.entanglement(forget), pd.Series(study.score.values[mask].tolist())
        rows[name] = {"n": len(forget), "distance": distance[mask].mean().item(), "ES": found["entanglement"],
                      "MMD": found["mmd"], "MMD, median width": found["mmd_median"], "memorization": gone.mean(),
                      "its sd": gone.std(), "hash": forget.digest}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("forget set")


def histograms(study: Study, sets: Mapping[str, ForgetSet], title: str = "") -> Figure:
    """The distribution of memorization in each forget set, a panel each. A line marks the mean."""
    figure, axes = plt.subplots(1, len(sets), figsize=(2.8 * len(sets), 2.6), sharey=True, squeeze=False)
    for ax, (name, forget) in zip(axes[0], sets.items(), strict=True):
        values = study.score.values[torch.isin(study.train.index, forget.index)]
        ax.hist(values, bins=24, range=(-0.1, 1.1), color=plots.colour(name.split()[-1]))
        ax.axvline(values.mean().item(), color=plots.INK, linewidth=1.2, linestyle="--")
        ax.set_title(f"{name}: ES {forget.facts['entanglement']:.0f}, mean {values.mean():.2f}", fontsize=9.5)
        ax.set_xlabel("memorization")
    axes[0, 0].set_ylabel("examples")
    return titled(figure, title)


# -- Settings ---------------------------------------------------------------------------------------------------------


def settings(record: pd.DataFrame, names: Sequence[str] = ()) -> pd.DataFrame:
    """The chosen settings of a search as text: one line for each algorithm (`names` first), one column for each level.
    Doing nothing has no setting, and no line.

    record  as from `Table.run`: its names are tuples of level, algorithm and epochs
    """
    chosen = labelled(record[record["chosen"]])
    chosen["setting"] = [", ".join(f"{k} {v:g}" for k, v in setting.items()) for setting in chosen["setting"]]
    levels = list(dict.fromkeys(chosen["level"]))
    table = chosen[chosen["algorithm"] != "Original"].pivot(index="algorithm", columns="level", values="setting")
    order = [name for name in dict.fromkeys([*names, *chosen["algorithm"]]) if name in table.index]
    return table.loc[order, levels].fillna("").rename_axis(columns=None)


def edges(record: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Where the chosen settings of a search lie at an end of what was tried: one line for each algorithm, level and
    field of which several values were tried, with the chosen value and its end ("smallest", "largest" or "").

    record  as for `settings`
    """
    lines, tried = [], labelled(record)
    for (name, level), mine in tried[tried["algorithm"].isin(names)].groupby(["algorithm", "level"], sort=False):
        values, (best,) = pd.DataFrame(mine["setting"].tolist()), mine.loc[mine["chosen"], "setting"]
        for field in values.columns[values.nunique() > 1]:
            end = {values[field].min(): "smallest", values[field].max(): "largest"}.get(best[field], "")
            lines.append({"algorithm": name, "level": level, "field": field, "chosen": best[field], "end": end})
    return pd.DataFrame(lines, columns=["algorithm", "level", "field", "chosen", "end"])


def labelled(record: pd.DataFrame) -> pd.DataFrame:
    """A record with its names taken apart into the columns level, algorithm and epochs."""
    names = pd.DataFrame(record["name"].tolist(), index=record.index, columns=list(protocol.COLUMNS))
    return pd.concat([names, record.drop(columns="name")], axis=1)


def search_errors(study: Study, record: pd.DataFrame, name: str) -> pd.DataFrame:
    """Chosen settings that are worse than doing nothing on the tuning seeds (`tuning.below_nothing`), the worst first.
    Also written to figures/<profile>/tuning_errors_<name>.csv."""
    errors = tuning.below_nothing(record).sort_values("difference", ignore_index=True)
    study.figures.mkdir(parents=True, exist_ok=True)
    errors.to_csv(study.figures / f"tuning_errors_{name}.csv", index=False, float_format="%.6g")
    return errors


def told_errors(errors: pd.DataFrame, record: pd.DataFrame) -> str:
    """What `search_errors` has found in a record, as a sentence."""
    of = record["name"].nunique()
    return (f"{len(errors)} of {of} chosen settings are below doing nothing on the tuning seeds, by "
            f"{-errors['difference'].min():.4f} of ToW at most." if len(errors) else
            f"None of {of} chosen settings is below doing nothing on the tuning seeds.")


# -- Results ----------------------------------------------------------------------------------------------------------


def other_seed(study: Study, sets: Mapping[str, ForgetSet]) -> pd.DataFrame:
    """`rumlib.lab.standing.retrained_again` as rows of one more algorithm."""
    return retrained_again(study, sets).rename(columns={"set": "level"}).assign(algorithm=AGAIN)


def falls(rows: pd.DataFrame, claim: str, low: str, high: str, names: Sequence[str], of: str = "tow") -> pd.DataFrame:
    """How much a measure falls from the level `low` to the level `high`: for each algorithm the difference paired over
    the seeds, with its interval and the verdict on `claim` (see `claims.compare`)."""
    return pd.DataFrame([claims.compare(rows, claim, f"{name}: {low} - {high}", {"level": low, "algorithm": name},
                                        {"level": high, "algorithm": name}, of) for name in names],
                        index=pd.Index(names, name="algorithm"))


def told_falls(found: pd.DataFrame) -> str:
    """For how many algorithms a claim holds, as it stands in a title: "8 of 8 algorithms". Doing nothing is no
    algorithm."""
    mine = found.drop(index="Original", errors="ignore")
    return f"{(mine['verdict'] == 'holds').sum()} of {len(mine)} algorithms"


def differences(found: pd.DataFrame) -> pd.DataFrame:
    """Comparisons of `claims.compare` to be read: what is compared, the difference with its interval, and the verdict.
    """
    text = [f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
            for mean, low, high in found[["mean", "low", "high"]].itertuples(index=False)]
    return pd.DataFrame({"difference [95 % CI]": text, "n": found["n"].tolist(), "verdict": found["verdict"].tolist()},
                        index=pd.MultiIndex.from_frame(found[["claim", "what"]]))


# -- Figures ----------------------------------------------------------------------------------------------------------


def factor(rows: pd.DataFrame, at: Mapping[str, float], names: Sequence[str], claim: str, *, of: str = "tow",
           xlabel: str = "", title: str = "") -> Figure:
    """Two panels. Left: means of a measure with 95 % intervals, at the value `at` that each level has on a real axis,
    a line for each algorithm; references are dashed or dotted. Right: the paired fall from the first level to the last
    one; its rows are also the legend."""
    levels, label = list(at), measures.MEASURES[of]
    figure, (ax, beside) = plt.subplots(1, 2, figsize=(8.6, 3.9), width_ratios=(1.5, 1))
    _lines(ax, summarise(rows, ["algorithm", "level"], of), at, [*names, *DASHED])
    ax.set(xlabel=xlabel, ylabel=label, title=f"{label} of each forget set")
    found = falls(rows, claim, levels[0], levels[-1], names, of)
    for k, (name, line) in enumerate(found.iterrows()):
        beside.errorbar(line["mean"], k, xerr=_bars(line), color=plots.colour(name), marker=plots.marker(name),
                        markersize=6, elinewidth=1.4, capsize=2)
    beside.axvline(0, color=plots.INK, linewidth=0.8)
    first, last = (level.split()[-1] for level in (levels[0], levels[-1]))
    beside.set(yticks=range(len(names)), yticklabels=[DASHED.get(name, name) for name in names],
               ylim=(len(names) - 0.5, -0.5), xlabel=f"{label}, {first} minus {last}",
               title=f"Fall of {label}")
    beside.grid(axis="y", visible=False)
    beside.grid(axis="x", visible=True)
    return titled(figure, title)


def accuracies(table: pd.DataFrame, names: Sequence[str], title: str = "") -> Figure:
    """Accuracy on forget, retain and test set and the attack, a panel each; the colours are the levels.

    table  as from `measures.tabled`, by level and algorithm
    """
    panels = {"forget": "accuracy, forget set", "retain": "accuracy, retain set", "test": "accuracy, test set",
              "MIA": "share called unseen"}
    figure, axes = plt.subplots(1, len(panels), figsize=(9.6, 0.9 + 0.36 * len(names)), sharey=True)
    for ax, (part, label) in zip(axes, panels.items(), strict=True):
        lines = table.xs(part, level="measure").reset_index()
        lines = lines[lines["algorithm"].isin(names)].sort_values(
            "algorithm", key=lambda column: column.map(list(names).index), kind="stable")
        lines["level"] = lines["level"].str.split().str[-1]
        plots.dots(lines, "algorithm", "level", ax=ax, xlabel=label, title=part, legend=part == "MIA").set_xlim(
            -0.06, 1.06)
    return titled(figure, title)


def titled(figure: Figure, title: str) -> Figure:
    """The figure with a title above all of its panels."""
    figure.suptitle(title, fontsize=10.5, x=0.02, ha="left")
    return figure


def _lines(ax: Axes, summary: pd.DataFrame, at: Mapping[str, float], names: Sequence[str]) -> None:
    """Means with intervals at real places, a little apart for each name; references have broken lines and a name."""
    places = sorted(at, key=at.get)
    span = (at[places[-1]] - at[places[0]]) or 1
    present = [name for name in dict.fromkeys(names) if name in summary.index.get_level_values("algorithm")]
    for k, name in enumerate(present):
        part, dashed = summary.loc[name].loc[places], name in DASHED
        colour = AGAIN_INK if name == AGAIN else plots.colour(name)
        x = np.array([at[level] for level in places]) + 0.012 * span * (k - len(present) / 2)
        ax.errorbar(x, part["mean"], yerr=_bars(part), color=colour,
                    marker=None if name == AGAIN else plots.marker(name), markersize=5, linewidth=1.3, elinewidth=1.1,
                    capsize=2, linestyle=":" if name == AGAIN else "--" if dashed else "-", zorder=1 if dashed else 2)
        if dashed:
            ax.annotate(DASHED[name].replace(" ", "\n", 1), (x[-1], part["mean"].iloc[-1]), xytext=(6, 0), fontsize=8,
                        textcoords="offset points", va="center", color=plots.ink(colour), annotation_clip=False)
    ax.set(xticks=[at[level] for level in places], xlim=(at[places[0]] - 0.12 * span, at[places[-1]] + 0.3 * span))
    ax.set_xticklabels([f"{level.split()[-1]}\n{at[level]:.{0 if at[level] >= 10 else 2}f}" for level in places])


def _bars(part: pd.DataFrame | pd.Series) -> np.ndarray:
    """Error bars of means; none where there is no interval."""
    bars = np.stack([part["mean"] - part["low"], part["high"] - part["mean"]]).astype(float)
    return np.nan_to_num(bars).reshape(2, -1)
