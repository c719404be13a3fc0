"""Runs, and TensorBoards that serve them."""

import pytest
import recorded_runs
from serving import tensorboard

ODD_NAME = "odd <b>&'\"#? name"


@pytest.fixture(scope="session")
def logdir(tmp_path_factory):
    """Four runs."""
    folder = tmp_path_factory.mktemp("logdir")
    recorded_runs.written(recorded_runs.sick(), folder / "sick")
    recorded_runs.written(recorded_runs.healthy(), folder / "team" / "healthy")
    recorded_runs.written(recorded_runs.hostile(), folder / ODD_NAME)
    return folder


@pytest.fixture(scope="session", params=[("true", ""), ("false", "/team/board")], ids=["rust", "python-with-prefix"])
def served(request, logdir, tmp_path_factory):
    """TensorBoard with the four runs: each of its loaders, one of them behind a path prefix."""
    fast, prefix = request.param
    flags = ["--load_fast", fast, *(["--path_prefix", prefix] if prefix else [])]
    with tensorboard(logdir, tmp_path_factory.mktemp("scratch"), *flags) as running:
        running.wait_for("sick", recorded_runs.STEPS - 1)
        running.wait_for("team/healthy", recorded_runs.STEPS - 1)
        running.wait_for(ODD_NAME, 9)
        assert running.url.endswith(prefix)
        yield running
