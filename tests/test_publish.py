"""Pieces of a run, published results, and what is made from them elsewhere: the commands that a GPU run uses, small."""

import gzip
import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import hypothesis.strategies as st
import nbformat
import pytest
import torch
from hypothesis import given

import rumlib as rum
from rumlib.data import label_hash
from rumlib.lab import Cell, ForgetSet, Study, files, memo, profile, results
from rumlib.lab.computations import model, original, original_correct, probed
from rumlib.lab.memo import NotPublished, TimeIsUp
from rumlib.lab.provenance import provenance
from rumlib.lab.results import KINDS, LIMIT, Published, about, opened, pack, publish, unpack
from rumlib.lab.results import main as publishing
from rumlib.lab.run import main as paper
from rumlib.lab.store import here
from rumlib.lab.tables import unlearn
from rumlib.models import describe, mlp

TINY = replace(
    profile("smoke"), name="tiny", options=dict(n=150, n_test=60), make_model=partial(mlp, hidden=(8,)),
    recipe=rum.Recipe(epochs=2, lr=0.1, batch_size=32), score_models=24, fraction=0.5, set_size=10, mix_size=None,
    bands=5, seeds=(0, 1))
finetune = rum.Finetune(epochs=1, lr=0.1, batch_size=32)


@pytest.fixture(autouse=True)
def serial(monkeypatch):
    monkeypatch.setenv("RUM_ENGINE", "serial")


def open_study(home, profile=TINY):
    return Study(profile, quiet=True, home=home)


def doubled(study, k):
    return {"twice": 2 * k, "tensors": {"labels": study.train.y[:k]}}


def small(study):
    """All that notebooks ask of a study: rows, scores, forget sets, and a function of their own."""
    sets = [*study.levels().values(), *study.bands()[:1]]
    ways = (finetune, rum.RUM(rum.Refine(study.proxy("confidence"), 2), (finetune, rum.Keep())))
    rows = unlearn(study, [Cell(forget, way, seed, {"set": forget.name}) for forget in sets for seed in (0, 1)
                           for way in ways])
    rows["entanglement"] = [study.entanglement(forget)["entanglement"] for forget in sets for _ in range(4)]
    right = original_correct(study, 0)["tensors"]["train"]
    return rows, right, [one["twice"] for one in study.memoize(doubled, [(k,) for k in range(1, 4)])]


# -- Pieces -----------------------------------------------------------------------------------------------------------


class Slow(rum.Finetune):
    """Takes an hour by the clock of the test."""

    def __call__(self, model, forget, retain, *, seed=0):
        clock.now += 3600
        return super().__call__(model, forget, retain, seed=seed)


clock = SimpleNamespace(now=0.0)


def test_after_the_time_a_cell_in_progress_is_finished_and_none_is_started(tmp_path, monkeypatch):
    study = open_study(tmp_path)
    forget = ForgetSet("mine", study.train.index[:10])
    study.oracles([forget], range(4))
    study.originals(range(4))
    monkeypatch.setattr(memo, "time", SimpleNamespace(time=lambda: clock.now, process_time=lambda: clock.now,
                                                      perf_counter=lambda: clock.now))
    runs = [Cell(forget, Slow(epochs=1, lr=0.1, batch_size=32), seed) for seed in range(4)]
    study.until = clock.now + 1.5 * 3600
    with pytest.raises(TimeIsUp, match=r"2 of 4 unlearning are left.*the same command goes on"):
        unlearn(study, runs)
    with pytest.raises(TimeIsUp, match="2 of 2 unlearning are left"):
        unlearn(study, runs)
    assert len(list((tmp_path / "runs/tiny/results/run").glob("*"))) == 2
    again = open_study(tmp_path)
    assert len(again.unlearn(runs)) == 4 and again.used["computed"] == 2 and not again.used["failed"]


# -- Files ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A home where the small study was run, and its cells results."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUM_ENGINE", "serial")
        home = tmp_path_factory.mktemp("home")
        study = open_study(home)
        rows = small(study)
        packing(home / "packed", study)
    return SimpleNamespace(home=home, packed=home / "packed", rows=rows)


def finished(study):
    return [study.store.read(path.parent.name, path.stem) for path in sorted(study.store.folder.glob("*/*.json"))]


