"""Finished results of a study on disk: computed once, and read back whenever they are asked for again.

    @memoize("original")                                     # its kind: the name under which results are kept
    def original(study, seed): ...                           # returns plain values, and tensors under "tensors"

    original(study, 0)                                       # computed, or read back
    study.compute_many(original, [(0,), (1,)], "models")     # many at once, on all cores
    study.large(original, 0)                                 # the tensors that it returned under "large": the weights

A result is found by what it depends on: its code, the data and settings of its study, its arguments. What is written is
whole and durable, or not there. A result that fails is recorded and tried again by the next run; the others go on. What
is no fault of a result (no memory, a lost device, a full disk) ends the run, and so does the end of the time that was
given. With published results (`rumlib.lab.results`) nothing is computed at all.
"""

from __future__ import annotations

import inspect
import json
import operator
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import cache, update_wrapper
from numbers import Integral
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor
from tqdm.auto import tqdm

from rumlib.data import digest
from rumlib.lab import engine, settings
from rumlib.lab.codehash import PACKAGE, code_of
from rumlib.lab.keys import codes, differences, digest_of
from rumlib.lab.store import FULL, Failure, Store, here, put
from rumlib.models import describe

FORMAT = 3                                                   # of the files: one more whenever what they hold changes


# -- What a result is of ----------------------------------------------------------------------------------------------


def identify(value) -> object:
    """What stands for a value in the identity of a result: plain values as they are, data by content, algorithms and
    functions by name, code and fields or arguments. Raises TypeError for what could not be found again."""
    value = plain(value)
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, tuple | list | range):
        return [identify(v) for v in value]
    if hasattr(value, "digest"):
        return {"digest": value.digest}
    if isinstance(value, Tensor):
        return {"digest": digest(value)}
    if is_dataclass(value) and not isinstance(value, type):
        return {"class": _name(type(value)), "code": code_of(type(value)),
                "fields": {f.name: identify(getattr(value, f.name)) for f in fields(value)}}
    function = getattr(value, "func", value)                 # of a functools.partial
    lasting = "<" not in getattr(function, "__qualname__", "<nothing>") and not inspect.ismethod(function)
    if not lasting or " at 0x" in describe(value):
        raise TypeError(f"{value!r} has no lasting name, so that its results could not be found again; make it a "
                        f"frozen dataclass, or a function at the top of a module or notebook (functools.partial for "
                        f"arguments)")
    return {"function": _name(function), "code": code_of(function), "arguments": describe(value)}


def _name(thing: type | Callable) -> str:
    """Without its module, so that it may move. A user's own may have the name of one of the package."""
    return thing.__qualname__ if thing.__module__.partition(".")[0] == PACKAGE.name else f"own.{thing.__qualname__}"


def plain(value):
    """An integer of any type as Python's own, also inside a tuple: a seed of NumPy has the results of a plain one."""
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    if isinstance(value, Tensor) and value.ndim == 0:
        value = value.item()
    return operator.index(value) if isinstance(value, Integral) and not isinstance(value, bool) else value


# -- What ends a run ---------------------------------------------------------------------------------------------------


class ResultsFailed(RuntimeError):
    """Some results could not be computed; all others are done."""


class Stopped(RuntimeError):
    """The run cannot go on, for no fault of a result: what is finished is kept, and the same command goes on."""


class TimeIsUp(Stopped):
    """Nothing is started any more."""


class NotPublished(Stopped):
    """Published results do not hold what is asked for."""


GO_ON = "What is finished is kept, and the same command goes on from there"


