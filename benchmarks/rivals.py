"""Other tools that show what flows through a network while it trains, each as its documentation says.

None is needed to import this file: each is imported where it is attached, in a process of its own.
"""

from __future__ import annotations

import itertools
import os
from functools import partial
from pathlib import Path

from torch import Tensor
from torch.optim import Optimizer

from benchmarks.networks import Task
from benchmarks.tools import CYCLE, Attached, Tool


def tensorboard(task: Task, optimizer: Optimizer, directory: str, *, every: int) -> Attached:
    """A histogram of each parameter's gradient, by torch's ``SummaryWriter``."""
    from torch.utils.tensorboard import SummaryWriter

    writer, steps = SummaryWriter(directory), itertools.count()

    def write(_optimizer: Optimizer, _args: object, _kwargs: object) -> None:
        if (step := next(steps)) % every == 0:
            for name, parameter in task.model.named_parameters():
                writer.add_histogram(name, parameter.grad, step)

    optimizer.register_step_pre_hook(write)
    return Attached(lambda _loss: None, writer.close)


def wandb(task: Task, _optimizer: Optimizer, directory: str, *, every: int) -> Attached:
    """``wandb.watch(log="all")``, offline; the loss is logged at the same cadence, as nothing is stored without a log."""
    # Nothing leaves the machine, nothing outlives the directory, and no account is asked for.
    places = {f"WANDB_{name}_DIR": str(Path(directory) / name.lower()) for name in ("CACHE", "CONFIG", "DATA")}
    os.environ.update({"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false", **places})
    import wandb as package

    settings = package.Settings(console="off", x_disable_stats=True, x_disable_meta=True)
    run = package.init(mode="offline", project="benchmark", dir=directory, settings=settings)
    run.watch(task.model, log="all", log_freq=every)
    steps = itertools.count(1)

    def log(loss: Tensor) -> None:
        if next(steps) % every == 0:
            run.log({"loss": loss.item()})

    return Attached(log, lambda: (run.unwatch(task.model), run.finish()))


def torchinstruments(task: Task, _optimizer: Optimizer, directory: str, *, every: int) -> Attached:
    """``inject_observer`` with its default statistics, sampled by steps instead of minutes."""
    from torchinstruments import inject_observer, remove_observer
    from torchinstruments.sampling import EveryNForwardsSampler

    inject_observer(task.model, sampler=EveryNForwardsSampler(every), output_dir=directory)
    return Attached(lambda _loss: None, lambda: remove_observer(task.model))


def torchlens(task: Task, optimizer: Optimizer, directory: str, *, every: int) -> Attached:
    """TorchLens's live watch with all of its signals, numbers only and no histograms, into an event file."""
    from torchlens.observability import WatchSettings
    from torchlens.trackers import TensorBoardSink, watch

    step = 0

    def after(_loss: Tensor) -> None:
        nonlocal step
        step += 1

    session = watch(
        task.model,
        to=TensorBoardSink(directory),
        signals=("parameters", "gradients", "updates", "activations"),
        select=[name for name, _ in task.model.named_modules() if name],
        optimizer=optimizer,
        step=lambda: step,
        every=every,
        example_input=task.x,
        settings=WatchSettings(ram_policy="drop_oldest"),  # by default it ends the training after 256 samples
    )
    return Attached(after, session.close)


RIVALS = [
    Tool(f"{label}, every {'step' if every == 1 else f'{every} steps'}", partial(attach, every=every), every, packages)
    for label, attach, packages in (
        ('`wandb.watch(log="all")`, offline', wandb, ("wandb",)),
        ("torchinstruments", torchinstruments, ("torchinstruments",)),
        ("TensorBoard, `add_histogram` per parameter", tensorboard, ("tensorboard",)),
        ("TorchLens, live watch", torchlens, ("torchlens",)),
    )
    for every in (1, CYCLE)
]
