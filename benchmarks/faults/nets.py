"""Building blocks shared by the programs of the corpus (nothing fault-specific)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def init_linear(m: nn.Module, how: Callable[[Tensor], object], bias: float | None = 0.0) -> nn.Module:
    """Apply ``how`` to the weight of every Linear/Conv and set the biases."""
    for sub in m.modules():
        if isinstance(sub, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            how(sub.weight)
            if sub.bias is not None and bias is not None:
                nn.init.constant_(sub.bias, bias)
    return m


def he(w: Tensor) -> Tensor:
    return nn.init.kaiming_normal_(w, nonlinearity="relu")


def xavier(w: Tensor) -> Tensor:
    return nn.init.xavier_uniform_(w)


class MLP(nn.Module):
    """layers.i -> [norms.i] -> acts.i -> [drops.i] ... -> head"""

    def __init__(self, d_in: int, width: int, depth: int, d_out: int, act=nn.ReLU, norm=None, dropout: float = 0.0):
        super().__init__()
        dims = [d_in] + [width] * depth
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(dims, dims[1:]))
        self.norms = nn.ModuleList(norm(width) if norm else nn.Identity() for _ in range(depth))
        self.acts = nn.ModuleList(act() for _ in range(depth))
        self.drops = nn.ModuleList(nn.Dropout(dropout) for _ in range(depth))
        self.head = nn.Linear(width, d_out)

    def forward(self, x: Tensor) -> Tensor:
        for lin, norm, act, drop in zip(self.layers, self.norms, self.acts, self.drops):
            x = drop(act(norm(lin(x))))
        return self.head(x)


class ConvNet(nn.Module):
    """Plain stack of 3x3 convolutions with global average pooling."""

    def __init__(self, channels: int, depth: int, classes: int, norm: bool, act=nn.ReLU, c_in: int = 1):
        super().__init__()
        blocks = []
        for i in range(depth):
            conv = nn.Conv2d(c_in if i == 0 else channels, channels, 3, padding=1)
            blocks.append(nn.Sequential(conv, nn.BatchNorm2d(channels) if norm else nn.Identity(), act()))
        self.features = nn.ModuleList(blocks)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Linear(4 * channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        for b in self.features:
            x = b(x)
        return self.classifier(self.pool(x).flatten(1))


class ResBlock(nn.Module):
    def __init__(self, c: int, stride: int = 1, c_in: int | None = None, zero_last: bool = False):
        super().__init__()
        c_in = c_in or c
        self.conv1 = nn.Conv2d(c_in, c, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(c, c, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c)
        self.act2 = nn.ReLU()
        self.skip = nn.Identity() if stride == 1 and c_in == c else nn.Conv2d(c_in, c, 1, stride, bias=False)
        if zero_last:
            nn.init.zeros_(self.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act1(self.bn1(self.conv1(x)))
        return self.act2(self.bn2(self.conv2(h)) + self.skip(x))


class ResNet(nn.Module):
    def __init__(self, c: int, blocks: int, classes: int, zero_last: bool = False):
        super().__init__()
        self.stem = nn.Conv2d(1, c, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(c)
        self.blocks = nn.ModuleList(
            ResBlock(2 * c if i else c, 2 if i == 1 else 1, c if i == 1 else None, zero_last) for i in range(blocks)
        )
        self.fc = nn.Linear(2 * c if blocks > 1 else c, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        for b in self.blocks:
            x = b(x)
        return self.fc(x.mean((2, 3)))


class Attention(nn.Module):
    """Multi-head self-attention with its softmax as a module of its own."""

    def __init__(self, d: int, heads: int, causal: bool = True, scale: float | None = None):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))
        self.softmax = nn.Softmax(-1)
        self.heads, self.causal = heads, causal
        self.scale = (d // heads) ** -0.5 if scale is None else scale

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = (f(x).view(b, t, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        s = (q @ k.transpose(-1, -2)) * self.scale
        if self.causal:
            s = s.masked_fill(torch.ones(t, t, dtype=torch.bool).triu(1), float("-inf"))
        return self.o((self.softmax(s) @ v).transpose(1, 2).reshape(b, t, d))


class Block(nn.Module):
    """Transformer block, pre-LN or post-LN."""

    def __init__(
        self, d: int, heads: int, causal: bool = True, pre: bool = True, act=nn.GELU, mult: int = 4, scale=None, drop: float = 0.0
    ):
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attn = Attention(d, heads, causal, scale)
        self.fc1, self.act, self.fc2 = nn.Linear(d, mult * d), act(), nn.Linear(mult * d, d)
        self.drop = nn.Dropout(drop)
        self.pre = pre

    def mlp(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.act(self.fc1(x))))

    def forward(self, x: Tensor) -> Tensor:
        if self.pre:
            x = x + self.attn(self.ln1(x))
            return x + self.mlp(self.ln2(x))
        x = self.ln1(x + self.attn(x))
        return self.ln2(x + self.mlp(x))


class TinyLM(nn.Module):
    """tok + pos -> blocks -> [ln_f] -> head"""

    def __init__(self, vocab: int, d: int, layers: int, heads: int, length: int, tied: bool = False, **block):
        super().__init__()
        self.tok, self.pos = nn.Embedding(vocab, d), nn.Embedding(length, d)
        self.blocks = nn.ModuleList(Block(d, heads, **block) for _ in range(layers))
        self.ln_f = nn.LayerNorm(d) if block.get("pre", True) else nn.Identity()
        self.head = nn.Linear(d, vocab, bias=False)
        if tied:
            self.head.weight = self.tok.weight

    def forward(self, t: Tensor) -> Tensor:
        x = self.tok(t) + self.pos.weight[: t.shape[1]]
        for b in self.blocks:
            x = b(x)
        return self.head(self.ln_f(x))


def gpt_init(m: nn.Module, std: float = 0.02) -> nn.Module:
    """GPT-2 style: every Linear and Embedding N(0, std), zero biases."""
    for sub in m.modules():
        if isinstance(sub, (nn.Linear, nn.Embedding)):
            nn.init.normal_(sub.weight, std=std)
            if getattr(sub, "bias", None) is not None:
                nn.init.zeros_(sub.bias)
    return m


def lm_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
