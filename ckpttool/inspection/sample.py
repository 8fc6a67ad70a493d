"""Who made the MXFP4 scales, by a sample of blocks: what `inspect` can say of values without reading them all.

The rule: of up to 16 MXFP4 weights, evenly spread over the checkpoint, a run of 1,024 blocks each, the i-th run i/15 of
the way into its weight, so that different layers, matrices and experts are looked at. That is 16,384 blocks, 280 kB.
Only of local files: at a remote end each run would be two requests. Written without numpy, which takes longer to load.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ckpttool.codecs.formats import MXFP4, Packing
from ckpttool.containers.source import LocalFile
from ckpttool.inspection.report import FingerprintReport
from ckpttool.recognition import fingerprint
from ckpttool.tensors import Role, StoredTensor, Weight

if TYPE_CHECKING:
    from collections.abc import Mapping

RUNS, RUN = 16, 1024
BLOCK_NBYTES, STRUCT_NBYTES = 16, 17

_LARGEST = bytes(max(b & 7, b >> 4 & 7) for b in range(256))
"""The larger code of a byte's two, without signs."""

_NEGATIVE_ZEROS = bytes((b & 15 == 8) + (b >> 4 == 8) for b in range(256))


@dataclass(frozen=True, slots=True)
class Lie:
    """Where the blocks of an MXFP4 weight lie: 16 bytes of codes each, and scales beside them or (None) before each."""

    codes: StoredTensor
    scales: StoredTensor | None
    blocks: int


def lie_of(w: Weight) -> Lie | None:
    """How the blocks of `w` lie, None where it is no MXFP4, or its blocks' bytes are not one after the other."""
    if w.codec.name != MXFP4.name:
        return None
    codes = w.stored[0]
    if w.codec.packing is Packing.ggml:
        return Lie(codes, None, codes.nbytes // STRUCT_NBYTES)
    scales = w.stored_as(Role.scales)
    if scales is None or codes.nbytes != BLOCK_NBYTES * scales.nbytes or not scales.shape:
        return None
    nbytes = codes.nbytes * scales.shape[-1] // max(1, scales.nbytes)  # of a row of blocks, as the scales have it
    last = codes.shape[-1] if w.codec.packing is not Packing.pair else codes.shape[-1] * scales.shape[-1]
    per_element = 2 if codes.dtype == "F4" else 1
    return Lie(codes, scales, scales.nbytes) if last == nbytes * per_element else None


def sampled(weights: Sequence[Weight], places: Mapping[str, Path]) -> FingerprintReport | None:
    """The fingerprint by the sample, None where nothing is MXFP4; `places` are the files by name.

    Raises:
        InputError, LocalIOError: a file changed or cannot be read.
    """
    known = [lie for w in weights if (lie := lie_of(w)) is not None and lie.blocks]
    if not known:
        return None
    largest = [[0] * 8 for _ in range(256)]
    negative = 0
    runs = _runs(known)
    files: dict[str, LocalFile] = {}
    try:
        for lie, start, count in runs:
            codes, scales = _read(lie, start, count, files, places)
            tops = codes.translate(_LARGEST)
            for block, scale in enumerate(scales):
                largest[scale][max(tops[BLOCK_NBYTES * block : BLOCK_NBYTES * (block + 1)])] += 1
            zeros = codes.translate(_NEGATIVE_ZEROS)
            negative += zeros.count(1) + 2 * zeros.count(2)
    finally:
        for f in files.values():
            f.close()
    found = fingerprint(largest, negative)
    looked_at = len({lie.codes.name for lie, _, _ in runs})
    whole = sum(count for _, _, count in runs) == sum(lie.blocks for lie in known)
    return FingerprintReport(found.recipes, found.reason, found.blocks, looked_at, not whole)


def _runs(known: Sequence[Lie]) -> list[tuple[Lie, int, int]]:
    """The runs by the rule above: weight, first block, blocks. Small weights give what they have, and once."""
    found = {}
    for i in range(RUNS):
        number = i * len(known) // RUNS
        lie = known[number]
        count = min(RUN, lie.blocks)
        start = (lie.blocks - count) * i // (RUNS - 1) // RUN * RUN
        found[number, start] = (lie, start, count)
    return list(found.values())


def _read(
    lie: Lie, start: int, count: int, files: dict[str, LocalFile], places: Mapping[str, Path]
) -> tuple[bytes, bytes]:
    """The codes and scales of `count` blocks from block `start` on."""

    def read(t: StoredTensor, size: int) -> bytes:
        if t.file not in files:
            files[t.file] = LocalFile(places[t.file], t.file)
        return files[t.file].read(t.offset + start * size, count * size)

    if lie.scales is not None:
        return read(lie.codes, BLOCK_NBYTES), read(lie.scales, 1)
    data = read(lie.codes, STRUCT_NBYTES)
    codes = b"".join(data[i + 1 : i + STRUCT_NBYTES] for i in range(0, len(data), STRUCT_NBYTES))
    return codes, data[::STRUCT_NBYTES]
