"""Held-out healthy programs, part A: vision nets, activations, norms, output losses.  Nothing may be reported."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from .. import data
from ..core import Built, clipped_loop, healthy, scheduled_loop
from ._loops import accuracy, cosine, own_loss, picks, seeded, shapes

CE = nn.CrossEntropyLoss()


# ------------------------------------------------------------- residual nets


class Bottleneck(nn.Module):
    def __init__(self, cin: int, c: int, stride: int):
        super().__init__()
        mid = c // 2
        self.body = nn.Sequential(
            nn.Conv2d(cin, mid, 1, bias=False),
            nn.BatchNorm2d(mid),
            nn.ReLU(inplace=True),
            nn.Conv2d(mid, mid, 3, stride, 1, bias=False),
            nn.BatchNorm2d(mid),
            nn.ReLU(inplace=True),
            nn.Conv2d(mid, c, 1, bias=False),
            nn.BatchNorm2d(c),
        )
        nn.init.zeros_(self.body[-1].weight)
        self.down = nn.Sequential(nn.Conv2d(cin, c, 1, stride, bias=False), nn.BatchNorm2d(c)) if stride > 1 or cin != c else None

    def forward(self, x):
        return F.relu(self.body(x) + (x if self.down is None else self.down(x)))


def decay_groups(model: nn.Module, wd: float) -> list[dict]:
    """Weight decay for matrices and kernels only."""
    ps = list(model.parameters())
    return [
        {"params": [p for p in ps if p.dim() > 1], "weight_decay": wd},
        {"params": [p for p in ps if p.dim() <= 1], "weight_decay": 0.0},
    ]


@healthy("more", "Goyal et al. 2017 (ResNet, zero-initialised last BN gamma)", train=scheduled_loop(cosine(140, warm=10)))
def resnet_zero_gamma() -> Built:
    """Bottleneck ResNet: at step 0 every residual branch is zero and its inner convolutions get no gradient."""
    x, y, _ = shapes()
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        Bottleneck(16, 16, 1),
        Bottleneck(16, 32, 2),
        Bottleneck(32, 32, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 6),
    )
    for m in model.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
    opt = torch.optim.SGD(decay_groups(model, 5e-4), lr=0.1, momentum=0.9, nesterov=True)
    return Built(model, opt, CE, picks((x, y), 32, 140))


class FixupBlock(nn.Module):
    def __init__(self, c: int, total: int):
        super().__init__()
        self.b1, self.b2, self.b3, self.b4 = (nn.Parameter(torch.zeros(1)) for _ in range(4))
        self.scale = nn.Parameter(torch.ones(1))
        self.conv1, self.conv2 = (nn.Conv2d(c, c, 3, padding=1, bias=False) for _ in range(2))
        nn.init.normal_(self.conv1.weight, std=math.sqrt(2 / (c * 9)) * total**-0.5)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x):
        h = F.relu(self.conv1(x + self.b1) + self.b2)
        return F.relu(x + self.conv2(h + self.b3) * self.scale + self.b4)


class FixupNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        nn.init.kaiming_normal_(self.stem.weight, nonlinearity="relu")
        self.blocks = nn.ModuleList(FixupBlock(16, 5) for _ in range(5))
        self.fc = nn.Linear(16 * 9, 6)
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x):
        x = F.relu(self.stem(x))
        for b in self.blocks:
            x = b(x)
        return self.fc(F.avg_pool2d(x, 2).flatten(1))


@healthy("more", "Zhang, Dauphin & Ma 2019 (Fixup)", train=scheduled_loop(cosine(200)))
def fixup_net() -> Built:
    """No norm; last conv of each branch and the classifier start at zero (nothing below it learns at step 0)."""
    x, y, _ = shapes()
    model = FixupNet()
    scalars = [p for p in model.parameters() if p.numel() == 1]
    rest = [p for p in model.parameters() if p.numel() > 1]
    opt = torch.optim.SGD([{"params": rest}, {"params": scalars, "lr": 0.005}], lr=0.05, momentum=0.9)
    return Built(model, opt, CE, picks((x, y), 32, 200))


class ReZeroLayer(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(()))
        self.fc1, self.fc2 = nn.Linear(d, d), nn.Linear(d, d)

    def forward(self, x):
        return x + self.alpha * self.fc2(F.gelu(self.fc1(x)))


@healthy("more", "Bachlechner et al. 2020 (ReZero)")
def rezero_deep() -> Built:
    """16 residual layers whose gates start at exactly zero; Adamax."""
    x, y = data.flat_glyphs(seed=21)
    model = nn.Sequential(nn.Linear(64, 48), *[ReZeroLayer(48) for _ in range(16)], nn.Linear(48, 10))
    return Built(model, torch.optim.Adamax(model.parameters(), lr=4e-3), CE, picks((x - 0.5, y), 50, 150))


class Deep15(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp = nn.Linear(8, 12)
        self.layers = nn.ModuleList(nn.Linear(12, 12) for _ in range(15))
        self.out = nn.Linear(12, 1)
        for m in self.layers:
            nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
            nn.init.zeros_(m.bias)

    def forward(self, x):
        x = self.inp(x)
        for m in self.layers:
            x = x + F.leaky_relu(m(x), 0.1) / 15**0.5
        return self.out(x)


@healthy("more", "deep and narrow, He initialisation, residual branches scaled by depth^-1/2")
def deep_narrow_residual() -> Built:
    """15 leaky ReLU layers of width 12 without normalisation; Adam; Huber loss."""
    x, y = data.smooth_regression(seed=5)
    model = Deep15()
    return Built(model, torch.optim.Adam(model.parameters(), lr=2e-3), nn.HuberLoss(), picks((x, y), 64, 300))


class DropPath(nn.Module):
    """Residual block skipped as a whole with probability p during training."""

    def __init__(self, c: int, p: float):
        super().__init__()
        self.p = p
        self.body = nn.Sequential(
            nn.Conv2d(c, c, 3, padding=1, bias=False),
            nn.BatchNorm2d(c),
            nn.ReLU(),
            nn.Conv2d(c, c, 3, padding=1, bias=False),
            nn.BatchNorm2d(c),
        )

    def forward(self, x):
        if self.training and torch.rand(()).item() < self.p:
            return x
        return F.relu(x + self.body(x))


@healthy(
    "more", "Huang et al. 2016 (stochastic depth)", train=scheduled_loop(lambda o: torch.optim.lr_scheduler.StepLR(o, 50, 0.3))
)
def stochastic_depth() -> Built:
    """Whole blocks are skipped at random (up to half of the steps): their gradients are None then."""
    x, y = data.glyphs(seed=22)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        *[DropPath(16, p) for p in (0.1, 0.2, 0.35, 0.5)],
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9), CE, picks((x, y), 32, 160))


# ------------------------------------------------------------------ conv nets


class UNet(nn.Module):
    def __init__(self, c: int = 8):
        super().__init__()

        def pair(a, b):
            return nn.Sequential(
                nn.Conv2d(a, b, 3, padding=1),
                nn.BatchNorm2d(b),
                nn.ReLU(),
                nn.Conv2d(b, b, 3, padding=1),
                nn.BatchNorm2d(b),
                nn.ReLU(),
            )

        self.enc1, self.enc2, self.mid = pair(3, c), pair(c, 2 * c), pair(2 * c, 4 * c)
        self.up2, self.up1 = nn.ConvTranspose2d(4 * c, 2 * c, 2, 2), nn.ConvTranspose2d(2 * c, c, 2, 2)
        self.dec2, self.dec1 = pair(4 * c, 2 * c), pair(2 * c, c)
        self.out = nn.Conv2d(c, 1, 1)

    def forward(self, x):
        a = self.enc1(x)
        b = self.enc2(F.max_pool2d(a, 2))
        m = self.mid(F.max_pool2d(b, 2))
        d = self.dec2(torch.cat([self.up2(m), b], 1))
        return self.out(self.dec1(torch.cat([self.up1(d), a], 1)))


def bce_dice(logits, mask):
    p = logits.sigmoid()
    dice = 1 - (2 * (p * mask).sum((1, 2, 3)) + 1) / (p.sum((1, 2, 3)) + mask.sum((1, 2, 3)) + 1)
    return F.binary_cross_entropy_with_logits(logits, mask) + dice.mean()


@healthy("more", "Ronneberger et al. 2015 (U-Net), BCE + Dice", loss_ratio=0.3)
def unet_segmentation() -> Built:
    """Segmentation of shapes on 12x12 images, batch of 8."""
    x, _, m = shapes()
    model = UNet()
    for mod in model.modules():
        if isinstance(mod, nn.Conv2d):
            nn.init.kaiming_normal_(mod.weight, nonlinearity="relu")
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-3), bce_dice, picks((x, m), 8, 120))


class InvertedResidual(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int, act):
        super().__init__()
        mid = 3 * cin
        self.expand = nn.Sequential(nn.Conv2d(cin, mid, 1, bias=False), nn.BatchNorm2d(mid), act())
        self.depthwise = nn.Sequential(nn.Conv2d(mid, mid, 3, stride, 1, groups=mid, bias=False), nn.BatchNorm2d(mid), act())
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(mid, mid // 2, 1), nn.SiLU(), nn.Conv2d(mid // 2, mid, 1), nn.Hardsigmoid()
        )
        self.project = nn.Sequential(nn.Conv2d(mid, cout, 1, bias=False), nn.BatchNorm2d(cout))
        self.same = stride == 1 and cin == cout

    def forward(self, x):
        h = self.depthwise(self.expand(x))
        h = self.project(h * self.squeeze(h))
        return x + h if self.same else h


@healthy(
    "more",
    "Howard et al. 2019 (MobileNetV3), RMSprop",
    train=scheduled_loop(lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.985)),
)
def mobilenet_squeeze_excite() -> Built:
    """Depthwise separable convolutions, ReLU6 and Hardswish, squeeze-and-excite with hard sigmoid."""
    x, y, _ = shapes()
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, 2, 1, bias=False),
        nn.BatchNorm2d(12),
        nn.Hardswish(),
        InvertedResidual(12, 12, 1, nn.ReLU6),
        InvertedResidual(12, 20, 2, nn.Hardswish),
        InvertedResidual(20, 20, 1, nn.Hardswish),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(20, 6),
    )
    return Built(
        model, torch.optim.RMSprop(model.parameters(), lr=1e-3, alpha=0.9, momentum=0.9, eps=1e-3), CE, picks((x, y), 48, 160)
    )


@healthy("more", "Wu & He 2018 (GroupNorm, small batches)")
def groupnorm_batch_of_4() -> Built:
    """GroupNorm ConvNet on batches of four images: a very noisy loss which falls; SGD with momentum."""
    x, y, _ = shapes()
    layers: list = []
    for a, b, s in ((3, 16, 1), (16, 16, 2), (16, 32, 2)):
        layers += [nn.Conv2d(a, b, 3, s, 1, bias=False), nn.GroupNorm(4, b), nn.LeakyReLU(0.1)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 9, 6))
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), CE, picks((x, y), 4, 500))


class Stylise(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, padding_mode="reflect"), nn.InstanceNorm2d(16, affine=True), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect"), nn.InstanceNorm2d(16, affine=True), nn.ReLU()
        )
        self.up = nn.Sequential(
            nn.Upsample(scale_factor=2),
            nn.Conv2d(19, 16, 3, padding=1),
            nn.InstanceNorm2d(16, affine=True),
            nn.ReLU(),
            nn.Conv2d(16, 3, 3, padding=1),
            nn.Tanh(),
        )

    def forward(self, x):
        h = self.down(x)
        h = h + self.body(h)
        h = self.up[0](h)
        for m in list(self.up)[1:]:
            h = m(torch.cat([h, x], 1)) if m is self.up[1] else m(h)
        return h


@healthy("more", "Johnson et al. 2016 (image transformation net, InstanceNorm)", loss_ratio=0.5)
def instance_norm_translation() -> Built:
    """Image-to-image net with a tanh output, L1 loss, Adam with beta1 0.5."""
    x, _, m = shapes()
    target = torch.tanh(1.5 * (m * x.flip(1) - (1 - m) * 0.4))
    model = Stylise()
    return Built(model, torch.optim.Adam(model.parameters(), lr=2e-3, betas=(0.5, 0.999)), nn.L1Loss(), picks((x, target), 12, 160))


@healthy("more", "Shi et al. 2016 (ESPCN), He et al. 2015 (PReLU)", loss_ratio=0.4)
def prelu_superresolution() -> Built:
    """Sub-pixel convolution and PReLU; mean squared error on images in [0, 1]."""
    x, _, _ = shapes()
    small = F.avg_pool2d(x, 2)
    model = nn.Sequential(
        nn.Conv2d(3, 24, 5, padding=2),
        nn.PReLU(24),
        nn.Conv2d(24, 12, 3, padding=1),
        nn.PReLU(12),
        nn.Conv2d(12, 12, 3, padding=1),
        nn.PixelShuffle(2),
    )
    return Built(model, torch.optim.Adam(model.parameters(), lr=2e-3), nn.MSELoss(), picks((small, x), 24, 200))


@healthy("more", "LeCun et al. 1998 (tanh LeNet, average pooling)", train=clipped_loop(5.0))
def lenet_tanh() -> Built:
    """LeNet with scaled tanh units and Xavier initialisation; plain SGD."""
    x, y, _ = shapes()
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(144, 60),
        nn.Tanh(),
        nn.Linear(60, 6),
    )
    for m in model.modules():
        if isinstance(m, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(m.weight, gain=5 / 3)
            nn.init.zeros_(m.bias)
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.1), CE, picks((x - 0.3, y), 32, 300))


@healthy(
    "more",
    "PyTorch MNIST example (Adadelta, dropout before the head)",
    train=scheduled_loop(lambda o: torch.optim.lr_scheduler.StepLR(o, 40, 0.7)),
)
def adadelta_convnet() -> Built:
    """The PyTorch example's net, scaled down: dropout 0.25 and 0.5, log-softmax and NLL, Adadelta lr 1."""
    x, y = data.glyphs(seed=23)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(64, 10),
        nn.LogSoftmax(1),
    )
    return Built(model, torch.optim.Adadelta(model.parameters(), lr=1.0), nn.NLLLoss(), picks((x, y), 50, 160))


