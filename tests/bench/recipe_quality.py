"""What each recipe of MXFP4, and each other lossy form, costs a trained model: round trips by `ckpttool validate`.

    python tests/bench/recipe_quality.py                                    the fixture and its held-out text: minutes
    python tests/bench/recipe_quality.py --transformers                     the same, held against transformers
    python tests/bench/recipe_quality.py --source FOLDER --text FILE        another gpt-oss
    python tests/bench/recipe_quality.py --packaged                         on the text that ships with the package

What came back is BF16, which holds every value of MXFP4, but rounds those of Q8_0 once more. With --transformers it is
also made by `ckpttool convert`, decoded by part, and run by transformers in FP32 on the CPU, on the same sequences: its
mean KL must be ours to a tenth of its standard error and the noise floor, or the run stops.
Another order of summation moves it by less than a thousandth of that, unless it flips a choice of experts.
Markdown on stdout.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from processes import CKPTTOOL, run

from ckpttool.checkpoint import Checkpoint, open_checkpoint
from ckpttool.codecs.formats import RECIPES
from ckpttool.validator.inputs import LENGTH
from ckpttool.validator.metrics import LogitMetrics
from ckpttool.validator.text import encoder, read_text, sequences

if TYPE_CHECKING:
    import torch

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
OTHERS = {"gguf:q8_0": ["--to", "gguf", "--outtype", "q8_0"], "gguf:f16": ["--to", "gguf", "--outtype", "f16"]}
VIAS = {f"mxfp4:{r}": ["--to", "mxfp4", "--recipe", r] for r in RECIPES} | OTHERS
"""Each way, and the conversion that it stands for."""

BACK = ("--then", "bf16")

COLUMNS = (
    "via",
    "proven there",
    "perplexity",
    "ratio",
    "KL mean",
    "median",
    "99 %",
    "max",
    "top-1",
    "top-5",
    "SQNR dB, lowest",
)


def round_trips(source: Path, text: Path | None, tokens: int) -> dict[str, Any]:
    """The report on all ways."""
    asked = [x for via in VIAS for x in ("--via", via)] + (["--text", str(text)] if text else [])
    limits = ["--max-kl", "1e300", "--min-top1", "0", "--max-ppl-ratio", "1e300"]
    command = [*CKPTTOOL, "validate", str(source), *asked, *BACK, "--tokens", str(tokens), *limits, "--json"]
    document: dict[str, Any] = run(command).document
    return document


def row(t: dict[str, Any]) -> list[str]:
    proofs = ", ".join(f"{name} {n}" for name, n in t["proofs"].items() if name not in ("bytes", "values"))
    return [
        f"`{t['via']}`", proofs, f"{t['ppl_candidate']:.3f}", f"{t['ppl_ratio']:.4f} ± {t['ppl_ratio_se']:.4f}",
        f"{t['kl_mean']:.2e} ± {t['kl_mean_se']:.0e}", f"{t['kl_median']:.2e}", f"{t['kl_p99']:.2e}",
        f"{t['kl_max']:.2e}", f"{t['top1']:.2%}", f"{t['top5']:.2%}", f"{t['sqnr']:.2f}",
    ]  # fmt: skip


def state(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Every part, decoded to FP32, under the names and in the shapes of transformers."""

    import torch

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
    """Logits [windows, LENGTH, V] of the checkpoint at `path`, by transformers."""
    import torch
    from transformers import GptOssForCausalLM

    model = GptOssForCausalLM(config).eval()
    model.load_state_dict(state(open_checkpoint(path)), strict=True)
    with torch.no_grad():
        found = [model(input_ids=batch, use_cache=False).logits for batch in windows.split(4)]
    return torch.cat(found).float().numpy()


def by_transformers(source: Path, text: Path | None, tokens: int) -> dict[str, float]:
    """The mean KL of what comes back on each way."""
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source)
    config._attn_implementation = config._experts_implementation = "eager"
    ids = encoder(open_checkpoint(source)).encode(read_text(text))
    windows = torch.tensor(sequences(ids, length=LENGTH, tokens=tokens))
    reference, out = logits(config, source, windows), {}
    with tempfile.TemporaryDirectory() as scratch:
        for via, options in VIAS.items():
            there = Path(scratch) / via.replace(":", "-")
            run([*CKPTTOOL, "convert", str(source), str(there), *options, "--json"])
            back = there.with_name(there.name + "-back")
            run([*CKPTTOOL, "convert", str(there), str(back), "--to", "bf16", "--json"])
            candidate, metrics = logits(config, back, windows), LogitMetrics()
            for n, window in enumerate(windows.numpy()):
                metrics.add(reference[n, :-1], candidate[n, :-1], window[1:], sequence=n)
            found = metrics.metrics().kl_mean
            assert found is not None
            out[via] = found
    return out


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", type=Path, default=FIXTURES / "tiny-gpt-oss" / "parent")
    parser.add_argument("--text", type=Path, default=FIXTURES / "heldout.txt")
    parser.add_argument("--packaged", action="store_true")
    parser.add_argument("--tokens", type=int, default=11_000)
    parser.add_argument("--transformers", action="store_true")
    args = parser.parse_args()
    text = None if args.packaged else args.text
    report = round_trips(args.source, text, args.tokens)
    theirs = by_transformers(args.source, text, args.tokens) if args.transformers else {}
    first = report["trips"][0]
    print(f"{first['tokens']:,} tokens, perplexity of the source {first['ppl_reference']:.3f}, "
          f"noise alone gives a KL of {first['noise_kl_mean']:.0e}.\n")  # fmt: skip
    columns = [*COLUMNS, *(["KL by transformers"] if theirs else [])]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for t in report["trips"]:
        cells = row(t) + ([f"{theirs[t['via']]:.4e}"] if theirs else [])
        print(f"| {' | '.join(cells)} |", flush=True)
        if theirs and abs(theirs[t["via"]] - t["kl_mean"]) > t["kl_mean_se"] / 10 + t["noise_kl_mean"]:
            raise SystemExit(f"{t['via']}: transformers finds a mean KL of {theirs[t['via']]}, validate {t['kl_mean']}")


if __name__ == "__main__":
    main()
