"""Healthy programs in which parts get their gradients rarely, indirectly, from elsewhere, or not at all - as intended."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import data
from ..core import Built, healthy
from ..more._programs import named
from ..nets import MLP, he, init_linear

CE = nn.CrossEntropyLoss()


class Siamese(nn.Module):
    """SimSiam: projector, predictor, and a stop-gradient on the other view."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32), nn.BatchNorm1d(32))
        self.predictor = nn.Sequential(nn.Linear(32, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 32))

    def forward(self, pair: Tensor) -> Tensor:
        z = self.encoder(pair.flatten(0, 1)).view(-1, 2, 32)
        p = self.predictor(z.flatten(0, 1)).view(-1, 2, 32)
        return -F.cosine_similarity(p, z.detach().flip(1), dim=-1)


@healthy(
    "fresh",
    "Chen & He 2021 (SimSiam)",
    loss_ratio=None,
    progress=("negative cosine", lambda m: m(_views()[0]).mean().item(), "down"),
)
def simsiam_stop_gradient() -> Built:
    """A loss that starts near 0 and falls towards -1; targets come from the same net and are detached."""
    model, batches = Siamese(), _views()
    opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    return Built(model, opt, lambda out, _: out.mean(), [(b, None) for b in batches])


def _views() -> list[Tensor]:
    x, _ = data.flat_glyphs(noise=0.2)
    g = data.gen(270)
    return [a.unsqueeze(1) + 0.1 * torch.randn(64, 2, 64, generator=g) - 0.5 for a, _ in data.minibatches(x, x, 64, 150)]


class DelayedPolicy(nn.Module):
    """TD3: two critics, their slow copies, an actor."""

    def __init__(self):
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 1), nn.Tanh())
        self.critics = nn.ModuleList(nn.Sequential(nn.Linear(5, 40), nn.ReLU(), nn.Linear(40, 1)) for _ in range(2))
        self.slow = copy.deepcopy(self.critics).requires_grad_(False)

    def forward(self, s: Tensor) -> Tensor:
        return self.actor(s)


def goal(s: Tensor) -> Tensor:
    return 0.6 * torch.tanh(s[:, :1] - s[:, 2:3])


def delayed(model, opt, loss_fn, batches, on_step) -> None:
    g = data.gen(271)
    for step, (s, after) in enumerate(batches):
        a = (model(s).detach() + 0.3 * torch.randn(len(s), 1, generator=g)).clamp(-1, 1)
        reward = -(a - goal(s)).pow(2)
        with torch.no_grad():
            nxt = torch.cat([after, model(after)], 1)
            y = reward + 0.5 * torch.minimum(*(c(nxt) for c in model.slow))
        opt["critics"].zero_grad()
        loss = sum(F.mse_loss(c(torch.cat([s, a], 1)), y) for c in model.critics)
        loss.backward()
        opt["critics"].step()
        if step % 2 == 1:
            opt["actor"].zero_grad()
            (-model.critics[0](torch.cat([s, model(s)], 1)).mean()).backward()
            opt["actor"].step()
            with torch.no_grad():
                for p, q in zip(model.critics.parameters(), model.slow.parameters()):
                    q.lerp_(p, 0.05)
        on_step(step, loss.item())


@healthy(
    "fresh",
    "Fujimoto et al. 2018 (TD3: delayed policy updates)",
    train=delayed,
    loss_ratio=None,
    progress=(
        "squared distance to the best action",
        lambda m: (m(_states()) - goal(_states())).pow(2).mean().item(),
        "down",
    ),
)
def td3_delayed_actor() -> Built:
    """The actor steps every second time; slow copies of the critics have no gradient; the TD error has no trend to speak of."""
    g, model = data.gen(272), DelayedPolicy()
    opt = {k: torch.optim.Adam(getattr(model, k).parameters(), lr=4e-3) for k in ("actor", "critics")}
    return Built(model, opt, None, [(torch.randn(96, 4, generator=g), torch.randn(96, 4, generator=g)) for _ in range(220)])


def _states() -> Tensor:
    return torch.randn(400, 4, generator=data.gen(273))


