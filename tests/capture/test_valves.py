"""The local derivative of elementwise activations, against hand-written derivatives, and that asking leaves nothing behind."""

import math
import threading

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gradwatch.capture import valves
from gradwatch.capture.valves import is_valve, valve


class Swish(nn.Module):
    """An activation with a parameter for each channel."""

    def __init__(self, channels):
        super().__init__()
        self.beta = nn.Parameter(torch.linspace(0.5, 1.5, channels))

    def forward(self, x):
        return x * torch.sigmoid(self.beta * x)


class Step(nn.Module):
    def forward(self, x):
        return (x > 0).to(x.dtype)


class Surrogate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient / (1 + x.abs()) ** 2


class Spike(nn.Module):
    def forward(self, x):
        return Surrogate.apply(x)


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((6,), 1e-4))

    def forward(self, x):
        return x * self.gamma


class RootMeanSquare(nn.Module):
    def forward(self, x):
        return x / x.square().mean(-1, keepdim=True).sqrt()


class HandSoftmax(nn.Module):
    def forward(self, x):
        return x.exp() / x.exp().sum(-1, keepdim=True)


class Noise(nn.Module):
    def forward(self, x):
        return x * (torch.rand_like(x) > 0.5)


class Neuron(nn.Module):
    """A hand-written linear layer, of one input and one output: elementwise, but a scale and a shift only."""

    def __init__(self):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.ones(1, 1)), nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x @ self.w + self.b


class Refuses(nn.Module):
    def forward(self, x):
        if x.shape[0] != 7:
            raise ValueError("only seven")
        return x.tanh()


X = torch.linspace(-3, 3, 24).view(4, 6)


@pytest.mark.parametrize(
    ("module", "derivative"),
    [
        (nn.Sigmoid(), lambda z: math.exp(-z) / (1 + math.exp(-z)) ** 2),
        (nn.Tanh(), lambda z: 1 / math.cosh(z) ** 2),
        (nn.ReLU(inplace=True), lambda z: float(z > 0)),
        (nn.LeakyReLU(0.1), lambda z: 1 if z > 0 else 0.1),
        (nn.ELU(), lambda z: 1 if z > 0 else math.exp(z)),
        (nn.Softplus(), lambda z: 1 / (1 + math.exp(-z))),
        (nn.GELU(), lambda z: (1 + math.erf(z / 2**0.5)) / 2 + z * math.exp(-z * z / 2) / (2 * math.pi) ** 0.5),
        (nn.Hardtanh(), lambda z: float(-1 < z < 1)),
        (Step(), lambda z: 0),
        (Spike(), lambda z: 1 / (1 + abs(z)) ** 2),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_mean_derivative_and_closed_share_are_those_of_the_formula(module, derivative):
    assert is_valve(module, X)
    expected = [abs(derivative(z)) for z in X.flatten().tolist()]
    found = valve(module, X, closed=0.1)
    assert float(found.derivative) == pytest.approx(sum(expected) / 24, rel=1e-5)
    assert float(found.closed) == pytest.approx(sum(size < 0.1 for size in expected) / 24)


def test_one_saturated_sigmoid():
    assert float(valve(nn.Sigmoid(), torch.tensor([[20.0]])).derivative) == 0  # float32: a is exactly 1
    assert float(valve(nn.Sigmoid(), torch.tensor([[-20.0]])).derivative) == pytest.approx(math.exp(-20), rel=1e-4)
    assert float(valve(nn.Sigmoid(), torch.tensor([0.0, 10, -20, 20])).closed) == 0.75
    assert float(valve(nn.Sigmoid(), torch.tensor(6.8)).closed) == 0
    assert float(valve(nn.Sigmoid(), torch.tensor(7.0)).closed) == 1


@pytest.mark.parametrize("module", [Swish(6), nn.PReLU(6), nn.PReLU(), nn.RReLU(), nn.Threshold(0.1, 0), nn.SiLU(inplace=True)])
def test_activations(module):
    assert is_valve(module, X)
    assert 0 < float(valve(module, X).derivative) < 1.1


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(6, 6), nn.Softmax(-1), nn.LogSoftmax(-1), nn.LayerNorm(6), nn.Dropout(), nn.Identity(), nn.GLU(), nn.Flatten(),
        nn.BatchNorm1d(6).eval(), nn.Sequential(nn.Tanh()), Scale(), RootMeanSquare(), HandSoftmax(), Noise(), Refuses(),
    ],
    ids=lambda module: type(module).__name__,
)  # fmt: skip
def test_what_is_no_activation(module):
    assert not is_valve(module, X)


