"""What is attached is what is removed; a watch lives as long as what it watches, kept or not, and loses nothing at its end."""

import copy
import gc
import subprocess
import sys
import weakref

import pytest
import torch
from torch import nn

import gradwatch

HOOKS = [
    "_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks",
]  # fmt: skip
STEP_HOOKS = ["_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.table = Table()
        self.first, self.act, self.rnn, self.last = nn.Linear(3, 4), nn.ReLU(inplace=True), nn.LSTM(4, 4), nn.Linear(4, 1)

    def forward(self, x):
        out, _ = self.rnn(self.act(self.first(x)) * self.scale + self.table())
        return self.last(out)


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.values = nn.Parameter(torch.zeros(4))

    def forward(self):
        return self.values


def build():
    torch.manual_seed(0)
    model = Net()
    return model, torch.optim.Adam(model.parameters(), lr=0.1)


def train(model, optimizer, steps):
    for _ in range(steps):
        model(torch.ones(5, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def anatomy(model, optimizer):
    """Everything that a watch could leave behind: classes, attributes, wrapped methods, hooks."""
    things = [*model.modules(), optimizer]
    return (
        [type(thing) for thing in things],
        [sorted(vars(thing)) for thing in things],
        [len(getattr(module, name)) for module in model.modules() for name in HOOKS],
        [len(getattr(optimizer, name)) for name in STEP_HOOKS],
        [bool(parameter._backward_hooks) for parameter in model.parameters()],
        [parameter._post_accumulate_grad_hooks for parameter in model.parameters()],
        [sorted(state) for state in optimizer.state_dict()["state"].values()],
    )


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_nothing_is_left_after_close(every, steps):
    model, optimizer = build()
    loss_fn = nn.MSELoss()
    train(model, optimizer, 1)
    before = anatomy(model, optimizer)
    with gradwatch.watch(model, optimizer, every=every, loss_fn=loss_fn):
        train(model, optimizer, steps)
        model(torch.ones(5, 3)).sum().backward()  # and in the middle of a step
    optimizer.zero_grad()
    assert anatomy(model, optimizer) == before
    assert not loss_fn._forward_hooks


def test_nothing_is_left_after_an_error_in_the_middle_of_training():
    model, optimizer = build()
    train(model, optimizer, 1)
    before = anatomy(model, optimizer)
    watch = gradwatch.watch(model, optimizer, every=1)
    train(model, optimizer, 2)
    with pytest.raises(RuntimeError, match="shapes"), watch:
        model(torch.ones(5, 4))
    assert anatomy(model, optimizer) == before
    assert [record.step for record in watch.history] == [0, 1]


def test_backward_after_close_records_nothing_and_works():
    model, optimizer = build()
    with gradwatch.watch(model, optimizer, every=1) as watch:
        train(model, optimizer, 1)
        loss = model(torch.ones(5, 3)).sum()
    loss.backward()
    optimizer.step()
    assert len(watch.history) == 1


def test_a_copied_optimizer_is_not_watched():
    model, optimizer = build()
    with gradwatch.watch(model, optimizer) as watch:
        train(model, optimizer, 1)
        twins = copy.deepcopy((model, optimizer))
        train(*twins, 3)
        train(model, optimizer, 1)
        optimizer.load_state_dict(twins[1].state_dict())
        train(model, optimizer, 1)
    assert len(watch.history) == 3
    assert not any(getattr(twins[1], name) for name in STEP_HOOKS)


class Writer:
    def __init__(self):
        self.steps, self.closed = [], False

    def write(self, record):
        self.steps.append(record.step)

    def report(self, finding):
        pass

    def close(self):
        self.closed = True


def test_a_watch_that_nobody_keeps_records_and_is_closed_with_what_it_watches():
    writer = Writer()

    def run():
        model, optimizer = build()
        gradwatch.watch(model, optimizer, writers=[writer])
        gc.collect()
        train(model, optimizer, 3)
        return weakref.ref(model)

    reference = run()
    gc.collect()
    assert reference() is None
    assert writer.steps == [0, 1, 2]
    assert writer.closed


def test_a_watch_that_is_open_at_the_end_of_the_program_is_closed(tmp_path):
    program = """
import sys, torch, gradwatch
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
keep = gradwatch.watch(model, optimizer, logdir=sys.argv[1])
for _ in range(3):
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
sick = torch.nn.Linear(2, 1)
descent = torch.optim.SGD(sick.parameters(), lr=0.1)
also = gradwatch.watch(sick, descent, on_finding="raise")
(sick(torch.ones(1, 2)).sum() * float("nan")).backward()
descent.step()
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, capture_output=True, text=True)
    assert len(gradwatch.load(tmp_path)) == 3
    assert "Traceback" not in done.stderr
    assert "non_finite" in done.stderr


def test_several_models_are_watched_at_once():
    pairs = [build() for _ in range(2)]
    watches = [gradwatch.watch(model, optimizer, every=1) for model, optimizer in pairs]
    for (model, optimizer), steps in zip(pairs, (1, 3), strict=True):
        train(model, optimizer, steps)
    for watch, steps in zip(watches, (1, 3), strict=True):
        watch.close()
        assert len(watch.history) == steps
