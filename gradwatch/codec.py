"""Record and Finding ↔ event-file tensors: the only place that knows the stored layout and its version.

A record is one event of TensorBoard, with the values below. ``<schema>`` stands for a tuple of sites: 8 hex digits of a hash.

gradwatch/v1/<schema>/<column>    (sites,) float32, for every column of ``moments.COLUMNS``
gradwatch/v1/<schema>/step        (7,) float64, in the order of ``STEP``
gradwatch/v1/<schema>/ranks       (sites,) int32; only where several processes have recorded together
gradwatch/v1/<schema>/histograms  (sites · octaves,) float32, site by site; only where they were asked for
gradwatch/v1/<schema>/schema      JSON: the sites in order, ``columns``, ``step``, ``versions``; once for each schema and file
gradwatch/v1/findings             JSON: findings that are new or final since the last such value; at most once a step

What is stored are raw columns, so that a loaded history equals the recorded one to the last bit, and a statistic that is
added tomorrow can be derived from a run of today.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import os
import re
import struct
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from gradwatch import eventfiles, wire
from gradwatch.errors import GradWatchWarning, RunError
from gradwatch.history import History
from gradwatch.moments import COLUMNS
from gradwatch.octaves import EXPONENTS
from gradwatch.records import Finding, Record, Site

log = logging.getLogger("gradwatch")

PLUGIN = "gradwatch"
VERSION = 1
ROOT = f"{PLUGIN}/v{VERSION}"
FINDINGS_TAG = f"{ROOT}/findings"

HISTOGRAMS = "histograms"
"""Under this name a record's histograms are stored, site by site in one vector: of ``octaves.EXPONENTS`` in this version."""

STEP = ("loss", "loss_told", "skipped", "backwards", "full", "clip", "scale")
"""What is stored of a record beside its rows, by name."""

_ANY_VERSION = re.compile(rf"{PLUGIN}/v(\d+)/")
MARK = f"{PLUGIN}/v".encode()
"""What every event of gradwatch holds, in any version of the layout."""

T = TypeVar("T")


class PerSites(Generic[T]):
    """Makes something of a tuple of sites once and keeps it, so that no record pays for its sites in Python.

    Tuples are told apart by identity: hashing a thousand sites would take as long as encoding their rows.
    """

    KEPT = 16  # a watch alternates between two tuples; a growing network adds a few

    def __init__(self, make: Callable[[tuple[Site, ...]], T]) -> None:
        self._make = make
        self._kept: dict[int, tuple[tuple[Site, ...], T]] = {}

    def __call__(self, sites: tuple[Site, ...]) -> T:
        """What was made of this tuple."""
        if id(sites) not in self._kept:
            if len(self._kept) == self.KEPT:
                self._kept.clear()
            # The tuple is kept as well: as long as it lives, no other one has its id.
            self._kept[id(sites)] = sites, self._make(sites)
        return self._kept[id(sites)][1]


class Schema:
    """What the positions of a stored column stand for.

    Attributes:
        sites: In the order of the rows.
    """

    def __init__(self, sites: tuple[Site, ...]) -> None:
        self.sites = sites

    @cached_property
    def root(self) -> str:
        """The beginning of every tag of this schema; it names the sites, for TensorBoard keeps only a tag's first metadata."""
        return f"{ROOT}/{hashlib.sha256(json.dumps(self._body).encode()).hexdigest()[:8]}"

    @cached_property
    def _body(self) -> dict[str, Any]:
        return {
            "sites": [{"layer": s.layer, "type": s.type, "tensor": s.tensor, "shape": list(s.shape)} for s in self.sites],
            "columns": COLUMNS,
            "step": STEP,
        }

    def to_json(self) -> str:
        """The sites and columns, and the versions that wrote them, in ASCII."""
        from gradwatch import __version__

        torch = getattr(sys.modules.get("torch"), "__version__", None)
        return json.dumps(self._body | {"versions": {"gradwatch": __version__, "torch": torch}})

    @classmethod
    def from_json(cls, text: str | bytes) -> Schema:
        """The inverse of ``to_json``."""
        sites = json.loads(text)["sites"]
        return cls(tuple(Site(s["layer"], s["tensor"], s["type"], tuple(s["shape"])) for s in sites))


