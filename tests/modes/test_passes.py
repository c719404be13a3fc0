"""Passes through the graph that are more, or other, than one backward pass of a loss: what counts, and what does not."""

import copy
import functools
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from both_ways import both_ways, rows, state
from registry import Mode
from torch import nn
from torch.autograd.graph import save_on_cpu
from torch.func import functional_call
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import gradwatch

sys.path.insert(0, str(Path(__file__).parent.parent / "capture"))
from autograd_oracle import assert_same, expected

RETAINED = Mode(
    "Graphs and passes",
    "`retain_graph`, several backward passes through one graph",
    recorded="every pass counts: gradients of activations merge over the passes, and `Record.backwards` counts them",
    units="one pass each, not their sum; `parameter_grad` is the sum, as in `.grad`",
)
ASIDE = Mode(
    "Graphs and passes",
    "`torch.autograd.grad` beside the backward pass: gradient penalties, physics-informed residuals, saliency maps, inner loops",
    recorded="forwards like any other, and no gradients: those of activations are of the passes that leave gradients in leaves, as "
    "`loss.backward()` does, and only these are counted",
)
DOUBLE = Mode(
    "Graphs and passes",
    "double backward: a loss with `create_graph=True` in it (WGAN-GP, second derivatives)",
    recorded="dL/da along every path, also the one through the derivative, as `torch.autograd.grad` gives it for the output",
    unsupported="dL/dz (`input_grad`) is what the activation itself hands back, without what the dependence of its derivative on z "
    "adds",
)
ALONE = Mode(
    "Graphs and passes",
    "`torch.autograd.grad` of the model's own parameters, and no backward pass in the step",
    recorded="it is the backward pass of the step: gradients of activations are recorded and it is counted",
    unsupported="`parameter_grad`, unless you put the gradients into `.grad` before the step",
)
FROZEN = Mode(
    "Graphs and passes",
    "backward through a frozen model: a critic that trains a generator, an attack on the input",
    recorded="activations and their gradients; `parameter_grad` of nothing, as nothing asks for it",
)
ANOMALY = Mode("Graphs and passes", "`torch.autograd.detect_anomaly`", recorded="the same as without")
CUSTOM = Mode(
    "Graphs and passes",
    "an autograd function that runs forward again, or asks for gradients, within backward",
    recorded="modules that it calls with gradients enabled count where they are run, and what it asks for counts as a part of the "
    "pass that it is run in",
)
VECTORISED = Mode(
    "Graphs and passes",
    "Jacobians: `is_grads_batched=True`, `torch.autograd.functional`, `vectorize=True`",
    recorded="forwards like any other, and no gradients",
)
CHECKPOINT = Mode(
    "Graphs and passes",
    "activation checkpointing: reentrant or not, without early stop, selective, nested",
    recorded="each layer once, though forward runs twice; the same as without checkpointing",
)
OFFLOAD = Mode("Graphs and passes", "`save_on_cpu` and other hooks on saved tensors", recorded="the same as without")


