"""Event files: everything for the "Gradient health" tab, and enough for TensorBoard's own dashboards."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from gradwatch import wire
from gradwatch.codec import Encoder, string_tensor
from gradwatch.errors import InvalidSetting, LogdirError
from gradwatch.eventfiles import EventFile, in_directory, mentions
from gradwatch.records import Finding, Kind, Record
from gradwatch.writers.summaries import BANDS, LOSS, SUMMARIES, Summarise
from gradwatch.writers.text import markdown

TEXT_TAG = "gradwatch/findings"
TEXT_ROWS = 50
"""Findings in the Text tab's table, newest first. The table is written again with each new finding, so it must be bounded."""


class EventFileWriter:
    """Writes records, scalars and findings to TensorBoard event files.

    A record becomes one event: the columns of ``codec``, the scalars of ``summaries.SUMMARIES``, and the findings reported
    since the record before. Findings also stand in the Text tab. Those reported after the last record are written at
    ``close``, under its step, or under the next one where that step has its findings already.

    The first event carries a layout for the Custom Scalars tab. TensorBoard shows one layout a run, the last that was written:
    none is written where the directory's files hold one, and a later ``SummaryWriter.add_custom_scalars`` replaces this one.

    Args:
        logdir: A directory, made where it is missing; a new event file is opened there.
        summary_writer: A ``torch.utils.tensorboard.SummaryWriter`` to write through instead, as TensorBoard wants one file a
            run at a time; it is flushed but never closed.

    Raises:
        InvalidSetting: Not exactly one of the two is given, or the second is of another class.
        LogdirError: The directory cannot be made or written.
    """

    def __init__(self, logdir: str | os.PathLike[str] | None = None, *, summary_writer: Any = None) -> None:
        if (logdir is None) == (summary_writer is None):
            raise InvalidSetting("an EventFileWriter needs either a logdir or a summary_writer, and not both")
        if logdir is None and not hasattr(summary_writer, "_get_file_writer"):
            kind = type(summary_writer).__name__
            raise InvalidSetting(f"summary_writer must be a torch.utils.tensorboard.SummaryWriter, and is a {kind}")
        self._shared = summary_writer
        self._file: Any = None if logdir is None else _open(os.fspath(logdir))
        self._encoder = Encoder()  # one for each file, as it knows which tags the file describes
        self._summarise = Summarise()
        self._heads: dict[str, bytes] = {}
        self._new: dict[tuple[Kind, str, int], Finding] = {}
        self._found: dict[tuple[Kind, str, int], Finding] = {}
        self._has_layout = False
        self._step: int | None = None
        self._step_of_findings: int | None = None

    def write(self, record: Record) -> None:
        """Writes a record and what was found since the one before, as one event."""
        self.write_all([record])

    def write_all(self, records: Sequence[Record]) -> None:
        """Writes several records, one event each; what was found goes into the first."""
        sink = self._sink()
        events = []
        for _, run in groupby(records, lambda record: id(record.sites)):
            alike = list(run)
            scalars = self._summarise.of_run(alike)
            for record, encoded, its_scalars in zip(alike, self._encoder.records(alike), scalars, strict=True):
                values = [*self._layout(sink), encoded, *self._scalars(its_scalars), *self._findings(record.step)]
                events.append(wire.event(time.time(), record.step, b"".join(values)))
                self._step = record.step
        _add(sink, events)

    def report(self, finding: Finding) -> None:
        """Keeps a finding for the next event."""
        self._new[finding.kind, finding.layer, finding.first_step] = finding

    def close(self) -> None:
        """Writes the findings that no record followed, and closes the file if it was opened here."""
        try:
            if self._new:
                latest = max(finding.last_step for finding in self._new.values())
                step = latest if self._step is None else self._step + (self._step == self._step_of_findings)
                sink = self._sink()
                _add(sink, [wire.event(time.time(), step, b"".join(self._findings(step)))])
        finally:
            if self._shared is not None:
                self._shared.flush()
            else:
                self._file.close()

    def _sink(self) -> Any:
        """What takes events: a file of our own, or the SummaryWriter's, which opens another one after it was closed."""
        if self._shared is not None:
            file = self._shared._get_file_writer()  # noqa: SLF001 - torch has no public way to add a summary of one's own
            if file is not self._file:
                self._file, self._encoder = file, Encoder()
        return self._file

    def _scalars(self, found: dict[str, float]) -> list[bytes]:
        with np.errstate(over="ignore"):
            numbers = np.fromiter(found.values(), np.float64).astype("<f4").tobytes()
        heads = [self._heads.get(tag) or self._heads.setdefault(tag, wire.scalar_value(tag)) for tag in found]
        return [part for index, head in enumerate(heads) for part in (head, numbers[4 * index : 4 * index + 4])]

    def _findings(self, step: int) -> list[bytes]:
        if not self._new:
            return []
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.text import metadata

        self._found |= self._new
        text = string_tensor(_table(list(self._found.values())), 1)
        about = metadata.create_summary_metadata(display_name=TEXT_TAG, description="")
        values = [
            self._encoder.findings(self._new.values()),
            wire.value(Summary.Value(tag=f"{TEXT_TAG}/text_summary", tensor=text, metadata=about)),
        ]
        self._new, self._step_of_findings = {}, step
        return values

    def _layout(self, sink: Any) -> list[bytes]:
        if self._has_layout:
            return []
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.custom_scalar import metadata

        self._has_layout = True
        sink.flush()
        directory, tag = Path(str(sink.get_logdir())), metadata.CONFIG_SUMMARY_TAG
        # A layout of the user's counts for more than ours, and a remote directory cannot be searched for one.
        if not directory.is_dir() or any(mentions(file, tag.encode()) for file in in_directory(directory)):
            return []
        about = metadata.create_summary_metadata()
        return [wire.value(Summary.Value(tag=tag, tensor=_layout_tensor(), metadata=about))]


