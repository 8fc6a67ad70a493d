"""What other readers make of GGUF files: llama.cpp's own (ggml's gguf.cpp, in the wheel xllamacpp), and gguf-py's.

They run in a process of their own, with a limit of memory and of time for each file, since there are files on which
they abort, eat all memory or do not end. `verdicts` gives each file's: a table, or a word of why not.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

MEMORY = 2 << 30
SECONDS = 0.15
"""Of processor time for one file; gguf-py takes one or two milliseconds for most."""

ENDS = {-signal.SIGABRT: "aborts", -signal.SIGSEGV: "crashes", -signal.SIGFPE: "divides by zero"}
ENDLESS = "does not end"


def verdicts(peer: str, files: Sequence[bytes]) -> Iterator[dict[str, Any] | str]:
    """What `peer`, "llama.cpp" or "gguf-py", says of each file: its table, or why it has none."""
    with tempfile.TemporaryDirectory() as folder:
        batch = Path(folder) / "batch"
        batch.write_bytes(b"".join(struct.pack("<Q", len(f)) + f for f in files))
        done = 0
        while done < len(files):
            command = [sys.executable, __file__, peer, str(batch), str(done)]
            run = subprocess.run(command, capture_output=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
            lines = run.stdout.splitlines()
            yield from map(json.loads, lines)
            done += len(lines)
            if run.returncode not in (0, *ENDS) or (run.returncode == 0 and done < len(files)):
                raise RuntimeError(f"{peer} ended with {run.returncode}: {run.stderr.decode(errors='replace')[-2000:]}")
            if run.returncode:
                yield ENDS[run.returncode]
                done += 1


# In the process of their own


def _main(peer: str, batch: str, start: str) -> None:
    data = Path(batch).read_bytes()
    read = {"llama.cpp": _llama_cpp, "gguf-py": _gguf_py}[peer]()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, _too_long)
    at = n = 0
    while at < len(data):
        (size,) = struct.unpack_from("<Q", data, at)
        if n >= int(start):
            try:
                signal.setitimer(signal.ITIMER_PROF, SECONDS)
                verdict = read(data[at + 8 : at + 8 + size])
                signal.setitimer(signal.ITIMER_PROF, 0)
            except (TimeoutError, MemoryError):
                verdict = ENDLESS
            print(json.dumps(verdict), flush=True)
        at, n = at + 8 + size, n + 1


def _too_long(*_: object) -> None:
    raise TimeoutError


class _Params(ctypes.Structure):
    """gguf_init_params."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


