"""A recomputed forward is not a second one, a functional transform is not a training step, and what builds no graph is ignored."""

import copy

import pytest
import torch
from autograd_oracle import assert_same, expected, rows_of
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint

import gradwatch


class Block(nn.Module):
    def __init__(self, inner=None):
        super().__init__()
        self.linear, self.act, self.inner = nn.Linear(4, 4), nn.ReLU(inplace=True), inner

    def forward(self, x):
        h = self.act(self.linear(x))
        return h if self.inner is None else self.inner(h)


class Checkpointed(nn.Module):
    def __init__(self, options):
        super().__init__()
        self.inner, self.options = Block(), options

    def forward(self, x):
        return checkpoint(self.inner, x, **self.options) if self.options else self.inner(x)


class Net(nn.Module):
    def __init__(self, options):
        super().__init__()
        self.first, self.block, self.last = nn.Linear(3, 4), Block(Checkpointed(options)), nn.Linear(4, 2)
        self.options = options

    def forward(self, x):
        h = self.first(x)
        h = checkpoint(self.block, h, **self.options) if self.options else self.block(h)
        return self.last(h)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of a reentrant checkpoint in another one
@pytest.mark.parametrize(
    "options",
    [{"use_reentrant": False}, {"use_reentrant": True}, {"use_reentrant": False, "early_stop": False}],
    ids=["non-reentrant", "reentrant", "no early stop"],
)
@pytest.mark.parametrize("shape", [(5, 3), (2, 5, 3)], ids=["matrix", "views"])
def test_checkpointing_counts_nothing_twice(options, shape):
    torch.manual_seed(0)
    plain, x = Net({}), torch.randn(shape)
    model = Net(options)
    model.load_state_dict(plain.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradwatch.watch(model, optimizer, every=1) as watch:
        model(x).square().sum().backward()
        optimizer.step()
    assert watch.history[0].backwards == 1
    reference = expected(plain, (x,), ("block.act", "block.inner.inner.act"), loss=lambda out: out.square().sum())
    assert_same(rows_of(watch), reference)


def test_functional_transforms_are_left_alone(caplog):
    torch.manual_seed(0)
    model, loss_fn = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x, y = torch.randn(5, 3), torch.randn(5, 1)

    def loss_of(parameters, x, y):
        return loss_fn(functional_call(model, parameters, (x,)), y)

    parameters = dict(model.named_parameters())
    unwatched = vmap(grad(loss_of), (None, 0, 0))(parameters, x, y)
    with gradwatch.watch(model, optimizer, every=1, loss_fn=loss_fn) as watch:
        alone = grad(lambda p: watch.loss(watch.tap("tapped", loss_of(p, x, y))))(parameters)
        each = vmap(grad(loss_of), (None, 0, 0))(parameters, x, y)
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
    assert not caplog.records
    for name, gradients in each.items():
        assert torch.equal(gradients, unwatched[name])
        torch.testing.assert_close(gradients.mean(0), alone[name])
    (record,) = watch.history
    assert record.loss == pytest.approx(loss.item())
    assert rows_of(watch)["0", "activation"].calls == 1


def test_forwards_that_build_no_graph_record_nothing():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x = torch.randn(5, 3)
    with gradwatch.watch(model, optimizer, every=1) as watch:
        for _ in range(2):
            with torch.no_grad():
                model.eval()(x * 100)
            with torch.inference_mode():
                model(x * 100)
            model.train()(x).sum().backward()
            with torch.no_grad():
                model(x * 100)
            optimizer.step()
    reference = expected(copy.deepcopy(model), (x,), ("1",), loss=torch.sum)
    for step in (0, 1):
        assert_same(rows_of(watch, step), reference)
