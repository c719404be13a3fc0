"""What the page can show: one table of statistics of tensors, the ones that matter first, and how to compute a block of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gradwatch.records import OF_PARAMETERS, TENSORS
from gradwatch.statistics import RATIOS, STATISTICS, Values
from gradwatch.tensorboard_plugin import cells
from gradwatch.tensorboard_plugin.recorded import Array, Block, Steps

Scale = Literal["log", "share", "linear"]


@dataclass(frozen=True)
class Shown:
    """A statistic of a tensor, or a ratio of two, as the page names it.

    Attributes:
        id: In links and requests.
        title: For people.
        tensor: One of ``records.TENSORS``.
        statistic: A name of ``statistics.STATISTICS`` or ``statistics.RATIOS``.
        describe: A sentence.
        good: The usual range, dimensionless.
    """

    id: str
    title: str
    tensor: str
    statistic: str
    describe: str
    good: tuple[float, float] | None = None

    @property
    def unit(self) -> str:
        """As in ``statistics.Statistic``."""
        return STATISTICS[self.statistic].unit if self.statistic in STATISTICS else "1"

    @property
    def scale(self) -> Scale:
        """``"log"``: a magnitude, a ratio or a count; ``"share"``: 0 to 1; ``"linear"``: it has a sign."""
        return "linear" if self.statistic in SIGNED else "share" if self.statistic in SHARES else "log"

    @property
    def of_parameters(self) -> bool:
        """Whether it is measured of parameters; else of layers."""
        return self.tensor in OF_PARAMETERS

    def decode(self, codes: cells.Codes) -> tuple[npt.NDArray[np.float32], cells.Flags]:
        """Numbers, and what each cell holds; an exact zero is something of its own where there is no logarithm of it."""
        return cells.decode(codes, signed=self.scale == "linear", zeros=self.scale == "log")

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        fields = {name: getattr(self, name) for name in ("id", "title", "unit", "tensor", "statistic", "scale", "describe", "good")}
        return fields | {"parameters": self.of_parameters}


SIGNED = frozenset({"mean", "min", "max"})
SHARES = frozenset({"zero_share", "closed", "dead", "alike"})

SYMBOLS = {
    "activation": "activation",
    "activation_grad": "dL/da",
    "input_grad": "dL/dz",
    "parameter": "weight",
    "parameter_grad": "dL/dW",
    "update": "update",
}
"""Tensors as the documentation writes them."""

FIRST = (
    Shown("gradient", "gradient rms (dL/dW)", "parameter_grad", "rms", "Size of a typical element of the weight's gradient."),
    Shown("activation", "activation rms", "activation", "rms", "Size of a typical element of the layer's output."),
    Shown(
        "activation_grad",
        "dL/da rms",
        "activation_grad",
        "rms",
        "Size of a typical element of the gradient that reaches the layer.",
    ),
    Shown("input_grad", "dL/dz rms", "input_grad", "rms", "Size of a typical element of the gradient that the layer passes on."),
    Shown("valve", "valve (dL/dz over dL/da)", "input_grad", "attenuation", RATIOS["attenuation"].meaning),
    # Healthy runs of the labelled corpus stay under 0.062 (detectors.UpdateRatio); a tenth of the usual 1e-3 is slow.
    Shown("update_ratio", "update ratio", "update", "update_ratio", RATIOS["update_ratio"].meaning, (1e-4, 0.06)),
    Shown("weight", "weight rms", "parameter", "rms", "Size of a typical element of the weight."),
    Shown("update", "update rms", "update", "rms", "Size of a typical element of what the step added to the weight."),
    Shown(
        "zeros", "zeros among activations", "activation", "zero_share", "Elements of the output that are exactly zero, as a share."
    ),
    Shown(
        "dead", "dead units", "activation", "dead", "Units that were silent for every input of the last full records, as a share."
    ),
    Shown(
        "dead_rows",
        "dead rows of dL/dW",
        "parameter_grad",
        "dead",
        "Units whose weights got exactly no gradient lately, as a share.",
    ),
    Shown("closed", "closed valves", "activation", "closed", "Elements whose local derivative is next to nothing, as a share."),
    Shown("nonfinite", "NaN and infinity in dL/dW", "parameter_grad", "nonfinite", "Elements of the gradient that are not finite."),
    Shown(
        "nonfinite_activation",
        "NaN and infinity in the activation",
        "activation",
        "nonfinite",
        "Elements of the output that are not finite.",
    ),
    Shown(
        "stale",
        "gradient left over",
        "parameter_grad",
        "stale",
        "What was in .grad before the step, over what was there at its end.",
    ),
    Shown("alike", "units that are copies", "parameter", "alike", "Rows of the weight that equal another row, as a share."),
    Shown("mean", "activation mean", "activation", "mean", "Mean of the layer's output."),
)
"""What has a name of its own, in the order of the list that people choose from."""

_ONLY_NUMBERS = frozenset({"count", "calls", "zeros"})
"""Statistics that say nothing as a picture, or the same as another one."""


def _rest() -> Iterator[Shown]:
    named = {(shown.tensor, shown.statistic) for shown in FIRST}
    for tensor in TENSORS:
        for name, entry in STATISTICS.items():
            if (tensor, name) not in named and name not in _ONLY_NUMBERS:
                doc = (entry.compute.__doc__ or "").partition(";")[0].rstrip(".").replace("``", "")
                title = f"{SYMBOLS[tensor]}: {name.replace('_', ' ')}"
                yield Shown(f"{tensor}.{name}", title, tensor, name, f"{doc}.")


SHOWN: dict[str, Shown] = {shown.id: shown for shown in (*FIRST, *_rest())}
"""Everything that can be shown, by id: whatever is added to the table of statistics is there as well."""


CHUNK = 2**18
"""Numbers that are computed together: what a core's cache holds of them, while whole columns of a large run are gigabytes."""


