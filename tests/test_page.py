"""The page that `inspect --html` writes: opened from disk in a headless Chromium, light, dark, narrow and on paper."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import chromium
import pytest
from commandline import run
from header_checkpoints import write_headers
from page_checks import CHOOSE, CORNER, HOSTILE, Tags, contrast
from page_samples import WRONG, with_scales

import ckpttool
from ckpttool.errors import LocalIOError, UsageError
from ckpttool.inspection.report import (
    CodeReport,
    Finding,
    FingerprintReport,
    Histogram,
    Inspection,
    ScaleCounts,
    ScaleReport,
)
from ckpttool.render import charts
from ckpttool.render.heat_map import View, colour, ends
from ckpttool.render.inspection_page import inspection_page
from ckpttool.render.inspection_tables import MOST_ROWS, layers, short
from ckpttool.render.page import Section, check_place, page, write_page

FIXTURES = Path(__file__).parents[1] / "fixtures"
MANIFEST: dict[str, Any] = json.loads((FIXTURES / "MANIFEST.json").read_text(encoding="utf-8"))
TINY = FIXTURES / "tiny-gpt-oss"


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Inspection:
    """gpt-oss-120b by its headers, with made-up scales."""
    return with_scales(ckpttool.inspect(write_headers(tmp_path_factory.mktemp("page") / "gpt-oss-120b", "120b")))


@pytest.fixture(scope="module")
def big_page(big: Inspection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "120b.html"
    write_page(path, inspection_page(big))
    return path


def tiny(dialect: str = "hf") -> Inspection:
    return with_scales(ckpttool.inspect(TINY / dialect))


def opened(tab: chromium.Browser, path: Path) -> chromium.Browser:
    """The page, loaded; nothing but the file itself was asked for, and the console heard nothing."""
    tab.media()
    tab.open(path)
    assert tab.requests == [path.resolve().as_uri()]
    assert tab.complaints == []
    return tab


def written(report: Inspection, path: Path) -> Path:
    write_page(path, inspection_page(report))
    return path


# --- what is drawn ---


def test_every_chart_is_drawn(tab: chromium.Browser, big_page: Path) -> None:
    opened(tab, big_page)
    assert tab.run("document.title") == "gpt-oss-120b"
    cells = "[...document.querySelectorAll('#scales .map')].map(m => m.querySelectorAll('.cells path').length)"
    assert tab.run(cells) == [36 * 128, 36 * 128]
    assert tab.run("document.querySelectorAll('#bytes .wide .tiles path').length") > 72
    assert tab.run("document.querySelectorAll('#scales .bars path').length") > 10
    assert tab.run("document.querySelectorAll('#weight-table tbody tr').length") == 615
    assert tab.run("document.querySelectorAll('#file-table tbody tr').length") == 15
    seen = tab.run(
        "[...document.querySelectorAll('#bytes .wide svg, #scales-0 svg, #scales .multiples svg')].map(s => "
        "{const b = s.getBoundingClientRect(); return b.width > 200 && b.height > 100})"
    )
    assert seen == [True] * 4
    text = tab.run("document.body.innerText")
    for figure in ("116,829,156,672", "5,132,849,472", "65,248,815,744", "98.1 %", "131,072", "4.47"):
        assert figure in text


def test_tiles_have_the_area_of_their_bytes(tab: chromium.Browser, big_page: Path) -> None:
    opened(tab, big_page)
    rows = tab.run(
        "[...document.querySelectorAll('#bytes .wide .tiles path')].map(p => "
        "{const b = p.getBBox(); return [p.getAttribute('aria-label'), b.width * b.height]})"
    )
    area: dict[str, float] = {}
    for label, size in rows:
        module = label.split(",")[0].split(":")[0]
        area[module] = area.get(module, 0.0) + size
    # Borders and titles of boxes cost the more the smaller the tiles are: no exact proportion is to be had.
    assert area["mlp.experts.gate_up_proj"] / area["mlp.experts.down_proj"] == pytest.approx(2, rel=0.1)
    assert area["mlp.experts.down_proj"] / area["lm_head"] == pytest.approx(20.3 / 1.158, rel=0.4)
    layer = next(label for label, _ in rows if label.startswith("mlp.experts.gate_up_proj, layer 7:"))
    assert layer == "mlp.experts.gate_up_proj, layer 7: MXFP4, 1.13 GB (1.73 %)"


def test_a_wrong_expert_stands_out(tab: chromium.Browser, big_page: Path) -> None:
    """Against its layer's median the two wrong experts, and no other cell, have a colour of the ramp's ends."""
    opened(tab, big_page)
    tab.run(
        "(s => {s.selectedIndex = 1; s.dispatchEvent(new Event('change'))})(document.querySelector('#scales-0 select'))"
    )
    fills = tab.run("[...document.querySelectorAll('#scales-0 .cells path')].map(p => p.getAttribute('fill'))")
    strong = {divmod(n, 128): fill for n, fill in enumerate(fills) if fill in ("var(--d0)", "var(--d7)", "var(--d8)")}
    assert strong.keys() == WRONG.keys()
    assert strong[17, 40] == "var(--d0)"
    legend = tab.run("document.querySelector('#scales-0 .ramp').innerText").split()
    assert legend[0].startswith("\u22123.") and legend[-1].startswith("+3.")


def test_the_script_colours_as_the_drawing_does(tab: chromium.Browser, big_page: Path) -> None:
    opened(tab, big_page)
    fills = "[...document.querySelectorAll('#scales-0 .cells path')].map(p => p.getAttribute('fill')).join()"
    drawn, legend = tab.run(fills), tab.run("document.querySelector('#scales-0 .ramp').innerText")
    assert len(set(drawn.split(","))) >= 8
    tab.run(CHOOSE % (2, "#scales-0 select"))
    assert tab.run(fills) != drawn
    tab.run(CHOOSE % (0, "#scales-0 select"))
    assert tab.run(fills) == drawn
    assert tab.run("document.querySelector('#scales-0 .ramp').innerText").split() == legend.split()


def test_colours_of_a_ramp() -> None:
    view = View("x", [[0.0, 1.0], [None, 9.0]])
    assert ends(view) == (0.0, 9.0)
    assert [colour(v, view, 0, 9) for v in (0.0, 0.99, 1.0, 8.99, 9.0, None)] == [
        "var(--s0)", "var(--s0)", "var(--s1)", "var(--s8)", "var(--s8)", "none",
    ]  # fmt: skip
    around = View("x", [[-1.0, 4.5]], diverging=True)
    assert ends(around) == (-4.5, 4.5)
    assert [colour(v, around, -4.5, 4.5) for v in (-4.5, -0.4, 0.0, 0.4, 4.5)] == [
        "var(--d0)", "var(--d4)", "var(--d4)", "var(--d4)", "var(--d8)",
    ]  # fmt: skip
    assert ends(View("none", [[None]])) == (0.0, 0.0)
    assert colour(3.0, View("one", [[3.0]]), 3.0, 3.0) == "var(--s4)"


# --- what it answers ---


def test_tooltips(tab: chromium.Browser, big_page: Path) -> None:
    opened(tab, big_page)
    tab.run("document.querySelector('#scales-0').scrollIntoView()")
    left, top = tab.run(CORNER % ("#scales-0 .cells path", 17 * 128 + 40))
    tab.move(left + 2, top + 2)
    said = tab.run("document.getElementById('tip').innerText").splitlines()
    assert said[0] == "layer 17, expert 40"
    assert [line.split(":")[0] for line in said[1:7]] == [
        "mean exponent", "mean against the layer's median", "smallest exponent", "largest exponent", "zero blocks, %",
        "exponents \u221211 to 0",
    ]  # fmt: skip
    assert said[7].index("\u2588") == 3  # of 12 bars the tallest is that of -8 or -7: the mean is -7.5
    assert float(said[2].split(": ")[1].replace("\u2212", "-")) < -2.5
    tab.move(1, 1)
    assert tab.run("document.getElementById('tip').hidden")
    tab.run("document.querySelector('#scales-0 .map').focus()")
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        tab.press(key)
    assert "layer" in tab.run("document.getElementById('tip').innerText")
    tab.press("Escape")
    assert tab.run("document.getElementById('tip').hidden")
    tab.run("document.querySelector('#bytes').scrollIntoView()")
    left, top = tab.run(CORNER % ("#bytes .wide .tiles path", 0))
    tab.move(left + 5, top + 5)
    assert tab.run("document.getElementById('tip').innerText") == "lm_head: BF16, 1.16 GB (1.78 %)"


def test_one_kind_of_weight_at_a_time(tab: chromium.Browser, big_page: Path) -> None:
    opened(tab, big_page)
    hidden = "[...document.querySelectorAll('[data-tab=scales]')].map(f => f.hidden)"
    assert tab.run(hidden) == [False, True]
    tab.run(CHOOSE % (1, "[data-tabs] select"))
    assert tab.run(hidden) == [True, False]


def test_sorting(tab: chromium.Browser, big_page: Path) -> None:
    opened(tab, big_page)
    heads = tab.run("[...document.querySelectorAll('#weight-table thead th')].map(h => h.innerText.trim())")
    click = "document.querySelectorAll('#weight-table thead button')[{}].click()"
    cells = "[...document.querySelectorAll('#weight-table tbody tr')].map(r => r.cells[{}].innerText.trim())"
    at = heads.index("bytes")
    tab.run(click.format(at))
    found = [int(v.replace(",", "")) for v in tab.run(cells.format(at))]
    assert found == sorted(found, reverse=True) and len(set(found)) > 5
    assert tab.run(
        "[...document.querySelectorAll('#weight-table thead th')].map(h => h.getAttribute('aria-sort'))"
    ) == ["descending" if n == at else None for n in range(len(heads))]
    tab.run(click.format(at))
    assert [int(v.replace(",", "")) for v in tab.run(cells.format(at))] == found[::-1]
    tab.run(click.format(0))
    names = [v.splitlines()[0] for v in tab.run(cells.format(0))]
    numbers = [int(n.split(".")[2]) for n in names if n.startswith("model.layers.")]
    assert numbers == sorted(numbers)  # layer 2 before layer 10
    tab.run(click.format(0))
    assert [v.splitlines()[0] for v in tab.run(cells.format(0))] == names[::-1]


def test_searching(tab: chromium.Browser, big_page: Path) -> None:
    opened(tab, big_page)
    type_in = (
        "(i => {{i.value = {!r}; i.dispatchEvent(new Event('input'))}})(document.querySelector('input[type=search]'))"
    )
    shown = "[...document.querySelectorAll('#weight-table tbody tr')].filter(r => r.checkVisibility()).length"
    for words, count in (
        ("mxfp4", 72),
        ("LAYERS.7. self_attn", 9),
        ("no such weight", 0),
        ("model-00003-of", None),
        ("", 615),
    ):
        tab.run(type_in.format(words))
        found = tab.run(shown)
        assert count is None or found == count, words
        assert tab.run("document.getElementById('weight-table-count').innerText") == f"{found} of 615"
    tab.run(type_in.format("model-00003-of"))
    assert 0 < tab.run(shown) < 615


# --- how it looks ---


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(tab: chromium.Browser, big_page: Path, scheme: str) -> None:
    """Text 4.5 and more on what it stands on, marks 3 and more on the page: WCAG 2.2, AA."""
    opened(tab, big_page)
    tab.media(scheme)
    names = (
        "bg",
        "card",
        "text",
        "muted",
        "accent",
        "error",
        "warning",
        "info",
        "good",
        "mark",
        *(f"t{n}" for n in range(8)),
    )
    found: dict[str, list[float]] = tab.run(
        f"(e => {{document.body.append(e); return Object.fromEntries({json.dumps(names)}.map(n => "
        "{e.style.color = `var(--${n})`; return [n, getComputedStyle(e).color.match(/[0-9.]+/g).map(Number)]}))})"
        "(document.createElement('i'))"
    )
    dark = scheme == "dark"
    assert (contrast(found["bg"], [0, 0, 0]) < 1.5) == dark  # the scheme was taken
    for name in ("text", "muted", "accent", "error", "warning", "info", "good"):
        for ground in ("bg", "card"):
            assert contrast(found[name], found[ground]) >= 4.5, (name, ground)
    for n in range(8):
        assert contrast(found[f"t{n}"], [255, 255, 255]) >= 4.5
        assert contrast(found[f"t{n}"], found["bg"]) >= 3
    assert contrast(found["mark"], found["bg"]) >= 3
    drawn = tab.run("getComputedStyle(document.querySelector('#bytes .tiles path')).fill.match(/[0-9.]+/g).map(Number)")
    assert drawn in [found[f"t{n}"] for n in range(8)]


def test_on_paper_it_is_light(tab: chromium.Browser, big_page: Path) -> None:
    opened(tab, big_page)
    tab.media("dark", "print")
    assert tab.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert tab.run("getComputedStyle(document.querySelector('.scroll')).overflow") == "visible"


@pytest.mark.parametrize("width", [360, 800, 1300])
def test_nothing_is_wider_than_the_window(tab: chromium.Browser, big_page: Path, width: int) -> None:
    opened(tab, big_page)
    tab.window(width, 900)
    try:
        assert tab.run("document.documentElement.scrollWidth") <= width
        shown = tab.run("['.wide', '.narrow'].map(c => document.querySelector(`#bytes ${c}`).checkVisibility())")
        assert shown == [width > 736, width <= 736]
    finally:
        tab.window(1300, 900)


def test_without_scripts_it_is_whole(tab: chromium.Browser, big_page: Path) -> None:
    """Every drawing and table is there, and nothing that would do nothing."""
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        opened(tab, big_page)
        seen = "[...document.querySelectorAll('%s')].map(e => e.checkVisibility())"
        assert tab.run(seen % "#scales .map svg") == [True, True]
        assert not any(tab.run(seen % "select, input"))
        assert tab.run("document.querySelectorAll('#weight-table tbody tr').length") == 615
        assert tab.run("document.querySelector('#scales-0 figcaption + .controls').innerText").startswith(
            "mean exponent"
        )
    finally:
        tab.call("Emulation.setScriptExecutionDisabled", value=False)


def test_semantics(big: Inspection) -> None:
    seen = Tags(inspection_page(big)).seen
    ids = [a["id"] for _, a in seen if "id" in a]
    assert len(ids) == len(set(ids))
    assert [tag for tag, _ in seen].count("table") == [tag for tag, _ in seen].count("caption") > 3
    assert all(a.get("scope") in ("col", "row") for tag, a in seen if tag == "th")
    assert all(a.get("role") == "img" and a.get("aria-label") for tag, a in seen if tag == "svg")
    for tag, attributes in seen:
        for name in ("aria-labelledby", "aria-controls", "aria-describedby"):
            assert attributes.get(name) is None or attributes[name] in ids, (tag, name)
    assert ("html", {"lang": "en"}) in seen


# --- what a hostile checkpoint may try ---


def hostile() -> Inspection:
    """The tiny fixture with hostile words wherever a file's words may stand."""
    report = tiny()
    names = iter(HOSTILE * 100)
    tensors = []
    for n, t in enumerate(report.tensors):
        stored = tuple(replace(s, name=next(names), file=next(names), dtype=next(names)) for s in t.stored)
        renamed = replace(t, name=f"model.layers.{n % 4}.{next(names)}", layer=n % 4, stored=stored)
        words = {"part": next(names), "purpose": next(names), "format": next(names), "packing": next(names)}
        tensors.append(replace(renamed, **words))
    s = report.summary
    assert report.scales is not None and s.fingerprint is not None
    scales = tuple(
        replace(
            x, tensor=f"model.layers.{n % 4}.{next(names)}", format=next(names), element=next(names), part=next(names)
        )
        for n, x in enumerate(report.scales)
    )
    fingerprint = FingerprintReport((next(names),), next(names), 1, 1, False)
    codes = tuple(
        CodeReport(next(names), next(names), 0, 160, (10,) * 16, 20, 10, 0, 0, (1,) * 8, fingerprint) for _ in HOSTILE
    )
    summary = replace(
        s, model_type=next(names), architecture=next(names), declared=next(names), chat_template=next(names),
        file_type=next(names), fingerprint=fingerprint, rope=replace(s.rope, type=next(names)),
        vocabulary=replace(s.vocabulary, tokenizer=next(names)),
        formats=tuple(replace(f, format=next(names), packing=next(names)) for f in s.formats),
        expert_layout=tuple(replace(x, words=next(names), formats=(next(names),), order=next(names))
                            for x in s.expert_layout),
    )  # fmt: skip
    return replace(
        report, source="/".join(HOSTILE), arch=HOSTILE[0], dialect=HOSTILE[1], container=HOSTILE[2], summary=summary,
        tensors=tuple(tensors), scales=scales, codes=codes, notes=HOSTILE, problems=HOSTILE,
        findings=tuple(Finding("error", name, name, name, name, name) for name in HOSTILE),
        files=tuple(replace(f, name=next(names)) for f in report.files),
    )  # fmt: skip


