"""gpt-oss' forward pass as pure functions of canonical parts.

The residual stream, norms, rope, attention, router, softmax and SwiGLU are computed in float32. Matrix products of the
projections, the experts and the head take operands of `Arithmetic.dtype`: float32 (TF32 off), or BF16 with results
rounded to BF16, as engines do it; the router's are float32 always, since its rounding is what flips a choice.

Shapes: T tokens, H hidden, I intermediate, E experts, k a token's experts, V vocabulary.
Source: gpt_oss/torch/model.py (OpenAI), modeling_gpt_oss.py (transformers 5.23).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ckpttool.errors import UsageError
from ckpttool.validator.attention import Batch, attend, rotate, rotation
from ckpttool.validator.routing import Assignment, Routing, by_expert, route
from ckpttool.validator.settings import Settings
from ckpttool.validator.stored import StoredPart

Tensor = torch.Tensor

TOKENS_AT_ONCE = 8192
"""Tokens that one expert takes at a time: [n, 2 I] float32 is what it needs of memory."""

HEAD_ROWS = 16384
"""Rows of the head that are decoded at a time."""


@dataclass(frozen=True)
class Arithmetic:
    """How products are made. `reverse`: every sum over a contraction axis runs from its other end."""

    dtype: torch.dtype = torch.float32
    reverse: bool = False

    def product(self, x: Tensor, w: Tensor) -> Tensor:
        """x [n, K] times w [R, K] transposed, float32 [n, R]."""
        if self.reverse:
            x, w = x.flip(-1), w.flip(-1)
        return (x.to(w.dtype) @ w.T).float()


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer's canonical parts, as they are stored."""

    attn_norm: StoredPart
    q: StoredPart
    q_bias: StoredPart
    k: StoredPart
    k_bias: StoredPart
    v: StoredPart
    v_bias: StoredPart
    o: StoredPart
    o_bias: StoredPart
    sinks: StoredPart
    mlp_norm: StoredPart
    router: StoredPart
    router_bias: StoredPart
    gate: StoredPart
    gate_bias: StoredPart
    up: StoredPart
    up_bias: StoredPart
    down: StoredPart
    down_bias: StoredPart


@dataclass(frozen=True, eq=False)
class Head:
    """What turns the residual stream into logits."""

    norm: StoredPart
    head: StoredPart


@dataclass(frozen=True, eq=False)
class Pass:
    """One way through a layer: the residual stream float32 [T, H] before it, and experts that are forced on tokens."""

    x: Tensor
    forced: Tensor | None = None
    reverse: bool = False


@contextlib.contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Float32 products in float32, not TF32, and BF16 ones accumulated in float32; nothing recorded for gradients.

    Raises:
        UsageError: the environment makes cuBLAS take TF32 whatever the program says.
    """
    if device.type == "cuda" and os.environ.get("NVIDIA_TF32_OVERRIDE") == "1":
        raise UsageError("NVIDIA_TF32_OVERRIDE=1 forces TF32 on float32 products", hint="unset it")
    matmul = torch.backends.cuda.matmul
    before = torch.get_float32_matmul_precision(), matmul.allow_bf16_reduced_precision_reduction
    torch.set_float32_matmul_precision("highest")
    matmul.allow_bf16_reduced_precision_reduction = False
    try:
        # Triton launches on the current device, wherever tensors are.
        with torch.inference_mode(), torch.cuda.device(device if device.type == "cuda" else -1):
            yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        matmul.allow_bf16_reduced_precision_reduction = before[1]


def rms_norm(x: Tensor, weight: Tensor, eps: float, reverse: bool = False) -> Tensor:
    """x [T, H] over its root mean square, times weight [H]."""
    squares = x.flip(-1).square() if reverse else x.square()
    return weight * (x * torch.rsqrt(squares.mean(-1, keepdim=True) + eps))


def layer_forward(
    x: Tensor,
    layer: Layer,
    index: int,
    settings: Settings,
    batch: Batch,
    arithmetic: Arithmetic | None = None,
    *,
    routing: Tensor | None = None,
) -> tuple[Tensor, Routing]:
    """The residual stream [T, H] behind layer number `index`, and which experts it took.

    `routing` [T, k] forces the experts; their weights are the layer's own.
    """
    how = arithmetic or Arithmetic()
    ((out, chosen),) = layer_passes([Pass(x, routing, how.reverse)], layer, index, settings, batch, how.dtype)
    return out, chosen


def layer_passes(
    passes: Sequence[Pass], layer: Layer, index: int, settings: Settings, batch: Batch, dtype: torch.dtype,
    *, scores_at_once: int | None = None, fused: bool | None = None,
) -> list[tuple[Tensor, Routing]]:  # fmt: skip
    """Several passes through one layer: its weights are decoded once for all. Each is computed as if alone.

    `fused`: by the kernels of `fused`; None: with BF16 on a GPU.
    """
    if _by_kernels(passes[0].x, settings, dtype) if fused is None else fused:
        from ckpttool.validator.fused import layer_passes as by_kernels

        return by_kernels(passes, layer, index, settings, batch)
    ways = [Arithmetic(dtype, p.reverse) for p in passes]
    xs = _attention(passes, layer, index, settings, batch, ways, scores_at_once)
    norm = layer.mlp_norm.vectors()
    hs = [rms_norm(x, norm, settings.eps, way.reverse) for x, way in zip(xs, ways, strict=True)]
    router, bias = layer.router.matrix(torch.float32), layer.router_bias.vectors()
    chosen = [
        route(way.product(h, router) + bias, settings.experts_per_token, p.forced)
        for h, way, p in zip(hs, ways, passes, strict=True)
    ]
    ys = mixture(hs, chosen, layer, settings, ways)
    return [(x + y, r) for x, y, r in zip(xs, ys, chosen, strict=True)]


def _by_kernels(x: Tensor, settings: Settings, dtype: torch.dtype) -> bool:
    """Whether `fused` computes: on a GPU, for size. FP32 mode, in which the code itself is on trial, is this file's."""
    if not x.is_cuda or dtype is not torch.bfloat16:
        return False
    from ckpttool.validator.fused import suits

    return suits(settings)


