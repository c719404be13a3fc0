"""Held-out healthy programs, part D: optimizers, fine-tuning and training style.  Nothing may be reported."""

from __future__ import annotations

import copy
import functools
import math

import torch
from torch import nn
from torch.nn import functional as F

from .. import data
from ..core import Built, clipped_loop, default_loop, healthy, scheduled_loop
from ..nets import lm_loss
from ._loops import VOCAB, char_windows, cosine, own_loss, picks, seeded, shapes

CE = nn.CrossEntropyLoss()


def pretrained(make, x, y, steps: int, lr: float, loss=CE, batch: int = 50) -> dict:
    """The state of a model trained elsewhere (independent of the seed of the build)."""
    with torch.random.fork_rng():
        torch.manual_seed(12)
        model = make()
        opt = torch.optim.Adam(model.parameters(), lr=lr)
        default_loop(model, opt, loss, data.minibatches(x, y, batch, steps, seed=12), lambda s, l: None)
        return {k: v.clone() for k, v in model.state_dict().items()}


# --------------------------------------------------------------- fine-tuning


class CharFormer(nn.Module):
    def __init__(self, d: int = 32, layers: int = 2):
        super().__init__()
        self.embed, self.pos = nn.Embedding(VOCAB, d), nn.Embedding(24, d)
        layer = nn.TransformerEncoderLayer(d, 4, 2 * d, dropout=0.0, batch_first=True, norm_first=True, activation="gelu")
        self.body = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.out = nn.Linear(d, VOCAB)

    def features(self, t):
        n = t.shape[1]
        return self.body(
            self.embed(t) + self.pos.weight[:n], mask=nn.Transformer.generate_square_subsequent_mask(n), is_causal=True
        )

    def forward(self, t):
        return self.out(self.features(t))


@functools.cache
def char_state() -> dict:
    with torch.random.fork_rng():
        torch.manual_seed(13)
        model = CharFormer()
        opt = torch.optim.AdamW(model.parameters(), lr=4e-3)
        default_loop(model, opt, lm_loss, char_windows(16, 20, 150), lambda s, l: None)
        return model.state_dict()


class LoRALinear(nn.Module):
    def __init__(self, base: nn.Linear, r: int = 4, alpha: float = 8.0):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(r, base.in_features) / base.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(base.out_features, r))
        self.scale = alpha / r

    def forward(self, x):
        return self.base(x) + self.scale * (x @ self.a.T) @ self.b.T


def upper_swap(batch: int, length: int, steps: int):
    """The same text with its alphabet rotated for vowels: a shifted domain."""
    from ._loops import CHARS

    swap = {"a": "e", "e": "i", "i": "o", "o": "u", "u": "a"}
    table = torch.tensor([CHARS.index(swap.get(c, c)) for c in CHARS])
    return [(table[a], table[b]) for a, b in char_windows(batch, length, steps)]


@healthy("more", "Hu et al. 2022 (LoRA)", loss_ratio=0.8)
def lora_zero_b() -> Built:
    """Frozen language model; only rank-4 factors of the MLPs and the head train; B starts at zero, so A gets no gradient at step 0."""
    model = CharFormer()
    model.load_state_dict(char_state())
    model.requires_grad_(False)
    for layer in model.body.layers:
        layer.linear1, layer.linear2 = LoRALinear(layer.linear1), LoRALinear(layer.linear2)
        layer.activation_relu_or_gelu = 0  # no fused path
    model.out = LoRALinear(model.out)
    return Built(
        model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2), lm_loss, upper_swap(12, 20, 130)
    )


class Adapter(nn.Module):
    def __init__(self, inner: nn.Module, d: int, r: int = 6):
        super().__init__()
        self.inner, self.down, self.act, self.up = inner, nn.Linear(d, r), nn.GELU(), nn.Linear(r, d)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x):
        h = F.relu(self.inner(x))
        return h + self.up(self.act(self.down(h)))


def glyph_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(384, 10),
    )


@functools.cache
def glyph_state() -> dict:
    return pretrained(glyph_net, *data.glyphs(seed=60), steps=90, lr=4e-3)


def mlp3() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10))


@functools.cache
def mlp3_state() -> dict:
    x, y = data.flat_glyphs(seed=61)
    return pretrained(mlp3, x - 0.5, y, steps=150, lr=1e-3)


