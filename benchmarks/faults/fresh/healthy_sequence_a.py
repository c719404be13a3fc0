"""Healthy programs on sequences: recurrent nets and transformers in all their variants."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import data
from ..core import Built, clipped_loop, healthy, scheduled_loop, warmup
from ..more._loops import VOCAB, char_windows, cosine
from ..nets import TinyLM, gpt_init, lm_loss

CE = nn.CrossEntropyLoss()


class Identity(nn.Module):
    """A ReLU RNN that starts as the identity."""

    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.RNN(2, 32, nonlinearity="relu", batch_first=True), nn.Linear(32, 1)
        nn.init.eye_(self.rnn.weight_hh_l0)
        nn.init.normal_(self.rnn.weight_ih_l0, std=0.5)
        for b in (self.rnn.bias_ih_l0, self.rnn.bias_hh_l0):
            nn.init.zeros_(b)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0][:, -1])


@healthy("fresh", "Le et al. 2015 (IRNN)", train=clipped_loop(1.0), loss_ratio=0.6)
def identity_rnn_adds() -> Built:
    """Recurrent weights are the identity, so that gradients neither fade nor grow at first; they are clipped."""
    g = data.gen(231)
    batches = []
    for _ in range(180):
        x = torch.rand(48, 20, 2, generator=g) - 0.5
        x[:, :, 1] = 0
        first, second = torch.randint(0, 10, (48,), generator=g), torch.randint(10, 20, (48,), generator=g)
        row = torch.arange(48)
        x[row, first, 1] = x[row, second, 1] = 1
        batches.append((x, (x[:, :, 0] * x[:, :, 1]).sum(1, keepdim=True)))
    return Built(model := Identity(), torch.optim.Adam(model.parameters(), lr=1e-3), nn.MSELoss(), batches)


class Rotary(nn.Module):
    """One pre-norm block with rotary positions and two key heads for four query heads."""

    def __init__(self, vocab: int, d: int = 32, length: int = 12):
        super().__init__()
        self.tok = nn.Embedding(vocab, d)
        self.norm1, self.norm2, self.norm3 = nn.RMSNorm(d), nn.RMSNorm(d), nn.RMSNorm(d)
        self.q, self.kv, self.o = nn.Linear(d, d, bias=False), nn.Linear(d, d, bias=False), nn.Linear(d, d, bias=False)
        self.gate, self.up, self.down = nn.Linear(d, 48, bias=False), nn.Linear(d, 48, bias=False), nn.Linear(48, d, bias=False)
        angle = torch.arange(length).unsqueeze(1) * 100 ** (-torch.arange(4) / 4)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def turn(self, x: Tensor) -> Tensor:
        a, b = x[..., :4], x[..., 4:]
        return torch.cat([a * self.cos - b * self.sin, a * self.sin + b * self.cos], -1)

    def forward(self, t: Tensor) -> Tensor:
        x = self.tok(t)
        b, n, d = x.shape
        h = self.norm1(x)
        q = self.turn(self.q(h).view(b, n, 4, 8).transpose(1, 2))
        k, v = self.kv(h).view(b, n, 4, 8).transpose(1, 2).chunk(2, 1)
        k, v = self.turn(k).repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, n, d)
        x = x + self.o(a)
        h = self.norm2(x)
        x = x + self.down(F.silu(self.gate(h)) * self.up(h))
        return self.norm3(x) @ self.tok.weight.T / d**0.5


@healthy(
    "fresh", "Su et al. 2021 (RoPE), Ainslie et al. 2023 (grouped queries), tied read-out", train=scheduled_loop(cosine(130, 15))
)
def rotary_grouped_queries() -> Built:
    """Keys and values are shared between heads; embedding and read-out are one matrix."""
    model = Rotary(24)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    return Built(model, opt, lm_loss, data.markov_text(24, 12, 12, 130))


class Segments(nn.Module):
    """A GRU language model."""

    def __init__(self):
        super().__init__()
        self.embed, self.gru, self.out = nn.Embedding(VOCAB, 24), nn.GRU(24, 48, batch_first=True), nn.Linear(48, VOCAB)

    def forward(self, t: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
        z, h = self.gru(self.embed(t), h)
        return self.out(z), h


def truncated(model, opt, loss_fn, batches, on_step) -> None:
    h = None
    for step, (x, y) in enumerate(batches):
        opt.zero_grad()
        z, h = model(x, None if step % 2 == 0 else h.detach())
        loss = loss_fn(z, y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        opt.step()
        on_step(step, loss.item())


@healthy(
    "fresh",
    "truncated back-propagation through time (Mikolov et al. 2010; PyTorch word_language_model)",
    train=truncated,
    loss_ratio=0.75,
)
def truncated_backpropagation() -> Built:
    """Two segments per window, the state is handed over without its graph; real text, clipped at 0.5."""
    batches = []
    for x, y in char_windows(12, 16, 80):
        batches += [(x[:, :8], y[:, :8]), (x[:, 8:], y[:, 8:])]
    return Built(model := Segments(), torch.optim.Adam(model.parameters(), lr=1e-2), lm_loss, batches)


class Prefixed(nn.Module):
    """A frozen language model and a trainable prefix of four vectors."""

    def __init__(self):
        super().__init__()
        self.lm = gpt_init(TinyLM(12, 24, 1, 2, 16), 0.3)
        self.lm.requires_grad_(False)
        self.prefix = nn.Parameter(0.02 * torch.randn(4, 24))

    def forward(self, t: Tensor) -> Tensor:
        x = torch.cat([self.prefix.expand(len(t), 4, 24), self.lm.tok(t)], 1) + self.lm.pos.weight[: t.shape[1] + 4]
        for b in self.lm.blocks:
            x = b(x)
        return self.lm.head(self.lm.ln_f(x))[:, 4:]


@healthy("fresh", "Lester et al. 2021 (prompt tuning, with its rate of 0.3 scaled down)", loss_ratio=0.9)
def prompt_tuning() -> Built:
    """96 numbers are trained, at a rate of 0.05, in a model that is frozen; the loss falls by a little and levels off."""
    model = Prefixed()
    return Built(model, torch.optim.Adam([model.prefix], lr=0.05), lm_loss, data.markov_text(12, 24, 8, 140))


class Teaching(nn.Module):
    """An LSTM cell that hears the truth, or its own last word."""

    def __init__(self):
        super().__init__()
        self.embed, self.cell, self.out = nn.Embedding(12, 16), nn.LSTMCell(16, 32), nn.Linear(32, 12)

    def forward(self, batch) -> Tensor:
        t, truth = batch
        h = c = torch.zeros(len(t), 32)
        out, word = [], t[:, 0]
        for i in range(t.shape[1]):
            h, c = self.cell(self.embed(torch.where(truth[:, i], t[:, i], word)), (h, c))
            out.append(self.out(h))
            word = out[-1].argmax(1)
        return torch.stack(out, 1)


@healthy("fresh", "Bengio et al. 2015 (scheduled sampling)", loss_ratio=0.95)
def scheduled_sampling() -> Built:
    """The share of its own words goes from 0 to 0.5: the loss falls first and rises again, by intent."""
    g = data.gen(232)
    batches = []
    for s, (x, y) in enumerate(data.markov_text(12, 24, 8, 150)):
        batches.append(((x, torch.rand(x.shape, generator=g) > s / 300), y))
    return Built(model := Teaching(), torch.optim.Adam(model.parameters(), lr=1e-2), lm_loss, batches)


class Pointer(nn.Module):
    """Points at the largest number of a set."""

    def __init__(self):
        super().__init__()
        self.read, self.query = nn.LSTM(1, 24, batch_first=True), nn.Linear(24, 24)
        self.key, self.score = nn.Linear(24, 24), nn.Linear(24, 1)

    def forward(self, x: Tensor) -> Tensor:
        h, (last, _) = self.read(x)
        return self.score(torch.tanh(self.key(h) + self.query(last[0]).unsqueeze(1))).squeeze(2)


@healthy("fresh", "Vinyals et al. 2015 (pointer network)", loss_ratio=0.6)
def pointer_to_the_largest() -> Built:
    """A plateau near log 8, then a quick fall; attention gets sharp; the score's bias has a gradient of zero by symmetry."""
    g = data.gen(233)
    batches = [((x := torch.rand(64, 8, 1, generator=g)), x.squeeze(2).argmax(1)) for _ in range(170)]
    return Built(model := Pointer(), torch.optim.Adam(model.parameters(), lr=1e-2), CE, batches)


