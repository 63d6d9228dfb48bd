"""Results on disk: what is read back, what is computed anew, and what a study says about itself."""

import json
import linecache
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import planted
import pytest
import torch
from PIL import Image
from studies import (
    TINY,
    Interrupted,
    cut,
    deep,
    edit,
    edited,
    empty,
    environ,
    files,
    finetune,
    forget_set,
    lose,
    mine,
    open_study,
    relabel,
    use,
)

import rumlib as rum
from rumlib import metrics, models, train
from rumlib.lab import Cell, ForgetSet, Study, profile
from rumlib.lab import computations as made
from rumlib.lab.keys import digest_of
from rumlib.lab.memo import Stopped, stopwatch
from rumlib.lab.store import Store
from rumlib.spdgan import SPDGAN


@dataclass(frozen=True)
class Fails(rum.Finetune):
    """Diverges above a learning rate of `limit`, but not on the seeds that are `safe`."""

    limit: float = 1.0
    safe: tuple[int, ...] = ()

    def __call__(self, model, forget, retain, *, seed=0, only=None):
        risky = self.lr > self.limit and seed not in self.safe
        return replace(finetune, lr=1e30 if risky else self.lr)(model, forget, retain, seed=seed)


@pytest.fixture(autouse=True)
def serial(monkeypatch):
    monkeypatch.setenv("RUM_ENGINE", "serial")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A home in which the small study has been run once, and its rows."""
    with environ():
        home = tmp_path_factory.mktemp("home")
        return home, small(open_study(home))


@pytest.fixture
def study(tmp_path):
    return open_study(tmp_path)


def small(study):
    levels = study.levels()
    return study.unlearn(Cell(levels[level], algorithm, seed, {"level": level, "algorithm": name})
                         for level in ("low", "high") for name, algorithm in (("FT", finetune), ("RL", relabel))
                         for seed in study.profile.seeds)


def comparable(rows):
    return rows.drop(columns="seconds")


# -- Resuming ---------------------------------------------------------------------------------------------------------


def test_a_second_run_reads_everything_back(done):
    home, rows = done
    again = open_study(home)
    pd.testing.assert_frame_equal(small(again), rows)
    assert again.used["computed"] == 0 and again.used["read back"] == 1 + 2 + 4 + 8     # bank, originals, oracles, runs


def test_rows_are_what_they_say(done):
    home, rows = done
    study = open_study(home)
    row, forget = rows.iloc[-1], study.levels()["high"]
    gone, kept = study.split(forget)
    assert (row["set"], row["level"], row["algorithm"], row["seed"]) == ("high", "high", "RL", 1)
    original = rum.fit(TINY.make_model, study.train, TINY.recipe, seed=1)
    oracle = rum.fit(TINY.make_model, kept, TINY.recipe, seed=1)
    unlearned = relabel(original, gone, kept, seed=1)
    assert row["tow"] == rum.tow(unlearned, oracle, gone, kept, study.test)
    assert row["tow_mia"] == rum.tow_mia(unlearned, oracle, gone, kept, study.test)
    assert row["differs_forget"] == metrics.disagreement(unlearned, oracle, gone)
    assert row["oracle_test"] == rum.accuracy(oracle, study.test)
    assert (row["examples"], row["steps"]) == (150, 5)


def test_the_score_of_a_study_is_the_estimator(done):
    study = open_study(done[0])
    alone = rum.memorization(TINY.make_model, study.train, TINY.recipe, models=24, fraction=0.5)
    torch.testing.assert_close(study.score.values, alone.values, atol=1 / 6, rtol=0)     # one flip by rounding at most
    assert (study.score.values != alone.values).sum() <= 1
    assert torch.equal(study.score.bank.included, alone.bank.included)


def test_forget_sets_are_those_the_score_picks(done):
    study = open_study(done[0])
    for name, chosen in study.levels().items():
        mask = study.score.pick(30 if name == "mix" else 10, name)
        assert torch.equal(chosen.index, study.train.index[mask].sort().values)
        assert chosen.facts["memorization"] == pytest.approx(study.score.values[mask].mean().item())
        gone, kept = study.split(chosen)
        assert torch.equal(gone.index, chosen.index) and len(kept) == 150 - len(chosen)
    embedding = rum.features(study.model(0), study.train)
    sets = study.bands()
    assert [len(band) for band in sets] == [30] * 5
    assert len(torch.cat([band.index for band in sets]).unique()) == 150
    inside = torch.isin(study.train.index, sets[2].index)
    assert sets[2].facts["entanglement"] == rum.entanglement(embedding[~inside], embedding[inside])


def test_an_interrupted_study_goes_on_where_it_was(study, tmp_path):
    forget = forget_set(study, 0)
    cells = [Cell(forget, finetune, seed) for seed in (0, 1)]
    with pytest.raises(KeyboardInterrupt):
        study.unlearn([*cells, Cell(forget, Interrupted(), 0)])
    again = open_study(tmp_path)
    again.unlearn(cells)
    assert again.used["computed"] == 0
    assert not files(tmp_path, "*/.*")            # nothing half-written is left


# -- What is computed anew --------------------------------------------------------------------------------------------


CHANGES = {
    "another forget set": (lambda s: Cell(forget_set(s, 1), finetune, 0), 2),        # its oracle and its run
    "another learning rate": (lambda s: Cell(forget_set(s, 0), replace(finetune, lr=0.2), 0), 1),
    "another wrapper": (lambda s: Cell(forget_set(s, 0), rum.SalUn(relabel), 0), 1),
    "another seed": (lambda s: Cell(forget_set(s, 0), finetune, 1), 3),              # original, oracle, run
    "other labels of the row": (lambda s: Cell(forget_set(s, 0), finetune, 0, {"name": "FT"}), 0),
    "another name of the set": (lambda s: Cell(forget_set(s, 0, "other"), finetune, 0), 0),
    "nothing": (lambda s: Cell(forget_set(s, 0), rum.Finetune(epochs=1, lr=0.1, batch_size=32), 0), 0),
}


@pytest.fixture(scope="module")
def one_cell(tmp_path_factory):
    with environ():
        home = tmp_path_factory.mktemp("cell")
        study = open_study(home)
        study.unlearn([Cell(forget_set(study, 0), finetune, 0)])
    return home


@pytest.mark.parametrize("change, computed", CHANGES.values(), ids=CHANGES)
def test_a_change_computes_what_depends_on_it_and_no_more(change, computed, one_cell, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(one_cell, home)
    study = open_study(home)
    cell = change(study)
    before = study.used["computed"]
    study.unlearn([cell])
    assert study.used["computed"] - before == computed


@pytest.mark.parametrize("change", [
    dict(recipe=replace(TINY.recipe, lr=0.05)),
    dict(make_model=partial(models.mlp, hidden=(9,))),
    dict(options=dict(n=150, n_test=60, seed=1)),
    dict(options=dict(n=150, n_test=61)),
], ids=["recipe", "network", "data", "test data"])
def test_a_change_of_the_study_computes_everything_anew(change, one_cell):
    known, other = open_study(one_cell), open_study(one_cell, replace(TINY, **change))
    keys = [digest_of(made.original.identity(study, 0)) for study in (known, other)]
    assert [known.store.read("original", key) is None for key in keys] == [False, True]


# A study of 20 of 24 photographs in a folder: two forget sets, two algorithms, one seed. One thing is changed, and what
# is computed again is counted: of 1 original, 2 oracles and 4 runs.


def photographs(folder):
    random = np.random.default_rng(0)
    for part, n in (("train", 12), ("test", 4)):
        for name in ("cats", "dogs"):
            (folder / part / name).mkdir(parents=True)
            for k in range(n):
                pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{k:02}.png")
    return folder


def of_photographs(home, **changes):
    settings = dict(recipe=TINY.recipe, members=(0, 1, 2), algorithm=rum.NegGradPlus(epochs=1, lr=0.01, batch_size=8))
    settings |= changes
    profile = replace(TINY, name="photographs", data=str(home / "photographs"), options=dict(n=20, size=8),
                      recipe=settings["recipe"], make_model=partial(
                          models.mlp, shape=(3, 8, 8), classes=2, hidden=(4,)))
    study = Study(profile, quiet=True, home=home)
    sets = [ForgetSet(name, study.train.index[list(rows)])
            for name, rows in (("one", settings["members"]), ("other", (5, 6)))]
    algorithms = (finetune, settings["algorithm"])
    study.unlearn(Cell(forget, algorithm, 0) for forget in sets for algorithm in algorithms)
    return study, {path: path.read_bytes() for path in (home / "runs").rglob("results/*/*.json")}


def change_a_byte(home, part, place):
    """One colour of one pixel, by one level, of the image at that place of its class."""
    path = home / "photographs" / part / "cats" / f"{place:02}.png"
    pixels = np.array(Image.open(path))
    pixels[3, 3, 1] ^= 1
    Image.fromarray(pixels).save(path)


def seen(study, wanted):
    """The place of the first cat that the study has chosen, or not."""
    chosen = set(study.train.index.tolist())
    return next(k for k in range(12) if (k in chosen) == wanted)


EVERYTHING = {"original": 1, "oracle": 2, "run": 4}
ONE_THING = {
    "nothing": (lambda *_: {}, {}),
    "a byte of a training image": (lambda home, study: change_a_byte(home, "train", seen(study, True)), EVERYTHING),
    "a byte of an image not chosen": (lambda home, study: change_a_byte(home, "train", seen(study, False)), {}),
    "a byte of a test image": (lambda home, study: change_a_byte(home, "test", 0), EVERYTHING),
    "a parameter of an algorithm": (lambda *_: dict(
        algorithm=rum.NegGradPlus(epochs=1, lr=0.01, batch_size=8, alpha=0.94)), {"run": 2}),
    "a parameter of training": (lambda *_: dict(recipe=replace(TINY.recipe, momentum=0.8)), EVERYTHING),
    "a member of a forget set": (lambda *_: dict(members=(0, 1, 3)), {"oracle": 1, "run": 2}),
    "a member more": (lambda *_: dict(members=(0, 1, 2, 3)), {"oracle": 1, "run": 2}),
    "the body of an algorithm": (("algorithms/gradient.py", "self.alpha * xent(model, retain) - ",
                                  "self.alpha * xent(model, retain) + "), {"run": 2}),
    "the body of another": (("algorithms/gradient.py", "return -xent", "return -2 * xent"), {}),
    "the body of the loop": (("train.py", "optimizer.step()", "optimizer.step(None)"), EVERYTHING),
    "the body of an attack": (("attacks.py", "SVC(C=3", "SVC(C=4"), {"oracle": 2, "run": 4}),
}


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    with environ():
        home = tmp_path_factory.mktemp("known")
        photographs(home / "photographs")
        assert of_photographs(home)[0].used["computed"] == sum(EVERYTHING.values())
    return home


@pytest.mark.parametrize("change, expected", ONE_THING.values(), ids=ONE_THING)
def test_one_thing_changed_computes_exactly_what_depends_on_it(change, expected, known, tmp_path, monkeypatch):
    home = tmp_path / "known"
    shutil.copytree(known, home)
    if callable(change):
        study, before = of_photographs(home)
        assert study.used["computed"] == 0
        changes = change(home, study) or {}
    else:
        before, changes = of_photographs(home)[1], {}
        use(edited(tmp_path, *change), monkeypatch)
    study, after = of_photographs(home, **changes)
    assert Counter(path.parent.name for path in after.keys() - before.keys()) == expected
    assert study.used["computed"] == sum(expected.values())
    assert all(after[path] == content for path, content in before.items())       # what was known stays as it was


def test_no_two_results_share_a_key(study):
    """All pairs that differ in set, algorithm, seed or attack; the sets have one name and one size."""
    sets = [ForgetSet("mine", torch.tensor(index)) for index in ([0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3])]
    score = [rum.Score("s", torch.arange(6.0) * k) for k in (1, 2)]
    algorithms = [finetune, replace(finetune, lr=0.1 + 1e-9), rum.L1Sparse(epochs=1, lr=0.1, batch_size=32), relabel,
                  rum.SalUn(relabel), rum.SalUn(relabel, keep=0.4), rum.RUM(rum.Shuffled(2), (finetune, relabel)),
                  rum.RUM(rum.Shuffled(2), (relabel, finetune)), rum.RUM(rum.Shuffled(2, seed=1), (finetune, relabel)),
                  rum.RUM(rum.Shuffled(2), (finetune, relabel), order=(1, 0)),
                  *(rum.RUM(rum.Refine(s, 2), (finetune, relabel)) for s in score)]
    keys = [digest_of(made.run.identity(study, forget, algorithm, seed, mia))
            for forget in sets for algorithm in algorithms for seed in (0, 1) for mia in (False, True)]
    assert len(set(keys)) == len(keys)


def test_a_changed_loss_of_a_user_s_own_algorithm_is_computed_anew(study):
    """Same name, same fields, other code: what an edited cell of a notebook defines."""
    def descent(self, model, original, forget, retain):
        return rum.xent(model, retain)

    def ascent(self, model, original, forget, retain):
        return -rum.xent(model, retain)

    forget = ForgetSet("mine", study.train.index[:10])
    mine = [dataclass(frozen=True)(type("Mine", (rum.Finetune,), {"loss": loss}))()
            for loss in (descent, descent, ascent)]
    keys = [digest_of(made.run.identity(study, forget, algorithm, 0, True)) for algorithm in mine]
    assert repr(mine[0]) == repr(mine[2])
    assert keys[0] == keys[1] != keys[2]


def halved(model, forget, retain, *, seed=0):
    """A plain function that unlearns."""
    weights = {name: value / 2 for name, value in model.state_dict().items()}
    unlearned = rum.Keep()(model, forget, retain)
    unlearned.load_state_dict(weights)
    return unlearned


def named(body):
    """A function `mine` with that body, as a notebook defines it."""
    text, space = f"def mine(model, forget, retain, *, seed=0):\n    {body}\n", {"rum": rum, "__name__": __name__}
    name = f"<cell {body}>"
    linecache.cache[name] = len(text), None, text.splitlines(True), name
    exec(compile(text, name, "exec"), space)
    return space["mine"]


def test_a_plain_function_is_an_algorithm(study):
    forget = mine(study)
    both = rum.RUM(rum.Shuffled(2), (halved, finetune))
    rows = study.unlearn([Cell(forget, halved, 0), Cell(forget, both, 0)])
    assert study.used["computed"] == 1 + 1 + 2
    gone, kept = study.split(forget)
    for row, algorithm in zip(rows.itertuples(), (halved, both), strict=True):
        unlearned = algorithm(study.model(0), gone, kept, seed=0)
        assert row.tow == rum.tow(unlearned, study.retrained(forget, 0), gone, kept, study.test)
    again = open_study(study.home)
    pd.testing.assert_frame_equal(again.unlearn([Cell(forget, halved, 0), Cell(forget, both, 0)]), rows)
    assert again.used["computed"] == 0


def test_a_changed_body_of_a_plain_function_has_another_key(study):
    keys = [digest_of(made.run.identity(study, mine(study), algorithm, 0, True)) for algorithm in map(
        named, ["return rum.Keep()(model, forget, retain)", "return rum.Keep()( model, forget, retain )  # once more",
                "return rum.Keep()(model, retain, forget)"])]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize("zero", [np.int64(0), np.uint8(0), torch.tensor(0)], ids=["int64", "uint8", "tensor"])
def test_a_seed_of_any_integer_type_has_the_same_results(zero, study, tmp_path):
    plain, forget = open_study(tmp_path / "plain"), mine(study)
    rows = [s.unlearn([Cell(forget, relabel, seed)]) for s, seed in ((study, zero), (plain, 0))]
    pd.testing.assert_frame_equal(*map(comparable, rows))
    study.originals([zero])
    study.proxy("confidence", zero)
    assert study.reference(forget, zero) == plain.reference(forget, 0)
    assert {path.name for path in files(study.home)} == {path.name for path in files(plain.home)}
    assert planted.same(study.model(zero), plain.model(0))
    probed = study.memoize(number, [(zero,)])[0]
    assert probed == plain.memoize(number, [(0,)])[0] == {"value": 0}


def number(study, k):
    return {"value": k}


@dataclass(frozen=True)
class Needs(rum.Finetune):
    """Fails for want of memory until a file is there; then counts its runs in it."""

    path: str = ""

    def __call__(self, model, forget, retain, *, seed=0, only=None):
        if not Path(self.path).exists():
            raise torch.OutOfMemoryError("nothing left")
        with open(self.path, "a") as file:
            file.write("x")
        return super().__call__(model, forget, retain, seed=seed)


def test_the_finished_steps_of_a_rum_outlive_a_failing_one(study, tmp_path):
    fields = dict(epochs=1, lr=0.1, batch_size=32)
    first, second = (Needs(path=str(tmp_path / name), **fields) for name in ("first", "second"))
    forget, meta = forget_set(study, 0), rum.RUM(rum.Refine(study.score, 2), (first, second))
    (tmp_path / "first").touch()
    for _ in range(2):
        with pytest.raises(Stopped, match=r"nothing left.*fewer processes.*the same command goes on") as raised:
            study.unlearn([Cell(forget, meta, 0)])
        assert "in step 2 of 2" in "".join(raised.value.__cause__.__notes__)
        assert len(files(tmp_path, "steps/*.json")) == 1
    (tmp_path / "second").touch()
    row = study.unlearn([Cell(forget, meta, 0)]).iloc[0]
    assert (tmp_path / "first").read_text() == "x"           # once, and then read back
    assert not files(tmp_path, "steps/*.json")
    undisturbed = open_study(tmp_path / "other").unlearn([Cell(forget, meta, 0)]).iloc[0]
    same = ["tow", "tow_mia", "forget", "retain", "test", "examples"]
    assert row[same].tolist() == undisturbed[same].tolist()


def test_a_rum_is_watched_step_by_step(study):
    forget, meta = forget_set(study, 0), rum.RUM(rum.Refine(study.score, 2), (relabel, finetune), order=(1, 0))
    rows = study.watch([Cell(forget, meta, 1, {"way": "mine"})])
    found = {(row.step, row.of): row.accuracy for row in rows.itertuples()}
    gone, kept = study.split(forget)
    parts, models = meta.refine(gone), [study.model(1)]
    models += [stage.model for stage in meta.stages(study.model(1), gone, kept, seed=1)]
    sets = {"part 0": parts[0], "part 1": parts[1], "retain": kept, "test": study.test}
    assert found == {(k, name): rum.accuracy(model, part) for k, model in enumerate(models)
                     for name, part in sets.items()}
    assert rows[rows["of"] == "test"]["part"].tolist()[1:] == [1, 0]
    oracle = study.retrained(forget, 1)
    assert rows.set_index("of")["oracle"]["part 1"].tolist() == [rum.accuracy(oracle, parts[1])] * 3


def test_a_chosen_rum_is_in_the_row(study):
    auto = rum.AutoRUM(rum.Refine(study.score, 2), (finetune,), rum.Memorized(study.score), enough=2)
    row = study.unlearn([Cell(forget_set(study, 0), auto, 0)]).iloc[0]
    assert row["order"] == [1, 0] and set(row["chosen"]) <= {repr(finetune), repr(rum.Keep())}


def test_rows_of_a_whole_class_say_more(study):
    forget = study.class_set(3)
    row = study.unlearn([Cell(forget, finetune, 0)]).iloc[0]
    gone, kept = study.split(forget)
    model, oracle = finetune(study.model(0), gone, kept, seed=0), study.retrained(forget, 0)
    found = metrics.class_accuracies(model, gone, study.test)
    assert (row["test_forget"], row["test_retain"]) == (found["forget"], found["retain"])
    assert row["class_mia"] == metrics.class_mia(model, gone, kept, study.test)
    assert row["similarity_test"] == pytest.approx(metrics.similarity(model, oracle, study.test), abs=1e-5)
    assert forget.name == "class 3" and study.provenance()["forget sets"]["class 3"] == forget.digest
    other = study.unlearn([Cell(forget_set(study, 0), finetune, 0)])
    assert "test_forget" not in other                        # its classes are retained too


def test_a_model_that_was_kept_has_unlearned_nothing(study):
    config = SPDGAN(epochs=1, width=2, blocks=1)
    rows = study.depth([Cell(forget_set(study, 0), rum.Keep(), 0, {"way": "keep"})], config, numbers=(0, 1))
    assert rows["probe"].tolist() == ["clean", "shifted 0", "noise 0", "shifted 1", "noise 1"]
    assert (rows[["degree", "on_test", "on_retain", "adjusted", "adjusted_retain"]] == 0).all(axis=None)


def test_requests_come_one_after_the_other(study):
    """Retraining after each request, at the seed of its place, is what the oracle of another seed is compared with."""
    forgets = [forget_set(study, k, f"request {k}") for k in range(3)]
    judge = rum.Memorized(study.score)
    rows = study.stream(forgets, {"never": (rum.Keep(), None), "always": (rum.Keep(), 1), "second": (rum.Keep(), 2),
                                  "low": (rum.Keep(), (judge, 0.0)), "high": (rum.Keep(), (judge, 1.1))}, seeds=[0])
    renewed = rows.groupby("way")["renewed"].apply(list)
    assert renewed.to_dict() == {"never": [False] * 3, "always": [True] * 3, "second": [False, True, False],
                                 "low": [False] * 3, "high": [True] * 3}
    _, rest = study.train.split(torch.isin(study.train.index, torch.cat([forget.index for forget in forgets])))
    left = rest + study.split(forgets[2])[0]                 # the third is still known
    retrained = rum.fit(study.profile.make_model, left, study.profile.recipe, seed=1)
    second = rows[(rows["way"] == "always") & (rows["request"] == 2)].iloc[0]
    assert second["retain"] == rum.accuracy(retrained, left) and second["test"] == rum.accuracy(retrained, study.test)
    assert rows[rows["way"] == "never"]["examples"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("algorithm", [
    lambda model, forget, retain, *, seed: model,
    rum.RUM(rum.Shuffled(2), steps=(lambda model, *sets, seed: model, finetune)),
    rum.RUM(lambda forget: [forget], steps=(finetune,)),
    rum.Retrain(lambda: models.mlp(hidden=(8,)), TINY.recipe),
    rum.Keep().__call__,
    partial(halved, how=object()),
], ids=["lambda", "lambda as a step", "lambda that refines", "factory", "method", "argument"])
def test_what_has_no_lasting_name_is_refused(algorithm, study):
    forget = ForgetSet("mine", study.train.index[:10])
    with train.cost() as spent, pytest.raises(TypeError, match="lasting name"):
        study.unlearn([Cell(forget, algorithm, 0)])
    assert spent.steps == 0


def test_a_network_without_a_lasting_name_is_refused(tmp_path):
    """Two different lambdas would otherwise share the results of one."""
    study = open_study(tmp_path, replace(TINY, make_model=lambda: models.mlp(hidden=(8,))))
    with pytest.raises(TypeError, match="lasting name"):
        study.originals([0])


@pytest.mark.parametrize("mask, error", [(torch.zeros(150, dtype=torch.int64), TypeError),
                                         (torch.ones(149, dtype=torch.bool), ValueError)], ids=["numbers", "too short"])
def test_a_forget_set_needs_a_mask_over_the_training_data(mask, error, done):
    with pytest.raises(error, match="mask"):
        open_study(done[0]).forget_set("mine", mask)


# -- Damage -----------------------------------------------------------------------------------------------------------


DAMAGE = {
    "cut rows": ("run", "json", cut),
    "edited rows": ("run", "json", edit),
    "emptied rows": ("run", "json", empty),
    "rows nested too deep": ("run", "json", deep),
    "cut tensors": ("oracle", "safetensors", cut),
    "lost tensors": ("oracle", "safetensors", lose),
    "emptied matrices": ("bank", "safetensors", empty),
}


@pytest.mark.parametrize("kind, ending, damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_set_aside_and_computed_again(kind, ending, damage, done, tmp_path):
    home, rows = tmp_path / "home", done[1]
    shutil.copytree(done[0], home)
    path = files(home, f"{kind}/*.{ending}")[0]
    damage(path)
    study = open_study(home)
    with pytest.warns(UserWarning, match=f"{path.stem}.json is damaged.*computed again"):
        found = small(study)
    pd.testing.assert_frame_equal(comparable(found), comparable(rows))
    assert study.used["computed"] == 1
    assert path.with_suffix(".json.damaged").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert small(open_study(home)).equals(found)


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the time that passes is the cost")
def test_the_time_of_other_processes_is_no_cost():
    seconds = stopwatch()
    time.sleep(0.3)                                          # another process has the machine
    assert seconds() < 0.15
    while seconds() < 0.2:
        sum(range(1000))
    assert seconds() >= 0.2


def test_a_store_gives_back_what_was_written(tmp_path):
    store = Store(tmp_path)
    values = {"a": 0.1 + 0.2, "b": None, "c": [1, "x"], "tensors": {"w": torch.randn(3, 2), "m": torch.ones(4) > 0}}
    key = digest_of({"what": "test"})
    assert store.read("kind", key) is None
    store.write("kind", {"what": "test"}, values, seconds=1.5)
    cell = store.read("kind", key)
    assert cell["identity"] == {"what": "test"} and cell["seconds"] == 1.5
    found = cell["values"]
    assert {k: found[k] for k in "abc"} == {k: values[k] for k in "abc"}
    assert all(torch.equal(found["tensors"][k], v) for k, v in values["tensors"].items())


# -- Divergence and tuning --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overflows:
    """Finite weights whose logits are not."""

    def __call__(self, model, forget, retain, *, seed=0):
        unlearned = rum.Keep()(model, forget, retain)
        for p in unlearned.parameters():
            p.data.fill_(1e38)
        return unlearned


@pytest.mark.parametrize("algorithm", [Fails(lr=2.0), Overflows()], ids=["weights", "logits"])
def test_a_run_that_diverges_is_a_row_that_says_so(algorithm, study):
    forget = forget_set(study, 0)
    rows = study.unlearn([Cell(forget, algorithm, 0), Cell(forget, finetune, 0)])
    assert rows["diverged"].tolist() == [True, False]
    assert rows["tow"].isna().tolist() == [True, False]


def test_tuning_chooses_the_best_rate_on_tuning_seeds_alone(study):
    forget, rates = forget_set(study, 0), (0.001, 0.1, 0.5)
    chosen, record = study.tune({"FT": (forget, finetune, rates), "RUM": (
        forget, rum.RUM(rum.Shuffled(2), (rum.Keep(), finetune)), rates)})
    seeds = {json.loads(path.read_text())["identity"]["arguments"]["seed"] for kind in ("run", "oracle", "original")
             for path in files(study.home, f"{kind}/*.json")}
    assert seeds == {100, 101}
    by_hand = {rate: study.unlearn(Cell(forget, replace(finetune, lr=rate), seed, mia=False)
                                   for seed in TINY.tuning_seeds)["tow"].mean() for rate in rates}
    mine = record[record["name"] == "FT"].set_index("rate")
    assert mine["tow"].to_dict() == pytest.approx(by_hand)
    assert chosen["FT"] == replace(finetune, lr=max(by_hand, key=by_hand.get))
    assert mine.index[mine["chosen"]].tolist() == [chosen["FT"].lr]
    assert chosen["RUM"].steps[0] == rum.Keep() and chosen["RUM"].steps[1].lr in rates


def test_a_rate_that_diverges_on_any_seed_is_never_chosen(study):
    forget = forget_set(study, 0)
    chosen, record = study.tune({"F": (forget, Fails(limit=0.2, safe=(100,)), (0.1, 0.5))})
    assert chosen["F"].lr == 0.1
    assert record["diverged"].tolist() == [0, 1] and record["chosen"].tolist() == [True, False]
    assert record["tow"].isna().tolist() == [False, True]
    with pytest.raises(FloatingPointError, match=r"F: every .*0.5.*0.9.* diverged; try smaller"):
        study.tune({"F": (forget, Fails(limit=0.2), (0.5, 0.9))})


@pytest.mark.parametrize("name", ["smoke", "laptop", "cifar10-small"])
def test_no_profile_reports_on_the_seeds_it_was_tuned_on(name):
    p = profile(name)
    assert not set(p.seeds) & set(p.tuning_seeds)
    for budget in p.budgets:
        assert all(len(p.grid(algorithm, budget)) for algorithm in p.algorithms)


# -- Workers, bars, provenance ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Elsewhere(rum.Keep):
    """Refuses to run in the process `here`."""

    here: int

    def __call__(self, model, forget, retain, *, seed=0):
        if os.getpid() == self.here:                         # no assert: pytest would compile another one than workers
            raise RuntimeError("not elsewhere")
        return super().__call__(model, forget, retain, seed=seed)


def test_workers_give_the_rows_of_one_process(done, tmp_path, monkeypatch):
    monkeypatch.setenv("RUM_ENGINE", "loky")
    study = open_study(tmp_path, replace(TINY, workers=2))
    pd.testing.assert_frame_equal(comparable(small(study)), comparable(done[1]))
    forget = study.levels()["low"]
    assert len(study.unlearn(Cell(forget, Elsewhere(os.getpid()), seed) for seed in (0, 1))) == 2
    cells = [Cell(forget, halved, seed) for seed in (0, 1)]
    found = study.unlearn(cells)                             # a plain function goes there too
    monkeypatch.setenv("RUM_ENGINE", "serial")
    pd.testing.assert_frame_equal(comparable(found), comparable(open_study(tmp_path / "alone").unlearn(cells)))


def test_a_quiet_study_prints_nothing(tmp_path, capfd):
    small(open_study(tmp_path))
    assert capfd.readouterr() == ("", "")


def test_a_study_shows_one_bar_for_all_its_work(tmp_path, capfd):
    study = Study(TINY, home=tmp_path)
    rows = small(study)
    study.bar.close()
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1                # the same line, over and over
    assert "unlearning: 100%" in err and f"{study.used['computed']}/{study.used['computed']}" in err
    assert len(rows) == 8


def test_provenance_says_where_a_figure_comes_from(done):
    study = open_study(done[0])
    levels = study.levels()
    found = json.loads(json.dumps(study.provenance()))
    package = Path(rum.__file__).parent
    head = subprocess.run(["git", "-C", package, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert found["commit"] == (head or None)                 # that of the code, wherever the results go
    assert found["profile"] == "tiny" and found["seeds"] == [0, 1] and found["tuning seeds"] == [100, 101]
    assert found["data"] == {"name": "digits", "train": study.train.digest, "test": study.test.digest}
    assert found["forget sets"] == {name: chosen.digest for name, chosen in levels.items()}
    assert {k: found["results"][k] for k in ("computed", "read back", "retried", "failed")} == {
        "computed": 0, "read back": 1, "retried": 0, "failed": 0}
    assert found["results"]["core seconds"] > 0 and found["seconds"] >= 0
    assert {"dirty", "lock", "device", "machine", "versions"} <= set(found)
    assert found["versions"]["torch"] == version("torch")


def test_every_kind_of_result_is_kept_with_its_identity(done):
    kinds = Counter(path.parent.name for path in files(done[0]))
    expected = {"bank": 1, "original": 2, "oracle": 4, "run": 8}
    assert {kind: kinds[kind] for kind in expected} == expected
    for path in files(done[0]):
        cell = json.loads(path.read_text())
        assert digest_of(cell["identity"]) == path.stem
        assert {"what", "code", "study", "arguments"} == set(cell["identity"])
        assert {"data", "model", "recipe", "device", "dtype", "torch", "format"} == set(cell["identity"]["study"])


# -- Other machines ---------------------------------------------------------------------------------------------------


def test_without_git_nothing_is_said_of_the_commit(done, monkeypatch):
    monkeypatch.setenv("PATH", "")
    found = open_study(done[0]).provenance()
    assert found["commit"] is None and found["dirty"] is None


def test_the_commit_of_a_repository_around_the_package_is_not_told(done, monkeypatch, tmp_path):
    """An environment inside of another project: its commits say nothing of this code."""
    (tmp_path / "rumlib" / "lab").mkdir(parents=True)
    git = ("git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b")
    for command in (("init", "-q"), ("commit", "-q", "--allow-empty", "-m", "theirs")):
        subprocess.run((*git, *command), check=True)
    monkeypatch.setattr("rumlib.lab.provenance.__file__", str(tmp_path / "rumlib" / "lab" / "provenance.py"))
    found = open_study(done[0]).provenance()
    assert found["commit"] is None and found["dirty"] is None


WITHOUT = """
import importlib, os, sys, tempfile
sys.modules["fcntl"] = None                                  # as on Windows
import rumlib as rum
from rumlib.lab import Cell
for name in ("card", "check", "engine", "memo", "plan", "profiles", "results", "run", "study"):
    try:
        importlib.import_module(f"rumlib.lab.{name}")
    except ImportError as problem:                            # others are no matter of this test
        assert "fcntl" not in str(problem), problem
import studies
with tempfile.TemporaryDirectory() as home:
    study = studies.open_study(home)
    study.unlearn([Cell(studies.mine(study), studies.finetune, 0)])
    print(study.used["computed"])
"""


def test_where_there_is_no_fcntl_studies_run_too():
    environment = {**os.environ, "PYTHONPATH": str(Path(rum.__file__).parents[1])}
    found = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, env=environment,
                           cwd=Path(__file__).parent)
    assert found.stdout == "3\n", found.stderr


def test_another_draw_has_other_data_and_a_folder_of_its_own(tmp_path):
    study = open_study(tmp_path, replace(TINY, draws=2))
    other = study.drawn(1)
    assert study.drawn(0) is study and other.train.digest != study.train.digest and len(other.train) == len(study.train)
    assert other.profile.name in {part.name for part in study.profile.parts} - {study.profile.name}
    assert len(open_study(tmp_path).profile.parts) < len(study.profile.parts)
