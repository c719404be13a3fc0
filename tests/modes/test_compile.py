"""``torch.compile``: layers are measured inside the graphs, without a graph break, and training stays what it is."""

import copy
import functools
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from both_ways import both_ways, rows, state
from registry import Mode
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint

import gradwatch
from gradwatch.capture import engine, probes

sys.path.insert(0, str(Path(__file__).parent.parent / "capture"))
from autograd_oracle import assert_same, expected, rows_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),  # the compiler asks its inputs for it
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated"),  # by torch, in its own code
]

WHOLE = Mode(
    "torch.compile",
    "`torch.compile(model)`, `model.compile()`, or a compiled function that calls the model; also with `fullgraph=True`",
    recorded="activations and their gradients, and `input_grad` of torch's own activations: moments, extremes, zeros and "
    "non-finite elements. No graph break; each graph is compiled once more, for the steps that are sampled",
    units="sums are taken in float64",
    unsupported="`dead` of activations (that of weights is there), and `closed` except of Sigmoid, Tanh, Hardsigmoid and Hardtanh",
)
BLOCKS = Mode(
    "torch.compile",
    "blocks compiled one by one: `torch.compile(block)`, `block.compile()`",
    recorded="the same, together with the layers between them; blocks of one class go on sharing their graphs",
    unsupported="as above",
)
BACKENDS = Mode(
    "torch.compile",
    "the backends `eager`, `aot_eager` and `inductor`",
    recorded="the same in each",
    unsupported="that weights are equal to the last bit with and without a watch is promised for `eager` and `aot_eager`; "
    "`inductor` fuses other operations where it measures, and was equal in all tests on a CPU. Its modes for a GPU, such as "
    "`reduce-overhead`, are not verified",
)
SHAPES = Mode(
    "torch.compile",
    "dynamic shapes",
    recorded="the same; no shape is compiled for because of the watch",
    unsupported="layers whose output has a size that the data decide, as behind a boolean mask",
)
CADENCE = Mode(
    "torch.compile",
    "steps that are sampled and steps that are not; validation in between",
    recorded="two graphs where there was one, each compiled once; hooks stay on layers that are compiled, and cost a comparison",
)
REPEATED = Mode(
    "torch.compile",
    "micro-batches, and modules that are called several times, in compiled graphs",
    recorded="merged: `calls` counts them",
    unsupported="`min` and `max` of what was called more than once in a step",
)
CHECKPOINTED = Mode("torch.compile", "activation checkpointing in a compiled graph", recorded="each layer once")
AUTOGRAD = Mode(
    "torch.compile",
    "compiled autograd",
    recorded="of layers in compiled graphs the same as without",
    unsupported="the gradients of activations outside of compiled graphs, which no hook sees",
)
PRECISION = Mode(
    "torch.compile",
    "`autocast` and `GradScaler` with compiled graphs",
    recorded="the same as without compilation",
    units="unscaled with `scaler=`",
)
PASSES = Mode(
    "torch.compile",
    "`torch.autograd.grad` through a compiled graph",
    recorded="beside a backward pass it counts for nothing, as without compilation",
    unsupported="where a step has no backward pass, it is not taken for one",
)
BROKEN = Mode(
    "torch.compile",
    "code that breaks the graph",
    recorded="what runs between the graphs is observed as any other code; the watch adds no break",
)
LATE = Mode(
    "torch.compile",
    "a watch that is made after the first call of what is compiled",
    recorded="parameters, their gradients and updates; the log and `watch.report()` say that activations are not observed",
    unsupported="activations, until `torch.compiler.reset()`",
)
AGAIN = Mode(
    "torch.compile",
    "several trainings in one process, each with a model of the same class and a watch of its own",
    recorded="each as the first one, with the graphs of the first one",
)
TOLD = Mode(
    "torch.compile",
    "`watch.loss`, `watch.tap` and the criterion of `loss_fn=` in a compiled function",
    recorded="the loss and the tap",
    unsupported="what `watch.loss` and `watch.tap` are given: what they return has to be used in its place. A loss that is a "
    "number, or that no backward pass reaches, is not told",
)
UNOBSERVED = Mode(
    "torch.compile",
    "layers that work in place, hand on their input or a view of it, are frozen, or return something else than tensors, in a "
    "compiled graph",
    recorded="`watch.report()` lists them as not observed, and why",
    unsupported="their activations",
)
OLDER = Mode(
    "torch.compile",
    "torch 2.9 and older",
    recorded="parameters, their gradients and updates, and what runs outside of compiled graphs; no graph break",
    unsupported="activations inside of graphs",
)
TRANSFORMS = Mode("torch.compile", "`torch.func` in a compiled graph, `torch.export`", recorded="nothing inside of them")
COPIES = Mode(
    "torch.compile",
    "`copy.deepcopy`, `torch.save` and `watch.close()` with compiled models",
    recorded="copies and files are free of gradwatch, and after `close()` the model has no hook left",
    unsupported="a compiled graph that knows of hooks is made anew, without them, at the first call after `close()`",
)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.wide, self.act, self.out = nn.LayerNorm(width), nn.Linear(width, 6), nn.GELU(), nn.Linear(6, width)

    def forward(self, x):
        return x + self.out(self.act(self.wide(self.norm(x))))


