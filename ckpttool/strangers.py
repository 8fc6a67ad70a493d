"""Files that lie beside a conversion and that its receipt does not name: which of them those read who load it."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable

LOADED_ENDINGS = (
    ".safetensors", ".index.json", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5", ".py", ".so",
    ".jinja", ".model", ".tiktoken",
)  # fmt: skip
"""Weights, code, templates and tokenizers, as transformers, vLLM and sglang look for them."""

LOADED_NAMES = frozenset({
    "adapter_config.json", "added_tokens.json", "chat_template.json", "config.json", "generation_config.json",
    "hf_quant_config.json", "merges.txt", "params.json", "preprocessor_config.json", "processor_config.json",
    "quantize_config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.json",
    "vocab.txt",
})  # fmt: skip

TEMPLATES = "additional_chat_templates"
"""The one folder beneath a checkpoint's that transformers reads."""

GITS = frozenset({".gitattributes"})
"""What every repo of the Hub has, and nobody loads."""


def strangers(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Those of `names`, paths in the folder of a conversion, that are not `known`, sorted."""
    return sorted(set(names) - set(known) - GITS)


def is_loaded(name: str) -> bool:
    """Whether a loader of the folder may take the file `name` for a part of the checkpoint."""
    folder, last = posixpath.split(name)
    if folder == TEMPLATES:
        return last.endswith(".jinja")
    return not folder and not last.startswith(".") and (last in LOADED_NAMES or last.endswith(LOADED_ENDINGS))
