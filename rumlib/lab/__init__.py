"""The lab: studies whose results are kept on disk, tuned, published and verified. This is its one door.

    from rumlib.lab import Cell, Study
    study = Study("laptop")
"""

from importlib import import_module

_HOMES = {
    "Study": "study", "Cell": "tables", "ForgetSet": "computations", "Profile": "profiles", "profile": "profiles",
    "Card": "card", "vary": "tuning", "tuned": "tuning",
    "Answers": "classroom", "Bench": "classroom", "Choice": "classroom", "explorer": "classroom",
    "report_card": "report",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    """Loaded when it is first asked for: to look at what a study has done needs neither torch nor pandas."""
    if name not in _HOMES:
        raise AttributeError(f"rumlib.lab has no {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"rumlib.lab.{_HOMES[name]}"), name)
