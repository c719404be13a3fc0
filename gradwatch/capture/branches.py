"""What a module hands back to its inputs: its own branch of their gradients, read off the graph without changing it.

Where an input also feeds other modules (a skip connection), a hook on the tensor would see the sum of all branches. Handing the
module a view of its input, and hooking that, would be shorter, but changes the order in which gradients are added up and with it
the last bits of training, wherever a module reads its input twice, as x * sigmoid(x) does, and a skip connection reads it too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from gradwatch.capture.engine import now

Edge = tuple[Node, int]


class Consumer(NamedTuple):
    """A node of the graph that reads an input.

    Attributes:
        node: The node.
        number: Which of the gradients that it hands back is the input's.
        shape: The input's shape; None where the gradient is that of a base whose elements lie in another order.
    """

    node: Node
    number: int
    shape: torch.Size | None


class Inputs:
    """Where the gradients of a call's inputs go, noted before the call: an operation in place moves its tensor in the graph.

    Args:
        tensors: What the call is given.

    Attributes:
        shapes: The shapes of the inputs that need a gradient.
    """

    __slots__ = ("_places", "_since", "shapes")

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.shapes: list[torch.Size] = []
        self._places: dict[Edge, tuple[int, torch.Size | None]] = {}
        for index, tensor in enumerate(tensors):
            if not tensor.requires_grad:
                continue
            self.shapes.append(tensor.shape)
            self._places[_edge(tensor)] = index, tensor.shape
            base = full_base(tensor)
            if base is not None:  # which then reads the input in its place, where the call writes into it
                plain = tensor.is_contiguous() and base.is_contiguous()
                self._places.setdefault(_edge(base), (index, tensor.shape if plain else None))
        self._since = now()

    def nodes(self, outputs: Iterable[Tensor]) -> list[Node]:
        """The nodes that the call made on the way from its inputs to its outputs."""
        found: list[Node] = []
        seen = {node for node, _ in self._places}
        pending = [output.grad_fn for output in outputs]
        while pending:
            node = pending.pop()
            if node is None or node in seen or node._sequence_nr() < self._since:
                continue
            seen.add(node)
            found.append(node)
            pending.extend(edge[0] for edge in node.next_functions)
        return found

    def consumers(self, nodes: Iterable[Node]) -> dict[int, list[Consumer]]:
        """The nodes that read each input, by the input's number."""
        found: dict[int, list[Consumer]] = {}
        for node in nodes:
            for number, edge in enumerate(node.next_functions):
                if edge in self._places:
                    index, shape = self._places[edge]
                    found.setdefault(index, []).append(Consumer(node, number, shape))
        return found


class Parts:
    """The parts of one input's gradient, added up until all of a backward pass have arrived.

    Args:
        expected: How many consumers the input has.
    """

    __slots__ = ("_expected", "_sums")

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._sums: dict[int, tuple[int, Tensor | None]] = {}

    def __bool__(self) -> bool:
        return bool(self._sums)

    def add(self, graph_task: int, part: Tensor | None) -> Tensor | None:
        """Takes a part, and returns the sum once it is complete; None before, and where no part was a gradient."""
        arrived, total = self._sums.pop(graph_task, (0, None))
        if part is not None:
            total = part if total is None else total + part
        if arrived + 1 == self._expected:
            return total
        self._sums[graph_task] = arrived + 1, total
        return None

    def rest(self) -> Iterator[Tensor]:
        """The sums of passes that did not reach every consumer."""
        sums = [total for _, total in self._sums.values() if total is not None]
        self.clear()
        return iter(sums)

    def clear(self) -> None:
        """Forgets what has arrived."""
        self._sums.clear()


def full_base(tensor: Tensor) -> Tensor | None:
    """The tensor that a view shows whole, where an operation in place on the view would move the gradient's way to it."""
    base = tensor._base
    # A view of a leaf cannot be written in place, as long as gradients are recorded.
    return base if base is not None and base.requires_grad and not base.is_leaf and base.numel() == tensor.numel() else None


def _edge(tensor: Tensor) -> Edge:
    node = tensor.grad_fn
    return get_gradient_edge(tensor).node if node is None else node, tensor.output_nr
