"""Where gradients are read from the autograd graph of a pass, without changing the graph.

Two places are observed. The total gradient of a tensor (dL/da) comes from a hook on the tensor. A call's own share of its input's
gradient (dL/dz, the branch) comes from hooks on the nodes that the call created and that consume the input. Handing the module
a view of its input would be shorter, but would change the order in which the input's gradients are added up, and with it
their last bits, wherever a module reads its input twice and a skip connection reads it too.

An operation in place on a view moves the view to another place of the graph, past the hooks on it. From then on the gradient
runs through the view's base, and is read there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

Edge = tuple[Node, int]


class Slot:
    """Adds up the gradients that arrive at one place, as ``.grad`` does.

    Those of a pass that builds a graph of the gradients themselves (``create_graph=True``) are kept apart.
    """

    __slots__ = ("sums",)

    def __init__(self) -> None:
        self.sums: dict[bool, Tensor] = {}

    def add(self, gradient: Tensor | None) -> None:
        """Takes a gradient; None where an operation's output was not used."""
        if gradient is None:
            return
        # Backward runs with gradients enabled only when it builds a graph of them.
        graph = torch.is_grad_enabled()
        gradient = gradient.detach()
        self.sums[graph] = self.sums[graph] + gradient if graph in self.sums else gradient.clone()


class Hooks(Protocol):
    """Whoever attaches hooks, and removes them when the pass is over."""

    def on_tensor(self, tensor: Tensor) -> Slot:
        """A slot for the gradient of a tensor as it is now."""

    def on_node(self, node: Node, slots: list[tuple[int, Slot]]) -> None:
        """Fills slots with what a node hands to its inputs of these numbers."""


class Region:
    """Where a view lies in its base, and whether anything has been written there since.

    Args:
        view: A view.
        base: Its base.
    """

    def __init__(self, view: Tensor, base: Tensor) -> None:
        self._view = view.size(), view.stride(), view.storage_offset() - base.storage_offset()
        self._base = base.size(), base.stride()
        self._alias = view.detach()  # shares the version counter, and keeps no graph alive
        self._version = self._alias._version

    def written(self) -> bool:
        """Whether an operation in place has changed the base, or any view of it, since."""
        return self._alias._version != self._version

    def of(self, gradient: Tensor) -> Tensor:
        """The view's part of its base's gradient."""
        size, stride = self._base
        laid_out = torch.empty_strided(size, stride, dtype=gradient.dtype, device=gradient.device).copy_(gradient)
        return laid_out.as_strided(*self._view).clone()


class Total:
    """The total gradient of a tensor.

    Args:
        tensor: Requires a gradient.
        since: The sequence number of the first node of the call that returned it.
        hooks: Attaches.
    """

    def __init__(self, tensor: Tensor, since: int, hooks: Hooks) -> None:
        self.edge = _edge(tensor)
        self._own = hooks.on_tensor(tensor)
        base = _base(tensor)
        self._base = None if base is None else (hooks.on_tensor(base), Region(tensor, base))
        # Nobody but the call knows a base that it made itself, so that all of its gradient is the view's.
        self._private = base is not None and base.grad_fn is not None and base.grad_fn._sequence_nr() >= since

    def gradient(self, *, graph: bool) -> Tensor | None:
        """What arrived in passes of this sort; None where nothing did."""
        own = self._own.sums.get(graph)
        if self._base is None:
            return own
        slot, region = self._base
        if not region.written() or graph not in slot.sums or (own is not None and not self._private):
            return own
        return region.of(slot.sums[graph])


class Branch:
    """What one call hands back to one of its inputs.

    Args:
        tensor: The input, before the call; requires a gradient.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._slots = {_edge(tensor): Slot()}
        self._own = next(iter(self._slots.values()))
        base = _base(tensor)
        self._base = None if base is None else (Slot(), Region(tensor, base))
        self._base_edge = None if base is None else _edge(base)
        self._unchanged: Total | None = None

    def attach(self, created: Iterable[Node], outputs: Iterable[Total], hooks: Hooks) -> None:
        """Hooks what consumes the input, after the call.

        Args:
            created: The nodes that the call made.
            outputs: What it returned. A module may return its input as it is, which then has no branch of its own.
            hooks: Attaches.
        """
        self._unchanged = next((total for total in outputs if total.edge in self._slots), None)
        if self._base is not None and self._base_edge is not None and self._base[1].written():
            self._slots[self._base_edge] = self._base[0]
        for node in created:
            consumed = [(number, self._slots[edge]) for number, edge in enumerate(node.next_functions) if edge in self._slots]
            if consumed:
                hooks.on_node(node, consumed)
        self._slots.clear()  # the nodes in it would keep the graph alive
        self._base_edge = None

    def gradient(self, *, graph: bool) -> Tensor | None:
        """What was handed back in passes of this sort; None where nothing was."""
        if self._unchanged is not None:
            return self._unchanged.gradient(graph=graph)
        parts = [self._own.sums.get(graph)]
        if self._base is not None and graph in self._base[0].sums:
            parts.append(self._base[1].of(self._base[0].sums[graph]))
        arrived = [part for part in parts if part is not None]
        return sum(arrived[1:], arrived[0]) if arrived else None


def now() -> int:
    """The sequence number that the next node of this thread gets."""
    return int(torch._C._autograd._get_sequence_nr())


def nodes_since(tensors: Iterable[Tensor], since: int) -> list[Node]:
    """The nodes that tensors were computed by and that were made from a sequence number on, in this thread."""
    found: dict[Node, None] = {}
    pending = [tensor.grad_fn for tensor in tensors]
    while pending:
        node = pending.pop()
        # The nodes that accumulate into leaves carry the largest number there is, and consume nothing.
        if node is None or node in found or node._sequence_nr() < since or not node.next_functions:
            continue
        found[node] = None
        pending.extend(edge[0] for edge in node.next_functions)
    return list(found)


def _edge(tensor: Tensor) -> Edge:
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def _base(tensor: Tensor) -> Tensor | None:
    base = tensor._base
    return base if base is not None and base.requires_grad and base.dtype == tensor.dtype else None
