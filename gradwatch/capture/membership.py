"""Whether a model is still made of what it was made of: layers are replaced, added and taken out while it trains.

A head is exchanged for fine-tuning, a network grows, a lazy module learns its shapes, a parametrization renames a weight. Nothing
tells: a parameter that left the model looks like one that gets no gradient, and one that joined it is never seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gradwatch.capture.selection import pick, select

EVERY = 10
"""Steps after which the model is compared with what is known of it, at the latest: a tenth of those for which a parameter may stay
silent before a detector speaks. It takes about half a microsecond for each module."""


class Membership:
    """Compares a model with what was last selected of it.

    Args:
        model: A module, or name → leaf tensor.
        include: Globs over layer and parameter names.
        exclude: Globs that take away from it.

    Attributes:
        selection: What is to be observed.
        lazy: Whether parameters are still waiting for their shapes.

    Raises:
        NothingToWatch: There are no parameters, or a glob selects nothing.
    """

    def __init__(self, model: nn.Module | Mapping[str, Tensor], include: Sequence[str], exclude: Sequence[str]) -> None:
        self._model, self._include, self._exclude = model, include, exclude
        self.selection = select(model, include, exclude)
        self._parts, self.lazy = _parts(model)
        self._kept = _things(model)  # else the `id` of one that left may be given to one that joins
        self._step = 0

    def due(self, step: int) -> bool:
        """Whether it is time to compare, in a step whose record is not a full one."""
        # Functional code may make new leaves at each step, and what has no shape yet gets it in any forward.
        return self.lazy or isinstance(self._model, Mapping) or step - self._step >= EVERY

    def changed(self, step: int) -> bool:
        """Whether modules or parameters have joined or left since the last call; ``selection`` is then a new one.

        Raises:
            NothingToWatch: A mapping holds something that is no leaf tensor.
        """
        self._step = step
        if any(holding.sharded for holding in self.selection.holdings.values()):
            return False  # sharding itself puts other parameters into the modules while forward or backward runs
        parts, self.lazy = _parts(self._model)
        if parts == self._parts:
            return False
        self._parts, self._kept = parts, _things(self._model)
        self.selection = pick(self._model, self._include, self._exclude)
        return True

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The parameters that are observed, as they are now: functional code puts new leaves in the place of those it updates."""
        return self._model if isinstance(self._model, Mapping) else self.selection.parameters


def _parts(model: nn.Module | Mapping[str, Tensor]) -> tuple[list[object], bool]:
    """What a model is made of, to be compared, and whether any of it has no shape yet."""
    if isinstance(model, Mapping):
        return [*model, *map(id, model.values())], False
    parts: list[object] = []
    lazy = 0
    seen = set()
    pending = [model]
    while pending:
        module = pending.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        parts.append(type(module))
        # Its own dictionaries: named_children() takes four times as long.
        for name, parameter in module._parameters.items():
            parts += (name, id(parameter))
            lazy += parameter is not None and is_lazy(parameter)
        for name, child in module._modules.items():
            if child is not None:
                parts += (name, id(child))
                pending.append(child)
    return [*parts, lazy], lazy > 0


def _things(model: nn.Module | Mapping[str, Tensor]) -> list[object]:
    return list(model.values()) if isinstance(model, Mapping) else [*model.modules(), *model.parameters()]
