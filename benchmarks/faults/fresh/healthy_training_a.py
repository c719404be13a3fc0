"""Healthy programs: regularisation, schedules, noise, precision and initial weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from .. import data
from ..core import Built, healthy, scheduled_loop
from ..more._loops import own_loss
from ..more._programs import named, teacher, waves
from ..nets import MLP, he, init_linear

CE = nn.CrossEntropyLoss()


def agree(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    a, b = model(x).log_softmax(-1), model(x).log_softmax(-1)
    kl = F.kl_div(a, b, log_target=True, reduction="batchmean") + F.kl_div(b, a, log_target=True, reduction="batchmean")
    return 0.5 * (F.nll_loss(a, y) + F.nll_loss(b, y)) + 0.5 * kl


@healthy("fresh", "Liang et al. 2021 (R-Drop)", train=own_loss(), loss_ratio=0.7)
def two_passes_of_dropout_agree() -> Built:
    """Each step runs the model twice and asks the two dropout samples to agree."""
    x, y = teacher(seed=5)
    model = MLP(20, 64, 2, 4, act=nn.GELU, dropout=0.3)
    return Built(model, torch.optim.AdamW(model.parameters(), lr=3e-3), agree, data.minibatches(x, y, 64, 160))


def noisy(model, opt, loss_fn, batches, on_step) -> None:
    g = data.gen(241)
    for step, (x, y) in enumerate(batches):
        opt.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        for p in model.parameters():
            p.grad.add_((0.01 / (1 + step) ** 0.55) ** 0.5 * torch.randn(p.shape, generator=g))
        opt.step()
        on_step(step, loss.item())


@healthy("fresh", "Neelakantan et al. 2015 (annealed gradient noise)", train=noisy)
def gradient_noise() -> Built:
    """Gaussian noise as large as the gradient is added in the first steps, and fades."""
    x, y = data.flat_glyphs(seed=12)
    model = init_linear(MLP(64, 48, 3, 10), he)
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), CE, data.minibatches(x, y, 64, 140))


def smooth(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    out = model(x)
    (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    return F.mse_loss(out, y) + 0.02 * slope.square().sum(1).mean()


@healthy("fresh", "Drucker & Le Cun 1992 (double back-propagation)", train=own_loss(), loss_ratio=0.65)
def input_gradient_penalty() -> Built:
    """The loss contains the gradient with respect to the input; the last bias is not in that part."""
    x, y = data.smooth_regression(seed=8)
    model = MLP(8, 48, 2, 1, act=nn.Softplus)
    return Built(model, torch.optim.Adam(model.parameters(), lr=1e-2), smooth, data.minibatches(x, y, 64, 180))


class HardConcrete(nn.Module):
    """Gates per input feature that can be exactly zero or one."""

    def __init__(self, n: int):
        super().__init__()
        self.log_alpha = nn.Parameter(torch.full((n,), 1.0))

    def forward(self, x: Tensor) -> Tensor:
        a = self.log_alpha
        if self.training:
            u = torch.rand(a.shape).clamp(1e-4, 1 - 1e-4)
            a = (u.logit() + a) / 0.66
        return x * (1.2 * a.sigmoid() - 0.1).clamp(0, 1)

    def cost(self) -> Tensor:
        return (self.log_alpha + 1.58).sigmoid().sum()


def sparse(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(model(x), y) + 0.01 * model.gate.cost()


@healthy("fresh", "Louizos et al. 2018 (L0 regularisation)", train=own_loss(), loss_ratio=0.6)
def hard_concrete_gates() -> Built:
    """24 of 32 inputs are noise; their gates close for good, which is the aim."""
    g = data.gen(242)
    x = torch.randn(900, 32, generator=g)
    y = (x[:, :8] @ torch.randn(8, 1, generator=g)) / 8**0.5 + x[:, :1] * x[:, 1:2]
    model = named(gate=HardConcrete(32), fc1=nn.Linear(32, 40), act=nn.ELU(), out=nn.Linear(40, 1))
    groups = [{"params": model.gate.parameters(), "lr": 0.1}, {"params": [*model.fc1.parameters(), *model.out.parameters()]}]
    return Built(model, torch.optim.Adam(groups, lr=5e-3), sparse, data.minibatches(x, y, 60, 200))


def wsd(s: int) -> float:
    return (s + 1) / 15 if s < 15 else 1.0 if s < 130 else max(0.0, (180 - s) / 50)


@healthy(
    "fresh",
    "Hu et al. 2024 (MiniCPM: warm-up, stable, decay)",
    train=scheduled_loop(lambda o: torch.optim.lr_scheduler.LambdaLR(o, wsd)),
    loss_ratio=0.7,
)
def warm_up_stable_decay() -> Built:
    """A plateau at a high rate, then a fall of the loss as the rate goes to zero."""
    x, y = teacher(seed=6)
    y = torch.where(torch.rand(len(y), generator=data.gen(243)) < 0.1, (y + 1) % 4, y)
    model = MLP(20, 64, 3, 4, norm=nn.LayerNorm)
    return Built(model, torch.optim.AdamW(model.parameters(), lr=8e-3), CE, data.minibatches(x, y, 32, 180))


class Averaged(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = MLP(32, 40, 2, 4, act=nn.Tanh)
        self.mean = copy.deepcopy(self.net).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def swa(model, opt, loss_fn, batches, on_step) -> None:
    n = 0
    for step, (x, y) in enumerate(batches):
        opt.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        opt.step()
        if step >= 80 and step % 10 == 0:
            n += 1
            with torch.no_grad():
                for a, p in zip(model.mean.parameters(), model.net.parameters()):
                    a.lerp_(p, 1 / n)
        on_step(step, loss.item())


@healthy("fresh", "Izmailov et al. 2018 (SWA), the average a submodule of the model", train=swa)
def weight_average_inside_model() -> Built:
    """A frozen copy that is never run in training, does not move for 80 steps and then does, without a gradient."""
    x, y = waves(seed=3)
    model = Averaged()
    opt = torch.optim.SGD(model.net.parameters(), lr=0.15, momentum=0.9)
    return Built(model, opt, CE, data.minibatches(x.squeeze(1), y, 40, 160))


@healthy("fresh", "Miyato et al. 2018 (spectral norm) and a Lipschitz net with GroupSort (Anil et al. 2019)", loss_ratio=0.6)
def lipschitz_groupsort() -> Built:
    """Every layer has norm one, the activation only sorts: nothing ever grows, the loss falls slowly to its floor."""
    x, y = data.smooth_regression(seed=9)
    parts: dict[str, nn.Module] = {}
    for i, (a, b) in enumerate([(8, 40), (40, 40), (40, 40)]):
        parts |= {f"fc{i}": parametrizations.spectral_norm(nn.Linear(a, b)), f"sort{i}": GroupSort()}
    model = named(**parts, out=nn.Linear(40, 1))
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-3), nn.MSELoss(), data.minibatches(x, y, 64, 180))


class GroupSort(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, 2)).sort(-1).values.flatten(-2)


class Autocast(nn.Module):
    """Runs its net in bfloat16 and keeps its weights in float32."""

    def __init__(self):
        super().__init__()
        self.net = MLP(64, 48, 2, 10, act=nn.SiLU, norm=nn.LayerNorm)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.net(x).float()


@healthy("fresh", "bfloat16 autocast with master weights in float32", requires=("sklearn",))
def bfloat16_autocast() -> Built:
    """Activations carry eight bits: many are equal, small differences are zero, and it trains as well."""
    x, y = data.sk_digits()
    model = Autocast()
    return Built(model, torch.optim.AdamW(model.parameters(), lr=3e-3), CE, data.minibatches(x / 16, y, 64, 120))


class Fake(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, step: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.step = step
        return (x / step).round().clamp(-7, 7) * step

    @staticmethod
    def backward(ctx, grad: Tensor):
        (x,) = ctx.saved_tensors
        return grad * (x.abs() <= 7.5 * ctx.step), None


class FourBit(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, Fake.apply(self.weight, float(self.weight.detach().abs().max() / 7)), self.bias)


@healthy("fresh", "Jacob et al. 2018 (quantisation-aware training), four bits per weight", loss_ratio=0.5)
def four_bit_aware_training() -> Built:
    """Rounded weights in the forward pass, straight-through gradients, masters in full precision: small steps do count."""
    x, y = data.flat_glyphs(seed=13)
    model = named(fc1=FourBit(64, 64), act1=nn.ReLU(), fc2=FourBit(64, 32), act2=nn.ReLU(), out=nn.Linear(32, 10))
    return Built(model, torch.optim.Adam(model.parameters(), lr=3e-3), CE, data.minibatches(x, y, 64, 130))


@healthy("fresh", "Mishkin & Matas 2016 (LSUV) on a net of Swish layers", loss_ratio=0.6)
def layers_scaled_by_data() -> Built:
    """Each of eight layers is rescaled on a batch so that its outputs have unit variance; weights end up of unlike sizes."""
    x, y = teacher(seed=7)
    model = init_linear(MLP(20, 48, 8, 4, act=nn.SiLU), nn.init.orthogonal_)
    with torch.no_grad():
        h = x[:128]
        for layer, act in zip(model.layers, model.acts):
            layer.weight.div_(layer(h).std())
            h = act(layer(h))
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.008, momentum=0.9), CE, data.minibatches(x, y, 64, 180))


class Width(nn.Module):
    """A wide net in muP: the read-out is divided by the width and starts at zero."""

    def __init__(self, width: int = 256):
        super().__init__()
        self.fc1, self.fc2, self.out = nn.Linear(8, width), nn.Linear(width, width), nn.Linear(width, 1, bias=False)
        nn.init.zeros_(self.out.weight)
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.fc2(F.relu(self.fc1(x))))) * 16 / self.width


@healthy("fresh", "Yang et al. 2021 (muP), with Adam rates per layer", loss_ratio=0.5)
def mup_rates_per_layer() -> Built:
    """Hidden rates are an eighth of the input's; the read-out starts at zero and carries a factor of 1/16."""
    x, y = data.smooth_regression(seed=10)
    model = Width()
    rates = ((model.fc1, 8e-3), (model.fc2, 1e-3), (model.out, 8e-3))
    opt = torch.optim.Adam([{"params": m.parameters(), "lr": lr} for m, lr in rates])
    return Built(model, opt, nn.MSELoss(), data.minibatches(x, y, 64, 150))


def momentum_cycles(model, opt, loss_fn, batches, on_step) -> None:
    sched = torch.optim.lr_scheduler.CyclicLR(opt, 0.005, 0.2, step_size_up=25, cycle_momentum=True, mode="triangular2")
    for step, (x, y) in enumerate(batches):
        opt.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        opt.step()
        sched.step()
        on_step(step, loss.item())


@healthy("fresh", "Smith 2017 (cyclical rates, triangular2, momentum in opposite phase)", train=momentum_cycles, loss_ratio=0.6)
def triangular_rate_and_momentum() -> Built:
    """Rate between 0.005 and 0.2, momentum between 0.9 and 0.8: the loss comes and goes with it."""
    x, y = teacher(seed=8)
    model = MLP(20, 48, 2, 4, act=nn.Mish, norm=nn.BatchNorm1d)
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9), CE, data.minibatches(x, y, 50, 180))
