"""Several draws of the data: what 07_rum_ablations compares, one number for each draw.

    table, source = draws(study)                             # ToW of every way in every draw, and whose draws they are
    found = verdicts(differences(table))                     # mean, interval over the draws, verdict, correction
    against = verdicts(mixed_differences(table), ("minus", "RUM", "algorithm"))

A difference of two ways is paired: taken within each draw, of means over the same reporting seeds.
"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from rumlib.lab import claims, measures, protocol
from rumlib.lab.study import Study
from rumlib.stats import equivalence

UP, DOWN, LONGER = "RUM^F low to high", "RUM^F high to low", "once, 3x epochs"
COMPARISONS = {                                              # what is compared: first minus second
    "low to high - shuffled": (UP, "shuffled"), "low to high - once": (UP, "once"),
    "low to high - once, 3x epochs": (UP, LONGER), "high to low - low to high": (DOWN, UP),
    "high to low - shuffled": (DOWN, "shuffled"), "high to low - once": (DOWN, "once"),
    "high to low - once, 3x epochs": (DOWN, LONGER),
    "waiting parts left out: low to high - shuffled": (f"{UP}, left out", "shuffled, left out"),
    "waiting parts left out: high to low - shuffled": (f"{DOWN}, left out", "shuffled, left out"),
    "high to low: left out - kept": (f"{DOWN}, left out", DOWN)}
ORDERS = {UP: "low > medium > high", DOWN: "high > medium > low"}


def drawn(study: Study, number: int) -> pd.DataFrame:
    """ToW, looks and examples of every way in one draw: means over the reporting seeds, whose number is `seeds`."""
    one = study.drawn(number)
    rows = pd.concat([table(one).run(one)[0] for table in protocol.DRAWN])
    return rows.groupby(["algorithm", "variant"], sort=False)[["tow", "looks", "examples"]].mean().assign(
        draw=number, seeds=rows["seed"].nunique()).reset_index()


def draws(study: Study) -> tuple[pd.DataFrame | None, str]:
    """Every way in every draw, and the name of the profile that computed them.

    A profile with several draws computes them and writes figures/<profile>/draws.csv. Another one reads the published
    file of the profile <its name>-draws; None where there is none.
    """
    if study.profile.draws > 1:
        table = pd.concat([drawn(study, number) for number in range(study.profile.draws)], ignore_index=True)
        study.figures.mkdir(parents=True, exist_ok=True)
        table.to_csv(study.figures / "draws.csv", index=False, float_format="%.6g")
        return table, study.profile.name
    source = f"{study.profile.name}-draws"
    file = study.home / "figures" / source / "draws.csv"
    return (pd.read_csv(file) if file.exists() else None), source


def differences(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each comparison, algorithm and draw: the difference of ToW."""
    tow = table.pivot(index=["algorithm", "draw"], columns="variant", values="tow")
    return pd.concat([(tow[first] - tow[second]).dropna().rename("difference").reset_index().assign(comparison=what)
                      for what, (first, second) in COMPARISONS.items()])


def mixed_differences(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each mixed RUM (nothing for the low part), plain way, algorithm and draw: the mixed RUM minus RUM^F
    in the paper's order, and minus the algorithm run once at three times the epochs."""
    tow = table.pivot(index="draw", columns=["algorithm", "variant"], values="tow")
    mixed = [pair for pair in tow.columns if pair[0].startswith("nothing >")]
    plain = [name for name in dict.fromkeys(tow.columns.get_level_values(0)) if (name, UP) in tow]
    return pd.DataFrame([
        {"minus": base, "RUM": f"{name}, {variant.removeprefix('RUM ')}", "algorithm": other, "difference": value}
        for base in (UP, LONGER) for name, variant in mixed for other in plain
        for value in tow[name, variant] - tow[other, base]])


def verdicts(found: pd.DataFrame, by: Iterable[str] = ("comparison", "algorithm")) -> pd.DataFrame:
    """What the differences of each combination of the columns `by` say: mean, low and high over the draws, n, the
    verdict (see `rumlib.stats.equivalence`), in how many draws the difference is positive, and `survives`: whether a
    verdict of better, worse or equivalent still stands after Holm's correction over all of these combinations.

    Better and worse are corrected as one family of two-sided t tests, equivalent as one of the two one-sided tests.
    """
    by, rows = list(by), []
    for names, part in found.groupby(by, sort=False):
        values = part["difference"]
        rows.append({**dict(zip(by, names, strict=True)), **equivalence(values, claims.MARGIN),
                     "positive": f"{(values > 0).sum()}/{len(values)}", "p differs": measures.two_sided(values)})
    table = pd.DataFrame(rows).set_index(by)
    differs, same = (pd.Series(measures.holm(table[of]), table.index) < 0.05 for of in ("p differs", "p"))
    decided, equal = table["verdict"].isin(["better", "worse"]), table["verdict"] == "equivalent"
    table["survives"] = (decided & differs) | (equal & same)
    return table


def centred(table: pd.DataFrame) -> pd.DataFrame:
    """RUM^F of the paper's algorithms in all six orders: ToW of each order and draw, minus the mean over the six orders
    of the same algorithm and draw. Draws differ in how hard they are, which this takes away."""
    six = table[table["algorithm"].isin(protocol.PAPER)].replace({"variant": ORDERS})
    six = six[six["variant"].str.count(">") == 2]
    mean = six.groupby(["algorithm", "draw"])["tow"].transform("mean")
    return six.assign(difference=six["tow"] - mean).rename(columns={"variant": "order", "draw": "seed"})


def contrasted(six: pd.DataFrame, first: pd.Series) -> dict:
    """ToW of the orders that `first` marks (a row of `centred` each: True or False) minus that of the other orders: a
    mean over the algorithms, paired within each draw; mean, low, high, n and verdict of `rumlib.stats.equivalence`."""
    means = six["difference"].groupby([six["seed"], first]).mean().unstack()
    return equivalence(means[True] - means[False], claims.MARGIN)
