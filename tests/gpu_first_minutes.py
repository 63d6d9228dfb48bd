"""The first ten minutes on a GPU that this project has not run on yet.

    python tests/gpu_first_minutes.py                # every stage; `... lanes models`: some of them
    python tests/gpu_first_minutes.py --dry          # on the CPU at toy size: shows that the script runs

Each stage is a process of its own with a time limit, and prints what it measures as it comes: a stage that hangs or
fails costs no other one. Behind each number stands what was estimated for an H200 before any run. Of what is far from
it, `lanes` and `models` decide `AT_ONCE` (rumlib/ensemble.py) and `score_chunk` of the profile. Only then comes the
bench, and then the study.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from rumlib.data import Examples
from rumlib.device import finished, pick, tf32
from rumlib.ensemble import in_turns
from rumlib.graphs import WARM_UP, unrecorded
from rumlib.lab import profile, vary
from rumlib.metrics import svc_mia
from rumlib.models import build, resnet18, small_resnet
from rumlib.scores import bank, mmd
from rumlib.train import Recipe, fit, predict

HERE = Path(__file__).parent
DRY = "--dry" in sys.argv
STAGES: dict[str, tuple[Callable[[torch.device], None], int]] = {}


def stage(limit: int):
    """Put a function on the list, with the seconds that it may take."""
    def add(function: Callable[[torch.device], None]):
        STAGES[function.__name__] = function, limit
        return function
    return add


def size(full: int, toy: int) -> int:
    return toy if DRY else full


def network(**options):
    """The network of the `cifar10` profile, or a toy."""
    return partial(small_resnet, shape=(3, 32, 32), widths=(4, 8)) if DRY else partial(resnet18, **options)


def images(n: int, device: torch.device) -> Examples:
    random = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=random)
    return Examples(x, torch.arange(n) % 10).to(device)


def took(work: Callable[[], object]) -> tuple[float, object]:
    """Seconds, those of the device included, and what it gave."""
    finished()
    start = time.perf_counter()
    found = work()
    finished()
    return time.perf_counter() - start, found


def say(what: str, value: float, unit: str, expected: str) -> None:
    print(f"  {what:<58} {value:10.4g} {unit:<12} estimated: {expected}", flush=True)


def alike(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


# -- Stages -----------------------------------------------------------------------------------------------------------


@stage(60)
def machine(device: torch.device) -> None:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"  torch {torch.__version__}, CUDA {torch.version.cuda}, {name}, {os.cpu_count()} cores", flush=True)
    say("copy of 60,000 images to the device", took(lambda: images(size(60_000, 60), device))[0], "s", "below 1")
    n = size(8192, 64)
    a = torch.rand(n, n, device=device, dtype=torch.bfloat16)
    took(lambda: a @ a)
    seconds, _ = took(lambda: [a @ a for _ in range(20)])
    say(f"product of {n} x {n} in bf16", 20 * 2 * n ** 3 / seconds / 1e12, "TFLOP/s", "770 to 800")


@stage(180)
def tests(device: torch.device) -> None:
    # In a dry run two of the rehearsals that go without a GPU.
    chosen = ["-k", "a_loss_that_promises_nothing"] if DRY else ["-k", "cuda"]
    subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "test_device.py"),
                    *chosen], check=True)


@stage(120)
def steps(device: torch.device) -> None:
    """One training step, and whether recorded runs repeat bit by bit."""
    batch, count = size(256, 8), size(200, 6)
    data, model = images(batch * 4, device), network()
    epochs = max(1, count // 4)
    for what, amp, recorded, expected in (("recorded", True, True, "3.6 to 4.0"), ("launched", True, False, "11 to 14"),
                                          ("launched in fp32", False, False, "22 to 28")):
        def train(epochs: int, amp=amp, recorded=recorded):
            recipe = Recipe(epochs=epochs, lr=0.01, batch_size=batch, amp=amp)
            if recorded:
                return fit(model, data, recipe)
            with unrecorded():
                return fit(model, data, recipe)

        few = took(lambda train=train: train(WARM_UP))[0]    # initialisation, first calls and the recording
        more = took(lambda train=train: train(WARM_UP + epochs))[0]
        say(f"a step at batch {batch}, {what}", 1000 * (more - few) / (4 * epochs), "ms", expected)
        if recorded:
            print(f"  two runs are equal bit by bit: {alike(train(2 * WARM_UP), train(2 * WARM_UP))}", flush=True)


@stage(60)
def prediction(device: torch.device) -> None:
    data, model = images(size(60_000, 60), device), build(network(), 0).to(device).eval()
    predict(model, data[:size(2048, 20)])
    seconds, _ = took(lambda: predict(model, data))
    say("prediction of 60,000 as it is", seconds, "s", "0.4 to 0.6 with TF32, 2 to 4 without")
    with torch.no_grad(), tf32(device):
        rounded = torch.cat([model(x.float() / 255) for x in data.x.split(1024)])
    exact = torch.cat([model(x.float() / 255).detach() for x in data.x.split(1024)])
    say("predictions that TF32 changes", 100 * (exact.argmax(1) != rounded.argmax(1)).float().mean().item(), "%",
        "below 0.05")


@stage(240)
def lanes(device: torch.device) -> None:
    """Subset models side by side: milliseconds of a step of one model."""
    batch, most = size(512, 8), size(16, 2)
    data, model = images(batch * 8, device), network(stem="imagenet")
    tasks, one = [(torch.arange(len(data)), k) for k in range(most)], None
    for count in sorted({1, most} if DRY else {1, 4, 8, 12, 16}):
        def train(epochs: int, count=count):
            recipe = Recipe(epochs=epochs, lr=0.01, batch_size=batch, amp=True)
            return in_turns(model, data, tasks[:count], recipe, count)

        few, models = took(lambda train=train: train(1))
        more, _ = took(lambda train=train: train(size(13, 2)))
        expected = {1: "1.2 to 1.6", 4: "0.7 to 0.9", 8: "0.55 to 0.75"}.get(count, "0.5 to 0.7")
        step = 1000 * (more - few) / (8 * size(12, 1) * count)
        say(f"a step of one model, {count} side by side", step, "ms", expected)
        one = one or models[0]
        print(f"  the first model is the same bit by bit: {alike(one, models[0])}", flush=True)


@stage(60)
def kernels(device: torch.device) -> None:
    """What a launched step is made of."""
    batch = size(256, 8)
    data, model = images(batch * 5, device), build(network(), 0).to(device)
    kind = torch.profiler.ProfilerActivity.CUDA if device.type == "cuda" else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[kind]) as seen, unrecorded():
        fit(model, data, Recipe(epochs=1, lr=0.01, batch_size=batch, amp=True))
    table = seen.key_averages()
    say("kernels a step (of 5)", sum(row.count for row in table) / 5, "", "about 340")
    print(table.table(sort_by="self_device_time_total" if device.type == "cuda" else "self_cpu_time_total",
                      row_limit=8, max_name_column_width=50), flush=True)


@stage(150)
def models(device: torch.device) -> None:
    """Subset models of the profile `cifar10`, their parts timed apart."""
    p, count = profile("cifar10"), size(16, 2)
    data, made = images(size(50_000, 40), device), network(stem="imagenet")
    recipe = Recipe(epochs=1, lr=0.01, batch_size=8) if DRY else p.scored_by.recipe
    seconds, built = took(lambda: [build(made, k) for k in range(count)])
    say(f"initialisation of {count} models", seconds, "s", "2.5 to 3")
    whole = took(lambda: bank(made, data, recipe, range(count), fraction=p.fraction))[0]
    ask = took(lambda: [predict(model.to(device), data) for model in built])[0]
    say(f"training of {count} models", whole - seconds - ask, "s", "18 to 25")
    say(f"prediction by {count} models", ask, "s", "2 to 4")
    if device.type == "cuda":
        say("most memory held", torch.cuda.max_memory_allocated() / 1e9, "GB", "below 12")


@stage(180)
def algorithms(device: torch.device) -> None:
    """One epoch of each algorithm of the profile `cifar10`."""
    p, n = profile("cifar10"), size(50_000, 60)
    data, model = images(n, device), build(network(), 0).to(device).eval()
    forget, retain = data.split(torch.arange(n) < size(3000, 10))
    for name, algorithm in p.algorithms.items():
        one = vary(algorithm, epochs=1, lr=1e-4, **({"batch_size": 16} if DRY else {}))
        say(f"{name}, one epoch", took(lambda one=one: one(model, forget, retain, seed=0))[0], "s", "0.7 to 1.2")
    influence = p.further["Influence"][0]
    say("Influence", took(lambda: influence(model, forget, retain, seed=0))[0], "s", "5 to 10")


@stage(120)
def judging(device: torch.device) -> None:
    n, random = size(10_000, 60), torch.Generator().manual_seed(0)
    data = images(n, torch.device("cpu"))
    parts = [data[:n // 3], data[n // 3:2 * n // 3], data[2 * n // 3:]]
    model = build(network(), 0).to(device).eval()
    attack = took(lambda: svc_mia(model, *(part.to(device) for part in parts)))[0]
    say(f"an attack on {n:,} images", attack, "s", "6 to 7 on one core")
    a, b = (torch.randn(size(rows, 40), 512, generator=random).to(device) for rows in (47_000, 3_000))
    say("one mmd of 47,000 against 3,000", took(lambda: mmd(a, b))[0], "s", "below 0.5 on the device")


@stage(480)
def bench(device: torch.device) -> None:
    """The rows of the bench about training: 4 to 8 times as fast as fp32, 3 to 5 times as TF32."""
    if DRY:
        print("  left out: `make bench ROWS=\"ResNet-18's training\"`", flush=True)
    else:
        subprocess.run([sys.executable, str(HERE / "bench.py"), "ResNet-18's training"], check=True)


# -- One after the other ----------------------------------------------------------------------------------------------


def main(*names: str) -> int:
    """Run these stages, or all, each in a process of its own. Returns how many failed."""
    unknown = set(names) - STAGES.keys()
    if unknown:
        raise ValueError(f"there is no stage {', '.join(sorted(unknown))}; choose of {', '.join(STAGES)}")
    failed = []
    for name, (_, limit) in STAGES.items():
        if name in (names or STAGES):
            print(f"{name} (at most {limit} s)", flush=True)
            start = time.perf_counter()
            command = [sys.executable, __file__, "--stage", name, *["--dry"] * DRY]
            try:
                if subprocess.run(command, timeout=limit).returncode:
                    failed.append(name)
            except subprocess.TimeoutExpired:
                failed.append(f"{name} (time was up)")
            print(f"  {time.perf_counter() - start:.1f} s", flush=True)
    print(f"{len(failed)} stages failed: {', '.join(failed)}" if failed else "every stage ran to its end", flush=True)
    return len(failed)


if __name__ == "__main__":
    asked = [argument for argument in sys.argv[1:] if argument != "--dry"]
    chosen = pick("cpu" if DRY else "cuda")
    if asked[:1] == ["--stage"]:
        STAGES[asked[1]][0](chosen)
    else:
        sys.exit(main(*asked))
