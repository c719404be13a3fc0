"""Healthy programs whose loss is large, tiny, negative, noisy or not to be minimised at all."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import data
from ..core import Built, healthy
from ..more._loops import own_loss
from ..more._programs import named, teacher
from ..nets import MLP, he, init_linear

CE = nn.CrossEntropyLoss()


class Uncertain(nn.Module):
    """Two regressions and a classification, weighted by learnt log-variances."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 48), nn.Tanh(), nn.Linear(48, 32), nn.Tanh())
        self.level, self.slope, self.sign = nn.Linear(32, 1), nn.Linear(32, 1), nn.Linear(32, 2)
        self.log_var = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor):
        h = self.trunk(x)
        return self.level(h), self.slope(h), self.sign(h), self.log_var


def weighted_by_uncertainty(out, y: Tensor) -> Tensor:
    level, slope, sign, s = out
    losses = [F.mse_loss(level, y), F.mse_loss(slope, 100 * y), F.cross_entropy(sign, (y[:, 0] > 0).long())]
    return sum((-s[i]).exp() * loss + s[i] for i, loss in enumerate(losses))


@healthy("blind", "Kendall et al. 2018 (uncertainty weighting)", loss_ratio=0.7)
def tasks_of_unequal_scale_weighted() -> Built:
    """One task's loss is 1e4 times the other's; learnt weights settle it."""
    x, y = data.smooth_regression(noise=0.02)
    model = Uncertain()
    return Built(model, torch.optim.Adam(model.parameters(), lr=1e-2), weighted_by_uncertainty, data.minibatches(x, y, 64, 260))


class Energy(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = MLP(2, 48, 2, 2, act=nn.Softplus)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def sliced_score(model: nn.Module, x: Tensor, v: Tensor) -> Tensor:
    x = x.requires_grad_()
    s = model(x)
    along = torch.autograd.grad((s * v).sum(), x, create_graph=True)[0]
    return ((along * v).sum(1) + 0.5 * (s * v).sum(1).pow(2)).mean()


@healthy(
    "blind",
    "Song et al. 2019 (sliced score matching)",
    train=own_loss(),
    loss_ratio=None,
    progress=(
        "error of the score at 200 points",
        lambda m: (m(_points()) + _points() / 0.25).pow(2).mean().item(),
        "down",
    ),
)
def sliced_score_matching() -> Built:
    """Double backward; the loss starts near zero and becomes ever more negative: that is progress."""
    g = data.gen(87)
    model = Energy()
    batches = [(0.5 * torch.randn(128, 2, generator=g), torch.randn(128, 2, generator=g)) for _ in range(220)]
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-3), sliced_score, batches)


def _points() -> Tensor:
    return 0.5 * torch.randn(200, 2, generator=data.gen(88))


class Bernoulli(nn.Module):
    """A VAE of 32 x 32 images, in nats."""

    def __init__(self):
        super().__init__()
        self.enc, self.act = nn.Linear(64, 64), nn.SiLU()
        self.mean, self.log_var = nn.Linear(64, 8), nn.Linear(64, 8)
        self.dec = nn.Sequential(nn.Linear(8, 64), nn.SiLU(), nn.Linear(64, 64))

    def forward(self, x: Tensor, noise: Tensor):
        h = self.act(self.enc(x))
        m, s = self.mean(h), self.log_var(h)
        return self.dec(m + (0.5 * s).exp() * noise), m, s


def summed_elbo(model: nn.Module, x: Tensor, noise: Tensor) -> Tensor:
    z, m, s = model(x, noise)
    fit = F.binary_cross_entropy_with_logits(z, x, reduction="sum")
    return fit + 0.5 * (m.pow(2) + s.exp() - s - 1).sum()


@healthy("blind", "Kingma & Welling 2014, with sums in place of means", train=own_loss(), loss_ratio=0.75, requires=("sklearn",))
def elbo_summed_over_batch() -> Built:
    """A loss of 5000 nats and gradients in the hundreds: large numbers are all that is unusual."""
    x, _ = data.sk_digits()
    g = data.gen(89)
    model = Bernoulli()
    batches = [(a / 16, torch.randn(100, 8, generator=g)) for a, _ in data.minibatches(x, x, 100, 170)]
    return Built(model, torch.optim.Adam(model.parameters(), lr=4e-3), summed_elbo, batches)


@healthy("blind", "regression in SI units: volts of an EEG", loss_ratio=0.1)
def microvolt_targets() -> Built:
    """Targets of 1e-4 and an output layer started to match: losses of 1e-8, gradients of 1e-5, and Adam at a small rate."""
    x, y = data.smooth_regression()
    model = init_linear(MLP(8, 48, 2, 1, act=nn.GELU), he)
    with torch.no_grad():
        model.head.weight.mul_(1e-4)
    groups = [{"params": model.head.parameters(), "lr": 5e-7}, {"params": model.layers.parameters()}]
    return Built(model, torch.optim.Adam(groups, lr=3e-3, eps=1e-14), nn.MSELoss(), data.minibatches(x, 1e-4 * y, 64, 250))


