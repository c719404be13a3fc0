"""For users' own test suites: a network that trains healthily, or an ``AssertionError`` that names the sick layer.

For authors of detectors: ``Example`` makes synthetic histories, and ``judge`` runs detectors over them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradwatch.detectors import Detector, Example, base, raise_error
from gradwatch.errors import InvalidSetting
from gradwatch.incidents import tell
from gradwatch.records import Finding, Record
from gradwatch.watch import watch


def assert_healthy(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    loss_fn: Callable[[Any, Any], Tensor],
    *,
    steps: int | None = None,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
    every: int = 10,
    detectors: Sequence[Detector] | None = None,
) -> None:
    """Trains a copy of a model for some steps, and fails where something is found. The model itself is left as it is.

    Args:
        model: Any module; it is called with the first part of each batch.
        batches: (input, target) pairs, repeated from the start where there are fewer than ``steps``.
        loss_fn: Of the model's output and the target, to a scalar.
        steps: Optimizer steps; None: one for each batch. Most kinds need 20 to 40 steps to be told, a stagnant loss 90.
        optimizer: Makes the optimizer from parameters; None: AdamW with a learning rate of 1e-3.
        every: As in ``gradwatch.watch``.
        detectors: What to look for; None: ``gradwatch.detectors.DEFAULT``.

    Raises:
        AssertionError: Something was found; the message names the layer, the reason and the remedy of every incident.
        InvalidSetting: There is no batch.
    """
    trained = copy.deepcopy(model)
    moves = (optimizer or _adamw)(parameter for parameter in trained.parameters() if parameter.requires_grad)
    with watch(trained, moves, every=every, detectors=detectors, on_finding=_keep) as observed:
        for inputs, target in islice(_repeat(batches, once=steps is None), steps):
            moves.zero_grad()
            loss = loss_fn(trained(inputs), target)
            observed.loss(loss)
            loss.backward()  # type: ignore[no-untyped-call]
            moves.step()
    if observed.findings:
        raise AssertionError("\n".join(["the training is not healthy:", *map(tell, observed.incidents)]))


def judge(records: Iterable[Record] | Example, *detectors: Detector) -> list[Finding]:
    """What detectors find in a run, real or synthetic. An error of a detector is raised here, not reported.

    Args:
        records: In order.
        detectors: Functions or objects, as ``gradwatch.watch`` takes them.
    """
    return base.judge(records.records() if isinstance(records, Example) else records, detectors, raise_error)


def _repeat(batches: Iterable[tuple[Any, Any]], *, once: bool) -> Iterator[tuple[Any, Any]]:
    kept = []
    for batch in batches:
        kept.append(batch)
        yield batch
    if not kept:
        raise InvalidSetting("batches is empty: give at least one (input, target) pair")
    while not once:
        yield from kept


def _adamw(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3)


def _keep(_finding: Finding) -> None:
    """Says nothing: the findings are read at the end."""