def _open(logdir: str) -> Any:
    try:
        if "://" in logdir:
            from tensorboard.summary.writer.event_file_writer import EventFileWriter as RemoteEventFile

            return RemoteEventFile(logdir)
        Path(logdir).mkdir(parents=True, exist_ok=True)
        return EventFile(logdir)
    except (OSError, ValueError) as error:
        raise LogdirError(f"the log directory {logdir!r} cannot be written: {error}; give one that can") from error


def _add(sink: Any, events: list[bytes]) -> None:
    if isinstance(sink, EventFile):
        sink.append(events)
        return
    from tensorboard.compat.proto.event_pb2 import Event

    for event in events:
        sink.add_event(Event.FromString(event))


def _table(findings: list[Finding]) -> str:
    """The newest findings as a Markdown table."""
    lines = ["| steps | severity | kind | layer | what was seen | what to try |", "|---|---|---|---|---|---|"]
    for f in reversed(findings[-TEXT_ROWS:]):
        cells = (f"{f.first_step} to {f.last_step}", f.severity, f.kind, f.layer, f.message, f.advice)
        lines.append("| " + " | ".join(map(markdown, cells)) + " |")
    older = len(findings) - TEXT_ROWS
    return "\n".join(lines + ["", f"and {older} older ones"] * (older > 0))


def _layout_tensor() -> Any:
    """Custom Scalars: a margin chart (10 % to 90 % of the layers around the median) and the extremes of every band."""
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING
    from tensorboard.plugins.custom_scalar import layout_pb2 as pb

    charts = [_lines("loss", [LOSS])]
    for summary in SUMMARIES:
        title = summary.name.replace("_", " ")
        if summary.parts == BANDS:
            low, p10, median, p90, high = summary.tags
            series = pb.MarginChartContent.Series(value=median, lower=p10, upper=p90)
            charts.append(pb.Chart(title=f"{title}: 10 % to 90 % of layers", margin=pb.MarginChartContent(series=[series])))
            charts.append(_lines(f"{title}: extremes", [low, high]))
        else:
            charts.append(_lines(title, summary.tags))
    layout = pb.Layout(category=[pb.Category(title="Gradient health", chart=charts)])
    return TensorProto(dtype=DT_STRING, tensor_shape=TensorShapeProto(), string_val=[layout.SerializeToString()])


def _lines(title: str, tags: Iterable[str]) -> Any:
    from tensorboard.plugins.custom_scalar import layout_pb2 as pb

    # The tags of this chart are regular expressions; those of ours have no character that one would read otherwise.
    return pb.Chart(title=title, multiline=pb.MultilineChartContent(tag=[f"^{tag}$" for tag in tags]))
