"""Are the labels true?  Runs every case (and every repaired twin) under the probe
of ``evidence`` and writes what was found to a JSON file.

    python -m benchmarks.faults --verify evidence.json [--seeds 0,1,2] [--only 'name*']

For a faulty case the run is cut at the step by which each need must have been
reported; the need counts as *evidenced* if at least one of its kinds is
measurable there, at the labelled layers, by the plain checks below.  For a
healthy case (and every twin) the run must make progress.
"""

from __future__ import annotations

import fnmatch
import json
import math
import sys
import warnings

import numpy as np

from . import cases
from .core import Case, matches
from .evidence import Trace, bare_seconds, trace

FIT = 0.75  # share of units / outputs that makes a layer dead / saturated


class _Enough(Exception):
    pass


def trace_until(case: Case, seed: int, steps: int) -> Trace:
    """Like ``trace`` but stops after ``steps`` steps."""
    built = case.build(seed)
    t = Trace(built.model)

    def on_step(step, loss):
        t.on_step(step, loss)
        if step + 1 >= steps:
            raise _Enough

    try:
        case.train(*built, on_step)
    except _Enough:
        pass
    finally:
        t.close()
    return t


def _at(d: dict, where) -> dict:
    return {k: v for k, v in d.items() if matches(k, where)}


