"""The benchmark of what watching costs does its work; how long anything takes is not asked here."""

import pytest
import torch

from benchmarks import networks, overhead
from gradwatch import moments


@pytest.fixture(scope="module")
def cost():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        yield overhead.measure("two layers", lambda: networks.mlp(1, 8, batch=4), seconds=0, least=1)
    torch.set_num_threads(threads)


def test_full_and_light_records_are_told_apart(cost):
    # Full: 3 outputs and their gradients, the ReLU's input gradient, and 4 parameters with gradient and update.
    assert (cost.full.tensors, cost.light.tensors) == (3 + 3 + 1 + 4 * 3, 4)
    assert cost.full.size > cost.full.tensors * len(moments.COLUMNS)
    assert cost.full.size > cost.light.size > 4 * cost.light.tensors
    assert min(cost.bare, cost.full.judge, cost.full.write, cost.light.judge, cost.light.write) >= 0
    assert len(cost.ratios) == len(overhead.CADENCES) == 2


def test_the_page_says_what_was_measured_and_which_targets_are_not_reached(cost, monkeypatch):
    monkeypatch.setitem(overhead.TARGETS, "two layers", (float("inf"), 0.0))
    page = overhead.page([cost], [("full", 200, 1e-4), ("light", 50, 2e-5)])
    assert "| full | 200 | 100 µs | 50 µs |" in page
    (row,) = (line for line in page.splitlines() if line.startswith("| two layers | ") and "reached" in line)
    assert "| inf (reached) |" in row
    assert "| 0.0 (not reached) |" in row
    assert page.count("| two layers | full | 19 |") == page.count("| two layers | light | 4 |") == 1
    assert torch.__version__ in page


@pytest.mark.parametrize("name", networks.TASKS)
def test_every_network_of_the_benchmark_trains(name):
    with torch.random.fork_rng(devices=[]):
        task = networks.TASKS[name]()
    small = task._replace(x=task.x[:2], y=task.y[:2])
    assert small.step(torch.optim.AdamW(small.model.parameters())).isfinite()
    assert name in overhead.TARGETS


def test_the_command_prints_the_table_and_writes_the_page(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(overhead, "TASKS", {"two layers": lambda: networks.mlp(1, 8, batch=4)})
    monkeypatch.setattr(overhead, "PAGE", tmp_path / "performance.md")
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        overhead.main(["--quick", "--seconds", "0.01", "--write"])
    torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert printed.splitlines()[2].startswith("| network | step without a watch |")
    assert printed.splitlines()[4] in (tmp_path / "performance.md").read_text(encoding="utf-8")
    assert "two layers" in printed


def test_judging_is_timed_by_kind_of_record():
    with torch.random.fork_rng(devices=[]):
        full, light = overhead.judge(1, steps=24)
    assert (full[0], light[0]) == ("full", "light")
    assert full[1] > light[1] > 0
    assert min(full[2], light[2]) > 0
