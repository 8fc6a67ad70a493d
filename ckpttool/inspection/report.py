"""What `inspect` reports: frozen dataclasses under schemas/inspection.v1.json. No numbers are made here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How bad a finding is: an error will not load or gives wrong numbers, a warning may, info is worth knowing."""

    error = "error"
    warning = "warning"
    info = "info"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or worth knowing.

    `check` names the rule ("hole", "order", "index" ...). `tensor` is a stored tensor's or weight's name, `place` a
    file, a field of it, or a byte of it; either may be None. `hint` says what to do.
    """

    severity: str
    check: str
    tensor: str | None
    place: str | None
    message: str
    hint: str | None


@dataclass(frozen=True)
class StoredReport:
    """A row of a file header; `offset` is absolute in `file`, `role` is what it is to its weight: codes, scales ..."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int
    nbytes: int
    role: str


@dataclass(frozen=True)
class WeightReport:
    """One weight: `shape` and `parameters` are logical, `part` is None where no architecture matches.

    `purpose` is what the architecture's table says of it ("gate+up", "q", "embed"), `layer` and `expert` its numbers;
    each None where nothing says so. `global_scale`: "divides", "multiplies" or "none".
    """

    name: str
    part: str | None
    purpose: str | None
    layer: int | None
    expert: int | None
    format: str
    packing: str
    shape: tuple[int, ...]
    parameters: int
    nbytes: int
    bits_per_weight: float
    global_scale: str
    stored: tuple[StoredReport, ...]


@dataclass(frozen=True)
class FileReport:
    """One file of a checkpoint; `header_sha256` is None where its header cannot be read."""

    name: str
    nbytes: int
    header_sha256: str | None


@dataclass(frozen=True)
class FormatShare:
    """All weights of one format. `share` is that of all parameters, 0 to 1."""

    format: str
    packing: str
    weights: int
    parameters: int
    nbytes: int
    bits_per_weight: float
    share: float


@dataclass(frozen=True)
class LayoutReport:
    """Layers whose experts are stored alike, by `expert_layout.ExpertLayout`; `words` say it in a line."""

    layers: tuple[int, ...]
    experts: int
    gate_up: str
    order: str | None
    storage: str
    orientation: str
    bias: bool
    hidden: int | None
    intermediate: int | None
    shared: int
    formats: tuple[str, ...]
    words: str


@dataclass(frozen=True)
class AttentionReport:
    """Attention heads; `kinds` says which layers are "full", "sliding", "chunked", "mla" or "compressed"."""

    heads: int | None
    kv_heads: int | None
    head_dim: int | None
    value_head_dim: int | None
    window: int | None
    kv_lora_rank: int | None
    kinds: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class RopeReport:
    """Rotary positions; `layers_without` have none (NoPE), None where nothing speaks of any."""

    theta: float | None
    type: str | None
    factor: float | None
    beta_fast: float | None
    beta_slow: float | None
    original_context: int | None
    truncate: bool | None
    layers_without: tuple[int, ...] | None


@dataclass(frozen=True)
class RouterReport:
    """How many experts there are, and how many of them a token meets."""

    experts: int | None
    top_k: int | None
    shared: int | None
    layers: int


@dataclass(frozen=True)
class VocabularyReport:
    """Token ids; `eos` are all that end a turn. `tokenizer` names where the tokens are, None where there are none."""

    size: int | None
    bos: int | None
    eos: tuple[int, ...]
    pad: int | None
    tied_embeddings: bool | None
    tokenizer: str | None


@dataclass(frozen=True)
class FingerprintReport:
    """Which recipes may have made the MXFP4 scales (none of them: an empty list), and why.

    Told by `blocks` blocks that are not zero, of `weights` weights; `sampled` where not all of theirs were read.
    """

    recipes: tuple[str, ...]
    reason: str
    blocks: int
    weights: int
    sampled: bool


@dataclass(frozen=True)
class Summary:
    """The model in one view. Each fact is None where nothing says it; `said` names the key or rule it comes from.

    `bf16_nbytes` is what all parameters take in BF16, `size_against_bf16` the checkpoint's share of that. `expert_*`
    are the matrices of routed experts, `active_nbytes` the stored bytes of what a token of text uses.
    `declared` is the quantization that config.json names, `file_type` a GGUF's general.file_type.
    """

    family: str | None
    model_type: str | None
    architecture: str | None
    declared: str | None
    active_parameters: int | None
    active_nbytes: int | None
    expert_parameters: int
    expert_share: float
    bf16_nbytes: int
    size_against_bf16: float
    formats: tuple[FormatShare, ...]
    expert_layout: tuple[LayoutReport, ...]
    layers: int | None
    hidden: int | None
    intermediate: int | None
    context: int | None
    attention: AttentionReport
    rope: RopeReport
    router: RouterReport
    swiglu_limit: float | None
    vocabulary: VocabularyReport
    chat_template: str | None
    file_type: str | None
    shards: int
    stored_tensors: int
    fingerprint: FingerprintReport | None
    said: Mapping[str, str]


