"""A record is moved to the host once, nobody waits for it before, and however long a step is it takes bounded memory."""

import gc

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import gradwatch
from gradwatch import moments
from gradwatch.capture import transfer
from gradwatch.capture.transfer import Tape, Transfer
from gradwatch.records import Site

A, B = Site("a", "activation"), Site("b", "activation")


def noted(transfer):
    """(site, column) → the mean of its shares that are numbers."""
    shares = {}
    for site, column, share in zip(*transfer.notes(), strict=True):
        if np.isfinite(share):
            shares.setdefault((site, int(column)), []).append(share)
    return {key: np.mean(some) for key, some in shares.items()}


def unread(_transfer):
    return [], np.empty((0, len(moments.COLUMNS)), np.float32)


def test_nothing_waits_for_the_device_before_the_transfer_is_read(monkeypatch, caplog):
    monkeypatch.setattr(Transfer, "rows", unread)
    monkeypatch.setattr(Transfer, "only_norms", lambda _: None)
    monkeypatch.setattr(Transfer, "notes", lambda _: ([], np.empty(0, np.intp), np.empty(0)))
    monkeypatch.setattr(Transfer, "scalars", lambda *_: [])
    with FakeTensorMode():  # its tensors have no values: whatever asks for one raises
        model = nn.Sequential(
            nn.Conv2d(1, 2, 3),
            nn.BatchNorm2d(2),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Flatten(),
            nn.Linear(32, 3),
            nn.Softmax(1),
        )
        loss_fn = nn.MSELoss()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        with gradwatch.watch(model, optimizer, every=2, loss_fn=loss_fn, detectors=()) as watch:
            for step in range(6):
                x, y = torch.randn(5, 1, 6, 6), torch.randn(5, 3)
                out = watch.tap("probabilities", model(x))
                with pytest.raises(DataDependentOutputException):
                    bool(out.sum() > 0)
                loss = watch.loss(loss_fn(out, y))
                loss.backward()
                if step % 2:
                    watch.before_clip()
                    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                if step == 4:
                    watch.step()
                else:
                    optimizer.step()
                optimizer.zero_grad(set_to_none=step % 3 == 0)
    assert not caplog.records
    assert [record.full for record in watch.history] == [True, False, True, False, True, False]
    assert [record.skipped for record in watch.history] == [False, False, False, False, True, False]


def test_a_record_is_one_transfer(monkeypatch):
    taken, take = [], Tape.take
    monkeypatch.setattr(Tape, "take", lambda tape: taken.append(tape) or take(tape))
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer, every=2) as watch:
        for step in range(1, 6):
            for _ in range(3):
                watch.loss(model(torch.ones(2, 3)).sum()).backward()
            optimizer.step()
            assert len(taken) == step
    assert len(taken) == len(watch.history) == 5


def test_tensors_of_a_site_keep_their_order_and_their_kind():
    tape = Tape()
    tape.add(A, torch.tensor([3.0, -4.0]), zeros=True)
    tape.add(B, torch.tensor([0.5], dtype=torch.float64))
    tape.add(A, torch.zeros(2, dtype=torch.bfloat16), zeros=True)
    tape.add_norms((B,), np.array([4.0]), torch.tensor([6.0]))
    tape.add_scalar("loss", torch.tensor(2.0))
    tape.add_scalar("loss", torch.tensor(1.5, dtype=torch.bfloat16))
    tape.note(A, moments.CLOSED, torch.tensor(0.25))
    tape.note(A, moments.CLOSED, torch.tensor(0.75, dtype=torch.float64))
    sent = tape.take()
    assert not tape
    sites, rows = sent.rows()
    assert sites == [A, B, A, B]
    np.testing.assert_allclose(rows[:, moments.COUNT], [2, 1, 2, 4])
    np.testing.assert_allclose(rows[:, moments.RMS], [np.sqrt(12.5), 0.5, 0, 3], rtol=1e-6)
    np.testing.assert_allclose(rows[:, moments.MIN], [-4, 0.5, 0, np.nan])
    np.testing.assert_allclose(rows[:, moments.ZEROS], [0, np.nan, 2, np.nan])
    assert sent.scalars("loss") == [2.0, 1.5]
    assert sent.scalars("clip") == []
    assert noted(sent) == {(A, moments.CLOSED): 0.5}


def figures(values):
    """What is measured of a tensor, by hand: count, mean, rms, min, max, zeros, non-finite elements."""
    x = values.double().numpy()
    with np.errstate(invalid="ignore"):  # inf - inf
        return [x.size, x.mean(), np.sqrt(np.square(x).mean()), x.min(), x.max(), (x == 0).sum(), (~np.isfinite(x)).sum()]


