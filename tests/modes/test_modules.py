"""What modules may be and how they may be called: recurrent, shared, in containers, by the back door, by turns with evaluation."""

import dataclasses

import pytest
import torch
from both_ways import rows as figures
from programs import X, assert_row, same_with_and_without, step
from registry import Mode
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

RECURRENT = Mode(
    "Modules",
    "recurrent networks: LSTM, GRU, packed sequences",
    recorded="of `nn.LSTM` and its like the outputs of the whole sequence and the last states, merged; every weight apart",
    unsupported="the steps in time inside `nn.LSTM` and its like; cells in a loop show them",
)


class Reader(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.rnn, self.head = kind(4, 3, num_layers=2, batch_first=True), nn.Linear(3, 1)

    def forward(self, x, lengths):
        out, _ = self.rnn(pack_padded_sequence(x, lengths, batch_first=True))
        padded, _ = pad_packed_sequence(out, batch_first=True)
        return self.head(padded)


@RECURRENT
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_packed_sequence(kind):
    x, lengths = torch.linspace(-1, 1, 24).view(2, 3, 4), torch.tensor([3, 2])

    def program(watched):
        model = Reader(kind)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with watched(model, optimizer):
            for _ in range(4):
                model(x, lengths).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
        return list(model.parameters())

    watch = same_with_and_without(program)
    torch.manual_seed(0)
    model = Reader(kind)
    out, states = model.rnn(pack_padded_sequence(x, lengths, batch_first=True))
    out.data.retain_grad()
    model.head(pad_packed_sequence(out, batch_first=True)[0]).square().mean().backward()
    rows = figures(watch)
    assert_row(rows["rnn", "activation"], out.data, *(states if isinstance(states, tuple) else (states,)))
    assert_row(rows["rnn", "activation_grad"], out.data.grad)  # nobody uses the last states
    for name, parameter in model.named_parameters():
        assert_row(rows[name, "parameter_grad"], parameter.grad)


SHARED = Mode(
    "Modules",
    "call a module several times in one pass: cells in a loop, shared layers, one ReLU for all",
    recorded="its calls merge, and `calls` counts them; the place in the order is that of its first call",
    unsupported="the calls apart",
)


class Unrolled(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRUCell(4, 3), nn.Linear(3, 1)

    def forward(self, x):
        state, states = torch.zeros(1, 3), []
        for row in x:
            state = self.cell(row.unsqueeze(0), state)
            states.append(state)
        self.states = states
        return self.head(state)


@SHARED
def test_the_calls_of_a_cell_merge():
    def program(watched):
        model = Unrolled()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with watched(model, optimizer):
            for _ in range(4):
                step(model, optimizer)
        return list(model.parameters())

    watch = same_with_and_without(program)
    torch.manual_seed(0)
    model = Unrolled()
    output = model(X)
    for state in model.states:
        state.retain_grad()
    output.square().mean().backward()
    rows = figures(watch)
    assert_row(rows["cell", "activation"], *model.states)
    assert_row(rows["cell", "activation_grad"], *(state.grad for state in model.states))
    assert_row(rows["cell.weight_hh", "parameter_grad"], model.cell.weight_hh.grad)
    assert [site.layer for site in watch.history[0].sites if site.tensor == "activation"] == ["cell", "head"]


EVAL = Mode(
    "Modules",
    "`train`, `eval`, `no_grad` and `inference_mode` by turns",
    recorded="forwards that build a graph, in `eval` too; nothing under `no_grad` and `inference_mode`",
    unsupported="to tell a validation that builds a graph from training: put it between `watch.pause()` and `watch.resume()`, as "
    "the Lightning callback does",
)


@EVAL
def test_only_forwards_that_build_a_graph_are_observed():
    def program(watched):
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with watched(model, optimizer) as watch:
            for number in range(6):
                model.train(number != 3)  # a step in eval mode
                loss = model(X).square().mean()
                model.eval()
                with torch.no_grad():
                    model(X + 1)
                with torch.inference_mode():
                    model(X + 2)
                if watch is not None:
                    watch.pause()
                model(X + 3).sum().backward()
                model.zero_grad()
                if watch is not None:
                    watch.resume()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        return list(model.state_dict().values())

    watch = same_with_and_without(program)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    assert_row(figures(watch, 0)["0", "activation"], model[0](X))
    for number in range(6):
        rows = figures(watch, number)
        assert rows["0", "activation"].calls == rows["3", "activation"].calls == 1
        assert (rows["2", "activation"].rms == rows["1", "activation"].rms) == (number == 3)  # dropout rests in eval mode
    assert [record.backwards for record in watch.history] == [1] * 6


FAST = Mode(
    "Modules",
    "evaluate a model with `nn.TransformerEncoder` in its midst",
    recorded="evaluation under `no_grad` takes PyTorch's fast path, with the same bits as without a watch",
    unsupported="the fast path of an encoder that is called by itself, and not through the watched model, while a full record is "
    "in progress: its hooks are in the way, and the last bits differ",
)


@FAST
def test_evaluation_takes_the_fast_path(monkeypatch):
    taken = []
    fast = torch._transformer_encoder_layer_fwd
    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", lambda *args: taken.append(1) or fast(*args))
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))

    def program(watched):
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        model = nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Linear(8, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        shown = []
        with watched(model, optimizer):
            for _ in range(4):
                loss = model.train()(x).square().mean()
                with torch.no_grad():
                    shown.append(model.eval()(x))
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        return [*shown, *model.parameters()]

    watch = same_with_and_without(program)
    assert len(taken) == 4 * 4 * 2  # runs, steps, layers
    for number in range(4):
        assert figures(watch, number)["0.layers.1.linear2", "activation"].calls == 1
        assert figures(watch, number)["0.layers.1.linear2", "activation_grad"].calls == 1


BYPASSED = Mode(
    "Modules",
    "bypass a module's `__call__`: `module.forward(x)`, `MultiheadAttention.out_proj`, weights passed to a function",
    recorded="its parameters; `watch.report()` lists the layer as not observed, with the reason",
    unsupported="its activations: [tap them](api.md#watch)",
)


BACK_DOOR = "not called through __call__, or only in a compiled graph; its parameters get gradients"


class BackDoors(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.direct, self.weights, self.unused, self.frozen = (nn.Linear(4, 4) for _ in range(4))
        self.silent = Silent()

    def forward(self, x):
        x, _ = self.attention(x, x, x)
        self.silent(x)
        with torch.no_grad():
            offset = self.frozen(x)
        x = x + offset
        return nn.functional.linear(self.direct.forward(x), self.weights.weight, self.weights.bias)


class Silent(nn.Module):
    def forward(self, x):
        return None


@BYPASSED
def test_what_is_not_observed_is_listed_with_its_reason():
    report = ""

    def program(watched):
        nonlocal report
        model = BackDoors()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with watched(model, optimizer) as watch:
            for _ in range(4):
                step(model, optimizer, X.unsqueeze(0))
            report = report if watch is None else watch.report()
        return list(model.parameters())

    watch = same_with_and_without(program)
    assert [line for line in report.splitlines() if line.startswith("not observed")] == [
        f"not observed ({BACK_DOOR}): attention.out_proj, direct, weights",
        "not observed (never called through __call__, or only in a compiled graph): unused",
        "not observed (called only where no graph is built, or none is seen: no_grad, torch.func, a compiled graph): frozen",
        "not observed (it returned no tensor of floating-point numbers, or only nested ones of the strided layout): silent",
    ]
    torch.manual_seed(0)
    model = BackDoors()
    model(X.unsqueeze(0)).square().mean().backward()
    for name in ("attention.out_proj.weight", "direct.weight", "weights.weight"):
        assert_row(figures(watch)[name, "parameter_grad"], model.get_parameter(name).grad)


STRUCTURES = Mode(
    "Modules",
    "return anything: dicts, dataclasses, tuples, nothing, an input, a parameter, a view; work in place",
    recorded="every floating-point tensor in it, merged; each as the module returned it, and with its whole gradient",
    unsupported="tensors in objects of other classes",
)


@dataclasses.dataclass
class Pair:
    left: torch.Tensor
    right: torch.Tensor | None = None


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.values = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0]))

    def forward(self):
        return self.values


