"""A function without one of its validations, in a process that has imported it already."""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterator
from inspect import CO_OPTIMIZED
from types import CodeType, FunctionType

from validations import Validation


class Living:
    """The functions, and the caches, that a module has made; looked up once, since that is a search of the heap."""

    def __init__(self, path: str) -> None:
        objects = gc.get_objects()
        self.path = path
        self.functions = [o for o in objects if type(o) is FunctionType and o.__code__.co_filename == path]
        modules = {f.__module__ for f in self.functions}
        caches = [o for o in objects if type(o) is functools._lru_cache_wrapper]
        self.caches = [c for c in caches if c.__module__ in modules]

    def swap(self, source: bytes, found: Validation) -> None:
        """Give every function that holds `found` the code that it has without; forget what is cached.

        LookupError where there is no such function.
        """
        before, after = (
            _outermost(compile(text, self.path, "exec"), found) for text in (source, found.removed(source))
        )
        functions = [f for f in self.functions if _same(f.__code__, before)]
        if not functions:
            raise LookupError(f"no function {found.function} of {self.path} is alive")
        for function in functions:
            function.__code__ = after
        for cached in self.caches:
            cached.cache_clear()


def _same(code: CodeType, sought: CodeType) -> bool:
    return (code.co_qualname, code.co_firstlineno) == (sought.co_qualname, sought.co_firstlineno)


def _outermost(module: CodeType, found: Validation) -> CodeType:
    """The function or method around `found`, which may lie in one that is defined in it."""
    names = found.function.split(".")
    wanted = {".".join(names[: i + 1]) for i in range(len(names))}
    around = [c for c in _functions(module) if c.co_qualname in wanted and _holds(c, found)]
    if len(around) != 1:
        raise LookupError(f"{found.name} lies in {len(around)} functions")
    return around[0]


def _functions(code: CodeType) -> Iterator[CodeType]:
    """Those that are made when a module is imported."""
    for const in code.co_consts:
        if isinstance(const, CodeType):
            if const.co_flags & CO_OPTIMIZED:
                yield const
            else:
                yield from _functions(const)


def _holds(code: CodeType, found: Validation) -> bool:
    lines = [line for _, _, line in code.co_lines() if line is not None]
    return code.co_firstlineno <= found.first <= max(lines)
