"""What a validation is, found in a module's syntax: each place where code refuses something, or passes a refusal on.

Taken away one at a time:

* `check`: the condition of an `if` that ends in a refusal (a `raise`; `return None` or `return False`; what is wrong,
  as text, in a function called `..._fault` or `..._problem`; a `break`) becomes False;
* `part`: one operand of an `or` in such a condition becomes False, also inside `any(...)`;
* `need`: one operand of an `and` in a predicate's `return`, or in `return FOUND if NEEDS else None`, becomes True;
* `raise`: any other `raise` becomes `pass`, in an exception's handler too: the failure is swallowed;
* `translation`: `raise OURS from THEIRS` becomes `raise`: the failure gets through as another's;
* `call`: a statement that only calls a function named for refusing (`check_...`, `require...`, `refuse...`) goes, and
  so does a `problems.append(...)`.

An `assert` is none: python -O leaves them out, and ours only tell a type checker what is so.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

_REFUSER = re.compile(r"_*(check|require|refuse|budget|raise)(_|$)")
_MODULE = "<module>"
_TEXTUAL = re.compile(r"(fault|problem|wrong)")


@dataclass(frozen=True, slots=True)
class Validation:
    """One validation: `text` of what goes, in `function`; bytes [start, stop) of the source become `instead`."""

    function: str
    kind: str
    text: str
    first: int
    last: int
    start: int
    stop: int
    instead: bytes
    turn: int = 1

    @property
    def name(self) -> str:
        """What it is called, wherever in the file it lies; `turn` counts what a function says more than once."""
        again = f" ({self.turn})" if self.turn > 1 else ""
        return f"{self.function}: {self.kind}: {self.text}{again}"

    @property
    def of_import(self) -> bool:
        """Whether it is done once, when the module is imported."""
        return self.function == _MODULE

    def removed(self, source: bytes) -> bytes:
        """The module without it."""
        return source[: self.start] + self.instead + source[self.stop :]


def validations(source: bytes) -> list[Validation]:
    """All of a module, in order."""
    finder = _Finder(source)
    finder.visit(ast.parse(source))
    out, names = [], Counter[str]()
    for found in sorted(finder.found, key=lambda v: (v.start, -v.stop, v.kind)):
        names[found.name] += 1
        out.append(replace(found, turn=names[found.name]))
    return out


class _Finder(ast.NodeVisitor):
    def __init__(self, source: bytes) -> None:
        self.source = source
        self.lines = [0]
        for line in source.splitlines(keepends=True):
            self.lines.append(self.lines[-1] + len(line))
        self.found: list[Validation] = []
        self.scopes: list[str] = []
        self.predicate = False
        self.seen: set[ast.AST] = set()

    def _offset(self, line: int, column: int) -> int:
        return self.lines[line - 1] + column

    def _add(self, kind: str, node: ast.expr | ast.stmt, instead: str) -> None:
        start = self._offset(node.lineno, node.col_offset)
        stop = self._offset(node.end_lineno or 0, node.end_col_offset or 0)
        text = " ".join(ast.unparse(node).split())
        function = ".".join(self.scopes) or _MODULE
        where = (node.lineno, node.end_lineno or 0, start, stop)
        self.found.append(Validation(function, kind, text, *where, instead.encode()))

    def _falsify(self, kind: str, node: ast.expr, value: str = "False") -> None:
        """A condition that does something still does: it may name a thing (`:=`), or write one."""
        if any(isinstance(part, (ast.NamedExpr, ast.Call)) for part in ast.walk(node)):
            text = ast.get_source_segment(self.source.decode(), node)
            value = f"(({text}) and False)" if value == "False" else f"(({text}) or True)"
        self._add(kind, node, value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """A function, and whether it is a predicate."""
        before, self.predicate = self.predicate, ast.unparse(node.returns) == "bool" if node.returns else False
        self.scopes.append(node.name)
        self.generic_visit(node)
        self.scopes.pop()
        self.predicate = before

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """A class is a part of its methods' names."""
        self.scopes.append(node.name)
        self.generic_visit(node)
        self.scopes.pop()

    def visit_If(self, node: ast.If) -> None:
        """A check, unless its body goes on."""
        last = node.body[-1]
        if self._refuses(last):
            self.seen.add(last)
            self._falsify("check", node.test)
            for part in _alternatives(node.test):
                self._falsify("part", part)
        self.generic_visit(node)

    def _refuses(self, last: ast.stmt) -> bool:
        if isinstance(last, (ast.Raise, ast.Break)):
            return True
        if not isinstance(last, ast.Return) or last.value is None:
            return False
        if isinstance(last.value, ast.Constant) and (last.value.value is None or last.value.value is False):
            return True
        return bool(_TEXTUAL.search(self.scopes[-1]))

    def visit_Return(self, node: ast.Return) -> None:
        """A predicate's needs."""
        value = node.value
        if isinstance(value, ast.IfExp) and isinstance(value.orelse, ast.Constant) and value.orelse.value is None:
            self._needs(value.test)
        elif self.predicate and isinstance(value, ast.BoolOp) and isinstance(value.op, ast.And):
            self._needs(value)
        self.generic_visit(node)

    def _needs(self, test: ast.expr) -> None:
        parts = test.values if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And) else ()
        for part in parts or (test,):
            self._falsify("need", part, "True")

    def visit_Raise(self, node: ast.Raise) -> None:
        """A `raise` that no `if` decides."""
        if node not in self.seen:
            self._add("raise", node, "pass")
        if node.cause is not None:
            self._add("translation", node, "raise")

    def visit_Expr(self, node: ast.Expr) -> None:
        """A call of a refuser."""
        if isinstance(node.value, ast.Call):
            called = ast.unparse(node.value.func)
            if _REFUSER.match(called.rpartition(".")[2]) or called.startswith("problems."):
                self._add("call", node, "pass")
        self.generic_visit(node)


def _alternatives(test: ast.expr) -> Iterator[ast.expr]:
    """The operands of every `or` that can make `test` true: under `and`, and in what `any` looks through, too."""
    match test:
        case ast.BoolOp(op=ast.Or(), values=values):
            for value in values:
                yield value
                yield from _alternatives(value)
        case ast.BoolOp(values=values):
            for value in values:
                yield from _alternatives(value)
        case ast.Call(func=ast.Name(id="any"), args=[ast.GeneratorExp(elt=each)]):
            yield from _alternatives(each)
