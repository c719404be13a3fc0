"""Held-out healthy programs, part C: generative models, reinforcement learning, metric and self-supervised learning,
physics, meta-learning.  Nothing may be reported."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from .. import data
from ..core import Built, healthy, scheduled_loop
from ._loops import cosine, own_loss, picks, seeded

CE = nn.CrossEntropyLoss()


def binary_glyphs(seed: int, noise: float = 0.1) -> torch.Tensor:
    return (data.flat_glyphs(seed=seed, noise=noise)[0] > 0.5).float()


def moons(n: int, g: torch.Generator, noise: float = 0.08) -> torch.Tensor:
    t, s = math.pi * torch.rand(n, generator=g), torch.randint(2, (n,), generator=g).float()
    x = torch.stack([t.cos() * (1 - 2 * s) + s, t.sin() * (1 - 2 * s) + 0.5 * s], 1)
    return x - torch.tensor([0.5, 0.25]) + noise * torch.randn(n, 2, generator=g)


# ----------------------------------------------------------- likelihood models


class VAE(nn.Module):
    def __init__(self, latent: int):
        super().__init__()
        self.enc, self.mu, self.logvar = nn.Sequential(nn.Linear(64, 64), nn.Tanh()), nn.Linear(64, latent), nn.Linear(64, latent)
        self.dec = nn.Sequential(nn.Linear(latent, 64), nn.Tanh(), nn.Linear(64, 64))

    def forward(self, x):
        h = self.enc(x)
        mu, logvar = self.mu(h), self.logvar(h)
        z = mu + (0.5 * logvar).exp() * torch.randn_like(mu)
        return self.dec(z), mu, logvar


def elbo_terms(model, x):
    out, mu, logvar = model(x)
    rec = F.binary_cross_entropy_with_logits(out, x, reduction="sum") / len(x)
    return rec, 0.5 * (mu.pow(2) + logvar.exp() - 1 - logvar).sum(1).mean()


def vae_warmup(model, opt, loss_fn, batches, on_step) -> None:
    for step, (x,) in enumerate(batches):
        rec, kl = elbo_terms(model, x)
        loss = rec + min(1.0, step / 100) * kl
        opt.zero_grad()
        loss.backward()
        opt.step()
        on_step(step, loss.item())


@healthy("more", "Kingma & Welling 2014; Bowman et al. 2016 (KL warm-up)", train=vae_warmup, loss_ratio=0.8)
def vae_kl_warmup() -> Built:
    """VAE on binary images, summed likelihood (about 40 nats), KL weight 0 -> 1 within 100 steps."""
    model = VAE(6)
    return Built(model, torch.optim.Adam(model.parameters(), lr=3e-3), None, picks((binary_glyphs(40),), 64, 250))


def beta_vae_loss(model, x):
    rec, kl = elbo_terms(model, x)
    return rec + 3 * kl


@healthy("more", "Higgins et al. 2017 (beta-VAE, beta 3)", train=own_loss(), loss_ratio=0.85)
def beta_vae() -> Built:
    """16 latents, most of which the KL term switches off: known and intended."""
    model = VAE(16)
    return Built(model, torch.optim.Adam(model.parameters(), lr=4e-3), beta_vae_loss, picks((binary_glyphs(41, 0.02),), 64, 300))


class Coupling(nn.Module):
    def __init__(self, flip: bool):
        super().__init__()
        self.flip = flip
        self.net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2))
        nn.init.zeros_(self.net[4].weight)
        nn.init.zeros_(self.net[4].bias)

    def forward(self, x):
        a, b = x[:, :1], x[:, 1:]
        if self.flip:
            a, b = b, a
        s, t = self.net(a).chunk(2, 1)
        s = 2 * torch.tanh(s)
        b = (b + t) * s.exp()
        return torch.cat([b, a] if self.flip else [a, b], 1), s.squeeze(1)


class RealNVP(nn.Module):
    def __init__(self, n: int = 6):
        super().__init__()
        self.layers = nn.ModuleList(Coupling(i % 2 == 1) for i in range(n))
        self.log_scale = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        x, logdet = x * self.log_scale.exp(), self.log_scale.sum()
        for m in self.layers:
            x, s = m(x)
            logdet = logdet + s
        return (0.5 * x.pow(2) + 0.5 * math.log(2 * math.pi)).sum(1) - logdet


def flow_nll(model) -> float:
    with torch.no_grad():
        return model(0.4 * moons(500, data.gen(2))).mean().item()


@healthy(
    "more",
    "Dinh et al. 2017 (RealNVP)",
    train=own_loss(clip=5.0),
    loss_ratio=None,
    progress=("held-out negative log likelihood", flow_nll, "down"),
)
def realnvp_flow() -> Built:
    """Tight data, so the negative log likelihood starts near 2 and crosses zero; couplings start as the identity."""
    model = RealNVP()
    return Built(
        model,
        torch.optim.Adam(model.parameters(), lr=2e-3),
        lambda m, x: m(x).mean(),
        picks((0.4 * moons(3000, seeded()),), 128, 300),
    )


class MDN(nn.Module):
    def __init__(self, k: int = 5):
        super().__init__()
        self.body, self.logit, self.mu, self.log_s = (
            nn.Sequential(nn.Linear(1, 40), nn.Tanh()),
            nn.Linear(40, k),
            nn.Linear(40, k),
            nn.Linear(40, k),
        )

    def forward(self, x):
        h = self.body(x)
        return self.logit(h).log_softmax(1), self.mu(h), self.log_s(h)


def mdn_nll(out, y):
    lp, mu, ls = out
    return -(lp - 0.5 * ((y - mu) / ls.exp()) ** 2 - ls - 0.92).logsumexp(1).mean()


def inverse_sine(n, g):
    t = 2 * torch.rand(n, 1, generator=g) - 1
    return 2 * (t + 0.3 * torch.sin(2 * math.pi * t) + 0.03 * torch.randn(n, 1, generator=g)), 2 * t


def mdn_heldout(model) -> float:
    x, y = inverse_sine(500, data.gen(3))
    with torch.no_grad():
        return mdn_nll(model(x), y).item()


@healthy("more", "Bishop 1994 (mixture density network)", loss_ratio=None, progress=("held-out NLL", mdn_heldout, "down"))
def mixture_density() -> Built:
    """Five Gaussians for the inverse sine problem; the NLL falls through zero."""
    model = MDN()
    return Built(model, torch.optim.Adam(model.parameters(), lr=1e-2), mdn_nll, picks(inverse_sine(3000, seeded()), 150, 400))


class TwoOut(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 2))

    def forward(self, x):
        return self.net(x)


def hetero_data(n, g):
    x = torch.randn(n, 4, generator=g)
    return x, torch.sin(2 * x[:, :1]) + (0.05 + 0.3 * torch.sigmoid(2 * x[:, 1:2])) * torch.randn(n, 1, generator=g)


def hetero_error(model) -> float:
    x, _ = hetero_data(500, data.gen(4))
    with torch.no_grad():
        return (model(x)[:, :1] - torch.sin(2 * x[:, :1])).pow(2).mean().item()


@healthy(
    "more", "Nix & Weigend 1994 (mean and variance), float64", loss_ratio=None, progress=("error of the mean", hetero_error, "down")
)
def gaussian_nll_hetero() -> Built:
    """Heteroscedastic Gaussian likelihood; gradients of the mean grow while the variance shrinks, and settle."""
    model = TwoOut()
    return Built(
        model,
        torch.optim.Adam(model.parameters(), lr=4e-3),
        lambda o, y: F.gaussian_nll_loss(o[:, :1], y, F.softplus(o[:, 1:]) + 1e-3),
        picks(hetero_data(3000, seeded()), 100, 300),
    )


class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("freq", 2.0 ** torch.arange(6))
        self.inp, self.hid, self.out = nn.Linear(2 + 12, 96), nn.Linear(96, 96), nn.Linear(96, 2)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x, t):
        a = t * self.freq
        h = F.silu(self.inp(torch.cat([x, a.sin(), a.cos()], 1)))
        return self.out(F.silu(h + self.hid(h)))


def ddpm_loop(model, opt, loss_fn, batches, on_step) -> None:
    ema = copy.deepcopy(model)
    for step, (x, t, eps) in enumerate(batches):
        a = torch.cos(0.5 * math.pi * t)
        opt.zero_grad()
        loss = (model(a * x + (1 - a**2).sqrt() * eps, t) - eps).pow(2).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        with torch.no_grad():
            for p, q in zip(ema.parameters(), model.parameters()):
                p.lerp_(q, 0.02)
        on_step(step, loss.item())
    model.load_state_dict(ema.state_dict())


@healthy("more", "Ho et al. 2020 (DDPM), EMA weights for evaluation", train=ddpm_loop, loss_ratio=0.7)
def diffusion_two_moons() -> Built:
    """Noise prediction with a zero-initialised output layer: the loss starts at 1 and levels off near its floor."""
    g = seeded()
    x = 1.5 * moons(40000, g)
    model = Denoiser()
    batches = [(b, 0.02 + 0.96 * torch.rand(len(b), 1, generator=g), torch.randn(b.shape, generator=g)) for b in x.split(160)[:250]]
    return Built(model, torch.optim.AdamW(model.parameters(), lr=3e-3), None, batches)


class VQVAE(nn.Module):
    def __init__(self, codes: int = 16, d: int = 6):
        super().__init__()
        self.enc = nn.Sequential(nn.Conv2d(1, 16, 2, 2), nn.GELU(), nn.Conv2d(16, d, 1))
        self.codebook = nn.Embedding(codes, d)
        self.dec = nn.Sequential(nn.Conv2d(d, 16, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(16, 1, 2, 2))

    def forward(self, x):
        z = self.enc(x).permute(0, 2, 3, 1)
        i = torch.cdist(z.flatten(0, 2), self.codebook.weight).argmin(1)
        q = self.codebook(i).view(z.shape)
        return self.dec((z + (q - z).detach()).permute(0, 3, 1, 2)), z, q


def vq_loss(model, x):
    out, z, q = model(x)
    return F.mse_loss(out, x) + F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())


@healthy("more", "van den Oord et al. 2017 (VQ-VAE, straight-through)", train=own_loss(), loss_ratio=0.5)
def vq_vae() -> Built:
    """Codebook of 16 with straight-through gradients and commitment loss."""
    x, _ = data.glyphs(seed=42, noise=0.05)
    model = VQVAE()
    with torch.no_grad():  # codes start at encoder outputs
        z = model.enc(x[:100]).permute(0, 2, 3, 1).flatten(0, 2)
        model.codebook.weight.copy_(z[torch.randperm(len(z))[:16]])
    return Built(model, torch.optim.Adam(model.parameters(), lr=4e-3), vq_loss, picks((x,), 32, 250))


# ----------------------------------------------------------- adversarial games


class GAN(nn.Module):
    def __init__(self, gen: nn.Module, disc: nn.Module, z: int):
        super().__init__()
        self.gen, self.disc, self.z = gen, disc, z

    def forward(self, n):
        return self.gen(torch.randn(n, self.z))


RING = 1.5 * torch.tensor([[math.cos(a), math.sin(a)] for a in (0.3, 1.87, 3.44, 5.01)])


def ring_gap(model) -> float:
    """Mean distance of the samples to the nearest mode, plus the gap in the mean radius of coverage."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(5)
        x = model(600)
        d = torch.cdist(x, RING)
        share = F.one_hot(d.argmin(1), 4).float().mean(0)
        return d.amin(1).mean().item() + (share - 0.25).abs().sum().item()


