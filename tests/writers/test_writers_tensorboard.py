"""What TensorBoard itself finds in the files."""

import html
import json
import re

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from torch.utils.tensorboard import SummaryWriter

from gradwatch import codec, moments
from gradwatch.errors import InvalidSetting, LogdirError
from gradwatch.eventfiles import in_directory
from gradwatch.records import Finding, Record, Site
from gradwatch.writers.tensorboard import TEXT_ROWS, EventFileWriter

# TensorBoard imports a part of html5lib that announces its own retirement.
pytestmark = pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")

FINDINGS = "gradwatch/v1/findings"
TEXT = "gradwatch/findings/text_summary"
LAYOUT = "custom_scalars__config__"


def full(step, layers=2, **fields):
    """A record of so many layers, whose gradients have rms 1, 2, 3 ..."""
    sites, rms = [], []
    for layer in range(layers):
        sites.append(Site(f"layers.{layer}", "activation", "Linear"))
        sites += [Site(f"layers.{layer}.weight", t, "Linear", (2, 2)) for t in ("parameter", "parameter_grad", "update")]
        rms += [0.5, 4, layer + 1, 0.04]
    return Record(step, tuple(sites), moments.norm_rows([4] * len(sites), 2 * np.array(rms)), **fields)


def light(step, layers=2):
    sites = tuple(Site(f"layers.{layer}.weight", "parameter_grad", "Linear", (2, 2)) for layer in range(layers))
    return Record(step, sites, moments.norm_rows([4] * layers, np.full(layers, 2.0)), full=False)


def dead(step, last=None, layer="layers.0", message="half of its units are dead"):
    return Finding("dead_units", layer, step, step if last is None else last, "warning", {}, message, "Lower the rate.")


def written(directory, *records, **arguments):
    writer = EventFileWriter(directory, **arguments)
    for record in records:
        writer.write(record)
    writer.close()


def events(directory):
    (path,) = in_directory(directory)
    return list(EventFileLoader(str(path)).Load())


def tags(directory):
    found = EventAccumulator(str(directory)).Reload().Tags()
    return found["scalars"], found["tensors"]


def curve(directory, tag):
    return [(event.step, event.value) for event in EventAccumulator(str(directory), {"scalars": 0}).Reload().Scalars(tag)]


def text_of(tensor):
    return tensor.string_val[0].decode()


# ------------------------------------------------------------------ records


def test_a_record_is_one_event_with_everything_in_it(tmp_path):
    written(tmp_path, full(0), light(1), full(2))
    _, *found = events(tmp_path)
    assert [event.step for event in found] == [0, 1, 2]
    for event in found:
        columns = [value.tag for value in event.summary.value if value.tag.endswith(tuple(f"/{name}" for name in moments.COLUMNS))]
        assert len([tag for tag in columns if tag.startswith("gradwatch/v1/")]) == len(moments.COLUMNS)


def test_tensorboards_dashboards_show_totals_and_quantiles(tmp_path):
    written(tmp_path, full(0, layers=11, loss=0.5), light(1), full(2, layers=11, loss=0.25))
    assert curve(tmp_path, "gradwatch/loss") == [(0, 0.5), (2, 0.25)]
    assert curve(tmp_path, "gradwatch/gradient_rms/median") == [(0, 6), (1, 1), (2, 6)]
    assert curve(tmp_path, "gradwatch/gradient_rms/p90") == [(0, 10), (1, 1), (2, 10)]
    assert curve(tmp_path, "gradwatch/activation_rms/max") == [(0, 0.5), (2, 0.5)]
    assert curve(tmp_path, "gradwatch/update_ratio/min") == [(0, pytest.approx(0.01)), (2, pytest.approx(0.01))]
    assert curve(tmp_path, "gradwatch/gradient_norm/total")[1] == (1, pytest.approx(8**0.5))
    assert curve(tmp_path, "gradwatch/nonfinite/total") == [(0, 0), (1, 0), (2, 0)]


def test_the_number_of_tags_does_not_depend_on_depth(tmp_path):
    for layers in (10, 1000):
        written(tmp_path / str(layers), full(0, layers=layers, loss=1.0), light(1, layers=layers))
    small, large = tags(tmp_path / "10"), tags(tmp_path / "1000")
    assert small[0] == large[0]
    assert len(small[0]) == 18
    # Two schemas of as many columns, their schema and step; and the layout.
    assert len(small[1]) == len(large[1]) == 2 * (len(moments.COLUMNS) + 2) + 1


def test_a_run_can_be_loaded_while_it_is_being_written(tmp_path):
    writer = EventFileWriter(tmp_path)
    for step in range(3):
        writer.write(light(step))
        assert [record.step for record in codec.load(tmp_path)] == list(range(step + 1))
    writer.close()


