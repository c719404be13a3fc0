"""The order of forward, where a compiler has traced it: no hook runs in a graph, but its sinks are numbered."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from torch import nn

from gradwatch.capture.selection import kind_of
from gradwatch.records import Site


def with_compiled(order: Mapping[str, str], layers: Mapping[str, nn.Module], numbers: Mapping[Site, float]) -> dict[str, str]:
    """Adds layers of compiled graphs to an order, and with them all that nobody has reached, as the model defines them.

    Args:
        order: Layer → its type, in the order in which forward has reached them.
        layers: All that are observed.
        numbers: What was measured in graphs → its number in the order of forward.
    """
    kinds = {name: kind_of(module) for name, module in layers.items()} | {site.layer: site.type for site in numbers}
    names, place = list(order), 0
    for name in in_order(layers, {site.layer: number for site, number in numbers.items()}):
        if name not in order:
            names.insert(place, name)
        place = names.index(name) + 1
    return {name: order.get(name, kinds.get(name, "")) for name in names}


def in_order(layers: Iterable[str], numbers: Mapping[str, float]) -> list[str]:
    """Layers in the order of forward, as far as numbers tell it, and else as they are defined.

    Args:
        layers: In the order in which they are defined.
        numbers: Layer, or tap → its number in the order of forward. Blocks that share a graph share its numbers, so that a number
            which comes again begins another block.
    """
    blocks: list[list[list[str]]] = [[]]  # block → groups: a layer with a number, and those behind it that have none
    seen: set[float] = set()
    for name in layers:
        if numbers.get(name) in seen:
            blocks.append([])
            seen.clear()
        if name in numbers:
            seen.add(numbers[name])
        if name in numbers or not blocks[-1]:
            blocks[-1].append([])
        blocks[-1][-1].append(name)
    ordered = [name for block in blocks for group in sorted(block, key=lambda group: numbers.get(group[0], -1)) for name in group]
    for tap in sorted(numbers.keys() - ordered, key=numbers.__getitem__):
        before = [index for index, name in enumerate(ordered) if numbers.get(name, math.inf) < numbers[tap]]
        ordered.insert(max(before, key=lambda index: numbers[ordered[index]], default=-1) + 1, tap)
    return ordered
