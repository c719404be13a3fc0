"""Held-out faulty programs, part B: stale gradients, missing updates, bad scale and step sizes, losses that stall or swing."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .. import data
from ..core import Built, clipped_loop, default_loop, faulty, need
from ._loops import VOCAB, char_windows, seeded, shapes
from ._programs import cycle, named, picture, ring_graph, teacher, waves

CE = nn.CrossEntropyLoss()


# -------------------------------------------------------------- stale gradients


def never_cleared(model, opt, loss_fn, batches, on_step) -> None:
    for step, (x, y) in enumerate(batches):
        loss = loss_fn(model(x), y)
        loss.backward()
        opt.step()
        on_step(step, loss.item())


def group_norm_net() -> nn.Sequential:
    return named(
        conv1=nn.Conv2d(3, 16, 3, 2, 1),
        norm1=nn.GroupNorm(4, 16),
        act1=nn.SiLU(),
        conv2=nn.Conv2d(16, 24, 3, 2, 1),
        norm2=nn.GroupNorm(4, 24),
        act2=nn.SiLU(),
        flat=nn.Flatten(),
        fc=nn.Linear(216, 6),
    )


@faulty(
    "more",
    "stale_gradient",
    "missing optimizer.zero_grad() (SO 48001598; Humbatova et al. 2020 'missing API call'; NeuraLint, DeepCrime)",
    must=[need("stale_gradient", "*", by=35)],
    may="stale_gradient exploding_gradient update_ratio loss_unstable loss_stagnant bad_scale dead_units saturated vanishing_gradient",
    train=never_cleared,
    fixed_train=default_loop,
)
def convnet_never_cleared(fixed: bool = False) -> Built:
    """Plain SGD on a GroupNorm convnet without zero_grad: the step is the sum of all gradients so far."""
    x, y, _ = shapes()
    model = group_norm_net()
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.03), CE, data.minibatches(x, y, 36, 150))


class Wide(nn.Module):
    """Two embedding tables and a number -> rating."""

    def __init__(self):
        super().__init__()
        self.user, self.item = nn.Embedding(60, 8), nn.Embedding(40, 8)
        self.mlp = nn.Sequential(nn.Linear(17, 32), nn.ELU(), nn.Linear(32, 16), nn.ELU(), nn.Linear(16, 1))

    def forward(self, x):
        u, i, a = x
        return self.mlp(torch.cat([self.user(u), self.item(i), a.unsqueeze(1)], 1)).squeeze(1)


def ratings(steps: int, seed: int) -> list:
    g = data.gen(seed)
    p, q = torch.randn(60, 2, generator=g), torch.randn(40, 2, generator=g)
    out = []
    for _ in range(steps):
        u, i, a = torch.randint(60, (96,), generator=g), torch.randint(40, (96,), generator=g), torch.randn(96, generator=g)
        out.append(((u, i, a), torch.tanh((p[u] * q[i]).sum(1)) + 0.7 * a))
    return out


@faulty(
    "more",
    "stale_gradient",
    "zero_grad lost in a refactoring to a training-step function (Humbatova et al. 2020 'missing API call')",
    must=[need("stale_gradient", "*", by=40)],
    may="stale_gradient exploding_gradient update_ratio loss_unstable loss_stagnant bad_scale dead_units saturated",
    train=never_cleared,
    fixed_train=default_loop,
)
def adam_recommender_never_cleared(fixed: bool = False) -> Built:
    """Adam on a recommender MLP without zero_grad: normalised steps along the sum of all gradients, the loss swings."""
    model = Wide()
    return Built(model, torch.optim.Adam(model.parameters(), lr=1e-2), nn.MSELoss(), ratings(180, 40))


class SeqToSeq(nn.Module):
    """GRU encoder, GRU decoder with teacher forcing; the task is to write the input backwards."""

    def __init__(self, vocab: int = 8, d: int = 32):
        super().__init__()
        self.encoder = nn.ModuleDict({"embed": nn.Embedding(vocab, d), "gru": nn.GRU(d, d, batch_first=True)})
        self.decoder = nn.ModuleDict(
            {"embed": nn.Embedding(vocab + 1, d), "gru": nn.GRU(d, d, batch_first=True), "out": nn.Linear(d, vocab)}
        )

    def forward(self, x, y):
        _, h = self.encoder["gru"](self.encoder["embed"](x))
        start = torch.full_like(y[:, :1], self.decoder["out"].out_features)
        z, _ = self.decoder["gru"](self.decoder["embed"](torch.cat([start, y[:, :-1]], 1)), h)
        return self.decoder["out"](z)


def two_optimizers(second: str):
    """Two optimizers; in the faulty program the second zero_grad() is called on the first one again (copy and paste)."""

    def loop(model, opt, loss_fn, batches, on_step) -> None:
        for step, (x, y) in enumerate(batches):
            opt["encoder"].zero_grad()
            opt[second].zero_grad()
            loss = loss_fn(model(x, y).flatten(0, 1), y.flatten())
            loss.backward()
            opt["encoder"].step()
            opt["decoder"].step()
            on_step(step, loss.item())

    return loop


@faulty(
    "more",
    "stale_gradient",
    "zero_grad() on the wrong one of two optimizers (practical-pytorch seq2seq uses two; copy-and-paste slip)",
    must=[need("stale_gradient", "decoder decoder.*", by=40)],
    may="stale_gradient exploding_gradient update_ratio loss_unstable loss_stagnant bad_scale saturated",
    train=two_optimizers("encoder"),
    fixed_train=two_optimizers("decoder"),
)
def zero_grad_on_wrong_optimizer(fixed: bool = False) -> Built:
    """encoder_optimizer.zero_grad() twice, decoder_optimizer.zero_grad() never: only the decoder's gradients pile up."""
    g, out = seeded(41), []
    for _ in range(200):
        t = torch.randint(8, (48, 4), generator=g)
        out.append((t, t.flip(1)))
    model = SeqToSeq()
    opt = {
        "encoder": torch.optim.Adam(model.encoder.parameters(), lr=1e-2),
        "decoder": torch.optim.SGD(model.decoder.parameters(), lr=0.1, momentum=0.9),
    }
    return Built(model, opt, CE, out)


