"""What `make status` says of a study after each thing that can happen to its results; `make verify`: results computed
again, and figures held against the present."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import nbformat
import pytest
import torch
from studies import TINY, cut, deep, edit, edited, empty, environ, files, finetune, mine, open_study, relabel, use

import rumlib as rum
from rumlib import models
from rumlib.lab import Cell, ForgetSet
from rumlib.lab import computations as made
from rumlib.lab.check import (
    TOLERANCE,
    clean_stale,
    compare,
    distance,
    draw,
    explain,
    main,
    status,
    survey,
    table,
    verify,
)
from rumlib.lab.keys import digest_of
from rumlib.lab.memo import ResultsFailed, _session
from rumlib.lab.settings import notebook
from rumlib.lab.store import parse

ALGORITHMS = (finetune, relabel, rum.SalUn(relabel), rum.RUM(rum.Shuffled(2), (relabel, rum.Keep())), rum.Keep())


@dataclass(frozen=True)
class Fails(rum.Keep):
    """Always."""

    def __call__(self, model, forget, retain, *, seed=0):
        raise KeyError("nothing")


def small(home, *, profile=TINY, algorithms=ALGORITHMS, named="notebook"):
    """Two originals, two oracles, two runs of each algorithm; asked for by a notebook of that name."""
    _session.cache_clear()                                   # a notebook that is started anew
    with environ(RUM_NOTEBOOK=named):
        study = open_study(home, profile)
        study.unlearn(Cell(mine(study), algorithm, seed) for algorithm in algorithms for seed in (0, 1))
    return study


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    small(home)
    return home


@pytest.fixture
def home(done, tmp_path, monkeypatch):
    monkeypatch.setenv("RUM_ENGINE", "serial")
    monkeypatch.setenv("RUM_HOME", str(tmp_path / "home"))

    shutil.copytree(done, tmp_path / "home")
    return tmp_path / "home"


def surveyed(home):
    return survey(home / "runs" / "tiny", deep=True)


def states(rows):
    found = [row["state"] for row in rows]
    return {state: found.count(state) for state in sorted(set(found))}


def whys(rows, state):
    return {row["why"] for row in rows if row["state"] == state}


def cell_of(found, kind, column):
    """A number of the table of `make status`."""
    lines = [line.split("  ") for line in found.splitlines()]
    head, *body = [[word.strip() for word in line if word.strip()] for line in lines]
    return next(row[1 + head.index(column)] for row in body if row[0] == kind)


# -- What there is ----------------------------------------------------------------------------------------------------


def test_all_is_done_after_a_run(home):
    rows = surveyed(home)
    assert states(rows) == {"done": 2 + 2 + 10} and all(row["seconds"] > 0 for row in rows)
    found = table(rows)
    assert [line.split()[0] for line in found.splitlines()[1:]] == ["oracle", "original", "run", "all"]
    assert cell_of(found, "all", "done") == "14" and cell_of(found, "run", "done") == "10"
    assert float(cell_of(found, "all", "done s")) == pytest.approx(sum(row["seconds"] for row in rows), abs=0.06)


def test_a_lost_file_is_missing_at_the_usual_cost(home):
    manifest = home / "runs/tiny/asked/notebook.json"
    told = json.loads(manifest.read_text())
    runs = [row for row in told["results"] if row[0] == "run"]
    for row in runs[:3]:
        files(home, f"run/{row[1]}.json")[0].unlink()
        row[2] = None                                        # as where the run was stopped before they were done
    manifest.write_text(json.dumps(told))
    rows = surveyed(home)
    assert states(rows) == {"done": 11, "missing": 3}
    assert {row["seconds"] for row in rows if row["state"] == "missing"} == {median(row[2] for row in runs[3:])}


@pytest.mark.parametrize("damage", [cut, empty, edit, deep])
def test_a_damaged_file_is_told_and_computed_again(damage, home, capsys):
    damage(files(home, "run/*.json")[0])
    assert states(surveyed(home)) == {"damaged": 1, "done": 13}
    with pytest.warns(UserWarning, match="set aside"):
        assert small(home).used["computed"] == 1
    status("tiny")
    assert "1 damaged files were set aside" in capsys.readouterr().out
    assert states(surveyed(home)) == {"done": 14} and len(files(home, "*/*.damaged")) == 1
    assert clean_stale("tiny") == 0 and not files(home, "*/*.damaged")


def test_the_file_of_another_result_and_lost_tensors_are_damage(home):
    swapped, other = files(home, "run/*.json")[:2]
    swapped.write_bytes(other.read_bytes())
    files(home, "oracle/*.safetensors")[0].unlink()
    flipped = files(home, "original/*.safetensors")[0]
    flipped.write_bytes(flipped.read_bytes()[:-1] + b"?")
    assert states(surveyed(home)) == {"damaged": 3, "done": 11}


def test_a_failed_result_is_failed_until_it_is_done(home):
    with pytest.raises(ResultsFailed):
        small(home, algorithms=(*ALGORITHMS, Fails()))
    rows = surveyed(home)
    assert states(rows) == {"done": 14, "failed": 2}
    assert whys(rows, "failed") == {"KeyError: 'nothing'"}


def test_what_a_notebook_no_longer_asks_for_is_unasked(home):
    small(home, named="another", algorithms=(relabel,))
    assert states(surveyed(home)) == {"done": 14}
    (home / "runs/tiny/asked/notebook.json").unlink()
    found = table(surveyed(home))
    assert cell_of(found, "all", "done") == "6" and cell_of(found, "run", "unasked") == "8"


@pytest.mark.parametrize("change, why", [
    (dict(recipe=replace(TINY.recipe, lr=0.05)), "study.recipe"),
    (dict(make_model=partial(models.mlp, hidden=(9,))), "study.model.arguments"),
    (dict(options=dict(n=150, n_test=61)), "study.data"),
])
def test_results_of_other_data_or_settings_are_stale_once_a_notebook_has_asked_for_new_ones(change, why, home):
    small(home, profile=replace(TINY, **change))
    rows = surveyed(home)
    assert states(rows) == {"done": 14, "stale": 14} and whys(rows, "stale") == {why}
    assert clean_stale("tiny") == 14 and states(surveyed(home)) == {"done": 14}


EDITS = {                                                    # results that an edit makes stale
    "one algorithm": ("algorithms/relabel.py", "return xent(model, mixed)", "return 2 * xent(model, mixed)", 6),
    "a step and an inner": ("algorithms/base.py", "return copy.deepcopy(model).eval()", "return model", 4),
    "a wrapper": ("algorithms/relabel.py", "keep: float = 0.5", "keep: float = 0.4", 2),
    "the runs": ("metrics.py", "return (1 - dS) * (1 - dR) * (1 - dT)", "return (1 - dS) * (1 - dR)", 10),
    "the loop": ("train.py", "optimizer.step()", "optimizer.step(None)", 14),
    "an algorithm that is not run": ("algorithms/gradient.py", "return -xent", "return -2 * xent", 0),
    "docstring": ("algorithms/gradient.py", "Train on with the retain set", "Go on", 0),
}


@pytest.mark.parametrize("file, old, new, stale", EDITS.values(), ids=EDITS)
def test_an_edit_makes_exactly_the_results_stale_that_depend_on_it(file, old, new, stale, home, tmp_path, monkeypatch):
    use(edited(tmp_path, file, old, new), monkeypatch)
    for asked in (True, False):                              # on file in the manifest, or in the results alone
        if not asked:
            (home / "runs/tiny/asked/notebook.json").unlink()
        left = {"done" if asked else "unasked": 14 - stale, "stale": stale}
        assert states(surveyed(home)) == {state: count for state, count in left.items() if count}
    assert clean_stale("tiny") == stale and len(files(home)) == 14 - stale


COUNT = """
import test_check as t, json, sys
from pathlib import Path
study = t.small(Path(sys.argv[1]))
print(json.dumps([study.used["computed"], t.states(t.surveyed(Path(sys.argv[1])))]))
"""


def test_an_edited_package_recomputes_exactly_what_is_stale(home, tmp_path):
    """The same study, run by a copy of the package in which one algorithm was changed; then by this one again."""
    edited(tmp_path, *EDITS["one algorithm"][:3])
    for package, computed in ((tmp_path, 6), (Path(rum.__file__).parents[1], 0)):
        run = subprocess.run([sys.executable, "-c", COUNT, str(home)], capture_output=True, text=True,
                             cwd=Path(__file__).parent, env={**os.environ, "PYTHONPATH": str(package)})
        assert json.loads(run.stdout) == [computed, {"done": 14, "stale": 6}], run.stderr


MANIFESTS = {
    "empty": "", "a list": "[]", "no JSON": "{", "deep": "[" * 100_000, "not text": "\udcff",
    "rows that are none": json.dumps({"study": {}, "codes": {}, "results": [1]}),
    "results that are none": json.dumps({"study": {}, "codes": {}, "results": None}),
    "a row that is too short": json.dumps({"study": {}, "codes": {}, "results": [["run", "a"]]}),
    "a code that is lost": json.dumps({"study": {}, "codes": {}, "results": [["run", "a", 1.0, "run"]]}),
}


@pytest.mark.parametrize("text", MANIFESTS.values(), ids=MANIFESTS)
def test_a_damaged_list_of_what_was_asked_is_told_and_the_rest_is_counted(text, home, capsys):
    (home / "runs/tiny/asked/other.json").write_bytes(text.encode(errors="surrogateescape"))
    assert states(surveyed(home)) == {"done": 14}
    status("tiny")
    out = capsys.readouterr().out
    assert "damaged: asked/other.json" in out and "run the notebook again" in out


def test_a_kind_that_there_is_no_more_is_no_error(home):
    (home / "runs/tiny/asked/old.json").write_text(json.dumps(
        {"study": {}, "codes": {"ask": "0"}, "results": [["ask", "a", 1.0, "ask"], ["verify", "b", None]]}))
    assert states(surveyed(home)) == {"done": 14, "missing": 2}


def test_the_command_prints_a_table_and_removes_only_what_is_stale(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RUM_HOME", str(tmp_path))
    main("status", "smoke")
    assert capsys.readouterr().out == f"No results in {tmp_path}/runs/smoke yet: make paper PROFILE=smoke\n"
    assert main("clean-stale", "smoke") and capsys.readouterr().out.startswith("0 stale")
    store = open_study(tmp_path, replace(TINY, name="smoke")).store
    identity = {"what": "run", "code": "of long ago"}
    store.write("run", identity, {"tow": 0.5}, seconds=2.0)
    command = [sys.executable, "-m", "rumlib.lab.check", "status", "smoke"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "stale: 1 results, other run" in found
    main("clean-stale", "smoke")
    assert "1 stale or damaged results removed" in capsys.readouterr().out
    assert not store.path("run", digest_of(identity)).exists()
    refused = subprocess.run([*command[:3], "--all", "smoke"], capture_output=True, text=True)
    assert refused.returncode == 1 and "unknown command '--all'; there are status" in refused.stderr


def test_a_notebook_is_named_by_whoever_runs_it(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/study.py"])
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert notebook() == "study"
    monkeypatch.setenv("JPY_SESSION_NAME", "/home/me/notebooks/mine.ipynb")
    assert notebook() == "mine"
    monkeypatch.setenv("RUM_NOTEBOOK", "03_factors")
    assert notebook() == "03_factors"


# -- Computed again ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mine(rum.Finetune):
    """A user's own."""


