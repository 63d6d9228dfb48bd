"""Finished cells of a study on disk: computed once, read back whenever they are asked for again.

    class Study(Remembering):
        @remembered
        def oracle(self, forget, seed): ...                  # returns plain values, and tensors under "tensors"

    study.oracle(forget, 0)                                  # computed, or read back
    study.ask(Study.oracle, [(forget, 0), (forget, 1)])      # many at once, on all cores

A cell is found by what it depends on: its code, the data and settings of its study, its arguments. What is written is
whole and durable, or not there. A cell that fails is recorded and tried again by the next run; the others go on.
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

from rumlib import engine
from rumlib.code import PACKAGE, code_of
from rumlib.data import digest
from rumlib.models import describe

FORMAT = 1                                                   # of the files: one more whenever what they hold changes
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
    it, and <key>.failed for one that could not be computed.

    A file is written under a temporary name, forced to the disk and renamed; so are the tensors, before the file that
    speaks of them. One that is damaged is set aside, reported and computed again.
    """

    folder: Path

    def path(self, kind: str, key: str) -> Path:
        return self.folder / kind / f"{key}.json"

    def read(self, kind: str, key: str) -> dict | None:
        """A cell: its "identity", its "values", in them "tensors" if it has any, the "seconds" that it took, and where
        it was "made". None if it is not there."""
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

    def write(self, kind: str, identity: Mapping, values: dict, seconds: float = 0.0) -> dict:
        """Keep a cell, and return what `read` would."""
        path = self.path(kind, digest_of(identity))
        cell = {"identity": identity, "values": values, "seconds": round(seconds, 4), "made": here()}
        kept = cell
        if "tensors" in values:
            cell["values"] = values = {**values, "tensors": {k: t.cpu() for k, t in values["tensors"].items()}}
            data = safetensors.torch.save({k: t.contiguous() for k, t in values["tensors"].items()})
            put(path.with_suffix(".safetensors"), data)
            kept = {**cell, "values": {**values, "tensors": hashlib.sha256(data).hexdigest()}}
        put(path, json.dumps({**kept, "checksum": digest_of(kept)}, indent=1).encode())
        path.with_suffix(".failed").unlink(missing_ok=True)
        return cell

    def remove(self, kind: str, key: str) -> None:
        """Forget a cell."""
        for ending in (".json", ".safetensors"):             # in this order: tensors without values are no cell
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
    OSError, naming folder and remedy, if the disk is full."""
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
                          f"{len(data) / 1e6:.1f} MB were to be written. What is finished is kept; make room there and "
                          f"run again") from problem
        raise


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


# -- Asking for cells -------------------------------------------------------------------------------------------------


class remembered:
    """Make a method of a study a cell: computed once for its code, its study's data and settings, its arguments."""

    def __init__(self, compute: Callable):
        self.compute = compute
        self.names = list(inspect.signature(compute).parameters)[1:]
        update_wrapper(self, compute)

    def __get__(self, study, owner=None) -> Callable:
        return self if study is None else partial(self, study)

    def __call__(self, study: Remembering, *arguments) -> dict:
        return study.ask(self, [arguments], self.__name__)[0]

    def identity(self, study: Remembering, *arguments) -> dict:
        """All that the cell depends on."""
        return {"what": self.__name__, "code": self.code(study), "study": study.identity,
                "arguments": {name: identify(value) for name, value in zip(self.names, arguments, strict=True)}}

    def code(self, study: Remembering) -> str:
        """Hash of the code that computes it; a user's own kind of study counts with all its methods."""
        own, kind = code_of(self), type(study)
        return own if kind.__module__.startswith("rumlib.") else digest_of([own, code_of(kind)])

    def lookup(self, study: Remembering, *arguments) -> dict | None:
        """Its values if it is there."""
        cell = study.store.read(self.__name__, digest_of(self.identity(study, *arguments)))
        return cell and cell["values"]

    def make(self, study: Remembering, identity: Mapping, arguments: tuple) -> dict | Failure:
        """The cell, read back or computed and kept. What goes wrong is recorded, and returned or, inside another cell,
        raised again."""
        found = study.store.read(self.__name__, digest_of(identity))
        if found is not None:
            return found
        start = time.perf_counter()
        try:
            with study.within():
                values = self.compute(study, *arguments)
        except Exception as problem:
            failure = Failure.of(f"{self.__name__}({', '.join(map(repr, arguments))})", problem)
            study.store.fail(self.__name__, identity, failure)
            if study.inside:
                raise
            return failure
        return study.store.write(self.__name__, identity, values, time.perf_counter() - start)


class Remembering:
    """What has remembered methods: it asks for cells, computes those that are missing on all cores, and keeps count.

    A subclass has `identity`, a dictionary of all that every cell depends on.
    """

    identity: Mapping

    def __init__(self, folder: Path, *, workers: int, quiet: bool):
        self.store = Store(folder / "cells")
        self.workers, self.quiet = workers, quiet
        self.manifest = folder / "asked" / f"{notebook()}.json"
        self.used = Counter({"computed": 0, "read back": 0, "retried": 0, "failed": 0})
        self.asked: dict[tuple[str, str], float] = {}        # (kind, key), in order -> seconds that it took
        self.inside = False                                  # a cell that is being computed
        self.bar = None

    @contextmanager
    def within(self) -> Iterator[None]:
        before, self.inside = self.inside, True
        try:
            yield
        finally:
            self.inside = before

    def ask(self, method: remembered, tasks: list[tuple], what: str) -> list[dict]:
        """The values of the cells for these arguments, read back or computed. Raises CellsFailed, at the end, if some
        could not be."""
        found = self.attempt(method, tasks, what)
        self.refuse(found)
        return [cell["values"] for cell in found]

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

    def attempt(self, method: remembered, tasks: list[tuple], what: str) -> list[dict | Failure]:
        """The cells for these arguments, or what happened instead."""
        identities = [method.identity(self, *task) for task in tasks]
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

    def _compute(self, method: remembered, todo: list[tuple], what: str) -> dict[str, dict | Failure]:
        self.bar = self.bar if self.bar is not None else tqdm(total=0, disable=self.quiet, unit="cell")
        self.bar.total += len(todo)
        self.bar.set_description(what)
        self.used["retried"] += sum(self.store.failed(method.__name__, digest_of(who)) for who, _ in todo)
        found = {}
        for k, cell in engine.run(_make, [(self, method.__name__, *task) for task in todo], workers=self.workers,
                                  gpu=self.identity.get("device", "cpu") != "cpu", again=self._again):
            found[digest_of(todo[k][0])] = cell
            self.bar.update()
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
        kinds = inspect.getmembers(type(self), lambda member: isinstance(member, remembered))
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


def _make(study: Remembering, kind: str, identity: Mapping, arguments: tuple) -> dict | Failure:
    """A task. It must be what was asked for also where it is computed: files may have changed since, or differ from
    machine to machine."""
    method = getattr(type(study), kind)
    own = method.identity(study, *arguments)
    if own != identity:
        raise RuntimeError(f"a worker finds another {', '.join(differences(own, identity))} for {kind} than the "
                           f"process that asked for it: files were changed while it ran, or machines differ. Start it "
                           f"again")
    return method.make(study, identity, arguments)
