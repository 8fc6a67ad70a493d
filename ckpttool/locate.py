"""What a SOURCE argument is: recognised by content, never by name alone.

An HF folder (one file, or shards with or without an index), OpenAI's `original/` folder, one `.safetensors` file, a
GGUF of any name, the first of a split set, or a folder that holds just one GGUF: here, or at a remote end by the same
rules.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ckpttool.containers.foreign import MAGIC_NBYTES, recognised
from ckpttool.containers.index import parse_index
from ckpttool.containers.remote import FilePath, RemoteCompanions, RemoteFolder, open_head
from ckpttool.containers.strict_json import Source, read_object
from ckpttool.errors import InputError
from ckpttool.places import Folder, LocalFolder, place

GGUF_MAGIC = b"GGUF"
SHARD = re.compile(r"(?P<stem>.+?)-+(?P<no>\d{5})-of-(?P<of>\d{5})(?P<suffix>\.safetensors|\.gguf)")
INDEX_SUFFIX = ".safetensors.index.json"


@dataclass(frozen=True)
class Located:
    """The files of one checkpoint. `folder` holds its companions; `weight_map` is the index's, if there is one."""

    container: str
    folder: LocalFolder | RemoteFolder
    files: tuple[FilePath, ...]
    weight_map: dict[str, str] | None = None
    total_size: int | None = None
    index_name: str | None = None
    notes: tuple[str, ...] = ()


def locate(source: str | Path, *, remote: bool = True) -> Located:
    """Find the files of the checkpoint at `source`; with `remote`, also at a remote end.

    Raises:
        InputError: nothing there, nothing recognisable, several checkpoints, an adapter, an incomplete set of shards.
        NetworkError, UsageError: a remote end refuses, or is of no kind that is known.
    """
    folder, name = place(source, remote=remote)
    return _locate_folder(folder) if name is None else _locate_file(folder, name)


def _locate_file(folder: LocalFolder | RemoteFolder, name: str) -> Located:
    if isinstance(folder, LocalFolder) and not (folder.path / name).is_file():
        hint = "SOURCE is a folder with safetensors, a .safetensors file or a GGUF"
        raise InputError("neither a file nor a folder", file=folder.at(name), hint=hint)
    if name.endswith(INDEX_SUFFIX):
        return _indexed(folder, name)
    path = folder.path / name if isinstance(folder, LocalFolder) else folder.file(name)
    if _is_gguf(path):
        return Located("gguf", folder, _split_set(folder, name))
    if name == ADAPTER and isinstance(folder, LocalFolder) and folder.has(ADAPTER_CONFIG):
        raise _adapter(folder)
    match = SHARD.fullmatch(name)
    if match and (int(match["no"]), int(match["of"])) not in ((0, 0), (1, 1)):
        raise InputError("is one file of several", file=folder.at(name), hint=f"give their folder: {folder}")
    return Located("safetensors", folder, (path,))


def _is_gguf(path: FilePath) -> bool:
    """By its content; a file called so that holds neither container is one too, since its reader says what it is."""
    if isinstance(path, Path):
        with path.open("rb") as f:
            head = f.read(9)
    else:
        remote = open_head(path)  # left open: the header is parsed from what has come
        head = remote.read(0, min(9, remote.size))
    return head.startswith(GGUF_MAGIC) or (path.name.lower().endswith(".gguf") and head[8:] != b"{")


def _split_set(folder: LocalFolder | RemoteFolder, name: str) -> tuple[FilePath, ...]:
    """All files of the split set that `name` is the first of, or `name` alone."""
    match = SHARD.fullmatch(name)
    if match is None or match["of"] == "00001":
        return (_as_given(folder, name),)
    if int(match["no"]) != 1:
        first = f"{match['stem']}-00001-of-{match['of']}.gguf"
        raise InputError("not the first of its split set", file=folder.at(name), hint=f"give {first}")
    count = int(match["of"])
    names = [f"{match['stem']}-{i:05d}-of-{count:05d}.gguf" for i in range(1, count + 1)]
    missing = [n for n in names if not folder.has(n)]
    if missing:
        hint = "all of them must lie together"
        raise InputError(f"its split set lacks {', '.join(missing)}", file=folder.at(name), hint=hint)
    return tuple(_as_given(folder, n) for n in names)


def _as_given(folder: LocalFolder | RemoteFolder, name: str) -> FilePath:
    """A file that the user named: it may be a link to anywhere."""
    return folder.path / name if isinstance(folder, LocalFolder) else folder.file(name)


def _locate_folder(folder: LocalFolder | RemoteFolder) -> Located:
    names = folder.names()
    tensors = [n for n in names if n.endswith(".safetensors")]
    if ADAPTER_CONFIG in names and set(tensors) <= {ADAPTER}:
        raise _adapter(folder)
    indexes = [n for n in names if n.endswith(INDEX_SUFFIX)]
    if len(indexes) > 1:
        raise InputError(f"several indexes: {', '.join(indexes)}", file=str(folder), hint="give one of them as SOURCE")
    if indexes:
        found = _indexed(folder, indexes[0])
        if "model.safetensors" in names and "model.safetensors" not in {p.name for p in found.files}:
            hint = "give the one that is meant as SOURCE"
            raise InputError(f"holds both model.safetensors and {indexes[0]}", file=str(folder), hint=hint)
        return found
    if tensors:
        return Located("safetensors", folder, tuple(folder.file(n) for n in _without_index(folder, tensors)))
    return _locate_gguf(folder, names)


