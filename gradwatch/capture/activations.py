"""Activations and their gradients, in eager mode.

A forward hook measures what a layer returns and hooks the returned tensor, whose gradient is the total dL/da. Where the gradient
of the input is wanted too (dL/dz of an activation: this module's branch only), a pre-hook hands the module a view of its input
and hooks that view. Full backward hooks are not used: they break in-place operations and miss outputs in dicts and dataclasses.

The hooks are attached while a record samples activations and removed with it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gradwatch import moments
from gradwatch.capture import units
from gradwatch.capture.hooks import Hook
from gradwatch.capture.transfer import Tape
from gradwatch.capture.valves import is_valve
from gradwatch.records import Site

PASSIVE = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
    nn.Flatten,
    nn.Unflatten,
)
"""Modules without parameters that are no activation: the gradient of their input says nothing about a valve."""


class Activations:
    """Measures the outputs of modules, their gradients, and the input gradients of activations, onto a tape.

    Args:
        layers: Canonical name → module, each module once.
        tape: Where measurements go.
        fail: Called with an exception of gradwatch's own, which must not reach the training.

    Attributes:
        order: Layer → its type, in the order in which forward first reached them.
        listening: Whether the step in progress is sampled.
    """

    def __init__(self, layers: Mapping[str, nn.Module], tape: Tape, fail: Callable[[Exception], None]) -> None:
        self.layers = dict(layers)
        self.order: dict[str, str] = {}
        self.listening = False
        self._tape = tape
        self._report = fail
        self._attached = contextlib.ExitStack()
        self._leaves: list[RemovableHandle] = []
        self._backward_begins: Callable[[], None] | None = None
        self._silent = units.SilentUnits()
        self._sites: dict[str, Site] = {}
        self._valves: dict[str, bool] = {}
        self._channels_first = False
        self._passages: dict[int, _Passage] = {}

    def fail(self, error: Exception) -> None:
        """Takes an exception of one of the hooks."""
        self._report(error)

    def open(self) -> None:
        """Attaches the hooks; does nothing while they are attached."""
        if self.listening:
            return
        self.listening = True
        for name, module in self.layers.items():
            kind, passive = type(module).__name__, not is_activation(module)
            if not passive:
                before = Hook(self, Activations._before, Site(name, "input_grad", kind))
                self._attached.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            after = Hook(self, Activations._after, Site(name, "activation", kind), Site(name, "activation_grad", kind), not passive)
            self._attached.callback(module.register_forward_hook(after, with_kwargs=True).remove)

    def close(self) -> None:
        """Removes everything that ``open`` attached."""
        self.listening = False
        self._attached.close()
        self.release()

    def end_record(self) -> None:
        """Notes what only a whole record shows, and gets ready for the next one."""
        for layer, dead in self._silent.close():
            self._tape.note(self._sites[layer], moments.DEAD, dead)
        self.release()

    def release(self) -> None:
        """Removes the hooks on tensors that outlive a step: a module may return one of its own parameters."""
        for handle in self._leaves:
            handle.remove()
        self._leaves.clear()
        self._passages.clear()

    def on_backward(self, begins: Callable[[], None]) -> None:
        """Calls a function when the first gradient of a record arrives, before any parameter has got one."""
        self._backward_begins = begins

    def tap(self, name: str, tensor: Tensor) -> None:
        """Observes a tensor that no module returns."""
        if self._observing():
            self._observe(Site(name, "activation", "tap"), Site(name, "activation_grad", "tap"), tensor, None, zeros=True)

    def _observing(self) -> bool:
        """Whether this call is one to observe: eager code that builds a graph."""
        return self.listening and torch.is_grad_enabled() and not _functorch_active()

    def _before(self, site: Site, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        if not self._observing():
            return None
        views: dict[int, Tensor] = {}
        armed = recompute_kind() != "non-reentrant"

        def view(value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.requires_grad or value.layout != torch.strided:
                return value
            if id(value) not in views:  # some modules compare their inputs with `is`, so that a tensor gets one view
                views[id(value)] = value.view_as(value)
                if armed:
                    passage = self._passages[id(views[id(value)])] = _Passage(module)
                    self._arm(views[id(value)], site, passage.leave)
            return views[id(value)]

        return tuple(view(value) for value in args), {key: view(value) for key, value in kwargs.items()}

    def _after(self, site: Site, grad_site: Site, zeros: bool, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not self._observing():
            return
        passage = self._passages.pop(id(args[0]), None) if args else None
        if not isinstance(output, Tensor):
            passage = None
        elif self._is_valve(site.layer, module, output):
            axis = 1 if self._channels_first and output.dim() > 2 else output.dim() - 1
            if output.dim() and output.numel():
                self._sites[site.layer] = site
                self._silent.saw(site.layer, units.awake_units(output, axis))
        else:
            passage = None
            if isinstance(module, nn.Softmax) and module.dim is not None and output.numel():
                self._tape.note(site, moments.CLOSED, units.confident_share(output, module.dim))
            elif not zeros:
                self._channels_first = units.channels_first(module)
        self._observe(site, grad_site, output, passage, zeros=zeros)

    def _is_valve(self, layer: str, module: nn.Module, output: Tensor) -> bool:
        if layer not in self._valves:
            self._valves[layer] = is_activation(module) and is_valve(module, output)
        return self._valves[layer]

    def _observe(self, site: Site, grad_site: Site, output: Any, passage: _Passage | None, *, zeros: bool) -> None:
        recomputed = recompute_kind() == "non-reentrant"  # then its values were recorded when forward first came by
        for tensor in unique_tensors(output):
            if not recomputed:
                self.order.setdefault(site.layer, site.type)
                self._tape.add(site, tensor, zeros=zeros)
            if tensor.requires_grad:
                self._arm(tensor, grad_site, None if passage is None else passage.enter)

    def _arm(self, tensor: Tensor, site: Site, also: Callable[[Tape, Site, Tensor], None] | None = None) -> None:
        fired = [-1]
        self._hook(tensor, Hook(self, Activations._arrived, site, fired, also))
        base = tensor._base
        if base is not None and base.requires_grad and base.numel() == tensor.numel():
            # An in-place operation on the view replaces its place in the graph; a hook on the base survives it.
            self._hook(base, Hook(self, Activations._arrived_at_base, site, fired, also))

    def _hook(self, tensor: Tensor, hook: Hook) -> None:
        handle = tensor.register_hook(hook)  # type: ignore[no-untyped-call]
        if tensor.is_leaf:
            self._leaves.append(handle)

    def _arrived(
        self, site: Site, fired: list[int], also: Callable[[Tape, Site, Tensor], None] | None, grad: Tensor | None
    ) -> None:
        fired[0] = graph_task()
        if grad is None or not self.listening:  # None: an unused output of an operation with several
            return
        if not self._tape.graph_tasks and self._backward_begins is not None:
            self._backward_begins()
        self._tape.graph_tasks.add(fired[0])
        self._tape.add(site, grad)
        if also is not None:
            also(self._tape, site, grad)

    def _arrived_at_base(
        self, site: Site, fired: list[int], also: Callable[[Tape, Site, Tensor], None] | None, grad: Tensor | None
    ) -> None:
        if fired[0] != graph_task():  # else the view's own hook has measured this gradient
            self._arrived(site, fired, also, grad)


class _Passage:
    """One way back through an activation: dL/da comes in, dL/dz goes out, and their quotient is the local derivative."""

    __slots__ = ("_came", "_module")

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._came: Tensor | None = None

    def enter(self, _tape: Tape, _site: Site, grad: Tensor) -> None:
        """Takes dL/da."""
        self._came = grad

    def leave(self, tape: Tape, site: Site, grad: Tensor) -> None:
        """Takes dL/dz, and notes how far the valve is closed."""
        came, self._came = self._came, None
        if came is not None and came.shape == grad.shape and came.dtype == grad.dtype:
            tape.note(site, moments.CLOSED, units.closed_share(self._module, came, grad))


def is_activation(module: nn.Module) -> bool:
    """Whether a module is a function without parameters, so that what it lets through of a gradient is its own doing."""
    return next(module.children(), None) is None and next(module.parameters(), None) is None and not isinstance(module, PASSIVE)


def unique_tensors(value: Any) -> Iterator[Tensor]:
    """The floating and complex tensors in a structure of tuples, lists, mappings and objects with fields, each once."""
    seen: set[int] = set()
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, Tensor):
            if id(item) not in seen and (item.is_floating_point() or item.is_complex()):
                seen.add(id(item))
                yield item
        elif isinstance(item, Mapping):
            pending.extend(reversed(list(item.values())))
        elif isinstance(item, (tuple, list)):
            pending.extend(reversed(item))
        elif hasattr(item, "__dataclass_fields__"):
            pending.extend(reversed([getattr(item, name, None) for name in item.__dataclass_fields__]))


# Four private functions of torch tell a recomputation, a functional transform and a backward pass from a plain forward. Where a
# release lacks one, its question is answered as in a plain loop.
_interpreters = getattr(getattr(torch._C, "_functorch", None), "peek_interpreter_stack", None)
_graph_task_id = getattr(torch._C, "_current_graph_task_id", None)
_top_saved_hooks = getattr(getattr(torch._C, "_autograd", None), "_top_saved_tensors_default_hooks", None)


def graph_task() -> int:
    """The number of the backward pass that runs in this thread; -1 outside of one."""
    return int(_graph_task_id()) if _graph_task_id is not None else -1


def _functorch_active() -> bool:
    return _interpreters is not None and _interpreters() is not None


def recompute_kind() -> str | None:
    """``"reentrant"`` or ``"non-reentrant"`` inside a forward that activation checkpointing repeats; None in the first one."""
    if graph_task() == -1:
        return None
    top = _top_saved_hooks(False) if _top_saved_hooks is not None else None
    inside = top is not None and "_recomputation_hook" in getattr(top[0], "__qualname__", "")
    return "non-reentrant" if inside else "reentrant"
