"""Faulty programs: outputs pinned, units without use, normalisation that does not normalise, targets that cannot be met."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import data
from ..core import Built, faulty, need
from ..more._programs import named, waves
from ..nets import MLP

CE = nn.CrossEntropyLoss()


@faulty(
    "blind",
    "dead_units",
    "ReLU behind the last layer of a regression with negative targets (SO 'model always predicts zero')",
    must=[need("dead_units|zero_gradient|loss_stagnant", "out clip loss", by=100)],
    may="dead_units zero_gradient loss_stagnant not_updated vanishing_gradient update_ratio",
)
def relu_before_negative_targets(fixed: bool = False) -> Built:
    """Log-probabilities are the target, all below zero: the output dies, and with it every gradient."""
    x, y = data.smooth_regression()
    y = -3 + 0.6 * y
    model = named(fc1=nn.Linear(8, 32), act1=nn.SiLU(), fc2=nn.Linear(32, 32), act2=nn.SiLU(), out=nn.Linear(32, 1))
    model.add_module("clip", nn.Identity() if fixed else nn.ReLU())
    nn.init.constant_(model.out.bias, 0.3)
    return Built(model, torch.optim.Adam(model.parameters(), lr=1e-2), nn.MSELoss(), data.minibatches(x, y, 64, 180))


def sixteen_convs() -> nn.Sequential:
    parts: dict[str, nn.Module] = {}
    for i in range(14):
        parts[f"conv{i}"] = nn.Conv1d(12 if i else 1, 12, 3, padding=1, bias=False)
        parts[f"bn{i}"] = nn.BatchNorm1d(12)
        parts[f"act{i}"] = nn.ReLU()
    return named(**parts, pool=nn.AdaptiveAvgPool1d(4), flat=nn.Flatten(), fc=nn.Linear(48, 4))


@faulty(
    "blind",
    "vanishing_gradient",
    "model.eval() before training and never train() again (forum staple; Humbatova et al. 2020)",
    must=[need("vanishing_gradient|bad_scale|loss_stagnant", "*", by=120)],
    may="vanishing_gradient bad_scale loss_stagnant update_ratio dead_units zero_gradient",
    tags=frozenset({"eval_mode"}),
)
def batchnorm_left_in_eval(fixed: bool = False) -> Built:
    """14 conv layers whose batch norms use their untouched running statistics: nothing is normalised, signal and gradient fade."""
    x, y = waves()
    model = sixteen_convs()
    model.train(fixed)
    opt = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return Built(model, opt, CE, data.minibatches(x, y, 48, 150))


class Minimax(nn.Module):
    def __init__(self):
        super().__init__()
        self.G = nn.Sequential(nn.Linear(4, 24), nn.Tanh(), nn.Linear(24, 2))
        self.D = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return self.D(x)


def minimax(saturating: bool):
    def loop(model, opt, loss_fn, batches, on_step) -> None:
        for step, (real, z) in enumerate(batches):
            for _ in range(3 if saturating else 1):
                fake = model.G(z).detach()
                loss = -(model(real) + 1e-6).log().mean() - (1 - model(fake) + 1e-6).log().mean()
                opt["D"].zero_grad()
                loss.backward()
                opt["D"].step()
            p = model(model.G(z))
            opt["G"].zero_grad()
            ((1 - p + 1e-6).log() if saturating else -(p + 1e-6).log()).mean().backward()
            opt["G"].step()
            on_step(step, None)

    return loop


@faulty(
    "blind",
    "saturated",
    "the saturating generator loss (Goodfellow et al. 2014, sec. 3; Arjovsky & Bottou 2017): a perfect discriminator teaches nothing",
    must=[need("saturated|vanishing_gradient|zero_gradient|loss_stagnant", "D D.* G G.*", by=120)],
    may="saturated vanishing_gradient zero_gradient loss_stagnant update_ratio not_updated",
    train=minimax(True),
    fixed_train=minimax(False),
    progress=(
        "distance of the samples' mean",
        lambda m: (m.G(torch.randn(500, 4, generator=data.gen(2))).mean(0) - torch.tensor([4.0, 4.0])).norm().item(),
        "down",
    ),
    loss_ratio=None,
)
def perfect_discriminator(fixed: bool = False) -> Built:
    """Real and fake lie far apart and D learns fast: its sigmoid is at 0 or 1, G's gradient falls below 1e-5."""
    g = data.gen(77)
    lr = 3e-3 if fixed else 5e-2
    model = Minimax()
    batches = [(4 + 0.3 * torch.randn(48, 2, generator=g), torch.randn(48, 4, generator=g)) for _ in range(200)]
    opt = {
        "G": torch.optim.Adam(model.G.parameters(), lr=8e-3 if fixed else 1e-3),
        "D": torch.optim.Adam(model.D.parameters(), lr=lr),
    }
    return Built(model, opt, None, batches)


