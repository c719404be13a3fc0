"""Full records are spread so that they cost no more than was allowed. Time is told by the tests, and never measured."""

import itertools
import random

import pytest
import torch

from gradwatch.capture.budget import LEARNING, LOAN, WIDEST, Budget, Meter
from gradwatch.capture.cadence import Cadence
from gradwatch.capture.guard import Guard


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Loop:
    """A training whose steps, records and suspicions take and come as the test says; times in seconds."""

    def __init__(self, share, every=10, *, turns="a", light=0.001, full=0.1, alone=True, first_step=0):
        self.clock, self.light, self.full_cost, self.alone = Clock(), light, full, alone
        self.turns = turns
        self.optimizers = {name: torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1) for name in dict.fromkeys(turns)}
        self.budget = Budget(share, every, optimizers=len(self.optimizers), meter=Meter(self.clock), alone=lambda: self.alone)
        self.cadence = Cadence(list(self.optimizers.values()), every, first_step, self.budget)
        self.step, self.full, self.said, self.training = first_step, {name: [] for name in self.optimizers}, [], 0.0
        self._finishing = False

    def run(self, steps, training=0.1, *, suspicious=False):
        """Trains; a full record costs most of its time in its own step, and the rest in the next one."""
        for _ in range(steps):
            name = self.turns[self.step % len(self.turns)]
            full, finishing = self.cadence.full, self._finishing
            self.work(0.7 * self.full_cost * full)  # in hooks
            self.clock.now += training
            self.training += training
            self.budget.meter.begin()
            self.clock.now += self.light + 0.3 * self.full_cost * finishing
            self.budget.suspicious = suspicious
            self.cadence.stepped([self.optimizers[name]], self.step)
            self.budget.meter.end()
            if full:
                self.full[name].append(self.step)
            self._finishing = full
            self.step += 1
            if (news := self.budget.news()) is not None:
                self.said.append((self.step, news))
        return self

    def work(self, seconds):
        self.budget.meter.begin()
        self.clock.now += seconds
        self.budget.meter.end()

    def share(self, since):
        """What the watch has taken since a step, over what the training has."""
        spent, training = self.marks[since]
        return (self.budget.meter.spent - spent) / (self.training - training)

    def mark(self):
        self.marks = {self.step: (self.budget.meter.spent, self.training)}
        return self.step


def gaps(steps):
    return [after - before for before, after in itertools.pairwise(steps)]


def test_the_first_full_records_come_at_the_narrowest_cadence_and_the_others_when_they_are_affordable():
    loop = Loop(0.05).run(500)
    # Of 0.1 s a step 5 ms are allowed; light records take 1 of them, so that 100 ms more are saved up in 25 steps.
    assert loop.full["a"] == [0, 10, 20, *range(45, 500, 25)]
    assert LEARNING == 3


def test_a_watch_that_costs_little_keeps_its_cadence():
    assert Loop(0.05, full=0.01).run(100).full["a"] == list(range(0, 100, 10))


@pytest.mark.parametrize("share", [0.02, 0.05, 0.1])
@pytest.mark.parametrize("turns", ["a", "ab", "aaab"])
def test_the_budget_holds_over_time(share, turns):
    loop = Loop(share, turns=turns).run(300)
    since = loop.mark()
    loop.run(20_000)
    assert loop.share(since) <= share * 1.02
    assert loop.share(since) > share * 0.8  # and is made use of
    assert all(loop.full.values())


def test_the_budget_holds_where_steps_and_records_take_now_more_now_less():
    loop, chance = Loop(0.05), random.Random(0)
    loop.run(300)
    since = loop.mark()
    for _ in range(20_000):
        loop.full_cost = chance.uniform(0.05, 0.15)
        loop.run(1, training=chance.uniform(0.05, 0.15))
    assert 0.04 < loop.share(since) < 0.0525


def test_slower_steps_afford_more_and_quicker_ones_less():
    loop = Loop(0.05).run(1000)
    assert gaps(loop.full["a"])[-1] == 25
    loop.run(1000, training=0.5)
    assert gaps(loop.full["a"])[-1] == 10  # never more often than was asked for
    loop.run(3000, training=0.04)
    assert gaps(loop.full["a"])[-1] == 100


