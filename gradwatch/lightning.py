"""The watch as a callback, for the Trainer of ``lightning.pytorch`` and of ``pytorch_lightning``."""
# ruff: noqa: ARG002  # which arguments its hooks get is Lightning's choice

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from torch import Tensor, nn
from torch.optim import Optimizer

from gradwatch.detectors import Detector
from gradwatch.errors import InvalidSetting, WatchClosed
from gradwatch.eventfiles import unused
from gradwatch.records import KINDS, Finding, Kind, Severity
from gradwatch.settings import OnFinding, chosen
from gradwatch.watch import Watch
from gradwatch.writers import Writer

log = logging.getLogger("gradwatch")


def _bases() -> tuple[type, ...]:
    """The class Callback of every installed package: a Trainer takes some things only from one of its own."""
    bases: list[type] = []
    for package in ("lightning.pytorch", "pytorch_lightning"):
        try:
            bases.append(importlib.import_module(package).Callback)
        except ImportError as error:
            missing = error
    if not bases:
        raise ImportError(
            f"gradwatch.lightning needs lightning or pytorch-lightning, and neither can be imported ({missing}); "
            "pip install 'gradwatch[lightning]'"
        ) from missing
    return tuple(bases)


class GradWatchCallback(*_bases()):  # type: ignore[misc]  # which classes these are is known where it runs
    """Watches the model of every ``trainer.fit``, without changing its training.

    A record is made at each optimizer step, under the step that ``trainer.global_step`` then counts. Gradients are those before
    Lightning clips; under manual optimization, where clipping is the module's own doing, as they stand at ``optimizer.step()``.
    The loss is what ``training_step`` returned or gave to ``manual_backward``, averaged over the micro-batches and closures of
    the step; one that runs backward on its own is told by ``callback.watch.loss(value)``. Validation is not observed.

    Everything is written through the writer of the trainer's ``TensorBoardLogger``s, as TensorBoard wants one event file a run
    at a time. Loggers of another kind get the scalars of ``gradwatch.writers.summaries``. Where the trainer has no logger, every
    fit gets an event file of its own in ``<default_root_dir>/gradwatch_logs/version_<n>``; ``fast_dev_run`` writes none.
    Only the process of rank 0 writes.

    Args:
        logdir: Where to write event files instead of all of these.
        every: Optimizer steps from one full record to the next; see ``gradwatch.watch``.
        budget: The share of the training's time that the watch may take; see ``gradwatch.watch``.
        include: Globs over layer names; the parameters of a layer go with it.
        exclude: Globs that take away from it.
        detectors: What to look for; None: ``gradwatch.detectors.DEFAULT``.
        writers: More writers; they are closed at the end of the first fit.
        on_finding: ``"log"``, ``"warn"``, ``"raise"`` or a function of the finding; see ``gradwatch.watch``.
        stop_on: Severities and kinds of findings that set ``trainer.should_stop``; on several processes, where all have to stop
            together, this costs a small exchange every batch.
        histograms: Whether full records also count magnitudes by octaves; see ``gradwatch.watch``.

    Raises:
        InvalidSetting: An argument has no meaning. ``trainer.fit`` raises what ``gradwatch.watch`` raises, before its first batch.
    """

    def __init__(
        self,
        logdir: str | Path | None = None,
        *,
        every: int = 10,
        budget: float | None = None,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        detectors: Sequence[Detector] | None = None,
        writers: Sequence[Writer] = (),
        on_finding: OnFinding = "log",
        stop_on: Sequence[Severity | Kind] = (),
        histograms: bool = False,
    ) -> None:
        super().__init__()
        self._settings = chosen(
            every=every,
            budget=budget,
            include=include,
            exclude=exclude,
            detectors=detectors,
            on_finding=on_finding,
            histograms=histograms,
        )
        self._logdir, self._writers = logdir, tuple(writers)
        self._stop_on = _stop_on(stop_on)
        self._watch: Watch | None = None

    @property
    def watch(self) -> Watch:
        """The watch behind it: of the fit in progress, or of the last one.

        Raises:
            WatchClosed: No fit has begun yet.
        """
        if self._watch is None:
            raise WatchClosed("callback.watch before the first fit: it opens when training starts; call trainer.fit(...) first")
        return self._watch

    @property
    def _open(self) -> Watch | None:
        return None if self._watch is None or self._watch.closed else self._watch

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Opens the watch: the optimizers exist, the sanity check is over, and a checkpoint has been restored."""
        writes = trainer.global_rank == 0
        logdir, writers = _destination(trainer, self._logdir) if writes else (None, [])
        self._watch = Watch(
            _sharding(trainer, pl_module),
            trainer.optimizers,
            logdir=logdir,
            writers=(*writers, *self._writers) if writes else (),
            loss_fn=None,
            scaler=getattr(trainer.precision_plugin, "scaler", None),
            reads_gradients=False,
            first_step=trainer.global_step,
            **self._settings,
        )

    def on_before_backward(self, trainer: Any, pl_module: nn.Module, loss: Tensor) -> None:
        """Tells the loss, without the factors that Lightning has put on it."""
        if watch := self._open:
            try:
                watch.loss(_as_returned(trainer, loss.detach()))
            except Exception as error:  # noqa: BLE001  # a loss of an unknown kind is no reason to end the training
                watch.fail(error)

    def on_before_optimizer_step(self, trainer: Any, pl_module: nn.Module, optimizer: Optimizer) -> None:
        """Reads the gradients. The record closes when the optimizer has stepped."""
        if watch := self._open:
            watch.begin(optimizer, trainer.global_step)

    def on_train_batch_end(self, trainer: Any, pl_module: nn.Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Closes the record of a step that was begun and not taken, and stops the training where that was asked for."""
        if watch := self._open:
            watch.abandon()
            if self._stop_on:
                self._stop(trainer, watch.findings)

    def _stop(self, trainer: Any, findings: Sequence[Finding]) -> None:
        reason = next((finding for finding in findings if self._stop_on & {finding.severity, finding.kind}), None)
        if reason is not None and not trainer.should_stop:
            log.warning(
                "training stops before step %d: stop_on=%s and a %s finding: %s at %r since step %d: %s",
                trainer.global_step,
                sorted(self._stop_on),
                reason.severity,
                reason.kind,
                reason.layer,
                reason.first_step,
                reason.message,
            )
        # A process that stops alone leaves the others waiting for it.
        trainer.should_stop |= trainer.strategy.reduce_boolean_decision(reason is not None, all=False)

    def on_validation_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Takes the hooks off the model: a validation step may build a graph too."""
        if watch := self._open:
            watch.pause()

    def on_validation_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Puts the hooks back."""
        if watch := self._open:
            watch.resume()

    def on_train_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Closes the watch, before loggers and files are closed."""
        if watch := self._open:
            watch.close()

    def on_exception(self, trainer: Any, pl_module: nn.Module, exception: BaseException) -> None:
        """Closes the watch: no other hook is called any more."""
        if watch := self._open:
            watch.__exit__(type(exception), exception, None)


def _sharding(trainer: Any, pl_module: nn.Module) -> nn.Module:
    """The module that holds the parameters: FSDP1 keeps those of a module in a wrapper around it."""
    outer = trainer.strategy.model
    return outer if any(kind.__name__ == "FullyShardedDataParallel" for kind in type(outer).__mro__) else pl_module


def _as_returned(trainer: Any, loss: Tensor) -> Tensor:
    """The loss as the module computed it, of the one that Lightning runs backward: divided by micro-batches, and scaled."""
    loss = loss * trainer.accumulate_grad_batches
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return loss if scaler is None else loss / scaler.scale(loss.new_ones(()))  # get_scale() would wait for the device


def _stop_on(names: Sequence[str]) -> frozenset[str]:
    known = (*get_args(Severity), *KINDS)
    chosen = frozenset((names,) if isinstance(names, str) else names)
    for name in chosen:
        if name not in known:
            raise InvalidSetting(f"stop_on={name!r} is no severity and no kind of finding; give some of {', '.join(known)}")
    return chosen


def _destination(trainer: Any, logdir: str | Path | None) -> tuple[str | Path | None, list[Writer]]:
    """Where the records of a fit go: a directory for an event file of its own, and writers through the trainer's loggers."""
    from torch.utils.tensorboard import SummaryWriter

    from gradwatch.writers.logger import LoggerWriter
    from gradwatch.writers.tensorboard import EventFileWriter

    experiments = [(logger, getattr(logger, "experiment", None)) for logger in trainer.loggers]
    shared = [experiment for _, experiment in experiments if isinstance(experiment, SummaryWriter)]
    if logdir is not None:
        # A second event file in a logger's directory would freeze the curves of the first under TensorBoard's Python loader.
        same = [EventFileWriter(summary_writer=item) for item in shared if Path(item.log_dir).resolve() == Path(logdir).resolve()]
        return (None, list(same)) if same else (logdir, [])
    if trainer.fast_dev_run:
        return None, []
    if experiments:
        others = [LoggerWriter(logger) for logger, item in experiments if not isinstance(item, SummaryWriter)]
        return None, [*(EventFileWriter(summary_writer=item) for item in shared), *others]
    own = unused(Path(trainer.default_root_dir) / "gradwatch_logs")
    # Lightning shows what its own loggers say at this level, and only theirs.
    logging.getLogger(type(trainer).__module__).info("the trainer has no logger; gradwatch writes to %s", own)
    return own, []
