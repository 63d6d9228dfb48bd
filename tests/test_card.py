"""A user's own model and data: from a torch Dataset and a list of ids to unlearned weights with their card."""

import json
from dataclasses import asdict
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn
from torch.utils.data import IterableDataset, TensorDataset
from torchvision.models import resnet18

import rumlib as rum
from rumlib.lab import Card, ForgetSet
from rumlib.lab.keys import digest_of

make_model = partial(resnet18, num_classes=3)
finetune = rum.Finetune(epochs=1, lr=0.01, batch_size=3)


class Photographs:
    """Twelve PIL images of 16x16, a class each."""

    classes = ("red", "green", "blue")

    def __init__(self):
        random = np.random.default_rng(0)
        self.pixels = random.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)

    def __len__(self):
        return 12

    def __getitem__(self, k):
        return Image.fromarray(self.pixels[k]), k % 3


# -- Data -------------------------------------------------------------------------------------------------------------


def test_a_dataset_of_photographs_becomes_examples_of_bytes():
    dataset = Photographs()
    train = rum.datasets.from_dataset(dataset)
    assert (train.x.dtype, train.names, train.y.tolist()) == (torch.uint8, dataset.classes, [0, 1, 2] * 4)
    assert torch.equal(train.x.permute(0, 2, 3, 1), torch.tensor(dataset.pixels))
    assert train.index.tolist() == list(range(12))


def test_a_dataset_of_tensors_keeps_their_dtype_and_may_have_its_own_ids():
    x, y = torch.rand(5, 1, 4, 4), torch.arange(5)
    train = rum.datasets.from_dataset(TensorDataset(x, y), index=y + 70, limit=5 * 16 * 4)
    assert train.digest == rum.Examples(x, y, y + 70).digest


class Stream(IterableDataset):
    def __iter__(self):
        yield torch.zeros(1, 4, 4), 0


class Missing:
    """A Dataset whose third image is not there."""

    def __len__(self):
        return 3

    def __getitem__(self, k):
        return torch.zeros(1, 4, 4), {0: 0, 1: 1}[k]


x = torch.rand(5, 1, 4, 4)
DATASETS = {
    "an item is missing": (Missing(), {}, ValueError, r"item 2 .* dataset\[2\] raises KeyError: 2"),
    "too large": (TensorDataset(x, torch.arange(5)), dict(limit=319), ValueError,
                  "5 images .* 3.2e-07 GB.*Subset.*limit="),
    "stream": (Stream(), {}, TypeError, "Stream has no length.*map-style"),
    "empty": (TensorDataset(x[:0], x[:0]), {}, ValueError, "empty"),
    "images alone": (TensorDataset(x), {}, TypeError, "item 0 .* an image and its class"),
    "classes as floats": (TensorDataset(x, torch.rand(5)), {}, TypeError, "item 0 .* whole number"),
    "images of two sizes": ([(x[0], 0), (x[1, :, :2], 1)], {}, ValueError, r"image 1 is \(1, 2, 4\).*one size"),
    "whole-number pixels": (TensorDataset(x.long(), torch.arange(5)), {}, TypeError, "int64.*/ 255"),
}


@pytest.mark.parametrize("dataset, options, error, words", DATASETS.values(), ids=DATASETS)
def test_a_dataset_that_does_not_fit_is_refused(dataset, options, error, words):
    with pytest.raises(error, match=words):
        rum.datasets.from_dataset(dataset, **options)


# -- Cards ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The worked example, from beginning to end: (folder, unlearned model, its card, forget, retain)."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "forget.csv").write_text("id\n2\n7\n9\n")
    train, model = rum.datasets.from_dataset(Photographs()), rum.models.build(make_model, 0).eval()
    forget, retain = train.split(rum.datasets.forget_ids(folder / "forget.csv", train))
    with rum.train.cost() as spent:
        unlearned = finetune(model, forget, retain, seed=3)
    metrics = {**rum.metrics.accuracies(unlearned, {"forget": forget, "retain": retain}), "mia": float("nan")}
    card = Card.of(finetune, forget, retain, network=make_model, seed=3, spent=spent, metrics=metrics,
                       limits=("Twelve images only.",))
    return card.save(unlearned, folder / "unlearned"), unlearned, card, forget, retain


