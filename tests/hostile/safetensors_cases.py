"""Broken safetensors files, each with the words that the error must hold."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile

from hostile_files import Case, entry, one, raw_entry, st

from ckpttool.errors import LimitError

U64 = (1 << 64) - 1
TWO = {"a": entry(), "b": entry(offsets=(4, 8))}


def _zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        z.writestr("archive/data.pkl", b"x")
    return out.getvalue()


def _pair(first: str, second: str) -> bytes:
    e = '{"dtype":"U8","shape":[4],"data_offsets":[0,4]}'
    return st(f"{{{first}:{e},{second}:{e}}}".encode(), bytes(4))


LENGTHS = [
    *(Case(f"ST{n + 1:03} {n} bytes", bytes(n), f"needs 8 bytes, the file has {n}") for n in range(8)),
    Case("ST009 length 0", bytes(8), "the header is empty"),
    Case("length 1", st(b"{"), "the header is empty"),
    Case("ST010 one too long", st(b"{}", n=3), "length is 3, but only 2 bytes follow"),
    Case("ST011 2^64-1", st(b"{}", n=U64), "over the format's limit"),
    Case("ST011 2^63", st(b"{}", n=1 << 63), "over the format's limit"),
    Case("ST011 2^32", st(b"{}", n=1 << 32), "over the format's limit"),
    Case("just over the limit", st(b"{}", n=100_000_001), "over the format's limit of 100000000"),
    Case("at the limit, cut", st(b"{}", n=100_000_000), "only 2 bytes follow"),
]

TEXT = [
    Case("ST026 not UTF-8", st(b'{"a\xff":1}'), "at byte 11: is not valid UTF-8"),
    Case("ST026 overlong UTF-8", st(b'{"\xc0\xaf":1}'), "is not valid UTF-8"),
    Case("ST026 surrogate in UTF-8", st(b'{"\xed\xa0\x80":1}'), "is not valid UTF-8"),
    Case("ST026 cut UTF-8", st(b'{"a":1}\xe2\x82'), "is not valid UTF-8"),
    Case("ST027 UTF-16", st('{"a":1}'.encode("utf-16")), "UTF-16"),
    Case("ST027 UTF-16 without mark", st('{"a":1}'.encode("utf-16-le")), "expected a name in double quotes"),
    Case("ST028 UTF-32", st('{"a":1}'.encode("utf-32-be")), "UTF-32"),
    Case("ST029 byte order mark", st(b"\xef\xbb\xbf{}"), "byte order mark"),
    Case("ST030 cut JSON", st(b'{"a":{"dtype":"U8"'), "not JSON"),
    Case("ST030 cut after key", st(b'{"a":'), "not JSON"),
    Case("ST030 cut after entry", st(one()[8:-5]), "JSON ends too early"),
    Case("unclosed key", st(b'{"a'), "expected a name in double quotes"),
    Case("ST031 list", st([]), "must be a JSON object"),
    Case("ST032 null", st(b"null"), "must be a JSON object"),
    Case("ST033 string", st(b'"x"'), "must be a JSON object"),
    Case("ST034 number", st(b"17"), "must be a JSON object"),
    Case("ST035 NUL padding", st(b"{}\0\0\0\0\0\0"), "at byte 10: only spaces may follow"),
    Case("newline padding", st(b"{}\n"), "only spaces may follow"),
    Case("ST036 two documents", st(b"{}{}"), "only spaces may follow"),
    Case("ST037 comment", st(b"{/* */}"), "expected a name"),
    Case("ST038 trailing comma", st(one()[8:-5] + b",}", bytes(4)), "expected a name"),
    Case("leading comma", st(b"{,}"), "expected a name"),
    Case("no comma", st(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]} "b":1}'), "expected a comma"),
    Case("ST039 single quotes", st(b"{'a':1}"), "expected a name"),
    Case("control in name", st(b'{"a\nb":1}'), "expected a name"),
    Case("bad escape", st(b'{"a\\x":1}'), "expected a name"),
    Case(
        "half a surrogate pair", raw_entry("1").replace(b'"a"', b'"\\ud800"').replace(b"\x07", b"\x0c", 1), "surrogate"
    ),
]

NAMES = [
    Case("ST041 duplicate, same", _pair('"a"', '"a"'), "duplicate name (first at byte 9)"),
    Case("ST043 duplicate by escape", _pair('"a"', '"\\u0061"'), "duplicate name"),
    Case(
        "ST042 duplicate, other dtype",
        st(
            b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
        ),
        "duplicate name",
    ),
    Case("ST044 two metadata", st(b'{"__metadata__":{},"__metadata__":{}}'), "__metadata__ at byte 27: duplicate name"),
    Case("ST045 duplicate in metadata", st(b'{"__metadata__":{"x":"1","x":"2"}}'), "duplicate name"),
    Case(
        "ST046 duplicate field",
        raw_entry('{"dtype":"U8","dtype":"I8","shape":[4],"data_offsets":[0,4]}'),
        "duplicate key 'dtype'",
    ),
    Case("long name", st({"x" * 4097: entry()}, bytes(4)), "a name longer than 4096 bytes"),
    Case("long name, not ASCII", st({"é" * 2049: entry()}, bytes(4)), "a name longer than 4096 bytes"),
    Case("terminal escapes", st({"\x1b]52;c;x\x07": entry(dtype="Q4")}, bytes(4)), "\\u{1b}]52;c;x\\u{7}"),
    Case("bidi override", st({"a\u202eb": entry(dtype="\u202e")}, bytes(4)), "a\\u{202e}b"),
    Case("NUL in name", st({"a\0b": entry(dtype="Q4")}, bytes(4)), "a\\u{0}b"),
    Case("newline in name", st({"a\nb": entry(dtype="x\ny")}, bytes(4)), "a\\u{a}b"),
]

FIELDS = [
    Case("ST047 unknown field", st({"a": entry() | {"note": 1}}, bytes(4)), "unknown field 'note'"),
    Case("ST047 unknown nested field", st({"a": entry() | {"n": {"m": [{}]}}}, bytes(4)), "unknown field 'n'"),
    Case("ST047 unknown field with control", st({"a": entry() | {"\x1b[2J": 1}}, bytes(4)), "unknown field '\\x1b[2J'"),
    *(
        Case(
            f"{number} no {k}",
            st({"a": {x: y for x, y in entry().items() if x != k}}, bytes(4)),
            f"missing field '{k}'",
        )
        for number, k in (("ST048", "dtype"), ("ST049", "shape"), ("ST050", "data_offsets"))
    ),
    Case("entry null", raw_entry("null"), "the entry must be an object"),
    Case("entry list", raw_entry("[]"), "the entry must be an object"),
    Case("entry empty", raw_entry("{}"), "missing field"),
    *(
        Case(f"{number} dtype {d}".strip(), one(dtype=d), f"unknown dtype '{d}'")
        for number, d in (("ST051", "Q4_K"), ("ST052", "f32"), ("ST055", "F8_E8M0FNU"), ("ST056", ""), ("", "F4_E2M1"))
    ),
    *(
        Case(f"{number} dtype {d}".strip(), one(dtype=d), "dtype must be a string")
        for number, d in (("ST053", 7), ("ST054", None), ("", ["U8"]), ("", {}))
    ),
    Case("dtype long", one(dtype="x" * 5000), "unknown dtype"),
]

NUMBERS = [
    *(
        Case(
            f"{number} shape {text[:24]} ({len(text)})".strip(),
            raw_entry(f'{{"dtype":"U8","shape":[{text}],"data_offsets":[0,4]}}'),
            says,
        )
        for number, text, says in (
            ("ST057", "-1", "shape[0] must be an integer from 0"),
            ("ST058", "4.0", "shape[0] must be an integer"),
            ("ST059", "4e0", "shape[0] must be an integer"),
            ("ST060", '"4"', "shape[0] must be an integer"),
            ("ST061", "true", "shape[0] must be an integer"),
            ("ST062", "4,null", "shape[1] must be an integer"),
            ("ST063", "[4]", "shape[0] must be an integer"),
            ("ST064", "-0", "no plain integer"),
            ("ST065", "04", "not JSON"),
            ("", "+4", "not JSON"),
            ("", "0x4", "not JSON"),
            ("", "4_0", "not JSON"),
            ("ST066", "NaN", "NaN is no JSON"),
            ("ST067", "Infinity", "Infinity is no JSON"),
            ("", "-Infinity", "-Infinity is no JSON"),
            ("ST068", "1e400", "too large for a float"),
            ("", "1" * 21, "no plain integer"),
            ("", "1" * 10_000, "of 10000 characters is no plain integer"),
            ("ST069", "1" * 1_000_000, "no plain integer"),
            ("", "4,", "not JSON"),
            ("", "4 4", "not JSON"),
        )
    ),
    Case("ST062 shape null", one(shape=None), "shape must be a list"),
    Case("shape object", one(shape={}), "shape must be a list"),
    Case("ST070 2^64", one(shape=[1 << 64]), "overflows"),
    Case("ST070 2^63 times 1", one(shape=[1 << 63]), "overflows"),
    Case("ST071 2^32 x 2^32", one(shape=[1 << 32, 1 << 32]), "overflows"),
    Case("ST072 2^59 F64 bits", one(dtype="F64", shape=[1 << 59]), "overflows"),
    Case("ST073 overflow before zero", st({"a": entry(shape=[1 << 32, 1 << 32, 0], offsets=(0, 0))}), "overflows"),
    Case("ST074 zero before 2^64-1", st({"a": entry(shape=[0, U64], offsets=(0, 0))}), "overflows"),
    Case("ST075 zero before 2^63-1", st({"a": entry(shape=[0, (1 << 63) - 1], offsets=(0, 0))}), "overflows"),
    Case("ST077 65 dimensions", st({"a": entry(shape=[1] * 65, offsets=(0, 1))}, b"x"), "65 dimensions, over 64"),
    Case("ST078 100,000 dimensions", st({"a": entry(shape=[1] * 100_000, offsets=(0, 1))}, b"x"), "too long an entry"),
]

OFFSETS = [
    Case("ST079 reversed", one(offsets=(4, 0)), "reversed"),
    Case("ST080 negative", one(offsets=(-4, 0)), "data_offsets[0] must be an integer from 0"),
    Case("ST081 one", one(offsets=(4,)), "must be two integers"),
    Case("ST082 three", one(offsets=(0, 4, 8)), "must be two integers"),
    Case("null", one(offsets=None), "must be two integers"),
    Case("a string", one(offsets="04"), "must be two integers"),
    Case("floats", one(offsets=(0.0, 4.0)), "must be an integer"),
    Case("ST084 2^64-1", one(offsets=(0, U64)), "overflow"),
    Case("2^64", one(offsets=(0, 1 << 64)), "overflow"),
    Case("ST085 wraps to the size", one(offsets=(0, (1 << 64) - 60)), "overflow"),
    Case("ST093 size is not the shape's", one(shape=[5]), "hold 4 bytes, but U8 [5] needs 5 bytes"),
    Case("ST093 size is not the dtype's", one(dtype="F32", shape=[2]), "needs 8 bytes"),
    Case("ST094 F4 odd", st({"a": entry("F4", [3], (0, 2))}, bytes(2)), "12 bits, no whole number of bytes"),
    Case("ST095 F6 odd", st({"a": entry("F6_E2M3", [3], (0, 2))}, bytes(2)), "18 bits, no whole number of bytes"),
    Case("ST083 beyond the end", st({"a": entry(shape=[8], offsets=(0, 8))}, bytes(4)), "4 bytes are missing"),
    Case("ST021 no data", st({"a": entry()}), "4 bytes are missing"),
    Case("ST020 a byte short", st(TWO, bytes(7)), "b at byte"),
    Case("ST022 a byte more", st(TWO, bytes(9)), "1 bytes follow that belong to nothing"),
    Case("ST023 a tail without tensors", st({}, b"PK\5\6"), "4 bytes follow that belong to nothing"),
    Case("ST025 4 KiB of zeros behind", st(TWO, bytes(8 + 4096)), "4096 bytes follow"),
    Case("ST086 overlap", st({"a": entry(), "b": entry(offsets=(3, 7))}, bytes(7)), "b at byte"),
    Case("ST087 tied", st({"a": entry(), "b": entry()}, bytes(4)), "overlaps 'a', which ends at 4"),
    Case(
        "ST086 inside another",
        st({"a": entry(shape=[8], offsets=(0, 8)), "b": entry(offsets=(2, 6))}, bytes(8)),
        "overlaps 'a'",
    ),
    Case(
        "ST091 empty inside another", st({"a": entry(), "z": entry(shape=[0], offsets=(2, 2))}, bytes(4)), "z at byte"
    ),
    Case("ST089 hole", st({"a": entry(), "b": entry(offsets=(5, 9))}, bytes(9)), "leaves a hole of 1 bytes after 'a'"),
    Case("ST090 hole at the start", one(offsets=(1, 5)), "leaves a hole of 1 bytes after 'the header'"),
    Case("ST088 many on one range", st({f"t{i}": entry() for i in range(2000)}, bytes(4)), "overlaps"),
]

METADATA = [
    Case("ST096 value number", st({"__metadata__": {"x": 1}}), "__metadata__.x at byte"),
    Case("ST096 value object", st({"__metadata__": {"x": {}}}), "the value must be a string"),
    Case("ST096 value null", st({"__metadata__": {"x": None}}), "the value must be a string"),
    Case("null", st({"__metadata__": None}), "must be an object of strings"),
    Case("list", st({"__metadata__": []}), "must be an object of strings"),
    Case("string", st({"__metadata__": "x"}), "must be an object of strings"),
    Case("cut", st(b'{"__metadata__":{"x":"y"'), "the value must be a string"),
    Case("surrogate", st(b'{"__metadata__":{"x":"\\udc00"}}'), "half a surrogate pair"),
    Case("too many", st({"__metadata__": {f"{i}": "" for i in range(100_001)}}), "more than 100000", LimitError),
]

NESTING = [
    Case("ST101 10^5 lists", st(b'{"a":' + b"[" * 100_000), "recursion"),
    Case("ST101 10^5 objects", st(b'{"a":' * 100_000), "recursion"),
    Case("in an unknown field", raw_entry('{"x":' + "[" * 50_000), "recursion"),
    Case("a megabyte of lists", st(b'{"a":[' + b"[]," * 350_000 + b"1]}"), "too long an entry"),
]

FOREIGN = [
    Case(
        "ST105 git-lfs pointer",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4792272488\n",
        "git-lfs pointer to a file of 4792272488 bytes",
    ),
    Case("ST106 web page", b"<!DOCTYPE html><html><body>404</body></html>", "this is a web page"),
    Case("ST106 web page, after space", b"\n\n  <html>" + bytes(99), "this is a web page"),
    Case("ST106 JSON error", b'{"error":"Repository not found"}', "this is a JSON document"),
    Case("ST107 pickle", pickle.dumps({"a": [1, 2, 3]}), "this is a pickle"),
    Case("ST108 zip", _zip(), "zip archive"),
    Case("GGUF", b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + bytes(8), "this is a GGUF file"),
    Case("gzip", b"\x1f\x8b\x08" + bytes(40), "gzip"),
    Case("numpy", b"\x93NUMPY\x01\0" + bytes(40), "numpy array"),
]

SAFETENSORS = {
    f"{group}: {case.id}": case
    for group, cases in {
        "length": LENGTHS,
        "text": TEXT,
        "names": NAMES,
        "fields": FIELDS,
        "numbers": NUMBERS,
        "offsets": OFFSETS,
        "metadata": METADATA,
        "nesting": NESTING,
        "foreign": FOREIGN,
    }.items()
    for case in cases
}

GOOD = {
    "empty": st({}, b""),
    "leading space": st(b"  \n{}"),
    "trailing spaces": st(b"{}      "),
    "python's json": st(TWO, bytes(8)),
    "spread out": st(b'{ "a" :\t{ "shape" : [ 4 ] ,\n"data_offsets":[0 , 4],"dtype":"U8"} }', bytes(4)),
    "escaped name": st(b'{"\\u0061\\n\\ud83d\\ude00":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}', bytes(4)),
    "out of order": st({"b": entry(offsets=(4, 8)), "a": entry()}, bytes(8)),
    "empty tensors": st({f"z{i}": entry(shape=[0, 3], offsets=(4, 4)) for i in range(9)} | {"a": entry()}, bytes(4)),
    "scalar": st({"a": entry(shape=[], offsets=(0, 1))}, b"x"),
    "misaligned F64": st({"a": entry(shape=[1], offsets=(0, 1)), "b": entry("F64", [1], (1, 9))}, bytes(9)),
    "F4, F6": st({"a": entry("F4", [2], (0, 1)), "b": entry("F6_E3M2", [4], (1, 4))}, bytes(4)),
    "64 dimensions": st({"a": entry(shape=[1] * 64, offsets=(0, 1))}, b"x"),
    "strange names": st({n: entry(shape=[0], offsets=(0, 0)) for n in ("", "../../x", "\x1b[2J", "\u202e", "한국어")}),
    "NFC and NFD": st({n: entry(shape=[0], offsets=(0, 0)) for n in ("\u00e9", "e\u0301")}),
    "metadata": st({"__metadata__": {"format": "pt", "x": '{"a": [1, "}"]}'}, "a": entry()}, bytes(4)),
    "metadata last": st({"a": entry(), "__metadata__": {}}, bytes(4)),
    "braces in a name": st({'}{"],[': entry()}, bytes(4)),
    **{f"header of {n}": st(b"{}".ljust(n)) for n in (99_992, 99_994, 100_000, 100_001)},
}
