"""What a detector is, how its sightings become findings, and how it shows what it means.

A detector looks at a history and says what it sees in the newest record: a sighting. One odd record is no alarm: the ``Ledger``
raises a finding once a detector has seen the same thing in ``confirm`` records in a row, extends it while it lasts, closes it
after ``release`` clean records, and is ready for it to come again.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from gradwatch import moments
from gradwatch.history import History
from gradwatch.records import Finding, Record, Site, TensorName
from gradwatch.trends import Sites, Trends, trained_layers

Detector = Callable[[History], Iterator[Finding]]
"""Yields what it sees in the newest record of a history, as findings of that one step; acts on nothing."""


def name_of(detector: Detector) -> str:
    """What a detector is called: the name of the function, or of the class."""
    return str(getattr(detector, "__name__", type(detector).__name__))


@dataclass(frozen=True)
class Judgement:
    """Settings that every detector of gradwatch has; a plain function is taken as a detector with these.

    Attributes:
        confirm: Records in a row that have to show it before it is said.
        span: Steps that these records have to cover, so that full records at every step are not believed sooner.
        release: Records in a row that have to be clean of it before it is over.
    """

    confirm: int = 1
    span: int = 0
    release: int = 10

    per_layer: ClassVar[bool] = False
    """Whether each layer has a fault of its own; else the run has one, at the layer that is named first."""
    full_only: ClassVar[bool] = False
    """Whether only full records show it, so that the others count neither for nor against it."""
    reads_skipped: ClassVar[bool] = False
    """Whether it can judge a record whose step was not taken."""
    reads_broken: ClassVar[bool] = False
    """Whether it can judge a record that holds a NaN: a NaN makes a ReLU look dead and a gradient look huge."""

    breaks: ClassVar[bool] = False
    """Whether it foretells a NaN, so that one that follows a sighting confirms it."""

    WIDER: ClassVar[Mapping[str, float]] = {}
    """Setting → the factor that makes it more tolerant, for ``fit``."""
    SHARES: ClassVar[frozenset[str]] = frozenset()
    """Those settings that are shares with 1 as their end: their distance from 1 is what the factor is applied to."""

    EXAMPLES: ClassVar[Mapping[str, Example]] = {}
    """Synthetic runs that show what the detector means: ``"healthy…"`` stay silent, ``"sick…"`` are found."""

    def ignores_calm(self, _trends: Trends) -> bool:
        """Whether it sees nothing in the next light records, however many, as long as they are as calm as ``Trends.calm`` says.

        It speaks for the ``__call__`` beside it: what a class inherits does not count where it has a ``__call__`` of its own.

        Args:
            _trends: As of the newest record.
        """
        return False


@dataclass(frozen=True)
class FullRecords(Judgement):
    """Settings of the detectors that only full records tell something.

    Attributes:
        confirm: 2 full records.
        span: 10 steps: the distance of as many full records at the default cadence.
        release: 2 full records.
    """

    confirm: int = 2
    span: int = 10
    release: int = 2

    full_only: ClassVar[bool] = True


@dataclass
class Case:
    """What the ledger knows of one suspicion: an open finding or one on its way."""

    first_step: int
    sighting: Finding
    last_step: int = 0
    streak: int = 0
    clean: int = 0
    number: int | None = None


@dataclass(frozen=True)
class News:
    """What one record changed: findings raised by it, and findings that it showed to be over."""

    raised: tuple[Finding, ...] = ()
    over: tuple[Finding, ...] = ()


class Ledger:
    """Turns the sightings of detectors into findings.

    Args:
        detectors: Called in their order on every record that they can judge.
        fail: Called with a detector and its exception; the detector is dropped.
    """

    def __init__(self, detectors: Sequence[Detector], fail: Callable[[Detector, Exception], None]) -> None:
        self._detectors = list(detectors)
        self._fail = fail
        self._cases: dict[int, dict[str, Case]] = {id(detector): {} for detector in detectors}
        self._findings: list[Finding] = []
        self._sites: Sites = ()
        self._trained: set[str] = set()

    @property
    def findings(self) -> list[Finding]:
        """All findings so far, in order of ``first_step``."""
        return sorted(self._findings, key=lambda finding: finding.first_step)

    def update(self, history: History) -> News:
        """Asks every detector about the newest record of a history."""
        record = history[-1]
        if record.sites is not self._sites:
            self._sites = record.sites
            self._trained |= trained_layers(record.sites)
        raised: list[Finding] = []
        over: list[Finding] = []
        for detector in list(self._detectors):
            settings = detector if isinstance(detector, Judgement) else Judgement()
            cases = self._cases[id(detector)]
            if record.skipped and not settings.reads_skipped:
                continue
            if history.trends.broken and not settings.reads_broken:
                if settings.breaks:
                    raised += [self._raise(case) for case in cases.values() if case.number is None]
                continue
            if settings.full_only and not record.full:
                continue
            try:
                sightings = list(detector(history))
                news = self._judge(settings, cases, sightings, record) if sightings or cases else News()
            except Exception as error:  # noqa: BLE001  # a broken detector must not reach the user's training
                self._detectors.remove(detector)
                self._fail(detector, error)
                continue
            raised += news.raised
            over += news.over
        return News(tuple(raised), tuple(over))

    @property
    def suspicious(self) -> bool:
        """Whether any detector is half convinced: it has seen in at least half as many records in a row what it would raise."""
        for detector in self._detectors:
            confirm = detector.confirm if isinstance(detector, Judgement) else 1
            if any(case.number is None and 2 * case.streak >= confirm for case in self._cases[id(detector)].values()):
                return True
        return False

    def patience(self, trends: Trends, *, half: bool = False) -> int:
        """How many calm light records may follow that nobody judges, before one of them could raise a finding.

        Args:
            trends: As of the newest record, which was judged.
            half: Whether none of them may make a detector half convinced either.
        """
        least = sys.maxsize
        for detector in self._detectors:
            settings = detector if isinstance(detector, Judgement) else Judgement()
            if settings.full_only or _ignores_calm(settings, trends):
                continue
            streak = max((case.streak for case in self._cases[id(detector)].values() if case.number is None), default=0)
            convinced = (settings.confirm + 1) // 2
            least = min(least, (convinced if half and streak < convinced else settings.confirm) - 1 - streak)
        return least

    def _judge(self, settings: Judgement, cases: dict[str, Case], sightings: list[Finding], record: Record) -> News:
        step = record.step
        raised: list[Finding] = []
        over: list[Finding] = []
        seen: set[str] = set()
        for sighting in sightings:
            key = f"{sighting.kind} {sighting.layer}" if settings.per_layer else sighting.kind
            if key in seen:
                continue
            seen.add(key)
            case = cases.setdefault(key, Case(step, sighting))
            case.streak, case.clean, case.sighting, case.last_step = case.streak + 1, 0, sighting, step
            if case.number is not None:
                self._findings[case.number] = replace(self._findings[case.number], last_step=step)
            elif case.streak >= settings.confirm and step - case.first_step >= settings.span:
                raised.append(self._raise(case))
        for key in [key for key in cases if key not in seen]:
            case = cases[key]
            if case.sighting.layer in self._trained and case.sighting.layer not in trained_layers(record.sites):
                continue  # the record is about another optimizer's parameters
            case.clean += 1
            if case.number is None or case.clean >= settings.release:
                del cases[key]
                if case.number is not None:
                    over.append(self._findings[case.number])
        return News(tuple(raised), tuple(over))

    def _raise(self, case: Case) -> Finding:
        case.number = len(self._findings)
        self._findings.append(replace(case.sighting, first_step=case.first_step, last_step=case.last_step))
        return self._findings[-1]

    def close(self) -> tuple[Finding, ...]:
        """The findings that lasted to the end, in their final form."""
        return tuple(
            self._findings[case.number] for cases in self._cases.values() for case in cases.values() if case.number is not None
        )


def _ignores_calm(settings: Judgement, trends: Trends) -> bool:
    """What a detector says of itself; a class that replaces an inherited ``__call__`` alone has not been asked."""
    defines = {
        verb: next((base for base in type(settings).__mro__ if verb in vars(base)), object) for verb in ("__call__", "ignores_calm")
    }
    return issubclass(defines["ignores_calm"], defines["__call__"]) and settings.ignores_calm(trends)


def raise_error(_detector: Detector, error: Exception) -> None:
    """What to do with an error of a detector where its author is there to see it."""
    raise error


def judge(records: Iterable[Record], detectors: Sequence[Detector], fail: Callable[[Detector, Exception], None]) -> list[Finding]:
    """What detectors find in records, taken one after the other as they were when the run went on.

    Args:
        records: In order.
        detectors: Functions or objects.
        fail: Called with a detector and its exception; the detector is dropped.
    """
    ledger, history = Ledger(detectors, fail), History()
    for record in records:
        history.append(record)
        ledger.update(history)
    return ledger.findings


@dataclass(frozen=True)
class Example:
    """A synthetic run: what the tensors of a few layers did, step by step.

    Attributes:
        rms: (layer, tensor) → rms per step; None: not seen in that step.
        losses: Loss per step; empty: not told.
        shares: (layer, column of ``moments.SHARES``) → share per step.
        deviations: Layer → standard deviation of its tensors, all steps alike; not measured where it is not named.
        shapes: Layer → shape of the parameter; a matrix where it is not named.
        types: Layer → type of the module; ``"Linear"`` where it is not named.
        scales: The loss scaler's factor per step; empty: there is none.
        skipped: Whether no step is taken: throughout, or per step.
    """

    rms: Mapping[tuple[str, TensorName], Sequence[float | None]]
    losses: Sequence[float] = ()
    shares: Mapping[tuple[str, str], Sequence[float]] = field(default_factory=dict)
    deviations: Mapping[str, float] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)
    scales: Sequence[float] = ()
    skipped: bool | Sequence[bool] = False

    def records(self) -> Iterator[Record]:
        """The run's records, one per step."""
        sites = tuple(
            Site(layer, tensor, self.types.get(layer, "Linear"), self.shapes.get(layer, (8, 8))) for layer, tensor in self.rms
        )
        for step, values in enumerate(zip(*self.rms.values(), strict=True)):
            counts = [0 if value is None else 64 for value in values]
            norms = np.array([np.nan if value is None else 8 * value for value in values], np.float64)
            rows = moments.norm_rows(counts, norms)
            for index, site in enumerate(sites):
                if site.layer in self.deviations:
                    mean_square = rows[index, moments.RMS] ** 2 - self.deviations[site.layer] ** 2
                    rows[index, moments.MEAN] = max(mean_square, 0) ** 0.5
            for (layer, column), shares in self.shares.items():
                index = next(index for index, site in enumerate(sites) if site.layer == layer)
                rows[index, moments.COLUMNS.index(column)] = shares[step]
            yield Record(
                step,
                sites,
                rows,
                self.losses[step] if self.losses else None,
                skipped=self.skipped if isinstance(self.skipped, bool) else self.skipped[step],
                scale=self.scales[step] if self.scales else np.nan,
            )

    def history(self) -> Iterator[History]:
        """The history after each step, as a detector sees it."""
        history = History()
        for record in self.records():
            history.append(record)
            yield history


def geometric(start: float, factor: float, steps: int) -> list[float]:
    """``steps`` values, each ``factor`` times its predecessor, from ``start`` on."""
    return list(itertools.accumulate(range(steps - 1), lambda value, _: value * factor, initial=start))
