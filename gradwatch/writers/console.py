"""Findings in plain lines, as they are raised."""

from __future__ import annotations

import sys
from typing import TextIO

from gradwatch.names import printable
from gradwatch.records import Finding, Kind, Record


class ConsoleWriter:
    """Prints two lines for a finding when it is raised and one when it is over; nothing for a record.

    Args:
        stream: Where to; ``None``: the standard error stream of the moment, where progress bars and logs go.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._over: dict[tuple[Kind, str, int], bool] = {}

    def write(self, record: Record) -> None:
        """Nothing: a record is not printed."""

    def report(self, finding: Finding) -> None:
        """Prints a finding the first time, and how long it lasted the second time."""
        key = finding.kind, finding.layer, finding.first_step
        what = f"{finding.kind} at {finding.layer}"
        if key not in self._over:
            self._over[key] = False
            self._print(f"gradwatch: step {finding.first_step}: {finding.severity}: {what}: {finding.message}")
            if finding.advice:
                self._print(f"  try: {finding.advice}")
        elif not self._over[key]:
            self._over[key] = True
            # Not "over": when the run ends, what still lasts is reported in the same way.
            self._print(f"gradwatch: {what} lasted from step {finding.first_step} to step {finding.last_step}")

    def close(self) -> None:
        """Nothing: the stream belongs to the caller."""

    def _print(self, line: str) -> None:
        stream = sys.stderr if self._stream is None else self._stream
        encoding = getattr(stream, "encoding", None) or "utf-8"
        stream.write(printable(line).encode(encoding, "backslashreplace").decode(encoding) + "\n")
        stream.flush()
