"""What programs of several processes do alike: train with a watch and without, and bring home what a test looks at."""

import logging

import torch
from torch import nn
from torch.distributed.tensor import DTensor

import gradwatch
from processes.models import RATE


class Heard(logging.Handler):
    """What gradwatch has logged."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())

    def __enter__(self):
        logging.getLogger("gradwatch").addHandler(self)
        return self

    def __exit__(self, *_):
        logging.getLogger("gradwatch").removeHandler(self)


def weights(model):
    """The parameters that this process holds, as they are."""
    return [(p.to_local() if isinstance(p, DTensor) else p).detach().clone() for p in model.parameters()]


def brought(watch, heard, **more):
    """What a test looks at."""
    return {
        "frame": watch.history.to_pandas(),
        "history": list(watch.history),
        "findings": watch.findings,
        "report": watch.report(),
        "log": heard.lines,
        **more,
    }


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=RATE)


def backward(model, x, y, watch=None):
    loss = nn.functional.mse_loss(model(x), y)
    if watch is not None:
        watch.loss(loss)
    loss.backward()


def train(make, x, y, *, steps=3, watched=True, each=backward, settings=None):
    """Trains what ``make`` makes, and tells its weights and its record."""
    model = make()
    optimizer = sgd(model)
    with Heard() as heard:
        watch = gradwatch.watch(model, optimizer, every=2, **settings or {}) if watched else None
        for _ in range(steps):
            optimizer.zero_grad()
            each(model, x, y, watch)
            optimizer.step()
        if watch is None:
            return weights(model)
        watch.close()
        return brought(watch, heard, weights=weights(model))


def twice(make, x, y, **settings):
    """With a watch and without one."""
    return train(make, x, y, **settings) | {"unwatched": train(make, x, y, watched=False, **settings)}
