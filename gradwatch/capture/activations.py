"""Activations and their gradients, in eager mode.

A forward hook measures what a layer returns and hooks the returned tensor, whose gradient is the total dL/da. Where the gradient
of the input is wanted too (dL/dz of an activation: this module's branch only), it hooks what reads the input in the graph. Full
backward hooks are not used: they break in-place operations and miss outputs in dicts and dataclasses.

The hooks are attached while a record samples activations and removed with it, but for those that a compiler has traced: see
``compiled``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from gradwatch import moments
from gradwatch.capture import units
from gradwatch.capture.attached import Attached
from gradwatch.capture.branches import Inputs
from gradwatch.capture.budget import Meter
from gradwatch.capture.compiled import Sinks
from gradwatch.capture.elementwise import is_elementwise
from gradwatch.capture.engine import graph_task, recompute_kind, transform
from gradwatch.capture.gradients import Gradients
from gradwatch.capture.hooks import Hook
from gradwatch.capture.late import LATE, Late
from gradwatch.capture.order import with_compiled
from gradwatch.capture.passes import Passes
from gradwatch.capture.probes import FLAT, After, Before
from gradwatch.capture.selection import kind_of
from gradwatch.capture.shards import local
from gradwatch.capture.shares import Shares
from gradwatch.capture.structure import unique_tensors
from gradwatch.capture.transfer import Tape
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
        owners: Layers that have parameters, also where sharding has taken them off the module.
        tape: Where measurements go.
        passes: Which backward passes the record is about.
        fail: Called with an exception of gradwatch's own, which must not reach the training.
        meter: Takes the time of the hooks.

    Attributes:
        layers: Canonical name → module.
        order: Layer → its type, in the order in which forward first reached them. It is replaced as it grows, and never changed.
        barren: Layers that returned nothing to measure when they were last called.
        gradients: Where their gradients arrive.
        reached: Layers of which a call was seen.
        failed: Whether a hook has failed, so that a layer that seems not to be called may well have been.
        sinks: Where compiled graphs deliver.
        late: Layers that were compiled too early to be seen.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        owners: Collection[str],
        tape: Tape,
        passes: Passes,
        fail: Callable[[Exception], None],
        meter: Meter | None = None,
    ) -> None:
        self.order: Mapping[str, str] = {}
        self.gradients = Gradients(tape, passes, fail, meter)
        self.layers: dict[str, nn.Module] = {}
        self._tape = tape
        self._report = fail
        self.meter = meter
        self.reached: set[str] = set()
        self.failed = False
        self.sinks = Sinks(self)
        self.late = Late()
        self._hooks: dict[str, Attached] = {}
        self._attached: set[str] = set()
        self._inputs: dict[tuple[int, int], Inputs] = {}
        self._silent = units.SilentUnits()
        self._shares = Shares(tape, self._silent.saw)
        self.gradients.on_other_pass(self._shares.forget_passages)
        self._sites: dict[str, Site] = {}
        self._channels_first: dict[int, bool] = {}
        self._places: dict[str, int] = {}
        self._passes, self._furthest = 0, -1
        self.barren: set[str] = set()
        self.adopt(layers, owners)

    def adopt(self, layers: Mapping[str, nn.Module], owners: Collection[str]) -> None:
        """Takes other layers in the place of those it has: they may have joined the model, and others left it."""
        self._owners = owners
        gone = self.layers.keys() - layers.keys()
        self._order((layer, kind) for layer, kind in self.order.items() if layer not in gone)
        self._furthest = -1
        self.layers = dict(layers)
        self._containers = {name for name, module in self.layers.items() if next(module.children(), None) is not None}
        attached = self._attached if not self.gradients.listening else layers.keys()
        self.detach()
        self._hooks = {
            name: self._hooks_of(name, module)
            for name, module in self.layers.items()
            if not isinstance(module, torch.jit.ScriptModule)  # it takes none, and stays among the layers that were not observed
        }
        self.sinks.follow(self.layers)
        self._attach(attached & self._hooks.keys())

    def _hooks_of(self, name: str, module: nn.Module) -> Attached:
        """The hooks of a layer, the same as long as it is: compiled code knows them."""
        kind, active = kind_of(module), name not in self._owners and is_activation(module)
        what = module, kind, active, name in self._containers
        if name in self._hooks and self._hooks[name].what == what:
            return self._hooks[name]
        hooks = Attached(what)
        site, grad_site, input_site = (Site(name, tensor, kind) for tensor in ("activation", "activation_grad", "input_grad"))
        if active:
            before = Hook(self, Activations._before, traced=Before(self.sinks, self.sinks.outlet(name, None, input_site), module))
            hooks.add(before, module.register_forward_pre_hook, with_kwargs=True)
        elif name in self._containers:
            # Its own parameters (a class token, a position table, a gate) are used from its beginning on, not at its end.
            hooks.add(Hook(self, Activations._enter, site), module.register_forward_pre_hook)
        outlet = self.sinks.outlet(name, site, grad_site, input_site if type(module) in FLAT else None)
        traced = After(self.sinks, outlet, module, kind, zeros=active)
        after = Hook(self, Activations._after, site, grad_site, input_site if active else None, traced=traced)
        hooks.add(after, module.register_forward_hook, with_kwargs=True)
        return hooks

    def fail(self, error: Exception) -> None:
        """Takes an exception of one of the hooks."""
        self.failed = True
        self._report(error)

    def open(self, *, sampling: bool) -> None:
        """Gets ready for a record.

        Args:
            sampling: Whether the record samples activations. Else nothing is measured, and hooks stay only on what may be compiled.
        """
        if not sampling and self.known:
            self.pause()
        else:
            self.gradients.listening = self.sinks.sampling = sampling
            self.sinks.follow(self.layers)
            self.attach()

    @property
    def known(self) -> bool:
        """Whether a forward has come by, so that it is known what is compiled: until then hooks wait on every layer."""
        return bool(self.reached) or self.sinks.traced

    def attach(self) -> None:
        """Puts the hooks on the modules, where they are waited for and not there already."""
        if self.gradients.listening or not self.known:
            self._attach(self._hooks.keys() - self._attached)

    def _attach(self, layers: set[str]) -> None:
        for layer in layers:
            self._hooks[layer].attach()
        self._attached = self._attached | layers

    def detach(self) -> None:
        """Takes the hooks off the modules; the gradients of what they have seen are still measured."""
        self._detach(self._attached)

    def _detach(self, layers: set[str]) -> None:
        for layer in layers:
            self._hooks[layer].detach()
        self._attached = self._attached - layers

    def come_last(self) -> None:
        """Attaches hooks anew where a module has got others since: what it returns is what its last hook leaves.

        Tensor parallelism turns outputs into local ones by a hook.
        """
        for name in self._attached:
            if not self._hooks[name].last:
                self._hooks[name].detach()
                self._hooks[name].attach()

    def pause(self) -> None:
        """Measures nothing until ``open``, and takes the hooks off what is not compiled.

        Code that was compiled with a hook has to find it there: it is made anew without it, and then never misses it again.
        """
        self.gradients.listening = self.sinks.sampling = False
        if self.known:
            self._detach((self._attached & self.reached) - self.sinks.inside if self.sinks.traced else self._attached)
        self.gradients.release()
        self._inputs.clear()

    def close(self) -> None:
        """Removes everything that was attached."""
        self.pause()
        self.detach()
        self.sinks.close()

    def end_record(self) -> None:
        """Notes what only a whole record shows, and gets ready for the next one."""
        self._shares.tell()
        for layers, dead in self._silent.close():
            self._tape.note_all(tuple(self._sites[layer] for layer in layers), moments.DEAD, dead)
        self.sinks.deliver(self._tape)
        self.gradients.end_record()
        self._inputs.clear()
        self._furthest = -1

    def tap(self, name: str, tensor: Tensor) -> None:
        """Observes a tensor that no module returns."""
        if self._observing():
            site, grad_site = Site(name, "activation", "tap"), Site(name, "activation_grad", "tap")
            self._reach(site)
            self._observe(site, grad_site, unique_tensors(tensor), zeros=True)

    def _observing(self) -> bool:
        """Whether this call is one to observe: eager code that builds the graph of a backward pass to come."""
        if not self.gradients.listening or not torch.is_grad_enabled() or transform() is not None:
            return False
        # A forward that a checkpoint repeats was observed when it first came by.
        return graph_task() == -1 or recompute_kind() != "non-reentrant"

    def _reach(self, site: Site) -> None:
        """Keeps the order of forward: a layer that is first reached in a later step belongs behind those reached before it.

        Those are all since the last backward pass, and not the very last alone: it may be one that is called again and again, as
        the one ReLU of a residual block is.
        """
        self.reached.add(site.layer)
        passes = len(self._tape.graph_tasks)
        if passes != self._passes:
            self._passes, self._furthest = passes, -1
        place = self._places.get(site.layer)
        if place is None:
            self._furthest += 1
            known = list(self.order.items())
            self._order([*known[: self._furthest], (site.layer, site.type), *known[self._furthest :]])
        else:
            self._furthest = max(self._furthest, place)
            if self.order[site.layer] != site.type:  # another module took its name
                self._order({**self.order, site.layer: site.type}.items())

    def _order(self, layers: Iterable[tuple[str, str]]) -> None:
        self.order = dict(layers)
        self._places = {layer: place for place, layer in enumerate(self.order)}

    def unobserved(self, layer: str) -> str:
        """Why a compiler's work hides a layer; empty: it does not, or nobody knows."""
        if layer in self.late.layers:
            return LATE
        return self.sinks.reasons.get(kind_of(self.layers[layer]), "") if self.sinks.traced else ""

    def put_compiled(self, numbers: Mapping[Site, float]) -> Mapping[str, str]:
        """Puts layers of compiled graphs into the order, see ``with_compiled``, and returns it."""
        if any(site.layer not in self.order for site in numbers):
            self._order(with_compiled(self.order, self.layers, numbers).items())
        return self.order

    def _enter(self, site: Site, _module: nn.Module, _args: Any) -> None:
        self._reach(site)

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._observing():
            # Keyed by the call, and not a stack: a forward that raises, or that a checkpoint breaks off, has no end.
            self._inputs[threading.get_ident(), id(module)] = Inputs(
                unique_tensors(args[0] if len(args) == 1 and not kwargs else (args, kwargs))
            )

    def _after(
        self, site: Site, grad_site: Site, input_site: Site | None, module: nn.Module, args: Any, kwargs: Any, output: Any
    ) -> None:
        if site.layer not in self._containers:  # one that has children was reached when it was entered
            self._reach(site)  # also without a graph: a checkpoint builds it later, from the end on
        if not self._observing():
            return
        tensors = unique_tensors(output)
        active = input_site is not None
        inputs = self._inputs.pop((threading.get_ident(), id(module)), None) if active else None
        nodes = [] if inputs is None else inputs.nodes(tensors)
        values = output if type(output) is Tensor else local(output) if isinstance(output, Tensor) else None
        passage = None if values is None else self._passage(site, module, inputs, nodes, values, active=active)
        copy = self._observe(site, grad_site, tensors, (args, kwargs), passage, zeros=active)
        if passage is not None and values is not None and values.dim() > 1 and values.numel():
            self._note_awake(site, values, copy)  # else each element is a sample of its own
        if inputs is not None and input_site is not None:
            self.gradients.arm_inputs(inputs, nodes, input_site, None if passage is None else passage.leave)

    def _passage(
        self, site: Site, module: nn.Module, inputs: Inputs | None, nodes: list[Node], output: Tensor, *, active: bool
    ) -> _Passage | None:
        """The way back through an elementwise activation. What the output of another module tells is noted."""
        if inputs is not None and is_elementwise(module, inputs, nodes, output):
            return _Passage(module, self._shares)
        if isinstance(module, nn.Softmax) and module.dim is not None and output.numel():
            self._tape.note(site, moments.CLOSED, units.confident_share(output, module.dim))
        elif not active and not isinstance(module, PASSIVE):
            # Replicas of a model run side by side, each in a thread of its own.
            self._channels_first[threading.get_ident()] = units.channels_first(module)
        return None

    def _note_awake(self, site: Site, output: Tensor, copy: Tensor | None) -> None:
        axis = 1 if self._channels_first.get(threading.get_ident()) and output.dim() > 2 else output.dim() - 1
        self._sites[site.layer] = site
        if copy is not None:
            self._shares.output(site.layer, copy, axis)
        else:
            self._silent.saw((site.layer,), units.awake_units(output, axis).unsqueeze(0))

    def _observe(
        self,
        site: Site,
        grad_site: Site,
        tensors: Sequence[Tensor],
        given: Any = None,
        passage: _Passage | None = None,
        *,
        zeros: bool,
    ) -> Tensor | None:
        """Measures what a layer returned, and its gradient when it comes; returns the copy of a single small tensor."""
        copy = None
        (self.barren.discard if tensors else self.barren.add)(site.layer)
        for tensor in tensors:
            copy = self._tape.add(site, tensor, zeros=zeros)
            if tensor.requires_grad:
                self.gradients.arm(tensor, grad_site, given, None if passage is None else passage.enter)
        return copy


