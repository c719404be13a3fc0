"""Rows → statistics: one table of named, pure functions.

Writers, frames and pages iterate ``STATISTICS`` and ``RATIOS`` and never name an entry, so that a statistic added here shows up
in all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gradwatch import moments
from gradwatch.moments import Array

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """A table of rows with its columns by name, each of shape (rows,), float64."""

    rows: Array

    def __getattr__(self, column: str) -> Values:
        if column not in moments.COLUMNS:
            raise AttributeError(f"a row has no column {column!r}; its columns are {', '.join(moments.COLUMNS)}")
        return self.rows[:, moments.COLUMNS.index(column)].astype(np.float64)


@dataclass(frozen=True)
class Statistic:
    """A function of one row.

    Attributes:
        name: What it is called in frames, writers and pages.
        unit: ``"1"`` (dimensionless), ``"elements"``, ``"tensors"`` or ``"tensor"`` (the unit of the tensor's own values).
        compute: (rows,) from a table of rows.
    """

    name: str
    unit: str
    compute: Callable[[Moments], Values]


@dataclass(frozen=True)
class Ratio:
    """The rms of one tensor of a layer over the rms of another, dimensionless.

    Attributes:
        name: What it is called in frames, writers and pages.
        over: The tensor in the numerator, whose row of the frame holds the ratio.
        under: The tensor in the denominator, of the same layer.
        meaning: One sentence.
    """

    name: str
    over: str
    under: str
    meaning: str


STATISTICS: dict[str, Statistic] = {}

RATIOS: dict[str, Ratio] = {
    ratio.name: ratio
    for ratio in (
        Ratio("update_ratio", "update", "parameter", "How far one step moves a parameter, as a share of its size."),
        Ratio("attenuation", "input_grad", "activation_grad", "What a layer lets through of the gradient that reaches it."),
    )
}


def statistic(unit: str) -> Callable[[Callable[[Moments], Values]], Callable[[Moments], Values]]:
    """Enters a function of a row into ``STATISTICS`` under its own name."""

    def enter(compute: Callable[[Moments], Values]) -> Callable[[Moments], Values]:
        STATISTICS[compute.__name__] = Statistic(compute.__name__, unit, compute)
        return compute

    return enter


@statistic(unit="elements")
def count(m: Moments) -> Values:
    """Elements measured."""
    return m.count


@statistic(unit="tensors")
def calls(m: Moments) -> Values:
    """Tensors merged: one for each call and micro-batch."""
    return m.calls


@statistic(unit="tensor")
def mean(m: Moments) -> Values:
    """Arithmetic mean."""
    return m.mean


@statistic(unit="tensor")
def std(m: Moments) -> Values:
    """Population standard deviation, √(rms² − mean²); lost in rounding where it is under 1/1000 of the mean."""
    with np.errstate(invalid="ignore"):
        spread = (m.rms - np.abs(m.mean)) * (m.rms + np.abs(m.mean))
        return np.where(np.isnan(spread), np.nan, np.sqrt(np.maximum(spread, 0)))


@statistic(unit="tensor")
def rms(m: Moments) -> Values:
    """Root mean square, √(Σx²/n): the size of a typical element, whatever the number of elements."""
    return m.rms


@statistic(unit="tensor")
def norm(m: Moments) -> Values:
    """Euclidean norm, √Σx²."""
    return m.rms * np.sqrt(m.count)


@statistic(unit="tensor")
def min(m: Moments) -> Values:
    """Smallest element."""
    return m.min


@statistic(unit="tensor")
def max(m: Moments) -> Values:
    """Largest element."""
    return m.max


@statistic(unit="elements")
def zeros(m: Moments) -> Values:
    """Elements that are exactly zero; NaN where they were not counted."""
    return m.zeros


@statistic(unit="elements")
def nonfinite(m: Moments) -> Values:
    """Elements that are NaN or infinite."""
    return m.nonfinite


@statistic(unit="1")
def zero_share(m: Moments) -> Values:
    """Elements that are exactly zero, as a share of all; NaN where they were not counted."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return m.zeros / m.count


@statistic(unit="1")
def closed(m: Moments) -> Values:
    """Elements of an activation whose valve is closed, as a share: the local derivative is next to nothing."""
    return m.closed


@statistic(unit="1")
def dead(m: Moments) -> Values:
    """Units that were silent for every input of the last full records, as a share."""
    return m.dead


@statistic(unit="1")
def alike(m: Moments) -> Values:
    """Rows of a matrix that equal another row, as a share: units that are copies of each other."""
    return m.alike


@statistic(unit="1")
def stale(m: Moments) -> Values:
    """Norm of what ``.grad`` held before the step's first backward pass over its norm at the step."""
    return m.stale


class Located(Protocol):
    """What a row belongs to; ``records.Site`` is one."""

    @property
    def layer(self) -> str:
        """The layer's name."""

    @property
    def tensor(self) -> str:
        """Which tensor of the layer."""


def derive(sites: Sequence[Located], rows: Array) -> dict[str, Values]:
    """Every statistic and every ratio of a record, by name.

    Args:
        sites: What the rows belong to, (rows,).
        rows: (rows, moments.COLUMNS).

    Returns:
        Name → (rows,); NaN where a statistic was not measured or a ratio does not apply.
    """
    table = Moments(rows)
    out = {name: entry.compute(table) for name, entry in STATISTICS.items()}
    at = {(site.layer, site.tensor): index for index, site in enumerate(sites)}
    for entry in RATIOS.values():
        out[entry.name] = values = np.full(len(sites), np.nan)
        pairs = [(over, at.get((layer, entry.under))) for (layer, tensor), over in at.items() if tensor == entry.over]
        paired = [(over, under) for over, under in pairs if under is not None]
        if paired:
            over, under = np.asarray(paired, np.intp).T
            with np.errstate(invalid="ignore", divide="ignore"):
                values[over] = table.rms[over] / table.rms[under]
    return out
