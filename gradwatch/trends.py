"""What the newest record means against the run so far: one vector per quantity, over every site ever seen.

Detectors read these vectors and never rescan the history, so that the ten-thousandth record costs what the tenth did.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from gradwatch import moments, names
from gradwatch.losses import Losses
from gradwatch.moments import Array
from gradwatch.records import OF_PARAMETERS, Record, Site

USUAL = 20
"""Records over which a site's usual level is averaged, in log units: longer than noise, shorter than a phase of training."""

RECENT = 5
"""Records over which a site's recent level is averaged, in log units: a rise shows here first."""

CALM = (0.01, 10.0)
"""A gradient's rms over its usual level, between which nothing is to be said of it."""

MOST_CALM = 12
"""Calm records in a row of which that holds: they move the usual level, by a twentieth of the distance each."""

CALM_GROWTH = 100.0
"""What all of them stay under, over the level that is usual then: after eleven records at a hundredth it has fallen by a factor of
7.3, and the twelfth may be ten times what it was before."""

Values = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Sites = tuple[Site, ...]
Answer = TypeVar("Answer")


def per_sites(compute: Callable[[Sites], Answer]) -> Callable[[Sites], Answer]:
    """Remembers what a function says of a tuple of sites, by identity: a run has two such tuples, few more as it grows."""
    known: dict[int, tuple[Sites, Answer]] = {}

    def remembered(sites: Sites) -> Answer:
        hit = known.get(id(sites))
        if hit is not None and hit[0] is sites:
            return hit[1]
        if len(known) >= 64:
            known.clear()
        answer = compute(sites)
        known[id(sites)] = sites, answer
        return answer

    remembered.__doc__ = compute.__doc__
    return remembered


@per_sites
def gradients(sites: Sites) -> Counts:
    """The positions of the gradients of parameters among the sites."""
    return np.array([index for index, site in enumerate(sites) if site.tensor == "parameter_grad"], np.int64)


@per_sites
def output_gradients(sites: Sites) -> Counts:
    """The positions of the gradients of outputs, in forward order."""
    return np.array([index for index, site in enumerate(sites) if site.tensor == "activation_grad"], np.int64)


@per_sites
def matrices(sites: Sites) -> Counts:
    """The positions of the gradients of weight matrices and convolutions, without embeddings, in forward order."""
    found = [
        index
        for index, site in enumerate(sites)
        if site.tensor == "parameter_grad"
        and site.is_matrix
        and "Embedding" not in site.type
        and names.owner(site.layer) != names.UNREGISTERED  # nobody knows where forward comes by
    ]
    return np.array(found, np.int64)


@per_sites
def updates(sites: Sites) -> Counts:
    """The positions of the updates of parameters among the sites."""
    return np.array([index for index, site in enumerate(sites) if site.tensor == "update"], np.int64)


@per_sites
def matrix_updates(sites: Sites) -> Counts:
    """(update, weight) of each matrix, by position: (matrices, 2)."""
    at = {(site.layer, site.tensor): index for index, site in enumerate(sites)}
    found = [
        (index, at[site.layer, "parameter"])
        for index, site in enumerate(sites)
        if site.tensor == "update" and site.is_matrix and (site.layer, "parameter") in at
    ]
    return np.array(found, np.int64).reshape(-1, 2)


@per_sites
def trained_layers(sites: Sites) -> frozenset[str]:
    """The layers whose parameters a record is about."""
    return frozenset(names.owner(site.layer) for site in sites if site.tensor == "parameter_grad")


@per_sites
def _is_of_parameter(sites: Sites) -> Flags:
    return np.array([site.tensor in OF_PARAMETERS for site in sites], bool)


@per_sites
def _last_output(sites: Sites) -> int | None:
    return next((index for index in reversed(range(len(sites))) if sites[index].tensor == "activation"), None)


class Calm(NamedTuple):
    """What the sites of a light record have to keep within for it to be like those before it.

    Attributes:
        low: rms, (sites,).
        high: rms, (sites,).
        loss: What the loss is under, that of the start; None where no loss was ever told.
    """

    low: Values
    high: Values
    loss: float | None


@dataclass
class _Optimizer:
    """What each of several optimizers has for itself, known by the layers that it trains."""

    layers: set[str]
    losses: Losses = field(default_factory=Losses)
    overflows: int = 0