def kept(model, forget, retain, *, seed=0):
    """A user's own function."""
    return rum.Keep()(model, forget, retain, seed=seed)


def correct(study, seed):
    """What a notebook computes, with tensors of its own."""
    return {"seed": seed, "nothing": float("nan"), "tensors": dict(made.original_correct(study, seed)["tensors"])}


def rich(home):
    """A study that asks for nearly all kinds of results: scores, proxies, runs of all sorts of algorithms, requests."""
    _session.cache_clear()
    with environ(RUM_NOTEBOOK="notebook"):
        study = open_study(home, replace(TINY, recipe=rum.Recipe(epochs=2, lr=0.1, batch_size=32)))
        mix = study.levels()["mix"]
        algorithms = [rum.SalUn(relabel, mask="tanh"), Mine(epochs=1, lr=0.1, batch_size=32), kept,
                      rum.RUM(rum.Shuffled(2), (relabel, kept)),
                      *(rum.RUM(rum.Refine(score, 2), (relabel, rum.Keep()), order=(1, 0)) for score in (
                          study.score, study.proxy("loss_curvature"), study.proxy("entropy", 1)))]
        study.unlearn(Cell(mix, algorithm, 0) for algorithm in algorithms)
        study.watch([Cell(mix, algorithms[-1], 0)])
        requests = [ForgetSet(f"{k}", study.train.index[k:k + 5]) for k in (0, 5)]
        ways = {"never": None, "every": 1, "judged": (rum.Memorized(study.score), 2.0)}
        study.stream(requests, {way: (relabel, renew) for way, renew in ways.items()}, [0])
        study.memoize(correct, [(0,)])
        return study, json.loads(json.dumps(study.provenance()))


