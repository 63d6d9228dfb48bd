"""What the text of a lesson is made of: sentences whose numbers are computed where they stand.

    say(f"Retraining takes **{seconds:.0f} s**.")            # shown as Markdown
"""

from __future__ import annotations

import textwrap

from IPython.display import Markdown, display


def say(text: str) -> None:
    """Show text as Markdown; indentation that its lines share is taken away."""
    display(Markdown(textwrap.dedent(text)))
