"""Loops and data shared by the held-out healthy programs (no cases in here)."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .. import data

TEXT = (
    "alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do: "
    "once or twice she had peeped into the book her sister was reading, but it had no pictures or conversations "
    "in it, 'and what is the use of a book,' thought alice 'without pictures or conversations?' so she was "
    "considering in her own mind (as well as she could, for the hot day made her feel very sleepy and stupid), "
    "whether the pleasure of making a daisy-chain would be worth the trouble of getting up and picking the "
    "daisies, when suddenly a white rabbit with pink eyes ran close by her. there was nothing so very remarkable "
    "in that; nor did alice think it so very much out of the way to hear the rabbit say to itself, 'oh dear! oh "
    "dear! i shall be late!' (when she thought it over afterwards, it occurred to her that she ought to have "
    "wondered at this, but at the time it all seemed quite natural); but when the rabbit actually took a watch "
    "out of its waistcoat-pocket, and looked at it, and then hurried on, alice started to her feet, for it "
    "flashed across her mind that she had never before seen a rabbit with either a waistcoat-pocket, or a watch "
    "to take out of it, and burning with curiosity, she ran across the field after it, and fortunately was just "
    "in time to see it pop down a large rabbit-hole under the hedge."
)
CHARS = sorted(set(TEXT))
VOCAB = len(CHARS)


@functools.cache
def text_ids() -> Tensor:
    return torch.tensor([CHARS.index(c) for c in TEXT])


def seeded(offset: int = 0) -> torch.Generator:
    """A generator that follows the seed of the build (data differ from seed to seed)."""
    return data.gen(torch.initial_seed() * 1009 + offset)


def char_windows(batch: int, length: int, steps: int) -> list[tuple[Tensor, Tensor]]:
    """Random windows (characters, next characters) of TEXT."""
    t, g = text_ids(), seeded(1)
    out = []
    for _ in range(steps):
        i = torch.randint(len(t) - length - 1, (batch, 1), generator=g) + torch.arange(length)
        out.append((t[i], t[i + 1]))
    return out


@functools.cache
def shapes(n: int = 900, size: int = 12, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Coloured shapes on a dim background: images [n,3,s,s], class 0..5, mask [n,1,s,s]."""
    g = data.gen(seed + 500)
    y = torch.randint(6, (n,), generator=g)
    r = 2.2 + (size / 2 - 3.2) * torch.rand(n, 1, 1, generator=g)
    c = size / 2 - 0.5 + (size / 2 - 3.4) * (2 * torch.rand(n, 2, 1, 1, generator=g) - 1)
    p = torch.arange(float(size))
    u, v = p.view(1, -1, 1) - c[:, 0], p.view(1, 1, -1) - c[:, 1]
    far, near = torch.maximum(u.abs(), v.abs()), torch.minimum(u.abs(), v.abs())
    masks = torch.stack(
        [
            (far <= r),
            (far <= r) & (far > r - 1.3),
            (u**2 + v**2 <= r**2),
            (near < 0.8) & (far <= r),
            (u.abs() + v.abs() <= r),
            ((u.abs() - v.abs()).abs() < 0.8) & (far <= r),
        ],
        1,
    )
    m = masks[torch.arange(n), y].float().unsqueeze(1)
    colour = 0.5 + 0.5 * torch.rand(n, 3, 1, 1, generator=g)
    x = 0.2 * torch.rand(n, 3, 1, 1, generator=g) + colour * m + 0.08 * torch.randn(n, 3, size, size, generator=g)
    return x, y, m


def picks(tensors: tuple[Tensor, ...], batch: int, steps: int) -> list[tuple[Tensor, ...]]:
    """``steps`` batches drawn from a data set; the order follows the seed of the build."""
    g, n = seeded(2), len(tensors[0])
    out: list = []
    while len(out) < steps:
        order = torch.randperm(n, generator=g)
        out += [tuple(t[i] for t in tensors) for i in order.split(batch) if len(i) == batch]
    return out[:steps]


def own_loss(sched: Callable | None = None, clip: float | None = None) -> Callable:
    """A loop for programs whose loss takes the model and the batch: loss_fn(model, *batch)."""

    def loop(model, opt, loss_fn, batches, on_step) -> None:
        s = sched(opt) if sched else None
        for step, batch in enumerate(batches):
            opt.zero_grad()
            loss = loss_fn(model, *batch)
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            opt.step()
            if s:
                s.step()
            on_step(step, loss.item())

    return loop


def cosine(steps: int, warm: int = 0) -> Callable:
    """Linear warm-up, then a half cosine to zero."""
    import math

    def f(s: int) -> float:
        if s < warm:
            return (s + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (s - warm) / max(1, steps - warm))))

    return lambda opt: torch.optim.lr_scheduler.LambdaLR(opt, f)


def accuracy(f: Callable[[nn.Module, Tensor], Tensor], x: Tensor, y: Tensor) -> Callable[[nn.Module], float]:
    """A progress function: accuracy of f(model, x) in eval mode."""

    def measure(model: nn.Module) -> float:
        was = model.training
        model.eval()
        with torch.no_grad():
            r = (f(model, x).argmax(-1) == y).float().mean().item()
        model.train(was)
        return r

    return measure
