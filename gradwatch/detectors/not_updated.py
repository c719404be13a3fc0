"""A gradient arrives, and the weight never moves.

An update that float32 rounds away counts as none where the rest of the net moves: a parameter group whose learning rate is wrong by
orders of magnitude is as good as frozen. Where nothing moves so far, the whole run's steps are too small, which is another fault.

What it is mistaken for: warm-up from a learning rate of zero (the first step alone); a schedule that has come to its end (the
weight did move before); a converged net; a gradient so small that its update is rightly lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradwatch import names
from gradwatch.detectors.base import Example, FullRecords, Judgement
from gradwatch.history import History
from gradwatch.records import Finding
from gradwatch.trends import Sites, Trends, matrix_updates, updates

ADVICE = (
    "Check that the optimizer was built from the parameters of this very model (not of a copy, nor before layers were replaced or "
    "moved), that it holds them all, and that the learning rate is not zero. With weights in float16 or bfloat16 an update under "
    "2⁻¹¹ or 2⁻⁸ of the weight is rounded away: keep float32 master weights (Micikevicius et al. 2018). If the layer is meant to "
    "rest, set requires_grad to False."
)


UNREGISTERED = (
    "A layer of this shape takes part in forward and is no part of the model, so that model.parameters() leaves it out: layers in "
    "a plain Python list or dict are not registered. Use torch.nn.ModuleList or ModuleDict (PyTorch documentation of ModuleList)."
)


@dataclass(frozen=True)
class NotUpdated(FullRecords):
    """In every full record so far the update of a parameter with a gradient was zero, or next to nothing beside that of others.

    Attributes:
        resolution: An update's rms over that of its weight, dimensionless, under which rounding decides whether a weight moves:
            half a unit in the last place of float32 is 2⁻²⁴ to 2⁻²⁵ of it (IEEE 754). At this pace a weight changes by its own
            size in seventeen million steps.
        others: The largest such ratio of the step over this one, from which on the rest of the net moves. Discriminative rates
            span a factor of 2.6 a layer (Howard & Ruder 2018), 400 over seven layers.
        gradient: A gradient's rms over the largest of the step, under which it need not move anything: 1e-3 leaves out biases
            before a normalisation, whose gradient is rounding noise.
        confirm: 2 full records: the first step of a warm-up may stand still.
    """

    gradient: float = 1e-3
    resolution: float = 2.0**-24
    others: float = 1e3

    per_layer: ClassVar[bool] = True
    WIDER: ClassVar = {"gradient": 2.0, "resolution": 0.5, "others": 2.0}
    EXAMPLES: ClassVar = {
        "healthy: a schedule that ends": Example(
            {("a.weight", "parameter_grad"): [1.0] * 24, ("a.weight", "update"): [0.1] * 6 + [0.0] * 18}
        ),
        "healthy: rates of 1 and 1/400": Example(
            {
                ("a.weight", "parameter"): [1.0] * 24,
                ("a.weight", "parameter_grad"): [1.0] * 24,
                ("a.weight", "update"): [1e-3 / 400] * 24,
                ("b.weight", "parameter"): [1.0] * 24,
                ("b.weight", "parameter_grad"): [1.0] * 24,
                ("b.weight", "update"): [1e-3] * 24,
            }
        ),
        "sick: a rate of 1e-9 for one group": Example(
            {
                ("a.weight", "parameter"): [1.0] * 24,
                ("a.weight", "parameter_grad"): [1.0] * 24,
                ("a.weight", "update"): [1e-9] * 24,
                ("b.weight", "parameter"): [1.0] * 24,
                ("b.weight", "parameter_grad"): [1.0] * 24,
                ("b.weight", "update"): [1e-3] * 24,
            }
        ),
        "sick: in no optimizer": Example(
            {
                ("a.weight", "parameter_grad"): [1.0] * 24,
                ("a.weight", "update"): [0.0] * 24,
                ("b.weight", "parameter_grad"): [1.0] * 24,
                ("b.weight", "update"): [0.1] * 24,
            }
        ),
    }

    def __call__(self, history: History) -> Iterator[Finding]:
        """Yields each layer that has a gradient and has never moved."""
        record, trends = history[-1], history.trends
        where = trends.where(record.sites)
        level = trends.level[where]
        moves = updates(record.sites)
        rounded = self._rounded_away(record.sites, trends)
        if not (level[moves] == -np.inf).any() and not rounded:
            return
        gradients = {site.layer: level[index] for index, site in enumerate(record.sites) if site.tensor == "parameter_grad"}
        flowing = [value for value in gradients.values() if np.isfinite(value)]
        if not flowing:
            return
        bound = max(flowing) + np.log10(self.gradient)
        named: set[str] = set()
        for index in moves:
            site = record.sites[index]
            still = (level[index] == -np.inf and np.isnan(trends.usual[where[index]])) or int(index) in rounded
            layer = names.owner(site.layer)
            if not still or layer in named or not gradients.get(site.layer, -np.inf) > bound:
                continue
            named.add(layer)
            unregistered = layer == names.UNREGISTERED
            how = f"has moved by {10 ** level[index]:.1e} a step at most" if int(index) in rounded else "has never moved"
            what = f"a parameter of shape {site.shape} that the model does not own" if unregistered else site.layer
            yield Finding(
                "not_updated",
                layer,
                record.step,
                record.step,
                "critical",
                {"gradient_rms": float(10 ** gradients[site.layer]), "update_rms": float(10 ** level[index])},
                f"{what} gets a gradient of rms {10 ** gradients[site.layer]:.1e} and {how}",
                UNREGISTERED if unregistered else ADVICE,
            )

    def _rounded_away(self, sites: Sites, trends: Trends) -> frozenset[int]:
        """The positions of the updates of matrices that have been under the rounding of their weights ever since the start."""
        pairs = matrix_updates(sites)
        moved, weight = trends.where(sites)[pairs.T]
        with np.errstate(invalid="ignore"):  # a weight of exactly zero has no ratio
            ratio = trends.level[moved] - trends.level[weight]
            before = np.maximum(trends.usual[moved], trends.start[moved]) - trends.level[weight]
        bound = np.log10(self.resolution)
        rounded = (ratio < bound) & (before < bound)
        if not rounded.any() or not np.nanmax(ratio[np.isfinite(ratio)], initial=-np.inf) > bound + np.log10(self.others):
            return frozenset()
        return frozenset(pairs[rounded, 0].tolist())


@dataclass(frozen=True)
class NeverStepped(Judgement):
    """Gradients arrive, and no optimizer step is ever taken.

    Attributes:
        passes: Backward passes without a first step. More than micro-batches are accumulated for, and more than the overflows with
            which a loss scaler of 65536 starts (16 halvings at most).
    """

    passes: int = 20

    reads_skipped: ClassVar[bool] = True
    WIDER: ClassVar = {"passes": 2}
    EXAMPLES: ClassVar = {
        "healthy: steps": Example({("a.weight", "parameter_grad"): [1.0] * 30}),
        "sick: a condition that is never true": Example({("a.weight", "parameter_grad"): [1.0] * 30}, skipped=True),
    }

    def ignores_calm(self, _trends: Trends) -> bool:
        """It does: a calm record is one of a step that was taken."""
        return True

    def __call__(self, history: History) -> Iterator[Finding]:
        """Yields the whole model, where nothing has ever stepped."""
        record, idle = history[-1], history.trends.idle
        if idle < self.passes:
            return
        yield Finding(
            "not_updated",
            names.ROOT,
            record.step,
            record.step,
            "critical",
            {"backward_passes": idle},
            f"after {idle} backward passes no optimizer has taken a step",
            "Look at the condition under which optimizer.step() is called (an accumulation counter that is never reached), and at "
            "whether the optimizer that steps is the one that is watched.",
        )
