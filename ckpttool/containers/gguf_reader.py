"""The header of a GGUF file, read front to back in windows: key-values, then the table of tensors.

Nothing is believed before the file's size allows it, arrays are skipped by arithmetic and kept as bytes. Rules as in
llama.cpp's own reader (ggml/src/gguf.cpp), and a few of docs/gguf.md that it does not enforce.
"""

from __future__ import annotations

import re
import struct
from typing import Final, NamedTuple

from ckpttool.containers import limits
from ckpttool.containers.ggml_types import GGML_TYPES_BY_ID, REMOVED, GgmlType
from ckpttool.containers.gguf_values import FIXED, U32, U64, Array, Scalar, Value, ValueType
from ckpttool.containers.source import ReadableFile
from ckpttool.errors import DAMAGED, InputError, LimitError

CUT: Final = "the file is cut short; fetch it again"

_TYPE_AND_COUNT: Final = struct.Struct("<IQ")
_AFTER_NAME: Final = tuple(struct.Struct(f"<{n}QIQ") for n in range(limits.GGUF_DIMS + 1))
"""After a tensor's name and number of dimensions: the dimensions, the type, the offset."""

_RUN: Final = 512
_SHORT: Final = sorted(range(64), key=lambda n: abs(n - 9))
_SHORT_STRINGS: Final = re.compile(
    b"(?s:%s){%d}+" % (b"|".join(re.escape(bytes([n])) + b"\\0{7}" + b".{%d}" % n for n in _SHORT), _RUN)
)
"""A run of strings of up to 63 bytes, behind their lengths; usual lengths come first. Four times as fast as a loop."""

_LEAST_KEY_VALUE: Final = 8 + 1 + 4 + 1
_LEAST_TENSOR: Final = 8 + 1 + 4 + 4 + 8
_RESERVED: Final = frozenset({"GGUF.version", "GGUF.tensor_count", "GGUF.kv_count"})
"""Names that gguf-py's reader gives to its own fields; it cannot open a file that has such a key."""


class Info(NamedTuple):
    """One row of the table of tensors: `dims` in the file's order, `offset` from the data's start, `at` its place."""

    name: str
    dims: tuple[int, ...]
    type: GgmlType
    nbytes: int
    offset: int
    at: int


_REMOVED_HINTS = {4: "make the file again with today's llama.cpp; Ollama's first gptoss files call MXFP4 so"}


