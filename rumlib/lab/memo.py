"""Finished cells of a study on disk: computed once, read back whenever they are asked for again.

    class Study(Memoized):
        @memoized
        def oracle(self, forget, seed): ...                  # returns plain values, and tensors under "tensors"

    study.oracle(forget, 0)                                  # computed, or read back
    study.ask(Study.oracle, [(forget, 0), (forget, 1)])      # many at once, on all cores
    study.large(Study.oracle, forget, 0)                     # the tensors that it returned under "large": the weights

A cell is found by what it depends on: its code, the data and settings of its study, its arguments. What is written is
whole and durable, or not there. A cell that fails is recorded and tried again by the next run; the others go on. What
is no fault of a cell (no memory, a lost device, a full disk) ends the run, and so does RUM_UNTIL, a time in seconds
since 1970 after which no cell is started. With published results (`rumlib.lab.results`) nothing is computed at all.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import inspect
import json
import os
import platform
import re
import shutil
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cache, partial, update_wrapper
from importlib.metadata import version
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor
from tqdm.auto import tqdm

from rumlib.data import digest
from rumlib.lab import engine
from rumlib.lab.codehash import PACKAGE, code_of
from rumlib.models import describe

FORMAT = 2                                                   # of the files: one more whenever what they hold changes
DAY = 24 * 3600


# -- Who a cell is ----------------------------------------------------------------------------------------------------


def identify(value) -> object:
    """What stands for a value in the identity of a cell: plain values as they are, data by content, algorithms by their
    class, its code and their fields. Raises TypeError for what could not be found again."""
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, tuple | list | range):
        return [identify(v) for v in value]
    if hasattr(value, "digest"):
        return {"digest": value.digest}
    if isinstance(value, Tensor):
        return {"digest": digest(value)}
    if is_dataclass(value) and not isinstance(value, type):
        own = {f.name: factory(getattr(value, f.name)) if f.name == "make_model" else identify(getattr(value, f.name))
               for f in fields(value)}
        return {"class": f"{type(value).__module__}.{type(value).__qualname__}", "code": code_of(type(value)),
                "fields": own}
    raise TypeError(f"{value!r} has no lasting name, so that its results could not be found again; make it a frozen "
                    f"dataclass (its name, fields and code then stand for it)")


def factory(make_model: Callable) -> object:
    """What stands for a model factory: its description and its code. Raises TypeError for what could not be found
    again."""
    function = getattr(make_model, "func", make_model)       # of a functools.partial
    if is_dataclass(function) and not isinstance(function, type):
        return identify(function)
    if "<" in describe(make_model).partition("(")[0] or not hasattr(function, "__qualname__"):
        raise TypeError(f"{describe(make_model)} has no lasting name, so that its results could not be found again; "
                        f"use a function defined at the top of a module or notebook, functools.partial for arguments")
    return {"function": f"{function.__module__}.{function.__qualname__}", "code": code_of(function),
            "arguments": describe(make_model)}


def digest_of(identity: object) -> str:
    """The key of a cell, or the hash of anything else that JSON can hold."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]


def differences(one, other, name: str = "") -> list[str]:
    """Where two identities differ: "study.data", "arguments.algorithm.fields.lr"."""
    if one == other:
        return []
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        names = dict.fromkeys((*one, *other))
        return [part for key in names for part in differences(one.get(key), other.get(key), f"{name}.{key}".strip("."))]
    return [name]


