"""Step time with gradwatch and with other tools, over step time without, for each network and number of threads."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks.networks import TASKS
from benchmarks.rivals import RIVALS
from benchmarks.timing import Clock, Times, take_turns
from benchmarks.tools import ALONE, COPIES, COUNTED, CYCLE, DEFAULT, EVERY_STEP, NAIVE, NORMS, Tool
from benchmarks.training import Apart, Start

TARGETS = {"tiny MLP (20 × 32)": (1.08, 1.6), "MLP (8 × 256)": (1.05, 1.35), "CNN": (1.03, 1.25), "GPT (4 × 256)": (1.02, 1.08)}
"""The ratios that the project aims at: with the default cadence, with full records at every step."""

FACTOR = 10
"""How many times less time gradwatch is to add than each rival that is somebody's package, at equal cadence."""

SLOW = "GPT (4 × 256)"
SHARES = {SLOW: 5.0}
"""The time that a network gets, where it is not 1: a step of the language model takes as long as a hundred of the others."""

PRECISE = (ALONE, ALONE, DEFAULT, EVERY_STEP)
"""What is told in per mille: training alone, again to know the noise, and gradwatch; these get more of the time."""

EXTRA = 3.0
"""How much more."""


@dataclass
class Comparison:
    """What one network costs with each tool.

    Attributes:
        network: Its name.
        threads: Of torch.
        alone: Training alone.
        again: The same once more.
        times: Every other tool, by name.
        clock: What counts as time.
    """

    network: str
    threads: int
    alone: Times
    again: Times
    times: dict[str, Times]
    clock: Clock = "wall"

    @property
    def noise(self) -> float:
        """What step times without any tool deviate by, as a share: two trainings, and of each what was timed first and later."""
        times = [half.usual(self.clock) for training in (self.alone, self.again) for half in training.halves()]
        return (max(times) - min(times)) / 2 / statistics.fmean(times)

    def bare(self, clock: Clock) -> float:
        """The seconds of a step without any tool."""
        return (self.alone.usual(clock) + self.again.usual(clock)) / 2

    def ratio(self, tool: Tool, clock: Clock | None = None) -> float:
        """The step time with a tool over that without."""
        clock = clock or self.clock
        return self.times[tool.name].usual(clock) / self.bare(clock)

    def factor(self, rival: Tool) -> str:
        """How many times the time that gradwatch adds at the same cadence a rival adds, as text."""
        own = DEFAULT if rival.every == CYCLE else EVERY_STEP
        if own.name not in self.times:
            return "–"
        ours, theirs = self.ratio(own) - 1, self.ratio(rival) - 1
        if theirs <= self.noise:
            return "in the noise"
        # What is smaller than the noise cannot be divided by.
        return f"{'over ' if ours < self.noise else ''}{theirs / max(ours, self.noise):.1f}"


def compare(
    networks: Sequence[str],
    tools: Sequence[Tool],
    threads: Sequence[int],
    seconds: float,
    start: Start = Apart,
    clock: Clock = "wall",
) -> list[Comparison]:
    """Times every network with every tool.

    Args:
        networks: Names in ``networks.TASKS``.
        tools: Beside training alone.
        threads: Numbers of threads; each is a comparison of its own.
        seconds: For one network with one thread; those with more get as much less as they could be faster.
        start: Starts a worker.
        clock: What counts as time.
    """
    found = []
    everything = [ALONE, ALONE, *tools]
    weights = [EXTRA if tool in PRECISE else 1.0 for tool in everything]
    with ExitStack() as ending:
        workers = []
        for tool in everything:
            workers.append(start(tool))
            ending.callback(workers[-1].end)
        for count in threads:
            for network in networks:
                share = seconds * SHARES.get(network, 1.0) / count
                alone, again, *others = take_turns(workers, TASKS[network], threads=count, seconds=share, weights=weights)
                for times in (alone, again):
                    if times.reason:
                        raise RuntimeError(f"{network} does not train without any tool: {times.reason}")
                found.append(
                    Comparison(network, count, alone, again, dict(zip([tool.name for tool in tools], others, strict=True)), clock)
                )
    return found


def ratios(found: Sequence[Comparison]) -> str:
    """What gradwatch adds, beside the targets, as a table in Markdown."""
    columns = ["network", "threads", "step without a watch", "noise", f"`every={CYCLE}`", "target", "`every=1`", "target"]
    columns += ["norms only", "copies only"]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for comparison in found:
        cells = [comparison.network, str(comparison.threads)]
        cells += [f"{comparison.bare(comparison.clock) * 1e3:.2f} ms", f"± {comparison.noise:.3f}"]
        for tool, target in zip((DEFAULT, EVERY_STEP), TARGETS.get(comparison.network, (None, None)), strict=True):
            ratio = comparison.ratio(tool)
            reached = target is not None and ratio + comparison.noise <= target
            cells.append(f"{ratio:.3f} ({comparison.ratio(tool, 'cpu'):.3f})")
            cells.append("–" if target is None else f"{target} ({'reached' if reached else 'not reached'})")
        cells += [f"{comparison.ratio(floor):.3f}" for floor in (NORMS, COPIES)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def rivals(found: Sequence[Comparison], tools: Sequence[Tool], threads: int, reasons: dict[str, str]) -> str:
    """Step-time ratios and factors of other tools, as a table in Markdown.

    Args:
        found: Everything that was timed.
        tools: The others.
        threads: Those that the table is about.
        reasons: Package → why it could not be installed.
    """
    chosen = [comparison for comparison in found if comparison.threads == threads]
    lines = [
        f"| {' | '.join(['tool', *(comparison.network for comparison in chosen)])} |",
        f"|{'---|' * (len(chosen) + 1)}",
    ]
    own = [[tool.name, *(f"{comparison.ratio(tool):.2f}" for comparison in chosen)] for tool in (DEFAULT, EVERY_STEP, COUNTED)]
    lines += [f"| {' | '.join(cells)} |" for cells in own]
    skipped = []
    for tool in tools:
        cells = []
        for comparison in chosen:
            times = comparison.times[tool.name]
            cells.append("–" if times.reason else f"{comparison.ratio(tool):.2f} (× {comparison.factor(tool)})")
            if times.reason:
                why = next((reasons[package] for package in tool.packages if package in reasons), times.reason)
                skipped.append((tool.name, comparison.network, why))
        lines.append(f"| {' | '.join([tool.name, *cells])} |")
    notes = [f"\nNot measured: {name} on {network}: {why}." for name, network, why in skipped]
    return "\n".join([*lines, *notes])


OWN: tuple[Tool, ...] = (DEFAULT, EVERY_STEP, COUNTED, NORMS, COPIES, NAIVE)
EVERYTHING: tuple[Tool, ...] = (*OWN, *RIVALS)
