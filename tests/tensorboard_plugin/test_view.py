"""The view in a real browser, over a source that is written down: what is drawn, and what keys and clicks do."""

import math
import re
from pathlib import Path

import pytest
from recorded_runs import ABSENT, finding, large, run

import gradwatch

HERE = Path(__file__).parent
STATIC = Path(gradwatch.__file__).parent / "tensorboard_plugin" / "static"
ORIGIN = "http://view.test"

# What TensorBoard sends along with a plugin's frame forbids the same, and this forbids inline scripts as well.
POLICY = "default-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' blob: data:"
DOCUMENT = """<!doctype html><meta charset="utf-8"><title>view</title><link rel="icon" href="data:,">
<link rel="stylesheet" href="view.css"><style>body { margin: 0 }</style><div id="root"></div>
<script type="module" src="view_source.js"></script>"""


def serve(route):
    name = route.request.url.removeprefix(f"{ORIGIN}/").partition("?")[0]
    if not name:
        route.fulfill(body=DOCUMENT, content_type="text/html", headers={"Content-Security-Policy": POLICY})
    else:
        path = HERE / name if (HERE / name).is_file() else STATIC / name
        kind = "text/css" if path.suffix == ".css" else "text/javascript"
        route.fulfill(body=path.read_text(encoding="utf-8"), content_type=kind)


class Shown:
    """The view as it is shown, and how a person handles it."""

    def __init__(self, page, runs, *, theme="light", state=None, size=(1400, 1000), failing=None, scale=1):
        self.page = page
        page.set_viewport_size({"width": size[0], "height": size[1]})
        if scale != 1:
            client = page.context.new_cdp_session(page)
            metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": scale, "mobile": False}
            client.send("Emulation.setDeviceMetricsOverride", metrics)
        page.route(f"{ORIGIN}/**", serve)
        page.goto(f"{ORIGIN}/")
        page.evaluate(
            "([runs, failing]) => { window.runs = runs; Object.assign(window.failing, failing) }", [list(runs), failing or {}]
        )
        page.evaluate("(options) => window.show(options)", {"theme": theme, "state": state})
        self.settle()

    def settle(self):
        """Waits until what was asked is answered and drawn."""
        self.page.wait_for_timeout(150)
        self.page.locator(".gw-loading").wait_for(state="hidden")
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def by(self, name):
        return self.page.get_by_test_id(name)

    def evaluate(self, expression, argument=None):
        return self.page.evaluate(expression, argument)

    @property
    def state(self):
        return self.evaluate("() => document.querySelector('#root').gradwatch.state()")

    @property
    def colors(self):
        return {name: tuple(rgb) for name, rgb in self.evaluate("() => document.querySelector('#root').gradwatch.colors()").items()}

    def center(self, layer, step):
        return self.evaluate("([layer, step]) => document.querySelector('#root').gradwatch.cellCenter(layer, step)", [layer, step])

    def pixel(self, layer, step):
        """(red, green, blue, alpha) of a cell of the heat-map."""
        at = self.center(layer, step)
        assert at is not None, f"{layer} at step {step} is not in view"
        return self.dot(at["x"], at["y"])

    def dot(self, x, y):
        return tuple(
            self.evaluate(
                """([x, y]) => {
                    const canvas = document.querySelector('[data-testid=gw-heatmap]');
                    const box = canvas.getBoundingClientRect();
                    const ratio = canvas.width / box.width;
                    return [...canvas.getContext('2d').getImageData((x - box.left) * ratio, (y - box.top) * ratio, 1, 1).data];
                }""",
                [x, y],
            )
        )

    def labels(self):
        return [label.get_attribute("data-layer") for label in self.by("gw-row-label").all()]

    def rows(self):
        """Names of the rows from top to bottom; labels stand in the page in the order in which they came into view."""
        labels = self.evaluate(
            "() => [...document.querySelectorAll('[data-testid=gw-row-label]')].map((one) => [Number(one.dataset.index), one.dataset.layer])"
        )
        return [name for _, name in sorted(labels)]

    def choose(self, select, value):
        self.by(select).select_option(value)
        self.settle()

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)
        self.page.wait_for_timeout(350)
        self.settle()

    def hover(self, layer, step):
        at = self.center(layer, step)
        self.page.mouse.move(at["x"], at["y"])
        return self.by("gw-tooltip").inner_text()

    def click(self, layer, step):
        at = self.center(layer, step)
        self.page.mouse.click(at["x"], at["y"])
        self.settle()


