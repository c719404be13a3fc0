"""Faulty programs: gradients that explode over time or iterations, and values that are not finite."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import data
from ..core import Built, faulty, need
from ..more._loops import own_loss
from ..more._programs import named
from ..nets import MLP, he, init_linear

CE = nn.CrossEntropyLoss()
AFTER_NAN = "zero_gradient loss_stagnant not_updated loss_unstable update_ratio exploding_gradient"


class AddingRNN(nn.Module):
    def __init__(self, gain: float):
        super().__init__()
        self.rnn = nn.RNN(2, 24, nonlinearity="relu", batch_first=True)
        self.out = nn.Linear(24, 1)
        nn.init.orthogonal_(self.rnn.weight_hh_l0, gain)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0][:, -1])


@faulty(
    "blind",
    "exploding_gradient",
    "Pascanu et al. 2013; the adding problem of Hochreiter & Schmidhuber 1997, with nn.RNN",
    must=[need("exploding_gradient|bad_scale|loss_unstable", "rnn rnn.* out loss", by=15)],
    may="exploding_gradient bad_scale loss_unstable non_finite update_ratio dead_units zero_gradient loss_stagnant not_updated",
    tags=frozenset({"temporal"}),
)
def fused_relu_rnn_gain_3(fixed: bool = False) -> Built:
    """nn.RNN(relu) over 40 steps with recurrent gain 3: states of 1e13, and gradients to match."""
    g = data.gen(72)
    batches = []
    for _ in range(120):
        x = torch.rand(32, 40, 2, generator=g)
        x[:, :, 1] = 0
        x[:, 3, 1] = x[:, 20, 1] = 1
        batches.append((x, (x[:, :, 0] * x[:, :, 1]).sum(1, keepdim=True)))
    model = AddingRNN(0.95 if fixed else 3.0)
    return Built(model, torch.optim.Adam(model.parameters(), lr=2e-3), nn.MSELoss(), batches)


class FixedPoint(nn.Module):
    """Z <- f(W z + U x), iterated 25 times with gradients through the iteration."""

    def __init__(self, radius: float, d: int = 24):
        super().__init__()
        self.inp, self.step, self.read = nn.Linear(8, d), nn.Linear(d, d), nn.Linear(d, 1)
        self.act = nn.LeakyReLU(0.3)
        nn.init.orthogonal_(self.step.weight, radius)

    def forward(self, x: Tensor) -> Tensor:
        u = self.inp(x)
        z = torch.zeros_like(u)
        for _ in range(25):
            z = self.act(self.step(z) + u)
        return self.read(z)


@faulty(
    "blind",
    "exploding_gradient",
    "equilibrium model whose map does not contract (Bai et al. 2021, 'Stabilizing equilibrium models by Jacobian regularization')",
    must=[need("exploding_gradient|bad_scale|loss_unstable", "*", by=20)],
    may="exploding_gradient bad_scale loss_unstable update_ratio non_finite loss_stagnant vanishing_gradient",
    tags=frozenset({"temporal"}),
    loss_ratio=0.8,
)
def equilibrium_that_does_not_contract(fixed: bool = False) -> Built:
    """Gain 2.5 in each of 25 iterations."""
    x, y = data.smooth_regression()
    model = FixedPoint(0.6 if fixed else 2.5)
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.05), nn.MSELoss(), data.minibatches(x, y, 64, 120))


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.clone()

    @staticmethod
    def backward(ctx, grad: Tensor):
        return -ctx.strength * grad, None


class DomainAdversarial(nn.Module):
    def __init__(self, strength: float):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, 48), nn.ELU(), nn.Linear(48, 32), nn.ELU())
        self.label, self.domain = nn.Linear(32, 10), nn.Sequential(nn.Linear(32, 24), nn.ELU(), nn.Linear(24, 2))
        self.strength = strength

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return self.label(h), self.domain(Reverse.apply(h, self.strength))


def domain_loss(out, target):
    y, d = target
    return F.cross_entropy(out[0], y) + F.cross_entropy(out[1], d)


@faulty(
    "blind",
    "exploding_gradient",
    "gradient reversal (Ganin & Lempitsky 2015) with its strength in percent instead of a fraction",
    must=[need("exploding_gradient|loss_unstable|update_ratio|bad_scale", "*", by=60)],
    may="exploding_gradient loss_unstable update_ratio bad_scale saturated loss_stagnant vanishing_gradient non_finite",
)
def gradient_reversal_times_100(fixed: bool = False) -> Built:
    """The trunk is driven away by 100 times the domain gradient: activations grow, the loss climbs."""
    x, y = data.flat_glyphs()
    batches = []
    for i, (a, b) in enumerate(data.minibatches(x, y, 64, 180)):
        d = torch.arange(64) % 2
        batches.append((a + 0.3 * d.unsqueeze(1), (b, d)))
    model = DomainAdversarial(0.1 if fixed else 100.0)
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5), domain_loss, batches)


class Sphere(nn.Module):
    """Embeds both halves of a pair on the unit sphere."""

    def __init__(self):
        super().__init__()
        self.first, self.act, self.second = nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 3)

    def forward(self, pair: Tensor) -> Tensor:
        z = F.normalize(self.second(self.act(self.first(pair))), dim=-1)
        return (z[:, 0] * z[:, 1]).sum(1)


def angular(limit: float):
    return lambda cosine, wanted: (torch.acos(cosine.clamp(-limit, limit)) - wanted).pow(2).mean()


@faulty(
    "blind",
    "non_finite",
    "acos at 1: the derivative is -1/0 (pytorch#8069 and many rotation losses)",
    must=[need("non_finite", "second act first model loss", by=45)],
    may=AFTER_NAN,
    onset=40,
)
def acos_of_one(fixed: bool = False) -> Built:
    """At step 40 the batch holds pairs of a point with itself: cos = 1, the loss stays finite, the gradient is NaN."""
    g = data.gen(73)
    fold = torch.randn(6, 3, generator=g)
    batches = []
    for s in range(120):
        pair = torch.randn(48, 2, 6, generator=g)
        if s == 40:
            pair[:12, 1] = pair[:12, 0]
        z = F.normalize(pair @ fold, dim=-1)
        batches.append((pair, torch.acos((z[:, 0] * z[:, 1]).sum(1).clamp(-1, 1))))
    model = Sphere()
    return Built(model, torch.optim.Adam(model.parameters(), lr=1e-2), angular(1 - 1e-6 if fixed else 1.0), batches)


class Embedder(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = MLP(64, 48, 2, 16)
        init_linear(self.net, he)
        with torch.no_grad():
            self.net.head.weight[3].zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def variance_invariance(eps: float):
    def loss(model: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        u, v = model(a), model(b)
        spread = sum(F.relu(1 - torch.sqrt(z.var(0) + eps)).mean() for z in (u, v))
        return 5 * F.mse_loss(u, v) + spread

    return loss


@faulty(
    "blind",
    "non_finite",
    "standard deviation of a constant feature without the epsilon (VICReg, Bardes et al. 2022, eq. 1)",
    must=[need("non_finite", "net net.* model", by=3)],
    may=AFTER_NAN + " dead_units",
    train=own_loss(),
)
def vicreg_std_without_eps(fixed: bool = False) -> Built:
    """One output unit starts without weights and is zero for the whole batch: sqrt(var) = 0 has an infinite slope, times zero."""
    x, _ = data.flat_glyphs()
    batches = [
        (a + 0.1 * torch.randn(a.shape, generator=data.gen(i)), a) for i, (a, _) in enumerate(data.minibatches(x, x, 64, 100))
    ]
    model = Embedder()
    return Built(model, torch.optim.Adam(model.parameters(), lr=2e-3), variance_invariance(1e-4 if fixed else 0.0), batches)


@faulty(
    "blind",
    "non_finite",
    "cross_entropy's mean over no label at all is 0/0 (pytorch#75181: all targets are ignore_index)",
    must=[need("non_finite", "*", by=52)],
    may=AFTER_NAN + " dead_units",
    onset=50,
)
def all_labels_ignored(fixed: bool = False) -> Built:
    """At step 50 every token of the batch is padding (-100)."""
    batches = []
    for s, (x, y) in enumerate(data.markov_text(16, 12, 10, 120)):
        if s == 50:
            y = torch.full_like(y, -100)
            if fixed:
                y[0, 0] = 3
        batches.append((x, y))
    model = named(embed=nn.Embedding(16, 24), mid=nn.Linear(24, 48), act=nn.GELU(), out=nn.Linear(48, 16))
    loss = lambda z, y: F.cross_entropy(z.flatten(0, 1), y.flatten())
    return Built(model, torch.optim.AdamW(model.parameters(), lr=5e-3), loss, batches)


class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = MLP(3, 48, 3, 2, act=nn.SiLU)

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        return self.net(torch.cat([z, t.unsqueeze(1)], 1))


def snr_weighted(first: int):
    """Denoising loss weighted by 1 / (1 - alpha_bar), t from ``first`` to 50."""

    def loss(model: nn.Module, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        t = t.clamp(min=first)
        keep = torch.cos(0.5 * math.pi * t / 51) ** 2
        z = keep.sqrt().unsqueeze(1) * x + (1 - keep).sqrt().unsqueeze(1) * noise
        error = (model(z, t / 50) - noise).pow(2).mean(1)
        return (error * keep / (1 - keep)).mean()

    return loss


@faulty(
    "blind",
    "non_finite",
    "signal-to-noise weight at t = 0, where there is no noise (Hang et al. 2023 clamp it: Min-SNR)",
    must=[need("non_finite", "*", by=6)],
    may=AFTER_NAN + " dead_units",
    train=own_loss(),
    loss_ratio=0.8,
)
def snr_weight_at_time_zero(fixed: bool = False) -> Built:
    """Times are drawn from 0..50 instead of 1..50: a weight of 1/0 as soon as one is 0."""
    g = data.gen(74)
    batches = []
    for s in range(200):
        r = 6.28 * torch.rand(64, generator=g)
        x = torch.stack([r.cos(), r.sin()], 1)
        t = torch.randint(1, 51, (64,), generator=g).float()
        if s == 4:
            t[7] = 0.0
        batches.append((x, t, torch.randn(64, 2, generator=g)))
    model = Denoiser()
    return Built(model, torch.optim.Adam(model.parameters(), lr=3e-3), snr_weighted(15 if fixed else 0), batches)


@faulty(
    "blind",
    "non_finite",
    "float16 without normalised inputs: 65504 is soon exceeded (Micikevicius et al. 2018)",
    must=[need("non_finite", "*", by=5)],
    may=AFTER_NAN + " dead_units bad_scale saturated",
    requires=("sklearn",),
)
def half_overflows_on_raw_table(fixed: bool = False) -> Built:
    """A net in float16 on raw features up to 4254, squared in a hand-written norm: Inf in the forward pass."""
    x, y = data.sk_breast_cancer()
    x = data.standardise(x) if fixed else x
    model = named(square=Squares(), fc1=nn.Linear(60, 32), act=nn.Tanh(), fc2=nn.Linear(32, 2)).half()
    opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Built(model, opt, lambda z, t: F.cross_entropy(z.float(), t), data.minibatches(x.half(), y, 40, 110))


class Squares(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x * x / 4], 1)


@faulty(
    "blind",
    "zero_gradient",
    "gradients below 6e-8 are zero in float16; loss scaling is what it takes (Micikevicius et al. 2018, sec. 3.2)",
    must=[need("zero_gradient|vanishing_gradient|not_updated|update_ratio|loss_stagnant", "*", by=60)],
    may="zero_gradient vanishing_gradient not_updated update_ratio loss_stagnant dead_units",
    requires=("sklearn",),
)
def half_gradients_underflow(fixed: bool = False) -> Built:
    """A float16 net whose loss carries a weight of 1e-6: all gradients round to zero or to the smallest number there is."""
    x, y = data.sk_digits()
    model = named(fc1=nn.Linear(64, 48), act1=nn.GELU(), fc2=nn.Linear(48, 48), act2=nn.GELU(), fc3=nn.Linear(48, 10)).half()
    weight = 1.0 if fixed else 1e-6
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Built(model, opt, lambda z, t: weight * F.cross_entropy(z.float(), t), data.minibatches((x / 16).half(), y, 64, 130))
