"""What people read."""

from dataclasses import replace

import numpy as np
import pytest

from gradwatch import Finding, History, Record, Site, incidents, moments, summary

SITES = (
    Site("fc1", "activation", "Linear"),
    Site("fc1", "activation_grad", "Linear"),
    Site("fc1.weight", "parameter", "Linear", (4, 3)),
    Site("fc1.weight", "parameter_grad", "Linear", (4, 3)),
    Site("fc1.weight", "update", "Linear", (4, 3)),
    Site("fc1.bias", "parameter", "Linear", (4,)),
    Site("fc1.bias", "parameter_grad", "Linear", (4,)),
    Site("fc1.bias", "update", "Linear", (4,)),
    Site("act", "activation", "Sigmoid"),
    Site("act", "activation_grad", "Sigmoid"),
    Site("act", "input_grad", "Sigmoid"),
)
RMS = (0.5, 1e-9, 0.25, 2e-8, 0.005, 0.0, 3.0, 7.0, 0.75, 0.001, 0.0002)


def record(step, rms=RMS, sites=SITES, *, full=True):
    rows = np.tile(moments.EMPTY, (len(sites), 1))
    for row, value in zip(rows, rms, strict=True):
        if value is not None:
            row[[moments.COUNT, moments.CALLS, moments.RMS]] = 4, 1, value
    return Record(step, sites, rows, full=full)


def history(*records):
    filled = History()
    for item in records:
        filled.append(item)
    return filled


def finding(layer, kind="vanishing_gradient", first=0, last=30, **fields):
    return Finding(kind, layer, first, last, "critical", **fields)


GOLDEN = """\
layer  type     activation rms  dL/da rms  dL/dW rms  update ratio  status
─────  ───────  ──────────────  ─────────  ─────────  ────────────  ────────────────────────────────────
fc1    Linear         5.00e-01   1.00e-09   2.00e-08      2.00e-02  vanishing_gradient, saturated (over)
act    Sigmoid        7.50e-01   1.00e-03          –             –  –

History(2 records, steps 0 to 30)
critical: saturated at fc1.weight, step 3: flat → vanishing_gradient at fc1
    try: a smaller weight
critical: loss_unstable at loss, step 12–30: it jumps
    try: a smaller step
no loss was told, so that loss_stagnant, loss_unstable and update_ratio were not judged: watch.loss(value)
not observed (never called): spare, other
not observed (a ScriptModule takes no hooks): script"""

UNSEEN = {"spare": "never called", "script": "a ScriptModule takes no hooks", "other": "never called"}


def test_a_run_in_print():
    run = history(record(0), record(30))
    findings = [
        finding("fc1", message="the gradient dies", advice="ReLU"),
        finding("fc1.weight", "saturated", 3, 3, message="flat", advice="a smaller weight"),
        finding("loss", "loss_unstable", 12, 30, message="it jumps", advice="a smaller step"),
    ]
    # The weight stands for its layer, not the bias; its update ratio is 0.005 over 0.25. Saturation explains what vanishes.
    assert summary.render(run, findings, UNSEEN) == GOLDEN


def test_a_healthy_run_says_so():
    told = replace(record(0), loss=0.5)
    text = summary.render(history(told), [])
    assert text.endswith("History(1 records, steps 0 to 0)\nnothing found")
    assert "not observed" not in text
    assert "no loss was told" in summary.render(history(record(0)), [])


def test_nothing_recorded():
    assert summary.table(history(), []) == []
    assert summary.render(history(), []) == "nothing recorded yet: a record closes at each optimizer step, or at watch.step()"


def test_figures_are_those_of_the_newest_record_with_activations():
    light = SITES[3:4]
    run = history(record(0), record(10, [2 * value for value in RMS]), record(11, [1.0], light, full=False))
    assert summary.table(run, [])[0][2:6] == ("1.00e+00", "2.00e-09", "4.00e-08", "2.00e-02")


