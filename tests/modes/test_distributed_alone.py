"""Where processes cannot record together each records for itself, says so, and waits for nobody for long."""

import pytest
import torch
from processes.start import launched, over_gloo, ran
from registry import Mode
from torch import nn

pytestmark = over_gloo


ALONE = Mode(
    "Several processes",
    "a watch on some ranks only, other settings on each, a model for each process, a process that ends earlier than the others",
    recorded="what the process itself sees (of sharded parameters its shards); the log says so once, and why. Nobody waits for "
    "ever: a process that is gone, or has closed its watch, is noticed at once, one that has only stopped within a minute",
)


def goes_on_alone(result, why):
    [line] = result["log"]
    assert why in line
    assert "goes on with statistics of its own process" in line
    assert line.removeprefix("gradwatch: ") in result["report"]


@ALONE
def test_a_watch_on_rank_0_only():
    first, second = ran("only_rank_0_watches")
    goes_on_alone(first, "rank 1 has no watch with the same settings")
    assert second == {}
    assert first["frame"].query("step == 0 and layer == '0' and tensor == 'activation'")["count"].tolist() == [4 * 8]


@ALONE
def test_settings_that_differ():
    for rank, result in enumerate(ran("different_cadences")):
        goes_on_alone(result, f"rank {1 - rank} has no watch with the same settings")
        assert [record.full for record in result["history"]] == [step % (2 + rank) == 0 for step in range(4)]


@ALONE
def test_processes_that_train_models_of_their_own():
    for rank, result in enumerate(ran("models_of_their_own")):
        goes_on_alone(result, "'weight' is not the same on ranks 0 and 1")
        torch.manual_seed(rank)
        row = result["frame"].query("step == 0 and layer == 'weight' and tensor == 'parameter'")
        assert row["norm"].item() == pytest.approx(nn.Linear(6, 3).weight.norm().item(), rel=1e-5)


@ALONE
@pytest.mark.parametrize("program", ["one_closes_early", "one_stops", "one_fails_inside", "an_exception"])
def test_a_process_that_ends_before_the_others(program):
    first = ran(program)[0]
    goes_on_alone(first, "a process has ended, closed its watch, or not answered")
    counts = first["frame"].query("layer == '0' and tensor == 'activation'")["count"].tolist()
    assert len(counts) >= 2
    assert counts[0] == 2 * counts[-1]  # of both processes, and then of one
    steps = {"one_closes_early": 6, "one_stops": 6, "one_fails_inside": 4, "an_exception": 5}[program]
    assert [record.step for record in first["history"]] == list(range(steps))


def test_an_exception_leaves_the_watch_without_waiting():
    _, second = ran("an_exception")
    assert second["raised"]
    assert [record.step for record in second["history"]] == [0, 1, 2]


@ALONE
def test_a_process_that_dies():
    first = launched("dying")[0]["one_dies"]
    assert "error" not in first
    goes_on_alone(first, "a process has ended, closed its watch, or not answered")
    assert [record.step for record in first["history"]] == list(range(6))
