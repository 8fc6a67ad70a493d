"""How the kernels are compiled: on first use, one signature each, cached on disk, without the GIL.

A kernel is a plain function of integers (addresses, counts, strides) whose first argument, the `unit`, is a numpy
scalar whose type is the width of the numbers it works on. It is compiled for the types of its first call, under a lock,
and only looked up after that, so a process loads what it uses and nothing else.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
from numpy.typing import NDArray

_SOURCES = ("cpu_jit", "cpu_lanes", "cpu_mxfp4", "cpu_plain", "cpu_exact", "cpu_kernels", "cpu_plain_kernels")

F = TypeVar("F", bound=Callable[..., Any])
_typeof: Any = numba.typeof
_lock = threading.Lock()
_compiled: dict[tuple[str, str], Any] = {}


def _fingerprint() -> str:
    """Of the sources that end up in a kernel: numba's cache looks at the kernel's own file alone."""
    digest = hashlib.sha256()
    for name in _SOURCES:
        digest.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    return digest.hexdigest()[:12]


def inlined(function: F) -> F:
    """A function that kernels call; compiled as part of each of them."""
    made: Any = numba.njit(nogil=True)(function)
    compiled: F = made
    return compiled


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is compiled, or loaded from the cache, when it is first called with a unit."""

    def run(unit: Any, *args: Any) -> Any:
        key = (function.__name__, unit.dtype.name)
        compiled = _compiled.get(key)
        if compiled is None:
            with _lock:
                if key not in _compiled:
                    _compiled[key] = _compile(function, (unit, *args))
                compiled = _compiled[key]
        return compiled(unit, *args)

    return run


def _compile(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    if not function.__qualname__.endswith(_FINGERPRINT):
        function.__qualname__ += f"_{_FINGERPRINT}"
    signature = tuple(_typeof(a) for a in args)
    try:
        dispatcher = numba.njit(nogil=True, cache=True)(function)
        dispatcher.compile(signature)
    except (RuntimeError, OSError):  # nowhere to cache: a read-only home, a full disk
        dispatcher = numba.njit(nogil=True)(function)
        dispatcher.compile(signature)
    dispatcher.disable_compile()
    return dispatcher


def place(x: NDArray[Any], axes: int) -> tuple[int, ...]:
    """An array as a kernel takes it: its address, and the strides of its first axes in bytes."""
    return (x.ctypes.data, *x.strides[:axes])


_FINGERPRINT = _fingerprint()
