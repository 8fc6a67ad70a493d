"""What `--via` and `--then` say: forms that a checkpoint is converted to and back from, and what each way promises.

A way there is `FORM`, or `FORM:RECIPE` where the form has MXFP4 experts. The way back is to what `--then` says, or to
the form of the source: its dialect, and the formats of its experts and of the rest.

What a part keeps on a round trip from format a through m to b (`promise`):

* bytes: a, m and b are one format, so that nothing is decoded on the way.
* values: m holds every value of a, and b does too, or b is a. A plain b takes the nearest of its values, which is the
  one that was there. MXFP4 -> m -> MXFP4 keeps them by every recipe: the magnitudes of a block are whole multiples of
  half its scale, up to six; each rule puts the largest of them at 4 or 6 of the new scale, where all are codes again,
  so no value is between two codes, and for `best` no larger scale does better. Bytes may differ: a block whose largest
  code is below 4 gets a smaller scale, a block of zeros scale 0, and `llama.cpp` writes no -0. The one exception is
  `rceil` (and `transformers`, `modelopt`) at scale byte 0, which it never writes for what is not zero: values below
  2^-124, where half of the codes are lost. The way back takes `best`, which has none.
* lossy: all others; what is lost is held to the budget of the format that loses it. Q8_0 is never said to come back:
  its scale is made anew of a block's largest value, which need not have been 127 steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from ckpttool.checkpoint import Checkpoint
from ckpttool.choice import GGUF_CODECS, source_codecs
from ckpttool.codecs.formats import MXFP4, RECIPES
from ckpttool.errors import UsageError
from ckpttool.planner import Plan
from ckpttool.steps import HOLDS, Fidelity
from ckpttool.target import DIALECTS, LEGAL

Options = Mapping[str, Any]
"""What `target` takes beside a path."""

FORMS: Final[Mapping[str, Options]] = MappingProxyType(
    {
        "bf16": {"to": "bf16"},
        "mxfp4": {"to": "mxfp4"},
        "openai": {"to": "openai"},
        "gguf": {"to": "gguf"},
        "gguf:bf16": {"to": "gguf", "outtype": "bf16"},
        "gguf:f16": {"to": "gguf", "outtype": "f16"},
        "gguf:f32": {"to": "gguf", "outtype": "f32"},
        "gguf:q8_0": {"to": "gguf", "outtype": "q8_0"},
        "gguf:mxfp4": {"to": "gguf", "experts": "mxfp4"},
        "gguf:mxfp4_moe": {"to": "gguf", "outtype": "mxfp4_moe"},
    }
)
"""What `--via` may say, and the options of that conversion."""

WITH_RECIPE: Final = ("mxfp4", "openai", "gguf:mxfp4", "gguf:mxfp4_moe")
"""The forms whose experts are MXFP4, which a recipe makes."""

THEN: Final[Mapping[str, Options]] = MappingProxyType({"bf16": {"to": "bf16"}, "gguf": {"to": "gguf"}})
"""What `--then` may say."""


@dataclass(frozen=True)
class Via:
    """One way there, as it was asked for; `recipe` None: the form has none, or its default."""

    text: str
    form: str
    recipe: str | None

    @property
    def options(self) -> Options:
        """Of the conversion."""
        return {**FORMS[self.form], **({"recipe": self.recipe} if self.recipe else {})}


def parse_via(text: str) -> Via:
    """What one `--via` says.

    Raises:
        UsageError: no form, or no recipe; with those that there are.
    """
    if text in FORMS:
        return Via(text, text, None)
    form, _, recipe = text.rpartition(":")
    if form in WITH_RECIPE and recipe in RECIPES:
        return Via(text, form, recipe)
    if form in WITH_RECIPE:
        hint = f"choose one of {', '.join(RECIPES)}"
        raise UsageError(f"--via {text}: {recipe or 'nothing'} is no recipe", hint=hint)
    if form in FORMS and recipe in RECIPES:
        hint = f"leave it out; a recipe goes with {', '.join(WITH_RECIPE)}"
        raise UsageError(f"--via {text}: {form} takes no recipe", hint=hint)
    hint = f"choose one of {', '.join(FORMS)}; with a recipe after a colon: {', '.join(WITH_RECIPE)}"
    raise UsageError(f"--via {text}: unknown", hint=hint)


def way_back(source: Checkpoint, then: str | None, there: Plan) -> Options:
    """The options of the conversion back, once it is known what `there` makes of the source.

    Raises:
        UsageError: an unknown `then`.
    """
    if then is None:
        return own_form(source)
    if then not in THEN:
        raise UsageError(f"--then {then}: unknown", hint=f"choose one of {', '.join(THEN)}, or leave it out")
    made = _experts_made(there)
    return {**THEN[then], "experts": made} if then == "gguf" and made in GGUF_CODECS else THEN[then]


def own_form(source: Checkpoint) -> Options:
    """The options that write a checkpoint of the source's dialect and formats, as far as they can be written.

    Of a dialect that is only read it is `--to bf16`; of a GGUF in formats that are only decoded, what `auto` gives.
    """
    assert source.arch is not None and source.dialect is not None
    codecs = source_codecs(source)
    rest = codecs["embed"].format.name.lower()
    experts = next(c for part, c in codecs.items() if source.arch.is_expert(part)).format.name.lower()
    to = next((to for to, dialect in DIALECTS.items() if dialect == source.dialect.name), "bf16")
    if to != "gguf":  # a folder takes no F16, and F32 holds it
        rest, experts = ("f32" if name == "f16" else name for name in (rest, experts))
    asked = {"outtype": rest, "dtype": rest, "experts": experts}
    return {"to": to, **{option: word for option, word in asked.items() if word in LEGAL[to][option]}}


def _experts_made(plan: Plan) -> str | None:
    """The format of the experts that a plan writes, as `--experts` calls it."""
    arch = plan.source.arch
    assert arch is not None
    return next((s.target.codec.format.name.lower() for s in plan.steps if arch.is_expert(s.parts[0])), None)


def promise(a: str, m: str, b: str) -> Fidelity:
    """What a part keeps on its way from format a through m to b, by their names; see this module."""
    if a == m == b:
        return Fidelity.bytes
    comes_back = a == b == MXFP4.name or b in _holders(a)
    return Fidelity.values if (m == a or m in _holders(a)) and comes_back else Fidelity.lossy


def _holders(name: str) -> tuple[str, ...]:
    """The plain formats that have every value of a format."""
    return HOLDS.get(name, ("F32",))