@healthy("more", "Houlsby et al. 2019 (adapters, zero-initialised)")
def zero_init_adapters() -> Built:
    """Frozen layers with small residual adapters whose output starts at exactly zero; new head."""
    base = mlp3()
    base.load_state_dict(mlp3_state())
    base.requires_grad_(False)
    model = nn.Sequential(Adapter(base[0], 96), Adapter(base[2], 96), nn.Linear(96, 10))
    x, y = data.flat_glyphs(seed=62)
    return Built(
        model, torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3), CE, picks((x - 0.5, y), 40, 180)
    )


def lbfgs_loop(model, opt, loss_fn, batches, on_step) -> None:
    for step, (x, y) in enumerate(batches):

        def closure():
            opt.zero_grad()
            out = loss_fn(model(x), y) + 1e-4 * sum(p.pow(2).sum() for p in model.parameters() if p.requires_grad)
            out.backward()
            return out

        on_step(step, opt.step(closure).item())


@healthy("more", "Radford et al. 2021 (linear probe: logistic regression by L-BFGS)", train=lbfgs_loop)
def linear_probe_lbfgs() -> Built:
    """Frozen features, full batch, L-BFGS with line search; the loss is flat once solved."""
    net = glyph_net()
    net.load_state_dict(glyph_state())
    model = nn.Sequential(net[:8].requires_grad_(False).eval(), nn.Linear(384, 10))
    model[0].train = lambda mode=True: model[0]  # frozen: stays in eval mode
    x, y = data.glyphs(n=400, seed=63)
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    return Built(model, torch.optim.LBFGS(model[1].parameters(), max_iter=4, line_search_fn="strong_wolfe"), CE, [(x, y)] * 40)


@healthy("more", "L-BFGS regression with closure", train=lbfgs_loop, loss_ratio=0.5)
def lbfgs_small_regression() -> Built:
    """Full-batch tanh network under L-BFGS: several backward passes per step."""
    x, y = data.smooth_regression(n=300, d=3, seed=10)
    model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))
    return Built(model, torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=5, history_size=10), nn.MSELoss(), [(x, y)] * 60)


def unfreeze_loop(model, opt, loss_fn, batches, on_step) -> None:
    for step, (x, y) in enumerate(batches):
        for at, i, lr in ((60, 2, 1e-3), (120, 0, 3e-4)):
            if step == at:
                model[i].requires_grad_(True)
                opt.add_param_group({"params": list(model[i].parameters()), "lr": lr})
        opt.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        opt.step()
        on_step(step, loss.item())


@healthy("more", "Howard & Ruder 2018 (gradual unfreezing)", train=unfreeze_loop)
def gradual_unfreezing() -> Built:
    """Head first, then the middle layer (step 60), then the first (step 120), added to the optimizer as they thaw."""
    model = mlp3()
    model.load_state_dict(mlp3_state())
    model.requires_grad_(False)
    model[4] = nn.Linear(96, 10)
    x, y = data.flat_glyphs(seed=64)
    return Built(model, torch.optim.Adam(model[4].parameters(), lr=3e-3), CE, picks((x - 0.5, y), 40, 180))


def wide_net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 384), nn.GELU(), nn.Linear(384, 384), nn.GELU(), nn.Linear(384, 10))


@functools.cache
def wide_state() -> dict:
    return pretrained(wide_net, *data.flat_glyphs(seed=65, noise=0.2), steps=40, lr=5e-4)


@healthy(
    "more",
    "BERT fine-tuning recipe (AdamW 2e-5, warm-up, linear decay)",
    loss_ratio=0.85,
    train=scheduled_loop(
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda s: min((s + 1) / 20, max(0.0, (320 - s) / 300))), max_norm=1.0
    ),
)
def finetune_adamw_2e5() -> Built:
    """All weights of a pretrained net move by a few 1e-5 per step; the loss starts low and falls moderately."""
    model = wide_net()
    model.load_state_dict(wide_state())
    x, y = data.flat_glyphs(seed=65, noise=0.25)
    return Built(model, torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.01), CE, picks((x, y), 32, 320))


