"""The key-values of a GGUF file: scalars, and arrays that stay the bytes they are in the file.

gpt-oss' vocabulary is 650,000 strings: as Python objects they take 60 MB, as the file's bytes 10. So they stay bytes,
are written back as they are, and are decoded where somebody looks.
"""

from __future__ import annotations

import array
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

from ckpttool.errors import DAMAGED, InputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class ValueType(IntEnum):
    """The value types of GGUF, by their numbers in the file."""

    u8 = 0
    i8 = 1
    u16 = 2
    i16 = 3
    u32 = 4
    i32 = 5
    f32 = 6
    bool = 7
    string = 8
    array = 9
    u64 = 10
    i64 = 11
    f64 = 12


FIXED: Final = {
    ValueType.u8: struct.Struct("<B"),
    ValueType.i8: struct.Struct("<b"),
    ValueType.u16: struct.Struct("<H"),
    ValueType.i16: struct.Struct("<h"),
    ValueType.u32: struct.Struct("<I"),
    ValueType.i32: struct.Struct("<i"),
    ValueType.f32: struct.Struct("<f"),
    ValueType.bool: struct.Struct("<?"),
    ValueType.u64: struct.Struct("<Q"),
    ValueType.i64: struct.Struct("<q"),
    ValueType.f64: struct.Struct("<d"),
}
"""How a value of fixed size lies in the file; its numpy type is the same letter."""

U32: Final = FIXED[ValueType.u32]
U64: Final = FIXED[ValueType.u64]


@dataclass(frozen=True, slots=True)
class Scalar:
    """One number, bool or string."""

    type: ValueType
    value: int | float | str

    def packed(self) -> bytes:
        """The value as it lies in the file, after its type. ValueError where it does not fit its type."""
        if isinstance(self.value, str):
            data = self.value.encode()
            return U64.pack(len(data)) + data
        try:
            return FIXED[self.type].pack(self.value)
        except struct.error as error:
            raise ValueError(f"{self.value!r} is no {self.type.name}") from error


@dataclass(frozen=True, slots=True)
class Array:
    """`count` values of one type, as the bytes `data` that follow the count in the file.

    Strings lie one after the other, each behind its length as u64. `file` and `key` say where the array was read, for
    the error of a string that is not UTF-8, which shows only when it is decoded.
    """

    type: ValueType
    count: int
    data: bytes = field(repr=False)
    file: str | None = field(default=None, repr=False, compare=False)
    key: str | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        if self.type is ValueType.string:
            return self._strings()
        return (value for (value,) in FIXED[self.type].iter_unpack(self.data))

    def raw(self) -> Iterator[bytes]:
        """The strings of a string array as the bytes they are; ValueError for another type."""
        if self.type is not ValueType.string:
            raise ValueError(f"an array of {self.type.name} holds no strings")
        data, pos, unpack = self.data, 0, U64.unpack_from
        for _ in range(self.count):
            end = pos + 8 + unpack(data, pos)[0]
            yield data[pos + 8 : end]
            pos = end

    def _strings(self) -> Iterator[str]:
        for i, text in enumerate(self.raw()):
            try:
                yield text.decode()
            except UnicodeDecodeError as error:
                raise InputError(
                    f"string {i} of the array is not UTF-8", file=self.file, field=self.key, hint=DAMAGED
                ) from error

    def numpy(self) -> npt.NDArray[np.generic]:
        """The numbers as an array [count], a read-only view of `data`; ValueError for strings."""
        import numpy as np

        if self.type is ValueType.string:
            raise ValueError("strings have no numpy view")
        return np.frombuffer(self.data, dtype=FIXED[self.type].format)

    def packed(self) -> bytes:
        """What lies in the file between the type and `data`: the elements' type and their count."""
        return U32.pack(self.type) + U64.pack(self.count)


Value = Scalar | Array


def string(value: str) -> Scalar:
    """A string."""
    return Scalar(ValueType.string, value)


def u16(value: int) -> Scalar:
    """An unsigned integer of 16 bits."""
    return Scalar(ValueType.u16, value)


def u32(value: int) -> Scalar:
    """An unsigned integer of 32 bits."""
    return Scalar(ValueType.u32, value)


def i32(value: int) -> Scalar:
    """A signed integer of 32 bits."""
    return Scalar(ValueType.i32, value)


def f32(value: float) -> Scalar:
    """A float of 32 bits; rounded when it is packed."""
    return Scalar(ValueType.f32, value)


def bool_(value: bool) -> Scalar:
    """A truth value."""
    return Scalar(ValueType.bool, value)


def string_array(values: Iterable[str | bytes]) -> Array:
    """An array of strings; `values` may be a generator, and is never held as objects."""
    data = bytearray()
    count = 0
    for value in values:
        text = value.encode() if isinstance(value, str) else value
        data += U64.pack(len(text))
        data += text
        count += 1
    return Array(ValueType.string, count, bytes(data))


def i32_array(values: Iterable[int]) -> Array:
    """An array of signed integers of 32 bits. ValueError where one does not fit."""
    return _number_array(ValueType.i32, "i", values)


def f32_array(values: Iterable[float]) -> Array:
    """An array of floats of 32 bits."""
    return _number_array(ValueType.f32, "f", values)


def _number_array(kind: ValueType, code: str, values: Iterable[Any]) -> Array:
    try:
        numbers = array.array(code, values)
    except OverflowError as error:
        raise ValueError(f"a value is no {kind.name}") from error
    if sys.byteorder == "big":
        numbers.byteswap()
    return Array(kind, len(numbers), numbers.tobytes())