# -- On disk ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Store:
    """Finished cells in a folder: <kind>/<key>.json with the identity and values of each, tensors in safetensors beside
    it, large ones in another file, <key>.large, and <key>.failed for one that could not be computed.

    A file is written under a temporary name, forced to the disk and renamed; so are the tensors, before the file that
    speaks of them. One that is damaged is set aside, reported and computed again. Large tensors (weights) are for the
    few who need them: a cell whose own are not there is whole for all others.
    """

    folder: Path

    def path(self, kind: str, key: str) -> Path:
        return self.folder / kind / f"{key}.json"

    def read(self, kind: str, key: str) -> dict | None:
        """A cell: its "identity", its "values", in them "tensors" if it has any (and of "large" ones the hash), the
        "seconds" that it took, and where it was "made". None if it is not there."""
        path = self.path(kind, key)
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            cell = parse(text, key)
            if "tensors" in cell["values"]:
                data = path.with_suffix(".safetensors").read_bytes()
                if hashlib.sha256(data).hexdigest() != cell["values"]["tensors"]:
                    raise ValueError(f"the checksum of {key}.safetensors does not fit")
                cell["values"]["tensors"] = safetensors.torch.load(data)
            return cell
        except (ValueError, OSError) as problem:
            warnings.warn(f"{path} is damaged ({problem}); it is set aside as {path.name}.damaged and computed again",
                          stacklevel=2)
            for file in (path, path.with_suffix(".safetensors")):
                with suppress(FileNotFoundError):            # it has no tensors, or another process was quicker
                    os.replace(file, f"{file}.damaged")
            return None

    def large(self, kind: str, key: str) -> dict[str, Tensor] | None:
        """The large tensors of a cell; None if they are not there."""
        cell, path = self.read(kind, key), self.path(kind, key).with_suffix(".large")
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            warnings.warn(f"cells of kind {kind!r} are here without their weights, as published results are; those "
                          f"that are needed are computed again", stacklevel=2)
            return None
        if cell and hashlib.sha256(data).hexdigest() == cell["values"]["large"]:
            return safetensors.torch.load(data)
        warnings.warn(f"{path} is damaged (its checksum does not fit); it is set aside as {path.name}.damaged and "
                      f"computed again", stacklevel=2)
        with suppress(FileNotFoundError):                    # another process was quicker
            os.replace(path, f"{path}.damaged")
        return None

    def write(self, kind: str, identity: Mapping, values: dict, seconds: float = 0.0) -> dict:
        """Keep a cell, and return what `read` would."""
        if "tensors" in values:
            values = {**values, "tensors": {name: tensor.cpu() for name, tensor in values["tensors"].items()}}
        if "large" in values:
            path = self.path(kind, digest_of(identity)).with_suffix(".large")
            values = {**values, "large": _put_tensors(path, values["large"])}
        return self.keep(kind, {"identity": identity, "values": values, "seconds": round(seconds, 4), "made": here()})

    def keep(self, kind: str, cell: dict) -> dict:
        """Keep a cell as `read` gives it: without its large tensors, unless they are there already."""
        path, kept = self.path(kind, digest_of(cell["identity"])), cell
        if "tensors" in cell["values"]:
            checksum = _put_tensors(path.with_suffix(".safetensors"), cell["values"]["tensors"])
            kept = {**cell, "values": {**cell["values"], "tensors": checksum}}
        put(path, json.dumps({**kept, "checksum": digest_of(kept)}, indent=1).encode())
        path.with_suffix(".failed").unlink(missing_ok=True)
        return cell

    def remove(self, kind: str, key: str) -> None:
        """Forget a cell, or that it failed."""
        for ending in (".json", ".safetensors", ".large", ".failed"):    # tensors without values are no cell
            self.path(kind, key).with_suffix(ending).unlink(missing_ok=True)

    def fail(self, kind: str, identity: Mapping, failure: Failure) -> None:
        """Record that a cell could not be computed."""
        put(self.path(kind, digest_of(identity)).with_suffix(".failed"),
            json.dumps({"identity": identity, **asdict(failure)}, indent=1).encode())

    def failed(self, kind: str, key: str) -> bool:
        """Whether the last attempt to compute a cell failed."""
        return self.path(kind, key).with_suffix(".failed").exists()

    def sweep(self) -> None:
        """Remove what processes that were killed have left half-written."""
        for path in self.folder.glob("*/.*"):
            found = re.fullmatch(r"\..+\.([0-9a-f]{6})\.(\d+)", path.name)
            if found and (not _alive(int(found[2])) if found[1] == _host() else _age(path) > DAY):
                path.unlink(missing_ok=True)


def parse(text: bytes, key: str) -> dict:
    """What the file of a cell holds. Raises ValueError where it is not whole, or is not the cell with this key."""
    try:
        cell = json.loads(text)
        kept = {name: cell[name] for name in ("identity", "values", "seconds", "made")}
    except (ValueError, KeyError, TypeError) as problem:
        raise ValueError(f"it cannot be read: {problem!r}") from problem
    if cell.get("checksum") != digest_of(kept):
        raise ValueError("its checksum does not fit its values")
    if digest_of(cell["identity"]) != key:
        raise ValueError("it is another cell's")
    return kept


