"""Two runs side by side, as text: the same layers, what they differ by in powers of ten, and what was found in each."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from gradwatch.history import History
from gradwatch.incidents import group, tell
from gradwatch.names import printable
from gradwatch.report.recorded import of_history
from gradwatch.summary import aligned
from gradwatch.tensorboard_plugin import cells, pooling
from gradwatch.tensorboard_plugin.recorded import Run, merged
from gradwatch.tensorboard_plugin.shown import SHOWN, Shown

COMPARED = tuple(SHOWN[name] for name in ("gradient", "activation", "activation_grad", "update_ratio"))
"""What is compared of each layer: its median over the records, so that one spike, or the length of a run, tells nothing."""

HEADS = ("dL/dW rms", "activation rms", "dL/da rms", "update ratio")

WORDS = {cells.ABSENT: "–", cells.NAN: "NaN", cells.INF: "inf", cells.ZERO: "0"}

SAID = 0.5
"""Decades, a factor of 3, from which on a difference is worth a sentence: batches and seeds alone make smaller ones."""


def compare(first: History, second: History, names: tuple[str, str] = ("A", "B")) -> str:
    """Compares two runs layer by layer.

    Args:
        first: A run.
        second: Another one; its layers are those of the same names.
        names: What the runs are called.

    Returns:
        A table with a row for each layer: both gradients, and for each statistic the difference of the second run from the first
        in decades (powers of ten) of medians over the records; and what was found in each run.
    """
    called = tuple(map(printable, names))
    runs = of_history(first), of_history(second)
    middles = [{entry.id: _medians(run, entry) for entry in COMPARED} for run in runs]
    types = [{layer.name: layer.type for layer in run.layers} for run in runs]
    layers = merged([[layer.name for layer in run.layers] for run in runs])
    head = ["layer", "type", *(f"{HEADS[0]} {name}" for name in called), *(f"Δ {name}" for name in HEADS), "only in"]
    rows = [
        [
            printable(layer),
            printable("/".join(dict.fromkeys(of[layer] for of in types if layer in of))),
            *(_text(of[COMPARED[0].id].get(layer)) for of in middles),
            *(_signed(_decades(*(of[entry.id].get(layer) for of in middles))) for entry in COMPARED),
            "" if all(layer in of for of in types) else called[0] if layer in types[0] else called[1],
        ]
        for layer in layers
    ]
    lines = [] if not rows else [*aligned([head, *rows], figures=range(2, 2 + len(called) + len(HEADS))), ""]
    lines.append(f"Δ: {called[1]} over {called[0]}, in decades (+1: ten times as large), of medians over the records")
    lines += _largest(layers, middles, called[1])
    for name, history in zip(called, (first, second), strict=True):
        lines += ["", f"{name}: {history!r}{_loss(history)}"]
        lines += [tell(incident) for incident in group(history.findings, history.full_steps)] or ["nothing found"]
    return "\n".join(lines)


_Cell = tuple[float, int]
"""A number, and what it is: one of the constants of ``cells``."""


def _medians(run: Run, entry: Shown) -> dict[str, _Cell]:
    """Layer → the median of what was recorded, with NaN above every number and zero below."""
    found: dict[str, _Cell] = {}
    columns: dict[int, list[cells.Codes]] = {}
    for part in pooling.parts(run, entry, pooling.stand_ins(run, entry)):
        for index, row in enumerate(part.rows.tolist()):
            codes = part.codes[:, index]
            columns.setdefault(row, []).append(codes[cells.recorded(codes)])
    for row, pieces in columns.items():
        ordered = np.sort(np.concatenate(pieces))
        if len(ordered):
            value, flag = entry.decode(ordered[len(ordered) // 2])
            found[run.layers[row].name] = float(value), int(flag)
    return found


def _text(cell: _Cell | None) -> str:
    value, flag = cell or (0.0, cells.ABSENT)
    return WORDS.get(flag) or f"{value:.2e}"


def _decades(one: _Cell | None, other: _Cell | None) -> float | None:
    if one is None or other is None or one[1] != cells.VALUE or other[1] != cells.VALUE:
        return None
    return math.log10(other[0] / one[0])


def _signed(decades: float | None) -> str:
    return "–" if decades is None else f"{decades:+.2f}"


def _largest(layers: list[str], middles: list[dict[str, dict[str, _Cell]]], second: str) -> Iterator[str]:
    """The largest difference of each statistic, where it is one."""
    for entry, head in zip(COMPARED, HEADS, strict=True):
        found = {layer: _decades(*(of[entry.id].get(layer) for of in middles)) for layer in layers}
        known = {layer: decades for layer, decades in found.items() if decades is not None}
        layer = max(known, key=lambda name: abs(known[name]), default=None)
        if layer is not None and abs(known[layer]) >= SAID:
            side = "larger" if known[layer] > 0 else "smaller"
            yield f"{head}: at {printable(layer)} {10 ** abs(known[layer]):.3g} times {side} in {second}"


def _loss(history: History) -> str:
    steps, losses = history.losses()
    return f", loss {losses[0]:.4g} → {losses[-1]:.4g}" if len(steps) else ""