@dataclass(frozen=True)
class Histogram:
    """Scales by exponent, floor(log2 of the scale): `counts[i]` have exponent `first + i`; both ends are not empty.

    Of E8M0 the exponent is the byte minus 127, and byte 255, which is no number, is left out; of a scale with a sign
    or a significand it is that of its magnitude, and zeros and what is not finite are left out.
    """

    first: int | None
    counts: tuple[int, ...]


@dataclass(frozen=True)
class ScaleCounts:
    """Scales counted: of a weight, or of one expert of it. `expert` is None for a weight that holds no experts.

    `minimum`, `maximum` and `mean` are exponents (None where none is). `zero_blocks` have scale 0, which of E8M0 is
    byte 0, 2^-127: every recipe gives it to a block of zeros. `bytes_0`, `bytes_254` and `bytes_255` are of E8M0 alone,
    else None. `nonfinite`: not a number, or infinite (E8M0's 255).
    """

    expert: int | None
    blocks: int
    minimum: int | None
    maximum: int | None
    mean: float | None
    zero_blocks: int
    bytes_0: int | None
    bytes_254: int | None
    bytes_255: int | None
    nonfinite: int
    histogram: Histogram


@dataclass(frozen=True)
class ScaleReport:
    """The scales of one weight: `tensor` is its name, `element` what a scale is (E8M0, E4M3, F32 ...).

    `bias` is 127 or 125 where the distribution of E8M0 bytes tells, with its `bias_reason`.
    """

    tensor: str
    part: str | None
    layer: int | None
    format: str
    element: str
    total: ScaleCounts
    experts: tuple[ScaleCounts, ...]
    bias: int | None
    bias_reason: str | None


@dataclass(frozen=True)
class CodeReport:
    """The codes of one MXFP4 weight: `histogram` counts codes 0 to 15.

    `saturated` elements are 6 or -6, `negative_zeros` are code 8, `zero_blocks` have no other codes than 0 and 8.
    `overflow` elements decode to more than BF16 holds. `largest` counts blocks by their largest code, 0 to 7.
    """

    tensor: str
    part: str | None
    layer: int | None
    elements: int
    histogram: tuple[int, ...]
    saturated: int
    negative_zeros: int
    zero_blocks: int
    overflow: int
    largest: tuple[int, ...]
    fingerprint: FingerprintReport


@dataclass(frozen=True)
class ExpertSpread:
    """One expert's scales against the other experts' of its weight: `mean` is the mean exponent.

    `deviation` is how far it lies from their median, in octaves. `odd` says why it stands out, None where it does not.
    """

    expert: int
    mean: float | None
    minimum: int | None
    maximum: int | None
    deviation: float | None
    odd: str | None


@dataclass(frozen=True)
class SpreadReport:
    """The experts of one weight: the median of their mean exponents, and each one."""

    tensor: str
    part: str | None
    median: float | None
    experts: tuple[ExpertSpread, ...]


@dataclass(frozen=True)
class ExpertLayerReport:
    """The experts of one layer: how they are stored, and where that `differs` from most layers (None: nowhere)."""

    layer: int
    top_k: int | None
    layout: LayoutReport
    parameters: int
    nbytes: int
    differs: str | None
    spread: tuple[SpreadReport, ...]


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint holds, by its headers. `parameters` counts two packed codes a byte and no scales.

    `scales`, `codes` and `experts` are None where they were not asked for. `data_nbytes_read` are bytes of tensor data,
    0 where headers said it all. `ok` is false where a finding is an error; `checked` where --check looked at values.
    """

    schema: str
    source: str
    arch: str | None
    dialect: str | None
    container: str
    parameters: int
    active_parameters: int | None
    nbytes: int
    bits_per_weight: float
    summary: Summary
    files: tuple[FileReport, ...]
    tensors: tuple[WeightReport, ...]
    scales: tuple[ScaleReport, ...] | None
    codes: tuple[CodeReport, ...] | None
    experts: tuple[ExpertLayerReport, ...] | None
    findings: tuple[Finding, ...]
    ok: bool
    checked: bool
    data_nbytes_read: int
    problems: tuple[str, ...]
    notes: tuple[str, ...]