def test_names_of_hostile_files_inject_nothing(tab: chromium.Browser, tmp_path: Path) -> None:
    report = hostile()
    path = written(report, tmp_path / "hostile.html")
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
    shapes = Tags(path.read_text("utf-8")).seen
    assert {tag for tag, _ in shapes} <= {tag for tag, _ in Tags(inspection_page(tiny())).seen} | {"b", "li"}


def test_the_policy_stops_what_would_get_through(tab: chromium.Browser, tmp_path: Path) -> None:
    """Were a name ever not escaped, no script, handler or request of it would run."""
    path = tmp_path / "page.html"
    injected = (
        "<script>window.hit=1</script><img src=https://example.com/x onerror=window.hit=2><b onclick=window.hit=3>x</b>"
    )
    write_page(path, page("a page", "", [Section("x", "X", injected)]))
    tab.open(path)
    tab.run("document.querySelector('b').click()")
    assert tab.run("window.hit") is None
    assert any("Content Security Policy" in line for line in tab.complaints)


def test_nothing_is_loaded_from_anywhere(big_page: Path) -> None:
    text = big_page.read_text("utf-8")
    script = (Path(ckpttool.__file__).parent / "render" / "page.js").read_text("utf-8")
    assert "http://www.w3.org/2000/svg" in script  # a name, not an address: the only one
    assert re.findall(r"(?:https?:)?//[a-z0-9][^\s\"'<]*", text.replace(script, "")) == []
    assert not re.findall(r"@import|url\(|\bsrc=|<link", text)


