"""A real Chromium, where one is installed."""

import contextlib
import os
import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextlib.contextmanager
def chromium(profile):
    """A browser with an empty profile; skips the test, and says why, where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no browser is installed (none of {', '.join(NAMES)})")
    with playwright.sync_playwright() as running:
        context = running.chromium.launch_persistent_context(
            os.fspath(profile), executable_path=path, headless=True, args=ARGUMENTS, viewport={"width": 1400, "height": 1000}
        )
        try:
            yield context
        finally:
            context.close()


def is_error(message):
    """Whether a line of the console is an error; TensorBoard 2.21 itself asks for its fonts without its path prefix."""
    return message.type == "error" and "/font-roboto/" not in message.location.get("url", "")


@contextlib.contextmanager
def fresh_page(context):
    """A page; in the end no script on it may have failed, and nothing may have been reported as an error."""
    page = context.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(f"{message.text} {message.location}") if is_error(message) else None)
    page.on("dialog", lambda dialog: (errors.append(f"a dialog: {dialog.message}"), dialog.dismiss()))
    page.set_default_timeout(20_000)
    try:
        yield page
    finally:
        page.close()
    assert errors == [], errors


PIXEL = """(canvas, {x, y}) => {
    const box = canvas.getBoundingClientRect();
    const place = [((x - box.left) * canvas.width) / box.width, ((y - box.top) * canvas.height) / box.height];
    return [...canvas.getContext("2d").getImageData(Math.floor(place[0]), Math.floor(place[1]), 1, 1).data];
}"""


def view_state(frame):
    """What the view shows, as it would put it into a link."""
    return frame.locator(".gw").evaluate("root => root.gradwatch.state()")


def pixel(frame, row, step):
    """The colour of a cell of the heat-map, [red, green, blue, opacity]."""
    center = frame.locator(".gw").evaluate("(root, [row, step]) => root.gradwatch.cellCenter(row, step)", [row, step])
    assert center is not None, f"there is no cell of {row} at step {step}"
    return frame.get_by_test_id("gw-heatmap").evaluate(PIXEL, center)


def wait_until(page, condition, seconds=20):
    """Waits for something that a test can only look at from outside."""
    for _ in range(seconds * 10):
        if condition():
            return
        page.wait_for_timeout(100)
    raise AssertionError("it did not come about")
