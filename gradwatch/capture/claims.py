"""Who observes what: a layer or a parameter has at most one open watch, and none stays open when the program ends."""

from __future__ import annotations

import atexit
import gc
import logging
import sys
import weakref
from typing import Protocol

from gradwatch.capture.selection import Selection
from gradwatch.errors import AlreadyWatched

log = logging.getLogger("gradwatch")


class Observer(Protocol):
    """Whoever observes something until it is closed."""

    @property
    def ids(self) -> set[int]:
        """``id`` of every module and parameter that is observed."""

    def leave(self) -> None:
        """Lets other processes go on without this one."""

    def close(self) -> None:
        """Ends the observation."""


_open: weakref.WeakSet[Observer] = weakref.WeakSet()


def refuse_claimed(selection: Selection) -> None:
    """Refuses to observe what another open observer does: two of them would count each other's work.

    Args:
        selection: What is to be observed.

    Raises:
        AlreadyWatched: An open observer has one of them.
    """
    ids = selection.ids
    if any(not other.ids.isdisjoint(ids) for other in _open):
        gc.collect()  # one that nobody can reach any more, as its optimizer is gone, is closed by it
    for other in _open:
        if not other.ids.isdisjoint(ids):
            things = {**selection.parameters, **selection.layers}
            name = next(name for name, thing in things.items() if id(thing) in other.ids)
            raise AlreadyWatched(f"{name!r} is already watched; close that watch first")


def claim(observer: Observer) -> None:
    """Counts an observer as open. It is held weakly, so that it lives no longer than what it observes."""
    _open.add(observer)


def release(observer: Observer) -> None:
    """Counts it as closed."""
    _open.discard(observer)


@atexit.register
def _close_all() -> None:
    for observer in list(_open):
        try:
            if getattr(sys, "last_value", None) is not None:
                observer.leave()  # what ended the program here keeps the others from reaching its last record
            observer.close()
        except Exception as news:  # noqa: BLE001  # there is no training left that it could reach
            log.warning("%s", news)
