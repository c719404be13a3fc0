"""The callback for the Trainer of Hugging Face, against hand arithmetic and plain torch. Models are made here, not downloaded."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import gradwatch
from gradwatch.errors import InvalidSetting, UnhealthyTraining, WatchClosed

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed, which the Trainer needs")

from gradwatch.transformers import GradWatchCallback  # noqa: E402  # where transformers can be imported

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]


class Neuron(nn.Module):
    """z = W·x + b, a = σ(z), L = −ln a."""

    def __init__(self):
        super().__init__()
        self.z, self.a = nn.Linear(2, 1), nn.Sigmoid()
        self.z.weight.data = torch.tensor([[0.5, -1.0]])
        self.z.bias.data = torch.zeros(1)

    def forward(self, x, labels=None):
        a = self.a(self.z(x))
        return {"loss": -a.log().mean(), "logits": a}


class Line(nn.Module):
    """Dropout tells whether random numbers are touched."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.drop, self.last = nn.Linear(3, 8), nn.Dropout(0.3), nn.Linear(8, 1)

    def forward(self, x, labels=None):
        y = self.last(self.drop(torch.relu(self.first(x))))
        return {"loss": nn.functional.mse_loss(y, labels), "logits": y}


def gpt2():
    torch.manual_seed(1)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 20, "n_positions": 8}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


def sentences(count=12):
    tokens = torch.randint(0, 20, (count, 6), generator=torch.Generator().manual_seed(0))
    labels = tokens.clone()
    for index in range(count):
        labels[index, : 1 + index % 5] = -100  # of each sentence another number of tokens counts, and never the first
    return [{"input_ids": one, "labels": target} for one, target in zip(tokens, labels, strict=True)]


def points(count=12):
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    return [{"x": row, "labels": row.sum(0, keepdim=True)} for row in x]


@pytest.fixture
def trainer(tmp_path):
    """Makes a Trainer that is silent and deterministic, and steps by plain gradient descent."""

    def make(model, data, *callbacks, kind=transformers.Trainer, eval_dataset=None, **settings):
        quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "logging_strategy": "no"}
        plain = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "seed": 3}
        size = {"num_train_epochs": 1, "per_device_train_batch_size": 2, "dataloader_pin_memory": False}
        args = transformers.TrainingArguments(output_dir=str(tmp_path / "out"), **{**quiet, **plain, **size, **settings})
        made = kind(model=model, args=args, train_dataset=data, eval_dataset=eval_dataset, callbacks=list(callbacks))
        made.remove_callback(transformers.trainer_callback.PrinterCallback)
        return made

    return make


def rows(watch, layer, tensor):
    frame = watch.history.to_pandas()
    return frame[(frame.layer == layer) & (frame.tensor == tensor)]


def in_order(data, size):
    """Batches as a Trainer makes them that does not shuffle."""
    for start in range(0, len(data), size):
        part = data[start : start + size]
        yield {name: torch.stack([item[name] for item in part]) for name in part[0]}


class Unshuffled(transformers.Trainer):
    def _get_train_sampler(self, *_):
        return None


def test_single_neuron_by_hand(trainer):
    callback = GradWatchCallback()
    trainer(Neuron(), [{"x": torch.tensor([2.0, 1.0])}], callback, remove_unused_columns=False).train()

    (record,) = callback.watch.history
    assert record.step == 0
    assert record.loss == pytest.approx(math.log(2), abs=1e-6)
    for layer, tensor, low, high in [
        ("z", "activation", 0, 0),
        ("a", "activation", 0.5, 0.5),
        ("a", "activation_grad", -2, -2),  # dL/da = −1/a
        ("a", "input_grad", -0.5, -0.5),  # dL/dz = dL/da · a(1 − a)
        ("z.weight", "parameter_grad", -1, -0.5),  # dL/dW = dL/dz · x
        ("z.bias", "parameter_grad", -0.5, -0.5),
        ("z.weight", "update", 0.05, 0.1),
    ]:
        (row,) = rows(callback.watch, layer, tensor).itertuples()
        assert (row.min, row.max) == pytest.approx((low, high), abs=1e-6), (layer, tensor)


PROGRAMS = {
    "clipped": {"max_grad_norm": 0.1},
    "accumulated and evaluated": {
        "gradient_accumulation_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "max_grad_norm": 1.0,
    },
    "checkpointed": {"gradient_checkpointing": True, "optim": "adamw_torch", "max_grad_norm": 1.0},
}


