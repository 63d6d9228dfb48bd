"""How long a thing takes, measured so that a busy machine does not decide.

    ours, theirs = seconds(lambda: fit(...), lambda: plain(...))       # medians, taken in turns
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def seconds(*ways: Callable[[], object], rounds: int = 3) -> list[float]:
    """Median wall time of each, taken in turns so that a busy machine slows all alike; what they have started on a GPU
    is waited for."""
    times = [[] for _ in ways]
    for _ in range(rounds):
        for way, taken in zip(ways, times, strict=True):
            finish()
            start = time.perf_counter()
            way()
            finish()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def finish() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
