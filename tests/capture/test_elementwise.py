"""An activation is told by the operations that it left in the graph, and is never run a second time."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import gradwatch

SCALE = torch.tensor([1.0, -2.0, 3.0])


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def closed_share(activation, z):
    """What a record says of the activation's valve; NaN where it is taken for none."""
    model = nn.Sequential(nn.Linear(3, 3), activation)
    nn.init.zeros_(model[0].weight)
    model[0].bias.data = torch.tensor(z)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradwatch.watch(model, optimizer, every=1, detectors=()) as watch:
        model(torch.ones(4, 3)).sum().backward()
        optimizer.step()
    frame = watch.history.to_pandas()
    (share,) = frame[(frame.layer == "1") & (frame.tensor == "input_grad")].closed
    return share


@pytest.mark.parametrize(
    ("activation", "share"),
    [
        (nn.Sigmoid(), 1 / 3),
        (nn.ReLU(inplace=True), 1 / 3),
        (Apply(lambda x: x * torch.sigmoid(x)), 1 / 3),
        (Apply(lambda x: 2 / (1 + (-2 * x).exp()) - 1), 2 / 3),  # a tanh
        (Apply(lambda x: torch.where(x > 0, x, 0.01 * x)), 1 / 3),
        (Apply(lambda x: SCALE * x.clamp(-10, 1)), 1 / 3),
        (Apply(functional.softplus), 1 / 3),
        (Apply(lambda x: x * x), 1 / 3),  # derivatives of 18, 0.5 and 8: the second is 3 % of the first
    ],
    ids=["sigmoid", "relu", "swish", "tanh", "leaky", "clamp", "softplus", "square"],
)
def test_an_activation_of_any_making_has_a_valve(activation, share):
    assert closed_share(activation, [-9.0, 0.25, 4.0]) == pytest.approx(share)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * 2 + 1,
        lambda x: SCALE * x - SCALE,
        lambda x: x / x.norm(),
        lambda x: x.tanh().flip(1),
        lambda x: x.softmax(1),
        lambda x: x.sigmoid() * x.mean(),
        lambda x: x.tanh()[:, :2],
        lambda x: x.cumsum(0),
    ],
    ids=["affine", "scale", "norm", "flip", "softmax", "gate", "slice", "sum"],
)
def test_what_mixes_elements_or_is_linear_has_none(function):
    assert np.isnan(closed_share(Apply(function), [-9.0, 0.25, 4.0]))


class Drawing(nn.Module):
    """A module with a life of its own: counts its calls, and draws numbers that PyTorch knows nothing of."""

    def __init__(self):
        super().__init__()
        self.calls, self.generator = [], torch.Generator().manual_seed(0)

    def forward(self, x):
        LOG.append(tuple(x.shape))
        self.calls.append(len(LOG))
        noise = random.random() + np.random.random() + torch.rand(x.shape, generator=self.generator)  # noqa: NPY002
        return torch.tanh(x + noise)


LOG = []


def train(*, watched):
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    LOG.clear()
    model = nn.Sequential(nn.Linear(2, 2), Drawing())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = gradwatch.watch(model, optimizer, every=1, detectors=()) if watched else None
    for _ in range(5):
        model(torch.ones(3, 2)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    if watch:
        watch.close()
    return model[0].weight, model[1].calls, list(LOG)


def test_no_module_is_run_a_second_time():
    weight, calls, log = train(watched=True)
    assert log == [(3, 2)] * 5
    assert calls == [1, 2, 3, 4, 5]
    assert torch.equal(weight, train(watched=False)[0])
