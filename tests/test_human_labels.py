"""CIFAR-10 with the labels of annotators, and any data set with synthetic label errors."""

import numpy as np
import pytest
import torch
from human import N, as_archive, as_published, images, labels

import rumlib as rum


@pytest.fixture(scope="module")
def given():
    return labels()


@pytest.fixture
def root(tmp_path, given):
    images(tmp_path / "cifar10", given["clean"][:30])
    return tmp_path


@pytest.mark.parametrize("write", [as_published, as_archive])
@pytest.mark.parametrize("name", ["random1", "random2", "random3", "aggre", "worse"])
def test_labels_are_those_of_the_file_and_the_clean_ones_stay_known(write, name, root, given):
    write(root / "cifar10n", given)
    plain, test = rum.load("cifar10", root=root)
    train, same = rum.load("cifar10", root=root, labels=name)
    assert train.y.tolist() == given[name][:30].tolist() and train.info["clean"].tolist() == plain.y.tolist()
    assert torch.equal(train.info["flipped"], train.y != plain.y) and 0 < int(train.info["flipped"].sum()) < 30
    assert torch.equal(train.x, plain.x) and torch.equal(train.index, plain.index) and not plain.info
    assert same.digest == test.digest and not same.info                 # the labels of the test set stay true


def test_a_part_keeps_the_labels_of_its_images(root, given):
    as_published(root / "cifar10n", given)
    train, _ = rum.load("cifar10", root=root, labels="worse", n=11, seed=3)
    assert train.y.tolist() == given["worse"][train.index].tolist() and len(set(train.index.tolist())) == 11


@pytest.mark.parametrize("dtype", ["i8", "i4", "u1"])
def test_whole_numbers_of_any_width_are_read(dtype, root, given):
    as_published(root / "cifar10n", {name: values.astype(dtype) for name, values in given.items()})
    assert rum.load("cifar10", root=root, labels="random2")[0].y.tolist() == given["random2"][:30].tolist()


def test_the_published_file_comes_before_the_other(root, given):
    as_published(root / "cifar10n", given)
    as_archive(root / "cifar10n", given | {"random1": given["clean"]})
    assert rum.load("cifar10", root=root, labels="random1")[0].info["flipped"].any()


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("where", ["alone", "beside the labels", "in an array"])
def test_a_crafted_file_executes_nothing(where, root, given):
    """A pickle that would open a file: in place of the labels it is refused, beside them it is passed over."""
    mark = root / "executed"
    contents = {"alone": Bomb(mark), "beside the labels": {**given, "more": Bomb(mark)},
                "in an array": given | {"random1": np.array([Bomb(mark)] * N, dtype=object)}}[where]
    (root / "cifar10n").mkdir()
    if where == "alone":
        torch.save(contents, root / "cifar10n" / "CIFAR-10_human.pt")
    else:
        as_published(root / "cifar10n", contents)
    if where == "beside the labels":
        assert rum.load("cifar10", root=root, labels="random1")[0].y.tolist() == given["random1"][:30].tolist()
    else:
        with pytest.raises(ValueError, match=r"does not hold 'random_label1', 'clean_label'"):
            rum.load("cifar10", root=root, labels="random1")
    assert not mark.exists()
    torch.load(root / "cifar10n" / "CIFAR-10_human.pt", weights_only=False)
    assert mark.exists()                                     # so that the test would have seen it


# -- Synthetic errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_synthetic_errors_are_as_many_as_asked_for_and_known(share, root):
    plain, _ = rum.load("cifar10", root=root)
    train, test = rum.load("cifar10", root=root, flips=share)
    assert int(train.info["flipped"].sum()) == round(30 * share)
    assert torch.equal(train.info["flipped"], train.y != plain.y) and torch.equal(train.info["clean"], plain.y)
    assert test.digest == rum.load("cifar10", root=root)[1].digest
    again, other = (rum.load("cifar10", root=root, flips=share, seed=seed)[0] for seed in (0, 1))
    assert torch.equal(train.y, again.y) and not torch.equal(train.y, other.y)


def test_none_is_flipped_unless_asked_for(root):
    assert not rum.load("cifar10", root=root)[0].info and not rum.load("cifar10", root=root, flips=0)[0].info


def test_the_clean_labels_of_the_digits_are_known():
    train, test = rum.load("digits")
    true = rum.load("digits", noise=0, flips=0)
    for part, clean in zip((train, test), true, strict=True):
        assert torch.equal(part.info["clean"], clean.y)
    assert torch.equal(train.info["flipped"], train.y != train.info["clean"])
