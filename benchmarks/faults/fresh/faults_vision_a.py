"""Faulty programs: convolutional nets, their normalisation and their pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from .. import data
from ..core import Built, faulty, need
from ..more._loops import shapes
from ..more._programs import named
from ..nets import ConvNet, he, init_linear

CE = nn.CrossEntropyLoss()


def separable(blocks: int, c: int, mode: str) -> nn.Sequential:
    """A stem, then depthwise and pointwise convolutions in turn."""
    parts: dict[str, nn.Module] = {"stem": nn.Conv2d(3, c, 3, 2, 1), "act": nn.LeakyReLU(0.1)}
    for i in range(blocks):
        parts[f"depth{i}"] = nn.Conv2d(c, c, 3, 1, 1, groups=c)
        parts[f"point{i}"] = nn.Conv2d(c, c, 1)
        parts[f"act{i}"] = nn.LeakyReLU(0.1)
    model = named(**parts, pool=nn.AdaptiveAvgPool2d(2), flat=nn.Flatten(), fc=nn.Linear(4 * c, 6))
    for name, m in model.named_children():
        if isinstance(m, nn.Conv2d):
            gain = "linear" if name.startswith("depth") else "leaky_relu"
            nn.init.kaiming_normal_(m.weight, 0.1, mode=mode if name.startswith("depth") else "fan_in", nonlinearity=gain)
            nn.init.zeros_(m.bias)
    return model


@faulty(
    "fresh",
    "bad_scale",
    "kaiming_normal_(mode='fan_out') on depthwise convolutions: fan_out ignores groups (pytorch#23854)",
    must=[need("bad_scale|vanishing_gradient|loss_stagnant", "*", by=80)],
    may="bad_scale vanishing_gradient loss_stagnant update_ratio not_updated",
    loss_ratio=0.85,
)
def depthwise_fan_out(fixed: bool = False) -> Built:
    """Each depthwise layer is sqrt(24) times too small: five of them leave 3e-4 of the signal."""
    x, y, _ = shapes()
    model = separable(5, 24, "fan_in" if fixed else "fan_out")
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9), CE, data.minibatches(x, y, 32, 140))


class PerImage(nn.Module):
    """Standardises every image by its own mean and deviation."""

    def __init__(self, eps: float):
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean((1, 2, 3), keepdim=True)) / (x.std((1, 2, 3), keepdim=True) + self.eps)


@faulty(
    "fresh",
    "non_finite",
    "per-image standardisation without the lower bound on the deviation (tf.image.per_image_standardization has one)",
    must=[need("non_finite", "*", by=36)],
    may="zero_gradient loss_stagnant not_updated loss_unstable update_ratio exploding_gradient dead_units",
    onset=34,
)
def blank_frame_standardised(fixed: bool = False) -> Built:
    """One frame of step 34 is black: 0/0 in the first module, NaN everywhere after it."""
    x, y = data.glyphs(seed=4)
    batches = []
    for s, (a, b) in enumerate(data.minibatches(x, y, 48, 110)):
        if s == 34:
            a = a.clone()
            a[11] = 0.0
        batches.append((a, b))
    model = named(
        level=PerImage(1e-4 if fixed else 0.0),
        conv1=nn.Conv2d(1, 12, 3, padding=1),
        act1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(12, 24, 3, padding=1),
        act2=nn.ReLU(),
        pool2=nn.MaxPool2d(2),
        flat=nn.Flatten(),
        fc=nn.Linear(96, 10),
    )
    return Built(model, torch.optim.AdamW(model.parameters(), lr=3e-3), CE, batches)


@faulty(
    "fresh",
    "zero_gradient",
    "clamp(0, 1) on the output while the targets are bytes (SO 'autoencoder returns a white image')",
    must=[need("zero_gradient|saturated|loss_stagnant|dead_units", "*", by=110)],
    may="zero_gradient saturated loss_stagnant dead_units not_updated bad_scale vanishing_gradient update_ratio exploding_gradient",
)
def clamped_output_byte_targets(fixed: bool = False) -> Built:
    """Targets reach 255, outputs are clamped at 1: soon all are at the limit, with a gradient of exactly zero."""
    x, _ = data.glyphs(noise=0.1)
    target = x if fixed else 10 + 245 * x
    model = named(
        conv1=nn.Conv2d(1, 16, 3, padding=1),
        act1=nn.SiLU(),
        conv2=nn.Conv2d(16, 16, 3, padding=1),
        act2=nn.SiLU(),
        out=nn.Conv2d(16, 1, 3, padding=1),
        clip=nn.Hardtanh(0.0, 1.0),
    )
    nn.init.constant_(model.out.bias, 0.5)
    noisy = x + 0.2 * torch.randn(x.shape, generator=data.gen(201))
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-3), nn.MSELoss(), data.minibatches(noisy, target, 40, 130))


@faulty(
    "fresh",
    "loss_stagnant",
    "ToTensor() scales to [0, 1] and the code divides by 255 again, twice (forum staple)",
    must=[need("loss_stagnant|bad_scale|vanishing_gradient", "*", by=110)],
    may="loss_stagnant bad_scale vanishing_gradient update_ratio not_updated",
    tags=frozenset({"data"}),
)
def divided_by_255_twice(fixed: bool = False) -> Built:
    """Pixels of 1e-5: the convolutions see their biases only, their kernels get gradients 1e-5 of the usual."""
    x, y = data.glyphs(seed=5)
    model = init_linear(ConvNet(12, 3, 10, norm=False, act=nn.GELU), he, bias=None)
    x = x if fixed else x / 255 / 255
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), CE, data.minibatches(x, y, 50, 140))


@faulty(
    "fresh",
    "not_updated",
    "weight_norm applied after the optimizer was built: it replaces the parameters (PyTorch documentation, parametrizations)",
    must=[need("not_updated", "conv1 conv1.* conv2 conv2.*", by=20)],
    may="not_updated zero_gradient update_ratio stale_gradient exploding_gradient",
)
def weight_norm_after_optimizer(fixed: bool = False) -> Built:
    """The optimizer holds the old kernels; length and direction of the new ones get gradients (never cleared) and stay put."""
    x, y, _ = shapes()
    model = named(
        conv1=nn.Conv2d(3, 16, 3, 2, 1),
        act1=nn.ELU(),
        conv2=nn.Conv2d(16, 24, 3, 2, 1),
        act2=nn.ELU(),
        flat=nn.Flatten(),
        fc=nn.Linear(216, 6),
    )

    def reparametrise() -> None:
        parametrizations.weight_norm(model.conv1)
        parametrizations.weight_norm(model.conv2)

    if fixed:
        reparametrise()
    opt = torch.optim.Adam(model.parameters(), lr=8e-3)
    if not fixed:
        reparametrise()
    return Built(model, opt, CE, data.minibatches(x, y, 32, 140))


@faulty(
    "fresh",
    "zero_gradient",
    "zero-initialised gamma (Goyal et al. 2017) in a net that has no shortcuts",
    must=[need("zero_gradient|dead_units|loss_stagnant", "*", by=60)],
    may="zero_gradient dead_units loss_stagnant not_updated bad_scale vanishing_gradient update_ratio",
    requires=("sklearn",),
)
def zero_gamma_without_shortcut(fixed: bool = False) -> Built:
    """The last batch norm outputs zero into a ReLU, whose slope at zero is zero: nothing but the read-out's bias ever learns."""
    x, y = data.sk_digits()
    model = ConvNet(16, 3, 10, norm=True)
    if not fixed:
        nn.init.zeros_(model.features[2][1].weight)
    opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    return Built(model, opt, CE, data.minibatches(x.view(-1, 1, 8, 8) / 16, y, 64, 110))
