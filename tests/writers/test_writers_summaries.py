"""The few numbers of a record, by hand."""

import math

import numpy as np
import pytest

from gradwatch import moments
from gradwatch.moments import COLUMNS
from gradwatch.records import Record, Site
from gradwatch.writers.summaries import SUMMARIES, Summarise, at_least, quantiles, root_of_squares

NAN, INF = float("nan"), float("inf")


def seen(*, rms, count=1, nonfinite=0):
    row = np.full(len(COLUMNS), NAN)
    row[[moments.COUNT, moments.CALLS, moments.RMS, moments.NONFINITE]] = count, 1, rms, nonfinite
    return row


def record(*pairs, **fields):
    sites, rows = zip(*pairs, strict=True)
    return Record(0, sites, np.array(rows, np.float32), **fields)


def weight(layer, tensor="parameter_grad"):
    return Site(f"{layer}.weight", tensor, "Linear", (2, 2))


def bias(layer, tensor="parameter_grad"):
    return Site(f"{layer}.bias", tensor, "Linear", (2,))


def band(scalars, name):
    return [scalars[f"gradwatch/{name}/{part}"] for part in ("min", "p10", "median", "p90", "max")]


def test_the_total_gradient_norm_is_that_of_all_parameters_together():
    # Four elements of 3 and one of 8: the norm is √(36 + 64).
    scalars = Summarise()(record((weight("a"), seen(rms=3, count=4)), (bias("a"), seen(rms=8))))
    assert scalars["gradwatch/gradient_norm/total"] == pytest.approx(10)


def test_quantiles_of_gradients_are_over_weights_where_there_are_any():
    eleven = [(weight(f"w{i}"), seen(rms=i)) for i in range(11)]
    assert band(Summarise()(record(*eleven, (bias("b"), seen(rms=99)))), "gradient_rms") == [0, 1, 5, 9, 10]
    assert band(Summarise()(record((bias("b"), seen(rms=99)))), "gradient_rms") == [99] * 5


def test_the_update_ratio_is_the_updates_rms_over_the_parameters():
    scalars = Summarise()(
        record(
            (weight("a", "parameter"), seen(rms=2)),
            (weight("a", "update"), seen(rms=0.5)),
            (weight("b", "update"), seen(rms=1)),  # of a parameter that was not seen
            (weight("zero", "parameter"), seen(rms=0)),
            (weight("zero", "update"), seen(rms=1)),
        )
    )
    assert band(scalars, "update_ratio") == [0.25] * 5


def test_a_layer_that_broke_shows_at_the_top_and_hides_no_other():
    scalars = Summarise()(record(*[(weight(f"w{i}"), seen(rms=i)) for i in range(9)], (weight("nan"), seen(rms=NAN, nonfinite=7))))
    assert band(scalars, "gradient_rms")[:4] == [0, 0, 4, 8]
    assert math.isnan(scalars["gradwatch/gradient_rms/max"])
    assert scalars["gradwatch/nonfinite/total"] == 7


def test_nonfinite_elements_that_were_noticed_but_not_counted_count_as_one():
    rows = moments.norm_rows([4, 4, 4], np.array([1.0, NAN, INF]))
    scalars = Summarise()(Record(0, (weight("a"), weight("b"), weight("c")), rows))
    assert scalars["gradwatch/nonfinite/total"] == 2


def test_what_was_not_measured_is_absent():
    unseen = record((weight("a"), moments.EMPTY), (Site("a", "activation"), moments.EMPTY))
    assert Summarise()(unseen) == {}
    assert Summarise()(Record(0, (), np.empty((0, len(COLUMNS)), np.float32))) == {}


def test_a_loss_of_nan_is_a_loss():
    empty = np.empty((0, len(COLUMNS)), np.float32)
    assert Summarise()(Record(0, (), empty, loss=0.5)) == {"gradwatch/loss": 0.5}
    assert math.isnan(Summarise()(Record(0, (), empty, loss=NAN))["gradwatch/loss"])


def test_one_object_serves_records_of_different_sites():
    summarise = Summarise()
    full = record((Site("a", "activation"), seen(rms=3)), (weight("a"), seen(rms=1)))
    light = record((weight("a"), seen(rms=2)))
    for _ in range(2):
        assert summarise(full)["gradwatch/activation_rms/max"] == 3
        assert "gradwatch/activation_rms/max" not in summarise(light)
        assert summarise(light)["gradwatch/gradient_rms/max"] == 2


def test_the_folds():
    assert quantiles(np.array([[2.0, 1.0, 3.0], [6.0, 5.0, 4.0]])).tolist() == [[1, 1, 2, 3, 3], [4, 4, 5, 6, 6]]
    assert root_of_squares(np.array([[3.0, 4.0], [0.0, 2.0]])).tolist() == [[5], [2]]
    assert root_of_squares(np.array([3e38, 4e38])) == pytest.approx(5e38)
    assert at_least(np.array([[2.0, NAN], [2.0, 0.0]])).tolist() == [[3], [2]]


def test_every_summary_names_its_scalars_once():
    tags = [tag for summary in SUMMARIES for tag in summary.tags]
    assert len(tags) == len(set(tags)) == 17
