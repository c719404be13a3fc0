"""The demo on a terminal: how far it is, and what came out."""

from __future__ import annotations

import contextlib
import shlex
import textwrap
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from gradwatch.demo import Demo
from gradwatch.demo.neuron import B, W, X
from gradwatch.demo.training import DEPTH, Audience, Plan, Run
from gradwatch.records import Finding
from gradwatch.summary import COLUMNS, describe, table

WIDTH = 100
"""Columns at most: what fits beside an editor, and into a README."""

STYLES = {"critical": "bold red", "warning": "bold yellow", "ok": "green"}

LAYER, TYPE, GRADIENT, STATUS = (COLUMNS.index(name) for name in ("layer", "type", "dL/dW rms", "status"))


def terminal(*, stderr: bool = False) -> Console:
    """A console for the page (standard output) or for what is said while it is prepared (standard error)."""
    made = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    # Where there is no terminal, rich would take 80 columns.
    made.width = min(made.width, WIDTH) if made.is_terminal else WIDTH
    return made


@contextlib.contextmanager
def audience(console: Console) -> Iterator[Audience]:
    """Progress bars on a terminal, plain lines elsewhere."""
    if not console.is_terminal:
        yield Lines(console)
        return
    title, found = TextColumn("{task.description}"), TextColumn("{task.fields[found]}", style=STYLES["critical"])
    with Progress(title, BarColumn(bar_width=30), MofNCompleteColumn(), found, console=console) as progress:
        yield Bars(progress)


class Lines:
    """An audience that writes a line when a training begins and one for each finding."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def step(self, plan: Plan, done: int) -> None:
        """Says what begins."""
        if done == 0:
            self._console.print(f"training: {plan.title}, at most {plan.steps} steps")

    def found(self, plan: Plan, step: int, finding: Finding) -> None:
        """Says what was found."""
        self._console.print(f"  {plan.title}: step {step}: {finding.kind} at {finding.layer}")


class Bars:
    """An audience that moves one bar for each training, with the first finding beside it."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def step(self, plan: Plan, done: int) -> None:
        """Moves the bar."""
        if plan.name not in self._tasks:
            self._tasks[plan.name] = self._progress.add_task(plan.title, total=plan.steps, found="")
        self._progress.update(self._tasks[plan.name], completed=done)

    def found(self, plan: Plan, step: int, finding: Finding) -> None:
        """Names the finding."""
        task = self._tasks[plan.name]
        if not self._progress.tasks[task].fields["found"]:
            self._progress.update(task, found=f"step {step}: {finding.kind}")


def show(demo: Demo, console: Console) -> None:
    """Prints everything that came out of a demo."""
    console.print()
    _show_neuron(demo.neuron, console)
    for run in demo.runs:
        console.print()
        _show_run(run, console)
    where = shlex.quote(str(demo.logdir))
    lines = {
        "picture": shlex.quote(str(demo.picture)),
        "event files": f"{where}, one folder for each network (seed {demo.seed})",
        "look closer": f"tensorboard --logdir {where}",
        "all layers": f"gradwatch report {shlex.quote(str(demo.runs[0].logdir))}",
    }
    console.print()
    for label, text in lines.items():
        # Wrapped, a path or a command could not be copied.
        console.print(Text(f"{label:<13}", style="bold").append(text, style="not bold"), soft_wrap=True)


def _show_neuron(neuron: dict[str, float], console: Console) -> None:
    seen = {name: f"{value:.4g}" for name, value in neuron.items()}
    weights = f"dL/dW = ({seen['dL/dw1']}, {seen['dL/dw2']})"
    console.print(f"One neuron: x = ({X[0]:g}, {X[1]:g}), W = ({W[0]:g}, {W[1]:g}), b = {B:g}, target 1", style="bold")
    console.print(f"  forward   z = {seen['z']}   a = {seen['a']}   loss = {seen['loss']}")
    console.print(f"  backward  dL/da = {seen['dL/da']}   dL/dz = {seen['dL/dz']}   {weights}   dL/db = {seen['dL/db']}")


def _show_run(run: Run, console: Console) -> None:
    _, losses = run.history.losses()
    console.print(f"{run.plan.title} ({DEPTH} layers, SGD with learning rate {run.plan.learning_rate:g})", style="bold")
    outcome = f"  loss {losses[0]:#.3g} → {losses[-1]:#.3g}"
    if run.broke_at is None:
        console.print(f"{outcome} in {len(losses)} steps; {100 * run.accuracy:.1f} % of the test images right")
    else:
        console.print(f"{outcome} at step {run.broke_at}; the table is of step {run.finite[-1].step}, the last finite one")
    console.print()
    console.print(_table(run))
    for incident in run.incidents:
        console.print()
        seen, advice = describe(incident.cause).split("\n")
        _show_finding(seen, incident.cause, console)
        _show_text(advice.strip(), console, indent=4)
        for finding in incident.consequences:
            _show_finding(describe(finding).partition("\n")[0], finding, console)
    if not run.incidents:
        console.print("\n  nothing found", style=STYLES["ok"])


def _table(run: Run) -> Text:
    """The layers that have weights, and of those between them the ones with which something is wrong."""
    severity: dict[str, str] = {finding.kind: finding.severity for finding in run.history.findings}
    rows = [row for row in table(run.finite, run.history.findings) if row[GRADIENT] != "–" or row[STATUS] != "ok"]
    widths = [max(len(row[column]) for row in [COLUMNS, *rows]) for column in range(STATUS)]
    lines = []
    for row in [COLUMNS, tuple("─" * len(name) for name in COLUMNS), *rows]:
        figures = "  ".join(row[column].rjust(widths[column]) for column in range(TYPE + 1, STATUS))
        kind = row[STATUS].partition(",")[0].partition(" ")[0]
        status = Text(row[STATUS], style=STYLES.get(severity.get(kind, kind), ""))
        lines.append(Text(f"  {row[LAYER]:<{widths[LAYER]}}  {figures}  ") + status)
    return Text("\n").join(lines)


def _show_finding(line: str, finding: Finding, console: Console) -> None:
    """A finding's line, its severity in colour."""
    _show_text(line, console, indent=2, style=STYLES[finding.severity], styled=len(finding.severity))


def _show_text(text: str, console: Console, *, indent: int, style: str = "", styled: int = 0) -> None:
    """Lines with a margin, the first characters styled; rich's own margin would leave blanks at every line's end."""
    margin = " " * indent
    lines = textwrap.fill(text, console.width, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False)
    shown = Text(lines)
    shown.stylize(style, indent, indent + styled)
    console.print(shown)
