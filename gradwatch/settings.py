"""What a user may ask of a watch: which settings have a meaning, and what becomes of a finding."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, Literal

from torch import nn

from gradwatch.detectors import DEFAULT, Detector
from gradwatch.errors import GradWatchWarning, InvalidSetting, UnhealthyTraining
from gradwatch.records import Finding
from gradwatch.summary import describe
from gradwatch.writers import Writer

log = logging.getLogger("gradwatch")

OnFinding = Literal["log", "warn", "raise"] | Callable[[Finding], object]


def chosen(
    *,
    every: int,
    budget: float | None,
    include: Sequence[str],
    exclude: Sequence[str],
    detectors: Sequence[Detector] | None,
    on_finding: OnFinding,
    histograms: bool = False,
    loss_fn: object = None,
    scaler: Any = None,
) -> dict[str, Any]:
    """The settings that every way in has in common, in the form in which a ``Watch`` takes them.

    Raises:
        InvalidSetting: One of them, or the criterion or the scaler, has no meaning.
    """
    _check(every, loss_fn, on_finding, scaler, budget, histograms)
    return {
        "every": every,
        "budget": budget,
        "include": (include,) if isinstance(include, str) else tuple(include),
        "exclude": (exclude,) if isinstance(exclude, str) else tuple(exclude),
        "detectors": DEFAULT if detectors is None else tuple(detectors),
        "on_finding": on_finding,
        "histograms": histograms,
    }


def _check(every: int, loss_fn: object, on_finding: object, scaler: Any, budget: float | None, histograms: object) -> None:
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise InvalidSetting(f"every={every!r} is no cadence; give the optimizer steps between full records, at least 1")
    if budget is not None and not (isinstance(budget, Real) and 0 < budget < 1):
        raise InvalidSetting(f"budget={budget!r} is no share of the training's time; give a number between 0 and 1, such as 0.01")
    if loss_fn is not None and not isinstance(loss_fn, nn.Module):
        raise InvalidSetting(
            f"loss_fn is a {type(loss_fn).__name__}, whose output cannot be observed; give an nn.Module, or tell watch.loss(value)"
        )
    if scaler is not None and not (hasattr(scaler, "step") and hasattr(scaler, "is_enabled") and hasattr(scaler, "__dict__")):
        raise InvalidSetting(f"scaler is a {type(scaler).__name__}; give the torch.amp.GradScaler that scales the loss")
    if not callable(on_finding) and on_finding not in ("log", "warn", "raise"):
        raise InvalidSetting(f"on_finding={on_finding!r}; give 'log', 'warn', 'raise' or a function of the finding")
    if not isinstance(histograms, bool):
        raise InvalidSetting(f"histograms={histograms!r}; give True to count magnitudes by octaves in full records, else False")


def check_model(model: object) -> None:
    """Refuses what is no model.

    Raises:
        InvalidSetting: It is neither a module nor a mapping.
    """
    if not isinstance(model, (nn.Module, Mapping)):
        raise InvalidSetting(f"the model is a {type(model).__name__}; give an nn.Module, or a mapping of names to leaf tensors")


def destinations(logdir: str | Path | None, writers: Sequence[Writer]) -> list[Writer]:
    """Where records and findings go: an event file in a directory, if one is given, and what else there is.

    Raises:
        LogdirError: The directory cannot be written.
    """
    if logdir is None:
        return list(writers)
    from gradwatch.writers.tensorboard import EventFileWriter

    return [EventFileWriter(logdir), *writers]


def act(finding: Finding, on_finding: OnFinding, *, aloud: bool = True) -> None:
    """Does with a finding what the user asked for; what this raises is meant to reach the training.

    Args:
        finding: What was found.
        on_finding: What the user asked for.
        aloud: Whether it is logged, or warned of, here: of several processes that found the same one says so.

    Raises:
        UnhealthyTraining: The user asked for that.
    """
    text = f"gradwatch: {describe(finding)}"
    if callable(on_finding):
        on_finding(finding)
    elif on_finding == "raise":
        raise UnhealthyTraining(finding)
    elif on_finding == "log" and aloud:
        log.warning("%s", text)
    elif aloud:
        warnings.warn(text, GradWatchWarning, stacklevel=3)
