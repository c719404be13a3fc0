from __future__ import annotations

import warnings

import pytest
import torch
from lightning_programs import PACKAGES, points
from torch import nn

NOISE = (
    "The '.*_dataloader' does not have many workers",
    "The number of training batches .* is smaller than the logging interval",
    ".training_step. returned .None.",
)


@pytest.fixture(params=PACKAGES)
def pl(request):
    return pytest.importorskip(request.param, reason=f"{request.param} is not installed")


@pytest.fixture
def fit(pl, tmp_path):
    """Trains a module on the ``batches`` that it carries, and returns the trainer."""

    def fit(module, *callbacks, trainer=None, ckpt_path=None, **settings):
        defaults = {"logger": False, "enable_checkpointing": False, "max_epochs": 1, "default_root_dir": tmp_path}
        quiet = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "enable_model_summary": False}
        with warnings.catch_warnings():
            for message in NOISE:
                warnings.filterwarnings("ignore", message)
            trainer = trainer or pl.Trainer(callbacks=list(callbacks), **quiet, **{**defaults, **settings})
            trainer.fit(module, module.batches, ckpt_path=ckpt_path)
        return trainer

    return fit


@pytest.fixture
def network(pl):
    """A small net with dropout, of the package's own LightningModule; ``methods`` stand in for those of the class."""

    class Net(pl.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.first, self.drop, self.last = nn.Linear(3, 8), nn.Dropout(0.3), nn.Linear(8, 1)
            self.batches = points()
            self.rate = 0.1

        def loss(self, batch):
            x, y = batch
            return nn.functional.mse_loss(self.last(self.drop(torch.relu(self.first(x)))), y)

        def training_step(self, batch, index):
            return self.loss(batch)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.rate, momentum=0.9)

    return lambda **methods: type("Net", (Net,), methods)()