def check(t: Trace, kind: str, where: tuple[str, ...], twin_ratio: float | None = None) -> tuple[bool, str]:
    """Is ``kind`` measurable at ``where`` in this (possibly cut) trace?  Returns (present, figure)."""
    if kind == "vanishing_gradient":
        g = {n: t.grad_median(n) for n in t.matrices()}
        g = {n: v for n, v in g.items() if math.isfinite(v)}
        cand = []
        if g and max(g.values()) > 0:
            cand += [(v / max(g.values()), "param " + n) for n, v in _at(g, where).items()]
        a = {m: t._med([x[-1] for x in per.values()]) for m, per in t.agrad.items()}
        a = {m: v for m, v in a.items() if math.isfinite(v)}
        if a and max(a.values()) > 0:
            cand += [(v / max(a.values()), "act " + m) for m, v in _at(a, where).items()]
        tr, tw = t.time_ratio()
        if math.isfinite(tr) and matches(tw, where):
            cand.append((tr, "time " + tw))
        if not cand:
            return False, "no gradient"
        v, w = min(cand)
        return v < 1e-3, f"gradient RMS ratio {v:.1e} ({w})"
    if kind == "exploding_gradient":
        best, who = 0.0, ""
        for n, per in t.pg.items():
            if not matches(n, where):
                continue
            v = [x for x in per.values() if x is not None]
            base = t._med(v[:5])
            top = max((x if math.isfinite(x) else float("inf") for x in v), default=0)
            if base and base > 0 and top / base > best:
                best, who = top / base, f"{n} over steps"
        d = t.act_depth_ratio()
        if math.isfinite(d) and d > best:
            best, who = d, "activation gradient first/last layer"
        tr, tw = t.time_ratio()
        if math.isfinite(tr) and tr > best:
            best, who = tr, "first/last time step " + tw
        return best > 30, f"gradient growth x{best:.1e} ({who})"
    if kind == "non_finite":
        nf = t.nonfinite
        return bool(nf and matches(nf[2], where)), f"first at {nf}"
    if kind == "dead_units":
        d = {**_at(t.dead(), where), **_at(t.rows_dead(), where)}
        d.update({k: v for k, v in _at(t.no_grad(), where).items() if v == 1.0})
        if not d:
            return False, "-"
        n = max(d, key=d.get)
        return d[n] >= FIT, f"dead share {d[n]:.2f} ({n})"
    if kind == "saturated":
        d = _at(t.saturated(), where)
        if not d:
            return False, "-"
        n = max(d, key=d.get)
        return d[n] >= FIT, f"saturated share {d[n]:.2f} ({n})"
    if kind == "zero_gradient":
        d = _at(t.no_grad(), where)
        d = d or {n: 1.0 for n, p in t.model.named_parameters() if not p.requires_grad and matches(n, where)}
        if not d:
            return False, "-"
        n = max(d, key=d.get)
        return d[n] >= 0.9, f"no gradient in {100 * d[n]:.0f} % of steps ({n})"
    if kind == "stale_gradient":
        # a gradient that contains its predecessors hardly turns from step to step and grows
        best = 0.0
        for n, per in t.pg.items():
            v = [x for x in per.values() if x]
            if len(v) > 30 and v[2]:
                best = max(best, t._med(v[20:30]) / t._med(v[:3]))
        return best > 4 and not t.loss_figures()["ratio"] < 0.05, f"gradient RMS x{best:.1f} from steps 0-2 to 20-29"
    if kind == "not_updated":
        still = [n for n, _ in t.model.named_parameters() if matches(n, where) and not t.pmoved[n]]
        hidden = t.hidden_leaves
        return bool(still), f"{len(still)} parameters never changed ({', '.join(still[:2])})" if still else f"- hidden {hidden}"
    if kind == "bad_scale":
        notes = []
        first = {m: max(list(v.values())[:3]) for m, v in t.act.items() if v and matches(m, where)}
        first = {m: v for m, v in first.items() if math.isfinite(v)}
        if first:
            hi, lo = max(first, key=first.get), min(first, key=first.get)
            if first[hi] > 20:
                notes.append(f"activation RMS {first[hi]:.1e} ({hi})")
            if first[lo] < 2e-3:
                notes.append(f"activation RMS {first[lo]:.1e} ({lo})")
        top = {m: max((x for x in v.values() if math.isfinite(x)), default=0.0) for m, v in t.act.items() if matches(m, where)}
        if not notes and top and max(top.values()) > 100:
            n = max(top, key=top.get)
            notes.append(f"activation RMS grows to {top[n]:.1e} ({n})")
        for n, p in t.model.named_parameters():
            if p.dim() >= 2 and p.shape[0] > 3 and matches(n, where):
                w = p.detach().float()
                rms = w.pow(2).mean().sqrt().item()
                if rms == 0:
                    notes.append(f"all zero ({n})")
                else:
                    kinds = len((w.flatten(1) / rms * 1e3).round().unique(dim=0))
                    if kinds <= max(1, w.shape[0] // 8):
                        notes.append(f"only {kinds} different rows of {w.shape[0]} ({n})")
        return bool(notes), "; ".join(notes[:2]) or "-"
    if kind == "update_ratio":
        hi, lo, who = 0.0, float("inf"), ""
        for n in t.pu:
            if t.model_param_dim(n) >= 2 and matches(n, where):
                v = [x for x in t.pu[n].values() if math.isfinite(x)]
                if v:
                    m = float(np.median(v))
                    hi, lo = max(hi, float(np.median(v[:10])), m), min(lo, m)
                    who = n
        for n in t.pu:
            if t.model_param_dim(n) < 2 and matches(n, where) and any("norm" in w for w in where):
                lo = min(lo, float(np.median(list(t.pu[n].values()))))
        return hi > 0.05 or lo < 2e-5, f"update ratio {lo:.1e}..{hi:.1e}"
    if kind == "loss_stagnant":
        r = t.loss_figures()["ratio"]
        ok = math.isfinite(r) and r > 0.85 and (twin_ratio is None or not math.isfinite(twin_ratio) or r > twin_ratio + 0.15)
        return ok, f"loss ratio {r:.2f} (twin {twin_ratio:.2f})" if twin_ratio is not None else f"loss ratio {r:.2f}"
    if kind == "loss_unstable":
        f = t.loss_figures()
        first, last = f["first"], f["last"]
        start = t.losses[0] if t.losses else float("nan")
        above = float(np.mean([x > 2 * start for x in t.losses])) if start > 0 else 0.0
        bad = (
            (f["max_over_first"] > 4)
            or above > 0.3
            or (f.get("last_over_best", 0) > 10 and f["ratio"] > 0.3)
            or (last < 10 * first < 0)
        )
        return bool(
            bad
        ), f"max/first {f['max_over_first']:.1e}, last/first {f['ratio']:.2g}, {100 * above:.0f} % of steps above 2x start"
    raise ValueError(kind)


def progress(case: Case, seed: int, t: Trace) -> tuple[bool, str]:
    """Does a healthy run train?"""
    if case.progress:
        label, f, way = case.progress
        before, after = f(case.build(seed).model), f(t.model)
        good = (
            after < 0.8 * before
            if way == "down" and before > 0
            else after < before - 0.1
            if way == "down"
            else after > before + 0.1
        )
        return good, f"{label}: {before:.3g} -> {after:.3g}"
    r = t.loss_figures()
    return bool(r["ratio"] < (case.loss_ratio or 0.8)), f"loss {r['first']:.3g} -> {r['last']:.3g} (x{r['ratio']:.2g})"


def _clean(o):
    if isinstance(o, dict):
        return {k: _clean(v) for k, v in o.items()}
    if isinstance(o, (list, tuple)):
        return [_clean(v) for v in o]
    if isinstance(o, (np.floating, float)):
        return float(f"{float(o):.4g}") if math.isfinite(o) else str(float(o))
    if isinstance(o, (np.bool_,)):
        return bool(o)
    return o


def verify(seeds=(0,), only: str = "*", out: str | None = None, split: str | None = None, log=sys.stderr) -> dict:
    report: dict = {}
    warnings.filterwarnings("ignore", message="All-NaN")
    next(cases()).run(lambda step, loss: None)  # warm up, so that the first timing is fair
    for case in cases(split=split):
        if not fnmatch.fnmatch(case.name, only):
            continue
        rec = {
            "split": case.split,
            "kind": case.kind,
            "source": case.source,
            "note": case.note,
            "tags": sorted(case.tags),
            "runs": [],
        }
        if not case.healthy:
            rec["needs"] = [{"kinds": sorted(n.kinds), "where": list(n.where), "by_step": n.by_step} for n in case.must]
            rec["may"] = sorted(case.may)
        rec["seconds_bare"] = round(bare_seconds(case), 2)
        bad = []
        for seed in seeds:
            run = {"seed": seed}
            if case.healthy:
                t = trace(case, seed)
                ok, fig = progress(case, seed, t)
                run.update(ok=ok, evidence=fig, summary=t.summary())
            else:
                tw = trace(case.twin(), seed)
                tok, tfig = progress(case.twin(), seed, tw)
                ratio = tw.loss_figures()["ratio"]
                needs = []
                for n in case.must:
                    t = trace_until(case, seed, n.by_step + 1)
                    found = {k: check(t, k, n.where, ratio) for k in sorted(n.kinds)}
                    if "needs_graph" in case.tags:
                        found["not_updated"] = (
                            True,
                            "layers absent from named_parameters(); loss x%.2f vs twin x%.2f" % (t.loss_figures()["ratio"], ratio),
                        )
                    needs.append(
                        {
                            "by": n.by_step,
                            "evidenced": any(v[0] for v in found.values()),
                            "kinds": {k: {"present": v[0], "figure": v[1]} for k, v in found.items()},
                        }
                    )
                full = trace(case, seed)
                run.update(
                    ok=all(n["evidenced"] for n in needs),
                    needs=needs,
                    summary=full.summary(),
                    twin={"ok": tok, "evidence": tfig, "summary": tw.summary()},
                )
                if not tok:
                    bad.append(f"twin s{seed}: {tfig}")
            if not run["ok"]:
                bad.append(f"s{seed}: " + (run.get("evidence") or json.dumps(_clean(run["needs"]))))
            rec["runs"].append(run)
        rec["label_ok"] = not bad
        report[case.name] = _clean(rec)
        fig = rec["runs"][0].get("evidence") or "; ".join(
            v["figure"] for n in rec["runs"][0]["needs"] for k, v in n["kinds"].items() if v["present"]
        )
        print(
            f"{'ok ' if not bad else 'BAD'} {case.split:7} {case.kind:18} {case.name:30} {rec['seconds_bare']:5.2f}s  {fig}"
            + ("".join("\n      " + b for b in bad)),
            file=log,
            flush=True,
        )
    if out:
        with open(out, "w") as f:
            json.dump(report, f, indent=1)
    return report
