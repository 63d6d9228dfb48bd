"""What the project claims about speed, measured: `make bench`.

Each line compares two ways of doing the same work, in one process on one thread, in turns; what counts is the ratio.
The table goes to figures/bench/.
"""

from __future__ import annotations

import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pandas as pd
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from rumlib.algorithms import Algorithm, InfluenceUnlearning, Keep, SalUn
from rumlib.cells import digest_of
from rumlib.data import load
from rumlib.models import build, small_resnet
from rumlib.profiles import LAPTOP
from rumlib.rum import RUM, Shuffled
from rumlib.scores import Trace, bank
from rumlib.status import survey
from rumlib.study import ForgetSet, Study, find_home, vary
from rumlib.train import Recipe, fit


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


def main() -> None:
    torch.set_num_threads(1)
    p = LAPTOP
    train, _ = load(p.data, **p.options)
    rows = []

    def row(what: str, ours: float, theirs: float, unit: str) -> None:
        rows.append({"what": what, "ours": ours, "compared with": theirs, "unit": unit, "ratio": theirs / ours})
        print(f"{what:<62} {ours:9.4f} {theirs:9.4f} {unit:<14} {theirs / ours:6.2f}x", flush=True)

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

    watched, plainly = seconds(lambda: fit(p.make_model, train, p.recipe, trace=Trace(train)),
                               lambda: fit(p.make_model, train, p.recipe), rounds=9)
    row("training with four proxies against training alone", watched, plainly, "s/model")

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