def test_a_drawing_holds_marks_alone() -> None:
    for bad in (
        '<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>',
        '<svg xmlns="http://www.w3.org/2000/svg"><path onload="1"/></svg>',
        '<svg xmlns="http://www.w3.org/2000/svg"><image href="x"/></svg>',
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"><g xlink:href="x"/></svg>',
        '<svg xmlns="http://www.w3.org/2000/svg"><foreignObject/></svg>',
        '<svg xmlns="http://www.w3.org/2000/svg"><path style="fill:url(http://x)"/></svg>',
    ):
        with pytest.raises(ValueError, match="a chart holds"):
            charts._checked(bad, "x")


# --- checkpoints of other kinds ---


@pytest.mark.parametrize("source", ["hf", "parent", "hf-bf16", "openai", "unsloth", "gguf/tiny-gpt-oss-q4_k_m.gguf"])
def test_every_dialect_has_its_page(tab: chromium.Browser, tmp_path: Path, source: str) -> None:
    report = tiny(source)
    opened(tab, written(report, tmp_path / "page.html"))
    assert tab.run("document.querySelectorAll('#bytes .wide .tiles path').length") > 10
    assert tab.run("document.querySelectorAll('#weight-table tbody tr').length") == len(report.tensors)
    swatches = tab.run("[...document.querySelectorAll('#bytes .legend li')].map(e => e.innerText.trim())")
    assert sorted(swatches) == sorted({t.format for t in report.tensors})


