"""``gradwatch demo``: one neuron, and three ten-layer networks that are trained on scanned digits.

The networks share everything but what is under test: the first has sigmoids, the second has ReLUs and He initialisation, and
the third is the second with too large a learning rate. Nothing about the outcome is known here: what is said is what gradwatch
found. Needs the extra ``demo``.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gradwatch.demo.neuron import single_neuron
from gradwatch.demo.picture import draw
from gradwatch.demo.training import PLANS, Audience, Plan, Run, train
from gradwatch.errors import LogdirError

__all__ = ["Demo", "run"]


@dataclass(frozen=True)
class Demo:
    """All that the demo brought about.

    Attributes:
        seed: What the random numbers began with.
        logdir: Its own folder, with a folder of event files for each run.
        picture: The gradient's flow through the layers, PNG.
        neuron: Quantity → value, as recorded from the single neuron.
        runs: One for each plan.
    """

    seed: int
    logdir: Path
    picture: Path
    neuron: dict[str, float]
    runs: tuple[Run, ...]


def run(logdir: str | Path = "runs/demo", seed: int = 0, audience: Audience | None = None, plans: Sequence[Plan] = PLANS) -> Demo:
    """Trains everything, in a new numbered folder of ``logdir``: what is there already stays as it is.

    Args:
        logdir: Made where it is missing.
        seed: Of the weights, the batches, and the choice of the test images. The caller's random numbers are not touched.
        audience: Who looks on.
        plans: What to train beside the neuron, three networks at most.

    Returns:
        What was measured, found and written.

    Raises:
        LogdirError: The folder cannot be made.
    """
    folder = _fresh_folder(Path(logdir))
    with torch.random.fork_rng(devices=[]):
        runs = tuple(train(plan, seed, folder / plan.name, audience) for plan in plans)
    picture = folder / "gradient_flow.png"
    draw(runs, picture)
    return Demo(seed, folder, picture, single_neuron(), runs)


def _fresh_folder(logdir: Path) -> Path:
    """``logdir/1``, or the number after the highest one there."""
    try:
        logdir.mkdir(parents=True, exist_ok=True)
        taken = (int(entry.name) for entry in logdir.iterdir() if entry.name.isdecimal())
        for number in itertools.count(max(taken, default=0) + 1):
            with contextlib.suppress(FileExistsError):  # a demo that began at the same time was first
                (logdir / str(number)).mkdir()
                break
    except OSError as error:
        raise LogdirError(f"the log directory {str(logdir)!r} cannot be written: {error}; give one that can") from error
    return logdir / str(number)
