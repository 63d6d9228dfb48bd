"""What notebooks 04 and 05 run: forget sets of controlled entanglement, grids, the control, measures and figures."""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from studies import TINY, environ, finetune, forget_set, open_study

import rumlib as rum
from rumlib.lab import Cell, factors, measures, planted, profile, protocol, sets
from rumlib.lab import computations as made
from rumlib.lab.tuning import below_nothing, has_field


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """With the first two algorithms alone."""
    few = replace(TINY, algorithms=dict(list(TINY.algorithms.items())[:2]), further={})
    with environ():
        yield open_study(tmp_path_factory.mktemp("home"), few)


# -- Forget sets ------------------------------------------------------------------------------------------------------


@dataclass
class Band:
    """A forget set of known entanglement."""

    score: float
    facts: dict = field(init=False)

    def __post_init__(self):
        self.facts = {"entanglement": self.score}


@dataclass
class Banded:
    """Stands for a study: bands of known scores, the nearest first."""

    scores: tuple

    def bands(self):
        return [Band(score) for score in self.scores]


@pytest.mark.parametrize("scores, low, medium, high", [
    ((9, 5, 1), 1, 5, 9), ((70, 400, 650, 300, 200, 90, 60), 60, 300, 650),
    ((1, 2, 3, 9, 2), 2, 9, 3),                              # there is no room between the last two
    ((5, 8, 7, 6, 20), 20, 7, 8)])                           # low is the farthest, whatever was measured
def test_the_sets_lie_at_smaller_distances_and_are_named_by_them(scores, low, medium, high):
    found = sets.entanglement_sets(Banded(scores))
    assert [(name, band.score) for name, band in found.items()] == [
        ("ES low", low), ("ES medium", medium), ("ES high", high)]


def test_too_few_bands_are_refused():
    with pytest.raises(ValueError, match="at least 3 bands; got bands=2"):
        sets.entanglement_sets(Banded((1, 2)))


def test_the_farthest_examples_of_a_study_are_its_low_set(study):
    found, distance = study.entanglement_sets(), study.distance()
    of = [distance[torch.isin(study.train.index, forget.index)] for forget in found.values()]
    assert of[0].min() >= of[1].max() and of[1].min() >= of[2].max()
    assert of[0].max() == distance.max()


def test_the_plane_is_that_of_the_first_two_principal_components(study):
    points, found = made.embedding(study, 0).numpy().astype(float), made.plane(study, 0)["tensors"]["plane"].numpy()
    u, s, _ = np.linalg.svd(points - points.mean(0), full_matrices=False)
    assert np.allclose(abs(found), abs(u[:, :2] * s[:2]), atol=1e-4)


def test_a_study_measures_both_widths_of_mmd(study):
    forget = forget_set(study, 3)
    gone, points = torch.isin(study.train.index, forget.index), made.embedding(study, 0)
    found = study.entanglement(forget)
    for name, gamma in (("mmd", 1.0), ("mmd_median", "median")):
        assert found[name] ** 2 == pytest.approx(rum.mmd(points[gone], points[~gone], gamma))


# -- Settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["laptop", "cifar10-small", "cifar10"])
def test_doing_nothing_is_inside_the_grid_of_all_that_descend(name):
    p = profile(name)
    for label, (_, space) in protocol.candidates(p, p.budgets[-1]).items():
        assert min(space.get("lr", (0,))) <= 0.0005 or label == "EU-1", label


def test_the_papers_algorithms_have_the_papers_ranges():
    p = profile("laptop")
    spaces = {name: space for name, (_, space) in protocol.of_the_paper(p, p.budgets[-1]).items()}
    assert set(spaces) == {*p.algorithms, "Influence", "Original"}
    assert min(spaces["NegGrad+"]["alpha"]) >= 0.85 and max(spaces["NegGrad+"]["alpha"]) <= 0.99
    assert set(spaces["SalUn"]["keep"]) == {0.3, 0.5, 0.7}
    assert min(spaces["L1-sparse"]["alpha"]) >= 1e-6 and max(spaces["L1-sparse"]["alpha"]) <= 1e-4


