"""Scoring a monitor's findings against the labels.

A monitor is anything that turns a run into findings: write a function
``monitor(case, seed) -> list[Finding]`` and call ``evaluate(monitor)``.

Definitions
-----------
* A *need* of a case is met if some finding has one of its kinds, at a layer
  that matches its ``where``, at a step not after ``by_step`` (``late`` if only
  afterwards, ``misplaced`` if only elsewhere).
* A finding is a *false alarm* if its kind is neither in a need nor in ``may``
  - in a healthy case: always - or if it is raised before the fault's ``onset``.
  Findings of severity "info" do not count as alarms.
* precision = right kinds / (right kinds + false kinds), per (case, kind) pair,
  so that a monitor is not rewarded for repeating itself; recall = met needs /
  needs; localisation = met needs / needs whose kind was reported anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from . import cases
from .core import Case, matches


@dataclass(frozen=True)
class Finding:
    kind: str
    layer: str = "*"  # module or parameter name; "*" or "loss" for the whole run
    step: int = 0
    severity: str = "warning"
    message: str = ""


@dataclass
class CaseScore:
    case: str
    split: str
    kind: str
    met: int = 0
    late: int = 0
    misplaced: int = 0
    missed: int = 0
    false_kinds: set = field(default_factory=set)
    right_kinds: set = field(default_factory=set)


def _located(f: Finding, where: Iterable[str]) -> bool:
    return "*" in where or matches(f.layer, where)


def score_case(case: Case, findings: Iterable[Finding]) -> CaseScore:
    fs = [f for f in findings if f.severity != "info"]
    s = CaseScore(case.name, case.split, case.kind)
    for n in case.must:
        kind = [f for f in fs if f.kind in n.kinds and f.step >= case.onset]
        here = [f for f in kind if _located(f, n.where)]
        if any(f.step <= n.by_step for f in here):
            s.met += 1
        elif here:
            s.late += 1
        elif kind:
            s.misplaced += 1
        else:
            s.missed += 1
    allowed = case.expected | case.may
    for f in fs:
        if f.kind in allowed and f.step >= case.onset:
            s.right_kinds.add(f.kind)
        else:
            s.false_kinds.add(f.kind)
    return s


def summarise(scores: list[CaseScore]) -> dict:
    needs = sum(s.met + s.late + s.misplaced + s.missed for s in scores)
    met = sum(s.met for s in scores)
    said = met + sum(s.late + s.misplaced for s in scores)
    right = sum(len(s.right_kinds) for s in scores)
    false = sum(len(s.false_kinds) for s in scores)
    healthy = [s for s in scores if s.kind == "healthy"]
    alarmed = [s.case for s in healthy if s.false_kinds]
    return {
        "cases": len(scores),
        "needs": needs,
        "recall": met / needs if needs else float("nan"),
        "localisation": met / said if said else float("nan"),
        "precision": right / (right + false) if right + false else float("nan"),
        "healthy": len(healthy),
        "false_alarm_rate": len(alarmed) / len(healthy) if healthy else float("nan"),
        "alarmed": sorted(alarmed),
        "not_met": sorted(s.case for s in scores if s.late + s.misplaced + s.missed),
    }


def evaluate(
    monitor: Callable[[Case, int], list[Finding]], split: str | None = None, twins: bool = True, seeds: Iterable[int] = (0,)
) -> tuple[dict, list[CaseScore]]:
    """Run ``monitor`` on every case (and every repaired twin) and sum up."""
    scores = [score_case(c, monitor(c, seed)) for c in cases(split=split, twins=twins) for seed in seeds]
    return summarise(scores), scores
