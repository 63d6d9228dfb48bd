"""Notebooks, executed headless side by side: one run of a profile, or a grid of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import rumlib as rum
from rumlib.lab.memo import digest_of


def notebook(path, *cells, **parameters):
    first = nbformat.v4.new_code_cell("\n".join(f"{k} = {v!r}" for k, v in parameters.items()))
    first.metadata["tags"] = ["parameters"]
    made = nbformat.v4.new_notebook(cells=[first, *map(nbformat.v4.new_code_cell, cells)], metadata={
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})
    nbformat.write(made, path)


def paper(home, *arguments):
    """What `make paper` and `make grid` call."""
    return subprocess.run([sys.executable, "-m", "rumlib.lab.run", *arguments], capture_output=True, text=True,
                          env={**os.environ, "RUM_HOME": str(home), "PYTHONPATH": str(Path(rum.__file__).parents[1])})


@pytest.fixture
def home(tmp_path):
    """Two notebooks that train an original model for each seed; the last one counts what the other has written."""
    (tmp_path / "notebooks").mkdir()
    train = ("import rumlib as rum\nstudy = rum.Study(profile, seeds=seeds, quiet=quiet)\n"
             "study.originals(study.profile.seeds)\nstudy.figures.mkdir(parents=True, exist_ok=True)\n"
             "(study.figures / 'used.txt').write_text(str(len(study.profile.seeds)))")
    count = ("import os\nfrom pathlib import Path\nfolder = Path(os.environ['RUM_FIGURES']) / profile\n"
             "(folder / 'last.txt').write_text((folder / 'used.txt').read_text())")
    for name, cell in (("00_one", train), ("01_last", count)):
        notebook(tmp_path / "notebooks" / f"{name}.ipynb", cell, profile="smoke", seeds=None, quiet=True)
    return tmp_path


@pytest.mark.notebook
def test_a_grid_is_every_profile_with_every_number_of_seeds(home):
    done = paper(home, "smoke smoke-classes", "1 3")
    assert done.returncode == 0, done.stderr
    for profile in ("smoke", "smoke-classes"):
        for seeds in (1, 3):
            folder = home / "runs" / f"{profile}-x{seeds}"
            assert {path.name for path in folder.glob("*.ipynb")} == {"00_one.ipynb", "01_last.ipynb"}
            assert (folder / "figures" / profile / "last.txt").read_text() == str(seeds)
        cells = {path.stem for path in (home / "runs" / profile / "cells" / "original").glob("*.json")}
        assert len(cells) == 3                               # seeds 0 to 2, those of one seed among them
        study = rum.Study(profile, home=home)
        asked = {path.stem: json.loads(path.read_text())["cells"] for path in (
            home / "runs" / profile / "asked").glob("*.json")}
        keys = [["original", digest_of(rum.Study.original.identity(study, seed))] for seed in range(3)]
        assert asked == {"00_one-x1": keys[:1], "00_one-x3": keys}
    assert not (home / "figures").exists()


@pytest.mark.notebook
def test_a_run_on_a_cluster_starts_one_for_all_notebooks_and_each_has_its_own_list(home, monkeypatch):
    monkeypatch.setenv("RUM_ENGINE", "dask")
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    seeds = {"00_one": 0, "01_last": 1}
    for path in (home / "notebooks").glob("*.ipynb"):
        notebook(path, "import os\nfrom pathlib import Path\nimport rumlib as rum\nfrom rumlib.lab.settings import home as find_home\n"
                       f"study = rum.Study(profile, quiet=True)\nstudy.originals([{seeds[path.stem]}])\n"
                       f"(find_home() / '{path.stem}.txt').write_text(os.environ['DASK_SCHEDULER_ADDRESS'])",
                 profile="smoke", seeds=None, quiet=True)
    done = paper(home, "smoke")
    assert done.returncode == 0, done.stderr
    assert (home / "00_one.txt").read_text() == (home / "01_last.txt").read_text()
    asked = {path.stem: json.loads(path.read_text())["cells"] for path in (home / "runs/smoke/asked").glob("*")}
    study = rum.Study("smoke", home=home)
    assert asked == {name: [["original", digest_of(rum.Study.original.identity(study, seed))]]
                     for name, seed in seeds.items()}


@pytest.mark.parametrize("arguments, words", [
    (("labtop",), "unknown profile 'labtop'; choose one of smoke, laptop, "),
    (("smoke", "two"), "SEEDS='2 4'; got 'two'"), (("smoke", "0"), "at least 1 seed; got 0")])
def test_what_cannot_be_run_is_one_line(arguments, words, tmp_path):
    done = paper(tmp_path, *arguments)
    assert done.returncode == 1 and done.stdout == "" and words in done.stderr and done.stderr.count("\n") == 1
