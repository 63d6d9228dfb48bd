"""Where the work runs. Nothing else in rumlib knows.

    for result in run(function, tasks): ...                  # results in any order, as (position, result)

RUM_ENGINE chooses: "loky" (default, one process per core), "serial", or "dask": the cluster whose scheduler
DASK_SCHEDULER_ADDRESS names, or else one of as many processes on this machine. Each process uses one torch thread.

On a SLURM cluster, with rumlib and the data where all nodes find them (extra `dask`), keep open in one Python:

    cluster = dask_jobqueue.SLURMCluster(cores=1, processes=1, memory="8GB", walltime="04:00:00",        # and for GPUs:
        job_extra_directives=["--gres=gpu:1"], worker_extra_args=["--resources", "GPU=1"])
    cluster.scale(jobs=16)
    cluster.scheduler_address                                # tcp://...

and run in another: RUM_ENGINE=dask DASK_SCHEDULER_ADDRESS=tcp://... make paper. Tasks whose models are on a GPU go to
workers that offer one (``GPU=1``), one at a time each. A script of your own that starts Dask processes on this machine
needs the usual ``if __name__ == "__main__":``.
"""

from __future__ import annotations

import asyncio
import os
import pkgutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from joblib import Parallel, delayed, effective_n_jobs, parallel_config
from joblib.externals.loky import BrokenProcessPool

from rumlib.lab.codehash import PACKAGE
from rumlib.lab.settings import engine

CONNECT, ANSWER = 5, 20                                      # seconds; to import torch may take ten
CODE = "rumlib.lab.codehash:PACKAGE.whole"                   # what all processes must have in common


def run(function: Callable, tasks: list[tuple], *, workers: int = -1, gpu: bool = False,
        again: Callable[[int], None] = lambda tasks: None) -> Iterator[tuple[int, object]]:
    """Yield (k, function(*tasks[k])) as they finish; `workers` -1 is one per core, `gpu` says that each needs a GPU:
    then, but for Dask, all run in this process, which has one.

    Where a worker is killed, what it had not finished is tried again; `again` is told how many tasks that are. Raises
    RuntimeError, with the remedy, if that happens repeatedly, and before anything is sent if the processes of a cluster
    do not run this very code.
    """
    name = engine()
    if name == "dask" and tasks:
        yield from _on_dask(function, tasks, workers, gpu, again)
    elif name == "serial" or gpu or workers == 1 or len(tasks) == 1:
        yield from (_one(function, k, task) for k, task in enumerate(tasks))
        if gpu:
            torch.cuda.empty_cache()                         # for other processes: notebooks, whose turn is next
    else:
        yield from _on_loky(function, tasks, workers, again)


def _one(function: Callable, k: int, task: tuple) -> tuple[int, object]:
    torch.set_num_threads(1)
    return k, function(*task)


def _on_loky(function: Callable, tasks: list[tuple], workers: int, again: Callable) -> Iterator[tuple[int, object]]:
    left = dict(enumerate(tasks))
    for chance in (1, 2):
        try:
            with parallel_config(backend="loky", n_jobs=workers, inner_max_num_threads=1):
                calls = [delayed(_one)(function, k, task) for k, task in left.items()]
                for k, result in Parallel(return_as="generator_unordered")(calls):
                    del left[k]
                    yield k, result
            return
        except BrokenProcessPool as problem:
            if chance == 2:
                raise RuntimeError(_given_up("twice", len(left), len(tasks), workers)) from problem
            warnings.warn(f"a worker was killed; {len(left)} of {len(tasks)} tasks are tried once more", stacklevel=3)
            again(len(left))


def _given_up(often: str, left: int, tasks: int, workers: int) -> str:
    return (f"a worker was killed {often} (the usual reason is want of memory); {left} of {tasks} tasks are left. What "
            f"is finished is kept: run again with fewer processes (`workers` of the profile, now {workers}; -1 is one "
            f"per core) or RUM_ENGINE=serial")


# -- Dask -------------------------------------------------------------------------------------------------------------


def _on_dask(function: Callable, tasks: list[tuple], workers: int, gpu: bool,
             again: Callable) -> Iterator[tuple[int, object]]:
    address = os.environ.get("DASK_SCHEDULER_ADDRESS")
    client = _client(address, None if address else effective_n_jobs(workers))
    check_same_code(client, gpu)
    from distributed import CancelledError, KilledWorker, as_completed

    futures = [client.submit(_one, function, k, task, pure=False, resources={"GPU": 1} if gpu else None)
               for k, task in enumerate(tasks)]
    left = len(tasks)
    for future in as_completed(futures, loop=client.loop):
        try:
            k, result = future.result()
        except KilledWorker as problem:
            raise RuntimeError(_given_up("again and again", left, len(tasks), workers)) from problem
        except CancelledError as problem:
            raise RuntimeError(f"the scheduler at {client.scheduler.address} was lost; {left} of {len(tasks)} tasks "
                               f"are left. What is finished is kept: start a scheduler and run again") from problem
        if client.run_on_scheduler(_lost, future.key):
            warnings.warn("a worker was killed; its task was run again", stacklevel=3)
            again(1)
        left -= 1
        futures[k] = None                                    # the cluster need not hold the result any longer
        yield k, result