class Net(nn.Module):
    def __init__(self, blocks=1, checkpointed=False):
        super().__init__()
        self.enter, self.head, self.act = nn.Linear(3, 4), nn.Linear(4, 2), nn.Tanh()
        self.blocks = nn.ModuleList(Block(4) for _ in range(blocks))
        self.checkpointed = checkpointed

    def forward(self, x):
        x = self.act(self.enter(x))
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
        return self.head(x)


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter, self.norm, self.act = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU()
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(3, 2)

    def forward(self, x):
        z = self.norm(self.enter(x))
        return self.head(torch.flatten(self.pool(self.act(z) + z), 1))


class Graphs:
    """A backend that counts the graphs that it is given."""

    def __init__(self, name):
        self.made, self.name = 0, name

    def __call__(self, graph, inputs):
        self.made += 1
        return torch._dynamo.lookup_backend(self.name)(graph, inputs)


def whole(model, backend="eager"):
    return torch.compile(model, backend=backend, fullgraph=True)


def in_place(model, backend):
    model.compile(backend=backend, fullgraph=True)
    return model


def function(model, backend):
    @torch.compile(backend=backend, fullgraph=True)
    def forward(x):
        return model(x)

    return forward


def wrapped_blocks(model, backend):
    for index, block in enumerate(model.blocks):
        model.blocks[index] = torch.compile(block, backend=backend, fullgraph=True)
    return model


def blocks_in_place(model, backend):
    for block in model.blocks:
        block.compile(backend=backend, fullgraph=True)
    return model


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def batches(sizes=(5,) * 4):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 3, generator=generator) for size in sizes]


def loss_of(output):
    """A loss in which every element has its own gradient."""
    return (output.float() * torch.linspace(1, 2, output.numel()).view_as(output)).square().mean()


def step(call, optimizer, x, loss=loss_of):
    optimizer.zero_grad()
    loss(call(x)).backward()
    optimizer.step()


def program(compiled, *, make=Net, backend="aot_eager", data=None, first=True, seen=None):
    """Trains a model that ``compiled(model, backend)`` compiles, before or after the watch is made.

    ``seen`` gets, for each run of the program, the number of graphs after each step.
    """

    def run(attach):
        torch.compiler.reset()
        graphs, model = Graphs(backend), make()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        if first:
            attach(model, optimizer)
        call = compiled(model, graphs)
        if not first:
            attach(call if isinstance(call, nn.Module) else model, optimizer)
        made = []
        for x in data or batches():
            step(call, optimizer, x)
            made.append(graphs.made)
        if seen is not None:
            seen.append(made)
        return state(model, optimizer)

    return run


