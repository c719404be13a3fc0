"""The demo: what it finds is asserted here, on the one run that all tests share; nothing of it is known to the demo itself."""

import io
import struct
from dataclasses import replace

import pytest
import torch
from rich.console import Console

import gradwatch
from gradwatch import demo
from gradwatch.demo import page, picture, training
from gradwatch.errors import LogdirError

FAST = training.PLANS[2]
SHORT = [replace(plan, steps=12) for plan in training.PLANS]


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    return demo.run(tmp_path_factory.mktemp("demo"), seed=0)


def text_of(shown, **settings):
    console = Console(file=io.StringIO(), width=100, highlight=False, **settings)
    page.show(shown, console)
    return console.file.getvalue()


def test_the_neuron_shows_what_one_gets_by_hand(shown):
    by_hand = {"z": 0, "a": 0.5, "loss": 0.69314718, "dL/da": -2, "dL/dz": -0.5, "dL/dw1": -1, "dL/dw2": -0.5, "dL/db": -0.5}
    assert shown.neuron == pytest.approx(by_hand, abs=1e-6)


def test_the_gradient_of_the_sigmoid_network_vanishes_at_its_early_layers(shown):
    run = shown.runs[0]
    [finding] = [finding for finding in run.history.findings if finding.kind == "vanishing_gradient"]
    assert finding.severity == "critical"
    assert finding.layer == "fc1"
    assert finding.evidence["share"] < 1e-6
    assert run.dies_at in {"fc4", "fc5", "fc6", "fc7"}
    assert f"dies at {run.dies_at}" in finding.message
    assert run.broke_at is None


def test_nothing_is_said_of_the_healthy_network_which_learns(shown):
    run = shown.runs[1]
    assert run.history.findings == []
    assert run.raised == []
    assert run.accuracy > 0.9
    _, losses = run.history.losses()
    assert losses[-20:].mean() < 0.2 * losses[0]


def test_the_explosion_is_reported_before_the_loss_is_lost(shown):
    run = shown.runs[2]
    explosions = [(step, finding) for step, finding in run.raised if finding.kind == "exploding_gradient"]
    assert run.broke_at is not None
    assert len(run.history) == run.broke_at + 1
    assert min(finding.first_step for _, finding in explosions) < run.broke_at
    assert min(step for step, _ in explosions) <= run.broke_at
    assert {finding.severity for _, finding in explosions} == {"critical"}
    assert [record.step for record in run.finite] == list(range(len(run.finite)))


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_other_seeds_explode_as_well(seed, tmp_path):
    run = training.train(FAST, seed, tmp_path)
    assert min(step for step, finding in run.raised if finding.kind == "exploding_gradient") <= run.broke_at


def test_a_seed_says_everything_about_a_run(tmp_path):
    once, again, other = (training.train(FAST, seed, tmp_path / name) for seed, name in ((3, "a"), (3, "b"), (4, "c")))
    assert once.history == again.history
    assert once.history != other.history


def test_the_event_files_hold_what_was_seen(shown):
    for run in shown.runs:
        assert run.logdir.parent == shown.logdir
        assert gradwatch.load(run.logdir) == run.history


def test_the_picture_is_a_png_fit_for_a_page(shown):
    content = shown.picture.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert (width, height) == (1800, 1120)
    assert len(content) < 250_000


def test_a_picture_can_be_drawn_of_runs_that_all_last(shown, tmp_path):
    picture.draw([shown.runs[1]] * 3, tmp_path / "flow.png")
    assert (tmp_path / "flow.png").stat().st_size > 10_000


def test_a_second_demo_gets_a_folder_of_its_own(tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    first = demo.run(tmp_path, plans=SHORT)
    before = {file: file.read_bytes() for file in first.logdir.rglob("*") if file.is_file()}
    second = demo.run(tmp_path, plans=SHORT)
    assert (first.logdir.name, second.logdir.name) == ("8", "9")
    assert {file: file.read_bytes() for file in first.logdir.rglob("*") if file.is_file()} == before
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_the_callers_random_numbers_and_threads_are_not_touched(tmp_path):
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    demo.run(tmp_path, seed=5, plans=SHORT)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_a_logdir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(LogdirError, match="taken' cannot be written"):
        demo.run(tmp_path / "taken")


def test_the_page_says_it_all_in_100_columns(shown):
    text = text_of(shown)
    assert "z = 0   a = 0.5   loss = 0.6931" in text
    assert "dL/da = -2   dL/dz = -0.5   dL/dW = (-1, -0.5)   dL/db = -0.5" in text
    assert "  layer  activation rms  dL/da rms  dL/dW rms  update ratio  status\n" in text
    sigmoid, relu, fast = text.split("layers, SGD")[1:]
    assert "vanishing_gradient at fc1" in sigmoid
    assert "try: Every activation on the way" in sigmoid
    assert "nothing found" in relu
    assert "of the test images right" in relu
    assert "exploding_gradient" in fast
    assert f"→ nan at step {shown.runs[2].broke_at};" in fast
    *lines, picture_line, events_line, board_line, report_line, last = text.split("\n")
    assert max(map(len, lines)) <= 100
    assert [line for line in lines if line != line.rstrip()] == []
    assert picture_line.endswith(str(shown.picture))
    assert str(shown.logdir) in events_line
    assert board_line.endswith(f"tensorboard --logdir {shown.logdir}")
    assert report_line.endswith(f"gradwatch report {shown.runs[0].logdir}")
    assert last == ""


def test_every_layer_with_weights_has_a_row(shown):
    lines = text_of(shown).splitlines()
    for number in range(1, 11):
        assert sum(line.startswith(f"  fc{number} ") for line in lines) == 3


def test_a_terminal_gets_colours(shown):
    text = text_of(shown, force_terminal=True, color_system="standard")
    assert "\x1b[1;31mcritical\x1b[0m: vanishing_gradient" in text
    assert "\x1b[1;31mvanishing_gradient\x1b[0m" in text
    assert "\x1b[32mok\x1b[0m" in text


@pytest.mark.parametrize(("terminal", "expected"), [(True, "12/12"), (False, "training: ReLU, He initialisation, at most")])
def test_progress_is_a_bar_on_a_terminal_and_a_line_elsewhere(tmp_path, terminal, expected):
    console = Console(file=io.StringIO(), width=100, force_terminal=terminal)
    with page.audience(console) as audience:
        training.train(SHORT[1], 0, tmp_path / "relu", audience)
        run = training.train(SHORT[2], 0, tmp_path / "fast", audience)
    text = console.file.getvalue()
    assert expected in text
    assert f"step {run.raised[0][0]}: {run.raised[0][1].kind}" in text
