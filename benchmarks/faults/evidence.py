"""Independent instrumentation: is the claimed symptom really there?

This is deliberately simple and shares nothing with any monitor under test: it
hooks every module that has no children, keeps one number per module, parameter
and step, and derives run-level figures from them.

``trace(case, seed)`` runs one case; ``Trace.summary()`` gives the figures used
to verify the labels and to compare healthy with sick runs.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict

import numpy as np
import torch
from torch import nn

from .core import Case, matches

RELU_LIKE = (nn.ReLU, nn.ReLU6)
WINDOW = 20  # steps over which a unit has to stay silent to count as dead


def _first_tensor(out):
    if torch.is_tensor(out):
        return out
    if isinstance(out, (tuple, list)) and out:
        return _first_tensor(out[0])
    if isinstance(out, dict) and out:
        return _first_tensor(next(iter(out.values())))
    return None


def saturation(module: nn.Module, out: torch.Tensor) -> float | None:
    """Share of outputs in the flat region of a squashing module, else None."""
    if isinstance(module, nn.Sigmoid):
        return ((out < 0.01) | (out > 0.99)).float().mean().item()
    if isinstance(module, nn.Tanh):
        return (out.abs() > 0.98).float().mean().item()
    if isinstance(module, nn.Softmax):
        return (out.amax(module.dim) > 0.99).float().mean().item()
    if isinstance(module, nn.Hardtanh) and not isinstance(module, nn.ReLU6):
        return ((out <= module.min_val) | (out >= module.max_val)).float().mean().item()
    return None


class Trace:
    """What one run did: per module, per parameter, per step."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.order: list[str] = []  # modules in order of first use
        self.act = defaultdict(dict)  # name -> {step: rms}
        self.absmax = defaultdict(dict)
        self.sat = defaultdict(dict)
        self.zeros = defaultdict(dict)
        self.agrad = defaultdict(lambda: defaultdict(list))  # name -> step -> [rms per call]
        self.alive: dict[str, list] = defaultdict(list)  # name -> [bool tensor per step]
        self.pg, self.pw, self.pu = defaultdict(dict), defaultdict(dict), defaultdict(dict)
        self.pmoved = defaultdict(bool)
        self.rowdead: dict[str, list] = defaultdict(list)
        self.losses: list[float] = []
        self.req_since: dict[str, int] = {}  # name -> first step with requires_grad
        self.gzero: dict[int, float] = {}  # step -> share of exactly zero gradient entries
        self.nonfinite: tuple | None = None  # (step, phase, name)
        self.step = 0
        self.seconds = 0.0
        self.hidden_leaves: int = 0
        self._prev = {n: p.detach().clone() for n, p in model.named_parameters()}
        self._handles = []
        for name, m in model.named_modules():
            if not any(m.children()):
                self._handles.append(m.register_forward_hook(self._hook(name or "model", m)))
        self._types = {n: type(m).__name__ for n, m in model.named_modules()}

    # ------------------------------------------------------------ hooks

    def _bad(self, phase: str, name: str) -> None:
        if self.nonfinite is None:
            self.nonfinite = (self.step, phase, name)

    def _hook(self, name: str, module: nn.Module):
        def hook(_m, _inp, out):
            t = _first_tensor(out)
            if t is None or not t.is_floating_point() or isinstance(module, nn.Identity):
                return
            if name not in self.act:
                self.order.append(name)
            d = t.detach()
            if not torch.isfinite(d).all():
                self._bad("forward", name)
            f = d.float()
            self.act[name][self.step] = f.pow(2).mean().sqrt().item()
            self.absmax[name][self.step] = f.abs().max().item()
            self.zeros[name][self.step] = (d == 0).float().mean().item()
            s = saturation(module, f)
            if s is not None:
                self.sat[name].setdefault(self.step, []).append(s)
            if isinstance(module, RELU_LIKE):
                dim = 1 if d.dim() == 4 else d.dim() - 1
                act = (d > 0).transpose(0, dim).flatten(1).any(1)
                if self.alive[name] and self.alive[name][-1][0] == self.step:
                    self.alive[name][-1][1].logical_or_(act)
                else:
                    self.alive[name].append([self.step, act])
            if t.requires_grad:
                step = self.step

                def grad(g):
                    if not torch.isfinite(g).all():
                        self._bad("backward", name)
                    self.agrad[name][step].append(g.detach().float().pow(2).mean().sqrt().item())

                t.register_hook(grad)

        return hook

    def on_step(self, step: int, loss: float | None) -> None:
        if loss is not None:
            if not math.isfinite(loss):
                self._bad("loss", "loss")
            self.losses.append(loss)
        zero = total = 0
        for n, p in self.model.named_parameters():
            g = p.grad
            if p.requires_grad:
                self.req_since.setdefault(n, step)
            if g is None:
                self.pg[n][step] = None
            else:
                gd = g.detach()
                gd = (gd.to_dense() if gd.is_sparse else gd).float()
                if not torch.isfinite(gd).all():
                    self._bad("grad", n)
                self.pg[n][step] = gd.pow(2).mean().sqrt().item()
                zero, total = zero + int((gd == 0).sum()), total + gd.numel()
                if gd.dim() >= 2:
                    self.rowdead[n].append((gd.flatten(1) != 0).any(1))
            w = p.detach()
            if not torch.isfinite(w).all():
                self._bad("weight", n)
            delta = (w.float() - self._prev[n].float()) if n in self._prev else torch.zeros(1)
            wr = w.float().pow(2).mean().sqrt().item()
            self.pw[n][step] = wr
            self.pu[n][step] = delta.pow(2).mean().sqrt().item() / (wr + 1e-12)
            if not torch.equal(w, self._prev.get(n, w)) or torch.isnan(w).any():
                self.pmoved[n] = True
            self._prev[n] = w.clone()
        self.gzero[step] = zero / total if total else 0.0
        self.step = step + 1

    def close(self) -> None:
        for h in self._handles:
            h.remove()

    # ---------------------------------------------------------- figures

    def matrices(self) -> list[str]:
        """Weight matrices and convolutions, without embeddings, in order of use."""
        pos = {m: i for i, m in enumerate(self.order)}
        names = [
            n
            for n, p in self.model.named_parameters()
            if p.dim() >= 2 and "Embedding" not in self._types.get(n.rsplit(".", 1)[0], "")
        ]
        return sorted(names, key=lambda n: pos.get(n.rsplit(".", 1)[0], 10**6))

    @staticmethod
    def _med(values) -> float:
        v = [x for x in values if x is not None and math.isfinite(x)]
        return float(np.median(v)) if v else float("nan")

    def grad_median(self, name: str, lo: int = 0, hi: int | None = None) -> float:
        return self._med([v for s, v in self.pg[name].items() if s >= lo and (hi is None or s < hi)])

    def depth_ratio(self) -> tuple[float, str]:
        """Smallest median weight-gradient RMS over matrices / largest, and where."""
        g = {n: self.grad_median(n) for n in self.matrices() if self._trained(n)}
        g = {n: v for n, v in g.items() if math.isfinite(v)}
        if len(g) < 2 or max(g.values()) == 0:
            return float("nan"), ""
        n = min(g, key=g.get)
        return g[n] / max(g.values()), n

    def _trained(self, n: str) -> bool:
        return any(v is not None for v in self.pg[n].values())

    def act_depth_ratio(self) -> float:
        """Activation-gradient RMS, first / last hidden module (by order of use), median over steps."""
        mods = [m for m in self.order if self.agrad.get(m) and self._types.get(m, "") not in ("Embedding", "Dropout")]
        if len(mods) < 3:
            return float("nan")
        first = self._med([v[-1] for v in self.agrad[mods[0]].values()])
        last = self._med([v[0] for v in self.agrad[mods[-1]].values()])
        return first / last if last else float("nan")

    def time_ratio(self) -> tuple[float, str]:
        """For a module called many times per step: earliest / latest call's gradient."""
        best, where = float("nan"), ""
        for m, per in self.agrad.items():
            r = [v[-1] / v[0] for v in per.values() if len(v) >= 8 and v[0] > 0]
            if r:
                x = float(np.median(r))
                if not math.isfinite(best) or abs(math.log10(max(x, 1e-30))) > abs(math.log10(max(best, 1e-30))):
                    best, where = x, m
        return best, where

    def dead(self) -> dict[str, float]:
        """ReLU modules: share of units silent over the last WINDOW steps."""
        out = {}
        for m, hist in self.alive.items():
            last = [a for s, a in hist if s >= self.step - WINDOW]
            shapes = {a.shape for a in last}
            if last and len(shapes) == 1:
                out[m] = 1 - torch.stack(last).any(0).float().mean().item()
        return out

    def rows_dead(self) -> dict[str, float]:
        """Weight matrices: share of rows whose gradient was exactly zero over the last WINDOW steps."""
        return {n: 1 - torch.stack(h[-WINDOW:]).any(0).float().mean().item() for n, h in self.rowdead.items()}

    def dead_at(self, step: int) -> dict[str, float]:
        out = {}
        for m, hist in self.alive.items():
            last = [a for s, a in hist if step - WINDOW < s <= step]
            if last and len({a.shape for a in last}) == 1:
                out[m] = 1 - torch.stack(last).any(0).float().mean().item()
        return out

    def saturated(self, last: int = 20) -> dict[str, float]:
        return {m: self._med([np.mean(v) for s, v in per.items() if s >= self.step - last]) for m, per in self.sat.items()}

    def no_grad(self) -> dict[str, float]:
        """Parameters that require grad: share of steps with gradient None or exactly zero."""
        req = {n for n, p in self.model.named_parameters() if p.requires_grad}
        return {n: float(np.mean([v is None or v == 0 for v in per.values()])) for n, per in self.pg.items() if n in req and per}

    def growth(self) -> tuple[float, str]:
        """Largest gradient RMS of a parameter / the median of its first five."""
        best, where = 0.0, ""
        for n, per in self.pg.items():
            v = [x for x in per.values() if x is not None]
            if len(v) < 6:
                continue
            base = self._med(v[:5])
            top = max((x if math.isfinite(x) else float("inf")) for x in v)
            if base > 0 and top / base > best:
                best, where = top / base, n
        return best, where

    def ratio(self) -> dict[str, float]:
        """Median update ratio of every matrix that was updated at all."""
        return {n: self._med(list(self.pu[n].values())[5:]) for n in self.pu if self.model_param_dim(n) >= 2}

    def model_param_dim(self, n: str) -> int:
        return dict(self.model.named_parameters())[n].dim() if n in dict(self.model.named_parameters()) else 0

    def loss_figures(self) -> dict[str, float]:
        l = np.array([x if math.isfinite(x) else np.nan for x in self.losses])
        if len(l) < 10 or np.isnan(l).all():
            return {
                "first": float("nan"),
                "last": float("nan"),
                "ratio": float("nan"),
                "max_over_first": float("nan"),
                "osc": float("nan"),
                "nan_share": 1.0,
            }
        k = max(3, len(l) // 10)
        first, last = np.nanmedian(l[:5]), np.nanmedian(l[-k:])
        best = np.minimum.accumulate(np.where(np.isnan(l), np.inf, l))
        ema, up = l[0], 0
        for x in l[1:]:
            if np.isfinite(x) and x > 2 * ema and ema > 0:
                up += 1
            ema = 0.8 * ema + 0.2 * x if np.isfinite(x) else ema
        return {
            "first": float(first),
            "last": float(last),
            "ratio": float(last / first) if first else float("nan"),
            "max_over_first": float(np.nanmax(l) / abs(first)) if first else float("nan"),
            "last_over_best": float(last / best[-1]) if best[-1] > 0 else float("nan"),
            "jumps": up,
            "nan_share": float(np.isnan(l).mean()),
        }

    def summary(self) -> dict:
        dr, dw = self.depth_ratio()
        gr, gw = self.growth()
        tr, tw = self.time_ratio()
        dead, rows, sat, ng = self.dead(), self.rows_dead(), self.saturated(), self.no_grad()
        rat = {k: v for k, v in self.ratio().items() if math.isfinite(v)}
        acts0 = {m: v[min(v)] for m, v in self.act.items() if v}
        moved = {n: self.pmoved[n] for n, p in self.model.named_parameters()}
        top = lambda d, k=3: dict(sorted(d.items(), key=lambda kv: -kv[1])[:k])
        low = lambda d, k=3: dict(sorted(d.items(), key=lambda kv: kv[1])[:k])
        return {
            "steps": self.step,
            "seconds": round(self.seconds, 3),
            "loss": self.loss_figures(),
            "depth_ratio": dr,
            "depth_where": dw,
            "act_depth_ratio": self.act_depth_ratio(),
            "time_ratio": tr,
            "time_where": tw,
            "grad_growth": gr,
            "growth_where": gw,
            "dead": top(dead),
            "rows_dead": top(rows),
            "saturated": top(sat),
            "no_grad": top({k: v for k, v in ng.items() if v > 0}, 6),
            "frozen": sorted(n for n, p in self.model.named_parameters() if not p.requires_grad)[:6],
            "unmoved": sorted(n for n, m in moved.items() if not m)[:6],
            "update_ratio_max": top(rat, 2),
            "update_ratio_min": low(rat, 2),
            "act_rms_start_max": top(acts0, 2),
            "act_rms_start_min": low(acts0, 2),
            "act_rms_max": max((x for v in self.act.values() for x in v.values() if math.isfinite(x)), default=float("nan")),
            "nonfinite": self.nonfinite,
        }


def trace(case: Case, seed: int = 0) -> Trace:
    """Run one case under the probe."""
    built = case.build(seed)
    t = Trace(built.model)
    t0 = time.perf_counter()
    try:
        case.train(*built, t.on_step)
    finally:
        t.close()
    t.seconds = time.perf_counter() - t0
    return t


def bare_seconds(case: Case, seed: int = 0) -> float:
    """Wall time of the program alone, without the probe."""
    t0 = time.perf_counter()
    case.run(lambda step, loss: None, seed)
    return time.perf_counter() - t0


def located(figures: dict[str, float], where: tuple[str, ...]) -> dict[str, float]:
    return {k: v for k, v in figures.items() if matches(k, where)}
