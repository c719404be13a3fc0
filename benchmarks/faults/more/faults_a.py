"""Held-out faulty programs, part A: vanishing, exploding and non-finite gradients; dead, saturated and cut-off units."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from .. import data
from ..core import Built, clipped_loop, faulty, need
from ._loops import VOCAB, char_windows, seeded, shapes
from ._programs import cycle, named, picture, teacher, waves

CE = nn.CrossEntropyLoss()


# ------------------------------------------------------------------ vanishing


class CoordinateNet(nn.Module):
    """(x, y) -> intensity through a deep tanh trunk."""

    def __init__(self, width: int = 32, depth: int = 10):
        super().__init__()
        mods = []
        for i in range(depth):
            mods += [nn.Linear(2 if i == 0 else width, width), nn.Tanh()]
        self.trunk, self.out = nn.Sequential(*mods), nn.Linear(width, 1)

    def forward(self, x):
        return self.out(self.trunk(x))


@faulty(
    "more",
    "vanishing_gradient",
    "Glorot & Bengio 2010 (too small an init: signals shrink at every layer, forwards and backwards); CPPN / implicit image nets",
    must=[need("vanishing_gradient|bad_scale", "trunk trunk.*", by=40)],
    may="loss_stagnant update_ratio bad_scale vanishing_gradient zero_gradient not_updated",
)
def coordinate_net_tiny_init(fixed: bool = False) -> Built:
    """Ten tanh layers, every weight N(0, 0.03): factor 0.17 a layer, the first activations get 1e-8 of the last one's gradient."""
    x, z = picture()
    model = CoordinateNet()
    for m in model.modules():
        if isinstance(m, nn.Linear):
            nn.init.zeros_(m.bias)
            if fixed:
                nn.init.xavier_normal_(m.weight, nn.init.calculate_gain("tanh") if m.out_features > 1 else 1.0)
            else:
                nn.init.normal_(m.weight, std=0.03)
    opt = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, nesterov=True)
    return Built(model, opt, nn.SmoothL1Loss(), [(x[i], z[i]) for i in cycle(len(x), 96, 200, 31)])


class GatelessRNN(nn.Module):
    """h <- sigmoid(W [x, h]), unrolled by hand; reads out the last state, or the mean of all."""

    def __init__(self, pool: bool, d: int = 24):
        super().__init__()
        self.cell, self.squash, self.score = nn.Linear(2 + d, d), nn.Sigmoid(), nn.Linear(d, 1)
        self.pool = pool

    def forward(self, x):
        h, hs = x.new_full((len(x), self.score.in_features), 0.5), []
        for e in x.unbind(1):
            h = self.squash(self.cell(torch.cat([e, h], 1)))
            hs.append(h)
        return self.score(torch.stack(hs, 1).mean(1) if self.pool else h).squeeze(1)


@faulty(
    "more",
    "vanishing_gradient",
    "Hochreiter 1991; Bengio et al. 1994: slope of the logistic <= 1/4, so 40 steps are out of reach",
    must=[need("vanishing_gradient|loss_stagnant", "squash cell cell.* loss", by=150)],
    may="loss_stagnant vanishing_gradient update_ratio zero_gradient bad_scale",
    tags=frozenset({"temporal"}),
)
def sigmoid_rnn_early_marker(fixed: bool = False) -> Built:
    """A marked value within the first five of 40 steps has to be named at the end; the gradient is 1e-20 there."""
    g, out = seeded(11), []
    for _ in range(170):
        x = torch.randn(32, 40, 2, generator=g) * 0.3
        x[:, :, 1] = 0
        v = torch.randint(2, (32,), generator=g).float()
        x[torch.arange(32), torch.randint(5, (32,), generator=g)] = torch.stack([8 * (2 * v - 1), torch.full((32,), 4.0)], 1)
        out.append((x, v))
    model = GatelessRNN(pool=fixed)
    return Built(model, torch.optim.RMSprop(model.parameters(), lr=6e-3), nn.BCEWithLogitsLoss(), out)


