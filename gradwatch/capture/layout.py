"""Which sites a record has, in forward order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gradwatch import moments, names
from gradwatch.capture.activations import Activations
from gradwatch.capture.parameters import Parameters
from gradwatch.moments import Array
from gradwatch.records import Site

ORDER = ("activation", "activation_grad", "input_grad")


class Layout:
    """Puts the measurements of a record in order: layer by layer as forward reaches them, each with its parameters.

    Args:
        activations: Knows the layers that forward has reached.
        parameters: Knows the parameters.
    """

    def __init__(self, activations: Activations, parameters: Parameters) -> None:
        self._activations = activations
        self._parameters = parameters
        self._met: set[Site] = set()
        self._cache: dict[tuple[bool, tuple[str, ...]], tuple[Site, ...]] = {}

    def arrange(
        self,
        sites: Sequence[Site],
        rows: Array,
        notes: Mapping[tuple[Site, int], float],
        trainable: Sequence[str],
        *,
        full: bool,
    ) -> tuple[tuple[Site, ...], Array]:
        """Merges the rows of each site and orders them.

        Args:
            sites: What was measured, in any order, a site possibly several times.
            rows: (len(sites), moments.COLUMNS).
            notes: (site, column) → share.
            trainable: The parameters that the record is about; those without a measurement got no gradient.
            full: Whether activations and weights were sampled.

        Returns:
            The record's sites, and their rows.
        """
        fresh = {site for site in sites if site.tensor in ORDER} - self._met
        if fresh:
            self._met |= fresh
            self._cache.clear()
        key = full, tuple(trainable)
        if key not in self._cache:
            self._cache[key] = self._sites(trainable, full=full)
        ordered = self._cache[key]
        if not notes and tuple(sites) == ordered:
            return ordered, rows
        position = {site: index for index, site in enumerate(ordered)}
        where = np.array([position.get(site, -1) for site in sites], np.intp)
        merged = moments.merge_all(rows[where >= 0], where[where >= 0], len(ordered))
        for (site, column), share in notes.items():
            index = position.get(site, -1)
            if index >= 0 and merged[index, moments.COUNT] > 0:
                merged[index, column] = share
        return ordered, merged

    def unseen(self) -> list[str]:
        """Layers of which no record holds an activation: forward never called them, or never where it built a graph."""
        seen = {site.layer for site in self._met}
        return [layer for layer in self._activations.layers if layer not in seen]

    def _sites(self, trainable: Sequence[str], *, full: bool) -> tuple[Site, ...]:
        own: dict[str, list[str]] = {}
        for name in trainable:
            own.setdefault(names.owner(name), []).append(name)
        ordered: list[Site] = []
        for layer, kind in self._activations.order.items():
            if full:
                candidates = (Site(layer, tensor, kind) for tensor in ORDER)  # type: ignore[arg-type]  # ORDER is of TensorName
                ordered += [site for site in candidates if site in self._met]
            ordered += self._parameters.sites(own.pop(layer, ()), full=full)
        for rest in own.values():
            ordered += self._parameters.sites(rest, full=full)
        return tuple(ordered)
