"""The nouns of a trace: a call, a layer, a parameter, and the pass that they belong to."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from gradwatch.errors import NotTraced
from gradwatch.trace.saved import Kept

NAN = float("nan")


@dataclass(frozen=True)
class Valve:
    """How far an elementwise activation was open in a call; see ``gradwatch.capture.valves``.

    Attributes:
        derivative: Mean of |da/dz|, dimensionless.
        closed: Share of elements with |da/dz| below ``valves.CLOSED``, in [0, 1].
    """

    derivative: float
    closed: float


@dataclass(frozen=True, eq=False)
class Parameter:
    """A parameter, or a raw tensor.

    Attributes:
        value: A copy, from before the pass.
        grad: dL/dW, a copy: what this pass contributes to ``.grad``, whatever was there before; None where nothing arrived.
        share: Its share of the pass's total squared gradient, in [0, 1].
    """

    value: Tensor
    grad: Tensor | None
    share: float = NAN


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer, or one tapped tensor.

    Tensors are copies. Where a layer takes or returns several, they stand in the same nested tuples, lists and dicts as the
    originals, and their gradients likewise, None where none arrived.

    Attributes:
        layer: The layer's canonical name.
        type: The module's class name, ``"tap"``, or ``"tensor"``.
        index: Which call of this layer, from 0.
        input: The argument that holds tensors; the tuple of the arguments, or a dict of them, where several do.
        output: What the layer returned.
        grad_output: dL/d output: the total gradient, through everything that reads the output.
        grad_input: dL/d input: through this call only; None where the input needs no gradient.
        grad_output_norm: Euclidean norm of ``grad_output``, over all its tensors; NaN where no gradient arrived.
        grad_input_norm: Euclidean norm of ``grad_input``, over all its tensors; NaN where there is none.
        product: ``grad_input_norm`` over the ``grad_output_norm`` of the last layer. Where each layer reads the one before, this
            is the product of the gains from the loss down to this layer.
        valve: How far the layer was open, if it is an elementwise activation.
        kept: What it keeps for backward, and no call before it; None where this torch does not tell.
        encloses: It calls other observed layers, so that it is no link of the chain.
    """

    layer: str
    type: str
    index: int = 0
    input: Any = None
    output: Any = None
    grad_output: Any = None
    grad_input: Any = None
    grad_output_norm: float = NAN
    grad_input_norm: float = NAN
    product: float = NAN
    valve: Valve | None = None
    kept: Kept | None = None
    encloses: bool = False

    @property
    def gain(self) -> float:
        """‖dL/d input‖ / ‖dL/d output‖; NaN where either is not known, or where no gradient arrives that could pass."""
        return self.grad_input_norm / self.grad_output_norm if self.grad_output_norm else NAN


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer, or the name of a tapped or a raw tensor.

    What a call has (``output``, ``input``, ``grad_output``, ``grad_input``, ``gain``, ``valve``, ``kept``) can be read from the
    layer itself if it was called once. Of a layer that was called several times, ``trace["rnn"][2]`` is the third call.

    Attributes:
        name: Canonical name.
        type: The module's class name, ``"tap"``, or ``"tensor"``.
        calls: In forward order; none where forward never called it.
        params: Its own parameters, by their name in the module.
    """

    name: str
    type: str
    calls: tuple[Call, ...] = ()
    params: dict[str, Parameter] = field(default_factory=dict)

    def __getitem__(self, index: int) -> Call:
        return self.calls[index]

    def __repr__(self) -> str:
        return f"Layer({self.name!r}, {self.type}, {len(self.calls)} calls, params: {', '.join(self.params) or 'none'})"

    @property
    def call(self) -> Call:
        """The only call.

        Raises:
            NotTraced: There were several, or none.
        """
        if not self.calls:
            rest = ", only its parameters: .params" if self.params else ""
            raise NotTraced(
                f"{self.name!r} was not called as a module in the traced block: nothing is known of it{rest}. A model may read a "
                f"submodule's weights without calling it; trace.tap(name, tensor) observes any tensor"
            )
        if len(self.calls) > 1:
            raise NotTraced(
                f"{self.name!r} was called {len(self.calls)} times: choose a call, trace[{self.name!r}][0] to "
                f"trace[{self.name!r}][{len(self.calls) - 1}]"
            )
        return self.calls[0]

    @property
    def input(self) -> Any:
        """The input of the only call."""
        return self.call.input

    @property
    def output(self) -> Any:
        """The output of the only call."""
        return self.call.output

    @property
    def grad_output(self) -> Any:
        """dL/d output of the only call."""
        return self.call.grad_output

    @property
    def grad_input(self) -> Any:
        """dL/d input of the only call."""
        return self.call.grad_input

    @property
    def gain(self) -> float:
        """‖dL/d input‖ / ‖dL/d output‖ of the only call."""
        return self.call.gain

    @property
    def valve(self) -> Valve | None:
        """How far the only call was open."""
        return self.call.valve

    @property
    def kept(self) -> Kept | None:
        """What the only call keeps for backward."""
        return self.call.kept

    @property
    def value(self) -> Any:
        """A tapped or raw tensor's value: another name of ``output``."""
        return self.call.output

    @property
    def grad(self) -> Any:
        """A tapped or raw tensor's gradient: another name of ``grad_output``."""
        return self.call.grad_output


@dataclass(frozen=True, eq=False)
class Pass:
    """One forward and one backward.

    Attributes:
        layers: By canonical name: in the order of their first calls, then those that were never called.
        calls: In the order in which they returned.
        params: By canonical full name; a tied parameter under its first name.
        kept: What each module keeps for backward beside what the modules inside it keep, by canonical name; empty where this
            torch does not tell.
    """

    layers: dict[str, Layer]
    calls: tuple[Call, ...]
    params: dict[str, Parameter]
    kept: dict[str, Kept]


def norm(norms: list[float]) -> float:
    """The Euclidean norm of several tensors together, from those of each; NaN where there are none."""
    return math.hypot(*norms) if norms else NAN