def play(d_loss, g_loss, per_step: int = 1, switch_off: bool = False):
    def loop(model, opt, loss_fn, batches, on_step) -> None:
        for step, (real,) in enumerate(batches):
            fake = model(len(real))
            if switch_off:
                model.disc.requires_grad_(True)
            opt["D"].zero_grad()
            d_loss(model.disc(real), model.disc(fake.detach())).backward()
            opt["D"].step()
            if step % per_step == 0:
                if switch_off:
                    model.disc.requires_grad_(False)
                opt["G"].zero_grad()
                g_loss(model.disc(fake)).backward()
                opt["G"].step()
            on_step(step, None)
        model.disc.requires_grad_(True)

    return loop


def bce_d(real, fake):
    return F.binary_cross_entropy_with_logits(real, torch.full_like(real, 0.9)) + F.binary_cross_entropy_with_logits(
        fake, torch.zeros_like(fake)
    )


def bce_g(fake):
    return F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake))


@healthy(
    "more",
    "Goodfellow et al. 2014 (non-saturating GAN, one-sided smoothing)",
    train=play(bce_d, bce_g, switch_off=True),
    loss_ratio=None,
    progress=("gap to the modes", ring_gap, "down"),
)
def gan_bce_ring() -> Built:
    """Four modes on a ring; discriminator gradients are switched off during the generator's step."""
    g = seeded()
    x = RING[torch.randint(4, (4000,), generator=g)] + 0.2 * torch.randn(4000, 2, generator=g)
    model = GAN(
        nn.Sequential(
            nn.Linear(6, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 2)
        ),
        nn.Sequential(nn.Linear(2, 48), nn.LeakyReLU(0.2), nn.Linear(48, 48), nn.LeakyReLU(0.2), nn.Linear(48, 1)),
        6,
    )
    opt = {
        "G": torch.optim.Adam(model.gen.parameters(), lr=2e-3, betas=(0.5, 0.999)),
        "D": torch.optim.Adam(model.disc.parameters(), lr=2e-3, betas=(0.5, 0.999)),
    }
    return Built(model, opt, None, picks((x,), 100, 400))


