"""From sightings to findings: confirmed, raised once, extended, closed, raised again."""

from dataclasses import dataclass
from typing import ClassVar

import pytest

from gradwatch import Finding
from gradwatch.detectors import Example, Judgement, Ledger
from gradwatch.history import History
from gradwatch.names import owner


@dataclass(frozen=True)
class Pattern(Judgement):
    """Sees something in the steps in which the only layer's gradient is above 1."""

    per_layer: ClassVar[bool] = True

    def __call__(self, history):
        record = history[-1]
        for site, row in zip(record.sites, record.rows, strict=True):
            if row[3] > 1:
                layer = owner(site.layer) if "weight" in site.layer else site.layer
                yield Finding("bad_scale", layer, record.step, record.step, "warning")


def run(settings, *layers, **record):
    ledger, history, news = Ledger([settings], lambda *_: None), History(), []
    for item in Example({(name, "parameter_grad"): values for name, values in layers}, **record).records():
        history.append(item)
        news.append(ledger.update(history))
    return ledger, news


def test_one_odd_record_is_no_finding():
    ledger, _ = run(Pattern(confirm=2), ("a", [0, 5, 0, 5, 0]))
    assert ledger.findings == []


def test_half_of_what_convinces_is_a_suspicion():
    ledger, history = Ledger([Pattern(confirm=4)], lambda *_: None), History()
    suspicious = []
    for record in Example({("a", "parameter_grad"): [0, 5, 5, 5, 5, 5, 0, 5, 0, 5, 5, 0]}).records():
        history.append(record)
        ledger.update(history)
        suspicious.append(ledger.suspicious)
    # From the second sighting in a row on, until it is said or does not come again; the finding lasts to the end.
    assert suspicious == [False, False, True, True, *[False] * 8]


def test_a_finding_starts_where_it_was_first_seen_and_lasts_until_it_was_last_seen():
    ledger, news = run(Pattern(confirm=3, release=2), ("a", [0, 5, 5, 5, 5, 0, 5, 0, 0, 0]))
    (finding,) = ledger.findings
    assert (finding.first_step, finding.last_step) == (1, 6)
    assert [len(item.raised) for item in news] == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert [len(item.over) for item in news] == [0, 0, 0, 0, 0, 0, 0, 0, 1, 0]


def test_what_comes_again_is_a_finding_of_its_own():
    ledger, _ = run(Pattern(confirm=2, release=1), ("a", [5, 5, 0, 0, 5, 5, 0]))
    assert [(finding.first_step, finding.last_step) for finding in ledger.findings] == [(0, 1), (4, 5)]


def test_layers_have_faults_of_their_own():
    ledger, _ = run(Pattern(confirm=2), ("a", [5, 5, 5]), ("b", [0, 5, 5]))
    assert [(finding.layer, finding.first_step) for finding in ledger.findings] == [("a", 0), ("b", 1)]


def test_a_record_about_another_optimizers_layers_is_no_clean_one():
    ledger, history = Ledger([Pattern(confirm=3)], lambda *_: None), History()
    theirs = list(Example({("weight", "parameter_grad"): [5] * 6}).records())
    others = list(Example({("head.weight", "parameter_grad"): [0.5] * 6}).records())
    for record in [turn for pair in zip(theirs, others, strict=True) for turn in pair]:
        history.append(record)
        ledger.update(history)
    assert [(finding.layer, finding.first_step) for finding in ledger.findings] == [("model", 0)]


def test_confirmation_can_ask_for_a_stretch_of_steps():
    ledger, _ = run(Pattern(confirm=2, span=5), ("a", [5] * 5))
    assert ledger.findings == []
    ledger, _ = run(Pattern(confirm=2, span=5), ("a", [5] * 6))
    assert len(ledger.findings) == 1


def test_a_skipped_step_counts_neither_for_nor_against():
    ledger, _ = run(Pattern(), ("a", [5] * 5), skipped=True)
    assert ledger.findings == []


def test_findings_that_last_to_the_end_are_closed_with_it():
    ledger, _ = run(Pattern(), ("a", [5, 5, 5]))
    assert ledger.close() == tuple(ledger.findings)
    assert ledger.findings[0].last_step == 2


def test_a_detector_that_fails_is_dropped_and_the_others_go_on():
    def broken(history):
        raise ZeroDivisionError("a bug")

    dropped = []
    ledger, history = Ledger([broken, Pattern()], lambda detector, error: dropped.append((detector, error))), History()
    for record in Example({("a", "parameter_grad"): [5.0, 5.0]}).records():
        history.append(record)
        ledger.update(history)
    assert len(dropped) == 1
    assert len(ledger.findings) == 1


def test_a_plain_function_is_a_detector():
    def loud(history):
        """Speaks at once, at every record."""
        yield Finding("bad_scale", "a", history[-1].step, history[-1].step, "warning")

    ledger, _ = run(loud, ("a", [0.0, 0.0]))
    assert [(finding.first_step, finding.last_step) for finding in ledger.findings] == [(0, 1)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_nan_confirms_what_foretold_it_and_silences_everything_else(bad):
    @dataclass(frozen=True)
    class Omen(Pattern):
        breaks: ClassVar[bool] = True

    ledger, _ = run(Omen(confirm=3), ("a", [0, 5, bad, bad]))
    assert [(finding.first_step, finding.last_step) for finding in ledger.findings] == [(1, 1)]
    ledger, _ = run(Pattern(confirm=3), ("a", [0, 5, bad, bad]))
    assert ledger.findings == []
