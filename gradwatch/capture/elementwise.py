"""Whether a module is an elementwise activation, told from the graph that it built.

A module of the user's is not run again to find out: it may count its calls, draw random numbers or write a log.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from gradwatch.capture.branches import Inputs
from gradwatch.capture.valves import ELEMENTWISE

BENDING = frozenset(
    {
        "abs", "asinh", "atan", "celu", "clamp", "clampmax", "clampmin", "cos", "cosh", "elu", "erf", "exp", "exp2",
        "expm1", "gelu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh", "hypot", "leakyrelu", "log", "log1p", "log2",
        "logaddexp", "logsigmoid", "maximum", "minimum", "mish", "pow", "reciprocal", "relu", "rsqrt", "sgn", "sigmoid",
        "sign", "silu", "sin", "sinh", "softplus", "softshrink", "sqrt", "tan", "tanh", "threshold", "where",
    }
)  # fmt: skip
"""Operations of autograd that work element by element and are not linear."""

STRAIGHT = frozenset({"add", "addcmul", "clone", "div", "lerp", "mul", "neg", "rsub", "sub", "tocopy"})
"""Operations that work element by element and are linear in each of their operands."""

PRODUCTS = frozenset({"addcmul", "div", "lerp", "mul"})
"""Those among them that bend where two of their operands come from the input."""


def is_elementwise(module: nn.Module, inputs: Inputs, nodes: Sequence[Node], output: Tensor) -> bool:
    """Whether a call acted on each element by itself, and not merely by a scale and a shift.

    Args:
        module: What was called.
        inputs: Noted before the call.
        nodes: What the call made, see ``Inputs.nodes``.
        output: What it returned.
    """
    if not output.is_floating_point() or output.layout != torch.strided or output.is_nested:
        return False
    if type(module) in ELEMENTWISE:
        return True
    if not nodes or inputs.shapes != [output.shape]:
        return False
    operations = {node: re.sub(r"Backward\d*$", "", node.name()).lower() for node in nodes}
    if not BENDING.union(STRAIGHT).issuperset(operations.values()):
        return False
    return any(
        operation in BENDING or (operation in PRODUCTS and sum(edge[0] is not None for edge in node.next_functions) > 1)
        for node, operation in operations.items()
    )
