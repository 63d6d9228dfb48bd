"""What a notebook says to its reader: sentences with computed numbers, what it took, and where its numbers come from.

    say(f"ToW is {told(summary.loc['SalUn'])}.")             # ToW is 0.920 (95 % CI [0.870, 0.970], n = 3).
    measured(study)                                          # how long this notebook takes at this profile
    origin(study)                                            # one line that unfolds: commit, data, seeds, versions
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from textwrap import dedent

from IPython.display import Markdown, display

from rumlib.lab import settings
from rumlib.lab.study import Study


def say(text: str) -> None:
    """Show a text as Markdown: write it as an f-string, so that every number in it is computed where it stands."""
    display(Markdown(dedent(text).strip()))


def told(row: Mapping, digits: int = 3) -> str:
    """Mean, 95 % interval and n of a line of `rumlib.summarise`, as they stand in a sentence. A bare mean with n = 1.

    >>> told({"mean": 0.92, "low": 0.87, "high": 0.97, "n": 3}, digits=2)
    '0.92 (95 % CI [0.87, 0.97], n = 3)'
    """
    mean, low, high = (f"{row[name]:.{digits}f}" for name in ("mean", "low", "high"))
    return f"{mean} (n = 1)" if math.isnan(row["low"]) else f"{mean} (95 % CI [{low}, {high}], n = {row['n']:.0f})"


def measured(study: Study) -> None:
    """Say how long this notebook took when it was last run at this profile: from the files beside its figures."""
    files = [json.loads(path.read_text()) for path in sorted(study.figures.glob("*.json"))]
    mine = [found for found in files if found.get("notebook") == settings.notebook()]
    if not mine:
        return say(f"**Time.** Not measured yet at profile `{study.profile.name}`.")
    computed = max(found["results"].get("core seconds", 0) for found in mine)
    reading = max(found["seconds"] for found in mine)
    return say(f"**Time.** Last measured at profile `{study.profile.name}`: {reading:.0f} s to run through" + (
        f" with the results at hand, {computed / 60:.1f} minutes of one core to compute them." if computed else "."))


def origin(study: Study) -> None:
    """Where the numbers come from, folded into one line."""
    facts = study.provenance()
    line = f"profile {facts['profile']}, commit {(facts['commit'] or 'unknown')[:10]}, {facts['device']}"
    display(Markdown(f"<details><summary>Where this comes from: {line}</summary>\n\n```json\n"
                     f"{json.dumps(facts, indent=1, default=str)}\n```\n\n</details>"))