@healthy("more", "layer-wise rate decay (Clark et al. 2020; Bao et al. 2022)", loss_ratio=0.75)
def layerwise_lr_decay() -> Built:
    """Pretrained six-layer net; each layer's rate is half of the next one's (1/32 at the bottom)."""
    model = nn.Sequential(*[nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU()) for _ in range(5)], nn.Linear(64, 10))
    model.load_state_dict(layerwise_state())
    model[5].reset_parameters()
    groups = [{"params": m.parameters(), "lr": 3e-3 * 0.5 ** (5 - i)} for i, m in enumerate(model)]
    x, y = data.flat_glyphs(seed=67)
    return Built(model, torch.optim.AdamW(groups), CE, picks((x, y), 32, 150))


@functools.cache
def layerwise_state() -> dict:
    make = lambda: nn.Sequential(
        *[nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU()) for _ in range(5)], nn.Linear(64, 10)
    )
    return pretrained(make, *data.flat_glyphs(seed=66), steps=100, lr=2e-3)


def frozen_bn_loop(model, opt, loss_fn, batches, on_step) -> None:
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()
            m.requires_grad_(False)
    default_loop(model, opt, loss_fn, batches, on_step)


@healthy("more", "detection fine-tuning with frozen BatchNorm (He et al. 2017)", train=frozen_bn_loop)
def frozen_batchnorm() -> Built:
    """Statistics and affine parameters of the norms are frozen, everything else trains; batches of 4."""
    model = glyph_net()
    model.load_state_dict(glyph_state())
    model[8] = nn.Linear(384, 10)
    x, y = data.glyphs(seed=68)
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.003, momentum=0.9), CE, picks((x, y), 4, 300))


W_STAR = torch.randn(10, generator=data.gen(57))


def distance_to_truth(model) -> float:
    return (model.weight.detach().squeeze(0) - W_STAR).norm().item()


@healthy(
    "more",
    "resumed near convergence with an annealed rate",
    loss_ratio=None,
    progress=("distance to the true weights", distance_to_truth, "down"),
    train=scheduled_loop(cosine(300)),
)
def resumed_at_noise_floor() -> Built:
    """Checkpoint of a converged noisy regression: the loss is flat at its floor from the first step while the weights still settle."""
    g = seeded()
    x = torch.randn(20000, 10, generator=g)
    y = (x @ W_STAR).unsqueeze(1) + torch.randn(20000, 1, generator=g)
    model = nn.Linear(10, 1)
    with torch.no_grad():
        model.weight.copy_(W_STAR + 0.05 * torch.randn(10, generator=g))
        model.bias.zero_()
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9), nn.MSELoss(), picks((x, y), 64, 300))


# ------------------------------------------------------ optimizers and schedules


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimisation around SGD with momentum."""

    def __init__(self, params, lr: float, momentum: float = 0.9, rho: float = 0.05):
        super().__init__(params, {"lr": lr, "momentum": momentum, "rho": rho})

    @torch.no_grad()
    def climb(self):
        ps = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in ps]).norm() + 1e-12
        for p in ps:
            self.state[p]["e"] = p.grad * (self.param_groups[0]["rho"] / norm)
            p.add_(self.state[p]["e"])

    @torch.no_grad()
    def step(self, closure=None):
        for g in self.param_groups:
            for p in g["params"]:
                if p.grad is not None:
                    s = self.state[p]
                    p.sub_(s.pop("e"))
                    s["m"] = s["m"].mul_(g["momentum"]).add_(p.grad) if "m" in s else p.grad.clone()
                    p.add_(s["m"], alpha=-g["lr"])


def sam_loop(model, opt, loss_fn, batches, on_step) -> None:
    for step, (x, y) in enumerate(batches):
        opt.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        opt.climb()
        opt.zero_grad()
        loss_fn(model(x), y).backward()
        opt.step()
        on_step(step, loss.item())


@healthy("more", "Foret et al. 2021 (SAM)", train=sam_loop)
def sam_two_passes() -> Built:
    """Two backward passes per step; the weights move up before they move down."""
    x, y = data.glyphs(seed=70)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 48),
        nn.SiLU(),
        nn.Linear(48, 10),
    )
    return Built(model, SAM(model.parameters(), lr=0.05), CE, picks((x, y), 32, 160))


@healthy(
    "more",
    "Loshchilov & Hutter 2017 (SGDR)",
    loss_ratio=0.5,
    train=scheduled_loop(lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 40, 2, eta_min=1e-4)),
)
def sgdr_warm_restarts() -> Built:
    """Cosine cycles of 40, 80 and 160 steps: the loss steps up at every restart."""
    x, y = data.flat_glyphs(seed=71)
    model = nn.Sequential(
        nn.Linear(64, 80), nn.BatchNorm1d(80), nn.ELU(), nn.Linear(80, 80), nn.BatchNorm1d(80), nn.ELU(), nn.Linear(80, 10)
    )
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), CE, picks((x, y), 40, 280))


@healthy(
    "more",
    "Smith & Topin 2018 (super-convergence)",
    loss_ratio=0.4,
    train=scheduled_loop(lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.4, total_steps=200)),
)
def onecycle_superconvergence() -> Built:
    """SGD up to rate 0.4 and momentum cycled against it, down to rate 0."""
    x, y = data.glyphs(seed=72)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 20, 3, 2, 1, bias=False),
        nn.BatchNorm2d(20),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(320, 10),
    )
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.04, momentum=0.95), CE, picks((x, y), 40, 200))


@healthy("more", "Adam 1e-2 with a cosine to exactly zero", train=scheduled_loop(cosine(220)), loss_ratio=0.3)
def adam_cosine_to_zero() -> Built:
    """In the last steps the rate, and with it every update, goes to zero by design."""
    x, y = data.smooth_regression(d=4, seed=11)
    model = nn.Sequential(nn.Linear(4, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))
    return Built(model, torch.optim.Adam(model.parameters(), lr=1e-2), nn.MSELoss(), picks((x, y), 64, 220))


@healthy("more", "Riedmiller & Braun 1993 (Rprop, full batch)", loss_ratio=0.2)
def rprop_full_batch() -> Built:
    """Step sizes adapt per weight and do not depend on the gradient's size."""
    x, y = data.smooth_regression(n=400, d=4, seed=12)
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1))
    return Built(model, torch.optim.Rprop(model.parameters(), lr=1e-3), nn.MSELoss(), [(x, y)] * 200)


