"""The gradient on its way back from the loss, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, NullLocator

from gradwatch.demo.training import Run

STYLES = (("#0072B2", "o"), ("#007A5A", "s"), ("#C44E00", "^"))
"""Colour and marker of each run: blue, green and vermilion after Okabe & Ito (2008), which every kind of colour vision tells apart,
dark enough for text on white."""

INK, FAINT, GRID = "#1F2328", "#656D76", "#E4E7EB"

FLOOR, CEILING = 1e-10, 1e6
"""The ends of the axis; an explosion leaves it within a step or two."""

LAST = 4
"""Steps of a breaking run that are drawn; earlier ones lie close together."""


def draw(runs: Sequence[Run], path: Path) -> None:
    """Draws the rms of each weight matrix's gradient against depth, as a PNG.

    A run that lasts is one line, its median step, with a band from 10 % to 90 % of its steps. A run that breaks is one thin line
    for each of its last steps.

    Args:
        runs: At most one for each of ``STYLES``, of networks with the same layers.
        path: The file; one that exists is replaced.
    """
    figure = Figure(figsize=(9, 5.6), dpi=200, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.075, 0.135, 0.86, 0.635))
    layers, _ = runs[0].gradients()
    _frame(axes, layers)
    for run, (colour, marker) in zip(runs, STYLES, strict=False):
        if run.broke_at is None:
            _lasting(axes, run, colour, marker)
        else:
            _breaking(axes, run, colour, marker)
    figure.text(0.02, 0.938, "What each layer gets of the gradient", size=16, weight="bold", color=INK)
    how = f"rms of the weights' gradient, {len(layers)} layers deep · line: median over training, band: 10–90 % of steps"
    figure.text(0.02, 0.893, how, size=9.5, color=FAINT)
    figure.savefig(path)


def _frame(axes: Axes, layers: Sequence[str]) -> None:
    axes.set_yscale("log")
    axes.set_xlim(-0.3, len(layers) - 0.7)
    axes.set_ylim(FLOOR, CEILING)
    axes.set_xticks(range(len(layers)), layers)
    axes.yaxis.set_major_locator(LogLocator(numticks=9))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9.5, labelcolor=FAINT, pad=6)
    axes.spines[:].set_visible(False)
    # The loss is at the right, where forward ends; the gradient runs to the left.
    way = {"arrowstyle": "<|-", "color": FAINT, "linewidth": 1.2}
    axes.annotate("", (0.94, -0.135), (0.055, -0.135), "axes fraction", "axes fraction", arrowprops=way)
    below: dict[str, Any] = {"transform": axes.transAxes, "va": "center", "size": 9.5, "color": FAINT}
    axes.text(0, -0.135, "input", ha="left", **below)
    axes.text(1, -0.135, "loss", ha="right", **below)
    box = {"facecolor": "white", "edgecolor": "none", "pad": 5}
    axes.text(0.5, -0.135, "way of the gradient", ha="center", bbox=box, **below)


def _lasting(axes: Axes, run: Run, colour: str, marker: str) -> None:
    layers, rms = run.gradients()
    low, middle, high = np.quantile(rms, [0.1, 0.5, 0.9], axis=0)
    depth = np.arange(len(layers))
    axes.fill_between(depth, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(depth, middle, color=colour, linewidth=2.2, marker=marker, markersize=6)
    if run.dies_at is None:
        _label(axes, (0, low[0] / 4), run, f"; {100 * run.accuracy:.0f} % of test images right", colour)
        return
    at = layers.index(run.dies_at)
    starved = depth <= at
    axes.plot(depth[starved], middle[starved], marker, color=colour, markersize=6, markerfacecolor="white", markeredgewidth=1.6)
    axes.plot(at, middle[at], "o", color=colour, markersize=15, fillstyle="none", markeredgewidth=1.8)
    spot = (at + 0.6, middle[at] / 30)
    line = {"arrowstyle": "-", "color": colour, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 8}
    axes.annotate("", (at, middle[at]), (spot[0] - 0.08, spot[1] / 1.4), arrowprops=line)
    _label(axes, spot, run, f": it dies at {run.dies_at}", colour)


def _breaking(axes: Axes, run: Run, colour: str, marker: str) -> None:
    layers, rms = run.gradients()
    right = len(layers) - 1
    step_text: dict[str, Any] = {"color": colour, "size": 9, "va": "center"}
    beyond = []
    for record, values in list(zip(run.finite, rms, strict=True))[-LAST:]:
        inside = np.where(values < CEILING, values, np.nan)
        axes.plot(inside, color=colour, linewidth=1.2, marker=marker, markersize=4)
        if np.isfinite(inside[right]):
            axes.text(right + 0.15, inside[right], f"step {record.step}", **step_text)
        else:
            beyond.append(record.step)
    if beyond:
        up = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.2}
        axes.annotate("", (right, CEILING * 8), (right, CEILING / 3), annotation_clip=False, arrowprops=up)
        axes.text(right + 0.15, CEILING * 1.6, f"step {beyond[0]}", **step_text)
    _label(axes, (0, CEILING * 40), run, f"; the loss is not finite at step {run.broke_at}", colour)


def _label(axes: Axes, at: tuple[float, float], run: Run, outcome: str, colour: str) -> None:
    found = run.verdict.kind.replace("_", " ") if run.verdict else "nothing found"
    halo = [withStroke(linewidth=4, foreground="white")]
    style: dict[str, Any] = {"color": colour, "va": "top", "annotation_clip": False, "path_effects": halo}
    axes.annotate(run.plan.title, at, size=12, weight="bold", **style)
    axes.annotate(found + outcome, at, (0, -17), textcoords="offset points", size=10, **style)
