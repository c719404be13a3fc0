"""What observes a model from inside a compiled graph.

It is traced, so that it is written in what a compiler understands, and asks functions marked ``at_trace_time`` for the rest: what
a compiler cannot trace breaks the user's graph, and nothing here could catch it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gradwatch.capture import engine
from gradwatch.capture.compiled import Outlet, Sinks, leaf_name, opened
from gradwatch.capture.engine import in_transform, is_exporting
from gradwatch.capture.sink import through
from gradwatch.capture.units import CLOSED, PEAKS

Called = TypeVar("Called", bound=Callable[..., Any])
Loss = TypeVar("Loss", Tensor, float)

FLAT: dict[type[nn.Module], Callable[[Any, Tensor], Tensor]] = {
    nn.Sigmoid: lambda _, a: a * (1 - a) <= CLOSED * PEAKS[nn.Sigmoid],
    nn.Tanh: lambda _, a: 1 - a * a <= CLOSED,
    nn.Hardsigmoid: lambda _, a: (a <= 0) | (a >= 1),
    nn.Hardtanh: lambda module, a: (a <= module.min_val) | (a >= module.max_val),
}
"""Squashing activation → where its output says that its valve is closed."""

READ_ONCE = frozenset(
    {
        nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.LogSigmoid,
        nn.LogSoftmax, nn.Mish, nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softmax, nn.Softplus, nn.Softshrink, nn.Tanh,
        nn.Threshold,
    }
)  # fmt: skip
"""Activations that are one operation. Behind an identity another one, such as x / (1 + |x|), would add up the gradients of its
input in another order, and with it change the last bits of training where something else reads that input too."""


class After:
    """A forward hook of a layer: hands on what the layer returned, each of its tensors through a sink.

    Args:
        sinks: Where it delivers.
        outlet: Where in it.
        module: The layer.
        kind: Its type.
        zeros: Whether zeros are counted.
    """

    __slots__ = ("flat", "kind", "outlet", "sinks", "zeros")

    def __init__(self, sinks: Sinks, outlet: Outlet, module: nn.Module, kind: str, *, zeros: bool) -> None:
        self.sinks = sinks
        self.outlet = outlet
        self.kind = kind
        self.flat = FLAT.get(type(module))
        self.zeros = zeros

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Returns what stands in place of the output; None: the output itself."""
        if not torch.is_grad_enabled() or not _welcome() or not self.sinks.sampling:
            return None
        try:
            given = [item for value in (*args, *kwargs.values()) for item in (value if type(value) in (tuple, list) else (value,))]
            if type(output) is tuple:
                return tuple([self._observe(module, item, given) for item in output])
            return self._observe(module, output, given)
        except Exception as error:  # noqa: BLE001  # whatever it is, it must not reach the user's training
            _fail(str(error))
            return None

    def _observe(self, module: nn.Module, tensor: Any, given: list[Any]) -> Any:
        if not isinstance(tensor, Tensor):
            _pass_by(self.kind, "does not return a tensor or a tuple of tensors")
        elif not tensor.requires_grad:
            _pass_by(self.kind, "what it returns needs no gradient")
        elif any(_shares(tensor, other) for other in given):
            # Whoever holds the input would not see what is later written into a copy of it.
            _pass_by(self.kind, "returns its input or a view of it")
        elif misfit := _misfit(tensor, self.outlet.leaf):
            _pass_by(self.kind, misfit)
        else:
            flat = None if self.flat is None else self.flat(module, tensor.detach())
            return through(tensor, self.outlet.leaf, _place(), flat=flat, zeros=self.zeros)
        return tensor


