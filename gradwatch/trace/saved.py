"""What forward keeps so that backward is possible: the storages that autograd holds on to.

They are read from the nodes of the graph. Hooks on saved tensors would tell the same, but switch off the check with which
PyTorch notices that a saved tensor was changed in place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import Node

LEGIBLE = hasattr(torch._C._autograd.SavedTensor, "data")
"""Whether this torch shows what a node saved without unpacking it. Unpacking would start the recomputation of a checkpoint."""


class Kept(NamedTuple):
    """What a stretch of forward keeps.

    Attributes:
        activations: Bytes of storages that live on only for backward.
        parameters: Bytes of parameters and buffers that backward needs too, but that exist anyway.
        packed: Tensors handed to saved-tensor hooks (checkpointing, offloading), whose bytes are not known.
    """

    activations: int = 0
    parameters: int = 0
    packed: int = 0

    def __add__(self, other: object) -> Kept:
        if not isinstance(other, Kept):
            return NotImplemented
        return Kept(*(mine + yours for mine, yours in zip(self, other, strict=True)))


class Ledger:
    """Counts each storage once, where it is first kept.

    Args:
        own: Parameters and buffers.
    """

    def __init__(self, own: Iterable[Tensor]) -> None:
        self._own = {storage._cdata for tensor in own for storage in _storages(tensor)}
        # Both are kept alive, so that none of their addresses is used a second time while the pass is observed.
        self._seen: dict[int, torch.UntypedStorage] = {}
        self._read: set[Node] = set()

    def enter(self, nodes: Iterable[Node]) -> Kept | None:
        """What these nodes keep that no node before them keeps; None where this torch does not show it."""
        if not LEGIBLE:
            return None
        sizes = {False: 0, True: 0}
        packed = 0
        unread = [node for node in nodes if node not in self._read]
        self._read.update(unread)
        for node in unread:
            for tensor in _saved(node):
                if tensor is None:
                    packed += 1
                    continue
                for storage in _storages(tensor):
                    if storage._cdata not in self._seen:
                        self._seen[storage._cdata] = storage
                        sizes[storage._cdata in self._own] += storage.nbytes()
        return Kept(sizes[False], sizes[True], packed)


def _saved(node: Node) -> Iterator[Tensor | None]:
    """What a node saved; None for a tensor that a hook has put away."""
    for name in dir(node):
        if name.startswith("_raw_saved_"):
            value = getattr(node, name)
            for saved in value if isinstance(value, tuple) else (value,):
                if saved.unpack_hook is not None:
                    yield None
                elif isinstance(saved.data, Tensor):
                    yield saved.data
    # An autograd.Function may keep tensors as plain attributes of its context, which is its node.
    yield from (value for value in getattr(node, "__dict__", {}).values() if isinstance(value, Tensor))


def _storages(tensor: Tensor) -> Iterator[Any]:
    try:
        yield tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):  # a sparse tensor has none of its own; a lazy module's parameter none yet
        if tensor.layout == torch.sparse_coo:
            yield from (tensor._indices().untyped_storage(), tensor._values().untyped_storage())
