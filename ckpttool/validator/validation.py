"""Whether one checkpoint is a right conversion of another, and what it cost: by headers, by values, by a forward pass.

A level that fails does not stop those above it: what can still be computed is, so that a report shows a fault from all
sides. Whatever can be said by headers and side files (a device that is not there, a tokenizer that is missing, two
models of other sizes) is said before a tensor is read.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from ckpttool.checkpoint import Checkpoint, open_checkpoint
from ckpttool.comparison.pairs import Holding, holdings
from ckpttool.errors import CkptError, InputError, UsageError, first_line
from ckpttool.validator.budgets import Budget, budget_for
from ckpttool.validator.decision import decide, option, own_failures, too_few
from ckpttool.validator.report import LEVELS, Side, Validation
from ckpttool.validator.structure import Structure, check_structure

if TYPE_CHECKING:
    from ckpttool.validator.claims import ValuesFound
    from ckpttool.validator.inputs import Inputs
    from ckpttool.validator.predictions import Found

Progress = Callable[[int], None]


class Judge(Protocol):
    """Who says how values came through."""

    def __call__(
        self,
        reference: Checkpoint,
        candidate: Checkpoint,
        *,
        min_sqnr: float | None,
        workers: int | None,
        progress: Progress,
    ) -> ValuesFound:
        """As `claims.judge_values`."""


INSTALL: Final = "pip install 'ckpttool[torch]'; --level values needs none"


@dataclass(frozen=True)
class Asked:
    """What to do: the options of the command. None is what the package takes by itself.

    `level` includes those before it. `text` is a file of UTF-8, of which `tokens` are taken; `prompts` a file of
    `validator.prompts`, rendered with `reasoning_effort`. The limits are those of `budgets.Budget`.
    """

    level: str = "forward"
    text: str | Path | None = None
    tokens: int | None = None
    prompts: str | Path | None = None
    reasoning_effort: str | None = None
    device: str = "auto"
    max_kl: float | None = None
    min_top1: float | None = None
    max_ppl_ratio: float | None = None
    min_sqnr: float | None = None

    @property
    def limits(self) -> dict[str, float]:
        """The limits that were given."""
        names = ("max_kl", "min_top1", "max_ppl_ratio", "min_sqnr")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def check(self) -> None:
        """UsageError for a level that there is not, or a limit that nothing could keep or miss."""
        if self.level not in LEVELS:
            raise UsageError(f"--level {self.level}: unknown", hint=f"use {', '.join(LEVELS)}")
        for name, value in self.limits.items():
            if not math.isfinite(value) or (value < 0 and name != "min_sqnr") or (name == "min_top1" and value > 1):
                wanted = "a share from 0 to 1" if name == "min_top1" else "a number that is not negative"
                raise UsageError(f"{option(name)} {value:g} is no limit", hint=f"give {wanted}")

    def unused(self) -> list[str]:
        """The options that say nothing at this level."""
        above = {"values": ("min_sqnr",), "forward": ("text", "tokens", "prompts", "reasoning_effort")}
        above["forward"] += ("max_kl", "min_top1", "max_ppl_ratio")
        skipped = LEVELS[LEVELS.index(self.level) + 1 :]
        return [option(name) for level in skipped for name in above[level] if getattr(self, name) is not None]


def validate(
    reference: str | Path | Checkpoint,
    candidate: str | Path | Checkpoint,
    *,
    level: str = "forward",
    text: str | Path | None = None,
    tokens: int | None = None,
    prompts: str | Path | None = None,
    reasoning_effort: str | None = None,
    device: str = "auto",
    max_kl: float | None = None,
    min_top1: float | None = None,
    max_ppl_ratio: float | None = None,
    min_sqnr: float | None = None,
    workers: int | None = None,
    progress: Progress = lambda nbytes: None,
) -> Validation:
    """Hold `candidate` against `reference`, in any dialects and containers; the options are those of `Asked`.

    `workers` threads compare values. `progress` is called from any thread with the bytes that are done.

    Raises:
        InputError: no checkpoint there, a header that cannot be trusted, no tokenizer that works, or what no forward
            pass can be made with although both agree on it.
        UsageError: options that cannot be met here, as a package or a GPU that is missing.
        LimitError: the device's memory does not hold the tokens.
    """
    asked = Asked(
        level, text, tokens, prompts, reasoning_effort, device, max_kl, min_top1, max_ppl_ratio, min_sqnr
    )  # fmt: skip
    return Validator(reference, candidate, asked).run(workers=workers, progress=progress)


class Validator:
    """One validation: what headers and side files say is known before values are read, and how many bytes will be."""

    def __init__(
        self, reference: str | Path | Checkpoint, candidate: str | Path | Checkpoint, asked: Asked | None = None
    ) -> None:
        """Read headers and side files. Errors as `validate`."""
        self._asked = asked or Asked()
        self._asked.check()
        forward = self._asked.level == "forward"
        device = _device(self._asked.device) if forward else "cpu"
        self._reference, self._candidate = (
            x if isinstance(x, Checkpoint) else open_checkpoint(x) for x in (reference, candidate)
        )
        self._structure = check_structure(self._reference, self._candidate)
        self._walk = (
            _Walk.of(self._reference, self._candidate, self._asked, device, self._structure) if forward else None
        )
        self.nbytes = self._values_nbytes() + (sum(self._walk.nbytes) if self._walk else 0)

    def run(
        self,
        *,
        workers: int | None = None,
        progress: Progress = lambda nbytes: None,
        judge: Judge | None = None,
    ) -> Validation:
        """Read what the level asks for; `progress` gets `nbytes` in all. Errors as `validate`.

        `judge` (None: `judge_values`) is asked from level `values` on.
        """
        values = None if self._asked.level == "structure" else self._values(judge, workers, progress)
        found = self._walk.run(progress) if self._walk and self._walk.inputs else None
        self._reference.require_unchanged()
        self._candidate.require_unchanged()
        return self._report(values, found)

    def _values_nbytes(self) -> int:
        if self._asked.level == "structure":
            return 0
        from ckpttool.validator.claims import values_nbytes

        return values_nbytes(self._reference, self._candidate)

    def _values(self, judge: Judge | None, workers: int | None, progress: Progress) -> ValuesFound:
        from ckpttool.validator.claims import judge_values

        return (judge or judge_values)(
            self._reference, self._candidate, min_sqnr=self._asked.min_sqnr, workers=workers, progress=progress
        )

    def _report(self, values: ValuesFound | None, found: Found | None) -> Validation:
        fidelity = values.fidelity if values else None
        parts = values.parts if values else ()
        budget = budget_for(p.compared for p in parts).overridden(**self._asked.limits)
        failures = [*self._structure.failures, *(values.failures if values else ()), *(found.failures if found else ())]
        forward = found.forward if found else None
        judged = decide(failures, fidelity, budget, forward, self._asked.limits)
        place = forward.first_diverging if forward else None
        sides = holdings(self._reference, self._candidate)
        return Validation(
            "validation.v1", side(self._reference, sides[0]), side(self._candidate, sides[1]), self._asked.level,
            judged.verdict, judged.decided, fidelity, (*failures, *own_failures(judged, failures, place)), budget,
            self._asked.limits, parts, forward.on_text.metrics if forward else None, found.layers if found else (),
            forward, tuple(dict.fromkeys(self._notes(values, found, budget))),
        )  # fmt: skip

    def _notes(self, values: ValuesFound | None, found: Found | None, budget: Budget) -> Iterator[str]:
        if self._walk:
            yield from self._walk.notes
        yield from self._structure.notes
        yield from values.notes if values else ()
        if unused := self._asked.unused():
            yield f"{', '.join(unused)}: without effect at level {self._asked.level}"
        yield from too_few(budget, found.forward, self._asked.limits) if found else ()
        for side, checkpoint in (("reference", self._reference), ("candidate", self._candidate)):
            yield from (f"{side}: {note}" for note in checkpoint.notes)


@dataclass(frozen=True)
class _Walk:
    """The forward level, made ready: its inputs, or None and in `notes` why it cannot be run."""

    reference: Checkpoint
    candidate: Checkpoint
    device: str
    inputs: Inputs | None
    nbytes: tuple[int, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, reference: Checkpoint, candidate: Checkpoint, asked: Asked, device: str, found: Structure) -> _Walk:
        """Errors as `validate`; where the structure has failed, what keeps the models from being run is a note."""
        from ckpttool.validator.inputs import inputs_for
        from ckpttool.validator.lockstep import walk_nbytes

        try:
            nbytes = walk_nbytes(reference, candidate)
        except InputError as e:
            if not found.failures:
                raise _with_hint(e) from e
            return cls(reference, candidate, device, None, (), (f"the forward pass was not run: {first_line(e)}",))
        inputs = inputs_for(
            reference, candidate, device=device, text=asked.text, tokens=asked.tokens, prompts=asked.prompts,
            effort=asked.reasoning_effort,
        )  # fmt: skip
        return cls(reference, candidate, device, inputs, nbytes, inputs.notes)

    def run(self, progress: Progress) -> Found:
        """The forward passes."""
        from ckpttool.validator.predictions import predict

        assert self.inputs is not None
        return predict(
            self.reference, self.candidate, self.inputs, device=self.device, nbytes=self.nbytes, progress=progress
        )


def _device(asked: str) -> str:
    """Where to compute. UsageError without torch, and as `device_for`."""
    try:
        import torch  # noqa: F401
    except (ImportError, OSError) as e:
        what = f"--level forward needs torch: {first_line(e)}"
        raise UsageError(what, hint=INSTALL) from e
    from ckpttool.validator.predictions import device_for

    return device_for(asked)


def _with_hint(error: InputError) -> CkptError:
    """The same error, with a way out where it names none."""
    if error.hint is None and not hasattr(error, "problems"):
        error.hint = "--level values compares without a forward pass"
    return error


def side(checkpoint: Checkpoint, held: Holding) -> Side:
    """A checkpoint as a report names it; `held` are its parts in the terms of both sides."""
    formats = Counter(held.format(name) or "unknown" for name in held.names())
    return Side(
        str(checkpoint.path), checkpoint.arch.name if checkpoint.arch else None,
        checkpoint.dialect.name if checkpoint.dialect else None, checkpoint.container, checkpoint.nbytes,
        dict(formats.most_common()),
    )  # fmt: skip
