"""Measurements of one record: kept where they were made, moved to the host once, read when they have arrived."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gradwatch import moments, octaves
from gradwatch.capture.shards import local
from gradwatch.moments import Array, Parts, Pieces
from gradwatch.octaves import Counts
from gradwatch.records import Site, TensorName

MAX_ROWS = 100_000
"""Measurements after which a record folds what it has: a loop that calls a watched model without ever stepping keeps 0-dimensional
tensors alive otherwise, about 3 kB a measurement."""

MAX_COPIED = 4_000_000
"""Elements of copies of small tensors and of parts that are still to be joined, 16 or 32 MB, after which that is done before the
record ends."""


_HOST = torch.device("cpu")


class Tape:
    """Collects the measurements of the record in progress.

    Args:
        histogram: Whether the elements in each octave are counted as well, of tensors that are measured here.

    Attributes:
        histogram: The same.
        graph_tasks: The backward passes that were seen → the pass inside of which each was started, -1 where there is none:
            reentrant checkpointing runs a pass inside a pass.
    """

    def __init__(self, histogram: bool = False) -> None:
        self.histogram = histogram
        # One append for each measurement, so that threads cannot come between its parts.
        self._measured: dict[torch.device, list[tuple[Site, int, Pieces | Parts]]] = defaultdict(list)
        self._small: dict[tuple[torch.Size, bool], list[tuple[Site, Tensor]]] = {}
        self._stacks: list[tuple[tuple[Site, ...], Tensor]] = []
        self._copied = self._smalls = 0
        self._norms: list[tuple[tuple[Site, ...], npt.NDArray[np.float64], Tensor | list[float]]] = []
        self._sums: list[tuple[list[tuple[Site | None, Site]], Tensor]] = []
        self._scalars: dict[str, list[Tensor]] = defaultdict(list)
        self._numbers: dict[str, list[float]] = defaultdict(list)
        self._notes: dict[torch.device, list[tuple[tuple[Site, ...], int, Tensor]]] = defaultdict(list)
        self._joined_before: list[tuple[tuple[Site, ...], list[int], Tensor]] = []
        self._folded: list[tuple[list[Site], Array, Counts | None]] = []
        self.graph_tasks: dict[int, int] = {}

    def __bool__(self) -> bool:
        return bool(
            self._measured or self._small or self._stacks or self._norms or self._joined_before or self._sums or self._folded
        )

    def add(self, site: Site, tensor: Tensor, *, zeros: bool = False) -> Tensor | None:
        """Measures a tensor for a site, or the shard of it that this process holds. Several tensors of a site are merged.

        Returns:
            The copy of a small tensor that is measured later.
        """
        values = tensor if type(tensor) is Tensor else local(tensor)
        if values is None:
            return None
        # What ``moments.is_plain`` says, without the calls: this is asked for every tensor of a full record.
        plain = type(values) is Tensor and values.dtype is torch.float32 and values.is_cpu and values.layout is torch.strided
        if plain and 0 < (count := values.numel()) <= moments.SMALL:
            # Nothing that becomes of the tensor changes what is measured of a copy.
            copy = (values.detach() if values.requires_grad else values).clone()
            key = copy.shape, zeros
            (self._small.get(key) or self._small.setdefault(key, [])).append((site, copy))
            self._smalls += 1
            self._copied += count
            if self._copied > MAX_COPIED or self._smalls > MAX_ROWS:
                self._measure_small()
                if sum(len(sites) for sites, *_ in self._joined_before) > MAX_ROWS:
                    self._fold()
            return copy
        count, pieces = moments.measure(values, zeros=zeros, histogram=self.histogram, later=True)
        first = pieces[0]
        measured = self._measured[first.device if isinstance(first, Tensor) else _HOST]
        measured.append((site, count, pieces))
        if len(measured) >= MAX_ROWS:
            self._fold()
        elif isinstance(pieces, Parts):
            self._copied += pieces.values.numel()
            if self._copied > MAX_COPIED:
                self._copied = 0
                _join_parts(measured)
        return None

    def _measure_small(self) -> None:
        """Measures what was copied, those of one size together."""
        small, self._small = self._small, {}
        stacks, self._stacks = self._stacks, []
        self._copied = self._smalls = 0
        alike: dict[tuple[int, bool], list[tuple[tuple[Site, ...], Tensor]]] = defaultdict(list)
        for sites, stack in stacks:
            alike[stack.numel() // len(stack), False].append((sites, stack.reshape(len(stack), -1)))
        for (shape, zeros), found in small.items():
            if copies := list(found):  # else they were of a backward pass that the record is not about; threads may add to it
                stack = torch.stack([copy for _, copy in copies])
                # No view: some may be stored channels last.
                alike[shape.numel(), zeros].append((tuple(site for site, _ in copies), stack.reshape(len(copies), -1)))
        for (size, zeros), together in alike.items():
            sites = tuple(itertools.chain.from_iterable(its for its, _ in together))
            rows = torch.cat([stack for _, stack in together]) if len(together) > 1 else together[0][1]
            self._joined_before.append((sites, [size] * len(sites), moments.of_rows(rows, zeros=zeros, histogram=self.histogram)))

    def add_norms(self, sites: tuple[Site, ...], counts: npt.NDArray[np.float64], norms: Tensor | list[float]) -> None:
        """Takes Euclidean norms that were measured elsewhere, (sites,); nothing else is known about their tensors."""
        self._norms.append((sites, counts, norms))

    def add_stack(self, sites: tuple[Site, ...], stack: Tensor) -> None:
        """Takes copies of small tensors in one, (sites, ...), in main memory and in float32, which nobody changes any more."""
        self._stacks.append((sites, stack))

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
        self.note_all((site,), column, share.reshape(1))

    def note_all(self, sites: tuple[Site, ...], column: int, shares: Tensor) -> None:
        """Adds shares, of shape (sites,), to the rows of as many sites of one kind of tensor."""
        self._notes[shares.device].append((sites, column, shares))

    def add_scalar(self, name: str, value: Tensor | float) -> None:
        """Takes a 0-dimensional tensor, or a number, such as a loss. Several values of a name are kept apart."""
        if isinstance(value, Tensor):
            self._scalars[name].append(value)
        else:
            self._numbers[name].append(value)

    def absorb(self, other: Tape) -> None:
        """Takes over what another tape holds."""
        for device, measured in other._measured.items():
            self._measured[device] += measured
        for key, copies in other._small.items():
            self._small.setdefault(key, []).extend(copies)
        self._stacks += other._stacks
        for device, notes in other._notes.items():
            self._notes[device] += notes
        for name, values in other._scalars.items():
            self._scalars[name] += values
        for name, numbers in other._numbers.items():
            self._numbers[name] += numbers
        self._norms += other._norms
        self._sums += other._sums
        self._joined_before += other._joined_before
        self._folded += other._folded
        self._copied += other._copied
        self._smalls += other._smalls
        other.__init__(other.histogram)  # type: ignore[misc]  # an empty tape is a new tape

    def forget(self, tensors: Collection[TensorName]) -> None:
        """Drops all that was measured of these tensors, and the backward passes that were seen."""
        for measured in self._measured.values():
            known = list(measured)  # another thread may add to it
            measured[: len(known)] = [entry for entry in known if entry[0].tensor not in tensors]
        for copies in self._small.values():
            copied = list(copies)
            copies[: len(copied)] = [copy for copy in copied if copy[0].tensor not in tensors]
        for index, (sites, counts, table) in enumerate(self._joined_before):
            if any(site.tensor in tensors for site in sites):
                kept = [place for place, site in enumerate(sites) if site.tensor not in tensors]
                self._joined_before[index] = tuple(sites[at] for at in kept), [counts[at] for at in kept], table[kept]
        self._stacks = [stack for stack in self._stacks if stack[0][0].tensor not in tensors]  # as in a note, all are of one tensor
        for notes in self._notes.values():
            noted = list(notes)
            notes[: len(noted)] = [note for note in noted if note[0][0].tensor not in tensors]  # all of a note are of one tensor
        for index, (folded, rows, counted) in enumerate(self._folded):
            kept = [place for place, site in enumerate(folded) if site.tensor not in tensors]
            self._folded[index] = [folded[place] for place in kept], rows[kept], None if counted is None else counted[kept]
        self.graph_tasks.clear()

    def _fold(self) -> None:
        measured = Transfer(self)
        sites, rows = measured.rows()
        place = {site: index for index, site in enumerate(dict.fromkeys(sites))}
        where = [place[site] for site in sites]
        counted = measured.octaves()
        merged = None if counted is None else octaves.added(counted, where, len(place))
        self._folded = [(list(place), moments.merge_all(rows, where, len(place)), merged)]
        notes: list[tuple[tuple[Site, ...], int, Tensor]] = []
        shares: dict[tuple[Site, int], list[float]] = defaultdict(list)
        for site, column, share in zip(*measured.notes(), strict=True):
            if math.isfinite(share):
                shares[site, int(column)].append(share)
        for (site, column), several in shares.items():
            notes.append(((site,), column, torch.tensor([sum(several) / len(several)], dtype=torch.float64)))
        for store in (self._measured, self._norms, self._joined_before, self._sums, self._notes):
            store.clear()
        if notes:
            self._notes[torch.device("cpu")] = notes
        for name, values in self._scalars.items():
            self._scalars[name] = [_joined(values)]

    def take(self) -> Transfer:
        """Starts the move to the host and empties the tape."""
        taken = object.__new__(Tape)
        vars(taken).update(vars(self))
        self.__init__(self.histogram)  # type: ignore[misc]  # an empty tape is a new tape; first of all, as other threads go on measuring
        return Transfer(taken)

    @property
    def _holds_tensors(self) -> bool:
        """Whether it holds anything but norms and numbers that were read already: on a CPU most steps have nothing else."""
        if (
            self._measured
            or self._small
            or self._stacks
            or self._joined_before
            or self._sums
            or self._scalars
            or self._notes
            or self._folded
            or self.graph_tasks
        ):
            return True
        return any(isinstance(norms, Tensor) for *_, norms in self._norms)


class Transfer:
    """Measurements on their way to the host."""

    def __init__(self, tape: Tape) -> None:
        self._passes = 0
        self._sums: Sequence[tuple[list[tuple[Site | None, Site]], Tensor]] = ()
        self._norms = tape._norms
        self._numbers = tape._numbers
        self._folded: Sequence[tuple[list[Site], Array, Counts | None]] = ()
        self._tables: Sequence[tuple[Sequence[Site], list[int], Tensor]] = ()
        self._notes: Sequence[tuple[list[Site], npt.NDArray[np.intp], Tensor]] = ()
        self._scalars: Mapping[str, Tensor] = {}
        self._events: Sequence[torch.cuda.Event] = ()
        if tape._holds_tensors:
            self._take_tensors(tape)

    def _take_tensors(self, tape: Tape) -> None:
        self._norms = [
            (sites, counts, _to_host(norms) if isinstance(norms, Tensor) else norms) for sites, counts, norms in tape._norms
        ]
        tape._measure_small()
        within = {task for task, outer in tape.graph_tasks.items() if outer != -1}
        self._passes = len({*tape.graph_tasks, *tape.graph_tasks.values()} - within - {-1})
        self._folded = list(tape._folded)
        self._tables = [
            *tape._joined_before,
            *(
                (
                    [site for site, *_ in measured],
                    [count for _, count, _ in measured],
                    _to_host(moments.table([p for *_, p in measured])),
                )
                for measured in map(list, list(tape._measured.values()))
                if measured
            ),
        ]
        self._sums = [(sites, _to_host(sums)) for sites, sums in tape._sums]
        self._scalars = {name: _to_host(_joined(values)) for name, values in tape._scalars.items()}
        self._notes = [
            (
                [site for sites, *_ in notes for site in sites],
                np.repeat([column for _, column, _ in notes], [len(sites) for sites, *_ in notes]),
                _to_host(torch.cat([shares.double() for *_, shares in notes])),
            )
            for notes in tape._notes.values()
            if notes
        ]
        self._events = [_event(device) for device in self._cuda_devices(tape)]

    @staticmethod
    def _cuda_devices(tape: Tape) -> set[torch.device]:
        tensors = [norms for *_, norms in tape._norms if isinstance(norms, Tensor)] + [sums for _, sums in tape._sums]
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

    def only_norms(self) -> tuple[tuple[Site, ...], npt.NDArray[np.float64], list[float]] | None:
        """The sites, their counts and norms, each (sites,), where nothing else was measured than these, once. Waits as ``rows``."""
        if len(self._norms) != 1 or self._tables or self._sums or self._folded or self._notes:
            return None
        for event in self._events:
            event.synchronize()
        sites, counts, norms = self._norms[0]
        return sites, counts, norms.tolist() if isinstance(norms, Tensor) else norms

    def rows(self) -> tuple[list[Site], Array]:
        """Waits for the data where they are still on their way, and turns them into rows, one for each call of a site.

        Returns:
            The sites, and their rows of shape (sites, len(moments.COLUMNS)).
        """
        for event in self._events:
            event.synchronize()
        sites: list[Site] = []
        parts: list[Array] = []
        for folded_sites, folded, _ in self._folded:
            sites += folded_sites
            parts.append(folded)
        if self._tables:
            counts = [count for _, counts, _ in self._tables for count in counts]
            sites += itertools.chain.from_iterable(table_sites for table_sites, *_ in self._tables)
            tables = [table.numpy()[:, : moments.MOMENTS] for *_, table in self._tables]
            parts.append(moments.rows(counts, np.concatenate(tables)))
        for norm_sites, norm_counts, norms in self._norms:
            sites += norm_sites
            parts.append(moments.norm_rows(norm_counts, np.asarray(norms, np.float64)))
        for pairs, measured in self._sums:
            for side, sums in enumerate((measured[:, : moments.SUMS], measured[:, moments.SUMS : 2 * moments.SUMS])):
                known = [(index, site) for index, pair in enumerate(pairs) if (site := pair[side]) is not None]
                sites += [site for _, site in known]
                parts.append(moments.sum_rows(sums.numpy()[[index for index, _ in known]]))
        return sites, np.concatenate(parts) if parts else np.empty((0, len(moments.COLUMNS)), np.float32)

    def octaves(self) -> Counts | None:
        """How many elements lie in each octave, in the order of ``rows`` and after it; None where nobody has counted.

        Returns:
            (sites, len(octaves.COUNTED)); NaN where it was not counted.
        """
        known: list[tuple[int, Counts | None]] = [(len(rows), counts) for _, rows, counts in self._folded]
        for sites, _, table in self._tables:
            counted = table.shape[1] > moments.MOMENTS
            known.append((len(sites), table.numpy()[:, moments.MOMENTS :] if counted else None))
        if all(counts is None for _, counts in known):
            return None
        known += [(len(sites), None) for sites, *_ in self._norms]
        known += [(sum(site is not None for pair in pairs for site in pair), None) for pairs, _ in self._sums]
        size = len(octaves.COUNTED)
        return np.concatenate([np.full((rows, size), np.nan) if counts is None else counts for rows, counts in known])

    def notes(self) -> tuple[list[Site], npt.NDArray[np.intp], npt.NDArray[np.float64]]:
        """The shares that were noted: sites, possibly several times, columns and shares. Call it after ``rows``."""
        if not self._notes:
            return [], np.empty(0, np.intp), np.empty(0)
        sites = list(itertools.chain.from_iterable(some for some, *_ in self._notes))
        columns, shares = (np.concatenate([note[which] for note in self._notes]) for which in (1, 2))
        return sites, columns, shares

    def scalars(self, name: str) -> list[float]:
        """The values that were added under a name, in order."""
        moved = self._scalars[name].tolist() if name in self._scalars else []
        return [*self._numbers.get(name, ()), *moved]


def _join_parts(measured: list[tuple[Site, int, Pieces | Parts]]) -> None:
    """Puts moments in the place of parts that are still to be joined."""
    known = list(measured)  # another thread may add to it
    rows = moments.table([pieces for *_, pieces in known])
    measured[: len(known)] = [(site, count, _pieces(row)) for (site, count, _), row in zip(known, rows, strict=True)]


def _pieces(row: Tensor) -> Pieces:
    known = row.clone()
    return (*known[: moments.MOMENTS].unbind(), *([known[moments.MOMENTS :]] if len(known) > moments.MOMENTS else []))


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