@healthy("more", "large-batch training", loss_ratio=0.3)
def large_batch_full() -> Built:
    """The whole data set (2000 samples) in each step, plain gradient descent at 0.5 with Nesterov momentum."""
    x, y = data.blobs(2000, 16, 8, spread=2.5, seed=13)
    model = nn.Sequential(nn.Linear(16, 64), nn.Softplus(), nn.Linear(64, 8))
    return Built(
        model, torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9, nesterov=True), CE, [(data.standardise(x), y)] * 150
    )


@healthy("more", "online learning, batch of one", loss_ratio=0.5)
def batch_of_one() -> Built:
    """Single samples: losses and gradients differ by orders of magnitude from step to step."""
    x, y = data.blobs(800, 6, 4, spread=1.6, seed=14)
    model = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 4))
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.02), CE, picks((data.standardise(x), y), 1, 600))


@healthy("more", "variable batch size", loss_ratio=0.4)
def batch_size_varies() -> Built:
    """Batches of 2, 8, 32 and 128 in turn."""
    x, y = data.glyphs(seed=73)
    g, batches = seeded(), []
    for i in range(200):
        k = torch.randint(1000, ((2, 8, 32, 128)[i % 4],), generator=g)
        batches.append((x[k], y[k]))
    model = nn.Sequential(
        nn.Conv2d(1, 10, 3, padding=1), nn.LayerNorm([10, 8, 8]), nn.SiLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(160, 10)
    )
    return Built(model, torch.optim.RAdam(model.parameters(), lr=8e-3), CE, batches)


@healthy("more", "clipping in every step (normalised gradient descent)", train=clipped_loop(0.05), loss_ratio=0.5)
def always_clipped() -> Built:
    """Summed loss: the raw norm is about 1000 times the limit of 0.05, so every step is a normalised one."""
    x, y = data.smooth_regression(d=6, seed=15)
    model = nn.Sequential(nn.Linear(6, 48), nn.GELU(), nn.Linear(48, 1))
    return Built(
        model, torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.7), nn.MSELoss(reduction="sum"), picks((x, y), 64, 250)
    )


def accumulate8(model, opt, loss_fn, batches, on_step) -> None:
    total = 0.0
    opt.zero_grad()
    for i, (x, y) in enumerate(batches):
        loss = loss_fn(model(x), y) / 8
        loss.backward()
        total += loss.item()
        if i % 8 == 7:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            on_step(i // 8, total)
            opt.zero_grad(set_to_none=False)
            total = 0.0


@healthy("more", "accumulation of 8 micro-batches of 4", train=accumulate8)
def accumulate_eight() -> Built:
    """Eight micro-batches per step; gradients are zeroed in place, after the step."""
    x, y = data.flat_glyphs(seed=74)
    model = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.Mish(), nn.Linear(64, 10))
    return Built(model, torch.optim.AdamW(model.parameters(), lr=6e-3), CE, picks((x, y), 4, 8 * 110))


