"""Which settings of a watch have a meaning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import nn

from gradwatch.errors import InvalidSetting
from gradwatch.records import Finding

OnFinding = Literal["log", "warn", "raise"] | Callable[[Finding], object]


def check_settings(every: int, loss_fn: object, on_finding: object) -> None:
    """Refuses settings of ``watch`` that have no meaning.

    Raises:
        InvalidSetting: One of them has none.
    """
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise InvalidSetting(f"every={every!r} is no cadence; give the optimizer steps between full records, at least 1")
    if loss_fn is not None and not isinstance(loss_fn, nn.Module):
        raise InvalidSetting(
            f"loss_fn is a {type(loss_fn).__name__}, whose output cannot be observed; give an nn.Module, or tell watch.loss(value)"
        )
    if not callable(on_finding) and on_finding not in ("log", "warn", "raise"):
        raise InvalidSetting(f"on_finding={on_finding!r}; give 'log', 'warn', 'raise' or a function of the finding")
