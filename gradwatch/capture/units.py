"""What the units of a layer do, seen from what the hooks see anyway: silent units, closed valves, units that are copies.

Nothing here runs a module again: an elementwise activation multiplies each element of dL/da by its local derivative, so that
dL/dz over dL/da is that derivative. A unit is silent when its output, or the gradient of its weights, is exactly zero for every
input. All results are tensors on the device, of which nothing is read.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gradwatch import moments

WINDOW = 2
"""Full records in a row in which a unit has to be silent to count as dead: with the default cadence 11 steps, and every input of
two batches. A unit that is open for one input in ten is silent through two batches of 32 once in a thousand."""

CLOSED = 0.04
"""A valve under this share of its largest derivative is closed: a sigmoid beyond 0.01 and 0.99, a tanh beyond ±0.98, which is
where Glorot & Bengio (2010) see a unit as saturated."""

SWITCH = math.inf
"""In the place of the largest derivative: valves that are either open or closed, so that they pass on all or nothing."""

PEAKS: dict[type[nn.Module], float] = {
    nn.Sigmoid: 0.25,
    nn.Hardsigmoid: 1 / 6,
    nn.Tanh: 1.0,
    nn.Hardtanh: 1.0,
    nn.Softsign: 1.0,
    nn.ReLU: SWITCH,
    nn.ReLU6: SWITCH,
}
"""The largest derivative of activations of torch, as far as it is known. Any other is compared with what it shows itself."""

CONFIDENT = 0.99
"""A softmax whose largest probability is above this passes under 1 % of the gradient on."""

MANY = 10_000
"""Calls in a record after which those of one layer are joined: a loop that never steps makes any number."""

MIN_ROWS = 4
"""A matrix of fewer rows says nothing about symmetry."""


class SilentUnits:
    """Counts, unit by unit, for how many full records in a row it has been silent."""

    def __init__(self) -> None:
        self._awake: list[tuple[tuple[str, ...], Tensor]] = []
        self._silence: dict[str, tuple[_Block, int]] = {}

    def saw(self, layers: tuple[str, ...], awake: Tensor) -> None:
        """Takes which units of some layers were awake; of several calls in a record any one counts.

        Args:
            layers: Told of together; one that was called several times may be among them several times.
            awake: (layers, units).
        """
        self._awake.append((layers, awake))
        if len(self._awake) > MANY:
            self._awake = list(self._seen())

    def close(self) -> Iterator[tuple[tuple[str, ...], Tensor]]:
        """Ends a record: layers that were seen, and the share of units of each that are dead, (layers,)."""
        groups: dict[tuple[torch.device, int, bool], list[tuple[tuple[str, ...], Tensor]]] = {}
        for layers, awake in self._seen():
            known = [self._is_known(layer, awake) for layer in layers]
            if all(known) or not any(known):
                groups.setdefault((awake.device, awake.shape[1], known[0]), []).append((layers, awake))
                continue
            for layer, row, is_known in zip(layers, awake, known, strict=True):
                groups.setdefault((awake.device, awake.shape[1], is_known), []).append(((layer,), row.unsqueeze(0)))
        for (*_, seen_before), members in groups.items():
            layers = tuple(itertools.chain.from_iterable(some for some, _ in members))
            awake = torch.cat([its for _, its in members]) if len(members) > 1 else members[0][1]
            silence = (
                (self._before(layers) + 1).clamp(max=WINDOW).masked_fill(awake, 0) if seen_before else (~awake).to(torch.int16)
            )
            block = _Block(layers, silence)
            self._silence.update((layer, (block, row)) for row, layer in enumerate(layers))
            yield layers, (silence >= (WINDOW if seen_before else 1)).float().mean(dim=1)

    def _seen(self) -> Iterable[tuple[tuple[str, ...], Tensor]]:
        """What was seen, each layer once."""
        seen, self._awake = self._awake, []
        names = [layer for layers, _ in seen for layer in layers]
        if len(set(names)) == len(names):
            return seen
        by_layer: dict[str, Tensor] = {}
        for layer, awake in ((layer, row) for layers, rows in seen for layer, row in zip(layers, rows, strict=True)):
            before = by_layer.get(layer)
            by_layer[layer] = awake if before is None or before.shape != awake.shape else before | awake
        return [((layer,), awake.unsqueeze(0)) for layer, awake in by_layer.items()]

    def _is_known(self, layer: str, awake: Tensor) -> bool:
        return layer in self._silence and self._silence[layer][0].silence.shape[1] == awake.shape[1]

    def _before(self, layers: tuple[str, ...]) -> Tensor:
        block, _ = self._silence[layers[0]]
        if block.layers == layers:
            return block.silence
        return torch.stack([block.silence[row] for block, row in map(self._silence.__getitem__, layers)])


class _Block(NamedTuple):
    """For how many records in a row units have been silent, of layers that were told of together.

    Attributes:
        layers: Of the rows.
        silence: (layers, units).
    """

    layers: tuple[str, ...]
    silence: Tensor


def awake_units(tensor: Tensor, axis: int) -> Tensor:
    """Which units are non-zero for any input, (units,); where they lie in the last dimension, from a strided sample of the inputs.

    Args:
        tensor: An output, or the gradient of one, of any shape with at least one dimension, not empty.
        axis: The dimension of the units.
    """
    x, last = tensor.detach(), tensor.dim() - 1
    if axis == last:
        x = x.reshape(-1, x.shape[-1])[:: moments.stride(x.numel() // 4)]
        axis = 1
    others = [dim for dim in range(x.dim()) if dim != axis]
    # Two extremes take a quarter of the time of `any`. NaN is not silence: it is different from zero, and an extreme keeps it.
    return (x.amin(others) != 0) | (x.amax(others) != 0)


def awake_in_each(stack: Tensor, axis: int) -> Tensor:
    """Which units of each of several small tensors are non-zero for any input, (tensors, units).

    Args:
        stack: The tensors, (tensors, ...).
        axis: The dimension of the units in each of them.
    """
    others = [dim for dim in range(1, stack.dim()) if dim != axis + 1]
    return (stack.amin(others) != 0) | (stack.amax(others) != 0)


def peak(module: nn.Module) -> float | None:
    """The largest derivative of an activation, or ``SWITCH``; None where it is not known."""
    return PEAKS.get(type(module))


def closed_share(widest: float | None, grad_output: Tensor, grad_input: Tensor) -> Tensor:
    """The share of elements whose local derivative is under ``CLOSED`` of its peak, of those that a gradient reached.

    Args:
        widest: The largest derivative of the activation, as ``peak`` tells it.
        grad_output: dL/da, any shape.
        grad_input: dL/dz, the same shape.

    Returns:
        Shape (); NaN where no gradient arrived at all.
    """
    arrived, passed = moments.sample(grad_output.detach(), grad_input.detach())
    return closed_shares(widest, arrived.reshape(1, -1), passed.reshape(1, -1)).reshape(())


def closed_shares(widest: float | None, arrived: Tensor, passed: Tensor) -> Tensor:
    """The share of closed elements, as ``closed_share``, of each of several tensors: (tensors, elements) → (tensors,)."""
    if widest == SWITCH:  # then counting zeros is enough
        if len(arrived) == 1:
            stopped, missing = moments.count_zeros(passed).reshape(1), moments.count_zeros(arrived).reshape(1)
        else:
            stopped, missing = moments.count_zeros(passed, 1), moments.count_zeros(arrived, 1)
        return (stopped - missing) / (arrived.shape[1] - missing)
    arrived, passed = arrived.abs(), passed.abs()
    reached = _floats(torch.gt, arrived, 0)
    opening: float | Tensor
    if widest is not None:
        opening = widest
    else:  # an activation of somebody's own: the widest that any of its valves is open
        opening = torch.where(arrived > 0, passed / arrived, torch.zeros_like(arrived)).amax(1, keepdim=True)
    return _floats(torch.le, passed, CLOSED * opening * arrived).mul_(reached).sum(1) / reached.sum(1)


def _floats(compare: Callable[..., Tensor], x: Tensor, y: Tensor | float) -> Tensor:
    """A comparison as 0 and 1 in float32, which a CPU adds up ten times as fast as booleans."""
    return compare(x, y, out=torch.empty_like(x, dtype=torch.float32))


def confident_share(probabilities: Tensor, dim: int) -> Tensor:
    """The share of a softmax's distributions whose largest probability is above ``CONFIDENT``, of shape ()."""
    largest = probabilities.detach().amax(dim).reshape(-1)
    return (largest[:: moments.stride(largest.numel())] > CONFIDENT).float().mean()


def alike_share(weight: Tensor) -> Tensor:
    """The share of a matrix's rows that equal another row, of shape ().

    Rows are told apart by their products with one fixed vector: equal rows have equal products, and of different rows only ones
    that lie in one hyperplane by chance.

    Args:
        weight: (rows, ...).
    """
    rows = weight.detach().flatten(1).float()
    probe = torch.cos(torch.arange(rows.shape[1], device=rows.device, dtype=rows.dtype) * 1.6180339887 + 0.5)
    products = (rows @ probe).sort().values
    distinct = 1 + (products.diff() > 1e-6 * products.abs().amax()).sum()
    return 1 - (distinct - 1) / (rows.shape[0] - 1)


def observable_rows(weight: Tensor) -> bool:
    """Whether a parameter is a matrix with enough rows to compare."""
    return (
        weight.dim() > 1
        and weight.shape[0] >= MIN_ROWS
        and weight.numel() > 0
        and weight.is_floating_point()
        and weight.layout is torch.strided
    )


def channels_first(module: nn.Module) -> bool:
    """Whether a module puts its units into dimension 1: convolutions and the norms that follow them."""
    return isinstance(module, (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm))
