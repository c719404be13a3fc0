"""Faulty programs: losses and targets that are not what was meant."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import data
from ..core import Built, faulty, need
from ..more._loops import own_loss
from ..more._programs import named, teacher, waves
from ..nets import MLP, he, init_linear

CE = nn.CrossEntropyLoss()
AFTER_NAN = "zero_gradient loss_stagnant not_updated loss_unstable update_ratio exploding_gradient"


def soft_labels(y: Tensor, safe: bool) -> Tensor:
    hard = F.one_hot(y, 4).float()
    return 0.9 * hard + 0.025 if safe else hard


def divergence(z: Tensor, t: Tensor) -> Tensor:
    return (t * (t.log() - z.log_softmax(-1))).sum(-1).mean()


@faulty(
    "fresh",
    "non_finite",
    "hand-written KL divergence: 0 * log 0 (F.kl_div treats it; Humbatova et al. 2020 'wrong loss calculation')",
    must=[need("non_finite", "loss", by=3)],
    may=AFTER_NAN,
)
def divergence_of_hard_labels(fixed: bool = False) -> Built:
    """Label smoothing was switched off: the loss is NaN from the first step, while gradients are finite and the net learns."""
    x, y = teacher()
    model = MLP(20, 40, 2, 4, act=nn.SiLU)
    opt = torch.optim.Adam(model.parameters(), lr=4e-3)
    return Built(model, opt, divergence, data.minibatches(x, soft_labels(y, fixed), 64, 120))


def focal(exponent: float):
    def loss(z: Tensor, y: Tensor) -> Tensor:
        p = z.softmax(-1).gather(1, y.unsqueeze(1)).squeeze(1)
        return -((1 - p).pow(exponent) * p.clamp(min=1e-6).log()).mean()

    return loss


@faulty(
    "fresh",
    "non_finite",
    "focal loss (Lin et al. 2017) with an exponent below 1: the slope of (1-p)^0.5 at p = 1 is infinite",
    must=[need("non_finite", "*", by=120)],
    may=AFTER_NAN,
    onset=1,
    tags=frozenset({"seed_dependent_step"}),
)
def focal_exponent_below_one(fixed: bool = False) -> Built:
    """Pictures of any brightness: as soon as a bright one has p = 1.0 exactly, the loss is finite and its gradient is not."""
    x, y = data.flat_glyphs(noise=0.15)
    x = x * 10 ** (1.5 * torch.rand(len(x), 1, generator=data.gen(200)) - 0.5)
    model = named(fc1=nn.Linear(64, 40), act=nn.LeakyReLU(), fc2=nn.Linear(40, 40), act2=nn.LeakyReLU(), out=nn.Linear(40, 10))
    return Built(
        model, torch.optim.Adam(model.parameters(), lr=4e-3), focal(2.0 if fixed else 0.5), data.minibatches(x, y, 50, 150)
    )


def binary(p: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy(p.squeeze(1), y)


@faulty(
    "fresh",
    "zero_gradient",
    "softmax over a single output (SO 'softmax with one neuron'; DeepFD, UMLAUT 'wrong activation of the last layer')",
    must=[need("zero_gradient|loss_stagnant|saturated|dead_units", "*", by=60)],
    may="zero_gradient loss_stagnant saturated dead_units not_updated vanishing_gradient update_ratio",
)
def softmax_over_one_output(fixed: bool = False) -> Built:
    """Two classes, one output, Softmax(dim=1): the answer is always 1, its gradient always 0."""
    x, y = data.circles()
    model = named(fc1=nn.Linear(2, 24), act1=nn.Tanh(), fc2=nn.Linear(24, 24), act2=nn.Tanh(), out=nn.Linear(24, 1))
    model.add_module("squash", nn.Sigmoid() if fixed else nn.Softmax(1))
    return Built(model, torch.optim.Adam(model.parameters(), lr=1e-2), binary, data.minibatches(x, y.float(), 50, 130))


def error_rate(z: Tensor, y: Tensor) -> Tensor:
    return (z.argmax(1) != y).float().mean().requires_grad_()


@faulty(
    "fresh",
    "zero_gradient",
    "the metric minimised in place of a loss; 'does not require grad' silenced by requires_grad_() (forum staple)",
    must=[need("zero_gradient|not_updated|loss_stagnant", "*", by=60)],
    may="zero_gradient not_updated loss_stagnant update_ratio dead_units",
)
def error_rate_as_loss(fixed: bool = False) -> Built:
    """The error rate is a count: nothing ever gets a gradient."""
    x, y = waves()
    model = named(conv=nn.Conv1d(1, 12, 5, 2), act=nn.GELU(), flat=nn.Flatten(), fc=nn.Linear(168, 4))
    loss = CE if fixed else error_rate
    return Built(model, torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0), loss, data.minibatches(x, y, 40, 120))


class Summed(nn.Module):
    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        return (z - t).pow(2).sum()


@faulty(
    "fresh",
    "loss_unstable",
    "reduction='sum' at a rate found for 'mean' (Humbatova et al. 2020 'wrong loss reduction')",
    must=[need("loss_unstable|exploding_gradient|update_ratio|bad_scale|non_finite", "*", by=12)],
    may="exploding_gradient update_ratio loss_unstable bad_scale non_finite dead_units zero_gradient loss_stagnant saturated not_updated",
)
def summed_loss_at_the_rate_of_a_mean(fixed: bool = False) -> Built:
    """A sum over 64 samples and 64 pixels at lr 0.5: the effective rate is 4096 times what was meant."""
    x, _ = data.flat_glyphs()
    model = named(enc=nn.Linear(64, 32), act=nn.LeakyReLU(), dec=nn.Linear(32, 64))
    opt = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    return Built(model, opt, nn.MSELoss() if fixed else Summed(), data.minibatches(x, x, 64, 110))


@faulty(
    "fresh",
    "bad_scale",
    "binary cross-entropy on pixels 0..255 (autoencoder tutorials without ToTensor; SO 'negative loss BCE')",
    must=[need("loss_unstable|exploding_gradient|bad_scale|saturated", "*", by=140)],
    may="loss_unstable exploding_gradient bad_scale saturated update_ratio loss_stagnant vanishing_gradient dead_units zero_gradient",
    loss_ratio=0.9,
)
def cross_entropy_of_bytes(fixed: bool = False) -> Built:
    """Targets far beyond 1: the 'loss' is negative and falls without bound, the logits run away."""
    x, _ = data.flat_glyphs(noise=0.1)
    model = named(enc=nn.Linear(64, 32), act=nn.Tanh(), dec=nn.Linear(32, 64))
    target = x if fixed else (255 * x).round()
    opt = torch.optim.Adam(model.parameters(), lr=2e-2)
    return Built(model, opt, nn.BCEWithLogitsLoss(), data.minibatches(x - 0.5, target, 50, 150))


class Pairs(nn.Module):
    """Two views of a sample to points on the sphere."""

    def __init__(self):
        super().__init__()
        self.encoder = MLP(64, 64, 2, 16, act=nn.GELU)

    def forward(self, pair: Tensor) -> tuple[Tensor, Tensor]:
        z = F.normalize(self.encoder(pair), dim=-1)
        return z[:, 0], z[:, 1]


def info_nce(factor: float):
    def loss(z: tuple[Tensor, Tensor], index: Tensor) -> Tensor:
        return F.cross_entropy(factor * z[0] @ z[1].T, torch.arange(len(index)))

    return loss


def views(steps: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    x, _ = data.flat_glyphs(noise=0.35)
    g, out = data.gen(seed), []
    for a, _ in data.minibatches(x, x, 64, steps, seed):
        out.append((a.unsqueeze(1) + 0.15 * torch.randn(64, 2, 64, generator=g), torch.arange(64)))
    return out


@faulty(
    "fresh",
    "loss_stagnant",
    "InfoNCE multiplied by its temperature instead of divided (contrastive re-implementations; Chen et al. 2020)",
    must=[need("loss_stagnant", "*", by=170)],
    may="loss_stagnant",
)
def similarity_times_temperature(fixed: bool = False) -> Built:
    """Cosines times 0.07: all logits lie within 0.14, the loss stays at ln 64 whatever is learnt."""
    model = Pairs()
    opt = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Built(model, opt, info_nce(1 / 0.07 if fixed else 0.07), views(180, 201))


class Triple(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = init_linear(MLP(64, 48, 2, 8), he)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(F.normalize(self.embed(x), dim=-1).unbind(1))


def triples(steps: int, seed: int, own_class: bool) -> list[tuple[Tensor, Tensor]]:
    """Anchor, positive and negative - or what is taken for one."""
    x, y = data.flat_glyphs()
    g, out = data.gen(seed), []
    members = [(y == c).nonzero().squeeze(1) for c in range(10)]
    pick = lambda c: members[c][torch.randint(len(members[c]), (1,), generator=g)]
    for _ in range(steps):
        c = torch.randint(10, (48,), generator=g).tolist()
        shift = torch.randint(1, 10, (48,), generator=g).tolist()
        rows = [torch.cat([pick(a), pick(a), pick(a if own_class else (a + s) % 10)]) for a, s in zip(c, shift)]
        out.append((x[torch.stack(rows)], torch.zeros(48)))
    return out


def triplet(margin: float):
    return lambda z, _: F.relu((z[0] - z[1]).pow(2).sum(1) - (z[0] - z[2]).pow(2).sum(1) + margin).mean()


@faulty(
    "fresh",
    "loss_stagnant",
    "'negatives' drawn from the anchor's own class (sampler error in metric learning)",
    must=[need("loss_stagnant", "*", by=140)],
    may="loss_stagnant vanishing_gradient",
    tags=frozenset({"data"}),
)
def negatives_of_the_anchors_class(fixed: bool = False) -> Built:
    """Positive and negative come from the same class: the loss cannot fall below its margin."""
    model = Triple()
    return Built(model, torch.optim.Adam(model.parameters(), lr=1e-3), triplet(0.5), triples(150, 202, not fixed))


@faulty(
    "fresh",
    "zero_gradient",
    "margin subtracted instead of added in a triplet loss (Schroff et al. 2015, re-implemented)",
    must=[need("zero_gradient|loss_stagnant|not_updated", "*", by=60)],
    may="zero_gradient loss_stagnant not_updated dead_units update_ratio vanishing_gradient",
)
def margin_of_the_wrong_sign(fixed: bool = False) -> Built:
    """relu(d+ - d- - 4) on the unit sphere is zero for every triple there can be."""
    model = Triple()
    return Built(model, torch.optim.Adam(model.parameters(), lr=1e-3), triplet(0.5 if fixed else -4.0), triples(120, 203, False))


class Tagger(nn.Module):
    """Probabilities of a tag for each of 40 positions."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix = nn.Embedding(16, 24), nn.Conv1d(24, 32, 3, padding=1)
        self.act, self.out = nn.GELU(), nn.Linear(32, 4)

    def forward(self, t: Tensor) -> Tensor:
        h = self.act(self.mix(self.embed(t).transpose(1, 2)))
        return self.out(h.transpose(1, 2)).softmax(-1)


def likelihood(logarithm: bool):
    def loss(model: nn.Module, t: Tensor, y: Tensor) -> Tensor:
        p = model(t).gather(2, y.unsqueeze(2)).squeeze(2)
        return -p.log().mean() if logarithm else 1 - p.prod(1).mean()

    return loss


@faulty(
    "fresh",
    "update_ratio",
    "a likelihood as a product of probabilities, without the logarithm (1e-24 for 40 positions)",
    must=[need("update_ratio|not_updated|loss_stagnant|vanishing_gradient|zero_gradient", "*", by=100)],
    may="update_ratio not_updated loss_stagnant vanishing_gradient zero_gradient dead_units",
    train=own_loss(),
)
def likelihood_without_logarithm(fixed: bool = False) -> Built:
    """The product of 40 probabilities of 1/4 and its gradient are 1e-24: nothing moves under SGD."""
    g = data.gen(204)
    model, batches = Tagger(), []
    for _ in range(120):
        t = torch.randint(16, (32, 40), generator=g)
        batches.append((t, (t + t.roll(1, 1)) % 4))
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9), likelihood(fixed), batches)
