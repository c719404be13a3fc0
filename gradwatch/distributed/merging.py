"""The rows of several processes → those of the whole training.

Of a tensor the processes hold one of three things. *Copies*: a parameter under data parallelism, and its gradient, which is
averaged already; one of them is taken, and adding would count it twice. *Pieces*: shards of a parameter, or of an activation
under tensor parallelism; together they are the tensor. *Samples*: the activations of different batches, which a single process
with a larger batch would have held in one tensor.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gradwatch import moments
from gradwatch.moments import CALLS, COUNT, DEAD, EMPTY, MAX, MEAN, MIN, NONFINITE, RMS, Array

ABSENT = -1.0
"""In the place of a count: the site is not in the record of this process."""

COPY = 0.1
"""How far the means of two copies of a weight may lie apart, in units of what the mean of as many random numbers is known to. Two
initialisations lie about 1.4 such units apart; copies that round differently on their devices lie 10,000 times closer."""

Flags = npt.NDArray[np.bool_]
Ranks = npt.NDArray[np.int32]


def merge(tables: Array, copied: Flags, sharded: Flags, groups: Sequence[Sequence[int]]) -> Array:
    """Merges the tables of all processes.

    Args:
        tables: (processes, sites, columns).
        copied: Sites of which processes hold copies, (sites,).
        sharded: Sites of which they hold pieces, (sites,). The others are samples.
        groups: The ranks, by the samples that they compute: each group computes its own.

    Returns:
        (sites, columns).
    """
    tables = np.where(tables[..., COUNT, None] == ABSENT, EMPTY, tables)
    merged = np.empty(tables.shape[1:], np.float32)
    merged[copied] = first_measured(tables[:, copied])
    merged[sharded] = join_pieces(tables[:, sharded])
    samples = ~(copied | sharded)
    by_group = tables[:, samples]
    if len(groups) < len(tables):
        by_group = np.stack([join_pieces(distinct(by_group[list(group)])) for group in groups])
    merged[samples] = add_samples(by_group)
    return merged


def first_measured(tables: Array) -> Array:
    """Of each site the row of the first process that measured it: (processes, sites, columns) → (sites, columns)."""
    first: Array = tables[np.argmax(tables[..., COUNT] > 0, axis=0), np.arange(tables.shape[1])]
    return first


def join_pieces(tables: Array) -> Array:
    """Rows of the pieces of a tensor → its row: (processes, sites, columns) → (sites, columns)."""
    joined = _merge_all(tables)
    joined[:, CALLS] = tables[..., CALLS].max(axis=0, initial=0)  # the pieces of a call are one call
    return joined


def add_samples(tables: Array) -> Array:
    """Rows of the same layer on different samples → its row on all: (processes, sites, columns) → (sites, columns)."""
    added = _merge_all(tables)
    # A unit that is silent for all samples is silent for those of each process: their share is at most the smallest one.
    added[:, DEAD] = np.fmin.reduce(tables[..., DEAD], axis=0)
    return added


def distinct(tables: Array) -> Array:
    """Leaves one of the rows that are equal to the last bit: a tensor of which tensor parallelism holds copies."""
    out: Array = tables.copy()
    bits = np.ascontiguousarray(tables).view(np.uint32)
    for number in range(1, len(tables)):
        equal = (bits[:number] == bits[number]).all(axis=-1).any(axis=0)
        out[number][equal] = EMPTY
    return out


def _merge_all(tables: Array) -> Array:
    processes, sites, columns = tables.shape
    return moments.merge_all(tables.reshape(-1, columns), np.tile(np.arange(sites), processes), sites)


def extremes(tables: Array) -> Ranks:
    """The rank that holds the first value of a site that is not finite, or else the largest magnitude.

    Where only norms were measured it is the rank of the largest rms.

    Args:
        tables: (processes, sites, columns).

    Returns:
        (sites,); -1 where nobody measured.
    """
    with np.errstate(invalid="ignore"):
        size = np.fmax(np.abs(tables[..., MIN]), np.abs(tables[..., MAX]))
    size = np.where(np.isnan(size), tables[..., RMS], size)
    size = np.where(~np.isfinite(tables[..., RMS]) | (tables[..., NONFINITE] > 0), np.inf, size)
    size = np.where(tables[..., COUNT] > 0, size, -np.inf)
    return np.where(size.max(axis=0, initial=-np.inf) == -np.inf, -1, size.argmax(axis=0)).astype(np.int32)


def first_difference(tables: Array, where: Flags) -> tuple[int, int, int] | None:
    """A weight of which processes hold copies that are none, and two ranks that differ in it; None where all agree.

    The mean of n random numbers is known to 1/√n of their size, so that two different initialisations differ by about as much.

    Args:
        tables: (processes, sites, columns).
        where: The sites to compare, (sites,).
    """
    measured = (tables[..., COUNT] > 0) & where
    first = first_measured(tables)  # (sites, columns)
    with np.errstate(invalid="ignore", divide="ignore"):
        far = np.abs(tables[..., MEAN] - first[:, MEAN]) > COPY * first[:, RMS] / np.sqrt(first[:, COUNT])
    differs = measured & (far | (tables[..., COUNT] != first[:, COUNT]))
    if not differs.any():
        return None
    site = int(differs.any(axis=0).argmax())
    return site, int(measured[:, site].argmax()), int(differs[:, site].argmax())
