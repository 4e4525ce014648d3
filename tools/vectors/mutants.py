"""Breaks the reader in spec/python in every way that its source tells, and finds out which vectors notice.

    python -m tools.vectors.mutants                 all mutants
    python -m tools.vectors.mutants layouts.check   those whose names begin so

A mutant is the reader with one thing changed: a statement or an argument left out, a condition that always or never
holds, a special case skipped, a comparison or a constant that is off by one, an operand left out. Each has to get a
vector wrong. Those that need not are in mutants.txt, with the reason.

Prints mutants that get no vector wrong and are not in mutants.txt, and those in it that get one wrong, or do not exist;
exits with 1 if there are any. First it finds out which vectors come to each statement: a mutant meets those alone that
come to what is changed, since all others see the reader as it is.
"""

from __future__ import annotations

import ast
import builtins
import importlib.abc
import importlib.util
import itertools
import json
import multiprocessing
import os
import re
import resource
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NamedTuple

import click
from rich.console import Console
from rich.progress import track

from tools.vectors import conformance as kit
from tools.vectors.make import FOLDER
from tools.vectors.spec_reader import PATH

ACCEPTED = Path(__file__).with_suffix(".txt")
"""Paragraphs of a reason, whose lines begin with `# `, and of the names of the mutants that it holds for."""

SOURCES = {file.stem: file for file in sorted(PATH.parent.glob("*.py"))}

NOT_IN_THE_KIT = {"reader.main", "reader.metadata", "reader.multiply"}
"""Functions that the kit does not call."""

GUARDS = {"typed"}
"""Functions that check their first argument and return it."""

SHORT, ABOUT = 150, 40
"""Characters of a statement that is shown as a whole, and of what is shown on each side of a change of a longer one."""

SECONDS = 120
"""Of computing. A mutant that takes more is caught: it hangs."""

ADDRESSES = 16 << 30
"""Bytes of the address space of a mutant. One that needs more is caught."""


# ----------------------------------------------------------------------------------------------------------- Mutations


def mutations(node: ast.AST) -> Iterator[ast.AST]:
    """What to put in the place of a statement or an expression, one at a time."""
    match node:
        case ast.Expr() | ast.AugAssign() | ast.Continue() | ast.Break() | ast.Assign(targets=[ast.Subscript()]):
            yield ast.Pass()
        case ast.If() | ast.While():
            for holds in (True, False) if isinstance(node, ast.If) else (False,):
                yield replaced(node, test=ast.Constant(holds))
        case ast.comprehension(ifs=[_, *_]):
            yield replaced(node, ifs=[])
        case ast.IfExp():
            yield from (node.body, node.orelse)
        case ast.BoolOp():
            for left_out in node.values:
                others = [operand for operand in node.values if operand is not left_out]
                yield others[0] if len(others) == 1 else replaced(node, values=others)
        case ast.Compare():
            for number, operator in enumerate(node.ops):
                weaker = COMPARISONS.get(type(operator), ())
                if isinstance(operator, ast.Eq | ast.NotEq) and not has_order(node.comparators[number]):
                    continue
                for other in weaker:
                    yield replaced(node, ops=[*node.ops[:number], other(), *node.ops[number + 1 :]])
            if len(node.ops) == 1 and type(node.ops[0]) not in COMPARISONS:
                yield from (ast.Constant(True), ast.Constant(False))
        case ast.BinOp():
            yield node.left
            if isinstance(node.op, ast.Add | ast.Mult | ast.BitOr | ast.BitAnd | ast.BitXor):
                yield node.right
        case ast.Constant(value=bool()):
            yield ast.Constant(not node.value)
        case ast.Constant(value=int()):
            yield from (ast.Constant(node.value + by) for by in (1, -1))
        case ast.Constant(value=str()) if found := re.fullmatch(r"(<?)([ui])([1248])", node.value):
            order, sign, size = found[1], found[2], int(found[3])
            yield ast.Constant(f"{order}{'ui'[sign == 'u']}{size}")
            yield from (ast.Constant(f"{order}{sign}{other}") for other in (size * 2, size // 2) if 1 <= other <= 8)
        case ast.Set():
            for number in range(len(node.elts)):
                yield replaced(node, elts=without(node.elts, number))
        case ast.Dict():
            for number in range(len(node.keys)):
                yield replaced(node, keys=without(node.keys, number), values=without(node.values, number))
        case ast.Slice():
            for bound in ("lower", "upper"):
                if getattr(node, bound):
                    yield replaced(node, **{bound: None})
        case ast.Call():
            if name_called(node) in GUARDS:
                yield node.args[0]
            if name_called(node) in ("min", "max") and len(node.args) > 1:
                for number in range(len(node.args)):
                    others = without(node.args, number)
                    yield others[0] if len(others) == 1 else replaced(node, args=others)
            for number in range(len(node.keywords)):
                yield replaced(node, keywords=without(node.keywords, number))


COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE,),
    ast.LtE: (ast.Lt,),
    ast.Gt: (ast.GtE,),
    ast.GtE: (ast.Gt,),
    ast.Eq: (ast.LtE, ast.GtE),
    ast.NotEq: (ast.Lt, ast.Gt),
}


