"""Gradients, weights and updates, read at the optimizer boundary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from gradwatch import moments
from gradwatch.capture import units
from gradwatch.capture.shards import Holding, local
from gradwatch.capture.transfer import Tape
from gradwatch.records import Site

SYMMETRIC_START = 12
"""Full records in which rows are compared: symmetry is a matter of initialisation, and broken or not after the first updates."""


class Parameters:
    """Reads parameters onto a tape: gradients every step, weights and updates where the record is a full one.

    Args:
        held: Canonical full name → what this process holds of the parameter.
        types: The same names → class name of the module that owns it.
        tape: Where measurements go.

    Attributes:
        held: The same.
        named: The same names → leaf tensor.
        partial: Parameters whose gradients lie in the processes as parts of a sum, so that none of them can be measured.
            Another set where it grows.
    """

    def __init__(self, held: Mapping[str, Holding], types: Mapping[str, str], tape: Tape) -> None:
        self.tape = tape
        self.held: Mapping[str, Holding] = {}
        self.named: dict[str, Tensor] = {}
        self.partial: frozenset[str] = frozenset()
        self._before: dict[str, Tensor] = {}
        self._leftover: dict[str, Tensor | None] = {}
        self._silent = units.SilentUnits()
        self._full_records = 0
        self.adopt(held, types)

    def adopt(self, held: Mapping[str, Holding], types: Mapping[str, str]) -> None:
        """Takes other parameters in the place of those it has: they may have joined the model, and others left it."""
        gone = [name for name, tensor in self.named.items() if name not in held or held[name].leaf is not tensor]
        for name in gone:  # one that takes its name has another past
            self._before.pop(name, None)
            self._leftover.pop(name, None)
        self.held = dict(held)
        self.named = {name: holding.leaf for name, holding in held.items()}
        self._sites = {
            name: tuple(Site(name, tensor, types[name], p.shape) for tensor in ("parameter", "parameter_grad", "update"))
            for name, p in self.held.items()
        }
        # Every parameter whose rows may be silent → the bias beside it.
        self._biases = {
            name: name.removesuffix("weight") + "bias" if name.endswith("weight") else None
            for name in self.named
            # A table (of positions, of classes) has rows that rest; what is called a weight is multiplied with all of its input.
            if "Embedding" not in types[name] and "weight" in name.rpartition(".")[2]
        }

    @property
    def known(self) -> Mapping[str, tuple[Site, ...]]:
        """Name → the sites of its value, its gradient and its update. Another mapping after ``adopt``; none is ever changed."""
        return self._sites

    def trainable(self, names: Iterable[str]) -> list[str]:
        """Those of the names whose parameter asks for a gradient now, and has elements in this process."""
        return [name for name in names if (p := self.held[name]).leaf.requires_grad and (not p.sharded or p.numel)]

    def read_gradients(self, names: Iterable[str], tape: Tape, divided_by: Tensor | None = None, *, full: bool) -> None:
        """Measures ``.grad`` where there is one: all moments in a full record, else the norm, in one pass.

        Args:
            names: The parameters.
            tape: Where measurements go.
            divided_by: What a loss scaler has divided these gradients by since the last backward pass began, shape ().
            full: Whether the record is a full one.
        """
        known = list(names)
        grads = self._grads(known)
        if partial := {name for name in known if name not in grads and self.held[name].is_partial} - self.partial:
            self.partial |= partial
        if full:
            for name, grad in grads.items():
                tape.add(self._sites[name][1], grad)
            self._note_leftover(grads, tape, divided_by)
        elif grads:
            self._read_norms(grads, tape)

    def _read_norms(self, grads: dict[str, Tensor], tape: Tape) -> None:
        plain = {name: grad for name, grad in grads.items() if grad.layout == torch.strided and not grad.is_complex()}
        norms = dict(zip(plain, foreach_norm(list(plain.values())), strict=True)) if plain else {}
        unsafe = _unsafe(plain, norms)
        for name, grad in grads.items():
            if name not in plain or name in unsafe:
                norms.pop(name, None)
                tape.add(self._sites[name][1], grad)
        tape.add_norms([self._sites[name][1] for name in norms], [plain[name].numel() for name in norms], list(norms.values()))

    def read_leftover(self) -> None:
        """Measures what ``.grad`` holds when a backward pass begins: of several before a parameter's step the least counts.

        It is nothing where gradients were cleared. Later passes of a step find those before them, a pass that only asks for a
        gradient (a penalty's ``autograd.grad``) may come before the clearing, and one pass may serve several optimizers.
        """
        norms = self.norms(self.named)
        for name in self.named:
            now = norms.get(name)  # None: there is no gradient, so it was cleared
            before = self._leftover.get(name, now)
            self._leftover[name] = None if now is None or before is None else torch.minimum(before, now)

    def _note_leftover(self, grads: dict[str, Tensor], tape: Tape, divided_by: Tensor | None) -> None:
        told = {name: self._leftover.pop(name) for name in grads if name in self._leftover and grads[name].numel()}
        for name, now in self.norms(told).items():
            left = told[name]
            share = torch.zeros_like(now) if left is None else left / now
            tape.note(self._sites[name][1], moments.STALE, share if divided_by is None else share / divided_by)

    def note_silent_rows(self, names: Iterable[str]) -> None:
        """Notes which rows of the gradients are exactly zero, clipped or not."""
        for name in names:
            grad = self.held[name].grad()
            if name not in self._biases or not self.held[name].has_rows or grad is None or not units.observable_rows(grad):
                continue
            awake = units.awake_units(grad, 0)
            beside = self.held.get(self._biases[name] or "")
            bias = None if beside is None else beside.grad()
            if bias is not None and bias.shape == awake.shape:  # a layer behind silent ones has awake units and no input
                awake = awake | (bias != 0)
            elif beside is not None and beside.leaf.requires_grad and bias is None:
                continue  # an optimizer that steps within the backward pass has used it up, or will get it later
            self._silent.saw(name, awake)

    def end_record(self) -> None:
        """Notes what only a whole record shows."""
        for name, dead in self._silent.close():
            if name in self._sites:
                self.tape.note(self._sites[name][1], moments.DEAD, dead)

    def norms(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The Euclidean norm of each gradient that there is, shape ()."""
        grads = {name: grad for name, grad in self._grads(names).items() if grad.layout == torch.strided}
        return dict(zip(grads, foreach_norm(list(grads.values())), strict=True)) if grads else {}

    def remember(self, names: Iterable[str]) -> None:
        """Keeps a copy of the weights, until ``read_updates`` compares them."""
        for name in names:
            self._before.setdefault(name, self.held[name].weight().clone())

    def read_updates(self, now: Mapping[str, Tensor]) -> None:
        """Measures the remembered weights, which the step computed with, and how far they have moved since, and forgets them.

        Args:
            now: Name → the weight after the step: itself, or what functional code has put in its place.
        """
        for name, before in self._before.items():
            weight, _, update = self._sites[name]
            self.tape.add(weight, before)
            early = self._full_records < SYMMETRIC_START and self.held[name].has_rows
            if early and units.observable_rows(before) and "Embedding" not in weight.type:
                self.tape.note(weight, moments.ALIKE, units.alike_share(before))
            # Into the copy, which nobody needs any more: fresh memory costs more than the difference.
            tensor = now.get(name)
            after = None if tensor is None else self.held[name].weight() if tensor is self.named[name] else local(tensor)
            if after is not None and after.shape == before.shape:
                self.tape.add(update, torch.sub(after.detach(), before, out=before))
        self._full_records += bool(self._before)
        self._before.clear()

    def _grads(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The gradients that there are, as far as this process holds them."""
        return {name: grad for name in names if (grad := self.held[name].grad()) is not None}

    def forget(self) -> None:
        """Lets go of the copies."""
        self._before.clear()


def foreach_norm(tensors: list[Tensor]) -> list[Tensor]:
    """The Euclidean norm of each tensor, reduced in float32 on a CPU and in float64 elsewhere.

    On a CPU the caller reads the value and measures again what float32 cannot hold; elsewhere nobody may look.
    """
    readable = all(moments.readable(tensor) for tensor in tensors)
    values = [tensor.detach() for tensor in tensors]
    values = [torch.view_as_real(value.resolve_conj()) if value.is_complex() else value for value in values]
    wide = torch.float64 if not readable or any(value.dtype == torch.float64 for value in values) else torch.float32
    return list(torch._foreach_norm(values, 2, wide))


def _unsafe(grads: Mapping[str, Tensor], norms: Mapping[str, Tensor]) -> set[str]:
    """The gradients whose norm float32 may have rounded away, as far as that can be known.

    A value on a CPU can be read at no cost, so that these are measured again.
    """
    names = [name for name, grad in grads.items() if moments.readable(grad)]
    if not names:
        return set()
    values = torch.stack([norms[name] for name in names])
    safe = (values > moments.SAFE_NORM[0]) & (values < moments.SAFE_NORM[1])
    return {name for name, good in zip(names, safe.tolist(), strict=True) if not good}