def conv1d_stack(act, norm: bool, depth: int = 12, c: int = 12) -> nn.Sequential:
    net = nn.Sequential()
    for i in range(depth):
        net.add_module(f"conv{i}", nn.Conv1d(1 if i == 0 else c, c, 3, padding=1, bias=not norm))
        if norm:
            net.add_module(f"bn{i}", nn.BatchNorm1d(c))
        net.add_module(f"act{i}", act())
    net.add_module("pool", nn.AdaptiveMaxPool1d(2))
    net.add_module("flat", nn.Flatten())
    net.add_module("fc", nn.Linear(2 * c, 4))
    return net


@faulty(
    "more",
    "vanishing_gradient",
    "sigmoid in a plain deep convnet (AutoTrainer ICSE'21 'gradient vanish'; Ioffe & Szegedy 2015 motivate BN with it)",
    must=[need("vanishing_gradient", "conv[0-6] act[0-6]", by=50)],
    may="loss_stagnant update_ratio bad_scale zero_gradient",
)
def sigmoid_conv1d_stack(fixed: bool = False) -> Built:
    """Twelve Conv1d + Sigmoid on waveforms with AdamW: the first kernels see 1e-8 of the gradient."""
    x, y = waves()
    model = conv1d_stack(nn.ReLU if fixed else nn.Sigmoid, norm=fixed)
    opt = torch.optim.AdamW(model.parameters(), lr=2e-3)
    return Built(model, opt, CE, data.minibatches(x, y, 32, 120))


# ------------------------------------------------------------------ exploding


class Branch(nn.Module):
    def __init__(self, d: int, gain: float, scale: float):
        super().__init__()
        self.up, self.act, self.down = nn.Linear(d, d), nn.LeakyReLU(0.1), nn.Linear(d, d)
        self.scale = scale
        for m, k in ((self.up, 1.4), (self.down, gain)):
            nn.init.orthogonal_(m.weight, k)
            nn.init.zeros_(m.bias)

    def forward(self, x):
        return x + self.scale * self.down(self.act(self.up(x)))


@faulty(
    "more",
    "exploding_gradient",
    "residual tower without normalisation or down-scaled branches (Zhang et al. 2019 'Fixup', fig. 1; Hanin & Rolnick 2018)",
    must=[need("exploding_gradient|bad_scale", "blocks.* stem head", by=12)],
    may="loss_unstable bad_scale exploding_gradient update_ratio loss_stagnant non_finite dead_units not_updated zero_gradient",
)
def residual_tower_gain3(fixed: bool = False) -> Built:
    """Sixteen unnormalised residual blocks with gain 3: activations and gradients grow by 3 a block."""
    x, y = teacher()
    model = named(
        stem=nn.Linear(20, 32),
        blocks=nn.Sequential(*(Branch(32, 1.0 if fixed else 3.0, 1 / 8 if fixed else 1.0) for _ in range(16))),
        head=nn.Linear(32, 4),
    )
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return Built(model, opt, CE, data.minibatches(x, y, 50, 150))


class WalkReader(nn.Module):
    def __init__(self, gain: float, d: int = 32):
        super().__init__()
        self.cell, self.read = nn.RNNCell(2, d), nn.Linear(d, 3)
        nn.init.orthogonal_(self.cell.weight_hh, gain)

    def forward(self, x):
        h, total = x.new_zeros(len(x), self.cell.hidden_size), 0.0
        for e in x.unbind(1):
            h = self.cell(e, h)
            total = total + h
        return self.read(total / x.shape[1])


