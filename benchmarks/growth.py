"""How the cost of watching grows: with modules, with the elements of parameters, and with the steps of a run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

from benchmarks.networks import Make, deep, mlp
from benchmarks.timing import Times, take_turns
from benchmarks.tools import ALONE, CYCLE, DEFAULT, EVERY_STEP
from benchmarks.training import Apart, Here, Start, Worker

TOOLS = (ALONE, ALONE, DEFAULT, EVERY_STEP)
"""Training alone twice, to know the noise."""

MODULES = (10, 100, 1000, 3000)
WIDTHS = (32, 128, 512, 2048)
STEPS = 10_000

EARLY, LATE = (0.01, 0.11), (0.9, 1.0)
"""The stretches of a run that are compared, as shares of its steps; the very first records describe the columns."""


def with_modules(sizes: Sequence[int], seconds: float, start: Start = Here) -> str:
    """What records add as a network gets deeper, as a table in Markdown."""
    nets = [(partial(deep, size), sum(1 for _ in deep(size).model.modules())) for size in sizes]
    return _grow("modules", nets, [start(tool) for tool in TOOLS], seconds, 1e6, "µs")


def with_elements(widths: Sequence[int], seconds: float, start: Start = Here) -> str:
    """What records add as the layers of a network get wider, as a table in Markdown."""
    nets = [(partial(mlp, 4, width), sum(p.numel() for p in mlp(4, width).model.parameters())) for width in widths]
    return _grow("elements of parameters", nets, [start(tool) for tool in TOOLS], seconds, 1e9, "ns")


def _grow(what: str, nets: Sequence[tuple[Make, int]], workers: Sequence[Worker], seconds: float, scale: float, unit: str) -> str:
    lines = [
        f"| {what} | step without a watch | noise | a full record adds | of {what}, each | a light record adds | of {what}, each |",
        "|---|---|---|---|---|---|---|",
    ]
    with ExitStack() as ending:
        for worker in workers:
            ending.callback(worker.end)
        for make, size in nets:
            *alone, default, every = _timed(workers, make, seconds)
            usual, light = ([time(times, "cpu") for times in alone] for time in (Times.usual, Times.light))
            noise = max(max(usual) - min(usual), max(light) - min(light))
            cells = [f"{size:,}", f"{statistics.fmean(usual) * 1e3:.2f} ms", f"± {noise * 1e3:.2f} ms"]
            for added in (every.usual("cpu") - statistics.fmean(usual), default.light("cpu") - statistics.fmean(light)):
                known = added > noise
                cells += [f"{added * 1e3:.2f} ms", f"{added / size * scale:.3g} {unit}"] if known else ["in the noise", "–"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _timed(workers: Sequence[Worker], make: Make, seconds: float) -> list[Times]:
    times = take_turns(workers, make, threads=1, seconds=seconds)
    for reason in (each.reason for each in times if each.reason):
        raise RuntimeError(reason)
    return times


def with_steps(steps: int, start: Start = Apart, block: int = 10 * CYCLE) -> str:
    """What watching adds late in a run and early in it, as a table in Markdown.

    Args:
        steps: Of the run.
        start: Starts a worker.
        block: Steps in turn; of the means over blocks the medians count, so that what comes seldom counts as well.
    """
    with ExitStack() as ending:
        workers = [start(tool) for tool in (ALONE, DEFAULT)]
        for worker in workers:
            ending.callback(worker.end)
            worker.open(partial(mlp, 2, 16), 1)
        means = [
            [statistics.fmean(step.cpu for step in worker.block(block - 1)) for worker in workers] for _ in range(steps // block)
        ]
        for worker in workers:
            worker.close()
    cells = []
    added = []
    for begin, end in (EARLY, LATE):
        window = means[int(begin * len(means)) : max(int(end * len(means)), int(begin * len(means)) + 1)]
        added.append(statistics.median(watched - alone for alone, watched in window))
        cells += [f"{added[-1] * 1e6:,.0f} µs"]
    head = [f"steps {begin * steps:,.0f} to {end * steps:,.0f} add, each" for begin, end in (EARLY, LATE)]
    return "\n".join(
        [f"| {' | '.join([*head, 'late over early'])} |", "|---|---|---|", f"| {' | '.join(cells)} | {added[1] / added[0]:.2f} |"]
    )
