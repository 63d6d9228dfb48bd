"""The table of `make bench`: what a run of some rows does to the others. (To measure is for `make bench` itself.)"""

import json
import time
from functools import partial

import bench
import pandas as pd
import pytest
import torch
from bench import ROWS, exponent, main, usual_loader, write

from rumlib.graphs import WARM_UP
from rumlib.models import small_resnet
from rumlib.train import Recipe

ORIGIN = {"commit": "1234", "dirty": False, "machine": "a machine", "name": "CPU", "versions": {"torch": "2"}}


def test_no_title_begins_with_another():
    for title in ROWS:
        assert [other for other in ROWS if title.startswith(other)] == [title]


def test_a_row_replaces_what_it_said_before_and_nothing_else(tmp_path):
    path = tmp_path / "bench" / "cpu.csv"
    write(path, "feeding", [(" a", 1.0, 20.0, "s"), (" b", 1.0, 15.0, "s")], ORIGIN)
    write(path, "one MLP: our loop against a DataLoader loop", [("", 2.0, 3.0, "s")], ORIGIN)    # earlier on the list
    write(path, "feeding", [(" c", 2.0, 20.0, "s")], ORIGIN | {"dirty": True})
    table = pd.read_csv(path)
    assert table["what"].tolist() == ["one MLP: our loop against a DataLoader loop", "feeding c"]
    assert table["ratio"].tolist() == [1.5, 10.0]
    about = json.loads(path.with_suffix(".json").read_text())
    assert about["rows"] == {"one MLP: our loop against a DataLoader loop": "1234", "feeding": "1234, changed since"}


def test_rows_are_chosen_by_their_title(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RUM_HOME", str(tmp_path))
    monkeypatch.setenv("RUM_DEVICE", "cpu")
    with pytest.raises(ValueError, match="no row on cpu has 'walking' in its title; there are: Top-K's"):
        main("walking")
    main("read back FROM disk")
    assert len(pd.read_csv(tmp_path / "figures/bench/cpu.csv")) == 1
    assert capsys.readouterr().out.startswith("a model read back from disk, against 5 ms")


def test_what_is_set_up_once_does_not_count():
    assert bench.marginal(lambda epochs: time.sleep(0.1 + 0.01 * epochs)) == pytest.approx(0.01, rel=0.5)


def test_the_plain_loop_may_choose_its_convolutions(monkeypatch):
    seen, one = [], bench.photographs(4)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)

    def batches():
        seen.append(torch.backends.cudnn.deterministic)
        yield one.x.float(), one.y

    class Loader:
        __iter__ = staticmethod(batches)

    make_model = partial(small_resnet, shape=(3, 32, 32), widths=(4,))
    bench.usual_loop(make_model, Loader(), Recipe(epochs=2), torch.device("cpu"))
    assert seen == [False, False] and torch.backends.cudnn.deterministic


def test_memory_is_measured_after_enough_steps_to_record_one(monkeypatch):
    taken = []
    monkeypatch.setattr(bench, "fit", lambda make_model, images, recipe: taken.append((len(images), recipe.epochs)))
    bench.six_steps(True, 8)
    assert taken == [(8, 6)] and taken[0][1] > WARM_UP


def test_subset_models_are_timed_at_the_length_of_their_epochs(monkeypatch):
    asked = []
    monkeypatch.setattr(bench, "fit_many", lambda make_model, images, subsets, recipe, seeds, at_once: asked.append(
        (len(images), len(subsets), at_once, recipe.epochs)))
    monkeypatch.setattr(bench, "usual_loop", lambda *arguments: None)
    monkeypatch.setattr(bench, "seconds", lambda *ways, rounds: [way() or float(k) for k, way in enumerate(ways)])
    assert len(list(bench.at_once(torch.device("cpu")))) == 5
    assert asked == [(69 * 512, models, models, epochs) for models in (1, 2, 4, 8, 16) for epochs in (4, 12)]


def test_an_exponent_is_the_slope_of_logarithms():
    assert exponent(3.0, 6.0, 12.0) == pytest.approx(1) and exponent(0.1, 0.4, 1.6) == pytest.approx(2)


def test_the_usual_loader_gives_the_same_images_in_another_order():
    images = bench.photographs(6)
    seen = {float(x.sum()): int(y) for xs, ys in usual_loader(images, 4, False) for x, y in zip(xs, ys, strict=True)}
    ours = {float(((x / 255 - 0.5) / 0.25).sum()): int(y) for x, y in zip(images.x, images.y, strict=True)}
    assert sorted(seen.values()) == sorted(ours.values())
    torch.testing.assert_close(torch.tensor(sorted(seen)), torch.tensor(sorted(ours)), rtol=1e-4, atol=1e-2)
