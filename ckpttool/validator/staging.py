"""A thread's way from a file to a GPU: pinned memory in two rooms, of which one is filled while the other is sent."""

from __future__ import annotations

from typing import Any

import torch

from ckpttool.containers.remote import RemoteFile
from ckpttool.containers.source import LocalFile

Tensor = torch.Tensor


class Staging:
    """A reader's way to a GPU: pieces are read into one of its two rooms while the other one's is on its way."""

    def __init__(self, device: torch.device, nbytes: int) -> None:
        self._cuda = device.type == "cuda"
        self._rooms = [torch.empty(nbytes, dtype=torch.uint8, pin_memory=self._cuda) for _ in range(2)]
        self._bytes = [room.numpy().data for room in self._rooms]
        # Where there is no GPU, the CPU's streams and events do nothing, and a copy is done at once.
        module: Any = torch.cuda if self._cuda else torch.cpu
        self.stream: Any = torch.cuda.Stream(device) if self._cuda else torch.cpu.Stream()  # type: ignore[no-untyped-call]
        self._enter = module.stream
        self._event = module.Event
        self._sent = [module.Event() for _ in range(2)]
        self._turn = 0

    def send(self, file: LocalFile | RemoteFile, offset: int, target: Tensor) -> None:
        """Read what `target` takes; its copy is enqueued."""
        turn = self._turn = 1 - self._turn
        self._sent[turn].synchronize()
        file.readinto(offset, self._bytes[turn][: len(target)])
        with self._enter(self.stream):
            target.copy_(self._rooms[turn][: len(target)], non_blocking=True)
            self._sent[turn].record(self.stream)

    def mark(self) -> Any:
        """An event behind all copies so far."""
        event = self._event()
        event.record(self.stream)
        return event
