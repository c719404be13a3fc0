"""docs/performance.md, made of what was measured and of what stays true whatever the figures."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path

import torch

from benchmarks.footprint import MEMORY_STEPS
from benchmarks.rivals import RIVALS

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"

MISSING = "Not measured in this run."


def machine() -> str:
    """The machine and the versions, as a sentence."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line.partition(":")[2].strip() for line in info.read_text(encoding="utf-8").splitlines() if "model name" in line]
        cpu = models[0] if models else cpu
    load = f"; load average before it {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{cpu}, {os.cpu_count()} cores, {platform.system()}; Python {platform.python_version()}, torch {torch.__version__}{load}"
    )


def versions() -> str:
    """The other tools and their versions, as a phrase."""
    found = []
    for package in dict.fromkeys(package for tool in RIVALS for package in tool.packages):
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{package} (not installed)")
    return ", ".join(found)


def page(described: str, sections: Mapping[str, str]) -> str:
    """The page.

    Args:
        described: The machine.
        sections: Name of a part → what was measured, in Markdown; one that was left out is said to be missing.
    """
    parts = {name: sections.get(name, MISSING) for name in PARTS}
    return TEXT.format(machine=described, versions=versions(), memory_steps=MEMORY_STEPS, **parts)


PARTS = ("ratios", "rivals", "memory", "disk", "modules", "elements", "steps", "profile", "verdicts")

TEXT = """# What watching costs

One command measures it, and writes this page:

```text
make bench
```

Measured on: {machine}.
Other tools: {versions}.

## Step time with a watch, over step time without

{ratios}

1.1 means that training takes a tenth longer. In brackets stands the same ratio of processor time, of all threads of the process.
Of the two cadences 10 is the default. All default detectors are on and an event file is written. Two floors stand beside them,
which a watch in Python cannot get under: *norms only*, `torch._foreach_norm` of the parameters' gradients at each step, for
`every=10`; and *copies only*, hooks that copy each output and its gradient at each step, for `every=1`. Nobody reads either.

Each network trains on one batch with AdamW. A training without a watch, the same once more, and one with each tool take turns, a
block of steps each, for as long as the measurement lasts, each in a process of its own. Of each place in the cycle of ten steps the
median over all blocks but the first counts, and the mean over the places is the time of a step. What the two trainings without a
watch differ by, from each other and from what they took at first, is the *noise*. The targets are the project's own; one counts as
reached only where the ratio and the noise together stay under it.

The tiny network is the worst case: its tensors are so small that a step is little but the overhead of calling PyTorch, and a watch
makes calls of its own for each of them. The larger the tensors, the less a watch weighs.

Where a target is missed, it is for these calls and not for arithmetic. A full record measures five tensors for each layer that has
weights (output, its gradient, weight, gradient, update; a bias has three of its own), and the hooks alone, before they compute
anything, take the share that stands under *copies only*. A step between full records costs little more than its norms, and a cycle
of ten holds one full record, whose rows are put in order, judged and written within the step after it.

## Beside other tools

Step time with each tool, over step time without, in the same run. In brackets: how many times the time that gradwatch adds at the
same cadence the tool adds; *over*, where what gradwatch adds is under the noise, by which is divided then. The project aims at 10
for each package, and at more than 1 for naive hooks.

{rivals}

- **naive hooks** take mean, standard deviation and largest magnitude of each output and its gradient to a Python number. Nothing is
  written.
- **`wandb.watch(log="all")`** makes histograms of each parameter and its gradient; offline, so that nothing is sent. What its own
  process does beside the training is not counted.
- **torchinstruments** takes quantiles, moments and histograms of each output and its gradient, and writes a Parquet and a JSON file
  anew with every sample, which takes longer the longer the run is.
- **TensorBoard** gets a histogram of each parameter's gradient.
- **TorchLens** takes its numbers, and no histograms, of outputs, parameters, gradients and updates, into an event file.

None of them says what is wrong; each shows something that gradwatch does not, such as single operations, or histograms by default.

## Memory

Peak of resident memory over {memory_steps} steps with one thread, each training in a process of its own.

{memory}

A full record holds a copy of the weights from `optimizer.step()` on until it is over, to see how far they move. What is imported
for the event file counts too.

## Disk

{disk}

A row of numbers for each tensor, whatever its size: of a full record all columns of `gradwatch.moments.COLUMNS`, of a light one the
norms of the parameters' gradients. *Once a run*: the names of the tensors, and the layout of TensorBoard's charts.

## How it grows

With modules, in a residual network of layers of 16 units (a third of the modules are ReLUs, a third hold the other two):

{modules}

With the elements of parameters, in a network of four hidden layers that get wider:

{elements}

With steps, in a small network: what watching adds to a step late in a run and early in it.

{steps}

Processor time with one thread, `every=10` for light records and `every=1` for full ones. With modules and with elements all
trainings take turns in one process, and the noise is what two without a watch differ by. What records are judged by are running
figures of a fixed size, so that the ten-thousandth step costs what the tenth did.

## Where the time goes

Shares of the processor time that watching adds, with one thread:

{profile}

- **hooks**: what runs while forward and backward do, in full records only: each output, its gradient, and the input gradient of
  activations are measured.
- **optimizer boundary**: gradients are read at every step; in full records also the weights before it and the updates after it.
- **record**: the rows of steps that are over are merged and put in order, those of light steps in which nothing happens up to a
  dozen at a time.
- **detectors**: the running figures of each tensor, and all default detectors.
- **event file**: records are encoded and written, up to a dozen in one go.
- **the training itself**: what its own code takes longer while it is watched, as caches and memory are shared; less than nothing
  where that is within the noise.

A *full* record holds the moments of every activation, its gradient, and every parameter, its gradient and its update; a *light*
one, in the steps between, the norms of the parameters' gradients.

What all default detectors and the running figures take in a loop of their own, over recorded runs of networks of layers of 16
units:

{verdicts}

## On a GPU

Not measured yet. `python -m benchmarks.gpu` measures it where there is a CUDA device: a language model of the size of GPT-2 (124M),
in bf16, eager and compiled.

| | target | measured |
|---|---|---|
| default (`every=10`), eager | ≤ 1.005 | not measured |
| default (`every=10`), compiled | ≤ 1.005 | not measured |
| full record at every step, eager | ≤ 1.05 | not measured |
| full record at every step, compiled | ≤ 1.05 | not measured |

## To pay less

- `budget=0.01` [spreads full records](semantics.md#a-budget) so that the watch takes no more than one per cent of the time.
- A larger `every`, or `exclude=` for layers that need no watching. Only steps with a full record carry hooks.
"""
