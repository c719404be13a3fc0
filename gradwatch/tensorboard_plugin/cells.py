"""Numbers as codes whose maximum is what a cell of the heat-map shows, so that many records can be pooled into one pixel.

The bits of a float32 that is not negative, read as an integer, are in the order of the numbers, with infinity above every number
and NaN above infinity. So one integer maximum lets a NaN outlive everything, a spike outlive its neighbours, an exact zero show
only where everything is zero, and -1, which stands for nothing recorded, only where nothing is.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gradwatch.statistics import Values

Codes = npt.NDArray[np.int32]
Flags = npt.NDArray[np.uint8]

VALUE, ABSENT, NAN, INF, ZERO, MINUS_INF = range(6)
"""What a cell holds: a number, nothing recorded, NaN, infinity, an exact zero, minus infinity."""

_NOTHING = np.int32(-1)
_INF, _MINUS_INF, _NAN = np.float32(np.inf).view(np.int32), np.float32(np.inf).view(np.int32) + 1, np.int32(0x7FC00000)


def encode(values: Values, recorded: npt.NDArray[np.bool_], *, signed: bool = False) -> Codes:
    """Numbers → codes of their magnitudes.

    Args:
        values: Any shape. What is beyond float32's range becomes the nearest float32.
        recorded: Of the same shape; False where nothing was recorded, whatever the value.
        signed: Whether the sign counts. It takes the place of the last bit of 24.

    Returns:
        The same shape, int32.
    """
    magnitude = np.abs(values)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        narrow = magnitude.astype(np.float32)
    narrow[np.isinf(narrow) & np.isfinite(magnitude)] = np.finfo(np.float32).max
    narrow[(narrow == 0) & (magnitude > 0)] = np.finfo(np.float32).smallest_subnormal
    codes = narrow.view(np.int32)
    if signed:
        codes = np.where(codes < _INF, (codes & ~1) | (values < 0), np.where(values == -np.inf, _MINUS_INF, codes)).astype(np.int32)
    codes[np.isnan(narrow)] = _NAN
    codes[~recorded] = _NOTHING
    return codes


def decode(codes: Codes, *, signed: bool = False, zeros: bool = True) -> tuple[npt.NDArray[np.float32], Flags]:
    """Codes → numbers and what each cell holds.

    Args:
        codes: Any shape.
        signed: As they were encoded.
        zeros: Whether an exact zero is something of its own; else it is a number.

    Returns:
        Values, float32, 0 where the cell holds no number; and one of the constants above for each.
    """
    flags = np.zeros(codes.shape, np.uint8)
    flags[codes == _NOTHING] = ABSENT
    flags[codes == _INF] = INF
    flags[codes == _MINUS_INF] = MINUS_INF
    flags[codes == _NAN] = NAN
    if zeros:
        flags[(codes & ~1 if signed else codes) == 0] = ZERO
    bits = np.where(flags == VALUE, codes, 0).astype(np.int32)
    if not signed:
        return bits.view(np.float32), flags
    values = (bits & ~1).view(np.float32)
    return np.where(bits & 1, -values, values).astype(np.float32), flags


def pool(codes: Codes, column: npt.NDArray[np.intp], rows: npt.NDArray[np.intp], into: Codes) -> None:
    """Raises cells to the maximum of the records that fall into them.

    Args:
        codes: (records, len(rows)).
        column: Of each record, (records,), not decreasing.
        rows: Where the codes belong.
        into: (columns, all rows); changed in place.
    """
    if len(codes):
        starts = np.flatnonzero(np.diff(column, prepend=-1))
        cells = np.ix_(column[starts], rows)
        into[cells] = np.maximum(into[cells], np.maximum.reduceat(codes, starts, axis=0))


def empty(columns: int, rows: int) -> Codes:
    """Cells into which nothing has been pooled yet, (columns, rows)."""
    return np.full((columns, rows), _NOTHING, np.int32)


def recorded(codes: Codes) -> npt.NDArray[np.bool_]:
    """Where something was recorded."""
    there: npt.NDArray[np.bool_] = codes != _NOTHING
    return there