@healthy("blind", "house prices: the output layer's bias and scale start at the data's", loss_ratio=0.85, requires=("sklearn",))
def prices_of_1e5() -> Built:
    """Targets of 1e5 with a fixed affine output: losses of 1e9 that fall."""
    x, y = data.sk_diabetes()
    y = 1000 * y
    model = named(body=MLP(10, 32, 1, 1, act=nn.ELU), units=Affine(y.mean(), y.std()))
    opt = torch.optim.Adam(model.parameters(), lr=1e-2)
    return Built(model, opt, nn.MSELoss(), data.minibatches(data.standardise(x), y, 64, 250))


class Affine(nn.Module):
    def __init__(self, mean: Tensor, std: Tensor):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Tensor:
        return self.mean + self.std * x


@healthy("blind", "40 % of the labels are random (Zhang et al. 2017)", loss_ratio=0.93)
def two_fifths_random_labels() -> Built:
    """The loss can fall to about 1.6 of 2.3 and wavers from batch to batch of 24."""
    x, y = data.flat_glyphs()
    g = data.gen(90)
    y = torch.where(torch.rand(len(y), generator=g) < 0.4, torch.randint(10, (len(y),), generator=g), y)
    model = MLP(64, 48, 1, 10, act=nn.SiLU, dropout=0.3)
    return Built(model, torch.optim.Adam(model.parameters(), lr=2e-3), CE, data.minibatches(x, y, 24, 200))


