"""What a study will take, before it is begun: cells, models, hours, disk and memory.

    python -m rumlib.plan laptop                             # make plan PROFILE=laptop
    python -m rumlib.plan cifar10-small devices=8            # make plan PROFILE=cifar10-small DEVICES=8
    python -m rumlib.plan imagenet devices=64 tflops=300     # on GPUs that sustain so many TFLOP/s, not on this machine
    plan = Plan(profile("laptop"), rates(profile("laptop")), devices=2); plan.table(); plan.hours

Cells are those that notebooks 01 to 05 ask for, counted one by one. What one costs is counted as well, in examples passed
forward and backward and in steps: each algorithm is run on a sketch of the study, blank images and a network of a few
weights. Only what an example and a step take is measured, on the profile's own model, in a few seconds.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from itertools import permutations
from math import ceil, prod
from statistics import median

import pandas as pd
import torch
from torch import nn

from rumlib.algorithms import ClassProjection, Keep, TopK
from rumlib.data import Examples, load
from rumlib.metrics import evaluation, flops
from rumlib.models import build, mlp
from rumlib.profiles import PROFILES, Profile, algorithms, profile
from rumlib.rum import RUM, Refine, Shuffled
from rumlib.scores import HOLDOUT, PROXIES, TRACED, Score
from rumlib.status import survey
from rumlib.study import CHUNK, Study, find_home, vary
from rumlib.train import Recipe, batch_count, cost, fit, fit_many, fits_stacking, predict
from rumlib.tune import search, tuned

STAGES = ("subset models", "proxies", "originals", "retrained", "tuning", "unlearning", "RUM study", "verdict", "ablations")


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


@dataclass(frozen=True)
class Asking:
    """The tasks of a profile, in the order of notebooks 01 to 05. Learning rates that are yet to be chosen stay at the
    default of the algorithm: they change nothing in what it costs."""

    p: Profile

    @cached_property
    def sets(self) -> Sets:
        p, n = self.p, sizes(self.p).n
        bands = {f"band {k}": n // p.bands for k in range(3)}
        return {level: p.set_size for level in ("low", "medium", "high")} | {"mix": 3 * p.set_size} | bands | {
            f"matched {level}": p.set_size for level in ("low", "medium", "high")}

    def trained(self, names: Iterable[str], seeds: Iterable[int]) -> Iterator[Task]:
        for seed in seeds:
            yield Task("originals", "original", seed=seed)
            for name in names:
                yield Task("retrained", "oracle", name, self.sets[name], seed=seed)

    def run(self, stage: str, ways: Ways, seeds: Iterable[int], *, mia: bool = True, kind: str = "run") -> Iterator[Task]:
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
        size = CHUNK[fits_stacking(build(p.make_model, 0))]
        for k in range(0, p.score_models, size):
            yield Task("subset models", "bank", size=min(size, p.score_models - k), seed=k)

    def proxies(self) -> Iterator[Task]:
        yield Task("originals", "original", seed=0)
        for name in PROXIES:
            if name not in TRACED:
                yield Task("proxies", "probed", name)

    def levels(self) -> Iterator[Task]:
        """Notebook 03: all algorithms at every level of memorization and every budget."""
        p, levels = self.p, ("low", "medium", "high")
        candidates = [(level, *candidate) for b in p.budgets for candidate in Study(p, quiet=True).candidates(b).values()
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
        p, refine, ways = self.p, Refine(SKETCH), []
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

    def verdict(self) -> Iterator[Task]:
        """Notebook 05, first part: refinement at equal steps, on more seeds."""
        refine, ways = Refine(SKETCH), []
        for name in FEW:
            step = self.step(name)
            ways += [RUM(refine, (step,) * 3, order=order) for order in permutations(range(3))]
            ways += [self.step(name, 3 * self.p.rum_budget), RUM(refine, (step,) * 3, waiting="leave_out")]
        yield from self.ablated("verdict", ways, range(self.p.verdict_seeds))

    def ablations(self) -> Iterator[Task]:
        """Notebook 05, the rest."""
        p, refine, down, some = self.p, Refine(SKETCH), (2, 1, 0), ("Fine-tune", "Random label")
        yield from self.ablated("ablations", [RUM(Shuffled(3), (self.step(name),) * 3) for name in FEW], ())
        yield from self.run("ablations", [("mix", RUM(Shuffled(3, seed=number), (self.step(name),) * 3))
                                          for name in FEW for number in (1, 2, 3)], p.seeds, mia=False)
        each = {n: max(1, round(3 * p.rum_budget / n)) for n in range(1, 6)}
        ways = [RUM(Refine(SKETCH, parts=n), (self.step(name, each[n]),) * n) for name in some for n in each]
        ways += [RUM(refine, tuple(Keep() if part == idle else self.step(name) for part in range(3)), order=down)
                 for name in some for idle in (None, 0, 1, 2)]
        label = self.step("Random label")
        scores = [SKETCH, *(Score(name, SKETCH.values) for name in (*PROXIES, "centrality"))]
        scores += [Score("noise", SKETCH.values)] if p.data == "digits" else []
        by_score = [RUM(Refine(score), (Keep(), label, label), order=down) for score in scores]
        yield from self.ablated("ablations", [*ways, *by_score, RUM(Shuffled(3), (Keep(), label, label), order=down)],
                                p.seeds)
        watched = [RUM(refine, (Keep(), self.step("Fine-tune"), self.step("SalUn")))] + [
            RUM(refine, (label,) * 3, order=order) for order in ((0, 1, 2), down)]
        yield from self.ablated("ablations", watched, ())
        yield from self.run("ablations", [("mix", way) for way in watched], p.seeds, kind="dynamics")
        common = dict(epochs=p.rum_budget, batch_size=p.recipe.batch_size, schedule="linear", clip=5.0)
        few = TopK(k=0.1, perturb="gauss_rel", sigma=1.5, tolerance=None, **common)
        project = ClassProjection(30.0, 30.0, samples=None, granularity="examples")
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
                 "04_rum": [*self.rum(), *self.levels()],
                 "05_rum_ablations": [*self.verdict(), *self.ablations(), *self.proxies()]}
        return {notebook: list(dict.fromkeys(score + tasks)) for notebook, tasks in asked.items()}


SKETCH = Score("memorization", torch.arange(1.0, 4097))      # stands for any: what counts is how many examples there are
FEW = ("Fine-tune", "NegGrad+", "SCRUB", "Random label")     # one algorithm of each family
