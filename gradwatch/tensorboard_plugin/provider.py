"""What TensorBoard has read of event files → runs.

Everything comes from TensorBoard's data provider, so that whatever it can read is shown, and nothing else can be asked for.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwatch.codec import FINDINGS_TAG, HISTOGRAMS, PLUGIN, ROOT, STEP, VERSION
from gradwatch.octaves import EXPONENTS
from gradwatch.statistics import Values
from gradwatch.tensorboard_plugin.recorded import SAMPLE, Array, Block, Run, Steps, spread
from gradwatch.tensorboard_plugin.written import Written, findings_of, keep, sites_of

MESSAGE = 128 * 2**20
"""Bytes that are asked for at once: beyond 256 MiB TensorBoard's own transport refuses."""

CHEAP = 8 * 2**20
"""Bytes of a column up to which all of it is read where a sample would do."""

KEPT = 512 * 2**20
"""Bytes of columns that stay in memory, of all runs together."""

OLDEST = STEP.index("clip") + 1
"""What is stored of a record beside its rows by the oldest version; later ones add to it at the end."""

FEW = 16
"""Records of a sample where a column is larger than that."""

ALL = 2**31 - 1
"""Samples, where all are wanted that TensorBoard has kept: the transport wants a number."""

_TAG = re.compile(rf"{re.escape(PLUGIN)}/v(\d+)/(?:([0-9a-f]+)/)?(\w+)")


class Unknown(LookupError):
    """A run, a layer or a statistic that is not there; its text is a sentence."""


@dataclass(frozen=True)
class Scope:
    """On whose behalf TensorBoard is asked.

    Attributes:
        context: A ``tensorboard.context.RequestContext``.
        experiment: The experiment's id.
    """

    context: Any
    experiment: str


class Reader:
    """Reads runs, and keeps what it has read as long as TensorBoard reads nothing newer.

    One request reads at a time, so that two do not read the same gigabyte twice.

    Args:
        provider: ``tensorboard.data.provider.DataProvider``.
        limit: Records that TensorBoard keeps of a tag; 0: all.
    """

    RUNS = 8  # whose records are remembered; their columns are bounded by KEPT

    def __init__(self, provider: Any, limit: int = 0) -> None:
        self._provider = provider
        self._limit = limit
        self._runs: OrderedDict[tuple[str, str], tuple[frozenset[Any], Run]] = OrderedDict()
        self._columns = _Columns()
        self._lock = threading.RLock()

    def runs(self, scope: Scope) -> list[dict[str, Any]]:
        """The runs that hold something of gradwatch, in the order that people count in."""
        found = []
        for name, tags in self._tags(scope).items():
            if any(_TAG.fullmatch(tag) for tag in tags):
                newest = max(about.max_wall_time for about in tags.values())
                found.append({"name": name, "lastStep": max(about.max_step for about in tags.values()), "wallTime": newest})
        return sorted(
            found,
            key=lambda run: [
                (part.isdecimal(), part.zfill(20) if part.isdecimal() else part) for part in re.split(r"(\d+)", run["name"])
            ],
        )

    def run(self, scope: Scope, name: str) -> Run:
        """One run, as TensorBoard knows it now.

        Raises:
            Unknown: There is none of that name, or none that this version can read.
        """
        tags = self._tags(scope, name).get(name, {})
        if not tags:
            raise Unknown(f"no run called {name!r} holds anything of gradwatch")
        state = frozenset((tag, about.max_step, about.max_wall_time) for tag, about in tags.items())
        key = scope.experiment, name
        with self._lock:
            known, run = self._runs.get(key, (None, None))
            if run is None or known != state:
                run = self._read(scope, name, tags)
                self._runs[key] = state, run
            self._runs.move_to_end(key)
            while len(self._runs) > self.RUNS:
                self._runs.popitem(last=False)
        return run

    def _tags(self, scope: Scope, *runs: str) -> Mapping[str, Mapping[str, Any]]:
        from tensorboard.data.provider import RunTagFilter

        tags: Mapping[str, Mapping[str, Any]] = self._provider.list_tensors(
            scope.context,
            experiment_id=scope.experiment,
            plugin_name=PLUGIN,
            run_tag_filter=RunTagFilter(runs=list(runs)) if runs else None,
        )
        return tags

    def fetch(self, scope: Scope, run: str, tags: Iterable[str], samples: int = ALL) -> Mapping[str, Sequence[Any]]:
        """Tag → its data, with ``step``, ``wall_time`` and ``numpy``."""
        from tensorboard.data.provider import RunTagFilter

        data: Mapping[str, Mapping[str, Sequence[Any]]] = self._provider.read_tensors(
            scope.context,
            experiment_id=scope.experiment,
            plugin_name=PLUGIN,
            downsample=samples,
            run_tag_filter=RunTagFilter(runs=[run], tags=list(tags)),
        )
        return data.get(run, {})

    def _read(self, scope: Scope, name: str, tags: Iterable[str]) -> Run:
        parsed = {tag: found for tag in tags if (found := _TAG.fullmatch(tag))}
        versions = {int(found[1]) for found in parsed.values()}
        notes = [
            f"records in layout v{other} are not shown, as this gradwatch reads v{VERSION}; use the version that recorded them"
            for other in sorted(versions - {VERSION})
        ]
        roots = sorted({f"{ROOT}/{found[2]}" for found in parsed.values() if int(found[1]) == VERSION and found[2]})
        small = self.fetch(scope, name, [*(f"{root}/{part}" for root in roots for part in ("schema", "step")), FINDINGS_TAG])
        written: list[Written] = []
        for root in roots:
            sites = sites_of(small.get(f"{root}/schema", ()))
            if sites is None:
                notes.append(f"what {root} holds cannot be shown: the event that names its layers was lost, or is damaged")
                continue
            about = small.get(f"{root}/step", ())
            good = [
                datum for datum in about if datum.numpy.ndim == 1 and len(datum.numpy) >= OLDEST and datum.numpy.dtype.kind == "f"
            ]
            if len(good) < len(about):
                notes.append(f"{len(about) - len(good)} damaged records of {root} were left out")
            if len(about) == self._limit:
                notes.append(
                    f"TensorBoard has kept {len(about)} records of {root}, chosen at random if there were more; "
                    f"tensorboard --samples_per_plugin {PLUGIN}=0 keeps all"
                )
            written.append(Written(root, sites, good))
        blocks = tuple(
            _Block(self, scope, name, of, kept, notes, counted=f"{of.root}/{HISTOGRAMS}" in parsed)
            for of, kept in zip(written, keep(written), strict=True)
            if kept
        )
        return Run(blocks, findings_of(small.get(FINDINGS_TAG, ()), written, notes), notes)

    def column(self, block: _Block, name: str, samples: int) -> _Column:
        """A column of a block, which many requests want."""
        with self._lock:
            return self._columns.get((block, name, samples), lambda: block.read(name, samples))


