"""Round trips: the words of --via, what formats promise, what is found, what is left behind, and how it is shown."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forward_runs import FIXTURES, TINY
from jsonschema import Draft202012Validator

from ckpttool.checkpoint import Checkpoint, open_checkpoint
from ckpttool.codecs import reference
from ckpttool.codecs.formats import E2M1_VALUES, RECIPES
from ckpttool.comparison.parts import PartComparison, Status
from ckpttool.errors import InputError, LocalIOError, UsageError
from ckpttool.planner import make_plan
from ckpttool.render.round_trips import show_round_trips
from ckpttool.render.round_trips_csv import COLUMNS, check_csv_place, csv_text, save_round_trips_csv
from ckpttool.reports import document
from ckpttool.target import target
from ckpttool.units import size
from ckpttool.validator import report as validation
from ckpttool.validator import round_trips as module
from ckpttool.validator.claims import ValuesFound
from ckpttool.validator.failures import Failure
from ckpttool.validator.report import PartResult
from ckpttool.validator.round_trip_claims import judge_round_trip
from ckpttool.validator.round_trip_report import RoundTrip, RoundTrips
from ckpttool.validator.round_trips import round_trips
from ckpttool.validator.vias import FORMS, WITH_RECIPE, own_form, parse_via, promise, way_back

SCHEMA = json.loads((Path(__file__).parents[1] / "schemas" / "round_trips.v1.json").read_text("utf-8"))
PARENT = TINY / "parent"
HELDOUT = FIXTURES / "heldout.txt"


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where round trips are made; nothing is left there, whatever a test does."""
    place = tmp_path / "scratch"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield place
    assert not list(place.iterdir())


# The words


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_a_legal_target(form: str, tmp_path: Path) -> None:
    target(tmp_path / "x", **parse_via(form).options)
    for recipe in RECIPES if form in WITH_RECIPE else ():
        via = parse_via(f"{form}:{recipe}")
        assert (via.form, via.recipe) == (form, recipe)
        assert target(tmp_path / "x", **via.options).recipe.name == recipe


@pytest.mark.parametrize("form", FORMS)
def test_a_recipe_goes_with_forms_that_quantize_to_mxfp4(form: str, tmp_path: Path) -> None:
    plan = make_plan(open_checkpoint(PARENT), target(tmp_path / "x", **parse_via(form).options))
    assert any(step.recipe for step in plan.steps) == (form in WITH_RECIPE)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", ["unknown", "gguf:q8_0", "mxfp4"]),
        ("q8_0", ["unknown", "gguf:q8_0"]),
        ("gguf:q4_k", ["unknown", "gguf:q8_0"]),
        ("mxfp4:", ["nothing is no recipe", *RECIPES]),
        ("mxfp4:fast", ["fast is no recipe", *RECIPES]),
        ("gguf:mxfp4:fast", ["fast is no recipe"]),
        ("bf16:ocp", ["bf16 takes no recipe", *WITH_RECIPE]),
    ],
)
def test_what_is_no_way_is_refused_with_those_that_are(text: str, told: list[str]) -> None:
    with pytest.raises(UsageError) as e:
        parse_via(text)
    assert e.value.exit_code == 2
    assert all(word in str(e.value) for word in told)


SOURCES = {
    "parent": {"to": "bf16", "dtype": "bf16", "experts": "bf16"},
    "hf": {"to": "mxfp4", "dtype": "bf16", "experts": "mxfp4"},
    "openai": {"to": "openai", "experts": "mxfp4"},
    "unsloth": {"to": "bf16", "dtype": "bf16", "experts": "bf16"},
    "gguf/tiny-gpt-oss-auto.gguf": {"to": "gguf", "outtype": "bf16", "experts": "mxfp4"},
    "gguf/tiny-gpt-oss-q8_0.gguf": {"to": "gguf", "outtype": "q8_0", "experts": "q8_0"},
    "gguf/tiny-gpt-oss-mxfp4_moe.gguf": {"to": "gguf", "outtype": "q8_0", "experts": "mxfp4"},
    "gguf/tiny-gpt-oss-q4_k_m.gguf": {"to": "gguf"},
}