@faulty(
    "more",
    "exploding_gradient",
    "Pascanu et al. 2013; chaotic tanh RNN above gain 1 (Sompolinsky et al. 1988), no clipping",
    must=[need("exploding_gradient", "cell cell.*", by=20)],
    may="loss_unstable loss_stagnant bad_scale update_ratio saturated exploding_gradient",
    tags=frozenset({"temporal"}),
    fixed_train=clipped_loop(1.0),
)
def chaotic_rnn_cell(fixed: bool = False) -> Built:
    """nn.RNNCell over 40 steps with recurrent gain 3: dL/dh_1 is 1e4 and more times dL/dh_40."""
    g, out = seeded(12), []
    for _ in range(120):
        y = torch.randint(3, (32,), generator=g)
        drift = torch.tensor([[1.0, 0.0], [-0.5, 0.8], [-0.5, -0.8]])[y]
        out.append((0.5 * drift.unsqueeze(1) + 0.4 * torch.randn(32, 40, 2, generator=g), y))
    model = WalkReader(0.85 if fixed else 3.0)
    return Built(model, torch.optim.Adam(model.parameters(), lr=1.5e-3), CE, out)


class Forecaster(nn.Module):
    """Mean and log-variance of the next value."""

    def __init__(self):
        super().__init__()
        self.lift, self.act = nn.Conv1d(1, 16, 5), nn.SiLU()
        self.mix = nn.Conv1d(16, 16, 5, stride=2)
        self.mean, self.logvar = nn.Linear(64, 1), nn.Linear(64, 1)

    def forward(self, x):
        h = self.act(self.mix(self.act(self.lift(x)))).flatten(1)
        return self.mean(h).squeeze(1), self.logvar(h).squeeze(1)


def gaussian_nll(out, y):
    mu, s = out
    return (0.5 * s + 0.5 * (y - mu) ** 2 * torch.exp(-s)).mean()


@faulty(
    "more",
    "exploding_gradient",
    "unit mix-up in the stream (metres / millimetres) under an unclipped Gaussian likelihood (Seitzer et al. 2022 on its 1/variance weights)",
    must=[need("exploding_gradient|loss_unstable", "*", by=73)],
    may="exploding_gradient loss_unstable update_ratio bad_scale non_finite dead_units loss_stagnant saturated vanishing_gradient zero_gradient not_updated",
    onset=70,
)
def sensor_unit_glitch(fixed: bool = False) -> Built:
    """From step 70 to 74 the target of one series in the batch comes in thousandths of the unit: the gradient jumps 1e6-fold."""
    g, out = seeded(13), []
    for s in range(160):
        t = torch.arange(17.0) * (0.2 + 0.4 * torch.rand(32, 1, generator=g)) + 6.3 * torch.rand(32, 1, generator=g)
        x = torch.sin(t) + 0.1 * torch.randn(32, 17, generator=g)
        y = x[:, 16].clone()
        if 70 <= s < 75 and not fixed:
            y[4] *= 1000
            y[4] += 500
        out.append((x[:, None, :16], y))
    model = Forecaster()
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-3), gaussian_nll, out)


# ----------------------------------------------------------------- non-finite


class AttentionPool(nn.Module):
    def __init__(self, d: int, guard: bool):
        super().__init__()
        self.key, self.query, self.softmax = nn.Linear(d, d), nn.Parameter(torch.randn(d) / d**0.5), nn.Softmax(1)
        self.guard = guard

    def forward(self, h, valid):
        if self.guard:
            valid = valid | ~valid.any(1, keepdim=True)
        s = (torch.tanh(self.key(h)) @ self.query).masked_fill(~valid, float("-inf"))
        return (self.softmax(s).unsqueeze(2) * h).sum(1)


class Document(nn.Module):
    def __init__(self, guard: bool):
        super().__init__()
        self.words, self.mix, self.pool, self.topic = (
            nn.Embedding(28, 24),
            nn.Linear(24, 24),
            AttentionPool(24, guard),
            nn.Linear(24, 3),
        )

    def forward(self, t):
        return self.topic(self.pool(F.gelu(self.mix(self.words(t))), t > 0))


