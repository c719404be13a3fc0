"""Faulty programs: gradients that pile up, are scaled wrongly, or belong to no optimizer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import data
from ..core import Built, default_loop, faulty, need
from ..more._programs import named, waves
from ..nets import MLP, TinyLM, he, init_linear, lm_loss

CE = nn.CrossEntropyLoss()
AFTER_STALE = "stale_gradient exploding_gradient update_ratio loss_unstable loss_stagnant bad_scale dead_units saturated"


# -------------------------------------------------------------- stale gradients


def cleared_once_per_epoch(model, opt, loss_fn, batches, on_step) -> None:
    for step, (x, y) in enumerate(batches):
        if step % 60 == 0:
            opt.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        opt.step()
        on_step(step, loss.item())


@faulty(
    "fresh",
    "stale_gradient",
    "zero_grad() in the outer loop, over epochs (SO 48001598; Humbatova et al. 2020 'wrong position of an API call')",
    must=[need("stale_gradient", "*", by=45)],
    may=AFTER_STALE,
    train=cleared_once_per_epoch,
    fixed_train=default_loop,
)
def cleared_in_the_outer_loop(fixed: bool = False) -> Built:
    """Gradients pile up over the 60 batches of an epoch and start again at the next."""
    x, y = data.smooth_regression(n=960)
    model = MLP(8, 40, 2, 1, act=nn.SiLU)
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.02), nn.MSELoss(), data.minibatches(x, y, 16, 180))


def only_the_head(model, opt, loss_fn, batches, on_step) -> None:
    for step, (x, y) in enumerate(batches):
        model.head.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        opt.step()
        on_step(step, loss.item())


@faulty(
    "fresh",
    "stale_gradient",
    "head.zero_grad() left over from the time when only the head was trained",
    must=[need("stale_gradient", "body body.* *", by=45)],
    may=AFTER_STALE + " vanishing_gradient zero_gradient",
    train=only_the_head,
    fixed_train=default_loop,
)
def only_the_head_is_cleared(fixed: bool = False) -> Built:
    """Fine-tuning of all layers; the gradients of all but the head are never cleared."""
    x, y = waves()
    body = nn.Sequential(nn.Conv1d(1, 12, 5, 2), nn.GELU(), nn.Conv1d(12, 16, 3, 2), nn.GELU(), nn.Flatten())
    model = named(body=body, head=nn.Linear(96, 4))
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.3), CE, data.minibatches(x, y, 32, 140))


def accumulate(clear: bool):
    def loop(model, opt, loss_fn, batches, on_step) -> None:
        opt.zero_grad()
        for step, (x, y) in enumerate(batches):
            loss = loss_fn(model(x), y) / 3
            loss.backward()
            if step % 3 == 2:
                opt.step()
                on_step(step // 3, 3 * loss.item())
                if clear:
                    opt.zero_grad()

    return loop


@faulty(
    "fresh",
    "stale_gradient",
    "gradient accumulation that never clears (missing zero_grad after step; forum staple)",
    must=[need("stale_gradient", "*", by=45)],
    may=AFTER_STALE + " vanishing_gradient",
    train=accumulate(False),
    fixed_train=accumulate(True),
)
def accumulation_never_cleared(fixed: bool = False) -> Built:
    """Three micro-batches a step in a small language model; the sum goes on over steps."""
    model = TinyLM(12, 24, 1, 2, 12)
    opt = torch.optim.AdamW(model.parameters(), lr=4e-3)
    return Built(model, opt, lm_loss, data.markov_text(12, 12, 12, 300, seed=12))


# ------------------------------------------------- optimizers and loss scalers


class Decayed(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.norm1, self.act1 = nn.Linear(64, 48), nn.LayerNorm(48), nn.GELU()
        self.fc2, self.norm2, self.act2 = nn.Linear(48, 48), nn.LayerNorm(48), nn.GELU()
        self.out = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.norm1(self.fc1(x)))
        return self.out(self.act2(self.norm2(self.fc2(x))))


@faulty(
    "fresh",
    "not_updated",
    "the 'no weight decay' group is built and not handed to the optimizer (the idiom of GPT code bases)",
    must=[need("not_updated", "norm[12] norm[12].* *.bias", by=25)],
    may="not_updated update_ratio zero_gradient stale_gradient exploding_gradient",
)
def no_decay_group_forgotten(fixed: bool = False) -> Built:
    """Matrices train; biases and layer norms have gradients that nobody uses."""
    x, y = data.flat_glyphs()
    model = Decayed()
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decay, "weight_decay": 0.05}] + ([{"params": rest, "weight_decay": 0.0}] if fixed else [])
    return Built(model, torch.optim.AdamW(groups, lr=3e-3), CE, data.minibatches(x, y, 64, 120))


class Pair(nn.Module):
    """A generator of points on a ring, and its discriminator."""

    def __init__(self):
        super().__init__()
        self.G = nn.Sequential(nn.Linear(4, 32), nn.LeakyReLU(0.2), nn.Linear(32, 32), nn.LeakyReLU(0.2), nn.Linear(32, 2))
        self.D = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.D(x)


def ring(n: int, g: torch.Generator) -> Tensor:
    angle = 6.2832 * torch.rand(n, generator=g)
    return torch.stack([2 + angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(n, 2, generator=g)


def centre_gap(model: nn.Module) -> float:
    fake = model.G(torch.randn(800, 4, generator=data.gen(220)))
    return (fake.mean(0) - torch.tensor([2.0, 0.0])).norm().item() + (fake.std(0) - 0.7).abs().sum().item()


def least_squares_gan(model, opt, loss_fn, batches, on_step) -> None:
    for step, (real, z) in enumerate(batches):
        opt["D"].zero_grad()
        fake = model.G(z)
        ((model(real) - 1).pow(2).mean() + model(fake.detach()).pow(2).mean()).backward()
        opt["D"].step()
        opt["G"].zero_grad()
        model.G.zero_grad()
        (model(fake) - 1).pow(2).mean().backward()
        opt["G"].step()
        on_step(step, None)


@faulty(
    "fresh",
    "not_updated",
    "both optimizers of a GAN built from the discriminator's parameters (copy and paste)",
    must=[need("not_updated", "G G.*", by=25)],
    may="not_updated update_ratio exploding_gradient vanishing_gradient",
    train=least_squares_gan,
    loss_ratio=None,
    progress=("gap in mean and spread", centre_gap, "down"),
)
def both_optimizers_got_the_discriminator(fixed: bool = False) -> Built:
    """The 'generator step' moves the discriminator towards calling fakes real; the generator has gradients and never moves."""
    g = data.gen(221)
    model = Pair()
    owner = {"D": model.D, "G": model.G if fixed else model.D}
    opt = {k: torch.optim.Adam(m.parameters(), lr=2e-3, betas=(0.5, 0.99)) for k, m in owner.items()}
    return Built(model, opt, None, [(ring(64, g), torch.randn(64, 4, generator=g)) for _ in range(200)])


def scaled(unscale_first: bool):
    """A static loss scale of 2**16 and clipping at 1, in one order or the other."""

    def loop(model, opt, loss_fn, batches, on_step) -> None:
        for step, (x, y) in enumerate(batches):
            opt.zero_grad()
            loss = loss_fn(model(x), y)
            (loss * 65536).backward()
            if not unscale_first:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for p in model.parameters():
                p.grad.div_(65536)
            if unscale_first:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            on_step(step, loss.item())

    return loop


@faulty(
    "fresh",
    "update_ratio",
    "clip_grad_norm_ before unscale_ (PyTorch AMP recipes warn of it)",
    must=[need("update_ratio|loss_stagnant|not_updated", "*", by=100)],
    may="update_ratio loss_stagnant not_updated",
    train=scaled(False),
    fixed_train=scaled(True),
)
def clipped_while_scaled(fixed: bool = False) -> Built:
    """The scaled gradient is clipped to 1 and then divided by 65536: SGD takes steps of 1e-6."""
    x, y = data.glyphs()
    model = named(conv=nn.Conv2d(1, 12, 3, 2, 1), act=nn.GELU(), flat=nn.Flatten(), fc1=nn.Linear(192, 32), act1=nn.GELU())
    model.add_module("fc2", nn.Linear(32, 10))
    init_linear(model, he)
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9), CE, data.minibatches(x, y, 50, 130))
