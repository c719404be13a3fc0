"""Measurements of one record: kept where they were made, moved to the host once, read when they have arrived."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from gradwatch import moments
from gradwatch.capture.shards import local
from gradwatch.moments import Array, Copied, Parts, Pieces
from gradwatch.records import Site, TensorName

MAX_ROWS = 100_000
"""Measurements after which a record folds what it has: a loop that calls a watched model without ever stepping keeps 0-dimensional
tensors alive otherwise, about 3 kB a measurement."""

MAX_COPIED = 4_000_000
"""Elements of copies of small tensors and of parts that are still to be joined, 16 or 32 MB, after which that is done before the
record ends."""


class Tape:
    """Collects the measurements of the record in progress.

    Attributes:
        graph_tasks: The backward passes that were seen → the pass inside of which each was started, -1 where there is none:
            reentrant checkpointing runs a pass inside a pass.
    """

    def __init__(self) -> None:
        # One append for each measurement, so that threads cannot come between its parts.
        self._measured: dict[torch.device, list[tuple[Site, int, Pieces | Copied | Parts]]] = defaultdict(list)
        self._copied = 0
        self._norms: list[tuple[list[Site], list[int], Tensor]] = []
        self._sums: list[tuple[list[tuple[Site | None, Site]], Tensor]] = []
        self._scalars: dict[str, list[Tensor]] = defaultdict(list)
        self._notes: dict[torch.device, list[tuple[Site, int, Tensor]]] = defaultdict(list)
        self._folded: list[tuple[list[Site], Array]] = []
        self.graph_tasks: dict[int, int] = {}

    def __bool__(self) -> bool:
        return bool(self._measured or self._norms or self._sums or self._folded)

    def add(self, site: Site, tensor: Tensor, *, zeros: bool = False) -> None:
        """Measures a tensor for a site, or the shard of it that this process holds. Several tensors of a site are merged."""
        values = local(tensor)
        if values is None:
            return
        count, pieces = moments.measure(values, zeros=zeros, later=True)
        measured = self._measured[pieces[0].device]
        measured.append((site, count, pieces))
        if len(measured) >= MAX_ROWS:
            self._fold()
        elif isinstance(pieces, (Copied, Parts)):
            self._copied += pieces.values.numel()
            if self._copied > MAX_COPIED:
                self._copied = 0
                _measure_copies(measured)

    def add_norms(self, sites: list[Site], counts: list[int], norms: Sequence[Tensor]) -> None:
        """Takes Euclidean norms that were measured elsewhere; nothing else is known about their tensors."""
        if norms:
            self._norms.append((sites, counts, torch.stack(list(norms))))

    def add_sums(self, sites: list[tuple[Site | None, Site]], measured: Tensor) -> None:
        """Takes what compiled graphs measured.

        Args:
            sites: For each row, of what passed a sink, and of what came back to it.
            measured: (rows, columns): the sums of both, see ``moments.sum_rows``; in the last column numbers in the order of
                forward, once for each call.
        """
        self._sums.append((sites, measured))

    def note(self, site: Site, column: int, share: Tensor) -> None:
        """Adds a share, of shape (), to the row of a site that is measured in this record; of several the mean counts."""
        self._notes[share.device].append((site, column, share))

    def add_scalar(self, name: str, value: Tensor) -> None:
        """Takes a 0-dimensional tensor, such as a loss. Several values of a name are kept apart."""
        self._scalars[name].append(value)

    def absorb(self, other: Tape) -> None:
        """Takes over what another tape holds."""
        for device, measured in other._measured.items():
            self._measured[device] += measured
        for device, notes in other._notes.items():
            self._notes[device] += notes
        for name, values in other._scalars.items():
            self._scalars[name] += values
        self._norms += other._norms
        self._sums += other._sums
        self._folded += other._folded
        self._copied += other._copied
        other.__init__()  # type: ignore[misc]  # an empty tape is a new tape

    def forget(self, tensors: Collection[TensorName]) -> None:
        """Drops all that was measured of these tensors, and the backward passes that were seen."""
        for measured in self._measured.values():
            known = list(measured)  # another thread may add to it
            measured[: len(known)] = [entry for entry in known if entry[0].tensor not in tensors]
        for notes in self._notes.values():
            noted = list(notes)
            notes[: len(noted)] = [note for note in noted if note[0].tensor not in tensors]
        for index, (sites, rows) in enumerate(self._folded):
            kept = [place for place, site in enumerate(sites) if site.tensor not in tensors]
            self._folded[index] = [sites[place] for place in kept], rows[kept]
        self.graph_tasks.clear()

    def _fold(self) -> None:
        measured = Transfer(self)
        sites, rows = measured.rows()
        place = {site: index for index, site in enumerate(dict.fromkeys(sites))}
        self._folded = [(list(place), moments.merge_all(rows, (place[site] for site in sites), len(place)))]
        notes = [(site, column, torch.tensor(share, dtype=torch.float64)) for (site, column), share in measured.notes().items()]
        for store in (self._measured, self._norms, self._sums, self._notes):
            store.clear()
        if notes:
            self._notes[torch.device("cpu")] = notes
        for name, values in self._scalars.items():
            self._scalars[name] = [_joined(values)]

    def take(self) -> Transfer:
        """Starts the move to the host and empties the tape."""
        taken = object.__new__(Tape)
        vars(taken).update(vars(self))
        self.__init__()  # type: ignore[misc]  # an empty tape is a new tape; first of all, as other threads go on measuring
        return Transfer(taken)


class Transfer:
    """Measurements on their way to the host."""

    def __init__(self, tape: Tape) -> None:
        within = {task for task, outer in tape.graph_tasks.items() if outer != -1}
        self._passes = len({*tape.graph_tasks, *tape.graph_tasks.values()} - within - {-1})
        self._folded = list(tape._folded)
        self._tables = [
            (
                [site for site, *_ in measured],
                [count for _, count, _ in measured],
                _to_host(moments.table([p for *_, p in measured])),
            )
            for measured in map(list, list(tape._measured.values()))
            if measured
        ]
        self._norms = [(sites, counts, _to_host(norms)) for sites, counts, norms in tape._norms]
        self._sums = [(sites, _to_host(sums)) for sites, sums in tape._sums]
        self._scalars = {name: _to_host(_joined(values)) for name, values in tape._scalars.items()}
        self._notes = [
            ([(site, column) for site, column, _ in notes], _to_host(torch.stack([share for *_, share in notes]).double()))
            for notes in tape._notes.values()
            if notes
        ]
        self._events = [_event(device) for device in self._cuda_devices(tape)]

    @staticmethod
    def _cuda_devices(tape: Tape) -> set[torch.device]:
        tensors = [norms for *_, norms in tape._norms] + [sums for _, sums in tape._sums]
        tensors += [value for values in tape._scalars.values() for value in values]
        return {device for device in (*tape._measured, *(tensor.device for tensor in tensors)) if device.type == "cuda"}

    @property
    def arrived(self) -> bool:
        """Whether everything was on the host from the start."""
        return not self._events

    @property
    def backwards(self) -> int:
        """Backward passes that were seen. Call it after ``rows``.

        No hook counts those through a compiled graph. Its layers were all called that often, or more often than that.
        """
        return max(self._passes, int(min((measured[:, moments.SUMS].min() for _, measured in self._sums), default=0)))

    def places(self) -> dict[Site, float]:
        """What passed through sinks → its number in the order of forward. Call it after ``rows``."""
        return {
            site: float(row[-1] / row[0])
            for sites, measured in self._sums
            for (site, _), row in zip(sites, measured, strict=True)
            if site is not None
        }

    def rows(self) -> tuple[list[Site], Array]:
        """Waits for the data where they are still on their way, and turns them into rows, one for each call of a site.

        Returns:
            The sites, and their rows of shape (sites, len(moments.COLUMNS)).
        """
        for event in self._events:
            event.synchronize()
        sites: list[Site] = []
        parts: list[Array] = []
        for folded_sites, folded in self._folded:
            sites += folded_sites
            parts.append(folded)
        for table_sites, counts, table in self._tables:
            sites += table_sites
            parts.append(moments.rows(counts, table.numpy()))
        for norm_sites, counts, norms in self._norms:
            sites += norm_sites
            parts.append(moments.norm_rows(counts, norms.numpy()))
        for pairs, measured in self._sums:
            for side, sums in enumerate((measured[:, : moments.SUMS], measured[:, moments.SUMS : 2 * moments.SUMS])):
                known = [(index, site) for index, pair in enumerate(pairs) if (site := pair[side]) is not None]
                sites += [site for _, site in known]
                parts.append(moments.sum_rows(sums.numpy()[[index for index, _ in known]]))
        return sites, np.concatenate(parts) if parts else np.empty((0, len(moments.COLUMNS)), np.float32)

    def notes(self) -> dict[tuple[Site, int], float]:
        """(site, column) → the mean of the shares that were noted. Call it after ``rows``."""
        noted: dict[tuple[Site, int], list[float]] = defaultdict(list)
        for keys, values in self._notes:
            for key, value in zip(keys, values.tolist(), strict=True):
                if math.isfinite(value):  # a call that no gradient reached says nothing about the others
                    noted[key].append(value)
        return {key: sum(values) / len(values) for key, values in noted.items()}

    def scalars(self, name: str) -> list[float]:
        """The values that were added under a name, in order."""
        return [float(value) for value in self._scalars[name]] if name in self._scalars else []


def _measure_copies(measured: list[tuple[Site, int, Pieces | Copied | Parts]]) -> None:
    """Puts moments in the place of copies."""
    known = list(measured)  # another thread may add to it
    rows = moments.table([pieces for *_, pieces in known])
    measured[: len(known)] = [(site, count, _pieces(row)) for (site, count, _), row in zip(known, rows, strict=True)]


def _pieces(row: Tensor) -> Pieces:
    total, norm, low, high, zeros, nonfinite = row.clone().unbind()
    return total, norm, low, high, zeros, nonfinite


def _joined(values: Sequence[Tensor]) -> Tensor:
    return torch.cat([value.double().reshape(-1) for value in values])


def _to_host(values: Tensor) -> Tensor:
    if values.device.type == "cpu":
        return values
    if values.device.type == "cuda":
        target = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        return target.copy_(values, non_blocking=True)
    return values.to("cpu")


def _event(device: torch.device) -> torch.cuda.Event:
    """An event that is over once every copy from the device has arrived."""
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event
