"""tokenizer.json, read once and in runs, so that 28 MB of it cost little more than its tokens.

`json.loads` of gpt-oss' tokenizer.json takes a quarter of a gigabyte: 446,189 merges are as many lists. Here the two
large values, `model.vocab` and `model.merges`, are cut out and parsed a quarter megabyte at a time; the merges go
straight into the form in which a GGUF stores them. Everything else in the file is parsed as one small JSON object.

So there is a limit for each: bytes of the file, bytes of a run, tokens of the vocabulary, size and depth of the rest.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ckpttool.containers import limits
from ckpttool.containers.strict_json import Source, parse_object, read_bytes, utf8
from ckpttool.errors import DAMAGED, InputError, LimitError

RUN = 1 << 18
"""Bytes that are parsed at a time."""

_TRIES = 16
_OTHER_FILE = "is it really a tokenizer.json?"
_VOCAB = (b'"vocab"', re.compile(rb"\s*:\s*(?=\{)"))
_MERGES = (b'"merges"', re.compile(rb"\s*:\s*(?=\[)"))
_CUT_VOCAB = re.compile(rb'[0-9]\s*(?=,\s*")')
_CUT_PAIRS = re.compile(rb"\]\s*(?=,\s*\[)")
_CUT_STRINGS = re.compile(rb'"\s*(?=,\s*")')
_COMMA = re.compile(rb"\s*,")
_PLACE = '"\\u0000ckpttool cut this out"'
_PLACED = "\0ckpttool cut this out"
_LENGTHS = tuple(struct.pack("<Q", n) for n in range(512))


@dataclass(frozen=True, slots=True)
class TokenizerJson:
    """What tokenizer.json holds.

    `rest` is the file without `model.vocab` and `model.merges`; `vocab` is token to id, in file order; `merges` is the
    payload of a GGUF string array (u64 length and UTF-8 bytes, "left right", each), of `merge_count` strings.
    """

    rest: dict[str, Any]
    vocab: dict[str, int]
    merges: bytes
    merge_count: int


def read_tokenizer(source: Source, file: str = "tokenizer.json") -> TokenizerJson:
    """Parse a BPE tokenizer.json.

    Raises InputError where it is damaged or holds another kind of model, LimitError where it asks for too much.
    """
    data = read_bytes(source, file, limits.TOKENIZER_FILE)
    vocab_at, merges_at = _spans(data, file)
    vocab: dict[str, int] = {}
    merges = bytearray()
    count = 0
    vocab_end = merges_end = 0
    for pairs, end in _runs(data, vocab_at, _CUT_VOCAB, ("{", "}"), file):
        before, vocab_end = len(vocab), end
        _check_types(pairs, file)
        vocab.update(pairs)
        if len(vocab) > limits.VOCABULARY:
            what, more = f"holds more than {limits.VOCABULARY:,} tokens", limits.hint(limits.VOCABULARY, _OTHER_FILE)
            raise LimitError(what, file=file, field="model.vocab", hint=more)
        if len(vocab) != before + len(pairs):
            raise InputError("a token stands twice in it", file=file, field="model.vocab", hint=DAMAGED)
    strings = data[merges_at + 1 : merges_at + 64].lstrip()[:1] == b'"'
    cut = _CUT_STRINGS if strings else _CUT_PAIRS
    for run, end in _runs(data, merges_at, cut, ("[", "]"), file):
        merges_end = end
        _append_merges(merges, run, strings, file)
        count += len(run)
    if len(set(vocab.values())) != len(vocab):
        raise InputError("two tokens have the same id", file=file, field="model.vocab", hint=DAMAGED)
    spans = sorted([(vocab_at, vocab_end), (merges_at, merges_end)])
    return TokenizerJson(_rest(data, spans, file), vocab, bytes(merges), count)


def _spans(data: bytes, file: str) -> tuple[int, int]:
    """Where the vocab's { and the merges' [ stand. `_rest` checks that they are model.vocab and model.merges."""
    vocab, merges = (_find(data, *key) for key in (_VOCAB, _MERGES))
    for found, field, what in ((vocab, "model.vocab", "an object"), (merges, "model.merges", "a list")):
        if found < 0:
            raise InputError(
                f"holds no {field} that is {what}, so it is not a BPE tokenizer",
                file=file,
                field=field,
                hint="use --reference DIR, with a folder that holds the model's own tokenizer.json",
            )
    return vocab, merges


def _find(data: bytes, key: bytes, colon: re.Pattern[bytes]) -> int:
    """Where the value of the first such key stands, or -1. (`find` is twenty times as fast as a pattern's search.)"""
    at = data.find(key)
    while at >= 0:
        found = colon.match(data, at + len(key))
        if found is not None:
            return found.end()
        at = data.find(key, at + 1)
    return -1


def _runs(
    data: bytes, at: int, cut: re.Pattern[bytes], brackets: tuple[str, str], file: str
) -> Iterator[tuple[list[Any], int]]:
    """The elements of the JSON container that starts at `at`, a run at a time, with the offset behind each run.

    A run ends where `cut` matches. Inside a string it may match too, but then the run is cut in a string and does not
    parse, and the next match is tried: so what parses is always a whole number of elements.
    """
    open_, close = brackets
    decoder = json.JSONDecoder(object_pairs_hook=list)
    start = at + 1
    while True:
        for end in _ends(data, start, cut):
            text = open_ + utf8(data[start:end], file, start) + close
            try:
                run, stop = decoder.raw_decode(text)
            except (ValueError, RecursionError):
                continue
            break
        else:
            raise InputError("is not valid JSON from here", file=file, offset=start, hint=DAMAGED)
        if stop < len(text):  # the container closed inside this run
            yield run, start + len(text[1:stop].encode())
            return
        comma = _COMMA.match(data, end)
        yield run, end
        if comma is None:
            return
        start = comma.end()


def _ends(data: bytes, start: int, cut: re.Pattern[bytes]) -> Iterator[int]:
    """Where the run from `start` may end: the next places that look like the end of an element, then the last byte.

    That is the file's, or the last that a run may have, and then the container must close before it.
    """
    at, last = start + RUN, min(start + limits.TOKENIZER_RUN, len(data))
    for _ in range(_TRIES):
        found = cut.search(data, at, last)
        if found is None:
            break
        yield found.end()
        at = found.end()
    while last < len(data) and data[last] & 0xC0 == 0x80:  # not inside a character
        last -= 1
    yield last


def _append_merges(out: bytearray, run: list[Any], strings: bool, file: str) -> None:
    """Append merges as "left right", UTF-8 with its length; a space inside a part as U+0120, as llama.cpp does."""
    try:
        lines = run if strings else [f"{a} {b}" for a, b in _pairs(run)]
        encoded = [line.encode() for line in lines]
    except (TypeError, ValueError, AttributeError):  # not strings, not pairs, or half a surrogate pair
        raise InputError(
            "must be a list of pairs of strings, or of strings", file=file, field="model.merges", hint=DAMAGED
        ) from None
    lengths = _LENGTHS
    try:
        out += b"".join([piece for line in encoded for piece in (lengths[len(line)], line)])
    except IndexError:  # a merge of more than 511 bytes
        out += b"".join([piece for line in encoded for piece in (struct.pack("<Q", len(line)), line)])


def _pairs(run: list[Any]) -> list[Any]:
    if any(type(pair) is not list for pair in run):  # a string of two characters would unpack too
        raise TypeError
    text = "".join([a + b for a, b in run])
    if " " not in text:
        return run
    return [(a.replace(" ", "\u0120"), b.replace(" ", "\u0120")) for a, b in run]


def _check_types(pairs: list[tuple[str, Any]], file: str) -> None:
    """InputError where an id is none: run by run, since values of other kinds may be large."""
    wrong = next((t for t, i in pairs if type(i) is not int or i < 0), None)
    if wrong is not None:
        what = f"the id of {wrong!r} is not a whole number from 0"
        raise InputError(what, file=file, field="model.vocab", hint=DAMAGED)


def _rest(data: bytes, spans: list[tuple[int, int]], file: str) -> dict[str, Any]:
    """The file as a JSON object, with the two spans left out."""
    (a, b), (c, d) = spans
    if b > c:
        raise InputError("model.merges stands inside model.vocab", file=file, hint=DAMAGED)
    size = a + c - b + len(data) - d
    if size > limits.SIDE_FILE:
        what = f"has {size:,} bytes beside its vocabulary and merges, more than {limits.SIDE_FILE:,}"
        raise LimitError(what, file=file, hint=limits.hint(limits.SIDE_FILE, _OTHER_FILE))
    text = _PLACE.join(utf8(part, file, at) for part, at in ((data[:a], 0), (data[b:c], b), (data[d:], d)))
    rest = parse_object(text, file)
    model = rest.get("model")
    if not isinstance(model, dict) or (model.pop("vocab", None), model.pop("merges", None)) != (_PLACED, _PLACED):
        raise InputError("vocab and merges are not where they should be", file=file, field="model", hint=DAMAGED)
    return rest