def wave_gap(model) -> float:
    ref = waves(600, data.gen(6))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(5)
        x = model(600)
        return (x.mean(0) - ref.mean(0)).abs().mean().item() + (x.std(0) - ref.std(0)).abs().mean().item()


def waves(n: int, g: torch.Generator) -> torch.Tensor:
    t = torch.linspace(0, 1, 16)
    amp, f = 0.6 + 0.6 * torch.rand(n, 1, generator=g), 0.8 + 0.4 * torch.rand(n, 1, generator=g)
    return amp * torch.sin(2 * math.pi * f * t) + 0.5


@healthy(
    "more",
    "Mao et al. 2017 (least-squares GAN)",
    loss_ratio=None,
    progress=("gap of mean and spread", wave_gap, "down"),
    train=play(lambda r, f: 0.5 * ((r - 1) ** 2).mean() + 0.5 * (f**2).mean(), lambda f: 0.5 * ((f - 1) ** 2).mean()),
)
def lsgan_waves() -> Built:
    """Generates short waves; RMSprop for both players."""
    model = GAN(
        nn.Sequential(nn.Linear(5, 48), nn.LeakyReLU(0.2), nn.Linear(48, 48), nn.LeakyReLU(0.2), nn.Linear(48, 16)),
        nn.Sequential(nn.Linear(16, 48), nn.LeakyReLU(0.2), nn.Linear(48, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1)),
        5,
    )
    opt = {"G": torch.optim.RMSprop(model.gen.parameters(), lr=5e-4), "D": torch.optim.RMSprop(model.disc.parameters(), lr=5e-4)}
    return Built(model, opt, None, picks((waves(3000, seeded()),), 64, 300))


