"""Wrong labels: scores whose quality is known, and wrong labels whose standing in the models is planted."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rumlib.data import Examples
from rumlib.lab.errors import auroc, precision, ranked, standing
from rumlib.scores import Bank

WRONG = torch.arange(40) < 10


def test_a_perfect_a_useless_and_a_reversed_score():
    noise = torch.rand(40, generator=torch.Generator().manual_seed(0))
    table = ranked(WRONG, {"perfect": WRONG + noise / 2, "useless": torch.zeros(40), "reversed": -WRONG.float()})
    assert table["auroc"].tolist() == [1.0, 0.5, 0.0]
    assert table.loc["perfect", ["precision", "precision low", "precision high"]].tolist() == [1.0, 1.0, 1.0]
    assert table.loc["reversed", "precision"] == 0.0 and table.loc["perfect", "more high"] == 0.0
    assert table.loc["useless", "more high"] < 0                             # significantly worse than the first score


def test_ties_count_half_and_the_interval_holds_the_value():
    wrong, values = np.array([True, False, True, False]), np.array([2.0, 2.0, 1.0, 0.0])
    assert auroc(wrong, values) == pytest.approx((0.5 + 1 + 0 + 1) / 4)
    assert precision(wrong, values, k=3) == pytest.approx(2 / 3)
    noisy = WRONG + torch.randn(40, generator=torch.Generator().manual_seed(1))
    row = ranked(WRONG, {"noisy": noisy}).iloc[0]
    assert row["auroc low"] < row["auroc"] < row["auroc high"]
    assert row["precision low"] <= row["precision"] <= row["precision high"]


def test_wrong_labels_are_memorized_learned_or_resisted():
    included = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]], dtype=torch.bool)
    correct = torch.tensor([[1, 1, 0, 1], [1, 1, 0, 1], [0, 1, 0, 1], [0, 1, 0, 1]], dtype=torch.bool)
    train = Examples(torch.rand(4, 2), torch.tensor([1, 1, 1, 0]), torch.arange(4) + 10, names=("cat", "dog"),
                     info={"flipped": torch.tensor([True, True, True, False]), "clean": torch.tensor([0, 0, 0, 0])})
    found = standing(SimpleNamespace(train=train, score=Bank(included, correct).score(train.index)))
    assert found["how"].tolist() == ["memorized", "learned", "resisted"]
    assert found["index"].tolist() == [10, 11, 12] and set(found["clean"]) == {"cat"} and set(found["given"]) == {"dog"}
    assert found["inside"].tolist() == [1.0, 1.0, 0.0] and found["outside"].tolist() == [0.0, 1.0, 0.0]
    assert found["among first"].tolist()[0]
