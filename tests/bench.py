"""What the project claims about speed, measured: `make bench`, or `make bench ROWS="ResNet-18"` for some of it.

Each row compares two ways of doing the same work, in one process and in turns; what counts is the ratio. The tables go
to figures/bench/, one for each class of device (cpu.csv, cuda.csv), row by row: where a run is stopped, what it has
measured is there. On a CPU all is done on one thread, where a row does not say otherwise.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from rumlib.algorithms.base import Algorithm, Keep
from rumlib.algorithms.dampen import SSD
from rumlib.algorithms.distill import Scrub
from rumlib.algorithms.gradient import Finetune, NegGrad, NegGradPlus
from rumlib.algorithms.influence import InfluenceUnlearning
from rumlib.algorithms.layers import LastLayers
from rumlib.algorithms.mislead import UNSIR
from rumlib.algorithms.perturb import TopK
from rumlib.algorithms.projection import ClassProjection
from rumlib.algorithms.relabel import RandomLabel, SalUn
from rumlib.data import Examples
from rumlib.datasets import load
from rumlib.device import finished, pick
from rumlib.ensemble import fit_many
from rumlib.lab import ForgetSet, Study, engine, vary
from rumlib.lab import computations as made
from rumlib.lab.check import survey
from rumlib.lab.memo import digest_of
from rumlib.lab.plan import Plan, measured, operations
from rumlib.lab.profiles import CIFAR10, LAPTOP, SMOKE
from rumlib.lab.settings import home as find_home
from rumlib.lab.sketch import ask
from rumlib.metrics import class_accuracies, flops
from rumlib.models import Factory, build, resnet18, small_resnet
from rumlib.proxies import Trace
from rumlib.rum import RUM, Shuffled
from rumlib.scores import bank
from rumlib.spdgan import SPDGAN
from rumlib.train import Recipe, fit, predict, shuffled

LIMIT = 8 * 60                                               # seconds on a GPU, after which no row is begun

Found = Iterator[tuple[str, float, float, str]]              # rest of the title, ours, compared with, unit
ROWS: dict[str, tuple[Callable[[torch.device], Found], str]] = {}


def seconds(*ways: Callable[[], object], rounds: int = 3) -> list[float]:
    """Median wall time of each, taken in turns so that a busy machine slows all alike; what they have started on a GPU
    is waited for."""
    times = [[] for _ in ways]
    for _ in range(rounds):
        for way, taken in zip(ways, times, strict=True):
            finished()
            start = time.perf_counter()
            way()
            finished()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def row(title: str, on: str = "cpu cuda"):
    """Put a function on the list. What it yields begins with the title, and no other row does."""
    def add(function: Callable[[torch.device], Found]):
        ROWS[title] = function, on
        return function
    return add


# -- What ours is compared with ---------------------------------------------------------------------------------------


class Pictures(Dataset):
    """What torchvision's CIFAR10 is: arrays in memory, made a picture and transformed one by one."""

    def __init__(self, examples: Examples, transform: Callable):
        self.data, self.targets = examples.x.permute(0, 2, 3, 1).cpu().numpy(), examples.y.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, k: int):
        return self.transform(Image.fromarray(self.data[k])), self.targets[k]


def usual_loader(examples: Examples, batch_size: int, augmented: bool) -> DataLoader:
    """PIL transforms, two worker processes that go on living from epoch to epoch."""
    from torchvision import transforms

    own = [transforms.RandomCrop(examples.x.shape[-1], padding=4), transforms.RandomHorizontalFlip()] * augmented
    transform = transforms.Compose([*own, transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.25,) * 3)])
    return DataLoader(Pictures(examples, transform), batch_size=batch_size, shuffle=True, num_workers=2,
                      persistent_workers=True)


def usual_loop(make_model: Factory, batches: DataLoader, recipe: Recipe, device: torch.device) -> nn.Module:
    """fp32, torch.optim, the loss read every step, and the convolutions that cuDNN likes best."""
    model, total = build(make_model, 0).to(device, memory_format=torch.contiguous_format), 0.0
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.lr, momentum=recipe.momentum,
                                weight_decay=recipe.weight_decay)
    with any_convolution():
        for _ in range(recipe.epochs):
            for x, y in batches:
                x, y = x.to(device), y.to(device)
                loss = F.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item()
    return model.eval()


