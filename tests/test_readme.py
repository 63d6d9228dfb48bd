"""The README's code does what the README says."""

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

import rumlib as rum
from rumlib.lab import claims

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)


def run(block, **names):
    exec(compile(block, "README.md", "exec"), names)         # code of this project, from its own front page
    return names


def test_your_own_model_in_five_lines():
    train, test = rum.load("digits", n=200, n_test=100)
    make_model = partial(rum.models.mlp, hidden=(16,))
    model = rum.fit(make_model, train, rum.Recipe(epochs=3), seed=0)
    mask = torch.arange(200) < 20
    lines = [line for line in BLOCKS[0].splitlines() if not line.startswith("import")]
    assert len(lines) <= 5
    lines[-1] = "tow = " + lines[-1]
    found = run("\n".join(["import rumlib as rum", *lines]), x=train.x, y=train.y, mask=mask, model=model,
                make_model=make_model, test=test)
    assert 0 <= found["tow"] <= 1
    assert len(found["forget"]) == 20 and found["unlearned"] is not model


def test_your_own_algorithm_in_under_twenty_lines(planted):
    assert len(BLOCKS[1].strip().splitlines()) < 20
    found = run(BLOCKS[1], rum=rum, dataclass=dataclass, torch=torch, F=F)
    algorithm = found["Uniform"](epochs=20, lr=0.3, weight=1.0, batch_size=10, clip=5.0)
    unlearned = algorithm(planted.model, planted.forget, planted.retain, seed=0)
    assert rum.accuracy(unlearned, planted.forget) < rum.accuracy(planted.model, planted.forget)


def test_every_page_that_it_links_to_is_there():
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text())
    assert all((ROOT / link).exists() for link in links if not link.startswith("http"))


def test_the_claims_are_those_of_the_tables():
    text = (ROOT / "README.md").read_text()
    stand = {name: text.split(claims.MARKS[0].format(name))[1].split(claims.MARKS[1].format(name))[0]
             for name in ("claims", "draws")}
    profiles = re.findall(r"`([\w-]+)`", stand["claims"].splitlines()[0])
    assert stand == claims.tables(ROOT, profiles) and "laptop" in profiles


def test_it_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
