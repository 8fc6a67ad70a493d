"""What each recipe of MXFP4, and each other lossy target, costs a trained model: predictions against its parent's.

    python tests/bench/recipe_quality.py                                    the fixture and its held-out text: a minute
    python tests/bench/recipe_quality.py --source FOLDER --text FILE        another gpt-oss that fits into memory
    python tests/bench/recipe_quality.py --packaged                         on the text that ships with the package

Every candidate is converted by the command line, decoded by part, and run by transformers in FP32 on the CPU; figures
are those of `ckpttool.validator.metrics`. Markdown on stdout.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from processes import CKPTTOOL, run
from transformers import AutoConfig, GptOssForCausalLM

from ckpttool.checkpoint import Checkpoint, open_checkpoint
from ckpttool.codecs.formats import RECIPES
from ckpttool.diff import compare
from ckpttool.validator.metrics import LogitMetrics, Metrics
from ckpttool.validator.text import encoder, packaged_text, sequences

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
WINDOW = 256
OTHERS = {"Q8_0": ("q8_0.gguf", ["--outtype", "q8_0"]), "F16": ("f16.gguf", ["--outtype", "f16"])}


def state(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Every part, decoded to FP32, under the names and in the shapes of transformers."""

    def part(name: str) -> torch.Tensor:
        return torch.from_numpy(checkpoint.part(name).array())

    def experts(layer: int, name: str) -> torch.Tensor:
        gate, up = (part(f"layer.{layer}.{x}{name}") for x in ("gate", "up"))
        return torch.stack((gate, up), 2).flatten(1, 2)

    out = {
        "model.embed_tokens.weight": part("embed"),
        "model.norm.weight": part("norm"),
        "lm_head.weight": part("head"),
    }
    assert checkpoint.sizes is not None
    for n in range(checkpoint.sizes["L"]):
        at, mlp = f"model.layers.{n}.self_attn", f"model.layers.{n}.mlp"
        out[f"model.layers.{n}.input_layernorm.weight"] = part(f"layer.{n}.attn_norm")
        out[f"model.layers.{n}.post_attention_layernorm.weight"] = part(f"layer.{n}.mlp_norm")
        out[f"{at}.sinks"] = part(f"layer.{n}.sinks")
        for x in "qkvo":
            out[f"{at}.{x}_proj.weight"] = part(f"layer.{n}.{x}")
            out[f"{at}.{x}_proj.bias"] = part(f"layer.{n}.{x}.bias")
        out[f"{mlp}.router.weight"], out[f"{mlp}.router.bias"] = (
            part(f"layer.{n}.router"),
            part(f"layer.{n}.router.bias"),
        )
        out[f"{mlp}.experts.gate_up_proj"] = experts(n, "").transpose(1, 2)
        out[f"{mlp}.experts.gate_up_proj_bias"] = experts(n, ".bias")
        out[f"{mlp}.experts.down_proj"] = part(f"layer.{n}.down").transpose(1, 2)
        out[f"{mlp}.experts.down_proj_bias"] = part(f"layer.{n}.down.bias")
    return out


def logits(config: Any, path: Path, windows: torch.Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Logits [windows, WINDOW, V] of the checkpoint at `path`."""
    model = GptOssForCausalLM(config).eval()
    model.load_state_dict(state(open_checkpoint(path)), strict=True)
    with torch.no_grad():
        found = [model(input_ids=batch, use_cache=False).logits for batch in windows.split(8)]
    return torch.cat(found).float().numpy()


def measured(reference: Any, candidate: Any, windows: torch.Tensor) -> Metrics:
    metrics = LogitMetrics()
    for n, window in enumerate(windows.numpy()):
        metrics.add(reference[n, :-1], candidate[n, :-1], window[1:], sequence=n)
    return metrics.metrics()


def sqnr(reference: Path, candidate: Path) -> tuple[float, float]:
    """The lowest and the median SQNR of the lossy parts, in dB."""
    found = [p.sqnr for p in compare(reference, candidate).parts if p.sqnr is not None]
    return min(found), float(np.median(found))


def row(name: str, m: Metrics, noise: tuple[float, float]) -> str:
    ratio = f"{m.ppl_ratio:.4f} ± {m.ppl_ratio_se:.4f}"
    kl = f"{m.kl_mean:.2e} ± {m.kl_mean_se:.0e} | {m.kl_median:.2e} | {m.kl_p99:.2e} | {m.kl_max:.2e}"
    return (
        f"| {name} | {m.ppl_candidate:.3f} | {ratio} | {kl} "
        f"| {m.top1:.2%} | {m.top5:.2%} | {noise[0]:.2f} | {noise[1]:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", type=Path, default=FIXTURES / "tiny-gpt-oss" / "parent")
    parser.add_argument("--text", type=Path, default=FIXTURES / "heldout.txt")
    parser.add_argument("--packaged", action="store_true")
    args = parser.parse_args()
    config = AutoConfig.from_pretrained(args.source)
    config._attn_implementation = config._experts_implementation = "eager"
    text = packaged_text() if args.packaged else args.text.read_text("utf-8")
    ids = encoder(open_checkpoint(args.source)).encode(text)
    windows = torch.tensor(sequences(ids, length=WINDOW))
    reference = logits(config, args.source, windows)
    self_check = measured(reference, reference, windows)
    assert self_check.kl_max == 0
    print(f"{self_check.tokens:,} tokens, perplexity of the parent {self_check.ppl_reference:.3f}\n")
    print("| candidate | perplexity | ratio | KL mean | median | 99 % | max | top-1 | top-5 | SQNR dB, min | median |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        targets = {f"MXFP4 `{r}`": (r, ["--to", "mxfp4", "--recipe", r]) for r in RECIPES} | OTHERS
        for name, (place, options) in targets.items():
            target = Path(scratch) / place
            run([*CKPTTOOL, "convert", str(args.source), str(target), *options, "--json"])
            found = measured(reference, logits(config, target, windows), windows)
            print(row(name, found, sqnr(args.source, target)), flush=True)


if __name__ == "__main__":
    main()