def test_a_hand_written_linear_layer_is_no_activation_even_with_one_input_and_one_output():
    assert not is_valve(Neuron(), torch.ones(5, 1))


@pytest.mark.parametrize("x", [torch.arange(4), torch.empty(0, 3), torch.eye(3).to_sparse(), torch.ones(2, dtype=torch.complex64)])
def test_what_has_no_derivative(x):
    assert not is_valve(nn.Tanh(), x)


def test_a_channel_keeps_its_own_slope_in_the_sample():
    prelu = nn.PReLU(3)
    with torch.no_grad():
        prelu.weight.copy_(torch.tensor([0.1, 0.2, 0.6]))
    assert float(valve(prelu, -torch.ones(2, 3, 200, 200)).derivative) == pytest.approx(0.3)


SIZES = []


class Recording(nn.Module):
    def forward(self, x):
        SIZES.append(x.numel())
        return x.tanh()


@pytest.mark.parametrize("shape", [(70_000,), (300, 300), (1, 3, 500, 500), (2, 65_537), ()])
def test_at_most_so_many_elements_are_differentiated(shape):
    SIZES.clear()
    valve(Recording(), torch.ones(shape))
    assert 0.2 * min(valves.SAMPLE, math.prod(shape)) <= SIZES[0] <= valves.SAMPLE


class Busy(nn.Module):
    """Does everything that a forward should not: counts, caches, updates a buffer, draws random numbers, writes in place."""

    def __init__(self):
        super().__init__()
        self.calls, self.last, self.log = 0, None, []
        self.register_buffer("mean", torch.zeros(()))
        self.inner = nn.Tanh()

    def forward(self, x):
        self.calls += 1
        self.log.append(x.mean().item())
        self.mean.add_(x.detach().mean())
        torch.rand(3)
        self.last = self.inner(x.mul_(2))
        return self.last


def test_asking_leaves_nothing_behind():
    module, x = Busy(), X.clone().requires_grad_()
    called = []
    module.register_forward_hook(lambda *_: called.append("forward"))
    module.inner.register_forward_pre_hook(lambda *_: called.append("inner"))
    module.inner.register_full_backward_hook(lambda *_: called.append("backward"))
    state, before = torch.get_rng_state(), {name: repr(value) for name, value in vars(module).items()}
    with torch.no_grad():
        assert is_valve(module, x)
        assert 0 < float(valve(module, x).derivative) < 2
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: repr(value) for name, value in vars(module).items()} == before
    assert (module.calls, module.last, module.log, called, module.training) == (0, None, [], [], True)
    assert torch.equal(x, X)
    assert x.grad is None


def test_parameters_get_no_gradient():
    module = Swish(6)
    valve(module, X)
    assert module.beta.grad is None
    assert torch.equal(module.beta, torch.linspace(0.5, 1.5, 6))


def test_a_cached_output_of_the_pass_is_no_obstacle():
    module = Busy()
    module(X.clone().requires_grad_().mul(1)).sum()
    assert is_valve(module, X)


def test_inference_mode():
    with torch.inference_mode():
        x = X * 2
        assert is_valve(nn.Tanh(), x)
        assert is_valve(Swish(6), x)
        assert float(valve(nn.Tanh(), x).derivative) > 0


def test_hooks_on_saved_tensors_see_nothing():
    seen = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: seen.append(tensor) or tensor, lambda tensor: tensor):
        valve(nn.Sigmoid(), X)
        is_valve(Swish(6), X)
    assert seen == []


def test_half_precision_saturates_earlier():
    z = torch.full((4,), 12.0)
    assert float(valve(nn.Sigmoid(), z).derivative) > 0
    half = valve(nn.Sigmoid(), z.bfloat16())
    assert float(half.derivative) == 0
    assert half.derivative.dtype == torch.float32


def test_no_value_is_read_from_the_device():
    with FakeTensorMode():
        found = valve(nn.GELU(), torch.empty(4, 70_000))
    assert found.derivative.shape == found.closed.shape == ()


def test_a_non_finite_input_is_not_hidden():
    found = valve(nn.Tanh(), torch.tensor([0.0, float("nan")]))
    assert math.isnan(float(found.derivative))


def test_in_another_thread_too():
    results = []
    thread = threading.Thread(target=lambda: results.append(float(valve(nn.ReLU(), X).closed)))
    thread.start()
    thread.join()
    assert results == [0.5]
