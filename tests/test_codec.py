"""What was recorded is loaded to the last bit, whatever has happened to the files since."""

import json
import struct
import subprocess
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR
from tensorboard.util.tensor_util import make_ndarray, make_tensor_proto
from torch.utils.tensorboard import SummaryWriter

from gradwatch import codec, moments
from gradwatch.errors import GradWatchWarning, RunError
from gradwatch.eventfiles import in_directory
from gradwatch.history import History
from gradwatch.octaves import EXPONENTS
from gradwatch.records import KINDS, TENSORS, Finding, Record, Site
from gradwatch.writers.tensorboard import EventFileWriter

NAN = float("nan")
LIGHT = (Site("fc1.weight", "parameter_grad", "Linear", (3, 2)), Site("fc2.weight", "parameter_grad", "Linear", (1, 3)))
FULL = (Site("fc1", "activation", "Linear"), *LIGHT)

names = st.text(st.characters(exclude_categories=()), min_size=1, max_size=12) | st.sampled_from(
    ["<img onerror=alert(1)>", "a|b", "слой", "层/1", "gradwatch/v2/x", "\x00\x1b[31m", "\ud800", '"],['],
)
float32 = st.floats(width=32)
sites = st.builds(Site, names, st.sampled_from(TENSORS), names, st.lists(st.integers(0, 2**40), max_size=3).map(tuple))


def counts(sites, of_each):
    return np.full((sites, len(EXPONENTS)), of_each, np.float32)


def ranks(values):
    return np.array(values, np.int32)


@st.composite
def records(draw, step, known):
    row = [float32] * len(moments.COLUMNS)
    row[moments.RMS] = st.floats(0, width=32) | st.just(NAN)
    row[moments.COUNT] = st.floats(0, width=32, allow_infinity=False) | st.just(NAN)
    rows = draw(st.lists(st.tuples(*row), min_size=len(known), max_size=len(known)))
    return Record(
        step,
        known,
        np.array(rows, np.float32).reshape(len(known), len(moments.COLUMNS)),
        draw(st.none() | st.floats()),
        draw(st.booleans()),
        draw(st.integers(0, 1000)),
        draw(st.booleans()),
        draw(st.floats()),
        draw(st.floats()),
        draw(st.none() | st.lists(st.integers(-1, 2**20), min_size=len(known), max_size=len(known)).map(ranks)),
        draw(st.none() | st.floats(0, 2**24, width=32).map(lambda count: counts(len(known), count))) if known else None,
    )


@st.composite
def runs(draw):
    """Records of rising steps, over tuples of sites that alternate and grow."""
    steps = draw(st.lists(st.integers(0, 2**40), max_size=6, unique=True).map(sorted))
    grown = draw(st.lists(sites, max_size=5, unique=True).map(tuple))
    prefixes = [grown[:size] for size in range(len(grown) + 1)]
    return [draw(records(step, draw(st.sampled_from(prefixes)))) for step in steps]


def bits(array):
    """All bits of an array of floats, except for those that tell one NaN from another."""
    array = np.asarray(array)
    return np.where(np.isnan(array), array.dtype.type(NAN), array).tobytes()


def write(directory, run, findings=()):
    writer = EventFileWriter(directory)
    for record in run:
        for finding in findings:
            if finding.first_step == record.step:
                writer.report(finding)
        writer.write(record)
    writer.close()


def light(step, value=1.0):
    return Record(step, LIGHT, moments.norm_rows([6, 3], np.array([value, 2 * value])), loss=value)


def sick(step, last=None, kind="dead_units"):
    return Finding(kind, "fc1", step, step if last is None else last, "warning", {"share": 0.5}, "half of it is dead", "try")


def steps(history):
    return [record.step for record in history]


# ------------------------------------------------------------------ round trip


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(runs())
def test_a_loaded_run_equals_the_recorded_one_to_the_last_bit(run):
    with TemporaryDirectory() as directory:
        write(directory, run)
        if not run:
            with pytest.raises(RunError, match="nothing that gradwatch recorded"):
                codec.load(directory)
            return
        loaded = codec.load(directory)
    assert list(loaded) == run
    for ours, theirs in zip(run, loaded, strict=True):
        assert bits(ours.rows) == bits(theirs.rows)
        assert bits(NAN if ours.loss is None else ours.loss) == bits(NAN if theirs.loss is None else theirs.loss)
        assert (ours.loss is None) == (theirs.loss is None)


