"""A request of the page → what it is answered with: JSON, or a grid as bytes.

What comes in are names and numbers that are looked up among those that TensorBoard's data provider offers; nothing is ever opened
by a name. What goes out is JSON in ASCII, or bytes, so that a hostile name of a layer is never markup.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

import numpy as np

from gradwatch.tensorboard_plugin import answers
from gradwatch.tensorboard_plugin.answers import Grid
from gradwatch.tensorboard_plugin.provider import Reader, Scope, Unknown
from gradwatch.tensorboard_plugin.recorded import Layer, Run
from gradwatch.tensorboard_plugin.shown import SHOWN

Args = Mapping[str, str]

MAX_WIDTH = 4096
"""Columns of a grid: more than a screen has pixels."""

JSON, BYTES = "application/json", "application/octet-stream"


class Refused(ValueError):
    """A request without a meaning; its text is a sentence."""


def answer(reader: Reader, scope: Scope, route: str, args: Args) -> tuple[HTTPStatus, str, bytes]:
    """Answers one request.

    Args:
        reader: Where runs come from.
        scope: On whose behalf it is asked.
        route: One of ``ROUTES``.
        args: The query.

    Returns:
        Status, content type, content. Where there is no such thing or the request has no meaning, the content is
        ``{"error": sentence}``.
    """
    try:
        told = ROUTES[route](reader, scope, args)
    except Unknown as error:
        return HTTPStatus.NOT_FOUND, JSON, answers.as_json({"error": str(error.args[0])})
    except Refused as error:
        return HTTPStatus.BAD_REQUEST, JSON, answers.as_json({"error": str(error)})
    return (HTTPStatus.OK, BYTES, told) if isinstance(told, bytes) else (HTTPStatus.OK, JSON, answers.as_json(told))


def _runs(reader: Reader, scope: Scope, _args: Args) -> Any:
    return reader.runs(scope)


def _series(run: Run, args: Args) -> Any:
    return answers.series(run, _layer(run, _text(args, "layer")))


def _grid(run: Run, args: Args) -> bytes:
    statistic = _text(args, "statistic")
    if statistic not in SHOWN:
        raise Unknown(f"there is no statistic {statistic!r}; layout lists those of a run")
    layer = _layer(run, args["layer"]) if "layer" in args else None
    width = _number(args, "width", 1, MAX_WIDTH) or 1200
    first, last = (_number(args, name, 0, 2**53) for name in ("from", "to"))
    return pack(answers.grid(run, SHOWN[statistic], first=first, last=last, width=width, layer=layer))


def pack(grid: Grid) -> bytes:
    """A grid as bytes, with a header: values, float32, little-endian; flags, uint8."""
    steps, last = grid.steps.tolist(), grid.last.tolist()
    values = np.ascontiguousarray(grid.values, "<f4").tobytes()
    flags = np.ascontiguousarray(grid.flags).tobytes()
    return answers.with_header({"rows": grid.rows, "columns": len(steps), "steps": steps, "last": last}, values + flags)


def _of_a_run(ask: Callable[[Run, Args], Any]) -> Callable[[Reader, Scope, Args], Any]:
    return lambda reader, scope, args: ask(reader.run(scope, _text(args, "run")), args)


ROUTES: dict[str, Callable[[Reader, Scope, Args], Any]] = {
    "runs": _runs,
    "layout": _of_a_run(lambda run, _: answers.layout(run)),
    "table": _of_a_run(lambda run, _: answers.table(run)),
    "incidents": _of_a_run(lambda run, _: answers.incidents(run)),
    "loss": _of_a_run(lambda run, _: answers.loss(run)),
    "series": _of_a_run(_series),
    "grid": _of_a_run(_grid),
}
"""Name → what answers it."""


def _layer(run: Run, name: str) -> Layer:
    found = next((layer for layer in run.layers if layer.name == name), None)
    if found is None:
        raise Unknown(f"the run has no layer {name!r}")
    return found


def _text(args: Args, name: str) -> str:
    if name not in args:
        raise Refused(f"the request lacks {name!r}")
    return args[name]


def _number(args: Args, name: str, least: int, most: int) -> int | None:
    text = args.get(name, "")
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and least <= int(text) <= most):
        raise Refused(f"{name!r} must be a whole number from {least} to {most}, and is {text!r}")
    return int(text)
