"""What is true of the files themselves: the API, which module imports which, and what the kept notebooks look like."""

import ast
import importlib
import re
import subprocess
import sys
import warnings
from collections import Counter
from itertools import chain
from pathlib import Path

import nbformat
import pytest

import rumlib as rum

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
FILES = [file for file in sorted((ROOT / "rumlib").rglob("*.py")) if file != ROOT / "rumlib" / "__init__.py"]

# A module of the core imports from the floors below its own, or from its own package.
FLOORS = ("device columns", "graphs data plots", "models datasets attacks", "train", "ensemble algorithms metrics",
          "scores audits", "proxies stats", "rum spdgan", "choose")

# -- The API ----------------------------------------------------------------------------------------------------------

# What could be imported from `rumlib` itself before most of it moved into submodules.
OLD = """PROXIES RUM SPDGAN SSD UNSIR Algorithm AutoRUM BadTeacher BoundaryExpand BoundaryShrink Calibrated Card Cell
ClassProjection Curvature Degree Examples Finetune Fisher ForgetSet HeldOut InfluenceUnlearning JensenShannon Keep
L1Sparse LastLayers Memorized NegGrad NegGradPlus Profile RandomK RandomLabel RandomTopK Recipe Refine Retrain SalUn
Score Scrub Shift Shuffled Study TopK Trace acceleration accuracies accuracy analytic_acceleration attack_feature bands
build class_accuracies class_mia confusion contrast cost describe disagreement disagreements entanglement evaluate
features fit fit_many flops forget_ids forgetting_rate forgetting_rate_calibrated forgetting_rate_mia from_dataset
gaussians label_hash layers_reached load matched memorization memorization_from mia_gap mlp mmd neighbours overlap
predict probes profile proxy resnet18 resnet50 retention separability similarity small_resnet stream summarise svc_mia
tow tow_between tow_from_accuracies tow_mia tuned ulira unlearning_degree vary vgg16_bn vit_tiny weight_cosine
weight_distance xent""".split()  # noqa: SIM905


@pytest.mark.parametrize("name", OLD)
def test_an_old_name_still_works_and_says_where_it_lives(name):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = getattr(rum, name)
    home = rum if name in rum.__all__ else importlib.import_module(f"rumlib.{rum.MOVED[name]}")
    assert found is getattr(home, name)
    assert [str(w.message).partition(";")[0] for w in said if w.category is DeprecationWarning] == (
        [] if home is rum else [f"rumlib.{name} is now {home.__name__}.{name}"])


def test_the_top_level_is_small_and_every_name_of_it_is_there():
    assert len(OLD) == 108 and set(OLD) == {*rum.__all__, *rum.MOVED} and len(rum.__all__) <= 41
    assert set(rum.__all__) <= set(dir(rum)) and all(hasattr(rum, name) for name in rum.__all__)
    with pytest.raises(AttributeError, match="no attribute 'study'"):
        rum.study  # noqa: B018


def imported(statement):
    """The modules that a fresh process has imported after this statement."""
    command = [sys.executable, "-c", f"import sys; {statement}; print(*sys.modules)"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()


def test_to_import_the_library_is_to_import_the_science_alone():
    assert "torch" not in imported("import rumlib, rumlib.lab")           # the first use of a name waits for it
    modules = set(imported("import rumlib; rumlib.tow, rumlib.RUM"))
    assert "rumlib.metrics" in modules
    assert not {"rumlib.lab", "rumlib.plots", "rumlib.stats", "matplotlib", "sklearn", "scipy", "joblib"} & modules
    assert {"rumlib.lab", "rumlib.plots"} <= set(imported("import rumlib; rumlib.lab.Study; rumlib.plots"))


# -- Which module imports which ---------------------------------------------------------------------------------------


def imports(file):
    """Modules of rumlib that a file imports, by their dotted names."""
    for node in ast.walk(ast.parse(file.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name} imports relatively"
            inside = node.module in ("rumlib", "rumlib.lab")
            names = [f"{node.module}.{a.name}" for a in node.names] if inside else [node.module]
        yield from (name for name in names if name.startswith("rumlib."))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT / "rumlib")))
