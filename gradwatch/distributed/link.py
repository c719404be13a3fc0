"""A connection of gradwatch's own between the processes of a training.

It is a gloo group beside the user's groups: their collectives may be in flight, and may run on a device. It is made only where
every process has announced that it takes part, since a group that one of them does not join would keep the others waiting.
"""

from __future__ import annotations

import datetime
import time
from collections import Counter
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = 60.0
"""Seconds that a process waits for another one. In training that goes in step all of them reach an optimizer's step together, so
that this is only reached where one has stopped taking part; one that dies or closes its watch is noticed at once."""

ANNOUNCED = 2.0
"""Seconds within which the last process has to announce itself, from the end of a first step on. Processes that train together have
waited for each other in that step's backward, after they made their watches."""

_opened: Counter[str] = Counter()


def world_size() -> int:
    """How many processes train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process among them."""
    return dist.get_rank() if world_size() > 1 else 0


class Invitation:
    """What every process announces when it makes a watch, and asks for when its first step is over.

    Args:
        settings: What has to be the same in all of them. Processes that make several watches make them in the same order.

    Raises:
        RuntimeError: This release of torch lacks what is needed.
    """

    def __init__(self, settings: str) -> None:
        find = getattr(dist.distributed_c10d, "_get_default_store", None)
        if find is None or not hasattr(dist, "ProcessGroupGloo"):
            raise RuntimeError("this build of torch has no gloo, or keeps the store of its process group elsewhere")
        self._store: Any = find()
        while True:
            self._label = f"gradwatch/{settings}/{_opened[settings]}"
            _opened[settings] += 1
            if not self._store.check([f"{self._label}/absent"]):
                break  # else the others have decided without this process, which made fewer watches than they did
        self._rank, self._size = dist.get_rank(), dist.get_world_size()
        self._store.set(f"{self._label}/{self._rank}", "1")

    def absent(self) -> list[int]:
        """The ranks that do not take part; all processes get the same answer, given by the first that asks."""
        keys = [f"{self._label}/{number}" for number in range(self._size)]
        end = time.monotonic() + ANNOUNCED
        while not (complete := self._store.check(keys)) and time.monotonic() < end:
            time.sleep(0.01)
        return self._decide([] if complete else [number for number, key in enumerate(keys) if not self._store.check([key])])

    def decline(self) -> None:
        """Tells the others not to wait for this process, where nobody has asked yet."""
        self._decide([self._rank])

    def accept(self) -> Link:
        """Connects to all others; they have to do the same."""
        return Link(self._store, self._label, self._rank, self._size)

    def _decide(self, missing: list[int]) -> list[int]:
        answer = ",".join(map(str, missing)) or "none"
        decided = self._store.compare_set(f"{self._label}/absent", "", answer).decode()
        return [] if decided == "none" else [int(number) for number in decided.split(",")]


class Link:
    """Gathers messages of all processes. Letting go of it tells the others at once.

    Args:
        store: Where processes find each other.
        label: What this link is called there.
        rank: Of this process.
        size: How many there are.
    """

    def __init__(self, store: Any, label: str, rank: int, size: int) -> None:
        patience = datetime.timedelta(seconds=PATIENCE)
        self.rank, self.size = rank, size
        # Gloo ends the process where two of them send messages of different length. Full and light records differ in length and
        # therefore never meet.
        self._lanes = {
            lane: dist.ProcessGroupGloo(dist.distributed_c10d.PrefixStore(f"{label}/{lane}", store), rank, size, patience)
            for lane in (False, True)
        }

    def gather(self, message: bytes, *, lane: bool) -> Gathering:
        """Starts to gather a message from everybody, of the same length in the same lane."""
        return Gathering(self._lanes[lane], message, self.size)

    def gather_any(self, message: bytes, *, lane: bool) -> list[bytes]:
        """Gathers messages of any length, and waits for them."""
        lengths = [int(np.frombuffer(got, np.int64)[0]) for got in self.gather(np.int64(len(message)).tobytes(), lane=lane).wait()]
        longest = self.gather(message.ljust(max(lengths)), lane=lane).wait()
        return [got[:length] for got, length in zip(longest, lengths, strict=True)]


class Gathering:
    """Messages on their way."""

    def __init__(self, group: Any, message: bytes, size: int) -> None:
        own = torch.frombuffer(bytearray(message), dtype=torch.uint8)
        self._all: list[Tensor] = [torch.empty_like(own) for _ in range(size)]
        self._work = group.allgather([self._all], [own])

    def done(self) -> bool:
        """Whether all have arrived."""
        return bool(self._work.is_completed())

    def wait(self) -> list[bytes]:
        """The messages by rank.

        Raises:
            RuntimeError: A process is gone, or has not answered for ``PATIENCE``.
        """
        self._work.wait()
        return [got.numpy().tobytes() for got in self._all]
