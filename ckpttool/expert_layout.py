"""How each layer's experts are stored, from headers alone: fused or separate, interleaved or concatenated, stacked or
one by one, which way round, with biases or without. Layers alike are one group; a layer that differs stands out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckpttool.archs.purposes import Purpose, Purposes, purposes_of

if TYPE_CHECKING:
    from ckpttool.archs.facts import ModelFacts
    from ckpttool.checkpoint import Checkpoint
    from ckpttool.tensors import Weight


@dataclass(frozen=True, slots=True)
class ExpertLayout:
    """How one layer stores its experts.

    `gate_up`: "fused" in one tensor, or "separate"; `order`: "interleaved" or "concatenated" rows of a fused one, else
    None. `storage`: "stacked", all experts in one tensor, or "per-expert". `orientation`: "[out, in]" as y = W x has
    it, or "[in, out]". `hidden` and `intermediate` are lengths of the axes, None where shapes contradict each other.
    `shared`: how many experts' width the shared expert has. `formats` of gate, up and down, distinct ones.
    """

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

    @property
    def words(self) -> str:
        """One line: "32 experts, gate and up fused, interleaved, stacked, [out, in], bias"."""
        gate_up = f"gate and up {self.gate_up}" + (f" and {self.order}" if self.order else "")
        shared = f", {self.shared} shared" if self.shared else ""
        bias = "with bias" if self.bias else "no bias"
        return f"{self.experts} experts{shared}, {gate_up}, {self.storage}, {self.orientation}, {bias}"


@dataclass(frozen=True, slots=True)
class LayoutGroup:
    """Layers whose experts are stored alike."""

    layers: tuple[int, ...]
    layout: ExpertLayout


@dataclass(frozen=True)
class ExpertLayouts:
    """All layers with experts, the largest group first; `findings` name what differs from it or is missing."""

    dialect: str
    groups: tuple[LayoutGroup, ...]
    findings: tuple[str, ...]

    @property
    def layers(self) -> tuple[int, ...]:
        """Every layer with experts."""
        return tuple(sorted(n for g in self.groups for n in g.layers))

    def of(self, layer: int) -> ExpertLayout | None:
        """The layout of one layer, None where it holds no experts."""
        return next((g.layout for g in self.groups if layer in g.layers), None)


def expert_layouts(checkpoint: Checkpoint, facts: ModelFacts, purposes: Purposes | None = None) -> ExpertLayouts | None:
    """The expert layout of `checkpoint`, None where no table knows its experts' names.

    Layers past the model's last one, which only speculate, are left out. What the headers show is held against `facts`.
    """
    purposes = purposes or purposes_of(checkpoint, facts.layers)
    if purposes.layout is None:
        return None
    found: dict[int, list[tuple[Weight, Purpose]]] = {}
    for w in checkpoint.weights:
        purpose = purposes.by_name[w.name]
        if purpose.layer is not None and purpose.join is not None and not purpose.idle:
            found.setdefault(purpose.layer, []).append((w, purpose))
    layouts: dict[int, ExpertLayout] = {}
    findings: list[str] = []
    for layer, rows in sorted(found.items()):
        layout, wrong = _layout(rows)
        findings += [f"layer {layer}: {text}" for text in wrong]
        if layout is not None:
            layouts[layer] = layout
    if not layouts:
        return None
    groups = _groups(layouts)
    usual = groups[0]
    findings += [f"{ranges_of(g.layers)}: {_differs(g.layout, usual.layout)}" for g in groups[1:]]
    findings += _against(facts, layouts)
    return ExpertLayouts(purposes.layout.name, groups, tuple(findings))


def _against(facts: ModelFacts, layouts: dict[int, ExpertLayout]) -> Iterable[str]:
    """Where the headers are not what the side files say."""
    wanted = set(facts.moe_layers if facts.moe_layers is not None else layouts)
    for numbers, text in (
        (wanted - layouts.keys(), "no experts, though"),
        (layouts.keys() - wanted, "experts, though not by"),
    ):
        if numbers:
            yield f"{ranges_of(sorted(numbers))}: {text} {facts.said['moe_layers']} says so"
    said = facts.experts
    other = [n for n, x in layouts.items() if said is not None and x.experts != said]
    if other:
        have = _word(tuple(sorted({layouts[n].experts for n in other})))
        yield f"{ranges_of(other)}: {have} experts, but {facts.said.get('experts', 'the config')} is {said}"


def _groups(layouts: dict[int, ExpertLayout]) -> tuple[LayoutGroup, ...]:
    alike: dict[ExpertLayout, list[int]] = {}
    for layer, layout in layouts.items():
        alike.setdefault(layout, []).append(layer)
    return tuple(LayoutGroup(tuple(v), k) for k, v in sorted(alike.items(), key=lambda x: (-len(x[1]), x[1])))


def _layout(rows: Sequence[tuple[Weight, Purpose]]) -> tuple[ExpertLayout | None, list[str]]:
    """One layer's layout, and what is wrong with it; None where it holds no expert matrix."""
    matrices = [(w, r) for w, r in rows if r.is_expert and not r.kinds[0].endswith(".bias")]
    have = {k for _, r in matrices for k in r.kinds}
    if not have:
        return None, []
    wrong = [f"{kind} is missing" for kind in ("gate", "up", "down") if kind not in have]
    first = next((r for _, r in matrices if "gate" in r.kinds or "up" in r.kinds), matrices[0][1])
    down = next((r for _, r in matrices if "down" in r.kinds), first)
    join = first.join
    assert join is not None and down.join is not None
    per_expert = join.per_expert
    fused = len(first.kinds) > 1
    count, lacking = _count(matrices)
    wrong += lacking
    hidden, intermediate, odd = _axes(matrices)
    wrong += odd
    order = ("interleaved" if join.interleaved else "concatenated") if fused else None
    way = "[in, out]" if down.join.transposed else "[out, in]"
    bias = any(r.is_expert and r.kinds[0].endswith(".bias") for _, r in rows)
    shared = _shared(rows, intermediate)
    formats = tuple(sorted({w.codec.name for w, _ in matrices}))
    storage = "per-expert" if per_expert else "stacked"
    gate_up = "fused" if fused else "separate"
    return ExpertLayout(count, gate_up, order, storage, way, bias, hidden, intermediate, shared, formats), wrong


