"""Bad input is refused before anything is trained, with the value and, where there is one, the remedy."""

import copy
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from planted import make_model
from torch import nn

import rumlib as rum
from rumlib import engine

NaN = float("nan")


def broken(examples, **changes):
    parts = dict(x=examples.x.clone(), y=examples.y.clone(), index=examples.index)
    return rum.Examples(**{**parts, **changes})


def with_nan(x):
    x = x.clone()
    x[5, 0, 1, 1] = NaN
    return x


def unlearn(t, *, algorithm=None, model=None, forget=None, retain=None):
    return (algorithm or rum.Finetune())(model or t.model, t.forget if forget is None else forget,
                                         t.retain if retain is None else retain)


def rum_of(t, score):
    return rum.RUM(rum.Refine(score, 3), steps=(rum.Finetune(),) * 3)(t.model, t.forget, t.retain)


half = rum.Score("half", torch.rand(10), torch.arange(10))
REFUSED = {
    # names
    "profile": (lambda t: rum.profile("labtop"), ValueError, "'labtop'", "laptop"),
    "profile of a study": (lambda t: rum.Study("labtop"), ValueError, "'labtop'", "laptop"),
    "data set": (lambda t: rum.load("mnist"), ValueError, "'mnist'", "fashion_mnist", "folder"),
    "level": (lambda t: half.pick(3, "middle"), ValueError, "'middle'", "medium"),
    "proxy": (lambda t: rum.proxy("magic", rum.Trace(t.train)), ValueError, "'magic'", "confidence"),
    "schedule": (lambda t: rum.Recipe(schedule="exponential"), ValueError, "'exponential'", "cosine"),
    "feature": (lambda t: rum.svc_mia(t.model, t.retain, t.test, t.forget, "loss"), ValueError, "'loss'", "confidence"),
    "waiting": (lambda t: rum.RUM(rum.Shuffled(1), (rum.Keep(),), waiting="gone"), ValueError, "'gone'", "leave_out"),

    # masks and sets
    "mask too short": (lambda t: t.train.split(t.wrong[:-1]), ValueError, "123", "122"),
    "mask of numbers": (lambda t: t.train.split(t.wrong.long()), TypeError, "bool", "int64"),
    "nothing to forget": (lambda t: t.train.split(t.wrong & False), ValueError, "forget set is empty", "0 of 123"),
    "nothing to retain": (lambda t: t.train.split(t.wrong | True), ValueError, "retain set is empty", "123 of 123"),
    "empty forget set": (lambda t: unlearn(t, forget=t.forget[:0]), ValueError, "forget set is empty"),
    "empty retain set": (lambda t: unlearn(t, retain=t.retain[:0]), ValueError, "retain set is empty"),
    "keep without a set": (lambda t: unlearn(t, algorithm=rum.Keep(), forget=t.forget[:0]), ValueError, "forget set"),
    "nothing to train on": (lambda t: rum.fit(make_model, t.train[:0], rum.Recipe()), ValueError, "empty"),
    "accuracy of nothing": (lambda t: rum.accuracy(t.model, t.test[:0]), ValueError, "empty"),
    "pool too small": (lambda t: half.pick(11, "low"), ValueError, "11", "1..10"),
    "nothing to pick": (lambda t: half.pick(0, "low"), ValueError, "0", "1..10"),

    # labels
    "negative label": (lambda t: broken(t.train, y=t.train.y - 1), ValueError, "-1", "from 0"),
    "label too large to train": (lambda t: rum.fit(make_model, broken(t.train, y=t.train.y + 1), rum.Recipe()),
                                 ValueError, "label 3", "0..2"),
    "label too large to forget": (lambda t: unlearn(t, forget=broken(t.forget, y=t.forget.y + 7)), ValueError,
                                  "0..2", "3 outputs"),
    "label too large to retain": (lambda t: unlearn(t, retain=broken(t.retain, y=t.retain.y + 1)), ValueError,
                                  "label 3", "0..2"),
    "label too large for many": (lambda t: rum.memorization(make_model, broken(t.train, y=t.train.y + 1), rum.Recipe(),
                                                            models=2), ValueError, "label 3", "0..2"),
    "labels as floats": (lambda t: broken(t.train, y=t.train.y.float()), ValueError, "float32", "123"),
    "labels one-hot": (lambda t: broken(t.train, y=torch.eye(3)[t.train.y].long()), ValueError, "(123, 3)", "(123,)"),
    "a label missing": (lambda t: broken(t.train, y=t.train.y[1:]), ValueError, "123", "122"),

    # images
    "NaN pixel": (lambda t: broken(t.train, x=with_nan(t.train.x)), ValueError, "NaN", "row 5"),
    "infinite pixel": (lambda t: broken(t.train, x=t.train.x / 0), ValueError, "infinite", "row 0"),
    "whole-number pixels": (lambda t: broken(t.train, x=t.train.x.long()), TypeError, "int64", "/ 255"),
    "pixels without a shape": (lambda t: broken(t.train, x=torch.zeros(123)), ValueError, "(123,)", "channels"),
    "bytes and floats together": (lambda t: t.train + broken(t.test, x=t.test.x.byte()), TypeError, "uint8", "float32"),
    "images of another size": (lambda t: unlearn(t, forget=broken(t.forget, x=torch.zeros(12, 1, 5, 5))), ValueError,
                               "(1, 5, 5)", "does not take"),
    "images too large to train": (lambda t: rum.fit(make_model, broken(t.train, x=torch.zeros(123, 3, 4, 4)),
                                                    rum.Recipe()), ValueError, "(3, 4, 4)", "does not take"),
    "no logits": (lambda t: unlearn(t, model=nn.Sequential(t.model, nn.Unflatten(1, (3, 1)))), ValueError, "logits"),
    "index of another length": (lambda t: broken(t.train, index=torch.arange(5)), ValueError, "(5,)", "123"),
    "facts of another length": (lambda t: rum.Examples(t.test.x, t.test.y, info={"noise": torch.zeros(4)}), ValueError,
                                "info['noise']", "4", "90"),

    # scores
    "score with NaN": (lambda t: rum.Score("mine", [1.0, NaN, NaN]), ValueError, "'mine'", "2 examples", "position 1"),
    "score with an index twice": (lambda t: rum.Score("mine", [1.0, 2.0], [4, 4]), ValueError, "'mine'", "repeat"),
    "score without values": (lambda t: rum.Score("mine", []), ValueError, "one value"),
    "score of another length": (lambda t: rum.Score("mine", [1.0, 2.0], [1, 2, 3]), ValueError, "(2,)", "(3,)"),
    "score that does not cover": (lambda t: rum_of(t, half), ValueError, "'half'", "of 12", "index 18"),
    "trace that saw nothing": (lambda t: rum.proxy("confidence", rum.Trace(t.train)), ValueError, "123", "trace="),
    "fraction of one": (lambda t: rum.memorization(make_model, t.train, rum.Recipe(), fraction=1), ValueError, "1",
                        "fraction"),
    "matrices that differ": (lambda t: rum.memorization_from(torch.ones(3, 4), torch.ones(4, 3)), ValueError,
                             "(3, 4)", "(4, 3)"),
    "always in": (lambda t: rum.memorization_from([[1, 1], [1, 1]], [[True, True], [False, True]]), ValueError,
                  "position 1", "more models"),
    "too many bands": (lambda t: rum.bands(torch.randn(5, 2), 6), ValueError, "5", "6"),
    "entanglement with nothing": (lambda t: rum.entanglement(torch.ones(3, 2), torch.ones(0, 2)), ValueError, "0"),

    # weights
    "more weights than there are": (lambda t: unlearn(t, algorithm=rum.TopK(k=1284)), ValueError, "k=1284", "1283"),
    "more layers than there are": (lambda t: unlearn(t, algorithm=rum.RandomK(last=3)), ValueError, "last=3", "has 2"),
    "frozen weights": (lambda t: unlearn(t, model=copy.deepcopy(t.model).requires_grad_(False)), ValueError, "frozen"),
    "a mask that leaves nothing": (lambda t: unlearn(t, algorithm=rum.SalUn(rum.RandomLabel(), keep=1e-4)), ValueError,
                                   "no weight may learn"),
    "forgetting in percent": (lambda t: rum.forgetting_rate(100, 74), ValueError, "100", "by 100"),
    "images too small to shift": (lambda t: rum.SPDGAN()(t.model, t.model, t.forget), ValueError, "8x8", "1, 4, 4"),

    # refinement
    "two steps for three parts": (lambda t: rum.RUM(rum.Shuffled(3), (rum.Keep(),) * 2), ValueError, "3 parts", "2"),
    "no steps": (lambda t: rum.RUM(t.train.split, ()), ValueError, "0"),
    "order with a part twice": (lambda t: rum.RUM(rum.Shuffled(2), (rum.Keep(),) * 2, order=(0, 0)), ValueError,
                                "(0, 0)", "0..1"),
    "order too short": (lambda t: rum.RUM(rum.Shuffled(2), (rum.Keep(),) * 2, order=(1,)), ValueError, "(1,)", "0..1"),
    "empty order": (lambda t: rum.RUM(rum.Shuffled(2), (rum.Keep(),) * 2, order=()), ValueError, "()", "0..1"),
    "no parts": (lambda t: rum.Shuffled(0), ValueError, "at least 1", "0"),
    "more parts than examples": (lambda t: rum.Shuffled(13)(t.forget), ValueError, "12", "13"),

    # numbers
    "accuracies in percent": (lambda t: rum.tow_from_accuracies(unlearned=(70, 99, 85), retrained=(60, 100, 84)),
                              ValueError, "70", "by 100"),
    "accuracy NaN": (lambda t: rum.tow_from_accuracies(unlearned=(NaN, 1, 1), retrained=(1, 1, 1)), ValueError, "nan"),
    "no epochs": (lambda t: rum.Recipe(epochs=0), ValueError, "epochs=0", "at least 1"),
    "no batch": (lambda t: rum.Recipe(batch_size=0), ValueError, "batch_size=0", "at least 1"),
    "no rate": (lambda t: rum.Recipe(lr=0), ValueError, "lr=0", "positive"),
    "rate NaN": (lambda t: rum.Recipe(lr=NaN), ValueError, "lr=nan", "positive"),
    "negative noise": (lambda t: rum.load("digits", noise=-1), ValueError, "noise=-1"),
    "all labels flipped": (lambda t: rum.load("digits", flips=1), ValueError, "flips=1"),
    "class that is not there": (lambda t: rum.load("digits", classes=(3, 12)), ValueError, "(3, 12)", "9"),
    "class twice": (lambda t: rum.load("digits", classes=(3, 3)), ValueError, "(3, 3)", "different"),
    "too many images": (lambda t: rum.load("digits", n=5000), ValueError, "n=5000", "1297"),
    "no images": (lambda t: rum.load("digits", n=0), ValueError, "n=0"),
    "no seeds": (lambda t: rum.Study("smoke", seeds=0), ValueError, "0", "at least 1"),
    "seeds that were tuned on": (lambda t: rum.Study(replace(rum.profile("smoke"), tuning_seeds=(1,))), ValueError,
                                 "(1,)", "overlap"),
    "factory with unnamed arguments": (lambda t: repr(rum.Retrain(partial(rum.mlp, (1, 4, 4)), rum.Recipe())),
                                       ValueError, "(1, 4, 4)", "by name"),
}


@pytest.mark.parametrize("call, error, words", [(call, error, words) for call, error, *words in REFUSED.values()],
                         ids=REFUSED)
def test_refused_before_training(call, error, words, planted):
    with rum.cost() as spent, pytest.raises(error) as problem:
        call(planted)
    for word in words:
        assert word in str(problem.value)
    assert spent.steps == 0


@pytest.mark.parametrize("use", [lambda: rum.Study("smoke"), lambda: list(engine.run(print, []))], ids=["study", "run"])
def test_an_unknown_engine_is_refused(use, monkeypatch):
    monkeypatch.setenv("RUM_ENGINE", "dusk")
    with pytest.raises(ValueError, match=r"RUM_ENGINE='dusk'.*loky"):
        use()


def test_an_unknown_profile_on_the_command_line_is_one_line():
    done = subprocess.run([sys.executable, "-m", "rumlib.paper", "labtop"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == "unknown profile 'labtop'; choose one of smoke, laptop, cifar10-small\n"
