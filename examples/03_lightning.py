"""Watch a LightningModule: one callback, and the figures go into the TensorBoardLogger's own file.

Run as ``python 03_lightning.py [DIRECTORY]``; without a directory everything is written to a temporary one.
"""

from __future__ import annotations

import sys
import tempfile
import warnings

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gradwatch.lightning import GradWatchCallback


class Digits(pl.LightningModule):
    """A classifier of 8 x 8 scans of handwritten digits."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """The loss of a batch."""
        images, labels = batch
        loss = nn.functional.cross_entropy(self.net(images), labels)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer."""
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def main(directory: str) -> None:
    """Trains for ten passes over the scans, and prints what the watch has seen."""
    warnings.filterwarnings("ignore", message="The '.*_dataloader' does not have many workers")
    pl.seed_everything(0)
    scans = load_digits()
    data = TensorDataset(torch.tensor(scans.data / 16, dtype=torch.float32), torch.tensor(scans.target))

    callback = GradWatchCallback(every=10, stop_on=("critical",))
    logger = TensorBoardLogger(directory, name="digits")
    trainer = pl.Trainer(
        max_epochs=10,
        accelerator="cpu",
        logger=logger,
        callbacks=callback,
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Digits(), DataLoader(data, batch_size=64, shuffle=True))

    print(callback.watch.report())
    print(f"\nloss: {callback.watch.history[0].loss:.3f} at first, {callback.watch.history[-1].loss:.3f} at last")
    if sys.argv[1:]:
        print(f"tensorboard --logdir {logger.log_dir}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(temporary)
