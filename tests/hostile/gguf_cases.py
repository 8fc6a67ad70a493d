"""Broken GGUF files, each with the words that the error must hold, and good ones (GOOD) that look odd.

An id begins with the number that the case has in the catalogue, if it is there (`test_gguf_cases` holds that none is
left out), and then with its name in llama.cpp's tests/test-gguf.cpp, if it is there.
"""

from __future__ import annotations

import pickle
import struct

from hostile_files import MIB, Case, arr, gguf, gstr, info, kv

from ckpttool.errors import LimitError

U32 = (1 << 32) - 1
U64 = (1 << 64) - 1
DATA = bytes(32)


def _named(numbered: dict[str, int], *others: int) -> list[tuple[str, int]]:
    """What the catalogue numbers, and others beside it."""
    return [*numbered.items(), *((f"also {n}", n) for n in others)]


def _counts(version: int = 3, tensors: int = 0, kvs: int = 0, tail: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, kvs) + tail


HEADER = [
    Case("GG001 empty file", b"", "is no GGUF"),
    Case("GG002 only the magic", b"GGUF", "the header needs 24 bytes, the file has 4"),
    Case("GG003 23 bytes", _counts()[:-1], "the header needs 24 bytes, the file has 23"),
    Case("GG004 BAD_MAGIC", gguf(magic=b"FUGG"), "big-endian"),
    Case("magic", gguf(magic=b"GGUG"), "is no GGUF: it begins with b'GGUG'"),
    Case("escape as magic", b"\x1b[2J" + bytes(40), "begins with b'\\x1b[2J'"),
    Case("GG005 GGML", b"lmgg" + bytes(40), "this is a GGML file"),
    Case("GG005 GGJT", b"tjgg" + bytes(40), "this is a GGJT file"),
    Case("GG006 BAD_VERSION_0", _counts(0), "is GGUF version 0"),
    Case("GG007 BAD_VERSION_1", _counts(1), "is GGUF version 1"),
    Case("GG008 BAD_VERSION_FUTURE", _counts(4), "is GGUF version 4"),
    Case("GG009 version 3 big-endian", _counts(0x03000000), "is big-endian; swap a copy of it"),
    Case("GG010 version 2^32-1", _counts(U32), "is GGUF version 4294967295"),
    Case("GG110 big-endian", b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "gguf-convert-endian FILE little"),
    Case("GG012 BAD_N_TENSORS", _counts(tensors=U64), f"announces {U64} tensors"),
    Case("GG013 2^63 tensors", _counts(tensors=1 << 63), "announces"),
    Case("GG014 2^40 tensors", _counts(tensors=1 << 40), "announces"),
    Case("GG015 10^6 tensors missing", _counts(tensors=10**6, tail=bytes(4096)), "hold at most 163"),
    Case("GG016 BAD_N_KV", _counts(kvs=U64), f"announces {U64} key-values"),
    Case("GG017 2^63 key-values", _counts(kvs=1 << 63), "announces"),
    Case("GG018 2^40 key-values", _counts(kvs=1 << 40), "announces"),
    Case("GG021 counts over zeros", _counts(tensors=U64, kvs=U64, tail=bytes(MIB)), "announces"),
    Case("GG019 10^6 key-values missing", _counts(kvs=10**6, tail=bytes(4096)), "hold at most 292"),
    Case(
        "GG020 fewer key-values than there are",
        gguf((kv("a", 4), kv("b", 4)), n_kv=1, n_tensors=1),
        "announces 1 tensors",
    ),
    Case("more key-values than there are", gguf((kv("a", 4),), (info(),), DATA, n_kv=2), "tensor[0]"),
    Case("more tensors than there are", gguf((), (info(),), DATA, n_tensors=2), "is empty or holds a NUL"),
    Case("too many key-values", _counts(kvs=100_001, tail=bytes(1_500_000)), "over the limit of 100000", LimitError),
]

