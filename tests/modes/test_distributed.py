"""Several processes with a copy of the model each, or with a stage of it: their records become one."""

import pytest
import torch
from processes import models
from processes.reference import assert_shows, assert_trained_as_one, reference
from processes.start import over_gloo, ran, together
from registry import Mode
from torch import nn

import gradwatch

pytestmark = over_gloo


DDP = Mode(
    "Several processes",
    "`DistributedDataParallel`, also with `find_unused_parameters`, `static_graph`, `gradient_as_bucket_view`; watched before or "
    "after it is wrapped",
    recorded="the same record on every rank: parameters once, activations and their gradients of all ranks. `calls` adds up over "
    "ranks, `Record.backwards` does not; `Record.loss` is the mean over the ranks that tell one; `Record.ranks` says which rank "
    "saw the largest value of a site, or its first NaN",
    units="`parameter_grad` as DDP averages it; gradients of activations are those of each rank's own loss",
    unsupported="the `dead` share of an activation is the smallest one of any rank, which the true one may be below",
)


@DDP
@pytest.mark.parametrize("program", ["ddp", "ddp_with_bucket_views", "ddp_with_a_static_graph", "ddp_inside"])
def test_ranks_record_as_one_process_with_all_of_their_data_would(program):
    assert_trained_as_one(together(program), reference(2), calls=2)


@DDP
def test_a_parameter_that_nobody_uses_is_recorded_without_a_gradient():
    result = together("ddp_with_unused_parameters")
    rows = result["frame"].query("step == 0").set_index(["layer", "tensor"])
    assert ("spare.weight", "parameter") in rows.index
    assert ("spare.weight", "parameter_grad") not in rows.index
    [(expected, *_)] = reference(2, steps=1)
    assert rows.loc[("layers.0.weight", "parameter_grad"), "norm"] == pytest.approx(
        expected["0.weight", "parameter_grad"].norm().item(), rel=1e-5
    )


@DDP
def test_the_rank_of_the_largest_value_is_kept():
    frame = together("ddp")["frame"].query("step == 0").set_index(["layer", "tensor"])
    [(expected, *_)] = reference(2, steps=1)
    for layer in "01234":
        for tensor in ("activation", "activation_grad"):
            of_each = [half.abs().max() for half in expected[layer, tensor].chunk(2)]
            assert frame.loc[(layer, tensor), "rank"] == int(of_each[1] > of_each[0])
    assert set(frame.query("tensor in ['parameter', 'parameter_grad', 'update']")["rank"]) == {-1}  # all hold the same


@Mode(
    "Several processes",
    "accumulate under `no_sync()` (DDP) or `set_requires_gradient_sync(False)` (FSDP2)",
    recorded="one record a step, as in one process",
    units="`parameter_grad` is the sum over micro-batches, averaged over ranks",
)
@pytest.mark.parametrize("program", ["ddp_accumulating", "fsdp2_accumulating"])
def test_micro_batches_without_synchronisation(program):
    result = together(program)
    seen = reference(2, steps=1, batches=4)
    [(expected, loss, _)] = seen
    # Each of the four micro-batches has a loss of its own, and the average is over two ranks only.
    expected = {key: tensor * 2 if key[1] in ("parameter_grad", "update") else tensor for key, tensor in expected.items()}
    assert_shows(result["frame"], 0, expected)
    record = result["history"][0]
    assert record.backwards == 2
    assert record.loss == pytest.approx(loss, rel=1e-5)
    assert set(result["frame"].query("step == 0 and tensor == 'activation'")["calls"]) == {4}


@Mode(
    "Several processes",
    "a branch that only some ranks take, a tap that only some have",
    recorded="a row for each site that any rank has seen, from those ranks that have; the ranks agree on a longer list of sites "
    "when one of them meets a new one, never layer by layer",
)
def test_a_branch_of_one_rank():
    result = together("a_branch_of_one_rank")
    record = result["history"][0]
    frame = result["frame"].query("step == 0").set_index(["layer", "tensor"])
    assert frame.loc[("only", "activation"), ["count", "calls", "rank"]].tolist() == [4 * 8, 1, 1]
    assert frame.loc[("a", "activation"), "count"] == 2 * 4 * 8
    layers = list(dict.fromkeys(site.layer for site in record.sites if site.tensor == "activation"))
    assert layers == ["a", "only", "z"]  # in the order of forward, which only rank 1 knows
    # By plain autograd: half of what rank 1 alone gets, since rank 0 contributes nothing.
    model = models.Branching(1)
    x, y = models.data(2)
    nn.functional.mse_loss(model(x[4:]), y[4:]).backward()
    assert frame.loc[("only.weight", "parameter_grad"), "norm"] == pytest.approx(model.only.weight.grad.norm().item() / 2, rel=1e-5)


def test_a_tap_that_one_rank_adds_later():
    result = together("a_tap_that_comes_later")
    frame = result["frame"]
    taps = frame[frame.layer == "late"]
    assert taps[["step", "tensor", "count", "rank"]].to_numpy().tolist() == [
        [step, tensor, 4 * 3, 1] for step in (2, 4) for tensor in ("activation", "activation_grad")
    ]
    assert frame[frame.layer == "0"].query("tensor == 'activation'")["count"].tolist() == [64, 64, 64]


