"""The sections of a card, each as Markdown from what the receipt says."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any, Final

from ckpttool.codecs.formats import RECIPES
from ckpttool.containers.shards import SAFETENSORS_SHARD
from ckpttool.errors import shown
from ckpttool.publishing.card_facts import Facts, Row, formats, origin_of
from ckpttool.publishing.loading import runtimes_of
from ckpttool.publishing.quality import Quality
from ckpttool.units import size

HUB: Final = "https://huggingface.co"

FORMS: Final = {"hf": "safetensors", "hf-bf16": "safetensors", "openai": "OpenAI's original layout", "gguf": "GGUF"}
"""What a dialect is called in a sentence."""

FATES: Final = {
    "bytes": "the source's bytes",
    "values": "equal values",
    "lossy": "rounded",
}
"""What became of values, by fidelity."""

SCALES: Final = {
    "floor": "a block's scale is the exponent of its largest magnitude, less 2, as the OCP text has it",
    "even": "the same as OCP's, after the largest magnitude is rounded up where its significand is 1.75 or more",
    "rceil": "a block's scale is the smallest at which nothing is cut off",
    "best": "of OCP's scale and the next one, a block has the one with the smaller squared error",
}
TIES: Final = {
    "even": "a value halfway between two codes goes to the even one",
    "away": "a value halfway between two codes goes to the larger magnitude",
    "zero": "a value halfway between two codes goes to the smaller magnitude",
}


def sections(facts: Facts, repo: str, quality: Quality | None) -> str:
    """All of it, without the title. A GGUF's are one level lower, beneath its name, since a repo may hold several."""
    deep = facts.file is not None
    parts = [f"## {_code(facts.artefact)}"] if deep else []
    exact = quality is not None and quality.verdict == "exact"
    parts.append(_summary(facts, exact))
    level = "###" if deep else "##"
    for title, text in (
        ("How to load it", _load(facts, repo)),
        ("What became of the weights", _fidelity(facts, exact)),
        ("How MXFP4 was made", _recipe(facts)),
        ("What it costs", _quality(quality) if quality else ""),
        ("How to make it again", _again(facts, repo)),
    ):
        if text:
            parts += [f"{level} {title}", text]
    return "\n\n".join(parts)


def _summary(facts: Facts, exact: bool) -> str:
    """What it is, of what, in one paragraph."""
    version, origin = facts.receipt["tool"]["version"], facts.origin
    made = _link(origin.repo) if origin.repo else _code(origin.text)
    rest = formats(r for r in facts.rows if r.role != "experts")
    what = f"experts in {facts.experts}, the rest in {rest}" if rest != facts.experts else f"all of it in {rest}"
    weights = [f["nbytes"] for f in facts.receipt["files"] if f["name"].endswith((".safetensors", ".gguf"))]
    count = "one file" if len(weights) == 1 else f"{len(weights)} files"
    runs = " and ".join(dict.fromkeys(r.title for r in runtimes_of(facts.dialect)))
    commit = f"from commit `{origin.commit[:12]}` " if origin.commit else ""
    return (
        f"This is {made} as {FORMS[facts.dialect]} for {runs}: {what}, {size(sum(weights))} in {count}. "
        f"It was converted {commit}by ckpttool {version}. {_kept(facts, exact)}"
    )


def _kept(facts: Facts, exact: bool) -> str:
    """What of all weights kept what."""
    counts: dict[str, int] = {}
    for row in facts.rows:
        counts[row.fidelity] = counts.get(row.fidelity, 0) + row.weights
    if set(counts) == {"bytes"}:
        return "Every weight has the source's bytes."
    if "lossy" not in counts:
        return "Every value of every weight is the source's."
    lossy = [r for r in facts.rows if r.fidelity == "lossy"]
    said = f"{counts['lossy']} of {sum(counts.values())} weights were rounded to {formats(lossy)}"
    return f"{said}, {'and none of their values changed' if exact else 'the others keep every value'}."


def _load(facts: Facts, repo: str) -> str:
    name = repo.rpartition("/")[2]
    here = f"hf://{repo}/{facts.file}" if facts.file else repo
    quoted = facts.file and shlex.quote(facts.file)
    out = []
    for r in runtimes_of(facts.dialect):
        code = r.code.format(repo=repo, name=name, file=quoted)
        out.append(f"**{r.title}** (`{r.install}`):")
        out.append(f"```{r.language}\n{code}\n```")
        if r.note:
            out.append(r.note.format(repo=repo, name=name, here=shlex.quote(here)))
    return "\n\n".join(out)


def _fidelity(facts: Facts, exact: bool) -> str:
    head = ("weights", "number", "stored as", "bytes", "values")
    rows = [(r.role, f"{r.weights:,}", r.stored, f"{r.nbytes:,}", _fate(r, exact)) for r in facts.rows]
    files = "the receipt in this repo has a CRC-32 of every tensor and the sha256 of every file"
    checked = "What was written was read back and compared; " if facts.receipt["verified"] else ""
    return f"{_table(head, rows, right=(1, 3))}\n\n{_sentence(checked + files)}{_assumed(facts)}"


