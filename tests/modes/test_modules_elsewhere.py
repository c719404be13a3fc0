"""Modules that run elsewhere than in a plain call: in functional transforms, threads, replicas, scripts, integers."""

import contextlib
import importlib
import sys
import threading
import warnings

import pytest
import torch
from both_ways import rows as figures
from programs import X, assert_row, mlp, same_with_and_without, step
from registry import Mode
from torch import nn
from torch.func import functional_call, grad, grad_and_value, jacrev, vmap
from torch.nn.utils import stateless

import gradwatch

FUNCTIONAL = Mode(
    "Modules",
    "`torch.func.functional_call` (`torch.nn.utils.stateless`), with the module's own parameters or others",
    recorded="as any other call of the modules; the parameters that are watched are the module's own",
    unsupported="gradients and updates of the other parameters: watch them as a mapping",
)


@FUNCTIONAL
@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
@pytest.mark.parametrize("call", [functional_call, stateless.functional_call], ids=["torch.func", "stateless"])
def test_a_functional_call_is_a_call(call):
    def program(watched):
        model = mlp(4, 3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        others = {name: parameter.detach() * 2 for name, parameter in model.named_parameters()}
        with watched(model, optimizer):
            for number in range(4):
                call(model, dict(model.named_parameters()), (X,)).square().mean().backward()
                if number == 3:
                    call(model, others, (X.clone().requires_grad_(),)).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
        return list(model.parameters())

    watch = same_with_and_without(program)
    torch.manual_seed(0)
    model = mlp(4, 3, 1)
    hidden = model[0](X)
    hidden.retain_grad()
    model[1:](hidden).square().mean().backward()
    rows = figures(watch)
    assert_row(rows["0", "activation"], hidden)
    assert_row(rows["0", "activation_grad"], hidden.grad)
    assert_row(rows["0.weight", "parameter_grad"], model[0].weight.grad)
    assert figures(watch, 3)["0", "activation"].calls == figures(watch, 3)["0", "activation_grad"].calls == 2


TRANSFORMS = Mode(
    "Modules",
    "`torch.func` transforms: `grad`, `vmap`, `jacrev`",
    recorded="nothing inside of them; gradients that you put into `.grad`, weights and updates as ever",
    unsupported="activations inside: `watch.report()` lists them as not observed",
)


@TRANSFORMS
def test_nothing_is_recorded_inside_of_a_transform():
    def loss_of(weights, model, x):
        return functional_call(model, weights, (x,)).square().mean()

    def program(watched):
        model = mlp(4, 3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        results = []
        with watched(model, optimizer) as watch:
            for _ in range(4):
                weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
                gradients, loss = grad_and_value(loss_of)(weights, model, X)
                each = vmap(grad(loss_of), in_dims=(None, None, 0))(weights, model, X)
                results += [loss, each["0.weight"], jacrev(model)(X[0])]
                for name, parameter in model.named_parameters():
                    parameter.grad = gradients[name]
                optimizer.step()
                optimizer.zero_grad()
            if watch is not None:
                assert "not observed (called only where no graph is built, or none is seen" in watch.report()
        return [*results, *model.parameters()]

    watch = same_with_and_without(program)
    torch.manual_seed(0)
    model = mlp(4, 3, 1)
    model(X).square().mean().backward()
    rows = figures(watch)
    assert not any(tensor.startswith(("activation", "input")) for _, tensor in rows)
    assert_row(rows["0.weight", "parameter_grad"], model[0].weight.grad)
    assert_row(rows["0.weight", "update"], -0.1 * model[0].weight.grad)


THREADS = Mode(
    "Modules",
    "call a model from several threads at once, each with its own optimizer too (Hogwild)",
    recorded="calls of all threads merge; steps that overlap in time share a record",
    unsupported="to which of two records, or to none, a call belongs that runs while another thread's step ends",
)


@contextlib.contextmanager
def hurried():
    """Threads take turns a thousand times as often as usual."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def at_once(*work):
    threads = [threading.Thread(target=function) for function in work]
    with hurried():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


@THREADS
def test_threads_that_share_a_model():
    # Of small whole numbers, whose sums are exact in any order.
    inputs = [torch.full((2, 4), float(number)) for number in range(1, 5)]

    def build():
        model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False))
        for parameter in model.parameters():
            nn.init.ones_(parameter)
        return model

    def program(watched):
        model = build()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        with watched(model, optimizer):
            for _ in range(4):
                at_once(*(lambda x=x: model(x).sum().backward() for x in inputs))
                kept = [parameter.grad.clone() for parameter in model.parameters()]
                optimizer.step()
                optimizer.zero_grad()
        return [*kept, *model.parameters()]

    watch = same_with_and_without(program)
    model = build()
    hidden = [model[0](x) for x in inputs]
    sum(model[1:](h).sum() for h in hidden).backward()
    for number in range(4):
        rows = figures(watch, number)
        assert rows["0", "activation"].calls == rows["0", "activation_grad"].calls == rows["1", "input_grad"].calls == 4
        assert rows["0", "activation"].mean == pytest.approx(torch.cat(hidden).mean().item())
        assert_row(rows["0.weight", "parameter_grad"], model[0].weight.grad)
        assert watch.history[number].backwards == 4


@THREADS
def test_threads_that_step_on_their_own(caplog):
    # Which gradients meet in a step is a matter of chance, with and without a watch.
    model = nn.Linear(4, 1)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.001) for _ in range(3)]

    def work(optimizer):
        for _ in range(25):
            watch.loss(model(X).sum()).backward()
            optimizer.step()

    with gradwatch.watch(model, optimizers, every=1, detectors=()) as watch:
        at_once(*(lambda optimizer=optimizer: work(optimizer) for optimizer in optimizers))
    assert not caplog.records
    assert 1 <= len(watch.history) <= 75
    assert [record.step for record in watch.history] == list(range(len(watch.history)))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


REPLICATE = importlib.import_module("torch.nn.parallel.replicate")
REPLICAS = Mode(
    "Modules",
    "`nn.DataParallel`, or replicas of its kind in threads of one process",
    recorded="activations of all replicas merge; gradients, weights and updates are those of the model itself",
    unsupported="the replicas apart",
)


class Parallel(nn.Module):
    """What DataParallel does with two devices, on one: replicas whose parameters are copies inside the graph, each in a thread."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        replicas = REPLICATE.replicate(self.module, [0, 1])
        parts, out = x.chunk(2), [None, None]

        def run(index):
            out[index] = replicas[index](parts[index])

        at_once(*(lambda index=index: run(index) for index in range(2)))
        return torch.cat(out)


@REPLICAS
def test_replicas_merge(monkeypatch):
    monkeypatch.setattr(REPLICATE, "_get_device_index", lambda device, _optional: device)
    monkeypatch.setattr(
        REPLICATE,
        "_broadcast_coalesced_reshape",
        lambda tensors, devices, detach: [[tensor.clone() for tensor in tensors] for _ in devices],
    )
    images = torch.randn(6, 1, 6, generator=torch.Generator().manual_seed(0))

    def build():
        return nn.Sequential(nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 1))

    def program(watched):
        model = Parallel(build())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with watched(model, optimizer):
            for _ in range(4):
                step(model, optimizer, images)
        return list(model.parameters())

    watch = same_with_and_without(program)
    torch.manual_seed(0)
    model = build()
    hidden = model[0](images)
    hidden.retain_grad()
    model[1:](hidden).square().mean().backward()
    rows = figures(watch)
    assert_row(rows["module.0", "activation"], *hidden.chunk(2))
    assert_row(rows["module.0", "activation_grad"], *hidden.grad.chunk(2))
    assert_row(rows["module.0.weight", "parameter_grad"], model[0].weight.grad)
    # Units of a convolution are in dimension 1, in the eyes of each replica.
    assert rows["module.1", "activation"].dead in (0, 0.25, 0.5, 0.75)


SCRIPTED = Mode(
    "Modules",
    "ScriptModules, scripted or traced, as the model or as a part of it",
    recorded="their parameters; `watch.report()` lists them and what is in them as not observed",
    unsupported="activations inside: a ScriptModule takes no hooks",
)


@SCRIPTED
@pytest.mark.parametrize("compiled", [torch.jit.script, lambda module: torch.jit.trace(module, X)], ids=["script", "trace"])
@pytest.mark.parametrize("whole", [False, True])
def test_script_modules(compiled, whole):
    def program(watched):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            model = compiled(mlp(4, 3, 1)) if whole else nn.Sequential(compiled(mlp(4, 3)), nn.Linear(3, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with watched(model, optimizer) as watch:
            for _ in range(4):
                step(model, optimizer)
            if watch is not None:
                [line] = [line for line in watch.report().splitlines() if line.startswith("not observed")]
                assert line.startswith("not observed (a ScriptModule takes no hooks): 0")
        return list(model.parameters())

    watch = same_with_and_without(program)
    torch.manual_seed(0)
    model = mlp(4, 3, 1) if whole else nn.Sequential(mlp(4, 3), nn.Linear(3, 1))
    model(X).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert_row(figures(watch)[name, "parameter_grad"], parameter.grad)
    assert watch.findings == []


QUANTIZED = Mode(
    "Modules",
    "quantized modules beside trained ones: dynamic and static quantization",
    recorded="activations of layers that return floating-point numbers",
    unsupported="integer activations and packed weights: such layers are listed as not observed",
)
AWARE = Mode(
    "Modules",
    "quantization-aware training (`prepare_qat`)",
    recorded="activations after their fake quantization, gradients through it, weights before it",
    unsupported="observers and fake quantization as layers of their own",
)
quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


@QUANTIZED
@quiet
def test_quantized_layers_beside_trained_ones():
    from torch.ao import quantization

    def build():
        dynamic = quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), {nn.Linear})
        static = nn.Sequential(quantization.QuantStub(), nn.Linear(4, 4), quantization.DeQuantStub()).eval()
        static.qconfig = quantization.get_default_qconfig("fbgemm")
        quantization.prepare(static, inplace=True)
        static(X)
        quantization.convert(static, inplace=True)
        return nn.Sequential(dynamic, static, nn.Linear(4, 1))

    def program(watched):
        model = build()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with watched(model, optimizer) as watch:
            for _ in range(4):
                step(model, optimizer)
            if watch is not None:
                reason = "not observed (it returned no tensor of floating-point numbers, or only nested ones of the strided layout)"
                assert watch.report().splitlines()[-1] == f"{reason}: 1.0, 1.1"
        return list(model.parameters())

    rows = figures(same_with_and_without(program))
    torch.manual_seed(0)
    model = build()
    hidden = model[0][0](X)
    assert_row(rows["0.0", "activation"], hidden)
    assert_row(rows["1.2", "activation"], model[:2](X))
    model(X).square().mean().backward()
    assert_row(rows["2.weight", "parameter_grad"], model[2].weight.grad)


@AWARE
@quiet
def test_fake_quantization_trains():
    from torch.ao import quantization

    def build():
        model = nn.Sequential(quantization.QuantStub(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1), quantization.DeQuantStub())
        model.qconfig = quantization.get_default_qat_qconfig("fbgemm")
        return quantization.prepare_qat(model.train())

    def program(watched):
        model = build()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with watched(model, optimizer) as watch:
            for _ in range(4):
                step(model, optimizer)
            if watch is not None:
                assert "not observed" not in watch.report()
        return list(model.state_dict().values())

    watch = same_with_and_without(program)
    torch.manual_seed(0)
    model = build()
    model(X)  # the ranges are those of what was seen so far
    torch.manual_seed(0)
    model = build()
    hidden = model[:2](X)  # through the model's own fake quantization of inputs, weights and outputs
    hidden.retain_grad()
    model[2:](hidden).square().mean().backward()
    rows = figures(watch)
    assert_row(rows["1", "activation"], hidden)
    assert_row(rows["1", "activation_grad"], hidden.grad)
    assert_row(rows["1.weight", "parameter_grad"], model[1].weight.grad)
    assert {layer for layer, tensor in rows if tensor == "activation"} == {"1", "2", "3", "4"}
    assert len({float(value) for value in hidden.detach().flatten()}) <= 20
