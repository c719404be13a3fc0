"""Event files through TensorBoard's Python loader: the same as gradwatch reads them by itself, and told what cannot be read."""

import json

import numpy as np
import pytest
from recorded_runs import finding, healthy, history, record, sick, sites, written
from serving import provider
from tensorboard.context import RequestContext

import gradwatch
from gradwatch import codec
from gradwatch.eventfiles import EventFile
from gradwatch.report.recorded import of_history
from gradwatch.tensorboard_plugin import answers
from gradwatch.tensorboard_plugin.provider import Reader, Scope, Unknown
from gradwatch.tensorboard_plugin.shown import SHOWN

SCOPE = Scope(RequestContext(), "")


def reader(logdir, samples=5000):
    return Reader(provider(logdir, samples), samples)


def everything(run):
    grids = [answers.grid(run, entry, first=None, last=None, width=50) for entry in SHOWN.values()]
    arrays = [[grid.rows, grid.steps.tolist(), grid.values.tolist(), grid.flags.tolist()] for grid in grids]
    told = [answers.layout(run), answers.table(run), answers.incidents(run), answers.loss(run)]
    return json.dumps([told, [answers.series(run, layer) for layer in run.layers], arrays])


@pytest.mark.parametrize("recorded", [sick(), healthy()], ids=["sick", "healthy"])
def test_what_tensorboard_read_is_what_was_recorded(tmp_path, recorded):
    folder = written(recorded, tmp_path / "run")
    assert everything(reader(tmp_path).run(SCOPE, "run")) == everything(of_history(recorded))
    assert everything(of_history(gradwatch.load(folder))) == everything(of_history(recorded))


def test_a_run_that_was_resumed_is_that_of_codec_load(tmp_path):
    written(healthy(steps=30), tmp_path / "run")
    of = sites(["head"], full=False)
    again = history([record(step, of, rms=7.0) for step in range(17, 25)], [finding("stale_gradient", "head", 18, 20)])
    folder = written(again, tmp_path / "run")
    run = reader(tmp_path).run(SCOPE, "run")
    loaded = of_history(gradwatch.load(folder))
    assert run.last_step == 24
    assert everything(run) == everything(loaded)


def test_two_watches_in_one_directory_are_both_shown(tmp_path):
    for layer in ("generator", "critic"):
        written(healthy(steps=12, layers=[layer]), tmp_path / "run")
    run = reader(tmp_path).run(SCOPE, "run")
    told = answers.grid(run, SHOWN["gradient"], first=None, last=None, width=100)
    assert set(told.rows) == {"generator", "critic"}
    assert told.steps.tolist() == list(range(12))
    assert not told.flags.any()


def test_runs_are_listed_in_the_order_that_people_count_in(tmp_path):
    for name in ("run10", "run9", "a/b", "other"):
        written(healthy(steps=2), tmp_path / name)
    EventFile(str(tmp_path)).close()
    listed = reader(tmp_path).runs(SCOPE)
    assert [run["name"] for run in listed] == ["a/b", "other", "run9", "run10"]
    assert {run["lastStep"] for run in listed} == {1}


def test_a_run_is_read_again_only_when_tensorboard_has_something_newer(tmp_path):
    written(healthy(steps=3), tmp_path / "run")
    source = provider(tmp_path)
    reads = Reader(source)
    first = reads.run(SCOPE, "run")
    assert reads.run(SCOPE, "run") is first
    written(healthy(steps=5), tmp_path / "run")
    source._multiplexer.AddRunsFromDirectory(str(tmp_path))
    source._multiplexer.Reload()
    assert reads.run(SCOPE, "run").last_step == 4


def test_what_tensorboard_has_dropped_is_said(tmp_path):
    written(healthy(steps=40), tmp_path / "run")
    run = reader(tmp_path, samples=10).run(SCOPE, "run")
    assert run.records < 40
    assert run.last_step == 39
    assert [note for note in answers.layout(run)["notes"] if "--samples_per_plugin gradwatch=0" in note]


def test_a_run_that_is_not_there_is_unknown(tmp_path):
    written(healthy(steps=2), tmp_path / "run")
    for name in ("nowhere", "../run", "/etc/passwd", ""):
        with pytest.raises(Unknown, match="no run called"):
            reader(tmp_path).run(SCOPE, name)


class Forged:
    """An event file with values that nobody of gradwatch would write."""

    def __init__(self, folder):
        folder.mkdir(exist_ok=True)
        self.file = EventFile(str(folder))

    def add(self, step, values, wall_time=1.0):
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
        from tensorboard.util.tensor_util import make_tensor_proto

        about = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="gradwatch"), data_class=DATA_CLASS_TENSOR)
        made = [Summary.Value(tag=tag, tensor=make_tensor_proto(value), metadata=about) for tag, value in values.items()]
        self.file.add_event(Event(step=step, wall_time=wall_time, summary=Summary(value=made)))

    def close(self):
        self.file.close()


