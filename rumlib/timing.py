"""How long a thing takes, measured so that a busy machine does not decide.

    ours, theirs = seconds(lambda: fit(...), lambda: plain(...))       # medians, taken in turns
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from rumlib.device import finished


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
