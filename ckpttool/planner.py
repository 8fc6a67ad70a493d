"""(Checkpoint, Target) -> Plan: every file, every byte's place and every step, before anything is read or written.

The plan sees headers and side files only. Whatever is wrong is collected and raised together.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ckpttool import __version__
from ckpttool.archs import Arch, Dialect, arches
from ckpttool.archs.general import default_name
from ckpttool.checkpoint import Checkpoint, extents_of
from ckpttool.checkpoint import digest as source_digest
from ckpttool.choice import choose
from ckpttool.codecs.formats import MXFP4, MXFP4_GGML
from ckpttool.containers.gguf_values import Scalar
from ckpttool.containers.layout import FileLayout
from ckpttool.errors import CheckFailed, CkptError, InputError, Problems, UsageError, raise_all
from ckpttool.layouts import Draft, drafts, gguf_files, gguf_order, placed, safetensors_files
from ckpttool.place import Place, place
from ckpttool.places import LocalFolder
from ckpttool.sidecars import Assumed, Sidecar, gguf_keys
from ckpttool.sidecars import sidecars as make_sidecars
from ckpttool.steps import Kind, Slab, Step, make_steps, slab_nbytes
from ckpttool.target import Target
from ckpttool.units import size


@dataclass(frozen=True)
class Plan:
    """What a conversion will do. The same source, options and version give the same `digest`."""

    source: Checkpoint
    target: Target
    place: Place
    files: tuple[FileLayout, ...]
    sidecars: tuple[Sidecar, ...]
    steps: tuple[Step, ...]
    slabs: tuple[Slab, ...] = field(repr=False)
    assumed: tuple[Assumed, ...]
    notes: tuple[str, ...]
    digest: str

    @property
    def nbytes(self) -> int:
        """Bytes of all files to write."""
        return sum(f.size for f in self.files) + sum(s.nbytes for s in self.sidecars)

    @property
    def tensor_nbytes(self) -> int:
        """Bytes of all tensors to write."""
        return sum(t.nbytes for f in self.files for t in f.tensors)

    def written_nbytes(self, index: int) -> int:
        """Bytes that slab number `index` writes."""
        slab = self.slabs[index]
        step = self.steps[slab.step]
        return (slab.stop - slab.start) * len(step.parts) * sum(step.target.codec.row_nbytes(step.row_length))


def make_plan(source: Checkpoint, target: Target) -> Plan:
    """Plan the conversion of `source` to `target`.

    Raises:
        InputError: what the source's headers and side files show to be wrong, all of it.
        UsageError: options that do not fit this source; a lossy step under `--lossless`.
    """
    arch = _known(source, target)
    _raise_with_side_files(source.problems, source, target)
    assert source.sizes is not None
    out = arch.dialects[target.dialect]
    claims = list(out.expand(source.sizes))
    codecs, problems = choose(source, target, claims)
    _raise_with_side_files(problems, source, target)
    drafted = drafts(claims, codecs, source.shapes, out)
    made = _gguf(source, target, drafted) if target.to == "gguf" else _folder(source, target, drafted, out)
    _refuse_nesting(source, made.place)
    weights = placed(drafted, made.files)
    steps = tuple(make_steps(source.shapes, source.extents, extents_of(weights, claims, source.shapes), target.recipe))
    _refuse_lossy(target, steps)
    nbytes = slab_nbytes(remote=any(not isinstance(f.place, Path) for f in source.files))
    slabs = tuple(slab for i, step in enumerate(steps) for slab in step.slabs(i, nbytes))
    notes = (*source.notes, *made.notes, *_hints(target, steps), *_unpinned(source))
    name = _digest(source, target, made, steps, nbytes)
    return Plan(source, target, made.place, made.files, made.sidecars, steps, slabs, made.assumed, notes, name)


def _raise_with_side_files(problems: Sequence[CkptError], source: Checkpoint, target: Target) -> None:
    """Raise `problems`, if any, together with those of side files and place, which a plan meets only later."""
    if not problems:
        return
    found = [*problems, *_problems_of(lambda: _refuse_nesting(source, _likely_place(target)))]
    if source.arch is not None and source.sizes is not None:
        keys = (lambda: gguf_keys(source, target, ())) if target.to == "gguf" else None
        found += _problems_of(keys or (lambda: make_sidecars(source, target, (), False)))
    raise_all(found)


def _problems_of(work: Callable[[], object]) -> tuple[CkptError, ...]:
    try:
        work()
    except Problems as e:
        return e.problems
    except CkptError as e:
        return (e,)
    return ()


def _likely_place(target: Target) -> Place:
    """The target's place before its files are known."""
    return place(target.path, not target.is_file, [target.path.name] if target.is_file else [])


def _known(source: Checkpoint, target: Target) -> Arch:
    if source.arch is not None and source.dialect is not None and source.sizes is not None:
        return source.arch
    architecture = source.metadata.get("general.architecture")
    declared = architecture.value if isinstance(architecture, Scalar) else (source.config or {}).get("model_type")
    for arch in arches():
        foreign = arch.table["arch"].get("foreign", {})
        if isinstance(declared, str) and declared in foreign:
            hint = "convert the checkpoint that it was made from"
            raise InputError(foreign[declared], file=str(source.path), field=declared, hint=hint)
    _raise_with_side_files(source.problems, source, target)
    if source.dialect is not None and source.sizes is None:
        hint = "put it beside the weights, or give a folder that has it with --reference DIR"
        raise InputError("config.json is missing, so shapes cannot be checked", file=str(source.path), hint=hint)
    known = ", ".join(a.name for a in arches())
    text = "no known architecture has these tensor names"
    if declared is not None:
        text = f"is of architecture {declared!r}, which is not known"
    raise InputError(text, file=str(source.path), hint=f"known: {known}; ckpttool inspect shows what is there")


