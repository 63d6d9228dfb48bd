"""A sketch of a study: what its notebooks ask for, with no data, no model and no result.

    sketch = Sketch(profile("laptop"), "memorization")
    ask(sketch, "memorization")                              # as a real study is asked: `ask(study, "memorization")`
    list(sketch.tasks)                                       # every result, once
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from types import SimpleNamespace

import torch

from rumlib.algorithms.base import Keep
from rumlib.data import Examples
from rumlib.datasets import FLIPS, load
from rumlib.lab import protocol, sets
from rumlib.lab.profiles import Profile
from rumlib.lab.study import Study
from rumlib.lab.tables import Cell
from rumlib.lab.tuning import search, stages, tuned, with_setting
from rumlib.proxies import PROXIES, TRACED
from rumlib.rum import RUM
from rumlib.scores import Score

# -- How large a study is ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """Numbers of training and test images, their shape and classes; width: bytes of one number of an image."""

    n: int
    n_test: int
    shape: tuple[int, int, int]
    classes: int
    width: int = 1                                           # uint8

    @property
    def bytes(self) -> int:
        return (self.n + self.n_test) * (prod(self.shape) * self.width + 16)             # label and index


FACTS = {
    "digits": Sizes(1297, 500, (1, 8, 8), 10, width=4),
    "fashion_mnist": Sizes(60_000, 10_000, (1, 28, 28), 10),
    "cifar10": Sizes(50_000, 10_000, (3, 32, 32), 10),
    "cifar100": Sizes(50_000, 10_000, (3, 32, 32), 100),
    "tiny_imagenet": Sizes(100_000, 10_000, (3, 64, 64), 200),
    "imagenet": Sizes(1_281_167, 50_000, (3, 224, 224), 1000),
}


def sizes(p: Profile) -> Sizes:
    """The sizes of the profile's data, which need not be on this machine if it is a known data set."""
    if p.data not in FACTS:
        train, test = load(p.data, **p.options)
        return Sizes(len(train), len(test), tuple(train.x.shape[1:]), int(train.y.max()) + 1, train.x.element_size())
    known, chosen = FACTS[p.data], p.options.get("classes")
    share = len(chosen) / known.classes if chosen else 1     # all of them have as many images of each class
    side = p.options.get("size") or known.shape[-1]
    return replace(known, n=p.options.get("n") or round(share * known.n),
                   n_test=p.options.get("n_test") or round(share * known.n_test),
                   shape=(known.shape[0], side, side), classes=len(chosen) if chosen else known.classes)


# -- What its notebooks ask for ---------------------------------------------------------------------------------------


NOTEBOOKS = ("pretraining", "scoring", "memorization", "entanglement", "rum", "rum_ablations", "without_oracle",
             "label_errors")
WRONG = {"random1": 0.172, "random2": 0.181, "random3": 0.176, "aggre": 0.090, "worse": 0.402}       # of CIFAR-10N


@dataclass(frozen=True)
class Named:
    """A forget set of which the name and the size are known."""

    name: str
    size: int
    facts: Mapping[str, float] = field(default_factory=dict, compare=False)

    def __len__(self) -> int:
        return self.size


@dataclass(frozen=True)
class Task:
    """A result: its kind, forget set, algorithm (its repr), seed, and whether it is attacked. Two tasks that are equal
    but for their stage are one result, and count where they are asked for first."""

    stage: str = field(compare=False)
    kind: str
    forget: str = ""
    size: int = 0                                            # of the forget set; of a bank: its models
    algorithm: str = ""
    seed: int = 0
    mia: bool = True
    does: Callable = field(default=Keep(), compare=False)


NOTHING, WHOLE = Keep(), Named("", 0)


