"""What config.json declares of its weights, held against them: a value that means nothing is an error, another format
than the weights have is a note. Shapes decide; but loaders go by what is declared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ckpttool.archs import Claim
from ckpttool.codecs.formats import Packing
from ckpttool.errors import InputError
from ckpttool.recognition.stated import stated
from ckpttool.tensors import Weight

CONFIG, SECTION = "config.json", "quantization_config"
MXFP4, MXFP4_BLOCK = "mxfp4", 32
HEAD = ("head",)


def faults(config: Mapping[str, Any]) -> Iterator[InputError]:
    """Values of `quantization_config` that no library writes."""
    section = config.get(SECTION)
    if section is None:
        return
    if not isinstance(section, Mapping):
        yield _fault(SECTION, "must be an object", section)
        return
    method = section.get("quant_method")
    if method is not None and not isinstance(method, str):
        yield _fault(f"{SECTION}.quant_method", "must be a word", method)
    kept = section.get("modules_to_not_convert")
    if kept is not None and not (isinstance(kept, list) and all(isinstance(x, str) for x in kept)):
        yield _fault(f"{SECTION}.modules_to_not_convert", "must be a list of names", kept)
    group = section.get("group_size")
    if method == MXFP4 and group is not None and (type(group) is not int or group != MXFP4_BLOCK):
        yield _fault(f"{SECTION}.group_size", f"must be {MXFP4_BLOCK}, as MXFP4's blocks are", group)


def _fault(field: str, says: str, value: object) -> InputError:
    return InputError(
        f"{says}, not {value!r:.40}", file=CONFIG, field=field, hint="take the file of the original model"
    )


def notes(config: Mapping[str, Any] | None, weights: Iterable[Weight], claims: Mapping[str, Claim]) -> Iterator[str]:
    """Where config.json and the weights of a known dialect part. A file without `model_type` declares no format."""
    if config is None or not claims or config.get("model_type") is None:
        return
    method = stated(config).method
    packed = any(w.codec.packing is Packing.pair for w in weights)
    if packed and method != MXFP4:
        said = f"says quant_method {method!r}" if method else f"has no {SECTION} with a quant_method"
        yield f"{CONFIG} {said}, but weights are MXFP4, which loaders will not decode then"
    elif method == MXFP4 and not packed:
        yield f"{CONFIG} says quant_method {MXFP4!r}, but no weight is MXFP4"
    head = next((name for name, c in claims.items() if c.join.parts == HEAD), None)
    if head is not None and config.get("tie_word_embeddings") is True:
        yield f"{CONFIG} says tie_word_embeddings, but {head} is stored: loaders take the embedding in its place"