class Encoder:
    """Turns the records and findings of one event file into values of its events: parts of the bytes of a summary."""

    def __init__(self) -> None:
        self._schema = PerSites(Schema)
        self._heads = PerSites(lambda sites: _Heads(self._schema(sites)))
        self._described: set[str | tuple[str, bool, bool]] = set()  # tags, and the values of a schema, with extras and without

    def records(self, records: Sequence[Record]) -> list[bytes]:
        """All of each of several records, for one event each; those in a row that have the same sites cost little more than one."""
        encoded: list[bytes] = []
        for _, run in itertools.groupby(records, lambda record: (id(record.sites), *_extras(record))):
            encoded += self._run(list(run))
        return encoded

    def _run(self, records: list[Record]) -> list[bytes]:
        sites = records[0].sites
        schema = self._schema(sites)
        # Ranks and histograms may come later: of a tag that its first event does not describe TensorBoard knows nothing.
        values = schema.root, *_extras(records[0])
        described = values in self._described
        heads = self._heads(sites) if described else _Heads(schema, _metadata())
        columns = np.stack([record.rows for record in records]).transpose(0, 2, 1).copy()  # (records, columns, sites)
        bits = columns.view(np.uint32)
        uniform = ((bits == bits[:, :, :1]).all(axis=2) & (len(sites) > 0)).tolist()
        content, one = columns.tobytes(), columns.itemsize
        place, size = 0, len(sites) * one
        encoded = []
        for record, same_columns in zip(records, uniform, strict=True):
            parts = [heads.step, _pack_step(record)]
            for same, whole, repeated in zip(same_columns, heads.whole, heads.repeated, strict=True):
                # Most columns of a light record hold one value throughout, and a byte costs 80 ns in a SummaryWriter's checksum.
                # Every reader of tensor protos fills a tensor with the only value that is stored.
                parts += (repeated, content[place : place + one]) if same else (whole, content[place : place + size])
                place += size
            if record.ranks is not None:
                parts += heads.ranks, record.ranks.astype("<i4").tobytes()
            if record.histograms is not None:
                parts += heads.histograms, record.histograms.astype("<f4").tobytes()
            encoded.append(b"".join(parts))
        if not described:
            self._described.add(values)
            if (tag := f"{schema.root}/schema") not in self._described:
                encoded[0] = self._text(tag, schema.to_json()) + encoded[0]
            encoded[1:] = self._run(records[1:]) if len(records) > 1 else []
        return encoded

    def findings(self, findings: Iterable[Finding]) -> bytes:
        """Findings, as one value; a step has at most one, for TensorBoard may keep only the last of a step and tag."""
        return self._text(FINDINGS_TAG, findings_to_json(findings))

    def _text(self, tag: str, text: str) -> bytes:
        from tensorboard.compat.proto.summary_pb2 import Summary

        metadata = None if tag in self._described else _metadata()
        self._described.add(tag)
        return wire.value(Summary.Value(tag=tag, tensor=string_tensor(text), metadata=metadata))


def _extras(record: Record) -> tuple[bool, bool]:
    return record.ranks is not None, record.histograms is not None


def _pack_step(record: Record) -> bytes:
    loss, told = (math.nan, False) if record.loss is None else (record.loss, True)
    return struct.pack(f"<{len(STEP)}d", loss, told, record.skipped, record.backwards, record.full, record.clip, record.scale)


class _Heads:
    """What stands before the numbers in every event with records of one schema.

    Attributes:
        step: Before the numbers of ``STEP``.
        whole: Before each column.
        repeated: Before the only value of each column that holds no other.
        ranks: Before the ranks of the sites.
        histograms: Before the counts of their octaves, site by site.
    """

    def __init__(self, schema: Schema, metadata: Any = None) -> None:
        root, size = schema.root, len(schema.sites)
        self.step = wire.tensor_value(f"{root}/step", wire.DOUBLE, len(STEP), metadata=metadata)
        self.whole = [wire.tensor_value(f"{root}/{name}", wire.FLOAT, size, metadata=metadata) for name in COLUMNS]
        self.ranks = wire.tensor_value(f"{root}/ranks", wire.INT32, size, metadata=metadata)
        self.histograms = wire.tensor_value(f"{root}/{HISTOGRAMS}", wire.FLOAT, size * len(EXPONENTS), metadata=metadata)
        self.repeated = [wire.tensor_value(f"{root}/{name}", wire.FLOAT, size, repeat=True, metadata=metadata) for name in COLUMNS]


def _metadata() -> Any:
    from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, SummaryMetadata

    plugin = SummaryMetadata.PluginData(plugin_name=PLUGIN)
    # Without a data class TensorBoard hides the tag from every plugin.
    return SummaryMetadata(plugin_data=plugin, data_class=DATA_CLASS_TENSOR)


def string_tensor(text: str, *shape: int) -> Any:
    """A tensor proto that holds one string; characters that UTF-8 cannot encode are escaped."""
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    dims = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in shape])
    return TensorProto(dtype=DT_STRING, tensor_shape=dims, string_val=[text.encode(errors="backslashreplace")])


def findings_to_json(findings: Iterable[Finding]) -> str:
    """A JSON list in ASCII; numbers that JSON lacks stand as the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``."""
    items = [
        finding.to_dict()
        | {"first_step": int(finding.first_step), "last_step": int(finding.last_step)}
        | {"evidence": {name: _json_number(value) for name, value in finding.evidence.items()}}
        for finding in findings
    ]
    return json.dumps(items, allow_nan=False)


