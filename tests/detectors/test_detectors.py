"""Every detector against the synthetic runs in its own file."""

import pytest

from gradwatch import KINDS
from gradwatch.detectors import DEFAULT, Ledger, name_of
from gradwatch.history import History

EXAMPLES = [
    pytest.param(detector, example, title.startswith("sick"), id=f"{name_of(detector)}: {title}")
    for detector in DEFAULT
    for title, example in detector.EXAMPLES.items()
]


def judge(detectors, records):
    def fail(detector, error):
        raise error

    ledger, history = Ledger(detectors, fail), History()
    for record in records:
        history.append(record)
        ledger.update(history)
    return ledger.findings


@pytest.mark.parametrize(("detector", "example", "sick"), EXAMPLES)
def test_an_example_is_found_if_it_is_sick(detector, example, sick):
    findings = judge([detector], example.records())
    assert len(findings) == sick, findings
    if sick:
        assert findings[0].message
        assert findings[0].advice
        assert findings[0].evidence


@pytest.mark.parametrize(("detector", "example", "sick"), EXAMPLES)
def test_no_other_detector_speaks_about_a_healthy_example(detector, example, sick):
    if not sick:
        assert judge(DEFAULT, example.records()) == []


@pytest.mark.parametrize("detector", DEFAULT, ids=name_of)
def test_a_detector_shows_what_is_healthy_and_what_is_sick(detector):
    assert {title.split(":")[0] for title in detector.EXAMPLES} == {"healthy", "sick"}


def test_every_kind_has_a_detector():
    found = {
        finding.kind
        for detector in DEFAULT
        for title, example in detector.EXAMPLES.items()
        if title.startswith("sick")
        for finding in judge([detector], example.records())
    }
    assert found == set(KINDS)