def glyph_gap(model) -> float:
    x, y = data.glyphs(seed=43)
    ref = x[y < 3]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(5)
        x = model(400)
        return (x.mean(0) - ref.mean(0)).abs().mean().item() + (x.std(0) - ref.std(0)).abs().mean().item()


@healthy(
    "more",
    "Miyato et al. 2018 (SN-GAN, hinge loss)",
    loss_ratio=None,
    progress=("gap of mean and spread", glyph_gap, "down"),
    train=play(lambda r, f: F.relu(1 - r).mean() + F.relu(1 + f).mean(), lambda f: -f.mean(), per_step=2),
)
def sngan_hinge() -> Built:
    """Spectrally normalised convolutional discriminator, hinge loss, two discriminator steps per generator step."""
    x, y = data.glyphs(seed=43)
    sn = parametrizations.spectral_norm
    model = GAN(
        nn.Sequential(
            nn.Linear(8, 128),
            nn.ReLU(),
            nn.Unflatten(1, (8, 4, 4)),
            nn.ConvTranspose2d(8, 16, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(16, 1, 3, padding=1),
            nn.Sigmoid(),
        ),
        nn.Sequential(
            sn(nn.Conv2d(1, 12, 3, padding=1)),
            nn.LeakyReLU(0.1),
            sn(nn.Conv2d(12, 24, 4, 2, 1)),
            nn.LeakyReLU(0.1),
            nn.Flatten(),
            sn(nn.Linear(384, 1)),
        ),
        8,
    )
    opt = {
        "G": torch.optim.Adam(model.gen.parameters(), lr=2e-3, betas=(0.0, 0.9)),
        "D": torch.optim.Adam(model.disc.parameters(), lr=1e-3, betas=(0.0, 0.9)),
    }
    return Built(model, opt, None, picks((x[y < 3],), 32, 300))


# ------------------------------------------------------ reinforcement learning


class PointMass:
    """Vectorised: push a mass (position, velocity) to the origin with -1, 0 or +1."""

    def __init__(self, n: int, g: torch.Generator):
        self.s = torch.stack([2 * torch.rand(n, generator=g) - 1, torch.zeros(n)], 1)

    def step(self, force: torch.Tensor) -> torch.Tensor:
        pos, vel = self.s.unbind(1)
        vel = 0.8 * vel + 0.3 * force
        pos = (pos + 0.5 * vel).clamp(-2, 2)
        self.s = torch.stack([pos, vel], 1)
        return -(pos**2)


def greedy_return(pick):
    def measure(model) -> float:
        env, total = PointMass(200, data.gen(8)), 0.0
        with torch.no_grad():
            for _ in range(12):
                total += env.step(pick(model, env.s)).mean().item()
        return total

    return measure


class Policy(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 3))
        nn.init.normal_(self.net[2].weight, std=0.01)

    def forward(self, s):
        return self.net(s)


def reinforce(model, opt, loss_fn, batches, on_step) -> None:
    for step, g in enumerate(batches):
        env, logp, rew = PointMass(32, g), [], []
        for _ in range(10):
            dist = torch.distributions.Categorical(logits=model(env.s))
            a = torch.multinomial(dist.probs, 1, generator=g).squeeze(1)
            logp.append(dist.log_prob(a))
            rew.append(env.step(a.float() - 1))
        ret = torch.stack(rew).flip(0).cumsum(0).flip(0)
        adv = ret - ret.mean(1, keepdim=True)
        opt.zero_grad()
        (-(torch.stack(logp) * adv / (adv.std() + 1e-6)).mean()).backward()
        opt.step()
        on_step(step, None)


@healthy(
    "more",
    "Williams 1992 (REINFORCE with a batch baseline)",
    train=reinforce,
    loss_ratio=None,
    progress=("greedy return", greedy_return(lambda m, s: m(s).argmax(1).float() - 1), "up"),
)
def reinforce_point_mass() -> Built:
    """Policy gradient; no loss is told because it means nothing."""
    model = Policy()
    g = seeded()
    return Built(model, torch.optim.Adam(model.parameters(), lr=1e-2), None, [g] * 150)


BANDIT = torch.randn(6, 5, generator=data.gen(56))


def bandit_reward(model) -> float:
    x = torch.randn(500, 6, generator=data.gen(9))
    with torch.no_grad():
        return (model(x).argmax(1) == (x @ BANDIT).argmax(1)).float().mean().item()


