"""Healthy programs on images: dense and deep residual nets, masking, detection, unusual but sound initial weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import data
from ..core import Built, healthy, scheduled_loop, warmup
from ..more._loops import cosine, own_loss, shapes
from ..more._programs import named
from ..nets import ConvNet, ResNet, he, init_linear

CE = nn.CrossEntropyLoss()


class Dense(nn.Module):
    """A dense block: every layer sees all earlier ones."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + 6 * i) for i in range(5))
        self.convs = nn.ModuleList(nn.Conv2d(8 + 6 * i, 6, 3, 1, 1, bias=False) for i in range(5))
        self.fc = nn.Linear(4 * 38, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return self.fc(F.adaptive_avg_pool2d(x, 2).flatten(1))


@healthy("fresh", "Huang et al. 2017 (DenseNet)", loss_ratio=0.75)
def densely_connected() -> Built:
    """Features are concatenated, not added: late layers see many early channels and use few."""
    x, y, _ = shapes()
    model = Dense()
    opt = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, nesterov=True, weight_decay=1e-4)
    return Built(model, opt, CE, data.minibatches(x, y, 32, 130))


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(1, 32, 2, 2)
        self.norm1, self.norm2 = (nn.ModuleList(nn.LayerNorm(32) for _ in range(3)) for _ in range(2))
        self.tokens = nn.ModuleList(nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16)) for _ in range(3))
        self.channels = nn.ModuleList(nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(3))
        self.head = nn.Linear(32, 10)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        for n1, t, n2, c in zip(self.norm1, self.tokens, self.norm2, self.channels):
            x = x + t(n1(x).transpose(1, 2)).transpose(1, 2)
            x = x + c(n2(x))
        return self.head(x.mean(1))


@healthy("fresh", "Tolstikhin et al. 2021 (MLP-Mixer; its head starts at zero)", train=scheduled_loop(cosine(130, 15)))
def mixer_head_starts_at_zero() -> Built:
    """All layers but the head have no gradient at all in the first step."""
    x, y = data.glyphs(seed=8)
    return Built(model := Mixer(), torch.optim.AdamW(model.parameters(), lr=5e-3), CE, data.minibatches(x, y, 50, 130))


class MaskedPatches(nn.Module):
    """Encodes half of the patches, decodes all of them."""

    def __init__(self):
        super().__init__()
        self.embed, self.pos = nn.Linear(4, 32), nn.Parameter(0.1 * torch.randn(16, 32))
        self.mix = nn.TransformerEncoderLayer(32, 2, 64, 0.0, batch_first=True, norm_first=True)
        self.blank = nn.Parameter(torch.zeros(32))
        self.decode = nn.TransformerEncoderLayer(32, 2, 64, 0.0, batch_first=True, norm_first=True)
        self.out = nn.Linear(32, 4)

    def forward(self, p: Tensor, keep: Tensor) -> Tensor:
        seen = self.mix(self.embed(p[:, keep]) + self.pos[keep])
        every = self.blank.expand(len(p), 16, 32).clone()
        every[:, keep] = seen
        return self.out(self.decode(every + self.pos))


def reconstruct_hidden(model: nn.Module, p: Tensor, order: Tensor) -> Tensor:
    return F.mse_loss(model(p, order[:8])[:, order[8:]], p[:, order[8:]])


@healthy("fresh", "He et al. 2022 (masked autoencoder)", train=own_loss(cosine(200, 10)), loss_ratio=0.85)
def masked_patches() -> Built:
    """Eight of sixteen patches are hidden, and only they count in the loss."""
    x, _ = data.glyphs(noise=0.1)
    p = F.unfold(x, 2, stride=2).transpose(1, 2)
    p = (p - p.mean()) / p.std()
    g = data.gen(221)
    model = MaskedPatches()
    batches = [(a, torch.randperm(16, generator=g)) for a, _ in data.minibatches(p, p, 40, 200)]
    return Built(model, torch.optim.AdamW(model.parameters(), lr=8e-3, betas=(0.9, 0.95)), reconstruct_hidden, batches)