KEYS = [
    Case("GG022 BAD_KEY_SIZE", gguf((gstr("k", U64),)), f"a key of {U64} bytes"),
    Case("GG023 key of 2^63", gguf((gstr("k" * 20, 1 << 63),)), "a key of"),
    Case("GG024 key of 2^40", gguf((gstr("k" * 20, 1 << 40),)), "a key of"),
    Case("GG025 key beyond the end by 1", _counts(kvs=1, tail=gstr("kkkkkk", 7)), "a key of 7 bytes, 6 are left"),
    Case("GG026 key of 65,536", gguf((kv("k" * 65_536, 4),)), "over the limit of 65535"),
    Case("GG027 EMPTY_KEY", gguf((kv("", 4),)), "key[0] at byte 24: a key is empty"),
    Case("GG028 DUPLICATE_KEY", gguf((kv("a", 4), kv("a", 5))), "a at byte 41: duplicate key (first at byte 24)"),
    Case("GG029 reserved key", gguf((kv("GGUF.version", 4),)), "keep for themselves"),
    Case("GG030 key not UTF-8", gguf((kv(b"a\xff", 4),)), "key[0] at byte 33: the text is not UTF-8"),
    Case("GG031 NUL in key", gguf((kv("a\0b", 4),)), "holds a NUL"),
    Case("GG032 escape in key", gguf((kv("\x1b[2J", 13, b""),)), "\\u{1b}[2J"),
    Case("GG032 bidi in key", gguf((kv("\u202ex", 13, b""),)), "\\u{202e}x"),
    Case("GG034 BAD_TYPE", gguf((kv("a", 13, b""),)), "a at byte 33: unknown value type 13"),
    Case("GG035 type 2^32-1", gguf((kv("a", U32, b""),)), "unknown value type 4294967295"),
    Case("GG036 string of 2^64-1", gguf((kv("a", 8, gstr("x", U64)),)), "a string of"),
    Case("GG037 string of 2^40", gguf((kv("a", 8, gstr("x", 1 << 40)),)), "a string of"),
    Case("GG038 cut by 1", _counts(kvs=1, tail=kv("a", 8, gstr("xx", 3))), "a string of 3 bytes, 2 are left"),
    Case("GG039 string not UTF-8", gguf((kv("a", 8, gstr(b"x\xff")),)), "the text is not UTF-8"),
    Case("GG040 bool 2", gguf((kv("a", 7, 2),)), "a bool must be 0 or 1, not 2"),
    Case("value cut", _counts(kvs=1, tail=kv("abc", 12, b"\0\0\0\0")), "header ends too early"),
]

ARRAYS = [
    Case("GG041 u8 2^64-1", gguf((arr("a", 0, U64),)), f"an array of {U64} values of u8"),
    Case("GG042 u8 2^40", gguf((arr("a", 0, 1 << 40),)), "an array of"),
    Case("GG043 u8 2^30 in 49 bytes", _counts(kvs=1, tail=arr("a", 0, 1 << 30)), "an array of 1073741824 values"),
    Case("GG044 u8 one past the end", _counts(kvs=1, tail=arr("a", 0, 5, b"1234")), "only 4 bytes are left"),
    Case("GG045 strings 2^40", gguf((arr("a", 8, 1 << 40),)), "values of string"),
    Case("strings 2^61", gguf((arr("a", 8, 1 << 61),)), "values of string"),
    Case("GG046 f64 whose bytes wrap", gguf((arr("a", 12, 1 << 61),)), "values of f64"),
    Case("u64 whose bytes wrap", gguf((arr("a", 10, (1 << 61) + 1, bytes(64)),)), "values of u64"),
    Case("string of 2^64-1 within", _counts(kvs=1, tail=arr("a", 8, 1, gstr("x", U64))), "string 0 of 1 ends behind"),
    Case("string of 2^63 within", _counts(kvs=1, tail=arr("a", 8, 1, gstr("x", 1 << 63))), "string 0 of 1 ends behind"),
    Case(
        "string beyond the end by 1",
        _counts(kvs=1, tail=arr("a", 8, 2, gstr("x") + gstr("yy", 3))),
        "string 1 of 2 ends",
    ),
    Case(
        "strings, the last without length",
        _counts(kvs=1, tail=arr("a", 8, 3, gstr("x") + gstr("y" * 15) + b"1234")),
        "string 2 of 3 ends",
    ),
    Case("GG048 elements of type 99, one", gguf((arr("a", 99, 1, b"x"),)), "unknown value type 99"),
    Case("GG049 elements of type 99, none", gguf((arr("a", 99, 0),)), "unknown value type 99"),
    Case("GG050 array of arrays", gguf((arr("a", 9, 1, struct.pack("<IQ", 0, 1) + b"x"),)), "an array of arrays"),
    Case("array of arrays, empty", gguf((arr("a", 9, 0),)), "an array of arrays"),
    Case("GG051 500 arrays deep", gguf((kv("a", 9, struct.pack("<IQ", 9, 1) * 500),)), "an array of arrays"),
    Case("GG052 10^5 arrays deep", gguf((kv("a", 9, struct.pack("<IQ", 9, 1) * 10**5),)), "an array of arrays"),
    Case("GG053 10^5 arrays wide", gguf((arr("a", 9, 10**5, struct.pack("<IQ", 0, 0) * 10**5),)), "an array of arrays"),
    Case("bool 2 in an array", gguf((arr("a", 7, 3, b"\1\0\2"),)), "a bool must be 0 or 1, not 2"),
    Case("array cut in its count", _counts(kvs=1, tail=gstr("a") + struct.pack("<IIH", 9, 0, 1)), "too early"),
]

