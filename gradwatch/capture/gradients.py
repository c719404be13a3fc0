"""The gradients of activations: where they arrive, each counted once.

The total gradient of a tensor comes to a hook on it. An operation in place on a view moves the view past its hooks; its gradient
then runs through its base, and is taken there. A module's branch of its input's gradient comes from the nodes that read the input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from gradwatch.capture.branches import Inputs, Parts, full_base
from gradwatch.capture.budget import Meter
from gradwatch.capture.engine import graph_task, is_batched
from gradwatch.capture.hooks import Hook
from gradwatch.capture.passes import Kind, Passes
from gradwatch.capture.shards import is_distributed, local
from gradwatch.capture.structure import unique_tensors
from gradwatch.capture.transfer import Tape
from gradwatch.records import Site

Also = Callable[[Tape, Site, Tensor, Tensor | None], None]
"""What else is done with a gradient once it is measured; with its copy, where one was made."""


class Gradients:
    """Measures gradients of activations onto a tape, as they arrive.

    Args:
        tape: Where measurements go.
        passes: Which backward passes the record is about.
        fail: Called with an exception of gradwatch's own, which must not reach the training.
        meter: Takes the time of the hooks.

    Attributes:
        listening: Whether what arrives is measured; tensors of earlier steps may still carry hooks.
    """

    def __init__(self, tape: Tape, passes: Passes, fail: Callable[[Exception], None], meter: Meter | None = None) -> None:
        self.listening = False
        self._tape = tape
        self._passes = passes
        self._highest = Kind.ELSEWHERE
        self._counted: tuple[int, int] | None = None
        self._report = fail
        self.meter = meter
        self._begins: Callable[[], None] | None = None
        self._forgets: Callable[[], None] = lambda: None
        self._leaves: list[RemovableHandle] = []
        self._unfinished: dict[Parts, Site] = {}

    def fail(self, error: Exception) -> None:
        """Takes an exception of one of the hooks."""
        self._report(error)

    def on_backward(self, begins: Callable[[], None]) -> None:
        """Calls a function when the first gradient of a backward pass arrives, before any parameter has got one."""
        self._begins = begins

    def await_pass(self, tensors: Iterable[Tensor]) -> None:
        """Takes note of the backward pass that begins at tensors behind a compiled graph, inside of which no hook tells of it."""
        for tensor in tensors:
            if tensor.requires_grad and self.listening:
                self._hook(tensor, Hook(self, Gradients._note_pass, self._enclosing()))

    def on_other_pass(self, forgets: Callable[[], None]) -> None:
        """Calls a function when the gradients that have arrived turn out to be of a pass that the record is not about."""
        self._forgets = forgets

    def arm(self, tensor: Tensor, site: Site, given: Any = None, also: Also | None = None) -> None:
        """Hooks a tensor.

        Args:
            tensor: Requires a gradient.
            site: What is measured there.
            given: The arguments of the call that returned the tensor, in any structure; None where they are not known.
            also: Called with each gradient.
        """
        bound = site, self._enclosing(), also
        base = None if tensor._base is None else full_base(tensor)
        if base is None and tensor.grad_fn is not None:
            tensor.register_hook(Hook(self, Gradients._arrived, *bound))  # type: ignore[no-untyped-call]
        elif base is None:
            self._hook(tensor, Hook(self, Gradients._arrived, *bound))
        elif given is not None and not any(base is item or base is item._base for item in unique_tensors(given)):
            # Only the call knows a base that it made itself, so that all of its gradient is the view's.
            self._hook(base, Hook(self, Gradients._arrived, *bound))
        else:
            view = _View(tensor)
            self._hook(tensor, Hook(self, Gradients._arrived_at_view, view, *bound))
            self._hook(base, Hook(self, Gradients._arrived_at_base, view, *bound))

    def arm_inputs(self, inputs: Inputs, nodes: Iterable[Node], site: Site, also: Also | None = None) -> None:
        """Hooks what a call read its inputs with.

        Args:
            inputs: Noted before the call.
            nodes: What the call made.
            site: What is measured there.
            also: Called with each gradient of the first input.
        """
        for index, consumers in inputs.consumers(nodes).items():
            parts = Parts(len(consumers))
            bound = site, self._enclosing(), also if index == 0 else None
            for node, number, shape in consumers:
                node.register_hook(Hook(self, Gradients._handed_back, parts, number, shape, *bound))

    def end_record(self) -> None:
        """Measures what passes that did not reach every consumer of an input have handed back to it."""
        for parts, site in list(self._unfinished.items()):  # another thread may be in a backward pass
            for total in parts.rest():
                self._tape.add(site, total)
        self.release()
        self._passes.clear()
        self._highest, self._counted = Kind.ELSEWHERE, None

    def release(self) -> None:
        """Removes the hooks on tensors that outlive a step: a module may return one of its own parameters."""
        for handle in self._leaves:
            handle.remove()
        self._leaves.clear()
        self._unfinished.clear()

    def _enclosing(self) -> int:
        """The backward pass in which a graph is being built, -1 where there is none."""
        task = graph_task()
        if task != -1:
            self._passes.kind()  # which can be told only while it is the one that runs
        return task

    def _counts(self, task: int, outer: int) -> bool:
        """Whether the record is about the pass that is running, as far as is known by now.

        Args:
            task: Its number.
            outer: That of the pass inside of which the graph was built, -1 where there is none.
        """
        kind = self._passes.kind(outer)
        if kind is Kind.ELSEWHERE or kind < self._highest:
            return False
        if kind > self._highest:
            if self._highest is not Kind.ELSEWHERE:
                self._tape.forget(("activation_grad", "input_grad"))
                self._forgets()
                for parts in self._unfinished:
                    parts.clear()
                self._unfinished.clear()
            self._highest = kind
        self._counted = task, outer
        return True

    def _hook(self, tensor: Tensor, hook: Hook) -> None:
        if not tensor.is_leaf:
            tensor.register_hook(hook)  # type: ignore[no-untyped-call]
        elif not any(isinstance(other, Hook) and other.bound == hook.bound for other in (tensor._backward_hooks or {}).values()):
            # Else an earlier call of this record has hooked it.
            self._leaves.append(tensor.register_hook(hook))  # type: ignore[no-untyped-call]

    def _note_pass(self, outer: int, grad: Tensor | None) -> None:
        if grad is not None:
            self._is_observed(outer, grad)

    def _is_observed(self, outer: int, grad: Tensor) -> bool:
        """Whether what arrives belongs into the record; then the pass that brings it is noted."""
        task = graph_task()
        if not self.listening or is_batched(grad) or not (self._counted == (task, outer) or self._counts(task, outer)):
            return False
        if task not in self._tape.graph_tasks and self._begins is not None and self._highest is Kind.ACCUMULATES:
            self._begins()
        self._tape.graph_tasks[task] = outer
        return True

    def _arrived(self, site: Site, outer: int, also: Also | None, grad: Tensor | None) -> None:
        if grad is None or not self._is_observed(outer, grad):  # None: an unused output of an operation with several
            return
        values = grad if type(grad) is Tensor else local(grad)
        if values is None:
            return
        copy = self._tape.add(site, values)
        if also is not None:
            also(self._tape, site, values, copy)

    def _arrived_at_view(self, view: _View, site: Site, outer: int, also: Also | None, grad: Tensor | None) -> None:
        view.fired = graph_task()
        self._arrived(site, outer, also, grad)

    def _arrived_at_base(self, view: _View, site: Site, outer: int, also: Also | None, grad: Tensor | None) -> None:
        if view.fired != graph_task() and view.written():
            self._arrived(site, outer, also, grad)

    def _handed_back(
        self,
        parts: Parts,
        number: int,
        shape: torch.Size | None,
        site: Site,
        outer: int,
        also: Also | None,
        grads: tuple[Tensor | None, ...],
        _: Any,
    ) -> None:
        task = graph_task()
        if not self.listening or not (self._counted == (task, outer) or self._counts(task, outer)):
            return
        part = grads[number]
        if part is not None:
            if is_batched(part):
                return
            if type(part) is not Tensor and is_distributed(part):
                part, shape = local(part), None  # a shard has a shape of its own
        if part is not None and part.requires_grad:
            part = part.detach()
        if part is not None and shape is not None and part.shape != shape:
            part = part.reshape(shape)
        self._arrived(site, outer, also, parts.add(task, part))
        if parts:
            self._unfinished[parts] = site
        else:
            self._unfinished.pop(parts, None)


class _View:
    """A view of somebody else's tensor: whether its gradient has arrived, and whether anything was written into it since."""

    __slots__ = ("_alias", "_version", "fired")

    def __init__(self, tensor: Tensor) -> None:
        self.fired = -1
        self._alias = tensor.detach()  # shares the version counter, and keeps no graph alive
        self._version = self._alias._version

    def written(self) -> bool:
        """Whether an operation in place moved the view in the graph, so that its gradient runs through its base."""
        return self._alias._version != self._version