def test_a_card_and_its_weights_come_back(example):
    folder, unlearned, card, *_ = example
    model, found = Card.load(folder, make_model)
    assert found == card and not model.training
    assert all(torch.equal(value, unlearned.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_card_says_what_was_done(example):
    folder, unlearned, _, forget, retain = example
    card = json.loads((folder / "card.json").read_text())
    assert card["forgotten"] == {"count": 3, "classes": {"0": 1, "1": 1, "2": 1}, "content": forget.digest,
                                 "index": ForgetSet("mine", torch.tensor([2, 7, 9])).digest}
    assert card["retained"]["count"] == 9 and card["retained"]["content"] == retain.digest
    assert (card["algorithm"], card["seed"], card["network"]) == (repr(finetune), 3, "resnet18(num_classes=3)")
    assert card["metrics"] == {"forget": rum.accuracy(unlearned, forget), "retain": rum.accuracy(unlearned, retain),
                               "mia": None}
    assert (card["cost"]["examples"], card["cost"]["steps"], card["cost"]["passes"]) == (9, 3, 1)
    assert card["limits"][-1] == "Twelve images only." and "no trace" in card["limits"][0]
    text = (folder / "CARD.md").read_text()
    for words in ("3 examples (1 of class 0, 1 of class 1, 1 of class 2)", forget.digest, repr(finetune),
                  "seed 3",
                  "| mia | not measured |", "| steps | 3 |", "- Twelve images only."):
        assert words in text


def test_weights_are_safetensors_and_nothing_else(example):
    weights = safetensors.torch.load_file(example[0] / "weights.safetensors")
    assert {path.name for path in example[0].iterdir()} == {"weights.safetensors", "card.json", "CARD.md"}
    assert weights.keys() == example[1].state_dict().keys()


def test_weights_that_are_shared_are_kept(example, tmp_path):
    def tied():
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 4))
        model[2].weight = model[1].weight
        return model

    model = tied()
    found, _ = Card.load(example[2].save(model, tmp_path), tied)
    assert torch.equal(found[1].weight, model[1].weight) and found[1].weight is found[2].weight


def test_a_saved_model_replaces_the_one_before(example, tmp_path):
    folder, unlearned, card, *_ = example
    other = rum.models.build(make_model, 1)
    for model in (other, unlearned):
        card.save(model, tmp_path, replace=True)
    assert [(tmp_path / name).read_bytes() for name in ("card.json", "weights.safetensors")] == [
        (folder / name).read_bytes() for name in ("card.json", "weights.safetensors")]


# -- What strangers do with cards -------------------------------------------------------------------------------------


def small_card(example, **changes):
    usual = dict(algorithm=finetune, forget=example[3], retain=example[4], network=make_model, seed=0,
                 spent=rum.train.Cost(), metrics={"tow": 1.0})
    return Card.of(**{**usual, **changes})


def test_what_has_no_number_is_null_and_a_word(example, tmp_path):
    card = small_card(example, metrics={"tow": 0.5, "acceleration": float("inf"), "mia": float("nan")})
    text = (card.save(example[1], tmp_path) / "card.json").read_text()
    kept = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert kept["metrics"] == {"tow": 0.5, "acceleration": None, "mia": None}
    assert kept["remarks"] == {"acceleration": "infinite", "mia": "not measured"}
    assert "| acceleration | infinite |" in card.markdown() and "| mia | not measured |" in card.markdown()
    assert Card.load(tmp_path, make_model)[1] == card


@pytest.mark.parametrize("seed", [np.int64(3), np.uint8(3), torch.tensor(3)], ids=repr)
def test_a_seed_of_any_integer_type_is_the_same_seed(seed, example):
    assert small_card(example, seed=seed) == small_card(example, seed=3)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: SimpleNamespace(_orig_mod=model)],
                         ids=["DataParallel", "as torch.compile does"])