class _Passage:
    """One way back through an activation: dL/da comes in, dL/dz goes out, and their quotient is the local derivative."""

    __slots__ = ("_came", "_copy", "_peak", "_shares")

    def __init__(self, module: nn.Module, shares: Shares) -> None:
        self._peak, self._shares = units.peak(module), shares
        self._came: Tensor | None = None
        self._copy: Tensor | None = None

    def enter(self, _tape: Tape, _site: Site, grad: Tensor, copy: Tensor | None) -> None:
        """Takes dL/da."""
        self._came, self._copy = grad, copy

    def leave(self, tape: Tape, site: Site, grad: Tensor, copy: Tensor | None) -> None:
        """Takes dL/dz, and notes how far the valve is closed."""
        came, came_copy, self._came, self._copy = self._came, self._copy, None, None
        if came is None or came.shape != grad.shape or came.dtype != grad.dtype:
            return
        if came_copy is not None and copy is not None:
            self._shares.passage(site, self._peak, came_copy, copy)
        else:
            tape.note(site, moments.CLOSED, units.closed_share(self._peak, came, grad))


def is_activation(module: nn.Module) -> bool:
    """Whether a module is a function without parameters, so that what it lets through of a gradient is its own doing."""
    return next(module.children(), None) is None and next(module.parameters(), None) is None and not isinstance(module, PASSIVE)
