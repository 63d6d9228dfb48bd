"""What `make status` says of a study, after each thing that can happen to its cells."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

import rumlib as rum
from rumlib.lab import check
from rumlib.lab.check import clean_stale, main, survey, table
from rumlib.lab.codehash import Package
from rumlib.lab.memo import CellsFailed, digest_of, notebook

TINY = replace(
    rum.profile("smoke"), name="tiny", options=dict(n=150, n_test=60), make_model=partial(rum.mlp, hidden=(8,)),
    recipe=rum.Recipe(epochs=2, lr=0.1, batch_size=32), seeds=(0, 1))
finetune, relabel = (kind(epochs=1, lr=0.1, batch_size=32) for kind in (rum.Finetune, rum.RandomLabel))
ALGORITHMS = (finetune, relabel, rum.SalUn(relabel), rum.RUM(rum.Shuffled(2), (relabel, rum.Keep())), rum.Keep())


@dataclass(frozen=True)
class Fails(rum.Keep):
    """Always."""

    def __call__(self, model, forget, retain, *, seed=0):
        raise KeyError("nothing")


def small(home, *, profile=TINY, algorithms=ALGORITHMS, named="notebook"):
    """Two originals, two oracles, two runs of each algorithm; asked for by a notebook of that name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUM_ENGINE", "serial")
        patch.setenv("RUM_NOTEBOOK", named)
        study = rum.Study(profile, quiet=True, home=home)
        study.unlearn(rum.Cell(rum.ForgetSet("mine", study.train.index[:10]), algorithm, seed)
                      for algorithm in algorithms for seed in (0, 1))
    return study


def opened(home, profile=TINY):
    return rum.Study(profile, quiet=True, home=home)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    small(home)
    return home


@pytest.fixture
def home(done, tmp_path):
    shutil.copytree(done, tmp_path / "home")
    return tmp_path / "home"


def states(cells):
    return {state: count for state, count in cells["state"].value_counts().items() if count}


def test_all_is_done_after_a_run(home):
    cells = survey(opened(home))
    assert states(cells) == {"done": 2 + 2 + 10} and cells["asked"].all() and (cells["seconds"] > 0).all()
    found = table(cells)
    assert set(found.index) == {"original", "oracle", "run", "all"}
    assert found.loc["all", "done"] == 14 and found.loc["run", "done"] == 10
    assert found.loc["all", "done s"] == pytest.approx(cells["seconds"].sum(), abs=0.05)


def test_a_lost_file_is_missing_at_the_usual_cost(home):
    for path in sorted((home / "runs/tiny/cells/run").glob("*.json"))[:3]:
        path.unlink()
    cells = survey(opened(home))
    assert states(cells) == {"done": 11, "missing": 3}
    usual = cells[(cells["kind"] == "run") & (cells["state"] == "done")]["seconds"].median()
    assert (cells[cells["state"] == "missing"]["seconds"] == usual).all()


def test_a_damaged_file_is_missing(home):
    cut, swapped, other = sorted((home / "runs/tiny/cells/run").glob("*.json"))[:3]
    cut.write_text(cut.read_text()[:-30])
    swapped.write_bytes(other.read_bytes())
    assert states(survey(opened(home))) == {"done": 12, "missing": 2}


def test_a_failed_cell_is_failed_until_it_is_done(home):
    with pytest.raises(CellsFailed):
        small(home, algorithms=(*ALGORITHMS, Fails()))
    cells = survey(opened(home))
    assert states(cells) == {"done": 14, "failed": 2}
    assert set(cells[cells["state"] == "failed"]["why"]) == {"KeyError: 'nothing'"}


def test_what_a_notebook_no_longer_asks_for_is_done_but_unasked(home):
    small(home, named="another", algorithms=(relabel,))
    assert survey(opened(home))["asked"].all()
    manifest = home / "runs/tiny/asked/notebook.json"
    manifest.write_text(json.dumps({"cells": [cell for cell in json.loads(manifest.read_text())["cells"]
                                              if cell[0] != "run"]}))
    cells = survey(opened(home))
    assert states(cells) == {"done": 14} and cells["asked"].sum() == 2 + 2 + 2
    assert table(cells).loc["run", "unasked"] == 8


@pytest.mark.parametrize("change, why", [
    (dict(recipe=replace(TINY.recipe, lr=0.05)), "study.recipe"),
    (dict(make_model=partial(rum.mlp, hidden=(9,))), "study.model.arguments"),
    (dict(options=dict(n=150, n_test=61)), "study.data"),
])
def test_other_data_or_settings_make_all_stale_and_missing(change, why, home):
    other = replace(TINY, **change)
    cells = survey(opened(home, other))
    assert states(cells) == {"stale": 14, "missing": 14}
    assert set(cells[cells["state"] == "stale"]["why"]) == {why}
    assert clean_stale(opened(home, other)) == 14
    assert states(survey(opened(home, other))) == {"missing": 14}
    small(home, profile=other)
    assert states(survey(opened(home, other))) == {"done": 14}


