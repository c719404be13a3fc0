"""Gradients as they were before they were clipped: read early, and entered into the record of the step that they are for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradwatch.capture.hooks import Hook
from gradwatch.capture.parameters import Parameters
from gradwatch.capture.transfer import Tape


@dataclass(eq=False)  # comparing tensors would wait for their device
class Unclipped:
    """What was read of the parameters that the same optimizers hold.

    Attributes:
        holders: These optimizers.
        names: The parameters that had a gradient.
        norms: Their gradients' norms, each of shape (), without the factor of a loss scaler; None of sparse ones.
        carried: Whether the gradients carried that factor, as what is on the tape does.
        tape: All that was measured.
        forget: Takes off the hook that waits for the next backward pass.
        outdated: Whether it has come.
    """

    holders: tuple[Optimizer, ...]
    names: list[str]
    norms: dict[str, Tensor]
    carried: bool
    tape: Tape
    forget: Callable[[], None]
    outdated: bool = False


class Clipping:
    """Keeps what ``watch.before_clip()`` read, until an optimizer that holds the parameters steps.

    Several optimizers step one after the other, each with a record of its own, while their gradients may be clipped together
    before the first. What was read is out of date once another backward pass has reached the parameters.

    Args:
        parameters: Reads gradients.
        fail: Called with an exception of gradwatch's own, which must not reach the training.
    """

    def __init__(self, parameters: Parameters, fail: Callable[[Exception], None]) -> None:
        self._parameters = parameters
        self._report = fail
        self._kept: list[Unclipped] = []

    def fail(self, error: Exception) -> None:
        """Takes an exception of a hook."""
        self._report(error)

    def keep(
        self, holders: tuple[Optimizer, ...], names: Iterable[str], factor: Tensor | None, *, carried: bool, full: bool
    ) -> None:
        """Reads gradients that are about to be clipped.

        Args:
            holders: The optimizers of these parameters.
            names: The parameters.
            factor: That of the loss scaler, shape (); None: there is none.
            carried: Whether the gradients still carry it.
            full: Whether all moments are measured, or norms only.
        """
        names = [name for name in names if self._parameters.named[name].grad is not None]
        if not names:
            return
        norms, tape = self._parameters.norms(names), Tape(self._parameters.tape.histogram)
        if factor is not None and carried:
            norms = {name: norm / factor for name, norm in norms.items()}
        self._parameters.read_gradients(names, tape, None if carried else factor, full=full)
        kept = Unclipped(holders, names, norms, carried, tape, lambda: None)
        first: Any = self._parameters.named[names[0]]
        kept.forget = first.register_hook(Hook(self, Clipping._outdate, kept)).remove
        self._kept.append(kept)

    def _outdate(self, kept: Unclipped, _grad: Tensor) -> None:
        kept.outdated = True

    def take(self, optimizer: Optimizer | None) -> list[Unclipped]:
        """Hands over what was kept for a step.

        Args:
            optimizer: Steps, so that its parameters and those that none holds are meant; None: all are.
        """
        if not self._kept:
            return []
        due = [kept for kept in self._kept if optimizer is None or not kept.holders or optimizer in kept.holders]
        self._kept = [kept for kept in self._kept if kept not in due]
        for kept in due:
            kept.forget()
        return [kept for kept in due if not kept.outdated and self._parameters.named[kept.names[0]].grad is not None]

    def clear(self) -> None:
        """Forgets everything."""
        self.take(None)

    def share_left(self, early: Sequence[Unclipped], factor: Tensor | None, carrying: Collection[str]) -> Tensor | None:
        """What clipping left of the norm of gradients together, shape (); None where there are none.

        Args:
            early: What was read before.
            factor: That of the loss scaler, shape (); None: there is none.
            carrying: The parameters whose gradients still carry it.
        """
        before = {name: norm for kept in early for name, norm in kept.norms.items()}
        now = self._parameters.norms(before)
        if not now:
            return None
        if factor is not None:
            now = {name: norm / factor if name in carrying else norm for name, norm in now.items()}
        norm, norm_before = _total(now.values()), _total(before[name] for name in now)
        return torch.where(norm_before == 0, torch.ones_like(norm), norm / norm_before)


def _total(norms: Iterable[Tensor]) -> Tensor:
    each = list(norms)
    total: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(each[0].device) for norm in each]).double())
    return total
