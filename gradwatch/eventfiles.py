"""Event files on disk: writing one, reading one, and finding those of a run.

A file is a row of frames: the length of an event, a checksum of the length, the event, a checksum of the event. TensorBoard
computes the checksum byte by byte in Python, which for a record of 1,000 sites takes 8 times as long as all the rest of writing
it; here it takes a twentieth of that. TensorBoard's loader also stops at the first damaged event without a word; this one tells.
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
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwatch.errors import RunError

REMEDY = "give the log directory of a watched run, or one of its event files"

NAMED = 10
"""Runs that an error names; a sweep has thousands."""

CHECK = 4
"""Bytes of a checksum."""

REGISTER = 4
"""Bytes of the register of a CRC."""

BLOCK = 64
"""Bytes that are taken together into a register, by a table of 64 KiB."""

BLOCKS = 256
"""Blocks whose registers are taken together."""

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
        frames = zip(map(len, contents), contents, checksums(contents), strict=True)
        self._file.write(b"".join(part for size, content, check in frames for part in (_head(size), content, check)))
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
    return checksums([content])[0]


def checksums(contents: Sequence[bytes]) -> list[bytes]:
    """The checksums of several frames; those of one length, as records of one schema have, are computed together."""
    found: list[bytes] = []
    for size, run in itertools.groupby(contents, len):
        alike = list(run)
        found += _checksums(np.frombuffer(b"".join(alike), np.uint8).reshape(len(alike), size))
    return found


def _checksums(octets: npt.NDArray[np.uint8]) -> list[bytes]:
    """The checksums of frames of one length, (frames, bytes)."""
    near, far = _tables()
    frames, size = octets.shape
    # A CRC begins with a register of ones, which is as good as inverting the first four bytes; zeros before them change nothing.
    inverted = min(size, REGISTER)
    padded = np.zeros((frames, max(1, -(-size // BLOCK)) * BLOCK), np.uint8)
    padded[:, padded.shape[1] - size :] = octets
    padded[:, padded.shape[1] - size : padded.shape[1] - size + inverted] ^= 0xFF
    crc = np.zeros(frames, "<u4")
    blocks = padded.reshape(frames, -1, BLOCK)
    first = blocks.shape[1] % BLOCKS or BLOCKS
    for end in range(first, blocks.shape[1] + 1, BLOCKS):
        part = blocks[:, max(end - BLOCKS, 0) : end]
        part[:, 0, :REGISTER] ^= crc.view(np.uint8).reshape(frames, REGISTER)
        registers = np.bitwise_xor.reduce(near.take(part + np.arange(0, near.size, 256)), axis=2)  # (frames, blocks)
        octets_of = registers.astype("<u4").view(np.uint8).reshape(frames, -1)
        crc = np.bitwise_xor.reduce(far.take(octets_of + np.arange(far.size - 256 * octets_of.shape[1], far.size, 256)), axis=1)
    crc = crc ^ np.uint32(0xFFFFFFFF >> 8 * inverted) ^ np.uint32(0xFFFFFFFF)
    masked = ((crc >> 15 | crc << 17) + np.uint32(0xA282EAD8)).astype("<u4").tobytes()  # modulo 2**32, as arrays count
    return [masked[place : place + CHECK] for place in range(0, len(masked), CHECK)]


@lru_cache(maxsize=1024)
def _head(size: int) -> bytes:
    """What stands before an event of so many bytes."""
    length = struct.pack("<Q", size)
    return length + checksum(length)


@cache
def _tables() -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """What each value of a byte adds to the checksum: at each place of a block, and at each of a register so many blocks earlier.

    A CRC is linear: the register after a block is the exclusive or of what its bytes add, each alone among zeros, and the register
    at the end that of what the registers of all blocks add. Two small tables in place of one for every place leave most of a core's
    cache to whom it belongs.

    Returns:
        (BLOCK * 256,) and (BLOCKS * REGISTER * 256,).
    """
    last = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        last = (last >> 1) ^ np.where(last & 1, np.uint32(0x82F63B78), np.uint32(0))  # Castagnoli's polynomial, reflected
    near = np.empty((BLOCK, 256), np.uint32)
    near[-1] = last
    for place in range(BLOCK - 2, -1, -1):
        near[place] = last[near[place + 1] & 0xFF] ^ (near[place + 1] >> 8)  # one more zero byte follows
    far = np.empty((BLOCKS, REGISTER, 256), np.uint32)
    far[-1] = np.arange(256, dtype=np.uint32) << 8 * np.arange(REGISTER, dtype=np.uint32)[:, None]
    for block in range(BLOCKS - 2, -1, -1):  # a whole block of zeros follows
        after = far[block + 1]
        far[block] = near[0][after & 0xFF]
        for place in range(1, REGISTER):
            far[block] ^= near[place][after >> 8 * place & 0xFF]
    return near.ravel(), far.ravel()


def unused(root: Path) -> Path:
    """The first of ``version_0``, ``version_1``, ... in a directory that does not exist yet: a run has a directory of its own."""
    return next(path for number in itertools.count() if not (path := root / f"version_{number}").exists())
