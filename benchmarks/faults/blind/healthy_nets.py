"""Healthy programs whose architecture looks ill to a naive threshold."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import data
from ..core import Built, healthy, scheduled_loop, warmup
from ..more._loops import own_loss, shapes
from ..more._programs import named, picture, ring_graph, teacher, waves
from ..nets import MLP, TinyLM, gpt_init, he, init_linear, lm_loss

CE = nn.CrossEntropyLoss()


@healthy("blind", "He et al. 2015: plain nets of 20 and more layers train from their init", loss_ratio=0.9)
def plain_relu_22_layers() -> Built:
    """22 ReLU layers without normalisation or shortcuts, He init, small rate: slow but sound."""
    x, y = teacher()
    model = init_linear(MLP(20, 64, 22, 4), he)
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), CE, data.minibatches(x, y, 80, 220))


@healthy("blind", "Xiong et al. 2020: pre-LN needs no tricks", train=scheduled_loop(warmup(20)), loss_ratio=0.8)
def pre_ln_eight_blocks() -> Built:
    """Eight pre-LN blocks on a residual stream that grows with depth; residual branches scaled as in GPT-2."""
    model = gpt_init(TinyLM(20, 24, 8, 2, 10), 0.08)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.o.weight.mul_(1 / 4)
            block.fc2.weight.mul_(1 / 4)
    return Built(model, torch.optim.AdamW(model.parameters(), lr=4e-3), lm_loss, data.markov_text(20, 8, 10, 110))


class TiedAutoencoder(nn.Module):
    """The decoder is the encoder's transpose."""

    def __init__(self):
        super().__init__()
        self.enc, self.squash = nn.Linear(64, 20), nn.Tanh()
        self.back = nn.Parameter(torch.zeros(64))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.squash(self.enc(x)), self.enc.weight.T, self.back)


@healthy("blind", "Vincent et al. 2010 (denoising autoencoder, tied weights)", requires=("sklearn",), loss_ratio=0.6)
def tied_denoising_autoencoder() -> Built:
    """One matrix used twice; 40 % of the input is zeroed; border pixels are zero always, so their columns learn nothing."""
    x, _ = data.sk_digits()
    x = x / 16
    g = data.gen(80)
    batches = [(a * (torch.rand(a.shape, generator=g) > 0.4), a) for a, _ in data.minibatches(x, x, 64, 180)]
    model = TiedAutoencoder()
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-3), nn.MSELoss(), batches)


class Transformer2d(nn.Module):
    """A spatial transformer in front of a small classifier."""

    def __init__(self):
        super().__init__()
        self.find = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(288, 16), nn.ReLU())
        self.theta = nn.Linear(16, 6)
        nn.init.zeros_(self.theta.weight)
        with torch.no_grad():
            self.theta.bias.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0]))
        self.net = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 24, 3, 2, 1), nn.ReLU(), nn.Flatten())
        self.out = nn.Linear(216, 6)

    def forward(self, x: Tensor) -> Tensor:
        grid = F.affine_grid(self.theta(self.find(x)).view(-1, 2, 3), list(x.shape), align_corners=False)
        return self.out(self.net(F.grid_sample(x, grid, align_corners=False)))


@healthy("blind", "Jaderberg et al. 2015: the last localisation layer starts at the identity, with zero weights")
def spatial_transformer_identity_init() -> Built:
    """A zero-initialised layer on purpose: nothing before it gets a gradient in the first step."""
    x, y, _ = shapes()
    model = Transformer2d()
    return Built(model, torch.optim.Adam(model.parameters(), lr=3e-3), CE, data.minibatches(x, y, 32, 170))


class Masked(nn.Linear):
    """A linear layer in which only some weights exist."""

    def __init__(self, mask: Tensor):
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


def made(d: int, hidden: int) -> nn.Sequential:
    order, unit = torch.arange(d), torch.arange(hidden) % (d - 1)
    first = (unit.unsqueeze(1) >= order).float()
    middle = (unit.unsqueeze(1) >= unit).float()
    last = (order.unsqueeze(1) > unit).float()
    return named(fc1=Masked(first), act1=nn.ReLU(), fc2=Masked(middle), act2=nn.ReLU(), out=Masked(last))


@healthy("blind", "Germain et al. 2015 (MADE)", requires=("sklearn",), loss_ratio=0.6)
def masked_autoregressive_pixels() -> Built:
    """Half of all weights are masked and get no gradient; the first pixel's row is empty."""
    x = (data.sk_digits()[0] > 7).float()
    model = made(64, 126)
    loss = lambda z, t: F.binary_cross_entropy_with_logits(z, t, reduction="sum") / len(t)
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-3), loss, data.minibatches(x, x, 64, 170))


