"""Event files on disk: writing one, reading one, and finding those of a run.

A file is a row of frames: the length of an event, a checksum of the length, the event, a checksum of the event. TensorBoard
computes the checksum byte by byte in Python, which for a record of 1,000 sites takes 8 times as long as all the rest of writing
it; here it comes from a library in C. TensorBoard's loader also stops at the first damaged event without a word; this one tells.
"""

from __future__ import annotations

import itertools
import math
import mmap
import os
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from gradwatch.errors import RunError

try:
    from google_crc32c import value as _crc32c
except ImportError:  # nobody has built it for this platform
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import crc32c as _crc32c  # type: ignore[no-redef]

REMEDY = "give the log directory of a watched run, or one of its event files"

NAMED = 10
"""Runs that an error names; a sweep has thousands."""

CHECK = 4
"""Bytes of a checksum."""

_serial = itertools.count()


class EventFile:
    """A new event file, written without a thread: when ``add_event`` returns, the event outlives the process.

    It has the methods of torch's ``FileWriter`` that are used here.

    Args:
        logdir: A directory that exists.

    Raises:
        OSError: From the file system, here and from every method.
    """

    def __init__(self, logdir: str) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SourceMetadata

        self._logdir = logdir
        # TensorBoard takes the files of a directory in the order of their names.
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.gradwatch{next(_serial)}"
        self._file = (Path(logdir) / name).open("xb")
        source = SourceMetadata(writer="gradwatch")
        self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2", source_metadata=source))

    def add_event(self, event: Any) -> None:
        """Appends an ``event_pb2.Event``."""
        self.append([event.SerializeToString()])

    def append(self, contents: Sequence[bytes]) -> None:
        """Appends events, each as the bytes of its proto."""
        self._file.write(b"".join(part for event in contents for part in (_head(len(event)), event, checksum(event))))
        self._file.flush()

    def get_logdir(self) -> str:
        """The directory."""
        return self._logdir

    def flush(self) -> None:
        """Nothing is left to flush."""

    def close(self) -> None:
        """Closes the file; closing twice does nothing."""
        self._file.close()


def events(file: Path, mark: bytes, notes: list[str]) -> Iterator[bytes]:
    """The events of a file that hold a mark, each as the bytes of its proto.

    Args:
        file: An event file.
        mark: What an event has to hold; the others, which may be images by the gigabyte, are passed over unchecked.
        notes: Takes a sentence about whatever could not be read.
    """
    damaged: list[int] = []
    with file.open("rb") as handle:
        while length := handle.read(8):
            at = handle.tell() - len(length)
            check = handle.read(CHECK)
            if len(check) == CHECK and check != checksum(length):
                notes.append(f"{str(file)!r} is damaged at byte {at}, and nothing from there on could be read")
                break
            event = handle.read(*struct.unpack("<Q", length)) if len(check) == CHECK else b""
            check = handle.read(CHECK)
            if len(check) < CHECK:
                notes.append(f"{str(file)!r} is cut off or still being written: its last event, at byte {at}, is incomplete")
                break
            if mark in event and check != checksum(event):
                damaged.append(at)
            elif mark in event:
                yield event
    if damaged:
        notes.append(f"{str(file)!r} has damaged events, which were left out: {len(damaged)}, the first at byte {damaged[0]}")


def of_run(path: Path, mark: bytes) -> list[Path]:
    """The event files of one run, oldest first.

    Args:
        path: An event file, or a directory that holds some, itself or further down.
        mark: Bytes that tell a file of interest from those of other tools.

    Raises:
        RunError: Nothing is there, no file has the mark, or files of several directories below ``path`` have it.
    """
    if not path.exists():
        raise RunError(f"{str(path)!r} does not exist; {REMEDY}")
    if path.is_file():
        return [path]
    directories = sorted(Path(directory) for directory, _, names in os.walk(path) if any("tfevents" in name for name in names))
    if not directories:
        raise RunError(f"{str(path)!r} holds no event file; {REMEDY}")
    runs = [directory for directory in directories if any(mentions(file, mark) for file in in_directory(directory))]
    if not runs:
        raise RunError(f"{str(path)!r} holds event files, but nothing that gradwatch recorded; {REMEDY}")
    if path not in runs and len(runs) > 1:
        names = ", ".join(repr(str(directory)) for directory in runs[:NAMED]) + (", ..." if len(runs) > NAMED else "")
        raise RunError(f"{str(path)!r} holds {len(runs)} recorded runs: {names}; give one of them")
    return sorted(in_directory(path if path in runs else runs[0]), key=_begun)


def in_directory(directory: Path) -> list[Path]:
    """The event files that lie directly in a directory, by name."""
    return sorted(file for file in directory.iterdir() if "tfevents" in file.name and file.is_file())


def mentions(file: Path, words: bytes) -> bool:
    """Whether these bytes stand anywhere in a file; takes no memory for it."""
    if not file.stat().st_size:
        return False
    with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(words) >= 0


def _begun(file: Path) -> float:
    """The time of a file's first event; the one in its name has whole seconds only."""
    from tensorboard.compat.proto.event_pb2 import Event

    first = next(events(file, b"", []), None)
    return float(Event.FromString(first).wall_time) if first else math.inf


def checksum(content: bytes) -> bytes:
    """The checksum of a frame: CRC-32C, rotated right by 15 bits, plus a constant, little-endian.

    The rotation and the constant are TensorFlow's (``tensorflow/core/lib/hash/crc32c.h``), so that a checksum within checked
    content is not mistaken for its own.
    """
    crc = _crc32c(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


@lru_cache(maxsize=1024)
def _head(size: int) -> bytes:
    """What stands before an event of so many bytes."""
    length = struct.pack("<Q", size)
    return length + checksum(length)


def unused(root: Path) -> Path:
    """The first of ``version_0``, ``version_1``, ... in a directory that does not exist yet: a run has a directory of its own."""
    return next(path for number in itertools.count() if not (path := root / f"version_{number}").exists())