# ------------------------------------------------------------------ not updated


def model_zero_grad(model, opt, loss_fn, batches, on_step) -> None:
    for step, (x, y) in enumerate(batches):
        model.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        opt.step()
        on_step(step, loss.item())


@faulty(
    "more",
    "not_updated",
    "layer replaced after the optimizer was built (fine-tuning recipes: model.fc = nn.Linear(...) below the optimizer line)",
    must=[need("not_updated", "fc", by=20)],
    may="not_updated update_ratio zero_gradient",
    train=model_zero_grad,
)
def head_replaced_after_optimizer(fixed: bool = False) -> Built:
    """The classifier gets its new head after Adagrad was built: it has gradients but belongs to no optimizer."""
    x, y, _ = shapes()
    model = group_norm_net()
    model.fc = nn.Linear(216, 1000)
    if fixed:
        model.fc = nn.Linear(216, 6)
    opt = torch.optim.Adagrad(model.parameters(), lr=0.01)
    if not fixed:
        model.fc = nn.Linear(216, 6)
    return Built(model, opt, CE, data.minibatches(x, y, 36, 150))


class Mixer(nn.Module):
    def __init__(self, tokens: int, d: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.tokens = nn.Sequential(nn.Linear(tokens, tokens), nn.GELU(), nn.Linear(tokens, tokens))
        self.channels = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))

    def forward(self, x):
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class MixerNet(nn.Module):
    def __init__(self, d: int = 24, depth: int = 4):
        super().__init__()
        self.patches = nn.Conv2d(3, d, 3, 3)
        self.blocks = nn.ModuleList(Mixer(16, d) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, 6)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        for b in self.blocks:
            x = b(x)
        return self.head(self.norm(x).mean(1))


