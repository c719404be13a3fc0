"""What the graphs of ``torch.compile`` deliver, and what is known of the layers in them.

Compiled code is used again only while what it was traced with still holds. So hooks that may have been traced stay on the model,
and one flag tells graphs that measure from graphs that do not: two of each, made once. Blocks of one class share their graphs, and
so do models that are trained one after the other, as long as nothing in a graph says which of them it is. So what is traced knows
neither the name of its layer nor whose hook it is, and what a compiler comes upon is told to all sinks that are open.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from gradwatch import moments
from gradwatch.capture.sink import CLOSED, REACHED, SIZE
from gradwatch.capture.transfer import Tape
from gradwatch.records import Site

LOSSES = ("told", "criterion")
"""What is the loss of a step: names of ``Tape.add_scalar``."""


class Owner(Protocol):
    """Whoever observes."""

    def fail(self, error: Exception) -> None:
        """Takes an exception of gradwatch's own."""


class Outlet:
    """Where graphs deliver what they measure in one place.

    Args:
        layer: The layer whose device it follows; empty: it stays where it is.
        passed: The site of what passes the sink; None: it is not measured.
        came: The site of what comes back.
        valve: The site whose closed valves are counted; None: they are not.

    Attributes:
        leaf: Its gradient is what they deliver.
    """

    __slots__ = ("came", "layer", "leaf", "passed", "valve")

    def __init__(self, layer: str, passed: Site | None, came: Site, valve: Site | None = None) -> None:
        self.layer, self.passed, self.came, self.valve = layer, passed, came, valve
        self.leaf = torch.empty(0)

    def move(self, device: torch.device) -> None:
        """Makes sure that its leaf is on a device."""
        if self.leaf.device == device and self.leaf.numel():
            return
        try:  # the square of any float32 fits into float64
            self.leaf = torch.zeros(SIZE, dtype=torch.float64, device=device, requires_grad=True)
        except (TypeError, RuntimeError):  # not every device has it
            self.leaf = torch.zeros(SIZE, dtype=torch.float32, device=device, requires_grad=True)


class _Leaves:
    """Holds leaves as attributes: a compiler looks up an attribute when it comes to it, but takes a list as a whole."""


class Sinks:
    """Where compiled graphs deliver.

    Args:
        owner: Held weakly, since a model that is hooked must not keep a watch alive.

    Attributes:
        sampling: Whether layers are measured. Graphs are guarded on it.
        traced: Whether a compiler has come by, or a graph of an earlier watch has delivered.
        inside: Layers that were measured in a graph.
        leaves: Where traced code finds the leaves of losses and taps.
        reasons: Type of layers → why some of them are not measured.
    """

    def __init__(self, owner: Owner) -> None:
        self.sampling = False
        self.traced = False
        self.inside: set[str] = set()
        self.leaves = _Leaves()
        self._owner = weakref.ref(owner)
        self._device: torch.device | None = None
        self._outlets: list[Outlet] = []
        self._named: list[Outlet] = []  # those among them that deliver in every step
        self.reasons: dict[str, str] = {}
        _open.add(self)

    def outlet(self, layer: str, passed: Site | None, came: Site, valve: Site | None = None) -> Outlet:
        """A new outlet, see ``Outlet``."""
        self._device = None  # its leaf has yet to be made
        self._outlets.append(Outlet(layer, passed, came, valve))
        return self._outlets[-1]

    def follow(self, layers: Mapping[str, nn.Module]) -> None:
        """Makes sure that the leaves are where the layers are; one without parameters is taken to be where the one before it is."""
        device = next((parameter.device for module in layers.values() for parameter in module.parameters()), torch.device("cpu"))
        if device == self._device:
            return
        self._device = device
        where = {}
        for name, module in layers.items():
            device = where[name] = next((parameter.device for parameter in module.parameters()), device)
        for outlet in self._outlets:
            if outlet.layer in where:
                outlet.move(where[outlet.layer])

    def close(self) -> None:
        """Ends it: graphs that are still in use deliver to nobody."""
        self.sampling = False
        _open.discard(self)

    @property
    def delivered(self) -> bool:
        """Whether something was delivered that ``deliver`` has not taken."""
        return any(outlet.leaf.grad is not None for outlet in self._outlets)

    def deliver(self, tape: Tape) -> None:
        """Puts what graphs have delivered onto a tape. Layers deliver only while they are sampled."""
        arrived: dict[torch.device, list[tuple[Outlet, Tensor]]] = {}
        for outlet in self._outlets if self.sampling else self._named:
            if (measured := outlet.leaf.grad) is None:
                continue
            outlet.leaf.grad = None
            self.traced = True
            self.inside.add(outlet.layer)
            if outlet.came.type in LOSSES:
                tape.add_scalar(outlet.came.type, measured[2] / measured[1])
            else:
                arrived.setdefault(measured.device, []).append((outlet, measured))
        for pairs in arrived.values():
            table = torch.stack([measured for _, measured in pairs])  # copies: a graph may use its memory again
            tape.add_sums([(outlet.passed, outlet.came) for outlet, _ in pairs], table)
            for (outlet, _), share in zip(pairs, (table[:, CLOSED] / table[:, REACHED]).unbind(), strict=True):
                if outlet.valve is not None:
                    tape.note(outlet.valve, moments.CLOSED, share)

    # ---------------------------------------------- told by a compiler that traces

    def pass_by(self, kind: str, reason: str) -> None:
        """Takes why a layer of a type is not measured."""
        self.reasons[kind] = f"in a compiled graph, and {reason}"

    def name(self, what: str, name: str, device: str) -> None:
        """Makes the leaf of a loss, one of ``LOSSES``, or of a tap, where there is none yet."""
        if not hasattr(self.leaves, attribute := leaf_name(what, name, device)):
            outlet = self.outlet("", Site(name, "activation", what), Site(name, "activation_grad", what))
            outlet.move(torch.device(device))
            self._named.append(outlet)
            setattr(self.leaves, attribute, outlet.leaf)

    def fail(self, error: Exception) -> None:
        """Takes an exception of traced code."""
        if (owner := self._owner()) is not None:
            owner.fail(error)


_open: weakref.WeakSet[Sinks] = weakref.WeakSet()


def opened() -> list[Sinks]:
    """All sinks that are open."""
    return list(_open)


def leaf_name(what: str, name: str, device: str) -> str:
    """The attribute that holds the leaf of a loss or a tap."""
    return f"{what} {name} {device}"
