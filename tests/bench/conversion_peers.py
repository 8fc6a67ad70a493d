"""What our conversions race against beside llama.cpp: `python conversion_peers.py NAME SOURCE TARGET ...`.

* `transformers SOURCE FOLDER`: load the MXFP4 folder, dequantize to BF16, save;
* `copy SOURCE TARGET NBYTES`: read every byte of the source's tensors, write NBYTES; the floor, one thread.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

CHUNK = 16 << 20


def transformers(source: str, target: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, Mxfp4Config

    config = Mxfp4Config(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16, quantization_config=config)
    model.save_pretrained(target)


def copy(source: str, target: str, nbytes: str) -> None:
    left = int(nbytes)
    buffer = memoryview(bytearray(CHUNK))
    paths = [Path(source)] if Path(source).is_file() else sorted(Path(source).glob("*.safetensors"))
    with open(target, "wb", buffering=0) as out:
        os.posix_fallocate(out.fileno(), 0, left)
        for path in paths:
            with path.open("rb", buffering=0) as f:
                while got := f.readinto(buffer):
                    left -= out.write(buffer[: min(got, left)])
        while left:
            left -= out.write(buffer[: min(CHUNK, left)])


if __name__ == "__main__":
    {"transformers": transformers, "copy": copy}[sys.argv[1]](*sys.argv[2:])
