"""Steps that are over, and the records that come of them, one by one or several in one go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from gradwatch import moments, octaves
from gradwatch.capture.layout import Layout, Members
from gradwatch.capture.transfer import Transfer
from gradwatch.moments import Array
from gradwatch.records import Record, Site


class Light(NamedTuple):
    """All that there is to a step in which nothing but the norms of gradients was measured.

    Attributes:
        sites: In the order in which they were measured: always the same tuple, as long as it is the same parameters.
        counts: Elements, (sites,).
        norms: (sites,).
        loss: The mean of those told; None where none was.
    """

    sites: tuple[Site, ...]
    counts: npt.NDArray[np.float64]
    norms: list[float]
    loss: float | None


@dataclass
class Sealed:
    """A step that is over, while its measurements travel and its loss may still be told."""

    step: int
    members: Members
    trainable: list[str]
    graded: bool
    full: bool
    skipped: bool
    measured: Transfer
    layout: Layout
    put_compiled: Callable[[Mapping[Site, float]], Mapping[str, str]]
    closed: int  # nodes of the autograd graph from this number on are of a later step
    scaled: set[str]  # the parameters whose gradients carried the factor of a loss scaler when they were read
    losses: list[Tensor | float] = field(default_factory=list)

    @cached_property
    def light(self) -> Light | None:
        """What was measured, where the step was taken and nothing needs more than a look; None else. Waits for it."""
        if self.full or self.skipped or not self.graded or self.scaled:
            return None
        norms = self.measured.only_norms()  # first of all, as it waits for whatever else has to arrive
        return None if norms is None or any(self.measured.scalars("overflow")) else Light(*norms, self._loss())

    def _loss(self) -> float | None:
        told = self.measured.scalars("told") + [float(loss) for loss in self.losses]
        losses = told or self.measured.scalars("criterion")
        return sum(losses) / len(losses) if losses else None

    def record(self) -> Record:
        """Waits for the measurements and makes the record."""
        sites, rows = self.measured.rows()
        scales, counted = self.measured.scalars("scale"), self.measured.octaves()
        counts = None if counted is None else octaves.narrowed(counted)
        if scales:
            scaled = [
                site.tensor in ("activation_grad", "input_grad") or (site.tensor == "parameter_grad" and site.layer in self.scaled)
                for site in sites
            ]
            rows[scaled, moments.MEAN : moments.MAX + 1] /= scales[-1]
            if counted is not None and counts is not None:
                counts[scaled] = octaves.narrowed(counted[scaled], scales[-1])
        places = self.measured.places()
        if any(site.layer not in self.members.order for site in places):  # only what has arrived tells the order in a graph
            self.members = self.members._replace(order=self.put_compiled(places))
        about = self.members, self.trainable
        notes = self.measured.notes()
        return self.record_of(*self.layout.arrange(sites, rows, notes, *about, full=self.full, graded=self.graded, counts=counts))

    def record_of(self, sites: tuple[Site, ...], rows: Array, histograms: Array | None = None) -> Record:
        """The record, of rows and histograms that are in order."""
        clips, scales = self.measured.scalars("clip"), self.measured.scalars("scale")
        return Record(
            self.step,
            sites,
            rows,
            loss=self._loss(),
            skipped=self.skipped or any(self.measured.scalars("overflow")),
            backwards=self.measured.backwards,
            full=self.full,
            clip=clips[-1] if clips else float("nan"),
            scale=scales[-1] if scales else float("nan"),
            histograms=histograms if self.full else None,
        )


def runs(steps: Iterable[Sealed]) -> Iterator[list[Sealed]]:
    """Steps in rows whose records can be made together: light ones about the same parameters; any other is alone."""
    for _, run in groupby(
        steps, lambda step: id(step) if step.light is None else (id(step.light.sites), id(step.trainable), id(step.members.order))
    ):
        yield list(run)


def records(run: list[Sealed]) -> list[Record]:
    """Waits for the measurements of steps in a row, as ``runs`` made it, and makes their records."""
    lights = [step.light for step in run if step.light is not None]
    if len(lights) > 1:
        first, trainable = lights[0], run[0].trainable
        rows = moments.norm_rows(np.tile(first.counts, len(lights)), np.array([light.norms for light in lights]).ravel())
        blocks = rows.reshape(len(lights), len(first.counts), -1)
        if (arranged := run[0].layout.arrange_light(first.sites, blocks, run[0].members, trainable)) is not None:
            sites, ordered = arranged
            return [step.record_of(sites, its) for step, its in zip(run, ordered, strict=True)]
    return [step.record() for step in run]