def brightness(pixel):
    return sum(pixel[:3])


SPECIAL = run(
    "special",
    {
        "gradient": {
            "sound": [1e-3, 1e-3, 1e-2, 1e-1],
            "broken": [1e-3, math.nan, math.inf, 0.0],
            "silent": [1e-3, ABSENT, ABSENT, 1e-3],
        }
    },
)


def test_each_kind_of_value_has_a_colour_of_its_own(page):
    view = Shown(page, [SPECIAL])
    assert view.pixel("broken", 1)[:3] == view.colors["nan"] == (220, 20, 36)
    assert view.pixel("broken", 2)[:3] == view.colors["inf"] == (255, 64, 200)
    assert view.pixel("broken", 3)[:3] == view.colors["zero"] == (0, 0, 0)
    assert view.pixel("silent", 1)[3] == 0  # transparent: the hatching behind it is seen
    assert view.pixel("sound", 0) == view.pixel("broken", 0) == view.pixel("silent", 3)
    assert brightness(view.pixel("sound", 0)) < brightness(view.pixel("sound", 2)) < brightness(view.pixel("sound", 3))
    legend = view.by("gw-legend").inner_text()
    assert all(word in legend for word in ("exactly zero", "NaN", "infinite", "not recorded", "10⁻³", "10⁻¹"))


def test_a_dark_page_has_white_zeros_and_follows_its_host(page):
    view = Shown(page, [SPECIAL], theme="dark")
    assert view.pixel("broken", 3)[:3] == (255, 255, 255)
    dark = view.evaluate("() => getComputedStyle(document.querySelector('#root')).backgroundColor")
    view.evaluate("() => window.setTheme('light')")
    view.settle()
    assert view.pixel("broken", 3)[:3] == (0, 0, 0)
    light = view.evaluate("() => getComputedStyle(document.querySelector('#root')).backgroundColor")
    assert brightness([int(part) for part in re.findall(r"\d+", dark)]) < 150
    assert brightness([int(part) for part in re.findall(r"\d+", light)]) > 600


def test_hovering_tells_the_exact_number(page):
    view = Shown(page, [run("one", {"gradient": {"fc": [0.0123456, math.nan, 0.0, ABSENT, 1.0]}})])
    told = [view.hover("fc", step) for step in range(4)]
    assert "fc" in told[0] and "0.0123456" in told[0] and "step 0" in told[0]
    assert "NaN" in told[1]
    assert "0 (exactly)" in told[2]
    assert "not recorded" in told[3]


SPARSE = run(
    "sparse",
    {
        "gradient": {"fc": [1e-3] * 40, "act": [ABSENT] * 40},
        "activation": {"fc": [1e-2, 1e-1, 1.0, 1e1], "act": [1.0, 1.0, 1.0, 1.0]},
    },
    every=10,
)


def test_what_only_full_records_show_lasts_until_the_next_one(page):
    view = Shown(page, [SPARSE], state={"statistic": "activation"})
    first, second = view.pixel("fc", 0), view.pixel("fc", 10)
    assert first != second
    left, right = view.center("fc", 0)["x"], view.center("fc", 10)["x"]
    row = view.center("fc", 0)["y"]
    seen = [view.dot(left + (right - left) * share, row) for share in (0.1, 0.25, 0.45, 0.6, 0.75, 0.9)]
    assert seen == [first] * 3 + [second] * 3
    told = view.hover("fc", 17)
    assert "0.1" in told and "step 10" in told


def test_layers_without_the_statistic_are_left_out_and_counted(page):
    view = Shown(page, [SPARSE])
    assert view.rows() == ["fc"]
    assert "1 layer without it is left out" in page.locator(".gw-describe").inner_text()
    view.choose("gw-statistic-select", "activation")
    assert view.rows() == ["fc", "act"]


def test_optimizers_that_take_turns_leave_no_stripes(page):
    turns = {"generator": [1e-3, ABSENT] * 8, "critic": [ABSENT, 1e-1] * 8}
    view = Shown(page, [run("gan", {"gradient": turns})])
    assert len({view.pixel("generator", step) for step in range(12)}) == 1
    assert len({view.pixel("critic", step) for step in range(1, 13)}) == 1


