"""Tables that pandas reads back to the last bit."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwatch import moments
from gradwatch.errors import InvalidSetting, LogdirError
from gradwatch.history import History
from gradwatch.records import Finding, Record, Site
from gradwatch.writers import table
from gradwatch.writers.table import TableWriter, export

NAN = float("nan")
SITES = (
    Site("fc", "activation", "Linear"),
    Site("fc.weight", "parameter", "Linear", (2, 2)),
    Site("fc.weight", "update", "Linear", (2, 2)),
)
HOSTILE = ["a,b", 'quo"te', "слой", "'=1+1", " space ", "NaN", "null", "\\"]


def record(step, sites=SITES, seed=0):
    rows = np.random.default_rng(seed + step).lognormal(sigma=20, size=(len(sites), len(moments.COLUMNS))).astype(np.float32)
    rows[0, moments.ZEROS], rows[0, moments.MAX], rows[0, moments.MIN] = NAN, np.inf, -np.inf
    return Record(step, sites, rows)


def history(*records):
    kept = History()
    for one in records:
        kept.append(one)
    return kept


def read(path):
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    # By default pandas takes a layer called "NaN" or "null" for a missing one.
    return pd.read_csv(path, keep_default_na=False, na_values={name: [""] for name in table.COLUMNS[3:]})


def assert_same(frame, expected):
    assert list(frame.columns) == list(expected.columns)
    for name in ("step", "layer", "tensor"):
        assert frame[name].tolist() == expected[name].tolist()
    for name in table.COLUMNS[3:]:
        np.testing.assert_array_equal(frame[name].to_numpy(np.float64), expected[name].to_numpy(np.float64), strict=True)


@pytest.fixture(params=["run.csv", "run.parquet"])
def path(request, tmp_path):
    if request.param.endswith("parquet"):
        pytest.importorskip("pyarrow")
    return tmp_path / "new" / request.param


def test_a_table_holds_what_to_pandas_says(path):
    run = [record(step) for step in range(5)]
    writer = TableWriter(path)
    for one in run:
        writer.write(one)
        writer.report(Finding("dead_units", "fc", one.step, one.step, "warning"))
    writer.close()
    assert_same(read(path), history(*run).to_pandas())


def test_a_history_is_exported_and_replaces_what_was_there(path):
    export(history(record(0), record(1)), path)
    export(history(record(2), record(3)), path)
    assert_same(read(path), history(record(2), record(3)).to_pandas())


def test_an_empty_history_is_a_table_without_rows(path):
    export(History(), path)
    frame = read(path)
    assert list(frame.columns) == list(table.COLUMNS)
    assert len(frame) == 0


def test_names_of_any_kind_survive(path):
    export(history(record(0, tuple(Site(name, "activation") for name in HOSTILE))), path)
    assert read(path)["layer"].tolist() == HOSTILE


def test_control_characters_in_a_name_do_not_break_a_row(path):
    export(history(record(0, tuple(Site(name, "activation") for name in ("a\nb", "a\rb", "\x00")))), path)
    assert read(path)["layer"].tolist() == ["a\\nb", "a\\rb", "\\x00"]


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.floats(0, width=32), min_size=len(moments.COLUMNS) - 1, max_size=len(moments.COLUMNS) - 1),
    st.sampled_from([".csv", ".parquet"]),
)
def test_every_number_survives(rest, suffix):
    row = [1, *rest]  # the first column is a count
    run = history(Record(0, SITES[:1], np.array([row], np.float32)))
    with TemporaryDirectory() as directory:
        export(run, Path(directory) / f"run{suffix}")
        assert_same(read(Path(directory) / f"run{suffix}"), run.to_pandas())


def test_rows_of_a_csv_file_are_there_as_soon_as_they_are_written(tmp_path):
    writer = TableWriter(tmp_path / "run.csv")
    writer.write(record(0))
    assert len(read(tmp_path / "run.csv")) == 3
    writer.close()


def test_a_csv_file_is_continued_under_one_header(tmp_path):
    path = tmp_path / "run.csv"
    for step in range(2):
        writer = TableWriter(path)
        writer.write(record(step))
        writer.close()
    assert_same(read(path), history(record(0), record(1)).to_pandas())


def test_a_row_at_which_a_killed_run_stopped_is_removed(tmp_path):
    path = tmp_path / "run.csv"
    export(history(record(0)), path)
    with path.open("a") as file:
        file.write("1,fc,activation,0.1234")
    writer = TableWriter(path)
    writer.write(record(1))
    writer.close()
    assert_same(read(path), history(record(0), record(1)).to_pandas())


def test_a_csv_file_with_other_columns_is_left_alone(tmp_path):
    path = tmp_path / "notes.csv"
    path.write_text("my,own,data\n1,2")
    with pytest.raises(InvalidSetting, match=r"notes\.csv' exists and has other columns; give another path"):
        TableWriter(path)
    assert path.read_text() == "my,own,data\n1,2"


def test_a_parquet_file_that_exists_is_left_alone(tmp_path):
    pytest.importorskip("pyarrow")
    export(history(record(0)), tmp_path / "run.parquet")
    with pytest.raises(InvalidSetting, match=r"run\.parquet' exists, and a Parquet file cannot be continued; give another path"):
        TableWriter(tmp_path / "run.parquet")
    assert len(read(tmp_path / "run.parquet")) == 3


def test_a_parquet_file_has_few_row_groups(tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(table, "ROWS_PER_GROUP", 30)
    export(history(*[record(step) for step in range(25)]), tmp_path / "run.parquet")
    assert parquet.ParquetFile(tmp_path / "run.parquet").metadata.num_row_groups == 3


def test_another_suffix_is_refused(tmp_path):
    for name in ("run.xlsx", "run"):
        with pytest.raises(InvalidSetting, match=r"must end in \.csv or \.parquet, and ends in"):
            TableWriter(tmp_path / name)


def test_without_pyarrow_parquet_is_refused_with_a_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InvalidSetting, match=r"needs pyarrow; install gradwatch\[parquet\], or give a \.csv path"):
        TableWriter(tmp_path / "run.parquet")


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    for suffix in (".csv", ".parquet"):
        with pytest.raises(LogdirError, match=f"run{suffix}' cannot be written: .*; give a path that can"):
            TableWriter(tmp_path / "file" / f"run{suffix}")
        with pytest.raises(LogdirError, match=f"run{suffix}' cannot be written"):
            export(History(), tmp_path / "file" / f"run{suffix}")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_full_disk_is_named(tmp_path):
    (tmp_path / "run.csv").symlink_to("/dev/full")
    with pytest.raises(LogdirError, match=r"run\.csv' cannot be written: .*No space left on device"):
        TableWriter(tmp_path / "run.csv")
