"""Faulty programs: plain nets whose activations, initial weights, biases or masks are wrong."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import data
from ..core import Built, faulty, need
from ..more._programs import named, teacher
from ..nets import MLP, he, init_linear

CE = nn.CrossEntropyLoss()


@faulty(
    "fresh",
    "vanishing_gradient",
    "softmax used as a hidden activation (DeepFD, Cao et al. 2022; Stack Overflow staple)",
    must=[need("vanishing_gradient|bad_scale|loss_stagnant", "*", by=80)],
    may="vanishing_gradient bad_scale loss_stagnant update_ratio",
)
def softmax_between_layers(fixed: bool = False) -> Built:
    """Softmax behind each of three hidden layers: outputs near 1/40, slopes near 1/40, the first layers learn nothing."""
    x, y = teacher()
    act = nn.SiLU if fixed else lambda: nn.Softmax(-1)
    model = MLP(20, 40, 3, 4, act=act)
    opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Built(model, opt, CE, data.minibatches(x, y, 64, 150))


class SquaredReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


@faulty(
    "fresh",
    "exploding_gradient",
    "squared ReLU (So et al. 2021, Primer) without the normalisation it lives with",
    must=[need("exploding_gradient|bad_scale|non_finite|loss_unstable", "*", by=10)],
    may="exploding_gradient bad_scale non_finite loss_unstable loss_stagnant update_ratio dead_units zero_gradient not_updated "
    "vanishing_gradient",
    loss_ratio=0.8,
)
def squared_relu_without_norm(fixed: bool = False) -> Built:
    """Five layers that square: the logits start beyond 1e5, the gradients beyond 1e6."""
    x, y = teacher()
    model = init_linear(MLP(20, 48, 5, 4, act=SquaredReLU, norm=nn.LayerNorm if fixed else None), he)
    return Built(model, torch.optim.SGD(model.parameters(), lr=0.01), CE, data.minibatches(x, y, 64, 130))


@faulty(
    "fresh",
    "dead_units",
    "trunc_normal_(w, std=s, a=-2*s, b=0): limits given for one side only (PyTorch documentation of nn.init)",
    must=[need("dead_units|zero_gradient", "layers.1 layers.1.* acts.1", by=25)],
    may="dead_units zero_gradient not_updated bad_scale vanishing_gradient loss_stagnant",
)
def truncated_normal_one_sided(fixed: bool = False) -> Built:
    """All weights of the second layer are negative and its inputs are not: no unit of it ever fires."""
    x, y = data.flat_glyphs()
    model = init_linear(MLP(64, 48, 3, 10), he)
    if not fixed:
        nn.init.trunc_normal_(model.layers[1].weight, std=0.2, a=-0.4, b=0.0)
    return Built(model, torch.optim.Adam(model.parameters(), lr=3e-3), CE, data.minibatches(x, y, 64, 130))


@faulty(
    "fresh",
    "dead_units",
    "nn.Threshold(6, 0) where nn.ReLU6() was meant",
    must=[need("dead_units|zero_gradient|loss_stagnant", "*", by=60)],
    may="dead_units zero_gradient not_updated loss_stagnant vanishing_gradient bad_scale update_ratio",
)
def threshold_for_relu6(fixed: bool = False) -> Built:
    """Everything below 6 becomes 0, which is everything: only the last bias learns."""
    x, y = teacher(seed=3)
    model = init_linear(MLP(20, 48, 2, 4, act=nn.ReLU6 if fixed else lambda: nn.Threshold(6.0, 0.0)), nn.init.xavier_normal_)
    return Built(model, torch.optim.RMSprop(model.parameters(), lr=2e-3), CE, data.minibatches(x, y, 50, 140))


@faulty(
    "fresh",
    "saturated",
    "output bias set to the prior in percent instead of its log-odds (Lin et al. 2017, sec. 4.1, gone wrong)",
    must=[need("saturated|zero_gradient|loss_stagnant|vanishing_gradient|bad_scale", "*", by=60)],
    may="saturated zero_gradient loss_stagnant vanishing_gradient bad_scale not_updated dead_units update_ratio",
    requires=("sklearn",),
)
def prior_bias_in_percent(fixed: bool = False) -> Built:
    """A bias of 37: the sigmoid is 1 to the last bit, its slope exactly 0, BCELoss stays at 37."""
    x, y = data.sk_breast_cancer()
    y = (1 - y.float()).unsqueeze(1)
    model = named(
        fc1=nn.Linear(30, 24), act=nn.Tanh(), fc2=nn.Linear(24, 16), act2=nn.Tanh(), out=nn.Linear(16, 1), prob=nn.Sigmoid()
    )
    nn.init.constant_(model.out.bias, -0.53 if fixed else 37.0)
    opt = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Built(model, opt, nn.BCELoss(), data.minibatches(data.standardise(x), y, 50, 120))


class Pruned(nn.Linear):
    """A linear layer with a mask over its weights."""

    def __init__(self, d_in: int, d_out: int):
        super().__init__(d_in, d_out)
        self.register_buffer("mask", torch.ones(d_out, d_in))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


def pruned_at_40(absolute: bool):
    def loop(model, opt, loss_fn, batches, on_step) -> None:
        for step, (x, y) in enumerate(batches):
            if step == 40:
                for m in (model.fc1, model.fc2):
                    size = m.weight.detach().abs()
                    m.mask.copy_(size > (0.9 if absolute else size.quantile(0.6)))
            opt.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            opt.step()
            on_step(step, loss.item())

    return loop


@faulty(
    "fresh",
    "zero_gradient",
    "magnitude pruning with an absolute threshold where a quantile was meant (Han et al. 2015)",
    must=[need("zero_gradient|dead_units|bad_scale", "fc1 fc1.* fc2 fc2.* act1 act2", by=70)],
    may="zero_gradient dead_units bad_scale loss_unstable loss_stagnant not_updated vanishing_gradient update_ratio",
    train=pruned_at_40(True),
    fixed_train=pruned_at_40(False),
    onset=40,
)
def pruning_removes_every_weight(fixed: bool = False) -> Built:
    """At step 40 the masks of two layers become all zero: the net is a bias from then on."""
    x, y = data.flat_glyphs(seed=2)
    model = named(fc1=Pruned(64, 48), act1=nn.ELU(), fc2=Pruned(48, 32), act2=nn.ELU(), out=nn.Linear(32, 10))
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Built(model, opt, CE, data.minibatches(x, y, 64, 150))


@faulty(
    "fresh",
    "bad_scale",
    "weights drawn with torch.rand instead of torch.randn: a mean of 0.5 (course assignments; LeCun et al. 1998, sec. 4.6)",
    must=[need("bad_scale|exploding_gradient|loss_unstable|update_ratio", "*", by=20)],
    may="bad_scale exploding_gradient loss_unstable update_ratio dead_units zero_gradient loss_stagnant non_finite vanishing_gradient "
    "not_updated",
    requires=("sklearn",),
)
def rand_for_randn(fixed: bool = False) -> Built:
    """All weights positive, mean 0.5: every layer multiplies the common mode by 16, all units say the same."""
    x, y = data.sk_digits()
    model = init_linear(
        MLP(64, 32, 4, 10), (lambda w: w.data.normal_(std=w.shape[1] ** -0.5)) if fixed else (lambda w: w.data.uniform_())
    )
    opt = torch.optim.SGD(model.parameters(), lr=0.05 if fixed else 0.005, momentum=0.9)
    return Built(model, opt, CE, data.minibatches(x / 16, y, 64, 160))
