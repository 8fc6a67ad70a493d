"""The model card of a published conversion: front matter as the Hub reads it, and a section that tells what was done.

What a user wrote is kept to the letter. Ours stands between two marks, of which the first remembers what front matter
we set: the next run replaces the section, and of the front matter whatever the user has not changed since.

    <!-- ckpttool:begin {"file": "", "set": {"base_model": "openai/gpt-oss-20b", ...}} -->
    ...
    <!-- ckpttool:end -->
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ckpttool.containers import limits
from ckpttool.containers.remote import RemoteFolder
from ckpttool.containers.strict_json import read_text
from ckpttool.errors import InputError
from ckpttool.places import place
from ckpttool.publishing.card_facts import Facts, facts
from ckpttool.publishing.card_sections import sections
from ckpttool.publishing.front_matter import CARD, Page, parse, render
from ckpttool.publishing.loading import LIBRARIES, OF_A_FORM, runtimes_of
from ckpttool.publishing.quality import DATASET, Quality, quality, read_report
from ckpttool.receipt_file import EDITED

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

__all__ = ["card", "read_report", "remarks", "source_card"]

COPIED: Final = ("license", "license_name", "license_link", "language", "pipeline_tag")
"""What holds for the source's weights in any form."""

APACHE: Final = frozenset(
    {
        "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30",
        "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4",
    }
)
"""sha256 of apache.org's licenses/LICENSE-2.0.txt, with an empty line before it and without."""

_BEGIN: Final = "<!-- ckpttool:begin {} -->"
_END: Final = "<!-- ckpttool:end -->"
_OURS: Final = re.compile(r"<!-- ckpttool:(?:begin (?P<record>\{[^\r\n]*\})|(?P<end>end)) -->")
_NOTE: Final = "<!-- ckpttool writes what stands between these marks anew; your own text goes above or below. -->"


@dataclass(frozen=True)
class Block:
    """A section of ours in a card: where it stands, which file it is of, and the front matter that was set with it."""

    start: int
    stop: int
    file: str
    fields: Mapping[str, Any]


def card(
    receipt: Mapping[str, Any],
    *,
    repo: str,
    source_card: str | None = None,
    own: str | None = None,
    quantized_by: str | None = None,
    validation: Mapping[str, Any] | None = None,
    source: str | None = None,
) -> str:
    """The text of README.md for the conversion of which `receipt` is the conversion.v1, in `repo` ("org/name").

    `own` is the card that is there already, the user's or an earlier one of ours; what of it is not ours stays, and
    its front matter is completed: what it says wins, but for `quantized_by`. `source_card` is the source's README.md,
    from which licence, language and the like are copied. `validation` is a validation.v1. `source` (hf://org/repo@rev)
    says where the source is found, if not where the receipt says.

    Figures of an earlier report are not kept: they may be of other bytes. Pure, and the same again when the result is
    given as `own`.

    Raises:
        InputError: `own` has front matter that is no YAML or no model-index of the Hub's, or marks that do not match;
            `validation` is no such report, is of another conversion, or says failed; `receipt` is damaged.
    """
    told = _told(receipt, source)
    measured = None if validation is None else quality(validation, told, repo)
    section = _section(told, repo, measured)
    page = parse(own or "")
    blocks = _blocks(page.body)
    before = next((b.fields for b in blocks if b.file == told.artefact), {})
    others = [b.fields for b in blocks if b.file != told.artefact]
    fields = _fields(told, _source_page(source_card))
    if quantized_by is not None:
        fields["quantized_by"] = quantized_by
    changes, ours = _merged(page.data, fields, before, others)
    if quantized_by is not None:
        changes["quantized_by"] = quantized_by
    changes["model-index"] = _model_index(page.data.get("model-index"), repo, told, measured)
    block = _block(told, section, ours)
    text = render(Page(_with_block(page.body, block, told, repo, blocks), page.yaml, page.data), changes)
    _check(text)
    return text