@pytest.mark.parametrize("source", SOURCES)
def test_back_to_the_form_of_the_source(source: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(TINY / source)
    options = own_form(checkpoint)
    assert options == SOURCES[source]
    plan = make_plan(checkpoint, target(tmp_path / "x", **options))
    assert all(s.source.codec.format == s.target.codec.format for s in plan.steps)


def test_then_keeps_the_experts_that_were_made(tmp_path: Path) -> None:
    source = open_checkpoint(TINY / "hf")
    for via, experts in (("bf16", "bf16"), ("mxfp4", "mxfp4")):
        there = make_plan(source, target(tmp_path / "x", **parse_via(via).options))
        assert way_back(source, "gguf", there) == {"to": "gguf", "experts": experts}
        assert way_back(source, "bf16", there) == {"to": "bf16"}
        with pytest.raises(UsageError, match="--then openai: unknown; choose one of bf16, gguf"):
            way_back(source, "openai", there)


# What formats promise


@pytest.mark.parametrize(
    ("way", "kept"),
    [
        ("BF16 BF16 BF16", "bytes"),
        ("MXFP4 MXFP4 MXFP4", "bytes"),
        ("BF16 MXFP4 BF16", "lossy"),
        ("BF16 F32 BF16", "values"),
        ("BF16 F16 BF16", "lossy"),
        ("BF16 Q8_0 BF16", "lossy"),
        ("BF16 BF16 F32", "values"),
        ("F32 F32 BF16", "lossy"),
        ("F32 BF16 F32", "lossy"),
        ("F16 F32 F16", "values"),
        ("MXFP4 BF16 MXFP4", "values"),
        ("MXFP4 F16 MXFP4", "lossy"),
        ("MXFP4 MXFP4 BF16", "values"),
        ("Q8_0 F32 Q8_0", "lossy"),
        ("Q8_0 Q8_0 F32", "values"),
        ("Q4_K F32 F32", "values"),
    ],
)
def test_what_a_way_promises(way: str, kept: str) -> None:
    assert promise(*way.split()) == kept


def lost(recipe: str) -> set[int]:
    """The scale bytes of blocks that come back from BF16 with other values: every scale, every largest code."""
    magnitudes = np.array(E2M1_VALUES)
    out = set()
    for scale in range(255):
        for largest in range(8):
            codes = np.resize(np.arange(largest + 1), 32)
            exact = np.ldexp(magnitudes[codes], scale - 127) * np.resize([1, -1], 32)
            if np.abs(exact).max() >= 2.0**128:
                continue  # no format holds it: converting stops
            values = exact.astype(np.float32)
            made, scales = reference.quantize(values, RECIPES[recipe])
            if not np.array_equal(reference.dequantize(made, scales), values):
                out.add(scale)
    return out


@pytest.mark.parametrize("recipe", RECIPES)
def test_mxfp4_comes_back_by_every_recipe(recipe: str) -> None:
    """As `vias` says it: but for scale byte 0 where the rule is rceil."""
    assert lost(recipe) == ({0} if RECIPES[recipe].scale == "rceil" else set())


# What is found


def trip(source: Path, via: str, **options: Any) -> RoundTrip:
    (row,) = round_trips(source, [via], **options).trips
    return row


def test_mxfp4_and_back_is_within_budget_and_figures_are_of_the_whole() -> None:
    report = round_trips(PARENT, ["mxfp4:ocp", "bf16"], text=HELDOUT, tokens=1024)
    assert (report.verdict, report.ok, report.then, report.level) == ("within budget", True, None, "forward")
    ocp, bf16 = report.trips
    assert (ocp.via, ocp.recipe, ocp.back_to) == ("mxfp4:ocp", "ocp", "hf-bf16")
    assert (ocp.verdict, ocp.fidelity, ocp.there, ocp.back) == ("within budget", "lossy", "lossy", "values")
    assert ocp.proofs == {"bytes": 67, "recipe ocp": 12}
    assert any("MXFP4" in what for what in ocp.decided)
    assert ocp.sqnr is not None and 18 < ocp.sqnr < 19
    assert ocp.kl_mean is not None and 0.005 < ocp.kl_mean < 0.05
    assert ocp.top1 is not None and 0.85 < ocp.top1 < 1
    assert ocp.ppl_reference is not None and ocp.ppl_candidate is not None
    assert ocp.ppl_ratio == pytest.approx(ocp.ppl_candidate / ocp.ppl_reference)
    assert ocp.noise_kl_mean is not None and ocp.noise_kl_mean < 1e-9
    assert ocp.bits == pytest.approx(8 * ocp.nbytes / open_checkpoint(PARENT).parameters)
    assert (bf16.verdict, bf16.fidelity, bf16.recipe, bf16.kl_max, bf16.ppl_ratio) == ("exact", "bytes", None, 0, 1)
    assert bf16.ppl_reference == ocp.ppl_reference


def test_the_figures_are_those_of_validate_against_what_was_made(tmp_path: Path) -> None:
    """MXFP4 decodes exactly, so there and back costs what there costs."""
    import ckpttool
    from ckpttool.validator.validation import validate

    ckpttool.convert(PARENT, tmp_path / "mxfp4", to="mxfp4", recipe="rceil", device="cpu")
    direct = validate(PARENT, tmp_path / "mxfp4", text=HELDOUT, tokens=512).metrics
    row = trip(PARENT, "mxfp4:rceil", text=HELDOUT, tokens=512)
    assert direct is not None
    for name in ("kl_mean", "kl_p99", "kl_max", "top1", "ppl_reference", "ppl_candidate", "ppl_ratio"):
        assert getattr(row, name) == getattr(direct, name), name


@pytest.mark.parametrize(
    ("source", "via", "then", "dialect", "fidelity"),
    [
        ("hf", "bf16", None, "hf", "bytes"),
        ("hf", "gguf", "bf16", "hf-bf16", "values"),
        ("hf", "openai", None, "hf", "bytes"),
        ("openai", "bf16", None, "openai", "bytes"),
        ("unsloth", "bf16", None, "hf-bf16", "bytes"),
        ("parent", "bf16", "gguf", "gguf", "values"),
        ("gguf/tiny-gpt-oss-auto.gguf", "mxfp4", None, "gguf", "bytes"),
        ("gguf/split", "bf16", None, "gguf", "bytes"),
        ("gguf/tiny-gpt-oss-q8_0.gguf", "gguf", None, "gguf", "bytes"),
    ],
)
def test_what_loses_nothing_is_exact(source: str, via: str, then: str | None, dialect: str, fidelity: str) -> None:
    row = trip(TINY / source, via, then=then, level="values")
    assert (row.verdict, row.back_to, row.fidelity, row.failures) == ("exact", dialect, fidelity, ())


@pytest.mark.parametrize(
    ("source", "via", "then", "whose"),
    [
        ("parent", "gguf:q8_0", None, "Q8_0"),
        ("parent", "gguf:mxfp4", "bf16", "MXFP4"),
        ("parent", "gguf:mxfp4_moe:llama.cpp", None, "MXFP4"),
        ("hf", "gguf:q8_0", None, "Q8_0"),
        ("gguf/tiny-gpt-oss-q4_k_m.gguf", "bf16", None, "BF16"),
    ],
)
def test_what_loses_is_held_to_the_budget_of_the_format_that_does(
    source: str, via: str, then: str | None, whose: str
) -> None:
    row = trip(TINY / source, via, then=then, level="values")
    assert (row.verdict, row.fidelity, row.failures) == ("within budget", "lossy", ())
    assert whose in row.decided[0]
    assert row.sqnr is not None


def test_a_limit_that_is_not_kept_fails_that_way_alone() -> None:
    report = round_trips(PARENT, ["mxfp4", "gguf:q8_0"], level="values", min_sqnr=30)
    assert (report.verdict, report.ok) == ("failed", False)
    mxfp4, q8_0 = report.trips
    assert (mxfp4.verdict, q8_0.verdict) == ("failed", "within budget")
    assert {f.part for f in mxfp4.failures} >= {"layer.0.gate", "layer.3.down"}
    assert len({f.part for f in mxfp4.failures}) == len(mxfp4.failures)
    assert all("30 dB" in f.what for f in mxfp4.failures)


def test_a_wrong_conversion_fails_and_says_on_which_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways make what they should, but for one expert of one part: on the way back, where values are promised."""
    made = module._made

    def spoiled(plan: Any, limits: Any) -> Checkpoint:
        out = made(plan, limits)
        if plan.place.path.name == "back":
            (extent,) = out.extents["layer.2.up"]
            (stored,) = extent.weight.stored
            path = out.file_paths[stored.file]
            status = path.stat()
            with path.open("r+b") as f:
                f.seek(stored.offset + stored.nbytes - 2)  # the last value is up's, of the last expert
                f.write(b"\x80\x3f")
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as if it had been made so
        return out

    monkeypatch.setattr(module, "_made", spoiled)
    row = trip(PARENT, "mxfp4", level="values")
    assert row.verdict == "failed"
    assert [(f.part, f.layer) for f in row.failures] == [("layer.2.up", 2)]
    assert "expert 3, row 191, column 255" in row.failures[0].what and "on the way back" in row.failures[0].what
    assert (row.there, row.back) == ("lossy", "lossy")


def test_structure_alone() -> None:
    row = trip(PARENT, "gguf", level="structure")
    assert (row.verdict, row.fidelity, row.there, row.proofs, row.sqnr, row.kl_mean) == (
        "within budget", None, None, {}, None, None,
    )  # fmt: skip


# What is judged, on rows made up


def row(part: str, status: str, formats: str, **figures: Any) -> PartComparison:
    a, b = formats.split()
    return PartComparison(
        part, Status(status), (4, 64), (4, 64), a, b, differing=figures.pop("differing", 0), **figures
    )


def found(*rows: PartComparison, failures: tuple[Failure, ...] = ()) -> ValuesFound:
    fidelity = max((str(r.status) for r in rows), key=["bytes", "values", "lossy"].index)
    return ValuesFound(tuple(PartResult(r, None, None) for r in rows), failures, fidelity, ())


LOST: dict[str, Any] = {"differing": 9, "nonfinite": 0}


def test_promised_values_that_did_not_come_back() -> None:
    there, back = found(row("layer.1.up", "values", "MXFP4 BF16")), found(row("layer.1.up", "lossy", "BF16 MXFP4"))
    out = judge_round_trip([row("layer.1.up", "lossy", "MXFP4 MXFP4", sqnr=90.0, **LOST)], there, back)
    assert [(f.part, f.layer, f.what) for f in out.failures] == [("layer.1.up", 1, "9 values did not come back")]
    assert (out.parts[0].claim, out.parts[0].proof, out.fidelity) == ("values", None, "lossy")


def test_promised_bytes_that_did_not_come_back() -> None:
    one = found(row("norm", "bytes", "F32 F32"))
    out = judge_round_trip([row("norm", "values", "F32 F32")], one, one)
    assert [f.what for f in out.failures] == ["came back with the same values in other bytes"]


@pytest.mark.parametrize(("sqnr", "wrong"), [(16.0, []), (14.0, ["SQNR 14.0 dB is below the 15 dB of MXFP4"])])
def test_loss_is_judged_in_the_name_of_the_format_that_lost(sqnr: float, wrong: list[str]) -> None:
    there, back = found(row("layer.1.up", "lossy", "BF16 MXFP4")), found(row("layer.1.up", "values", "MXFP4 BF16"))
    out = judge_round_trip([row("layer.1.up", "lossy", "BF16 BF16", sqnr=sqnr, **LOST)], there, back)
    assert [f.what for f in out.failures] == wrong
    assert (out.parts[0].compared.format_b, out.parts[0].proof) == ("MXFP4", None if wrong else "budget")


def test_what_a_conversion_failed_in_is_told_once() -> None:
    failure = Failure("layer.1.up", 1, "3 values differ", "values")
    there = found(row("layer.1.up", "lossy", "BF16 MXFP4"))
    back = found(row("layer.1.up", "lossy", "MXFP4 BF16"), failures=(failure,))
    out = judge_round_trip([row("layer.1.up", "lossy", "BF16 BF16", sqnr=1.0, **LOST)], there, back)
    assert [f.what for f in out.failures] == ["3 values differ (on the way back)"]


# The temporary place


def test_too_little_room_is_said_before_anything_is_made(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(scratch)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=11_000_000))
    monkeypatch.setattr(module, "execute", None)
    with pytest.raises(LocalIOError) as e:
        round_trips(PARENT, ["mxfp4", "bf16"])
    assert e.value.exit_code == 4
    there = make_plan(open_checkpoint(PARENT), target(scratch / "x", to="bf16"))
    for word in (str(scratch), "11 MB", f"by bf16 needs {size(2 * there.nbytes)}", "TMPDIR"):
        assert word in str(e.value), str(e.value)


def test_what_is_said_to_be_needed_is_what_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    needed: list[int] = []
    written: list[int] = []
    judge, made = module._require_room, module._made

    def asked(trips: Any, folder: Path) -> None:
        needed.extend(t.nbytes for t in trips)
        judge(trips, folder)

    def counted(plan: Any, limits: Any) -> Checkpoint:
        written.append(plan.nbytes)
        return made(plan, limits)

    monkeypatch.setattr(module, "_require_room", asked)
    monkeypatch.setattr(module, "_made", counted)
    for source, via, then in (("parent", "mxfp4", None), ("hf", "bf16", "gguf"), ("hf", "gguf:q8_0", None)):
        needed.clear()
        written.clear()
        trip(TINY / source, via, then=then, level="structure")
        assert needed[0] == pytest.approx(sum(written), rel=0.01)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device"), InputError("x")])
@pytest.mark.parametrize("stage", ["execute", "judge_values", "judge_round_trip"])
def test_nothing_is_left_behind(stage: str, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fixture `scratch` looks."""
    whole = getattr(module, stage)
    calls: list[int] = []

    def failing(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == (1 if stage == "judge_round_trip" else 2):
            assert list(Path(tempfile.gettempdir()).rglob("*.safetensors"))
            raise error
        return whole(*args, **options)

    monkeypatch.setattr(module, stage, failing)
    with pytest.raises(LocalIOError if isinstance(error, OSError) else type(error)):
        round_trips(PARENT, ["mxfp4"], level="values")


def test_what_was_made_there_goes_before_the_forward_passes(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[str]] = []
    run = module.Validator.run

    def looking(self: Any, **options: Any) -> validation.Validation:
        seen.append({p.name for p in scratch.glob("*/0/*")})
        return run(self, **options)

    monkeypatch.setattr(module.Validator, "run", looking)
    trip(PARENT, "mxfp4", level="values")
    assert seen == [{"back"}]


@pytest.mark.parametrize(
    ("vias", "options", "error", "told"),
    [
        ([], {}, UsageError, "--via mxfp4"),
        (["mxfp4", "fast"], {}, UsageError, "--via fast: unknown"),
        (["mxfp4"], {"then": "openai"}, UsageError, "--then openai: unknown"),
        (["mxfp4"], {"level": "all"}, UsageError, "--level all: unknown"),
        (["mxfp4"], {"device": "tpu"}, UsageError, "tpu"),
        (["mxfp4"], {"text": "nowhere.txt"}, InputError, "nowhere.txt"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_made(
    vias: list[str], options: dict[str, Any], error: type[Exception], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "execute", None)
    with pytest.raises(error, match=told):
        round_trips(PARENT, vias, **options)


def test_a_conversion_that_is_refused_is_refused_here() -> None:
    with pytest.raises(InputError, match="to quantize it again"):
        round_trips(TINY / "gguf" / "tiny-gpt-oss-q8_0.gguf", ["bf16", "mxfp4"], level="values")


def test_a_source_that_lacks_side_files_is_told_the_way_round() -> None:
    """`validate` has no --reference."""
    with pytest.raises(InputError, match=r"tokenizer.json") as raised:
        round_trips(TINY / "openai", ["gguf"], level="values")
    assert raised.value.hint == module.LACKS


# How it is shown


@pytest.fixture(scope="module")
def reports() -> dict[str, RoundTrips]:
    trips = round_trips(PARENT, ["mxfp4:llama.cpp", "gguf:q8_0", "bf16"], text=HELDOUT, tokens=512)
    worst = dataclasses.replace(
        trips.trips[0], verdict="failed", decided=("layer.0.gate: bad",),
        failures=(Failure("layer.0.gate", 0, "bad", "values"), Failure(None, None, "config: x; y", "structure")),
    )  # fmt: skip
    return {
        "good": trips,
        "bad": dataclasses.replace(trips, verdict="failed", trips=(worst, *trips.trips[1:])),
        "values": round_trips(PARENT, ["bf16"], then="gguf", level="values"),
    }


def test_documents_are_valid(reports: dict[str, RoundTrips]) -> None:
    for report in reports.values():
        Draft202012Validator(SCHEMA).validate(json.loads(json.dumps(document(report))))


@pytest.mark.parametrize(
    ("path", "report"),
    [
        ((), RoundTrips),
        (("$defs", "trip"), RoundTrip),
        (("$defs", "side"), validation.Side),
        (("$defs", "failure"), Failure),
    ],
)
def test_schema_and_report_have_the_same_fields(path: tuple[str, ...], report: type) -> None:
    schema: Any = SCHEMA
    for step in path:
        schema = schema[step]
    assert list(schema["properties"]) == [f.name for f in dataclasses.fields(report)] == schema["required"]


def test_a_field_more_or_less_is_invalid(reports: dict[str, RoundTrips]) -> None:
    good = json.loads(json.dumps(document(reports["bad"])))
    check = Draft202012Validator(SCHEMA)
    for path in ((), ("source",), ("trips", 0), ("trips", 0, "failures", 0)):
        for key in [*at(good, path), "surplus"]:
            changed = json.loads(json.dumps(good))
            inner = at(changed, path)
            if key in inner:
                del inner[key]
            else:
                inner[key] = 1
            assert not check.is_valid(changed), (path, key)
    for path, value in ((("verdict",), "good"), (("trips",), []), (("trips", 0, "top1"), 1.5), (("then",), "mxfp4")):
        changed = json.loads(json.dumps(good))
        at(changed, path[:-1])[path[-1]] = value
        assert not check.is_valid(changed), path


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


def test_the_table_says_the_verdict_first(reports: dict[str, RoundTrips], capsys: pytest.CaptureFixture[str]) -> None:
    show_round_trips(reports["good"], False)
    text = capsys.readouterr().out
    assert text.startswith("within budget: 3 round trips, 1 of them exact\n")
    assert str(PARENT) in text and "back to hf-bf16, the form of the source" in text
    lines = {line.split()[0]: line for line in text.splitlines() if line.split()}
    assert "perplexity ratio" in lines["via"]
    assert "within budget" in lines["mxfp4:llama.cpp"] and "exact" in lines["bf16"] and "100.00%" in lines["bf16"]
    show_round_trips(reports["bad"], False)
    text = capsys.readouterr().out
    assert text.startswith("failed: mxfp4:llama.cpp\n") and "\n  layer.0.gate: bad\n" in text
    show_round_trips(reports["values"], False)
    text = capsys.readouterr().out
    assert text.startswith("exact: 1 round trip") and "KL" not in text and "back to gguf\n" in text
    show_round_trips(reports["good"], True)
    assert json.loads(capsys.readouterr().out)["schema"] == "round_trips.v1"


def test_csv_keeps_every_digit(reports: dict[str, RoundTrips], tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    save_round_trips_csv(reports["bad"], path)
    rows = list(csv.DictReader(io.StringIO(path.read_text("utf-8"))))
    assert [r["via"] for r in rows] == ["mxfp4:llama.cpp", "gguf:q8_0", "bf16"]
    assert tuple(rows[0]) == COLUMNS == ("source", "then", *(f.name for f in dataclasses.fields(RoundTrip)))
    for told, t in zip(rows, reports["bad"].trips, strict=True):
        for f in dataclasses.fields(RoundTrip):
            value = getattr(t, f.name)
            if isinstance(value, float):
                assert float(told[f.name]) == value, f.name
            elif value is None:
                assert told[f.name] == ""
        assert told["source"] == str(PARENT)
    assert rows[0]["failures"] == "layer.0.gate: bad; config: x; y"
    assert [r["then"] for r in csv.DictReader(io.StringIO(csv_text(reports["values"])))] == ["gguf"]


def test_csv_replaces_its_like_and_nothing_else(reports: dict[str, RoundTrips], tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    save_round_trips_csv(reports["good"], path)
    check_csv_place(path)
    save_round_trips_csv(reports["values"], path)
    assert len(path.read_text("utf-8").splitlines()) == 2
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    for place in (other, tmp_path, tmp_path / "nowhere" / "t.csv"):
        with pytest.raises(LocalIOError):
            check_csv_place(place)
        with pytest.raises(LocalIOError):
            save_round_trips_csv(reports["good"], place)
    assert other.read_text() == "a,b\n1,2\n"
    assert {p.name for p in tmp_path.iterdir()} <= {"t.csv", "other.csv", "scratch"}