def put(path: Path, data: bytes) -> None:
    """Write a file so that after any interruption, of the machine too, it is there as a whole or not at all. Raises
    OSError, naming the folder, if the disk is full."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{_host()}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)                          # the folder is not forced to the disk: this would take
    except BaseException as problem:                         # twice as long again, to save the last cells from a crash
        temporary.unlink(missing_ok=True)
        if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(path.parent).free
            raise OSError(problem.errno, f"the disk that holds {path.parent} is full: {free / 1e6:.0f} MB are free, "
                          f"{len(data) / 1e6:.1f} MB were to be written") from problem
        raise


def _put_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write them, and return their checksum."""
    data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
    put(path, data)
    return hashlib.sha256(data).hexdigest()


@cache
def here() -> dict[str, str]:
    """What decides about rounding beyond the key of a cell."""
    return {"torch": version("torch"), "cpu": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"}


@cache
def _host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:6]


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:                                  # somebody else's
        return True
    return True


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


# -- Failure ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Failure:
    """What happened instead of a cell."""

    cell: str                                                # its kind and arguments
    problem: str
    where: str                                               # file, line and function
    trace: str

    @classmethod
    def of(cls, cell: str, problem: Exception) -> Failure:
        frames = traceback.extract_tb(problem.__traceback__)
        own = [frame for frame in frames if "site-packages" not in frame.filename] or frames
        at = f"{Path(own[-1].filename).name}:{own[-1].lineno} in {own[-1].name}"
        return cls(cell, f"{type(problem).__name__}: {problem}", at, "".join(traceback.format_exception(problem)))

    def __str__(self) -> str:
        return f"{self.cell}: {self.problem} ({self.where})"


class CellsFailed(RuntimeError):
    """Some cells could not be computed; all others are done."""


class Stopped(RuntimeError):
    """The run cannot go on, for no fault of a cell: what is finished is kept, and the same command goes on."""


class TimeIsUp(Stopped):
    """No cell is started any more."""


class NotPublished(Stopped):
    """Published results do not hold what is asked for."""


GO_ON = "What is finished is kept, and the same command goes on from there"


def hindrance(problem: Exception) -> str | None:
    """What to change, where an error says that the machine cannot go on, whatever the cell; else None."""
    told = str(problem).lower()
    if (isinstance(problem, torch.OutOfMemoryError | MemoryError)
            or "out of memory" in told or "can't allocate memory" in told):      # as CUDA and as the CPU say it
        return ("the memory was not enough; take less at once: fewer processes (`workers` of the profile), fewer "
                "models side by side (AT_ONCE in rumlib/train.py), or smaller batches (`batch_size` of the recipe and "
                "of the algorithms: another study)")
    if isinstance(problem, torch.AcceleratorError) or "cuda error" in told:
        return ("the device is lost, and with it all that this process had there; look at the device (nvidia-smi) and "
                "start again; if it is this cell again, the fault is in its code")
    if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT):
        return "make room there"
    return None


# -- Asking for cells -------------------------------------------------------------------------------------------------


class memoized:
    """Make a method of a study a cell: computed once for its code, its study's data and settings, its arguments."""

    def __init__(self, compute: Callable):
        self.compute = compute
        self.names = list(inspect.signature(compute).parameters)[1:]
        update_wrapper(self, compute)

    def __get__(self, study, owner=None) -> Callable:
        return self if study is None else partial(self, study)

    def __call__(self, study: Memoized, *arguments) -> dict:
        return study.ask(self, [arguments], self.__name__)[0]

    def identity(self, study: Memoized, *arguments) -> dict:
        """All that the cell depends on."""
        return {"what": self.__name__, "code": self.code(study), "study": study.identity,
                "arguments": {name: factory(value) if name == "call" else identify(value)
                              for name, value in zip(self.names, arguments, strict=True)}}

    def code(self, study: Memoized) -> str:
        """Hash of the code that computes it; a user's own kind of study counts with all its methods."""
        own, kind = code_of(self), type(study)
        return own if kind.__module__.startswith("rumlib.") else digest_of([own, code_of(kind)])

    def lookup(self, study: Memoized, *arguments) -> dict | None:
        """Its values if it is there."""
        cell = study.store.read(self.__name__, digest_of(self.identity(study, *arguments)))
        return cell and cell["values"]

    def make(self, study: Memoized, identity: Mapping, arguments: tuple) -> dict | Failure:
        """The cell, read back or computed and kept. What goes wrong is recorded, and returned or, inside another cell,
        raised again. Raises Stopped, and records nothing, where it is no fault of the cell."""
        return study.store.read(self.__name__, digest_of(identity)) or self.anew(study, identity, arguments)

    def anew(self, study: Memoized, identity: Mapping, arguments: tuple) -> dict | Failure:
        """The cell, computed and kept."""
        start = time.perf_counter()
        try:
            with study.within():
                values = self.compute(study, *arguments)
            return study.store.write(self.__name__, identity, values, time.perf_counter() - start)
        except Stopped:                                      # inside this cell, another one was
            raise
        except Exception as problem:
            failure = Failure.of(f"{self.__name__}({', '.join(map(repr, arguments))})", problem)
            remedy = hindrance(problem)
            if remedy:
                raise Stopped(f"{failure}: {remedy}. {GO_ON}") from problem
            study.store.fail(self.__name__, identity, failure)
            if study.inside:
                raise
            return failure


