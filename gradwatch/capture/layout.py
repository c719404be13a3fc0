"""Which sites a record has, in forward order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from gradwatch import moments, names
from gradwatch.capture.activations import Activations
from gradwatch.moments import Array
from gradwatch.records import Site

ORDER = ("activation", "activation_grad", "input_grad")

_Key = tuple[bool, bool, tuple[str, ...]]


class Members(NamedTuple):
    """What a model was made of when a step ended. Both are replaced as it changes, and never changed themselves.

    Attributes:
        order: Layer → its type, in forward order.
        parameters: Name → the sites of its value, its gradient and its update.
        partial: Parameters of whose gradient no process can say anything.
    """

    order: Mapping[str, str]
    parameters: Mapping[str, tuple[Site, ...]]
    partial: frozenset[str] = frozenset()


class Layout:
    """Puts the measurements of a record in order: layer by layer as forward reaches them, each with its parameters."""

    def __init__(self) -> None:
        self._met: set[Site] = set()
        self._trained: set[str] = set()  # layers whose parameters got a gradient
        self._members = Members({}, {})
        self._cache: dict[_Key, _Places] = {}

    def arrange(
        self,
        sites: Sequence[Site],
        rows: Array,
        notes: Mapping[tuple[Site, int], float],
        members: Members,
        trainable: Sequence[str],
        *,
        full: bool,
        graded: bool,
    ) -> tuple[tuple[Site, ...], Array]:
        """Merges the rows of each site and orders them.

        Args:
            sites: What was measured, in any order, a site possibly several times.
            rows: (len(sites), moments.COLUMNS).
            notes: (site, column) → share.
            members: What the model was made of.
            trainable: The parameters that the record is about; those without a measurement got no gradient.
            full: Whether activations and weights were sampled.
            graded: Whether anybody knows the parameters' gradients; else the record says nothing of them, not even that there
                are none.

        Returns:
            The record's sites, and their rows.
        """
        if any(now is not before for now, before in zip(members, self._members, strict=True)):
            self._members = members
            self._cache.clear()
        key = full, graded, tuple(trainable)
        places = self._cache.get(key)
        if places is None or places.measured != sites:  # the sites of most records are the same objects, compared by identity
            places = self._places(sites, key)
        if not notes and places.as_measured:
            return places.ordered, rows
        merged = moments.merge_all(rows[places.known], places.where, len(places.ordered))
        for (site, column), share in notes.items():
            index = places.position.get(site, -1)
            if index >= 0 and merged[index, moments.COUNT] > 0:
                merged[index, column] = share
        return places.ordered, merged

    def _places(self, sites: Sequence[Site], key: _Key) -> _Places:
        self._trained |= {names.owner(site.layer) for site in sites if site.tensor == "parameter_grad"}
        fresh = {site for site in sites if site.tensor in ORDER or _is_unregistered(site)} - self._met
        if fresh:
            self._met |= fresh
            self._cache.clear()
        old = self._cache.get(key)
        full, graded, trainable = key
        # Whoever remembers something of a tuple of sites knows it by its identity.
        ordered = self._sites(trainable, full=full, graded=graded) if old is None else old.ordered
        if len(self._cache) >= 64:  # parameters that are frozen and thawed at random
            self._cache.clear()
        self._cache[key] = _Places(sites, ordered)
        return self._cache[key]

    def unseen(self, activations: Activations) -> dict[str, str]:
        """Layers of which no record holds an activation → why, as far as that can be known."""
        seen = {site.layer for site in self._met}
        return {
            layer: activations.unobserved(layer) or self._why(layer, activations)
            for layer in activations.layers
            if layer not in seen
        }

    def _why(self, layer: str, activations: Activations) -> str:
        if isinstance(activations.layers[layer], torch.jit.ScriptModule):
            return "a ScriptModule takes no hooks"
        if layer in activations.barren:
            return "it returned no tensor of floating-point numbers, or only nested ones of the strided layout"
        if layer in activations.reached:
            return "called only where no graph is built, or none is seen: no_grad, torch.func, a compiled graph"
        if layer in self._trained:
            return "not called through __call__, or only in a compiled graph; its parameters get gradients"
        return "never called through __call__, or only in a compiled graph"

    def _sites(self, trainable: Sequence[str], *, full: bool, graded: bool) -> tuple[Site, ...]:
        own: dict[str, list[str]] = {}
        for name in trainable:
            own.setdefault(names.owner(name), []).append(name)
        ordered: list[Site] = []
        order, parameters, partial = self._members
        for layer, kind in order.items():
            if full:
                candidates = (Site(layer, tensor, kind) for tensor in ORDER)  # type: ignore[arg-type]  # ORDER is of TensorName
                ordered += [site for site in candidates if site in self._met]
            ordered += _of(parameters, own.pop(layer, ()), partial, full=full, graded=graded)
        for rest in own.values():
            ordered += _of(parameters, rest, partial, full=full, graded=graded)
        if full:
            ordered += sorted(filter(_is_unregistered, self._met), key=lambda site: (site.layer, site.tensor))
        return tuple(ordered)


def _of(
    parameters: Mapping[str, tuple[Site, ...]], names: Iterable[str], partial: frozenset[str], *, full: bool, graded: bool
) -> list[Site]:
    """The sites of a record about these parameters, in their order.

    Args:
        parameters: Name → the sites of its value, its gradient and its update.
        names: The parameters.
        partial: Those of whose gradient nothing can be said.
        full: Whether weights and updates were sampled.
        graded: Whether their gradients could be read.
    """
    chosen = slice(0 if full else 1, 3 if full else 2) if graded else slice(0, 3 if full else 0, 2)
    sites = [site for name in names for site in parameters[name][chosen]]
    return [site for site in sites if site.layer not in partial or site.tensor != "parameter_grad"] if partial else sites


def _is_unregistered(site: Site) -> bool:
    return names.owner(site.layer) == names.UNREGISTERED


class _Places:
    """Where the rows of a record go.

    Args:
        measured: The sites as they were measured.
        ordered: The sites of the record.

    Attributes:
        position: Site → its place in ``ordered``.
        known: The measurements that have a place.
        where: Their places.
        as_measured: Whether the rows are in order as they are.
    """

    __slots__ = ("as_measured", "known", "measured", "ordered", "position", "where")

    def __init__(self, measured: Sequence[Site], ordered: tuple[Site, ...]) -> None:
        self.measured = list(measured)
        self.ordered = ordered
        self.position = {site: index for index, site in enumerate(ordered)}
        where = np.array([self.position.get(site, -1) for site in measured], np.intp)
        self.known = where >= 0
        self.where = where[self.known]
        self.as_measured = tuple(measured) == ordered
