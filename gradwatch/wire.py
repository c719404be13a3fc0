"""The messages of an event file, in the bytes that protocol buffers give them.

A record is some 30 values under the same names every time, of which only the numbers change. To build them as objects of the
protobuf library takes ten times as long as to put the numbers behind bytes that are made once. The messages are those of
``tensorboard/compat/proto``: Event, Summary, Summary.Value, TensorProto, TensorShapeProto; any reader of them reads these.
"""

from __future__ import annotations

import struct
from typing import Any

FLOAT, DOUBLE, INT32 = 1, 2, 3
"""Types of a tensor's elements, ``types.proto``."""

SIZES = {FLOAT: 4, DOUBLE: 8, INT32: 4}
"""Bytes of an element."""

_VARINT, _LENGTH = 0, 2  # what follows the number of a field


def varint(number: int) -> bytes:
    """A number that is not negative: seven bits a byte, the lowest first."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def opening(number: int, size: int) -> bytes:
    """What stands before the ``size`` bytes of a field that is a string or a message."""
    return varint(number << 3 | _LENGTH) + varint(size)


def field(number: int, content: bytes) -> bytes:
    """A field that is a string or a message."""
    return opening(number, len(content)) + content


def event(wall_time: float, step: int, summary: bytes) -> bytes:
    """An Event.

    Args:
        wall_time: Seconds since 1970.
        step: From 0.
        summary: Values, one after the other.
    """
    return b"".join((b"\x09", struct.pack("<d", wall_time), b"\x10", varint(step), opening(5, len(summary)), summary))


def tensor_value(tag: str, dtype: int, elements: int, *, repeat: bool = False, metadata: Any = None) -> bytes:
    """All of a Summary.Value that holds a vector, but for its elements, which are to follow.

    Args:
        tag: Its name.
        dtype: ``FLOAT``, ``DOUBLE`` or ``INT32``.
        elements: How many the vector has.
        repeat: Whether a single number follows, which every reader repeats; only of type ``FLOAT``.
        metadata: A ``summary_pb2.SummaryMetadata``, or None.
    """
    dimension = field(2, b"\x08" + varint(elements))
    tensor = varint(1 << 3 | _VARINT) + varint(dtype) + field(2, dimension)
    size = SIZES[dtype] * (1 if repeat else elements)
    tensor += opening(5 if repeat else 4, size)  # float_val or tensor_content
    about = b"" if metadata is None else field(9, metadata.SerializeToString())
    named = field(1, tag.encode()) + about + opening(8, len(tensor) + size)
    return opening(1, len(named) + len(tensor) + size) + named + tensor


def scalar_value(tag: str) -> bytes:
    """All of a Summary.Value that holds a number, but for the float32 that is to follow."""
    named = field(1, tag.encode()) + b"\x15"
    return opening(1, len(named) + SIZES[FLOAT]) + named


def value(built: Any) -> bytes:
    """A Summary.Value that the protobuf library has built."""
    return field(1, built.SerializeToString())