class HeaderReader:
    """A place in the header that moves forward; windows grow from 64 KiB, so that a small header is one small read."""

    def __init__(self, file: ReadableFile, label: str) -> None:
        self.file = file
        self.label = label
        self.places: dict[str, int] = {}
        """Where each key stands."""
        self._window = b""
        self._base = 0
        self._pos = 0
        self._grown = 64 * limits.KIB

    @property
    def at(self) -> int:
        """The offset in the file."""
        return self._base + self._pos

    @property
    def left(self) -> int:
        """Bytes from here to the end of the file."""
        return self.file.size - self.at

    def fault(self, message: str, *, at: int, field: str | None = None, hint: str = DAMAGED) -> InputError:
        """An error of this file at `at`."""
        return InputError(message, file=self.label, field=field, offset=at, hint=hint)

    def _jump(self, at: int) -> None:
        """Go on at `at`."""
        self._pos = at - self._base
        if self._pos > len(self._window):
            self._window, self._base, self._pos = b"", at, 0

    def _require(self, n: int, field: str | None) -> None:
        """Have `n` bytes in the window; n is bounded by whoever asks."""
        if self._pos + n <= len(self._window):
            return
        if n > self.left:
            raise self.fault(
                f"the header ends too early: {n} bytes wanted, {self.left} left", at=self.at, field=field, hint=CUT
            )
        at = self.at
        self._window = self.file.read_some(at, n, max(n, min(self._grown, self.left)))
        self._base, self._pos = at, 0
        self._grown = min(2 * self._grown, limits.READ_WINDOW)

    def take(self, layout: struct.Struct, field: str | None = None) -> tuple[int, ...]:
        """The next values of `layout`."""
        self._require(layout.size, field)
        values = layout.unpack_from(self._window, self._pos)
        self._pos += layout.size
        return values

    def _length(self, what: str, field: str) -> int:
        """The next string's length, which the file has room for."""
        at = self.at
        (n,) = self.take(U64, field)
        if n > self.left:
            raise self.fault(f"{what} of {n} bytes, {self.left} are left", at=at, field=field, hint=CUT)
        return n

    def _bytes(self, n: int, field: str) -> bytes:
        self._require(n, field)
        data = self._window[self._pos : self._pos + n]
        self._pos += n
        return data

    def name(self, limit: int, what: str, field: str) -> str:
        """The next string as a name: not empty, UTF-8, no NUL (C readers would stop there and see another name)."""
        start = self.at
        n = self._length(what, field)
        if n > limit:
            more = limits.hint(limit, DAMAGED)
            raise self.fault(f"{what} of {n} bytes, over the limit of {limit}", at=start, field=field, hint=more)
        text = self.text(self._bytes(n, field), start + 8, field)
        if not text or "\0" in text:
            raise self.fault(f"{what} is empty or holds a NUL", at=start, field=field)
        return text

    def text(self, raw: bytes, at: int, field: str) -> str:
        """`raw` as UTF-8."""
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise self.fault("the text is not UTF-8", at=at + error.start, field=field) from error

    # Key-values

    def key_values(self, count: int) -> dict[str, Value]:
        """The next `count` key-values, in order."""
        self._require_room(count, _LEAST_KEY_VALUE, limits.GGUF_KEYS, "key-values")
        found: dict[str, Value] = {}
        for i in range(count):
            at = self.at
            key = self.name(limits.GGUF_KEY, "a key", f"key[{i}]")
            if key in found:
                raise self.fault(f"duplicate key (first at byte {self.places[key]})", at=at, field=key)
            if key in _RESERVED:
                raise self.fault("a key that readers keep for themselves", at=at, field=key)
            self.places[key] = at
            found[key] = self._value(key)
        return found

    def _require_room(self, count: int, least: int, limit: int, what: str) -> None:
        at = 8 if what == "tensors" else 16
        if count * least > self.left:
            room = self.left // least
            raise self.fault(
                f"the header announces {count} {what}, the {self.left} bytes left hold at most {room}", at=at
            )
        if count > limit:
            more = limits.hint(limit, "is it really a checkpoint?")
            raise LimitError(f"{count} {what}, over the limit of {limit}", file=self.label, offset=at, hint=more)

    def _value(self, key: str) -> Value:
        at = self.at
        (number,) = self.take(U32, key)
        if number == ValueType.array:
            return self._array(key)
        kind = self._kind(number, at, key)
        if kind is ValueType.string:
            n = self._length("a string", key)
            self._budget(n, key)
            start = self.at
            return Scalar(kind, self.text(self._bytes(n, key), start, key))
        if kind is ValueType.bool:
            return Scalar(kind, self._bool(key))
        return Scalar(kind, self.take(FIXED[kind], key)[0])

    def _kind(self, number: int, at: int, key: str) -> ValueType:
        if number > ValueType.f64:
            raise self.fault(f"unknown value type {number}", at=at, field=key)
        return ValueType(number)

    def _bool(self, key: str) -> bool:
        at = self.at
        (value,) = self.take(FIXED[ValueType.u8], key)
        if value > 1:
            raise self.fault(f"a bool must be 0 or 1, not {value}", at=at, field=key)
        return bool(value)

    def _budget(self, n: int, key: str) -> None:
        """LimitError where `n` more bytes are too many for all key-values together."""
        if self.at + n > limits.GGUF_VALUES:
            what = f"the key-values take more than {limits.GGUF_VALUES} bytes"
            more = limits.hint(limits.GGUF_VALUES, "is it really a checkpoint?")
            raise LimitError(what, file=self.label, field=key, offset=self.at, hint=more)

    def _array(self, key: str) -> Array:
        at = self.at
        number, count = self.take(_TYPE_AND_COUNT, key)
        kind = self._kind(number, at, key)
        if kind is ValueType.array:
            raise self.fault("an array of arrays, which no reader supports", at=at, field=key)
        least = 8 if kind is ValueType.string else FIXED[kind].size
        if count * least > self.left:
            raise self.fault(
                f"an array of {count} values of {kind.name}, but only {self.left} bytes are left", at=at, field=key
            )
        self._budget(count * least, key)
        start = self.at
        n = self._end_of_strings(count, key) - start if kind is ValueType.string else count * least
        self._budget(n, key)
        data = self.file.read(start, n)
        self._jump(start + n)
        if kind is ValueType.bool and (wrong := data.translate(None, b"\0\1")):
            raise self.fault(f"a bool must be 0 or 1, not {wrong[0]}", at=start + data.index(wrong[:1]), field=key)
        return Array(kind, count, data, self.label, key)

    def _end_of_strings(self, count: int, key: str) -> int:
        """Where a run of `count` strings ends. Only lengths are looked at, and no object is made per string.

        It begins in the window that is there: a window for each of many short arrays would be gigabytes of reading.
        """
        done, size, unpack = 0, self.file.size, U64.unpack_from
        window, base, pos = self._window, self._base, self._pos
        while True:
            last = len(window) - 8
            while done < count and pos <= last:
                if count - done >= _RUN and (run := _SHORT_STRINGS.match(window, pos)):
                    pos, done = run.end(), done + _RUN
                    continue
                for _ in range(min(_RUN, count - done)):
                    if pos > last:
                        break
                    pos += 8 + unpack(window, pos)[0]
                    done += 1
            at = base + pos
            if at > size or (done < count and at + 8 > size):
                i = done - 1 if at > size else done
                raise self.fault(f"string {i} of {count} ends behind the file", at=self.at, field=key, hint=CUT)
            if done == count:
                return at
            window, base, pos = self.file.read_some(at, 8, min(limits.READ_WINDOW, size - at)), at, 0

    # Tensors

    def tensors(self, count: int) -> list[Info]:
        """The next `count` rows of the table of tensors."""
        self._require_room(count, _LEAST_TENSOR, limits.TENSORS, "tensors")
        places: dict[str, int] = {}
        found = []
        for i in range(count):
            info = self._tensor(i)
            if info.name in places:
                raise self.fault(f"duplicate tensor (first at byte {places[info.name]})", at=info.at, field=info.name)
            places[info.name] = info.at
            found.append(info)
        return found

    def _tensor(self, i: int) -> Info:
        at = self.at
        name = self.name(limits.GGUF_NAME, "a tensor name", f"tensor[{i}]")
        (n_dims,) = self.take(U32, name)
        if n_dims > limits.GGUF_DIMS:
            what, more = f"{n_dims} dimensions, more than {limits.GGUF_DIMS}", limits.hint(limits.GGUF_DIMS, DAMAGED)
            raise self.fault(what, at=self.at - 4, field=name, hint=more)
        *dims, number, offset = self.take(_AFTER_NAME[n_dims], name)
        kind = GGML_TYPES_BY_ID.get(number)
        if kind is None:
            what = f"{number} ({REMOVED[number]}), which ggml has removed" if number in REMOVED else f"{number}"
            raise self.fault(
                f"tensor type {what}" if number in REMOVED else f"unknown tensor type {what}",
                at=self.at - 12,
                field=name,
                hint=_REMOVED_HINTS.get(number, "make the file again with today's llama.cpp")
                if number in REMOVED
                else DAMAGED,
            )
        elements = size = 1
        for dim in dims:
            elements *= dim
            # The product without the zeros is checked too: other readers multiply in order and overflow.
            size *= dim or 1
        if size * kind.nbytes > limits.INT64_MAX:
            raise self.fault(f"the size of dimensions {dims} overflows", at=at, field=name)
        if (dims[0] if dims else 1) % kind.elements:
            raise self.fault(
                f"rows of {dims[0] if dims else 1} are no whole number of {kind.name} blocks of {kind.elements}",
                at=at,
                field=name,
            )
        return Info(name, tuple(dims), kind, elements // kind.elements * kind.nbytes, offset, at)
