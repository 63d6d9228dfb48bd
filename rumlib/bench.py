"""What the project claims about speed, measured: `make bench`.

Each line compares two ways of doing the same work, in one process on one thread, in turns; what counts is the ratio.
The table goes to figures/bench/.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial

import pandas as pd
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from rumlib.algorithms import (
    SSD,
    UNSIR,
    Algorithm,
    ClassProjection,
    Finetune,
    InfluenceUnlearning,
    Keep,
    LastLayers,
    NegGrad,
    NegGradPlus,
    RandomLabel,
    SalUn,
    Scrub,
    TopK,
)
from rumlib.cells import digest_of
from rumlib.data import Examples, load
from rumlib.metrics import class_accuracies, flops
from rumlib.models import build, resnet18, small_resnet
from rumlib.profiles import LAPTOP, Profile
from rumlib.rum import RUM, Shuffled
from rumlib.scores import Trace, bank
from rumlib.spdgan import SPDGAN
from rumlib.status import survey
from rumlib.study import ForgetSet, Study, find_home, vary
from rumlib.train import Recipe, fit, predict


def seconds(*ways: Callable[[], object], rounds: int = 3) -> list[float]:
    """Median wall time of each, taken in turns so that a busy machine slows all alike."""
    times = [[] for _ in ways]
    for _ in range(rounds):
        for way, taken in zip(ways, times, strict=True):
            start = time.perf_counter()
            way()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def plain(make_model, examples, recipe: Recipe) -> None:
    """The usual loop: a DataLoader, torch.optim, the loss read every step."""
    model = build(make_model, 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.lr, momentum=recipe.momentum,
                                weight_decay=recipe.weight_decay)
    total = 0.0
    for _ in range(recipe.epochs):
        for x, y in DataLoader(TensorDataset(examples.x, examples.y), batch_size=recipe.batch_size, shuffle=True):
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()


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


def photographs(n: int) -> tuple[torch.nn.Module, Examples]:
    """A ResNet-18 of 11 million weights, untrained, and n random images for it."""
    x = torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return build(resnet18, 0).eval(), Examples(x, torch.arange(n) % 10)


def gradient_pass(model: torch.nn.Module, examples: Examples) -> None:
    """The mean gradient of all weights, in one batch."""
    F.cross_entropy(model(examples.x), examples.y).backward()
    model.zero_grad()


def high_water(select: bool) -> int:
    """Bytes that this process held at most, after it asked a ResNet-18 about two images or also chose among its
    weights."""
    torch.set_num_threads(1)
    model, examples = photographs(2)
    predict(model, examples)
    if select:
        TopK().select(model, examples, examples)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def selection_memory() -> float:
    """What Top-K takes to choose among the weights of a ResNet-18, gradients included, in units of these weights."""
    spawn = multiprocessing.get_context("spawn")
    found = []
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"           # glibc: what is freed is given back at once
    for select in (False, True):                             # a process each: the mark never falls
        with ProcessPoolExecutor(1, mp_context=spawn) as process:
            found.append(process.submit(high_water, select).result())
    del os.environ["MALLOC_MMAP_THRESHOLD_"]
    return (found[1] - found[0]) / sum(4 * p.numel() for p in build(resnet18, 0).parameters())


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


def two_and_one(profile: Profile) -> list[float]:
    """Seconds that the memorization score of a study takes with two workers and with one. These are processes that
    already run, with torch and the data loaded: each has estimated before."""
    def estimate(workers: int) -> None:
        with tempfile.TemporaryDirectory() as home:
            study = Study(replace(profile, workers=workers), quiet=True, home=home)
            assert len(study.score.values) == len(study.train)

    for workers in (2, 1):
        estimate(workers)
    return seconds(partial(estimate, 2), partial(estimate, 1))


def main() -> None:
    torch.set_num_threads(1)
    memory = selection_memory()                              # first: a child's mark starts at that of its parent
    p = LAPTOP
    train, _ = load(p.data, **p.options)
    rows = []

    def row(what: str, ours: float, theirs: float, unit: str) -> None:
        rows.append({"what": what, "ours": ours, "compared with": theirs, "unit": unit, "ratio": theirs / ours})
        print(f"{what:<78} {ours:9.4f} {theirs:9.4f} {unit:<14} {theirs / ours:6.2f}x", flush=True)

    ours, theirs = seconds(lambda: fit(p.make_model, train, p.recipe), lambda: plain(p.make_model, train, p.recipe))
    row("one MLP: our loop against a DataLoader loop", ours, theirs, "s/model")

    estimate = partial(bank, p.make_model, train, p.recipe, fraction=p.fraction)
    subset = train[torch.arange(round(p.fraction * len(train)))]
    together, alone = seconds(lambda: estimate(range(32)),
                              lambda: [fit(p.make_model, subset, p.recipe) for _ in range(8)])
    row("subset models: 32 stacked against one by one", together / 32, alone / 8, "s/model")
    start = time.perf_counter()
    for k in range(0, 128, 32):
        estimate(range(k, k + 32))
    row("memorization of 1,297 digits by 128 models, against 15 s", time.perf_counter() - start, 15.0, "s")

    model = fit(p.make_model, train, p.recipe)
    mask = torch.zeros(len(train), dtype=torch.bool)
    mask[:p.set_size] = True
    forget, retain = train.split(mask)
    [epoch] = seconds(lambda: fit(model, retain, replace(p.recipe, epochs=1)))
    for name, algorithm in p.algorithms.items():
        one: Algorithm | SalUn = vary(algorithm, epochs=1, lr=0.01)
        [taken] = seconds(lambda one=one: one(model, forget, retain))
        row(f"an epoch of {name} against a training epoch", taken, epoch, "s")

    network = fit(partial(small_resnet, shape=(1, 8, 8), widths=(16, 32)), train, replace(p.recipe, epochs=1))
    influence = InfluenceUnlearning()
    for name, net in (("MLP", model), ("small ResNet", network)):
        expected = one_at_a_time(net, forget, retain, influence.alpha, influence.samples, influence.n)
        found = torch.cat([w.detach().flatten() for w in influence(net, forget, retain).parameters()])
        assert (found - expected).norm() < 1e-4 * expected.norm()
        ours, theirs = seconds(lambda net=net: influence(net, forget, retain),
                               lambda net=net: one_at_a_time(net, forget, retain, influence.alpha, influence.samples,
                                                             influence.n))
        row(f"influence, {name}: against one example at a time", ours, theirs, "s")

    clean, unseen = load("digits", noise=0, flips=0)
    network, projection = fit(partial(small_resnet, shape=(1, 8, 8)), clean, p.recipe), ClassProjection(30.0, 3.0, 25)
    gone, kept = forgetting(projection, network, clean, unseen)
    print(f"class projection: accuracy {gone:.3f} on a forgotten digit, {kept:.3f} on the others")
    sets = clean.split_classes(3)
    ours, methods = flops(projection, network, *sets), class_methods()
    cost = {name: flops(method, network, *sets) for name, method in methods.items()}
    equal = [name for name in sorted(cost, key=cost.get)
             for f, r in [forgetting(methods[name], network, clean, unseen)] if f <= gone + 0.005 and r >= kept - 0.005]
    whole = [name for name in equal if not isinstance(methods[name], LastLayers)]
    for name, least in ((equal[0], "the cheapest as good"), (whole[0], "the cheapest for all layers")):
        what, theirs = f"a digit forgotten: against {least}: {name}", methods[name]
        row(what, ours / 1e9, cost[name] / 1e9, "GFLOP")
        row(what, *seconds(lambda: projection(network, *sets), partial(theirs, network, *sets), rounds=9), "s")

    watched, plainly = seconds(lambda: fit(p.make_model, train, p.recipe, trace=Trace(train)),
                               lambda: fit(p.make_model, train, p.recipe), rounds=9)
    row("training with four proxies against training alone", watched, plainly, "s/model")

    large, photos = photographs(32)
    ours, theirs = seconds(lambda: TopK().select(large, photos, photos), lambda: gradient_pass(large, photos))
    row("Top-K's choice in a ResNet-18 against one gradient pass", ours, theirs, "s/32 images")
    row("its peak memory against three times the weights", memory, 3.0, "sets of weights")

    forget, retain = train.split(torch.arange(len(train)) < 390)
    start = time.perf_counter()
    SPDGAN()(model, fit(p.make_model, retain, p.recipe, seed=1), forget, quiet=True)
    row("SPD-GAN on 390 digits, reference included, against 60 s", time.perf_counter() - start, 60.0, "s")

    ours, theirs = two_and_one(p)
    row("memorization of the digits: two workers against one", ours, theirs, "s")

    with tempfile.TemporaryDirectory() as home:
        study = Study(p, quiet=True, home=home)
        study.originals([0])
        [taken] = seconds(lambda: study.original(0))
        row("a model read back from disk, against 5 ms", taken, 0.005, "s")
        with_salun = RUM(Shuffled(3), (Keep(), *list(p.algorithms.values())[-2:]))
        chosen = ForgetSet("first", train.index[:p.set_size])
        for seed in range(10_000):                           # as they are on disk, but not forced to it one by one
            who = Study.run.identity(study, chosen, with_salun, seed, True)
            path = study.store.path("run", digest_of(who))
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps({"identity": who, "values": dict.fromkeys("abcdefghijkl", 0.1), "seconds": 1.0}))
        [taken] = seconds(lambda: survey(study))
        row("10,000 cells listed by make status, against 3 s", taken, 3.0, "s")

    folder = find_home() / "figures" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(folder / "cpu.csv", index=False, float_format="%.4g")
    (folder / "cpu.json").write_text(json.dumps(
        {"machine": f"{platform.machine()}, one thread", "torch": torch.__version__}, indent=1) + "\n")


if __name__ == "__main__":
    main()
