"""One tensor → one row of mergeable moments; merge two rows.

A row is what is kept of a tensor: a dozen float32 numbers, whatever its size. Rows of micro-batches, repeated calls and ranks
merge into the row of the concatenated tensor. The mean and the rms are stored instead of the sum and the sum of squares that
they come from: they merge as well (weighted by the counts) and stay inside float32 where the sums would leave it.

Measuring never asks a device for a value: ``measure`` returns 0-dimensional tensors that stay where the tensor is, and
``table`` joins many of them into one array, to be moved once. On a GPU one kernel reads each tensor once (``fused``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gradwatch import fused, octaves

Array = npt.NDArray[np.float32]

COLUMNS = ("count", "calls", "mean", "rms", "min", "max", "zeros", "nonfinite", "closed", "dead", "alike", "stale")
"""The columns of a row. ``count``: elements (a complex number counts as two); ``calls``: tensors merged into the row;
``zeros``: elements that are exactly 0, on a CPU estimated from a ``sample`` of a large tensor; ``nonfinite``: elements that are NaN
or infinite. The last four are shares from 0 to 1, measured where they make sense: ``closed``: elements of an activation whose local
derivative is next to nothing; ``dead``: units that have been silent for several full records; ``alike``: rows of a matrix that
equal another one; ``stale``: what was left in ``.grad`` from the step before, over what was there at the step. NaN: not
measured."""

COUNT, CALLS, MEAN, RMS, MIN, MAX, ZEROS, NONFINITE, CLOSED, DEAD, ALIKE, STALE = range(len(COLUMNS))
SHARES = slice(CLOSED, STALE + 1)

SAFE_NORM = (1e-15, 1e15)
"""A float32 norm inside this band was neither rounded to zero nor overflowed while its elements were squared: float32 ends at
1.2e-38 and 3.4e38, and squares of elements that matter stay far from both. Outside it the tensor is measured again in float64."""

SAMPLE = 65_536
"""Elements that a share is taken of: enough for half a per cent, few enough to cost less than a layer."""

RUN = 64
"""Neighbours that are sampled together: an element by itself costs as much as the cache line that it lies in."""

Part = Tensor | float

MOMENTS = 6
"""What is measured of one tensor: sum, norm, min, max, zeros, nonfinite."""

Pieces = tuple[Part, ...]
"""The ``MOMENTS`` of one tensor, each a 0-dimensional tensor on its device, or all of them numbers; and last, where it was asked
for, how many elements lie in each octave, (len(octaves.COUNTED),)."""


class Parts(NamedTuple):
    """The moments of the parts of a tensor on a GPU, still to be joined along with those of others.

    Attributes:
        values: What ``fused.partial`` returned.
        zeros: Whether its zeros are told.
    """

    values: Tensor
    zeros: bool


SMALL = 16_384
"""Elements up to which copying a tensor now and measuring many together later, by ``of_rows``, costs less than the calls that
measure one alone."""

WIDE = 16_384
"""Elements from which on two passes for the extremes take less than the one of ``aminmax``, which a CPU does not vectorise."""


@overload
def measure(tensor: Tensor, *, zeros: bool = ..., histogram: bool = ..., later: Literal[False] = ...) -> tuple[int, Pieces]: ...


@overload
def measure(tensor: Tensor, *, zeros: bool = ..., histogram: bool = ..., later: bool) -> tuple[int, Pieces | Parts]: ...


def measure(tensor: Tensor, *, zeros: bool = False, histogram: bool = False, later: bool = False) -> tuple[int, Pieces | Parts]:
    """Reduces a tensor to its moments, without waiting for its device.

    Half precision is reduced in float32 and float64 in float64; integers and booleans are taken as float32, a complex number as
    its two parts, a sparse tensor as the dense one that it stands for. On a CPU, where reading a value costs nothing, the
    costly cases (a norm outside ``SAFE_NORM``, non-finite elements) are measured exactly and only when they occur; elsewhere
    they are part of every measurement.

    Args:
        tensor: Any shape and dtype.
        zeros: Also count the elements that are exactly zero; else the count is NaN. On a CPU those of a large tensor are counted in
            a ``sample`` of it.
        histogram: Also count the elements in each octave; on a CPU those of a large tensor in a ``sample`` of it.
        later: Whether ``table`` may do the rest: join the parts of a tensor on a GPU.

    Returns:
        The number of elements and their moments.
    """
    if is_plain(tensor) and tensor.numel():
        plain = _plain(tensor.detach(), zeros)  # nearly every tensor of nearly every run on a CPU
        return tensor.numel(), (*plain, _octaves(tensor.detach())) if histogram else plain
    if tensor.layout is torch.strided:
        dense, unstored = _real(tensor.detach()), 0
    else:
        dense, unstored = _stored(tensor.detach())
    if dense.numel() == 0:
        return unstored, _all_zero(dense, unstored, histogram)
    if later and not unstored and fused.applies(dense):
        return dense.numel(), Parts(fused.partial(dense, histogram=histogram), zeros)
    pieces = _plain(dense, zeros) if readable(dense) else _without_reading(dense, zeros)
    if unstored:
        total, norm, low, high, zero, nonfinite = pieces
        if isinstance(low, Tensor) and isinstance(high, Tensor):
            low, high = low.clamp(max=0), high.clamp(min=0)
        else:
            low, high = min(low, 0), max(high, 0)  # the first of both, where it is NaN
        pieces = total, norm, low, high, zero + unstored, nonfinite
    return dense.numel() + unstored, (*pieces, _octaves(dense)) if histogram else pieces


def _real(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        return torch.view_as_real(tensor.resolve_conj())
    return tensor if tensor.dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16) else tensor.float()


def _stored(tensor: Tensor) -> tuple[Tensor, int]:
    """The stored values of a sparse tensor, and how many zeros it does not store."""
    if tensor.layout == torch.jagged:
        return _real(tensor.values()), 0
    values = (tensor.coalesce() if tensor.layout == torch.sparse_coo else tensor).values()
    values = values.detach()  # a complex view of a compressed tensor cannot be viewed as real
    return _real(values), (tensor.numel() - values.numel()) * (2 if tensor.is_complex() else 1)


def readable(tensor: Tensor) -> bool:
    """Whether a value can be read at no cost: a plain tensor in main memory, not a fake or a distributed one."""
    return type(tensor) is Tensor and tensor.is_cpu


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is such as nearly all are on a CPU: dense and in float32, and its values can be read at no cost."""
    return readable(tensor) and tensor.dtype is torch.float32 and tensor.layout is torch.strided