def test_a_model_behind_a_wrapper_is_saved_under_its_own_names(wrap, example, tmp_path):
    folder = small_card(example).save(wrap(example[1]), tmp_path)
    model, _ = Card.load(folder, make_model)
    assert all(torch.equal(value, example[1].state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("ids, shown, first", [([5, 3], 0, None), ([5], 5, None), ([5, 3], 5, [5]),
                                               ([9, 8, 7, 6, 5, 4, 3], 5, [9, 8, 7, 6, 5])])
def test_a_card_repeats_as_many_ids_as_it_is_asked_to_and_never_all(ids, shown, first, example):
    forget, retain = (rum.Examples(torch.rand(len(index), 1, 2, 2), torch.zeros(len(index), dtype=torch.int64), index)
                      for index in (torch.tensor(ids), torch.arange(100, 110)))
    card = small_card(example, forget=forget, retain=retain, ids=shown)
    assert (card.forgotten.get("first"), card.forgotten["count"]) == (first, len(ids))
    assert "first" not in card.retained and ("ids" in card.markdown()) == bool(first)


def test_no_id_stands_in_a_card_unless_it_is_asked_for(tmp_path):
    forget, retain = (rum.Examples(torch.rand(len(index), 1, 2, 2), torch.zeros(len(index), dtype=torch.int64), index)
                      for index in (torch.tensor([987654321, 987654322]), torch.arange(10)))
    usual = dict(network=make_model, seed=0, spent=rum.train.Cost(), metrics={"tow": 1.0})
    for ids in (0, 1):
        card = Card.of(finetune, forget, retain, **usual, ids=ids)
        assert ("987654321" in str(asdict(card)) + card.markdown()) == bool(ids)


def test_loading_leaves_the_random_state_as_it_was(example):
    before = torch.random.get_rng_state()
    Card.load(example[0], make_model)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_card_lists_the_audits_that_were_run(example, tmp_path):
    card = small_card(example, audits={"linear probe": True, "relearning": False})
    assert card.audits == {"linear probe": "passed", "relearning": "flagged"}
    text = card.markdown()
    assert "## Audits" in text and "| linear probe | passed |" in text and "| relearning | flagged |" in text
    card.save(example[1], tmp_path)
    assert Card.load(tmp_path, make_model)[1] == card
    assert "Audits" not in small_card(example).markdown() and small_card(example).audits == {}
    for audits, words in (({"probe": 0.5}, r"'probe' has 0\.5"), (["probe"], "audits= takes a Mapping; got")):
        with pytest.raises(TypeError, match=words):
            small_card(example, audits=audits)


def test_a_card_of_an_older_version_has_no_remarks(example, tmp_path):
    folder = example[2].save(example[1], tmp_path)
    kept = json.loads((folder / "card.json").read_text())
    del kept["remarks"], kept["audits"], kept["checksum"]
    (folder / "card.json").write_text(json.dumps({**kept, "checksum": digest_of(kept)}))
    found = Card.load(folder, make_model)[1]
    assert found.remarks == found.audits == {} and found.metrics == example[2].metrics


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def reworded(path):
    path.write_text(path.read_text().replace('"count": 3', '"count": 2'))


DAMAGE = {
    "no card": ("card.json", lambda path: path.unlink(), "there is no .*card.json"),
    "no weights": ("weights.safetensors", lambda path: path.unlink(), "there is no .*weights"),
    "another count": ("card.json", reworded, "changed since"),
    "no JSON": ("card.json", lambda path: path.write_text("{"), "not the JSON"),
    "a list": ("card.json", lambda path: path.write_text("[]"), "where names and values belong"),
    "a flipped bit": ("weights.safetensors", flip, "damaged"),
}


@pytest.mark.parametrize("name, damage, words", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_card_is_refused(name, damage, words, example, tmp_path):
    folder = example[2].save(example[1], tmp_path / "mine")
    damage(folder / name)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        Card.load(folder, make_model)


@pytest.mark.parametrize("network", [partial(resnet18, num_classes=4),
                                     partial(rum.models.mlp, shape=(3, 16, 16), classes=3)])
def test_weights_of_another_network_are_refused(network, example):
    with pytest.raises(ValueError, match=r"are of resnet18\(num_classes=3\), and .* makes another network"):
        Card.load(example[0], network)


@pytest.mark.parametrize("changes, words", [
    (dict(metrics={}), "metrics="), (dict(algorithm=lambda *sets, seed: None), "lambda.*frozen dataclass"),
    (dict(network=lambda: None), "lambda.*top of a file")])
def test_a_card_that_would_say_too_little_is_refused(changes, words, example):
    usual = dict(algorithm=finetune, forget=example[3], retain=example[4], network=make_model, seed=0,
                 spent=rum.train.Cost(), metrics={"tow": 1.0})
    with pytest.raises(ValueError, match=words):
        Card.of(**{**usual, **changes})


def test_a_card_holds_plain_values(example):
    assert json.loads(json.dumps(asdict(example[2])))["metrics"]["mia"] is None