def _attention(
    passes: Sequence[Pass], layer: Layer, index: int, settings: Settings, batch: Batch, ways: Sequence[Arithmetic],
    at_once: int | None,
) -> list[Tensor]:  # fmt: skip
    """The residual streams with what attention adds."""
    dtype = ways[0].dtype
    norm, sinks = layer.attn_norm.vectors(), layer.sinks.vectors()
    projections = torch.cat([p.matrix(dtype) for p in (layer.q, layer.k, layer.v)])
    biases = torch.cat([p.vectors() for p in (layer.q_bias, layer.k_bias, layer.v_bias)])
    out, out_bias = layer.o.matrix(dtype), layer.o_bias.vectors()
    cos, sin = rotation(settings.rope, settings.head_dim, batch.positions.to(norm.device))
    n, m = settings.heads, settings.kv_heads
    xs = []
    for one, way in zip(passes, ways, strict=True):
        h = way.product(rms_norm(one.x, norm, settings.eps, way.reverse), projections) + biases
        heads = h.view(len(h), -1, settings.head_dim)
        q, k = rotate(heads[:, :n], cos, sin), rotate(heads[:, n : n + m], cos, sin)
        window = settings.windows[index]
        taken = attend(q, k, heads[:, n + m :], sinks, batch.spans, window, at_once=at_once, reverse=way.reverse)
        xs.append(one.x + (way.product(taken, out) + out_bias))
    return xs


def swiglu(gate: Tensor, up: Tensor, settings: Settings) -> Tensor:
    """gpt-oss' activation: the gate has no lower clamp, and one is added to up."""
    gate = gate.clamp(max=settings.swiglu_limit)
    up = up.clamp(-settings.swiglu_limit, settings.swiglu_limit)
    return gate * torch.sigmoid(settings.swiglu_alpha * gate) * (up + 1)


def mixture(
    hs: Sequence[Tensor], chosen: Sequence[Routing], layer: Layer, settings: Settings, ways: Sequence[Arithmetic]
) -> list[Tensor]:
    """What the experts add, [T, H] for each of `hs`: each expert is decoded once, and computed on its tokens alone."""
    dtype = ways[0].dtype
    gate_bias, up_bias, down_bias = (p.vectors() for p in (layer.gate_bias, layer.up_bias, layer.down_bias))
    assigned = [by_expert(r) for r in chosen]
    ys = [torch.zeros_like(h) for h in hs]
    begins = [0] * len(hs)
    for e in range(settings.experts):
        if not any(a.counts[e] for a in assigned):
            continue
        gate_up = torch.cat([layer.gate.matrix(dtype, e), layer.up.matrix(dtype, e)])
        bias = torch.cat([gate_bias[e], up_bias[e]])
        down = layer.down.matrix(dtype, e)
        for i, way in enumerate(ways):
            for slots in _places(assigned[i], e, begins[i]):
                tokens = slots // chosen[i].experts.shape[1]
                gate, up = (way.product(hs[i][tokens], gate_up) + bias).chunk(2, -1)
                out = way.product(swiglu(gate, up, settings), down) + down_bias[e]
                ys[i].index_add_(0, tokens, out * chosen[i].weights.flatten()[slots, None])
            begins[i] += assigned[i].counts[e]
    return ys


def _places(assigned: Assignment, expert: int, begin: int) -> Iterator[Tensor]:
    """An expert's slots, which begin at `begin`, not too many at a time."""
    end = begin + assigned.counts[expert]
    for at in range(begin, end, TOKENS_AT_ONCE):
        yield assigned.slots[at : min(end, at + TOKENS_AT_ONCE)]


def unembed(
    x: Tensor, head: Head, settings: Settings, arithmetic: Arithmetic | None = None, *, fused: bool | None = None
) -> Tensor:
    """Logits float32 [n, V] of the last residual stream [n, H]; the head is decoded by some rows at a time."""
    how = arithmetic or Arithmetic()
    if _by_kernels(x, settings, how.dtype) if fused is None else fused:
        from ckpttool.validator.fused import unembed as by_kernels

        return by_kernels(x, head, settings, how.reverse, HEAD_ROWS)
    h = rms_norm(x, head.norm.vectors(), settings.eps, how.reverse)
    out = torch.empty((len(h), settings.vocab), dtype=torch.float32, device=x.device)
    for at in range(0, settings.vocab, HEAD_ROWS):
        rows = slice(at, min(at + HEAD_ROWS, settings.vocab))
        out[:, rows] = how.product(h, head.head.matrix(how.dtype, rows=rows))
    return out
