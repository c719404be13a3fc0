"""The kernel of ``fused``, in a module of its own: Triton finds its language only among a module's globals."""

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def moments(x, out, size, parts, BLOCK: tl.constexpr, OCTAVES: tl.constexpr, FIRST: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201, N803
    """Writes the moments of part ``program_id`` of a flat tensor: every ``parts``-th block of it.

    Args:
        x: (size,), float32, float16 or bfloat16.
        out: (parts, 6 + OCTAVES), float64: sum, sum of squares, min, max, zeros, non-finite elements, elements in each octave.
        size: Elements.
        parts: Programs.
        BLOCK: Elements that a program takes at once, a power of two.
        OCTAVES: How many octaves are told apart, a power of two; 0: none.
        FIRST: The exponent of the first.
    """
    part = tl.program_id(0).to(tl.int64)  # a tensor may have more than 2**31 elements
    total = tl.zeros((BLOCK,), tl.float64)
    squares = tl.zeros((BLOCK,), tl.float64)
    low = tl.full((BLOCK,), float("inf"), tl.float32)
    high = tl.full((BLOCK,), float("-inf"), tl.float32)
    zeros = tl.zeros((BLOCK,), tl.int32)
    infinite = tl.zeros((BLOCK,), tl.int32)
    nans = tl.zeros((BLOCK,), tl.int32)
    if OCTAVES:
        counts = tl.zeros((2 * OCTAVES,), tl.int32)
    for start in range(part * BLOCK, size, parts * BLOCK):
        index = start + tl.arange(0, BLOCK)
        inside = index < size
        value = tl.load(x + index, mask=inside, other=0.0).to(tl.float32)
        wide = value.to(tl.float64)  # no square of a float32 leaves float64
        total += wide
        squares += wide * wide
        low = tl.minimum(low, tl.where(inside, value, float("inf")))
        high = tl.maximum(high, tl.where(inside, value, float("-inf")))
        zeros += ((value == 0.0) & inside).to(tl.int32)
        infinite += (tl.abs(value) == float("inf")).to(tl.int32)
        nans += (value != value).to(tl.int32)  # noqa: PLR0124  # only a NaN differs from itself
        if OCTAVES:
            stored = (value.to(tl.int32, bitcast=True) >> 23) & 255  # the exponent of a float32 as IEEE 754 stores it
            octave = tl.minimum(tl.maximum(stored - (127 + FIRST), 0), OCTAVES - 1)
            # Elements of no octave, and those beyond the end, are counted behind the others.
            counts += tl.histogram(tl.where((value != 0.0) & (stored != 255), octave, OCTAVES), 2 * OCTAVES)
    missing = tl.sum(nans, axis=0)
    # A minimum of numbers and a NaN may be either, by the device; here it is the NaN.
    spoilt = tl.where(missing > 0, float("nan"), 0.0)
    row = out + part * (6 + OCTAVES)
    tl.store(row, tl.sum(total, axis=0))
    tl.store(row + 1, tl.sum(squares, axis=0))
    tl.store(row + 2, (tl.min(low, axis=0) + spoilt).to(tl.float64))
    tl.store(row + 3, (tl.max(high, axis=0) + spoilt).to(tl.float64))
    tl.store(row + 4, tl.sum(zeros, axis=0).to(tl.float64))
    tl.store(row + 5, (tl.sum(infinite, axis=0) + missing).to(tl.float64))
    if OCTAVES:
        column = tl.arange(0, 2 * OCTAVES)
        tl.store(row + 6 + column, counts.to(tl.float64), mask=column < OCTAVES)