def one_at_a_time(model, forget, retain, alpha: float, samples: int, n: int) -> torch.Tensor:
    """Influence unlearning as it is published: a backward pass for each example. Returns the new weights, flat."""
    weights = list(model.parameters())

    def gradient(x, y):
        loss = F.cross_entropy(model(x[None]), y[None])
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])

    mean_s, mean_r = (sum(map(gradient, s.x, s.y)) / len(s) for s in (forget, retain))
    k, o = len(forget) / (len(forget) + len(retain)) * (mean_s - mean_r), gradient(retain.x[0], retain.y[0])
    for x, y in zip(retain.x[1:samples], retain.y[1:samples], strict=True):
        g = gradient(x, y)
        t = o @ g
        k, o = k - (k @ g) / (n + t) * o, o - t / (n + t) * o
    return torch.cat([p.detach().flatten() for p in weights]) + alpha * k


# -- What they work on ------------------------------------------------------------------------------------------------


@cache
def photographs(n: int, size: int = 32, classes: int = 10) -> Examples:
    """Random images, as bytes: no row asks what is on them."""
    random = torch.Generator().manual_seed(0)
    return Examples(torch.randint(0, 256, (n, 3, size, size), generator=random, dtype=torch.uint8),
                    torch.arange(n) % classes)


@cache
def digits() -> Examples:
    return load(LAPTOP.data, **LAPTOP.options)[0]


@cache
def trained_mlp() -> nn.Module:
    return fit(LAPTOP.make_model, digits(), LAPTOP.recipe)


@contextmanager
def threads(n: int):
    torch.set_num_threads(n)
    yield
    torch.set_num_threads(1)


@contextmanager
def tensor_float(on: bool):
    """TF32, which `rumlib.device` turns off and torch leaves on for convolutions."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = on
    yield
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


@contextmanager
def any_convolution():
    """cuDNN chooses as torch leaves it to: `rumlib.device` asks for deterministic ones, a plain loop not."""
    before, torch.backends.cudnn.deterministic = torch.backends.cudnn.deterministic, False
    yield
    torch.backends.cudnn.deterministic = before


@contextmanager
def setting(name: str, value: str):
    os.environ[name] = value
    yield
    del os.environ[name]


# -- Memory: first, since the mark of a child process starts at that of its parent ---------------------------------


def high_water(work: Callable[[], object]) -> int:
    """Bytes that a process of its own held at most after this work (on a GPU: on the GPU)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated()
    spawn = multiprocessing.get_context("spawn")             # and glibc is told to give back at once what is freed
    with setting("MALLOC_MMAP_THRESHOLD_", "65536"), ProcessPoolExecutor(1, mp_context=spawn) as process:
        return process.submit(_high_water, work).result()


def _high_water(work: Callable[[], object]) -> int:
    torch.set_num_threads(1)
    work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def asked(select: bool) -> None:
    """A ResNet-18 asked about two images, or also chosen from among its weights."""
    model, examples = build(resnet18, 0).eval(), photographs(2)
    predict(model, examples)
    if select:
        TopK().select(model, examples, examples)


@row("Top-K's peak memory in a ResNet-18 against three times the weights", on="cpu")
def top_k_memory(device) -> Found:
    taken = high_water(partial(asked, True)) - high_water(partial(asked, False))
    yield "", taken / sum(4 * p.numel() for p in build(resnet18, 0).parameters()), 3.0, "sets of weights"


def six_steps(ours: bool, batch_size: int) -> None:
    """One step an epoch: on a GPU the first ones are launched and the later ones recorded, which takes memory too."""
    device, recipe = pick(), Recipe(epochs=6, batch_size=batch_size, amp=ours)
    if ours:
        fit(resnet18, photographs(batch_size).to(device), recipe)
    else:
        usual_loop(resnet18, usual_loader(photographs(batch_size), batch_size, augmented=False), recipe, device)


