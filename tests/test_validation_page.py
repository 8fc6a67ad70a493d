"""The page that `validate --html` writes: each figure is the report's, each mark is where its figure is."""

from __future__ import annotations

import json
import math
import re
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import chromium
import pytest
from page_checks import CHOOSE, CORNER, HOSTILE, Tables, Tags, contrast
from validation_samples import EXPERTS, LAYERS, SAMPLES, TOKENS, WRONG

from ckpttool.errors import UsageError
from ckpttool.render.heat_map import View, colour, ends
from ckpttool.render.log_axis import LogAxis, log_axis, power
from ckpttool.render.page import number
from ckpttool.render.plots import _sparse
from ckpttool.render.validation_budget import limits
from ckpttool.render.validation_maps import experts
from ckpttool.render.validation_page import save_validation_page, validation_page
from ckpttool.validator.failures import Failure
from ckpttool.validator.report import Predictions, Validation

REPORTS = {name: make() for name, make in SAMPLES.items()}
WITH_FORWARD = tuple(name for name, report in REPORTS.items() if report.forward is not None)


@pytest.fixture(scope="module")
def documents() -> dict[str, str]:
    return {name: validation_page(report) for name, report in REPORTS.items()}


@pytest.fixture(scope="module")
def pages(documents: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    out = {name: folder / f"{name}.html" for name in documents}
    for name, path in out.items():
        path.write_text(documents[name], "utf-8")
    return out


def opened(tab: chromium.Browser, path: Path) -> chromium.Browser:
    """The page, loaded; nothing but the file itself was asked for, and the console heard nothing."""
    tab.media()
    tab.open(path)
    assert tab.requests == [path.resolve().as_uri()]
    assert tab.complaints == []
    return tab


# --- figures ---


def same(found: float | None, wanted: float | None) -> bool:
    """Whether a cell's number is the report's, to the digits it is written with."""
    if wanted is None or not math.isfinite(wanted):
        return found is None
    return found is not None and math.isclose(found, wanted, rel_tol=1e-11)


@pytest.mark.parametrize("name", WITH_FORWARD)
def test_layers_in_figures(documents: dict[str, str], name: str) -> None:
    report = REPORTS[name]
    assert report.forward is not None
    rows = Tables(documents[name]).rows["layer-table"]
    assert [r[0].words for r in rows] == ["embed", *(f"layer {x.layer}" for x in report.layers), "head"]
    for row, x in zip(rows[1:-1], report.layers, strict=True):
        wanted = (x.drift, x.drift_median, x.forced, x.own, x.noise, x.broken, x.flips, x.choices, x.noise_flips)
        assert all(same(c.value, w) for c, w in zip(row[1:], wanted, strict=True)), x
        for cell, value in zip(row[1:6], wanted, strict=False):
            assert value is None or cell.words == number(value)
    assert same(rows[0][1].value, report.forward.embed.whole)
    assert same(rows[-1][1].value, report.forward.logits.whole)
    assert same(rows[-1][5].value, report.forward.logits_noise.whole)


@pytest.mark.parametrize("name", WITH_FORWARD)
def test_use_of_experts_in_figures(documents: dict[str, str], name: str) -> None:
    rows = Tables(documents[name]).rows["expert-table"]
    for row, x in zip(rows, REPORTS[name].layers, strict=True):
        a, b = x.reference, x.candidate
        wanted = (x.layer, a.entropy, b.entropy, a.router_entropy, b.router_entropy, a.balance, b.balance,
                  len(a.unused), len(b.unused))  # fmt: skip
        assert all(same(c.value, w) for c, w in zip(row, wanted, strict=True)), x
        if 0 < len(a.unused) <= 16:
            assert row[7].words == f"{len(a.unused)}\n{', '.join(map(str, a.unused))}"


FIGURES = ("tokens", "kl_mean", "kl_median", "kl_p90", "kl_p99", "kl_p999", "kl_max", "top1", "top5", "ppl_candidate",
           "ppl_reference", "ppl_ratio", "logit_difference", "logit_range")  # fmt: skip


@pytest.mark.parametrize("name", WITH_FORWARD)
def test_predictions_in_figures(documents: dict[str, str], name: str) -> None:
    forward = REPORTS[name].forward
    assert forward is not None
    tables = Tables(documents[name]).rows
    inputs: list[tuple[str, Predictions | None]] = [("text", forward.on_text), ("prompts", forward.on_prompts)]
    for key, found in inputs:
        rows = tables.get(f"{key}-metrics")
        assert (rows is None) == (found is None)
        if rows is None or found is None:
            continue
        for n, m in enumerate((found.metrics, found.forced, found.noise)):
            assert m is not None
            for row, field in zip(rows, FIGURES, strict=False):
                assert same(row[1 + n].value, getattr(m, field)), (key, field)
            spread = "" if m.kl_mean_se is None else f"\n\u00b1 {number(m.kl_mean_se, 2)}"
            assert rows[1][1 + n].words == number(m.kl_mean) + spread
            place = "" if m.kl_max_at is None else f"\nat {m.kl_max_at.sequence}:{m.kl_max_at.position}"
            assert rows[6][1 + n].words == number(m.kl_max) + place
            other = m.first_difference
            wanted = "\u2013" if other is None else (
                f"at {other.sequence}:{other.position}\n{other.reference} \u2192 {other.candidate}"
            )  # fmt: skip
            assert rows[14][1 + n].words == wanted


@pytest.mark.parametrize("name", [n for n, r in REPORTS.items() if r.parts])
def test_parts_in_figures(documents: dict[str, str], name: str) -> None:
    rows = Tables(documents[name]).rows["part-table"]
    for row, p in zip(rows, REPORTS[name].parts, strict=True):
        c = p.compared
        assert row[0].words.strip() == c.part
        formats = {c.format_a or "\u2013": None, c.format_b or "\u2013": None}
        assert row[1].words == " \u2192 ".join(formats)
        assert row[2].words == (p.claim or "\u2013")
        assert row[4].words == (p.proof or ("\u2013" if c.status is None else "none"))
        wanted = (c.differing, c.max_abs, c.relative, c.sqnr)
        assert all(same(cell.value, w) for cell, w in zip(row[5:9], wanted, strict=True)), c.part
    came = {r[0].words.strip(): r[3].words for r in rows}
    if name == "headers":
        assert came["layer.0.q.bias"] == "only in the reference"
        assert came["layer.0.k.bias"] == "another shape\n2880 / 4\u2009\u00d7\u20095"
        assert came["embed"] == "not compared"
    if name == "broken":
        (odd,) = [r for r in rows if r[0].words.strip() == "layer.2.down"]
        assert odd[5].words == "1\n1 not finite" and odd[9].words == "expert 3, row 7, column 21"


@pytest.mark.parametrize("name", SAMPLES)
def test_verdict_and_failures(documents: dict[str, str], name: str) -> None:
    report, document = REPORTS[name], documents[name]
    (word,) = re.findall(r'<p class="word">(.*?)</p>', document)
    assert word == report.verdict
    kind = {"exact": "exact", "within budget": "within", "failed": "failed"}[report.verdict]
    assert f'<div class="verdict {kind}"><svg viewBox="0 0 24 24" role="img" aria-label="{kind}">' in document
    rows = Tables(document).rows.get("failure-table", [])
    assert len(rows) == len(report.failures)
    for row, f in zip(rows, report.failures, strict=True):
        assert [c.words.strip() for c in row] == [
            f.level, "\u2013" if f.layer is None else str(f.layer), f.part or "\u2013", f.what,
        ]  # fmt: skip
    if not report.failures:
        assert "Nothing that was looked at failed." in document


def test_tiles(tab: chromium.Browser, pages: dict[str, Path]) -> None:
    opened(tab, pages["failed"])
    tiles = tab.run("[...document.querySelectorAll('.tiles > div')].map(d => [...d.children].map(c => c.innerText))")
    m = REPORTS["failed"].metrics
    assert m is not None and m.kl_mean is not None
    assert [t[:2] for t in tiles] == [
        ["Fidelity", "lossy"], ["Mean KL, nats", f"{m.kl_mean:.3g}"], ["Top-1 agreement", "77.12 %"],
        ["Perplexity ratio", "1.2304"], ["First beyond noise", "layer 0"], ["Failures", "2"],
    ]  # fmt: skip
    assert tiles[0][2] == "579 equal bytes, 108 lossy"
    opened(tab, pages["structure"])
    tiles = tab.run("[...document.querySelectorAll('.tiles dd:not(.sub)')].map(d => d.innerText)")
    assert tiles == ["not compared", "0"]


def test_the_budget_line_by_line(documents: dict[str, str]) -> None:
    def lines(name: str) -> list[tuple[str, str, str, float | None, str, str]]:
        rows = Tables(documents[name]).rows.get("budget-table", [])
        return [(r[0].words, r[1].words, r[2].words, r[3].value, r[4].words, r[5].words) for r in rows]

    kept, missed = "\u2713 kept", "\u2717 not kept"
    within, failed = lines("within"), lines("failed")
    assert [(r[0], r[1], r[2], r[4], r[5]) for r in within[:6]] == [
        (name, limit, whose, where, kept)
        for where in ("on the text", "on prompts")
        for name, limit, whose in (
            ("mean KL", "at most 0.1", "asked for"), ("top-1 agreement", "at least 0.8", "default for MXFP4"),
            ("perplexity ratio", "at most 1.15", "default for MXFP4"),
        )
    ]  # fmt: skip
    assert within[6][:3] == ("SQNR of MXFP4 parts", "at least 15 dB", "default for MXFP4") and within[6][5] == kept
    assert [r[5] for r in failed] == [missed] * 4
    assert failed[3][3:5] == (min(WRONG.values()), "layer.17.down, expert 40")
    (exact,) = lines("exact")
    assert exact[0] == "mean KL of equal values" and exact[3] == 0 and exact[5] == kept
    assert [r[5] for r in lines("broken")] == ["not decided"] * 3
    assert lines("headers") == lines("structure") == []
    assert [r[0] for r in lines("values")] == ["SQNR of MXFP4 parts"]


@pytest.mark.parametrize(
    ("what", "wrong"),
    [("1 of 90 blocks is not what recipe best makes of the reference, at expert 3, row 2, block 0: scale byte 9, not 8",
      {3}),
     ("experts 1, 2 and 5 have changed places: 9 of 90 blocks are other ones, the first at expert 1, row 0", {1, 2, 5}),
     ("SQNR 9.0 dB is below the 15 dB of MXFP4", set())],
)  # fmt: skip
def test_damage_that_no_sqnr_shows(what: str, wrong: set[int]) -> None:
    """The part fails by its proof: its experts are marked as the failure names them, and the limit is kept."""
    name = "layer.2.down"
    report = REPORTS["within"]
    parts = tuple(replace(p, proof=None) if p.compared.part == name else p for p in report.parts)
    failed = replace(report, parts=parts, failures=(Failure(name, 2, what, "values"),), verdict="failed")
    assert {(w.part.compared.part, w.error.expert) for w in experts(failed) if w.why} == {(name, e) for e in wrong}
    (limit,) = (x for x in limits(failed) if x.name == "SQNR of MXFP4 parts")
    assert limit.kept


def test_few_answers_decide_nothing() -> None:
    report = replace(REPORTS["within"], asked={})
    forward = report.forward
    assert forward is not None and forward.on_prompts is not None
    few = replace(forward.on_prompts, metrics=replace(forward.on_prompts.metrics, tokens=40))
    rows = Tables(validation_page(replace(report, forward=replace(forward, on_prompts=few)))).rows["budget-table"]
    assert [r[5].words for r in rows[3:6]] == ["not decided"] * 3
    assert rows[3][4].words == "on prompts; too few tokens to decide"


# --- charts ---


SVG = "{http://www.w3.org/2000/svg}"


def drawing(document: str, says: str, n: int = 0) -> ET.Element:
    """The n-th chart whose description begins with `says`: the wide one, then the narrow one."""
    found = re.findall(rf'<svg [^>]*aria-label="{says}[^>]*>.*?</svg>', document, re.DOTALL)
    return ET.fromstring(found[n])


def marks(chart: ET.Element, name: str) -> list[ET.Element]:
    (group,) = [g for g in chart.iter("g") if g.get("class", "").endswith(f"role-mark {name}")]
    return [e for e in group if e.tag == "path"]


def place(element: ET.Element) -> tuple[float, float]:
    x, y = re.findall(r"-?[\d.]+", element.get("transform", "").split(")")[0])
    return float(x), float(y)


def box(element: ET.Element) -> tuple[float, float, float, float]:
    """Left, top, width, height of a rectangle's path."""
    x, y, w, h = map(float, re.findall(r"-?[\d.]+(?:e-?\d+)?", element.get("d", ""))[:4])
    return x, y, w, h


def labels(chart: ET.Element, axis: str) -> dict[str, float]:
    """Where the labels of the X- or Y-axis are, along it."""
    (group,) = [g for g in chart.iter("g") if g.get("aria-label", "").startswith(f"{axis}-axis")]
    (texts,) = [g for g in group.iter("g") if "role-axis-label" in g.get("class", "")]
    # Half a line of text is what puts a label of the left axis beside its place.
    return {t.text or "": place(t)[0] if axis == "X" else place(t)[1] - 4 for t in texts}


def decades(found: dict[str, float]) -> tuple[float, float]:
    """Of an axis of powers of ten: where 1 would be, and how far a decade goes."""
    known = {n: at for n in range(-30, 30) if (at := found.get(power(n))) is not None}
    first, last = min(known), max(known)
    step = (known[last] - known[first]) / (last - first)
    assert all(abs(at - known[first] - step * (n - first)) < 0.6 for n, at in known.items())
    return known[first] - step * first, step


@pytest.mark.parametrize("name", WITH_FORWARD)
@pytest.mark.parametrize("narrow", [0, 1])
def test_drift_is_drawn_where_it_is(documents: dict[str, str], name: str, narrow: int) -> None:
    report = REPORTS[name]
    f = report.forward
    assert f is not None and f.logits_forced is not None
    chart = drawing(documents[name], "Drift of", narrow)
    y, x = labels(chart, "Y"), labels(chart, "X")
    one, step = decades(y)

    def at(value: float | None) -> float:
        if value is None:
            return y["not finite"]
        return y["0"] if value == 0 else one + step * math.log10(value)

    none = object()
    series: list[tuple[str, list[Any]]] = [
        ("var(--l2)", [none, *(x.own for x in report.layers), none]),
        ("var(--l1)", [none, *(x.forced for x in report.layers), f.logits_forced.whole]),
        ("var(--l0)", [f.embed.whole, *(x.drift for x in report.layers), f.logits.whole]),
    ]
    band = (x["head"] - x["embed"]) / (len(report.layers) + 1)
    wanted = [
        (x["embed"] + band * n, at(v), "var(--error)" if v is None else colour)
        for colour, values in series for n, v in enumerate(values) if v is not none
    ]  # fmt: skip
    points = marks(chart, "points")
    assert len(points) == len(wanted)
    for point, (px, py, fill) in zip(points, wanted, strict=True):
        assert place(point) == pytest.approx((px, py), abs=0.6)
        assert point.get("fill") == fill
    floor = [at(x.noise) for x in report.layers] + [at(f.logits_noise.whole)]
    assert [box(e)[1] for e in marks(chart, "floor")] == pytest.approx(floor, abs=0.6)
    bottom = {round(box(e)[1] + box(e)[3]) for e in marks(chart, "floor")}
    assert bottom == {300}
    mark = [e for e in chart.iter("g") if e.get("class", "").endswith("role-mark mark")]
    assert bool(mark) == (f.first_diverging is not None)


def test_what_a_place_says(documents: dict[str, str]) -> None:
    chart = drawing(documents["broken"], "Drift of")
    said = [e.get("aria-label") for e in marks(chart, "places")]
    assert {e.get("fill-opacity") for e in marks(chart, "places")} == {"0"}
    assert said[0] == "embed; candidate: 0"
    assert said[3] == (
        "layer 2; candidate: not finite; with the reference\u2019s choice of experts: not finite; "
        f"each layer by itself: not finite; noise floor: {number(REPORTS['broken'].layers[2].noise)}; "
        "tokens that are not finite: 4,096"
    )


def test_no_drift_lies_below_the_powers_of_ten(documents: dict[str, str]) -> None:
    chart = drawing(documents["exact"], "Drift of")
    y = labels(chart, "Y")
    one, step = decades(y)
    floor = min(v for x in REPORTS["exact"].layers if (v := x.noise) is not None)
    assert y["0"] > one + step * math.log10(floor)
    assert all(place(p)[1] == pytest.approx(y["0"], abs=0.6) for p in marks(chart, "points"))
    assert "not finite" not in y


@pytest.mark.parametrize("name", ["within", "failed"])
def test_flips_have_their_height(documents: dict[str, str], name: str) -> None:
    chart = drawing(documents[name], "Tokens whose experts")
    y = labels(chart, "Y")
    tick = max(int(k.replace(",", "")) for k in y)
    scale = (y["0"] - y[f"{tick:,}"]) / tick
    heights = [box(e)[3] for e in marks(chart, "columns")]
    assert heights == pytest.approx([x.flips * scale for x in REPORTS[name].layers], abs=0.6)
    along = drawing(documents[name], "Drift of")
    assert labels(chart, "X") == labels(along, "X")  # so that a layer is one place in both
    tips = [e.get("aria-label") or "" for e in marks(chart, "places")]
    x = REPORTS[name].layers[7]
    assert tips[8] == (
        f"layer 7; tokens that go to other experts: {x.flips:,}; choices that differ: {x.choices:,}; "
        f"noise floor: {x.noise_flips:,} tokens"
    )


@pytest.mark.parametrize("name", ["exact", "within", "failed"])
def test_kl_is_drawn_where_it_is(documents: dict[str, str], name: str) -> None:
    forward = REPORTS[name].forward
    assert forward is not None
    inputs = [p for p in (forward.on_text, forward.on_prompts) if p is not None]
    ends = set()
    for n, found in enumerate(inputs):
        chart = drawing(documents[name], "Histogram of the KL", 2 * n)
        x, y = labels(chart, "X"), labels(chart, "Y")
        one, step = decades(x)
        ends.add((one, step))
        top = max(map(float, y))
        scale = (y["0"] - y[f"{top:g}"]) / top
        bars = [box(e) for e in marks(chart, "columns")]
        total = found.kl.zeros + sum(found.kl.counts)
        assert total == found.metrics.tokens
        shares = [100 * c / total for c in (found.kl.zeros, *found.kl.counts)]
        assert [b[3] for b in bars] == pytest.approx([s * scale for s in shares], abs=0.6)
        assert bars[0][0] + bars[0][2] / 2 == pytest.approx(x["0"], abs=1.1)
        assert [b[0] for b in bars[1:]] == pytest.approx(
            [one + step * math.log10(e) for e in found.kl.edges[:-1]], abs=0.6
        )
        rules = [e for g in chart.iter("g") if g.get("class", "").endswith("role-mark rules") for e in g]
        wanted = (found.metrics.kl_mean, found.metrics.kl_p99, found.noise.kl_mean)
        for rule, value in zip(rules, wanted, strict=True):
            assert value is not None
            where = x["0"] if value == 0 else one + step * math.log10(value)
            assert place(rule)[0] == pytest.approx(where, abs=0.6)
        assert "noise floor\u2019s mean " + number(found.noise.kl_mean) in documents[name]
    assert len(ends) == 1  # text and prompts have one axis


def test_two_wrong_experts_stand_out(tab: chromium.Browser, pages: dict[str, Path]) -> None:
    opened(tab, pages["failed"])
    kinds = tab.run("[...document.querySelectorAll('[data-tabs=sqnr] option')].map(o => o.innerText)")
    assert kinds[0] == "down: 2 wrong" and sorted(kinds[1:]) == ["gate", "up"]
    fills = "[...document.querySelectorAll('#sqnr-%d .cells path')].map(p => p.getAttribute('fill'))"
    for n, kind in enumerate(("down", *kinds[1:])):
        wanted = {(layer, e) for k, layer, e in WRONG if k == kind}
        for view in range(4):
            tab.run(CHOOSE % (view, f"#sqnr-{n} select"))
            found = tab.run(fills % n)
            assert len(found) == LAYERS * EXPERTS
            assert {divmod(i, EXPERTS) for i, fill in enumerate(found) if fill == "var(--error)"} == wanted
            assert len(set(found)) >= 8  # and the others still differ: the ramp is theirs
    rows = tab.run(
        "[...document.querySelectorAll('#worst-experts tbody tr')].map(r => [...r.cells].map(c => c.innerText))"
    )
    assert [(r[0], r[1], r[2], r[6]) for r in rows] == [
        ("layer.17.down", "40", "\u22122.7", "SQNR below 15 dB"), ("layer.5.down", "97", "3.4", "SQNR below 15 dB"),
    ]  # fmt: skip


def cells(document: str, key: str) -> dict[str, Any]:
    found = re.search(rf'<script type="application/json" id="{key}-data">(.*?)</script>', document)
    assert found is not None
    value: dict[str, Any] = json.loads(found[1])
    return value


def test_every_cell_holds_its_expert(documents: dict[str, str]) -> None:
    data = cells(documents["failed"], "sqnr-0")
    parts = {p.compared.part: p.compared for p in REPORTS["failed"].parts}
    names = [v["name"] for v in data["views"]]
    assert names[0] == "SQNR, dB" and names[2:] == ["relative error", "differing values"]
    for layer in range(LAYERS):
        for e in parts[f"layer.{layer}.down"].experts:
            found = [v["values"][layer][e.expert] for v in data["views"]]
            assert e.sqnr is not None and e.relative is not None
            assert (found[0], found[2], found[3]) == (round(e.sqnr, 2), round(e.relative, 4), e.differing)
    assert data["flagged"] == {f"{layer},{e}": "SQNR below 15 dB" for _, layer, e in WRONG}
    usage = cells(documents["failed"], "usage")
    x = REPORTS["failed"].layers[9]
    total = sum(x.reference.tokens)
    assert total == 4 * TOKENS
    assert usage["views"][0]["values"][9] == [round(n * EXPERTS / total, 2) for n in x.reference.tokens]
    change = [b - a for a, b in zip(x.reference.tokens, x.candidate.tokens, strict=True)]
    assert usage["views"][2]["values"][9] == change


def test_equal_experts_are_no_worst_ones(tab: chromium.Browser, pages: dict[str, Path]) -> None:
    """One value that is not finite: its expert is wrong, the others say that they are equal."""
    opened(tab, pages["broken"])
    fills = tab.run("[...document.querySelectorAll('#sqnr-0 .cells path')].map(p => p.getAttribute('fill'))")
    assert [divmod(i, 8) for i, fill in enumerate(fills) if fill == "var(--error)"] == [(2, 3)]
    assert set(fills) == {"var(--error)", "var(--floor)"}
    assert tab.run("document.querySelector('#sqnr-0 .ramp').innerText") == ""
    tab.run("document.querySelector('#sqnr-0').scrollIntoView()")
    for n, words in ((2 * 8 + 3, "1 value not finite on one side"), (2 * 8 + 4, "SQNR, dB: equal")):
        left, top = tab.run(CORNER % ("#sqnr-0 .cells path", n))
        tab.move(left + 3, top + 3)
        said = tab.run("document.getElementById('tip').innerText").splitlines()
        assert said[:2] == [f"layer 2, expert {n - 16}", words]


def test_the_script_colours_as_the_drawing_does(tab: chromium.Browser, pages: dict[str, Path]) -> None:
    opened(tab, pages["failed"])
    fills = "[...document.querySelectorAll('#sqnr-0 .cells path')].map(p => p.getAttribute('fill')).join()"
    drawn, legend = tab.run(fills), tab.run("document.querySelector('#sqnr-0 .ramp').innerText")
    tab.run(CHOOSE % (2, "#sqnr-0 select"))
    assert tab.run(fills) != drawn
    tab.run(CHOOSE % (0, "#sqnr-0 select"))
    assert tab.run(fills) == drawn
    assert tab.run("document.querySelector('#sqnr-0 .ramp').innerText").split() == legend.split()


def test_a_falling_ramp_is_strong_where_values_are_small() -> None:
    view = View("x", [[0.0, 9.0, -50.0]], falling=True)
    assert ends(view, {(0, 2)}) == (0.0, 9.0)
    assert [colour(v, view, 0, 9) for v in (0.0, 4.5, 9.0)] == ["var(--s8)", "var(--s4)", "var(--s0)"]


def test_tooltips_of_charts(tab: chromium.Browser, pages: dict[str, Path]) -> None:
    opened(tab, pages["failed"])
    tab.run("document.querySelector('#layers').scrollIntoView()")
    left, top = tab.run(CORNER % ("#layers .wide .places path", 6))
    tab.move(left + 4, top + 150)
    said = tab.run("document.getElementById('tip').innerText").splitlines()
    x = REPORTS["failed"].layers[5]
    assert said == [
        "layer 5", f"candidate: {number(x.drift)}",
        f"with the reference\u2019s choice of experts: {number(x.forced)}",
        f"each layer by itself: {number(x.own)}", f"noise floor: {number(x.noise)}",
    ]  # fmt: skip


# --- axes and words ---


def test_axes() -> None:
    axis = log_axis([0.0, 3e-7, 0.5, math.inf])
    assert axis == LogAxis(-7, 0, True, True)
    assert axis.domain == (-8.5, 1.5)
    assert [axis.at(v) for v in (0.0, 1e-7, 1.0, math.inf)] == [-8, -7, 0, 1]
    assert axis.breaks == [-7.5, 0.5]
    assert axis.ticks() == {n: power(n) for n in range(-7, 1)} | {-8: "0", 1: "not finite"}
    assert log_axis([]) == log_axis([0.5]) == LogAxis(-1, 0)
    assert log_axis([10.0]) == LogAxis(1, 2)
    assert len(log_axis([1e-30, 1.0]).ticks()) <= 9
    assert [power(n) for n in (-12, 0, 1, 3)] == ["10\u207b\u00b9\u00b2", "1", "10", "10\u00b3"]


def test_labels_have_room() -> None:
    names = ["embed", *map(str, range(36)), "head"]
    assert _sparse(names, 29) == names
    assert _sparse(names, 7.5) == ["embed", *map(str, range(4, 36, 4)), "head"]


def test_numbers() -> None:
    found = {
        None: "\u2013", 0.0: "0", 1.5: "1.5", -0.25: "\u22120.25", 0.00099: "9.9e\u22124", 3.2e-13: "3.2e\u221213",
        12345.6: "12,346", 9999.6: "10,000", 9999.4: "9999", 1e7: "1e7", math.inf: "not finite", math.nan: "not finite",
    }  # fmt: skip
    assert [number(v) for v in found] == list(found.values())


# --- the page as a whole ---


@pytest.mark.parametrize("name", SAMPLES)
def test_sections(tab: chromium.Browser, pages: dict[str, Path], name: str) -> None:
    report = REPORTS[name]
    opened(tab, pages[name])
    keys = tab.run("[...document.querySelectorAll('main > section')].map(s => s.id)")
    wanted = ["failures", *["budget"] * (report.fidelity is not None), "sides"]
    wanted += ["predictions", "layers", "experts"] * (report.forward is not None)
    wanted += ["sqnr"] * any(p.compared.experts for p in report.parts) + ["parts"] * bool(report.parts)
    assert keys == wanted
    links = tab.run("[...document.querySelectorAll('nav a')].map(a => a.getAttribute('href'))")
    assert links == [f"#{key}" for key in wanted]


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("width", [360, 800, 1300])
def test_nothing_is_wider_than_the_window(
    tab: chromium.Browser, pages: dict[str, Path], name: str, width: int
) -> None:  # fmt: skip
    opened(tab, pages[name])
    tab.window(width, 900)
    try:
        assert tab.run("document.documentElement.scrollWidth") <= width
        if REPORTS[name].forward is not None:
            shown = tab.run("['.wide', '.narrow'].map(c => document.querySelector(`#layers ${c}`).checkVisibility())")
            assert shown == [width > 736, width <= 736]
    finally:
        tab.window(1300, 900)


@pytest.mark.parametrize("name", SAMPLES)
def test_semantics(documents: dict[str, str], name: str) -> None:
    seen = Tags(documents[name]).seen
    ids = [a["id"] for _, a in seen if "id" in a]
    assert len(ids) == len(set(ids))
    assert [tag for tag, _ in seen].count("table") == [tag for tag, _ in seen].count("caption")
    assert all(a.get("scope") in ("col", "row") for tag, a in seen if tag == "th")
    assert all(a.get("role") == "img" and a.get("aria-label") for tag, a in seen if tag == "svg")
    for tag, attributes in seen:
        for key in ("aria-labelledby", "aria-controls", "aria-describedby"):
            assert attributes.get(key) is None or attributes[key] in ids, (tag, key)
    text = documents[name]
    assert re.findall(r"(?:https?:)?//[a-z0-9][^\s\"'<]*", text[: text.rindex("<script>")]) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(tab: chromium.Browser, pages: dict[str, Path], scheme: str) -> None:
    """Words 4.5 and more on what they stand on, lines and wrong cells 3 and more: WCAG 2.2, AA."""
    for name, tone in (("exact", "good"), ("within", "info"), ("failed", "error")):
        opened(tab, pages[name])
        tab.media(scheme)
        rgb = "getComputedStyle(document.querySelector('%s')).%s.match(/[0-9.]+/g).map(Number)"
        word, sign = tab.run(rgb % (".verdict .word", "color")), tab.run(rgb % (".verdict svg", "fill"))
        card = tab.run(rgb % (".verdict", "backgroundColor"))
        assert contrast(word, card) >= 4.5 and word == sign, tone
    names = ("bg", "l0", "l1", "l2", "floor", "error", "muted", "text")
    found: dict[str, list[float]] = tab.run(
        f"(e => {{document.body.append(e); return Object.fromEntries({json.dumps(names)}.map(n => "
        "{e.style.color = `var(--${n})`; return [n, getComputedStyle(e).color.match(/[0-9.]+/g).map(Number)]}))})"
        "(document.createElement('i'))"
    )
    assert (contrast(found["bg"], [0, 0, 0]) < 1.5) == (scheme == "dark")  # the scheme was taken
    for name in ("l0", "l1", "l2", "error"):
        assert contrast(found[name], found["bg"]) >= 3, name
        assert contrast(found[name], found["floor"]) >= 3, name  # lines may run over the noise


def test_numbers_that_are_missing_are_sorted_last(tab: chromium.Browser, pages: dict[str, Path]) -> None:
    opened(tab, pages["within"])
    heads = tab.run("[...document.querySelectorAll('#part-table thead th')].map(h => h.innerText.trim())")
    at = heads.index("SQNR, dB")
    click = f"document.querySelectorAll('#part-table thead button')[{at}].click()"
    values = f"[...document.querySelectorAll('#part-table tbody tr')].map(r => r.cells[{at}].dataset.v)"
    for down in (True, False):
        tab.run(click)
        found = tab.run(values)
        known = [float(v) for v in found[: 3 * LAYERS]]
        assert known == sorted(known, reverse=down) and len(set(known)) > 100
        assert set(found[3 * LAYERS :]) == {None}


def test_many_failures(tab: chromium.Browser, tmp_path: Path) -> None:
    many = tuple(Failure(f"layer.{n}.down", n, f"{n + 1} values differ", "values") for n in range(5000))
    decided = tuple(f.what for f in many)
    path = tmp_path / "page.html"
    save_validation_page(replace(REPORTS["headers"], failures=many, decided=decided), str(path))
    opened(tab, path)
    assert tab.run("document.querySelectorAll('#failure-table tbody tr').length") == 4000
    assert "And 1,000 more" in tab.run("document.querySelector('#failures').innerText")
    assert tab.run("document.querySelector('.verdict li:last-child').innerText") == "and 4,996 more"
    tab.run("(i => {i.value = 'layer.77.'; i.dispatchEvent(new Event('input'))})(document.querySelector('input'))")
    assert tab.run("document.getElementById('failure-table-count').innerText") == "1 of 4,000"


def test_without_scripts_it_is_whole(tab: chromium.Browser, pages: dict[str, Path]) -> None:
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        opened(tab, pages["failed"])
        seen = "[...document.querySelectorAll('%s')].map(e => e.checkVisibility())"
        assert tab.run(seen % "#sqnr .map svg") == [True] * 3
        assert not any(tab.run(seen % "select, input"))
    finally:
        tab.call("Emulation.setScriptExecutionDisabled", value=False)


def hostile() -> Validation:
    """The worst sample with hostile words wherever a file's words may stand."""
    report = REPORTS["broken"]
    names = iter(HOSTILE * 1000)
    parts = []
    for n, p in enumerate(report.parts):
        shapes = {"part": f"layer.{n % 4}.{next(names)}", "format_a": next(names), "format_b": next(names)}
        parts.append(replace(p, compared=replace(p.compared, **shapes)))  # type: ignore[arg-type]
    side = replace(
        report.reference, source="/".join(HOSTILE), arch=next(names), dialect=next(names), container=next(names),
        formats=dict.fromkeys(HOSTILE, 3),
    )  # fmt: skip
    forward = report.forward
    assert forward is not None
    return replace(
        report, reference=side, candidate=replace(side, source=HOSTILE[0]), parts=tuple(parts), notes=HOSTILE,
        decided=HOSTILE, failures=tuple(Failure(name, n, name, "values") for n, name in enumerate(HOSTILE)),
        forward=replace(forward, text=HOSTILE[1], device=HOSTILE[3], reasoning_effort=HOSTILE[0], prompts=1),
        budget=replace(report.budget, name=HOSTILE[0]),
    )  # fmt: skip


def test_names_of_hostile_files_inject_nothing(
    tab: chromium.Browser, tmp_path: Path, documents: dict[str, str]
) -> None:
    path = tmp_path / "hostile.html"
    save_validation_page(hostile(), str(path))
    opened(tab, path)
    assert tab.run("window.hit") is None
    assert tab.run("document.querySelectorAll('img, iframe, object, embed, link, base, form, h1 + h1').length") == 0
    assert tab.run("[...document.querySelectorAll('script')].map(s => s.type)").count("") == 1
    assert tab.run("[...document.querySelectorAll('*')].flatMap(e => [...e.attributes]).filter(a => "
                   "/^on|^(xlink:)?href$|^src/.test(a.name) && !a.value.startsWith('#')).length") == 0  # fmt: skip
    text = tab.run("document.body.innerText")
    assert HOSTILE[0] in text and HOSTILE[1] in text and HOSTILE[3] in text
    assert "\\u{1b}[31m\\u{202e}\\u{0}" in text and "\\u{d800}" in text
    assert "a" * 3000 not in text
    known = {tag for document in documents.values() for tag, _ in Tags(document).seen}
    assert {tag for tag, _ in Tags(path.read_text("utf-8")).seen} <= known
    tab.window(360, 900)
    assert tab.run("document.documentElement.scrollWidth") <= 360
    tab.window(1300, 900)


def test_infinite_figures_have_their_place() -> None:
    """A report may hold what no JSON does; a page says so and draws on."""
    report = REPORTS["within"]
    m, forward = report.metrics, report.forward
    assert m is not None and forward is not None
    odd = replace(m, kl_mean=math.inf, ppl_candidate=math.nan, ppl_ratio=math.inf)
    text = replace(forward.on_text, metrics=odd)
    layers = tuple(replace(x, drift=math.nan if x.layer > 3 else x.drift) for x in report.layers)
    changed = replace(report, metrics=odd, layers=layers, forward=replace(forward, on_text=text))
    tables = Tables(validation_page(changed)).rows
    assert tables["layer-table"][7][1].words == "not finite"
    assert tables["text-metrics"][1][1].words.startswith("not finite")
    assert tables["budget-table"][0][3].words == "not finite" and tables["budget-table"][0][5].words.endswith(
        "not kept"
    )


def test_passes_that_were_left_out(tab: chromium.Browser, tmp_path: Path) -> None:
    report = REPORTS["within"]
    assert report.forward is not None
    layers = tuple(replace(x, forced=None, own=None) for x in report.layers)
    text = replace(report.forward.on_text, forced=None)
    forward = replace(report.forward, logits_forced=None, on_text=text, on_prompts=None)
    path = tmp_path / "page.html"
    save_validation_page(replace(report, layers=layers, forward=forward), str(path))
    opened(tab, path)
    keys = tab.run("[...document.querySelectorAll('#layers .legend:first-of-type li')].map(e => e.innerText)")
    assert keys[:3] == ["candidate", "noise floor", "first beyond noise: layer 0"]
    assert len(marks(drawing(path.read_text("utf-8"), "Drift of"), "points")) == LAYERS + 2


def test_size_and_the_same_report_gives_the_same_page(documents: dict[str, str]) -> None:
    assert max(map(len, documents.values())) < 3_000_000
    assert validation_page(REPORTS["failed"]) == documents["failed"]


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(UsageError) as caught:
        validation_page(REPORTS["exact"])
    assert caught.value.hint == "pip install 'ckpttool[report]'"
