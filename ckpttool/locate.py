"""What a SOURCE argument is: recognised by content, never by name alone.

An HF folder (one file, or shards with or without an index), OpenAI's `original/` folder, one `.safetensors` file, a
GGUF of any name, the first of a split set, or a folder that holds just one GGUF.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ckpttool.containers.index import parse_index
from ckpttool.containers.strict_json import read_object
from ckpttool.errors import InputError

GGUF_MAGIC = b"GGUF"
SHARD = re.compile(r"(?P<stem>.+?)-+(?P<no>\d{5})-of-(?P<of>\d{5})(?P<suffix>\.safetensors|\.gguf)")
HUB_REPO = re.compile(r"[\w-][\w.-]*/([\w-][\w.-]*)")
INDEX_SUFFIX = ".safetensors.index.json"


@dataclass(frozen=True)
class Located:
    """The files of one checkpoint. `root` holds its companions; `weight_map` is the index's, if there is one."""

    container: str
    root: Path
    files: tuple[Path, ...]
    weight_map: dict[str, str] | None = None
    total_size: int | None = None
    index_name: str | None = None
    notes: tuple[str, ...] = ()


def locate(source: Path) -> Located:
    """Find the files of the checkpoint at `source`.

    Raises:
        InputError: nothing there, nothing recognisable, several checkpoints, an adapter, an incomplete set of shards.
    """
    if not source.exists():
        repo = HUB_REPO.fullmatch(str(source))
        hint = f"download it first: hf download {source} --local-dir {repo[1]}" if repo else "check the path"
        raise InputError("no such file or folder", file=str(source), hint=hint)
    return _locate_folder(source) if source.is_dir() else _locate_file(source)


def _locate_file(path: Path) -> Located:
    if not path.is_file():
        hint = "SOURCE is a folder with safetensors, a .safetensors file or a GGUF"
        raise InputError("neither a file nor a folder", file=str(path), hint=hint)
    if path.name.endswith(INDEX_SUFFIX):
        return _indexed(path)
    with path.open("rb") as f:
        if f.read(4) == GGUF_MAGIC:
            return Located("gguf", path.parent, _split_set(path))
    if path.name == ADAPTER and (path.parent / ADAPTER_CONFIG).exists():
        raise _adapter(path.parent)
    match = SHARD.fullmatch(path.name)
    if match and (int(match["no"]), int(match["of"])) not in ((0, 0), (1, 1)):
        raise InputError("is one file of several", file=str(path), hint=f"give their folder: {path.parent}")
    return Located("safetensors", path.parent, (path,))


