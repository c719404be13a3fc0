"""A recorded run as the page looks at it: blocks of records that share their sites, and the layers that these belong to."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from gradwatch.records import OF_PARAMETERS, TENSORS, Finding, Site
from gradwatch.statistics import Values

Array = npt.NDArray[np.float32]
Steps = npt.NDArray[np.int64]


class Block(ABC):
    """Records that share their sites, in order of their steps.

    Args:
        sites: In the order of the columns' second dimension.
        steps: (records,), increasing.

    Attributes:
        measured: What is known of which statistics it holds, by their ids.
    """

    def __init__(self, sites: tuple[Site, ...], steps: Steps) -> None:
        self.sites = sites
        self.steps = steps
        self.measured: dict[str, bool] = {}

    @cached_property
    def places(self) -> dict[str, dict[str, int]]:
        """Tensor → layer or parameter → the position of its site."""
        places: dict[str, dict[str, int]] = {tensor: {} for tensor in TENSORS}
        for index, site in enumerate(self.sites):
            places[site.tensor][site.layer] = index
        return places

    @abstractmethod
    def column(self, name: str) -> Array:
        """One of ``moments.COLUMNS``, (records, sites); NaN where nothing was recorded."""

    @abstractmethod
    def sample(self, name: str) -> tuple[Steps, Array]:
        """Some records, with the last one: their steps, (some,), and their column, (some, sites). Cheap also in a large run."""

    @abstractmethod
    def histograms(self, places: Sequence[int]) -> tuple[Steps, Array]:
        """Some records, and elements in each octave of ``octaves.EXPONENTS`` of some sites.

        Args:
            places: Positions of the sites.

        Returns:
            Steps, (some,), and counts, (some, len(places), octaves); empty where no record holds any.
        """

    @abstractmethod
    def about(self, name: str) -> Values:
        """One of ``codec.STEP``, (records,)."""


@dataclass(frozen=True)
class Layer:
    """A row of the page.

    Attributes:
        name: Canonical.
        type: Class name of the module.
        tensors: What was observed, in the order of ``records.TENSORS``.
        parameters: Full names.
        weight: The parameter that stands for the layer: its largest matrix, else its largest vector; None without parameters.
    """

    name: str
    type: str
    tensors: tuple[str, ...]
    parameters: tuple[str, ...]
    weight: str | None


@dataclass(frozen=True)
class Run:
    """A recorded run.

    Attributes:
        blocks: Those of one run; their steps interleave.
        findings: In order of ``first_step``.
        notes: What could not be read, as sentences; there may be more once columns have been read.
    """

    blocks: Sequence[Block]
    findings: Sequence[Finding]
    notes: Sequence[str] = ()

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """In forward order."""
        # The full records of the longest tuple know the order best; the others fill in what it lacks.
        tuples = sorted((block.sites for block in self.blocks), key=len, reverse=True)
        kinds: dict[str, str] = {}
        tensors: dict[str, set[str]] = {}
        parameters: dict[str, dict[str, Site]] = {}
        for site in (site for sites in tuples for site in sites):
            layer = site.owner
            kinds[layer] = kinds.get(layer) or site.type
            tensors.setdefault(layer, set()).add(site.tensor)
            if site.tensor in OF_PARAMETERS:
                parameters.setdefault(layer, {}).setdefault(site.layer, site)
        return tuple(
            Layer(
                layer,
                kinds[layer],
                tuple(tensor for tensor in TENSORS if tensor in tensors[layer]),
                tuple(parameters.get(layer, ())),
                _weight(parameters.get(layer, {}).values()),
            )
            for layer in merged([[site.owner for site in sites] for sites in tuples])
        )

    @cached_property
    def row_of(self) -> dict[str, str]:
        """Layer or parameter → the layer that it belongs to."""
        return {name: layer.name for layer in self.layers for name in (*layer.parameters, layer.name)}

    @cached_property
    def stand_ins(self) -> dict[tuple[str, str], str]:
        """(tensor, layer) → the parameter that stands for the layer among those of which this tensor was observed."""
        observed: dict[tuple[str, str], dict[str, Site]] = {}
        for site in (site for block in self.blocks for site in block.sites if site.tensor in OF_PARAMETERS):
            observed.setdefault((site.tensor, site.owner), {}).setdefault(site.layer, site)
        return {key: weight for key, sites in observed.items() if (weight := _weight(sites.values()))}

    @property
    def last_step(self) -> int | None:
        """The newest record's; None without records."""
        return max((int(block.steps[-1]) for block in self.blocks if len(block.steps)), default=None)

    @cached_property
    def full_steps(self) -> list[int]:
        """Those of full records, in order."""
        full = [block.steps[block.about("full") > 0] for block in self.blocks]
        return [int(step) for step in np.unique(np.concatenate(full))] if full else []

    @property
    def records(self) -> int:
        """How many there are."""
        return sum(len(block.steps) for block in self.blocks)


SAMPLE = 64
"""Records of a sample: enough to tell what is measured, few enough for every statistic of 2,000 layers."""

FIRST = 8
"""Records of it from the start: what is measured of fresh weights only is seen in them."""


def spread(records: int) -> npt.NDArray[np.intp]:
    """The records that make a sample of so many: the first ones, and others at equal distances up to the last."""
    if records <= SAMPLE:
        return np.arange(records)
    return np.union1d(np.arange(FIRST), np.linspace(FIRST, records - 1, SAMPLE - FIRST).astype(np.intp))


def _weight(sites: Iterable[Site]) -> str | None:
    largest = max(sites, key=lambda site: (site.is_matrix, math.prod(site.shape)), default=None)
    return None if largest is None else largest.layer


def merged(orders: Iterable[Iterable[str]]) -> list[str]:
    """Every name once: in the order of the first list, and of a later one where the first lacks it, behind its neighbour there."""
    after: dict[str | None, list[str]] = {None: []}  # name → what follows it directly, the newest first
    for order in orders:
        before = None
        for name in order:
            if name not in after:
                after[name] = []
                after[before].insert(0, name)
            before = name
    ordered, waiting = [], after[None][::-1]
    while waiting:
        name = waiting.pop()
        ordered.append(name)
        waiting += after[name][::-1]
    return ordered