@faulty(
    "more",
    "non_finite",
    "softmax over a fully masked row (pytorch#40932, #41508: MultiheadAttention gives NaN for an all-padding sample)",
    must=[need("non_finite", "pool pool.* topic loss model", by=46)],
    may="zero_gradient loss_stagnant not_updated loss_unstable update_ratio exploding_gradient",
    onset=43,
)
def empty_document(fixed: bool = False) -> Built:
    """An empty document in the batch of step 43: softmax of -inf only."""
    g, out = seeded(14), []
    topics = torch.stack([torch.arange(1, 28) % 3 == k for k in range(3)]).float() * 2 + 0.5
    for s in range(110):
        y = torch.randint(3, (32,), generator=g)
        t = 1 + torch.multinomial(topics[y], 12, replacement=True, generator=g)
        n = torch.randint(2, 13, (32,), generator=g)
        if s == 43:
            n[17] = 0
        out.append((t * (torch.arange(12) < n.unsqueeze(1)), y))
    model = Document(fixed)
    return Built(model, torch.optim.Adagrad(model.parameters(), lr=0.03), CE, out)


def scaled_loop(grow: bool):
    """Mixed precision with hand-written loss scaling; a growing scale doubles every 8 steps and nobody looks for overflow."""

    def loop(model, opt, loss_fn, batches, on_step) -> None:
        scale = 256.0
        for step, (x, y) in enumerate(batches):
            opt.zero_grad()
            with torch.autocast("cpu", dtype=torch.float16):
                out = model(x)
            loss = loss_fn(out.float(), y)
            (loss * scale).backward()
            for p in model.parameters():
                p.grad /= scale
            opt.step()
            if grow and step % 8 == 7:
                scale *= 2
            on_step(step, loss.item())

    return loop


@faulty(
    "more",
    "non_finite",
    "Micikevicius et al. 2018 (loss scaling needs the overflow check); fp16 gradients beyond 65504",
    must=[need("non_finite", "*", by=125)],
    may="exploding_gradient zero_gradient loss_stagnant not_updated loss_unstable update_ratio",
    train=scaled_loop(True),
    fixed_train=scaled_loop(False),
    onset=8,
    tags=frozenset({"grad_scaler", "seed_dependent_step"}),
)
def loss_scale_only_grows(fixed: bool = False) -> Built:
    """fp16 autocast; the loss scale doubles every 8 steps without an overflow check, until a gradient becomes inf."""
    model = named(
        chars=nn.Embedding(VOCAB, 12), flat=nn.Flatten(), hidden=nn.Linear(12 * 6, 64), act=nn.Tanh(), out=nn.Linear(64, VOCAB)
    )
    batches = [(x, y[:, -1]) for x, y in char_windows(48, 6, 170)]
    return Built(model, torch.optim.Adam(model.parameters(), lr=4e-3), CE, batches)


class Whiten(nn.Module):
    """Hand-written batch normalisation with torch.std (unbiased)."""

    def forward(self, x):
        return (x - x.mean(0)) / (x.std(0) + 1e-5)


@faulty(
    "more",
    "non_finite",
    "incomplete last batch of one sample (drop_last=False): unbiased std of one value is NaN (pytorch#29372, #7716)",
    must=[need("non_finite", "whiten act second loss model first", by=16)],
    may="zero_gradient loss_stagnant not_updated loss_unstable update_ratio exploding_gradient",
    onset=13,
)
def last_batch_of_one(fixed: bool = False) -> Built:
    """833 samples in batches of 64 leave one for the 14th batch; its 'batch standard deviation' is 0/0."""
    x, y = teacher(833, 16, 3, seed=1)
    g, batches = seeded(15), []
    while len(batches) < 110:
        batches += [(x[i], y[i]) for i in torch.randperm(833, generator=g).split(64) if len(i) == 64 or not fixed]
    model = named(first=nn.Linear(16, 40, bias=False), whiten=Whiten(), act=nn.ELU(), second=nn.Linear(40, 3))
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9), CE, batches[:110])


# ----------------------------------------------------------------- dead units


def typo_schedule(spike: bool):
    """Step schedule x0.5 at step 80 - typed as x300 and corrected six steps later."""

    def loop(model, opt, loss_fn, batches, on_step) -> None:
        base = opt.param_groups[0]["lr"]
        for step, (x, y) in enumerate(batches):
            lr = base if step < 80 else base / 2
            if spike and 80 <= step < 86:
                lr = base * 300
            opt.param_groups[0]["lr"] = lr
            opt.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            opt.step()
            on_step(step, loss.item())

    return loop