def places(block: Block, shown: Shown) -> dict[str, int]:
    """Layer or parameter → the position of its site in a block; of a ratio, where both tensors were observed."""
    at = block.places[shown.tensor]
    if shown.statistic in RATIOS:
        under = block.places[RATIOS[shown.statistic].under]
        return {name: index for name, index in at.items() if name in under}
    return at


def measured(block: Block, shown: Shown) -> bool:
    """Whether a block holds any number of it, as far as a sample tells."""
    if shown.id not in block.measured:
        of = list(places(block, shown))
        block.measured[shown.id] = bool(of) and bool(cells.recorded(sampled(block, shown, of)[1]).any())
    return block.measured[shown.id]


def codes(block: Block, shown: Shown, of: Sequence[str]) -> cells.Codes:
    """A block of a statistic.

    Args:
        block: It has the sites that are asked for.
        shown: The statistic.
        of: Layers or parameters.

    Returns:
        (records, len(of)), encoded by ``cells``.
    """
    column = cache(block.column)
    out = cells.empty(len(block.steps), len(of))
    records = max(1, CHUNK // max(1, len(of)))
    for start in range(0, len(block.steps), records):
        chunk = slice(start, start + records)
        out[chunk] = _codes(block, shown, of, column, chunk)
    return out


def sampled(block: Block, shown: Shown, of: Sequence[str]) -> tuple[Steps, cells.Codes]:
    """The same of some records, with their steps, (some,)."""
    return block.sample("rms")[0], _codes(block, shown, of, lambda name: block.sample(name)[1], slice(None))


def _codes(block: Block, shown: Shown, of: Sequence[str], read: Callable[[str], Array], records: slice) -> cells.Codes:
    at = block.places[shown.tensor]
    table = _Columns(read, records, [at[name] for name in of])
    if shown.statistic in RATIOS:
        under = block.places[RATIOS[shown.statistic].under]
        below = _Columns(read, records, [under[name] for name in of])
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            values = table.rms / below.rms
        # What is measured against an exact zero has no size; its infinity would be mistaken for one that training produced.
        known = table.seen(table.rms) & below.seen(below.rms) & (below.rms != 0)
        return cells.encode(values, known)
    values = STATISTICS[shown.statistic].compute(table)  # type: ignore[arg-type]  # it has the columns of Moments
    known = ~np.isnan(values)
    if not known.all() and STATISTICS[shown.statistic].unit == "tensor":
        # NaN stands for "not measured" as well; it was measured where the tensor itself was not finite.
        known |= table.seen(values) & ~np.isfinite(table.rms)
    return cells.encode(values, known, signed=shown.scale == "linear")


class _Columns:
    """Columns by name, (records, rows), read when a statistic asks for them."""

    def __init__(self, read: Callable[[str], Array], records: slice, rows: Sequence[int]) -> None:
        self._read = read
        self._records = records
        self._rows = np.array(rows, np.intp)
        self._kept: dict[str, Values] = {}

    def __getattr__(self, column: str) -> Values:
        if column not in self._kept:
            self._kept[column] = self._read(column)[self._records].take(self._rows, axis=1).astype(np.float64)
        return self._kept[column]

    def seen(self, values: Values) -> npt.NDArray[np.bool_]:
        """Where a tensor was observed, by one of its columns: a NaN is one that was measured, or nothing, or what was lost."""
        known = ~np.isnan(values)
        return known if known.all() else known | ((self.count > 0) & (self.nonfinite != 0))
