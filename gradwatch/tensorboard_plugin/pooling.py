"""Rows of several blocks of records side by side, and records pooled into as many columns as a picture has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gradwatch.tensorboard_plugin import cells, shown
from gradwatch.tensorboard_plugin.recorded import Block, Layer, Run, Steps
from gradwatch.tensorboard_plugin.shown import Shown


@dataclass(frozen=True)
class Part:
    """What one block contributes.

    Attributes:
        steps: (records,), increasing.
        codes: (records, len(rows)), of ``cells``.
        rows: Where its columns belong, (rows,).
    """

    steps: Steps
    codes: cells.Codes
    rows: npt.NDArray[np.intp]


@dataclass(frozen=True)
class Pooled:
    """Columns of cells.

    Attributes:
        steps: The first step of each column, (columns,), increasing.
        last: The last one.
        codes: (columns, rows).
    """

    steps: Steps
    last: Steps
    codes: cells.Codes


def stand_in(run: Run, entry: Shown, layer: Layer) -> str | None:
    """The site that a layer's row shows: its own, or that of its weight, or what else was measured where the weight is frozen."""
    return run.stand_ins.get((entry.tensor, layer.name)) if entry.of_parameters else layer.name


def stand_ins(run: Run, entry: Shown) -> list[str | None]:
    """The same of every layer."""
    return [stand_in(run, entry, layer) for layer in run.layers]


def parts(run: Run, entry: Shown, sites: Sequence[str | None]) -> list[Part]:
    """What the blocks hold of these sites; a row is the position of its site."""
    return [Part(block.steps, shown.codes(block, entry, have), rows) for block, have, rows in _places(run, entry, sites)]


def sampled(run: Run, entry: Shown) -> list[Part]:
    """What samples of the blocks hold of every layer."""
    return [Part(*shown.sampled(block, entry, have), rows) for block, have, rows in _places(run, entry, stand_ins(run, entry))]


def _places(run: Run, entry: Shown, sites: Sequence[str | None]) -> Iterator[tuple[Block, list[str], npt.NDArray[np.intp]]]:
    """Each block that has some of the sites, those that it has, and their rows."""
    for block in run.blocks:
        at = shown.places(block, entry)
        have = [(row, site) for row, site in enumerate(sites) if site in at]
        # Where a sample holds nothing, gigabytes may still have to be read to find the same.
        if have and shown.measured(block, entry):
            yield block, [str(site) for _, site in have], np.array([row for row, _ in have], np.intp)


def pool(parts: Sequence[Part], rows: int, width: int, first: int | None = None, last: int | None = None) -> Pooled:
    """Pools records into columns; those in which no row was recorded have none.

    Args:
        parts: Of any number of blocks.
        rows: In all.
        width: Columns at most.
        first: Of the steps; None: from the start.
        last: Of the steps; None: to the end.
    """
    kept = []
    for part in parts:
        lo = 0 if first is None else np.searchsorted(part.steps, first)
        hi = len(part.steps) if last is None else np.searchsorted(part.steps, last, side="right")
        chosen, codes = part.steps[lo:hi], part.codes[lo:hi]
        seen = cells.recorded(codes).any(axis=1)
        kept.append(Part(chosen, codes, part.rows) if seen.all() else Part(chosen[seen], codes[seen], part.rows))
    steps = np.unique(np.concatenate([part.steps for part in kept])) if kept else np.array([], np.int64)
    columns = min(width, len(steps))
    column = np.arange(len(steps)) * columns // max(1, len(steps))
    pooled = cells.empty(columns, rows)
    for part in kept:
        cells.pool(part.codes, column[np.searchsorted(steps, part.steps)], part.rows, pooled)
    starts = np.flatnonzero(np.diff(column, prepend=-1))
    return Pooled(steps[starts], steps[np.append(starts[1:], len(steps)) - 1] if columns else steps, pooled)


def newest(parts: Sequence[Part], rows: int) -> tuple[cells.Codes, Steps]:
    """The newest recorded code of each row, (rows,), and its step, -1 where nothing was ever recorded."""
    codes, steps = cells.empty(1, rows)[0], np.full(rows, -1, np.int64)
    for part in parts:
        if not len(part.steps):
            continue
        recorded = cells.recorded(part.codes)
        place = len(recorded) - 1 - np.argmax(recorded[::-1], axis=0)
        columns = np.flatnonzero(recorded.any(axis=0) & (part.steps[place] > steps[part.rows]))
        codes[part.rows[columns]] = part.codes[place[columns], columns]
        steps[part.rows[columns]] = part.steps[place[columns]]
    return codes, steps
