"""Examples, augmentation, lists of ids and every way of loading."""

import hashlib
import io
import pickle
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR100

import rumlib as rum
from rumlib.data import as_input, augment, check_disjoint


def numbered(n):
    """n different images with an index that is not their position."""
    rows = torch.arange(n)
    x = torch.arange(n * 12).reshape(n, 3, 2, 2).float()
    return rum.Examples(x, rows % 3, 7 * rows + 100, {"noise": rows / 10}, ("a", "b", "c"))


def equal(a, b):
    return (a.digest == b.digest and a.names == b.names and set(a.info) == set(b.info)
            and all(torch.equal(a.info[name], b.info[name]) for name in a.info))


# -- Examples ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.booleans(), min_size=2, max_size=30).filter(lambda mask: any(mask) and not all(mask)))
def test_splitting_and_adding_gives_the_same_examples_back(mask):
    data = numbered(len(mask))
    forget, retain = data.split(torch.tensor(mask))
    assert forget.index.tolist() == [int(i) for i, gone in zip(data.index, mask, strict=True) if gone]
    together = forget + retain
    assert equal(together[together.index.argsort()], data)


def test_a_mask_may_be_a_list_or_an_array():
    data, mask = numbered(4), [True, False, False, True]
    for given_as in (mask, np.array(mask), torch.tensor(mask)):
        assert data.split(given_as)[0].index.tolist() == [100, 121]


def test_arrays_and_lists_become_tensors():
    data = rum.Examples(np.zeros((3, 1, 2, 2), np.float32), [0, 2, 1])
    assert (data.x.dtype, data.y.dtype, data.index.tolist()) == (torch.float32, torch.int64, [0, 1, 2])


def test_only_facts_that_both_have_survive_addition():
    a, b = numbered(3), numbered(2)
    other = rum.Examples(b.x, b.y, b.index, {"noise": b.info["noise"], "flipped": b.y})
    assert list((a + other).info) == ["noise"]


def test_the_digest_is_that_of_images_labels_and_order():
    data = numbered(6)
    assert data.digest == numbered(6).digest
    order = torch.tensor([1, 0, 2, 3, 4, 5])
    others = (data[order], data[:5], rum.Examples(data.x + 1, data.y, data.index),
              rum.Examples(data.x, data.y.flip(0), data.index), rum.Examples(data.x, data.y))
    assert len({data.digest, *(other.digest for other in others)}) == 6


def test_bytes_are_scaled_and_floats_are_not():
    levels = torch.tensor([0, 51, 255], dtype=torch.uint8)
    assert torch.equal(as_input(levels), torch.tensor([0, 51, 255]) / 255)
    assert torch.equal(as_input(torch.tensor([0.0, 51.0])), torch.tensor([0.0, 51.0]))


def test_tokens_stay_whole_numbers():
    ids = torch.tensor([[0, 257], [2**40 + 1, 3]])
    assert torch.equal(as_input(ids, torch.zeros(1, dtype=torch.bfloat16)), ids)
    assert rum.Examples(ids.int(), [0, 1]).x.dtype == torch.int32
    both = rum.Examples(ids, [0, 1]) + rum.Examples(ids, [1, 1])
    assert both.x.dtype == torch.int64 and both.index.tolist() == [0, 1, 0, 1]       # each numbered from 0


def test_columns_of_tables_become_tensors():
    table = pd.DataFrame({"id": [5, 7, 9], "y": [0, 1, 0]})[1:]          # its rows are called 1 and 2
    data = rum.Examples(torch.zeros(2, 3), table["y"], table["id"])
    assert data.index.tolist() == [7, 9] and data.y.tolist() == [1, 0]


# -- Forget and retain ------------------------------------------------------------------------------------------------


@given(st.lists(st.booleans(), min_size=2, max_size=30).filter(lambda mask: any(mask) and not all(mask)))
def test_sets_of_one_split_are_disjoint(mask):
    forget, retain = numbered(len(mask)).split(torch.tensor(mask))
    check_disjoint(forget, retain)
    for whole in (forget + retain, retain + forget[-1:]):
        with pytest.raises(ValueError, match=rf"holds {len(whole) - len(retain)} examples of the forget set"):
            check_disjoint(forget, whole)


