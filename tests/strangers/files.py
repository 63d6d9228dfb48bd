"""Published results and cards that a stranger has made: nothing is written, executed or half accepted."""

import hashlib
import io
import json
import os
import pickle
import zipfile
from functools import partial
from pathlib import Path

import safetensors.torch
import torch
from planted import make_model
from torch import nn

import rumlib as rum
from rumlib.lab.card import Card
from rumlib.lab.keys import digest_of
from rumlib.lab.results import LIMIT, pack, unpack
from rumlib.lab.run import main as paper
from rumlib.train import Cost

STUDY = {"data": ["d0", "d1"], "model": {"function": "mlp", "code": "c0", "arguments": "mlp()"}, "recipe": "Recipe()",
         "device": "cpu", "dtype": "torch.float32", "torch": "2.0", "format": 3}


def published(folder):
    """Two results in the format that is written now."""
    cells = [{"identity": {"what": "original", "code": "c1", "study": STUDY, "arguments": {"seed": seed}},
              "values": {"steps": 7, "tensors": {"seen": torch.rand(40) > 0.5, "entropy": torch.rand(3, 5)}},
              "seconds": 1.5, "made": {"torch": "2.0", "cpu": "x86_64"}} for seed in (0, 1)]
    pack(folder, cells, {"profile": "smoke", "studies": {"smoke": STUDY}}, compress=False)


def sign(folder, **changes):
    """Make the manifest fit the files, as whoever crafts them would."""
    path = folder / "manifest.json"
    manifest = {**json.loads(path.read_bytes()), **changes}
    for name, told in manifest["files"].items() if "files" not in changes else ():
        data = (folder / name).read_bytes()
        told |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    path.write_text(json.dumps(manifest))


def manifest(**changes):
    return partial(sign, **changes)


def line(**changes):
    """The first result says something else; None leaves it out."""
    def craft(folder):
        path = folder / "cells-000.jsonl"
        first, *others = path.read_text().splitlines()
        told = {**json.loads(first), **changes}
        told = {name: value for name, value in told.items() if value is not None}
        path.write_text("".join(f"{text}\n" for text in (json.dumps(told), *others)))
        sign(folder)
    return craft


def values(**changes):
    return lambda folder: line(values=json.loads((folder / "cells-000.jsonl").read_text().splitlines()[0])["values"]
                               | changes)(folder)


def told(dtype, shape):
    """The first result says another dtype and shape of its tensor."""
    return values(tensors={"entropy": [dtype, shape], "seen": ["bool", [40]]})


def text(old, new):
    """Other bytes in the file of results."""
    def craft(folder):
        path = folder / "cells-000.jsonl"
        path.write_bytes(path.read_bytes().replace(old, new, 1))
        sign(folder)
    return craft


def tensors(make):
    """Another file of tensors, made from the one that is there."""
    def craft(folder):
        path = folder / "tensors-000.safetensors"
        path.write_bytes(make(path.read_bytes()))
        sign(folder)
    return craft


def replaced(make, name="tensors-000.safetensors"):
    """Something else than a file under its name."""
    def craft(folder):
        (folder / name).rename(folder.parent / "real")
        make(folder / name)
    return craft


def calling(name):
    """The manifest names another file as well, which is there."""
    def craft(folder):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
        files = json.loads((folder / "manifest.json").read_bytes())["files"]
        sign(folder, files=files | {name: {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}})
    return craft


def sparse(path, size=2**40):
    with open(path, "wb") as file:
        file.truncate(size)


def zipped(data=b""):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", bytes(10**7))
    return file.getvalue()


def header(text, data=b""):
    return len(text).to_bytes(8, "little") + text + data


def twice(folder):
    path = folder / "cells-000.jsonl"
    first, *_ = path.read_text().splitlines()
    path.write_text(path.read_text() + first.replace('"steps": 7', '"steps": 8') + "\n")
    sign(folder, cells={"original": 3})


def halved(folder):
    path = folder / "tensors-000.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def extra(data):
    return safetensors.torch.save({**safetensors.torch.load(data), "and one more": torch.zeros(2)})


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


