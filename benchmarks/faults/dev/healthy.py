"""Developer cases: healthy training of common architectures.  Nothing may be reported."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from .. import data
from ..core import Built, default_loop, healthy, scheduled_loop, warmup
from ..nets import MLP, ConvNet, TinyLM, gpt_init, he, init_linear, lm_loss

CE = nn.CrossEntropyLoss()


@healthy("dev", "textbook")
def mlp_batchnorm() -> Built:
    """MLP with BatchNorm1d; biases in front of a batch norm have gradient ~0 by construction."""
    x, y = data.flat_glyphs()
    model = MLP(64, 64, 3, 10, norm=nn.BatchNorm1d)
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), CE, data.minibatches(x, y, 64, 150))


@healthy("dev", "textbook")
def small_cnn() -> Built:
    """Conv-ReLU x2, pooling, linear; PyTorch defaults; Adam."""
    x, y = data.glyphs()
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(96, 10),
    )
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-3), CE, data.minibatches(x, y, 48, 150))


@healthy("dev", "Radford et al. 2019 recipe, tiny", train=scheduled_loop(warmup(20), max_norm=1.0))
def pre_ln_transformer() -> Built:
    """Two pre-LN blocks, Adam, warm-up, clipping; the key bias has zero gradient by construction."""
    model = gpt_init(TinyLM(32, 48, 2, 4, 16), 0.05)
    return Built(
        model, torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95)), lm_loss, data.markov_text(32, 12, 16, 150)
    )


class Tagger(nn.Module):
    def __init__(self, kind: str):
        super().__init__()
        self.embed = nn.Embedding(12, 24)
        self.rnn = getattr(nn, kind)(24, 32, batch_first=True)
        self.out = nn.Linear(32, 2)

    def forward(self, t):
        return self.out(self.rnn(self.embed(t))[0][:, -1])


@healthy("dev", "textbook")
def lstm_short() -> Built:
    """LSTM on sequences of 10 tokens."""
    model = Tagger("LSTM")
    return Built(model, torch.optim.Adam(model.parameters(), lr=1e-2), CE, data.recall_last(12, 48, 10, 150))


class AutoEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 8))
        self.decoder = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 64), nn.Sigmoid())

    def forward(self, x):
        return self.decoder(self.encoder(x))


@healthy("dev", "textbook", loss_ratio=0.6)
def autoencoder_sigmoid() -> Built:
    """Bottleneck autoencoder with sigmoid outputs; many pixels are exactly 0 or 1, so outputs saturate rightly."""
    x, _ = data.flat_glyphs(noise=0.0)
    x = (x > 0.5).float()
    model = AutoEncoder()
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-3), nn.BCELoss(), data.minibatches(x, x, 64, 250))


class FineTune(nn.Module):
    def __init__(self):
        super().__init__()
        state = torch.get_rng_state()
        torch.manual_seed(3)
        self.backbone = ConvNet(16, 3, 10, norm=True)
        x, y = data.glyphs(seed=3)
        opt = torch.optim.Adam(self.backbone.parameters(), lr=5e-3)
        default_loop(self.backbone, opt, CE, data.minibatches(x, y, 64, 80), lambda s, l: None)
        torch.set_rng_state(state)
        self.backbone.classifier = nn.Identity()
        self.backbone.requires_grad_(False)
        self.head = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, x):
        return self.head(self.backbone(x))


@healthy("dev", "transfer learning: frozen backbone, new head")
def frozen_backbone() -> Built:
    """A pretrained backbone is frozen on purpose (requires_grad False, not in the optimizer)."""
    x, y = data.glyphs(seed=4)
    model = FineTune()
    return Built(model, torch.optim.Adam(model.head.parameters(), lr=5e-3), CE, data.minibatches(x, y, 48, 130))


class BagOfWords(nn.Module):
    def __init__(self, vocab: int, sparse: bool):
        super().__init__()
        self.words = nn.EmbeddingBag(vocab, 16, mode="mean", sparse=sparse)
        self.mid, self.act, self.out = nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 2)

    def forward(self, t):
        return self.out(self.act(self.mid(self.words(t))))


@healthy("dev", "embedding model with a Zipfian vocabulary", loss_ratio=0.75)
def zipf_embedding() -> Built:
    """2000 words, most of which are not in the batch: their rows have zero gradient nearly always."""
    g = data.gen(40)
    p = 1 / torch.arange(1, 2001.0)
    score = torch.randn(2000, generator=g)
    out = []
    for _ in range(200):
        t = torch.multinomial(p, 64 * 12, replacement=True, generator=g).view(64, 12)
        out.append((t, (score[t].mean(1) > 0).long()))
    model = BagOfWords(2000, sparse=False)
    return Built(model, torch.optim.Adam(model.parameters(), lr=1e-2), CE, out)


@healthy("dev", "Srivastava et al. 2014", loss_ratio=0.75)
def heavy_dropout() -> Built:
    """Dropout 0.7 on every hidden layer."""
    x, y = data.flat_glyphs()
    model = init_linear(MLP(64, 128, 2, 10, dropout=0.7), he)
    return Built(model, torch.optim.Adam(model.parameters(), lr=3e-3), CE, data.minibatches(x, y, 64, 200))


@healthy("dev", "Ramachandran et al. 2017")
def silu_mlp() -> Built:
    """SiLU MLP, PyTorch defaults, AdamW."""
    x, y = data.flat_glyphs()
    model = MLP(64, 64, 4, 10, act=nn.SiLU)
    return Built(model, torch.optim.AdamW(model.parameters(), lr=3e-3), CE, data.minibatches(x - 0.5, y, 64, 150))


@healthy("dev", "Glorot et al. 2011: natural sparsity of rectifier nets")
def sparse_relu() -> Built:
    """ReLU net whose biases start at -0.5: 60-75 % of the activations are zero, units are alive."""
    x, y = data.flat_glyphs()
    model = init_linear(MLP(64, 96, 2, 10), he, bias=-0.5)
    nn.init.zeros_(model.head.bias)
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), CE, data.minibatches(2 * x, y, 64, 150))


@healthy("dev", "Press & Wolf 2017")
def tied_lm() -> Built:
    """Language model with tied input and output embedding."""
    model = gpt_init(TinyLM(32, 48, 1, 4, 16, tied=True), 0.05)
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-3), lm_loss, data.markov_text(32, 16, 16, 150))


def accumulate(model, opt, loss_fn, batches, on_step) -> None:
    """Four micro-batches per step."""
    for i, (x, y) in enumerate(batches):
        loss = loss_fn(model(x), y)
        (loss / 4).backward()
        if i % 4 == 3:
            opt.step()
            on_step(i // 4, loss.item())
            opt.zero_grad()


@healthy("dev", "gradient accumulation", train=accumulate)
def gradient_accumulation() -> Built:
    """Gradients grow within a step on purpose: four backward passes per optimizer step."""
    x, y = data.flat_glyphs()
    model = init_linear(MLP(64, 64, 2, 10, act=nn.GELU), he)
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-3), CE, data.minibatches(x, y, 16, 400))


@healthy("dev", "large but stable learning rate")
def momentum_large_lr() -> Built:
    """SGD lr 0.3 with momentum 0.9 on a normalised net: noisy, non-monotone, converging."""
    x, y = data.flat_glyphs()
    model = MLP(64, 64, 2, 10, norm=nn.LayerNorm)
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9), CE, data.minibatches(x - 0.5, y, 64, 180))


@healthy("dev", "convergence to an exact solution", loss_ratio=1e-4)
def converged_regression() -> Built:
    """Noise-free teacher-student regression: loss and gradients shrink by more than 1e4 because it is solved."""
    g = data.gen(41)
    x = torch.randn(512, 8, generator=g)
    y = x @ torch.randn(8, 2, generator=g)
    model = nn.Sequential(nn.Linear(8, 16), nn.Identity(), nn.Linear(16, 2))
    return Built(model, torch.optim.Adam(model.parameters(), lr=1e-2), nn.MSELoss(), data.minibatches(x, y, 128, 400))


@healthy(
    "dev",
    "Smith 2017 cyclical learning rates",
    train=scheduled_loop(lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.01, 0.3, step_size_up=25)),
)
def cyclic_lr() -> Built:
    """Triangular rate 0.01..0.3: updates and loss swing with it."""
    x, y = data.glyphs()
    model = ConvNet(12, 2, 10, norm=True)
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), CE, data.minibatches(x, y, 48, 150))


class TwoTowers(nn.Module):
    def __init__(self):
        super().__init__()
        self.image = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 16))
        self.label = nn.Embedding(10, 16)
        self.log_t = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, xy):
        a, b = F.normalize(self.image(xy[0]), dim=1), F.normalize(self.label.weight, dim=1)
        return self.log_t.exp() * a @ b.T


@healthy("dev", "Radford et al. 2021 (contrastive loss with learnt temperature)")
def contrastive_temperature() -> Built:
    """CLIP-like towers with a learnt temperature."""
    x, y = data.flat_glyphs()
    model = TwoTowers()
    batches = [((a, b), b) for a, b in data.minibatches(x, y, 64, 150)]
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-3), CE, batches)


@healthy("dev", "logistic regression", loss_ratio=0.5)
def single_neuron() -> Built:
    """One neuron, BCE with logits."""
    g = data.gen(42)
    x = torch.randn(500, 4, generator=g)
    y = (x[:, 0] + 0.5 * x[:, 1] + 0.3 * torch.randn(500, generator=g) > 0).float().unsqueeze(1)
    model = nn.Linear(4, 1)
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.5), nn.BCEWithLogitsLoss(), data.minibatches(x, y, 50, 150))


@healthy("dev", "hinge loss", loss_ratio=0.2)
def svm_hinge() -> Built:
    """Multi-class hinge loss on separable data: once all margins hold, gradients are exactly zero."""
    x, y = data.blobs(600, 8, 4, spread=0.8)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.02), nn.MultiMarginLoss(), data.minibatches(x, y, 60, 200))


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, 48), nn.ReLU())
        self.classify, self.bright = nn.Linear(48, 10), nn.Linear(48, 1)

    def forward(self, x):
        h = self.trunk(x)
        return self.classify(h), self.bright(h)


def alternate(model, opt, loss_fn, batches, on_step) -> None:
    for step, (x, y) in enumerate(batches):
        opt.zero_grad()
        a, b = model(x)
        loss = F.cross_entropy(a, y) if step % 2 == 0 else 20 * F.mse_loss(b.squeeze(1), x.mean(1))
        loss.backward()
        opt.step()
        on_step(step, loss.item())


@healthy("dev", "alternating multi-task training", train=alternate)
def alternating_heads() -> Built:
    """Each head gets a gradient every second step only (None in between)."""
    x, y = data.flat_glyphs()
    model = TwoHeads()
    return Built(model, torch.optim.Adam(model.parameters(), lr=3e-3), None, data.minibatches(x, y, 48, 240))


@healthy("dev", "reduction='sum'")
def sum_reduction() -> Built:
    """Loss summed over batch and outputs: every gradient is 4000x the usual size; Adam does not care."""
    x, _ = data.smooth_regression(d=16)
    y = torch.tanh(x @ torch.randn(16, 32, generator=data.gen(43)))
    model = MLP(16, 64, 2, 32, act=nn.Tanh)
    return Built(
        model, torch.optim.Adam(model.parameters(), lr=3e-3), nn.MSELoss(reduction="sum"), data.minibatches(x, y, 128, 200)
    )


@healthy("dev", "regression at its noise floor", loss_ratio=0.8)
def noise_floor() -> Built:
    """Signal-to-noise 1: the loss falls within 40 steps and then stays at the noise floor for 260."""
    g = data.gen(44)
    x = torch.randn(4000, 6, generator=g)
    y = (x @ torch.randn(6, 1, generator=g)) / 6**0.5 + torch.randn(4000, 1, generator=g)
    model = MLP(6, 16, 1, 1, act=nn.Tanh)
    return Built(model, torch.optim.Adam(model.parameters(), lr=1e-2), nn.MSELoss(), data.minibatches(x, y, 100, 300))


class PatchViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(1, 32, 2, 2)
        self.pos = nn.Parameter(0.02 * torch.randn(16, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2) + self.pos
        return self.head(self.encoder(x).mean(1))


@healthy("dev", "Dosovitskiy et al. 2021, tiny")
def tiny_vit() -> Built:
    """nn.TransformerEncoder on 2x2 patches."""
    x, y = data.glyphs()
    model = PatchViT()
    return Built(model, torch.optim.AdamW(model.parameters(), lr=3e-3), CE, data.minibatches(2 * x - 1, y, 32, 150))


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.G = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
        self.D = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))

    def forward(self, x):
        return self.D(x)


def wgan_gp(model, opt, loss_fn, batches, on_step) -> None:
    g = data.gen(9)
    for step, (real, z) in enumerate(batches):
        for _ in range(2):
            fake = model.G(z).detach()
            mix = torch.rand(len(real), 1, generator=g)
            mid = (mix * real + (1 - mix) * fake).requires_grad_()
            grad = torch.autograd.grad(model(mid).sum(), mid, create_graph=True)[0]
            loss = model(fake).mean() - model(real).mean() + 10 * (grad.norm(dim=1) - 1).pow(2).mean()
            opt["D"].zero_grad()
            loss.backward()
            opt["D"].step()
        opt["G"].zero_grad()
        (-model(model.G(z)).mean()).backward()
        opt["G"].step()
        on_step(step, None)


@healthy(
    "dev",
    "Gulrajani et al. 2017 (WGAN-GP, double backward)",
    train=wgan_gp,
    loss_ratio=None,
    progress=(
        "distance of the sample mean to the data mean",
        lambda m: (m.G(torch.randn(500, 4, generator=data.gen(1))).mean(0) - torch.tensor([2.0, -2.0])).norm().item(),
        "down",
    ),
)
def wgan_gradient_penalty() -> Built:
    """Wasserstein GAN with gradient penalty; the loss has any sign and does not fall."""
    g = data.gen(45)

    def batch(_):
        return torch.tensor([2.0, -2.0]) + 0.5 * torch.randn(64, 2, generator=g), torch.randn(64, 4, generator=g)

    model = Critic()
    opt = {k: torch.optim.Adam(getattr(model, k).parameters(), lr=lr, betas=(0.0, 0.9)) for k, lr in (("G", 5e-4), ("D", 1e-3))}
    return Built(model, opt, None, data.stream(batch, 300))
