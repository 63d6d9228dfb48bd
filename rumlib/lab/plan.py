"""What a study will take, before it is begun: cells, models, hours, disk and memory.

    python -m rumlib.lab.plan laptop                             # make plan PROFILE=laptop
    python -m rumlib.lab.plan cifar10-small devices=8            # make plan PROFILE=cifar10-small DEVICES=8
    python -m rumlib.lab.plan imagenet devices=64 tflops=300     # on GPUs that sustain so many TFLOP/s, not on this machine
    plan = Plan(p, measured(p, 2), devices=2); plan.table(), plan.hours

Cells are those that notebooks 01 to 05 ask for, counted one by one. What one costs is counted as well, in examples
passed forward and backward and in steps: each algorithm is run on a sketch of the study, blank images and a network of
a few weights. Only what an example and a step take is measured, on the profile's own model, in a few seconds.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache, cached_property, partial
from itertools import permutations
from math import prod

import pandas as pd
import torch
from joblib import effective_n_jobs
from torch import nn

from rumlib.algorithms.base import Algorithm, Keep, Retrain
from rumlib.algorithms.perturb import TopK
from rumlib.algorithms.projection import ClassProjection
from rumlib.data import Examples
from rumlib.datasets import load
from rumlib.device import pick, seconds
from rumlib.ensemble import AT_ONCE, fit_many, fits_stacking
from rumlib.lab import engine
from rumlib.lab.check import survey
from rumlib.lab.profiles import Profile, algorithms, profile
from rumlib.lab.study import Study, vary
from rumlib.lab.tuning import search, tuned
from rumlib.metrics import evaluation, flops, jensen_shannon
from rumlib.models import Factory, build, describe, mlp, resnet50
from rumlib.proxies import HOLDOUT, PROXIES, TRACED
from rumlib.rum import RUM, Refine, Shuffled, sequence
from rumlib.scores import Score
from rumlib.train import Recipe, batch_count, cost, fit, predict

STAGES = ("subset models", "proxies", "originals", "retrained", "tuning", "unlearning", "RUM study", "verdict",
          "ablations")


# -- What a study is of -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """How many training and test images of which shape, and of how many classes; bytes a number of an image takes."""

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
    """Those of the profile's data, which need not be on this machine if it is a known data set."""
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


@dataclass(frozen=True)
class Task:
    """A cell: its kind, the forget set by name and size, the algorithm, the seed, and whether it is attacked. Two
    tasks that are equal but for their stage are one cell, and count where they are asked for first."""

    stage: str = field(compare=False)
    kind: str
    forget: str = ""
    size: int = 0
    algorithm: str = ""                                      # its repr
    seed: int = 0
    mia: bool = True
    does: Callable = field(default=Keep(), compare=False)


Sets = Mapping[str, int]                                     # forget sets: name -> size
Ways = Iterable[tuple[str, Callable]]                        # (name of the set, algorithm)


ANY = Score("memorization", torch.zeros(1))                  # it changes nothing in what there is to do


