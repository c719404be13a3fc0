"""A history → a run as the page looks at it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradwatch import moments
from gradwatch.history import History
from gradwatch.octaves import EXPONENTS
from gradwatch.records import Record, Site
from gradwatch.statistics import Values
from gradwatch.tensorboard_plugin.recorded import Array, Block, Run, Steps, spread


def of_history(history: History, notes: Sequence[str] = ()) -> Run:
    """The records of a history, those with the same sites together.

    Args:
        history: As it was recorded or loaded.
        notes: What could not be read of it.
    """
    # A run has a few tuples of sites and thousands of records: hashing a thousand sites for each would take seconds.
    groups: dict[int, list[Record]] = {}
    for record in history:
        groups.setdefault(id(record.sites), []).append(record)
    blocks: dict[tuple[Site, ...], list[Record]] = {}
    for records in groups.values():
        blocks.setdefault(records[0].sites, []).extend(records)
    said = list(notes)
    if history.dropped:
        said.append(f"the first {history.dropped} records are no longer in memory; the run's event files hold them")
    return Run(
        [HistoryBlock(sites, sorted(records, key=lambda record: record.step)) for sites, records in blocks.items()],
        sorted(history.findings, key=lambda finding: finding.first_step),
        said,
    )


class HistoryBlock(Block):
    """Records of a history that share their sites."""

    def __init__(self, sites: tuple[Site, ...], records: Sequence[Record]) -> None:
        super().__init__(sites, np.array([record.step for record in records], np.int64))
        self._records = records

    def column(self, name: str) -> Array:
        """(records, sites)."""
        return self._column(name, self._records)

    def sample(self, name: str) -> tuple[Steps, Array]:
        """Steps, (some,), and (some, sites)."""
        chosen = spread(len(self._records))
        return self.steps[chosen], self._column(name, [self._records[index] for index in chosen])

    def histograms(self, places: Sequence[int]) -> tuple[Steps, Array]:
        """Steps, (some,), and (some, len(places), octaves)."""
        counted = [(record.step, record.histograms[list(places)]) for record in self._records if record.histograms is not None]
        chosen = [counted[index] for index in spread(len(counted))]
        counts = np.array([counts for _, counts in chosen], np.float32).reshape(len(chosen), len(places), len(EXPONENTS))
        return np.array([step for step, _ in chosen], np.int64), counts

    def about(self, name: str) -> Values:
        """(records,)."""
        return np.array([_about(record, name) for record in self._records], np.float64)

    @staticmethod
    def _column(name: str, records: Sequence[Record]) -> Array:
        place = moments.COLUMNS.index(name)
        return np.array([record.rows[:, place] for record in records], np.float32)


def _about(record: Record, name: str) -> float:
    if name == "loss_told":
        return record.loss is not None
    return np.nan if name == "loss" and record.loss is None else float(getattr(record, name))
