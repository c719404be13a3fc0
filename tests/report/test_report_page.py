"""The page as a file: what it holds, and what a browser shows of it without a network."""

import base64
import gzip
import hashlib
import json
import re

import numpy as np
import pytest
import recorded_runs
from browser import pixel, view_state
from recorded_runs import HOSTILE, finding, history, record, sites

from gradwatch import report
from gradwatch.errors import LogdirError
from gradwatch.report import packing
from gradwatch.report.recorded import of_history
from gradwatch.tensorboard_plugin import answers, cells
from gradwatch.tensorboard_plugin.shown import SHOWN

ODD_NAME = "</title><script>alert(4)</script>"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A page of four runs."""
    runs = {
        "sick": recorded_runs.sick(),
        "healthy": recorded_runs.healthy(),
        ODD_NAME: recorded_runs.hostile(),
        "empty": history([]),
    }
    path = tmp_path_factory.mktemp("page") / "new" / "folder" / "page.html"
    report.write(runs, path, {"sick": ["the file <b>ends</b> too early"]})
    return path


def unpacked(packed):
    """The header, and statistic → codes."""
    content = gzip.decompress(base64.b64decode(packed))
    length = int.from_bytes(content[:4], "little")
    header = json.loads(content[4 : 4 + length])
    low, high = np.frombuffer(content, np.uint8, offset=4 + length).reshape(2, -1).astype(np.uint16)
    steps, start, grids = low | high << 8, 0, {}
    for about in header["layout"]["statistics"]:
        grid = header["grids"][about["id"]]
        shape = len(grid["rows"]), len(grid["steps"])
        grids[about["id"]] = np.cumsum(steps[start : start + shape[0] * shape[1]].reshape(shape), axis=1, dtype=np.uint16)
        start += shape[0] * shape[1]
    assert start == len(steps)
    return header, grids


def test_a_packed_run_holds_the_answers_of_the_tab_and_its_grids():
    run = of_history(recorded_runs.sick())
    header, grids = unpacked(packing.pack(run))
    for name in ("table", "incidents", "loss"):
        assert header[name] == json.loads(json.dumps(getattr(answers, name)(run)))
    about = header["grids"]["gradient"]
    assert [about["rows"][place] for place in about["standIns"]] == [f"{layer}.weight" for layer in recorded_runs.SICK]
    codes = grids["gradient"]
    middle = codes[about["rows"].index("encoder.1.weight")]
    assert middle[40:45].tolist() == [packing.NAN] * 5
    assert codes[about["rows"].index("head.weight"), 20] == packing.ZERO
    spacing = (about["high"] - about["low"]) / (packing.LAST_CODE - packing.FIRST_CODE)
    assert 2 ** (about["low"] + (int(middle[0]) - packing.FIRST_CODE) * spacing) == pytest.approx(1e-3, rel=1e-3)


def test_codes_are_in_the_order_of_numbers_and_round_by_less_than_a_thousandth():
    numbers = np.array([1e-30, 1e-7, 1.0, 1.001, 3e4, 1e30])
    special = np.array([0.0, np.inf, np.nan, 5.0])
    known = np.array([True] * 9 + [False])
    codes, low, high = packing.quantize(cells.encode(np.append(numbers, special), known), SHOWN["gradient"])
    assert codes[6:].tolist() == [packing.ZERO, packing.INF, packing.NAN, packing.ABSENT]
    assert (np.diff(codes[:6].astype(int)) > 0).sum() >= 4
    spacing = (high - low) / (packing.LAST_CODE - packing.FIRST_CODE)
    np.testing.assert_allclose(2 ** (low + (codes[:6].astype(float) - packing.FIRST_CODE) * spacing), numbers, rtol=1.1e-3)


def test_signed_numbers_and_single_values_are_packed():
    for values in ([-2.0, 0.0, 3.0], [7.0], [-np.inf]):
        raw = cells.encode(np.array(values), np.ones(len(values), bool), signed=True)
        codes, low, high = packing.quantize(raw, SHOWN["mean"])
        spacing = (high - low) / (packing.LAST_CODE - packing.FIRST_CODE)
        for code, value in zip(codes.tolist(), values, strict=True):
            assert code == packing.MINUS_INF if np.isinf(value) else low + (code - 2) * spacing == pytest.approx(value, abs=1e-4)


def test_a_very_deep_network_gets_fewer_columns(monkeypatch):
    monkeypatch.setattr(packing, "CELLS", 1)
    monkeypatch.setattr(packing, "FEWEST", 7)
    header, grids = unpacked(packing.pack(of_history(recorded_runs.healthy())))
    assert header["grids"]["gradient"]["last"][-1] == recorded_runs.STEPS - 1
    assert grids["gradient"].shape[1] == 7


def test_the_page_fetches_nothing_and_runs_only_its_own_script(file):
    text = file.read_text(encoding="utf-8")
    (script,) = re.findall(r'<script type="module">(.*?)</script>', text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; script-src 'sha256-{digest}'" in text
    assert not re.findall(r"(?:src|href)=", text.replace(script, ""))
    assert not re.search(r"^\s*(?:import|export) ", script, re.MULTILINE)


def test_hostile_names_are_nowhere_markup(file):
    text = file.read_text(encoding="utf-8")
    assert len(re.findall("<script", text.partition("<body>")[2].partition('<script type="module">')[0])) == 5  # names, four runs
    assert HOSTILE not in text
    assert "alert(4)" not in text.replace("&lt;/title&gt;&lt;script&gt;alert(4)&lt;/script&gt;", "")


def test_a_page_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("of somebody else")
    with pytest.raises(LogdirError, match="cannot be written"):
        report.write({"run": recorded_runs.healthy(steps=1)}, tmp_path / "file" / "page.html")


def test_older_records_that_memory_has_let_go_are_said():
    short = recorded_runs.history([])
    short._max_bytes = 1
    for one in recorded_runs.healthy(steps=3):
        short.append(one)
    assert of_history(short).notes == ["the first 2 records are no longer in memory; the run's event files hold them"]


def test_records_that_bring_new_tuples_of_the_same_sites_are_one_block():
    run = of_history(history([record(step, sites(["a"])) for step in range(5)]))
    assert len(run.blocks) == 1
    assert run.blocks[0].steps.tolist() == [0, 1, 2, 3, 4]


# ---------------------------------------------------------------- in a browser


@pytest.fixture
def opened(page, file, browser_context):
    """Opens the file with a state, without a network."""
    browser_context.set_offline(True)
    requests = []
    page.on("request", lambda request: requests.append(request.url))

    def open_with(state=""):
        page.goto("about:blank")
        requests.clear()
        page.goto(f"{file.as_uri()}#{state}")
        page.locator(".gw").evaluate("root => root.gradwatch.ready")
        return page

    yield open_with
    assert {url.partition("#")[0] for url in requests if not url.startswith("blob:")} <= {file.as_uri()}
    browser_context.set_offline(False)


@pytest.fixture
def expect():
    return pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect


def test_the_page_opens_from_a_disk(opened, expect):
    page = opened("run=sick")
    assert page.title() == "Gradient health: sick, healthy, </title><script>alert(4)</script>, empty"
    rows = page.get_by_test_id("gw-layer-row")
    expect(rows).to_have_count(3)
    assert [row.get_attribute("data-layer") for row in rows.all()] == list(recorded_runs.SICK)
    expect(page.get_by_test_id("gw-notes")).to_contain_text("the file <b>ends</b> too early")


def test_its_cells_have_the_colours_of_what_was_recorded(opened):
    page = opened("run=sick&statistic=gradient")
    colors = page.locator(".gw").evaluate("root => root.gradwatch.colors()")
    assert pixel(page, "encoder.1", 42)[:3] == colors["nan"]
    assert pixel(page, "head", 20)[:3] == colors["zero"]
    assert pixel(page, "encoder.1", 39) == pixel(page, "encoder.1", 45) != pixel(page, "encoder.0", 10)


def test_a_click_on_an_incident_leads_to_its_layer_and_the_address_follows(opened, expect):
    page = opened("run=sick")
    page.get_by_test_id("gw-incident").nth(1).click()
    expect(page.get_by_test_id("gw-selected-layer")).to_contain_text("encoder.1")
    expect(page.get_by_test_id("gw-series")).to_be_visible()
    page.wait_for_url(re.compile("layer=encoder.1"))
    again = opened(page.url.partition("#")[2])
    expect(again.get_by_test_id("gw-selected-layer")).to_contain_text("encoder.1")
    assert view_state(again)["step"] == 40


def test_hostile_names_are_text_on_the_page(opened, expect):
    page = opened("run=" + "%3C%2Ftitle%3E%3Cscript%3Ealert(4)%3C%2Fscript%3E")
    expect(page.get_by_test_id("gw-layer-row")).to_have_count(5)
    expect(page.get_by_test_id("gw-incident")).to_contain_text("<script>alert(3)</script> & </script>")
    assert page.locator("img, .gw script").count() == 0


def test_the_page_is_dark_where_the_system_is(page, opened, expect):
    page.emulate_media(color_scheme="dark")
    expect(opened("run=sick").locator(".gw")).to_have_attribute("data-theme", "dark")
    page.emulate_media(color_scheme="light")
    expect(page.locator(".gw")).to_have_attribute("data-theme", "light")


GRID = """async ([statistic, width, layer]) => {
    const { source } = document.querySelector(".gw").gradwatch;
    const grid = await source.grid("sick", statistic, { width, layer: layer ?? undefined });
    const plain = Object.entries(grid).map(([name, value]) => [name, ArrayBuffer.isView(value) ? [...value] : value]);
    return Object.fromEntries(plain);
}"""


def test_its_source_answers_as_the_tab_does(opened):
    """Grids of the page against those of the tab: rows, columns, flags, and numbers but for rounding."""
    page = opened("run=sick")
    recorded = of_history(recorded_runs.sick())
    for statistic, width, layer in [
        ("gradient", 1000, None),
        ("gradient", 7, None),
        ("mean", 4, None),
        ("update_ratio", 9, "head"),
    ]:
        told = page.evaluate(GRID, [statistic, width, layer])
        at = next((one for one in recorded.layers if one.name == layer), None)
        expected = answers.grid(recorded, SHOWN[statistic], first=None, last=None, width=width, layer=at)
        assert (told["rows"], told["steps"], told["last"]) == (list(expected.rows), expected.steps.tolist(), expected.last.tolist())
        np.testing.assert_array_equal(np.array(told["flags"]).reshape(expected.flags.shape), expected.flags)
        np.testing.assert_allclose(np.array(told["values"]).reshape(expected.values.shape), expected.values, rtol=1e-3)


def test_findings_without_a_layer_are_told(tmp_path, page, expect):
    report.write({"run": history([record(0, sites(["a"]))], [finding("loss_stagnant", "loss", 0)])}, tmp_path / "page.html")
    page.goto((tmp_path / "page.html").as_uri())
    expect(page.get_by_test_id("gw-incident")).to_contain_text("was seen at loss")
