"""Scalars for a Lightning logger of any kind."""

from __future__ import annotations

from typing import Protocol

from gradwatch.errors import InvalidSetting
from gradwatch.records import Finding, Record
from gradwatch.writers.summaries import Summarise


class Logger(Protocol):
    """The part of a Lightning logger that is used."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Takes scalars by name."""


class LoggerWriter:
    """Sends the scalars of ``summaries.SUMMARIES`` to a logger, under the record's own step.

    Findings are sentences, which a logger of metrics has no place for; other writers take them.

    Args:
        logger: Anything with Lightning's ``log_metrics(metrics, step)``; it is never closed.

    Raises:
        InvalidSetting: The logger has no such method.
    """

    def __init__(self, logger: Logger) -> None:
        if not callable(getattr(logger, "log_metrics", None)):
            raise InvalidSetting(f"logger must have a method log_metrics(metrics, step); {type(logger).__name__} has none")
        self._logger = logger
        self._summarise = Summarise()

    def write(self, record: Record) -> None:
        """Sends the record's scalars."""
        self._logger.log_metrics(self._summarise(record), step=record.step)

    def report(self, finding: Finding) -> None:
        """Nothing: a finding is no metric."""

    def close(self) -> None:
        """Nothing: the logger belongs to its trainer."""
