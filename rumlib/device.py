"""Which device computes. Random draws stay on the CPU, so that every device sees the same batches.

    pick()                                                   # what RUM_DEVICE names; else a GPU if there is one
    pick("cuda:1")                                           # that one, or an error
    send(x, device)                                          # without waiting for what the device is doing
    finished()                                               # wait: a clock that is read now has measured the work
    with torch.random.fork_rng(cuda_rng_devices()): ...      # leave the random state as it was, that of GPUs too
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

# Read when CUDA starts, so set before: a queue for each stream, or else those of many models wait for each other; and
# the workspaces with which cuBLAS gives the same result again where several streams use it.
os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def pick(name: str = "auto") -> torch.device:
    """The device of that name, "cpu", "cuda", "cuda:1", "mps"; "auto": what the environment variable RUM_DEVICE names,
    or else a GPU if there is one, or else the CPU. Raises ValueError for one that is not there.

    On a CUDA device numbers must come out the same again, and those of fp32 must be those of fp32: cuDNN then chooses
    among deterministic algorithms, by rule and not by timing, and TF32 is off (training that may round uses bf16).
    """
    asked = os.environ.get("RUM_DEVICE", "auto") if name == "auto" else name
    count = {"cuda": torch.cuda.device_count, "mps": torch.mps.device_count, "cpu": torch.cpu.device_count}
    if asked == "auto":
        asked = next(kind for kind in count if count[kind]())
    kind, _, number = asked.partition(":")
    if kind not in count or (number and not number.isdecimal()):
        raise ValueError(f"unknown device {asked!r}; choose one of auto, {', '.join(count)}, or cuda:<number>")
    if int(number or 0) >= count[kind]():
        raise ValueError(f"there is no device {asked!r}: torch {torch.__version__} finds {count[kind]()} of that kind. "
                         f"Set RUM_DEVICE, or `device` of the profile, to auto or cpu, or install a torch for it")
    if kind == "cuda":
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device(asked)


def send(x: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. To a GPU it goes from pinned memory: else the CPU would wait until all that was asked
    before has been done."""
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def cuda_rng_devices() -> range:
    """The CUDA devices that have a random state. Where CUDA has not been started, it is not started for that."""
    return range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)


def finished() -> None:
    """Wait until a GPU has done what it was asked to."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


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


def plain_name(name: str, what: str) -> str:
    """The name, if a file of it stays in its folder. Raises ValueError for a path, an empty or a hidden name."""
    if not isinstance(name, str) or not name.strip() or name.startswith(".") or set(name) & set("/\\\0"):
        raise ValueError(f"the name of {what} becomes a file and cannot be {name!r}: no / or \\, no dot in front, not "
                         f"empty")
    return name
