"""Which sites a record has, in forward order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from gradwatch import moments, names, octaves
from gradwatch.capture.activations import Activations
from gradwatch.moments import Array
from gradwatch.octaves import Counts
from gradwatch.records import Site

ORDER = ("activation", "activation_grad", "input_grad")

Notes = tuple[list[Site], npt.NDArray[np.intp], npt.NDArray[np.float64]]

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
        notes: Notes,
        members: Members,
        trainable: Sequence[str],
        *,
        full: bool,
        graded: bool,
        counts: Counts | None = None,
    ) -> tuple[tuple[Site, ...], Array, Array | None]:
        """Merges the rows of each site and orders them.

        Args:
            sites: What was measured, in any order, a site possibly several times.
            rows: (len(sites), moments.COLUMNS).
            notes: Sites, possibly several times, the columns of shares, and the shares; of several the mean counts.
            members: What the model was made of.
            trainable: The parameters that the record is about; those without a measurement got no gradient.
            full: Whether activations and weights were sampled.
            graded: Whether anybody knows the parameters' gradients; else the record says nothing of them, not even that there
                are none.
            counts: Elements in each octave, (len(sites), len(octaves.EXPONENTS)), or None.

        Returns:
            The record's sites, their rows, and their counts.
        """
        places = self._look_up(sites, members, trainable, full=full, graded=graded)
        if places.once is not None:
            merged: Array = rows[places.once]
        else:
            merged = moments.merge_all(rows[places.known], places.where, len(places.ordered))
        places.enter(notes, merged)
        counted = None
        if counts is not None:
            counted = octaves.added(counts[places.known], places.where, len(places.ordered)).astype(np.float32)
        return places.ordered, merged, counted

    def arrange_light(
        self, sites: Sequence[Site], rows: Array, members: Members, trainable: Sequence[str]
    ) -> tuple[tuple[Site, ...], Array] | None:
        """Orders the rows of several light records at once.

        Args:
            sites: What was measured, the same in all of them.
            rows: (records, len(sites), moments.COLUMNS).
            members: What the model was made of.
            trainable: The parameters that the records are about.

        Returns:
            As ``arrange``; None where a site was measured several times or not at all, and rows have to be merged.
        """
        places = self._look_up(sites, members, trainable, full=False, graded=True)
        return None if places.once is None else (places.ordered, rows[:, places.once])

    def _look_up(self, sites: Sequence[Site], members: Members, trainable: Sequence[str], *, full: bool, graded: bool) -> _Places:
        if any(now is not before for now, before in zip(members, self._members, strict=True)):
            self._members = members
            self._cache.clear()
        key = full, graded, tuple(trainable)
        places = self._cache.get(key)
        # The sites of most records are the same objects, compared by identity.
        return self._places(sites, key) if places is None or places.measured != sites else places

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
        once: Where each site of the record was measured once and nothing else was: the measurement of each.
    """

    __slots__ = ("known", "measured", "noted", "once", "ordered", "position", "where")

    def __init__(self, measured: Sequence[Site], ordered: tuple[Site, ...]) -> None:
        self.measured = list(measured)
        self.ordered = ordered
        self.position = {site: index for index, site in enumerate(ordered)}
        where = np.array([self.position.get(site, -1) for site in measured], np.intp)
        self.known = where >= 0
        self.where = where[self.known]
        exact = self.known.all() and len(where) == len(ordered) == len(self.position) and len(np.unique(where)) == len(where)
        self.once = np.argsort(where) if exact else None
        self.noted: tuple[list[Site], npt.NDArray[np.intp]] = [], np.empty(0, np.intp)

    def enter(self, notes: Notes, rows: Array) -> None:
        """Enters shares into the rows of the record, where something was measured; one that is not finite says nothing."""
        sites, columns, shares = notes
        if self.noted[0] != sites:  # the same objects in most records
            self.noted = sites, np.array([self.position.get(site, -1) for site in sites], np.intp)
        index = self.noted[1]
        told = (index >= 0) & np.isfinite(shares)
        told[told] = rows[index[told], moments.COUNT] > 0
        if not told.any():
            return
        total, times = np.zeros(rows.shape), np.zeros(rows.shape)
        at = index[told], columns[told]
        np.add.at(total, at, shares[told])
        np.add.at(times, at, 1)
        rows[times > 0] = total[times > 0] / times[times > 0]
