"""`make verify`: cells computed again, and figures held against the present."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from rumlib.lab.verify import TOLERANCE, compare, distance, draw, explain, main, rebuilt, things, verify

import rumlib as rum
from rumlib.lab import memo
from rumlib.lab.check import survey
from rumlib.lab.memo import digest_of

TINY = replace(
    rum.profile("smoke"), name="tiny", options=dict(n=150, n_test=60), make_model=partial(rum.mlp, hidden=(8,)),
    recipe=rum.Recipe(epochs=2, lr=0.1, batch_size=32), score_models=24, fraction=0.5, set_size=10, seeds=(0, 1))
finetune, relabel = (kind(epochs=1, lr=0.1, batch_size=32) for kind in (rum.Finetune, rum.RandomLabel))


@dataclass(frozen=True)
class Mine(rum.Finetune):
    """A user's own."""


def opened(home):
    return rum.Study(TINY, quiet=True, home=home)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A home, and the provenance of a figure made there: a bank, probes, two originals, four oracles, 18 runs, and a
    stream of two requests in three ways."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUM_ENGINE", "serial")
        patch.setenv("RUM_NOTEBOOK", "notebook")
        home = tmp_path_factory.mktemp("home")
        study = opened(home)
        algorithms = (finetune, rum.SalUn(relabel, mask="tanh"), rum.Keep(), Mine(epochs=1, lr=0.1, batch_size=32),
                      rum.RUM(rum.Refine(study.score, 2), (rum.Retrain(TINY.make_model, TINY.recipe), rum.Keep()),
                              order=(1, 0)), rum.RUM(rum.Shuffled(2), (relabel, rum.L1Sparse(epochs=1))))
        study.unlearn(rum.Cell(study.levels()["mix"], algorithm, seed) for algorithm in algorithms for seed in (0, 1))
        scores = [study.proxy("loss_curvature"), study.proxy("entropy", 1),
                  rum.Score("planted", study.train.info["noise"], study.train.index)]
        study.unlearn(rum.Cell(study.levels()["mix"], rum.RUM(rum.Refine(score, 2), (relabel, rum.Keep())), seed)
                      for score in scores for seed in (0, 1))
        requests = [rum.ForgetSet(f"{k}", study.train.index[k:k + 5]) for k in (0, 5)]
        ways = {"never": None, "every": 1, "judged": (rum.Memorized(study.score), 2.0)}
        study.stream(requests, {way: (relabel, renew) for way, renew in ways.items()}, [0])
        return home, json.loads(json.dumps(study.provenance()))


@pytest.fixture
def home(done, tmp_path, monkeypatch):
    monkeypatch.setenv("RUM_ENGINE", "serial")
    shutil.copytree(done[0], tmp_path / "home")
    return tmp_path / "home"


def changed(home, kind, change, made=None):
    """The first cell of that kind, but not of a user's algorithm, with other values, and a checksum that fits them."""
    study = opened(home)
    path = next(path for path in sorted((home / "runs/tiny/cells" / kind).glob("*.json"))
                if "test_verify.Mine" not in path.read_text())
    cell = study.store.read(kind, path.stem)
    if "large" in cell["values"]:
        cell["values"]["large"] = study.store.large(kind, path.stem)
    change(cell["values"])
    study.store.write(kind, cell["identity"], cell["values"], cell["seconds"])
    kept = {**memo.parse(path.read_bytes(), path.stem), "made": made or cell["made"]}
    path.write_text(json.dumps({**kept, "checksum": digest_of(kept)}))
    return path.stem


# -- Cells ------------------------------------------------------------------------------------------------------------


def test_every_cell_comes_out_as_it_is_on_file(home):
    before = sorted(home.rglob("*"))
    found = verify(opened(home), sample=100)
    kinds = found.groupby("kind")["verdict"].value_counts().to_dict()
    assert kinds == {("bank", "equal"): 1, ("original", "equal"): 2, ("oracle", "equal"): 4, ("probed", "equal"): 1,
                     ("requests", "equal"): 3, ("run", "equal"): 16, ("run", "not made again"): 2}
    assert set(found[found["verdict"] == "not made again"]["found"]) == {"test_verify.Mine does not come with rumlib"}
    assert sorted(home.rglob("*")) == before                 # nothing is written


def test_workers_verify_too(home, monkeypatch):
    monkeypatch.setenv("RUM_ENGINE", "loky")
    study = rum.Study(replace(TINY, workers=2), quiet=True, home=home)
    found = verify(study, sample=6)
    assert (found["verdict"] == "equal").sum() >= 4 and set(found["verdict"]) <= {"equal", "not made again"}


@pytest.mark.parametrize("kind, change, found", [
    ("run", lambda values: values.update(tow=values["tow"] - 1e-9), "tow by 1e-09"),
    ("run", lambda values: values.update(steps=values["steps"] + 1), "steps by inf"),
    ("oracle", lambda values: values["large"]["2.bias"].mul_(1.001), "2.bias by 0.001"),
    ("bank", lambda values: values["tensors"]["correct"].__setitem__((0, 0), ~values["tensors"]["correct"][0, 0]),
     "correct by 0.00028"),
    ("original", lambda values: values.update(more=1.0), "has more on one side only"),
], ids=["row", "count", "weights", "matrix", "another value"])
def test_a_wrong_result_is_found(kind, change, found, home):
    key = changed(home, kind, change)
    row = verify(opened(home), sample=100).set_index("key").loc[key]
    assert (row["verdict"], row["found"]) == ("differs", found)