def test_a_unit_that_is_open_on_one_rank_is_not_dead():
    # Of the units 0 to 3, x = (1, 1) and (2, 1) open 0 and 1; (1, -1) opens 0 and (-1, -3) opens 2 and 3. Half of the units are
    # silent on rank 0, a quarter on rank 1, and none on both: the smaller share is the bound that is recorded.
    frame = ran("silence")[0]["frame"].set_index(["layer", "tensor"])
    assert frame.loc[("1", "activation"), "dead"] == 0.25
    assert frame.loc[("1", "activation"), "zeros"] == 4 + 5


@Mode(
    "Several processes",
    "a pipeline: each process has some of the layers",
    recorded="all layers, each from the process that has it; those of rank 0 come first",
    unsupported="schedules of `torch.distributed.pipelining` are not verified",
)
def test_stages_of_a_pipeline_make_one_record():
    assert_trained_as_one(together("pipeline"), reference(2, batches=1))


def test_the_loss_is_the_mean_over_the_ranks_that_tell_one():
    for result in ran("losses"):
        assert [record.loss for record in result["history"]] == [0.5, 11.0, None, None]
        assert result["late"] == [0.5, 10.5, 20.5]


def test_the_loss_of_a_criterion_is_the_mean_over_ranks():
    first, second = ran("losses")
    assert first["criterion"] == second["criterion"]
    # By then the model has been trained for seven steps.
    assert first["criterion"] == pytest.approx([loss for _, loss, _ in reference(2, steps=10)[7:]], rel=1e-5)


FINDINGS = Mode(
    "Several processes",
    "findings, `on_finding` and files",
    recorded="every rank finds the same: `raise` and functions are called on all of them at the same step, `log` and `warn` on "
    "rank 0. A finding about a NaN has the rank that saw it first in its evidence. Rank 0 writes what `logdir` and `writers` say",
)


@FINDINGS
def test_the_rank_that_saw_a_nan_first():
    for result in ran("nan_on_one_rank"):
        [finding] = result["findings"]
        assert (finding.kind, finding.layer, finding.first_step) == ("non_finite", "0", 2)
        assert finding.evidence["rank"] == 1
        assert "on rank 1" in finding.message
        step, raised = result["raised"]
        assert step == 3  # out of the step after it, on every rank
        assert (raised.layer, raised.first_step, raised.evidence) == (finding.layer, 2, finding.evidence)
        record = result["history"][2]
        site = next(index for index, site in enumerate(record.sites) if site.layer == "0" and site.tensor == "activation")
        assert record.ranks[site] == 1
        assert record.rows[site, gradwatch.moments.NONFINITE] == 8  # one sample of eight units


@FINDINGS
def test_rank_0_writes():
    first, second = ran("files")
    assert first["loaded"]
    assert second["loaded"]  # one file holds what every rank has recorded
    assert [first["written"], second["written"]] == [3, 0]


def test_two_watched_models_do_not_get_into_each_others_way():
    for result in ran("two_models"):
        assert result["log"] == []
    assert_trained_as_one(together("two_models"), reference(2), calls=2)
    second = ran("two_models")[0]["second"]
    assert second.query("step == 2 and layer == 'layers.0' and tensor == 'activation'")["count"].tolist() == [64]


def test_one_collective_a_record():
    for result in ran("exchanges"):
        first, *others = result["messages"]
        assert first == 4  # the record, the lengths of the lists of sites, the lists, the record again
        assert others == [1] * len(others)


LIGHTNING = Mode(
    "Several processes",
    "Lightning's strategies `ddp` and `fsdp`, and `lightning.fabric` with `gradwatch.watch`",
    recorded="as DDP and FSDP1; under Fabric give the watch what `fabric.setup` returned",
    unsupported="DeepSpeed and `ModelParallelStrategy` are not verified",
)


@LIGHTNING
@pytest.mark.parametrize("program", ["lightning_ddp", "lightning_fsdp", "lightning_fsdp_in_one_piece", "fabric_ddp", "fabric_fsdp"])
def test_strategies_of_lightning(program):
    pytest.importorskip("lightning", reason="lightning is not installed")
    prefix = "net." if program.startswith("lightning") else ""
    seen = [({(prefix + layer, tensor): value for (layer, tensor), value in step.items()}, *rest) for step, *rest in reference(2)]
    assert_trained_as_one(together(program, "on_lightning"), seen, calls=2)


def test_four_ranks():
    result = together("ddp_of_four", "of_four", 4)
    seen = reference(4)
    assert_trained_as_one(result, seen, calls=4)
    frame = result["frame"].query("step == 0 and tensor == 'activation'").set_index("layer")
    for layer in "01234":
        largest = torch.stack([quarter.abs().max() for quarter in seen[0][0][layer, "activation"].chunk(4)])
        assert frame.loc[layer, "rank"] == largest.argmax()
