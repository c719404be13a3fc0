"""The only wiring: capture → record → history → detectors → findings → writers."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradwatch.capture import claims, probes
from gradwatch.capture.boundary import on_step
from gradwatch.capture.budget import Budget
from gradwatch.capture.guard import Guard, Turns
from gradwatch.capture.hooks import Hook
from gradwatch.capture.membership import Membership
from gradwatch.capture.recorder import Recorder
from gradwatch.capture.selection import listed, strangers
from gradwatch.detectors import Detector
from gradwatch.distributed import Processes, rank, world_size
from gradwatch.errors import GradWatchWarning, InvalidSetting, WatchClosed
from gradwatch.history import History
from gradwatch.incidents import group
from gradwatch.judging import Judging
from gradwatch.records import Finding, Incident, Record
from gradwatch.settings import OnFinding, act, check_model, chosen, destinations
from gradwatch.summary import render
from gradwatch.writers import Writer

log = logging.getLogger("gradwatch")

T = TypeVar("T", Tensor, float)


def watch(
    model: nn.Module | Mapping[str, Tensor],
    optimizer: Optimizer | Sequence[Optimizer] | Mapping[str, Optimizer] | None = None,
    *,
    logdir: str | Path | None = None,
    every: int = 10,
    budget: float | None = None,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    loss_fn: nn.Module | None = None,
    scaler: Any = None,
    detectors: Sequence[Detector] | None = None,
    writers: Sequence[Writer] = (),
    on_finding: OnFinding = "log",
    histograms: bool = False,
) -> Watch:
    """Watches a model while it trains, without changing its training.

    Args:
        model: The network, or name → leaf tensor for code with no modules.
        optimizer: One, or several (also by name): a record closes at each of their steps. None: call ``watch.step()`` after each
            update.
        logdir: Where to write TensorBoard event files; None: nowhere. Of several processes rank 0 writes.
        every: Optimizer steps from one full record (activations, their gradients, weights, updates) to the next; the norms of
            parameter gradients are recorded at every step. With several optimizers each gets its full record.
        budget: The share of the training's time that the watch may take, such as 0.01: ``every`` is then the narrowest cadence, and
            full records are put off as far as it takes; on a suspicion they come sooner for a while. None: ``every`` holds to the
            step, whatever it costs.
        include: Globs over layer names; the parameters of a layer go with it.
        exclude: Globs that take away from it.
        loss_fn: The criterion, where it is a module: its output is recorded as the loss. Else tell ``watch.loss(value)``.
        scaler: The ``torch.amp.GradScaler`` in use, so that gradients are recorded unscaled, and steps that it skips as skipped.
        detectors: What to look for; None: ``gradwatch.detectors.DEFAULT``.
        writers: More writers beside the event file; of several processes rank 0 uses its own.
        on_finding: ``"log"`` (logger ``gradwatch``, level warning), ``"warn"`` (``GradWatchWarning``), ``"raise"``
            (``UnhealthyTraining``, out of ``optimizer.step()``), or a function of the finding.
        histograms: Whether full records also count the elements of every tensor by their octave, ``Record.histograms``. It makes
            a full record dearer, in time and on disk.

    Returns:
        The watch; close it, or use it in a ``with`` statement.

    Raises:
        InvalidSetting: An argument has no meaning.
        NothingToWatch: The model has no parameters, or a glob selects nothing.
        AlreadyWatched: Another open watch observes the model.
        LogdirError: The log directory cannot be written.

    Warns:
        GradWatchWarning: An optimizer holds none of the model's parameters. Its steps are recorded all the same.
    """
    settings = chosen(
        every=every,
        budget=budget,
        include=include,
        exclude=exclude,
        detectors=detectors,
        on_finding=on_finding,
        histograms=histograms,
        loss_fn=loss_fn,
        scaler=scaler,
    )
    check_model(model)
    optimizers = listed(optimizer)
    for sentence in strangers(optimizers, model):
        warnings.warn(sentence, GradWatchWarning, stacklevel=2)
    return Watch(model, optimizers, logdir=logdir, loss_fn=loss_fn, scaler=scaler, writers=writers, **settings)


class Watch:
    """Records what flows through a model while it trains, and says what is wrong with it. Made by ``gradwatch.watch``."""

    def __init__(
        self,
        model: nn.Module | Mapping[str, Tensor],
        optimizers: Sequence[Optimizer],
        *,
        logdir: str | Path | None,
        every: int,
        budget: float | None = None,
        include: Sequence[str],
        exclude: Sequence[str],
        loss_fn: nn.Module | None,
        scaler: Any,
        detectors: Sequence[Detector],
        writers: Sequence[Writer],
        on_finding: OnFinding,
        histograms: bool = False,
        reads_gradients: bool = True,
        first_step: int = 0,
    ) -> None:
        membership = Membership(model, include, exclude)
        claims.refuse_claimed(membership.selection)
        self._turn = Turns()  # threads may train one model, each with its own optimizer
        self._on_finding = on_finding
        self._optimizers = list(optimizers)
        self._budget = (
            None if budget is None else Budget(budget, every, alone=lambda: world_size() == 1, optimizers=max(1, len(optimizers)))
        )
        self._guard = Guard(None if self._budget is None else self._budget.meter)
        writers = [] if rank() else destinations(logdir, writers)  # of several processes the first one writes
        self._judging = Judging(detectors, writers, self._guard, self._turn, hurried=budget is not None)
        self._recorder = Recorder(
            membership,
            self._optimizers,
            every=every,
            scaler=scaler,
            first_step=first_step,
            fail=self.fail,
            budget=self._budget,
            histograms=histograms,
        )
        self._remarks: list[str] = []
        self._closed = False
        self._attached = contextlib.ExitStack()
        self._attached.callback(self._recorder.close)
        try:
            if loss_fn is not None:
                hook = Hook(self._recorder, Recorder.criterion, traced=probes.Criterion(self._recorder.sinks))
                self._attached.callback(loss_fn.register_forward_hook(hook).remove)
            before = self._before_step if reads_gradients else None
            self._attached.enter_context(on_step(self._optimizers, before, self._after_step))
            if scaler is not None and reads_gradients:
                self._attached.enter_context(self._recorder.scaling.observe(self._after_skip))
            self._recorder.open()
        except BaseException:
            self._attached.close()  # a watch that could not be made leaves nothing behind
            raise
        claims.claim(self)
        self._processes = Processes(f"{every} {first_step}", self._recorder.placement, self._remark)

    # -------------------------------------------------------------- for users

    @property
    def history(self) -> History:
        """The newest records, and what was found. Asking for it makes the records that may have waited to be made."""
        return self._judging.history

    @property
    def findings(self) -> list[Finding]:
        """What was found, in order of ``first_step``."""
        return self._judging.findings

    @property
    def incidents(self) -> list[Incident]:
        """The findings, grouped under their first cause."""
        return group(self.findings, self.history.full_steps)

    def step(self) -> None:
        """Closes a record by hand: after each update where no optimizer was given; with one, for a step that it did not take.

        Call it before gradients are cleared: it reads them.

        Raises:
            WatchClosed: After ``close()``.
        """
        self._refuse_closed("step")
        with self._turn, self._guard():
            if not self._recorder.begun:
                self._recorder.read(None)
            self._seal(skipped=bool(self._optimizers))
        self._announce()

    def loss(self, value: T) -> T:
        """Tells the loss, before or after ``optimizer.step()``: of the step in progress, or of the one just closed.

        A tensor belongs to the step in which it was computed. With numbers, which of the two a loop does is learnt from its first
        call: a loss that is told before any step has closed comes before its step. Several losses of a step are averaged.

        Args:
            value: A scalar tensor, or a number.

        Returns:
            The value itself; in a function that ``torch.compile`` compiles, an equal tensor, which backward has to go through:
            ``loss = watch.loss(loss)``.

        Raises:
            WatchClosed: After ``close()``.
        """
        if torch.compiler.is_compiling():
            return probes.tell(self._recorder.sinks, value)
        self._refuse_closed("loss")
        with self._guard():
            self._recorder.loss(value)
        return value

    def tap(self, name: str, tensor: Tensor) -> Tensor:
        """Observes any tensor of functional code, and its gradient.

        Args:
            name: The layer's name in records and findings.
            tensor: Floating or complex, of any shape.

        Returns:
            The tensor itself; in a function that ``torch.compile`` compiles, an equal one, which has to be used in its place.

        Raises:
            InvalidSetting: The name is that of one of the model's layers.
            WatchClosed: After ``close()``.
        """
        if torch.compiler.is_compiling():
            return probes.tap(self._recorder.sinks, name, tensor)
        self._refuse_closed("tap")
        if name in self._recorder.selection.layers:
            raise InvalidSetting(f"tap({name!r}): the model has a layer of this name, which is observed already; give another name")
        with self._guard():
            self._recorder.tap(name, tensor)
        return tensor

    def before_clip(self) -> None:
        """Reads the gradients before they are clipped; call it between ``backward()`` and the clipping.

        The record's ``parameter_grad`` rows are then those before clipping, and ``Record.clip`` says what clipping left.

        Raises:
            WatchClosed: After ``close()``.
        """
        self._refuse_closed("before_clip")
        with self._guard():
            self._recorder.before_clip()

    def report(self) -> str:
        """A table for people: every layer with its newest figures and its status, what was found, what was not observed."""
        remarks = self._remarks if self._budget is None else [*self._remarks, self._budget.tell()]
        return render(self.history, self.findings, self._recorder.unseen(), remarks)

    def close(self) -> None:
        """Removes every hook, makes the last record final, and closes the writers. Closing twice does nothing."""
        if self._closed:
            return
        self._closed = True
        claims.release(self)
        with self._guard():
            if not self._recorder.step and self._optimizers and self._recorder.measured:
                self._recorder.read(None)  # a loop that never stepped has one record all the same
                self._seal(skipped=True)
        self._attached.close()
        with self._guard():
            self._finish()
            self._processes.leave()
            self._judging.close()
        self._judging.dismiss()
        self._announce()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            self.leave()  # what ended the training here keeps the others from reaching this record
        try:
            self.close()
        except Exception as news:
            if error is None:
                raise
            log.warning("%s", news)  # what ended the training is what has to be seen

    def __del__(self) -> None:
        # What it watched is gone and took it along; the last record is still under way.
        with contextlib.suppress(Exception):
            self.leave()  # nobody knows when the others get here
            self.close()

    # -------------------------------------------------------------- for front ends

    @property
    def ids(self) -> set[int]:
        """``id`` of every module and parameter that is observed at present."""
        return self._recorder.selection.ids

    @property
    def closed(self) -> bool:
        """Whether ``close()`` was called."""
        return self._closed

    def leave(self) -> None:
        """Lets other processes go on without this one; what it sees from here on is its own."""
        self._processes.leave()

    def pause(self) -> None:
        """Takes the hooks off the model while it is validated in the middle of its training."""
        with self._guard():
            self._recorder.pause()

    def resume(self) -> None:
        """Puts them back, where the step in progress is one that samples activations."""
        with self._guard():
            self._recorder.open()

    def begin(self, optimizer: Optimizer | None, step: int) -> None:
        """Reads the gradients of a step that an optimizer is about to take, where a trainer says when.

        Called again for the same step (a closure that is evaluated several times), it adds to the record; called for the next
        step, it first records the one that never ended as skipped.

        Args:
            optimizer: The one that is going to step.
            step: The trainer's own count of optimizer steps.
        """
        with self._guard():
            if self._recorder.begun and step != self._recorder.step:
                self._seal(skipped=True)
            self._recorder.step = step
            self._recorder.read(optimizer)
        self._announce()

    def abandon(self) -> None:
        """Records a step that has begun and was not taken as skipped."""
        with self._guard():
            if self._recorder.begun:
                self._seal(skipped=True)
        self._announce()

    def fail(self, error: Exception) -> None:
        """Reports an error of gradwatch's own, once; the training goes on."""
        self._guard.fail(error)

    # -------------------------------------------------------------- one step

    def _before_step(self, optimizer: Optimizer) -> None:
        with self._turn:
            self._guard.run(self._read, optimizer)

    def _after_step(self, optimizer: Optimizer) -> None:
        with self._turn:
            self._guard.run(self._end, optimizer)
        if self._judging.news:
            self._announce()

    def _after_skip(self, optimizer: Optimizer) -> None:
        with self._turn, self._guard():
            if optimizer in self._optimizers:
                self._recorder.read(optimizer)
                self._seal(skipped=True)
        self._announce()

    def _read(self, optimizer: Optimizer) -> None:
        if self._recorder.full:  # as often as is needed to say it once
            self._remark(self._recorder.scaling.remark())
        self._recorder.read(optimizer)

    def _end(self, optimizer: Optimizer) -> None:
        if self._recorder.begun:
            self._recorder.overflow(optimizer)
            self._seal(skipped=False)

    def _remark(self, sentence: str | None) -> None:
        """Says, once, what the user should know of this way of training; it is no finding, as nothing is wrong with the model."""
        if sentence is not None and sentence not in self._remarks:
            self._remarks.append(sentence)
            log.warning("gradwatch: %s", sentence)

    def _seal(self, *, skipped: bool) -> None:
        """Ends the step in progress, once the record before it is final."""
        self._guard.run(self._finish)  # where that fails, the step ends all the same
        if self._budget is not None:
            self._budget.suspicious = self._judging.suspicious
        self._recorder.seal(skipped=skipped)
        if self._budget is not None and (news := self._budget.news()) is not None:
            log.log(logging.WARNING if self._budget.missed else logging.INFO, "%s", news)
        if self._processes.together and self._recorder.settled:
            self._processes.send(self._recorded)

    def _finish(self) -> None:
        """Makes the sealed step final."""
        if self._processes.alone:
            if (sealed := self._recorder.finish()) is not None:
                self._judging.add(sealed)
            return
        self._processes.send(self._recorded)  # unless that was done as soon as the step was over
        record = self._processes.receive()
        if record is None:
            return
        if self._processes.together and not self._processes.speaks:
            self._judging.dismiss()  # the process group is younger than the watch
        self._judging.take(record)

    def _recorded(self) -> Record | None:
        sealed = self._recorder.finish()
        return None if sealed is None else sealed.record()

    def _announce(self) -> None:
        """Acts on new findings as the user asked; what this raises is meant to reach the training."""
        while self._judging.news:
            act(self._judging.news.pop(0), self._on_finding, aloud=self._processes.speaks)

    def _refuse_closed(self, method: str) -> None:
        if self._closed:
            raise WatchClosed(f"watch.{method}() after watch.close(): make a new watch with gradwatch.watch(...)")