def block(number, values):
    return {f"encoder.layers.{number}.{part}": series for part, series in zip(("fc1", "fc2", "fc3"), values, strict=True)}


GROUPED = run(
    "grouped",
    {
        "gradient": {"embed": [1e-3] * 4}
        | block(0, [[1e-3] * 4, [1e-3] * 4, [1e-3] * 4])
        | block(1, [[1e-3] * 4, [1e-3, 1e-3, math.nan, 0.0], [1e-3] * 4])
        | {"head": [1e-3, 1e-3, 1e-2, 1e-4]}
    },
    incidents=[(finding("non_finite", "encoder.layers.1.fc2.weight", 2, 3), [finding("dead_units", "head", 3, 3, "warning")])],
    loss=[2.0, 1.5, 1.0, math.nan],
)


def test_groups_fold_to_their_worst_layer_or_to_the_median(page):
    view = Shown(page, [GROUPED])
    assert view.rows()[:4] == ["embed", "encoder.layers", "encoder.layers.0", "encoder.layers.0.fc1"]
    view.by("gw-fold-all").click()
    view.settle()
    assert view.rows() == ["embed", "encoder.layers", "head"]
    assert view.pixel("encoder.layers", 2)[:3] == view.colors["nan"]
    assert view.pixel("encoder.layers", 3)[:3] == view.colors["zero"]
    view.choose("gw-aggregate-select", "median")
    assert view.pixel("encoder.layers", 2) == view.pixel("encoder.layers", 0) == view.pixel("embed", 0)
    page.locator("[data-layer='encoder.layers']").click()
    view.settle()
    assert view.rows() == ["embed", "encoder.layers", "encoder.layers.0", "encoder.layers.1", "head"]
    view.choose("gw-aggregate-select", "worst")
    assert view.pixel("encoder.layers.1", 2)[:3] == view.colors["nan"]
    assert view.pixel("encoder.layers.0", 2)[:3] != view.colors["nan"]
    told = view.hover("encoder.layers.1", 3)
    assert "worst of 3 layers: encoder.layers.1.fc2, 0 (exactly)" in told and "median 0.001" in told


def test_a_click_on_an_incident_leads_to_its_layer_and_step(page):
    view = Shown(page, [GROUPED])
    view.by("gw-fold-all").click()
    [incident] = view.by("gw-incident").all()
    assert (incident.get_attribute("data-layer"), incident.get_attribute("data-step")) == ("encoder.layers.1.fc2.weight", "2")
    text = incident.inner_text()
    assert "Non-finite values" in text and "since step 2" in text and "It was seen" in text and "Change it." in text
    incident.click()
    view.settle()
    assert view.by("gw-selected-layer").inner_text() == "encoder.layers.1.fc2"
    assert view.by("gw-selected-step").inner_text() == "2"
    assert view.center("encoder.layers.1.fc2", 2) is not None  # its groups have opened
    page.wait_for_timeout(400)
    assert view.evaluate("() => window.states.at(-1)") == {"run": "grouped", "layer": "encoder.layers.1.fc2", "step": 2}
    told = view.by("gw-live").inner_text()
    assert "encoder.layers.1.fc2" in told and "step 2" in told and "NaN" in told and "critical" in told


def test_consequences_are_told_below_their_cause(page):
    view = Shown(page, [GROUPED])
    page.get_by_text("Therefore 1 more finding").click()
    page.get_by_role("button", name=re.compile("Dead units")).click()
    view.settle()
    assert (view.by("gw-selected-layer").inner_text(), view.by("gw-selected-step").inner_text()) == ("head", "3")


def test_findings_are_marked_over_the_map(page):
    view = Shown(page, [GROUPED])
    at = view.center("encoder.layers.1.fc2", 2)
    marked = "([x, y]) => { const c = document.querySelector('.gw-marks-canvas'), b = c.getBoundingClientRect(); return c.getContext('2d').getImageData(x - b.left - 4, y - b.top, 1, 1).data[3] }"
    assert view.evaluate(marked, [at["x"], at["y"]]) > 0
    elsewhere = view.center("embed", 2)
    assert view.evaluate(marked, [elsewhere["x"], elsewhere["y"]]) == 0
    told = view.hover("encoder.layers.1.fc2", 2)
    assert "Non-finite values" in told and "it was seen" in told