@healthy("more", "BatchNorm as input normalisation")
def batchnorm_on_raw_pixels() -> Built:
    """Pixels 0..255 go straight into a BatchNorm: first activations are large on purpose, all later ones are not."""
    x, y = data.flat_glyphs(seed=24)
    model = nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, 80), nn.ReLU(), nn.BatchNorm1d(80), nn.Linear(80, 10))
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9), CE, picks(((255 * x).round(), y), 64, 150))


# --------------------------------------------------- activations and weights


def lecun(model: nn.Module) -> nn.Module:
    for m in model.modules():
        if isinstance(m, nn.Linear):
            nn.init.kaiming_normal_(m.weight, nonlinearity="linear")
            nn.init.zeros_(m.bias)
    return model


@healthy("more", "Klambauer et al. 2017 (SELU, AlphaDropout)")
def selu_alpha_dropout() -> Built:
    """Eight self-normalising layers with AlphaDropout, LeCun-normal initialisation, SGD with momentum."""
    x, y = data.flat_glyphs(seed=25)
    layers: list = []
    for i in range(8):
        layers += [nn.Linear(64, 64), nn.SELU(), nn.AlphaDropout(0.05)]
    model = lecun(nn.Sequential(*layers, nn.Linear(64, 10)))
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9), CE, picks((data.standardise(x), y), 64, 200))


