"""Faulty programs: one layer started wrongly, depth without a fitting init, units that are copies of each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import data
from ..core import Built, faulty, need
from ..more._programs import named, ring_graph, teacher, waves
from ..nets import MLP, he, init_linear

CE = nn.CrossEntropyLoss()


def five_convs() -> nn.Sequential:
    """Five 1-d convolutions with LeakyReLU, no normalisation."""
    parts: dict[str, nn.Module] = {}
    for i, (c_in, c_out, stride) in enumerate([(1, 16, 1), (16, 24, 2), (24, 24, 1), (24, 32, 2), (32, 32, 1)]):
        parts[f"conv{i}"] = nn.Conv1d(c_in, c_out, 5, stride, 2)
        parts[f"act{i}"] = nn.LeakyReLU(0.1)
    return named(**parts, pool=nn.AdaptiveAvgPool1d(2), flat=nn.Flatten(), fc=nn.Linear(64, 4))


@faulty(
    "blind",
    "bad_scale",
    "init for weights in [-1, 1] and inputs in 0..255 used in two layers: std 1e-5 (Glorot & Bengio 2010; Mishkin & Matas 2016 'LSUV')",
    must=[need("bad_scale|vanishing_gradient", "conv* act*", by=20)],
    may="bad_scale vanishing_gradient loss_stagnant update_ratio",
)
def two_middle_convs_std_1e_5(fixed: bool = False) -> Built:
    """Two neighbours of five convolutions start 1e4 times too small: each waits for the other, those before get no gradient."""
    x, y = waves()
    model = five_convs()
    init_linear(model, he)
    if not fixed:
        nn.init.normal_(model.conv2.weight, std=1e-5)
        nn.init.normal_(model.conv3.weight, std=1e-5)
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.05), CE, data.minibatches(x, y, 40, 140))


@faulty(
    "blind",
    "bad_scale",
    "standard deviation given where the variance was meant, in one layer (Mishkin & Matas 2016)",
    must=[need("bad_scale|exploding_gradient|update_ratio", "layers.[012345] acts.[12345] head", by=20)],
    may="bad_scale exploding_gradient update_ratio loss_unstable loss_stagnant vanishing_gradient dead_units non_finite",
    requires=("sklearn",),
)
def third_layer_std_20(fixed: bool = False) -> Built:
    """One of six GELU layers starts with std 20: logits of 1e3, gradients 100 times the usual in all that lies below."""
    x, y = data.sk_digits()
    model = init_linear(MLP(64, 48, 6, 10, act=nn.GELU), he)
    if not fixed:
        nn.init.normal_(model.layers[2].weight, std=20.0)
    opt = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return Built(model, opt, CE, data.minibatches(x / 16, y, 48, 150))


class MessagePassing(nn.Module):
    """Two rounds: neighbours' messages are averaged and merged with the node's own state."""

    def __init__(self, d_in: int = 16, d: int = 32, classes: int = 3):
        super().__init__()
        self.embed = nn.Linear(d_in, d)
        self.message = nn.ModuleList(nn.Linear(d, d) for _ in range(2))
        self.rectify = nn.ModuleList(nn.ReLU() for _ in range(2))
        self.merge = nn.ModuleList(nn.Linear(2 * d, d) for _ in range(2))
        self.out = nn.Linear(d, classes)

    def forward(self, graph):
        x, a = graph
        h = torch.tanh(self.embed(x))
        for message, act, merge in zip(self.message, self.rectify, self.merge):
            h = torch.tanh(merge(torch.cat([h, a @ act(message(h))], 1)))
        return self.out(h)


@faulty(
    "blind",
    "dead_units",
    "messages switched off by a bias of -15 (Lu et al. 2019 'Dying ReLU')",
    must=[need("dead_units|zero_gradient", "message.1 rectify.1", by=25)],
    may="dead_units zero_gradient not_updated bad_scale vanishing_gradient loss_stagnant",
)
def silent_messages(fixed: bool = False) -> Built:
    """No node hears its neighbours in the second round; the loss falls all the same."""
    x, a, y = ring_graph()
    model = MessagePassing()
    if not fixed:
        nn.init.constant_(model.message[1].bias, -15.0)
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-3), CE, [((x, a), y)] * 120)


@faulty(
    "blind",
    "vanishing_gradient",
    "PyTorch's default init (kaiming_uniform with a = sqrt 5) in a deep plain ReLU net; He et al. 2015 sec. 2.2",
    must=[need("vanishing_gradient", "layers.* acts.*", by=50)],
    may="vanishing_gradient loss_stagnant bad_scale update_ratio dead_units",
    loss_ratio=0.8,
)
def thirty_layers_default_init(fixed: bool = False) -> Built:
    """30 ReLU layers with default weights: 0.4 of the gradient survives a layer, 1e-11 all of them."""
    x, y = teacher()
    model = MLP(20, 40, 30, 4)
    if fixed:
        init_linear(model, he)
    opt = torch.optim.Adam(model.parameters(), lr=1e-3) if fixed else torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Built(model, opt, CE, data.minibatches(x, y, 80, 140))


@faulty(
    "blind",
    "vanishing_gradient",
    "deep tanh net with N(0, 0.05) weights (Glorot & Bengio 2010, fig. 7)",
    must=[need("vanishing_gradient", "layers.[0-6] acts.[0-6]", by=50)],
    may="vanishing_gradient loss_stagnant bad_scale update_ratio",
)
def tanh_twelve_layers_std_005(fixed: bool = False) -> Built:
    """12 tanh layers of width 40 with std 0.05: the factor a layer is 0.3."""
    x, y = data.smooth_regression()
    how = nn.init.xavier_normal_ if fixed else (lambda w: nn.init.normal_(w, std=0.05))
    model = init_linear(MLP(8, 40, 12, 1, act=nn.Tanh), how)
    opt = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    return Built(model, opt, nn.MSELoss(), data.minibatches(x, y, 64, 160))


class DigitReader(nn.Module):
    """Reads the eight rows of a digit one after another."""

    def __init__(self, constant: float | None):
        super().__init__()
        self.gru = nn.GRU(8, 32, batch_first=True)
        self.out = nn.Linear(32, 10)
        if constant is not None:
            for p in self.parameters():
                nn.init.constant_(p, constant)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.gru(x)[0][:, -1])


@faulty(
    "blind",
    "bad_scale",
    "constant init of a recurrent net: symmetry is never broken (Goodfellow et al. 2016, sec. 8.4)",
    must=[need("bad_scale", "gru out", by=25)],
    may="bad_scale loss_stagnant update_ratio vanishing_gradient zero_gradient",  # equal read-outs cancel
    tags=frozenset({"symmetry"}),
    requires=("sklearn",),
)
def gru_all_units_alike(fixed: bool = False) -> Built:
    """Every weight 0.1: all 32 hidden units compute the same and get the same gradient."""
    x, y = data.sk_digits()
    model = DigitReader(None if fixed else 0.1)
    return Built(model, torch.optim.Adam(model.parameters(), lr=1e-2), CE, data.minibatches(x.view(-1, 8, 8) / 16, y, 48, 120))


class RadialBasis(nn.Module):
    """Gaussian bumps around learnt centres, then a linear read-out."""

    def __init__(self, centres: Tensor, gamma: float, d_out: int):
        super().__init__()
        self.centres = nn.Parameter(centres.clone())
        self.log_gamma = nn.Parameter(torch.full((len(centres),), gamma).log())

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(-self.log_gamma.exp() * torch.cdist(x, self.centres).pow(2))


@faulty(
    "blind",
    "zero_gradient",
    "RBF widths chosen without regard to the scale of the data (Moody & Darken 1989 choose them from neighbours' distances)",
    must=[need("zero_gradient|dead_units|vanishing_gradient|bad_scale|saturated", "bumps bumps.* out", by=40)],
    may="zero_gradient dead_units vanishing_gradient bad_scale saturated loss_stagnant not_updated update_ratio",
)
def rbf_bumps_too_narrow(fixed: bool = False) -> Built:
    """exp(-60 d^2) in 8 dimensions underflows between centre and data: bumps and their gradients are zero."""
    x, y = data.smooth_regression()
    centres = torch.randn(30, 8, generator=data.gen(70))
    model = named(bumps=RadialBasis(centres, 0.08 if fixed else 60.0, 1), out=nn.Linear(30, 1))
    return Built(model, torch.optim.Adam(model.parameters(), lr=2e-2), nn.MSELoss(), data.minibatches(x, y, 64, 150))


class SoftExperts(nn.Module):
    """Top-1 routing by a softmax over four small experts."""

    def __init__(self, d: int, classes: int, favourite: float):
        super().__init__()
        self.router = nn.Linear(d, 4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(d, 24), nn.SiLU(), nn.Linear(24, classes)) for _ in range(4))
        with torch.no_grad():
            self.router.bias[2] += favourite

    def forward(self, x: Tensor) -> Tensor:
        p = F.softmax(self.router(x), -1)
        top, which = p.max(-1)
        out = x.new_zeros(len(x), self.experts[0][2].out_features)
        for i, expert in enumerate(self.experts):
            rows = (which == i).nonzero().squeeze(1)
            if len(rows):
                out = out.index_add(0, rows, expert(x[rows]) * top[rows].unsqueeze(1))
        return out


@faulty(
    "blind",
    "zero_gradient",
    "collapsed routing of a mixture of experts (Shazeer et al. 2017, sec. 4; Fedus et al. 2021)",
    must=[need("zero_gradient|dead_units|not_updated|saturated", "experts.* router", by=40)],
    may="zero_gradient dead_units not_updated saturated vanishing_gradient bad_scale",
)
def router_has_one_favourite(fixed: bool = False) -> Built:
    """The router's bias sends all samples to one expert: three of four never run, the router's softmax is flat."""
    x, y = teacher()
    model = SoftExperts(20, 4, 0.0 if fixed else 40.0)
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-3), CE, data.minibatches(x, y, 64, 150))


class Hyper(nn.Module):
    """A net that writes the weights of a four-layer net from a task vector."""

    def __init__(self, gain: float, d: int = 32):
        super().__init__()
        self.d, self.gain = d, gain
        self.task = nn.Embedding(4, 16)
        self.write = nn.ModuleList(nn.Linear(16, d * d, bias=False) for _ in range(4))
        self.read, self.out = nn.Linear(8, d), nn.Linear(d, 1)

    def forward(self, batch):
        x, t = batch
        h, z = self.read(x), self.task(t)
        for write in self.write:
            w = self.gain * write(z).view(-1, self.d, self.d)
            h = F.relu(torch.bmm(w, h.unsqueeze(2)).squeeze(2))
        return self.out(h)


@faulty(
    "blind",
    "bad_scale",
    "hypernetwork with an ordinary init (Chang et al. 2020, 'Principled weight initialization for hypernetworks')",
    must=[need("bad_scale|exploding_gradient|loss_unstable|update_ratio", "*", by=40)],
    may="bad_scale exploding_gradient loss_unstable update_ratio dead_units loss_stagnant vanishing_gradient",
    tags=frozenset({"functional"}),
    loss_ratio=0.85,
)
def hypernetwork_writes_large_weights(fixed: bool = False) -> Built:
    """Generated weights of std 2.4 instead of 0.25: outputs of 1e4, and the loss starts at 1e8."""
    g = data.gen(71)
    task = torch.randn(4, 8, generator=g)
    batches = []
    for _ in range(150):
        x, t = torch.randn(64, 8, generator=g), torch.randint(4, (64,), generator=g)
        batches.append(((x, t), torch.sin((x * task[t]).sum(1, keepdim=True))))
    model = Hyper(0.43 if fixed else 4.0)
    return Built(model, torch.optim.Adam(model.parameters(), lr=3e-3), nn.MSELoss(), batches)
