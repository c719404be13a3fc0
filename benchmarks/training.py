"""A training whose steps are timed, in this process or in one of its own.

A process for each tool keeps them apart: what a tool patches, the objects that it leaves to the garbage collector, its threads and
its failures are its own, and not shared by those that it is compared with.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from benchmarks.networks import Make
from benchmarks.tools import CYCLE, Tool

BARE_STEPS = 2
"""Steps before a tool is attached: gradients and the optimizer's state take their memory, whoever watches."""


class Step(NamedTuple):
    """How long a step took.

    Attributes:
        place: In the cycle of a tool, from 0 to 9.
        wall: Seconds.
        cpu: Seconds of processor time, of all threads of the process.
    """

    place: int
    wall: float
    cpu: float


class Footprint(NamedTuple):
    """What a training left behind.

    Attributes:
        peak: Bytes of resident memory at most.
        memory: Those that came after the tool was attached.
        written: Bytes on the disk.
        steps: Steps that the tool saw.
    """

    peak: int
    memory: int
    written: int
    steps: int


class Training:
    """A task that AdamW trains, with a tool attached.

    Args:
        make: Makes the task.
        tool: Watches it.
        threads: Threads of torch, in the whole process.
    """

    def __init__(self, make: Make, tool: Tool, threads: int) -> None:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.task, self.steps = make(), 0
        self.optimizer = torch.optim.AdamW(self.task.model.parameters(), lr=1e-4)
        _forget_peak()
        for _ in range(BARE_STEPS):
            self.task.step(self.optimizer)
        self._rest = _peak()
        self._directory = tempfile.TemporaryDirectory()
        try:
            self._attached = tool.attach(self.task, self.optimizer, self._directory.name)
        except BaseException:
            self.discard()
            raise

    def step(self) -> Step:
        """Trains for a step."""
        place, wall, cpu = self.steps % CYCLE, time.perf_counter(), time.process_time()
        self._attached.after(self.task.step(self.optimizer))
        self.steps += 1
        return Step(place, time.perf_counter() - wall, time.process_time() - cpu)

    def block(self, steps: int, limit: float = float("inf")) -> list[Step]:
        """Trains for some steps, and one before them that is not told of: it finds the caches as others left them.

        Args:
            steps: How many.
            limit: Seconds after which the block ends early.
        """
        taken, begin = [self.step()], time.perf_counter()
        while len(taken) <= steps and (len(taken) < 2 or time.perf_counter() - begin < limit):
            taken.append(self.step())
        return taken[1:]

    def close(self) -> Footprint:
        """Ends the tool's work and deletes what it wrote."""
        self._attached.close()
        peak = _peak()
        files = [path for path in Path(self._directory.name).rglob("*") if path.is_file() and not path.is_symlink()]
        written = sum(path.stat().st_size for path in files)
        self.discard()
        return Footprint(peak, peak - self._rest, written, self.steps)

    def discard(self) -> None:
        """Deletes what the tool wrote, where it cannot end its work."""
        self._directory.cleanup()


def _forget_peak() -> None:
    """Makes the system count the peak of resident memory anew, where it can."""
    if (switch := Path("/proc/self/clear_refs")).exists():
        switch.write_text("5", encoding="ascii")


def _peak() -> int:
    """The peak of resident memory, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would begin with that of the process that started this one
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class ToolFailed(Exception):
    """What a tool raised."""


class Worker(Protocol):
    """Trains with one tool, one task after the other, while nobody else works."""

    tool: Tool

    def open(self, make: Make, threads: int) -> None:
        """Begins a task.

        Raises:
            ToolFailed: Here and in every method, with the error as a sentence.
        """

    def block(self, steps: int, limit: float = float("inf")) -> list[Step]:
        """Trains for some steps; see ``Training.block``."""

    def close(self) -> Footprint:
        """Ends the task."""

    def end(self) -> None:
        """Ends the work."""


Start = Callable[[Tool], Worker]
"""Starts a worker with a tool."""


class Here:
    """A worker in this process: soon started, and good enough where nothing is compared."""

    def __init__(self, tool: Tool) -> None:
        self.tool = tool

    def open(self, make: Make, threads: int) -> None:
        """Begins a task."""
        with _failing():
            self._training = Training(make, self.tool, threads)

    def block(self, steps: int, limit: float = float("inf")) -> list[Step]:
        """Trains for some steps."""
        with _failing():
            try:
                return self._training.block(steps, limit)
            except BaseException:
                self._training.discard()
                raise

    def close(self) -> Footprint:
        """Ends the task."""
        with _failing():
            return self._training.close()

    def end(self) -> None:
        """Nothing is left to be ended."""


class Apart:
    """A worker in a process of its own."""

    def __init__(self, tool: Tool) -> None:
        context = multiprocessing.get_context("spawn")
        self.tool = tool
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, tool), daemon=True)
        self._process.start()
        there.close()

    def open(self, make: Make, threads: int) -> None:
        """Begins a task."""
        self._ask("open", make, threads)

    def block(self, steps: int, limit: float = float("inf")) -> list[Step]:
        """Trains for some steps."""
        taken: list[Step] = self._ask("block", steps, limit)
        return taken

    def close(self) -> Footprint:
        """Ends the task."""
        left: Footprint = self._ask("close")
        return left

    def end(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join(timeout=10)
        self._process.terminate()

    def _ask(self, *order: Any) -> Any:
        try:
            self._pipe.send(order)
            answer, error = self._pipe.recv()
        except (EOFError, OSError):
            raise ToolFailed("its process has ended") from None
        if error is not None:
            raise ToolFailed(error)
        return answer


def _serve(pipe: Connection, tool: Tool) -> None:
    """The other end of a worker's pipe."""
    worker = Here(tool)
    while True:
        try:
            order, *arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((getattr(worker, order)(*arguments), None))
        except ToolFailed as error:
            pipe.send((None, str(error)))


@contextlib.contextmanager
def _failing() -> Iterator[None]:
    """Makes a sentence of what a tool raises: it is left out, and the others go on."""
    try:
        yield
    except Exception as error:
        raise ToolFailed("".join(traceback.format_exception_only(error)).strip().splitlines()[0]) from error
