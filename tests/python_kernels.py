"""The CPU kernels as plain Python: every loop and branch runs as it is written, around the lane operations.

A lane operation is LLVM code and has no Python of its own; here numba compiles each alone, so that Python can call it.
Nothing is read from the kernels' cache. What this is for: tools that watch Python (coverage, a debugger, warnings of
numpy) see what kernels do, and numba's reading of a kernel is held against Python's.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numba
import numba.extending
import pytest

import ckpttool.codecs
from ckpttool.codecs import cpu, cpu_jit

PACKAGE = "ckpttool.codecs"
MODULES = (
    "cpu_lanes",
    "cpu_mxfp4",
    "cpu_plain",
    "cpu_exact",
    "cpu_plain_kernels",
    "cpu_kernels",
    "cpu_counting",
    "cpu_measure",
)


def callable_from_python(intrinsic: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """`numba.extending.intrinsic`, each of whose results is a compiled function of its own."""

    def decorate(typed: Callable[..., Any]) -> Any:
        names = ", ".join(list(inspect.signature(typed).parameters)[1:])
        scope: dict[str, Any] = {"operation": intrinsic(typed)}
        exec(f"def {typed.__name__}({names}): return operation({names})", scope)
        return numba.njit(scope[typed.__name__])

    return decorate


def _fresh() -> dict[str, ModuleType]:
    """The modules of the kernels, imported while nothing compiles them; the package is left as it was."""
    names = [f"{PACKAGE}.{name}" for name in MODULES]
    before = {name: sys.modules.pop(name, None) for name in names}
    attributes = {name: vars(ckpttool.codecs).get(name) for name in MODULES}
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(numba.extending, "intrinsic", callable_from_python(numba.extending.intrinsic))
            patch.setattr(cpu_jit, "inlined", lambda function: function)
            patch.setattr(cpu_jit, "kernel", lambda function: function)
            return {name: importlib.import_module(name) for name in names}
    finally:
        for name in names:
            del sys.modules[name]
        sys.modules.update({name: module for name, module in before.items() if module})
        for name, module in attributes.items():
            if module:
                setattr(ckpttool.codecs, name, module)


@contextmanager
def python_kernels() -> Iterator[None]:
    """While this is open, `cpu`, `measure` and `counting` run on kernels that are not compiled."""
    with pytest.MonkeyPatch.context() as patch:
        for name, module in _fresh().items():
            patch.setitem(sys.modules, name, module)
        patch.setattr(cpu, "_module", sys.modules[f"{PACKAGE}.cpu_kernels"])
        yield