def findings_from_json(text: str | bytes) -> list[Finding]:
    """The inverse of ``findings_to_json``."""
    read = (Finding(**item) for item in json.loads(text))
    return [replace(finding, evidence={name: _number(value) for name, value in finding.evidence.items()}) for finding in read]


def _json_number(value: float) -> float | str:
    number = value if type(value) is int else float(value)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _number(value: float | str) -> float:
    return float(value) if isinstance(value, str) else value


def load(run: str | os.PathLike[str]) -> History:
    """Reads what a watch recorded, from event files.

    Where a run was resumed at an earlier step, the last write of a step counts, and a finding that began in an overwritten
    stretch is left out. Other tools' events in the same files are passed over.

    Args:
        run: A log directory, or one event file. A directory without recordings of its own may hold one that has some, at any
            depth, as a Lightning logger's does.

    Returns:
        All records in order of their steps, whatever memory they take, and the findings in their last form.

    Raises:
        RunError: Nothing that this version can read is there, or several runs are.
    """
    path = Path(run)
    reader = _Reader()
    try:
        for file in eventfiles.of_run(path, MARK):
            reader.read(file)
    except OSError as error:
        raise RunError(f"{str(path)!r} cannot be read: {error}") from error
    history = reader.history()
    if not len(history) and not history.findings:
        known = "; ".join(reader.notes) or "it holds events of other tools only"
        raise RunError(f"{str(path)!r} holds nothing that gradwatch recorded ({known}); give the log directory of a watched run")
    for note in reader.notes:
        warnings.warn(note, GradWatchWarning, stacklevel=2)
    return history


class _Reader:
    """What the files of a run hold, in the order of writing.

    Attributes:
        notes: What could not be read, as sentences.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._schemas: dict[str, Schema] = {}
        self._records: list[Record] = []
        self._findings: list[tuple[int, Finding]] = []  # with the number of records written before

    def read(self, file: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        orphans = 0
        for raw in eventfiles.events(file, MARK, self.notes):
            event = Event.FromString(raw)
            parts: dict[str, dict[str, Any]] = {}
            for value in event.summary.value:
                found = _ANY_VERSION.match(value.tag)
                if found and int(found[1]) != VERSION:
                    raise RunError(
                        f"{str(file)!r} was recorded in layout v{found[1]}, and this gradwatch reads v{VERSION}; "
                        f"read it with the version of gradwatch that recorded it"
                    )
                if found:
                    root, _, name = value.tag.rpartition("/")
                    parts.setdefault(root, {})[name] = value.tensor
            text = parts.pop(ROOT, {}).get("findings")
            for root, tensors in parts.items():
                if "schema" in tensors:
                    self._schemas[root] = Schema.from_json(tensors["schema"].string_val[0])
                if root in self._schemas:
                    self._records.append(_record(event.step, self._schemas[root].sites, tensors))
                else:
                    orphans += 1
            if text is not None:
                self._findings += [(len(self._records), finding) for finding in findings_from_json(text.string_val[0])]
        if orphans:
            self.notes.append(
                f"{str(file)!r} has {orphans} records whose sites were lost with an earlier event; they were left out"
            )

    def history(self) -> History:
        steps = np.array([record.step for record in self._records], np.int64)
        # later[i]: the earliest step that was written from the i-th record on; what is not before it was written once more.
        later: npt.NDArray[np.float64] = np.append(np.minimum.accumulate(steps[::-1])[::-1], np.inf)
        history = History(max_bytes=sys.maxsize)
        for index, record in enumerate(self._records):
            if record.step < later[index + 1]:
                history.append(record)
        if overwritten := len(self._records) - len(history):
            log.info("%d records were written again by a later start at an earlier step; the last ones count", overwritten)
        last = {(f.kind, f.layer, f.first_step): f for index, f in self._findings if f.first_step < later[index]}
        history.findings = sorted(last.values(), key=lambda finding: finding.first_step)
        return history


def _record(step: int, sites: tuple[Site, ...], tensors: dict[str, Any]) -> Record:
    from tensorboard.util.tensor_util import make_ndarray

    # A column that this version knows and the recording one did not was not measured.
    rows = np.full((len(sites), len(COLUMNS)), np.nan, np.float32)
    for index, column in enumerate(COLUMNS):
        if column in tensors:
            rows[:, index] = make_ndarray(tensors[column])
    loss, told, skipped, backwards, full, clip, *later = make_ndarray(tensors["step"]).tolist()
    ranks = make_ndarray(tensors["ranks"]) if "ranks" in tensors else None
    histograms = make_ndarray(tensors[HISTOGRAMS]).reshape(len(sites), len(EXPONENTS)) if HISTOGRAMS in tensors else None
    record = Record(step, sites, rows, loss if told else None, bool(skipped), int(backwards), bool(full), clip, *later)
    return record if ranks is None and histograms is None else replace(record, ranks=ranks, histograms=histograms)
