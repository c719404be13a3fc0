"""The files on disk, against TensorBoard's own reader and checksum."""

import struct
import time

from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from gradwatch import eventfiles


@given(st.binary(max_size=200))
def test_the_checksum_is_tensorboards(content):
    assert eventfiles.checksum(content) == struct.pack("<I", masked_crc32c(content))


def test_tensorboard_reads_what_was_written_as_soon_as_it_was_written(tmp_path):
    file = eventfiles.EventFile(str(tmp_path))
    for step in range(3):
        file.add_event(Event(step=step, wall_time=time.time()))

    (path,) = eventfiles.in_directory(tmp_path)
    first, *others = [Event.FromString(raw) for raw in RawEventFileLoader(str(path)).Load()]
    assert first.file_version == "brain.Event:2"
    assert [event.step for event in others] == [0, 1, 2]
    assert file.get_logdir() == str(tmp_path)
    file.close()
    file.close()


def test_files_opened_in_the_same_second_get_different_names(tmp_path):
    for _ in range(3):
        eventfiles.EventFile(str(tmp_path)).close()
    assert len(eventfiles.in_directory(tmp_path)) == 3


def test_only_events_with_the_mark_are_yielded_and_checked(tmp_path):
    file = eventfiles.EventFile(str(tmp_path))
    file.add_event(Event(file_version="ours"))
    file.add_event(Event(file_version="theirs"))
    file.close()
    (path,) = eventfiles.in_directory(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"theirs", b"THEIRS"))

    notes: list[str] = []
    assert [Event.FromString(raw).file_version for raw in eventfiles.events(path, b"ours", notes)] == ["ours"]
    assert notes == []
    assert [Event.FromString(raw).file_version for raw in eventfiles.events(path, b"", notes)][1:] == ["ours"]
    assert "damaged" in notes[0]


def test_words_are_found_anywhere_in_a_file(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"x" * 100_000 + b"needle")
    assert eventfiles.mentions(file, b"needle")
    assert not eventfiles.mentions(file, b"noodle")
    file.write_bytes(b"")
    assert not eventfiles.mentions(file, b"needle")