class Split(nn.Module):
    def forward(self, x):
        return {"pair": Pair(x[:, :2] * 2, None), "count": torch.tensor(3), "rest": (x[:, 2:],)}


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.same, self.split = Table(), nn.Identity(), Split()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.split(self.same(x) * self.table())
        return self.relu(out["pair"].left).sum() + 5 * out["rest"][0].sum()


@STRUCTURES
def test_modules_may_return_anything():
    def program(watched):
        model = Everything()
        optimizer = torch.optim.SGD(model.parameters(), lr=2.0**-6)
        with watched(model, optimizer):
            for _ in range(4):
                model(X).backward()
                optimizer.step()
                optimizer.zero_grad()
        return list(model.parameters())

    rows = figures(same_with_and_without(program))
    table = torch.tensor([1.0, 2.0, 3.0, 4.0])
    product = X * table
    # By hand: dL/d left is 1 where 2·product is positive, and dL/d rest is 5.
    positive = (product[:, :2] > 0).float()
    into = torch.cat([2 * positive, torch.full((5, 2), 5.0)], 1)
    assert_row(rows["table", "activation"], table)
    assert_row(rows["table", "activation_grad"], (into * X).sum(0))
    assert_row(rows["table.values", "parameter_grad"], (into * X).sum(0))
    assert_row(rows["same", "activation"], X)
    assert ("same", "activation_grad") not in rows  # the input needs none
    assert_row(rows["split", "activation"], 2 * product[:, :2], product[:, 2:])
    assert_row(rows["split", "activation_grad"], positive, torch.full((5, 2), 5.0))
    assert_row(rows["relu", "activation"], torch.relu(2 * product[:, :2]))
    assert_row(rows["relu", "activation_grad"], torch.ones(5, 2))
    assert_row(rows["relu", "input_grad"], positive)


