"""A record in a few numbers: totals and quantiles over its layers, the same number of them at any depth.

They are what ordinary dashboards and loggers show; everything else about a layer is in the event file's tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gradwatch.codec import PerSites
from gradwatch.moments import COUNT, Array
from gradwatch.records import Record, Site, TensorName
from gradwatch.statistics import RATIOS, STATISTICS, Moments, Values, rms

QUANTILES = {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "max": 1.0}

LOSS = "gradwatch/loss"

Index = npt.NDArray[np.intp]


def quantiles(values: Values) -> tuple[float, ...]:
    """Values at ``QUANTILES`` by rank, never between two; NaN ranks above infinity, so that it shows and hides no other."""
    ranked = np.sort(values)
    return tuple(float(ranked[max(math.ceil(share * len(ranked)) - 1, 0)]) for share in QUANTILES.values())


def root_of_squares(values: Values) -> tuple[float, ...]:
    """The Euclidean norm of tensors of which the norms are known."""
    return (float(np.sqrt(np.square(values).sum())),)


def at_least(values: Values) -> tuple[float, ...]:
    """A sum of counts, in which an element that was noticed but not counted, NaN, is one."""
    return (float(np.where(np.isnan(values), 1, values).sum()),)


@dataclass(frozen=True)
class Summary:
    """One statistic, taken together over sites.

    Attributes:
        name: The scalars are called ``gradwatch/<name>/<part>``.
        statistic: One of ``statistics.STATISTICS`` or ``statistics.RATIOS``.
        tensor: Whose sites; ``None``: all.
        parts: What ``fold`` returns, by name.
        fold: (sites,) → a number for each part.
        matrices: Only parameters of two dimensions or more, where there are any: biases and gains have scales of their own.
    """

    name: str
    statistic: str
    tensor: TensorName | None
    parts: tuple[str, ...]
    fold: Callable[[Values], tuple[float, ...]]
    matrices: bool = False

    @property
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
        out = {} if record.loss is None else {LOSS: record.loss}
        for summary, places in zip(SUMMARIES, self._places(record.sites), strict=True):
            values = _values(summary, record.rows, places)
            if len(values):
                out |= zip(summary.tags, summary.fold(values), strict=True)
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


def _values(summary: Summary, rows: Array, places: Index) -> Values:
    seen = (rows[places, COUNT] > 0).all(axis=0)
    sides = [Moments(rows[side[seen]]) for side in places]
    if len(sides) == 1:
        return STATISTICS[summary.statistic].compute(sides[0])
    over, under = map(rms, sides)
    # A parameter that is zero throughout, as a fresh bias, has no size that a step could be a share of.
    return np.asarray(over[under != 0] / under[under != 0])
