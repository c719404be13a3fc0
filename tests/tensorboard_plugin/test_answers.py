"""What the page is told of a run whose numbers the test has chosen."""

import json
import math

import numpy as np
import pytest
from recorded_runs import SICK, STEPS, finding, healthy, history, hostile, record, sick, sites

from gradwatch.octaves import EXPONENTS
from gradwatch.records import Site
from gradwatch.report.recorded import of_history
from gradwatch.tensorboard_plugin import answers, cells
from gradwatch.tensorboard_plugin.shown import FIRST, SHOWN


def grid(run, statistic, first=None, last=None, width=1000, layer=None):
    return answers.grid(run, SHOWN[statistic], first=first, last=last, width=width, layer=layer)


def layer_called(run, name):
    return next(layer for layer in run.layers if layer.name == name)


@pytest.fixture(scope="module")
def run():
    return of_history(sick())


def test_every_answer_is_json(run):
    for told in (answers.layout(run), answers.table(run), answers.incidents(run), answers.loss(run)):
        assert json.loads(json.dumps(told, allow_nan=False)) == json.loads(json.dumps(told))
    json.dumps(answers.series(run, run.layers[0]), allow_nan=False)


def test_the_layout_has_layers_in_forward_order_and_what_was_measured(run):
    told = answers.layout(run)
    assert [layer["name"] for layer in told["layers"]] == list(SICK)
    assert told["layers"][0] == {
        "name": "encoder.0",
        "type": "Linear",
        "tensors": ("activation", "activation_grad", "input_grad", "parameter", "parameter_grad", "update"),
        "parameters": ("encoder.0.weight", "encoder.0.bias"),
        "weight": "encoder.0.weight",
    }
    assert (told["firstStep"], told["lastStep"], told["records"], told["full"]) == (0, STEPS - 1, STEPS, 10)
    offered = [entry["id"] for entry in told["statistics"]]
    assert offered[0] == "gradient"
    assert {"activation", "valve", "update_ratio", "mean", "parameter_grad.norm"} <= set(offered)
    assert not {"closed", "dead", "alike"} & set(offered)  # they were never measured


def test_everything_in_the_table_of_statistics_can_be_shown():
    assert {entry.statistic for entry in SHOWN.values()} >= {"std", "norm", "attenuation", "update_ratio"}
    for entry in SHOWN.values():
        assert entry.describe.endswith(".")
        assert entry.scale in {"log", "share", "linear"}


def test_the_grid_shows_numbers_zeros_and_nan_where_they_were_recorded(run):
    told = grid(run, "gradient")
    assert told.rows == SICK
    assert told.steps.tolist() == list(range(STEPS))
    flags = np.zeros((3, STEPS))
    flags[1, 40:45], flags[2, 20] = cells.NAN, cells.ZERO
    np.testing.assert_array_equal(told.flags, flags)
    values = np.tile(np.float32([[1e-6], [1e-3], [1]]), STEPS)
    values[flags != 0] = 0
    np.testing.assert_array_equal(told.values, values)


def test_records_are_pooled_into_columns_and_nothing_is_lost(run):
    told = grid(run, "gradient", width=7)
    assert told.steps.tolist() == [0, 9, 18, 26, 35, 43, 52]
    assert told.last.tolist() == [8, 17, 25, 34, 42, 51, 59]
    assert told.flags[1].tolist() == [0, 0, 0, 0, cells.NAN, cells.NAN, 0]
    assert told.flags[2].tolist() == [0] * 7  # the single zero has neighbours that are none


def test_a_stretch_of_steps_is_shown_by_itself(run):
    told = grid(run, "gradient", first=18, last=22)
    assert told.steps.tolist() == [18, 19, 20, 21, 22]
    assert told.flags[2].tolist() == [0, 0, cells.ZERO, 0, 0]
    assert grid(run, "gradient", first=100).steps.tolist() == []


def test_what_only_full_records_hold_has_only_their_columns(run):
    assert grid(run, "activation").steps.tolist() == [0, 10, 20, 30, 40, 50]
    assert grid(run, "update_ratio").steps.tolist() == [0, 10, 20, 30, 40, 50]


def test_below_a_layer_stand_its_parameters(run):
    told = grid(run, "gradient", layer=layer_called(run, "encoder.1"))
    assert told.rows == ("encoder.1.weight", "encoder.1.bias")
    assert told.values[:, 0].tolist() == [np.float32(1e-3), 1]
    assert grid(run, "activation", layer=layer_called(run, "encoder.1")).rows == ("encoder.1",)