def reference(make=Net, x=None):
    """What plain autograd says of the first step of a program."""
    torch.manual_seed(0)
    model = make()
    valves = [name for name, module in model.named_modules() if isinstance(module, (nn.Tanh, nn.GELU, nn.ReLU))]
    return expected(model, (batches()[0] if x is None else x,), valves, loss=loss_of)


def watched(model, **settings):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return optimizer, gradwatch.watch(model, optimizer, **{"every": 1, **settings})


def messages(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "gradwatch"]


def layers_of(watch):
    """The layers that have activations, in the order of the record."""
    return list(dict.fromkeys(site.layer for site in watch.history[0].sites if site.tensor == "activation"))


ORDER = ["enter", "act", "blocks.0.norm", "blocks.0.wide", "blocks.0.act", "blocks.0.out", "head"]


# ------------------------------------------------------------------ what is compiled, and by what


@WHOLE
@pytest.mark.parametrize("first", [True, False], ids=["watched first", "compiled first"])
@pytest.mark.parametrize("compiled", [whole, in_place, function])
def test_a_compiled_model_is_measured_inside_its_graph(compiled, first):
    made = []
    watch = both_ways(program(compiled, first=first, seen=made, backend="eager"), every=2)
    assert made == [[1, 1, 1, 1], [1, 2, 2, 2]]
    assert_same(rows_of(watch), reference())
    assert layers_of(watch) == ORDER
    assert "not observed" not in watch.report()


@OLDER
@pytest.mark.parametrize("first", [True, False], ids=["watched first", "compiled first"])
@pytest.mark.parametrize("compiled", [whole, in_place, function, wrapped_blocks, blocks_in_place])
def test_where_compilers_cannot_trace_what_measures_the_rest_is_recorded(compiled, first, monkeypatch):
    monkeypatch.setattr(engine, "TRACES", False)
    make = functools.partial(Net, blocks=12)  # more than a compiler makes graphs of one function
    watch = both_ways(program(compiled, make=make, first=first), every=2)
    measured = rows_of(watch)
    assert_same(measured, {key: tensors for key, tensors in reference(make).items() if key in measured})
    of_parameters = {site.layer for site in watch.history[0].sites if site.tensor == "parameter_grad"}
    assert of_parameters == {name for name, _ in make().named_parameters()}
    around = {"enter", "act", "head"} if compiled in (wrapped_blocks, blocks_in_place) else set()
    assert set(layers_of(watch)) == around


@BLOCKS
@pytest.mark.parametrize("first", [True, False], ids=["watched first", "compiled first"])
@pytest.mark.parametrize("compiled", [wrapped_blocks, blocks_in_place])
def test_compiled_blocks_are_measured_together_with_what_lies_between_them(compiled, first):
    make = functools.partial(Net, blocks=2)
    watch = both_ways(program(compiled, make=make, first=first), every=2)
    assert_same(rows_of(watch), reference(make))
    assert layers_of(watch) == [*ORDER[:-1], *(name.replace("0", "1") for name in ORDER[2:-1]), "head"]


@BLOCKS
def test_blocks_share_their_graphs_and_stay_under_the_limit_of_recompilations():
    made = []
    make = functools.partial(Net, blocks=2 * torch._dynamo.config.recompile_limit)
    watch = both_ways(program(blocks_in_place, make=make, seen=made, backend="eager"), every=2)
    assert made == [[1, 1, 1, 1], [1, 2, 2, 2]]  # fullgraph=True: at the limit the training would end
    assert rows(watch)["blocks.15.act", "input_grad"].count == rows(watch)["blocks.0.act", "input_grad"].count == 5 * 6


@WHOLE
def test_backend_aot_eager_trains_the_same_to_the_last_bit():
    watch = both_ways(program(whole), every=2)
    assert_same(rows_of(watch), reference())
    assert watch.history[0].backwards == 1
    frame = rows(watch)
    assert frame["act", "input_grad"].closed == 0
    assert frame["enter.weight", "parameter_grad"].stale == 0
    assert np.isfinite(frame["head.weight", "update"].rms)


