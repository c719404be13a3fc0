"""Developer cases: gradients that vanish, explode or become non-finite."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .. import data
from ..core import Built, faulty, need
from ..nets import MLP, he, init_linear, xavier

CE = nn.CrossEntropyLoss()


# ------------------------------------------------------------------ vanishing


@faulty(
    "dev",
    "vanishing_gradient",
    "SO 39217567 (sigmoid stack, DeepLocalize/DeepFD #12); AutoTrainer ICSE'21 'gradient vanish'",
    must=[need("vanishing_gradient", "layers.[0-4] acts.[0-4]", by=60)],
    may="loss_stagnant update_ratio bad_scale",
)
def sigmoid_stack(fixed: bool = False) -> Built:
    """Eight sigmoid layers, Xavier init, SGD: first layers get 1e-5 of the head's gradient."""
    x, y = data.flat_glyphs()
    model = init_linear(MLP(64, 48, 8, 10, act=nn.ReLU if fixed else nn.Sigmoid), he if fixed else xavier)
    opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Built(model, opt, CE, data.minibatches(x, y, 64, 200))


def stacked_autoencoder(act) -> nn.Sequential:
    dims = [64, 48, 32, 16, 8, 16, 32, 48, 64]
    mods = []
    for a, b in zip(dims, dims[1:]):
        mods += [nn.Linear(a, b), act()]
    return nn.Sequential(*mods)


@faulty(
    "dev",
    "vanishing_gradient",
    "deep sigmoid autoencoders do not train from random init (Hinton & Salakhutdinov 2006 pre-train them; Martens 2010)",
    must=[need("vanishing_gradient", "0 1 2 3 4 5 6 7", by=60)],
    may="loss_stagnant update_ratio bad_scale",
)
def sigmoid_autoencoder(fixed: bool = False) -> Built:
    """Eight sigmoid layers around a bottleneck of 8, N(0, 0.1) init, momentum SGD: the encoder gets 1e-6 of the gradient."""
    x, _ = data.flat_glyphs()
    if fixed:
        model = stacked_autoencoder(nn.ELU)
        return Built(model, torch.optim.Adam(model.parameters(), lr=3e-3), nn.MSELoss(), data.minibatches(x, x, 64, 200))
    model = init_linear(stacked_autoencoder(nn.Sigmoid), lambda w: nn.init.normal_(w, std=0.1))
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9), nn.MSELoss(), data.minibatches(x, x, 64, 150))


class CellRNN(nn.Module):
    """A tanh RNN unrolled by hand, so that every time step is a module call."""

    def __init__(self, vocab: int, d: int, classes: int, gain: float):
        super().__init__()
        self.emb = nn.Embedding(vocab, d)
        self.inp, self.rec = nn.Linear(d, d), nn.Linear(d, d, bias=False)
        self.tanh = nn.Tanh()
        self.out = nn.Linear(d, classes)
        nn.init.orthogonal_(self.rec.weight, gain)

    def forward(self, t):
        h = torch.zeros(len(t), self.rec.in_features)
        for e in self.emb(t).unbind(1):
            h = self.tanh(self.inp(e) + self.rec(h))
        return self.out(h)


@faulty(
    "dev",
    "vanishing_gradient",
    "Bengio et al. 1994; Pascanu et al. 2013 (RNN over long sequences)",
    must=[need("vanishing_gradient|loss_stagnant", "tanh rec inp emb loss", by=120)],
    may="loss_stagnant zero_gradient update_ratio",
    tags=frozenset({"temporal"}),
)
def tanh_rnn_first_token(fixed: bool = False) -> Built:
    """Label = first of 40 tokens, recurrent gain 0.5: dL/dh_1 is below 1e-8 of dL/dh_T."""
    model = CellRNN(4, 32, 4, gain=0.5)
    opt = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Built(model, opt, CE, data.recall_first(4, 32, 3 if fixed else 40, 150))


# ------------------------------------------------------------------ exploding


@faulty(
    "dev",
    "exploding_gradient",
    "SO 48934338 (1-50-30-1 regression, SGD lr 0.1; DeepLocalize/DeepFD #13)",
    must=[need("exploding_gradient|loss_unstable|update_ratio", "*", by=15)],
    may="non_finite dead_units bad_scale zero_gradient loss_stagnant saturated exploding_gradient loss_unstable update_ratio not_updated",
)
def sgd_lr_regression(fixed: bool = False) -> Built:
    """Raw x in 0..20, y = x^2/4, SGD lr 0.1 with MSE: diverges within a few steps."""
    g = data.gen(0)
    x = 20 * torch.rand(512, 1, generator=g)
    y = x**2 / 4
    if fixed:
        x, y = data.standardise(x), data.standardise(y)
    model = MLP(1, 40, 2, 1)
    opt = torch.optim.SGD(model.parameters(), lr=0.05 if fixed else 0.1)
    return Built(model, opt, nn.MSELoss(), data.minibatches(x, y, 64, 100))