def test_ratios_are_those_of_the_table_of_statistics():
    of = sites(["a"])
    values = {("a.weight", "parameter"): 4.0, ("a.weight", "update"): 0.5, ("a", "activation_grad"): 10.0, ("a", "input_grad"): 2.0}
    run = of_history(history([record(0, of, values)]))
    assert grid(run, "update_ratio").values.tolist() == [[0.125]]
    assert grid(run, "valve").values[0, 0] == pytest.approx(0.2)


def test_a_ratio_to_an_exact_zero_is_not_shown_as_infinite():
    of = sites(["a"])
    zero = record(0, of, {("a.weight", "parameter"): 0.0})
    nan = record(1, of, {("a.weight", "update"): math.nan})
    assert grid(of_history(history([zero, nan])), "update_ratio").flags.tolist() == [[cells.NAN]]  # step 0 has no column
    run = of_history(history([zero, nan]))
    assert grid(run, "update_ratio").steps.tolist() == [1]


def test_a_mean_keeps_its_sign_and_what_was_not_measured_is_absent():
    of = sites(["a", "b"])
    values = {("a", "activation"): {"rms": 1.0, "mean": -0.5}, ("b", "activation"): {"rms": 1.0, "mean": math.nan}}
    told = grid(of_history(history([record(0, of, values)])), "mean")
    assert told.flags.tolist() == [[cells.VALUE], [cells.ABSENT]]
    assert told.values[0, 0] == -0.5


def test_a_layer_that_was_not_seen_is_absent_and_not_zero():
    of = sites(["a", "b"])
    run = of_history(history([record(0, of, {("b.weight", "parameter_grad"): None, ("b.bias", "parameter_grad"): None})]))
    assert grid(run, "gradient").flags.tolist() == [[cells.VALUE], [cells.ABSENT]]


def test_where_the_weight_is_frozen_the_bias_stands_for_the_layer():
    of = (Site("a", "activation", "Linear"), Site("a.weight", "parameter", "Linear", (4, 3)))
    of += (Site("a.bias", "parameter", "Linear", (4,)), Site("a.bias", "parameter_grad", "Linear", (4,)))
    run = of_history(history([record(0, of, {("a.bias", "parameter_grad"): 3.0})]))
    assert grid(run, "gradient").values.tolist() == [[3.0]]
    assert run.layers[0].weight == "a.weight"


def test_alternating_optimizers_have_rows_of_their_own():
    of = {0: sites(["generator"], full=False), 1: sites(["critic"], full=False)}
    run = of_history(history([record(step, of[step % 2]) for step in range(6)]))
    told = grid(run, "gradient")
    assert dict(zip(told.rows, (told.flags == cells.VALUE).tolist(), strict=True)) == {
        "generator": [True, False] * 3,
        "critic": [False, True] * 3,
    }


def test_layers_of_every_record_are_merged_in_forward_order():
    first, later = sites(["a", "c"]), sites(["a", "b", "c", "d"])
    run = of_history(history([record(0, first), record(1, later), record(2, sites(["z", "a"]))]))
    assert [layer.name for layer in run.layers] == ["z", "a", "b", "c", "d"]


def test_a_series_is_every_curve_of_a_layer(run):
    told = answers.series(run, layer_called(run, "encoder.1"))
    curves = {(curve["id"], curve["name"]): curve for curve in told["series"]}
    assert {("gradient", "encoder.1.weight"), ("gradient", "encoder.1.bias"), ("activation", "encoder.1")} <= set(curves)
    curve = curves["gradient", "encoder.1.weight"]
    assert curve["steps"] == list(range(STEPS))
    assert curve["values"][38:46] == [0.001, 0.001, None, None, None, None, None, 0.001]
    assert curve["flags"][40:45] == [cells.NAN] * 5
    assert told["latest"]["gradient"] == {"value": 0.001, "flag": cells.VALUE, "step": STEPS - 1}


def test_the_table_says_how_each_layer_is(run):
    rows = {row["layer"]: row for row in answers.table(run)["rows"]}
    assert list(rows) == list(SICK)
    assert {name: (row["status"], row["kinds"], row["over"]) for name, row in rows.items()} == {
        "encoder.0": ("critical", ["vanishing_gradient"], []),
        "encoder.1": ("–", [], ["non_finite"]),
        "head": ("–", [], ["not_updated"]),
    }
    assert rows["encoder.0"]["last"]["gradient"] == {"value": 1e-6, "flag": cells.VALUE, "step": STEPS - 1}
    assert rows["encoder.0"]["last"]["activation"]["step"] == 50
    spark = rows["encoder.1"]["spark"]["gradient"]
    assert spark["values"].count(None) == 5
    assert len(spark["flags"]) == 60


