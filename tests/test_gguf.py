"""The GGUF container against gguf-py: the same bytes written, the same values read, without making objects."""

from __future__ import annotations

import hashlib
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from ckpttool.containers import gguf as ours
from ckpttool.containers import gguf_values
from ckpttool.containers.ggml_types import GGML_TYPES, REMOVED
from ckpttool.containers.gguf import Array, Scalar, ValueType
from ckpttool.containers.layout import FileLayout, Row
from ckpttool.containers.source import LocalFile
from ckpttool.errors import InputError, LimitError

Q = gguf.GGMLQuantizationType
T = gguf.GGUFValueType


def written(path: Path, fill: Callable[[gguf.GGUFWriter], None], **options: object) -> bytes:
    """What GGUFWriter writes."""
    writer = gguf.GGUFWriter(path, "gpt-oss", **options)  # type: ignore[arg-type]
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def parse(path: Path) -> ours.Header:
    with LocalFile(path) as file:
        return ours.parse(file)


def rows(header: ours.Header) -> list[Row]:
    return [Row(t.name, t.dtype, t.shape, t.nbytes) for t in header.tensors]


def same(path: Path, data: bytes, layout: FileLayout) -> ours.Header:
    """Parsed, the file is what was rendered, and rendered it is the file."""
    assert data[: len(layout.header)] == layout.header
    assert len(data) == layout.size
    header = parse(path)
    assert header.tensors == layout.tensors
    assert header.nbytes == len(layout.header)
    assert header.sha256 == hashlib.sha256(layout.header).hexdigest()
    return header


def every_value(w: gguf.GGUFWriter) -> None:
    w.add_uint8("u8", 255)
    w.add_int8("i8", -128)
    w.add_uint16("u16", 65535)
    w.add_int16("i16", -32768)
    w.add_uint32("u32", 2**32 - 1)
    w.add_int32("i32", -(2**31))
    w.add_float32("f32", 1e-5)
    w.add_bool("yes", True)
    w.add_bool("no", False)
    w.add_string("text", "한국어 \U0001f600\n")
    w.add_uint64("u64", 2**64 - 1)
    w.add_int64("i64", -(2**63))
    w.add_float64("f64", 0.1)
    w.add_array("strings", ["a", "", "Ġé", "x" * 300])
    w.add_array("ints", [1, -2, 3])
    w.add_array("floats", [1.5, -0.25])
    w.add_array("bools", [True, False])
    w.add_key_value("u8s", bytes(range(5)), T.ARRAY, T.UINT8)
    w.add_key_value("i64s", [2**62, -1], T.ARRAY, T.INT64)


def test_every_value_type(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    data = written(path, every_value)
    text = ours.string_array(["a", b"", "Ġé", "x" * 300])
    metadata: dict[str, ours.Value] = {
        "general.architecture": ours.string("gpt-oss"),
        "u8": Scalar(ValueType.u8, 255),
        "i8": Scalar(ValueType.i8, -128),
        "u16": ours.u16(65535),
        "i16": Scalar(ValueType.i16, -32768),
        "u32": ours.u32(2**32 - 1),
        "i32": ours.i32(-(2**31)),
        "f32": ours.f32(1e-5),
        "yes": ours.bool_(True),
        "no": ours.bool_(False),
        "text": ours.string("한국어 \U0001f600\n"),
        "u64": Scalar(ValueType.u64, 2**64 - 1),
        "i64": Scalar(ValueType.i64, -(2**63)),
        "f64": Scalar(ValueType.f64, 0.1),
        "strings": text,
        "ints": ours.i32_array([1, -2, 3]),
        "floats": ours.f32_array([1.5, -0.25]),
        "bools": Array(ValueType.bool, 2, b"\1\0"),
        "u8s": Array(ValueType.u8, 5, bytes(range(5))),
        "i64s": Array(ValueType.i64, 2, struct.pack("<2q", 2**62, -1)),
    }
    header = same(path, data, ours.render([], metadata, name="m.gguf"))
    assert list(header.metadata) == list(metadata)
    for key, value in header.metadata.items():
        if key != "f32":
            assert value == metadata[key]
    assert header.metadata["f32"] == ours.f32(struct.unpack("<f", struct.pack("<f", 1e-5))[0])
    assert (header.version, header.alignment, header.trailing) == (3, 32, 0)


def test_arrays_decode_when_asked() -> None:
    text = ours.string_array(x for x in ("a", b"b\xc3\xa9", ""))
    assert len(text) == 3
    assert list(text) == ["a", "bé", ""]
    assert list(text.raw()) == [b"a", b"b\xc3\xa9", b""]
    assert "a" in text
    numbers = ours.i32_array([5, -7])
    assert list(numbers) == [5, -7]
    view = numbers.numpy()
    assert view.dtype == np.int32
    assert list(view) == [5, -7]
    assert not view.flags.writeable
    assert np.shares_memory(view, np.frombuffer(numbers.data, np.uint8))
    assert list(ours.i32_array(np.arange(3, dtype=np.int32))) == [0, 1, 2]
    assert list(Array(ValueType.bool, 2, b"\1\0")) == [True, False]
    assert Array(ValueType.bool, 2, b"\1\0").numpy().dtype == np.bool_
    assert "x" * 50 not in repr(ours.string_array(["x" * 50]))


def test_numbers_are_little_endian_on_any_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "byteorder", "big")  # this machine's are turned, which shows that those of one would be
    assert gguf_values.i32_array([1, -2]).data == struct.pack(">2i", 1, -2)
    monkeypatch.undo()
    assert gguf_values.i32_array([1, -2]).data == struct.pack("<2i", 1, -2)


