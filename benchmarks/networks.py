"""The networks of the benchmarks, from one that is all overhead to one that is all arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Task(NamedTuple):
    """A network and the batch that it learns by heart.

    Attributes:
        model: Maps ``x`` to logits, classes last.
        x: Input.
        y: Classes, (batch,) or (batch, tokens).
    """

    model: nn.Module
    x: Tensor
    y: Tensor

    def step(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """One step of training; returns the loss."""
        loss = nn.functional.cross_entropy(self.model(self.x).flatten(0, -2), self.y.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss


def mlp(layers: int, width: int, batch: int = 64) -> Task:
    """Linear layers of one width with a ReLU after each, and a linear one behind them."""
    hidden = [module for _ in range(layers) for module in (nn.Linear(width, width), nn.ReLU())]
    return Task(nn.Sequential(*hidden, nn.Linear(width, 10)), torch.randn(batch, width), torch.arange(batch) % 10)


def cnn() -> Task:
    """Three convolutions with batch norm on 32 × 32 pictures."""
    blocks = [
        module
        for before, after in ((3, 16), (16, 32), (32, 64))
        for module in (nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2))
    ]
    return Task(nn.Sequential(*blocks, nn.Flatten(), nn.Linear(1024, 10)), torch.randn(32, 3, 32, 32), torch.arange(32) % 10)


class GPT(nn.Module):
    """A language model of 4 pre-norm blocks: width 256, 4 heads, 128 tokens, a vocabulary of 512."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(512, 256)
        self.places = nn.Embedding(128, 256)
        block = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 4, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(256)
        self.head = nn.Linear(256, 512, bias=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(128))

    def forward(self, ids: Tensor) -> Tensor:
        """Token numbers (batch, 128) → logits (batch, 128, 512)."""
        x = self.tokens(ids) + self.places.weight
        return self.head(self.norm(self.blocks(x, mask=self.mask, is_causal=True)))


def gpt() -> Task:
    """The language model, on 8 texts of random tokens."""
    text = torch.randint(512, (8, 129))
    return Task(GPT(), text[:, :-1], text[:, 1:])


class Residual(nn.Module):
    """x + relu(Wx + b) / blocks: as deep as one likes, and the gradient neither fades nor grows."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.linear, self.relu, self.share = nn.Linear(width, width), nn.ReLU(), 1 / blocks

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width) → (batch, width)."""
        return x + self.relu(self.linear(x)) * self.share


def deep(modules: int, width: int = 16, batch: int = 16) -> Task:
    """A residual network of about as many modules, of all that ``model.modules()`` yields: three a block, and two more."""
    blocks = max(1, round((modules - 2) / 3))
    net = nn.Sequential(*(Residual(width, blocks) for _ in range(blocks)), nn.Linear(width, 10))
    return Task(net, torch.randn(batch, width), torch.arange(batch) % 10)


Make = Callable[[], Task]
"""Makes a task; a function of a module or a ``partial`` of one, so that another process can be told to."""

TASKS: dict[str, Make] = {
    "tiny MLP (20 × 32)": partial(mlp, 20, 32),
    "MLP (8 × 256)": partial(mlp, 8, 256),
    "CNN": cnn,
    "GPT (4 × 256)": gpt,
    "500 modules": partial(deep, 500),
}