@BACKENDS
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_backends_measure_the_same(backend):
    images = [x.repeat(1, 12).view(5, 1, 6, 6) for x in batches()]
    watch = both_ways(program(whole, make=Convolutions, data=images, backend=backend))
    assert_same(rows_of(watch), reference(Convolutions, images[0]))


@BACKENDS
def test_inductor_measures_the_same():
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("inductor needs a C++ compiler")
    with torch._inductor.config.patch(compile_threads=1):
        watch = both_ways(program(whole, backend="inductor"))
    assert_same(rows_of(watch), reference())


# ------------------------------------------------------------------ how often


@SHAPES
@pytest.mark.parametrize("dynamic", [None, True])
def test_no_shape_is_compiled_for_because_of_the_watch(dynamic):
    def compiled(model, backend):
        return torch.compile(model, backend=backend, fullgraph=True, dynamic=dynamic)

    made = []
    watch = both_ways(program(compiled, data=batches([5, 6, 5, 9, 7, 4, 8, 3, 6]), seen=made, backend="eager"), every=2)
    assert made[1][-1] <= 2 * made[0][-1]
    assert [rows(watch, number)["head", "activation"].count for number in (0, 2, 4)] == [2 * 5, 2 * 5, 2 * 7]
    assert_same(rows_of(watch), reference())


@SHAPES
def test_sizes_that_the_data_decide_are_left_alone():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.act, self.head = nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.act(self.enter(x)[x[:, 0] > 0])).sum(0)

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        watch = both_ways(program(whole, make=Masked))
    assert layers_of(watch) == ["enter"]
    assert "(in a compiled graph, and what it returns is empty, or of a size that the data decide): act, head" in watch.report()


@CADENCE
def test_two_graphs_are_all_that_sampling_costs():
    graphs, model, made = Graphs("eager"), Net(), []
    optimizer, watch = watched(model, every=3)
    call = whole(model, graphs)
    for x in batches((5,) * 8):
        step(call, optimizer, x)
        with torch.no_grad():
            call(x)  # has a graph of its own, and only one
            model(x)  # the same layers, not compiled
        made.append(graphs.made)
    watch.close()
    assert made == [2, 3, 3, 3, 3, 3, 3, 3]
    assert [("head", "activation") in rows(watch, number) for number in range(8)] == [True, False, False] * 2 + [True, False]
    assert {row.calls for (_, tensor), row in rows(watch, 3).items() if tensor == "activation"} == {1.0}


@CADENCE
def test_a_model_that_also_runs_without_being_compiled_is_measured_both_ways():
    graphs, model = Graphs("eager"), Net()
    optimizer, watch = watched(model, every=2)
    call = whole(model, graphs)
    for x in batches((5,) * 6):
        loss_of(model(x)).backward()
        step(call, optimizer, x)
    watch.close()
    assert graphs.made == 2
    assert [rows(watch, number)["act", "activation"].calls for number in (0, 2, 4)] == [2, 2, 2]


@REPEATED
def test_micro_batches_and_repeated_calls_merge():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.act = nn.Linear(3, 3, bias=False), nn.Tanh()

        def forward(self, x):
            return self.act(self.cell(self.cell(x)))

    def run(attach):
        torch.compiler.reset()
        model = Twice()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        attach(model, optimizer)
        call = whole(model, "aot_eager")
        for x in batches()[:3]:
            loss_of(call(x)).backward()
        optimizer.step()
        return state(model)

    watch = both_ways(run)
    torch.manual_seed(0)
    model, parts = Twice(), {}
    for x in batches()[:3]:
        for site, tensors in expected(model, (x,), ("act",), loss=loss_of).items():
            parts.setdefault(site, []).extend(tensors)
    measured = rows_of(watch)
    assert set(measured) == set(parts)
    for site, tensors in parts.items():
        values = torch.cat([tensor.double().flatten() for tensor in tensors])
        row = measured[site]
        assert (row.count, row.calls) == (values.numel(), len(tensors))
        np.testing.assert_allclose([row.mean, row.rms], [values.mean(), values.square().mean().sqrt()], rtol=2e-5, atol=1e-7)
        assert np.isnan([row.min, row.max]).all()
    assert watch.history[0].backwards == 3


