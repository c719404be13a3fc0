"""The pages of the detectors are those that their files make, and the table of modes is that of their tests."""

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)

PAGES = generate.pages()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_its_detector_says(name):
    assert (DOCS / "detectors" / name).read_text(encoding="utf-8") == PAGES[name], "run `make docs`"


def test_no_page_is_left_over():
    assert {path.name for path in (DOCS / "detectors").glob("*.md")} == set(PAGES)


def test_every_picture_is_there_and_can_be_drawn(tmp_path):
    for detector in generate.DEFAULT[:2]:
        generate.draw(detector, tmp_path / "picture.png")
        assert (tmp_path / "picture.png").stat().st_size > 1000
    shown = {path.stem for path in (DOCS / "images" / "detectors").glob("*.png")}
    assert shown == {type(detector).__name__ for detector in generate.DEFAULT}


def test_the_table_of_modes_is_what_their_tests_say():
    text = (DOCS / "semantics.md").read_text(encoding="utf-8")
    assert generate.with_modes(text) == text, "run `make docs`"
