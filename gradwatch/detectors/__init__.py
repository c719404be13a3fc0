"""One failure per file; each file carries its definition, its evidence, and a healthy and a sick example."""

from __future__ import annotations

from gradwatch.detectors.bad_scale import BadScale, Symmetry
from gradwatch.detectors.base import Detector, Example, FullRecords, Judgement, Ledger, News, judge, name_of, raise_error
from gradwatch.detectors.dead_units import DeadUnits
from gradwatch.detectors.default import DEFAULT
from gradwatch.detectors.exploding_gradient import ExplodingGradient, ExplodingOverDepth, ExplodingOverTime
from gradwatch.detectors.loss_stagnant import LossStagnant
from gradwatch.detectors.loss_unstable import LossUnstable
from gradwatch.detectors.non_finite import NonFinite, Overflow
from gradwatch.detectors.not_updated import NeverStepped, NotUpdated
from gradwatch.detectors.saturated import Saturated
from gradwatch.detectors.settings import fit, read, write
from gradwatch.detectors.stale_gradient import StaleGradient
from gradwatch.detectors.update_ratio import UpdateRatio
from gradwatch.detectors.vanishing_gradient import VanishingGradient
from gradwatch.detectors.zero_gradient import ZeroGradient

__all__ = [
    "DEFAULT",
    "BadScale",
    "DeadUnits",
    "Detector",
    "Example",
    "ExplodingGradient",
    "ExplodingOverDepth",
    "ExplodingOverTime",
    "FullRecords",
    "Judgement",
    "Ledger",
    "LossStagnant",
    "LossUnstable",
    "NeverStepped",
    "News",
    "NonFinite",
    "NotUpdated",
    "Overflow",
    "Saturated",
    "StaleGradient",
    "Symmetry",
    "UpdateRatio",
    "VanishingGradient",
    "ZeroGradient",
    "fit",
    "judge",
    "name_of",
    "raise_error",
    "read",
    "write",
]
