"""What people read while a training runs."""

import io

import numpy as np

from gradwatch.moments import COLUMNS
from gradwatch.records import Finding, Record
from gradwatch.writers.console import ConsoleWriter


def printed(*findings, stream=None):
    stream = stream or io.StringIO()
    writer = ConsoleWriter(stream)
    for finding in findings:
        writer.report(finding)
        writer.write(Record(finding.last_step, (), np.empty((0, len(COLUMNS)), np.float32)))
    writer.close()
    assert not stream.closed
    return stream


def vanishing(last_step, layer="fc1"):
    return Finding(
        "vanishing_gradient",
        layer,
        12,
        last_step,
        "warning",
        {"rms": 1e-9},
        "its gradient is 1e-9, 40,000 times smaller than that of 'fc3'.",
        "Use ReLU instead of Sigmoid, or initialise with a larger gain.",
    )


def test_a_finding_is_two_lines_and_its_end_is_one():
    assert printed(vanishing(12), vanishing(40), vanishing(40)).getvalue() == (
        "gradwatch: step 12: warning: vanishing_gradient at fc1: its gradient is 1e-9, 40,000 times smaller than that of 'fc3'.\n"
        "  try: Use ReLU instead of Sigmoid, or initialise with a larger gain.\n"
        "gradwatch: vanishing_gradient at fc1 lasted from step 12 to step 40\n"
    )


def test_a_finding_without_advice_is_one_line():
    finding = Finding("non_finite", "loss", 3, 3, "critical", message="the loss is NaN.")
    assert printed(finding).getvalue() == "gradwatch: step 3: critical: non_finite at loss: the loss is NaN.\n"


def test_a_layers_name_cannot_act_on_a_terminal():
    text = printed(vanishing(12, "a\x1b[2J\r\nb\u202e\ud800\tслой")).getvalue()
    assert "at a\\x1b[2J\\r\\nb\\u202e\\ud800\\tслой: its" in text
    assert text.count("\n") == 2


def test_a_terminal_that_lacks_a_letter_gets_its_escape():
    buffer = io.BytesIO()
    terminal = io.TextIOWrapper(buffer, encoding="ascii")
    printed(vanishing(12, "слой"), stream=terminal)
    assert b"at \\u0441\\u043b\\u043e\\u0439: its" in buffer.getvalue()


def test_the_stream_is_standard_error_of_the_moment(capsys):
    writer = ConsoleWriter()
    writer.report(vanishing(12))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gradwatch: step 12:")
