"""The order of forward, where only numbers of traced sinks tell it."""

from torch import nn

from gradwatch.capture.order import in_order, with_compiled
from gradwatch.records import Site


def numbered(*layers):
    return {layer: float(number) for number, layer in enumerate(layers)}


def test_numbers_put_layers_in_order_that_are_defined_in_another():
    assert in_order(["act", "fc1", "fc2"], numbered("fc1", "act", "fc2")) == ["fc1", "act", "fc2"]


def test_a_layer_without_a_number_stays_behind_the_one_that_is_defined_before_it():
    numbers = numbered("fc1", "act", "fc2")
    assert in_order(["spare", "act", "fc1", "dropout", "fc2"], numbers) == ["spare", "fc1", "dropout", "act", "fc2"]


def test_numbers_that_come_again_are_those_of_another_block():
    block = numbered("norm", "act", "fc")
    layers = [f"{index}.{layer}" for index in range(2) for layer in ("norm", "fc", "act")]
    numbers = {name: block[name[2:]] for name in layers}
    assert in_order(layers, numbers) == ["0.norm", "0.act", "0.fc", "1.norm", "1.act", "1.fc"]


def test_a_tap_stands_where_it_was_traced():
    numbers = numbered("a", "tapped", "b", "late")
    assert in_order(["a", "b"], numbers) == ["a", "tapped", "b", "late"]
    assert in_order([], numbered("tapped")) == ["tapped"]


def test_compiled_layers_join_those_that_were_reached_before():
    layers = nn.ModuleDict({name: nn.Linear(1, 1) for name in ("first", "inner", "unseen", "last")})
    order = with_compiled({"first": "Linear", "last": "Linear"}, dict(layers.items()), {Site("inner", "activation", "Linear"): 7.0})
    assert list(order.items()) == [("first", "Linear"), ("inner", "Linear"), ("unseen", "Linear"), ("last", "Linear")]


def test_compiled_layers_that_come_first_stand_first():
    layers = nn.ModuleDict({"inner": nn.Tanh(), "last": nn.Linear(1, 1)})
    order = with_compiled({"last": "Linear"}, dict(layers.items()), {Site("inner", "activation", "Tanh"): 1.0})
    assert list(order) == ["inner", "last"]
