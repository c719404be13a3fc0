"""What cannot be meant is refused with the thing, the fact and the remedy, and leaves no trace behind."""

import re

import pytest
import torch
from torch import nn

import gradwatch
from gradwatch.errors import AlreadyWatched, GradWatchError, GradWatchWarning, InvalidSetting, LogdirError


def net():
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))


def untouched(model):
    """Whether a model can still be watched and has no hook: that what failed has let go of everything."""
    hooks = [hook for module in model.modules() for hook in (*module._forward_hooks, *module._forward_pre_hooks)]
    with gradwatch.watch(model):
        return not hooks


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, "every=0 is no cadence; give the optimizer steps between full records, at least 1"),
        ({"every": -1}, "every=-1 is no cadence; give the optimizer steps between full records, at least 1"),
        ({"every": True}, "every=True is no cadence; give the optimizer steps between full records, at least 1"),
        ({"every": 2.5}, "every=2.5 is no cadence; give the optimizer steps between full records, at least 1"),
        ({"every": "10"}, "every='10' is no cadence; give the optimizer steps between full records, at least 1"),
        ({"budget": 0.0}, "budget=0.0 is no share of the training's time; give a number between 0 and 1, such as 0.01"),
        ({"budget": 1.0}, "budget=1.0 is no share of the training's time; give a number between 0 and 1, such as 0.01"),
        ({"budget": 1}, "budget=1 is no share of the training's time; give a number between 0 and 1, such as 0.01"),
        ({"budget": "1%"}, "budget='1%' is no share of the training's time; give a number between 0 and 1, such as 0.01"),
        ({"budget": float("nan")}, "budget=nan is no share of the training's time; give a number between 0 and 1, such as 0.01"),
        (
            {"loss_fn": nn.functional.mse_loss},
            "loss_fn is a function, whose output cannot be observed; give an nn.Module, or tell watch.loss(value)",
        ),
        ({"scaler": 1024.0}, "scaler is a float; give the torch.amp.GradScaler that scales the loss"),
        ({"on_finding": "explode"}, "on_finding='explode'; give 'log', 'warn', 'raise' or a function of the finding"),
        ({"on_finding": None}, "on_finding=None; give 'log', 'warn', 'raise' or a function of the finding"),
        ({"histograms": 1}, "histograms=1; give True to count magnitudes by octaves in full records, else False"),
        ({"optimizer": "adam"}, "optimizer 0 is a str; give torch.optim.Optimizer objects"),
        ({"optimizer": 0.1}, "optimizer 0 is a float; give torch.optim.Optimizer objects"),
        pytest.param(
            {"optimizer": net().parameters()}, "optimizer 0 is a Parameter; give torch.optim.Optimizer objects", id="parameters"
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_setting_without_a_meaning(settings, message):
    model = net()
    with pytest.raises(InvalidSetting, match=f"^{re.escape(message)}$") as error:
        gradwatch.watch(model, **settings)
    assert isinstance(error.value, GradWatchError)
    assert isinstance(error.value, ValueError)
    assert untouched(model)


@pytest.mark.parametrize("model", ["net", None, net().parameters(), net])
def test_a_thing_that_is_no_model(model):
    with pytest.raises(
        InvalidSetting, match=r"^the model is a [a-zA-Z]+; give an nn\.Module, or a mapping of names to leaf tensors$"
    ):
        gradwatch.watch(model)


def test_a_model_that_is_watched_is_not_watched_twice():
    model = net()
    with gradwatch.watch(model):
        for again in (model, model[2], nn.Sequential(model, nn.ReLU()), {"w": model[0].weight}):
            with pytest.raises(AlreadyWatched, match=r"^'[0-9a-z.]+' is already watched; close that watch first$") as error:
                gradwatch.watch(again)
            assert isinstance(error.value, RuntimeError)
        with gradwatch.watch(net()):
            pass
    assert untouched(model)


def test_parts_of_a_model_may_be_watched_apart():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer, include="0") as first, gradwatch.watch(model, optimizer, exclude="0") as second:
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    assert {site.layer for site in first.history[0].sites} == {"0", "0.weight", "0.bias"}
    assert {site.layer for site in second.history[0].sites} == {"1", "2", "2.weight", "2.bias"}


def test_a_model_may_be_watched_again_once_the_watch_that_nobody_kept_is_gone():
    model, records = net(), []

    def phase():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        gradwatch.watch(model, optimizer, writers=[Recorder(records)])
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()

    for _ in range(3):
        phase()
    assert len(records) >= 2
    assert untouched(model)
    assert len(records) == 3


class Recorder:
    def __init__(self, records):
        self.records = records

    def write(self, record):
        self.records.append(record)

    def report(self, finding):
        pass

    def close(self):
        pass


@pytest.mark.parametrize("below", ["file", "file/run"])
def test_a_log_directory_that_cannot_be_written(tmp_path, below):
    (tmp_path / "file").write_text("not a directory")
    model = net()
    with pytest.raises(LogdirError, match="file") as error:
        gradwatch.watch(model, logdir=tmp_path / below)
    assert isinstance(error.value, OSError)
    assert untouched(model)


def test_an_optimizer_given_twice_makes_one_record_a_step():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, [optimizer, optimizer]) as watch:
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    assert len(watch.history) == 1


def test_a_warning_that_is_made_an_error_leaves_nothing_behind():
    model = net()
    with pytest.raises(GradWatchWarning, match="'Sequential'"):  # warnings are errors in these tests
        gradwatch.watch(model, torch.optim.SGD(net().parameters(), lr=0.1))
    assert untouched(model)
