"""Runs made of numbers that a test chooses, for tests of what is shown of runs."""

import math

import numpy as np

from gradwatch import moments
from gradwatch.history import History
from gradwatch.records import Finding, Record, Site

BIAS, WEIGHT = (4,), (4, 3)


def sites(layers, *, full=True):
    """Three tensors of each layer and three of its weight and bias, as a watch orders them; a light record has gradients only."""
    made = []
    for layer in layers:
        if full:
            made += [Site(layer, tensor, "Linear") for tensor in ("activation", "activation_grad", "input_grad")]
        for name, shape in ((f"{layer}.weight", WEIGHT), (f"{layer}.bias", BIAS)):
            tensors = ("parameter", "parameter_grad", "update") if full else ("parameter_grad",)
            made += [Site(name, tensor, "Linear", shape) for tensor in tensors]
    return tuple(made)


def record(step, of, values=(), *, rms=1.0, **about):
    """A record in which every site has one rms.

    Args:
        step: The step.
        of: Its sites; the same tuple for every record that shares them.
        values: (layer or parameter, tensor) → a number for rms, or a dict by column; None: the site was not seen.
        rms: Of the others.
        about: Other fields of the record.
    """
    rows = np.tile(moments.EMPTY, (len(of), 1))
    special = dict(values)
    for index, site in enumerate(of):
        given = special.get((site.layer, site.tensor), rms)
        if given is None:
            continue
        columns = {
            "count": math.prod(site.shape) or 8,
            "calls": 1,
            "mean": 0.0,
            "min": -1.0,
            "max": 1.0,
            "zeros": 0,
            "nonfinite": 0,
        }
        columns |= given if isinstance(given, dict) else {"rms": given, "nonfinite": 0 if np.isfinite(given) else 1}
        for name, value in columns.items():
            rows[index, moments.COLUMNS.index(name)] = value
    return Record(step, of, rows, **about)


def history(records, findings=()):
    """A history of records, with findings."""
    made = History()
    for one in records:
        made.append(one)
    made.findings = list(findings)
    return made


def finding(kind, layer, first_step, last_step=None, severity="critical", **evidence):
    """A finding with a message that names the layer."""
    last = first_step if last_step is None else last_step
    return Finding(kind, layer, first_step, last, severity, evidence, f"{kind} was seen at {layer}", f"look at {layer}")


SICK = ("encoder.0", "encoder.1", "head")
STEPS = 60


def sick():
    """60 steps, every tenth one full: the gradient of encoder.1 is NaN from step 40 to 44, that of head exactly zero in step 20."""
    full, light = sites(SICK), sites(SICK, full=False)
    records = []
    for step in range(STEPS):
        values = {("encoder.0.weight", "parameter_grad"): 1e-6, ("encoder.1.weight", "parameter_grad"): 1e-3}
        if 40 <= step < 45:
            values["encoder.1.weight", "parameter_grad"] = math.nan
        if step == 20:
            values["head.weight", "parameter_grad"] = 0.0
        of = full if step % 10 == 0 else light
        records.append(record(step, of, values, loss=1 / (step + 1), full=of is full, backwards=of is full))
    findings = [
        finding("vanishing_gradient", "encoder.0", 0, STEPS - 1, share=1e-6),
        finding("non_finite", "encoder.1", 40, 44, gradient=math.nan),
        finding("not_updated", "head.weight", 42, 44, "warning", ratio=0.5),
    ]
    return history(records, findings)


def healthy(steps=STEPS, layers=(*SICK, "extra")):
    """Everything is one, and nothing was found."""
    full, light = sites(layers), sites(layers, full=False)
    return history(record(step, full if step % 10 == 0 else light, full=step % 10 == 0, loss=0.5) for step in range(steps))


def written(recorded, folder):
    """Writes event files as a watch does, and returns their folder."""
    from gradwatch.writers.tensorboard import EventFileWriter

    writer = EventFileWriter(folder)
    told = list(recorded.findings)
    for one in recorded:
        for new in [new for new in told if new.last_step <= one.step]:
            writer.report(new)
            told.remove(new)
        writer.write(one)
    for rest in told:
        writer.report(rest)
    writer.close()
    return folder


HOSTILE = "<img src=x onerror=alert(1)>"


def hostile():
    """Names and messages that are markup, or confuse a terminal, a URL or a reader."""
    layers = (HOSTILE, "a&b=c#d?e%20", "\u202eevil", "__proto__", "</script><script>alert(2)</script>")
    of = sites(layers)
    found = finding("exploding_gradient", HOSTILE, 3, 9)
    object.__setattr__(found, "message", "<script>alert(3)</script> & </script>")
    return history([record(step, of, loss=1.0) for step in range(10)], [found])
