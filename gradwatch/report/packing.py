"""A run → what the page holds of it: the answers of the tab as JSON, and its grids as 16-bit codes, compressed.

A code stands for the logarithm of a magnitude, in 65,000 steps between the smallest and the largest of a statistic: float32 would
take three times the space, and one byte would round to 15 % where a gradient spans 15 decades. The order of codes is that of
``cells``, so that the page can pool them further by taking the largest one.
"""

from __future__ import annotations

import base64
import gzip

import numpy as np
import numpy.typing as npt

from gradwatch.tensorboard_plugin import answers, cells, pooling
from gradwatch.tensorboard_plugin.recorded import Run
from gradwatch.tensorboard_plugin.shown import FIRST, Shown

COLUMNS = 1200
"""Columns of a grid at most."""

CELLS = 12_000_000
"""Cells of a run at most, of all its grids: what a browser opens in a second or two. Very deep networks get fewer columns."""

FEWEST = 200
"""Columns that even they get."""

ABSENT, ZERO, FIRST_CODE, LAST_CODE, MINUS_INF, INF, NAN = 0, 1, 2, 65532, 65533, 65534, 65535
"""Codes that are no number, and the first and the last one that is; ``embedded.js`` knows them too."""

Codes = npt.NDArray[np.uint16]


def pack(run: Run) -> str:
    """Everything that the page shows of a run.

    Args:
        run: The run.

    Returns:
        Base64 of gzip of, with a header: the codes of all grids, each (rows, columns), first all their low bytes and then all
        their high ones, as differences along a row, which compress better.
    """
    entries = answers.measured(run, FIRST)
    rows = {entry.id: _rows(run, entry) for entry in entries}
    columns = max(FEWEST, min(COLUMNS, CELLS // max(1, sum(map(len, rows.values())))))
    grids, blobs = {}, []
    for entry in entries:
        pooled = pooling.pool(pooling.parts(run, entry, rows[entry.id]), len(rows[entry.id]), columns)
        codes, low, high = quantize(pooled.codes.T, entry)
        place: dict[str | None, int] = {name: index for index, name in enumerate(rows[entry.id])}
        grids[entry.id] = {
            "rows": rows[entry.id],
            "standIns": [place.get(name, -1) for name in pooling.stand_ins(run, entry)],
            "steps": pooled.steps.tolist(),
            "last": pooled.last.tolist(),
            "low": low,
            "high": high,
        }
        blobs.append(np.diff(codes, axis=1, prepend=np.uint16(0)).ravel())
    layout = answers.layout(run)
    layout["statistics"] = [entry.to_dict() for entry in entries]
    told = {
        "layout": layout,
        "table": answers.table(run),
        "incidents": answers.incidents(run),
        "loss": answers.loss(run),
        "grids": grids,
    }
    bytes_of_codes = np.concatenate([*blobs, np.zeros(0, np.uint16)]).astype("<u2").view(np.uint8).reshape(-1, 2)
    content = answers.with_header(told, bytes_of_codes.T.tobytes())
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()


def _rows(run: Run, entry: Shown) -> list[str]:
    """Every layer or parameter of which some block has a site."""
    names = (name for layer in run.layers for name in (layer.parameters if entry.of_parameters else (layer.name,)))
    have = {site.layer for block in run.blocks for site in block.sites if site.tensor == entry.tensor}
    return [name for name in names if name in have]


def quantize(codes: cells.Codes, entry: Shown) -> tuple[Codes, float, float]:
    """Codes of ``cells`` → 16 bits.

    Args:
        codes: Any shape.
        entry: What they are of: a magnitude is spaced by its logarithm, anything else evenly.

    Returns:
        The same shape, and the numbers (of a magnitude their log2) that the first and the last code stand for.
    """
    values, flags = entry.decode(codes)
    numbers = values.astype(np.float64)
    is_number = flags == cells.VALUE
    if entry.scale == "log":
        numbers[is_number] = np.log2(numbers[is_number])
    low = float(numbers[is_number].min()) if is_number.any() else 0.0
    high = float(numbers[is_number].max()) if is_number.any() else 0.0
    spacing = (high - low) / (LAST_CODE - FIRST_CODE) or 1.0
    out = np.zeros(codes.shape, np.uint16)
    out[is_number] = np.rint((numbers[is_number] - low) / spacing).astype(np.uint16) + FIRST_CODE
    for flag, code in ((cells.ZERO, ZERO), (cells.INF, INF), (cells.MINUS_INF, MINUS_INF), (cells.NAN, NAN)):
        out[flags == flag] = code
    return out, low, high
