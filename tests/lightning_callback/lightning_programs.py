"""Parts of the programs that the tests of the callback run."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch
from torch.utils.data import DataLoader, TensorDataset

PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def points(count: int = 6, size: int = 4) -> DataLoader:
    """Batches of a small regression."""
    x = torch.randn(count * size, 3, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=size)


def part(pl, module: str):
    """A module of the package that a test runs with."""
    return importlib.import_module(f"{pl.__name__}.{module}")


def mixed_precision(pl):
    """Float16 with a scaler, which Lightning's own settings leave to GPUs."""
    plugin = part(pl, "plugins.precision").MixedPrecision
    return plugin("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))


def hooks(module) -> int:
    return sum(len(item._forward_hooks) + len(item._forward_pre_hooks) for item in module.modules())


def rows(watch, layer: str, tensor: str):
    frame = watch.history.to_pandas()
    return frame[(frame.layer == layer) & (frame.tensor == tensor)]


def event_files(directory: Path) -> list[str]:
    """The directory of each."""
    return sorted(str(path.parent.relative_to(directory)) for path in directory.rglob("*tfevents*"))
