"""The benchmark of what watching costs does its work; how long anything takes is not asked here."""

import json
import re
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import comparison, environment, footprint, gpu, growth, networks, overhead, page, profiled
from benchmarks.comparison import Comparison
from benchmarks.rivals import RIVALS
from benchmarks.timing import Times, take_turns
from benchmarks.tools import ALONE, COPIES, COUNTED, DEFAULT, EVERY_STEP, NAIVE, NORMS, Attached, Tool
from benchmarks.training import Apart, Footprint, Here, Step, ToolFailed, Training

SMALL = partial(networks.mlp, 1, 8, batch=4)


@pytest.fixture(autouse=True)
def _nothing_else_changes():
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        yield
    torch.set_num_threads(threads)


# ---------------------------------------------------------------------------- what is trained


@pytest.mark.parametrize("name", networks.TASKS)
def test_every_network_of_the_benchmark_trains(name):
    task = networks.TASKS[name]()
    small = task._replace(x=task.x[:2], y=task.y[:2])
    assert small.step(torch.optim.AdamW(small.model.parameters())).isfinite()


def test_the_deep_network_has_as_many_modules_as_it_says_and_its_gradient_arrives():
    task = networks.TASKS["500 modules"]()
    assert sum(1 for _ in task.model.modules()) == 500
    torch.nn.functional.cross_entropy(task.model(task.x), task.y).backward()
    first, last = (task.model[index].linear.weight.grad.norm() for index in (0, -2))
    assert 0.1 < first / last < 10


# ---------------------------------------------------------------------------- with what


@pytest.mark.parametrize(
    "tool",
    [ALONE, DEFAULT, EVERY_STEP, COUNTED, NORMS, COPIES, NAIVE, *(tool for tool in RIVALS if tool.packages == ("tensorboard",))],
)
def test_no_tool_changes_the_training(tool):
    trained = []
    for used in (ALONE, tool):
        training = Training(SMALL, used, threads=1)
        training.block(11)
        left = training.close()
        trained.append([parameter.detach().clone() for parameter in training.task.model.parameters()])
        assert left.steps == 12
    assert (left.written > 0) == (tool in (DEFAULT, EVERY_STEP, COUNTED, *RIVALS))
    assert all(map(torch.equal, *trained))


def test_naive_hooks_leave_the_model():
    training = Training(SMALL, NAIVE, threads=1)
    training.close()
    assert not any(module._forward_hooks for module in training.task.model.modules())


# ---------------------------------------------------------------------------- how it is timed


def steps(*walls, cpu=1.0):
    return [Step(place % 10, wall, cpu) for place, wall in enumerate(walls)]


def test_a_step_takes_the_mean_over_places_of_the_medians_over_cycles():
    usual = [1.0] * 9
    # A full record at every tenth step: the first describes its columns, another one is disturbed.
    times = Times(steps(500.0, *usual, 11.0, *usual, 21.0, *usual, 1000.0, *usual))
    assert times.places() == [21.0, *usual]
    assert times.usual() == pytest.approx(3.0)
    assert times.light() == 1.0
    assert times.usual("cpu") == 1.0


def compared(alone, again, **others):
    named = {"default": DEFAULT, "full": EVERY_STEP, "counted": COUNTED, "norms": NORMS, "copies": COPIES, "naive": NAIVE}
    times = {named[name].name: Times(steps(*[wall] * 10)) for name, wall in others.items()}
    return Comparison("MLP (8 × 256)", 1, Times(steps(*[alone] * 10)), Times(steps(*[again] * 10)), times)


def test_ratios_and_factors_are_told_with_the_noise():
    found = compared(1.0, 1.0, default=1.04, full=1.5, counted=1.75, norms=1.01, copies=1.2, naive=6.0)
    (row,) = (line for line in comparison.ratios([found]).splitlines() if line.startswith("| MLP"))
    assert row.startswith(
        "| MLP (8 × 256) | 1 | 1000.00 ms | ± 0.000 | 1.040 (1.000) | 1.05 (reached) | 1.500 (1.000) | 1.35 (not "
    )
    assert row.endswith("| 1.010 | 1.200 |")
    assert found.factor(NAIVE) == "10.0"
    table = comparison.rivals([found], [NAIVE], 1, {})
    assert "× 10.0" in table
    assert "`histograms=True` | 1.75 |" in table
    noisy = compared(0.9, 1.1, default=1.04, full=1.05, norms=1.0, copies=1.0, naive=2.0)
    assert noisy.noise == pytest.approx(0.1)
    assert "1.05 (not reached)" in comparison.ratios([noisy])  # 1.04, but give or take 0.1
    assert noisy.factor(NAIVE) == "over 10.0"
    assert compared(0.9, 1.1, full=1.0, naive=1.09).factor(NAIVE) == "in the noise"