# ------------------------------------------------------------------ which passes


@CHECKPOINTED
def test_what_is_recomputed_in_a_graph_counts_once():
    watch = both_ways(program(whole, make=functools.partial(Net, checkpointed=True)))
    assert_same(rows_of(watch), reference())


@AUTOGRAD
def test_compiled_autograd_delivers_the_same():
    def run(attach):
        torch.compiler.reset()
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        attach(model, optimizer)

        @torch.compile(backend="aot_eager")
        def train(x):
            loss_of(model(x)).backward()

        for x in batches():
            optimizer.zero_grad()
            train(x)
            optimizer.step()
        return state(model)

    with torch._dynamo.config.patch(compiled_autograd=True):
        watch = both_ways(run, every=2)
    assert torch._dynamo.utils.counters["compiled_autograd"]["captures"]
    assert_same(rows_of(watch), reference())


@PASSES
def test_gradients_that_are_asked_for_are_none_of_the_loss():
    def run(attach):
        torch.compiler.reset()
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        attach(model, optimizer)
        call = whole(model, "aot_eager")
        for x in batches():
            probe = x.clone().requires_grad_()
            torch.autograd.grad(call(probe).sum(), probe)
            step(call, optimizer, x)
        return state(model)

    watch = both_ways(run)
    assert watch.history[0].backwards == 1
    assert_same(
        {site: row for site, row in rows_of(watch).items() if "grad" in site[1]},
        {site: tensors for site, tensors in reference().items() if "grad" in site[1]},
    )


@PRECISION
def test_mixed_precision_and_loss_scaling():
    def run(attach):
        torch.compiler.reset()
        model = Net()
        optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=1024.0)
        attach(model, optimizer, scaler=scaler)
        call = whole(model, "aot_eager")
        for x in batches():
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(call(x))
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            with torch.no_grad():
                call(x)
        return state(model)

    watch = both_ways(run)
    with torch.autocast("cpu", torch.bfloat16):
        plain = reference()
    measured = rows_of(watch)
    assert set(measured) == set(plain)
    for site, tensors in plain.items():
        (tensor,) = tensors
        row, values = measured[site], tensor.double()
        assert row.count == values.numel()
        # bfloat16 has 8 bits, and a factor on the loss changes how its gradients round.
        np.testing.assert_allclose([row.rms, row.max], [values.square().mean().sqrt(), values.max()], rtol=0.03, atol=1e-4)


@BROKEN
def test_what_runs_between_graphs_is_observed_too():
    class Talking(Net):
        def forward(self, x):
            x = self.act(self.enter(x))
            torch._dynamo.graph_break()
            return self.head(self.blocks[0](x))

    def compiled(model, backend):
        return torch.compile(model, backend=backend)

    made = []
    watch = both_ways(program(compiled, make=Talking, seen=made), every=2)
    assert made[1][-1] == 2 * made[0][-1]
    assert_same(rows_of(watch), reference())
    assert layers_of(watch) == ORDER


@TRANSFORMS
def test_functional_transforms_and_exported_programs_are_left_alone():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    nodes = len(torch.export.export(model, (batches()[0],)).graph.nodes)
    optimizer, watch = watched(model)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def per_sample(parameters, x):
        return vmap(lambda row: grad(lambda weights: functional_call(model, weights, (row,)).sum())(parameters))(x)

    for x in batches():
        per_sample({name: parameter.detach() for name, parameter in model.named_parameters()}, x)
        step(whole(model), optimizer, x)
    assert len(torch.export.export(model, (batches()[0],)).graph.nodes) == nodes
    watch.close()
    assert rows(watch)["0", "activation"].calls == rows(watch)["0", "activation_grad"].calls == 1


# ------------------------------------------------------------------ what is said