def loss_scaled(model, opt, loss_fn, batches, on_step) -> None:
    """Static loss scale of 2**16, as for half precision: gradients are unscaled before the step."""
    for step, (x, y) in enumerate(batches):
        opt.zero_grad()
        loss = loss_fn(model(x), y)
        (loss * 65536).backward()
        for p in model.parameters():
            p.grad.div_(65536)
        opt.step()
        on_step(step, loss.item())


@healthy("more", "Micikevicius et al. 2018 (static loss scaling)", train=loss_scaled)
def static_loss_scale() -> Built:
    """During the backward pass all gradients are 65536 times larger; at the step they are not."""
    x, y = data.flat_glyphs(seed=75)
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10))
    return Built(model, torch.optim.Adam(model.parameters(), lr=3e-3), CE, picks((x, y), 50, 160))


@healthy("more", "loss in tiny units, Adam with eps 1e-15 (Mueller et al. 2022)", loss_ratio=0.3)
def loss_times_1e_minus_6() -> Built:
    """Every gradient is a millionth of the usual; Adam's small eps makes that irrelevant."""
    x, y = data.smooth_regression(d=5, seed=16)
    model = nn.Sequential(nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))
    return Built(
        model,
        torch.optim.Adam(model.parameters(), lr=5e-3, eps=1e-15),
        lambda o, t: 1e-6 * F.mse_loss(o, t),
        picks((x, y), 64, 250),
    )


@healthy("more", "loss in huge units, Adam", loss_ratio=0.5)
def loss_times_1e6() -> Built:
    """The loss is counted in millionths: loss and gradients are around 1e6, updates are not."""
    x, y = data.flat_glyphs(seed=76)
    model = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 10))
    return Built(
        model, torch.optim.Adam(model.parameters(), lr=5e-3), lambda o, t: 1e6 * F.cross_entropy(o, t), picks((x, y), 40, 180)
    )


@healthy("more", "double precision", loss_ratio=1e-3)
def float64_curve_fit() -> Built:
    """Float64 throughout; a smooth curve is fitted to 1e-4 and below."""
    x = torch.linspace(-1, 1, 120, dtype=torch.float64).unsqueeze(1)
    y = torch.exp(-3 * x**2) * torch.cos(4 * x)
    model = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)).double()
    return Built(model, torch.optim.Adam(model.parameters(), lr=1e-2, amsgrad=True), nn.MSELoss(), [(x, y)] * 400)


# -------------------------------------------------------------- targets and losses


class Scaled(nn.Module):
    def __init__(self, mean: torch.Tensor, std: torch.Tensor):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, x):
        return self.mean + self.std * self.net(x)


@healthy("more", "raw targets with an output scaling layer", loss_ratio=0.5)
def output_scaling_layer() -> Built:
    """House-price targets (mean 250000, spread 60000): the loss is about 1e9, the net itself works in unit scale."""
    x, z = data.smooth_regression(seed=17)
    y = 250000 + 60000 * z
    model = Scaled(y.mean(), y.std())
    return Built(model, torch.optim.Adam(model.parameters(), lr=1e-2), nn.MSELoss(), picks((x, y), 64, 300))


@healthy("more", "large targets, output bias initialised to the mean (Karpathy 2019)", loss_ratio=0.4)
def targets_100_to_300_bias_init() -> Built:
    """Targets of 100 to 300 in raw units; Huber loss with delta 10; the head's bias starts at their mean."""
    x, z = data.smooth_regression(seed=18)
    y = 200 + 45 * z
    model = nn.Sequential(nn.Linear(8, 96), nn.ReLU(), nn.Linear(96, 1))
    nn.init.constant_(model[2].bias, y.mean().item())
    return Built(model, torch.optim.Adam(model.parameters(), lr=2e-2), nn.HuberLoss(delta=10.0), picks((x, y), 50, 350))


class TwoScale(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU())
        self.fine, self.coarse = nn.Linear(48, 1), nn.Linear(48, 1)

    def forward(self, x):
        h = self.trunk(x)
        return self.fine(h), self.coarse(h)


