"""Cases, expectations and training loops of the labelled fault corpus.

A :class:`Case` is one small, deterministic training program together with what
a gradient-health monitor has to say about it.  Cases are plain functions which
return a ``Case``; the decorator :func:`register` collects them.

How a monitor is run on a case::

    for case in faults.cases(split="dev"):
        model, opt, loss_fn, batches = case.build(seed=0)
        ...attach the monitor to model and opt...
        case.train(model, opt, loss_fn, batches, on_step)   # on_step(step, loss)

``on_step`` is called once after every optimizer step (or after every iteration
of a program that, by its fault, never steps).  Gradients are still in place at
that moment.  ``loss`` is None where the program has no loss that means progress
(GANs, policy gradients).  ``opt`` is a ``torch.optim.Optimizer``, or a dict of them where
the program has several (GAN, actor-critic).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import nn

#: The vocabulary of finding kinds.  A monitor may use finer names; map them
#: onto these before scoring.
KINDS = {
    "vanishing_gradient": "gradients attenuate by orders of magnitude on the way to a layer (or time step)",
    "exploding_gradient": "gradients grow by orders of magnitude over depth, time or steps",
    "non_finite": "NaN or Inf in an activation, loss, gradient, update or weight",
    "dead_units": "units (or channels, experts) whose output and gradient are zero for every input",
    "saturated": "sigmoid/tanh/softmax/clamp working in its flat region for most of its outputs",
    "zero_gradient": "a trainable parameter gets no gradient (None) or exactly zero, step after step",
    "stale_gradient": "gradients are not cleared between optimizer steps (missing zero_grad): each one contains its predecessors",
    "not_updated": "a parameter receives a gradient (or should) but its value never changes",
    "bad_scale": "weight or activation scale (or symmetry) off by orders of magnitude: initialisation, input, residual growth",
    "update_ratio": "|update| / |weight| far too large or far too small",
    "loss_stagnant": "training loss does not decrease though it should",
    "loss_unstable": "training loss oscillates strongly or diverges",
}
HEALTHY = "healthy"

#: What each kind regularly drags along.  The consequences of the kinds a case
#: MUST report are added to its MAY set, so that a true but secondary statement
#: about a sick run is not counted as a false alarm.
CONSEQUENCES = {
    "vanishing_gradient": "loss_stagnant update_ratio",
    "exploding_gradient": "loss_unstable update_ratio loss_stagnant",
    "non_finite": "loss_unstable loss_stagnant",
    "dead_units": "zero_gradient not_updated",
    "saturated": "vanishing_gradient zero_gradient dead_units",
    "zero_gradient": "dead_units not_updated",
    "stale_gradient": "exploding_gradient update_ratio loss_unstable loss_stagnant bad_scale dead_units",
    "not_updated": "update_ratio",
    "bad_scale": "",
    "update_ratio": "",
    "loss_stagnant": "",
    "loss_unstable": "loss_stagnant",
}

OnStep = Callable[[int, "float | None"], Any]
Loop = Callable[[nn.Module, Any, Any, Iterable, OnStep], None]


class Built(NamedTuple):
    """What ``Case.build`` returns; unpacks as (model, optimizer, loss_fn, batches)."""

    model: nn.Module
    optimizer: Any
    loss_fn: Any
    batches: Iterable


@dataclass(frozen=True)
class Need:
    """One thing that MUST be reported.

    ``kinds``: any one of these satisfies the need (more than one where the
    right name is a matter of taste).  ``where``: the finding's layer has to
    match one of these shell patterns; a parameter name also matches by its
    module.  ``by_step``: the step by which a good monitor has said it.
    """

    kinds: frozenset[str]
    where: tuple[str, ...]
    by_step: int


def need(kinds: str, where: str = "*", by: int = 50) -> Need:
    """``need("dead_units|zero_gradient", "acts.1 layers.1", by=20)``"""
    ks = frozenset(kinds.split("|"))
    unknown = ks - KINDS.keys()
    if unknown:
        raise ValueError(f"unknown kinds {sorted(unknown)}")
    return Need(ks, tuple(where.split()), by)


def matches(layer: str, where: Iterable[str]) -> bool:
    """Does a finding's layer name (module or parameter) match a pattern?"""
    names = {layer, layer.rsplit(".", 1)[0] if "." in layer else layer}
    return any(fnmatch.fnmatchcase(n, pat) for n in names for pat in where)


