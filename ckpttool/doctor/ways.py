"""Ways out of a verdict: the command, where it leads by the same rules, its price; what does not fit is left out."""

from __future__ import annotations

import math
import shlex
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ckpttool.doctor.facts import CheckpointFacts
from ckpttool.doctor.gpus import Gpu
from ckpttool.doctor.judge import Verdict, judge_runtime
from ckpttool.doctor.probe import Environment, with_packages
from ckpttool.doctor.tables import PATHS, Tables, Way, tables
from ckpttool.doctor.versions import Version

VLLM_SHARE = 0.9
"""The share of a GPU that vLLM uses, its default --gpu-memory-utilization; other runtimes use all."""
RESERVE = 1 << 30
"""Bytes that a runtime other than vLLM takes besides weights and cache: context, kernels, buffers."""
ALONE = frozenset({"gpt-oss"})
"""Runtimes that use one GPU. transformers (device_map="auto") and Unsloth ("sequential") fill one after another."""
TP = (1, 2, 4, 8, 16)
"""--tensor-parallel-size of vLLM, which uses one GPU without."""
_STEPS = 4
_MXFP4_OF_BF16 = 17 / 64


@dataclass(frozen=True)
class WayOut:
    """A command, the runtime and path that it leads to, and the bytes of the weights there; None where not known."""

    command: str
    runtime: str
    path: str
    weights_bytes: int | None
    fits: bool | None
    note: str | None = None


@dataclass(frozen=True)
class _State:
    """A case on its way: where it runs, as what, with which flags; and what was typed so far."""

    environment: Environment
    facts: CheckpointFacts | None
    form: str
    flags: frozenset[str]
    runtime: str
    pip: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def weights_bytes(facts: CheckpointFacts | None, path: str, form: str | None = None) -> int | None:
    """Bytes of the weights in memory on that path, for the checkpoint as it is or once converted to `form`."""
    if facts is None or path in ("refused", "unknown"):
        return None
    if path == "dequantized":
        return facts.bf16_nbytes
    if facts.form == "bf16" and form in ("mxfp4", "openai", "gguf-mxfp4"):
        experts = sum(facts.expert_nbytes)
        return facts.nbytes - experts + math.ceil(experts * _MXFP4_OF_BF16)
    return facts.nbytes


def cards(environment: Environment) -> tuple[Gpu, ...]:
    """Every GPU that is here or was named; the processor where there is none."""
    return environment.gpus or (environment.gpu,)


def memory(environment: Environment) -> int | None:
    """Bytes of all GPUs together, or of the machine where there is none; None where one's is not known."""
    sizes = [g.memory for g in cards(environment)]
    return None if None in sizes else sum(s for s in sizes if s is not None)


def room(sizes: Sequence[int], facts: CheckpointFacts | None, runtime: str) -> int:
    """Bytes that GPUs of these `sizes`, taken together, leave for weights beside 8,192 tokens of cache.

    vLLM gives each the same share of the weights, so that the smallest counts; others fill one after the other.
    """
    kv = facts.kv_nbytes if facts else 0
    if runtime != "vllm":
        return sum(sizes) - len(sizes) * RESERVE - kv
    overhead, padding = (facts.overhead_nbytes, facts.padding_nbytes) if facts else (0, 0)
    return len(sizes) * int(min(sizes) * VLLM_SHARE - overhead) - padding - kv


def fits_on(
    nbytes: int | None, environment: Environment, facts: CheckpointFacts | None, runtime: str = "any"
) -> int | None:
    """The fewest of these GPUs on which so many bytes of weights fit with what `runtime` takes besides.

    0 where not even on all that it can use: some use one alone, vLLM a power of two. None where a size is not known.
    """
    sizes = [g.memory for g in cards(environment)]
    known = [s for s in sizes if s is not None]
    if nbytes is None or len(known) < len(sizes):
        return None
    most = 1 if runtime in ALONE else len(known)
    counts = TP if runtime == "vllm" else range(1, most + 1)
    return next((n for n in counts if n <= most and nbytes <= room(known[:n], facts, runtime)), 0)


