"""Studies: what is asked of them, and files of theirs that are not what they should be."""

from types import SimpleNamespace

from studies import TINY, finetune, mine, open_study

import rumlib as rum
from rumlib.lab import Cell, Study, check, tuned, tuning, vary
from rumlib.lab.store import parse

rum.load("digits")                                           # the first time takes a second, which is no case's fault


def unlearn(algorithm, seed=0):
    """A call that has a study unlearn by that algorithm."""
    def call(t):
        t.environ("RUM_ENGINE", "serial")
        study = open_study(t.folder)
        study.unlearn([Cell(mine(study), algorithm, seed)])
    return call


def explain(text):
    """A call of `make verify FIGURE=` on a file with that text."""
    def call(t):
        (t.folder / "figure.json").write_text(text)
        check.explain(t.folder / "figure.json")
    return call


def memoize(function, *arguments):
    return lambda t: open_study(t.folder).memoize(function, [arguments])


class Thing:
    def method(self, model, forget, retain, *, seed):
        return model


FIGURE = SimpleNamespace(savefig=lambda *a, **k: None)
CASES = [
    ("an algorithm that is a lambda", unlearn(lambda model, *sets, seed: model), TypeError,
     "no lasting name.*frozen dataclass"),
    ("an algorithm that is a method", unlearn(Thing().method), TypeError, "no lasting name.*frozen dataclass"),
    ("an algorithm that is a string", unlearn("Finetune"), TypeError, r"'Finetune' is no algorithm.*Finetune\(\)"),
    ("an algorithm that is a class", unlearn(rum.Finetune), TypeError, r"Finetune.*> is no algorithm.*Finetune\(\)"),
    ("a seed of 0.5", unlearn(finetune, 0.5), TypeError, "seed.*0.5"),
    ("a seed that is None", unlearn(finetune, None), TypeError, "seed.*None"),
    ("a lambda to memoize", memoize(lambda study: {}), TypeError, "no lasting name"),
    ("an argument without a name", memoize(Thing.method, object()), TypeError, "no lasting name"),
    ("a dictionary as an argument", memoize(Thing.method, {"a": 1}), TypeError, "no lasting name.*frozen dataclass"),
    ("an unknown profile", lambda t: Study("labtop", home=t.folder), ValueError, "'labtop'.*smoke"),
    ("no seeds", lambda t: Study(TINY, seeds=0, home=t.folder), ValueError, "seeds.*at least 1.*0"),
    ("a number of seeds that is a text", lambda t: Study(TINY, seeds="2", home=t.folder), ValueError, "seeds.*'2'"),
    ("seeds that are tuned on", lambda t: Study(TINY, seeds=101, home=t.folder), ValueError, "overlap"),
    ("RUM_UNTIL that is no time", lambda t: [t.environ("RUM_UNTIL", "noon"), open_study(t.folder)], ValueError,
     "RUM_UNTIL.*seconds.*'noon'"),
    ("RUM_VERIFY that is not there", lambda t: [t.environ("RUM_VERIFY", str(t.folder / "no")), open_study(t.folder)],
     ValueError, "RUM_VERIFY.*list"),
    ("RUM_VERIFY that is no list", lambda t: [t.environ("RUM_VERIFY", __file__), open_study(t.folder)], ValueError,
     "RUM_VERIFY.*list"),
    ("a figure that leaves its folder", lambda t: open_study(t.folder).save(FIGURE, "../a", table=None), ValueError,
     r"'../a'"),
    ("a figure that is not there", lambda t: check.explain(t.folder / "no.json"), FileNotFoundError,
     "there is no.*beside"),
    ("a figure that is empty", explain(""), ValueError, "does not say where a figure comes from"),
    ("a figure that is a list", explain("[]"), ValueError, "does not say where a figure comes from"),
    ("a figure nested too deep", explain("[" * 100_000), ValueError, "does not say where a figure comes from"),
    ("a figure of an unknown profile", explain('{"profile": "x"}'), ValueError, "'x'"),
    ("a figure of a profile that is a list", explain('{"profile": ["x"]}'), ValueError, "does not say where"),
    ("a command that there is not", lambda t: check.main("verrify", "laptop"), ValueError, "'verrify'.*verify"),
    ("a sample that is no number", lambda t: check.main("verify", "laptop", "many"), ValueError, "'many'"),
    ("a profile outside of runs", lambda t: check.main("clean-stale", "../x"), ValueError, r"'\.\./x'"),
    ("a result nested too deep", lambda t: parse(b"[" * 100_000, "key"), ValueError, "cannot be read"),
    ("a result that is a list", lambda t: parse(b"[]", "key"), ValueError, "cannot be read"),
    ("a result without values", lambda t: parse(b'{"identity": {}}', "key"), ValueError, "cannot be read"),
    ("a field that there is not", lambda t: vary(finetune, rate=1), ValueError, "no field rate"),
    ("a function to vary", lambda t: vary(explain, lr=1), TypeError, "frozen dataclass"),
    ("settings of a profile not tuned", lambda t: tuned("labtop"), FileNotFoundError, "'labtop'.*laptop"),
    ("settings that are damaged", lambda t: [(t.folder / "x.json").write_text("[]"), tuned("x", t.folder)], ValueError,
     "x.json.*damaged"),
    ("a profile outside of the folder", lambda t: tuned("../x"), ValueError, r"'\.\./x'"),
    ("nothing to try", lambda t: next(tuning.search({"lr": ()})), ValueError, "nothing to try"),
    ("values to try that are a number", lambda t: next(tuning.search(0.1)), TypeError, "0.1.*values"),
]
