"""The card of an unlearned model as a report to print, for those who answer for the data.

    report_card("runs/laptop/own_model/unlearned")           # reads card.json there, writes report.html beside it
    text(card)                                               # the page itself, of a Card

The page stands alone: it asks for nothing outside of its file and runs no script.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from html import escape
from pathlib import Path

from rumlib.lab import files
from rumlib.lab.card import CARD, LIMITS, WEIGHTS, Card, _parse
from rumlib.lab.store import put

REPORT, MOST = "report.html", 2**36                          # bytes of weights
STYLE = """
body { font: 11pt/1.5 sans-serif; color: #222; background: #fff; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 1.6rem; border-bottom: 1px solid #767676; }
table { border-collapse: collapse; width: 100%; } caption { text-align: left; font-style: italic; }
th, td { text-align: left; vertical-align: top; padding: 0.2rem 0.6rem 0.2rem 0; border-bottom: 1px solid #ddd; }
th { width: 40%; font-weight: normal; } td { overflow-wrap: anywhere; }
.line { border-bottom: 1px solid #222; height: 2.2rem; }
@media print { body { margin: 0; max-width: none; } h2 { break-after: avoid; } tr { break-inside: avoid; } }
"""


def report_card(folder: str | Path) -> Path:
    """Write the report of the card in that folder, with the hashes of its files, beside it. Returns its path. Raises
    FileNotFoundError or ValueError where the card is missing or damaged, or where the weights are not those of it."""
    folder = Path(folder)
    kept = _parse(folder / CARD)
    found = hashlib.sha256(files.read(folder / WEIGHTS, MOST, links=True)).hexdigest()
    if found != kept.pop("weights"):
        raise ValueError(f"{folder / WEIGHTS} is damaged, or not what {CARD} was written for")
    hashes = {WEIGHTS: found, CARD: hashlib.sha256((folder / CARD).read_bytes()).hexdigest()}
    card = Card(**{**kept, "limits": tuple(kept.get("limits", LIMITS))})
    put(folder / REPORT, text(card, hashes).encode())
    return folder / REPORT


def text(card: Card, hashes: Mapping[str, str] | None = None) -> str:
    """The report as HTML. `hashes`: name of a file -> its SHA-256."""
    audits = table(getattr(card, "audits", {})) or (          # cards of older versions have none
        "<p>None was made. The numbers above describe one run; they are no audit.</p>")
    first = card.forgotten.get("first")
    asked = {
        "Examples to be forgotten": f"{card.forgotten['count']} of {card.forgotten['count'] + card.retained['count']}",
        "Of each class": ", ".join(f"{count} of class {c}" for c, count in card.forgotten["classes"].items()),
        **({"First ids of the request": ", ".join(map(str, first))} if first else {}),
        "Hash of the sorted ids": card.forgotten["index"], "Hash of the examples": card.forgotten["content"]}
    done = {"Method": card.algorithm, "Network": card.network, "Random seed": card.seed,
            "Examples retained": card.retained["count"], "Hash of the retained ids": card.retained["index"],
            **{f"Cost: {name}": number(card, name, value) for name, value in card.cost.items()}}
    measured = {name: number(card, name, value) for name, value in card.metrics.items()}
    parts = [
        ("What was asked", table(asked)), ("What was done", table(done)),
        ("What was measured", table(measured) + "<p>Accuracies are shares between 0 and 1. ToW is 1 where the model "
                              "is as accurate as one that was trained again without the forgotten examples.</p>"),
        ("Which audits were passed", audits),
        ("What this report does not promise", "<ul>" + "".join(f"<li>{escape(limit)}</li>" for limit in card.limits)
         + "</ul>"),
        ("How to check it", "<p>Whoever has the files can compute these hashes again (SHA-256).</p>"
         + table(hashes or {}) + table({f"Version of {name}": which for name, which in card.versions.items()})),
        ("Signed", '<p>Date, name, signature:</p><div class="line"></div><div class="line"></div>')]
    body = "".join(f"<section><h2>{title}</h2>{inside}</section>" for title, inside in parts)
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content='
            f'"width=device-width, initial-scale=1"><title>Report on a request to forget</title><style>{STYLE}</style>'
            f"</head><body><main><h1>Report on a request to forget</h1><p>A trained model was changed so that it "
            f"behaves as if some training examples had never been used. This report says what was asked, what was done "
            f"and what was measured.</p>{body}</main></body></html>\n")


def number(card: Card, name: str, value: float | None) -> str:
    return card.remarks.get(name, "not measured") if value is None else f"{value:.4g}"


def table(rows: Mapping[str, object]) -> str:
    """Names and values, one row each; nothing for no rows."""
    lines = "".join(f'<tr><th scope="row">{escape(str(name))}</th><td>{escape(str(value))}</td></tr>'
                    for name, value in rows.items())
    return f"<table>{lines}</table>" if rows else ""
