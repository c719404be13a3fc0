"""The command line as a shell uses it: words in, text and a status out."""

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pandas as pd
import pytest
import torch
from torch import nn

import gradwatch
from gradwatch import demo
from gradwatch.cli import main
from gradwatch.demo import training


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The log directory of six steps, of which the last has a NaN among its inputs."""
    logdir = tmp_path_factory.mktemp("run")
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with gradwatch.watch(net, optimizer, logdir=logdir, every=1, on_finding=lambda finding: None) as watch:
        for step in range(6):
            x = torch.ones(5, 3)
            x[0, 0] = float("nan") if step == 5 else 1
            optimizer.zero_grad()
            watch.loss(net(x).square().mean()).backward()
            optimizer.step()
    return logdir


def lines_of(capsys):
    captured = capsys.readouterr()
    return captured.out.splitlines(), captured.err.splitlines()


def test_report_prints_the_layers_and_what_was_found(run, capsys):
    assert main(["report", str(run)]) == 0
    out, err = lines_of(capsys)
    assert out[0].startswith("layer  type    activation rms  dL/da rms")
    assert [line.split()[:2] for line in out[2:5]] == [["0", "Linear"], ["1", "Tanh"], ["2", "Linear"]]
    assert "non_finite" in out[2]
    assert any("6 records, steps 0 to 5" in line for line in out)
    assert any(line.startswith("critical: non_finite at 0, step 5: ") for line in out)
    assert any(line.startswith("    try: ") for line in out)
    assert err == []


def test_report_prints_several_runs_one_after_another(run, capsys):
    assert main(["report", str(run), str(run / next(run.iterdir()).name)]) == 0
    out, _ = lines_of(capsys)
    assert out[0] == run.name
    assert [line for line in out if line.startswith("events.out.tfevents")]
    assert len([line for line in out if line.startswith("layer  type")]) == 2


def test_report_writes_a_page(run, tmp_path, capsys):
    path = tmp_path / "pages" / "out.html"
    assert main(["report", str(run), "--html", str(path)]) == 0
    assert lines_of(capsys) == ([f"{path}: {run.name} (6 records)"], [])
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert main(["report", str(run), "--html", str(path / "below")]) == 2
    assert "cannot be written" in lines_of(capsys)[1][0]


def test_what_could_not_be_read_is_said_on_the_page_as_well(run, tmp_path, capsys):
    from gradwatch import report

    [file] = run.iterdir()
    (tmp_path / file.name).write_bytes(file.read_bytes()[:-7])
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write", lambda runs, path, notes: told.append(notes))
        assert main(["report", str(tmp_path), "--html", "out.html"]) == 0
    [note] = lines_of(capsys)[1]
    assert told == [{tmp_path.name: [note.removeprefix("gradwatch: ")]}]


def test_compare_says_what_two_runs_differ_by(run, tmp_path, capsys):
    other = record_vanishing_run(tmp_path / "other")
    assert main(["compare", str(run), str(other)]) == 0
    out, err = lines_of(capsys)
    assert out[0].split()[:2] == ["layer", "type"]
    assert f"dL/dW rms {run.name}" in out[0]
    assert any(line.startswith("other: History(") for line in out)
    assert err == []


def test_runs_of_one_name_are_called_by_their_paths(tmp_path, capsys):
    first, second = (record_vanishing_run(tmp_path / part / "run") for part in "ab")
    assert main(["compare", str(first), str(second)]) == 0
    assert any(line.startswith(f"{second}: History(") for line in lines_of(capsys)[0])


@pytest.mark.parametrize(("name", "read"), [("out.csv", pd.read_csv), ("out.parquet", pd.read_parquet)])
def test_export_writes_the_tidy_frame(run, tmp_path, capsys, name, read):
    path = tmp_path / "tables" / name
    assert main(["export", str(run), str(path)]) == 0
    frame = read(path)
    assert set(frame["step"]) == set(range(6))
    assert set(frame["tensor"]) >= {"activation", "activation_grad", "parameter", "parameter_grad", "update"}
    assert frame.loc[(frame["step"] == 0) & (frame["layer"] == "0.weight") & (frame["tensor"] == "parameter"), "count"].item() == 12
    assert lines_of(capsys) == ([f"{path}: 6 records, steps 0 to 5"], [])


@pytest.mark.parametrize(
    ("words", "fact"),
    [
        (["report", "nowhere"], "'nowhere' does not exist"),
        (["export", "nowhere", "out.csv"], "'nowhere' does not exist"),
        (["export", "RUN", "out.xlsx"], "must end in .csv or .parquet"),
        (["export", "RUN", "FILE/out.csv"], "cannot be written"),
        (["demo", "--logdir", "FILE/demo"], "cannot be written"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(run, tmp_path, monkeypatch, capsys, words, fact):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("of somebody else")
    assert main([str(run) if word == "RUN" else word for word in words]) == 2
    out, [line] = lines_of(capsys)
    assert line.startswith("gradwatch: ")
    assert fact in line
    assert out == []


def test_a_damaged_run_is_reported_with_a_note(run, tmp_path, capsys):
    [file] = run.iterdir()
    (tmp_path / file.name).write_bytes(file.read_bytes()[:-7])
    assert main(["report", str(tmp_path)]) == 0
    out, [note] = lines_of(capsys)
    assert out[0].startswith("layer")
    assert note.startswith("gradwatch: ")
    assert file.name in note


@pytest.mark.parametrize("words", [["--seed", "x"], ["--seed", "-1"], ["--seed", str(2**63)], ["--sed", "1"]])
def test_words_without_a_meaning_are_refused(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["demo", *words])
    _, err = lines_of(capsys)
    assert err[-1].startswith("gradwatch")
    assert words[0] in err[-1]


def test_version_and_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert lines_of(capsys)[0] == [f"gradwatch {gradwatch.__version__}"]
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    help_text, _ = lines_of(capsys)
    for command in ("demo", "report", "check", "compare", "export"):
        assert any(line.split()[:1] == [command] for line in help_text)


def test_without_a_command_the_help_is_shown(capsys):
    assert main([]) == 2
    out, err = lines_of(capsys)
    assert out == []
    assert err[0].startswith("usage: gradwatch")


def test_demo_shows_what_it_found_and_where_it_is(tmp_path, monkeypatch, capsys):
    plans = [replace(plan, steps=12) for plan in training.PLANS]
    monkeypatch.setattr(demo, "run", partial(demo.run, plans=plans))
    assert main(["demo", "--logdir", str(tmp_path / "demo"), "--seed", "2"]) == 0
    out, err = lines_of(capsys)
    assert any("dL/dz = -0.5" in line for line in out)
    assert any("exploding_gradient" in line for line in out)
    assert out[-2].endswith(f"tensorboard --logdir {tmp_path / 'demo' / '1'}")
    assert err[0] == "training: Sigmoid, at most 12 steps"
    assert main(["report", str(tmp_path / "demo" / "1" / "relu")]) == 0
    assert "nothing found" in lines_of(capsys)[0]


@pytest.mark.parametrize(("module", "package"), [("sklearn", "scikit-learn"), ("matplotlib", "matplotlib"), ("rich", "rich")])
def test_demo_without_its_extra_says_what_to_install(monkeypatch, capsys, module, package):
    for name in [name for name in sys.modules if name.startswith(("gradwatch.demo", f"{module}."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(gradwatch, "demo")
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["demo"]) == 2
    _, [line] = lines_of(capsys)
    assert line == f"gradwatch: the demo needs {package}, which is not installed: pip install 'gradwatch[demo]'"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGPIPE")
def test_a_reader_that_has_enough_is_no_error(run):
    command = [sys.executable, "-c", "import sys; from gradwatch.cli import main; sys.exit(main())", "report", str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_a_console_without_line_characters_gets_escapes(run):
    command = [sys.executable, "-c", "import sys; from gradwatch.cli import main; sys.exit(main())", "report", str(run)]
    done = subprocess.run(command, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "\\u2500" in done.stdout
    assert done.stderr == ""


def test_check_finds_what_was_found_and_says_so_by_its_status(tmp_path, capsys):
    recorded = record_vanishing_run(tmp_path / "run")
    assert main(["check", str(recorded)]) == 1
    assert "critical: vanishing_gradient at 0, step 0–59" in capsys.readouterr().out


def record_vanishing_run(folder):
    from gradwatch.detectors import VanishingGradient
    from gradwatch.writers.tensorboard import EventFileWriter

    writer = EventFileWriter(folder)
    for record in VanishingGradient.EXAMPLES["sick: a sigmoid stack"].records():
        writer.write(record)
    writer.close()
    return folder


def test_check_takes_other_thresholds(tmp_path, capsys):
    recorded = record_vanishing_run(tmp_path / "run")
    config = tmp_path / "thresholds.toml"
    config.write_text("[VanishingGradient]\nenabled = false\n\n[LossStagnant]\nenabled = false\n")
    assert main(["check", str(recorded), "--config", str(config)]) == 0
    assert capsys.readouterr().out == "nothing found in 60 records\n"


def test_check_says_what_is_wrong_with_its_thresholds(tmp_path, capsys):
    recorded = record_vanishing_run(tmp_path / "run")
    assert main(["check", str(recorded), "--config", str(tmp_path / "none.toml")]) == 2
    assert "none.toml" in capsys.readouterr().err
