"""Developer cases: dead and saturated units, missing gradients, bad scale, bad step sizes."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional as F

from .. import data
from ..core import Built, faulty, need
from ..nets import MLP, ConvNet, he, init_linear, xavier

CE = nn.CrossEntropyLoss()


# ----------------------------------------------------------------- dead units


@faulty(
    "dev",
    "dead_units",
    "large negative bias (Lu et al. 2019 'Dying ReLU'; DeepCrime bias operators)",
    must=[need("dead_units", "acts.1 layers.1", by=25)],
    may="zero_gradient loss_stagnant vanishing_gradient not_updated bad_scale update_ratio",
)
def negative_bias(fixed: bool = False) -> Built:
    """Bias of the second of three layers starts at -12: all its units are silent."""
    x, y = data.flat_glyphs()
    model = init_linear(MLP(64, 48, 3, 10), he)
    if not fixed:
        nn.init.constant_(model.layers[1].bias, -12.0)
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), CE, data.minibatches(x, y, 64, 150))


@faulty(
    "dev",
    "dead_units",
    "AutoTrainer ICSE'21 'dying ReLU' (Motivation case); cs231n (too high learning rate kills ReLUs)",
    must=[need("dead_units", "acts.* layers.*", by=60)],
    may="zero_gradient loss_stagnant vanishing_gradient exploding_gradient update_ratio loss_unstable bad_scale not_updated",
)
def lr_kills_relu(fixed: bool = False) -> Built:
    """SGD lr 0.2 with momentum on pixels 0..4: the first steps push every unit of a layer below zero."""
    x, y = data.flat_glyphs()
    model = init_linear(MLP(64, 64, 4, 10), he)
    lr = 0.005 if fixed else 0.2
    return Built(model, torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9), CE, data.minibatches(4 * x, y, 64, 150))


class TwoTower(nn.Module):
    """Uses F.relu (no activation modules to hook)."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(32, 40), nn.Linear(32, 40)
        self.mix, self.out = nn.Linear(80, 40), nn.Linear(40, 10)

    def forward(self, x):
        a, b = x[:, :32], x[:, 32:]
        h = torch.cat([F.relu(self.left(a)), F.relu(self.right(b))], 1)
        return self.out(F.relu(self.mix(h)))


@faulty(
    "dev",
    "dead_units",
    "dying ReLU in one branch (Lu et al. 2019), functional activation",
    must=[need("dead_units|zero_gradient", "right", by=25)],
    may="zero_gradient not_updated loss_stagnant bad_scale update_ratio dead_units vanishing_gradient",
    tags=frozenset({"functional"}),
)
def dead_tower(fixed: bool = False) -> Built:
    """One of two towers is dead behind F.relu; the loss still falls thanks to the other."""
    x, y = data.flat_glyphs()
    model = init_linear(TwoTower(), he)
    if not fixed:
        with torch.no_grad():
            model.right.weight.copy_(-model.right.weight.abs())
    return Built(model, torch.optim.Adam(model.parameters(), lr=2e-3), CE, data.minibatches(x, y, 64, 150))


# ------------------------------------------------------------------ saturation


@faulty(
    "dev",
    "saturated",
    "missing /255 (SO 55328966, DeepFD #8; DeepDiagnosis 'saturated activation'; UMLAUT 'input exceeds limits')",
    must=[need("saturated|bad_scale", "acts.0 layers.0 input", by=10)],
    may="vanishing_gradient loss_stagnant update_ratio bad_scale zero_gradient saturated",
)
def sigmoid_raw_pixels(fixed: bool = False) -> Built:
    """Sigmoid MLP fed with pixels 0..255: the first layer sits at 0 or 1."""
    x, y = data.flat_glyphs()
    model = init_linear(MLP(64, 48, 2, 10, act=nn.Sigmoid), xavier)
    x = (x - 0.5) if fixed else 255 * x
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-3), CE, data.minibatches(x, y, 64, 150))


