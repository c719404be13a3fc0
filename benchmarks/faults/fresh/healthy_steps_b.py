"""Healthy programs: curricula, scalers, learnt temperatures, weights that are distributions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import data
from ..core import Built, healthy
from ..more._loops import accuracy, char_windows, own_loss
from ..more._programs import named, waves
from ..nets import MLP, ConvNet, TinyLM

CE = nn.CrossEntropyLoss()


def backing_off(model, opt, loss_fn, batches, on_step) -> None:
    """Dynamic loss scaling: a step whose gradients overflow is skipped and the scale is halved."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=60)
    for step, (x, y) in enumerate(batches):
        opt.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = loss_fn(model(x).float(), y)
        scaler.scale(loss).backward()
        scaler.step(opt)
        scaler.update()
        on_step(step, loss.item())


@healthy(
    "fresh",
    "Micikevicius et al. 2018 (dynamic loss scaling); torch.amp.GradScaler",
    train=backing_off,
    loss_ratio=0.5,
    tags=frozenset({"grad_scaler"}),
)
def scaler_finds_its_scale() -> Built:
    """Float16 autocast; the scale starts far too high and again tries to grow: overflows are skipped, as they should be."""
    x, y = data.flat_glyphs()
    model = named(fc1=nn.Linear(64, 48), act1=nn.ReLU(), fc2=nn.Linear(48, 48), act2=nn.ReLU(), fc3=nn.Linear(48, 10))
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), CE, data.minibatches(x, y, 64, 150))


@healthy(
    "fresh",
    "Bengio et al. 2009 (curriculum): classes are added in four stages",
    loss_ratio=None,
    progress=("accuracy", accuracy(lambda m, x: m(x), *data.glyphs()), "up"),
)
def classes_added_in_stages() -> Built:
    """2, then 4, 7 and 10 classes: the loss jumps up at each stage; rows of classes to come are only pushed away till then."""
    x, y = data.glyphs()
    model, batches = ConvNet(12, 2, 10, norm=True), []
    for stage, many in enumerate((2, 4, 7, 10)):
        known = y < many
        batches += list(data.minibatches(x[known], y[known], 40, 60, seed=stage))
    return Built(model, torch.optim.Adam(model.parameters(), lr=4e-3), CE, batches)


def masked_loss(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z.flatten(0, 1), y.flatten(), ignore_index=-100)


@healthy("fresh", "Devlin et al. 2019 (masked language model, 15 % of the positions)", loss_ratio=0.85)
def masked_language_model() -> Built:
    """Some 40 positions of 260 count in a batch; the loss wavers accordingly."""
    batches, mask_id = [], 40
    g = data.gen(290)
    for t, _ in char_windows(16, 24, 200):
        hidden = torch.rand(t.shape, generator=g) < 0.15
        batches.append((t.masked_fill(hidden, mask_id), t.masked_fill(~hidden, -100)))
    model = TinyLM(41, 32, 1, 2, 24, causal=False)
    return Built(model, torch.optim.AdamW(model.parameters(), lr=3e-3), masked_loss, batches)


class Twins(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32))

    def forward(self, pair: Tensor) -> Tensor:
        return self.net(pair.flatten(0, 1)).view(-1, 2, 32)


def redundancy(z: Tensor, _: Tensor) -> Tensor:
    a, b = ((v - v.mean(0)) / (v.std(0) + 1e-5) for v in z.unbind(1))
    c = a.T @ b / len(a)
    on = torch.diagonal(c)
    return (1 - on).pow(2).sum() + 0.02 * (c.pow(2).sum() - on.pow(2).sum())


@healthy("fresh", "Zbontar et al. 2021 (Barlow Twins)", loss_ratio=0.7)
def barlow_twins() -> Built:
    """A sum over 32 x 32 correlations; the last bias is cancelled by the standardisation, so that its gradient is rounding."""
    x, _ = data.flat_glyphs(noise=0.2)
    g = data.gen(291)
    batches = [(a.unsqueeze(1) + 0.2 * torch.randn(96, 2, 64, generator=g), a) for a, _ in data.minibatches(x, x, 96, 180)]
    model = Twins()
    return Built(model, torch.optim.Adam(model.parameters(), lr=2e-3), redundancy, batches)


class Clip(nn.Module):
    """Two towers and a learnt temperature."""

    def __init__(self):
        super().__init__()
        self.image, self.text = MLP(64, 48, 1, 16, act=nn.GELU), nn.Embedding(60, 16)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        a, b = F.normalize(self.image(x), dim=-1), F.normalize(self.text(words).mean(1), dim=-1)
        return self.log_scale.clamp(max=math.log(100)).exp() * a @ b.T


def both_ways(model: nn.Module, x: Tensor, words: Tensor, y: Tensor) -> Tensor:
    z = model(x, words)
    same = (y.unsqueeze(0) == y.unsqueeze(1)).float()
    same = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(z, same) + F.cross_entropy(z.T, same)) / 2


