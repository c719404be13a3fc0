"""Layers in a plain Python list: they compute, get gradients, and belong to nobody."""

import pytest
import torch
from torch import nn

import gradwatch


class Listed(nn.Module):
    def __init__(self, registered):
        super().__init__()
        self.stem = nn.Linear(6, 8)
        layers = [nn.Linear(8, 8), nn.Linear(8, 8)]
        self.hidden = nn.ModuleList(layers) if registered else layers
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        x = torch.tanh(self.stem(x))
        for layer in self.hidden:
            x = torch.tanh(layer(x))
        return self.head(x)


def train(model, steps=40, step_others=None):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer, on_finding=lambda finding: None) as watch:
        for step in range(steps):
            x = torch.randn(32, 6, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            watch.loss(nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long())).backward()
            optimizer.step()
            if step_others is not None:
                step_others()
    assert not model._forward_hooks
    return watch


def test_layers_in_a_plain_list_are_found():
    torch.manual_seed(0)
    (finding,) = [finding for finding in train(Listed(registered=False)).findings if finding.kind == "not_updated"]
    assert finding.layer == "unregistered"
    assert "a parameter of shape (8" in finding.message
    assert "ModuleList" in finding.advice


def test_their_gradients_are_recorded():
    model = Listed(registered=False)
    frame = train(model, steps=11).history.to_pandas()
    rows = frame[(frame.layer == "unregistered.0") & (frame.tensor == "parameter_grad")]
    assert list(rows.step) == [0, 10]
    assert (rows["rms"] > 0).all()
    assert set(frame.layer[frame.layer.str.startswith("unregistered")]) == {f"unregistered.{index}" for index in range(4)}


def test_registered_layers_are_no_strangers():
    torch.manual_seed(0)
    assert train(Listed(registered=True)).findings == []


def test_layers_that_somebody_else_trains_are_left_alone():
    torch.manual_seed(0)
    model = Listed(registered=False)
    others = torch.optim.SGD([parameter for layer in model.hidden for parameter in layer.parameters()], lr=0.1)

    def step_others():
        others.step()
        others.zero_grad()

    assert train(model, step_others=step_others).findings == []


@pytest.mark.parametrize("registered", [True, False])
def test_watching_changes_nothing(registered):
    torch.manual_seed(0)
    watched = Listed(registered)
    torch.manual_seed(0)
    plain = Listed(registered)
    train(watched, steps=12)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for step in range(12):
        x = torch.randn(32, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(plain(x), (x[:, 0] > 0).long()).backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(watched.parameters(), plain.parameters(), strict=True))


def test_what_the_input_was_computed_with_is_none_of_the_models_business():
    torch.manual_seed(0)
    backbone, head = nn.Linear(6, 8), nn.Linear(8, 2)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    with gradwatch.watch(head, optimizer, on_finding=lambda finding: None) as watch:
        for step in range(30):
            x = torch.randn(32, 6, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            watch.loss(nn.functional.cross_entropy(head(torch.tanh(backbone(x))), (x[:, 0] > 0).long())).backward()
            optimizer.step()
    assert watch.findings == []
