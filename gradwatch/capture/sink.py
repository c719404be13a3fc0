"""An identity that measures what passes through it and what comes back, inside the graphs of ``torch.compile``.

A compiler traces a hook into its graph, and of Python nothing is left there: no list grows, and no hook on a tensor fires. What a
graph does hand out are the gradients of its inputs. So an identity is put behind a layer, whose second input is a private leaf,
and what the identity measures is that leaf's gradient: no graph break, nothing that a recomputation could count twice, and
nothing where ``torch.autograd.grad`` asks for other gradients.

Gradients of several calls add up, and so do sums and counts. A least and a greatest element do not: they are known where a record
has one call of a layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradwatch.moments import SUMS

CLOSED, REACHED, PLACE = range(2 * SUMS, 2 * SUMS + 3)
"""What a leaf's gradient holds behind the sums of what passed and of what came back: elements with a closed valve, elements that a
gradient reached at all, and the sink's number in the order of forward, once for each call."""

SIZE = PLACE + 1


def through(
    x: Tensor, leaf: Tensor, place: int, *, flat: Tensor | None = None, passing: bool = True, zeros: bool = False
) -> Tensor:
    """Returns an equal tensor, through which gradients come back unchanged.

    Args:
        x: Any shape, not empty.
        leaf: (SIZE,), of the dtype in which sums are taken. What is measured becomes its gradient.
        place: Where this is in the order of forward.
        flat: Where a valve is closed, in the shape of ``x``; None: not known.
        passing: Whether ``x`` is measured; else only its gradient.
        zeros: Whether zeros are counted.
    """
    return Sink.apply(x, leaf, flat, place, passing, zeros)  # type: ignore[no-any-return, no-untyped-call]


class Sink(torch.autograd.Function):
    """The identity behind ``through``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, leaf: Tensor, flat: Tensor | None, place: int, passing: bool, zeros: bool) -> Tensor:
        """Measures what passes, and keeps it for backward: only a pass that comes back counts."""
        sums = _sums(x, leaf.dtype, zeros=zeros) if passing else torch.zeros_like(leaf[:SUMS])
        ctx.place, ctx.has_valve = place, flat is not None
        ctx.save_for_backward(*((sums,) if flat is None else (sums, flat)))
        return x.clone()  # a view would keep what comes behind it from working in place

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Measures what comes back."""
        passed, arrived = ctx.saved_tensors[0], grad.detach()
        valve = torch.zeros_like(passed[:2])
        if ctx.has_valve:
            reached = arrived != 0
            valve = torch.stack([(reached & ctx.saved_tensors[1]).sum(), reached.sum()]).to(passed.dtype)
        place = torch.full_like(passed[:1], ctx.place)
        measured = torch.cat([passed, _sums(arrived, passed.dtype, zeros=False), valve, place])
        return grad, measured, None, None, None, None


def _sums(x: Tensor, dtype: torch.dtype, *, zeros: bool) -> Tensor:
    """What ``moments.sum_rows`` takes, shape (SUMS,)."""
    wide = (torch.view_as_real(x.resolve_conj()) if x.is_complex() else x).to(dtype)
    one = torch.ones((), dtype=dtype, device=x.device)
    zero = (wide == 0).sum() if zeros else one * float("nan")
    # x - x is 0 where x is finite and NaN elsewhere.
    parts = [one, one * wide.numel(), wide.sum(), wide.square().sum(), wide.amin(), wide.amax(), zero, (wide - wide != 0).sum()]
    return torch.stack([part.to(dtype) for part in parts])
