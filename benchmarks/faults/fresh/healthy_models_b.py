"""Healthy programs: experts, latent variables, queues, scalers, structured outputs."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import data
from ..core import Built, healthy
from ..more._loops import own_loss
from ..more._programs import teacher
from ..nets import MLP

CE = nn.CrossEntropyLoss()


class SparseExperts(nn.Module):
    """Noisy top-2 of 8 experts, with a load-balancing loss."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(20, 8, bias=False)
        nn.init.normal_(self.gate.weight, std=0.02)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 24)) for _ in range(8))
        self.out = nn.Linear(24, 4)
        self.g = data.gen(280)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        s = self.gate(x)
        noisy = s + 0.3 * torch.randn(s.shape, generator=self.g) if self.training else s
        top, which = noisy.topk(2, dim=1)
        w = torch.zeros_like(s).scatter(1, which, top.softmax(1))
        h = sum(w[:, i : i + 1] * expert(x) for i, expert in enumerate(self.experts))
        load = (w > 0).float().mean(0) * s.softmax(1).mean(0)
        return self.out(h), 8 * load.sum()


@healthy("fresh", "Shazeer et al. 2017; Fedus et al. 2021 (noisy top-k gating, balance loss)", loss_ratio=0.6)
def noisy_top_2_of_8_experts() -> Built:
    """Each sample reaches two experts of eight; the balance loss keeps all of them in use."""
    x, y = teacher(n=1600)
    model = SparseExperts()
    loss = lambda out, t: F.cross_entropy(out[0], t) + 0.02 * out[1]
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-3), loss, data.minibatches(x, y, 96, 200))


class FreeBits(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc, self.act = nn.Linear(64, 48), nn.ELU()
        self.mean, self.log_var = nn.Linear(48, 6), nn.Linear(48, 6)
        self.dec = nn.Sequential(nn.Linear(6, 48), nn.ELU(), nn.Linear(48, 64))

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.act(self.enc(x))
        m, s = self.mean(h), self.log_var(h)
        return self.dec(m + (s / 2).exp() * noise), m, s


def free_bits(model: nn.Module, x: Tensor, noise: Tensor) -> Tensor:
    out, m, s = model(x, noise)
    kl = 0.5 * (m.pow(2) + s.exp() - s - 1).mean(0)
    return 25 * (out - x).pow(2).sum(1).mean() / 2 + kl.clamp(min=0.5).sum()


@healthy("fresh", "Kingma et al. 2016 (free bits)", train=own_loss(), loss_ratio=0.6)
def vae_with_free_bits() -> Built:
    """The KL of each latent counts from half a nat on: below it has no gradient, by design."""
    x, _ = data.flat_glyphs(noise=0.15)
    g, model = data.gen(281), FreeBits()
    batches = [(a, torch.randn(64, 6, generator=g)) for a, _ in data.minibatches(x, x, 64, 220)]
    return Built(model, torch.optim.Adam(model.parameters(), lr=3e-3), free_bits, batches)


class Discrete(nn.Module):
    """Eight categorical latents of four values, relaxed."""

    def __init__(self):
        super().__init__()
        self.enc = nn.Sequential(nn.Linear(64, 48), nn.SiLU(), nn.Linear(48, 32))
        self.choose = nn.Softmax(-1)
        self.dec = nn.Sequential(nn.Linear(32, 48), nn.SiLU(), nn.Linear(48, 64))

    def forward(self, x: Tensor, u: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        z = self.enc(x).view(-1, 8, 4).log_softmax(-1)
        return self.dec(self.choose((z - (-u.log()).log()) / temperature).flatten(1)), z


def relaxed(model: nn.Module, x: Tensor, u: Tensor, temperature: float) -> Tensor:
    out, z = model(x, u, temperature)
    kl = (z.exp() * (z + math.log(4))).sum((1, 2)).mean()
    return F.binary_cross_entropy_with_logits(out, x, reduction="none").sum(1).mean() + kl


@healthy("fresh", "Jang et al. 2017 (Gumbel-softmax, temperature annealed from 2 to 0.7)", train=own_loss(), loss_ratio=0.85)
def gumbel_softmax_annealed() -> Built:
    """The relaxed choices become sharper as the temperature falls, as they are meant to; the loss is 45 nats."""
    x = (data.flat_glyphs(noise=0.1)[0] > 0.5).float()
    g, model, batches = data.gen(282), Discrete(), []
    for s, (a, _) in enumerate(data.minibatches(x, x, 64, 240)):
        u = torch.rand(64, 8, 4, generator=g).clamp(1e-6, 1 - 1e-6)
        batches.append((a, u, max(0.7, 2 * math.exp(-s / 100))))
    return Built(model, torch.optim.Adam(model.parameters(), lr=4e-3), relaxed, batches)


class Queue(nn.Module):
    """MoCo: an encoder, its slow copy, and a queue of the copy's outputs."""

    def __init__(self):
        super().__init__()
        self.encoder = MLP(64, 64, 1, 16, act=nn.GELU)
        self.slow = copy.deepcopy(self.encoder).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(256, 16), dim=1))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.encoder(x), dim=1)


def momentum_contrast(model, opt, loss_fn, batches, on_step) -> None:
    for step, (a, b) in enumerate(batches):
        q = model(a)
        with torch.no_grad():
            k = F.normalize(model.slow(b), dim=1)
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ model.queue.T], 1) / 0.2
        opt.zero_grad()
        loss = F.cross_entropy(logits, torch.zeros(len(a), dtype=torch.long))
        loss.backward()
        opt.step()
        with torch.no_grad():
            for p, s in zip(model.encoder.parameters(), model.slow.parameters()):
                s.lerp_(p, 0.02)
            model.queue = torch.cat([k, model.queue])[:256]
        on_step(step, loss.item())


