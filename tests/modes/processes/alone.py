"""Programs of several processes in which each of them has to record for itself, from the start or from some step on."""

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gradwatch
from gradwatch.distributed import link
from processes.models import data, mine, net
from processes.tools import Heard, backward, brought, sgd


def models_of_their_own(rank, size):
    """Every process trains a model of its own."""
    torch.manual_seed(rank)
    model = nn.Linear(6, 3)
    optimizer = sgd(model)
    with Heard() as heard, gradwatch.watch(model, optimizer, every=2) as watch:
        for _ in range(3):
            optimizer.zero_grad()
            backward(model, *mine(size, rank), watch)
            optimizer.step()
    return brought(watch, heard)


def only_rank_0_watches(rank, size):
    model = DistributedDataParallel(net())
    optimizer = sgd(model)
    with Heard() as heard:
        watch = gradwatch.watch(model, optimizer, every=2) if rank == 0 else None
        for _ in range(3):
            optimizer.zero_grad()
            backward(model, *mine(size, rank), watch)
            optimizer.step()
        if watch is not None:
            watch.close()
            return brought(watch, heard)
    return {}


def different_cadences(rank, size):
    model = DistributedDataParallel(net())
    optimizer = sgd(model)
    with Heard() as heard, gradwatch.watch(model, optimizer, every=2 + rank) as watch:
        for _ in range(4):
            optimizer.zero_grad()
            backward(model, *mine(size, rank), watch)
            optimizer.step()
    return brought(watch, heard)


def one_closes_early(rank, size):
    """The second process has less data, and closes its watch; ``join`` answers the other's collectives for it."""
    model = DistributedDataParallel(net())
    optimizer = sgd(model)
    with Heard() as heard, gradwatch.watch(model, optimizer, every=2) as watch, model.join():
        for _ in range(3 if rank == 1 else 6):
            optimizer.zero_grad()
            backward(model, *mine(size, rank), watch)
            optimizer.step()
        if rank == 1:
            watch.close()
    return brought(watch, heard)


def one_stops(rank, size):
    """The second process has less data, and leaves its watch open."""
    patience, link.PATIENCE = link.PATIENCE, 1.0
    model = DistributedDataParallel(net())
    optimizer = sgd(model)
    with Heard() as heard:
        watch = gradwatch.watch(model, optimizer, every=2)
        with model.join():
            for _ in range(3 if rank == 1 else 6):
                optimizer.zero_grad()
                backward(model, *mine(size, rank), watch)
                optimizer.step()
        watch.close()
    link.PATIENCE = patience
    return brought(watch, heard)


def one_fails_inside(rank, size):
    """In the second process gradwatch itself fails."""

    def broken():
        raise KeyError("a mistake")

    model = DistributedDataParallel(net())
    optimizer = sgd(model)
    with Heard() as heard, gradwatch.watch(model, optimizer, every=2) as watch:
        for step in range(4):
            if rank == 1 and step == 2:
                watch._recorder.finish = broken
            optimizer.zero_grad()
            backward(model, *mine(size, rank), watch)
            optimizer.step()
    return brought(watch, heard)


def an_exception(rank, size):
    """The second process raises; the first one's own loop does not need it."""

    def out_of_luck():
        raise ZeroDivisionError

    model = net()
    optimizer = sgd(model)
    raised = None
    with Heard() as heard:
        try:
            with gradwatch.watch(model, optimizer, every=2) as watch:
                for step in range(5):
                    if rank == 1 and step == 3:
                        out_of_luck()
                    optimizer.zero_grad()
                    backward(model, *data(size), watch)
                    optimizer.step()
        except ZeroDivisionError as error:
            raised = error
    return brought(watch, heard, raised=raised is not None)
