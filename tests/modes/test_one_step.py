"""What makes one step: micro-batches, closures, several optimizers, none at all."""

import numpy as np
import pytest
import torch
from both_ways import both_ways, rows, state
from registry import Mode
from torch import nn

import gradwatch

ACCUMULATION = Mode(
    "One step",
    "accumulate gradients over micro-batches",
    recorded="one record a step: activations and their gradients merge over the micro-batches, `parameter_grad` is what `.grad` "
    "holds in the end, `Record.backwards` counts the passes",
    units="sums over micro-batches, as `.grad` holds them; nothing is averaged",
)


@ACCUMULATION
def test_micro_batches_make_one_record():
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    nn.init.ones_(model[0].weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer, every=1) as watch:
        for x in (torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])):
            model(x).sum().backward()  # dL/dW is x
        optimizer.step()
    [record] = watch.history
    frame = watch.history.to_pandas().set_index(["layer", "tensor"])
    assert record.backwards == 2
    assert frame.loc["0.weight", "parameter_grad"]["min"] == 1 + 3
    assert frame.loc["0.weight", "parameter_grad"]["max"] == 2 + 4
    assert frame.loc["0", "activation"]["calls"] == 2
    assert frame.loc["0", "activation"]["mean"] == (3 + 7) / 2


UNCLEARED = Mode(
    "One step",
    "never clear gradients, or clear them to zero or to `None`",
    recorded="`parameter_grad` is what `.grad` holds when the optimizer steps; `stale` is the share of it that is left of earlier "
    "steps",
)
CLIPPING = Mode(
    "One step",
    "clip gradients: by norm, by value, each group or all together",
    recorded="`parameter_grad` as it stands at the step, that is clipped. With `watch.before_clip()` between `backward()` and the "
    "clipping: unclipped, and `Record.clip` is the share of the norm that clipping left, for each optimizer that steps next",
    unsupported="what was read is dropped where another backward pass reaches the parameters before they are stepped",
)
CLOSURE = Mode(
    "One step",
    "a closure: L-BFGS, which evaluates it several times, or any other optimizer",
    recorded="one record a step; gradients merge over the evaluations, each read behind its own; `Record.loss` is their mean",
    units="one evaluation each, not their sum",
)
SEVERAL = Mode(
    "One step",
    "several optimizers",
    recorded="a record at each one's step, about its own parameters and those that none holds. Activations are those of all passes "
    "since the record before",
)
GAN = Mode(
    "One step",
    "a GAN: in turn or several critic steps for one of the generator, with a watch for each model or one for both",
    recorded="as with several optimizers. A watch of the critic alone also sees the pass that trains the generator, and has its "
    "activations in the record of the critic's next step",
    unsupported="`watch.loss(number)` cannot tell whose step it belongs to; give the tensor",
)
IN_BACKWARD = Mode(
    "One step",
    "optimizers that step within backward, one for each parameter",
    recorded="one record a backward pass, of all parameters, each read before its optimizer uses its gradient up; give the watch "
    "the list of the optimizers",
    unsupported="reentrant checkpointing runs a pass of its own for each segment, which makes a record of its own: use "
    "`use_reentrant=False`",
)
BY_HAND = Mode(
    "One step",
    "update weights by hand, without an optimizer",
    recorded="a record at each `watch.step()`, which reads `.grad`; `update` is what has changed since the record before",
    unsupported="`parameter_grad` where nobody has put gradients into `.grad`",
)
NOT_TAKEN = Mode(
    "One step",
    "a step that you decide not to take",
    recorded="with `watch.step()` in its place a record of its own, `Record.skipped`; else it merges with the next one",
)


