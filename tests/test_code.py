"""Code identity: an edit anywhere in a copy of the package changes exactly what depends on it."""

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from joblib.externals.loky.backend.reduction import dumps

import rumlib as rum
from rumlib.lab.codehash import PACKAGE, Package, code_of

ROOT = Path(rum.__file__).parent
COMPUTED = {name: f"rumlib.lab.study.Study.{name}" for name in ("bank", "original", "probed", "oracle", "run")}
NAMED = {name: f"{getattr(rum, name).__module__}.{name}" for name in (
    *(name for name in rum.algorithms.__all__ if name not in ("Algorithm", "xent")), "RUM", "Refine", "Shuffled", "mlp",
    "small_resnet", "resnet18")} | COMPUTED
DESCENT = {"BadTeacher", "BoundaryExpand", "BoundaryShrink", "Finetune", "L1Sparse", "LastLayers", "NegGrad",
           "NegGradPlus", "RandomK", "RandomLabel", "RandomTopK", "SalUn", "Scrub", "TopK", "UNSIR"}

EDITS = {
    # what does not count
    "docstring": ("algorithms/gradient.py", "Train on with the retain set", "Go on", set()),
    "docstring of a file": ("train.py", '"""Training, and', '"""Learning, and', set()),
    "comment": ("train.py", "# what zero_grad does, at a tenth of its time", "# quickly", set()),
    "layout": ("algorithms/base.py", "return F.cross_entropy(model(batch.x), batch.y)",
               "return F.cross_entropy(\n        model(batch.x),\n        batch.y)", set()),
    "new function": ("train.py", "def cut(", "def new(x):\n    return x\n\n\ndef cut(", set()),
    "new model": ("models.py", "def small_resnet(", "def tiny():\n    return mlp()\n\n\ndef small_resnet(", set()),
    "new algorithm": ("algorithms/gradient.py", "@dataclass(frozen=True)\nclass NegGrad(",
                      "class New(Finetune):\n    pass\n\n\n@dataclass(frozen=True)\nclass NegGrad(", set()),
    "new import": ("train.py", "import math", "import bisect\nimport math", set()),
    "variable named like a function": ("metrics.py", "def disagreements(a: nn.Module, b: nn.Module, sets",
                                       "def disagreements(a: nn.Module, b: nn.Module, parts", set()),
    "how data is loaded": ("data.py", 'if name == "digits":', 'if name in ("digits", "8x8"):', set()),
    "how cells are kept": ("cells.py", "indent=1", "indent=2", set()),
    "where work runs": ("engine.py", 'workers == 1', 'workers in (0, 1)', set()),
    "what is made of cells": ("study.py", '"algorithm": name, "epochs": budget}', '"algorithm": name, "e": budget}',
                              set()),

    # algorithms
    "body": ("algorithms/gradient.py", "(1 - self.alpha) * xent(model, forget)", "self.alpha * xent(model, forget)",
             {"NegGradPlus"}),
    "inner of others": ("algorithms/relabel.py", "return xent(model, mixed)", "return 2 * xent(model, mixed)",
                        {"RandomLabel"}),
    "base": ("algorithms/gradient.py", "return xent(model, retain)\n\n\n@dataclass(frozen=True)\nclass L1Sparse",
             "return 2 * xent(model, retain)\n\n\n@dataclass(frozen=True)\nclass L1Sparse", {"Finetune", "LastLayers"}),
    "default of a field": ("algorithms/base.py", "momentum: float = 0.9", "momentum: float = 0.8", DESCENT),
    "decorator": ("algorithms/gradient.py", "@dataclass(frozen=True)\nclass NegGrad(",
                  "@dataclass(frozen=True, eq=False)\nclass NegGrad(", {"NegGrad"}),
    "helper of two": ("algorithms/influence.py", "def squared_gradients(model", "def squared_gradients(net",
                      {"Fisher", "RandomTopK", "TopK"}),
    "constant": ("algorithms/layers.py", "nn.LayerNorm, ", "",
                 {"LastLayers", "RandomK", "RandomTopK", "TopK", "layers_reached"}),
    "network": ("models.py", "Normalize(0.3, 0.4)", "Normalize(0.3, 0.5)", {"mlp"}),
    "part of networks": ("models.py", "return (x - self.mean) / self.std", "return x - self.mean",
                         {"mlp", "small_resnet", "resnet18", "bank"}),
    "what a name is imported from": ("algorithms/dampen.py", "import torch.nn.functional as F",
                                     "import other.functional as F", {"SSD"}),

    # cells
    "recipe of a proxy": ("scores.py", "HOLDOUT = Recipe(epochs=30", "HOLDOUT = Recipe(epochs=31", {"probed"}),
    "the oracle": ("study.py", "with cost() as spent:\n            model = fit(self.profile.make_model, kept",
                   "with cost() as spent:\n            model = fit(self.profile.make_model, gone", {"oracle", "run"}),
    "method reached by self": ("study.py", "model.load_state_dict(weights)", "model.load_state_dict({})", {"run"}),
    "method reached by two": ("study.py", "torch.isin(self.train.index, forget.index))\n\n    def forget_set",
                              "~torch.isin(self.train.index, forget.index))\n\n    def forget_set", {"oracle", "run"}),
    "formula": ("metrics.py", "return (1 - dS) * (1 - dR) * (1 - dT)", "return (1 - dS) * (1 - dR)", {"run"}),
    "attack": ("metrics.py", "SVC(C=3", "SVC(C=4", {"oracle", "run"}),
    "stacking": ("train.py", "sum(0).sqrt()", "sum(0)", DESCENT | {"Retrain", *COMPUTED}),
    "the loop": ("train.py", "optimizer.step()", "optimizer.step(None)", DESCENT | {"Retrain", *COMPUTED}),
}


