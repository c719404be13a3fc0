"""Small tensors of one shape, reduced together.

On a CPU a call of PyTorch takes a microsecond or more, whatever it computes: as long as reading 10,000 elements. The parameters
of a network have few shapes, so that stacking those of one shape and reducing the stack saves nearly all of the calls.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradwatch import moments

FEWEST = 3
"""Tensors of one shape that are worth a stack."""


class Alike:
    """Which tensors of a sequence are small and of one shape.

    Args:
        shapes: Of the tensors, in their order.

    Attributes:
        together: The positions of each group of alike ones.
        alone: The positions of all others.
        order: All positions, group by group and then those alone: the order of what is returned about the tensors.
    """

    def __init__(self, shapes: Sequence[torch.Size]) -> None:
        self._shapes = list(shapes)
        groups: dict[torch.Size, list[int]] = {}
        for position, shape in enumerate(shapes):
            groups.setdefault(shape, []).append(position)
        self.together = [group for shape, group in groups.items() if len(group) >= FEWEST and shape.numel() <= moments.SMALL]
        grouped = {position for group in self.together for position in group}
        self.alone = [position for position in range(len(shapes)) if position not in grouped]
        self.order = [position for group in (*self.together, self.alone) for position in group]

    def stacks(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The stack of each group of ``together``, (tensors of the group, their shape), cut off from the graph.

        Returns:
            Nothing where not all of them are ordinary, see ``norms``.
        """
        try:
            with torch.no_grad():
                stacks = [torch.stack([tensors[position] for position in group]) for group in self.together]
        except RuntimeError:
            return []
        expected = zip(stacks, self.together, strict=True)
        return (
            stacks
            if all(moments.is_plain(stack) and stack.shape[1:] == self._shapes[group[0]] for stack, group in expected)
            else []
        )

    def norms(self, tensors: Sequence[Tensor]) -> list[float] | None:
        """The Euclidean norm of each tensor, in ``order``, reduced in float32.

        Returns:
            None where not all of them are ordinary: dense, in float32, in main memory, of the shapes that were told.
        """
        norms: list[float] = []
        try:
            for group in self.together:
                stacked = torch.stack([tensors[position] for position in group])
                if not moments.is_plain(stacked) or stacked.shape[1:] != self._shapes[group[0]]:
                    return None
                norms += torch.linalg.vector_norm(stacked.reshape(len(group), -1), dim=1).tolist()
        except RuntimeError:  # no stack can be made of them: sparse ones, or the data of a parameter were exchanged for others
            return None
        alone = [tensors[position] for position in self.alone]
        for tensor, position in zip(alone, self.alone, strict=True):
            if not moments.is_plain(tensor) or tensor.shape != self._shapes[position]:
                return None
        return norms + [norm.item() for norm in torch._foreach_norm(alone)] if alone else norms
