"""The loss does not fall though it should.

What it is mistaken for: a loss at its noise floor (it fell before); slow but steady progress (the last stretch is below the one
before); a loss that does not mean progress, such as a policy's or a GAN's (it scatters around a level by more than a tenth of it).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from gradwatch.detectors.base import Example, Judgement
from gradwatch.history import History
from gradwatch.losses import FIRST, MEDIAN, PRESENT, STRETCH, WORSE, median
from gradwatch.records import Finding

ADVICE = (
    "Try to overfit one small batch: if the loss stays, the fault is in the program (labels that do not belong to the inputs, a "
    "detached or frozen layer, a wrong loss), else in the settings (learning rate, scale of the input, too small a model). See the "
    "other findings first: they name causes."
)


@dataclass(frozen=True)
class LossStagnant(Judgement):
    """The loss of the last stretch is where it was at the start, and no lower than in the stretch before.

    Attributes:
        start: Loss now over the loss at the start, above which nothing was learnt.
        progress: Fall from one stretch of 30 steps to the next, or from the first one, as a share, that counts as learning: 2 %
            make the 7 % of ``start`` in the 90 steps that are waited for.
        sure: Standard errors by which a loss must be below another to be called lower.
        definite: Variance of the last layer's output over the loss, above which the net says something and is not at a loss: a run
            that is resumed at its noise floor does not fall either, but its outputs differ from input to input: a quarter explained
            of what there was.
        scatter: Spread of the losses of a stretch over the loss at the start, above which they tell nothing.
        level: The same for a loss below zero, which has no zero that a fall could be a share of: the flat ones of the corpus
            scatter by less, and a likelihood of large counts by a tenth and more.
        confirm: 30 steps after the two stretches that it takes to compare: 90 in all.
    """

    confirm: int = 30
    start: float = 0.93
    progress: float = 0.02
    sure: float = 2.0
    definite: float = 0.3
    scatter: float = 0.5
    level: float = 0.05

    WIDER: ClassVar = {"confirm": 2}
    EXAMPLES: ClassVar = {
        "healthy: falls slowly": Example(
            {("a.weight", "parameter_grad"): [1.0] * 120}, losses=[1 - 0.0008 * i for i in range(120)]
        ),
        "healthy: at its noise floor": Example(
            {("a.weight", "parameter_grad"): [1.0] * 150}, losses=[0.5 + 0.5 * 0.9**i + 0.01 * (i % 3) for i in range(150)]
        ),
        "healthy: resumed where it had got to": Example(
            {("head", "activation"): [2.0] * 120}, losses=[0.4 + 0.02 * (i % 5) for i in range(120)], deviations={"head": 1.9}
        ),
        "sick: nothing is learnt": Example(
            {("a.weight", "parameter_grad"): [1.0] * 120}, losses=[2.3 + 0.02 * (i % 5) for i in range(120)]
        ),
    }

    def __call__(self, history: History) -> Iterator[Finding]:
        """Yields the loss, where the newest record shows it stagnant."""
        record, losses = history[-1], history.trends.losses
        if losses.learning or losses.signed or record.loss is None:
            return
        scale = abs(losses.first)
        if history.trends.output_variance > self.definite * scale:
            return
        now, before, outset = losses.stretch(), losses.stretch_before(), losses.outset
        if now is None or before is None or outset is None:
            return
        spread = now.spread
        fallen = losses.first - now.level > max((1 - self.start) * scale, self.sure * MEDIAN * spread / FIRST**0.5)
        # A fall since the outset that the noise may hide is given the benefit of the doubt: one standard error of a difference of
        # two medians. From one stretch to the next, which happens again and again, it takes the usual two.
        error = MEDIAN * spread * (2 / STRETCH) ** 0.5
        falling = losses.times(WORSE) > outset.level > now.level + max(self.progress * scale, error)  # from a spike all fall
        falling |= before.level - now.level > max(self.progress * scale, self.sure * error)
        if spread > (self.scatter if losses.first > 0 else self.level) * scale or fallen or falling:
            return
        # Where it has begun to fall, the newest losses show it long before a whole stretch of them does; but not such as recur.
        lowest = min(median(before.losses[start : start + PRESENT]) for start in range(0, STRETCH, PRESENT))
        newest = MEDIAN * spread * (2 / PRESENT) ** 0.5
        if lowest - losses.present > max(self.progress * scale, self.sure * newest):
            return
        yield Finding(
            "loss_stagnant",
            "loss",
            record.step,
            record.step,
            "warning",
            {"loss": now.level, "loss_at_start": losses.first},
            f"the loss is {now.level:.4g} and was {losses.first:.4g} at the start; it has not fallen over the last {STRETCH} steps",
            ADVICE,
        )
