"""Two runs as text: the arithmetic is done by hand."""

import math

from recorded_runs import finding, healthy, history, record, sites

from gradwatch.report import compare

LAYERS = ("a", "b")


def run(gradient, layers=LAYERS, findings=(), **values):
    of = sites(layers)
    named = {("a.weight", "parameter_grad"): gradient, **{("b.weight", name): value for name, value in values.items()}}
    return history([record(step, of, named, loss=2.0 - step / 10) for step in range(3)], findings)


def row(text, layer):
    return next(line.split() for line in text.splitlines() if line.startswith(f"{layer} "))


def test_differences_are_powers_of_ten_of_medians():
    text = compare(run(1e-5), run(1e-2), ("slow", "fast"))
    assert row(text, "a") == ["a", "Linear", "1.00e-05", "1.00e-02", "+3.00", "+0.00", "+0.00", "+0.00"]
    assert row(text, "b")[2:5] == ["1.00e+00", "1.00e+00", "+0.00"]
    assert "dL/dW rms: at a 1e+03 times larger in fast" in text
    assert "activation rms: at" not in text
    assert "slow: History(3 records, steps 0 to 2), loss 2 → 1.8" in text


def test_one_spike_tells_nothing():
    of = sites(LAYERS)
    spiky = history([record(step, of, {("a.weight", "parameter_grad"): 1e9 if step == 5 else 1.0}) for step in range(9)])
    assert row(compare(spiky, run(1.0)), "a")[2:5] == ["1.00e+00", "1.00e+00", "+0.00"]


def test_what_is_no_number_is_said_and_not_compared():
    text = compare(run(0.0, parameter_grad=math.nan), run(math.inf))
    assert row(text, "a")[2:5] == ["0", "inf", "–"]
    assert row(text, "b")[2:5] == ["NaN", "1.00e+00", "–"]


def test_layers_are_aligned_by_name_and_those_of_one_run_are_marked():
    text = compare(run(1.0, layers=["a", "old", "b"]), run(1.0, layers=["a", "new", "b"]), ("A", "B"))
    assert [line.split()[0] for line in text.splitlines()[2:6]] == ["a", "new", "old", "b"]
    assert row(text, "old")[2:5] == ["1.00e+00", "–", "–"]
    assert row(text, "old")[-1] == "A"
    assert row(text, "new")[-1] == "B"


def test_findings_of_each_run_are_told():
    text = compare(run(1.0, findings=[finding("vanishing_gradient", "a", 0, 2)]), run(1.0), ("A", "B"))
    first, second = text[text.index("\nA: ") :].split("\n\n")
    assert "critical: vanishing_gradient at a, step 0–2: vanishing_gradient was seen at a" in first
    assert second.endswith("nothing found")


def test_hostile_names_are_printable_and_empty_runs_have_no_table():
    text = compare(healthy(steps=2, layers=["\x1b[31mred"]), history([]), ("\x1b[0m", "B"))
    assert "\x1b" not in text
    assert compare(history([]), history([])).startswith("Δ: ")
