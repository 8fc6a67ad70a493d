"""The command line: strings -> one API call -> render. No logic lives here."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import click

from ckpttool import __version__, cli_process
from ckpttool.codecs.formats import RECIPES, ScaleRule, TieRule
from ckpttool.target import LEGAL

F = TypeVar("F", bound=Callable[..., Any])

PATH = click.Path(readable=False)
"""What may not be read is for those to say who read it: that is no fault of the command line."""

EXITS = "Exit codes: 0 ok, 1 a check failed, 2 usage, 3 bad input, 4 local I/O, 5 network, 6 a limit, 70 a bug."


def _words(*words: str) -> dict[str, Any]:
    """Words that the shell completes. Which are legal together is for `target` to say: it names the legal choice."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
        return [w for w in words if w.startswith(incomplete)]

    return {"metavar": f"{{{','.join(words)}}}", "shell_complete": complete}


def _legal_table() -> str:
    width = max(len(" ".join(row["experts"])) for row in LEGAL.values())
    lines = [f"{'--to':8}{'--experts':{width + 2}}{'--outtype':40}--dtype"]
    for to, row in LEGAL.items():
        experts, outtype, dtype = (" ".join(row[k]) or "-" for k in ("experts", "outtype", "dtype"))
        lines.append(f"{to:8}{experts:{width + 2}}{outtype:40}{dtype}")
    return "\n".join(lines)


PUBLISHING = (
    "free_disk", "workdir", "force", "private", "revision", "pr", "validation", "quantized_by", "allow_endpoint",
)  # fmt: skip
"""Options of convert that are of a TARGET on the Hub."""

CONVERT_EPILOG = f"""\b
Legal combinations (the first of each is the default; - means that the option may not be given):
{_legal_table()}
--outtype mxfp4_moe goes with --experts auto, keep or mxfp4.

\b
Examples:
  ckpttool convert gpt-oss-20b gpt-oss-20b-bf16 --to bf16        MXFP4 to BF16, every value exact
  ckpttool convert my-finetune my-finetune-mxfp4 --to mxfp4      BF16 back to MXFP4
  ckpttool convert gpt-oss-20b gpt-oss-20b.gguf                  for llama.cpp, byte for byte as its converter
  ckpttool convert gpt-oss-20b.gguf gpt-oss-20b --to mxfp4       and back, for transformers and vLLM
  ckpttool convert my-finetune x.gguf --experts mxfp4 --dry-run  what it would take
  ckpttool convert openai/gpt-oss-20b hf://me/gpt-oss-20b-bf16 --to bf16 --free-disk   from repo to repo, in two shards


To the Hub: each file goes up as soon as it is read back, all of it becomes visible in one commit, with a model card and
the receipt. The same command goes on where it was stopped, also on another machine, and sends nothing that the Hub has.
Where the repo already holds what this version makes of this commit, it says so and reads no tensor.
Token, endpoint and cache are huggingface_hub's: hf auth login, HF_TOKEN, HF_ENDPOINT.

{EXITS}"""


def _shared(command: F) -> F:
    """The options of every command."""
    command = click.option("--debug", is_flag=True, help="Show the traceback of an error.")(command)
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document, errors included.")(command)


