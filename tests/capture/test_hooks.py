"""A hook follows nothing into copies, keeps nothing alive and lets no error out."""

import copy
import io
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import gradwatch
from gradwatch.capture import activations, gradients
from gradwatch.capture.hooks import Hook
from gradwatch.capture.unowned import LOOKS

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_forward_hooks_with_kwargs")


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.LSTM(4, 2))


def output(model, x):
    return model(x)[0]


def step(model, optimizer, x):
    output(model, x).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_copy_made_while_watched_computes_the_same_and_records_nothing():
    model, x = net(), torch.randn(5, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer, every=1) as watch:
        twin, average = copy.deepcopy(model), AveragedModel(model)
        assert torch.equal(output(twin, x), output(model, x))
        step(model, optimizer, x)
        average.update_parameters(model)
        for _ in range(3):
            output(twin, x).sum().backward()
            output(average, x).sum().backward()
    frame = watch.history.to_pandas()
    assert frame[(frame.layer == "0") & (frame.tensor == "activation")].calls.tolist() == [2.0]
    assert frame[(frame.layer == "0") & (frame.tensor == "activation_grad")].calls.tolist() == [1.0]
    with gradwatch.watch(twin, torch.optim.SGD(twin.parameters(), lr=0.1)):
        pass  # nobody watches the copy


def test_a_model_that_keeps_its_watch_is_copied():
    model, x = net(), torch.randn(5, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer, every=1) as watch:
        model.watch = watch
        twin = copy.deepcopy(model)
        assert torch.equal(output(twin, x), output(model, x))
        step(model, optimizer, x)
    assert len(watch.history) == 1


def test_a_watched_model_is_saved_and_loaded_where_gradwatch_is_not_installed(tmp_path):
    model, x = net(), torch.randn(5, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer, every=1):
        step(model, optimizer, x)
        torch.save({"model": model, "optimizer": optimizer, "x": x, "out": output(model, x).detach()}, tmp_path / "run.pt")
        torch.save(model.state_dict(), tmp_path / "weights.pt")
    load = """
import sys, torch
sys.modules["gradwatch"] = None  # importing it raises
run = torch.load(sys.argv[1], weights_only=False)
assert torch.equal(run["model"](run["x"])[0], run["out"])
run["model"](run["x"])[0].sum().backward()
run["optimizer"].step()
run["model"].load_state_dict(torch.load(sys.argv[2], weights_only=True))
assert not any(name.startswith("gradwatch.") for name in sys.modules)
"""
    paths = [str(tmp_path / name) for name in ("run.pt", "weights.pt")]
    subprocess.run([sys.executable, "-W", "error", "-c", load, *paths], check=True)


def test_a_tensor_that_is_watched_is_saved_without_a_warning():
    weight = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with gradwatch.watch({"weight": weight}, optimizer) as watch:
        watch.tap("same", weight).sum().backward()
        buffer = io.BytesIO()
        torch.save(weight, buffer)
        assert not copy.deepcopy(weight)._backward_hooks
    buffer.seek(0)
    assert torch.equal(torch.load(buffer), weight)


def test_a_model_that_was_watched_is_saved_to_the_same_bytes():
    def saved(thing):
        buffer = io.BytesIO()
        torch.save(thing, buffer)
        return buffer.getvalue()

    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    output(model, torch.ones(5, 3)).sum().backward()
    before = saved(model)
    with gradwatch.watch(model, optimizer, every=1):
        assert len(saved(model)) > len(before)
    assert saved(model) == before


@pytest.mark.parametrize("every", [1, 3])
def test_hooks_are_attached_only_while_a_step_is_sampled(every):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer, every=every):
        for number in range(7):
            attached = [len(module._forward_hooks) for module in model.modules()]
            searched = number // every < LOOKS  # the graph of the whole model's output
            assert attached == ([int(searched), 1, 1, 1] if number % every == 0 else [0, 0, 0, 0])
            step(model, optimizer, torch.ones(2, 3))
    assert not any(getattr(module, name) for module in model.modules() for name in HOOKS)


class Owner:
    def __init__(self):
        self.errors = []

    def fail(self, error):
        self.errors.append(error)


def test_an_error_is_told_to_the_owner_and_to_nobody_else():
    owner = Owner()
    hook = Hook(owner, lambda _owner, divisor, x: x / divisor, 0)
    assert hook(1) is None
    assert [type(error) for error in owner.errors] == [ZeroDivisionError]


def test_a_hook_is_silent_once_its_owner_is_gone():
    owner, calls = Owner(), []
    hook = Hook(owner, lambda _owner, *arguments: calls.append(arguments))
    hook(1)
    del owner
    hook(2)
    assert calls == [(1,)]


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (activations.Activations, "_before"),
        (activations.Activations, "_after"),
        (gradients.Gradients, "_arrived"),
        (gradients.Gradients, "_handed_back"),
    ],
)
def test_a_bug_in_any_hook_does_not_reach_the_training(place, name, monkeypatch, caplog):
    def broken(*_):
        raise LookupError("a bug")

    monkeypatch.setattr(place, name, broken)
    model, twin, x = net(), net(), torch.randn(5, 3)
    optimizer, other = (torch.optim.SGD(each.parameters(), lr=0.1) for each in (model, twin))
    with gradwatch.watch(model, optimizer, every=1, detectors=()) as watch:
        for _ in range(3):
            step(model, optimizer, x)
            step(twin, other, x)
    assert len(watch.history) == 3
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "training goes on without this observation: LookupError: a bug" in record.getMessage()
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, theirs)
