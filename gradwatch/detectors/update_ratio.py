"""Steps of the wrong size: the update is a large part of the weight, or none worth the name.

What it is mistaken for: warm-up and the first steps of zero-initialised weights, whose ratio is large or infinite; a net that
learns, whatever its ratios are; fine-tuning with a small learning rate (the loss moves); a run that has come to its end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradwatch import names
from gradwatch.detectors.base import Example, FullRecords
from gradwatch.history import History
from gradwatch.records import Finding
from gradwatch.trends import Counts, Sites, Values, matrix_updates, per_sites

LARGE = (
    "Lower the learning rate (of this layer's parameter group, if it has its own): about 1e-3 per step is usual (Karpathy's rule "
    "of thumb), and at a tenth of the weight each step throws away what the steps before it learnt. Warm-up and clipping help too."
)
SMALL = (
    "Raise the learning rate: at this pace a weight needs more steps than there are to change by its own size. About 1e-3 of the "
    "weight per step is usual (Karpathy's rule of thumb). Check schedules and parameter groups for a factor too many."
)


@dataclass(frozen=True)
class UpdateRatio(FullRecords):
    """‖Δw‖/‖w‖ of a matrix is far too large, or that of every matrix far too small, while the net does not learn.

    Attributes:
        large: Ratio of one matrix. Healthy runs stay under 0.062, median 0.007; steps that are too large take 0.03 to 5.
        grown: A matrix that has this many times its first size was replaced by steps that look small beside it only by now. In no
            healthy run of the corpus whose loss has not fallen does a matrix grow to more than 2.6 times in 10 steps, or 5 in 30;
            steps that are too large make it 10 and more.
        fallen: Loss over the loss at the start, above which it counts as not fallen there.
        faint: rms at the start, in units of 1/√inputs, under which a weight has to grow: PyTorch's default has 0.58, and a head
            that starts near zero is an ordinary recipe.
        replace: Ratio of one matrix in a single step that replaced it, after which the loss is above its start.
        small: Ratio of every matrix. Healthy runs have one above 1.7e-3 (19 of 20), sick ones none above 1e-9; learning rates that
            are merely timid lie between.
        worse: Loss over the loss at the start, above which small updates are what is left after a ruin, and no cause. So they are
            where some gradient is exactly zero.
        skip: Steps at the start that are not judged: zero-initialised weights, Adam's first steps.
        confirm: 3 full records.
        span: 20 steps: the distance of as many full records at the default cadence.
    """

    confirm: int = 3
    span: int = 20
    large: float = 0.1
    replace: float = 1.0
    grown: float = 5.0
    fallen: float = 0.95
    faint: float = 0.2
    small: float = 1e-5
    worse: float = 1.15
    skip: int = 10

    WIDER: ClassVar = {"large": 2.0, "replace": 2.0, "small": 0.5}
    EXAMPLES: ClassVar = {
        "healthy: learns with large steps": Example(
            {("a.weight", "parameter"): [1.0] * 48, ("a.weight", "update"): [0.3] * 48}, losses=[0.5**step for step in range(48)]
        ),
        "sick: every step replaces the weights": Example(
            {("a.weight", "parameter"): [1.0] * 48, ("a.weight", "update"): [0.5] * 48}, losses=[2.3] * 48
        ),
        "sick: the first steps have replaced the weights": Example(
            {("a.weight", "parameter"): [0.1, *[2.0] * 47], ("a.weight", "update"): [2.0, *[0.01] * 47]}, losses=[2.3] * 48
        ),
        "sick: a learning rate of 1e-9": Example(
            {("a.weight", "parameter"): [1.0] * 48, ("a.weight", "update"): [1e-9] * 48}, losses=[2.3] * 48
        ),
    }

    def __call__(self, history: History) -> Iterator[Finding]:
        """Yields the matrix with the largest ratio, where it or all of them are out of bounds."""
        record, trends = history[-1], history.trends
        if trends.losses.learning is not False:
            return
        pairs = _pairs(record.sites)
        if not len(pairs):
            return
        updates, weights = trends.where(record.sites)[pairs.T]
        settled = (trends.seen[updates] > 1) & (record.step - history.first_step >= self.skip)
        with np.errstate(invalid="ignore"):  # a weight of exactly zero has no ratio
            ratio = trends.level[updates] - trends.level[weights]
            growth = trends.level[weights] - trends.start[weights]
        # A weight that started at zero is all update for a while.
        ratio[(trends.start[weights] == -np.inf) & (ratio > np.log10(self.large))] = np.nan
        replaced = np.isfinite(ratio) & (ratio > np.log10(self.replace)) & (trends.losses.present > trends.losses.first)
        ratio[~settled & ~replaced] = np.nan
        if not np.isfinite(ratio).any():
            return
        worst = int(np.argmax(np.where(np.isfinite(ratio), ratio, -np.inf)))
        large = float(10 ** ratio[worst]) > self.large
        meant = trends.start[weights] > np.log10(self.faint) - _inputs(record.sites) / 2
        grown = settled & meant & (growth > np.log10(self.grown))
        replaced_early = not large and grown.any() and trends.losses.present > trends.losses.times(self.fallen)
        if replaced_early:
            worst = int(np.argmax(np.where(grown, growth, -np.inf)))
        value = float(10 ** ratio[worst])
        layer = names.owner(record.sites[pairs[worst][0]].layer)
        if replaced_early:
            times = 10 ** growth[worst]
            message = f"steps have made the weight of {layer} {times:.1f} times as large as it was, and the loss does not fall"
        elif large:
            message = f"each step moves {layer} by {value:.0%} of its size, and the loss does not fall"
        elif (
            value < self.small and settled.all() and not trends.resting and trends.losses.present < trends.losses.times(self.worse)
        ):
            message = f"no weight matrix moves by more than {value:.1e} of its size a step, and the loss does not fall"
        else:
            return
        yield Finding(
            "update_ratio",
            layer,
            record.step,
            record.step,
            "warning",
            {"update_ratio": value},
            message,
            LARGE if large or replaced_early else SMALL,
        )


@per_sites
def _pairs(sites: Sites) -> Counts:
    """(update, weight) of each matrix that is no table, of which a step moves few rows, by position: (matrices, 2)."""
    pairs = matrix_updates(sites)
    return pairs[["Embedding" not in sites[index].type for index in pairs[:, 0]]]


@per_sites
def _inputs(sites: Sites) -> Values:
    """log10 of the inputs of a unit of each matrix, (matrices,)."""
    return np.log10([max(1, math.prod(sites[index].shape[1:])) for index in _pairs(sites)[:, 1]])