@faulty(
    "more",
    "dead_units",
    "one learning-rate spike kills ReLUs for good (cs231n notes 'dead ReLU'; Lu et al. 2019)",
    must=[need("dead_units|zero_gradient", "relu[123] fc[1234]", by=125)],
    may="dead_units zero_gradient loss_stagnant vanishing_gradient exploding_gradient update_ratio loss_unstable bad_scale not_updated saturated",
    onset=80,
    train=typo_schedule(True),
    fixed_train=typo_schedule(False),
)
def lr_spike_kills_critic(fixed: bool = False) -> Built:
    """A value network trains well until the schedule sets 300x the rate for steps 80-85: most of a ReLU layer never fires again."""
    g = data.gen(32)
    s = torch.randn(1024, 6, generator=g)
    v = torch.cos(2 * s[:, :1]) + s[:, 1:2] * s[:, 2:3].clamp(-1, 1) + (s[:, 3:4] > 0)
    model = named(
        fc1=nn.Linear(6, 48),
        relu1=nn.ReLU(),
        fc2=nn.Linear(48, 32),
        relu2=nn.ReLU(),
        fc3=nn.Linear(32, 24),
        relu3=nn.ReLU(),
        fc4=nn.Linear(24, 1),
    )
    for m in model:
        if isinstance(m, nn.Linear):
            nn.init.kaiming_uniform_(m.weight, nonlinearity="relu")
            nn.init.zeros_(m.bias)
    opt = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Built(model, opt, nn.MSELoss(), [(s[i], v[i]) for i in cycle(1024, 64, 200, 33)])


def separable(cin: int, c: int, stride: int) -> nn.Sequential:
    return named(
        depth=nn.Conv2d(cin, cin, 3, stride, 1, groups=cin, bias=False),
        point=nn.Conv2d(cin, c, 1, bias=False),
        norm=nn.BatchNorm2d(c),
        act=nn.ReLU(),
    )


@faulty(
    "more",
    "dead_units",
    "channels switched off by BatchNorm (beta << -gamma; Mehta et al. 2019 'filter sparsity', network-slimming checkpoints loaded by mistake)",
    must=[need("dead_units|zero_gradient", "stage2 stage2.* stage3.depth", by=30)],
    may="dead_units zero_gradient not_updated bad_scale vanishing_gradient loss_stagnant update_ratio",
)
def batchnorm_switches_channels_off(fixed: bool = False) -> Built:
    """Separable convnet; 20 of 24 channels of stage 2 have BatchNorm bias -7: silent for every image, forever."""
    x, y, _ = shapes()
    model = named(
        stage1=separable(3, 16, 1),
        stage2=separable(16, 24, 2),
        stage3=separable(24, 32, 2),
        pool=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        fc=nn.Linear(32, 6),
    )
    if not fixed:
        nn.init.constant_(model.stage2.norm.bias[:20].data, -7.0)
        nn.init.constant_(model.stage2.norm.weight[:20].data, 0.5)
    opt = torch.optim.AdamW(model.parameters(), lr=5e-3)
    return Built(model, opt, CE, data.minibatches(x, y, 32, 140))


@faulty(
    "more",
    "dead_units",
    "pre-activation block used as the input layer on all-negative features (log-power in dB, log-probabilities)",
    must=[need("dead_units|zero_gradient", "rectify project project.*", by=25)],
    may="dead_units zero_gradient loss_stagnant not_updated vanishing_gradient bad_scale update_ratio",
)
def relu_on_decibels(fixed: bool = False) -> Built:
    """Spectra in dB (-80..0) go straight into a ReLU: all zero, the first weights get exactly no gradient."""
    w, y = waves(seed=3)
    db = 20 * torch.log10(torch.fft.rfft(w[:, 0]).abs() / 32 + 1e-4)
    db = db.clamp(-80, -0.1)
    if fixed:
        db = data.standardise(db)
    model = named(rectify=nn.ReLU(), project=nn.Linear(17, 32), norm=nn.LayerNorm(32), act=nn.GELU(), classify=nn.Linear(32, 4))
    return Built(model, torch.optim.NAdam(model.parameters(), lr=2e-3), CE, data.minibatches(db, y, 40, 150))


