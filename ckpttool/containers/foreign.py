"""What a file is that is not what its name says: a git-lfs pointer, a web page, a pickle, another container."""

from __future__ import annotations

import re

_LFS = re.compile(rb"version https://git-lfs\.github\.com/spec/[^\n]*\n(?:[^\n]*\n)*?size (\d{1,20})\s")

MAGIC_NBYTES = 1024
"""How much of a file tells what it is."""

_PICKLES = "save the model as safetensors first; pickles can run code, and none is ever opened"

_MAGICS = (
    (b"GGUF", "this is a GGUF file", "give it a name that ends in .gguf"),
    (
        b"PK\x03\x04",
        "this is a zip archive, as torch.save writes: a pickle",
        _PICKLES,
    ),
    (
        b"GPT-OSS v1.0\0\0\0\0",
        "this is OpenAI's metal/model.bin, gpt-oss for Apple's GPUs",
        "give the repository's own folder, or original/; this one has rows left out and scales shifted by 14",
    ),
    (b"\x93NUMPY", "this is a numpy array", "only safetensors and GGUF are read"),
    (b"\x1f\x8b", "this is gzip data", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "this is zstd data", "unpack it first"),
    (b"\x89HDF", "this is an HDF5 file", "only safetensors and GGUF are read"),
    (b"tjgg", "this is a GGJT file, the format before GGUF", "convert the original checkpoint anew"),
    (b"fmgg", "this is a GGMF file, the format before GGUF", "convert the original checkpoint anew"),
    (b"lmgg", "this is a GGML file, the format before GGUF", "convert the original checkpoint anew"),
)


def recognised(head: bytes) -> tuple[str, str] | None:
    """What a file is that begins with `head`, and a hint; None where that is not known.

    Ask only about a file that has already failed as what it claims to be: a valid safetensors file may begin with
    any of these bytes.
    """
    if found := _LFS.match(head):
        return (
            f"this is a git-lfs pointer to a file of {found[1].decode()} bytes",
            "fetch the real file: git lfs pull, or hf download",
        )
    for magic, what, hint in _MAGICS:
        if head.startswith(magic):
            return what, hint
    if len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= 5:
        return "this is a pickle", _PICKLES
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "this is a web page, not a checkpoint", "download the file itself"
    if text.startswith((b"{", b"[")):
        return "this is a JSON document, without the 8 bytes of a safetensors length", "download the file itself"
    return None
