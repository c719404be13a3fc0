"""What PyTorch is doing while a hook runs: a plain forward, a recomputation, a functional transform, a backward pass."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType

import torch
from torch import Tensor
from torch.autograd import Variable
from torch.utils import checkpoint

# Private functions of torch tell a recomputation, a functional transform and a backward pass from a plain forward. Where a
# release lacks one, its question is answered as in a plain loop.
_functorch = getattr(torch._C, "_functorch", None)
_top_saved_hooks = getattr(getattr(torch._C, "_autograd", None), "_top_saved_tensors_default_hooks", None)

_is_exporting = getattr(torch.compiler, "is_exporting", None)

# Functions of torch itself, without one of Python around them: hooks ask them for every tensor.

transform: Callable[[], object | None] = getattr(_functorch, "peek_interpreter_stack", lambda: None)
"""The functional transform (``torch.func.grad``, ``vmap``) that is running; None outside of all."""

is_batched: Callable[[Tensor], bool] = getattr(_functorch, "is_legacy_batchedtensor", lambda _: False)
"""Whether a tensor stands for many, as ``torch.autograd.grad(..., is_grads_batched=True)`` hands them through a graph."""

graph_task: Callable[[], int] = getattr(torch._C, "_current_graph_task_id", lambda: -1)
"""The number of the backward pass that runs in this thread; -1 outside of one."""

TRACES = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 10)
"""Whether compilers trace what measures inside their graphs. Those of 2.4 and 2.6 raise, and with 2.8 what ``inductor`` makes of a
graph that is measured trains other last bits; there nothing is measured inside of graphs, and the training stays what it is."""

_REPEATS = {"unpack_hook": "non-reentrant", "backward": "reentrant"}
"""The functions of ``torch.utils.checkpoint`` that repeat a forward."""


def at_end_of_pass(call: Callable[[], None]) -> None:
    """Calls a function once the backward pass that runs in this thread is over; what it raises comes out of ``backward()``."""
    Variable._execution_engine.queue_callback(call)  # DDP and FSDP build on it too


def now() -> int:
    """The number that the next node of the autograd graph gets in this thread: nodes with a smaller one are older."""
    return int(torch._C._autograd._get_sequence_nr())


def computed_at(tensor: Tensor) -> int | None:
    """The number of the node that computed a tensor; None where no graph was recorded."""
    return None if tensor.grad_fn is None else tensor.grad_fn._sequence_nr()


def in_transform() -> bool:
    """Whether a functional transform is running."""
    return transform() is not None


def is_exporting() -> bool:
    """Whether a compiler traces a program for export (``torch.export``)."""
    return _is_exporting is not None and bool(_is_exporting())


def recompute_kind() -> str | None:
    """``"reentrant"`` or ``"non-reentrant"`` inside a forward that activation checkpointing repeats; None in the first one."""
    if graph_task() == -1:
        return None
    if _top_saved_hooks is not None:
        top = _top_saved_hooks(False)
        if top is None:
            return "reentrant"
        if "_recomputation_hook" in getattr(top[0], "__qualname__", ""):
            return "non-reentrant"
    # What is repeated may put hooks of its own on top, as a checkpoint inside of it does; who called it then tells.
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == checkpoint.__file__ and frame.f_code.co_name in _REPEATS:
            return _REPEATS[frame.f_code.co_name]
        frame = frame.f_back
    return "reentrant"
