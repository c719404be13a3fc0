"""python -m benchmarks.faults --list | --run NAME | --verify OUT.json"""

from __future__ import annotations

import argparse
import json
import time

import torch

from . import KINDS, cases, get


def main() -> None:
    ap = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    ap.add_argument("--list", action="store_true", help="list the cases")
    ap.add_argument("--split", choices=("dev", "more", "blind", "fresh"))
    ap.add_argument("--run", metavar="NAME", help="run one case (NAME~fixed for its repaired twin) and print its losses")
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--verify", metavar="OUT", help="check every label with the independent probe, write OUT (JSON)")
    ap.add_argument("--seeds", default="0", help="for --verify, e.g. 0,1,2")
    ap.add_argument("--only", default="*", help="for --verify, a name pattern")
    a = ap.parse_args()
    torch.set_num_threads(1)
    if a.run:
        case, losses = get(a.run), []
        t0 = time.perf_counter()
        case.run(lambda step, loss: losses.append(float("nan") if loss is None else loss), a.seed)
        print(f"{case.name}: {len(losses)} steps, {time.perf_counter() - t0:.2f} s")
        print(json.dumps([float(f"{x:.4g}") for x in losses[:: max(1, len(losses) // 20)]]))
    elif a.verify:
        from .verify import verify

        report = verify([int(s) for s in a.seeds.split(",")], a.only, a.verify, a.split)
        print(f"{sum(r['label_ok'] for r in report.values())} of {len(report)} labels confirmed")
    else:
        n = 0
        for c in cases(split=a.split):
            n += 1
            what = (
                ""
                if c.healthy
                else " + ".join("|".join(sorted(k.kinds)) + " @ " + " ".join(k.where) + f" by {k.by_step}" for k in c.must)
            )
            print(f"{c.split:8}{c.kind:20}{c.name:32}{what}")
        print(f"{n} cases; kinds: {', '.join(KINDS)}")


if __name__ == "__main__":
    main()
