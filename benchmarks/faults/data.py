"""Small synthetic data sets (and scikit-learn's bundled ones) for the corpus.

Everything is generated from its own ``torch.Generator``, so the data do not
depend on what else draws from the global generator.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def gen(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def minibatches(x: Tensor, y: Tensor, batch: int, steps: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """``steps`` batches, reshuffled every epoch."""
    g = gen(seed + 77)
    done = 0
    while done < steps:
        order = torch.randperm(len(x), generator=g)
        for i in range(0, len(x) - batch + 1, batch):
            if done >= steps:
                return
            idx = order[i : i + batch]
            yield x[idx], y[idx]
            done += 1


def stream(make: Callable[[torch.Generator], tuple], steps: int, seed: int = 0) -> Iterator[tuple]:
    """``steps`` freshly generated batches."""
    g = gen(seed + 99)
    for _ in range(steps):
        yield make(g)


@functools.cache
def glyphs(n: int = 1000, classes: int = 10, size: int = 8, noise: float = 0.25, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images [n,1,size,size] in about [0, 1]: smooth class templates, shifted and noised."""
    g = gen(seed)
    base = torch.randn(classes, 1, size // 2, size // 2, generator=g)
    base = torch.nn.functional.interpolate(base, size=(size, size), mode="bilinear", align_corners=False)
    lo, hi = base.amin((2, 3), keepdim=True), base.amax((2, 3), keepdim=True)
    base = (base - lo) / (hi - lo)
    y = torch.randint(classes, (n,), generator=g)
    x = base[y].clone()
    dx = torch.randint(-1, 2, (n,), generator=g)
    x = torch.stack([torch.roll(img, int(s), -1) for img, s in zip(x, dx)])
    x = (x + noise * torch.randn(x.shape, generator=g)).clamp(0, 1)
    return x, y


def flat_glyphs(**kw) -> tuple[Tensor, Tensor]:
    x, y = glyphs(**kw)
    return x.flatten(1), y


@functools.cache
def blobs(n: int = 600, d: int = 2, classes: int = 3, spread: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Gaussian blobs (AutoTrainer's 'Blob' data set)."""
    g = gen(seed)
    centres = 4 * torch.randn(classes, d, generator=g)
    y = torch.randint(classes, (n,), generator=g)
    return centres[y] + spread * torch.randn(n, d, generator=g), y


@functools.cache
def circles(n: int = 600, noise: float = 0.1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two concentric circles (AutoTrainer's 'Circle' data set)."""
    g = gen(seed)
    y = torch.randint(2, (n,), generator=g)
    t = 2 * math.pi * torch.rand(n, generator=g)
    r = torch.where(y == 0, 1.0, 0.5)
    x = torch.stack([r * t.cos(), r * t.sin()], 1) + noise * torch.randn(n, 2, generator=g)
    return x, y


@functools.cache
def smooth_regression(n: int = 800, d: int = 8, noise: float = 0.1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Y = sin(a.x) + 0.5 b.x + noise, standardised."""
    g = gen(seed)
    x = torch.randn(n, d, generator=g)
    a, b = torch.randn(d, generator=g) / d**0.5, torch.randn(d, generator=g) / d**0.5
    y = torch.sin(2 * x @ a) + 0.5 * x @ b + noise * torch.randn(n, generator=g)
    return x, ((y - y.mean()) / y.std()).unsqueeze(1)


@functools.cache
def _markov(vocab: int, seed: int) -> Tensor:
    g = gen(seed)
    return torch.softmax(2.5 * torch.randn(vocab, vocab, generator=g), -1)


def markov_text(vocab: int, batch: int, length: int, steps: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches (tokens, next tokens) of a random order-1 Markov source."""
    p = _markov(vocab, seed)
    g = gen(seed + 5)
    for _ in range(steps):
        seq = [torch.randint(vocab, (batch,), generator=g)]
        for _ in range(length):
            seq.append(torch.multinomial(p[seq[-1]], 1, generator=g).squeeze(1))
        t = torch.stack(seq, 1)
        yield t[:, :-1], t[:, 1:]


def recall_first(vocab: int, batch: int, length: int, steps: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Sequences whose label is their FIRST token (long-range dependency)."""
    g = gen(seed + 6)
    for _ in range(steps):
        t = torch.randint(vocab, (batch, length), generator=g)
        yield t, t[:, 0].clone()


def recall_last(vocab: int, batch: int, length: int, steps: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Sequences whose label is the majority of the last three tokens' parity (short-range)."""
    g = gen(seed + 7)
    for _ in range(steps):
        t = torch.randint(vocab, (batch, length), generator=g)
        yield t, ((t[:, -3:] % 2).sum(1) >= 2).long()


# -------------------------------------------------- scikit-learn, bundled only


@functools.cache
def sk_digits() -> tuple[Tensor, Tensor]:
    """1797 8x8 digits, raw pixel values 0..16."""
    from sklearn.datasets import load_digits

    d = load_digits()
    return torch.tensor(d.data, dtype=torch.float32), torch.tensor(d.target)


@functools.cache
def sk_breast_cancer() -> tuple[Tensor, Tensor]:
    """569 x 30 raw features, scales from 1e-3 to 4e3."""
    from sklearn.datasets import load_breast_cancer

    d = load_breast_cancer()
    return torch.tensor(d.data, dtype=torch.float32), torch.tensor(d.target)


@functools.cache
def sk_wine() -> tuple[Tensor, Tensor]:
    """178 x 13 raw features, scales from 0.1 to 1.7e3."""
    from sklearn.datasets import load_wine

    d = load_wine()
    return torch.tensor(d.data, dtype=torch.float32), torch.tensor(d.target)


@functools.cache
def sk_diabetes() -> tuple[Tensor, Tensor]:
    """442 x 10 standardised features, target 25..346."""
    from sklearn.datasets import load_diabetes

    d = load_diabetes()
    return torch.tensor(d.data, dtype=torch.float32), torch.tensor(d.target, dtype=torch.float32).unsqueeze(1)


def standardise(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / (x.std(0) + 1e-8)
