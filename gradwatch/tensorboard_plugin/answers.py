"""What the page asks of a run, and what it is told: each answer is data for JSON or, for a grid, arrays."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwatch import codec
from gradwatch.incidents import group, lasts
from gradwatch.octaves import EXPONENTS
from gradwatch.records import TENSORS, Finding
from gradwatch.statistics import Values
from gradwatch.tensorboard_plugin import cells, pooling, shown
from gradwatch.tensorboard_plugin.pooling import Part
from gradwatch.tensorboard_plugin.recorded import Array, Layer, Run, Steps
from gradwatch.tensorboard_plugin.shown import FIRST, SHOWN, Shown

POINTS = 1000
"""Of a curve: more than a chart has pixels to tell apart."""

SPARK = 60
"""Points of a curve beside a table's row."""


def layout(run: Run) -> dict[str, Any]:
    """What there is: layers in forward order, the statistics that were measured, and the extent of the records."""
    steps = [block.steps for block in run.blocks if len(block.steps)]
    distances = np.diff(run.full_steps)
    return {
        "layers": [
            {"name": at.name, "type": at.type, "tensors": at.tensors, "parameters": at.parameters, "weight": at.weight}
            for at in run.layers
        ],
        "statistics": [entry.to_dict() for entry in measured(run, SHOWN.values())],
        "firstStep": min((int(some[0]) for some in steps), default=None),
        "lastStep": run.last_step,
        "records": run.records,
        "full": float(np.median(distances)) if len(distances) else None,
        "notes": list(run.notes),
    }


@dataclass(frozen=True)
class Grid:
    """Cells of a heat-map.

    Attributes:
        rows: Layers or parameters.
        steps: The first step of each column, (columns,), increasing.
        last: The last one.
        values: (rows, columns), float32; 0 where there is no number.
        flags: (rows, columns), uint8: what each cell holds, one of the constants of ``cells``.
    """

    rows: tuple[str, ...]
    steps: Steps
    last: Steps
    values: npt.NDArray[np.float32]
    flags: cells.Flags


def grid(run: Run, entry: Shown, *, first: int | None, last: int | None, width: int, layer: Layer | None = None) -> Grid:
    """Layers against steps; or, of one layer, its parameters.

    Args:
        run: The run.
        entry: What is shown.
        first: The first step; None: from the start.
        last: The last step; None: to the end.
        width: Columns at most; where there are more records, several are pooled into one.
        layer: Show what is below this one.

    Returns:
        A row for each layer, also for those without a value.
    """
    if layer is None:
        rows, sites = tuple(at.name for at in run.layers), pooling.stand_ins(run, entry)
    else:
        rows = layer.parameters if entry.of_parameters else (layer.name,)
        sites = list(rows)
    pooled = pooling.pool(pooling.parts(run, entry, sites), len(sites), width, first, last)
    values, flags = entry.decode(pooled.codes.T)
    return Grid(rows, pooled.steps, pooled.last, values, flags)


def series(run: Run, layer: Layer) -> dict[str, Any]:
    """Every curve of a layer and of its parameters, the newest number of each statistic, and histograms."""
    curves, latest = [], {}
    for entry in measured(run, FIRST):
        stand_in = pooling.stand_in(run, entry, layer)
        for name in layer.parameters if entry.of_parameters else (layer.name,):
            parts = pooling.parts(run, entry, [name])
            pooled = pooling.pool(parts, 1, POINTS)
            if len(pooled.steps):
                curve = _plain(*entry.decode(pooled.codes[:, 0]))
                about = {"id": entry.id, "title": entry.title, "tensor": entry.tensor, "name": name, "statistic": entry.statistic}
                curves.append(about | {"unit": entry.unit, "scale": entry.scale, "steps": pooled.steps.tolist()} | curve)
                if name == stand_in:
                    latest[entry.id] = _newest(parts, entry, 1)[0]
    return {"name": layer.name, "type": layer.type, "series": curves, "latest": latest, "histograms": _histograms(run, layer)}


def _histograms(run: Run, layer: Layer) -> list[dict[str, Any]]:
    """Of each tensor of a layer: steps, the first exponent of those in use, and shares of non-zero elements by octave."""
    names = {layer.name, *layer.parameters}
    parts: dict[tuple[str, str], list[tuple[Steps, Array]]] = {}  # a tensor has several where the sites of the records changed
    for block in run.blocks:
        places = [place for place, site in enumerate(block.sites) if site.layer in names]
        steps, counts = block.histograms(places)
        for place, of_site in zip(places, counts.transpose(1, 0, 2), strict=True):
            seen = np.nan_to_num(of_site).any(axis=1)
            if seen.any():
                site = block.sites[place]
                parts.setdefault((site.tensor, site.layer), []).append((steps[seen], of_site[seen]))
    told = []
    for (tensor, name), its in parts.items():
        steps, counts = (np.concatenate(of) for of in zip(*its, strict=True))
        order = np.argsort(steps)
        shares = counts[order] / counts[order].sum(axis=1, keepdims=True)
        used = np.flatnonzero(counts.any(axis=0))
        cropped = np.round(shares[:, used[0] : used[-1] + 1].astype(np.float64), 4).tolist()
        told.append(
            {"tensor": tensor, "name": name, "first": EXPONENTS[used[0]], "steps": steps[order].tolist(), "shares": cropped}
        )
    return sorted(told, key=lambda one: TENSORS.index(one["tensor"]))