ALIGNMENT = [
    *(
        Case(f"{which} {n}", gguf((kv("general.alignment", 4, n),)), "general.alignment at byte 24: must be a power")
        for which, n in _named({"GG059": 0, "GG060 BAD_ALIGN": 13, "GG061": 1 << 31, "GG062": U32}, 3, 33, 1 << 17)
    ),
    Case("GG063 WRONG_TYPE_ALIGN", gguf((kv("general.alignment", 5, 32),)), "as u32"),
    Case("GG064 alignment u64", gguf((kv("general.alignment", 10, 32),)), "as u32"),
    Case("alignment u16", gguf((kv("general.alignment", 2, 32),)), "as u32"),
    Case("alignment f32", gguf((kv("general.alignment", 6, 32.0),)), "as u32"),
    Case("alignment string", gguf((kv("general.alignment", 8, "32"),)), "as u32"),
    Case("GG064 alignment array", gguf((arr("general.alignment", 4, 1, struct.pack("<I", 32)),)), "as u32"),
    Case(
        "GG066 alignment twice", gguf((kv("general.alignment", 4, 32), kv("general.alignment", 4, 32))), "duplicate key"
    ),
    Case(
        "INCONSISTENT_ALIGN",
        gguf((kv("general.alignment", 4, 64),), (info("a"), info("b", offset=32)), bytes(96), alignment=64),
        "b at byte 90: offset 32 must be 64",
    ),
]


def _tensor(says: str, case: str, *args: object, **kwargs: object) -> Case:
    return Case(case, gguf((), (info(*args, **kwargs),), DATA), says)  # type: ignore[arg-type]


