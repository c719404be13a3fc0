"""What watching costs, in counts that no other program on the machine changes: calls, operations, hooks, memory, bytes."""

import gc
import itertools
import sys
import tracemalloc
from collections import Counter
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import gradwatch
from gradwatch import judging, waiting
from gradwatch.capture.hooks import Hook
from gradwatch.eventfiles import in_directory


@pytest.fixture(autouse=True)
def _unhurried(monkeypatch):
    """No second passes, so that a slow machine counts as a fast one does."""
    for module in (judging, waiting):
        monkeypatch.setattr(module, "SECONDS", 1e9)


PACKAGE = str(Path(gradwatch.__file__).parent)


class Training:
    """Linear layers of one shape with a ReLU after each, in training by heart, so that the loss falls."""

    def __init__(self, layers):
        torch.manual_seed(0)
        hidden = itertools.chain.from_iterable((nn.Linear(8, 8), nn.ReLU()) for _ in range(layers))
        self.model = nn.Sequential(nn.Linear(4, 8), *hidden, nn.Linear(8, 2))
        for layer in self.model[1:-1:2]:
            nn.init.eye_(layer.weight)  # at any depth a gradient of the usual size
            nn.init.zeros_(layer.bias)
        self.x, self.y = torch.randn(32, 4), torch.randn(32, 2)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)

    def step(self, watch=None):
        """One step."""
        loss = (self.model(self.x) - self.y).square().mean()
        if watch is not None:
            watch.loss(loss)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @contextmanager
    def watched(self, *, until, **settings):
        """Watched, after so many steps."""
        with gradwatch.watch(self.model, self.optimizer, on_finding=lambda _: None, **settings) as watch:
            for _ in range(until):
                self.step(watch)
            yield watch


def calls(function):
    """How many functions of gradwatch a function calls, by name."""
    counts = Counter()

    def count(frame, event, _argument):
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            counts[frame.f_code.co_qualname if sys.version_info >= (3, 11) else frame.f_code.co_name] += 1

    gc.collect()  # else a watch of another test may be closed in here
    before = sys.getprofile()
    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(before)
    return counts


class Operations(TorchDispatchMode):
    """Counts the operations of PyTorch that run inside."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def operations(function):
    """How many operations of PyTorch a function runs."""
    with Operations() as inside:
        function()
    return inside.count


@contextmanager
def light(layers, **settings):
    """Gives a step between two full records, in the middle of a training."""
    training = Training(layers)
    with training.watched(until=44, every=10, **settings) as watch:
        yield partial(training.step, watch)


@contextmanager
def full(layers, **settings):
    """Gives a step with a full record, after the first ones, in which rows are compared as well."""
    training = Training(layers)
    with training.watched(until=40, every=1, **settings) as watch:
        yield partial(training.step, watch)


def alone(layers):
    """Gives a step that nobody watches."""
    training = Training(layers)
    training.step()
    return training.step


@pytest.mark.parametrize(("kind", "most"), [(light, 110), (full, 3600)])
def test_the_calls_of_a_step_have_a_bound(kind, most):
    with kind(20) as step:
        assert sum(calls(step).values()) <= most


def test_a_light_step_makes_as_many_calls_in_a_deep_network():
    counts = []
    for layers in (10, 80):
        with light(layers) as step:
            counts.append(calls(step))
    assert counts[0] == counts[1]


def test_a_light_step_runs_as_many_operations_in_a_deep_network():
    added = []
    for layers in (10, 80):
        with light(layers) as step:
            added.append(operations(step) - operations(alone(layers)))
    assert added[0] == added[1] <= 25


def test_a_full_record_costs_each_layer_so_many_calls_and_operations():
    calls_of, operations_of = [], []
    for layers in (20, 60):
        with full(layers, detectors=()) as step:
            calls_of.append(sum(calls(step).values()))
            operations_of.append(operations(step) - operations(alone(layers)))
    # Two modules a layer, a linear one and a ReLU; two outputs, three gradients of them, two parameters.
    assert (calls_of[1] - calls_of[0]) / 40 <= 150
    assert (operations_of[1] - operations_of[0]) / 40 <= 14


def test_no_hook_is_on_the_model_in_a_light_step():
    training, found = Training(3), []

    def look(module, _args):
        found.extend(hook for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()))

    with training.watched(until=44, every=10) as watch:
        for module in training.model.modules():
            module.register_forward_pre_hook(look)
        ran = calls(partial(training.step, watch))
    assert found
    assert not any(isinstance(hook, Hook) for hook in found)
    assert not any("Hook" in name for name in ran)


def test_the_hooks_of_a_full_record_are_made_once(monkeypatch):
    made, make = [], Hook.__init__
    monkeypatch.setattr(Hook, "__init__", lambda hook, *args, **more: made.append(hook) or make(hook, *args, **more))
    training = Training(3)
    with training.watched(until=41, every=10) as watch:
        on_modules = [hook for module in training.model.modules() for hook in module._forward_hooks.values()]
        assert not on_modules
        made.clear()
        for _ in range(10):  # one more full record
            training.step(watch)
        tensors = 8 + 3  # the outputs of linear layers and activations; the inputs of the activations
    assert len(made) == tensors


@pytest.mark.parametrize("every", [1, 10])
@pytest.mark.parametrize(("detectors", "more"), [((), 1.0), (None, 1.1)], ids=["without detectors", "with detectors"])
def test_a_late_step_makes_as_many_calls_as_an_early_one(every, detectors, more):
    training = Training(3)
    with training.watched(until=200, every=every, detectors=detectors) as watch:

        def cycle():
            for _ in range(60):  # whole cycles of cadences and of writing
                training.step(watch)

        early = sum(calls(cycle).values())
        for _ in range(1500):
            training.step(watch)
        assert early / more <= sum(calls(cycle).values()) <= early * more


@pytest.mark.parametrize("every", [1, 10])
def test_a_step_leaves_nothing_in_memory_but_its_record(every):
    training = Training(3)
    with training.watched(until=300, every=every) as watch:
        sizes = []
        tracemalloc.start()
        for _ in range(3):
            for _ in range(200):
                training.step(watch)
            kept = sum(record.rows.nbytes for record in watch.history)
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0] - kept)
        tracemalloc.stop()
    for before, after in itertools.pairwise(sizes):
        assert (after - before) / 200 <= 700, "what an empty record and its place in the history take"


def test_the_bytes_of_records_have_a_bound(tmp_path):
    training = Training(20)
    with training.watched(until=200, every=10, logdir=tmp_path) as watch:
        list(watch.history)
        (file,) = in_directory(tmp_path)
        before = file.stat().st_size
        for _ in range(10):
            training.step(watch)
        list(watch.history)
        written = file.stat().st_size - before
    light_sites, full_sites = (len(watch.history[step].sites) for step in (-2, -10))
    assert (light_sites, full_sites) == (44, 3 * 44 + 42 + 42 + 20)
    assert written <= 9 * (1300 + 8 * light_sites) + 1800 + 12 * 4 * full_sites


@pytest.mark.parametrize(("every", "together"), [(1, 12), (10, 10)])
def test_records_are_written_several_in_one_go(every, together, tmp_path, monkeypatch):
    training = Training(3)
    with training.watched(until=240, every=every, logdir=tmp_path) as watch:
        writes, append = [], gradwatch.eventfiles.EventFile.append
        monkeypatch.setattr(
            gradwatch.eventfiles.EventFile, "append", lambda file, events: writes.append(len(events)) or append(file, events)
        )
        for _ in range(70):
            training.step(watch)
    assert writes[:5] == [together] * 5
