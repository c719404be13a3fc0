"""Layers that were compiled before anybody watched: a graph that knows of no hook runs none."""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection, Mapping

import torch
from torch import nn

log = logging.getLogger("gradwatch")

LATE = "compiled before the watch was made"
"""Why nothing is observed of them."""


class Late:
    """Finds them, and says so once.

    Attributes:
        layers: Their names.
    """

    def __init__(self) -> None:
        self.layers: set[str] = set()

    def look(self, root: nn.Module | None, layers: Mapping[str, nn.Module], missing: Collection[str]) -> None:
        """Looks for layers that got gradients without a call of theirs being seen. Gradients have to be there.

        Args:
            root: The model.
            layers: Those that are observed.
            missing: Those among them that nobody has reached.
        """
        # Of a model that is compiled as a whole, the wrapper may be somewhere else; a compiler was at work all the same.
        everything = len(missing) == len(layers) and "torch._dynamo" in sys.modules
        inside = {id(inner) for module in _modules(root) if _is_compiled(module) for inner in module.modules()}
        suspects = [
            name
            for name in missing
            # A ScriptModule takes no hooks, compiled or not.
            if (everything or id(layers[name]) in inside) and not isinstance(layers[name], torch.jit.ScriptModule)
        ]
        late = [name for name in suspects if any(p.grad is not None for p in layers[name].parameters(recurse=False))]
        if not late:
            return
        if not self.layers:
            named = ", ".join(late[:3]) + ", ..." * (len(late) > 3)
            log.warning(
                "the activations of %d layers (%s) are not observed: they, or others of their class, were compiled before the "
                "watch was made. Make the watch before the first call of what is compiled, or call torch.compiler.reset() after "
                "it is made. Their parameters are observed",
                len(late),
                named,
            )
        self.layers.update(suspects)


def _modules(root: nn.Module | None) -> list[nn.Module]:
    return [] if root is None else list(root.modules())


def _is_compiled(module: nn.Module) -> bool:
    return "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None
