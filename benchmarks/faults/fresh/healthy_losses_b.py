"""Healthy programs whose losses, targets or labels are odd but right."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import data
from ..core import Built, healthy
from ..more._loops import accuracy, own_loss
from ..more._programs import named, waves
from ..nets import MLP, he, init_linear

CE = nn.CrossEntropyLoss()


def focal(z: Tensor, y: Tensor) -> Tensor:
    bce = F.binary_cross_entropy_with_logits(z, y, reduction="none")
    p = z.sigmoid()
    wrong = torch.where(y > 0.5, 1 - p, p)
    return (torch.where(y > 0.5, 0.25, 0.75) * wrong.pow(2) * bce).sum() / y.sum().clamp(min=1)


@healthy("fresh", "Lin et al. 2017 (RetinaNet): focal loss, prior bias at the last layer only", loss_ratio=0.6)
def focal_loss_with_prior() -> Built:
    """One pixel in fifty is positive; the last bias starts at -log(99) and nearly all pixels count for nothing."""
    g, batches = data.gen(260), []
    for _ in range(150):
        m = (torch.rand(16, 1, 12, 12, generator=g) < 0.02).float()
        bump = F.conv2d(m, torch.tensor([[[[0.3, 0.6, 0.3], [0.6, 1.0, 0.6], [0.3, 0.6, 0.3]]]]), padding=1)
        batches.append((bump + 0.15 * torch.randn(m.shape, generator=g), m))
    model = named(c1=nn.Conv2d(1, 12, 3, padding=1), a1=nn.LeakyReLU(), c2=nn.Conv2d(12, 12, 3, padding=1), a2=nn.LeakyReLU())
    model.add_module("score", nn.Conv2d(12, 1, 1))
    nn.init.normal_(model.score.weight, std=0.01)
    nn.init.constant_(model.score.bias, -4.6)
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-3), focal, batches)


@healthy(
    "fresh",
    "Szegedy et al. 2016 (label smoothing 0.3) with mixup (Zhang et al. 2018): the floor of the loss is high",
    loss_ratio=0.9,
)
def smoothed_and_mixed_labels() -> Built:
    """The loss levels off near 1.6 of 2.3, as it must: targets are blends of two classes and noise."""
    x, y = data.glyphs()
    g, batches = data.gen(261), []
    for a, b in data.minibatches(x, F.one_hot(y, 10).float(), 50, 200):
        w, other = 0.5 + 0.5 * torch.rand(1, generator=g).item(), torch.randperm(50, generator=g)
        batches.append((w * a + (1 - w) * a[other], w * b + (1 - w) * b[other]))
    model = named(conv=nn.Conv2d(1, 16, 3, 2, 1), act=nn.SiLU(), flat=nn.Flatten(), fc=nn.Linear(256, 10))
    return Built(model, torch.optim.AdamW(model.parameters(), lr=3e-3), nn.CrossEntropyLoss(label_smoothing=0.3), batches)


def coin(x: Tensor) -> Tensor:
    return (0.22 * torch.tanh(x[:, 0] - x[:, 1])).unsqueeze(1) + 0.5


def coin_error(model: nn.Module) -> float:
    x = torch.randn(500, 6, generator=data.gen(262))
    with torch.no_grad():
        return (model(x).sigmoid() - coin(x)).pow(2).mean().item()


@healthy(
    "fresh",
    "click-through and insurance claims: outcomes are nearly coin flips",
    loss_ratio=None,
    progress=("squared error of the probability", coin_error, "down"),
)
def nearly_coin_flips() -> Built:
    """The loss can fall from 0.70 to 0.64 only, about as much as it wavers between batches, while the probabilities become right."""
    g, batches = data.gen(263), []
    for _ in range(250):
        x = torch.randn(128, 6, generator=g)
        batches.append((x, (torch.rand(128, 1, generator=g) < coin(x)).float()))
    model = MLP(6, 24, 1, 1, act=nn.Tanh)
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-3), nn.BCEWithLogitsLoss(), batches)


class Angles(nn.Module):
    """ArcFace: cosines to class centres, with a margin for the right one."""

    def __init__(self):
        super().__init__()
        self.embed = MLP(64, 64, 1, 16, act=nn.PReLU)
        self.centres = nn.Parameter(torch.randn(10, 16))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.embed(x), dim=-1) @ F.normalize(self.centres, dim=-1).T


def arc_face(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    cosine = model(x).clamp(-1 + 1e-6, 1 - 1e-6)
    turned = (torch.acos(cosine) + 0.4 * F.one_hot(y, 10)).cos()
    return F.cross_entropy(30 * turned, y)


@healthy("fresh", "Deng et al. 2019 (ArcFace: margin 0.4, scale 30)", train=own_loss(), loss_ratio=0.6)
def arcface_scale_30() -> Built:
    """Logits are multiplied by 30 and the right one is handicapped: the loss starts at 15, far above ln 10."""
    x, y = data.flat_glyphs()
    model = Angles()
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), arc_face, data.minibatches(x - 0.5, y, 64, 180))


@healthy("fresh", "one-vs-rest tags, a positive in thirty; pos_weight 30", loss_ratio=0.7)
def rare_tags_with_pos_weight() -> Built:
    """Weighted binary cross-entropy over 40 tags: positives weigh 30 times, losses start above 1 and are uneven."""
    g = data.gen(264)
    x = torch.randn(1500, 32, generator=g)
    s = x @ torch.randn(32, 40, generator=g) / 32**0.5
    y = (s > 1.85).float()
    model = MLP(32, 64, 1, 40, act=nn.GELU)
    opt = torch.optim.AdamW(model.parameters(), lr=5e-3)
    return Built(model, opt, nn.BCEWithLogitsLoss(pos_weight=torch.full((40,), 30.0)), data.minibatches(x, y, 100, 200))


def pinball(z: Tensor, y: Tensor) -> Tensor:
    q = torch.tensor([0.02, 0.25, 0.5, 0.75, 0.98])
    return torch.maximum(q * (y - z), (q - 1) * (y - z)).mean()


@healthy("fresh", "Koenker & Bassett 1978 (quantile regression)", loss_ratio=0.75)
def five_quantiles() -> Built:
    """The pinball loss: gradients take two values per output and do not shrink towards the optimum."""
    x, y = data.smooth_regression(noise=0.4)
    model = MLP(8, 48, 2, 5, act=nn.SiLU)
    return Built(model, torch.optim.Adam(model.parameters(), lr=3e-3), pinball, data.minibatches(x, y, 80, 200))


def hinge(z: Tensor, y: Tensor) -> Tensor:
    right = z.gather(1, y.unsqueeze(1))
    return (F.relu(1 + z - right).sum(1) - 1).mean()


@healthy("fresh", "Crammer & Singer 2001 (multi-class hinge): margins are met one by one", loss_ratio=0.4)
def hinge_that_is_satisfied() -> Built:
    """Late in the run most samples have no gradient at all and some batches lose next to nothing."""
    x, y = data.blobs(n=900, d=6, classes=6, spread=3.0)
    model = init_linear(MLP(6, 32, 1, 6, act=nn.ReLU), he)
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.8), hinge, data.minibatches(x / 3, y, 32, 180))


def hardest(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y, reduction="none").topk(12).values.mean()


@healthy(
    "fresh",
    "Shrivastava et al. 2016 (online hard example mining)",
    loss_ratio=None,
    progress=("accuracy", accuracy(lambda m, x: m(x), *waves()), "up"),
)
def hardest_quarter_only() -> Built:
    """Only the worst 12 of 48 samples count: the reported loss is that of the worst and falls slowly."""
    x, y = waves()
    model = named(c1=nn.Conv1d(1, 16, 5, 2), a1=nn.GELU(), c2=nn.Conv1d(16, 16, 3, 2), a2=nn.GELU(), flat=nn.Flatten())
    model.add_module("fc", nn.Linear(96, 4))
    return Built(model, torch.optim.Adam(model.parameters(), lr=3e-3), hardest, data.minibatches(x, y, 48, 220))


class Preference(nn.Module):
    """A policy over 8 answers, and the frozen reference that it started from."""

    def __init__(self):
        super().__init__()
        self.policy = MLP(10, 32, 1, 8, act=nn.GELU)
        self.reference = copy.deepcopy(self.policy).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.policy(x).log_softmax(-1) - self.reference(x).log_softmax(-1)


def dpo(model: nn.Module, x: Tensor, better: Tensor, worse: Tensor) -> Tensor:
    r = model(x)
    return -F.logsigmoid(0.5 * (r.gather(1, better) - r.gather(1, worse))).mean()


@healthy("fresh", "Rafailov et al. 2023 (direct preference optimisation)", train=own_loss(), loss_ratio=0.85)
def preferences_against_reference() -> Built:
    """The loss starts at ln 2 exactly, half of the module is frozen, the rate is small."""
    g = data.gen(265)
    taste, batches = torch.randn(10, 8, generator=g), []
    for _ in range(200):
        x = torch.randn(64, 10, generator=g)
        two = torch.stack([torch.randperm(8, generator=g)[:2] for _ in range(64)])
        s = (x @ taste).gather(1, two) + 0.5 * torch.randn(64, 2, generator=g)
        order = s.argsort(1, descending=True)
        batches.append((x, two.gather(1, order[:, :1]), two.gather(1, order[:, 1:])))
    model = Preference()
    return Built(model, torch.optim.AdamW(model.policy.parameters(), lr=1e-3), dpo, batches)


class EnergyNet(nn.Module):
    """An unnormalised log density with its own constant."""

    def __init__(self):
        super().__init__()
        self.net = MLP(2, 48, 2, 1, act=nn.SiLU)
        self.log_z = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(1) - self.log_z


def noise_contrast(model: nn.Module, x: Tensor, noise: Tensor) -> Tensor:
    log_q = lambda t: -0.5 * (t / 2).pow(2).sum(1) - 3.2242
    return (F.softplus(log_q(x) - model(x)) + F.softplus(model(noise) - log_q(noise))).mean()


@healthy("fresh", "Gutmann & Hyvarinen 2010 (noise-contrastive estimation)", train=own_loss(), loss_ratio=0.75)
def noise_contrastive_density() -> Built:
    """An energy model told apart from noise; the normaliser is a parameter of its own."""
    g, batches = data.gen(266), []
    for _ in range(220):
        angle = 6.2832 * torch.rand(96, generator=g)
        x = 1.5 * torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * torch.randn(96, 2, generator=g)
        batches.append((x, 2 * torch.randn(96, 2, generator=g)))
    model = EnergyNet()
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-3), noise_contrast, batches)
