"""The picture of a pass: the gradient's magnitude against depth, and the valves that it has to pass."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gradwatch.capture.valves import CLOSED, MOSTLY_CLOSED
from gradwatch.names import printable
from gradwatch.trace.passes import Call, Pass

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GRADIENT, OPEN, SHUT = "#0072B2", "#009E73", "#D55E00"
"""Blue, green and vermilion of Okabe and Ito's palette, which colour-blind people tell apart; shapes differ as well."""

MOST_LABELS = 40
"""Layers that are named along the axis; of more only every k-th is."""

LONGEST_NAME = 26
"""Characters of a name along the axis; of a longer one only the end is shown, without the type."""


def draw(shown: Pass, ax: Axes | None) -> Axes:
    """Draws a pass; see ``Trace.plot``."""
    try:
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise ImportError('trace.plot() needs matplotlib, which is not installed: pip install "gradwatch[demo]"') from error
    calls = [call for call in shown.calls if not call.encloses and not math.isnan(call.grad_output_norm)]
    if ax is None:
        _, ax = plt.subplots(figsize=(max(6.4, min(18.0, 0.45 * len(calls) + 2)), 5.4), layout="constrained")
    norms = [call.grad_output_norm for call in calls]
    passing = [norm for norm in norms if norm > 0]
    # A gradient of exactly 0 has no place on a logarithmic axis: it is drawn on a line of its own, below all others.
    floor = min(passing, default=1.0) / 30
    ax.set_yscale("log")
    ax.plot(range(len(calls)), [norm or floor for norm in norms], color=GRADIENT, linewidth=1.5, zorder=1)
    _scatter(ax, calls, floor)
    if len(passing) < len(norms):
        ax.axhline(floor, color="0.6", linewidth=0.8, linestyle=":", zorder=0)
        ax.annotate("exactly 0", (1, floor), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="0.35", fontsize=9)
    step = math.ceil(len(calls) / MOST_LABELS) if calls else 1
    ax.set_xticks(range(0, len(calls), step), [_name(shown, call) for call in calls[::step]], rotation=90, fontsize=9)
    ax.set_xlabel("depth: layers in forward order →   (backward runs ←)")
    ax.set_ylabel("‖dL/d output‖")
    ax.set_title("How much of the error reaches each layer")
    ax.margins(y=0.12)
    ax.grid(axis="y", alpha=0.3)
    ax.legend(loc="best", fontsize=9)
    return ax


def _scatter(ax: Axes, calls: list[Call], floor: float) -> None:
    kinds = {
        "layer": ("o", GRADIENT, 28),
        "activation, with its closed share": ("^", OPEN, 64),
        f"closed activation: |da/dz| < {CLOSED:g} in over {MOSTLY_CLOSED:.0%} of it": ("X", SHUT, 110),
    }
    for number, (label, (marker, color, area)) in enumerate(kinds.items()):
        places = [place for place, call in enumerate(calls) if _kind(call) == number]
        if places:
            norms = [calls[place].grad_output_norm for place in places]
            filling = [color if norm else "white" for norm in norms]  # hollow: exactly 0
            heights = [norm or floor for norm in norms]
            ax.scatter(places, heights, marker=marker, s=area, facecolors=filling, edgecolors=color, zorder=2)
            ax.scatter([], [], marker=marker, s=area, color=color, label=label)
    for place, call in enumerate(calls):
        if call.valve is not None and call.valve.closed > 0:
            ax.annotate(
                f"{call.valve.closed:.0%}",
                (place, call.grad_output_norm or floor),
                xytext=(0, 9),
                textcoords="offset points",
                ha="center",
                color=SHUT if _kind(call) == 2 else "0.35",
                fontsize=8,
            )


def _kind(call: Call) -> int:
    if call.valve is None:
        return 0
    return 2 if call.valve.closed > MOSTLY_CLOSED else 1


def _name(shown: Pass, call: Call) -> str:
    which = f"[{call.index}]" if len(shown.layers[call.layer].calls) > 1 else ""
    name = f"{printable(call.layer)}{which}"
    whole = f"{name} {call.type}"
    return whole if len(whole) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}"