# ------------------------------------------------------------------ findings


def findings_by_step(directory):
    return [
        (event.step, [item["last_step"] for item in json.loads(text_of(value.tensor))])
        for event in events(directory)
        for value in event.summary.value
        if value.tag == FINDINGS
    ]


def test_a_step_has_at_most_one_list_of_findings(tmp_path):
    writer = EventFileWriter(tmp_path)
    writer.write(light(0))
    writer.report(dead(1))
    writer.report(dead(1, layer="layers.1"))
    writer.write(light(1))
    writer.write(light(2))
    writer.report(dead(1, last=2))
    writer.report(dead(1, last=2, layer="layers.1"))
    writer.close()
    assert findings_by_step(tmp_path) == [(1, [1, 1]), (2, [2, 2])]


def test_what_is_reported_at_the_end_of_a_step_with_findings_goes_under_the_next(tmp_path):
    writer = EventFileWriter(tmp_path)
    writer.report(dead(0))
    writer.write(light(0))
    writer.report(dead(0, last=9))
    writer.close()
    assert findings_by_step(tmp_path) == [(0, [0]), (1, [9])]


def test_findings_without_any_record_are_written_too(tmp_path):
    writer = EventFileWriter(tmp_path)
    writer.report(dead(3, last=5))
    writer.close()
    assert findings_by_step(tmp_path) == [(5, [5])]
    assert codec.load(tmp_path).findings == [dead(3, last=5)]


def text_tab(directory):
    from tensorboard.plugin_util import markdown_to_safe_html

    found = EventAccumulator(str(directory)).Reload().Tensors(TEXT)
    return [markdown_to_safe_html(text_of(event.tensor_proto)) for event in found]


def cells(page):
    return [html.unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", page, re.DOTALL)]


def test_the_text_tab_holds_a_table_of_findings_newest_first(tmp_path):
    writer = EventFileWriter(tmp_path)
    writer.report(dead(0))
    writer.write(light(0))
    writer.report(dead(1, layer="layers.1"))
    writer.report(dead(0, last=1))
    writer.write(light(1))
    writer.close()
    first, second = text_tab(tmp_path)
    one = ["warning", "dead_units", "layers.0", "half of its units are dead", "Lower the rate."]
    assert cells(first) == ["0 to 0", *one]
    assert cells(second) == ["1 to 1", "warning", "dead_units", "layers.1", *one[3:], "0 to 1", *one]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("<img src=x onerror=alert(1)>", "<img src=x onerror=alert(1)>"),
        ("a|b|c", "a|b|c"),
        ("**bold** `code` [link](http://x) _it_ # 1. \\| &lt; ~~", "**bold** `code` [link](http://x) _it_ # 1. \\| &lt; ~~"),
        ("слой", "слой"),
        ("two\nlines\x00\ud800", "two\\nlines\\x00\\ud800"),
    ],
)
def test_the_text_tab_shows_names_and_messages_as_they_are(tmp_path, name, shown):
    writer = EventFileWriter(tmp_path)
    writer.report(dead(0, layer=name, message=name))
    writer.write(light(0))
    writer.close()
    (page,) = text_tab(tmp_path)
    assert cells(page)[3:5] == [shown, shown]
    assert set(re.findall(r"<(\w+)", page)) <= {"table", "thead", "tbody", "tr", "th", "td"}


def test_the_text_tab_is_bounded(tmp_path):
    writer = EventFileWriter(tmp_path)
    for number in range(TEXT_ROWS + 7):
        writer.report(dead(0, layer=f"layers.{number}"))
    writer.write(light(0))
    writer.close()
    (page,) = text_tab(tmp_path)
    assert len(cells(page)) == 6 * TEXT_ROWS
    assert f"layers.{TEXT_ROWS + 6}" in cells(page)[3]
    assert "and 7 older ones" in page
    assert len(codec.load(tmp_path).findings) == TEXT_ROWS + 7


# ------------------------------------------------------------------ the user's own SummaryWriter


def test_a_users_writer_is_shared_and_stays_open(tmp_path):
    user = SummaryWriter(tmp_path)
    writer = EventFileWriter(summary_writer=user)
    for step in range(3):
        user.add_scalar("train/loss", 1 / (step + 1), step)
        writer.write(light(step))
    writer.report(dead(2))
    writer.close()
    assert [record.step for record in codec.load(tmp_path)] == [0, 1, 2]  # flushed
    user.add_scalar("train/loss", 0.25, 3)
    user.close()

    assert len(in_directory(tmp_path)) == 1
    assert curve(tmp_path, "train/loss") == [(0, 1), (1, 0.5), (2, pytest.approx(1 / 3)), (3, 0.25)]
    assert curve(tmp_path, "gradwatch/gradient_rms/max") == [(0, 1), (1, 1), (2, 1)]
    assert codec.load(tmp_path).findings == [dead(2)]