def remedy(problem: Exception) -> str | None:
    """What to change, where an error says that the machine cannot go on, whatever the result; else None."""
    told = str(problem).lower()
    lost = getattr(torch, "AcceleratorError", ())            # releases before 2.8 do not have it
    if (isinstance(problem, torch.OutOfMemoryError | MemoryError)
            or "out of memory" in told or "can't allocate memory" in told):      # as CUDA and as the CPU say it
        return ("the memory was not enough; take less at once: fewer processes (`workers` of the profile), fewer "
                "models side by side (AT_ONCE in rumlib/ensemble.py), or smaller batches (`batch_size` of the recipe "
                "and of the algorithms: another study)")
    if isinstance(problem, lost) or "cuda error" in told:
        return ("the device is lost, and with it all that this process had there; look at the device (nvidia-smi) and "
                "start again; if it is this result again, the fault is in its code")
    if isinstance(problem, OSError) and problem.errno in FULL:
        return "make room there"
    return None


# -- Asking for results -----------------------------------------------------------------------------------------------


class Computation:
    """A function whose results are kept: computed once for its code, its study's data and settings, its arguments."""

    def __init__(self, compute: Callable, kind: str, whole_module: bool):
        self.compute, self.kind, self.whole_module = compute, kind, whole_module
        self.names = list(inspect.signature(compute).parameters)[1:]
        update_wrapper(self, compute)

    def __reduce__(self):                                    # in another process: the one of that name there
        return self.__qualname__

    def __call__(self, study: Memoized, *arguments) -> dict:
        return study.compute_many(self, [arguments], self.kind)[0]

    def identity(self, study: Memoized, *arguments) -> dict:
        """All that the result depends on."""
        return {"what": self.kind, "code": self.code, "study": study.identity,
                "arguments": dict(zip(self.names, map(identify, arguments), strict=True))}

    @property
    def code(self) -> str:
        """Hash of the code that computes it."""
        return PACKAGE.code(self.__module__) if self.whole_module else code_of(self.compute)

    def load_or_compute(self, study: Memoized, identity: Mapping, arguments: tuple) -> dict | Failure:
        """The result, read back or computed and kept. What goes wrong is recorded, and returned or, inside another
        computation, raised again. Raises Stopped, and records nothing, where it is no fault of the result."""
        return study.store.read(self.kind, digest_of(identity)) or self.recompute(study, identity, arguments)

    def recompute(self, study: Memoized, identity: Mapping, arguments: tuple) -> dict | Failure:
        """The result, computed and kept."""
        seconds = stopwatch()
        try:
            with study.computing():
                values = self.compute(study, *arguments)
            return study.store.write(self.kind, identity, values, seconds())
        except Stopped:                                      # inside this one, another one was
            raise
        except Exception as problem:
            failure = Failure.of(f"{self.kind}({', '.join(map(repr, arguments))})", problem)
            if told := remedy(problem):
                raise Stopped(f"{failure}: {told}. {GO_ON}") from problem
            study.store.fail(self.kind, identity, failure)
            if study.inside:
                raise
            return failure


def stopwatch() -> Callable[[], float]:
    """A function that says how many seconds it has been. On a CPU the time of this process alone counts, so that a busy
    machine makes nothing dearer."""
    clock = time.perf_counter if torch.cuda.is_initialized() else time.process_time
    start = clock()
    return lambda: clock() - start


def memoize(kind: str, *, whole_module: bool = False) -> Callable[[Callable], Computation]:
    """Make a function of a study and plain arguments a computation of that kind. Its results depend on the definitions
    that it reaches; with `whole_module`, on all of its module: for one that hands the study to code of users."""
    return lambda compute: Computation(compute, kind, whole_module)