def test_an_unknown_loss_is_not_a_loss_of_nan(tmp_path):
    rows = moments.norm_rows([6, 3], np.ones(2))
    write(tmp_path, [Record(0, LIGHT, rows), Record(1, LIGHT, rows, loss=NAN)])
    unknown, nan = codec.load(tmp_path)
    assert unknown.loss is None
    assert np.isnan(nan.loss)


@pytest.mark.parametrize("value", [NAN, 0.0, -0.0, np.inf, -np.inf, 1e-45, 3.4e38])
def test_a_column_of_one_value_comes_back_as_it_was(tmp_path, value):
    rows = np.full((2, len(moments.COLUMNS)), value, np.float32)
    write(tmp_path, [Record(0, LIGHT, rows)])
    assert bits(codec.load(tmp_path)[0].rows) == bits(rows)


evidence = st.dictionaries(names, st.floats() | st.integers() | st.floats(width=32).map(np.float32), max_size=4)
findings = st.builds(
    Finding,
    st.sampled_from(KINDS),
    names,
    st.integers(0, 2**40),
    st.integers(0, 2**40),
    st.just("critical"),
    evidence,
    names,
    names,
)


@given(st.lists(findings, max_size=3))
def test_findings_survive_json_that_every_parser_reads(found):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    text = codec.findings_to_json(found)
    assert text.isascii()
    json.loads(text, parse_constant=refuse)
    for ours, theirs in zip(found, codec.findings_from_json(text), strict=True):
        assert ours.to_dict() | {"evidence": None} == theirs.to_dict() | {"evidence": None}
        assert ours.evidence.keys() == theirs.evidence.keys()
        for name, value in ours.evidence.items():
            assert value == theirs.evidence[name] or (np.isnan(value) and np.isnan(theirs.evidence[name]))


def test_evidence_that_json_has_no_number_for_is_spelt_out():
    finding = Finding("non_finite", "a", 0, 0, "critical", {"min": -np.inf, "max": np.inf, "mean": NAN, "count": np.int64(3)})
    (item,) = json.loads(codec.findings_to_json([finding]))
    assert item["evidence"] == {"min": "-Infinity", "max": "Infinity", "mean": "NaN", "count": 3}


# ------------------------------------------------------------------ the stored layout, read by TensorBoard


def test_the_layout_of_version_1(tmp_path):
    rows = np.arange(3 * len(moments.COLUMNS), dtype=np.float32).reshape(3, -1)
    rows[:, moments.ZEROS] = NAN
    record = Record(7, FULL, rows, loss=0.25, skipped=True, backwards=2, full=False, clip=0.5, scale=1024.0)
    writer = EventFileWriter(tmp_path)
    writer.write(record)
    writer.report(sick(8))
    writer.write(Record(8, FULL, rows))
    writer.close()

    (path,) = in_directory(tmp_path)
    _, first, second = EventFileLoader(str(path)).Load()
    assert first.step == 7
    values = {value.tag: value for value in first.summary.value if value.tag.startswith("gradwatch/v1/")}
    (root,) = {tag.rpartition("/")[0] for tag in values}
    assert len(root) == len("gradwatch/v1/") + 8
    assert {tag.rpartition("/")[2] for tag in values} == {*moments.COLUMNS, "step", "schema"}
    for value in values.values():
        assert value.metadata.plugin_data.plugin_name == "gradwatch"
        assert value.metadata.data_class == DATA_CLASS_TENSOR
    for index, column in enumerate(moments.COLUMNS):
        stored = make_ndarray(values[f"{root}/{column}"].tensor)
        assert stored.dtype == np.float32
        np.testing.assert_array_equal(stored, rows[:, index])
    np.testing.assert_array_equal(make_ndarray(values[f"{root}/step"].tensor), [0.25, 1, 1, 2, 0, 0.5, 1024])
    schema = json.loads(values[f"{root}/schema"].tensor.string_val[0])
    assert schema["sites"][1] == {"layer": "fc1.weight", "type": "Linear", "tensor": "parameter_grad", "shape": [3, 2]}
    assert schema["columns"] == list(moments.COLUMNS)
    assert set(schema["versions"]) == {"gradwatch", "torch"}

    again = {value.tag: value for value in second.summary.value}
    assert f"{root}/schema" not in again
    assert not again[f"{root}/rms"].HasField("metadata")
    (found,) = json.loads(again["gradwatch/v1/findings"].tensor.string_val[0])
    assert found == sick(8).to_dict()


