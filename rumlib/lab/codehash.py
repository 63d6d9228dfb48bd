"""The code that a result depends on, as a hash.

    code_of(Finetune)                                        # changes with its loss, with `xent`, with `descend`, ...
    code_of(computations.run)                                # ... and not with an algorithm that it does not name
    PACKAGE.reached("rumlib.train.fit")                      # the definitions behind it, by name

A definition is a function, a class or a constant at the top of a file. Its hash covers its own code and that of every
definition that it reaches: those that it names, those that these name, and so on. What a definition is called, and in
which file it stands, does not count, so that moving a file or renaming a helper changes no hash. Nor do docstrings,
comments, layout, annotations, and the text of messages that are raised or warned of. A type that is named in an
annotation counts as reached, since its methods may be called. What is found by text at run time (``getattr``) is not
seen. The files of the package are parsed; nothing is executed.

Code outside of the package, such as a cell of a notebook, is hashed in the same way from the source of its functions,
with the functions, classes and plain values of its own module that it names. Each function then carries its source
along, so that a process which has only a copy of the function finds the same hash.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from types import FunctionType, ModuleType

# What changes no result does not count: the machinery of the lab, but for what it computes; the readers of data, whose
# content counts; recorded steps, which repeat the steps that count bit by bit.
COUNTED = ("rumlib.lab.computations", "rumlib.lab.banks")
APART = ("rumlib.lab", "rumlib.columns", "rumlib.datasets", "rumlib.graphs")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITIONS = (*FUNCTIONS, ast.ClassDef)
SCOPES = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
LEFT_OUT = ("annotation", "returns", "type_params", "type_comment", "kind", "ctx")


def code_of(thing: type | Callable) -> str:
    """Hash of all code that a class or function depends on (see above). Raises TypeError for one without a source."""
    if _home(thing) == PACKAGE.name:
        return PACKAGE.code(f"{thing.__module__}.{thing.__qualname__.partition('.<locals>')[0]}")
    own = Own(_home(thing))
    return own.code(own.reference(thing))


def _hash(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


# -- The text of a definition -----------------------------------------------------------------------------------------


@dataclass
class Text:
    """The code of a definition: its tokens, in which the k-th definition that it names stands as "#k"; those
    definitions, in the order of their first use; and those that only its annotations name."""

    tokens: list[str] = field(default_factory=list)
    named: dict[object, None] = field(default_factory=dict)
    hinted: set = field(default_factory=set)

    def number(self, reference: object) -> int:
        self.named.setdefault(reference)
        return list(self.named).index(reference)


class Writer:
    """Writes nodes of a syntax tree as tokens. `resolve(names)` says what a chain of names such as ("engine", "run")
    means: (a reference to a definition or None, text of what is left of the chain)."""

    def __init__(self, resolve: Callable[[tuple[str, ...]], tuple[object | None, str]], text: Text):
        self.resolve, self.text = resolve, text

    def write(self, node: object, own: frozenset[str] = frozenset(), *, top: str = "") -> None:
        """`own` are variables of the functions around the node, which mean no definition; `top` is the name that a
        statement at the top of a file defines, and that does not count."""
        if isinstance(node, list):
            for item in node:
                self.write(item, own, top=top)
        elif not isinstance(node, ast.AST):
            self.text.tokens.append(repr(node))
        elif (chain := _chain(node)) and chain[0] not in own:
            reference, rest = self.resolve(chain)
            if reference is not None:
                rest = f"#{self.text.number(reference)}{rest}"
            self.text.tokens.append(rest)
        elif top and isinstance(node, ast.Name):             # assigned to: the name that is asked about, or another
            self.text.tokens.append("=" if node.id == top else "_")
        else:
            self.text.tokens.append(type(node).__name__)
            for name, value in self._fields(node, top):
                self.text.tokens.append(name)                # else the two branches of an if would run into each other
                inside = isinstance(node, SCOPES) or (isinstance(node, FUNCTIONS) and name == "body")
                self.write(value, own | _variables(node) if inside else own,
                           top="" if isinstance(node, (*DEFINITIONS, *SCOPES)) else top)
            self.text.tokens.append(".")

    def _fields(self, node: ast.AST, top: str) -> Iterator[tuple[str, object]]:
        """The fields of a node that count, by name."""
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            node = node.exc
        if isinstance(node, ast.Call) and _message(node.func):
            yield "func", node.func
            return
        for name, value in ast.iter_fields(node):
            if name in LEFT_OUT:
                if name in ("annotation", "returns") and value is not None:
                    self._hint(value)
            elif name == "decorator_list":
                yield name, [decorator for decorator in value if not self._apart(decorator)]
            elif name == "body" and isinstance(node, DEFINITIONS):
                yield name, [s for s in value if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
            elif name == "values" and isinstance(node, ast.JoinedStr):       # Python 3.12 and newer add empty parts
                yield name, [part for part in value if getattr(part, "value", None) != ""]
            elif value is not None and value != [] and not (name == "name" and top):
                yield name, value

    def _hint(self, annotation: ast.expr) -> None:
        for chain in map(_chain, ast.walk(annotation)):
            self.text.hinted |= {self.resolve(chain)[0]} - {None} if chain else set()

    def _apart(self, decorator: ast.expr) -> bool:
        """Whether it is a decorator that changes no result: of the lab's machinery, or one that keeps values."""
        chain = _chain(decorator.func if isinstance(decorator, ast.Call) else decorator)
        return bool(chain) and self.resolve(chain)[1].startswith(("apart", "functools."))