def _plain(x: Tensor, zeros: bool) -> Pieces:
    wide = torch.float64 if x.dtype is torch.float64 else torch.float32
    total, norm = x.sum(dtype=wide), torch.linalg.vector_norm(x, dtype=wide)
    low, high = torch.aminmax(x) if x.numel() < WIDE else (x.amin(), x.amax())
    count = _zeros(x) if zeros else math.nan
    size = norm.item()
    if SAFE_NORM[0] < size < SAFE_NORM[1]:
        return total.item(), size, low.item(), high.item(), count, 0.0
    total, norm, nonfinite = x.sum(dtype=torch.float64), _scaled_norm(x, low, high), _count_nonfinite(x)
    return total.item(), norm.item(), low.item(), high.item(), count, nonfinite.item()


def _without_reading(x: Tensor, zeros: bool) -> Pieces:
    low, high = torch.aminmax(x)
    # A square of a float32 fits into float64; only float64 itself has to be scaled.
    norm = _scaled_norm(x, low, high) if x.dtype == torch.float64 else torch.linalg.vector_norm(x, dtype=torch.float64)
    count = count_zeros(x) if zeros else torch.full((), math.nan, device=x.device)
    return x.sum(dtype=torch.float64), norm, low, high, count, _count_nonfinite(x)