# ------------------------------------------------------------------ saturation


class SetAttention(nn.Module):
    """A learned query looks at a set of points (dot products without 1/sqrt(d) in the faulty program)."""

    def __init__(self, d: int, scale: float):
        super().__init__()
        self.key, self.value, self.seed = nn.Linear(d, 64), nn.Linear(d, 64), nn.Parameter(torch.randn(4, 64))
        self.softmax, self.scale = nn.Softmax(dim=-1), scale
        nn.init.xavier_uniform_(self.key.weight)

    def forward(self, x):
        logits = self.scale * torch.einsum("qd,bnd->bqn", self.seed, self.key(x))
        return (self.softmax(logits) @ self.value(x)).flatten(1)


@faulty(
    "more",
    "saturated",
    "Vaswani et al. 2017, sec. 3.2.1 (why 1/sqrt(d)); attention-entropy collapse (Zhai et al. 2023)",
    must=[need("saturated|bad_scale", "attend attend.* input", by=12)],
    may="saturated bad_scale vanishing_gradient loss_stagnant loss_unstable update_ratio zero_gradient exploding_gradient",
)
def unscaled_set_attention(fixed: bool = False) -> Built:
    """Pooling by attention over raw coordinates (in cm) and without 1/sqrt(d): every softmax is one-hot."""
    g = data.gen(34)
    y = torch.randint(3, (700,), generator=g)
    x = torch.randn(700, 12, 8, generator=g)
    x[torch.arange(700), :, y] += 0.5
    model = named(attend=SetAttention(8, 1 / 8 if fixed else 1.0), mix=nn.Linear(256, 32), act=nn.Mish(), out=nn.Linear(32, 3))
    unit = 1.0 if fixed else 100.0
    return Built(model, torch.optim.Adam(model.parameters(), lr=2e-3), CE, data.minibatches(unit * x, y, 35, 140))


class GatedMemory(nn.Module):
    """c <- (1 - i) c + i tanh(W [x, c]) with an input gate; the gate and the candidate are modules."""

    def __init__(self, d: int = 24):
        super().__init__()
        self.gate, self.gate_act = nn.Linear(3 + d, d), nn.Sigmoid()
        self.cand, self.read = nn.Linear(3 + d, d), nn.Linear(d, 2)

    def forward(self, x):
        c = x.new_zeros(len(x), self.read.in_features)
        for e in x.unbind(1):
            z = torch.cat([e, c], 1)
            i = self.gate_act(self.gate(z))
            c = (1 - i) * c + i * torch.tanh(self.cand(z))
        return self.read(c)


@faulty(
    "more",
    "saturated",
    "gate bias of the wrong sign/size (Jozefowicz et al. 2015; Gu et al. 2020 'Improving the gating mechanism')",
    must=[need("saturated", "gate gate_act gate.*", by=25)],
    may="saturated vanishing_gradient loss_stagnant zero_gradient dead_units bad_scale update_ratio",
    tags=frozenset({"temporal"}),
)
def closed_input_gate(fixed: bool = False) -> Built:
    """Minimal gated unit whose update gate starts at sigmoid(-8): nothing is written to memory, its slope is 3e-4."""
    g, out = seeded(16), []
    for _ in range(150):
        y = torch.randint(2, (40,), generator=g)
        x = torch.randn(40, 10, 3, generator=g)
        x[..., 0] += 0.8 * (y.float() - 0.5).unsqueeze(1)
        out.append((x, y))
    model = GatedMemory()
    nn.init.constant_(model.gate.bias, -1.0 if fixed else -8.0)
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), CE, out)