@pytest.mark.parametrize("extra", [{"ranks": ranks([0, 1])}, {"histograms": counts(2, 3.0)}], ids=lambda extra: next(iter(extra)))
def test_what_comes_later_is_described_as_well(tmp_path, extra):
    rows = np.ones((2, len(moments.COLUMNS)), np.float32)
    writer = EventFileWriter(tmp_path)
    writer.write_all([Record(0, LIGHT, rows), *(Record(step, LIGHT, rows, **extra) for step in (1, 2))])
    writer.close()
    (path,) = in_directory(tmp_path)
    _, *events = EventFileLoader(str(path)).Load()
    later = [value for event in events for value in event.summary.value if value.tag.endswith(f"/{next(iter(extra))}")]
    assert [value.metadata.plugin_data.plugin_name for value in later] == ["gradwatch", ""]
    assert sum(value.tag.endswith("/schema") for event in events for value in event.summary.value) == 1
    assert [getattr(record, next(iter(extra))) is None for record in codec.load(tmp_path)] == [True, False, False]


def test_a_record_without_sites_is_loaded_with_its_histograms(tmp_path):
    record = Record(0, (), np.empty((0, len(moments.COLUMNS)), np.float32), full=True, histograms=counts(0, 0))
    writer = EventFileWriter(tmp_path)
    writer.write_all([record])
    writer.close()
    assert list(codec.load(tmp_path)) == [record]


def test_a_schema_is_named_after_its_sites():
    assert codec.Schema(FULL).root == codec.Schema(tuple(FULL)).root
    assert codec.Schema(FULL).root != codec.Schema(LIGHT).root
    assert codec.Schema.from_json(codec.Schema(FULL).to_json()).sites == FULL


def test_what_is_made_of_sites_is_made_once_for_each_tuple():
    made = []

    def make(sites):
        made.append(sites)
        return len(sites)

    per_sites = codec.PerSites(make)
    for _ in range(3):
        assert per_sites(FULL) == 3
        assert per_sites(LIGHT) == 2
    assert made == [FULL, LIGHT]
    for size in range(2 * codec.PerSites.KEPT):
        assert per_sites((Site("a", "activation"),) * size) == size


def test_importing_the_codec_and_the_writers_imports_nothing_heavy():
    modules = ("codec", *(f"writers.{name}" for name in ("console", "logger", "table", "tensorboard")))
    script = f"import sys, {', '.join(f'gradwatch.{name}' for name in modules)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert {"tensorboard", "pandas", "pyarrow", "google.protobuf", "lightning"}.isdisjoint(done.stdout.split())


# ------------------------------------------------------------------ resumed runs


def test_after_a_resume_at_an_earlier_step_the_last_write_of_a_step_wins(tmp_path):
    write(tmp_path, [light(step, 1.0) for step in range(6)])
    write(tmp_path, [light(step, 2.0) for step in range(3, 8)])
    loaded = codec.load(tmp_path)
    assert steps(loaded) == list(range(8))
    assert [record.loss for record in loaded] == [1.0] * 3 + [2.0] * 5


def test_a_resume_may_happen_twice_and_within_one_file(tmp_path):
    write(tmp_path, [light(step, value) for step, value in [(0, 1), (1, 1), (2, 1), (1, 2), (2, 2), (3, 2), (2, 3)]])
    assert [(record.step, record.loss) for record in codec.load(tmp_path)] == [(0, 1), (1, 2), (2, 3)]


