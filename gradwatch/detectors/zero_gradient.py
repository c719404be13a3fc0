"""A trainable parameter that gets no gradient, or exactly zero, step after step: nothing upstream of the cut learns.

What it is mistaken for: a frozen parameter (``requires_grad=False`` is a decision and is not judged); a bias before a
normalisation or an attention key's bias (zero by construction, which is why vectors alone are no alarm); rarely used experts and
embedding rows (a parameter that did get gradients has to stay silent for much longer than it ever did); a head trained in turns
with others; a solved problem, whose hinge loss is exactly zero.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradwatch import moments, names
from gradwatch.detectors.base import Example, Judgement, geometric
from gradwatch.history import History
from gradwatch.records import Finding
from gradwatch.trends import Flags, Sites, Trends, gradients, per_sites

CUT = (
    "No gradient reaches it: look for a module that forward never calls, .detach(), .data, .item(), torch.no_grad() or a "
    "non-differentiable step (argmax, round, comparison) between it and the loss; where every layer is named, for backward() "
    "itself. If it is to rest, set requires_grad to False."
)
DEAD = (
    "A gradient arrives and is exactly zero: look downstream for ReLUs whose inputs are all negative, weights that are all zero, "
    "an activation saturated to rounding, or a loss that is constant. He initialisation with zero biases, or LeakyReLU, keeps "
    "units alive (He et al. 2015; Lu et al. 2019, 'Dying ReLU and initialization'). In float16 whatever is under 6e-8 is zero: "
    "scale the loss (torch.amp.GradScaler; Micikevicius et al. 2018)."
)
BLANK = (
    "The loss has been exactly zero from the start. Where that is no solved problem, and no reward that is yet to come, look at "
    "the loss: the sign of a margin, a weight of zero, a mask that hides everything."
)


@dataclass(frozen=True)
class ZeroGradient(Judgement):
    """Gradient None or exactly 0 since the parameter became trainable, or for much longer than ever before.

    Attributes:
        confirm: 10 steps: in the labelled corpus every healthy parameter that is trained in turns with others got its first
            gradient within 3.
        patience: How many times the longest silence so far a parameter may stay silent before it counts as cut off, where it, or
            a layer like it (``experts.3`` is like ``experts.7``), has rested before: twice is within the scatter of random use.
        routed: Steps that such a parameter may stay silent in any case.
        rest: Steps that any other one that once got gradients may.
        blank: Steps that a loss may be exactly zero from the start: a reward may be yet to come, or a term switched on later.
        solved: Share of the first loss under which a zero gradient means that nothing is left to learn.
    """

    confirm: int = 10
    patience: float = 10.0
    routed: int = 500
    rest: int = 100
    blank: int = 50
    solved: float = 1e-3

    per_layer: ClassVar[bool] = True
    WIDER: ClassVar = {"confirm": 2, "rest": 2, "routed": 2, "patience": 2.0}
    EXAMPLES: ClassVar = {
        "healthy: trained in turns": Example(
            {("a.weight", "parameter_grad"): [1.0, None] * 20, ("b.weight", "parameter_grad"): [None, 1.0] * 20}
        ),
        "healthy: a bias alone": Example({("a.weight", "parameter_grad"): [1.0] * 30, ("a.bias", "parameter_grad"): [0.0] * 30}),
        "healthy: a solved problem": Example(
            {("a.weight", "parameter_grad"): [1.0] * 20 + [0.0] * 80}, losses=[*geometric(1.0, 0.5, 20), *[0.0] * 80]
        ),
        "sick: behind a detached tensor": Example(
            {("a.weight", "parameter_grad"): [None] * 30, ("b.weight", "parameter_grad"): [1.0] * 30}
        ),
        "sick: a loss of zero from the start": Example({("a.weight", "parameter_grad"): [0.0] * 80}, losses=[0.0] * 80),
        "sick: exactly zero": Example({("a.weight", "parameter_grad"): [0.0] * 30, ("b.weight", "parameter_grad"): [1.0] * 30}),
    }

    def __call__(self, history: History) -> Iterator[Finding]:
        """Yields each layer that is silent in the newest record, its first parameter standing for all."""
        record, trends = history[-1], history.trends
        if not trends.resting:
            return
        where = trends.where(record.sites)
        if self._is_solved(trends):
            return
        silent = trends.silent[where] > 0
        once = ~np.isnan(trends.usual[where])
        # Where a sister rests now and then, rest is a matter of routing: whoever is like her is given as much time.
        quiet = np.array([trends.quiet[where[sisters]].max() for sisters in _families(record.sites)])
        if silent[gradients(record.sites)].all():  # nobody routes everything past everybody
            quiet[:] = 0
        overdue = trends.silent[where] > np.where(quiet > 0, np.maximum(self.routed, self.patience * quiet), self.rest)
        cut = silent & ((~once & (quiet == 0)) | overdue)
        if not cut.any():
            return
        named: set[str] = set()
        for index in np.flatnonzero(cut & self._weighty(history, cut)):
            site = record.sites[index]
            layer = names.owner(site.layer)
            if layer in named:
                continue
            named.add(layer)
            missing = record.rows[index, moments.COUNT] == 0
            steps = int(trends.silent[where[index]])
            yield Finding(
                "zero_gradient",
                layer,
                record.step,
                record.step,
                "warning" if trends.losses.always_zero else "critical",
                {"steps": steps, "gradient": float("nan") if missing else 0.0},
                f"the gradient of {site.layer} {'is None' if missing else 'is exactly zero'}, step after step",
                BLANK if trends.losses.always_zero else CUT if missing else DEAD,
            )

    def _is_solved(self, trends: Trends) -> bool:
        if trends.losses.always_zero:  # that left nothing to solve: if it goes on, the program is at fault
            return int(trends.silent.max(initial=0)) <= self.blank
        return bool(abs(trends.losses.present) <= self.solved * abs(trends.losses.first))

    @staticmethod
    def _weighty(history: History, cut: Flags) -> Flags:
        """Gradients of matrices, and of vectors whose layer has no matrix that still gets a gradient."""
        sites = history[-1].sites
        alive = {
            names.owner(site.layer)
            for site, is_cut in zip(sites, cut, strict=True)
            if site.tensor == "parameter_grad" and site.is_matrix and not is_cut
        }
        return np.array([site.tensor == "parameter_grad" and names.owner(site.layer) not in alive for site in sites], bool)


@per_sites
def _families(sites: Sites) -> list[list[int]]:
    """For each site the positions of those like it, itself included: the same tensor and shape, a name that differs in numbers."""
    keys = [(site.tensor, site.shape, re.sub(r"\d+", "#", site.layer)) for site in sites]
    members: dict[tuple[object, ...], list[int]] = {}
    for index, key in enumerate(keys):
        members.setdefault(key, []).append(index)
    return [members[key] for key in keys]