@row("peak memory of ResNet-18's training against the plain loop's")
def training_memory(device) -> Found:
    ours, theirs = (high_water(partial(six_steps, ours, 128)) for ours in (True, False))
    yield ", batch 128", ours / 2**30, theirs / 2**30, "GiB"


# -- Training ---------------------------------------------------------------------------------------------------------


@row("one MLP: our loop against a DataLoader loop", on="cpu")
def mlp_loop(device) -> Found:
    p, train = LAPTOP, digits()
    loader = DataLoader(TensorDataset(train.x, train.y), batch_size=p.recipe.batch_size, shuffle=True)
    yield "", *seconds(lambda: fit(p.make_model, train, p.recipe),
                       lambda: usual_loop(p.make_model, loader, p.recipe, device)), "s/model"


def resnet18_step(device: torch.device) -> tuple[int, Recipe, Examples]:
    """Batch size, recipe and images on which ResNet-18 is timed: on a GPU, so many epochs that to record the step does
    not count."""
    batch, epochs, steps = (256, 8, 40) if device.type == "cuda" else (128, 1, 3)
    return batch, Recipe(epochs=epochs, batch_size=batch, amp=True), photographs(steps * batch)


@row("ResNet-18's training")
def resnet18_training(device) -> Found:
    """The whole of an epoch; on a CPU on two threads both."""
    batch, recipe, images = resnet18_step(device)
    held, thousands, model = images.to(device), len(images) / 1000, build(resnet18, 0).to(device)
    precisions = {"fp32": False, "TF32": True} if device.type == "cuda" else {"fp32, two threads both": False}

    def plain(loader: DataLoader, tf32: bool):
        with tensor_float(tf32):
            usual_loop(resnet18, loader, replace(recipe, epochs=1), device)

    for augmented in (True, False):
        loader, kind = usual_loader(images, batch, augmented), "augmented" if augmented else "not augmented"
        for precision, tf32 in precisions.items():
            with threads(2):
                theirs, ours = seconds(partial(plain, loader, tf32),
                                       partial(fit, model, held, replace(recipe, augment=augmented)))
            yield (f", {kind}: against the plain loop in {precision}", ours / thousands / recipe.epochs,
                   theirs / thousands, "s/1,000 images")


@row("feeding", on="cpu")
def feeding(device) -> Found:
    """Two threads against two worker processes."""
    images = photographs(4096)
    for augmented in (True, False):
        loader = usual_loader(images, 128, augmented)

        def ours(augmented=augmented):
            for _ in shuffled(images, 128, torch.Generator().manual_seed(0), weight=torch.zeros(1), mirror=augmented):
                pass

        def theirs(loader=loader):
            for _ in loader:
                pass

        kind = "shifted and mirrored" if augmented else "as they are"
        with threads(2):
            taken, usual = seconds(ours, theirs)
        yield (f" images {kind}: two threads against PIL and two DataLoader workers", taken / 4.096, usual / 4.096,
               "s/1,000 images")


@row("our ResNet-18 in bf16, its step recorded,", on="cuda")
def resnet18_ways(device) -> Found:
    _, recipe, images = resnet18_step(device)
    held, thousands, model = images.to(device), len(images) / 1000 * recipe.epochs, build(resnet18, 0).to(device)
    ours = partial(fit, model, held, recipe)

    def launched():
        with setting("RUM_GRAPHS", "off"):
            fit(model, held, recipe)

    def precise(tf32: bool):
        with tensor_float(tf32):
            fit(model, held, replace(recipe, amp=False))

    others = {"bf16, launched": launched, "TF32, recorded": partial(precise, True),
              "fp32, recorded": partial(precise, False)}
    for name, other in others.items():
        yield (f" against {name}", *(taken / thousands for taken in seconds(ours, other)), "s/1,000 images")


@row("share of the device's bf16 matrix rate that ResNet-18's training reaches")
def share(device) -> Found:
    """Dense products alone are counted, three times a forward pass; on a CPU on two threads both."""
    _, recipe, images = resnet18_step(device)
    held, model, side = images.to(device), build(resnet18, 0).to(device), 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    work = 3 * operations(resnet18, (3, 32, 32)) * len(images) * recipe.epochs / 1e12
    with threads(2):
        a @ b
        ours, theirs = seconds(partial(fit, model, held, recipe), lambda: [a @ b for _ in range(20)])
    yield f", {side}^3", ours / work, theirs / (20 * 2 * side**3 / 1e12), "s/TFLOP"


