"""The ways of training that are tested: what is recorded in each, and what the documentation therefore says of it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

Test = TypeVar("Test", bound=Callable[..., object])

GROUPS = ("One step", "Precision", "Graphs and passes", "Parameters", "Modules", "torch.compile", "Several processes")
"""In the order of the documentation."""


@dataclass(frozen=True)
class Mode:
    """A way of training. Decorates the tests that hold what it says; one without a test is an error.

    Attributes:
        group: One of ``GROUPS``.
        name: What the user does, in Markdown.
        recorded: What a record then holds.
        units: Of what is recorded; the plain ones are those of the tensor itself.
        unsupported: What is not observed, or not supported; empty: nothing that is known.
        tests: The names of its tests.
    """

    group: str
    name: str
    recorded: str
    units: str = "plain"
    unsupported: str = ""
    tests: list[str] = field(default_factory=list, compare=False)

    def __post_init__(self) -> None:
        if self.group not in GROUPS:
            raise ValueError(f"{self.group!r} is no group; give one of {', '.join(GROUPS)}")
        if any(self.name == other.name for other in MODES):
            raise ValueError(f"the mode {self.name!r} is there already: decorate its test with that one")
        MODES.append(self)

    def __call__(self, test: Test) -> Test:
        self.tests.append(test.__name__)
        return test

    @property
    def row(self) -> str:
        """Its row of the table."""
        return f"| {self.name} | {self.recorded} | {self.units} | {self.unsupported or '–'} |"


MODES: list[Mode] = []


def table() -> str:
    """Every mode, as Markdown: a table for each group."""
    here = Path(__file__).parent
    if str(here) not in sys.path:
        sys.path.insert(0, str(here))
    for path in sorted(here.glob("test_*.py")):
        importlib.import_module(path.stem)
    parts = []
    for group in GROUPS:
        modes = [mode for mode in MODES if mode.group == group]
        if untested := [mode.name for mode in modes if not mode.tests]:
            raise ValueError(f"no test is decorated with {untested}")
        if modes:
            parts.append(
                "\n".join([f"### {group}", "", "| you do | what is recorded | units | not supported |", "|---|---|---|---|"])
            )
            parts[-1] += "\n" + "\n".join(mode.row for mode in modes) + "\n"
    return "\n".join(parts)