def packing(folder, study, change=lambda identity: identity):
    found = [{**cell, "identity": change(cell["identity"])} for cell in finished(study)]
    return pack(folder, found, {"profile": "tiny", "commit": "c0ffee", "device": "cuda",
                                "studies": {"tiny": change({"study": study.identity})["study"]}})


def test_what_was_packed_comes_back_bit_by_bit(done):
    study, found = open_study(done.home), Published(done.packed)
    there = finished(study)
    assert len(there) == sum(found.manifest["cells"].values()) == len(list(found)) == 40
    for cell in there:
        back = found.find(cell["identity"])
        values, other = ({k: v for k, v in one["values"].items() if k != "tensors"} for one in (cell, back))
        assert values == other and {k: back[k] for k in ("identity", "seconds", "made")} == {
            k: cell[k] for k in ("identity", "seconds", "made")}
        tensors, others = (one["values"].get("tensors", {}) for one in (cell, back))
        assert tensors.keys() == others.keys()
        assert all(t.dtype == others[k].dtype and torch.equal(t, others[k]) for k, t in tensors.items())


def test_the_same_cells_give_the_same_bytes_and_no_weights(done, tmp_path):
    packing(tmp_path, open_study(done.home))
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert written == {path.name: path.read_bytes() for path in done.packed.iterdir()}
    weights = sum(path.stat().st_size for path in done.home.glob("runs/tiny/results/*/*.large"))
    assert not [name for name in Published(tmp_path)._tensors if "bias" in name or "margin" in name] and weights > 0


def test_files_are_cut_at_the_limit_and_old_ones_go(done, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "LIMIT", 9_000)
    manifest = packing(tmp_path, open_study(done.home))
    assert len(manifest["files"]) >= 6 and all(file["bytes"] <= 9_000 for file in manifest["files"].values())
    assert len(list(Published(tmp_path))) == sum(manifest["cells"].values())
    monkeypatch.undo()
    assert set(packing(tmp_path, open_study(done.home))["files"]) | {"manifest.json"} == {
        path.name for path in tmp_path.iterdir()}
    monkeypatch.setattr(results, "LIMIT", 1000)
    with pytest.raises(ValueError, match=r'of one result do not fit.*return them as tensors, weights under "large"'):
        packing(tmp_path, open_study(done.home))


