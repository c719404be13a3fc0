"""The valve of an elementwise activation: its local derivative da/dz, which lets the error pass or keeps it out.

Backward, an elementwise activation multiplies each element of dL/da by its own da/dz and mixes nothing. Where da/dz is close
to 0 the valve is closed: what lies before it learns nothing from that element, however wrong the answer is.

The module itself is differentiated, so that any elementwise activation works, a custom one too, with the derivative that
backward uses (a surrogate gradient, the exact 0 of a float32 sigmoid at z = 20). A copy is called, on a copy of the input, so
that nothing is left behind: not in the random number generators, buffers, gradients or hooks, nor by an in-place activation.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

CLOSED = 1e-3
"""A valve with |da/dz| below this is closed: ten of them in a row leave 1e-30 of a gradient. A sigmoid's is beyond |z| = 6.9, a
tanh's beyond 4.1. In a trained three-layer network on the digits data at most 1 % of a smooth activation's elements were below
it (sigmoid, tanh, GELU, SiLU, softplus, ELU) and 50 % of a ReLU's; with weights forty times as large, 65 to 86 % of a deep
sigmoid's or tanh's."""

MOSTLY_CLOSED = 0.75
"""A layer with more than this share of closed elements hardly passes anything on; a healthy ReLU closes 50 to 70 %."""

SAMPLE = 65_536
"""Elements that are differentiated: enough to know a share to 0.2 %, few enough to cost less than a layer."""

CPU = torch.device("cpu")

PROBE = 4_096
"""Elements of the made-up input that tells whether a module is elementwise."""

ELEMENTWISE: frozenset[type[nn.Module]] = frozenset(
    {
        nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.LogSigmoid, nn.Mish,
        nn.PReLU, nn.ReLU, nn.ReLU6, nn.RReLU, nn.SELU, nn.Sigmoid, nn.SiLU, nn.Softplus, nn.Softshrink, nn.Softsign, nn.Tanh,
        nn.Tanhshrink, nn.Threshold,
    }
)  # fmt: skip
"""Torch's own elementwise activations. No other class of torch.nn is one; a class from elsewhere is tried out."""


class Valve(NamedTuple):
    """How far an activation is open.

    Attributes:
        derivative: Mean of |da/dz| over the sample, 0-dimensional, on the input's device, dimensionless.
        closed: Share of elements with |da/dz| below the bound, 0-dimensional, in [0, 1].
    """

    derivative: Tensor
    closed: Tensor


def is_valve(module: nn.Module, x: Tensor) -> bool:
    """Whether a module is an elementwise activation.

    Torch's own activations are known. A class from elsewhere is tried on a made-up input of the same rank: it is an activation
    if its Jacobian is diagonal and it is not merely a scale and a shift. Ask once a module: the trial takes several passes.

    Args:
        module: Any module.
        x: What it is called with: any shape; only its shape, kind and device matter.
    """
    if not x.is_floating_point() or x.layout != torch.strided or not x.numel():
        return False
    if type(module) in ELEMENTWISE:
        return True
    known = [base for base in type(module).__mro__ if base.__module__.startswith("torch.") and base is not nn.Module]
    if not ELEMENTWISE.issuperset(known) or "forward" in vars(module):
        return False
    try:
        with _secluded(CPU):
            return _acts_elementwise(module, x)
    except Exception:  # noqa: BLE001 - a module of the user's may refuse an input that it never met in any way it likes
        return False


def valve(module: nn.Module, x: Tensor, *, sample: int = SAMPLE, closed: float = CLOSED) -> Valve:
    """How far an elementwise activation is open for this input, without waiting for the device.

    Args:
        module: An elementwise activation, see ``is_valve``.
        x: Its input, any shape.
        sample: Elements that are differentiated at most; more only where the shapes of the module's parameters ask for it.
        closed: Bound on |da/dz|, dimensionless.
    """
    with _secluded(x.device):
        taken = _strided(x, sample, _parameter_sizes(module))
        _, derivative = _differentiate(_twin(module), taken, torch.ones_like(taken))
    size = derivative.abs()
    return Valve(size.mean(dtype=torch.promote_types(size.dtype, torch.float32)), (size < closed).float().mean())


