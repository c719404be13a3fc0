"""What is observed: layers that compute and their parameters, as far as globs select them."""

import pytest
import torch
from torch import nn

import gradwatch
from gradwatch.capture.selection import select
from gradwatch.errors import NothingToWatch


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.fc, self.act = nn.Linear(4, 4), nn.ReLU()

    def forward(self, x):
        return self.act(self.fc(x)) * self.scale


def net():
    return nn.ModuleDict(
        {"encoder": nn.Sequential(Block(), Block()), "attention": nn.MultiheadAttention(4, 2), "head": nn.Linear(4, 2)}
    )


def test_layers_are_modules_that_compute_themselves():
    selection = select(net(), ("*",), ())
    assert list(selection.layers) == [
        "encoder.0", "encoder.0.fc", "encoder.0.act", "encoder.1", "encoder.1.fc", "encoder.1.act", "attention",
        "attention.out_proj", "head",
    ]  # fmt: skip
    assert list(selection.parameters)[:3] == ["encoder.0.scale", "encoder.0.fc.weight", "encoder.0.fc.bias"]
    assert selection.types["encoder.0.scale"] == "Block"
    assert selection.types["head.bias"] == "Linear"


@pytest.mark.parametrize(
    ("include", "exclude", "layers", "parameters"),
    [
        (("head",), (), ["head"], ["head.weight", "head.bias"]),
        (("*.weight",), (), [], ["encoder.0.fc.weight", "encoder.1.fc.weight", "attention.out_proj.weight", "head.weight"]),
        (("encoder.0*",), ("*.act", "*.bias"), ["encoder.0", "encoder.0.fc"], ["encoder.0.scale", "encoder.0.fc.weight"]),
        (("encoder", "head"), ("head",), ["encoder"], []),  # a container by its name
        (("*",), ("encoder.*", "attention*"), ["head"], ["head.weight", "head.bias"]),
    ],
)
def test_globs_select_layers_with_their_parameters(include, exclude, layers, parameters):
    selection = select(net(), include, exclude)
    assert list(selection.layers) == layers
    assert list(selection.parameters) == parameters


def test_shared_modules_and_tied_parameters_go_by_their_first_name():
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(3, 3))
    model[3].weight = shared.weight
    selection = select(model, ("*",), ())
    assert list(selection.layers) == ["0", "1", "3"]
    assert list(selection.parameters) == ["0.weight", "0.bias", "3.bias"]


def test_a_glob_as_a_plain_string_is_one_glob():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer, every=1, include="1", exclude="*.bias") as watch:
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
    assert {site.layer for site in watch.history[0].sites} == {"1", "1.weight"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"include": ("encodr.*",)},
            "the glob 'encodr.*' matches no layer and no parameter of 'ModuleDict'; did you mean 'encoder",
        ),
        ({"exclude": ("haed",)}, "the glob 'haed' matches no layer and no parameter of 'ModuleDict'; did you mean 'head'"),
        ({"exclude": ("encoder",)}, "the glob 'encoder' matches no layer and no parameter of 'ModuleDict'; did you mean 'encoder."),
        (
            {"include": ("zzz",)},
            "the glob 'zzz' matches no layer and no parameter of 'ModuleDict'; layers: encoder.0, encoder.0.fc",
        ),
        ({"include": "zzz"}, "the glob 'zzz' matches"),
        (
            {"include": ("head",), "exclude": ("he*",)},
            r"include=('head',) and exclude=('he*',) leave nothing of 'ModuleDict' to watch",
        ),
        ({"include": ()}, "include=() and exclude=() leave nothing of 'ModuleDict' to watch"),
    ],
)
def test_a_glob_that_selects_nothing_is_named(settings, message):
    with pytest.raises(NothingToWatch) as error:
        gradwatch.watch(net(), **settings)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.ReLU(), nn.Flatten()), "'Sequential' has no parameters: nothing in it can learn"),
        ({}, "the mapping has no parameters: nothing in it can learn"),
        ({"a": torch.ones(2, requires_grad=True) * 2}, "'a' is computed from other tensors; a mapping holds leaf tensors, such as"),
        ({"a": 3.0}, "'a' is a float; a mapping holds leaf tensors, such as torch.randn(3, requires_grad=True)"),
    ],
)
def test_a_model_with_nothing_to_learn_is_refused(model, message):
    with pytest.raises(NothingToWatch) as error:
        gradwatch.watch(model)
    assert str(error.value).startswith(message)


def test_layers_that_forward_never_called_are_reported():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer, every=1, detectors=()) as watch:
        for _ in range(2):
            with torch.no_grad():
                model(torch.ones(2, 3))
            model[0](torch.ones(2, 3)).sum().backward()
            optimizer.step()
        assert (
            "not observed (called only where no graph is built, or none is seen: no_grad, torch.func, a compiled graph): 1"
            in watch.report()
        )


class Accelerated(torch.optim.Optimizer):
    """An optimizer by its class only, as that of accelerate is."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self, closure=None):
        self.optimizer.step(closure)


def test_an_optimizer_in_the_wrapper_of_an_accelerator_is_the_one_that_steps():
    model = nn.Linear(2, 1)
    optimizer = Accelerated(torch.optim.SGD(model.parameters(), lr=0.5))
    with gradwatch.watch(model, optimizer, every=1) as watch:
        for _ in range(2):
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
    assert [record.skipped for record in watch.history] == [False, False]
