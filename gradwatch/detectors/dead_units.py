"""Units that never open: whatever the input, their output is zero, and so is the gradient of their weights.

What it is mistaken for: natural sparsity. Half to three quarters of a ReLU's outputs are zero in a healthy net, but for another
input other units are silent. A unit is therefore judged over all inputs of several batches, per channel or feature, and it may
come back. Where activations are functions and no module shows them, the rows of a weight's gradient do; a recurrent layer has two
such matrices, and with a state of zero, as in sequences of one step, only one of them can.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradwatch import moments
from gradwatch.detectors.base import Example, FullRecords
from gradwatch.history import History
from gradwatch.moments import Array
from gradwatch.records import Finding, Record
from gradwatch.trends import Counts, Sites, per_sites

ADVICE = (
    "Lower the learning rate (one step too large pushes biases below every input; cs231n), start biases at zero and weights with "
    "He initialisation (He et al. 2015), centre the input, normalise before the activation, or use LeakyReLU, GELU or ELU, whose "
    "derivative is not zero (Maas et al. 2013; Lu et al. 2019, 'Dying ReLU and initialization')."
)


@dataclass(frozen=True)
class DeadUnits(FullRecords):
    """Most units of a layer are silent for every input of the last full records.

    Attributes:
        share: Dead units of all of a layer's. In the labelled corpus the worst layer of a healthy net reaches 0.56 (19 of 20 stay
            under 0.42) and sick ones 0.83 to 1.
        confirm: 2 full records, each of which looks back on two batches.
    """

    share: float = 0.75

    per_layer: ClassVar[bool] = True
    WIDER: ClassVar = {"share": 0.5}
    SHARES: ClassVar = frozenset({"share"})
    EXAMPLES: ClassVar = {
        "healthy: natural sparsity": Example({("relu", "activation"): [0.3] * 24}, shares={("relu", "dead"): [0.5, 0.4] * 12}),
        "healthy: an LSTM whose state is zero": Example(
            {
                ("lstm.weight_ih", "parameter_grad"): [0.3] * 24,
                ("lstm.weight_hh", "parameter_grad"): [0.0] * 24,
                ("out.weight", "parameter_grad"): [0.3] * 24,
            },
            shares={
                ("lstm.weight_ih", "dead"): [0.25] * 24,
                ("lstm.weight_hh", "dead"): [1.0] * 24,
                ("out.weight", "dead"): [0.0] * 24,
            },
            shapes={"lstm.weight_ih": (32, 4), "lstm.weight_hh": (32, 8)},
        ),
        "sick: a bias far below zero": Example({("relu", "activation"): [0.0] * 24}, shares={("relu", "dead"): [1.0] * 24}),
    }

    def __call__(self, history: History) -> Iterator[Finding]:
        """Yields each activation whose units are dead; where there is none, the layer whose gradient's rows are."""
        record = history[-1]
        dead = _in_every_matrix(record)
        sick = np.flatnonzero(dead >= self.share).tolist()
        if not sick:
            return
        found = [index for index in sick if record.sites[index].tensor == "activation"]
        if not found:
            rows = [index for index in sick if record.sites[index].tensor == "parameter_grad"]
            judged = [index for index, site in enumerate(record.sites) if site.tensor == "parameter_grad" and dead[index] >= 0]
            # Everything upstream of silent units is silent as well: the last layer in forward order is where it begins. Where
            # every matrix is silent, nothing reaches the net at all, which is another fault, or nothing is left to learn.
            found = rows[-1:] if len(rows) < len(judged) else []
        for index in found:
            site = record.sites[index]
            layer = site.owner
            share = float(dead[index])
            yield Finding(
                "dead_units",
                layer,
                record.step,
                record.step,
                "critical" if share > 0.99 else "warning",  # all of them: nothing passes at all
                {"dead_share": share},
                f"{share:.0%} of the units of {layer} were silent for every input of the last full records",
                ADVICE,
            )


def _in_every_matrix(record: Record) -> Array:
    """Share of dead units per site; of matrices with the same rows, such as an LSTM's two, the least: no more units are dead."""
    dead = record.rows[:, moments.DEAD]
    for together in _same_rows(record.sites):
        known = together[dead[together] >= 0]
        if len(known) > 1 and dead[known].max() > dead[known].min():
            dead = dead.copy()
            dead[known] = dead[known].min()
    return dead


@per_sites
def _same_rows(sites: Sites) -> list[Counts]:
    """The positions of the gradients of matrices of one layer that have as many rows, where there are several."""
    found: dict[tuple[str, int], list[int]] = {}
    for index, site in enumerate(sites):
        if site.tensor == "parameter_grad" and site.is_matrix:
            found.setdefault((site.owner, site.shape[0]), []).append(index)
    return [np.array(indices, np.int64) for indices in found.values() if len(indices) > 1]
