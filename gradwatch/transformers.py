"""The watch as a callback, for the ``Trainer`` of Hugging Face's transformers."""
# ruff: noqa: ARG002  # which arguments its events get is the Trainer's choice

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradwatch.capture.engine import at_end_of_pass
from gradwatch.capture.hooks import Hook
from gradwatch.capture.selection import listed
from gradwatch.capture.structure import unique_tensors
from gradwatch.detectors import Detector
from gradwatch.errors import WatchClosed
from gradwatch.eventfiles import unused
from gradwatch.settings import OnFinding, chosen
from gradwatch.watch import Watch
from gradwatch.writers import Writer

try:
    from transformers import TrainerCallback
except ImportError as missing:
    raise ImportError(
        f"gradwatch.transformers needs transformers and accelerate ({missing}); pip install 'gradwatch[transformers]'"
    ) from missing


class GradWatchCallback(TrainerCallback):
    """Watches the model of every ``trainer.train()``, without changing its training.

    A record is made at each optimizer step, under the step that ``state.global_step`` then counts; one that an overflow of float16
    skips is marked so. Gradients are those before the Trainer clips, unscaled, and ``Record.clip`` is the share that clipping left.
    Evaluation is not observed.

    The loss is the one that the model returns, of the whole step where micro-batches are accumulated. No event of the Trainer tells
    another one (of label smoothing, or a ``compute_loss`` of your own): tell ``callback.watch.loss(value)`` where you compute it.

    Each training gets an event file of its own, in ``<output_dir>/runs/gradwatch_logs/version_<n>``, or below ``logging_dir`` where
    the version of transformers has one. Only the process of rank 0 writes.

    Args:
        logdir: Where to write event files instead.
        every: Optimizer steps from one full record to the next; see ``gradwatch.watch``.
        budget: The share of the training's time that the watch may take; see ``gradwatch.watch``.
        include: Globs over layer names; the parameters of a layer go with it.
        exclude: Globs that take away from it.
        detectors: What to look for; None: ``gradwatch.detectors.DEFAULT``.
        writers: More writers; they are closed at the end of the first training.
        on_finding: ``"log"``, ``"warn"``, ``"raise"`` or a function of the finding; see ``gradwatch.watch``.
        histograms: Whether full records also count magnitudes by octaves; see ``gradwatch.watch``.

    Raises:
        InvalidSetting: An argument has no meaning. ``trainer.train`` raises what ``gradwatch.watch`` does, before its first batch.
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
        self._watch: Watch | None = None
        self._step_loss = nn.Identity()  # what it is called with counts as a criterion's, so that a loss that is told goes before
        self._losses: list[Tensor] = []
        self._shares = False
        self._accumulation: Any = None
        self._attached = contextlib.ExitStack()

    @property
    def watch(self) -> Watch:
        """The watch behind it: of the training in progress, or of the last one.

        Raises:
            WatchClosed: No training has begun yet.
        """
        if self._watch is None:
            raise WatchClosed("callback.watch before the first training: it opens when training starts; call trainer.train() first")
        return self._watch

    @property
    def _open(self) -> Watch | None:
        return None if self._watch is None or self._watch.closed else self._watch

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any) -> None:
        """Opens the watch: the optimizer exists, and a checkpoint has been restored."""
        self.on_train_end(args, state, control)  # where an error ended the last training, nobody said so
        writes = state.is_world_process_zero
        self._watch = Watch(
            model,
            listed(optimizer),
            logdir=(self._logdir or _destination(args)) if writes else None,
            writers=self._writers if writes else (),
            loss_fn=self._step_loss,
            scaler=getattr(optimizer, "scaler", None),
            first_step=state.global_step,
            **self._settings,
        )
        self._accumulation = getattr(optimizer, "gradient_state", None) if args.max_grad_norm else None
        self._attached.callback(model.register_forward_hook(Hook(self, GradWatchCallback._returned), with_kwargs=True).remove)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tells the loss of the step, of which micro-batches have a share each, or one of their own."""
        losses, self._losses = self._losses, []
        try:
            if losses:
                each = torch.stack([loss.mean() for loss in losses])
                self._step_loss((each.sum() if self._shares else each.mean()).requires_grad_())
        except Exception as error:  # noqa: BLE001  # a loss of an unknown kind is no reason to end the training
            self.fail(error)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Closes the watch."""
        self._attached.close()
        self._losses.clear()
        if watch := self._open:
            watch.close()

    def fail(self, error: Exception) -> None:
        """Takes an exception of one of the hooks, which must not reach the training."""
        self.watch.fail(error)

    def _returned(self, _model: nn.Module, _args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        """Takes the loss that the model returned, and has its backward pass waited for."""
        loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if isinstance(loss, Tensor) and loss.requires_grad:
            self._losses.append(loss.detach())
            self._shares = kwargs.get("num_items_in_batch") is not None
        if self._accumulation is not None:
            for tensor in islice((tensor for tensor in unique_tensors(output) if tensor.requires_grad), 1):
                tensor.register_hook(Hook(self, GradWatchCallback._backward))  # type: ignore[no-untyped-call]

    def _backward(self, _grad: Tensor) -> None:
        """Has gradients read at the end of the step's last backward pass: clipping comes next, with no event between."""
        if (watch := self._open) and self._accumulation.sync_gradients:
            # At the end of the end, behind what others do there: the average over processes.
            at_end_of_pass(lambda: at_end_of_pass(watch.before_clip))


def _destination(args: Any) -> Path:
    return unused(Path(getattr(args, "logging_dir", None) or Path(args.output_dir) / "runs") / "gradwatch_logs")
