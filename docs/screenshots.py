"""Takes the pictures of the "Gradient health" tab in ``docs/images/tensorboard/``: runs the demo, starts TensorBoard, and looks.

Needs Chromium and what the development of gradwatch needs.

python docs/screenshots.py
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import quote

import torch
from playwright.sync_api import FrameLocator, Locator, Page, sync_playwright
from torch import nn

import gradwatch

IMAGES = Path(__file__).parent / "images" / "tensorboard"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SIZE = {"width": 1400, "height": 1180}
PAINT = 1500
"""Milliseconds in which everything that was asked has been answered and drawn."""


def main() -> None:
    """Takes every picture anew."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"there is no browser: install one of {', '.join(BROWSERS)}")
    if not entry_points(group="tensorboard_plugins", name="gradwatch"):
        sys.exit("TensorBoard does not know the tab: install gradwatch first, with `make install` or `pip install -e .`")
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        logdir = Path(scratch) / "demo"
        subprocess.run([sys.executable, "-m", "gradwatch", "demo", "--logdir", logdir], check=True, stdout=subprocess.DEVNULL)
        train_counted(logdir / "1" / "histograms")
        with tensorboard(logdir / "1") as url, sync_playwright() as playwright:
            context = playwright.chromium.launch_persistent_context(
                Path(scratch) / "profile",
                executable_path=browser,
                headless=True,
                viewport=SIZE,
                args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"],
            )
            take(context.new_page(), url)
            context.close()
    print(f"wrote {', '.join(sorted(path.name for path in IMAGES.glob('*.png')))} to {IMAGES}")


def train_counted(logdir: Path) -> None:
    """Trains a network of sigmoids, with histograms of every tensor."""
    torch.manual_seed(0)
    hidden = [module for _ in range(5) for module in (nn.Linear(64, 64), nn.Sigmoid())]
    model = nn.Sequential(*hidden, nn.Linear(64, 5))
    optimizer = torch.optim.Adam(model.parameters())
    x, y = torch.randn(128, 64), torch.arange(128) % 5
    with gradwatch.watch(model, optimizer, logdir=logdir, every=5, on_finding=lambda _finding: None, histograms=True) as watch:
        for _ in range(300):
            optimizer.zero_grad()
            watch.loss(nn.functional.cross_entropy(model(x), y)).backward()
            optimizer.step()


def take(page: Page, url: str) -> None:
    """Looks at the runs of the demo."""
    frame = show(page, url, run="sigmoid")
    page.screenshot(path=IMAGES / "tab.png")
    # As it stands: Playwright would scroll it below the shadow of TensorBoard's header.
    page.screenshot(path=IMAGES / "incidents.png", clip=frame.get_by_test_id("gw-incident").first.bounding_box())
    card(frame, "flow").screenshot(path=IMAGES / "flow.png")
    card(frame, "series").screenshot(path=IMAGES / "layer.png")

    frame = show(page, url, run="histograms", layer="4")
    counted = frame.locator(".gw-panel").filter(has_text="Magnitudes").all()[:5]
    counted[-1].scroll_into_view_if_needed()
    boxes = [box for panel in counted if (box := panel.bounding_box())]
    left, top = boxes[0]["x"] - 12, boxes[0]["y"] - 12
    clip = {"x": left, "y": top, "width": boxes[0]["width"] + 24, "height": boxes[-1]["y"] + boxes[-1]["height"] + 2 - top}
    page.screenshot(path=IMAGES / "histograms.png", clip=clip)

    frame = show(page, url, run="sigmoid", compare="relu")
    card(frame, "map").screenshot(path=IMAGES / "compare.png")

    page.emulate_media(color_scheme="dark")
    show(page, url, run="relu-fast")
    page.screenshot(path=IMAGES / "dark.png")


def show(page: Page, url: str, **state: str) -> FrameLocator:
    """The tab, opened by a link."""
    page.goto("about:blank")
    page.goto(f"{url}#gradwatch" + "".join(f"&p.gradwatch.{name}={quote(value)}" for name, value in state.items()))
    frame = page.frame_locator("iframe").last
    frame.locator(".gw").evaluate("root => root.gradwatch.ready")
    page.wait_for_timeout(PAINT)
    return frame


def card(frame: FrameLocator, name: str) -> Locator:
    """A part of the page."""
    return frame.locator(f".gw-card-{name}")


@contextlib.contextmanager
def tensorboard(logdir: Path) -> Iterator[str]:
    """A TensorBoard on a free port; yields its address."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=logdir, env=os.environ) as process:
        try:
            said = (re.search(r"at (http://\S+)", line) for line in process.stderr or ())
            found = next(filter(None, said), None)
            if found is None:
                sys.exit("TensorBoard did not start")
            reading = threading.Thread(target=lambda: list(process.stderr or ()))  # a full pipe would stop it
            reading.start()
            try:
                yield found[1]
            finally:
                process.terminate()
                reading.join()
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
