"""What TensorBoard's loaders leave of the order of writing, and which records and findings therefore count.

The loaders know tags. Of a run that was resumed at an earlier step one of them trims each tag by itself and the other keeps both
stretches; neither knows that the tags of full and of light records belong together. The time of writing, which every datum has,
tells it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from gradwatch.codec import Schema, findings_from_json
from gradwatch.records import TENSORS, Finding, Site
from gradwatch.statistics import Values


@dataclass(frozen=True)
class Written:
    """The records of a tuple of sites, in the order of writing."""

    root: str
    sites: tuple[Site, ...]
    data: Sequence[Any]

    @cached_property
    def layers(self) -> frozenset[str]:
        """The layers that the sites belong to."""
        return frozenset(site.owner for site in self.sites)

    @cached_property
    def names(self) -> frozenset[str]:
        """What a finding may be about: layers and parameters."""
        return self.layers | {site.layer for site in self.sites}

    @cached_property
    def _by_time(self) -> tuple[Values, Values]:
        """When a record was written, and the earliest step that was written from then on."""
        times = np.array([datum.wall_time for datum in self.data], np.float64)
        order = np.argsort(times, kind="stable")
        steps = np.array([datum.step for datum in self.data], np.float64)[order]
        return times[order], np.append(np.minimum.accumulate(steps[::-1])[::-1], np.inf)

    def earliest_after(self, time: float) -> float:
        """The earliest step that was written after a moment; infinity where nothing was."""
        times, earliest = self._by_time
        return float(earliest[np.searchsorted(times, time, side="right")])


def keep(found: Sequence[Written]) -> list[list[int]]:
    """The records of each that count: where a run was resumed at an earlier step, the last write of a step.

    TensorBoard's two loaders do not agree on this, and know nothing of records that share no sites. Records that have no layer in
    common are those of different watches, whose steps have nothing to do with each other.
    """
    kept: list[list[int]] = [[] for _ in found]
    for family in _families(found):
        written = [(datum.wall_time, datum.step, which, index) for which in family for index, datum in enumerate(found[which].data)]
        earliest = float("inf")
        for _, step, which, index in sorted(written, reverse=True):
            if step < earliest:
                kept[which].append(index)
                earliest = step
    return [sorted(indices, key=lambda index: entry.data[index].step) for indices, entry in zip(kept, found, strict=True)]


def _families(found: Sequence[Written]) -> list[list[int]]:
    """Positions of those that have layers in common, in however long a chain."""
    families: list[tuple[set[str], list[int]]] = []
    for which, entry in enumerate(found):
        related = [family for family in families if family[0] & entry.layers]
        families = [family for family in families if family not in related]
        layers = set(entry.layers).union(*(family[0] for family in related))
        families.append((layers, [which, *(other for family in related for other in family[1])]))
    return [members for _, members in families]


def sites_of(data: Sequence[Any]) -> tuple[Site, ...] | None:
    """The sites that a schema names; None where it is damaged, or was never read."""
    return _sites(data[-1].numpy.item()) if data and data[-1].numpy.size == 1 else None


@lru_cache(8)  # a run that goes on is read again and again, and its sites stay the same
def _sites(text: Any) -> tuple[Site, ...] | None:
    try:
        sites = Schema.from_json(text).sites
    except (KeyError, TypeError, ValueError):
        return None
    texts = all(isinstance(text, str) for site in sites for text in (site.layer, site.type))
    sizes = all(isinstance(size, int) for site in sites for size in site.shape)
    return sites if sites and texts and sizes and all(site.tensor in TENSORS for site in sites) else None


def findings_of(data: Sequence[Any], found: Sequence[Written], notes: list[str]) -> list[Finding]:
    """Findings in their last form, without those that began in a stretch that was written again."""
    last: dict[tuple[str, str, int], Finding] = {}
    damaged = 0
    for datum in sorted(data, key=lambda datum: datum.wall_time):
        try:
            told = findings_from_json(datum.numpy.item())
            sound = all(_is_sound(finding) for finding in told)
        except (AttributeError, KeyError, TypeError, ValueError):
            sound = False
        if not sound:
            damaged += 1
            continue
        for finding in told:
            own = [entry for entry in found if finding.layer in entry.names] or found
            if all(finding.first_step < entry.earliest_after(datum.wall_time) for entry in own):
                last[finding.kind, finding.layer, finding.first_step] = finding
    if damaged:
        notes.append(f"{damaged} damaged lists of findings were left out")
    return sorted(last.values(), key=lambda finding: finding.first_step)


def _is_sound(finding: Finding) -> bool:
    texts = (finding.kind, finding.layer, finding.severity, finding.message, finding.advice)
    numbers = (finding.first_step, finding.last_step, *finding.evidence.values())
    return all(isinstance(text, str) for text in texts) and all(isinstance(number, int | float) for number in numbers)
