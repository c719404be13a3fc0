"""A pass as tables for people: plain text, rich, HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Any

from torch import Tensor

from gradwatch import names, statistics
from gradwatch.capture.valves import CLOSED, MOSTLY_CLOSED
from gradwatch.names import printable
from gradwatch.trace.assemble import norm_of
from gradwatch.trace.frame import Row, measure, rows
from gradwatch.trace.passes import Call, Pass
from gradwatch.trace.saved import Kept

WHOLE = 8
"""Tensors of at most so many elements are printed whole."""

LONGEST = 200
"""Rows of a table; of a longer one the middle is left out."""

SMALLEST_SHARE = 0.001
"""Shares are printed with one decimal of a percent."""

ROUNDING = 1e-2
"""How far the product of the gains may be from what is left of the gradient, relatively, in a chain."""

LABELS = {"input": "input", "activation": "output", "activation_grad": "dL/d output", "input_grad": "dL/d input"}


@dataclass(frozen=True)
class Table:
    """A title, the columns' names, and the cells.

    Attributes:
        figures: The columns that hold numbers and are set to the right.
    """

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    figures: frozenset[int]


def text(shown: Pass) -> str:
    """Plain text."""
    tables, notes = _content(shown)
    return "\n\n".join([*map(_plain, tables), "\n".join(notes)])


def html(shown: Pass) -> str:
    """An HTML fragment; everything that comes from the model is escaped."""
    tables, notes = _content(shown)
    parts = []
    for table in tables:
        head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
        body = "".join(
            "<tr>"
            + "".join(
                f'<td style="text-align:{"right" if number in table.figures else "left"}">{escape(cell)}</td>'
                for number, cell in enumerate(row)
            )
            + "</tr>"
            for row in table.rows
        )
        parts.append(f"<h4>{escape(table.title)}</h4><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
    return "".join([*parts, *(f"<p>{escape(note)}</p>" for note in notes)])


def rich_tables(shown: Pass) -> Any:
    """What a rich console prints."""
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    tables, notes = _content(shown)
    parts: list[Any] = []
    for table in tables:
        grid = RichTable(title=Text(table.title), title_justify="left")
        for number, column in enumerate(table.columns):
            grid.add_column(Text(column), justify="right" if number in table.figures else "left")
        for row in table.rows:
            grid.add_row(*map(Text, row))
        parts.append(grid)
    return Group(*parts, *map(Text, notes))


def _content(shown: Pass) -> tuple[list[Table], list[str]]:
    tables = [_tensors(shown), _chain(shown), _blame(shown)]
    return [table for table in tables if table.rows], _notes(shown)


def _plain(table: Table) -> str:
    lines = [table.columns, *table.rows]
    widths = [max(len(line[number]) for line in lines) for number in range(len(table.columns))]
    lines.insert(1, tuple("─" * width for width in widths))
    return "\n".join(
        [table.title]
        + [
            "  ".join(
                cell.rjust(width) if number in table.figures else cell.ljust(width)
                for number, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
    )


def _tensors(shown: Pass) -> Table:
    """Every tensor in forward order, each group under the name of its call."""
    listed = list(rows(shown))
    cut = len(listed) - LONGEST
    if cut <= 0:
        cells = _grouped(shown, listed)
    else:
        gap = ("…", f"{cut} more in trace.to_pandas()", "", "")
        cells = [*_grouped(shown, listed[: LONGEST // 2]), gap, *_grouped(shown, listed[-LONGEST // 2 :])]
    return Table("Forward and backward, in forward order", ("layer", "tensor", "shape", "values"), cells, frozenset())


def _grouped(shown: Pass, listed: Sequence[Row]) -> list[tuple[str, ...]]:
    cells: list[tuple[str, ...]] = []
    for title, group in groupby(listed, key=lambda row: _heading(shown, row)):
        members = list(group)
        described = _describe([row.value for row in members])
        headings = [title] + [""] * (len(members) - 1)
        for heading, row, values in zip(headings, members, described, strict=True):
            cells.append((heading, _label(row), str(tuple(row.value.shape)), values))
    return cells


def _heading(shown: Pass, row: Row) -> str:
    layer = row.layer if row.layer in shown.layers else names.owner(row.layer)
    called = len(shown.layers[layer].calls) if layer in shown.layers else 0
    which = f"[{row.call}]" if called > 1 and layer == row.layer else ""
    return f"{printable(layer)}{which} {row.type}"


def _label(row: Row) -> str:
    if row.tensor == "parameter":
        return printable(row.layer.rpartition(".")[2])
    if row.tensor == "parameter_grad":
        return f"dL/d {printable(row.layer.rpartition('.')[2])}"
    return LABELS[row.tensor] + printable(row.path)


def _describe(tensors: Sequence[Tensor]) -> list[str]:
    """Small tensors whole; of large ones the size of a typical element, the range, and the share of zeros."""
    table = statistics.Moments(measure(tensors))
    figures = zip(table.rms, table.min, table.max, statistics.zero_share(table), table.nonfinite, strict=True)
    return [
        _whole(tensor.to_dense().tolist())
        if tensor.numel() <= WHOLE
        else f"rms {rms:.3g}, {low:.3g} to {high:.3g}, zeros {zeros:.0%}" + (f", {bad:.0f} NaN or Inf" if bad else "")
        for tensor, (rms, low, high, zeros, bad) in zip(tensors, figures, strict=True)
    ]


def _whole(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_whole, value))}]"
    return f"{value + 0.0:.4g}" if isinstance(value, float) else str(value)  # adding 0 makes -0 a plain 0


def _chain(shown: Pass) -> Table:
    """The links of the chain: what each layer does to the gradient that passes."""
    cells: list[tuple[str, ...]] = [
        (
            printable(call.layer) + (f"[{call.index}]" if len(shown.layers[call.layer].calls) > 1 else ""),
            call.type,
            _figure(call.grad_output_norm),
            _figure(call.gain),
            _figure(call.product),
            "" if call.valve is None else _figure(call.valve.derivative),
            "" if call.valve is None else _share(call.valve.closed),
            "" if call.kept is None else _bytes(call.kept.activations),
        )
        for call in shown.calls
        if not call.encloses
    ]
    columns = ("layer", "type", "‖dL/d output‖", "gain", "product", "|da/dz|", "closed", "keeps")
    return Table("The chain: read it upwards from the loss", columns, _shortened(cells), frozenset(range(2, 8)))


def _blame(shown: Pass) -> Table:
    """The parameters by their share of the gradient, the largest first."""
    ordered = sorted(shown.params.items(), key=lambda item: (math.isnan(item[1].share), -item[1].share))
    cells: list[tuple[str, ...]] = [
        (
            printable(name),
            str(tuple(parameter.value.shape)),
            "no gradient" if parameter.grad is None else _figure(norm_of(parameter.grad)),
            _share(parameter.share),
        )
        for name, parameter in ordered
    ]
    title = "The blame: shares of the squared gradient of all parameters"
    return Table(title, ("parameter", "shape", "‖dL/dW‖", "share"), _shortened(cells), frozenset({2, 3}))


def _shortened(cells: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    if len(cells) <= LONGEST:
        return cells
    gap = (f"… {len(cells) - LONGEST} more", *[""] * (len(cells[0]) - 1))
    return [*cells[: LONGEST // 2], gap, *cells[-LONGEST // 2 :]]


def _notes(shown: Pass) -> list[str]:
    notes = [_closed(call) for call in shown.calls if call.valve is not None and call.valve.closed > MOSTLY_CLOSED]
    if not _is_chain(shown):
        notes.append(
            "The layers are no plain chain (skip connections, branches, code between them): product is what is left of the last "
            "layer's ‖dL/d output‖, not the product of the gains."
        )
    if shown.kept:
        total = sum(shown.kept.values(), Kept())
        note = f"Forward keeps {_bytes(total.activations)} for backward"
        note += f", which also reads {_bytes(total.parameters)} of parameters again" if total.parameters else ""
        outside = {name: kept.activations for name, kept in shown.kept.items() if not _is_link(shown, name) and kept.activations}
        if outside:
            listed = [f"{printable(name)} {_bytes(size)}" for name, size in list(outside.items())[:5]]
            more = [f"{len(outside) - 5} others"] if len(outside) > 5 else []
            note += f"; of it, code between the layers keeps: {', '.join(listed + more)}"
        if total.packed:
            note += f"; {total.packed} tensors are kept by saved-tensor hooks (checkpointing, offloading), whose size is not known"
        notes.append(f"{note}.")
    uncalled = [name for name, layer in shown.layers.items() if not layer.calls]
    if uncalled:
        notes.append(f"Not called as modules: {', '.join(map(printable, uncalled))}.")
    return notes


def _closed(call: Call) -> str:
    assert call.valve is not None
    passes = (
        ""
        if math.isnan(call.gain)
        else (f" Of a gradient of {_figure(call.grad_output_norm)} that arrives, {_figure(call.grad_input_norm)} passes.")
    )
    return (
        f"Closed: {printable(call.layer)} ({call.type}): {call.valve.closed:.0%} of its elements have |da/dz| < {CLOSED:g}.{passes}"
    )


def _is_chain(shown: Pass) -> bool:
    """Whether the gains multiply to the products, so that nothing but the layers themselves changes the gradient."""
    product = 1.0
    for call in reversed(shown.calls):
        if not math.isnan(call.gain) and not math.isnan(call.product):
            product *= call.gain
            if not math.isclose(product, call.product, rel_tol=ROUNDING):
                return False
    return True


def _is_link(shown: Pass, name: str) -> bool:
    return name in shown.layers and not any(call.encloses for call in shown.layers[name].calls)


def _figure(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4g}"


def _share(value: float) -> str:
    if math.isnan(value):
        return ""
    if value in (0, 1):
        return f"{value:.0%}"
    return f"{value:.1%}" if value >= SMALLEST_SHARE else f"<{SMALLEST_SHARE:.1%}"


def _bytes(size: int) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size} B"