@faulty(
    "more",
    "not_updated",
    "layer-wise learning-rate decay (BEiT / MAE recipes) with an integer division",
    must=[need("not_updated|update_ratio", "blocks.[012] blocks.[012].*", by=25)],
    may="not_updated update_ratio loss_stagnant",
)
def layer_decay_integer_division(fixed: bool = False) -> Built:
    """lr * ((i + 1) // 4) instead of lr * (i + 1) / 4: the rate of the first three of four blocks is 0."""
    x, y, _ = shapes()
    model = MixerNet()
    base, n = 4e-3, len(model.blocks)
    rest = [*model.patches.parameters(), *model.norm.parameters(), *model.head.parameters()]
    groups = [{"params": rest}] + [
        {"params": list(b.parameters()), "lr": base * ((i + 1) / n if fixed else (i + 1) // n)} for i, b in enumerate(model.blocks)
    ]
    return Built(model, torch.optim.AdamW(groups, lr=base), CE, data.minibatches(x, y, 30, 120))


class SignNet(nn.Module):
    """Linear layers started with random signs of one size (Zhou et al. 2019, 'signed constant')."""

    def __init__(self, d_in: int, d: int, classes: int):
        super().__init__()
        self.in_proj, self.mid, self.out_proj = (
            nn.Linear(d_in, d, bias=False),
            nn.Linear(d, d, bias=False),
            nn.Linear(d, classes, bias=False),
        )
        self.norm = nn.LayerNorm(d, elementwise_affine=False)
        for m in (self.in_proj, self.mid, self.out_proj):
            nn.init.constant_(m.weight, 0.26)
            with torch.no_grad():
                m.weight.mul_(torch.randint(0, 2, m.weight.shape) * 2.0 - 1)

    def forward(self, x):
        h = F.silu(self.norm(self.in_proj(x)))
        return self.out_proj(F.silu(self.mid(h))).float()


@faulty(
    "more",
    "not_updated",
    "pure bfloat16 weights: an update below half an ulp (2^-9 relative) is rounded away (Zamirai et al. 2020 'Revisiting bfloat16 training')",
    must=[need("not_updated|update_ratio|loss_stagnant", "*", by=60)],
    may="not_updated update_ratio loss_stagnant zero_gradient",
)
def bf16_swallows_updates(fixed: bool = False) -> Built:
    """Adam with lr 5e-4 on bfloat16 weights of size 0.26: every single update rounds to nothing."""
    x, y = teacher(d=32, seed=3)
    model = SignNet(32, 48, 4)
    if not fixed:
        model, x = model.to(torch.bfloat16), x.to(torch.bfloat16)
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-4), CE, data.minibatches(x, y, 100, 200))


# -------------------------------------------------------------------- bad scale


class TiedCharModel(nn.Module):
    """embedding -> GRU -> projection -> logits against the same embedding."""

    def __init__(self, d: int = 24):
        super().__init__()
        self.embed, self.gru, self.proj = nn.Embedding(VOCAB, d), nn.GRU(d, 32, batch_first=True), nn.Linear(32, d)

    def forward(self, t):
        h, _ = self.gru(self.embed(t))
        return F.linear(self.proj(h), self.embed.weight).transpose(1, 2)


@faulty(
    "more",
    "bad_scale",
    "embedding init of the wrong size under weight tying (Press & Wolf 2017; nn.Embedding's N(0,1) is already too large there)",
    must=[need("bad_scale", "embed proj gru input", by=12)],
    may="bad_scale saturated exploding_gradient vanishing_gradient loss_unstable update_ratio loss_stagnant",
)
def tied_embedding_std_30(fixed: bool = False) -> Built:
    """Tied embedding N(0, 30): the GRU's gates saturate, the first logits are about 100, the rate cannot move a weight of 30."""
    model = TiedCharModel()
    nn.init.normal_(model.embed.weight, std=0.2 if fixed else 30.0)
    return Built(model, torch.optim.Adam(model.parameters(), lr=8e-3), CE, char_windows(24, 12, 150))


