"""Faulty programs: policies, values and adversaries."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import data
from ..core import Built, faulty, need
from ..nets import MLP


class Policy(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.act, self.out = nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 4)
        self.softmax = nn.Softmax(-1)

    def forward(self, s: Tensor) -> Tensor:
        return self.softmax(self.out(self.act(self.body(s))))


def best_action(s: Tensor) -> Tensor:
    return (s[:, 0] > 0).long() + 2 * (s[:, 1] > 0).long()


def quality(model: nn.Module) -> float:
    s = torch.randn(600, 6, generator=data.gen(240))
    return model(s).gather(1, best_action(s).unsqueeze(1)).mean().item()


def reinforce(baseline: bool):
    def loop(model, opt, loss_fn, batches, on_step) -> None:
        g = data.gen(241)
        for step, s in enumerate(batches):
            p = model(s)
            a = torch.multinomial(p.detach(), 1, generator=g)
            reward = 100.0 + 20.0 * (a.squeeze(1) == best_action(s)).float()
            if baseline:
                reward = (reward - reward.mean()) / 20
            opt.zero_grad()
            (-(reward * p.gather(1, a).squeeze(1).clamp(min=1e-8).log()).mean()).backward()
            opt.step()
            on_step(step, None)

    return loop


@faulty(
    "fresh",
    "saturated",
    "REINFORCE without a baseline on returns around 100 (Williams 1992; Greensmith et al. 2004)",
    must=[need("saturated|update_ratio|vanishing_gradient|zero_gradient|exploding_gradient", "*", by=60)],
    may="saturated update_ratio vanishing_gradient zero_gradient exploding_gradient bad_scale not_updated dead_units",
    train=reinforce(False),
    fixed_train=reinforce(True),
    loss_ratio=None,
    progress=("probability of the best action", quality, "up"),
)
def policy_without_baseline_collapses(fixed: bool = False) -> Built:
    """Whatever is tried first is made certain: within a few steps one action has probability 1 in all states."""
    g = data.gen(242)
    model = Policy()
    opt = torch.optim.SGD(model.parameters(), lr=0.5)
    return Built(model, opt, None, [torch.randn(64, 6, generator=g) for _ in range(150)])


class Values(nn.Module):
    def __init__(self):
        super().__init__()
        self.online = MLP(6, 40, 2, 1, act=nn.SiLU)
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    def forward(self, s: Tensor) -> Tensor:
        return self.online(s)


def bootstrap(factor: float):
    def loop(model, opt, loss_fn, batches, on_step) -> None:
        for step, (s, r, after) in enumerate(batches):
            if step % 10 == 0:
                model.target.load_state_dict(model.online.state_dict())
            with torch.no_grad():
                goal = r + factor * model.target(after)
            opt.zero_grad()
            loss = F.mse_loss(model(s), goal)
            loss.backward()
            opt.step()
            on_step(step, loss.item())

    return loop


def value_error(model: nn.Module) -> float:
    s = torch.randn(400, 6, generator=data.gen(243))
    for_ever = 0.5 * s[:, :1] / (1 - 0.5 * 0.8) + 0.5 / (1 - 0.5)
    return (model(s) - for_ever).pow(2).mean().item()


@faulty(
    "fresh",
    "loss_unstable",
    "discount with the wrong sign in its exponent: gamma ** -dt is above 1 (semi-Markov TD learning)",
    must=[need("loss_unstable|exploding_gradient|bad_scale", "*", by=190)],
    may="loss_unstable exploding_gradient bad_scale update_ratio loss_stagnant",
    train=bootstrap(0.5**-1),
    fixed_train=bootstrap(0.5),
    loss_ratio=None,
    progress=("error of the values", value_error, "down"),
)
def discount_above_one(fixed: bool = False) -> Built:
    """Values double at each copy of the target net: the loss climbs exponentially."""
    g, batches = data.gen(244), []
    for _ in range(200):
        s = torch.randn(64, 6, generator=g)
        after = 0.8 * s + 0.6 * torch.randn(64, 6, generator=g)
        batches.append((s, 0.5 * s[:, :1] + 0.5, after))
    model = Values()
    return Built(model, torch.optim.Adam(model.online.parameters(), lr=1e-2), None, batches)


class Critics(nn.Module):
    def __init__(self):
        super().__init__()
        self.G = nn.Sequential(nn.Linear(3, 32), nn.ELU(), nn.Linear(32, 2))
        self.C = nn.Sequential(
            nn.Linear(2, 48), nn.LeakyReLU(0.2), nn.Linear(48, 48), nn.LeakyReLU(0.2), nn.Linear(48, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.C(x)


def gap(model: nn.Module) -> float:
    fake = model.G(torch.randn(800, 3, generator=data.gen(245)))
    return (fake.mean(0) - torch.tensor([3.0, -2.0])).norm().item()


def wasserstein(limit: float | None):
    def loop(model, opt, loss_fn, batches, on_step) -> None:
        for step, (real, z) in enumerate(batches):
            fake = model.G(z)
            opt["C"].zero_grad()
            (model(fake.detach()).mean() - model(real).mean()).backward()
            opt["C"].step()
            if limit:
                with torch.no_grad():
                    for p in model.C.parameters():
                        p.clamp_(-limit, limit)
            opt["G"].zero_grad()
            (-model(fake).mean()).backward()
            opt["G"].step()
            on_step(step, None)

    return loop


@faulty(
    "fresh",
    "exploding_gradient",
    "Wasserstein critic without clipping or penalty (Arjovsky et al. 2017, the Lipschitz constraint left out)",
    must=[need("exploding_gradient|bad_scale|update_ratio|loss_unstable", "*", by=100)],
    may="exploding_gradient bad_scale update_ratio loss_unstable non_finite",
    train=wasserstein(None),
    fixed_train=wasserstein(0.1),
    loss_ratio=None,
    progress=("distance of the means", gap, "down"),
)
def critic_without_lipschitz_bound(fixed: bool = False) -> Built:
    """Nothing keeps the critic from growing: its scores reach 200 and the generator's gradient is 200 times that of the twin."""
    g, model = data.gen(246), Critics()
    opt = {k: torch.optim.RMSprop(getattr(model, k).parameters(), lr=1e-2 if k == "C" else 5e-3) for k in "GC"}
    real = lambda: torch.tensor([3.0, -2.0]) + 0.3 * torch.randn(64, 2, generator=g)
    return Built(model, opt, None, [(real(), torch.randn(64, 3, generator=g)) for _ in range(200)])