def penalty_reduced_focal(z: Tensor, t: Tensor) -> Tensor:
    p = z.sigmoid().clamp(1e-4, 1 - 1e-4)
    hit = t == 1
    loss = torch.where(hit, (1 - p).square() * p.log(), (1 - t).pow(4) * p.square() * (1 - p).log())
    return -loss.sum() / hit.sum()


@healthy("fresh", "Zhou et al. 2019 (CenterNet: heat map with a focal loss, bias -2.19)", loss_ratio=0.6)
def centre_heat_map() -> Built:
    """One positive among 144 pixels; sigmoid outputs are near zero nearly everywhere, as they should be."""
    g = data.gen(222)
    pixel = torch.arange(12.0)
    batches = []
    for _ in range(110):
        c = torch.randint(2, 10, (24, 2, 1, 1), generator=g)
        d = (pixel.view(1, 12, 1) - c[:, 0]).square() + (pixel.view(1, 1, 12) - c[:, 1]).square()
        t = (-d / 2).exp().unsqueeze(1)
        batches.append((0.9 * (d <= 4).float().unsqueeze(1) + 0.2 * torch.randn(24, 1, 12, 12, generator=g), t))
    model = named(
        conv1=nn.Conv2d(1, 12, 3, 1, 1),
        bn1=nn.BatchNorm2d(12),
        act1=nn.ReLU(),
        conv2=nn.Conv2d(12, 12, 3, 1, 1),
        act2=nn.ReLU(),
        heat=nn.Conv2d(12, 1, 1),
    )
    nn.init.constant_(model.heat.bias, -2.19)
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-3), penalty_reduced_focal, batches)


class ConvNext(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 2, 2)
        self.depth = nn.ModuleList(nn.Conv2d(24, 24, 5, 1, 2, groups=24) for _ in range(3))
        self.norm = nn.ModuleList(nn.LayerNorm(24) for _ in range(3))
        self.up = nn.ModuleList(nn.Linear(24, 64) for _ in range(3))
        self.down = nn.ModuleList(nn.Linear(64, 24) for _ in range(3))
        self.gamma = nn.ParameterList(torch.full((24,), 1e-6) for _ in range(3))
        self.last, self.head = nn.LayerNorm(24), nn.Linear(4 * 24, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for depth, norm, up, down, gamma in zip(self.depth, self.norm, self.up, self.down, self.gamma):
            h = norm(depth(x).permute(0, 2, 3, 1))
            x = x + (gamma * down(F.gelu(up(h)))).permute(0, 3, 1, 2)
        x = self.last(F.adaptive_avg_pool2d(x, 2).permute(0, 2, 3, 1))
        return self.head(x.flatten(1))


@healthy("fresh", "Liu et al. 2022 (ConvNeXt: layer scale 1e-6)", train=scheduled_loop(warmup(10)), loss_ratio=0.75)
def convnext_layer_scale() -> Built:
    """Branches start with a factor of 1e-6, and their layers with gradients that much smaller; Adam takes them along."""
    x, y, _ = shapes()
    return Built(model := ConvNext(), torch.optim.AdamW(model.parameters(), lr=4e-3), CE, data.minibatches(x, y, 32, 120))


def cut_and_mix(model: nn.Module, x: Tensor, y: Tensor, z: Tensor, share: Tensor) -> Tensor:
    out = model(x)
    return share * F.cross_entropy(out, y) + (1 - share) * F.cross_entropy(out, z)


@healthy("fresh", "Yun et al. 2019 (CutMix)", train=own_loss(), loss_ratio=0.75, requires=("sklearn",))
def cutmix_digits() -> Built:
    """Images of two digits with two labels: the loss cannot come near zero and jumps with the share of each."""
    x, y = data.sk_digits()
    g = data.gen(223)
    batches = []
    for a, b in data.minibatches(x.view(-1, 1, 8, 8) / 16, y, 50, 130):
        w = int(torch.randint(0, 5, (1,), generator=g))
        other = torch.randperm(50, generator=g)
        a = a.clone()
        a[:, :, :, :w] = a[other][:, :, :, :w]
        batches.append((a, b, b[other], torch.tensor(1 - w / 8)))
    model = ConvNet(16, 3, 10, norm=True)
    return Built(model, torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.05), cut_and_mix, batches)


