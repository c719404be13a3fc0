"""Faulty programs: learning rate, schedule, clipping, decay and loss scale that are wrong by orders of magnitude."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import data
from ..core import Built, clipped_loop, faulty, need, scheduled_loop
from ..more._loops import own_loss
from ..more._programs import named, teacher, waves
from ..nets import MLP, TinyLM, gpt_init, he, init_linear, lm_loss

CE = nn.CrossEntropyLoss()
TOO_SMALL = "update_ratio not_updated loss_stagnant vanishing_gradient"
TOO_LARGE = (
    "update_ratio loss_unstable exploding_gradient bad_scale dead_units saturated loss_stagnant non_finite zero_gradient "
    "vanishing_gradient not_updated"
)


@faulty(
    "blind",
    "update_ratio",
    "LambdaLR returns the rate itself instead of a factor: 3e-3 * 3e-3 (forum staple)",
    must=[need("update_ratio|loss_stagnant|not_updated", "*", by=100)],
    may=TOO_SMALL,
    train=scheduled_loop(lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda s: 3e-3 * min(1.0, (s + 1) / 10))),
    fixed_train=scheduled_loop(lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda s: min(1.0, (s + 1) / 10))),
)
def lambda_lr_squared(fixed: bool = False) -> Built:
    """SGD at an effective rate of 1e-6 after the scheduler multiplied it in a second time."""
    x, y = waves()
    model = named(
        conv=nn.Conv1d(1, 16, 5, 2, 2),
        norm=nn.GroupNorm(4, 16),
        act=nn.SiLU(),
        pool=nn.AdaptiveAvgPool1d(4),
        flat=nn.Flatten(),
        fc=nn.Linear(64, 4),
    )
    opt = torch.optim.SGD(model.parameters(), lr=0.3 if fixed else 3e-4)
    return Built(model, opt, CE, data.minibatches(x, y, 40, 130))


@faulty(
    "blind",
    "update_ratio",
    "clip_grad_norm_ with 1e-6 for 1.0",
    must=[need("update_ratio|loss_stagnant|not_updated", "*", by=100)],
    may=TOO_SMALL,
    train=clipped_loop(1e-6),
    fixed_train=clipped_loop(1.0),
    requires=("sklearn",),
)
def clipped_at_1e_6(fixed: bool = False) -> Built:
    """SGD whose gradient norm is clipped to 1e-6: gradients arrive, nothing moves."""
    x, y = data.sk_wine()
    model = MLP(13, 32, 2, 3, act=nn.ELU)
    opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Built(model, opt, CE, data.minibatches(data.standardise(x), y, 44, 130))


@faulty(
    "blind",
    "update_ratio",
    "loss divided by the size of the data set and of the image once too often; Adam's epsilon is then what divides",
    must=[need("update_ratio|loss_stagnant|not_updated|vanishing_gradient", "*", by=100)],
    may=TOO_SMALL + " zero_gradient",
)
def loss_times_1e_11_under_adam(fixed: bool = False) -> Built:
    """Gradients of 1e-13 under Adam with eps 1e-8: steps are 1e-5 of what the rate says."""
    x, y = teacher()
    scale = 1.0 if fixed else 1e-11
    model = MLP(20, 48, 2, 4, act=nn.GELU)
    loss = lambda z, t: scale * F.cross_entropy(z, t)
    return Built(model, torch.optim.Adam(model.parameters(), lr=3e-3), loss, data.minibatches(x, y, 64, 140))


@faulty(
    "blind",
    "update_ratio",
    "Adadelta with a learning rate as if it were Adam (its default is 1.0; Zeiler 2012)",
    must=[need("update_ratio|loss_stagnant|not_updated", "*", by=100)],
    may=TOO_SMALL,
)
def adadelta_lr_1e_4(fixed: bool = False) -> Built:
    """Adadelta's unit-corrected step times 1e-4."""
    model = gpt_init(TinyLM(24, 32, 1, 4, 12), 0.08)
    opt = torch.optim.Adadelta(model.parameters(), lr=2.0 if fixed else 1e-4)
    return Built(model, opt, lm_loss, data.markov_text(24, 16, 12, 150))


@faulty(
    "blind",
    "loss_stagnant",
    "weight decay 3 with lr 0.1: every step takes 30 % off the weights (mistyped 3e-4)",
    must=[need("loss_stagnant|bad_scale|vanishing_gradient|update_ratio", "*", by=140)],
    may="loss_stagnant bad_scale vanishing_gradient update_ratio zero_gradient not_updated dead_units",
)
def weight_decay_3(fixed: bool = False) -> Built:
    """The weights shrink to nothing within 50 steps and the net answers with the class frequencies."""
    x, y = data.flat_glyphs()
    model = init_linear(MLP(64, 48, 3, 10), he)
    opt = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=3e-4 if fixed else 3.0)
    return Built(model, opt, CE, data.minibatches(x, y, 64, 180))