LISTS = Mode(
    "Modules",
    "keep modules in `ModuleList`, `ModuleDict` and `Sequential`, nested and empty",
    recorded="the modules in them; the containers are none of the layers, unless `include` names one or it owns parameters",
    unsupported="layers in plain Python lists are found by the gradient that reaches them, as `unregistered.0` and so on",
)


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleDict({"fc": nn.Linear(4, 4), "act": nn.Tanh()}) for _ in range(2)])
        self.none = nn.ModuleList()
        self.plain = [nn.Linear(4, 4)]
        self.head = nn.Sequential(nn.Sequential(), nn.Linear(4, 1))

    def forward(self, x):
        for block in self.blocks:
            x = block["act"](block["fc"](x))
        return self.head(self.plain[0](x))


@LISTS
def test_containers_are_no_layers_and_what_is_in_them_is():
    def program(watched):
        model = Nested()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with watched(model, optimizer):
            for _ in range(12):
                step(model, optimizer)
                model.plain[0].zero_grad()
        return list(model.parameters())

    watch = same_with_and_without(program)
    layers = [site.layer for site in watch.history[-1].sites if site.tensor == "activation"]
    assert layers == ["blocks.0.fc", "blocks.0.act", "blocks.1.fc", "blocks.1.act", "head.0", "head.1"]
    torch.manual_seed(0)
    model = Nested()
    model(X).square().mean().backward()
    rows = figures(watch)
    assert_row(rows["unregistered.0", "parameter_grad"], model.plain[0].weight.grad)
    assert_row(rows["blocks.1.fc.weight", "parameter_grad"], model.blocks[1]["fc"].weight.grad)
    assert ("unregistered", "not_updated") in {(finding.layer, finding.kind) for finding in watch.findings}


