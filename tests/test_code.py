"""Code identity: an edit anywhere in a copy of the package changes exactly what depends on it."""

import linecache
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from joblib.externals.loky.backend.reduction import dumps

import rumlib as rum
from rumlib.lab import Study
from rumlib.lab.codehash import APART, PACKAGE, Package, code_of
from rumlib.lab.keys import codes

ROOT = Path(rum.__file__).parent
COMPUTED = {kind: PACKAGE.kinds[kind] for kind in ("bank", "original", "probed", "oracle", "run")}
NAMED = {name: PACKAGE.find(name) for name in (
    *(name for name in rum.algorithms.__all__ if name not in ("Algorithm", "xent")), "RUM", "Refine", "Shuffled", "mlp",
    "small_resnet", "resnet18")} | COMPUTED
DESCENT = {"BadTeacher", "BoundaryExpand", "BoundaryShrink", "Finetune", "L1Sparse", "LastLayers", "NegGrad",
           "NegGradPlus", "RandomK", "RandomLabel", "RandomTopK", "SalUn", "Scrub", "TopK", "UNSIR"}

EDITS = {
    # what does not count
    "docstring": ("algorithms/gradient.py", "Train on with the retain set", "Go on", set()),
    "docstring of a file": ("train.py", '"""Training models, and', '"""Learning, and', set()),
    "comment": ("train.py", "# what zero_grad does, at a tenth of its time", "# quickly", set()),
    "layout": ("algorithms/base.py", "return F.cross_entropy(model(batch.x), batch.y)",
               "return F.cross_entropy(\n        model(batch.x),\n        batch.y)", set()),
    "new function": ("data.py", "def cut(", "def new(x):\n    return x\n\n\ndef cut(", set()),
    "new model": ("models.py", "def small_resnet(", "def tiny():\n    return mlp()\n\n\ndef small_resnet(", set()),
    "new algorithm": ("algorithms/gradient.py", "@dataclass(frozen=True)\nclass NegGrad(",
                      "class New(Finetune):\n    pass\n\n\n@dataclass(frozen=True)\nclass NegGrad(", set()),
    "new import": ("train.py", "import math", "import bisect\nimport math", set()),
    "variable named like a function": ("metrics.py", "def disagreements(a: nn.Module, b: nn.Module, sets",
                                       "def disagreements(a: nn.Module, b: nn.Module, parts", set()),
    "how data is loaded": ("datasets.py", 'if name == "digits":', 'if name in ("digits", "8x8"):', set()),
    "how results are kept": ("lab/store.py", "indent=1", "indent=2", set()),
    "where work runs": ("lab/engine.py", 'workers == 1', 'workers in (0, 1)', set()),
    "what is made of results": ("lab/tables.py", '"step": row["step"]', '"number": row["step"]', set()),
    "text of an error": ("models.py", 'stem must be "cifar" or', 'the stem must be "cifar" or', set()),
    "text of an error that another calls": ("train.py", "training diverged (", "the training diverged (", set()),
    "annotation": ("models.py", 'classes: int = 10, hidden: tuple', 'classes: float = 10, hidden: tuple', set()),
    "how many are kept in memory": ("lab/computations.py", "maxsize=16", "maxsize=17", set()),
    "how a step is recorded": ("graphs.py", "WARM_UP = ", "WARM_UP = 1 + ", set()),

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
    "helper of two": ("algorithms/weights.py", "of(g).sum(0) / len(examples)", "of(g).sum(0)",
                      {"Fisher", "RandomTopK", "TopK"}),
    "constant": ("algorithms/layers.py", "nn.LayerNorm, ", "",
                 {"LastLayers", "RandomK", "RandomTopK", "TopK", "layers_reached"}),
    "network": ("models.py", "Normalize(0.3, 0.4)", "Normalize(0.3, 0.5)", {"mlp"}),
    "part of networks": ("models.py", "return (x - self.mean) / self.std", "return x - self.mean",
                         {"mlp", "small_resnet", "resnet18", "bank"}),
    "what a name is imported from": ("algorithms/dampen.py", "import torch.nn.functional as F",
                                     "import other.functional as F", {"SSD"}),

    # cells
    "recipe of a proxy": ("proxies.py", "HOLDOUT = Recipe(epochs=30", "HOLDOUT = Recipe(epochs=31", {"probed"}),
    "the oracle": ("lab/computations.py", "fit(study.profile.make_model, kept,", "fit(study.profile.make_model, gone,",
                   {"oracle", "run"}),
    "a helper": ("lab/computations.py", "network.load_state_dict(weights)", "network.load_state_dict({})",
                 {"run"}),
    "a helper of two": ("lab/computations.py", "torch.isin(study.train.index, forget.index))\n\n\n# -- Original",
                        "~torch.isin(study.train.index, forget.index))\n\n\n# -- Original", {"oracle", "run"}),
    "formula": ("metrics.py", "return (1 - dS) * (1 - dR) * (1 - dT)", "return (1 - dS) * (1 - dR)", {"run"}),
    "attack": ("attacks.py", "SVC(C=3", "SVC(C=4", {"oracle", "run"}),
    "stacking": ("ensemble.py", "sum(0).sqrt()", "sum(0)", {"bank"}),
    "the loop": ("train.py", "optimizer.step()", "optimizer.step(None)", DESCENT | {"Retrain", *COMPUTED}),
    "a condition": ("algorithms/gradient.py", 'alpha="[0, 1]"', 'alpha="[0, 1)"', {"NegGradPlus"}),
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


BANKS = ("oracle_bank", "unlearned_bank", "subset_bank", "audits")


@pytest.mark.parametrize("file, old, new, expected", [
    ("lab/banks.py", "clamp(-60, 60)", "clamp(-50, 50)", BANKS[:3]),
    ("lab/banks.py", "FEW = 5", "FEW = 4", ("audits",)),
    ("audits.py", "(bits - 1) - 1)", "(bits - 1))", ("audits",)),
    ("attacks.py", "scatter(1, y, -inf)", "scatter(1, y, 0.0)", BANKS[:3]),
    ("lab/panel.py", "WIDEST = 0.1", "WIDEST = 0.2", ()),    # how the bank is read
])
def test_the_bank_of_models_is_counted_as_all_computations_are(file, old, new, expected, tmp_path):
    copy, others = Package(edited(tmp_path, file, old, new)), ("run", "oracle", "bank", "original")
    assert tuple(kind for kind in (*BANKS, *others)
                 if copy.code(copy.kinds[kind]) != PACKAGE.code(PACKAGE.kinds[kind])) == expected


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
    def given_away(self): return a.TABLE

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
    names = ("by_name", "by_module", "by_new_name", "by_package", "by_annotation", "by_default", "by_decorator",
             "by_local_import", "by_nesting", "by_statement", "by_whole_module", "own_variable", "own_of_inner",
             "either", "Below")
    reached = {name: {n.removeprefix("small.") for n in package.reached(f"small.b.{name}")} - {f"b.{name}"}
               for name in names}
    g = {"a.g", "a.f"}
    assert reached == {
        "by_name": {"a.f"}, "by_module": {"a.f"}, "by_new_name": {"a.LIMIT"}, "by_package": {"a.f"},
        "by_annotation": {"b.Base", *g}, "by_default": {"a.LIMIT"}, "by_decorator": {"a.f"}, "by_local_import": g,
        "by_nesting": g, "by_statement": {"loose.h"}, "by_whole_module": {"loose", "loose.h"},
        "own_variable": set(), "own_of_inner": {"a.f"}, "either": {"b.fast", "a.f"},
        "Below": {"b.Base", "a.LIMIT", "a.TABLE", *g}}


SMALL = {"__init__": "", "a": """
'''A file.'''
import warnings
from small.b import scale, shared

LIMIT, OTHER = 3, 4

def loss(x: int, n=2) -> float:
    '''What it is.'''
    if x < LIMIT:
        raise ValueError(f"{x} is too small")
    warnings.warn("slow")
    return scale(x) + (loss(x - 1) if n else even(x))

def even(x): return odd(x - 1)
def odd(x): return even(x - 1)
def unrelated(x): return shared(x)
""", "b": """
def scale(x): return 2 * shared(x)
def shared(x): return x + 1
"""}


def small(folder, **changes):
    """A package of two files, with changes (old, new) to their texts."""
    folder = folder / "small"
    folder.mkdir()
    files = dict(SMALL)
    for name, edits in changes.items():
        for old, new in edits:
            assert old in files.get(name, "") or not old
            files[name] = files[name].replace(old, new) if old else files.get(name, "") + new
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return Package(folder)


SAME = {
    "docstring": dict(a=[("What it is.", "What it was.")]),
    "comment": dict(a=[("    return scale", "    # a reason\n    return scale")]),
    "text of an error": dict(a=[("is too small", "is smaller than {LIMIT}")]),
    "text of a warning": dict(a=[('"slow"', '"very slow", stacklevel=2')]),
    "annotation": dict(a=[("x: int, n=2) -> float", "x, n: int = 2)")]),
    "renamed helper": dict(a=[("scale", "double")], b=[("scale", "double")]),
    "renamed constant": dict(a=[("LIMIT", "LEAST")]),
    "renamed import": dict(a=[("import scale, shared", "import scale as s, shared"),
                              ("return scale(x)", "return s(x)")]),
    "import of the module": dict(a=[("import scale, shared", "import shared\nfrom small import b"),
                                    ("return scale(x)", "return b.scale(x)")]),
    "moved helper": dict(a=[("import scale, shared", "import shared\nfrom small.c import scale")],
                         b=[("def scale(x): return 2 * shared(x)\n", "")],
                         c=[("", "from small.b import shared\n\ndef scale(x): return 2 * shared(x)\n")]),
    "new definition": dict(b=[("", "def new(x): return scale(x)\n")]),
    "another order in the file": dict(b=[("def scale(x): return 2 * shared(x)\n", ""),
                                         ("", "def scale(x): return 2 * shared(x)\n")]),
}
OTHER = {
    "a number": dict(a=[("LIMIT, OTHER = 3", "LIMIT, OTHER = 5")]),
    "the other one of two constants": dict(a=[("if x < LIMIT", "if x < OTHER")]),
    "a helper": dict(b=[("2 * shared", "3 * shared")]),
    "a helper of a helper": dict(b=[("x + 1", "x + 2")]),
    "a default": dict(a=[("n=2", "n=0")]),
    "another helper of the same shape": dict(a=[("scale(x)", "shared(x)")]),
    "what goes round": dict(a=[("def odd(x): return even(x - 1)", "def odd(x): return odd(x - 1)")]),
    "a branch": dict(a=[("(loss(x - 1) if n else even(x))", "(even(x) if n else loss(x - 1))")]),
    "the kind of an error": dict(a=[("raise ValueError", "raise TypeError")]),
}


@pytest.mark.parametrize("changes", SAME.values(), ids=SAME)
def test_what_changes_no_result_changes_no_hash(changes, tmp_path):
    (tmp_path / "then").mkdir()
    then, now = small(tmp_path / "then"), small(tmp_path, **changes)
    assert then.code("small.a.loss") == now.code("small.a.loss")
    assert then.code("small.a.unrelated") == now.code("small.a.unrelated")


@pytest.mark.parametrize("changes", OTHER.values(), ids=OTHER)
def test_what_changes_a_result_changes_its_hash(changes, tmp_path):
    (tmp_path / "then").mkdir()
    assert small(tmp_path / "then").code("small.a.loss") != small(tmp_path, **changes).code("small.a.loss")


def test_a_refactored_copy_of_the_package_has_the_same_hashes(before, tmp_path):
    """A file moves, a helper gets another name, an error another text, a docstring another sentence."""
    folder = edited(tmp_path, "data.py", "def batch_count(n: int, size: int) -> int:\n    \"\"\"How many",
                    "def batch_count(n: int, size: int) -> int:\n    \"\"\"The number of")
    (folder / "stats.py").rename(folder / "tables.py")
    (folder / "algorithms/weights.py").rename(folder / "gradients.py")
    for file in folder.rglob("*.py"):
        text = file.read_text().replace("rumlib.stats", "rumlib.tables")
        text = text.replace("rumlib.algorithms.weights", "rumlib.gradients").replace("batch_count", "number_of_batches")
        file.write_text(text.replace("training diverged (", "the weights are no numbers ("))
    copy = Package(folder)
    assert {name: copy.code(copy.kinds.get(name) or copy.find(name)) for name in NAMED} == before


@pytest.mark.parametrize("edit", ["docstring", "comment", "body", "where work runs"])
def test_the_hash_of_the_package_is_of_all_its_files(edit, tmp_path):
    assert Package(edited(tmp_path / "now", *EDITS[edit][:3])).whole != PACKAGE.whole
    shutil.copytree(ROOT, tmp_path / "then" / "rumlib", ignore=shutil.ignore_patterns("__pycache__"))
    assert Package(tmp_path / "then" / "rumlib").whole == PACKAGE.whole


def test_an_identity_tells_all_code_that_it_names():
    identity = {"what": "run", "code": "1", "study": {"model": {"function": "mlp", "code": "2", "arguments": "mlp()"}},
                "arguments": {"algorithm": {"class": "RUM", "code": "3", "fields": {
                    "steps": [{"class": "Mine", "code": "4", "fields": {"code": 0.5}}]}}, "seed": 0}}
    assert codes(identity) == {"run": "1", "mlp": "2", "RUM": "3", "Mine": "4"}


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
    model = rum.fit(partial(rum.models.small_resnet, shape=(1, 4, 4), widths=(4, 8)), planted.train,
                    rum.Recipe(epochs=1))
    sys.setprofile(watch)
    try:
        rum.evaluate(algorithm(model, forget, retain, seed=0), forget, retain, test)
    finally:
        sys.setprofile(None)
    called -= {"rumlib.models.Normalize.forward"}            # of the network, which has an identity of its own
    called = {name for name in called if not name.startswith((*APART, "rumlib.__getattr__"))}
    assert len(called) > 30
    assert not {name for name in called if name not in known and name.rpartition(".")[0] not in known}


def test_a_definition_that_is_not_there_is_refused():
    with pytest.raises(KeyError, match="nothing"):
        PACKAGE.code("rumlib.train.nothing")


# -- Code of others ---------------------------------------------------------------------------------------------------

MINE = '''
import rumlib as rum
from dataclasses import dataclass

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
    return rum.models.mlp(hidden=(4,))

def computed(study, number):
    return {"value": helper(number) + one()}

def one():
    return 1.0
'''


def mine(old="", new=""):
    """What a notebook defines, with one edit."""
    assert old in MINE
    source, names = MINE.replace(old, new, 1) if old else MINE, {"__name__": "__main__"}
    cell = f"<cell {hash(source)}>"                          # as IPython does, so that the source can be read
    linecache.cache[cell] = (len(source), None, source.splitlines(keepends=True), cell)
    exec(compile(source, cell, "exec"), names)
    return names


@pytest.mark.parametrize("old, new, same", [
    ("", "", True),
    ('"""Doubles."""', '"""Twice."""', True),
    ("STRENGTH = 2.0", "STRENGTH = 2.5", False),
    ('NAMES = {"a", ', 'NAMES = {', False),
    ("return STRENGTH * x", "return STRENGTH + x", False),
    ("return -x", "return x", True),
    ("else rum.xent(model, retain)", "else rum.metrics.disagreement(model, retain)", False),
    ("weight: float = 1.0", "weight: float = 1.5", False),
    ("class Mine(rum.Finetune)", "class Mine(rum.L1Sparse)", False),
], ids=["nothing", "docstring", "constant", "set", "helper", "function not called", "function of rumlib", "default",
        "base"])
def test_an_edit_of_a_user_s_own_code(old, new, same):
    assert (code_of(mine(old, new)["Mine"]) == code_of(mine()["Mine"])) == same


@pytest.mark.parametrize("old, new, value", [
    ("", "", 7.0), ("+ one()}", "+ 2 * one()}", 8.0), ("return 1.0", "return 3.0", 9.0),
    ("return STRENGTH * x", "return x", 4.0), ("return -x", "return x", 7.0)])
def test_a_user_s_own_function(old, new, value, tmp_path):
    """Computed once, and again if its code or a function that it needs was edited."""
    study = Study("smoke", quiet=True, home=tmp_path)
    first = mine()["computed"]
    assert [study.memoize(first, [(3,)])[0]["value"] for _ in range(2)] == [7.0, 7.0] and study.used["computed"] == 1
    study = Study("smoke", quiet=True, home=tmp_path)
    assert study.memoize(mine(old, new)["computed"], [(3,)])[0]["value"] == value
    assert study.used["computed"] == (old not in ("", "return -x"))


def test_code_without_a_source_is_refused():
    names = {"__name__": "__main__"}
    exec("def hidden(): pass\npair = (lambda: 1), (lambda: 2)", names)
    with pytest.raises(TypeError, match=r"hidden has no source that could be read.*define it in a"):
        code_of(names["hidden"])


def test_two_lambdas_in_one_statement_are_refused():
    first, _ = (lambda: 1), (lambda: 2)
    with pytest.raises(TypeError, match="two lambdas in one statement cannot be told apart; define them with def"):
        code_of(first)


def test_a_user_s_code_depends_on_what_it_uses_of_the_package(monkeypatch, tmp_path):
    known = code_of(mine()["Mine"])
    for edit, same in (("body", True), ("base", False)):
        copy = Package(edited(tmp_path / edit.split()[0], *EDITS[edit][:3]))
        monkeypatch.setattr("rumlib.lab.codehash.PACKAGE", copy)
        assert (code_of(mine()["Mine"]) == known) == same


def test_a_user_s_code_is_the_same_in_every_process():
    """Sent to a process with another order of sets, as a notebook sends it to its workers."""
    names = mine()
    here = [code_of(names[name]) for name in ("Mine", "make_model")]
    sent = [bytes(dumps(names[name])).hex() for name in ("Mine", "make_model")]
    script = ("import pickle, sys; from rumlib.lab.codehash import code_of\n"
              "print(*(code_of(pickle.loads(bytes.fromhex(part))) for part in sys.argv[1:]))")
    for seed in ("1", "2"):
        found = subprocess.run([sys.executable, "-c", script, *sent], capture_output=True,
                               text=True, check=True, env={**os.environ, "PYTHONHASHSEED": seed})
        assert found.stdout.split() == here


def test_a_hash_is_the_same_on_every_python():
    """The syntax trees of f-strings and what `dataclass` puts into a class differ; these hashes were made on 3.11."""
    names = {"__name__": "__main__"}
    source = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Shown:
    width: int = 3

    def __call__(self, x):
        return f"{x!r:>{self.width}} {'a'}"

def shown(x):
    return Shown()(x)
"""
    linecache.cache["<shown>"] = (len(source), None, source.splitlines(keepends=True), "<shown>")
    exec(compile(source, "<shown>", "exec"), names)
    assert [code_of(names[name]) for name in ("Shown", "shown")] == ["bffd75fc2024d900", "5bcff3b51ce62d63"]


def test_networks_of_a_library_have_an_identity():
    from torchvision.models import resnet18, resnet34

    assert code_of(resnet18) == code_of(resnet18) != code_of(resnet34)
