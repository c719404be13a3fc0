"""A run as a table for people: every layer with its newest figures and its status."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from types import MappingProxyType

from gradwatch import moments, names, statistics
from gradwatch.history import History
from gradwatch.incidents import group, lasts, tell
from gradwatch.names import printable
from gradwatch.records import Finding, Incident, Record

RECORDS = 8
"""Full records that are searched for the figures of a layer: each of several optimizers has its own."""

COLUMNS = ("layer", "type", "activation rms", "dL/da rms", "dL/dW rms", "update ratio", "status")


def table(history: History, findings: Sequence[Finding]) -> list[tuple[str, ...]]:
    """One row for each layer, under ``COLUMNS``, in forward order; from the newest records that sampled activations.

    Where none is kept, the newest record has to do.
    """
    if not len(history):
        return []
    newest = history[-1].step, next(reversed(history.full_steps), history[-1].step)
    records = [record for record in reversed(list(history)) if record.full][:RECORDS] or [history[-1]]
    figures: dict[tuple[str, str], float] = {}
    layers: dict[str, str] = {}
    owners: dict[str, str] = {}
    for record in records:  # from the newest on; of several optimizers each has its own
        figures = _figures(record) | figures
        layers |= {layer: kind for layer, kind in _layers(record).items() if layer not in layers}
        owners |= {site.layer: site.owner for site in record.sites}
    return [
        (
            printable(layer),
            printable(kind),
            *(_number(figures.get((layer, column))) for column in COLUMNS[2:6]),
            _status([finding for finding in findings if owners.get(finding.layer, finding.layer) == layer], findings, newest),
        )
        for layer, kind in layers.items()
    ]


def render(
    history: History,
    findings: Sequence[Finding],
    unseen: Mapping[str, str] = MappingProxyType({}),
    remarks: Sequence[str] = (),
) -> str:
    """The table, what was found, what could not be observed (layer → why), and what else there is to say, as plain text."""
    rows = table(history, findings)
    if not rows:
        return "nothing recorded yet: a record closes at each optimizer step, or at watch.step()"
    lines = [*aligned([COLUMNS, *rows], figures=range(2, 6)), "", f"{history!r}"]
    lines += [tell(incident) for incident in group(findings, history.full_steps)] or ["nothing found"]
    if not len(history.losses()[0]):
        lines.append("no loss was told, so that loss_stagnant, loss_unstable and update_ratio were not judged: watch.loss(value)")
    for reason in dict.fromkeys(unseen.values()):
        layers = [printable(layer) for layer, why in unseen.items() if why == reason]
        lines.append(f"not observed ({reason}): {', '.join(layers)}")
    lines += remarks
    return "\n".join(lines)


def aligned(rows: Sequence[Sequence[str]], figures: Container[int]) -> list[str]:
    """Lines of a table whose first row is its head.

    Args:
        rows: All of one length.
        figures: Columns that end at the same place; the others begin there.
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if column in figures else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [rows[0], tuple("─" * width for width in widths), *rows[1:]]
    ]


def describe(finding: Finding) -> str:
    """A finding in two lines: what was seen, and what to try."""
    return tell(Incident(finding))


def _layers(record: Record) -> dict[str, str]:
    """Layer → type, in forward order; a parameter counts for the layer that owns it."""
    layers: dict[str, str] = {}
    for site in record.sites:
        layers.setdefault(site.owner, site.type)
    return layers


def _figures(record: Record) -> dict[tuple[str, str], float]:
    """(layer, column) → figure; of several parameters the largest one stands for the layer."""
    derived = statistics.derive(record.sites, record.rows)
    figures: dict[tuple[str, str], float] = {}
    size: dict[tuple[str, str], float] = {}
    for index, site in enumerate(record.sites):
        if record.rows[index, moments.COUNT] == 0:
            continue
        layer, column, value = site.layer, None, float(derived["rms"][index])
        if site.tensor == "activation":
            column = "activation rms"
        elif site.tensor == "activation_grad":
            column = "dL/da rms"
        elif site.tensor in ("parameter_grad", "update"):
            layer = names.owner(site.layer)
            column = "dL/dW rms" if site.tensor == "parameter_grad" else "update ratio"
            value = value if site.tensor == "parameter_grad" else float(derived["update_ratio"][index])
        count = math.prod(site.shape)
        if column is not None and count > size.get((layer, column), -1):
            figures[layer, column], size[layer, column] = value, count
    return figures


def _status(own: Sequence[Finding], every: Sequence[Finding], newest: tuple[int, int]) -> str:
    """What was found at a layer; it is called ok only while nothing in the run is wrong: a fault has one name and many victims."""
    said = (f"{finding.kind}{'' if lasts(finding, *newest) else ' (over)'}" for finding in own)
    return printable(", ".join(said)) or ("–" if any(lasts(finding, *newest) for finding in every) else "ok")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2e}"
