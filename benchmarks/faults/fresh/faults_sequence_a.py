"""Faulty programs: recurrent nets, attention, positions, and axes that were mixed up."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import data
from ..core import Built, default_loop, faulty, need
from ..nets import Attention, Block, TinyLM, gpt_init, lm_loss

CE = nn.CrossEntropyLoss()


class Stack(nn.Module):
    """Self-attention layers, with or without the shortcuts around them; the answer is read from the last token."""

    def __init__(self, vocab: int, length: int, d: int, depth: int, shortcut: bool):
        super().__init__()
        self.tok, self.pos = nn.Embedding(vocab, d), nn.Embedding(length, d)
        self.attn = nn.ModuleList(Attention(d, 2, causal=False) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(d) if shortcut else nn.Identity() for _ in range(depth))
        self.head, self.shortcut = nn.Linear(d, 2), shortcut

    def forward(self, t: Tensor) -> Tensor:
        x = self.tok(t) + self.pos.weight
        for norm, attn in zip(self.norms, self.attn):
            x = norm(x + attn(x)) if self.shortcut else attn(x)
        return self.head(x[:, -1])


@faulty(
    "fresh",
    "vanishing_gradient",
    "attention without shortcuts loses rank doubly exponentially with depth (Dong et al. 2021)",
    must=[need("vanishing_gradient|bad_scale|loss_stagnant", "*", by=110)],
    may="vanishing_gradient bad_scale loss_stagnant update_ratio not_updated",
)
def attention_without_shortcuts(fixed: bool = False) -> Built:
    """Six layers of averaging: all tokens become one, and queries and keys get gradients of 1e-10."""
    model = Stack(8, 8, 24, 6, fixed)
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9), CE, data.recall_last(8, 32, 8, 130))


class Cell(nn.Module):
    """An LSTM cell whose gates are modules."""

    def __init__(self, d_in: int, d: int, forget: float):
        super().__init__()
        self.i, self.f, self.o, self.g = (nn.Linear(d_in + d, d) for _ in range(4))
        self.i_gate, self.f_gate, self.o_gate, self.squash = nn.Sigmoid(), nn.Sigmoid(), nn.Sigmoid(), nn.Tanh()
        nn.init.constant_(self.f.bias, forget)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        z = torch.cat([x, h], 1)
        c = self.f_gate(self.f(z)) * c + self.i_gate(self.i(z)) * self.squash(self.g(z))
        return self.o_gate(self.o(z)) * torch.tanh(c), c


class Recurrent(nn.Module):
    def __init__(self, d_in: int, d: int, d_out: int, forget: float = 1.0, embed: int = 0):
        super().__init__()
        self.embed = nn.Embedding(embed, d_in) if embed else nn.Identity()
        self.cell, self.out, self.d = Cell(d_in, d, forget), nn.Linear(d, d_out), d

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        h = c = x.new_zeros(len(x), self.d)
        for step in x.unbind(1):
            h, c = self.cell(step, (h, c))
        return self.out(h)


@faulty(
    "fresh",
    "vanishing_gradient",
    "forget bias of the wrong sign (Gers et al. 2000; Jozefowicz et al. 2015 recommend +1)",
    must=[need("vanishing_gradient|loss_stagnant|saturated", "*", by=140)],
    may="vanishing_gradient loss_stagnant saturated bad_scale zero_gradient dead_units",
    tags=frozenset({"temporal"}),
)
def forget_gate_shut(fixed: bool = False) -> Built:
    """Forget biases of -6: the cell keeps 1/400 of its state, and the first of fourteen tokens is gone."""
    model = Recurrent(16, 24, 4, forget=2.0 if fixed else -6.0, embed=4)
    return Built(model, torch.optim.Adam(model.parameters(), lr=1.5e-2), CE, data.recall_first(4, 32, 8 if fixed else 14, 150))


class StateSpace(nn.Module):
    """h <- a h + B x with a diagonal a, unrolled."""

    def __init__(self, sign: float):
        super().__init__()
        self.inp, self.out = nn.Linear(1, 24), nn.Linear(24, 1)
        self.log_rate = nn.Parameter(torch.linspace(-3.0, -0.7, 24))
        self.sign = sign

    def forward(self, x: Tensor) -> Tensor:
        keep = torch.exp(self.sign * self.log_rate.exp())
        u = self.inp(x)
        h = torch.zeros_like(u[:, 0])
        for t in range(x.shape[1]):
            h = keep * h + u[:, t]
        return self.out(h)


@faulty(
    "fresh",
    "exploding_gradient",
    "a = exp(+rate dt) instead of exp(-rate dt): poles right of the axis (Gu et al. 2022, S4D sec. 3.2)",
    must=[need("exploding_gradient|bad_scale|loss_unstable|update_ratio", "*", by=20)],
    may="exploding_gradient bad_scale loss_unstable update_ratio loss_stagnant non_finite vanishing_gradient",
    tags=frozenset({"temporal"}),
)
def state_space_sign_lost(fixed: bool = False) -> Built:
    """States grow up to exp(0.5 * 40) = 5e8 over the sequence."""
    g = data.gen(211)
    weight = torch.exp(-0.2 * torch.arange(39, -1, -1.0))
    batches = []
    for _ in range(140):
        x = torch.randn(32, 40, 1, generator=g)
        batches.append((x, (x.squeeze(2) * weight).sum(1, keepdim=True)))
    model = StateSpace(-1.0 if fixed else 1.0)
    return Built(model, torch.optim.Adam(model.parameters(), lr=1e-2), nn.MSELoss(), batches)


class Padded(nn.Module):
    """One attention layer over the tokens that are there."""

    def __init__(self):
        super().__init__()
        self.tok = nn.Embedding(12, 24, padding_idx=0)
        self.q, self.k, self.v = (nn.Linear(24, 24) for _ in range(3))
        self.softmax, self.norm, self.head = nn.Softmax(-1), nn.LayerNorm(24), nn.Linear(24, 2)

    def forward(self, t: Tensor) -> Tensor:
        x = self.tok(t)
        score = self.q(x) @ self.k(x).transpose(1, 2) / 24**0.5
        score = score.masked_fill((t == 0).unsqueeze(1), float("-inf"))
        return self.head(self.norm(x + self.softmax(score) @ self.v(x)).mean(1))


@faulty(
    "fresh",
    "non_finite",
    "softmax over a row that is masked entirely (pytorch#24816, nn.MultiheadAttention returns NaN)",
    must=[need("non_finite", "*", by=30)],
    may="zero_gradient loss_stagnant not_updated loss_unstable update_ratio exploding_gradient dead_units",
    onset=28,
)
def sentence_of_padding_only(fixed: bool = False) -> Built:
    """In step 28 one sentence is empty: all keys are -inf."""
    g = data.gen(212)
    batches = []
    for s in range(120):
        t = torch.randint(1, 12, (32, 9), generator=g)
        y = ((t < 4).sum(1) > 2).long()
        t[torch.arange(9) >= torch.randint(5, 10, (32, 1), generator=g)] = 0
        if s == 28 and not fixed:
            t[5] = 0
        batches.append((t, y))
    model = Padded()
    return Built(model, torch.optim.AdamW(model.parameters(), lr=5e-3), CE, batches)


@faulty(
    "fresh",
    "saturated",
    "an LSTM on share prices as they are (forum staple: 'LSTM predicts a constant')",
    must=[need("saturated|bad_scale", "cell.* cell embed input", by=15)],
    may="saturated bad_scale vanishing_gradient zero_gradient dead_units loss_stagnant update_ratio not_updated",
)
def lstm_on_raw_prices(fixed: bool = False) -> Built:
    """Prices around 3000 drive all gates to 0 or 1; is the last price above the mean?"""
    g = data.gen(213)
    batches = []
    for _ in range(130):
        x = 3000 + (60 * torch.randn(32, 12, 1, generator=g)).cumsum(1)
        y = (x[:, -1, 0] > x[:, :, 0].mean(1)).long()
        if fixed:
            x = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)
        batches.append((x, y))
    model = Recurrent(1, 24, 2)
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-3), CE, batches)


class TimeFirst(nn.Module):
    """A GRU that wants [time, batch, features]."""

    def __init__(self, view: bool):
        super().__init__()
        self.embed, self.gru, self.out = nn.Embedding(10, 16), nn.GRU(16, 32), nn.Linear(32, 2)
        self.view = view

    def forward(self, t: Tensor) -> Tensor:
        x = self.embed(t)
        x = x.view(t.shape[1], t.shape[0], -1) if self.view else x.transpose(0, 1)
        return self.out(self.gru(x)[0][-1])


@faulty(
    "fresh",
    "loss_stagnant",
    "view() where transpose() was meant: samples mix along the batch axis (Karpathy 2018, 'most common neural net mistakes')",
    must=[need("loss_stagnant", "*", by=165)],
    may="loss_stagnant loss_unstable",
    tags=frozenset({"data"}),
)
def view_for_transpose(fixed: bool = False) -> Built:
    """Tokens of other samples end up in each row: the answer cannot be known."""
    model = TimeFirst(not fixed)
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-3), CE, data.recall_last(10, 48, 9, 170))


class Positioned(nn.Module):
    def __init__(self, scale: float):
        super().__init__()
        self.tok, self.attn = nn.Embedding(10, 24), Attention(24, 2, causal=False)
        self.fc, self.act, self.head = nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 2)
        self.scale = scale

    def forward(self, t: Tensor) -> Tensor:
        x = self.tok(t) + self.scale * torch.arange(t.shape[1]).view(1, -1, 1)
        x = x + self.attn(x)
        return self.head(self.act(self.fc(x)).mean(1))


@faulty(
    "fresh",
    "bad_scale",
    "the position's index itself added to the embedding (Kazemnejad 2019, 'Transformer architecture: the positional encoding')",
    must=[need("bad_scale|saturated|exploding_gradient|loss_unstable|update_ratio", "*", by=25)],
    may="bad_scale saturated exploding_gradient loss_unstable update_ratio loss_stagnant vanishing_gradient zero_gradient dead_units",
)
def raw_position_added(fixed: bool = False) -> Built:
    """Positions 0..47 against embeddings of size 1: scores of hundreds, all attention goes to one end."""
    g = data.gen(214)
    batches = []
    for _ in range(120):
        t = torch.randint(10, (24, 48), generator=g)
        batches.append((t, ((t < 3).sum(1) > 14).long()))
    model = Positioned(1 / 48 if fixed else 1.0)
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-3), CE, batches)


def cleared_every(n: int):
    def loop(model, opt, loss_fn, batches, on_step) -> None:
        for step, (x, y) in enumerate(batches):
            if step % n == 0:
                opt.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            opt.step()
            on_step(step, loss.item())

    return loop


@faulty(
    "fresh",
    "stale_gradient",
    "zero_grad() at the head of the epoch instead of the batch (forum staple)",
    must=[need("stale_gradient", "*", by=60)],
    may="stale_gradient",
    train=cleared_every(50),
    fixed_train=default_loop,
)
def cleared_once_an_epoch(fixed: bool = False) -> Built:
    """A language model whose gradients pile up for 50 batches, then are cleared, and again."""
    model = gpt_init(TinyLM(16, 24, 1, 2, 10), 0.08)
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.15 if fixed else 0.02), lm_loss, data.markov_text(16, 16, 10, 150))


class PostNorm(nn.Module):
    """Post-LN blocks over an embedding, the answer read from the mean."""

    def __init__(self, gain: float):
        super().__init__()
        self.tok = nn.Embedding(10, 24)
        self.blocks = nn.ModuleList(Block(24, 2, causal=False, pre=False) for _ in range(4))
        self.head = nn.Linear(24, 2)
        for b in self.blocks:
            nn.init.constant_(b.ln2.weight, gain)

    def forward(self, t: Tensor) -> Tensor:
        x = self.tok(t)
        for b in self.blocks:
            x = b(x)
        return self.head(F.layer_norm(x, (24,)).mean(1))


@faulty(
    "fresh",
    "bad_scale",
    "norm gains read in as 1e-4 (a checkpoint with another convention: 1 + gain, as in Gemma)",
    must=[need("bad_scale|vanishing_gradient", "blocks.* tok", by=30)],
    may="bad_scale vanishing_gradient loss_stagnant update_ratio exploding_gradient not_updated loss_unstable",
)
def norm_gains_of_1e_4(fixed: bool = False) -> Built:
    """Gains of 1e-4 behind each block: what a block hands on is 1e-4 in size, and the next one's norm is steep there."""
    g = data.gen(215)
    batches = [((t := torch.randint(10, (24, 8), generator=g)), ((t < 3).sum(1) > 2).long()) for _ in range(130)]
    model = PostNorm(1.0 if fixed else 1e-4)
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), CE, batches)