@faulty(
    "dev",
    "saturated",
    "RandomNormal(stddev=1) init (SO 48385830, DeepFD #1); Glorot & Bengio 2010",
    must=[need("saturated|bad_scale", "acts.* layers.*", by=10)],
    may="exploding_gradient vanishing_gradient bad_scale loss_unstable update_ratio loss_stagnant saturated",
)
def tanh_unit_normal(fixed: bool = False) -> Built:
    """Five tanh layers of width 64 with N(0,1) weights."""
    x, y = data.flat_glyphs()
    model = MLP(64, 64, 5, 10, act=nn.Tanh)
    init_linear(model, xavier if fixed else (lambda w: nn.init.normal_(w, std=1.0)))
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.05), CE, data.minibatches(x, y, 64, 150))


class BoundedRegressor(nn.Module):
    def __init__(self, bounded: bool):
        super().__init__()
        self.hidden, self.act1 = nn.Linear(1, 16), nn.Tanh()
        self.output = nn.Linear(16, 1)
        self.act2 = nn.Sigmoid() if bounded else nn.Identity()

    def forward(self, x):
        return self.act2(self.output(self.act1(self.hidden(x))))


@faulty(
    "dev",
    "saturated",
    "sigmoid output for an unbounded target (SO 48221692, DeepFD #20)",
    must=[need("saturated|loss_stagnant", "act2 output loss", by=120)],
    may="vanishing_gradient loss_stagnant zero_gradient update_ratio saturated dead_units",
)
def sigmoid_output_range(fixed: bool = False) -> Built:
    """Targets 2..12 through a sigmoid: the output pins at 1 and the gradient dies."""
    g = data.gen(6)
    x = torch.rand(256, 1, generator=g) * 4 - 2
    y = 7 + 2.5 * x
    model = BoundedRegressor(not fixed)
    return Built(model, torch.optim.Adam(model.parameters(), lr=0.03), nn.MSELoss(), data.minibatches(x, y, 64, 250))


# --------------------------------------------------- zero / disconnected gradient


class TwoBranch(nn.Module):
    def __init__(self, detach: bool):
        super().__init__()
        self.image = nn.Sequential(nn.Linear(64, 48), nn.ReLU())
        self.meta = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
        self.fuse = nn.Linear(64, 10)
        self.detach = detach

    def forward(self, x):
        m = self.meta(x[:, 64:])
        if self.detach:
            m = m.detach()
        return self.fuse(torch.cat([self.image(x[:, :64]), m], 1))


@faulty(
    "dev",
    "zero_gradient",
    "detached branch (pytorch.org forum staple; Humbatova et al. 2020 'missing/wrong API call')",
    must=[need("zero_gradient|not_updated", "meta meta.0", by=10)],
    may="not_updated zero_gradient dead_units",
)
def detached_branch(fixed: bool = False) -> Built:
    """A .detach() left behind cuts one branch off; the loss falls all the same."""
    x, y = data.flat_glyphs()
    g = data.gen(7)
    x = torch.cat([x, torch.randn(10, 8, generator=g)[y] + torch.randn(len(y), 8, generator=g)], 1)
    model = TwoBranch(not fixed)
    return Built(model, torch.optim.Adam(model.parameters(), lr=2e-3), CE, data.minibatches(x, y, 64, 150))


class WrongReuse(nn.Module):
    def __init__(self, bug: bool):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(64, 48), nn.Linear(48, 48), nn.Linear(48, 48)
        self.out = nn.Linear(48, 10)
        self.bug = bug

    def forward(self, x):
        h = torch.tanh(self.fc1(x))
        h = torch.tanh(self.fc2(h))
        h = torch.tanh((self.fc2 if self.bug else self.fc3)(h))
        return self.out(h)


@faulty(
    "dev",
    "zero_gradient",
    "unused module (copy-and-paste in forward; DDP 'find_unused_parameters')",
    must=[need("zero_gradient|not_updated", "fc3", by=10)],
    may="not_updated zero_gradient dead_units",
)
def unused_module(fixed: bool = False) -> Built:
    """forward() uses fc2 twice and fc3 never."""
    x, y = data.flat_glyphs()
    model = WrongReuse(not fixed)
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), CE, data.minibatches(x, y, 64, 150))


