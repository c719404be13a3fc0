"""What is read when an optimizer steps: gradients, whose they are, whether they are scaled, and what clipping has left of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch.optim import Optimizer

from gradwatch.capture.clipping import Clipping
from gradwatch.capture.engine import graph_task
from gradwatch.capture.holders import Holders
from gradwatch.capture.parameters import Parameters
from gradwatch.capture.scaling import Scaling
from gradwatch.capture.transfer import Tape


class Reading:
    """Reads the gradients of the step in progress.

    Args:
        parameters: Measures them.
        optimizers: Those that take the steps.
        scaling: What the loss scaler does.
        tape: Where measurements go.
        fail: Called with an exception of gradwatch's own, which must not reach the training.

    Attributes:
        scaled: Those whose gradients carried the factor of the loss scaler when they were measured.
        graded: Whether anybody knows the gradients: they may be used without ever being in ``.grad``.
        stepping: The optimizers that have been read for.
        within: Whether they step within a backward pass, in which a parameter's gradient is there only for a moment.
    """

    def __init__(
        self,
        parameters: Parameters,
        optimizers: Sequence[Optimizer],
        scaling: Scaling,
        tape: Tape,
        fail: Callable[[Exception], None],
    ) -> None:
        self._parameters, self._scaling, self._tape = parameters, scaling, tape
        self._holders = Holders(parameters.named, optimizers)
        self._clipping = Clipping(parameters, fail)
        self._optimizers = optimizers
        self.end()

    def end(self) -> None:
        """Gets ready for the next step. What was read of the parameters of another optimizer, before it was clipped, is kept."""
        self._read_names: list[list[str]] = []
        self.scaled: set[str] = set()
        self.graded = bool(self._optimizers)
        self.stepping: list[Optimizer] = []
        self.within = False

    def adopt(self) -> None:
        """Takes note that there are other parameters now."""
        self._clipping.clear()
        self._holders = Holders(self._parameters.named, self._optimizers)

    @property
    def begun(self) -> bool:
        """Whether gradients were read."""
        return bool(self._read_names)

    def trainable(self) -> list[str]:
        """The parameters that the step is about."""
        if all(names == self._read_names[0] for names in self._read_names):
            return self._read_names[0] if self._read_names else []
        about = {name for names in self._read_names for name in names}
        return [name for name in self._parameters.named if name in about]

    def close(self) -> None:
        """Takes off what waits for gradients."""
        self._clipping.clear()

    def read(self, optimizer: Optimizer | None, *, full: bool) -> list[str]:
        """Reads gradients, possibly several times a step.

        Args:
            optimizer: Is about to step; None: nobody is.
            full: Whether the record is a full one.

        Returns:
            The parameters that were read.
        """
        if optimizer is None:
            return self._read(None, list(self._parameters.named), full=full)
        self.stepping.append(optimizer)
        self.within = graph_task() != -1
        return self._read(optimizer, self._holders.own(optimizer) if self.within else self._holders.concerned(optimizer), full=full)

    def read_rest(self, *, full: bool) -> list[str]:
        """Reads the gradients of the parameters that no optimizer holds, after a pass in which all others were used up."""
        return self._read(None, self._holders.orphans(), full=full)

    def _read(self, optimizer: Optimizer | None, concerned: list[str], *, full: bool) -> list[str]:
        names = self._parameters.trainable(concerned)
        self._read_names.append(names)
        self.graded = self.graded or any(self._parameters.named[name].grad is not None for name in names)
        factor = self._scaling.factor(optimizer)
        early = self._clipping.take(optimizer)
        if factor is None and not early:
            self._parameters.read_gradients(names, self._tape, full=full)
            return names
        carrying = set() if factor is None else self._carrying(optimizer)
        for unclipped in early:
            self._tape.absorb(unclipped.tape)
            self.scaled |= set(unclipped.names if unclipped.carried else ())
        if (left := self._clipping.share_left(early, factor, carrying)) is not None:
            self._tape.add_scalar("clip", left)
        rest = set(names).difference(*(unclipped.names for unclipped in early))
        for some, divided_by in ((rest & carrying, None), (rest - carrying, factor)):
            self._parameters.read_gradients([name for name in names if name in some], self._tape, divided_by, full=full)
        self.scaled |= rest & carrying
        if factor is not None:
            self._tape.add_scalar("scale", factor)
        return names

    def before_clip(self, *, full: bool) -> None:
        """Reads gradients that are about to be clipped: the next ``read`` of them then only compares the norms that it finds."""
        self._clipping.clear()
        factor = self._scaling.factor(None)
        carrying = set() if factor is None else self._carrying(None)
        for holders, names in self._holders.groups().items():
            trainable = self._parameters.trainable(names)
            self._clipping.keep(holders, trainable, factor, carried=names[0] in carrying, full=full)

    def _carrying(self, optimizer: Optimizer | None) -> set[str]:
        """The parameters whose gradients carry the factor of the loss scaler: it divides those of an optimizer before its step."""
        if not self._optimizers:
            return set()  # nobody knows whether that was done
        return {
            name
            for holders, names in self._holders.groups().items()
            if all(self._scaling.carries(holder, stepping=holder is optimizer) for holder in holders)
            for name in names
        }
