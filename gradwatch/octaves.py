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

_BIAS, _INFINITE = 127, 255  # of the exponent of a float32, IEEE 754: what is stored for 2**0, and for no finite number


def count(x: Tensor) -> Tensor:
    """Counts the elements in each octave, without waiting for the tensor's device.

    Args:
        x: Real and dense, of any shape. float64 is counted as the float32 next to it.

    Returns:
        (len(EXPONENTS),), float64, where the tensor is.
    """
    return of_rows(x.reshape(1, -1))[0]


def of_rows(x: Tensor) -> Tensor:
    """Counts those of each row of a matrix.

    Args:
        x: (rows, elements), as for ``count``.

    Returns:
        (rows, len(EXPONENTS)), float64.
    """
    narrow = x.float().contiguous()
    stored = narrow.view(torch.int32).bitwise_right_shift(23).bitwise_and_(_INFINITE)
    octave = (stored - (_BIAS + EXPONENTS.start)).clamp_(0, len(EXPONENTS) - 1)
    # A float64 may be finite, or other than zero, where the float32 next to it is not.
    infinite = ~x.isfinite() if x.dtype is torch.float64 else stored == _INFINITE
    octave.masked_fill_((x == 0) | infinite, len(EXPONENTS))
    size = len(EXPONENTS) + 1
    place = octave + size * torch.arange(len(x), dtype=torch.int32, device=x.device)[:, None]
    if type(x) is Tensor and x.is_cpu:
        counts = torch.bincount(place.view(-1), minlength=size * len(x)).double()
    else:  # `bincount` waits for the largest place, which a fake tensor does not have
        counts = torch.zeros(size * len(x), dtype=torch.float64, device=x.device)
        counts.index_put_((place.view(-1).long(),), counts.new_ones(()), accumulate=True)
    return counts.view(len(x), size)[:, :-1]


def added(counts: Counts, groups: Sequence[int] | npt.NDArray[np.intp], size: int) -> Counts:
    """Adds up the counts that share a group.

    Args:
        counts: (rows, len(EXPONENTS)).
        groups: The group of each row, each in ``range(size)``.
        size: Number of groups.

    Returns:
        (size, len(EXPONENTS)); NaN for a group of which no row, or not every row, was counted.
    """
    group = np.asarray(groups, np.intp)
    out = np.zeros((size, counts.shape[1]))
    np.add.at(out, group, counts)
    out[np.bincount(group, minlength=size) == 0] = np.nan
    return out


def divided(counts: Counts, factor: float) -> Counts:
    """The counts of the same elements divided by a factor, as exact as that is a power of two.

    Args:
        counts: (rows, len(EXPONENTS)).
        factor: Positive.
    """
    by = int(np.clip(np.rint(np.log2(factor)), -len(EXPONENTS), len(EXPONENTS)))
    place = np.clip(np.arange(len(EXPONENTS)) - by, 0, len(EXPONENTS) - 1)
    out = np.zeros_like(counts)
    np.add.at(out.T, place, counts.T)
    return out
