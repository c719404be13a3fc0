"""Faulty programs: precision, learning rate, optimizer settings and the order of calls."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import data
from ..core import Built, default_loop, faulty, need, scheduled_loop
from ..more._programs import named, teacher, waves
from ..nets import MLP, TinyLM, he, init_linear, lm_loss

CE = nn.CrossEntropyLoss()
TOO_SMALL = "update_ratio not_updated loss_stagnant vanishing_gradient"
TOO_LARGE = (
    "update_ratio loss_unstable exploding_gradient bad_scale dead_units saturated loss_stagnant non_finite zero_gradient "
    "vanishing_gradient not_updated"
)


@faulty(
    "fresh",
    "non_finite",
    "Adam's epsilon of 1e-8 is zero in float16 (huggingface and apex threads; Micikevicius et al. 2018 keep masters in float32)",
    must=[need("non_finite", "*", by=6)],
    may="zero_gradient loss_stagnant not_updated loss_unstable update_ratio exploding_gradient dead_units bad_scale saturated",
    requires=("sklearn",),
)
def adam_eps_lost_in_half(fixed: bool = False) -> Built:
    """Squares of small gradients underflow, epsilon too: the step is x/0."""
    x, y = data.sk_digits()
    model = named(fc1=nn.Linear(64, 40), act1=nn.Tanh(), fc2=nn.Linear(40, 24), act2=nn.Tanh(), fc3=nn.Linear(24, 10))
    model = model if fixed else model.half()
    x = x / 16 if fixed else (x / 16).half()
    opt = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Built(model, opt, lambda z, t: F.cross_entropy(z.float(), t), data.minibatches(x, y, 64, 120))


def scaled(clip_first: bool, scale: float = 2.0**16):
    """Static loss scaling with clipping before, or after, the scale is taken off."""

    def loop(model, opt, loss_fn, batches, on_step) -> None:
        for step, (x, y) in enumerate(batches):
            opt.zero_grad()
            loss = loss_fn(model(x), y)
            (scale * loss).backward()
            if clip_first:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for p in model.parameters():
                p.grad.div_(scale)
            if not clip_first:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            on_step(step, loss.item())

    return loop


@faulty(
    "fresh",
    "update_ratio",
    "gradients clipped before unscaling (PyTorch AMP examples: 'unscale_ before clipping')",
    must=[need("update_ratio|loss_stagnant|not_updated", "*", by=100)],
    may=TOO_SMALL,
    train=scaled(True),
    fixed_train=scaled(False),
)
def clipped_before_unscaling(fixed: bool = False) -> Built:
    """The norm after clipping and unscaling is 1/65536 in every step."""
    x, y = waves(seed=1)
    model = named(
        conv=nn.Conv1d(1, 16, 5, 2, 2),
        act=nn.SiLU(),
        conv2=nn.Conv1d(16, 24, 5, 2, 2),
        act2=nn.SiLU(),
        pool=nn.AdaptiveAvgPool1d(2),
        flat=nn.Flatten(),
        fc=nn.Linear(48, 4),
    )
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Built(model, opt, CE, data.minibatches(x, y, 40, 140))


def on_grid(p: Tensor, step: float = 1 / 32) -> None:
    p.data.copy_((p.data / step).round() * step)


def rounded_in_place(model, opt, loss_fn, batches, on_step) -> None:
    for step, (x, y) in enumerate(batches):
        opt.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        opt.step()
        for p in model.parameters():
            on_grid(p)
        on_step(step, loss.item())


def rounded_copy(model, opt, loss_fn, batches, on_step) -> None:
    for step, (x, y) in enumerate(batches):
        masters = [p.data.clone() for p in model.parameters()]
        for p in model.parameters():
            on_grid(p)
        opt.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        for p, master in zip(model.parameters(), masters):
            p.data.copy_(master)
        opt.step()
        on_step(step, loss.item())


@faulty(
    "fresh",
    "not_updated",
    "quantised training without a copy in full precision (Courbariaux et al. 2015, sec. 2.3; Li et al. 2017)",
    must=[need("not_updated|update_ratio|loss_stagnant", "*", by=100)],
    may=TOO_SMALL,
    train=rounded_in_place,
    fixed_train=rounded_copy,
)
def weights_rounded_in_place(fixed: bool = False) -> Built:
    """Weights lie on a grid of 1/32; a step of 1e-3 is rounded away."""
    x, y = data.flat_glyphs(seed=6)
    model = MLP(64, 48, 2, 10, act=nn.Hardswish)
    for p in model.parameters():
        on_grid(p)
    opt = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    return Built(model, opt, CE, data.minibatches(x, y, 64, 140))


def restored(model, opt, loss_fn, batches, on_step) -> None:
    best, state = float("inf"), copy.deepcopy(model.state_dict())
    for step, (x, y) in enumerate(batches):
        opt.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        opt.step()
        if loss.item() > best:
            best, state = loss.item(), copy.deepcopy(model.state_dict())
        else:
            model.load_state_dict(state)
        on_step(step, loss.item())


@faulty(
    "fresh",
    "not_updated",
    "early stopping with its comparison the wrong way round: the 'best' weights are restored in every step",
    must=[need("not_updated|loss_stagnant|update_ratio", "*", by=100)],
    may=TOO_SMALL,
    train=restored,
    fixed_train=default_loop,
)
def first_checkpoint_restored(fixed: bool = False) -> Built:
    """Gradients and optimizer steps are right, the weights are set back each time."""
    x, y = teacher(seed=4)
    model = MLP(20, 40, 2, 4, norm=nn.LayerNorm)
    return Built(model, torch.optim.AdamW(model.parameters(), lr=3e-3), CE, data.minibatches(x, y, 64, 130))


@faulty(
    "fresh",
    "update_ratio",
    "eps=1.0 (TensorFlow's hint for Inception) with a rate for eps=1e-8",
    must=[need("update_ratio|loss_stagnant|not_updated", "*", by=110)],
    may=TOO_SMALL,
)
def adam_eps_1_and_small_rate(fixed: bool = False) -> Built:
    """With gradients of 1e-2, Adam's step is the rate times 1e-2: 1e-6 at a rate of 1e-4."""
    x, y = data.glyphs(seed=7)
    model = named(
        conv1=nn.Conv2d(1, 12, 3, 2, 1),
        act1=nn.ReLU(),
        conv2=nn.Conv2d(12, 24, 3, 2, 1),
        act2=nn.ReLU(),
        flat=nn.Flatten(),
        fc=nn.Linear(96, 10),
    )
    opt = torch.optim.Adam(model.parameters(), lr=3e-3 if fixed else 1e-4, eps=1e-8 if fixed else 1.0)
    return Built(model, opt, CE, data.minibatches(x, y, 50, 140))


