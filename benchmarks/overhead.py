"""What watching costs: step time, memory, disk, how all of it grows, and where the time goes; beside other tools.

make bench                                   everything, into docs/performance.md; about 9 minutes on two quiet cores
python -m benchmarks.overhead                the same, only printed
python -m benchmarks.overhead --quick        a smoke test, in under a minute
python -m benchmarks.overhead --parts steps  one part alone
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence

import torch

from benchmarks import comparison, environment, footprint, growth, profiled
from benchmarks.comparison import EVERYTHING, OWN
from benchmarks.networks import TASKS
from benchmarks.page import PAGE, machine, page
from benchmarks.rivals import RIVALS
from benchmarks.tools import NAIVE
from benchmarks.training import Apart, Here, Start

PARTS = ("comparison", "memory", "disk", "modules", "elements", "steps", "profile", "verdicts")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    chosen = parser.parse_args(given)
    if chosen.write and chosen.clock != "wall":
        parser.error(f"{PAGE.name} tells the time on the wall; leave --write or --clock out")
    others = not (chosen.quick or chosen.no_rivals) and "comparison" in chosen.parts
    if others and chosen.inside is None:
        python, reasons = environment.ready()
        return environment.again(python, given, reasons)
    described = machine()
    print(f"{described}\n", flush=True)
    torch.set_num_threads(1)
    sections: dict[str, str] = {}
    for part in chosen.parts:
        for name, text in measures(chosen, others=others)[part]().items():
            sections[name] = text
            print(f"## {name}\n\n{text}\n", flush=True)
    if chosen.write:
        PAGE.write_text(page(described, sections), encoding="utf-8")
        print(f"written: {PAGE}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measures what watching a network's training costs.")
    parser.add_argument(
        "--quick", action="store_true", help="a smoke test: two small networks, no other tools, coarse; under a minute"
    )
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--networks", nargs="+", choices=list(TASKS), help="those to compare (default: all)", metavar="NETWORK")
    parser.add_argument("--threads", nargs="+", type=int, help="numbers of threads to compare with (default: 1 2; quick: 1)")
    parser.add_argument(
        "--seconds", type=float, help="for the comparison on a small network with one thread (default: 15; quick: 1)"
    )
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor time, for a machine with other work"
    )
    parser.add_argument("--no-rivals", action="store_true", help="leave other tools out")
    parser.add_argument("--inside", type=json.loads, help=argparse.SUPPRESS)  # already in the environment of the others
    return parser


def measures(chosen: argparse.Namespace, *, others: bool) -> dict[str, Callable[[], dict[str, str]]]:
    """Part → a function that measures it and returns its sections of the page."""
    quick: bool = chosen.quick
    networks = chosen.networks or (list(TASKS)[:1] if quick else list(TASKS))
    seconds = chosen.seconds or (1.0 if quick else 15.0)
    each = 0.3 if quick else 3.0
    start: Start = Here if quick else Apart

    def compared() -> dict[str, str]:
        threads = chosen.threads or ([1] if quick else [1, 2])
        found = comparison.compare(networks, EVERYTHING if others else OWN, threads, seconds, start, chosen.clock)
        shown = [NAIVE, *RIVALS] if others else [NAIVE]
        tables = [(count, comparison.rivals(found, shown, count, chosen.inside or {})) for count in threads]
        text = "\n\n".join(f"With {count} {'thread' if count == 1 else 'threads'}:\n\n{table}" for count, table in tables)
        return {"ratios": comparison.ratios(found), "rivals": text}

    return {
        "comparison": compared,
        "memory": lambda: {"memory": footprint.memory(networks[:4], footprint.MEMORY_STEPS, start)},
        "disk": lambda: {"disk": footprint.disk(networks)},
        "modules": lambda: {"modules": growth.with_modules(growth.MODULES[:2] if quick else growth.MODULES, each)},
        "elements": lambda: {"elements": growth.with_elements(growth.WIDTHS[:2] if quick else growth.WIDTHS, each)},
        "steps": lambda: {"steps": growth.with_steps(1000 if quick else growth.STEPS, start)},
        "profile": lambda: {"profile": profiled.shares(networks, each)},
        "verdicts": lambda: {"verdicts": profiled.verdicts((8,) if quick else (8, 80), steps=100 if quick else 600)},
    }


if __name__ == "__main__":
    sys.exit(main())
