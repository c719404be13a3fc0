"""What watching costs: the time of a training step with a watch over its time without one.

Four copies of each network train in turn in one process, a block of steps each: two bare, one watched with the default cadence,
one with a full record at every step. What the two bare ones differ by is the noise of the measurement. A block takes each copy
through whole cycles of its watch; of every place in the cycle the median over all blocks counts, so that neither another program
on the machine nor a rare event decides.

    python benchmarks/overhead.py            the table
    python benchmarks/overhead.py --quick    the same, coarser and without the slow GPT, in under 20 seconds
    python benchmarks/overhead.py --write    also writes docs/performance.md
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import gradwatch
from benchmarks.networks import TASKS, Task, mlp
from gradwatch.detectors import DEFAULT, Ledger, raise_error
from gradwatch.history import History
from gradwatch.moments import SMALL
from gradwatch.records import Record
from gradwatch.writers.tensorboard import EventFileWriter

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
CYCLE = 10
"""Steps of a block, and the default cadence."""

CADENCES = (CYCLE, 1)
SLOW = "GPT (4 × 256)"
WARM_UP = 2
"""Blocks before the first that counts: allocators, caches and the detectors' first records are behind them."""


TARGETS = {"tiny MLP (20 × 32)": (1.08, 1.6), "MLP (8 × 256)": (1.05, 1.35), "CNN": (1.03, 1.25), "GPT (4 × 256)": (1.02, 1.08)}
"""The ratios that the project aims at: with the default cadence, with full records at every step."""


@dataclass(frozen=True)
class Records:
    """What records of one kind cost.

    Attributes:
        tensors: That a record tells of.
        adds: Seconds that a step with such a record takes longer than one without a watch.
        judge: Those of them in which trends and all default detectors take the record.
        write: Those in which it is written to an event file.
        size: Bytes of a record in an event file.
    """

    tensors: int
    adds: float
    judge: float
    write: float
    size: float


@dataclass(frozen=True)
class Cost:
    """What watching a network costs.

    Attributes:
        name: Of the network.
        bare: Seconds of a step without a watch.
        noise: What the step time of another copy without a watch differs by, as a share.
        ratios: Step time with a watch over ``bare``, for each of ``CADENCES``.
        full: Full records, at every step.
        light: The records between full ones.
    """

    name: str
    bare: float
    noise: float
    ratios: tuple[float, ...]
    full: Records
    light: Records


class Timed(EventFileWriter):
    """An event file that takes down how long each record took, in seconds."""

    def __init__(self, logdir: str) -> None:
        super().__init__(logdir)
        self.seconds: list[float] = []

    def write(self, record: Record) -> None:
        """Writes a record."""
        begin = time.process_time()
        super().write(record)
        self.seconds.append(time.process_time() - begin)


class Judges:
    """The default detectors, and how long they and the running figures took for each record, in seconds."""

    def __init__(self) -> None:
        self.detectors = (*DEFAULT, self._last)
        self.seconds: list[float] = []
        self._begin = 0.0

    def include(self, history: History) -> None:
        """Counts the running figures of a history as well, which it brings up to date before any detector is asked."""
        append = history.append

        def timed(record: Record) -> None:
            self._begin = time.process_time()
            append(record)

        history.append = timed

    def _last(self, _history: History) -> tuple[()]:
        self.seconds.append(time.process_time() - self._begin)
        return ()


class Copy:
    """A copy of a task in training, watched or not, and how long its steps took.

    Args:
        task: Trained by AdamW.
        every: The cadence of its watch; None: it is not watched.
    """

    def __init__(self, task: Task, every: int | None) -> None:
        self.task = task
        self.optimizer = torch.optim.AdamW(task.model.parameters(), lr=1e-4)
        self.times: list[list[float]] = [[] for _ in range(CYCLE)]  # by the place in the cycle
        self.watch: gradwatch.Watch | None = None
        self._logdir = tempfile.TemporaryDirectory()
        if every is not None:
            self.file, self.judges = Timed(self._logdir.name), Judges()
            settings = {"writers": (self.file,), "detectors": self.judges.detectors, "on_finding": lambda _: None}
            self.watch = gradwatch.watch(task.model, self.optimizer, every=every, **settings)
            self.judges.include(self.watch.history)

    def block(self, *, count: bool = True) -> None:
        """Trains for a block of steps."""
        for times in self.times:
            begin = time.process_time()
            loss = self.task.step(self.optimizer)
            if self.watch is not None:
                self.watch.loss(loss)
            if count:
                times.append(time.process_time() - begin)

    def seconds(self) -> float:
        """The usual time of a step: the mean over the places in a cycle, whose medians are taken."""
        if self.watch is None:
            return statistics.median(time for times in self.times for time in times)
        return statistics.fmean(statistics.median(times) for times in self.times)

    def usual(self) -> float:
        """The time of a step in the middle of a cycle, far from a full record."""
        return statistics.median(statistics.median(times) for times in self.times)

    def close(self) -> None:
        """Ends the watch and deletes its files."""
        if self.watch is not None:
            self.watch.close()
        self._logdir.cleanup()