def test_imports_go_one_way(file):
    module = file.relative_to(ROOT / "rumlib").parts[0].removesuffix(".py")
    if module == "lab":
        return                                               # may import all of the core
    floors = [floor.split() for floor in FLOORS]
    (own,) = (k for k, floor in enumerate(floors) if module in floor)
    assert {name.split(".")[1] for name in imports(file)} <= {module, *chain(*floors[:own])}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_use_the_one_door_of_the_lab(path):
    assert not re.findall(r"rumlib\.lab\.[a-z]\w*\.|from rumlib\.lab\.\w+ import", path.read_text())


# -- Notebooks --------------------------------------------------------------------------------------------------------


def cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def defined(path):
    return {node.name for cell in cells(path) for node in ast.walk(ast.parse(cell.source))
            if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 5


@notebooks
def test_one_cell_of_literals_holds_the_parameters(path):
    tagged = [cell for cell in cells(path) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    body = ast.parse(tagged[0].source).body
    assert all(isinstance(node, ast.Assign) for node in body)
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in body}
    assert {"profile", "seeds", "quiet"} <= set(values)


@notebooks
def test_imports_are_in_one_cell(path):
    trees = [ast.parse(cell.source) for cell in cells(path)]
    assert sum(any(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(tree)) for tree in trees) == 1


@notebooks
def test_a_notebook_is_kept_with_its_outputs(path):
    code = cells(path)
    counts = [cell.execution_count for cell in code]
    outputs = [output for cell in code for output in cell.outputs]
    assert None not in counts and counts == sorted(set(counts))
    assert 2 * sum(bool(cell.outputs) for cell in code) >= len(code)
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]


@notebooks
def test_a_notebook_does_not_say_where_it_was_made(path):
    assert not re.findall(r"/(?:home|root|Users)/\w+", path.read_text())


@notebooks
def test_a_notebook_claims_something_that_is_checked(path):
    checked = [cell for cell in cells(path) if "# NBVAL_CHECK_OUTPUT" in cell.source]
    assert checked and all(cell.outputs for cell in checked)


@notebooks
def test_no_cell_is_long(path):
    assert all(cell.source.count("\n") < 30 for cell in cells(path))


@notebooks
def test_the_prose_is_finished(path):
    markdown = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    assert not re.search(r"@@|TODO|FIXME|XXX", "\n".join(markdown))


def test_what_two_notebooks_need_is_in_the_library():
    names = Counter(name for path in NOTEBOOKS for name in defined(path))
    assert not [name for name, count in names.items() if count > 1]


# -- What nbval ignores -----------------------------------------------------------------------------------------------


def sanitised(text):
    settings = Path(__file__).with_name("nbval.cfg").read_text()
    rules = re.findall(r"^regex: (.*)$\n^replace: (.*)$", settings, re.MULTILINE)            # as nbval reads it
    assert len(rules) >= 5
    for regex, replacement in rules:
        text = re.sub(regex, replacement, text)
    return text


@pytest.mark.parametrize("text", [
    "ToW 0.801 (n = 8)", "100 models on 70% subsets of 1297 examples", "  low     0.985  0.978  0.992  8",
    "{3: 'holds', 5: 'open'} True False", "Score('memorization', n=1297, 0be5a1f0)", "3 seeds, 5 epochs, 1e-3",
    "band 12, ES 310.2 / 4", "cifar10/ResNet-18"])
def test_nbval_compares_every_claimed_number(text):
    assert sanitised(text) == text


@pytest.mark.parametrize("one, other", [
    ("done on 2025-03-04", "done on 2024-12-31"),
    ("2025-03-04T10:20:30.123", "2024-12-31 01:02:03"),
    ("<function f at 0x7f00aa>", "<function f at 0x1234>"),
    ("kept in /home/one/rum/runs", "kept in /Users/other/rum/runs"),
    ("took 12.3 s of one core", "took 9 s of one core"),
    ("took 120 ms", "took 80.5 ms"),
    ("<Figure size 640x480 with 1 Axes>", "<Figure size 500x300 with 2 Axes>")])
def test_nbval_does_not_compare_what_differs_by_machine(one, other):
    assert sanitised(one) == sanitised(other)
