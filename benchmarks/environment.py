"""An environment of their own for the tools that gradwatch is compared with, so that they meet nobody else's.

It borrows what is installed where the command runs (torch above all, so that nobody is measured with another build of it) and
installs the rest beside it, one tool after the other: one that cannot be had is left out with its reason, and the others stay.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACE = ROOT / ".venv-rivals"
WANTED = Path(__file__).with_name("rivals.txt")
CONSTRAINTS = ROOT / "constraints.txt"


def ready(place: Path = PLACE, wanted: Path = WANTED) -> tuple[Path, dict[str, str]]:
    """Makes the environment, unless it is there already.

    Args:
        place: Its directory.
        wanted: The tools, as pip's requirements.

    Returns:
        The Python to run in it, and package → why it could not be installed. Where not even an environment could be made, this
        is the Python that runs, with the reason under every package.
    """
    requirements = [line for line in wanted.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    python, note = place / "bin" / "python", place / "installed.json"
    state = hashlib.sha256(
        "\n".join([sys.prefix, sys.version, *requirements, CONSTRAINTS.read_text(encoding="utf-8")]).encode()
    ).hexdigest()
    if note.exists() and (known := json.loads(note.read_text(encoding="utf-8")))["state"] == state and not known["reasons"]:
        return python, {}
    try:
        venv.create(place, clear=True, with_pip=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return Path(sys.executable), {
            _package(requirement): f"no environment could be made in {place}: {error}" for requirement in requirements
        }
    (site,) = place.glob("lib/python*/site-packages")
    borrowed = [path for path in sys.path if path.endswith("-packages")]
    (site / "borrowed.pth").write_text("\n".join(borrowed) + "\n", encoding="utf-8")
    reasons = {}
    for requirement in requirements:
        if (reason := install(python, requirement)) is not None:
            reasons[_package(requirement)] = reason
    note.write_text(json.dumps({"state": state, "reasons": reasons}), encoding="utf-8")
    return python, reasons


def install(python: Path, requirement: str, options: Sequence[str] = ()) -> str | None:
    """Installs a package, with the versions of everything else that the project is developed with.

    Args:
        python: Of the environment.
        requirement: What to install.
        options: More options of ``pip install``.

    Returns:
        Why it could not be done; None where it was.
    """
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--constraint", str(CONSTRAINTS)]
    done = subprocess.run([*command, *options, requirement], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    said = [line.strip() for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return (said or [f"pip ended with status {done.returncode}"])[-1].removeprefix("ERROR: ")


def _package(requirement: str) -> str:
    return requirement.partition("=")[0].strip()


def again(python: Path, arguments: Sequence[str], reasons: Mapping[str, str]) -> int:
    """Runs the benchmark in the environment, with gradwatch from the source beside it; returns its exit status."""
    command = [str(python), "-m", "benchmarks.overhead", *arguments, "--inside", json.dumps(dict(reasons))]
    return subprocess.run(command, cwd=ROOT, check=False).returncode