class ReluRNN(nn.Module):
    def __init__(self, d_in: int, d: int, gain: float):
        super().__init__()
        self.inp, self.rec = nn.Linear(d_in, d), nn.Linear(d, d, bias=False)
        self.act = nn.ReLU()
        self.readout = nn.Linear(d, 1)
        nn.init.orthogonal_(self.rec.weight, gain)

    def forward(self, x):
        h = x.new_zeros(len(x), self.rec.in_features)
        for e in x.unbind(1):
            h = self.act(self.inp(e) + self.rec(h))
        return self.readout(h)


@faulty(
    "dev",
    "exploding_gradient",
    "Pascanu et al. 2013; Le et al. 2015 (IRNN needs gain 1)",
    must=[need("exploding_gradient", "rec inp act readout", by=10)],
    may="loss_unstable bad_scale non_finite update_ratio dead_units zero_gradient loss_stagnant not_updated",
    tags=frozenset({"temporal"}),
)
def relu_rnn_gain(fixed: bool = False) -> Built:
    """Adding-problem ReLU RNN over 30 steps with recurrent gain 2, no clipping."""

    def batch(g):
        x = torch.rand(32, 30, 1, generator=g)
        return x, x.mean(1)

    model = ReluRNN(1, 24, 0.9 if fixed else 2.0)
    opt = torch.optim.SGD(model.parameters(), lr=0.01)
    return Built(model, opt, nn.MSELoss(), data.stream(batch, 100))


# ----------------------------------------------------------------- non-finite


class ManualSoftmaxNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = MLP(64, 48, 2, 10)
        self.prob = nn.Softmax(-1)

    def forward(self, x):
        return self.prob(self.body(x))


def naive_cross_entropy(p, y):
    return -(F.one_hot(y, 10) * torch.log(p)).sum(1).mean()


def safe_cross_entropy(p, y):
    return -(F.one_hot(y, 10) * torch.log(p + 1e-8)).sum(1).mean()


@faulty(
    "dev",
    "non_finite",
    "log(0) in a hand-written cross-entropy (SO 33712178 'Tensorflow NaN bug'; Humbatova et al. 2020 'wrong loss calculation')",
    must=[need("non_finite", "loss prob body.head body", by=62)],
    may="exploding_gradient update_ratio loss_unstable saturated bad_scale zero_gradient loss_stagnant dead_units not_updated vanishing_gradient",
    onset=60,
)
def log_of_zero(fixed: bool = False) -> Built:
    """An outlier image (x400) at step 60 makes a softmax output underflow: 0 * log(0) = NaN."""
    x, y = data.flat_glyphs()
    model = ManualSoftmaxNet()
    batches = []
    for s, (a, b) in enumerate(data.minibatches(x, y, 64, 120)):
        if s == 60:
            a = a.clone()
            a[9] *= 400
        batches.append((a, b))
    opt = torch.optim.SGD(model.parameters(), lr=0.25)
    return Built(model, opt, safe_cross_entropy if fixed else naive_cross_entropy, batches)


class Distance(nn.Module):
    def __init__(self, eps: float):
        super().__init__()
        self.eps = eps

    def forward(self, a, b):
        return torch.sqrt((a - b).pow(2).sum(1) + self.eps)


class Siamese(nn.Module):
    def __init__(self, eps: float):
        super().__init__()
        self.encoder = MLP(64, 32, 2, 16, act=nn.Tanh)
        self.encoder.head.bias = None  # would cancel in the difference
        self.distance = Distance(eps)

    def forward(self, pair):
        return self.distance(self.encoder(pair[:, 0]), self.encoder(pair[:, 1]))


def contrastive(d, same):
    return (same * d**2 + (1 - same) * F.relu(1 - d) ** 2).mean()


@faulty(
    "dev",
    "non_finite",
    "pytorch#2421 / sqrt at 0: forward finite, gradient inf*0 = NaN",
    must=[need("non_finite", "distance encoder encoder.head", by=30)],
    may="zero_gradient loss_stagnant not_updated loss_unstable update_ratio",
    onset=25,
)
def sqrt_at_zero(fixed: bool = False) -> Built:
    """A pair of identical images appears at step 25: distance 0, gradient NaN, loss still finite."""
    x, y = data.flat_glyphs()
    g = data.gen(3)

    def batch(step):
        i = torch.randint(1000, (64,), generator=g)
        j = (i + torch.randint(1, 999, (64,), generator=g)) % 1000
        if step == 25:
            j[7] = i[7]
        return torch.stack([x[i], x[j]], 1), (y[i] == y[j]).float()

    model = Siamese(1e-8 if fixed else 0.0)
    opt = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Built(model, opt, contrastive, [batch(s) for s in range(120)])


