"""Reports as text for a terminal, or as JSON; and the progress bar. Numbers are in the unit that people think in."""

from ckpttool.render.bars import progress
from ckpttool.render.conversion import show_conversion, show_plan, show_verification
from ckpttool.render.diff import show_diff
from ckpttool.render.doctor import show_doctor
from ckpttool.render.estimate import show_estimate
from ckpttool.render.failures import show_error, show_interrupted
from ckpttool.render.inspection import show_inspection
from ckpttool.render.terminal import OutputClosed, flush

__all__ = [
    "OutputClosed",
    "flush",
    "progress",
    "show_conversion",
    "show_diff",
    "show_doctor",
    "show_error",
    "show_estimate",
    "show_inspection",
    "show_interrupted",
    "show_plan",
    "show_verification",
]
