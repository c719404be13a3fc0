"""Gradients, weights and updates, read at the optimizer boundary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import compress

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gradwatch import moments
from gradwatch.capture import units
from gradwatch.capture.groups import Group, Same, Sites, sites_of
from gradwatch.capture.shards import Holding, local
from gradwatch.capture.transfer import Tape
from gradwatch.records import Site

_NOT_JUDGED = torch.empty(0)

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
        self._stacked_before: list[tuple[Same, Tensor]] = []
        self._weighed: set[str] = set()  # those of them that are measured
        self._stacked_grads: tuple[Group, list[Tensor]] | None = None
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
            self._weighed.discard(name)
        self.held = dict(held)
        self.named = {name: holding.leaf for name, holding in held.items()}
        self._sites: dict[str, Sites] = {name: sites_of(name, types[name], p.shape) for name, p in self.held.items()}
        stacked, self._stacked_before = self._stacked_before, []
        for same, before in stacked:
            if set(same.names).isdisjoint(gone):
                self._stacked_before.append((same, before))
            else:
                self._before.update((name, one) for name, one in zip(same.names, before, strict=True) if name not in gone)
        self._unusual: tuple[list[tuple[str, int]], tuple[Site, ...], npt.NDArray[np.float64]] = [], (), np.empty(0)
        self._everything = self._group = Group((), (), ())
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

    def trainable(self, names: Sequence[str]) -> list[str]:
        """Those of the names whose parameter asks for a gradient now, and has elements in this process.

        It is the same list, as long as they are the same.
        """
        if names is not self._everything.names and names != self._everything.names:
            self._everything = self._make_group(names)
        return self._everything.trainable()

    def _make_group(self, names: Sequence[str]) -> Group:
        return Group(names, [self.held[name] for name in names], [self._sites[name] for name in names])

    def _group_of(self, names: Sequence[str]) -> Group:
        if names is not self._group.names and names != self._group.names:
            self._group = self._make_group(names)
        return self._group

    def _with_gradient(self, names: Sequence[str]) -> tuple[Group, list[Tensor]]:
        """Those of the parameters that have a gradient here, and their gradients."""
        group = self._group_of(names)
        grads = group.grads()
        known = [grad is not None for grad in grads]
        return group if all(known) else group.part(known), [grad for grad in grads if grad is not None]

    def read_gradients(self, names: Sequence[str], tape: Tape, divided_by: Tensor | None = None, *, full: bool) -> None:
        """Measures ``.grad`` where there is one: all moments in a full record, else the norm, in one pass.

        Args:
            names: The parameters.
            tape: Where measurements go.
            divided_by: What a loss scaler has divided these gradients by since the last backward pass began, shape ().
            full: Whether the record is a full one.
        """
        group, grads = self._with_gradient(names)
        if not self._group.plain:
            missing = set(names).difference(group.names)
            if partial := {name for name in missing if self.held[name].is_partial} - self.partial:
                self.partial |= partial
        if full:
            self._read_moments(group, grads, tape)
            self._note_leftover(dict(zip(group.names, grads, strict=True)), tape, divided_by)
        elif grads:
            self._read_norms(group, grads, tape)

    def _read_moments(self, group: Group, grads: list[Tensor], tape: Tape) -> None:
        stacks = group.alike.stacks(grads)
        self._stacked_grads = group, stacks
        for same, stack in zip(group.together, stacks, strict=False):  # none of the stacks, or all
            tape.add_stack(same.gradients, stack)
        for position in group.alike.alone if stacks else range(len(grads)):
            tape.add(self._sites[group.names[position]][1], grads[position])

    def _read_norms(self, group: Group, grads: list[Tensor], tape: Tape) -> None:
        norms = group.alike.norms(grads)
        if norms is None:
            self._read_unusual_norms(dict(zip(group.names, grads, strict=True)), tape)
            return
        # Of norms that are none too large the sum is not, and where one of them is NaN it is NaN.
        if sum(norms) < moments.SAFE_NORM[1] and min(norms) > moments.SAFE_NORM[0]:
            tape.add_norms(group.gradients, group.counts, norms)
            return
        safe = [moments.SAFE_NORM[0] < norm < moments.SAFE_NORM[1] for norm in norms]
        tape.add_norms(tuple(compress(group.gradients, safe)), group.counts[safe], list(compress(norms, safe)))
        for site, position, is_safe in zip(group.gradients, group.alike.order, safe, strict=True):
            if not is_safe:
                tape.add(site, grads[position])

    def _read_unusual_norms(self, grads: dict[str, Tensor], tape: Tape) -> None:
        plain = {name: grad for name, grad in grads.items() if grad.layout == torch.strided and not grad.is_complex()}
        norms = dict(zip(plain, foreach_norm(list(plain.values())), strict=True)) if plain else {}
        unsafe = _unsafe(plain, norms)
        for name, grad in grads.items():
            if name not in plain or name in unsafe:
                norms.pop(name, None)
                tape.add(self._sites[name][1], grad)
        if norms:
            sizes = [(name, plain[name].numel()) for name in norms]
            if sizes != self._unusual[0]:  # else the tuple of sites is the same as before
                counts = np.array([size for _, size in sizes], np.float64)
                self._unusual = sizes, tuple(self._sites[name][1] for name in norms), counts
            tape.add_norms(*self._unusual[1:], torch.stack(list(norms.values())))

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
        told = {
            name: self._leftover.pop(name)
            for name, grad in grads.items()
            if name in self._leftover and grad.numel() and grad.layout is torch.strided  # of others no norm was taken
        }
        if cleared := tuple(self._sites[name][1] for name, left in told.items() if left is None):
            tape.note_all(cleared, moments.STALE, torch.zeros(len(cleared)))
        kept = {name: left for name, left in told.items() if left is not None}
        for name, now in self.norms(kept).items():
            share = kept[name] / now
            tape.note(self._sites[name][1], moments.STALE, share if divided_by is None else share / divided_by)

    def note_silent_rows(self, names: Sequence[str]) -> None:
        """Notes which rows of the gradients are exactly zero, clipped or not."""
        group, grads = self._with_gradient(names)
        known, self._stacked_grads = self._stacked_grads, None
        stacks = known[1] if known is not None and known[0] is group else group.alike.stacks(grads)
        for same, stack in zip(group.together, stacks, strict=False):
            if not units.observable_rows(stack[0]):
                continue
            biases = [self._bias(name, stack.shape[1:2]) for name in same.names]
            if chosen := [row for row, bias in enumerate(biases) if bias is not _NOT_JUDGED]:
                awake = units.awake_in_each(stack.flatten(2), 0)
                if beside := {row: bias for row in chosen if (bias := biases[row]) is not None}:
                    awake[list(beside)] |= torch.stack(list(beside.values())) != 0
                self._silent.saw(tuple(same.names[row] for row in chosen), awake[chosen] if len(chosen) < len(awake) else awake)
        for position in group.alike.alone if stacks else range(len(grads)):
            name, grad = group.names[position], grads[position]
            if units.observable_rows(grad) and (bias := self._bias(name, grad.shape[:1])) is not _NOT_JUDGED:
                awake = units.awake_units(grad, 0)
                self._silent.saw((name,), (awake if bias is None else awake | (bias != 0)).unsqueeze(0))

    def _bias(self, name: str, shape: torch.Size) -> Tensor | None:
        """The gradient of the bias beside a weight: a layer behind silent ones has awake units and no input.

        Returns:
            None where there is no such bias; ``_NOT_JUDGED`` for a parameter whose rows may rest, or where nobody can know: an
            optimizer that steps within the backward pass has used the bias's gradient up, or will get it later.
        """
        if name not in self._biases or not self.held[name].has_rows:
            return _NOT_JUDGED
        beside = self.held.get(self._biases[name] or "")
        if beside is None:
            return None
        bias = beside.grad()
        if bias is None:
            return _NOT_JUDGED if beside.leaf.requires_grad else None
        return bias if bias.shape == shape else None

    def end_record(self) -> None:
        """Notes what only a whole record shows."""
        for names, dead in self._silent.close():
            here = [name in self._sites for name in names]
            sites = tuple(self._sites[name][1] for name in compress(names, here))
            self.tape.note_all(sites, moments.DEAD, dead if all(here) else dead[here])

    def norms(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The Euclidean norm of each gradient that there is, shape ()."""
        grads = {name: grad for name, grad in self._grads(names).items() if grad.layout == torch.strided}
        return dict(zip(grads, foreach_norm(list(grads.values())), strict=True)) if grads else {}

    def remember(self, names: Sequence[str], *, moving: bool) -> None:
        """Keeps a copy of the weights, until ``read_updates`` compares them.

        Args:
            names: Of the parameters.
            moving: Whether they are about to move; then they are measured too, while they are in the processor's cache. Else they
                may be exchanged for others before.
        """
        alone: Sequence[str] = names
        if not self._before and not self._stacked_before:
            group = self._group_of(names)
            stacks = group.alike.stacks(group.weights())
            self._stacked_before = list(zip(group.together, stacks, strict=False))
            alone = group.alone if stacks else names
            if moving:
                for same, stack in self._stacked_before:
                    self._measure_stack(same, stack)
        stacked = {name for same, _ in self._stacked_before for name in same.names}
        for name in alone:
            if name not in stacked and name not in self._before:
                self._before[name] = weight = self.held[name].weight().clone()
                if moving:
                    self._measure_weight(name, weight)

    def _measure_weight(self, name: str, weight: Tensor) -> None:
        if name not in self._weighed:
            self._weighed.add(name)
            self.tape.add(self._sites[name][0], weight)

    def _measure_stack(self, same: Same, stack: Tensor) -> None:
        if same.names[0] not in self._weighed:
            self._weighed.update(same.names)
            self.tape.add_stack(same.weights, stack)

    def read_updates(self, now: Mapping[str, Tensor]) -> None:
        """Measures the remembered weights, which the step computed with, and how far they have moved since, and forgets them.

        Args:
            now: Name → the weight after the step: itself, or what functional code has put in its place.
        """
        early = self._full_records < SYMMETRIC_START
        self._full_records += bool(self._before or self._stacked_before)
        for same, before in self._stacked_before:
            self._measure_stack(same, before)
            after = [self._after(name, now) for name in same.names]
            if not all(weight is not None and weight.shape == before.shape[1:] for weight in after):
                self._before.update(zip(same.names, before.unbind(), strict=True))  # one by one
                continue
            with torch.no_grad():
                moved = torch.stack([weight for weight in after if weight is not None]).sub_(before)
            self.tape.add_stack(same.updates, moved)
            if early:
                for name, weight in zip(same.names, before, strict=True):
                    self._note_alike_rows(name, weight)
        for name, before in self._before.items():
            self._measure_weight(name, before)
            if early:
                self._note_alike_rows(name, before)
            # Into the copy, which nobody needs any more: fresh memory costs more than the difference.
            weight_after = self._after(name, now)
            if weight_after is not None and weight_after.shape == before.shape:
                self.tape.add(self._sites[name][2], torch.sub(weight_after.detach(), before, out=before))
        self.forget()

    def _after(self, name: str, now: Mapping[str, Tensor]) -> Tensor | None:
        tensor = now.get(name)
        return None if tensor is None else self.held[name].weight() if tensor is self.named[name] else local(tensor)

    def _note_alike_rows(self, name: str, weight: Tensor) -> None:
        site = self._sites[name][0]
        if self.held[name].has_rows and units.observable_rows(weight) and "Embedding" not in site.type:
            self.tape.note(site, moments.ALIKE, units.alike_share(weight))

    def _grads(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The gradients that there are, as far as this process holds them."""
        return {name: grad for name in names if (grad := self.held[name].grad()) is not None}

    def forget(self) -> None:
        """Lets go of the copies."""
        self._before.clear()
        self._stacked_before.clear()
        self._weighed.clear()


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