def _chain(node: ast.AST) -> tuple[str, ...]:
    """The names of an expression such as ``engine.run``, where it is read; () for any other."""
    attributes = []
    while isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        attributes.append(node.attr)
        node = node.value
    return (node.id, *reversed(attributes)) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) else ()


def _message(function: ast.expr) -> bool:
    """Whether the arguments of this function are a message: it warns, adds a note, or makes an exception."""
    name = getattr(function, "attr", getattr(function, "id", ""))
    return name in ("warn", "add_note") or name.endswith(("Error", "Warning"))


@cache
def _variables(scope: ast.AST) -> frozenset[str]:
    """The arguments and variables of a function, lambda or comprehension, not those of scopes inside it."""
    if not isinstance(scope, FUNCTIONS):
        arguments = [a.arg for a in ast.walk(scope.args) if isinstance(a, ast.arg)] if hasattr(scope, "args") else []
        targets = [node for made in getattr(scope, "generators", ()) for node in ast.walk(made.target)]
        return frozenset([*arguments, *(node.id for node in targets if isinstance(node, ast.Name))])
    found, waiting, shared = {a.arg for a in ast.walk(scope.args) if isinstance(a, ast.arg)}, [*scope.body], set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.add(node.id)
        elif isinstance(node, ast.Global | ast.Nonlocal):
            shared.update(node.names)
        elif isinstance(node, DEFINITIONS):
            found.add(node.name)
        elif not isinstance(node, SCOPES):
            waiting += ast.iter_child_nodes(node)
    return frozenset(found - shared)


class Definitions:
    """Definitions and what they reach. A subclass says what the `text` of each is."""

    def __init__(self):
        self.text, self._own, self.code = cache(self.text), cache(self._own), cache(self.code)

    def code(self, reference: object) -> str:
        """Hash of all code that a definition depends on."""
        return _hash([self._own(reference), sorted(self._own(other) for other in self.reached(reference))])

    def reached(self, reference: object) -> set:
        """The definition itself and all that it depends on."""
        found, waiting = set(), [reference]
        while waiting:
            reference = waiting.pop()
            if reference not in found:
                found.add(reference)
                waiting += [*self.text(reference).named, *self.text(reference).hinted]
        return found

    def _own(self, reference: object) -> str:
        """Hash of a definition and of all that it names. These stand in it by their order of appearance, in place of
        their names: one that names itself, or is named by what it names, is a number like any other."""
        order, found = [reference], []
        for reference in order:                              # it grows while it is walked through
            text = self.text(reference)
            order += [other for other in text.named if other not in order]
            found.append((text.tokens, [order.index(other) for other in text.named]))
        return _hash(found)


# -- The package, from its files --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Module:
    """The top of a file: name -> the statements that define it, and name -> where it is imported from."""

    defined: dict[str, list[ast.stmt]]
    imported: dict[str, str]