def test_the_layer_of_the_first_critical_incident_is_looked_at_first(page):
    assert Shown(page, [GROUPED]).by("gw-selected-layer").inner_text() == "encoder.layers.1.fc2"


def test_keys_move_fold_zoom_and_tell_what_they_reach(page):
    view = Shown(page, [GROUPED])
    page.get_by_role("application").focus()
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


def test_a_parameter_has_a_row_below_its_layer(page):
    parameters = {"fc": {"fc.weight": [1e-1] * 3, "fc.bias": [1e-3, math.nan, 1e-3]}}
    view = Shown(page, [run("one", {"gradient": {"fc": [1e-1] * 3}}, parameters=parameters)])
    page.locator("[data-layer=fc] .gw-chevron").click()
    view.settle()
    assert view.rows() == ["fc", "fc.weight", "fc.bias"]
    assert view.pixel("fc.weight", 0) == view.pixel("fc", 0)
    assert view.pixel("fc.bias", 1)[:3] == view.colors["nan"]
    assert "0.001" in view.hover("fc.bias", 2)


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


LONG = run(
    "long", {"gradient": {"first": [10.0 ** -(1 + step % 3) for step in range(200)], "second": [1e-3] * 200}}, loss=[1.0] * 200
)


def test_dragging_zooms_and_a_double_click_shows_all_steps_again(page):
    view = Shown(page, [LONG])
    start, end = view.center("first", 50), view.center("first", 99)
    page.mouse.move(start["x"], start["y"])
    page.mouse.down()
    page.mouse.move(end["x"], end["y"], steps=3)
    page.mouse.up()
    view.settle()
    assert (view.state["from"], view.state["to"]) == (50, 99)
    assert view.center("first", 40) is None
    assert view.pixel("first", 60) == view.pixel("first", 63) != view.pixel("first", 61)
    middle = view.center("first", 75)
    page.mouse.dblclick(middle["x"], middle["y"])
    view.settle()
    assert "from" not in view.state and view.center("first", 0) is not None


def test_the_wheel_with_control_zooms_around_the_pointer_and_with_shift_pans(page):
    view = Shown(page, [LONG])
    at = view.center("first", 100)
    page.mouse.move(at["x"], at["y"])
    page.keyboard.down("Control")
    page.mouse.wheel(0, -100)
    page.keyboard.up("Control")
    view.settle()
    zoomed = view.state
    assert 0 < zoomed["from"] < 100 < zoomed["to"] < 199
    page.keyboard.down("Shift")
    page.mouse.wheel(0, 100)
    page.keyboard.up("Shift")
    view.settle()
    assert view.state["from"] > zoomed["from"] and view.state["to"] - view.state["from"] == zoomed["to"] - zoomed["from"]
    view.by("gw-zoom-reset").click()
    assert "from" not in view.state


def test_the_slider_moves_the_profile_over_depth(page):
    view = Shown(page, [run("moves", {"gradient": {"in": [1e-1, 1e-5, 1e-5], "mid": [1e-2] * 3, "out": [1e-1] * 3}})])
    picture = "() => document.querySelector('[data-testid=gw-flow]').toDataURL()"
    view.by("gw-step").fill("0")
    view.settle()
    before, said = view.evaluate(picture), view.by("gw-flow").get_attribute("aria-label")
    view.by("gw-step").fill("1")
    view.settle()
    assert view.evaluate(picture) != before
    assert "step 0; in: 0.1" in said and "step 1; in: 1e-5" in view.by("gw-flow").get_attribute("aria-label")
    assert view.by("gw-selected-step").inner_text() == "1"
    view.by("gw-flow").press("ArrowRight")
    view.settle()
    assert view.by("gw-selected-layer").inner_text() == "mid"


