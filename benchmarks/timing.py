"""Tools take turns at the same training, a block of steps each, until the time is up.

Of every place in the cycle of ten steps the median over all blocks but the first counts, and their mean is the time of a step: so
neither another program on the machine nor a rare event decides, and the seldom full record still weighs what it weighs.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from benchmarks.networks import Make
from benchmarks.tools import CYCLE
from benchmarks.training import Footprint, Step, ToolFailed, Worker

Clock = Literal["wall", "cpu"]

LONGEST = 2.0
"""Seconds of a block of a tool that does the same at every step: one that is slow needs no more."""


@dataclass
class Times:
    """How long the steps of one training took.

    Attributes:
        steps: All that count.
        spent: Seconds that they took, with those that do not count.
        left: What the training left behind; None before its end.
        reason: Why there is nothing to tell; empty where there is.
    """

    steps: list[Step] = field(default_factory=list)
    spent: float = 0.0
    left: Footprint | None = None
    reason: str = ""

    def places(self, clock: Clock = "wall") -> list[float]:
        """The median seconds of a step at each place in the cycle that was seen; the first time there takes what is done once."""
        by_place: dict[int, list[float]] = {}
        for step in self.steps:
            by_place.setdefault(step.place, []).append(getattr(step, clock))
        return [statistics.median(times[1:] or times) for _, times in sorted(by_place.items())]

    def usual(self, clock: Clock = "wall") -> float:
        """The seconds of a step."""
        return statistics.fmean(self.places(clock))

    def halves(self) -> tuple[Times, Times]:
        """What was timed first, and what was timed later; the same twice where there is too little to be divided."""
        middle = len(self.steps) // 2
        parts = Times(self.steps[:middle]), Times(self.steps[middle:])
        return parts if all(len(part.steps) >= 2 * CYCLE for part in parts) else (self, self)

    def light(self, clock: Clock = "wall") -> float:
        """The seconds of a step in the middle of a cycle, far from a full record."""
        return statistics.median(self.places(clock))


def take_turns(
    workers: Sequence[Worker], make: Make, *, threads: int, seconds: float, least: int = 2, weights: Sequence[float] | None = None
) -> list[Times]:
    """Times the steps of one task with several tools.

    Args:
        workers: A process for each tool.
        make: Makes the task.
        threads: Threads of torch in each.
        seconds: How long to go on; every tool gets its ``least`` blocks all the same.
        least: Blocks of each tool at least.
        weights: The shares of the time that the tools get; None: all the same.

    Returns:
        What was timed for each; with a reason instead for one that failed.
    """
    times = [Times() for _ in workers]
    shares = weights or [1.0] * len(workers)
    blocks = [0] * len(workers)
    for worker, mine in zip(workers, times, strict=True):
        try:
            worker.open(make, threads)
        except ToolFailed as error:
            mine.reason = str(error)
    chance, begin = random.Random(0), time.perf_counter()  # so that no tool always follows the same other one
    while alive := [index for index, mine in enumerate(times) if not mine.reason]:
        waiting = [index for index in alive if blocks[index] < least]
        if not waiting and time.perf_counter() - begin >= seconds:
            break
        chosen = min(waiting or alive, key=lambda index: times[index].spent / shares[index] * chance.uniform(0.9, 1.1))
        _train(workers[chosen], times[chosen])
        blocks[chosen] += 1
    for worker, mine in zip(workers, times, strict=True):
        if not mine.reason:
            try:
                mine.left = worker.close()
            except ToolFailed as error:
                mine.reason = str(error)
    return times


def _train(worker: Worker, times: Times) -> None:
    begin = time.perf_counter()
    try:
        # What a tool does once in a cycle is seen in whole cycles only.
        times.steps += worker.block(CYCLE, LONGEST if worker.tool.every == 1 else float("inf"))
    except ToolFailed as error:
        times.reason = str(error)
    times.spent += time.perf_counter() - begin
