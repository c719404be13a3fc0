"""What the newest record means against the run so far: one vector per quantity, over every site ever seen.

Detectors read these vectors and never rescan the history, so that the ten-thousandth record costs what the tenth did.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gradwatch import moments
from gradwatch.records import Record, Site

USUAL = 20
"""Records over which a site's usual level is averaged, in log units: longer than noise, shorter than a phase of training."""

RECENT = 5
"""Records over which a site's recent level is averaged, in log units: a rise shows here first."""

LOSSES = 10
"""Losses whose median is the present loss, so that one odd batch does not decide."""

FIRST = 5
"""Losses whose median is the loss at the start: a single first batch may be lucky."""

WORSE = 1.5
"""A loss whose first median is this many times its first value got worse at once: then the first value is the start."""

STRETCH = 30
"""Losses of one stretch: two of them in a row tell a falling loss from a flat one."""

LEARNING = 0.8
"""A network learns once its present loss is under this share of its first: in 56 healthy runs of the labelled corpus all but those
at their noise floor got there within 60 steps, and no run with a starved, dead or saturated network did."""

Values = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


def is_gradient(sites: Sequence[Site]) -> Flags:
    """Which of the sites are gradients of parameters, (sites,)."""
    return np.array([site.tensor == "parameter_grad" for site in sites], bool)


