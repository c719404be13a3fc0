"""Detectors over a recorded run, as if it were trained again: with other thresholds, or others' detectors."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from os import PathLike

from gradwatch.codec import load
from gradwatch.detectors import DEFAULT, Detector, judge, name_of
from gradwatch.errors import GradWatchWarning
from gradwatch.history import History
from gradwatch.records import Finding

log = logging.getLogger("gradwatch")


def check(run: str | PathLike[str] | History, detectors: Sequence[Detector] | None = None) -> list[Finding]:
    """Runs detectors over every record of a run, in order, as ``watch`` does while it trains.

    Args:
        run: A directory of event files, one event file, or a history.
        detectors: What to look for; None: ``gradwatch.detectors.DEFAULT``, which finds what was found live with it.

    Returns:
        What was found, in order of ``first_step``.

    Raises:
        RunError: The path holds no recorded run.
    """
    recorded = run if isinstance(run, History) else load(run)
    if recorded.dropped:
        warnings.warn(
            f"the history has let go of its first {recorded.dropped} records, so that what is found may differ from what was found "
            f"live; check the run's log directory instead",
            GradWatchWarning,
            stacklevel=2,
        )
    return judge(recorded, DEFAULT if detectors is None else detectors, _report)


def _report(detector: Detector, error: Exception) -> None:
    log.error("the detector %s failed and is not used any more: %s", name_of(detector), error, exc_info=error)