def test_after_a_user_closed_the_writer_the_next_file_describes_its_tags_anew(tmp_path):
    user = SummaryWriter(tmp_path)
    writer = EventFileWriter(summary_writer=user)
    writer.write(light(0))
    user.close()
    writer.write(light(1))
    writer.close()
    user.close()
    assert sorted(codec.load(file)[0].step for file in in_directory(tmp_path)) == [0, 1]
    assert [record.step for record in codec.load(tmp_path)] == [0, 1]


def test_closing_without_news_does_not_reopen_a_closed_writer(tmp_path):
    user = SummaryWriter(tmp_path)
    writer = EventFileWriter(summary_writer=user)
    writer.write(light(0))
    user.close()
    writer.close()
    assert len(in_directory(tmp_path)) == 1


# ------------------------------------------------------------------ the layout of the Custom Scalars tab


def layouts(directory):
    found = [
        Layout.FromString(value.tensor.string_val[0])
        for event in events(directory)
        for value in event.summary.value
        if value.tag == LAYOUT
    ]
    return [[category.title for category in layout.category] for layout in found], found


def test_the_layout_shows_bands_of_scalars_that_exist(tmp_path):
    written(tmp_path, full(0, loss=1.0), full(1, loss=1.0))
    titles, (layout,) = layouts(tmp_path)
    assert titles == [["Gradient health"]]
    scalars, _ = tags(tmp_path)
    charts = layout.category[0].chart
    margins = [series for chart in charts for series in chart.margin.series]
    assert [series.value for series in margins] == [
        f"gradwatch/{name}/median" for name in ("gradient_rms", "activation_rms", "update_ratio")
    ]
    patterns = [tag for chart in charts for tag in chart.multiline.tag]
    drawn = {tag for series in margins for tag in (series.value, series.lower, series.upper)}
    drawn |= {tag for tag in scalars for pattern in patterns if re.match(pattern, tag)}
    assert drawn == set(scalars)


def user_layout(user):
    user.add_custom_scalars({"Mine": {"loss": ["Multiline", ["loss"]]}})


def test_a_users_layout_is_not_replaced(tmp_path):
    user = SummaryWriter(tmp_path)
    user_layout(user)
    written(None, light(0), light(1), summary_writer=user)
    user.close()
    assert layouts(tmp_path)[0] == [["Mine"]]


def test_a_users_later_layout_counts(tmp_path):
    user = SummaryWriter(tmp_path)
    written(None, light(5), summary_writer=user)
    user_layout(user)
    user.close()
    assert layouts(tmp_path)[0] == [["Gradient health"], ["Mine"]]  # TensorBoard shows the last one


def test_a_resumed_run_has_its_layout_already(tmp_path):
    written(tmp_path, light(0))
    before = {path: path.read_bytes() for path in in_directory(tmp_path)}
    written(tmp_path, light(1))
    assert [path.read_bytes().count(LAYOUT.encode()) for path in before] == [1]
    assert sum(path.read_bytes().count(LAYOUT.encode()) for path in in_directory(tmp_path)) == 1


# ------------------------------------------------------------------ what cannot be written


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    for logdir in (tmp_path / "file", tmp_path / "file" / "run", str(tmp_path / "a\0b")):
        with pytest.raises(LogdirError, match=r"the log directory .* cannot be written: .*; give one that can"):
            EventFileWriter(logdir)
    assert issubclass(LogdirError, OSError)


def test_a_full_disk_is_an_error_of_the_write_that_met_it(tmp_path):
    resource = pytest.importorskip("resource", reason="only POSIX can limit the size of a file")
    writer = EventFileWriter(tmp_path)
    writer.write(light(0))
    (path,) = in_directory(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 50, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            writer.write(light(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with pytest.warns(Warning, match="incomplete"):
        assert [record.step for record in codec.load(tmp_path)] == [0]
    writer.close()
    assert [record.step for record in codec.load(tmp_path)] == [0, 1]


def test_exactly_one_place_to_write_to_is_needed(tmp_path):
    user = SummaryWriter(tmp_path)
    for arguments in ({}, {"logdir": tmp_path, "summary_writer": user}):
        with pytest.raises(InvalidSetting, match="either a logdir or a summary_writer, and not both"):
            EventFileWriter(**arguments)
    with pytest.raises(InvalidSetting, match=r"must be a torch\.utils\.tensorboard\.SummaryWriter, and is a str"):
        EventFileWriter(summary_writer="runs")
    user.close()