def line():
    """y = w x, at w = 2."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)
    return model


@ACCUMULATION
def test_accumulation_trains_the_same():
    def program(attach):
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        watch = attach(model, optimizer)
        for step in range(8):
            (watch.loss(model(torch.randn(2, 3)).square().mean()) / 4).backward()
            if step % 4 == 3:
                optimizer.step()
                optimizer.zero_grad()
        return state(model, optimizer)

    assert [record.backwards for record in both_ways(program).history] == [4, 4]


@UNCLEARED
@pytest.mark.parametrize(("clear", "gradient", "stale"), [("never", 3 + 3, 0.5), ("zero", 3, 0), ("none", 3, 0)])
def test_gradients_that_are_not_cleared_add_up(clear, gradient, stale):
    def program(attach):
        model = line()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.125)
        attach(model, optimizer)
        for _ in range(2):
            model(torch.full((1, 1), 3.0)).sum().backward()
            optimizer.step()
            if clear != "never":
                optimizer.zero_grad(set_to_none=clear == "none")
        return state(model)

    row = rows(both_ways(program), 1)["weight", "parameter_grad"]
    assert row.rms == gradient
    assert row.stale == stale


def groups():
    """Gradients of norm 5 and 12 in two groups, of norm 13 together."""
    first, second = torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True)
    return {"first": first, "second": second}, (first * torch.tensor([3.0, 4.0])).sum() + 12 * second.sum()


CLIPS = {
    "all by norm": (lambda p: nn.utils.clip_grad_norm_(p.values(), 1.3), 0.1, 0.1),
    "each by norm": (lambda p: [nn.utils.clip_grad_norm_([q], 6.0) for q in p.values()], 1.0, 0.5),
    "by value": (lambda p: nn.utils.clip_grad_value_(p.values(), 3.0), np.sqrt(18) / 5, 0.25),
    "not at all": (lambda p: nn.utils.clip_grad_norm_(p.values(), 100.0), 1.0, 1.0),
}


@CLIPPING
@pytest.mark.parametrize("every", [1, 100])
@pytest.mark.parametrize("way", CLIPS)
def test_clipping_before_one_optimizer_steps(way, every):
    clip, first, second = CLIPS[way]

    def program(attach):
        parameters, _ = groups()
        optimizer = torch.optim.SGD([{"params": [p], "lr": 0.5} for p in parameters.values()])
        watch = attach(parameters, optimizer, every=every)
        for _ in range(2):
            loss = (parameters["first"] * torch.tensor([3.0, 4.0])).sum() + 12 * parameters["second"].sum()
            loss.backward()
            watch.before_clip()
            clip(parameters)
            optimizer.step()
            optimizer.zero_grad()
        return state(*parameters.values())

    watch = both_ways(program)
    for step in (0, 1):
        assert watch.history[step].clip == pytest.approx(np.hypot(5 * first, 12 * second) / 13, rel=1e-5)
        assert rows(watch, step)["first", "parameter_grad"].norm == pytest.approx(5, rel=1e-6)
        assert rows(watch, step)["second", "parameter_grad"].norm == pytest.approx(12, rel=1e-6)


@CLIPPING
@SEVERAL
@pytest.mark.parametrize("every", [1, 100])
@pytest.mark.parametrize("way", CLIPS)
def test_clipping_before_two_optimizers_step(way, every):
    clip, first, second = CLIPS[way]

    def program(attach):
        parameters, _ = groups()
        optimizers = [torch.optim.SGD([p], lr=0.5) for p in parameters.values()]
        watch = attach(parameters, optimizers, every=every)
        for _ in range(2):
            loss = (parameters["first"] * torch.tensor([3.0, 4.0])).sum() + 12 * parameters["second"].sum()
            loss.backward()
            watch.before_clip()
            clip(parameters)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        return state(*parameters.values())

    watch = both_ways(program)
    assert [record.clip for record in watch.history] == pytest.approx([first, second] * 2, rel=1e-5)
    for step, (name, norm) in enumerate([("first", 5), ("second", 12)] * 2):
        row = rows(watch, step)[name, "parameter_grad"]
        assert row.norm == pytest.approx(norm, rel=1e-6)
        assert row.calls == 1
        assert len([site for site in rows(watch, step) if site[1] == "parameter_grad"]) == 1


@CLIPPING
def test_clipping_as_it_stands_without_before_clip():
    def program(attach):
        parameters, loss = groups()
        optimizer = torch.optim.SGD(parameters.values(), lr=0.5)
        attach(parameters, optimizer)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.3)
        optimizer.step()
        return state(*parameters.values())

    watch = both_ways(program)
    assert rows(watch)["second", "parameter_grad"].norm == pytest.approx(1.2, rel=1e-5)
    assert np.isnan(watch.history[0].clip)


@CLIPPING
def test_what_was_read_before_clipping_is_dropped_where_another_pass_comes_between():
    def program(attach):
        parameters, loss = groups()
        optimizers = [torch.optim.SGD([p], lr=0.0) for p in parameters.values()]
        watch = attach(parameters, optimizers)
        loss.backward(retain_graph=True)
        watch.before_clip()
        nn.utils.clip_grad_norm_(parameters["first"], 1.0)
        optimizers[0].step()
        loss.backward()  # and the second one is stepped with both
        optimizers[1].step()
        return state(*parameters.values())

    watch = both_ways(program)
    assert rows(watch, 0)["first", "parameter_grad"].norm == pytest.approx(5)
    assert rows(watch, 1)["second", "parameter_grad"].norm == pytest.approx(24)
    assert np.isnan(watch.history[1].clip)


@CLIPPING
@BY_HAND
def test_clipping_without_an_optimizer():
    def program(attach):
        parameters, loss = groups()
        watch = attach(parameters)
        loss.backward()
        watch.before_clip()
        nn.utils.clip_grad_norm_(parameters.values(), 6.5)
        with torch.no_grad():
            for parameter in parameters.values():
                parameter.sub_(parameter.grad)
        watch.step()
        return state(*parameters.values())

    watch = both_ways(program)
    assert watch.history[0].clip == pytest.approx(0.5, rel=1e-5)
    assert rows(watch)["first", "parameter_grad"].norm == pytest.approx(5)
    assert rows(watch)["first", "update"].norm == pytest.approx(2.5, rel=1e-5)


CLOSING = {
    "L-BFGS": lambda p: torch.optim.LBFGS(p, lr=0.5, max_iter=4, line_search_fn="strong_wolfe"),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
}


@CLOSURE
@pytest.mark.parametrize("clips", [False, True], ids=["as it is", "clipped"])
@pytest.mark.parametrize("name", CLOSING)
def test_each_evaluation_of_a_closure_is_read(name, clips):
    x, y, gradients = torch.randn(8, 2), torch.randn(8, 1), []

    def program(attach):
        model = nn.Linear(2, 1)
        optimizer = CLOSING[name](model.parameters())
        watch = attach(model, optimizer)
        gradients.clear()

        def closure():
            optimizer.zero_grad()
            loss = watch.loss((model(x) - y).square().mean())
            loss.backward()
            gradients[-1].append((loss.item(), model.weight.grad.clone()))
            if clips:
                watch.before_clip()
                for parameter in model.parameters():
                    parameter.grad *= 0.5
            return loss

        for _ in range(3):
            gradients.append([])
            optimizer.step(closure)
        return state(model)

    watch = both_ways(program)
    assert len(watch.history) == 3
    for step, evaluations in enumerate(gradients):
        row = rows(watch, step)["weight", "parameter_grad"]
        assert row.calls == watch.history[step].backwards == len(evaluations)
        together = torch.stack([gradient for _, gradient in evaluations])
        assert row.mean == pytest.approx(together.mean().item(), rel=1e-5, abs=1e-7)
        assert row.norm == pytest.approx(together.norm().item(), rel=1e-5)
        assert watch.history[step].loss == pytest.approx(np.mean([loss for loss, _ in evaluations]), rel=1e-5)
        if clips:
            assert watch.history[step].clip == pytest.approx(0.5)


@SEVERAL
def test_a_record_is_about_one_optimizer():
    def program(attach):
        model = nn.ModuleDict({"a": line(), "b": line(), "free": line()})
        optimizers = {name: torch.optim.SGD(model[name].parameters(), lr=0.125) for name in ("a", "b")}
        attach(model, optimizers)
        for _ in range(2):
            (model["a"](torch.ones(1, 1)) + 3 * model["b"](torch.ones(1, 1)) + 5 * model["free"](torch.ones(1, 1))).sum().backward()
            for optimizer in optimizers.values():
                optimizer.step()
            model.zero_grad()
        return state(model)

    watch = both_ways(program)
    gradients = [{site[0]: row.rms for site, row in rows(watch, step).items() if site[1] == "parameter_grad"} for step in range(4)]
    assert gradients == [{"a.weight": 1, "free.weight": 5}, {"b.weight": 3, "free.weight": 5}] * 2
    assert [record.backwards for record in watch.history] == [1, 0, 1, 0]
    assert rows(watch, 1)["b.weight", "update"].mean == -0.125 * 3


def gan(attach, critic_steps, *, together):
    """A generator z + g and a critic c x, trained on the numbers around 4."""
    generator, critic = nn.Linear(1, 1), line()
    optimizers = {"generator": torch.optim.Adam(generator.parameters(), lr=0.1), "critic": torch.optim.RMSprop(critic.parameters())}
    if together:
        watch = attach(nn.ModuleDict({"generator": generator, "critic": critic}), optimizers)
        watches = {"generator": watch, "critic": watch}
    else:
        watches = {name: attach(model, optimizers[name]) for name, model in (("generator", generator), ("critic", critic))}
    for _ in range(2):
        for _ in range(critic_steps):
            optimizers["critic"].zero_grad()
            fake = generator(torch.randn(6, 1)).detach()
            loss = watches["critic"].loss(critic(fake).mean() - critic(4 + torch.randn(6, 1)).mean())
            loss.backward()
            optimizers["critic"].step()
        optimizers["generator"].zero_grad()
        loss = watches["generator"].loss(-critic(generator(torch.randn(6, 1))).mean())
        loss.backward()
        optimizers["generator"].step()
    return state(generator, critic, *optimizers.values())


@GAN
@pytest.mark.parametrize("critic_steps", [1, 5])
def test_a_gan_under_one_watch(critic_steps):
    watch = both_ways(lambda attach: gan(attach, critic_steps, together=True))
    owners = [{site.layer.split(".")[0] for site in record.sites if site.tensor == "parameter_grad"} for record in watch.history]
    assert owners == ([{"critic"}] * critic_steps + [{"generator"}]) * 2
    assert [record.backwards for record in watch.history] == [1] * 2 * (critic_steps + 1)
    found = rows(watch, critic_steps)  # the generator's first step
    assert found["critic", "activation_grad"].mean == pytest.approx(-1 / 6)  # of the mean of six
    assert found["generator.bias", "parameter_grad"].mean == pytest.approx(
        -rows(watch, critic_steps)["generator", "activation_grad"].mean * -6
    )
    assert rows(watch, 0)["critic", "activation"].calls == 2
    assert found["critic", "activation"].calls == 1


@GAN
@pytest.mark.parametrize("critic_steps", [1, 5])
def test_a_gan_under_two_watches(critic_steps):
    generator, critic = both_ways(lambda attach: gan(attach, critic_steps, together=False))
    assert [record.backwards for record in generator.history] == [1, 1]
    # The pass that trains the generator runs through the critic, and is in its next record.
    assert [record.backwards for record in critic.history] == [1] * critic_steps + [2] + [1] * (critic_steps - 1)
    assert [record.loss is None for record in (*generator.history, *critic.history)] == [False] * (2 + 2 * critic_steps)
    assert rows(critic, critic_steps)["model", "activation"].calls == 3


def in_backward(attach, make, *, free=False, context=None):
    """Trains with an optimizer for each parameter, which steps as soon as the gradient is there and lets go of it."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    parameters = list(model.parameters())[1 if free else 0 :]
    optimizers = {parameter: make([parameter]) for parameter in parameters}

    def step(parameter):
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    handles = [parameter.register_post_accumulate_grad_hook(step) for parameter in parameters]
    watch = attach(model, list(optimizers.values()))
    for _ in range(4):
        x = torch.randn(5, 3)
        watch.loss(model(x).square().mean()).backward()
        if free:
            model[0].weight.grad = None
    for handle in handles:
        handle.remove()
    return state(model, *optimizers.values())