def test_sets_that_are_each_numbered_from_zero_are_disjoint_unless_all_is_shared():
    data = numbered(12)
    forget, retain = (rum.Examples(part.x, part.y) for part in (data[:4], data[4:]))
    check_disjoint(forget, retain)
    joined = rum.Examples(torch.cat([retain.x, forget.x]), torch.cat([retain.y, forget.y]))
    with pytest.raises(ValueError, match=r"all 4 examples .* under another index"):
        check_disjoint(forget, joined)
    check_disjoint(forget, joined[:-1])                      # one of four is not shared
    check_disjoint(forget, rum.Examples(joined.x, (joined.y + 1) % 3))               # the same images, other labels


def test_a_single_duplicate_is_legitimate():
    data = numbered(6)
    twice = rum.Examples(torch.cat([data.x, data.x[:1]]), torch.cat([data.y, data.y[:1]]))
    check_disjoint(twice[:1], twice[1:])
    check_disjoint(twice[:2], twice[2:])


def test_contents_that_differ_in_one_value_are_told_apart():
    """Also where the few values agree that are looked at first."""
    x = torch.zeros(40, 3, 4, 4)
    x[torch.arange(40), torch.arange(40) % 3, 0, 0] = torch.arange(40.0)
    data = rum.Examples(x, torch.zeros(40).long())
    check_disjoint(data[:3], rum.Examples(data.x[3:], data.y[3:], torch.arange(100, 137)))
    with pytest.raises(ValueError, match="all 3"):
        check_disjoint(data[:3], rum.Examples(data.x, data.y, torch.arange(100, 140)))


# -- Lists of ids -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, column", [
    ("id\n10\n20\n", "id"), ("id, why\n20, asked\n10, asked\n", "id"), ("who,row\na,10\nb,20\n", "row"),
    ('"id"\r\n"10"\r\n"20"\r\n\r\n', "id"), ("id,user\n10,5,\n20,7,\n", "id"), ("id\n10,\n20,,\n", "id"),
    ("id,user,\n10,5\n20,7,\n", "id"), ("user,id\n5,10,,\n7,20\n,\n,,,\n", "id"), ("\ufeffid\n10\n20", "id"),
    ('id,why\n10,"a, b\n and ""c"""\n20,\n', "id"), ("id\r10\r20\r", "id"), (" id ,x\n 010 ,\n\t20,1\n", "id")])
def test_ids_of_a_file_are_those_of_the_index(text, column, tmp_path):
    train = rum.Examples(torch.rand(30, 1, 4, 4), torch.arange(30))
    (tmp_path / "forget.csv").write_text(text, newline="")
    mask = rum.forget_ids(tmp_path / "forget.csv", train, column=column)
    assert train.index[mask].tolist() == [10, 20] and mask.shape == (30,)


@given(st.sets(st.integers(0, 60), min_size=1), st.booleans(), st.booleans(), st.permutations(["id", "user", "why"]))
@settings(max_examples=40)
def test_what_a_spreadsheet_writes_is_read_as_it_was_meant(ids, excel, trailing, columns):
    """Other columns hold numbers that are ids of other people, and commas, quotes and line breaks."""
    table = pd.DataFrame({"id": list(ids), "user": [(k + 1) % 61 for k in ids], "why": ['7, "8"\n9,'] * len(ids)})
    text = table[list(columns)].to_csv(index=False, lineterminator="\r\n" if excel else "\n")
    if trailing:
        text = text.replace('9,"', '9,",') if columns[-1] == "why" else text
    train = rum.Examples(torch.zeros(61, 2), torch.zeros(61).long(), torch.arange(61).flip(0))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "forget.csv"
        path.write_text(text, newline="", encoding="utf-8-sig" if excel else "utf-8")
        mask = rum.forget_ids(path, train)
    assert set(train.index[mask].tolist()) == ids


@pytest.mark.parametrize("text, words", [
    (None, "no list of ids"), ("", "no CSV file"), ("id\n", "none"), ("103\n100\n", "no column 'id'.*'103'.*column="),
    ("id\n103\nx\n", "whole numbers.*line 3 has 'x'"), ("id\n1.5\n", "whole numbers.*'1.5'"),
    ("id\n103\n7\n8\n", r"2 ids .* none of the 5 examples.*\[7, 8\]"), ("id\n" + "9" * 30 + "\n", "whole numbers")])
def test_a_list_that_does_not_fit_is_refused(text, words, tmp_path):
    train = rum.Examples(torch.rand(5, 1, 4, 4), torch.arange(5), torch.arange(100, 105))
    if text is not None:
        (tmp_path / "forget.csv").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        rum.forget_ids(tmp_path / "forget.csv", train)


