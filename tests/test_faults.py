"""Failures, killed processes, full disks and damaged files: afterwards the same command completes, with the results of
an undisturbed run."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
import warnings
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pytest
import safetensors.torch
import torch
from studies import TINY, cut, deep, empty, environ, files, finetune, flip, lose, mine, open_study

import rumlib as rum
from rumlib import models
from rumlib.lab import Cell, profile, vary
from rumlib.lab import computations as made
from rumlib.lab import store as store_file
from rumlib.lab.keys import digest_of
from rumlib.lab.memo import Memoized, ResultsFailed, Stopped, memoize
from rumlib.lab.store import HOUR, Store, parse

TINY = replace(TINY, seeds=(0, 1, 2), tuning_seeds=(100,))
ALGORITHMS = {"FT": finetune, "NG+": rum.NegGradPlus(epochs=1, lr=0.05, batch_size=32),
              "RUM": rum.RUM(rum.Shuffled(2), (finetune, rum.Keep()))}
LAPTOP = replace(profile("laptop"), seeds=(0, 1, 2))
STUDIES = {"serial": (TINY, ALGORITHMS), "loky": (replace(TINY, workers=2), ALGORITHMS),
           "laptop": (LAPTOP, {name: vary(algorithm, epochs=3, lr=0.05)
                               for name, algorithm in LAPTOP.algorithms.items()})}


@pytest.fixture(autouse=True)
def serial(monkeypatch):
    monkeypatch.setenv("RUM_ENGINE", "serial")


def rows_of(which, home):
    """The rows of a study; of a small one: a bank, 3 originals, 12 oracles, 36 runs."""
    profile, algorithms = STUDIES[which]
    study = open_study(home, profile)
    rows = study.unlearn(Cell(forget, algorithm, seed, {"level": level, "algorithm": name})
                         for level, forget in study.levels().items() for name, algorithm in algorithms.items()
                         for seed in study.profile.seeds)
    return rows.drop(columns="seconds")


def few(study, *algorithms, seeds=(0, 1)):
    return study.unlearn(Cell(mine(study), algorithm, seed) for algorithm in algorithms for seed in seeds)


def contents(home):
    """kind/key -> (values without times, bytes of the tensors and of the large ones)."""
    found = {}
    for path in files(home):
        values = json.loads(path.read_text())["values"]
        tensors = [path.with_suffix(ending) for ending in (".safetensors", ".large")]
        found[f"{path.parent.name}/{path.stem}"] = (
            {name: value for name, value in values.items() if not name.endswith("seconds")},
            *(file.read_bytes() if file.exists() else None for file in tensors))
    return found


# -- Killed at any moment ---------------------------------------------------------------------------------------------


def harass(which, kills, home, undisturbed):
    """Run the study once undisturbed; then start it again and again elsewhere, and kill it at random moments, so often
    and until it has finished something. In a process of its own, which forks once all is imported."""
    def start(home):
        child = os.fork()
        if not child:
            os.setpgid(0, 0)                                 # with the workers that it will start
            try:
                rows_of(which, home)
                os._exit(0)
            finally:                                         # the child must not go on as its parent does
                os._exit(1)
        return child

    def over(child):
        return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def end_all():
        for child in started:
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)

    torch.set_num_threads(1)                                 # what a fork takes along must have no other thread
    with environ():                                          # what is imported on first use: seconds, in every child
        few(open_study(Path(home).with_name("warm")), finetune, seeds=(0,))
    chance, killed, home, undisturbed = random.Random(0), 0, Path(home), Path(undisturbed)
    started = [start(undisturbed)]
    assert os.waitpid(started[0], 0)[1] == 0
    stride = 3 * len(finished(undisturbed)) // (2 * kills)   # moments by what is done: a clock depends on the machine
    while killed < kills or len(finished(home)) < 10:
        goal, child = len(finished(home)) + chance.randint(0, stride), start(home)
        started.append(child)
        while len(finished(home)) < goal and not over(child):
            time.sleep(0.05)
        time.sleep(chance.uniform(0, 0.5))
        if over(child):                                      # the whole study: once more from the beginning
            end_all()
            shutil.rmtree(home)
        elif chance.random() < 0.5:
            end_all()
        os.kill(child, signal.SIGKILL)                       # or alone: its workers go on, beside those of the next
        status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL)
        killed += status == signal.SIGKILL
    end_all()
    print(killed)


def finished(home):
    return files(home) + files(home, "*/*.safetensors")


def elsewhere(call):
    """A process that runs this call of a function of this file."""
    return subprocess.Popen([sys.executable, "-c", f"import test_faults\ntest_faults.{call}"], text=True,
                            stdout=subprocess.PIPE, cwd=Path(__file__).parent,
                            env={**os.environ, "PYTHONPATH": f"{Path(rum.__file__).parents[1]}"})


@pytest.mark.slow
@pytest.mark.parametrize("which, kills", [("serial", 20), ("loky", 3), ("laptop", 20)])
def test_killed_and_damaged_it_completes_with_the_same_results(which, kills, tmp_path, monkeypatch):
    """SIGKILL at random moments, then 5 random finished files corrupted, then once through."""
    monkeypatch.setenv("RUM_ENGINE", "serial" if which == "serial" else "loky")
    home, undisturbed = tmp_path / "home", tmp_path / "undisturbed"
    killed, _ = elsewhere(f"harass({which!r}, {kills}, {str(home)!r}, {str(undisturbed)!r})").communicate()
    assert int(killed) >= kills
    damaged = random.Random(0).sample(finished(home), 5)
    for path, damage in zip(damaged, (cut, empty, flip, flip, flip), strict=True):
        damage(path)
    for path in files(home, "*/.*.tmp"):                     # what was being written: of an hour ago
        os.utime(path, (0, time.time() - HOUR - 1))

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        rows = rows_of(which, home)
    assert len({path.stem for path in damaged}) == len([w for w in said if "damaged" in str(w.message)])
    pd.testing.assert_frame_equal(rows, rows_of(which, undisturbed), check_exact=True)
    assert contents(home) == contents(undisturbed)
    assert not files(home, "*/.*") and not files(home, "*/*.failed")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    with environ():
        home = tmp_path_factory.mktemp("home")
        few(open_study(home), finetune)
    return home


@pytest.mark.parametrize("damage", [cut, empty, flip, deep, lose])
@pytest.mark.parametrize("kind, ending", [("run", "json"), ("oracle", "json"), ("oracle", "safetensors"),
                                          ("original", "safetensors")])
def test_a_damaged_file_of_any_kind_is_computed_again(kind, ending, damage, done, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(done, home)
    path = files(home, f"{kind}/*.{ending}")[0]
    damage(path)
    study = open_study(home)
    if (damage, ending) == (lose, "json"):
        few(study, finetune)
    else:
        with pytest.warns(UserWarning, match=f"{path.stem}.json is damaged.*set aside.*computed again"):
            few(study, finetune)
        aside = path.with_name(f"{path.name}.damaged")
        assert aside.exists() or damage is lose
    assert contents(home) == contents(done) and study.used["computed"] == 1


def test_any_flipped_bit_is_noticed(done, tmp_path):
    """Anywhere in the file of a result, its identity included; if it still is whole, its content is the same."""
    path = files(done, "run/*.json")[0]
    data, whole = path.read_bytes(), parse(path.read_bytes(), path.stem)
    for place in range(0, len(data), 7):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        try:
            found = parse(bytes(changed), path.stem)
        except ValueError:
            continue
        assert found == whole


# -- Disks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["original", "oracle"])
@pytest.mark.parametrize("damage", [cut, empty, flip, lose])
def test_weights_that_are_not_whole_are_computed_again_when_they_are_needed(kind, damage, done, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(done, home)
    for path in files(home, f"{kind}/*.large"):
        damage(path)
    study = open_study(home)
    few(study, finetune)                                     # rows that are there need no weights
    assert study.used["computed"] == 0 and len(files(home, f"{kind}/*.large*")) == (0 if damage is lose else 2)
    relabel = rum.RandomLabel(epochs=1, lr=0.1, batch_size=32)
    told = f"'{kind}' are here without their weights" if damage is lose else r"\.large is damaged"
    with pytest.warns(UserWarning, match=f"{told}.*computed again") as said:
        few(study, relabel)
    assert len(said) == 2
    few(open_study(undisturbed := tmp_path / "undisturbed"), finetune, relabel)
    assert contents(home) == contents(undisturbed)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no disk that is always full")
def test_a_full_disk_is_named_and_leaves_nothing_behind(tmp_path, monkeypatch):
    study = open_study(tmp_path)
    few(study, finetune, seeds=(0,))
    before = contents(tmp_path)
    monkeypatch.setattr(store_file.uuid, "uuid4", lambda: uuid.UUID(int=0))
    monkeypatch.setattr(store_file, "HOUR", float("inf"))    # the disk is older than that, and is not swept
    key = digest_of(made.original.identity(study, 1))
    study.store.path("original", key).with_name(f".{key}.safetensors.00000000.tmp").symlink_to("/dev/full")
    with pytest.raises(Stopped, match=rf"disk that holds {study.store.folder}/original is full.*make room.*goes on"):
        few(study, finetune, seeds=(1,))
    assert contents(tmp_path) == before and not files(tmp_path, "*/.*")
    few(open_study(tmp_path), finetune, seeds=(1,))
    assert len(contents(tmp_path)) == 2 * len(before)


def test_what_killed_processes_left_is_swept_and_nothing_else(tmp_path):
    store = Store(tmp_path)
    store.write("kind", {"what": "test"}, {"a": 1})
    names, folder = {".a.json.0f.tmp": True, ".b.json.0f.tmp": False, ".notes": True}, tmp_path / "kind"
    for name in names:
        (folder / name).write_text("half")
    os.utime(folder / ".b.json.0f.tmp", (0, time.time() - HOUR - 1))     # a file is written within seconds
    store.sweep()
    assert {name: (folder / name).exists() for name in names} == names
    assert store.read("kind", digest_of({"what": "test"}))["values"] == {"a": 1}


# -- Failures ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fails(rum.Finetune):
    """Raises on some seeds, as long as the file `switch` is there."""

    switch: str = ""
    on: tuple[int, ...] = (1,)

    def __call__(self, model, forget, retain, *, seed=0):
        if seed in self.on and Path(self.switch).exists():
            raise KeyError(f"nothing known of {seed}")
        return super().__call__(model, forget, retain, seed=seed)


def test_a_failing_result_is_named_the_others_go_on_and_it_is_tried_again(tmp_path):
    switch = tmp_path / "switch"
    switch.touch()
    fails = Fails(epochs=1, lr=0.1, batch_size=32, switch=str(switch))
    study = open_study(tmp_path)
    with pytest.raises(ResultsFailed, match=r"1 of .* results failed(.|\n)*run\(ForgetSet.*Fails(.|\n)*known of 1"
                                          r".*\(test_faults.py:\d+ in __call__\)") as problem:
        few(study, fails, finetune)
    assert "Traceback" in problem.value.__notes__[0]
    assert study.used["failed"] == 1 and study.provenance()["results"]["failed"] == 1
    assert len(files(tmp_path, "run/*.json")) == 3
    [record] = files(tmp_path, "run/*.failed")
    found = json.loads(record.read_text())
    assert digest_of(found["identity"]) == record.stem and "nothing known of 1" in found["problem"]
    switch.unlink()
    again = open_study(tmp_path)
    assert len(few(again, fails, finetune)) == 4
    assert {k: again.used[k] for k in ("computed", "retried", "failed")} == {"computed": 1, "retried": 1, "failed": 0}
    assert not files(tmp_path, "*/*.failed")


# What is no fault of a result, and what the message says to change.
REMEDIES = {
    "memory of a GPU": (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "`workers` of the profile"),
    "memory of a worker": (MemoryError(), "smaller batches"),
    "memory, as torch says it": (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "fewer processes"),
    "a lost device": (torch.AcceleratorError("CUDA error: launch failure"), "the device is lost.*nvidia-smi"),
    "a lost device, inside": (RuntimeError("cuDNN: CUDA error: an illegal access"), "the device is lost"),
    "a full disk": (OSError(errno.ENOSPC, "no space left"), "make room")}


class Hindered(Memoized):
    """Its results need others; that of number 2 cannot be made as long as the file `switch` is there."""

    identity, problem = {"test": "hindered"}, None

    def __init__(self, folder):
        super().__init__(folder, workers=2, quiet=True)


@memoize("inner")
def inner(study, k):
    if k == 2 and (study.store.folder.parent / "switch").exists():
        raise study.problem
    return {"k": k}


@memoize("outer")
def outer(study, k):
    return {"twice": 2 * inner(study, k)["k"]}


@pytest.mark.parametrize("problem, remedy", REMEDIES.values(), ids=REMEDIES)
@pytest.mark.parametrize("asked", [inner, outer], ids=["inner", "outer"])
def test_what_is_no_fault_of_a_result_ends_the_run_and_the_same_command_goes_on(asked, problem, remedy, tmp_path):
    study = Hindered(tmp_path)
    study.problem = problem
    (tmp_path / "switch").touch()
    tasks = [(k,) for k in range(5)]
    with pytest.raises(Stopped, match=rf"inner\(2\): {type(problem).__name__}.*{remedy}.*the same command goes on"):
        study.compute_many(asked, tasks, "results")
    there = sorted(path.suffix for path in tmp_path.glob(f"results/{asked.kind}/*"))
    assert there == [".json"] * 2                            # those before; none failed, and none was tried after it
    (tmp_path / "switch").unlink()
    again = Hindered(tmp_path)
    assert len(again.compute_many(asked, tasks, "results")) == 5
    assert again.used["computed"] == 3 and not again.used["retried"]


def test_what_stops_a_worker_stops_them_all(tmp_path, monkeypatch):
    monkeypatch.setenv("RUM_ENGINE", "loky")
    study = Hindered(tmp_path)
    study.problem = torch.AcceleratorError("CUDA error: gone")
    (tmp_path / "switch").touch()
    with pytest.raises(Stopped, match=r"inner\(2\): AcceleratorError.*the device is lost"):
        study.compute_many(inner, [(k,) for k in range(400)], "results")
    assert not list(tmp_path.glob("results/*/*.failed")) and len(list(tmp_path.glob("results/inner/*.json"))) < 300


def fragile():
    """A network that cannot be made from seed 1."""
    if torch.initial_seed() == 1:
        raise KeyError("no such network")
    return models.mlp(hidden=(8,))


def test_what_needs_a_failed_result_is_not_tried_and_the_rest_goes_on(tmp_path):
    study = open_study(tmp_path, replace(TINY, make_model=fragile))
    with pytest.raises(ResultsFailed, match=r"2 of 5 (.|\n)*original\(1\)(.|\n)*oracle\(.*no such network"):
        few(study, finetune)                                 # two originals, two oracles, and one run that could be
    assert len(files(tmp_path, "run/*.json")) == 1 and not files(tmp_path, "run/*.failed")
    assert len(files(tmp_path, "*/*.failed")) == 2


# -- Workers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Killed(rum.Finetune):
    """Kills the process that it runs in: the first `times`, and never the one that started it."""

    folder: str = ""
    times: int = 1
    parent: int = 0

    def __call__(self, model, forget, retain, *, seed=0):
        marks = len(list(Path(self.folder).glob("mark*")))
        if seed == 1 and marks < self.times and os.getpid() != self.parent:
            Path(self.folder, f"mark{marks}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(model, forget, retain, seed=seed)


def killed(tmp_path, times):
    study = open_study(tmp_path, replace(TINY, workers=2))
    few(study, finetune, seeds=(0, 1, 2))                    # what they need, so that only runs are tasks
    return study, Killed(epochs=1, lr=0.1, batch_size=32, folder=str(tmp_path), times=times, parent=os.getpid())


def test_the_tasks_of_a_killed_worker_are_tried_once_more(tmp_path, monkeypatch):
    monkeypatch.setenv("RUM_ENGINE", "loky")
    study, algorithm = killed(tmp_path, times=1)
    with pytest.warns(UserWarning, match="a worker was killed; . of 3 tasks are tried once more"):
        rows = few(study, algorithm, seeds=(0, 1, 2))
    undisturbed = few(study, replace(algorithm, times=0), seeds=(0, 1, 2))
    pd.testing.assert_frame_equal(rows.drop(columns="seconds"), undisturbed.drop(columns="seconds"), check_exact=True)
    assert 1 <= study.used["retried"] <= 3


def test_a_worker_that_is_killed_again_ends_the_run_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("RUM_ENGINE", "loky")
    study, algorithm = killed(tmp_path, times=2)
    with (pytest.warns(UserWarning, match="once more"),
          pytest.raises(RuntimeError, match=r"killed twice.*of 3 tasks are left.*fewer processes.*now 2")):
        few(study, algorithm, seeds=(0, 1, 2))
    assert len(few(open_study(tmp_path), algorithm, seeds=(0, 1, 2))) == 3


def test_two_runs_in_one_folder_share_the_work(tmp_path):
    runs = [elsewhere(f"counted({str(tmp_path)!r}, {k})") for k in range(2)]
    assert [run.wait() for run in runs] == [0, 0]
    found = [json.loads((tmp_path / f"used{k}.json").read_text()) for k in range(2)]
    there = len(files(tmp_path))
    assert sum(used["computed"] for used in found) == there == 1 + 1 + 1 + 2
    assert all(used["computed"] + used["read back"] == there for used in found)


def counted(home, k):
    study = open_study(home)
    assert len(study.score.values) == 150
    few(study, finetune, seeds=(0,))
    few(study, rum.Keep(), seeds=(0,))
    Path(home, f"used{k}.json").write_text(json.dumps(study.used))


def test_a_worker_that_finds_other_code_refuses(tmp_path, monkeypatch):
    """As where a file was edited after the process that asked had read it."""
    monkeypatch.setenv("RUM_ENGINE", "loky")
    study = open_study(tmp_path, replace(TINY, workers=2))
    study.identity["recipe"] = "another one"
    with pytest.raises(RuntimeError, match=r"finds another study.recipe than .* original: .*Start it again"):
        study.originals([0, 1])


def test_weights_survive_the_way_through_a_file(done):
    study = open_study(done)
    key = digest_of(made.original.identity(study, 0))
    data = safetensors.torch.load_file(study.store.path("original", key).with_suffix(".large"))
    fresh = rum.fit(TINY.make_model, study.train, TINY.recipe, seed=0).state_dict()
    assert data.keys() == fresh.keys() and all(torch.equal(data[name], value) for name, value in fresh.items())
