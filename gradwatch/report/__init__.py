"""Recorded runs, to be read elsewhere: the page of the "Gradient health" tab as one file, and two runs compared as text.

The file opens from a disk, needs no network, and can be sent to somebody.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from gradwatch.errors import LogdirError
from gradwatch.history import History
from gradwatch.report.comparison import compare
from gradwatch.report.document import assemble
from gradwatch.report.packing import pack
from gradwatch.report.recorded import of_history

__all__ = ["compare", "page", "write"]


def page(runs: Mapping[str, History], notes: Mapping[str, Sequence[str]] | None = None) -> str:
    """Makes a page of one or more runs.

    Numbers that are plotted are rounded by less than 0.2 %, and of a run with more than 1,200 records neighbours are pooled, as in
    the tab; findings and the newest number of each layer are exact.

    Args:
        runs: Name → what was recorded.
        notes: Name → what could not be read of it, as sentences, to be said on the page.

    Returns:
        HTML. Whatever the names and messages hold, it is data of the page and never its markup.
    """
    told = notes or {}
    return assemble({name: pack(of_history(history, told.get(name, ()))) for name, history in runs.items()})


def write(runs: Mapping[str, History], path: str | os.PathLike[str], notes: Mapping[str, Sequence[str]] | None = None) -> None:
    """Writes a page of one or more runs; folders are made, a file that exists is replaced.

    Args:
        runs: Name → what was recorded.
        path: Of the HTML file.
        notes: As for ``page``.

    Raises:
        LogdirError: The file cannot be written.
    """
    text = page(runs, notes)
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise LogdirError(f"{str(path)!r} cannot be written: {error}; give a path that can") from error