@given(st.lists(st.booleans(), max_size=40), st.lists(st.integers(-2**40, 2**40), max_size=9), st.integers(0, 3))
def test_tensors_come_back_whatever_their_size_and_range(bits, numbers, rows):
    for tensor in (torch.tensor(bits, dtype=torch.bool), torch.tensor(numbers, dtype=torch.int64),
                   torch.tensor(numbers, dtype=torch.float32), torch.arange(rows * 5).view(rows, 5) % 3 == 0):
        told = [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        assert files.is_shortened(files.shortened(tensor), told)
        back = files.lengthened(files.shortened(tensor), *told)
        assert back.dtype == tensor.dtype and torch.equal(back, tensor)


def test_a_damaged_or_lost_file_is_named(done, tmp_path):
    for damage in (lambda path: path.write_bytes(path.read_bytes()[:-1]), Path.unlink):
        folder = tmp_path / damage.__name__
        shutil.copytree(done.packed, folder)
        damage(folder / "tensors-000.safetensors")
        with pytest.raises(ValueError, match=r"tensors-000.safetensors is damaged or lost"):
            Published(folder)
    with pytest.raises(FileNotFoundError, match=r"no published results in .*make publish"):
        Published(tmp_path)


def test_what_two_studies_share_is_packed_once(done, tmp_path):
    study = open_study(done.home)
    cell = finished(study)[0]
    pack(tmp_path, [cell, cell], {"profile": "tiny", "studies": {name: study.identity for name in ("tiny", "again")}})
    assert Published(tmp_path).manifest["cells"] == {cell["identity"]["what"]: 1}


def test_two_cells_about_the_same_are_refused(done, tmp_path):
    study = open_study(done.home)
    cell = finished(study)[0]
    twin = {**cell, "identity": {**cell["identity"], "code": "of another time"}}
    with pytest.raises(ValueError, match="differ in their code alone"):
        pack(tmp_path, [cell, twin], {"studies": {"tiny": study.identity}})


# -- Elsewhere --------------------------------------------------------------------------------------------------------


def another(identity):
    """As other code, on another device, with another torch would have named it."""
    study = {**identity["study"], "device": "cuda", "dtype": "torch.bfloat16", "torch": "1.0"}
    return {**identity, "study": study} | ({"code": "other"} if "code" in identity else {})


def test_results_of_other_code_and_another_device_give_the_same_rows_and_say_so(done, tmp_path, monkeypatch):
    packing(tmp_path / "packed", open_study(done.home), another)
    monkeypatch.setenv("RUM_FROM", str(tmp_path / "packed"))
    study = open_study(tmp_path / "home")
    rows, right, twice = small(study)
    assert rows.equals(done.rows[0]) and torch.equal(right, done.rows[1]) and twice == done.rows[2]
    assert not list(tmp_path.glob("home/**/*.json")) and study.used["computed"] == 0
    origin = provenance(study)["published"]
    assert (origin["commit"], origin["device"]) == ("c0ffee", "cuda")
    assert {"run: code", "run: study.device", "original: study.torch"} <= set(origin["changed since"])


def test_results_of_this_code_say_that_nothing_has_changed(done, monkeypatch):
    monkeypatch.setenv("RUM_FROM", str(done.packed))
    opened.cache_clear()
    study = open_study(done.home)
    small(study)
    assert provenance(study)["published"]["changed since"] == []


@pytest.mark.parametrize("ask, lacking", [
    (lambda study: original(study, 7), r"kind 'original': the nearest differs in arguments.seed\."),
    (lambda study: unlearn(study, [Cell(study.levels()["low"], replace(finetune, lr=0.3), 0)]),
     r"kind 'run': the nearest differs in arguments.algorithm.fields.lr\."),
    (lambda study: probed(study, "loss_curvature", 0), r"kind 'probed': they have none of this kind\."),
    (lambda study: model(study, 0), r"the weights of original\(0\) are needed.*without FROM")])
def test_what_is_lacking_is_named_and_never_computed_or_read_from_a_run(ask, lacking, done, monkeypatch):
    ask(open_study(done.home))                               # this home has it, computed
    monkeypatch.setenv("RUM_FROM", str(done.packed))
    with pytest.raises(NotPublished, match=lacking):
        ask(open_study(done.home))


def test_other_data_are_named(done, tmp_path, monkeypatch):
    monkeypatch.setenv("RUM_FROM", str(done.packed))
    with pytest.raises(NotPublished, match=r"the nearest differs in study.data\."):
        open_study(tmp_path, replace(TINY, options=dict(n=150, n_test=61))).originals([0])


def test_what_a_cell_is_about_leaves_out_code_and_not_a_field_of_that_name():
    fields = {"class": "mine.Kind", "code": "a1", "fields": {"code": 3}}
    identity = {"what": "run", "code": "b2", "arguments": {"algorithm": [fields]},
                "study": {"data": ["d"], "model": {"function": "f", "code": "c3", "arguments": "f()"}, "recipe": "r",
                          "device": "cpu", "dtype": "t", "torch": "2", "format": 1}}
    assert about(identity) == {
        "what": "run", "arguments": {"algorithm": [{"class": "Kind", "fields": {"code": 3}}]},
        "study": {"data": ["d"], "model": {"function": "f", "arguments": "f()"}, "recipe": "r"}}


# -- Names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dotted, own", [
    ("rumlib.algorithms.gradient.Finetune", "Finetune"), ("rumlib.rum.RUM", "RUM"), ("Finetune", "Finetune"),
    ("rumlib.models.small_resnet", "small_resnet"), ("small_resnet", "small_resnet"), ("__main__.Mine", "Mine"),
    ("mine.Outer.Inner", "Outer.Inner"), ("mine.Outer.make", "Outer.make"), ("Outer.Inner", "Outer.Inner"),
    ("tests.test_code.f.<locals>.Way", "f.<locals>.Way"), ("f.<locals>.Way", "f.<locals>.Way")])
def test_the_modern_name_of_a_class_or_function_has_no_module(dotted, own):
    inside = [{"class": dotted, "code": "a", "fields": {"make": {"function": dotted, "code": "b", "arguments": "f()"}}}]
    identity = {"what": "run", "code": "c", "arguments": {"algorithm": inside, "name": dotted},
                "study": {"data": [dotted], "model": {"function": dotted, "code": "d", "arguments": "f()"}}}
    found = results.modern(identity)
    assert found == json.loads(json.dumps(identity).replace(f'"class": "{dotted}"', f'"class": "{own}"').replace(
        f'"function": "{dotted}"', f'"function": "{own}"')) and results.modern(found) == found


