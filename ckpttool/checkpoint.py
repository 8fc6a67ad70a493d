"""An opened checkpoint: headers read, weights grouped, names matched to parts. No tensor data is touched.

Whatever the headers, the index and the config contradict is collected in `problems`: the inspector shows a damaged
checkpoint, conversion refuses it, and either way the user sees the whole damage at once.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import ChainMap, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ckpttool import damage, declarations
from ckpttool.archs import Arch, Claim, Dialect, Sizes, arch_named, arches
from ckpttool.archs.joins import Extent, PartShape
from ckpttool.containers import limits
from ckpttool.containers.gguf_values import Array, Scalar, Value
from ckpttool.containers.remote import FilePath, RemoteFolder, RemotePath, open_head
from ckpttool.containers.source import LocalFile, ReadableFile, require_unchanged
from ckpttool.containers.strict_json import Source, read_object
from ckpttool.errors import CkptError, InputError, LimitError, UnconvertibleError, UsageError, os_errors, raise_all
from ckpttool.locate import Located, companions_in, lent_by, locate
from ckpttool.places import LocalFolder
from ckpttool.recognition import Recognition, gguf_weights
from ckpttool.tensors import StoredTensor, Weight

if TYPE_CHECKING:
    from ckpttool.partview import PartView

CONFIG = "config.json"


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of the checkpoint, and what tells whether it has changed since.

    Here that is `mtime_ns` and `identity`, its device and inode; at a remote end its `etag`, and on the Hub the
    `sha256` of all of it.
    """

    name: str
    place: FilePath
    size: int
    mtime_ns: int
    identity: tuple[int, int]
    header_nbytes: int
    header_sha256: str
    etag: str | None = None
    sha256: str | None = None

    @property
    def version(self) -> str | None:
        """What changes when its content does; None where a remote end says nothing of the kind."""
        here = str(self.mtime_ns) if isinstance(self.place, Path) else None
        return self.sha256 or self.etag or here

    @property
    def path(self) -> Path:
        """Its path on this machine. UsageError where it is remote."""
        return self.place if isinstance(self.place, Path) else _not_here(self.place)

    def require_unchanged(self, doing: str = "read") -> None:
        """InputError where it is no longer the file whose header was read. Of a remote file each answer was held
        against the first one."""
        if isinstance(self.place, Path):
            require_unchanged(self.place, self.name, (self.size, self.mtime_ns, self.identity), doing)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds, by its headers.

    `weights` come in the order of files (sorted by name) and names; `metadata` is a GGUF's. `extents` says where the
    rows of each part lie, and is empty where no architecture matches or its sizes are unknown. `path` is what was
    given, for a repo of the Hub with its commit. `companions` are those beside it and the ones that only a reference
    has; all of the reference's are `lent`, by the folder `lender`. `name` is what the model is called where that of
    its folder shall not say it.
    """

    path: Path | str
    folder: LocalFolder | RemoteFolder
    container: str
    files: tuple[SourceFile, ...]
    weights: tuple[Weight, ...]
    metadata: Mapping[str, Value]
    config: Mapping[str, Any] | None
    companions: Mapping[str, Source]
    arch: Arch | None
    dialect: Dialect | None
    sizes: Sizes | None
    claims: Mapping[str, Claim]
    shapes: Mapping[str, PartShape]
    extents: Mapping[str, tuple[Extent, ...]]
    problems: tuple[CkptError, ...] = ()
    notes: tuple[str, ...] = ()
    lender: LocalFolder | RemoteFolder | None = None
    lent: Mapping[str, Source] = field(default_factory=dict)
    name: str | None = None

    @property
    def places(self) -> Mapping[str, FilePath]:
        """Where each file lies, by its name."""
        return {f.name: f.place for f in self.files}

    @property
    def file_paths(self) -> Mapping[str, Path]:
        """The same, on this machine. UsageError where they are remote."""
        return {f.name: f.path for f in self.files}

    @property
    def root(self) -> Path:
        """The folder of its companions on this machine. UsageError where it is remote."""
        return self.folder.path if isinstance(self.folder, LocalFolder) else _not_here(self.folder)

    def part(self, name: str) -> PartView:
        """The canonical part `name` ("layer.7.gate"), decoded as it is indexed: `.part(name)[expert]` is an array.

        Raises:
            InputError: no such part, or no architecture matches.
        """
        from ckpttool.partview import PartView

        return PartView(self, name)

    def require_unchanged(self, doing: str = "read") -> None:
        """InputError where a file is no longer the one whose header was read: to be asked once its values were."""
        for f in self.files:
            f.require_unchanged(doing)

    @property
    def damage(self) -> tuple[CkptError, ...]:
        """The problems that are damage, and not only a form that `convert` does not know."""
        return tuple(p for p in self.problems if not isinstance(p, UnconvertibleError))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(w.nbytes for w in self.weights)

    @property
    def parameters(self) -> int:
        """Logical elements of all weights."""
        return sum(w.parameters for w in self.weights)


def _not_here(place: RemotePath | RemoteFolder) -> NoReturn:
    hint = "download it first (a repo of the Hub: hf download ORG/REPO --local-dir FOLDER) and give the local folder"
    raise UsageError("is remote; this needs it on this machine", file=str(place), hint=hint)


@os_errors()
def open_checkpoint(path: str | Path, *, reference: str | Path | None = None, remote: bool = True) -> Checkpoint:
    """Read the headers of the checkpoint at `path`; `reference` lends the companions that are missing beside it.

    `path` may also be a repo of the Hub (org/repo, org/repo@revision, hf://org/repo/file), an http(s) URL or one that
    fsspec knows, unless `remote` is false; what exists here wins. Only headers, index and config.json are read.

    Raises:
        InputError: not a checkpoint, or a header that cannot be trusted.
        LocalIOError: what the system refuses.
        NetworkError, UsageError: a remote end refuses, or is of no kind that is known.
    """
    located = locate(path, remote=remote)
    headers, files = _read_headers(located)
    lender, lent = lent_by(reference) if reference is not None else (None, dict[str, Source]())
    beside: Mapping[str, Source] = ChainMap(companions_in(located.folder), lent)  # type: ignore[arg-type] # only read
    metadata = headers[0].metadata if located.container == "gguf" else {}
    config, problems = _config(beside) if located.container == "safetensors" else (None, [])
    declared = _declared(located.container, metadata, config)
    stored = [t for h in headers for t in _ordered(h.tensors, located.container)]
    problems += [*damage.against_index(stored, located), *damage.doubled(stored)]
    problems += damage.against_split(headers, [f.name for f in files])
    problems += damage.against_vocabulary(metadata, files[0].name)
    known = _recognised(stored, located.container, config, files)
    weights = known.weights
    problems += [*known.problems, *damage.merged(weights)]
    arch, dialect = _dialect(declared, located.container, weights)
    where = located.index_name or files[0].name
    sizes, more = _sizes(arch, dialect, metadata, config, where)
    if dialect and sizes and not more:
        more = damage.absurd(dialect, sizes, len(weights), where if metadata else CONFIG)
        sizes = None if more else sizes
    problems += more
    claims = _claims(dialect, weights)
    shapes = arch.shapes(sizes) if arch and sizes else {}
    extents: dict[str, tuple[Extent, ...]] = {}
    if arch and dialect and sizes:
        seen = {w.name for w in weights} | known.broken
        whole = [w for w in weights if w.name not in known.loose]
        problems += damage.misfits(arch.is_expert, dialect, sizes, shapes, whole, claims)
        problems += damage.missing(dialect, sizes, seen, where)
        if not problems:
            extents = extents_of(weights, claims.values(), shapes)
    notes = (*located.notes, *damage.notes(located, weights), *_trailing(headers, files))
    notes += tuple(declarations.notes(config, weights, claims))
    return Checkpoint(
        _named(path, located), located.folder, located.container, files, weights, metadata, config, beside,
        arch, dialect, sizes, claims, shapes, extents, tuple(problems), notes, lender, lent,
    )  # fmt: skip


def _named(path: str | Path, located: Located) -> Path | str:
    """What was given, as reports show it: of a remote checkpoint the address that is pinned."""
    if isinstance(located.folder, LocalFolder):
        return Path(path)
    one = located.files[0]
    return str(located.folder if len(located.files) > 1 else one)


def _read_headers(located: Located) -> tuple[list[Any], tuple[SourceFile, ...]]:
    headers: list[Any] = []
    files = []
    problems: list[CkptError] = []
    tensors = 0
    for result in _each(located):
        if isinstance(result, CkptError):
            problems.append(result)
            continue
        tensors += len(result[0].tensors)
        if tensors > limits.CHECKPOINT_TENSORS:
            more = limits.hint(limits.CHECKPOINT_TENSORS, "is it really one checkpoint?")
            raise LimitError(
                f"holds more than {limits.CHECKPOINT_TENSORS} tensors", file=str(located.folder), hint=more
            )
        headers.append(result[0])
        files.append(result[1])
    raise_all(problems)
    return headers, tuple(files)


def _each(located: Located) -> Iterable[tuple[Any, SourceFile] | CkptError]:
    """Every file's header; of remote files several at once."""
    if isinstance(located.folder, LocalFolder):
        return (_header(path, located.container) for path in located.files)
    if len(located.files) > limits.REMOTE_FILES:
        what = f"has {len(located.files)} files, more than the {limits.REMOTE_FILES} that are asked for"
        more = limits.hint(limits.REMOTE_FILES, "download it and give the local folder")
        raise LimitError(what, file=str(located.folder), hint=more)
    return _at_once(located)


def _at_once(located: Located) -> list[tuple[Any, SourceFile] | CkptError]:
    """Every file's header, several at once; threads that wait for a remote end hold up no interrupt, and no exit."""
    import threading
    from concurrent.futures import Future

    found: list[Future[tuple[Any, SourceFile] | CkptError]] = [Future() for _ in located.files]
    todo = deque(zip(located.files, found, strict=True))

    def work() -> None:
        with contextlib.suppress(IndexError):
            while True:
                path, result = todo.popleft()
                try:
                    result.set_result(_header(path, located.container))
                except BaseException as e:
                    result.set_exception(e)

    for _ in range(min(limits.REMOTE_PARALLEL, len(found))):
        threading.Thread(target=work, daemon=True).start()
    try:
        return [result.result() for result in found]
    finally:
        todo.clear()


def _parser(container: str) -> Callable[[ReadableFile], Any]:
    """Who reads the headers of this kind of file; the other kind's parser is not loaded."""
    if container == "gguf":
        from ckpttool.containers import gguf

        return gguf.parse
    from ckpttool.containers import safetensors

    return safetensors.parse


def _header(path: FilePath, container: str) -> tuple[Any, SourceFile] | CkptError:
    """The parsed header and what identifies the file, or what is wrong with it."""
    try:
        with open_head(path) as f:
            header = _parser(container)(f)
            size = f.size
    except CkptError as e:
        return e
    if isinstance(f, LocalFile):
        return header, SourceFile(path.name, path, size, f.mtime_ns, f.identity, header.nbytes, header.sha256)
    seen = f.ranges
    return header, SourceFile(
        path.name, path, size, 0, (0, 0), header.nbytes, header.sha256, etag=seen.etag, sha256=seen.sha256
    )


HEADER_PADDING = 4096
"""Bytes of padding after a header that are worth no word: writers align to a page at most."""


def _trailing(headers: Sequence[Any], files: Sequence[SourceFile]) -> Iterable[str]:
    """Bytes after a GGUF's data, which llama.cpp skips; after safetensors' they are an error. Space around the object
    of a safetensors header, in which much can be hidden from other readers."""
    for header, file in zip(headers, files, strict=True):
        if n := getattr(header, "indent", 0):
            yield f"{file.name} begins its header with {n:,} bytes of space, where some readers want a brace"
        if (n := getattr(header, "padding", 0)) > HEADER_PADDING:
            yield f"{file.name} has {n:,} bytes of padding in its header"
        if n := getattr(header, "trailing", 0):
            yield f"{file.name} has {n:,} bytes after its data, which no reader looks at: left out"


def _ordered(tensors: Sequence[StoredTensor], container: str) -> Iterable[StoredTensor]:
    """safetensors by name, as every reader lists them; GGUF as the file has them."""
    return sorted(tensors, key=lambda t: t.name) if container == "safetensors" else tensors


def _recognised(
    stored: Sequence[StoredTensor], container: str, config: Mapping[str, Any] | None, files: Sequence[SourceFile]
) -> Recognition:
    """The weights that the stored tensors make; small states are read where that costs no request."""
    if container == "gguf":
        return Recognition(gguf_weights(stored))
    from ckpttool.recognition import Peeker, recognise

    here = {f.name: f.place for f in files if isinstance(f.place, Path)}
    if len(here) < len(files):
        return recognise(stored, config)
    with Peeker(here) as peek:
        return recognise(stored, config, peek)


def _config(beside: Mapping[str, Source]) -> tuple[Mapping[str, Any] | None, list[CkptError]]:
    if CONFIG not in beside:
        return None, []
    try:
        config = read_object(beside[CONFIG], CONFIG)
        return config, list(declarations.faults(config))
    except CkptError as e:
        return None, [e]


def _declared(container: str, metadata: Mapping[str, Value], config: Mapping[str, Any] | None) -> tuple[str, object]:
    """What the checkpoint says that it is (None: nothing), and before it the key of `[arch]` that holds such names."""
    if container == "gguf":
        return "gguf", getattr(metadata.get("general.architecture"), "value", None)
    return "model_type", (config or {}).get("model_type")


def _dialect(
    declared: tuple[str, object], container: str, weights: Sequence[Weight]
) -> tuple[Arch | None, Dialect | None]:
    """The dialect that knows the most weights by name and, for experts, by format; at least half of them.

    Only of the architecture that is declared: another one may use the same names for something else.
    """
    arch = arch_named(*declared)
    if arch is None and declared[1] is not None:
        return None, None
    best: tuple[int, Arch | None, Dialect | None] = (0, arch, None)
    for candidate in (arch,) if arch else arches():
        for dialect in candidate.dialects.values():
            if dialect.container != container:
                continue
            score = 0
            for w in weights:
                claim = dialect.claim(w.name)
                if claim and (not candidate.is_expert(claim.join.parts[0]) or w.codec.name in dialect.experts):
                    score += 1
            if score > best[0] and score * 2 >= len(weights):
                best = (score, candidate, dialect)
    return best[1], best[2]


def _sizes(
    arch: Arch | None,
    dialect: Dialect | None,
    metadata: Mapping[str, Value],
    config: Mapping[str, Any] | None,
    where: str,
) -> tuple[Sizes | None, list[CkptError]]:
    """The letters of the shapes, from whichever side file speaks for this checkpoint; None where none does."""
    if arch is None:
        return None, []
    if metadata:
        keys = arch.table["gguf_sizes"]
        found: dict[str, Any] = {letter: _gguf_size(key, metadata.get(key)) for letter, key in keys.items()}
    elif config is not None:
        if config.get("model_type") is None and dialect is not None and dialect.name != "openai":
            text, hint = "is missing", f'it should say "{arch.table["arch"]["model_type"]}"'
            return None, [InputError(text, file=CONFIG, field="model_type", hint=hint)]
        keys = arch.size_keys if config.get("model_type") else arch.table["openai_sizes"]
        found, where = {letter: config.get(key) for letter, key in keys.items()}, CONFIG
    else:
        return None, []
    hint = "is it this model's file?"
    bad: list[CkptError] = [
        InputError(_no_size(n), file=where, field=keys[x], hint=hint)
        for x, n in found.items()
        if type(n) is not int or not 0 < n < 1 << 24
    ]
    return (None if bad else found), bad


def _gguf_size(key: str, value: Value | None) -> object:
    """What a key says of a size: a number, or for the vocabulary how many tokens are listed; else whatever is there."""
    if isinstance(value, Array) and key == damage.TOKENS:
        return len(value)
    return value.value if isinstance(value, Scalar) and key != damage.TOKENS else value


def _no_size(value: object) -> str:
    if isinstance(value, Array):
        return f"is an array of {len(value)}, not a number"
    if isinstance(value, Scalar):
        return "is a single value, not an array"
    return "is missing" if value is None else f"is {value!r}, which is no size"


def _claims(dialect: Dialect | None, weights: Sequence[Weight]) -> dict[str, Claim]:
    if dialect is None:
        return {}
    return {w.name: c for w in weights if (c := dialect.claim(w.name))}


def extents_of(
    weights: Iterable[Weight], claims: Iterable[Claim], shapes: Mapping[str, PartShape]
) -> dict[str, tuple[Extent, ...]]:
    """Where the rows of each part lie in `weights`, in order; `claims` are the weights' rows of their dialect."""
    claimed = {c.name: c for c in claims}
    out: dict[str, list[Extent]] = {}
    for w in weights:
        claim = claimed[w.name]
        for extent in claim.join.extents(w, shapes, claim.expert):
            for part in extent.parts:
                out.setdefault(part, []).append(extent)
    return {part: tuple(sorted(found, key=lambda x: x.start)) for part, found in out.items()}


def digest(files: Iterable[SourceFile]) -> str:
    """What identifies the source: every file's name, size, version (here the time of its change) and header. A copy of
    all that is as good."""
    rows = [f"{f.name} {f.size} {f.version} {f.header_sha256}" for f in files]
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()