def bandit_loop(model, opt, loss_fn, batches, on_step) -> None:
    baseline = 0.2
    for step, (x, u) in enumerate(batches):
        logits = model(x)
        p = logits.softmax(1)
        a = (p.detach().cumsum(1) > u).float().argmax(1)
        r = (a == (x @ BANDIT).argmax(1)).float()
        entropy = -(p * p.clamp(min=1e-8).log()).sum(1).mean()
        loss = -((r - baseline) * logits.log_softmax(1).gather(1, a.unsqueeze(1)).squeeze(1)).mean() - 0.01 * entropy
        baseline = 0.9 * baseline + 0.1 * r.mean().item()
        opt.zero_grad()
        loss.backward()
        opt.step()
        on_step(step, loss.item())


@healthy(
    "more",
    "Sutton & Barto 2018, ch. 2.8 (gradient bandit with a running baseline)",
    train=bandit_loop,
    loss_ratio=None,
    progress=("share of best arms", bandit_reward, "up"),
)
def bandit_told_surrogate() -> Built:
    """Contextual bandit that reports its surrogate loss: it hovers around zero without a trend while the reward climbs."""
    g = seeded()
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 5))
    return Built(
        model,
        torch.optim.Adam(model.parameters(), lr=1e-2),
        None,
        [(torch.randn(64, 6, generator=g), torch.rand(64, 1, generator=g)) for _ in range(300)],
    )


class DQN(nn.Module):
    def __init__(self):
        super().__init__()
        self.online = nn.Sequential(nn.Linear(2, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 3))
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    def forward(self, s):
        return self.online(s)


def dqn_loop(model, opt, loss_fn, batches, on_step) -> None:
    replay: list = []
    env, explore = None, 30
    for k, g in enumerate(batches):
        step = k - explore
        if k % 12 == 0:
            env = PointMass(32, g)
        with torch.no_grad():
            a = model(env.s).argmax(1)
            rand = torch.rand(32, generator=g) < min(1.0, max(0.1, 1 - step / 100))
            a = torch.where(rand, torch.randint(3, (32,), generator=g), a)
            s = env.s
            replay.append((s, a, env.step(a.float() - 1), env.s))
        if step < 0:
            continue
        recent = replay[-150:]
        i = torch.randint(32 * len(recent), (64,), generator=g)
        s, a, r, s2 = (torch.cat(t)[i] for t in zip(*recent))
        with torch.no_grad():
            best = model.online(s2).argmax(1, keepdim=True)
            target = r + 0.9 * model.target(s2).gather(1, best).squeeze(1)
        opt.zero_grad()
        loss = F.smooth_l1_loss(model(s).gather(1, a.unsqueeze(1)).squeeze(1), target)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        opt.step()
        if step % 20 == 19:
            model.target.load_state_dict(model.online.state_dict())
        on_step(step, loss.item())


@healthy(
    "more",
    "Mnih et al. 2015; van Hasselt et al. 2016 (double DQN)",
    train=dqn_loop,
    loss_ratio=None,
    progress=("greedy return", greedy_return(lambda m, s: m(s).argmax(1).float() - 1), "up"),
)
def double_dqn() -> Built:
    """A frozen target copy is replaced every 20 steps: the loss rises at each replacement and does not fall overall."""
    model = DQN()
    g = seeded()
    return Built(model, torch.optim.RMSprop(model.online.parameters(), lr=1e-3), None, [g] * 330)


class ActorCritic(nn.Module):
    def __init__(self):
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1, bias=False))
        self.log_std = nn.Parameter(torch.tensor(-0.5))
        self.critic = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, s):
        return self.actor(s)


def a2c_loop(model, opt, loss_fn, batches, on_step) -> None:
    env = None
    for step, g in enumerate(batches):
        if step % 3 == 0:
            env = PointMass(48, g)
        ss, logp, rew = [], [], []
        for _ in range(5):
            mu, std = model(env.s).squeeze(1), model.log_std.exp()
            a = (mu + std * torch.randn(48, generator=g)).detach()
            ss.append(env.s)
            logp.append(-0.5 * ((a - mu) / std) ** 2 - model.log_std)
            rew.append(env.step(a.clamp(-1, 1)))
        ss = torch.stack(ss)
        with torch.no_grad():
            ret, out = model.critic(env.s).squeeze(1), []
            for r in reversed(rew):
                ret = r + 0.9 * ret
                out.insert(0, ret)
        value = model.critic(ss).squeeze(2)
        adv = torch.stack(out) - value
        for o in opt.values():
            o.zero_grad()
        (-(torch.stack(logp) * adv.detach()).mean() - 0.003 * model.log_std).backward()
        adv.pow(2).mean().backward()
        for o in opt.values():
            o.step()
        on_step(step, None)


@healthy(
    "more",
    "Mnih et al. 2016 (advantage actor-critic, Gaussian policy)",
    train=a2c_loop,
    loss_ratio=None,
    progress=("return of the mean action", greedy_return(lambda m, s: m(s).squeeze(1).clamp(-1, 1)), "up"),
)
def actor_critic_continuous() -> Built:
    """Two optimizers with different rates; n-step returns bootstrapped from the critic."""
    model = ActorCritic()
    g = seeded()
    opt = {
        "actor": torch.optim.Adam([*model.actor.parameters(), model.log_std], lr=5e-3),
        "critic": torch.optim.Adam(model.critic.parameters(), lr=1e-2),
    }
    return Built(model, opt, None, [g] * 240)