def fits(
    nbytes: int | None, environment: Environment, facts: CheckpointFacts | None, runtime: str = "any"
) -> bool | None:
    """Whether so many bytes of weights fit on these GPUs, together where `runtime` uses several; None: not known."""
    count = fits_on(nbytes, environment, facts, runtime)
    return None if count is None else count > 0


def ways_out(
    verdict: Verdict, environment: Environment, facts: CheckpointFacts | None, flags: Collection[str] = ()
) -> tuple[tuple[WayOut, ...], tuple[WayOut, ...]]:
    """What can be typed for something better than `verdict`, and what was left out because it does not fit."""
    rows = tables()
    runtime = rows.runtime(verdict.runtime)
    if not verdict.installed:
        missing = {k: v for k, v in runtime.assume.items() if k not in environment.packages}
        environment = with_packages(environment, missing, runtime.traits)
    form = facts.form if facts else runtime.form
    start = _State(environment, facts, form, frozenset(flags), verdict.runtime)
    found = [w for name in verdict.ways if (w := _follow(start, rows.ways[name], verdict, rows))]
    if verdict.path in ("native", "emulated", "dequantized"):
        found += _squeezed(start, verdict.path)
    unique = tuple({w.command: w for w in found}.values())
    return tuple(w for w in unique if w.fits is not False), tuple(w for w in unique if w.fits is False)


def _follow(state: _State, way: Way, verdict: Verdict, rows: Tables) -> WayOut | None:
    """Take `way`, and where that is not enough the ways from there; the best that comes of it, if anything does."""
    best: WayOut | None = None
    taken = set[str]()
    for _ in range(_STEPS):
        taken.add(way.name)
        state = _apply(state, way, rows)
        now = judge_runtime(state.runtime, state.environment, _as_form(state), state.flags, rows=rows)
        if _better(now.path, best.path if best else verdict.path):
            best = _reached(state, now)
        following = next((n for n in now.ways if n not in taken and (rows.ways[n].pip or rows.ways[n].flags)), None)
        if following is None:
            break
        way = rows.ways[following]
    return best


def _reached(state: _State, now: Verdict) -> WayOut:
    """What was typed, and where it led."""
    nbytes = weights_bytes(state.facts, now.path, state.form)
    notes, command = [*state.notes, *now.doubts], _command(state)
    room = fits(nbytes, state.environment, state.facts, now.runtime)
    if room is False and now.runtime == "llama.cpp" and (offload := _offload(state)):
        nbytes, room = offload.nbytes, True
        command, notes = f"{command} --n-cpu-moe {offload.layers}", [*notes, offload.words]
    return WayOut(command, now.runtime, now.path, nbytes, room, "; ".join(notes) or None)


def _better(path: str, than: str) -> bool:
    return path not in ("refused", "unknown") and PATHS.index(path) < PATHS.index(than)


def _as_form(state: _State) -> CheckpointFacts:
    if state.facts is not None:
        return replace(state.facts, form=state.form)
    return CheckpointFacts("gpt-oss-20b", state.form, "gpt-oss", 0, 0, 0, ())


def _apply(state: _State, way: Way, rows: Tables) -> _State:
    changes: dict[str, str | None] = dict.fromkeys(way.leaves, None)
    wanted = None
    for name, text in way.sets.items():
        if text.startswith("@"):
            version = Version(state.environment.packages["transformers"])
            wanted = rows.package_range("transformers", text[1:], version) or ""
            text = _least(wanted)
        changes[name] = text
    source = state.facts.source if state.facts else "gpt-oss-20b"
    values = {"source": source, "stem": stem_of(source), "kernels": wanted or ""}
    form = state.form
    if way.form is not None:
        form = _gguf(state.form) if way.form == "gguf" else way.form
    return replace(
        state,
        environment=with_packages(state.environment, changes, way.traits),
        form=form,
        flags=(state.flags | set(way.flags)) - set(way.drops),
        runtime=way.runtime or state.runtime,
        pip=(*state.pip, *(p.replace("{kernels}", values["kernels"]) for p in way.pip)),
        commands=(*state.commands, *([_filled(way.command, values)] if way.command else [])),
        notes=(*state.notes, *([way.note] if way.note else [])),
    )


