"""Tensors in nested tuples, lists and dicts: what modules take and return."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any


def convert(value: Any, kind: type[Any], function: Callable[[Any], Any]) -> Any:
    """The same structure with every ``kind`` in it replaced by ``function`` of it.

    Mappings and dataclasses become dicts, tuples of every sort plain tuples; anything else becomes None.
    """
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, Mapping):
        return {key: convert(item, kind, function) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(convert(item, kind, function) for item in value)
    if isinstance(value, list):
        return [convert(item, kind, function) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: convert(getattr(value, field.name), kind, function) for field in fields(value)}
    return None


def leaves(value: Any, kind: type[Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every ``kind`` in a structure, with the subscripts that lead to it: ``"[1][0]"``, ``"['logits']"``, ``""``."""
    if isinstance(value, kind):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, kind, f"{path}[{key!r}]")
    elif isinstance(value, tuple | list):
        for index, item in enumerate(value):
            yield from leaves(item, kind, f"{path}[{index}]")
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from leaves(getattr(value, field.name), kind, f"{path}[{field.name!r}]")


def arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any], kind: type[Any]) -> Any:
    """The arguments of a call as one structure.

    Returns:
        The one argument that holds tensors; where several do, the tuple of the positional arguments, or, with tensors among
        the keyword arguments, a dict of both under positions and keywords.
    """
    holding = {key: value for key, value in (*enumerate(args), *kwargs.items()) if any(leaves(value, kind))}
    if len(holding) == 1:
        return next(iter(holding.values()))
    return args if all(isinstance(key, int) for key in holding) else holding