class Memoized:
    """What computations are of: it asks for results, computes those that are missing on all cores, and keeps count.

    A subclass has `identity`, a dictionary of all that every result depends on. With `published` results every one
    comes from them, and nothing is computed.
    """

    identity: Mapping
    published = None                                         # a `rumlib.lab.results.Published`

    def __init__(self, folder: Path, *, workers: int, quiet: bool):
        self.store = Store(folder / "results")
        self.workers, self.quiet = workers, quiet
        self.manifest = folder / "asked" / f"{settings.notebook()}.json"
        self.used = Counter({"computed": 0, "read back": 0, "retried": 0, "failed": 0})
        self.asked: dict[tuple[str, str], float] = {}        # (kind, key), in order -> seconds that it took
        self.until, self.verified = settings.until(), settings.verified()
        self.inside = False                                  # a computation
        self.bar = None

    @contextmanager
    def computing(self) -> Iterator[None]:
        before, self.inside = self.inside, True
        try:
            yield
        finally:
            self.inside = before

    def compute_many(self, method: Computation, tasks: list[tuple], what: str) -> list[dict]:
        """The values of the results for these arguments, read back or computed. Raises ResultsFailed, at the end, if
        some could not be."""
        found = self.try_compute(method, tasks, what)
        self.refuse_failures(found)
        return [result["values"] for result in found]

    def large(self, method: Computation, *arguments) -> dict[str, Tensor]:
        """The large tensors of a result: read, or computed again where the result is there without them. Raises
        NotPublished where it may not be computed."""
        if self.published:
            raise NotPublished(f"the weights of {method.kind}({', '.join(map(repr, arguments))}) are needed, and "
                               f"{self.published.folder} is results without weights: run without FROM")
        arguments = plain(arguments)
        method(self, *arguments)
        identity = method.identity(self, *arguments)
        key = digest_of(identity)
        found = self.store.large(method.kind, key)
        if found is None:
            self.refuse_failures([method.recompute(self, identity, arguments)])
            found = self.store.large(method.kind, key)
        return found

    def refuse_failures(self, found: list[dict | Failure]) -> None:
        """Raise ResultsFailed, naming them, if some failed."""
        failures = [result for result in found if isinstance(result, Failure)]
        if failures:
            named = "".join(f"\n  {failure}" for failure in failures[:5])
            more = f"\n  and {len(failures) - 5} more" if len(failures) > 5 else ""
            problem = ResultsFailed(f"{len(failures)} of {len(found)} results failed; all that do not need them are "
                                    f"done. Running again tries them once more; {self.store.folder}/*/*.failed say "
                                    f"what happened.{named}{more}")
            problem.add_note(failures[0].trace)
            raise problem

    def try_compute(self, method: Computation, tasks: list[tuple], what: str) -> list[dict | Failure]:
        """The results for these arguments, or what happened instead."""
        tasks = [plain(task) for task in tasks]
        identities = [method.identity(self, *task) for task in tasks]
        if self.published:
            results = [self.published.find(identity) for identity in identities]
            self._count(method.kind, dict(zip(map(digest_of, identities), results, strict=True)), computed=set())
            return results
        if self.inside:                                      # results that another one needs, in its process
            return [method.load_or_compute(self, identity, task)
                    for identity, task in zip(identities, tasks, strict=True)]
        keys = [digest_of(identity) for identity in identities]
        asked, todo = dict(zip(keys, identities, strict=True)), dict(zip(keys, zip(identities, tasks, strict=True),
                                                                         strict=True))
        found = {key: self.store.read(method.kind, key) for key in todo}
        self._note(asked, found)
        missing = {key for key, result in found.items() if result is None}
        if missing:
            with self.alone():                               # what somebody else computed meanwhile is read back too
                found |= {key: self.store.read(method.kind, key) for key in missing}
                missing = {key for key in missing if found[key] is None}
                found |= self._compute(method, {key: task for key, task in todo.items() if key in missing}, what)
        self._verify(method, {key: (found[key], todo[key][1]) for key in todo if key not in missing})
        self._note(asked, found)
        self._count(method.kind, found, computed=missing)
        return [found[key] for key in keys]

    def _compute(self, method: Computation, todo: dict[str, tuple], what: str) -> dict[str, dict | Failure]:
        """What is started before the time is up is finished, and kept. Raises TimeIsUp if not all could be started."""
        self.bar = self.bar if self.bar is not None else tqdm(total=0, disable=self.quiet, unit="result")
        self.bar.total += len(todo)
        self.bar.set_description(what)
        self.used["retried"] += sum(self.store.failed(method.kind, key) for key in todo)
        keys, found = list(todo), {}
        tasks = [(self, method, *todo[key], self.until, PACKAGE.whole) for key in keys if time.time() < self.until]
        for k, result in engine.run(_task, tasks, workers=self.workers,
                                    gpu=self.identity.get("device", "cpu") != "cpu", again=self._again):
            if result is not None:
                found[keys[k]] = result
                self.bar.update()
        if len(found) < len(todo):
            raise TimeIsUp(f"the time is up; {len(todo) - len(found)} of {len(todo)} {what} are left. {GO_ON}")
        return found

    def _again(self, tasks: int) -> None:
        self.used["retried"] += tasks

    def _verify(self, method: Computation, hits: Mapping[str, tuple[dict, tuple]]) -> None:
        """Compute those again that are to be verified, and put on file how they compare."""
        from rumlib.lab.check import compare

        for key, (result, arguments) in hits.items():
            if f"{method.kind}/{key}" in self.verified:
                with self.computing():
                    values = method.compute(self, *arguments)
                large = self.store.large(method.kind, key) if "large" in values else None
                stored = {**result["values"], **({"large": large or values["large"]} if "large" in values else {})}
                told = compare(stored, values, exact=result["made"] == here())
                put(self.manifest.parents[1] / "verified" / f"{method.kind}-{key}.json", json.dumps(told).encode())

    def _count(self, kind: str, found: Mapping[str, dict | Failure], computed: set[str]) -> None:
        for key, result in found.items():
            if isinstance(result, Failure):
                self.used["failed"] += 1
            elif (kind, key) not in self.asked:
                self.used["computed" if key in computed else "read back"] += 1
                self.asked[kind, key] = result["seconds"]

    def _note(self, identities: Mapping[str, Mapping], found: Mapping[str, dict | Failure]) -> None:
        """Put on file, durably, which results this notebook has asked for since it was started, the code that they
        depend on, and the seconds that those took that were `found`."""
        session = _session(self.manifest)
        told = {(identity["what"], key): (None if isinstance(found[key], Failure | None) else found[key]["seconds"],
                                          codes(identity)) for key, identity in identities.items()}
        if any(session.get(name) != own for name, own in told.items()):
            session |= told
            put(self.manifest, asked_for(self.identity, session))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Two notebooks of one study take turns: each computes on all cores, and finds what the other has done."""
        self.store.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.store.folder / ".lock"):          # given back by the system even if this process is killed
            self.store.sweep()
            yield

    def count(self) -> dict:
        """A report of the run: results computed, read back, tried again, failed; their cost, in seconds of one core,
        the computing of those read back included; and a digest of all keys, in the order in which they were asked
        for."""
        return {**self.used, "core seconds": round(sum(self.asked.values()), 1), "digest": digest_of(list(self.asked))}


@cache
def _session(manifest: Path) -> dict[tuple[str, str], tuple]:
    return {}


def asked_for(study: Mapping, results: Mapping[tuple[str, str], tuple[float | None, Mapping]]) -> bytes:
    """The file that says what a notebook has asked for: (kind, key) -> (seconds, if known; name -> hash of its
    code)."""
    known = {name: code for _, own in results.values() for name, code in own.items()}
    listed = [[*name, seconds, *sorted(own)] for name, (seconds, own) in results.items()]
    return json.dumps({"study": study, "codes": known, "results": listed}).encode()


def _task(study: Memoized, method: Computation, identity: Mapping, arguments: tuple, until: float,
          code: str) -> dict | Failure | None:
    """A result; None if it is too late for it. The code and the study must be those of the process that asks for it:
    files may have changed since, or differ from machine to machine."""
    if time.time() >= until:
        return None
    if code != PACKAGE.whole or study.identity != identity["study"]:
        other = ", ".join(differences(study.identity, identity["study"], "study")) or "code"
        raise RuntimeError(f"a worker finds another {other} than the process that asked for {method.kind}: files were "
                           f"changed while it ran, or machines differ. Start it again")
    return method.load_or_compute(study, identity, arguments)
