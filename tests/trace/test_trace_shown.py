"""A trace as text, table, page, frame and picture."""

import io
import sys

import matplotlib as mpl
import numpy as np
import pytest
import torch
from torch import nn

from gradwatch import statistics
from gradwatch.trace import trace

mpl.use("Agg")


@pytest.fixture
def neuron():
    model = nn.Sequential(nn.Linear(2, 1), nn.Sigmoid())
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.5, -1.0]]))
        model[0].bias.zero_()
    with trace(model) as shown:
        nn.BCELoss()(model(torch.tensor([[2.0, 1.0]])), torch.tensor([[1.0]])).backward()
    return shown


NEURON = """\
Forward and backward, in forward order
layer      tensor       shape   values
─────────  ───────────  ──────  ────────────
0 Linear   input        (1, 2)  [[2, 1]]
           output       (1, 1)  [[0]]
           dL/d output  (1, 1)  [[-0.5]]
           weight       (1, 2)  [[0.5, -1]]
           dL/d weight  (1, 2)  [[-1, -0.5]]
           bias         (1,)    [0]
           dL/d bias    (1,)    [-0.5]
1 Sigmoid  input        (1, 1)  [[0]]
           output       (1, 1)  [[0.5]]
           dL/d output  (1, 1)  [[-2]]
           dL/d input   (1, 1)  [[-0.5]]

The chain: read it upwards from the loss
layer  type     ‖dL/d output‖  gain  product  |da/dz|  closed  keeps
─────  ───────  ─────────────  ────  ───────  ───────  ──────  ─────
0      Linear             0.5                                    8 B
1      Sigmoid              2  0.25     0.25     0.25      0%    4 B

The blame: shares of the squared gradient of all parameters
parameter  shape   ‖dL/dW‖  share
─────────  ──────  ───────  ─────
0.weight   (1, 2)    1.118  83.3%
0.bias     (1,)        0.5  16.7%

Forward keeps 12 B for backward."""


def test_one_neuron_as_text(neuron, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    assert str(neuron) == NEURON
    assert repr(neuron) == "Trace(2 layers, 2 calls; print it to read it)"


def test_large_tensors_are_summed_up():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor([-1.0, -1, 1, 3]))
    with trace(model) as shown:
        model(torch.ones(5, 3)).sum().backward()
    assert "(5, 4)  rms 1.73, -1 to 3, zeros 0%" in str(shown)
    assert "(5, 4)  rms 1.58, 0 to 3, zeros 50%" in str(shown)
    assert shown["1"].valve.closed == 0.5


def test_what_is_not_finite_is_said():
    model = nn.Linear(3, 4)
    x = torch.ones(5, 3)
    x[0, 0] = float("inf")
    with trace(model) as shown:
        model(x).sum().backward()
    assert "1 NaN or Inf" in str(shown)


def test_branches_are_no_chain():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            x = self.first(x)
            return x + self.second(x)

    model = nn.Sequential(Skip(), Skip())
    with trace(model) as shown:
        model(torch.ones(2, 3)).sum().backward()
    assert "The layers are no plain chain" in str(shown)


def test_a_long_trace_leaves_out_its_middle():
    model = nn.Sequential(*[nn.Tanh() for _ in range(300)])
    with trace(model) as shown:
        model(torch.ones(1, requires_grad=True)).sum().backward()
    text = str(shown)
    assert "1000 more in trace.to_pandas()" in text
    assert "… 100 more" in text
    assert "0 Tanh" in text
    assert "299 Tanh" in text
    assert "150 Tanh" not in text
    assert len(shown.to_pandas()) == 1200


def test_a_notebook_shows_a_page_in_which_names_do_no_harm():
    model = nn.Sequential()
    model.add_module("<script>alert(1)</script>", nn.Linear(2, 1))
    model.add_module("a\x1b[31m", nn.Tanh())
    with trace(model) as shown:
        shown.tap("<b>", model(torch.ones(1, 2))).sum().backward()
    page = shown._repr_html_()
    assert "<script" not in page
    assert "<b>" not in page
    assert "&lt;script&gt;" in page
    assert "\x1b" not in page + str(shown)
    assert page.count("<table>") == 3