@LATE
@pytest.mark.parametrize("compiled", [whole, function, blocks_in_place])
def test_a_watch_that_comes_too_late_says_so_and_goes_on_with_parameters(caplog, compiled):
    graphs, model = Graphs("eager"), Net()
    call = compiled(model, graphs)
    call(batches()[0]).sum().backward()
    optimizer, watch = watched(model)
    for x in batches():
        step(call, optimizer, x)
    (said,) = messages(caplog)
    assert "compiled before the watch was made" in said
    line = next(
        line for line in watch.report().splitlines() if line.startswith("not observed (compiled before the watch was made)")
    )
    assert set(line.partition(": ")[2].split(", ")) == set(ORDER if compiled is not blocks_in_place else ORDER[2:-1])
    assert rows(watch)["head.weight", "parameter_grad"].rms > 0
    assert rows(watch)["blocks.0.wide.weight", "update"].rms > 0
    torch.compiler.reset()
    step(call, optimizer, batches()[0])
    watch.close()
    assert rows(watch, 4)["blocks.0.act", "activation_grad"].rms > 0


@AGAIN
def test_models_that_are_trained_one_after_the_other_share_their_graphs(caplog):
    graphs, measured = Graphs("eager"), []
    for _ in range(torch._dynamo.config.recompile_limit):
        torch.manual_seed(0)
        model = Net()
        optimizer, watch = watched(model, every=2)
        with watch:
            call = whole(model, graphs)
            for x in batches():
                step(call, optimizer, x)
        measured.append(rows_of(watch))
    assert graphs.made == 2
    assert not messages(caplog)
    for one in measured:
        assert_same(one, reference())


@TOLD
def test_what_is_told_inside_a_compiled_function():
    def run(attach):
        torch.compiler.reset()
        model, criterion, losses = Net(), nn.MSELoss(), []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        watch = attach(model, optimizer, every=2)

        @torch.compile(backend="aot_eager", fullgraph=True)
        def forward(x):
            scores = watch.tap("scores", model(x))
            return watch.loss(criterion(scores, torch.ones_like(scores)))

        for x in batches():
            optimizer.zero_grad()
            losses.append(forward(x))
            losses[-1].backward()
            optimizer.step()
        return [*state(model), torch.stack(losses).detach()]

    told = []
    watch = both_ways(lambda attach: told.append(run(attach)) or told[-1])
    assert [record.loss for record in watch.history] == told[0][-1].tolist()
    scores = rows(watch)["scores", "activation"]
    torch.manual_seed(0)
    values = Net()(batches()[0]).detach()
    np.testing.assert_allclose([scores.rms, scores.max], [values.square().mean().sqrt(), values.max()], rtol=1e-6)
    gradient = 2 * (values - 1) / values.numel()
    np.testing.assert_allclose(rows(watch)["scores", "activation_grad"].rms, gradient.square().mean().sqrt(), rtol=1e-5)
    assert layers_of(watch) == [*ORDER, "scores"]


@TOLD
def test_the_criterion_inside_a_compiled_function():
    def run(attach):
        torch.compiler.reset()
        model, criterion, losses = Net(), nn.MSELoss(), []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        attach(model, optimizer, loss_fn=criterion, every=2)

        @torch.compile(backend="aot_eager", fullgraph=True)
        def forward(x):
            return criterion(model(x), torch.ones(5, 2))

        for x in batches():
            optimizer.zero_grad()
            losses.append(forward(x))
            losses[-1].backward()
            optimizer.step()
            with torch.no_grad():
                forward(x)  # a validation is no training loss
        return [*state(model), torch.stack(losses).detach()]

    told = []
    watch = both_ways(lambda attach: told.append(run(attach)) or told[-1])
    assert [record.loss for record in watch.history] == told[0][-1].tolist()


