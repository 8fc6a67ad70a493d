"""The text of inspect: a spec sheet, layers that are alike as one row, what differs in sight, on any terminal."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any
from unittest import mock

import builders
import numpy as np
import pytest
from builders import Model, Sizes, Tensor, Tensors
from commandline import run
from header_checkpoints import write_headers, write_safetensors

import ckpttool
from ckpttool.render import terminal
from ckpttool.render.fold import folded, ranges, short
from ckpttool.render.inspection_sheet import sheet

FIXTURES = Path(__file__).parents[1] / "fixtures" / "tiny-gpt-oss"
MODEL = Model(Sizes(layers=5, hidden=32, intermediate=64))


def rows(text: str) -> list[list[str]]:
    """The table of tensors, cell by cell."""
    lines = text.split("\ntensor ")[1].split("\n\n")[0].splitlines()[1:]
    return [re.split(r"  +", line.strip()) for line in lines]


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_headers(tmp_path_factory.mktemp("text") / "120b", "120b")


def test_the_biggest_model_fits_a_screen(big: Path) -> None:
    result = run("inspect", big)
    assert result.code == 0
    assert len(result.out.splitlines()) <= 50
    for said in (
        "116.8 B, 5.133 B active per token  (116,829,156,672; 5,132,849,472)", "65,248,815,744 bytes", "60.77 GiB",
        "4.47 bits per weight", "27.9 % of the 234 GB of BF16", "MXFP4 98.1 %, BF16 1.9 %", "15 shards, 687 tensors",
        "128 of 2,880, 4 a token, 98.1 % of the weights",
        "gate and up fused and interleaved, stacked, [out, in], with bias",
        "64 heads, 8 KV heads of 64, sliding 128 in 18 layers (0,2..34), full in 18 layers (1,3..35)",
        "theta 150,000, yarn x 32 of 4,096, betas 32 and 1, not truncated", "131,072 tokens", "swiglu limit 7",
        "bos 199998, eos 200002 199999 200012, pad 199999",
    ):  # fmt: skip
        assert said in result.out, said


def test_layers_alike_are_one_row(big: Path) -> None:
    found = rows(run("inspect", big).out)
    assert len(found) == 20
    assert found[0][0] == "model.embed_tokens.weight"
    assert found[-1][0] == "model.norm.weight"
    assert [
        "model.layers.{0-35}.self_attn.q_proj.weight",
        "x36",
        "4,096 x 2,880",
        "BF16",
        "16",
        "849 MB",
        "1.3 %",
    ] in found
    counts = [int(r[1][1:].replace(",", "")) if r[1].startswith("x") else 1 for r in found]
    assert sum(counts) == 36 * 17 + 3


def test_what_differs_has_a_row_of_its_own(tmp_path: Path) -> None:
    def wide(t: Tensors) -> None:
        name = "model.layers.3.self_attn.q_proj.weight"
        t[name] = Tensor("F32", builders.widened(t[name].array))

    found = rows(run("inspect", builders.write(MODEL, tmp_path / "a", "hf", change=wide)).out)
    q = {r[0]: r[1:4] for r in found if "q_proj.weight" in r[0]}
    assert q == {
        "model.layers.{0-2,4}.self_attn.q_proj.weight": ["x4", "128 x 32", "BF16"],
        "model.layers.3.self_attn.q_proj.weight": ["128 x 32", "F32", "32"],
    }


def test_experts_that_lie_one_by_one_are_one_row(tmp_path: Path) -> None:
    found = rows(run("inspect", builders.write(MODEL, tmp_path / "a", "unsloth")).out)
    names = [r[0] for r in found]
    assert "model.layers.{0-4}.mlp.experts.gate_up_projs.{0-2}.weight" in names
    assert [r[1] for r in found if r[0].endswith("gate_up_projs.{0-2}.weight")] == ["x15"]


def test_ranges() -> None:
    assert ranges([0, 1, 2, 3, 7]) == "0-3,7"
    assert ranges([5]) == "5"
    assert ranges([0, 2, 4, 6]) == "0,2..6"
    assert ranges([1, 3]) == "1,3"
    assert ranges([n for n in range(60) if n % 4 < 2]) == "0-1,4-5,8-9,12-13,..,56-57"


def test_folding_keeps_every_row() -> None:
    names = ["a.0.b", "a.1.b", "a.10.b", "a.x.b", "c", "c2", "a.0.b.3.d", "a.1.b.4.d"]
    groups = folded(names, lambda n: n, lambda n: 0)
    assert [(g.name, len(g.rows), g.odd) for g in groups] == [
        ("a.{0-1,10}.b", 3, False), ("a.x.b", 1, False), ("c", 1, False), ("c2", 1, False),
        ("a.{0-1}.b.{3-4}.d", 2, False),
    ]  # fmt: skip
    odd = folded(names[:3], lambda n: n, lambda n: n == "a.1.b")
    assert [(g.name, g.odd) for g in odd] == [("a.{0,10}.b", False), ("a.1.b", True)]
    assert short("model.layers.{0-3}.mlp") == "{0-3}.mlp"
    assert short("lm_head.weight") == "lm_head.weight"


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_lines_fit_the_terminal(columns: int, big: Path) -> None:
    """Colours are no columns; every name is whole."""
    out = _on_a_terminal(columns, "inspect", big)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out)
    assert max(map(len, plain.splitlines())) <= max(columns, len(str(big)))
    if columns >= 80:
        assert "{0-35}.mlp.experts.gate_up_proj_bias" in plain
        assert "x36" in plain


def _on_a_terminal(columns: int, *argv: Any) -> str:
    import io
    import sys

    from ckpttool.cli import main

    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

    out = Terminal()
    size = os.terminal_size((columns, 50))
    with (
        mock.patch.object(sys, "argv", ["ckpttool", *map(str, argv)]), mock.patch.object(sys, "stdout", out),
        mock.patch.object(terminal.shutil, "get_terminal_size", lambda *a: size), pytest.raises(SystemExit),
    ):  # fmt: skip
        main()
    return out.getvalue()


def test_severity_is_coloured_on_a_terminal_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = builders.write(MODEL, tmp_path / "a", "hf", change=lambda t: t.pop("model.norm.weight"))
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[1;31merror: \x1b[0m" in _on_a_terminal(100, "inspect", source)
    assert "\x1b" not in run("inspect", source).out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[1;31m" not in _on_a_terminal(100, "inspect", source)


def test_findings_alike_are_one_line(tmp_path: Path) -> None:
    def change(t: Tensors) -> None:
        for n in range(5):
            t[f"model.layers.{n}.self_attn.rotary.inv_freq"] = Tensor("F32", np.ones(4, np.float32))

    lines = run("inspect", builders.write(MODEL, tmp_path / "a", "hf", change=change)).out.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1
    assert "model.layers.0.self_attn.rotary.inv_freq and 4 more (--json lists them): not a name" in errors[0]


def test_tensors_by_glob(tmp_path: Path) -> None:
    source = FIXTURES / "hf"
    report = ckpttool.inspect(source, tensors="*.2.mlp.experts.*_proj")
    assert [t.name for t in report.tensors] == [f"model.layers.2.mlp.experts.{n}_proj" for n in ("down", "gate_up")]
    assert report.parameters == 3_689_760  # of the whole checkpoint
    assert [t.part for t in ckpttool.inspect(source, tensors="layer.1.up").tensors] == ["layer.1.gate+layer.1.up"]
    scales = ckpttool.inspect(source, tensors="*.0.*_scales", scales=True)
    assert len(scales.tensors) == 2 and scales.scales is not None and len(scales.scales) == 2
    out = run("inspect", source, "--tensors", "*.2.mlp.experts.*_proj").out
    for t in report.tensors:
        assert t.name in out
        assert f"{t.format} ({t.packing})  {' x '.join(f'{n:,}' for n in t.shape)}  4.25 bits each" in out
        for s in t.stored:
            assert f"{s.file} at byte {s.offset:,}, {s.nbytes:,} bytes" in out
    assert "formats" not in out
    missing = run("inspect", source, "--tensors", "nothing*", "--json")
    assert (missing.code, missing.document["errors"][0]["kind"]) == (2, "usage")
    assert "no tensor is called like 'nothing*'" in missing.document["errors"][0]["message"]


def test_every_fact_names_its_source() -> None:
    report = ckpttool.inspect(FIXTURES / "hf")
    for field in dataclasses.fields(report.summary.rope):
        fact = "original_context" if field.name == "original_context" else f"rope_{field.name}"
        if field.name != "layers_without":  # which are said where there are some
            assert report.summary.said[fact]


def _rows(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """The sheet of a checkpoint with this config, by the words on its left."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", [("model.layers.0.mlp.up_proj.weight", "BF16", (8, 4))])
    return {word: text for word, text in sheet(ckpttool.inspect(folder)) if word}


