"""Shares of small activations, taken together when the record ends: units that are awake, valves that are closed.

Each of them takes a dozen calls of PyTorch; for all layers of one shape together it takes as many.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from gradwatch import moments
from gradwatch.capture import transfer, units
from gradwatch.capture.transfer import Tape
from gradwatch.records import Site

Key = TypeVar("Key")
Entry = TypeVar("Entry")


class Shares:
    """Takes small tensors of a record, until there are many or the record ends.

    Args:
        tape: Where the shares go.
        saw: Takes layers and which of their units were awake, (layers, units).
    """

    def __init__(self, tape: Tape, saw: Callable[[tuple[str, ...], Tensor], None]) -> None:
        self._tape, self._saw = tape, saw
        self._outputs: dict[tuple[torch.Size, int], list[tuple[str, Tensor]]] = {}
        self._passages: dict[tuple[torch.Size, float | None], list[tuple[Site, Tensor, Tensor]]] = {}
        self._tensors = self._elements = 0

    def output(self, layer: str, values: Tensor, axis: int) -> None:
        """Takes what an activation returned; ``axis``: the dimension of its units."""
        self._outputs.setdefault((values.shape, axis), []).append((layer, values))
        self._count(values)

    def passage(self, site: Site, peak: float | None, came: Tensor, passed: Tensor) -> None:
        """Takes dL/da and dL/dz of an activation, whose largest derivative is ``peak``, if that is known."""
        self._passages.setdefault((came.shape, peak), []).append((site, came, passed))
        self._count(came)

    def forget_passages(self) -> None:
        """Drops the gradients that were taken."""
        self._passages.clear()

    def _count(self, values: Tensor) -> None:
        self._tensors += 1
        self._elements += values.numel()
        if self._tensors >= transfer.MAX_ROWS or self._elements > transfer.MAX_COPIED:
            self.tell()

    def tell(self) -> None:
        """Works out the shares of all that was taken."""
        outputs, passages = self._outputs, self._passages
        self._outputs, self._passages, self._tensors, self._elements = {}, {}, 0, 0
        for (_, axis), some in _taken(outputs):
            stack = torch.stack([values for _, values in some])
            self._saw(tuple(layer for layer, _ in some), units.awake_in_each(stack, axis))
        for (_, peak), ways in _taken(passages):
            came = torch.stack([arrived for _, arrived, _ in ways]).reshape(len(ways), -1)
            passed = torch.stack([left for _, _, left in ways]).reshape(len(ways), -1)
            self._tape.note_all(tuple(site for site, *_ in ways), moments.CLOSED, units.closed_shares(peak, came, passed))


def _taken(groups: dict[Key, list[Entry]]) -> list[tuple[Key, list[Entry]]]:
    """The groups as they are now: another thread may still add to them."""
    return [(key, list(entries)) for key, entries in list(groups.items())]
