"""What recognition refuses to believe: missing and contradicting companions, and plain tensors of telling names.

Headers alone decide, so most cases are rows of a header; whatever they are, every tensor is shown exactly once.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
from builders import Model, Tensor
from commandline import run
from hypothesis import given, settings
from hypothesis import strategies as st

import ckpttool
from ckpttool.checkpoint import open_checkpoint
from ckpttool.containers.safetensors_table import DTYPE_BITS
from ckpttool.errors import InputError
from ckpttool.recognition import Recognition, recognise
from ckpttool.tensors import StoredTensor

M = "model.layers.0.mlp.down_proj."
W = M + "weight"
Rows = dict[str, tuple[str, tuple[int, ...]]]


def rows(tensors: Rows) -> list[StoredTensor]:
    """A header of these names, dtypes and shapes."""
    return [StoredTensor(n, d, s, "m", 0, prod(s) * DTYPE_BITS[d] // 8) for n, (d, s) in sorted(tensors.items())]


def recognised(
    tensors: Rows, small: dict[str, bytes] | None = None, config: dict[str, Any] | None = None
) -> Recognition:
    """What these rows are; `small` is what small tensors hold."""
    held = small or {}
    found = recognise(rows(tensors), config, lambda t: held.get(t.name, bytes(t.nbytes)))
    assert Counter(t.name for w in found.weights for t in w.stored) == Counter(list(tensors))  # each exactly once
    return found


def numbers(code: str, *values: float) -> bytes:
    return struct.pack(f"<{len(values)}{code}", *values)


STATE = json.dumps({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [64, 192]}).encode()
NF4: Rows = {
    W: ("U8", (6144, 1)), W + ".absmax": ("F32", (192,)), W + ".quant_map": ("F32", (16,)),
    W + ".quant_state.bitsandbytes__nf4": ("U8", (len(STATE),)),
}  # fmt: skip
HQQ: Rows = {
    M + "W_q": ("U8", (96, 64)), M + "scale": ("F16", (192, 1)), M + "zero": ("F16", (192, 1)),
    M + "shape": ("I64", (2,)), M + "nbits": ("I32", ()),
}  # fmt: skip
GPTQ: Rows = {
    M + "qweight": ("I32", (24, 64)), M + "qzeros": ("I32", (3, 8)), M + "scales": ("F16", (3, 64)),
    M + "g_idx": ("I32", (192,)),
}  # fmt: skip
INT4: Rows = {
    W + "_packed": ("I32", (64, 24)), W + "_scale": ("BF16", (64, 6)), W + "_shape": ("I64", (2,)),
}  # fmt: skip
HQQ_HOLDS = {M + "shape": numbers("q", 64, 192), M + "nbits": numbers("i", 4)}
NF4_HOLDS = {W + ".quant_state.bitsandbytes__nf4": STATE}
INT4_HOLDS = {W + "_shape": numbers("q", 64, 192)}


def changed(tensors: Rows, **edits: tuple[str, tuple[int, ...]] | None) -> Rows:
    """`tensors` with some replaced or left out, by the ends of their names."""
    out = dict(tensors)
    for end, row in edits.items():
        (name,) = (n for n in tensors if n.endswith(end))
        out.pop(name)
        if row is not None:
            out[name] = row
    return out


BROKEN: dict[str, tuple[Rows, dict[str, bytes], str]] = {
    "FP8: scales of another weight": (
        {W: ("F8_E4M3", (64, 192)), W + "_scale_inv": ("F32", (5, 7))}, {},
        "weight: F8_E4M3 [64, 192] with scales F32 [5, 7]; the scales do not divide the codes into blocks",
    ),
    "FP8: scales of a strange type": (
        {W: ("F8_E4M3", (64, 192)), W + "_scale": ("I32", (64,))}, {}, "FP8 has scales of F32, BF16, F16 or E8M0",
    ),
    "FP8: byte scales that are no MX blocks": (
        {W: ("F8_E4M3", (64, 192)), W + "_scale": ("U8", (64, 3))}, {}, "with scales U8 [64, 3]; the scales do not",
    ),
    "FP8: one weight of two has no scales": (
        {"a.weight": ("F8_E4M3", (64, 192)), "a.weight_scale": ("F32", ()), W: ("F8_E4M3", (64, 192))}, {},
        "weight: is F8_E4M3 and has no scales, as others like it have",
    ),
    "FP8: scales without codes": (
        {W + "_scale_inv": ("F32", (1, 2))}, {}, "weight_scale_inv: has no model.layers.0.mlp.down_proj.weight",
    ),
    "MXFP4: scales of another weight": (
        {W: ("U8", (64, 96)), W + "_scale": ("U8", (64, 5))}, {}, "MXFP4 has one scale for 16 bytes, MXFP6 one for 24",
    ),
    "MXFP4: no scales": ({W + "_packed": ("U8", (64, 96))}, {}, "weight_packed: has no scales"),
    "DeepSeek-V4: scales of another weight": (
        {W: ("I8", (64, 96)), M + "scale": ("F8_E8M0", (64, 4))}, {}, "MXFP4 has one scale for 16 bytes",
    ),
    "NVFP4: no global scale": (
        {W: ("U8", (64, 96)), W + "_scale": ("F8_E4M3", (64, 12))}, {}, f"weight: has no {W}_scale_2",
    ),
    "NVFP4: no global scale of compressed-tensors": (
        {W + "_packed": ("U8", (64, 96)), W + "_scale": ("F8_E4M3", (64, 12))}, {}, f"has no {W}_global_scale",
    ),
    "NVFP4: a global scale for each row": (
        {W: ("U8", (64, 96)), W + "_scale": ("F8_E4M3", (64, 12)), W + "_scale_2": ("F32", (64,))}, {},
        "weight_scale_2: [64] beside",
    ),
    "NVFP4: block scales of another weight": (
        {W: ("U8", (64, 96)), W + "_scale": ("F8_E4M3", (64, 6)), W + "_scale_2": ("F32", ())}, {},
        "NVFP4 has one F8_E4M3 for 8 bytes",
    ),
    "INT4: the shape is of another weight": (
        INT4, {W + "_shape": numbers("q", 65, 192)}, "weight_shape: says [65, 192], but",
    ),
    "INT4: no scales": (changed(INT4, _scale=None), INT4_HOLDS, "weight_packed: has no scales"),
    "INT8: scales of another weight": (
        {W: ("I8", (64, 192)), W + "_scale": ("F32", (65,))}, {}, "I8 [64, 192] with scales F32 [65]; the sc",
    ),
    "INT8: SCB of another weight": (
        {W: ("I8", (64, 192)), M + "SCB": ("F32", (65,))}, {}, "with SCB F32 [65]; LLM.int8() has one for each row",
    ),
    "GPTQ: no scales": (changed(GPTQ, scales=None), {}, "qweight: has no scales"),
    "GPTQ: zero points of another weight": (
        changed(GPTQ, qzeros=("I32", (4, 8))), {}, "and zero points [4, 8]; GPTQ's zero points are",
    ),
    "GPTQ: the columns' groups are of another weight": (
        changed(GPTQ, g_idx=("I32", (193,))), {}, "4 bits for each of 193 columns are 25 words",
    ),
    "GPTQ: only zero points": ({M + "qzeros": ("I32", (3, 8))}, {}, f"qzeros: has no {M}qweight"),
    "AWQ: zero points of another weight": (
        {M + "qweight": ("I32", (192, 8)), M + "qzeros": ("I32", (6, 9)), M + "scales": ("F16", (6, 64))}, {},
        "neither GPTQ's [in * bits / 32, out] nor AWQ's [in, out * bits / 32]",
    ),
    "NF4: no state": (changed(NF4, nf4=None), {}, "weight: has absmax but no quant_state.bitsandbytes__nf4"),
    "NF4: a state of another weight": (
        NF4, {W + ".quant_state.bitsandbytes__nf4": STATE.replace(b"192", b"193")}, "says [64, 193] in blocks of 64",
    ),
    "NF4: a state that is no JSON": (
        NF4, {W + ".quant_state.bitsandbytes__nf4": b"{" * len(STATE)}, "its state is no JSON",
    ),
    "NF4: a state without a shape": (
        NF4, {W + ".quant_state.bitsandbytes__nf4": b"{}"}, "says shape None",
    ),
    "NF4: only scales": ({W + ".absmax": ("F32", (192,))}, {}, f"weight.absmax: has no {W}"),
    "NF4: a state of a megabyte": (
        changed(NF4, nf4=("U8", (1 << 20,))), {}, "has 1,048,576 bytes, too many for what it should be",
    ),
    "HQQ: no zero points": (changed(HQQ, zero=None), HQQ_HOLDS, "W_q: has no zero"),
    "HQQ: a shape of another weight": (
        HQQ, HQQ_HOLDS | {M + "shape": numbers("q", 64, 193)}, "says 4 bits of [64, 193], but has 6,144 bytes",
    ),
    "HQQ: bits that none has": (HQQ, HQQ_HOLDS | {M + "nbits": numbers("i", 7)}, "says 7 bits of [64, 192]"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_contradiction_is_a_problem_and_nothing_is_mislabelled(name: str) -> None:
    tensors, held, says = BROKEN[name]
    found = recognised(tensors, held)
    (problem,) = found.problems
    assert says in str(problem)
    assert isinstance(problem, InputError)
    assert problem.hint
    for weight in found.weights:
        if weight.name != "a.weight":
            assert (weight.codec.name, len(weight.stored)) == (weight.stored[0].dtype, 1)
    assert found.broken


@pytest.mark.parametrize(("tensors", "held"), [(NF4, NF4_HOLDS), (HQQ, HQQ_HOLDS), (GPTQ, {}), (INT4, INT4_HOLDS)])
def test_the_same_whole(tensors: Rows, held: dict[str, bytes]) -> None:
    found = recognised(tensors, held)
    (weight,) = found.weights
    assert (found.problems, weight.name, weight.shape) == ((), W, (64, 192))


def test_config_that_contradicts_what_is_stored() -> None:
    weights = {"num_bits": 8, "type": "int", "group_size": 128}
    config = {
        "quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": weights}}}
    }
    (problem,) = recognised(INT4, INT4_HOLDS, config).problems
    assert "[64, 24] words with scales [64, 6], but config.json says 8 bits in groups of 128" in str(problem)


def test_fp8_of_a_config_that_promises_scales() -> None:
    config = {"quantization_config": {"quant_method": "fp8"}}
    (problem,) = recognised({W: ("F8_E4M3", (64, 192))}, config=config).problems
    assert "is F8_E4M3 and has no scales" in str(problem)
    assert recognised({W: ("F8_E4M3", (64, 192))}).problems == ()


PLAIN: dict[str, Rows] = {
    "OpenAI's norms": {"block.0.attn.norm.scale": ("BF16", (64,))},
    "a norm with a scale beside its weight": {M + "weight": ("BF16", (64,)), M + "scale": ("BF16", (64,))},
    "CLIP's logit scale": {"logit_scale": ("F32", ()), "logit": ("F32", (4, 4))},
    "layer scales": {"layer_scales": ("F32", (12,)), "x.scales": ("BF16", (12, 4)), "x_blocks": ("BF16", (3, 4))},
    "FP8 without scales": {W: ("F8_E4M3", (64, 192))},
    "bytes": {W: ("U8", (64, 192))},
    "bytes with float scales": {W: ("U8", (64, 192)), W + "_scale": ("F32", (64,))},
    "position ids": {"embeddings.position_ids": ("I32", (1, 512))},
    "words of nobody": {W: ("I32", (64, 24)), W + "_scale": ("BF16", (6, 64))},
    "MLX, which is not known": {
        W: ("U32", (64, 24)), M + "scales": ("BF16", (64, 3)), M + "biases": ("BF16", (64, 3)),
    },
    "MLX's MXFP4": {W: ("U32", (64, 24)), M + "scales": ("U8", (64, 6))},
    "a lone HQQ name": {M + "W_q": ("BF16", (64, 24)), M + "scale": ("BF16", (1,))},
    "a packed name that is plain": {W + "_packed": ("BF16", (64, 24))},
    "scales of the KV cache": {"self_attn.k_proj.k_scale": ("F32", ()), "self_attn.v_proj.v_scale": ("F32", ())},
    "BF16 beside a scale": {W: ("BF16", (64, 192)), W + "_scale": ("F32", (64, 1))},
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_what_is_not_known_is_shown_as_stored(name: str) -> None:
    found = recognised(PLAIN[name])
    assert found.problems == ()
    assert {w.name: (w.codec.name, w.shape) for w in found.weights} == PLAIN[name]


def test_without_reading_the_number_of_elements_is_still_right() -> None:
    """A remote checkpoint: states are not fetched; NF4's shape is unknown, its size is not; HQQ's bits are unknown."""
    (four,) = recognise(rows(NF4)).weights
    assert (four.codec.name, four.shape, four.codec.format.block) == ("NF4", (64 * 192,), 64)
    assert {w.codec.name for w in recognise(rows(HQQ)).weights} == {"U8", "F16", "I64", "I32"}
    config = {"quantization_config": {"config_groups": {"g": {"weights": {"num_bits": 4}}}}}
    (packed,) = recognise(rows(INT4), config).weights
    assert (packed.codec.name, packed.shape) == ("INT4", (64, 192))


ENDS = (
    "weight", "weight_packed", "weight_scale", "weight_scale_inv", "weight_scale_2", "weight_global_scale",
    "weight_shape", "weight_zero_point", "scale", "scales", "qweight", "qzeros", "g_idx", "W_q", "zero", "shape",
    "nbits", "SCB", "weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4", "p_blocks", "p_scales",
    "_weight_qdata", "_weight_scale", "input_scale", "qscale_weight",
)  # fmt: skip
ROW = st.tuples(
    st.sampled_from(["U8", "I8", "I32", "I64", "F8_E4M3", "F8_E8M0", "BF16", "F16", "F32", "U32", "F4"]),
    st.lists(st.sampled_from([0, 1, 2, 3, 8, 16, 24, 32, 64]), max_size=4).map(tuple),
)
SECTION = st.fixed_dictionaries(
    {}, optional={
        "quant_method": st.sampled_from(["fp8", "quark", "gptq", "awq", "modelopt", None, 7]),
        "bits": st.one_of(st.integers(-1, 9), st.text(max_size=2)),
        "group_size": st.one_of(st.integers(-1, 64), st.none()),
        "weight_block_size": st.one_of(st.lists(st.integers(-1, 130), max_size=3), st.text(max_size=2)),
        "config_groups": st.one_of(
            st.none(),
            st.fixed_dictionaries({"g": st.one_of(st.none(), st.fixed_dictionaries(
                {"weights": st.fixed_dictionaries({}, optional={
                    "num_bits": st.integers(-1, 40), "type": st.sampled_from(["int", "float"]),
                    "group_size": st.integers(-1, 64),
                })}
            ))}),
        ),
    },
)  # fmt: skip


@settings(deadline=None, max_examples=1500)
@given(
    st.dictionaries(st.tuples(st.sampled_from(["a.", "b.", ""]), st.sampled_from(ENDS)), ROW, max_size=12),
    st.one_of(st.none(), SECTION),
    st.binary(max_size=24),
    st.booleans(),
)
def test_whatever_is_stored_each_tensor_is_shown_once(
    tensors: dict[tuple[str, str], tuple[str, tuple[int, ...]]],
    section: dict[str, Any] | None,
    held: bytes,
    reads: bool,
) -> None:
    stored = rows(
        {module + end: row for (module, end), row in tensors.items() if prod(row[1]) * DTYPE_BITS[row[0]] % 8 == 0}
    )
    peek = (
        (lambda t: (held * (t.nbytes // max(1, len(held)) + 1))[: t.nbytes].ljust(t.nbytes, b"\0")) if reads else None
    )
    found = recognise(stored, {"quantization_config": section}, peek)
    assert Counter(t.name for w in found.weights for t in w.stored) == Counter(t.name for t in stored)
    for w in found.weights:
        assert all(n >= 0 for n in w.shape)
        assert len(w.roles) in (0, len(w.stored))
        assert len(w.stored) > 1 or w.codec.name == w.stored[0].dtype


# --- convert ---

ATTENTION = "model.layers.0.self_attn.q_proj.weight"
HF_EXPERTS = "model.layers.0.mlp.experts.down_proj"


def fp8_attention(t: builders.Tensors) -> None:
    import ml_dtypes

    shape = t[ATTENTION].array.shape
    t[ATTENTION] = Tensor("F8_E4M3", np.ones(shape, ml_dtypes.float8_e4m3fn))
    t[ATTENTION + "_scale"] = Tensor("F32", np.ones((shape[0], 1), np.float32))


def packed_experts(t: builders.Tensors) -> None:
    """gpt-oss' experts as compressed-tensors would store them, were it to keep the names."""
    blocks, scales = t.pop(HF_EXPERTS + "_blocks").array, t.pop(HF_EXPERTS + "_scales").array
    t[HF_EXPERTS + "_packed"] = Tensor("U8", blocks.reshape(*blocks.shape[:2], -1))
    t[HF_EXPERTS + "_scale"] = Tensor("U8", scales)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (fp8_attention, f"{ATTENTION}: is FP8_E4M3 in scaled packing, which cannot be decoded; take the checkpoint"),
        (packed_experts, f"{HF_EXPERTS}: is MXFP4 in compressed-tensors packing, which cannot be decoded; take the"),
    ],
)
@pytest.mark.parametrize("to", ["bf16", "gguf", "mxfp4"])
def test_convert_refuses_what_it_cannot_read(change: builders.Change, says: str, to: str, tmp_path: Path) -> None:
    source = builders.write(Model(), tmp_path / "source", "hf", change=change)
    done = run("convert", str(source), str(tmp_path / "target"), "--to", to)
    assert done.code == 3
    assert says in " ".join(done.err.split())
    assert not (tmp_path / "target").exists()
    assert open_checkpoint(source).problems == ()  # the file itself is sound
    part = "layer.0.q" if change is fp8_attention else "layer.0.down"
    with pytest.raises(InputError, match="cannot be decoded"):
        open_checkpoint(source).part(part)