class SineLayer(nn.Module):
    def __init__(self, a: int, b: int, omega: float, first: bool):
        super().__init__()
        self.lin, self.omega = nn.Linear(a, b), omega
        bound = 1 / a if first else math.sqrt(6 / a) / omega
        nn.init.uniform_(self.lin.weight, -bound, bound)

    def forward(self, x):
        return torch.sin(self.omega * self.lin(x))


@healthy("more", "Sitzmann et al. 2020 (SIREN)", loss_ratio=0.2)
def siren_image_fit() -> Built:
    """Sine activations with omega 30 fit one 24x24 image from its coordinates, full batch."""
    p = torch.linspace(-1, 1, 24)
    u, v = torch.meshgrid(p, p, indexing="ij")
    image = (torch.sin(7 * u) * torch.cos(5 * v) + (u**2 + v**2 < 0.3).float()).flatten().unsqueeze(1)
    xy = torch.stack([u.flatten(), v.flatten()], 1)
    model = nn.Sequential(
        SineLayer(2, 48, 30.0, True), SineLayer(48, 48, 30.0, False), SineLayer(48, 48, 30.0, False), nn.Linear(48, 1)
    )
    nn.init.uniform_(model[3].weight, -math.sqrt(6 / 48) / 30, math.sqrt(6 / 48) / 30)
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-4), nn.MSELoss(), [(xy, image)] * 250)


