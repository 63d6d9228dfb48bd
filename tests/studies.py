"""Studies of seconds, and what lies in their folders."""

import shutil
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch

import rumlib as rum
from rumlib import models
from rumlib.lab import ForgetSet, Study, profile
from rumlib.lab.codehash import Package

TINY = replace(
    profile("smoke"), name="tiny", options=dict(n=150, n_test=60), make_model=partial(models.mlp, hidden=(8,)),
    recipe=rum.Recipe(epochs=3, lr=0.1, batch_size=32), score_models=24, fraction=0.5, set_size=10, mix_size=None,
    bands=5, seeds=(0, 1), tuning_seeds=(100, 101))
finetune = rum.Finetune(epochs=1, lr=0.1, batch_size=32)
relabel = rum.RandomLabel(epochs=1, lr=0.05, batch_size=32)


@dataclass(frozen=True)
class Interrupted(rum.Finetune):
    """As when somebody presses Ctrl-C."""

    def loss(self, *args):
        raise KeyboardInterrupt


@contextmanager
def environ(**variables):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RUM_ENGINE": "serial", **variables}.items():
            patch.setenv(name, value)
        yield


def open_study(home, profile=TINY):
    """Of a profile, or of one by name."""
    return Study(profile, quiet=True, home=home)


def mine(study):
    return ForgetSet("mine", study.train.index[:10].sort().values)


def forget_set(study, first, name="mine"):
    return study.forget_set(name, torch.arange(len(study.train)) % 15 == first)


def files(home, pattern="*/*.json"):
    return sorted((Path(home) / "runs").glob(f"*/results/{pattern}"))


def edited(folder, file, old, new):
    """A copy of the package with one edit, as the code that results depend on."""
    shutil.copytree(Path(rum.__file__).parent, folder / "rumlib", ignore=shutil.ignore_patterns("__pycache__"))
    text = (folder / "rumlib" / file).read_text()
    assert old in text
    (folder / "rumlib" / file).write_text(text.replace(old, new, 1))
    return Package(folder / "rumlib")


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    """One bit, in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def lose(path):
    path.unlink()


def edit(path):
    """Another number, in a file that is still whole."""
    path.write_text(path.read_text().replace('"seconds": ', '"seconds": 1', 1))


def deep(path):
    """JSON that nests deeper than Python reads."""
    path.write_text("[" * 100_000 + "]" * 100_000)


DAMAGE = (cut, empty, flip, edit, deep)


def use(package, monkeypatch):
    """Let this be the code of the package, for all that asks for it."""
    for module in ("codehash", "memo", "check"):
        monkeypatch.setattr(f"rumlib.lab.{module}.PACKAGE", package)
