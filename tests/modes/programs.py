"""What tests of parameters and modules share: a small network, a step, and a figure held against the tensors behind it."""

import contextlib
import itertools

import numpy as np
import torch
from both_ways import Nobody, both_ways
from torch import nn

X = torch.linspace(-1, 1, 20).view(5, 4)


def mlp(*sizes):
    """Layers of these sizes, with a tanh between them."""
    layers = [layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


def step(model, optimizer, x=X):
    """One step towards an output of zero."""
    loss = model(x).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss


def same_with_and_without(program, **settings):
    """Runs a program without a watch, and with one that samples each step, or each third one: what it returns is the same.

    Args:
        program: Called with a function that is used as ``gradwatch.watch`` in a ``with`` statement, and yields the watch, or None
            in the run that is not watched. Returns tensors: weights, losses, outputs.
        settings: Of the watch.

    Returns:
        The watch that sampled each step, closed.
    """

    def attached(attach):
        @contextlib.contextmanager
        def watched(*args):
            watch = attach(*args)
            if isinstance(watch, Nobody):
                yield None
            else:
                with watch:
                    yield watch

        return [tensor.detach().clone() for tensor in program(watched)]

    both_ways(attached, every=3, **settings)
    return both_ways(attached, every=1, **settings)


def assert_row(row, *tensors, rel=1e-5):
    """Holds a row against the tensors that it was made of; a complex number counts as two."""
    parts = [torch.view_as_real(tensor) if tensor.is_complex() else tensor for tensor in tensors]
    x = np.concatenate([part.detach().double().flatten().numpy() for part in parts])
    assert (row.count, row.calls) == (x.size, len(tensors))
    expected = [np.sqrt(np.square(x).mean()), x.min(), x.max()]
    np.testing.assert_allclose([row.rms, row.min, row.max], expected, rtol=rel, atol=1e-9)
    assert abs(row.mean - x.mean()) <= rel * expected[0] + 1e-9
