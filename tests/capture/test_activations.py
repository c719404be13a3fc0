"""Activations and their gradients are those that plain autograd gives, in every shape that eager code takes."""

import copy
from dataclasses import dataclass, field

import pytest
import torch
from autograd_oracle import assert_same, expected, watched
from torch import Tensor, nn
from torch.nn import functional

import gradwatch


@dataclass
class Case:
    model: nn.Module
    batch: tuple
    valves: tuple = field(default=())
    """Layers whose input's gradient is recorded too: functions without parameters, as far as their input needs a gradient."""


CASES = {}


def case(*batches, valves=()):
    """Enters a model and each of the batches as a case."""

    def enter(make):
        for number, batch in enumerate(batches):
            torch.manual_seed(1)
            CASES[f"{make.__name__}-{number}" if len(batches) > 1 else make.__name__] = Case(make(), (batch,), valves)
        return make

    return enter


def numbers(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.act = nn.Tanh()
        self.last = nn.Linear(6, 3)


@case(numbers(5, 4), numbers(2, 3, 4), valves=("1", "3"))
def in_place_relu():
    # A Linear's output on three-dimensional input is a view, which an in-place operation moves in the graph.
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 2))


@case(numbers(5, 4), numbers(2, 3, 4), valves=("2",))
def in_place_chain():
    return nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5, inplace=True), nn.ReLU(inplace=True), nn.Linear(6, 2))


@case(numbers(5, 4), numbers(2, 3, 4), valves=("act",))
class InPlaceReluAndSkip(Net):
    def forward(self, x):
        h = self.first(x)
        skip = h * 2
        return self.last(self.act(functional.relu_(h) + skip))


@case(numbers(5, 4), numbers(2, 3, 4), valves=("relu",))
class InPlaceModuleAndSkip(Net):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        h = self.first(x)
        skip = h * 2
        return self.last(self.relu(h) + skip)


@case(numbers(5, 4), numbers(2, 3, 4))
class InPlaceAdd(Net):
    def __init__(self):
        super().__init__()
        self.other = nn.Linear(4, 6)

    def forward(self, x):
        h = self.first(x)
        h += self.other(x)
        return self.last(h)


@case(numbers(5, 4), numbers(2, 3, 4), valves=("act",))
class InPlaceSlice(Net):
    def forward(self, x):
        h = self.first(x)
        h[..., 1] = 0
        h[..., 2] *= 3
        return self.last(self.act(h))


@case(numbers(2, 2, 4, 4), valves=("2", "4"))
def in_place_relu_after_a_view():
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.ReLU(inplace=True), nn.Unflatten(1, (3, 4)), nn.Tanh())