def test_every_level_has_the_same_looks():
    p = profile("laptop")

    class Named:
        profile = p

    ways = protocol.of_the_paper(p, p.budgets[-1])
    table = protocol.on_levels(Named, {"low": 1, "high": 2}, ways)
    assert {name[0] for name in table.spaces} == {"low", "high"} and len(table.spaces) == 2 * len(ways)
    assert all(has_field(algorithm, "epochs") is False or getattr(algorithm, "inner", algorithm).epochs == p.budgets[-1]
               for _, algorithm, _ in table.spaces.values())


def recorded(*rows):
    return pd.DataFrame([{"name": name, "setting": setting, "forget": forget, "tow": tow, "chosen": chosen}
                         for name, setting, forget, tow, chosen in rows])


STILL = ("still", {}, "f", 0.9, True)


def test_what_is_tuned_below_doing_nothing_is_found():
    found = below_nothing(recorded(STILL, ("bad", {"lr": 1}, "f", 0.8, True), ("bad", {"lr": 2}, "f", 0.7, False),
                                   ("good", {"lr": 1}, "f", 0.95, True), ("as good", {"lr": 1}, "f", 0.9, True)))
    assert found["name"].tolist() == ["bad"]
    assert found.loc[0, ["tow", "nothing", "difference"]].tolist() == pytest.approx([0.8, 0.9, -0.1])


def test_of_a_rum_that_is_tuned_by_step_the_last_choice_counts():
    steps = (("rum", {"lr": 1}, "f", 0.5, True), ("rum", {"lr": 2}, "f", 0.95, True))
    assert below_nothing(recorded(STILL, *steps)).empty
    assert len(below_nothing(recorded(STILL, *reversed(steps)))) == 1


def test_without_doing_nothing_there_is_nothing_to_compare_with():
    with pytest.raises(ValueError, match=r"not tried on 1 of 2 forget sets; add"):
        below_nothing(recorded(STILL, ("a", {"lr": 1}, "g", 0.8, True)))


def test_doing_nothing_is_tuned_like_everything_else(study):
    forget = forget_set(study, 3)
    chosen, record = study.tune({"still": (forget, *protocol.NOTHING["Original"]), "F": (forget, finetune, (1e-9,))})
    assert chosen["still"] == rum.Keep() and record["setting"].tolist() == [{}, {"lr": 1e-9}]
    assert record["tow"].iloc[0] == pytest.approx(record["tow"].iloc[1], abs=0.02)
    assert isinstance(below_nothing(record), pd.DataFrame)


# -- Measures ---------------------------------------------------------------------------------------------------------


def test_the_papers_measures_of_a_row(study):
    forget = forget_set(study, 3)
    rows = study.unlearn(Cell(forget, way, seed, {"level": "low", "algorithm": name})
                         for name, way in (("Original", rum.Keep()), ("F", finetune)) for seed in (0, 1))
    found = measures.measured(rows, study, [forget])
    assert (found["factor_forget"] * found["factor_retain"] * found["factor_test"]).tolist() == pytest.approx(
        rows["tow"].tolist())
    assert ((1 - found["mia_gap"]) * found["factor_retain"] * found["factor_test"]).tolist() == pytest.approx(
        rows["tow_mia"].tolist())
    original, oracle, sets = study.model(0), study.retrained(forget, 0), study.split(forget)
    known = rum.metrics.disagreements(original, oracle, dict(zip("frt", (*sets, study.test), strict=True)))["overall"]
    assert found["differs"].iloc[0] == pytest.approx(known)


def test_the_oracle_is_a_line_of_every_table(study):
    forget = forget_set(study, 3)
    rows = study.unlearn(Cell(forget, finetune, seed, {"level": "low", "algorithm": "F"}) for seed in (0, 1))
    rows = measures.with_retrained(measures.measured(rows, study, [forget]), ["level"])
    table = measures.tabled(rows, ["level", "algorithm"])
    retrained = table["mean"].xs(("low", "Retrained"), level=("level", "algorithm"))
    assert retrained[["ToW", "ToW-MIA", "1 - dF"]].tolist() == [1, 1, 1] and retrained["differs"] == 0
    expected = [study.reference(forget, seed) for seed in (0, 1)]
    assert retrained["forget"] == pytest.approx(sum(e.forget for e in expected) / 2)
    assert retrained["MIA"] == pytest.approx(sum(e.mia for e in expected) / 2)
    text = measures.compact(table)
    assert list(text.columns) == list(measures.MEASURES.values())
    assert text.loc[("low", "Retrained"), "ToW"] == "1.000 ± 0.000"


