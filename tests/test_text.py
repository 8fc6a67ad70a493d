"""The packaged text, the checkpoint's own tokenizer in each dialect, and how a text is cut."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import realtokenizer
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from ckpttool.checkpoint import open_checkpoint
from ckpttool.errors import InputError, UsageError
from ckpttool.validator.text import Encoder, encoder, packaged_text, read_text, sequences, tokenizer_json

ROOT = Path(__file__).parents[1] / "fixtures" / "tiny-gpt-oss"
HELD_OUT = ROOT.parent / "heldout.txt"
DIALECTS = (
    "hf", "parent", "hf-bf16", "unsloth", "gguf/tiny-gpt-oss-auto.gguf", "gguf/tiny-gpt-oss-q4_k_m.gguf",
    "gguf/split/tiny-gpt-oss-auto-00001-of-00003.gguf",
)  # fmt: skip


def test_the_packaged_text() -> None:
    text = packaged_text()
    assert 30_000 < len(text.encode()) < 60_000
    assert text == read_text(None)
    scripts = {"Latin": "ledger", "Greek": "ψωμί", "Cyrillic": "Снег", "Han": "柿子树", "Kana": "だまって",
               "Arabic": "الحصان", "Devanagari": "दुकान", "code": "uint32_t", "numbers": "2147483647"}  # fmt: skip
    assert [name for name, word in scripts.items() if word not in text] == []
    assert "\r" not in text


def test_the_packaged_text_in_gpt_oss_tokens() -> None:
    from tokenizers import Tokenizer

    made = Tokenizer.from_file(str(realtokenizer.folder() / "tokenizer.json"))
    ids = Encoder(made, 201_088, "the published one").encode(packaged_text())
    assert len(ids) == 8727
    assert made.decode(ids) == packaged_text()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_ids_are_transformers_own(dialect: str) -> None:
    made = encoder(open_checkpoint(ROOT / dialect))
    oracle = AutoTokenizer.from_pretrained(ROOT / "hf")
    for text in (HELD_OUT.read_text("utf-8"), packaged_text(), "<|start|>user<|message|>x<|end|>", "", "\0 é\u200b"):
        ids = made.encode(text)
        assert ids == oracle(text, add_special_tokens=False)["input_ids"]
        assert made.decode(ids) == oracle.decode(ids)
    assert made.vocabulary == 1024


def test_a_checkpoint_without_tokenizer_takes_the_others() -> None:
    openai, hf = (open_checkpoint(ROOT / name) for name in ("openai", "hf"))
    assert tokenizer_json(openai) is None
    assert encoder(openai, hf).encode("Ruth") == encoder(hf).encode("Ruth")
    with pytest.raises(InputError, match=r"tokenizer.json is missing; .*--level values"):
        encoder(openai, openai)
    lent = open_checkpoint(ROOT / "openai", reference=ROOT / "hf")
    assert encoder(lent).encode("Ruth") == encoder(hf).encode("Ruth")


def damaged(tmp_path: Path, text: str) -> Path:
    folder = tmp_path / "hf"
    shutil.copytree(ROOT / "hf", folder)
    (folder / "tokenizer.json").write_text(text)
    return folder


@pytest.mark.parametrize("text", ["", "{}", "[1", '{"model": {"type": "BPE"}}', '{"version": "1.0", "model": null}'])
def test_what_is_no_tokenizer(tmp_path: Path, text: str) -> None:
    checkpoint = open_checkpoint(damaged(tmp_path, text))
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        encoder(checkpoint)


def test_an_id_beyond_the_embedding(tmp_path: Path) -> None:
    document = json.loads((ROOT / "hf" / "tokenizer.json").read_text("utf-8"))
    text = next(t for t, i in document["model"]["vocab"].items() if i == 500)
    document["model"]["vocab"][text] = 1024
    made = encoder(open_checkpoint(damaged(tmp_path, json.dumps(document))))
    assert made.encode("a") == encoder(open_checkpoint(ROOT / "hf")).encode("a")
    with pytest.raises(InputError, match="gives the id 1024, but the embedding has 1,024 rows"):
        made.encode(made.tokenizer.decode([1024]))


@pytest.mark.parametrize("data", [b"", b" \n", b"\xff\xfe"])
def test_a_text_file_that_is_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "text").write_bytes(data)
    with pytest.raises(InputError, match="text"):
        read_text(tmp_path / "text")


# --- sequences ---


@given(st.integers(2, 300), st.integers(2, 60), st.none() | st.integers(2, 400))
def test_sequences(count: int, length: int, tokens: int | None) -> None:
    ids = list(range(count))
    found = sequences(ids, length=length, tokens=tokens)
    assert found
    size = len(found[0])
    assert size == min(length, count, tokens or length)
    assert all(len(x) == size and x == list(range(x[0], x[0] + size)) for x in found)
    assert all(a[-1] < b[0] for a, b in pairwise(found))
    assert len(found) == (count // size if tokens is None else min(count // size, tokens // size))


def test_few_sequences_are_spread_over_the_text() -> None:
    found = sequences(range(1000), length=10, tokens=40)
    assert [x[0] for x in found] == [0, 250, 500, 750]


@pytest.mark.parametrize(("count", "length", "tokens"), [(10, 1, None), (10, 5, 1), (1, 5, None), (0, 5, 5)])
def test_nothing_to_predict(count: int, length: int, tokens: int | None) -> None:
    with pytest.raises(UsageError, match="nothing to predict"):
        sequences(range(count), length=length, tokens=tokens)