@dataclass(frozen=True)
class Asking:
    """The tasks of a profile, as notebooks 01 to 05 lay them out. Learning rates that are yet to be chosen stay at the
    default of the algorithm: they change nothing in what it costs."""

    p: Profile
    score: Score = ANY

    @cached_property
    def sets(self) -> Sets:
        p, n = self.p, sizes(self.p).n
        bands = {f"band {k}": n // p.bands for k in range(3)}
        return {level: p.set_size for level in ("low", "medium", "high")} | {"mix": p.mix} | bands | {
            f"matched {level}": p.set_size for level in ("low", "medium", "high")}

    def trained(self, names: Iterable[str], seeds: Iterable[int]) -> Iterator[Task]:
        for seed in seeds:
            yield Task("originals", "original", seed=seed)
            for name in names:
                yield Task("retrained", "oracle", name, self.sets[name], seed=seed)

    def run(self, stage: str, ways: Ways, seeds: Iterable[int], *, mia: bool = True,
            kind: str = "run") -> Iterator[Task]:
        for name, algorithm in ways:
            yield from self.trained([name], seeds)
            for seed in seeds:
                yield Task(stage, kind, name, self.sets[name], repr(algorithm), seed, mia, algorithm)

    def tune(self, stage: str, spaces: Iterable[tuple[str, Callable, object]]) -> Iterator[Task]:
        """As `Study.tune` with grids."""
        for name, algorithm, space in spaces:
            for setting in next(search(space)):
                varied = algorithm
                for of, value in setting.items():
                    varied = vary(varied, **{of: value})
                yield from self.run(stage, [(name, varied)], self.p.tuning_seeds, mia=False)

    def scores(self) -> Iterator[Task]:
        p = self.p
        for k in range(0, p.score_models, p.score_chunk):
            yield Task("subset models", "bank", size=min(p.score_chunk, p.score_models - k), seed=k)

    def proxies(self) -> Iterator[Task]:
        yield Task("originals", "original", seed=0)
        for name in PROXIES:
            if name not in TRACED:
                yield Task("proxies", "probed", name)

    def levels(self) -> Iterator[Task]:
        """Notebook 03: all algorithms at every level of memorization and every budget."""
        p, levels = self.p, ("low", "medium", "high")
        known = Study(p, quiet=True)
        candidates = [(level, *candidate) for b in p.budgets for candidate in known.candidates(b).values()
                      for level in levels]
        if not self.on_file():
            yield from self.tune("tuning", candidates)
        yield from self.run("unlearning", [(level, way) for level, way, _ in candidates], p.seeds)
        yield from self.run("unlearning", [(level, Keep()) for level in levels], p.seeds)

    def entanglement(self) -> Iterator[Task]:
        """Notebook 03: the paper's algorithms on sets of three entanglements, twice."""
        p, budget = self.p, self.p.budgets[-1]
        for kind in "band", "matched":
            which = [name for name in self.sets if name.startswith(kind)]
            ways = [(name, vary(way, epochs=budget), p.grid(label, budget))
                    for label, way in p.algorithms.items() for name in which]
            yield from self.tune("tuning", ways)
            yield from self.run("unlearning", [(name, way) for name, way, _ in ways], p.seeds)
            yield from self.run("unlearning", [(name, Keep()) for name in which], p.seeds)

    def on_file(self) -> bool:
        """Whether tuned values for these spaces and seeds come with the package. (That they are for these very forget
        sets is known only when the scores are.)"""
        try:
            entries = tuned(self.p.name)
        except FileNotFoundError:
            return False
        study = Study(self.p, quiet=True)
        asked = {(level, name, b): [setting for settings in search(space) for setting in settings]
                 for b in self.p.budgets for name, (_, space) in study.candidates(b).items()
                 for level in ("low", "medium", "high")}
        return all(key in entries and entries[key]["seeds"] == list(self.p.tuning_seeds) and settings == [
            {k: v for k, v in trial.items() if k != "tow"} for trial in entries[key]["search"]]
            for key, settings in asked.items())

    def step(self, name: str, epochs: int | None = None):
        return vary(self.p.algorithms[name], epochs=epochs or self.p.rum_budget)

    def rum(self) -> Iterator[Task]:
        """Notebook 04."""
        p, refine, ways = self.p, Refine(self.score), []
        for name in p.algorithms:
            if name != "NegGrad":
                step = self.step(name)
                ways += [step, self.step(name, 3 * p.rum_budget), RUM(Shuffled(3), (step,) * 3),
                         RUM(refine, (step,) * 3), RUM(refine, (step,) * 3, order=(2, 1, 0))]
        pairs = [("Fine-tune", "SalUn"), ("NegGrad+", "SalUn"), ("SCRUB", "Random label"),
                 ("Random label", "Random label"), ("SalUn", "Random label"), ("Random label", "SalUn")]
        ways += [RUM(refine, (Keep(), *map(self.step, pair))) for pair in pairs]
        yield from self.tune("RUM study", [("mix", way, p.rum_rates) for way in ways])
        yield from self.run("RUM study", [("mix", way) for way in ways], p.seeds)
        label = self.step("Random label")
        names = ["memorization", *PROXIES, "centrality", *["noise"] * (p.data == "digits")]
        scores = [replace(self.score, name=name, values=self.score.values + k) for k, name in enumerate(names)]
        cut = [*map(Refine, scores), Shuffled(3)]
        yield from self.ablated("RUM study", [RUM(parts, (Keep(), label, label), order=(2, 1, 0)) for parts in cut],
                                p.seeds)

    def verdict(self) -> Iterator[Task]:
        """Notebook 05, first part: refinement at equal steps, on more seeds."""
        refine, ways = Refine(self.score), []
        for name in FEW:
            step = self.step(name)
            ways += [RUM(refine, (step,) * 3, order=order) for order in permutations(range(3))]
            ways += [self.step(name, 3 * self.p.rum_budget), RUM(refine, (step,) * 3, waiting="leave_out")]
        yield from self.ablated("verdict", ways, range(self.p.verdict_seeds))

    def ablations(self) -> Iterator[Task]:
        """Notebook 05, the rest."""
        p, refine, down, some = self.p, Refine(self.score), (2, 1, 0), ("Fine-tune", "Random label")
        yield from self.ablated("ablations", [RUM(Shuffled(3), (self.step(name),) * 3) for name in FEW], ())
        yield from self.run("ablations", [("mix", RUM(Shuffled(3, seed=number), (self.step(name),) * 3))
                                          for name in FEW for number in (1, 2, 3)], p.seeds, mia=False)
        each = {n: max(1, round(3 * p.rum_budget / n)) for n in range(1, 6)}
        ways = [RUM(Refine(self.score, parts=n), (self.step(name, each[n]),) * n) for name in some for n in each]
        ways += [RUM(refine, tuple(Keep() if part == idle else self.step(name) for part in range(3)), order=down)
                 for name in some for idle in (None, 0, 1, 2)]
        label = self.step("Random label")
        yield from self.ablated("ablations", ways, p.seeds)
        watched = [RUM(refine, (Keep(), self.step("Fine-tune"), self.step("SalUn")))] + [
            RUM(refine, (label,) * 3, order=order) for order in ((0, 1, 2), down)]
        yield from self.ablated("ablations", watched, ())
        yield from self.run("ablations", [("mix", way) for way in watched], p.seeds, kind="dynamics")
        few, project = others(p)
        rates = {"lr": p.rum_rates[-3:]}
        for way, space in (label, {}), (few, {}), (project, {"alpha_forget": (3.0, 30.0, 300.0)}):
            chain = RUM(refine, (Keep(), label, way), order=down)
            yield from self.tune("ablations", [("mix", chain, rates | space)])
            yield from self.run("ablations", [("mix", chain)], p.seeds)

    def ablated(self, stage: str, ways: list[Callable], seeds: Iterable[int]) -> Iterator[Task]:
        yield from self.tune(stage, [("mix", way, self.p.rum_rates[-3:]) for way in ways])
        yield from self.run(stage, [("mix", way) for way in ways], seeds, mia=False)

    def notebooks(self) -> dict[str, list[Task]]:
        """Notebook -> what it asks for."""
        p, score = self.p, list(self.scores())
        asked = {"01_pretraining": [*self.trained(("low", "medium", "high", "mix"), p.seeds)],
                 "02_scoring": [*self.proxies()],
                 "03_factors": [*self.trained((), p.seeds[:1]), *self.levels(), *self.entanglement()],
                 "04_rum": [*self.rum(), *self.levels(), *self.proxies()],
                 "05_rum_ablations": [*self.verdict(), *self.ablations()]}
        return {notebook: list(dict.fromkeys(score + tasks)) for notebook, tasks in asked.items()
                if p.includes(notebook)}


def others(p: Profile) -> tuple[TopK, ClassProjection]:
    """Those of notebook 05 that the profile does not name."""
    common = dict(epochs=p.rum_budget, batch_size=p.recipe.batch_size, schedule="linear", clip=5.0)
    return (TopK(k=0.1, perturb="gauss_rel", sigma=1.5, tolerance=None, **common),
            ClassProjection(30.0, 30.0, samples=None, granularity="examples"))


SLOW = 0.5                                                   # seconds a batch: then nothing but training is tried
MANY = 4096                                                  # more than twice what influence unlearning looks at
FEW = ("Fine-tune", "NegGrad+", "SCRUB", "Random label")     # one algorithm of each family


# -- What it costs ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spent:
    """What passes through a model: examples forward and backward, in so many SGD steps of so many trainings; examples
    forward only; and what is made of it: evaluations, membership attacks."""

    examples: float = 0
    steps: float = 0
    trainings: float = 0
    forward: float = 0
    evaluations: float = 0
    attacks: float = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, times: float) -> Spent:
        return Spent(*(times * getattr(self, f.name) for f in fields(self)))

    __rmul__ = __mul__