@click.group(
    invoke_without_command=True,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog=EXITS,
)
@click.version_option(__version__, prog_name="ckpttool")
@click.pass_context
def cli(context: click.Context) -> None:
    """Convert, inspect and verify open-weight mixture-of-experts checkpoints.

    BF16 and MXFP4 safetensors, OpenAI's original layout and GGUF, in every direction, in bounded memory.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(2)


@cli.command(epilog=CONVERT_EPILOG)
@click.argument("source", type=PATH)
@click.argument("target", type=PATH)
@click.option("--to", **_words(*LEGAL), help="What to write; x.gguf as TARGET says gguf.")
@click.option(
    "--experts",
    **_words(*LEGAL["gguf"]["experts"]),
    help="The experts' format. auto: what --to says; for gguf MXFP4 is repacked, the rest follows --outtype.",
)
@click.option(
    "--outtype",
    **_words(*LEGAL["gguf"]["outtype"]),
    help="GGUF: as llama.cpp's converter means it; mxfp4_moe: experts MXFP4, the rest Q8_0.",
)
@click.option(
    "--dtype", **_words(*LEGAL["bf16"]["dtype"]), help="HF targets: the weights that are no experts. Default bf16."
)
@click.option("--recipe", **_words(*RECIPES), default="best", show_default=True, help="How MXFP4 is made.")
@click.option("--scale-rule", **_words(*ScaleRule), help="Replace the recipe's scale rule.")
@click.option("--ties", **_words(*TieRule), help="Replace the recipe's tie rule.")
@click.option("--lossless", is_flag=True, help="Stop rather than lose a value.")
@click.option(
    "--device",
    **_words("auto", "cpu", "cuda", "cuda:N"),
    default="auto",
    show_default=True,
    help="Where to compute: cores, or NVIDIA GPUs (cuda:0,cuda:1: both; needs the [torch] extra). auto measures.",
)
@click.option("--workers", type=click.IntRange(1), help="Threads. Default: one for each core, and two for each GPU.")
@click.option("--max-memory", default="512MB", show_default=True, metavar="SIZE", help="Memory to work in.")
@click.option("--max-gpu-memory", default="2GB", show_default=True, metavar="SIZE", help="The same of each GPU.")
@click.option("--max-shard-size", metavar="SIZE", help="Default: 5GB for safetensors; a GGUF is one file.")
@click.option(
    "--reference",
    type=PATH,
    metavar="DIR",
    help="Take missing config, tokenizer, template, licence from DIR, or org/repo.",
)
@click.option("--model-name", metavar="NAME", help="GGUF: general.name and the names derived from it.")
@click.option("--dry-run", is_flag=True, help="Print the exact plan and write nothing.")
@click.option("--overwrite", is_flag=True, help="Replace TARGET once the new one is complete.")
@click.option("--no-verify", is_flag=True, help="Do not read back what was written.")
@click.option("--free-disk", is_flag=True, help="To the Hub: delete each file here once the Hub has it.")
@click.option("--workdir", type=PATH, metavar="DIR", help="To the Hub: make the files there, not here.")
@click.option("--force", is_flag=True, help="To the Hub: convert though the repo is up to date.")
@click.option("--private/--public", default=None, help="Of a repo that is made now. Default: the account's.")
@click.option("--revision", metavar="BRANCH", help="Publish there; made from main if missing. Default: main.")
@click.option("--pr", is_flag=True, help="Open a pull request instead of changing the branch.")
@click.option(
    "--validation", type=PATH, metavar="FILE", help="Put the figures of `ckpttool validate --json` in the card."
)
@click.option("--quantized-by", metavar="NAME", help="Whom the card names.")
@click.option("--allow-endpoint", is_flag=True, help="Send the token to another host than the Hub's, or without TLS.")
@_shared
def convert(
    source: str,
    target: str,
    workers: int | None,
    max_memory: str,
    max_gpu_memory: str,
    device: str,
    dry_run: bool,
    overwrite: bool,
    no_verify: bool,
    as_json: bool,
    debug: bool,
    **options: Any,
) -> None:
    """Convert the checkpoint SOURCE to TARGET.

    SOURCE is a Hugging Face folder, OpenAI's original/ folder, a .safetensors file or a GGUF, here or remote: org/repo,
    org/repo@revision, hf://, https://, s3://. TARGET is a folder, x.gguf, or a repo of the Hub: hf://org/repo[@branch],
    hf://org/repo/x.gguf. A conversion that was interrupted goes on when the same command is given again.
    """
    from ckpttool import api, render
    from ckpttool.publishing.repos import is_repo_url

    limits = api.limit(device=device, workers=workers, max_memory=max_memory, max_gpu_memory=max_gpu_memory)
    publishing = {name: options.pop(name) for name in PUBLISHING}
    if is_repo_url(target):
        _refuse({"--no-verify": no_verify or None}, "does not go with hf://: what is published is read back", "convert")
        _convert_to_hub(source, target, limits, dry_run, as_json, {**options, **publishing, "overwrite": overwrite})
        return
    private = publishing.pop("private")
    given = {f"--{name.replace('_', '-')}": value or None for name, value in publishing.items()}
    given |= {"--private": private or None, "--public": private is False or None}
    _refuse(given, "goes with hf://org/repo as TARGET", "convert")
    plan = api.plan(source, target, **options)
    if dry_run:
        render.show_plan(api.preview(plan, limits, overwrite=overwrite), as_json)
        return
    with render.progress(plan.tensor_nbytes, "converting", quiet=as_json) as advance:
        report = api.execute(plan, limits, overwrite=overwrite, verify=not no_verify, progress=advance)
    render.show_conversion(report, str(plan.place.receipt), as_json)


def _convert_to_hub(
    source: str, target: str, limits: Any, dry_run: bool, as_json: bool, options: dict[str, Any]
) -> None:
    from ckpttool import api, render

    conversion = api.hub_conversion(source, target, limits, **options)
    if dry_run:
        plan, foreseen = conversion.preview()
        if plan is not None and not as_json:
            render.show_plan(plan, as_json)
        render.show_publication(foreseen, as_json, listed=plan is None)
        return
    quiet = as_json or conversion.is_current
    with (
        render.progress(conversion.plan.tensor_nbytes, "converting", quiet=quiet) as advance,
        render.progress(conversion.plan.nbytes, "uploading", quiet=quiet) as sent,
    ):
        report = conversion.run(advance, sent)
    if report.conversion is not None and not as_json:
        place = conversion.plan.place
        receipt = f"{report.url}/{place.receipt_name}" if conversion.frees else str(place.receipt)
        render.show_conversion(report.conversion, receipt, as_json)
    render.show_publication(report, as_json)


INSPECT_EPILOG = f"""\b
Headers alone are read, but for what --scales, --codes, --experts and --check say. Scales lie beside the codes in
safetensors (1/17 of MXFP4's bytes); in a GGUF between them, so that all its blocks are read.
At a remote end values are read with --scales or --codes alone, by ranges.

\b
Examples:
  ckpttool inspect gpt-oss-20b                           a spec sheet, the tensors by kind, what is wrong
  ckpttool inspect openai/gpt-oss-120b                   the same of a repo of the Hub; nothing is downloaded
  ckpttool inspect gpt-oss-20b --tensors '*.7.mlp.*'     some tensors, one a line, with file and offset
  ckpttool inspect my-finetune-mxfp4 --experts           a dead, copied or misplaced expert shows
  ckpttool inspect gpt-oss-20b --html page.html          one file that opens in a browser, without a network
  ckpttool inspect my-finetune.gguf --check --json       for a script: findings, exit code 1 where one is an error

{EXITS}
1 here: --check, and a finding is an error."""


@cli.command(epilog=INSPECT_EPILOG)
@click.argument("source", type=PATH)
@click.option("--tensors", metavar="GLOB", help="These alone, one a line: names of weights, stored tensors or parts.")
@click.option("--scales", is_flag=True, help="Count block scales by exponent, for each tensor and expert.")
@click.option("--codes", is_flag=True, help="Count MXFP4 codes: saturated, -0, zero blocks; who quantized. Reads all.")
@click.option("--experts", is_flag=True, help="Every layer with experts, and each expert's scales against the others'.")
@click.option("--check", is_flag=True, help="Look for damage, in values too; exit 1 where something is an error.")
@click.option("--html", type=PATH, metavar="FILE", help="Write a page of it, scales and experts too ([report] extra).")
@_shared
def inspect(source: str, html: str | None, as_json: bool, debug: bool, **options: Any) -> None:
    """Show what the checkpoint SOURCE holds: a summary, formats and shapes of its tensors, and what is wrong with it.

    SOURCE is what convert takes, any other safetensors or GGUF file, or a remote one: org/repo, hf://, https://, s3://.
    """
    from ckpttool import inspector, render

    if html is not None:
        render.check_place(html)
    inspection = inspector.Inspector(source, inspector.Asked(**options, page=html is not None))
    with render.progress(inspection.nbytes, "reading", quiet=as_json or not inspection.nbytes) as advance:
        report = inspection.run(advance)
    if html is not None:
        render.save_inspection_page(report, html)
    render.show_inspection(report, as_json, every=options["tensors"] is not None)
    if html is not None:
        render.show_place(html, as_json)
    if options["check"] and not report.ok:
        sys.exit(1)


ESTIMATE_EPILOG = f"""\b
Examples:
  ckpttool estimate openai/gpt-oss-120b                         which GPUs hold it, and the command that serves it
  ckpttool estimate gpt-oss-20b --context 131072 --batch 8 --gpu "RTX 4090"
  ckpttool estimate my-finetune --as mxfp4 --gpu 24GB           before it is converted
  ckpttool estimate gpt-oss-120b --tp 2 --kv-cache-dtype fp8 --json

{EXITS}"""


@cli.command(epilog=ESTIMATE_EPILOG)
@click.argument("source", type=PATH)
@click.option("--context", type=click.IntRange(1), metavar="N", help="Tokens a sequence. Default: 8192, or all it has.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Sequences at once.")
@click.option("--kv-cache-dtype", **_words("fp16", "fp8"), default="fp16", show_default=True, help="fp16: BF16 too.")
@click.option("--tp", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="GPUs to split over.")
@click.option(
    "--gpu-memory-utilization",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.9,
    show_default=True,
    metavar="F",
    help="The share of a GPU's memory that may be used.",
)
@click.option("--gpu", metavar="NAME|SIZE", help="One GPU, such as H100 or 80GB. Default: every usual size.")
@click.option(
    "--as",
    "form",
    **_words("bf16", "mxfp4", "nvfp4", "fp8", "int4"),
    help="Price its weights in another format, without converting.",
)
@_shared
def estimate(source: str, as_json: bool, debug: bool, **options: Any) -> None:
    """Say what serving the checkpoint SOURCE takes: weights, KV cache, overhead; which GPUs hold it, and how fast."""
    from ckpttool import render
    from ckpttool.serving import estimator

    render.show_estimate(estimator.estimate(source, **options), as_json)


DOCTOR_EPILOG = f"""\b
Examples:
  ckpttool doctor gpt-oss-20b                             will it run here, and how
  ckpttool doctor gpt-oss-120b --gpu L4                   and there
  ckpttool doctor --gpu B200 --with triton=3.3            gpt-oss in MXFP4 in general, with another triton
  ckpttool doctor gpt-oss-20b --python ~/venv/bin/python --require native
  vllm serve gpt-oss-20b 2>&1 | ckpttool doctor gpt-oss-20b --log -

{EXITS}
1 here: --require native, and an installed runtime takes another path."""


@cli.command(epilog=DOCTOR_EPILOG)
@click.argument("source", type=PATH, required=False)
@click.option("--gpu", metavar="NAME|sm_N|cpu", help="As if this were here: T4, sm_120, MI300X, 4 x L40S ...")
@click.option("--python", type=PATH, metavar="PATH", help="The packages of this interpreter or environment.")
@click.option("--with", "extra", multiple=True, metavar="PKG=VERSION", help="As if it were installed; none: as if not.")
@click.option("--log", type=click.Path(allow_dash=True), metavar="FILE|-", help="Look for known messages in a log.")
@click.option("--require", **_words("native"), help="Exit 1 unless every installed runtime takes this path.")
@_shared
def doctor(source: str | None, as_json: bool, debug: bool, **options: Any) -> None:
    """Say whether the checkpoint SOURCE runs here, on which path in each runtime, and if not well, what to type.

    Without SOURCE it is about gpt-oss in MXFP4 in general.
    """
    from ckpttool import render
    from ckpttool.doctor import diagnosis

    report = diagnosis.diagnose(source, **options)
    render.show_doctor(report, as_json)
    if not report.ok:
        sys.exit(1)


DIFF_EPILOG = f"""\b
Each part is: equal bytes (the same stored bits, packing aside), equal values (decoded; -0 equals 0), or differs; then
max abs error, relative error |b - a| / |a| and SQNR are those of B against A. Config and tokenizer are shown beside.

\b
Examples:
  ckpttool diff gpt-oss-20b gpt-oss-20b.gguf              identical values, all parts
  ckpttool diff my-finetune my-finetune-mxfp4 --json      what quantizing cost, for each part and expert
  ckpttool diff openai/gpt-oss-20b org/fork --headers-only    parts, shapes, formats and config; nothing is downloaded

{EXITS}
1 here: a value differs, or a part is missing or of another shape. With --headers-only 0 says that the headers agree,
and nothing of values: `identical` is then null."""


@cli.command(epilog=DIFF_EPILOG)
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@click.option("--headers-only", is_flag=True, help="Compare what headers and config say; read no tensor data.")
@_shared
def diff(a: str, b: str, headers_only: bool, as_json: bool, debug: bool) -> None:
    """Show what differs between the checkpoints A and B, in any dialects and containers, part by part."""
    from ckpttool import diff as differ
    from ckpttool import render

    sides = differ.opened(a, b)
    total = 0 if headers_only else differ.compared_nbytes(*sides)
    with render.progress(total, "comparing", quiet=as_json or headers_only) as advance:
        report = differ.diff(*sides, headers_only=headers_only, progress=advance)
    render.show_diff(report, as_json)
    if not report.agrees:
        sys.exit(1)


VERIFY_EPILOG = f"""\b
Of a repo nothing large is downloaded: large files are held against the sha256 that the Hub lists, small ones are read.
With --source the conversion is planned again as its receipt says. Layout, header and side files have to come out the
same, and so have sampled slabs, which are converted again in memory; the same ones each time, of every file and kind
of step. --samples 1000000 takes all.

\b
Examples:
  ckpttool verify my-finetune-mxfp4                             is it still what was written?
  ckpttool verify org/my-finetune-mxfp4                         is it what was published?
  ckpttool verify org/my-finetune-mxfp4@v1.0 --source org/my-finetune@4f2a91c --samples 200
  ckpttool verify hf://org/my-finetune-GGUF/x.gguf --json       one GGUF of several

{EXITS}
1 here: a file is not what the receipt says, or not what comes of the source. 3: there is no receipt, or --source is
not what the receipt says was converted."""


@cli.command(epilog=VERIFY_EPILOG)
@click.argument("target", type=PATH)
@click.option("--source", type=PATH, metavar="SOURCE", help="Also that TARGET is what this gives.")
@click.option("--samples", type=click.IntRange(1), metavar="N", help="Slabs to convert again. Default: 32, or more.")
@click.option("--reference", type=PATH, metavar="DIR", help="Where the receipt's --reference lies now.")
@_shared
def verify(
    target: str, source: str | None, samples: int | None, reference: str | None, as_json: bool, debug: bool
) -> None:
    """Hold a finished conversion TARGET against its receipt: sha256 of every file, CRC-32 of every tensor.

    TARGET is a folder, a GGUF or a receipt here, or a repo of the Hub: org/repo, org/repo@revision, hf://org/repo/x.gguf.
    """
    from ckpttool import render, verifier

    verification = verifier.Verifier(target, source=source, samples=samples, reference=reference)
    with render.progress(verification.nbytes, "verifying", quiet=as_json or not verification.nbytes) as advance:
        report = verification.run(advance)
    render.show_verification(report, as_json)
    if not report.ok:
        sys.exit(1)


UPLOAD_EPILOG = f"""\b
What goes up is what the conversion's receipt names, each file held against it first; licence files, the receipt and a
model card (README.md). Nothing else of DIR does, and nothing where a text file holds what looks like a token. All of
it becomes visible in one commit; the same command again goes on, and sends nothing that the Hub has.
Token, endpoint and cache are huggingface_hub's: hf auth login, HF_TOKEN, HF_ENDPOINT.

\b
Examples:
  ckpttool upload gpt-oss-20b-mxfp4 me/gpt-oss-20b-mxfp4 --dry-run       what would go up, and whether it may
  ckpttool upload gpt-oss-20b-mxfp4 me/gpt-oss-20b-mxfp4 --private
  ckpttool upload gpt-oss-20b.gguf me/gpt-oss-20b-gguf --quantized-by me
  ckpttool upload gpt-oss-20b-mxfp4 org/gpt-oss-20b-mxfp4 --pr           as a pull request
  ckpttool upload my-mxfp4 me/my-mxfp4 --card-only --validation v.json   the quality figures into the card

{EXITS}"""


@cli.command(epilog=UPLOAD_EPILOG)
@click.argument("folder", metavar="DIR", type=PATH)
@click.argument("repo", metavar="REPO")
@click.option("--private/--public", default=None, help="Of a repo that is made now. Default: the account's.")
@click.option("--revision", metavar="BRANCH", help="Publish there; made from main if missing. Default: main.")
@click.option("--pr", is_flag=True, help="Open a pull request instead of changing the branch.")
@click.option("--dry-run", is_flag=True, help="Check all, say what would go up, and send nothing.")
@click.option("--card-only", is_flag=True, help="Write the model card alone; with --dry-run print it.")
@click.option(
    "--validation", type=PATH, metavar="FILE", help="Put the figures of `ckpttool validate --json` in the card."
)
@click.option("--quantized-by", metavar="NAME", help="Whom the card names.")
@click.option("--message", metavar="TEXT", help="The commit's title.")
@click.option("--allow-endpoint", is_flag=True, help="Send the token to another host than the Hub's, or without TLS.")
@_shared
def upload(folder: str, repo: str, as_json: bool, debug: bool, **options: Any) -> None:
    """Publish the finished conversion DIR, a folder or a GGUF, in REPO of the Hugging Face Hub: org/repo[@branch]."""
    from ckpttool import render
    from ckpttool.publishing.upload import Asked, Uploader

    uploader = Uploader(folder, repo, Asked(**options))
    with render.progress(uploader.nbytes, "checking", quiet=as_json or not uploader.nbytes) as advance:
        uploader.check(advance)
    with render.progress(uploader.nbytes, "uploading", quiet=as_json or options["dry_run"]) as advance:
        report = uploader.run(advance)
    card = uploader.card if options["card_only"] and options["dry_run"] else None
    render.show_publication(report, as_json, card=card)


VALIDATE_EPILOG = f"""\b
Levels, each with those before it:
  structure  headers and side files: parts, shapes, config, tokenizer, chat template, end tokens
  values     every part: bytes or values where a conversion keeps them, else how it was rounded, and the loss
  forward    both models on one text: KL divergence, top-1, perplexity, drift and flips by layer ([torch] extra)

\b
What a lossy conversion may cost unless limits are given, by the format it went to:
          --max-kl  --min-top1  --max-ppl-ratio  --min-sqnr
  F16        0.001        0.99            1.005          60
  BF16       0.005        0.98             1.01          45
  Q8_0        0.01        0.97             1.02          35
  MXFP4        0.2         0.8             1.15          15
  others       0.2         0.8             1.15          12
Where no value is lost, predictions may differ by the noise floor alone: the reference summed in another order.

\b
Examples:
  ckpttool validate gpt-oss-20b gpt-oss-20b-bf16                    exact, or where it is not
  ckpttool validate gpt-oss-20b gpt-oss-20b.gguf --level values     without torch
  ckpttool validate my-finetune my-finetune-mxfp4 --html page.html  what quantizing cost, as a page
  ckpttool validate my-finetune my.gguf --prompts chats.jsonl --reasoning-effort low
  ckpttool validate my-finetune --via mxfp4 --via mxfp4:ocp --via gguf:q8_0 --csv recipes.csv

{EXITS}
1 here: the verdict is failed."""


@cli.command(epilog=VALIDATE_EPILOG)
@click.argument("reference", type=PATH)
@click.argument("candidate", type=PATH, required=False)
@click.option(
    "--level", **_words("structure", "values", "forward"), default="forward", show_default=True, help="How far to go."
)
@click.option("--text", type=PATH, metavar="FILE", help="What both predict. Default: a text of the package.")
@click.option("--tokens", type=int, metavar="N", help="Of the text, in sequences of 512. Default: 2048; on a GPU 4096.")
@click.option(
    "--prompts",
    type=PATH,
    metavar="FILE.jsonl",
    help='Conversations too, by the chat template: {"messages": [...], "answer": "..."} a line.',
)
@click.option("--reasoning-effort", **_words("low", "medium", "high"), help="What the template is told of --prompts.")
@click.option(
    "--device",
    **_words("auto", "cpu", "cuda", "cuda:N"),
    default="auto",
    show_default=True,
    help="Where the models run; auto takes a GPU of capability 8.0 or newer.",
)
@click.option("--max-kl", type=float, metavar="X", help="The most that the mean KL divergence may be, in nats.")
@click.option("--min-top1", type=float, metavar="X", help="The least share of tokens with the same most probable one.")
@click.option("--max-ppl-ratio", type=float, metavar="X", help="The most that perplexity may grow.")
@click.option("--min-sqnr", type=float, metavar="DB", help="The least SQNR of each lossy part and expert.")
@click.option("--html", type=PATH, metavar="FILE", help="Write a page of it ([report] extra).")
@click.option(
    "--via",
    multiple=True,
    metavar="FORM[:RECIPE]",
    help="No CANDIDATE: convert to bf16, mxfp4, openai, gguf, gguf:q8_0 ... and back, and validate that.",
)
@click.option("--then", **_words("bf16", "gguf"), help="With --via: come back to this. Default: the form of REFERENCE.")
@click.option("--csv", type=PATH, metavar="FILE", help="With --via: write the table too.")
@_shared
def validate(
    reference: str,
    candidate: str | None,
    html: str | None,
    via: tuple[str, ...],
    then: str | None,
    csv: str | None,
    as_json: bool,
    debug: bool,
    **options: Any,
) -> None:
    """Say whether CANDIDATE is a right conversion of REFERENCE, and what it cost: exact, within budget, or failed.

    Both may be in any dialect and container, here or remote. With --via, REFERENCE is converted, and back, instead.
    """
    from ckpttool import render
    from ckpttool.errors import UsageError
    from ckpttool.validator.validation import Asked, Validator

    # Torch's threads spin between two pieces of work, and on cores that others use too take thrice the time.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if via:
        _refuse({"CANDIDATE": candidate, "--html": html}, "goes without --via")
        _validate_round_trips(reference, via, then, csv, as_json, options)
        return
    _refuse({"--then": then, "--csv": csv}, "goes with --via")
    if candidate is None:
        raise UsageError("CANDIDATE is missing", hint="give it, or --via mxfp4 for a round trip")
    if html is not None:
        render.check_place(html)
    validator = Validator(reference, candidate, Asked(**options))
    with render.progress(validator.nbytes, "validating", quiet=as_json or not validator.nbytes) as advance:
        report = validator.run(progress=advance)
    if html is not None:
        render.save_validation_page(report, html)
    render.show_validation(report, as_json)
    if html is not None:
        render.show_place(html, as_json)
    if not report.ok:
        sys.exit(1)


def _validate_round_trips(
    source: str, vias: tuple[str, ...], then: str | None, csv: str | None, as_json: bool, options: dict[str, Any]
) -> None:
    from ckpttool import render
    from ckpttool.validator import round_trips

    if csv is not None:
        render.check_csv_place(csv)
    report = round_trips.round_trips(source, vias, then=then, progress=render.steps(quiet=as_json), **options)
    if csv is not None:
        render.save_round_trips_csv(report, csv)
    render.show_round_trips(report, as_json)
    if csv is not None:
        render.show_place(csv, as_json, "table")
    if not report.ok:
        sys.exit(1)


def _refuse(given: dict[str, Any], where: str, command: str = "validate") -> None:
    """UsageError for the first that is given."""
    from ckpttool.errors import UsageError

    for name, value in given.items():
        if value is not None:
            raise UsageError(f"{name} {where}", hint=f"ckpttool {command} --help shows both forms")


def main() -> NoReturn:
    """Run the command line."""
    cli_process.run(cli)
