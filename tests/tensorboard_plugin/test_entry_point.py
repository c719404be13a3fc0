"""What TensorBoard loads when it starts must be light, and must not fail."""

import json
import subprocess
import sys
import threading
from argparse import Namespace
from pathlib import Path

import pytest
from tensorboard.plugins import base_plugin

import gradwatch_tensorboard
from gradwatch_tensorboard import Loader

ROOT = Path(__file__).parents[2]


def run(code, cwd=ROOT):
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


START = """
import sys
from tensorboard.plugins import base_plugin
import gradwatch_tensorboard
plugin = gradwatch_tensorboard.Loader().load(base_plugin.TBContext(data_provider=object()))
plugin.get_plugin_apps(), plugin.is_active(), plugin.frontend_metadata()
print(sorted({"torch", "numpy", "pandas", "gradwatch"} & set(sys.modules)))
"""


def test_starting_imports_neither_torch_nor_gradwatch():
    # numpy is TensorBoard's own.
    assert "torch" not in run(START)
    assert "gradwatch" not in run(START).replace("gradwatch_tensorboard", "")


PREPARE = """
import sys, threading
from tensorboard.plugins import base_plugin
import gradwatch_tensorboard

class Provider:
    def list_plugins(self, context, *, experiment_id):
        return PLUGINS

plugin = gradwatch_tensorboard.Loader().load(base_plugin.TBContext(data_provider=Provider()))
plugin.frontend_metadata()
[thread.join() for thread in threading.enumerate() if thread is not threading.current_thread()]
print("gradwatch.tensorboard_plugin.routes" in sys.modules)
"""


@pytest.mark.parametrize(("plugins", "imported"), [(["scalars", "gradwatch"], "True"), (["scalars"], "False"), (None, "False")])
def test_gradwatch_is_imported_ahead_only_where_there_are_runs_of_it(plugins, imported):
    assert run(PREPARE.replace("PLUGINS", repr(plugins))) == imported


def test_where_gradwatch_cannot_be_imported_tensorboard_starts_and_the_tab_says_so(tmp_path):
    (tmp_path / "gradwatch").mkdir()
    (tmp_path / "gradwatch" / "__init__.py").write_text("raise ImportError('libtorch_cuda.so: undefined symbol')")
    (tmp_path / "gradwatch_tensorboard.py").write_text((ROOT / "gradwatch_tensorboard.py").read_text())
    told = run(
        START + "from werkzeug.test import Client\nprint(Client(plugin.get_plugin_apps()['/runs']).get('/runs').text)\n",
        cwd=tmp_path,
    )
    assert json.loads(told.splitlines()[-1])["error"].endswith("ImportError: libtorch_cuda.so: undefined symbol")


@pytest.mark.parametrize(
    ("hint", "expected"),
    [({}, {"gradwatch": 5000}), ({"gradwatch": 7}, {"gradwatch": 7}), ({"images": 3}, {"images": 3, "gradwatch": 5000})],
)
def test_the_number_of_samples_is_bounded_unless_the_user_says_otherwise(hint, expected):
    flags = Namespace(samples_per_plugin=dict(hint))
    Loader().fix_flags(flags)
    assert flags.samples_per_plugin == expected


@pytest.mark.parametrize("flags", [Namespace(), Namespace(samples_per_plugin=None), Namespace(samples_per_plugin="a=1"), None])
def test_flags_of_another_version_are_left_alone(flags):
    Loader().fix_flags(flags)


class Busy:
    """A data provider that keeps whoever asks it waiting."""

    def __init__(self):
        self.answer = threading.Event()

    def __getattr__(self, name):
        self.answer.wait(60)
        raise RuntimeError(f"{name} was asked for")


def test_a_page_that_opens_waits_for_nothing():
    busy = Busy()
    plugin = Loader().load(base_plugin.TBContext(data_provider=busy))
    assert plugin.is_active() is False
    assert plugin.frontend_metadata().tab_name == "Gradient health"
    assert plugin.plugin_name == "gradwatch"
    busy.answer.set()


def test_the_entry_point_is_declared():
    declared = (ROOT / "pyproject.toml").read_text()
    assert '[project.entry-points.tensorboard_plugins]\ngradwatch = "gradwatch_tensorboard:Loader"' in declared
    assert gradwatch_tensorboard.Loader is Loader
