"""Held-out healthy programs, part B: sequences, attention, embeddings, graphs and sets.  Nothing may be reported."""

from __future__ import annotations

import math
import warnings

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from .. import data
from ..core import Built, clipped_loop, healthy, scheduled_loop, warmup
from ..nets import lm_loss
from ._loops import VOCAB, char_windows, cosine, own_loss, picks, seeded, text_ids

CE = nn.CrossEntropyLoss()


def sinusoid(length: int, d: int) -> torch.Tensor:
    p, i = torch.arange(length).unsqueeze(1), torch.arange(0, d, 2)
    a = p / 10000 ** (i / d)
    return torch.stack([a.sin(), a.cos()], -1).flatten(1)


# --------------------------------------------------------------- transformers


class PostLN(nn.Module):
    def __init__(self, d: int = 32, layers: int = 4):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, d)
        self.register_buffer("pos", sinusoid(32, d))
        layer = nn.TransformerEncoderLayer(d, 4, 3 * d, dropout=0.1, batch_first=True, norm_first=False)
        self.stack = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.out = nn.Linear(d, VOCAB)

    def forward(self, t):
        n = t.shape[1]
        x = self.embed(t) * 32**0.5 * 0.2 + self.pos[:n]
        return self.out(self.stack(x, mask=nn.Transformer.generate_square_subsequent_mask(n), is_causal=True))


def noam(warm: int):
    return lambda opt: torch.optim.lr_scheduler.LambdaLR(opt, lambda s: min((s + 1) / warm, (warm / (s + 1)) ** 0.5))


@healthy(
    "more",
    "Vaswani et al. 2017 (post-LN, warm-up, inverse square root decay, label smoothing)",
    train=scheduled_loop(noam(50)),
    loss_ratio=0.85,
)
def post_ln_noam() -> Built:
    """Four post-LN layers on English characters, Adam betas (0.9, 0.98), dropout, label smoothing 0.1."""
    model = PostLN()
    opt = torch.optim.Adam(model.parameters(), lr=4e-3, betas=(0.9, 0.98), eps=1e-9)
    return Built(
        model, opt, lambda o, y: F.cross_entropy(o.flatten(0, 1), y.flatten(), label_smoothing=0.1), char_windows(12, 18, 170)
    )


