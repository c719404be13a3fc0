"""Each gradient counts once for each backward pass that brings it, whatever order passes come in, and nothing is kept alive."""

import gc
import threading
import weakref

import pytest
import torch
from autograd_oracle import rows_of
from torch import nn

import gradwatch


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.0)


def test_micro_batches_merge_into_one_record():
    model = net()
    optimizer = sgd(model)
    batches = torch.randn(3, 5, 3)
    with gradwatch.watch(model, optimizer, every=1) as watch:
        for batch in batches:
            model(batch).square().sum().backward()
        optimizer.step()
    whole, grads = batches.flatten(0, 1), {}
    hidden = model[0](whole)
    hidden.register_hook(lambda grad: grads.update(hidden=grad))
    model[2](hidden.tanh()).square().sum().backward()

    (record,) = watch.history
    assert record.backwards == 3
    row = rows_of(watch)["0", "activation_grad"]
    assert (row.count, row.calls) == (60, 3)
    assert row.rms == pytest.approx(grads["hidden"].square().mean().sqrt().item(), rel=1e-5)
    assert row.max == pytest.approx(grads["hidden"].max().item(), rel=1e-6)


def test_two_backward_passes_through_one_graph_count_twice():
    model = net()
    optimizer = sgd(model)
    with gradwatch.watch(model, optimizer, every=1) as watch:
        loss = model(torch.ones(1, 3)).sum()
        loss.backward(retain_graph=True)
        loss.backward()
        optimizer.step()
    rows = rows_of(watch)
    assert watch.history[0].backwards == 2
    assert rows["2", "activation"].calls == 1
    assert (rows["2", "activation_grad"].calls, rows["2", "activation_grad"].mean) == (2, 1.0)
    assert (rows["1", "input_grad"].calls, rows["0", "activation_grad"].calls) == (2, 2)


class Table(nn.Module):
    """Returns its own parameter, on which a hook outlives the pass."""

    def __init__(self, view):
        super().__init__()
        self.values = nn.Parameter(torch.ones(4))
        self.view = view

    def forward(self):
        return self.values.view(2, 2) if self.view else self.values


@pytest.mark.parametrize("view", [False, True])
def test_hooks_on_a_parameter_do_not_pile_up(view):
    table = Table(view)
    optimizer = torch.optim.SGD(table.parameters(), lr=0.0)
    with gradwatch.watch(table, optimizer, every=2) as watch:
        for _ in range(4):
            for factor in (1.0, 2.0, 4.0):
                (factor * table()).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            assert not table.values._backward_hooks
    for step in (0, 2):
        row = rows_of(watch, step)["model", "activation_grad"]
        assert (row.calls, row.count) == (3, 12)
        assert row.mean == pytest.approx(7 / 3)


def test_a_gradient_that_reaches_only_some_readers_of_an_input_is_recorded():
    class Waves(nn.Module):
        def forward(self, x):
            return x.sin(), x.cos()

    model = nn.Sequential(nn.Linear(2, 2), Waves())
    optimizer = sgd(model)
    with gradwatch.watch(model, optimizer, every=1) as watch:
        x = torch.randn(5, 2)
        sine, cosine = model(x)
        sine.sum().backward(retain_graph=True)
        cosine.sum().backward()
        optimizer.step()
    z = model[0](x)
    row = rows_of(watch)["1", "input_grad"]
    assert row.calls == 2
    assert row.mean == pytest.approx(torch.cat([z.cos(), -z.sin()]).mean().item(), rel=1e-5)


def test_a_pass_through_an_old_graph_adds_nothing_to_a_record_that_does_not_sample():
    model = net()
    optimizer = sgd(model)
    with gradwatch.watch(model, optimizer, every=2) as watch:
        loss = model[2](model[1](model[0](torch.ones(1, 3)).detach())).sum()
        loss.backward(retain_graph=True)
        optimizer.step()
        loss.backward()
        optimizer.step()
    first, second = watch.history
    assert (first.backwards, second.backwards) == (1, 0)
    assert {site.tensor for site in second.sites} == {"parameter_grad"}


def test_nothing_keeps_an_activation_alive():
    model = net()
    optimizer = sgd(model)
    kept = []

    def remember(_module, _args, output):
        kept.append(weakref.ref(output))

    handles = [module.register_forward_hook(remember) for module in model]
    gc.collect()
    gc.disable()
    try:
        with gradwatch.watch(model, optimizer, every=1):
            for _ in range(2):
                loss = model(torch.randn(2, 5, 3)).sum()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                del loss
                assert len(kept) == 3
                assert not any(reference() is not None for reference in kept)
                kept.clear()
            with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
                model(torch.randn(5, 4))
            model(torch.randn(5, 3))  # a forward without a backward
            assert not any(reference() is not None for reference in kept)
    finally:
        gc.enable()
        for handle in handles:
            handle.remove()


def test_threads_may_call_a_model_at_the_same_time(caplog):
    model = net()
    optimizer = sgd(model)
    calls, workers = 40, 4

    def work(number):
        x = torch.full((number + 1, 3), float(number))
        for _ in range(calls):
            model(x).sum().backward()

    with gradwatch.watch(model, optimizer, every=1) as watch:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        optimizer.step()
    rows = rows_of(watch)
    elements = calls * sum(range(1, workers + 1))
    assert (rows["2", "activation_grad"].count, rows["2", "activation_grad"].calls) == (elements, calls * workers)
    assert (rows["2", "activation_grad"].mean, rows["2", "activation_grad"].rms) == (1.0, 1.0)
    assert rows["1", "input_grad"].calls == rows["0", "activation"].calls == calls * workers
    assert not caplog.records