def net(*sizes):
    sizes = sizes or (3, 4, 1)
    layers = [layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


def sgd(model, lr=0.05):
    return torch.optim.SGD(model.parameters(), lr=lr)


def assert_measures(row, *tensors):
    values = np.concatenate([tensor.detach().double().flatten().numpy() for tensor in tensors])
    assert (row.count, row.calls, row.nonfinite) == (values.size, len(tensors), 0)
    figures = [values.mean(), np.sqrt(np.square(values).mean()), values.min(), values.max()]
    np.testing.assert_allclose([row.mean, row.rms, row.min, row.max], figures, rtol=2e-5, atol=1e-7)


def derivatives(loss_of, model, *batches):
    """The derivatives of a loss with respect to each layer's output, asked for: layer → a gradient for each call."""
    model = copy.deepcopy(model)
    outputs = {name: [] for name, layer in model.named_modules() if next(layer.children(), None) is None}
    for name, calls in outputs.items():
        model.get_submodule(name).register_forward_hook(lambda _module, _args, output, calls=calls: calls.append(output))
    loss = loss_of(model, *batches)
    found = {name: torch.autograd.grad(loss, calls, retain_graph=True, allow_unused=True) for name, calls in outputs.items()}
    return {name: [gradient for gradient in gradients if gradient is not None] for name, gradients in found.items()}


@RETAINED
def test_two_losses_of_one_graph():
    x = torch.tensor([[1.0, 2.0]])

    def program(attach):
        model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
        with torch.no_grad():
            model[0].weight.copy_(torch.eye(2))
            model[1].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
        optimizer = sgd(model)
        attach(model, optimizer)
        out = model(x)
        out[:, 0].sum().backward(retain_graph=True)
        (10 * out[:, 1]).sum().backward()
        optimizer.step()
        return state(model)

    watch = both_ways(program)
    found = rows(watch)
    assert watch.history[0].backwards == 2
    assert_measures(found["1", "activation_grad"], torch.tensor([1.0, 0.0]), torch.tensor([0.0, 10.0]))
    assert_measures(found["0", "activation_grad"], torch.tensor([1.0, 0.0]), torch.tensor([0.0, 30.0]))
    assert_measures(found["1.weight", "parameter_grad"], torch.tensor([[1.0, 2.0], [10.0, 20.0]]))
    assert found["1", "activation"].calls == 1


def gradient_penalty(model, real, fake):
    """The loss of a Wasserstein critic, Gulrajani et al. 2017."""
    between = (0.3 * real + 0.7 * fake).requires_grad_()
    out = model(between)
    (slope,) = torch.autograd.grad(out.sum(), between, create_graph=True)
    return model(fake).mean() - model(real).mean() + 10 * (slope.norm(dim=1) - 1).square().mean()


def residual(model, t):
    """The residual of u'' = -u, for a network u(t)."""
    t = t.clone().requires_grad_()
    u = model(t)
    (first,) = torch.autograd.grad(u.sum(), t, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), t, create_graph=True)
    return (second + u).square().mean() + (model(torch.zeros(1, 1)) - 1).square().sum()


DOUBLES = {
    "WGAN-GP": (gradient_penalty, (2, 6, 6, 1), lambda: (torch.randn(5, 2), torch.randn(5, 2))),
    "physics-informed": (residual, (1, 6, 6, 1), lambda: (torch.randn(7, 1),)),
}


@ASIDE
@DOUBLE
@pytest.mark.parametrize("name", DOUBLES)
def test_a_loss_with_a_derivative_in_it(name):
    loss_of, sizes, make = DOUBLES[name]
    models, batches = [], make()

    def program(attach):
        model = net(*sizes)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        attach(model, optimizer)
        for _ in range(3):
            models.append(copy.deepcopy(model))
            loss_of(model, *batches).backward()
            optimizer.step()
            optimizer.zero_grad()
        return state(model, optimizer)

    watch = both_ways(program)
    for step, model in enumerate(models[3:]):
        reference = derivatives(loss_of, model, *batches)
        found = rows(watch, step)
        assert watch.history[step].backwards == 1
        for layer, gradients in reference.items():
            assert_measures(found[layer, "activation_grad"], *gradients)