@pytest.mark.parametrize("at_most", [10**9, 60], ids=["at the end", "on the way"])
def test_small_tensors_that_are_measured_together_are_each_measured_for_themselves(at_most, monkeypatch):
    monkeypatch.setattr(transfer, "MAX_COPIED", at_most)
    nan, inf = float("nan"), float("inf")
    tensors = [
        *torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0)),
        torch.tensor([1.0, -2.0, 0.0]),
        torch.tensor([nan, 1.0, 0.0]),
        torch.tensor([inf, 1.0, 2.0]),
        torch.tensor([-inf, inf, 0.0]),
        torch.zeros(3),
        torch.tensor([1e-30, -3e-30, 0.0]),  # whose squares float32 rounds to zero
        torch.tensor([3e30, 1e30, -2e30]),  # whose squares overflow float32
        torch.tensor(2.5),
        torch.ones(moments.SMALL + 1),  # not small
        torch.arange(12.0).view(4, 3).T,
    ]
    tape = Tape()
    expected = [figures(tensor) for tensor in tensors]
    each = [Site(str(number), "activation") for number in range(len(tensors))]
    for site, tensor in zip(each, tensors, strict=True):
        tape.add(site, tensor, zeros=True)
        tensor.fill_(7.0)  # what becomes of it later is not what was observed
    sites, rows = tape.take().rows()
    rows = rows[[sites.index(site) for site in each]]
    columns = [moments.COUNT, moments.MEAN, moments.RMS, moments.MIN, moments.MAX, moments.ZEROS, moments.NONFINITE]
    np.testing.assert_allclose(rows[:, columns], expected, rtol=2e-6, atol=1e-38)


def test_zeros_are_counted_only_where_that_is_asked():
    tape = Tape()
    each = [Site(name, "activation") for name in "abc"]
    for site, zeros in zip(each, (True, False, True), strict=True):
        tape.add(site, torch.tensor([0.0, 1.0]), zeros=zeros)
    sites, rows = tape.take().rows()
    np.testing.assert_array_equal(rows[[sites.index(site) for site in each], moments.ZEROS], [1, np.nan, 1])


def test_folding_a_long_record_changes_nothing_of_it(monkeypatch):
    monkeypatch.setattr(transfer, "MAX_ROWS", 7)
    values = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    tape = Tape()
    for index, value in enumerate(values):
        tape.add(A if index % 2 else B, value, zeros=True)
        tape.add_scalar("loss", value.sum())
        tape.note(A, moments.CLOSED, torch.tensor(0.5))
        if index == 30:
            tape.add_norms((A,), np.array([3.0]), torch.zeros(1))
    sent = tape.take()
    sites, rows = sent.rows()
    assert len(sites) < 20
    for site, own in ((A, torch.cat([values[1::2], torch.zeros(1, 3)])), (B, values[::2])):
        merged = moments.merge_all(rows, [0 if at == site else 1 for at in sites], 2)[0]
        assert (merged[moments.COUNT], merged[moments.CALLS]) == (own.numel(), len(own))
        assert merged[moments.RMS] == pytest.approx(own.square().mean().sqrt().item(), rel=1e-5)
    assert sent.scalars("loss") == pytest.approx(values.sum(1).tolist(), rel=1e-6)
    assert noted(sent) == {(A, moments.CLOSED): 0.5}


def test_a_loop_that_never_steps_takes_bounded_memory(monkeypatch):
    monkeypatch.setattr(transfer, "MAX_ROWS", 60)
    model = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def tensors_after(passes):
        for _ in range(passes):
            watch.loss(model(torch.ones(2, 3)).sum()).backward()
        gc.collect()
        return sum(type(thing) is Tensor for thing in gc.get_objects())

    with gradwatch.watch(model, optimizer, every=1) as watch:
        sizes = [tensors_after(80) for _ in range(3)]
        assert max(sizes) - min(sizes) < 60 * 6 + 80
        optimizer.step()
    frame = watch.history.to_pandas()
    row = frame[(frame.layer == "0") & (frame.tensor == "activation_grad")].iloc[0]
    assert (row["calls"], row["count"]) == (240, 240 * 8)
    assert watch.history[0].backwards == 240
    assert watch.history[0].loss == pytest.approx(model(torch.ones(2, 3)).sum().item(), rel=1e-6)


def test_tensors_that_are_forgotten_leave_no_trace(monkeypatch):
    monkeypatch.setattr(transfer, "MAX_ROWS", 4)
    gradient = Site("a", "activation_grad")
    tape = Tape()
    for value in (1.0, 2.0, 3.0, 4.0, 5.0):  # of which the first four are folded
        tape.add(A, torch.tensor([value]))
        tape.add(gradient, torch.tensor([value]))
        tape.note(gradient, moments.CLOSED, torch.tensor(0.5))
    tape.graph_tasks[3] = -1
    tape.forget(("activation_grad",))
    tape.add(gradient, torch.tensor([7.0]))
    sent = tape.take()
    sites, rows = sent.rows()
    assert sent.backwards == 0
    assert noted(sent) == {}
    merged = moments.merge_all(rows, [0 if at == A else 1 for at in sites], 2)
    assert merged[:, moments.CALLS].tolist() == [5, 1]
    assert merged[:, moments.MEAN].tolist() == [3, 7]


def test_a_tape_takes_over_another_one():
    first, second = Tape(), Tape()
    first.add(A, torch.tensor([1.0]))
    second.add(A, torch.tensor([3.0]))
    second.add_norms([B], [4], [torch.tensor(6.0)])
    second.add_scalar("loss", torch.tensor(2.0))
    second.note(A, moments.CLOSED, torch.tensor(0.25))
    first.absorb(second)
    assert not second
    sent = first.take()
    sites, rows = sent.rows()
    assert sites == [A, A, B]
    assert rows[:, moments.RMS].tolist() == [1, 3, 3]
    assert sent.scalars("loss") == [2.0]
    assert noted(sent) == {(A, moments.CLOSED): 0.25}