class Maxout(nn.Module):
    def __init__(self, a: int, b: int, k: int = 3):
        super().__init__()
        self.lin, self.k = nn.Linear(a, b * k), k

    def forward(self, x):
        return self.lin(x).view(len(x), -1, self.k).amax(-1)


def max_norm_loop(model, opt, loss_fn, batches, on_step) -> None:
    """The max-norm constraint of Goodfellow et al.: rows are clipped after each step."""
    for step, (x, y) in enumerate(batches):
        opt.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        opt.step()
        with torch.no_grad():
            for m in model.modules():
                if isinstance(m, nn.Linear):
                    m.weight.copy_(m.weight.renorm(2, 0, 1.9))
        on_step(step, loss.item())


@healthy("more", "Goodfellow et al. 2013 (Maxout, dropout, max-norm)", train=max_norm_loop)
def maxout_max_norm() -> Built:
    """Two maxout layers with dropout; weights are renormalised after every step."""
    x, y = data.flat_glyphs(seed=26)
    model = nn.Sequential(nn.Dropout(0.2), Maxout(64, 40), nn.Dropout(0.5), Maxout(40, 40), nn.Dropout(0.5), nn.Linear(40, 10))
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.7), CE, picks((x, y), 50, 200))


class HighwayLayer(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        self.h, self.gate = nn.Linear(d, d), nn.Linear(d, d)
        self.sigmoid = nn.Sigmoid()
        nn.init.constant_(self.gate.bias, -2.0)

    def forward(self, x):
        t = self.sigmoid(self.gate(x))
        return t * torch.tanh(self.h(x)) + (1 - t) * x


@healthy("more", "Srivastava et al. 2015 (highway networks, gate bias -2)")
def highway_negative_gate() -> Built:
    """Ten highway layers whose gates start nearly closed."""
    x, y = data.flat_glyphs(seed=27)
    model = nn.Sequential(nn.Linear(64, 40), *[HighwayLayer(40) for _ in range(10)], nn.Linear(40, 10))
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.08, momentum=0.9), CE, picks((x - 0.5, y), 50, 200))