@DOUBLE
def test_gradients_of_double_backward_are_those_of_the_oracle():
    class Critic(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(2, 5), nn.Linear(5, 1)

        def forward(self, x):
            out = self.last(torch.tanh(self.first(x)))
            (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
            return out.sum() + (slope.norm(dim=1) - 1).square().sum()

    torch.manual_seed(0)
    model, x = Critic(), torch.randn(4, 2, requires_grad=True)
    optimizer = sgd(model, 0.0)
    with gradwatch.watch(model, optimizer, every=1) as watch:
        model(x).backward()
        optimizer.step()
    found = {site: row for site, row in rows(watch).items() if site[1] in ("activation", "activation_grad")}
    assert_same(found, expected(model, (x,), (), loss=torch.sum))


@DOUBLE
def test_the_valve_of_an_activation_in_double_backward():
    # y = tanh(w x), dy/dx = w (1 - y²); the loss is y + dy/dx. Backward, tanh hands back (1 - y²) times dL/dy, at once.
    def program(attach):
        model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh())
        nn.init.constant_(model[0].weight, 0.5)
        optimizer = sgd(model, 0.0)
        attach(model, optimizer)
        x = torch.ones(1, 1, requires_grad=True)
        y = model(x)
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        (y + slope).sum().backward()
        optimizer.step()
        return state(model)

    found = rows(both_ways(program))
    y = np.tanh(0.5)
    grad = 1 - 2 * 0.5 * y  # dL/dy where dy/dx is written as w (1 - y²)
    assert found["1", "activation_grad"].mean == pytest.approx(grad, rel=1e-5)
    assert found["1", "input_grad"].mean == pytest.approx(grad * (1 - y**2), rel=1e-5)


@ASIDE
@pytest.mark.parametrize("first", [False, True], ids=["after the backward pass", "before it"])
@pytest.mark.parametrize("of", ["input", "parameters", "activation"])
def test_a_gradient_that_is_asked_for_beside_the_backward_pass_does_not_count(first, of):
    x, models = torch.randn(5, 3), []

    def ask(model):
        inputs = x.clone().requires_grad_()
        hidden = model[0](inputs)
        asked = {"input": [inputs], "parameters": list(model.parameters()), "activation": [hidden]}[of]
        torch.autograd.grad(100 * model[2](model[1](hidden)).sum(), asked)

    def program(attach):
        model = net()
        models.append(copy.deepcopy(model))
        optimizer = sgd(model)
        attach(model, optimizer)
        if first:
            ask(model)
        model(x).square().sum().backward()
        if not first:
            ask(model)
        optimizer.step()
        return state(model)

    watch = both_ways(program)
    found = rows(watch)
    assert watch.history[0].backwards == 1
    for layer, gradients in derivatives(lambda model: model(x).square().sum(), models[0]).items():
        assert_measures(found[layer, "activation_grad"], *gradients)
    assert found["1", "input_grad"].calls == 1
    assert found["0", "activation"].calls == 2


@ASIDE
def test_a_saliency_map_alone_is_no_backward_pass():
    def program(attach):
        model = net()
        optimizer = sgd(model)
        attach(model, optimizer)
        x = torch.randn(5, 3, requires_grad=True)
        torch.autograd.grad(model(x).sum(), x)
        optimizer.step()
        return state(model)

    watch = both_ways(program)
    assert watch.history[0].backwards == 0
    assert not [site for site in rows(watch) if site[1] in ("activation_grad", "input_grad")]


@ASIDE
def test_inner_loops_do_not_count_and_the_outer_pass_does():
    x, y = torch.randn(6, 3), torch.randn(6, 1)
    models = []

    def loss_of(model, parameters):
        return (functional_call(model, parameters, (x,)) - y).square().mean()

    def meta(model):
        parameters = dict(model.named_parameters())
        for _ in range(2):
            gradients = torch.autograd.grad(loss_of(model, parameters), list(parameters.values()), create_graph=True)
            parameters = {name: p - 0.1 * g for (name, p), g in zip(parameters.items(), gradients, strict=True)}
        return loss_of(model, parameters)

    def program(attach):
        model = net()
        models.append(copy.deepcopy(model))
        optimizer = sgd(model)
        attach(model, optimizer)
        meta(model).backward()
        optimizer.step()
        return state(model)

    watch = both_ways(program)
    found = rows(watch)
    assert watch.history[0].backwards == 1
    for layer, gradients in derivatives(meta, models[0]).items():
        assert_measures(found[layer, "activation_grad"], *gradients)
    assert found["0", "activation"].calls == 3


@ALONE
@pytest.mark.parametrize("assigned", [False, True], ids=["used at once", "put into .grad"])
def test_a_step_without_a_backward_pass(assigned):
    x, models = torch.randn(5, 3), []

    def program(attach):
        model = net()
        models.append(copy.deepcopy(model))
        optimizer = sgd(model) if assigned else None
        watch = attach(model, optimizer)
        for _ in range(3):
            inputs = x.clone().requires_grad_()
            (slope,) = torch.autograd.grad(model(inputs).sum(), inputs, create_graph=True)
            gradients = torch.autograd.grad(model(x).square().sum() + 0 * slope.sum(), list(model.parameters()))
            if assigned:
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter.grad = gradient
                optimizer.step()
            else:
                with torch.no_grad():
                    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                        parameter.sub_(0.05 * gradient)
                watch.step()
        return state(model)

    watch = both_ways(program)
    found = rows(watch)
    assert [record.backwards for record in watch.history] == [1, 1, 1]
    reference = derivatives(lambda model: model(x).square().sum(), models[0])
    assert found["0", "activation_grad"].rms == pytest.approx(
        np.sqrt(reference["0"][0].square().sum().item() / found["0", "activation_grad"].count), rel=1e-5
    )
    assert found["0.weight", "update"].rms > 0
    assert (("0.weight", "parameter_grad") in found) == assigned
    assert watch.findings == []


@FROZEN
def test_a_critic_that_is_frozen_passes_gradients_on():
    noise, models = torch.randn(5, 2), []

    def program(attach):
        generator, critic = nn.Linear(2, 3), net()
        critic.requires_grad_(False)
        models.append((copy.deepcopy(generator), copy.deepcopy(critic)))
        optimizer = sgd(generator)
        attach(generator, optimizer)
        watch = attach(critic, None)
        critic(generator(noise)).sum().backward()
        optimizer.step()
        watch.step()
        return state(generator, critic)

    _, watch = both_ways(program)
    generator, critic = models[0]
    found = rows(watch)
    for layer, gradients in derivatives(lambda model: model(generator(noise)).sum(), critic).items():
        assert_measures(found[layer, "activation_grad"], *gradients)
    assert watch.history[0].backwards == 1


@FROZEN
def test_an_attack_on_the_input_of_a_frozen_model():
    def program(attach):
        model = net().requires_grad_(False)
        watch = attach(model, None)
        x = torch.randn(5, 3, requires_grad=True)
        model(x).sum().backward()
        watch.step()
        return [*state(model), x.grad]

    watch = both_ways(program)
    assert watch.history[0].backwards == 1
    assert rows(watch)["2", "activation_grad"].mean == 1


@ANOMALY
@pytest.mark.parametrize("loss_of", [gradient_penalty, lambda model, real, _fake: model(real).square().sum()])
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_under_detect_anomaly_nothing_is_different(loss_of):
    batches = torch.randn(5, 2), torch.randn(5, 2)

    def program(attach, anomaly):
        model = net(2, 6, 1)
        optimizer = sgd(model)
        attach(model, optimizer)
        with torch.autograd.set_detect_anomaly(anomaly):
            loss_of(model, *batches).backward()
        optimizer.step()
        return state(model)

    plain, detected = (both_ways(functools.partial(program, anomaly=anomaly)) for anomaly in (False, True))
    assert detected.history[0] == plain.history[0]


@CUSTOM
@pytest.mark.parametrize("asks", [False, True], ids=["backward in backward", "autograd.grad in backward"])
def test_a_function_that_differentiates_by_itself(asks):
    x, models = torch.randn(5, 3), []

    class Again(torch.autograd.Function):
        """Keeps the input only, and runs the layers again in backward."""

        @staticmethod
        def forward(ctx, layers, x, *parameters):
            ctx.layers = layers
            ctx.save_for_backward(x)
            with torch.no_grad():
                return layers(x)

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                out = ctx.layers(x)
            parameters = list(ctx.layers.parameters())
            if asks:
                return None, *torch.autograd.grad(out, (x, *parameters), grad)
            torch.autograd.backward(out, grad)
            return None, x.grad, *(None for _ in parameters)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.inner, self.last = nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, 1)

        def forward(self, x):
            return self.last(Again.apply(self.inner, self.first(x), *self.inner.parameters()))

        def plainly(self, x):
            return self.last(self.inner(self.first(x)))

    def program(attach):
        model = Net()
        models.append(copy.deepcopy(model))
        optimizer = sgd(model)
        attach(model, optimizer)
        model(x).square().sum().backward()
        optimizer.step()
        return state(model)

    watch = both_ways(program)
    found = rows(watch)
    assert watch.history[0].backwards == 1
    for layer, gradients in derivatives(lambda model: model.plainly(x).square().sum(), models[0]).items():
        assert_measures(found[layer, "activation_grad"], *gradients)
        assert found[layer, "activation"].calls == 1