def _split_set(path: Path) -> tuple[Path, ...]:
    """All files of the split set that `path` is the first of, or `path` alone."""
    match = SHARD.fullmatch(path.name)
    if match is None or match["of"] == "00001":
        return (path,)
    if int(match["no"]) != 1:
        first = path.with_name(f"{match['stem']}-00001-of-{match['of']}.gguf")
        raise InputError("not the first of its split set", file=str(path), hint=f"give {first.name}")
    count = int(match["of"])
    paths = tuple(path.with_name(f"{match['stem']}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1))
    missing = [p.name for p in paths if not p.is_file()]
    if missing:
        raise InputError(
            f"its split set lacks {', '.join(missing)}", file=str(path), hint="all of them must lie together"
        )
    return paths


def _locate_folder(folder: Path) -> Located:
    names = sorted(p.name for p in folder.iterdir())
    tensors = [n for n in names if n.endswith(".safetensors")]
    if ADAPTER_CONFIG in names and set(tensors) <= {ADAPTER}:
        raise _adapter(folder)
    indexes = [n for n in names if n.endswith(INDEX_SUFFIX)]
    if len(indexes) > 1:
        raise InputError(f"several indexes: {', '.join(indexes)}", file=str(folder), hint="give one of them as SOURCE")
    if indexes:
        found = _indexed(folder / indexes[0])
        if "model.safetensors" in names and folder / "model.safetensors" not in found.files:
            hint = "give the one that is meant as SOURCE"
            raise InputError(f"holds both model.safetensors and {indexes[0]}", file=str(folder), hint=hint)
        return found
    if tensors:
        return Located("safetensors", folder, tuple(folder / n for n in _without_index(folder, tensors)))
    return _locate_gguf(folder, names)


def _indexed(index: Path) -> Located:
    _inside(index, index.parent)
    weight_map, total_size = parse_index(index)
    wanted = sorted(set(weight_map.values()))
    missing = [n for n in wanted if not (index.parent / n).exists()]
    if missing:
        hint = "download the missing files again"
        raise InputError(f"names files that are not there: {', '.join(missing)}", file=index.name, hint=hint)
    paths = tuple(_inside(index.parent / n, index.parent) for n in wanted)
    shards = {p.name for p in index.parent.glob("*.safetensors") if SHARD.fullmatch(p.name)}
    strays = sorted(shards - set(wanted))
    notes = (f"{index.name} does not name {', '.join(strays)}; left alone",) if strays else ()
    return Located("safetensors", index.parent, paths, weight_map, total_size, index.name, notes)


def _without_index(folder: Path, names: list[str]) -> list[str]:
    """A single file, or a whole set of shards; 0-based sets ("00000-of-00002" is one of three) are whole too."""
    if len(names) == 1 and not SHARD.fullmatch(names[0]):
        _inside(folder / names[0], folder)
        return names
    shards = [m for n in names if (m := SHARD.fullmatch(n))]
    if "model.safetensors" in names:
        if shards:
            hint = "give model.safetensors as SOURCE if that is meant; else move it away"
            raise InputError(f"holds both model.safetensors and {shards[0].group()}", file=str(folder), hint=hint)
        _inside(folder / "model.safetensors", folder)
        return ["model.safetensors"]
    sets = {(m["stem"], m["of"]) for m in shards}
    numbers = {m["no"] for m in shards}
    if len(sets) != 1 or len(numbers) != len(shards):
        hint = "give one file as SOURCE"
        raise InputError(f"several safetensors files and no index: {', '.join(names[:5])}", file=str(folder), hint=hint)
    have, of = {int(n) for n in numbers}, int(shards[0]["of"])
    first = 0 if 0 in have else 1
    lacking = sorted(set(range(first, of + 1)) - have)
    if lacking:
        text = ", ".join(f"{n:05d}" for n in lacking)
        raise InputError(
            f"its set of shards lacks number {text} of {of:05d}", file=str(folder), hint="download it again"
        )
    for match in shards:
        _inside(folder / match.group(), folder)
    return [m.group() for m in shards]


def _locate_gguf(folder: Path, names: list[str]) -> Located:
    ggufs = [n for n in names if n.lower().endswith(".gguf")]
    firsts = [n for n in ggufs if not (m := SHARD.fullmatch(n)) or int(m["no"]) == 1]
    if len(firsts) == 1:
        return _locate_file(folder / firsts[0])
    if len(firsts) > 1:
        raise InputError(f"holds several GGUFs: {', '.join(firsts[:5])}", file=str(folder), hint="give one as SOURCE")
    if (folder / "original").is_dir():
        raise InputError("holds no checkpoint of its own", file=str(folder), hint=f"give {folder / 'original'}")
    if (folder / "snapshots").is_dir():
        raise InputError("the cache of a Hub repo", file=str(folder), hint="give one folder of its snapshots/")
    pickles = [n for n in names if n.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if pickles:
        hint = "save the model as safetensors first; pickles can run code and are never opened"
        raise InputError(f"holds no safetensors and no GGUF, but {pickles[0]}", file=str(folder), hint=hint)
    hint = "SOURCE is a folder with safetensors, OpenAI's original/ folder, a .safetensors file or a GGUF"
    raise InputError("holds no safetensors and no GGUF", file=str(folder), hint=hint)


def _inside(path: Path, folder: Path) -> Path:
    """`path`, if it does not leave `folder`; a Hub cache's links into its own blobs are fine.

    Raises:
        InputError: a link that leads elsewhere.
    """
    if not path.is_symlink():
        return path
    home, end = Path(os.path.realpath(folder)), Path(os.path.realpath(path))  # Path.resolve fails on loops
    blobs = home.parent.parent / "blobs"
    if end.is_relative_to(home) or (home.parent.name == "snapshots" and end.parent == blobs):
        return path
    raise InputError(
        f"a link that leaves the folder, to {end}", file=str(path), hint="put the file itself in its place"
    )


ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"


def _adapter(folder: Path) -> InputError:
    config = read_object(folder / ADAPTER_CONFIG, ADAPTER_CONFIG)
    base = config.get("base_model_name_or_path") or "an unnamed base model"
    hint = "with peft: AutoPeftModelForCausalLM.from_pretrained(...).merge_and_unload().save_pretrained(...)"
    return InputError(f"an adapter of {base}; merge it first", file=str(folder), hint=hint)


def companions(root: Path) -> dict[str, Path]:
    """The side files in `root` that belong to a checkpoint, by name.

    Raises:
        InputError: no such folder; a link that leads out of it.
    """
    if not root.is_dir():
        raise InputError("no such folder", file=str(root), hint="--reference takes the folder of the original model")
    found = {
        p.name: _inside(p, root)
        for p in sorted(root.iterdir())
        if p.is_file() and (p.name in COMPANION_NAMES or p.name.startswith(LICENCE_PREFIXES))
    }
    templates = sorted((root / TEMPLATES).glob("*.jinja"))
    return found | {f"{TEMPLATES}/{p.name}": _inside(p, root) for p in templates if p.is_file()}


COMPANION_NAMES = frozenset(
    {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
        "chat_template.json",
        "README.md",
    }
)
TEMPLATES = "additional_chat_templates"
LICENCE_PREFIXES = ("LICENSE", "LICENCE", "NOTICE", "USAGE_POLICY")
