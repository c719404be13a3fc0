"""Where records and findings go: a writer is one file with three verbs."""

from __future__ import annotations

from typing import Protocol

from gradwatch.records import Finding, Record


class Writer(Protocol):
    """Receives every record once, when it is final, and every finding twice: when it is raised and when it is over.

    An exception that a writer raises is reported once, the writer is dropped, and the training goes on.

    A writer that also has ``write_all(records)`` gets records up to a dozen at a time, which costs less: a second or two later than
    they are final, but at once where something was found. Where any writer of a watch has no such method, all get each record when
    the next step ends.
    """

    def write(self, record: Record) -> None:
        """Takes a record, after all earlier ones."""

    def report(self, finding: Finding) -> None:
        """Takes a finding before the record that confirmed it, and once it is over in its final form.

        The final form has the same ``kind``, ``layer`` and ``first_step``, and the true ``last_step``.
        """

    def close(self) -> None:
        """Lets go of every file; nothing comes afterwards."""