def test_without_scales_and_with_nothing_known(tab: chromium.Browser, tmp_path: Path) -> None:
    report = ckpttool.inspect(FIXTURES / "formats" / "modelopt-nvfp4")
    assert report.scales is None
    opened(tab, written(report, tmp_path / "page.html"))
    assert not tab.run("!!document.querySelector('#scales')")
    opened(tab, written(replace(report, tensors=(), files=(), scales=()), tmp_path / "page.html"))


def test_experts_one_by_one_are_folded(big: Inspection) -> None:
    first = next(t for t in big.tensors if t.format == "MXFP4")
    rows = tuple(
        replace(first, name=f"model.layers.{layer}.mlp.experts.{e}.up_proj.weight", layer=layer, expert=e, nbytes=1000,
                parameters=2000, shape=(40, 50))
        for layer in range(61) for e in range(256)
    )  # fmt: skip
    other = replace(first, name="model.norm.weight", layer=None, expert=None)
    assert len(rows) > MOST_ROWS
    text = inspection_page(replace(big, tensors=(*rows, other), scales=None))
    assert text.count("model.layers.60.mlp.experts.*.up_proj.weight") == 1
    body = re.search(r'<table id="weight-table".*?</table>', text, re.DOTALL)
    assert body is not None and body[0].count("<tr>") == 1 + 61 + 1
    assert "256,000" in body[0] and "512,000" in body[0]
    assert len(text) < 400_000


