"""Evaluation as fast as without a watch: ``nn.TransformerEncoderLayer`` has a way of its own through eval mode, which no hook sees.

It takes that way only while no hook is on it, and the results of the two ways differ in their last bits. So the hooks come off
while the model runs without a graph, where they would record nothing anyway.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gradwatch.capture.activations import Activations
from gradwatch.capture.hooks import Hook


class FastPath:
    """Takes the hooks of activations off while the model runs without a graph, where that lets it run faster.

    Args:
        activations: Whose hooks they are.
        fail: Called with an exception of gradwatch's own, which must not reach the training.
    """

    def __init__(self, activations: Activations, fail: Callable[[Exception], None]) -> None:
        self._activations = activations
        self._report = fail
        self._attached = contextlib.ExitStack()
        self._root: nn.Module | None = None

    def fail(self, error: Exception) -> None:
        """Takes an exception of one of the hooks."""
        self._report(error)

    def adopt(self, root: nn.Module | None) -> None:
        """Takes the model, whose call begins and ends it all."""
        self.close()
        # An encoder layer by itself would lose its fast path to that very hook, and a ScriptModule takes none.
        if root is None or isinstance(root, (nn.TransformerEncoderLayer, torch.jit.ScriptModule)):
            self._root = None
        else:
            self._root = root if any(isinstance(module, nn.TransformerEncoderLayer) for module in root.modules()) else None

    def open(self) -> None:
        """Attaches the hooks on the model itself."""
        self.close()
        if self._root is not None:
            self._attached.callback(self._root.register_forward_pre_hook(Hook(self, FastPath._enter)).remove)
            leave = Hook(self, FastPath._leave)
            self._attached.callback(self._root.register_forward_hook(leave, always_call=True).remove)

    def close(self) -> None:
        """Removes them."""
        self._attached.close()

    def _enter(self, _module: nn.Module, _args: Any) -> None:
        if not torch.is_grad_enabled():
            self._activations.detach()

    def _leave(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        self._activations.attach()
