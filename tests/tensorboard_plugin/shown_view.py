"""The view in a real browser, and how a person handles it."""

from pathlib import Path

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
            """() => [...document.querySelectorAll('[data-testid=gw-row-label]')]
                .map((label) => [Number(label.dataset.index), label.dataset.layer])"""
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