class Package(Definitions):
    """The definitions of a package and what they reach, by dotted name: "rumlib.train.fit".

    The files are read when the object is made: what is edited later is not what this process runs.
    """

    def __init__(self, folder: Path, apart: tuple[str, ...] = APART, counted: tuple[str, ...] = COUNTED):
        self.name, self.apart, self.counted = folder.name, apart, counted
        self.texts = {".".join(file.relative_to(folder.parent).with_suffix("").parts).removesuffix(".__init__"):
                      file.read_text() for file in sorted(folder.rglob("*.py"))}
        self.module = cache(self.module)
        super().__init__()

    @cached_property
    def whole(self) -> str:
        """Hash of all files of the package: what the processes of a run must have in common."""
        return _hash(self.texts)

    @cached_property
    def kinds(self) -> dict[str, str]:
        """Kind of result -> dotted name of the function that computes it, whose decorator names the kind; of the module
        where all of that counts."""
        return {call.args[0].value: home if call.keywords else f"{home}.{name}"
                for home in self.counted for name, statements in self.module(home).defined.items()
                for call in getattr(statements[-1], "decorator_list", ())
                if isinstance(call, ast.Call) and call.args and isinstance(call.args[0], ast.Constant)}

    def find(self, name: str) -> str | None:
        """The dotted name of the definition with that plain name that counts; None if there is none."""
        homes = [home for home in self.texts if not self._is_apart(home) and name in self.module(home).defined]
        return f"{homes[0]}.{name}" if len(homes) == 1 else None

    def text(self, name: str) -> Text:
        """The text of a definition. A module names all that it defines."""
        if name in self.texts:
            return Text(["module"], {f"{name}.{own}": None for own in self.module(name).defined})
        home, _, own = name.rpartition(".")
        while home not in self.texts:                        # a method, or a class inside a class: the outermost one
            home, _, own = home.rpartition(".")
        module = self.module(home)
        found = Text()
        for statement in module.defined[own]:
            Writer(partial(self._resolve, home, module.imported | _imports(statement)), found).write(statement, top=own)
        return found

    def module(self, name: str) -> Module:
        defined, imported = defaultdict(list), {}
        for statement in ast.parse(self.texts[name]).body:
            if not isinstance(statement, DEFINITIONS):
                imported |= _imports(statement)
            for bound in _bound(statement):
                defined[bound].append(statement)
        return Module(dict(defined), imported)

    def _resolve(self, home: str, imported: Mapping[str, str], chain: tuple[str, ...]) -> tuple[str | None, str]:
        root, *rest = chain
        if root in self.module(home).defined:                # also one that an import may have defined before
            return self._follow(".".join((home, *chain)))
        return self._follow(".".join((imported[root], *rest))) if root in imported else (None, ".".join(chain))

    def _follow(self, target: str) -> tuple[str | None, str]:
        """What a dotted name means, wherever it is imported from: (definition or module, rest)."""
        if target.partition(".")[0] != self.name:
            return None, target
        home = max((name for name in self.texts if f"{target}.".startswith(f"{name}.")), key=len)
        own, _, rest = target[len(home) + 1:].partition(".")
        if self._is_apart(home):
            return None, "apart"
        if not own:
            return home, ""
        module = self.module(home)
        if own not in module.defined and own in module.imported:
            return self._follow(".".join(filter(None, (module.imported[own], rest))))
        return (f"{home}.{own}", rest) if own in module.defined else (None, target)

    def _is_apart(self, home: str) -> bool:
        return home not in self.counted and any(f"{home}.".startswith(f"{apart}.") for apart in self.apart)


def _bound(statement: ast.stmt) -> list[str]:
    """The names that a statement at the top of a file defines; an import defines none."""
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


PACKAGE = Package(Path(__file__).parents[1])


# -- Code of others, from its source ----------------------------------------------------------------------------------


def _home(thing: object) -> str:
    return thing.__module__.partition(".")[0]