MEMORY = Mode(
    "Modules",
    "`memory_format=torch.channels_last`, nested tensors of the jagged layout",
    recorded="as any other tensor; of a nested one the numbers that are stored, and no padding",
    unsupported="nested tensors of the older, strided layout: their layers are listed as not observed",
)


@MEMORY
def test_images_that_are_stored_channels_last():
    images = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)

    def build():
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 3)).to(
            memory_format=torch.channels_last
        )

    def program(watched):
        model = build()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with watched(model, optimizer):
            for _ in range(4):
                step(model, optimizer, images)
        return list(model.state_dict().values())

    watch = same_with_and_without(program)
    torch.manual_seed(0)
    model = build()
    hidden = model[0](images)
    hidden.retain_grad()
    model[1:](hidden).square().mean().backward()
    assert_row(figures(watch)["0", "activation"], hidden)
    assert_row(figures(watch)["0", "activation_grad"], hidden.grad)


@MEMORY
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided], ids=str)
def test_nested_tensors(layout):
    rows = [X[:3], X[3:]]

    def program(watched):
        model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with watched(model, optimizer) as watch:
            for _ in range(4):
                out = model(torch.nested.nested_tensor(rows, layout=layout))
                torch.nested.to_padded_tensor(out, 0.0).square().sum().backward()
                optimizer.step()
                optimizer.zero_grad()
            if watch is not None:
                assert ("nested ones of the strided layout): 0, 1, 2" in watch.report()) == (layout is torch.strided)
        return list(model.parameters())

    watch = same_with_and_without(program)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))
    hidden = model[0](X)
    hidden.retain_grad()
    model[1:](hidden).square().sum().backward()
    assert_row(figures(watch)["0.weight", "parameter_grad"], model[0].weight.grad)
    if layout is torch.jagged:
        assert_row(figures(watch)["0", "activation"], hidden)
        assert_row(figures(watch)["0", "activation_grad"], hidden.grad)


CHECKPOINTED = Mode(
    "Modules",
    "models of Hugging Face's transformers, with `gradient_checkpointing_enable()` too",
    recorded="each layer once, also where checkpointing runs forward twice",
    unsupported="what a fused attention does inside: its dropout module is listed as not observed",
)


@CHECKPOINTED
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_language_model(checkpointed):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    transformers.logging.set_verbosity_error()
    tokens = torch.arange(12).view(2, 6)

    def build():
        torch.manual_seed(0)
        sizes = {"n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 20, "n_positions": 8, "bos_token_id": 0, "eos_token_id": 0}
        rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **rates, use_cache=False)).train()

    def program(watched):
        model = build()
        if checkpointed:
            model.gradient_checkpointing_enable()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        with watched(model, optimizer):
            for _ in range(4):
                model(input_ids=tokens, labels=tokens).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        return list(model.parameters())

    watch = same_with_and_without(program)
    model, seen = build(), {}
    names = ("transformer.wte", "transformer.h.0.mlp.c_fc", "transformer.h.1.attn.c_attn", "transformer.ln_f", "lm_head")
    for name in names:
        model.get_submodule(name).register_forward_hook(lambda _module, _args, out, name=name: seen.update({name: out}))
    loss = model(input_ids=tokens, labels=tokens).loss
    for out in seen.values():
        out.retain_grad()
    loss.backward()
    rows = figures(watch)
    for name in names:
        assert_row(rows[name, "activation"], seen[name], rel=1e-4)
        assert_row(rows[name, "activation_grad"], seen[name].grad, rel=1e-4)
    assert_row(rows["transformer.wte.weight", "parameter_grad"], model.transformer.wte.weight.grad, rel=1e-4)
    assert watch.findings == []
