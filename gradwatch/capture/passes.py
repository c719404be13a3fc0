"""Which backward passes a record is about: those that leave gradients in leaves, as ``loss.backward()`` does.

``torch.autograd.grad`` runs through the same graph and reaches the same hooks: for the penalty of a Wasserstein critic, for the
residual of a physics-informed network, for a saliency map. What it returns is a quantity like any other, and no gradient of the
loss. Where a step has no other pass, though, one that asks for the gradients of the model's own parameters is its backward pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge
from torch.nn.parameter import is_lazy

from gradwatch.capture.engine import graph_task

_will_execute = getattr(torch._C, "_will_engine_execute_node", None)
_current_node = getattr(torch._C, "_current_autograd_node", None)


class Kind(IntEnum):
    """What a pass does; the passes of a step that rank highest are its backward passes."""

    ELSEWHERE = 0
    """It asks for gradients of something else than parameters."""
    ASKS = 1
    """It asks for gradients of parameters, and leaves nothing in them."""
    ACCUMULATES = 2
    """It leaves gradients in leaves."""


class Passes:
    """Tells the kind of the pass that is running, and remembers it as long as a record lasts.

    Args:
        leaves: The parameters of the model.
    """

    def __init__(self, leaves: Iterable[Tensor]) -> None:
        self._known: dict[int, Kind] = {}
        self.know(leaves)

    def know(self, leaves: Iterable[Tensor]) -> None:
        """Takes note of the parameters that the model has now."""
        self._leaves = [leaf for leaf in leaves if not is_lazy(leaf)]

    def kind(self, outer: int = -1) -> Kind:
        """The kind of the pass that runs in this thread.

        Args:
            outer: The pass inside of which the graph was built, -1 where there is none: what a backward pass asks for on its
                way, in an autograd function that computes its gradient by autograd, is a part of it.
        """
        task = graph_task()
        known = self._known.get(task)
        if known is None:
            known = self._known[task] = _kind(self._leaves)
        return max(known, self._known.get(outer, Kind.ELSEWHERE))

    def clear(self) -> None:
        """Forgets the passes of a record."""
        self._known.clear()


def _kind(leaves: Iterable[Tensor]) -> Kind:
    if _will_execute is None or _current_node is None or graph_task() == -1:
        return Kind.ACCUMULATES
    asked = False
    for leaf in leaves:
        if leaf.requires_grad:
            accumulated = _accumulated(_node_of(leaf))
            if accumulated:
                return Kind.ACCUMULATES
            asked |= accumulated is None
    if asked:
        return Kind.ASKS
    # None of the model's own: a frozen critic passes gradients on, and a sharded model computes with leaves of its own making.
    return Kind.ACCUMULATES if _reaches_a_leaf(_current_node()) else Kind.ELSEWHERE


def _node_of(leaf: Tensor) -> Node | None:
    try:
        return get_gradient_edge(leaf).node
    except RuntimeError:  # a tensor of a kind of its own, of which there is no view
        return None


def _accumulated(node: Node | None) -> bool | None:
    """Whether the pass leaves a gradient in the leaf of this node; None where it only asks for the leaf's gradient."""
    if node is None:
        return False
    try:
        return bool(_will_execute(node))  # type: ignore[misc]  # it is there, or nobody asks
    except RuntimeError:
        return None


def _reaches_a_leaf(start: Node | None) -> bool:
    pending, seen = [start], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name().endswith("AccumulateGrad"):
            accumulated = _accumulated(node)
            if accumulated is not False:
                return accumulated is True
        pending += [following for following, _ in node.next_functions]
    return False