# -- Many models ------------------------------------------------------------------------------------------------------


@row("subset models: 32 stacked against one by one", on="cpu")
def stacked_models(device) -> Found:
    p, train = LAPTOP, digits()
    subset = train[torch.arange(round(p.fraction * len(train)))]
    together, alone = seconds(lambda: bank(p.make_model, train, p.recipe, range(32), fraction=p.fraction),
                              lambda: [fit(p.make_model, subset, p.recipe) for _ in range(8)])
    yield "", together / 32, alone / 8, "s/model"


@row("memorization of 1,297 digits by 128 models, against 15 s", on="cpu")
def digits_memorization(device) -> Found:
    start = time.perf_counter()
    for k in range(0, 128, 32):
        bank(LAPTOP.make_model, digits(), LAPTOP.recipe, range(k, k + 32), fraction=LAPTOP.fraction)
    yield "", time.perf_counter() - start, 15.0, "s"


SMALL = partial(small_resnet, shape=(3, 16, 16), classes=4, widths=(8, 16, 32))
SHORT = Recipe(epochs=3, lr=0.1, batch_size=64, amp=True)


def part_of_a_bank(numbers: range) -> None:
    bank(SMALL, photographs(2000, 16, 4), SHORT, numbers)


@row("subset models of a small ResNet on two cores", on="cpu")
def two_cores(device) -> Found:
    """Processes that already run, of one thread each; the plain loop has two threads and two workers. Both train on a
    part and predict the whole."""
    whole = photographs(2000, 16, 4)
    train, everything = (usual_loader(part, SHORT.batch_size, augmented=False)
                         for part in (whole[torch.arange(1400)], whole))

    def ours():
        for _ in engine.run(part_of_a_bank, [(range(2),), (range(2, 4),)], workers=2):
            pass

    @torch.no_grad()
    def predicted(model):
        return [model(x).argmax(1) for x, _ in everything]

    ours()
    with threads(2):
        taken, theirs = seconds(ours, lambda: predicted(usual_loop(SMALL, train, SHORT, device)))
    yield ": the estimator against the plain loop", taken / 4, theirs, "s/model of 3 epochs"


STEPS = 69                                                   # of an epoch of a subset model: 35,000 images of CIFAR-10


def marginal(way: Callable[[int], object], *, epochs: tuple[int, int] = (4, 12)) -> float:
    """Seconds of one epoch: what more epochs take beyond few, so that setting up and recording do not count."""
    few, many = seconds(*(partial(way, n) for n in epochs), rounds=2)
    return (many - few) / (epochs[1] - epochs[0])


@row("subset models on a GPU", on="cuda")
def at_once(device) -> Found:
    """ResNet-18 as torchvision has it, 69 steps of 512 images an epoch, one model in each lane."""
    p, images = CIFAR10.scored_by, photographs(STEPS * 512)
    held = images.to(device)

    def ours(models: int, epochs: int):
        fit_many(p.make_model, held, [torch.arange(len(images))] * models, replace(p.recipe, epochs=epochs),
                 seeds=list(range(models)), at_once=models)

    few, counts = 20, (1, 2, 4, 8, 16)                       # steps of the plain loop: it takes longer for each
    loader = usual_loader(photographs(few * 512), 512, augmented=False)
    taken = [marginal(partial(ours, count)) / count for count in counts]
    theirs = STEPS / few * marginal(
        lambda epochs: usual_loop(p.make_model, loader, replace(p.recipe, epochs=epochs), device), epochs=(1, 2))
    for count, found in zip(counts[1:], taken[1:], strict=True):
        yield f": {count} at once against one at a time", found, taken[0], "s/epoch of a model"
    yield ": the best of these against the plain loop", min(taken), theirs, "s/epoch of a model"