def test_arrays_asked_for_what_they_are_not() -> None:
    with pytest.raises(ValueError, match="holds no strings"):
        list(ours.i32_array([1]).raw())
    with pytest.raises(ValueError, match="no numpy view"):
        ours.string_array(["a"]).numpy()
    with pytest.raises(ValueError, match="no i32"):
        ours.i32_array([2**31])
    with pytest.raises(InputError, match=r"x\.gguf: k: string 1 of the array is not UTF-8"):
        list(Array(ValueType.string, 2, ours.string_array([b"a", b"\xff"]).data, "x.gguf", "k"))


def test_values_that_do_not_fit() -> None:
    for value in (ours.u32(-1), ours.u16(65536), Scalar(ValueType.u8, 256), ours.i32(2**31)):
        with pytest.raises(ValueError, match=f"is no {value.type.name}"):
            ours.render([], {"k": value})


def every_tensor(w: gguf.GGUFWriter) -> None:
    w.add_tensor("token_embd.weight", np.arange(15, dtype=np.float32).reshape(3, 5))
    w.add_tensor("a.f16", np.zeros((2, 3, 4), np.float16))
    w.add_tensor("a.bf16", np.zeros((4, 10), np.uint8), raw_dtype=Q.BF16)
    w.add_tensor("a.q8", np.zeros((2, 68), np.uint8), raw_dtype=Q.Q8_0)
    w.add_tensor("blk.0.ffn_gate_exps.weight", np.zeros((3, 5, 51), np.uint8), raw_dtype=Q.MXFP4)
    w.add_tensor("a.q4k", np.zeros((1, 1, 2, 144), np.uint8), raw_dtype=Q.Q4_K)
    w.add_tensor("one", np.zeros((1, 64), np.float32))
    w.add_tensor("column", np.zeros((64, 1), np.float32))
    w.add_tensor("i8", np.zeros(7, np.int8))
    w.add_tensor("last", np.zeros(3, np.float32))


def every_thing(w: gguf.GGUFWriter) -> None:
    every_value(w)
    every_tensor(w)


ROWS = [
    Row("token_embd.weight", "F32", (3, 5), 60),
    Row("a.f16", "F16", (2, 3, 4), 48),
    Row("a.bf16", "BF16", (4, 5), 40),
    Row("a.q8", "Q8_0", (2, 64), 136),
    Row("blk.0.ffn_gate_exps.weight", "MXFP4", (3, 5, 96), 765),
    Row("a.q4k", "Q4_K", (1, 1, 2, 256), 288),
    Row("one", "F32", (1, 64), 256),
    Row("column", "F32", (64, 1), 256),
    Row("i8", "I8", (7,), 7),
    Row("last", "F32", (3,), 12),
]


@pytest.mark.parametrize("alignment", [8, 32, 64, 4096])
def test_every_kind_of_tensor(alignment: int, tmp_path: Path) -> None:
    def fill(w: gguf.GGUFWriter) -> None:
        if alignment != 32:
            w.add_custom_alignment(alignment)
        w.add_uint32("n", 1)
        every_tensor(w)

    path = tmp_path / "m.gguf"
    data = written(path, fill)
    custom = {} if alignment == 32 else {"general.alignment": ours.u32(alignment)}
    metadata = {"general.architecture": ours.string("gpt-oss"), **custom, "n": ours.u32(1)}
    layout = ours.render(ROWS, metadata, name="m.gguf", alignment=alignment)
    header = same(path, data, layout)
    assert rows(header) == ROWS
    assert header.alignment == alignment
    assert all((t.offset - header.nbytes) % alignment == 0 for t in header.tensors)