def test_a_step_that_got_slower_without_any_tool_is_noise():
    slower = Times(steps(*[1.0] * 20, *[1.5] * 20))
    assert Comparison("CNN", 1, Times(steps(*[1.0] * 10)), slower, {}).noise == pytest.approx(0.5 / 2 / 1.125)


def broken(_task, _optimizer, _directory):
    raise ImportError("No module named 'telescope'")


def soon_broken(_task, _optimizer, _directory):
    def after(_loss):
        raise RuntimeError("full\nand more")

    return Attached(after, lambda: None)


def test_tools_take_turns_and_one_that_fails_is_left_out_with_its_reason():
    tools = [ALONE, DEFAULT, Tool("telescope", broken, packages=("telescope",)), Tool("soon", soon_broken)]
    alone, default, missing, failed = take_turns([Here(tool) for tool in tools], SMALL, threads=1, seconds=0, least=2)
    assert len(alone.steps) == len(default.steps) == 20
    assert sorted({step.place for step in default.steps}) == list(range(10))
    assert default.left.written > 0
    assert missing.reason == "ImportError: No module named 'telescope'"
    assert failed.reason == "RuntimeError: full"
    found = Comparison(
        "CNN", 1, alone, alone, dict.fromkeys((DEFAULT.name, EVERY_STEP.name, COUNTED.name), default) | {"telescope": missing}
    )
    table = comparison.rivals([found], [tools[2]], 1, {})
    assert "| telescope | – |" in table
    assert "Not measured: telescope on CNN: ImportError: No module named 'telescope'." in table
    assert "on CNN: no such version." in comparison.rivals([found], [tools[2]], 1, {"telescope": "no such version"})


def test_a_worker_trains_in_a_process_of_its_own_and_survives_a_failure():
    worker = Apart(EVERY_STEP)
    try:
        with pytest.raises(ToolFailed, match="TypeError"):
            worker.open(partial(networks.mlp, depth=3), 1)
        worker.open(SMALL, 1)
        block = worker.block(3)
        left = worker.close()
    finally:
        worker.end()
    assert [step.place for step in block] == [1, 2, 3]
    assert all(step.wall > 0 for step in block)
    assert isinstance(left, Footprint)
    assert left.steps == 4
    assert left.peak > left.memory
    with pytest.raises(ToolFailed, match="has ended"):
        worker.open(SMALL, 1)


# ---------------------------------------------------------------------------- what else is measured