def edited(folder, file, old, new):
    """A copy of the package with one edit."""
    shutil.copytree(ROOT, folder / "rumlib", ignore=shutil.ignore_patterns("__pycache__"))
    text = (folder / "rumlib" / file).read_text()
    assert text.count(old) >= 1
    (folder / "rumlib" / file).write_text(text.replace(old, new, 1))
    return folder / "rumlib"


@pytest.fixture(scope="module")
def before():
    return {name: PACKAGE.code(full) for name, full in NAMED.items()}


@pytest.mark.parametrize("file, old, new, expected", EDITS.values(), ids=EDITS)
def test_an_edit_changes_what_depends_on_it_and_nothing_else(file, old, new, expected, before, tmp_path):
    copy = Package(edited(tmp_path, file, old, new))
    assert {name for name, full in NAMED.items() if copy.code(full) != before[name]} == expected


def test_what_a_small_package_reaches(tmp_path):
    """Every way of naming a definition, one by one."""
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "__init__.py").write_text("from small.a import f as exported\n")
    (folder / "a.py").write_text("def f(x=1):\n    return x\n\ndef g():\n    return f\n\nLIMIT = 3\nTABLE = [g]\n")
    (folder / "loose.py").write_text("import sys\nsys.setrecursionlimit(100)\ndef h():\n    pass\n")
    (folder / "b.py").write_text('''
import small
import small.a as renamed
from small import a, loose
from small.a import LIMIT as MOST, f, g

class Base:
    def of_base(self): return g()

class Below(Base):
    kept = MOST
    def own(self): return self.kept
    def inherited(self): return self.of_base()
    def above(self): return super().of_base()
    def given_away(self): return print(self)
    def other(self): return a.TABLE

def by_name(): return f()
def by_module(): return a.f()
def by_new_name(): return renamed.LIMIT
def by_package(): return small.exported()
def by_annotation(x: Base): pass
def by_default(x=MOST): pass
def by_decorator():
    @f
    def inner(): pass
def by_local_import():
    from small.a import g as mine
    return mine()
def by_nesting(): return lambda: [g() for _ in ()]
def by_statement(): return loose.h()
def by_whole_module(): return print(loose)
def own_variable(f):
    g = f
    return g
def own_of_inner():
    def inner(f): return f
    return f
try:
    import fast
except ImportError:
    fast = f
def either(): return fast
''')
    package = Package(folder)
    reached = {name: {n.removeprefix("small.") for n in package.reached(f"small.b.{name}")} - {f"b.{name}"}
               for name in ("by_name", "by_module", "by_new_name", "by_package", "by_annotation", "by_default",
                            "by_decorator", "by_local_import", "by_nesting", "by_statement", "by_whole_module",
                            "own_variable", "own_of_inner", "either", "Below.own", "Below.inherited", "Below.above",
                            "Below.given_away", "Below.other")}
    g = {"a.g", "a.f"}
    assert reached == {
        "by_name": {"a.f"}, "by_module": {"a.f"}, "by_new_name": {"a.LIMIT"}, "by_package": {"a.f"},
        "by_annotation": {"b.Base", *g}, "by_default": {"a.LIMIT"}, "by_decorator": {"a.f"}, "by_local_import": g,
        "by_nesting": g, "by_statement": {"loose.h", "loose."}, "by_whole_module": {"loose", "loose.h", "loose."},
        "own_variable": set(), "own_of_inner": {"a.f"}, "either": {"b.fast", "a.f"},
        "Below.own": {"b.Below.kept", "a.LIMIT"}, "Below.inherited": {"b.Base.of_base", *g},
        "Below.above": {"b.Base", *g}, "Below.given_away": {"b.Below", "b.Base", "a.LIMIT", "a.TABLE", *g},
        "Below.other": {"a.TABLE", *g}}