@pytest.fixture(scope="module")
def all_kinds(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    study, origin = rich(home)
    return home, study.asked, origin


@pytest.fixture
def again(all_kinds, tmp_path, monkeypatch):
    """`again(names)`: the study once more, with these results, or all, computed again: key -> how they compare."""
    shutil.copytree(all_kinds[0], tmp_path / "home")

    def run(*names):
        listed = tmp_path / "listed.json"
        listed.write_text(json.dumps(names or [f"{kind}/{key}" for kind, key in all_kinds[1]]))
        monkeypatch.setenv("RUM_VERIFY", str(listed))
        run.computed = rich(tmp_path / "home")[0].used["computed"]
        return {path.stem: json.loads(path.read_text()) for path in (tmp_path / "home/runs/tiny/verified").glob("*")}

    run.home = tmp_path / "home"
    return run


def changed(home, kind, change, made=None):
    """A result of that kind with other values, and a checksum that fits them."""
    study = open_study(home)
    path = files(home, f"{kind}/*.json")[0]
    result = study.store.read(kind, path.stem)
    if "large" in result["values"]:
        result["values"]["large"] = study.store.large(kind, path.stem)
    change(result["values"])
    study.store.write(kind, result["identity"], result["values"], result["seconds"])
    on_file = {**parse(path.read_bytes(), path.stem), "made": made or result["made"]}
    path.write_text(json.dumps({**on_file, "checksum": digest_of(on_file)}))
    return path.stem


def test_every_result_comes_out_as_it_is_on_file(again, all_kinds):
    """Proxies, streams, and what a user has written too."""
    before = {path: path.read_bytes() for path in files(again.home, "*/*.*")}
    found = again()
    assert not again.computed and found.keys() == {f"{kind}-{key}" for kind, key in all_kinds[1]} and len(found) >= 18
    assert {name.partition("-")[0] for name in found} == {
        "bank", "original", "probed", "oracle", "run", "dynamics", "requests", "apply"}
    assert [told for told in found.values() if told != {"verdict": "equal", "found": ""}] == []
    assert {path: path.read_bytes() for path in files(again.home, "*/*.*")} == before        # nothing is written


@pytest.mark.parametrize("kind, change, found", [
    ("run", lambda values: values.update(tow=values["tow"] - 1e-9), "tow by 1e-09"),
    ("run", lambda values: values.update(steps=values["steps"] + 1), "steps by inf"),
    ("oracle", lambda values: values["large"]["2.bias"].mul_(1.001), "2.bias by 0.001"),
    ("bank", lambda values: values["tensors"]["correct"].__setitem__((0, 0), ~values["tensors"]["correct"][0, 0]),
     "correct by 0.00028"),
    ("original", lambda values: values.update(more=1.0), "has more on one side only"),
    ("requests", lambda values: values["rows"][1].update(tow=values["rows"][1]["tow"] + 1e-6), "rows by 1e-06"),
    ("apply", lambda values: values.update(seed=1), "seed by inf"),
], ids=["row", "count", "weights", "matrix", "another value", "row of many", "of a user"])
def test_a_wrong_result_is_found(kind, change, found, again):
    key = changed(again.home, kind, change)
    assert again(f"{kind}/{key}") == {f"{kind}-{key}": {"verdict": "differs", "found": found}}


def test_what_another_processor_made_may_differ_within_the_tolerance(again):
    elsewhere = {"torch": "2.0.0", "cpu": "another"}
    near = changed(again.home, "oracle", lambda values: values["large"]["2.bias"].mul_(1.001), elsewhere)
    wrong = changed(again.home, "original", lambda values: values["large"]["2.bias"].mul_(1 + 2 * TOLERANCE), elsewhere)
    found = again(f"oracle/{near}", f"original/{wrong}")
    assert found[f"oracle-{near}"]["verdict"] == "within tolerance"
    assert found[f"original-{wrong}"]["verdict"] == "differs"


def test_distances():
    a, inf, nan = torch.tensor([3.0, 4.0]), float("inf"), float("nan")
    assert distance(a, a) == 0 and distance(a, torch.tensor([3.0, 4.5])) == pytest.approx(0.1)
    assert distance(a, a.double()) == distance(a, a[:1]) == distance(a, a * nan) == distance(a, 3.0) == inf
    assert distance(a * nan, a * nan) == distance(nan, nan) == 0 and distance(nan, 0.5) == distance(0.5, nan) == inf
    assert distance(torch.tensor([True, False]), torch.tensor([True, True])) == 0.5
    assert distance(torch.tensor([1]), torch.tensor([2])) == distance(3, 4) == distance(None, 0.5) == inf
    assert distance(0.5, 0.25) == 0.25 and distance(None, None) == 0 and distance(inf, inf) == 0
    assert distance([{"a": 0.5, "b": 1}], ({"b": 1, "a": 0.75},)) == 0.25 and distance([], ()) == 0
    assert distance([{"a": 0.5, "b": 1}], [{"a": 0.5, "b": 2}]) == inf
    assert distance([1], [1, 1]) == distance({"a": 1}, {}) == distance({"a": 1}, [1]) == inf
    assert compare({"seconds": 2.0}, {"seconds": 3.0}, exact=True) == {"verdict": "equal", "found": ""}
    assert compare({"a": 1.0}, {"a": nan}, exact=False) == {"verdict": "differs", "found": "a by inf"}


def test_a_sample_holds_all_kinds_and_is_the_same_for_the_same_seed():
    rows = [{"kind": kind, "key": f"{kind}{k}"} for kind, n in (("a", 2), ("b", 50)) for k in range(n)]
    found = draw(rows, 6, seed=0)
    assert [kind for kind, _ in found] == ["a", "b", "a", "b", "b", "b"] and len(set(found)) == 6
    assert found == draw(rows, 6, seed=0) != draw(rows, 6, seed=1)
    assert len(draw(rows, 1000, seed=0)) == 52


@pytest.mark.notebook
@pytest.mark.skipif("--only" not in Path(rum.__file__).with_name("lab").joinpath("run.py").read_text(),
                    reason="rumlib.lab.run cannot run single notebooks yet")
def test_the_notebooks_that_asked_for_a_sample_run_once_more_and_compute_it(tmp_path, monkeypatch, capsys):
    (tmp_path / "notebooks").mkdir()
    for name, seed in (("00_one", 0), ("01_two", 1), ("02_last", None)):
        cells = [nbformat.v4.new_code_cell("profile, seeds, quiet = 'smoke', None, True", metadata={
            "tags": ["parameters"]}), nbformat.v4.new_code_cell("" if seed is None else (
                "from rumlib.lab import Study\nstudy = Study(profile, seeds=seeds, quiet=quiet)\n"
                f"study.originals([{seed}])\nprint('asked', study.used)"))]
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {
            "name": "python3", "display_name": "Python 3", "language": "python"}}),
            tmp_path / f"notebooks/{name}.ipynb")
    monkeypatch.setenv("RUM_HOME", str(tmp_path))
    monkeypatch.setenv("RUM_ENGINE", "serial")
    monkeypatch.setenv("PYTHONPATH", str(Path(rum.__file__).parents[1]))
    subprocess.run([sys.executable, "-m", "rumlib.lab.run", "smoke"], check=True)
    found = verify("smoke")
    assert [(row["kind"], row["verdict"]) for row in found] == [("original", "equal")] * 2
    manifest = tmp_path / "runs/smoke/asked/00_one.json"
    manifest.rename(manifest.with_name("99_not_there_any_more.json"))
    with pytest.raises(ValueError, match="did not run to their end"):
        verify("smoke")
    assert not (tmp_path / "figures/smoke").exists() or not list((tmp_path / "figures/smoke").iterdir())


