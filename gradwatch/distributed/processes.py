"""The processes that train together, as the watch of one of them sees them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from gradwatch.distributed import link
from gradwatch.distributed.agreement import Agreement, Held, Placement, answer
from gradwatch.distributed.link import Gathering, Invitation, Link
from gradwatch.distributed.merging import ABSENT, extremes, first_difference, merge
from gradwatch.moments import COUNT, EMPTY, Array
from gradwatch.records import Record


class Header(NamedTuple):
    """What goes before the rows; all of them float64.

    Attributes:
        number: How many records this process has sent before.
        step: The record's.
        full: The record's.
        digest: Of the agreed list of sites.
        strange: Whether the record has sites that are not on it.
        skipped: The record's.
        backwards: The record's.
        told: Whether there is a loss.
        loss: The record's; NaN where there is none.
        clip: The record's.
        scale: The record's.
    """

    number: float
    step: float
    full: float
    digest: float
    strange: float
    skipped: float
    backwards: float
    told: float
    loss: float
    clip: float
    scale: float

    @property
    def course(self) -> tuple[float, ...]:
        """What has to be the same in all processes."""
        return self.number, self.step, self.full, self.digest


SIZE = 8 * len(Header._fields)


class Apart(Exception):
    """The processes do not do the same, so that their statistics cannot be merged; all of them see it alike."""


class Processes:
    """Makes the records of a training's processes into one.

    A record is sent once nothing about it can change, and received when it is needed; it is the same on every rank then. Where
    the processes cannot agree, or one is gone, each goes on with what it saw itself, which is said once.

    Args:
        settings: Of the watch; they have to be the same in every process.
        placement: Tells how the model lies in this process: the fields of a ``Placement``.
        say: Called with a sentence, once.
    """

    def __init__(
        self, settings: str, placement: Callable[[], tuple[Mapping[str, Held], tuple[int, ...]]], say: Callable[[str], None]
    ) -> None:
        self._settings, self._describe, self._say = settings, placement, say
        self._invitation: Invitation | None = None
        self._link: Link | None = None
        self._decided = False
        self._rank = link.rank()
        self._agreement = Agreement()
        self._mute = self._agreement.mute({})
        self._sent = 0
        self._record: Record | None = None
        self._gathering: Gathering | None = None
        self.announce()

    @property
    def together(self) -> bool:
        """Whether records are merged."""
        return self._link is not None

    @property
    def alone(self) -> bool:
        """Whether there is nobody to exchange records with, so that none has to be sent."""
        return self._link is None and self._record is None and (self._decided or link.world_size() == 1)

    @property
    def speaks(self) -> bool:
        """Whether this process says what was found: one of several that found the same does."""
        return self._link is None or self._link.rank == 0

    def announce(self) -> None:
        """Tells the others, if there are any yet, that this process takes part."""
        if self._invitation is None and not self._decided and link.world_size() > 1:
            self._rank = link.rank()
            try:
                self._invitation = Invitation(self._settings)
            except Exception as error:  # noqa: BLE001  # the training does not depend on it
                self._go_alone(f"{type(error).__name__}: {error}")

    def send(self, make: Callable[[], Record | None]) -> None:
        """Sends a record to all others, without waiting for them.

        Args:
            make: Makes the record; where it raises, the others are told not to wait. None: there is nothing to send.
        """
        try:
            record = make()
        except Exception:
            self.leave()
            raise
        if record is None:
            return
        self._record = record
        if not self._decided:
            self._connect()
        if self._link is not None:
            try:
                self._gathering = self._gather(record)
            except Exception as error:  # noqa: BLE001  # whatever it is, there is a record all the same
                self._go_alone(f"{type(error).__name__}: {error}")

    def receive(self) -> Record | None:
        """The record that was sent, merged with those of the others; waits for them. None where none was sent."""
        record, self._record = self._record, None
        gathering, self._gathering = self._gathering, None
        if record is None or gathering is None or self._link is None:
            return record
        try:
            return self._merged(record, gathering.wait())
        except Apart as difference:
            self._go_alone(str(difference))
        except Exception as error:  # noqa: BLE001  # a process that died, or one that has closed its watch
            fact = str(error).partition(". ")[0]
            self._go_alone(f"a process has ended, closed its watch, or not answered for {link.PATIENCE:.0f} s ({fact})")
        return record

    def leave(self) -> None:
        """Lets the others go on without this process."""
        if self._invitation is not None and not self._decided:
            with contextlib.suppress(Exception):  # where the store is gone, nobody is left who could be told
                self._invitation.decline()
        if self._gathering is not None and self._gathering.done():  # what the others have sent already counts
            self._record = self.receive()
        self._decided, self._link, self._gathering = True, None, None

    # -------------------------------------------------------------- finding each other

    def _connect(self) -> None:
        self.announce()  # the process group may be younger than the watch
        if self._decided or self._invitation is None:
            return
        self._decided = True
        try:
            absent = self._invitation.absent()
            if absent:
                ranks = f"rank {absent[0]} has" if len(absent) == 1 else f"ranks {', '.join(map(str, absent))} have"
                self._go_alone(f"{ranks} no watch with the same settings; make it on every rank, before the first step")
            else:
                self._link = self._invitation.accept()
        except Exception as error:  # noqa: BLE001  # no network, no store any more
            self._go_alone(f"{type(error).__name__}: {error}")

    def _go_alone(self, why: str) -> None:
        unwritten = ", which nobody writes (rank 0 writes)" if self._rank else ""
        self._say(f"rank {self._rank} goes on with statistics of its own process{unwritten}: {why}")
        self._decided, self._link, self._gathering = True, None, None

    # -------------------------------------------------------------- one record

    def _gather(self, record: Record) -> Gathering:
        assert self._link is not None
        header = Header(
            number=self._sent,
            step=record.step,
            full=record.full,
            digest=self._agreement.digest,
            strange=not self._agreement.has(record.sites),
            skipped=record.skipped,
            backwards=record.backwards,
            told=record.loss is not None,
            loss=math.nan if record.loss is None else record.loss,
            clip=record.clip,
            scale=record.scale,
        )
        table = self._agreement.table(record.sites, record.rows, self._mute, full=record.full)
        return self._link.gather(np.array(header, np.float64).tobytes() + table.tobytes(), lane=record.full)

    def _merged(self, record: Record, messages: list[bytes]) -> Record:
        headers = [Header(*np.frombuffer(message[:SIZE], np.float64)) for message in messages]
        if any(header.course != headers[0].course for header in headers):
            steps = ", ".join(f"rank {rank}: step {header.step:.0f}" for rank, header in enumerate(headers))
            raise Apart(f"the processes are out of step ({steps})")
        if any(header.strange for header in headers):
            self._agree(record)
            return self._merged(record, self._gather(record).wait())
        self._sent += 1
        tables = np.stack([self._agreement.received(message[SIZE:], full=record.full) for message in messages])
        merged = self._merge_full(record, tables) if record.full else self._merge_light(record, tables)
        losses = [header.loss for header in headers if header.told]
        clips = [header.clip for header in headers if not math.isnan(header.clip)]
        return replace(
            merged,
            loss=sum(losses) / len(losses) if losses else None,
            skipped=any(header.skipped for header in headers),
            backwards=int(max(header.backwards for header in headers)),
            clip=min(clips, default=math.nan),
            scale=min((header.scale for header in headers if not math.isnan(header.scale)), default=math.nan),
        )

    def _agree(self, record: Record) -> None:
        assert self._link is not None
        placement = Placement(*self._describe())
        answers = self._link.gather_any(answer(record.sites, placement), lane=record.full)
        self._agreement = self._agreement.extended(answers)
        self._mute = self._agreement.mute(placement.held)

    def _merge_full(self, record: Record, tables: Array) -> Record:
        agreement = self._agreement
        if (difference := first_difference(tables, agreement.weights)) is not None:
            site, one, other = difference
            raise Apart(
                f"{agreement.sites[site].layer!r} is not the same on ranks {one} and {other}, so that the processes do not train "
                f"one model: watch each where no process group is, or give all of them the same weights"
            )
        present = (tables[..., COUNT] != ABSENT).any(axis=0)
        rows = merge(tables, agreement.copied, agreement.sharded, agreement.groups)
        ranks = np.where(agreement.copied, -1, extremes(tables))
        histograms = None
        if record.histograms is not None:  # each process keeps its own: to send them would take five times what rows take
            known = np.full((len(agreement.sites), record.histograms.shape[1]), np.nan, np.float32)
            known[agreement.places(record.sites)] = record.histograms
            histograms = known[present]
        sites = agreement.chosen(present)
        return replace(record, sites=sites, rows=rows[present], ranks=ranks[present], histograms=histograms)

    def _merge_light(self, record: Record, tables: Array) -> Record:
        """The rows of shards, and of what only some have; what else there is are copies, of which every process has one."""
        agreement, light = self._agreement, self._agreement.light
        own = agreement.places(record.sites)
        present = np.zeros(len(agreement.sites), bool)
        rows = np.tile(EMPTY, (len(agreement.sites), 1))
        ranks = np.full(len(agreement.sites), -1, np.int32)
        present[own], rows[own] = True, record.rows
        present[light] = (tables[..., COUNT] != ABSENT).any(axis=0)
        rows[light] = merge(tables, agreement.copied[light], agreement.sharded[light], agreement.groups)
        ranks[light] = np.where(agreement.copied[light], -1, extremes(tables))
        return replace(record, sites=agreement.chosen(present), rows=rows[present], ranks=ranks[present])