@UNOBSERVED
def test_what_is_not_observed_in_a_graph_is_listed_with_the_reason():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen = nn.Linear(3, 4).requires_grad_(requires_grad=False)
            self.enter, self.act, self.same = nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Identity()
            self.shaped, self.head = nn.Unflatten(1, (2, 2)), Named()

        def forward(self, x):
            x = self.enter(self.frozen(x))
            y = self.same(x)
            y += 1  # and into x
            self.act(x)  # what it returns is thrown away: it has written into x, and into y
            return self.head(self.shaped(y + x).flatten(1))["scores"]

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 4))

        def forward(self, x):
            return {"scores": nn.functional.linear(x, self.weight)}

    watch = both_ways(program(whole, make=Odd))
    assert layers_of(watch) == ["enter"]
    report = watch.report()
    assert "not observed (in a compiled graph, and returns its input or a view of it): act, same, shaped" in report
    assert "not observed (in a compiled graph, and what it returns needs no gradient): frozen" in report
    assert "not observed (in a compiled graph, and does not return a tensor or a tuple of tensors): head" in report


# ------------------------------------------------------------------ what is left behind


@COPIES
def test_copies_and_files_are_free_of_gradwatch_and_close_removes_every_hook(tmp_path):
    model = Net()
    call = whole(model, "aot_eager")
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    optimizer, watch = watched(model)
    for x in batches():
        step(call, optimizer, x)
    twin, other = copy.deepcopy(model), copy.deepcopy(call)
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert b"gradwatch" not in (tmp_path / "model.pt").read_bytes()
    for copied in (whole(twin), other, whole(loaded)):
        step(copied, torch.optim.SGD(copied.parameters(), lr=0.1), batches()[0])
    records = len(watch.history)
    watch.close()
    assert len(watch.history) == records + 1  # the one that was still under way
    for name, module in model.named_modules():
        assert set(vars(module)) == before[name]
        assert not any((module._forward_hooks, module._forward_pre_hooks, module._forward_hooks_with_kwargs))
    step(call, optimizer, batches()[0])
    assert not model.enter.weight._backward_hooks


@WHOLE
@pytest.mark.parametrize("place", ["_observe", "_places"])
def test_a_bug_while_a_compiler_traces_does_not_reach_the_training(monkeypatch, caplog, place):
    def broken(*_):
        raise LookupError("a bug")

    monkeypatch.setattr(*((probes.After, place, broken) if place == "_observe" else (probes, place, None)))
    model = Net()
    optimizer, watch = watched(model, detectors=())
    with watch:
        call = whole(model)
        for x in batches():
            step(call, optimizer, x)
    assert len(watch.history) == 4
    (said,) = messages(caplog)
    assert said.startswith("gradwatch failed inside, and training goes on without this observation")


# ------------------------------------------------------------------ what is found


@pytest.mark.parametrize(("act", "depth", "found"), [(nn.Sigmoid, 10, "vanishing_gradient"), (nn.ReLU, 2, None)])
@WHOLE
def test_detectors_judge_a_compiled_network_as_any_other(act, depth, found):
    layers = [layer for _ in range(depth) for layer in (nn.Linear(16, 16), act())]
    model = nn.Sequential(*layers, nn.Linear(16, 3))
    optimizer, watch = watched(model, every=10)
    call, target = whole(model), torch.randn(16, 3)
    with watch:
        for _ in range(40):
            x = torch.randn(32, 16)
            step(call, optimizer, x, lambda out, x=x: watch.loss(nn.functional.cross_entropy(out, (x @ target).argmax(1))))
    assert [(finding.kind, finding.layer) for finding in watch.findings] == ([(found, "0")] if found else [])


@WHOLE
def test_a_saturated_layer_is_found_in_a_compiled_network():
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4))
    nn.init.normal_(model[0].weight, std=20)
    optimizer, watch = watched(model, every=10)
    call = whole(model)
    with watch:
        for _ in range(30):
            x, y = torch.randn(64, 8), torch.randint(4, (64,))
            step(call, optimizer, x, lambda out, y=y: watch.loss(nn.functional.cross_entropy(out, y)))
    assert ("saturated", "1") in [(finding.kind, finding.layer) for finding in watch.findings]
    z = nn.functional.linear(torch.randn(4096, 8), model[0].weight, model[0].bias)
    flat = (1 - z.tanh().square() <= 0.04).float().mean().item()  # 4 % of the derivative at its peak
    assert abs(rows(watch, 20)["1", "input_grad"].closed - flat) < 0.05
