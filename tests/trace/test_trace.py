"""One pass, explained: hand arithmetic for one neuron, and what the words mean on larger networks."""

import math

import pytest
import torch
from torch import nn

from gradwatch.errors import NotTraced
from gradwatch.trace import trace


def neuron(*, w=(0.5, -1.0), b=0.0, activation=nn.Sigmoid):
    model = nn.Sequential(nn.Linear(2, 1), activation())
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([w]))
        model[0].bias.fill_(b)
    return model


X, RIGHT, WRONG = torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0]]), torch.tensor([[0.0]])


def test_one_neuron_by_hand():
    model = neuron()
    with trace(model) as shown:
        loss = nn.BCELoss()(model(X), RIGHT)
        loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    linear, sigmoid = shown["0"], shown["1"]
    assert linear.output.item() == 0
    assert sigmoid.output.item() == 0.5
    assert sigmoid.grad_output.item() == -2  # dL/da = -1/a
    assert sigmoid.grad_input.item() == linear.grad_output.item() == -0.5  # dL/dz = dL/da · a(1 - a)
    assert linear.params["weight"].grad.tolist() == [[-1, -0.5]]  # dL/dW = dL/dz · x
    assert linear.params["bias"].grad.tolist() == [-0.5]
    assert linear.grad_input is None  # x needs no gradient
    assert linear.input.tolist() == [[2, 1]]
    assert (sigmoid.gain, sigmoid.call.product) == (0.25, 0.25)
    assert (sigmoid.valve.derivative, sigmoid.valve.closed) == (0.25, 0)
    assert math.isnan(linear.gain)
    assert linear.valve is None
    assert shown.params["0.weight"].share == pytest.approx(1.25 / 1.5)
    assert shown.params["0.bias"].share == pytest.approx(0.25 / 1.5)
    assert [layer.name for layer in shown] == ["0", "1"]


def test_a_saturated_neuron_learns_nothing_although_its_answer_is_entirely_wrong():
    model = neuron(w=(10.0, 0.0))  # z = 20
    with trace(model) as shown:
        nn.BCELoss()(model(X), WRONG).backward()
    sigmoid = shown["1"]
    assert sigmoid.output.item() == 1
    assert sigmoid.grad_output.item() == pytest.approx(1e12)
    assert sigmoid.grad_input.item() == 0
    assert (sigmoid.gain, sigmoid.valve.derivative, sigmoid.valve.closed) == (0, 0, 1)
    assert [call.layer for call in shown.closed] == ["1"]
    assert "Closed: 1 (Sigmoid): 100% of its elements" in str(shown)

    with_logits = model[0]
    with trace(with_logits) as shown:
        nn.BCEWithLogitsLoss()(with_logits(X), WRONG).backward()
    assert shown["model"].grad_output.item() == 1  # dL/dz = a - y
    assert shown.closed == ()


@pytest.mark.parametrize(
    ("activation", "z", "target", "passes"),
    [(nn.Sigmoid, -20, 1.0, -1.0), (nn.Tanh, 20, -1.0, 0.0), (nn.Tanh, -20, 1.0, 0.0), (nn.ReLU, -0.5, 1.0, 0.0)],
)
def test_other_closed_valves(activation, z, target, passes):
    model = neuron(w=(z / 2, 0.0), activation=activation)
    loss_fn = nn.BCELoss() if activation is nn.Sigmoid else nn.MSELoss()
    with trace(model) as shown:
        loss_fn(model(X), torch.tensor([[target]])).backward()
    assert [call.layer for call in shown.closed] == ["1"]
    # A sigmoid at -20 is not exactly 0: BCE's 1/a makes up for its derivative, tanh's and ReLU's exact 0 cannot be made up for.
    assert shown["1"].grad_input.item() == pytest.approx(passes)


def test_the_chain_multiplies_up_to_what_arrives():
    torch.manual_seed(0)
    model = nn.Sequential(*[layer for _ in range(10) for layer in (nn.Linear(8, 8), nn.Sigmoid())])
    with trace(model) as shown:
        model(torch.ones(3, 8)).sum().backward()
    running = 1.0
    for call in reversed(shown.calls[1:]):
        running *= call.gain
        assert call.product == pytest.approx(running, rel=1e-5)
    assert running < 1e-5
    assert shown["0"].call.grad_output_norm == pytest.approx(running * math.sqrt(24), rel=1e-5)
    assert "no plain chain" not in str(shown)


def test_what_forward_keeps(network, batch):
    with trace(network) as shown:
        network(batch).sum().backward()
    # Linear keeps x for dL/dW, Sigmoid its output a; the last Linear reads the same a, and W for dL/da.
    assert shown["0"].kept == (8 * 6 * 4, 0, 0)
    assert shown["1"].kept == (8 * 5 * 4, 0, 0)
    assert shown["2"].kept == (0, 5 * 4, 0)
    assert "Forward keeps 352 B for backward, which also reads 20 B of parameters again." in str(shown)


