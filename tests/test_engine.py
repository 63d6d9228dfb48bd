"""The same work on every engine, and what a cluster has to fulfil before it is sent there."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from operator import add, truediv
from pathlib import Path

import pandas as pd
import pytest
from test_faults import TINY, Killed, finetune, open_study

import rumlib as rum
from rumlib.lab import engine

ROOT = Path(rum.__file__).parents[1]

pytestmark = pytest.mark.slow                              # clusters and killed workers: minutes on two busy cores


def study_rows(home, name, monkeypatch):
    """A small study on two processes; one of them is killed in mid-run, unless it is this one."""
    monkeypatch.setenv("RUM_ENGINE", name)
    home.mkdir()
    study = open_study(home, replace(TINY, workers=2))
    algorithms = {"FT": finetune, "RUM": rum.RUM(rum.Refine(study.score, 2), (finetune, rum.Keep())),
                  "Killed": Killed(epochs=1, lr=0.1, batch_size=32, folder=str(home), parent=os.getpid())}
    rows = study.unlearn(rum.lab.Cell(forget, algorithm, seed, {"level": level, "algorithm": label})
                         for level, forget in study.levels().items() for label, algorithm in algorithms.items()
                         for seed in study.profile.seeds)
    return rows.drop(columns="seconds"), study


def test_a_study_is_the_same_on_every_engine_also_if_a_worker_is_killed(tmp_path, monkeypatch):
    expected, _ = study_rows(tmp_path / "serial", "serial", monkeypatch)
    for name in ("loky", "dask"):
        with pytest.warns(UserWarning, match="a worker was killed"):
            rows, study = study_rows(tmp_path / name, name, monkeypatch)
        pd.testing.assert_frame_equal(rows, expected, check_exact=True)
        assert (tmp_path / name / "mark0").exists() and study.used["retried"] >= 1
        assert study.used["computed"] == 1 + 3 + 12 + 36 and study.used["failed"] == 0


# -- A local cluster --------------------------------------------------------------------------------------------------


@pytest.fixture
def dask(monkeypatch):
    monkeypatch.setenv("RUM_ENGINE", "dask")
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)


def kill(number):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_task_that_kills_every_worker_ends_the_run_with_the_remedy(dask):
    with warnings.catch_warnings(), pytest.raises(RuntimeError, match=r"killed again and again.*1 of 1 tasks.*fewer"):
        warnings.simplefilter("ignore")
        list(engine.run(kill, [(0,)], workers=2))
    assert dict(engine.run(add, [(1, 2), (3, 4)], workers=2)) == {0: 3, 1: 7}


def test_what_a_task_raises_is_raised(dask):
    with pytest.raises(ZeroDivisionError):
        list(engine.run(truediv, [(1, 1), (1, 0)], workers=2))


def test_workers_are_other_processes_of_one_thread(dask):
    from torch import get_num_threads

    assert dict(engine.run(get_num_threads, [()] * 3, workers=2)) == {0: 1, 1: 1, 2: 1}
    found = dict(engine.run(os.getpid, [()] * 8, workers=2))
    assert os.getpid() not in found.values() and set(found) == set(range(8))


def test_a_study_whose_models_are_on_a_gpu_asks_for_workers_with_one(dask, tmp_path):
    study = open_study(tmp_path, replace(TINY, workers=2))
    study.identity["device"] = "cuda"
    with pytest.raises(RuntimeError, match=r"no worker of .* offers one"):
        study.originals([0])


# -- A cluster of others ----------------------------------------------------------------------------------------------


def start(program, *options, rumlib=ROOT):
    """A process of Dask that is ready, and its address; its rumlib is that of the folder."""
    process = subprocess.Popen([sys.executable, "-m", f"distributed.cli.dask_{program}", *options], text=True,
                               cwd=rumlib, stderr=subprocess.PIPE,
                               env={**os.environ, "PYTHONPATH": f"{rumlib}{os.pathsep}{Path(__file__).parent}"})
    said = ""
    for line in process.stderr:
        said += line
        address = re.search(r"(?:Scheduler|Start worker) at:\s+(tcp://\S+)", said)
        if address and (program == "scheduler" or "Registered to" in said):
            return process, address[1]
    raise RuntimeError(f"dask {program} ended: {said}")


@pytest.fixture
def cluster(dask, monkeypatch):
    """Starts a scheduler, then workers, which all end with the test, and lists their processes."""
    running = []

    def launch(program, *options, **which):
        process, address = start(program, *options, **which)
        running.append(process)
        return address

    def scheduler(port="0", **which):
        address = launch("scheduler", "--port", port, "--no-dashboard", "--host", "127.0.0.1", **which)
        monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", address)
        return address

    def worker(address, *options, **which):
        return launch("worker", address, "--no-nanny", "--no-dashboard", "--host", "127.0.0.1", *options, **which)

    yield scheduler, worker, running
    for process in running:
        process.kill()
        process.wait()


def without(folder):
    """A folder that holds something else under the name of the package."""
    (folder / "rumlib.py").write_text("")
    return folder


def older(folder):
    """A folder with another version of the package."""
    shutil.copytree(ROOT / "rumlib", folder / "rumlib", ignore=shutil.ignore_patterns("__pycache__"))
    with open(folder / "rumlib" / "metrics.py", "a") as file:
        file.write("\nLATER = 1\n")
    return folder


@pytest.mark.parametrize("other, reason", [(without, "ModuleNotFoundError"), (older, "'[0-9a-f]{16}' and not")])
def test_a_scheduler_without_this_rumlib_is_reported(other, reason, cluster, tmp_path):
    address = cluster[0](rumlib=other(tmp_path))
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=f"the scheduler of {address}.*{reason}.*same version"):
        next(engine.run(add, [(1, 2)]))
    assert time.monotonic() - began < 30                     # it would have hung


def test_a_worker_without_this_rumlib_is_reported(cluster, tmp_path):
    scheduler, worker, _ = cluster
    mine = worker(address := scheduler(), "--nthreads", "1", rumlib=older(tmp_path))
    with pytest.raises(RuntimeError, match=f"worker {mine} of {address} runs another rumlib"):
        next(engine.run(add, [(1, 2)]))


def test_a_scheduler_without_workers_is_reported(cluster, monkeypatch):
    monkeypatch.setattr(engine, "ANSWER", 2)
    address = cluster[0]()
    with pytest.raises(RuntimeError, match=f"{address} has no worker.*start workers"):
        next(engine.run(add, [(1, 2)]))


def test_workers_need_one_thread_and_tasks_of_a_gpu_one_that_offers_it(cluster):
    scheduler, worker, _ = cluster
    worker(address := scheduler(), "--nthreads", "1")
    assert dict(engine.run(add, [(1, 2)])) == {0: 3}
    with pytest.raises(RuntimeError, match=f"no worker of {address} offers one.*GPU=1.*CUDA_VISIBLE_DEVICES"):
        next(engine.run(os.getpid, [()], gpu=True))
    worker(address, "--nthreads", "1", "--resources", "GPU=1")
    assert len(set(dict(engine.run(os.getpid, [()] * 6, gpu=True)).values())) == 1
    worker(address, "--nthreads", "2")
    with pytest.raises(RuntimeError, match=r"2 threads.*--nthreads 1"):
        next(engine.run(add, [(1, 2)]))


@pytest.mark.parametrize("address", ["here", "tcp://127.0.0.1:9"])
def test_an_address_without_a_scheduler_is_named(address, dask, monkeypatch):
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", address)
    monkeypatch.setattr(engine, "CONNECT", 1)
    with pytest.raises(RuntimeError, match=f"DASK_SCHEDULER_ADDRESS='{address}'.*leave the variable unset"):
        next(engine.run(add, [(1, 2)]))


def test_something_else_that_listens_is_not_waited_for(dask, monkeypatch):
    monkeypatch.setattr(engine, "CONNECT", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", f"tcp://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"no scheduler answers.*TimeoutError"):
                next(engine.run(add, [(1, 2)]))
    assert time.monotonic() - began < 30                     # it would have hung


def end(parent):
    """Kill the scheduler, in the middle of a task."""
    os.kill(parent, signal.SIGKILL)
    time.sleep(60)


def test_a_scheduler_that_dies_is_named_and_a_new_one_is_used(cluster):
    scheduler, worker, running = cluster
    worker(address := scheduler(), "--nthreads", "1")
    with pytest.raises(RuntimeError, match=f"scheduler at {address} was lost; 1 of 1 tasks.*run again"):
        list(engine.run(end, [(running[0].pid,)]))
    running[0].wait()
    port = address.rpartition(":")[2]
    worker(scheduler(port=port), "--nthreads", "1")
    assert dict(engine.run(add, [(1, 2)])) == {0: 3}