class SignSTE(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w):
        return w.sign() * w.abs().mean()

    @staticmethod
    def backward(ctx, g):
        return g


class BinaryLinear(nn.Linear):
    def forward(self, x):
        return F.linear(x, SignSTE.apply(self.weight), self.bias)


def clip_latent(model, opt, loss_fn, batches, on_step) -> None:
    for step, (x, y) in enumerate(batches):
        opt.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        opt.step()
        with torch.no_grad():
            for m in model.modules():
                if isinstance(m, BinaryLinear):
                    m.weight.clamp_(-1, 1)
        on_step(step, loss.item())


@healthy("more", "Courbariaux et al. 2015 (BinaryConnect); Rastegari et al. 2016", train=clip_latent)
def binary_weights_hardtanh() -> Built:
    """Binarised weights with a straight-through estimator, BatchNorm, Hardtanh (partly in its flat part)."""
    x, y = data.flat_glyphs(seed=28)
    model = nn.Sequential(
        BinaryLinear(64, 96),
        nn.BatchNorm1d(96),
        nn.Hardtanh(),
        BinaryLinear(96, 96),
        nn.BatchNorm1d(96),
        nn.Hardtanh(),
        nn.Linear(96, 10),
    )
    return Built(model, torch.optim.Adam(model.parameters(), lr=3e-3), CE, picks((2 * x - 1, y), 50, 160))


class TopK(nn.Module):
    def __init__(self, k: int):
        super().__init__()
        self.k = k

    def forward(self, x):
        v, i = x.topk(self.k, -1)
        return torch.zeros_like(x).scatter(-1, i, F.relu(v))


class TopKAutoEncoder(nn.Module):
    def __init__(self, d: int, width: int, k: int):
        super().__init__()
        self.b_pre = nn.Parameter(torch.zeros(d))
        self.enc, self.topk, self.dec = nn.Linear(d, width), TopK(k), nn.Linear(width, d, bias=False)
        with torch.no_grad():
            self.dec.weight.copy_(F.normalize(torch.randn(d, width), dim=0))
            self.enc.weight.copy_(self.dec.weight.T)
            self.enc.bias.zero_()

    def forward(self, x):
        return self.dec(self.topk(self.enc(x - self.b_pre))) + self.b_pre


