"""What is true of the files themselves: which module imports which, and what the kept notebooks look like."""

import ast
import re
from collections import Counter
from itertools import chain
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

# A module imports from the floors below its own, or from its own package; those of the ground floor import nothing.
FLOORS = ("names device", "data models plots graphs", "train code timing", "scores algorithms metrics",
          "rum rows spdgan", "choose", "profiles engine tune", "cells", "study card", "status", "plan",
          "paper verify bench")


def imports(file):
    """Modules of rumlib that a file imports, as names on the list of floors."""
    for node in ast.walk(ast.parse(file.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name} imports relatively"
            names = [f"rumlib.{a.name}" for a in node.names] if node.module == "rumlib" else [node.module]
        yield from (name.split(".")[1] for name in names if name.startswith("rumlib."))


@pytest.mark.parametrize("file", [file for file in sorted((ROOT / "rumlib").rglob("*.py"))
                                  if file != ROOT / "rumlib" / "__init__.py"], ids=lambda file: file.stem)
def test_imports_go_one_way(file):
    module = file.relative_to(ROOT / "rumlib").parts[0].removesuffix(".py")
    floors = [floor.split() for floor in FLOORS]
    (own,) = (k for k, floor in enumerate(floors) if module in floor)
    assert set(imports(file)) <= {module, *chain(*floors[:own])}


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
