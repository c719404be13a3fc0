"""Which steps get a full record."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch.optim import Optimizer

from gradwatch.capture.budget import Budget


class Cadence:
    """Gives each optimizer a full record every so many steps, also where several step in turn, and not equally often.

    Which optimizer is going to step is known only when it does; what it leaves on the way there has to be sampled before. So a
    step is sampled where an optimizer is due and, as it stepped so far, may be the next.

    Args:
        optimizers: Those that step; none: every step is of the same kind.
        every: Steps from one full record to the next.
        first_step: The number of the first step.
        budget: Puts full records off until they are affordable; None: ``every`` holds to the step.

    Attributes:
        full: Whether the step in progress is sampled.
    """

    def __init__(self, optimizers: Sequence[Optimizer], every: int, first_step: int, budget: Budget | None = None) -> None:
        self._every, self._budget = every, budget
        self._sampled: dict[int, int | None] = {id(optimizer): None for optimizer in optimizers}
        self._last: dict[int, int] = {}
        self._gap: dict[int, int] = {}
        self._newest: int | None = None  # the last step that was sampled, whoever took it
        self.full = True
        self.prepare(first_step)

    def stepped(self, optimizers: Iterable[Optimizer], step: int) -> None:
        """Takes which optimizers have stepped, if any, and decides about the step after."""
        keys = [key for key in dict.fromkeys(map(id, optimizers)) if key in self._sampled]
        if self._budget is not None:
            before = self._sampled[keys[0]] if keys and len(self._sampled) > 1 else self._newest
            self._budget.ended(full=self.full, since=step - before if self.full and before is not None else None)
        if self.full:
            self._newest = step
        for key in keys:
            if key in self._last:
                self._gap[key] = step - self._last[key]
            self._last[key] = step
            if self.full:
                self._sampled[key] = step
        self.prepare(step + 1)

    def prepare(self, step: int) -> None:
        """Decides about a step."""
        if len(self._sampled) < 2:  # nobody has to wait for a turn
            plain = self._budget is None or not self._budget.followed
            self.full = step % self._every == 0 if plain else self._newest is None or self._due(step - self._newest)
        else:
            self.full = any(self._is_due(key, step) for key in self._sampled)

    def _is_due(self, key: int, step: int) -> bool:
        sampled = self._sampled[key]
        if sampled is None:
            # One that seldom steps must not have every step sampled, but the one in which it may well step.
            return step < self._every or step % self._every == 0 or step == self._last.get(key, 0) + self._gap.get(key, 0)
        return self._due(step - sampled) and step >= self._last[key] + self._gap.get(key, 1)

    def _due(self, since: int) -> bool:
        return since >= self._every if self._budget is None else self._budget.due(since)