def sparse_codes(n: int, d: int, atoms: int, g: torch.Generator) -> torch.Tensor:
    basis = F.normalize(torch.randn(atoms, d, generator=data.gen(31)), dim=1)
    code = torch.rand(n, atoms, generator=g) * (torch.rand(n, atoms, generator=g) < 3 / atoms)
    return 3 * code @ basis


@healthy("more", "Gao et al. 2024 (top-k sparse autoencoder)", loss_ratio=0.5)
def topk_sparse_autoencoder() -> Built:
    """Only 4 of 64 units are active for any input: most activations are zero, every unit is used."""
    x = sparse_codes(3000, 24, 40, seeded())
    model = TopKAutoEncoder(24, 64, 4)
    return Built(model, torch.optim.Adam(model.parameters(), lr=3e-3), nn.MSELoss(), picks((x, x), 128, 250))


class SparseCoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc, self.act, self.dec = nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 24)

    def forward(self, x):
        return self.act(self.enc(x))


def l1_loss(model, x):
    h = model(x)
    return (model.dec(h) - x).pow(2).sum(1).mean() + 0.1 * h.abs().sum(1).mean()


@healthy("more", "L1-penalised sparse autoencoder (Bricken et al. 2023)", train=own_loss(), loss_ratio=0.6)
def l1_sparse_autoencoder() -> Built:
    """ReLU features with an L1 penalty become sparse because they should."""
    x = sparse_codes(3000, 24, 30, seeded())
    model = SparseCoder()
    return Built(model, torch.optim.Adam(model.parameters(), lr=3e-3), l1_loss, picks((x,), 100, 300))


@healthy("more", "very heavy dropout", loss_ratio=0.75)
def dropout_080() -> Built:
    """Dropout 0.8 on one wide layer: four of five gradients are zero in every step."""
    x, y = data.flat_glyphs(seed=29, noise=0.15)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Dropout(0.8), nn.Linear(256, 10))
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9), CE, picks((data.standardise(x), y), 40, 200))


@healthy("more", "wide and shallow", loss_ratio=0.4)
def wide_shallow() -> Built:
    """2048 hidden units, each of which moves little."""
    x, y = data.smooth_regression(d=4, seed=6)
    model = nn.Sequential(nn.Linear(4, 2048), nn.ReLU(), nn.Linear(2048, 1))
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-4), nn.MSELoss(), picks((x, y), 64, 300))


@healthy("more", "Saxe et al. 2014 (deep linear networks, orthogonal initialisation)", loss_ratio=0.05)
def deep_linear() -> Built:
    """Six linear layers without any nonlinearity learn a linear map."""
    g = seeded()
    w = torch.linalg.qr(torch.randn(16, 16, generator=data.gen(32)))[0] * torch.linspace(0.3, 1.7, 16)
    x = torch.randn(1000, 16, generator=g)
    model = nn.Sequential(*[nn.Linear(16, 16, bias=False) for _ in range(6)])
    for m in model:
        nn.init.orthogonal_(m.weight)
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9), nn.MSELoss(), picks((x, x @ w), 100, 300))


@healthy("more", "Xavier tanh network, plain SGD, small rate", loss_ratio=0.75)
def tanh_plain_sgd_small_rate() -> Built:
    """Three tanh layers, SGD without momentum at 0.02: slow and steady."""
    x, y = data.blobs(800, 10, 5, spread=1.5, seed=7)
    model = nn.Sequential(
        nn.Linear(10, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 5)
    )
    for m in model:
        if isinstance(m, nn.Linear):
            nn.init.xavier_normal_(m.weight)
            nn.init.zeros_(m.bias)
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.02), CE, picks((data.standardise(x), y), 40, 250))


class WeightNormed(nn.Module):
    def __init__(self):
        super().__init__()
        wn = parametrizations.weight_norm
        self.a, self.b, self.c = wn(nn.Linear(8, 64)), wn(nn.Linear(64, 64)), wn(nn.Linear(64, 1))

    def forward(self, x):
        return self.c(F.elu(self.b(F.elu(self.a(x)))))


