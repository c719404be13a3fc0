"""Three deep networks, trained on scanned digits under a watch."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from gradwatch import moments, names
from gradwatch.history import History
from gradwatch.records import Finding, Incident
from gradwatch.statistics import Values
from gradwatch.watch import watch

DEPTH = 10
WIDTH = 64
BATCH = 64
STEPS = 440
"""Twenty epochs, in which the healthy network gets from 10 % to about 95 % of the test images right."""

TRAINING_IMAGES = 1437
"""Four of five; the others test."""


@dataclass(frozen=True)
class Plan:
    """What makes one of the networks.

    Attributes:
        name: Its folder of event files.
        title: What people read.
        activation: Between two layers.
        he: Whether weights are drawn as He et al. (2015) derive it for ReLU, with biases of zero; else as torch does by default.
        learning_rate: Of plain SGD.
        steps: Optimizer steps at most.
    """

    name: str
    title: str
    activation: type[nn.Module]
    he: bool
    learning_rate: float
    steps: int = STEPS


PLANS = (
    Plan("sigmoid", "Sigmoid", nn.Sigmoid, he=False, learning_rate=0.1),
    Plan("relu", "ReLU, He initialisation", nn.ReLU, he=True, learning_rate=0.03),
    Plan("relu-fast", "ReLU, 50 times the learning rate", nn.ReLU, he=True, learning_rate=1.5),
)


class Audience(Protocol):
    """Who looks on while the networks are trained."""

    def step(self, plan: Plan, done: int) -> None:
        """Hears how many steps are done, of at most ``plan.steps``; 0 when a training begins."""

    def found(self, plan: Plan, step: int, finding: Finding) -> None:
        """Hears of a finding, in the step in which gradwatch raises it."""


@dataclass(frozen=True)
class Run:
    """One training, as gradwatch recorded it.

    Attributes:
        plan: What was trained.
        logdir: Where its event files are.
        history: A record of every step, and the findings.
        incidents: The findings, grouped under their first cause.
        raised: (step in progress, finding) for each time that gradwatch spoke.
        accuracy: Share of the test images that the trained network gets right.
    """

    plan: Plan
    logdir: Path
    history: History
    incidents: list[Incident]
    raised: list[tuple[int, Finding]]
    accuracy: float

    @property
    def broke_at(self) -> int | None:
        """The first step whose loss is not finite; None where all are."""
        steps, losses = self.history.losses()
        return int(steps[~np.isfinite(losses)][0]) if not np.isfinite(losses).all() else None

    @cached_property
    def finite(self) -> History:
        """The records before the one in which gradwatch found a value that is not finite."""
        end = min((finding.first_step for finding in self.history.findings if finding.kind == "non_finite"), default=math.inf)
        history = History()
        for record in self.history:
            if record.step < end:
                history.append(record)
        return history

    def gradients(self) -> tuple[list[str], Values]:
        """The layers in forward order, and the rms of each weight matrix's gradient while finite, (steps, layers)."""
        sites = self.finite[0].sites
        matrices = [index for index, site in enumerate(sites) if site.tensor == "parameter_grad" and len(site.shape) > 1]
        rms = np.array([record.rows[matrices, moments.RMS] for record in self.finite], np.float64)
        return [names.owner(sites[index].layer) for index in matrices], rms

    @property
    def verdict(self) -> Finding | None:
        """The first critical finding, or the first at all; None where there is none."""
        findings = self.history.findings
        return next((finding for finding in findings if finding.severity == "critical"), findings[0] if findings else None)

    @property
    def dies_at(self) -> str | None:
        """The layer at which, on the way back from the loss, gradwatch found the gradient to vanish; None where it did not."""
        layers, _ = self.gradients()
        for finding in self.history.findings:
            if finding.kind == "vanishing_gradient":
                return layers[layers.index(finding.layer) + int(finding.evidence["starved_matrices"]) - 1]
        return None


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    # Matrices of 64 x 64 gain nothing from a second thread, and with one the sums do not depend on the number of cores.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def train(plan: Plan, seed: int, logdir: Path, audience: Audience | None = None) -> Run:
    """Trains one network for its steps, or until its loss is not finite.

    Args:
        plan: What to train.
        seed: Of ``torch.manual_seed``.
        logdir: Where to write event files.
        audience: Who looks on.
    """
    torch.manual_seed(seed)
    images, labels, test_images, test_labels = _digits()
    batches = _batches(images, labels)
    net = network(plan)
    optimizer = torch.optim.SGD(net.parameters(), lr=plan.learning_rate)
    loss_fn = nn.CrossEntropyLoss()
    step = 0
    raised: list[tuple[int, Finding]] = []

    def hear(finding: Finding) -> None:
        raised.append((step, finding))
        if audience:
            audience.found(plan, step, finding)

    with watch(net, optimizer, loss_fn=loss_fn, logdir=logdir, every=1, on_finding=hear) as observer:
        for step in range(plan.steps):
            if audience:
                audience.step(plan, step)
            x, y = next(batches)
            optimizer.zero_grad()
            loss = loss_fn(net(x), y)
            loss.backward()
            optimizer.step()
            if not loss.isfinite():
                break
    if audience:
        audience.step(plan, step + 1)
    with torch.no_grad():
        accuracy = float((net(test_images).argmax(dim=1) == test_labels).float().mean())
    return Run(plan, logdir, observer.history, observer.incidents, raised, accuracy)


def network(plan: Plan) -> nn.Sequential:
    """The network of a plan; its layers are called fc1, relu1, fc2, ..., fc10."""
    net = nn.Sequential()
    sizes = [64, *[WIDTH] * (DEPTH - 1), 10]  # from 8 x 8 pixels to 10 digits
    for number, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes), start=1):
        layer = nn.Linear(fan_in, fan_out)
        if plan.he:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        net.add_module(f"fc{number}", layer)
        if number < DEPTH:
            net.add_module(f"{plan.activation.__name__.lower()}{number}", plan.activation())
    return net


def _digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (n, 64) of mean 0 and standard deviation 1 with their labels (n,), to train on and to test with."""
    pixels, digits = load_digits(return_X_y=True)
    order = torch.randperm(len(pixels))
    images, labels = torch.tensor(pixels, dtype=torch.float32)[order], torch.tensor(digits)[order]
    images = (images - images[:TRAINING_IMAGES].mean()) / images[:TRAINING_IMAGES].std()
    return images[:TRAINING_IMAGES], labels[:TRAINING_IMAGES], images[TRAINING_IMAGES:], labels[TRAINING_IMAGES:]


def _batches(images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Full batches without end, in a new order every epoch."""
    while True:
        order = torch.randperm(len(images))
        for start in range(0, len(images) - BATCH + 1, BATCH):
            rows = order[start : start + BATCH]
            yield images[rows], labels[rows]