# -- Augmentation -----------------------------------------------------------------------------------------------------


def moves(image, source):
    """(top, left, mirrored) of every shift, over a zero border of an eighth, and mirroring that makes `image`."""
    side = source.shape[-1]
    pad = side // 8
    wide = torch.nn.functional.pad(source, (pad,) * 4)
    return [(top, left, mirrored) for top in range(2 * pad + 1) for left in range(2 * pad + 1)
            for mirrored in (False, True)
            for window in [wide[:, top:top + side, left:left + side]]
            if torch.equal(image, window.flip(-1) if mirrored else window)]


@settings(max_examples=30)
@given(st.integers(1, 6), st.integers(1, 3), st.sampled_from([8, 16, 20]), st.booleans(), st.integers(0, 10**6))
def test_each_image_is_one_of_the_shifts_and_mirrors_of_itself(n, channels, side, as_bytes, seed):
    random = torch.Generator().manual_seed(seed)
    x = torch.randint(1, 256, (n, channels, side, side), generator=random)
    x = x.to(torch.uint8) if as_bytes else x / 255
    out = augment(x, random)
    assert (out.dtype, out.shape) == (x.dtype, x.shape)
    assert all(moves(image, source) for image, source in zip(out, x, strict=True))


def test_every_shift_and_mirror_comes_up_and_the_generator_decides():
    x = torch.rand(600, 1, 8, 8, generator=torch.Generator().manual_seed(0)) + 0.1
    one, two, other = (augment(x, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)
    counts = Counter(move for image, source in zip(one, x, strict=True) for move in moves(image, source))
    assert len(counts) == 18 and min(counts.values()) > 12               # 33 expected of each of 3 x 3 x 2


# -- Digits -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return rum.load("digits")


@pytest.fixture(scope="module")
def originals():
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels)


def test_digits_have_the_promised_sizes_and_ranges(digits):
    train, test = digits
    assert (len(train), len(test)) == (1297, 500)
    for part in digits:
        assert part.x.shape[1:] == (1, 8, 8) and part.x.dtype == torch.float32
        assert part.x.min() >= 0 and part.x.max() <= 1
    assert sorted(torch.cat([train.index, test.index]).tolist()) == list(range(1797))


def test_the_flipped_labels_are_the_known_ones(digits, originals):
    for part in digits:
        assert torch.equal(part.y != originals[1][part.index], part.info["flipped"])
    assert not digits[1].info["flipped"].any()
    assert 0.03 < digits[0].info["flipped"].float().mean() < 0.07


def test_the_noise_is_as_large_as_it_is_said_to_be(digits, originals):
    train = digits[0]
    clean = originals[0][train.index]
    inside = (clean > 0.25) & (clean < 0.75)                 # pixels that mild noise does not clip
    mild = train.info["noise"] < 0.08
    error = (train.x - clean)[mild] / train.info["noise"][mild].view(-1, 1, 1, 1)
    assert abs(error[inside[mild]].std() - 1) < 0.05
    quartiles = train.info["noise"].quantile(torch.tensor([0.25, 0.5, 0.75]))
    torch.testing.assert_close(quartiles, torch.tensor([0.25, 0.5, 0.75])**2, atol=0.05, rtol=0)


def test_without_noise_and_flips_they_are_scikit_learns(originals):
    for part in rum.load("digits", noise=0, flips=0):
        assert torch.equal(part.x, originals[0][part.index])
        assert torch.equal(part.y, originals[1][part.index])


def test_the_same_seed_loads_the_same_digits(digits):
    assert [part.digest for part in rum.load("digits")] == [part.digest for part in digits]
    assert rum.load("digits", seed=1)[0].digest != digits[0].digest


# -- Choosing a part --------------------------------------------------------------------------------------------------


def test_a_part_of_the_digits_keeps_who_its_images_are(digits):
    part, few = rum.load("digits", n=100, n_test=50)
    assert (len(part), len(few)) == (100, 50)
    for some, whole in ((part, digits[0]), (few, digits[1])):
        assert equal(some, whole[torch.isin(whole.index, some.index)])


def test_another_seed_chooses_another_part(files):
    parts = [rum.load("cifar10", root=files, n=12, seed=seed)[0].index.tolist() for seed in (0, 0, 1)]
    assert parts[0] == parts[1] != parts[2]


