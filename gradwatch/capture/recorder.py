"""The capture of one step after the other: what is read and when, and the record that comes of it.

A step passes through three states. In progress, its measurements gather on the tape. Sealed, they travel to the host while the
next step already runs, so that nothing waits for the device; a loss that is told late still finds its step. Final, it is a record.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradwatch import moments
from gradwatch.capture.activations import Activations
from gradwatch.capture.budget import Budget
from gradwatch.capture.cadence import Cadence
from gradwatch.capture.compiled import Sinks
from gradwatch.capture.engine import computed_at, in_transform, now
from gradwatch.capture.fast_path import FastPath
from gradwatch.capture.hooks import Hook
from gradwatch.capture.layout import Layout, Members
from gradwatch.capture.membership import Membership
from gradwatch.capture.parameters import Parameters
from gradwatch.capture.passes import Passes
from gradwatch.capture.reading import Reading
from gradwatch.capture.scaling import Scaling
from gradwatch.capture.sealed import Sealed
from gradwatch.capture.selection import Selection, held
from gradwatch.capture.shards import Holding, same_samples, swaps_parameters
from gradwatch.capture.structure import unique_tensors
from gradwatch.capture.transfer import Tape
from gradwatch.capture.unowned import Unowned


class Recorder:
    """Captures what the step in progress shows. Whoever owns it says when gradients are there and when a step is over.

    Its methods let errors out, and the owner keeps them from the training; only hooks, which nobody calls by name, and the end
    of a step, which may not stay half done, report theirs themselves.

    Args:
        membership: What is observed, also where it changes while the model is trained.
        optimizers: Those that take the steps; none: nobody says when an update begins.
        every: Steps from one full record to the next.
        scaler: The ``torch.amp.GradScaler`` in use, or None.
        first_step: The number of the first step.
        fail: Called with an exception of gradwatch's own, which must not reach the training.
        budget: What full records may cost; None: they come at their cadence, whatever they cost.
        histograms: Whether full records hold them.

    Attributes:
        step: The number of the step in progress.
        scaling: What the scaler does.
    """

    def __init__(
        self,
        membership: Membership,
        optimizers: Sequence[Optimizer],
        *,
        every: int,
        scaler: Any,
        first_step: int,
        fail: Callable[[Exception], None],
        budget: Budget | None = None,
        histograms: bool = False,
    ) -> None:
        selection = membership.selection
        self.step = self._first_step = first_step
        self.scaling = Scaling(scaler)
        self._membership = membership
        self._optimizers, self._report = optimizers, fail
        self._cadence = Cadence(optimizers, every, first_step, budget)
        self.meter = None if budget is None else budget.meter
        self._tape, self._histograms = Tape(), histograms
        self._passes = Passes(selection.owned)
        self._activations = Activations(selection.layers, selection.owners, self._tape, self._passes, fail, self.meter)
        self._parameters = Parameters(selection.holdings, selection.types, self._tape)
        self._reading = Reading(self._parameters, optimizers, self.scaling, self._tape, fail)
        self._activations.gradients.on_backward(self._parameters.read_leftover)
        self._root = None if isinstance(selection.root, torch.jit.ScriptModule) else selection.root  # it takes no hooks
        self._unowned = Unowned([*selection.owned, *(tensor for optimizer in optimizers for tensor in held(optimizer))], self._tape)
        self._fast_path = FastPath(self._activations, fail)
        self._fast_path.adopt(selection.root)
        self._root_hooks = contextlib.ExitStack()
        self._looking = False
        self._layout = Layout()
        self._sealed: Sealed | None = None
        self._loss_follows: bool | None = None
        self._hooked = True  # whether hooks may be on the model that a light step has no use for
        self._compared = False  # whether the model was compared with what is known of it in the step in progress

    def fail(self, error: Exception) -> None:
        """Takes an exception of a hook, or of the end of a step."""
        self._report(error)

    # -------------------------------------------------------------- hooks on the model

    def open(self) -> None:
        """Gets ready for the step in progress: hooks are on the model only while it samples activations."""
        if not self._compared:  # else that was done with the gradients, and nobody but the optimizer has run since
            self._renew()
        self._compared = False
        self._tape.histogram = self._histograms and self.full
        if not (self.full or self._hooked):
            return
        self._hooked = self.full or not self._activations.known
        self._activations.open(sampling=self.full)
        if not self.full:
            self._fast_path.close()
            self._unhook_root()
            return
        self._fast_path.open()
        if self._unowned.done and not self.sinks.traced:
            self._unhook_root()
        elif self._root is not None and not self._looking:
            self._looking = True
            self._root_hooks.callback(self._root.register_forward_pre_hook(Hook(self, Recorder._enter)).remove)
            self._root_hooks.callback(self._root.register_forward_hook(Hook(self, Recorder._look)).remove)
        if not self._optimizers:  # nobody says when an update begins, so the weights are remembered from here on
            self._parameters.remember(self._parameters.trainable(list(self._parameters.named)), moving=False)

    def pause(self) -> None:
        """Takes the hooks off the model until ``open`` puts them back."""
        self._hooked = True  # whatever is left
        self._activations.pause()
        self._fast_path.close()
        self._unhook_root()

    def close(self) -> None:
        """Takes the hooks off and lets go of all copies of weights. What was sealed can still be finished."""
        self._activations.close()
        self._fast_path.close()
        self._root_hooks.close()
        self._parameters.forget()
        self._reading.close()

    def _unhook_root(self) -> None:
        if not self.sinks.traced:  # else compiled code may know them
            self._root_hooks.close()
            self._looking = False

    def _renew(self) -> None:
        """Takes up what has joined the model, and lets go of what has left it."""
        try:
            if not (self.full or self._membership.due(self.step)):
                return
            self._compared = True
            if self._membership.changed(self.step):
                selection = self.selection
                self._activations.adopt(selection.layers, selection.owners)
                self._fast_path.adopt(selection.root)
                self._parameters.adopt(selection.holdings, selection.types)
                self._reading.adopt()
                self._passes.know(selection.owned)
                self._unowned.know([*selection.owned, *(tensor for optimizer in self._optimizers for tensor in held(optimizer))])
        except Exception as error:  # noqa: BLE001  # what is known of the model is observed all the same
            self.fail(error)

    def _renew_once(self) -> None:
        """Does so when gradients are first read in a step, unless they are those of leaves that may have been replaced."""
        if not self._reading.begun and (self._optimizers or self._membership.lazy or self._is_exchanged()):
            self._renew()

    def _is_exchanged(self) -> bool:
        """Whether sharding may have put other parameters into the model since the watch was made: those known got no gradient."""
        known = self._parameters.named.values()
        return self.step == self._first_step and self.selection.root is not None and any(tensor.grad is None for tensor in known)

    def _enter(self, _module: nn.Module, _args: Any) -> None:
        self._activations.come_last()
        self._unowned.enter()

    def _look(self, module: nn.Module, _args: Any, output: Any) -> None:
        if torch.is_grad_enabled() and not in_transform() and not swaps_parameters(module):
            if not self._unowned.done:
                self._unowned.know(module.parameters())  # they may have been exchanged since the watch was made
                self._unowned.look(output)
            if self.sinks.traced:
                self._activations.gradients.await_pass(unique_tensors(output))

    # -------------------------------------------------------------- the step in progress

    @property
    def selection(self) -> Selection:
        """What is observed at present."""
        return self._membership.selection

    @property
    def sinks(self) -> Sinks:
        """Where compiled graphs deliver."""
        return self._activations.sinks

    @property
    def begun(self) -> bool:
        """Whether gradients of the step in progress were read."""
        return self._reading.begun

    @property
    def measured(self) -> bool:
        """Whether anything of the step in progress was measured."""
        return bool(self._tape) or self.sinks.delivered

    def read(self, optimizer: Optimizer | None) -> None:
        """Reads gradients, possibly several times a step, and in a full record the weights before the update."""
        self._renew_once()
        self._take_weights(self._reading.read(optimizer, full=self.full), moving=optimizer is not None)

    def _read_rest(self) -> None:
        if self._reading.within:
            self._take_weights(self._reading.read_rest(full=self.full), moving=True)

    def _take_weights(self, names: list[str], *, moving: bool) -> None:
        if self.full:
            self._parameters.note_silent_rows(names)
            self._unowned.read()
            self._look_for_late()
            if moving:
                self._parameters.remember(names, moving=True)

    def _look_for_late(self) -> None:
        known, sinks = self._activations, self.sinks
        missing = [name for name in known.layers if name not in known.reached]
        if missing and not known.failed and not sinks.traced and not sinks.delivered:
            known.late.look(self._root, known.layers, missing)

    def before_clip(self) -> None:
        """Reads gradients that are about to be clipped: the next ``read`` of them then only compares the norms that it finds."""
        self._renew_once()
        self._reading.before_clip(full=self.full)

    def tap(self, name: str, tensor: Tensor) -> None:
        """Observes a tensor that no module returns, and its gradient."""
        self._activations.tap(name, tensor)

    def loss(self, value: Tensor | float) -> None:
        """Takes a loss, of the step in progress or of the one just sealed.

        The graph tells when a tensor was computed. A number tells nothing, so that the habit of the loop has to: one that tells
        its loss while no step is sealed tells it before the step, always.
        """
        if in_transform():
            return
        if isinstance(value, Tensor) and self.sinks.traced:
            self._activations.gradients.await_pass([value])
        loss = _scalar(value) if isinstance(value, Tensor) else float(value)
        if self._sealed is None:
            self._loss_follows = False
        elif isinstance(value, Tensor) and (computed := computed_at(value)) is not None:
            self._loss_follows = computed < self._sealed.closed
        elif self._loss_follows is None:
            self._loss_follows = True
        if self._sealed is not None and self._loss_follows:
            self._sealed.losses.append(loss)
        else:
            self._tape.add_scalar("told", loss)

    def criterion(self, _module: nn.Module, _args: Any, output: Any) -> None:
        """Takes what a criterion returned, as its forward hook: it is the loss where none is told."""
        if isinstance(output, Tensor) and output.requires_grad and not in_transform():  # else it is no training loss
            self._tape.add_scalar("criterion", _scalar(output))

    def overflow(self, optimizer: Optimizer) -> None:
        """Notes whether the optimizer saw gradients overflow: a fused one is called all the same, and then moves nothing."""
        if isinstance(overflow := getattr(optimizer, "found_inf", None), Tensor):
            self._tape.add_scalar("overflow", overflow.detach().reshape(()))

    @property
    def full(self) -> bool:
        """Whether the record of the step in progress is a full one."""
        return self._cadence.full

    # -------------------------------------------------------------- the end of a step

    def seal(self, *, skipped: bool) -> None:
        """Ends the step in progress: its measurements start to travel, and the next step begins. The one before is finished."""
        read = self._reading
        if self.full or read.within:
            self._end_measuring()
        else:
            self.sinks.deliver(self._tape)
        self._sealed = Sealed(
            self.step,
            Members(self._activations.order, self._parameters.known, self._parameters.partial),
            read.trainable(),
            read.graded,
            self.full,
            skipped,
            self._tape.take(),
            self._layout,
            self._activations.put_compiled,
            now(),
            read.scaled,
        )
        self._cadence.stepped(read.stepping, self.step)
        self.step += 1
        self._reading.end()
        self.open()

    def _end_measuring(self) -> None:
        read_updates = partial(self._parameters.read_updates, self._membership.tensors)
        for part in (self._read_rest, read_updates, self._activations.end_record, self._parameters.end_record):
            try:
                part()
            except Exception as error:  # noqa: BLE001  # where one of them fails, the step ends all the same
                self.fail(error)
        self._parameters.forget()

    @property
    def settled(self) -> bool:
        """Whether nothing about the sealed step can change any more: its measurements are here, and so is its loss."""
        if self._sealed is None or not self._sealed.measured.arrived:
            return False
        follows = self._loss_follows
        return follows is False or (follows is None and bool(self._sealed.measured.scalars("criterion")))

    def placement(self) -> tuple[Mapping[str, Holding], tuple[int, ...]]:
        """What this process holds of each parameter, by its name, and which ranks compute its samples together with it."""
        root = self.selection.root
        return self._parameters.held, () if root is None else same_samples(root)

    def finish(self) -> Sealed | None:
        """The sealed step, which nothing can be told about any more; None where no step is sealed."""
        sealed, self._sealed = self._sealed, None
        return sealed

    def unseen(self) -> dict[str, str]:
        """Layers without a recorded activation, and gradients that cannot be measured → why, as far as that can be known."""
        partial = {f"gradient of {name}": "each process holds a part of its sum" for name in sorted(self._parameters.partial)}
        return self._layout.unseen(self._activations) | partial


def _scalar(loss: Tensor) -> Tensor | float:
    """The mean of a loss: as a number where reading it costs nothing, else as a tensor of its own, shape ()."""
    if loss.dim() == 0 and moments.readable(loss):
        return float(loss.item())
    return (loss if loss.is_floating_point() else loss.double()).detach().mean().clone()
