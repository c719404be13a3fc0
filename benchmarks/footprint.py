"""What watching takes of main memory and of the disk."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

import gradwatch
from benchmarks.networks import TASKS, Make
from benchmarks.tools import ALONE, CYCLE, DEFAULT, EVERY_STEP
from benchmarks.training import Apart, Footprint, Start, Worker
from gradwatch.records import Record
from gradwatch.writers.tensorboard import EventFileWriter

MEGABYTE = 1e6

MEMORY_STEPS = 21
"""Steps of a training whose memory is measured: two full records of the default cadence, and the steps between."""


def memory(networks: Sequence[str], steps: int, start: Start = Apart) -> str:
    """The peak of resident memory above that of the training alone, as a table in Markdown.

    Args:
        networks: Names in ``networks.TASKS``.
        steps: That each training takes.
        start: Starts a worker; what is in one process with others is not told from them.
    """
    lines = [
        f"| network | peak of training alone | added, default (`every={CYCLE}`) | added, full record at every step |",
        "|---|---|---|---|",
    ]
    for name in networks:
        with ExitStack() as ending:
            # New ones for each network: memory that an earlier task gave back would be used again.
            workers = [start(tool) for tool in (ALONE, DEFAULT, EVERY_STEP)]
            for worker in workers:
                ending.callback(worker.end)
            alone, *watched = (_footprint(worker, TASKS[name], steps) for worker in workers)
        # What training alone grows by after its first steps is its own.
        added = [f"{max(0, each.memory - alone.memory) / MEGABYTE:,.1f} MB" for each in watched]
        lines.append(f"| {' | '.join([name, f'{alone.peak / MEGABYTE:,.0f} MB', *added])} |")
    return "\n".join(lines)


def _footprint(worker: Worker, make: Make, steps: int) -> Footprint:
    worker.open(make, 1)
    worker.block(steps - 1)
    return worker.close()


def disk(networks: Sequence[str]) -> str:
    """Bytes of a record in an event file, as a table in Markdown."""
    lines = ["| network | full record | light record | once a run |", "|---|---|---|---|"]
    for name in networks:
        records = _records(TASKS[name])
        first, full = (record for record in records if record.full)
        light = records[1]
        # The first records describe the columns, and TensorBoard's charts.
        described = _written([first, light])
        sizes = [_written([first, light, record]) - described for record in (full, light)]
        cells = [f"{size:,} bytes ({len(record.sites)} tensors)" for size, record in zip(sizes, (full, light), strict=True)]
        lines.append(f"| {' | '.join([name, *cells, f'{described - sum(sizes):,} bytes'])} |")
    return "\n".join(lines)


def _records(make: Make) -> list[Record]:
    """The records of the steps from one full record to the next."""
    torch.manual_seed(0)
    task = make()
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=1e-4)
    with gradwatch.watch(task.model, optimizer, every=CYCLE, on_finding=lambda _finding: None) as watch:
        for _ in range(CYCLE + 1):
            watch.loss(task.step(optimizer))
    return list(watch.history)


def _written(records: Sequence[Record]) -> int:
    with tempfile.TemporaryDirectory() as logdir:
        writer = EventFileWriter(logdir)
        for record in records:
            writer.write(record)
        writer.close()
        return sum(path.stat().st_size for path in Path(logdir).iterdir())
