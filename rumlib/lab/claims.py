"""What the papers claim: each claim once, in words, and what is compared for it.

    found = [compare(rows, "C2", name, low(name), high(name)) for name in names]      # one row for each comparison
    counted(found)                                           # one line for each claim: its counts, and what follows
    save(study, found, "memorization")                       # figures/<profile>/claims_memorization.csv
    gathered(study, ["memorization", "rum"])                 # those of several notebooks, by their names
    told("C2", counted(found).loc["C2"])                     # a sentence: "C2 holds (8 of 8 comparisons hold)."
    pages(found, ["C1", "C2"])                               # as many of them as one figure can show
    python -m rumlib.lab.claims laptop cifar10-cpu           # writes the tables of the README

A comparison is a difference of two selections of rows, paired over their seeds (`rumlib.stats.paired`). Notebooks and
README quote what stands in these files, and compute no verdict of their own.

Source of the claims C1 to C6, C8 and C9: arXiv 2406.01257, sections 4 to 6 and appendix A.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from rumlib.lab import settings
from rumlib.lab.study import Study
from rumlib.stats import SHARES, equivalence, paired

MARGIN = 0.02                                                # of ToW and other shares: less is nothing that matters

HEADLINES = ("C1", "C1 planted", "C2", "C3", "C3b", "C4", "C4 shuffle", "C4 cost", "C5", "C5b", "C6", "C7", "C8", "C9")
MARKS = "<!-- {} -->\n", "<!-- end of {} -->"                # in README.md, around the tables of `tables`
VERDICTS = ("holds", "opposite", "equivalent", "inconclusive")
UNTESTABLE = "not testable"                                  # a setting does nothing, say: it is not counted
MEANS = {                                                    # kind of claim: what the words of `equivalence` mean
    "larger": {"better": "holds", "worse": "opposite"},
    "equal": {"equivalent": "holds", "better": "opposite", "worse": "opposite"},
    "no worse": {"better": "holds", "equivalent": "holds", "worse": "opposite"}}


@dataclass(frozen=True)
class Claim:
    """A claim in words, where it stands, and its kind.

    kind  "larger": the first selection has the larger values; "equal": both have the same within `MARGIN`;
          "no worse": the first is not below the second by more than `MARGIN`
    """

    text: str
    source: str
    kind: str = "larger"


SVD, TOPK = "arXiv 2312.00761 (class unlearning by SVD)", "arXiv 2401.04385 (Top-K perturbation)"

CLAIMS = {
    "C1": Claim("ToW falls as entanglement rises", "section 4.1, Fig 1a"),
    "C1 matched": Claim("ToW falls as entanglement rises, at equal memorization", "not in the paper: its control"),
    "C1 planted": Claim("ToW falls with planted entanglement, at equal memorization", "not in the paper: a control"),
    "C1 relabel": Claim("relabelling suffers most from entanglement", "section 4.1"),
    "C2": Claim("ToW falls as memorization rises", "section 4.2, Fig 1b"),
    "C3": Claim("relabelling has the inverse trend: better at high memorization than at low", "section 4.2"),
    "C3 range": Claim("relabelling has the inverse trend, with the paper's learning rates alone", "section 4.2, A.2"),
    "C3b": Claim("another algorithm is best at each level", "section 4.2"),
    "C4": Claim("refined, one part after the other, is better than at once (RUM^F > vanilla)", "section 6, Fig 3"),
    "C4 shuffle": Claim("refined parts are better than random ones (RUM^F > shuffle)", "section 6, Fig 3"),
    "C4 cost": Claim("refined, it is better than at once with as many examples", "not in the paper: equal cost"),
    "C4b": Claim("random parts are worse than at once (shuffle < vanilla)", "section 6"),
    "C5": Claim("nothing > fine-tune > SalUn is the best of all by ToW", "section 6, Table 16"),
    "C5 MIA": Claim("nothing > fine-tune > SalUn is the best of all by the gap of the attack", "section 6, Table 16"),
    "C5 SalUn": Claim("nothing > SalUn > SalUn is better than SalUn on all three parts", "section 6, Table 16"),
    "C5b": Claim("low to high and high to low have the same ToW", "section 6, Fig 5 and 13", "equal"),
    "C4 draws": Claim("RUM^F > vanilla, over draws of the data", "section 6, Fig 3"),
    "C4 shuffle draws": Claim("RUM^F > shuffle, over draws of the data", "section 6, Fig 3"),
    "C4 cost draws": Claim("RUM^F is better than at once with as many examples, over draws of the data",
                           "not in the paper: equal cost"),
    "C5b draws": Claim("both orders have the same ToW, over draws of the data", "section 6, Fig 5 and 13", "equal"),
    "C6": Claim("refined by a cheap proxy it is as good as by memorization", "section 6, A.6", "no worse"),
    "C6 control": Claim("refined by a score that is no proxy it is as good as by memorization",
                        "not in the paper: a control", "no worse"),
    "C7": Claim("SalUn is better than NegGrad+ by ToW", "arXiv 2410.16516"),
    "C7 MIA": Claim("NegGrad+ is better than SalUn by ToW-MIA", "arXiv 2410.16516"),
    "C7 gain": Claim("refinement improves ToW-MIA of NegGrad+", "arXiv 2410.16516"),
    "C8": Claim("predictions differ more at high memorization than at low", "A.7, Table 5"),
    "C9": Claim("SalUn, in its step, forgets more of the low part than retraining does", "section 6, Fig 5"),
    "C9 repair": Claim("later steps repair what SalUn overforgets on the low part", "section 6, Fig 5"),
    "judge": Claim("ours: a judge by memorization chooses better than others do", "no paper"),
    "P ToW": Claim("the projection is nearer to retraining than a gradient method (exploratory)", SVD),
    "P retained": Claim("the projection is more accurate on retained classes than a gradient method", SVD),
    "P forgotten": Claim("the projection is less accurate on the forgotten class than a gradient method", SVD),
    "P attack": Claim("the projection is better against the attack than a gradient method", SVD),
    "T deepest": Claim("Top-K unlearns deeper than others", TOPK),
    "T forgets": Claim("Top-K forgets more than Random-k", TOPK),
}


def compare(rows: pd.DataFrame, claim: str, what: str, first: Mapping, second: Mapping, of: str = "tow",
            sign: int = 1) -> dict:
    """The comparison `first` minus `second` (column -> value: which rows are meant) for a claim of `CLAIMS`.

    of    the column that is compared;  sign: -1 where smaller values are the better ones

    Returns the claim, what is compared, mean, low and high (Student t, 95 %), n and p, the mean looks and examples of
    both sides where the rows have them, and the verdict (see `stated`). It is not testable where both sides are the
    same in every measured share of every seed: they are then the same models, for instance as a setting did nothing.
    """
    shares = [column for column in rows if column in SHARES and rows[column].notna().all()]
    same = not any(paired(rows, first, second, column).any() for column in {*shares, of})
    row = {**stated(claim, what, sign * paired(rows, first, second, of), testable=not same), "of": of}
    for column in ("looks", "examples"):
        if column in rows:
            for side, which in (("first", first), ("second", second)):
                row[f"{column}_{side}"] = rows[(rows[list(which)] == pd.Series(which)).all(axis=1)][column].mean()
    return row


def stated(claim: str, what: str, differences: Iterable[float], testable: bool = True) -> dict:
    """What paired differences say of a claim (see `verdict`), or that it is not testable."""
    found = {"claim": claim, "what": what, **verdict(CLAIMS[claim].kind, differences)}
    return found if testable else found | {"verdict": UNTESTABLE}


def verdict(kind: str, differences: Iterable[float]) -> dict:
    """What `rumlib.stats.equivalence` says of differences that are claimed to be "larger" than 0, "equal" to 0 or "no
    worse" than 0, with its verdict in the words of `VERDICTS`. "No worse" also holds if the interval lies above
    -`MARGIN`."""
    found = equivalence(differences, MARGIN)
    said = MEANS[kind].get(found["verdict"], found["verdict"])
    return found | {"verdict": "holds" if kind == "no worse" and found["low"] > -MARGIN else said}


def counted(found: Iterable[Mapping] | pd.DataFrame) -> pd.DataFrame:
    """One line for each claim: in how many comparisons it holds, is opposite, equivalent, inconclusive or not testable,
    and the word for the whole claim (see `whole`)."""
    found = pd.DataFrame(found)
    table = found.groupby("claim", sort=False)["verdict"].value_counts().unstack(fill_value=0)
    table = table.reindex(columns=(*VERDICTS, UNTESTABLE), fill_value=0)
    table["whole claim"] = [whole(line) for _, line in table.iterrows()]
    table.insert(0, "text", [CLAIMS[claim].text for claim in table.index])
    return table


def whole(counts: Mapping) -> str:
    """The word for a whole claim, from the counts of its comparisons: what is not testable is left out.

    "holds"          if more than half of them hold
    "does not hold"  if more than half are opposite or equivalent; or if none holds and two or more are opposite (one
                     alone may be chance)
    "inconclusive"   else, and "not testable" if there is nothing to count
    """
    holds, opposite, equivalent, inconclusive = (counts[kind] for kind in VERDICTS)
    of = holds + opposite + equivalent + inconclusive
    if not of:
        return UNTESTABLE
    refuted = opposite + equivalent > of / 2 or (holds == 0 and opposite >= 2)
    return "holds" if holds > of / 2 else "does not hold" if refuted else "inconclusive"


def tally(counts: Mapping) -> str:
    """The counts of a claim in words.

    >>> tally({"holds": 3, "opposite": 0, "equivalent": 0, "inconclusive": 1, "not testable": 2})
    '3 of 4 hold, 1 inconclusive, 2 not testable'
    """
    of = sum(counts[kind] for kind in VERDICTS)
    others = [f"{counts[kind]} {kind}" for kind in (*VERDICTS[1:], UNTESTABLE) if counts[kind]]
    return ", ".join([f"{counts['holds']} of {of} hold", *others]) if of else f"{counts[UNTESTABLE]} compared"


def told(claim: str, line: Mapping) -> str:
    """What is found of a claim, as a sentence, from its line of `counted`.

    >>> told("C2", {"holds": 3, "opposite": 0, "equivalent": 0, "inconclusive": 1, "not testable": 0})
    '**C2**, "ToW falls as memorization rises": **holds** (3 of 4 hold, 1 inconclusive).'
    """
    return f'**{claim}**, "{CLAIMS[claim].text}": {_bold(whole(line))} ({tally(line)}).'


def _bold(word: str) -> str:
    """The word for a whole claim: bold where the claim is decided."""
    return f"**{word}**" if word in ("holds", "does not hold") else word


def pages(found: pd.DataFrame, claims: Iterable[str], most: int = 25) -> list[pd.DataFrame]:
    """The comparisons of these claims, in this order, as tables of at most `most` lines: what one figure can show.

    A claim is cut in two or more, of about equal length, where it alone has more. Claims without a comparison are left
    out, and so are comparisons of a single seed, which have no interval.
    """
    parts: list[pd.DataFrame] = []
    for claim in claims:
        lines = found[(found["claim"] == claim) & (found["n"] > 1)]
        count = -(-len(lines) // most)
        for k in range(count):
            piece = lines.iloc[k * len(lines) // count:(k + 1) * len(lines) // count]
            if parts and len(parts[-1]) + len(piece) <= most:
                parts[-1] = pd.concat([parts[-1], piece])
            else:
                parts.append(piece)
    return parts


def save(study: Study, found: list[Mapping], name: str) -> pd.DataFrame:
    """Write the comparisons of a notebook to figures/<profile>/claims_<name>.csv, and return them as a table."""
    table = pd.DataFrame(found, columns=None if found else ["claim", "what", "mean", "low", "high", "n", "verdict"])
    study.figures.mkdir(parents=True, exist_ok=True)
    table.to_csv(study.figures / f"claims_{name}.csv", index=False, float_format="%.6g")
    return table


def tables(home: Path, profiles: Iterable[str]) -> dict[str, str]:
    """The tables of README.md as Markdown, by their marks."""
    return {"claims": written(home, profiles), "draws": drawn(home)}


def drawn(home: Path) -> str:
    """For which algorithms comparisons of 07_rum_ablations are decided, from figures/laptop-draws/rum_draws.csv. What
    is still decided with a correction for their number (Holm) is bold."""
    found = pd.read_csv(home / "figures/laptop-draws/rum_draws.csv")
    found = found[~found["comparison"].str.contains("left out")]
    verdicts = ("better", "worse", "equivalent", "inconclusive")
    lines = ["| the first minus the second | " + " | ".join(verdicts) + " |", "|---" * (len(verdicts) + 1) + "|"]
    for what, part in found.groupby("comparison", sort=False):
        names = part["algorithm"].where(~part["survives"], "**" + part["algorithm"] + "**")
        cells = [", ".join(names[part["verdict"] == verdict]) for verdict in verdicts]
        lines.append(f"| {what.replace(' - ', ' **minus** ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def written(home: Path, profiles: Iterable[str]) -> str:
    """The main claims of the RUM paper, a column for each profile, from figures/<profile>/claims.csv."""
    found = {name: pd.read_csv(home / "figures" / name / "claims.csv", index_col="claim") for name in profiles}
    lines = ["| claim | " + " | ".join(f"`{name}`" for name in found) + " |", "|---" * (len(found) + 1) + "|"]
    for claim in HEADLINES:
        if any(claim in table.index for table in found.values()):
            cells = [f"{_bold(whole(counts))}: {tally(counts)}" if len(counts) else "" for counts in (
                table.loc[claim] if claim in table.index else () for table in found.values())]
            lines.append(f"| **{claim}**: {CLAIMS[claim].text} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def gathered(study: Study, notebooks: Iterable[str]) -> pd.DataFrame:
    """The comparisons of notebooks, by their names without numbers. Raises FileNotFoundError where one of the
    profile has not run."""
    files = {name: study.figures / f"claims_{name}.csv" for name in notebooks if study.profile.includes(name)}
    missing = [f"{name} ({file.name})" for name, file in files.items() if not file.exists()]
    if missing:
        raise FileNotFoundError(f"run these notebooks at profile {study.profile.name!r} first: {', '.join(missing)}")
    tables = [pd.read_csv(file).assign(notebook=name) for name, file in files.items()]
    return pd.concat([table for table in tables if len(table)] or tables, ignore_index=True)     # empty: no dtypes


def main(*profiles: str) -> None:
    """Write the tables between their marks in README.md."""
    file = settings.home() / "README.md"
    text = file.read_text()
    for name, table in tables(settings.home(), profiles).items():
        (head, rest), end = text.split(MARKS[0].format(name)), MARKS[1].format(name)
        text = head + MARKS[0].format(name) + table + end + rest.split(end)[1]
    file.write_text(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