def ppo_loop(model, opt, loss_fn, batches, on_step) -> None:
    k = 0
    for g in batches:
        env, ss, aa, lp, rew = PointMass(32, g), [], [], [], []
        with torch.no_grad():
            for _ in range(12):
                dist = torch.distributions.Categorical(logits=model(env.s))
                a = torch.multinomial(dist.probs, 1, generator=g).squeeze(1)
                ss.append(env.s), aa.append(a), lp.append(dist.log_prob(a))
                rew.append(env.step(a.float() - 1))
        ret = torch.stack(rew).flip(0).cumsum(0).flip(0)
        adv = ((ret - ret.mean(1, keepdim=True)) / (ret.std() + 1e-6)).flatten()
        s, a, old = torch.cat(ss), torch.cat(aa), torch.cat(lp)
        for _ in range(4):
            for i in torch.randperm(len(s), generator=g).split(192):
                dist = torch.distributions.Categorical(logits=model(s[i]))
                ratio = (dist.log_prob(a[i]) - old[i]).exp()
                loss = -torch.min(ratio * adv[i], ratio.clamp(0.8, 1.2) * adv[i]).mean() - 0.01 * dist.entropy().mean()
                opt.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                opt.step()
                on_step(k, loss.item())
                k += 1


@healthy(
    "more",
    "Schulman et al. 2017 (PPO)",
    train=ppo_loop,
    loss_ratio=None,
    progress=("greedy return", greedy_return(lambda m, s: m(s).argmax(1).float() - 1), "up"),
)
def ppo_clipped() -> Built:
    """Clipped surrogate: samples outside the trust region have zero gradient; the told loss has no trend."""
    model = Policy()
    g = seeded()
    return Built(model, torch.optim.Adam(model.parameters(), lr=4e-3, eps=1e-5), None, [g] * 30)


# ---------------------------------------------- metric and self-supervised nets


def two_views(x: torch.Tensor, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    def view():
        shift = int(torch.randint(-1, 2, (1,), generator=g))
        return (
            torch.roll(x, shift, -2) * (0.8 + 0.4 * torch.rand(len(x), 1, 1, 1, generator=g))
            + 0.1 * torch.randn(x.shape, generator=g)
        ).flatten(1)

    return view(), view()


class SimCLR(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 48), nn.ReLU())
        self.projector = nn.Sequential(nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 24))

    def forward(self, x):
        return F.normalize(self.projector(self.encoder(x)), dim=1)


def info_nce(model, a, b):
    z = model(torch.cat([a, b]))
    n = len(a)
    s = (z @ z.T / 0.2).masked_fill(torch.eye(2 * n, dtype=torch.bool), float("-inf"))
    return F.cross_entropy(s, torch.arange(2 * n).roll(n))


@healthy("more", "Chen et al. 2020 (SimCLR)", train=own_loss(), loss_ratio=0.7)
def simclr_infonce() -> Built:
    """NT-Xent loss, temperature 0.2."""
    g = seeded()
    model = SimCLR()
    batches = [two_views(x, g) for (x,) in picks((data.glyphs(seed=44)[0] - 0.5,), 64, 220)]
    return Built(model, torch.optim.Adam(model.parameters(), lr=2e-3), info_nce, batches)


@healthy("more", "Schroff et al. 2015 (triplet loss, margin 0.3)", train=own_loss(), loss_ratio=0.4)
def triplet_margin() -> Built:
    """As training goes on most triplets satisfy the margin: late batches have few or no gradients."""
    g = seeded()
    x, y = data.flat_glyphs(seed=45)
    x = x - 0.5
    by = [x[y == k] for k in range(10)]
    batches = []
    for _ in range(220):
        c = torch.randint(10, (32,), generator=g).tolist()
        o = [(k + 1 + int(torch.randint(9, (1,), generator=g))) % 10 for k in c]
        take = lambda k: by[k][int(torch.randint(len(by[k]), (1,), generator=g))]
        batches.append(tuple(torch.stack([take(k) for k in ks]) for ks in (c, c, o)))
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
    loss = nn.TripletMarginLoss(margin=0.3)
    return Built(
        model,
        torch.optim.Adam(model.parameters(), lr=2e-3),
        lambda m, a, p, n: loss(*(F.normalize(m(t), dim=1) for t in (a, p, n))),
        batches,
    )


def pair_loss(model, a, b, same):
    d = (model(a) - model(b)).pow(2).sum(1).add(1e-6).sqrt()
    return (same * d**2 + (1 - same) * F.relu(2 - d) ** 2).mean()