@pytest.mark.parametrize("edit, same", [("docstring", True), ("comment", True), ("layout", True), ("body", False),
                                        ("new function", False), ("where work runs", False)])
def test_the_hash_of_the_package_is_of_all_its_code(edit, same, tmp_path):
    assert (Package(edited(tmp_path, *EDITS[edit][:3])).whole == PACKAGE.whole) == same


def test_what_runs_is_among_what_was_reached(planted):
    """Seen from the other side: no function of the package is called that the files did not show to be reached."""
    known = set().union(*(PACKAGE.reached(NAMED[name]) for name in ("RUM", "Shuffled", "SalUn", "RandomLabel", "run")))
    called = set()

    def watch(frame, event, _):
        name = f"{frame.f_globals.get('__name__')}.{frame.f_code.co_qualname.partition('.<locals>')[0]}"
        if event == "call" and name.startswith("rumlib.") and "<" not in name and "__create_fn__" not in name:
            called.add(name)

    forget, retain, test = planted.forget, planted.retain, planted.test
    algorithm = rum.RUM(rum.Shuffled(2), (rum.SalUn(rum.RandomLabel(epochs=1)),) * 2)
    model = rum.fit(partial(rum.small_resnet, shape=(1, 4, 4), widths=(4, 8)), planted.train, rum.Recipe(epochs=1))
    sys.setprofile(watch)
    try:
        rum.evaluate(algorithm(model, forget, retain, seed=0), forget, retain, test)
    finally:
        sys.setprofile(None)
    called -= {"rumlib.models.Normalize.forward"}            # of the network, which has an identity of its own
    assert len(called) > 30
    assert not {name for name in called if name not in known and name.rpartition(".")[0] not in known}


def test_a_definition_that_is_not_there_is_refused():
    with pytest.raises(KeyError, match="nothing"):
        PACKAGE.code("rumlib.train.nothing")


# -- Code of others ---------------------------------------------------------------------------------------------------