def has_order(operand: ast.expr) -> bool:
    """Whether `==` could be `<=`: a text has none, and what is compared with 0 is hardly ever below it."""
    return not (isinstance(operand, ast.Constant) and (operand.value == 0 or isinstance(operand.value, str)))


def without(items: list[Any], number: int) -> list[Any]:
    return items[:number] + items[number + 1 :]


def replaced(node: ast.AST, **fields: Any) -> ast.AST:
    """The node with other fields."""
    return type(node)(**{**dict(ast.iter_fields(node)), **fields})


class Place(NamedTuple):
    """Where a node stands in a tree: `getattr(parent, field)`, or an item of it.

    Attributes:
        function: that it is in, with its class.
        statement: that it is part of, or is.
    """

    function: str
    statement: ast.stmt
    parent: ast.AST
    field: str
    item: int | None

    @property
    def node(self) -> ast.AST:
        found = getattr(self.parent, self.field)
        return found if self.item is None else found[self.item]

    def put(self, node: ast.AST) -> None:
        if self.item is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.item] = node


def places(parent: ast.AST, function: str = "", statement: ast.stmt | None = None) -> Iterator[Place]:
    """Those of a tree that decide what the reader does: no annotations, no messages, no documentation."""
    for name, value in ast.iter_fields(parent):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for item, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(node, ast.AST) or isinstance(
                node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom
            ):
                continue
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                continue
            if isinstance(node, ast.If) and ast.unparse(node.test).startswith("__name__ =="):
                continue
            if (
                isinstance(node, ast.UnaryOp)
                and isinstance(parent, ast.Call)
                and ast.unparse(parent.func).endswith("reshape")
            ):
                continue  # any number below 0 will do
            here = node if isinstance(node, ast.stmt) else statement
            inside = f"{function}.{node.name}" if isinstance(node, ast.FunctionDef | ast.ClassDef) else function
            if here is not None:
                yield Place(function, here, parent, name, item)
            if name_called(node) == "require":
                assert isinstance(node, ast.Call)
                assert here is not None
                yield Place(function, here, node, "args", 0)
                yield from places(node.args[0], inside, here)
            else:
                yield from places(node, inside, here)


def name_called(node: ast.AST) -> str:
    return node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""


def head(statement: ast.AST) -> str:
    """A statement on one line: without its message, and of a compound one what is before the colon."""
    if name_called(getattr(statement, "value", statement)) == "require":
        call = statement.value
        statement = ast.Expr(ast.Call(call.func, [*call.args[:-1], ast.Constant(...)], []))
    return ast.unparse(statement).split("\n")[0].removesuffix(":")