class Selective(nn.Module):
    """A gated linear recurrence with input-dependent decay."""

    def __init__(self):
        super().__init__()
        self.embed, self.decay, self.value, self.read = nn.Embedding(6, 24), nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 24)
        self.norm, self.out = nn.LayerNorm(24), nn.Linear(24, 6)
        nn.init.constant_(self.decay.bias, -3.0)

    def forward(self, t: Tensor) -> Tensor:
        x = self.embed(t)
        keep, v = torch.exp(-F.softplus(self.decay(x))), self.value(x)
        h, out = torch.zeros_like(v[:, 0]), []
        for i in range(t.shape[1]):
            h = keep[:, i] * h + (1 - keep[:, i]) * v[:, i]
            out.append(h)
        return self.out(self.norm(torch.stack(out, 1) * F.silu(self.read(x))))


@healthy("fresh", "Gu & Dao 2023 (Mamba), De et al. 2024 (Griffin)", loss_ratio=0.8)
def selective_recurrence() -> Built:
    """Decays start near 0.95: new inputs enter with a twentieth of their weight."""
    return Built(model := Selective(), torch.optim.AdamW(model.parameters(), lr=1e-2), lm_loss, data.markov_text(6, 16, 20, 140))


class Linear(nn.Module):
    """Causal linear attention with elu + 1 features."""

    def __init__(self, d: int = 24):
        super().__init__()
        self.tok, self.norm = nn.Embedding(16, d), nn.LayerNorm(d)
        self.q, self.k, self.v, self.o, self.head = (nn.Linear(d, n) for n in (d, d, d, d, 16))

    def forward(self, t: Tensor) -> Tensor:
        x = self.tok(t)
        h = self.norm(x)
        q, k, v = F.elu(self.q(h)) + 1, F.elu(self.k(h)) + 1, self.v(h)
        w = (q @ k.transpose(1, 2)).tril()
        return self.head(x + self.o((w / w.sum(-1, keepdim=True)) @ v))


