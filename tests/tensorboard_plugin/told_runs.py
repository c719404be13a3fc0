"""Runs as a source tells them to the view, small enough to be written down."""

import math

STATISTICS = {
    "gradient": {"title": "gradient rms", "tensor": "parameter_grad", "statistic": "rms", "unit": "tensor", "scale": "log"},
    "activation": {"title": "activation rms", "tensor": "activation", "statistic": "rms", "unit": "tensor", "scale": "log"},
    "update_ratio": {"title": "update ratio", "tensor": "update", "statistic": "update_ratio", "unit": "1", "scale": "log"},
    "zeros": {"title": "zeros", "tensor": "activation", "statistic": "zero_share", "unit": "1", "scale": "share"},
    "mean": {"title": "activation mean", "tensor": "activation", "statistic": "mean", "unit": "tensor", "scale": "linear"},
}
OF_PARAMETERS = {"parameter_grad", "update", "parameter"}

ABSENT = "–"


def plain(value):
    """A number as JSON can hold it."""
    return (
        value
        if isinstance(value, str) or math.isfinite(value)
        else {True: "NaN"}.get(math.isnan(value), str(value).replace("inf", "Infinity"))
    )


def finding(kind, layer, first, last, severity="critical", message="it was seen", advice="Change it.", evidence=None):
    return {
        "kind": kind,
        "layer": layer,
        "first_step": first,
        "last_step": last,
        "severity": severity,
        "evidence": evidence or {},
        "message": message,
        "advice": advice,
    }


def run(name, values, *, every=1, steps=None, incidents=(), parameters=None, types=None, notes=(), loss=None):
    """A run.

    Args:
        name: Its name.
        values: Statistic → layer → its values; a number, NaN, infinity, or ``ABSENT``.
        every: Steps between two values of every statistic but the gradient.
        steps: How many steps it has; as many as there are gradients where it is not given.
        incidents: Pairs of a cause and its consequences.
        parameters: Layer → parameter → values of its gradient; a weight each where it is not given.
        types: Layer → type.
        notes: What could not be read.
        loss: Values of the loss at every step.
    """
    parameters = parameters or {}
    layers = list(next(iter(values.values())))
    steps = steps or len(next(iter(values["gradient"].values())))
    owned = {layer: list(parameters.get(layer, {f"{layer}.weight": []})) for layer in layers}
    statistics = [
        {"id": key, "describe": f"What {key} is.", "good": None, "parameters": entry["tensor"] in OF_PARAMETERS} | entry
        for key, entry in STATISTICS.items()
        if key in values
    ]
    sick = {found["layer"]: found for cause, rest in incidents for found in (cause, *rest)}
    return {
        "name": name,
        "layout": {
            "layers": [
                {
                    "name": layer,
                    "type": (types or {}).get(layer, "Linear"),
                    "tensors": [],
                    "parameters": owned[layer],
                    "weight": owned[layer][0],
                }
                for layer in layers
            ],
            "statistics": statistics,
            "firstStep": 0,
            "lastStep": steps - 1,
            "records": steps,
            "full": every,
            "notes": list(notes),
        },
        "values": {
            key: {
                "steps": list(range(0, steps, 1 if key == "gradient" else every)),
                "values": [[plain(value) for value in of_layer[layer]] for layer in layers],
            }
            for key, of_layer in values.items()
        },
        "parameters": {
            name: [plain(value) for value in numbers] for layer in layers for name, numbers in parameters.get(layer, {}).items()
        },
        "incidents": [{"cause": cause, "consequences": list(rest)} for cause, rest in incidents],
        "loss": {"steps": list(range(len(loss or ()))), "values": [plain(value) for value in loss or ()]},
        "table": [
            {
                "layer": layer,
                "type": (types or {}).get(layer, "Linear"),
                "status": sick[layer]["severity"] if layer in sick else "ok",
                "kinds": [sick[layer]["kind"]] if layer in sick else [],
                "over": [],
                "last": {"gradient": last(values["gradient"][layer], steps)},
                "spark": {"gradient": {"values": [1.0], "flags": [0]}},
            }
            for layer in layers
        ],
    }


def last(numbers, steps):
    value = plain(numbers[-1])
    flag = {"–": 1, "NaN": 2, "Infinity": 3, 0: 4}.get(value, 0)
    return {"value": None if flag else value, "flag": flag, "step": steps - 1}


def large(layers, steps):
    """A run whose values the source makes up: blocks of ten layers."""
    made = run("large", {"gradient": {f"blocks.{index // 10}.layer{index % 10}": [1.0] for index in range(layers)}}, steps=steps)
    return made | {"generate": {"layers": layers, "steps": steps}, "values": {}}


SPECIAL = run(
    "special",
    {
        "gradient": {
            "sound": [1e-3, 1e-3, 1e-2, 1e-1],
            "broken": [1e-3, math.nan, math.inf, 0.0],
            "silent": [1e-3, ABSENT, ABSENT, 1e-3],
        }
    },
)


def block(number, values):
    return {f"encoder.layers.{number}.{part}": series for part, series in zip(("fc1", "fc2", "fc3"), values, strict=True)}


GROUPED = run(
    "grouped",
    {
        "gradient": {"embed": [1e-3] * 4}
        | block(0, [[1e-3] * 4, [1e-3] * 4, [1e-3] * 4])
        | block(1, [[1e-3] * 4, [1e-3, 1e-3, math.nan, 0.0], [1e-3] * 4])
        | {"head": [1e-3, 1e-3, 1e-2, 1e-4]}
    },
    incidents=[(finding("non_finite", "encoder.layers.1.fc2.weight", 2, 3), [finding("dead_units", "head", 3, 3, "warning")])],
    loss=[2.0, 1.5, 1.0, math.nan],
)