class Prototypes(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = MLP(24, 48, 2, 12)
        init_linear(self.embed, he)

    def forward(self, support: Tensor, query: Tensor) -> Tensor:
        centres = self.embed(support).mean(1)
        return -torch.cdist(self.embed(query.flatten(0, 1)), centres).pow(2)


def episode(model: nn.Module, support: Tensor, query: Tensor) -> Tensor:
    return F.cross_entropy(model(support, query), torch.arange(5).repeat_interleave(query.shape[1]))


@healthy("blind", "Snell et al. 2017 (prototypical networks)", train=own_loss(), loss_ratio=0.7)
def prototypical_episodes() -> Built:
    """Each step is a new 5-way 2-shot task: losses differ by a factor of ten from step to step."""
    g = data.gen(91)
    mix = torch.randn(6, 24, generator=g)
    batches = []
    for _ in range(240):
        centre = torch.randn(5, 1, 6, generator=g)
        z = centre + 0.4 * torch.randn(5, 8, 6, generator=g)
        x = z @ mix / 6**0.5 + 1.5 * torch.randn(5, 8, 24, generator=g)
        batches.append((x[:, :2], x[:, 2:]))
    model = Prototypes()
    return Built(model, torch.optim.Adam(model.parameters(), lr=3e-3), episode, batches)


class Gan(nn.Module):
    def __init__(self):
        super().__init__()
        self.G = nn.Sequential(nn.Linear(3, 32), nn.LeakyReLU(0.2), nn.Linear(32, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
        self.D = nn.Sequential(nn.Linear(1, 32), nn.LeakyReLU(0.2), nn.Linear(32, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.D(x)


def relativistic(model, opt, loss_fn, batches, on_step) -> None:
    for step, (real, z) in enumerate(batches):
        fake = model.G(z)
        opt["D"].zero_grad()
        F.softplus(model(fake.detach()) - model(real)).mean().backward()
        opt["D"].step()
        opt["G"].zero_grad()
        F.softplus(model(real) - model(fake)).mean().backward()
        opt["G"].step()
        on_step(step, None)


@healthy(
    "blind",
    "Jolicoeur-Martineau 2019 (relativistic GAN)",
    train=relativistic,
    loss_ratio=None,
    progress=(
        "distance of the quartiles to the data's",
        lambda m: (
            (
                (m.G(torch.randn(2000, 3, generator=data.gen(3))).quantile(torch.tensor([0.25, 0.5, 0.75])))
                - torch.tensor([1.66, 2.0, 2.34])
            )
            .abs()
            .sum()
            .item()
        ),
        "down",
    ),
)
def relativistic_gan_oscillates() -> Built:
    """Generator and discriminator chase each other under RMSprop; gradients swell and shrink."""
    g = data.gen(92)
    model = Gan()
    batches = [(2 + 0.5 * torch.randn(64, 1, generator=g), torch.randn(64, 3, generator=g)) for _ in range(220)]
    opt = {k: torch.optim.RMSprop(getattr(model, k).parameters(), lr=1e-3) for k in "GD"}
    return Built(model, opt, None, batches)


class Policy(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).log_softmax(-1)


def policy_gradient(model, opt, loss_fn, batches, on_step) -> None:
    g = data.gen(93)
    for step, (x, best) in enumerate(batches):
        opt.zero_grad()
        log_p = model(x)
        a = torch.multinomial(log_p.detach().exp(), 1, generator=g).squeeze(1)
        reward = 50 * (a == best).float() + 10 * torch.randn(len(a), generator=g)
        entropy = -(log_p.exp() * log_p).sum(1).mean()
        loss = -(log_p.gather(1, a.unsqueeze(1)).squeeze(1) * (reward - reward.mean())).mean() - 2.0 * entropy
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        opt.step()
        on_step(step, loss.item())


@healthy(
    "blind",
    "Williams 1992 (REINFORCE, mean baseline, entropy bonus); a program that reports its surrogate as the loss",
    train=policy_gradient,
    loss_ratio=None,
    progress=(
        "probability of the best action",
        lambda m: m(_contexts()[0]).exp().gather(1, _contexts()[1].unsqueeze(1)).mean().item(),
        "up",
    ),
)
def reinforce_surrogate_of_any_sign() -> Built:
    """The reported number changes its sign from step to step and its size by a factor of 100; the policy learns."""
    model = Policy()
    x, y = _contexts()
    return Built(model, torch.optim.Adam(model.parameters(), lr=1e-2), None, data.minibatches(x, y, 48, 200))


def _contexts() -> tuple[Tensor, Tensor]:
    x, y = teacher(d=10)
    return x, y


@healthy("blind", "Katzman et al. 2018 (DeepSurv: Cox partial likelihood)", loss_ratio=0.95)
def survival_partial_likelihood() -> Built:
    """The loss ranks risks in a batch: it can fall by a tenth only, and most of its size is the logarithm of the batch."""
    g = data.gen(94)
    x = torch.randn(900, 10, generator=g)
    time = torch.empty(900, 1).exponential_(generator=g) * torch.exp(-1.5 * torch.tanh(x[:, :1] + x[:, 1:2]))
    model = MLP(10, 32, 2, 1, act=nn.SELU)

    def cox(risk: Tensor, t: Tensor) -> Tensor:
        r = risk[t[:, 0].argsort(descending=True), 0]
        return (r.logcumsumexp(0) - r).mean()

    return Built(model, torch.optim.AdamW(model.parameters(), lr=2e-3), cox, data.minibatches(x, time, 90, 180))


class ValueDistribution(nn.Module):
    """C51: a distribution over 21 returns for each of two actions."""

    def __init__(self):
        super().__init__()
        self.online = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 42))
        self.target = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 42))
        self.target.load_state_dict(self.online.state_dict())
        self.target.requires_grad_(False)
        self.register_buffer("returns", torch.linspace(-2, 8, 21))

    def forward(self, s: Tensor) -> Tensor:
        return self.online(s).view(-1, 2, 21)


def distributional(model, opt, loss_fn, batches, on_step) -> None:
    for step, (s, a, r, t) in enumerate(batches):
        if step % 40 == 0:
            model.target.load_state_dict(model.online.state_dict())
        with torch.no_grad():
            p = model.target(t).view(-1, 2, 21).softmax(-1)
            p = p[torch.arange(len(s)), (p * model.returns).sum(-1).argmax(1)]
            b = ((r.unsqueeze(1) + 0.7 * model.returns).clamp(-2, 8) + 2) / 0.5
            low = b.floor().clamp(max=19).long()
            goal = torch.zeros_like(p).scatter_add_(1, low, p * (low + 1 - b)).scatter_add_(1, low + 1, p * (b - low))
        opt.zero_grad()
        log_p = model(s)[torch.arange(len(s)), a].log_softmax(-1)
        loss = -(goal * log_p).sum(1).mean()
        loss.backward()
        opt.step()
        on_step(step, loss.item())


@healthy("blind", "Bellemare et al. 2017 (C51 with a target network)", train=distributional, loss_ratio=0.95)
def c51_target_network() -> Built:
    """A frozen target net is copied every 40 steps: the loss jumps up at each copy."""
    g = data.gen(95)
    batches = []
    turn = torch.linalg.qr(torch.randn(8, 8, generator=g))[0]
    for _ in range(240):
        s, a = torch.randn(64, 8, generator=g), torch.randint(2, (64,), generator=g)
        r = torch.where(a == (s[:, 0] > 0), 1.5, 0.0)
        batches.append((s, a, r, s @ turn))
    model = ValueDistribution()
    return Built(model, torch.optim.Adam(model.online.parameters(), lr=2e-3), None, batches)
