"""The same training in one process, by plain autograd, and whether a record shows it."""

import copy
import functools

import pytest
import torch
from torch import nn

from processes import models


def reference(processes, *, steps=3, batches=None, clip=None, low=None):
    """Trains on the data of all processes as one, and tells what there is to see of each step.

    The loss of a process is the mean over its own batch; weights are moved by the mean over the processes.

    Args:
        processes: How many share the data.
        steps: How many to train.
        batches: How many batches there are, each with a loss of its own; None: one a process.
        clip: What the norm of all gradients is clipped to, after they were seen.
        low: The type in which forward and backward compute.

    Returns:
        For each step (layer, tensor) → tensor, and the loss.
    """
    model = models.net()
    x, y = models.data(processes)
    batches = processes if batches is None else batches
    seen = []
    for _ in range(steps):
        computing = copy.deepcopy(model) if low is None else copy.deepcopy(model).to(low)
        outputs = {}
        value = x if low is None else x.to(low)
        for name, layer in computing.named_children():
            value = layer(value)
            value.retain_grad()
            outputs[name] = value
        size = len(x) // batches
        each = [nn.functional.mse_loss(out.float(), to) for out, to in zip(value.split(size), y.split(size), strict=True)]
        sum(each).backward()
        step = {}
        for name, output in outputs.items():
            step[name, "activation"], step[name, "activation_grad"] = output.detach(), output.grad
        grads = [parameter.grad.float() / batches for parameter in computing.parameters()]
        norm = torch.stack([grad.norm() for grad in grads]).norm()
        share = 1.0 if clip is None else min(1.0, clip / norm.item())
        with torch.no_grad():
            for (name, parameter), grad in zip(model.named_parameters(), grads, strict=True):
                before = parameter.clone()
                parameter.sub_(models.RATE * share * grad)
                step[name, "parameter"], step[name, "parameter_grad"], step[name, "update"] = before, grad, parameter - before
        seen.append((step, sum(each).item() / batches, share))
    return seen


def assert_shows(frame, step, expected, *, tolerance=1e-5, **columns):
    """The rows of a full record are those of the tensors, and there are no others."""
    rows = frame[frame.step == step].set_index(["layer", "tensor"])
    wanted = {key for key in rows.index if key[1] != "input_grad"}
    assert wanted == set(expected)
    for key, tensor in expected.items():
        value, row = tensor.double(), rows.loc[key]
        assert row["count"] == value.numel(), key
        near = functools.partial(pytest.approx, rel=tolerance, abs=tolerance * value.abs().max().item() + 1e-12)
        assert row["mean"] == near(value.mean().item()), key
        assert row["rms"] == near(value.square().mean().sqrt().item()), key
        assert row["norm"] == near(value.norm().item()), key
        assert row["min"] == near(value.min().item()), key
        assert row["max"] == near(value.max().item()), key
        for column, wanted in columns.items():
            assert row[column] == wanted, (key, column)


def assert_trained_as_one(result, seen, *, tolerance=1e-5, calls=None):
    """Full records are those of the training in one process, and so are the gradients of the light ones between."""
    frame, history = result["frame"], result["history"]
    assert [record.full for record in history] == [step % 2 == 0 for step in range(len(seen))]
    for record, (expected, loss, _) in zip(history, seen, strict=True):
        assert record.loss == pytest.approx(loss, rel=tolerance)
        if record.full:
            assert_shows(frame, record.step, expected, tolerance=tolerance)
        else:
            rows = frame[frame.step == record.step].set_index(["layer", "tensor"])
            grads = {key: tensor for key, tensor in expected.items() if key[1] == "parameter_grad"}
            assert set(rows.index) == set(grads)
            for key, grad in grads.items():
                assert rows.loc[key, "norm"] == pytest.approx(grad.norm().item(), rel=tolerance)
                assert rows.loc[key, "count"] == grad.numel()
    if calls is not None:
        rows = frame[frame.step == 0].set_index("tensor")["calls"]
        assert set(rows["activation"]) == {calls}
        assert set(rows["parameter"]) == set(rows["parameter_grad"]) == {1}
