"""Where a step ends: an optimizer is about to move the weights, and has moved them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

from torch.optim import Optimizer

from gradwatch.capture.engine import at_end_of_pass, graph_task

OnOptimizer = Callable[[Optimizer], None]


def on_step(optimizers: Iterable[Optimizer], before: OnOptimizer | None, after: OnOptimizer) -> contextlib.ExitStack:
    """Hooks the steps of optimizers.

    The hooks hold both functions strongly: who observes lives as long as what is observed, also where nobody else keeps it.

    Args:
        optimizers: Each of them once.
        before: Called when the gradients of a step are there, with the optimizer; lets no error of gradwatch's own out.
        after: Called when the step is over. Where optimizers step within a backward pass (one for each parameter, as soon as its
            gradient is there), they make one step together, which is over when the pass is.

    Returns:
        Removes the hooks when it is closed.
    """
    with contextlib.ExitStack() as attached:  # where one cannot be hooked, no other stays so
        behind = _behind_passes(after)
        for optimizer in optimizers:
            if before is not None:
                attached.callback(optimizer.register_step_pre_hook(_through_closures(before)).remove)
            attached.callback(optimizer.register_step_post_hook(behind).remove)
        return attached.pop_all()


def _behind_passes(after: OnOptimizer) -> Callable[[Optimizer, Any, Any], None]:
    """A hook behind the steps of several optimizers, which waits for the end of the backward pass where it runs within one."""
    waits = -1

    def hook(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        nonlocal waits
        task = graph_task()
        if task == -1:
            after(optimizer)
        elif task != waits:
            waits = task
            at_end_of_pass(lambda: after(optimizer))

    return hook


def _through_closures(read: OnOptimizer) -> Callable[[Optimizer, tuple[Any, ...], dict[str, Any]], Any]:
    """A hook before a step.

    Given a closure, a step computes its gradients only inside of it, and possibly several times (L-BFGS), so that the closure is
    exchanged for one that has them read behind it.
    """

    def hook(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        positional = len(args) > 1
        closure = args[1] if positional else kwargs.get("closure")
        if closure is None:
            read(optimizer)
            return None

        def observed() -> Any:
            loss = closure()
            read(optimizer)
            return loss

        return ((args[0], observed, *args[2:]), kwargs) if positional else (args, {**kwargs, "closure": observed})

    return hook
