"""One failure per file; each file carries its definition, its evidence, and a healthy and a sick example."""

from __future__ import annotations

from gradwatch.detectors.base import Detector, Example, Judgement, Ledger, News
from gradwatch.detectors.exploding_gradient import ExplodingGradient, ExplodingOverDepth
from gradwatch.detectors.non_finite import NonFinite
from gradwatch.detectors.vanishing_gradient import VanishingGradient
from gradwatch.detectors.zero_gradient import ZeroGradient

DEFAULT: tuple[Detector, ...] = (
    NonFinite(),
    ExplodingGradient(),
    ExplodingOverDepth(),
    VanishingGradient(),
    ZeroGradient(),
)
"""What ``watch`` looks for where it is not told otherwise."""

__all__ = [
    "DEFAULT",
    "Detector",
    "Example",
    "ExplodingGradient",
    "ExplodingOverDepth",
    "Judgement",
    "Ledger",
    "News",
    "NonFinite",
    "VanishingGradient",
    "ZeroGradient",
]
