"""The tensors in whatever a module takes or returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def unique_tensors(value: Any) -> Sequence[Tensor]:
    """The floating and complex tensors in a structure of tuples, lists, mappings and objects with fields, each once."""
    if type(value) is Tensor and value.dtype is torch.float32 and not value.is_nested:  # as most layers take and return
        return (value,)
    if isinstance(value, Tensor):
        return (value,) if _is_measured(value) else ()
    return tuple(_walk(value))


def _walk(value: Any) -> Iterator[Tensor]:
    seen: set[int] = set()
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, Tensor):
            if id(item) not in seen and _is_measured(item):
                seen.add(id(item))
                yield item
        elif isinstance(item, Mapping):
            pending.extend(reversed(list(item.values())))
        elif isinstance(item, (tuple, list)):
            pending.extend(reversed(item))
        elif hasattr(item, "__dataclass_fields__"):
            pending.extend(reversed([getattr(item, name, None) for name in item.__dataclass_fields__]))


def _is_measured(tensor: Tensor) -> bool:
    """Whether it has a gradient, and a shape: one that is nested in the older layout has none, a jagged one is plain inside."""
    return (tensor.is_floating_point() or tensor.is_complex()) and not (tensor.is_nested and tensor.layout is torch.strided)
