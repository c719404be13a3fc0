"""What the loss has done so far: where it started, where it is, and whether the network learns."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

FIRST = 5
"""Losses whose median is the loss at the start: a single first batch may be lucky."""

WORSE = 1.5
"""A loss whose first median is this many times its first value got worse at once: then the first value is the start."""

BLOWN_UP = 3.0
"""So is one of which a single of the first values is this many times the first: 19 of 20 healthy runs never reach 2.3 times."""

PRESENT = 10
"""Losses whose median is the present loss, so that one odd batch does not decide."""

STRETCH = 30
"""Losses of one stretch: two of them in a row tell a falling loss from a flat one."""

LEARNING = 0.8
"""A network learns once its present loss is under this share of its first: in 56 healthy runs of the labelled corpus all but those
at their noise floor got there within 60 steps, and no run with a starved, dead or saturated network did."""

NORMAL = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""


MEDIAN = 1.2533
"""Standard error of a median over that of a mean, for a normal distribution: √(π/2)."""


class Stretch:
    """Losses in a row.

    Attributes:
        losses: In order, of length ``STRETCH``.
        level: Their median.
        spread: Their standard deviation, as the median absolute deviation tells it.
    """

    def __init__(self, losses: Sequence[float]) -> None:
        self.losses = losses
        self.level = median(losses)
        self.spread = NORMAL * median([abs(loss - self.level) for loss in losses])


class Losses:
    """Running figures of the loss; losses that are not finite are left out.

    Attributes:
        first: The loss at the start: a median, unless the loss got worse at once; NaN where none was ever told.
        present: The median of the last ``PRESENT``; NaN likewise.
        last: The newest; NaN likewise.
        learning: Whether ``present`` has fallen to ``LEARNING`` of ``first``; None where no loss is known, or where a loss of
            either sign has not fallen, which need not mean anything.
        outset: The first stretch of the run; None until there is one.
        signed: Whether there were losses on both sides of zero, so that none is a measure for another: a policy's, a critic's.
    """

    def __init__(self) -> None:
        self.first = self.present = self.last = math.nan
        self.learning: bool | None = None
        self.signed = False
        self._lowest, self._highest = math.inf, -math.inf
        self._firsts: list[float] = []
        self._newest: deque[float] = deque(maxlen=2 * STRETCH)
        self.outset: Stretch | None = None

    def take(self, loss: float | None) -> None:
        """Takes the loss of the newest record."""
        if loss is None or not math.isfinite(loss):
            return
        if len(self._firsts) < FIRST:
            self._firsts.append(loss)
            typical = median(self._firsts)
            at_once = typical > self.times(WORSE, self._firsts[0]) or max(self._firsts) > self.times(BLOWN_UP, self._firsts[0])
            self.first = self._firsts[0] if at_once else typical
        self._newest.append(loss)
        if self.outset is None:
            self.outset = self.stretch()
        self.last = loss
        self.present = median(list(self._newest)[-PRESENT:])
        self._lowest, self._highest = min(self._lowest, loss), max(self._highest, loss)
        self.signed = self._lowest < 0 < self._highest
        self.learning = self.present < self.times(LEARNING) or (None if self.signed else False)

    @property
    def settled(self) -> bool:
        """Whether the loss at the start is known for good."""
        return len(self._firsts) == FIRST

    @property
    def always_zero(self) -> bool:
        """Whether there were losses, and none was anything but zero."""
        return self._lowest == self._highest == 0

    @property
    def stays_below(self) -> bool:
        """Whether the present loss is under a positive one at the start, and stays there as long as every new loss is."""
        newest = list(self._newest)[-PRESENT:]
        # Of the ten whose median is taken, four may lie anywhere; each that leaves makes room for one below.
        return self.first > 0 and len(newest) == PRESENT and sum(loss >= self.first for loss in newest) < PRESENT / 2

    def times(self, factor: float, first: float | None = None) -> float:
        """The loss at the start, moved by as many times its size as makes it ``factor`` times as large: losses may be negative."""
        start = self.first if first is None else first
        return start + (factor - 1) * abs(start)

    def stretch(self) -> Stretch | None:
        """The last stretch; None until there is one."""
        return Stretch(list(self._newest)[-STRETCH:]) if len(self._newest) >= STRETCH else None

    def stretch_before(self) -> Stretch | None:
        """The stretch before the last one; None until there is one."""
        return Stretch(list(self._newest)[:STRETCH]) if len(self._newest) == 2 * STRETCH else None


def median(values: Sequence[float]) -> float:
    """The middle one, or the mean of the middle two; quicker than NumPy's for the few that there are."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