def test_to_verify_nothing_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RUM_HOME", str(tmp_path))
    assert main("verify", "smoke") and "No finished results" in capsys.readouterr().out


# -- Figures ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def figure(all_kinds, tmp_path, monkeypatch):
    """`figure(change)`: how the present differs from a figure of that study, of which one thing is changed."""
    shutil.copytree(all_kinds[0], tmp_path / "home")
    monkeypatch.setenv("RUM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RUM_NOTEBOOK", "notebook")
    profile = replace(TINY, recipe=rum.Recipe(epochs=2, lr=0.1, batch_size=32))
    monkeypatch.setattr("rumlib.lab.study.profile", lambda name: profile)

    def told(change=lambda origin: None):
        origin, path = json.loads(json.dumps(all_kinds[2])), tmp_path / "figure.json"
        change(origin)
        path.write_text(json.dumps({"figure": "f", **origin}))
        return {what: (then, now) for what, then, now in explain(path)}

    return told


def test_nothing_has_changed(figure):
    assert figure() == {}


@pytest.mark.parametrize("change, what", [
    (lambda o: o.update(commit="0" * 40), "commit"),
    (lambda o: o["versions"].update(torch="1.0"), "versions.torch"),
    (lambda o: o["data"].update(train="another"), "data.train"),
    (lambda o: o.update(device="cuda"), "device"),
    (lambda o: o.update(code="another"), "code"),
    (lambda o: o.update(seeds=[0, 1, 2]), "seeds"),
    (lambda o: o.pop("lock"), "lock"),
    (lambda o: o["results"].update(digest="another"), "results"),
    (lambda o: o.update(notebook="another"), "results"),
])
def test_what_has_changed_is_named(change, what, figure):
    assert list(figure(change)) == [what]


def test_a_figure_of_an_earlier_format_is_told_apart(figure):
    assert figure(lambda o: [o.pop(name) for name in ("code", "notebook")])["code"][0] == "not recorded"


def test_lost_results_of_a_figure_are_counted(figure, tmp_path):
    for path in files(tmp_path / "home", "run/*.json")[:4]:
        path.unlink()
    assert figure() == {"results": ("done", "4 missing")}


def test_the_command_fails_if_something_differs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RUM_HOME", str(tmp_path))
    study = open_study(tmp_path, "smoke")
    study.originals([0])
    path = tmp_path / "figure.json"
    path.write_text(json.dumps({"figure": "f", **study.provenance()}))
    assert main("explain", str(path)) and "as it was" in capsys.readouterr().out
    path.write_text(json.dumps({"figure": "f", **study.provenance(), "device": "cuda"}))
    assert not main("explain", str(path)) and "device: cuda then" in capsys.readouterr().out