@faulty(
    "more",
    "saturated",
    "raw features (income, altitude, pressure) into a clipped activation (UMLAUT 'input exceeds limits'; quantisation-aware Hardtanh nets)",
    must=[need("saturated|bad_scale", "clip1 lin1 lin1.* input", by=12)],
    may="saturated bad_scale vanishing_gradient zero_gradient loss_stagnant not_updated dead_units update_ratio loss_unstable",
)
def hardtanh_on_raw_table(fixed: bool = False) -> Built:
    """Columns of size 1e2..1e4 into Hardtanh units: all outputs are -1 or 1, their slope is exactly 0."""
    g = data.gen(35)
    z = torch.randn(800, 6, generator=g)
    y = (torch.tanh(z[:, :1] + 0.5 * z[:, 1:2]) + 0.5 * z[:, 2:3] - 0.3 * z[:, 3:4]) / 0.8
    raw = z * torch.tensor([4e2, 3e3, 1e4, 2e2, 7e2, 9e2]) + torch.tensor([900.0, 5e3, 3e4, 500.0, 1013.0, 2e3])
    x = data.standardise(raw) if fixed else raw
    model = named(lin1=nn.Linear(6, 40), clip1=nn.Hardtanh(), lin2=nn.Linear(40, 24), clip2=nn.Hardtanh(), lin3=nn.Linear(24, 1))
    return Built(model, torch.optim.RAdam(model.parameters(), lr=5e-3), nn.HuberLoss(), data.minibatches(x, y, 50, 180))


# ------------------------------------------------------------- zero gradient


class ProbedEncoder(nn.Module):
    """Encoder for images, head for classes; the encoder is run under no_grad by mistake."""

    def __init__(self, frozen: bool):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.PReLU(), nn.Conv2d(12, 24, 3, 2, 1), nn.PReLU(), nn.Flatten())
        self.probe = nn.Linear(216, 6)
        self.frozen = frozen

    def forward(self, x):
        with torch.set_grad_enabled(not self.frozen):
            h = self.encoder(x)
        return self.probe(h)


@faulty(
    "more",
    "zero_gradient",
    "torch.no_grad() copied from the evaluation / linear-probe script (Humbatova et al. 2020 'missing/wrong API call')",
    must=[need("zero_gradient|not_updated", "encoder encoder.*", by=12)],
    may="zero_gradient not_updated dead_units",
)
def encoder_under_no_grad(fixed: bool = False) -> Built:
    """The encoder that should be trained runs under torch.no_grad(); only the probe learns (and the loss falls)."""
    x, y, _ = shapes()
    model = ProbedEncoder(not fixed)
    opt = torch.optim.AdamW(model.parameters(), lr=6e-3, weight_decay=0.0)
    return Built(model, opt, CE, data.minibatches(x, y, 36, 180))


class Quantise(nn.Module):
    """Finite scalar quantisation to 7 levels; the straight-through estimator is what the faulty program lacks."""

    def __init__(self, through: bool):
        super().__init__()
        self.through = through

    def forward(self, z):
        q = torch.round(3 * z) / 3
        return z + (q - z).detach() if self.through else q


@faulty(
    "more",
    "zero_gradient",
    "round/argmax in the middle of a net (Bengio et al. 2013; van den Oord et al. 2017, sec. 3.2; Mentzer et al. 2023 'FSQ': straight-through estimator forgotten)",
    must=[need("zero_gradient|not_updated", "enc enc.*", by=12)],
    may="zero_gradient not_updated dead_units loss_stagnant vanishing_gradient",
)
def rounded_code_no_straight_through(fixed: bool = False) -> Built:
    """Auto-encoder with a rounded code and no straight-through estimator: the decoder learns, the encoder's gradient is exactly 0."""
    x = waves(classes=2, noise=0.1, seed=5)[0].squeeze(1)
    model = named(
        enc=nn.Sequential(nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 4), nn.Tanh()),
        quant=Quantise(fixed),
        dec=nn.Sequential(nn.Linear(4, 32), nn.SiLU(), nn.Linear(32, 32)),
    )
    opt = torch.optim.Adam(model.parameters(), lr=6e-3)
    return Built(model, opt, nn.MSELoss(), [(x[i], x[i]) for i in cycle(len(x), 64, 200, 36)])