@healthy("fresh", "Radford et al. 2021 (CLIP: learnt temperature, clamped at 100)", train=own_loss(), loss_ratio=0.8)
def clip_learnt_temperature() -> Built:
    """Cosines times 14 and rising; pairs of the same class are both right, so the loss has a floor near 1.3."""
    x, y = data.flat_glyphs(noise=0.2)
    g, batches = data.gen(292), []
    for a, b in data.minibatches(x - 0.5, y, 40, 180):
        batches.append((a, 6 * b.unsqueeze(1) + torch.randint(6, (40, 4), generator=g), b))
    model = Clip()
    return Built(model, torch.optim.AdamW(model.parameters(), lr=2e-3), both_ways, batches)


@healthy(
    "fresh",
    "Poisson regression of counts from 0 to some hundreds, with exposures",
    loss_ratio=None,
    progress=("mean deviation of the log rate", lambda m: float(_rate_error(m)), "down"),
)
def counts_with_exposures() -> Built:
    """The loss (without its constant) is about -250 and steep in the log rate: its size is that of the counts."""
    g, batches = data.gen(293), []
    for _ in range(200):
        x = torch.randn(100, 6, generator=g)
        exposure = 20 + 180 * torch.rand(100, 1, generator=g)
        batches.append((torch.cat([x, exposure.log()], 1), torch.poisson(exposure * _log_rate(x).exp(), generator=g)))
    model = Rates()
    return Built(model, torch.optim.Adam(model.parameters(), lr=4e-3), nn.PoissonNLLLoss(log_input=True), batches)


class Rates(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = MLP(6, 32, 1, 1, act=nn.Tanh)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x[:, :6]) + x[:, 6:]


def _log_rate(x: Tensor) -> Tensor:
    return torch.sin(x[:, :1]) + 0.4 * x[:, 1:2] - 0.7


def _rate_error(model: nn.Module) -> float:
    x = torch.randn(500, 6, generator=data.gen(294))
    with torch.no_grad():
        return (model.net(x) - _log_rate(x)).abs().mean().item()


class Bayesian(nn.Module):
    """A linear layer whose weights are Gaussians."""

    def __init__(self, d_in: int, d_out: int):
        super().__init__()
        self.mean = nn.Parameter(torch.randn(d_out, d_in) / d_in**0.5)
        self.rho = nn.Parameter(torch.full((d_out, d_in), -4.0))
        self.bias = nn.Parameter(torch.zeros(d_out))

    def forward(self, x: Tensor) -> Tensor:
        std = F.softplus(self.rho)
        return F.linear(x, self.mean, self.bias) + F.linear(x**2, std**2).clamp(min=1e-9).sqrt() * torch.randn(
            len(x), len(self.mean)
        )

    def divergence(self) -> Tensor:
        std = F.softplus(self.rho)
        return (0.5 * (std**2 + self.mean**2) / 0.25 - 0.5 - (std / 0.5).log()).sum()


def variational(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    kl = sum(m.divergence() for m in model if isinstance(m, Bayesian))
    return F.cross_entropy(model(x), y, reduction="sum") + kl * len(x) / 1000


@healthy(
    "fresh",
    "Blundell et al. 2015; Kingma et al. 2015 (Bayes by backprop, local reparameterisation)",
    train=own_loss(),
    loss_ratio=0.85,
)
def bayesian_layers() -> Built:
    """Most of the loss is the divergence of 4000 weights from their prior and falls slowly; spreads start at 0.02."""
    x, y = data.flat_glyphs()
    model = named(fc1=Bayesian(64, 48), act=nn.SiLU(), fc2=Bayesian(48, 10))
    return Built(model, torch.optim.Adam(model.parameters(), lr=6e-3), variational, data.minibatches(x - 0.5, y, 64, 220))


def distilled(out: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
    t, s = out
    return 8**2 * F.kl_div((s / 8).log_softmax(-1), (t / 8).softmax(-1), reduction="batchmean")


class Student(nn.Module):
    def __init__(self):
        super().__init__()
        self.teacher = MLP(32, 96, 2, 4, act=nn.Tanh).requires_grad_(False)
        self.student = nn.Sequential(nn.Conv1d(1, 8, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(112, 4))
        with torch.no_grad():
            self.teacher.head.weight.mul_(20)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.teacher(x.flatten(1)), self.student(x)


@healthy("fresh", "Hinton et al. 2015 (distillation at temperature 8, times 64)", loss_ratio=0.6)
def distilled_at_temperature_8() -> Built:
    """A frozen teacher with logits of 10 inside the module; the student's loss is a divergence times 64."""
    x, y = waves(n=1280, noise=0.5)
    model = Student()
    return Built(model, torch.optim.Adam(model.student.parameters(), lr=4e-3), distilled, data.minibatches(x, y, 64, 200))