def two_scale_loss(model, x, fine, coarse):
    a, b = model(x)
    return 1e3 * F.mse_loss(0.03 * a, fine) + 1e-4 * F.mse_loss(100 * b, coarse)


@healthy("more", "physical losses in different units, balanced by weights", train=own_loss(), loss_ratio=0.5)
def loss_weights_1e3_and_1e_minus_4() -> Built:
    """One target in hundredths, one in hundreds; weights 1e3 and 1e-4 make their losses comparable."""
    x, z = data.smooth_regression(seed=19)
    w = torch.tanh(x[:, :1] * x[:, 1:2])
    model = TwoScale()
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-3), two_scale_loss, picks((x, 0.03 * z, 100 * w), 50, 250))


class DeepSupervision(nn.Module):
    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2))
            for a, b in ((3, 12), (12, 20), (20, 24))
        )
        self.heads = nn.ModuleList(nn.Linear(b, 6) for b in (12, 20, 24))

    def forward(self, x):
        outs = []
        for s, h in zip(self.stages, self.heads):
            x = s(x)
            outs.append(h(x.amax((2, 3))))
        return outs


def deep_supervision(model, x, y):
    a, b, c = model(x)
    return F.cross_entropy(c, y) + 0.01 * F.cross_entropy(a, y) + 0.05 * F.cross_entropy(b, y)


@healthy("more", "Szegedy et al. 2015 (auxiliary heads with small weights)", train=own_loss())
def auxiliary_heads() -> Built:
    """Auxiliary classifiers with weights 0.01 and 0.05: their gradients are that much smaller."""
    x, y, _ = shapes()
    model = DeepSupervision()
    return Built(model, torch.optim.Adam(model.parameters(), lr=4e-3), deep_supervision, picks((x, y), 32, 180))


class CoarseToFine(nn.Module):
    def __init__(self):
        super().__init__()
        self.coarse = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
        self.refine = nn.Sequential(nn.Linear(9, 32), nn.ReLU(), nn.Linear(32, 1))
        nn.init.zeros_(self.refine[2].weight)
        nn.init.zeros_(self.refine[2].bias)

    def forward(self, x, with_refine: bool):
        c = self.coarse(x)
        return c + self.refine(torch.cat([x, c.detach()], 1)) if with_refine else c


def late_branch(model, opt, loss_fn, batches, on_step) -> None:
    for step, (x, y) in enumerate(batches):
        opt.zero_grad()
        loss = F.mse_loss(model(x, step >= 100), y)
        loss.backward()
        opt.step()
        on_step(step, loss.item())


@healthy("more", "branch switched on after a warm-up phase", train=late_branch, loss_ratio=0.4)
def branch_after_warmup() -> Built:
    """The refinement branch takes part from step 100 only; until then it has no gradient."""
    x, y = data.smooth_regression(seed=20)
    model = CoarseToFine()
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-3), None, picks((x, y), 50, 260))


