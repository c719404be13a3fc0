"""Healthy programs with unusual schedules, optimizers, frozen parts and precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import data
from ..core import Built, default_loop, healthy, scheduled_loop
from ..more._loops import cosine
from ..more._programs import named, waves
from ..nets import MLP, he, init_linear

CE = nn.CrossEntropyLoss()


@healthy(
    "blind",
    "polynomial decay to zero on data that are solved long before",
    train=scheduled_loop(lambda o: torch.optim.lr_scheduler.PolynomialLR(o, total_iters=230, power=2.0)),
    loss_ratio=0.05,
    requires=("sklearn",),
)
def wine_solved_then_rate_zero() -> Built:
    """Wine is separable: losses of 1e-3, tiny gradients, and a rate that reaches zero while training goes on for 20 steps."""
    x, y = data.sk_wine()
    model = MLP(13, 32, 1, 3, act=nn.Tanh)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return Built(model, opt, CE, data.minibatches(data.standardise(x), y, 44, 250))


class Curriculum(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.lstm, self.out = nn.Embedding(6, 16), nn.LSTM(16, 40, batch_first=True), nn.Linear(40, 6)

    def forward(self, t: Tensor) -> Tensor:
        return self.out(self.lstm(self.embed(t))[0][:, -1])


@healthy("blind", "Bengio et al. 2009 (curriculum learning)", loss_ratio=0.5)
def curriculum_of_longer_sums() -> Built:
    """Sums modulo 6 of one, then two, then three tokens: the loss jumps back up at every stage."""
    g = data.gen(96)
    batches = []
    for n, steps in ((1, 60), (2, 140), (3, 60), (1, 40)):
        for _ in range(steps):
            t = torch.randint(6, (64, n), generator=g)
            batches.append((t, t.sum(1) % 6))
    model = Curriculum()
    return Built(model, torch.optim.Adam(model.parameters(), lr=1e-2), CE, batches)


class Reader(nn.Module):
    """Fixed word vectors, a GRU and a read-out."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding.from_pretrained(torch.randn(12, 20, generator=data.gen(97)), freeze=True)
        self.gru, self.out = nn.GRU(20, 32, batch_first=True), nn.Linear(32, 2)

    def forward(self, t: Tensor) -> Tensor:
        return self.out(self.gru(self.words(t))[0][:, -1])


@healthy("blind", "Embedding.from_pretrained(freeze=True), the default of its documentation")
def frozen_word_vectors() -> Built:
    """Word vectors are kept on purpose: requires_grad False and not in the optimizer."""
    model = Reader()
    opt = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    return Built(model, opt, CE, data.recall_last(12, 48, 8, 150))


@healthy("blind", "Ben Zaken et al. 2022 (BitFit: only biases are tuned)", loss_ratio=0.9)
def bitfit_biases_only() -> Built:
    """A trained net is adapted to shifted inputs by its biases alone; its matrices are frozen."""
    x, y = data.flat_glyphs()
    model = init_linear(MLP(64, 64, 2, 10, act=nn.GELU), he)
    opt = torch.optim.Adam(model.parameters(), lr=3e-3)
    default_loop(model, opt, CE, data.minibatches(x, y, 64, 100), lambda step, loss: None)
    model.zero_grad()
    for name, p in model.named_parameters():
        p.requires_grad_(name.endswith("bias"))
    biases = [p for p in model.parameters() if p.requires_grad]
    return Built(model, torch.optim.Adam(biases, lr=1e-2), CE, data.minibatches(1 - x, y, 64, 150))


def langevin(model, opt, loss_fn, batches, on_step) -> None:
    g = data.gen(98)
    for step, (x, y) in enumerate(batches):
        opt.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        opt.step()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(2e-3 * torch.randn(p.shape, generator=g))
        on_step(step, loss.item())


@healthy("blind", "Welling & Teh 2011 (stochastic gradient Langevin dynamics)", train=langevin)
def langevin_noise_on_weights() -> Built:
    """Noise is added to the weights after every step: they never come to rest."""
    x, y = data.flat_glyphs()
    model = MLP(64, 48, 1, 10, act=nn.Softsign)
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.2), CE, data.minibatches(x, y, 64, 200))


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.float16):
            return self.fc2(self.act(self.fc1(x)))


def dynamic_scale(model, opt, loss_fn, batches, on_step) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=60)
    for step, (x, y) in enumerate(batches):
        opt.zero_grad()
        loss = loss_fn(model(x).float(), y)
        scaler.scale(loss).backward()
        scaler.unscale_(opt)
        scaler.step(opt)
        scaler.update()
        on_step(step, loss.item())


@healthy(
    "blind",
    "Micikevicius et al. 2018; PyTorch AMP: the scaler starts too high and skips its first steps on purpose",
    train=dynamic_scale,
    tags=frozenset({"grad_scaler"}),
)
def dynamic_loss_scale_skips_first_steps() -> Built:
    """float16 autocast with a scale of 2**20: the first gradients are Inf, their steps are skipped, then all is well."""
    x, y = data.flat_glyphs()
    model = Scaled()
    return Built(model, torch.optim.Adam(model.parameters(), lr=3e-3), CE, data.minibatches(x, y, 64, 150))


