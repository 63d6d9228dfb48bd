"""Bad input is refused before anything is trained, with the value and, where there is one, the remedy."""

import copy
import json
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from planted import make_model
from torch import nn
from torch.utils.data import TensorDataset

import rumlib as rum
from rumlib.datasets import forget_ids
from rumlib.lab import engine, profile

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


def written(t, name, content):
    """A file of that name and content, text or arrays."""
    path = t.folder / name
    if name.endswith(".npz"):
        np.savez(path, **content)
    else:
        path.write_text(content)
    return path


def published(t, name="scores.csv", content="mem,y\n" + "0.5,0\n" * 123, key="mem", **proof):
    return rum.Score.read(written(t, name, content), key, t.train, **(proof or dict(labels="y")))


def environment(t, **variables):
    for name, value in variables.items():
        t.environ(name, str(value))


def on_dask(t, address):
    environment(t, RUM_ENGINE="dask", DASK_SCHEDULER_ADDRESS=address)
    list(engine.run(print, [(1,)]))


def data_from(t, name, **variables):
    environment(t, **variables)
    rum.load(name)


def card(t, **changes):
    usual = dict(algorithm=rum.Finetune(), forget=t.forget, retain=t.retain, network=make_model, seed=0,
                 spent=rum.train.Cost(), metrics={"tow": 1.0})
    return rum.lab.Card.of(**{**usual, **changes})


def loaded(t, network=make_model, **changes):
    """A saved card, with other values written into its file."""
    folder = card(t).save(t.model, t.folder / "card")
    path = folder / "card.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return rum.lab.Card.load(folder, network)