class MaskedMean(nn.Module):
    """Mean over valid tokens, 'protected' by torch.where - whose backward is NaN all the same."""

    def __init__(self, safe: bool):
        super().__init__()
        self.safe = safe

    def forward(self, h, mask):
        n = mask.sum(1, keepdim=True)
        total = (h * mask.unsqueeze(-1)).sum(1)
        if self.safe:
            return total / n.clamp(min=1)
        mean = total / (n * h.new_ones(1, h.shape[-1], requires_grad=True))
        return torch.where(n == 0, torch.zeros_like(mean), mean)


class BagOfTokens(nn.Module):
    def __init__(self, safe: bool):
        super().__init__()
        self.emb = nn.Embedding(20, 24)
        self.proj, self.act = nn.Linear(24, 24), nn.Tanh()
        self.pool = MaskedMean(safe)
        self.cls = nn.Linear(24, 2)

    def forward(self, t):
        return self.cls(self.pool(self.act(self.proj(self.emb(t))), (t > 0).float()))


@faulty(
    "dev",
    "non_finite",
    "pytorch#16317, #68425 (0/0 masked by torch.where: NaN only in the backward pass)",
    must=[need("non_finite", "pool act proj", by=35)],
    may="zero_gradient loss_stagnant not_updated loss_unstable update_ratio",
    onset=30,
)
def masked_by_where(fixed: bool = False) -> Built:
    """An all-padding row at step 30: 0/0 is hidden by torch.where, its gradient is not."""
    g = data.gen(4)
    out = []
    for s in range(100):
        t = torch.randint(1, 20, (48, 10), generator=g)
        if s == 30:
            t[5] = 0
        out.append((t, ((t % 3) == 0).float().mean(1).gt(0.32).long()))
    model = BagOfTokens(fixed)
    opt = torch.optim.Adam(model.parameters(), lr=1e-2)
    return Built(model, opt, CE, out)


@faulty(
    "dev",
    "non_finite",
    "UMLAUT CHI'21 'NaN in input'; SageMaker Debugger built-in rule family",
    must=[need("non_finite", "input stem stem.0 model loss", by=42)],
    may="zero_gradient loss_stagnant not_updated loss_unstable update_ratio",
    onset=40,
)
def nan_in_batch(fixed: bool = False) -> Built:
    """One corrupt sample (a NaN pixel) at step 40."""
    x, y = data.glyphs()
    model = nn.Sequential()
    model.add_module("stem", nn.Conv2d(1, 8, 3, padding=1))
    model.add_module("relu", nn.ReLU())
    model.add_module("flat", nn.Flatten())
    model.add_module("fc", nn.Linear(512, 10))
    batches = []
    for s, (a, b) in enumerate(data.minibatches(x, y, 32, 90)):
        if s == 40 and not fixed:
            a = a.clone()
            a[3, 0, 2, 2] = float("nan")
        batches.append((a, b))
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.1), CE, batches)


# ----------------------------------------------------- spikes of the gradient


def weighted_ce(logits, target):
    y, w = target
    return (w * F.cross_entropy(logits, y, reduction="none")).mean()


@faulty(
    "dev",
    "exploding_gradient",
    "unbounded importance weights 1/p (off-policy learning; class weights of a rare class)",
    must=[need("exploding_gradient|loss_unstable", "*", by=45)],
    may="exploding_gradient loss_unstable update_ratio dead_units bad_scale zero_gradient loss_stagnant vanishing_gradient non_finite not_updated",
    onset=39,
)
def importance_spikes(fixed: bool = False) -> Built:
    """Every 40 steps one sample carries weight 3e4 (1/p of a rare event): the gradient jumps by >100x."""
    x, y = data.flat_glyphs()
    batches = []
    for s, (a, b) in enumerate(data.minibatches(x, y, 64, 160)):
        w = torch.ones(64)
        if s % 40 == 39:
            w[5] = 1.0 if fixed else 3e4
        batches.append((a, (b, w)))
    model = init_linear(MLP(64, 48, 2, 10), he)
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.1), weighted_ce, batches)


class LogitScorer(nn.Module):
    def __init__(self, squash: bool):
        super().__init__()
        self.dense, self.out = nn.Linear(30, 16), nn.Linear(16, 1)
        self.squash = squash

    def forward(self, x):
        z = self.out(torch.tanh(self.dense(x))).squeeze(1)
        return torch.sigmoid(z) if self.squash else z


def hand_written_bce(p, y):
    return -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).mean()


@faulty(
    "dev",
    "non_finite",
    "binary cross-entropy on logits, no sigmoid (NeuraLint 'missing sigmoid'; UMLAUT 'missing softmax before loss')",
    must=[need("non_finite", "loss out", by=3)],
    may="zero_gradient loss_stagnant not_updated loss_unstable update_ratio",
)
def bce_on_logits(fixed: bool = False) -> Built:
    """Log of a negative 'probability': the loss is NaN in the very first step."""
    g = data.gen(46)
    x = torch.randn(400, 30, generator=g)
    y = (x[:, :5].sum(1) > 0).float()
    model = LogitScorer(fixed)
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-3), hand_written_bce, data.minibatches(x, y, 40, 100))