@IN_BACKWARD
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("free", [False, True], ids=["every parameter", "but one"])
def test_optimizers_that_step_within_backward_make_one_record(free, every):
    watch = both_ways(lambda attach: in_backward(attach, lambda p: torch.optim.Adam(p, lr=0.1), free=free), every=every)
    usual = both_ways(lambda attach: usually(attach, free=free), every=every)
    assert len(watch.history) == len(usual.history) == 4
    for mine, reference in zip(watch.history, usual.history, strict=True):
        assert (mine.step, mine.full, mine.backwards, mine.loss, mine.skipped) == (
            reference.step,
            reference.full,
            reference.backwards,
            reference.loss,
            reference.skipped,
        )
        assert mine.sites == reference.sites
        names = {"count", "calls", "mean", "rms", "min", "max", "zeros", "nonfinite", "stale"}
        columns = [index for index, name in enumerate(gradwatch.moments.COLUMNS) if name in names]
        np.testing.assert_allclose(mine.rows[:, columns], reference.rows[:, columns], rtol=1e-6)


def usually(attach, *, free):
    """The same training with one optimizer, which steps behind backward."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = torch.optim.Adam(list(model.parameters())[1 if free else 0 :], lr=0.1)
    watch = attach(model, optimizer)
    for _ in range(4):
        x = torch.randn(5, 3)
        watch.loss(model(x).square().mean()).backward()
        optimizer.step()
        model.zero_grad()
    return state(model, optimizer)


@IN_BACKWARD
def test_an_error_within_such_a_pass_does_not_stop_the_records():
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}
    fails = [True]

    def step(parameter):
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()
        if fails and parameter is model[1].bias:
            fails.clear()
            raise ValueError("of the user's")

    for parameter in optimizers:
        parameter.register_post_accumulate_grad_hook(step)
    with gradwatch.watch(model, list(optimizers.values()), every=1) as watch:
        with pytest.raises(ValueError, match="of the user's"):
            model(torch.ones(1, 1)).sum().backward()
        for _ in range(2):
            model(torch.ones(1, 1)).sum().backward()
    assert len(watch.history) == 2


@BY_HAND
def test_weights_that_are_updated_by_hand():
    def program(attach):
        weight = torch.tensor([2.0], requires_grad=True)
        watch = attach({"weight": weight})
        for _ in range(2):
            watch.tap("y", 3 * weight).sum().backward()
            with torch.no_grad():
                weight -= 0.5 * weight.grad
            watch.step()
            weight.grad = None
        return state(weight)

    watch = both_ways(program)
    assert not any(record.skipped for record in watch.history)
    for step, weight in ((0, 2.0), (1, 0.5)):
        found = rows(watch, step)
        assert found["weight", "parameter"].mean == weight
        assert found["weight", "parameter_grad"].mean == 3
        assert found["weight", "update"].mean == -1.5
        assert found["y", "activation"].mean == 3 * weight
        assert found["y", "activation_grad"].mean == 1


@NOT_TAKEN
@pytest.mark.parametrize("said", [True, False])
def test_a_step_that_is_not_taken(said):
    def program(attach):
        model = line()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.125)
        watch = attach(model, optimizer)
        for x in (1.0, 100.0, 1.0):
            watch.loss(model(torch.full((1, 1), x)).sum()).backward()
            if model.weight.grad.norm() < 10:
                optimizer.step()
            elif said:
                watch.step()
            optimizer.zero_grad()
        return state(model)

    watch = both_ways(program)
    assert [record.skipped for record in watch.history] == ([False, True, False] if said else [False, False])
    assert rows(watch, 1)["weight", "parameter_grad"].rms == (100 if said else 1)
    assert rows(watch, 1)["model", "activation"].calls == (1 if said else 2)