def test_a_full_record_takes_more_of_the_disk_than_a_light_one(monkeypatch):
    monkeypatch.setitem(networks.TASKS, "two layers", SMALL)
    row = footprint.disk(["two layers"]).splitlines()[-1]
    full, full_tensors, light, light_tensors, once = (int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", row))
    # Full: 3 outputs and their gradients, the ReLU's input gradient, and 4 parameters with gradient and update.
    assert (full_tensors, light_tensors) == (3 + 3 + 1 + 4 * 3, 4)
    assert once > full > light > 4 * light_tensors


def test_growth_is_told_per_module_and_late_over_early():
    rows = growth.with_modules((5, 11), seconds=0, start=Here).splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| 5", "| 11"]
    assert "| 1,258 |" in growth.with_elements((16,), seconds=0, start=Here)  # 4 · (16 · 16 + 16) + 10 · 16 + 10
    text = growth.with_steps(40, start=Here, block=2)
    assert "steps 36 to 40 add, each" in text


def test_a_stopwatch_counts_for_a_part_only_what_it_does_itself():
    watch, spent = profiled.Stopwatch(), []

    def work():
        begin = time.thread_time()
        while time.thread_time() - begin < 0.002:
            pass
        spent.append(time.thread_time() - begin)

    inner = watch.around("inner", work)
    watch.around("outer", lambda: (work(), inner(), work()))()
    assert watch.seconds["inner"] == pytest.approx(spent[1], abs=5e-4)
    assert watch.seconds["outer"] == pytest.approx(spent[0] + spent[2], abs=5e-4)


def test_every_part_of_a_watch_passes_an_entrance():
    before = [getattr(owner, name) for entrances in profiled.ENTRANCES.values() for owner, name in entrances]
    with profiled.stopwatch() as watch:
        training = Training(SMALL, DEFAULT, threads=1)
        training.block(12)
        training.close()
    assert all(watch.seconds[part] > 0 for part in profiled.ENTRANCES)
    assert before == [getattr(owner, name) for entrances in profiled.ENTRANCES.values() for owner, name in entrances]


def test_judging_is_timed_by_kind_of_record():
    full, light = profiled.judge(1, steps=24)
    assert (full[0], light[0]) == ("full", "light")
    assert full[1] > light[1] > 0
    assert min(full[2], light[2]) > 0


# ---------------------------------------------------------------------------- the command


def test_the_quick_command_prints_every_part_and_writes_the_page(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(overhead, "TASKS", {"two layers": SMALL})
    for module in (comparison, footprint, profiled):
        monkeypatch.setattr(module, "TASKS", {"two layers": SMALL})
    monkeypatch.setattr(overhead, "PAGE", tmp_path / "performance.md")
    assert overhead.main(["--quick", "--seconds", "0.01", "--write"]) == 0
    printed, written = capsys.readouterr().out, (tmp_path / "performance.md").read_text(encoding="utf-8")
    for part in page.PARTS:
        assert f"## {part}\n" in printed
    assert page.MISSING not in written
    assert written.count("| two layers |") >= 5
    assert torch.__version__ in written
    assert "| full record at every step, compiled | ≤ 1.05 | not measured |" in written


def test_a_part_that_was_left_out_is_said_to_be_missing():
    assert page.page("a machine", {"steps": "| 1 µs |"}).count(page.MISSING) == len(page.PARTS) - 1


def test_the_page_tells_no_processor_time_as_if_it_were_the_time_on_the_wall(capsys):
    with pytest.raises(SystemExit):
        overhead.main(["--write", "--clock", "cpu"])
    assert "leave --write or --clock out" in capsys.readouterr().err


def test_the_comparison_with_others_is_run_again_in_their_environment(monkeypatch):
    ran = []
    monkeypatch.setattr(environment, "ready", lambda: (Path("python"), {"wandb": "no network"}))
    monkeypatch.setattr(environment, "again", lambda *given: ran.append(given) or 7)
    assert overhead.main(["--seconds", "3"]) == 7
    assert ran == [(Path("python"), ["--seconds", "3"], {"wandb": "no network"})]


def test_what_cannot_be_installed_has_a_reason():
    reason = environment.install(Path(sys.executable), "gradwatch-has-no-such-rival==1.0", ["--no-index"])
    assert "gradwatch-has-no-such-rival==1.0" in reason


def test_an_environment_that_is_there_is_used_again_until_something_changes(monkeypatch, tmp_path):
    made = []

    def create(place, **_options):
        made.append(place)
        (place / "lib" / "python3" / "site-packages").mkdir(parents=True, exist_ok=True)

    wanted = tmp_path / "rivals.txt"
    wanted.write_text("# two\nmicroscope==1\ntelescope==2\n", encoding="utf-8")
    monkeypatch.setattr(environment.venv, "create", create)
    monkeypatch.setattr(environment, "install", lambda _python, requirement: "none is left" if "tele" in requirement else None)
    python, reasons = environment.ready(tmp_path / "venv", wanted)
    assert reasons == {"telescope": "none is left"}
    assert python == tmp_path / "venv" / "bin" / "python"
    borrowed = (tmp_path / "venv" / "lib" / "python3" / "site-packages" / "borrowed.pth").read_text(encoding="utf-8")
    assert str(Path(torch.__file__).parents[1]) in borrowed.splitlines()
    monkeypatch.setattr(environment, "install", lambda _python, _requirement: None)
    assert environment.ready(tmp_path / "venv", wanted)[1] == {}  # tried again
    assert environment.ready(tmp_path / "venv", wanted)[1] == {}
    assert len(made) == 2
    assert not json.loads((tmp_path / "venv" / "installed.json").read_text(encoding="utf-8"))["reasons"]


def test_the_benchmark_of_a_gpu_ends_well_without_one(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 0
    assert capsys.readouterr().out == "not measured: torch sees no CUDA device here\n"
