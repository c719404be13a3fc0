"""Faulty programs: parameters cut off from the loss, from the optimizer, or from their updates."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import data
from ..core import Built, default_loop, faulty, need
from ..more._programs import named, teacher
from ..nets import MLP

CE = nn.CrossEntropyLoss()


class Recommender(nn.Module):
    """Ratings from a user and an item vector."""

    def __init__(self, through_data: bool):
        super().__init__()
        self.user, self.item = nn.Embedding(80, 12), nn.Embedding(50, 12)
        self.mlp = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 1))
        self.through_data = through_data

    def forward(self, pair: Tensor) -> Tensor:
        users = self.user.weight.data[pair[:, 0]] if self.through_data else self.user(pair[:, 0])
        return self.mlp(torch.cat([users, self.item(pair[:, 1])], 1)).squeeze(1)


def ratings(steps: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    g = data.gen(seed)
    p, q, out = torch.randn(80, 3, generator=g), torch.randn(50, 3, generator=g), []
    for _ in range(steps):
        pair = torch.stack([torch.randint(80, (128,), generator=g), torch.randint(50, (128,), generator=g)], 1)
        out.append((pair, p[pair[:, 0]].sum(1) / 2 + (p[pair[:, 0]] * q[pair[:, 1]]).sum(1)))
    return out


@faulty(
    "blind",
    "zero_gradient",
    "weight.data[...] in forward: outside the graph (forum staple; TrainCheck OSDI'25 class)",
    must=[need("zero_gradient|not_updated", "user user.*", by=15)],
    may="zero_gradient not_updated dead_units",
)
def embedding_read_through_data(fixed: bool = False) -> Built:
    """The user vectors are read through .data; items and MLP learn, users stay random."""
    model = Recommender(not fixed)
    return Built(model, torch.optim.Adam(model.parameters(), lr=1e-2), nn.MSELoss(), ratings(150, 75))


class MultiTask(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, 48), nn.GELU())
        self.digit, self.parity = nn.Linear(48, 10), nn.Sequential(nn.Linear(48, 16), nn.GELU(), nn.Linear(16, 2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return self.digit(h), self.parity(h)


@faulty(
    "blind",
    "zero_gradient",
    "loss weight left at 0 (int(0.5) from a configuration file)",
    must=[need("zero_gradient|not_updated", "parity parity.*", by=15)],
    may="zero_gradient not_updated dead_units update_ratio",
    requires=("sklearn",),
)
def second_task_has_weight_zero(fixed: bool = False) -> Built:
    """The second task's loss is computed and multiplied by zero: its head has gradients, all exactly zero."""
    x, y = data.sk_digits()
    weight = 0.5 if fixed else float(int(0.5))
    loss = lambda out, t: F.cross_entropy(out[0], t) + weight * F.cross_entropy(out[1], t % 2)
    model = MultiTask()
    return Built(model, torch.optim.AdamW(model.parameters(), lr=3e-3), loss, data.minibatches(x / 16 - 0.3, y, 64, 130))


def zero_grad_too_late(model, opt, loss_fn, batches, on_step) -> None:
    for step, (x, y) in enumerate(batches):
        loss = loss_fn(model(x), y)
        loss.backward()
        opt.zero_grad(set_to_none=False)
        opt.step()
        on_step(step, loss.item())


@faulty(
    "blind",
    "zero_gradient",
    "zero_grad() between backward() and step() (Humbatova et al. 2020 'wrong order of API calls'; forum staple)",
    must=[need("zero_gradient|not_updated|loss_stagnant|update_ratio", "*", by=60)],
    may="zero_gradient not_updated loss_stagnant update_ratio dead_units vanishing_gradient",
    train=zero_grad_too_late,
    fixed_train=default_loop,
)
def zero_grad_before_step(fixed: bool = False) -> Built:
    """Gradients are cleared just before they would be applied."""
    x, y = teacher()
    model = MLP(20, 48, 2, 4, act=nn.Mish)
    return Built(model, torch.optim.RMSprop(model.parameters(), lr=2e-3), CE, data.minibatches(x, y, 64, 130))


class Ensemble(nn.Module):
    """The sum of four small nets."""

    def __init__(self, registered: bool):
        super().__init__()
        members = [nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 8)) for _ in range(4)]
        self.members = nn.ModuleList(members) if registered else members
        self.out = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(sum(member(x) for member in self.members))