class TwoTasks(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = MLP(8, 40, 1, 24, act=nn.ELU)
        self.level, self.sign = nn.Linear(24, 1), nn.Linear(24, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.elu(self.trunk(x))
        return self.level(h), self.sign(h)


def projected(model, opt, loss_fn, batches, on_step) -> None:
    """PCGrad: each task's gradient loses its component against the other's, and .grad is set by hand."""
    shared = list(model.trunk.parameters())
    for step, (x, y) in enumerate(batches):
        level, sign = model(x)
        a, b = F.mse_loss(level, y), F.cross_entropy(sign, (y[:, 0] * x[:, 0] > 0).long())
        opt.zero_grad()
        ga = torch.autograd.grad(a, [*shared, *model.level.parameters()], retain_graph=True)
        gb = torch.autograd.grad(b, [*shared, *model.sign.parameters()])
        fa, fb = (torch.cat([v.flatten() for v in g[: len(shared)]]) for g in (ga, gb))
        dot = (fa @ fb).clamp(max=0)
        total = fa - dot / fb.pow(2).sum() * fb + fb - dot / fa.pow(2).sum() * fa
        for p, g in zip(shared, total.split([p.numel() for p in shared])):
            p.grad = g.view_as(p)
        for p, g in zip([*model.level.parameters(), *model.sign.parameters()], [*ga[len(shared) :], *gb[len(shared) :]]):
            p.grad = g
        opt.step()
        on_step(step, (a + b).item())


@healthy("fresh", "Yu et al. 2020 (gradient surgery)", train=projected, loss_ratio=0.7)
def gradient_surgery_two_tasks() -> Built:
    """No backward() is ever called: gradients come from autograd.grad, are projected, and are assigned."""
    x, y = data.smooth_regression(n=1200)
    model = TwoTasks()
    return Built(model, torch.optim.Adam(model.parameters(), lr=4e-3), None, data.minibatches(x, y, 80, 220))


class Factors(nn.Module):
    def __init__(self):
        super().__init__()
        self.user, self.item = nn.Embedding(60, 6), nn.Embedding(40, 6)
        for e in (self.user, self.item):
            nn.init.normal_(e.weight, std=0.4)

    def forward(self, u: Tensor, i: Tensor) -> Tensor:
        return (self.user(u) * self.item(i)).sum(1)


def in_turn(model, opt, loss_fn, batches, on_step) -> None:
    for step, (u, i, r) in enumerate(batches):
        side = "user" if step // 10 % 2 == 0 else "item"
        for o in opt.values():
            o.zero_grad()
        loss = F.mse_loss(model(u, i), r)
        loss.backward()
        opt[side].step()
        on_step(step, loss.item())


@healthy(
    "fresh", "block coordinate descent: alternating users and items (as in ALS, Hu et al. 2008)", train=in_turn, loss_ratio=0.5
)
def alternating_factors() -> Built:
    """Ten steps for the users, ten for the items: the side that rests has gradients that nobody uses just then."""
    g = data.gen(274)
    p, q, batches = torch.randn(60, 3, generator=g), torch.randn(40, 3, generator=g), []
    for _ in range(240):
        u, i = torch.randint(60, (200,), generator=g), torch.randint(40, (200,), generator=g)
        batches.append((u, i, (p[u] * q[i]).sum(1) / 1.7))
    model = Factors()
    opt = {k: torch.optim.Adagrad(getattr(model, k).parameters(), lr=0.15) for k in ("user", "item")}
    return Built(model, opt, None, batches)


class StochasticDepth(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(64, 48)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 48), nn.GELU(), nn.Linear(48, 48)) for _ in range(6)
        )
        self.head = nn.Linear(48, 10)
        self.g = data.gen(275)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i, block in enumerate(self.blocks):
            keep = 1 - 0.5 * (i + 1) / 6
            if not self.training:
                x = x + keep * block(x)
            elif torch.rand(1, generator=self.g).item() < keep:
                x = x + block(x)
        return self.head(x)


