"""Your own model: what to forget from a file of ids, and the unlearned weights with a card that says what was done.

    train = from_dataset(my_dataset)                         # any torch Dataset; or Examples(x, y, index=ids)
    mask = forget_ids("forget.csv", train)                   # a column "id" of numbers as in train.index
    forget, retain = train.split(mask)
    with cost() as spent:
        unlearned = algorithm(model, forget, retain, seed=0)
    card = Card.of(algorithm, forget, retain, network=make_model, seed=0, spent=spent,
                   metrics=accuracies(unlearned, {"forget": forget, "retain": retain, "test": test}))
    card.save(unlearned, "unlearned")                        # weights.safetensors, card.json and README.md
    model, card = Card.load("unlearned", make_model)         # nothing is unpickled, and checksums must fit

`make_model` is a function that makes the network, as ``partial(torchvision.models.resnet18, num_classes=10)``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import safetensors.torch
from torch import nn

from rumlib.data import Examples, digest
from rumlib.lab.codehash import PACKAGE, digest_of
from rumlib.lab.store import put
from rumlib.models import Factory, describe
from rumlib.train import Cost

WEIGHTS, CARD, README = "weights.safetensors", "card.json", "README.md"
LIMITS = (
    "The method is approximate: nothing here proves that the weights hold no trace of the forgotten examples.",
    "The metrics are of one run, on the data described here; other attacks may find more.",
    "Copies, backups and models made from the original one are as they were.",
)


@dataclass(frozen=True)
class Card:
    """What was done to a model, for those who are given it. Examples are named by number and hash, never listed.

    network    the factory, as text                          algorithm  with all its hyper-parameters, as text
    forgotten  and retained: count, per class, hash of the content, hash of the sorted index
    cost       of unlearning: examples, steps, seconds, passes; metrics: name -> number (None: not measured)
    limits     what the card does not promise, the general ones and yours
    """

    network: str
    algorithm: str
    seed: int
    forgotten: Mapping
    retained: Mapping
    cost: Mapping[str, float]
    metrics: Mapping[str, float | None]
    limits: tuple[str, ...] = LIMITS
    versions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, algorithm: Callable, forget: Examples, retain: Examples, *, network: Factory, seed: int, spent: Cost,
           metrics: Mapping[str, float], limits: tuple[str, ...] = ()) -> Card:
        """The card of `algorithm(model, forget, retain, seed=seed)`. Raises ValueError without any metric, or for an
        algorithm whose text is an address (make it a frozen dataclass)."""
        if not metrics:
            raise ValueError("a card without metrics says nothing of what was reached: give metrics=, e.g. "
                             "accuracies(unlearned, {'forget': forget, 'retain': retain, 'test': test})")
        for text in (repr(algorithm), describe(network)):
            if "<" in text or " at 0x" in text:
                raise ValueError(f"{text} does not say what it is; make it a frozen dataclass, or a function defined "
                                 f"at the top of a file")
        found = {name: None if math.isnan(value) else float(value) for name, value in metrics.items()}
        return cls(describe(network), repr(algorithm), seed, facts(forget), facts(retain), asdict(spent), found,
                   (*LIMITS, *limits), {"rumlib": PACKAGE.whole, "torch": version("torch")})

    def save(self, model: nn.Module, folder: str | Path) -> Path:
        """Write the weights and the card, as JSON and as Markdown, into the folder; what it held of them is replaced.
        Each file is there as a whole or not at all."""
        folder = Path(folder)
        data = safetensors.torch.save({name: value.detach().cpu().contiguous().clone()   # weights may be shared
                                       for name, value in model.state_dict().items()})
        kept = {**json.loads(json.dumps(asdict(self))), "weights": hashlib.sha256(data).hexdigest()}
        put(folder / WEIGHTS, data)
        put(folder / CARD, json.dumps({**kept, "checksum": digest_of(kept)}, indent=1).encode())
        put(folder / README, self.markdown().encode())
        return folder

    @classmethod
    def load(cls, folder: str | Path, make_model: Factory) -> tuple[nn.Module, Card]:
        """The model, in evaluation mode, and its card. Raises FileNotFoundError or ValueError where a file is missing
        or damaged, or where the weights are of another network than that of `make_model`."""
        folder = Path(folder)
        for name in (CARD, WEIGHTS):
            if not (folder / name).exists():
                raise FileNotFoundError(f"{folder} holds no {name}")
        kept, data = _parse(folder / CARD), (folder / WEIGHTS).read_bytes()
        if hashlib.sha256(data).hexdigest() != kept.pop("weights"):
            raise ValueError(f"{folder / WEIGHTS} is damaged, or not what {CARD} was written for")
        model = make_model()
        try:
            model.load_state_dict(safetensors.torch.load(data))
        except RuntimeError as problem:
            raise ValueError(f"the weights in {folder} are of {kept['network']}, and {describe(make_model)} makes "
                             f"another network: {problem}") from problem
        return model.eval(), cls(**{**kept, "limits": tuple(kept["limits"])})

    def markdown(self) -> str:
        """The card as text."""
        def table(values: Mapping) -> str:
            rows = [f"| {name} | {'not measured' if value is None else f'{value:.4g}'} |"
                    for name, value in values.items()]
            return "\n".join(["| | |", "|---|---|", *rows])

        def sentence(part: Mapping) -> str:
            classes = ", ".join(f"{count} of class {c}" for c, count in part["classes"].items())
            return f"{part['count']} examples ({classes}), content `{part['content']}`, index `{part['index']}`"

        return "\n\n".join([
            "# A model that was made to forget",
            f"Forgotten: {sentence(self.forgotten)}.",
            f"Retained: {sentence(self.retained)}.",
            f"How: `{self.algorithm}`, seed {self.seed}, on `{self.network}`.",
            "## What was measured", table(self.metrics),
            "## What it cost", table(self.cost),
            "## Limits", "\n".join(f"- {limit}" for limit in self.limits),
            "Made with " + ", ".join(f"{name} `{which}`" for name, which in self.versions.items()) + ".\n"])


def facts(examples: Examples) -> dict:
    """What a card says of a set: its size, examples per class, and hashes (of the sorted index: `ForgetSet.digest`)."""
    classes, counts = examples.y.unique(return_counts=True)
    return {"count": len(examples), "classes": dict(zip(map(str, classes.tolist()), counts.tolist(), strict=True)),
            "content": examples.digest, "index": digest(examples.index.sort().values)}


def _parse(path: Path) -> dict:
    try:
        kept = json.loads(path.read_bytes())
        fits = kept.pop("checksum") == digest_of(kept)
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise ValueError(f"{path} is no card: {problem!r}") from problem
    if not fits:
        raise ValueError(f"{path} was changed since it was written: its checksum does not fit")
    return kept