@row("memorization of the digits: two workers against one", on="cpu")
def two_and_one(device) -> Found:
    """These are processes that already run, with torch and the data loaded: each has estimated before."""
    def estimate(workers: int) -> None:
        with tempfile.TemporaryDirectory() as home:
            study = Study(replace(LAPTOP, workers=workers), quiet=True, home=home)
            assert len(study.score.values) == len(study.train)

    for workers in (2, 1):
        estimate(workers)
    yield "", *seconds(partial(estimate, 2), partial(estimate, 1)), "s"


# -- How cost grows: one is linear -------------------------------------------------------------------------------------


def exponent(once: float, twice: float, four_times: float) -> float:
    """Slope of the logarithm of time over that of a number, from the times for once, twice and four times as many."""
    return statistics.linear_regression((0, 1, 2), [math.log2(t) for t in (once, twice, four_times)]).slope


@row("exponent of the cost of training")
def linear(device) -> Found:
    if device.type == "cuda":
        make_model, recipe, scale, p = resnet18, Recipe(epochs=8, batch_size=256, amp=True), 5120, CIFAR10.scored_by
        images, some = photographs(STEPS * 512).to(device), [torch.arange(STEPS * 512)] * 8
        models = {"subset models": lambda k, epochs: fit_many(
            p.make_model, images, k * some, replace(p.recipe, epochs=epochs), seeds=list(range(8 * k)))}
    else:
        make_model, recipe, scale = LAPTOP.make_model, replace(LAPTOP.recipe, epochs=5), len(digits())
        images = sum([digits()] * 3, start=digits())
        models = {"subset models": lambda k: [bank(make_model, digits(), recipe, range(32)) for _ in range(k)]}
    ways = {"examples": lambda k: fit(make_model, images[:k * scale], recipe)} | models
    for what, way in ways.items():
        if what == "subset models" and device.type == "cuda":
            times = [marginal(partial(way, k)) for k in (1, 2, 4)]
        else:
            times = seconds(*(partial(way, k) for k in (1, 2, 4)))
        yield f" in the number of {what}, against 1", exponent(*times), 1.0, "exponent"


# -- Unlearning -------------------------------------------------------------------------------------------------------


