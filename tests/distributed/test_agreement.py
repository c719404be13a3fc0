"""Processes agree on the sites that they exchange, and on whether they exchange at all."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from gradwatch.distributed import link
from gradwatch.distributed.agreement import Agreement, Placement, answer, woven
from gradwatch.distributed.merging import ABSENT
from gradwatch.moments import COLUMNS, COUNT, EMPTY, RMS
from gradwatch.records import Site

SHARD, COPY = SimpleNamespace(sharded=True, speaks=True), SimpleNamespace(sharded=False, speaks=True)
MUTE = SimpleNamespace(sharded=True, speaks=False)


def outputs(names):
    return [Site(name, "activation", "Linear") for name in names]


def layers(sites):
    return "".join(site.layer for site in sites)


def test_what_is_new_comes_behind_what_it_follows():
    assert layers(woven(outputs("ace"), outputs("abce"))) == "abce"
    assert layers(woven(outputs("bd"), outputs("abcde"))) == "abcde"
    assert layers(woven(outputs("ab"), outputs("axyb"))) == "axyb"
    assert layers(woven([], outputs("ab"))) == "ab"


@given(st.lists(st.permutations("abcdef").flatmap(lambda p: st.integers(0, 6).map(lambda n: p[:n])), min_size=1, max_size=4))
def test_every_site_is_on_the_list_once(orders):
    order = []
    for names in orders:
        order = woven(order, outputs(names))
    assert sorted(layers(order)) == sorted(set(itertools.chain(*orders)))


def agreed(*of_each, before=None):
    return (before or Agreement()).extended([answer(sites, placement) for sites, placement in of_each])


def test_all_processes_make_the_same_of_the_same_answers():
    answers = [answer(outputs("ab"), Placement({})), answer(outputs("acb"), Placement({}, (0, 1)))]
    first, second = Agreement().extended(answers), Agreement().extended(answers)
    assert first.sites == second.sites
    assert first.digest == second.digest
    assert layers(first.sites) == "acb"
    assert first.digest != Agreement().extended(answers[:1]).digest


def test_a_name_that_utf8_cannot_encode():
    [site] = agreed((outputs(["\ud800\n"]), Placement({}))).sites
    assert site.layer == "\ud800\n"


def parameters(*names):
    return tuple(Site(name, tensor, "Linear", (2,)) for name in names for tensor in ("parameter", "parameter_grad"))


def test_a_light_record_sends_what_others_do_not_have():
    placement = Placement({"shard": SHARD, "copy": COPY, "own": COPY})
    agreement = agreed((parameters("shard", "copy", "own"), placement), (parameters("shard", "copy"), placement))
    assert [agreement.sites[place].layer for place in agreement.light] == ["shard", "own"]
    assert {agreement.sites[place].tensor for place in agreement.light} == {"parameter_grad"}


def test_a_table_is_received_as_it_was_sent():
    placement = Placement({"shard": SHARD, "copy": COPY})
    sites = parameters("shard", "copy")
    agreement = agreed((sites, placement), (sites, placement))
    rows = np.tile(EMPTY, (2, 1))
    rows[:, COUNT], rows[:, RMS] = 2, (0.5, 0.25)
    mine = sites[:2]
    full = agreement.received(agreement.table(mine, rows, agreement.mute(placement.held), full=True).tobytes(), full=True)
    assert np.array_equal(full[:2], rows, equal_nan=True)
    assert (full[2:, COUNT] == ABSENT).all()
    light = agreement.received(agreement.table(mine, rows, agreement.mute(placement.held), full=False).tobytes(), full=False)
    assert light.shape == (1, len(COLUMNS))
    assert light[0, [COUNT, RMS]].tolist() == [2, 0.25]


def test_a_process_that_holds_a_copy_of_a_shard_is_silent():
    sites = parameters("shard")
    agreement = agreed((sites, Placement({"shard": SHARD})), (sites, Placement({"shard": MUTE})))
    rows = np.tile(EMPTY, (2, 1))
    rows[:, COUNT] = 2
    assert (agreement.table(sites, rows, agreement.mute({"shard": SHARD}), full=True)[:, COUNT] == 2).all()
    assert (agreement.table(sites, rows, agreement.mute({"shard": MUTE}), full=True)[:, COUNT] == 0).all()


@pytest.fixture
def invite(monkeypatch):
    """Two processes in one, which meet in a store."""
    store = dist.HashStore()
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: store)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(link, "ANNOUNCED", 0.01)

    def announce(rank, settings="10 0"):
        monkeypatch.setattr(dist, "get_rank", lambda: rank)
        monkeypatch.setattr(link, "_opened", opened[rank])
        return link.Invitation(settings)

    opened = [link.Counter(), link.Counter()]
    return announce


def test_both_take_part(invite):
    first, second = invite(0), invite(1)
    assert first.absent() == second.absent() == []


def test_the_first_that_asks_decides(invite):
    first = invite(0)
    assert first.absent() == [1]
    # The other one comes too late for this watch, and both meet again in the next.
    second = invite(1)
    assert second.absent() == [0]
    assert invite(0).absent() == [1]
    first, second = invite(0), invite(1)
    assert first.absent() == second.absent() == []


def test_who_closes_before_anybody_asks_is_not_waited_for(invite):
    first, second = invite(0), invite(1)
    second.decline()
    assert first.absent() == [1]


def test_other_settings_are_another_watch(invite):
    first, second = invite(0, "10 0"), invite(1, "5 0")
    assert first.absent() == [1]
    assert second.absent() == [0]