# -- What the two notebooks share -------------------------------------------------------------------------------------


def test_forget_sets_are_described_by_what_is_measured_of_them(study):
    forget = forget_set(study, 3)
    gone, points = torch.isin(study.train.index, forget.index), made.embedding(study, 0)
    line = factors.described(study, {"mine": forget}).loc["mine"]
    assert (line["n"], line["hash"]) == (len(forget), forget.digest)
    values = study.score.values[gone].numpy()
    assert [line["memorization"], line["its sd"]] == pytest.approx([values.mean(), values.std(ddof=1)], abs=1e-6)
    assert line["ES"] == pytest.approx(rum.entanglement(points[gone], points[~gone]))
    assert line["distance"] == pytest.approx((points[gone] - points.mean(0)).norm(dim=1).mean().item(), rel=1e-5)


KNOWN = {"A": ((0.9, 0.8), (0.5, 0.4)), "Original": ((1.0, 1.0), (0.2, 0.4))}                 # ToW at low, at high


def known_rows():
    return pd.DataFrame([{"level": level, "algorithm": name, "seed": seed, "tow": tow, "tow_mia": 1 - tow}
                         for name, levels in KNOWN.items() for level, tows in zip(("low", "high"), levels, strict=True)
                         for seed, tow in enumerate(tows)])


def test_a_fall_is_paired_and_its_verdict_is_told():
    found = factors.falls(known_rows(), "C2", "low", "high", list(KNOWN))
    assert found["mean"].tolist() == pytest.approx([0.4, 0.7]) and found["what"]["A"] == "A: low - high"
    assert found.loc["A", ["low", "high"]].tolist() == pytest.approx([0.4, 0.4])
    assert found["verdict"].to_dict() == {"A": "holds", "Original": "inconclusive"}  # 0.8 and 0.6: two do not suffice
    assert factors.told_falls(found) == "1 of 1 algorithms"                  # doing nothing is no algorithm
    rises = factors.falls(known_rows(), "C2", "low", "high", ["A"], of="tow_mia")
    assert rises["mean"].tolist() == pytest.approx([-0.4]) and factors.told_falls(rises) == "0 of 1 algorithms"
    assert factors.differences(found)["difference [95 % CI]"].iloc[0] == "+0.400 [+0.400, +0.400]"


def test_a_factor_is_drawn_on_a_real_axis_beside_the_falls():
    figure = factors.factor(known_rows(), {"low": 10.0, "high": 210.0}, list(KNOWN), "C2", title="a title")
    left, right = figure.axes
    for line in left.containers:
        assert line[0].get_xdata() == pytest.approx([10, 210], abs=5)        # a little apart for each algorithm
    assert [text.get_text() for text in left.get_xticklabels()] == ["low\n10", "high\n210"]
    assert [line[0].get_xdata()[0] for line in right.containers] == pytest.approx([0.4, 0.7])
    assert [text.get_text() for text in right.get_yticklabels()] == ["A", "doing nothing"]
    assert "doing\nnothing" in [text.get_text() for text in left.texts] and figure.get_suptitle() == "a title"


def test_oracles_are_compared_with_those_of_the_next_seed(study):
    forget = forget_set(study, 3)
    rows = factors.other_seed(study, {"mine": forget})
    assert len(study.profile.seeds) == 2 and len(rows) == 1                  # one pair
    one, other = (study.reference(forget, seed) for seed in study.profile.seeds)
    assert rows["tow"][0] == pytest.approx(rum.stats.tow_between(one, other)["tow"])
    assert rows["tow"][0] == pytest.approx(rum.stats.tow_between(other, one)["tow"])