def _indexed(folder: LocalFolder | RemoteFolder, index: str) -> Located:
    folder.file(index)
    weight_map, total_size = parse_index(folder.side(index), index)
    wanted = sorted(set(weight_map.values()))
    missing = [n for n in wanted if not folder.has(n)]
    if missing:
        hint = "download the missing files again"
        raise InputError(f"names files that are not there: {', '.join(missing)}", file=index, hint=hint)
    paths = tuple(folder.file(n) for n in wanted)
    shards = {n for n in folder.names() if n.endswith(".safetensors") and SHARD.fullmatch(n)}
    strays = sorted(shards - set(wanted))
    notes = (f"{index} does not name {', '.join(strays)}; left alone",) if strays else ()
    return Located("safetensors", folder, paths, weight_map, total_size, index, notes)


def _without_index(folder: Folder, names: list[str]) -> list[str]:
    """A single file, or a whole set of shards; 0-based sets ("00000-of-00002" is one of three) are whole too."""
    if len(names) == 1 and not SHARD.fullmatch(names[0]):
        folder.file(names[0])
        return names
    shards = [m for n in names if (m := SHARD.fullmatch(n))]
    if "model.safetensors" in names:
        if shards:
            hint = "give model.safetensors as SOURCE if that is meant; else move it away"
            raise InputError(f"holds both model.safetensors and {shards[0].group()}", file=str(folder), hint=hint)
        folder.file("model.safetensors")
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
        folder.file(match.group())
    return [m.group() for m in shards]


def _locate_gguf(folder: LocalFolder | RemoteFolder, names: list[str]) -> Located:
    ggufs = [n for n in names if n.lower().endswith(".gguf")]
    firsts = [n for n in ggufs if not (m := SHARD.fullmatch(n)) or int(m["no"]) == 1]
    if len(firsts) == 1:
        return _locate_file(folder, firsts[0])
    if len(firsts) > 1:
        hint = (
            "give one as SOURCE" if isinstance(folder, LocalFolder) else f"give one as SOURCE: {folder.at(firsts[0])}"
        )
        raise InputError(f"holds several GGUFs: {', '.join(firsts[:5])}", file=str(folder), hint=hint)
    if folder.has_folder("original"):
        raise InputError("holds no checkpoint of its own", file=str(folder), hint=f"give {folder.at('original')}")
    if folder.has_folder("snapshots"):
        raise InputError("the cache of a Hub repo", file=str(folder), hint="give one folder of its snapshots/")
    if isinstance(folder, RemoteFolder) and (inner := folder.folders_with((".safetensors", ".gguf"))):
        hint = f"give one of its folders: {', '.join(map(folder.at, inner[:3]))}"
        raise InputError("holds no checkpoint of its own", file=str(folder), hint=hint)
    if others := [n for n in names if n.endswith(FOREIGN)]:
        raise _refused(folder, others)
    hint = "SOURCE is a folder with safetensors, OpenAI's original/ folder, a .safetensors file or a GGUF"
    raise InputError("holds no safetensors and no GGUF", file=str(folder), hint=hint)


FOREIGN = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""What files of weights are called that are not read: pickles, and OpenAI's metal/model.bin."""


def _refused(folder: LocalFolder | RemoteFolder, names: list[str]) -> InputError:
    """Why a folder without safetensors or GGUF is refused: by what its first file of weights begins with."""
    name = names[0]
    with open_head(folder.file(name)) as f:
        found = recognised(f.read(0, min(f.size, MAGIC_NBYTES)))
    if found is None:
        hint = "save the model as safetensors first; pickles can run code and are never opened"
        return InputError(f"holds no safetensors and no GGUF, but {name}", file=str(folder), hint=hint)
    what, hint = found
    return InputError(f"holds no safetensors and no GGUF, but {name}: {what}", file=str(folder), hint=hint)


ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"


def _adapter(folder: Folder) -> InputError:
    config = read_object(folder.side(ADAPTER_CONFIG), ADAPTER_CONFIG)
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
    folder = LocalFolder(root)
    found = {n: folder.file(n) for n in folder.names() if _is_companion(n) and (root / n).is_file()}
    templates = sorted((root / TEMPLATES).glob("*.jinja"))
    return found | {name: folder.file(name) for name in (f"{TEMPLATES}/{p.name}" for p in templates if p.is_file())}


def lent_by(reference: str | Path) -> tuple[LocalFolder | RemoteFolder, Mapping[str, Source]]:
    """The folder that `--reference` names, here or at a remote end, and its side files.

    Raises:
        InputError, NetworkError, UsageError: as `companions` and `place` raise them.
    """
    folder, name = place(reference)
    if isinstance(folder, LocalFolder) and name is not None:
        return folder, companions(folder.path / name)
    return folder, companions_in(folder)


def companions_in(folder: LocalFolder | RemoteFolder) -> Mapping[str, Source]:
    """The side files of a folder, by name: paths, or of a remote one bytes, read when they are asked for."""
    if isinstance(folder, LocalFolder):
        return companions(folder.path)
    names = [n for n in folder.listed() if _is_companion(n) or TEMPLATE.fullmatch(n)]
    return RemoteCompanions(folder, names, () if folder.lists else (CONFIG,))


def _is_companion(name: str) -> bool:
    return name in COMPANION_NAMES or ("/" not in name and name.startswith(LICENCE_PREFIXES))


CONFIG = "config.json"
COMPANION_NAMES = frozenset(
    {
        CONFIG,
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
TEMPLATE = re.compile(rf"{TEMPLATES}/[^/]+\.jinja")
LICENCE_PREFIXES = ("LICENSE", "LICENCE", "NOTICE", "USAGE_POLICY")
