"""gradwatch watches how error flows backwards through a PyTorch network while it trains, and says which layer is sick and why."""

from gradwatch import detectors, errors, testing, writers
from gradwatch.codec import load
from gradwatch.history import History
from gradwatch.records import KINDS, Finding, Incident, Record, Site
from gradwatch.replay import check
from gradwatch.trace import trace
from gradwatch.watch import Watch, watch

__version__ = "0.1.0"

__all__ = [
    "KINDS",
    "Finding",
    "History",
    "Incident",
    "Record",
    "Site",
    "Watch",
    "check",
    "detectors",
    "errors",
    "load",
    "testing",
    "trace",
    "watch",
    "writers",
]