@pytest.mark.parametrize("settings", PROGRAMS.values(), ids=PROGRAMS)
def test_training_is_the_same_to_the_last_bit(settings, trainer, caplog):
    def weights(*callbacks):
        model = gpt2()
        trainer(model, sentences(), *callbacks, eval_dataset=sentences(2), **settings).train()
        return [*model.state_dict().values(), torch.get_rng_state()]

    expected = weights()
    for every in (1, 3):
        callback = GradWatchCallback(every=every)
        assert all(map(torch.equal, weights(callback), expected))
        assert len(callback.watch.history) == (3 if "gradient_accumulation_steps" in settings else 6)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_the_loss_of_a_step_counts_each_token_once_over_its_micro_batches(trainer):
    model, data = gpt2().eval(), sentences()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        batches = list(in_order(data, 2))
        count = [int((batch["labels"][:, 1:] != -100).sum()) for batch in batches]
        loss = [float(model(**batch).loss) * tokens for batch, tokens in zip(batches, count, strict=True)]
    callback = GradWatchCallback()
    trainer(model, data, callback, kind=Unshuffled, gradient_accumulation_steps=4, learning_rate=0.0).train()

    expected = [sum(loss[:4]) / sum(count[:4]), sum(loss[4:]) / sum(count[4:])]
    assert [record.loss for record in callback.watch.history] == pytest.approx(expected, rel=1e-5)
    assert [record.backwards for record in callback.watch.history] == [4, 0]


def test_the_loss_of_a_model_that_averages_is_the_mean_over_micro_batches(trainer):
    model, data = Line(), points()
    model.drop.p = 0.0
    with torch.no_grad():
        loss = [float(model(**batch)["loss"]) for batch in in_order(data, 2)]
    callback = GradWatchCallback()
    trainer(model, data, callback, kind=Unshuffled, gradient_accumulation_steps=3, learning_rate=0.0).train()

    assert [record.loss for record in callback.watch.history] == pytest.approx([sum(loss[:3]) / 3, sum(loss[3:]) / 3], rel=1e-5)


def test_a_loss_of_ones_own_is_told(trainer):
    class Own(transformers.Trainer):
        def compute_loss(self, model, inputs, *_, **__):
            return callback.watch.loss(3 * model(**inputs)["loss"])

    model, data = Line(), points(2)
    model.drop.p = 0.0
    with torch.no_grad():
        loss = float(model(**next(in_order(data, 2)))["loss"])
    callback = GradWatchCallback()
    trainer(model, data, callback, kind=Own).train()
    assert callback.watch.history[0].loss == pytest.approx(3 * loss, rel=1e-5)


class Unscaling(Unshuffled):
    """Does on a CPU what the accelerator does on a GPU in float16."""

    def _clip_grad_norm(self, model):
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.unscale_(self.optimizer.optimizer)
        return super()._clip_grad_norm(model)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_gradients_are_those_before_clipping(accumulated, scaled, trainer):
    model, data = Line(), points(2 * accumulated)
    model.drop.p = 0.0
    for batch in in_order(data, 2):
        (model(**batch)["loss"] / accumulated).backward()
    expected = {name: float(parameter.grad.norm()) for name, parameter in model.named_parameters()}
    total = math.sqrt(sum(norm**2 for norm in expected.values()))
    model.zero_grad()
    callback = GradWatchCallback()
    settings = {"gradient_accumulation_steps": accumulated, "max_grad_norm": total / 4}
    made = trainer(model, data, callback, kind=Unscaling, **settings)
    made.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if scaled else None
    made.train()

    (record,) = callback.watch.history
    assert record.clip == pytest.approx(0.25, rel=1e-4)
    assert record.backwards == accumulated
    for name, norm in expected.items():
        (row,) = rows(callback.watch, name, "parameter_grad").itertuples()
        assert row.norm == pytest.approx(norm, rel=1e-5), name
        (moved,) = rows(callback.watch, name, "update").itertuples()
        assert moved.norm == pytest.approx(0.1 * norm / 4, rel=1e-3), name


def test_evaluation_is_not_observed(trainer):
    callback = GradWatchCallback(every=1)
    settings = {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True}
    trainer(Line(), points(8), callback, eval_dataset=points(6), **settings).train()
    assert rows(callback.watch, "first", "activation").calls.tolist() == [1] * 4
    assert [record.backwards for record in callback.watch.history] == [1] * 4


