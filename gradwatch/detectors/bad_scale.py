"""Activations are orders of magnitude off, from the start or later on; or the units of a layer are copies of each other.

What it is mistaken for: a large value that a normalisation layer takes back at once; outputs that grow towards large targets while
the net learns; outputs of zero-initialised layers, which move with the first step; the small probabilities of a wide softmax; a
last layer that starts small, as its targets are or so that it begins with no opinion.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradwatch import moments, names
from gradwatch.detectors.base import Example, FullRecords, geometric
from gradwatch.history import History
from gradwatch.records import Finding, Record
from gradwatch.trends import Counts, Flags, Sites, gradients, per_sites

LARGE = (
    "Normalise the input and the targets (zero mean, unit variance; LeCun et al. 1998, 'Efficient BackProp'), initialise weights "
    "for the activation (He et al. 2015; Glorot & Bengio 2010), and put normalisation layers between layers that amplify."
)
SMALL = (
    "The signal fades from layer to layer: initialise weights for the activation (He et al. 2015; Glorot & Bengio 2010) instead of "
    "with a small constant spread, and check the input's scale."
)
ALIKE = (
    "Rows that are equal get equal gradients and stay equal: the layer is one unit, many times. Initialise its weights at random "
    "(He et al. 2015; Glorot & Bengio 2010), not with a constant."
)


@dataclass(frozen=True)
class BadScale(FullRecords):
    """An activation's rms is far from 1 at the start, or has grown far above its start while the net does not learn.

    Attributes:
        large: rms at the start, in units of a normalised input. Healthy nets start at up to 3.2 and sick ones from 8 to 1e5.
        small: The same downwards; healthy nets start above 0.04.
        later: rms later on; healthy nets stay under 83.
        growth: rms over its start.
        runaway: ``later`` and ``growth`` times this are out of bounds even where the loss falls: it may be of the wrong sign.
    """

    large: float = 15.0
    small: float = 1e-3
    later: float = 100.0
    growth: float = 30.0
    runaway: float = 10.0

    WIDER: ClassVar = {"large": 2.0, "small": 0.5, "later": 2.0, "growth": 2.0}
    EXAMPLES: ClassVar = {
        "healthy: grows while it learns": Example({("fc", "activation"): geometric(1.0, 1.2, 28)}, losses=geometric(9.0, 0.8, 28)),
        "healthy: taken back by a norm": Example(
            {("fc", "activation"): [80.0] * 24, ("norm", "activation"): [1.0] * 24}, types={"norm": "BatchNorm1d"}
        ),
        "sick: weights of unit variance": Example({(f"{i}", "activation"): [5.0**i] * 24 for i in range(1, 5)}),
    }

    def __call__(self, history: History) -> Iterator[Finding]:
        """Yields the first layer in forward order that is out of bounds."""
        record, trends = history[-1], history.trends
        outputs = _outputs(record.sites)
        if not len(outputs):
            return
        where = trends.where(record.sites)[outputs]
        level, start = trends.level[where], trends.start[where]
        lasting = np.isfinite(level) & np.isfinite(start)
        far = lasting & (np.minimum(level, start) > np.log10(self.large))
        faint = lasting & ~_tables(record.sites) & (np.maximum(level, start) < np.log10(self.small))
        with np.errstate(invalid="ignore"):
            grown = level - start
        slack = np.log10(self.runaway) if trends.losses.learning is not False else 0.0
        blown = lasting & (level > np.log10(self.later) + slack) & (grown > np.log10(self.growth) + slack)
        faint[-1] = False  # behind it no signal is left to fade
        if _is_offset(record, outputs[-1]):  # a bias that was set to the targets' mean is a good start
            far[-1] = False
        sick = np.flatnonzero(far | faint | blown)
        if not len(sick):
            return
        index = int(sick[0])
        layer, rms, first = record.sites[outputs[index]].layer, float(10 ** level[index]), float(10 ** start[index])
        yield Finding(
            "bad_scale",
            layer,
            record.step,
            record.step,
            "warning",
            {"activation_rms": rms, "activation_rms_at_start": first},
            f"the output of {layer} has an rms of {rms:.3g} ({first:.3g} at the start); {len(sick)} layers are out of scale",
            SMALL if faint[index] else LARGE,
        )


@dataclass(frozen=True)
class Symmetry(FullRecords):
    """Nearly all rows of a weight matrix are equal, though a gradient arrives.

    Attributes:
        alike: Share of rows that equal another one. Random rows: 0. Constant ones: 1. Half and half would be a design.
        confirm: 2 full records: zero-initialised rows differ after the first update.
    """

    alike: float = 0.875

    WIDER: ClassVar = {"alike": 0.5}
    SHARES: ClassVar = frozenset({"alike"})
    EXAMPLES: ClassVar = {
        "healthy: zero at first": Example(
            {("fc.weight", "parameter"): [0.0] + [0.1] * 23, ("fc.weight", "parameter_grad"): [1.0] * 24},
            shares={("fc.weight", "alike"): [1.0] + [0.0] * 23},
        ),
        "sick: a constant": Example(
            {("fc.weight", "parameter"): [0.1] * 24, ("fc.weight", "parameter_grad"): [1.0] * 24},
            shares={("fc.weight", "alike"): [1.0] * 24},
        ),
    }

    def __call__(self, history: History) -> Iterator[Finding]:
        """Yields the first such matrix in forward order."""
        record = history[-1]
        alike = record.rows[:, moments.ALIKE]
        equal = np.flatnonzero(alike >= self.alike)
        if not len(equal):
            return
        gradient = {record.sites[index].layer: record.rows[index, moments.RMS] for index in gradients(record.sites)}
        for index in equal:
            site = record.sites[index]
            if not gradient.get(site.layer, 0.0) > 0:
                continue
            layer = names.owner(site.layer)
            yield Finding(
                "bad_scale",
                layer,
                record.step,
                record.step,
                "critical",
                {"alike_share": float(alike[index])},
                f"{alike[index]:.0%} of the rows of {site.layer} are equal to each other and stay so",
                ALIKE,
            )
            return


OFFSET = 0.5
"""Standard deviation over rms of the last layer's output, under which its size is an offset and no spread."""


def _is_offset(record: Record, index: np.int64) -> bool:
    row = record.rows[index]
    return bool(abs(row[moments.MEAN]) > (1 - OFFSET**2) ** 0.5 * row[moments.RMS])


UNSCALED = ("Identity", "Dropout", "Softmax", "Flatten", "Unflatten")
"""Types whose output is no matter of weights: what passes through, and probabilities."""


@per_sites
def _tables(sites: Sites) -> Flags:
    """Which of ``_outputs`` are entries of a table, which may well be small: nothing was multiplied on the way to them."""
    return np.array(["Embedding" in sites[index].type for index in _outputs(sites)], bool)


@per_sites
def _outputs(sites: Sites) -> Counts:
    """The positions of the outputs that nothing takes back, in forward order."""
    outputs = [index for index, site in enumerate(sites) if site.tensor == "activation"]
    following = [sites[index].type for index in outputs[1:]] + [""]
    found = [
        index
        for index, after in zip(outputs, following, strict=False)  # without outputs nothing follows
        if "Norm" not in after and not sites[index].type.startswith(UNSCALED)
    ]
    return np.array(found, np.int64)
