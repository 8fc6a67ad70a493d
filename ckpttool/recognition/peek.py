"""Small tensors of local files, read as they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from ckpttool.containers.source import LocalFile
from ckpttool.tensors import StoredTensor


class Peeker:
    """Reads stored tensors from the files at `paths`, by name; a file is opened when first asked for."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = paths
        self._open: dict[str, LocalFile] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def __call__(self, t: StoredTensor) -> bytes:
        """All bytes of `t`. InputError where the file ends first."""
        file = self._open.get(t.file)
        if file is None:
            file = self._open[t.file] = self._stack.enter_context(LocalFile(self._paths[t.file], t.file))
        return file.read(t.offset, t.nbytes)
