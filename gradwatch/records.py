"""The nouns: Site, Record, Finding, Incident. All are frozen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from gradwatch import names
from gradwatch.moments import CALLS, COUNT, Array

TensorName = Literal["activation", "activation_grad", "input_grad", "parameter", "parameter_grad", "update"]
TENSORS: tuple[TensorName, ...] = get_args(TensorName)
"""What is observed of a layer (the first three) and of a parameter."""

OF_PARAMETERS: frozenset[TensorName] = frozenset({"parameter", "parameter_grad", "update"})
"""Those whose site is named after a parameter."""

Kind = Literal[
    "vanishing_gradient",
    "exploding_gradient",
    "non_finite",
    "dead_units",
    "saturated",
    "zero_gradient",
    "stale_gradient",
    "not_updated",
    "bad_scale",
    "update_ratio",
    "loss_stagnant",
    "loss_unstable",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""What can be found."""

Severity = Literal["warning", "critical"]


@dataclass(frozen=True)
class Site:
    """A tensor that is observed, step after step.

    Attributes:
        layer: The module's canonical name; for ``parameter``, ``parameter_grad`` and ``update`` the parameter's full name.
        tensor: Which tensor of the layer.
        type: The module's class name; for a parameter that of the module that owns it.
        shape: A parameter's shape; empty for activations, whose shape may change from step to step.
    """

    layer: str
    tensor: TensorName
    type: str = ""
    shape: tuple[int, ...] = ()

    @property
    def owner(self) -> str:
        """The layer that it belongs to."""
        return names.owner(self.layer) if self.tensor in OF_PARAMETERS else self.layer

    @property
    def is_matrix(self) -> bool:
        """Whether a parameter has rows and columns; a vector may be stored with leading dimensions of size 1, such as a token."""
        return len(self.shape) == 2 or sum(size > 1 for size in self.shape) > 1  # one row is a matrix: a layer of one unit


@dataclass(frozen=True, eq=False)
class Record:
    """What one optimizer step showed.

    Attributes:
        step: Optimizer steps, from 0.
        sites: What could be observed, in forward order.
        rows: (sites, moments.COLUMNS), float32; a site that was not seen in this step has count 0.
        loss: Mean of the losses told for this step; None where none was.
        skipped: The optimizer did not move the weights (an overflow under mixed precision).
        backwards: Backward passes seen: micro-batches; 0 where activations were not sampled.
        full: Activations, weights and updates were sampled; else parameter gradients only.
        clip: What clipping left of the gradient's total norm, 1 where it left all; NaN where only one side was read.
        scale: The factor that a loss scaler had put on the gradients, which are recorded without it; NaN where there was none.
        ranks: Where the processes of a training have merged what each saw: the rank that saw the first value of a site that is
            not finite, or else the largest magnitude, (sites,), int32; -1 where all hold the same, or nobody saw the site.
            None: one process has recorded for itself.
        histograms: Of a full record, where they were asked for: elements in each octave of ``octaves.EXPONENTS``, (sites,
            len(octaves.EXPONENTS)), float32; NaN where they were not counted. What is in none is zero or not finite. Where
            processes have merged what each saw, they are still those of this process.
    """

    step: int
    sites: tuple[Site, ...]
    rows: Array
    loss: float | None = None
    skipped: bool = False
    backwards: int = 0
    full: bool = True
    clip: float = float("nan")
    scale: float = float("nan")
    ranks: npt.NDArray[np.int32] | None = None
    histograms: Array | None = None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Record):
            return NotImplemented
        return (
            (self.step, self.sites, self.skipped, self.backwards, self.full)
            == (other.step, other.sites, other.skipped, other.backwards, other.full)
            and (self.loss is None) == (other.loss is None)
            and np.array_equal([self.loss or 0, self.clip, self.scale], [other.loss or 0, other.clip, other.scale], equal_nan=True)
            and _equal(self.rows, other.rows)
            and _equal(self.ranks, other.ranks)
            and _equal(self.histograms, other.histograms)
        )

    __hash__ = None  # type: ignore[assignment]  # rows are an array

    def __repr__(self) -> str:
        seen = int((self.rows[:, COUNT] > 0).sum())
        return f"Record(step={self.step}, {seen} of {len(self.sites)} sites seen, loss={self.loss})"

    @property
    def nbytes(self) -> int:
        """Bytes of memory that its numbers take."""
        return sum(table.nbytes for table in (self.rows, self.ranks, self.histograms) if table is not None)

    @property
    def calls(self) -> int:
        """Tensors that were merged into this record."""
        return int(self.rows[:, CALLS].sum())


def _equal(one: npt.NDArray[Any] | None, other: npt.NDArray[Any] | None) -> bool:
    return one is other if one is None or other is None else np.array_equal(one, other, equal_nan=True)


@dataclass(frozen=True, eq=False)
class Finding:
    """One thing that is wrong, at one layer, over a stretch of steps.

    Attributes:
        kind: One of ``KINDS``.
        layer: Canonical module or parameter name; ``"loss"`` for the loss itself.
        first_step: The first step that showed it, in optimizer steps from 0.
        last_step: The last step that showed it so far.
        severity: ``"critical"`` ruins the run; ``"warning"`` deserves a look.
        evidence: The numbers behind it, by name.
        message: What was seen, as a sentence with numbers.
        advice: What to try, as sentences.
    """

    kind: Kind
    layer: str
    first_step: int
    last_step: int
    severity: Severity
    evidence: dict[str, float] = field(default_factory=dict)
    message: str = ""
    advice: str = ""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Finding):
            return NotImplemented
        mine, theirs = self.to_dict(), other.to_dict()
        here, there = mine.pop("evidence"), theirs.pop("evidence")
        # A loss that became NaN is evidence as well, and equal to itself.
        same = here.keys() == there.keys() and np.array_equal(list(here.values()), [there[name] for name in here], equal_nan=True)
        return same and bool(mine == theirs)

    __hash__ = None  # type: ignore[assignment]  # evidence is a dict

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class Incident:
    """Findings with one root.

    Attributes:
        cause: The finding that explains the others.
        consequences: What follows from it, in order of ``first_step``.
    """

    cause: Finding
    consequences: tuple[Finding, ...] = ()
