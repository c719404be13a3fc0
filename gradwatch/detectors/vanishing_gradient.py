"""The gradient dies on the way back: a layer gets a vanishing share of what the layers behind it get.

What it is mistaken for: a converged run (every gradient shrinks, the profile over depth does not); biases before a normalisation
(zero by construction: only matrices are compared); a zero-initialised residual branch (small, but waking up); embeddings (most
rows rest); a small gradient under Adam, which divides it away, so that a layer that still moves is not starved; the other network
of a GAN (each optimizer's step is a record of its own).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradwatch import names
from gradwatch.detectors.base import Example, Judgement, geometric
from gradwatch.history import History
from gradwatch.records import Finding
from gradwatch.trends import RECENT, Counts, Flags, Trends, matrices

ADVICE = (
    "Every activation on the way multiplies the gradient by its derivative, for a sigmoid at most 1/4. Use an activation of the "
    "ReLU family with He initialisation (He et al. 2015); for tanh and sigmoid Xavier initialisation (Glorot & Bengio 2010); "
    "normalisation layers (Ioffe & Szegedy 2015) and residual connections (He et al. 2016) keep a way open past any depth."
)


@dataclass(frozen=True)
class VanishingGradient(Judgement):
    """The gradient rms of a matrix is a tiny share of the largest behind it, does not rise, and the net does not learn.

    Attributes:
        share: A matrix's gradient rms over the largest between it and the loss, dimensionless. In the labelled corpus healthy nets
            stay above 1e-2 (56 runs) and vanishing ones lie at 5e-7 to 9e-6; the middle of the gap in log units is 3e-4.
        outputs: rms of a layer's output gradient over that of the last layer, dimensionless; healthy nets lie above 0.04 (19 of 20;
            zero-initialised branches start at 0 and rise), vanishing ones at 6e-17 to 5e-6. It decides where the last layer has
            fitted the mean, so that the gradients of all weights are rounding noise and say nothing of depth.
        worse: Loss over the loss at the start above which the run is blowing up, and a small gradient is the least of it.
        stale: Steps since the last full record, beyond which a single one says nothing about an output: the default cadence.
        rise: A gradient that grew to this many times its usual level is waking up.
        woken: So is an output's, in the first full records, whose share of the last layer's has grown to this many times what it
            was at the start: a branch that is scaled by 1e-6 (layer scale) gains four powers of ten in ten steps.
        confirm: 20 steps: the first steps of a net, until its last layer fits the mean, look alike in sick and healthy nets.
    """

    confirm: int = 20
    share: float = 3e-4
    outputs: float = 1e-5
    worse: float = 2.0
    stale: int = 10
    rise: float = 2.0
    woken: float = 10.0

    WIDER: ClassVar = {"share": 0.5, "outputs": 0.5}
    EXAMPLES: ClassVar = {
        "healthy: all gradients shrink together": Example(
            {
                ("a.weight", "parameter_grad"): geometric(1.0, 0.8, 60),
                ("b.weight", "parameter_grad"): geometric(3.0, 0.8, 60),
            },
            losses=geometric(1.0, 0.8, 60),
        ),
        "healthy: a branch that wakes up": Example(
            {("a.weight", "parameter_grad"): geometric(1e-9, 1.5, 60), ("b.weight", "parameter_grad"): [1.0] * 60},
            losses=[1.0] * 60,
        ),
        "sick: noise in every weight, and depth in the outputs": Example(
            {
                ("a.weight", "parameter_grad"): [1e-9] * 40,
                ("b.weight", "parameter_grad"): [1e-9] * 40,
                ("a", "activation_grad"): [1e-11] * 40,
                ("b", "activation_grad"): [1e-2] * 40,
            },
            losses=[1.39] * 40,
        ),
        "sick: a sigmoid stack": Example(
            {
                (f"{depth}.weight", "parameter_grad"): [value * (1 + 0.1 * (step % 3)) for step in range(60)]
                for depth, value in enumerate(geometric(1e-7, 8.0, 8))
            },
            losses=[2.3] * 60,
        ),
    }

    def __call__(self, history: History) -> Iterator[Finding]:
        """Yields the most starved layer, where the newest record shows one."""
        losses = history.trends.losses
        if not losses.learning and not losses.present > losses.times(self.worse):
            starved = self._starved_matrix(history) or self._starved_output(history)
            if starved is not None:
                yield starved

    def _starved_matrix(self, history: History) -> Finding | None:
        record, trends = history[-1], history.trends
        compared = matrices(record.sites)
        if len(compared) < 2:  # a share needs a matrix to be a share of
            return None
        where = trends.where(record.sites)[compared]
        level = trends.level[where]
        if level.min() >= level.max() + np.log10(self.share):  # as a rule they are all alike
            return None
        flowing = np.isfinite(level)
        # A gradient can only be lost on its way: each matrix is measured against those that the way leads through before it.
        behind = np.maximum.accumulate(np.where(flowing, level, -np.inf)[::-1])[::-1]
        starved = flowing & (level < behind + np.log10(self.share)) & ~self._rises(trends, where)
        if starved.any() and trends.losses.learning is None:
            starved &= self._resting(history, compared)
        if not starved.any():
            return None
        # The way back from the loss: the gradient dies where it first falls under the bound and stays there.
        worst = int(np.argmin(np.where(starved, level, np.inf)))
        dies = max(int(index) for index in np.flatnonzero(starved) if starved[worst : index + 1].all() or index == worst)
        first, where_it_dies = (names.owner(record.sites[compared[index]].layer) for index in (worst, dies))
        top = float(behind[worst])
        share, count = float(10 ** (level[worst] - top)), int(starved.sum())
        return Finding(
            "vanishing_gradient",
            first,
            record.step,
            record.step,
            "critical",
            {
                "share": share,
                "gradient_rms": float(10 ** level[worst]),
                "largest_gradient_rms": float(10**top),
                "starved_matrices": count,
            },
            f"the gradient of {first} is {share:.1e} of the largest behind it; on the way back from the loss it dies at "
            f"{where_it_dies}, and {count} of {len(compared)} weight matrices are starved",
            ADVICE,
        )

    def _starved_output(self, history: History) -> Finding | None:
        trends = history.trends
        if len(trends.outputs) < 2 or trends.losses.learning is None:  # weights alone tell without a loss
            return None
        # From the last full records: between them no output's gradient is known.
        level = trends.recent[trends.outputs]
        if level.min() >= level.max() + np.log10(self.outputs):
            return None
        flowing = np.isfinite(level)
        if history[-1].step - trends.full_step > self.stale:  # one record is one batch, and it tells of now no more
            flowing &= trends.seen[trends.outputs] > 1
        if not flowing.any():
            return None
        final = np.flatnonzero(flowing)[-1]
        last, start = level[final], trends.start[trends.outputs]
        with np.errstate(invalid="ignore"):  # gradients of exactly zero at the start have no share of each other
            woken = (level - last > start - start[final] + np.log10(self.woken)) & (trends.seen[trends.outputs] <= RECENT)
        starved = flowing & (level < last + np.log10(self.outputs)) & ~self._rises(trends, trends.outputs) & ~woken
        if not starved.any():
            return None
        worst = int(np.argmin(np.where(starved, level, np.inf)))
        layer, share, step = trends.sites[trends.outputs[worst]].layer, float(10 ** (level[worst] - last)), history[-1].step
        return Finding(
            "vanishing_gradient",
            layer,
            step,
            step,
            "critical",
            {"share": share, "gradient_rms": float(10 ** level[worst]), "starved_outputs": int(starved.sum())},
            f"on its way back the gradient falls to {share:.1e} of what the last layer gets, at the output of {layer}",
            ADVICE,
        )

    def _rises(self, trends: Trends, where: Counts) -> Flags:
        return np.asarray(trends.recent[where] > trends.usual[where] + np.log10(self.rise))

    @staticmethod
    def _resting(history: History, compared: Counts) -> np.ndarray:
        """Matrices whose last known update is a tiny share of the largest: where no loss is known, the weights tell."""
        record, trends = history[-1], history.trends
        moves = {site.layer: trends.recent[index] for index, site in enumerate(trends.sites) if site.tensor == "update"}
        moved = np.array([moves.get(record.sites[index].layer, np.nan) for index in compared])
        if np.isnan(moved).all():
            return np.zeros(len(compared), bool)
        return np.asarray(moved < np.nanmax(moved) - 3)
