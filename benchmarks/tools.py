"""What is compared with training alone: gradwatch, the least that a watch can do, and what people write by hand.

Tools of others are in ``rivals.py``. Each is used as its documentation says, and writes to the disk as it does for its users.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import gradwatch
from benchmarks.networks import Task

CYCLE = 10
"""Steps from one full record to the next by default, and the slower of the two cadences at which tools are compared."""


@dataclass(frozen=True)
class Attached:
    """A tool at work.

    Attributes:
        after: Called with the loss when a step is over, where a user of the tool would call it.
        close: Ends its work; everything is on the disk then.
    """

    after: Callable[[Tensor], object]
    close: Callable[[], object]


Attach = Callable[[Task, Optimizer, str], Attached]
"""Attaches a tool to a task and its optimizer; it may write to a directory."""


@dataclass(frozen=True)
class Tool:
    """A way to watch a training.

    Attributes:
        name: In tables.
        attach: Attaches it.
        every: Steps from one sample to the next.
        packages: What has to be installed for it.
    """

    name: str
    attach: Attach
    every: int = 1
    packages: tuple[str, ...] = ()


def _nothing(_loss: Tensor) -> None:
    """What there is to do when nobody watches."""


def alone(_task: Task, _optimizer: Optimizer, _directory: str) -> Attached:
    """Nothing: the training alone."""
    return Attached(_nothing, lambda: None)


def watched(task: Task, optimizer: Optimizer, directory: str, *, every: int, histograms: bool = False) -> Attached:
    """A watch with its default settings but for these, and an event file."""
    watch = gradwatch.watch(
        task.model, optimizer, logdir=directory, every=every, on_finding=lambda _finding: None, histograms=histograms
    )
    return Attached(watch.loss, watch.close)


def norms(task: Task, optimizer: Optimizer, _directory: str) -> Attached:
    """The norm of each parameter's gradient at each step, by one call of torch, which nobody reads."""
    parameters = list(task.model.parameters())

    def measure(_optimizer: Optimizer, _args: object, _kwargs: object) -> None:
        torch._foreach_norm([parameter.grad for parameter in parameters])  # noqa: SLF001  # as clip_grad_norm_ does

    return Attached(_nothing, optimizer.register_step_pre_hook(measure).remove)


def copies(task: Task, _optimizer: Optimizer, _directory: str) -> Attached:
    """A copy of each layer's output and of its gradient, which nobody looks at: less than any watch of them can do."""

    def copy(grad: Tensor) -> None:
        grad.clone()

    def forward(_module: nn.Module, _args: object, output: Tensor) -> None:
        output.detach().clone()
        output.register_hook(copy)

    hooks = [module.register_forward_hook(forward) for _, module in _leaves(task.model)]
    return Attached(_nothing, lambda: [hook.remove() for hook in hooks])


def naive(task: Task, _optimizer: Optimizer, _directory: str) -> Attached:
    """Hooks as one writes them in five minutes: mean, std and largest magnitude of each output and its gradient, as numbers."""
    seen: dict[str, tuple[float, float, float]] = {}

    def note(name: str, tensor: Tensor) -> None:
        values = tensor.detach()
        seen[name] = values.mean().item(), values.std().item(), values.abs().max().item()

    def forward(name: str, _module: nn.Module, _args: object, output: Tensor) -> None:
        note(name, output)
        output.register_hook(partial(note, f"{name}.grad"))

    hooks = [module.register_forward_hook(partial(forward, name)) for name, module in _leaves(task.model)]
    return Attached(_nothing, lambda: [hook.remove() for hook in hooks])


def _leaves(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in model.named_modules() if next(module.children(), None) is None]


ALONE = Tool("training alone", alone)
DEFAULT = Tool("gradwatch, default", partial(watched, every=CYCLE), CYCLE)
EVERY_STEP = Tool("gradwatch, `every=1`", partial(watched, every=1))
COUNTED = Tool("gradwatch, `every=1`, `histograms=True`", partial(watched, every=1, histograms=True))
NORMS = Tool("norms of parameter gradients only", norms)
COPIES = Tool("copies of outputs and their gradients only", copies)
NAIVE = Tool("naive hooks: mean, std, `abs().max()`, `.item()`", naive)