@faulty(
    "more",
    "bad_scale",
    "std=1e-5 instead of 1e-2 (RandomNormal(stddev) typo; Mishkin & Matas 2016 'LSUV', why unit variance)",
    must=[need("bad_scale|vanishing_gradient", "conv* act* fc", by=15)],
    may="bad_scale vanishing_gradient loss_stagnant update_ratio zero_gradient not_updated dead_units",
)
def conv_std_1e_5(fixed: bool = False) -> Built:
    """Four convolutions N(0, 1e-5) with ELU: activations are 1e-18 before the classifier, gradients 1e-15."""
    x, y, _ = shapes()
    model = named(
        conv1=nn.Conv2d(3, 16, 3, padding=1),
        act1=nn.ELU(),
        conv2=nn.Conv2d(16, 16, 3, 2, 1),
        act2=nn.ELU(),
        conv3=nn.Conv2d(16, 24, 3, padding=1),
        act3=nn.ELU(),
        conv4=nn.Conv2d(24, 24, 3, 2, 1),
        act4=nn.ELU(),
        flat=nn.Flatten(),
        fc=nn.Linear(216, 6),
    )
    for m in model:
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight) if fixed else nn.init.normal_(m.weight, std=1e-5)
            nn.init.zeros_(m.bias)
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9), CE, data.minibatches(x, y, 30, 130))


def widen(old: nn.Conv2d, cin: int, cout: int) -> nn.Conv2d:
    """A wider convolution made of copies of the old one's filters (outputs of the next layer are preserved)."""
    new = nn.Conv2d(cin, cout, 3, old.stride, old.padding)
    with torch.no_grad():
        ci, co = torch.arange(cin) % old.in_channels, torch.arange(cout) % old.out_channels
        new.weight.copy_(old.weight[co][:, ci] * old.in_channels / cin)
        new.bias.copy_(old.bias[co])
    return new


@faulty(
    "more",
    "bad_scale",
    "network widened by copying filters without noise (Net2Net, Chen et al. 2016, sec. 2.2: 'a small amount of noise' breaks the symmetry)",
    must=[need("bad_scale", "conv[12] conv[12].* act[12]", by=25)],
    may="bad_scale loss_stagnant",
    tags=frozenset({"symmetry"}),
)
def net2net_without_noise(fixed: bool = False) -> Built:
    """Two convolutions widened from 2 to 24 filters: 24 rows, two different ones, and the gradient keeps it so."""
    x, y, _ = shapes()
    c1, c2 = nn.Conv2d(3, 2, 3, 1, 1), nn.Conv2d(2, 2, 3, 2, 1)
    if fixed:
        c1, c2 = nn.Conv2d(3, 24, 3, 1, 1), nn.Conv2d(24, 24, 3, 2, 1)
    else:
        c1, c2 = widen(c1, 3, 24), widen(c2, 24, 24)
    model = named(conv1=c1, act1=nn.SiLU(), conv2=c2, act2=nn.SiLU(), pool=nn.AvgPool2d(2), flat=nn.Flatten(), fc=nn.Linear(216, 6))
    if not fixed:  # the classifier reads every copy with the same weight
        with torch.no_grad():
            w = model.fc.weight.view(6, 24, 9)
            w.copy_(w[:, torch.arange(24) % 2])
    return Built(model, torch.optim.AdamW(model.parameters(), lr=4e-3), CE, data.minibatches(x, y, 30, 170))


@faulty(
    "more",
    "bad_scale",
    "unnormalised input of size 1e4 (LeCun et al. 1998 'Efficient backprop'; UMLAUT 'input exceeds limits'; DeepFD 'missing preprocess')",
    must=[need("bad_scale|exploding_gradient", "input first first.* act1", by=10)],
    may="bad_scale exploding_gradient saturated loss_unstable loss_stagnant update_ratio dead_units vanishing_gradient",
)
def hours_since_epoch(fixed: bool = False) -> Built:
    """Load forecasting from 'hours since ...' (1e4) and temperatures, no normalisation: first activations are 1e4."""
    g = data.gen(42)
    t = 2e4 + 24 * 30 * torch.rand(900, 1, generator=g)
    c = 15 + 8 * torch.randn(900, 3, generator=g)
    y = (0.1 * (c[:, :1] - 15) + 0.05 * (c[:, 1:2] - 15) + (t - 2e4) / 300 - 1.2) / 1.3
    x = torch.cat([t, c], 1)
    if fixed:
        x = data.standardise(x)
    model = named(first=nn.Linear(4, 32), act1=nn.LeakyReLU(), second=nn.Linear(32, 16), act2=nn.LeakyReLU(), last=nn.Linear(16, 1))
    return Built(model, torch.optim.Adam(model.parameters(), lr=3e-3), nn.L1Loss(), data.minibatches(x, y, 60, 160))


