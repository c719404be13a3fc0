"""The nouns: compared by value, frozen, and readable."""

import json
import pickle
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from gradwatch import KINDS, Finding, Incident, Record, Site, moments
from gradwatch.records import TENSORS

NAN = float("nan")
SITES = (Site("fc", "activation", "Linear"), Site("fc.weight", "parameter_grad", "Linear", (2, 3)))


def record(**changes):
    rows = np.stack([moments.EMPTY, moments.EMPTY])
    rows[0, [moments.COUNT, moments.CALLS, moments.RMS]] = 6, 2, 0.5
    return replace(Record(3, SITES, rows, loss=0.25, backwards=2), **changes)


def test_a_site_from_another_process_is_found_among_those_of_this_one():
    site, elsewhere = (Site("fc", "activation", "Linear") for _ in range(2))
    object.__setattr__(elsewhere, "_hash", hash(site) + 1)  # as strings hash there
    known = {site: 1}
    assert known.get(pickle.loads(pickle.dumps(elsewhere))) == 1
    assert known.get(replace(site, layer="fc2")) is None


def test_records_are_compared_by_value_and_what_was_not_measured_equals_itself():
    assert record() == record()
    assert record(loss=NAN) == record(loss=NAN)
    assert record(loss=None) == record(loss=None)


@pytest.mark.parametrize(
    "change",
    [
        {"step": 4},
        {"sites": SITES[:1]},
        {"loss": 0.5},
        {"loss": None},
        {"loss": NAN},
        {"skipped": True},
        {"backwards": 1},
        {"full": False},
        {"clip": 0.5},
        {"ranks": np.array([0, 1], np.int32)},
        {"rows": np.stack([moments.EMPTY, moments.EMPTY])},
        {"rows": moments.EMPTY[None]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_records_that_differ_in_anything_differ(change):
    assert record() != record(**change)
    assert record(**change) != record()


def test_ranks_are_compared_as_well():
    first, same, other = (record(ranks=np.array(ranks, np.int32)) for ranks in ([0, 1], [0, 1], [0, -1]))
    assert first == same
    assert first != other


def test_a_loss_of_zero_is_not_no_loss():
    assert record(loss=0.0) != record(loss=None)
    assert record() != "record"


def test_a_record_tells_what_was_seen():
    assert repr(record()) == "Record(step=3, 1 of 2 sites seen, loss=0.25)"
    assert record().calls == 2


def test_nouns_are_frozen():
    finding = Finding("non_finite", "fc", 0, 1, "critical")
    for noun, name in ((record(), "step"), (SITES[0], "layer"), (finding, "kind"), (Incident(finding), "cause")):
        with pytest.raises(FrozenInstanceError):
            setattr(noun, name, None)


def test_a_finding_is_json():
    finding = Finding("exploding_gradient", "fc.weight", 3, 9, "critical", {"rms": 2.5}, "It grew.", "Clip it.")
    assert json.loads(json.dumps(finding.to_dict())) == {
        "kind": "exploding_gradient",
        "layer": "fc.weight",
        "first_step": 3,
        "last_step": 9,
        "severity": "critical",
        "evidence": {"rms": 2.5},
        "message": "It grew.",
        "advice": "Clip it.",
    }
    assert Finding(**finding.to_dict()) == finding


def test_the_names_that_others_rely_on():
    assert TENSORS == ("activation", "activation_grad", "input_grad", "parameter", "parameter_grad", "update")
    assert set(KINDS) == {
        "vanishing_gradient",
        "exploding_gradient",
        "non_finite",
        "dead_units",
        "saturated",
        "zero_gradient",
        "stale_gradient",
        "not_updated",
        "bad_scale",
        "update_ratio",
        "loss_stagnant",
        "loss_unstable",
    }