def test_layers_without_rope_and_in_chunks(tmp_path: Path) -> None:
    """Llama-4 Scout's config.json, whose keys name neither."""
    config = {"model_type": "llama4", "text_config": {
        "model_type": "llama4_text", "num_hidden_layers": 48, "num_attention_heads": 40, "num_key_value_heads": 8,
        "head_dim": 128, "hidden_size": 5120, "num_local_experts": 16, "num_experts_per_tok": 1, "rope_theta": 500000.0,
        "no_rope_layers": [], "attention_chunk_size": 8192, "interleave_moe_layer_step": 1,
    }}  # fmt: skip
    found = _rows(tmp_path / "a", config)
    assert found["rope"] == "theta 500,000, none in 12 layers (3,7..47)"
    chunked = "chunked 8,192 in 36 layers (0-2,4-6,8-10,12-14,..,44-46)"
    assert found["attention"] == f"40 heads, 8 KV heads of 128, {chunked}, full in 12 layers (3,7..47)"


def test_a_window_of_no_layer_that_is_named(tmp_path: Path) -> None:
    config = {"model_type": "unheard_of", "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16}
    found = _rows(tmp_path / "a", config | {"sliding_window": 4096})
    said = "full, though a window of 4,096 is stated: nothing names the layers that have it"
    assert found["attention"] == f"4 heads of 16, {said}"