# ------------------------------------------------------------------ update ratio


@faulty(
    "more",
    "update_ratio",
    "SGD rate far too large on a normalised net: scale invariance hides it (van Laarhoven 2017; Arora et al. 2019)",
    must=[need("update_ratio|loss_unstable|bad_scale", "*", by=40)],
    may="update_ratio loss_unstable loss_stagnant bad_scale exploding_gradient vanishing_gradient saturated dead_units",
)
def layernorm_net_lr_30(fixed: bool = False) -> Built:
    """LayerNorm after every layer keeps the activations tame at SGD lr 30; weight decay keeps the weights small, so each step replaces them: chance."""
    x, y = teacher(d=24, seed=4)
    model = nn.Sequential()
    for i in range(3):
        model.add_module(f"lin{i}", nn.Linear(24 if i == 0 else 40, 40))
        model.add_module(f"norm{i}", nn.LayerNorm(40, elementwise_affine=False))
        model.add_module(f"act{i}", nn.GELU())
    model.add_module("out", nn.Linear(40, 4))
    model.add_module("logit_norm", nn.LayerNorm(4, elementwise_affine=False))
    return Built(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1 if fixed else 30.0, weight_decay=5e-3),
        CE,
        data.minibatches(x, y, 50, 150),
    )


@faulty(
    "more",
    "update_ratio",
    "Adam with SGD's favourite rate 1.0 (Adadelta default carried over; DeepCrime 'change learning rate')",
    must=[need("update_ratio|loss_unstable", "*", by=25)],
    may="update_ratio loss_unstable loss_stagnant bad_scale exploding_gradient vanishing_gradient saturated dead_units zero_gradient not_updated",
)
def adamax_lr_1_convnet(fixed: bool = False) -> Built:
    """Adamax with lr 1.0 on a convnet: the first step is 10 times as large as the weights."""
    x, y, _ = shapes()
    model = named(
        conv1=nn.Conv2d(3, 12, 5, 2, 2),
        act1=nn.Hardswish(),
        conv2=nn.Conv2d(12, 24, 3, 2, 1),
        act2=nn.Hardswish(),
        flat=nn.Flatten(),
        fc1=nn.Linear(216, 32),
        act3=nn.Hardswish(),
        fc2=nn.Linear(32, 6),
    )
    return Built(model, torch.optim.Adamax(model.parameters(), lr=1e-2 if fixed else 1.0), CE, data.minibatches(x, y, 30, 170))


def decayed(every: int):
    """ExponentialLR(0.7), meant for epochs."""

    def loop(model, opt, loss_fn, batches, on_step) -> None:
        sched = torch.optim.lr_scheduler.ExponentialLR(opt, 0.7)
        for step, (x, y) in enumerate(batches):
            opt.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            opt.step()
            if step % every == every - 1:
                sched.step()
            on_step(step, loss.item())

    return loop


@faulty(
    "more",
    "update_ratio",
    "scheduler.step() inside the batch loop (epoch-wise schedule stepped per batch)",
    must=[need("update_ratio|not_updated|loss_stagnant", "*", by=80)],
    may="update_ratio not_updated loss_stagnant",
    onset=12,
    train=decayed(1),
    fixed_train=decayed(40),
)
def decay_every_batch(fixed: bool = False) -> Built:
    """lr 0.05 * 0.7 per step instead of per epoch: 1e-9 after 50 steps, with the loss still high."""
    w, y = waves(classes=4, noise=0.8, seed=6)
    model = named(
        conv1=nn.Conv1d(1, 16, 7, 2, 3),
        act1=nn.SiLU(),
        conv2=nn.Conv1d(16, 24, 5, 2, 2),
        act2=nn.SiLU(),
        flat=nn.Flatten(),
        fc=nn.Linear(192, 4),
    )
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), CE, data.minibatches(w, y, 32, 160))


