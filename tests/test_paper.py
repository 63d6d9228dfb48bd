"""Notebooks, executed headless side by side: one run of a profile, or a grid of them."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from papermill.exceptions import PapermillExecutionError

import rumlib as rum
from rumlib.lab import Study, files, run
from rumlib.lab.computations import original
from rumlib.lab.keys import digest_of


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
    """Two notebooks that train an original model for each seed; that of the claims counts what the other wrote."""
    (tmp_path / "notebooks").mkdir()
    train = ("from rumlib.lab import Study\nstudy = Study(profile, seeds=seeds, quiet=quiet)\n"
             "study.originals(study.profile.seeds)\nstudy.figures.mkdir(parents=True, exist_ok=True)\n"
             "(study.figures / 'used.txt').write_text(str(len(study.profile.seeds)))")
    count = ("import os\nfrom pathlib import Path\nfolder = Path(os.environ['RUM_FIGURES']) / profile\n"
             "(folder / 'last.txt').write_text((folder / 'used.txt').read_text())")
    for name, cell in (("00_one", train), ("01_claims", count)):
        notebook(tmp_path / "notebooks" / f"{name}.ipynb", cell, profile="smoke", seeds=None, quiet=True)
    return tmp_path


@pytest.mark.notebook
def test_a_grid_is_every_profile_with_every_number_of_seeds(home):
    done = paper(home, "smoke smoke-classes", "1 3")
    assert done.returncode == 0, done.stderr
    for profile in ("smoke", "smoke-classes"):
        for seeds in (1, 3):
            folder = home / "runs" / f"{profile}-x{seeds}"
            assert {path.name for path in folder.glob("*.ipynb")} == {"00_one.ipynb", "01_claims.ipynb"}
            assert (folder / "figures" / profile / "last.txt").read_text() == str(seeds)
        cells = {path.stem for path in (home / "runs" / profile / "results" / "original").glob("*.json")}
        assert len(cells) == 3                               # seeds 0 to 2, those of one seed among them
        study = Study(profile, home=home)
        asked = {path.stem: [one[:2] for one in json.loads(path.read_text())["results"]] for path in (
            home / "runs" / profile / "asked").glob("*.json")}
        keys = [["original", digest_of(original.identity(study, seed))] for seed in range(3)]
        assert asked == {"00_one-x1": keys[:1], "00_one-x3": keys}
    assert not (home / "figures").exists()


@pytest.mark.notebook
def test_a_run_on_a_cluster_starts_one_for_all_notebooks_and_each_has_its_own_list(home, monkeypatch):
    monkeypatch.setenv("RUM_ENGINE", "dask")
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    seeds = {"00_one": 0, "01_claims": 1}
    for path in (home / "notebooks").glob("*.ipynb"):
        notebook(path, "import os\nfrom pathlib import Path\nfrom rumlib.lab import Study\n"
                       "from rumlib.lab.settings import home as find_home\n"
                       f"study = Study(profile, quiet=True)\nstudy.originals([{seeds[path.stem]}])\n"
                       f"(find_home() / '{path.stem}.txt').write_text(os.environ['DASK_SCHEDULER_ADDRESS'])",
                 profile="smoke", seeds=None, quiet=True)
    done = paper(home, "smoke")
    assert done.returncode == 0, done.stderr
    assert (home / "00_one.txt").read_text() == (home / "01_claims.txt").read_text()
    asked = {path.stem: [one[:2] for one in json.loads(path.read_text())["results"]]
             for path in (home / "runs/smoke/asked").glob("*")}
    study = Study("smoke", home=home)
    assert asked == {name: [["original", digest_of(original.identity(study, seed))]]
                     for name, seed in seeds.items()}


def test_the_notebook_of_the_claims_comes_last_whatever_its_number(home, monkeypatch):
    count = (home / "notebooks/01_claims.ipynb").rename(home / "notebooks/00_claims.ipynb")
    (home / "notebooks/00_one.ipynb").rename(home / "notebooks/03_one.ipynb")
    called = []
    monkeypatch.setenv("RUM_HOME", str(home))
    monkeypatch.setattr(run.Run, "execute", lambda self, source, place: called.append(source.name))
    run.main("smoke")
    assert called == ["03_one.ipynb", count.name]


@pytest.mark.parametrize("arguments, words", [
    (("labtop",), "unknown profile 'labtop'; choose one of smoke, laptop, "),
    (("smoke", "two"), "SEEDS='2 4'; got 'two'"), (("smoke", "0"), "at least 1 seed; got 0")])
def test_what_cannot_be_run_is_one_line(arguments, words, tmp_path, monkeypatch):
    monkeypatch.setenv("RUM_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=words) as caught:
        run.main(*arguments)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


# -- What a run tells at the terminal ---------------------------------------------------------------------------------


@pytest.fixture
def one(tmp_path, monkeypatch):
    """A run of two notebooks that are not executed: `one.does` is called instead."""
    (tmp_path / "notebooks").mkdir()
    for name in ("00_one", "01_claims"):
        notebook(tmp_path / "notebooks" / f"{name}.ipynb", profile="smoke")
    monkeypatch.setenv("RUM_HOME", str(tmp_path))
    found = SimpleNamespace(home=tmp_path, folder=tmp_path / "runs/smoke", does=lambda self, source, place=0: None)
    monkeypatch.setattr(run.Run, "execute", lambda *arguments: found.does(*arguments))
    return found


@pytest.mark.parametrize("path", [
    "notebooks/00_one.ipynb", "figures/smoke/a.png", "figures/laptop/b.csv", "runs/smoke/01_claims.ipynb",
    "runs/smoke/results/original/1.json", "runs/smoke-classes/results/run/2.json", "published/manifest.json"])
def test_what_has_not_changed_is_not_run_again(one, path, capsys):
    executed = []
    one.does = lambda self, source, place=0: executed.append(source.stem)
    for name in ("figures/smoke/a.png", "figures/laptop/b.csv", "runs/smoke/01_claims.ipynb",
                 "runs/smoke/results/original/1.json", "runs/smoke-classes/results/run/2.json"):
        (one.home / name).parent.mkdir(parents=True, exist_ok=True)
        (one.home / name).write_text("as it was")
    runs = [run.Run("smoke", None, one.home)]
    if path.startswith("published"):
        (one.home / "published").mkdir()
        (one.home / path).write_text("as it was")
        runs = [run.Run("smoke", None, one.home, (("RUM_FROM", str(one.home / "published")),))]
    for _ in range(2):
        run.execute(runs, one.home)
    assert executed == ["00_one", "01_claims"] and "nothing has changed" in capsys.readouterr().out
    changed = one.home / path
    changed.unlink() if "results" in path else changed.write_bytes(changed.read_bytes() + b" ")
    run.execute(runs, one.home)
    assert executed == 2 * ["00_one", "01_claims"] and "nothing has changed" not in capsys.readouterr().out


def raising(problem):
    def does(*_):
        raise problem
    return does


def in_a_notebook(name, told):
    return PapermillExecutionError(1, 1, "save()", name, told, [])


@pytest.mark.parametrize("problem", [
    OSError(errno.ENOSPC, "No space left on device"), in_a_notebook("OSError", "[Errno 28] No space left on device"),
    in_a_notebook("OSError", f"[Errno {errno.EDQUOT}] Disk quota exceeded")], ids=repr)
def test_a_full_disk_is_one_line_that_says_what_to_do(problem, one, capsys):
    one.does = raising(problem)
    with pytest.raises(SystemExit) as caught:
        run.main("smoke")
    assert caught.value.code == 1
    assert re.fullmatch(r"smoke 00_one: the disk is full \(.*\): make room and run again; what is finished is kept\n",
                        capsys.readouterr().err)


@pytest.mark.parametrize("problem", [OSError(errno.EIO, "broken"), in_a_notebook("OSError", "[Errno 5] broken"),
                                     in_a_notebook("KeyError", "[Errno 28]")], ids=repr)
def test_other_errors_are_raised_with_all_that_they_say(problem, one):
    one.does = raising(problem)
    with pytest.raises(type(problem)) as caught:
        run.main("smoke")
    assert caught.value is problem


def test_a_second_run_in_the_same_folder_says_who_has_it_and_touches_nothing(one):
    with files.hold(one.folder):
        before = sorted(one.folder.iterdir())
        done = paper(one.home, "smoke")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and done.stdout == ""
    assert re.search(rf"runs/smoke is in use by process {os.getpid()} since \d.*: wait until it has ended", done.stderr)
    assert sorted(one.folder.iterdir()) == before
    run.main("smoke")                                        # it was given back


def test_a_folder_is_free_again_when_its_process_was_killed(one):
    code = "from pathlib import Path; import os, signal; from rumlib.lab import files\n" \
           f"with files.hold(Path({str(one.folder)!r})): os.kill(os.getpid(), signal.SIGKILL)"
    path = {"PYTHONPATH": str(Path(rum.__file__).parents[1])}
    died = subprocess.run([sys.executable, "-c", code], env={**os.environ, **path})
    assert died.returncode == -signal.SIGKILL and (one.folder / ".running").exists()
    run.main("smoke")


def test_damaged_and_failed_results_are_told_at_the_end(one, capsys):
    folder = one.folder / "results" / "run"
    folder.mkdir(parents=True)
    for name in ("a.json.damaged", "b.json"):
        (folder / name).write_text("")

    def does(*_):
        for name in ("b.json", "b.safetensors", "c.json"):   # b is one result
            (folder / name).write_text("")
            (folder / name).rename(folder / f"{name}.damaged")
        (folder / "d.failed").write_text("")

    one.does = does
    run.main("smoke")
    said = capsys.readouterr().out
    assert "2 damaged results were set aside (*.damaged) to be computed again, e.g. " in said
    assert "1 results failed" in said
    one.does = lambda *_: None
    run.main("smoke")
    assert "set aside" not in capsys.readouterr().out


@pytest.mark.parametrize("device, most", [("cuda", 4), ("cpu", run.SIDE_BY_SIDE)])
def test_notebooks_on_a_gpu_are_few_at_a_time(device, most, one, monkeypatch):
    asked = []
    monkeypatch.setattr(run, "pick", lambda name: SimpleNamespace(type=device))
    monkeypatch.setattr(run, "ThreadPoolExecutor", lambda n: asked.append(n) or ThreadPoolExecutor(n))
    run.main("smoke")
    assert asked == [most, most]


def test_a_run_that_is_asked_for_twice_is_one(one):
    called = []
    one.does = lambda *_: called.append(1)
    run.main("smoke smoke")
    assert len(called) == 2                                  # notebooks
