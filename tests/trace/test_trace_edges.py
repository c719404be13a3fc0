"""What a trace refuses, survives and leaves behind."""

import copy
import io
import subprocess
import sys
import weakref

import pytest
import torch
from torch import nn

from gradwatch.errors import InvalidSetting, NothingToWatch, NotTraced
from gradwatch.trace import recorder, trace


def test_an_exception_passes_through_and_nothing_stays_behind(network, batch):
    error = ZeroDivisionError("mine")
    with pytest.raises(ZeroDivisionError) as caught, trace(network) as shown:  # noqa: PT012 - a pass, then the exception
        out = network(batch)
        raise error
    assert caught.value is error
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert all(parameter._backward_hooks is None for parameter in network.parameters())
    assert out._backward_hooks is None
    with pytest.raises(NotTraced, match="ended with an exception"):
        _ = shown["0"]
    assert str(shown) == "Trace(the traced block has not ended)"


def test_an_error_of_its_own_waits_for_the_end_of_the_block(network, batch, monkeypatch):
    def broken(*_):
        raise MemoryError("no room for a copy")

    monkeypatch.setattr(recorder, "Seen", broken)
    finished = False
    with pytest.raises(MemoryError, match="no room"), trace(network):  # noqa: PT012 - the point is that the block goes on
        network(batch).sum().backward()
        finished = True
    assert finished
    assert network[0].weight.grad is not None


def test_nothing_called(network, batch):
    with pytest.raises(NothingToWatch, match="no module of 'Sequential' was called in the traced block"), trace(network):
        batch.sum()


def test_no_backward(network, batch):
    with pytest.raises(NotTraced, match=r"call loss.backward\(\) before the block ends"), trace(network):
        network(batch)


def test_a_compiled_model_says_what_to_trace_instead(batch):
    compiled = torch.compile(nn.Sequential(nn.Linear(6, 1)), backend="eager", fullgraph=True)
    with (
        pytest.raises(NothingToWatch, match="of a compiled or scripted model, trace the one that it was made from"),
        trace(compiled),
    ):
        compiled(batch).sum().backward()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's compiler asks its inputs for it
def test_a_compiled_part_is_reported_as_not_called(network, batch):
    network[1] = torch.compile(network[1], backend="eager")
    with trace(network) as shown:
        network(batch).sum().backward()
    assert "Not called as modules: 1." in str(shown)
    assert shown["2"].grad_input is not None


def test_what_cannot_be_traced():
    with (
        pytest.raises(NothingToWatch, match="'h' is computed from other tensors"),
        trace({"h": torch.ones(1, requires_grad=True) * 2}),
    ):
        pass
    with pytest.raises(NothingToWatch, match=r"'0.weight' has no shape yet"), trace(nn.Sequential(nn.LazyLinear(3))):
        pass


def test_wrong_names(network, batch):
    with trace(network) as shown:
        with pytest.raises(NotTraced, match="has not ended"):
            _ = shown["0"]
        with pytest.raises(InvalidSetting, match=r"'0'.* choose another name"):
            shown.tap("0", batch)
        shown.tap("hidden", network(batch)).sum().backward()
    with pytest.raises(NotTraced, match="no layer 'hiden' in the traced pass: did you mean 'hidden'"):
        _ = shown["hiden"]
    with pytest.raises(NotTraced, match=r"tap\('late'\) outside of the traced block"):
        shown.tap("late", batch)
    assert "hidden" in shown
    assert "hiden" not in shown


def test_wrappers_do_not_show_in_names(network, batch):
    wrapped = nn.DataParallel(network)  # without GPUs it calls the model itself
    with trace(wrapped) as shown:
        wrapped(batch).sum().backward()
    assert [layer.name for layer in shown] == ["0", "1", "2"]


def test_tied_parameters_are_blamed_once():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 3, bias=False))
    model[2].weight = model[0].weight
    with trace(model) as shown:
        model(torch.ones(2, 3)).sum().backward()
    assert list(shown.params) == ["0.weight"]
    assert shown["0"].params["weight"] is shown["2"].params["weight"]
    assert shown.params["0.weight"].share == 1


def test_a_model_without_parameters():
    z = torch.tensor([20.0], requires_grad=True)
    sigmoid = nn.Sigmoid()
    with trace(sigmoid) as shown:
        sigmoid(z).backward()
    assert shown["model"].grad_input.item() == 0
    assert shown["model"].valve.closed == 1


def test_copies_and_pickles_made_inside_the_block_are_free_of_it(network, batch):
    with trace(network) as shown:
        twin = copy.deepcopy(network)
        torch.save(network, io.BytesIO())
        twin(batch).sum().backward()
        network(batch).sum().backward()
    assert len(shown.calls) == 3


def test_a_trace_keeps_no_graph_alive(network, batch):
    with trace(network) as shown:
        out = network(batch)
        out.sum().backward()
    alive = weakref.ref(out)
    del out
    assert alive() is None
    assert shown["2"].output.grad_fn is None


def test_sparse_gradients_and_double_precision():
    model = nn.Sequential(nn.Embedding(5, 2, sparse=True), nn.Linear(2, 1)).double()
    with trace(model) as shown:
        model(torch.tensor([1, 3, 3])).sum().backward()
    assert shown["0"].params["weight"].grad.is_sparse
    assert shown["1"].output.dtype == torch.float64
    assert "0 Embedding" in str(shown)
    assert shown.to_pandas()["zeros"].notna().all()


def test_gradients_that_underflow_when_squared_have_a_norm():
    model = nn.Linear(2, 1, bias=False).double()
    with trace(model) as shown:
        (model(torch.ones(1, 2, dtype=torch.float64)) * 1e-200).sum().backward()
    assert shown["model"].call.grad_output_norm == pytest.approx(1e-200)
    assert shown.params["weight"].share == 1


def test_a_tap_inside_a_layer_leaves_the_layer_in_the_chain():
    class Doubling(nn.Module):
        def forward(self, x):
            return shown.tap("doubled", x * 2).relu()

    model = nn.Sequential(nn.Linear(2, 2), Doubling())
    with trace(model) as shown:
        model(torch.ones(1, 2)).sum().backward()
    assert not shown["1"].call.encloses
    assert [call.layer for call in shown.calls] == ["0", "doubled", "1"]


HEAVY = ("pandas", "matplotlib", "rich", "tensorboard", "lightning", "transformers")


def test_importing_it_imports_nothing_heavy():
    code = f"import sys, gradwatch.trace; print([name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
