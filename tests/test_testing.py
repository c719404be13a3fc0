"""Healthy training as an assertion of a user's own test suite."""

import pytest
import torch
from torch import nn

from gradwatch.detectors import Example
from gradwatch.errors import InvalidSetting
from gradwatch.testing import assert_healthy, judge


def batches(count):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        x = torch.randn(32, 8, generator=generator)
        yield x, (x[:, 0] > 0).long()


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))


def test_a_healthy_net_passes_and_is_left_as_it_was():
    net = small_net()
    before = [parameter.clone() for parameter in net.parameters()]
    assert_healthy(net, batches(60), nn.CrossEntropyLoss())
    assert all(torch.equal(now, then) for now, then in zip(net.parameters(), before, strict=True))
    assert not any(module._forward_hooks for module in net.modules())


def test_a_dead_layer_is_named_with_reason_and_remedy():
    net = small_net()
    nn.init.constant_(net[0].bias, -12.0)
    with pytest.raises(AssertionError) as raised:
        assert_healthy(net, batches(40), nn.CrossEntropyLoss())
    message = str(raised.value)
    assert "dead_units at 1" in message
    assert "silent for every input" in message
    assert "He initialisation" in message


def test_few_batches_are_repeated():
    seen = []

    def loss_fn(output, target):
        seen.append(len(output))
        return nn.functional.cross_entropy(output, target)

    assert_healthy(small_net(), list(batches(3)), loss_fn, steps=25)
    assert len(seen) == 25


def test_the_optimizer_is_the_users():
    with pytest.raises(AssertionError, match=r"non_finite|exploding_gradient|loss_unstable"):
        assert_healthy(
            small_net(), batches(60), nn.CrossEntropyLoss(), optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e4)
        )


def test_without_batches_nothing_can_be_said():
    with pytest.raises(InvalidSetting, match="batches is empty"):
        assert_healthy(small_net(), [], nn.CrossEntropyLoss())


def test_an_error_of_a_detector_is_raised_to_its_author():
    def broken(history):
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError):
        judge(Example({("a", "parameter_grad"): [1.0]}), broken)