def forged(folder, *events):
    file = Forged(folder)
    for step, values in enumerate(events):
        file.add(step, values, wall_time=step + 1.0)
    file.close()


def test_another_layout_is_said_and_not_guessed(tmp_path):
    forged(tmp_path / "run", {"gradwatch/v9/abc/rms": np.ones(3, np.float32)})
    assert [run["name"] for run in reader(tmp_path).runs(SCOPE)] == ["run"]
    run = reader(tmp_path).run(SCOPE, "run")
    assert run.records == 0
    assert run.notes == ["records in layout v9 are not shown, as this gradwatch reads v1; use the version that recorded them"]


def test_tags_of_somebody_else_are_no_run(tmp_path):
    forged(tmp_path / "run", {"my/own/tag": np.ones(3, np.float32), "gradwatch/findings": "text"})
    assert reader(tmp_path).runs(SCOPE) == []


def test_records_without_their_sites_are_said(tmp_path):
    step = np.zeros(len(codec.STEP))
    forged(tmp_path / "run", {"gradwatch/v1/abc/step": step, "gradwatch/v1/abc/rms": np.ones(3, np.float32)})
    run = reader(tmp_path).run(SCOPE, "run")
    assert run.records == 0
    assert "was lost, or is damaged" in run.notes[0]


def test_damaged_values_are_left_out_and_said(tmp_path):
    of = sites(["a"], full=False)
    root = codec.Schema(of).root
    step, rms, count = np.zeros(len(codec.STEP)), np.full(2, 3, np.float32), np.full(2, 1, np.float32)
    good = {f"{root}/step": step, f"{root}/rms": rms, f"{root}/count": count, f"{root}/nonfinite": np.zeros(2, np.float32)}
    forged(
        tmp_path / "run",
        good | {f"{root}/schema": codec.Schema(of).to_json()},
        good | {f"{root}/rms": np.ones(5, np.float32)},
        good | {f"{root}/rms": np.array(["x", "y"], object)},
        good | {f"{root}/step": np.zeros(2)},
        {f"{root}/step": step},
        good,
    )
    run = reader(tmp_path).run(SCOPE, "run")
    told = answers.grid(run, SHOWN["gradient"], first=None, last=None, width=100)
    assert told.steps.tolist() == [0, 5]
    assert told.values.tolist() == [[3, 3]]
    notes = " ".join(answers.layout(run)["notes"])
    assert "1 damaged records" in notes
    assert "2 damaged values" in notes


def test_records_of_an_older_and_of_a_newer_version_are_read(tmp_path):
    of = sites(["a"], full=False)
    root = codec.Schema(of).root
    oldest = np.array([0.5, 1, 0, 1, 1, np.nan])  # before the scale of the loss was stored
    columns = {f"{root}/rms": np.full(2, 3, np.float32), f"{root}/count": np.full(2, 1, np.float32)}
    first = columns | {f"{root}/step": oldest, f"{root}/schema": codec.Schema(of).to_json()}
    forged(tmp_path / "run", first, columns | {f"{root}/step": np.append(oldest, [1024, 7, 8])})
    run = reader(tmp_path).run(SCOPE, "run")
    assert run.blocks[0].about("scale").tolist() == pytest.approx([np.nan, 1024], nan_ok=True)
    assert answers.loss(run)["values"] == [0.5, 0.5]
    assert answers.grid(run, SHOWN["gradient"], first=None, last=None, width=9).values.tolist() == [[3, 3]]


def test_a_truncated_file_is_shown_as_far_as_it_goes(tmp_path):
    folder = written(healthy(steps=10), tmp_path / "run")
    [file] = folder.iterdir()
    file.write_bytes(file.read_bytes()[:-2000])
    run = reader(tmp_path).run(SCOPE, "run")
    assert 0 < run.last_step < 9


def test_a_column_that_is_too_large_is_read_in_part_and_this_is_said(tmp_path, monkeypatch):
    written(healthy(steps=40, layers=["a"]), tmp_path / "run")
    monkeypatch.setattr("gradwatch.tensorboard_plugin.provider.MESSAGE", 10 * 4 * 2)  # ten light records
    monkeypatch.setattr("gradwatch.tensorboard_plugin.provider.CHEAP", 0)
    run = reader(tmp_path).run(SCOPE, "run")
    told = answers.grid(run, SHOWN["gradient"], first=None, last=None, width=100)
    assert 10 <= len(told.steps) < 40
    assert told.steps[-1] == 39
    assert not told.flags.any()
    assert [note for note in answers.layout(run)["notes"] if "cannot be read at once" in note]
    assert answers.table(run)["rows"][0]["last"]["gradient"]["step"] == 39


def test_memory_is_bounded(tmp_path, monkeypatch):
    written(healthy(steps=20), tmp_path / "run")
    reads = reader(tmp_path)
    run = reads.run(SCOPE, "run")
    monkeypatch.setattr("gradwatch.tensorboard_plugin.provider.KEPT", 1)
    everything(run)
    assert len(reads._columns._kept) == 1