@faulty(
    "dev",
    "zero_gradient",
    "all-zero weights (DeepCrime 'change weights initialisation: zeros'; NeuraLint 'constant init')",
    must=[need("zero_gradient|bad_scale", "layers.* head acts.*", by=10)],
    may="dead_units loss_stagnant not_updated vanishing_gradient update_ratio zero_gradient bad_scale",
)
def zero_init(fixed: bool = False) -> Built:
    """Every weight zero: ReLU outputs zero, only the head's bias ever gets a gradient."""
    x, y = data.flat_glyphs()
    model = init_linear(MLP(64, 48, 2, 10), he if fixed else nn.init.zeros_)
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.1), CE, data.minibatches(x, y, 64, 120))


@faulty(
    "dev",
    "zero_gradient",
    "pytorch-forum 84911 (TrainCheck OSDI'25): everything but batch norm frozen, head included",
    must=[need("zero_gradient|not_updated|loss_stagnant", "*", by=100)],
    may="zero_gradient not_updated loss_stagnant update_ratio",
    tags=frozenset({"ambiguous"}),
)
def all_but_bn_frozen(fixed: bool = False) -> Built:
    """`if 'norm' not in name: requires_grad = False` freezes a network that was never trained."""
    x, y = data.glyphs()
    model = ConvNet(12, 3, 10, norm=True)
    if not fixed:
        model.requires_grad_(False)
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.requires_grad_(True)
    opt = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    return Built(model, opt, CE, data.minibatches(x, y, 64, 130))


# ------------------------------------------------------------------ not updated


@faulty(
    "dev",
    "not_updated",
    "optimizer built with a part of the parameters (silent-error class of TrainCheck OSDI'25)",
    must=[need("not_updated", "layers.0 layers.1", by=20)],
    may="exploding_gradient update_ratio zero_gradient stale_gradient",
)
def optimizer_partial(fixed: bool = False) -> Built:
    """The optimizer got the head and the last layer only; the others have gradients nobody uses."""
    x, y = data.flat_glyphs()
    model = init_linear(MLP(64, 48, 3, 10), he)
    params = model.parameters() if fixed else [*model.layers[2].parameters(), *model.head.parameters()]
    return Built(model, torch.optim.SGD(params, lr=0.05, momentum=0.9), CE, data.minibatches(x, y, 64, 150))


def buggy_accumulation(model, opt, loss_fn, batches, on_step) -> None:
    """`step % 4 == 4` is never true: gradients pile up and nothing is ever applied."""
    for step, (x, y) in enumerate(batches):
        loss = loss_fn(model(x), y) / 4
        loss.backward()
        if step % 4 == 4:
            opt.step()
            opt.zero_grad()
        on_step(step, loss.item())


def right_accumulation(model, opt, loss_fn, batches, on_step) -> None:
    for step, (x, y) in enumerate(batches):
        loss = loss_fn(model(x), y) / 4
        loss.backward()
        if step % 4 == 3:
            opt.step()
            on_step(step // 4, 4 * loss.item())
            opt.zero_grad()


@faulty(
    "dev",
    "not_updated",
    "off-by-one in gradient accumulation; cf. HF accelerate#2665 / TrainCheck 'gradients not applied'",
    must=[need("not_updated|stale_gradient|loss_stagnant|exploding_gradient|update_ratio", "*", by=100)],
    may="not_updated loss_stagnant exploding_gradient update_ratio",
    train=buggy_accumulation,
    fixed_train=right_accumulation,
    tags=frozenset({"no_optimizer_step"}),
)
def never_steps(fixed: bool = False) -> Built:
    """optimizer.step() is never reached."""
    x, y = data.flat_glyphs()
    model = init_linear(MLP(64, 48, 2, 10), he)
    return Built(model, torch.optim.Adam(model.parameters(), lr=3e-3), CE, data.minibatches(x, y, 32, 400 if fixed else 120))


# -------------------------------------------------------------------- bad scale


@faulty(
    "dev",
    "bad_scale",
    "N(0,1) init of a ReLU net (SO 48385830; He et al. 2015)",
    must=[need("bad_scale|exploding_gradient", "layers.* acts.* head", by=10)],
    may="exploding_gradient loss_unstable update_ratio dead_units bad_scale vanishing_gradient loss_stagnant",
)
def relu_unit_normal(fixed: bool = False) -> Built:
    """Six ReLU layers of width 64 with N(0,1) weights: activations grow by 5.7 a layer."""
    x, y = data.flat_glyphs()
    model = init_linear(MLP(64, 64, 6, 10), he if fixed else (lambda w: nn.init.normal_(w, std=1.0)))
    return Built(model, torch.optim.Adam(model.parameters(), lr=1e-3), CE, data.minibatches(x, y, 64, 150))


@faulty(
    "dev",
    "bad_scale",
    "constant init (NeuraLint 'checkConstantInit'; DeepCrime weights operators)",
    must=[need("bad_scale", "hidden* layers.* head acts.*", by=20)],
    may="loss_stagnant vanishing_gradient zero_gradient update_ratio bad_scale",
    tags=frozenset({"symmetry"}),
)
def constant_init(fixed: bool = False) -> Built:
    """All weights 0.05: the units of a layer are copies of each other and stay so."""
    x, y = data.flat_glyphs()
    model = init_linear(MLP(64, 48, 2, 10, act=nn.Tanh), xavier if fixed else (lambda w: nn.init.constant_(w, 0.05)))
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), CE, data.minibatches(x - 0.5, y, 64, 150))