def _gguf(form: str) -> str:
    """What a checkpoint of that form is as a GGUF."""
    return form if form.startswith("gguf") else "gguf-bf16" if form == "bf16" else "gguf-mxfp4"


def _least(text: str) -> str:
    """A version inside the range `text`: its lower bound, or one below its upper."""
    for part in text.split(","):
        if part.startswith(">="):
            return part[2:]
    return {"<0.15": "0.14.1"}[text]


def stem_of(source: str) -> str:
    """The name that what is made of `source` begins with."""
    name = Path(source).name or "gpt-oss"
    return name.removesuffix(".gguf").removesuffix(".safetensors")


def _filled(command: str, values: dict[str, str]) -> str:
    """The command with its names: quoted for a shell, or for Python where it asks so."""
    for name, value in values.items():
        command = command.replace(f"{{{name}!r}}", repr(value))
    stem, source = values["stem"], values["source"]
    if command.startswith(("ckpttool", "vllm", "llama", "VLLM")):
        command = _quoted(command, "{stem}", stem)
        return command.replace("{source}", shlex.quote(source))
    return command.replace("{stem}", stem).replace("{source}", source)


def _quoted(command: str, mark: str, value: str) -> str:
    """`command` with the words that hold `mark` filled and quoted whole."""
    return " ".join(shlex.quote(w.replace(mark, value)) if mark in w else w for w in command.split(" "))


def _command(state: _State) -> str:
    pip = "pip install " + " ".join(dict.fromkeys(state.pip)) if state.pip else None
    python = [c for c in state.commands if "(" in c]
    shell = [c for c in state.commands if "(" not in c]
    return (
        " && ".join(filter(None, (pip, *shell))) + ("; then " if (pip or shell) and python else "") + "; ".join(python)
    )


@dataclass(frozen=True)
class _Offload:
    """The experts of so many layers left in the machine's memory, and the bytes that the GPU then holds."""

    layers: int
    nbytes: int
    words: str


def _offload(state: _State) -> _Offload | None:
    """The fewest layers by which the rest fits; None where there is no GPU, or not even all of them do it."""
    facts = state.facts
    if facts is None or memory(state.environment) is None or state.environment.gpu.device not in ("cuda", "rocm"):
        return None
    stored = weights_bytes(facts, "native", state.form) or 0
    share = stored / facts.nbytes  # experts that are rounded to MXFP4 on the way shrink with the rest
    for layers in range(1, len(facts.expert_nbytes) + 1):
        nbytes = stored - int(sum(facts.expert_nbytes[:layers]) * min(1.0, share))
        if fits(nbytes, state.environment, facts, "llama.cpp"):
            words = f"the experts of {layers} of {len(facts.expert_nbytes)} layers stay in the machine's memory"
            return _Offload(layers, nbytes, words)
    return None


def _squeezed(state: _State, path: str) -> Iterator[WayOut]:
    """Ways for weights that do not fit one GPU where they run well: fewer of them on it, or more GPUs."""
    facts, here = state.facts, len(cards(state.environment))
    stored = weights_bytes(facts, path, state.form)
    count = fits_on(stored, state.environment, facts, state.runtime)
    if facts is None or stored is None or count in (None, 1) or state.environment.gpu.device not in ("cuda", "rocm"):
        return
    source = shlex.quote(facts.source)
    if state.runtime == "llama.cpp" and not count and (offload := _offload(state)):
        command = f"llama-server -m {source} -c 8192 --n-cpu-moe {offload.layers}"
        yield WayOut(command, "llama.cpp", path, offload.nbytes, True, offload.words)
    if state.runtime == "vllm":
        one, note = state.environment.gpu.memory or 0, f"on {count} of the {here} GPUs here, together"
        if not count:
            more = (n for n in TP[1:4] if n > here and stored <= room([one] * n, facts, "vllm"))
            count = next(more, 0)
            note = f"on {count} of them" if here == 1 else f"on {count} GPUs like the first of the {here} here"
        if count:
            command = f"vllm serve {source} --tensor-parallel-size {count} --max-model-len 8192"
            yield WayOut(command, "vllm", path, stored, True if count <= here else None, note)