@healthy("more", "Salimans & Kingma 2016 (weight normalisation)", loss_ratio=0.5)
def weight_norm_elu() -> Built:
    """Weight-normalised ELU net (parametrised weights), Adam."""
    x, y = data.smooth_regression(seed=8)
    model = WeightNormed()
    return Built(model, torch.optim.Adam(model.parameters(), lr=1e-2), nn.MSELoss(), picks((x, y), 64, 300))


# -------------------------------------------------------------- output losses


def mixup(model, x, y):
    lam = torch.distributions.Beta(0.4, 0.4).sample()
    perm = torch.randperm(len(x))
    out = model(lam * x + (1 - lam) * x[perm])
    return lam * F.cross_entropy(out, y, label_smoothing=0.1) + (1 - lam) * F.cross_entropy(out, y[perm], label_smoothing=0.1)


@healthy("more", "Szegedy et al. 2016 (label smoothing), Zhang et al. 2018 (mixup)", train=own_loss(cosine(220)), loss_ratio=0.7)
def mixup_label_smoothing() -> Built:
    """Mixup and label smoothing: the loss swings from batch to batch and levels off far above zero."""
    x, y = data.glyphs(seed=30, noise=0.1)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.GELU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10)
    )
    return Built(model, torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.05), mixup, picks((x, y), 64, 220))


def rare_labels(n: int, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    w = torch.randn(20, 12, generator=data.gen(33)) / 20**0.5
    x = torch.randn(n, 20, generator=g)
    return x, (x @ w > 1.9).float()


@healthy("more", "multi-label BCE with rare positives and prior-initialised biases", loss_ratio=0.6)
def multilabel_rare_positives() -> Built:
    """Twelve labels, each positive in 3 % of the samples; output biases start at the log odds."""
    x, y = rare_labels(3000, seeded())
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 12))
    nn.init.constant_(model[2].bias, math.log(0.03 / 0.97))
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-3), nn.BCEWithLogitsLoss(), picks((x, y), 100, 250))


def focal(logits, target, gamma: float = 2.0, alpha: float = 0.25):
    ce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    p = torch.sigmoid(logits)
    pt = p * target + (1 - p) * (1 - target)
    return ((alpha * target + (1 - alpha) * (1 - target)) * (1 - pt) ** gamma * ce).sum() / target.sum().clamp(min=1)


@healthy("more", "Lin et al. 2017 (focal loss, prior 0.01)", loss_ratio=0.6)
def focal_dense_detector() -> Built:
    """One positive cell per 36: a dense head with prior bias -4.6 under focal loss."""
    x, _, m = shapes(size=12)
    centre = F.avg_pool2d(m, 2).flatten(1).argmax(1)
    target = F.one_hot(centre, 36).float().view(-1, 1, 6, 6)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1),
        nn.GroupNorm(4, 24),
        nn.ReLU(),
        nn.Conv2d(24, 1, 3, padding=1),
    )
    nn.init.normal_(model[6].weight, std=0.01)
    nn.init.constant_(model[6].bias, -math.log(99))
    return Built(model, torch.optim.Adam(model.parameters(), lr=3e-3), focal, picks((x, target), 24, 250))


@healthy("more", "class imbalance with inverse-frequency weights", loss_ratio=0.6)
def weighted_ce_imbalance() -> Built:
    """Class frequencies 0.9, 0.08 and 0.02, weighted cross entropy: rare samples make large spikes in the gradient."""
    g = seeded()
    freq = torch.tensor([0.9, 0.08, 0.02])
    y = torch.multinomial(freq, 3000, True, generator=g)
    x = 1.6 * F.normalize(torch.randn(3, 6, generator=data.gen(34)), dim=1)[y] + 0.7 * torch.randn(3000, 6, generator=g)
    model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3))
    return Built(
        model,
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        nn.CrossEntropyLoss(weight=1 / freq / 10),
        picks((x, y), 64, 220),
    )


class Coral(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.Linear(32, 1, bias=False))
        self.cuts = nn.Parameter(torch.linspace(1.5, -1.5, 5))

    def forward(self, x):
        return self.trunk(x) + self.cuts