@pytest.mark.parametrize("old, new", results.RENAMED.items())
def test_results_of_format_1_are_found_under_the_present_names(old, new, tmp_path):
    model = {"code": "a", "arguments": "small_resnet()"}
    study = {"data": ["d"], "recipe": "r", "model": {"function": "rumlib.models.small_resnet", **model}}
    then = {"what": old, "code": "b", "study": study, "arguments": {
        "algorithm": {"class": "rumlib.algorithms.gradient.Finetune", "code": "c", "fields": {"lr": 0.1}}}}
    pack(tmp_path, [{"identity": then, "values": {"tensors": {"x": torch.arange(3)}}, "seconds": 1.0,
                     "made": here()}], {"profile": "tiny", "studies": {"tiny": study}})
    text = (tmp_path / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(text.replace('"format": 2', '"format": 1'))
    present = {"what": new, "code": "other", "study": {**study, "model": {"function": "small_resnet", **model}},
               "arguments": {"algorithm": {"class": "Finetune", "code": "other", "fields": {"lr": 0.1}}}}
    found = Published(tmp_path)
    assert found.find(present)["values"]["tensors"]["x"].tolist() == [0, 1, 2]
    assert found.origin()["changed since"] == [f"{new}: arguments.algorithm.code", f"{new}: code"]
    ((_, kept),) = found
    assert kept["identity"] == results.modern(then)
    present["arguments"]["algorithm"]["fields"]["lr"] = 0.2
    with pytest.raises(NotPublished, match=r"the nearest differs in arguments.algorithm.fields.lr\."):
        found.find(present)


@pytest.mark.parametrize("craft, words", [
    (lambda data: data[:-9], "cut off"), (lambda data: data + b"more", "cut off, or holds more"),
    (lambda data: b"no gzip" + data, "is no gzip file"), (lambda data: gzip.compress(bytes(LIMIT + 1)), "holds more"),
], ids=["cut", "longer", "other", "bomb"])
def test_a_compressed_file_is_read_within_bounds(craft, words, done, tmp_path):
    folder = shutil.copytree(done.packed, tmp_path / "packed")
    path, manifest = folder / "cells-000.jsonl.gz", json.loads((folder / "manifest.json").read_text())
    path.write_bytes(craft(path.read_bytes()))
    data = path.read_bytes()
    manifest["files"][path.name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=words):
        Published(folder)


def test_a_result_that_is_no_number_comes_back_and_its_file_is_json(tmp_path):
    identity = {"what": "original", "code": "b", "arguments": {},
                "study": {"data": [], "recipe": "r", "model": {"function": "f", "code": "a", "arguments": ""}}}
    values = {"rows": [{"degree": float("nan"), "on_test": float("-inf")}], "mia": float("inf"), "float": "nan"}
    pack(tmp_path, [{"identity": identity, "values": values, "seconds": 1.0, "made": here()}],
         {"profile": "tiny", "studies": {"tiny": identity["study"]}}, compress=False)
    found = Published(tmp_path).find(identity)["values"]
    assert repr(found) == repr(values)
    assert not {"NaN", "Infinity"} & set(re.findall(r"\w+", (tmp_path / "cells-000.jsonl").read_text()))


# -- The commands -----------------------------------------------------------------------------------------------------

LIVE = ("import rumlib as rum\nfrom rumlib.lab import Study, profile as named\n"
        "rum.fit(named(profile).make_model, Study(profile).train, rum.Recipe(epochs=1))")
ASKS = """
import rumlib as rum
from rumlib import plots
from rumlib.lab import Cell, Study
from rumlib.lab.provenance import save
from rumlib.lab.tables import unlearn
study = Study(profile, seeds=seeds, quiet=quiet)
low = study.levels()["low"]
def counted(study, c):
    return {"images": int((study.train.y == c).sum())}
rows = unlearn(study, (Cell(low, rum.Finetune(epochs=1, lr=0.1), seed, {"way": "FT"}) for seed in study.profile.seeds))
rows["images"] = [one["images"] for one in study.memoize(counted, [(c,) for c in range(len(rows))])]
classes = Study(study.profile.for_classes(), seeds=seeds, quiet=quiet)
classes.originals([0])
ax = plots.dots(rum.summarise(rows.assign(all=""), ["way", "all"], "tow"), "way", "all")
save(study, ax, "rows", table=rows)
"""
LAST = "from rumlib.lab.study import Study\nprint((Study(profile).figures / 'rows.csv').read_text())"


def make_paper(home, *arguments):
    """What `make paper` calls."""
    return subprocess.run([sys.executable, "-m", "rumlib.lab.run", *arguments], capture_output=True, text=True,
                          env={**os.environ, "RUM_HOME": str(home), "PYTHONPATH": str(Path(rum.__file__).parents[1])})


def write_notebooks(home):
    (home / "notebooks").mkdir(parents=True)
    for name, source in (("00_live", LIVE), ("01_asks", ASKS), ("02_last", LAST)):
        first = nbformat.v4.new_code_cell("profile = 'smoke'\nseeds = None\nquiet = True")
        first.metadata["tags"] = ["parameters", "live"] if source is LIVE else ["parameters"]
        made = nbformat.v4.new_notebook(cells=[first, nbformat.v4.new_code_cell(source)], metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})
        nbformat.write(made, home / "notebooks" / f"{name}.ipynb")


