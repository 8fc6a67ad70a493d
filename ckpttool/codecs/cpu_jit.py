"""How the kernels are compiled: on first use, one signature each, cached on disk, without the GIL.

A kernel is a plain function of integers (addresses, counts, strides) whose first argument, the `unit`, is a numpy
scalar whose type is the width of the numbers it works on. It is compiled for the types of its first call, under a lock,
and only looked up after that, so a process loads what it uses and nothing else.

The cache is numba's, which finds compiled code by file name and looks at no lock. So a name says everything that the
code depends on, and what is loaded is held against what was asked for.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any, TypeVar

import llvmlite  # type: ignore[import-untyped]
import numba
from numba.core.registry import cpu_target
from numpy.typing import NDArray

_SOURCES = (
    "cpu_jit",
    "cpu_lanes",
    "cpu_mxfp4",
    "cpu_plain",
    "cpu_exact",
    "cpu_kernels",
    "cpu_plain_kernels",
    "cpu_measure",
    "cpu_counting",
)

F = TypeVar("F", bound=Callable[..., Any])
_typeof: Any = numba.typeof
_lock = threading.Lock()
_compiled: dict[tuple[Callable[..., Any], str], Any] = {}
_warned: set[str] = set()


def _source_digest() -> str:
    """Of the sources that end up in a kernel: numba's cache looks at the kernel's own file alone."""
    digest = hashlib.sha256()
    for name in _SOURCES:
        digest.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    return digest.hexdigest()[:12]


@cache
def _machine_digest() -> str:
    """Of the processor that is compiled for, and of the compiler: a home may be shared by several of each."""
    target = cpu_target.target_context.codegen().magic_tuple()  # triple, CPU, its features
    return hashlib.sha256(repr((target, numba.__version__, llvmlite.__version__)).encode()).hexdigest()[:8]


def inlined(function: F) -> F:
    """A function that kernels call; compiled as part of each of them."""
    made: Any = numba.njit(nogil=True)(function)
    compiled: F = made
    return compiled


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is compiled, or loaded from the cache, when it is first called with a unit."""

    def run(unit: Any, *args: Any) -> Any:
        key = (function, unit.dtype.char)
        compiled = _compiled.get(key)
        if compiled is None:
            with _lock:
                if key not in _compiled:
                    _compiled[key] = _compile(function, (unit, *args))
                compiled = _compiled[key]
        return compiled(unit, *args)

    return run


def _compile(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """`function` for the types of `args`, from the cache where that works and holds what is asked for."""
    signature = tuple(_typeof(a) for a in args)
    named = _named(function, args[0].dtype.name)
    try:
        dispatcher: Any = numba.njit(nogil=True, cache=True)(named)
    except (RuntimeError, OSError):  # nowhere to cache: a read-only home
        return _compile_uncached(named, signature)
    folder = dispatcher.stats.cache_path
    try:
        dispatcher.compile(signature)
        if dispatcher.signatures != [signature]:
            raise ValueError(f"compiled for {dispatcher.signatures}, not {signature}")
    except Exception as error:  # a full disk; a damaged file, from which unpickling may raise anything
        dispatcher = _compile_uncached(named, signature)
        _warn(folder, error)
        return dispatcher
    if dispatcher.stats.cache_misses:
        _discard_older(Path(folder), named)
    dispatcher.disable_compile()
    return dispatcher


def _named(function: Any, width: str) -> FunctionType:
    """A copy of `function` whose qualified name, and so its cache's files, no other code has.

    numba keeps all signatures of a name in one index, read and written without a lock: of two processes that compile
    two signatures, one can leave an index that names the other's code. With one signature to a name, processes that
    write at once write the same thing, index and code each put in place whole, so that any of them may win.
    """
    copy = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__qualname__ = f"{function.__name__}_{width}_{_SOURCE}_{_machine_digest()}"
    return copy


def _compile_uncached(function: FunctionType, signature: tuple[Any, ...]) -> Any:
    dispatcher = numba.njit(nogil=True)(function)
    dispatcher.compile(signature)
    dispatcher.disable_compile()
    return dispatcher


def _warn(folder: str, error: Exception) -> None:
    """Once for each folder: what is wrong with one kernel's files is mostly wrong with all."""
    if folder not in _warned:
        _warned.add(folder)
        logging.getLogger("ckpttool").warning(
            "kernels are compiled anew, as their cache fails: %r; if it does again, delete its .nbi and .nbc files: %s",
            error,
            folder,
        )


def _discard_older(folder: Path, function: FunctionType) -> None:
    """Delete what the cache holds of a kernel's earlier source; another process that reads it compiles it again."""
    module, digest = Path(function.__code__.co_filename).stem, "[0-9a-f]"
    ours = re.compile(
        rf"{module}\.{function.__name__}_([a-z]+[0-9]+_(?!{_SOURCE}){digest}{{12}}_{digest}{{8}}|{digest}{{12}})"
        r"-[0-9]+\.py[0-9]+[a-z]*\.([0-9]+\.nbc|nbi)"
    )
    try:
        for path in folder.iterdir():
            if ours.fullmatch(path.name):
                path.unlink(missing_ok=True)
    except OSError:  # nothing depends on it: the next kernel that is compiled tries again
        return


def place(x: NDArray[Any], axes: int) -> tuple[int, ...]:
    """An array as a kernel takes it: its address, and the strides of its first axes in bytes."""
    return (x.ctypes.data, *x.strides[:axes])


_SOURCE = _source_digest()
