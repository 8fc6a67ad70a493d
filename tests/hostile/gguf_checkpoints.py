"""Whole gpt-oss GGUFs that are odd or wrong in one place, by their numbers in the catalogue.

They are taken apart and put together again by the builders of `hostile_files`, since gguf-py's writer makes only files
that are sound; `Whole` is what lies between.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import builders
import gguf as official
from builders import Model, Sizes
from front_ends import ACCEPTED, SHOWN, Codes, Hostile
from hostile_files import MIB, arr, gguf, gstr, info, kv

MODEL = Model(Sizes(layers=1))
ABSENT = Codes(3, 3, 3, 1)
"""There is nothing that could be shown."""
UNKNOWN = Codes(0, 0, 3, 1)
"""Sound, but of no architecture that can be converted."""


@dataclass(frozen=True)
class Whole:
    """A GGUF in pieces: raw key-values by key; name, dimensions (as in the file), type and bytes of each tensor."""

    keys: Mapping[str, bytes]
    rows: tuple[tuple[str, tuple[int, ...], int, bytes], ...] = field(repr=False)
    version: int = 3
    alignment: int = 32
    padding: bytes = b"\0"

    def with_key(self, given: Mapping[str, bytes | None]) -> Whole:
        """With these key-values replaced, added or (None) removed."""
        return replace(self, keys={k: v for k, v in {**self.keys, **given}.items() if v is not None})

    def part(self, first: int, last: int, *, keys: Mapping[str, bytes]) -> Whole:
        """A file of a split set: some of the tensors, under key-values of its own."""
        return replace(self, keys=keys, rows=self.rows[first:last])

    def packed(self) -> bytes:
        """The file. Offsets are right, padding is made of `padding`."""
        infos, data = [], bytearray()
        for name, dims, kind, raw in self.rows:
            infos.append(info(name, dims, kind, len(data)))
            data += raw
            data += self.padding * (-len(data) % self.alignment)
        keys, how = tuple(self.keys.values()), {"version": self.version, "alignment": self.alignment}
        return gguf(keys, tuple(infos), bytes(data), **how)


@functools.cache
def sound(experts: str = "MXFP4") -> Whole:
    """A small model as gguf-py writes it, in pieces."""
    with tempfile.TemporaryDirectory() as folder:
        path = builders.write_gguf(MODEL, Path(folder) / "m.gguf", experts=experts)
        reader = official.GGUFReader(path)
        keys = {
            key: b"".join(part.tobytes() for part in found.parts)
            for key, found in reader.fields.items()
            if not key.startswith("GGUF.")
        }
        rows = tuple((t.name, tuple(map(int, t.shape)), int(t.tensor_type), t.data.tobytes()) for t in reader.tensors)
    return Whole(keys, rows)


def whole(
    number: int,
    what: str,
    make: Callable[[], Whole],
    *says: str,
    codes: Codes = ACCEPTED,
    unsaid: tuple[str, ...] = (),
    more: bytes = b"",
    less: int = 0,
) -> Hostile:
    """A case of one file. `more` is appended to it, `less` bytes are cut off."""

    def write(at: Path) -> Path:
        data = make().packed()
        (at / "source.gguf").write_bytes(data[: len(data) - less] + more)
        return at / "source.gguf"

    return Hostile(f"GG{number:03d}", what, write, says, codes, unsaid=unsaid)


def keyed(
    number: int,
    what: str,
    keys: Mapping[str, bytes | None],
    *says: str,
    codes: Codes = ACCEPTED,
    unsaid: tuple[str, ...] = (),
) -> Hostile:
    """A case of some key-values."""
    return whole(number, what, lambda: sound().with_key(keys), *says, codes=codes, unsaid=unsaid)


def typed(key: str, kind: int, value: object) -> dict[str, bytes | None]:
    return {key: kv(key, kind, value)}


def listed(key: str, kind: int, count: int, data: bytes) -> dict[str, bytes | None]:
    return {key: arr(key, kind, count, data)}


def split(what: str, *says: str, codes: Codes, edit: Callable[[list[Whole], list[str]], object]) -> Hostile:
    """A case of a set of three files in a folder, changed by `edit`."""

    def write(at: Path) -> Path:
        model = sound()
        files, names = [], []
        third = len(model.rows) // 3
        for i in range(3):
            own = dict(model.keys) if i == 0 else {"general.architecture": model.keys["general.architecture"]}
            own |= {
                "split.no": kv("split.no", 2, i),
                "split.count": kv("split.count", 2, 3),
                "split.tensors.count": kv("split.tensors.count", 5, len(model.rows)),
            }
            files.append(model.part(i * third, len(model.rows) if i == 2 else (i + 1) * third, keys=own))
            names.append(f"m-{i + 1:05d}-of-00003.gguf")
        edit(files, names)
        for file, name in zip(files, names, strict=True):
            (at / name).write_bytes(file.packed())
        return at

    return Hostile("GG113", what, write, says, codes)


TOKENS = MODEL.sizes.vocab
SCORES, TYPES = "tokenizer.ggml.scores", "tokenizer.ggml.token_type"
JINJA = "{{ ().__class__.__mro__[1].__subclasses__() }}"


def rekeyed(files: list[Whole], i: int, key: str, value: bytes | None) -> None:
    files[i] = files[i].with_key({key: value})


def aligned(n: int) -> Callable[[], Whole]:
    def make() -> Whole:
        return replace(sound().with_key(typed("general.alignment", 4, n)), alignment=n)

    return make


WHOLE = [
    whole(11, "version 2", lambda: replace(sound(), version=2)),
    keyed(32, "escapes in a key", typed("\x1b]52;c;cm0K\x07", 8, "\x1b[2J\u202e")),
    keyed(33, "capitals and spaces in a key", typed("General Name", 8, "x")),
    keyed(54, "scores of u8", listed(SCORES, 0, TOKENS, bytes(TOKENS)), f"{SCORES}: is an array of u8, not of f32",
          codes=SHOWN),
    keyed(55, "fewer scores than tokens", listed(SCORES, 6, 3, bytes(12)),
          f"{SCORES}: has 3 entries, but there are {TOKENS} tokens", codes=SHOWN),
    keyed(55, "fewer types than tokens", listed(TYPES, 5, TOKENS - 1, bytes(4 * TOKENS - 4)),
          f"{TYPES}: has {TOKENS - 1} entries, but there are {TOKENS} tokens", codes=SHOWN),
    keyed(55, "types of u8", listed(TYPES, 0, TOKENS, bytes(TOKENS)), f"{TYPES}: is an array of u8, not of i32",
          codes=SHOWN),
    keyed(55, "one type for all", typed(TYPES, 5, 1), f"{TYPES}: is no array", codes=SHOWN),
    keyed(56, "no architecture", {"general.architecture": None}),
    keyed(56, "architecture of u32", typed("general.architecture", 4, 7), "of architecture 7", codes=UNKNOWN,
          unsaid=("inspect", "check", "verify")),
    keyed(56, "architecture that leads elsewhere", typed("general.architecture", 8, "../x"), "'../x'",
          codes=UNKNOWN, unsaid=("inspect", "check", "verify")),
    keyed(57, "file type that nobody knows", typed("general.file_type", 4, 99_999)),
    keyed(57, "file type of text", typed("general.file_type", 8, "\x1b[31m")),
    keyed(58, "no quantization version", {"general.quantization_version": None}),
    *(whole(65, f"alignment {n}", aligned(n), f"general.alignment: is {n}, no multiple of 8", unsaid=("convert",))
      for n in (1, 2, 4)),
    whole(104, "last padding missing", aligned(1 << 16), less=32),
    whole(105, "1 MiB after the data", sound, "source.gguf has 1,048,576 bytes after its data", more=bytes(MIB)),
    whole(106, "padding that is not zero", lambda: replace(aligned(64)(), padding=b"\xee"),
          "bytes of padding behind tensors are not zero", unsaid=("inspect", "convert")),
    keyed(113, "split.count 0", typed("split.count", 2, 0)),
    keyed(113, "split.count 65535", typed("split.count", 2, 65_535), "is one of 65535, but 1 found", codes=SHOWN),
    split("split.no behind split.count", "split.no: is 3, in place 2", codes=SHOWN,
          edit=lambda f, n: rekeyed(f, 2, "split.no", kv("split.no", 2, 3))),
    split("a count of tensors that is negative", "split.tensors.count: is -1, but the set holds", codes=SHOWN,
          edit=lambda f, n: rekeyed(f, 0, "split.tensors.count", kv("split.tensors.count", 5, -1))),
    split("a part that is missing", "its split set lacks m-00002-of-00003.gguf", codes=ABSENT,
          edit=lambda f, n: (f.pop(1), n.pop(1))),
    split("a part in another's place", "split.no: is 1, in place 2", codes=SHOWN,
          edit=lambda f, n: f.__setitem__(2, f[1])),
    split("names of two sets", "its split set lacks m-00003-of-00003.gguf", codes=ABSENT,
          edit=lambda f, n: n.__setitem__(2, "x-00003-of-00003.gguf")),
    split("a part of another architecture", "general.architecture: is 'llama', but that of", codes=SHOWN,
          edit=lambda f, n: rekeyed(f, 1, "general.architecture", kv("general.architecture", 8, "llama"))),
    split("a set as it should be", codes=ACCEPTED, edit=lambda f, n: None),
    keyed(117, "chat template that runs code", typed("tokenizer.chat_template", 8, JINJA)),
    keyed(117, "chat template of 64 MiB", typed("tokenizer.chat_template", 8, gstr(JINJA * (64 * MIB // len(JINJA))))),
]  # fmt: skip
