"""Healthy training that must stay silent, beyond the corpus: what a careless monitor cries wolf about."""

import math

import pytest
import torch
from torch import nn

import gradwatch


def quiet(model, steps, batch, *, loss_fn=None, optimizer=None, every=10, told=True):
    """Trains for some steps, and returns what was found."""
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=3e-3)
    with gradwatch.watch(model, optimizer, every=every, on_finding=lambda finding: None) as watch:
        for step in range(steps):
            optimizer.zero_grad()
            loss = (loss_fn or nn.functional.cross_entropy)(*batch(step, model))
            if told:
                watch.loss(loss)
            loss.backward()
            optimizer.step()
    return [(finding.kind, finding.layer, finding.first_step) for finding in watch.findings]


def classes(step, model, *, size=32, scale=1.0):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(size, 8, generator=generator)
    return model(x) * scale, (x[:, 0] + x[:, 1] > 0).long()


def net(activation=nn.ReLU):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 24), activation(), nn.Linear(24, 24), activation(), nn.Linear(24, 2))


def test_ten_thousand_steps_of_a_converged_model():
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 4, generator=generator)
    y = x[:, :1] * 0.5

    def batch(step, model):
        rows = torch.randint(64, (16,), generator=generator)
        return model(x[rows]), y[rows]

    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    assert quiet(model, 10_000, batch, loss_fn=nn.functional.mse_loss, optimizer=optimizer, every=100) == []


def test_gradients_that_shrink_by_a_million_with_the_loss():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
    target = torch.randn(4, 1)

    def batch(step, model):
        x = torch.randn(64, 4, generator=torch.Generator().manual_seed(step))
        return model(x), x @ target

    losses = []

    def loss_fn(output, y):
        losses.append(nn.functional.mse_loss(output, y))
        return losses[-1]

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert quiet(model, 400, batch, loss_fn=loss_fn, optimizer=optimizer) == []
    assert losses[-1] < 1e-6 * losses[0]


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
def test_a_loss_of_any_scale_under_adam(factor):
    optimizer_of = {1e-6: 1e-18}.get(factor, 1e-8)
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, eps=optimizer_of)
    assert quiet(model, 150, classes, loss_fn=lambda *a: factor * nn.functional.cross_entropy(*a), optimizer=optimizer) == []


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_sums_and_means_alike(reduction):
    assert quiet(net(), 150, classes, loss_fn=nn.CrossEntropyLoss(reduction=reduction)) == []


def test_a_batch_size_that_changes_in_mid_run():
    assert quiet(net(), 200, lambda step, model: classes(step, model, size=[4, 32, 256][step % 3])) == []


def test_float64():
    def batch(step, model):
        x = torch.randn(32, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        return model(x), (x[:, 0] > 0).long()

    assert quiet(net().double(), 150, batch) == []


def test_a_cyclic_learning_rate():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def batch(step, model):
        optimizer.param_groups[0]["lr"] = 0.05 * (1.05 + math.sin(step / 8))
        return classes(step, model)

    assert quiet(model, 200, batch, optimizer=optimizer) == []


def test_an_embedding_of_fifty_thousand_rows_with_zipf_use():
    torch.manual_seed(0)

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Embedding(50_000, 8), nn.Linear(8, 2)

        def forward(self, tokens):
            return self.out(self.embed(tokens).mean(1))

    model = Words()
    use = 1 / torch.arange(1, 50_001.0)
    score = torch.randn(50_000)

    def batch(step, model):
        tokens = torch.multinomial(use, 32 * 12, replacement=True, generator=torch.Generator().manual_seed(step)).view(32, 12)
        return model(tokens), (score[tokens].mean(1) > 0).long()

    assert quiet(model, 120, batch, optimizer=torch.optim.SGD(model.parameters(), lr=1.0)) == []


def test_top_1_experts():
    torch.manual_seed(0)

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Linear(8, 6)
            self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)) for _ in range(6))

        def forward(self, x):
            share, chosen = self.gate(x).softmax(1).max(1)
            out = x.new_zeros(len(x), 2)
            for index, expert in enumerate(self.experts):
                rows = (chosen == index).nonzero().squeeze(1)
                if len(rows):
                    out = out.index_add(0, rows, expert(x[rows]) * share[rows, None])
            return out

    assert quiet(Experts(), 200, lambda step, model: classes(step, model, size=16)) == []