@healthy("more", "Hadsell et al. 2006 (siamese net, contrastive loss)", train=own_loss(), loss_ratio=0.4)
def siamese_contrastive() -> Built:
    """Shared weights applied twice per step, margin 2, SGD with momentum."""
    g = seeded()
    x, y = data.glyphs(seed=46)
    batches = []
    for _ in range(200):
        i, j = torch.randint(1000, (2, 48), generator=g)
        j[:24] = torch.stack([(y == y[k]).nonzero().flatten()[int(torch.randint(80, (1,), generator=g))] for k in i[:24]])
        batches.append((x[i], x[j], (y[i] == y[j]).float()))
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(192, 12, bias=False)
    )
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), pair_loss, batches)


class BYOL(nn.Module):
    def __init__(self):
        super().__init__()
        self.online = nn.Sequential(
            nn.Linear(64, 96), nn.BatchNorm1d(96), nn.ReLU(), nn.Linear(96, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 24)
        )
        self.predictor = nn.Sequential(nn.Linear(24, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 24))
        self.teacher = copy.deepcopy(self.online).requires_grad_(False)

    def forward(self, x):
        return self.predictor(self.online(x))


def byol_loop(model, opt, loss_fn, batches, on_step) -> None:
    for step, (a, b) in enumerate(batches):
        with torch.no_grad():
            ta, tb = model.teacher(a), model.teacher(b)
        opt.zero_grad()
        loss = 2 - F.cosine_similarity(model(a), tb).mean() - F.cosine_similarity(model(b), ta).mean()
        loss.backward()
        opt.step()
        with torch.no_grad():
            for p, q in zip(model.teacher.parameters(), model.online.parameters()):
                p.lerp_(q, 0.02)
        on_step(step, loss.item())


@healthy("more", "Grill et al. 2020 (BYOL)", train=byol_loop, loss_ratio=0.5)
def byol_ema_teacher() -> Built:
    """The teacher has no gradient and follows by exponential average; predictor on one side only."""
    g = seeded()
    model = BYOL()
    batches = [two_views(x, g) for (x,) in picks((data.glyphs(seed=47)[0],), 64, 200)]
    return Built(
        model,
        torch.optim.AdamW([*model.online.parameters(), *model.predictor.parameters()], lr=2e-3, weight_decay=1e-3),
        None,
        batches,
    )


class Student(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(11)
            self.teacher = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
            o = torch.optim.Adam(self.teacher.parameters(), lr=5e-3)
            for x, y in data.minibatches(*data.flat_glyphs(seed=48), 64, 100):
                o.zero_grad()
                CE(self.teacher(x), y).backward()
                o.step()
        self.teacher.requires_grad_(False)
        for p in self.teacher.parameters():
            p.grad = None
        self.student = nn.Sequential(nn.Linear(64, 16), nn.LeakyReLU(), nn.Linear(16, 10))

    def forward(self, x):
        return self.student(x)


def distil(model, x, y):
    t = 4.0
    out = model(x)
    soft = F.kl_div((out / t).log_softmax(1), (model.teacher(x) / t).softmax(1), reduction="batchmean") * t * t
    return 0.9 * soft + 0.1 * F.cross_entropy(out, y)


@healthy("more", "Hinton et al. 2015 (distillation)", train=own_loss(), loss_ratio=0.4)
def distillation() -> Built:
    """A small student learns from a frozen teacher inside the same module."""
    model = Student()
    return Built(model, torch.optim.Adam(model.student.parameters(), lr=5e-3), distil, picks(data.flat_glyphs(seed=48), 50, 220))


# ------------------------------------------------------ physics, meta, implicit


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 1))

    def forward(self, x):
        return x * (1 - x) * self.net(x)


def residual(model, x):
    x = x.clone().requires_grad_()
    u = model(x)
    du = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
    d2u = torch.autograd.grad(du.sum(), x, create_graph=True)[0]
    f = -(math.pi**2) * torch.sin(math.pi * x) - 4 * math.pi**2 * torch.sin(2 * math.pi * x)
    return (d2u - f).pow(2).mean()


def pinn_error(model) -> float:
    x = torch.linspace(0, 1, 101).unsqueeze(1)
    with torch.no_grad():
        return (model(x) - torch.sin(math.pi * x) - torch.sin(2 * math.pi * x)).abs().max().item()


@healthy(
    "more",
    "Raissi et al. 2019 (PINN)",
    train=own_loss(cosine(500, warm=10)),
    loss_ratio=0.1,
    progress=("largest error of the solution", pinn_error, "down"),
)
def pinn_poisson() -> Built:
    """Second derivatives in the loss: the residual starts near 800 and falls by orders of magnitude."""
    g = seeded()
    model = Field()
    return Built(
        model, torch.optim.Adam(model.parameters(), lr=1e-2), residual, [(torch.rand(40, 1, generator=g),) for _ in range(500)]
    )


class ODENet(nn.Module):
    def __init__(self):
        super().__init__()
        self.field = nn.Sequential(nn.Linear(4, 40), nn.Tanh(), nn.Linear(40, 3))
        self.out = nn.Linear(3, 1)

    def forward(self, x):
        x = F.pad(x, (0, 1))
        for i in range(10):
            t = torch.full((len(x), 1), i / 10)
            x = x + 0.3 * self.field(torch.cat([x, t], 1))
        return self.out(x).squeeze(1)