@dataclass(frozen=True)
class _Column:
    """Records of a block, and what is stored of them: (some,) and (some, sites)."""

    index: npt.NDArray[np.intp]
    values: Array


class _Columns:
    """Columns by key, the latest asked for, up to ``KEPT`` bytes."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Any, _Column] = OrderedDict()

    def get(self, key: Any, read: Any) -> _Column:
        if key not in self._kept:
            self._kept[key] = read()
        self._kept.move_to_end(key)
        while len(self._kept) > 1 and sum(column.values.nbytes for column in self._kept.values()) > KEPT:
            self._kept.popitem(last=False)
        return self._kept[key]


class _Block(Block):
    """Records of a run that share their sites."""

    def __init__(
        self, reader: Reader, scope: Scope, run: str, of: Written, kept: Sequence[int], notes: list[str], *, counted: bool
    ) -> None:
        about = [of.data[index] for index in kept]
        super().__init__(of.sites, np.array([datum.step for datum in about], np.int64))
        self._reader, self._scope, self._run, self._root, self._notes = reader, scope, run, of.root, notes
        self._about = np.full((len(about), len(STEP)), np.nan)
        for index, datum in enumerate(about):
            told = datum.numpy[: len(STEP)]
            self._about[index, : len(told)] = told
        self._written = len(of.data)
        self._counted = counted  # whether there are histograms
        self._position = {(datum.step, datum.wall_time): index for index, datum in enumerate(about)}

    def about(self, name: str) -> Values:
        return self._about[:, STEP.index(name)]

    def column(self, name: str) -> Array:
        bytes_each = 4 * max(1, len(self.sites))
        part = self._reader.column(self, name, ALL if bytes_each * self._written <= MESSAGE else MESSAGE // bytes_each)
        if len(part.index) == len(self.steps):
            return part.values
        values = np.full((len(self.steps), len(self.sites)), np.nan, np.float32)
        values[part.index] = part.values
        return values

    def sample(self, name: str) -> tuple[Steps, Array]:
        if 4 * len(self.sites) * self._written <= CHEAP:
            chosen = spread(len(self.steps))
            return self.steps[chosen], self.column(name)[chosen]
        base = self._reader.column(self, "rms", FEW)
        part = self._reader.column(self, name, FEW)
        values = np.full((len(base.index), len(self.sites)), np.nan, np.float32)
        values[np.isin(base.index, part.index)] = part.values[np.isin(part.index, base.index)]
        return self.steps[base.index], values

    def histograms(self, places: Sequence[int]) -> tuple[Steps, Array]:
        tag, size = f"{self._root}/{HISTOGRAMS}", len(self.sites) * len(EXPONENTS)
        samples = min(SAMPLE, max(1, MESSAGE // (4 * size)))
        data = self._reader.fetch(self._scope, self._run, [tag], samples).get(tag, ()) if self._counted else ()
        sound = [datum for datum in data if datum.numpy.shape == (size,) and datum.numpy.dtype.kind == "f"]
        found = {self._position[key]: datum for datum in sound if (key := (datum.step, datum.wall_time)) in self._position}
        tables = [found[at].numpy.reshape(len(self.sites), -1)[list(places)] for at in sorted(found)]
        return self.steps[sorted(found)], np.array(tables, np.float32).reshape(len(tables), len(places), len(EXPONENTS))

    def read(self, name: str, samples: int) -> _Column:
        """What TensorBoard has of a column."""
        tag = f"{self._root}/{name}"
        data = self._reader.fetch(self._scope, self._run, [tag], samples).get(tag, ())
        found = {self._position[key]: datum.numpy for datum in data if (key := (datum.step, datum.wall_time)) in self._position}
        whole = {
            at: values for at, values in sorted(found.items()) if values.shape == (len(self.sites),) and values.dtype.kind == "f"
        }
        if len(whole) < len(found):
            self._say(f"{len(found) - len(whole)} damaged values of {tag} were left out")
        if data and samples != FEW and len(data) < self._written:
            self._say(
                f"{len(data)} of {self._written} records are shown, as more than {MESSAGE // 2**20} MiB cannot be read at once"
            )
        values = np.array(list(whole.values()), np.float32).reshape(-1, len(self.sites))
        return _Column(np.array(list(whole), np.intp), values)

    def _say(self, note: str) -> None:
        if note not in self._notes:
            self._notes.append(note)
