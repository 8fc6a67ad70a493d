"""Which elements share a scale, by the shapes of codes and scales alone."""

from __future__ import annotations

from math import ceil, prod

_LIKELY = (128, 64, 32, 16, 256, 512, 1024)
"""Block lengths in use. Where the last block is not full, the shapes leave a range, and one of these is in it."""


def spread(
    codes: tuple[int, ...], scales: tuple[int, ...], stated: tuple[int, int] | None = None
) -> tuple[int, int] | None:
    """Rows and columns of [..., rows, columns] that share one of `scales`, 0 for all of them; None if they do not fit.

    (0, 0) is a scale for each matrix, (1, 0) one for each row, (0, 1) one for each column; `stated` is the block that
    the config names, which decides only where the shapes leave it open.
    """
    if prod(scales) == 1:
        return (0, 0)
    if len(codes) < 2:
        return None
    lead, (rows, columns) = codes[:-2], codes[-2:]
    if len(scales) == 2 * len(codes) and scales[1::2] == (1,) * len(codes):  # ModelOpt: [out / 128, 1, in / 128, 1]
        scales = scales[::2]
    if lead and scales in (lead, (*lead, 1), (*lead, 1, 1)):
        return (0, 0)
    if scales in ((*lead, rows), (*lead, rows, 1)):
        return (1, 0)
    if scales in ((*lead, columns), (*lead, 1, columns)):
        return (0, 1)
    if len(scales) != len(codes) or scales[:-2] != lead:
        return None
    across = _length(columns, scales[-1], stated[1] if stated else None)
    down = _length(rows, scales[-2], stated[0] if stated else None)
    if across is None or down is None:
        return None
    # One row of scales for fewer rows than a square block has: a block that is not full.
    if down == 0 and across and rows <= across:
        down = across
    if across == 0 and down > 1 and columns <= down:
        across = down
    return down, across


def _length(n: int, count: int, stated: int | None) -> int | None:
    """How many of `n` share each of `count` scales; 0 where one serves all."""
    if count == n:
        return 1
    if not 0 < count < n:
        return None
    if stated and ceil(n / stated) == count:
        return stated
    if count == 1:
        return 0
    likely = (b for b in _LIKELY if ceil(n / b) == count)
    return next(likely, n // count if n % count == 0 else None)


def along(codes: tuple[int, ...], scales: tuple[int, ...], ratio: int) -> int | None:
    """The axis along which `ratio` of `codes` share one of `scales`, all others equal: -1, or -2 of stacked experts.

    None where neither fits.
    """
    if len(codes) != len(scales) or len(codes) < 2:
        return None
    if codes[:-1] == scales[:-1] and codes[-1] == scales[-1] * ratio:
        return -1
    if len(codes) > 2 and (*codes[:-2], codes[-2], codes[-1]) == (*scales[:-2], scales[-2] * ratio, scales[-1]):
        return -2
    return None


def widened(shape: tuple[int, ...], axis: int, factor: tuple[int, int]) -> tuple[int, ...]:
    """`shape` with `axis` times the fraction `factor`."""
    out = list(shape)
    out[axis] = out[axis] * factor[0] // factor[1]
    return tuple(out)
