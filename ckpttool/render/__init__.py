"""Reports as text for a terminal, or as JSON; and the progress bar. Numbers are in the unit that people think in.

Each name loads its module on first use: what one command shows needs nothing of the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ckpttool.render.bars import progress, steps
    from ckpttool.render.conversion import show_conversion, show_plan
    from ckpttool.render.diff import show_diff
    from ckpttool.render.doctor import show_doctor
    from ckpttool.render.estimate import show_estimate
    from ckpttool.render.failures import show_error, show_interrupted
    from ckpttool.render.inspection import show_inspection
    from ckpttool.render.inspection_page import save_inspection_page
    from ckpttool.render.page import check_place, show_place
    from ckpttool.render.publication import show_publication
    from ckpttool.render.round_trips import show_round_trips
    from ckpttool.render.round_trips_csv import check_csv_place, save_round_trips_csv
    from ckpttool.render.terminal import OutputClosed, flush, tell
    from ckpttool.render.validation import show_validation
    from ckpttool.render.validation_page import save_validation_page
    from ckpttool.render.verification import show_verification

__all__ = [
    "OutputClosed",
    "check_csv_place",
    "check_place",
    "flush",
    "progress",
    "save_inspection_page",
    "save_round_trips_csv",
    "save_validation_page",
    "show_conversion",
    "show_diff",
    "show_doctor",
    "show_error",
    "show_estimate",
    "show_inspection",
    "show_interrupted",
    "show_place",
    "show_plan",
    "show_publication",
    "show_round_trips",
    "show_validation",
    "show_verification",
    "steps",
    "tell",
]

_HOMES = {
    "OutputClosed": "terminal",
    "check_csv_place": "round_trips_csv",
    "check_place": "page",
    "flush": "terminal",
    "progress": "bars",
    "save_inspection_page": "inspection_page",
    "save_round_trips_csv": "round_trips_csv",
    "save_validation_page": "validation_page",
    "show_conversion": "conversion",
    "show_diff": "diff",
    "show_doctor": "doctor",
    "show_error": "failures",
    "show_estimate": "estimate",
    "show_inspection": "inspection",
    "show_interrupted": "failures",
    "show_place": "page",
    "show_plan": "conversion",
    "show_publication": "publication",
    "show_round_trips": "round_trips",
    "show_validation": "validation",
    "show_verification": "verification",
    "steps": "bars",
    "tell": "terminal",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ckpttool.render' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"ckpttool.render.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