def _acts_elementwise(module: nn.Module, x: Tensor) -> bool:
    shape = _strided(x, PROBE, _parameter_sizes(module)).shape
    # In main memory, since not every device computes in float64.
    index = torch.arange(math.prod(shape), dtype=torch.float64, device=CPU).view(shape)
    # Between -3 and 3 every usual activation bends; the factors are irrational, so that no two elements are alike.
    here, there, weights = 3 * torch.sin(math.e * index + 1), 3 * torch.sin(math.pi * index + 2), 1 + torch.cos(index) / 2
    twin = _twin(module, _in_float64)
    middle, derivative = _differentiate(twin, (here + there) / 2, torch.ones_like(here))
    _, weighted = _differentiate(twin, (here + there) / 2, weights)
    ends = (_differentiate(twin, here, weights)[0] + _differentiate(twin, there, weights)[0]) / 2
    return _same(weighted, weights * derivative) and not _same(ends, middle)


def _same(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first, second, rtol=1e-6, atol=1e-12)  # in float64 even sums of thousands are right to 1e-12


def _differentiate(twin: Any, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The output of a twin, and the gradient of the weighted sum of its elements with respect to ``x``."""
    leaf = x.detach().clone().requires_grad_()
    out = twin.forward(leaf.clone())  # an in-place activation may not write on a leaf
    if not isinstance(out, Tensor) or out.shape != x.shape:
        raise TypeError(f"{type(twin).__name__} does not return a tensor of its input's shape")
    if not out.requires_grad:
        return out, torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(out, leaf, weights)
    return out.detach(), gradient


@contextmanager
def _secluded(device: torch.device) -> Iterator[None]:
    """Gradients on; random numbers, and hooks that checkpointing or offloading put on saved tensors, out of reach."""
    elsewhere = [] if device.type in ("cpu", "meta") else [device.index or 0]
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(elsewhere, device_type=device.type if elsewhere else "cuda"))
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        # Detached: an output saved by its own node with a hook would refer to itself for ever.
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(Tensor.detach, _unchanged))
        yield


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


def _in_float64(tensor: Tensor) -> Tensor:
    return tensor.to(CPU, torch.float64) if tensor.is_floating_point() else tensor.to(CPU)


def _twin(module: nn.Module, convert: Callable[[Tensor], Tensor] = _unchanged) -> Any:
    """A module that computes the same and shares no state: its forward may count, cache or update buffers."""
    twin = module.__new__(type(module))
    state = {name: copy.copy(value) if isinstance(value, dict | list | set) else value for name, value in vars(module).items()}
    state.update({name: type(value)() for name, value in state.items() if name.endswith("_hooks")})
    for key, registry in (("_parameters", module._parameters), ("_buffers", module._buffers)):
        state[key] = {name: tensor if tensor is None else convert(tensor.detach().clone()) for name, tensor in registry.items()}
    state["_modules"] = {name: child if child is None else _twin(child, convert) for name, child in module._modules.items()}
    twin.__dict__.update(state)
    return twin


def _parameter_sizes(module: nn.Module) -> set[int]:
    return {size for parameter in module.parameters() for size in parameter.shape if size > 1}


def _strided(x: Tensor, limit: int, kept: set[int]) -> Tensor:
    """Every k-th entry along the dimensions, the first one first, until at most ``limit`` elements are left.

    Dimensions of a size in ``kept`` stay whole: the module's parameters are laid out along them.
    """
    for dim in (0, *range(x.dim() - 1, 0, -1)):
        if x.numel() > limit and x.size(dim) not in kept:
            x = x[(slice(None),) * dim + (slice(None, None, math.ceil(x.numel() / limit)),)]
    return x
