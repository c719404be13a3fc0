"""Light steps whose records may wait to be made, until a dozen of them are made in one go.

In the middle of a training step it is not the arithmetic of a record that costs, but that everything which makes it, judges it and
writes it has to come into the processor's caches first, where the step has taken their place. Made one after the other, a dozen
records cost little more than the first.

Waiting delays no finding. A step waits only where it is calm, so that the detectors that believe what they see at once cannot see
anything in it; and no more steps wait than any other detector needs to see in a row. What is not calm is judged at once, behind
those that waited.
"""

from __future__ import annotations

import operator
import time
from typing import NamedTuple

import numpy as np

from gradwatch.capture.sealed import Light, Sealed
from gradwatch.detectors import Ledger
from gradwatch.history import History
from gradwatch.trends import MOST_CALM, Sites

SECONDS = 1.0
"""How long the first of them waits at most, as long as steps are taken: dashboards show records as they come."""


class _Limits(NamedTuple):
    """What a step has to keep within to wait: see ``Trends.calm`` and ``Ledger.patience``."""

    sites: Sites
    low: list[float]
    high: list[float]
    loss: float | None
    most: int
    until: float

    def hold(self, light: Light, waiting: int, behind: int) -> bool:
        """Whether a step may wait, where others do already, and some records are behind."""
        if waiting >= self.most or waiting + behind >= MOST_CALM or light.sites is not self.sites or time.monotonic() > self.until:
            return False
        if (light.loss is None) != (self.loss is None):
            return False
        if light.loss is not None and self.loss is not None and not light.loss < self.loss:
            return False
        return all(map(operator.lt, self.low, light.norms)) and all(map(operator.lt, light.norms, self.high))


class Waiting:
    """The steps that wait.

    Args:
        history: That their records will go into.
        ledger: Who will judge them.
        hurried: Whether it matters already when a detector is half convinced.
    """

    def __init__(self, history: History, ledger: Ledger, *, hurried: bool) -> None:
        self._history, self._ledger, self._hurried = history, ledger, hurried
        self._steps: list[Sealed] = []
        self._limits: _Limits | None = None

    def add(self, step: Sealed, *, patient: bool, behind: int) -> bool:
        """Takes the newest step.

        Args:
            step: After all that wait.
            patient: Whether everybody else who gets records can wait for them.
            behind: How many records they wait for already.

        Returns:
            Whether it may wait, and the others with it.
        """
        light = step.light  # where that fails, nothing of it is left here for others to fall over
        self._steps.append(step)
        if light is None or not patient:
            return False
        if self._limits is None:
            self._limits = self._measure(light)
        return self._limits is not None and self._limits.hold(light, len(self._steps) - 1, behind)

    def take(self) -> list[Sealed]:
        """All steps that wait, which wait no longer."""
        steps, self._steps = self._steps, []
        self._limits = None  # what is usual changes with every record
        return steps

    def _measure(self, light: Light) -> _Limits | None:
        trends = self._history.trends
        calm = trends.calm(light.sites)
        if calm is None or (patience := self._ledger.patience(trends, half=self._hurried)) < 1:
            return None
        root = np.sqrt(light.counts)
        low, high = (calm.low * root).tolist(), (calm.high * root).tolist()
        return _Limits(light.sites, low, high, calm.loss, min(patience, MOST_CALM), time.monotonic() + SECONDS)