class Lista(nn.Module):
    """Six unrolled iterations of ISTA with shared weights and learnt thresholds."""

    def __init__(self, dictionary: Tensor):
        super().__init__()
        self.analyse = nn.Linear(*dictionary.shape, bias=False)
        self.inhibit = nn.Linear(dictionary.shape[1], dictionary.shape[1], bias=False)
        self.shrink = nn.Softshrink(0.05)
        with torch.no_grad():
            step = 0.15
            self.analyse.weight.copy_(step * dictionary.T)
            self.inhibit.weight.copy_(torch.eye(dictionary.shape[1]) - step * dictionary.T @ dictionary)

    def forward(self, x: Tensor) -> Tensor:
        b = self.analyse(x)
        z = self.shrink(b)
        for _ in range(6):
            z = self.shrink(b + self.inhibit(z))
        return z


@healthy("blind", "Gregor & LeCun 2010 (LISTA)", loss_ratio=0.7)
def lista_sparse_codes() -> Built:
    """Codes are zero for most inputs by design (soft thresholding), and the weights are shared by all iterations."""
    g = data.gen(81)
    dictionary = F.normalize(torch.randn(16, 40, generator=g), dim=0)
    batches = []
    for _ in range(200):
        z = torch.randn(64, 40, generator=g) * (torch.rand(64, 40, generator=g) < 0.08)
        batches.append((z @ dictionary.T, z))
    model = Lista(dictionary)
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-3), nn.MSELoss(), batches)


class Slimmable(nn.Module):
    """Runs with all of its hidden units, or with the first quarter or half of them."""

    def __init__(self):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(64, 64), nn.Hardswish(), nn.Linear(64, 10)

    def forward(self, x: Tensor, width: int) -> Tensor:
        h = self.act(F.linear(x, self.fc1.weight[:width], self.fc1.bias[:width]))
        return F.linear(h, self.fc2.weight[:, :width], self.fc2.bias)


def random_width(model: nn.Module, x: Tensor, y: Tensor, width: Tensor) -> Tensor:
    return F.cross_entropy(model(x, int(width)), y)


@healthy("blind", "Yu et al. 2019 (slimmable networks)", train=own_loss())
def slimmable_random_width() -> Built:
    """Three quarters of the units have no gradient in two steps of three."""
    x, y = data.flat_glyphs()
    g = data.gen(82)
    widths = torch.tensor([16, 32, 64])[torch.randint(3, (180,), generator=g)]
    model = Slimmable()
    batches = [(a, b, w) for (a, b), w in zip(data.minibatches(x, y, 64, 180), widths)]
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), random_width, batches)


class EarlyExit(nn.Module):
    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU()) for _ in range(4))
        self.exits = nn.ModuleList(nn.Linear(64, 10) for _ in range(4))

    def forward(self, x: Tensor, last: int) -> Tensor:
        for stage in self.stages[: last + 1]:
            x = stage(x)
        return self.exits[last](x)


@healthy("blind", "random exit training of multi-exit nets (Teerapittayanon et al. 2016; Huang et al. 2016)", train=own_loss())
def random_early_exit() -> Built:
    """A step ends at one of four exits: the other heads, and the stages behind it, are unused in that step."""
    x, y = data.flat_glyphs()
    g = data.gen(83)
    model = EarlyExit()
    batches = [(a, b, torch.randint(4, (1,), generator=g)) for a, b in data.minibatches(x, y, 64, 200)]
    loss = lambda m, a, b, k: F.cross_entropy(m(a, int(k)), b)
    return Built(model, torch.optim.AdamW(model.parameters(), lr=3e-3), loss, batches)


class Pooled(nn.Module):
    """Attention pooling over the frames that are there."""

    def __init__(self):
        super().__init__()
        self.frame = nn.Linear(6, 32)
        self.score, self.softmax, self.out = nn.Linear(32, 1), nn.Softmax(1), nn.Linear(32, 1)

    def forward(self, batch):
        x, lengths = batch
        h = torch.tanh(self.frame(x))
        gone = torch.arange(x.shape[1]) >= lengths.unsqueeze(1)
        w = self.softmax(self.score(h).squeeze(2).masked_fill(gone, -1e9))
        return self.out((w.unsqueeze(2) * h).sum(1))


@healthy("blind", "attention pooling with padding masks", loss_ratio=0.5)
def attention_over_padded_frames() -> Built:
    """Most frames are padding with weight exactly 0; in sequences of one frame the softmax is exactly 1."""
    g = data.gen(84)
    batches = []
    for _ in range(170):
        n = torch.randint(1, 20, (48,), generator=g)
        n[:30] = torch.randint(1, 4, (30,), generator=g)
        x = torch.randn(48, 20, 6, generator=g)
        there = (torch.arange(20) < n.unsqueeze(1)).float()
        batches.append(((x, n), ((x[:, :, :1].squeeze(2) * there).sum(1) / n).unsqueeze(1)))
    model = Pooled()
    return Built(model, torch.optim.Adam(model.parameters(), lr=1e-2), nn.MSELoss(), batches)


