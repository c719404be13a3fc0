"""What can go wrong, as types.

GradWatchError                    every exception of gradwatch; also the built-in it specialises
├── InvalidSetting(ValueError)      an argument that has no meaning (``every=0``, an unknown ``on_finding``)
├── NothingToWatch(ValueError)      no parameters, or globs that select no layer
├── AlreadyWatched(RuntimeError)    a model that another open watch observes
├── WatchClosed(RuntimeError)       a watch that is used after ``close()``
├── NotTraced(LookupError)          what the traced pass did not show: no gradient, no such layer, several calls
├── LogdirError(OSError)            a log directory that cannot be written
├── RunError(ValueError)            a path that holds no recorded run, or one of another version
└── UnhealthyTraining(RuntimeError) raised on a finding, where ``on_finding="raise"`` asks for it

GradWatchWarning(UserWarning)     something that does not stop the training, said once
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradwatch.records import Finding


class GradWatchError(Exception):
    """Base of every exception that gradwatch raises on purpose."""


class InvalidSetting(GradWatchError, ValueError):
    """An argument has no meaning."""


class NothingToWatch(GradWatchError, ValueError):
    """The model, after selection, has nothing that could be observed."""


class AlreadyWatched(GradWatchError, RuntimeError):
    """Another open watch observes this model."""


class WatchClosed(GradWatchError, RuntimeError):
    """The watch was closed before."""


class NotTraced(GradWatchError, LookupError):
    """The traced pass did not show what was asked for: no gradient arrived, no such layer, or a choice between several calls."""


class LogdirError(GradWatchError, OSError):
    """The log directory cannot be written."""


class RunError(GradWatchError, ValueError):
    """The path holds no recorded run that this version can read."""


class UnhealthyTraining(GradWatchError, RuntimeError):
    """Raised on a finding where ``on_finding="raise"`` asks for it.

    Attributes:
        finding: The finding.
    """

    def __init__(self, finding: Finding) -> None:
        super().__init__(f"{finding.kind} at {finding.layer!r}, step {finding.first_step}: {finding.message}")
        self.finding = finding


class GradWatchWarning(UserWarning):
    """Something does not stop the training and is said once."""
