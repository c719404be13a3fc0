"""A labelled corpus of small PyTorch training programs, healthy and faulty.

    from benchmarks import faults
    for case in faults.cases(split="dev"):
        ...

See ``core`` for the interface, ``score`` for scoring a monitor's
findings and ``python -m benchmarks.faults --list`` for what there is.  ``dev`` is what
thresholds were set on, ``more``, ``blind`` and ``fresh`` measure.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Iterator

from .core import HEALTHY, KINDS, Built, Case, Need, matches, registry

__all__ = ["HEALTHY", "KINDS", "Built", "Case", "Need", "cases", "get", "matches"]
_loaded = False


def _load() -> None:
    global _loaded
    if _loaded:
        return
    for part in ("dev", "more", "blind", "fresh"):
        if importlib.util.find_spec(f"{__name__}.{part}") is None:
            continue
        pkg = importlib.import_module(f"{__name__}.{part}")
        for info in sorted(pkgutil.iter_modules(pkg.__path__), key=lambda i: i.name):
            importlib.import_module(f"{pkg.__name__}.{info.name}")
    _loaded = True


def _available(case: Case) -> bool:
    return all(importlib.util.find_spec(r) for r in case.requires)


def cases(split: str | None = None, kind: str | None = None, twins: bool = False) -> Iterator[Case]:
    """All cases, in order; ``twins`` adds the repaired twin of every faulty one."""
    _load()
    for fn in registry().values():
        case = fn()
        if (split and case.split != split) or (kind and case.kind != kind) or not _available(case):
            continue
        yield case
        if twins and not case.healthy:
            yield case.twin()


def get(name: str) -> Case:
    """One case by name; ``name~fixed`` is the repaired twin."""
    _load()
    base, _, fixed = name.partition("~")
    case = registry()[base]()
    return case.twin() if fixed else case
