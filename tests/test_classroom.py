"""The explorer and the live bench, without a browser. (tests/browser moves the sliders in JupyterLab.)"""

import json
from dataclasses import replace

import pytest
import torch

import rumlib as rum
from rumlib.lab import Answers, Bench, Choice, Study, explorer


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    p = rum.lab.profile("smoke")
    return Study(replace(p, name="class", workers=1), quiet=True, home=tmp_path_factory.mktemp("class"))


@pytest.fixture(scope="module")
def bench(study):
    return Bench(study)


def test_answers_are_those_of_the_models_and_tow_is_the_product_of_its_factors(study):
    answers = Answers.of(study)
    rows, p = answers.examples, study.profile
    assert len(rows) == len(study.train) and answers.models[:2] == ("original", "oracle")
    assert rows["set"].value_counts()[["low", "medium", "high"]].tolist() == [p.set_size] * 3
    model = rum.fit(p.make_model, study.train, p.recipe, seed=0)
    says = [int(text.split()[0]) for text in rows["high"]]
    assert says == rum.predict(model, study.train).argmax(1).tolist()
    forget, retain = study.train.split(study.score.pick(p.set_size, "high"))
    oracle = rum.fit(p.make_model, retain, p.recipe, seed=0)
    says = [int(text.split()[1]) for text, place in zip(rows["high"], rows["set"], strict=True) if place == "high"]
    assert says == rum.predict(oracle, forget).argmax(1).tolist()
    wide = answers.factors.pivot(index=["level", "algorithm"], columns="measure", values="value")
    assert wide["ToW"].to_numpy() == pytest.approx((wide["1 - dF"] * wide["1 - dR"] * wide["1 - dT"]).to_numpy())

    spec = explorer(answers).to_dict()
    assert "v5" in spec["$schema"] and len(spec["datasets"]["examples"]) == len(rows)
    urls = {row["image"][:22] for row in spec["datasets"]["examples"]}
    del spec["datasets"], spec["$schema"]
    assert urls == {"data:image/png;base64,"} and "http" not in json.dumps(spec)      # it asks for nothing outside


def test_a_choice_gives_the_forget_set_that_it_names(bench):
    size = bench.sizes[1] // 2
    for memorized in ("low", "high"):
        masks = [bench.mask(Choice(memorized, entangled, size)) for entangled in ("low", "medium", "high")]
        assert all(int(mask.sum()) == size for mask in masks)
        scores = [bench.entanglement(mask) for mask in masks]
        assert scores == sorted(scores) and scores[0] < scores[-1]
    easy, hard = (bench.facts(Choice(memorized, size=size))["memorization"] for memorized in ("low", "high"))
    assert easy < hard


def test_the_bench_reports_what_the_library_measures(bench):
    choice = Choice("high", "low", bench.sizes[1], "Fine-tune", 0.1, 2)
    found = bench.run(choice)
    forget, retain = bench.study.train.split(bench.mask(choice))
    unlearned = rum.lab.vary(bench.study.profile.algorithms["Fine-tune"], lr=0.1, epochs=2)(
        bench.model, forget, retain, seed=0)
    oracle = rum.fit(bench.study.profile.make_model, retain, bench.study.profile.recipe, seed=0)
    assert found.factors["ToW"] == pytest.approx(rum.tow(unlearned, oracle, forget, retain, bench.study.test))
    before, after = (rum.predict(model, forget).argmax(1) for model in (bench.model, unlearned))
    assert found.flipped["place"].tolist() == torch.nonzero(before != after)[:, 0].tolist()
    assert bench.run(choice).factors == found.factors


@pytest.mark.parametrize("changes, words", [
    (dict(memorized="some"), "low, medium, high; got 'some'"), (dict(size=0), "size"), (dict(rate=0.0), "rate"),
    (dict(epochs=1.5), "epochs")])
def test_a_choice_that_the_bench_does_not_have_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        Choice(**changes)


def test_a_set_too_large_and_an_unknown_algorithm_are_refused(bench):
    with pytest.raises(ValueError, match=f"at most {bench.sizes[1]} examples here; got 5000"):
        bench.mask(Choice(size=5000))
    with pytest.raises(ValueError, match="no algorithm 'Hope' here; choose one of Fine-tune"):
        bench.run(Choice(size=10, algorithm="Hope"))


def test_the_answer_comes_after_the_prediction_and_goes_with_the_next_choice(bench):
    box = bench.controls()
    memorized, entangled, size, algorithm, rate, epochs, told, predicted, button, answer = box.children
    assert answer.value == "" and "Predict ToW first" in told.value
    before = told.value
    size.value = size.min
    assert told.value != before and told.value.startswith(f"{size.min} examples")
    predicted.value, epochs.value = 0.7, 1
    button.click()
    found = bench.run(Choice(memorized.value, entangled.value, size.value, algorithm.value, rate.value, 1))
    assert f"ToW {found.factors['ToW']:.3f}" in answer.value and "predicted 0.70" in answer.value
    assert '<img alt="ToW' in answer.value
    memorized.value = "low"
    assert answer.value == ""
