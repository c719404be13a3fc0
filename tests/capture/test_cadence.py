"""Which steps are sampled, where several optimizers step in turn."""

import pytest
import torch

from gradwatch.capture.cadence import Cadence


def sampled(turns, every, steps=120):
    """The steps that are sampled, by optimizer, where the optimizers step in the order of ``turns``, over and over."""
    optimizers = {name: torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1) for name in dict.fromkeys(turns)}
    cadence, found = Cadence(list(optimizers.values()), every, 0), {name: [] for name in optimizers}
    for step in range(steps):
        name = turns[step % len(turns)]
        if cadence.full:
            found[name].append(step)
        cadence.stepped([optimizers[name]], step)
    return found


def test_one_optimizer():
    assert sampled("a", 10, 35) == {"a": [0, 10, 20, 30]}


def test_two_in_turn():
    assert sampled("ab", 10, 40) == {"a": [0, 10, 20, 30], "b": [1, 11, 21, 31]}


@pytest.mark.parametrize(("turns", "every"), [("ddddg", 10), ("dddddddddg", 10), ("ddddg", 5), ("dg", 1), ("abc", 10)])
def test_each_gets_its_own_and_not_too_often(turns, every):
    for name, steps in sampled(turns, every).items():
        own = [step for step in range(120) if turns[step % len(turns)] == name]
        assert len(steps) >= len(own) // max(1, every) - 1
        assert len(steps) >= 2
    assert sum(map(len, sampled(turns, every).values())) <= (120 if every == 1 else 60)


def test_one_that_hardly_ever_steps_does_not_have_everything_sampled():
    found = sampled("d" * 119 + "g", 10)
    assert len(found["d"]) <= 25