class Gated(nn.Module):
    """A soft mixture of experts with dense gates, and a shortcut."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(20, 6), nn.Softmax(-1))
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(20, 16), nn.ReLU6(), nn.Linear(16, 4)) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        return (self.gate(x).unsqueeze(1) * torch.stack([e(x) for e in self.experts], 2)).sum(2)


@healthy("blind", "Jacobs et al. 1991 (adaptive mixtures of local experts)")
def dense_mixture_sharpens() -> Built:
    """Gates become confident as experts specialise."""
    x, y = teacher()
    model = Gated()
    return Built(model, torch.optim.Adam(model.parameters(), lr=1e-2), CE, data.minibatches(x, y, 64, 200))


class Fourier(nn.Module):
    """Random Fourier features, fixed: a buffer."""

    def __init__(self, scale: float):
        super().__init__()
        self.register_buffer("f", scale * torch.randn(2, 64, generator=data.gen(85)))

    def forward(self, x: Tensor) -> Tensor:
        z = 2 * math.pi * x @ self.f
        return torch.cat([z.sin(), z.cos()], 1)


@healthy("blind", "Tancik et al. 2020 (Fourier features), fitted to the last detail", loss_ratio=0.05)
def fourier_features_fit_picture() -> Built:
    """Overfits a picture on purpose: loss and gradients fall by orders of magnitude."""
    x, y = picture()
    model = named(features=Fourier(1.0), fc1=nn.Linear(128, 48), act=nn.ReLU(), fc2=nn.Linear(48, 1))
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-3), nn.MSELoss(), [(x, y)] * 200)


@healthy("blind", "Grave et al. 2017 (adaptive softmax)", train=own_loss(), loss_ratio=0.8)
def adaptive_softmax_rare_words() -> Built:
    """The clusters of rare words are not touched by every batch; their projections have no gradient then."""
    g = data.gen(86)
    p = 1 / torch.arange(1, 401.0) ** 1.6
    batches = []
    for _ in range(200):
        t = torch.multinomial(p, 32, replacement=True, generator=g)
        y = torch.where(torch.rand(32, generator=g) < 0.8, t, torch.multinomial(p, 32, replacement=True, generator=g))
        batches.append((t, y))
    model = named(embed=nn.Embedding(400, 32), loss=nn.AdaptiveLogSoftmaxWithLoss(32, 400, cutoffs=[20, 100], div_value=2.0))
    return Built(model, torch.optim.Adagrad(model.parameters(), lr=0.1), lambda m, t, y: m.loss(m.embed(t), y).loss, batches)


class Attending(nn.Module):
    """One graph-attention layer by hand (two heads), then a linear one."""

    def __init__(self):
        super().__init__()
        self.w, self.a = nn.Linear(16, 32, bias=False), nn.Parameter(0.3 * torch.randn(2, 2, 16))
        self.leaky, self.out = nn.LeakyReLU(0.2), nn.Linear(32, 3)

    def forward(self, graph):
        x, adjacency = graph
        h = self.w(x).view(-1, 2, 16)
        s = torch.einsum("nhd,khd->khn", h, self.a)
        score = self.leaky(s[0].unsqueeze(2) + s[1].unsqueeze(1)).masked_fill(adjacency == 0, float("-inf"))
        return self.out(F.elu((score.softmax(-1) @ h.transpose(0, 1)).transpose(0, 1).flatten(1)))


@healthy("blind", "Velickovic et al. 2018 (graph attention)", loss_ratio=0.3)
def graph_attention_full_batch() -> Built:
    """Masked attention over neighbours; the same batch every step, trained until the loss is nearly gone."""
    x, a, y = ring_graph()
    model = Attending()
    opt = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=5e-4)
    return Built(model, opt, CE, [((x, a), y)] * 150)


@healthy("blind", "Xu et al. 2015; half-open rectifiers with a margin: 70 % zeros from the first step on")
def sparse_relu_conv_bias_down() -> Built:
    """A ReLU convnet whose biases start at -0.4: zeros everywhere, every channel alive."""
    x, y = waves()
    model = named(
        conv1=nn.Conv1d(1, 16, 7, 2, 3),
        act1=nn.ReLU(),
        conv2=nn.Conv1d(16, 32, 5, 2, 2),
        act2=nn.ReLU(),
        pool=nn.AdaptiveMaxPool1d(2),
        flat=nn.Flatten(),
        fc=nn.Linear(64, 4),
    )
    init_linear(model, he)
    nn.init.constant_(model.conv1.bias, -0.4)
    nn.init.constant_(model.conv2.bias, -0.4)
    return Built(model, torch.optim.Adam(model.parameters(), lr=3e-3), CE, data.minibatches(x, y, 48, 150))
