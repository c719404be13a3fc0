"""TensorBoard, as its users start it, and its data provider alone."""

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from importlib.metadata import entry_points
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
DATA = "/data/plugin/gradwatch/"


def python_path(folder):
    """Where a process finds gradwatch and its entry point, also where only the source tree is there and nothing is installed."""
    places = [str(ROOT)]
    if not entry_points(group="tensorboard_plugins", name="gradwatch"):
        about = folder / "gradwatch-0.dist-info"
        about.mkdir(exist_ok=True)
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: gradwatch\nVersion: 0\n")
        declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["tensorboard_plugins"]
        lines = [f"{name} = {value}" for name, value in declared.items()]
        (about / "entry_points.txt").write_text("\n".join(["[tensorboard_plugins]", *lines, ""]))
        places.append(str(folder))
    return os.pathsep.join([*places, *filter(None, [os.environ.get("PYTHONPATH")])])


class TensorBoard:
    """A process that serves a log directory.

    Attributes:
        url: Where, with the path prefix.
    """

    def __init__(self, url):
        self.url = url.rstrip("/")

    def get(self, route, method="GET", **query):
        """Asks the plugin; returns status, headers, content."""
        address = f"{self.url}{DATA}{route}?{urllib.parse.urlencode(query)}"
        request = urllib.request.Request(address, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()

    def ask(self, route, **query):
        """The same, of an answer that is JSON."""
        return json.loads(self.get(route, **query)[2])

    def wait_for(self, run, step):
        """Waits until a run has been read up to a step."""
        for _ in range(300):
            if self.ask("layout", run=run).get("lastStep") == step:
                return
            threading.Event().wait(0.1)
        raise AssertionError(f"TensorBoard did not read {run} up to step {step}: {self.get('layout', run=run)}")


@contextlib.contextmanager
def tensorboard(logdir, scratch, *flags):
    """Starts TensorBoard on a free port, and ends it."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--port", "0", "--reload_interval", "1", *flags]
    environment = os.environ | {"PYTHONPATH": python_path(scratch), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment, cwd=scratch
    ) as process:
        said = []
        try:
            for line in process.stderr:
                said.append(line)
                if found := re.search(r"at (http://\S+)", line):
                    break
            else:
                raise AssertionError("".join(said))
            # A full pipe would stop it.
            reading = threading.Thread(target=lambda: said.extend(process.stderr))
            reading.start()
            try:
                yield TensorBoard(found[1])
            finally:
                process.terminate()
                reading.join()
        finally:
            process.terminate()


def provider(logdir, samples=5000):
    """What TensorBoard's Python loader makes of a log directory."""
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

    multiplexer = EventMultiplexer(tensor_size_guidance={"gradwatch": samples})
    multiplexer.AddRunsFromDirectory(str(logdir))
    multiplexer.Reload()
    return MultiplexerDataProvider(multiplexer, str(logdir))