@row("an epoch of")
def epochs(device) -> Found:
    """Of each algorithm: on a CPU of an MLP on digits, on a GPU of a ResNet-18 on 20,000 images."""
    p, train = (CIFAR10, photographs(20_000).to(device)) if device.type == "cuda" else (LAPTOP, digits())
    model = build(p.make_model, 0).to(device) if device.type == "cuda" else trained_mlp()
    forget, retain = train.split(torch.arange(len(train)) < len(train) // 13)
    recipe = replace(p.recipe, epochs=1)
    for name, algorithm in p.algorithms.items():
        one: Algorithm | SalUn = vary(algorithm, epochs=1, lr=0.001)
        taken, epoch = seconds(partial(one, model, forget, retain), partial(fit, model, retain, recipe))
        yield f" {name} against a training epoch", taken, epoch, "s"


@row("influence, ", on="cpu")
def influence(device) -> Found:
    train, p, method = digits(), LAPTOP, InfluenceUnlearning()
    forget, retain = train.split(torch.arange(len(train)) < p.set_size)
    network = fit(partial(small_resnet, shape=(1, 8, 8), widths=(16, 32)), train, replace(p.recipe, epochs=1))
    for name, model in (("MLP", trained_mlp()), ("small ResNet", network)):
        theirs = partial(one_at_a_time, model, forget, retain, method.alpha, method.samples, method.n)
        expected = theirs()
        found = torch.cat([w.detach().flatten() for w in method(model, forget, retain).parameters()])
        assert (found - expected).norm() < 1e-4 * expected.norm()
        yield f"{name}: against one example at a time", *seconds(partial(method, model, forget, retain), theirs), "s"


def class_methods() -> dict[str, Algorithm | SSD]:
    """Gradient methods at one epoch, the least that descent can do, with several rates of each."""
    common = dict(epochs=1, batch_size=32, clip=5.0, schedule="linear")
    rates = {
        "NegGrad": (NegGrad, (0.003, 0.01, 0.03, 0.1)), "NegGrad+": (NegGradPlus, (0.03, 0.1)),
        "fine-tuning": (Finetune, (0.05, 0.1, 0.2)), "random labels": (RandomLabel, (0.05, 0.1, 0.2)),
        "SCRUB": (partial(Scrub, max_steps=1), (0.01, 0.03, 0.1)), "UNSIR": (UNSIR, (0.05, 0.1, 0.2)),
        "CF-1": (LastLayers, (0.1, 0.4)), "EU-1": (partial(LastLayers, exact=True), (0.1, 0.4)),
    }
    tried = {f"{name}, lr {lr}": make(lr=lr, **common) for name, (make, values) in rates.items() for lr in values}
    return tried | {f"SSD, alpha {alpha}": SSD(alpha=alpha) for alpha in (1.0, 3.0, 10.0)}


def forgetting(algorithm, model, train: Examples, test: Examples) -> tuple[float, float]:
    """Test accuracy on the forgotten class and on the others, means over ten classes forgotten in turn."""
    found = [class_accuracies(algorithm(model, *train.split_classes(c)), test, [c]) for c in range(10)]
    return tuple(sum(accuracy[part] for accuracy in found) / 10 for part in ("forget", "retain"))


@row("a digit forgotten: against ", on="cpu")
def class_unlearning(device) -> Found:
    clean, unseen = load("digits", noise=0, flips=0)
    network, projection = fit(partial(small_resnet, shape=(1, 8, 8)), clean, LAPTOP.recipe), ClassProjection(
        30.0, 3.0, 25)
    gone, kept = forgetting(projection, network, clean, unseen)
    print(f"class projection: accuracy {gone:.3f} on a forgotten digit, {kept:.3f} on the others")
    sets = clean.split_classes(3)
    ours, methods = flops(projection, network, *sets), class_methods()
    cost = {name: flops(method, network, *sets) for name, method in methods.items()}
    equal = [name for name in sorted(cost, key=cost.get)
             for f, r in [forgetting(methods[name], network, clean, unseen)] if f <= gone + 0.005 and r >= kept - 0.005]
    whole = [name for name in equal if not isinstance(methods[name], LastLayers)]
    for name, least in ((equal[0], "the cheapest as good"), (whole[0], "the cheapest for all layers")):
        what, theirs = f"{least}: {name}", methods[name]
        yield what, ours / 1e9, cost[name] / 1e9, "GFLOP"
        yield what, *seconds(lambda: projection(network, *sets), partial(theirs, network, *sets), rounds=9), "s"


@row("training with four proxies against training alone", on="cpu")
def proxies(device) -> Found:
    p, train = LAPTOP, digits()
    yield "", *seconds(lambda: fit(p.make_model, train, p.recipe, trace=Trace(train)),
                       lambda: fit(p.make_model, train, p.recipe), rounds=9), "s/model"


@row("Top-K's choice in a ResNet-18 against one gradient pass", on="cpu")
def top_k(device) -> Found:
    model, photos = build(resnet18, 0).eval(), photographs(32)
    floats = Examples(photos.x / 255, photos.y)

    def gradient_pass():
        F.cross_entropy(model(floats.x), floats.y).backward()
        model.zero_grad()

    yield "", *seconds(lambda: TopK().select(model, floats, floats), gradient_pass), "s/32 images"


@row("SPD-GAN on 390 digits, reference included, against 60 s", on="cpu")
def spdgan(device) -> Found:
    model, train = trained_mlp(), digits()
    forget, retain = train.split(torch.arange(len(train)) < 390)
    start = time.perf_counter()
    SPDGAN()(model, fit(LAPTOP.make_model, retain, LAPTOP.recipe, seed=1), forget, quiet=True)
    yield "", time.perf_counter() - start, 60.0, "s"


# -- A study ----------------------------------------------------------------------------------------------------------


@row("a model read back from disk, against 5 ms", on="cpu")
def read_back(device) -> Found:
    with tempfile.TemporaryDirectory() as home:
        study = Study(LAPTOP, quiet=True, home=home)
        study.originals([0])
        [taken] = seconds(lambda: made.original(study, 0))
    yield "", taken, 0.005, "s"


@row("10,000 cells listed by make status, against 3 s", on="cpu")
def status(device) -> Found:
    with_salun = RUM(Shuffled(3), (Keep(), *list(LAPTOP.algorithms.values())[-2:]))
    with tempfile.TemporaryDirectory() as home:
        study = Study(LAPTOP, quiet=True, home=home)
        chosen = ForgetSet("first", study.train.index[:LAPTOP.set_size])
        for seed in range(10_000):                           # as they are on disk, but not forced to it one by one
            who = made.run.identity(study, chosen, with_salun, seed, True)
            path = study.store.path("run", digest_of(who))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"identity": who, "values": dict.fromkeys("abcdefghijkl", 0.1), "seconds": 1.0}))
        [taken] = seconds(lambda: survey(study.store.folder.parent))
    yield "", taken, 3.0, "s"