def test_chosen_settings_are_a_table_and_failures_of_the_search_a_file(study):
    record = recorded((("low", "Original", 5), {}, "f", 0.9, True), (("low", "A", 5), {"lr": 0.1}, "f", 0.8, True),
                      (("low", "A", 5), {"lr": 1.0}, "f", 0.7, False),
                      (("low", "B", 5), {"lr": 1.0, "alpha": 1e-5}, "f", 0.95, True))
    table = factors.settings(record, ["B"])
    assert table["low"].to_dict() == {"B": "lr 1, alpha 1e-05", "A": "lr 0.1"} and list(table.index) == ["B", "A"]
    errors = factors.search_errors(study, record, "tests")
    assert factors.labelled(errors)[["level", "algorithm"]].values.tolist() == [["low", "A"]]
    kept = pd.read_csv(study.figures / "tuning_errors_tests.csv")
    assert kept["difference"].tolist() == pytest.approx([-0.1])
    assert factors.told_errors(errors, record) == (
        "1 of 3 chosen settings are below doing nothing on the tuning seeds, by 0.1000 of ToW at most.")
    assert factors.told_errors(errors[:0], record).startswith("None of 3 chosen settings is below")


def test_chosen_values_at_an_end_of_their_grid_are_found():
    record = recorded(*[(("low", "A", 5), {"lr": lr, "alpha": 1.0}, "f", lr, lr == 0.4) for lr in (0.1, 0.2, 0.4)],
                      *[(("high", "A", 5), {"lr": lr, "keep": keep}, "f", lr, (lr, keep) == (0.1, 0.5))
                        for lr in (0.1, 0.2) for keep in (0.3, 0.5, 0.7)], (("low", "Original", 5), {}, "f", 0.9, True))
    assert factors.edges(record, ["A", "Original"]).to_numpy().tolist() == [
        ["A", "low", "lr", 0.4, "largest"], ["A", "high", "lr", 0.1, "smallest"], ["A", "high", "keep", 0.5, ""]]


def test_relabelling_as_published_keeps_to_the_rates_of_the_paper():
    laptop = SimpleNamespace(profile=profile("laptop"), levels=lambda: dict.fromkeys(protocol.LEVELS, "a set"))
    table = protocol.relabel_as_published(laptop)
    assert {(level, name) for level, name, _ in table.spaces} == {
        (level, name) for level in ("low", "high") for name in ("Random label", "SalUn")}
    rates = [rate for _, _, space in table.spaces.values() for rate in space["lr"]]
    assert rates and min(rates) >= 0.01 and max(rates) <= 0.1


# -- The control ------------------------------------------------------------------------------------------------------


def test_planted_sets_differ_in_entanglement_and_not_in_labels():
    train, test, masks = made.plant(0)
    assert list(masks) == ["isolated", "overlapping"] and {int(mask.sum()) for mask in masks.values()} == {60}
    assert not (masks["isolated"] & masks["overlapping"]).any() and set(test.y.tolist()) == {0, 1, 2, 3}
    scores = {place: rum.entanglement(train.x[mask], train.x[~mask]) for place, mask in masks.items()}
    assert scores["overlapping"] > 5 * scores["isolated"]
    for mask in masks.values():                              # random labels: none has more than chance gives
        assert torch.bincount(train.y[mask], minlength=4).max() < 30
    again, other = made.plant(0)[0], made.plant(1)[0]
    assert again.digest == train.digest != other.digest


def test_the_control_is_tuned_and_reported_on_both_sets(study):
    rows, record = planted.run(study)
    names = [*study.profile.algorithms, "Original"]
    assert set(zip(rows["level"], rows["algorithm"], strict=True)) == {
        (place, name) for place in ("isolated", "overlapping") for name in names}
    assert sorted(rows["seed"].unique()) == list(study.profile.seeds) and rows["tow"].between(0, 1).all()
    looks = rows.drop_duplicates(["level", "algorithm"])["looks"].sum()
    assert looks == len(record) == len(names) * 2
    still = rows[rows["algorithm"] == "Original"].iloc[0]
    assert still["examples"] == 0 and still["forget"] > 0.9 > 0.6 > still["oracle_forget"]     # learned by heart
    facts = planted.facts(study).set_index("place")
    assert facts.loc["overlapping", "entanglement"] > 5 * facts.loc["isolated", "entanglement"]
    assert facts["memorization"].min() > 0.5
    assert abs(facts["memorization"].diff().iloc[-1]) < 0.15