def _fate(row: Row, exact: bool) -> str:
    if row.fidelity == "lossy" and row.kind == "narrow":
        return f"{FATES['lossy']}: {row.changed:,} changed"
    if row.fidelity == "lossy" and exact:
        return f"{FATES['lossy']}: none changed"
    return FATES[row.fidelity] + (", in another order" if row.kind == "repack" else "")


def _assumed(facts: Facts) -> str:
    rows = [
        (_code(a["file"]), _code(a["key"]), _code(json.dumps(a["value"], ensure_ascii=False)))
        for a in facts.receipt["assumed"]
    ]
    if not rows:
        return ""
    return f"\n\nThe source does not say, so this was filled in:\n\n{_table(('file', 'key', 'value'), rows)}"


def _recipe(facts: Facts) -> str:
    recipe = facts.receipt["recipe"]
    if recipe is None:
        return ""
    keeps = "" if recipe["keeps_negative_zero"] else "; a negative that rounds to zero loses its sign"
    said = f"recipe {_code(recipe['name'])}: {SCALES[recipe['scale']]}; {TIES[recipe['ties']]}{keeps}"
    return f"Blocks of 32 elements (E2M1) share one power of two (E8M0). By {said}."


def _quality(quality: Quality) -> str:
    why = _escaped(quality.decided)
    said = f"`ckpttool validate` against {_code(quality.reference)} says **{quality.verdict}**: {why}."
    rows = list(quality.rows())
    if not rows:
        return said
    under = f"\n\nMeasured on {_escaped(quality.conditions)}." if quality.conditions else ""
    return f"{said}\n\n{_table(('figure', 'value'), rows, right=(1,))}{under}"


def _again(facts: Facts, repo: str) -> str:
    """The command that gives the same bytes, and how to check that these are they."""
    tool, origin = facts.receipt["tool"], facts.origin
    target = facts.artefact or repo.rpartition("/")[2]
    commands = [
        f"pip install ckpttool=={tool['version']}",
        shlex.join(["ckpttool", "convert", origin.text, target, *_options(facts)]),
    ]
    checks = shlex.join(["ckpttool", "verify", f"hf://{repo}/{facts.file}" if facts.file else repo])
    lent = facts.receipt["options"]["reference"]
    reference = ["--reference", origin_of(lent).text] if lent is not None and "://" not in lent else []
    source = shlex.join(["--source", origin.text, *reference])
    local = f"\n\nHere {_code(origin.text)} stands for what was converted; the receipt has the hashes of its headers."
    whose = "" if origin.is_public_address else local
    return (
        f"{_bash(*commands)}{whose}\n\nThe same source and options give the same bytes. Whether the files here are "
        f"those, without downloading them, and whether they come from that source:\n\n"
        f"{_bash(checks, f'{checks} {source}')}"
    )


def _options(facts: Facts) -> Iterator[str]:
    """The options that are not what convert takes by itself, and the recipe, whose default may change."""
    asked: dict[str, Any] = dict(facts.receipt["options"])
    yield from ("--to", asked["to"])
    for option, default in (("experts", "auto"), ("outtype", "auto"), ("dtype", "bf16")):
        if asked[option] not in (None, default):
            yield from (f"--{option}", asked[option])
    yield from _recipe_options(facts.receipt["recipe"])
    if asked["lossless"]:
        yield "--lossless"
    shard = asked["max_shard_size"]
    if shard not in (None, SAFETENSORS_SHARD):
        yield from ("--max-shard-size", str(shard))
    if asked["reference"] is not None:
        yield from ("--reference", origin_of(asked["reference"]).text)
    if asked["model_name"] is not None:
        yield from ("--model-name", asked["model_name"])


def _recipe_options(recipe: dict[str, Any] | None) -> Iterator[str]:
    if recipe is None:
        return
    if recipe["name"] in RECIPES:
        yield from ("--recipe", recipe["name"])
        return
    same = (r.name for r in RECIPES.values() if r.keeps_negative_zero == recipe["keeps_negative_zero"])
    yield from ("--recipe", next(same), "--scale-rule", recipe["scale"], "--ties", recipe["ties"])


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]], right: tuple[int, ...] = ()) -> str:
    rule = ["---:" if i in right else "---" for i in range(len(head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def _bash(*commands: str) -> str:
    return "\n".join(("```bash", *(shown(c, 10_000) for c in commands), "```"))


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _link(repo: str) -> str:
    return f"[{repo}]({HUB}/{repo})"


def _code(text: str) -> str:
    """Text from elsewhere as code: on one line, whatever is in it, also in a table."""
    text = shown(text, 200).replace("|", "\\|")
    ticks = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    pad = " " if "`" in text else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def _escaped(text: str) -> str:
    """Text from elsewhere as it is, with nothing in it that Markdown or HTML would take for its own."""
    return re.sub(r"([\\`*_\[\]<>#|&])", r"\\\1", shown(text, 200))
