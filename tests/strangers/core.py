"""Sets, lists of ids, models, factories, seeds and recipes that strangers bring."""

import copy
from types import SimpleNamespace

import numpy as np
import torch
from planted import make_model
from torch import nn

import rumlib as rum
from rumlib.data import augment, check_disjoint
from rumlib.datasets import forget_ids
from rumlib.ensemble import fit_many
from rumlib.models import build
from rumlib.train import as_seed, check_compatible

NaN = float("nan")
short = rum.Recipe(epochs=1)


class Wrapped(nn.Module):
    """The model of the planted problem, with another kind of answer."""

    def __init__(self, net, answer):
        super().__init__()
        self.net, self.answer = net, answer

    def forward(self, x):
        return self.answer(self.net(x))


class Ids(nn.Module):
    """Tokens (n, 4) below 20 to three classes."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.embedding(x).mean(1))


def ids(text, **options):
    """A call that reads a list of ids, text or bytes, for 123 examples."""
    def call(t):
        (t.folder / "ids.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
        return forget_ids(t.folder / "ids.csv", t.train, **options)

    return call


def examples(**changes):
    return lambda t: rum.Examples(**{"x": t.train.x, "y": t.train.y, **changes})


def asked(answer):
    return lambda t: rum.Finetune(epochs=1)(Wrapped(t.model, answer), t.forget, t.retain)


def fits(make):
    return lambda t: check_compatible(make(t), t.test)


def tokens(x, model=Ids):
    return lambda t: rum.fit(model, rum.Examples(torch.as_tensor(x), [0, 1]), short)


def recipe(**options):
    return lambda t: rum.Recipe(**options)


def with_index_of(examples, index):
    return rum.Examples(examples.x, examples.y, index)


class Script:
    """A function that torch can script, made when it is asked for."""

    def __call__(self, t):
        return torch.jit.trace(copy.deepcopy(t.model), t.train.x[:2])


CASES = [
    # lists of ids
    ("ids: a row longer than the header", ids("id,user\n10,5\n20,7,9\n"), ValueError,
     r"line 3 .* has 3 fields.* names 2"),
    ("ids: a row shorter than the header", ids("user,id\na,10\n20\n"), ValueError, r"line 3 .* has 1 fields"),
    ("ids: a decimal comma", ids("user,id\nb,1,5\n"), ValueError, "line 2 .* has 3 fields.*in quotes"),
    ("ids: the column twice", ids("id,id\n10,20\n"), ValueError, r"ambiguous.*\['id', 'id'\].*Rename"),
    ("ids: columns that differ by case", ids("ID,id\n10,20\n"), ValueError, r"ambiguous.*'ID', 'id'"),
    ("ids: columns that differ by a space", ids("a b,a  b\n1,2\n", column="a b"), ValueError, "ambiguous"),
    ("ids: another case", ids("ID\n10\n"), ValueError, "no column 'id'.*'ID'.*column="),
    ("ids: semicolons", ids("id;user\n10;5\n"), ValueError, "no column 'id'.*'id;user'.*commas"),
    ("ids: an id twice", ids("id\n10\n20\n010\n"), ValueError, "id 10 .*lines 2 and 4.*once"),
    ("ids: an empty cell", ids("id,user\n10,5\n,7\n"), ValueError, "line 3 has ''"),
    ("ids: as decimals", ids("id\n10.0\n"), ValueError, "line 2 has '10.0'"),
    ("ids: negative", ids("id\n-1\n"), ValueError, "line 2 has '-1'"),
    ("ids: an open quote", ids('id,user\n10,"5\n20,7\n'), ValueError, "no CSV file"),
    ("ids: in UTF-16", ids("id\n10\n".encode("utf-16")), ValueError, "UTF-8"),
    ("ids: a byte of zero", ids(b"id\n1\x000\n"), ValueError, "ids.csv"),
    ("ids: that nobody has", ids("id\n10\n500\n"), ValueError,
     r"1 ids .* none of the 123 examples.*\[500\] \(line 3\)"),
    ("ids: of several examples", lambda t: (ids("id\n0\n")(t), forget_ids(t.folder / "ids.csv", t.train + t.test)),
     ValueError, "id 0 .* belongs to 2 examples"),
    ("ids: names alone", ids("id,user\n,\n"), ValueError, "there are none"),
    ("ids: a folder", lambda t: forget_ids(t.folder, t.train), FileNotFoundError, "no list of ids"),

    # examples
    ("index with NaN", examples(index=[NaN] * 123), TypeError, "index must hold whole numbers.*float32"),
    ("index of floats", examples(index=torch.arange(123.0)), TypeError, "float32.*0..122"),
    ("index of unsigned numbers", examples(index=np.arange(123, dtype=np.uint64)), TypeError, "uint64"),
    ("index of names", examples(index=[f"user {k}" for k in range(123)]), TypeError, "index must be .*list"),
    ("index of truth values", examples(index=torch.ones(123, dtype=torch.bool)), TypeError, "bool"),
    ("labels as names", examples(y=["cat"] * 123), TypeError, "y, the class numbers.*list of numbers"),
    ("labels one-hot", examples(y=torch.eye(3)[torch.arange(123) % 3]), ValueError, r"y\.argmax\(1\)"),
    ("complex images", examples(x=torch.zeros(123, 1, 4, 4) * 1j), TypeError, "complex64"),
    ("images as names of files", examples(x=["a.png"] * 123), TypeError, "x must be .* list"),
    ("images as whole numbers", examples(x=torch.zeros(123, 1, 4, 4).long()), TypeError, r"int64.*/ 255"),
    ("ids as a mask", lambda t: t.train.split([3, 5, 8]), TypeError, r"bool.*int64.*torch\.isin"),
    ("names as a mask", lambda t: t.train.split(["a", "b"]), TypeError, "mask must be"),
    ("a list of classes", lambda t: t.train.split_classes([0, 1]), ValueError, r"\[0, 1\].*split_classes\(3, 5\)"),
    ("one row", lambda t: t.train[5], TypeError, r"examples\[5:6\]"),
    ("a row that is not there", lambda t: t.train[[500]], ValueError, "no such rows of 123"),
    ("a mask of another length", lambda t: t.train[t.wrong[:-1]], ValueError, "no such rows of 123"),
    ("a sum with a tensor", lambda t: t.train + t.test.x, TypeError, "unsupported operand"),
    ("rows to shift", lambda t: rum.fit(Ids, rum.Examples(torch.ones(4, 4).long(), [0, 1, 0, 1]),
                                        rum.Recipe(augment=True)), ValueError, "images .*augment=False"),
    ("tokens to shift", lambda t: augment(torch.ones(4, 4), torch.Generator()), ValueError, r"\(4, 4\)"),

    # forget and retain
    ("retain with the forget set", lambda t: check_disjoint(t.forget, t.train), ValueError,
     "still holds 12 examples.*index 0.*split"),
    ("retain with one of them", lambda t: check_disjoint(t.forget, t.retain + t.forget[3:4]), ValueError,
     "still holds 1 examples.*index 27"),
    ("retain with another index", lambda t: check_disjoint(t.forget, with_index_of(t.train, torch.arange(123) + 999)),
     ValueError, "all 12 examples.*under another index"),
    ("both without an index", lambda t: check_disjoint(with_index_of(t.forget, None), with_index_of(t.train, None)),
     ValueError, "index"),
    ("one without an index", lambda t: check_disjoint(with_index_of(t.forget[2:3], None), with_index_of(t.train, None)),
     ValueError, "all 1 examples"),

    # models
    ("a function as a model", fits(lambda t: torch.relu), TypeError, "torch.nn.Module from inputs to logits"),
    ("a model of scikit-learn", fits(lambda t: SimpleNamespace(predict=print)), TypeError, "got a SimpleNamespace"),
    ("a model without weights", fits(lambda t: nn.Flatten()), ValueError, "Flatten has no parameters"),
    ("a model of TorchScript", fits(Script()), TypeError, "TorchScript.*nn.Module that it was made from"),
    ("a model that returns a tuple", asked(lambda z: (z, z)), TypeError, "returns a tuple: wrap it"),
    ("a model that returns a dict", asked(lambda z: {"logits": z, "loss": z}), TypeError,
     "dict with logits, loss.*wrap"),
    ("a model of one logit", fits(lambda t: Wrapped(t.model, lambda z: z[:, :1])), ValueError,
     r"\(2, 1\).*two outputs"),
    ("a model without classes", fits(lambda t: Wrapped(t.model, lambda z: z.sum(1))), ValueError, r"gives \(2,\)"),
    ("a model that answers NaN", fits(lambda t: Wrapped(t.model, lambda z: z * NaN)), ValueError, "NaN.*lower lr"),
    ("a model that fails", fits(lambda t: Wrapped(t.model, lambda z: z.nothing)), ValueError, "does not take inputs"),
    ("labels above the classes", lambda t: check_compatible(t.model, rum.Examples(t.test.x, t.test.y + 1),
                                                                "the test set"), ValueError,
     r"label 3 of the test set.*0\.\.2"),
    ("asking what is no model", lambda t: rum.predict(print, t.test), TypeError, "nn.Module"),
    ("asking a tuple", lambda t: rum.accuracy(Wrapped(t.model, lambda z: (z,)), t.test), TypeError, "wrap it"),
    ("tokens for a model of images", tokens([[1, 2], [3, 4]], lambda: nn.Linear(2, 3)), ValueError, r"nn\.Embedding"),
    ("tokens above the embedding", tokens([[1, 2], [3, 20]]), ValueError, r"0\.\.19.*1 to 20"),
    ("negative tokens", tokens([[1, 2], [3, -1]]), ValueError, "-1 to 3"),

    # factories
    ("a factory of one model", lambda t: rum.fit(lambda: t.model, t.train, short), ValueError,
     "same weights each time"),
    ("an oracle that is the model", lambda t: rum.Retrain(lambda: t.model, short)(t.model, t.forget, t.retain),
     ValueError, "does not make a new model"),
    ("a factory around one model", lambda t: rum.fit(lambda: nn.Sequential(t.model), t.train, short), ValueError,
     r"copy\.deepcopy"),
    ("many models of one", lambda t: fit_many(lambda: t.model, t.train, [torch.arange(9)] * 2, short, seeds=[1, 2]),
     ValueError, "same weights"),
    ("a model as a factory", lambda t: rum.memorization(t.model, t.train, short, models=2), TypeError,
     "function that makes a new model.*Sequential"),
    ("a factory of nothing", lambda t: build(lambda: None, 0), TypeError, "return a torch.nn.Module.*NoneType"),
    ("fewer seeds than subsets", lambda t: fit_many(make_model, t.train, [torch.arange(9)] * 2, short, seeds=[1]),
     ValueError, "one seed for each subset.*1 seeds"),

    # seeds
    ("no seed", lambda t: rum.fit(make_model, t.train, short, seed=None), TypeError, "whole number.*None"),
    ("a seed of True", lambda t: rum.fit(make_model, t.train, short, seed=True), TypeError, "True"),
    ("a seed of a truth value", lambda t: as_seed(torch.tensor(True)), TypeError, "whole number"),
    ("a seed with a point", lambda t: rum.datasets.gaussians(5, 5, seed=1.0), TypeError, r"1\.0"),
    ("a seed as text", lambda t: rum.load("digits", seed="0"), TypeError, "'0'"),
    ("several seeds", lambda t: rum.train.derive_seed(np.arange(3), "order"), TypeError, "one whole number"),
    ("a seed too large", lambda t: build(make_model, 10**30), ValueError, "64 bits"),

    # recipes
    ("half an epoch", recipe(epochs=1.5), ValueError, "epochs=1.5"),
    ("epochs that are True", recipe(epochs=True), ValueError, "epochs=True"),
    ("half a batch", recipe(batch_size=2.5), ValueError, "batch_size=2.5"),
    ("a rate as text", recipe(lr="0.1"), ValueError, "lr='0.1'"),
    ("momentum of two", recipe(momentum=2), ValueError, r"momentum .* \[0, 1\); got momentum=2"),
    ("negative momentum", recipe(momentum=-0.1), ValueError, "momentum=-0.1"),
    ("negative decay", recipe(weight_decay=-1e-4), ValueError, "weight_decay=-0.0001"),
    ("decay NaN", recipe(weight_decay=NaN), ValueError, "weight_decay=nan"),
    ("a clip of zero", recipe(clip=0), ValueError, "clip must be .* or None; got clip=0"),
    ("a negative clip of an algorithm", lambda t: rum.Finetune(clip=-1.0), ValueError, "clip=-1.0"),
    ("gamma NaN", recipe(gamma=NaN), ValueError, "gamma=nan"),
    ("a milestone after the end", recipe(schedule="step", milestones=(0.5, 1.5)), ValueError, r"\[0, 1\].*1\.5"),
    ("milestones that are a number", recipe(milestones=0.5), ValueError, "milestones=0.5"),
    ("warm-up to the end", recipe(warmup=2), ValueError, "warmup=2"),
    ("amp as text", recipe(amp="no"), ValueError, "amp='no'"),
]