def share() -> None:
    """Let all processes that are started from here on send their work to one cluster, if it is Dask's."""
    if engine() == "dask" and "DASK_SCHEDULER_ADDRESS" not in os.environ:
        os.environ["DASK_SCHEDULER_ADDRESS"] = _client(None, effective_n_jobs(-1)).scheduler.address


# (address, workers) -> the connection to the scheduler there, or to a cluster of so many workers here: one for all runs
# of this process, as long as it lives, since to make one takes seconds.
_CLIENTS: dict[tuple, object] = {}


def _client(address: str | None, workers: int | None):
    known = _CLIENTS.get((address, workers))
    if known is None or known.status == "closed":            # where a scheduler has gone there may be a new one
        known = _CLIENTS[address, workers] = _connect(address, workers)
    return known


def _connect(address: str | None, workers: int | None):
    try:
        from distributed import Client, LocalCluster, Security, connect
    except ImportError as problem:
        raise ImportError('RUM_ENGINE=dask needs Dask: pip install "rumlib[dask]"') from problem

    if address is None:                                      # as processes of loky: no limit of memory, no web page
        cluster = LocalCluster(n_workers=workers, threads_per_worker=1, memory_limit=0, dashboard_address=None)
        return Client(cluster, set_as_default=False)

    async def knock():                                       # a Client waits for ever where something else listens
        comm = await asyncio.wait_for(connect(address, **Security().get_connection_args("client")), CONNECT)
        await comm.close()

    try:
        with ThreadPoolExecutor(1) as thread:                # in a notebook, this one runs an event loop already
            thread.submit(asyncio.run, knock()).result()
        return Client(address, timeout=CONNECT, set_as_default=False)
    except (OSError, ValueError, TypeError, MemoryError) as problem:     # the last two: no keys; a web server
        raise RuntimeError(f"no scheduler answers at DASK_SCHEDULER_ADDRESS={address!r} ({problem!r}); start one, or "
                           f"leave the variable unset for a cluster on this machine") from problem


def check_same_code(client, gpu: bool) -> None:
    """Raise RuntimeError, naming the remedy, unless scheduler and workers run the code that this process does (they
    would try for ever to import it) and the workers are as they should be."""
    async def check():
        try:                                                 # by a function that can be had without rumlib
            found = {"the scheduler": await client.run_on_scheduler(pkgutil.resolve_name, CODE)}
        except (ImportError, AttributeError) as problem:
            found = {"the scheduler": problem}
        if found["the scheduler"] == PACKAGE.whole:
            await client.wait_for_workers(1)
            codes = await client.run(pkgutil.resolve_name, CODE, on_error="return")
            found |= {f"worker {worker}": code for worker, code in codes.items()}
        for who, code in found.items():
            if code != PACKAGE.whole:
                raise RuntimeError(f"{who} of {address} runs another rumlib than this process, {code!r} and not "
                                   f"{PACKAGE.whole!r}: install the same version there and start it again")
        return await client.run_on_scheduler(_offers)

    address = client.scheduler.address
    try:
        offers = client.sync(check, callback_timeout=ANSWER)
    except TimeoutError as problem:
        raise RuntimeError(f"the scheduler at {address} has no worker that answers within {ANSWER} s: start workers "
                           f"(dask worker {address} --nthreads 1), or wait until the first one runs") from problem
    if max(offers)[0] > 1:
        raise RuntimeError(f"a worker of {address} has {max(offers)[0]} threads; start one --nthreads 1 for each core")
    if gpu and not any(gpus for _, gpus in offers):
        raise RuntimeError(f"the models are on a GPU, and no worker of {address} offers one: start workers with "
                           f"--resources GPU=1, one per GPU, each with its own CUDA_VISIBLE_DEVICES")


def _offers(dask_scheduler) -> list[tuple[int, float]]:
    """On the scheduler: (threads, GPUs) of each worker."""
    return [(worker.nthreads, worker.resources.get("GPU", 0)) for worker in dask_scheduler.workers.values()]


def _lost(key: str, dask_scheduler) -> int:
    """On the scheduler: how many workers were lost while they had that task."""
    return dask_scheduler.tasks[key].suspicious
