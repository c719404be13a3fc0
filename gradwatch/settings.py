"""What a user may ask of a watch: which settings have a meaning, and what becomes of a finding."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from numbers import Real
from typing import Any, Literal

from torch import nn

from gradwatch.errors import GradWatchWarning, InvalidSetting, UnhealthyTraining
from gradwatch.records import Finding
from gradwatch.summary import describe

log = logging.getLogger("gradwatch")

OnFinding = Literal["log", "warn", "raise"] | Callable[[Finding], object]


def check_settings(every: int, loss_fn: object, on_finding: object, scaler: Any = None, budget: float | None = None) -> None:
    """Refuses settings of ``watch`` that have no meaning.

    Raises:
        InvalidSetting: One of them has none.
    """
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise InvalidSetting(f"every={every!r} is no cadence; give the optimizer steps between full records, at least 1")
    if budget is not None and not (isinstance(budget, Real) and 0 < budget < 1):
        raise InvalidSetting(f"budget={budget!r} is no share of the training's time; give a number between 0 and 1, such as 0.01")
    if loss_fn is not None and not isinstance(loss_fn, nn.Module):
        raise InvalidSetting(
            f"loss_fn is a {type(loss_fn).__name__}, whose output cannot be observed; give an nn.Module, or tell watch.loss(value)"
        )
    if scaler is not None and not (hasattr(scaler, "step") and hasattr(scaler, "is_enabled")):
        raise InvalidSetting(f"scaler is a {type(scaler).__name__}; give the torch.amp.GradScaler that scales the loss")
    if not callable(on_finding) and on_finding not in ("log", "warn", "raise"):
        raise InvalidSetting(f"on_finding={on_finding!r}; give 'log', 'warn', 'raise' or a function of the finding")


def act(finding: Finding, on_finding: OnFinding) -> None:
    """Does with a finding what the user asked for; what this raises is meant to reach the training.

    Raises:
        UnhealthyTraining: The user asked for that.
    """
    text = f"gradwatch: {describe(finding)}"
    if callable(on_finding):
        on_finding(finding)
    elif on_finding == "log":
        log.warning("%s", text)
    elif on_finding == "warn":
        warnings.warn(text, GradWatchWarning, stacklevel=3)
    else:
        raise UnhealthyTraining(finding)
