"""Finished cells of a study on disk: computed once, read back whenever they are asked for again.

    @remembered                                              # on a method of a study, which has a store and an identity
    def oracle(self, forget, seed): ...                      # returns plain values, and tensors under "tensors"

A cell is found by what it depends on: the study's data and recipe, its arguments, its code.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path

import safetensors.torch
from torch import Tensor

from rumlib.code import code_of
from rumlib.data import digest
from rumlib.models import describe

FORMAT = 1                                                   # of the files: one more whenever what they hold changes


@dataclass(frozen=True)
class Store:
    """Finished cells in a folder: a JSON file with identity and values of each, its tensors in safetensors beside it.

    A file is written under a temporary name and renamed when it is whole. One that is damaged is set aside, reported
    and computed again.
    """

    folder: Path

    def path(self, kind: str, key: str) -> Path:
        return self.folder / kind / f"{key}.json"

    def read(self, kind: str, key: str) -> dict | None:
        """The values of a cell, tensors under "tensors" if it has any; None if it is not there."""
        path = self.path(kind, key)
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            cell = json.loads(text)
            if cell["checksum"] != _checksum(cell["values"]):
                raise ValueError("its checksum does not fit its values")
            values = cell["values"]
            if "tensors" in values:
                data = path.with_suffix(".safetensors").read_bytes()
                if hashlib.sha256(data).hexdigest() != values["tensors"]:
                    raise ValueError("the checksum of its tensors does not fit")
                values["tensors"] = safetensors.torch.load(data)
            return values
        except (ValueError, KeyError, OSError, TypeError) as problem:
            warnings.warn(f"{path} is damaged ({problem}); it is set aside as {path.name}.damaged and computed again",
                          stacklevel=2)
            os.replace(path, path.with_suffix(".json.damaged"))
            return None

    def write(self, kind: str, key: str, identity: Mapping, values: dict) -> None:
        path = self.path(kind, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        if "tensors" in values:
            data = safetensors.torch.save({k: t.contiguous() for k, t in values["tensors"].items()})
            _replace(path.with_suffix(".safetensors"), data)
            values = {**values, "tensors": hashlib.sha256(data).hexdigest()}
        cell = {"identity": identity, "values": values, "checksum": _checksum(values)}
        _replace(path, json.dumps(cell, indent=1).encode())


def _checksum(values: dict) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def remembered(compute: Callable) -> Callable:
    """Make a method of a study a cell: computed once for each value of its arguments, its code and its study's data."""
    names = list(inspect.signature(compute).parameters)[1:]

    def identity(study, *arguments) -> dict:
        return {"what": compute.__name__, "code": code_of(compute), "study": study.identity,
                "arguments": {name: identify(value) for name, value in zip(names, arguments, strict=True)}}

    def call(study, *arguments) -> dict:
        who = identity(study, *arguments)
        key = digest_of(who)
        values = study.store.read(compute.__name__, key)
        if values is None:
            values = compute(study, *arguments)
            study.store.write(compute.__name__, key, who, values)
        return values

    def lookup(study, *arguments) -> dict | None:
        return study.store.read(compute.__name__, digest_of(identity(study, *arguments)))

    call.lookup, call.identity, call.__name__, call.__doc__ = lookup, identity, compute.__name__, compute.__doc__
    return call


def identify(value) -> object:
    """What stands for a value in the identity of a cell: plain values as they are, data by content, algorithms by their
    class, its code and their fields. Raises TypeError for what could not be found again."""
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, tuple | list | range):
        return [identify(v) for v in value]
    if hasattr(value, "digest"):
        return value.digest
    if isinstance(value, Tensor):
        return digest(value)
    if is_dataclass(value) and not isinstance(value, type):
        own = {f.name: factory(getattr(value, f.name)) if f.name == "make_model" else identify(getattr(value, f.name))
               for f in fields(value)}
        kind = type(value)
        return {"class": f"{kind.__module__}.{kind.__qualname__}", "code": code_of(kind), "fields": own}
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
    return {"factory": describe(make_model), "code": code_of(function)}


def digest_of(identity: Mapping) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]