def test_a_policy_gradient_whose_loss_means_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))

    def batch(step, model):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(32, 4, generator=generator)
        log_p = model(x).log_softmax(1)
        action = torch.multinomial(log_p.exp(), 1, generator=generator)
        reward = (action.squeeze(1) == x[:, :3].argmax(1)).float() - 1 / 3
        return log_p.gather(1, action).squeeze(1), reward

    assert quiet(model, 200, batch, loss_fn=lambda log_p, reward: -(log_p * reward).mean()) == []


def test_a_gan_in_balance():
    torch.manual_seed(0)
    forger = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    judge = nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
    model = nn.ModuleDict({"forger": forger, "judge": judge})
    optimizers = {name: torch.optim.Adam(part.parameters(), lr=1e-3, betas=(0.5, 0.9)) for name, part in model.items()}
    bce = nn.functional.binary_cross_entropy_with_logits
    with gradwatch.watch(model, optimizers, on_finding=lambda finding: None) as watch:
        for _ in range(200):
            real, fake = torch.randn(32, 2) + 1, forger(torch.randn(32, 4))
            optimizers["judge"].zero_grad()
            (bce(judge(real), torch.ones(32, 1)) + bce(judge(fake.detach()), torch.zeros(32, 1))).backward()
            optimizers["judge"].step()
            optimizers["forger"].zero_grad()
            bce(judge(fake), torch.ones(32, 1)).backward()
            optimizers["forger"].step()
    assert [(finding.kind, finding.layer) for finding in watch.findings] == []


def test_a_solved_perceptron_whose_first_samples_happened_to_be_right():
    torch.manual_seed(1)
    model = nn.Linear(5, 1)
    weights = torch.randn(5)
    x = torch.randn(2000, 5)
    x = x[(x @ weights).abs() > 1.0][:400]

    def batch(step, model):
        return model(x[step]), (x[step] @ weights).sign()

    def perceptron(score, label):
        return nn.functional.relu(-label * score).mean()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    found = quiet(model, 400, batch, loss_fn=perceptron, optimizer=optimizer)
    assert not any(kind == "zero_gradient" for kind, *_ in found)


def test_a_loss_that_is_switched_on_later():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4))
    x = torch.randn(64, 4)

    def batch(step, model):
        return model(x) * min(1, max(0, (step - 30) / 100)), x * min(1, max(0, (step - 30) / 100))

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    assert quiet(model, 200, batch, loss_fn=nn.functional.mse_loss, optimizer=optimizer) == []


def test_a_head_that_starts_near_zero():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 100))
    nn.init.normal_(model[2].weight, std=1e-3)
    centres = torch.randn(100, 20)

    def batch(step, model):
        labels = torch.randint(100, (64,), generator=torch.Generator().manual_seed(step))
        return model(centres[labels] + torch.randn(64, 20)), labels

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    assert quiet(model, 100, batch, loss_fn=nn.functional.cross_entropy, optimizer=optimizer) == []


def test_outputs_without_a_gradient_in_the_first_record(caplog):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)

    def batch(step, model):
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        return model(x)[:, 0], x[:, 0] * (step >= 3)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert quiet(model, 100, batch, loss_fn=nn.functional.mse_loss, optimizer=optimizer, every=1) == []
    assert "failed" not in caplog.text


def test_a_resumed_run():
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    assert quiet(model, 300, classes, optimizer=optimizer) == []
    assert quiet(model, 200, classes, optimizer=optimizer) == []


def test_a_net_without_a_known_loss():
    assert quiet(net(), 200, classes, told=False) == []
    assert quiet(net(nn.Tanh), 200, classes, told=False) == []