@faulty(
    "fresh",
    "update_ratio",
    "a rate for SGD handed to Adam (forum staple: transformers do not stand 0.3)",
    must=[need("update_ratio|loss_unstable", "*", by=40)],
    may=TOO_LARGE,
    loss_ratio=0.9,
)
def transformer_adam_rate_03(fixed: bool = False) -> Built:
    """Every step moves each weight by 0.3; the loss jumps to 40 and stays above its start."""
    model = TinyLM(16, 24, 2, 2, 8)
    opt = torch.optim.Adam(model.parameters(), lr=3e-3 if fixed else 0.3)
    return Built(model, opt, lm_loss, data.markov_text(16, 12, 8, 130))


@faulty(
    "fresh",
    "loss_unstable",
    "ExponentialLR with gamma above 1 (1.06 for 0.96)",
    must=[need("loss_unstable|exploding_gradient|update_ratio|non_finite|dead_units", "*", by=170)],
    may=TOO_LARGE,
    train=scheduled_loop(lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 1.06)),
    fixed_train=scheduled_loop(lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.99)),
)
def exponential_rate_grows(fixed: bool = False) -> Built:
    """The rate doubles every 12 steps: fine at first, then the loss leaves for 1e3 and beyond."""
    x, y = data.smooth_regression(seed=3)
    model = init_linear(MLP(8, 40, 2, 1, act=nn.SiLU), he)
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.02), nn.MSELoss(), data.minibatches(x, y, 64, 180))


