"""Findings are folded under the one that explains them, and none is lost."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwatch import KINDS, Finding, Incident, incidents
from gradwatch.detectors import DEFAULT
from gradwatch.incidents import FOLLOWS, SAMPLED, SLACK, group, tell


def finding(kind, first=0, last=None, layer="fc"):
    return Finding(kind, layer, first, first if last is None else last, "critical")


def test_nothing_found():
    assert group([]) == []


def test_a_finding_alone_is_its_own_cause():
    alone = finding("saturated")
    assert group([alone]) == [Incident(alone, ())]


def test_nan_after_an_explosion_is_part_of_it():
    explosion = finding("exploding_gradient", 7, 12, "fc2.weight")
    nan = finding("non_finite", 13, 20, "fc1")
    assert group([explosion, nan]) == [Incident(explosion, (nan,))]


def test_nan_long_after_an_explosion_is_another_incident():
    explosion, nan = finding("exploding_gradient", 7, 12), finding("non_finite", 14)
    assert group([explosion, nan]) == [Incident(explosion), Incident(nan)]


def test_nan_before_an_explosion_has_another_cause():
    nan, explosion = finding("non_finite", 3, 9), finding("exploding_gradient", 4 + SLACK)
    assert group([nan, explosion]) == [Incident(nan), Incident(explosion)]


def test_a_cause_may_be_seen_a_little_after_what_it_explains():
    """Gradients are recorded at every step, activations now and then."""
    vanishing, saturated = finding("vanishing_gradient", 3, 40), finding("saturated", 3 + SLACK, 40)
    assert group([vanishing, saturated]) == [Incident(saturated, (vanishing,))]
    late = finding("saturated", 4 + SLACK, 40)
    assert group([vanishing, late]) == [Incident(vanishing), Incident(late)]


def test_what_only_full_records_show_holds_between_them():
    """Full records at 0, 100 and 200: what the one at 100 shows first may have begun at step 1, and may go on up to step 199."""
    full = [0, 100, 200]
    vanishing, saturated = finding("vanishing_gradient", 30, 150), finding("saturated", 100)
    assert group([vanishing, saturated]) == [Incident(vanishing), Incident(saturated)]
    assert group([vanishing, saturated], full) == [Incident(saturated, (vanishing,))]
    later = finding("vanishing_gradient", 199, 250)
    assert group([saturated, later], full) == [Incident(saturated, (later,))]
    assert group([saturated, replace(later, first_step=201)], full) == [
        Incident(saturated),
        Incident(replace(later, first_step=201)),
    ]
    last = finding("saturated", 200)  # nobody knows when it ended
    assert group([last, finding("vanishing_gradient", 290)], full) == [Incident(last, (finding("vanishing_gradient", 290),))]


def test_what_followed_from_a_cause_may_be_seen_after_the_cause_is_over():
    explosion, dead = finding("exploding_gradient", 110, 120), finding("dead_units", 200, 300)
    assert group([explosion, dead], [0, 100, 200, 300]) == [Incident(explosion, (dead,))]
    assert group([explosion, dead], [0, 100, 150, 200, 300]) == [Incident(explosion), Incident(dead)]  # at 150 there was nothing


def test_kinds_that_light_records_show_are_no_longer_than_they_were_seen():
    explosion, nan = finding("exploding_gradient", 7, 12), finding("non_finite", 14)
    assert group([explosion, nan], [0, 100]) == [Incident(explosion), Incident(nan)]


def test_which_kinds_only_full_records_show():
    """Those of which every detector judges full records alone; and not_updated, but for runs that never take a step."""
    light, full = set(), set()
    for detector in DEFAULT:
        kinds = {
            found.kind
            for name, example in detector.EXAMPLES.items()
            if name.startswith("sick")
            for history in example.history()
            for found in detector(history)
        }
        (full if detector.full_only else light).update(kinds)
    assert light | full == set(KINDS)
    assert (full - light) | {"not_updated"} == SAMPLED


def test_kinds_that_have_nothing_to_do_with_each_other():
    vanishing, unstable = finding("vanishing_gradient", 0, 9), finding("loss_unstable", 0, 9)
    assert group([vanishing, unstable]) == [Incident(vanishing), Incident(unstable)]


def test_a_chain_of_causes_is_one_incident():
    scale = finding("bad_scale", 0, 40)
    saturated = finding("saturated", 2, 40)
    vanishing = finding("vanishing_gradient", 5, 40)
    stagnant = finding("loss_stagnant", 30, 40, "loss")
    assert group([scale, saturated, vanishing, stagnant]) == [Incident(scale, (saturated, vanishing, stagnant))]


def test_a_chain_holds_where_its_first_link_does_not_explain_the_last():
    dead = finding("dead_units", 0, 2)
    silent = finding("zero_gradient", 2, 20)
    still = finding("not_updated", 12, 20)
    assert group([dead, silent, still]) == [Incident(dead, (silent, still))]


def test_a_cause_that_shows_in_the_same_step_is_a_cause_in_either_order():
    explosion, nan = finding("exploding_gradient", 5), finding("non_finite", 5)
    assert group([nan, explosion]) == group([explosion, nan]) == [Incident(explosion, (nan,))]


def test_a_cut_branch_is_one_incident():
    """All layers behind the cut fall silent at about the same time."""
    silent = [finding("zero_gradient", step, 30, f"fc{step}.weight") for step in (4, 4, 5, 4 + SLACK)]
    assert group(silent) == [Incident(silent[0], tuple(silent[1:]))]
    alone, other = finding("zero_gradient", 4, 30, "fc1.weight"), finding("zero_gradient", 5 + SLACK, 30, "fc2.weight")
    assert group([alone, other]) == [Incident(alone), Incident(other)]


def test_two_incidents_side_by_side():
    scale, unstable = finding("bad_scale", 0, 3), finding("update_ratio", 10, 30)
    saturated, nan = finding("saturated", 1, 30), finding("non_finite", 20)
    assert group([scale, saturated, unstable, nan]) == [Incident(scale, (saturated,)), Incident(unstable, (nan,))]


def test_kinds_that_bring_each_other_about(monkeypatch):
    monkeypatch.setattr(
        incidents, "FOLLOWS", {"saturated": frozenset({"vanishing_gradient"}), "vanishing_gradient": frozenset({"saturated"})}
    )
    one, other = finding("saturated", 3, 9), finding("vanishing_gradient", 3, 9)
    assert group([one, other]) == [Incident(one, (other,))]
    assert group([other, one]) == [Incident(other, (one,))]
    later = finding("vanishing_gradient", 5, 9)
    assert group([one, later]) == [Incident(one, (later,))]


def test_kinds_that_bring_each_other_about_in_a_circle(monkeypatch):
    circle = ("saturated", "vanishing_gradient", "loss_stagnant")
    follows = {kind: frozenset({circle[index - 1]}) for index, kind in enumerate(circle)}
    monkeypatch.setattr(incidents, "FOLLOWS", follows)
    findings = [finding(kind, 3, 9) for kind in circle]

    (incident,) = group(findings)
    assert sorted(item.kind for item in (incident.cause, *incident.consequences)) == sorted(circle)


kinds = st.sampled_from(KINDS)
anything = st.builds(
    lambda kind, layer, first, length: finding(kind, first, first + length, layer),
    kinds,
    st.sampled_from(["fc1", "fc2.weight", "loss"]),
    st.integers(0, 4),
    st.integers(0, 4),
)
runs = st.lists(anything, max_size=12).map(lambda found: sorted(found, key=lambda one: one.first_step))


def told(grouped):
    return [item for incident in grouped for item in (incident.cause, *incident.consequences)]


@given(runs)
@settings(deadline=None)
def test_every_finding_is_in_exactly_one_incident(findings):
    grouped = group(findings)
    assert Counter(map(repr, told(grouped))) == Counter(map(repr, findings))
    assert [one.cause.first_step for one in grouped] == sorted(one.cause.first_step for one in grouped)
    for incident in grouped:
        steps = [item.first_step for item in incident.consequences]
        assert steps == sorted(steps)


@given(runs, st.dictionaries(kinds, st.frozensets(kinds)))
@settings(deadline=None)
def test_no_finding_is_lost_whatever_brings_about_what(findings, follows):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(incidents, "FOLLOWS", follows)
        grouped = group(findings)
    assert Counter(map(repr, told(grouped))) == Counter(map(repr, findings))


def test_the_table_knows_only_kinds_and_no_kind_brings_itself_about():
    assert set(FOLLOWS) | frozenset().union(*FOLLOWS.values()) <= set(KINDS)
    assert all(kind not in causes for kind, causes in FOLLOWS.items())


def test_an_incident_in_words():
    cause = Finding("bad_scale", "fc1", 0, 40, "critical", {}, "activations of 800", "scale the input")
    silent = [finding("zero_gradient", 3, layer=f"fc{layer}.weight") for layer in (1, 2, 3, 4, 5)]
    vanishing = finding("vanishing_gradient", 2, layer="fc1.weight")

    assert tell(Incident(cause)) == "critical: bad_scale at fc1, step 0–40: activations of 800\n    try: scale the input"
    assert tell(Incident(cause, (vanishing, *silent))) == (
        "critical: bad_scale at fc1, step 0–40: activations of 800 → vanishing_gradient at fc1.weight"
        " → zero_gradient at fc1.weight, fc2.weight, fc3.weight and 2 more\n    try: scale the input"
    )
    assert tell(Incident(finding("bad_scale", 7, 7))) == "critical: bad_scale at fc, step 7: "


def test_names_in_an_incident_cannot_move_the_cursor():
    hostile = "fc\x1b[2J\n"
    one = Finding(hostile, hostile, 0, 0, hostile, {}, hostile, hostile)
    lines = tell(Incident(one, (one,))).split("\n")
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)
