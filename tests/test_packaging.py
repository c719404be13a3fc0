"""What is installed: built once, and looked into."""

import email
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import gradwatch

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the sdist, from the working tree."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--sdist", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def wheel(built):
    """Name → content of the files in the wheel."""
    with zipfile.ZipFile(built[0]) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def content(wheel, name):
    (found,) = [value for path, value in wheel.items() if path.endswith(f".dist-info/{name}")]
    return found.decode()


def test_the_wheel_holds_every_module_and_the_marker_for_types(wheel):
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "gradwatch").rglob("*.py")}
    assert modules | {"gradwatch/py.typed"} <= wheel.keys()


def test_the_wheel_holds_the_page(wheel):
    files = {path.relative_to(ROOT).as_posix() for folder in ("tensorboard_plugin/static", "report") for path in served(folder)}
    assert {"gradwatch/tensorboard_plugin/static/view.css", "gradwatch/report/embedded.js"} <= files <= wheel.keys()


def served(folder):
    return [path for path in (ROOT / "gradwatch" / folder).iterdir() if path.suffix in {".js", ".css"}]


def test_the_wheel_holds_nothing_else(wheel):
    about = f"gradwatch-{gradwatch.__version__}.dist-info"
    assert {path.partition("/")[0] for path in wheel} == {"gradwatch", "gradwatch_tensorboard.py", about}
    assert not [path for path in wheel if "test_" in path or "__pycache__" in path]


def test_the_metadata_are_those_of_the_project(wheel):
    metadata = email.message_from_string(content(wheel, "METADATA"))

    assert metadata["Name"] == "gradwatch"
    assert metadata["Version"] == gradwatch.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    required = {line for line in metadata.get_all("Requires-Dist") if ";" not in line}
    assert sorted(line.partition(">")[0] for line in required) == ["google-crc32c", "numpy", "pandas", "tensorboard", "torch"]
    assert {"lightning", "demo", "dev"} <= set(metadata.get_all("Provides-Extra"))
    assert "Apache License" in content(wheel, "licenses/LICENSE")
    assert "gradwatch" in metadata.get_payload()  # the README


def test_the_command_leads_to_a_function(wheel):
    assert "gradwatch = gradwatch.cli:main" in content(wheel, "entry_points.txt")
    assert callable(EntryPoint("gradwatch", "gradwatch.cli:main", "console_scripts").load())


def test_tensorboard_is_led_to_the_tab(wheel):
    assert "[tensorboard_plugins]\ngradwatch = gradwatch_tensorboard:Loader" in content(wheel, "entry_points.txt")
    assert EntryPoint("gradwatch", "gradwatch_tensorboard:Loader", "tensorboard_plugins").load()


def test_the_sdist_can_be_tested(built):
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "LICENSE", "gradwatch/py.typed", "tests/test_packaging.py", "Makefile", "constraints.txt"} <= names
    assert not [name for name in names if name.endswith(".pyc")]