@faulty(
    "blind",
    "bad_scale",
    "raw features from 1e-3 to 4e3 into a ReLU net under SGD (DeepFD 'missing preprocess'; UMLAUT)",
    must=[need("bad_scale|exploding_gradient|loss_unstable|update_ratio|dead_units", "*", by=30)],
    may=TOO_LARGE,
    requires=("sklearn",),
)
def raw_cancer_features(fixed: bool = False) -> Built:
    """The first step moves the weights by more than they are, most units die and the net predicts the prior."""
    x, y = data.sk_breast_cancer()
    x = data.standardise(x) if fixed else x
    model = MLP(30, 32, 2, 2)
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.05), CE, data.minibatches(x, y, 50, 120))


class Value(nn.Module):
    """Q(s, a) of a corridor of 12 cells."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 2))
        init_linear(self.net, he)

    def forward(self, s: Tensor) -> Tensor:
        return self.net(F.one_hot(s, 12).float())


def q_learning(model: nn.Module, s: Tensor, a: Tensor, r: Tensor, t: Tensor) -> Tensor:
    with torch.no_grad():
        goal = r + 0.95 * model(t).max(1).values * (t != 11)
    return (model(s).gather(1, a.unsqueeze(1)).squeeze(1) - goal).pow(2).mean()


@faulty(
    "blind",
    "exploding_gradient",
    "game score as reward, not clipped (Mnih et al. 2015 clip to +-1), SGD and squared error",
    must=[need("exploding_gradient|loss_unstable|update_ratio|bad_scale|dead_units", "*", by=40)],
    may=TOO_LARGE,
    train=own_loss(),
)
def q_learning_raw_score(fixed: bool = False) -> Built:
    """Rewards of 1e4: the first squared errors push the weights away, values diverge or the ReLUs die."""
    g = data.gen(76)
    batches = []
    for _ in range(150):
        s, a = torch.randint(11, (64,), generator=g), torch.randint(2, (64,), generator=g)
        t = (s + 2 * a - 1).clamp(min=0)
        r = torch.where(t == 11, 1.0, -0.02) * (1.0 if fixed else 1e4)
        batches.append((s, a, r, t))
    model = Value()
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.05), q_learning, batches)


class Towers(nn.Module):
    def __init__(self, temperature: float):
        super().__init__()
        self.left, self.right = MLP(32, 48, 1, 12), MLP(32, 48, 1, 12)
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.normalize(self.left(x[:, :32]), dim=1), F.normalize(self.right(x[:, 32:]), dim=1)
        return a @ b.T / self.temperature


@faulty(
    "blind",
    "loss_unstable",
    "InfoNCE with a temperature of 1e-4 (SimCLR: 0.1 .. 0.5; CLIP clips 1/T at 100)",
    must=[need("loss_unstable|exploding_gradient|update_ratio|bad_scale|saturated|loss_stagnant", "*", by=140)],
    may=TOO_LARGE,
    loss_ratio=0.9,
)
def infonce_temperature_1e_4(fixed: bool = False) -> Built:
    """Logits of 1e4: the softmax is an arg max, the loss starts at thousands and jumps."""
    x, y = data.flat_glyphs(noise=0.1)
    batches = [(a, torch.arange(40)) for a, _ in data.minibatches(x, y, 40, 150)]
    model = Towers(0.1 if fixed else 1e-4)
    opt = torch.optim.Adam(model.parameters(), lr=3e-3) if fixed else torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Built(model, opt, CE, batches)


def lbfgs(model, opt, loss_fn, batches, on_step) -> None:
    for step, (x, y) in enumerate(batches):

        def closure() -> Tensor:
            opt.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            return loss

        on_step(step, opt.step(closure).item())


@faulty(
    "blind",
    "loss_unstable",
    "L-BFGS on mini-batches without a line search (curvature pairs from different batches; Bollapragada et al. 2018)",
    must=[need("loss_unstable|exploding_gradient|update_ratio|non_finite|loss_stagnant", "*", by=55)],
    may=TOO_LARGE,
    train=lbfgs,
)
def lbfgs_on_noisy_batches(fixed: bool = False) -> Built:
    """Batches of 8, lr 1, history across batches: steps of any length."""
    x, y = data.smooth_regression(noise=0.5)
    model = MLP(8, 32, 2, 1, act=nn.Tanh)
    search = "strong_wolfe" if fixed else None
    opt = torch.optim.LBFGS(model.parameters(), lr=1.0, max_iter=4, line_search_fn=search)
    return Built(model, opt, nn.MSELoss(), [(x, y)] * 30 if fixed else data.minibatches(x, y, 8, 60))