class Trends:
    """Running figures of every site, updated record by record.

    Attributes:
        sites: Every site ever seen; all vectors below are in this order, shape (sites,).
        outputs: The positions of the gradients of outputs in the vectors, in forward order.
        level: log10 of the rms in the newest record; NaN where a site was not in it, -inf for exactly zero and for no gradient.
        usual: log10 of the usual rms of the records before it, non-zero ones; NaN before there is one.
        recent: The same over the last few records.
        start: log10 of the rms in the first record that held the site; -inf for exactly zero.
        seen: Records that held the site.
        silent: Records in a row, up to the newest, in which the site was exactly zero or got no gradient.
        quiet: The longest such row that ended.
        harmless: Sites that held a NaN or an infinity in a record that was not broken, such as a mask.
        repeated: Sites that were called several times in a full record, as a recurrent cell is for each time step.
        full_records: Full records so far.
        full_step: The step of the newest of them; -1 before the first.
        full_before: The step of the one before that; -1 before the second.
        resting: Whether any site is silent.
        losses: What the loss has done, in the steps of the newest record's optimizer: each of several may have a loss of its own.
        output_variance: Variance of the last layer's output in the newest full record; NaN where there is none.
        idle: Backward passes since the start without a single optimizer step; 0 once there was one.
        overflows: Steps of the newest record's optimizer in a row, up to that record, that were skipped and ``broken``.
        broken: Whether a NaN or an infinity has reached the loss, a parameter or its gradient in the newest record. One that
            reaches neither, such as the -inf of an attention mask, harms nothing.
    """

    def __init__(self) -> None:
        self.sites: list[Site] = []
        self.outputs = np.empty(0, np.int64)
        self.level, self.usual, self.recent, self.start = (np.empty(0) for _ in range(4))
        self.seen, self.silent, self.quiet = (np.empty(0, np.int64) for _ in range(3))
        self.harmless, self.repeated = np.empty(0, bool), np.empty(0, bool)
        self.full_records, self.full_step, self.full_before = 0, -1, -1
        self.resting = False
        self.losses = Losses()
        self.overflows = 0
        self._optimizers: list[_Optimizer] = []
        self.broken = False
        self.output_variance = math.nan
        self.idle = 0
        self._stepped = False
        self._now_usual, self._now_recent = np.empty(0), np.empty(0)
        self._index: dict[Site, int] = {}
        self._where: dict[int, tuple[Sites, Counts]] = {}

    def update(self, record: Record) -> None:
        """Takes the newest record."""
        own = self._optimizer_of(record.sites)
        self.losses = own.losses
        self.losses.take(record.loss)
        self._stepped |= not record.skipped
        self.idle = 0 if self._stepped else self.idle + max(1, record.backwards)
        where = self.where(record.sites)
        rms = record.rows[:, moments.RMS]
        self.full_records += record.full
        if record.full:
            self.full_step, self.full_before = record.step, self.full_step
            self.repeated[where] |= record.rows[:, moments.CALLS] > 1
        self._take_output(record)
        np.copyto(self.usual, self._now_usual)
        np.copyto(self.recent, self._now_recent)
        self.level.fill(np.nan)
        self.broken = record.loss is not None and not math.isfinite(record.loss)
        if self._is_ordinary(where, rms, record.rows[:, moments.COUNT]):
            self.level[where] = level = np.log10(rms, dtype=np.float64)
            self.seen[where] += 1
            for average, length in ((self._now_usual, USUAL), (self._now_recent, RECENT)):
                average[where] += (level - average[where]) / length
        else:
            self._take_all(record, where, rms.astype(np.float64))
        self.overflows = own.overflows = own.overflows + 1 if record.skipped and self.broken else 0

    def calm(self, sites: Sites) -> Calm | None:
        """Between which levels the next light record has to lie to be like those before it.

        Args:
            sites: Those of the record, in any order.

        Returns:
            None where the run is not calm itself: it has just begun, a site is at rest, or there was a NaN.
        """
        if self.resting or self.broken or len(self._optimizers) != 1:
            return None
        where = self.where(sites)
        usual = self._now_usual[where]
        if not len(where) or self.seen[where].min() < USUAL or not np.isfinite(usual).all():
            return None
        losses = self.losses
        if not (math.isnan(losses.first) or losses.settled):
            return None
        low, high = (10**usual * bound for bound in CALM)
        return Calm(low, high, None if math.isnan(losses.first) else losses.first)

    def _optimizer_of(self, sites: Sites) -> _Optimizer:
        trained = trained_layers(sites)
        for optimizer in self._optimizers:
            if not optimizer.layers.isdisjoint(trained) or not (optimizer.layers and trained):
                optimizer.layers.update(trained)  # parameters may be thawed or added
                return optimizer
        self._optimizers.append(_Optimizer(set(trained)))
        return self._optimizers[-1]

    def _take_output(self, record: Record) -> None:
        last = _last_output(record.sites)
        if last is not None and record.rows[last, moments.COUNT] > 0:
            self.output_variance = float(record.rows[last, moments.RMS]) ** 2 - float(record.rows[last, moments.MEAN]) ** 2

    def _is_ordinary(self, where: Counts, rms: Array, count: Array) -> bool:
        """Whether every site was seen, finite and not zero, as often before: nearly every record, with little to be done."""
        if self.resting or not len(rms) or not math.isfinite(rms.sum(dtype=np.float64)) or not rms.min() > 0 or not count.min() > 0:
            return False
        return bool(self.seen[where].min() >= USUAL)

    def _take_all(self, record: Record, where: Counts, rms: Values) -> None:
        measured = record.rows[:, moments.COUNT] > 0
        broken = measured & (~np.isfinite(rms) | (record.rows[:, moments.NONFINITE] > 0))
        if broken.any():
            decisive = measured & _is_of_parameter(record.sites)
            self.broken |= bool((broken & decisive).any() if decisive.any() else True)
            if not self.broken:
                self.harmless[where[broken]] = True
        # A gradient that is missing is a zero one; anything else that is missing was not observed.
        seen = measured.copy()
        seen[gradients(record.sites)] = True
        with np.errstate(divide="ignore"):
            level = np.log10(np.where(measured, rms, 0))
        level[~seen] = np.nan
        self.level[where] = level
        self._count_silence(where, seen, level == -np.inf)
        finite = np.isfinite(level) & ~broken
        where, level = where[finite], level[finite]
        for average, length in ((self._now_usual, USUAL), (self._now_recent, RECENT)):
            before = average[where]
            after = before + (level - before) / np.minimum(self.seen[where], length)
            average[where] = np.where(np.isnan(before), level, after)

    def _count_silence(self, where: Counts, seen: Flags, zero: Flags) -> None:
        silent, times = self.silent[where], self.seen[where]
        ended = seen & ~zero & (silent > 0)
        self.quiet[where[ended]] = np.maximum(self.quiet[where[ended]], silent[ended])
        self.silent[where] = np.where(zero, silent + 1, np.where(seen, 0, silent))
        self.resting = bool(self.silent.any())
        new = times == 0
        self.start[where[new]] = self.level[where[new]]
        self.seen[where] = times + seen

    def where(self, sites: Sites) -> Counts:
        """The position of each of a record's sites in the vectors, (len(sites),)."""
        hit = self._where.get(id(sites))
        if hit is not None and hit[0] is sites:
            return hit[1]
        fresh = [site for site in dict.fromkeys(sites) if site not in self._index]
        if fresh:
            self._grow(fresh)
        where = np.array([self._index[site] for site in sites], np.int64)
        if len(self._where) >= 64:
            self._where.clear()
        self._where[id(sites)] = sites, where
        return where

    def _grow(self, fresh: list[Site]) -> None:
        for site in fresh:
            self._index[site] = len(self.sites)
            self.sites.append(site)
        self.outputs = np.array([index for index, site in enumerate(self.sites) if site.tensor == "activation_grad"], np.int64)
        for name in ("level", "usual", "recent", "start", "_now_usual", "_now_recent"):
            setattr(self, name, np.concatenate([getattr(self, name), np.full(len(fresh), np.nan)]))
        for name in ("harmless", "repeated"):
            setattr(self, name, np.concatenate([getattr(self, name), np.zeros(len(fresh), bool)]))
        for name in ("seen", "silent", "quiet"):
            setattr(self, name, np.concatenate([getattr(self, name), np.zeros(len(fresh), np.int64)]))
