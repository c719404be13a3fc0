"""A pass as a tidy frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from gradwatch import moments, statistics
from gradwatch.trace import tree
from gradwatch.trace.passes import NAN, Call, Parameter, Pass

if TYPE_CHECKING:
    import pandas

BESIDE = ("derivative", "closed_share", "kept", "gain", "product", "share")
"""Figures of a call or a parameter, each in the row of the tensor that it says something about."""


@dataclass(frozen=True)
class Row:
    """A tensor of the pass.

    Attributes:
        layer: The layer, or the parameter's full name.
        type: The layer's class name.
        call: Which call.
        tensor: Which tensor of the layer.
        path: The subscripts that lead to it.
        value: The tensor.
        beside: Figures by the names of ``BESIDE``.
    """

    layer: str
    type: str
    call: int
    tensor: str
    path: str
    value: Tensor
    beside: dict[str, float]


def rows(shown: Pass) -> Iterator[Row]:
    """The tensors in forward order: those of a call, then the parameters of its layer; parameters that no call owns last."""
    names = {id(parameter): name for name, parameter in shown.params.items()}
    types = {id(parameter): layer.type for layer in shown.layers.values() for parameter in layer.params.values()}
    for call in shown.calls:
        yield from _of_call(call)
        for parameter in shown.layers[call.layer].params.values():
            if id(parameter) in names:
                yield from _of_parameter(names.pop(id(parameter)), call.type, parameter)
    for identity, name in names.items():
        yield from _of_parameter(name, types.get(identity, "tensor"), shown.params[name])


def frame(shown: Pass) -> pandas.DataFrame:
    """One row per tensor; see ``Trace.to_pandas``."""
    import pandas

    listed = list(rows(shown))
    table = measure([row.value for row in listed])
    columns: dict[str, Any] = {
        "layer": [row.layer for row in listed],
        "type": [row.type for row in listed],
        "call": [row.call for row in listed],
        "tensor": [row.tensor for row in listed],
        "path": [row.path for row in listed],
        "shape": [tuple(row.value.shape) for row in listed],
    }
    columns |= {name: entry.compute(statistics.Moments(table)) for name, entry in statistics.STATISTICS.items()}
    columns |= {name: [row.beside.get(name, NAN) for row in listed] for name in BESIDE}
    framed: pandas.DataFrame = pandas.DataFrame(columns)
    return framed


def measure(tensors: Sequence[Tensor]) -> moments.Array:
    """The moments of tensors, (tensors, len(moments.COLUMNS))."""
    measured = [moments.measure(tensor, zeros=True) for tensor in tensors]
    # Read one by one, since the tensors of a pass may lie on several devices.
    pieces = np.array([[float(piece) for piece in row] for _, row in measured]).reshape(-1, 6)
    return moments.rows([count for count, _ in measured], pieces)


def _of_call(call: Call) -> Iterator[Row]:
    activation = {"kept": float(call.kept.activations)} if call.kept is not None else {}
    if call.valve is not None:
        activation |= {"derivative": call.valve.derivative, "closed_share": call.valve.closed}
    for tensor, structure, beside in (
        ("input", call.input, {}),
        ("activation", call.output, activation),
        ("activation_grad", call.grad_output, {}),
        ("input_grad", call.grad_input, {"gain": call.gain, "product": call.product}),
    ):
        for path, value in tree.leaves(structure, Tensor):
            yield Row(call.layer, call.type, call.index, tensor, path, value, beside)


def _of_parameter(name: str, kind: str, parameter: Parameter) -> Iterator[Row]:
    yield Row(name, kind, 0, "parameter", "", parameter.value, {})
    if parameter.grad is not None:
        yield Row(name, kind, 0, "parameter_grad", "", parameter.grad, {"share": parameter.share})