# ------------------------------------------------------------------ loss stagnant


class GCN(nn.Module):
    def __init__(self, adj, d_in: int, d: int, classes: int):
        super().__init__()
        self.register_buffer("adj", adj)
        self.lift, self.out = nn.Linear(d_in, d), nn.Linear(d, classes)

    def forward(self, x):
        return self.adj @ self.out(F.elu(self.adj @ self.lift(x)))


@faulty(
    "more",
    "loss_stagnant",
    "labels are drawn anew in every batch (index shuffled on one side only; Humbatova et al. 2020 'wrong labels'; Zhang et al. 2017)",
    must=[need("loss_stagnant", "*", by=190)],
    may="loss_stagnant vanishing_gradient",
    tags=frozenset({"data"}),
)
def labels_reshuffled_every_batch(fixed: bool = False) -> Built:
    """The node labels of a graph net are permuted independently in every step; the loss stays at ln 3."""
    x, adj, y = ring_graph()
    g = seeded(43)
    batches = [(x, y if fixed else y[torch.randperm(len(y), generator=g)]) for _ in range(200)]
    model = GCN(adj, 16, 32, 3)
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-3), CE, batches)


@faulty(
    "more",
    "loss_stagnant",
    "TensorFlow's keep_prob passed as PyTorch's p (migration bug; DeepCrime 'change dropout rate')",
    must=[need("loss_stagnant|loss_unstable", "*", by=170)],
    may="loss_stagnant loss_unstable dead_units zero_gradient saturated bad_scale exploding_gradient update_ratio vanishing_gradient",
)
def keep_prob_as_dropout(fixed: bool = False) -> Built:
    """Dropout(0.99) on both hidden layers: one unit in a hundred survives, and is multiplied by 100."""
    x, y = teacher(d=24, seed=5)
    p = 0.01 if fixed else 0.99
    model = named(
        fc1=nn.Linear(24, 80),
        act1=nn.Tanh(),
        drop1=nn.Dropout(p),
        fc2=nn.Linear(80, 80),
        act2=nn.Tanh(),
        drop2=nn.Dropout(p),
        fc3=nn.Linear(80, 4),
    )
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9), CE, data.minibatches(x, y, 50, 180))


def broadcast_mse(pred, y):
    return ((pred - y) ** 2).mean()  # [B,1] - [B] -> [B,B]


@faulty(
    "more",
    "loss_stagnant",
    "wrong axis: [B,1] minus [B] broadcasts to [B,B] (torch warns only in F.mse_loss)",
    must=[need("loss_stagnant", "*", by=190)],
    may="loss_stagnant vanishing_gradient",
    tags=frozenset({"data"}),
)
def broadcast_loss(fixed: bool = False) -> Built:
    """Every prediction is compared with every target of the batch: only the mean can be learnt, the loss stays at the variance."""
    x, z = picture()
    z = z.squeeze(1)
    model = named(lift=nn.Linear(2, 48), act1=nn.Softsign(), mid=nn.Linear(48, 48), act2=nn.Softsign(), out=nn.Linear(48, 1))
    batches = [(x[i], z[i].unsqueeze(1) if fixed else z[i]) for i in cycle(len(x), 64, 200, 44)]
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-3), broadcast_mse, batches)


# ------------------------------------------------------------------ loss unstable


@faulty(
    "more",
    "loss_unstable",
    "momentum 0.99 with the rate of momentum 0 (Sutskever et al. 2013: effective rate lr / (1 - m))",
    must=[need("loss_unstable|exploding_gradient|update_ratio", "*", by=80)],
    train=clipped_loop(1.0),
    may="loss_unstable exploding_gradient update_ratio bad_scale saturated loss_stagnant vanishing_gradient dead_units non_finite zero_gradient not_updated",
)
def momentum_099_denoiser(fixed: bool = False) -> Built:
    """Convolutional denoiser, SGD lr 0.6 with momentum 0.99, clipped gradients (so it does not overflow): the loss swings and climbs."""
    x, _, _ = shapes()
    g = data.gen(45)
    noisy = x + 0.3 * torch.randn(x.shape, generator=g)
    model = named(
        conv1=nn.Conv2d(3, 12, 3, padding=1),
        act1=nn.CELU(),
        conv2=nn.Conv2d(12, 12, 3, padding=1),
        act2=nn.CELU(),
        conv3=nn.Conv2d(12, 3, 3, padding=1),
    )
    opt = torch.optim.SGD(model.parameters(), lr=0.1 if fixed else 0.6, momentum=0.9 if fixed else 0.99)
    return Built(model, opt, nn.MSELoss(), [(noisy[i], x[i]) for i in cycle(len(x), 16, 140, 46)])


