"""The tab, as people see it: TensorBoard as a process, and a real browser."""

import re
from urllib.parse import quote

import pytest
import recorded_runs
from browser import pixel, view_state, wait_until
from conftest import ODD_NAME
from recorded_runs import HOSTILE
from serving import tensorboard

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect


def opened(page, served, **state):
    """The frame of the tab, opened by a link or by a click, once it has drawn."""
    if state:
        page.goto(f"{served.url}/#gradwatch" + "".join(f"&p.gradwatch.{name}={quote(str(value))}" for name, value in state.items()))
    else:
        page.goto(served.url)
        page.get_by_role("tab", name="Gradient health").click()
    frame = page.frame_locator("iframe[src*=gradwatch], iframe").last
    frame.locator(".gw").evaluate("root => root.gradwatch.ready")
    return frame


def test_the_tab_opens_and_shows_every_layer(page, served):
    frame = opened(page, served)
    frame.get_by_test_id("gw-run-select").select_option("sick")
    rows = frame.get_by_test_id("gw-layer-row")
    expect(rows).to_have_count(3)
    assert [row.get_attribute("data-layer") for row in rows.all()] == list(recorded_runs.SICK)
    runs = frame.get_by_test_id("gw-run-select").locator("option").all_text_contents()
    assert {"sick", "team/healthy"} <= set(runs)


def test_cells_have_the_colours_of_what_was_recorded(page, served):
    frame = opened(page, served, run="sick", statistic="gradient")
    colors = frame.locator(".gw").evaluate("root => root.gradwatch.colors()")
    assert pixel(frame, "encoder.1", 42)[:3] == colors["nan"]
    assert pixel(frame, "head", 20)[:3] == colors["zero"]
    small, medium, large = (pixel(frame, *cell) for cell in (("encoder.0", 10), ("encoder.1", 10), ("head", 10)))
    assert len({tuple(small), tuple(medium), tuple(large), tuple(colors["nan"]), tuple(colors["zero"])}) == 5
    assert pixel(frame, "encoder.0", 50) == small
    assert pixel(frame, "encoder.1", 39) == pixel(frame, "encoder.1", 45) == medium


def test_a_click_on_an_incident_leads_to_its_layer_and_step(page, served):
    frame = opened(page, served, run="sick")
    incidents = frame.get_by_test_id("gw-incident")
    expect(incidents).to_have_count(2)
    assert [(one.get_attribute("data-layer"), one.get_attribute("data-step")) for one in incidents.all()] == [
        ("encoder.0", "0"),
        ("encoder.1", "40"),
    ]
    expect(incidents.nth(1)).to_contain_text("was seen at encoder.1")
    incidents.nth(1).click()
    expect(frame.get_by_test_id("gw-selected-layer")).to_contain_text("encoder.1")
    expect(frame.get_by_test_id("gw-selected-step").first).to_contain_text("40")
    expect(frame.get_by_test_id("gw-series")).to_be_visible()


def test_a_link_leads_to_a_run_a_layer_and_a_step(page, served):
    frame = opened(page, served, run="sick", layer="head", step=20)
    expect(frame.get_by_test_id("gw-selected-layer")).to_contain_text("head")
    assert view_state(frame) | {"run": "sick", "layer": "head", "step": 20} == view_state(frame)

    frame.get_by_test_id("gw-layer-row").first.click()
    wait_until(page, lambda: "p.gradwatch.layer=encoder.0" in page.url)
    assert re.search(r"#gradwatch&.*p\.gradwatch\.run=sick", page.url)
    again = opened(page, served, **view_state(frame))
    expect(again.get_by_test_id("gw-selected-layer")).to_contain_text("encoder.0")


def test_runs_stand_side_by_side(page, served):
    frame = opened(page, served, run="sick", compare="team/healthy", statistic="gradient")
    assert view_state(frame)["compare"] == "team/healthy"
    expect(frame.get_by_test_id("gw-compare-select")).to_have_value("team/healthy")
    same, smaller = pixel(frame, "head", 10), pixel(frame, "encoder.0", 10)
    assert same != smaller


def test_hostile_names_are_text(page, served):
    frame = opened(page, served, run=ODD_NAME)
    rows = frame.get_by_test_id("gw-layer-row")
    expect(rows).to_have_count(5)
    assert rows.first.get_attribute("data-layer") == HOSTILE
    expect(frame.get_by_test_id("gw-incident")).to_contain_text("<script>alert(3)</script> & </script>")
    for row in rows.all():
        row.click()
        expect(frame.get_by_test_id("gw-selected-layer")).not_to_be_empty()
    assert frame.locator("img, iframe, .gw script").count() == 0

    def the_first_is_selected():
        rows.first.click()  # again, where curves that came just then moved the row away from the pointer
        return HOSTILE in frame.get_by_test_id("gw-selected-layer").inner_text()

    wait_until(page, the_first_is_selected)


def test_dark_mode_follows_tensorboard(page, served):
    frame = opened(page, served, run="sick")
    root = frame.locator(".gw")
    expect(root).to_have_attribute("data-theme", "light")
    light = root.evaluate("root => getComputedStyle(root).color")
    page.get_by_role("button", name="Menu for changing light or dark theme").click()
    page.get_by_role("menuitemradio", name="Dark").or_(page.get_by_role("menuitem", name="Dark")).click()
    expect(root).to_have_attribute("data-theme", "dark")
    assert root.evaluate("root => getComputedStyle(root).color") != light


def test_a_run_that_goes_on_is_followed(page, served, logdir):
    folder = logdir / f"growing-{'prefix' if 'team' in served.url else 'plain'}"
    recorded_runs.written(recorded_runs.healthy(steps=5), folder)
    served.wait_for(folder.name, 4)
    frame = opened(page, served, run=folder.name)
    assert frame.get_by_test_id("gw-step").get_attribute("max") == "4"
    recorded_runs.written(recorded_runs.healthy(steps=9), folder)
    served.wait_for(folder.name, 8)
    page.locator("button[title^='Last Updated']").click()
    expect(frame.get_by_test_id("gw-step")).to_have_attribute("max", "8")


@pytest.fixture(scope="module")
def barren(tmp_path_factory):
    """TensorBoard where nothing was recorded."""
    with tensorboard(tmp_path_factory.mktemp("barren"), tmp_path_factory.mktemp("scratch")) as running:
        yield running


def test_without_data_the_tab_says_how_to_get_some(page, barren):
    page.goto(f"{barren.url}/#gradwatch")
    frame = page.frame_locator("iframe").last
    expect(frame.get_by_test_id("gw-empty")).to_contain_text("gradwatch.watch")
    assert frame.get_by_test_id("gw-layer-row").count() == 0