def training(n: int, recipe: Recipe) -> Spent:
    return Spent(recipe.epochs * n, recipe.epochs * batch_count(n, recipe.batch_size), trainings=1)


def unlearning(algorithm: Callable, forget: int, retain: int) -> Iterator[tuple[str, Spent]]:
    """What an algorithm passes through a model, with so many examples to forget and to retain, by its name; what a RUM
    does, step by step."""
    if isinstance(algorithm, RUM):
        parts = [len(part) for part in torch.arange(forget).tensor_split(len(algorithm.steps))]
        for k, known in sequence(parts, algorithm.order, retain, algorithm.waiting):
            yield from unlearning(algorithm.steps[k], parts[k], known)
        return
    if "lr=" in repr(algorithm):
        algorithm = vary(algorithm, lr=0.001)                # costs as much, does not diverge, and is counted once
    few, many = (_counted(algorithm, forget, min(n, retain)) for n in (MANY // 2, MANY))
    more = max(0, retain - MANY) / (MANY - MANY // 2)        # each further example is seen as often as those between
    yield type(algorithm).__name__, many + more * (many + -1 * few)


@cache
def _counted(algorithm: Callable, forget: int, retain: int) -> Spent:
    """Counted while it unlearns blank images."""
    random, n = torch.Generator().manual_seed(0), forget + retain
    blank = Examples(torch.rand(n, 1, 2, 2, generator=random), torch.arange(n) % 10)
    with cost() as spent:
        algorithm(build(partial(mlp, shape=(1, 2, 2), hidden=(4,)), 0), *blank.split(torch.arange(n) < forget), seed=0)
    return Spent(spent.examples, spent.steps, trainings=algorithm != Keep())


@dataclass(frozen=True)
class Pace:
    """Seconds for an example forward and backward; for a step, beside its examples; for a training, beside its steps:
    copies and checks; and for an example forward only."""

    example: float
    step: float
    training: float
    forward: float

    def __call__(self, spent: Spent) -> float:
        return (spent.examples * self.example + spent.steps * self.step + spent.trainings * self.training
                + spent.forward * self.forward)

    def __str__(self) -> str:
        return (f"{self.example:.3g} s an example, {self.step:.2g} s a step, {self.training:.2g} s a training, "
                f"{self.forward:.3g} s an example forward only")


@dataclass(frozen=True)
class Rates:
    """What one worker does: its paces of training, of subset models and of unlearning (by fine-tuning; others take so
    many times as long: `weights`); seconds for an evaluation and for a membership attack; bytes that it holds beside
    the data; where this is from."""

    train: Pace
    subset: Pace
    unlearn: Pace
    evaluation: float
    attack: float
    memory: float
    source: str
    weights: Mapping[str, float] = field(default_factory=dict)

    def seconds(self, what: str, spent: Spent) -> float:
        """Of a kind of cell, or of an algorithm of that name."""
        paces = {"bank": self.subset, "original": self.train, "probed": self.train, "oracle": self.train}
        return (self.weights.get(what, 1.0) * paces.get(what, self.unlearn)(spent)
                + spent.evaluations * self.evaluation + spent.attacks * self.attack)


def measured(p: Profile, workers: int) -> Rates:
    """The rates of a worker while others work beside it, as many as this machine has; of all, the slowest."""
    device = pick(p.device)
    count = 1 if device.type == "cuda" else min(workers, effective_n_jobs(-1))
    found = [rates for _, rates in engine.run(rates_here, [(p,)] * count, workers=count, gpu=device.type == "cuda")]
    return max(found, key=lambda rates: rates.train.example + rates.train.step / p.recipe.batch_size)


def rates_here(p: Profile) -> Rates:
    """Those of this process, on random images of the profile's shape: a few steps of each kind."""
    known, device, scored = sizes(p), pick(p.device), p.scored_by
    algorithm, model = next(iter(p.algorithms.values())), build(p.make_model, 0).to(device)
    models = 32 if stacked(p) else AT_ONCE if device.type == "cuda" else 1

    def images(n: int) -> Examples:
        x = torch.rand(n, *known.shape, generator=torch.Generator().manual_seed(0))
        return Examples(x if known.width == 4 else (255 * x).byte(), torch.arange(n) % known.classes).to(device)

    def many(examples: Examples, recipe: Recipe) -> None:
        fit_many(scored.make_model, examples, [torch.arange(len(examples))] * models, recipe, seeds=list(range(models)))

    def unlearned(examples: Examples, algorithm: Algorithm) -> None:
        algorithm(model, examples[:2], examples)

    train, unlearn = pace(partial(fit, p.make_model), p, p.recipe, images), pace(unlearned, p, algorithm, images)
    subset = pace(many, scored, scored.recipe, images)
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
    weights = weighed(p, model, unlearn, images) if unlearn.example * p.recipe.batch_size < SLOW else {}
    return Rates(train, subset, unlearn, *judging(known), memory, f"measured on this machine ({device.type})",
                 weights)


def stated(p: Profile, tflops: float) -> Rates:
    """The rates of a device that sustains so many TFLOP/s, dense products of the model alone counted."""
    known = sizes(p)

    def of(make_model: Factory) -> Pace:
        forward = operations(make_model, known.shape) / (tflops * 1e12)
        return Pace(3 * forward, 0.0, 0.0, forward)

    train = of(p.make_model)
    weights = sum(4 * w.numel() for w in build(p.make_model, 0).parameters())
    return Rates(train, of(p.scored_by.make_model), train, *judging(known), 5 * weights,
                 f"stated: {tflops:g} TFLOP/s sustained by one device, three forward passes' operations in training; "
                 f"evaluations and attacks measured on this machine; of memory, two models, a gradient, a momentum and "
                 f"an oracle, no activations")


def operations(make_model: Factory, shape: tuple[int, ...]) -> float:
    """Floating-point operations of the dense products in a forward pass of one image. Training takes three times as
    many."""
    two = Examples(torch.rand(2, *shape), torch.zeros(2, dtype=torch.int64))
    return flops(lambda model, forget, retain, seed: predict(model, forget), build(make_model, 0), two, two) / 2


def stacked(p: Profile) -> bool:
    """Whether the subset models are trained as one."""
    return fits_stacking(build(p.scored_by.make_model, 0))


def pace(train: Callable, of: Profile | Retrain, how: Recipe | Algorithm, images: Callable[[int], Examples]) -> Pace:
    """Of ``train(examples, how)``: from as many examples in batches and in quarters of batches, of half a second or so,
    and from one batch."""
    b = how.batch_size
    quartered, one = replace(how, epochs=1, batch_size=max(2, b // 4)), replace(how, epochs=1)
    train(images(b), quartered)                              # what only the first run takes: imports, allocation
    [first] = seconds(partial(train, images(b), quartered), rounds=1)
    few, many = images(b), images(b * max(2, min(64, int(0.5 / first))))
    counts, ways = [], [(many, quartered), (many, one), (few, one)]
    for way in ways:
        with cost() as spent:
            train(*way)
        counts.append(spent)
    model = build(of.make_model, 0).to(many.x.device)
    quarters, whole, single, forward = seconds(*(partial(train, *way) for way in ways), partial(predict, model, many),
                                               rounds=5 if first < 0.5 else 1)
    step = max(0.0, quarters - whole) / (counts[0].steps - counts[1].steps)
    example = (whole - single - step * (counts[1].steps - counts[2].steps)) / (counts[1].examples - counts[2].examples)
    start = single - step * counts[2].steps - example * counts[2].examples
    return Pace(max(0.0, example), step, max(0.0, start), forward / len(many))


def weighed(p: Profile, model: nn.Module, pace: Pace, images: Callable[[int], Examples]) -> dict[str, float]:
    """How much longer algorithms take than what they pass through the model says: a teacher's passes, gradients of
    single examples, two sets in a step."""
    found = {}
    forget, retain = images(p.recipe.batch_size), images(8 * p.recipe.batch_size)
    for algorithm in [*p.algorithms.values(), *(further for further, _ in p.further.values()), *others(p)]:
        for name, value in {"lr": 0.001, "epochs": 1}.items():
            algorithm = vary(algorithm, **{name: value}) if f"{name}=" in repr(algorithm) else algorithm
        [(name, spent)] = unlearning(algorithm, len(forget), len(retain))
        algorithm(model, forget, retain, seed=0)
        [taken] = seconds(partial(algorithm, model, forget, retain, seed=0))
        found[name] = taken / pace(spent)
    return found


def judging(known: Sizes) -> tuple[float, float]:
    """Seconds of an evaluation beside the oracle, from logits that are there, and of a membership attack. The one takes
    so much for an example; the other the square of the number of test images, of which there are as many members."""
    n, n_test, random = min(known.n, 20_000), min(known.n_test, 2000), torch.Generator().manual_seed(0)
    sets = [Examples(torch.zeros(k, 1, 1, 1), torch.zeros(k, dtype=torch.int64)) for k in (n // 10, n, n_test)]
    logits = [torch.randn(len(part), known.classes, generator=random) for part in sets]
    for surer, one in zip((1.0, 3.0, 2.0), logits, strict=True):
        one[:, 0] += surer                                   # of the images that a model was trained on

    def judge(mia: bool) -> None:
        evaluation(logits, sets, mia=mia)
        for one in logits:
            jensen_shannon(one.softmax(1), one.flip(1).softmax(1))

    judge(True)                                              # imports
    with_, without = seconds(partial(judge, True), partial(judge, False))
    return without * known.n / n, (with_ - without) * (known.n_test / n_test) ** 2


# -- The plan ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What the study of a profile takes on `devices` workers (processes of one thread, or GPUs) with these rates."""

    p: Profile
    rates: Rates
    devices: int
    score: Score = ANY

    def __post_init__(self):
        if self.devices < 1:
            raise ValueError(f"devices is the number of workers, one thread or one GPU each, at least 1; got "
                             f"{self.devices}")

    @cached_property
    def stacked(self) -> bool:
        return stacked(self.p)

    @cached_property
    def weights(self) -> int:
        """Bytes of a model."""
        return sum(w.numel() * w.element_size() for w in build(self.p.make_model, 0).state_dict().values())

    @cached_property
    def notebooks(self) -> dict[str, list[Task]]:
        return Asking(self.p, self.score).notebooks()

    @cached_property
    def tasks(self) -> list[Task]:
        """Every cell once."""
        return list(dict.fromkeys(task for tasks in self.notebooks.values() for task in tasks))

    def trained(self, task: Task) -> list[tuple[str, Spent]]:
        """What a cell passes through models in order to train them, by its kind or, step by step, by algorithm."""
        p, n = self.p, sizes(self.p).n
        match task.kind:
            case "bank":
                one = training(round(p.fraction * n), p.scored_by.recipe)
                spent = replace(task.size * one, trainings=1, steps=one.steps) if self.stacked else task.size * one
            case "original":
                spent = training(n, p.recipe)
            case "oracle":
                spent = training(n - task.size, p.recipe)
            case "probed" if task.forget == "loss_curvature":
                spent = 2 * training(n, p.recipe)            # it doubles the passes
            case "probed":                                   # two models, each tuned further on what it has not seen
                tenth = round(n / 10)
                spent = 2 * (training(n - tenth, p.recipe)
                             + training(tenth, replace(HOLDOUT, batch_size=p.recipe.batch_size)))
            case _:
                return list(unlearning(task.does, task.size, n - task.size))
        return [(task.kind, spent)]

    def evaluated(self, task: Task) -> Spent:
        """What a cell passes forward in order to evaluate models, and how often it does."""
        known = sizes(self.p)
        match task.kind:
            case "bank":
                return Spent(forward=known.n * task.size)
            case "original":
                return Spent()
            case "oracle":                                   # runs ask for its answers once more
                return Spent(forward=2 * (known.n + known.n_test), evaluations=1, attacks=1)
            case "probed":
                return Spent(forward=4 * known.n * (task.forget == "holdout_retraining"))
        times = 1 if task.kind == "run" else 2 + len(task.does.steps)    # before, after each step, the oracle
        return Spent(forward=times * (known.n + known.n_test), evaluations=times,
                     attacks=task.mia and task.kind == "run")

    def disk(self, task: Task) -> float:
        """Bytes that a cell leaves."""
        n = sizes(self.p).n
        return 3000 + {"bank": 4 * n * task.size, "original": self.weights + 20 * n, "probed": 4 * n,
                       "oracle": self.weights + 8 * task.size}.get(task.kind, 0)

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One row per cell: stage, kind, models that it trains, examples passed forward and backward in millions, hours
        of one worker for training and for evaluation, gigabytes that it leaves on disk."""
        rows = []
        for task in self.tasks:
            trained = self.trained(task)
            train = sum(self.rates.seconds(*part) for part in trained) / 3600
            judge = self.rates.seconds(task.kind, self.evaluated(task)) / 3600
            examples = sum(spent.examples for _, spent in trained) / 1e6
            models = {"bank": task.size, "probed": 1 + (task.forget == "holdout_retraining")}.get(task.kind, 1)
            rows.append((task.stage, task.kind, models, examples, train, judge, self.disk(task) / 1e9))
        return pd.DataFrame(rows, columns=["stage", "kind", "models", "M examples", "training h", "evaluation h", "GB"])

    @cached_property
    def hours(self) -> float:
        """Of all workers together, one after the other."""
        return float(self.cells[["training h", "evaluation h"]].sum().sum())

    def table(self) -> pd.DataFrame:
        """One row per stage, and their sum. `wall h` is that of the stage on all workers: never less than its longest
        cell takes."""
        hours = self.cells["training h"] + self.cells["evaluation h"]
        groups = self.cells.assign(hours=hours).groupby("stage", sort=False)
        table = groups[["models", "M examples", "training h", "evaluation h", "GB"]].sum()
        table.insert(0, "cells", groups.size())
        table["wall h"] = (groups["hours"].sum() / self.devices).clip(lower=groups["hours"].max())
        table = table.reindex([stage for stage in STAGES if stage in table.index])
        table.loc["all"] = table.sum()
        return table.astype({"cells": int, "models": int})

    @property
    def memory(self) -> float:
        """Bytes on one worker, data included."""
        return self.rates.memory + sizes(self.p).bytes

    def assumptions(self) -> list[str]:
        r, p, known = self.rates, self.p, sizes(self.p)
        read = "the values on file are read" if Asking(p).on_file() else "all values are searched"
        return [
            f"{known.n:,} training and {known.n_test:,} test images of {known.shape}, {describe(p.make_model)}, "
            f"{p.recipe}",
            f"subset models: {p.score_models} of {describe(p.scored_by.make_model)}, {p.scored_by.recipe}",
            f"rates {r.source}",
            f"training: {r.train}; unlearning: {r.unlearn}; subset models: {r.subset}; an evaluation: "
            f"{r.evaluation:.2g} s, a membership attack {r.attack:.2g} s more",
            f"{self.devices} workers, cells independent of each other, none waiting for data or for others but at the "
            f"end of a stage",
            f"notebooks 01 to 05 with {len(p.seeds)} seeds and {len(p.tuning_seeds)} for tuning ({read}); 06 to 08 and "
            f"what notebooks draw and print are not in it",
            "algorithms take longer than fine-tuning would with the same examples by: " + (", ".join(
                f"{name} {weight:.2f}" for name, weight in r.weights.items()) or "nothing, not measured")]


def recorded(plan: Plan) -> pd.DataFrame | None:
    """Beside what cells of a kind take by the plan, what finished ones took; None if there are none."""
    study = Study(plan.p, quiet=True)
    if not study.store.folder.is_dir():
        return None
    cells, hours = survey(study), plan.cells[["training h", "evaluation h"]].sum(axis=1)
    planned = (3600 * hours).groupby(plan.cells["kind"], sort=False).agg(["size", "mean"])
    done = cells[cells["state"] == "done"].groupby("kind")["seconds"].agg(["size", "mean"])
    return planned.join(done, lsuffix=" planned", rsuffix=" recorded").dropna()


# -- ImageNet ---------------------------------------------------------------------------------------------------------


IMAGENET = Profile(                                          # only to be planned: its data do not fit into memory
    name="imagenet",
    data="imagenet",
    make_model=partial(resnet50, classes=1000, stem="imagenet"),
    recipe=Recipe(epochs=100, lr=0.4, batch_size=896, amp=True),         # Feldman and Zhang 2020, appendix
    score_models=2000,                                       # theirs, each on 70 % of the images
    set_size=3000,
    bands=15,
    budgets=(5,),
    rates={5: (0.005, 0.01, 0.02, 0.05)},
    ascent_rates=(0.0001, 0.001),
    rum_budget=5,
    rum_rates=(0.005, 0.01, 0.02, 0.05),
    verdict_seeds=6,
    algorithms=algorithms(batch_size=256),
    workers=1,
    seeds=(0, 1, 2),
    tuning_seeds=(100,),
)


def main(which: str = "laptop", *options: str) -> None:
    given = dict(option.partition("=")[::2] for option in options)
    unknown = given.keys() - {"devices", "tflops"}
    if unknown:
        raise ValueError(f"unknown option {', '.join(unknown)}; there are devices= and tflops=")
    p = IMAGENET if which == IMAGENET.name else profile(which)
    tflops = number("tflops", given["tflops"], float) if given.get("tflops") else None
    here = 1 if tflops or pick(p.device).type == "cuda" else effective_n_jobs(p.workers)
    devices = number("devices", given["devices"], int) if given.get("devices") else here
    plan = Plan(p, measured(p, devices) if tflops is None else stated(p, tflops), devices)
    print(plan.table().round(3).to_string())
    print(f"memory of one worker: {plan.memory / 1e9:.2g} GB, data {sizes(p).bytes / 1e9:.2g} GB of it")
    print(*(f"- {line}" for line in plan.assumptions()), sep="\n")
    known = recorded(plan) if tflops is None else None
    if known is not None:
        print(f"finished cells, mean seconds:\n{known.round(4).to_string()}")


def number(name: str, text: str, kind: type) -> float:
    """A positive number. Raises ValueError for anything else."""
    try:
        value = kind(text)
    except ValueError:
        value = 0
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be a positive {'number' if kind is float else 'whole number'}; got {text!r}")
    return value


if __name__ == "__main__":
    from rumlib.lab import plan  # by this name, and not as __main__, workers find its functions

    try:
        plan.main(*sys.argv[1:])
    except (ValueError, FileNotFoundError) as problem:
        sys.exit(f"{problem}")
