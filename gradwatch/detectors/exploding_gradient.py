"""The gradient grows without bound: over steps while the loss gets worse, or over depth within one backward pass.

What it is mistaken for: the large first gradients of a net that then learns; a growing gradient while the loss falls (healthy
runs grow four-thousandfold so); pre-norm transformers, whose early layers get several times the gradient of late ones; a sum
instead of a mean over the batch (nothing absolute is compared); a new stage of a curriculum, which brings back a gradient that the
stage before had used up; heads side by side, and a fixed layer that turns the output into the units of the targets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradwatch import names
from gradwatch.detectors.base import Example, FullRecords, Judgement, geometric
from gradwatch.history import History
from gradwatch.records import Finding
from gradwatch.trends import CALM_GROWTH, Counts, Sites, Trends, Values, gradients, matrices, output_gradients, trained_layers

OVER_STEPS = (
    "Lower the learning rate or warm it up, and clip the gradient's norm (torch.nn.utils.clip_grad_norm_; Pascanu et al. 2013). "
    "Check for targets and inputs that are not normalised."
)
OVER_DEPTH = (
    "Each layer multiplies the gradient by its weights: initialise them for the activation (He et al. 2015, Glorot & Bengio 2010), "
    "recurrent ones orthogonally with gain 1 (Le et al. 2015), normalise between layers, and clip the gradient's norm."
)


@dataclass(frozen=True)
class ExplodingGradient(Judgement):
    """A gradient far above its own past while the loss is worse than at the start.

    Attributes:
        growth: A gradient's rms over its usual level, dimensionless. Sick runs reach 2e5 and more; healthy ones grow by up to 350
            over a whole run, but not against the last 20 steps, and not while the loss is above its start.
        worse: The present loss over the first: an explosion worth the name has undone the training.
        blind: ``growth`` where no loss is known.
        beyond: The gradient's rms over that of its first record. Explosions took it to 59 times that and more within two steps; a
            stage of a curriculum that came after a solved one brought back 16 times.
        confirm: 2 records: growth is multiplicative, and waiting longer means finding NaN instead.
    """

    confirm: int = 2
    growth: float = 100.0
    worse: float = 2.0
    blind: float = 1e4
    beyond: float = 30.0

    breaks: ClassVar[bool] = True
    WIDER: ClassVar = {"growth": 2.0, "worse": 1.25, "blind": 2.0, "beyond": 2.0}
    EXAMPLES: ClassVar = {
        "healthy: large at first": Example({("a.weight", "parameter_grad"): geometric(1e4, 0.7, 30)}, losses=geometric(9, 0.9, 30)),
        "healthy: grows while the loss falls": Example(
            {("a.weight", "parameter_grad"): geometric(1e-3, 1.6, 30)}, losses=geometric(9, 0.9, 30)
        ),
        "healthy: one odd batch": Example(
            {("a.weight", "parameter_grad"): [1.0] * 15 + [500.0] + [1.0] * 15}, losses=[1.0] * 15 + [50.0] + [1.0] * 15
        ),
        "healthy: a new task after a solved one": Example(
            {("a.weight", "parameter_grad"): [*geometric(1.0, 0.75, 25), *geometric(3.0, 0.9, 20)]},
            losses=[*geometric(1.6, 0.75, 25), *geometric(5.0, 0.8, 20)],
        ),
        "sick: the learning rate is too large": Example(
            {("a.weight", "parameter_grad"): [1.0] * 10 + geometric(10.0, 10.0, 8)}, losses=[1.0] * 10 + geometric(4.0, 9.0, 8)
        ),
    }

    def ignores_calm(self, _trends: Trends) -> bool:
        """With the loss under its start no gradient is judged, and without a loss no calm one is large enough."""
        return self.worse >= 1 and self.blind >= CALM_GROWTH

    def __call__(self, history: History) -> Iterator[Finding]:
        """Yields the layer with the largest growth, where the newest record shows one over the bound."""
        record, trends = history[-1], history.trends
        losses = trends.losses
        known = losses.learning is not None
        if known and not losses.last > losses.times(self.worse):
            return
        bound = self.growth if known else self.blind
        where = trends.where(record.sites)[gradients(record.sites)]
        with np.errstate(invalid="ignore"):  # a zero gradient has a level of -inf
            growth = trends.level[where] - trends.usual[where]
            growth[trends.level[where] - trends.start[where] <= np.log10(self.beyond)] = np.nan
        if not (growth > np.log10(bound)).any():
            return
        worst = int(np.nanargmax(growth))
        factor = float(10 ** growth[worst])
        layer = names.owner(record.sites[gradients(record.sites)[worst]].layer)
        loss = f"and the loss went from {losses.first:.3g} to {losses.last:.3g}" if known else "over several steps"
        yield Finding(
            "exploding_gradient",
            layer,
            record.step,
            record.step,
            "critical",
            {"growth": factor, "gradient_rms": float(10 ** trends.level[where[worst]]), "loss": losses.last},
            f"the gradient of {layer} is {factor:.3g} times what it usually was, {loss}",
            OVER_STEPS,
        )


@dataclass(frozen=True)
class ExplodingOverDepth(FullRecords):
    """The gradient of a layer's output is orders above where it set out, in one backward pass of a net that does not learn.

    It sets out from the last layer that has weights to learn, or from the model's own output where that is known and gets more:
    one of several heads is no depth, and neither is a fixed factor behind them all.

    Attributes:
        factor: The largest rms of an output gradient over that at its outset, dimensionless. In the labelled corpus healthy
            nets reach 4 and exploding ones 200 to 1e4, from the first step on.
    """

    factor: float = 100.0

    breaks: ClassVar[bool] = True
    WIDER: ClassVar = {"factor": 2.0}
    EXAMPLES: ClassVar = {
        "healthy: a pre-norm transformer": Example(
            {(f"{depth}", "activation_grad"): [value] * 24 for depth, value in enumerate([8.0, 4.0, 2.0, 1.0])}
        ),
        "sick: recurrent weights of gain 2": Example(
            {(f"{depth}", "activation_grad"): [value] * 24 for depth, value in enumerate([*geometric(1e6, 0.1, 6), 1.0])}
        ),
    }

    def __call__(self, history: History) -> Iterator[Finding]:
        """Yields the layer with the largest output gradient, where it is over the bound in the newest record."""
        record, trends = history[-1], history.trends
        outputs = output_gradients(record.sites)
        level = trends.level[trends.where(record.sites)[outputs]]
        flowing = np.flatnonzero(np.isfinite(level))
        if len(flowing) < 3 or trends.losses.learning:  # growth over depth needs depth
            return
        last, outset = _outset(record.sites, outputs, level, flowing)
        way = flowing[flowing <= last]
        top = way[int(np.argmax(level[way]))]
        factor = float(10 ** (level[top] - level[outset]))
        if factor < self.factor:
            return
        first, start = record.sites[outputs[top]].layer, record.sites[outputs[outset]].layer
        yield Finding(
            "exploding_gradient",
            first,
            record.step,
            record.step,
            "critical",
            {"growth": factor, "gradient_rms": float(10 ** level[top])},
            f"on its way back from {start} to {first} the gradient grows {factor:.3g} times",
            OVER_DEPTH,
        )


@dataclass(frozen=True)
class ExplodingOverTime(Judgement):
    """The gradient of a matrix is orders above that of every matrix behind it, step after step, in a net that does not learn.

    A recurrent layer adds up its time steps in one gradient: what grows over time shows in no single output, but in its weights.
    What an output's own gradient explains is depth, or a head with a loss of its own.

    Attributes:
        factor: A matrix's gradient rms over the largest between it and the loss, dimensionless, both over the last few steps.
            Healthy nets stay under 100 in any direction; recurrent weights of gain 3 over 40 steps reach 500 to 1e4.
        confirm: 10 steps.
    """

    confirm: int = 10
    factor: float = 300.0

    breaks: ClassVar[bool] = True
    WIDER: ClassVar = {"factor": 2.0}
    EXAMPLES: ClassVar = {
        "healthy: early layers get more": Example(
            {("a.weight", "parameter_grad"): [20.0] * 30, ("b.weight", "parameter_grad"): [1.0] * 30}, losses=[1.0] * 30
        ),
        "healthy: a head with a loss of its own": Example(
            {
                ("a.weight", "parameter_grad"): [2e3] * 30,
                ("b.weight", "parameter_grad"): [0.07] * 30,
                ("a", "activation_grad"): [300.0] * 30,
                ("b", "activation_grad"): [0.01] * 30,
            },
            losses=[1.1] * 30,
        ),
        "sick: recurrent weights of gain 3": Example(
            {("cell.weight", "parameter_grad"): [2e3] * 30, ("out.weight", "parameter_grad"): [0.07] * 30}, losses=[1.1] * 30
        ),
    }

    def __call__(self, history: History) -> Iterator[Finding]:
        """Yields the matrix with the largest excess over those behind it."""
        record, trends = history[-1], history.trends
        compared = matrices(record.sites)
        if len(compared) < 2 or trends.losses.learning is not False:  # a factor needs a matrix to be a factor of
            return
        level = trends.recent[trends.where(record.sites)[compared]]
        if level.max() - level.min() <= np.log10(self.factor):  # as a rule they are all alike
            return
        behind = np.maximum.accumulate(np.where(np.isfinite(level), level, -np.inf)[::-1])[::-1][1:]
        with np.errstate(invalid="ignore"):  # nothing behind has a gradient
            excess = np.where(np.isfinite(behind), level[:-1] - behind, -np.inf) - self._explained(record.sites, trends)
        worst = int(np.argmax(np.nan_to_num(excess, nan=-np.inf)))
        if not excess[worst] > np.log10(self.factor):
            return
        layer, factor = names.owner(record.sites[compared[worst]].layer), float(10 ** excess[worst])
        yield Finding(
            "exploding_gradient",
            layer,
            record.step,
            record.step,
            "critical",
            {"growth": factor, "gradient_rms": float(10 ** level[worst])},
            f"the gradient of {layer} is {factor:.3g} times the largest of the layers behind it",
            OVER_DEPTH,
        )

    @staticmethod
    def _explained(sites: Sites, trends: Trends) -> Values:
        """log10 of how far the gradient of each matrix's output is above all of those behind it: (matrices - 1,), 0 at least.

        The output of a layer that is called for each time step explains nothing: it grows over time itself.
        """
        at = {trends.sites[index].layer: index for index in trends.outputs if not trends.repeated[index]}
        owners = [names.owner(sites[index].layer) for index in matrices(sites)]
        output = np.array([trends.recent[at[owner]] if owner in at else -np.inf for owner in owners])
        output[~np.isfinite(output)] = -np.inf
        behind = np.maximum.accumulate(output[::-1])[::-1][1:]
        known = np.isfinite(behind) & np.isfinite(output[:-1])
        return np.where(known, np.maximum(output[:-1] - np.where(known, behind, 0), 0), 0)


def _outset(sites: Sites, outputs: Counts, level: Values, flowing: Counts) -> tuple[int, int]:
    """The last output that has weights to learn, and the one whose gradient is what sets out: both positions among the outputs."""
    trained = trained_layers(sites)
    learning = [int(index) for index in flowing if sites[outputs[index]].layer in trained]
    last = learning[-1] if learning else int(flowing[-1])
    ends = [last, *(int(index) for index in flowing if sites[outputs[index]].layer == names.ROOT)]
    return last, max(ends, key=lambda index: float(level[index]))
