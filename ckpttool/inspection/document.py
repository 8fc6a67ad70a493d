"""An inspection as JSON: the report without what follows from the rest of it.

687 tensors and 9,216 experts of gpt-oss-120b repeat themselves: a weight of one stored tensor has its name and shape
twice, its elements are its shape's product. What is left out is optional in schemas/inspection.v1.json, which says of
each such field what its absence means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ckpttool.inspection.report import ExpertSpread, Inspection, LayoutReport, ScaleCounts, StoredReport, WeightReport
from ckpttool.reports import document

if TYPE_CHECKING:
    from collections.abc import Mapping

Row = dict[str, Any]

LEFT_OUT: Final[Mapping[type, tuple[str, ...]]] = {
    WeightReport: ("part", "purpose", "layer", "expert", "parameters", "nbytes", "global_scale"),
    StoredReport: ("name", "shape", "role"),
    ScaleCounts: ("bytes_0", "bytes_254", "bytes_255", "nonfinite"),
    LayoutReport: ("layers", "words"),
    ExpertSpread: ("odd",),
}
"""What may be left out, by what it is left out of."""


def inspection_document(report: Inspection) -> Row:
    """`report` under inspection.v1."""
    out = document(report)
    for row in out["tensors"]:
        _weight(row)
    for row in out["scales"] or ():
        for counts in row["experts"]:
            _without(counts, bytes_0=counts["zero_blocks"], bytes_254=0, bytes_255=0, nonfinite=0)
            _without(counts, bytes_0=None, bytes_254=None, bytes_255=None)
    for layer in out["experts"] or ():
        del layer["layout"]["layers"], layer["layout"]["words"]
        for spread in layer["spread"]:
            for expert in spread["experts"]:
                _without(expert, odd=None)
    return out


def _weight(row: Row) -> None:
    del row["parameters"], row["nbytes"]
    if row["part"] is not None:
        del row["purpose"]
    _without(row, part=None, purpose=None, layer=None, expert=None, global_scale="none")
    for stored in row["stored"]:
        _without(stored, name=row["name"], shape=row["shape"])
        if len(row["stored"]) == 1:
            _without(stored, role="codes")


def _without(row: Row, **silent: object) -> None:
    """Take out the fields that have these values."""
    for name, value in silent.items():
        if name in row and row[name] == value:
            del row[name]
