"""What PyTorch is doing while a hook runs: a plain forward, a recomputation, a functional transform, a backward pass."""

from __future__ import annotations

import torch

# Four private functions of torch tell a recomputation, a functional transform and a backward pass from a plain forward. Where a
# release lacks one, its question is answered as in a plain loop.
_interpreters = getattr(getattr(torch._C, "_functorch", None), "peek_interpreter_stack", None)
_graph_task_id = getattr(torch._C, "_current_graph_task_id", None)
_top_saved_hooks = getattr(getattr(torch._C, "_autograd", None), "_top_saved_tensors_default_hooks", None)


def graph_task() -> int:
    """The number of the backward pass that runs in this thread; -1 outside of one."""
    return int(_graph_task_id()) if _graph_task_id is not None else -1


def in_transform() -> bool:
    """Whether a functional transform (``torch.func.grad``, ``vmap``) is running."""
    return _interpreters is not None and _interpreters() is not None


def recompute_kind() -> str | None:
    """``"reentrant"`` or ``"non-reentrant"`` inside a forward that activation checkpointing repeats; None in the first one."""
    if graph_task() == -1:
        return None
    top = _top_saved_hooks(False) if _top_saved_hooks is not None else None
    inside = top is not None and "_recomputation_hook" in getattr(top[0], "__qualname__", "")
    return "non-reentrant" if inside else "reentrant"
