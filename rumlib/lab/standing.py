"""Where an algorithm stands: beside doing nothing, beside retraining with another seed, and among all others.

    again = retrained_again(study, study.levels())           # ToW of one retrained model against another
    lines = standings(rows, "level", retraining=24_000)      # mean, interval, rank, against doing nothing, cost
    card(lines, record, "SalUn")                             # what was found of one algorithm, as a reader wants it
    price(study)["memorization"]                             # what a score costs, in retrainings
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd

from rumlib.lab.computations import ForgetSet
from rumlib.lab.lesson import told
from rumlib.lab.study import Study
from rumlib.proxies import HOLDOUT, TRACED
from rumlib.stats import contrast, summarise, tow_between

VERDICTS = {"holds": "significantly better", "opposite": "significantly worse", "open": "inconclusive"}


def retrained_again(study: Study, sets: Mapping[str, ForgetSet]) -> pd.DataFrame:
    """ToW and ToW-MIA of the oracle of each seed against that of the next seed, as if it had been unlearned: one row
    for each set (its key in `sets`) and pair of seeds. No row with a single seed, one pair with two.

    What an algorithm without any fault of its own gets when its random numbers differ from those of the oracle. It is a
    reference and no limit: unlearning starts from the original of the very seed of the oracle, and may end nearer.
    """
    seeds = study.profile.seeds
    study.oracles(sets.values(), seeds)
    pairs = list(zip(seeds, (*seeds[1:], seeds[0]), strict=True))[:len(seeds) if len(seeds) > 2 else len(seeds) - 1]
    return pd.DataFrame([{"set": name, "seed": a, "other": b,
                          **tow_between(study.reference(forget, a), study.reference(forget, b))}
                         for name, forget in sets.items() for a, b in pairs],
                        columns=["set", "seed", "other", "tow", "tow_mia"])


def price(study: Study) -> dict[str, float]:
    """What each score costs beyond the training of the original model: examples passed forward and backward, in units
    of one retraining without RUM's mix. A forward pass alone is not counted.

    Loss curvature takes two gradients of each example in each epoch. Held-out retraining takes two trainings without a
    tenth of the data, each of which goes on with that tenth.
    """
    p, n = study.profile, len(study.train)
    epochs, tenths = p.recipe.epochs, [-(-n // 10), -(-(n - 1) // 10)]       # as `tensor_split` cuts
    subsets = p.score_models * round(p.fraction * n) * p.scored_by.recipe.epochs
    held_out = sum((n - tenth) * epochs + tenth * HOLDOUT.epochs for tenth in tenths)
    examples = {"memorization": subsets, **dict.fromkeys(TRACED, 0), "holdout_retraining": held_out,
                "loss_curvature": 2 * n * epochs}
    return {name: count / ((n - p.mix) * epochs) for name, count in examples.items()}


def standings(rows: pd.DataFrame, group: str, *, retraining: float, nothing: str = "Original") -> pd.DataFrame:
    """How each algorithm stands in each group: one line for each algorithm and value of the column `group`.

    rows        as from `Study.unlearn`, with the columns algorithm, seed, tow and examples
    retraining  examples that retraining passes forward and backward: the unit of the cost
    nothing     the algorithm that does nothing: it has a line, and no rank

    Returns mean, low, high (95 %, see `rumlib.summarise`) and n of ToW; rank (1: the largest mean of the group) and
    ranked, how many have one; behind, by how much the mean is less than the largest; against, the difference to doing
    nothing paired over the seeds (see `VERDICTS`), empty where the rows have no such algorithm; and cost.
    """
    table = summarise(rows, ["algorithm", group], "tow")
    table["cost"] = rows.groupby(["algorithm", group])["examples"].mean() / retraining
    ranked = table.drop(index=nothing, level="algorithm", errors="ignore")["mean"].groupby(group)
    table["rank"], table["ranked"] = ranked.rank(ascending=False, method="min"), ranked.transform("size")
    table["behind"] = ranked.transform("max") - table["mean"]
    known = set(rows["algorithm"])

    def against(name: str, value: object) -> str:
        if nothing not in known or name == nothing:
            return ""
        return VERDICTS[contrast(rows, {group: value, "algorithm": name}, {group: value, "algorithm": nothing},
                                 "tow")["verdict"]]

    return table.assign(against=[against(*key) for key in table.index]).astype({"rank": "Int64", "ranked": "Int64"})


def card(lines: pd.DataFrame, record: pd.DataFrame, name: str) -> str:
    """What was found of one algorithm, as Markdown: a table, where it is best and worst, and the values tried.

    lines   as from `standings`; where the algorithm has none, the text says so
    record  as from `Study.tune`, whose names begin with (group, algorithm)
    """
    if name not in lines.index.get_level_values("algorithm"):
        return f"{name} is not among the algorithms of this profile."
    lines = lines.loc[name]
    mine = record[[label[:2] in {(group, name) for group in lines.index} for label in record["name"]]]
    chosen = {label[0]: setting for label, setting in mine[mine["chosen"]][["name", "setting"]].itertuples(index=False)}
    text = ["| forget set | ToW | rank | compared with doing nothing | setting chosen | cost in retrainings |",
            "|---|---|---|---|---|---|"]
    for group, line in lines.iterrows():
        cells = (group, told(line), f"{line['rank']} of {line['ranked']}", line["against"] or "not compared",
                 _setting(chosen.get(group, {})) or "none to choose", f"{line['cost']:.2f}")
        text.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*text, "", " ".join(_ends(lines)), "", f"Values tried: {_tried(mine['setting'])}."])


def _ends(lines: pd.DataFrame) -> list[str]:
    """The set on which the algorithm is nearest to the best method, and the one on which it is farthest behind. The
    best set is one of those on which it is significantly better than doing nothing, where that was compared."""
    compared = lines["against"].ne("").any()
    useful = lines[lines["against"] == VERDICTS["holds"]] if compared else lines

    def at(word: str, group: object) -> str:
        line = lines.loc[group]
        than = f"{line['behind']:.3f} below the best method there" if line["behind"] else "the largest mean there"
        verdict = f"; {line['against']} than doing nothing".replace("inconclusive than", "inconclusive against")
        return f"**{word} set**: *{group}*, ToW {told(line)}, {than}{verdict if compared else ''}."

    best, worst = useful["behind"].idxmin() if len(useful) else None, lines["behind"].idxmax()
    found = [at("Best", best) if len(useful) else "On no set is it significantly better than doing nothing."]
    found += [at("Worst", worst)] if worst != best else []
    useless = [f"*{group}*" for group in lines.index if group not in useful.index and len(useful)]
    return [*found, f"Not significantly better than doing nothing on {', '.join(useless)}."] if useless else found


def _setting(values: Mapping[str, float]) -> str:
    return ", ".join(f"`{field}` {value:g}" for field, value in values.items())


def _tried(settings: Iterable[Mapping[str, float]]) -> str:
    """Every value that a field had in any of the settings."""
    found: dict[str, set] = {}
    for setting in settings:
        for field, value in setting.items():
            found.setdefault(field, set()).add(value)
    return "; ".join(f"`{field}` {', '.join(f'{value:g}' for value in sorted(values))}"
                     for field, values in found.items()) or "none, as there is nothing to choose"
