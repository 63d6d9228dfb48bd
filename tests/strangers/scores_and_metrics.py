"""Scores, proxies and metrics: sets that do not fit, files made to harm, numbers that are none."""

import csv
import io
import zipfile
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import nn

import rumlib as rum

NAN = float("nan")
POINTS = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))
ROWS = [{"way": way, "seed": seed, "tow": 0.5} for way in "ab" for seed in range(3)]


def relabelled(examples, add):
    return rum.Examples(examples.x, examples.y + add, examples.index)


def memorize(t, **options):
    return rum.memorization(rum.models.mlp, t.train, rum.Recipe(), **options)


def wider():
    return rum.models.build(partial(rum.models.mlp, shape=(1, 4, 4), classes=5), 0)


def diverged(t):
    model = rum.fit(t.model, t.train, rum.Recipe(epochs=1, lr=1e-9))
    nn.init.constant_(model[-1].weight, NAN)
    return model


def overflowing(t):
    """The logits of one class overflow wherever its unit is active."""
    model = rum.fit(t.model, t.train, rum.Recipe(epochs=1, lr=1e-9))
    model[-1].weight.data[0, :8] = 3e38
    return model


def read(t, name, content, key="mem"):
    """What `Score.read` makes of a file of that content: text, bytes or arrays."""
    path = t.folder / name
    if isinstance(content, dict):
        np.savez_compressed(path, **content)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return rum.Score.read(path, key, t.train, labels="y")


def header(shape, descr="<f8", extra=""):
    """The start of a .npy file that claims to hold an array of this shape."""
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, {extra}}}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode("latin1")


def archive(content, method=zipfile.ZIP_DEFLATED):
    """A .npz file whose "mem" and "y" have this content."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as zipped:
        for name in ("mem.npy", "y.npy"):
            zipped.writestr(name, content)
    return file.getvalue()


def bomb(values):
    """Zeros, as many as that, in a thousandth of their size; none of them is in memory."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name in ("mem.npy", "y.npy"):
            with zipped.open(name, "w", force_zip64=True) as stream:
                stream.write(header((values,)))
                for _ in range(4):                           # the rest is claimed and not there: the file stays small
                    stream.write(bytes(2 ** 20))
    return file.getvalue()


def flipped(t):
    np.savez(t.folder / "s.npz", mem=np.arange(123.0), y=t.train.y.numpy())
    content = bytearray((t.folder / "s.npz").read_bytes())
    content[400] ^= 1
    return bytes(content)


def table(rows, first="mem,y"):
    file = io.StringIO()
    csv.writer(file).writerows([first.split(","), *rows])
    return file.getvalue()


