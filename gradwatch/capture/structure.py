"""The tensors in whatever a module takes or returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def unique_tensors(value: Any) -> Iterator[Tensor]:
    """The floating and complex tensors in a structure of tuples, lists, mappings and objects with fields, each once."""
    seen: set[int] = set()
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, Tensor):
            if id(item) not in seen and (item.is_floating_point() or item.is_complex()) and not _is_shapeless(item):
                seen.add(id(item))
                yield item
        elif isinstance(item, Mapping):
            pending.extend(reversed(list(item.values())))
        elif isinstance(item, (tuple, list)):
            pending.extend(reversed(item))
        elif hasattr(item, "__dataclass_fields__"):
            pending.extend(reversed([getattr(item, name, None) for name in item.__dataclass_fields__]))


def _is_shapeless(tensor: Tensor) -> bool:
    """Whether it is nested in the older layout, which has no shape; a jagged one is a plain tensor inside."""
    return tensor.is_nested and tensor.layout is torch.strided
