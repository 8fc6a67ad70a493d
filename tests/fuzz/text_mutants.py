"""Mutants of JSON: its tokens are replaced, repeated, exchanged and left out; a safetensors' length follows, or not."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from random import Random

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"|[0-9]+|[ \t\n\r]+|.', re.DOTALL)

WORDS = (
    *(b'"', b"{", b"}", b"[", b"]", b",", b":", b" ", b"\n", b"\\", b"\t", b"\0", b"\xff", b"\xef\xbb\xbf", b"'"),
    *(b"-", b"-0", b"-1", b"0", b"00", b"1", b"4", b"8", b"16", b"1.0", b"1e3", b"1e400", b"NaN", b"Infinity", b"0x1"),
    *(b"4294967296", b"9223372036854775807", b"9223372036854775808", b"18446744073709551615", b"18446744073709551616"),
    *(b"100000000000000000000", b"1" * 30, b"null", b"true", b'""', b'"a"', b'"b"', b'"\\u0061"', b'"\\ud800"'),
    *(b'"\\ud83d\\ude00"', b'"\x1b[2J"', b'"\\u202e"', b'"../x"', b'"a b"', b'"x.safetensors"', b'"CON.safetensors"'),
    *(b'"dtype"', b'"shape"', b'"data_offsets"', b'"__metadata__"', b'"U8"', b'"F4"', b'"F32"', b'"f32"', b'"BOOL"'),
    *(b'"weight_map"', b'"metadata"', b'"total_size"', b'"model"', b'"vocab"', b'"merges"', b"{}", b"[]", b'{"a":1}'),
    *(b'"x":0,', b',"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}', b"[" * 70, b'{"a":' * 70, b"[[1]]", b'"a":'),
)
"""What readers of JSON and of these formats stumble over."""

Tokens = list[bytes]
Draw = Callable[[], float]


def tokens(text: bytes) -> tuple[bytes, ...]:
    """The tokens of any bytes; together they are the text."""
    return tuple(_TOKEN.findall(text))


_STRINGS = tuple(w for w in WORDS if w[:1] == w[-1:] == b'"' and len(w) > 1)
_NUMBERS = tuple(w for w in WORDS if w.isdigit())


def _word(draw: Draw, t: Tokens) -> None:
    """Another word: of four of five strings another string, of as many numbers another number."""
    i = int(draw() * len(t))
    first = t[i][:1]
    like = _STRINGS if first == b'"' else _NUMBERS if first.isdigit() else WORDS
    words = like if draw() < 0.8 else WORDS
    t[i] = words[int(draw() * len(words))]


def _insert(draw: Draw, t: Tokens) -> None:
    t.insert(int(draw() * len(t)), WORDS[int(draw() * len(WORDS))])


def _remove(draw: Draw, t: Tokens) -> None:
    at = int(draw() * len(t))
    del t[at : at + 1 + int(draw() * draw() * 8)]


def _repeat(draw: Draw, t: Tokens) -> None:
    at = int(draw() * len(t))
    run = t[at : at + 1 + int(draw() * 16)]
    to = int(draw() * len(t)) if draw() < 0.5 else at
    t[to:to] = run


def _exchange(draw: Draw, t: Tokens) -> None:
    """Two tokens, the second of the first's kind where one is near."""
    i, j = int(draw() * len(t)), int(draw() * len(t))
    j = next((k for k in range(j, min(j + 12, len(t))) if t[k][:1].isdigit() == t[i][:1].isdigit() and t[k] != t[i]), j)
    t[i], t[j] = t[j], t[i]


def _copy(draw: Draw, t: Tokens) -> None:
    """A string over another one."""
    places = [i for i, token in enumerate(t) if token[:1] == b'"']
    if places:
        t[places[int(draw() * len(places))]] = t[places[int(draw() * len(places))]]


def _number(draw: Draw, t: Tokens) -> None:
    """One of the next numbers, one more or one less or doubled."""
    at = int(draw() * len(t))
    for i in range(at, min(at + 20, len(t))):
        if t[i].isdigit():
            n = int(t[i][:25])
            t[i] = b"%d" % (n + 1, max(n - 1, 0), 2 * n)[int(draw() * 3)]
            return


def _byte(draw: Draw, t: Tokens) -> None:
    """One bit of one byte."""
    i = int(draw() * len(t))
    token = bytearray(t[i])
    if token:
        token[int(draw() * len(token))] ^= 1 << int(draw() * 8)
        t[i] = bytes(token)


def _spelling(draw: Draw, t: Tokens) -> None:
    """A string's characters as escapes, which changes nothing that it says."""
    i = int(draw() * len(t))
    if t[i][:1] == b'"' and t[i].isascii() and b"\\" not in t[i]:
        t[i] = b'"' + b"".join(b"\\u%04x" % c for c in t[i][1:-1]) + b'"'


_EDITS = (
    _word, _word, _word, _word, _word, _insert, _remove, _repeat, _repeat, _exchange, _copy, _copy, _copy,
    _number, _number, _number, _byte, _spelling,
)  # fmt: skip


def _edited(draw: Draw, before: Sequence[bytes]) -> bytes:
    found = list(before)
    for _ in range(1 + int(draw() * draw() * 3)):
        if found:
            _EDITS[int(draw() * len(_EDITS))](draw, found)
    return b"".join(found)


def json_mutants(seeds: Sequence[bytes], count: int, seed: int) -> Iterator[bytes]:
    """`count` documents, each a seed with one to three changes."""
    split = [tokens(s) for s in seeds]
    draw = Random(seed).random
    for _ in range(count):
        yield _edited(draw, split[int(draw() * len(split))])


def safetensors_mutants(seeds: Sequence[bytes], count: int, seed: int) -> Iterator[bytes]:
    """`count` files, each a seed with changes in its JSON, its length or its data.

    Four of five have the length that their JSON has, so that more than the length is looked at.
    """
    split = []
    for s in seeds:
        n = min(int.from_bytes(s[:8], "little"), len(s))
        split.append((tokens(s[8 : 8 + n]), s[8 + n :], s[:8]))
    draw = Random(seed).random
    for _ in range(count):
        before, data, length = split[int(draw() * len(split))]
        text = b"".join(before) if draw() < 0.1 else _edited(draw, before)
        kind = draw()
        if kind < 0.85:
            length = len(text).to_bytes(8, "little")
        elif kind < 0.93:
            length = max(len(text) + int(draw() * 20) - 10, 0).to_bytes(8, "little")
        elif kind < 0.97:
            length = _LENGTHS[int(draw() * len(_LENGTHS))]
        kind = draw()
        if kind < 0.05:
            data = data[: int(draw() * len(data))]
        elif kind < 0.1:
            data += b"PK\x05\x06"[: 1 + int(draw() * 4)]
        whole = length + text + data
        yield whole[: int(draw() * len(whole))] if draw() < 0.01 else whole


_LENGTHS = tuple(
    n.to_bytes(8, "little") for n in (0, 1, 2, 100_000_000, 100_000_001, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
)