def with_lookahead(model, opt, loss_fn, batches, on_step) -> None:
    slow = [p.detach().clone() for p in model.parameters()]
    for step, (x, y) in enumerate(batches):
        opt.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        opt.step()
        if step % 5 == 4:
            with torch.no_grad():
                for p, s in zip(model.parameters(), slow):
                    s.lerp_(p, 0.5)
                    p.copy_(s)
        on_step(step, loss.item())


@healthy("blind", "Zhang et al. 2019 (Lookahead)", train=with_lookahead)
def lookahead_pulls_back() -> Built:
    """Every fifth step half of the way is taken back, outside of the optimizer."""
    x, y = waves()
    model = named(
        conv=nn.Conv1d(1, 16, 7, 2, 3),
        act=nn.Mish(),
        conv2=nn.Conv1d(16, 24, 5, 2, 2),
        act2=nn.Mish(),
        pool=nn.AdaptiveAvgPool1d(2),
        flat=nn.Flatten(),
        fc=nn.Linear(48, 4),
    )
    return Built(model, torch.optim.NAdam(model.parameters(), lr=5e-3), CE, data.minibatches(x, y, 48, 200))


@healthy("blind", "large momentum, Nesterov, small batches", train=scheduled_loop(cosine(220, warm=30)))
def nesterov_095_noisy_batches() -> Built:
    """Batches of 8 with momentum 0.95: single losses differ by a factor of 50."""
    x, y = data.flat_glyphs()
    model = MLP(64, 48, 2, 10, act=nn.CELU, norm=nn.LayerNorm)
    opt = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.95, nesterov=True)
    return Built(model, opt, CE, data.minibatches(x, y, 8, 220))


class Bag(nn.Module):
    def __init__(self, words: int):
        super().__init__()
        self.hidden, self.out = nn.Linear(words, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.leaky_relu(self.hidden(x)))


@healthy("blind", "Duchi et al. 2011 (Adagrad for sparse features)", loss_ratio=0.8)
def adagrad_sparse_bag_of_words() -> Built:
    """1200 binary features of which 10 are on: most columns of the first matrix have no gradient in a step."""
    g = data.gen(99)
    p = 1 / torch.arange(2, 1202.0)
    topic = torch.randint(3, (1200,), generator=g)
    batches = []
    for _ in range(180):
        words = torch.multinomial(p, 48 * 10, replacement=True, generator=g).view(48, 10)
        x = torch.zeros(48, 1200).scatter_(1, words, 1.0)
        batches.append((x, F.one_hot(topic[words], 3).sum(1).argmax(1)))
    model = Bag(1200)
    return Built(model, torch.optim.Adagrad(model.parameters(), lr=0.05), CE, batches)


class Pair(nn.Module):
    """A trained teacher and its student, in one module."""

    def __init__(self):
        super().__init__()
        self.teacher, self.student = MLP(64, 96, 2, 10), MLP(64, 24, 1, 10)
        x, y = data.flat_glyphs()
        opt = torch.optim.Adam(self.teacher.parameters(), lr=3e-3)
        default_loop(self.teacher, opt, CE, data.minibatches(x, y, 64, 80), lambda step, loss: None)
        self.teacher.zero_grad()
        self.match = nn.Linear(24, 96)

    def forward(self, x: Tensor):
        with torch.no_grad():
            t = F.relu(self.teacher.layers[0](x))
            soft = (self.teacher(x) / 3).softmax(-1)
        h = F.relu(self.student.layers[0](x))
        return self.student.head(h), self.match(h), soft, t


def hint_loss(out, y: Tensor) -> Tensor:
    z, match, soft, t = out
    return F.cross_entropy(z / 3, soft) + 0.5 * F.mse_loss(match, t) + 0.2 * F.cross_entropy(z, y)


@healthy("blind", "Romero et al. 2015 (FitNets: hints and soft labels)", loss_ratio=0.85)
def distillation_with_hints() -> Built:
    """The teacher runs under no_grad, is frozen and is not in the optimizer."""
    x, y = data.flat_glyphs()
    model = Pair()
    model.teacher.requires_grad_(False)
    params = [*model.student.parameters(), *model.match.parameters()]
    return Built(model, torch.optim.Adam(params, lr=3e-3), hint_loss, data.minibatches(x, y, 48, 170))


@healthy("blind", "Riedmiller & Braun 1993; sklearn's iris, full batch", loss_ratio=0.3, requires=("sklearn",))
def rprop_iris_sigmoid() -> Built:
    """Full-batch training with one hidden layer; PyTorch's Rprop changes all steps by their signs."""
    from sklearn.datasets import load_iris

    d = load_iris()
    x, y = torch.tensor(d.data, dtype=torch.float32), torch.tensor(d.target)
    model = named(fc1=nn.Linear(4, 10), act=nn.Sigmoid(), fc2=nn.Linear(10, 3))
    return Built(model, torch.optim.Rprop(model.parameters(), lr=1e-2), CE, [(data.standardise(x), y)] * 100)
