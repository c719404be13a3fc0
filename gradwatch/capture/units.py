"""What the units of a layer do, seen from what the hooks see anyway: silent units, closed valves, units that are copies.

Nothing here runs a module again: an elementwise activation multiplies each element of dL/da by its local derivative, so that
dL/dz over dL/da is that derivative. A unit is silent when its output, or the gradient of its weights, is exactly zero for every
input. All results are 0-dimensional tensors on the device.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

WINDOW = 2
"""Full records in a row in which a unit has to be silent to count as dead: with the default cadence 11 steps, and every input of
two batches. A unit that is open for one input in ten is silent through two batches of 32 once in a thousand."""

SAMPLE = 65_536
"""Elements that a share is taken of: enough for 0.2 %, few enough to cost less than a layer."""

CLOSED = 0.04
"""A valve under this share of its largest derivative is closed: a sigmoid beyond 0.01 and 0.99, a tanh beyond ±0.98, which is
where Glorot & Bengio (2010) see a unit as saturated."""

PEAKS: dict[type[nn.Module], float] = {nn.Sigmoid: 0.25, nn.Hardsigmoid: 1 / 6, nn.Tanh: 1.0, nn.Hardtanh: 1.0, nn.Softsign: 1.0}
"""The largest derivative of the squashing activations of torch. One of somebody's own is compared with what it shows itself."""

CONFIDENT = 0.99
"""A softmax whose largest probability is above this passes under 1 % of the gradient on."""

MIN_ROWS = 4
"""A matrix of fewer rows says nothing about symmetry."""


class SilentUnits:
    """Counts, unit by unit, for how many full records in a row it has been silent."""

    def __init__(self) -> None:
        self._awake: dict[str, Tensor] = {}
        self._silence: dict[str, Tensor] = {}

    def saw(self, layer: str, awake: Tensor) -> None:
        """Takes which units of a layer were awake, of shape (units,); of several calls in a record any one counts."""
        before = self._awake.get(layer)
        self._awake[layer] = awake if before is None or before.shape != awake.shape else before | awake

    def close(self) -> Iterator[tuple[str, Tensor]]:
        """Ends a record: each layer that was seen, and the share of its units that are dead, of shape ()."""
        seen, self._awake = self._awake, {}
        groups: dict[tuple[torch.device, int, bool], list[str]] = {}
        for layer, awake in list(seen.items()):  # another thread may be measuring
            before = self._silence.get(layer)
            known = before is not None and before.shape == awake.shape
            groups.setdefault((awake.device, len(awake), known), []).append(layer)
        for (*_, known), layers in groups.items():
            awake = torch.stack([seen[layer] for layer in layers])  # (layers, units)
            if known:
                before = torch.stack([self._silence[layer] for layer in layers])
                silence = (before + 1).clamp(max=WINDOW).masked_fill(awake, 0)
            else:
                silence = (~awake).to(torch.int16)
            self._silence.update(zip(layers, silence, strict=True))
            dead = silence >= (WINDOW if known else 1)
            yield from zip(layers, dead.float().mean(dim=1), strict=True)


def _stride(elements: int) -> int:
    """The distance of the elements of a sample: odd, since one that divides a tensor's sizes would see one column only."""
    return max(1, elements // SAMPLE) | 1


def awake_units(tensor: Tensor, axis: int) -> Tensor:
    """Which units are non-zero for any input, (units,), from a strided sample of the inputs.

    Args:
        tensor: An output, or the gradient of one, of any shape with at least one dimension.
        axis: The dimension of the units.
    """
    stride = _stride(tensor.numel() // 4)
    # NaN is not silence: it counts as different from zero, which a maximum of magnitudes would not tell.
    if tensor.dim() == 2 and stride == 1:
        return tensor.detach().any(dim=1 - axis)
    by_unit = tensor.detach().movedim(axis, 0).flatten(1) if tensor.dim() > 1 else tensor.detach().unsqueeze(1)  # (units, inputs)
    return by_unit[:, ::stride].any(dim=1)


def closed_share(module: nn.Module, grad_output: Tensor, grad_input: Tensor) -> Tensor:
    """The share of elements whose local derivative is under ``CLOSED`` of its peak, of those that a gradient reached.

    Args:
        module: An elementwise activation.
        grad_output: dL/da, any shape.
        grad_input: dL/dz, the same shape.

    Returns:
        Shape (); NaN where no gradient arrived at all.
    """
    stride = _stride(grad_output.numel())
    arrived, passed = grad_output.detach(), grad_input.detach()
    if stride > 1:
        arrived, passed = arrived.reshape(-1)[::stride], passed.reshape(-1)[::stride]
    arrived, passed = arrived.abs(), passed.abs()
    reached = arrived > 0
    peak: float | Tensor
    if type(module) in PEAKS:
        peak = PEAKS[type(module)]
    else:  # a module of somebody's own: the widest that any of its valves is open
        peak = torch.where(reached, passed / arrived, torch.zeros_like(arrived)).amax()
    return ((passed <= CLOSED * peak * arrived) & reached).sum() / reached.sum()


def confident_share(probabilities: Tensor, dim: int) -> Tensor:
    """The share of a softmax's distributions whose largest probability is above ``CONFIDENT``, of shape ()."""
    largest = probabilities.detach().amax(dim).reshape(-1)
    return (largest[:: _stride(largest.numel())] > CONFIDENT).float().mean()


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
    return weight.dim() > 1 and weight.shape[0] >= MIN_ROWS and weight.is_floating_point() and weight.layout == torch.strided


def channels_first(module: nn.Module) -> bool:
    """Whether a module puts its units into dimension 1: convolutions and the norms that follow them."""
    return isinstance(module, (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm))