CASES = [
    # sets that the model does not fit, or that do not fit each other
    ("test labels out of range", lambda t: rum.tow(t.model, t.oracle, t.forget, t.retain, relabelled(t.test, 1)),
     ValueError, r"label 3 .*0\.\.2"),
    ("test labels out of range for the attack",
     lambda t: rum.tow_mia(t.model, t.oracle, t.forget, t.retain, relabelled(t.test, 1)), ValueError, r"label 3 "),
    ("labels of the forget set out of range",
     lambda t: rum.evaluate(t.model, relabelled(t.forget, 5), t.retain, t.test), ValueError, r"label \d .*0\.\.2"),
    ("members with labels out of range", lambda t: rum.svc_mia(t.model, relabelled(t.retain, 9), t.test, t.forget),
     ValueError, r"label 11 "),
    ("accuracies of labels out of range", lambda t: rum.metrics.accuracies(t.model, {"mine": relabelled(t.test, 3)}),
     ValueError, r"label 5 "),
    ("a retain set that holds the forget set", lambda t: rum.tow(t.model, t.oracle, t.forget, t.train, t.test),
     ValueError, r"retain set .* 12 "),
    ("the same for the attack", lambda t: rum.tow_mia(t.model, t.oracle, t.forget, t.train, t.test), ValueError,
     r"retain set .* 12 "),
    ("the same for the gap", lambda t: rum.metrics.mia_gap(t.model, t.oracle, t.forget, t.train, t.test), ValueError,
     r"retain set .* 12 "),
    ("an empty test set", lambda t: rum.tow(t.model, t.oracle, t.forget, t.retain, t.test[:0]), ValueError,
     r"test is empty"),
    ("empty members", lambda t: rum.svc_mia(t.model, t.retain[:0], t.test, t.forget), ValueError, r"members is empty"),
    ("a pair in place of a set", lambda t: rum.tow(t.model, t.oracle, t.forget, t.retain, (t.test.x, t.test.y)),
     TypeError, r"test must be .*Examples.*tuple"),
    ("classes in place of a forget set", lambda t: rum.metrics.class_accuracies(t.model, t.test, [3]), TypeError,
     r"test must be .*list"),
    ("classes that the test set lacks", lambda t: rum.metrics.class_mia(t.model, *t.train.split_classes(0),
                                                                        t.test.split_classes(0)[1]),
     ValueError, r"no image of the forgotten classes \[0\]"),
    ("ToW of two models that diverged", lambda t: rum.tow(diverged(t), diverged(t), t.forget, t.retain, t.test),
     FloatingPointError, r"NaN to forget.*diverged"),
    ("disagreement of models that diverged", lambda t: rum.metrics.disagreement(diverged(t), diverged(t), t.test),
     FloatingPointError, r"NaN to examples.*diverged"),
    ("ToW of models that overflow for a few images",
     lambda t: rum.tow(overflowing(t), t.oracle, t.forget, t.retain, t.test), FloatingPointError,
     r"infinite logits for \d+ of 1?\d\d? examples \((forget|retain|test)\)"),
    ("an attack on a model that diverged", lambda t: rum.svc_mia(diverged(t), t.retain, t.test, t.forget),
     FloatingPointError, r"diverged"),
    ("an attack without a seed", lambda t: rum.svc_mia(t.model, t.retain, t.test, t.forget, seed=None), TypeError,
     r"NoneType|seed"),
    ("an attack with a seed of 1.5", lambda t: rum.svc_mia(t.model, t.retain, t.test, t.forget, seed=1.5), TypeError,
     r"float|1\.5"),

    # numbers that are no accuracies
    ("accuracies in percent", lambda t: rum.tow_from_accuracies(unlearned=(70, 99, 85), retrained=(60, 100, 84)),
     ValueError, r"got 70\. Divide percentages by 100"),
    ("an accuracy below 0", lambda t: rum.tow_from_accuracies(unlearned=(-0.1, 1, 1), retrained=(1, 1, 1)), ValueError,
     r"got -0\.1\. Give the share"),
    ("an accuracy that is NaN", lambda t: rum.tow_from_accuracies(unlearned=(NAN, 1, 1), retrained=(1, 1, 1)),
     ValueError, r"got nan\. The set was empty"),
    ("two accuracies", lambda t: rum.tow_from_accuracies(unlearned=(1, 1), retrained=(1, 1)), ValueError,
     r"three accuracies .*got 2 "),
    ("two and three accuracies", lambda t: rum.tow_from_accuracies(unlearned=(1, 1, 1), retrained=(1, 1)), ValueError,
     r"got 3 .* and 2 "),
    ("no accuracy", lambda t: rum.metrics.retention(None, 1), TypeError, r"got None"),
    ("a word as an accuracy", lambda t: rum.metrics.forgetting_rate("0.9", 0.5), TypeError, r"got '0\.9'"),

    # scores
    ("complex scores", lambda t: rum.Score("mine", torch.ones(3, dtype=torch.complex64)), TypeError, r"complex64"),
    ("scores as words", lambda t: rum.Score("mine", ["high", "low"]), TypeError, r"list of numbers; got list"),
    ("scores of nothing", lambda t: rum.Score("mine", None), TypeError, r"list of numbers; got NoneType"),
    ("an index of floats", lambda t: rum.Score("mine", [1.0, 2, 3], [1.0, NAN, 3]), TypeError,
     r"whole numbers; got torch\.float32"),
    ("a middle that is NaN", lambda t: rum.Score("mine", [1.0, 2], middle=NAN), ValueError, r"middle .* nan"),
    ("half an example", lambda t: rum.Score("mine", [1.0, 2, 3]).pick(1.5, "high"), ValueError, r"1\.5 .*1\.\.3"),
    ("memorization of a trained model", lambda t: rum.memorization(t.model, t.train, rum.Recipe()), TypeError,
     r"factory is a function that makes a new model.*got a Sequential"),
    ("memorization with one model", lambda t: memorize(t, models=1), ValueError,
     r"123 examples .* of the 1 subsets.*more models"),
    ("memorization without models", lambda t: memorize(t, models=0), ValueError,
     r"of the 0 subsets.*more models"),
    ("a fraction in percent", lambda t: memorize(t, fraction=70), ValueError,
     r"fraction .* 123 .* 70"),
    ("a fraction that is NaN", lambda t: memorize(t, fraction=NAN), ValueError,
     r"fraction .* nan"),
    ("shares in place of right and wrong", lambda t: rum.memorization_from(POINTS, POINTS > 0), ValueError,
     r"True and False"),
    ("a proxy of labels out of range",
     lambda t: rum.proxies.holdout_retraining(t.model, relabelled(t.train, 7), t.test), ValueError, r"label 9 "),
    ("a model in place of a trace", lambda t: rum.proxies.from_trace("confidence", t.model), TypeError,
     r"a Trace; got a Sequential"),
    ("a trace of something else", lambda t: rum.proxies.from_trace("margin", rum.proxies.Trace(t.train)), ValueError,
     r"must be one of confidence.*'margin'"),

    ("a shift by NaN", lambda t: rum.spdgan.SPDGAN(eps=NAN), ValueError, r"eps .* nan"),
    ("one and a half epochs of shifting", lambda t: rum.spdgan.SPDGAN(epochs=1.5), ValueError,
     r"whole number.*epochs=1\.5"),
    ("a loss with the weight NaN", lambda t: rum.spdgan.SPDGAN(slight=NAN), ValueError,
     r"slight must be a number at least 0; got slight=nan"),
    ("the degree of labels out of range",
     lambda t: rum.spdgan.unlearning_degree(t.model, t.oracle, relabelled(t.forget, 5), t.test), ValueError,
     r"label \d "),

    # embeddings
    ("entanglement with nothing", lambda t: rum.entanglement(POINTS[:0], POINTS), ValueError, r"\(0, 2\)"),
    ("entanglement of one point with itself", lambda t: rum.entanglement(POINTS[:1], POINTS[:1]), ValueError,
     r"1 and 1 embeddings .* same point"),
    ("entanglement of a model that diverged", lambda t: rum.entanglement(POINTS, POINTS * NAN), ValueError,
     r"9 of 9 are not"),
    ("entanglement of other features", lambda t: rum.entanglement(POINTS, torch.ones(3, 5)), ValueError,
     r"\(9, 2\) and \(3, 5\)"),
    ("mmd of infinite features", lambda t: rum.mmd(POINTS / 0, POINTS), ValueError, r"finite"),
    ("mmd of a single vector", lambda t: rum.mmd(POINTS[0], POINTS), ValueError, r"\(n, d\)"),
    ("no bands", lambda t: rum.scores.bands(POINTS, 0), ValueError, r"at least 1; got count=0"),
    ("neighbours of a point that is not there", lambda t: rum.scores.neighbours(POINTS, 9, 2), ValueError,
     r"in \[0, 9\); got anchor=9"),

    ("matched sets of other scores", lambda t: rum.scores.matched(POINTS[:5, 0], POINTS, 2, bins=1), ValueError,
     r"9 embeddings; got shape \(5,\)"),
    ("matched sets of scores that are NaN", lambda t: rum.scores.matched(POINTS[:, 0] * NAN, POINTS, 2, bins=1),
     ValueError, "9 of them not finite"),
    ("matched sets of a model that diverged", lambda t: rum.scores.matched(POINTS[:, 0], POINTS * NAN, 2, bins=1),
     ValueError, "finite embeddings"),
    ("matched sets of two and a half", lambda t: rum.scores.matched(POINTS[:, 0], POINTS, 2.5, bins=1), ValueError,
     "n=2.5"),
    ("matched sets of no groups", lambda t: rum.scores.matched(POINTS[:, 0], POINTS, 2, bins=0), ValueError, "bins=0"),
    ("half a band", lambda t: rum.scores.bands(POINTS, 1.5), ValueError, "whole number.*1.5"),
    ("bands of a model that diverged", lambda t: rum.scores.bands(POINTS * NAN, 2), ValueError, "finite embeddings"),
    ("half a neighbour", lambda t: rum.scores.neighbours(POINTS, 1, 2.5), ValueError, r"whole number.*2\.5"),
    ("standard errors of others", lambda t: rum.Score("mine", [1.0, 2], stderr=torch.ones(1)), ValueError,
     "each of the 2 examples; got 1"),
    ("an index of unsigned numbers", lambda t: rum.Score("mine", [1.0, 2], np.array([1, 2**63], dtype=np.uint64)),
     TypeError, "uint64"),

    # what is compared
    ("similarity of models of other classes", lambda t: rum.metrics.similarity(t.model, wider(), t.test), ValueError,
     "know 3 and 5 classes"),
    ("disagreement of models of other classes", lambda t: rum.metrics.disagreement(t.model, wider(), t.test),
     ValueError, "know 3 and 5 classes"),
    ("disagreements on nothing", lambda t: rum.metrics.disagreements(t.model, t.oracle, {}), ValueError, "one set"),
    ("the distance to nothing", lambda t: rum.metrics.weight_distance(t.model, None), TypeError, "NoneType"),
    ("the acceleration of seconds", lambda t: rum.metrics.acceleration(3.0, 4.0), TypeError, r"spent .*cost\(\).*3\.0"),

    # rows
    ("rows with a missing value", lambda t: rum.summarise([*ROWS, {"way": "b", "seed": 3}], by="way", of="tow"),
     ValueError, r"1 of 7 rows"),
    ("rows of no group", lambda t: rum.summarise([*ROWS, {"seed": 3, "tow": 0.1}], by=["way"], of="tow"), ValueError,
     r"1 of 7 rows have no value in way"),
    ("rows with an infinite value",
     lambda t: rum.summarise([*ROWS, {"way": "b", "seed": 3, "tow": float("inf")}], by="way", of="tow"), ValueError,
     r"1 of 7 rows"),
    ("rows of words", lambda t: rum.summarise([{"way": "a", "tow": "high"}], by="way", of="tow"), ValueError,
     r"1 of 1 rows"),
    ("no rows", lambda t: rum.summarise([], by="way", of="tow"), ValueError, r"no column way, tow"),
    ("a contrast without seeds", lambda t: rum.stats.contrast(pd.DataFrame(ROWS).drop(columns="seed"), {"way": "a"},
                                                              {"way": "b"}, of="tow"), ValueError, r"no column seed"),
    ("a contrast by an unknown column", lambda t: rum.stats.contrast(ROWS, {"kind": "a"}, {"kind": "b"}, of="tow"),
     ValueError, r"no column kind; they have way, seed, tow"),
    ("a contrast with a run that diverged",
     lambda t: rum.stats.contrast([*ROWS, {"way": "b", "seed": 3, "tow": NAN}], {"way": "a"}, {"way": "b"}, of="tow"),
     ValueError, r"1 of 4 rows have no tow"),
    ("equivalence of nothing", lambda t: rum.stats.equivalence([]), ValueError, r"0 differences"),
    ("equivalence within 0", lambda t: rum.stats.equivalence([0.1, 0.2], margin=0), ValueError, r"margin > 0.* 0 and"),

    # files of scores
    ("an archive that claims 5e8 values", lambda t: read(t, "s.npz", bomb(500_000_000)), ValueError,
     r"claims 5e\+08 values; .*20,000,000"),
    ("an archive that claims 1e15 values", lambda t: read(t, "s.npz", archive(header((10 ** 15,)))), ValueError,
     r"claims 1e\+15 values"),
    ("an archive that is smaller than it claims", lambda t: read(t, "s.npz", bomb(19_000_000)), ValueError,
     r"claims 19000000 values .*damaged"),
    ("a negative number of values", lambda t: read(t, "s.npz", archive(header((-1,)))), ValueError, r"claims -1 "),
    ("a header of a megabyte", lambda t: read(t, "s.npz", archive(header((1,), extra="'a': 0," * 9000))), ValueError,
     r"no header of an array"),
    ("a header that is nested deeply", lambda t: read(t, "s.npz", archive(header("(" * 5000 + ")" * 5000))), ValueError,
     r"no header|damaged"),
    ("a header that calls", lambda t: read(t, "s.npz", archive(header("__import__('os').getcwd()"))), ValueError,
     r"no header of an array"),
    ("words of a gigabyte each", lambda t: read(t, "s.npz", archive(header((1,), "<U268435456"))), ValueError,
     r"one number per example; got <U268435456"),
    ("Python objects", lambda t: read(t, "s.npz", {"mem": np.array([{}, None]), "y": np.zeros(2)}), ValueError,
     r"Python objects, which are never unpickled"),
    ("complex numbers in a file", lambda t: read(t, "s.npz", {"mem": np.ones(123) * 1j, "y": np.zeros(123)}),
     ValueError, r"one number per example; got complex128"),
    ("a table in place of a column", lambda t: read(t, "s.npz", {"mem": np.ones((41, 3)), "y": np.zeros(123)}),
     ValueError, r"one number per example.*\(41, 3\)"),
    ("a flipped bit", lambda t: read(t, "s.npz", flipped(t)), ValueError, r"s\.npz .*damaged.*Fetch it again"),
    ("half an archive", lambda t: read(t, "s.npz", flipped(t)[:600]), ValueError, r"s\.npz .*damaged"),
    ("a compression that NumPy does not use", lambda t: read(t, "s.npz", archive(bytes(2 ** 20), zipfile.ZIP_BZIP2)),
     ValueError, r"NumPy does not use"),
    ("a pickle named as an archive", lambda t: read(t, "s.npz", b"\x80\x04N."), ValueError, r"no file of arrays"),
    ("an array that is not there", lambda t: read(t, "s.npz", {"infl": np.ones(123), "y": np.zeros(123)}), ValueError,
     r"no 'mem'; it has 'infl', 'y'"),
    ("many arrays that were not asked for", lambda t: read(t, "s.npz", {f"array {k}": 0 for k in range(99)}),
     ValueError, r"no 'mem'; it has 'array 0'.* \.\.\.$"),
    ("a column that is not there", lambda t: read(t, "s.csv", table([[0.5, 0]] * 123), key="influence"), ValueError,
     r"no column 'influence'; its first line names 'mem', 'y'"),
    ("a column twice", lambda t: read(t, "s.csv", table([[0.5, 0, 1]] * 123, "mem,y,mem")), ValueError,
     r"'mem' of .*s\.csv is ambiguous: its first line names \['mem', 'mem'\]"),
    ("rows that are long", lambda t: read(t, "s.csv", "mem,y\n" + "0.5,1,2\n" * 123), ValueError,
     r"line 2 of .* has 3 fields, the first line names 2"),
    ("a row that is short", lambda t: read(t, "s.csv", table([[0.5, 0]] * 9 + [[1]])), ValueError,
     r"line 11 of .* has 1 fields"),
    ("an empty field", lambda t: read(t, "s.csv", "mem,y\n0.5,0\n,1\n"), ValueError, r"line 3 has ''"),
    ("a column of words", lambda t: read(t, "s.csv", "mem,y\nhigh,0\n"), ValueError, r"line 2 has 'high'"),
    ("a line of 50 MB", lambda t: read(t, "s.csv", "mem,y\n" + "1" * 50_000_000), ValueError, r"line of 65,536 char"),
    ("a field of 50 MB in quotes", lambda t: read(t, "s.csv", 'mem,y\n"' + "1\n" * 25_000_000), ValueError,
     r"is no CSV file in UTF-8: line"),
    ("two terabytes of nothing", lambda t: (read_sparse(t)), ValueError, r"2\.2e\+12 bytes; .*at most 1,073,741,824"),
    ("a picture named as a table", lambda t: read(t, "s.csv", b"\x89PNG\r\n\x1a\n\x00\xff"), ValueError,
     r"s\.csv is no CSV file in UTF-8"),
    ("an empty table", lambda t: read(t, "s.csv", ""), ValueError, r"s\.csv is no CSV file: it is empty"),
    ("scores that are NaN", lambda t: read(t, "s.csv", table([["nan", int(y)] for y in t.train.y])), ValueError,
     r"not finite for 123 "),
    ("a folder of scores", lambda t: ((t.folder / "s.npz").mkdir(), rum.Score.read(t.folder / "s.npz", "mem", t.train,
                                                                                 labels="y")), ValueError,
     r"no regular file"),
    ("a spreadsheet", lambda t: read(t, "s.xlsx", b""), ValueError, r"\.npz and \.csv files.* got s\.xlsx"),
    ("no file of scores", lambda t: rum.Score.read(t.folder / "s.npz", "mem", t.train, labels="y"), FileNotFoundError,
     r"there is no .*s\.npz"),
]


def read_sparse(t):
    with (t.folder / "s.csv").open("wb") as file:
        file.truncate(2_199_023_255_552)
    return rum.Score.read(t.folder / "s.csv", "mem", t.train, labels="y")