DEEP = b"[" * 100_000 + b"]" * 100_000
LIE = header(json.dumps({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode())

CRAFTED = {
    "a kind that leaves the folder": (line(what="../../../../../X"), r"of kind '../../../../../X'; kinds are"),
    "a kind that there is not": (line(what="weights"), "of kind 'weights'; kinds are"),
    "a kind that is a number": (line(what=3), "has 'what' = 3"),
    "a study that the manifest does not name": (line(study="../mine"), "study '../mine'"),
    "a result without its seconds": (line(seconds=None), "'seconds' = 'nothing'"),
    "a result with something more": (line(more=1), "has 'more' = 1"),
    "seconds as text": (line(seconds="1.5"), "'seconds' = '1.5'"),
    "seconds that are true": (line(seconds=True), "'seconds' = True"),
    "NaN": (text(b'"seconds": 1.5', b'"seconds": NaN'), "NaN is no finite number"),
    "a number beyond floats": (text(b'"seconds": 1.5', b'"seconds": 1e999'), "1e999 is no finite number"),
    "arguments as a list": (line(arguments=[1]), "'arguments' = "),
    "values as text": (line(values="steps"), "'values' = 'steps'"),
    "deep JSON": (text(b'"steps": 7', b'"steps": ' + DEEP), "not the JSON that belongs there"),
    "JSON of 40 levels": (text(b'"steps": 7', b'"steps": ' + b"[" * 40 + b"]" * 40), "more than 32 levels"),
    "a name twice in one object": (text(b'"steps": 7', b'"steps": 7, "steps": 8'), "stands twice"),
    "a line that is no JSON": (text(b"{", b"(" * 90), "not the JSON that belongs there"),
    "a line that is too long": (text(b'"steps": 7', b'"steps": "' + b"a" * 2**20 + b'"'), "longer than 1048576 bytes"),
    "a million empty lines": (text(b"{", b"\n" * 10**6 + b"{"), "too short for a result"),
    "the same result twice": (twice, "has a result twice"),
    "fewer results than counted": (manifest(cells={"original": 3}), "not as many as its manifest"),
    "an empty manifest": (lambda folder: (folder / "manifest.json").write_text(""), "not the JSON"),
    "a list as manifest": (lambda folder: (folder / "manifest.json").write_text("[]"), "is \\[\\], where names"),
    "a deep manifest": (lambda folder: (folder / "manifest.json").write_bytes(DEEP), "not the JSON"),
    "a format to come": (manifest(format=99), "of format 99; this code reads"),
    "a format that is true": (manifest(format=True), "'format' = True"),
    "files as a list": (manifest(files=["cells-000.jsonl"]), "'files' = "),
    "a file without checksum": (manifest(files={"cells-000.jsonl": {"bytes": 3}}), "'sha256' = 'nothing'"),
    "a study without data": (manifest(studies={"smoke": {"model": 1, "recipe": 1}}), "'data' = 'nothing'"),
    "another profile": (manifest(profile="laptop"), "of profile 'laptop', not 'smoke'"),
    "a name above the folder": (calling("../secret.jsonl"), "names '../secret.jsonl'; files are called"),
    "a name in a folder": (calling("more/cells-000.jsonl"), "names 'more/cells-000.jsonl'"),
    "a name of another kind": (calling("setup.py"), "names 'setup.py'"),
    "a file that is not there": (lambda folder: (folder / "cells-000.jsonl").unlink(), "damaged or lost"),
    "a wrong checksum": (halved, "damaged or lost"),
    "truncated tensors": (tensors(lambda data: data[:-7]), "holds no tensors"),
    "a header that lies about its length": (tensors(lambda data: b"\xff" * 8 + data[8:]), "header for more tensors"),
    "tensors with a lying shape": (tensors(lambda data: LIE), "holds no tensors"),
    "a pickle as tensors": (tensors(lambda data: pickle.dumps(Bomb("executed"))), "header for more|holds no tensors"),
    "a zip bomb as tensors": (tensors(zipped), "header for more tensors"),
    "a tensor that no result has": (tensors(extra), "some belong to none"),
    "no tensors": (tensors(lambda data: safetensors.torch.save({})), "are not those of its results"),
    "another shape than told": (told("float32", [5, 3]), "are not those of its results"),
    "another dtype than told": (told("int64", [3, 5]), "are not those of its results"),
    "a shape beyond all memory": (told("bool", [2**60]), "are not those of its results"),
    "a shape below 0": (told("float32", [-3, -5]), "are not those of its results"),
    "a shape of text": (told("float32", "3, 5"), "are not those of its results"),
    "a dtype that is an attribute of torch": (told("load", [3, 5]), "are not those of its results"),
    "tensors as a list": (values(tensors=[1]), "'tensors' = \\[1\\]"),
    "a link": (replaced(lambda path: path.symlink_to(path.parent.parent / "real")), "is a link, folder, pipe"),
    "a pipe": (replaced(os.mkfifo), "is a link, folder, pipe"),
    "a pipe as manifest": (replaced(os.mkfifo, "manifest.json"), "is a link, folder, pipe"),
    "a folder": (replaced(Path.mkdir), "is a link, folder, pipe"),
    "a device": (replaced(lambda path: path.symlink_to("/dev/zero")), "is a link, folder, pipe"),
    "a file of a terabyte": (replaced(sparse, "cells-000.jsonl"), f"at most {LIMIT} are read"),
    "a manifest of a terabyte": (replaced(sparse, "manifest.json"), "at most 1048576 are read"),
}


def tree(folder):
    return {path.relative_to(folder): path.read_bytes() if path.is_file() and path.stat().st_size < 2**30 else None
            for path in folder.rglob("*")}


def unpacking(craft):
    """Take crafted results: whatever comes of it, no file is made or changed, inside or outside of the home."""
    def call(t):
        folder, home = t.folder / "results", t.folder / "a" / "b" / "c" / "home"
        home.mkdir(parents=True)
        published(folder)
        craft(folder)
        before = tree(t.folder)
        try:
            unpack("smoke", folder, home)
        finally:
            assert tree(t.folder) == before and not Path("executed").exists()
    return call


# -- Cards ------------------------------------------------------------------------------------------------------------


def card(t, model=None, folder="card", replace=False, **changes):
    usual = dict(algorithm=rum.Finetune(), forget=t.forget, retain=t.retain, network=make_model, seed=0, spent=Cost(),
                 metrics={"tow": 1.0})
    made = Card.of(**{**usual, **changes})
    return made.save(model or t.model, t.folder / folder, replace=replace)


def loading(craft, network=make_model):
    def call(t):
        craft(card(t))
        before = tree(t.folder)
        try:
            Card.load(t.folder / "card", network)
        finally:
            assert tree(t.folder) == before and not Path("executed").exists()
    return call


def claims(**changes):
    """Another card, with a checksum that fits; None leaves a field out."""
    def craft(folder):
        kept = json.loads((folder / "card.json").read_bytes())
        kept.pop("checksum")
        kept = {name: value for name, value in (kept | changes).items() if value is not None}
        (folder / "card.json").write_text(json.dumps({**kept, "checksum": digest_of(kept)}))
    return craft


def weights(data):
    def craft(folder):
        (folder / "weights.safetensors").write_bytes(data)
        claims(weights=hashlib.sha256(data).hexdigest())(folder)
    return craft


def own(name):
    """Save a card where somebody has a file of that name, which must stay as it is."""
    def call(t):
        (t.folder / name).write_text("mine")
        try:
            card(t, folder=".")
        finally:
            assert tree(t.folder) == {Path(name): b"mine"}
    return call


def again(t):
    card(t)
    card(t, metrics={"tow": 0.5})


CARDS = [
    ("a card without its seed", loading(claims(seed=None)), ValueError, "has 'seed' = 'nothing'"),
    ("a card with something more", loading(claims(more=1)), ValueError, "has 'more' = 1"),
    ("a card whose metric is text", loading(claims(metrics={"tow": "0.9"})), ValueError, "has 'tow' = '0.9'"),
    ("a card whose cost is a list", loading(claims(cost=[1])), ValueError, "has 'cost' = \\[1\\]"),
    ("a card that does not say how many were forgotten", loading(claims(forgotten={"index": "a"})), ValueError,
     "forgotten has 'count' = 'nothing'"),
    ("a card whose limits are numbers", loading(claims(limits=[1])), ValueError, "limits has 0 = 1"),
    ("a list as card", loading(lambda folder: (folder / "card.json").write_text("[1]")), ValueError, "is \\[1\\]"),
    ("a card of deep JSON", loading(lambda folder: (folder / "card.json").write_bytes(DEEP)), ValueError,
     "not the JSON"),
    ("a card of NaN", loading(lambda folder: (folder / "card.json").write_text('{"checksum": NaN}')), ValueError,
     "NaN"),
    ("a pipe as card", loading(replaced(os.mkfifo, "card.json")), ValueError, "is a link, folder, pipe"),
    ("a pipe as weights", loading(replaced(os.mkfifo, "weights.safetensors")), ValueError, "is a link, folder, pipe"),
    ("weights of a terabyte", loading(replaced(sparse, "weights.safetensors")), ValueError, "larger than what belongs"),
    ("a pickle as weights", loading(weights(pickle.dumps(Bomb("executed")))), ValueError,
     "holds no weights as safetensors"),
    ("a zip bomb as weights", loading(weights(zipped())), ValueError, "holds no weights as safetensors"),
    ("weights with a lying shape", loading(weights(LIE)), ValueError, "holds no weights as safetensors"),
    ("weights of another network", loading(weights(safetensors.torch.save({"x": torch.zeros(2)}))), ValueError,
     r"are of mlp\(.* makes another network"),
    ("a network in the place of its function", loading(lambda folder: None, nn.Linear(2, 2)), TypeError,
     "function that makes a new model.*got a Linear"),
    ("no card", lambda t: Card.load(t.folder, make_model), FileNotFoundError, "there is no .*card.json"),
    ("a card in a folder with a README", own("README.md"), ValueError, "holds 'README.md', which is no part of a card"),
    ("a card over somebody's weights", own("weights.safetensors"), ValueError, "holds 'weights.safetensors'"),
    ("a card in the place of a file", lambda t: card(t, folder=Path(__file__)), ValueError, "holds 'a file'"),
    ("a card inside of a file", lambda t: card(t, folder=Path(__file__) / "card"), ValueError, "holds 'a file'"),
    ("a card over another card", again, ValueError, "holds another card: give another folder, or replace=True"),
    ("a card of sets that overlap", lambda t: card(t, retain=t.train), ValueError, "the retain set still holds"),
    ("a card with a metric as text", lambda t: card(t, metrics={"tow": "1.0"}), TypeError,
     "'tow' is '1.0'; give a number"),
    ("a card without a retain set", lambda t: card(t, retain=None), ValueError, "retain set must be Examples.*None"),
    ("a card of nothing forgotten", lambda t: card(t, forget=t.forget[:0]), ValueError, "forget set .*at least one"),
    ("a card with a list of metrics", lambda t: card(t, metrics=[1.0]), TypeError, r"metrics= .*Mapping; got \[1\.0\]"),
    ("a card without its cost", lambda t: card(t, spent=None), TypeError, "spent= takes a Cost; got None"),
    ("a card with the name of an algorithm", lambda t: card(t, algorithm="Finetune"), TypeError, "algorithm .*a str"),
    ("a card with a network for its function", lambda t: card(t, network=t.model), TypeError, "network .*Sequential"),
    ("a card with numbers for limits", lambda t: card(t, limits=(1,)), TypeError, r"sentences; got \(1,\)"),
    ("a card of no model", lambda t: card(t, model=print), TypeError, "torch.nn.Module"),
    ("a card with limits as text", lambda t: card(t, limits="Small."), TypeError, "limits= takes a tuple of sentences"),
    ("a card whose seed is 1.5", lambda t: card(t, seed=1.5), TypeError, "seed must be one whole number.*1.5"),
]


# -- Commands ---------------------------------------------------------------------------------------------------------


def command(*arguments):
    def call(t):
        t.environ("RUM_HOME", str(t.folder))
        paper(*arguments)
    return call


COMMANDS = [
    ("make paper without notebooks", command("smoke"), FileNotFoundError, "no numbered notebooks to run in .*RUM_HOME"),
    ("make paper for minus one minute", command("smoke", "", "-1"), ValueError, "MINUTES must be a number"),
    ("make paper of no profile", command("labtop"), ValueError, "unknown profile 'labtop'"),
]

RESULTS = [(f"published results: {what}", unpacking(craft), ValueError, words)
           for what, (craft, words) in CRAFTED.items()]
CASES = [*RESULTS, *CARDS, *COMMANDS]