EDITS = {                                                    # cells that an edit makes stale
    "one algorithm": ("algorithms/relabel.py", "return xent(model, mixed)", "return 2 * xent(model, mixed)", 6),
    "a step and an inner": ("algorithms/base.py", "return copy.deepcopy(model).eval()", "return model", 4),
    "a wrapper": ("algorithms/relabel.py", "keep: float = 0.5", "keep: float = 0.4", 2),
    "the runs": ("metrics.py", "return (1 - dS) * (1 - dR) * (1 - dT)", "return (1 - dS) * (1 - dR)", 10),
    "the loop": ("train.py", "optimizer.step()", "optimizer.step(None)", 14),
    "an algorithm that is not run": ("algorithms/gradient.py", "return -xent", "return -2 * xent", 0),
    "an algorithm removed": ("algorithms/relabel.py", "class SalUn:", "class Salun:", 2),
    "docstring": ("algorithms/gradient.py", "Train on with the retain set", "Go on", 0),
}


@pytest.mark.parametrize("file, old, new, stale", EDITS.values(), ids=EDITS)
def test_an_edit_makes_exactly_the_cells_stale_that_depend_on_it(file, old, new, stale, home, tmp_path, monkeypatch):
    package = Path(rum.__file__).parent
    shutil.copytree(package, tmp_path / "rumlib", ignore=shutil.ignore_patterns("__pycache__"))
    text = (tmp_path / "rumlib" / file).read_text()
    assert old in text
    (tmp_path / "rumlib" / file).write_text(text.replace(old, new, 1))
    copy = Package(tmp_path / "rumlib")
    monkeypatch.setattr("rumlib.lab.codehash.PACKAGE", copy)
    monkeypatch.setattr("rumlib.lab.check.PACKAGE", copy)
    check._present.cache_clear()
    cells = survey(opened(home))
    expected = {"done": 14 - stale, "stale": stale, "missing": stale}
    assert states(cells) == {state: count for state, count in expected.items() if count}
    clean_stale(opened(home))
    assert len(list((home / "runs/tiny/cells").glob("*/*.json"))) == 14 - stale
    check._present.cache_clear()


COUNT = """
import test_status as t, json, sys
from pathlib import Path
study = t.small(Path(sys.argv[1]))
print(json.dumps([study.used["computed"], sorted(t.states(t.survey(t.opened(Path(sys.argv[1])))).items())]))
"""


def test_an_edited_package_recomputes_exactly_what_is_stale(home, tmp_path):
    """The same study, run by a copy of the package in which one algorithm was changed; then by this one again."""
    shutil.copytree(Path(rum.__file__).parent, tmp_path / "rumlib", ignore=shutil.ignore_patterns("__pycache__"))
    file, old, new, stale = EDITS["one algorithm"]
    text = (tmp_path / "rumlib" / file).read_text()
    (tmp_path / "rumlib" / file).write_text(text.replace(old, new, 1))
    for package, computed in ((tmp_path, stale), (Path(rum.__file__).parents[1], 0)):
        run = subprocess.run([sys.executable, "-c", COUNT, str(home)], capture_output=True, text=True,
                             cwd=Path(__file__).parent, env={**os.environ, "PYTHONPATH": str(package)})
        assert json.loads(run.stdout) == [computed, [["done", 14], ["stale", stale]]], run.stderr


def test_the_command_prints_a_table_and_removes_only_what_is_stale(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RUM_HOME", str(tmp_path))
    main("smoke")
    assert capsys.readouterr().out == f"No cells in {tmp_path}/runs/smoke/cells yet: make paper PROFILE=smoke\n"
    store = rum.Study("smoke", home=tmp_path).store
    store.write("run", {"what": "run", "code": "of long ago"}, {"tow": 0.5}, seconds=2.0)
    command = [sys.executable, "-m", "rumlib.lab.check", "smoke"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "stale: 1 cells, other code, study" in found and "2.0" in found
    main("smoke", "--clean-stale")
    assert "1 stale cells removed" in capsys.readouterr().out
    assert not store.path("run", digest_of({"what": "run", "code": "of long ago"})).exists()
    with pytest.raises(ValueError, match=r"unknown option --all; there is --clean-stale"):
        main("smoke", "--all")


def test_a_notebook_is_named_by_whoever_runs_it(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/study.py"])
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert notebook() == "study"
    monkeypatch.setenv("JPY_SESSION_NAME", "/home/me/notebooks/mine.ipynb")
    assert notebook() == "mine"
    monkeypatch.setenv("RUM_NOTEBOOK", "03_factors")
    assert notebook() == "03_factors"
