"""The summary of an inspection as a spec sheet: a word and what it is, in the units that people think in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ckpttool.archs.layers import UNNAMED
from ckpttool.inspection.report import FingerprintReport, Inspection, Summary
from ckpttool.render.fold import ranges
from ckpttool.render.terminal import many
from ckpttool.units import size


def sheet(report: Inspection) -> Iterator[tuple[str, str]]:
    """The rows of the sheet; what nothing says has none."""
    s = report.summary
    yield "model", _model(report)
    active = f", {count(s.active_parameters)} active per token" if s.active_parameters is not None else ""
    yield "parameters", f"{count(report.parameters)}{active}  ({_exactly(report)})"
    against = f", {percent(s.size_against_bf16)} of the {size(s.bf16_nbytes)} of BF16" if s.bf16_nbytes else ""
    gib = f"{report.nbytes / 2**30:,.2f} GiB; " if report.nbytes >= 1 << 30 else ""
    exactly = f"({gib}{many(report.nbytes, 'byte')})"
    yield "size", f"{size(report.nbytes)}, {report.bits_per_weight:.2f} bits per weight{against}  {exactly}"
    if s.formats:
        yield "formats", ", ".join(f"{f.format} {percent(f.parameters / (report.parameters or 1))}" for f in s.formats)
    yield from _experts(s)
    yield from _attention(s)
    yield from _rope(s)
    if s.context:
        yield "context", f"{s.context:,} tokens"
    if s.swiglu_limit is not None:
        yield "activation", f"swiglu limit {number(s.swiglu_limit)}"
    yield from _vocabulary(s)
    if s.fingerprint is not None:
        yield "quantized by", made_by(s.fingerprint)
    if s.file_type is not None:
        yield "file type", s.file_type
    files = many(s.shards, "shard") if s.shards > 1 else "1 file"
    yield "files", f"{files}, {many(s.stored_tensors, 'tensor')}"


def _model(report: Inspection) -> str:
    s = report.summary
    name = s.family or report.arch or s.model_type or "unknown architecture"
    known = s.family or report.arch
    declared = f"declared as {s.model_type}" if s.model_type and not known else None
    dialect = f"{report.dialect} dialect" if report.dialect and report.dialect != report.container else None
    words = [name if known else "unknown architecture", declared, report.container, dialect]
    if s.layers:
        words.append(f"{s.layers} layers of {s.hidden:,}" if s.hidden else f"{s.layers} layers")
    return ", ".join(w for w in words if w)


def _exactly(report: Inspection) -> str:
    active = report.active_parameters
    return f"{report.parameters:,}" + (f"; {active:,}" if active is not None else "")


def _experts(s: Summary) -> Iterator[tuple[str, str]]:
    if not s.expert_layout:
        if s.router.experts:
            top = f", {s.router.top_k} a token" if s.router.top_k else ""
            yield "experts", f"{s.router.experts}{top}; how they are stored is not known"
        return
    first = s.expert_layout[0]
    top = f", {s.router.top_k} a token" if s.router.top_k else ""
    width = f" of {first.intermediate:,}" if first.intermediate else ""
    rest = first.words.partition(", ")[2]
    where = f" in layers {ranges(first.layers)}" if len(s.expert_layout) > 1 or len(first.layers) != s.layers else ""
    yield "experts", f"{first.experts}{width}{top}, {percent(s.expert_share)} of the weights{where}"
    yield "", rest
    for other in s.expert_layout[1:]:
        yield "", f"layers {ranges(other.layers)}: {other.words} ({', '.join(other.formats)})"


def _attention(s: Summary) -> Iterator[tuple[str, str]]:
    a = s.attention
    if a.heads is None:
        return
    words = [f"{a.heads} heads"]
    if a.kv_heads is not None and a.kv_heads != a.heads and not a.kv_lora_rank:
        words.append(f"{a.kv_heads} KV heads")
    if a.head_dim:
        words[-1] += f" of {a.head_dim}"
    if a.kv_lora_rank:
        words.append(f"one latent vector of {a.kv_lora_rank} a token")
    kinds = []
    for kind, layers in a.kinds.items():
        window = f" {a.window:,}" if kind in ("sliding", "chunked") and a.window else ""
        where = "" if len(a.kinds) == 1 else f" in {many(len(layers), 'layer')} ({ranges(layers)})"
        kinds.append(f"{kind}{window}{where}")
    if s.said.get("attention") == UNNAMED:
        kinds.append(f"though a window of {a.window:,} is stated: nothing names the layers that have it")
    yield "attention", ", ".join(words + kinds)


def _rope(s: Summary) -> Iterator[tuple[str, str]]:
    r = s.rope
    if r.theta is None and r.type is None and not r.layers_without:
        return
    words = [f"theta {number(r.theta)}"] if r.theta is not None else []
    if r.factor:
        of = f" of {r.original_context:,}" if r.original_context else ""
        words.append(f"{r.type or 'scaled'} x {number(r.factor)}{of}")
    elif r.type:
        words.append(r.type)
    betas = [number(b) for b in (r.beta_fast, r.beta_slow) if b is not None]
    if betas:
        words.append(f"betas {' and '.join(betas)}")
    if r.truncate is not None:
        words.append("truncated" if r.truncate else "not truncated")
    if r.layers_without:
        words.append(f"none in {many(len(r.layers_without), 'layer')} ({ranges(r.layers_without)})")
    yield "rope", ", ".join(words)


def _vocabulary(s: Summary) -> Iterator[tuple[str, str]]:
    v = s.vocabulary
    if v.size is not None:
        tied = ", embeddings tied to the head" if v.tied_embeddings else ""
        yield "vocabulary", f"{v.size:,} tokens{tied}; {v.tokenizer or 'no tokenizer here'}"
        ids = {"bos": (v.bos,), "eos": v.eos, "pad": (v.pad,)}
        said = [f"{k} {' '.join(map(str, x))}" for k, x in ids.items() if x and x[0] is not None]
        if said:
            yield "", ", ".join(said)
    elif v.tokenizer:
        yield "vocabulary", v.tokenizer
    if s.chat_template:
        yield "chat template", s.chat_template


def made_by(f: FingerprintReport) -> str:
    """The recipes in a line, with the reason."""
    blocks = f"{'a sample of ' if f.sampled else ''}{many(f.blocks, 'block')}"
    if not f.recipes:
        return f"none of the recipes known here; {f.reason} ({blocks})"
    if f.reason.endswith("too few to tell"):
        return f"not to be told: {f.reason}"
    return f"{either(f.recipes)}: {f.reason} ({blocks})"


def either(words: Sequence[str]) -> str:
    """ "a, b or c"."""
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def count(n: int) -> str:
    """A number of parameters as people say it: 116.8 B."""
    for unit, scale in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if n >= scale:
            return f"{n / scale:.4g} {unit}"
    return str(n)


def number(x: float) -> str:
    """Without a fraction where it has none."""
    return f"{x:,.0f}" if x == int(x) else f"{x:,.6g}"


def percent(share: float) -> str:
    """A share of the weights: one decimal, and never 0 or 100 for what is neither."""
    text = f"{share:.1%}"
    if text == "0.0%" and share:
        return "< 0.1 %"
    if text == "100.0%" and share < 1:
        return "> 99.9 %"
    return text.replace("%", " %")
