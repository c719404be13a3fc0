"""Observes one pass: attaches hooks, collects copies, and removes every hook."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.parameter import is_lazy

from gradwatch import names
from gradwatch.capture import valves
from gradwatch.capture.engine import graph_task, in_transform, recompute_kind
from gradwatch.capture.hooks import Hook
from gradwatch.capture.selection import select
from gradwatch.errors import NothingToWatch
from gradwatch.trace import graph, tree
from gradwatch.trace.graph import Branch, Slot, Total
from gradwatch.trace.saved import Kept, Ledger

TAP = "tap"
"""The type of what no module returned."""


class Seen:
    """A tensor that was met: a copy of its value, and where its gradient arrives."""

    def __init__(self, tensor: Tensor, place: Total | Branch | None) -> None:
        self.value = tensor.detach().clone()
        self.place = place


@dataclass(eq=False)
class Observed:
    """A call while it is observed; the two structures hold ``Seen`` in place of tensors."""

    name: str
    type: str
    input: Any = None
    output: Any = None
    valve: valves.Valve | None = None
    kept: Kept | None = None
    encloses: bool = False
    in_graph: bool = True


@dataclass(eq=False)
class Started:
    """What has to be remembered from before a call until after it."""

    since: int
    calls: int
    input: Any
    branches: list[Branch]


class Recorder:
    """Attaches to a model, and collects what a pass shows.

    Args:
        model: A module, or name → leaf tensor.

    Attributes:
        root: The model's class name; None for a mapping.
        modules: What can be hooked, by canonical name.
        layers: Those of them that are observed, and not only asked what they keep.
        calls: What was called, in the order in which calls returned.
        slots: Where gradients arrive.
        params: Canonical full name → parameter and its gradient.
        kept: What modules keep for backward, by name; empty where this torch does not tell.
        error: The first exception of gradwatch's own. It must not reach the pass.
    """

    def __init__(self, model: nn.Module | Mapping[str, Tensor]) -> None:
        self.root = type(model).__name__ if isinstance(model, nn.Module) else None
        named = names.named_modules(model) if isinstance(model, nn.Module) else ()
        self.modules = {
            name: module for name, module in named if not isinstance(module, torch.jit.ScriptModule)
        }  # it takes no hooks
        self.layers = {name: module for name, module in self.modules.items() if _computes(module)}
        self._parameters = _parameters(model)
        self.calls: list[Observed] = []
        self.slots: list[Slot] = []
        self.params: dict[str, tuple[int, Tensor, Slot | None]] = {}
        self.kept: dict[str, Kept] = {}
        self.error: Exception | None = None
        self._asking = False
        self._attached = ExitStack()
        self._hooked: list[weakref.ref[Tensor]] = []
        self._started: dict[nn.Module, list[Started]] = {}
        buffers = model.buffers() if isinstance(model, nn.Module) else ()
        self._ledger = Ledger([*self._parameters.values(), *buffers])

    def open(self) -> None:
        """Attaches the hooks."""
        for name, tensor in self._parameters.items():
            slot = self.on_tensor(tensor) if tensor.requires_grad else None
            self.params[name] = id(tensor), tensor.detach().clone(), slot
        for name, module in self.modules.items():
            before, after = Hook(self, Recorder._before, name), Hook(self, Recorder._after, name)
            self._attached.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            self._attached.callback(module.register_forward_hook(after).remove)

    def close(self) -> None:
        """Removes everything that ``open`` and the pass attached."""
        self._attached.close()
        for reference in self._hooked:
            tensor = reference()
            if tensor is not None and not tensor._backward_hooks:
                tensor._backward_hooks = None
        self._hooked.clear()
        self._started.clear()

    def fail(self, error: Exception) -> None:
        """Keeps the first exception of a hook for the end of the block."""
        self.error = self.error or error

    def on_tensor(self, tensor: Tensor) -> Slot:
        """A slot for the gradient of a tensor as it is now."""
        slot = self._slot()
        if tensor._backward_hooks is None:  # torch would leave an empty dict behind
            self._hooked.append(weakref.ref(tensor))
        self._attached.callback(tensor.register_hook(Hook(self, Recorder._arrived, slot)).remove)  # type: ignore[no-untyped-call]
        return slot

    def on_node(self, node: Node, slots: list[tuple[int, Slot]]) -> None:
        """Fills slots with what a node hands to its inputs of these numbers."""
        self.slots += [slot for _, slot in slots]
        self._attached.callback(node.register_hook(Hook(self, Recorder._handed_back, slots)).remove)

    def tap(self, name: str, tensor: Tensor) -> None:
        """Observes a tensor that no module returns."""
        if self._is_foreign():
            return
        try:
            place = Total(tensor, graph.now(), self) if tensor.requires_grad else None
            self.calls.append(Observed(name, TAP, output=Seen(tensor, place)))
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not reach the user's pass
            self.fail(error)

    def _before(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._is_foreign():
            return
        branches: dict[int, Branch] = {}

        def see(tensor: Tensor) -> Seen:
            if tensor.requires_grad and id(tensor) not in branches:
                branches[id(tensor)] = Branch(tensor)
            return Seen(tensor, branches.get(id(tensor)))

        # What is only a container is asked what it keeps, and nothing else.
        given = tree.convert(tree.arguments(args, kwargs, Tensor), Tensor, see) if name in self.layers else None
        started = Started(graph.now(), len(self.calls), given, list(branches.values()))
        self._started.setdefault(module, []).append(started)

    def _after(self, name: str, module: nn.Module, _: Any, output: Any) -> None:
        if self._is_foreign() or not self._started.get(module):
            return
        started = self._started[module].pop()
        returned = [tensor for _, tensor in tree.leaves(output, Tensor)]
        created = graph.nodes_since([*returned, *_put_aside(module)], started.since)
        # What a checkpoint builds anew during backward is not what forward kept.
        kept = self._ledger.enter(created) if graph_task() == -1 else Kept()
        if kept is not None and any(kept):
            self.kept[name] = self.kept.get(name, Kept()) + kept
        if name not in self.layers:
            return
        totals = {id(tensor): Total(tensor, started.since, self) for tensor in returned if tensor.requires_grad}
        for branch in started.branches:
            branch.attach(created, totals.values(), self)
        taken = started.input.value if isinstance(started.input, Seen) else None
        self._enter(
            Observed(
                name,
                type(module).__name__,
                started.input,
                tree.convert(output, Tensor, lambda tensor: Seen(tensor, totals.get(id(tensor)))),
                self._valve(module, taken),
                kept,
                encloses=any(inner.type != TAP for inner in self.calls[started.calls :]),
                in_graph=bool(totals),
            )
        )

    def _valve(self, module: nn.Module, taken: Tensor | None) -> valves.Valve | None:
        self._asking = True  # which runs the module's code again, and with it any tap in it
        try:
            return valves.valve(module, taken) if taken is not None and valves.is_valve(module, taken) else None
        finally:
            self._asking = False

    def _is_foreign(self) -> bool:
        """Whether a call is no part of the pass: our own, traced by a functional transform, or repeated by a checkpoint."""
        return self._asking or recompute_kind() == "non-reentrant" or in_transform()

    def _enter(self, call: Observed) -> None:
        if graph_task() != -1:  # a checkpoint ran the call without a graph, and now repeats it with one
            for index in range(len(self.calls) - 1, -1, -1):
                first = self.calls[index]
                if first.name == call.name and not first.in_graph:
                    call.kept = first.kept
                    self.calls[index] = call
                    return
        self.calls.append(call)

    def _arrived(self, slot: Slot, gradient: Tensor | None) -> None:
        slot.add(gradient)

    def _handed_back(self, slots: list[tuple[int, Slot]], gradients: Any, _: Any) -> None:
        for number, slot in slots:
            slot.add(gradients[number])

    def _slot(self) -> Slot:
        self.slots.append(Slot())
        return self.slots[-1]


def _parameters(model: nn.Module | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    if not isinstance(model, nn.Module):
        return select(model, ("*",), ()).parameters  # which refuses what is not a leaf
    parameters = dict(names.named_parameters(model))
    for name, parameter in parameters.items():
        if is_lazy(parameter):
            raise NothingToWatch(f"{name!r} has no shape yet: call the model once on a batch before it is traced")
    return parameters


def _computes(module: nn.Module) -> bool:
    return next(module.children(), None) is None or next(module.parameters(recurse=False), None) is not None


def _put_aside(module: nn.Module) -> list[Tensor]:
    """Tensors that a module left in its attributes: an auxiliary loss, for example, through which gradient flows too."""
    found: list[Any] = []
    for value in (value for part in module.modules() for value in vars(part).values()):
        found += value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,)
    return [value for value in found if isinstance(value, Tensor)]
