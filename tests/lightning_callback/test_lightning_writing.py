"""Where records go, and which package a callback belongs to."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from lightning_programs import PACKAGES, event_files, part

import gradwatch

GradWatchCallback = pytest.importorskip(
    "gradwatch.lightning", reason="neither lightning nor pytorch-lightning is installed", exc_type=ImportError
).GradWatchCallback


def test_a_tensorboard_logger_shares_its_file(pl, fit, network, tmp_path):
    def training_step(self, batch, index):
        loss = self.loss(batch)
        self.log("mine", loss)
        return loss

    logger = part(pl, "loggers").TensorBoardLogger(tmp_path, name="run", version=0)
    callback = GradWatchCallback()
    fit(network(training_step=training_step), callback, logger=logger, log_every_n_steps=1)
    assert event_files(tmp_path) == ["run/version_0"]
    loaded = gradwatch.load(tmp_path / "run" / "version_0")
    pd.testing.assert_frame_equal(loaded.to_pandas(), callback.watch.history.to_pandas())

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "version_0")).Reload()
    mine, ours = ([(e.step, e.value) for e in events.Scalars(tag)] for tag in ("mine", "gradwatch/loss"))
    assert mine == ours
    assert len(mine) == 6


def test_another_logger_gets_scalars(pl, fit, network, tmp_path):
    logger = part(pl, "loggers").CSVLogger(tmp_path, name="run", version=0)
    callback = GradWatchCallback()
    fit(network(), callback, logger=logger)
    assert event_files(tmp_path) == []
    table = pd.read_csv(tmp_path / "run" / "version_0" / "metrics.csv").sort_values("step")
    assert table["step"].tolist() == list(range(6))
    np.testing.assert_allclose(table["gradwatch/loss"], [record.loss for record in callback.watch.history])


def test_without_a_logger_every_fit_has_a_file_of_its_own(fit, network, tmp_path):
    callback = GradWatchCallback()
    for _ in range(2):
        fit(network(), callback)
    assert event_files(tmp_path) == ["gradwatch_logs/version_0", "gradwatch_logs/version_1"]
    assert gradwatch.load(tmp_path / "gradwatch_logs" / "version_1")[-1] == callback.watch.history[-1]


def test_an_explicit_logdir_wins(pl, fit, network, tmp_path):
    loggers = part(pl, "loggers")
    logger = loggers.TensorBoardLogger(tmp_path, name="run", version=0)
    fit(network(), GradWatchCallback(tmp_path / "mine"), logger=logger)
    assert len(gradwatch.load(tmp_path / "mine")) == 6
    assert event_files(tmp_path) == ["mine", "run/version_0"]
    with pytest.raises(gradwatch.errors.RunError):
        gradwatch.load(tmp_path / "run" / "version_0")

    again = loggers.TensorBoardLogger(tmp_path, name="run", version=1)
    fit(network(), GradWatchCallback(again.log_dir), logger=again)
    assert event_files(tmp_path) == ["mine", "run/version_0", "run/version_1"]
    assert len(gradwatch.load(again.log_dir)) == 6


def test_a_fast_dev_run_and_other_ranks_write_nothing(pl, fit, network, tmp_path):
    class Second(pl.Callback):
        def setup(self, trainer, pl_module, stage):
            trainer.strategy.global_rank = 1

    for logger in (False, part(pl, "loggers").TensorBoardLogger(tmp_path)):
        callback = GradWatchCallback()
        fit(network(), callback, fast_dev_run=2, logger=logger)
        assert len(callback.watch.history) == 2
    told = []
    callback = GradWatchCallback(
        tmp_path / "mine", writers=[SimpleNamespace(write=told.append, close=lambda: told.append("close"))]
    )
    fit(network(), Second(), callback)
    assert len(callback.watch.history) == 6
    assert told == []
    assert list(tmp_path.iterdir()) == []


PROCESSES = """
import sys
from pathlib import Path
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from gradwatch.lightning import GradWatchCallback
from gradwatch.records import Finding
import {package} as pl

class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def training_step(self, batch, index):
        return self.layer(*batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)

class Count(pl.Callback):
    def on_train_end(self, trainer, pl_module):
        Path(sys.argv[1], f"rank {{trainer.global_rank}}").write_text(f"{{trainer.global_step}} {{len(callback.watch.history)}}")

def only_rank_1(history):
    if history[-1].step == 3 and torch.distributed.get_rank() == 1:
        yield Finding("dead_units", "layer", 3, 3, "critical")

callback = GradWatchCallback(detectors=[only_rank_1], stop_on=["critical"])
quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
trainer = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp_fork", max_epochs=1, callbacks=[callback, Count()],
                     default_root_dir=sys.argv[1], **quiet)
trainer.fit(Net(), DataLoader(TensorDataset(torch.randn(80, 3)), batch_size=4))
"""


@pytest.mark.skipif(not torch.distributed.is_available() or not hasattr(os, "fork"), reason="needs two forked processes")
def test_all_processes_stop_together_and_the_first_one_writes(tmp_path):
    package = next(package for package in PACKAGES if package in sys.modules)
    command = [sys.executable, "-c", PROCESSES.format(package=package), str(tmp_path)]
    subprocess.run(command, capture_output=True, check=True, timeout=120)
    assert [(tmp_path / rank).read_text() for rank in ("rank 0", "rank 1")] == ["5 5", "5 5"]  # steps taken, and recorded
    assert event_files(tmp_path) == ["gradwatch_logs/version_0"]


def fresh_import():
    """What another process would get from its first import of ``gradwatch.lightning``."""
    spec = importlib.util.find_spec("gradwatch.lightning")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.GradWatchCallback


def test_one_package_is_enough(pl, fit, network, monkeypatch):
    for package in PACKAGES:
        if package != pl.__name__:
            monkeypatch.setitem(sys.modules, package, None)
    callback = fresh_import()()
    fit(network(), callback)
    assert len(callback.watch.history) == 6
    assert isinstance(callback, pl.Callback)


def test_no_package_is_a_clear_error(monkeypatch):
    for package in PACKAGES:
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"needs lightning or pytorch-lightning.*gradwatch\[lightning\]"):
        fresh_import()


def test_a_single_callback_needs_no_list(pl, tmp_path):
    trainer = pl.Trainer(callbacks=GradWatchCallback(), accelerator="cpu", logger=False, default_root_dir=tmp_path)
    assert any(isinstance(callback, GradWatchCallback) for callback in trainer.callbacks)
