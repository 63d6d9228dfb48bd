"""Every notebook, executed in order and without a display at the profile `smoke`, into a folder that is thrown away."""

import json
import shutil
from collections import Counter
from pathlib import Path

import papermill
import pytest

import rumlib as rum
from rumlib.lab.plan import Plan
from rumlib.lab.results import publish
from rumlib.lab.run import main as paper

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("[0-9]*.ipynb"))
pytestmark = pytest.mark.notebook


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """All results go here: later notebooks read what earlier ones wrote."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("home")
        patch.setenv("RUM_HOME", str(folder))
        patch.setenv("RUM_ENGINE", "serial")
        patch.setenv("MPLBACKEND", "agg")
        yield folder


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs(path, home, monkeypatch):
    monkeypatch.setenv("RUM_NOTEBOOK", path.stem)            # whose cells its kernel asks for
    before = path.read_bytes()
    executed = papermill.execute_notebook(path, home / path.name, parameters=dict(profile="smoke", quiet=True),
                                          kernel_name="python3", cwd=path.parent, progress_bar=False)
    assert path.read_bytes() == before
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.get("name") == "stderr"]       # no bar, and no warning either


def test_every_figure_has_its_numbers_and_its_origin(home):
    folder = home / "figures" / "smoke"
    figures = sorted(folder.glob("*.png"))
    assert len(figures) >= 8
    for figure in figures:
        origin = json.loads(figure.with_suffix(".json").read_text())
        assert {"commit", "seeds", "data", "profile", "forget sets", "versions"} <= set(origin)
        assert origin["profile"] in ("smoke", "smoke-classes")
        assert origin["seeds"] == list(rum.lab.profile(origin["profile"]).seeds)
        lines = figure.with_suffix(".csv").read_text().splitlines()
        assert len(lines) > 1 and "," in lines[0]


def test_the_plan_counts_what_the_notebooks_ask_for(home):
    for name, tasks in Plan(rum.lab.profile("smoke"), None, 1).notebooks.items():
        asked = json.loads((home / "runs/smoke/asked" / f"{name}.json").read_text())["results"]
        planned = Counter(task.kind for task in tasks)
        counted = Counter(kind for kind, *_ in asked)
        assert {kind: count for kind, count in counted.items() if kind in planned} == planned


def test_what_is_published_makes_every_figure_again(home, tmp_path, monkeypatch):
    """All notebooks but the one that trains models itself, in an empty home: no weights, and nothing computed."""
    results, _, missing = publish("smoke", home)
    shutil.copytree(NOTEBOOKS[0].parent, tmp_path / "notebooks")
    monkeypatch.setenv("RUM_HOME", str(tmp_path))
    paper("smoke", "", "", str(results))
    tables = sorted(path.name for path in (home / "figures/smoke").glob("*.csv"))
    assert missing == 0 and tables == sorted(path.name for path in (tmp_path / "figures/smoke").glob("*.csv"))
    assert not [name for name in tables if (home / "figures/smoke" / name).read_bytes()
                != (tmp_path / "figures/smoke" / name).read_bytes()]
    assert not list(tmp_path.glob("runs/*/results"))
