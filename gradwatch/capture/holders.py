"""Who moves which parameter: the optimizers that are watched, or none of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.optim import Optimizer

from gradwatch.capture.selection import held


class Holders:
    """Which optimizer holds which parameter, as their groups stand when it is asked.

    Args:
        named: Canonical full name → parameter.
        optimizers: Those that are watched.
    """

    def __init__(self, named: Mapping[str, Tensor], optimizers: Sequence[Optimizer]) -> None:
        self._named, self._optimizers = named, optimizers
        self._all = list(named)
        self._names: dict[int, str] = {}

    def own(self, optimizer: Optimizer) -> list[str]:
        """The parameters of one optimizer; quick, as it may be one of hundreds that step within one backward pass."""
        if len(self._names) != len(self._named):
            self._names = {id(tensor): name for name, tensor in self._named.items()}
        return [self._names[id(tensor)] for tensor in held(optimizer) if id(tensor) in self._names]

    def concerned(self, optimizer: Optimizer | None) -> list[str]:
        """The parameters that a step is about: those of its optimizer, and those that none holds; all, where none steps.

        With one optimizer it is always the same list, which is not to be changed.
        """
        if optimizer is None or len(self._optimizers) < 2:
            return self._all
        groups = self.groups()
        about = {name for group, names in groups.items() if not group or optimizer in group for name in names}
        return [name for name in self._named if name in about]

    def orphans(self) -> list[str]:
        """The parameters that no optimizer holds."""
        return self.groups().get((), [])

    def groups(self) -> dict[tuple[Optimizer, ...], list[str]]:
        """The parameters by the optimizers that hold them, usually one, seldom none or several."""
        holders: dict[int, tuple[Optimizer, ...]] = {}
        for optimizer in self._optimizers:
            for tensor in held(optimizer):
                holders[id(tensor)] = (*holders.get(id(tensor), ()), optimizer)
        groups: dict[tuple[Optimizer, ...], list[str]] = {}
        for name, tensor in self._named.items():
            groups.setdefault(holders.get(id(tensor), ()), []).append(name)
        return groups
