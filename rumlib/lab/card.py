"""Your own model: what to forget from a file of ids, and the unlearned weights with a card that says what was done.

    train = from_dataset(my_dataset)                         # any torch Dataset; or Examples(x, y, index=ids)
    forget, retain = train.split(forget_ids("forget.csv", train))        # a column "id" of numbers as in train.index
    with cost() as spent:
        unlearned = algorithm(model, forget, retain, seed=0)
    card = Card.of(algorithm, forget, retain, network=make_model, seed=0, spent=spent,
                   metrics=accuracies(unlearned, {"forget": forget, "retain": retain, "test": test}))
    card.save(unlearned, "unlearned")                        # weights.safetensors, card.json and CARD.md
    model, card = Card.load("unlearned", make_model)         # nothing is unpickled, and checksums must fit

`make_model` is a function that makes the network, as ``partial(torchvision.models.resnet18, num_classes=10)``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path

import safetensors.torch
from torch import nn

from rumlib.data import Examples, check_disjoint, digest
from rumlib.device import as_seed, check_values
from rumlib.lab import files
from rumlib.lab.codehash import PACKAGE
from rumlib.lab.keys import digest_of
from rumlib.lab.store import put
from rumlib.models import Factory, anchor, build, describe
from rumlib.train import Cost

WEIGHTS, CARD, TEXT = "weights.safetensors", "card.json", "CARD.md"
LIMITS = (
    "The method is approximate: nothing here proves that the weights hold no trace of the forgotten examples.",
    "The metrics are of one run, on the data described here; other attacks may find more.",
    "Copies, backups and models made from the original one are as they were.",
)


@dataclass(frozen=True)
class Card:
    """What was done to a model, for those who are given it. Examples are named by their count and hashes. No id is
    listed unless you ask for it: ids may be personal data, and whoever has the list can compute its hash.

    network    the factory, as text                          algorithm  with all its hyper-parameters, as text
    forgotten  and retained: count, per class, hash of the content, hash of the sorted index
    cost       of unlearning: examples, steps, seconds, passes; metrics: name -> number, None where there is none
    limits     what the card does not promise, the general ones and yours
    remarks    name of a metric or cost without a number -> why: "not measured" (NaN), "infinite"
    audits     name of an audit that was run -> "passed", where the model came out as oracles do, or "flagged"
    """

    network: str
    algorithm: str
    seed: int
    forgotten: Mapping
    retained: Mapping
    cost: Mapping[str, float | None]
    metrics: Mapping[str, float | None]
    limits: tuple[str, ...] = LIMITS
    versions: Mapping[str, str] = field(default_factory=dict)
    remarks: Mapping[str, str] = field(default_factory=dict)
    audits: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, algorithm: Callable, forget: Examples, retain: Examples, *, network: Factory, seed: int, spent: Cost,
           metrics: Mapping[str, float], limits: tuple[str, ...] = (),
           audits: Mapping[str, bool] | None = None, ids: int = 0) -> Card:
        """The card of `algorithm(model, forget, retain, seed=seed)`. It repeats the first `ids` ids of the request, and
        never all of them.

        Raises ValueError without any metric, where the sets overlap, or for an algorithm whose text is an address;
        TypeError for a metric that is no number, and for an audit (see `rumlib.audits.compared`) that says neither
        True, passed, nor False, flagged."""
        for name, examples in (("forget", forget), ("retain", retain)):
            if not isinstance(examples, Examples) or not len(examples):
                raise ValueError(f"the {name} set must be Examples, at least one; got {files.brief(examples)}")
        audits = {} if audits is None else audits
        takes = (("metrics", metrics, Mapping), ("spent", spent, Cost), ("limits", limits, (list, tuple)),
                 ("audits", audits, Mapping))
        for name, value, kind in takes:
            if not isinstance(value, kind):
                raise TypeError(f"{name}= takes a {'tuple of sentences' if name == 'limits' else kind.__name__}; got "
                                f"{files.brief(value)}")
        for name, value in (("algorithm", algorithm), ("network", network)):
            if isinstance(value, nn.Module) or not callable(value):
                raise TypeError(f"{name} must be the {'algorithm' if name == 'algorithm' else 'factory'} itself; got a "
                                f"{type(value).__name__}")
        if not metrics:
            raise ValueError("a card without metrics says nothing of what was reached: give metrics=, e.g. "
                             "accuracies(unlearned, {'forget': forget, 'retain': retain, 'test': test})")
        for text in (repr(algorithm), describe(network)):
            if "<" in text or " at 0x" in text:
                raise ValueError(f"{text} does not say what it is; make it a frozen dataclass, or a function defined "
                                 f"at the top of a file")
        if not all(isinstance(limit, str) for limit in limits):
            raise TypeError(f"limits= takes a tuple of sentences; got {files.brief(limits)}")
        if wrong := [name for name, passed in audits.items() if not isinstance(passed, bool)]:
            raise TypeError(f"audits= maps the name of an audit to True, passed, or False, flagged; {wrong[0]!r} has "
                            f"{files.brief(audits[wrong[0]])}")
        check_disjoint(forget, retain)
        (told, remarks), (taken, more) = _finite(metrics), _finite(asdict(spent))
        check_values("Card.of", ids=(ids, "int [0, inf)"))
        first = forget.index[:min(ids, len(forget) - 1)].tolist()                # never all of them
        forgotten = facts(forget) | ({"first": first} if first else {})
        return cls(describe(network), repr(algorithm), as_seed(seed), forgotten, facts(retain), taken, told,
                   (*LIMITS, *limits),
                   {"rumlib": PACKAGE.whole, "torch": version("torch")}, remarks | more,
                   {name: "passed" if passed else "flagged" for name, passed in audits.items()})

    def save(self, model: nn.Module, folder: str | Path, *, replace: bool = False) -> Path:
        """Write the weights and the card, as JSON and as Markdown, into a folder of their own. Each file is there as a
        whole or not at all. Raises ValueError where the folder holds something else, or, unless `replace` says that it
        may go, another card."""
        folder, model = Path(folder), getattr(model, "_orig_mod", model)         # of torch.compile
        anchor(model)                                        # refuses what is no model
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module                             # its weights under the names that the network has alone
        inside_file = not folder.is_dir() and any(path.is_file() for path in (folder, *folder.parents))
        held = [path.name for path in folder.glob("[!.]*")] if folder.is_dir() else ["a file"] * inside_file
        if held and CARD not in held:
            raise ValueError(f"{folder} holds {min(held)!r}, which is no part of a card: give a folder that is empty, "
                             f"or not there yet")
        if held and not replace:
            raise ValueError(f"{folder} holds another card: give another folder, or replace=True")
        data = safetensors.torch.save({name: value.detach().cpu().contiguous().clone()   # weights may be shared
                                       for name, value in model.state_dict().items()})
        kept = {**json.loads(json.dumps(asdict(self), allow_nan=False)), "weights": hashlib.sha256(data).hexdigest()}
        put(folder / WEIGHTS, data)
        put(folder / CARD, json.dumps({**kept, "checksum": digest_of(kept)}, indent=1).encode())
        put(folder / TEXT, self.markdown().encode())
        return folder

    @classmethod
    def load(cls, folder: str | Path, make_model: Factory) -> tuple[nn.Module, Card]:
        """The model, in evaluation mode, and its card. Raises FileNotFoundError or ValueError where a file is missing
        or damaged, or where the weights are of another network than that of `make_model`."""
        folder, model = Path(folder), build(make_model, 0)
        kept = _parse(folder / CARD)
        most = sum(8 * value.numel() + 1024 for value in model.state_dict().values()) + 2**28
        data = files.read(folder / WEIGHTS, most, links=True)
        if hashlib.sha256(data).hexdigest() != kept.pop("weights"):
            raise ValueError(f"{folder / WEIGHTS} is damaged, or not what {CARD} was written for")
        try:
            weights = safetensors.torch.load(data)
        except Exception as problem:                         # its own, KeyError, ValueError: it promises none
            raise ValueError(f"{folder / WEIGHTS} holds no weights as safetensors keeps them: {problem}") from problem
        try:
            model.load_state_dict(weights)
        except RuntimeError as problem:
            raise ValueError(f"the weights in {folder} are of {kept['network'][:150]}, and "
                             f"{describe(make_model)[:100]} makes another network: {problem}") from problem
        return model.eval(), cls(**{**kept, "limits": tuple(kept.get("limits", LIMITS))})

    def markdown(self) -> str:
        """The card as text."""
        def table(values: Mapping) -> str:
            rows = [f"| {name} | {self.remarks.get(name, 'not measured') if value is None else f'{value:.4g}'} |"
                    for name, value in values.items()]
            return "\n".join(["| | |", "|---|---|", *rows])

        def sentence(part: Mapping) -> str:
            classes = ", ".join(f"{count} of class {c}" for c, count in part["classes"].items())
            first = f", ids {', '.join(map(str, part['first']))} ..." if part.get("first") else ""
            return f"{part['count']} examples ({classes}{first}), content `{part['content']}`, index `{part['index']}`"

        audits = "\n".join(["| | |", "|---|---|", *(f"| {name} | {told} |" for name, told in self.audits.items())])
        return "\n\n".join([
            "# A model that was made to forget",
            f"Forgotten: {sentence(self.forgotten)}.",
            f"Retained: {sentence(self.retained)}.",
            f"How: `{self.algorithm}`, seed {self.seed}, on `{self.network}`.",
            "## What was measured", table(self.metrics),
            *(["## Audits, beside retrained models", audits] if self.audits else []),
            "## What it cost", table(self.cost),
            "## Limits", "\n".join(f"- {limit}" for limit in self.limits),
            "Made with " + ", ".join(f"{name} `{which}`" for name, which in self.versions.items()) + ".\n"])


def facts(examples: Examples) -> dict:
    """What a card says of a set: its size, examples per class, and hashes (of the sorted index: `ForgetSet.digest`)."""
    classes, counts = examples.y.unique(return_counts=True)
    return {"count": len(examples), "classes": dict(zip(map(str, classes.tolist()), counts.tolist(), strict=True)),
            "content": examples.digest, "index": digest(examples.index.sort().values)}


def _finite(values: Mapping) -> tuple[dict[str, float | None], dict[str, str]]:
    """Numbers as JSON has them, None for NaN and infinity, and what these were."""
    for name, value in values.items():
        if isinstance(value, bool | str) or not hasattr(value, "__float__"):
            raise TypeError(f"{name!r} is {files.brief(value)}; give a number, or leave it out")
    remarks = {name: "not measured" if math.isnan(value) else "infinite"
               for name, value in values.items() if not math.isfinite(value)}
    return {name: None if name in remarks else value if isinstance(value, int) else float(value)
            for name, value in values.items()}, remarks


def _parse(path: Path) -> dict:
    """What a card says, without its checksum. Those of older versions have no remarks."""
    kept = files.check(files.parse(files.read(path, 2**20, links=True), path), {"checksum": str}, path, more=True)
    if kept.pop("checksum") != digest_of(kept):
        raise ValueError(f"{path} was changed since it was written: its checksum does not fit")
    types = {f.name: {"int": int, "str": str, "tuple[str, ...]": list}.get(f.type, dict) for f in fields(Card)
             if f.name in kept or (f.default is MISSING and f.default_factory is MISSING)}
    files.check(kept, {**types, "weights": str}, path)
    for part in ("forgotten", "retained"):
        files.check(kept[part], {"count": int, "classes": dict, "content": str, "index": str}, part, more=True)
    for part in ("metrics", "cost"):
        files.check(kept[part], dict.fromkeys(kept[part], (int, float, type(None))), part)
    files.check(kept.get("audits", {}), dict.fromkeys(kept.get("audits", {}), str), "audits")
    limits = dict(enumerate(kept.get("limits", ())))
    files.check(limits, dict.fromkeys(limits, str), "limits")
    return kept
