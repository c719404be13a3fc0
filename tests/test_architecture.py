"""Who may import whom, and what ``import gradwatch`` costs."""

import ast
import graphlib
import inspect
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import gradwatch

ROOT = Path(gradwatch.__file__).parent

GROUPS = (
    ("errors", "names", "fused_kernel", "octaves"),
    ("fused",),
    ("moments",),
    ("statistics", "records", "eventfiles", "losses", "wire"),
    ("trends",),
    ("history",),
    ("codec",),
    ("capture", "distributed", "detectors", "writers"),
    ("incidents", "waiting"),
    ("judging",),
    ("summary",),
    ("settings",),
    ("watch", "trace", "replay"),
    ("testing",),
    ("__init__",),
    ("lightning", "transformers", "tensorboard_plugin", "demo"),
    ("report",),
    ("cli",),
    ("__main__",),
)
"""A module or a folder imports only from groups above its own; the files of a folder import each other, in no circle."""

PLUGIN_IMPORTS = {"codec", "statistics", "records", "names", "errors", "incidents", "octaves"}
"""All that the TensorBoard plugin may import: it runs where nothing is trained."""

RANKS = {name: rank for rank, group in enumerate(GROUPS) for name in group}

NOT_A_MODULE = {"__version__"}
"""What anybody may import from the package itself."""

HEAVY = {
    "lightning",
    "matplotlib",
    "pandas",
    "pyarrow",
    "pytorch_lightning",
    "rich",
    "scipy",
    "sklearn",
    "tensorboard",
    "transformers",
}
"""What a user of a bare loop does not pay for."""


def name_of(path: Path) -> str:
    """``capture/hooks.py`` → ``"capture.hooks"``, ``capture/__init__.py`` → ``"capture"``, ``__init__.py`` → ``"__init__"``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


SOURCES = {name_of(path): path.read_text(encoding="utf-8") for path in sorted(ROOT.rglob("*.py"))}
PACKAGES = {name_of(path) for path in ROOT.rglob("__init__.py")}


def statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Every import under a node, also inside functions; not those that only a type checker sees."""
    if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
        for child in node.orelse:
            yield from statements(child)
    elif isinstance(node, ast.Import | ast.ImportFrom):
        yield node
    else:
        for child in ast.iter_child_nodes(node):
            yield from statements(child)


def targets(module: str, statement: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """The files of gradwatch that an import statement loads for what it names."""
    if isinstance(statement, ast.Import):
        for alias in statement.names:
            if alias.name == "gradwatch":
                yield "__init__"
            elif alias.name.startswith("gradwatch."):
                yield alias.name.removeprefix("gradwatch.")
        return
    base = statement.module or ""
    if statement.level:
        package = ["gradwatch", *module.split(".")]
        package = package[: len(package) + (module in PACKAGES) - statement.level]
        base = ".".join([*package, *filter(None, [base])])
    if base.partition(".")[0] != "gradwatch":
        return
    inside = base.removeprefix("gradwatch").removeprefix(".")
    for alias in statement.names:
        full = f"{inside}.{alias.name}".removeprefix(".")
        if full in SOURCES:
            yield full
        elif inside or alias.name not in NOT_A_MODULE:
            yield inside or "__init__"


def imports(module: str, source: str) -> set[str]:
    """The files of gradwatch that a file imports."""
    found = {target for statement in statements(ast.parse(source)) for target in targets(module, statement)}
    return found - {module}


def part(module: str) -> str:
    """The module or folder, directly in the package, that a file is or lies in."""
    return module.partition(".")[0]


def test_every_file_belongs_to_a_group():
    strangers = {module for module in SOURCES if part(module) not in RANKS}
    assert not strangers, f"{sorted(strangers)} belong to no group; decide in GROUPS what they may import, and who may import them"


def test_no_name_is_in_two_groups():
    assert len(RANKS) == sum(map(len, GROUPS))


@pytest.mark.parametrize("module", SOURCES)
def test_a_file_imports_only_from_groups_above_its_own(module):
    here = part(module)
    others = {target for target in imports(module, SOURCES[module]) if part(target) != here}
    wrong = sorted(target for target in others if not RANKS.get(part(target), len(GROUPS)) < RANKS.get(here, len(GROUPS)))
    assert not wrong, f"{module} imports {wrong}, which {'are' if len(wrong) > 1 else 'is'} not above it in GROUPS"


def test_capture_detectors_and_writers_do_not_know_each_other():
    apart = {"capture", "detectors", "writers", "distributed"}
    for module, source in SOURCES.items():
        if part(module) in apart:
            assert not {part(target) for target in imports(module, source)} & (apart - {part(module)}), module


def test_the_plugin_imports_next_to_nothing():
    for module, source in SOURCES.items():
        if part(module) == "tensorboard_plugin":
            assert {part(target) for target in imports(module, source)} <= PLUGIN_IMPORTS | {"tensorboard_plugin"}, module


def test_no_two_files_import_each_other_in_however_wide_a_circle():
    # A folder's `__init__` gathers its files, and they may import each other by their full names.
    graph = {module: imports(module, source) for module, source in SOURCES.items()}
    list(graphlib.TopologicalSorter(graph).static_order())


EXAMPLE = """
import os, gradwatch.codec as c
from gradwatch import history, Watch, __version__
from gradwatch.capture import hooks, Hooks
from gradwatch.errors import RunError
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from gradwatch import cli
else:
    from gradwatch import names
def late():
    if True:
        from gradwatch.trends import Trends
class A:
    import gradwatch.statistics
"""


def test_what_counts_as_an_import():
    expected = {"codec", "history", "__init__", "capture.hooks", "capture", "errors", "names", "trends", "statistics"}
    assert imports("watch", EXAMPLE) == expected
    assert imports("capture.layout", "from . import hooks; from .transfer import Tape; from ..moments import COLUMNS") == {
        "capture.hooks",
        "capture.transfer",
        "moments",
    }
    assert imports("capture", "from . import hooks; from .. import moments; from .layout import Layout") == {
        "capture.hooks",
        "capture.layout",
        "moments",
    }
    assert imports("watch", "from . import names; import gradwatch") == {"names", "__init__"}


def test_importing_gradwatch_imports_nothing_heavy():
    show = "import sys, gradwatch; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", show], cwd=ROOT.parent, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"gradwatch", "torch", "numpy"} <= loaded
    assert not loaded & HEAVY


def constants_with_docstrings(source):
    """Names that are assigned at the top of a file and followed by a string."""
    body = ast.parse(source).body
    for statement, after in itertools.pairwise(body):
        if (
            isinstance(statement, ast.Assign | ast.AnnAssign)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            yield from (ast.unparse(target) for target in getattr(statement, "targets", None) or [statement.target])


@pytest.mark.parametrize("name", gradwatch.__all__)
def test_every_public_name_says_what_it_is(name):
    value = getattr(gradwatch, name)
    if isinstance(value, type | ModuleType) or inspect.isroutine(value):
        assert value.__doc__
        assert not value.__doc__.startswith(f"{name}(")  # what a dataclass says of itself where nobody else does
    else:
        assert any(name in constants_with_docstrings(source) for source in SOURCES.values()), f"{name} has no docstring"


@pytest.mark.parametrize("name", [name for name in gradwatch.__all__ if isinstance(getattr(gradwatch, name), type)])
def test_every_public_method_says_what_it_does(name):
    for attribute, value in vars(getattr(gradwatch, name)).items():
        if not attribute.startswith("_") and (inspect.isroutine(value) or isinstance(value, property)):
            assert value.__doc__, attribute
