"""What only a GPU can show: exhaustive runs, real sizes, and streams. CI has none, so these skip there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

import ckpttool  # noqa: E402 - after the check for torch
from ckpttool import steps  # noqa: E402
from ckpttool.codecs import arrays, cpu, gpu  # noqa: E402
from ckpttool.codecs.formats import RECIPES, Packing  # noqa: E402

INF = 0x7F800000
THRESHOLDS = (0x3E800000, 0x3F400000, 0x3FA00000, 0x3FE00000, 0x40200000, 0x40600000, 0x40A00000)


def integer_scale(amax: Any, rule: str) -> Any:
    """E8M0 bytes by integers (`rceil`: and by IEEE division, as `reference` has it)."""
    if rule == "rceil":
        quotient = (amax.view(torch.float32) / torch.full((), 6.0, device=amax.device)).view(torch.int32)
        return ((quotient + 0x7FFFFF) >> 23).clamp(0, 254)
    return (((amax + (0x200000 if rule == "even" else 0)) >> 23) - 2).clamp(min=0)


def integer_codes(magnitude: Any, scale: Any) -> Any:
    """Codes by seven comparisons of integers, ties to even; a subnormal threshold is its significand, shifted."""
    code = torch.zeros_like(magnitude, dtype=torch.uint8)
    for k, bits in enumerate(THRESHOLDS):
        exponent = (bits >> 23) + scale - 127
        fraction = bits & 0x7FFFFF
        normal = (exponent.clamp(1, 254) << 23) | fraction
        subnormal = torch.full_like(scale, 0x800000 | fraction) >> (1 - exponent).clamp(0, 31)
        threshold = torch.where(exponent >= 255, INF, torch.where(exponent >= 1, normal, subnormal))
        code += magnitude >= (threshold + (k % 2 == 0))[:, None]
    return code


@pytest.mark.parametrize("recipe", ["ocp", "even", "rceil"])
def test_every_float32_as_a_maximum(recipe: str) -> None:
    """All 2^31 - 2^23 finite magnitudes, each with 31 smaller ones spread below it, signs in turn."""
    step = 1 << 22
    limit = INF if recipe == "ocp" else 0x7F600000
    lane = torch.arange(32, device="cuda", dtype=torch.int32)
    sign = torch.where(lane % 3 == 0, -(2**31), 0).to(torch.int32)
    blocks = torch.empty((step, 1, 1, 16), dtype=torch.uint8, device="cuda")
    scales = torch.empty((step, 1, 1), dtype=torch.uint8, device="cuda")
    status = gpu.new_status(blocks.device)
    codes_every = 1 if recipe == "ocp" else 16
    wrong = torch.zeros((), dtype=torch.int64, device="cuda")
    for start in range(0, limit, step):
        amax = torch.arange(start, min(start + step, limit), device="cuda", dtype=torch.int32)
        spread = lane * (0x00200001 + start % 65521)
        magnitude = (amax[:, None] - spread[None, :]).clamp(min=0)
        n = len(amax)
        x = (magnitude | sign[None, :]).view(torch.float32).view(n, 1, 32)
        gpu.quantize_rows(x, "F32", RECIPES[recipe], Packing.pair, blocks[:n], scales[:n], status)
        scale = integer_scale(amax, RECIPES[recipe].scale)
        wrong += (scales[:n].view(n) != scale).sum()
        if start // step % codes_every == 0:
            code = integer_codes(magnitude, scale) | torch.where(sign < 0, 8, 0).to(torch.uint8)[None, :]
            wrong += (blocks[:n].view(n, 16) != (code[:, 0::2] | code[:, 1::2] << 4)).sum()
    gpu.raise_bad(status, 1, 1)
    assert int(wrong) == 0


def experts(count: int) -> Any:
    """Experts of gpt-oss-20b [E, 2I, H] as BF16: some rows of large and of tiny numbers, some heavy tails."""
    generator = torch.Generator("cuda").manual_seed(3)
    x = torch.empty((count, 5760, 2880), device="cuda").normal_(0, 0.02, generator=generator)
    x[:, 3::11] = x[:, 3::11] ** 3
    exponents = torch.randint(-100, 100, (count, x[:, ::7].shape[1], 1), device="cuda", generator=generator)
    x[:, ::7] *= torch.exp2(exponents)
    return x.to(torch.bfloat16)


@pytest.mark.parametrize("recipe", RECIPES)
def test_real_sizes_are_the_cpu_s(recipe: str) -> None:
    """Rows and columns of a whole expert in both packings, gate and up apart, against the compiled CPU kernels."""
    x = experts(1)
    bits = x.view(torch.int16).cpu().numpy().view(np.uint16)
    for packing in (Packing.pair, Packing.ggml):
        host = np.empty((2, 2880, 90, 17), np.uint8).swapaxes(0, 1)
        cpu.quantize_rows(bits.reshape(2880, 2, 2880), "BF16", RECIPES[recipe], packing, host[..., 1:], host[..., 0])
        device = torch.zeros((2, 2880, 90, 17), dtype=torch.uint8, device="cuda").transpose(0, 1)
        pair = (
            torch.zeros((2880, 2, 90, 16), dtype=torch.uint8, device="cuda"),
            torch.zeros((2880, 2, 90), dtype=torch.uint8, device="cuda"),
        )
        made = (device[..., 1:], device[..., 0]) if packing is Packing.ggml else pair
        for columns in (False, True):
            if columns:
                source = x.transpose(1, 2).contiguous()
                gpu.quantize_columns(source, "BF16", RECIPES[recipe], packing, *made)
            else:
                gpu.quantize_rows(x.view(2880, 2, 2880), "BF16", RECIPES[recipe], packing, *made)
            np.testing.assert_array_equal(made[0].cpu().numpy(), host[..., 1:])
            np.testing.assert_array_equal(made[1].cpu().numpy(), host[..., 0])
            for t in made:
                t.zero_()


def test_torchao_at_real_size() -> None:
    """FLOOR and EVEN, of BF16 on the GPU; blocks whose maximum is below 2^-124 are left out."""
    mx = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    from torchao.prototype.mx_formats.config import ScaleCalculationMode

    x = experts(2).view(-1, 32)
    x = x[x.abs().amax(-1) >= 2.0**-124]
    for mode, recipe in (("FLOOR", "ocp"), ("EVEN", "even")):
        scale, data = mx.to_mx(x, torch.float4_e2m1fn_x2, 32, ScaleCalculationMode[mode])
        blocks, scales = arrays.quantize(x, recipe)
        assert torch.equal(scales.view(-1), scale.view(torch.uint8).view(-1))
        assert torch.equal(blocks.view(-1), data.view(torch.uint8).view(-1))


def test_round_trips_at_real_size() -> None:
    """Repacking returns every byte, and dequantizing as rows and as columns the same values as transposing."""
    x = experts(2).view(11520, 1, 2880)
    pair = (
        torch.empty((11520, 1, 90, 16), dtype=torch.uint8, device="cuda"),
        torch.empty((11520, 1, 90), dtype=torch.uint8, device="cuda"),
    )
    gpu.quantize_rows(x, "BF16", RECIPES["best"], Packing.pair, *pair)
    structs = torch.zeros((11520, 1, 90, 17), dtype=torch.uint8, device="cuda")
    ggml = structs[..., 1:], structs[..., 0]
    gpu.repack(*pair, Packing.pair, *ggml, Packing.ggml)
    again = torch.zeros_like(pair[0]), torch.zeros_like(pair[1])
    gpu.repack(*ggml, Packing.ggml, *again, Packing.pair)
    assert torch.equal(again[0], pair[0])
    assert torch.equal(again[1], pair[1])
    rows = torch.zeros_like(x)
    gpu.dequantize_rows(*pair, Packing.pair, rows, "BF16")
    for packed, packing in ((pair, Packing.pair), (ggml, Packing.ggml)):
        columns = torch.zeros((2, 2880, 5760), dtype=torch.bfloat16, device="cuda")
        gpu.dequantize_columns(*packed, packing, columns, "BF16")
        assert torch.equal(columns.view(torch.int16), rows.view(2, 5760, 2880).transpose(1, 2).view(torch.int16))
        values = torch.zeros_like(x)
        gpu.dequantize_rows(*packed, packing, values, "BF16")
        assert torch.equal(values.view(torch.int16), rows.view(torch.int16))


def test_arrays_stay_on_the_gpu() -> None:
    """The public functions, of any leading axes and of a view that starts between two words."""
    base = torch.randn(3 * 5 * 64 + 1, device="cuda").to(torch.bfloat16)
    for x in (base[1:].view(3, 5, 64), base[:-1].view(3, 5, 64).transpose(0, 1)):
        blocks, scales = arrays.quantize(x, "best")
        assert blocks.is_cuda
        assert blocks.shape == (*x.shape[:2], 2, 16)
        host_blocks, host_scales = arrays.quantize(x.cpu(), "best")
        assert not host_blocks.is_cuda
        assert torch.equal(blocks.cpu(), host_blocks)
        assert torch.equal(scales.cpu(), host_scales)
        assert torch.equal(arrays.dequantize(blocks, scales).cpu(), arrays.dequantize(host_blocks, host_scales))


def test_work_waits_in_its_stream() -> None:
    """The kernels run in the caller's stream, after what it holds, and a status is read there."""
    stream = torch.cuda.Stream()
    x = torch.zeros((64, 1, 2880), device="cuda", dtype=torch.bfloat16)
    blocks = torch.empty((64, 1, 90, 16), dtype=torch.uint8, device="cuda")
    scales = torch.empty((64, 1, 90), dtype=torch.uint8, device="cuda")
    gpu.quantize_rows(x, "BF16", RECIPES["ocp"], Packing.pair, blocks, scales)
    with torch.cuda.stream(stream):
        status = gpu.new_status(x.device)
        torch.cuda._sleep(100_000_000)
        x[7, 0, 40] = float("nan")
        gpu.quantize_rows(x, "BF16", RECIPES["ocp"], Packing.pair, blocks, scales, status)
        with pytest.raises(gpu.BadBlock, match="a NaN in block 1 of row 7"):
            gpu.raise_bad(status, 1, 90)


def test_lanes_record_while_others_play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many shapes of slabs in eight threads: graphs are recorded beside others that are played."""
    monkeypatch.setattr(steps, "SLAB_NBYTES", 4_000)
    model = builders.Model(builders.Sizes(layers=3, experts=6, hidden=96, intermediate=160, vocab=300))
    source = builders.write(model, tmp_path / "source", "hf")
    for to, named in (("gguf", {"model_name": "x"}), ("bf16", {})):
        made = [
            ckpttool.convert(source, tmp_path / f"{to}-{device}", to=to, device=device, workers=8, **named)
            for device in ("cpu", "cuda")
        ]
        assert made[0].files == made[1].files