@case(numbers(5, 4), valves=("act",))
class DictOutput(Net):
    class Heads(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            return {"mean": out[:, :2], "more": [out[:, 2:], (out.sum(), "a label", 3)]}

    def __init__(self):
        super().__init__()
        self.last = self.Heads(6, 3)

    def forward(self, x):
        out = self.last(self.act(self.first(x)))
        return [out["mean"], out["more"][0], out["more"][1][0]]


@dataclass
class Prediction:
    logits: Tensor
    features: Tensor
    labels: object = None


@case(numbers(5, 4), valves=("act",))
class DataclassOutput(Net):
    class Head(nn.Linear):
        def forward(self, x):
            return Prediction(super().forward(x), x * 1)

    def __init__(self):
        super().__init__()
        self.last = self.Head(6, 3)

    def forward(self, x):
        out = self.last(self.act(self.first(x)))
        return out.logits, out.features


@case(numbers(5, 4), valves=("gate",))
class KwargsOnly(Net):
    class Gate(nn.Module):
        def forward(self, *, value, gate):
            return value * torch.sigmoid(gate)

    def __init__(self):
        super().__init__()
        self.gate = self.Gate()

    def forward(self, x):
        h = self.first(x)
        return self.last(self.gate(value=h, gate=h.cos()))


@case(numbers(5, 4), numbers(2, 3, 4), valves=("act",))
class Skip(Net):
    def forward(self, x):
        h = self.first(x)
        return self.last(h.exp() + self.act(h) + h)


@case(numbers(5, 4), numbers(2, 3, 4), valves=("act",))
class ReadsItsInputTwice(Net):
    class Swish(nn.Module):
        def forward(self, x):
            return x * torch.sigmoid(x)

    def __init__(self):
        super().__init__()
        self.act = self.Swish()

    def forward(self, x):
        h = self.first(x)
        return self.last(h.exp() + self.act(h) + h)


@case(numbers(5, 4), valves=("act",))
class Repeated(Net):
    def __init__(self):
        super().__init__()
        self.middle = nn.Linear(6, 6)

    def forward(self, x):
        h = self.first(x)
        for _ in range(3):
            h = self.act(self.middle(h)) + h
        return self.last(h)


@case(numbers(5, 4), valves=("0",))
def shared():
    first, last = nn.Linear(4, 4), nn.Tanh()
    return nn.Sequential(last, first, last, first, last)


@case(numbers(5, 4), valves=("stats",))
class UnusedOutputs(Net):
    class Stats(nn.Module):
        def forward(self, x):
            return torch.std_mean(x, dim=0)

    def __init__(self):
        super().__init__()
        self.stats = self.Stats()

    def forward(self, x):
        h = self.first(x)
        _, mean = self.stats(h)
        return self.last(h - mean)


@case(numbers(5, 4), valves=("act",))
class HalfUsed(Net):
    class Waves(nn.Module):
        def forward(self, x):
            return x.sin(), x.cos(), x.exp()

    def __init__(self):
        super().__init__()
        self.act = self.Waves()

    def forward(self, x):
        sine, _, exponential = self.act(self.first(x))
        return self.last(sine + exponential)


@case(numbers(5, 4))
class UnusedView(Net):
    def __init__(self):
        super().__init__()
        self.flat = nn.Flatten(0)

    def forward(self, x):
        h = self.first(x)
        self.flat(h)
        return self.last(h)


@case(numbers(3, 5, 4), valves=())
class Lstm(Net):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(4, 6, num_layers=2, batch_first=True)

    def forward(self, x):
        out, _ = self.rnn(x)
        return self.last(out[:, -1])


@case(numbers(5, 4), valves=("act",))
class WithIdentity(Net):
    def __init__(self):
        super().__init__()
        self.same = nn.Identity()

    def forward(self, x):
        h = self.same(self.first(x))
        return self.last(self.act(h) + h)


@case(numbers(5, 4))
class ReturnsItsParameter(Net):
    class Table(nn.Module):
        def __init__(self, view):
            super().__init__()
            self.values = nn.Parameter(torch.linspace(-1, 1, 6))
            self.view = view

        def forward(self):
            return self.values.view(1, 6) if self.view else self.values

    def __init__(self):
        super().__init__()
        self.whole, self.seen = self.Table(view=False), self.Table(view=True)

    def forward(self, x):
        return self.last(self.first(x) * self.whole() + self.seen())


@case(numbers(3, 5, 4), valves=())
class Attention(Net):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        h = self.first(x)[..., :4]
        out, _ = self.attention(h, h, h)
        return self.last(functional.pad(out + h, (0, 2)))


@case(numbers(3, 5, 4), valves=("attention",))
class ComparesItsInputs(Net):
    class Attention(nn.Module):
        def forward(self, query, key, value):
            assert query is key, "this attention packs its projections only where it attends to itself"
            return functional.scaled_dot_product_attention(query, key, value)

    def __init__(self):
        super().__init__()
        self.attention = self.Attention()

    def forward(self, x):
        h = self.first(x)
        return self.last(self.attention(h, h, h) + h)


@case(numbers(5, 4), valves=("act",))
class Surrogate(Net):
    class Spike(nn.Module):
        class Step(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save_for_backward(x)
                return (x > 0).to(x.dtype)

            @staticmethod
            def backward(ctx, grad):
                (x,) = ctx.saved_tensors
                return grad / (1 + x.abs()) ** 2

        def forward(self, x):
            return self.Step.apply(x)

    def __init__(self):
        super().__init__()
        self.act = self.Spike()

    def forward(self, x):
        h = self.first(x)
        return self.last(self.act(h) - h)


@case(numbers(5, 4), valves=("act",))
class Frozen(Net):
    def __init__(self):
        super().__init__()
        self.before = nn.Linear(4, 4).requires_grad_(False)
        self.quiet = nn.Tanh()
        self.last.requires_grad_(False)

    def forward(self, x):
        return self.last(self.act(self.first(self.quiet(self.before(x)))))


@case(torch.tensor([[0, 3, 3], [1, 2, 0]]), valves=("act",))
class SparseEmbedding(Net):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 4, sparse=True)

    def forward(self, words):
        return self.last(self.act(self.first(self.table(words))))


@case(numbers(5, 4).double(), valves=("1",))
def float64():
    return nn.Sequential(nn.Linear(4, 6), nn.Softplus(), nn.Linear(6, 3)).double()


@case(numbers(5, 4).bfloat16(), valves=("1",))
def bfloat16():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).bfloat16()


@case(numbers(5, 4).half(), valves=("1",))
def float16():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).half()


@case(numbers(4, 2, 6, 6), valves=("2", "3"))
def convolution():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 2)
    )


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_autograd(name, caplog):
    case = CASES[name]
    rows = watched(copy.deepcopy(case.model), case.batch)
    assert_same(rows, expected(case.model, case.batch, case.valves))
    assert not caplog.records


def test_a_layer_that_is_first_reached_later_stands_where_forward_comes_by():
    class Skipping(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.block, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1)
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            x = self.stem(x)
            return self.head(self.block(x) if self.calls > 1 else x)

    model = Skipping()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer, every=1, on_finding=lambda finding: None) as watch:
        for _ in range(2):
            model(torch.ones(2, 3)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    layers = [site.layer for site in watch.history[-1].sites if site.tensor == "activation"]
    assert layers == ["stem", "block", "head"]


def test_a_layer_that_is_called_again_and_again_does_not_turn_the_order_around():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu, self.one, self.two = nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.relu(self.two(self.relu(self.one(x))) + x)

    model = nn.Sequential(Residual(), Residual(), nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer, every=1) as watch:
        for _ in range(2):
            for _ in range(2):
                model(torch.ones(2, 3)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    for record in watch.history:
        layers = [site.layer for site in record.sites if site.tensor == "activation"]
        assert layers == ["0.one", "0.relu", "0.two", "1.one", "1.relu", "1.two", "2"]
