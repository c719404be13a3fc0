"""Findings → incidents: the first cause, and what merely follows from it."""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from gradwatch.names import printable
from gradwatch.records import Finding, Incident, Kind

FOLLOWS: dict[Kind, frozenset[Kind]] = {
    "non_finite": frozenset({"exploding_gradient", "stale_gradient", "bad_scale", "update_ratio", "loss_unstable"}),
    "exploding_gradient": frozenset({"bad_scale", "update_ratio", "stale_gradient"}),
    "loss_unstable": frozenset({"exploding_gradient", "update_ratio", "bad_scale", "stale_gradient"}),
    "dead_units": frozenset({"exploding_gradient", "update_ratio", "bad_scale"}),
    "saturated": frozenset({"bad_scale", "exploding_gradient", "update_ratio"}),
    "vanishing_gradient": frozenset({"saturated", "dead_units", "bad_scale"}),
    "zero_gradient": frozenset({"dead_units", "saturated", "non_finite", "exploding_gradient"}),
    "not_updated": frozenset({"zero_gradient", "dead_units", "vanishing_gradient", "update_ratio"}),
    "update_ratio": frozenset({"vanishing_gradient", "zero_gradient", "dead_units"}),
    "stale_gradient": frozenset({"not_updated"}),
    "loss_stagnant": frozenset(
        {"vanishing_gradient", "zero_gradient", "dead_units", "saturated", "not_updated", "bad_scale", "update_ratio"}
    ),
}
"""Kind → the kinds that bring it about. NaN comes from a blow-up, a blow-up from a step too large, a dead start from a bad scale;
a gradient vanishes upstream of saturated or dead units; what gets no gradient is not updated; a net that cannot learn stalls."""

SLACK = 10
"""Steps by which a cause may be seen after its consequence: it may take a full record to see it, and those are a cadence apart."""

SAMPLED: frozenset[Kind] = frozenset({"dead_units", "saturated", "bad_scale", "update_ratio", "not_updated", "stale_gradient"})
"""Kinds that nothing but full records show: what they tell of may have begun, and may go on, anywhere up to the next one."""

CADENCE = 10
"""Steps from the newest record within which a finding still lasts: a kind that any record shows is seen again within as many."""


def lasts(finding: Finding, last: int, full: int | None = None) -> bool:
    """Whether a finding still holds at the newest record.

    Args:
        finding: Seen in that record or before it.
        last: The step of that record.
        full: The step of the newest full record, which alone can tell that some kinds are over; None: it is not known.
    """
    oldest = last - CADENCE
    return finding.last_step >= (min(oldest, full) if full is not None and finding.kind in SAMPLED else oldest)


@dataclass(frozen=True)
class _Span:
    """The steps in which a finding may hold; those are certain in which it was seen."""

    first: int
    last: int


def group(findings: Sequence[Finding], full_steps: Sequence[int] = ()) -> list[Incident]:
    """Folds findings under the one that explains them.

    A finding follows from another one of a kind that brings it about and that began no later, give or take ``SLACK``, and was not
    over before; and, for the same kind at another layer (a cut branch silences every layer behind it), from the first of its time.

    Args:
        findings: In order of ``first_step``.
        full_steps: The steps of full records, in order, as far as they are known: what only these show may hold, unseen, on the
            way from one to the next.

    Returns:
        Incidents in order of their cause's ``first_step``; every finding is in exactly one.
    """
    causes: dict[int, int] = {}
    spans = [_span(finding, full_steps) for finding in findings]
    for index in range(len(findings)):
        possible = (other for other in range(len(findings)) if _explains(findings, spans, other, index))
        # Kinds that bring each other about, in however wide a circle, must not all be consequences: one of them stays the cause.
        cause = next((other for other in possible if _root(causes, other) != index), None)
        if cause is not None:
            causes[index] = cause
    folded: dict[int, list[Finding]] = {index: [] for index in range(len(findings)) if index not in causes}
    for index, finding in enumerate(findings):
        if index in causes:
            folded[_root(causes, index)].append(finding)
    return [Incident(findings[index], tuple(rest)) for index, rest in folded.items()]


def _span(finding: Finding, full_steps: Sequence[int]) -> _Span:
    if finding.kind not in SAMPLED or not full_steps:
        return _Span(finding.first_step, finding.last_step)
    before, after = bisect_left(full_steps, finding.first_step) - 1, bisect_right(full_steps, finding.last_step)
    return _Span(
        full_steps[before] + 1 if before >= 0 else finding.first_step,
        full_steps[after] - 1 if after < len(full_steps) else sys.maxsize,
    )


def _explains(findings: Sequence[Finding], spans: Sequence[_Span], other: int, index: int) -> bool:
    cause, finding = findings[other], findings[index]
    overlap = (
        min(cause.first_step - SLACK, spans[other].first) <= finding.first_step and spans[index].first <= spans[other].last + 1
    )
    if other == index or not overlap:
        return False
    if cause.kind == finding.kind:
        return other < index and spans[index].first - cause.first_step <= SLACK
    # Of two kinds that can bring each other about, the one that came first did.
    mutual = finding.kind in FOLLOWS.get(cause.kind, frozenset())
    return cause.kind in FOLLOWS.get(finding.kind, frozenset()) and not (mutual and other > index)


def _root(causes: dict[int, int], index: int) -> int:
    while index in causes:
        index = causes[index]
    return index


def tell(incident: Incident) -> str:
    """An incident in two lines: the first cause with everything that follows from it, and what to try."""
    cause = incident.cause
    steps = f"step {cause.first_step}" + (f"–{cause.last_step}" if cause.last_step > cause.first_step else "")
    after: dict[str, list[str]] = {}
    for finding in incident.consequences:
        after.setdefault(finding.kind, []).append(finding.layer)
    chain = "".join(f" → {kind} at {_some(layers)}" for kind, layers in after.items())
    return printable(f"{cause.severity}: {cause.kind} at {cause.layer}, {steps}: {cause.message}{chain}") + (
        f"\n    try: {printable(cause.advice)}" if cause.advice else ""
    )


def _some(layers: Sequence[str]) -> str:
    return ", ".join(layers[:3]) + (f" and {len(layers) - 3} more" if len(layers) > 3 else "")
