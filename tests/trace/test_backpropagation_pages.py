"""The pages on backpropagation and the example run, print what they show, and make their own figures."""

import contextlib
import io
import re
import runpy
from pathlib import Path

import matplotlib as mpl
import pytest

mpl.use("Agg")

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "docs" / "backpropagation.md", ROOT / "docs" / "es" / "backpropagation.md"]
BLOCK = re.compile(r"```python\n(?P<code>.*?)```\n(?:\n```text\n(?P<text>.*?)```\n)?", re.DOTALL)


@pytest.fixture(autouse=True)
def _figures_are_closed():
    yield
    mpl.pyplot.close("all")


@pytest.mark.parametrize("page", PAGES, ids=["english", "spanish"])
def test_the_page_does_what_it_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the figures go here, not over those that the page shows
    namespace = {}
    source = page.read_text(encoding="utf-8")
    for block in BLOCK.finditer(source):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block["code"], str(page), "exec"), namespace)
        assert lines(printed.getvalue()) == lines(block["text"] or "")
    shown = {(page.parent / path).resolve() for path in re.findall(r"!\[[^]]+\]\(([^)]+)\)", source)}
    made = {ROOT / "docs" / path.relative_to(tmp_path) for path in tmp_path.rglob("*.png")}
    assert made == shown
    assert len(shown) == 6
    assert all(path.stat().st_size > 10_000 for path in shown)


def lines(text):
    return [line.rstrip() for line in text.strip().splitlines()]


def test_both_languages_show_the_same():
    english, spanish = (BLOCK.findall(page.read_text(encoding="utf-8")) for page in PAGES)
    assert len(english) == len(spanish)
    for (_, ours), (_, theirs) in zip(english, spanish, strict=True):
        assert re.findall(r"-?\d[\d.e+-]*", ours) == re.findall(r"-?\d[\d.e+-]*", theirs)


def test_the_example(capsys):
    runpy.run_path(str(ROOT / "examples" / "04_trace.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "1 Sigmoid  input        (1, 1)  [[0]]" in printed
    assert "a = 1   dL/da = 1e+12   dL/dz = 0\nclosed: layer 1 (Sigmoid)" in printed
    assert printed.count("Sigmoid  |da/dz| 0.2") == 10
