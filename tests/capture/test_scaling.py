"""A loss scaler is observed without waiting for the device, and whatever else stands in the place of its ``step`` stays there."""

import functools

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import gradwatch
from gradwatch import moments
from gradwatch.capture.transfer import Transfer


def net():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


class Undecided(torch.amp.GradScaler):
    """Decides without a value, as tensors without values have none, which steps to take."""

    takes = False

    def _maybe_opt_step(self, optimizer, optimizer_state, *args, **kwargs):
        return optimizer.step(*args, **kwargs) if self.takes else None


def test_nothing_waits_for_the_device(monkeypatch, caplog):
    monkeypatch.setattr(Transfer, "rows", lambda _: ([], np.empty((0, len(moments.COLUMNS)), np.float32)))
    monkeypatch.setattr(Transfer, "only_norms", lambda _: None)
    monkeypatch.setattr(Transfer, "notes", lambda _: ([], np.empty(0, np.intp), np.empty(0)))
    monkeypatch.setattr(Transfer, "scalars", lambda *_: [])
    with FakeTensorMode():  # its tensors have no values: whatever asks for one raises
        model, scaler = net(), Undecided("cpu")
        optimizers = [torch.optim.SGD(model[index].parameters(), lr=0.1) for index in (0, 2)]
        with gradwatch.watch(model, optimizers, scaler=scaler, every=3, detectors=()) as watch:
            for scaler.takes in (False, True, True):
                x = torch.randn(5, 3, requires_grad=True)
                out = model(x).sum()
                (slope,) = torch.autograd.grad(out, x, create_graph=True)
                scaler.scale(out + slope.sum()).backward()
                watch.before_clip()
                for optimizer in optimizers:
                    scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                for optimizer in optimizers:
                    scaler.step(optimizer)
                    optimizer.zero_grad()
                scaler.update()
    assert not caplog.records
    assert [record.skipped for record in watch.history] == [True, True, False, False, False, False]


def test_a_step_of_somebody_elses_making_is_called_and_left_in_its_place():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler, calls = torch.amp.GradScaler("cpu", init_scale=2.0), []
    step = scaler.step

    def counted(optimizer):
        calls.append(optimizer)
        return step(optimizer)

    def train():
        scaler.scale(model(torch.ones(1, 3)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()

    scaler.step = counted
    with gradwatch.watch(model, optimizer, scaler=scaler) as watch:
        train()
    assert scaler.step is counted
    train()
    assert len(watch.history) == 1
    assert calls == [optimizer] * 2


def test_what_is_put_in_front_while_it_is_observed_goes_on_working():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    with gradwatch.watch(model, optimizer, scaler=scaler) as watch:
        scaler.step = functools.partial(scaler.step)
    scaler.scale(model(torch.ones(1, 3)).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert optimizer.param_groups[0]["params"][0].grad is not None
    assert len(watch.history) == 0
