"""Gradients where the graph is no chain: views that are overwritten, tensors with several readers, several backward passes."""

import torch
from torch import nn

from gradwatch.trace import trace


def test_a_tapped_tensor_that_is_overwritten_later():
    torch.manual_seed(0)
    layer, x = nn.Linear(3, 3), torch.randn(2, 4, 3)
    with trace(layer) as shown:
        z = shown.tap("z", layer(x))  # a view, as every Linear returns of a sequence
        torch.relu_(z).square().sum().backward()
    free = layer(x)
    expected = torch.autograd.grad(torch.relu(free).square().sum(), free)[0]
    assert torch.equal(shown["z"].grad, expected)
    assert torch.equal(shown["z"].value, free)
    assert torch.equal(shown["model"].grad_output, expected)


def test_a_view_that_is_read_and_then_overwritten():
    torch.manual_seed(0)
    layer, x = nn.Linear(3, 3), torch.randn(2, 4, 3)
    with trace(layer) as shown:
        z = layer(x)
        doubled = z * 2
        (doubled.sum() + torch.relu_(z).square().sum()).backward()
    free = layer(x)
    expected = torch.autograd.grad((free * 2).sum() + torch.relu(free).square().sum(), free)[0]
    assert torch.equal(shown["model"].grad_output, expected)


def test_a_view_of_a_tensor_that_others_read():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Flatten(0))
    with trace(model) as shown:
        h = model[0](torch.ones(2, 3))
        (model[1](h).square().sum() + h.sum()).backward()
    assert torch.equal(shown["1"].grad_output, 2 * shown["1"].output)  # its own readers only
    assert torch.equal(shown["0"].grad_output, 2 * shown["0"].output + 1)


def test_a_view_of_a_tensor_that_is_overwritten_by_others():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Flatten(0))
    with trace(model) as shown:
        h = model[0](torch.ones(2, 3))
        tripled = model[1](h) * 3
        (tripled.sum() + h.add_(1).square().sum()).backward()
    assert torch.equal(shown["1"].grad_output, torch.full((8,), 3.0))
    assert torch.equal(shown["0"].grad_output, 3 + 2 * (shown["0"].output + 1))


def test_what_a_module_gets_by_another_way_is_not_its_input():
    class Scale(nn.Module):
        def forward(self, x):
            return x * self.factor

    model = nn.Sequential(nn.Linear(3, 3), Scale())
    with trace(model) as shown:
        h = model[0](torch.ones(2, 3))
        model[1].factor = h.exp()  # made from the same tensor, but outside of the call
        model[1](h).sum().backward()
    assert torch.equal(shown["1"].grad_input, shown["0"].output.exp())


def test_a_module_that_returns_its_input_has_no_branch_of_its_own():
    model = nn.Sequential(nn.Linear(3, 3), nn.Identity())
    with trace(model) as shown:
        h = model[0](torch.ones(2, 3))
        (model[1](h).sum() + h.square().sum()).backward()
    assert torch.equal(shown["1"].grad_input, shown["1"].grad_output)
    assert torch.equal(shown["1"].grad_output, 1 + 2 * shown["0"].output)


def test_several_backward_passes_add_up_as_in_grad(network, batch):
    with trace(network) as once:
        network(batch).sum().backward()
    with trace(network) as twice:
        loss = network(batch).sum()
        loss.backward(retain_graph=True)
        loss.backward()
    assert torch.equal(twice["1"].grad_input, 2 * once["1"].grad_input)
    assert torch.equal(twice["0"].params["weight"].grad, 2 * once["0"].params["weight"].grad)


def test_a_gradient_penalty_counts_in_the_pass_of_the_loss(network, batch):
    def penalised():
        x = batch.clone().requires_grad_()
        out = network(x)
        (gradient,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return out.mean() + (gradient.norm(dim=1) - 1).square().mean()

    with trace(network) as shown:
        penalised().backward()
    hidden = []
    network[1].register_forward_hook(lambda module, args, output: hidden.append(output))
    expected = torch.autograd.grad(penalised(), hidden[0])[0]
    assert torch.equal(shown["1"].grad_output, expected)


def test_autograd_grad_is_a_backward_pass_too(network, batch):
    with trace(network) as shown:
        gradients = torch.autograd.grad(network(batch).sum(), tuple(network.parameters()))
    assert torch.equal(shown["0"].params["weight"].grad, gradients[0])
    assert shown["1"].grad_input is not None
