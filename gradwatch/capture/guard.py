"""Keeps errors of gradwatch's own from the training that it observes, and tells each of them once."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

from gradwatch.capture.budget import Meter

log = logging.getLogger("gradwatch")


class Turns:
    """``with turns:`` lets one thread in at a time. A copy has nobody inside."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:  # a lock itself can be neither copied nor saved, and a model may keep its watch
        return Turns, ()


class Guard:
    """``with guard():`` lets no error out. A loop repeats an error at every step, so that only its first time is logged.

    Args:
        meter: Takes the time of what is inside; None: nobody asks for it.
    """

    def __init__(self, meter: Meter | None = None) -> None:
        self._said: set[str] = set()
        self._meter = meter

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Runs what is inside; an error ends it. A generator, and no class, since a compiler can trace through generators only."""
        if self._meter is not None:
            self._meter.begin()
        try:
            yield
        except Exception as error:  # noqa: BLE001  # whatever it is, it must not reach the user's training
            self.fail(error)
        finally:
            if self._meter is not None:
                self._meter.end()

    def run(self, function: Callable[..., object], *args: object) -> None:
        """Calls a function, and lets no error out: what ``with`` does, at a lower cost, for what runs at every step."""
        if self._meter is not None:
            self._meter.begin()
        try:
            function(*args)
        except Exception as error:  # noqa: BLE001  # whatever it is, it must not reach the user's training
            self.fail(error)
        finally:
            if self._meter is not None:
                self._meter.end()

    def fail(self, error: Exception) -> None:
        """Reports an error; the training goes on."""
        what = f"{type(error).__name__}: {error}"
        self.say(what, error, "gradwatch failed inside, and training goes on without this observation")

    def say(self, what: str, error: Exception, text: str) -> None:
        """Reports an error with a text of its own, once for what it concerns."""
        if what not in self._said:
            self._said.add(what)
            log.error("%s: %s: %s", text, type(error).__name__, error, exc_info=error)