def test_a_step_that_overflows_is_recorded_as_skipped(trainer):
    callback = GradWatchCallback(every=1, detectors=())
    made = trainer(Line(), points(8), callback)
    made.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)  # too large on purpose
    made.train()
    skipped = [record.skipped for record in callback.watch.history]
    assert skipped[0]
    assert len(skipped) == made.state.global_step == 4
    assert [record.step for record in callback.watch.history] == [0, 1, 2, 3]


def test_a_run_goes_on_where_its_checkpoint_ended(trainer, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 4, "logging_strategy": "no"}
    first, second = GradWatchCallback(every=2), GradWatchCallback(every=2)
    trainer(gpt2(), sentences(), first, **settings).train()
    made = trainer(gpt2(), sentences(), second, **settings)
    made.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    assert [record.step for record in first.watch.history] == [0, 1, 2, 3, 4, 5]
    assert [record.step for record in second.watch.history] == [4, 5]


def test_each_training_has_an_event_file_of_its_own(trainer, tmp_path):
    for number in range(2):
        callback = GradWatchCallback()
        trainer(Line(), points(4), callback).train()
        loaded = gradwatch.load(tmp_path / "out" / "runs" / "gradwatch_logs" / f"version_{number}")
        assert loaded == callback.watch.history
    callback = GradWatchCallback(tmp_path / "elsewhere")
    trainer(Line(), points(4), callback).train()
    assert gradwatch.load(tmp_path / "elsewhere") == callback.watch.history
    assert len(list((tmp_path / "out").rglob("*tfevents*"))) == 2


def test_other_ranks_write_nothing(trainer, tmp_path):
    class Other(transformers.TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            state.is_world_process_zero = False

    callback = GradWatchCallback(tmp_path / "run")
    trainer(Line(), points(4), Other(), callback).train()
    assert len(callback.watch.history) == 2
    assert not list(tmp_path.rglob("*tfevents*"))


def test_nothing_is_left_on_the_model(trainer):
    model = Line()
    trainer(model, points(4), GradWatchCallback(every=1)).train()
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_training_again_after_an_error(trainer):
    class Broken(transformers.Trainer):
        def training_step(self, *args, **kwargs):
            if broken:
                raise RuntimeError("no memory left")
            return super().training_step(*args, **kwargs)

    broken, callback = True, GradWatchCallback()
    made = trainer(Line(), points(4), callback, kind=Broken)
    with pytest.raises(RuntimeError, match="no memory left"):
        made.train()
    failed, broken = callback.watch, False
    made.train()
    assert failed.closed
    assert len(callback.watch.history) == 2


def test_a_finding_can_end_the_training(trainer):
    class Cut(Line):
        def forward(self, x, labels=None):
            y = self.last(self.first(x).detach())
            return {"loss": nn.functional.mse_loss(y, labels), "logits": y}

    callback = GradWatchCallback(on_finding="raise")
    with pytest.raises(UnhealthyTraining, match="zero_gradient at 'first'"):
        trainer(Cut(), points(60), callback).train()
    assert callback.watch.findings[0].layer == "first"


def test_a_plain_loop_with_an_optimizer_that_accelerate_wraps():
    accelerator = accelerate.Accelerator(cpu=True)
    model = Line()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with gradwatch.watch(model, optimizer, every=1) as watch:
        for batch in in_order(points(6), 2):
            accelerator.backward(model(**batch)["loss"])
            optimizer.step()
            optimizer.zero_grad()
    assert [record.step for record in watch.history] == [0, 1, 2]
    assert rows(watch, "first.weight", "update").norm.tolist() == pytest.approx(
        [0.1 * norm for norm in rows(watch, "first.weight", "parameter_grad").norm], rel=1e-4
    )


def test_a_budget_is_the_watchs(trainer):
    callback = GradWatchCallback(every=2, budget=0.05)
    trainer(Line(), points(), callback).train()
    assert callback.watch.history.full_steps[:3] == [0, 2, 4]
    assert callback.watch.report().splitlines()[-1].startswith("budget=0.05: a full record every ")


def test_what_has_no_meaning_is_refused():
    with pytest.raises(InvalidSetting, match="every=0"):
        GradWatchCallback(every=0)
    with pytest.raises(WatchClosed, match=r"call trainer\.train\(\) first"):
        _ = GradWatchCallback().watch
