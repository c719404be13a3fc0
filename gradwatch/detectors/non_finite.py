"""A NaN or an infinity: where it came from.

What it is mistaken for: an overflow under loss scaling, which the scaler answers by skipping the step and by a smaller factor.
Such a record is marked ``skipped``: a scaler begins with some, and has one now and then when it tries a larger factor. They are
reported only where no factor helps. A NaN spreads: downstream through forward, upstream through backward, and one step later
through every weight. The origin is therefore sought in the order in which a step computes: the first output in forward order;
else the loss; else, among the gradients, the one nearest to the loss, since a gradient is computed from those after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradwatch import moments
from gradwatch.detectors.base import Example, Judgement
from gradwatch.history import History
from gradwatch.records import Finding
from gradwatch.trends import Trends

ADVICE = {
    "activation": (
        "Look at this layer's input and at the operation itself: a log, a division, a square root, an exp or a power outside its "
        "domain; clamp its argument. In float16 a value above 65504 is infinite: use bfloat16, or keep this layer in float32. If "
        "it is the first layer, check the batch for NaN (pandas and image decoders both write them)."
    ),
    "loss": (
        "Every output is finite and the loss is not: look at the criterion. A log of 0, or BCELoss and NLLLoss fed with values "
        "that are no probabilities: use BCEWithLogitsLoss or CrossEntropyLoss on logits, which are computed stably (PyTorch "
        "documentation of BCEWithLogitsLoss). Check the targets for NaN."
    ),
    "gradient": (
        "Forward is finite and backward is not: a derivative without a finite value, such as sqrt or a norm at 0, or 0/0 that "
        "torch.where hides in forward but not in backward (pytorch/pytorch#68425). Add an epsilon inside the root, or make the "
        "argument safe before the operation. torch.autograd.detect_anomaly names the line."
    ),
    "weight": "The update itself was not finite: look at the optimizer's epsilon and at the learning rate.",
}

OVERFLOW = (
    "The scaler skips these steps without a word, and the network learns nothing from them. Find what is not finite before it is "
    "scaled: watch with every=1, or torch.autograd.detect_anomaly. Then keep that layer in float32 (torch.autocast(..., "
    "enabled=False) around it), or train in bfloat16, which has the range of float32 and needs no scaler (Kalamkar et al. 2019). "
)

UNSAMPLED = (
    "Look at the batch of this step first, and run it again with gradwatch.watch(..., every=1) or gradwatch.trace, which name the "
    "layer. "
)


@dataclass(frozen=True)
class NonFinite(Judgement):
    """NaN or Inf in an activation, the loss, a gradient or a weight; said at once.

    There is no threshold: IEEE 754 defines what is finite. A count of one element is enough, since the next optimizer step
    spreads it.
    """

    reads_broken: ClassVar[bool] = True
    EXAMPLES: ClassVar = {
        "healthy: huge but finite": Example({("fc", "activation"): [1e30] * 4, ("fc.weight", "parameter_grad"): [1e-30] * 4}),
        "sick: the second layer's output": Example(
            {
                ("fc1", "activation"): [1.0, 1.0, 1.0],
                ("fc2", "activation"): [1.0, 1.0, float("inf")],
                ("fc3", "activation"): [1.0, 1.0, float("inf")],
            }
        ),
        "sick: a gradient without a finite value": Example(
            {
                ("fc1.weight", "parameter_grad"): [1.0, float("inf")],
                ("fc2.weight", "parameter_grad"): [1.0, float("inf")],
                ("fc3.weight", "parameter_grad"): [1.0, 1.0],
            }
        ),
    }

    def ignores_calm(self, _trends: Trends) -> bool:
        """It does: what is calm is finite."""
        return True

    def __call__(self, history: History) -> Iterator[Finding]:
        """Yields the origin, where the newest record holds anything that is not finite."""
        if not history.trends.broken:
            return
        record = history[-1]
        layer, where, elements, rank = _origin(history)
        seen = f"{elements:.0f} elements of its" if np.isfinite(elements) else "its"
        thing = {"activation": f"{seen} output", "loss": "the loss", "gradient": f"{seen} gradient", "weight": f"{seen} values"}
        if record.full:
            known = "everything computed before it in that step was finite"
        else:
            known = "outputs were not sampled at this step, so that it may have begun in any layer's forward"
        yield Finding(
            "non_finite",
            layer,
            record.step,
            record.step,
            "critical",
            {"elements": elements, "loss": float("nan") if record.loss is None else record.loss}
            | ({} if rank is None else {"rank": rank}),
            f"{thing[where]} became NaN or infinite at step {record.step}{'' if rank is None else f' on rank {rank}'}; {known}",
            ADVICE[where] if record.full else UNSAMPLED + ADVICE[where],
        )


@dataclass(frozen=True)
class Overflow(Judgement):
    """Steps that are skipped since gradients are not finite, for a reason that no loss scale removes.

    Attributes:
        floor: A factor of the loss scaler under which an overflow is none of its doing. One that starts at 65536 gets there by 21
            halvings; PyTorch's documentation of GradScaler calls a factor below 1 a sign that something is wrong, and what needs
            1/16 has gradients of a million without any factor.
        repeats: Skipped steps in a row whose very loss is not finite, which is never scaled: not a bad batch any more.
        passes: Backward passes without a single step where no factor is known; of 65536 no power of two is left after 17.
        release: 2000 records: the default interval in which a scaler tries a larger factor. What recurs within it is the same.
    """

    release: int = 2000
    floor: float = 2.0**-4
    repeats: int = 5
    passes: int = 32

    reads_skipped: ClassVar[bool] = True
    reads_broken: ClassVar[bool] = True
    WIDER: ClassVar = {"floor": 0.5, "repeats": 2, "passes": 2}
    EXAMPLES: ClassVar = {
        "healthy: the factor is found, and a larger one tried": Example(
            {("a.weight", "parameter_grad"): [float("inf")] * 9 + [1.0] * 20 + [float("inf")] + [1.0] * 9},
            losses=[1.0] * 39,
            scales=[2.0 ** (16 - step) for step in range(9)] + [2.0**7] * 20 + [2.0**8] + [2.0**7] * 9,
            skipped=[True] * 9 + [False] * 20 + [True] + [False] * 9,
        ),
        "healthy: a batch with a NaN now and then": Example(
            {("a.weight", "parameter_grad"): ([float("nan")] + [1.0] * 9) * 5},
            losses=([float("nan")] + [1.0] * 9) * 5,
            scales=[2.0 ** (16 - step // 10) for step in range(50)],
            skipped=([True] + [False] * 9) * 5,
        ),
        "sick: no factor is small enough": Example(
            {("a.weight", "parameter_grad"): [float("inf")] * 40},
            losses=[1.0] * 40,
            scales=[2.0 ** (16 - step) for step in range(40)],
            skipped=True,
        ),
        "sick: the loss itself": Example(
            {("a.weight", "parameter_grad"): [float("nan")] * 10},
            losses=[float("nan")] * 10,
            scales=[2.0 ** (16 - step) for step in range(10)],
            skipped=True,
        ),
    }

    def ignores_calm(self, _trends: Trends) -> bool:
        """It does: a calm record is one of a step that was taken."""
        return True

    def __call__(self, history: History) -> Iterator[Finding]:
        """Yields the origin, where the newest record is of a step that was skipped and no loss scale would have helped."""
        record, trends = history[-1], history.trends
        if not trends.overflows:
            return
        if record.loss is not None and not np.isfinite(record.loss):
            if trends.overflows < self.repeats:
                return
            why = "though the loss is never scaled, it is not finite either"
        elif record.scale < self.floor:
            why = f"although the loss scale has fallen to {record.scale:.1e}"
        elif np.isnan(record.scale) and trends.idle >= self.passes:
            why = f"in each of {trends.idle} backward passes so far"
        else:
            return
        layer, where, elements, _ = _origin(history)
        yield Finding(
            "non_finite",
            layer,
            record.step,
            record.step,
            "critical",
            {"skipped_in_a_row": trends.overflows, "scale": record.scale, "elements": elements},
            f"gradients overflow and the step is skipped, {why}",
            OVERFLOW + ADVICE[where],
        )


def _origin(history: History) -> tuple[str, str, float, int | None]:
    """The layer where it began, what of it (a key of ``ADVICE``), how many of its elements are not finite, and the first such rank.

    The rank is None where one process recorded alone, or where all of them hold the same.
    """
    record, trends = history[-1], history.trends
    counts = record.rows[:, moments.NONFINITE]
    bad = (record.rows[:, moments.COUNT] > 0) & (~np.isfinite(record.rows[:, moments.RMS]) | (counts > 0))
    mask = bad & trends.harmless[trends.where(record.sites)]  # what was infinite before and did no harm is not the cause now
    if (bad & ~mask).any():
        bad &= ~mask
    at = {index: site.tensor for index, site in enumerate(record.sites) if bad[index]}

    def first(*tensors: str, last: bool = False) -> int | None:
        of_them = [index for index, tensor in at.items() if tensor in tensors]
        return (of_them[-1] if last else of_them[0]) if of_them else None

    def found(index: int, layer: str, where: str) -> tuple[str, str, float, int | None]:
        rank = -1 if record.ranks is None else int(record.ranks[index])
        return layer, where, float(counts[index]), None if rank < 0 else rank

    index = first("activation")
    if index is not None:
        return found(index, record.sites[index].layer, "activation")
    if record.loss is not None and not np.isfinite(record.loss):
        return "loss", "loss", 1.0, None
    index = first("activation_grad", "input_grad", "parameter_grad", last=True)
    if index is not None:
        return found(index, record.sites[index].owner, "gradient")
    index = first("parameter", "update")
    assert index is not None, "a broken record has a bad site or a bad loss"
    return found(index, record.sites[index].owner, "weight")