def test_a_run_without_findings_is_ok_and_a_layer_without_numbers_was_not_observed():
    of = sites(["a", "b"])
    unseen = {(site.layer, site.tensor): None for site in of if site.layer.startswith("b")}
    rows = answers.table(of_history(history([record(0, of, unseen)])))["rows"]
    assert [row["status"] for row in rows] == ["ok", "not observed"]


def test_incidents_are_told_with_the_row_that_they_belong_to(run):
    told = answers.incidents(run)
    assert [(one["cause"]["kind"], one["cause"]["row"]) for one in told] == [
        ("vanishing_gradient", "encoder.0"),
        ("non_finite", "encoder.1"),
    ]
    assert [(one["kind"], one["layer"], one["row"]) for one in told[0]["consequences"]] == [("not_updated", "head.weight", "head")]
    assert told[1]["cause"]["evidence"] == {"gradient": "NaN"}


def test_the_loss_is_told_with_what_was_skipped_and_clipped():
    of = sites(["a"])
    losses = [(0, 2.0, math.nan), (1, None, 0.5), (2, math.inf, 1.0), (3, -1.0, math.nan)]
    run = of_history(history([record(step, of, loss=loss, clip=clip, skipped=step == 2) for step, loss, clip in losses]))
    told = answers.loss(run)
    assert told["steps"] == [0, 2, 3]
    assert told["values"] == [2.0, None, -1.0]
    assert told["flags"] == [cells.VALUE, cells.INF, cells.VALUE]
    assert told["skipped"] == [2]
    assert told["clip"] == {"steps": [1, 2], "values": [0.5, 1.0], "flags": [cells.VALUE, cells.VALUE]}
    assert answers.loss(of_history(healthy()))["clip"] is None


def test_a_long_curve_is_thinned_and_keeps_its_spike():
    of = sites(["a"], full=False)
    records = [record(step, of, {("a.weight", "parameter_grad"): 100.0 if step == 1234 else 1.0}) for step in range(3000)]
    curve = answers.series(of_history(history(records)), of_history(history(records)).layers[0])["series"][0]
    assert len(curve["steps"]) == answers.POINTS
    assert max(curve["values"]) == 100


def test_an_empty_run_has_an_answer_to_everything():
    run = of_history(history([], [finding("loss_stagnant", "loss", 0)]))
    assert answers.layout(run)["layers"] == []
    assert answers.table(run) == {"rows": []}
    assert answers.loss(run)["steps"] == []
    assert answers.incidents(run)[0]["cause"]["row"] is None
    assert grid(run, "gradient").values.shape == (0, 0)


def test_names_are_told_as_they_are():
    run = of_history(hostile())
    assert json.loads(json.dumps(answers.layout(run)))["layers"][0]["name"] == "<img src=x onerror=alert(1)>"
    assert set(answers.table(run)["rows"][0]["last"]) <= {entry.id for entry in FIRST}


def test_histograms_are_told_as_shares_of_the_octaves_in_use():
    of = sites(["fc"])
    counts = np.zeros((len(of), len(EXPONENTS)), np.float32)
    counts[:, EXPONENTS.index(-3) : EXPONENTS.index(0)] = 6, 0, 2
    counts[1] = np.nan  # dL/da was not counted
    counted = [record(step, of, histograms=counts * (step != 10)) for step in (0, 10, 20)]  # all of step 10 is zero
    run = of_history(history([*counted, record(30, of)]))
    told = answers.series(run, run.layers[0])["histograms"]
    assert [one["tensor"] for one in told][:2] == ["activation", "input_grad"]
    assert told[0] == {"tensor": "activation", "name": "fc", "first": -3, "steps": [0, 20], "shares": [[0.75, 0, 0.25]] * 2}
    assert answers.series(of_history(history([record(0, of)])), run.layers[0])["histograms"] == []


def test_a_layer_that_joins_later_leaves_the_histograms_of_the_others_whole():
    few, more = sites(["fc"]), sites(["fc", "head"])
    counts = np.ones((len(more), len(EXPONENTS)), np.float32)
    records = [record(step, of, histograms=counts[: len(of)]) for step, of in ((0, few), (10, more), (20, few))]
    run = of_history(history(records))
    fc = next(layer for layer in run.layers if layer.name == "fc")
    told = answers.series(run, fc)["histograms"]
    assert len({(one["tensor"], one["name"]) for one in told}) == len(told)
    assert all(one["steps"] == [0, 10, 20] for one in told)
