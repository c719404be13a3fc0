"""The view in a real browser, over a source that is written down: what is said, and what keys, clicks and links do."""

import math
import re

import pytest
from shown_view import ORIGIN, Shown, serve
from told_runs import GROUPED, SPECIAL, finding, run


def test_a_click_on_an_incident_leads_to_its_layer_and_step(page):
    view = Shown(page, [GROUPED])
    view.by("gw-fold-all").click()
    [incident] = view.by("gw-incident").all()
    assert (incident.get_attribute("data-layer"), incident.get_attribute("data-step")) == ("encoder.layers.1.fc2.weight", "2")
    text = incident.inner_text()
    assert "Non-finite values" in text
    assert "since step 2" in text
    assert "It was seen" in text
    assert "Change it." in text
    incident.click()
    view.settle()
    assert view.by("gw-selected-layer").inner_text() == "encoder.layers.1.fc2"
    assert view.by("gw-selected-step").inner_text() == "2"
    assert view.center("encoder.layers.1.fc2", 2) is not None  # its groups have opened
    page.wait_for_timeout(400)
    assert view.evaluate("() => window.states.at(-1)") == {"run": "grouped", "layer": "encoder.layers.1.fc2", "step": 2}
    told = view.by("gw-live").inner_text()
    assert "encoder.layers.1.fc2" in told
    assert "step 2" in told
    assert "NaN" in told
    assert "critical" in told


def test_consequences_are_told_below_their_cause(page):
    view = Shown(page, [GROUPED])
    page.get_by_text("Therefore 1 more finding").click()
    page.get_by_role("button", name=re.compile("Dead units")).click()
    view.settle()
    assert (view.by("gw-selected-layer").inner_text(), view.by("gw-selected-step").inner_text()) == ("head", "3")


def test_the_layer_of_the_first_critical_incident_is_looked_at_first(page):
    assert Shown(page, [GROUPED]).by("gw-selected-layer").inner_text() == "encoder.layers.1.fc2"


def test_keys_move_fold_zoom_and_tell_what_they_reach(page):
    view = Shown(page, [GROUPED])
    page.locator(".gw-scroller").focus()
    view.press("Home", "ArrowDown", "ArrowDown")
    assert "encoder.layers, unfolded, step 0" in view.by("gw-live").inner_text()
    view.press("Enter")
    assert view.rows() == ["embed", "encoder.layers", "head"]
    assert "encoder.layers, folded" in view.by("gw-live").inner_text()
    view.press("ArrowDown", "ArrowRight", "ArrowRight")
    assert "head, step 2, gradient rms: 0.01" in view.by("gw-live").inner_text()
    view.press("Enter")
    assert view.by("gw-selected-layer").inner_text() == "head"
    view.press("End")
    assert view.by("gw-selected-step").inner_text() == "3"


def test_search_finds_layers_by_any_part_of_their_names(page):
    view = Shown(page, [GROUPED])
    view.by("gw-search").fill("FC2")
    view.settle()
    assert view.rows() == ["encoder.layers.0.fc2", "encoder.layers.1.fc2"]
    assert view.by("gw-search-count").inner_text() == "2"
    assert [row.get_attribute("data-layer") for row in view.by("gw-layer-row").all()] == view.rows()
    view.by("gw-search").fill("")
    view.settle()
    assert "embed" in view.rows()


def test_the_slider_moves_the_profile_over_depth(page):
    view = Shown(page, [run("moves", {"gradient": {"in": [1e-1, 1e-5, 1e-5], "mid": [1e-2] * 3, "out": [1e-1] * 3}})])
    picture = "() => document.querySelector('[data-testid=gw-flow]').toDataURL()"
    view.by("gw-step").fill("0")
    view.settle()
    before, said = view.evaluate(picture), view.by("gw-flow").get_attribute("aria-label")
    view.by("gw-step").fill("1")
    view.settle()
    assert view.evaluate(picture) != before
    assert "step 0; in: 0.1" in said
    assert "step 1; in: 1e-5" in view.by("gw-flow").get_attribute("aria-label")
    assert view.by("gw-selected-step").inner_text() == "1"
    view.by("gw-flow").press("ArrowRight")
    view.settle()
    assert view.by("gw-selected-layer").inner_text() == "mid"