@healthy("fresh", "Huang et al. 2016 (stochastic depth)", loss_ratio=0.5)
def blocks_skipped_at_random() -> Built:
    """The last of six blocks is left out of every other step, whole: then it has no gradient at all."""
    x, y = data.flat_glyphs()
    model = StochasticDepth()
    return Built(model, torch.optim.AdamW(model.parameters(), lr=2e-3), CE, data.minibatches(x, y, 64, 160))


class Tied(nn.Module):
    """An autoencoder whose decoder is its encoder, transposed."""

    def __init__(self):
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.empty(40, 64)), nn.Parameter(torch.empty(12, 40))
        self.b1, self.b2, self.c1, self.c2 = (nn.Parameter(torch.zeros(n)) for n in (40, 12, 64, 40))
        nn.init.xavier_uniform_(self.w1)
        nn.init.xavier_uniform_(self.w2)

    def forward(self, x: Tensor) -> Tensor:
        z = F.linear(torch.tanh(F.linear(x, self.w1, self.b1)), self.w2, self.b2)
        return F.linear(torch.tanh(F.linear(z, self.w2.T, self.c2)), self.w1.T, self.c1)


@healthy("fresh", "Vincent et al. 2010 (denoising autoencoder with tied weights)", loss_ratio=0.6)
def tied_denoiser() -> Built:
    """No layers at all, only parameters, each used twice; a third of the pixels is blanked."""
    x, _ = data.flat_glyphs(noise=0.1)
    x = x - x.mean(0)
    g = data.gen(276)
    batches = [(a * (torch.rand(a.shape, generator=g) > 0.33), a) for a, _ in data.minibatches(x, x, 50, 220)]
    model = Tied()
    return Built(model, torch.optim.Adam(model.parameters(), lr=4e-3), nn.MSELoss(), batches)


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad * (ctx.saved_tensors[0].abs() <= 1)


class Binary(nn.Module):
    """Binary activations and binary weights, trained straight through."""

    def __init__(self):
        super().__init__()
        self.fc1, self.norm1 = nn.Linear(64, 96), nn.BatchNorm1d(96)
        self.fc2, self.norm2 = nn.Linear(96, 64, bias=False), nn.BatchNorm1d(64)
        self.out = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = Sign.apply(self.norm1(self.fc1(x)))
        h = self.norm2(F.linear(h, Sign.apply(self.fc2.weight)) / 10)
        return self.out(Sign.apply(h))


@healthy("fresh", "Courbariaux et al. 2016 (binarised networks, straight-through estimator)", loss_ratio=0.5)
def binary_weights_straight_through() -> Built:
    """All activations and a layer's weights are -1 or 1; the gradient is that of a clipped identity."""
    x, y = data.flat_glyphs()
    model = Binary()
    return Built(model, torch.optim.Adam(model.parameters(), lr=4e-3), CE, data.minibatches(x - 0.5, y, 64, 160))


def free_adversarial(model, opt, loss_fn, batches, on_step) -> None:
    for step, (x, y) in enumerate(batches):
        x = x.clone().requires_grad_()
        loss_fn(model(x), y).backward()
        near = (x + 0.03 * x.grad.sign()).detach()
        opt.zero_grad()
        loss = loss_fn(model(near), y)
        loss.backward()
        opt.step()
        on_step(step, loss.item())
        opt.zero_grad()


@healthy("fresh", "Goodfellow et al. 2015 (adversarial training by FGSM)", train=free_adversarial, loss_ratio=0.5)
def adversarial_examples_two_passes() -> Built:
    """A first backward pass is for the input only and its parameter gradients are thrown away."""
    x, y = data.glyphs()
    model = named(c1=nn.Conv2d(1, 12, 3, 2, 1), a1=nn.ReLU(), c2=nn.Conv2d(12, 24, 3, 2, 1), a2=nn.ReLU(), flat=nn.Flatten())
    model.add_module("fc", nn.Linear(96, 10))
    init_linear(model, he)
    return Built(model, torch.optim.Adam(model.parameters(), lr=4e-3), CE, data.minibatches(x, y, 50, 160))
