"""A record in a few numbers: totals and quantiles over its layers, the same number of them at any depth.

They are what ordinary dashboards and loggers show; everything else about a layer is in the event file's tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import numpy.typing as npt

from gradwatch.codec import PerSites
from gradwatch.moments import COUNT, Array
from gradwatch.records import Record, Site, TensorName
from gradwatch.statistics import RATIOS, STATISTICS, Moments, Values, rms

QUANTILES = {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "max": 1.0}

LOSS = "gradwatch/loss"

Index = npt.NDArray[np.intp]


def quantiles(values: Values) -> Values:
    """Values at ``QUANTILES`` by rank, never between two; NaN ranks above infinity, so that it shows and hides no other."""
    ranked: Values = np.sort(values)[..., _ranks(values.shape[-1])]
    return ranked


@cache
def _ranks(size: int) -> Index:
    return np.array([max(math.ceil(share * size) - 1, 0) for share in QUANTILES.values()], np.intp)


def root_of_squares(values: Values) -> Values:
    """The Euclidean norm of tensors of which the norms are known."""
    total: Values = np.sqrt(np.square(values).sum(axis=-1, keepdims=True))
    return total


def at_least(values: Values) -> Values:
    """A sum of counts, in which an element that was noticed but not counted, NaN, is one."""
    total: Values = values.sum(axis=-1, keepdims=True)
    return np.where(np.isnan(values), 1, values).sum(axis=-1, keepdims=True) if np.isnan(total).any() else total


@dataclass(frozen=True)
class Summary:
    """One statistic, taken together over sites.

    Attributes:
        name: The scalars are called ``gradwatch/<name>/<part>``.
        statistic: One of ``statistics.STATISTICS`` or ``statistics.RATIOS``.
        tensor: Whose sites; ``None``: all.
        parts: What ``fold`` returns, by name.
        fold: (..., sites) → a number for each part, (..., parts).
        matrices: Only parameters of two dimensions or more, where there are any: biases and gains have scales of their own.
    """

    name: str
    statistic: str
    tensor: TensorName | None
    parts: tuple[str, ...]
    fold: Callable[[Values], Values]
    matrices: bool = False

    @cached_property
    def tags(self) -> tuple[str, ...]:
        """The names of the scalars, one for each part."""
        return tuple(f"gradwatch/{self.name}/{part}" for part in self.parts)


BANDS = tuple(QUANTILES)

SUMMARIES = (
    Summary("gradient_norm", "norm", "parameter_grad", ("total",), root_of_squares),
    Summary("gradient_rms", "rms", "parameter_grad", BANDS, quantiles, matrices=True),
    Summary("activation_rms", "rms", "activation", BANDS, quantiles),
    Summary("update_ratio", "update_ratio", "update", BANDS, quantiles, matrices=True),
    Summary("nonfinite", "nonfinite", None, ("total",), at_least),
)
"""All scalars but the loss."""


class Summarise:
    """Computes the scalars of records; keeps where the sites of each summary stand."""

    def __init__(self) -> None:
        self._places = PerSites(lambda sites: [_places(summary, sites) for summary in SUMMARIES])

    def __call__(self, record: Record) -> dict[str, float]:
        """The scalars by name; those that nothing was measured for in this record are absent."""
        return self.of_run([record])[0]

    def of_run(self, records: Sequence[Record]) -> list[dict[str, float]]:
        """The scalars of each of several records that have the same sites."""
        rows = np.stack([record.rows for record in records])
        seen = rows[:, :, COUNT] > 0
        if not (seen == seen[0]).all():
            return [self(record) for record in records]
        out: list[dict[str, float]] = [{} if record.loss is None else {LOSS: record.loss} for record in records]
        for summary, every_place in zip(SUMMARIES, self._places(records[0].sites), strict=True):
            places = every_place[:, seen[0][every_place].all(axis=0)]
            if places.shape[1]:
                for index, numbers in enumerate(_folded(summary, rows, places)):
                    out[index] |= zip(summary.tags, numbers, strict=False)  # no number, where nothing has a value
        return out


def _places(summary: Summary, sites: tuple[Site, ...]) -> Index:
    """The rows of a statistic, (1, sites), or of the two sides of a ratio, (2, sites)."""
    chosen = [index for index, site in enumerate(sites) if summary.tensor in (None, site.tensor)]
    if summary.matrices:
        chosen = [index for index in chosen if len(sites[index].shape) > 1] or chosen
    ratio = RATIOS.get(summary.statistic)
    if ratio is None:
        return np.array([chosen], np.intp)
    at = {site.layer: index for index, site in enumerate(sites) if site.tensor == ratio.under}
    pairs = [(over, at[sites[over].layer]) for over in chosen if sites[over].layer in at]
    places: Index = np.array(pairs, np.intp).reshape(-1, 2).T
    return places


def _folded(summary: Summary, rows: Array, places: Index) -> list[list[float]]:
    """The numbers of a summary for each record; none for one in which it has no value."""
    shape = len(rows), -1
    sides = [Moments(rows[:, side].reshape(-1, rows.shape[2])) for side in places]
    if len(sides) == 1:
        folded: list[list[float]] = summary.fold(STATISTICS[summary.statistic].compute(sides[0]).reshape(shape)).tolist()
        return folded
    over, under = (rms(side).reshape(shape) for side in sides)
    # A parameter that is zero throughout, as a fresh bias, has no size that a step could be a share of.
    ratios = [above[below != 0] / below[below != 0] for above, below in zip(over, under, strict=True)]
    return [summary.fold(ratio).tolist() if len(ratio) else [] for ratio in ratios]
