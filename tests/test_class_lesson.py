"""What the notebooks on class unlearning and on perturbation show: counts, rates and pictures, beside what is known."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from studies import environ, finetune, open_study

import rumlib as rum
from rumlib import plots
from rumlib.lab import Cell, classes, perturbation


@pytest.fixture(scope="module")
def plane():
    train, test = rum.datasets.gaussians(n=60, n_test=40)
    model = rum.fit(lambda: rum.models.mlp(shape=(2,), classes=4, hidden=(8,), norm=True), train,
                    rum.Recipe(epochs=2, lr=0.1, batch_size=32))
    return model, *train.split_classes(0), test


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    with environ():
        yield open_study(tmp_path_factory.mktemp("home"))


# -- Classes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [None, 9, 1000])
def test_the_images_that_are_counted_are_those_that_pass_through_the_model(samples, plane):
    model, forget, retain, _ = plane
    one_pair, search = (rum.ClassProjection(alpha_r, 3.0, samples=samples, rows=None, scored=50)
                        for alpha_r in (10.0, (10.0, 30.0)))
    with rum.train.cost() as spaces:
        one_pair(model, forget, retain)
    with rum.train.cost() as both:
        tried = search.grid(model, forget, retain)
    found, searched = (classes.looked_at(way, forget, retain) for way in (one_pair, search))
    assert spaces.examples == sum(found.values())
    assert both.examples == spaces.examples + len(tried) * (searched["scored forgotten"] + searched["scored retained"])
    assert (searched["scored forgotten"], searched["scored retained"]) == (50, 50)


def test_the_number_that_the_readme_quotes():
    """25 of a class, and 2 of each of nine others: not 25 of these."""
    train = rum.Examples(torch.zeros(1297, 2), torch.arange(1297) % 10)
    found = classes.looked_at(rum.ClassProjection((10.0, 30.0), 1.0, samples=25, scored=500), *train.split_classes(0))
    assert found == {"forgotten": 25, "retained": 18, "scored forgotten": 130, "scored retained": 500}


def test_an_heir_is_the_class_that_most_are_given():
    assert classes.heir([5, 5, 0]) == (0, 0.5)
    with pytest.raises(ValueError, match="no image"):
        classes.heir([0, 0])


def test_regions_say_what_each_model_gets_right(plane):
    model, forget, _, test = plane
    figure = classes.regions({"mine": model, "again": model}, forget, test, title="two")
    found = rum.metrics.class_accuracies(model, forget, test)
    titles = [ax.get_title(loc="left") or ax.get_title() for ax in figure.axes]
    assert titles == [f"{name}\nforgotten {found['forget']:.1%}\nothers {found['retain']:.1%}"
                      for name in ("mine", "again")]
    plt.close(figure)


# -- Figures ----------------------------------------------------------------------------------------------------------


def test_in_a_ranking_every_row_has_its_own_look_and_its_single_values():
    rows = pd.DataFrame([{"algorithm": name, "tow": tow} for name in ("Projection", "EU-1") for tow in (0.2, 0.4)])
    ax = plots.ranked(rum.summarise(rows, "algorithm", "tow"), "algorithm", each=rows)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["Projection", "EU-1"]
    assert [bar.lines[0].get_color() for bar in ax.containers] == [plots.colour("Projection"), plots.colour("EU-1")]
    assert [dots.get_offsets()[:, 0].tolist() for dots in ax.collections if len(dots.get_offsets())
            and dots.get_alpha()] == [[0.2, 0.4]] * 2
    plt.close()


def test_a_grid_writes_its_numbers_and_leaves_out_the_smallest_shares():
    table = pd.DataFrame([[0.004, 0.5], [1.0, 0.0]], ["a", "b"], ["c", "d"])
    assert [text.get_text() for text in plots.grid(table, percent=True).texts] == ["50", "100"]
    assert [text.get_text() for text in plots.grid(table).texts] == ["0.00", "0.50", "1.00", "0.00"]
    plt.close("all")


# -- Perturbation -----------------------------------------------------------------------------------------------------


def test_a_smaller_random_set_is_part_of_a_larger_one(study):
    few, many = perturbation.random_sets(study, (0.1, 0.2)).values()
    assert (len(few), len(many)) == (15, 30) and set(few.index.tolist()) < set(many.index.tolist())
    assert few.name == "10% at random"


def test_rates_are_those_of_the_models(study):
    sets = perturbation.random_sets(study, (0.2,))
    forget = sets[0.2]
    rows = study.unlearn(Cell(forget, algorithm, 0, {"method": name}) for name, algorithm in {
        "nothing": rum.Keep(), "fine-tune": finetune,
        "retrained": rum.Retrain(study.profile.make_model, study.profile.recipe)}.items())
    found = perturbation.rated(rows, study, sets.values()).set_index("method")
    gone, kept = study.split(forget)
    a, a_r = (rum.accuracy(study.model(0), part) for part in (gone, kept))
    assert found.loc["nothing", ["FR", "FR calibrated", "MRR", "MRR test"]].tolist() == [0, 0, 1, 1]
    assert found.loc["retrained", "FR calibrated"] == pytest.approx(1)
    assert found.loc["retrained", "in examples"] == pytest.approx(1)
    tuned = found.loc["fine-tune"]
    assert tuned["FR"] == pytest.approx(max((a - tuned["forget"]) / a, 0), abs=1e-6)
    assert tuned["MRR"] == pytest.approx(tuned["retain"] / a_r)
    assert tuned["in examples"] == pytest.approx(study.profile.recipe.epochs)                  # it has one epoch


def test_the_smallest_share_that_forgets_nearly_most_among_those_that_keep_enough():
    rows = pd.DataFrame([{"ratio": ratio, "k": k, "FR calibrated": fr, "MRR": mrr} for ratio, k, fr, mrr in [
        ("5%", "1%", 0.5, 0.99), ("5%", "2%", 0.80, 0.99), ("5%", "5%", 0.81, 0.985), ("5%", "9%", 1.0, 0.9),
        ("10%", "1%", 0.9, 0.97)]])
    assert perturbation.smallest(rows) == {"5%": "2%", "10%": None}
    assert perturbation.smallest(rows, least=0.5) == {"5%": "9%", "10%": "1%"}


def test_degrees_are_averaged_over_the_generators():
    values = {"clean": 1.0, "shifted 0": 2.0, "shifted 1": 4.0, "noise 0": 3.0}
    rows = pd.DataFrame([{"method": "mine", "seed": 0, "probe": probe, **dict.fromkeys(perturbation.DEGREES, value)}
                         for probe, value in values.items()])
    found = perturbation.over_generators(rows)
    assert dict(zip(found["images"], found["degree"], strict=True)) == {"clean": 1.0, "shifted": 3.0, "noise": 3.0}
    assert np.allclose(found["adjusted_retain"], found["degree"])
