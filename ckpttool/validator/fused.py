"""A layer in BF16 on a GPU: `model.layer_passes`, by grouped products and by one kernel for all that lies between two.

The definition is the torch code of `model`, which the CPU and FP32 mode take; this computes the same, each operation in
float32 and rounded to BF16 at the same places, and is off by no more than a sum in another order is (`fused_kernels`,
`fused_attention`). Equal weights give equal bits, whatever their dialect: they are decoded into one layout, and every
pass is a launch of its own, of a shape that tokens alone decide.

What gpt-oss-20b takes for 4,096 tokens, on an H200 (4 TB/s, 600 TFLOP/s of grouped BF16): a layer's experts are 0.8
TFLOP a pass, that is 1.4 ms, projections 0.4 ms, attention over all tokens 0.14 TFLOP three times in TF32, 2 ms, half
of the layers; decoding a layer moves 3.2 GB of BF16, 0.8 ms, once for all passes, or 2 GB of MXFP4; each kernel between
products moves 50 to 300 MB, 0.1 ms. Five passes through 24 layers: some 0.5 s, less than reading (1.0 s) takes, so that
the link decides as long as the host launches ahead of the GPU. It therefore waits for nothing of a layer, unless its
experts are too many to be decoded at once: their rows are then counted here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import torch

from ckpttool.validator import fused_attention, fused_kernels
from ckpttool.validator.attention import Batch, rotation
from ckpttool.validator.routing import Routing, route
from ckpttool.validator.settings import Rope, Settings
from ckpttool.validator.stored import fill_in_turns

if TYPE_CHECKING:
    from ckpttool.validator.model import Head, Layer, Pass

Tensor = torch.Tensor

DECODED_NBYTES: Final = 1_700_000_000
"""Experts of a layer that are decoded at a time: all 32 of gpt-oss-20b."""

QUERIES, KEYS_AT_ONCE = 64, 32
"""Queries that a program of attention takes, and keys that it looks at in a step: three programs fit a processor."""

LANES: Final = 1024
EXACT: Final = {"enable_fp_fusion": False}


def suits(settings: Settings) -> bool:
    """Whether the kernels take a model of these sizes: a head's width is a power of two that tensor cores take."""
    return settings.head_dim in (16, 32, 64, 128)


def layer_passes(
    passes: Sequence[Pass], layer: Layer, index: int, settings: Settings, batch: Batch
) -> list[tuple[Tensor, Routing]]:
    """As `model.layer_passes` with BF16."""
    device = passes[0].x.device
    with _current(device):
        tables = _tables(batch, settings.rope, settings.head_dim, device)
        taken = _attention(passes, layer, settings, settings.windows[index], tables)
        norm, out_bias = layer.mlp_norm.vectors(), layer.o_bias.vectors()
        normed = [
            norm_rows(p.x, norm, settings.eps, reverse=p.reverse, added=(t, out_bias), wide=True)
            for p, t in zip(passes, taken, strict=True)
        ]
        del taken
        router, bias = layer.router.matrix(torch.float32), layer.router_bias.vectors()
        reversed_router = router.flip(-1) if any(p.reverse for p in passes) else router
        chosen = []
        for p, n in zip(passes, normed, strict=True):
            logits = (n.wide.flip(-1) @ reversed_router.T if p.reverse else n.wide @ router.T) + bias
            chosen.append(route(logits, settings.experts_per_token, p.forced))
        return list(zip(_mixture(passes, normed, chosen, layer, settings), chosen, strict=True))


def unembed(x: Tensor, head: Head, settings: Settings, reverse: bool, rows: int) -> Tensor:
    """As `model.unembed` with BF16, by `rows` of the head at a time."""
    with _current(x.device):
        h = norm_rows(x, head.norm.vectors(), settings.eps, reverse=reverse).narrow
        out = torch.empty((len(h), settings.vocab), dtype=torch.float32, device=x.device)
        for at in range(0, settings.vocab, rows):
            some = slice(at, min(at + rows, settings.vocab))
            weight = head.head.lies_as(torch.bfloat16, some)
            out[:, some] = h @ (weight.flip(-1) if reverse else weight).T
        return out