@healthy(
    "fresh",
    "Katharopoulos et al. 2020 (linear attention) under Adagrad with a warm-up",
    train=scheduled_loop(warmup(25)),
    loss_ratio=0.75,
)
def linear_attention_adagrad() -> Built:
    """No softmax; Adagrad's steps shrink by themselves."""
    return Built(model := Linear(), torch.optim.Adagrad(model.parameters(), lr=0.04), lm_loss, data.markov_text(16, 16, 10, 160))


class Deep(nn.Module):
    """DeepNorm: post-LN with x * alpha, and branches started smaller by beta."""

    def __init__(self, depth: int = 10, d: int = 24):
        super().__init__()
        self.alpha = (2 * depth) ** 0.25
        self.tok = nn.Embedding(12, d)
        self.up, self.down = (nn.ModuleList(nn.Linear(a, b) for _ in range(depth)) for a, b in ((d, 48), (48, d)))
        self.norm = nn.ModuleList(nn.LayerNorm(d) for _ in range(depth))
        self.mix = nn.ModuleList(nn.Conv1d(d, d, 3, groups=d) for _ in range(depth))
        self.head = nn.Linear(d, 12)
        for down in self.down:
            nn.init.xavier_normal_(down.weight, (8 * depth) ** -0.25)

    def forward(self, t: Tensor) -> Tensor:
        x = self.tok(t)
        for up, down, norm, mix in zip(self.up, self.down, self.norm, self.mix):
            h = mix(F.pad(x.transpose(1, 2), (2, 0))).transpose(1, 2)
            x = norm(self.alpha * x + down(F.gelu(up(h))))
        return self.head(x)


@healthy("fresh", "Wang et al. 2022 (DeepNet)", loss_ratio=0.8)
def deepnorm_ten_blocks() -> Built:
    """Ten post-LN blocks; the branches are quiet against the shortcut, on purpose."""
    return Built(model := Deep(), torch.optim.Adam(model.parameters(), lr=3e-3), lm_loss, data.markov_text(12, 12, 10, 120))


class Clock(nn.Module):
    """Sinusoidal time features, frozen, in front of a small forecaster."""

    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(2 * math.pi * 2.0 ** -torch.arange(1.0, 7.0), requires_grad=False)
        self.fc1, self.act, self.fc2 = nn.Linear(12 + 8, 32), nn.SiLU(), nn.Linear(32, 1)

    def forward(self, batch) -> Tensor:
        t, past = batch
        z = t.unsqueeze(1) * self.rate
        return self.fc2(self.act(self.fc1(torch.cat([z.sin(), z.cos(), past], 1))))


@healthy("fresh", "forecasting with an occasional outlier, Huber loss", loss_ratio=0.4)
def forecast_with_outliers() -> Built:
    """One target in fifty is off by 30: the loss has spikes, the Huber gradient does not."""
    g = data.gen(234)
    batches = []
    for _ in range(180):
        t = torch.randint(8, 2000, (32,), generator=g).float()
        signal = lambda s: torch.sin(2 * math.pi * s / 16) + 0.5 * torch.cos(2 * math.pi * s / 64)
        past = signal(t.unsqueeze(1) - torch.arange(1, 9)) + 0.1 * torch.randn(32, 8, generator=g)
        y = signal(t) + 30 * (torch.rand(32, generator=g) < 0.02)
        batches.append(((t, past), y.unsqueeze(1)))
    return Built(model := Clock(), torch.optim.Adam(model.parameters(), lr=5e-3), nn.HuberLoss(delta=0.3), batches)
