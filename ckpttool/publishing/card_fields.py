"""A card's front matter by key: what follows from receipt and source card, beside what a user has written there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from ckpttool.containers import limits
from ckpttool.errors import InputError
from ckpttool.publishing.card_facts import Facts
from ckpttool.publishing.front_matter import CARD, Page
from ckpttool.publishing.loading import LIBRARIES, OF_A_FORM, runtimes_of
from ckpttool.publishing.quality import DATASET, Quality

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

COPIED: Final = ("license", "license_name", "license_link", "language", "pipeline_tag")
"""What holds for the source's weights in any form."""

APACHE: Final = frozenset(
    {
        "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30",
        "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4",
    }
)
"""sha256 of apache.org's licenses/LICENSE-2.0.txt, with an empty line before it and without."""


def fields_of(told: Facts, source: Page | None) -> dict[str, Any]:
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
    """A text, or a list of them; None for whatever else a source's card may hold."""
    if isinstance(value, list):
        return [t for t in (_texts(v) for v in value) if isinstance(t, str)] or None
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


def merged(
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


def model_index(held: Any, repo: str, told: Facts, measured: Quality | None) -> Any:
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