# ------------------------------------------------------------------ update ratio


@faulty(
    "dev",
    "update_ratio",
    "Adam lr 0.1 (FacialKeypointsDetection, DeepFD #49; DeepCrime 'change learning rate'; UMLAUT LR > 0.01)",
    must=[need("update_ratio|loss_unstable", "layers.* head loss", by=40)],
    may="loss_unstable loss_stagnant dead_units exploding_gradient bad_scale saturated zero_gradient vanishing_gradient update_ratio",
)
def adam_lr_too_high(fixed: bool = False) -> Built:
    """Adam with lr 0.5 on a 4-layer SiLU MLP: every step replaces the weights."""
    x, y = data.flat_glyphs()
    model = init_linear(MLP(64, 48, 4, 10, act=nn.SiLU), he)
    return Built(model, torch.optim.Adam(model.parameters(), lr=2e-3 if fixed else 0.5), CE, data.minibatches(x, y, 64, 120))


@faulty(
    "dev",
    "update_ratio",
    "learning rate 1e-9 (UMLAUT 'LR < 1e-7'; AutoTrainer 'slow convergence')",
    must=[need("update_ratio|not_updated", "*", by=50)],
    may="loss_stagnant not_updated update_ratio",
)
def lr_tiny(fixed: bool = False) -> Built:
    """Adam with lr 1e-9: updates are lost in rounding, the loss is flat."""
    x, y = data.flat_glyphs()
    model = init_linear(MLP(64, 48, 2, 10), he)
    return Built(model, torch.optim.Adam(model.parameters(), lr=3e-3 if fixed else 1e-9), CE, data.minibatches(x, y, 64, 120))


class HeadNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.backbone(x))


@faulty(
    "dev",
    "update_ratio",
    "parameter group with a wrong learning rate (discriminative rates, Howard & Ruder 2018, gone wrong)",
    must=[need("update_ratio|loss_unstable|exploding_gradient", "head loss", by=40)],
    may="loss_unstable exploding_gradient loss_stagnant bad_scale update_ratio saturated dead_units",
)
def head_lr_wrong(fixed: bool = False) -> Built:
    """Head trained with lr 20 instead of 0.05 (SGD)."""
    x, y = data.flat_glyphs()
    model = init_linear(HeadNet(), he)
    groups = [{"params": model.backbone.parameters()}, {"params": model.head.parameters(), "lr": 0.05 if fixed else 20.0}]
    return Built(model, torch.optim.SGD(groups, lr=0.05), CE, data.minibatches(x, y, 64, 120))


# ------------------------------------------------------------------------- loss


@faulty(
    "dev",
    "loss_unstable",
    "AutoTrainer ICSE'21 'oscillating loss' (step size far above 2 / curvature)",
    must=[need("loss_unstable|update_ratio|saturated", "*", by=40)],
    may="exploding_gradient update_ratio loss_stagnant saturated bad_scale vanishing_gradient loss_unstable zero_gradient dead_units",
)
def momentum_oscillation(fixed: bool = False) -> Built:
    """Momentum SGD with lr 1 on a tanh classifier: the loss climbs to 20x and oscillates there."""
    x, y = data.flat_glyphs()
    model = init_linear(MLP(64, 32, 1, 10, act=nn.Tanh), xavier)
    opt = torch.optim.SGD(model.parameters(), lr=0.1 if fixed else 1.0, momentum=0.9)
    return Built(model, opt, CE, data.minibatches(x, y, 64, 180))


