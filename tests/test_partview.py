"""Parts as arrays: indices, shapes, lengths, and what is said of a part that is not there."""

from __future__ import annotations

from pathlib import Path

import builders
import numpy as np
import pytest
from builders import Model, Sizes, Tensors
from independent import Mxfp4, floats, parts, same

import ckpttool
from ckpttool.checkpoint import Checkpoint
from ckpttool.errors import CkptError, InputError

MODEL = Model(Sizes(layers=1, experts=4))
GGUF = Path(__file__).parents[1] / "fixtures" / "tiny-gpt-oss" / "gguf"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return ckpttool.open_checkpoint(builders.write(MODEL, tmp_path_factory.mktemp("p") / "in", "hf", shards=3))


def test_experts_are_indexed_from_either_end(checkpoint: Checkpoint) -> None:
    view, want = checkpoint.part("layer.0.up"), MODEL.values("layer.0.up")
    assert len(view) == 4
    assert view.shape == want.shape == (4, 96, 64)
    for i in range(-4, 4):
        assert view[i].shape == (96, 64)
        assert view[i].dtype == np.float32
        assert same(view[i], want[i])
    assert same(np.stack(list(view)), want)
    for i in (4, -5, 100):
        with pytest.raises(IndexError, match="has 4 experts"):
            view[i]


@pytest.mark.parametrize("name", ["layer.0.gate.bias", "layer.0.down.bias"])
def test_biases_of_experts_are_vectors(name: str, checkpoint: Checkpoint) -> None:
    view, want = checkpoint.part(name), MODEL.values(name)
    assert len(view) == 4
    for i in range(4):
        assert same(view[i], want[i])


@pytest.mark.parametrize("name", ["embed", "norm", "layer.0.q", "layer.0.sinks", "layer.0.router"])
def test_other_parts_have_one_index(name: str, checkpoint: Checkpoint) -> None:
    view, want = checkpoint.part(name), MODEL.values(name)
    assert len(view) == 1
    assert view[0].shape == view.array().shape == want.shape
    assert same(view[0], want)
    with pytest.raises(IndexError):
        view[1]


def test_a_single_expert_and_a_single_layer(tmp_path: Path) -> None:
    model = Model(Sizes(layers=1, experts=1))
    for dialect in ("hf", "hf-bf16", "unsloth", "openai"):
        checkpoint = ckpttool.open_checkpoint(builders.write(model, tmp_path / dialect, dialect))
        for name in (*model.packed, *model.plain):
            assert same(checkpoint.part(name).array(), model.values(name)), (dialect, name)


@pytest.mark.parametrize("name", ["layer.1.gate", "layer.0.gates", "", "model.embed_tokens.weight"])
def test_no_such_part(name: str, checkpoint: Checkpoint) -> None:
    with pytest.raises(InputError, match="no such part") as caught:
        checkpoint.part(name)
    first = str(caught.value.hint).removeprefix("parts are named ").split(",")[0]
    assert first in MODEL.plain


def test_a_damaged_checkpoint_says_what_is_wrong_in_place_of_a_part(tmp_path: Path) -> None:
    def change(made: Tensors) -> None:
        del made["model.norm.weight"]

    checkpoint = ckpttool.open_checkpoint(builders.write(MODEL, tmp_path / "in", "hf", change=change))
    with pytest.raises(CkptError, match=r"model\.norm\.weight"):
        checkpoint.part("embed")


def test_what_has_no_value_is_an_error_not_a_number(tmp_path: Path) -> None:
    def change(made: Tensors) -> None:
        made["model.layers.0.mlp.experts.down_proj_scales"].array[1, 2, 0] = 255

    first = MODEL.values("layer.0.down")[0]
    model = Model(MODEL.sizes)  # `change` works on its arrays
    view = ckpttool.open_checkpoint(builders.write(model, tmp_path / "in", "hf", change=change)).part("layer.0.down")
    assert same(view[0], first)
    with pytest.raises((CkptError, ValueError), match="row 2"):
        view[1]


@pytest.mark.parametrize("name", ["auto", "bf16", "q8_0", "mxfp4_moe", "q4_k_m"])
def test_quantized_ggufs_decode_as_gguf_py_does(name: str) -> None:
    path = GGUF / f"tiny-gpt-oss-{name}.gguf"
    checkpoint, want = ckpttool.open_checkpoint(path), parts(path)
    for part in ("embed", "head", "layer.2.v", "layer.3.gate", "layer.1.down", "layer.0.router", "layer.0.up.bias"):
        x = want[part]
        assert same(checkpoint.part(part).array(), floats(x) if isinstance(x, Mxfp4) else x), part