def test_a_layer_is_seen_over_the_steps_with_its_figures_at_the_step(page):
    values = {"fc": [1e-3, 2e-3, math.nan]}
    one = run("one", {"gradient": values, "activation": {"fc": [0.5, 0.6, 0.7]}, "update_ratio": {"fc": [1e-4, 2e-4, 0.0]}})
    view = Shown(page, [one], state="layer=fc&step=1")
    told = view.by("gw-series").inner_text()
    assert re.search(r"activation\s+0\.6", told)
    assert re.search(r"dL/d weight\s+0\.002", told)
    assert re.search(r"update ratio weight\s+2e-4", told)
    view.by("gw-step").fill("2")
    view.settle()
    told = view.by("gw-series").inner_text()
    assert re.search(r"dL/d weight\s+NaN", told)
    assert re.search(r"update ratio weight\s+0 \(exactly\)", told)


def test_the_histograms_of_a_layer_lie_below_its_curves(page):
    shares = [[0.1, 0.6, 0.3], [0.0, 0.5, 0.5]]
    of = {"tensor": "parameter_grad", "name": "fc.weight", "first": -20, "steps": [0, 2], "shares": shares}
    values = {"gradient": {"fc": [1e-3, 2e-3, 3e-3]}, "activation": {"fc": [0.5, 0.6, 0.7]}}
    one = run("one", values) | {"histograms": [of]}
    view = Shown(page, [one], state="layer=fc&step=1")
    told = view.by("gw-series").inner_text()
    assert re.search(r"Magnitudes in dL/d weight\s+bright is up to 60 % of the elements that are not zero", told)
    canvas = view.by("gw-series").locator("canvas").last
    assert "Magnitudes in dL/d weight of fc over steps 0–2" in canvas.get_attribute("aria-label")
    colors = canvas.evaluate("""canvas => {
        const { width, height } = canvas;
        const data = canvas.getContext("2d").getImageData(Math.round(width / 3), 0, 1, height).data;
        return new Set(Array.from({ length: height }, (_, y) => data.slice(4 * y, 4 * y + 4).join())).size;
    }""")
    assert colors >= 4  # the ground, and an octave each


def test_the_table_of_layers_sorts_and_leads_to_a_layer(page):
    view = Shown(page, [SPECIAL])
    rows = view.by("gw-layer-row")
    assert [row.get_attribute("data-layer") for row in rows.all()] == ["sound", "broken", "silent"]
    assert ["0.1" in rows.nth(0).inner_text(), "0 (exactly)" in rows.nth(1).inner_text()] == [True, True]
    page.get_by_role("columnheader", name="Gradient rms").get_by_role("button").click()
    assert [row.get_attribute("data-layer") for row in rows.all()] == ["sound", "silent", "broken"]
    assert page.get_by_role("columnheader", name="Gradient rms").get_attribute("aria-sort") == "descending"
    rows.nth(0).focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    view.settle()
    assert view.by("gw-selected-layer").inner_text() == "silent"


def test_without_runs_it_says_how_to_get_one(page):
    view = Shown(page, [])
    told = view.by("gw-empty").inner_text()
    assert "gradwatch.watch(model, optimizer, logdir=" in told
    assert "Then wait for the next reload." in told
    assert not view.by("gw-heatmap").is_visible()
    view.evaluate("(runs) => { window.runs = runs; for (const tell of window.news) tell() }", [SPECIAL])
    view.settle()
    assert not view.by("gw-empty").is_visible()
    assert view.pixel("broken", 1)[:3] == view.colors["nan"]


def test_a_run_in_which_nothing_was_found_says_so(page):
    assert Shown(page, [SPECIAL]).by("gw-nothing-found").inner_text() == "Nothing was found in 4 records."


