"""The safetensors container against the reference: the same bytes written, the same table read."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpttool.containers import safetensors as ours
from ckpttool.containers.layout import FileLayout, Row
from ckpttool.containers.source import LocalFile
from ckpttool.errors import InputError, LimitError

TORCH = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "C64": torch.complex64,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}


def row(name: str, dtype: str, shape: tuple[int, ...]) -> Row:
    n = ours.DTYPE_BITS[dtype]
    for dim in shape:
        n *= dim
    return Row(name, dtype, shape, n // 8)


def written(path: Path, layout: FileLayout) -> Path:
    """The layout as a file of zeros."""
    with path.open("wb") as f:
        f.write(layout.header)
        f.truncate(layout.size)
    return path


def parse(path: Path) -> ours.Header:
    with LocalFile(path) as file:
        return ours.parse(file)


def test_every_dtype_as_torch_writes_it(tmp_path: Path) -> None:
    tensors = {f"t.{i % 3}.{name}": torch.zeros(2, 4, dtype=dtype) for i, (name, dtype) in enumerate(TORCH.items())}
    tensors |= {"scalar": torch.zeros(()), "none": torch.zeros(0, 3), "a": torch.zeros(3, dtype=torch.bfloat16)}
    data = safetensors.torch.save(tensors, {"format": "pt"})
    names = {v: k for k, v in TORCH.items()}
    layout = ours.render([row(n, names[t.dtype], tuple(t.shape)) for n, t in tensors.items()], {"format": "pt"})
    assert data[: len(layout.header)] == layout.header
    assert len(data) == layout.size
    header = parse(written(tmp_path / "model.safetensors", layout))
    assert header.tensors == layout.tensors
    assert header.metadata == {"format": "pt"}
    assert header.nbytes == len(layout.header)


def test_narrow_dtypes_are_read_alike() -> None:
    """torch cannot make F6 tensors, so the reference only reads ours."""
    rows = [row("n", "F6_E2M3", (8,)), row("a", "F6_E3M2", (4, 2)), row("f", "F4", (2,)), row("u", "U8", (3,))]
    layout = ours.render(rows, {})
    theirs = safetensors.deserialize(layout.header + bytes(layout.size - len(layout.header)))
    assert {n: (v["dtype"], v["shape"]) for n, v in theirs} == {r.name: (r.dtype, list(r.shape)) for r in rows}


def test_f4_as_torch_writes_it() -> None:
    tensors = {
        "a": torch.zeros(3, dtype=torch.bool),
        "f": torch.zeros(2, 4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
        "u": torch.zeros(3, dtype=torch.uint8),
    }
    layout = ours.render([row("a", "BOOL", (3,)), row("f", "F4", (2, 8)), row("u", "U8", (3,))], {})
    assert safetensors.torch.save(tensors)[: len(layout.header)] == layout.header


def test_strings_are_escaped_as_the_reference_does(tmp_path: Path) -> None:
    name = "".join(map(chr, range(0x250))) + '\u2028\u2029\ufeff\uffff\U0001f600/\\"</script>한국어'
    data = safetensors.torch.save({name: torch.zeros(1)}, {"x\n": name})
    layout = ours.render([row(name, "F32", (1,))], {"x\n": name})
    assert data[: len(layout.header)] == layout.header
    header = parse(written(tmp_path / "m", layout))
    assert header.tensors[0].name == name
    assert header.metadata == {"x\n": name}


def test_empty_file() -> None:
    assert ours.render([], {}).header == safetensors.torch.save({})


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda n: n != "__metadata__")
shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@settings(deadline=None, max_examples=300)
@given(st.dictionaries(names, st.tuples(st.sampled_from(sorted(TORCH)), shapes), max_size=12), st.booleans())
def test_any_table_as_torch_writes_it(tmp_path_factory: pytest.TempPathFactory, table: dict, meta: bool) -> None:  # type: ignore[type-arg]
    metadata = {"format": "pt"} if meta else {}
    data = safetensors.torch.save({n: torch.zeros(s, dtype=TORCH[d]) for n, (d, s) in table.items()}, metadata or None)
    layout = ours.render([row(n, d, s) for n, (d, s) in table.items()], metadata)
    assert data[: len(layout.header)] == layout.header
    path = written(tmp_path_factory.getbasetemp() / layout.name, layout)
    assert parse(path).tensors == layout.tensors


def test_file_order_and_name_of_the_stored_tensors(tmp_path: Path) -> None:
    text = b'{"b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]},"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}'
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with LocalFile(path) as file:
        header = ours.parse(file, "sub/x.safetensors")
    assert [(t.name, t.offset, t.file) for t in header.tensors] == [
        ("a", 8 + len(text), "sub/x.safetensors"),
        ("b", 12 + len(text), "sub/x.safetensors"),
    ]


def test_the_header_hash_is_of_the_length_and_the_json(tmp_path: Path) -> None:
    import hashlib

    layout = ours.render([row("a", "F32", (3,))], {})
    header = parse(written(tmp_path / "x", layout))
    assert header.sha256 == hashlib.sha256(layout.header).hexdigest()


def test_rows_that_contradict_themselves() -> None:
    with pytest.raises(ValueError, match="is not 5 bytes"):
        ours.render([Row("a", "F32", (1,), 5)], {})
    with pytest.raises(ValueError, match="are called 'a'"):
        ours.render([row("a", "F32", (1,)), row("a", "U8", (1,))], {})
    with pytest.raises(ValueError, match="are called '__metadata__'"):
        ours.render([row("__metadata__", "F32", (1,))], {})


def test_a_header_over_the_limit() -> None:
    with pytest.raises(LimitError, match="over 100000000 bytes"):
        ours.render([row("a", "F32", (1,))], {"x": "y" * 100_000_000})


def test_legal_json_that_no_writer_writes(tmp_path: Path) -> None:
    text = rb"""
      { "\u0061" : { "shape":[ 2 , 3 ], "data_offsets" :
        [0,6],"dtype":"\u0055\u0038" } , "__metadata__":{"k":"\ud83d\ude00"}}   """
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(6))
    header = parse(path)
    assert [(t.name, t.dtype, t.shape, t.nbytes) for t in header.tensors] == [("a", "U8", (2, 3), 6)]
    assert header.metadata == {"k": "\U0001f600"}


def test_text_that_crosses_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """UTF-8 is checked in windows; none of them may end inside a character, nor hide a broken one."""
    from ckpttool.containers import limits

    name = "aé한\U0001f600" * 5
    layout = ours.render([row(name, "U8", (4,))], {})
    path = written(tmp_path / "x", layout)
    broken = tmp_path / "broken"
    for window in range(4, 40):
        monkeypatch.setattr(limits, "READ_WINDOW", window)
        assert parse(path).tensors[0].name == name
        for at in range(12, 12 + len(name.encode())):
            broken.write_bytes(layout.header[:at] + b"\xff" + layout.header[at + 1 :] + bytes(4))
            with pytest.raises(InputError, match=f"at byte {at - 3}|at byte {at - 2}|at byte {at - 1}|at byte {at}: "):
                parse(broken)


# The index


def test_index_as_transformers_writes_it(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, head_dim=8
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path, max_shard_size="10KB")
    path = tmp_path / "model.safetensors.index.json"
    data = path.read_bytes()
    index = ours.parse_index(path)
    assert index.total_size == sum(t.nbytes for p in tmp_path.glob("*.safetensors") for t in parse(p).tensors)
    for name, file in index.weight_map.items():
        assert name in [t.name for t in parse(tmp_path / file).tensors]
    shuffled = dict(reversed(index.weight_map.items()))
    parameters = json.loads(data)["metadata"]["total_parameters"]
    assert ours.render_index(shuffled, index.total_size, total_parameters=parameters) == data
    assert ours.parse_index(ours.render_index(shuffled, 5)).total_size == 5


@pytest.mark.parametrize(
    ("metadata", "total"),
    [("", None), ('"metadata":{},', None), ('"metadata":null,', None), ('"metadata":{"total_size":8.0},', 8)],
)
def test_indexes_as_they_exist(metadata: str, total: int | None) -> None:
    index = ours.parse_index(f'{{{metadata}"weight_map":{{"a":"한글 모델.safetensors"}}}}'.encode())
    assert index == ({"a": "한글 모델.safetensors"}, total)


def test_names_of_files_that_differ_in_case_alone() -> None:
    with pytest.raises(InputError, match=r'weight_map\["b"\].*one file where case does not count'):
        ours.parse_index(
            b'{"weight_map": {"a": "Model.safetensors", "c": "Model.safetensors", "b": "mOdel.safetensors"}}'
        )


def test_an_index_that_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        ours.parse_index(tmp_path)


def test_a_broken_entry_is_not_called_too_long(tmp_path: Path) -> None:
    """Nobody is told to allow longer entries where a longer look finds no more."""
    text = b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1x]}}'
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(1))
    with pytest.raises(InputError, match="not JSON: Expecting ',' delimiter") as caught:
        parse(path)
    assert "CKPTTOOL_LIMIT" not in str(caught.value)


def test_gzip_data_whose_first_bytes_may_be_a_length(tmp_path: Path) -> None:
    """`gzip -n` writes no time: read as a length, its head is 559,903, which a larger file has room for."""
    packed = gzip.compress(random.Random(0).randbytes(600_000), mtime=0)
    assert int.from_bytes(packed[:8], "little") < len(packed) - 8
    path = tmp_path / "x.safetensors"
    path.write_bytes(packed)
    with pytest.raises(InputError, match="this is gzip data; unpack it first"):
        parse(path)


@pytest.mark.parametrize(("limit", "what"), [("TENSORS", "tensors"), ("SAFETENSORS_METADATA", "metadata entries")])
def test_one_name_more_than_the_limit(limit: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits themselves, of a hundred thousand and more, are met in tests/hostile."""
    from ckpttool.containers import limits

    path = written(
        tmp_path / "x.safetensors", ours.render([row(n, "U8", (1,)) for n in "abc"], dict.fromkeys("abc", ""))
    )
    monkeypatch.setattr(limits, limit, 4 if limit == "TENSORS" else 3)  # `__metadata__` is counted with the tensors
    assert len(parse(path).tensors) == 3
    monkeypatch.setattr(limits, limit, 3 if limit == "TENSORS" else 2)
    with pytest.raises(LimitError, match=f"more than . {what} in one header"):
        parse(path)
