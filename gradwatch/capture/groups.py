"""Parameters that are read together, as nearly every step has the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import NamedTuple

import numpy as np
from torch import Tensor

from gradwatch.capture.alike import Alike
from gradwatch.capture.shards import Holding, is_distributed
from gradwatch.records import Site

Sites = tuple[Site, Site, Site]
"""Of a weight, its gradient and its update."""


def sites_of(name: str, kind: str, shape: tuple[int, ...]) -> Sites:
    """The three sites of a parameter."""
    return Site(name, "parameter", kind, shape), Site(name, "parameter_grad", kind, shape), Site(name, "update", kind, shape)


class Same(NamedTuple):
    """Small parameters of one shape."""

    names: tuple[str, ...]
    weights: tuple[Site, ...]
    gradients: tuple[Site, ...]
    updates: tuple[Site, ...]


class Group:
    """Parameters in a row, and what is known of them once and for all.

    Args:
        names: Of the parameters.
        held: What this process holds of each.
        sites: Of each.

    Attributes:
        names: The same.
        alike: The shapes of what is held.
        gradients: The sites of the gradients, in the order of ``alike``.
        counts: Elements that are held, in the same order.
        together: The groups of ``alike``.
        alone: The names of the others.
        plain: Whether all of each parameter is held, as a tensor of the usual kind.
    """

    def __init__(self, names: Sequence[str], held: Sequence[Holding], sites: Sequence[Sites]) -> None:
        self.names = names
        self.plain = not any(one.sharded or one.stretch is not None or is_distributed(one.leaf) for one in held)
        self._held, self._leaves, self._sites = held, [one.leaf for one in held], sites
        weights = self.weights()
        self.alike = Alike([weight.shape for weight in weights])
        self.gradients = tuple(sites[position][1] for position in self.alike.order)
        self.counts = np.array([weights[position].numel() for position in self.alike.order], np.float64)
        self.alone = [names[position] for position in self.alike.alone]
        self.together = [
            Same(
                tuple(names[position] for position in group),
                tuple(sites[position][0] for position in group),
                tuple(sites[position][1] for position in group),
                tuple(sites[position][2] for position in group),
            )
            for group in self.alike.together
        ]
        self._flags: list[bool] = []
        self._trainable: list[str] = []
        self._part: tuple[list[bool], Group] | None = None

    def weights(self) -> list[Tensor]:
        """What is held of each parameter."""
        return self._leaves if self.plain else [one.weight() for one in self._held]

    def grads(self) -> list[Tensor | None]:
        """What is held of each gradient; None where there is none."""
        return [leaf.grad for leaf in self._leaves] if self.plain else [one.grad() for one in self._held]

    def trainable(self) -> list[str]:
        """The names of those that ask for a gradient now, and have elements here: the same list, as long as they are the same."""
        flags = [leaf.requires_grad for leaf in self._leaves]
        if not self.plain:
            flags = [flag and (not one.sharded or one.numel > 0) for flag, one in zip(flags, self._held, strict=True)]
        if flags != self._flags:
            self._flags, self._trainable = flags, list(compress(self.names, flags))
        return self._trainable

    def part(self, chosen: list[bool]) -> Group:
        """Some of them: the same group as the last time, where they are the same."""
        if self._part is None or self._part[0] != chosen:
            names, held = list(compress(self.names, chosen)), list(compress(self._held, chosen))
            self._part = chosen, Group(names, held, list(compress(self._sites, chosen)))
        return self._part[1]
