"""Studies: what is run, kept, read back and paid for. The one door to all of it."""

from rumlib.lab.card import Card
from rumlib.lab.profiles import Profile, profile
from rumlib.lab.study import Cell, ForgetSet, Study, vary
from rumlib.lab.tuning import tuned

__all__ = ["Card", "Cell", "ForgetSet", "Profile", "Study", "profile", "tuned", "vary"]
