"""The histogram of a tensor's magnitudes: how many of its elements lie in each octave, from a power of two to the next.

A float's exponent is its octave, so that counting takes no logarithm. Zeros and elements that are not finite lie in none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Counts = npt.NDArray[np.float64]

EXPONENTS = range(-48, 16)
"""The exponents that are told apart: octave ``e`` holds magnitudes from 2**e to 2**(e + 1). The first one also holds whatever is
smaller, and the last one whatever is larger. float16 ends at 2**16, its normal numbers at 2**-14 and its smallest at 2**-24;
bfloat16 has the range of float32, of which a gradient has rarely more than this in use."""

COUNTED = range(EXPONENTS.start, 80)
"""What is told apart while it is counted, of which ``narrowed`` makes that: a loss scaler lifts gradients by a factor of 2**16 and
more, which is divided out when it is known."""

_BIAS, _INFINITE = 127, 255  # of the exponent of a float32, IEEE 754: what is stored for 2**0, and for no finite number


def count(x: Tensor) -> Tensor:
    """Counts the elements in each octave, without waiting for the tensor's device.

    Args:
        x: Real and dense, of any shape.

    Returns:
        (len(COUNTED),), float64, where the tensor is.
    """
    return of_rows(x.reshape(1, -1))[0]


def of_rows(x: Tensor) -> Tensor:
    """Counts those of each row of a matrix.

    Args:
        x: (rows, elements), as for ``count``.

    Returns:
        (rows, len(COUNTED)), float64.
    """
    narrow = _narrow(x).contiguous()
    stored = narrow.view(torch.int32).bitwise_right_shift(23).bitwise_and_(_INFINITE)
    size, rows = _INFINITE + 1, len(x)
    if rows > 1:
        stored += size * torch.arange(rows, dtype=torch.int32, device=x.device)[:, None]
    if type(x) is Tensor and x.is_cpu:
        counts = torch.bincount(stored.view(-1), minlength=size * rows).double().view(rows, size)
    else:  # `bincount` waits for the largest place, which a fake tensor does not have
        counts = torch.zeros(size * rows, dtype=torch.float64, device=x.device)
        counts = counts.index_put_((stored.view(-1).long(),), counts.new_ones(()), accumulate=True).view(rows, size)
    zeros = torch.eq(narrow, 0, out=torch.empty_like(narrow)).sum(1, keepdim=True, dtype=torch.float64)
    first, last = COUNTED.start + _BIAS, COUNTED.stop - 1 + _BIAS
    smaller = counts[:, : first + 1].sum(1, keepdim=True) - zeros  # zeros are stored with the exponent of the smallest numbers
    larger = counts[:, last:_INFINITE].sum(1, keepdim=True)
    return torch.cat([smaller, counts[:, first + 1 : last], larger], 1)


def _narrow(x: Tensor) -> Tensor:
    """As float32; what is finite, or other than zero, in float64 stays so."""
    if x.dtype is not torch.float64:
        return x.float()
    ends = torch.finfo(torch.float32)
    narrow = torch.where(x.isfinite(), x.clamp(ends.min, ends.max), x).float()
    return torch.where((narrow == 0) & (x != 0), ends.tiny, narrow)


def added(counts: Counts, groups: Sequence[int] | npt.NDArray[np.intp], size: int) -> Counts:
    """Adds up the counts that share a group.

    Args:
        counts: (rows, octaves).
        groups: The group of each row, each in ``range(size)``.
        size: Number of groups.

    Returns:
        (size, octaves); NaN for a group of which no row, or not every row, was counted.
    """
    group = np.asarray(groups, np.intp)
    out = np.zeros((size, counts.shape[1]))
    np.add.at(out, group, counts)
    out[np.bincount(group, minlength=size) == 0] = np.nan
    return out


def narrowed(counts: Counts, factor: float = 1.0) -> Counts:
    """The counts of the same elements divided by a factor, told apart as far as records do.

    Args:
        counts: (rows, len(COUNTED)).
        factor: Of a loss scaler, a power of two as a rule; else the octaves are moved by the nearest one.

    Returns:
        (rows, len(EXPONENTS)); NaN where the factor is not a positive number.
    """
    if not 0 < factor < np.inf:
        return np.full((len(counts), len(EXPONENTS)), np.nan)
    place = np.clip(np.arange(len(COUNTED)) - round(np.log2(factor)), 0, len(EXPONENTS) - 1)
    out = np.zeros((len(counts), len(EXPONENTS)))
    np.add.at(out.T, place, counts.T)
    return out