@healthy("more", "Chen et al. 2018; Dupont et al. 2019 (augmented neural ODE, Euler)", loss_ratio=0.4)
def neural_ode_euler() -> Built:
    """The same layer is applied ten times per forward pass."""
    g = seeded()
    r = torch.cat([0.5 * torch.rand(500, generator=g), 1 + 0.5 * torch.rand(500, generator=g)])
    a = 6.2832 * torch.rand(1000, generator=g)
    x, y = torch.stack([r * a.cos(), r * a.sin()], 1), (r > 0.75).float()
    model = ODENet()
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-3), nn.BCEWithLogitsLoss(), picks((x, y), 50, 200))


class Regressor(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 40), nn.ELU(), nn.Linear(40, 40), nn.ELU(), nn.Linear(40, 1))

    def forward(self, x):
        return self.net(x)


def adapt(model, x, y, lr=0.05, steps=2):
    p = dict(model.named_parameters())
    for _ in range(steps):
        leaf = {k: v.detach().requires_grad_() for k, v in p.items()}
        g = torch.autograd.grad(F.mse_loss(functional_call(model, leaf, (x,)), y), list(leaf.values()))
        p = {k: v - lr * d for (k, v), d in zip(p.items(), g)}
    return p


def sine_tasks(n: int, g: torch.Generator):
    a, ph = 0.5 + 1.5 * torch.rand(n, 1, 1, generator=g), 1.5 * torch.rand(n, 1, 1, generator=g)
    x = 6 * torch.rand(n, 20, 1, generator=g) - 3
    return x, a * torch.sin(x + ph)


def maml_loop(model, opt, loss_fn, batches, on_step) -> None:
    for step, (xs, ys) in enumerate(batches):
        opt.zero_grad()
        total = 0.0
        for x, y in zip(xs, ys):
            loss = F.mse_loss(functional_call(model, adapt(model, x[:10], y[:10]), (x[10:],)), y[10:]) / len(xs)
            loss.backward()
            total += loss.item()
        opt.step()
        on_step(step, total)


@healthy("more", "Finn et al. 2017 (first-order MAML)", train=maml_loop, loss_ratio=0.6)
def maml_first_order() -> Built:
    """Inner steps through functional_call; four tasks accumulate into each outer step."""
    g = seeded()
    model = Regressor()
    return Built(model, torch.optim.Adam(model.parameters(), lr=4e-3), None, [sine_tasks(4, g) for _ in range(200)])


class HyperNet(nn.Module):
    """A small net writes the weights of another, from a task code."""

    def __init__(self):
        super().__init__()
        self.hyper = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 2 * 12 + 12 + 12 + 1))
        with torch.no_grad():
            self.hyper[2].weight.mul_(0.3)
            self.hyper[2].bias[:24].normal_(0, 0.7)
            self.hyper[2].bias[36:48].normal_(0, 0.3)

    def forward(self, cx):
        c, x = cx
        w = self.hyper(c)
        w1, b1, w2, b2 = w[:, :24].view(-1, 2, 12), w[:, 24:36], w[:, 36:48].unsqueeze(2), w[:, 48:]
        h = torch.tanh(x @ w1 + b1.unsqueeze(1))
        return (h @ w2).squeeze(2) + b2


@healthy("more", "Ha et al. 2017 (hypernetwork)", loss_ratio=0.3)
def hypernetwork() -> Built:
    """All weights of the main net are outputs of another net."""
    g = seeded()
    c = torch.randn(1200, 3, generator=g)
    x = torch.randn(1200, 8, 2, generator=g)
    y = torch.sin(c[:, :1] * x[..., 0] + c[:, 1:2]) + 0.5 * c[:, 2:] * x[..., 1]
    model = HyperNet()
    return Built(
        model, torch.optim.Adam(model.parameters(), lr=5e-3), nn.MSELoss(), [((a, b), t) for a, b, t in picks((c, x, y), 48, 300)]
    )


class DEQ(nn.Module):
    """Deep equilibrium layer: fixed point without graph, then one tracked step (Jacobian-free)."""

    def __init__(self):
        super().__init__()
        self.inp, self.rec, self.out = nn.Linear(64, 40), nn.Linear(40, 40, bias=False), nn.Linear(40, 10)
        with torch.no_grad():
            self.rec.weight.mul_(0.5)

    def cell(self, z, u):
        return torch.tanh(self.rec(z) + u)

    def forward(self, x):
        u = self.inp(x)
        with torch.no_grad():
            z = torch.zeros_like(u)
            for _ in range(12):
                z = self.cell(z, u)
        return self.out(self.cell(z, u))


@healthy("more", "Bai et al. 2019; Fung et al. 2022 (Jacobian-free implicit layer)", train=scheduled_loop(cosine(200)))
def implicit_equilibrium() -> Built:
    """Most of the forward pass runs without graph on purpose."""
    x, y = data.flat_glyphs(seed=49)
    model = DEQ()
    return Built(model, torch.optim.AdamW(model.parameters(), lr=4e-3), CE, picks((x - 0.5, y), 50, 200))