def test_a_rich_terminal_shows_tables():
    rich = pytest.importorskip("rich.console", reason="rich is an extra")
    model = nn.Sequential()
    model.add_module("[red]", nn.Linear(2, 1))
    with trace(model) as shown:
        model(torch.ones(1, 2)).sum().backward()
    screen = io.StringIO()
    rich.Console(file=screen, width=120).print(shown)
    assert "│ [red] Linear │ input " in screen.getvalue()
    assert "Forward keeps 8 B for backward." in screen.getvalue()


def test_before_the_end_there_is_little_to_show(neuron):
    unfinished = trace(nn.Linear(1, 1))
    assert repr(unfinished) == str(unfinished) == unfinished.__rich__() == "Trace(the traced block has not ended)"
    assert unfinished._repr_html_() is None


def test_frame(neuron):
    frame = neuron.to_pandas()
    assert list(frame.columns) == [
        "layer", "type", "call", "tensor", "path", "shape", *statistics.STATISTICS,
        "derivative", "closed_share", "kept", "gain", "product", "share",
    ]  # fmt: skip
    assert list(zip(frame["layer"], frame["tensor"], strict=True)) == [
        ("0", "input"), ("0", "activation"), ("0", "activation_grad"),
        ("0.weight", "parameter"), ("0.weight", "parameter_grad"), ("0.bias", "parameter"), ("0.bias", "parameter_grad"),
        ("1", "input"), ("1", "activation"), ("1", "activation_grad"), ("1", "input_grad"),
    ]  # fmt: skip
    weight = frame[(frame["layer"] == "0.weight") & (frame["tensor"] == "parameter_grad")].iloc[0]
    assert (weight["min"], weight["max"], weight["count"]) == (-1, -0.5, 2)
    assert weight["norm"] == pytest.approx(1.25**0.5)
    assert weight["share"] == pytest.approx(1.25 / 1.5)
    assert frame.set_index(["layer", "tensor"]).loc[("1", "input_grad"), "gain"] == 0.25
    sigmoid = frame.set_index(["layer", "tensor"]).loc[("1", "activation")]
    assert (sigmoid["kept"], sigmoid["derivative"], sigmoid["closed_share"]) == (4, 0.25, 0)


def test_frame_of_structures():
    lstm = nn.LSTM(3, 2)
    with trace(lstm) as shown:
        lstm(torch.ones(4, 1, 3))[0].sum().backward()
    outputs = shown.to_pandas().query("tensor == 'activation'")
    assert list(outputs["path"]) == ["[0]", "[1][0]", "[1][1]"]
    assert list(outputs["shape"]) == [(4, 1, 2), (1, 1, 2), (1, 1, 2)]


def test_picture_marks_closed_valves_and_exact_zeros():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid(), nn.Linear(2, 2), nn.Sigmoid())
    with torch.no_grad():
        model[2].bias.fill_(100.0)
    with trace(model) as shown:
        nn.functional.binary_cross_entropy(model(torch.ones(3, 2)), torch.zeros(3, 2)).backward()
    ax = shown.plot()
    assert ax.get_yscale() == "log"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0 Linear", "1 Sigmoid", "2 Linear", "3 Sigmoid"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "layer",
        "activation, with its closed share",
        "closed activation: |da/dz| < 0.001 in over 75% of it",
    ]
    assert {text.get_text() for text in ax.texts} == {"100%", "exactly 0"}
    heights = ax.lines[0].get_ydata()
    assert heights[3] == pytest.approx(shown["3"].call.grad_output_norm)
    assert np.all(heights[:3] == heights[0])
    mpl.pyplot.close(ax.figure)


def test_picture_on_given_axes(neuron):
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    assert neuron.plot(ax) is ax


def test_picture_without_matplotlib(neuron, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'matplotlib, which is not installed: pip install "gradwatch\[demo\]"'):
        neuron.plot()
