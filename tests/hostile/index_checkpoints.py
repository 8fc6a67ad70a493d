"""Folders of shards whose index, names or links are wrong, by their numbers in the catalogue."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import builders
from builders import Model, Sizes
from front_ends import ACCEPTED, LIMIT, NOTHING, REFUSED, SHOWN, Codes, Hostile
from hostile_files import Case

from ckpttool.errors import LimitError

MODEL = Model(Sizes(layers=1, experts=2, hidden=32, intermediate=64, vocab=300))
INDEX = "model.safetensors.index.json"
FIRST, SECOND = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
EMBED = "model.embed_tokens.weight"
Edit = Callable[[Path], object]


def of_index(case: Case) -> Hostile:
    """A case of a broken index, with no other file in its folder."""

    def make(at: Path) -> Path:
        folder = at / "source"
        folder.mkdir()
        (folder / INDEX).write_bytes(case.data.replace(b"m.safetensors.index.json", INDEX.encode()))
        return folder

    codes = LIMIT if case.kind is LimitError else NOTHING
    return Hostile("", case.id, make, (INDEX, case.says), codes)


def edited(what: str, edit: Edit, *says: str, codes: Codes = NOTHING, unsaid: str = "") -> Hostile:
    """A sound folder of two shards and an index, edited after it was written."""

    def make(at: Path) -> Path:
        folder = builders.write(MODEL, at / "source", "hf", shards=2)
        found = edit(folder)
        return found if isinstance(found, Path) else folder

    unheard = ("check", *unsaid.split()) if codes is not ACCEPTED else ("check", "verify")
    return Hostile("", what, make, says, codes, unsaid=unheard)


def index(change: Callable[[dict[str, Any]], object]) -> Edit:
    def edit(folder: Path) -> None:
        value = json.loads((folder / INDEX).read_text())
        change(value)
        (folder / INDEX).write_text(json.dumps(value))

    return edit


def named(name: str) -> Edit:
    """The index says that a tensor of the second file lies in a file of this name."""
    return index(lambda i: i["weight_map"].update({EMBED: name}))


def link(target: Callable[[Path], Path]) -> Edit:
    """The second shard is a link to this."""

    def edit(folder: Path) -> None:
        to = target(folder)
        (folder / SECOND).unlink(missing_ok=True)
        (folder / SECOND).symlink_to(to)

    return edit


def outside(folder: Path) -> Path:
    elsewhere = folder.parent / "elsewhere"
    (folder / SECOND).rename(elsewhere)
    return elsewhere


def hub_cache(folder: Path) -> Path:
    """The folder as huggingface_hub's cache has it: every file a link to a blob."""
    repo = folder.parent / "models--org--model"
    (repo / "blobs").mkdir(parents=True)
    snapshot = repo / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    for path in sorted(folder.iterdir()):
        path.rename(repo / "blobs" / f"blob-{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/blob-{path.name}")
    return snapshot


def linked_folder(folder: Path) -> Path:
    (folder.parent / "link").symlink_to("source")
    return folder.parent / "link"


def fifo(folder: Path) -> None:
    (folder / SECOND).unlink()
    os.mkfifo(folder / SECOND)


def sockets(folder: Path) -> None:
    """Bound by a relative name: a path to a socket may have 107 bytes."""
    (folder / SECOND).unlink()
    here = Path.cwd()
    os.chdir(folder)
    try:
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(SECOND)
    finally:
        os.chdir(here)


def stray(folder: Path) -> None:
    other = builders.Tensor("U8", builders.np.zeros(4, "uint8"))
    builders.save(folder / "model-00003-of-00003.safetensors", {"extra": other})


def doubled(folder: Path) -> None:
    builders.save(folder / FIRST, builders.read(folder / FIRST) | {EMBED: builders.read(folder / SECOND)[EMBED]})


def without_index(*names: str) -> Edit:
    """No index; the two shards have these names."""

    def edit(folder: Path) -> None:
        (folder / INDEX).unlink()
        for old, new in zip((FIRST, SECOND), names, strict=True):
            (folder / old).rename(folder / new)

    return edit