def test_many_findings_unfold(big: Inspection) -> None:
    findings = tuple(Finding("warning", "x", f"w{n}", None, "is odd", None) for n in range(300))
    findings += (Finding("error", "y", "last", None, "is broken", None),)
    text = inspection_page(replace(big, findings=findings, scales=None))
    first, rest = re.findall(r'<ul class="findings">(.*?)</ul>', text)
    assert first.startswith('<li class="error"><b>error</b><code>last</code>: is broken')
    assert (first.count("<li"), rest.count("<li")) == (12, 188)
    assert "<summary>188 more</summary>" in text
    assert "And 101 more" in text


def test_too_many_rows_are_counted(big: Inspection) -> None:
    first = big.tensors[0]
    rows = tuple(replace(first, name=f"w{n}", layer=None, expert=None) for n in range(MOST_ROWS + 7))
    assert "And 7 more" in inspection_page(replace(big, tensors=rows, scales=None))


def test_size(big_page: Path, tmp_path: Path) -> None:
    assert big_page.stat().st_size < 1_500_000
    assert written(tiny(), tmp_path / "tiny.html").stat().st_size < 150_000


def test_the_same_report_gives_the_same_page(big: Inspection) -> None:
    assert inspection_page(big) == inspection_page(big)


def test_words() -> None:
    assert layers(range(36)) == "0\u201335 (36)"
    assert layers(range(0, 36, 2)) == "0, 2 \u2026 34 (18)"
    assert layers([3, 7]) == "3, 7"
    assert layers([0, 1, 2, 5, 9, 10]) == "0\u20132, 5, 9\u201310 (6)"
    assert [short(n) for n in (None, 999, 20_000, 3_689_760, 116_829_156_672)] == [
        "unknown", "999", "20 k", "3.69 M", "116.8 B",
    ]  # fmt: skip


