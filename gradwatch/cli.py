"""The command line: ``gradwatch demo | report | check | compare | export``."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import gradwatch
from gradwatch.errors import GradWatchError, GradWatchWarning
from gradwatch.history import History
from gradwatch.incidents import group, tell
from gradwatch.names import printable
from gradwatch.summary import render

EXTRAS = {"sklearn": "scikit-learn", "matplotlib": "matplotlib", "rich": "rich"}
"""Module → package, of what the demo needs beside gradwatch's own dependencies."""

RUN = "the log directory of a watched run, or one of its event files"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: The words after ``gradwatch``; None: those of the process.

    Returns:
        The exit status: 0; 1 where ``check`` found something; 2 where the command could not do its work, with one line on
        standard error that says why; 128 and the signal's number, as in a shell, where it was interrupted or its reader went
        away.

    Raises:
        SystemExit: From ``--help`` and ``--version``, and on words that are no command.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    if "run" not in arguments:
        parser.print_help(sys.stderr)
        return 2
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a console may lack the characters of a table
    try:
        status: int = arguments.run(arguments) or 0
        sys.stdout.flush()
    except GradWatchError as error:
        print(f"gradwatch: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Whoever reads the output, `head` say, has enough; the interpreter's flush at exit must not fail on it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("gradwatch", description=gradwatch.__doc__)
    parser.add_argument("--version", action="version", version=f"gradwatch {gradwatch.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    demo = commands.add_parser("demo", help="train sick and healthy networks on real data, and say what was found")
    demo.description = "Trains one neuron and three ten-layer networks on scanned digits, and says what was found. Takes seconds."
    demo.add_argument(
        "--logdir", default="runs/demo", help="where to make a folder for the event files and the picture; default: %(default)s"
    )
    demo.add_argument("--seed", type=_seed, default=0, help="decides weights, batches and test images; default: %(default)s")
    demo.set_defaults(run=_demo)

    report = commands.add_parser("report", help="print the layers and the findings of recorded runs, or make a page of them")
    report.description = (
        "Prints every layer of a recorded run with its newest figures and its status, and what was found; "
        "or writes it all as a page that opens in a browser without a network."
    )
    report.add_argument("recorded", metavar="RUN", nargs="+", help=RUN)
    report.add_argument("--html", metavar="PAGE", help="the HTML file to write; one that exists is replaced")
    report.set_defaults(run=_report)

    check = commands.add_parser("check", help="run the detectors over a recorded run; exit status 1 where something was found")
    check.description = (
        "Runs the detectors over a recorded run, as they run while it trains, and prints what they find. "
        "Exit status 1 where something was found, so that it serves in a pipeline."
    )
    check.add_argument("recorded", metavar="RUN", help=RUN)
    check.add_argument("--config", metavar="TOML", help="a table for each detector, a key for each setting that differs")
    check.set_defaults(run=_check)

    compare = commands.add_parser("compare", help="compare two recorded runs layer by layer")
    compare.description = "Prints what the layers of two recorded runs differ by, in powers of ten, and what was found in each."
    compare.add_argument("recorded", metavar="RUN", nargs=2, help=RUN)
    compare.set_defaults(run=_compare)

    export = commands.add_parser("export", help="write a recorded run as a table")
    export.description = "Writes a recorded run as a table: a row for each step, layer and tensor, a column for each statistic."
    export.add_argument("recorded", metavar="RUN", help=RUN)
    export.add_argument("table", metavar="TABLE", help="a path that ends in .csv or .parquet; a file that exists is replaced")
    export.set_defaults(run=_export)
    return parser


def _seed(text: str) -> int:
    seed = int(text)
    if not 0 <= seed < 2**63:
        raise argparse.ArgumentTypeError(f"{text} is no seed: give a whole number from 0 to 2**63 - 1")
    return seed


def _demo(arguments: argparse.Namespace) -> None:
    try:
        from gradwatch import demo
        from gradwatch.demo import page
    except ModuleNotFoundError as error:
        package = EXTRAS.get((error.name or "").partition(".")[0])
        if package is None:
            raise
        raise GradWatchError(f"the demo needs {package}, which is not installed: pip install 'gradwatch[demo]'") from error
    with page.audience(page.terminal(stderr=True)) as audience:
        result = demo.run(arguments.logdir, arguments.seed, audience)
    page.show(result, page.terminal())


def _report(arguments: argparse.Namespace) -> None:
    if arguments.html is None:
        for place, (name, path) in enumerate(_named(arguments.recorded).items()):
            history = _load(path)
            if len(arguments.recorded) > 1:
                print(f"{chr(10) * bool(place)}{printable(name)}")
            print(render(history, history.findings))
        return
    from gradwatch import report

    runs, notes = {}, {}
    for name, path in _named(arguments.recorded).items():
        runs[name], notes[name] = _read(path)
    report.write(runs, arguments.html, notes)
    print(f"{arguments.html}: {', '.join(f'{printable(name)} ({len(history)} records)' for name, history in runs.items())}")


def _compare(arguments: argparse.Namespace) -> None:
    from gradwatch import report

    paths = arguments.recorded
    first, second = map(_load, paths)
    names = tuple(_named(paths)) if paths[0] != paths[1] else (paths[0], paths[0])
    print(report.compare(first, second, (names[0], names[1])))


def _named(paths: Sequence[str]) -> dict[str, str]:
    """Name → path: the last part of the path where that tells them apart."""
    short = [Path(path).name or path for path in paths]
    return {name if short.count(name) == 1 else path: path for name, path in zip(short, paths, strict=True)}


def _check(arguments: argparse.Namespace) -> int:
    from gradwatch.detectors import DEFAULT, read

    detectors = DEFAULT if arguments.config is None else read(arguments.config)
    history = _load(arguments.recorded)
    incidents = group(gradwatch.check(history, detectors), history.full_steps)
    print("\n".join(map(tell, incidents)) or f"nothing found in {len(history)} records")
    return 1 if incidents else 0


def _export(arguments: argparse.Namespace) -> None:
    from gradwatch.writers.table import export

    history = _load(arguments.recorded)
    export(history, arguments.table)
    print(f"{arguments.table}: {len(history)} records, steps {history[0].step} to {history[-1].step}")


def _load(run: str) -> History:
    """The recorded run; what could not be read of it is said on standard error."""
    return _read(run)[0]


def _read(run: str) -> tuple[History, list[str]]:
    """The same, and what was said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", GradWatchWarning)
        history = gradwatch.load(run)
    notes = [str(note.message) for note in caught]
    for note in notes:
        print(f"gradwatch: {note}", file=sys.stderr)
    return history, notes
