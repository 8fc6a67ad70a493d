"""The commands that serve a checkpoint on the GPUs that hold it, with whatever must be fetched and converted before."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from ckpttool.serving.cards import Card
from ckpttool.serving.pricing import NATIVE

if TYPE_CHECKING:
    from ckpttool.checkpoint import Checkpoint
    from ckpttool.serving.estimator import Asked

TRIED_TP = (1, 2, 4, 8)
SERVED = {"hf": None, "hf-bf16": None, "openai": "mxfp4", "unsloth": "bf16", "gguf": "mxfp4"}
"""gpt-oss' dialects: what vLLM needs them converted to first, None where it loads them as they are."""
FORMS = {"bf16": "hf-bf16", "mxfp4": "hf"}
"""--as formats that convert writes (its --to), and the dialect that is one already."""
HUB = re.compile(
    r"(?:hf://|https://huggingface\.co/)?(?P<repo>[\w-][\w.-]*/(?P<name>[\w-][\w.-]*))(?:@(?P<revision>[\w-][\w.-]*))?/?"
)


@dataclass(frozen=True)
class ServingPlan:
    """What to say and what to type; the last command serves by vLLM. `note` says what no command here does."""

    advice: str
    commands: tuple[str, ...]
    note: str | None = None


def plan(
    checkpoint: Checkpoint,
    source: str,
    cards: tuple[Card, ...],
    holds: Callable[[Card, int], bool],
    most: Callable[[Card, int], int],
    asked: Asked,
) -> ServingPlan:
    """The GPUs to take and the commands: the smallest of `cards` that holds it, else the fewest that do together.

    `source` is what the user gave; `holds` and `most` say of so many of a card whether they hold it as asked, and the
    largest context that they do.
    """
    chosen = _choice(cards, holds, asked.tp)
    wanted, context = f"{asked.batch:,} x {asked.context:,} tokens", asked.context
    if chosen is not None:
        c, tp = chosen
        verb = "hold" if tp > 1 else "holds"
        advice = f"{_many(c, tp)} {verb} it with {wanted}, at most with {asked.batch:,} x {most(c, tp):,}"
    else:
        c, tp = max(cards, key=lambda x: x.memory), asked.tp
        if largest := most(c, tp):
            advice, context = f"{_many(c, tp)} cannot hold {wanted}, but {asked.batch:,} x {largest:,}", largest
        else:
            count = max(tp, TRIED_TP[-1])
            advice = (
                f"not even {count} x {_name(c)} hold it: the line below needs larger GPUs, or another format (--as)"
            )
    if asked.form != NATIVE and _conversion(checkpoint, asked.form) is None and not _is_already(checkpoint, asked.form):
        target = f"{_stem(source)}-{asked.form}"
        note = f"ckpttool does not make {asked.form} of this: {target} stands for what another program makes of it"
        return ServingPlan(advice, (_serve((target,), asked, tp, context),), note)
    before, words = _before(checkpoint, source, asked, context)
    return ServingPlan(advice, (*before, _serve(words, asked, tp, context)))


def _is_already(checkpoint: Checkpoint, form: str) -> bool:
    """Whether most of its elements are stored in that format."""
    elements: Counter[str] = Counter()
    for w in checkpoint.weights:
        elements[w.codec.name] += w.parameters
    return bool(elements) and elements.most_common(1)[0][0].startswith(form.upper())


def _stem(source: str) -> str:
    """The name that what is made of `source` begins with."""
    repo = HUB.fullmatch(source) if not Path(source).exists() else None
    name = repo["name"] if repo is not None else PurePath(source.rstrip("/")).name
    return name.removesuffix(".gguf")


def _choice(cards: tuple[Card, ...], holds: Callable[[Card, int], bool], tp: int) -> tuple[Card, int] | None:
    """The smallest card that holds it on `tp` GPUs; failing that the fewest of any, the smallest of those."""
    ordered = sorted(cards, key=lambda c: c.memory)
    counts = (tp, *(n for n in TRIED_TP if n > tp))
    return next(((c, count) for count in counts for c in ordered if holds(c, count)), None)


def _name(c: Card) -> str:
    return f"{c.label} GB" if c.label.isdigit() else c.label


def _many(c: Card, tp: int) -> str:
    return f"one {_name(c)} GPU" if tp == 1 else f"{tp} x {_name(c)} together"


def _before(checkpoint: Checkpoint, source: str, asked: Asked, context: int) -> tuple[list[str], tuple[str, ...]]:
    """What must be fetched, may be served by llama.cpp, and must be converted first; and vLLM's words for the rest."""
    to = _conversion(checkpoint, asked.form)
    repo = HUB.fullmatch(source) if not Path(source).exists() else None
    revision = ("--revision", repo["revision"]) if repo is not None and repo["revision"] else ()
    out: list[str] = []
    here = source
    if repo is not None and to is None:
        return out, (repo["repo"], *revision)
    if repo is not None:
        here = repo["name"]
        out.append(shlex.join(("hf", "download", repo["repo"], *revision, "--local-dir", here)))
    elif "://" in source:
        here = PurePath(source.rstrip("/")).name
        out += [shlex.join(("curl", "-LO", source))] if source.startswith("http") else []
    if checkpoint.container == "gguf" and asked.form == NATIVE:
        words = ("llama-server", "-m", here, "-c", str(context * asked.batch), "-np", str(asked.batch), "-ngl", "99")
        out.append(f"{shlex.join(words)}  # llama.cpp, as it is")
    if to is not None:
        target = f"{_stem(here)}-{to}"
        out.append(shlex.join(("ckpttool", "convert", here, target, "--to", to)))
        here = target
    return out, (here,)


def _conversion(checkpoint: Checkpoint, form: str) -> str | None:
    """convert's --to that makes it what vLLM loads in this form, None where nothing is to be done or can be."""
    if checkpoint.arch is None or checkpoint.dialect is None or checkpoint.problems:
        return None
    dialect = checkpoint.dialect.name
    if form != NATIVE:
        return form if form in FORMS and FORMS[form] != dialect else None
    to = SERVED.get(dialect)
    if dialect == "gguf" and not any(w.codec.name == "MXFP4" for w in checkpoint.weights):
        return "bf16"
    return to


def _serve(target: tuple[str, ...], asked: Asked, tp: int, context: int) -> str:
    words = ["vllm", "serve", *target, "--max-model-len", str(context), "--max-num-seqs", str(asked.batch)]
    words += ["--gpu-memory-utilization", f"{asked.utilization:g}"]
    if tp > 1:
        words += ["--tensor-parallel-size", str(tp)]
    if asked.kv_cache_dtype == "fp8":
        words += ["--kv-cache-dtype", "fp8"]
    return shlex.join(words)
