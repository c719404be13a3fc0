"""How right gradwatch is: its verdicts on the labelled corpus, at its defaults, written to ``docs/calibration.md``.

python -m benchmarks.faults.calibrate [--seeds 0,1,2] [--out docs/calibration.md] [--only 'pattern*']
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import platform
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import nn

import gradwatch
from benchmarks import faults
from benchmarks.faults import score
from benchmarks.faults.core import Case


def monitor(case: Case, seed: int) -> list[score.Finding]:
    """Trains a case under a watch with default settings, and returns what it found."""
    model, optimizer, loss_fn, batches = case.build(seed)
    optimizers = list(optimizer.values()) if isinstance(optimizer, dict) else optimizer
    criterion = loss_fn if isinstance(loss_fn, nn.Module) else None
    with gradwatch.watch(model, optimizers, loss_fn=criterion, on_finding=_keep) as watch:

        def on_step(_step: int, loss: float | None) -> None:
            if loss is not None:
                watch.loss(loss)

        case.train(model, optimizer, loss_fn, batches, on_step)
    return [score.Finding(item.kind, item.layer, item.first_step, item.severity, item.message) for item in watch.findings]


def _keep(_finding: gradwatch.Finding) -> None:
    """Says nothing: the findings are read at the end."""


def run(name: str, seed: int) -> tuple[score.CaseScore, list[score.Finding]]:
    """Scores one case, by name, with one seed."""
    torch.set_num_threads(1)
    case = faults.get(name)
    found = monitor(case, seed)
    return score.score_case(case, found), found


def evaluate(names: Iterable[str], seeds: Iterable[int]) -> list[tuple[int, score.CaseScore, list[score.Finding]]]:
    """Scores cases in parallel: (seed, score, findings) of each, in order."""
    jobs = [(name, seed) for name in names for seed in seeds]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn"), initializer=_quiet) as pool:
        results = pool.map(partial(_star, run), jobs, chunksize=4)
        return [(seed, *result) for (_, seed), result in zip(jobs, results, strict=True)]


def _star(function, arguments):
    return function(*arguments)


def _quiet() -> None:
    import warnings

    warnings.simplefilter("ignore")


def page(results: list[tuple[int, score.CaseScore, list[score.Finding]]], seeds: list[int]) -> str:
    """The results as Markdown."""
    splits = sorted({scored.split for _, scored, _ in results})
    lines = [
        "# Calibration",
        "",
        "How right gradwatch is at its default settings, on a corpus of small training programs with known faults and on healthy",
        "ones, each fault with its repaired twin. Written by `make calibrate`; do not edit.",
        "",
        f"gradwatch {gradwatch.__version__}, torch {torch.__version__.partition('+')[0]}, Python {platform.python_version()}.",
        f"Seeds {', '.join(map(str, seeds))}.",
        "",
        "- **recall**: needs met (a fault named by an accepted kind, at an accepted layer, in time) of all needs;",
        "- **localisation**: needs met of those whose kind was reported anywhere, at any time;",
        "- **precision**: kinds reported rightly, of all kinds reported, per run;",
        "- **alarmed**: healthy runs, repaired twins included, about which anything was said.",
        "",
        "| cases | runs | recall | localisation | precision | healthy runs | alarmed |",
        "|---|---|---|---|---|---|---|",
    ]
    for split in [*splits, "all"] if len(splits) > 1 else splits:
        scores = [scored for _, scored, _ in results if split in (scored.split, "all")]
        lines.append(_row(split, score.summarise(scores)))
    if len(splits) > 1:
        lines += [
            "",
            "Thresholds were set on `dev`. `more`, later `blind` and later still `fresh` were written by people who had not seen the",
            "detectors, and rules were mended where they showed them wrong, so that their figures flatter a little too. A module that",
            "is not used before a warm-up is over cannot be told from one that was forgotten.",
        ]
    lines += ["", "## By kind of fault", "", "| kind | needs | met | late | misplaced | missed |", "|---|---|---|---|---|---|"]
    by_kind: dict[str, list[score.CaseScore]] = defaultdict(list)
    for _, scored, _ in results:
        by_kind[scored.kind].append(scored)
    for kind in faults.KINDS:
        scores = by_kind[kind]
        counts = [sum(getattr(scored, name) for scored in scores) for name in ("met", "late", "misplaced", "missed")]
        lines.append(f"| {kind} | {sum(counts)} | {' | '.join(map(str, counts))} |")
    lines += ["", "## What went wrong", ""]
    wrong = [line for seed, scored, found in results for line in _wrong(seed, scored, found)]
    lines += ["| case | seed | what | said |", "|---|---|---|---|", *wrong] if wrong else ["Nothing."]
    lines += ["", "## Every case", "", "| case | kind | said, with the first step (seed 0) |", "|---|---|---|"]
    lines += [f"| {scored.case} | {scored.kind} | {_said(found)} |" for seed, scored, found in results if seed == seeds[0]]
    return "\n".join(lines) + "\n"


def _row(name: str, summary: dict) -> str:
    rates = (summary["recall"], summary["localisation"], summary["precision"])
    shown = " | ".join(f"{rate:.3f}" for rate in rates)
    return f"| {name} | {summary['cases']} | {shown} | {summary['healthy']} | {summary['false_alarm_rate']:.1%} |"


def _wrong(seed: int, scored: score.CaseScore, found: list[score.Finding]) -> Iterable[str]:
    unmet = [name for name in ("late", "misplaced", "missed") if getattr(scored, name)]
    what = [*unmet, *(f"false alarm: {kind}" for kind in sorted(scored.false_kinds))]
    if what:
        yield f"| {scored.case} | {seed} | {', '.join(what)} | {_said(found)} |"


def _said(found: list[score.Finding]) -> str:
    return ", ".join(f"{item.kind} at {item.layer} ({item.step})" for item in found) or "–"


def main() -> None:
    """Runs the corpus and writes the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults.calibrate", description=__doc__)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--split", help="one part of the corpus only")
    parser.add_argument("--only", default="*", help="a pattern of case names")
    parser.add_argument("--out", type=Path, help="where to write the page; default: print it")
    arguments = parser.parse_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    names = [case.name for case in faults.cases(split=arguments.split, twins=True) if fnmatch.fnmatch(case.name, arguments.only)]
    text = page(evaluate(names, seeds), seeds)
    if arguments.out is None:
        print(text)
    else:
        arguments.out.write_text(text, encoding="utf-8")
        print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