class Sketch:
    """Stands for a study: forget sets are names and sizes, and what is asked for is listed and not computed. Settings
    that are yet to be chosen stay at the defaults of the algorithms: they hardly change what a run costs."""

    def __init__(self, p: Profile, notebook: str):
        known, digits = sizes(p), p.data == "digits"
        self.profile, self.notebook, self.tasks, self.name = p, notebook, {}, ""
        wrong = WRONG.get(p.options.get("labels"), p.options.get("flips") or (FLIPS if digits else 0.0))
        self.train, self.test = (Examples(torch.zeros(n, 1), torch.arange(n) % known.classes, info={
            "flipped": torch.arange(n) < wrong * n, **({"noise": torch.zeros(n)} if digits else {})})
            for n in (known.n, known.n_test))

    def add(self, stage: str, kind: str, forget: Named = WHOLE, algorithm: Callable = NOTHING, seed: int = 0,
            mia: bool = True, counted: Callable = NOTHING) -> None:
        task = Task(stage, kind, self.name + forget.name, len(forget), repr(algorithm), seed, mia, counted)
        self.tasks.setdefault(task, task)

    @cached_property
    def score(self) -> Score:
        p = self.profile
        for k in range(0, p.score_models, p.score_chunk):
            self.add("subset models", "bank", Named("", min(p.score_chunk, p.score_models - k)), seed=k)
        return Score("memorization", torch.zeros(len(self.train)), bank=SimpleNamespace(included=[None]))

    @cached_property
    def flips(self) -> Sketch:
        """The twin with synthetic label errors; what it asks for is told from the rest by the names of its sets."""
        return self._twin(self.profile.for_flips(), "flips ")

    def drawn(self, number: int) -> Sketch:
        return self._twin(self.profile.for_draw(number), f"draw {number} ") if number else self

    def _twin(self, p: Profile, name: str) -> Sketch:
        twin = Sketch(p, self.notebook)
        twin.tasks, twin.name = self.tasks, name
        return twin

    def proxy(self, name: str) -> Score:
        self.originals([0])
        if name not in TRACED:
            self.add("proxies", "probed", Named(name, 0))
        return Score(name, torch.zeros(1))

    def levels(self) -> dict[str, Named]:
        p = self.profile
        return {level: Named(level, p.mix if level == "mix" else p.set_size) for level in (*protocol.LEVELS, "mix")}

    def bands(self) -> list[Named]:
        p = self.profile
        return self._placed(Named(f"band {k}", len(self.train) // p.bands, {"entanglement": k}) for k in range(p.bands))

    entanglement_sets = sets.entanglement_sets

    def matched_sets(self) -> dict[str, Named]:
        names = [f"matched {level}" for level in protocol.LEVELS]
        return dict(zip(names, self._placed(Named(name, self.profile.set_size) for name in names), strict=True))

    def _placed(self, asked: Iterable[Named]) -> list[Named]:
        return [self.entanglement(forget) or forget for forget in asked]

    def entanglement(self, forget: Named) -> None:
        self.add("entanglement", "entanglement", forget)

    def distance(self) -> torch.Tensor:
        return torch.arange(len(self.train)).float()

    def forget_set(self, name: str, mask: torch.Tensor) -> Named:
        return Named(name, int(mask.sum()))

    def originals(self, seeds: Iterable[int]) -> None:
        for seed in seeds:
            self.add("originals", "original", seed=seed)

    def oracles(self, forgets: Iterable[Named], seeds: Iterable[int]) -> None:
        for forget in forgets:
            for seed in seeds:
                self.add("retrained", "oracle", forget, seed=seed)

    def unlearn(self, cells: Iterable[Cell], kind: str = "run", counted: Callable | None = None) -> None:
        for cell in cells:
            self.originals([cell.seed])
            self.oracles([cell.forget], [cell.seed])
            stage = "tuning" if cell.seed in self.profile.tuning_seeds else "runs"
            self.add(f"{self.notebook} {stage}", kind, cell.forget, cell.algorithm, cell.seed,
                     kind != "run" or cell.mia, counted or cell.algorithm)

    def watch(self, cells: Iterable[Cell]) -> None:
        self.unlearn(cells, "dynamics")

    def stream(self, forgets: list[Named], ways: Mapping[str, tuple], seeds: Iterable[int]) -> None:
        gone = [Named(f"{k + 1} requests", sum(map(len, forgets[:k + 1]))) for k in range(len(forgets))]
        self.oracles(gone, seeds)
        for algorithm, renew in ways.values():
            for seed in seeds:                               # the algorithm is told from others by when it retrains
                self.add(f"{self.notebook} runs", "requests", replace(gone[-1], name=str(renew)), algorithm, seed,
                         counted=algorithm)

    def begin(self, forget: Named, varied: list[RUM], steps: int, part: int) -> None:
        """The last one of the first steps of a RUM with each of several settings, and the step before it, kept."""
        rum, stage = varied[0], f"{self.notebook} tuning"
        order = rum.order or tuple(range(len(rum.steps)))
        gone = forget if steps == len(order) else Named(f"{forget.name}, {rum.refine}, parts {sorted(order[:steps])}",
                                                        len(forget) * steps // len(order))
        own = Named(f"{forget.name}, {rum.waiting}, {rum.refine}, {order}", len(forget) // len(order))
        self.originals(self.profile.tuning_seeds)
        self.oracles([gone], self.profile.tuning_seeds)
        for seed in self.profile.tuning_seeds:
            for one in varied:
                self.add(stage, "step", own, tuple(one.steps[k] for k in order[:steps]), seed, counted=one.steps[part])
            for done in range(1, steps):
                begun = tuple(rum.steps[k] for k in order[:done])
                self.add(stage, "stage", own, begun, seed, counted=begun[-1])

    def tune(self, spaces: Mapping, *, on_file: bool = False) -> tuple[dict, None]:
        asked = {} if on_file and is_on_file(self.profile, spaces) else spaces
        for forget, algorithm, space in asked.values():
            for steps, part, values in stages(algorithm, space):
                varied = [with_setting(algorithm, part, setting) for setting in next(search(values))]
                if steps is None:
                    self.unlearn((Cell(forget, one, seed, mia=False) for one in varied
                                  for seed in self.profile.tuning_seeds), counted=algorithm)
                else:
                    self.begin(forget, varied, steps, part)
        return {name: algorithm for name, (_, algorithm, _) in spaces.items()}, None



def is_on_file(p: Profile, spaces: Mapping) -> bool:
    """Whether tuned values for these spaces and seeds come with the package. (That they are for these very forget sets
    is known only when the scores are.)"""
    try:
        entries = tuned(p.name)
    except FileNotFoundError:
        return False
    return all(name in entries and entries[name]["seeds"] == list(p.tuning_seeds) and next(search(space)) == [
        {k: v for k, v in trial.items() if k != "tow"} for trial in entries[name]["search"]]
        for name, (_, _, space) in spaces.items())


def ask(study: Sketch | Study, notebook: str) -> None:
    """Ask a study, or a sketch of one, for what a notebook asks for."""
    p, _ = study.profile, study.score
    if notebook == "pretraining":
        study.originals(p.seeds)
        study.oracles(study.levels().values(), p.seeds)
    elif notebook == "scoring":
        protocol.scores(study)
    elif notebook == "label_errors":
        for one in (study, *([study.flips] if p.flips else [])):
            _ = one.score, *map(one.proxy, PROXIES)
    elif notebook == "memorization":
        for level in protocol.LEVELS:
            study.entanglement(study.levels()[level])
    elif notebook == "rum_ablations" and p.draws > 1:
        for one in map(study.drawn, range(p.draws)):
            for found in (table(one) for table in protocol.DRAWN):
                one.unlearn(found.cells(one.tune(found.spaces)[0]))
    elif notebook == "without_oracle":
        asked = protocol.requests(study)
        known, _ = study.tune(protocol.with_oracle(study, asked).spaces)
        best = {name: algorithm for (name, *_), algorithm in known.items()}
        study.unlearn(protocol.choosers(study, asked, best).cells({}))
        study.stream(*protocol.deletions(study), p.seeds)
    for table in protocol.TABLES.get(notebook, ()):
        found, levels = table(study), protocol.TABLES["memorization"] + protocol.TABLES["entanglement"]
        chosen, _ = study.tune(found.spaces, on_file=table in levels)
        (study.watch if table is protocol.watched else study.unlearn)(found.cells(chosen))
