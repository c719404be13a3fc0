"""Gradients are not cleared between optimizer steps: each one contains its predecessors.

What it is mistaken for: gradient accumulation, which adds up micro-batches within one step and clears afterwards; a
discriminator's gradients from the generator's pass, which are cleared before its own. What counts is what ``.grad`` holds when the
first backward pass of a step begins, of the parameters that this step is about: it should be nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradwatch import moments, names
from gradwatch.detectors.base import Example, FullRecords
from gradwatch.history import History
from gradwatch.records import Finding

ADVICE = (
    "Call optimizer.zero_grad() once for each optimizer.step(), before backward() or after the step. If micro-batches are "
    "accumulated, clear after each step that uses them. (PyTorch accumulates gradients by design; torch.optim documentation.)"
)


@dataclass(frozen=True)
class StaleGradient(FullRecords):
    """Before a step's first backward pass, ``.grad`` still holds a good part of what it holds at the step.

    Attributes:
        left: What was left over what is there at the step, the median over the parameters, dimensionless. Cleared gradients leave
            exactly 0; uncleared ones between a half (two steps) and 1 (many).
        own: Distance from 1 within which a quotient tells of the step's own gradient: float32's rounding, some times over.
    """

    left: float = 0.1
    own: float = 1e-5

    WIDER: ClassVar = {"left": 2.0}
    EXAMPLES: ClassVar = {
        "healthy: cleared": Example({("fc.weight", "parameter_grad"): [1.0] * 24}, shares={("fc.weight", "stale"): [0.0] * 24}),
        "sick: never cleared": Example(
            {("fc.weight", "parameter_grad"): [1.0 + step for step in range(24)]},
            shares={("fc.weight", "stale"): [step / (step + 1) for step in range(24)]},
        ),
    }

    def __call__(self, history: History) -> Iterator[Finding]:
        """Yields the first layer, where the newest record's gradients contain older ones."""
        record = history[-1]
        stale = record.rows[:, moments.STALE]
        if not (stale >= self.left).any():  # as a rule, all were cleared
            return
        # A quotient of exactly 1 is this step's own gradient, of a parameter that is used after all that is observed.
        told = np.flatnonzero(np.isfinite(stale) & (np.abs(stale - 1) > self.own))
        if not len(told):
            return
        left = float(np.median(stale[told]))
        if left < self.left:
            return
        layer = names.owner(record.sites[told[int(np.argmax(stale[told] >= self.left))]].layer)
        yield Finding(
            "stale_gradient",
            layer,
            record.step,
            record.step,
            "critical",
            {"left_over": left, "parameters": len(told)},
            f"before a step's first backward pass .grad still held {left:.0%} of what it held at the step ({len(told)} parameters)",
            ADVICE,
        )
