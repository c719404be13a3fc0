"""A hook that keeps nothing alive, follows nothing into copies, and lets no error out."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch

from gradwatch.capture import engine
from gradwatch.capture.budget import Meter

_is_compiling = torch.compiler.is_compiling


class Owner(Protocol):
    """Whoever observes: it hears of errors in its hooks, which must not reach the user's training.

    One that has an attribute ``meter``, not None, has the time of its hooks taken by it.
    """

    def fail(self, error: Exception) -> None:
        """Takes an exception of gradwatch's own."""


class Hook:
    """Calls a function of its owner, as long as the owner lives.

    Args:
        owner: Held weakly.
        call: Called as ``call(owner, *bound, *arguments of the hook)``.
        bound: Arguments known beforehand.
        traced: What a compiler that traces the model traces in its place, called with the arguments of the hook; None: nothing.
    """

    __slots__ = ("bound", "call", "owner", "traced")
    __torch_unserializable__ = True  # torch.save leaves it out of a tensor that carries it, and need not warn of that

    def __init__(self, owner: Owner, call: Callable[..., Any], *bound: Any, traced: Callable[..., Any] | None = None) -> None:
        self.owner = weakref.ref(owner)
        self.call = call
        self.bound = bound
        self.traced = traced if engine.TRACES else None

    def __call__(self, *args: Any) -> Any:
        """Observes, and returns what the owner's function returns; None where there is nobody to observe for."""
        if _is_compiling():  # a compiler that traces the model must not trace its observer
            return None if self.traced is None else self.traced(*args)
        owner = self.owner()
        if owner is None:
            return None
        meter: Meter | None = getattr(owner, "meter", None)
        if meter is not None:
            meter.begin()
        try:
            return self.call(owner, *self.bound, *args)
        except Exception as error:  # noqa: BLE001  # whatever it is, it must not reach the user's training
            owner.fail(error)
            return None
        finally:
            if meter is not None:
                meter.end()

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return _inert

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (contextlib.nullcontext(), "__exit__")


_eval_frame: Any = getattr(getattr(torch._C, "_dynamo", None), "eval_frame", None)
if hasattr(_eval_frame, "set_code_exec_strategy"):
    # Around a graph the compiler looks at each function that is called, to compile it too. Hooks that run there are ordinary ones.
    _skip = _eval_frame._FrameAction.SKIP
    _eval_frame.set_code_exec_strategy(Hook.__call__.__code__, _eval_frame._FrameExecStrategy(_skip, _skip))


_inert = contextlib.nullcontext().__exit__
"""Takes any arguments and returns None: what stands in place of a hook in a copy or a pickle of a watched model, which can
therefore be loaded where gradwatch is not installed."""