def test_an_error_is_told_and_the_rest_is_shown(page):
    view = Shown(page, [GROUPED], failing={"table": "The table could not be read: out of memory."})
    assert view.by("gw-error").inner_text() == "The table could not be read: out of memory."
    assert view.pixel("encoder.layers.1.fc2", 2)[:3] == view.colors["nan"]
    view.evaluate("() => { window.failing = {}; window.view.refresh() }")
    view.settle()
    assert not view.by("gw-error").is_visible()
    assert view.by("gw-layer-row").count() > 0


def test_what_could_not_be_read_is_told(page):
    view = Shown(page, [run("torn", {"gradient": {"fc": [1.0]}}, notes=["'events.out' ends in the middle of a record."])])
    assert view.by("gw-notes").inner_text() == "'events.out' ends in the middle of a record."


def test_live_reload_keeps_the_view_and_follows_the_newest_step(page):
    def grown(steps):
        return run("live", {"gradient": {f"blocks.{index}.fc": [1e-3] * steps for index in range(60)}})

    view = Shown(page, [grown(50)])
    assert view.by("gw-selected-step").inner_text() == "49"
    page.locator(".gw-scroller").evaluate("(box) => (box.scrollTop = 300)")
    view.by("gw-search").fill("fc")
    reload = "(runs) => { window.runs = runs; for (const tell of window.news) tell() }"
    view.evaluate(reload, [grown(80)])
    view.settle()
    assert view.by("gw-selected-step").inner_text() == "79"
    assert page.locator(".gw-scroller").evaluate("(box) => box.scrollTop") == 300
    view.click("blocks.30.fc", 20)
    start, end = view.center("blocks.30.fc", 10), view.center("blocks.30.fc", 30)
    page.mouse.move(start["x"], start["y"])
    page.mouse.down()
    page.mouse.move(end["x"], end["y"], steps=3)
    page.mouse.up()
    before = view.state
    view.evaluate(reload, [grown(120)])
    view.settle()
    assert view.state == before == {"run": "live", "layer": "blocks.30.fc", "step": 20, "from": 10, "to": 30}
    assert view.by("gw-search").input_value() == "fc"


@pytest.mark.parametrize(
    "given",
    [
        {"run": "special", "layer": "broken", "step": 1, "statistic": "gradient", "from": 0, "to": 2},
        "run=special&layer=broken&step=1&from=0&to=2",
    ],
)
def test_a_link_leads_to_a_run_a_layer_and_a_step(page, given):
    view = Shown(page, [GROUPED, SPECIAL], state=given)
    assert view.by("gw-run-select").input_value() == "special"
    assert view.by("gw-selected-layer").inner_text() == "broken"
    assert view.by("gw-selected-step").inner_text() == "1"
    assert view.center("broken", 3) is None


def test_a_link_to_what_is_gone_shows_what_is_there(page):
    view = Shown(page, [GROUPED], state={"run": "gone", "layer": "gone", "step": 10**9, "statistic": "gone", "from": "x"})
    assert view.by("gw-run-select").input_value() == "grouped"
    assert view.by("gw-selected-step").inner_text() == "3"
    assert not view.by("gw-error").is_visible()


NASTY = {
    "<img src=x onerror=window.pwned=1>": "<img src=x onerror=window.pwned=1>",
    "gnp\u202eexe": "gnp\\u202eexe",
    "a\ttab\nand a line": "a\\x09tab\\x0aand a line",
    "__proto__": "__proto__",
    "constructor": "constructor",
    "<script>window.pwned=1</script>": "<script>window.pwned=1</script>",
    "\ud800": "\\ud800",
}