class Before:
    """A forward pre-hook of an activation: hands it its input through a sink, whose gradient is this branch's only.

    Args:
        sinks: Where it delivers.
        outlet: Where in it.
        module: The activation.
    """

    __slots__ = ("outlet", "reads_once", "sinks")

    def __init__(self, sinks: Sinks, outlet: Outlet, module: nn.Module) -> None:
        self.sinks = sinks
        self.outlet = outlet
        self.reads_once = type(module) in READ_ONCE

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Returns what stands in place of the arguments; None: the arguments themselves."""
        if not torch.is_grad_enabled() or not _welcome() or not self.sinks.sampling:
            return None
        if not self.reads_once or getattr(module, "inplace", False) or len(args) != 1 or kwargs:
            return None
        x = args[0]
        if not isinstance(x, Tensor) or not x.requires_grad or _misfit(x, self.outlet.leaf):
            return None
        return (through(x, self.outlet.leaf, _place(), passing=False),), kwargs


class Criterion:
    """A forward hook of a criterion, whose output is the loss, in every step.

    Args:
        sinks: Where it delivers.
    """

    __slots__ = ("sinks",)

    def __init__(self, sinks: Sinks) -> None:
        self.sinks = sinks

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Returns what stands in place of the output."""
        return _loss(self.sinks, "criterion", output)


def tell(sinks: Sinks, loss: Loss) -> Loss:
    """Takes a loss, and returns it through a sink."""
    told: Loss = _loss(sinks, "told", loss)
    return told


def tap(sinks: Sinks, name: str, tensor: Tensor) -> Tensor:
    """Observes a tensor that no module returns, and returns it through a sink."""
    if engine.TRACES and torch.is_grad_enabled() and _welcome() and sinks.sampling and tensor.requires_grad:
        return _named(sinks, "tap", name, tensor)
    return tensor


def _loss(sinks: Sinks, what: str, loss: Any) -> Any:
    if engine.TRACES and torch.is_grad_enabled() and isinstance(loss, Tensor) and loss.requires_grad and _welcome():
        return _named(sinks, what, what, loss)
    return loss


def _named(sinks: Sinks, what: str, name: str, tensor: Tensor) -> Tensor:
    device = str(tensor.device)
    _name(what, name, device)
    leaf = getattr(sinks.leaves, leaf_name(what, name, device))
    return tensor if _misfit(tensor, leaf) else through(tensor, leaf, _place(), zeros=what == "tap")


def _shares(tensor: Tensor, other: Any) -> bool:
    base = tensor._base
    return isinstance(other, Tensor) and (tensor is other or (base is not None and (base is other or base is other._base)))


def _misfit(tensor: Tensor, leaf: Tensor) -> str:
    """Why a tensor cannot be measured into a leaf; empty: it can."""
    if type(tensor) not in (Tensor, nn.Parameter):
        return "what it returns is a tensor of a class of its own"
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return "what it returns has no gradient"
    if tensor.device != leaf.device:
        return "what it returns lies on another device than its parameters"
    shapes = torch.fx.experimental.symbolic_shapes
    some = tensor.numel() > 0
    if not (shapes.guard_or_false(some) if hasattr(shapes, "guard_or_false") else some):  # to ask for what data decide is an error
        return "what it returns is empty, or of a size that the data decide"
    if tensor.clone().stride() != tensor.stride():  # a copy that lies otherwise in memory may be multiplied by another kernel
        return "what it returns has gaps in memory"
    return ""


def at_trace_time(function: Called) -> Called:
    """Lets a compiler call a function while it traces, and take the number that it returns, 0 where it fails, as a constant.

    This is what ``torch.compiler.assume_constant_result`` does, which imports a compiler also where nothing is compiled.
    """

    @functools.wraps(function)
    def call(*args: str) -> Any:
        try:
            return function(*args)
        except Exception as error:  # noqa: BLE001  # whatever it is, it must not reach the user's training
            for sinks in opened():
                sinks.fail(error)
            return 0

    call._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]  # it is called as the function is


@at_trace_time
def _welcome() -> bool:
    # An autograd function that a compiler traces itself takes it ten times as long, and raises where warnings are errors.
    torch.compiler.allow_in_graph(through)  # type: ignore[no-untyped-call]
    for sinks in opened():
        sinks.traced |= not is_exporting()
    return not in_transform() and not is_exporting()


@at_trace_time
def _place() -> int:
    return next(_places)


@at_trace_time
def _name(what: str, name: str, device: str) -> int:
    for sinks in opened():
        sinks.name(what, name, device)
    return 1


@at_trace_time
def _pass_by(kind: str, reason: str) -> int:
    for sinks in opened():
        sinks.pass_by(kind, reason)
    return 1


@at_trace_time
def _fail(what: str) -> int:
    raise RuntimeError(what)


_places = itertools.count(1)