def _current(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@dataclass(frozen=True, eq=False)
class _Tables:
    """What attention needs to know of a batch: cos and sin [T, D / 2], and blocks of queries int32 [.., 3]."""

    cos: Tensor
    sin: Tensor
    blocks: Tensor


@lru_cache(maxsize=2)
def _tables(batch: Batch, rope: Rope, dim: int, device: torch.device) -> _Tables:
    cos, sin = rotation(rope, dim, batch.positions.to(device))
    blocks = [(at, min(at + QUERIES, stop), start) for start, stop in batch.spans for at in range(start, stop, QUERIES)]
    return _Tables(cos[:, 0].contiguous(), sin[:, 0].contiguous(), torch.tensor(blocks, dtype=torch.int32).to(device))


@dataclass(frozen=True, eq=False)
class _Normed:
    """Residual streams float32 [T, H], and what they are over their root mean square: float32 and BF16.

    BF16 is flipped where sums run from their other end.
    """

    x: Tensor
    wide: Tensor
    narrow: Tensor


def norm_rows(
    x: Tensor, weight: Tensor, eps: float, *, reverse: bool = False, added: tuple[Tensor, Tensor] | None = None,
    wide: bool = False,
) -> _Normed:  # fmt: skip
    """`model.rms_norm` of x [T, H], or of x + (y + bias) where BF16 y [T, H] and bias [H] are `added`."""
    tokens, hidden = x.shape
    more, bias = added or (x, x)
    out = torch.empty_like(x) if added else x
    result = torch.empty_like(x) if wide else x
    narrow = torch.empty_like(x, dtype=torch.bfloat16)
    fused_kernels.normed[(tokens,)](
        x, more, bias, weight, out, result, narrow, eps, H=hidden, LANES=fused_kernels.lanes_for(hidden),
        ADDS=added is not None, WIDE=wide, REVERSE=reverse, num_warps=8, **EXACT,
    )  # fmt: skip
    return _Normed(out, result, narrow)


def _attention(
    passes: Sequence[Pass], layer: Layer, settings: Settings, window: int | None, tables: _Tables
) -> list[Tensor]:
    """The output projection of each pass, BF16 [T, H], without its bias."""
    norm, sinks = layer.attn_norm.vectors(), layer.sinks.vectors()
    projections = torch.cat([p.matrix(torch.bfloat16) for p in (layer.q, layer.k, layer.v)])
    bias = torch.cat([p.vectors() for p in (layer.q_bias, layer.k_bias, layer.v_bias)])
    out = layer.o.matrix(torch.bfloat16)
    found = []
    for p in passes:
        h = norm_rows(p.x, norm, settings.eps, reverse=p.reverse).narrow
        heads = turn(h @ (projections.flip(-1) if p.reverse else projections).T, bias, tables, settings)
        taken = attend(heads, sinks, tables, settings, window, p.reverse)
        found.append(taken @ (out.flip(-1) if p.reverse else out).T)
    return found


def turn(h: Tensor, bias: Tensor, tables: _Tables, settings: Settings) -> Tensor:
    """Queries, keys and values float32 [T, (N + 2 K) D] of their projection BF16: with bias, rotated but for values."""
    out = torch.empty_like(h, dtype=torch.float32)
    heads, half = settings.heads + 2 * settings.kv_heads, settings.head_dim // 2
    fused_kernels.turned[(len(h),)](
        h, bias, tables.cos, tables.sin, out, settings.heads + settings.kv_heads, HEADS=heads, HALF=half,
        HEAD_LANES=fused_kernels.lanes_for(heads), HALF_LANES=fused_kernels.lanes_for(half), **EXACT,
    )  # fmt: skip
    return out


def attend(
    heads: Tensor, sinks: Tensor, tables: _Tables, settings: Settings, window: int | None, reverse: bool
) -> Tensor:
    """`attention.attend` of what `turn` gives: BF16 [T, N D], flipped where sums run from their other end."""
    n, dim = settings.heads, settings.head_dim
    out = torch.empty((len(heads), n * dim), dtype=torch.bfloat16, device=heads.device)
    fused_attention.attended[(len(tables.blocks), n)](
        heads, sinks, tables.blocks, out, dim**-0.5, window or 0, QUERIES=n, KEYS=settings.kv_heads, D=dim,
        ROWS=QUERIES, LINES=KEYS_AT_ONCE, WINDOWED=window is not None, REVERSE=reverse, num_warps=4, num_stages=2,
    )  # fmt: skip
    return out


@dataclass(frozen=True, eq=False)
class _Sorted:
    """Places [n] of a choice [T, k] expert by expert: their tokens, their experts, and int32 [E] where each ends.

    `places`, `experts` and `weights` [T, k] say of each token where its experts' rows are, by expert number.
    """

    tokens: Tensor
    row_experts: Tensor
    ends: Tensor
    places: Tensor
    experts: Tensor
    weights: Tensor

    @classmethod
    def of(cls, routing: Routing, experts: int) -> _Sorted:
        k = routing.experts.shape[1]
        by_number, order = routing.experts.sort(-1)
        row_experts, slots = by_number.flatten().sort(stable=True)
        ends = torch.searchsorted(row_experts, torch.arange(experts, device=slots.device), right=True, out_int32=True)
        places = torch.empty_like(slots)
        places[slots] = torch.arange(len(slots), device=slots.device)
        return cls(
            slots // k, row_experts, ends, places.view(-1, k), by_number, routing.weights.gather(-1, order)
        )  # fmt: skip


def _mixture(
    passes: Sequence[Pass], normed: Sequence[_Normed], chosen: Sequence[Routing], layer: Layer, settings: Settings
) -> list[Tensor]:
    """The residual streams with what the experts add: some experts are decoded at a time, once for all passes."""
    hidden, inner = settings.hidden, settings.intermediate
    gate_bias, up_bias, down_bias = (p.vectors() for p in (layer.gate_bias, layer.up_bias, layer.down_bias))
    places = [_Sorted.of(r, settings.experts) for r in chosen]
    room = normed[0].narrow
    downs = [room.new_empty((len(s.tokens), hidden)) for s in places]
    count = min(settings.experts, max(1, DECODED_NBYTES // (6 * inner * hidden)))
    stops = [[0, *s.ends.tolist()] for s in places] if count < settings.experts else []
    for first in range(0, settings.experts, count):
        held = min(count, settings.experts - first)
        gate_up = room.new_empty((held, inner, 2, hidden))
        fill_in_turns(layer.gate, layer.up, first, gate_up)
        down = room.new_empty((held, hidden, inner))
        layer.down.fill(first, down)
        for i, (p, s) in enumerate(zip(passes, places, strict=True)):
            rows, ends = slice(None), s.ends
            if held < settings.experts:
                rows = slice(stops[i][first], stops[i][first + held])
                ends = s.ends[first : first + held] - rows.start
            x = grouped(normed[i].narrow[s.tokens[rows]], gate_up.flatten(1, 2), ends, p.reverse)
            x = activate(x, gate_bias, up_bias, s.row_experts[rows], settings, p.reverse)
            downs[i][rows] = grouped(x, down, ends, p.reverse)
    return [mix(n.x, d, down_bias, s) for n, d, s in zip(normed, downs, places, strict=True)]


def grouped(x: Tensor, weights: Tensor, ends: Tensor, reverse: bool = False) -> Tensor:
    """Rows x [n, K] of BF16, sorted by expert, times the weights [E, R, K] of theirs: BF16 [n, R].

    `ends` int32 [E] says where each expert's rows end. `reverse`: x is flipped, and the weights are here. Sums are in
    float32 (cutlass's accumulators on sm_90 and later; elsewhere one product for each expert).
    """
    if reverse:
        weights = weights.flip(-1)
    aligned = not weights.shape[1] % 8 and not weights.shape[2] % 8
    if x.is_cuda and aligned and len(x) and torch.cuda.get_device_capability(x.device) >= (9, 0):
        product: Any = getattr(torch.nn.functional, "grouped_mm", None) or torch._grouped_mm
        result: Tensor = product(x, weights.transpose(1, 2), offs=ends)
        return result
    out = x.new_empty((len(x), weights.shape[1]))
    begin = 0
    for w, end in zip(weights, ends.tolist(), strict=True):
        torch.matmul(x[begin:end], w.T, out=out[begin:end])
        begin = end
    return out


def activate(
    x: Tensor, gate_bias: Tensor, up_bias: Tensor, experts: Tensor, settings: Settings, reverse: bool = False
) -> Tensor:
    """`model.swiglu` of BF16 x [n, 2 I], gate and up in turns, with the biases [E, I] of their `experts` [n]."""
    out = x.new_empty((len(x), x.shape[1] // 2))
    if len(x):
        fused_kernels.activated[(len(x), -(-out.shape[1] // LANES))](
            x, gate_bias, up_bias, experts, out, settings.swiglu_alpha, settings.swiglu_limit, WIDTH=out.shape[1],
            LANES=LANES, REVERSE=reverse, **EXACT,
        )  # fmt: skip
    return out


def mix(x: Tensor, down: Tensor, bias: Tensor, places: _Sorted) -> Tensor:
    """x [T, H] and the weighted rows of `down` [n, H] that are its tokens', with the biases [E, H] of their experts."""
    tokens, hidden = x.shape
    out = torch.empty_like(x)
    fused_kernels.mixed[(tokens, -(-hidden // LANES))](
        x, down, bias, places.places, places.experts, places.weights, out, K=places.places.shape[1], H=hidden,
        LANES=LANES, **EXACT,
    )  # fmt: skip
    return out
