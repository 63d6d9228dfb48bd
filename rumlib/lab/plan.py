"""What a study will cost, before it is started: results, models, hours, disk and memory.

    python -m rumlib.lab.plan laptop                             # make plan PROFILE=laptop
    python -m rumlib.lab.plan cifar10-small devices=8            # make plan PROFILE=cifar10-small DEVICES=8
    python -m rumlib.lab.plan imagenet devices=64 tflops=300     # on devices that sustain so many TFLOP/s each
    plan = Plan(p, measured(p), devices=2); plan.table(), plan.hours

A sketch of the study lists what most of its notebooks ask for, from the lists that they run themselves
(`rumlib.lab.sketch`, `rumlib.lab.protocol`). One pilot of each kind of computation is measured: one epoch on random
images. A result takes as much longer than its pilot as more examples pass through training and evaluation.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from joblib import effective_n_jobs

from rumlib.algorithms.base import Keep
from rumlib.choose import AutoRUM, Calibrated
from rumlib.data import Examples
from rumlib.device import check_fields, finished, pick
from rumlib.lab import protocol
from rumlib.lab.computations import ForgetSet
from rumlib.lab.memo import stopwatch
from rumlib.lab.profiles import Profile, algorithms, profile
from rumlib.lab.sketch import NOTEBOOKS, Sizes, Sketch, Task, ask, sizes
from rumlib.lab.study import Study
from rumlib.lab.tables import Cell
from rumlib.lab.tuning import vary
from rumlib.metrics import evaluation, flops
from rumlib.models import Factory, build, describe, mlp, resnet50
from rumlib.proxies import HOLDOUT, PROXIES, TRACED
from rumlib.rum import RUM, sequence
from rumlib.scores import bank, entanglement, mmd
from rumlib.train import Recipe, cost, features, predict

# -- What passes through training -------------------------------------------------------------------------------------


def work(does: Callable, forget: int, retain: int) -> list[tuple[Callable | str, float]]:
    """[(algorithm, examples that it passes forward and backward)] of an algorithm, step by step if it is a RUM."""
    if isinstance(does, RUM):
        parts = [len(part) for part in torch.arange(forget).tensor_split(len(does.steps))]
        return [found for k, known in sequence(parts, does.order, retain, does.waiting)
                for found in work(does.steps[k], parts[k], known)]
    if isinstance(does, AutoRUM):                            # it stops soon after its budget is spent
        return [(does.candidates[0], does.budget * retain * len(does.orders or (None,)))]
    if isinstance(does, Calibrated):                         # two trainings on about the subset of a subset model
        return [("original", 2 * does.recipe.epochs * 0.7 * retain), *work(does.auto, forget, 0.7 * retain)]
    if protocol.has_field(does, "lr"):
        does = vary(does, lr=0.001)                          # as many as with other rates, and it does not diverge
    return [(does, passed(does, forget, retain))]


def passed(does: Callable, forget: int, retain: int) -> float:
    """Examples: of small sets and few epochs they are counted, and from there they grow in a line."""
    if protocol.has_field(does, "epochs"):
        one, two = (_line(vary(does, epochs=epochs), forget, retain, 512) for epochs in (1, 2))
        return one + (getattr(does, "inner", does).epochs - 1) * (two - one)
    return _line(does, forget, retain, 4096)                 # more than twice what influence unlearning looks at


def _line(does: Callable, forget: int, retain: int, most: int) -> float:
    """The line through counts of sets half as large as `most` and of that size, in each of the two directions."""
    small = min(forget, most), min(retain, most)
    found = known = _counted(does, *small)
    for few, above in (((most // 2, small[1]), forget - most), ((small[0], most // 2), retain - most)):
        if above > 0:
            found += above / (most / 2) * (known - _counted(does, *few))
    return found


@cache
def _counted(algorithm: Callable, forget: int, retain: int) -> int:
    """Counted while the algorithm unlearns blank images in a network of a few weights."""
    n = forget + retain
    blank = Examples(torch.rand(n, 1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.arange(n) % 10)
    with cost() as spent:
        algorithm(build(partial(mlp, shape=(1, 2, 2), hidden=(4,)), 0), *blank.split(torch.arange(n) < forget), seed=0)
    return spent.examples


# -- Pilots -----------------------------------------------------------------------------------------------------------


OPERATIONS = {"cpu": 8e9, "cuda": 2e13}                     # of an epoch of a pilot, at least of 16 images


@dataclass(frozen=True)
class Pilots:
    """What pilots took, in seconds of one worker.

    train       for one example in training: by kind of result, or by class of algorithm; "original" for all others
    evaluation  for one example evaluated, reading and writing of the result included
    attack      for a membership attack;  placing: for the entanglement score and the MMD of one set
    memory      bytes that a worker holds beside the data;  source: where all this is from
    """

    train: Mapping[str, float]
    evaluation: float
    attack: float
    placing: float
    memory: float
    source: str

    def training(self, what: Callable | str) -> float:
        return self.train.get(what if isinstance(what, str) else type(what).__name__, self.train["original"])


def measured(p: Profile) -> Pilots:
    """Every kind of computation, once, by a study of random images whose trainings have one epoch."""
    known, device = sizes(p), pick(p.device)
    forward, most = operations(p.make_model, known.shape), OPERATIONS["cuda" if device.type == "cuda" else "cpu"]
    n, n_test = (int(min(size, max(16, most / 3 / forward))) for size in (known.n, known.n_test))
    slow = 3 * forward * n > 2 * most                        # then one algorithm stands for all
    random = torch.Generator().manual_seed(0)

    def images(count: int) -> Examples:
        x = torch.rand(count, *known.shape, generator=random)
        return Examples(x if known.width == 4 else (255 * x).byte(), torch.arange(count) % known.classes).to(device)

    ways = {}
    for task in Plan(p, None, 1).tasks:
        ways |= {type(does).__name__: does for does, _ in work(task.does, 8, 8) if callable(does) and does != Keep()}
    with TemporaryDirectory() as home:
        models, scored = min(p.score_chunk, p.score_models), p.scored_by
        study = Study(replace(p, name="pilot", recipe=replace(p.recipe, epochs=1), seeds=(0, 1), workers=1),
                      quiet=True, home=home)
        study.published, study._data = None, (images(n), images(n_test))
        forget = ForgetSet("forget", torch.arange(max(2, min(n // 4, p.set_size))))
        study.unlearn([Cell(forget, Keep(), 0)])             # imports, the original model and its oracle
        rest, _ = taken(study.unlearn, [Cell(forget, Keep(), 0, mia=False)])
        pilots = {"original": taken(study.originals, [1]),
                  "bank": taken(bank, scored.make_model, study.train, replace(scored.recipe, epochs=1), range(models),
                                fraction=p.fraction)}
        if not slow:
            pilots |= {name: taken(study.proxy, name) for name in PROXIES if name not in TRACED}
        for name, does in list(ways.items())[:1 if slow else None]:
            for of, value in (("epochs", 1), ("lr", 0.001)):
                does = vary(does, **{of: value}) if protocol.has_field(does, of) else does
            took, examples = taken(study.unlearn, [Cell(forget, does, 0, mia=False)])
            pilots[name] = max(0.0, took - rest), examples
        train = {name: took / max(1, examples) for name, (took, examples) in pilots.items()}
        embedding = features(study.model(0), study.train[:2]).shape[1]
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
    return Pilots(train, rest / (n + n_test), *judging(known, embedding, p.set_size), memory,
                  f"measured on this machine ({device.type}), {n} random images and one epoch each")


def taken(ask: Callable, *arguments, **options) -> tuple[float, int]:
    """Seconds (see `rumlib.lab.memo.stopwatch`), and the examples that passed through training."""
    finished()
    seconds = stopwatch()
    with cost() as spent:
        ask(*arguments, **options)
    return seconds(), spent.examples


def judging(known: Sizes, width: int, size: int) -> tuple[float, float]:
    """Seconds of a membership attack, which grow with the square of the number of test images; and of placing a set,
    which grow with the square of the number of training images."""
    n, n_test, random = min(known.n, 2000), min(known.n_test, 2000), torch.Generator().manual_seed(0)
    size = min(size, n // 4)
    sets = [Examples(torch.zeros(k, 1), torch.zeros(k, dtype=torch.int64)) for k in (size, n_test, n_test)]
    logits = [torch.randn(len(part), known.classes, generator=random) for part in sets]
    for surer, one in zip((1.0, 3.0, 2.0), logits, strict=True):
        one[:, 0] += surer                                   # of the images that a model was trained on
    embedding = torch.randn(n, width, generator=random)
    evaluation(logits, sets)                                 # imports
    attack, _ = taken(evaluation, logits, sets)
    placing = sum(taken(of, embedding[size:], embedding[:size])[0] for of in (entanglement, mmd))
    return attack * (known.n_test / n_test) ** 2, placing * (known.n / n) ** 2


def stated(p: Profile, tflops: float) -> Pilots:
    """A device that sustains so many TFLOP/s: dense products alone are counted, three forward passes in training."""
    known = sizes(p)
    models = p.make_model, p.scored_by.make_model
    forward, scored = (operations(make_model, known.shape) / (tflops * 1e12) for make_model in models)
    weights = list(build(p.make_model, 0).parameters())
    return Pilots({"original": 3 * forward, "bank": 3 * scored}, forward,
                  *judging(known, weights[-2].shape[-1], p.set_size), 20 * sum(w.numel() for w in weights),
                  f"stated: {tflops:g} TFLOP/s sustained by one device; attacks and the placing of sets measured on "
                  f"this machine; of memory, two models, a gradient, a momentum and an oracle, no activations")


def operations(make_model: Factory, shape: tuple[int, ...]) -> float:
    """Floating-point operations of the dense products in a forward pass of one image."""
    two = Examples(torch.rand(2, *shape), torch.zeros(2, dtype=torch.int64))
    return flops(lambda model, forget, retain, seed: predict(model, forget), build(make_model, 0), two, two) / 2


# -- The plan ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What the study of a profile costs on `devices` workers: processes of one thread, or GPUs."""

    p: Profile
    pilots: Pilots | None
    devices: int

    def __post_init__(self):
        check_fields(self, devices="int [1, inf)")

    @cached_property
    def notebooks(self) -> dict[str, list[Task]]:
        """Notebook -> what it asks for."""
        found = {name: Sketch(self.p, name) for name in NOTEBOOKS if self.p.includes(name)}
        for name, sketch in found.items():
            ask(sketch, name)
        return {name: list(sketch.tasks) for name, sketch in found.items()}

    @cached_property
    def tasks(self) -> list[Task]:
        """Every result once."""
        return list(dict.fromkeys(task for tasks in self.notebooks.values() for task in tasks))

    def trained(self, task: Task) -> list[tuple[Callable | str, float]]:
        """[(what trains, examples)] of a result."""
        p, n = self.p, sizes(self.p).n
        match task.kind:
            case "bank":
                return [("bank", p.scored_by.recipe.epochs * p.fraction * n * task.size)]
            case "original" | "oracle":
                return [("original", p.recipe.epochs * (n - task.size))]
            case "probed" if task.forget.endswith("loss_curvature"):
                return [("loss_curvature", p.recipe.epochs * n)]
            case "probed":                                   # two models, each tuned further on what it has not seen
                return [("holdout_retraining", 2 * n * (0.9 * p.recipe.epochs + 0.1 * HOLDOUT.epochs))]
            case "requests":                                 # eight of them; retrained as often as is known before
                again = 8 // int(task.forget) if task.forget.isdecimal() else 0
                return [*8 * work(task.does, task.size // 8, n - task.size // 2),
                        ("original", again * p.recipe.epochs * (n - task.size // 2))]
            case "entanglement":
                return []
        return work(task.does, task.size, n - task.size)

    def seconds(self, task: Task) -> tuple[float, float]:
        """Of one worker, for training and for everything else."""
        known, r = sizes(self.p), self.pilots
        train = sum(examples * r.training(what) for what, examples in self.trained(task))
        times = {"run": 1, "step": 1, "oracle": 1, "dynamics": 5, "requests": 8}    # 5: before, after three, the oracle
        judged = times.get(task.kind, 0) * (known.n + known.n_test) * r.evaluation
        attacks = {"oracle": 1, "run": task.mia, "requests": 8}.get(task.kind, 0)
        return train, judged + attacks * r.attack + (task.kind == "entanglement") * r.placing

    def disk(self, task: Task) -> float:
        """Bytes that a result leaves."""
        n, weights = sizes(self.p).n, self.weights
        return 3000 + {"bank": 4 * n * task.size, "original": weights + 20 * n, "probed": 4 * n,
                       "oracle": weights + 8 * task.size, "stage": weights + 24 * task.size,
                       }.get(task.kind, 0)

    @cached_property
    def weights(self) -> int:
        """Bytes of a model."""
        return sum(w.numel() * w.element_size() for w in build(self.p.make_model, 0).state_dict().values())

    @cached_property
    def results(self) -> pd.DataFrame:
        """One row per result: stage, kind, models that it trains, core hours of training and of everything else, and
        gigabytes on disk."""
        models = {"probed": 1, "entanglement": 0}
        return pd.DataFrame([(task.stage, task.kind, task.size if task.kind == "bank" else models.get(task.kind, 1),
                              *(seconds / 3600 for seconds in self.seconds(task)), self.disk(task) / 1e9)
                             for task in self.tasks],
                            columns=["stage", "kind", "models", "training h", "other h", "GB"])

    @cached_property
    def hours(self) -> float:
        """Core hours of everything."""
        return float(self.results[["training h", "other h"]].sum().sum())

    def table(self) -> pd.DataFrame:
        """One row per stage, and their sum. `wall h` is that of the stage on all workers: never less than its longest
        result takes."""
        hours = self.results["training h"] + self.results["other h"]
        groups = self.results.assign(hours=hours).groupby("stage", sort=False)
        table = groups[["models", "training h", "other h", "GB"]].sum()
        table.insert(0, "results", groups.size())
        table["wall h"] = (groups["hours"].sum() / self.devices).clip(lower=groups["hours"].max())
        table.loc["all"] = table.sum()
        return table.astype({"results": int, "models": int})

    @property
    def memory(self) -> float:
        """Bytes on one worker, data included."""
        return self.pilots.memory + sizes(self.p).bytes

    def assumptions(self) -> list[str]:
        r, p, known = self.pilots, self.p, sizes(self.p)
        rates = ", ".join(f"{name} {value / r.train['original']:.2f}" for name, value in r.train.items())
        return [
            f"{known.n:,} training and {known.n_test:,} test images of {known.shape}, {describe(p.make_model)}, "
            f"{p.recipe}; {p.score_models} subset models of {describe(p.scored_by.make_model)}",
            f"pilots {r.source}: an example takes {r.train['original']:.3g} s in training and {r.evaluation:.3g} s in "
            f"an evaluation, a membership attack {r.attack:.2g} s, the placing of a set {r.placing:.2g} s",
            f"an example in training, against one of the original's: {rates}",
            f"{self.devices} workers that wait for each other at the end of a stage alone; {', '.join(self.notebooks)} "
            f"with {len(p.seeds)} reporting and {len(p.tuning_seeds)} tuning seeds"]


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
    rum_rates=(0.0001, 0.005, 0.01, 0.02, 0.05),
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
    plan = Plan(p, measured(p) if tflops is None else stated(p, tflops), devices)
    print(plan.table().round(3).to_string())
    print(f"memory of one worker: {plan.memory / 1e9:.2g} GB, data {sizes(p).bytes / 1e9:.2g} GB of it")
    print(*(f"- {line}" for line in plan.assumptions()), sep="\n")


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
    try:
        main(*sys.argv[1:])
    except (ValueError, FileNotFoundError) as problem:
        sys.exit(f"{problem}")
