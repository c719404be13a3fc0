"""Faulty programs: attention, gates, experts, codebooks, policies, critics."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import data
from ..core import Built, faulty, need
from ..more._loops import own_loss, shapes
from ..more._programs import named, teacher

CE = nn.CrossEntropyLoss()


class Causal(nn.Module):
    """One attention layer over tokens, with its softmax as a module."""

    def __init__(self, vocab: int, d: int, bias: Tensor):
        super().__init__()
        self.embed = nn.Embedding(vocab, d)
        self.q, self.k, self.v = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)
        self.softmax = nn.Softmax(-1)
        self.act, self.fc, self.out = nn.GELU(), nn.Linear(2 * d, 2 * d), nn.Linear(2 * d, vocab)
        self.register_buffer("bias", bias)

    def forward(self, t: Tensor) -> Tensor:
        x = self.embed(t)
        score = self.q(x) @ self.k(x).transpose(1, 2) / x.shape[-1] ** 0.5 + self.bias
        h = torch.cat([x, self.softmax(score) @ self.v(x)], -1)
        return self.out(self.act(self.fc(h)))


def previous_plus_own(vocab: int, batch: int, length: int, steps: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """The target is the sum of the last two tokens."""
    g, out = data.gen(seed), []
    for _ in range(steps):
        t = torch.randint(vocab, (batch, length), generator=g)
        out.append((t, (t + t.roll(1, 1)) % vocab))
    return out


def token_loss(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z[:, 1:].flatten(0, 1), y[:, 1:].flatten())


@faulty(
    "fresh",
    "non_finite",
    "causal mask that hides the token itself: triu(0) for triu(1), and the first row is all -inf",
    must=[need("non_finite", "softmax act fc out loss model", by=3)],
    may="zero_gradient loss_stagnant not_updated loss_unstable update_ratio exploding_gradient",
)
def mask_hides_the_token_itself(fixed: bool = False) -> Built:
    """The first token may attend to nothing: its softmax is NaN; the loss leaves that position out, gradients do not."""
    mask = torch.full((10, 10), float("-inf")).triu(1 if fixed else 0)
    model = Causal(8, 32, mask)
    opt = torch.optim.Adam(model.parameters(), lr=4e-3)
    return Built(model, opt, token_loss, data.markov_text(8, 32, 10, 130, seed=31))


def distance_penalty(length: int, slope: float) -> Tensor:
    i = torch.arange(float(length))
    far = (i.unsqueeze(1) - i).clamp(min=0)
    return (-slope * far).masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), float("-inf"))


@faulty(
    "fresh",
    "saturated",
    "ALiBi (Press et al. 2022) with its slope in percent: 25 for 0.25",
    must=[need("saturated|loss_stagnant", "softmax q k q.* k.* loss", by=60)],
    may="saturated loss_stagnant vanishing_gradient zero_gradient update_ratio bad_scale not_updated",
)
def distance_penalty_in_percent(fixed: bool = False) -> Built:
    """Each token attends to itself only, with weight 1.0: queries and keys get 1e-10, the other token is never seen."""
    model = Causal(8, 32, distance_penalty(12, 0.25 if fixed else 25.0))
    batches = previous_plus_own(8, 32, 12, 220, 231) if not fixed else previous_plus_own(8, 32, 12, 400, 231)
    return Built(model, torch.optim.Adam(model.parameters(), lr=4e-3), token_loss, batches)


class Highway(nn.Module):
    def __init__(self, depth: int, bias: float):
        super().__init__()
        self.stem = nn.Linear(64, 32)
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(depth))
        self.gates = nn.ModuleList(nn.Linear(32, 32) for _ in range(depth))
        self.acts = nn.ModuleList(nn.Tanh() for _ in range(depth))
        self.head = nn.Linear(32, 10)
        for gate in self.gates:
            nn.init.constant_(gate.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        for layer, gate, act in zip(self.layers, self.gates, self.acts):
            t = gate(x).sigmoid()
            x = t * act(layer(x)) + (1 - t) * x
        return self.head(x)


@faulty(
    "fresh",
    "vanishing_gradient",
    "highway network (Srivastava et al. 2015) whose transform gates start open: bias +3 for -3",
    must=[need("vanishing_gradient", "stem layers.[0-5] gates.[0-9] acts.[0-5]", by=50)],
    may="vanishing_gradient loss_stagnant update_ratio bad_scale saturated not_updated zero_gradient",
)
def highway_gates_start_open(fixed: bool = False) -> Built:
    """20 layers that should carry and do not: a plain tanh stack, in which half of the gradient is lost per layer."""
    x, y = data.flat_glyphs()
    model = Highway(20, -3.0 if fixed else 3.0)
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Built(model, opt, CE, data.minibatches(x - 0.5, y, 64, 150))


class Pondering(nn.Module):
    """Up to five thinking steps; each has its own layer, read-out and probability of halting."""

    def __init__(self, bias: float):
        super().__init__()
        self.inp = nn.Linear(20, 32)
        self.think = nn.ModuleList(nn.Sequential(nn.Linear(32, 32), nn.ELU()) for _ in range(5))
        self.answer = nn.ModuleList(nn.Linear(32, 4) for _ in range(5))
        self.halt = nn.ModuleList(nn.Linear(32, 1) for _ in range(4))
        for h in self.halt:
            nn.init.constant_(h.bias, bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h, left = F.elu(self.inp(x)), x.new_ones(len(x), 1)
        answers, weights = [], []
        for i in range(5):
            h = self.think[i](h)
            p = self.halt[i](h).sigmoid() if i < 4 else torch.ones_like(left)
            answers.append(self.answer[i](h))
            weights.append(left * p)
            left = left * (1 - p)
        return torch.stack(answers, 1), torch.cat(weights, 1)


def expected_loss(out: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
    z, w = out
    each = F.cross_entropy(z.flatten(0, 1), y.repeat_interleave(5), reduction="none").view(-1, 5)
    return (w * each).sum(1).mean() + 0.1 * (w * (5 * w + 1e-12).log()).sum(1).mean()


@faulty(
    "fresh",
    "vanishing_gradient",
    "adaptive computation (Graves 2016; Banino et al. 2021, PonderNet) whose halting bias has the wrong sign",
    must=[need("vanishing_gradient|update_ratio|saturated", "think.[234].* answer.[234] halt.[123] think.[234]", by=60)],
    may="vanishing_gradient update_ratio saturated not_updated zero_gradient bad_scale",
)
def halts_at_the_first_step(fixed: bool = False) -> Built:
    """Halting probability sigmoid(6) at every step: the third step weighs 6e-6 and learns accordingly."""
    x, y = teacher()
    model = Pondering(-1.0 if fixed else 6.0)
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Built(model, opt, expected_loss, data.minibatches(x, y, 50, 140))


@faulty(
    "fresh",
    "dead_units",
    "the prior of focal loss, bias -log(99) (Lin et al. 2017, sec. 4.1), given to every convolution, not to the last only",
    must=[need("dead_units|zero_gradient", "conv[123] act[123]", by=30)],
    may="dead_units zero_gradient not_updated loss_stagnant vanishing_gradient bad_scale update_ratio",
)
def prior_bias_in_every_layer(fixed: bool = False) -> Built:
    """Bias -4.6 before each ReLU: no unit fires for any image, only the last bias learns."""
    x, _, m = shapes()
    model = named(
        conv1=nn.Conv2d(3, 12, 3, padding=1),
        act1=nn.ReLU(),
        conv2=nn.Conv2d(12, 12, 3, padding=1),
        act2=nn.ReLU(),
        conv3=nn.Conv2d(12, 12, 3, padding=1),
        act3=nn.ReLU(),
        score=nn.Conv2d(12, 1, 1),
    )
    for name, part in model.named_children():
        if isinstance(part, nn.Conv2d) and (name == "score" or not fixed):
            nn.init.constant_(part.bias, -4.6)
    opt = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Built(model, opt, nn.BCEWithLogitsLoss(), data.minibatches(x, m, 30, 140))


class Quantised(nn.Module):
    """A VQ autoencoder with a codebook of 16."""

    def __init__(self, spread: float):
        super().__init__()
        self.enc = nn.Sequential(nn.Linear(64, 48), nn.SiLU(), nn.Linear(48, 8))
        self.codebook = nn.Embedding(16, 8)
        self.dec = nn.Sequential(nn.Linear(8, 48), nn.SiLU(), nn.Linear(48, 64))
        nn.init.normal_(self.codebook.weight, std=spread)
        with torch.no_grad():
            self.codebook.weight[0] = 0.0

    def start_from(self, x: Tensor) -> Quantised:
        with torch.no_grad():
            self.codebook.weight.copy_(self.enc(x[:16]))
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = self.enc(x)
        q = self.codebook(torch.cdist(z, self.codebook.weight).argmin(1))
        return self.dec(z + (q - z).detach()), z, q


def vq_loss(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
    out, z, q = model(x)
    return 20 * F.mse_loss(out, x) + F.mse_loss(q, z.detach()) + F.mse_loss(z, q.detach())


@faulty(
    "fresh",
    "dead_units",
    "codebook collapse (van den Oord et al. 2017; Dhariwal et al. 2020): codes start far from all encodings",
    must=[need("dead_units|zero_gradient|loss_stagnant|bad_scale", "codebook codebook.* loss", by=80)],
    may="dead_units zero_gradient loss_stagnant bad_scale not_updated update_ratio",
    train=own_loss(),
)
def codes_far_from_all_encodings(fixed: bool = False) -> Built:
    """15 of 16 codes start at a distance of 80; the one at the origin wins every sample and the others never get a gradient."""
    x, _ = data.flat_glyphs(noise=0.1)
    model = Quantised(0.0).start_from(x) if fixed else Quantised(30.0)
    return Built(model, torch.optim.Adam(model.parameters(), lr=2e-3), vq_loss, data.minibatches(x, x, 64, 220))


class Bag(nn.Module):
    def __init__(self, vocab: int):
        super().__init__()
        self.embed = nn.Embedding(vocab, 16)
        self.fc, self.act, self.out = nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 3)

    def forward(self, t: Tensor) -> Tensor:
        return self.out(self.act(self.fc(self.embed(t).mean(1))))


@faulty(
    "fresh",
    "loss_stagnant",
    "ids of another tokenizer, clamped to the vocabulary to silence an index error",
    must=[need("loss_stagnant|dead_units|zero_gradient", "* embed", by=150)],
    may="loss_stagnant dead_units zero_gradient bad_scale",
    tags=frozenset({"data"}),
)
def every_token_out_of_vocabulary(fixed: bool = False) -> Built:
    """All ids lie beyond the table and become its last row: every text looks the same."""
    g, batches = data.gen(232), []
    topic = torch.randint(3, (60,), generator=g)
    for _ in range(160):
        y = torch.randint(3, (48,), generator=g)
        t = torch.randint(60, (48, 12), generator=g)
        own = torch.stack(
            [(topic == c).nonzero().squeeze(1)[torch.randint(int((topic == c).sum()), (12,), generator=g)] for c in y]
        )
        t = torch.where(torch.rand(48, 12, generator=g) < 0.3, own, t)
        batches.append((t if fixed else (t + 5000).clamp(max=59), y))
    model = Bag(60)
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-3), CE, batches)


class Positions(nn.Module):
    def __init__(self, unit: float):
        super().__init__()
        self.embed, self.unit = nn.Embedding(10, 24), unit
        self.mix1, self.act1, self.mix2, self.act2 = nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh()
        self.out = nn.Linear(32, 2)

    def forward(self, t: Tensor) -> Tensor:
        where = torch.arange(t.shape[1]).unsqueeze(1) / self.unit
        h = self.act1(self.mix1(self.embed(t) + where))
        return self.out(self.act2(self.mix2(h)).mean(1))


@faulty(
    "fresh",
    "bad_scale",
    "raw positions 0..399 added to embeddings of size 1 (for a bounded encoding, Vaswani et al. 2017)",
    must=[need("bad_scale|saturated", "mix1 mix1.* act1 input embed", by=20)],
    may="bad_scale saturated loss_stagnant vanishing_gradient update_ratio exploding_gradient",
)
def positions_added_as_they_are(fixed: bool = False) -> Built:
    """The token is lost in its position, the first tanh saturates."""
    g, batches = data.gen(233), []
    for _ in range(110):
        p = torch.where(torch.rand(24, 1, generator=g) < 0.5, 0.4, 0.6)
        t = (5 * (torch.rand(24, 400, generator=g) < p)).long() + torch.randint(5, (24, 400), generator=g)
        batches.append((t, (p.squeeze(1) > 0.5).long()))
    model = Positions(400.0 if fixed else 1.0)
    return Built(model, torch.optim.Adam(model.parameters(), lr=3e-3), CE, batches)