@faulty(
    "more",
    "loss_unstable",
    "RMSprop lr 0.3 on a recurrent net (AutoTrainer ICSE'21 'oscillating loss')",
    must=[need("loss_unstable|update_ratio", "*", by=30)],
    may="loss_unstable update_ratio exploding_gradient bad_scale saturated loss_stagnant vanishing_gradient dead_units zero_gradient",
)
def rmsprop_lr_03_lstm(fixed: bool = False) -> Built:
    """Character LSTM with RMSprop lr 0.3: the first steps are 3 in every weight, the loss jumps to 10 times its start and stays above it."""
    model = LSTMChars()
    return Built(
        model, torch.optim.RMSprop(model.parameters(), lr=5e-4 if fixed else 0.3, momentum=0.9), CE, char_windows(24, 12, 150)
    )


class LSTMChars(nn.Module):
    def __init__(self, d: int = 32):
        super().__init__()
        self.embed, self.lstm, self.out = nn.Embedding(VOCAB, 16), nn.LSTM(16, d, batch_first=True), nn.Linear(d, VOCAB)

    def forward(self, t):
        return self.out(self.lstm(self.embed(t))[0]).transpose(1, 2)


@faulty(
    "more",
    "loss_unstable",
    "batch of 2 with the rate tuned for 512 (linear scaling rule, Goyal et al. 2017, forgotten)",
    must=[need("loss_unstable|update_ratio", "*", by=80)],
    may="loss_unstable update_ratio exploding_gradient bad_scale saturated loss_stagnant vanishing_gradient dead_units",
)
def batch_of_two(fixed: bool = False) -> Built:
    """Softmax regression on squares and products, two samples a step at SGD lr 5: the loss jumps between 0 and 50."""
    x, y = teacher(d=16, seed=6)
    x = torch.cat([x, (x**2 - 1) / 1.4, x[:, :8] * x[:, 8:]], 1)
    model = named(scores=nn.Linear(40, 4))
    opt = torch.optim.SGD(model.parameters(), lr=0.2 if fixed else 5.0)
    return Built(model, opt, CE, data.minibatches(x, y, 64 if fixed else 2, 200))


def endless_warmup(capped: bool):
    def loop(model, opt, loss_fn, batches, on_step) -> None:
        sched = torch.optim.lr_scheduler.LambdaLR(opt, lambda s: (min(1.0, (s + 1) / 20) if capped else (s + 1) / 20) ** 2)
        for step, (x, y) in enumerate(batches):
            opt.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            opt.step()
            sched.step()
            on_step(step, loss.item())

    return loop


@faulty(
    "more",
    "loss_unstable",
    "warm-up without an end: min(1, step/warmup) forgotten (fairseq/HF schedulers re-implemented by hand)",
    must=[need("loss_unstable|update_ratio|exploding_gradient", "*", by=150)],
    may="loss_unstable update_ratio exploding_gradient bad_scale saturated loss_stagnant vanishing_gradient dead_units",
    onset=25,
    train=endless_warmup(False),
    fixed_train=endless_warmup(True),
)
def warmup_without_end(fixed: bool = False) -> Built:
    """Quadratic warm-up that keeps growing: the loss falls until about step 60 and then climbs to 20 times its start."""
    x, y = teacher(d=20, seed=7)
    model = named(fc1=nn.Linear(20, 40), act1=nn.Tanh(), fc2=nn.Linear(40, 24), act2=nn.Tanh(), out=nn.Linear(24, 4))
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), CE, data.minibatches(x, y, 40, 180))