def test_what_another_processor_made_may_differ_within_the_tolerance(home):
    elsewhere = {"torch": "2.0.0", "cpu": "another"}
    near = changed(home, "oracle", lambda values: values["large"]["2.bias"].mul_(1.001), elsewhere)
    wrong = changed(home, "original", lambda values: values["large"]["2.bias"].mul_(1 + 2 * TOLERANCE),
                    elsewhere)
    found = verify(opened(home), sample=100).set_index("key")["verdict"]
    assert found[near] == "within tolerance" and found[wrong] == "differs"


def test_distances():
    a = torch.tensor([3.0, 4.0])
    assert distance(a, a) == 0 and distance(a, torch.tensor([3.0, 4.5])) == pytest.approx(0.1)
    assert distance(a, a.double()) == distance(a, a[:1]) == distance(a, a * float("nan")) == float("inf")
    assert distance(torch.tensor([True, False]), torch.tensor([True, True])) == 0.5
    assert distance(torch.tensor([1]), torch.tensor([2])) == distance(3, 4) == distance(None, 0.5) == float("inf")
    assert distance(0.5, 0.25) == 0.25 and distance(None, None) == 0
    assert compare({"a": 1.0, "seconds": 2.0}, {"a": 1.0, "seconds": 3.0}, exact=True) == ("equal", "")


def test_a_sample_holds_all_kinds_and_is_the_same_for_the_same_seed():
    table = pd.DataFrame([{"kind": kind, "key": f"{kind}{k}"} for kind, n in (("a", 2), ("b", 50)) for k in range(n)])
    found = draw(table, 6, seed=0)
    assert [kind for kind, _ in found] == ["a", "b", "a", "b", "b", "b"] and len(set(found)) == 6
    assert found == draw(table, 6, seed=0) != draw(table, 6, seed=1)
    assert len(draw(table, 1000, seed=0)) == 52


@pytest.mark.parametrize("name", ["os.system", "rumlib.lab.study.Study", "rumlib.lab.verify.importlib", "rumlib.lab.memo.put"])
def test_a_file_cannot_make_anything_but_a_dataclass_of_the_package(name, home):
    study = opened(home)
    cell = json.loads(sorted((home / "runs/tiny/cells/run").glob("*.json"))[0].read_text())
    cell["identity"]["arguments"]["algorithm"] = {"class": name, "code": "", "fields": {}}
    with pytest.raises(LookupError, match=f"{name} does not come with rumlib"):
        rebuilt(study, "run", cell["identity"], things(study, survey(study)))


def test_a_cell_of_something_that_is_not_on_file_is_named_and_not_made_again(home):
    study = opened(home)
    score, held_out = rum.Score("mine", torch.arange(150.0), study.train.index), study.test[::2]
    refine = rum.Refine(score, 2)
    judged = rum.AutoRUM(rum.Refine(study.score, 2), (relabel,), rum.HeldOut(held_out))
    study.unlearn(rum.Cell(study.levels()["mix"], strange, 0)
                  for strange in (rum.RUM(refine, (rum.Keep(), finetune)), judged))
    found = set(verify(opened(home), sample=100)["found"])
    assert f"algorithm.refine.score, which hashes to {score.digest}, is not on file" in found
    assert f"algorithm.judge.validation, which hashes to {held_out.digest}, is not on file" in found


# -- Figures ----------------------------------------------------------------------------------------------------------


def told(found):
    return dict(zip(found["what"], zip(found["then"], found["now"], strict=True), strict=True))


def test_nothing_has_changed(home, done):
    assert explain(done[1], opened(home)).empty


@pytest.mark.parametrize("change, what", [
    (lambda o: o.update(commit="0" * 40), "commit"),
    (lambda o: o["versions"].update(torch="1.0"), "versions.torch"),
    (lambda o: o["data"].update(train="another"), "data.train"),
    (lambda o: o.update(device="cuda"), "device"),
    (lambda o: o["code"].update(run="another"), "code.run"),
    (lambda o: o.update(seeds=[0, 1, 2]), "seeds"),
    (lambda o: o.pop("lock"), "lock"),
    (lambda o: o["cells"].update(digest="another"), "cells"),
    (lambda o: o.update(notebook="another"), "cells"),
])
def test_what_has_changed_is_named(change, what, home, done):
    origin = json.loads(json.dumps(done[1]))
    change(origin)
    assert list(explain(origin, opened(home))["what"]) == [what]


def test_a_figure_of_an_earlier_format_is_told_apart(home, done):
    origin = {key: value for key, value in done[1].items() if key not in ("code", "notebook")}
    assert told(explain(origin, opened(home)))["code"][0] == "not recorded"


def test_lost_cells_of_a_figure_are_counted(home, done):
    for path in sorted((home / "runs/tiny/cells/run").glob("*.json"))[:4]:
        path.unlink()
    assert told(explain(done[1], opened(home))) == {"cells": ("done", "4 missing")}


def test_the_command_says_what_it_found_and_fails_if_something_differs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RUM_HOME", str(tmp_path))
    monkeypatch.setenv("RUM_ENGINE", "serial")
    study = rum.Study("smoke", quiet=True)
    study.originals([0])
    assert main("smoke") and "equal" in capsys.readouterr().out
    figure = tmp_path / "figure.json"
    figure.write_text(json.dumps({"figure": "f", **study.provenance()}))
    assert main(str(figure)) and "as it was" in capsys.readouterr().out
    figure.write_text(json.dumps({"figure": "f", **study.provenance(), "device": "cuda"}))
    run = subprocess.run([sys.executable, "-m", "rumlib.lab.verify", str(figure)], capture_output=True, text=True,
                         env={**os.environ, "PYTHONPATH": str(Path(rum.__file__).parents[1])})
    assert run.returncode == 1 and "cuda" in run.stdout and run.stderr == ""
    assert digest_of(list(study.asked)) == study.provenance()["cells"]["digest"]