# --- what is refused by its magic ---

METAL = b"GPT-OSS v1.0" + bytes(4) + bytes.fromhex("df52dc8617894ed0a29566f10508145b") + bytes(5000)
"""The first bytes of OpenAI's metal/model.bin: its magic, a version, the UUID of the model's header."""

FOREIGN = {
    "metal": (METAL, "OpenAI's metal/model.bin"),
    "pickle": (b"\x80\x02}q\x00(X\x06\x00\x00\x00weightq\x01K\x01u." + bytes(3000), "this is a pickle"),
    "torch": (b"PK\x03\x04" + bytes(3000), "torch.save"),
}


@pytest.mark.parametrize("what", FOREIGN)
@pytest.mark.parametrize("given_as", ["file", "folder", "safetensors"])
def test_foreign_files_are_named_and_never_opened(what: str, given_as: str, tmp_path: Path) -> None:
    data, says = FOREIGN[what]
    name = "model.safetensors" if given_as == "safetensors" else "model.bin"
    (tmp_path / name).write_bytes(data)
    source = tmp_path / name if given_as == "file" else tmp_path
    with pytest.raises(InputError) as e:
        ckpttool.inspect(source)
    assert says in str(e.value)
    assert e.value.hint


def test_a_folder_of_another_kind_of_bin_says_so(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"nothing known")
    with pytest.raises(InputError, match=r"holds no safetensors and no GGUF, but model\.bin; save the model as safet"):
        ckpttool.inspect(tmp_path)
