"""Train in several processes, one of which gets a batch with a NaN: all of them stop together, and know which one it was.

Run as ``torchrun --nproc-per-node 2 06_distributed.py [DIRECTORY]``; without a directory nothing is written.
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gradwatch
from gradwatch.errors import UnhealthyTraining

BATCH, BROKEN_STEP = 16, 10


def batch(step: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples of this process: no two processes get the same ones."""
    generator = torch.Generator().manual_seed(1000 * rank + step)
    x = torch.randn(BATCH, 8, generator=generator)
    y = (x[:, :1] > 0).float()
    if step == BROKEN_STEP and rank == dist.get_world_size() - 1:
        x[3, 2] = float("nan")  # as a file that was cut off may yield
    return x, y


def train(logdir: str | None) -> tuple[gradwatch.Watch, str]:
    """What every process does. The watch is made on all of them, and rank 0 writes."""
    model = DistributedDataParallel(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss_fn = nn.BCEWithLogitsLoss()
    with gradwatch.watch(model, optimizer, every=5, loss_fn=loss_fn, logdir=logdir, on_finding="raise") as watch:
        for step in range(20):
            x, y = batch(step, dist.get_rank())
            optimizer.zero_grad()
            loss_fn(model(x), y).backward()
            try:
                optimizer.step()
            except UnhealthyTraining as error:  # on every process at the same step, so that none waits for another
                return watch, f"stopped after step {step}: {error}"
    return watch, "went to the end"


def main(logdir: str | None) -> None:
    """Trains, and has every process say in turn how it ended."""
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    watch, end = train(logdir)
    frame = watch.history.to_pandas().set_index(["step", "layer", "tensor"])
    for rank in range(dist.get_world_size()):
        if rank == dist.get_rank():
            outputs = frame.loc[(0, "0", "activation")]
            print(f"rank {rank}: {end}", flush=True)
            print(f"rank {rank}: layer 0 put out {outputs['count']:.0f} numbers of rms {outputs['rms']:.4f} at step 0", flush=True)
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