@VECTORISED
@pytest.mark.parametrize("of", ["input", "parameters"])
def test_a_jacobian_beside_the_backward_pass(of):
    x = torch.randn(5, 3)

    def program(attach):
        model = net(3, 4, 2)
        optimizer = sgd(model)
        attach(model, optimizer)
        inputs = x.clone().requires_grad_()
        out = model(inputs)
        asked = [inputs] if of == "input" else list(model.parameters())
        jacobian = torch.autograd.grad(out, asked, torch.eye(10).view(10, 5, 2), is_grads_batched=True, retain_graph=True)
        again = torch.autograd.functional.jacobian(model, x, vectorize=True)
        out.sum().backward()
        optimizer.step()
        return [*state(model), *jacobian, again]

    watch = both_ways(program)
    found = rows(watch)
    assert watch.history[0].backwards == 1
    assert found["2", "activation_grad"].calls == 1
    assert found["2", "activation_grad"].mean == 1


@VECTORISED
def test_a_jacobian_alone():
    def program(attach):
        model = net(3, 4, 2)
        watch = attach(model, None)
        out = model(torch.randn(5, 3))
        torch.autograd.grad(out, list(model.parameters()), torch.eye(10).view(10, 5, 2), is_grads_batched=True)
        watch.step()
        return state(model)

    watch = both_ways(program)
    assert not [site for site in rows(watch) if site[1] == "activation_grad"]