def measure(name: str, make: Callable[[], Task], seconds: float, least: int = 2) -> Cost:
    """Measures one network.

    Args:
        name: Of the network.
        make: Makes it.
        seconds: How long to go on, beyond the warm-up.
        least: Blocks of each copy at least.
    """
    copies = []
    for every in (None, None, *CADENCES):
        torch.manual_seed(0)
        copies.append(Copy(make(), every))
    bare, other, *watched = copies
    for _ in range(WARM_UP if least > 1 else 1):
        for copy in copies:
            copy.block(count=False)
    rounds, begin = 0, time.perf_counter()
    while rounds < least or time.perf_counter() - begin < seconds:
        for copy in copies:
            copy.block()
        rounds += 1
    for copy in copies:
        copy.close()
    base, light, full = bare.seconds(), *(copy.seconds() for copy in watched)
    return Cost(
        name,
        base,
        abs(other.seconds() / base - 1),
        (light / base, full / base),
        account(watched[1], full - base, full=True),
        account(watched[0], watched[0].usual() - base, full=False),
    )


def account(copy: Copy, adds: float, *, full: bool) -> Records:
    """What the records of a watched copy cost.

    Args:
        copy: Closed.
        adds: What a step with a record of the kind adds, in seconds.
        full: Which kind of records counts.
    """
    records = list(copy.watch.history)
    # The first records describe the columns, and begin every running figure.
    counted = [index for index, record in enumerate(records) if record.full == full][-max(1, len(records) // 2) :]
    judge, write, sizes = copy.judges.seconds, copy.file.seconds, written(records)
    return Records(
        tensors=len(records[counted[-1]].sites),
        adds=adds,
        judge=statistics.median(judge[index] for index in counted),
        write=statistics.median(write[index] for index in counted),
        size=statistics.median(sizes[index] for index in counted),
    )


def written(records: Sequence[Record]) -> list[int]:
    """The bytes of each record in an event file."""
    sizes: list[int] = []
    with tempfile.TemporaryDirectory() as logdir:
        writer = EventFileWriter(logdir)
        (file,) = Path(logdir).iterdir()
        for record in records:
            before = file.stat().st_size
            writer.write(record)
            sizes.append(file.stat().st_size - before)
        writer.close()
    return sizes


def table(costs: Sequence[Cost]) -> str:
    """The ratios, as a table in Markdown."""
    lines = [
        f"| network | step without a watch | noise | default (`every={CYCLE}`) | target | full record at every step | target |",
        "|---|---|---|---|---|---|---|",
    ]
    for cost in costs:
        cells = [cost.name, f"{cost.bare * 1e3:.2f} ms", f"± {cost.noise:.3f}"]
        for ratio, target in zip(cost.ratios, TARGETS.get(cost.name, (None, None)), strict=True):
            verdict = "–" if target is None else f"{target} ({'reached' if ratio + cost.noise <= target else 'not reached'})"
            cells += [f"{ratio:.3f}", verdict]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def parts(costs: Sequence[Cost]) -> str:
    """What records are made of, as a table in Markdown."""
    lines = [
        "| network | record | tensors | it adds | measuring | detectors | event file | detectors, per 100 tensors | bytes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cost in costs:
        for kind, part in (("full", cost.full), ("light", cost.light)):
            known = part.adds > 2 * cost.noise * cost.bare
            whole = [_micro(part.adds), _micro(part.adds - part.judge - part.write)] if known else ["in the noise", "in the noise"]
            after = map(_micro, (part.judge, part.write, part.judge * 100 / part.tensors))
            cells = [cost.name, kind, str(part.tensors), *whole, *after, f"{part.size:,.0f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def judge(depth: int, steps: int) -> list[tuple[str, int, float]]:
    """The median time that judging a record takes in a loop of its own, in seconds, for a network of some depth.

    Args:
        depth: Hidden layers of 16 units.
        steps: Records; the second half counts, as every site has been seen often enough by then to have a usual level.

    Returns:
        (kind of record, its tensors, seconds), for full and for light records.
    """
    task = mlp(depth, 16, batch=16)
    optimizer = torch.optim.AdamW(task.model.parameters())
    with gradwatch.watch(task.model, optimizer, on_finding=lambda _finding: None) as watch:
        for _ in range(steps):
            watch.loss(task.step(optimizer))
    ledger, history = Ledger(DEFAULT, raise_error), History()
    times: dict[bool, list[float]] = {True: [], False: []}
    for record in watch.history:
        begun = time.perf_counter()
        history.append(record)
        ledger.update(history)
        if record.step >= steps // 2:
            times[record.full].append(time.perf_counter() - begun)
    tensors = {record.full: len(record.sites) for record in watch.history}
    return [(kind, tensors[full], statistics.median(times[full])) for kind, full in (("full", True), ("light", False))]


def judged(rows: Sequence[tuple[str, int, float]]) -> str:
    """What judging costs, as a Markdown table."""
    lines = ["| record | tensors | time | per 100 tensors |", "|---|---|---|---|"]
    lines += [f"| {kind} | {size} | {_micro(took)} | {_micro(100 * took / size)} |" for kind, size, took in rows]
    return "\n".join(lines)


def _micro(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f} µs"


def machine() -> str:
    """The machine and the versions, as a sentence."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line.partition(":")[2].strip() for line in info.read_text(encoding="utf-8").splitlines() if "model name" in line]
        cpu = models[0] if models else cpu
    return (
        f"{cpu}, {os.cpu_count()} cores, {platform.system()}; Python {platform.python_version()}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} thread"
    )


def page(costs: Sequence[Cost], rows: Sequence[tuple[str, int, float]]) -> str:
    """``docs/performance.md``."""
    return PAGE_TEXT.format(machine=machine(), table=table(costs), parts=parts(costs), small=SMALL, judged=judged(rows))


PAGE_TEXT = """# What watching costs

One command measures it, and writes this page:

```text
python benchmarks/overhead.py --write
```

Measured on: {machine}.

## Step time with a watch, over step time without

{table}

1.1 means that training takes a tenth longer. Networks train on one batch with AdamW; two copies without a watch and two with one,
all default detectors on and an event file being written, take turns in one process, and medians of processor time are compared.
What the two without a watch differ by is the *noise*.

The tiny network is the worst case: its tensors are so small that a step is little but the overhead of calling PyTorch, and a watch
makes calls of its own for each of them. The larger the tensors, the less a watch weighs.

The targets are the project's own; one counts as reached only where the ratio and the noise together stay under it. Not measured
yet: a GPU, `torch.compile`, more than one thread, several processes, and other tools beside this one.

## Where the time goes

{parts}

A *full* record holds the moments of every activation, its gradient, and every parameter, its gradient and its update; a *light*
one, in the steps between, the norms of the parameters' gradients. *Measuring* is everything that happens while the step runs: the
hooks, the reductions, the copy of the weights, and putting rows in order; it is what is left of the whole once the rest, measured
beside it, is taken away. *Detectors* are the running figures and all default detectors; *bytes* are those in the event file.

- On small tensors measuring is bound by the number of calls into Python and PyTorch, 1 to 5 µs each whatever they compute. Of a
  tensor of up to {small:,} elements there is one, which copies it; tensors of one shape are measured together when the step ends.
  The hooks on activations come next, and the share of closed valves, with a dozen small operations for each activation.
- On large tensors it is bound by memory: the sum, the norm and the extremes each read the tensor once, zeros of activations twice,
  and the weights are copied to see how far they move.
- A light record is hardly measured at all, one norm for each parameter: most of what it costs is building its event, the detectors,
  and calls of NumPy, none of which depends on the number of elements. The same code takes two to four times as long within a step
  as it does in a loop of its own, as the step has taken the processor's caches meanwhile.

## What the detectors cost by themselves

{judged}

All default detectors and the running figures, in a loop over recorded runs of two networks, 8 and 80 layers deep, of 16 units a
layer: the median over the second half of the run. Most of it is a fixed cost, so that it weighs least where there are many layers.

To pay less: a larger `every`, or `exclude=` for layers that need no watching. Only steps with a full record carry hooks.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measures what watching a network's training costs.")
    parser.add_argument("--quick", action="store_true", help=f"a coarser measurement without {SLOW}, in under 20 seconds")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    parser.add_argument("--seconds", type=float, help="how long to measure each network (default: 40; quick: 2)")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    seconds = chosen.seconds or (2 if chosen.quick else 40)
    names = [name for name in TASKS if name != SLOW or not chosen.quick]
    costs = [measure(name, TASKS[name], seconds, least=1 if chosen.quick else 4) for name in names]
    rows = [row for depth in (8, 80) for row in judge(depth, steps=100 if chosen.quick else 600)]
    print(f"{machine()}\n\n{table(costs)}\n\n{parts(costs)}\n\n{judged(rows)}")
    if chosen.write:
        PAGE.write_text(page(costs, rows), encoding="utf-8")


if __name__ == "__main__":
    main()