TENSORS = [
    Case("GG067 name of 2^64-1", gguf((), (gstr("t", U64) + bytes(40),)), "a tensor name of"),
    Case("GG069 BAD_NAME_SIZE", gguf((), (info("n" * 64),), DATA), "a tensor name of 64 bytes, over the limit of 63"),
    _tensor("is empty", "GG068 empty name", ""),
    _tensor("not UTF-8", "GG071 name not UTF-8", b"t\xff"),
    _tensor("holds a NUL", "GG071 NUL in name", "t\0x"),
    _tensor("\\u{1b}]8;;", "GG071 escape in name", "\x1b]8;;", kind=99),
    Case("GG072 DUPLICATE_NAME", gguf((), (info(), info(offset=32)), bytes(64)), "t at byte 57: duplicate tensor"),
    Case(
        "GG072 twins after a NUL",
        gguf((), (info("t\0a"), info("t\0b", offset=32)), bytes(64)),
        "tensor[0] at byte 24: a tensor name is empty or holds a NUL",
    ),
    Case("GG074 BAD_N_DIMS", gguf((), (info(dims=(1, 1, 1, 1, 1)),), DATA), "5 dimensions, more than 4"),
    Case(
        "GG075 2^32-1 dimensions", gguf((), (gstr("t") + struct.pack("<I", U32) + bytes(64),)), "4294967295 dimensions"
    ),
    Case("GG077 BAD_SHAPE -1", gguf((), (info(dims=(U64,)),), DATA), "overflows"),
    Case("GG078 dim 2^63", gguf((), (info(dims=(1 << 63,)),), DATA), "overflows"),
    Case("NE_TOO_BIG", gguf((), (info(dims=(4 * 0x7FFFFFFF, 4 * 0x7FFFFFFF)),), DATA), "overflows"),
    Case("GG081 NBYTES_TOO_BIG", gguf((), (info(dims=(0x7FFFFFFFFFFFFFC0,), kind=27),), DATA), "overflows"),
    Case("GG079 product wraps to 0", gguf((), (info(dims=(1 << 32, 1 << 32)),), DATA), "overflows"),
    Case("GG080 product wraps to 4", gguf((), (info(dims=((1 << 62) + 1, 4)),), DATA), "overflows"),
    Case("GG081 bytes wrap, F64", gguf((), (info(dims=(1 << 61,), kind=28),), DATA), "overflows"),
    Case("GG082 stride wraps", gguf((), (info(dims=(1 << 62, 0)),), DATA), "overflows"),
    Case("GG083 padding wraps", gguf((), (info(dims=((1 << 63) - 3,), kind=24),), DATA), "bytes are missing"),
    Case(
        "GG084 MEM_SIZE_OVERFLOW",
        gguf((), tuple(info(n, (0x7FFFFFFFFFFFFFC0,), 24, o) for n, o in (("a", 0), ("b", 0x7FFFFFFFFFFFFFC0))), DATA),
        "bytes are missing",
    ),
    *(
        Case(f"GG085 {n} tensors, whose table of {size} bytes each wraps", _counts(tensors=n), f"announces {n} tensors")
        for size in (368, 384)
        for n in ((1 << 64) // size, (1 << 64) // size + 1)
    ),
    Case("GG107 a TiB in 96 bytes", gguf((), (info(dims=(1 << 40,), kind=24),), DATA), "bytes are missing"),
    *(
        _tensor(f"tensor type {i} ({n}), which ggml has removed", f"{which} {n}", kind=i)
        for which, i, n in (
            *(("GG086", i, n) for i, n in ((4, "Q4_2"), (5, "Q4_3"))),
            *(("GG087", i, n) for i, n in ((31, "Q4_0_4_4"), (32, "Q4_0_4_8"), (33, "Q4_0_8_8"))),
            ("another", 36, "IQ4_NL_4_4"),
        )
    ),
    *(
        _tensor(f"unknown tensor type {i}", f"{which} BAD_TYPE {i}", kind=i)
        for which, i in _named({"GG088": 43, "GG089": U32}, 99)
    ),
    _tensor("rows of 33 are no whole number of MXFP4 blocks", "GG090 MXFP4 of 33", dims=(33,), kind=39),
    _tensor("rows of 31 are no whole number of Q8_0 blocks", "GG091 Q8_0 of 31", dims=(31, 32), kind=8),
    _tensor("rows of 128 are no whole number of Q4_K blocks", "Q4_K of 128", dims=(128, 2), kind=12),
    _tensor("rows of 1 are no whole number", "Q8_0 scalar", dims=(), kind=8),
]

OFFSETS = [
    *(
        _tensor(f"offset {o} must be 0", f"{number} BAD_OFFSET {o}", offset=o)
        for number, o in (("GG093", U64), ("GG094", U64 - 31), ("GG095", 3), ("GG100", 1 << 40), ("GG101", 32))
    ),
    *(
        Case(which, gguf((), (info("a", (16,)), info("b", offset=o)), bytes(256)), f"offset {o} must be 64")
        for which, o in _named({"GG096 hole": 96, "GG097 overlap": 32, "GG098 one place for two": 0}, 65)
    ),
    Case(
        "GG099 out of order",
        gguf((), (info("a", offset=32), info("b")), bytes(64)),
        "a at byte 24: offset 32 must be 0",
    ),
    Case("GG102 NOT_ENOUGH_DATA", gguf((), (info(),), bytes(15)), "1 bytes are missing"),
    Case("GG103 no data", gguf((), (info(),)), "16 bytes are missing"),
    Case("no padding before the data", gguf((), (info(),))[:57], "are missing"),
    Case("second cut", gguf((), (info("a"), info("b", offset=32)), bytes(47)), "b at byte"),
]

FOREIGN = [
    Case(
        "GG111 git-lfs pointer",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12109566560\n",
        "git-lfs pointer to a file of 12109566560 bytes",
    ),
    Case("GG111 web page", b"<html><head></head></html>", "this is a web page"),
    Case("GG111 safetensors", struct.pack("<Q", 8) + b"{}      ", "this is a safetensors file"),
    Case("pickle", pickle.dumps([1]), "this is a pickle"),
    Case("JSON", b'{"error":"x"}', "this is a JSON document"),
    Case("zeros", bytes(4096), "is no GGUF"),
]

GGUF = {
    f"{group}: {case.id}": case
    for group, cases in {
        "header": HEADER,
        "keys": KEYS,
        "arrays": ARRAYS,
        "alignment": ALIGNMENT,
        "tensors": TENSORS,
        "offsets": OFFSETS,
        "foreign": FOREIGN,
    }.items()
    for case in cases
}

EVERY = (
    *(kv(f"v.{i}", i, 1) for i in (0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12)),
    kv("v.s", 8, "text"),
    *(arr(f"a.{i}", i, 2, struct.pack("<2" + c, 1, 0)) for i, c in ((0, "B"), (1, "b"), (2, "H"), (3, "h"), (4, "I"))),
    *(
        arr(f"a.{i}", i, 2, struct.pack("<2" + c, 1, 0))
        for i, c in ((5, "i"), (6, "f"), (7, "?"), (10, "Q"), (12, "d"))
    ),
    arr("a.s", 8, 3, gstr("x") + gstr("") + gstr("한")),
)
TWO = (info("a", (32, 2), 8), info("b.weight", (4, 3), 0, 96))

GOOD = {
    "HEADER_EMPTY": gguf(),
    "every value type": gguf(EVERY),
    "KV_SUCCESS": gguf((kv("general.architecture", 8, "gpt-oss"), kv("general.alignment", 4, 32))),
    "TENSORS_SUCCESS": gguf(EVERY, TWO, bytes(96 + 64)),
    "GG011 version 2": gguf(EVERY, TWO, bytes(96 + 64), version=2),
    "GG104 last padding missing": gguf((), TWO, bytes(96 + 48)),
    "GG065 CUSTOM_ALIGN 1": gguf(
        (kv("general.alignment", 4, 1),), (info("a", (1,)), info("b", (1,), offset=4)), bytes(8), alignment=1
    ),
    "GG065 alignment 2": gguf((kv("general.alignment", 4, 2),), (info("a", (1,)),), bytes(4), alignment=2),
    "GG065 alignment 4": gguf((kv("general.alignment", 4, 4),), (info("a", (1,)),), bytes(4), alignment=4),
    "alignment 8": gguf(
        (kv("general.alignment", 4, 8),), (info("a", (3,)), info("b", (1,), offset=16)), bytes(24), alignment=8
    ),
    "alignment 65536": gguf((kv("general.alignment", 4, 65536),), (info("a"),), bytes(65536), alignment=65536),
    "GG076 ZERO_DIM": gguf((), (info("a", (0, 3)), info("b")), DATA),
    "GG073 scalar": gguf((), (info("a", ()),), DATA),
    "GG070 name of 63": gguf((), (info("n" * 63),), DATA),
    "MXFP4": gguf((), (info("a", (64, 2), 39),), bytes(96)),
    "GG092 NVFP4": gguf((), (info("a", (64, 2), 40),), bytes(96)),
    "GG105 trailing bytes": gguf((), (info("a"),), DATA + bytes(MIB)),
    "GG106 padding that is not zero": gguf((), (info("a", (3,)), info("b", offset=32)), b"\1" * 64),
    "empty arrays": gguf((arr("a", 8, 0), arr("b", 4, 0))),
    "empty string": gguf((kv("a", 8, ""),)),
    "Hangul": gguf((kv("이름", 8, "값"),), (info("무게"),), DATA),
    "GG033 key in capitals": gguf((kv("General Name", 4, 1),)),
}