class Memoized:
    """What has memoized methods: it asks for cells, computes those that are missing on all cores, and keeps count.

    A subclass has `identity`, a dictionary of all that every cell depends on. With `published` results every cell comes
    from them, and nothing is computed.
    """

    identity: Mapping
    published = None                                         # a `rumlib.lab.results.Packed`

    def __init__(self, folder: Path, *, workers: int, quiet: bool):
        self.store = Store(folder / "cells")
        self.workers, self.quiet = workers, quiet
        self.manifest = folder / "asked" / f"{notebook()}.json"
        self.used = Counter({"computed": 0, "read back": 0, "retried": 0, "failed": 0})
        self.asked: dict[tuple[str, str], float] = {}        # (kind, key), in order -> seconds that it took
        self.until = float(os.environ.get("RUM_UNTIL", "inf"))
        self.inside = False                                  # a cell that is being computed
        self.bar = None

    @contextmanager
    def within(self) -> Iterator[None]:
        before, self.inside = self.inside, True
        try:
            yield
        finally:
            self.inside = before

    def ask(self, method: memoized, tasks: list[tuple], what: str) -> list[dict]:
        """The values of the cells for these arguments, read back or computed. Raises CellsFailed, at the end, if some
        could not be."""
        found = self.attempt(method, tasks, what)
        self.refuse(found)
        return [cell["values"] for cell in found]

    def large(self, method: memoized, *arguments) -> dict[str, Tensor]:
        """The large tensors of a cell: read, or computed again where the cell is there without them. Raises
        NotPublished where it may not be computed."""
        if self.published:
            raise NotPublished(f"the weights of {method.__name__}({', '.join(map(repr, arguments))}) are needed, and "
                               f"{self.published.folder} is results without weights: run without FROM")
        method(self, *arguments)
        identity = method.identity(self, *arguments)
        key = digest_of(identity)
        found = self.store.large(method.__name__, key)
        if found is None:
            self.refuse([method.anew(self, identity, arguments)])
            found = self.store.large(method.__name__, key)
        return found

    def refuse(self, found: list[dict | Failure]) -> None:
        """Raise CellsFailed, naming them, if some failed."""
        failures = [cell for cell in found if isinstance(cell, Failure)]
        if failures:
            named = "".join(f"\n  {failure}" for failure in failures[:5])
            more = f"\n  and {len(failures) - 5} more" if len(failures) > 5 else ""
            problem = CellsFailed(f"{len(failures)} of {len(found)} cells failed; all that do not need them are done. "
                                  f"Running again tries them once more; {self.store.folder}/*/*.failed say what "
                                  f"happened.{named}{more}")
            problem.add_note(failures[0].trace)
            raise problem

    def attempt(self, method: memoized, tasks: list[tuple], what: str) -> list[dict | Failure]:
        """The cells for these arguments, or what happened instead."""
        identities = [method.identity(self, *task) for task in tasks]
        if self.published:
            found = {digest_of(identity): self.published.find(identity) for identity in identities}
            self._count(method.__name__, found, computed=set())
            return [found[digest_of(identity)] for identity in identities]
        if self.inside:                                      # cells that another cell needs, in its process
            return [method.make(self, identity, task) for identity, task in zip(identities, tasks, strict=True)]
        keys = [digest_of(identity) for identity in identities]
        self._note(method.__name__, keys)
        found = {key: self.store.read(method.__name__, key) for key in keys}
        if None in found.values():
            with self.alone():                              # what somebody else computed meanwhile is read back too
                found |= {key: self.store.read(method.__name__, key) for key, cell in found.items() if cell is None}
                todo = {key: k for k, key in enumerate(keys) if found[key] is None}
                found |= self._compute(method, [(identities[k], tasks[k]) for k in todo.values()], what)
        else:
            todo = {}
        self._count(method.__name__, found, computed=set(todo))
        return [found[key] for key in keys]

    def _compute(self, method: memoized, todo: list[tuple], what: str) -> dict[str, dict | Failure]:
        """What is started before the time is up is finished, and kept. Raises TimeIsUp if not all could be started."""
        self.bar = self.bar if self.bar is not None else tqdm(total=0, disable=self.quiet, unit="cell")
        self.bar.total += len(todo)
        self.bar.set_description(what)
        self.used["retried"] += sum(self.store.failed(method.__name__, digest_of(who)) for who, _ in todo)
        found = {}
        tasks = [(self, method.__name__, *task, self.until) for task in todo if time.time() < self.until]
        for k, cell in engine.run(_make, tasks, workers=self.workers, gpu=self.identity.get("device", "cpu") != "cpu",
                                  again=self._again):
            if cell is not None:
                found[digest_of(todo[k][0])] = cell
                self.bar.update()
        if len(found) < len(todo):
            raise TimeIsUp(f"the time is up; {len(todo) - len(found)} of {len(todo)} {what} are left. {GO_ON}")
        return found

    def _again(self, tasks: int) -> None:
        self.used["retried"] += tasks

    def _count(self, kind: str, found: Mapping[str, dict | Failure], computed: set[str]) -> None:
        for key, cell in found.items():
            if isinstance(cell, Failure):
                self.used["failed"] += 1
            elif (kind, key) not in self.asked:
                self.used["computed" if key in computed else "read back"] += 1
                self.asked[kind, key] = cell["seconds"]

    def _note(self, kind: str, keys: list[str]) -> None:
        """Put on file, durably, which cells this notebook has asked for since it was started."""
        asked = _session(self.manifest)
        new = [(kind, key) for key in keys if (kind, key) not in asked]
        if new:
            asked.update(dict.fromkeys(new))
            put(self.manifest, json.dumps({"cells": list(asked)}).encode())

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Two notebooks of one study take turns: each computes on all cores, and finds what the other has done."""
        self.store.folder.mkdir(parents=True, exist_ok=True)
        with open(self.store.folder / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)                 # given back by the system even if this process is killed
            self.store.sweep()
            yield

    def codes(self) -> dict[str, str]:
        """Hashes of the code of the package, and of what each kind of cell depends on (arguments have their own)."""
        kinds = inspect.getmembers(type(self), lambda member: isinstance(member, memoized))
        return {PACKAGE.name: PACKAGE.whole, **{name: method.code(self) for name, method in kinds}}

    def count(self) -> dict:
        """A report of the run: cells computed, read back, tried again, failed; their cost, in seconds of one core, the
        computing of those read back included; and a digest of all keys, in the order in which they were asked for."""
        return {**self.used, "core seconds": round(sum(self.asked.values()), 1), "digest": digest_of(list(self.asked))}


@cache
def _session(manifest: Path) -> dict[tuple[str, str], None]:
    return {}


def notebook() -> str:
    """The name of the notebook, or script, that runs: RUM_NOTEBOOK, what Jupyter says, or that of the program."""
    return Path(os.environ.get("RUM_NOTEBOOK") or os.environ.get("JPY_SESSION_NAME") or sys.argv[0] or "python").stem


def _make(study: Memoized, kind: str, identity: Mapping, arguments: tuple, until: float) -> dict | Failure | None:
    """A task; None if it is too late for it. It must be what was asked for also where it is computed: files may have
    changed since, or differ from machine to machine."""
    if time.time() >= until:
        return None
    method = getattr(type(study), kind)
    own = method.identity(study, *arguments)
    if own != identity:
        raise RuntimeError(f"a worker finds another {', '.join(differences(own, identity))} for {kind} than the "
                           f"process that asked for it: files were changed while it ran, or machines differ. Start it "
                           f"again")
    return method.make(study, identity, arguments)