class Block(nn.Module):
    def __init__(self, size, inner=None):
        super().__init__()
        self.linear, self.act, self.drop = nn.Linear(size, size), nn.GELU(), nn.Dropout(0.2)
        self.inner = inner

    def forward(self, x):
        h = self.drop(self.act(self.linear(x))) + x
        return h if self.inner is None else self.inner(h)


def keep_products(_context, operation, *_args, **_kwargs):
    kept = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}
    return CheckpointPolicy.MUST_SAVE if operation in kept else CheckpointPolicy.PREFER_RECOMPUTE


WAYS = {
    "reentrant": {"use_reentrant": True},
    "non-reentrant": {"use_reentrant": False},
    "without early stop": {"use_reentrant": False, "early_stop": False},
    "selective": {
        "use_reentrant": False,
        "context_fn": functools.partial(create_selective_checkpoint_contexts, keep_products),
    },
    "random numbers not kept": {"use_reentrant": False, "preserve_rng_state": True, "determinism_check": "none"},
}


class Checkpointed(nn.Module):
    """Blocks of which the middle ones are checkpointed; ``nested``: with one in one."""

    def __init__(self, options, *, nested=False):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.blocks = nn.ModuleList([Block(4), Block(4, Within(options) if nested else Within(None))])
        self.last, self.options = nn.Linear(4, 2), options

    def forward(self, x):
        h = self.first(x)
        for block in self.blocks:
            h = block(h) if self.options is None else checkpoint(block, h, **self.options)
        return self.last(h)


class Within(nn.Module):
    def __init__(self, options):
        super().__init__()
        self.block, self.options = Block(4), options

    def forward(self, x):
        return self.block(x) if self.options is None else checkpoint(self.block, x, **self.options)


def trained(attach, model, x, context=None):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    watch = attach(model, optimizer)
    for _ in range(3):
        torch.manual_seed(1)
        if context is None:
            loss = model(x).square().sum()
        else:
            with context():
                loss = model(x).square().sum()
        watch.loss(loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return state(model, optimizer)


@CHECKPOINT
@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of a reentrant checkpoint in another one
def test_checkpointing_records_what_a_run_without_it_does(way, nested):
    if way == "selective" and nested:
        pytest.skip("torch refuses a selective checkpoint in another one")
    x = torch.randn(5, 3)
    plain = both_ways(lambda attach: trained(attach, Checkpointed(None), x))
    watch = both_ways(lambda attach: trained(attach, Checkpointed(WAYS[way], nested=nested), x))
    for step in range(3):
        mine, reference = rows(watch, step), rows(plain, step)
        assert set(mine) == set(reference)
        assert watch.history[step].backwards == 1
        for site, row in reference.items():
            assert mine[site].calls == row.calls
            np.testing.assert_allclose(mine[site][4:], row[4:], rtol=1e-6, err_msg=str(site))


@OFFLOAD
@pytest.mark.parametrize("way", [None, "non-reentrant"])
def test_saved_tensors_that_are_offloaded(way):
    x = torch.randn(5, 3)
    options = None if way is None else WAYS[way]
    plain = both_ways(lambda attach: trained(attach, Checkpointed(None), x))
    watch = both_ways(lambda attach: trained(attach, Checkpointed(options), x, save_on_cpu))
    for step in range(3):
        for site, row in rows(plain, step).items():
            np.testing.assert_allclose(rows(watch, step)[site][4:], row[4:], rtol=1e-6, err_msg=str(site))