def test_code_between_layers_keeps_something_too():
    class Scores(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.key = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return (self.query(x) @ self.key(x).mT).softmax(-1)

    model = Scores()
    with trace(model) as shown:
        model(torch.ones(5, 4)).square().sum().backward()
    assert shown.kept["query"].activations == 5 * 4 * 4  # x, which key reads again
    assert shown["key"].kept.activations == 0
    assert shown.kept["model"].activations == 2 * 5 * 4 * 4 + 5 * 5 * 4  # both factors, and the softmax's output
    assert "code between the layers keeps: model 260 B" in str(shown)


def test_checkpointed_layers_keep_what_the_checkpoint_decides(network, batch):
    x = batch.requires_grad_()
    with trace(network) as shown:
        torch.utils.checkpoint.checkpoint(network, x, use_reentrant=False).sum().backward()
    assert shown.kept["1"].packed == 1
    assert shown.kept["1"].activations == 0
    assert set(shown.kept) == {"0", "1", "2"}  # the Sequential around them adds nothing
    assert "kept by saved-tensor hooks" in str(shown)

    with trace(network) as shown:
        torch.utils.checkpoint.checkpoint(network, x, use_reentrant=True).sum().backward()
    assert shown.kept == {}  # what is computed again during backward was not kept
    assert shown["1"].kept == (0, 0, 0)


def test_values_are_copies(network, batch):
    with trace(network) as shown:
        out = network(batch)
        out.sum().backward()
        torch.optim.SGD(network.parameters(), lr=1.0).step()
        before = out.detach().clone()
        out.data.zero_()
    assert torch.equal(shown["2"].output, before)
    assert not torch.equal(shown["2"].params["weight"].value, network[2].weight)
    assert not shown["2"].output.requires_grad


def test_params_hold_what_this_pass_contributes(network, batch):
    network(batch).sum().backward()
    once = network[0].weight.grad.clone()
    with trace(network) as shown:
        network(batch).sum().backward()
        network.zero_grad()
    assert torch.equal(shown["0"].params["weight"].grad, once)


def test_a_layer_that_is_called_several_times():
    class Repeats(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.Linear(3, 3)

        def forward(self, x):
            return self.cell(self.cell(x))

    model = Repeats()
    with trace(model) as shown:
        model(torch.ones(2, 3)).sum().backward()
    assert torch.equal(shown["cell"][0].output, shown["cell"][1].input)
    assert torch.equal(shown["cell"][0].grad_output, shown["cell"][1].grad_input)
    assert [call.index for call in shown["cell"].calls] == [0, 1]
    with pytest.raises(NotTraced, match=r"'cell' was called 2 times: choose a call, trace\['cell'\]\[0\] to trace\['cell'\]\[1\]"):
        _ = shown["cell"].output
    assert set(shown["cell"].params) == {"weight", "bias"}
    assert "cell[1]" in str(shown)


def test_structures_keep_their_shape():
    torch.manual_seed(0)
    lstm = nn.LSTM(3, 2)
    with trace(lstm) as shown:
        outputs, (hidden, _) = lstm(torch.ones(4, 1, 3, requires_grad=True), (torch.zeros(1, 1, 2), torch.zeros(1, 1, 2)))
        (outputs.sum() + hidden.sum()).backward()
    layer = shown["model"]
    assert layer.output[1][0].shape == (1, 1, 2)
    assert torch.equal(layer.grad_output[0], torch.ones(4, 1, 2))
    assert layer.grad_output[1][1] is None  # nothing reads the last cell state
    assert layer.grad_input[0].shape == (4, 1, 3)
    assert layer.grad_input[1] == (None, None)


def test_attention_reads_one_tensor_three_times_and_has_one_branch():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    x = torch.ones(1, 3, 4, requires_grad=True)
    with trace(attention) as shown:
        attention(x, x, x, need_weights=False)[0].square().sum().backward()
    query, key, value = shown["model"].grad_input
    assert query is key is value
    assert torch.equal(query, x.grad)
    assert shown["model"].call.grad_input_norm == pytest.approx(x.grad.norm().item())
    with pytest.raises(NotTraced, match=r"'out_proj' was not called as a module"):
        _ = shown["out_proj"].output
    assert shown["out_proj"].params["weight"].grad is not None
    assert "Not called as modules: out_proj." in str(shown)


def test_keyword_arguments():
    bilinear = nn.Bilinear(2, 3, 1)
    with trace(bilinear) as shown:
        bilinear(torch.ones(1, 2, requires_grad=True), input2=torch.ones(1, 3)).sum().backward()
    assert set(shown["model"].input) == {0, "input2"}
    assert shown["model"].grad_input[0].shape == (1, 2)
    assert shown["model"].grad_input["input2"] is None


def test_a_module_that_owns_parameters_and_layers_is_no_link_of_the_chain():
    class Prefixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.prefix, self.layer = nn.Parameter(torch.ones(1, 2)), nn.Linear(2, 2)

        def forward(self, x):
            return self.layer(torch.cat([self.prefix, x]))

    model = Prefixed()
    with trace(model) as shown:
        model(torch.ones(3, 2)).sum().backward()
    assert shown["model"].call.encloses
    assert [call.layer for call in shown.calls] == ["layer", "model"]
    assert shown["model"].params["prefix"].grad is not None


def test_functional_code_and_raw_tensors():
    w, b = torch.tensor([[0.5], [-1.0]], requires_grad=True), torch.zeros(1, requires_grad=True)
    with trace({"W": w, "b": b}) as shown:
        z = shown.tap("z", X @ w + b)
        a = shown.tap("a", torch.sigmoid(z))
        nn.functional.binary_cross_entropy(a, RIGHT).backward()
    assert shown["a"].grad.item() == -2
    assert shown["z"].grad.item() == -0.5
    assert shown["z"].value.item() == 0
    assert shown["W"].grad.tolist() == [[-1], [-0.5]]
    assert shown["b"].grad.tolist() == [-0.5]
    assert shown.params["W"].share == pytest.approx(1.25 / 1.5)
    assert w._backward_hooks is None
    assert [layer.name for layer in shown] == ["W", "b", "z", "a"]