class Duel(nn.Module):
    def __init__(self):
        super().__init__()
        self.forger = nn.Sequential(nn.Linear(4, 32), nn.LeakyReLU(0.2), nn.Linear(32, 2))
        self.judge = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))


def duel_loop(cut: bool):
    def loop(model, opt, loss_fn, batches, on_step) -> None:
        for step, (real, z, z2) in enumerate(batches):
            fake = model.forger(z).detach()
            opt["judge"].zero_grad()
            (loss_fn(model.judge(real), 0.9) + loss_fn(model.judge(fake), 0.0)).backward()
            opt["judge"].step()
            opt["forger"].zero_grad()
            fake = model.forger(z2)
            loss_fn(model.judge(fake.detach() if cut else fake), 1.0).backward()
            opt["forger"].step()
            on_step(step, None)

    return loop


def real_points(n: int, g: torch.Generator) -> torch.Tensor:
    t = 2 * math.pi * torch.rand(n, 1, generator=g)
    return torch.cat([2.5 + 0.8 * torch.cos(t), -1.5 + 0.8 * torch.sin(t)], 1) + 0.1 * torch.randn(n, 2, generator=g)


def forgery_gap(model) -> float:
    """Distance between the mean of the forgeries and the centre of the ring."""
    with torch.no_grad():
        m = model.forger(torch.randn(512, 4, generator=data.gen(38))).mean(0)
    return (m - torch.tensor([2.5, -1.5])).norm().item()


@faulty(
    "more",
    "zero_gradient",
    "fake.detach() in the generator's step (belongs in the discriminator's step only; cf. pytorch/examples dcgan)",
    must=[need("zero_gradient|not_updated", "forger forger.*", by=15)],
    may="zero_gradient not_updated dead_units vanishing_gradient",
    train=duel_loop(True),
    fixed_train=duel_loop(False),
    progress=("distance of the means", forgery_gap, "down"),
)
def gan_forger_detached(fixed: bool = False) -> Built:
    """The generator's loss is computed on fake.detach(): the generator never gets a gradient, the discriminator wins."""
    g = data.gen(37)
    batches = [(real_points(64, g), torch.randn(64, 4, generator=g), torch.randn(64, 4, generator=g)) for _ in range(200)]
    model = Duel()
    opt = {
        "judge": torch.optim.Adam(model.judge.parameters(), lr=2e-3, betas=(0.5, 0.999)),
        "forger": torch.optim.Adam(model.forger.parameters(), lr=2e-3, betas=(0.5, 0.999)),
    }
    return Built(model, opt, lambda s, t: F.binary_cross_entropy_with_logits(s, torch.full_like(s, t)), batches)


class SharedTrunk(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(20, 48), nn.GELU(), nn.Linear(48, 32), nn.GELU())
        self.kind_head, self.size_head = nn.Linear(32, 4), nn.Linear(32, 1)

    def forward(self, x):
        h = self.trunk(x)
        return self.kind_head(h), self.size_head(h).squeeze(1)


def two_tasks(both: bool):
    def loss(out, y):
        kind, size = out
        label, value = y
        total = F.cross_entropy(kind, label)
        regression = F.smooth_l1_loss(size, value)
        return total + regression if both else total  # computed, never added

    return loss


@faulty(
    "more",
    "zero_gradient",
    "a loss term is computed but never added (DDP: 'parameters that were not used in producing loss')",
    must=[need("zero_gradient|not_updated", "size_head", by=12)],
    may="zero_gradient not_updated dead_units",
)
def second_head_not_in_loss(fixed: bool = False) -> Built:
    """Two-task network whose regression loss is forgotten in the sum; the other task trains as if nothing was wrong."""
    x, y = teacher(seed=2)
    value = torch.sin(x[:, 0]) + 0.5 * x[:, 1]
    model = SharedTrunk()
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Built(model, opt, two_tasks(fixed), [(x[i], (y[i], value[i])) for i in cycle(len(x), 50, 150, 39)])
