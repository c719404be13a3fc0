"""What the processes have agreed to exchange: the sites of all of them, in one order.

A branch that only some ranks take, or a stage that only one of them has, gives each process sites of its own. So rows are sent
by the places of an agreed list, which grows when somebody meets a site that is not on it; never one message for each layer.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gradwatch.distributed.merging import ABSENT, Flags
from gradwatch.moments import CALLS, COLUMNS, COUNT, EMPTY, NONFINITE, RMS, Array
from gradwatch.records import OF_PARAMETERS, Site

LIGHT = (COUNT, CALLS, RMS, NONFINITE)
"""The columns of a light record, of which everything else is unknown."""

Places = npt.NDArray[np.intp]
Key = tuple[str, str]


class Held(Protocol):
    """What a process holds of a parameter."""

    @property
    def sharded(self) -> bool:
        """Whether other processes hold other elements of it."""

    @property
    def speaks(self) -> bool:
        """Whether the rows of this shard count: another process may hold the same one."""


@dataclass(frozen=True)
class Placement:
    """How the model lies in this process.

    Attributes:
        held: Parameter → what is held of it.
        same_samples: The ranks that compute the same samples as this one, and itself; empty: nobody else.
    """

    held: Mapping[str, Held]
    same_samples: tuple[int, ...] = ()


def answer(sites: Iterable[Site], placement: Placement) -> bytes:
    """What a process tells the others of its sites, as JSON."""
    listed = [(site.layer, site.tensor, site.type, site.shape) for site in sites]
    sharded = [name for name, held in placement.held.items() if held.sharded]
    return json.dumps({"sites": listed, "sharded": sharded, "samples": placement.same_samples}).encode()


class Agreement:
    """The agreed list of sites. All processes make it of the same answers, and so the same.

    Args:
        sites: In the order of forward, as far as there is one.
        sharded: Parameters of which some process holds only a shard.
        groups: The ranks, by the samples that they compute.
        of_each: What each rank has of the list.
    """

    def __init__(
        self,
        sites: Sequence[Site] = (),
        sharded: Collection[str] = (),
        groups: Sequence[Sequence[int]] = (),
        of_each: Sequence[frozenset[Key]] = (),
    ) -> None:
        self.sites = tuple(sites)
        self.groups = groups
        self._of_each = of_each
        self._sharded_names = frozenset(sharded)
        self._place: dict[Key, int] = {(site.layer, site.tensor): index for index, site in enumerate(self.sites)}
        self._known: dict[int, tuple[tuple[Site, ...], Places]] = {}
        self._tuples: dict[bytes, tuple[Site, ...]] = {}
        of_parameter = np.array([site.tensor in OF_PARAMETERS for site in self.sites], bool)
        self.sharded: Flags = np.array([site.layer in self._sharded_names for site in self.sites], bool) & of_parameter
        self.copied: Flags = of_parameter & ~self.sharded
        self.weights: Flags = np.array([site.tensor == "parameter" for site in self.sites], bool) & ~self.sharded
        gradient = np.array([site.tensor == "parameter_grad" for site in self.sites], bool)
        everywhere = np.array([all((site.layer, site.tensor) in own for own in of_each) for site in self.sites], bool)
        # Of gradients that are copies nothing has to be sent in a light record: they are averaged, and equal everywhere.
        self.light: Places = np.flatnonzero(gradient & (self.sharded | ~everywhere))

    def extended(self, answers: Sequence[bytes]) -> Agreement:
        """With the sites of new answers, one of each rank."""
        told = [json.loads(text) for text in answers]
        order, sharded = list(self.sites), set(self._sharded_names)
        of_each = []
        for one, before in zip(told, self._of_each or [frozenset[Key]()] * len(told), strict=True):
            sites = [Site(layer, tensor, kind, tuple(shape)) for layer, tensor, kind, shape in one["sites"]]
            order = woven(order, sites)
            sharded.update(one["sharded"])
            of_each.append(before.union((site.layer, site.tensor) for site in sites))
        groups = {tuple(one["samples"]) or (rank,): None for rank, one in enumerate(told)}
        return Agreement(order, sharded, list(groups), of_each)

    @cached_property
    def digest(self) -> float:
        """Two agreements that are not equal have different ones, all but certainly."""
        return float(zlib.crc32(json.dumps([list(self._place), sorted(self._sharded_names), list(self.groups)]).encode()))

    def has(self, sites: tuple[Site, ...]) -> bool:
        """Whether all these sites are on the list."""
        return bool((self.places(sites) >= 0).all())

    def places(self, sites: tuple[Site, ...]) -> Places:
        """The place of each of a record's sites on the list, -1 where it has none."""
        known = self._known.get(id(sites))
        if known is None or known[0] is not sites:  # by identity: a run has two such tuples, and few more
            if len(self._known) >= 64:
                self._known.clear()
            found = np.array([self._place.get((site.layer, site.tensor), -1) for site in sites], np.intp)
            known = self._known[id(sites)] = sites, found
        return known[1]

    def mute(self, held: Mapping[str, Held]) -> Flags:
        """The sites whose rows do not count, as another process holds the same shard and sends it: (sites of the list,)."""
        silent = {name for name, one in held.items() if one.sharded and not one.speaks}
        mute: Flags = self.sharded & np.array([site.layer in silent for site in self.sites], bool)
        return mute

    def table(self, sites: tuple[Site, ...], rows: Array, mute: Flags, *, full: bool) -> Array:
        """A record's rows as they are sent.

        Args:
            sites: The record's.
            rows: (len(sites), columns).
            mute: What ``mute`` tells.
            full: Whether the record is a full one.

        Returns:
            (sites of the list, columns), or (sites of ``light``, columns of ``LIGHT``) where it is not.
        """
        places = self.places(sites)
        out = np.tile(EMPTY, (len(self.sites), 1))
        out[:, COUNT] = ABSENT
        out[places[places >= 0]] = rows[places >= 0]
        out[mute & (out[:, COUNT] > 0)] = EMPTY
        return out if full else np.ascontiguousarray(out[self.light][:, LIGHT])

    def chosen(self, present: Flags) -> tuple[Site, ...]:
        """The sites of the list where a flag is set; the same object for the same flags, by which detectors know a tuple."""
        key = present.tobytes()
        if key not in self._tuples:
            if len(self._tuples) >= 64:
                self._tuples.clear()
            self._tuples[key] = tuple(self.sites[index] for index in np.flatnonzero(present))
        return self._tuples[key]

    def received(self, message: bytes, *, full: bool) -> Array:
        """A table as it was sent, with all columns; the inverse of ``table(...).tobytes()``."""
        if full:
            return np.frombuffer(message, np.float32).reshape(len(self.sites), len(COLUMNS))
        out = np.tile(EMPTY, (len(self.light), 1))
        out[:, LIGHT] = np.frombuffer(message, np.float32).reshape(len(self.light), len(LIGHT))
        return out


def woven(order: Sequence[Site], other: Sequence[Site]) -> list[Site]:
    """Puts what is new in another order behind what it follows there."""
    keys = {(site.layer, site.tensor) for site in order}
    behind: dict[Key | None, list[Site]] = {}
    last: Key | None = None
    for site in other:
        key = site.layer, site.tensor
        if key in keys:
            last = key
        else:
            behind.setdefault(last, []).append(site)
    out = behind.pop(None, [])
    for site in order:
        out += [site, *behind.pop((site.layer, site.tensor), ())]
    return out
