"""What watching costs on a GPU: a language model of the size of GPT-2 (124M) in bf16, eager and compiled.

    python -m benchmarks.gpu

Without a CUDA device it says so, and ends well.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import gradwatch

TARGETS = {10: 1.005, 1: 1.05}
"""Cadence → the ratio that the project aims at."""

ROUNDS, STEPS, WARM_UP = 20, 10, 20
"""Turns of each training, steps of a turn (a whole cycle of the default cadence), and steps before the first that counts."""


class GPT2(nn.Module):
    """GPT-2 small: 12 pre-norm blocks of width 768, 12 heads, 1,024 tokens, a vocabulary of 50,257 that is tied to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(50_257, 768), nn.Embedding(1024, 768)
        block = nn.TransformerEncoderLayer(768, 12, 3072, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 12, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(768)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(1024))

    def forward(self, ids: Tensor) -> Tensor:
        """Token numbers (batch, 1024) → logits (batch, 1024, 50257)."""
        x = self.tokens(ids) + self.places.weight
        return self.norm(self.blocks(x, mask=self.mask, is_causal=True)) @ self.tokens.weight.T


class Training:
    """A training on one batch of random tokens by fused AdamW, watched or not.

    Args:
        every: The cadence of its watch; None: it is not watched.
        compiled: Whether the model is compiled.
        batch: Texts a step.
    """

    def __init__(self, every: int | None, *, compiled: bool, batch: int) -> None:
        torch.manual_seed(0)
        self.model = GPT2().cuda()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        text = torch.randint(50_257, (batch, 1025), device="cuda")
        self.x, self.y = text[:, :-1], text[:, 1:]
        if compiled:
            self.model.compile()
        self.logdir = tempfile.TemporaryDirectory()
        self.watch = every and gradwatch.watch(
            self.model, self.optimizer, every=every, logdir=self.logdir.name, on_finding=lambda _finding: None
        )

    def steps(self, number: int) -> float:
        """Trains for some steps; returns the milliseconds of one, from the device's clock."""
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        for _ in range(number):
            with torch.autocast("cuda", torch.bfloat16):
                loss = nn.functional.cross_entropy(self.model(self.x).flatten(0, 1), self.y.flatten())
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.watch:
                self.watch.loss(loss)
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / number


def measure(*, compiled: bool, batch: int) -> list[str]:
    """Trains without a watch and with one in turns; returns a row of the table for each cadence."""
    trainings = {every: Training(every, compiled=compiled, batch=batch) for every in (None, *TARGETS)}
    for training in trainings.values():
        training.steps(WARM_UP)
    times: dict[int | None, list[float]] = {every: [] for every in trainings}
    for _ in range(ROUNDS):
        for every, training in trainings.items():
            times[every].append(training.steps(STEPS))
    alone = statistics.median(times[None])
    rows = []
    for every, target in TARGETS.items():
        ratio = statistics.median(times[every]) / alone
        verdict = "reached" if ratio <= target else "not reached"
        rows.append(
            f"| {'compiled' if compiled else 'eager'} | {alone:.1f} ms | `every={every}` | {ratio:.4f} | {target} ({verdict}) |"
        )
        trainings[every].watch.close()
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Measures what watching costs on a GPU.")
    parser.add_argument("--batch", type=int, default=8, help="texts of 1,024 tokens a step (default: 8)")
    chosen = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("not measured: torch sees no CUDA device here")
        return 0
    print(f"{torch.cuda.get_device_name()}; torch {torch.__version__}, CUDA {torch.version.cuda}\n")
    print("| model | step without a watch | cadence | step time with a watch over without | target |\n|---|---|---|---|---|")
    for compiled in (False, True):
        print(*measure(compiled=compiled, batch=chosen.batch), sep="\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