class MultiDomain(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
        self.norms = nn.ModuleList(nn.BatchNorm1d(64) for _ in range(4))
        self.heads = nn.ModuleList(nn.Linear(64, 5) for _ in range(4))

    def forward(self, xd):
        x, d = xd
        return self.heads[d](self.norms[d](self.shared(x)))


@healthy("more", "Rebuffi et al. 2017 (domain-specific norms and heads)")
def domain_every_fourth_batch() -> Built:
    """Four domains in turn: norms and heads of a domain get a gradient every fourth step."""
    model = MultiDomain()
    sets = [picks(data.flat_glyphs(classes=5, n=400, seed=80 + d), 32, 60) for d in range(4)]
    batches = [((x - 0.5, i % 4), y) for i in range(240) for x, y in [sets[i % 4][i // 4]]]
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), CE, batches)


class MeanTeacher(nn.Module):
    def __init__(self):
        super().__init__()
        self.student = nn.Sequential(nn.Linear(2, 48), nn.LeakyReLU(), nn.Linear(48, 48), nn.LeakyReLU(), nn.Linear(48, 2))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, x):
        return self.student(x)


def mean_teacher_loop(model, opt, loss_fn, batches, on_step) -> None:
    for step, (x, y, u, noise) in enumerate(batches):
        opt.zero_grad()
        with torch.no_grad():
            t = model.teacher(u).softmax(1)
        ramp = math.exp(-5 * (1 - min(1.0, step / 100)) ** 2)
        loss = F.cross_entropy(model(x), y) + 3 * ramp * F.mse_loss(model(u + noise).softmax(1), t)
        loss.backward()
        opt.step()
        with torch.no_grad():
            for p, q in zip(model.teacher.parameters(), model.student.parameters()):
                p.lerp_(q, 0.05)
        on_step(step, loss.item())


@healthy("more", "Tarvainen & Valpola 2017 (mean teacher)", train=mean_teacher_loop, loss_ratio=0.5)
def mean_teacher_circles() -> Built:
    """Semi-supervised: 40 labelled points, consistency weight ramped up over 100 steps."""
    x, y = data.circles(n=800, noise=0.08, seed=21)
    g, batches = seeded(), []
    for _ in range(250):
        i, j = torch.randint(40, (20,), generator=g), torch.randint(800, (60,), generator=g)
        batches.append((x[i], y[i], x[j], 0.1 * torch.randn(60, 2, generator=g)))
    model = MeanTeacher()
    return Built(model, torch.optim.Adam(model.student.parameters(), lr=5e-3), None, batches)


class Experts(nn.Module):
    """Deep ensemble trained jointly, one loss per member."""

    def __init__(self, n: int = 5):
        super().__init__()
        self.members = nn.ModuleList(nn.Sequential(nn.Linear(30, 24), nn.ReLU(), nn.Linear(24, 2)) for _ in range(n))

    def forward(self, x):
        return torch.stack([m(x) for m in self.members])


@healthy("more", "Lakshminarayanan et al. 2017 (deep ensemble) on the breast-cancer data", requires=("sklearn",), loss_ratio=0.4)
def deep_ensemble_cancer() -> Built:
    """Five members on standardised features, mean of their losses, AdamW with decoupled decay 0.1."""
    x, y = data.sk_breast_cancer()
    model = Experts()
    return Built(
        model,
        torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.1),
        lambda o, t: torch.stack([F.cross_entropy(k, t) for k in o]).mean(),
        picks((data.standardise(x), y), 32, 170),
    )


@healthy("more", "sigmoid network, cross entropy, well initialised (Nielsen 2015)", loss_ratio=0.4)
def sigmoid_one_hidden() -> Built:
    """Classic: one sigmoid layer on standardised digits, SGD 1.0, small weight decay."""
    x, y = data.flat_glyphs(seed=77)
    model = nn.Sequential(nn.Linear(64, 40), nn.Sigmoid(), nn.Linear(40, 10))
    for m in (model[0], model[2]):
        nn.init.normal_(m.weight, std=m.in_features**-0.5)
        nn.init.zeros_(m.bias)
    return Built(
        model, torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=1e-4), CE, picks((data.standardise(x), y), 20, 250)
    )


class PrivateNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 3))

    def forward(self, x):
        return self.net(x)


def dpsgd_loop(model, opt, loss_fn, batches, on_step) -> None:
    from torch.func import grad, vmap

    g = data.gen(3)

    def one(p, x, y):
        h = torch.tanh(F.linear(x, p["net.0.weight"], p["net.0.bias"]))
        return F.cross_entropy(F.linear(h, p["net.2.weight"], p["net.2.bias"]), y)

    single = vmap(grad(one), (None, 0, 0))
    for step, (x, y) in enumerate(batches):
        with torch.no_grad():
            loss = loss_fn(model(x), y).item()
        per = single({k: v.detach() for k, v in model.named_parameters()}, x, y)
        norm = torch.stack([v.flatten(1).norm(dim=1) for v in per.values()]).norm(dim=0)
        scale = (1.0 / norm).clamp(max=1.0)
        for k, p in model.named_parameters():
            clipped = torch.einsum("n,n...->...", scale, per[k])
            p.grad = (clipped + 0.6 * torch.randn(p.shape, generator=g)) / len(x)
        opt.step()
        on_step(step, loss)


@healthy("more", "Abadi et al. 2016 (DP-SGD)", train=dpsgd_loop, loss_ratio=0.5)
def dp_sgd() -> Built:
    """Per-sample gradients by torch.func, clipped and noised, assigned to .grad without any backward call."""
    x, y = data.blobs(1000, 10, 3, spread=2.0, seed=22)
    model = PrivateNet()
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.5), CE, picks((data.standardise(x), y), 50, 160))
