"""The heat-map of the view: what its pixels show, and how one moves in it."""

import math
import re

from shown_view import Shown, brightness
from told_runs import ABSENT, GROUPED, SPECIAL, large, run


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
    assert "fc" in told[0]
    assert "0.0123456" in told[0]
    assert "step 0" in told[0]
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
    assert "0.1" in told
    assert "step 10" in told


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
    assert "worst of 3 layers: encoder.layers.1.fc2, 0 (exactly)" in told
    assert "median 0.001" in told


def test_findings_are_marked_over_the_map(page):
    view = Shown(page, [GROUPED])
    at = view.center("encoder.layers.1.fc2", 2)
    marked = """([x, y]) => {
        const canvas = document.querySelector('.gw-marks-canvas');
        const box = canvas.getBoundingClientRect();
        return canvas.getContext('2d').getImageData(x - box.left - 4, y - box.top, 1, 1).data[3];
    }"""
    assert view.evaluate(marked, [at["x"], at["y"]]) > 0
    elsewhere = view.center("embed", 2)
    assert view.evaluate(marked, [elsewhere["x"], elsewhere["y"]]) == 0
    told = view.hover("encoder.layers.1.fc2", 2)
    assert "Non-finite values" in told
    assert "it was seen" in told


def test_a_parameter_has_a_row_below_its_layer(page):
    parameters = {"fc": {"fc.weight": [1e-1] * 3, "fc.bias": [1e-3, math.nan, 1e-3]}}
    view = Shown(page, [run("one", {"gradient": {"fc": [1e-1] * 3}}, parameters=parameters)])
    page.locator("[data-layer=fc] .gw-chevron").click()
    view.settle()
    assert view.rows() == ["fc", "fc.weight", "fc.bias"]
    assert view.pixel("fc.weight", 0) == view.pixel("fc", 0)
    assert view.pixel("fc.bias", 1)[:3] == view.colors["nan"]
    assert "0.001" in view.hover("fc.bias", 2)


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
    assert "from" not in view.state
    assert view.center("first", 0) is not None


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
    assert view.state["from"] > zoomed["from"]
    assert view.state["to"] - view.state["from"] == zoomed["to"] - zoomed["from"]
    view.by("gw-zoom-reset").click()
    assert "from" not in view.state


def test_two_runs_differ_by_decades_layer_by_layer(page):
    mine = run("mine", {"gradient": {"a": [1e-2, 1e-2], "b": [1e-3, 0.0], "only mine": [1.0, 1.0], "same": [0.5, 0.5]}})
    theirs = run("theirs", {"gradient": {"same": [0.5, 0.5], "b": [1e-2, 1e-2], "a": [1e-3, math.nan]}})
    view = Shown(page, [mine, theirs], state={"run": "mine"})
    view.choose("gw-compare-select", "theirs")
    larger, smaller, equal = view.pixel("a", 0), view.pixel("b", 0), view.pixel("same", 0)
    assert larger[0] > larger[2]
    assert smaller[2] > smaller[0]
    assert max(equal[:3]) - min(equal[:3]) < 12  # grey
    assert view.pixel("a", 1)[:3] == view.colors["nan"]
    assert view.pixel("b", 1)[:3] == view.colors["zero"]
    assert view.pixel("only mine", 0)[3] == 0
    told = view.hover("a", 0)
    assert "+1 decades (×10)" in told
    assert "mine: 0.01" in told
    assert "theirs: 0.001" in told
    assert "÷10" in view.by("gw-legend").inner_text()
    assert "mine against theirs" in view.by("gw-legend").inner_text()
    assert view.state["compare"] == "theirs"


def test_shares_and_signed_statistics_have_scales_of_their_own(page):
    one = run("one", {"gradient": {"fc": [1.0] * 3}, "zeros": {"fc": [0.0, 0.5, 1.0]}, "mean": {"fc": [-2.0, 0.0, 2.0]}})
    view = Shown(page, [one], state={"statistic": "zeros"})
    assert brightness(view.pixel("fc", 0)) < brightness(view.pixel("fc", 1)) < brightness(view.pixel("fc", 2))
    assert view.pixel("fc", 0)[:3] != view.colors["zero"]  # no zeros at all are no alarm
    assert "50 %" in view.hover("fc", 1)
    view.choose("gw-statistic-select", "mean")
    below, zero, above = (view.pixel("fc", step) for step in range(3))
    assert below[2] > below[0]
    assert above[0] > above[2]
    assert max(zero[:3]) - min(zero[:3]) < 12


def test_it_is_sharp_on_a_dense_screen(page):
    view = Shown(page, [SPECIAL], scale=2)
    widths = view.evaluate(
        "() => { const c = document.querySelector('[data-testid=gw-heatmap]'); return [c.width, c.clientWidth] }"
    )
    assert widths[0] == 2 * widths[1]
    assert view.pixel("broken", 1)[:3] == view.colors["nan"]


def test_of_two_thousand_layers_only_those_in_view_are_elements(page):
    view = Shown(page, [large(2000, 5000)])
    assert view.rows()[0] == "blocks"
    view.by("gw-unfold-all").click()
    view.settle()
    assert len(view.labels()) < 60
    assert view.by("gw-layer-row").count() < 60
    page.locator(".gw-scroller").evaluate("(box) => (box.scrollTop = box.scrollHeight)")
    view.settle()
    assert view.rows()[-1] == "blocks.199.layer9"
    assert brightness(view.pixel("blocks.199.layer0", 10)) > brightness(view.pixel("blocks.199.layer9", 4990))
    grids = [call for call in view.evaluate("() => window.asked") if call[0] == "grid"]
    assert len(grids) == 1
    assert grids[0][3]["width"] <= 1600


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
    assert len(asked) == 2
    assert asked[1]["from"] > 0
    assert asked[1]["to"] - asked[1]["from"] < 1000


def test_rows_of_parameters_follow_when_runs_are_compared(page):
    def made(name, size):
        parameters = {"fc": {"fc.weight": [size] * 3, "fc.bias": [size] * 3}}
        return run(name, {"gradient": {"fc": [size] * 3, "other": [1.0] * 3}}, parameters=parameters)

    view = Shown(page, [made("mine", 1e-1), made("theirs", 1e-3)], state={"run": "mine"})
    page.locator("[data-layer=fc] .gw-chevron").click()
    view.settle()
    alone = view.pixel("fc.bias", 1)
    view.choose("gw-compare-select", "theirs")
    assert view.pixel("fc.bias", 1) == view.pixel("fc", 1) != alone
    assert "+2 decades" in view.hover("fc.bias", 1)