# --- the command ---


def damaged(folder: Path) -> Path:
    """The tiny fixture, but the scales of layer 1's expert 2 are 16 times too small in down_proj."""
    shutil.copytree(TINY / "hf", folder)
    for file in folder.glob("*.safetensors"):
        data = bytearray(file.read_bytes())
        (length,) = struct.unpack_from("<Q", data)
        row = json.loads(data[8 : 8 + length]).get("model.layers.1.mlp.experts.down_proj_scales")
        if row:
            start, end = (8 + length + n for n in row["data_offsets"])
            each = (end - start) // row["shape"][0]
            scales = slice(start + 2 * each, start + 3 * each)
            data[scales] = bytes(max(0, byte - 4) for byte in data[scales])
            file.write_bytes(data)
            return folder
    raise AssertionError("no such tensor")


def test_the_command_writes_the_page(tab: chromium.Browser, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    result = run("inspect", damaged(tmp_path / "model"), "--html", path, "--codes")
    assert result.code == 0
    assert result.out.splitlines()[-1] == f"page: {path}"
    opened(tab, path)
    assert tab.run("document.title") == "model"
    assert tab.run("document.querySelectorAll('#scales .cells path').length") == 2 * 4 * 4
    tab.run(CHOOSE % (1, "#scales-0 select"))
    fills = tab.run("[...document.querySelectorAll('#scales-0 .cells path')].map(p => p.getAttribute('fill'))")
    assert [divmod(n, 4) for n, fill in enumerate(fills) if fill == "var(--d0)"] == [(1, 2)]
    assert tab.run("document.querySelectorAll('#codes .bars path').length") == 2 * 16
    odd = tab.run(
        "[...document.querySelectorAll('#odd-experts tbody tr')].map(r => r.innerText.split(/\\s+/).slice(0, 2))"
    )
    assert odd == [["1", "2"]]
    assert "layer 1, expert 2" in tab.run("document.querySelector('.findings').innerText")


def test_json_stays_alone(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    result = run("inspect", TINY / "gguf" / "tiny-gpt-oss-auto.gguf", "--html", path, "--json")
    assert result.code == 0
    assert len(result.document["scales"]) == 12
    assert path.stat().st_size > 50_000


def test_what_cannot_be_written_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes.html").write_text("<h1>mine</h1>", "utf-8")
    nothing = tmp_path / "no such checkpoint"
    refused = run("inspect", nothing, "--html", tmp_path / "notes.html", "--json")
    assert (refused.code, refused.document["errors"][0]["file"]) == (4, str(tmp_path / "notes.html"))
    assert (tmp_path / "notes.html").read_text("utf-8") == "<h1>mine</h1>"
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    refused = run("inspect", nothing, "--html", tmp_path / "page.html", "--json")
    assert (refused.code, refused.document["errors"][0]["hint"]) == (2, "pip install 'ckpttool[report]'")


def test_a_checkpoint_of_zeros(tab: chromium.Browser, tmp_path: Path) -> None:
    """Files that are holes: nothing to draw a map of, and it says so."""
    source = write_headers(tmp_path / "20b", "20b")
    report = ckpttool.inspect(source)
    zero = ScaleCounts(None, 64, -127, -127, -127.0, 64, 64, 0, 0, 0, Histogram(-127, (64,)))
    scales = tuple(
        ScaleReport(t.name, t.part, t.layer, t.format, "E8M0", zero, (replace(zero, expert=0),), None, None)
        for t in report.tensors if t.format == "MXFP4"
    )  # fmt: skip
    opened(tab, written(replace(report, scales=scales), tmp_path / "page.html"))
    assert "Not drawn: 2 more of the kinds of weights" in tab.run("document.querySelector('#scales').innerText")


# --- writing it ---


def test_a_page_replaces_a_page_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_page(path, page("one", "", []))
    write_page(path, page("two", "", []))
    assert "<title>two</title>" in path.read_text("utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
    other = tmp_path / "model.gguf"
    other.write_bytes(b"GGUF")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for target in (other, tmp_path, tmp_path / "link"):
        for write in (check_place, lambda p: write_page(p, page("three", "", []))):
            with pytest.raises(LocalIOError, match="no page of ckpttool's"):
                write(target)
    check_place(path)
    check_place(tmp_path / "new.html")
    with pytest.raises(LocalIOError, match="no such folder"):
        check_place(tmp_path / "no" / "page.html")
    assert other.read_bytes() == b"GGUF"
    with pytest.raises(LocalIOError, match="cannot be written"):
        write_page(tmp_path / "no" / "page.html", page("four", "", []))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "model.gguf", "page.html"]


def test_a_write_that_fails_leaves_the_old_page(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_page(path, page("one", "", []))
    with pytest.raises(UnicodeEncodeError):
        write_page(path, "\ud800")
    assert "<title>one</title>" in path.read_text("utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_the_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    for draw in (lambda: inspection_page(tiny()), lambda: check_place(tmp_path / "page.html")):
        with pytest.raises(UsageError) as caught:
            draw()
        assert caught.value.hint == "pip install 'ckpttool[report]'"


def test_the_pictures_are_those_of_the_manifest() -> None:
    files = {p.relative_to(FIXTURES).as_posix() for p in (FIXTURES / "report").iterdir()}
    assert files == MANIFEST["report"].keys()
    for path, entry in MANIFEST["report"].items():
        data = (FIXTURES / path).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"])
        assert data.startswith(b"\x89PNG") and len(data) <= 300_000