def remarks(
    receipt: Mapping[str, Any], *, source_card: str | None = None, own: str | None = None, source: str | None = None
) -> tuple[str, ...]:
    """What the card lacks, and how to add it: for whoever publishes."""
    fields = {**_fields(_told(receipt, source), _source_page(source_card)), **parse(own or "").data}
    out = []
    if source_card is not None and _source_page(source_card) is None:
        out.append("the source's README.md has front matter that cannot be read; nothing was copied from it")
    for key, why, how in (
        ("base_model", "names no base model, since the source is no repo of the Hub", "base_model: org/repo"),
        ("license", "names no licence, since the source's card has none", "license: apache-2.0"),
    ):
        if not fields.get(key):
            out.append(f"the card {why}; put `{how}` into the front matter of README.md")
    return tuple(out)


def source_card(source: str | Path) -> str | None:
    """The text of README.md beside the checkpoint `source`, here or on the Hub; None where there is none.

    OpenAI's original/ folder has it one higher.

    Raises:
        InputError: it is not UTF-8, or there is no such source.
        LimitError: it is larger than a card may be.
        NetworkError: the remote end refuses.
    """
    folder, _ = place(re.sub(r"(?<=[^/\\])[/\\]original[/\\]?$", "", str(source)))
    if isinstance(folder, RemoteFolder) and CARD not in folder.names():
        return None
    return read_text(folder.side(CARD), CARD, limits.SIDE_FILE) if folder.has(CARD) else None


def _told(receipt: Mapping[str, Any], source: str | None) -> Facts:
    with _damage():
        return facts(receipt, source)


def _section(told: Facts, repo: str, measured: Quality | None) -> str:
    with _damage():
        return sections(told, repo, measured)


@contextmanager
def _damage() -> Iterator[None]:
    """InputError where a receipt lacks what every receipt has."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"the receipt is not as convert writes it: {type(error).__name__}: {error}"
        raise InputError(what, hint=EDITED) from error


def _source_page(text: str | None) -> Page | None:
    """The source's card; None where there is none, and where nobody can read its front matter."""
    try:
        return None if text is None else parse(text)
    except InputError:
        return None


def _fields(told: Facts, source: Page | None) -> dict[str, Any]:
    """The front matter that follows from receipt and source card, in the order in which it is written."""
    data = {} if source is None else source.data
    base = told.origin.repo or _texts(data.get("base_model"))
    out: dict[str, Any] = {"base_model": base}
    if told.origin.repo:
        out["base_model_relation"] = "quantized"
    elif base and isinstance(data.get("base_model_relation"), str):
        out["base_model_relation"] = data["base_model_relation"]
    out["library_name"] = LIBRARIES[told.dialect]
    out |= {key: _texts(data.get(key)) for key in COPIED}
    out["license"] = out["license"] or _known_licence(told)
    out["license_link"] = _absolute(out["license_link"], told)
    out["pipeline_tag"] = out["pipeline_tag"] or "text-generation"
    ours = [told.experts.lower(), *(r.tag for r in runtimes_of(told.dialect) if r.tag), "ckpttool"]
    theirs = data.get("tags")
    kept = [t for t in theirs if isinstance(t, str) and _is_of_the_model(t)] if isinstance(theirs, list) else []
    out["tags"] = list(dict.fromkeys([*kept, *(["gguf"] if told.file else []), *ours]))
    return {k: v for k, v in out.items() if v}


def _texts(value: Any) -> Any:
    """A text, or a list of them; None for whatever else a source's card may hold. YAML takes Norwegian for False."""
    if isinstance(value, list):
        return [t for t in (_texts(v) for v in value) if isinstance(t, str)] or None
    if value is False:
        return "no"
    return value if isinstance(value, str) and value.isprintable() and len(value) <= limits.GGUF_KEY else None


def _is_of_the_model(tag: str) -> bool:
    return tag.isprintable() and OF_A_FORM.fullmatch(tag) is None


def _known_licence(told: Facts) -> str | None:
    """What a licence file says by itself, where its text is a known one."""
    hashes = {f["sha256"] for f in told.receipt["files"] if f["name"].upper().startswith("LICENSE")}
    return "apache-2.0" if hashes & APACHE else None


def _absolute(link: str | None, told: Facts) -> str | None:
    """A licence's link as it leads from the target: one to a file that did not come along leads to the source's."""
    if link is None or "://" in link or link in told.names:
        return link
    return f"https://huggingface.co/{told.origin.repo}/blob/main/{link}" if told.origin.repo else None