def test_a_layer_is_seen_over_the_steps_with_its_figures_at_the_step(page):
    values = {"fc": [1e-3, 2e-3, math.nan]}
    one = run("one", {"gradient": values, "activation": {"fc": [0.5, 0.6, 0.7]}, "update_ratio": {"fc": [1e-4, 2e-4, 0.0]}})
    view = Shown(page, [one], state="layer=fc&step=1")
    told = view.by("gw-series").inner_text()
    assert (
        re.search(r"activation\s+0\.6", told)
        and re.search(r"dL/d weight\s+0\.002", told)
        and re.search(r"update ratio weight\s+2e-4", told)
    )
    view.by("gw-step").fill("2")
    view.settle()
    told = view.by("gw-series").inner_text()
    assert re.search(r"dL/d weight\s+NaN", told) and re.search(r"update ratio weight\s+0 \(exactly\)", told)


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


def test_two_runs_differ_by_decades_layer_by_layer(page):
    mine = run("mine", {"gradient": {"a": [1e-2, 1e-2], "b": [1e-3, 0.0], "only mine": [1.0, 1.0], "same": [0.5, 0.5]}})
    theirs = run("theirs", {"gradient": {"same": [0.5, 0.5], "b": [1e-2, 1e-2], "a": [1e-3, math.nan]}})
    view = Shown(page, [mine, theirs], state={"run": "mine"})
    view.choose("gw-compare-select", "theirs")
    larger, smaller, equal = view.pixel("a", 0), view.pixel("b", 0), view.pixel("same", 0)
    assert larger[0] > larger[2] and smaller[2] > smaller[0]  # brown and blue
    assert max(equal[:3]) - min(equal[:3]) < 12  # grey
    assert view.pixel("a", 1)[:3] == view.colors["nan"]
    assert view.pixel("b", 1)[:3] == view.colors["zero"]
    assert view.pixel("only mine", 0)[3] == 0
    told = view.hover("a", 0)
    assert "+1 decades (×10)" in told and "mine: 0.01" in told and "theirs: 0.001" in told
    assert "÷10" in view.by("gw-legend").inner_text() and "mine against theirs" in view.by("gw-legend").inner_text()
    assert view.state["compare"] == "theirs"


def test_shares_and_signed_statistics_have_scales_of_their_own(page):
    one = run("one", {"gradient": {"fc": [1.0] * 3}, "zeros": {"fc": [0.0, 0.5, 1.0]}, "mean": {"fc": [-2.0, 0.0, 2.0]}})
    view = Shown(page, [one], state={"statistic": "zeros"})
    assert brightness(view.pixel("fc", 0)) < brightness(view.pixel("fc", 1)) < brightness(view.pixel("fc", 2))
    assert view.pixel("fc", 0)[:3] != view.colors["zero"]  # no zeros at all are no alarm
    assert "50 %" in view.hover("fc", 1)
    view.choose("gw-statistic-select", "mean")
    below, zero, above = (view.pixel("fc", step) for step in range(3))
    assert below[2] > below[0] and above[0] > above[2] and max(zero[:3]) - min(zero[:3]) < 12


def test_without_runs_it_says_how_to_get_one(page):
    view = Shown(page, [])
    told = view.by("gw-empty").inner_text()
    assert "gradwatch.watch(model, optimizer, logdir=" in told and "Then wait for the next reload." in told
    assert not view.by("gw-heatmap").is_visible()
    view.evaluate("(runs) => { window.runs = runs; for (const tell of window.news) tell() }", [SPECIAL])
    view.settle()
    assert not view.by("gw-empty").is_visible() and view.pixel("broken", 1)[:3] == view.colors["nan"]


def test_a_run_in_which_nothing_was_found_says_so(page):
    assert Shown(page, [SPECIAL]).by("gw-nothing-found").inner_text() == "Nothing was found in 4 records."


def test_an_error_is_told_and_the_rest_is_shown(page):
    view = Shown(page, [GROUPED], failing={"table": "The table could not be read: out of memory."})
    assert view.by("gw-error").inner_text() == "The table could not be read: out of memory."
    assert view.pixel("encoder.layers.1.fc2", 2)[:3] == view.colors["nan"]
    view.evaluate("() => { window.failing = {}; window.view.refresh() }")
    view.settle()
    assert not view.by("gw-error").is_visible() and view.by("gw-layer-row").count() > 0


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
        {"gradient": dict.fromkeys(NASTY, [1e-3, 1e-2])},
        incidents=[(bad, [worse])],
        types=dict.fromkeys(NASTY, first),
        notes=[first],
    )
    other = run("\u202eother", {"gradient": dict.fromkeys(NASTY, [1e-3, 1e-2])})
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
    assert first in view.by("gw-incident").inner_text() and first in view.by("gw-notes").inner_text()


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
    assert middle is not None and middle["x"] > 100


