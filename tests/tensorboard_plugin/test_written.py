"""Which records count where a run was resumed, or two watches write at once: worked out by hand."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from recorded_runs import finding, sites

from gradwatch.codec import Schema, findings_to_json
from gradwatch.tensorboard_plugin.written import Written, findings_of, keep, sites_of

FULL, LIGHT = sites(["a", "b"]), sites(["a", "b"], full=False)


def written(of, *moments):
    """Records of these sites, each (time of writing, step)."""
    return Written("root", of, [SimpleNamespace(wall_time=time, step=step) for time, step in moments])


def kept(*all_written):
    return [[entry.data[index].step for index in indices] for entry, indices in zip(all_written, keep(all_written), strict=True)]


def test_a_run_that_went_through_is_kept_as_it_is():
    assert kept(written(FULL, (0, 0), (10, 10)), written(LIGHT, (1, 1), (2, 2), (11, 11))) == [[0, 10], [1, 2, 11]]


def test_of_a_run_that_was_resumed_the_last_write_counts():
    # Steps 0 to 5, then again from step 3: what the Python loader gives.
    assert kept(written(LIGHT, (0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 3), (7, 4))) == [[0, 1, 2, 3, 4]]


def test_what_one_loader_trims_in_a_tag_is_trimmed_in_all():
    # Step 10, a full one, was not reached again yet: its tag was not trimmed, and it is of before.
    assert kept(written(FULL, (0, 0), (10, 10)), written(LIGHT, (1, 1), (20, 2), (21, 3))) == [[0], [1, 2, 3]]


def test_watches_that_share_no_layer_do_not_overwrite_each_other():
    other = sites(["critic"], full=False)
    assert kept(written(LIGHT, (0, 0), (2, 1), (4, 2)), written(other, (1, 0), (3, 1), (5, 0))) == [[0, 1, 2], [0]]


def test_relations_go_through_a_third():
    first, second, both = sites(["a"], full=False), sites(["z"], full=False), sites(["a", "z"], full=False)
    assert kept(written(first, (0, 0), (1, 1)), written(second, (2, 0)), written(both, (3, 5))) == [[], [0], [5]]


def told(time, *findings):
    return SimpleNamespace(wall_time=time, numpy=np.array(findings_to_json(findings).encode(), object))


def test_a_finding_counts_in_its_last_form_and_not_where_its_steps_were_written_again():
    records = [written(LIGHT, (0, 0), (5, 5), (6, 3), (9, 6))]
    early, lost, again = finding("stale_gradient", "a", 1, 1), finding("non_finite", "b", 4, 5), finding("non_finite", "b", 6, 6)
    longer = finding("stale_gradient", "a", 1, 6)
    notes = []
    assert findings_of([told(5, early, lost), told(9, longer, again)], records, notes) == [longer, again]
    assert notes == []


def test_a_finding_of_one_watch_outlives_the_start_of_another():
    records = [written(LIGHT, (0, 0), (5, 5)), written(sites(["critic"], full=False), (6, 0))]
    found = finding("non_finite", "a.weight", 4, 5)
    assert findings_of([told(5, found)], records, []) == [found]


@pytest.mark.parametrize(
    "text",
    [
        b"no JSON",
        b"{}x",
        b"[1]",
        b'[{"kind": "non_finite"}]',
        json.dumps([finding("non_finite", "a", 0).to_dict() | {"first_step": "0"}]).encode(),
        json.dumps([finding("non_finite", "a", 0).to_dict() | {"layer": None}]).encode(),
        json.dumps([finding("non_finite", "a", 0).to_dict() | {"evidence": {"x": "y"}}]).encode(),
        json.dumps([finding("non_finite", "a", 0).to_dict() | {"evidence": 3}]).encode(),
    ],
)
def test_damaged_findings_are_left_out_and_said(text):
    good = finding("non_finite", "a", 0)
    notes = []
    damaged = SimpleNamespace(wall_time=1, numpy=np.array(text, object))
    assert findings_of([told(0, good), damaged], [written(LIGHT, (0, 0))], notes) == [good]
    assert notes == ["1 damaged lists of findings were left out"]


def schema(text):
    return [SimpleNamespace(numpy=np.array(text, object))]


def test_sites_are_those_of_the_schema():
    assert sites_of(schema(Schema(FULL).to_json().encode())) == FULL


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b'{"sites": []}',
        b'{"sites": [{"layer": 1, "tensor": "activation", "type": "", "shape": []}]}',
        b'{"sites": [{"layer": "a", "tensor": "nonsense", "type": "", "shape": []}]}',
        b'{"sites": [{"layer": "a", "tensor": "activation", "type": "", "shape": ["x"]}]}',
        b'{"sites": [{"layer": "a", "tensor": "activation", "type": "", "shape": 3}]}',
        b'{"sites": 3}',
    ],
)
def test_a_damaged_schema_names_nothing(text):
    assert sites_of(schema(text)) is None


def test_a_schema_that_was_never_read_names_nothing():
    assert sites_of([]) is None
    assert sites_of([SimpleNamespace(numpy=np.array([1.0, 2.0]))]) is None
