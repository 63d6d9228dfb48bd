"""What is read is data, never code; what is written stays in its folder."""

import ast
import io
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

import rumlib as rum
from rumlib.lab import tuning
from rumlib.lab.provenance import save

ROOT = Path(__file__).parents[1] / "rumlib"
FILES = sorted(ROOT.rglob("*.py"))
UNPICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib.load", "torch.load",
              "pandas.read_pickle", "torch.hub", "torch.jit.load", "torch.package", "yaml"}
RUNNING = {"eval", "exec", "compile", "__import__"}


def called(tree):
    """(dotted name with imports resolved, the call) of every call."""
    known = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {a.asname or a.name.partition(".")[0]: a.name if a.asname else a.name.partition(".")[0]
                      for a in node.names}
        if isinstance(node, ast.ImportFrom):
            known |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, _, rest = ast.unparse(node.func).partition(".")
            yield ".".join(filter(None, (known.get(first, first), rest))), node


def unsafe(source):
    """What a file does that could execute what it reads."""
    tree = ast.parse(source)
    modules = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names} | {
        f"{node.module}.{a.name}" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for a in node.names}
    found = {name for name in modules for bad in UNPICKLING if f"{name}.".startswith(f"{bad}.")}
    for name, call in called(tree):
        found |= {name} & (UNPICKLING | RUNNING)
        options = {k.arg: k.value for k in call.keywords}
        if name == "numpy.load" and ast.unparse(options.get("allow_pickle", ast.Constant(True))) != "False":
            found.add(name)
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_nothing_that_is_read_is_unpickled_or_executed(file):
    assert not unsafe(file.read_text())


@pytest.mark.parametrize("source, name", [
    ("import pickle", "pickle"), ("from pickle import loads as f", "pickle.loads"),
    ("import torch as t\nt.load('x')", "torch.load"), ("from torch import load\nload('x')", "torch.load"),
    ("import numpy as np\nnp.load('x', allow_pickle=True)", "numpy.load"),
    ("import numpy\nnumpy.load(x)", "numpy.load"), ("import joblib\njoblib.load('x')", "joblib.load"),
    ("import pandas as pd\npd.read_pickle(x)", "pandas.read_pickle"),
    ("eval('1')", "eval")])
def test_the_search_for_unpickling_finds_it(source, name):
    assert name in unsafe(source)
    assert not unsafe("import numpy as np\nnp.load(x, allow_pickle=False)\nmodel.eval()")


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def planted(folder, mark):
    """Everywhere that data sets, scores and cells are read from: pickles instead of what belongs there."""
    bomb, folder = pickle.dumps({"data": Bomb(mark), b"data": Bomb(mark)}), folder / "data"
    for name in ("cifar-10-batches-py/data_batch_1", "cifar-10-batches-py/test_batch",
                 "cifar-10-batches-py/batches.meta", "cifar-100-python/train", "cifar-100-python/test",
                 "cifar-100-python/meta", "scores.npz", "scores.csv",
                 "FashionMNIST/raw/train-images-idx3-ubyte", "FashionMNIST/processed/training.pt",
                 "FashionMNIST/processed/test.pt", "cifar10n/CIFAR-10_human.pt", "weights.safetensors", "card.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bomb)
    array = io.BytesIO()
    np.save(array, np.array([Bomb(mark)], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(folder / "objects.npz", "w") as file:
        for column in ("memorization", "y"):
            file.writestr(f"{column}.npy", array.getvalue())
    return folder


READERS = {
    **{name: lambda folder, _, name=name: rum.load(name, root=folder) for name in ("cifar10", "cifar100")},
    "fashion_mnist": lambda folder, _: rum.load("fashion_mnist", root=folder),
    **{name: lambda folder, train, name=name: rum.Score.read(folder / name, "memorization", train, labels="y")
       for name in ("scores.npz", "scores.csv", "objects.npz")},
    "card": lambda folder, _: rum.lab.Card.load(folder, rum.models.mlp),
    "ids": lambda folder, train: rum.datasets.forget_ids(folder / "scores.csv", train),
    "parquet": lambda folder, _: rum.load("cifar10", root=parquet(folder)),
}


def parquet(folder):
    for part in ("train", "test"):
        (folder / f"{part}.parquet").write_bytes((folder / "scores.npz").read_bytes())
    return folder


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_pickle_in_the_place_of_data_is_refused_and_not_executed(read, tmp_path, planted_train):
    mark = tmp_path / "executed"
    folder = planted(tmp_path, mark)
    with pytest.raises((ValueError, FileNotFoundError)):
        read(folder, planted_train)
    assert not mark.exists()
    pickle.loads((folder / "scores.npz").read_bytes())
    assert mark.exists()                                     # so that the test would have seen it


@pytest.fixture
def planted_train():
    return rum.Examples(torch.rand(1, 1, 2, 2), [0])


# -- Names ------------------------------------------------------------------------------------------------------------

NAMES = ["../mine", "a/b", "/etc/mine", "..", ".hidden", "", " ", "a\\b", "a\0b", None]


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_a_name_that_would_leave_its_folder_is_refused(name, tmp_path):
    figure, table = plt.subplots()[0], pd.DataFrame({"a": [1]})
    for what, use in (("a profile", lambda: replace(rum.lab.profile("smoke"), name=name)),
                      ("a figure", lambda: save(None, figure, name, folder=tmp_path / "in", table=table)),
                      ("a profile", lambda: tuning.tuned(name)),
                      ("a profile", lambda: tuning.write(name, ("level",), {("low",): {}}, tmp_path / "in"))):
        with pytest.raises(ValueError, match=f"name of {what} becomes a file"):
            use()
    plt.close(figure)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["mine", "my profile", "digits-2.5", "café"])
def test_other_names_are_as_they_were_given(name):
    assert replace(rum.lab.profile("smoke"), name=name).name == name


def test_a_study_writes_into_its_folders_alone(tmp_path, monkeypatch):
    """Whatever the notebook is called."""
    monkeypatch.setenv("RUM_NOTEBOOK", "../../../outside")
    study = rum.lab.Study("smoke", quiet=True, home=tmp_path / "home")
    study.originals([0])
    assert {path.parts[0] for path in (p.relative_to(tmp_path) for p in tmp_path.iterdir())} == {"home"}
    written = [path.relative_to(tmp_path / "home") for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert {path.parts[:2] for path in written} == {("runs", "smoke")}