def test_a_run_without_such_a_record_still_shows_its_gradients_and_findings():
    run = history(record(11, [1.0], SITES[3:4], full=False))
    lost = finding("fc1.weight", message="the gradient dies")
    assert summary.table(run, [lost]) == [("fc1", "Linear", "–", "–", "1.00e+00", "–", "vanishing_gradient")]
    assert "the gradient dies" in summary.render(run, [lost])


def test_what_was_not_seen_is_a_dash():
    row = summary.table(history(record(0, [None] * len(SITES))), [])[0]
    assert row == ("fc1", "Linear", "–", "–", "–", "–", "ok")


def test_a_number_that_is_none_stays_visible():
    first, second = summary.table(history(record(0, [float("inf"), *RMS[1:8], float("nan"), *RMS[9:]])), [])
    assert first[2] == "inf"
    assert second[2] == "nan"


def test_a_finding_belongs_to_its_own_layer_only():
    """Code without modules, and a model that owns parameters itself, have a row ``model`` beside those of the layers."""
    sites = (
        Site("fc", "activation", "Linear"),
        Site("fc.weight", "parameter_grad", "Linear", (2,)),
        Site("scale", "parameter_grad", "Net"),
    )
    run = history(record(0, [1.0, 1.0, 1.0], sites))

    def status(of):
        return {row[0]: row[-1] for row in summary.table(run, [finding(of, "zero_gradient", last=0)])}

    assert status("fc") == {"fc": "zero_gradient", "model": "–"}
    assert status("fc.weight") == {"fc": "zero_gradient", "model": "–"}
    assert status("scale") == {"fc": "–", "model": "zero_gradient"}
    assert status("model") == {"fc": "–", "model": "zero_gradient"}
    assert status("loss") == {"fc": "–", "model": "–"}


@pytest.mark.parametrize(
    ("last", "first_row", "second_row"),
    [
        (30, "zero_gradient", "–"),
        (30 - incidents.CADENCE, "zero_gradient", "–"),
        (29 - incidents.CADENCE, "zero_gradient (over)", "ok"),
    ],
)
def test_a_finding_that_ended_is_over_and_the_rest_is_well_again(last, first_row, second_row):
    rows = summary.table(history(record(30)), [finding("fc1", "zero_gradient", 0, last)])
    assert [row[-1] for row in rows] == [first_row, second_row]


@pytest.mark.parametrize(
    ("kind", "last", "status"),
    [
        ("saturated", 100, "saturated"),  # the newest full record shows it
        ("saturated", 99, "saturated (over)"),
        ("exploding_gradient", 139, "exploding_gradient (over)"),  # any record would
        ("exploding_gradient", 140, "exploding_gradient"),
    ],
)
def test_what_only_full_records_show_lasts_until_one_does_not(kind, last, status):
    run = history(record(50), record(100), *(record(step, full=False) for step in range(101, 151)))
    assert summary.table(run, [finding("fc1", kind, 0, last)])[0][-1] == status


HOSTILE = "fc\x1b[2J\r\n\u202e\ud800\x07"
ESCAPED = r"fc\x1b[2J\r\n\u202e\ud800\x07"


def test_names_and_sentences_cannot_move_the_cursor():
    sites = (Site(HOSTILE, "activation", HOSTILE), Site(f"{HOSTILE}.weight", "parameter_grad", HOSTILE))
    said = Finding(HOSTILE, HOSTILE, 0, 0, HOSTILE, {}, HOSTILE, HOSTILE)
    text = summary.render(history(record(0, [1.0, 1.0], sites)), [said], {HOSTILE: "never called"})

    assert all(line.isprintable() for line in text.split("\n"))
    text.encode()
    assert text.count(ESCAPED) == 9  # layer, type, status; severity, kind, layer, message; advice; unseen
    assert len(text.split("\n")) == 9


def test_a_finding_of_one_step_names_it_once():
    assert summary.describe(finding("fc", "non_finite", 4, 4, message="NaN.", advice="Look.")) == (
        "critical: non_finite at fc, step 4: NaN.\n    try: Look."
    )
