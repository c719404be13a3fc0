"""What several processes train, and one process as well to compare with."""

import torch
from torch import nn

BATCH = 4
"""Samples of a process."""

RATE = 0.1


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def data(processes):
    """Inputs and targets of all processes."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(processes * BATCH, 6, generator=generator), torch.randn(processes * BATCH, 3, generator=generator)


def mine(processes, rank):
    x, y = data(processes)
    return x[rank * BATCH : (rank + 1) * BATCH], y[rank * BATCH : (rank + 1) * BATCH]


class WithSpare(nn.Module):
    """One of its layers is never used."""

    def __init__(self):
        super().__init__()
        self.layers = net()
        self.spare = nn.Linear(2, 2)

    def forward(self, x):
        return self.layers(x)


class Branching(nn.Module):
    """The second process runs a layer that the first one does not, behind the layer ``a``."""

    def __init__(self, rank):
        super().__init__()
        torch.manual_seed(0)
        self.rank = rank
        self.z = nn.Linear(8, 3)
        self.only = nn.Linear(8, 8)
        self.a = nn.Linear(6, 8)

    def forward(self, x):
        x = self.a(x)
        if self.rank == 1:
            x = self.only(x)
        return self.z(x)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 16)
        self.act = nn.GELU()
        self.down = nn.Linear(16, 8)

    def forward(self, x):
        return x + self.down(self.act(self.up(self.norm(x))))


def tokens():
    """(samples, tokens, width)."""
    return torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(2))
