"""The examples, run as a reader runs them."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

import gradwatch

ROOT = Path(__file__).parents[1]


def run(name, *arguments, cwd, filters=("-Werror",)):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, *filters, str(ROOT / "examples" / name), *arguments]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=cwd, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_single_neuron_twice(tmp_path):
    # By hand: z = W·x + b, a = σ(z), L = −ln a; dL/da = −1/a, dL/dz = dL/da · a(1 − a), dL/dW = dL/dz · x, dL/db = dL/dz.
    forward = "forward   z = 0   a = 0.5   loss = 0.6931\n"
    backward = "backward  dL/da = -2   dL/dz = -0.5   dL/dW = (-1, -0.5)   dL/db = -0.5\n"
    assert run("01_single_neuron.py", cwd=tmp_path).count(f"  {forward}  {backward}") == 2


def test_a_plain_loop_finds_the_sick_net_and_nothing_in_the_healthy_one(tmp_path):
    printed = run("02_plain_loop.py", "runs", cwd=tmp_path)
    sick, healthy = printed.split("\nrelu\n")
    assert "critical: vanishing_gradient at fc1, " in sick
    assert "→ loss_stagnant at loss" in sick
    assert "nothing found" not in sick
    assert "nothing found\n" in healthy
    first, last = map(float, re.search(r"loss: (\S+) at first, (\S+) at last", healthy).groups())
    assert last < 0.2 * first
    # What was printed can be looked at again.
    assert printed.endswith("tensorboard --logdir runs\n")
    assert {finding.kind for finding in gradwatch.load(tmp_path / "runs" / "sigmoid").findings} == {
        "vanishing_gradient",
        "loss_stagnant",
    }
    assert gradwatch.load(tmp_path / "runs" / "relu").findings == []


def test_lightning_writes_where_its_logger_does(tmp_path):
    pytest.importorskip("lightning", reason="lightning is not installed")
    # Lightning uses deprecated names of torch.
    printed = run("03_lightning.py", "runs", cwd=tmp_path, filters=("-Werror", "-Wignore::FutureWarning"))
    assert re.search(r"^net\.0 +Linear .* ok$", printed, re.MULTILINE)
    assert "nothing found" in printed
    [logdir] = re.findall(r"tensorboard --logdir (.*)", printed)
    files = list((tmp_path / logdir).glob("events.out.tfevents.*"))
    assert len(files) == 1
    assert len(gradwatch.load(files[0])) == 290  # 1,797 scans, 64 a batch, ten times


def test_transformers_writes_below_the_directory_of_the_trainer(tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    # It uses deprecated names of torch.
    printed = run("05_transformers.py", "runs", cwd=tmp_path, filters=("-Werror", "-Wignore::FutureWarning"))
    assert "nothing found" in printed
    first, last = map(float, re.search(r"loss: (\S+) at first, (\S+) at last", printed).groups())
    assert first == pytest.approx(math.log(10), abs=0.1)  # ten classes, and none is known
    assert last < 0.3 * first
    assert len(gradwatch.load(tmp_path / "runs")) == 232  # 1,797 scans, 64 a batch, eight times


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs processes over gloo")
def test_processes_that_stop_together(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, str(ROOT / "examples" / "06_distributed.py"), "run"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=tmp_path, env=environment, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    ends = re.findall(r"^rank (\d): stopped after step 11: non_finite at '0', step 10: .* on rank 1; ", done.stdout, re.MULTILINE)
    assert ends == ["0", "1"]
    seen = re.findall(r"layer 0 put out 1024 numbers of rms (\S+)", done.stdout)  # two batches of 16 samples and 32 units
    assert len(seen) == 2
    assert seen[0] == seen[1]
    assert [record.step for record in gradwatch.load(tmp_path / "run")] == list(range(12))


def test_every_example_is_run():
    here = {path.name for path in (ROOT / "examples").glob("*.py")}
    elsewhere = {"04_trace.py"}  # with the pages that it illustrates
    shown = {"01_single_neuron.py", "02_plain_loop.py", "03_lightning.py", "05_transformers.py", "06_distributed.py"}
    assert here - elsewhere == shown
