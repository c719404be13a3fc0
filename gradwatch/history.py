"""A bounded sequence of records, oldest first."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gradwatch import moments, statistics
from gradwatch.records import Finding, Record
from gradwatch.trends import Trends

if TYPE_CHECKING:
    import pandas

log = logging.getLogger("gradwatch")

MAX_BYTES = 256 * 2**20
"""What the rows of a history may take: 20,000 full records of a 50-layer network, 100 of a 5,000-layer one."""


class History:
    """The newest records of a run, and what was found in it.

    Records leave at the old end once their rows take more than ``max_bytes``; ``dropped`` counts them, and the log says it
    once. Event files keep everything.

    Attributes:
        findings: What was found, in order of ``first_step``.
        dropped: Records that were observed but are no longer kept.
        first_step: The step of the first record ever appended.
        trends: Running figures of every site, which outlive the records that they come from.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.findings: list[Finding] = []
        self.dropped = 0
        self.first_step = 0
        self.trends = Trends()
        self._records: deque[Record] = deque()
        self._max_bytes = max_bytes
        self._bytes = 0

    def append(self, record: Record) -> None:
        """Adds the newest record, and lets go of the oldest where there is no room for both."""
        self.trends.update(record)
        if not self._records:
            self.first_step = record.step
        self._records.append(record)
        self._bytes += record.nbytes
        while self._bytes > self._max_bytes and len(self._records) > 1:
            self._bytes -= self._records.popleft().nbytes
            if not self.dropped:
                log.info(
                    "the history is full (%d MiB): from step %d on the oldest records leave memory; an event file keeps all",
                    self._max_bytes // 2**20,
                    record.step,
                )
            self.dropped += 1

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

    def __getitem__(self, index: int) -> Record:
        return self._records[index]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, History):
            return NotImplemented
        return list(self) == list(other) and self.findings == other.findings

    __hash__ = None  # type: ignore[assignment]  # it grows

    def __repr__(self) -> str:
        span = f"steps {self[0].step} to {self[-1].step}" if len(self) else "empty"
        lost = f", {self.dropped} older ones dropped" if self.dropped else ""
        return f"History({len(self)} records, {span}{lost})"

    def to_pandas(self) -> pandas.DataFrame:
        """A tidy frame: one row per step, layer and tensor that was seen.

        Returns:
            Columns ``step``, ``layer``, ``tensor``, then every statistic of ``statistics.STATISTICS`` and every ratio of
            ``statistics.RATIOS``; where processes have recorded together also ``rank``, see ``Record.ranks``.
            ``frame.attrs["dropped"]`` tells how many older records are no longer kept.
        """
        import pandas

        frames = [_frame(record) for record in self]
        columns = ["step", "layer", "tensor", *statistics.STATISTICS, *statistics.RATIOS]
        frame = pandas.concat(frames, ignore_index=True) if frames else pandas.DataFrame(columns=columns)
        frame.attrs["dropped"] = self.dropped
        return frame

    @property
    def full_steps(self) -> list[int]:
        """The steps of the full records that are kept."""
        return [record.step for record in self if record.full]

    def losses(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """(steps, losses) of the records whose loss is known, each of shape (records,)."""
        known = [(record.step, record.loss) for record in self if record.loss is not None]
        return np.array([step for step, _ in known], np.int64), np.array([loss for _, loss in known], np.float64)


def _frame(record: Record) -> pandas.DataFrame:
    import pandas

    data: dict[str, object] = {
        "step": np.full(len(record.sites), record.step),
        "layer": [site.layer for site in record.sites],
        "tensor": [site.tensor for site in record.sites],
    }
    frame = pandas.DataFrame(data | statistics.derive(record.sites, record.rows))
    if record.ranks is not None:
        frame["rank"] = record.ranks
    seen: pandas.DataFrame = frame.loc[record.rows[:, moments.COUNT] > 0]
    return seen
