"""A program of which one process ends in the middle."""

import os
import time

import torch.distributed as dist

import gradwatch
from processes.models import data, net
from processes.tools import Heard, backward, brought, sgd


def one_dies(rank, size):
    """The second process ends without a word; the first one's own loop does not need it."""
    model = net()
    optimizer = sgd(model)
    with Heard() as heard, gradwatch.watch(model, optimizer, every=2) as watch:
        dist.barrier()
        for step in range(6):
            if rank == 1 and step == 3:
                os._exit(1)
            optimizer.zero_grad()
            backward(model, *data(size), watch)
            optimizer.step()
            time.sleep(0.05)
    return brought(watch, heard)