def negative_log_likelihood_wrong_sign(logits, y):
    return F.log_softmax(logits, -1).gather(1, y[:, None]).mean()


@faulty(
    "dev",
    "loss_unstable",
    "wrong sign of the loss (Humbatova et al. 2020 'wrong loss calculation')",
    must=[need("loss_unstable|exploding_gradient|bad_scale|loss_stagnant", "*", by=145)],
    may="exploding_gradient bad_scale update_ratio saturated loss_unstable loss_stagnant dead_units non_finite",
)
def wrong_sign(fixed: bool = False) -> Built:
    """log-likelihood minimised instead of maximised: the 'loss' falls without bound, logits blow up."""
    x, y = data.flat_glyphs()
    model = init_linear(MLP(64, 48, 2, 10), he)
    return Built(
        model,
        torch.optim.SGD(model.parameters(), lr=0.05 if fixed else 0.002),
        CE if fixed else negative_log_likelihood_wrong_sign,
        data.minibatches(x, y, 64, 150),
    )


class StaleTarget(nn.Module):
    """A net whose second half was deep-copied into the optimizer by mistake."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.top = nn.Sequential(nn.Flatten(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, x):
        return self.top(self.stem(x))


@faulty(
    "dev",
    "not_updated",
    "optimizer holds the parameters of a copy (EMA / deepcopy / re-loaded checkpoint mix-up; cf. HF accelerate#2665)",
    must=[need("not_updated|loss_stagnant", "*", by=60)],
    may="not_updated loss_stagnant exploding_gradient update_ratio stale_gradient",
)
def optimizer_on_copy(fixed: bool = False) -> Built:
    """Model is replaced by its deepcopy after the optimizer was built: gradients arrive (and pile up), nothing moves."""
    x, y = data.glyphs()
    model = StaleTarget()
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if not fixed:
        model = copy.deepcopy(model)
    return Built(model, opt, CE, data.minibatches(x, y, 40, 120))


@faulty(
    "dev",
    "loss_stagnant",
    "targets carry no information (wrong column selected; Humbatova et al. 2020 'wrong labels', DeepFD #32)",
    must=[need("loss_stagnant", "*", by=195)],
    may="loss_stagnant",
    tags=frozenset({"data"}),
)
def wrong_target_column(fixed: bool = False) -> Built:
    """Regression on a column of pure noise: MSE stays at 1, gradients are lively."""
    g = data.gen(47)
    out = []
    for _ in range(200):
        x = torch.randn(64, 8, generator=g)
        signal, noise = torch.tanh(x[:, :1] + x[:, 1:2] * x[:, 2:3]), torch.randn(64, 1, generator=g)
        out.append((x, 1.5 * signal if fixed else noise))
    model = MLP(8, 32, 2, 1, act=nn.SiLU)
    return Built(model, torch.optim.Adam(model.parameters(), lr=2e-3), nn.MSELoss(), out)


@faulty(
    "dev",
    "bad_scale",
    "unscaled regression target (SO 52800582, 46642627; DeepFD 'missing preprocess')",
    must=[need("bad_scale|exploding_gradient|update_ratio|loss_stagnant|loss_unstable", "*", by=100)],
    may="bad_scale exploding_gradient update_ratio loss_stagnant loss_unstable dead_units",
    requires=("sklearn",),
)
def raw_target(fixed: bool = False) -> Built:
    """Diabetes progression 25..346 scaled to 1e5 (a price), lr 1e-3 Adam: output has to travel 1e7, gradients are 1e7."""
    x, y = data.sk_diabetes()
    x = data.standardise(x)
    y = data.standardise(y) if fixed else 1e5 * y
    model = MLP(10, 32, 2, 1)
    return Built(model, torch.optim.Adam(model.parameters(), lr=5e-3), nn.MSELoss(), data.minibatches(x, y, 50, 200))
