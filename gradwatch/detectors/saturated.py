"""A squashing activation works in its flat region: its local derivative is next to nothing, and the gradient ends there.

What it is mistaken for: a confident output. A sigmoid or a softmax at the end of a net that learns is saturated because the net
is right. It is therefore judged at the start, when nothing has been learnt, or where the net does not learn. ReLU and its kin are
closed for half of their inputs by design; their dead units are another kind.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradwatch import moments
from gradwatch.detectors.base import Example, FullRecords
from gradwatch.history import History
from gradwatch.records import Finding, Record

ONE_SIDED = frozenset(
    {
        "ReLU", "LeakyReLU", "PReLU", "RReLU", "ReLU6", "ELU", "CELU", "SELU", "GELU", "SiLU", "Mish", "Hardswish", "Softplus",
        "Threshold", "Hardshrink", "Softshrink", "Tanhshrink", "LogSigmoid", "GLU",
    }
)  # fmt: skip
"""Activations that are flat on one side by design: closed there, they are sparse."""

ADVICE = {
    "hidden": (
        "Bring the pre-activation down to about 1: normalise the input (pixels to 0…1, features to zero mean and unit variance), "
        "initialise with Xavier (Glorot & Bengio 2010), or put a normalisation layer before it. A ReLU-family activation does not "
        "saturate on the side where it is open."
    ),
    "softmax": "Scale the scores: attention by 1/√d (Vaswani et al. 2017); raise the temperature, or normalise queries and keys.",
    "sigmoid": (
        "If it is the output: targets outside 0…1 need a linear output; for probabilities leave the sigmoid out and use "
        "BCEWithLogitsLoss, whose gradient does not pass through it (PyTorch documentation of BCEWithLogitsLoss). If it is hidden: "
        "normalise its input and initialise with Xavier (Glorot & Bengio 2010), or use a ReLU-family activation."
    ),
}


@dataclass(frozen=True)
class Saturated(FullRecords):
    """Most elements of a squashing activation have a local derivative under 4 % of its peak.

    Attributes:
        start: Share of closed elements in the first records. Healthy nets start below 0.1, saturated ones at 0.96 and above; the
            bound is half way between a layer that passes half and one that passes nothing.
        later: Share later on, while the net does not learn.
        first: Steps that count as the start, up to the first full record behind them: at whatever cadence, two of them tell of it.
    """

    start: float = 0.6
    later: float = 0.75
    first: int = 10

    per_layer: ClassVar[bool] = True
    WIDER: ClassVar = {"start": 0.5, "later": 0.5}
    SHARES: ClassVar = frozenset({"start", "later"})
    EXAMPLES: ClassVar = {
        "healthy: a confident output of a net that learns": Example(
            {("out", "input_grad"): [0.1] * 40},
            losses=[0.9**step for step in range(40)],
            shares={("out", "closed"): [0.0] * 20 + [0.9] * 20},
            types={"out": "Sigmoid"},
        ),
        "sick: pixels from 0 to 255": Example(
            {("act", "input_grad"): [0.1] * 24},
            losses=[2.3] * 24,
            shares={("act", "closed"): [0.98] * 24},
            types={"act": "Sigmoid"},
        ),
    }

    def __call__(self, history: History) -> Iterator[Finding]:
        """Yields each saturated activation of the newest record."""
        record, trends = history[-1], history.trends
        early = trends.full_before - history.first_step < self.first
        if not early and trends.losses.learning is not False:
            return
        closed = record.rows[:, moments.CLOSED]
        flat = np.flatnonzero(closed >= (self.start if early else self.later))
        zeros = _zero_shares(record) if len(flat) else {}
        for index in flat:
            site = record.sites[index]
            # An output that is exactly zero is not flat at its ends but off, whatever the activation is called.
            share = float(closed[index])
            off = zeros.get(site.layer, 0.0) if site.type != "Softmax" else 0.0
            if _is_one_sided(site.type) or share - off < self.start:
                continue
            advice = ADVICE["softmax"] if site.type == "Softmax" else ADVICE["sigmoid" if site.type == "Sigmoid" else "hidden"]
            yield Finding(
                "saturated",
                site.layer,
                record.step,
                record.step,
                "critical",
                {"closed_share": share},
                f"{share:.0%} of the elements of {site.layer} ({site.type}) lie where it is flat, and almost no gradient passes",
                advice,
            )


def _is_one_sided(kind: str) -> bool:
    """Also those of other libraries: NewGELUActivation, QuickGELU, SquaredReLU."""
    return any(name.lower() in kind.lower() for name in ONE_SIDED)


def _zero_shares(record: Record) -> dict[str, float]:
    """Layer → the share of its outputs that are exactly zero."""
    return {
        site.layer: float(row[moments.ZEROS] / row[moments.COUNT])
        for site, row in zip(record.sites, record.rows, strict=True)
        if site.tensor == "activation" and row[moments.COUNT] > 0
    }