def test_a_slow_beginning_is_not_held_against_the_rest():
    loop = Loop(0.05, light=0.006).run(40)  # light records alone are over the budget
    assert loop.budget.every == WIDEST
    loop.light = 0.001
    loop.run(500)
    assert loop.budget.every == 25


def test_a_validation_between_two_steps_is_no_long_step():
    loop = Loop(0.05).run(100)
    for _ in range(20):
        loop.clock.now += 1000.0
        loop.run(50)
    assert max(gaps(loop.full["a"])) == 25
    assert min(gaps(loop.full["a"])[3:]) >= 22


def test_where_light_records_alone_are_over_the_budget_full_ones_hardly_come_and_that_is_said():
    loop = Loop(0.01, light=0.002).run(3 * WIDEST)
    assert loop.full["a"] == [0, 10, 20, 20 + WIDEST, 20 + 2 * WIDEST]
    [(step, news)] = loop.said
    assert step == 22
    assert "every 1000 steps" in news
    assert "over the budget: exclude layers, or raise it" in news


def test_a_cadence_that_is_wider_than_the_widest_is_kept():
    assert Loop(0.01, every=3000, light=0.002).run(9001).full["a"] == [0, 3000, 6000, 9000]


def test_on_a_suspicion_detail_comes_sooner_and_is_paid_back():
    loop = Loop(0.05).run(300)
    since = loop.mark()
    loop.run(200, suspicious=True)
    during = [step for step in loop.full["a"] if step >= 300]
    assert gaps(during)[:LOAN] == [10] * LOAN  # at once, as often as was asked for
    loop.run(400)
    assert max(gaps(loop.full["a"])) == 50  # later, half as often as is affordable, until that is paid back
    assert gaps(loop.full["a"])[-1] == 25
    assert loop.share(since) <= 0.0525


def test_a_suspicion_that_never_ends_does_not_break_the_budget():
    loop = Loop(0.05).run(300)
    since = loop.mark()
    loop.run(20_000, suspicious=True)
    assert loop.share(since) <= 0.0525


def test_what_was_chosen_is_said_once_and_again_when_it_has_changed_much():
    loop = Loop(0.05).run(1000)
    [(step, news)] = loop.said
    assert step == 22  # as soon as the third full record is over
    assert news == (
        "budget=0.05: a full record every 25 steps; a full one costs 100 ms more than a light one (1 ms), of steps of 100 ms: "
        "about 5.00% of their time"
    )
    loop.run(1000, training=0.08)  # every 33
    assert len(loop.said) == 1
    loop.run(1000, training=0.06)  # every 50
    assert [news.split(";")[0] for _, news in loop.said[1:]] == ["budget=0.05: a full record every 50 steps"]


def test_before_anything_is_known_it_says_so():
    assert Loop(0.05).run(3).budget.tell() == "budget=0.05: a full record every 10 steps, until it is known what one costs"


def test_several_processes_keep_the_cadence_and_hear_it_once():
    loop = Loop(0.01, alone=False, first_step=7).run(300)
    assert loop.full["a"] == list(range(10, 307, 10))  # the same steps in each, wherever they began
    [(_, news)] = loop.said
    assert news.endswith("several processes train together, and have to sample the same steps, so that the budget is not followed")


def test_processes_that_meet_later_return_to_the_cadence_together():
    loop = Loop(0.05).run(100)
    assert gaps(loop.full["a"])[-1] == 25
    loop.alone = False
    loop.run(200)
    assert loop.full["a"][-10:] == list(range(200, 300, 10))


def test_an_optimizer_that_hardly_ever_steps_is_sampled_too():
    loop = Loop(0.2, turns="a" * 19 + "b").run(2000)
    assert len(loop.full["b"]) >= 5


def test_a_meter_counts_work_inside_of_work_once_and_also_where_it_fails():
    clock = Clock()
    meter = Meter(clock)
    guard = Guard(meter)
    with guard():
        clock.now += 2
        with guard():
            clock.now += 1
            raise ValueError("a mistake")
    clock.now += 50
    assert meter.spent == 2 + 1
    meter.begin()
    clock.now += 1
    assert meter.spent == 4
