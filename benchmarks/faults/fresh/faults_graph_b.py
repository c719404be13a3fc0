"""Faulty programs: parts cut off from the loss."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import data
from ..core import Built, faulty, need
from ..more._programs import teacher
from ..nets import MLP

CE = nn.CrossEntropyLoss()


class ActorCritic(nn.Module):
    def __init__(self, reparameterised: bool):
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1))
        self.critic = nn.Sequential(nn.Linear(5, 32), nn.ELU(), nn.Linear(32, 32), nn.ELU(), nn.Linear(32, 1))
        self.reparameterised = reparameterised

    def forward(self, s: Tensor) -> Tensor:
        policy = torch.distributions.Normal(self.actor(s), 0.2)
        return policy.rsample() if self.reparameterised else policy.sample()

    def value(self, s: Tensor, a: Tensor) -> Tensor:
        return self.critic(torch.cat([s, a], 1))


def wanted(s: Tensor) -> Tensor:
    return torch.sin(s[:, :1]) - 0.5 * s[:, 1:2]


def actor_critic(model, opt, loss_fn, batches, on_step) -> None:
    for step, s in enumerate(batches):
        a = model(s)
        reward = -(a.detach() - wanted(s)).pow(2)
        opt["critic"].zero_grad()
        F.mse_loss(model.value(s, a.detach()), reward).backward()
        opt["critic"].step()
        opt["actor"].zero_grad()
        (-model.value(s, a).mean()).backward()
        opt["actor"].step()
        on_step(step, None)


def distance_to_best(model: nn.Module) -> float:
    s = torch.randn(500, 4, generator=data.gen(210))
    return (model.actor(s) - wanted(s)).pow(2).mean().item()


@faulty(
    "fresh",
    "zero_gradient",
    "sample() for rsample() in a soft actor-critic (Haarnoja et al. 2018; a staple of the forum)",
    must=[need("zero_gradient|not_updated", "actor actor.*", by=15)],
    may="zero_gradient not_updated dead_units",
    train=actor_critic,
    loss_ratio=None,
    progress=("squared distance to the best action", distance_to_best, "down"),
)
def action_sampled_without_gradient(fixed: bool = False) -> Built:
    """The critic learns, the actor's loss is computed from a sample outside of the graph: the actor has no gradient."""
    g = data.gen(211)
    model = ActorCritic(fixed)
    opt = {k: torch.optim.Adam(getattr(model, k).parameters(), lr=5e-3) for k in ("actor", "critic")}
    return Built(model, opt, None, [torch.randn(64, 4, generator=g) for _ in range(200)])


class Experts(nn.Module):
    """One of four experts for each sample."""

    def __init__(self, weighted: bool):
        super().__init__()
        self.gate = nn.Linear(20, 4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(20, 24), nn.SiLU(), nn.Linear(24, 24)) for _ in range(4))
        self.out = nn.Linear(24, 4)
        self.weighted = weighted

    def forward(self, x: Tensor) -> Tensor:
        p = self.gate(x).softmax(-1)
        choice = p.argmax(-1)
        h = x.new_zeros(len(x), 24)
        for i, expert in enumerate(self.experts):
            mine = choice == i
            if not mine.any():
                continue
            weight = p[mine, i : i + 1] if self.weighted else 1.0
            h = h.index_put((mine.nonzero().squeeze(1),), weight * expert(x[mine]))
        return self.out(h)


@faulty(
    "fresh",
    "zero_gradient",
    "top-1 routing whose output is not multiplied by the gate (Fedus et al. 2021, eq. 2, left out)",
    must=[need("zero_gradient|not_updated", "gate gate.*", by=15)],
    may="zero_gradient not_updated dead_units",
)
def gate_without_its_probability(fixed: bool = False) -> Built:
    """An arg max alone carries no gradient: experts learn, the gate stays as it was initialised."""
    x, y = teacher()
    model = Experts(fixed)
    return Built(model, torch.optim.Adam(model.parameters(), lr=4e-3), CE, data.minibatches(x, y, 64, 140))


class TeacherStudent(nn.Module):
    def __init__(self, wrong_side: bool):
        super().__init__()
        self.teacher = MLP(64, 64, 2, 10, act=nn.Tanh)
        self.student = MLP(64, 24, 1, 10, act=nn.Tanh)
        self.wrong_side = wrong_side
        with torch.no_grad():
            self.teacher.head.weight.mul_(6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        t, s = self.teacher(x), self.student(x)
        return (t, s.detach()) if self.wrong_side else (t.detach(), s)


def soft_cross_entropy(out: tuple[Tensor, Tensor], _: Tensor) -> Tensor:
    t, s = out
    return F.kl_div(s.log_softmax(-1), t.softmax(-1), reduction="batchmean")


@faulty(
    "fresh",
    "zero_gradient",
    "detach() on the student's side of a distillation (Hinton et al. 2015; BYOL and DINO re-implementations)",
    must=[need("zero_gradient|not_updated", "student student.*", by=15)],
    may="zero_gradient not_updated dead_units",
)
def detach_on_the_wrong_side(fixed: bool = False) -> Built:
    """The teacher is taught by the untrained student: the loss falls, the student has no gradient."""
    x, y = data.flat_glyphs()
    model = TeacherStudent(not fixed)
    if fixed:
        model.teacher.requires_grad_(False)
    params = model.student.parameters() if fixed else model.parameters()
    return Built(model, torch.optim.Adam(params, lr=4e-3), soft_cross_entropy, data.minibatches(x - 0.5, y, 64, 140))


class Momentum(nn.Module):
    """A student and the slow copy that it should follow."""

    def __init__(self):
        super().__init__()
        self.online = MLP(64, 48, 1, 16, act=nn.GELU)
        self.slow = copy.deepcopy(self.online).requires_grad_(False)
        self.cls = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.cls(self.slow(x))


@faulty(
    "fresh",
    "zero_gradient",
    "the classifier is fed by the frozen copy of the encoder (momentum-encoder mix-up)",
    must=[need("zero_gradient|not_updated", "online online.*", by=15)],
    may="zero_gradient not_updated dead_units loss_stagnant",
)
def classifier_on_the_frozen_copy(fixed: bool = False) -> Built:
    """`self.slow(x)` for `self.online(x)`: the encoder that should train is not in the graph, the loss falls a little."""
    x, y = data.flat_glyphs()
    model = Momentum()
    if fixed:
        model.forward = lambda t: model.cls(model.online(t))
    params = [*model.online.parameters(), *model.cls.parameters()]
    return Built(model, torch.optim.NAdam(params, lr=3e-3), CE, data.minibatches(x, y, 64, 130))
