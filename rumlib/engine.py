"""Where the work runs. Nothing else in rumlib knows.

    for result in run(function, tasks): ...                  # results in any order, as (position, result)

RUM_ENGINE chooses: "loky" (default, one process per core) or "serial". Each process uses one torch thread: two busy
processes with two threads each can be a hundred times slower on two cores.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator

import torch
from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky import BrokenProcessPool

ENGINES = ("loky", "serial")


def engine() -> str:
    """The engine that RUM_ENGINE names. Raises ValueError for an unknown one."""
    name = os.environ.get("RUM_ENGINE", "loky")
    if name not in ENGINES:
        raise ValueError(f"unknown engine RUM_ENGINE={name!r}; choose one of {', '.join(ENGINES)}")
    return name


def run(function: Callable, tasks: list[tuple], *, workers: int = -1,
        again: Callable[[int], None] = lambda tasks: None) -> Iterator[tuple[int, object]]:
    """Yield (k, function(*tasks[k])) as they finish; `workers` -1 is one per core.

    Where a worker is killed, what is left is tried once more; `again` is told how many tasks that are. Raises
    RuntimeError, with the remedy, if it happens a second time.
    """
    left, name = dict(enumerate(tasks)), engine()
    here = name == "serial" or workers == 1 or len(tasks) == 1
    for chance in (1, 2):
        try:
            for k, result in _run(function, list(left.items()), None if here else name, workers):
                del left[k]
                yield k, result
            return
        except BrokenProcessPool as problem:
            if chance == 2:
                raise RuntimeError(
                    f"a worker was killed twice (the usual reason is want of memory); {len(left)} of {len(tasks)} "
                    f"tasks are left. What is finished is kept: run again with fewer processes (`workers` of the "
                    f"profile, now {workers}; -1 is one per core) or RUM_ENGINE=serial") from problem
            warnings.warn(f"a worker was killed; {len(left)} of {len(tasks)} tasks are tried once more", stacklevel=2)
            again(len(left))


def _run(function: Callable, tasks: list[tuple], name: str | None, workers: int) -> Iterator[tuple[int, object]]:
    if name is None:
        yield from (_one(function, k, task) for k, task in tasks)
        return
    with parallel_config(backend=name, n_jobs=workers, inner_max_num_threads=1):
        yield from Parallel(return_as="generator_unordered")(delayed(_one)(function, k, task) for k, task in tasks)


def _one(function: Callable, k: int, task: tuple) -> tuple[int, object]:
    torch.set_num_threads(1)
    return k, function(*task)
