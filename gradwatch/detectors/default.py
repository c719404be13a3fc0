"""What ``watch`` looks for where it is not told otherwise."""

from __future__ import annotations

from gradwatch.detectors.bad_scale import BadScale, Symmetry
from gradwatch.detectors.base import Detector
from gradwatch.detectors.dead_units import DeadUnits
from gradwatch.detectors.exploding_gradient import ExplodingGradient, ExplodingOverDepth, ExplodingOverTime
from gradwatch.detectors.loss_stagnant import LossStagnant
from gradwatch.detectors.loss_unstable import LossUnstable
from gradwatch.detectors.non_finite import NonFinite, Overflow
from gradwatch.detectors.not_updated import NeverStepped, NotUpdated
from gradwatch.detectors.saturated import Saturated
from gradwatch.detectors.stale_gradient import StaleGradient
from gradwatch.detectors.update_ratio import UpdateRatio
from gradwatch.detectors.vanishing_gradient import VanishingGradient
from gradwatch.detectors.zero_gradient import ZeroGradient

DEFAULT: tuple[Detector, ...] = (
    NonFinite(),
    Overflow(),
    ExplodingGradient(),
    ExplodingOverDepth(),
    ExplodingOverTime(),
    VanishingGradient(),
    ZeroGradient(),
    DeadUnits(),
    Saturated(),
    BadScale(),
    Symmetry(),
    StaleGradient(),
    NotUpdated(),
    NeverStepped(),
    UpdateRatio(),
    LossStagnant(),
    LossUnstable(),
)
"""One detector or more for each of ``gradwatch.KINDS``; each is described in its own file."""
