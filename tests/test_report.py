"""The report of a card, for those who answer for the data."""

import hashlib
import re
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import pairwise

import pytest
import torch

import rumlib as rum
from rumlib.lab import Card, report_card
from rumlib.lab.report import text

make_model = partial(rum.models.mlp, shape=(1, 4, 4), classes=3, hidden=(4,))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    examples = rum.Examples(torch.rand(12, 1, 4, 4), torch.arange(12) % 3, torch.arange(70, 82))
    forget, retain = examples.split(torch.arange(12) < 4)
    model = rum.models.build(make_model, 0).eval()
    card = Card.of(rum.Finetune(epochs=1), forget, retain, network=make_model, seed=3, spent=rum.train.Cost(examples=7),
                   metrics={"accuracy <forget>": 0.25, "mia": float("nan")}, limits=("Only <twelve> images.",), ids=5)
    return card.save(model, tmp_path_factory.mktemp("report") / "unlearned"), card


def test_the_report_says_what_was_asked_done_measured_and_not_promised(saved):
    folder, card = saved
    path = report_card(folder)
    page = path.read_text()
    weights = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    for words in ("4 of 12", "70, 71, 72", card.forgotten["index"], card.retained["index"], weights,
                  "Finetune(epochs=1", "<td>0.25</td>", "<td>not measured</td>", "Only &lt;twelve&gt; images.",
                  "no trace",
                  hashlib.sha256((folder / "card.json").read_bytes()).hexdigest(), "None was made"):
        assert words in page, words
    assert "<twelve>" not in page and "<forget>" not in page                     # text of others is text


def test_the_report_stands_alone_and_can_be_printed(saved):
    page = report_card(saved[0]).read_text()
    assert not re.search(r"<(script|img|link|iframe)\b|url\(|@import|https?:", page)
    assert "@media print" in page and '<html lang="en">' in page
    levels = [int(level) for level in re.findall(r"<h(\d)", page)]
    assert levels[0] == 1 and all(b - a <= 1 for a, b in pairwise(levels))


def test_audits_are_named_with_their_outcome(saved):
    values = {f.name: getattr(saved[1], f.name) for f in fields(Card)}
    if "audits" in values:
        card = Card(**{**values, "audits": {"linear probe": "passed", "relearning": "flagged"}})
    else:
        @dataclass(frozen=True)
        class Audited(Card):
            audits: dict = field(default_factory=dict)

        card = Audited(**values, audits={"linear probe": "passed", "relearning": "flagged"})
    page = text(card)
    assert '<th scope="row">linear probe</th><td>passed</td>' in page and "<td>flagged</td>" in page
    assert "None was made" not in page


@pytest.mark.parametrize("name", ["card.json", "weights.safetensors"])
def test_a_damaged_card_has_no_report(name, saved, tmp_path):
    for path in (saved[0] / "card.json", saved[0] / "weights.safetensors"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes().replace(b"1", b"2").replace(b"\0", b"\1"))
    with pytest.raises(ValueError, match=r"damaged|changed since"):
        report_card(tmp_path)
    assert not (tmp_path / "report.html").exists()