def table(run: Run) -> dict[str, Any]:
    """A row for each layer: its state, the newest numbers, and how its gradient went."""
    last, full = run.last_step, next(reversed(run.full_steps), None)
    newest = {entry.id: _newest(pooling.sampled(run, entry), entry, len(run.layers)) for entry in measured(run, FIRST)}
    gradient = grid(run, SHOWN["gradient"], first=None, last=None, width=SPARK)
    someone_is_ill = last is not None and any(lasts(finding, last, full) for finding in run.findings)
    rows = []
    for index, layer in enumerate(run.layers):
        numbers = {name: found[index] for name, found in newest.items() if found[index]}
        own = [finding for finding in run.findings if run.row_of.get(finding.layer) == layer.name]
        ill = [finding for finding in own if last is not None and lasts(finding, last, full)]
        over = [finding for finding in own if finding not in ill]
        rows.append(
            {
                "layer": layer.name,
                "type": layer.type,
                "status": _status(ill, observed=bool(numbers), someone_is_ill=someone_is_ill),
                "kinds": list(dict.fromkeys(finding.kind for finding in ill)),
                "over": list(dict.fromkeys(finding.kind for finding in over)),
                "last": numbers,
                "spark": {"gradient": _plain(gradient.values[index], gradient.flags[index])},
            }
        )
    return {"rows": rows}


def _status(ill: Sequence[Finding], *, observed: bool, someone_is_ill: bool) -> str:
    """A layer is called ok only while nothing in the run is wrong: a fault has one name and many victims."""
    if ill:
        return "critical" if any(finding.severity == "critical" for finding in ill) else "warning"
    return "not observed" if not observed else "–" if someone_is_ill else "ok"


def incidents(run: Run) -> list[dict[str, Any]]:
    """What was found, each incident under its first cause."""
    return [
        {"cause": _finding(run, incident.cause), "consequences": [_finding(run, one) for one in incident.consequences]}
        for incident in group(run.findings, run.full_steps)
    ]


def as_json(told: Any) -> bytes:
    """An answer as JSON, in which NaN has no place."""
    return json.dumps(told, allow_nan=False).encode()


def with_header(told: Any, content: bytes) -> bytes:
    """Bytes behind what says how to read them: the length of the header, uint32, little-endian; the header, JSON, padded to 4."""
    header = as_json(told)
    header += b" " * (-len(header) % 4)
    return len(header).to_bytes(4, "little") + header + content


def _finding(run: Run, finding: Finding) -> dict[str, Any]:
    [told] = json.loads(codec.findings_to_json([finding]))
    return dict(told) | {"row": run.row_of.get(finding.layer)}


def loss(run: Run) -> dict[str, Any]:
    """The loss, what clipping left of the gradients, and the steps that moved nothing."""
    losses = [_number_of_records(block.steps, block.about("loss"), block.about("loss_told") > 0) for block in run.blocks]
    clips = [_number_of_records(block.steps, block.about("clip"), ~np.isnan(block.about("clip"))) for block in run.blocks]
    clip = _curve(clips)
    skipped = sorted(int(step) for block in run.blocks for step in block.steps[block.about("skipped") > 0])
    return _curve(losses) | {"skipped": skipped, "clip": clip if clip["steps"] else None}


def measured(run: Run, entries: Iterable[Shown]) -> list[Shown]:
    """Those of which the run holds any number."""
    return [entry for entry in entries if any(shown.measured(block, entry) for block in run.blocks)]


def _number_of_records(steps: Steps, values: Values, known: npt.NDArray[np.bool_]) -> Part:
    return Part(steps, cells.encode(values[:, None], known[:, None], signed=True), np.zeros(1, np.intp))


def _curve(parts: Sequence[Part]) -> dict[str, Any]:
    pooled = pooling.pool(parts, 1, POINTS)
    return {"steps": pooled.steps.tolist()} | _plain(*cells.decode(pooled.codes[:, 0], signed=True, zeros=False))


def _newest(parts: Sequence[Part], entry: Shown, rows: int) -> list[dict[str, Any] | None]:
    """The newest recorded cell of each row; None where nothing was ever recorded."""
    codes, steps = pooling.newest(parts, rows)
    values, flags = entry.decode(codes)
    told = zip(_numbers(values, flags), flags.tolist(), steps.tolist(), strict=True)
    return [None if flag == cells.ABSENT else {"value": value, "flag": flag, "step": step} for value, flag, step in told]


def _plain(values: npt.NDArray[np.float32], flags: cells.Flags) -> dict[str, Any]:
    return {"values": _numbers(values, flags), "flags": flags.tolist()}


def _numbers(values: npt.NDArray[np.float32], flags: cells.Flags) -> list[float | None]:
    """The shortest decimals of float32 numbers; None where there is none, as JSON has no NaN."""
    number = {cells.VALUE, cells.ZERO}
    return [float(str(value)) if flag in number else None for value, flag in zip(values, flags.tolist(), strict=True)]