class Own(Definitions):
    """The code of functions and classes of one top-level module that is not the package: `__main__`, or a user's own.
    References are ("package", dotted name) or ("own", id of an object that is kept in `objects`)."""

    def __init__(self, home: str):
        self.home, self.objects = home, {}
        super().__init__()

    def reference(self, thing: object) -> tuple[str, object]:
        if _home(thing) == PACKAGE.name:
            return "package", f"{thing.__module__}.{thing.__qualname__}"
        self.objects[id(thing)] = thing
        return "own", id(thing)

    def text(self, reference: tuple[str, object]) -> Text:
        where, which = reference
        if where == "package":
            return Text([PACKAGE.code(which)])
        thing = self.objects[which]
        return self._class(thing) if isinstance(thing, type) else self._function(thing)

    def _function(self, thing: FunctionType) -> Text:
        known = {**thing.__globals__, **inspect.getclosurevars(thing).nonlocals}
        tree = ast.parse(source(thing)).body[0]
        statement = tree.body[0] if isinstance(tree, ast.If) else tree
        found = Text()
        Writer(partial(self._resolve, known, _imports(statement)), found).write(statement, top=thing.__name__)
        return found

    def _class(self, thing: type) -> Text:
        text = Text([thing.__qualname__])
        for base in thing.__bases__:
            self._append(text, base)
        for name, value in sorted(vars(thing).items()):      # methods can be behind a decorator
            inside = [getattr(value, part, None) for part in ("__func__", "fget", "func", "__wrapped__")]
            value = next((part for part in inside if isinstance(part, FunctionType)), value)
            if isinstance(value, FunctionType) and value.__code__.co_filename.startswith("<string>"):
                continue                                     # made by dataclass, from fields that count themselves
            if not name.startswith("__") or (isinstance(value, type | FunctionType)
                                             and _home(value) in (PACKAGE.name, self.home)):   # not of dataclasses
                text.tokens.append(name)
                self._append(text, value)
        return text

    def _append(self, text: Text, value: object) -> None:
        reference, rest = self._means(value)
        text.tokens.append(rest if reference is None else f"#{text.number(reference)}")

    def _resolve(self, known: Mapping, imported: Mapping[str, str],
                 chain: tuple[str, ...]) -> tuple[object | None, str]:
        root, *rest = chain
        if root in imported and root not in known:           # imported inside of the function
            known = {**known, root: _imported(imported[root])}
        if root not in known or known[root] is None:
            return None, ".".join(chain)
        value = known[root]
        while isinstance(value, ModuleType) and rest and hasattr(value, rest[0]):
            value = getattr(value, rest.pop(0))
        reference, text = self._means(value)
        return reference, ".".join((text, *rest))

    def _means(self, value: object) -> tuple[object | None, str]:
        """(reference, text) of a value that code names: a definition, or the content of a plain value."""
        if not isinstance(value, type | FunctionType):
            value = getattr(value, "__wrapped__", value)     # a function behind a decorator that is a class
        if isinstance(value, partial):
            reference, text = self._means(value.func)
            return reference, f"{text}{_lasting(value.args)}{_lasting(value.keywords)}"
        if not isinstance(value, type | FunctionType):
            return None, repr(_lasting(value))
        if _home(value) in (PACKAGE.name, self.home):
            return self.reference(value), ""
        return None, f"{value.__module__}.{value.__qualname__}"          # of a library: its version stands for it


def _imported(name: str) -> object:
    module, _, own = name.rpartition(".")
    return sys.modules.get(name) or getattr(sys.modules.get(module), own, None)


def source(thing: FunctionType) -> str:
    """The source of a function that is not of this package. It stays with the function, also where that is sent to
    another process. Raises TypeError where there is none, or where two lambdas share a line."""
    text = vars(thing).get("__source__")
    if text is None:
        try:
            text = inspect.getsource(thing)
            text = f"if True:\n{text}" if text[:1].isspace() else text
            nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, (*DEFINITIONS, ast.Lambda))]
            names = [getattr(node, "name", "<lambda>") for node in nodes]
            written = inspect.unwrap(thing)
            if (written.__code__.co_name if isinstance(written, FunctionType) else written.__name__) not in names:
                # Python 3.13 keeps one text for all code that has no file
                raise OSError(f"what is kept there is {text[:60]!r}")
        except (OSError, TypeError, SyntaxError) as problem:
            raise TypeError(f"{thing.__qualname__} has no source that could be read, so that its results could not be "
                            f"found again; define it in a notebook or in a file, by def") from problem
        if thing.__name__ == "<lambda>" and names.count("<lambda>") > 1:
            raise TypeError("two lambdas in one statement cannot be told apart; define them with def")
        thing.__source__ = text
    return text


def _lasting(value: object) -> object:
    """A value by its content where that can be told, else by its type."""
    if isinstance(value, tuple | list):
        return [_lasting(v) for v in value]
    if isinstance(value, set | frozenset):
        return sorted(repr(_lasting(v)) for v in value)      # the order of a set differs from process to process
    if isinstance(value, dict):
        return sorted((repr(_lasting(k)), _lasting(v)) for k, v in value.items())
    if type(value).__module__ == "torch":
        from rumlib.data import digest

        return digest(value) if hasattr(value, "numpy") else repr(value)
    if isinstance(getattr(value, "digest", None), str):
        return value.digest
    if isinstance(value, bool | int | float | complex | str | bytes | None):
        return repr(value)
    if is_dataclass(value) and "<" not in repr(value):       # an address, or something else that does not last
        return repr(value)
    return value.__name__ if isinstance(value, ModuleType) else type(value).__qualname__