def _merged(
    data: Mapping[str, Any], fields: Mapping[str, Any], before: Mapping[str, Any], others: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What to change in `data`, and what of it is ours then.

    `before` is what was ours for this file, `others` what is for other files of the repo: the rest is the user's.
    """
    changes: dict[str, Any] = {}
    for key in dict.fromkeys([*fields, *(k for k in before if k != "quantized_by")]):
        held = data.get(key)
        if held is None or (held == before.get(key) and not any(key in o for o in others)):
            changes[key] = fields.get(key)
    if changes.get("base_model", data.get("base_model")) != fields.get("base_model"):
        changes.pop("base_model_relation", None)  # it would be said of another base
    ours = {k: v for k, v in changes.items() if v is not None}
    held = data.get("tags")
    tags = [held] if isinstance(held, str) else held
    if isinstance(tags, list):
        theirs = {t for o in others for t in o.get("tags", ())}
        once = {t for t in before.get("tags", ()) if t in tags}
        stay = [t for t in tags if t not in once - theirs or t in fields["tags"]]
        changes["tags"] = [*stay, *(t for t in fields["tags"] if t not in stay)]
        ours["tags"] = [t for t in fields["tags"] if t not in tags or t in once | theirs]
    return changes, ours


def _model_index(held: Any, repo: str, told: Facts, measured: Quality | None) -> Any:
    """The model-index with our results of this file in place of those before, and all of others as they are."""
    from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

    results: list[EvalResult] = []
    name = repo.rpartition("/")[2]
    if held is not None:
        try:
            name, results = model_index_to_eval_results(held)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            what = f"its model-index is not as the Hub reads it: {type(error).__name__}: {error}"
            raise InputError(what, file=CARD, field="model-index", hint="mend it, or take it out") from error
    stay = [r for r in results if (r.dataset_type, r.dataset_config or "") != (DATASET, told.artefact)]
    ours = measured.results(told.artefact) if measured is not None else []
    if not ours and len(stay) == len(results):
        return held
    return eval_results_to_model_index(name, [*stay, *ours]) if stay or ours else None


def _blocks(body: str) -> list[Block]:
    """Our sections in a card.

    Raises:
        InputError: a mark without its other, or one that cannot be read.
    """
    hint = "give each `ckpttool:begin` its `ckpttool:end`, or take both out with what is between"
    out: list[Block] = []
    begin: re.Match[str] | None = None
    for mark in _OURS.finditer(body):
        if (begin is None) == bool(mark["end"]):
            raise InputError("one of ckpttool's marks lacks the other", file=CARD, hint=hint)
        if begin is None:
            begin = mark
            continue
        try:
            record = json.loads(begin["record"])
            out.append(Block(begin.start(), mark.end(), str(record["file"]), dict(record["set"])))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError("one of ckpttool's marks cannot be read", file=CARD, hint=hint) from error
        begin = None
    if begin is not None:
        raise InputError("one of ckpttool's marks lacks the other", file=CARD, hint=hint)
    return out


def _block(told: Facts, text: str, fields: Mapping[str, Any]) -> str:
    record = json.dumps({"file": told.artefact, "set": fields}).replace("<", "\\u003c").replace(">", "\\u003e")
    return "\n".join((_BEGIN.format(record), _NOTE, "", text.replace("<!--", "<! --"), "", _END))


def _with_block(body: str, block: str, told: Facts, repo: str, blocks: Sequence[Block]) -> str:
    """The body with our section in the place of the one before, or below all that is there."""
    end = "\r\n" if "\r\n" in body else "\n"
    block = block.replace("\n", end)
    found = next((b for b in blocks if b.file == told.artefact), None)
    if found is not None:
        return body[: found.start] + block + body[found.stop :]
    if not body.strip():
        return f"\n# {repo.rpartition('/')[2]}\n\n{block}\n"
    return f"{body.rstrip()}{end}{end}{block}{end}"


def _check(text: str) -> None:
    """That huggingface_hub reads the card.

    Raises:
        InputError: it does not; by then that is the doing of what the user's own front matter holds.
    """
    from huggingface_hub import ModelCard

    try:
        ModelCard(text)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"huggingface_hub cannot read the card: {error}", file=CARD, hint="mend its front matter"
        ) from error