MINE = '''
import rumlib as rum
from dataclasses import dataclass
from rumlib.lab.memo import memoized

STRENGTH = 2.0
NAMES = {"a", "b", "c", "d", "e"}

def helper(x):
    """Doubles."""
    return STRENGTH * x

def other(x):
    return -x

@dataclass(frozen=True)
class Mine(rum.Finetune):
    """My own."""
    weight: float = 1.0

    def loss(self, model, original, forget, retain):
        return helper(rum.xent(model, retain)) if "a" in NAMES else rum.xent(model, retain)

def make_model():
    return rum.mlp(hidden=(4,))

class MyStudy(rum.Study):
    """With a kind of cell of its own."""

    @memoized
    def double(self, number: int) -> dict:
        return {"value": helper(number) + self.one()}

    def one(self):
        return 1.0
'''


def mine(old="", new=""):
    """What a notebook defines, with one edit."""
    assert old in MINE
    names = {"__name__": "__main__"}
    exec(compile(MINE.replace(old, new, 1) if old else MINE, "<cell>", "exec"), names)
    return names


@pytest.mark.parametrize("old, new, same", [
    ("", "", True),
    ('"""Doubles."""', '"""Twice."""', True),
    ("STRENGTH = 2.0", "STRENGTH = 2.5", False),
    ('NAMES = {"a", ', 'NAMES = {', False),
    ("return STRENGTH * x", "return STRENGTH + x", False),
    ("return -x", "return x", True),
    ("else rum.xent(model, retain)", "else rum.disagreement(model, retain)", False),
    ("weight: float = 1.0", "weight: float = 1.5", False),
    ("class Mine(rum.Finetune)", "class Mine(rum.L1Sparse)", False),
], ids=["nothing", "docstring", "constant", "set", "helper", "function not called", "function of rumlib", "default",
        "base"])
def test_an_edit_of_a_user_s_own_code(old, new, same):
    assert (code_of(mine(old, new)["Mine"]) == code_of(mine()["Mine"])) == same


@pytest.mark.parametrize("old, new, value", [
    ("", "", 7.0), ("self.one()}", "2 * self.one()}", 8.0), ("return 1.0", "return 3.0", 9.0),
    ("return STRENGTH * x", "return x", 4.0), ("return -x", "return x", 7.0)])
def test_a_user_s_own_kind_of_cell(old, new, value, tmp_path):
    """Computed once, and again if its code, a method or a function that it needs was edited."""
    first = mine()["MyStudy"]("smoke", quiet=True, home=tmp_path)
    assert first.double(3)["value"] == first.double(3)["value"] == 7.0 and first.used["computed"] == 1
    study = mine(old, new)["MyStudy"]("smoke", quiet=True, home=tmp_path)
    assert study.double(3)["value"] == value
    assert study.used["computed"] == (old not in ("", "return -x"))


def test_a_user_s_code_depends_on_what_it_uses_of_the_package(monkeypatch, tmp_path):
    known = code_of(mine()["Mine"])
    for edit, same in (("body", True), ("base", False)):
        copy = Package(edited(tmp_path / edit.split()[0], *EDITS[edit][:3]))
        monkeypatch.setattr("rumlib.lab.codehash.PACKAGE", copy)
        assert (code_of(mine()["Mine"]) == known) == same


def test_a_user_s_code_is_the_same_in_every_process():
    """Sent to a process with another order of sets, as a notebook sends it to its workers."""
    names = mine()
    sent = [bytes(dumps(names[name])).hex() for name in ("Mine", "make_model")]
    script = ("import pickle, sys; from rumlib.lab.codehash import code_of\n"
              "print(*(code_of(pickle.loads(bytes.fromhex(part))) for part in sys.argv[1:]))")
    for seed in ("1", "2"):
        found = subprocess.run([sys.executable, "-c", script, *sent], capture_output=True,
                               text=True, check=True, env={**os.environ, "PYTHONHASHSEED": seed})
        assert found.stdout.split() == [code_of(names["Mine"]), code_of(names["make_model"])]


def test_networks_of_a_library_have_an_identity():
    from torchvision.models import resnet18, resnet34

    assert code_of(resnet18) == code_of(resnet18) != code_of(resnet34)