@dataclass(frozen=True)
class Case:
    """A labelled training program."""

    name: str
    kind: str  # the primary kind of fault, or "healthy"
    split: str  # "dev", "more", "blind" or "fresh"
    source: str  # citation of where the fault or the recipe comes from
    make: Callable[..., Built] = field(repr=False)  # make(fixed: bool)
    must: tuple[Need, ...] = ()
    may: frozenset[str] = frozenset()
    train: Loop = field(default=None, repr=False)
    fixed_train: Loop | None = field(default=None, repr=False)
    note: str = ""
    tags: frozenset[str] = frozenset()
    requires: tuple[str, ...] = ()
    #: step at which the fault can first show; anything said before is a false alarm
    onset: int = 0
    #: healthy cases: the ratio last/first loss that counts as "trains well",
    #: or None where ``progress`` measures it instead.
    loss_ratio: float | None = 0.7
    #: optional (label, f(model) -> float, "up" | "down"): task progress
    progress: tuple[str, Callable[[nn.Module], float], str] | None = field(default=None, repr=False)

    @property
    def healthy(self) -> bool:
        return self.kind == HEALTHY

    @property
    def expected(self) -> set[str]:
        """Every kind that satisfies some need (the MUST set, flattened)."""
        return set().union(*(n.kinds for n in self.must)) if self.must else set()

    def build(self, seed: int = 0, fixed: bool = False) -> Built:
        torch.manual_seed(1000 + seed)
        built = self.make(fixed) if not self.healthy else self.make()
        built.model.train() if "eval_mode" not in self.tags or fixed else None
        return built

    def run(self, on_step: OnStep, seed: int = 0) -> Built:
        """Build and train in one go."""
        built = self.build(seed)
        self.train(*built, on_step)
        return built

    def twin(self) -> Case:
        """The same program with the fault repaired: a healthy case."""
        if self.healthy:
            raise ValueError(f"{self.name} is healthy already")
        return replace(
            self,
            name=self.name + "~fixed",
            kind=HEALTHY,
            make=lambda: self.make(True),
            must=(),
            may=frozenset(),
            train=self.fixed_train or self.train,
            fixed_train=None,
            note="repaired twin of " + self.name,
        )


_REGISTRY: dict[str, Callable[[], Case]] = {}


def register(fn: Callable[[], Case]) -> Callable[[], Case]:
    """Add a case function to the corpus."""
    if fn.__name__ in _REGISTRY:
        raise ValueError(f"duplicate case {fn.__name__}")
    _REGISTRY[fn.__name__] = fn
    return fn


def _consequences(must: Iterable[Need]) -> frozenset[str]:
    return frozenset(c for n in must for k in n.kinds for c in CONSEQUENCES[k].split())


def faulty(split: str, kind: str, source: str, must: Iterable[Need], may: str = "", **kw) -> Callable:
    """Decorator: turn ``make(fixed) -> Built`` into a registered faulty case."""

    def wrap(make):
        def case() -> Case:
            return Case(
                name=make.__name__,
                kind=kind,
                split=split,
                source=source,
                make=make,
                must=tuple(must),
                may=frozenset(may.split()) | _consequences(must),
                note=(make.__doc__ or "").strip(),
                train=kw.get("train") or default_loop,
                **{k: v for k, v in kw.items() if k != "train"},
            )

        case.__name__, case.__doc__ = make.__name__, make.__doc__
        return register(case)

    return wrap


def healthy(split: str, source: str, **kw) -> Callable:
    """Decorator: turn ``make() -> Built`` into a registered healthy case."""

    def wrap(make):
        def case() -> Case:
            return Case(
                name=make.__name__,
                kind=HEALTHY,
                split=split,
                source=source,
                make=make,
                note=(make.__doc__ or "").strip(),
                train=kw.get("train") or default_loop,
                **{k: v for k, v in kw.items() if k != "train"},
            )

        case.__name__, case.__doc__ = make.__name__, make.__doc__
        return register(case)

    return wrap


def registry() -> dict[str, Callable[[], Case]]:
    return _REGISTRY


# --------------------------------------------------------------------- loops


def default_loop(model, opt, loss_fn, batches, on_step) -> None:
    """zero_grad, forward, loss, backward, step."""
    for step, (x, y) in enumerate(batches):
        opt.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        opt.step()
        on_step(step, loss.item())


def clipped_loop(max_norm: float) -> Loop:
    """The default loop with gradient-norm clipping."""

    def loop(model, opt, loss_fn, batches, on_step) -> None:
        for step, (x, y) in enumerate(batches):
            opt.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            opt.step()
            on_step(step, loss.item())

    return loop


def scheduled_loop(make_scheduler: Callable, max_norm: float | None = None) -> Loop:
    """The default loop with a learning-rate scheduler stepped every step."""

    def loop(model, opt, loss_fn, batches, on_step) -> None:
        sched = make_scheduler(opt)
        for step, (x, y) in enumerate(batches):
            opt.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            if max_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            opt.step()
            sched.step()
            on_step(step, loss.item())

    return loop


def warmup(steps: int) -> Callable:
    """Linear warm-up to the optimizer's learning rate."""
    return lambda opt: torch.optim.lr_scheduler.LambdaLR(opt, lambda s: min(1.0, (s + 1) / steps))