half = rum.Score("half", torch.rand(10), torch.arange(10))
REFUSED = {
    # names
    "profile": (lambda t: profile("labtop"), ValueError, "'labtop'", "laptop"),
    "profile of a study": (lambda t: rum.lab.Study("labtop"), ValueError, "'labtop'", "laptop"),
    "data set": (lambda t: rum.load("mnist"), ValueError, "'mnist'", "fashion_mnist", "folder"),
    "level": (lambda t: half.pick(3, "middle"), ValueError, "'middle'", "medium"),
    "proxy": (lambda t: rum.proxy("magic", rum.proxies.Trace(t.train)), ValueError, "'magic'", "confidence"),
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
                                                            models=32), ValueError, "label 3", "0..2"),
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
    "trace that saw nothing": (lambda t: rum.proxy("confidence", rum.proxies.Trace(t.train)), ValueError, "123",
                               "trace="),
    "fraction of one": (lambda t: rum.memorization(make_model, t.train, rum.Recipe(), fraction=1), ValueError, "1",
                        "fraction"),
    "matrices that differ": (lambda t: rum.memorization_from(torch.ones(3, 4), torch.ones(4, 3)), ValueError,
                             "(3, 4)", "(4, 3)"),
    "always in": (lambda t: rum.memorization_from([[1, 1], [1, 1]], [[True, True], [False, True]]), ValueError,
                  "position 1", "more models"),
    "too many bands": (lambda t: rum.scores.bands(torch.randn(5, 2), 6), ValueError, "5", "6"),
    "entanglement with nothing": (lambda t: rum.entanglement(torch.ones(3, 2), torch.ones(0, 2)), ValueError, "0"),

    # weights
    "more weights than there are": (lambda t: unlearn(t, algorithm=rum.TopK(k=1284)), ValueError, "k=1284", "1283"),
    "more layers than there are": (lambda t: unlearn(t, algorithm=rum.RandomK(last=3)), ValueError, "last=3", "has 2"),
    "frozen weights": (lambda t: unlearn(t, model=copy.deepcopy(t.model).requires_grad_(False)), ValueError, "frozen"),
    "a mask that leaves nothing": (lambda t: unlearn(t, algorithm=rum.SalUn(rum.RandomLabel(), keep=1e-4)), ValueError,
                                   "no weight may learn"),
    "forgetting in percent": (lambda t: rum.metrics.forgetting_rate(100, 74), ValueError, "100", "by 100"),
    "images too small to shift": (lambda t: rum.spdgan.SPDGAN()(t.model, t.model, t.forget), ValueError, "8x8",
                                  "1, 4, 4"),

    "a share above one": (lambda t: rum.TopK(k=1.5), ValueError, "(0, 1]", "1.5"),
    "a negative number": (lambda t: rum.RandomK(k=-1), ValueError, "-1"),
    "scores of weights": (lambda t: rum.TopK(score="size"), ValueError, "'size'", "score must be one of"),
    "scope": (lambda t: rum.TopK(scope="some"), ValueError, "'some'", "selected"),
    "negative noise on weights": (lambda t: rum.TopK(sigma=-1.0), ValueError, "sigma", "-1.0"),
    "nothing left to train on": (lambda t: rum.TopK(validation=1.5), ValueError, "validation", "1.5"),
    "mix above one": (lambda t: rum.RandomTopK(mix=2.0), ValueError, "mix", "2.0"),
    "keep nothing": (lambda t: rum.SalUn(rum.RandomLabel(), keep=0), ValueError, "keep", "0"),
    "a mask over what is no descent": (lambda t: rum.SalUn(rum.algorithms.SSD()), TypeError, "SalUn(RandomLabel())",
                                      "SSD"),

    # projection
    "negative alpha": (lambda t: rum.ClassProjection(alpha_retain=-1.0), ValueError, "alpha_retain", "-1.0"),
    "no alphas": (lambda t: rum.ClassProjection(alpha_forget=()), ValueError, "alpha_forget", "()"),
    "no samples": (lambda t: rum.ClassProjection(30.0, 3.0, samples=0), ValueError, "samples", "or None"),
    "granularity": (lambda t: rum.ClassProjection(granularity="pixels"), ValueError, "'pixels'", "classes"),
    "classes in both sets": (lambda t: unlearn(t, algorithm=rum.ClassProjection(30.0, 3.0)), ValueError, "class 1",
                             "split_classes(1)"),
    "fewer samples than classes": (lambda t: rum.ClassProjection(30.0, 3.0, 1)(t.model, *t.train.split_classes(0)),
                                   ValueError, "samples=1", "at least 2"),
    "class to forget that is not there": (lambda t: t.train.split_classes(7), ValueError, "class 7", "[0, 1, 2]"),

    # the generator
    "pixels in levels": (lambda t: rum.spdgan.SPDGAN(eps=8), ValueError, "eps", "by 255"),
    "no epochs of a generator": (lambda t: rum.spdgan.SPDGAN(epochs=0), ValueError, "epochs", "at least 1"),
    "no rate of a generator": (lambda t: rum.spdgan.SPDGAN(lr=-1.0), ValueError, "lr", "above 0"),
    "degree of something else": (lambda t: rum.spdgan.unlearning_degree(t.model, t.model, t.forget, t.test, of="auc"),
                                 ValueError, "'auc'", "accuracy"),

    # refinement
    "cuts that do not ascend": (lambda t: rum.Refine(half, (0.5, 0.2)), ValueError, "ascend", "(0.5, 0.2)"),
    "a cut twice": (lambda t: rum.Refine(half, (0.5, 0.5)), ValueError, "ascend", "(0.5, 0.5)"),
    "a cut NaN": (lambda t: rum.Refine(half, (0.5, NaN)), ValueError, "ascend", "nan"),
    "a part without examples": (lambda t: rum.Refine(rum.Score("mine", t.train.index * 1.0), (500.0,))(t.forget),
                                ValueError, "would be empty", "0 to"),
    "nothing to choose from": (lambda t: rum.AutoRUM(rum.Refine(half), (), rum.Memorized(half)), ValueError,
                               "candidates", "()"),
    "candidates that are none": (lambda t: rum.AutoRUM(rum.Refine(half), ("FT",), rum.Memorized(half)), TypeError,
                                 "candidates", "'FT'"),
    "no orders": (lambda t: rum.AutoRUM(rum.Refine(half), (rum.Keep(),), rum.Memorized(half), orders=()), ValueError,
                  "orders", "None"),
    "no budget": (lambda t: rum.AutoRUM(rum.Refine(half), (rum.Keep(),), rum.Memorized(half), budget=0), ValueError,
                  "budget", "above 0"),
    "a class as a step": (lambda t: rum.RUM(rum.Shuffled(1), ("Finetune",)), TypeError, "'Finetune'", "algorithm"),
    "two steps for three parts": (lambda t: rum.RUM(rum.Shuffled(3), (rum.Keep(),) * 2), ValueError, "3 parts", "2"),
    "no steps": (lambda t: rum.RUM(t.train.split, ()), ValueError, "steps", "()"),
    "order with a part twice": (lambda t: rum.RUM(rum.Shuffled(2), (rum.Keep(),) * 2, order=(0, 0)), ValueError,
                                "(0, 0)", "0..1"),
    "order too short": (lambda t: rum.RUM(rum.Shuffled(2), (rum.Keep(),) * 2, order=(1,)), ValueError, "(1,)", "0..1"),
    "empty order": (lambda t: rum.RUM(rum.Shuffled(2), (rum.Keep(),) * 2, order=()), ValueError, "()", "0..1"),
    "no parts": (lambda t: rum.Shuffled(0), ValueError, "at least 1", "0"),
    "more parts than examples": (lambda t: rum.Shuffled(13)(t.forget), ValueError, "12", "13"),

    # published scores
    "scores in a spreadsheet": (lambda t: published(t, "scores.xlsx", ""), ValueError, "scores.xlsx", ".csv"),
    "no such column": (lambda t: published(t, key="influence"), ValueError, "'influence'", "'mem', 'y'"),
    "no such array": (lambda t: published(t, "s.npz", {"a": np.zeros(123)}), ValueError, "'mem'", "it has 'a'"),
    "scores as words": (lambda t: published(t, content="mem,y\nhigh,0\n"), ValueError, "one number per example"),
    "too few values": (lambda t: published(t, content="mem,y\n0.5,0\n"), ValueError, "1 values", "index 122"),
    "other labels": (lambda t: published(t), ValueError, "another order", "of 123"),
    "another hash of labels": (lambda t: published(t, labels_hash="0" * 16), ValueError, "not 0000000000000000"),
    "no proof of the order": (lambda t: published(t, labels=None), ValueError, "labels=", "labels_hash="),
    "objects in a file of arrays": (lambda t: published(t, "s.npz", {"mem": np.array([{}]), "y": np.zeros(1)}),
                                    ValueError, "Python objects"),
    "no file of arrays": (lambda t: rum.Score.read(written(t, "s.csv", "").rename(t.folder / "s.npz"), "mem", t.train),
                          ValueError, "s.npz", "no file of arrays"),
    "no file": (lambda t: rum.Score.read(t.folder / "none.csv", "mem", t.train), FileNotFoundError, "none.csv"),

    # lists of ids, cards
    "no list": (lambda t: forget_ids(t.folder / "ids.csv", t.train), FileNotFoundError, "ids.csv"),
    "list without a name": (lambda t: forget_ids(written(t, "ids.csv", "7\n8\n"), t.train), ValueError, "'7'",
                            "column="),
    "ids that nobody has": (lambda t: forget_ids(written(t, "ids.csv", "id\n7\n200\n"), t.train), ValueError,
                            "1 ids", "[200]"),
    "ids as words": (lambda t: forget_ids(written(t, "ids.csv", "id\nAnn\n"), t.train), ValueError, "'Ann'",
                     "whole numbers"),
    "card without metrics": (lambda t: card(t, metrics={}), ValueError, "metrics="),
    "card of a lambda": (lambda t: card(t, algorithm=lambda *sets, seed: None), ValueError, "lambda", "dataclass"),
    "card that was changed": (lambda t: loaded(t, seed=7), ValueError, "card.json", "changed"),
    "card of another network": (lambda t: loaded(t, network=rum.models.mlp), ValueError, "hidden=(64,)",
                                "mlp() makes another"),
    "no card": (lambda t: rum.lab.Card.load(t.folder, make_model), FileNotFoundError, "card.json"),
    "dataset over the limit": (lambda t: rum.datasets.from_dataset(t.examples, limit=1e3), ValueError, "123 images",
                               "limit="),
    "dataset without a length": (lambda t: rum.datasets.from_dataset(iter(t.examples)), TypeError, "no length"),

    # profiles and studies
    "profile without a name": (lambda t: replace(profile("smoke"), name=""), ValueError, "''", "not empty"),
    "profile that is a path": (lambda t: replace(profile("smoke"), name="../mine"), ValueError, "'../mine'",
                               "no /"),
    "profile without seeds": (lambda t: replace(profile("smoke"), seeds=()), ValueError, "seeds", "()"),
    "profile with a seed twice": (lambda t: replace(profile("smoke"), seeds=(1, 1)), ValueError, "(1, 1)"),
    "profile without workers": (lambda t: replace(profile("smoke"), workers=0), ValueError, "workers", "-1"),
    "profile without sets": (lambda t: replace(profile("smoke"), set_size=0), ValueError, "set_size", "at least 1"),
    "profile without such a budget": (lambda t: profile("smoke").grid("SCRUB", 9), ValueError, "9 epochs", "for 2"),
    "fields that an algorithm has not": (lambda t: rum.lab.vary(rum.Finetune(), alpha=1), ValueError, "Finetune",
                                         "alpha"),
    "values of a function": (lambda t: rum.lab.vary(print, lr=1), TypeError, "no fields", "dataclass"),
    "nothing tuned": (lambda t: rum.lab.tuned("mine"), FileNotFoundError, "'mine'", "laptop"),

    # environment
    "engine": (lambda t: (environment(t, RUM_ENGINE="dusk"), rum.lab.Study("smoke")), ValueError, "RUM_ENGINE='dusk'",
               "loky, serial, dask"),
    "engine of a run": (lambda t: (environment(t, RUM_ENGINE=""), list(engine.run(print, []))), ValueError,
                        "RUM_ENGINE=''", "loky"),
    "scheduler without a port": (lambda t: on_dask(t, "here"), RuntimeError, "DASK_SCHEDULER_ADDRESS='here'", "unset"),
    "data that is not there": (lambda t: data_from(t, "cifar10", RUM_DATA=t.folder), FileNotFoundError, "RUM_DATA",
                               "train.parquet", "download=True"),
    "data in a folder that is not there": (lambda t: data_from(t, "cifar100", RUM_DATA="/nowhere"), FileNotFoundError,
                                           "/nowhere"),
    "old pickles": (lambda t: ((t.folder / "FashionMNIST" / "processed").mkdir(parents=True),
                               data_from(t, "fashion_mnist", RUM_DATA=t.folder)), ValueError, "pickles", "delete"),
    "folder without images": (lambda t: rum.load(str(t.folder)), FileNotFoundError, "train/<class>"),

    # numbers
    "accuracies in percent": (lambda t: rum.tow_from_accuracies(unlearned=(70, 99, 85), retrained=(60, 100, 84)),
                              ValueError, "70", "by 100"),
    "accuracy NaN": (lambda t: rum.tow_from_accuracies(unlearned=(NaN, 1, 1), retrained=(1, 1, 1)), ValueError, "nan"),
    "no epochs": (lambda t: rum.Recipe(epochs=0), ValueError, "epochs=0", "at least 1"),
    "no batch": (lambda t: rum.Recipe(batch_size=0), ValueError, "batch_size=0", "at least 1"),
    "no rate": (lambda t: rum.Recipe(lr=0), ValueError, "lr=0", "above 0"),
    "rate NaN": (lambda t: rum.Recipe(lr=NaN), ValueError, "lr=nan", "above 0"),
    "negative noise": (lambda t: rum.load("digits", noise=-1), ValueError, "noise=-1"),
    "all labels flipped": (lambda t: rum.load("digits", flips=1), ValueError, "flips=1"),
    "class that is not there": (lambda t: rum.load("digits", classes=(3, 12)), ValueError, "(3, 12)", "9"),
    "class twice": (lambda t: rum.load("digits", classes=(3, 3)), ValueError, "(3, 3)", "different"),
    "too many images": (lambda t: rum.load("digits", n=5000), ValueError, "n=5000", "1297"),
    "no images": (lambda t: rum.load("digits", n=0), ValueError, "n=0"),
    "no seeds": (lambda t: rum.lab.Study("smoke", seeds=0), ValueError, "0", "at least 1"),
    "seeds that were tuned on": (lambda t: rum.lab.Study(replace(profile("smoke"), tuning_seeds=(1,))), ValueError,
                                 "(1,)", "overlap"),
    "factory with unnamed arguments": (lambda t: repr(rum.Retrain(partial(rum.models.mlp, (1, 4, 4)), rum.Recipe())),
                                       ValueError, "(1, 4, 4)", "by name"),
}


@pytest.mark.parametrize("call, error, words", [(call, error, words) for call, error, *words in REFUSED.values()],
                         ids=REFUSED)
def test_refused_before_training(call, error, words, planted, tmp_path, monkeypatch):
    examples = TensorDataset(planted.train.x, planted.train.y)
    given = SimpleNamespace(**vars(planted), examples=examples, folder=tmp_path, environ=monkeypatch.setenv)
    with rum.train.cost() as spent, pytest.raises(error) as problem:
        call(given)
    for word in words:
        assert word in str(problem.value)
    assert spent.steps == 0