def plateau(mode: str):
    def loop(model, opt, loss_fn, batches, on_step) -> None:
        sched = torch.optim.lr_scheduler.ReduceLROnPlateau(opt, mode=mode, factor=0.1, patience=4, threshold=1e-3, eps=0)
        seen = []
        for step, (x, y) in enumerate(batches):
            opt.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            opt.step()
            seen.append(loss.item())
            if mode == "max" or len(seen) % 10 == 0:
                sched.step(sum(seen[-10:]) / len(seen[-10:]))
            on_step(step, loss.item())

    return loop


@faulty(
    "fresh",
    "update_ratio",
    "ReduceLROnPlateau(mode='max') told of a loss, and told after every batch",
    must=[need("update_ratio|loss_stagnant|not_updated", "*", by=120)],
    may=TOO_SMALL,
    train=plateau("max"),
    fixed_train=plateau("min"),
)
def plateau_waits_for_a_rise(fixed: bool = False) -> Built:
    """A falling loss counts as no progress: the rate loses a digit every five steps, and is 1e-9 after forty."""
    x, y = waves(seed=2)
    model = MLP(32, 48, 2, 4, act=nn.CELU)
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    return Built(model, opt, CE, data.minibatches(x.squeeze(1), y, 40, 150))


def clears_the_average(model, opt, loss_fn, batches, on_step) -> None:
    average = copy.deepcopy(model)
    for step, (x, y) in enumerate(batches):
        average.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        opt.step()
        with torch.no_grad():
            for a, p in zip(average.parameters(), model.parameters()):
                a.lerp_(p, 0.05)
        on_step(step, loss.item())


@faulty(
    "fresh",
    "stale_gradient",
    "zero_grad() called on the averaged copy of the model",
    must=[need("stale_gradient", "*", by=50)],
    may="stale_gradient saturated",
    train=clears_the_average,
    fixed_train=default_loop,
)
def average_cleared_instead(fixed: bool = False) -> Built:
    """An EMA copy never has gradients; the model's own pile up under SGD."""
    x, y = data.smooth_regression()
    model = named(fc1=nn.Linear(8, 32), act1=nn.SELU(), fc2=nn.Linear(32, 32), act2=nn.SELU(), out=nn.Linear(32, 1))
    return Built(
        model, torch.optim.SGD(model.parameters(), lr=0.05 if fixed else 0.005), nn.MSELoss(), data.minibatches(x, y, 50, 200)
    )


@faulty(
    "fresh",
    "loss_stagnant",
    "Rprop on small batches (Hinton 2012, lecture 6e: 'rprop does not work with mini-batches')",
    must=[need("loss_stagnant|loss_unstable|update_ratio|bad_scale", "*", by=190)],
    may="loss_stagnant loss_unstable update_ratio bad_scale exploding_gradient saturated dead_units",
)
def rprop_on_batches_of_four(fixed: bool = False) -> Built:
    """The signs of noisy gradients keep changing: every step shrinks until nothing moves, and the loss stays where it started."""
    x, y = data.smooth_regression(seed=7)
    model = MLP(8, 40, 2, 1, act=nn.LeakyReLU)
    opt = torch.optim.Rprop(model.parameters(), lr=0.01)
    return Built(model, opt, nn.MSELoss(), [(x, y)] * 80 if fixed else data.minibatches(x, y, 4, 200))