class Carried(nn.Module):
    """A GRU cell that carries its state through the sequence."""

    def __init__(self, cut: bool):
        super().__init__()
        self.embed, self.cell, self.out = nn.Embedding(4, 24), nn.GRUCell(24, 32), nn.Linear(32, 4)
        self.cut = cut

    def forward(self, t: Tensor) -> Tensor:
        h = torch.zeros(len(t), 32)
        for e in self.embed(t).unbind(1):
            h = self.cell(e, h.detach() if self.cut else h)
        return self.out(h)


@faulty(
    "blind",
    "loss_stagnant",
    "hidden state detached at every time step instead of every segment (PyTorch word-language-model example, 'repackage_hidden')",
    must=[need("loss_stagnant|vanishing_gradient|zero_gradient", "*", by=150)],
    may="loss_stagnant vanishing_gradient zero_gradient",
    tags=frozenset({"temporal"}),
)
def state_detached_every_step(fixed: bool = False) -> Built:
    """The label is the first of sixteen tokens, of which the gradient hears nothing."""
    model = Carried(not fixed)
    return Built(model, torch.optim.Adam(model.parameters(), lr=1e-2), CE, data.recall_first(4, 32, 5 if fixed else 16, 170))


class Film(nn.Module):
    """A conditional MLP whose gates are sigmoids of the condition."""

    def __init__(self):
        super().__init__()
        self.inp = nn.Linear(30, 48)
        self.gate_of, self.gate = nn.Linear(2, 48), nn.Sigmoid()
        self.act, self.out = nn.GELU(), nn.Linear(48, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.act(self.inp(x[:, 2:])) * self.gate(self.gate_of(x[:, :2])))


@faulty(
    "blind",
    "saturated",
    "condition not normalised: area in mm^2 and perimeter next to standardised features (UMLAUT 'input exceeds limits')",
    must=[need("saturated|bad_scale", "gate gate_of gate_of.* input", by=15)],
    may="saturated bad_scale vanishing_gradient zero_gradient dead_units update_ratio not_updated",
    requires=("sklearn",),
)
def gate_of_raw_condition(fixed: bool = False) -> Built:
    """Two raw columns (143..2501 and 43..188) drive a sigmoid gate: it is open or shut for good."""
    x, y = data.sk_breast_cancer()
    z = data.standardise(x)
    condition = z[:, 2:4] if fixed else x[:, 2:4]
    model = Film()
    batches = data.minibatches(torch.cat([condition, z], 1), y, 50, 130)
    return Built(model, torch.optim.AdamW(model.parameters(), lr=3e-3), CE, batches)


@faulty(
    "blind",
    "loss_stagnant",
    "inputs and labels shuffled with two different permutations (Karpathy 2019, 'A recipe for training neural networks')",
    must=[need("loss_stagnant", "*", by=190)],
    may="loss_stagnant loss_unstable",
    tags=frozenset({"data"}),
)
def inputs_and_labels_shuffled_apart(fixed: bool = False) -> Built:
    """Fresh samples each step, their labels belong to other samples."""
    g = data.gen(78)
    batches = []
    for _ in range(200):
        x = torch.randn(64, 10, generator=g)
        y = (x[:, 0] * x[:, 1] + x[:, 2] > 0).long()
        batches.append((x, y if fixed else y[torch.randperm(64, generator=g)]))
    model = MLP(10, 48, 2, 2, act=nn.LeakyReLU)
    return Built(model, torch.optim.Adam(model.parameters(), lr=2e-3), CE, batches)


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc, self.mean, self.log_var = nn.Linear(64, 48), nn.Linear(48, 6), nn.Linear(48, 6)
        self.dec = nn.Sequential(nn.Linear(6, 48), nn.SiLU(), nn.Linear(48, 64))

    def forward(self, x: Tensor):
        h = F.silu(self.enc(x))
        m, s = self.mean(h), self.log_var(h)
        return self.dec(m + (0.5 * s).exp() * torch.randn(m.shape, generator=data.gen(int(m.numel())))), m, s


def elbo(out, x: Tensor) -> Tensor:
    y, m, s = out
    return (y - x).pow(2).sum(1).mean() + 0.5 * (m.pow(2) + s.exp() - s - 1).sum(1).mean()


@faulty(
    "blind",
    "non_finite",
    "exp(log_var) overflows on inputs that were not normalised (NVAE, Child 2021: why log-variances are clamped)",
    must=[need("non_finite|exploding_gradient|bad_scale|loss_unstable", "*", by=10)],
    may="non_finite exploding_gradient bad_scale loss_unstable update_ratio zero_gradient not_updated loss_stagnant dead_units",
)
def vae_on_raw_pixels(fixed: bool = False) -> Built:
    """Pixels 0..2550 make log-variances of several hundred: exp overflows in the first steps."""
    x, _ = data.flat_glyphs()
    x = x if fixed else 2550 * x
    model = VAE()
    return Built(model, torch.optim.Adam(model.parameters(), lr=3e-3), elbo, data.minibatches(x, x, 50, 140))
