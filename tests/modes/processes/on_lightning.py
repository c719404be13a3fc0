"""Programs of several processes under Lightning and Fabric."""

import lightning.pytorch as pl
import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies import FSDPStrategy as FabricFSDPStrategy
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import gradwatch
from gradwatch.lightning import GradWatchCallback
from processes.models import BATCH, data, mine, net
from processes.tools import Heard, brought, sgd, weights


class OnCpu(FullyShardedDataParallel):
    """FSDP1 without the accelerator that Lightning gives it."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings | {"device_id": torch.device("cpu")})


def on_cpu(strategy):
    """A strategy that wraps with ``OnCpu``; Lightning refuses its own class on a CPU, and no heir of it."""

    class Strategy(strategy):
        def _setup_model(self, model):
            return self._with(super()._setup_model, model)

        def setup_module(self, module):
            return self._with(super().setup_module, module)

        def _with(self, setup, module):
            torch.distributed.fsdp.FullyShardedDataParallel = OnCpu
            try:
                return setup(module)
            finally:
                torch.distributed.fsdp.FullyShardedDataParallel = FullyShardedDataParallel

    return Strategy


def fit(strategy, watched):
    class Net(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net()

        def training_step(self, batch, _):
            return nn.functional.mse_loss(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return sgd(self)

    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    # A sampler gives rank r the samples r, r + 2, ...: in this order each rank gets what is its own.
    x, y = (tensor.unflatten(0, (2, BATCH)).transpose(0, 1).flatten(0, 1) for tensor in data(2))
    module, callback = Net(), GradWatchCallback(every=2)
    with Heard() as heard:
        trainer = pl.Trainer(
            accelerator="cpu", devices=2, strategy=strategy, max_epochs=3, callbacks=[callback] if watched else [],
            fast_dev_run=False, use_distributed_sampler=True, **quiet,
        )  # fmt: skip
        trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=False))
    if not watched:
        return weights(module)
    return brought(callback.watch, heard, weights=weights(module))


def lightning_ddp(rank, size):
    return fit("ddp", watched=True) | {"unwatched": fit("ddp", watched=False)}


def lightning_fsdp(rank, size):
    def strategy():
        return on_cpu(FSDPStrategy)(process_group_backend="gloo", auto_wrap_policy={nn.Linear})

    return fit(strategy(), watched=True) | {"unwatched": fit(strategy(), watched=False)}


def lightning_fsdp_in_one_piece(rank, size):
    return fit(on_cpu(FSDPStrategy)(process_group_backend="gloo"), watched=True)


def fabric(strategy, rank, size):
    device = Fabric(accelerator="cpu", devices=2, strategy=strategy)
    device.launch()
    x, y = mine(size, rank)

    def run(watched):
        model = device.setup_module(net())
        optimizer = device.setup_optimizers(sgd(model))
        with Heard() as heard:
            watch = gradwatch.watch(model, optimizer, every=2) if watched else None
            for _ in range(3):
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(model(x), y)
                if watch is not None:
                    watch.loss(loss)
                device.backward(loss)
                optimizer.step()
            if watch is None:
                return weights(model)
            watch.close()
            return brought(watch, heard, weights=weights(model))

    return run(True) | {"unwatched": run(False)}


def fabric_ddp(rank, size):
    return fabric("ddp", rank, size)


def fabric_fsdp(rank, size):
    return fabric(on_cpu(FabricFSDPStrategy)(process_group_backend="gloo", auto_wrap_policy={nn.Linear}), rank, size)
