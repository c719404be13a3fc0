"""Data shared by the held-out faulty programs (no cases in here)."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn

from .. import data


@functools.cache
def teacher(n: int = 800, d: int = 20, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Tabular classification: Gaussian features, labels from a random linear + quadratic teacher."""
    g = data.gen(seed + 900)
    x = torch.randn(n, d, generator=g)
    a, b = torch.randn(d, classes, generator=g), torch.randn(d, classes, generator=g)
    s = x @ a + 0.4 * (x**2 - 1) @ b
    return x, s.argmax(1)


@functools.cache
def waves(n: int = 640, length: int = 32, classes: int = 4, noise: float = 0.3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noisy sinusoids [n,1,length]; the class is the frequency."""
    g = data.gen(seed + 901)
    y = torch.randint(classes, (n,), generator=g)
    t = torch.linspace(0, 2 * math.pi, length)
    phase = 2 * math.pi * torch.rand(n, 1, generator=g)
    x = torch.sin((1.5 * y.unsqueeze(1) + 1) * t + phase) + noise * torch.randn(n, length, generator=g)
    return x.unsqueeze(1), y


@functools.cache
def picture(size: int = 24) -> tuple[Tensor, Tensor]:
    """A grey picture as coordinates [s*s,2] in [-1,1] and standardised intensities [s*s,1]."""
    p = torch.linspace(-1, 1, size)
    u, v = torch.meshgrid(p, p, indexing="ij")
    z = torch.sin(3 * u) * torch.cos(2 * v) + 1.5 * (u + v > 0.2)
    z = (z - z.mean()) / z.std()
    return torch.stack([u.flatten(), v.flatten()], 1), z.flatten().unsqueeze(1)


@functools.cache
def ring_graph(n: int = 120, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A graph with communities: features [n,16], normalised adjacency [n,n], labels."""
    g = data.gen(seed + 902)
    y = torch.arange(n) % classes
    same = (y.unsqueeze(0) == y.unsqueeze(1)).float()
    a = (torch.rand(n, n, generator=g) < 0.02 + 0.10 * same).float().triu(1)
    a = a + a.T + torch.eye(n)
    d = a.sum(1).rsqrt()
    x = torch.randn(classes, 16, generator=g)[y] * 0.6 + torch.randn(n, 16, generator=g)
    return x, a * d.unsqueeze(0) * d.unsqueeze(1), y


def cycle(n: int, batch: int, steps: int, seed: int) -> list[Tensor]:
    """Index batches, reshuffled every epoch, complete batches only."""
    g, out = data.gen(seed), []
    while len(out) < steps:
        out += [i for i in torch.randperm(n, generator=g).split(batch) if len(i) == batch]
    return out[:steps]


def named(**parts: nn.Module) -> nn.Sequential:
    """A Sequential with names."""
    s = nn.Sequential()
    for k, m in parts.items():
        s.add_module(k, m)
    return s
