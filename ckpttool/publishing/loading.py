"""Which runtimes load what was written, and what to type there: one row a runtime and form.

The conditions are those of doctor's rules, which quote the runtimes' own code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Runtime:
    """A runtime, and how it loads checkpoints of these `dialects`.

    In `code`, of `language`, and in `note`, {repo}, {name} and {file} stand for the repo, its name without the owner
    and the first GGUF; {here} for what ckpttool is given to read it. `tag` is what to look for on the Hub, None where
    the library says it already.
    """

    title: str
    dialects: tuple[str, ...]
    install: str
    language: str
    code: str
    tag: str | None = None
    note: str = ""


_TRANSFORMERS: Final = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{repo}")
model = AutoModelForCausalLM.from_pretrained("{repo}", dtype="auto", device_map="auto")
messages = [{{"role": "user", "content": "What is a block of MXFP4?"}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
outputs = model.generate(**inputs.to(model.device), max_new_tokens=200)
print(tokenizer.decode(outputs[0, inputs["input_ids"].shape[1] :]))"""

_GPT_OSS: Final = """\
hf download {repo} --local-dir {name}
python -m gpt_oss.generate -p "What is a block of MXFP4?" {name}"""

RUNTIMES: Final = (
    Runtime(
        "transformers",
        ("hf",),
        "pip install -U 'transformers[kernels]' accelerate torch",
        "python",
        _TRANSFORMERS,
        note="The experts stay in MXFP4 where the GPU, `triton` and `kernels` allow it; elsewhere they are decoded to "
        "BF16 and take four times the memory. `ckpttool doctor {here}` says which it is on your machine, and why.",
    ),
    Runtime("transformers", ("hf-bf16",), "pip install -U transformers accelerate torch", "python", _TRANSFORMERS),
    Runtime("vLLM", ("hf", "hf-bf16"), "pip install vllm", "bash", "vllm serve {repo}", tag="vllm"),
    Runtime(
        "llama.cpp",
        ("gguf",),
        "brew install llama.cpp",
        "bash",
        "llama-server -hf {repo} --hf-file {file} -c 8192",
        tag="llama.cpp",
    ),
    Runtime(
        "OpenAI's gpt-oss",
        ("openai",),
        "pip install 'gpt-oss[torch]'",
        "bash",
        _GPT_OSS,
        note="It needs Python 3.12. transformers and vLLM read the Hugging Face form instead, which "
        "`ckpttool convert {here} {name}-hf --to mxfp4` makes of this without a loss.",
    ),
)

LIBRARIES: Final = {"hf": "transformers", "hf-bf16": "transformers", "gguf": "gguf", "openai": "gpt-oss"}
"""`library_name` by dialect: whose model it is to the Hub, which shows that library's snippet."""

OF_A_FORM: Final = re.compile(
    r"(?i)transformers|safetensors|pytorch|vllm|sglang|mlx(-lm)?|onnx|openvino|triton|tensorrt.*|ollama|lm-?studio|unsloth"
    r"|gguf.*|ggml|llama[.-]?cpp|gpt-oss|ckpttool|text-generation-inference|(endpoints|autotrain)_compatible"
    r"|quanti[sz](ed|ation)|(mx|nv)?fp\d+|bf16|f16|f32|b?float\d+|int\d|q\d_.*|\d+-bit.*|awq|gptq|bnb.*|bitsandbytes"
    r"|compressed-tensors|.*:.*"
)
"""Tags that say how the source is stored, by whom it is loaded, or what the Hub adds itself: not the target's."""


def runtimes_of(dialect: str) -> tuple[Runtime, ...]:
    """The runtimes that load checkpoints of this dialect."""
    return tuple(r for r in RUNTIMES if dialect in r.dialects)
