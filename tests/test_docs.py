"""README and docs: their code runs and prints what they show, their links lead somewhere, and no public name is missing."""

import contextlib
import dataclasses
import inspect
import io
import re
import shlex
import sys
import types
import typing
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch

import gradwatch
from gradwatch import cli, errors, moments, statistics, testing
from gradwatch.writers import console, logger, table, tensorboard

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
TESTED_WITH_TRACE = {DOCS / "backpropagation.md"}
BLOCK = re.compile(r"^```(?P<language>\w+)\n(?P<code>.*?)^```$(?:\n\n```text\n(?P<text>.*?)^```$)?", re.DOTALL | re.MULTILINE)
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
LIGHTNING = (
    "ignore:.*does not have many workers",
    "ignore:.*is smaller than the logging interval",
    "ignore:.*GPU available but not used",
)


def blocks(page, language):
    source = page.read_text(encoding="utf-8")
    for block in BLOCK.finditer(source):
        if block["language"] == language:
            yield source[: block.start()].count("\n") + 1, block["code"], block["text"]


def named(page):
    return page.relative_to(ROOT).as_posix()


def holding(language):
    pages = [page for page in PAGES if page not in TESTED_WITH_TRACE and any(blocks(page, language))]
    return pytest.mark.parametrize("page", pages, ids=named)


@pytest.fixture
def _scratch(tmp_path, monkeypatch):
    """An empty directory, one thread, and random numbers that are nobody else's."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_scratch")
@pytest.mark.filterwarnings(*LIGHTNING)
@holding("python")
def test_the_page_does_what_it_says(page, monkeypatch):
    module = types.ModuleType("page")  # not a plain dict: a dataclass looks up the module that it stands in
    monkeypatch.setitem(sys.modules, "page", module)
    for line, code, text in blocks(page, "python"):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * line + code, str(page), "exec"), module.__dict__)
        if text is not None:
            assert lines(printed.getvalue()) == lines(text), f"{named(page)}, line {line}"
    for _, code, _ in blocks(page, "bash"):
        for command in commands(code):
            carry_out(command)


def lines(text):
    return [line.rstrip() for line in text.strip().splitlines()]


def commands(code):
    return [words for line in code.splitlines() if (words := shlex.split(line, comments=True))]


def carry_out(words):
    """Runs a command of gradwatch, on what the page's code has recorded; of others, checks that there is such a thing."""
    if words[0] == "gradwatch" and words[1] == "demo":
        cli._parser().parse_args(words[1:])  # it is run by its own tests
    elif words[0] == "gradwatch":
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            try:
                status = cli.main(words[1:])
            except SystemExit as end:
                status = end.code
        assert status == 0 or (words[1] == "check" and status == 1), words  # 1: it found something
        assert printed.getvalue()
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words
    else:
        assert words[0] == "tensorboard", words
        assert Path(words[words.index("--logdir") + 1]).is_dir()


LINK = re.compile(r"!?\[[^]]*\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*/*.md"))], ids=named)
def test_links_lead_somewhere(page):
    for link in LINK.findall(FENCED.sub("", page.read_text(encoding="utf-8"))):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / unquote(path)).resolve() if path else page
        assert target.exists(), f"{named(page)}: {link}"
        assert target.is_relative_to(ROOT), f"{named(page)}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{named(page)}: {link}"


def anchors(page):
    """What headings are called in links: lower case, words joined by hyphens, without punctuation."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_on_the_map():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    linked = {(DOCS / link).resolve() for link in LINK.findall(index)}
    assert set(PAGES) - {DOCS / "index.md"} <= linked


def public(thing):
    """The public attributes of a class: methods, properties, fields."""
    fields = {field.name for field in dataclasses.fields(thing)} if dataclasses.is_dataclass(thing) else set()
    return {name for name in {*vars(thing), *fields} if not name.startswith("_")}


def instance_attributes(thing):
    return {name for name in vars(thing) if not name.startswith("_")}


def own(module):
    """The public functions and classes that a module itself defines."""
    return {name for name, value in vars(module).items() if name[0] != "_" and getattr(value, "__module__", "") == module.__name__}


def options():
    subparsers = next(action for action in cli._parser()._actions if hasattr(action, "choices") and action.choices)
    parsers = subparsers.choices.values()
    flags = {flag for parser in parsers for action in parser._actions for flag in action.option_strings if flag.startswith("--")}
    return {*subparsers.choices, *flags, "--version"}


NAMES = {
    "gradwatch": set(gradwatch.__all__),
    "watch": set(inspect.signature(gradwatch.watch).parameters),
    "Watch": public(gradwatch.Watch) | {"history", "ids"},
    "History": public(gradwatch.History) | instance_attributes(gradwatch.History()),
    "Record": public(gradwatch.Record),
    "Site": public(gradwatch.Site),
    "tensors": set(typing.get_args(typing.get_type_hints(gradwatch.Site)["tensor"])),
    "Finding": public(gradwatch.Finding),
    "Incident": public(gradwatch.Incident),
    "statistics": {*statistics.STATISTICS, *statistics.RATIOS},
    "detectors": set(gradwatch.detectors.__all__),
    "Judgement": public(gradwatch.detectors.Judgement),
    "writers": {name for module in (gradwatch.writers, console, logger, table, tensorboard) for name in own(module)},
    "errors": own(errors),
    "testing": own(testing),
    "command line": options(),
}


@pytest.mark.parametrize("where", NAMES)
def test_every_public_name_is_on_the_page_of_the_api(where):
    source = (DOCS / "api.md").read_text(encoding="utf-8")
    shell = " ".join(code for _, code, _ in blocks(DOCS / "api.md", "bash"))
    spans = shell + " ".join(re.findall(r"`[^`]+`", FENCED.sub("", source)))
    missing = [name for name in NAMES[where] if not re.search(rf"(?<![\w-]){re.escape(name)}(?!\w)", spans)]
    assert missing == []


def test_the_callback_is_on_the_page_of_the_api():
    callback = pytest.importorskip("gradwatch.lightning", reason="lightning is not installed").GradWatchCallback
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    section = page.partition("## Lightning\n")[2].partition("\n## ")[0]
    taken = set(inspect.signature(callback.__init__).parameters) - {"self"}
    assert [name for name in taken if f"`{name}`" not in section] == []


def test_the_columns_are_described_by_the_statistics_of_the_frame():
    assert set(moments.COLUMNS) <= set(statistics.STATISTICS)


@pytest.mark.usefixtures("_scratch")
def test_the_readme_quotes_what_the_demo_finds(tmp_path):
    training = pytest.importorskip("gradwatch.demo.training", reason="what the demo needs is not installed")
    # What is said of a finding is settled once it is confirmed.
    short = dataclasses.replace(training.PLANS[0], steps=30)
    [finding] = training.train(short, seed=0, logdir=tmp_path).history.findings
    said = f"{finding.severity}: {finding.kind} at {finding.layer}, step 0–{training.STEPS - 1}: {finding.message}"
    quoted = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    share = f"{finding.evidence['share']:.1e}"
    assert said.partition(share)[0] in quoted
    assert said.partition(share)[2] in quoted
    assert float(share) == pytest.approx(2.4e-8, rel=0.1)  # the last digit depends on the processor
    assert "2.4e-08" in quoted


def test_the_kinds_in_the_readme_are_those_that_there_are():
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## What it finds\n")[2].partition("\n## ")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == gradwatch.KINDS