def notebooks(home):
    return sorted(path.name for path in (home / "runs/smoke").glob("*.ipynb"))


@pytest.mark.notebook
def test_a_run_in_pieces_is_published_and_made_again_elsewhere_and_goes_on_elsewhere(tmp_path):
    """Pieces, publish, figures from what was published in an empty home, and a run that goes on from it."""
    gpu, laptop, next_ = tmp_path / "gpu", tmp_path / "laptop", tmp_path / "next"
    for home in (gpu, laptop, next_):
        write_notebooks(home)

    piece = make_paper(gpu, "smoke", "", "0")
    assert piece.returncode == 75, piece.stderr
    assert "smoke 01_asks: the time is up; 1 of 1 subset models are left" in piece.stderr
    assert "smoke: 0 results done; of those asked for so far 1 are left" in piece.stdout
    assert notebooks(gpu) == ["01_asks.unfinished.ipynb"] and not list(gpu.glob("runs/smoke/results/*/*.json"))
    piece = make_paper(gpu, "smoke", "", "30")
    assert piece.returncode == 0, piece.stderr
    assert "Left out, as they train models themselves: 00_live" in piece.stdout
    assert notebooks(gpu) == ["01_asks.ipynb", "02_last.ipynb"]

    results, manifest, missing = publish("smoke", gpu)
    assert results == gpu / "figures/smoke/results" and missing == 0
    assert manifest == json.loads((results / "manifest.json").read_text())
    assert manifest["cells"] == {"apply": 2, "bank": 1, "oracle": 2, "original": 3, "run": 2}
    study = Study("smoke", home=gpu)
    assert manifest["labels"]["smoke"] == [label_hash(study.train.y), label_hash(study.test.y)]
    assert set(manifest["studies"]) == {"smoke", "smoke-classes"} and {"commit", "dirty", "device"} <= set(manifest)

    again = make_paper(laptop, "smoke", "", "", str(results))
    assert again.returncode == 0, again.stderr
    assert (laptop / "figures/smoke/rows.csv").read_bytes() == (gpu / "figures/smoke/rows.csv").read_bytes()
    assert notebooks(laptop) == notebooks(gpu) and not list(laptop.glob("runs/*/results"))
    origin = json.loads((laptop / "figures/smoke/rows.json").read_text())["published"]
    assert origin["commit"] == manifest["commit"] and origin["changed since"] == []

    assert unpack("smoke", results, next_) == (10, 10)
    for path in next_.glob("runs/smoke/results/run/*.json"):
        path.unlink()
    went_on = make_paper(next_, "smoke", "", "30")
    assert went_on.returncode == 0, went_on.stderr
    cells_ = json.loads((next_ / "figures/smoke/rows.json").read_text())["results"]
    assert (cells_["computed"], cells_["read back"]) == (2, 1 + 2 + 2 + 2)
    tows = [[line.split(",")[3] for line in (home / "figures/smoke/rows.csv").read_text().splitlines()]
            for home in (gpu, next_)]
    assert tows[0] == tows[1]