@row("the plan of the smoke study against what it took", on="cpu")
def planned(device) -> Found:
    """What the notebooks ask for, twice: the first time imports, the second counts."""
    p = replace(SMOKE, device="cpu")
    plan = Plan(p, measured(p), 1)
    for _ in range(2):
        with tempfile.TemporaryDirectory() as home:
            study = Study(p, quiet=True, home=home)
            for name in plan.notebooks:
                ask(study, name)
            taken = sum(study.asked.values())
    yield "", 3600 * plan.hours, taken, "s of one core"


# -- The table --------------------------------------------------------------------------------------------------------


def write(path: Path, title: str, rows: list[tuple], origin: dict) -> None:
    """Put what was found in place of what this row said before; the table stays in the order of the list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = pd.DataFrame([(title + rest, ours, theirs, unit, theirs / ours) for rest, ours, theirs, unit in rows],
                       columns=["what", "ours", "compared with", "unit", "ratio"])
    old = pd.read_csv(path) if path.exists() else new[:0]
    titles = [next((k for k, known in enumerate(ROWS) if what.startswith(known)), None) for what in old["what"]]
    own = list(ROWS).index(title)
    kept = {place: old[[at == place for at in titles]] for place in set(titles) - {own, None}} | {own: new}
    pd.concat([kept[place] for place in sorted(kept)]).to_csv(path, index=False, float_format="%.4g")
    about = path.with_suffix(".json")
    rows_from = json.loads(about.read_text()).get("rows", {}) if about.exists() else {}
    commit = f"{origin['commit']}{', changed since' if origin['dirty'] else ''}"
    about.write_text(json.dumps({"machine": origin["machine"], "device": origin["name"], "versions": origin["versions"],
                                 "rows": {known: {**rows_from, title: commit}[known] for known in ROWS
                                          if known in {**rows_from, title: commit}}}, indent=1) + "\n")


def main(wanted: str = "") -> None:
    device, start = pick(), time.perf_counter()
    torch.set_num_threads(1)
    chosen = [title for title, (_, on) in ROWS.items() if wanted.lower() in title.lower() and device.type in on.split()]
    if not chosen:
        raise ValueError(f"no row on {device.type} has {wanted!r} in its title; there are: "
                         + "; ".join(title for title, (_, on) in ROWS.items() if device.type in on.split()))
    path = find_home() / "figures" / "bench" / f"{device.type}.csv"
    origin = Study(LAPTOP, quiet=True).provenance()
    origin["name"] = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    for title in chosen:
        if device.type == "cuda" and time.perf_counter() - start > LIMIT:
            print(f"left out after {LIMIT} s: {title}; go on with make bench ROWS={title!r}")
            continue
        found = []
        for rest, ours, theirs, unit in ROWS[title][0](device):
            print(f"{title + rest:<100} {ours:9.4f} {theirs:9.4f} {unit:<18} {theirs / ours:6.2f}x", flush=True)
            found.append((rest, ours, theirs, unit))
            write(path, title, found, origin)


if __name__ == "__main__":
    import bench  # by this name, and not as __main__, workers find its functions

    try:
        bench.main(*sys.argv[1:])
    except (ValueError, FileNotFoundError) as problem:
        sys.exit(f"{problem}")
