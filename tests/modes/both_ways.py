"""Runs a training program with and without a watch, to show that it trains the same."""

import logging

import torch

import gradwatch


class Nobody:
    """Stands in place of the watch in the run that is not watched."""

    def loss(self, value):
        return value

    def tap(self, _name, tensor):
        return tensor

    def step(self):
        pass

    def before_clip(self):
        pass


class Errors(logging.Handler):
    def __init__(self):
        super().__init__(logging.ERROR)
        self.said = []

    def emit(self, record):
        self.said.append(record.getMessage())


def state(*things):
    """Copies of all tensors of modules and optimizers, or of tensors."""
    tensors = []
    for thing in things:
        if isinstance(thing, torch.Tensor):
            tensors.append(thing)
        elif isinstance(thing, torch.optim.Optimizer):
            tensors += [
                torch.as_tensor(v) for entry in thing.state_dict()["state"].values() for v in entry.values() if v is not None
            ]
        else:
            tensors += thing.state_dict(keep_vars=True).values()
    return [tensor.detach().clone() for tensor in tensors]


def equal(mine, theirs):
    """To the last bit, and a NaN equals a NaN."""
    return torch.equal(mine.isnan(), theirs.isnan()) and torch.equal(mine.nan_to_num(), theirs.nan_to_num())


def both_ways(program, **settings):
    """Runs ``program(attach)`` watched and unwatched; what it returns has to be the same to the last bit.

    Args:
        program: Attaches with ``attach(model, optimizer, ...)`` what a watch would be, trains, and returns tensors.
        settings: Of every watch; else each step is sampled.

    Returns:
        The watches, closed, in order of their making; one by itself.
    """
    watches, errors = [], Errors()

    def attach(*args, **own):
        watches.append(gradwatch.watch(*args, **{"every": 1, "on_finding": lambda _finding: None, **settings, **own}))
        return watches[-1]

    def run(make):
        torch.manual_seed(0)
        return [*program(make), torch.get_rng_state()]

    expected = run(lambda *_args, **_settings: Nobody())
    logging.getLogger("gradwatch").addHandler(errors)
    try:
        got = run(attach)
        for watch in watches:
            watch.close()
    finally:
        logging.getLogger("gradwatch").removeHandler(errors)
    assert not errors.said
    assert len(got) == len(expected)
    assert all(equal(mine, theirs) for mine, theirs in zip(got, expected, strict=True))
    return watches if len(watches) > 1 else watches[0]


def rows(watch, step=0):
    """(layer, tensor) → row of the frame, of one record."""
    frame = watch.history.to_pandas()
    return {(row.layer, row.tensor): row for row in frame[frame.step == step].itertuples()}
