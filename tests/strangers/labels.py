"""Files of human labels that a stranger brings, and what is asked of them."""

import io
import pickle
import zipfile
from functools import cache

import numpy as np
import torch
from human import N, as_archive, as_published, images, labels

import rumlib as rum

known = cache(labels)


def load(change=None, write=as_published, y=None, **options):
    """Load the labels of annotators after a change to them; y: of the images, if not the clean ones."""
    def call(t):
        found = dict(known())
        images(t.folder / "cifar10", found["clean"][:6] if y is None else y)
        if write is not None:
            write(t.folder / "cifar10n", change(found) if change else found)
        return rum.load("cifar10", root=t.folder, **({"labels": "random1"} | options))
    return call


def file(data):
    """A file of these bytes in the place of the published one."""
    def write(folder, _):
        folder.mkdir()
        (folder / "CIFAR-10_human.pt").write_bytes(data)
    return load(write=write)


def archive(pickled, compression=zipfile.ZIP_STORED, name="archive/data.pkl", times=1):
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", compression) as made:
        for k in range(times):
            made.writestr(f"{k}/{name}", pickled)
    return held.getvalue()


def halved(found):
    return found | {"random1": found["random1"][:N // 2]}


def without(name):
    return lambda found: {other: values for other, values in found.items() if other != name}


CASES = [
    ("labels of no kind", load(labels="random4"), ValueError, r"labels must be one of random1, .*got 'random4'"),
    ("labels that are clean", load(labels="clean"), ValueError, r"labels must be one of .*got 'clean'"),
    ("labels as a number", load(labels=1), ValueError, r"labels must be one of .*got 1"),
    ("labels of the digits", lambda t: rum.load("digits", labels="worse"), ValueError, r"labels='worse' are of the "
     r"images of cifar10; 'digits'"),
    ("labels of some classes", load(classes=(1, 2)), ValueError, r"labels='random1' go with all ten classes"),
    ("labels and flips", load(flips=0.1), ValueError, r"labels='random1' .*leave out classes= and flips="),
    ("no file of labels", load(write=None), FileNotFoundError, r"looked for /.*cifar10n/CIFAR-10_human\.pt and "
     r"cifar10n\.npz beside it\. Get .*UCSC-REAL/cifar-10-100n \(licence CC BY-NC 4\.0\)"),
    ("labels of other images", load(y=[(c + 1) % 10 for c in labels()["clean"][:6]]), ValueError,
     r"clean labels of .* differ from those of the images for 6 of 6"),
    ("labels of half the images", load(halved), ValueError, r"'random_label1' .*50,000 whole numbers.*got 25,000"),
    ("labels of half the images, in an archive", load(halved, as_archive), ValueError, r"'random1' .*got 25,000 from"),
    ("labels beyond nine", load(lambda found: found | {"random1": found["random1"] + 1}), ValueError,
     r"from 0 to 9.*from 1 to 10"),
    ("labels below zero", load(lambda found: found | {"random1": found["random1"] - 1}), ValueError, r"from -1 to 8"),
    ("labels that are floats", load(lambda found: {k: v / 1 for k, v in found.items()}), ValueError,
     r"does not hold 'random_label1', 'clean_label' as NumPy arrays of whole numbers"),
    ("labels of two types", load(lambda found: found | {"random1": found["random1"].astype("u1")}), ValueError,
     r"arrays of whole numbers of one type"),
    ("labels as tensors", load(lambda found: {k: torch.tensor(v) for k, v in found.items()}), ValueError,
     r"does not hold 'random_label1', 'clean_label' as NumPy arrays"),
    ("no such labels", load(without("random1")), ValueError, r"does not hold 'random_label1'"),
    ("no such labels in an archive", load(without("random1"), as_archive), ValueError, r"no 'random1'; it has 'clean'"),
    ("no clean labels", load(without("clean")), ValueError, r"does not hold 'random_label1', 'clean_label'"),
    ("labels that are no archive", file(b"\x80\x02}q\x00."), ValueError, r"no file of arrays, or damaged"),
    ("labels without a pickle", file(archive(b"", name="archive/data.txt")), ValueError, r"no single data\.pkl"),
    ("two pickles", file(archive(b".", times=2)), ValueError, r"no single data\.pkl"),
    ("a pickle of 100 MB", file(archive(bytes(10 ** 8), zipfile.ZIP_DEFLATED)), ValueError, r"at most 33,554,432 byt"),
    ("a pickle of a million instructions", file(archive(b"\x80\x02" + b"N0" * 10 ** 6 + b"N.")), ValueError,
     r"more than 10,000 instructions"),
    ("a pickle cut short", file(archive(pickle.dumps({"clean_label": np.zeros(9)}, 2)[:60])), ValueError,
     r"does not hold .*damaged"),
    ("a share of flips above one", lambda t: rum.load("digits", flips=1.5), ValueError, r"flips.*\[0, 1\).*1\.5"),
]
