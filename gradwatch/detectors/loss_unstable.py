"""The loss oscillates strongly, or runs away.

What it is mistaken for: the bump of the first steps; one odd batch; cyclic learning rates, whose loss swings and still falls;
losses of either sign that mean no progress.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradwatch.detectors.base import Example, Judgement, geometric
from gradwatch.history import History
from gradwatch.losses import FIRST, MEDIAN, Losses
from gradwatch.records import Finding
from gradwatch.trends import Trends, gradients

ADVICE = (
    "Lower the learning rate or the momentum (a step above 2/curvature overshoots), warm the learning rate up, clip the gradient's "
    "norm (Pascanu et al. 2013), and check for outliers, for weights of single samples, and for the sign of the loss."
)


@dataclass(frozen=True)
class LossUnstable(Judgement):
    """The loss is far above its start, in the median of the last ten steps.

    Attributes:
        above: Loss over the loss at the start. The largest single loss of a healthy run is 4.4 times its start (2.3 in 19 of 20),
            the median of ten stays below; unstable runs lie at 20 to 1e25.
        unlearnt: Loss of two whole stretches over the loss at the start, above which training has made it worse and keeps it so;
            one stretch may be the hump of a term that is learnt later.
        sure: Standard errors of the loss at the start by which it must be above it.
        erratic: Spread of that stretch over its level, that tells overshooting from a mere offset.
        runaway: Size of the loss over its size at the start, for a loss without a lower bound, or of the wrong sign.
        accelerates: How many times as far such a loss moves in a stretch as in the one before.
        grown: Gradient rms over its start, in the median, that goes with it. A bounded loss that falls from about zero (a cosine)
            accelerates too, but its gradients do not grow.
        confirm: 5 steps.
    """

    confirm: int = 5
    above: float = 3.0
    unlearnt: float = 1.15
    sure: float = 2.0
    erratic: float = 0.07
    runaway: float = 5.0
    accelerates: float = 3.0
    grown: float = 5.0

    WIDER: ClassVar = {"above": 1.5, "unlearnt": 1.25, "runaway": 2.0}
    EXAMPLES: ClassVar = {
        "healthy: one odd batch": Example({("a.weight", "parameter_grad"): [1.0] * 40}, losses=[1.0] * 20 + [9.0] + [0.9] * 19),
        "sick: worse than untrained": Example(
            {("a.weight", "parameter_grad"): [1.0] * 80}, losses=[1.0] * 3 + [1.5 + 0.5 * (i % 3) for i in range(77)]
        ),
        "sick: the wrong sign": Example(
            {("a.weight", "parameter_grad"): geometric(0.1, 1.05, 120)}, losses=[-2.0 * 1.06**i for i in range(120)]
        ),
        "sick: overshoots": Example(
            {("a.weight", "parameter_grad"): [1.0] * 40}, losses=[1.0] * 5 + [20.0 + 15 * (i % 2) for i in range(35)]
        ),
    }

    def ignores_calm(self, trends: Trends) -> bool:
        """It does where no loss is told, or all of them stay under the start."""
        losses = trends.losses
        return math.isnan(losses.first) or (min(self.above, self.unlearnt, self.runaway) >= 1 and losses.stays_below)

    def __call__(self, history: History) -> Iterator[Finding]:
        """Yields the loss, where it is far above its start in the newest record."""
        record, losses = history[-1], history.trends.losses
        if record.loss is None or not math.isfinite(record.loss) or losses.signed or not losses.first:
            return
        first, now = losses.first, losses.present
        if now > losses.times(self.above):
            message = f"the loss is {now:.4g} in the median of the last steps and was {first:.4g} at the start"
        elif self._is_unlearnt(losses):
            message = f"the loss swings around {now:.4g}, and was {first:.4g} at the start: training makes it worse"
        elif self._runs_away(history):
            message = f"the loss runs away, faster and faster: it is {now:.4g} and was {first:.4g} at the start"
        else:
            return
        evidence = {"loss": now, "loss_at_start": first}
        yield Finding("loss_unstable", "loss", record.step, record.step, "critical", evidence, message, ADVICE)

    def _is_unlearnt(self, losses: Losses) -> bool:
        if losses.present < losses.first or (now := losses.stretch()) is None or (before := losses.stretch_before()) is None:
            return False
        # The start is a median of five: what its own scatter explains is no change.
        least = max(losses.times(self.unlearnt), losses.first + self.sure * MEDIAN * now.spread / FIRST**0.5)
        worse = min(now.level, before.level) > least
        return worse and now.spread > self.erratic * abs(now.level)

    def _runs_away(self, history: History) -> bool:
        record, trends = history[-1], history.trends
        losses = trends.losses
        if abs(losses.present) < self.runaway * abs(losses.first):
            return False
        now, before = losses.stretch(), losses.stretch_before()
        if now is None or before is None:
            return False
        moved, moved_before = (part.losses[-1] - part.losses[0] for part in (now, before))
        if abs(moved) < self.accelerates * abs(moved_before) or moved * losses.present < 0:
            return False
        where = trends.where(record.sites)[gradients(record.sites)]
        with np.errstate(invalid="ignore"):  # a zero gradient has a level of -inf
            growth = trends.level[where] - trends.start[where]
        growth = growth[np.isfinite(growth)]
        return len(growth) > 0 and float(np.median(growth)) > np.log10(self.grown)