def test_files_are_taken_in_the_order_in_which_they_were_begun_whatever_their_names(tmp_path):
    write(tmp_path, [light(step, 1.0) for step in range(4)])
    (first,) = in_directory(tmp_path)
    write(tmp_path, [light(step, 2.0) for step in range(2, 4)])
    first.rename(tmp_path / "z.tfevents")
    assert [record.loss for record in codec.load(tmp_path)] == [1.0, 1.0, 2.0, 2.0]


def test_a_finding_that_began_in_an_overwritten_stretch_is_left_out(tmp_path):
    write(tmp_path, [light(step) for step in range(6)], [sick(1), sick(4)])
    write(tmp_path, [light(step) for step in range(3, 6)], [sick(5, kind="saturated")])
    assert codec.load(tmp_path).findings == [sick(1), sick(5, kind="saturated")]


def test_a_run_that_goes_on_where_it_stopped_keeps_what_was_reported_at_its_stop(tmp_path):
    writer = EventFileWriter(tmp_path)
    writer.report(sick(0))
    writer.write(light(0))
    writer.report(sick(0, last=99))
    writer.close()
    write(tmp_path, [light(1)])
    assert codec.load(tmp_path).findings == [sick(0, last=99)]


def test_a_finding_counts_in_its_last_form_and_findings_are_in_order_of_their_first_step(tmp_path):
    writer = EventFileWriter(tmp_path)
    for step in range(5):
        if step == 1:
            writer.report(sick(1))
            writer.report(sick(0, kind="saturated"))
        if step == 4:
            writer.report(sick(1, last=3))
        writer.write(light(step))
    writer.close()
    assert codec.load(tmp_path).findings == [sick(0, kind="saturated"), sick(1, last=3)]


# ------------------------------------------------------------------ damaged files


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A run of eight records and the bytes of its file."""
    directory = tmp_path_factory.mktemp("written")
    run = [light(step, 1.0 + step) for step in range(8)]
    write(directory, run, [sick(2), sick(5)])
    return run, in_directory(directory)[0].read_bytes()


def ends(content):
    """Where the events of a file end: each stands between its length in 8 bytes, 4 bytes of checksum, and 4 more."""
    at, found = 0, []
    while at < len(content):
        at += 12 + struct.unpack_from("<Q", content, at)[0] + 4
        found.append(at)
    return found


def attempt(content):
    """What can be loaded of a file's bytes, and what is said about the rest."""
    with TemporaryDirectory() as directory, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        path = Path(directory) / "some.tfevents"
        path.write_bytes(content)
        try:
            loaded = codec.load(path)
        except RunError as error:
            return History(), [str(error)]
    return loaded, [str(warning.message) for warning in caught]


@settings(deadline=None)
@given(data=st.data())
def test_of_a_file_cut_off_anywhere_all_whole_records_are_loaded(written, data):
    run, content = written
    size = data.draw(st.integers(0, len(content)))
    loaded, said = attempt(content[:size])
    whole = sum(end <= size for end in ends(content))
    assert list(loaded) == run[: max(whole - 1, 0)]  # the first event of a file holds its version only
    if size and size not in ends(content):
        assert "cut off or still being written" in said[0]


@settings(deadline=None)
@given(data=st.data())
def test_a_damaged_byte_never_turns_into_a_wrong_number(written, data):
    run, content = written
    at, flip = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(1, 255))
    loaded, said = attempt(content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :])
    assert all(record in run for record in loaded)
    assert all(finding in (sick(2), sick(5)) for finding in loaded.findings)
    # The file's own first event holds nothing of ours, and is not checked.
    assert said or list(loaded) == run


def test_records_after_a_damaged_one_are_loaded(written, tmp_path):
    run, content = written
    path = tmp_path / "damaged.tfevents"
    damaged = content.replace(np.array([1.0 + 3], np.float64).tobytes(), b"damaged!")
    path.write_bytes(damaged)
    assert damaged != content
    with pytest.warns(
        GradWatchWarning, match=r"damaged\.tfevents' has damaged events, which were left out: 1, the first at byte \d+"
    ):
        loaded = codec.load(path)
    assert list(loaded) == run[:3] + run[4:]