@dataclass(frozen=True)
class _Made:
    """What a plan gets from its target's container."""

    place: Place
    files: tuple[FileLayout, ...]
    sidecars: tuple[Sidecar, ...] = ()
    assumed: tuple[Assumed, ...] = ()
    notes: tuple[str, ...] = ()


def _folder(source: Checkpoint, target: Target, drafted: Sequence[Draft], dialect: Dialect) -> _Made:
    assert target.max_shard_size is not None
    files = safetensors_files(drafted, target.max_shard_size, dialect)
    mxfp4 = any(d.codec.format == MXFP4 for d in drafted)
    sides, assumed, notes = make_sidecars(source, target, files, mxfp4)
    return _Made(place(target.path, True, [f.name for f in files]), files, tuple(sides), tuple(assumed), tuple(notes))


def _gguf(source: Checkpoint, target: Target, drafted: Sequence[Draft]) -> _Made:
    ordered = gguf_order(source, drafted)
    metadata, assumed, notes = gguf_keys(source, target, ordered)
    path = target.path if target.is_file else target.path / default_name(metadata)
    files = gguf_files(ordered, metadata, path.name, target.max_shard_size)
    if len(files) > 1:
        path = path.with_suffix(".gguf")  # as its shards are named, whatever the case of TARGET's
    return _Made(place(path, False, [f.name for f in files]), files, (), tuple(assumed), tuple(notes))


def _refuse_nesting(source: Checkpoint, where: Place) -> None:
    """A target that is the source or the reference, or holds them: an overwrite would delete what it reads."""
    sources = {p.resolve() for p in source.places.values() if isinstance(p, Path)}
    goal = where.path.resolve()
    hint = "choose another TARGET"
    read = {
        name: {folder.path.resolve()}
        for name, folder in (("SOURCE", source.folder), ("--reference", source.lender))
        if isinstance(folder, LocalFolder)
    }
    beneath = sources.union(*read.values())
    made_in = where.partial.resolve()
    if _identities({made_in}) & _identities({x for p in beneath for x in (p, *p.parents)}):
        raise UsageError("is where the conversion would be made, and holds what it reads", file=str(made_in), hint=hint)
    if not where.is_folder:
        if _identities(sources) & _identities({p.resolve() for p in (*where.finals, where.path)}):
            raise UsageError("TARGET is SOURCE", file=str(where.path), hint=hint)
        return
    read.setdefault("SOURCE", set()).update(p.parent for p in sources)
    for name, folders in read.items():
        if _identities({goal}) & _identities({p for folder in folders for p in (folder, *folder.parents)}):
            raise UsageError(f"TARGET is {name}, or holds it", file=str(where.path), hint=hint)


def _identities(paths: Iterable[Path]) -> set[tuple[int, int]]:
    """Device and inode of what is there: by links, other mounts or another case too, one thing is one."""
    found = set()
    for path in paths:
        with contextlib.suppress(OSError):
            status = path.stat()
            found.add((status.st_dev, status.st_ino))
    return found


def _refuse_lossy(target: Target, steps: Sequence[Step]) -> None:
    """`--lossless` against steps that lose values whatever the data; narrowing is judged by its data, as it runs."""
    kinds = Counter(s.kind for s in steps if s.kind is Kind.quantize)
    if target.lossless and kinds:
        text = f"--lossless, but {kinds[Kind.quantize]} steps quantize"
        raise CheckFailed(text, hint="leave out --lossless, or keep the experts' format with --experts keep")


def _hints(target: Target, steps: Sequence[Step]) -> list[str]:
    """What a BF16 GGUF of an MoE model would weigh with MXFP4 experts."""
    experts = [s for s in steps if s.rows > s.expert_rows and s.row_length > 1]
    if target.to != "gguf" or not experts or any(s.target.codec.format == MXFP4 for s in experts):
        return []
    if not all(s.source.codec.is_plain and s.row_length % MXFP4.block == 0 for s in experts):
        return []
    now = sum(s.target_nbytes for s in experts)
    then = sum(s.elements * MXFP4_GGML.bits / 8 for s in experts)
    return [f"the experts weigh {size(now)}; --experts mxfp4 makes them {size(then)}, with a loss"]


def _unpinned(source: Checkpoint) -> list[str]:
    """What is not known of files whose remote end says nothing of their version."""
    names = [f.name for f in source.files if f.version is None]
    what = "the server names no version (ETag, Last-Modified), so that only its size tells whether it changes meanwhile"
    return [f"{names[0]}: {what}; an interrupted conversion begins anew"] if names else []


def _digest(source: Checkpoint, target: Target, made: _Made, steps: Sequence[Step], slab: int) -> str:
    """What a resumed run must share with the first: source, layout, steps, recipe, bytes of a slab and version."""
    sha = hashlib.sha256()
    for item in (__version__, source_digest(source.files), *(repr(f) for f in made.files), *made.assumed):
        sha.update(f"{item}\n".encode())
    for f in made.files:
        sha.update(f.header)
    for s in made.sidecars:
        sha.update(f"{s.name} {s.nbytes} {s.sha256}\n".encode())
    for step in steps:
        sha.update(f"{step.parts} {step.kind} {step.source.codec} {step.target.codec} {step.recipe}\n".encode())
    sha.update(f"{target.lossless} {slab}".encode())
    return sha.hexdigest()