def _scaled_norm(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The Euclidean norm with the largest magnitude divided out first, as in LAPACK's ``dnrm2``, so that no square overflows."""
    scale = torch.maximum(low.abs(), high.abs()).double()
    safe = torch.where((scale > 0) & (scale < math.inf), scale, torch.ones_like(scale))
    scaled: Tensor = torch.linalg.vector_norm(x.double() / safe)
    return scaled * safe


def _zeros(x: Tensor) -> float:
    (looked_at,) = sample(x)
    return count_zeros(looked_at).item() * (x.numel() / looked_at.numel())


def _octaves(x: Tensor) -> Tensor:
    """Elements in each octave, (len(octaves.COUNTED),)."""
    (looked_at,) = sample(x) if readable(x) else (x,)
    return octaves.count(looked_at) * (x.numel() / looked_at.numel())


def sample(*tensors: Tensor) -> list[Tensor]:
    """The same elements of several tensors of one shape: all of them, or about ``SAMPLE`` of more than twice as many."""
    size = tensors[0].numel()
    if size <= 2 * SAMPLE:
        return list(tensors)
    apart = stride(size)
    if not all(tensor.is_contiguous() for tensor in tensors):
        return [tensor.reshape(-1)[::apart] for tensor in tensors]
    return [tensor.view(-1)[: size // RUN * RUN].view(-1, RUN)[::apart] for tensor in tensors]


def stride(elements: int) -> int:
    """The distance of those that are sampled of so many: odd, since one that divides a tensor's sizes would see one column only."""
    return elements // SAMPLE | 1


def count_zeros(x: Tensor, dim: int | None = None) -> Tensor:
    """How many elements are exactly zero, of all or along a dimension."""
    # Writing the comparison as floats and adding them is 3 to 10 times faster on a CPU than `count_nonzero`.
    return torch.eq(x, 0, out=torch.empty_like(x, dtype=torch.float32)).sum(dim)


def _count_nonfinite(x: Tensor) -> Tensor:
    # x - x is 0 where x is finite and NaN elsewhere.
    difference = (x - x).float()
    return torch.ne(difference, 0, out=torch.empty_like(difference)).sum()


def _all_zero(like: Tensor, count: int, histogram: bool) -> Pieces:
    """Moments of an empty tensor, or of a sparse one that stores nothing: ``count`` zeros."""
    zero = torch.zeros((), device=like.device)
    pieces = zero, zero, zero, zero, torch.full((), float(count), device=like.device), zero
    return (*pieces, torch.zeros(len(octaves.COUNTED), dtype=torch.float64, device=like.device)) if histogram else pieces


def table(pieces: Sequence[Pieces | Parts]) -> Tensor:
    """Joins what was measured of many tensors on one device, one row for each; numbers belong to main memory.

    Returns:
        (tensors, MOMENTS), or (tensors, MOMENTS + len(octaves.COUNTED)) where the octaves of any were counted; NaN for the others.
    """
    alone: list[Pieces] = []
    where: list[int] = []
    alike: dict[tuple[torch.Size, bool], list[tuple[int, Tensor]]] = {}
    for index, piece in enumerate(pieces):
        if isinstance(piece, Parts):
            alike.setdefault((piece.values.shape, piece.zeros), []).append((index, piece.values))
        else:
            where.append(index)
            alone.append(piece)
    joined = _stacked(alone) if alone else None
    if not alike:
        return torch.empty(0, MOMENTS) if joined is None else joined
    parts = [] if joined is None else [joined.double()]
    for (_, zeros), group in alike.items():
        where += [index for index, _ in group]
        parts.append(_joined([values for _, values in group], zeros))
    widest = max(part.shape[1] for part in parts)
    together = torch.cat([nn.functional.pad(part, (0, widest - part.shape[1]), value=math.nan) for part in parts])
    # Back in order through the inverse permutation: an index that lies on the host would make a device wait for it.
    order = torch.tensor(where).argsort()
    return together[order if together.device.type == "cpu" else order.pin_memory().to(together.device, non_blocking=True)]


def _stacked(rows: list[Pieces]) -> Tensor:
    tensors = [part for row in rows for part in row[:MOMENTS] if isinstance(part, Tensor)]
    if len(tensors) == MOMENTS * len(rows):
        joined = torch.stack(tensors).view(-1, MOMENTS)
    else:
        joined = torch.tensor([[float(part) for part in row[:MOMENTS]] for row in rows], dtype=torch.float64)
    if all(len(row) == MOMENTS for row in rows):
        return joined
    uncounted = torch.full((len(octaves.COUNTED),), math.nan, dtype=torch.float64, device=joined.device)
    counted = [torch.as_tensor(row[MOMENTS]) if len(row) > MOMENTS else uncounted for row in rows]
    return torch.cat([joined.double(), torch.stack(counted)], 1)


def _joined(parts: list[Tensor], zeros: bool) -> Tensor:
    rows = fused.joined(torch.stack(parts))
    if not zeros:
        rows[:, 4] = math.nan  # as everywhere, what nobody asked for is not known
    return rows


def of_rows(x: Tensor, *, zeros: bool = False, histogram: bool = False) -> Tensor:
    """What ``measure`` says of each row of a matrix: of as many small tensors that were stacked, in main memory and in float32.

    Args:
        x: (tensors, elements).
        zeros: Also count the elements that are exactly zero.
        histogram: Also count the elements in each octave.

    Returns:
        float64, as ``table`` joins them.
    """
    # NumPy puts a few numbers in order at a third of what it costs PyTorch.
    found = np.empty((len(x), MOMENTS))
    found[:, 0] = x.sum(1).numpy()
    found[:, 1] = norm = torch.linalg.vector_norm(x, dim=1).numpy()
    found[:, 2], found[:, 3] = x.amin(1).numpy(), x.amax(1).numpy()  # aminmax along a dimension is 40 times slower
    found[:, 4] = count_zeros(x, 1).numpy() if zeros else math.nan
    found[:, 5] = 0
    joined = torch.from_numpy(found)
    if not (norm.min() > SAFE_NORM[0] and norm.max() < SAFE_NORM[1]):
        unsafe = ~((norm > SAFE_NORM[0]) & (norm < SAFE_NORM[1])) & ((found[:, 2] != 0) | (found[:, 3] != 0))
        for index in np.flatnonzero(unsafe):
            joined[index] = torch.tensor(_plain(x[index], zeros), dtype=torch.float64)
    return torch.cat([joined, octaves.of_rows(x)], 1) if histogram else joined


def rows(counts: Sequence[int], joined: npt.NDArray[np.float64]) -> Array:
    """Turns moved moments into rows.

    Args:
        counts: Elements of each tensor, (tensors,).
        joined: What ``table`` joined, on the host; its first ``MOMENTS`` columns count.

    Returns:
        (tensors, len(COLUMNS)), float32. A finite float64 beyond float32's range is stored as the nearest float32.
    """
    count = np.asarray(counts, np.float64)
    wide = np.full((len(count), len(COLUMNS)), np.nan)
    wide[:, COUNT], wide[:, CALLS] = count, 1
    with np.errstate(all="ignore"):
        wide[:, MEAN], wide[:, RMS] = joined[:, 0] / count, joined[:, 1] / np.sqrt(count)
    wide[:, MIN : NONFINITE + 1] = joined[:, 2:MOMENTS]
    wide[count == 0] = EMPTY
    return _narrow(wide)


def norm_rows(counts: Sequence[int] | npt.NDArray[np.float64], norms: npt.NDArray[np.float64]) -> Array:
    """Rows of tensors of which only the Euclidean norm was measured; everything else about them is NaN."""
    count = np.asarray(counts, np.float64)
    wide = np.full((len(count), len(COLUMNS)), np.nan)
    wide[:, COUNT], wide[:, CALLS] = count, 1
    with np.errstate(all="ignore"):
        wide[:, RMS] = norms / np.sqrt(count)
    wide[np.isfinite(norms), NONFINITE] = 0
    wide[count == 0] = EMPTY
    return _narrow(wide)


SUMS = 8
"""What ``sum_rows`` takes of a tensor: calls, elements, sum, sum of squares, min, max, zeros, nonfinite."""


def sum_rows(sums: npt.NDArray[np.float64]) -> Array:
    """Rows of tensors of which only sums were taken, over one call or several.

    Args:
        sums: (tensors, SUMS). The least and the greatest element count where there was one call: those of several were added up.

    Returns:
        (tensors, len(COLUMNS)), float32.
    """
    calls, count, total, square, low, high, zeros, nonfinite = sums.astype(np.float64).T
    once = calls == 1
    with np.errstate(all="ignore"):
        mean, rms = total / count, np.sqrt(square / count)
    wide = np.full((len(sums), len(COLUMNS)), np.nan)
    wide[:, : NONFINITE + 1] = np.stack(
        [count, calls, mean, rms, np.where(once, low, np.nan), np.where(once, high, np.nan), zeros, nonfinite], axis=1
    )
    return _narrow(wide)


EMPTY = np.array([0, 0] + [np.nan] * (len(COLUMNS) - 2), np.float32)
"""The row of no tensor at all, and what ``merge`` leaves unchanged."""


def _narrow(wide: npt.NDArray[np.float64]) -> Array:
    with np.errstate(over="ignore", under="ignore"):
        narrow = wide.astype(np.float32)
    lost = np.isfinite(wide) != np.isfinite(narrow)
    if lost.any():
        narrow[lost] = np.copysign(np.finfo(np.float32).max, wide[lost])
    if not narrow[:, RMS].all():
        narrow[(wide[:, RMS] > 0) & (narrow[:, RMS] == 0), RMS] = np.finfo(np.float32).smallest_subnormal
    return narrow


def merge(first: Array, second: Array) -> Array:
    """Merges two rows, or two equally long tables of rows, into those of the concatenated tensors.

    Associative and commutative up to float32 rounding; ``EMPTY`` is its neutral element. What only one side measured is not
    known of the whole, and becomes NaN; a share that only one side measured stands for both.

    Args:
        first: (..., len(COLUMNS)).
        second: The same shape.

    Returns:
        The same shape, float32.
    """
    a, b = (side.reshape(-1, len(COLUMNS)) for side in (first, second))
    return merge_all(np.concatenate([a, b]), np.tile(np.arange(len(a)), 2), len(a)).reshape(first.shape)


def merge_all(table_rows: Array, groups: Iterable[int], size: int) -> Array:
    """Merges the rows that share a group.

    Args:
        table_rows: (rows, len(COLUMNS)).
        groups: The group of each row, each in ``range(size)``.
        size: Number of groups.

    Returns:
        (size, len(COLUMNS)); a group without rows is ``EMPTY``.
    """
    out = np.tile(EMPTY, (size, 1))
    group = np.fromiter(groups, np.intp)
    alone = np.bincount(group, minlength=size) == 1
    single = alone[group]
    out[group[single]] = table_rows[single]  # nearly every site of nearly every record is measured once
    several = ~single & (table_rows[:, COUNT] > 0)
    if several.any():
        order = np.argsort(group[several], kind="stable")
        merged = group[several][order]
        out[np.unique(merged)] = _reduce(table_rows[several][order].astype(np.float64), np.flatnonzero(np.diff(merged, prepend=-1)))
    out[:, CALLS] = np.bincount(group, weights=table_rows[:, CALLS], minlength=size)
    return out


def _reduce(table_rows: npt.NDArray[np.float64], starts: npt.NDArray[np.intp]) -> Array:
    """Merges rows that stand in order of their group; ``starts``: where each group begins. No row is empty."""
    count = np.add.reduceat(table_rows[:, COUNT], starts)
    out = np.empty((len(starts), len(COLUMNS)))
    weight = table_rows[:, COUNT] / np.repeat(count, np.diff(starts, append=len(table_rows)))
    with np.errstate(all="ignore"):
        out[:, MEAN] = np.add.reduceat(weight * table_rows[:, MEAN], starts)
        out[:, RMS] = np.sqrt(np.add.reduceat(weight * table_rows[:, RMS] ** 2, starts))
        out[:, MIN] = np.minimum.reduceat(table_rows[:, MIN], starts)
        out[:, MAX] = np.maximum.reduceat(table_rows[:, MAX], starts)
        for column in (ZEROS, NONFINITE):
            out[:, column] = np.add.reduceat(table_rows[:, column], starts)
        shares = table_rows[:, SHARES]
        told = ~np.isnan(shares) * weight[:, None]
        out[:, SHARES] = np.add.reduceat(np.where(np.isnan(shares), 0, shares) * told, starts) / np.add.reduceat(told, starts)
    out[:, COUNT], out[:, CALLS] = count, np.add.reduceat(table_rows[:, CALLS], starts)
    return _narrow(out)