def both(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / FIRST).read_bytes())


def case_twins(folder: Path) -> None:
    (folder / FIRST.replace("model", "Model")).write_bytes((folder / FIRST).read_bytes())
    index(lambda i: i["weight_map"].update({EMBED: FIRST.replace("model", "Model")}))(folder)


def over(folder: Path) -> None:
    os.truncate(folder / INDEX, (64 << 20) + 1)


GONE = f"{INDEX}: names files that are not there: "

CHECKPOINTS = [
    edited("IX14 a device of Windows", named("CON.safetensors"), GONE + "CON.safetensors", codes=REFUSED),
    edited("IX18 escapes of URLs", named("%2e%2e%2fx.safetensors"), GONE + "%2e%2e%2fx.safetensors", codes=REFUSED),
    edited("IX19 full-width dots and slash", named("．．／x.safetensors"), GONE + "．．／x.safetensors", codes=REFUSED),
    edited("IX21 a link out of the folder", link(outside), f"{SECOND}: a link that leaves the folder"),
    edited("IX22 a link to the folder", linked_folder, codes=ACCEPTED),
    edited("IX23 links of the Hub's cache", hub_cache, codes=ACCEPTED),
    edited(
        "IX24 a link to itself", link(lambda folder: folder / SECOND), GONE + SECOND, codes=REFUSED, unsaid="verify"
    ),
    edited(
        "IX24 a link to nothing", link(lambda folder: folder / "nothing"), GONE + SECOND, codes=REFUSED, unsaid="verify"
    ),
    edited("IX27 a FIFO", fifo, f"{SECOND}: is a FIFO, not a regular file", unsaid="verify"),
    edited("IX27 a socket", sockets, f"{SECOND}: "),
    edited(
        "IX27 an endless device",
        link(lambda folder: Path("/dev/zero")),
        f"{SECOND}: a link that leaves the folder",
        unsaid="verify",
    ),
    edited("IX27 a folder", lambda f: [(f / SECOND).unlink(), (f / SECOND).mkdir()], f"{SECOND}: is a folder"),
    edited("IX28 a file that is gone", lambda f: (f / SECOND).unlink(), GONE + SECOND, codes=REFUSED),
    edited("IX29 a shard that the index does not name", stray, f"{INDEX} does not name", codes=ACCEPTED),
    edited(
        "IX30 a tensor that no file has",
        index(lambda i: i["weight_map"].update(ghost=FIRST)),
        f"says {FIRST}, whose header lacks it",
        codes=SHOWN,
    ),
    edited(
        "IX31 a tensor that the index does not name",
        index(lambda i: i["weight_map"].pop(EMBED)),
        f"in {SECOND}, but not in the index",
        codes=SHOWN,
    ),
    edited("IX31 a tensor in another file", named(FIRST), f"says {FIRST}, but {SECOND} holds it", codes=SHOWN),
    edited("IX32 a tensor in two files", doubled, f"also in {FIRST}", codes=SHOWN),
    edited(
        "IX34 a wrong total_size",
        index(lambda i: i["metadata"].update(total_size=5)),
        f"{INDEX} says total_size 5, the tensors have",
        codes=ACCEPTED,
    ),
    edited("IX36 a file over the budget", over, f"{INDEX}: is 67,108,865 bytes, more than", codes=LIMIT),
    edited(
        "IX38 a gap in the numbers",
        without_index("model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"),
        "its set of shards lacks number 00002 of 00003",
    ),
    edited(
        "IX38 two totals",
        without_index(FIRST, "model-00002-of-00003.safetensors"),
        "several safetensors files and no index",
    ),
    edited("IX39 a whole file beside the index", both, f"holds both model.safetensors and {INDEX}", codes=REFUSED),
    edited("IX40 names that differ in case", case_twins, f'weight_map["{EMBED}"]: is ', "one file where case does not"),
]
