"""All moments of a tensor on a GPU in one pass over it: a Triton kernel.

Plain operations read a tensor five to seven times, once for each moment. The kernel reads it once and leaves the moments of as
many parts as there are programs, to be joined with those of other tensors. Triton ships with torch where torch is built for a
GPU; where it is missing, or cannot compile, ``usable`` says so and plain operations do the work.
"""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor

from gradwatch import octaves

log = logging.getLogger("gradwatch")

BLOCK = 1024
"""Elements that a program takes at once: 8 a thread of the usual 128, so that all accumulators stay in registers."""

PARTS = 256
"""Programs at most: about two for each multiprocessor of a data-centre GPU (108 on an A100, 132 on an H100). More would only leave
more to join."""

BLOCKS_A_PART = 4
"""Blocks of a tensor that are worth a program of their own."""

DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16})


def applies(tensor: Tensor) -> bool:
    """Whether the kernel can measure a tensor: on a GPU, of a usual dtype, without gaps or repeats in its memory."""
    return tensor.is_cuda and type(tensor) is Tensor and tensor.dtype in DTYPES and _is_dense(tensor) and usable(tensor.device)


def _is_dense(tensor: Tensor) -> bool:
    if tensor.is_contiguous() or (tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)):
        return True
    return tensor.dim() >= 2 and tensor.transpose(-1, -2).is_contiguous()  # the gradient of a weight often is a transpose


@cache
def usable(device: torch.device) -> bool:
    """Whether the kernel compiles and runs on a device. The first question costs a compilation, once a process."""
    try:
        partial(torch.ones(1, device=device))
    except Exception as error:  # noqa: BLE001  # no Triton, no C compiler, an old GPU: whatever it is, plain operations do the work
        log.info("tensors on %s are measured by plain operations: the fused kernel cannot be used (%s)", device, error)
        return False
    return True


def partial(tensor: Tensor, *, histogram: bool = False) -> Tensor:
    """Measures the parts of a tensor; does not wait for the device.

    Args:
        tensor: One that ``applies``; float32, float16 or bfloat16, of any shape.
        histogram: Also count the elements in each octave.

    Returns:
        (parts, columns), float64: sum, sum of squares, min, max, zeros, non-finite elements of each part, and with a histogram a
        column for each of ``octaves.COUNTED``. ``joined`` makes the tensor's own of them. A part with a NaN has min and max NaN.
    """
    from gradwatch.fused_kernel import moments

    size = tensor.numel()
    wanted = -(-size // (BLOCK * BLOCKS_A_PART))
    parts = min(PARTS, 1 << (wanted - 1).bit_length())  # powers of two: tensors with equally many are joined together
    counted = len(octaves.COUNTED) if histogram else 0
    out = torch.empty((parts, 6 + counted), dtype=torch.float64, device=tensor.device)
    moments[(parts,)](tensor, out, size, parts, BLOCK=BLOCK, OCTAVES=counted, FIRST=octaves.COUNTED.start)
    return out


def joined(parts: Tensor) -> Tensor:
    """Moments of whole tensors from those of their parts.

    Args:
        parts: (tensors, parts, columns), as ``partial`` leaves them.

    Returns:
        (tensors, columns), float64: sum, Euclidean norm, min, max, zeros, non-finite elements, and what else was counted.
    """
    added = parts.sum(1)
    added[:, 1] = added[:, 1].sqrt()
    added[:, 2], added[:, 3] = parts[..., 2].amin(1), parts[..., 3].amax(1)
    return added