def test_the_padding_is_zero_and_may_be_missing_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    data = written(path, every_tensor)
    header = parse(path)
    covered = np.zeros(len(data), bool)
    covered[: header.nbytes] = True
    for t in header.tensors:
        covered[t.offset : t.offset + t.nbytes] = True
    assert not np.frombuffer(data, np.uint8)[~covered].any()
    path.write_bytes(data[:-20])
    assert parse(path).tensors == header.tensors
    path.write_bytes(data + b"abc")
    assert parse(path).trailing == 3


def test_version_2_is_the_same_file_with_another_number(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    data = written(path, every_thing)
    three = parse(path)
    path.write_bytes(data[:4] + struct.pack("<I", 2) + data[8:])
    two = parse(path)
    assert two.version == 2
    assert (two.metadata, two.tensors, two.nbytes) == (three.metadata, three.tensors, three.nbytes)


def test_big_endian_is_refused_with_the_command_that_swaps_it(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    little = written(tmp_path / "l.gguf", every_tensor)
    written(path, every_tensor, endianess=gguf.GGUFEndian.BIG)
    with pytest.raises(InputError, match=r"is big-endian; .*gguf-convert-endian FILE little$"):
        parse(path)
    # The command is there, and does it: of these types it knows all but Q8_0 without numpy's help.
    command = Path(sys.executable).with_name("gguf-convert-endian")
    simple = tmp_path / "s.gguf"
    written(simple, lambda w: w.add_tensor("t", np.arange(4, dtype=np.float32)), endianess=gguf.GGUFEndian.BIG)
    subprocess.run([command, simple, "little"], input=b"YES\n", check=True, capture_output=True)
    assert [t.name for t in parse(simple).tensors] == ["t"]
    assert little[:4] == b"GGUF"


def test_split_set(tmp_path: Path) -> None:
    """Every file of a set parses, and rendered from its own values it is the same."""
    written_set = gguf.GGUFWriter(tmp_path / "m.gguf", "gpt-oss", split_max_tensors=4)
    every_value(written_set)
    every_tensor(written_set)
    written_set.write_header_to_file()
    written_set.write_kv_data_to_file()
    written_set.write_tensors_to_file()
    written_set.close()
    paths = sorted(tmp_path.glob("*.gguf"))
    assert len(paths) == 3
    for i, path in enumerate(paths):
        header = parse(path)
        assert header.metadata["split.no"] == ours.u16(i)
        assert header.metadata["split.count"] == ours.u16(3)
        assert header.metadata["split.tensors.count"] == ours.i32(10)
        layout = ours.render(rows(header), header.metadata, name=path.name)
        same(path, path.read_bytes(), layout)


def test_render_refuses_what_contradicts_itself() -> None:
    for row, says in (
        (Row("a", "F32", (3,), 13), "is not 13 bytes"),
        (Row("a", "MXFP4", (33,), 17), "is not 17 bytes"),
        (Row("a", "F32", (1, 1, 1, 1, 1), 4), "more dimensions"),
        (Row("a" * 64, "F32", (1,), 4), "a longer name"),
        (Row("", "F32", (1,), 4), "a longer name"),
    ):
        with pytest.raises(ValueError, match=says):
            ours.render([row], {})
    with pytest.raises(ValueError, match="share a name"):
        ours.render([Row("a", "F32", (1,), 4)] * 2, {})
    for alignment, metadata in ((64, {}), (32, {"general.alignment": ours.u32(64)})):
        with pytest.raises(ValueError, match=r"general\.alignment says"):
            ours.render([], metadata, alignment=alignment)


def test_a_vocabulary_of_gpt_oss_size_stays_bytes(tmp_path: Path) -> None:
    """650,000 strings: their bytes and one window, not their objects."""
    tokens = ours.string_array("Ġ" + "t" * (i % 11) + str(i) for i in range(201_088))
    merges = ours.string_array("Ġa b" + "m" * (i % 7) + str(i) for i in range(446_189))
    types = ours.i32_array([1] * 201_088)
    metadata = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
    }
    layout = ours.render(ROWS, metadata, name="m.gguf")
    path = tmp_path / "m.gguf"
    path.write_bytes(layout.header + bytes(layout.size - len(layout.header)))
    tracemalloc.start()
    try:
        header = parse(path)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert header.metadata == metadata
    assert header.tensors == layout.tensors
    payload = len(layout.header)
    assert kept < payload + (1 << 20)
    assert peak < payload + 3 * (4 << 20)


def test_strings_that_cross_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of every small size find the same end of every run of strings."""
    from ckpttool.containers import limits

    values = ours.string_array(["", "a", "bb" * 20, "", "c" * 100, "d"])
    layout = ours.render(ROWS[:2], {"k": values, "n": ours.u32(7), "s": ours.string("x" * 70)}, name="m.gguf")
    path = tmp_path / "m.gguf"
    path.write_bytes(layout.header + bytes(layout.size - len(layout.header)))
    for window in range(8, 220):
        monkeypatch.setattr(limits, "READ_WINDOW", window)
        header = parse(path)
        assert header.metadata["k"] == values
        assert header.tensors == layout.tensors
        assert header.sha256 == hashlib.sha256(layout.header).hexdigest()


def test_many_short_arrays_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window for each of 2,000 arrays of one string would be 4 GB of reading, and a minute for 100,000."""
    layout = ours.render([], {f"k{i}": ours.string_array(["x"]) for i in range(2000)}, name="m.gguf")
    path = tmp_path / "m.gguf"
    path.write_bytes(layout.header + bytes(4 << 20))
    taken = []
    read = LocalFile.read
    monkeypatch.setattr(LocalFile, "read", lambda self, at, n: taken.append(n) or read(self, at, n))
    assert len(parse(path).metadata) == 2000
    assert sum(taken) < 2 * layout.size + (1 << 20)


@pytest.mark.parametrize(
    "value",
    [ours.string("x" * 100), ours.f32_array([1.0] * 25), ours.string_array(["x" * 20] * 4)],
    ids=["string", "numbers", "strings"],
)
def test_values_up_to_the_budget(value: ours.Value, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one key-value: at its end it is read, one byte below it is refused."""
    from ckpttool.containers import limits

    path = tmp_path / "m.gguf"
    path.write_bytes(ours.render([], {"k": value}, name="m.gguf").header)
    data = value.data if isinstance(value, ours.Array) else b""
    end = 24 + (8 + len("k")) + 4 + len(value.packed()) + len(data)
    monkeypatch.setattr(limits, "GGUF_VALUES", end)
    assert parse(path).metadata["k"] == value
    monkeypatch.setattr(limits, "GGUF_VALUES", end - 1)
    with pytest.raises(LimitError, match="the key-values take more than"):
        parse(path)


def test_strings_over_the_budget_are_not_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """100,000 strings take 800,000 bytes at least: they are refused without a read of more than the first window."""
    from ckpttool.containers import limits

    path = tmp_path / "m.gguf"
    path.write_bytes(ours.render([], {"k": ours.string_array([""] * 100_000)}, name="m.gguf").header)
    taken = []
    read = LocalFile.read
    monkeypatch.setattr(LocalFile, "read", lambda self, at, n: taken.append(n) or read(self, at, n))
    monkeypatch.setattr(limits, "GGUF_VALUES", 100_000)
    with pytest.raises(LimitError, match="the key-values take more than"):
        parse(path)
    assert sum(taken) < 1 << 17


def test_parsing_needs_no_numpy_and_no_gguf_package(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    written(path, every_thing)
    code = (
        "import sys; from ckpttool.containers import gguf, safetensors; "
        "from ckpttool.containers.source import LocalFile; gguf.parse(LocalFile(sys.argv[1])); "
        "print(sorted({'numpy', 'gguf', 'torch', 'numba', 'safetensors'} & set(sys.modules)))"
    )
    root = Path(ours.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, path], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# The table of types


def test_ggml_types_are_those_of_the_gguf_package_but_for_q8_1_and_the_newest() -> None:
    theirs = {t.name: (int(t), *size) for t, size in gguf.GGML_QUANT_SIZES.items()}
    ours_ = {t.name: (t.id, t.elements, t.nbytes) for t in GGML_TYPES.values()}
    differ = {n for n in theirs.keys() | ours_.keys() if theirs.get(n) != ours_.get(n)}
    # gguf-py says 40 bytes for Q8_1; ggml-common.h says 36.
    assert theirs["Q8_1"] == (9, 32, 40)
    assert differ - {"Q8_1"} <= {"Q1_0", "Q2_0"}, "types that its 0.19 does not know yet"
    assert not REMOVED.keys() & {t.id for t in GGML_TYPES.values()}
    assert len(ours_) + len(REMOVED) == 43