class RMSNorm(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def rotate(x: torch.Tensor) -> torch.Tensor:
    n, d = x.shape[-2:]
    a = torch.arange(n).unsqueeze(1) / 1000 ** (torch.arange(0, d, 2) / d)
    u, v = x[..., ::2], x[..., 1::2]
    return torch.stack([u * a.cos() - v * a.sin(), u * a.sin() + v * a.cos()], -1).flatten(-2)


class LlamaBlock(nn.Module):
    def __init__(self, d: int, heads: int):
        super().__init__()
        self.heads = heads
        self.n1, self.n2 = RMSNorm(d), RMSNorm(d)
        self.qkv, self.o = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.gate, self.up, self.down = (
            nn.Linear(d, 2 * d, bias=False),
            nn.Linear(d, 2 * d, bias=False),
            nn.Linear(2 * d, d, bias=False),
        )
        nn.init.zeros_(self.o.weight)
        nn.init.zeros_(self.down.weight)

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(self.n1(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        x = x + self.o(a.transpose(1, 2).reshape(b, n, d))
        h = self.n2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Llama(nn.Module):
    def __init__(self, vocab: int, d: int = 48, layers: int = 3):
        super().__init__()
        self.embed = nn.Embedding(vocab, d)
        self.blocks = nn.ModuleList(LlamaBlock(d, 3) for _ in range(layers))
        self.norm, self.head = RMSNorm(d), nn.Linear(d, vocab, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, t):
        x = self.embed(t)
        for b in self.blocks:
            x = b(x)
        return self.head(self.norm(x))


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised by Newton-Schulz, for matrices; AdamW-like for the groups with muon=False."""

    def __init__(self, groups):
        super().__init__(groups, {"lr": 0.02, "momentum": 0.95, "muon": True, "betas": (0.9, 0.95)})

    @torch.no_grad()
    def step(self, closure=None):
        for g in self.param_groups:
            for p in g["params"]:
                if p.grad is None:
                    continue
                s = self.state[p]
                if not s:
                    s["t"], s["m"], s["v"] = 0, torch.zeros_like(p), torch.zeros_like(p)
                s["t"] += 1
                if g["muon"]:
                    s["m"].mul_(g["momentum"]).add_(p.grad)
                    u = p.grad + g["momentum"] * s["m"]
                    flip = u.shape[0] > u.shape[1]
                    u = u.T if flip else u
                    u = u / (u.norm() + 1e-7)
                    for _ in range(5):
                        a = u @ u.T
                        u = 3.4445 * u + (-4.7750 * a + 2.0315 * a @ a) @ u
                    u = (u.T if flip else u) * max(1.0, p.shape[0] / p.shape[1]) ** 0.5
                else:
                    b1, b2 = g["betas"]
                    s["m"].lerp_(p.grad, 1 - b1)
                    s["v"].mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
                    u = (s["m"] / (1 - b1 ** s["t"])) / ((s["v"] / (1 - b2 ** s["t"])).sqrt() + 1e-8)
                p.add_(u, alpha=-g["lr"])


@healthy(
    "more", "Jordan et al. 2024 (modded-nanogpt: Muon, zero-initialised projections)", train=scheduled_loop(cosine(140, warm=5))
)
def llama_muon() -> Built:
    """Rotary attention, RMSNorm, SwiGLU; output projections and head start at zero; orthogonalised updates."""
    model = Llama(VOCAB)
    mats = [p for n, p in model.named_parameters() if p.dim() == 2 and n.startswith("blocks")]
    rest = [p for n, p in model.named_parameters() if p.dim() != 2 or not n.startswith("blocks")]
    opt = Muon([{"params": mats, "lr": 0.02}, {"params": rest, "lr": 3e-3, "muon": False}])
    return Built(model, opt, lm_loss, char_windows(8, 24, 140))


class Translator(nn.Module):
    """nn.Transformer; token 0 is padding, 1 starts the target."""

    def __init__(self, vocab: int = 12, d: int = 32):
        super().__init__()
        self.src, self.tgt = nn.Embedding(vocab, d, padding_idx=0), nn.Embedding(vocab, d, padding_idx=0)
        self.pos = nn.Parameter(0.1 * torch.randn(6, d))
        with warnings.catch_warnings():  # about nested tensors
            warnings.simplefilter("ignore")
            self.core = nn.Transformer(d, 4, 1, 1, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.out = nn.Linear(d, vocab)

    def forward(self, st):
        s, t = st
        mask = nn.Transformer.generate_square_subsequent_mask(t.shape[1])
        h = self.core(
            self.src(s) + self.pos[: s.shape[1]],
            self.tgt(t) + self.pos[: t.shape[1]],
            tgt_mask=mask.isinf(),
            src_key_padding_mask=s == 0,
            tgt_key_padding_mask=t == 0,
            memory_key_padding_mask=s == 0,
        )
        return self.out(h)


def reversal_batch(g: torch.Generator, batch: int = 32, top: int = 6):
    n = torch.randint(2, top + 1, (batch,), generator=g)
    s = torch.randint(2, 12, (batch, top), generator=g)
    keep = torch.arange(top) < n.unsqueeze(1)
    s = s * keep
    idx = (n.unsqueeze(1) - 1 - torch.arange(top)).clamp(min=0)
    y = s.gather(1, idx) * keep
    t = torch.cat([torch.ones(batch, 1, dtype=torch.long), y[:, :-1]], 1)
    return (s, t), y


@healthy(
    "more",
    "encoder-decoder transformer, padded batches, OneCycle",
    loss_ratio=0.7,
    train=scheduled_loop(lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 8e-3, total_steps=250), max_norm=1.0),
)
def encoder_decoder_reversal() -> Built:
    """Reverses sequences of varying length; padding is masked and ignored by the loss (its embedding row has no gradient)."""
    model = Translator()
    loss = nn.CrossEntropyLoss(ignore_index=0)
    opt = torch.optim.AdamW(model.parameters(), lr=8e-3)
    return Built(
        model, opt, lambda o, y: loss(o.flatten(0, 1), y.flatten()), data.stream(reversal_batch, 250, torch.initial_seed())
    )


class Bert(nn.Module):
    def __init__(self, vocab: int = 10, d: int = 40):
        super().__init__()
        self.embed, self.pos = nn.Embedding(vocab + 1, d), nn.Embedding(16, d)
        layer = nn.TransformerEncoderLayer(d, 4, 2 * d, dropout=0.1, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.transform, self.ln = nn.Linear(d, d), nn.LayerNorm(d)
        self.bias = nn.Parameter(torch.zeros(vocab + 1))

    def forward(self, t):
        h = self.encoder(self.embed(t) + self.pos.weight)
        return F.linear(self.ln(F.gelu(self.transform(h))), self.embed.weight, self.bias)


def bf16_loop(model, opt, loss_fn, batches, on_step) -> None:
    sched = warmup(20)(opt)
    for step, (x, y) in enumerate(batches):
        opt.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(x)
        loss = loss_fn(out.float(), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        sched.step()
        on_step(step, loss.item())


@healthy("more", "Devlin et al. 2019 (masked LM, tied output), bfloat16 autocast", train=bf16_loop, loss_ratio=0.85)
def bert_masked_bf16() -> Built:
    """15 % masked tokens, tied embedding, bfloat16 activations: gradients are coarse but fine."""
    g = seeded()
    batches = []
    for t, _ in data.markov_text(10, 24, 16, 220, seed=50):
        hide = torch.rand(t.shape, generator=g) < 0.15
        batches.append((t.masked_fill(hide, 10), t.masked_fill(~hide, -100)))
    model = Bert()
    for p in model.parameters():
        if p.dim() == 2:
            nn.init.normal_(p, std=0.05)
    opt = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.01)
    return Built(model, opt, lm_loss, batches)


class ScaledBlock(nn.Module):
    def __init__(self, d: int, init: float):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attn = nn.MultiheadAttention(d, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(d, 3 * d), nn.GELU(), nn.Linear(3 * d, d))
        self.g1, self.g2 = nn.Parameter(torch.full((d,), init)), nn.Parameter(torch.full((d,), init))

    def forward(self, x):
        h = self.n1(x)
        x = x + self.g1 * self.attn(h, h, h, need_weights=False)[0]
        return x + self.g2 * self.mlp(self.n2(x))


class CaiT(nn.Module):
    def __init__(self, d: int = 32, layers: int = 3):
        super().__init__()
        self.patch = nn.Linear(4, d)
        self.cls, self.pos = nn.Parameter(torch.zeros(1, 1, d)), nn.Parameter(0.02 * torch.randn(17, d))
        self.blocks = nn.ModuleList(ScaledBlock(d, 1e-4) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, 10)

    def forward(self, x):
        x = self.patch(F.unfold(x, 2, stride=2).transpose(1, 2))
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.pos
        for b in self.blocks:
            x = b(x)
        return self.head(self.norm(x[:, 0]))


class Lion(torch.optim.Optimizer):
    def __init__(self, params, lr: float, betas=(0.9, 0.99), weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for g in self.param_groups:
            b1, b2 = g["betas"]
            for p in g["params"]:
                if p.grad is not None:
                    m = self.state[p].setdefault("m", torch.zeros_like(p))
                    u = (b1 * m + (1 - b1) * p.grad).sign_()
                    p.mul_(1 - g["lr"] * g["weight_decay"]).add_(u, alpha=-g["lr"])
                    m.lerp_(p.grad, 1 - b2)


@healthy(
    "more",
    "Touvron et al. 2021 (CaiT LayerScale 1e-4, class token); Chen et al. 2023 (Lion)",
    train=scheduled_loop(cosine(200, warm=10)),
)
def layerscale_vit_lion() -> Built:
    """Branches enter with weight 1e-4, so their inner weights get tiny gradients at first; sign updates do not care."""
    x, y = data.glyphs(seed=32)
    model = CaiT()
    return Built(model, Lion(model.parameters(), lr=1e-3, weight_decay=0.05), CE, picks((2 * x - 1, y), 32, 200))


class Memory(nn.Module):
    """Cosine attention with temperature 0.05 over stored (key, value) pairs."""

    def __init__(self):
        super().__init__()
        self.wq, self.wk = nn.Linear(12, 24), nn.Linear(12, 24)
        self.softmax = nn.Softmax(-1)

    def forward(self, qkv):
        q, k, v = qkv
        s = F.normalize(self.wq(q), dim=-1).unsqueeze(1) @ F.normalize(self.wk(k), dim=-1).transpose(1, 2)
        return (self.softmax(s / 0.05) @ v).squeeze(1)


def lookup_batch(g: torch.Generator):
    turn = torch.linalg.qr(torch.randn(12, 12, generator=data.gen(51)))[0]
    k, v = torch.randn(40, 8, 12, generator=g), torch.randn(40, 8, 3, generator=g)
    i = torch.randint(8, (40,), generator=g)
    r = torch.arange(40)
    q = k[r, i] @ turn + 0.15 * torch.randn(40, 12, generator=g)
    return (q, k, v), v[r, i]


@healthy("more", "Santoro et al. 2016; Vinyals et al. 2016 (cosine attention, low temperature)", loss_ratio=0.3)
def sharp_memory_lookup() -> Built:
    """Attention becomes one-hot because the task is a lookup."""
    model = Memory()
    return Built(
        model, torch.optim.Adam(model.parameters(), lr=5e-3), nn.MSELoss(), data.stream(lookup_batch, 250, torch.initial_seed())
    )


class SwitchLayer(nn.Module):
    def __init__(self, d: int, experts: int):
        super().__init__()
        self.router = nn.Linear(d, experts, bias=False)
        nn.init.normal_(self.router.weight, std=0.02)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d)) for _ in range(experts))
        self.aux = torch.zeros(())

    def forward(self, x):
        p = self.router(F.layer_norm(x, x.shape[-1:])).softmax(-1)
        gate, who = p.max(-1)
        out = torch.zeros_like(x)
        for i, e in enumerate(self.experts):
            m = who == i
            if m.any():
                out = out.index_put((m.nonzero(as_tuple=True)[0],), gate[m].unsqueeze(1) * e(x[m]))
        n = len(self.experts)
        share = F.one_hot(who, n).float().mean(0)
        self.aux = n * (share * p.mean(0)).sum()
        return x + out


class MoE(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp, self.moe, self.out = nn.Linear(10, 20), SwitchLayer(20, 8), nn.Linear(20, 2)

    def forward(self, x):
        return self.out(self.moe(self.inp(x)))


def moe_loss(model, x, y):
    return F.mse_loss(model(x), y) + 0.2 * model.moe.aux


@healthy("more", "Fedus et al. 2022 (Switch: top-1 routing, balance loss)", train=own_loss(), loss_ratio=0.5)
def switch_moe() -> Built:
    """Eight experts, one per input, batches of 16: each expert misses some batches altogether."""
    g, fixed = seeded(), data.gen(52)
    centres, maps = 2.0 * torch.randn(8, 10, generator=fixed), torch.randn(8, 10, 2, generator=fixed) / 3
    c = torch.multinomial(torch.linspace(2, 1, 8), 3000, True, generator=g)
    x = centres[c] + torch.randn(3000, 10, generator=g)
    y = torch.einsum("nd,ndk->nk", x, maps[c])
    model = MoE()
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-3), moe_loss, picks((x, y), 16, 350))


# ------------------------------------------------------------- recurrent nets


class ElmanLM(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.rnn, self.out = nn.Embedding(VOCAB, 24), nn.RNN(24, 64, batch_first=True), nn.Linear(64, VOCAB)
        nn.init.orthogonal_(self.rnn.weight_hh_l0)

    def forward(self, t):
        return self.out(self.rnn(self.embed(t))[0])


@healthy("more", "Pascanu et al. 2013 (RNN with gradient clipping)", train=clipped_loop(0.25), loss_ratio=0.8)
def vanilla_rnn_clipped() -> Built:
    """Character RNN, orthogonal recurrence, SGD with the norm clipped to 0.25 in practically every step."""
    model = ElmanLM()
    return Built(model, torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.8), lm_loss, char_windows(24, 20, 200))


class CellLM(nn.Module):
    """Hand-written LSTM with forget bias 1 whose state is carried from batch to batch."""

    def __init__(self, d: int = 40):
        super().__init__()
        self.embed, self.gates, self.out = nn.Embedding(VOCAB, 16), nn.Linear(16 + d, 4 * d), nn.Linear(d, VOCAB)
        nn.init.zeros_(self.gates.bias)
        self.gates.bias.data[d : 2 * d] = 1.0
        self.d = d

    def forward(self, t, state):
        h, c = state
        outs = []
        for x in self.embed(t).unbind(1):
            i, f, o, u = self.gates(torch.cat([x, h], 1)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * u.tanh()
            h = o.sigmoid() * c.tanh()
            outs.append(h)
        return self.out(torch.stack(outs, 1)), (h, c)


def truncated_bptt(model, opt, loss_fn, batches, on_step) -> None:
    state = None
    for step, (x, y, fresh) in enumerate(batches):
        if fresh or state is None:
            state = (torch.zeros(len(x), model.d), torch.zeros(len(x), model.d))
        opt.zero_grad()
        out, state = model(x, tuple(s.detach() for s in state))
        loss = loss_fn(out, y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        on_step(step, loss.item())


@healthy(
    "more", "Jozefowicz et al. 2015 (forget bias); Merity et al. 2018 (ASGD, truncated BPTT)", train=truncated_bptt, loss_ratio=0.85
)
def stateful_lstm_asgd() -> Built:
    """Stateful character LSTM, truncated back-propagation over 12 steps, averaged SGD with a large rate."""
    t = text_ids()
    rows = t[: len(t) // 16 * 16].view(16, -1)
    batches = []
    while len(batches) < 200:
        for i in range(0, rows.shape[1] - 13, 12):
            batches.append((rows[:, i : i + 12], rows[:, i + 1 : i + 13], i == 0))
    model = CellLM()
    return Built(model, torch.optim.ASGD(model.parameters(), lr=1.5, t0=150, lambd=0.0), lm_loss, batches[:200])


class PackedGRU(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru, self.head = nn.GRU(3, 24, batch_first=True, num_layers=2, dropout=0.1), nn.Linear(24, 1)

    def forward(self, xn):
        x, n = xn
        packed = nn.utils.rnn.pack_padded_sequence(x, n, batch_first=True, enforce_sorted=False)
        return self.head(self.gru(packed)[1][-1]).squeeze(1)


def series_batch(g: torch.Generator):
    n = torch.randint(4, 13, (32,), generator=g)
    x = torch.randn(32, 12, 3, generator=g)
    keep = torch.arange(12) < n.unsqueeze(1)
    return (x * keep.unsqueeze(2), n), (x[..., 0] * (x[..., 1] > 0) * keep).sum(1) / 3


@healthy("more", "packed variable-length sequences", loss_ratio=0.5)
def gru_packed_regression() -> Built:
    """Two-layer GRU sums a gated signal over sequences of 4 to 12 steps."""
    model = PackedGRU()
    return Built(
        model, torch.optim.RMSprop(model.parameters(), lr=4e-3), nn.MSELoss(), data.stream(series_batch, 250, torch.initial_seed())
    )


class CTCNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.front = nn.Conv1d(8, 24, 3, padding=1)
        self.lstm, self.out = nn.LSTM(24, 24, bidirectional=True, batch_first=True), nn.Linear(48, 6)

    def forward(self, x):
        h = F.relu(self.front(x.transpose(1, 2))).transpose(1, 2)
        return self.out(self.lstm(h)[0]).log_softmax(-1)


def speech_batch(g: torch.Generator):
    codes = torch.randn(6, 8, generator=data.gen(53))
    xs, ys = [], []
    for _ in range(12):
        lab = torch.randint(1, 6, (4,), generator=g)
        dur = torch.randint(2, 5, (4,), generator=g)
        frames = codes[torch.repeat_interleave(lab, dur)]
        xs.append(F.pad(frames, (0, 0, 0, 18 - len(frames))))
        ys.append(lab)
    x = torch.stack(xs)
    return x + 0.3 * torch.randn(x.shape, generator=g), torch.stack(ys)


def ctc(out, y):
    b, n, _ = out.shape
    return F.ctc_loss(out.transpose(0, 1), y, torch.full((b,), n), torch.full((b,), y.shape[1]))


@healthy("more", "Graves et al. 2006 (CTC, bidirectional LSTM)", train=clipped_loop(5.0), loss_ratio=0.6)
def bilstm_ctc() -> Built:
    """Frame sequences to labels with CTC: blanks dominate the softmax, as they must."""
    model = CTCNet()
    return Built(model, torch.optim.Adam(model.parameters(), lr=1e-2), ctc, data.stream(speech_batch, 170, torch.initial_seed()))


class BahdanauDecoder(nn.Module):
    def __init__(self, vocab: int = 12, d: int = 32):
        super().__init__()
        self.src, self.tgt = nn.Embedding(vocab, d, padding_idx=0), nn.Embedding(vocab, d, padding_idx=0)
        self.encoder, self.cell = nn.GRU(d, d, batch_first=True, bidirectional=True), nn.GRUCell(3 * d, d)
        self.wm, self.ws, self.score = nn.Linear(2 * d, d), nn.Linear(d, d), nn.Linear(d, 1, bias=False)
        self.out = nn.Linear(3 * d, vocab)

    def forward(self, st):
        s, t = st
        mem, last = self.encoder(self.src(s))
        keys, h = self.wm(mem), torch.tanh(last[1])
        outs = []
        for x in self.tgt(t).unbind(1):
            e = self.score(torch.tanh(keys + self.ws(h).unsqueeze(1))).squeeze(2).masked_fill(s == 0, -1e9)
            ctx = (e.softmax(1).unsqueeze(1) @ mem).squeeze(1)
            h = self.cell(torch.cat([x, ctx], 1), h)
            outs.append(self.out(torch.cat([h, ctx], 1)))
        return torch.stack(outs, 1)


@healthy("more", "Bahdanau et al. 2015 (seq2seq with additive attention)", train=clipped_loop(1.0), loss_ratio=0.75)
def seq2seq_attention() -> Built:
    """GRU encoder and decoder with teacher forcing; padded targets are ignored."""
    model = BahdanauDecoder()
    loss = nn.CrossEntropyLoss(ignore_index=0)
    return Built(
        model,
        torch.optim.Adam(model.parameters(), lr=1e-2),
        lambda o, y: loss(o.flatten(0, 1), y.flatten()),
        data.stream(reversal_batch, 200, torch.initial_seed()),
    )


class CausalConv(nn.Module):
    def __init__(self, c: int, dilation: int):
        super().__init__()
        self.pad = 2 * dilation
        self.conv = parametrizations.weight_norm(nn.Conv1d(c, c, 3, dilation=dilation))
        self.drop = nn.Dropout(0.05)

    def forward(self, x):
        return x + self.drop(F.leaky_relu(self.conv(F.pad(x, (self.pad, 0))), 0.1))


class TCN(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp = nn.Conv1d(1, 16, 1)
        self.layers = nn.ModuleList(CausalConv(16, 2**i) for i in range(4))
        self.out = nn.Conv1d(16, 1, 1)

    def forward(self, x):
        x = self.inp(x)
        for m in self.layers:
            x = m(x)
        return self.out(x)


@healthy("more", "Bai et al. 2018 (TCN: dilated causal convolutions, weight norm)", loss_ratio=0.3)
def causal_tcn() -> Built:
    """One-step prediction of noisy sums of two sinusoids."""
    g = seeded()
    t = torch.arange(41.0)
    w, ph = 0.15 + 0.5 * torch.rand(800, 2, 1, generator=g), 6.28 * torch.rand(800, 2, 1, generator=g)
    s = torch.sin(w * t + ph).sum(1, keepdim=True) + 0.05 * torch.randn(800, 1, 41, generator=g)
    model = TCN()
    return Built(model, torch.optim.Adam(model.parameters(), lr=2e-3), nn.MSELoss(), picks((s[..., :-1], s[..., 1:]), 32, 200))


class GLULM(nn.Module):
    def __init__(self, d: int = 32):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, d)
        self.convs = nn.ModuleList(nn.Conv1d(d, 2 * d, 4) for _ in range(3))
        self.out = nn.Linear(d, VOCAB)

    def forward(self, t):
        x = self.embed(t).transpose(1, 2)
        for c in self.convs:
            x = x + F.glu(c(F.pad(x, (3, 0))), 1)
        return self.out(x.transpose(1, 2))


@healthy("more", "Dauphin et al. 2017 (gated convolutional LM: Nesterov, clipping 0.1)", train=clipped_loop(0.1), loss_ratio=0.8)
def glu_conv_lm() -> Built:
    """Gated linear units, Nesterov momentum 0.99, clipping at 0.1 in every step."""
    model = GLULM()
    return Built(
        model, torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.95, nesterov=True), lm_loss, char_windows(16, 20, 250)
    )


class DiagonalSSM(nn.Module):
    """S4D-like layer: complex diagonal state space, evaluated as a convolution."""

    def __init__(self, d: int, n: int = 8):
        super().__init__()
        self.log_dt = nn.Parameter(torch.empty(d).uniform_(math.log(0.01), math.log(0.2)))
        self.log_a = nn.Parameter(torch.full((d, n), math.log(0.5)))
        self.a_im = nn.Parameter(math.pi * torch.arange(n).float().repeat(d, 1))
        self.c = nn.Parameter(torch.randn(d, n, 2) / n**0.5)
        self.skip, self.mix, self.norm = nn.Parameter(torch.ones(d)), nn.Linear(d, 2 * d), nn.LayerNorm(d)

    def forward(self, x):
        n = x.shape[1]
        a = torch.complex(-self.log_a.exp(), self.a_im)
        dta = a * self.log_dt.exp().unsqueeze(1)
        c = torch.view_as_complex(self.c) * (dta.exp() - 1) / a
        k = 2 * (c.unsqueeze(2) * torch.exp(dta.unsqueeze(2) * torch.arange(n))).sum(1).real
        u = self.norm(x).transpose(1, 2)
        y = torch.fft.irfft(torch.fft.rfft(u, 2 * n) * torch.fft.rfft(k, 2 * n), 2 * n)[..., :n] + self.skip.unsqueeze(1) * u
        return x + F.glu(self.mix(F.gelu(y.transpose(1, 2))), -1)


class SSMNet(nn.Module):
    def __init__(self, d: int = 16):
        super().__init__()
        self.inp, self.layers, self.out = nn.Linear(1, d), nn.ModuleList(DiagonalSSM(d) for _ in range(2)), nn.Linear(d, 4)

    def forward(self, x):
        x = self.inp(x)
        for m in self.layers:
            x = m(x)
        return self.out(x.mean(1))


@healthy("more", "Gu et al. 2022 (S4D)", train=scheduled_loop(cosine(150)))
def state_space_s4d() -> Built:
    """Classifies noisy waves of 64 samples by frequency; state-space parameters have a rate ten times smaller and no decay."""
    g = seeded()
    y = torch.randint(4, (800,), generator=g)
    f = torch.tensor([0.1, 0.2, 0.35, 0.55])[y].unsqueeze(1)
    x = torch.sin(f * torch.arange(64.0) + 6.28 * torch.rand(800, 1, generator=g)) + 0.5 * torch.randn(800, 64, generator=g)
    model = SSMNet()
    ssm = [p for n, p in model.named_parameters() if n.rsplit(".", 1)[1] in ("log_dt", "log_a", "a_im")]
    rest = [p for n, p in model.named_parameters() if n.rsplit(".", 1)[1] not in ("log_dt", "log_a", "a_im")]
    opt = torch.optim.AdamW([{"params": rest, "lr": 1e-2}, {"params": ssm, "lr": 1e-3, "weight_decay": 0.0}])
    return Built(model, opt, CE, picks((x.unsqueeze(2), y), 32, 150))


class Reservoir(nn.Module):
    def __init__(self, d: int = 100):
        super().__init__()
        w = torch.randn(d, d)
        self.register_buffer("w", 0.9 * w / torch.linalg.eigvals(w).abs().max())
        self.register_buffer("w_in", torch.empty(d).uniform_(-0.5, 0.5))
        self.readout = nn.Linear(d, 1)

    def forward(self, x):
        h, out = torch.zeros(len(x), len(self.w)), []
        for v in x.unbind(1):
            h = torch.tanh(v.unsqueeze(1) * self.w_in + h @ self.w)
            out.append(h)
        return self.readout(torch.stack(out, 1)).squeeze(2)


@healthy("more", "Jaeger 2001 (echo state network)", loss_ratio=0.5)
def echo_state_readout() -> Built:
    """Random recurrent weights are buffers; only the readout learns (memory task); SGD on batches of 4."""
    g = seeded()
    x = torch.rand(200, 30, generator=g) * 2 - 1
    y = torch.roll(x, 3, 1) * 0.7 + torch.roll(x, 1, 1) * 0.5
    y[:, :3] = 0
    model = Reservoir()
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9), nn.MSELoss(), picks((x, y), 4, 200))


# ------------------------------------------------- embeddings, graphs and sets


class SkipGram(nn.Module):
    def __init__(self, vocab: int, d: int):
        super().__init__()
        self.centre, self.context = nn.Embedding(vocab, d, sparse=True), nn.Embedding(vocab, d, sparse=True)
        nn.init.uniform_(self.centre.weight, -0.5 / d, 0.5 / d)
        nn.init.zeros_(self.context.weight)

    def forward(self, c, o):
        return (self.centre(c).unsqueeze(1) * self.context(o)).sum(2)


def sgns(model, c, pos, neg):
    s = model(c, torch.cat([pos.unsqueeze(1), neg], 1))
    return -(F.logsigmoid(s[:, 0]) + F.logsigmoid(-s[:, 1:]).sum(1)).mean()


@healthy("more", "Mikolov et al. 2013 (skip-gram, negative sampling), SparseAdam", train=own_loss(), loss_ratio=0.85)
def word2vec_sparse() -> Built:
    """Zipfian vocabulary of 600, sparse gradients; context vectors start at zero, as in word2vec.c."""
    g = seeded()
    p = 1 / torch.arange(1, 601.0)
    topic = torch.arange(600) % 12
    by_topic = torch.stack([p * (topic == k) for k in range(12)])
    batches = []
    for _ in range(250):
        c = torch.multinomial(p, 128, True, generator=g)
        pos = torch.multinomial(by_topic[topic[c]], 1, generator=g).squeeze(1)
        batches.append((c, pos, torch.multinomial(p**0.75, 128 * 5, True, generator=g).view(128, 5)))
    model = SkipGram(600, 16)
    return Built(model, torch.optim.SparseAdam(list(model.parameters()), lr=0.02), sgns, batches)


class Factors(nn.Module):
    def __init__(self, users: int, items: int, k: int = 6):
        super().__init__()
        self.u, self.v = nn.Embedding(users, k, sparse=True), nn.Embedding(items, k, sparse=True)
        self.bu, self.bv = nn.Embedding(users, 1, sparse=True), nn.Embedding(items, 1, sparse=True)
        for e in (self.u, self.v):
            nn.init.normal_(e.weight, std=0.1)
        for e in (self.bu, self.bv):
            nn.init.zeros_(e.weight)

    def forward(self, ui):
        u, i = ui[:, 0], ui[:, 1]
        return 3.5 + self.bu(u).squeeze(1) + self.bv(i).squeeze(1) + (self.u(u) * self.v(i)).sum(1)


@healthy("more", "Koren et al. 2009 (matrix factorisation with biases), sparse SGD", loss_ratio=0.6)
def matrix_factorisation() -> Built:
    """300 users, 200 items, ratings around 3.5; every batch touches few rows."""
    g, fixed = seeded(), data.gen(54)
    bu, bv = 0.5 * torch.randn(300, generator=fixed), 0.7 * torch.randn(200, generator=fixed)
    ui = torch.stack(
        [torch.randint(300, (8000,), generator=g), torch.multinomial(1 / torch.arange(1, 201.0) ** 0.7, 8000, True, generator=g)], 1
    )
    y = 3.5 + bu[ui[:, 0]] + bv[ui[:, 1]] + 0.3 * torch.randn(8000, generator=g)
    model = Factors(300, 200)
    return Built(model, torch.optim.SGD(model.parameters(), lr=6.0), nn.MSELoss(), picks((ui, y), 128, 400))


class DeepFM(nn.Module):
    def __init__(self, fields: int = 6, size: int = 50, k: int = 6):
        super().__init__()
        self.linear, self.embed = nn.Embedding(fields * size, 1), nn.Embedding(fields * size, k)
        nn.init.zeros_(self.linear.weight)
        nn.init.normal_(self.embed.weight, std=0.05)
        self.deep = nn.Sequential(nn.Linear(fields * k, 24), nn.ReLU(), nn.Linear(24, 1))
        self.bias = nn.Parameter(torch.tensor([-1.5]))

    def forward(self, t):
        e = self.embed(t)
        pair = 0.5 * (e.sum(1).pow(2) - e.pow(2).sum(1)).sum(1)
        return self.bias + self.linear(t).squeeze(2).sum(1) + pair + self.deep(e.flatten(1)).squeeze(1)


@healthy("more", "Guo et al. 2017 (DeepFM, click prediction), Adagrad", loss_ratio=0.85)
def deepfm_adagrad() -> Built:
    """Clicks are rare and noisy, so the loss falls by a fifth only, to its floor; Adagrad."""
    g, fixed = seeded(), data.gen(55)
    w = 1.3 * torch.randn(300, generator=fixed)
    t = torch.multinomial(1 / torch.arange(1, 51.0), 20000 * 6, True, generator=g).view(-1, 6) + 50 * torch.arange(6)
    y = torch.bernoulli(torch.sigmoid(w[t].sum(1) - 2.0), generator=g)
    model = DeepFM()
    return Built(model, torch.optim.Adagrad(model.parameters(), lr=0.05), nn.BCEWithLogitsLoss(), picks((t, y), 128, 300))


class GCN(nn.Module):
    def __init__(self, adj: torch.Tensor, d: int, classes: int):
        super().__init__()
        a = adj + torch.eye(len(adj))
        s = a.sum(1).rsqrt()
        self.register_buffer("a", s.unsqueeze(1) * a * s)
        self.w1, self.w2 = nn.Linear(d, 16, bias=False), nn.Linear(16, classes)

    def forward(self, x):
        h = F.relu(self.a @ self.w1(F.dropout(x, 0.5, self.training)))
        return self.a @ self.w2(F.dropout(h, 0.5, self.training))


@healthy("more", "Kipf & Welling 2017 (GCN, semi-supervised, full batch)", loss_ratio=0.7)
def gcn_semi_supervised() -> Built:
    """150 nodes, 24 labelled; sparse binary features; Adam with weight decay on the first layer."""
    g = seeded()
    c = torch.arange(150) % 3
    p = torch.where(c.unsqueeze(0) == c.unsqueeze(1), 0.12, 0.01)
    adj = torch.bernoulli(p, generator=g).triu(1)
    x = torch.bernoulli(torch.where(torch.arange(60) % 3 == c.unsqueeze(1), 0.2, 0.08), generator=g)
    x = x / x.sum(1, keepdim=True).clamp(min=1)
    y = torch.full((150,), -100)
    y[:24] = c[:24]
    model = GCN(adj + adj.T, 60, 3)
    opt = torch.optim.Adam([{"params": model.w1.parameters(), "weight_decay": 5e-4}, {"params": model.w2.parameters()}], lr=0.01)
    return Built(model, opt, CE, [(x, y)] * 250)


class GIN(nn.Module):
    """Graph isomorphism network with sum pooling over batches of small graphs."""

    def __init__(self):
        super().__init__()
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(a, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU()) for a in (3, 24)
        )
        self.out = nn.Linear(24, 1)

    def forward(self, graph):
        adj, h = graph
        b, n, _ = adj.shape
        for m in self.mlps:
            h = m((h + adj @ h).flatten(0, 1)).view(b, n, -1)
        return self.out(h.sum(1) / n).squeeze(1)


@healthy("more", "Xu et al. 2019 (GIN)", loss_ratio=0.6)
def gin_graph_regression() -> Built:
    """Counts, in random graphs with three kinds of nodes, the edges between nodes of the same kind."""
    g = seeded()
    p = 0.1 + 0.7 * torch.rand(1000, 1, 1, generator=g) * (torch.rand(1000, 12, 1, generator=g) > 0.3)
    a = torch.bernoulli((p * p.transpose(1, 2)).sqrt(), generator=g).triu(1)
    a = a + a.transpose(1, 2)
    kind = F.one_hot(torch.randint(3, (1000, 12), generator=g), 3).float()
    y = (kind.transpose(1, 2) @ a @ kind).diagonal(dim1=1, dim2=2).sum(1)
    model = GIN()
    return Built(
        model,
        torch.optim.Adam(model.parameters(), lr=5e-3),
        nn.SmoothL1Loss(),
        [((b, k), t) for b, k, t in picks((a, kind, (y - y.mean()) / y.std()), 40, 200)],
    )


class DeepSets(nn.Module):
    def __init__(self):
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.rho = nn.Sequential(nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 1))

    def forward(self, x):
        return self.rho(self.phi(x).amax(1)).squeeze(1)


@healthy("more", "Zaheer et al. 2017; Qi et al. 2017 (max-pooled point sets)", loss_ratio=0.2)
def point_set_diameter() -> Built:
    """Max pooling over 20 points passes gradient to few of them: regression of the set's radius."""
    g = seeded()
    x = torch.randn(1500, 20, 2, generator=g) * (0.3 + torch.rand(1500, 1, 2, generator=g))
    y = x.norm(dim=2).amax(1)
    model = DeepSets()
    return Built(model, torch.optim.Adam(model.parameters(), lr=2e-3), nn.MSELoss(), picks((x, y), 32, 250))
