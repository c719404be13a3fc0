"""Loss scaling: the factor that a ``torch.amp.GradScaler`` puts on gradients, and the steps that it does not take.

Where gradients have overflowed, the scaler calls no optimizer at all, except a fused one. Its own ``step`` is the only place
that sees it, so that an observer stands in front of that method, in the instance, for as long as somebody observes.
"""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Callable
from types import FrameType, MethodType
from typing import Any

from torch import Tensor
from torch.amp import grad_scaler
from torch.optim import Optimizer

CALLERS = 16
"""Frames between a hook before a step and whoever called the step: torch's own, and those of a scheduler and of an accelerator."""

UNKNOWN = (
    "a GradScaler that the watch does not know scales the loss: gradients of activations are recorded with its factor, and steps "
    "that it skips make no record; give it to gradwatch.watch(..., scaler=scaler)"
)


class Scaling:
    """What a loss scaler does to gradients.

    Args:
        scaler: A ``torch.amp.GradScaler``, or None.
    """

    def __init__(self, scaler: Any) -> None:
        self._scaler = scaler
        self._step: _Step | None = None

    def observe(self, skipped: Callable[[Optimizer], None]) -> contextlib.ExitStack:
        """Has a method called for each step that the scaler does not take, once its gradients are unscaled.

        Args:
            skipped: Held weakly; called with the optimizer that was not called.

        Returns:
            Ends it when it is closed.
        """
        observer = weakref.WeakMethod(skipped)
        step = vars(self._scaler).get("step")
        if not isinstance(step, _Step):
            self._scaler.step = step = _Step(self._scaler, step)
        self._step = step
        step.observers.append(observer)
        stack = contextlib.ExitStack()
        stack.callback(step.leave, observer)
        return stack

    def factor(self, optimizer: Optimizer | None) -> Tensor | None:
        """The factor on the gradients of a step, shape (); None where there is none.

        Args:
            optimizer: Takes the step; beside the scaler's ``step``, the scaler has nothing to do with it. None: nobody does.
        """
        scale = getattr(self._scaler, "_scale", None)  # get_scale() would wait for the device
        if scale is None or not self._scaler.is_enabled():
            return None
        if optimizer is not None and self._step is not None and self._step.steps is not optimizer:
            return None
        factor: Tensor = scale.detach().reshape(()).clone()  # scaler.update() changes it in place
        return factor

    def carries(self, optimizer: Optimizer, *, stepping: bool) -> bool:
        """Whether the gradients of an optimizer still carry the factor.

        Args:
            optimizer: Holds them.
            stepping: Whether it is about to step: the scaler has divided them by then, unless the optimizer does that itself.
        """
        states = getattr(self._scaler, "_per_optimizer_states", None)
        if states is None:
            return False
        stage = states.get(id(optimizer), {}).get("stage", grad_scaler.OptState.READY)  # an index would enter a state
        fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        return stage is grad_scaler.OptState.READY and (fused or not stepping)

    def remark(self) -> str | None:
        """What there is to say of the step in whose hook this runs; None: nothing."""
        caller = _calling_scaler()
        return None if caller is None or caller is self._scaler or not caller.is_enabled() else UNKNOWN


class _Step:
    """Stands in the place of a scaler's method ``step``. In a deep copy or a pickle of the scaler stands that method itself.

    Args:
        scaler: Held weakly.
        before: What stood there before; None: the method of the class.

    Attributes:
        observers: Called for each step that is not taken.
        steps: The optimizer whose step is under way, if any.
    """

    def __init__(self, scaler: Any, before: Callable[..., Any] | None) -> None:
        self.observers: list[weakref.WeakMethod[Callable[[Optimizer], None]]] = []
        self.steps: Optimizer | None = None
        self._scaler = weakref.ref(scaler)
        self._before = before

    def __call__(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        scaler: Any = self._scaler()  # which is alive, as its method is called
        step = self._before or MethodType(type(scaler).step, scaler)
        if not self.observers or not isinstance(optimizer, Optimizer):
            return step(optimizer, *args, **kwargs)
        taken: list[bool] = []
        with contextlib.ExitStack() as stack:
            stack.callback(optimizer.register_step_post_hook(lambda *_: taken.append(True)).remove)
            stack.callback(setattr, self, "steps", None)
            self.steps = optimizer
            result = step(optimizer, *args, **kwargs)
            for observer in [] if taken else list(self.observers):
                if (skipped := observer()) is not None:
                    skipped(optimizer)
        return result

    def leave(self, observer: weakref.WeakMethod[Callable[[Optimizer], None]]) -> None:
        """Takes an observer off, and with the last one itself, unless something else has been put in front of it."""
        self.observers.remove(observer)
        scaler = self._scaler()
        if scaler is not None and not self.observers and vars(scaler).get("step") is self:
            del scaler.step
            if self._before is not None:
                scaler.step = self._before

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., Any]:
        scaler: Any = self._scaler()
        twin = memo.get(id(scaler), scaler)
        return MethodType(type(twin).step, twin)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self._scaler(), "step")


def _calling_scaler() -> Any:
    """The scaler of torch whose ``step`` has called the optimizer in whose hook this runs; None where it was somebody else."""
    frame: FrameType | None = sys._getframe(2)
    for _ in range(CALLERS):
        if frame is None:
            return None
        if frame.f_code.co_filename == grad_scaler.__file__:
            return frame.f_locals.get("self")
        frame = frame.f_back
    return None