def test_it_is_sharp_on_a_dense_screen(page):
    view = Shown(page, [SPECIAL], scale=2)
    widths = view.evaluate(
        "() => { const c = document.querySelector('[data-testid=gw-heatmap]'); return [c.width, c.clientWidth] }"
    )
    assert widths[0] == 2 * widths[1]
    assert view.pixel("broken", 1)[:3] == view.colors["nan"]


@pytest.mark.parametrize("width", [900, 1400, 2200])
def test_nothing_is_wider_than_the_window(page, width):
    view = Shown(page, [GROUPED, SPECIAL], state={"run": "grouped"}, size=(width, 900))
    assert view.evaluate("() => document.scrollingElement.scrollWidth") <= width
    assert view.pixel("encoder.layers.1.fc2", 2)[:3] == view.colors["nan"]


def test_of_two_thousand_layers_only_those_in_view_are_elements(page):
    view = Shown(page, [large(2000, 5000)])
    assert view.rows()[0] == "blocks"
    view.by("gw-unfold-all").click()
    view.settle()
    assert len(view.labels()) < 60 and view.by("gw-layer-row").count() < 60
    page.locator(".gw-scroller").evaluate("(box) => (box.scrollTop = box.scrollHeight)")
    view.settle()
    assert view.rows()[-1] == "blocks.199.layer9"
    assert brightness(view.pixel("blocks.199.layer0", 10)) > brightness(view.pixel("blocks.199.layer9", 4990))
    grids = [call for call in view.evaluate("() => window.asked") if call[0] == "grid"]
    assert len(grids) == 1 and grids[0][3]["width"] <= 1600


def test_zooming_into_many_steps_asks_for_what_is_seen(page):
    view = Shown(page, [large(20, 5000)])
    row = view.rows()[-1]
    start, end = view.center(row, 1000), view.center(row, 1400)
    page.mouse.move(start["x"], start["y"])
    page.mouse.down()
    page.mouse.move(end["x"], end["y"], steps=3)
    page.mouse.up()
    page.wait_for_timeout(400)
    view.settle()
    asked = [call[3] for call in view.evaluate("() => window.asked") if call[0] == "grid"]
    assert len(asked) == 2 and asked[1]["from"] > 0 and asked[1]["to"] - asked[1]["from"] < 1000


def test_everything_that_can_be_used_has_a_name_and_is_reached_by_tab(page):
    view = Shown(page, [GROUPED, SPECIAL], state={"run": "grouped"})
    nameless = view.evaluate(
        """() => [...document.querySelectorAll('#root button, #root select, #root input, #root [tabindex="0"]')]
            .filter((one) => !(one.getAttribute('aria-label') || one.textContent.trim() || one.labels?.length)).map((one) => one.outerHTML)"""
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
    assert {"application", "gw-statistic-select", "gw-search", "gw-step", "img", "row"} <= reached
    page.get_by_role("application").focus()
    page.keyboard.press("ArrowRight")
    outlined = "() => getComputedStyle(document.activeElement).outlineStyle"
    assert view.evaluate(outlined) == "solid"


def test_the_files_can_be_joined_into_one():
    """Imports are one line each, from a file beside it, and exports stand before what they export: a page can hold all as one."""
    sources = {path.name: path.read_text(encoding="utf-8") for path in STATIC.glob("*.js")}
    assert "view.js" in sources
    for name, source in sources.items():
        for line in source.splitlines():
            if line.startswith("import"):
                found = re.fullmatch(r'import \{ [\w, ]+ \} from "\./(\w+\.js)";', line)
                assert found and found[1] in sources, f"{name}: {line}"
            elif line.startswith("export"):
                assert re.match(r"export (async function|function|class|const) \w", line), f"{name}: {line}"


def test_nothing_makes_markup_or_code_of_text():
    for path in STATIC.glob("*.js"):
        found = re.search(
            r"innerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|setAttribute\(\"on",
            path.read_text(encoding="utf-8"),
        )
        assert not found, f"{path.name}: {found}"