@faulty(
    "blind",
    "not_updated",
    "layers kept in a Python list instead of nn.ModuleList (forum staple; PyTorch documentation of ModuleList)",
    must=[need("not_updated|zero_gradient", "*", by=60)],
    may="not_updated zero_gradient loss_stagnant",
    tags=frozenset({"needs_graph"}),
)
def members_in_python_list(fixed: bool = False) -> Built:
    """The four members are not registered: parameters() does not list them and they never learn."""
    x, y = data.smooth_regression()
    model = Ensemble(fixed)
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-3), nn.MSELoss(), data.minibatches(x, y, 64, 150))


class Variance(nn.Module):
    """Mean and log-variance of a target."""

    def __init__(self, bias: float):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU())
        self.mean, self.log_var = nn.Linear(32, 1), nn.Linear(32, 1)
        nn.init.constant_(self.log_var.bias, bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        return self.mean(h), self.log_var(h).clamp(-4, 4)


@faulty(
    "blind",
    "zero_gradient",
    "clamped log-variance (common in SAC and VAE code) started outside of the clamp",
    must=[need("zero_gradient|dead_units|saturated|not_updated", "log_var log_var.*", by=40)],
    may="zero_gradient dead_units saturated not_updated vanishing_gradient update_ratio loss_stagnant",
    tags=frozenset({"functional"}),
    loss_ratio=0.8,
)
def log_variance_outside_clamp(fixed: bool = False) -> Built:
    """clamp(-4, 4) of a head whose bias is 9: no sample gives it a gradient, the variance never adapts."""
    x, y = data.smooth_regression()
    model = Variance(0.0 if fixed else 9.0)
    loss = lambda out, t: 5 + 0.5 * (out[1] + (t - out[0]).pow(2) * (-out[1]).exp()).mean()
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-3), loss, data.minibatches(x, y, 64, 150))


@faulty(
    "blind",
    "update_ratio",
    "one parameter group with a mistyped learning rate (1e-9 for 1e-2)",
    must=[need("update_ratio|not_updated", "embed embed.*", by=40)],
    may="update_ratio not_updated loss_stagnant",
)
def embedding_group_lr_1e_9(fixed: bool = False) -> Built:
    """The GRU and its read-out learn, the embedding table moves by less than a rounding error."""
    model = named(embed=nn.Embedding(12, 24), gru=LastState(24, 32), out=nn.Linear(32, 2))
    rest = [*model.gru.parameters(), *model.out.parameters()]
    groups = [{"params": model.embed.parameters(), "lr": 5e-3 if fixed else 1e-9}, {"params": rest}]
    return Built(model, torch.optim.Adam(groups, lr=5e-3), CE, data.recall_last(12, 48, 8, 130))


class LastState(nn.Module):
    def __init__(self, d_in: int, d: int):
        super().__init__()
        self.cell = nn.GRU(d_in, d, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x)[0][:, -1]


def autoencode_without_clearing(model, opt, loss_fn, batches, on_step) -> None:
    for step, (x, y) in enumerate(batches):
        loss = loss_fn(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        on_step(step, loss.item())


def clipped(model, opt, loss_fn, batches, on_step) -> None:
    for step, (x, y) in enumerate(batches):
        opt.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        on_step(step, loss.item())


@faulty(
    "blind",
    "stale_gradient",
    "missing zero_grad() hidden by gradient clipping: the step acts like momentum (SO 48001598)",
    must=[need("stale_gradient", "*", by=50)],
    may="stale_gradient exploding_gradient update_ratio loss_unstable loss_stagnant bad_scale dead_units saturated",
    train=autoencode_without_clearing,
    fixed_train=clipped,
)
def never_cleared_but_clipped(fixed: bool = False) -> Built:
    """SGD with clipping at 1, gradients never cleared: norms stay at 1, so that nothing seems to grow."""
    x, _ = data.flat_glyphs()
    model = named(enc=nn.Linear(64, 24), act=nn.Tanh(), dec=nn.Linear(24, 64))
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.05), SumSquares(), data.minibatches(x, x, 50, 150))


class SumSquares(nn.Module):
    """Squared error summed over the pixels, averaged over the batch."""

    def forward(self, out: Tensor, target: Tensor) -> Tensor:
        return (out - target).pow(2).sum(1).mean()