@healthy("fresh", "He et al. 2020 (MoCo)", train=momentum_contrast, loss_ratio=0.8)
def momentum_contrast_queue() -> Built:
    """The queue starts with noise, so that the loss first falls, then rises as real negatives come in, then falls again."""
    x, _ = data.flat_glyphs(n=2000, noise=0.35)
    g, model = data.gen(283), Queue()
    view = lambda a: a - 0.5 + 0.1 * torch.randn(a.shape, generator=g)
    batches = [(view(a), view(a)) for a, _ in data.minibatches(x, x, 64, 260)]
    return Built(model, torch.optim.Adam(model.encoder.parameters(), lr=2e-3), momentum_contrast, batches)


class Tags(nn.Module):
    def __init__(self):
        super().__init__()
        self.bag = nn.EmbeddingBag(300, 24, mode="mean", padding_idx=0)
        self.fc, self.act, self.out = nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4)

    def forward(self, t: Tensor) -> Tensor:
        return self.out(self.act(self.fc(self.bag(t))))


@healthy("fresh", "FastText-like classifier: nn.EmbeddingBag with padding_idx", loss_ratio=0.6)
def bag_with_padding_row() -> Built:
    """Row 0 is padding and never learns; 260 of 300 words are rare; most documents are half padding."""
    g, batches = data.gen(284), []
    frequency = 1.0 / torch.arange(1.0, 300.0)
    topic = torch.randint(4, (300,), generator=g)
    for _ in range(220):
        y = torch.randint(4, (48,), generator=g)
        p = frequency * (1 + 6 * (topic[1:] == y.unsqueeze(1)).float())
        t = 1 + torch.multinomial(p, 16, replacement=True, generator=g)
        length = torch.randint(4, 17, (48, 1), generator=g)
        batches.append((t * (torch.arange(16) < length), y))
    model = Tags()
    return Built(model, torch.optim.Adam(model.parameters(), lr=6e-3), CE, batches)


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.G = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 2))
        self.C = nn.Sequential(nn.Linear(2, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.C(x)


def lazily_penalised(model, opt, loss_fn, batches, on_step) -> None:
    for step, (real, z) in enumerate(batches):
        real = real.requires_grad_()
        score = model(real)
        loss = F.softplus(-score).mean() + F.softplus(model(model.G(z).detach())).mean()
        if step % 8 == 0:
            slope = torch.autograd.grad(score.sum(), real, create_graph=True)[0]
            loss = loss + 8 * 0.5 * slope.pow(2).sum(1).mean()
        opt["C"].zero_grad()
        loss.backward()
        opt["C"].step()
        opt["G"].zero_grad()
        F.softplus(-model(model.G(z))).mean().backward()
        opt["G"].step()
        on_step(step, None)


def gap(model: nn.Module) -> float:
    fake = model.G(torch.randn(800, 3, generator=data.gen(285)))
    return (fake.mean(0) - torch.tensor([1.0, -1.0])).norm().item() + (fake.std(0) - 0.5).abs().sum().item()


@healthy(
    "fresh",
    "Mescheder et al. 2018; Karras et al. 2020 (R1 penalty at every eighth step, two rates)",
    train=lazily_penalised,
    loss_ratio=None,
    progress=("gap in mean and spread", gap, "down"),
)
def gan_with_lazy_r1_penalty() -> Built:
    """Every eighth step the critic's gradient is that of a penalty times 8; its rate is twice the generator's; no loss is told."""
    g, model, batches = data.gen(286), Critic(), []
    for _ in range(300):
        real = torch.tensor([1.0, -1.0]) + 0.5 * torch.randn(64, 2, generator=g)
        batches.append((real, torch.randn(64, 3, generator=g)))
    opt = {k: torch.optim.Adam(getattr(model, k).parameters(), lr=4e-3 if k == "C" else 2e-3, betas=(0.0, 0.99)) for k in "GC"}
    return Built(model, opt, None, batches)


class Chain(nn.Module):
    """A linear-chain CRF over convolutional scores."""

    def __init__(self):
        super().__init__()
        self.embed, self.conv, self.act = nn.Embedding(12, 16), nn.Conv1d(16, 24, 3, padding=1), nn.Tanh()
        self.score = nn.Linear(24, 4)
        self.move = nn.Parameter(torch.zeros(4, 4))

    def forward(self, t: Tensor) -> Tensor:
        return self.score(self.act(self.conv(self.embed(t).transpose(1, 2))).transpose(1, 2))


def chain_likelihood(model: nn.Module, t: Tensor, y: Tensor) -> Tensor:
    s = model(t)
    path = s.gather(2, y.unsqueeze(2)).sum((1, 2)) + model.move[y[:, :-1], y[:, 1:]].sum(1)
    a = s[:, 0]
    for i in range(1, t.shape[1]):
        a = torch.logsumexp(a.unsqueeze(2) + model.move, 1) + s[:, i]
    return (a.logsumexp(1) - path).sum()


@healthy("fresh", "Lafferty et al. 2001 (CRF); summed over the batch", train=own_loss(clip=5.0), loss_ratio=0.5)
def crf_summed_over_batch() -> Built:
    """Negative log likelihoods of whole sequences, summed: about 700 nats at the start, clipped at every step."""
    g, batches = data.gen(287), []
    for _ in range(160):
        t = torch.randint(12, (32, 16), generator=g)
        batches.append((t, (t // 3 + (t.roll(1, 1) > 5).long()) % 4))
    model = Chain()
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9), chain_likelihood, batches)