def _count(matrices: Sequence[tuple[Weight, Purpose]]) -> tuple[int, list[str]]:
    """How many experts, and which matrices lack some of them."""
    numbers: dict[tuple[str, ...], set[int]] = {}
    for w, purpose in matrices:
        have = {purpose.expert} if purpose.expert is not None else set(range(w.shape[0] if len(w.shape) == 3 else 1))
        numbers.setdefault(purpose.kinds, set()).update(n for n in have if n is not None)
    count = max(max(have) + 1 for have in numbers.values() if have) if any(numbers.values()) else 0
    wrong = []
    for kinds, have in numbers.items():
        lacking = sorted(set(range(count)) - have) if count <= 1 << 16 else []
        if lacking:
            wrong.append(
                f"{' and '.join(kinds)}: {len(lacking)} of {count} experts are missing: {ranges_of(lacking, '')}"
            )
    return count, wrong


def _axes(matrices: Sequence[tuple[Weight, Purpose]]) -> tuple[int | None, int | None, list[str]]:
    """hidden, intermediate, and the matrices that contradict what most say."""
    seen: Counter[tuple[int, int]] = Counter()
    told: list[tuple[Weight, Purpose, tuple[int, int]]] = []
    for w, purpose in matrices:
        if len(w.shape) < 2 or purpose.join is None:
            continue
        out, k = (w.shape[-1], w.shape[-2]) if purpose.join.transposed else (w.shape[-2], w.shape[-1])
        axes = (out, k) if "down" in purpose.kinds else (k, out // len(purpose.kinds))
        seen[axes] += 1
        told.append((w, purpose, axes))
    if not seen:
        unread = all(w.shape and not w.codec.is_plain for w, _ in matrices)  # a remote file's, told by its bytes
        return None, None, [] if unread else ["no expert matrix has two axes"]
    usual = seen.most_common(1)[0][0]
    odd = [f"{w.name} has shape {list(w.shape)}, which does not fit hidden {usual[0]}, intermediate {usual[1]}"
           for w, _, axes in told if axes != usual]  # fmt: skip
    return usual[0], usual[1], odd[:4] + ([f"and {len(odd) - 4} more"] if len(odd) > 4 else [])


def _shared(rows: Iterable[tuple[Weight, Purpose]], intermediate: int | None) -> int:
    """The shared expert's width in experts, at least 1 where there is one."""
    widths = [w.shape[-1] for w, r in rows if r.kinds == ("shared.down",) and len(w.shape) == 2]
    if not widths:
        return 0
    return max(1, widths[0] // intermediate) if intermediate else 1


def _differs(layout: ExpertLayout, usual: ExpertLayout) -> str:
    """What is not as usual, field by field."""
    said = []
    for name in ExpertLayout.__slots__:
        a, b = getattr(layout, name), getattr(usual, name)
        if a != b:
            said.append(f"{name} {_word(a)}, elsewhere {_word(b)}")
    return "; ".join(said)


def _word(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def ranges_of(numbers: Sequence[int], noun: str = "layer") -> str:
    """Sorted numbers as ranges: "layers 0-3, 7"; "0-3, 7" with "" for the noun."""
    out: list[list[int]] = []
    for n in numbers:
        if out and n == out[-1][1] + 1:
            out[-1][1] = n
        else:
            out.append([n, n])
    text = ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in out)
    return f"{noun}{'s' if len(numbers) > 1 else ''} {text}" if noun else text


def matrix_of(tensor: str) -> str:
    """The last word of a weight's name that says which matrix it is: "down_proj"."""
    return [w for w in tensor.split(".") if w not in ("weight", "*")][-1]