def test_records_whose_sites_are_lost_are_counted(written, tmp_path):
    _, content = written
    path = tmp_path / "damaged.tfevents"
    path.write_bytes(content.replace(b"fc2.weight", b"fc3.weight"))
    with pytest.warns(GradWatchWarning) as said:
        loaded = codec.load(path)
    assert list(loaded) == []
    assert ["damaged events" in str(note.message) for note in said] == [True, False]
    assert "7 records whose sites were lost with an earlier event" in str(said[1].message)


# ------------------------------------------------------------------ other tools, other places


def test_events_of_other_tools_in_the_same_file_are_passed_over(tmp_path):
    user = SummaryWriter(tmp_path)
    writer = EventFileWriter(summary_writer=user)
    for step in range(3):
        user.add_scalar("train/loss", 1.0, step)
        user.add_scalar("gradwatch/versus", 1.0, step)
        user.add_histogram("weights", np.arange(100), step)
        user.add_text("gradwatch", "a text about gradwatch/v1/nothing", step)
        writer.write(light(step))
    writer.close()
    user.close()
    assert steps(codec.load(tmp_path)) == [0, 1, 2]


def test_one_event_file_can_be_given(tmp_path):
    write(tmp_path, [light(0)])
    write(tmp_path, [light(1)])
    assert sorted(steps(codec.load(file)) for file in in_directory(tmp_path)) == [[0], [1]]
    assert steps(codec.load(str(tmp_path))) == [0, 1]


def test_a_run_is_found_below_the_directory_that_is_given(tmp_path):
    write(tmp_path / "lightning_logs" / "version_0", [light(0)])
    SummaryWriter(tmp_path / "elsewhere").close()
    assert steps(codec.load(tmp_path)) == [0]


def test_of_several_runs_none_is_guessed(tmp_path):
    write(tmp_path / "version_0", [light(0)])
    write(tmp_path / "version_1", [light(1)])
    with pytest.raises(RunError, match=r"holds 2 recorded runs: .*version_0', .*version_1'; give one of them"):
        codec.load(tmp_path)
    assert steps(codec.load(tmp_path / "version_1")) == [1]


def test_a_run_counts_for_more_than_what_lies_below_it(tmp_path):
    write(tmp_path, [light(0)])
    write(tmp_path / "below", [light(1)])
    assert steps(codec.load(tmp_path)) == [0]


def test_what_is_no_run_is_refused_with_its_path_and_a_remedy(tmp_path):
    (tmp_path / "readme.txt").write_text("no events here, but a good deal of text all the same")
    foreign = SummaryWriter(tmp_path / "foreign")
    foreign.add_scalar("loss", 1.0, 0)
    foreign.close()
    (tmp_path / "empty").mkdir()
    (tmp_path / "void").mkdir()
    (tmp_path / "void" / "events.out.tfevents.0").touch()
    for name, fact in {
        "nowhere": "does not exist",
        "empty": "holds no event file",
        "foreign": "nothing that gradwatch recorded",
        "void": "nothing that gradwatch recorded",
        "readme.txt": "nothing that gradwatch recorded .*damaged at byte 0",
    }.items():
        with pytest.raises(RunError, match=f"{name}' .*{fact}.*; give the log directory of a watched run"):
            codec.load(tmp_path / name)


def test_a_run_of_another_version_of_the_layout_is_refused(tmp_path):
    user = SummaryWriter(tmp_path)
    user.add_scalar("gradwatch/v2/findings", 1.0, 0)
    user.close()
    with pytest.raises(RunError, match=r"recorded in layout v2, and this gradwatch reads v1; read it with the version"):
        codec.load(tmp_path)


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    write(tmp_path, [light(0)])

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(RunError, match=r"cannot be read: .*Permission denied"):
        codec.load(tmp_path)


def test_a_record_from_before_the_loss_scale_was_stored_has_none():
    step = make_tensor_proto(np.array([0.25, 1, 0, 2, 1, 0.5]))
    record = codec._record(7, LIGHT, {"step": step})
    assert (record.loss, record.backwards, record.full, record.clip) == (0.25, 2, True, 0.5)
    assert np.isnan(record.scale)
