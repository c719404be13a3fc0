"""A history: bounded, comparable, and a tidy frame."""

import logging

import numpy as np
import pandas
import pytest

from gradwatch import Finding, History, Record, Site, moments, statistics

NAN = float("nan")

SITES = (
    Site("act", "activation_grad", "Tanh"),
    Site("act", "input_grad", "Tanh"),
    Site("fc.weight", "parameter", "Linear", (2, 2)),
    Site("fc.weight", "update", "Linear", (2, 2)),
)


def record(step, *rms, sites=SITES, **fields):
    """A record in which each site is one tensor of four elements; one whose rms is None was not seen."""
    rows = np.tile(moments.EMPTY, (len(sites), 1))
    for row, value in zip(rows, rms, strict=True):
        if value is not None:
            row[[moments.COUNT, moments.CALLS, moments.RMS]] = 4, 1, value
    return Record(step, sites, rows, **fields)


def history(*records, max_bytes=2**20):
    filled = History(max_bytes)
    for item in records:
        filled.append(item)
    return filled


ROW_BYTES = moments.EMPTY.nbytes


def test_records_in_order():
    run = history(*(record(step, 1, 1, 1, 1) for step in (3, 4, 7)))
    assert len(run) == 3
    assert [item.step for item in run] == [3, 4, 7]
    assert run[0].step == run.first_step == 3
    assert run[-1].step == 7
    with pytest.raises(IndexError):
        run[3]


def test_a_full_history_keeps_the_newest_records_and_says_so_once(caplog):
    caplog.set_level(logging.INFO, "gradwatch")
    run = history(*(record(step, 1, 1, 1, 1) for step in range(10)), max_bytes=3 * 4 * ROW_BYTES)

    assert [item.step for item in run] == [7, 8, 9]
    assert run.dropped == 7
    assert run.first_step == 0
    assert len(caplog.messages) == 1
    assert "from step 3 on the oldest records leave memory" in caplog.messages[0]
    assert repr(run) == "History(3 records, steps 7 to 9, 7 older ones dropped)"
    assert run.to_pandas().attrs["dropped"] == 7


def test_room_is_counted_in_bytes_of_records_of_any_size(caplog):
    light = SITES[2:3]
    run = history(
        record(0, 1, 1, 1, 1),
        *(record(step, 1, sites=light) for step in (1, 2)),
        record(3, 1, 1, 1, 1),
        max_bytes=6 * ROW_BYTES,
    )
    assert [item.step for item in run] == [1, 2, 3]


def test_the_newest_record_stays_even_where_it_is_too_large():
    run = history(record(0, 1, 1, 1, 1), record(1, 1, 1, 1, 1), max_bytes=1)
    assert [item.step for item in run] == [1]
    assert run.dropped == 1


def test_a_run_that_fits_drops_nothing_and_is_silent(caplog):
    caplog.set_level(logging.DEBUG, "gradwatch")
    run = history(*(record(step, 1, 1, 1, 1) for step in range(50)))
    assert run.dropped == 0
    assert not caplog.messages


def test_trends_outlive_the_records_they_come_from():
    run = history(*(record(step, 1, 1, 10.0, 1) for step in range(10)), max_bytes=1)
    weight = run.trends.sites.index(SITES[2])
    assert run.trends.seen[weight] == 10
    assert run.trends.usual[weight] == pytest.approx(1.0)  # log10 of the rms of the nine records before


def test_histories_are_compared_by_what_they_hold():
    finding = Finding("non_finite", "fc", 0, 1, "critical")
    one, other = history(record(0, 1, 1, 1, None)), history(record(0, 1, 1, 1, None), max_bytes=2**10)
    assert one == other
    other.findings.append(finding)
    assert one != other
    one.findings.append(finding)
    assert one == other
    one.append(record(1, 1, 1, 1, 1))
    assert one != other
    assert one != [record(0, 1, 1, 1, None)]


def test_a_short_description():
    assert repr(history()) == "History(0 records, empty)"
    assert repr(history(record(5, 1, 1, 1, 1))) == "History(1 records, steps 5 to 5)"


def test_the_frame_has_one_row_for_each_step_layer_and_tensor():
    frame = history(record(0, 0.5, 0.125, 2.0, 0.01), record(10, 0.25, 0.25, 2.5, 0.0)).to_pandas()

    assert list(frame.columns) == ["step", "layer", "tensor", *statistics.STATISTICS, *statistics.RATIOS]
    assert list(frame.columns[3:8]) == ["count", "calls", "mean", "std", "rms"]
    assert list(frame.index) == list(range(8))
    assert not frame.duplicated(["step", "layer", "tensor"]).any()
    assert list(frame["step"]) == [0] * 4 + [10] * 4
    assert list(zip(frame["layer"], frame["tensor"], strict=True)) == [(site.layer, site.tensor) for site in SITES] * 2

    by_tensor = frame.pivot_table(index="tensor", columns="step", values=["rms", "norm", "attenuation", "update_ratio"])
    np.testing.assert_allclose(by_tensor.loc["activation_grad", "rms"], [0.5, 0.25])
    np.testing.assert_allclose(by_tensor.loc["activation_grad", "norm"], [1.0, 0.5])  # four elements
    np.testing.assert_allclose(by_tensor.loc["input_grad", "attenuation"], [0.25, 1.0])
    np.testing.assert_allclose(by_tensor.loc["update", "update_ratio"], [0.005, 0.0])
    assert frame.loc[frame["tensor"] != "update", "update_ratio"].isna().all()
    assert frame.loc[frame["tensor"] != "input_grad", "attenuation"].isna().all()


def test_the_frame_leaves_out_what_was_not_seen():
    frame = history(record(0, 0.5, None, 2.0, None), record(1, None, None, None, None)).to_pandas()
    assert list(zip(frame["step"], frame["tensor"], strict=True)) == [(0, "activation_grad"), (0, "parameter")]
    assert frame["attenuation"].isna().all()


def test_columns_keep_their_types_whatever_was_measured():
    frames = [
        history(*records).to_pandas()
        for records in (
            [record(0, 1, 1, 1, 1)],
            [record(0, None, None, None, None), record(1, 1, 1, 1, 1)],
            [record(0, 1, 1, 1, 1), record(1, NAN, 1, 1, 1)],
            [record(0, sites=()), record(1, 1, 1, 1, 1)],
        )
    ]
    for frame in frames:
        assert frame["step"].dtype == np.int64
        assert all(frame[name].dtype == np.float64 for name in frame.columns[3:])


def test_an_empty_history_is_an_empty_frame_with_the_same_columns():
    frame = history().to_pandas()
    assert len(frame) == 0
    assert list(frame.columns) == ["step", "layer", "tensor", *statistics.STATISTICS, *statistics.RATIOS]
    assert frame.attrs["dropped"] == 0
    pandas.concat([frame, history(record(0, 1, 1, 1, 1)).to_pandas()])


def test_losses_are_those_that_were_told():
    run = history(record(0, 1, 1, 1, 1, loss=2.0), record(1, 1, 1, 1, 1), record(4, 1, 1, 1, 1, loss=NAN))
    steps, losses = run.losses()
    np.testing.assert_array_equal(steps, [0, 4])
    np.testing.assert_array_equal(losses, [2.0, NAN])
    assert [part.shape for part in history().losses()] == [(0,), (0,)]
