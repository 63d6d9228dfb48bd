"""What the result of a piece of code depends on: its own text and that of every definition it reaches.

    code_of(Finetune)                                        # changes with its loss, with `xent`, with `descend`, ...
    code_of(Study.run)                                       # ... and not with an algorithm that it does not name
    PACKAGE.reached("rumlib.train.fit")                      # the definitions behind it, by name

The files of the package are parsed, and nothing is executed. A definition is a function, a class or a constant at the
top of a file; it reaches those that it names, and so on: in its body, annotations, bases, decorators and defaults.
Docstrings, comments and layout do not count. A class counts as a whole, unless a method of it is asked about: that one
reaches others of its class by ``self.name`` alone. What is found by text at run time (``getattr``) is not seen.

Code outside of the package has no files to read (it can be a cell of a notebook): of that, compiled functions count,
with the functions, classes and plain values of their own module that they name, and what they name of the package.
"""

from __future__ import annotations

import ast
import dis
import hashlib
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

from torch import Tensor

from rumlib.data import digest

# What changes no result, and the loading of data, whose content is part of every key: their code does not count.
APART = ("rumlib.lab.memo", "rumlib.lab.codehash", "rumlib.lab.engine", "rumlib.lab.results", "rumlib.data.load")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITIONS = (*FUNCTIONS, ast.ClassDef)
SCOPES = (ast.ClassDef, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def code_of(thing: type | Callable) -> str:
    """Hash of all code that the class or function depends on (see above)."""
    if thing.__module__.partition(".")[0] == PACKAGE.name:
        return PACKAGE.code(f"{thing.__module__}.{thing.__qualname__.partition('.<locals>')[0]}")
    return _hash(list(_pieces(thing, thing.__module__.partition(".")[0], set())))


def _hash(value) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


# -- The package, from its files --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Module:
    """The top of a file: name -> the statements that define it, and name -> where it is imported from. Statements that
    define nothing stand under ""; they count for every definition of the file."""

    defined: dict[str, list[ast.stmt]]
    imported: dict[str, str]


class Package:
    """The definitions of a package and what they reach, by dotted name: "rumlib.train.fit", "rumlib.lab.study.Study.run".

    The files are read when the object is made: what is edited later is not what this process runs.
    """

    def __init__(self, folder: Path, apart: tuple[str, ...] = APART):
        self.name, self.apart = folder.name, apart
        self.texts = {".".join(file.relative_to(folder.parent).with_suffix("").parts).removesuffix(".__init__"):
                      file.read_text() for file in sorted(folder.rglob("*.py"))}
        self.module, self.uses, self.code = cache(self.module), cache(self.uses), cache(self.code)

    def __contains__(self, name: str) -> bool:
        home, rest = self._split(name)
        return bool(rest) and rest[0] in self.module(home).defined

    def code(self, name: str) -> str:
        """Hash of all code that the definition depends on. Raises KeyError if there is no such definition."""
        return _hash(sorted((reached, self.uses(reached)[0]) for reached in self.reached(name)))

    @cached_property
    def whole(self) -> str:
        """Hash of all code of the package."""
        return _hash([[ast.dump(s) for s in statements] for name in self.texts
                      for statements in self.module(name).defined.values()])

    def reached(self, name: str) -> set[str]:
        """The definition itself and all that it depends on."""
        found, waiting = set(), [name]
        while waiting:
            name = waiting.pop()
            if name not in found and not any(f"{name}.".startswith(f"{apart}.") for apart in self.apart):
                found.add(name)
                waiting += self.uses(name)[1]
        return found

    def module(self, name: str) -> Module:
        defined, imported = defaultdict(list), {}
        for statement in _bare(ast.parse(self.texts[name])).body:
            if not isinstance(statement, DEFINITIONS):
                imported |= _imports(statement)
            if not isinstance(statement, ast.Import | ast.ImportFrom):
                for bound in _bound(statement) or [""]:
                    defined[bound].append(statement)
        return Module(dict(defined), imported)

    def uses(self, name: str) -> tuple[str, set[str]]:
        """(text, names of the definitions that it names itself) of a definition, of a member of a class, or of a
        module, which names all that it defines."""
        if name in self.texts:
            return name, {f"{name}.{bound}" for bound in self.module(name).defined}
        home, (top, *member) = self._split(name)
        module = self.module(home)
        statements = module.defined[top]
        text, found = "", {f"{home}.{top}" for top in module.defined if not top}
        owner = selves = None
        if member:
            owner = f"{home}.{top}"
            statements = [s for s in statements[-1].body if member[0] in _bound(s)]
            selves = {top, *(s.args.args[0].arg for s in statements if isinstance(s, FUNCTIONS) and s.args.args)}
        for statement in statements:
            text += ast.dump(statement)
            known = module.imported | _imports(statement)
            for root, *rest in sorted(_chains(statement, known=frozenset(selves or ()))):
                if owner and (root in selves or root == "super"):
                    found |= self._members(owner, rest, above=root == "super")
                    continue
                if root in module.defined:
                    found.add(f"{home}.{root}")
                if root in known:
                    found |= {self._follow(".".join((known[root], *rest)))} - {None}
                    text += f"{root}={known[root]};"
        return text, found

    def _split(self, name: str) -> tuple[str, list[str]]:
        """The module of a dotted name, and the rest."""
        parts = name.split(".")
        length = max(k for k in range(1, len(parts) + 1) if ".".join(parts[:k]) in self.texts)
        return ".".join(parts[:length]), parts[length:]

    def _follow(self, target: str) -> str | None:
        """The definition (or module) that a dotted name means, wherever it is imported from; None if outside."""
        if target.partition(".")[0] != self.name:
            return None
        home, rest = self._split(target)
        module = self.module(home)
        if not rest:
            return home
        if rest[0] in module.defined:
            return f"{home}.{rest[0]}"
        return self._follow(".".join((module.imported[rest[0]], *rest[1:]))) if rest[0] in module.imported else None

    def _members(self, owner: str, rest: list[str], *, above: bool) -> set[str]:
        """What ``self.name`` reaches in a class or its bases; the class as a whole where `self` is handed on."""
        home, (top,) = self._split(owner)
        definition = self.module(home).defined[top][-1]
        bases = {self._follow(f"{home}.{ast.unparse(base)}") for base in definition.bases} - {None}
        if above:
            return bases
        if not rest:
            return {owner}
        if any(rest[0] in _bound(statement) for statement in definition.body):
            return {f"{owner}.{rest[0]}"}
        return set().union(*(self._members(base, rest, above=False) for base in bases))


def _bare(tree: ast.Module) -> ast.Module:
    """Without docstrings, and other strings that stand alone."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, *DEFINITIONS)):
            node.body = [s for s in node.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
    return tree


def _bound(statement: ast.stmt) -> list[str]:
    """The names that a statement at the top of a file or class defines."""
    if isinstance(statement, DEFINITIONS):
        return [statement.name]
    return [name for node in ast.walk(statement) for name in (
        [node.id] if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load) else
        [node.name] if isinstance(node, DEFINITIONS) else [])]


def _imports(statement: ast.stmt) -> dict[str, str]:
    """Name -> dotted name that it stands for, of all imports in a statement."""
    found = {}
    for node in ast.walk(statement):
        if isinstance(node, ast.Import):
            found |= {a.asname: a.name for a in node.names if a.asname}
            found |= {top: top for top in (a.name.partition(".")[0] for a in node.names if not a.asname)}
        elif isinstance(node, ast.ImportFrom):
            found |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return found


def _chains(tree: ast.AST, own: frozenset[str] = frozenset(), known: frozenset[str] = frozenset()) -> set[tuple]:
    """All names that are read, with the attributes taken from them: engine.run -> ("engine", "run"). The variables of
    a function (`own`) are left out, unless they are `known`; those of a lambda or comprehension are not known as such,
    so that one with the name of a definition counts as that: too much is computed again then, never too little."""
    attributes = []
    node = tree
    while isinstance(node, ast.Attribute):
        attributes.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name):
        read = isinstance(node.ctx, ast.Load) and (node.id in known or node.id not in own)
        return {(node.id, *reversed(attributes))} if read else set()
    found = set()
    for part in ast.iter_child_nodes(node):
        inside = isinstance(node, FUNCTIONS) and part in node.body       # not its decorators, defaults, annotations
        found |= _chains(part, own | _variables(node) if inside else own, known)
    return found


@cache
def _variables(function: ast.FunctionDef) -> frozenset[str]:
    """The arguments and variables of a function; those of functions and comprehensions inside it are not its own."""
    found, waiting, shared = {a.arg for a in ast.walk(function.args) if isinstance(a, ast.arg)}, [*function.body], set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.add(node.id)
        elif isinstance(node, ast.Global | ast.Nonlocal):
            shared.update(node.names)
        elif isinstance(node, FUNCTIONS):
            found.add(node.name)
        elif not isinstance(node, SCOPES):
            waiting += ast.iter_child_nodes(node)
    return frozenset(found - shared)


PACKAGE = Package(Path(__file__).parents[1])


# -- Code of others, as it is compiled --------------------------------------------------------------------------------


def _pieces(thing, home: str, seen: set) -> Iterator[object]:
    """What counts of an object named by code of the top-level module `home`, in an order that any process finds."""
    if not isinstance(thing, type | FunctionType):
        thing = getattr(thing, "__wrapped__", thing)         # a function behind a decorator that is a class
    if isinstance(thing, partial):
        yield from (piece for part in (thing.func, thing.args, thing.keywords) for piece in _pieces(part, home, seen))
    elif not isinstance(thing, type | FunctionType):
        yield _lasting(thing)
    elif thing.__module__.partition(".")[0] == PACKAGE.name:
        yield code_of(thing)
    elif thing.__module__.partition(".")[0] != home:
        yield f"{thing.__module__}.{thing.__qualname__}"     # of a library: its version stands for it
    elif thing not in seen:
        seen.add(thing)
        yield from _class(thing, home, seen) if isinstance(thing, type) else _function(thing, home, seen)


def _class(thing: type, home: str, seen: set) -> Iterator[object]:
    for base in thing.__bases__:
        yield from _pieces(base, home, seen)
    for name, value in sorted(vars(thing).items()):          # methods can be behind a decorator
        inside = [getattr(value, part, None) for part in ("__func__", "fget", "func", "__wrapped__")]
        value = next((part for part in inside if isinstance(part, FunctionType)), value)
        if isinstance(value, type | FunctionType):
            yield name
            yield from _pieces(value, home, seen)
        elif not name.startswith("__"):
            yield name, _lasting(value)


def _function(thing: FunctionType, home: str, seen: set) -> Iterator[object]:
    yield _compiled(thing.__code__, thing.__doc__)
    inside = [cell.cell_contents for cell in thing.__closure__ or () if cell != type(cell)()]
    for value in (*(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values(), *inside):
        yield from _pieces(value, home, seen)
    for name in _global_names(thing.__code__):
        value = thing.__globals__.get(name)
        if isinstance(value, ModuleType) and value.__name__.partition(".")[0] == PACKAGE.name:
            for attribute in sorted(set(_attributes(thing.__code__)) & set(vars(value))):
                yield from _pieces(getattr(value, attribute), home, seen)
        elif value is not None:
            yield name
            yield from _pieces(value, home, seen)


def _lasting(value) -> object:
    """A value by its content where that can be told, else by its type."""
    if isinstance(value, tuple | list):
        return [_lasting(v) for v in value]
    if isinstance(value, set | frozenset):
        return sorted(repr(_lasting(v)) for v in value)      # the order of a set differs from process to process
    if isinstance(value, dict):
        return sorted((repr(_lasting(k)), _lasting(v)) for k, v in value.items())
    if isinstance(value, Tensor):
        return digest(value)
    if isinstance(getattr(value, "digest", None), str):
        return value.digest
    if isinstance(value, bool | int | float | complex | str | bytes | None):
        return repr(value)
    if is_dataclass(value) and "<" not in repr(value):       # an address, or something else that does not last
        return repr(value)
    return value.__name__ if isinstance(value, ModuleType) else type(value).__qualname__


def _compiled(code: CodeType, doc: str | None = None) -> list:
    """A compiled function without its names of variables, line numbers and docstring."""
    constants = [_compiled(c) if inspect.iscode(c) else _lasting(c) for c in code.co_consts if doc is None or c != doc]
    return [code.co_code.hex(), code.co_names, constants]


@cache
def _global_names(code: CodeType) -> list[str]:
    own = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return sorted(own.union(*(_global_names(c) for c in code.co_consts if inspect.iscode(c))))


def _attributes(code: CodeType) -> list[str]:
    return [*code.co_names, *(name for c in code.co_consts if inspect.iscode(c) for name in _attributes(c))]
