"""Leaves that compiled graphs deliver to."""

import gc
import weakref

import numpy as np
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from gradwatch.capture.compiled import Sinks, opened
from gradwatch.capture.sink import PLACE, SIZE, through
from gradwatch.capture.transfer import Tape
from gradwatch.records import Site

OUT, GRAD = Site("fc", "activation", "Linear"), Site("fc", "activation_grad", "Linear")


class Owner:
    def fail(self, error):
        raise error


def sinks_of(owner, device="cpu"):
    sinks = Sinks(owner)
    outlet = sinks.outlet("fc", OUT, GRAD)
    sinks.sampling = True
    sinks.follow({"fc": nn.Linear(2, 2, device=device)})
    return sinks, outlet


def test_what_passes_and_what_comes_back_is_measured_and_left_as_it_is():
    owner, tape = Owner(), Tape()
    sinks, outlet = sinks_of(owner)
    x = torch.tensor([1.0, -2.0, 0.0], requires_grad=True)
    y = through(x, outlet.leaf, 5, zeros=True)
    assert torch.equal(y, x)
    (y * torch.tensor([1.0, 2.0, float("nan")])).sum().backward()
    assert torch.equal(x.grad[:2], torch.tensor([1.0, 2.0]))
    assert sinks.delivered
    sinks.deliver(tape)
    assert not sinks.delivered
    transfer = tape.take()
    sites, (passed, came) = transfer.rows()
    assert sites == [OUT, GRAD]
    # count, calls, mean, rms, min, max, zeros, nonfinite
    np.testing.assert_allclose(passed[:8], [3, 1, -1 / 3, (5 / 3) ** 0.5, -2, 1, 1, 0], rtol=1e-6)
    np.testing.assert_equal(came[:8], [3, 1, *[np.nan] * 5, 1])
    assert transfer.places() == {OUT: 5.0}
    assert transfer.backwards == 1


def test_complex_numbers_count_as_two():
    owner, tape = Owner(), Tape()
    sinks, outlet = sinks_of(owner)
    x = torch.tensor([3.0 + 4.0j], requires_grad=True)
    through(x, outlet.leaf, 1).real.sum().backward()
    sinks.deliver(tape)
    _, (passed, _) = tape.take().rows()
    np.testing.assert_allclose(passed[[0, 2, 3, 4, 5]], [2, 3.5, (25 / 2) ** 0.5, 3, 4])


def test_values_whose_squares_leave_float32_have_a_right_norm():
    owner, tape = Owner(), Tape()
    sinks, outlet = sinks_of(owner)
    x = torch.tensor([1e30, 1e-30], requires_grad=True)
    through(x, outlet.leaf, 1)[1].mul(1e-30).backward()
    sinks.deliver(tape)
    _, (passed, came) = tape.take().rows()
    np.testing.assert_allclose([passed[3], came[3]], [1e30 / 2**0.5, 1e-30 / 2**0.5], rtol=1e-6)


def test_the_backward_pass_through_it_can_be_differentiated():
    owner = Owner()
    _, outlet = sinks_of(owner)
    x = torch.tensor([2.0], requires_grad=True)
    (slope,) = torch.autograd.grad(through(x, outlet.leaf, 1) ** 3, x, create_graph=True)
    assert torch.autograd.grad(slope, x)[0] == 6 * 2


def test_leaves_follow_the_model_to_another_device():
    owner = Owner()
    sinks, outlet = sinks_of(owner)
    leaf = outlet.leaf
    sinks.follow({"fc": nn.Linear(2, 2)})
    assert outlet.leaf is leaf  # or code that was compiled with it would be made anew
    sinks.follow({"fc": nn.Linear(2, 2, device="meta")})
    assert outlet.leaf.device.type == "meta"


def test_sums_are_taken_in_float32_where_a_device_has_nothing_wider(monkeypatch):
    zeros = torch.zeros

    def narrow(*size, dtype, **settings):
        if dtype == torch.float64:
            raise TypeError("this device has no float64")
        return zeros(*size, dtype=dtype, **settings)

    monkeypatch.setattr(torch, "zeros", narrow)
    owner, tape = Owner(), Tape()
    sinks, outlet = sinks_of(owner)
    through(torch.tensor([3.0, 4.0], requires_grad=True), outlet.leaf, 1).sum().backward()
    sinks.deliver(tape)
    _, (passed, _) = tape.take().rows()
    assert passed[0] == 2
    assert passed[3] == np.float32(12.5**0.5)


def test_nothing_is_read_from_a_device_when_a_record_ends():
    owner = Owner()
    with FakeTensorMode():
        sinks, outlet = sinks_of(owner)
        outlet.leaf.grad = torch.zeros(SIZE, dtype=torch.float64)
        outlet.valve = Site("fc", "input_grad", "Linear")
        sinks.deliver(Tape())  # .item() and the like raise
    assert PLACE == SIZE - 1


def test_sinks_keep_nobody_alive_and_close_with_their_owner_or_before():
    owner = Owner()
    sinks, _ = sinks_of(owner)
    assert sinks in opened()
    sinks.close()
    assert sinks not in opened()
    known = weakref.ref(owner)
    del owner
    gc.collect()
    assert known() is None
    sinks.fail(RuntimeError("nobody listens"))