@pytest.mark.parametrize("command, arguments, words", [
    (paper, ("smoke", "", "soon"), "MINUTES must be a number, as in MINUTES=8; got 'soon'"),
    (paper, ("smoke", "", "8", "results"), "with FROM nothing is: give one of them"),
    (paper, ("smoke", "", "", "nowhere"), "no published results in nowhere"),
    (publishing, ("smoke",), "nothing is finished that could be published: make paper PROFILE=smoke"),
    (publishing, ("smoke", "nowhere"), "no published results in nowhere")])
def test_what_cannot_be_done_is_said(command, arguments, words, tmp_path, monkeypatch):
    monkeypatch.setenv("RUM_HOME", str(tmp_path))
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        command(*arguments)


def test_results_of_another_profile_are_not_unpacked(done, tmp_path):
    with pytest.raises(ValueError, match="are of profile 'tiny', not 'smoke'"):
        unpack("smoke", done.packed, tmp_path)
    assert not list(tmp_path.iterdir())


def test_results_of_format_1_are_read_and_not_unpacked(done, tmp_path):
    """What computes them was hashed otherwise: all would be stale."""
    folder, home = shutil.copytree(done.packed, tmp_path / "packed"), tmp_path / "home"
    text = (folder / "manifest.json").read_text().replace('"format": 2', '"format": 1')
    (folder / "manifest.json").write_text(text)
    assert len(list(Published(folder))) == len(list(Published(done.packed)))
    with pytest.raises(ValueError, match=rf"are of format 1, which is read \(make paper FROM={folder}\)"):
        unpack("tiny", folder, home)
    assert not home.exists()


def test_the_commands_say_what_they_did(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RUM_HOME", str(tmp_path))
    Study("smoke", quiet=True).originals([0])
    publishing("smoke")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1:] for line in lines[:2]] == [
        ["MiB", f"{tmp_path}/figures/smoke/results/{name}"]
        for name in ("cells-000.jsonl.gz", "tensors-000.safetensors")]
    assert lines[2].startswith("1 results, ")
    publishing("smoke", f"{tmp_path}/figures/smoke/results")
    said = capsys.readouterr().out
    assert "0 results unpacked into" in said and "ask for 1, and the others are stale" in said


SHIPPED = sorted((Path(__file__).parents[1] / "figures").glob("*/results"))


shipped = pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.parent.name)


@shipped
def test_the_results_that_ship_are_whole(folder):
    found = Published(folder)
    assert found.manifest["missing"] == 0 and sum(1 for _ in found) == sum(found.manifest["cells"].values())


@shipped
def test_the_results_that_ship_are_of_these_images(folder):
    manifest = Published(folder).manifest
    p = profile(manifest["profile"])
    try:
        train, test = rum.load(p.data, **p.options)
    except FileNotFoundError:                                # the data set does not ship: a user need not have it
        pytest.skip(f"{p.data} is not here")
    assert manifest["labels"][p.name] == [label_hash(train.y), label_hash(test.y)]


def things(value):
    """All classes and functions that an identity names."""
    if isinstance(value, list | dict):
        if isinstance(value, dict) and "code" in value and ("class" in value or "function" in value):
            yield value
        for part in value.values() if isinstance(value, dict) else value:
            yield from things(part)


@shipped
def test_the_results_that_ship_have_the_names_of_the_present_code(folder):
    """Their kinds, classes, fields and factories are there, so that a study of their data finds them."""
    found, root = Published(folder), Path(rum.__file__).parents[1]
    modules = [importlib.import_module(".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"))
               for file in (root / "rumlib").rglob("*.py")]
    own = {name: thing for module in modules for name, thing in vars(module).items()
           if getattr(thing, "__module__", "").startswith("rumlib.")}
    seen = set()
    for _, result in found:
        identity = result["identity"] if found.manifest["format"] > 1 else results.modern(result["identity"])
        assert identity["what"] in KINDS
        for thing in things([identity["arguments"], identity["study"]]):
            name = thing.get("class") or thing["function"]
            if name.startswith("own."):                      # a function of a notebook
                continue
            seen.add(name)
            assert name in own
            if "class" in thing:
                assert thing["fields"].keys() == {field.name for field in fields(own[name])}
    assert {"Finetune", "RUM", "SalUn"} <= seen
    p = profile(found.manifest["profile"])
    study = found.manifest["studies"][p.name]
    assert (study["recipe"], study["model"]["arguments"]) == (repr(p.recipe), describe(p.make_model))