@healthy("more", "Cao et al. 2020 (CORAL ordinal regression)", loss_ratio=0.7)
def ordinal_coral() -> Built:
    """Six ordered classes, one shared score and five learnt thresholds."""
    x, s = data.smooth_regression(seed=9)
    level = torch.bucketize(s.squeeze(1), torch.tensor([-1.2, -0.5, 0.0, 0.5, 1.2]))
    y = (level.unsqueeze(1) > torch.arange(5)).float()
    model = Coral()
    return Built(model, torch.optim.Adam(model.parameters(), lr=1e-2), nn.BCEWithLogitsLoss(), picks((x, y), 64, 250))


class CountNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 32), nn.ELU(), nn.Linear(32, 1))

    def forward(self, x):
        return self.net(x).squeeze(1)


def poisson_gap(model):
    x, rate = poisson_data(400, data.gen(1))[::2]
    with torch.no_grad():
        return (model(x) - rate.log()).abs().mean().item()


def poisson_data(n, g):
    w = torch.randn(8, generator=data.gen(35)) / 8**0.5
    x = torch.randn(n, 8, generator=g)
    rate = torch.exp(1.5 + 0.8 * torch.sin(2 * x @ w))
    return x, torch.poisson(rate, generator=g), rate


@healthy("more", "Poisson regression (log link)", loss_ratio=None, progress=("error of the log rate", poisson_gap, "down"))
def poisson_counts() -> Built:
    """Poisson likelihood without its constant: the loss starts positive, becomes negative and stays noisy."""
    x, y, _ = poisson_data(3000, seeded())
    model = CountNet()
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-3), nn.PoissonNLLLoss(log_input=True), picks((x, y), 100, 250))


class QuantileNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 32), nn.Mish(), nn.Linear(32, 32), nn.Mish(), nn.Linear(32, 3))

    def forward(self, x):
        return self.net(x)


def pinball(out, y):
    q = torch.tensor([0.1, 0.5, 0.9])
    e = y - out
    return torch.maximum(q * e, (q - 1) * e).mean()


@healthy("more", "Koenker & Bassett 1978 (quantile regression, pinball loss)", loss_ratio=0.6, train=scheduled_loop(cosine(300)))
def pinball_quantiles() -> Built:
    """A piecewise linear loss: gradients do not shrink as the fit improves."""
    g = seeded()
    x = 4 * torch.rand(2000, 1, generator=g) - 2
    y = 2 * torch.sin(2 * x) + (0.1 + 0.2 * x.abs()) * torch.randn(2000, 1, generator=g)
    model = QuantileNet()
    return Built(model, torch.optim.NAdam(model.parameters(), lr=5e-3), pinball, picks((x, y), 100, 300))


def fgsm_loop(model, opt, loss_fn, batches, on_step) -> None:
    for step, (x, y) in enumerate(batches):
        x = x.clone().requires_grad_()
        g = torch.autograd.grad(loss_fn(model(x), y), x)[0]
        adv = (x + 0.08 * g.sign()).detach()
        opt.zero_grad()
        loss = loss_fn(model(adv), y)
        loss.backward()
        opt.step()
        on_step(step, loss.item())


@healthy("more", "Goodfellow et al. 2015; Madry et al. 2018 (adversarial training)", train=fgsm_loop)
def adversarial_training() -> Built:
    """Each step has two forward passes: one for the attack, one on the attacked images."""
    x, y = data.glyphs(seed=31, noise=0.1)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 24, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(384, 10)
    )
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4), CE, picks((x, y), 32, 180))


EVAL_SHAPES = shapes(300, 12, 77)


@healthy(
    "more",
    "progressive resizing (fast.ai)",
    loss_ratio=None,
    progress=("accuracy on 12x12 images", accuracy(lambda m, x: m(x), EVAL_SHAPES[0], EVAL_SHAPES[1]), "up"),
)
def progressive_resizing() -> Built:
    """Image size grows 8 -> 12 -> 16 during the run; the loss jumps at each change."""
    batches: list = []
    for size in (8, 12, 16):
        x, y, _ = shapes(600, size, size)
        batches += picks((x, y), 32, 60)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.SiLU(),
        nn.Conv2d(16, 24, 3, 2, 1, bias=False),
        nn.BatchNorm2d(24),
        nn.SiLU(),
        nn.AdaptiveMaxPool2d(3),
        nn.Flatten(),
        nn.Linear(216, 6),
    )
    return Built(model, torch.optim.Adam(model.parameters(), lr=4e-3), CE, batches)
