"""Where the time goes that watching adds: a stopwatch at the entrances of gradwatch's parts."""

from __future__ import annotations

import functools
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

import gradwatch
from benchmarks.networks import TASKS, mlp
from benchmarks.tools import ALONE, CYCLE, DEFAULT, EVERY_STEP, Tool
from benchmarks.training import Training
from gradwatch.capture.hooks import Hook
from gradwatch.detectors import DEFAULT as DETECTORS
from gradwatch.detectors import Ledger, raise_error
from gradwatch.history import History
from gradwatch.judging import Judging
from gradwatch.watch import Watch
from gradwatch.writers.tensorboard import EventFileWriter

ENTRANCES: dict[str, tuple[tuple[type, str], ...]] = {
    "hooks": ((Hook, "__call__"),),
    "optimizer boundary": ((Watch, "_before_step"), (Watch, "_after_step"), (Watch, "loss")),
    "record": ((Judging, "add"),),
    "detectors": ((History, "append"), (Ledger, "update")),
    "event file": ((EventFileWriter, "write_all"), (EventFileWriter, "report")),
}
"""Part → where it is entered. What one part calls of another counts for the other."""


class Stopwatch:
    """Tells how long each part took, by itself, in seconds of processor time of the thread that it runs in.

    Attributes:
        seconds: Part → seconds.
    """

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._running = threading.local()

    def enter(self, part: str) -> None:
        """Stops what ran in this thread, and starts a part."""
        stack: list[tuple[str, float]] = self._running.__dict__.setdefault("stack", [])
        now = time.thread_time()
        if stack:
            self.seconds[stack[-1][0]] += now - stack[-1][1]
        stack.append((part, now))

    def leave(self) -> None:
        """Stops the part that runs in this thread, and goes on with the one that had entered it."""
        stack: list[tuple[str, float]] = self._running.stack
        now = time.thread_time()
        part, since = stack.pop()
        self.seconds[part] += now - since
        if stack:
            stack[-1] = stack[-1][0], now

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that counts as a part."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.enter(part)
            try:
                return function(*args, **kwargs)
            finally:
                self.leave()

        return timed


@contextmanager
def stopwatch() -> Iterator[Stopwatch]:
    """Times the parts of every watch that is made inside."""
    watch = Stopwatch()
    kept = [(owner, name, getattr(owner, name)) for entrances in ENTRANCES.values() for owner, name in entrances]
    try:
        for part, entrances in ENTRANCES.items():
            for owner, name in entrances:
                setattr(owner, name, watch.around(part, getattr(owner, name)))
        yield watch
    finally:
        for owner, name, function in kept:
            setattr(owner, name, function)


def shares(networks: Sequence[str], seconds: float) -> str:
    """What each part takes of the time that watching adds, as a table in Markdown.

    Args:
        networks: Names in ``networks.TASKS``.
        seconds: For one network and cadence.
    """
    lines = [
        f"| network | record | processor time added, each step | {' | '.join(ENTRANCES)} | the training itself |",
        f"|{'---|' * (len(ENTRANCES) + 4)}",
    ]
    for name in networks:
        for tool, label in ((DEFAULT, f"`every={CYCLE}`"), (EVERY_STEP, "`every=1`")):
            added, parts = _measure(name, tool, seconds)
            rest = added - sum(parts.values())
            cells = (
                [f"{part / added:.0%}" for part in (*parts.values(), rest)] if added > 0 else ["in the noise"] * (len(parts) + 1)
            )
            lines.append(f"| {' | '.join([name, label, f'{added * 1e6:,.0f} µs', *cells])} |")
    return "\n".join(lines)


def _measure(name: str, tool: Tool, seconds: float) -> tuple[float, dict[str, float]]:
    """The seconds that a step takes longer with a tool, and those of them in each part."""
    alone = Training(TASKS[name], ALONE, threads=1)
    with stopwatch() as watch:
        watched = Training(TASKS[name], tool, threads=1)
        watched.block(CYCLE - 1)  # the first records describe the columns
        means: list[tuple[float, float]] = []
        parts: list[Counter[str]] = []
        begin = time.perf_counter()
        while not means or time.perf_counter() - begin < seconds:
            before = watch.seconds.copy()
            alone_steps = [alone.step().cpu for _ in range(CYCLE)]
            means.append((statistics.fmean(alone_steps), statistics.fmean(watched.step().cpu for _ in range(CYCLE))))
            parts.append(Counter({part: watch.seconds[part] - before[part] for part in ENTRANCES}))
        watched.close()
    alone.close()
    added = statistics.median(with_ for _, with_ in means) - statistics.median(without for without, _ in means)
    return added, {part: statistics.median(block[part] for block in parts) / CYCLE for part in ENTRANCES}


def verdicts(depths: Sequence[int], steps: int) -> str:
    """What judging a record takes in a loop of its own, as a table in Markdown.

    Args:
        depths: Hidden layers of 16 units of the networks whose records are judged.
        steps: Records; the second half counts, as every site has been seen often enough by then to have a usual level.
    """
    lines = ["| record | tensors | time | per 100 tensors |", "|---|---|---|---|"]
    for depth in depths:
        for kind, size, took in judge(depth, steps):
            lines.append(f"| {kind} | {size} | {took * 1e6:,.0f} µs | {took * 1e8 / size:,.0f} µs |")
    return "\n".join(lines)


def judge(depth: int, steps: int) -> list[tuple[str, int, float]]:
    """(kind of record, its tensors, median seconds of judging one), for full and for light records of a net of some depth."""
    torch.manual_seed(0)
    task = mlp(depth, 16, batch=16)
    optimizer = torch.optim.AdamW(task.model.parameters())
    with gradwatch.watch(task.model, optimizer, on_finding=lambda _finding: None) as watch:
        for _ in range(steps):
            watch.loss(task.step(optimizer))
    ledger, history = Ledger(DETECTORS, raise_error), History()
    times: dict[bool, list[float]] = {True: [], False: []}
    for record in watch.history:
        begun = time.perf_counter()
        history.append(record)
        ledger.update(history)
        if record.step >= steps // 2:
            times[record.full].append(time.perf_counter() - begun)
    tensors = {record.full: len(record.sites) for record in watch.history}
    return [(kind, tensors[full], statistics.median(times[full])) for kind, full in (("full", True), ("light", False))]
