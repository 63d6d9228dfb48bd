"""Where the work runs. Nothing else in rumlib knows.

    for result in run(function, tasks): ...                  # results in any order, as (position, result)

RUM_ENGINE chooses: "loky" (default, one process per core) or "serial". Each process uses one torch thread: two busy
processes with two threads each can be a hundred times slower on two cores.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import torch
from joblib import Parallel, delayed, parallel_config

ENGINES = ("loky", "serial")


def engine() -> str:
    """The engine that RUM_ENGINE names. Raises ValueError for an unknown one."""
    name = os.environ.get("RUM_ENGINE", "loky")
    if name not in ENGINES:
        raise ValueError(f"unknown engine RUM_ENGINE={name!r}; choose one of {', '.join(ENGINES)}")
    return name


def run(function: Callable, tasks: list[tuple], *, workers: int = -1) -> Iterator[tuple[int, object]]:
    """Yield (k, function(*tasks[k])) as they finish; `workers` -1 is one per core."""
    name = engine()
    if name == "serial" or workers == 1 or len(tasks) == 1:
        yield from (_one(function, k, task) for k, task in enumerate(tasks))
        return
    with parallel_config(backend=name, n_jobs=workers, inner_max_num_threads=1):
        yield from Parallel(return_as="generator_unordered")(
            delayed(_one)(function, k, task) for k, task in enumerate(tasks))


def _one(function: Callable, k: int, task: tuple) -> tuple[int, object]:
    torch.set_num_threads(1)
    return k, function(*task)
