"""Parameters that take part in a model's forward and belong to nobody: layers in a plain Python list or dict.

Such a layer is no part of ``model.parameters()``, so that no optimizer gets it: it computes, receives gradients and never learns.
Only the autograd graph knows it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from gradwatch import names
from gradwatch.capture.engine import now
from gradwatch.capture.structure import unique_tensors
from gradwatch.capture.transfer import Tape
from gradwatch.records import Site

LOOKS = 2
"""Full records in which the graph is searched: who takes part in forward is decided by the program, not by the step."""


class Unowned:
    """Finds the parameters in the graph of a model's output that the model does not own, and reads them in full records.

    Args:
        known: The model's own parameters, and those that its optimizers hold.
        tape: Where measurements go.

    Attributes:
        sites: What was found, two sites for each parameter.
    """

    def __init__(self, known: Iterable[Tensor], tape: Tape) -> None:
        self.sites: list[Site] = []
        self._known: set[int] = set()
        self.know(known)
        self._tape = tape
        self._found: list[Tensor] = []
        self._copies: list[Tensor] = []
        self._looks = 0
        self._since = 0

    def know(self, tensors: Iterable[Tensor]) -> None:
        """Takes note of more parameters that somebody owns: they have joined the model while it was trained."""
        self._known |= {id(tensor) for tensor in tensors}

    @property
    def done(self) -> bool:
        """Whether the graph was searched often enough."""
        return self._looks >= LOOKS

    def enter(self) -> None:
        """Takes note that the model is called: what was computed before is its input, and none of its business."""
        self._since = now()

    def look(self, output: Any) -> None:
        """Searches the graph of what the model returned."""
        self._looks += 1
        pending = [tensor.grad_fn for tensor in unique_tensors(output)]
        seen = set()
        while pending:
            node = pending.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            leaf = getattr(node, "variable", None)
            if leaf is not None:
                if isinstance(leaf, nn.Parameter) and id(leaf) not in self._known:
                    self._add(leaf)
            elif node._sequence_nr() >= self._since:
                pending += [following for following, _ in node.next_functions]

    def _add(self, parameter: Tensor) -> None:
        self._known.add(id(parameter))
        name, shape = f"{names.UNREGISTERED}.{len(self._found)}", tuple(parameter.shape)
        self.sites += [Site(name, "parameter_grad", "", shape), Site(name, "update", "", shape)]
        self._found.append(parameter)
        self._copies.append(parameter.detach().clone())

    def read(self) -> None:
        """Measures the gradients, and how far the parameters have moved since they were last read, whoever moves them."""
        for index, parameter in enumerate(self._found):
            if parameter.grad is not None:
                self._tape.add(self.sites[2 * index], parameter.grad)
                self._tape.add(self.sites[2 * index + 1], parameter.detach() - self._copies[index])
                self._copies[index] = parameter.detach().clone()