def test_names_and_messages_are_text_and_nothing_else(page):
    first = next(iter(NASTY))
    bad = finding(f"<i>{first}</i>", first, 0, 1, message=first, advice=first, evidence={first: "NaN"})
    worse = finding("dead_units", "<script>window.pwned=1</script>", 1, 1, severity="warning", message=first)
    one = run(
        f"run {first}",
        {"gradient": {key: [0.001, 0.01] for key in NASTY}},
        incidents=[(bad, [worse])],
        types=dict.fromkeys(NASTY, first),
        notes=[first],
    )
    other = run("\u202eother", {"gradient": {key: [0.001, 0.01] for key in NASTY}})
    view = Shown(page, [one, other], state={"run": one["name"]})
    names = view.evaluate("() => [...document.querySelectorAll('.gw-row-label .gw-name')].map((each) => each.textContent)")
    assert set(names) == set(NASTY.values())
    for details in page.locator("details").all():
        details.locator("summary").click()
    for layer in list(NASTY)[:3]:
        view.hover(layer, 1)
        view.click(layer, 1)
    view.choose("gw-compare-select", "\u202eother")
    view.hover(first, 0)
    view.by("gw-flow").hover()
    assert view.evaluate(
        "() => [window.pwned, document.querySelectorAll('#root img, #root script, #root i:not([class])').length]"
    ) == [None, 0]
    acting = "() => /[\\u202a-\\u202e\\u2066-\\u2069\\t]/.test(document.querySelector('#root').innerText)"
    assert view.evaluate(acting) is False
    assert first in view.by("gw-incident").inner_text()
    assert first in view.by("gw-notes").inner_text()


def test_a_hidden_tab_is_drawn_when_it_is_shown(page):
    page.add_init_script(
        "window.addEventListener('DOMContentLoaded', () => (document.querySelector('#root').style.display = 'none'))"
    )
    page.route(f"{ORIGIN}/**", serve)
    page.goto(f"{ORIGIN}/")
    page.evaluate("(runs) => { window.runs = runs; window.show({}) }", [SPECIAL])
    page.wait_for_timeout(300)
    page.evaluate("() => (document.querySelector('#root').style.display = '')")
    page.wait_for_timeout(300)
    middle = page.evaluate("() => document.querySelector('#root').gradwatch.cellCenter('broken', 1)")
    assert middle is not None
    assert middle["x"] > 100


@pytest.mark.parametrize("width", [900, 1400, 2200])
def test_nothing_is_wider_than_the_window(page, width):
    view = Shown(page, [GROUPED, SPECIAL], state={"run": "grouped"}, size=(width, 900))
    assert view.evaluate("() => document.scrollingElement.scrollWidth") <= width
    assert view.pixel("encoder.layers.1.fc2", 2)[:3] == view.colors["nan"]


def test_everything_that_can_be_used_has_a_name_and_is_reached_by_tab(page):
    view = Shown(page, [GROUPED, SPECIAL], state={"run": "grouped"})
    nameless = view.evaluate(
        """() => [...document.querySelectorAll('#root button, #root select, #root input, #root [tabindex="0"]')]
            .filter((one) => !(one.getAttribute('aria-label') || one.textContent.trim() || one.labels?.length))
            .map((one) => one.outerHTML)"""
    )
    assert nameless == []
    unsaid = (
        "() => [...document.querySelectorAll('#root canvas')].filter((one) => !one.ariaLabel && one.ariaHidden !== 'true').length"
    )
    assert view.evaluate(unsaid) == 0
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(
            view.evaluate("() => document.activeElement.getAttribute('role') ?? document.activeElement.dataset.testid ?? ''")
        )
    assert {"application", "gw-statistic-select", "gw-search", "gw-step", "row"} <= reached
    page.locator(".gw-scroller").focus()
    page.keyboard.press("ArrowRight")
    outlined = "() => getComputedStyle(document.activeElement).outlineStyle"
    assert view.evaluate(outlined) == "solid"


def test_a_picture_that_cannot_be_had_leaves_the_one_before_it_under_its_own_name(page):
    one = run("one", {"gradient": {"fc": [1.0] * 3}, "zeros": {"fc": [0.5] * 3}})
    view = Shown(page, [one])
    view.evaluate("() => { window.failing = { grid: 'The zeros could not be read.' } }")
    view.choose("gw-statistic-select", "zeros")
    assert view.by("gw-error").inner_text() == "The zeros could not be read."
    assert "Gradient rms" in view.by("gw-legend").inner_text()
    assert "50 %" not in view.hover("fc", 1)