@pytest.mark.parametrize("classes", [(3, 1), (9, 8, 7, 6, 5, 4, 3, 2, 1, 0)])
def test_chosen_classes_are_renumbered_in_the_order_given(classes, digits):
    train, _ = rum.load("digits", classes=classes)
    assert train.names == tuple(str(c) for c in classes)
    whole = digits[0]
    for k, c in enumerate(classes):
        assert torch.equal(train.x[train.y == k], whole.x[whole.y == c])


def test_smaller_digits_are_averages_of_the_larger(digits):
    train, _ = rum.load("digits", size=4)
    torch.testing.assert_close(train.x, torch.nn.functional.avg_pool2d(digits[0].x, 2))
    assert torch.equal(train.index, digits[0].index)


# -- Files ------------------------------------------------------------------------------------------------------------


def picture(k, side=32):
    """An image that knows its number: two flat halves."""
    array = np.full((side, side, 3), 2 * k, np.uint8)
    array[:, side // 2:] = 255 - 3 * k
    return array


def coded(array, kind):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {}))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Thirty train and ten test images in the layout of the Hugging Face hub; every third is a JPEG."""
    root = tmp_path_factory.mktemp("data")
    for part, n in (("train", 30), ("test", 10)):
        images = [{"bytes": coded(picture(k), "PNG" if k % 3 else "JPEG"), "path": f"{k}"} for k in range(n)]
        table = pa.table({"img": images, "label": [k % 5 for k in range(n)]})
        pyarrow.parquet.write_table(table, root / f"{part}.parquet", row_group_size=7)
    return root


def test_parquet_files_are_read_in_order(files):
    train, test = rum.load("cifar10", root=files)
    assert (len(train), len(test)) == (30, 10)
    assert train.x.dtype == torch.uint8 and train.x.shape[1:] == (3, 32, 32)
    assert train.index.tolist() == list(range(30)) and train.y.tolist() == [k % 5 for k in range(30)]
    for k, image in enumerate(train.x):
        expected = torch.tensor(picture(k)).permute(2, 0, 1)
        off = (image.int() - expected.int()).abs().max()
        assert off == 0 if k % 3 else off < 4


def test_jpegs_are_not_called_cifar10(files, tmp_path):
    assert rum.datasets.source("cifar10", root=files) == "CIFAR-10 (JPEG)"
    table = pyarrow.parquet.read_table(files / "train.parquet")
    pyarrow.parquet.write_table(table.slice(1), tmp_path / "train.parquet")          # it begins with a PNG
    assert rum.datasets.source("cifar10", root=tmp_path) == "cifar10"
    assert rum.datasets.source("cifar10", root=tmp_path / "none") == "cifar10"
    assert rum.datasets.source("digits") == "digits"


def test_parts_of_parquet_files_keep_their_rows(files):
    whole, _ = rum.load("cifar10", root=files)
    train, test = rum.load("cifar10", root=files, classes=(4, 1), n=8, n_test=3, size=16, seed=5)
    assert (len(train), len(test)) == (8, 3)
    assert train.x.shape[1:] == (3, 16, 16) and train.x.dtype == torch.uint8
    assert torch.equal(torch.tensor([4, 1])[train.y], whole.y[train.index])
    halved = torch.nn.functional.avg_pool2d(whole.x[train.index].float(), 2).round()
    assert torch.equal(train.x.float(), halved)


def test_the_files_may_lie_in_a_folder_of_the_name_and_be_found_by_the_environment(files, tmp_path, monkeypatch):
    (tmp_path / "cifar10").symlink_to(files)
    monkeypatch.setenv("RUM_DATA", str(tmp_path))
    assert rum.load("cifar10")[0].digest == rum.load("cifar10", root=files)[0].digest


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_a_folder_of_images_is_a_data_set(held_out, tmp_path):
    for part, n in (("train", 3), (held_out, 2)):
        for c, name in enumerate(("cats", "dogs")):
            (tmp_path / part / name).mkdir(parents=True)
            for k in range(n):
                Image.fromarray(picture(10 * c + k, side=40 + k)).save(tmp_path / part / name / f"{k}.png")
    train, test = rum.load(str(tmp_path))
    assert (len(train), len(test), train.names) == (6, 4, ("cats", "dogs"))
    assert train.x.shape[1:] == (3, 32, 32) and train.y.tolist() == [0, 0, 0, 1, 1, 1]
    assert train.x[:, 0, 0, 0].tolist() == [0, 2, 4, 20, 22, 24]
    assert rum.load(str(tmp_path), size=8)[0].x.shape[1:] == (3, 8, 8)


def test_tiny_imagenet_is_read_as_it_is_unpacked(tmp_path):
    """Classes in the order of their names; validation images in that of the list, of the classes that it says."""
    folder = tmp_path / "tiny-imagenet-200"
    for c, name in enumerate(("n02", "n01")):
        (folder / "train" / name / "images").mkdir(parents=True)
        for k in range(3):
            Image.fromarray(picture(10 * c + k, side=64)).save(folder / "train" / name / "images" / f"{name}_{k}.JPEG",
                                                               quality=100, subsampling=0)
        (folder / "train" / name / f"{name}_boxes.txt").write_text("n_0.JPEG\t0\t0\t9\t9\n")
    (folder / "val" / "images").mkdir(parents=True)
    lines = []
    for k, name in ((1, "n02"), (0, "n01"), (2, "n02")):
        Image.fromarray(picture(20 + k, side=64)[..., 0]).save(folder / "val" / "images" / f"val_{k}.JPEG", quality=100)
        lines.append(f"val_{k}.JPEG\t{name}\t0\t32\t44\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    train, test = rum.load("tiny_imagenet", root=tmp_path)
    assert (len(train), len(test), train.names) == (6, 3, ("n01", "n02"))
    assert train.x.shape[1:] == test.x.shape[1:] == (3, 64, 64) and train.x.dtype == torch.uint8
    assert (train.y.tolist(), test.y.tolist()) == ([0, 0, 0, 1, 1, 1], [1, 0, 1])
    assert (train.x[:, 0, 0, 0] - torch.tensor([20, 22, 24, 0, 2, 4])).abs().max() <= 2
    assert (test.x[:, :, 0, 0] - torch.tensor([[42], [40], [44]])).abs().max() <= 2      # grey images are coloured
    part, _ = rum.load("tiny_imagenet", root=folder, classes=(1,), n=2, size=32)
    assert part.x.shape == (2, 3, 32, 32) and part.names == ("n02",) and set(part.index.tolist()) <= {3, 4, 5}


def test_cifar100_is_read_from_torchvisions_files(tmp_path, monkeypatch):
    """Files of the right layout, whose checksums stand in for the published ones."""
    folder, random = tmp_path / "cifar-100-python", np.random.default_rng(0)
    folder.mkdir()
    sums, labels = {}, {}
    for part, n in (("train", 7), ("test", 4)):
        labels[part] = random.integers(0, 100, n).tolist()
        content = pickle.dumps({"data": random.integers(0, 256, (n, 3072), np.uint8), "fine_labels": labels[part]})
        (folder / part).write_bytes(content)
        sums[part] = hashlib.md5(content).hexdigest()
    meta = pickle.dumps({"fine_label_names": [f"class {c}" for c in range(100)]})
    (folder / "meta").write_bytes(meta)
    monkeypatch.setattr(CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setitem(CIFAR100.meta, "md5", hashlib.md5(meta).hexdigest())
    train, test = rum.load("cifar100", root=tmp_path)
    assert (train.y.tolist(), test.y.tolist()) == (labels["train"], labels["test"])
    assert train.x.shape == (7, 3, 32, 32) and train.x.dtype == torch.uint8 and train.names[99] == "class 99"
    monkeypatch.setattr(CIFAR100, "train_list", [["train", "0" * 32]])
    with pytest.raises(FileNotFoundError, match="cifar100 was not found"):
        rum.load("cifar100", root=tmp_path)                  # another checksum: not unpickled


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist", "tiny_imagenet"])
def test_missing_files_are_reported_with_the_place_and_the_remedy(name, tmp_path):
    with pytest.raises(FileNotFoundError) as problem:
        rum.load(name, root=tmp_path)
    for words in (name, str(tmp_path.resolve()), "RUM_DATA", "root=", "download=True"):
        assert words in str(problem.value)


def test_a_missing_test_file_is_reported(files, tmp_path):
    (tmp_path / "train.parquet").symlink_to(files / "train.parquet")
    with pytest.raises(FileNotFoundError, match=r"test\.parquet is missing"):
        rum.load("cifar10", root=tmp_path)


def test_a_folder_without_test_images_is_reported(tmp_path):
    (tmp_path / "train" / "cats").mkdir(parents=True)
    Image.fromarray(picture(1)).save(tmp_path / "train" / "cats" / "1.png")
    with pytest.raises(FileNotFoundError, match=r"test or .*val"):
        rum.load(str(tmp_path))
