"""Names that become files: profiles, figures.

    plain_name("laptop", "a profile")                        # the name again, or ValueError
"""

from __future__ import annotations


def plain_name(name: str, what: str) -> str:
    """The name, if a file of it stays in its folder. Raises ValueError for a path, an empty or a hidden name."""
    if not isinstance(name, str) or not name.strip() or name.startswith(".") or set(name) & set("/\\\0"):
        raise ValueError(f"the name of {what} becomes a file and cannot be {name!r}: no / or \\, no dot in front, not "
                         f"empty")
    return name
