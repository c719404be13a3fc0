"""How often a watch can afford a full record, by what its own work takes of the training's time."""

from __future__ import annotations

import math
from collections.abc import Callable
from time import perf_counter

LEARNING = 3
"""Full records at the narrowest cadence, before any is put off: most faults show at the start, where detectors want to see up to
three of them, and what the first one costs (columns are described, memory is taken) says little about the others."""

LOAN = 5
"""Full records that a suspicion may bring forward: detectors want to see up to three. Each is paid back by a later one that is
put off by as much, so that the budget holds over time."""

WIDEST = 1000
"""Steps between full records at most: where not even one in so many is affordable, the watch says so and takes it."""

CHANGE = 2.0
"""The factor by which the cadence has to change before that is said again."""

STEPS, LIGHT, FULL = 20, 50, 4
"""Steps, light records and full records over which the usual time is averaged: schedules change slowly, full records are rare."""

PAUSE = 3.0
"""A step that takes longer than this many usual ones was held up (by a validation, a checkpoint), and counts for no more."""

ROUNDING = 1e-6
"""What may be missing to a whole step, as a share: sums of times are rounded."""


class Meter:
    """Adds up the time of a watch's own work in the training's thread, in seconds.

    Args:
        clock: Seconds, from any origin; None: those of the process.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self.clock = clock or perf_counter
        self._depth = 0
        self._began = 0.0
        self._spent = 0.0

    @property
    def spent(self) -> float:
        """All of it so far, with the work in progress."""
        return self._spent + (self.clock() - self._began if self._depth else 0.0)

    def begin(self) -> None:
        """Work begins; inside of other work it is a part of that."""
        if not self._depth:
            self._began = self.clock()
        self._depth += 1

    def end(self) -> None:
        """Work ends."""
        self._depth -= 1
        if not self._depth:
            self._spent += self.clock() - self._began


class Usual:
    """A running mean.

    Args:
        length: Values that it mainly tells of.
        odd: A value over this many times the mean counts as that; infinite: none does.
    """

    def __init__(self, length: int, odd: float = math.inf) -> None:
        self.value, self.count = 0.0, 0
        self._length, self._odd = length, odd

    def take(self, value: float) -> None:
        """Takes the newest value."""
        self.count += 1
        if self.value > 0:
            value = min(value, self._odd * self.value)
        self.value += (value - self.value) / min(self.count, self._length)


class Budget:
    """Spreads full records so that the watch takes no more than a share of the time of a step.

    All that it knows it is told at the end of each step; what a step costs is what passed on the meter since the end of the one
    before. A full record costs in its own step, where hooks measure, and in the next one, where it is judged and written.

    Args:
        share: The watch's own time over that of the step without it, dimensionless.
        every: The narrowest cadence, in steps.
        optimizers: How many of them get full records of their own.
        meter: Of the watch's own work; its clock also tells the time of steps.
        alone: Whether this process trains by itself, as several have to sample the same steps and cannot go by the clock of one.

    Attributes:
        meter: What it was given, or its own.
        every: Steps from one full record to the next, as it is affordable now.
        suspicious: Whether detail is wanted sooner than that.
        followed: Whether it is followed: not where several processes train together.
    """

    def __init__(
        self, share: float, every: int, *, alone: Callable[[], bool], optimizers: int = 1, meter: Meter | None = None
    ) -> None:
        self.meter = meter or Meter()
        self._share, self._narrowest, self._optimizers, self._alone = share, every, optimizers, alone
        self.every, self.suspicious, self.followed = every, False, self._alone()
        self._training, self._light, self._full = Usual(STEPS, PAUSE), Usual(LIGHT), Usual(FULL)
        self._last: tuple[float, float] | None = None  # what clock and meter showed at the end of the step before
        self._half: float | None = None  # what the full record of the step before has cost so far
        self._records = 0
        self._owed = 0  # steps by which full records came before they were due
        self._chosen = False
        self._said: int | None = None

    def due(self, since: int) -> bool:
        """Whether a full record is due, so many steps after the last one."""
        if since >= self.every + min(self._owed, self.every):
            return True
        early = self.suspicious and since >= self._narrowest
        return early and self._owed + self.every - since <= LOAN * self.every

    def ended(self, *, full: bool, since: int | None) -> None:
        """Takes that a step has ended.

        Args:
            full: Whether it got a full record.
            since: Steps from the last full record of its kind to this one; None where there was none, or where it is no full one.
        """
        now, spent = self.meter.clock(), self.meter.spent
        if self._last is None:  # nobody knows when the first step began, nor is it like the others
            self._half = math.nan if full else None
        else:
            own = spent - self._last[1]
            self._training.take(max(now - self._last[0] - own, 0.0))
            self._account(own, full=full)
        self._last = now, spent
        if full:
            self._records += 1
            if since is not None and self._records > LEARNING * self._optimizers:
                self._owed = min(max(0, self._owed + self.every - since), LOAN * self.every)

    def _account(self, own: float, *, full: bool) -> None:
        if self._half is not None:  # the step before was a full one
            extra = self._half if full else self._half + own - 2 * self._light.value
            if not math.isnan(extra):
                self._full.take(max(extra, 0.0))
        elif not full:
            self._light.take(own)
        if self._half is not None or self._training.count % STEPS == 0:
            self._choose()
        self._half = own if full else None

    def _choose(self) -> None:
        if self._records < LEARNING * self._optimizers or not self._full.count:
            return
        self._chosen, self.followed = True, self.followed and self._alone()
        if not self.followed:
            self.every = self._narrowest
            return
        left = self._share * self._training.value - self._light.value  # of each step, for full records
        cost = self._full.value * self._optimizers
        widest = max(WIDEST, self._narrowest)
        needed = math.ceil(cost / left * (1 - ROUNDING)) if left * widest > cost else widest
        self.every = min(max(needed, self._narrowest), widest)

    def news(self) -> str | None:
        """What was chosen, when it is chosen first and when it has changed much; None else."""
        if not self._chosen:
            return None
        known = self._said is not None and self._said / CHANGE < self.every < self._said * CHANGE
        if known or (self._said is not None and not self.followed):
            return None
        self._said = self.every
        return self.tell()

    def tell(self) -> str:
        """The cadence and its reason, as a sentence."""
        budget = f"budget={self._share:g}: a full record every {self.every} steps"
        if not self.followed:
            return (
                f"{budget}: several processes train together, and have to sample the same steps, so that the budget is not followed"
            )
        if not self._chosen:
            return f"{budget}, until it is known what one costs"
        full, light, training = self._full.value, self._light.value, self._training.value
        costs = f"a full one costs {_time(full)} more than a light one ({_time(light)}), of steps of {_time(training)}"
        over = ", over the budget: exclude layers, or raise it" if self.missed else ""
        return f"{budget}; {costs}: about {self._taken:.2%} of their time{over}"

    @property
    def missed(self) -> bool:
        """Whether the watch takes more than its budget, whatever it does, or does not follow it."""
        return not self.followed or (self._chosen and self.every >= WIDEST and self._taken > self._share * 1.05)

    @property
    def _taken(self) -> float:
        """The share of the training's time that the watch takes at the chosen cadence."""
        training = self._training.value
        return (self._light.value + self._full.value * self._optimizers / self.every) / training if training > 0 else math.inf


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