def in_common(one: str, other: str) -> int:
    """Characters that two strings begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((number for number, (left, right) in pairs if left != right), min(len(one), len(other)))


def change(old: str, new: str) -> str:
    """Of long statements, what is about the change."""
    if max(len(old), len(new)) <= SHORT:
        return f"{old} -> {new}"
    begin = in_common(old, new)
    end = in_common(old[begin:][::-1], new[begin:][::-1])
    begin, end = max(begin - ABOUT, 0), max(end - ABOUT, 0)
    return f"…{old[begin : len(old) - end]}… -> …{new[begin : len(new) - end]}…"


@dataclass(frozen=True)
class Mutant:
    """The reader with one thing changed.

    Attributes:
        name: function, statement, and what it becomes.
        module: of spec/python that is changed.
        number: of the change, among all of the module.
        line: where the statement begins that is changed.
    """

    name: str
    module: str = field(compare=False)
    number: int = field(compare=False)
    line: int = field(compare=False)

    @property
    def function(self) -> str:
        """With its module."""
        return self.name.split(":")[0]

    def tree(self) -> ast.Module:
        """The changed module."""
        tree = ast.parse(SOURCES[self.module].read_text())
        changes = ((place, node) for place in places(tree) for node in mutations(place.node))
        place, node = next(itertools.islice(changes, self.number, None))
        place.put(node)
        return ast.fix_missing_locations(tree)


@cache
def mutants() -> list[Mutant]:
    """All, none twice, in the order of files and lines."""
    found: dict[str, Mutant] = {}
    for module, file in SOURCES.items():
        numbers = itertools.count()
        for place in places(ast.parse(file.read_text())):
            before, old = place.node, head(place.statement)
            for node in mutations(before):
                number = next(numbers)
                place.put(node)
                new = head(node if before is place.statement else place.statement)
                place.put(before)
                where = f"{module}{place.function}"
                if new != old and where not in NOT_IN_THE_KIT:
                    name = f"{where}: {change(old, new)}"
                    found.setdefault(name, Mutant(name, module, number, place.statement.lineno))
    return list(found.values())


def accepted() -> dict[str, str]:
    """The names of mutants.txt, and the reason of each."""
    reasons: dict[str, str] = {}
    for paragraph in ACCEPTED.read_text("utf-8").split("\n\n"):
        lines = paragraph.strip().splitlines()
        reason = " ".join(line[2:] for line in lines if line.startswith("# "))
        reasons |= {line: reason for line in lines if not line.startswith("# ")}
    return reasons


# ------------------------------------------------------------------------------------------------------------- Running


class _Loader(importlib.abc.Loader):
    """Of the modules of the reader, and their finder: compiled as `code` says for each."""

    def __init__(self, code: Callable[[str], CodeType]) -> None:
        self._code = code

    def find_spec(self, name: str, path: object, target: object = None) -> Any:
        return importlib.util.spec_from_loader(name, self, origin=str(SOURCES[name])) if name in SOURCES else None

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        module.__file__ = str(SOURCES[name])
        exec(self._code(name), module.__dict__)


@cache
def code_of(module: str) -> CodeType:
    return compile(SOURCES[module].read_text(), str(SOURCES[module]), "exec")


def reader_of(code: Callable[[str], CodeType]) -> kit.Numpy:
    """The reader, of modules that are compiled so, in a process that ends with it: it takes the place of others of
    these names."""
    for name in SOURCES:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, _Loader(code))
    try:
        return kit.Numpy(importlib.import_module("reader"))
    finally:
        del sys.meta_path[0]


def reader_with(mutant: Mutant | None) -> kit.Numpy:
    """The reader, changed."""

    def code(module: str) -> CodeType:
        changed = mutant is not None and mutant.module == module
        return compile(mutant.tree(), module, "exec") if mutant and changed else code_of(module)

    return reader_of(code)


@cache
def manifest() -> dict[str, Any]:
    return json.loads((FOLDER / "manifest.json").read_text("utf-8"))


def is_right(reader: kit.Reader, vector: str) -> bool:
    """Whether a reader finds what it must. One that breaks down is not."""
    result = kit.Result()
    try:
        kit.check_file(reader, FOLDER / vector, vector, manifest()[vector], result)
    except Exception:
        return False
    return not result.differences


class _Noting(ast.NodeTransformer):
    """Has each statement of a function say that it is come to: `note(module, line)` before it."""

    def __init__(self, module: str) -> None:
        self._module = module

    def visit_FunctionDef(self, function: ast.FunctionDef) -> ast.AST:
        for node in ast.walk(function):
            for name in ("body", "orelse", "finalbody"):
                block = getattr(node, name, None)
                if isinstance(block, list):
                    setattr(node, name, [each for statement in block for each in (self._note(statement), statement)])
        return function

    def _note(self, statement: ast.stmt) -> ast.stmt:
        return ast.parse(f"note({self._module!r}, {statement.lineno})").body[0]


def code_that_notes(module: str) -> CodeType:
    tree = _Noting(module).visit(ast.parse(SOURCES[module].read_text()))
    return compile(ast.fix_missing_locations(tree), str(SOURCES[module]), "exec")


Statement = tuple[str, int]
"""A module of the reader, and a line."""


def _statements(vectors: list[str]) -> list[set[Statement]]:
    """The statements of functions that the reader comes to with each vector; run in a process of its own."""
    found: set[Statement] = set()
    codes = {module: code_that_notes(module) for module in SOURCES}
    builtins.note = lambda *statement: found.add(statement)  # type: ignore[attr-defined]
    result = []
    for vector in vectors:
        found.clear()
        is_right(reader_of(codes.__getitem__), vector)  # one that has read nothing before
        result.append(set(found))
    return result


def vectors_that_come_to_statements(processes: int, vectors: Iterable[str] | None = None) -> dict[Statement, set[str]]:
    """For each statement of a function that any vector comes to, all that do. `vectors`: None for all of the kit."""
    vectors = list(manifest() if vectors is None else vectors)
    parts = [vectors[number::processes] for number in range(processes)]
    found: dict[Statement, set[str]] = {}
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        for part, of_part in zip(parts, pool.map(_statements, parts, chunksize=1), strict=True):
            for vector, statements in zip(part, of_part, strict=True):
                for statement in statements:
                    found.setdefault(statement, set()).add(vector)
    return found


@cache
def lines_in_functions(module: str) -> set[int]:
    """Where the statements of functions begin. What is outside is run when the reader is imported."""
    functions = [node for node in ast.walk(ast.parse(SOURCES[module].read_text())) if isinstance(node, ast.FunctionDef)]
    return {
        node.lineno
        for function in functions
        for statement in function.body
        for node in ast.walk(statement)
        if isinstance(node, ast.stmt)
    }


def _first_wrong(connection: Connection, mutant: Mutant | None, vectors: list[str]) -> None:
    """Sends the first vector that a mutant gets wrong, or None."""
    warnings.simplefilter("ignore")
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of this process, however busy the machine is
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    try:
        reader = reader_with(mutant)
    except Exception:
        connection.send("import")
        return
    connection.send(next((vector for vector in vectors if not is_right(reader, vector)), None))


class Run:
    """Runs mutants in processes of their own.

    Args:
        processes: at the same time.
        vectors: that may catch them; None for all.
        reached: the vectors that come to each statement, of which only those are tried; None where that is not known.
    """

    def __init__(
        self,
        processes: int,
        vectors: Iterable[str] | None = None,
        reached: dict[Statement, set[str]] | None = None,
    ) -> None:
        self._context = multiprocessing.get_context("fork")
        self._processes = processes
        for name in SOURCES:
            code_of(name)
        self._order = sorted(
            manifest() if vectors is None else vectors, key=lambda vector: (FOLDER / vector).stat().st_size
        )
        self._reached = reached
        self._caught_here: dict[str, list[str]] = {}

    def _vectors_for(self, mutant: Mutant | None) -> list[str]:
        if mutant is None:
            return self._order
        order = list(dict.fromkeys([*self._caught_here.get(mutant.function, []), *self._order]))
        if self._reached is None or mutant.line not in lines_in_functions(mutant.module):
            return order
        reached = self._reached.get((mutant.module, mutant.line), set())
        return [vector for vector in order if vector in reached]

    def _start(self, mutant: Mutant | None) -> tuple[Connection, Any]:
        vectors = self._vectors_for(mutant)
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_first_wrong, args=(sender, mutant, vectors))
        process.start()
        sender.close()
        return receiver, process

    def caught(self, mutants: Iterable[Mutant | None]) -> Iterator[tuple[Mutant | None, str | None]]:
        """Each with a vector that it gets wrong, or None, as they are found. None is the reader as it is.

        The small vectors come first, and before them those that have caught mutants of the same function.
        """
        waiting = list(reversed(list(mutants)))
        running: dict[Any, tuple[Mutant | None, Any]] = {}
        while waiting or running:
            while waiting and len(running) < self._processes:
                mutant = waiting.pop()
                receiver, process = self._start(mutant)
                running[receiver] = mutant, process
            for ready in wait(list(running)):
                mutant, process = running.pop(ready)
                try:
                    vector = ready.recv()  # type: ignore[union-attr]
                except EOFError:
                    vector = "one that it does not survive"
                process.join()
                if mutant and vector in manifest():
                    self._caught_here.setdefault(mutant.function, []).insert(0, vector)
                yield mutant, vector


@click.command(help=(__doc__ or "").replace("\n\n    python", "\n\n\b\n    python"))
@click.argument("beginning", default="")
@click.option("--all", "everything", is_flag=True, help="Run those of mutants.txt, too, which takes twice as long.")
@click.option("--processes", type=click.IntRange(1), default=os.cpu_count(), show_default=True)
@click.option("--verbose", is_flag=True, help="Print what catches each mutant.")
def main(beginning: str, everything: bool, processes: int, verbose: bool) -> None:
    chosen = {mutant.name: mutant for mutant in mutants() if mutant.name.startswith(beginning)}
    reasons = {name: reason for name, reason in accepted().items() if name.startswith(beginning)}
    wrong = [f"no mutant: {name}" for name in reasons.keys() - chosen.keys()]
    run = [None, *(mutant for name, mutant in chosen.items() if everything or name not in reasons)]
    found = Run(processes, None, vectors_that_come_to_statements(processes)).caught(run)
    for mutant, vector in track(found, "breaking", len(run), console=Console(stderr=True), transient=True):
        if mutant is None:
            wrong += [f"the reader as it is gets {vector} wrong"] if vector else []
            continue
        if verbose:
            print(f"{vector}: {mutant.name}", flush=True)
        if vector is None and mutant.name not in reasons:
            wrong.append(f"not caught: {mutant.name}")
        if vector is not None and mutant.name in reasons:
            wrong.append(f"caught by {vector}: {mutant.name}")
    print("\n".join([*wrong, f"{len(chosen)} mutants, {len(reasons)} of them accepted"]))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