class Scaled(nn.Conv2d):
    """Weight standardisation with a learnt gain."""

    def __init__(self, c_in: int, c: int):
        super().__init__(c_in, c, 3, 1, 1)
        self.gain = nn.Parameter(torch.ones(c, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = self.gain * (w - w.mean((1, 2, 3), keepdim=True)) / (w.var((1, 2, 3), keepdim=True) * w[0].numel() + 1e-4).sqrt()
        return F.conv2d(x, w, self.bias, 1, 1)


class NormFree(nn.Module):
    def __init__(self, blocks: int = 5):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.conv1 = nn.ModuleList(Scaled(16, 16) for _ in range(blocks))
        self.conv2 = nn.ModuleList(Scaled(16, 16) for _ in range(blocks))
        self.skip = nn.Parameter(torch.zeros(blocks))
        self.fc = nn.Linear(64, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i, (a, b) in enumerate(zip(self.conv1, self.conv2)):
            h = 1.7 * F.gelu(x / (1 + 0.04 * i) ** 0.5)
            x = x + 0.2 * self.skip[i] * b(1.7 * F.gelu(a(h)))
        return self.fc(F.adaptive_avg_pool2d(x, 2).flatten(1))


@healthy("fresh", "Brock et al. 2021 (NFNet: scaled weight standardisation, SkipInit of De & Smith 2020)", loss_ratio=0.75)
def normaliser_free_skip_init() -> Built:
    """Branches are multiplied by a scalar that starts at exactly 0: their kernels have no gradient in the first step."""
    x, y, _ = shapes()
    model = NormFree()
    return Built(model, torch.optim.Adam(model.parameters(), lr=6e-3), CE, data.minibatches(x, y, 32, 110))


@healthy("fresh", "Xiao et al. 2018 (delta-orthogonal init: plain tanh convnets of any depth train)", loss_ratio=0.8)
def delta_orthogonal_tanh() -> Built:
    """Sixteen tanh convolutions without normalisation; all of a kernel but its centre starts at zero."""
    x, y = data.glyphs(seed=9)
    model = ConvNet(12, 16, 10, norm=False, act=nn.Tanh)
    for block in model.features:
        w = block[0].weight
        nn.init.zeros_(w)
        with torch.no_grad():
            centre = torch.empty(w.shape[:2])
            nn.init.orthogonal_(centre, 1.05)
            w[:, :, 1, 1] = centre
        nn.init.zeros_(block[0].bias)
    opt = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return Built(model, opt, CE, data.minibatches(x - 0.5, y, 32, 110))


@healthy("fresh", "Frankle & Carbin 2019 (a lottery ticket: nine weights in ten are fixed at zero)")
def lottery_ticket() -> Built:
    """A mask zeroes 90 % of all weights and, by a hook, of all gradients, from the start."""
    x, y = data.flat_glyphs(seed=10)
    model = init_linear(
        named(fc1=nn.Linear(64, 128), act1=nn.ReLU(), fc2=nn.Linear(128, 96), act2=nn.ReLU(), out=nn.Linear(96, 10)), he
    )
    g = data.gen(224)
    for layer in (model.fc1, model.fc2):
        mask = (torch.rand(layer.weight.shape, generator=g) < 0.1).float()
        layer.weight.data.mul_(mask * 3)
        layer.weight.register_hook(lambda grad, mask=mask: grad * mask)
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), CE, data.minibatches(x, y, 60, 140))


@healthy("fresh", "Smith et al. 2018 (grow the batch instead of lowering the rate)", loss_ratio=0.3)
def batch_grows_eightfold() -> Built:
    """Batches of 16, then 32, 64, 128: the loss becomes calm in stages, and stays where it is."""
    x, y = data.glyphs(seed=11)
    batches = [b for n, s in ((16, 60), (32, 30), (64, 20), (128, 12)) for b in data.minibatches(x, y, n, s, seed=n)]
    model = ResNet(8, 2, 10)
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), CE, batches)
