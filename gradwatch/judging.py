"""What becomes of a step that is over: a record, findings, and what writers make of both."""

from __future__ import annotations

import time
from collections.abc import Sequence

from gradwatch.capture.guard import Guard, Turns
from gradwatch.capture.sealed import Sealed, records, runs
from gradwatch.detectors import Detector, Ledger, name_of
from gradwatch.history import History
from gradwatch.records import Finding, Record
from gradwatch.trends import MOST_CALM
from gradwatch.waiting import SECONDS, Waiting
from gradwatch.writers import Writer


class Judging:
    """Makes the records of steps, judges them, and hands both to the writers.

    Args:
        detectors: Asked about every record, in their order.
        writers: Get every record and finding.
        guard: Told of errors; a detector or a writer that fails is dropped.
        hurried: Whether it matters already when a detector is half convinced.
        turn: Lets one thread in at a time: records may be asked for in another one than that which trains.

    Attributes:
        news: Findings that nobody has acted on yet.
    """

    def __init__(
        self, detectors: Sequence[Detector], writers: Sequence[Writer], guard: Guard, turn: Turns, *, hurried: bool
    ) -> None:
        self.news: list[Finding] = []
        self._guard, self._turn = guard, turn
        self._writers = list(writers)
        self._patient = self._writers_wait()
        self._history = History()
        self._ledger = Ledger(detectors, self._drop_detector)
        self._waiting = Waiting(self._history, self._ledger, hurried=hurried)
        self._unwritten: list[Record] = []
        self._until = 0.0  # when the first of them has to be written
        self._newest = 0.0  # when the newest step was taken
        self._urgent = False  # whether one of them goes with a finding

    @property
    def history(self) -> History:
        """The newest records, and what was found; those that wait to be made are made now."""
        self._make(write=True)
        return self._history

    @property
    def findings(self) -> list[Finding]:
        """What was found, in order of ``first_step``."""
        self._make(write=True)
        return self._ledger.findings

    @property
    def suspicious(self) -> bool:
        """Whether any detector is half convinced."""
        return self._ledger.suspicious

    def take(self, record: Record) -> None:
        """Takes the newest record, where others have made it."""
        self._make()
        with self._turn:
            self._judge(record)
            self._write_when_due(now=self._is_slow())

    def add(self, step: Sealed) -> None:
        """Takes the newest step. Its record, and those of steps that waited, are made now, unless it may wait as well."""
        slow = self._is_slow()
        if not self._waiting.add(step, patient=self._patient and not slow, behind=len(self._unwritten)):
            self._make(write=slow)

    def close(self) -> None:
        """Reports the findings that lasted to the end."""
        self._make(write=True)
        for finding in self._ledger.close():
            self._write("report", finding)

    def dismiss(self) -> None:
        """Lets the writers go; they get nothing any more."""
        if self._writers:
            self._write("close")
            self._writers.clear()

    def _is_slow(self) -> bool:
        """Whether the newest step took so long that whoever looks on should not have to wait for one more, which saves nothing."""
        before, self._newest = self._newest, time.monotonic()
        return self._newest - before > SECONDS

    def _make(self, *, write: bool = False) -> None:
        with self._turn:
            steps = self._waiting.take()
            for run in runs(steps):
                with self._guard():
                    for record in records(run):
                        self._judge(record)
            self._write_when_due(now=write or len(steps) > 1)

    def _judge(self, record: Record) -> None:
        self._history.append(record)
        with self._guard():
            found = self._ledger.update(self._history)
            self._history.findings = self._ledger.findings
            self.news += found.raised
            for finding in (*found.raised, *found.over):
                self._hand_over()  # a finding comes before the record that confirmed it, and after those before
                self._write("report", finding)
                self._urgent = True
        if not self._unwritten:
            self._until = time.monotonic() + SECONDS
        self._unwritten.append(record)

    def _write_when_due(self, *, now: bool) -> None:
        """Hands records over, but for those that are few and new, with no finding to tell: written together they cost less."""
        due = now or self._urgent or len(self._unwritten) >= MOST_CALM or time.monotonic() > self._until
        if due or not self._patient:
            self._urgent = False
            self._hand_over()

    def _hand_over(self) -> None:
        """Gives the writers the records that they have not got yet."""
        waited, self._unwritten = self._unwritten, []
        if self._patient and waited:
            self._write("write_all", waited)
        else:
            for record in waited:
                self._write("write", record)

    def _write(self, verb: str, *args: Record | Finding | list[Record]) -> None:
        for writer in list(self._writers):
            try:
                getattr(writer, verb)(*args)
            except Exception as error:  # noqa: BLE001  # a full disk must not end the training
                self._writers.remove(writer)
                self._patient = self._writers_wait()
                self._guard.say(type(writer).__name__, error, f"the writer {type(writer).__name__} failed and is not used any more")

    def _writers_wait(self) -> bool:
        return all(_takes_several(writer) for writer in self._writers)

    def _drop_detector(self, detector: Detector, error: Exception) -> None:
        name = name_of(detector)
        self._guard.say(name, error, f"the detector {name} failed and is not used any more")


def _takes_several(writer: Writer) -> bool:
    """Whether a writer can be given several records at once; a class that replaces an inherited ``write`` alone wants each."""
    defining = [next((base for base in type(writer).__mro__ if verb in vars(base)), None) for verb in ("write", "write_all")]
    return defining[1] is not None and defining[0] is defining[1]