def _llama_cpp() -> Callable[[bytes], dict[str, Any] | str]:
    """gguf_init_from_buffer: the header only, as llama.cpp's loader reads it first."""
    spec = find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("xllamacpp is not installed")
    lib = ctypes.CDLL(str(next(Path(spec.origin).parent.glob("xllamacpp*.so"))))
    said: list[str] = []
    lib.kept = _LOG(lambda level, text, user: said.append(text.decode(errors="replace")))  # ctypes keeps no callback
    lib.ggml_log_set(lib.kept, None)
    pointer, n64, p, i64 = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_char_p, ctypes.c_int64
    for name, result, *arguments in (
        ("gguf_init_from_buffer", pointer, p, n64, _Params), ("gguf_free", None, pointer),
        ("gguf_get_version", ctypes.c_uint32, pointer), ("gguf_get_alignment", n64, pointer),
        ("gguf_get_data_offset", n64, pointer), ("gguf_get_n_kv", i64, pointer), ("gguf_get_key", p, pointer, i64),
        ("gguf_get_kv_type", ctypes.c_int, pointer, i64), ("gguf_get_arr_type", ctypes.c_int, pointer, i64),
        ("gguf_get_arr_n", n64, pointer, i64), ("gguf_get_arr_data", pointer, pointer, i64),
        ("gguf_get_arr_str", p, pointer, i64, n64), ("gguf_get_val_str", p, pointer, i64),
        ("gguf_get_val_data", pointer, pointer, i64), ("gguf_get_n_tensors", i64, pointer),
        ("gguf_get_tensor_name", p, pointer, i64), ("gguf_get_tensor_type", ctypes.c_int, pointer, i64),
        ("gguf_get_tensor_offset", n64, pointer, i64), ("gguf_get_tensor_size", n64, pointer, i64),
    ):  # fmt: skip
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments

    def value(ctx: Any, i: int) -> tuple[int, int | None, str]:
        """Type, elements of an array, and bytes of a value as the file has them; texts end at their first NUL."""
        kind = lib.gguf_get_kv_type(ctx, i)
        if kind == 8:
            return kind, None, _text(lib.gguf_get_val_str(ctx, i))
        if kind != 9:
            return kind, None, ctypes.string_at(lib.gguf_get_val_data(ctx, i), WIDTHS[kind]).hex()
        kind, n = lib.gguf_get_arr_type(ctx, i), lib.gguf_get_arr_n(ctx, i)
        if kind == 8:
            return kind, n, "".join(_text(lib.gguf_get_arr_str(ctx, i, j)) for j in range(n))
        return kind, n, ctypes.string_at(lib.gguf_get_arr_data(ctx, i), n * WIDTHS[kind]).hex() if n else ""

    def read(data: bytes) -> dict[str, Any] | str:
        assert lib.kept
        said.clear()
        ctx = lib.gguf_init_from_buffer(data, len(data), _Params(True, None))
        if not ctx:
            return "refuses: " + "".join(said)[:300]
        tensors = range(lib.gguf_get_n_tensors(ctx))
        found = {
            "version": lib.gguf_get_version(ctx),
            "alignment": lib.gguf_get_alignment(ctx),
            "metadata": [[lib.gguf_get_key(ctx, i).hex(), *value(ctx, i)] for i in range(lib.gguf_get_n_kv(ctx))],
            "tensors": [
                [
                    lib.gguf_get_tensor_name(ctx, i).hex(),
                    lib.gguf_get_tensor_type(ctx, i),
                    lib.gguf_get_data_offset(ctx) + lib.gguf_get_tensor_offset(ctx, i),
                    lib.gguf_get_tensor_size(ctx, i),
                ]
                for i in tensors
            ],
        }
        lib.gguf_free(ctx)
        return found

    return read


WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def _text(raw: bytes) -> str:
    return struct.pack("<Q", len(raw)).hex() + raw.hex()


def _gguf_py() -> Callable[[bytes], dict[str, Any] | str]:
    """GGUFReader, of a file, since it maps one; any error that it raises is a refusal."""
    import gguf

    path = Path(tempfile.mkdtemp(dir=Path(sys.argv[2]).parent)) / "x.gguf"

    def read(data: bytes) -> dict[str, Any] | str:
        path.write_bytes(data)
        try:
            reader = gguf.GGUFReader(path)
        except (TimeoutError, MemoryError):
            raise
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return {
            "version": int(reader.fields["GGUF.version"].parts[0][0]),
            "alignment": int(reader.alignment),
            "metadata": [_field(f) for key, f in list(reader.fields.items())[3:]],
            "tensors": [
                [t.name.encode().hex(), int(t.tensor_type), int(t.data_offset), int(t.n_bytes)] for t in reader.tensors
            ],
        }

    return read


def _field(field: Any) -> list[Any]:
    """A key-value as `value` of llama.cpp gives it."""
    key, kind, rest = field.parts[1].tobytes().hex(), int(field.parts[2][0]), field.parts[3:]
    if kind != 9:
        return [key, kind, None, b"".join(p.tobytes() for p in rest).hex()]
    return [key, int(rest[0][0]), int(rest[1][0]), b"".join(p.tobytes() for p in rest[2:]).hex()]


if __name__ == "__main__":
    _main(*sys.argv[1:])