class Trends:
    """Running figures of every site, updated record by record.

    Attributes:
        sites: Every site ever seen; all vectors below are in this order, shape (sites,).
        level: log10 of the rms in the newest record; NaN where a site was not in it, -inf for exactly zero and for no gradient.
        usual: log10 of the usual rms of the records before it, non-zero ones; NaN before there is one.
        recent: The same over the last few records.
        start: log10 of the rms in the first record that held the site; -inf for exactly zero.
        seen: Records that held the site.
        silent: Records in a row, up to the newest, in which the site was exactly zero or got no gradient.
        quiet: The longest such row that ended.
        idle: Backward passes since the start without a single optimizer step; 0 once there was one.
        broken: Whether a NaN or an infinity has reached the loss, a parameter or its gradient in the newest record. One that
            reaches neither, such as the -inf of an attention mask, harms nothing.
    """

    def __init__(self) -> None:
        self.sites: list[Site] = []
        self.level, self.usual, self.recent, self.start = (np.empty(0) for _ in range(4))
        self.seen, self.silent, self.quiet = (np.empty(0, np.int64) for _ in range(3))
        self.broken = False
        self.idle = 0
        self._stepped = False
        self._first_losses: list[float] = []
        self._best_loss = math.inf
        self._now_usual, self._now_recent = np.empty(0), np.empty(0)
        self._losses: deque[float] = deque(maxlen=2 * STRETCH)
        self._index: dict[Site, int] = {}
        self._known: dict[int, tuple[tuple[Site, ...], Counts]] = {}

    def update(self, record: Record) -> None:
        """Takes the newest record."""
        self._take_loss(record.loss)
        self._stepped |= not record.skipped
        self.idle = 0 if self._stepped else self.idle + max(1, record.backwards)
        where = self.where(record.sites)
        rms, nonfinite = record.rows[:, moments.RMS].astype(np.float64), record.rows[:, moments.NONFINITE]
        seen = record.rows[:, moments.COUNT] > 0
        bad = seen & (~np.isfinite(rms) | (nonfinite > 0))
        told = record.loss is not None and not math.isfinite(record.loss)
        self.broken = told or bool((bad & self._decisive(record.sites, seen)).any())
        with np.errstate(divide="ignore"):
            level = np.log10(np.where(seen, rms, 0))
        # A site of another kind than a gradient that is missing was not observed; a missing gradient is a zero one.
        expected = seen | is_gradient(record.sites)
        self.usual[:], self.recent[:] = self._now_usual, self._now_recent
        self.level.fill(np.nan)
        self.level[where] = np.where(expected, level, np.nan)
        zero = expected & (level == -np.inf)
        ended = np.where(zero, 0, self.silent[where])
        self.quiet[where] = np.maximum(self.quiet[where], ended)
        self.silent[where] = np.where(expected, np.where(zero, self.silent[where] + 1, 0), self.silent[where])
        self.start[where] = np.where(self.seen[where] == 0, self.level[where], self.start[where])
        self.seen[where] += expected
        finite = np.isfinite(level) & ~bad
        self._average(self._now_usual, where[finite], level[finite], USUAL)
        self._average(self._now_recent, where[finite], level[finite], RECENT)

    def _average(self, average: Values, where: Counts, level: Values, length: int) -> None:
        weight = 1 / np.minimum(self.seen[where], length)
        before = average[where]
        average[where] = np.where(np.isnan(before), level, before + weight * (level - before))

    def where(self, sites: tuple[Site, ...]) -> Counts:
        """The position of each of a record's sites in the vectors, (len(sites),)."""
        known = self._known.get(id(sites))
        if known is not None and known[0] is sites:
            return known[1]
        fresh = [site for site in dict.fromkeys(sites) if site not in self._index]
        if fresh:
            for site in fresh:
                self._index[site] = len(self.sites)
                self.sites.append(site)
            for name in ("level", "usual", "recent", "start", "_now_usual", "_now_recent"):
                setattr(self, name, np.concatenate([getattr(self, name), np.full(len(fresh), np.nan)]))
            for name in ("seen", "silent", "quiet"):
                setattr(self, name, np.concatenate([getattr(self, name), np.zeros(len(fresh), np.int64)]))
        where = np.array([self._index[site] for site in sites], np.int64)
        if len(self._known) >= 16:  # a run has two tuples of sites at a time, few more as it grows
            self._known.clear()
        self._known[id(sites)] = sites, where
        return where

    @staticmethod
    def _decisive(sites: tuple[Site, ...], seen: Flags) -> Flags:
        reached = np.array([site.tensor in ("parameter", "parameter_grad", "update") for site in sites], bool)
        return reached if (reached & seen).any() else np.ones(len(sites), bool)

    def _take_loss(self, loss: float | None) -> None:
        if loss is None or not math.isfinite(loss):
            return
        if len(self._first_losses) < FIRST:
            self._first_losses.append(loss)
        self._losses.append(loss)
        if len(self._losses) >= LOSSES:
            self._best_loss = min(self._best_loss, self.loss)

    @property
    def first_loss(self) -> float:
        """The loss at the start: a median, unless the loss got worse at once; NaN where none was ever told."""
        if not self._first_losses:
            return math.nan
        first, median = self._first_losses[0], float(np.median(self._first_losses))
        return first if median > first + (WORSE - 1) * abs(first) else median

    @property
    def loss(self) -> float:
        """The present loss, a median; NaN where none was ever told."""
        return float(np.median(list(self._losses)[-LOSSES:])) if self._losses else math.nan

    @property
    def last_loss(self) -> float:
        """The newest finite loss; NaN where none was ever told."""
        return self._losses[-1] if self._losses else math.nan

    @property
    def best_loss(self) -> float:
        """The lowest that the present loss has ever been; infinite before there is one."""
        return self._best_loss

    @property
    def last_stretch(self) -> Values | None:
        """The losses of the last stretch; None until there is one."""
        return np.array(list(self._losses)[-STRETCH:]) if len(self._losses) >= STRETCH else None

    @property
    def stretches(self) -> tuple[Values, Values] | None:
        """The losses of the last stretch and of the one before it; None until there are two."""
        if len(self._losses) < 2 * STRETCH:
            return None
        losses = np.array(self._losses)
        return losses[STRETCH:], losses[:STRETCH]

    @property
    def learning(self) -> bool | None:
        """Whether the loss has fallen by a fifth of its first value or more; None where no loss is known."""
        if not self._losses:
            return None
        return self.loss < self.first_loss - (1 - LEARNING) * abs(self.first_loss)
