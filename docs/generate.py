"""Writes the generated parts of ``docs/``.

The pages of ``docs/detectors/`` and their pictures come from the detectors, the modes of ``docs/semantics.md`` from their tests.

python docs/generate.py
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import math
import re
import sys
from pathlib import Path
from types import ModuleType

from gradwatch import KINDS
from gradwatch.detectors import DEFAULT, Example, Judgement
from gradwatch.testing import judge

DOCS = Path(__file__).parent
HEADER = "<!-- Written by `make docs` from the detector's own file; do not edit. -->\n"


def detectors_of(kind: str) -> list[Judgement]:
    """The detectors that yield a kind, as their sick examples show."""
    return [
        detector
        for detector in DEFAULT
        if isinstance(detector, Judgement)
        and any(
            finding.kind == kind
            for title, example in detector.EXAMPLES.items()
            if title.startswith("sick")
            for finding in judge(example, detector)
        )
    ]


def pages() -> dict[str, str]:
    """File name → text, of every page."""
    texts = {f"{kind}.md": page(kind) for kind in KINDS}
    rows = [f"| [{kind}]({kind}.md) | {_first_sentence(_module(detectors_of(kind)[0]).__doc__ or '')} |" for kind in KINDS]
    texts["index.md"] = "\n".join(
        [
            HEADER,
            "# What gradwatch finds",
            "",
            "| kind | what it means |",
            "|---|---|",
            *rows,
            "",
            "How right the verdicts are is measured in [calibration](../calibration.md).",
            "How to write a detector of your own stands on the [API page](../api.md).",
            "",
        ]
    )
    return texts


def page(kind: str) -> str:
    """The page of a kind."""
    detectors = detectors_of(kind)
    module = _module(detectors[0])
    lines = [HEADER, f"# {kind}", "", _prose(module.__doc__ or ""), ""]
    for detector in detectors:
        lines += _settings(detector)
    lines += [
        "## Pictures",
        "",
        "Synthetic runs, from the detector's file: healthy ones stay silent, sick ones are found. Triangles at the lower edge are",
        "gradients of zero or none, at the upper one values that are not finite; shaded is what was found.",
        "",
    ]
    for detector in detectors:
        name = type(detector).__name__
        lines += [f"![{name}: its examples](../images/detectors/{name}.png)", ""]
        for title, example in detector.EXAMPLES.items():
            found = judge(example, detector)
            said = f"step {found[0].first_step}: {found[0].message}" if found else "nothing is said"
            lines.append(f"- {title}: {said}.")
        lines.append("")
    lines += ["## What to try", "", *(f"- {advice}" for advice in _advice(module)), ""]
    return "\n".join(lines)


def _module(detector: Judgement) -> ModuleType:
    return sys.modules[type(detector).__module__]


def _prose(text: str) -> str:
    return re.sub(r"``(.+?)``", r"`\1`", inspect.cleandoc(text))


def _first_sentence(text: str) -> str:
    return _prose(text).split("\n\n")[0].replace("\n", " ")


def _settings(detector: Judgement) -> list[str]:
    summary, _, attributes = _prose(type(detector).__doc__ or "").partition("\n\nAttributes:\n")
    described = dict(re.findall(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", attributes, re.MULTILINE))
    general = dict(re.findall(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", _prose(Judgement.__doc__ or ""), re.MULTILINE))
    rows = [
        f"| `{field.name}` | {getattr(detector, field.name)!r} | {_one_line(described.get(field.name) or general[field.name])} |"
        for field in dataclasses.fields(detector)
    ]
    return [
        f"## {type(detector).__name__}",
        "",
        summary,
        "",
        "| setting | default | meaning and evidence |",
        "|---|---|---|",
        *rows,
        "",
    ]


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", r"\|")


def _advice(module: ModuleType) -> list[str]:
    """The texts in capitals of a detector's file: its remedies."""
    texts: list[str] = []
    for name, value in vars(module).items():
        if name.isupper() and isinstance(value, str):
            texts.append(value)
        elif name == "ADVICE" and isinstance(value, dict):
            texts += [f"**{key}**: {text}" for key, text in value.items()]
    return texts


def draw(detector: Judgement, path: Path) -> None:
    """Draws a detector's examples, three in a row: rms of each tensor, shares, and the loss, against steps."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    count = len(detector.EXAMPLES)
    columns, rows = min(3, count), -(-count // 3)
    figure, axes = pyplot.subplots(rows, columns, figsize=(4 * columns, 2.8 * rows), squeeze=False, dpi=110)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    for axis, (title, example) in zip(axes.flat, detector.EXAMPLES.items(), strict=False):
        _plot(axis, example)
        axis.set_title(title, fontsize=9, color="#b2182b" if title.startswith("sick") else "#1b7837")
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=7)
        for finding in judge(example, detector):
            axis.axvspan(finding.first_step - 0.5, finding.last_step + 0.5, color="#b2182b", alpha=0.08, linewidth=0)
        axis.legend(fontsize=6, frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Software": None})
    pyplot.close(figure)


def _plot(axis, example: Example) -> None:  # noqa: ANN001  # matplotlib is imported where it is used
    """Zero and missing values stand as triangles at the lower edge, NaN and infinity at the upper one."""
    lines = list(example.rms.items())
    shown = lines if len(lines) <= 4 else [lines[0], lines[len(lines) // 2], lines[-1]]
    edge = axis.get_xaxis_transform()
    finite = []
    for number, ((layer, tensor), values) in enumerate(shown):
        seen = [float("nan") if not value or value == float("inf") else value for value in values]
        (line,) = axis.plot(seen, label=f"{layer} {tensor} rms", linewidth=1.2, marker=".", markersize=3)
        finite += [value for value in seen if math.isfinite(value)]
        low = [step for step, value in enumerate(values) if not value]
        high = [step for step, value in enumerate(values) if value and value in (float("inf"), float("nan"))]
        axis.plot(low, [0.03 + 0.05 * number] * len(low), "v", color=line.get_color(), markersize=3, transform=edge)
        axis.plot(high, [0.97 - 0.05 * number] * len(high), "^", color=line.get_color(), markersize=5, transform=edge)
    for (layer, column), shares in example.shares.items():
        axis.plot(shares, label=f"{layer} {column} share", linewidth=1.2, linestyle="--")
    if example.losses:
        axis.plot(example.losses, label="loss", linewidth=1.2, color="#555555", linestyle=":")
    if finite and max(finite) > 20 * min(finite) and all(loss > 0 for loss in example.losses):
        axis.set_yscale("log")


def with_modes(text: str) -> str:
    """``docs/semantics.md`` with the table of modes that the tests make."""
    if "registry" not in sys.modules:
        spec = importlib.util.spec_from_file_location("registry", DOCS.parent / "tests" / "modes" / "registry.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules["registry"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["registry"])
    before, begin, rest = text.partition("<!-- modes: written by `make docs` from tests/modes; do not edit -->\n")
    _, end, after = rest.partition("<!-- end of modes -->")
    assert begin, "the marks of the table are gone"
    assert end, "the marks of the table are gone"
    return f"{before}{begin}\n{sys.modules['registry'].table()}\n{end}{after}"


def main() -> None:
    """Writes every page and every picture."""
    semantics = DOCS / "semantics.md"
    semantics.write_text(with_modes(semantics.read_text(encoding="utf-8")), encoding="utf-8")
    folder, images = DOCS / "detectors", DOCS / "images" / "detectors"
    for path in (folder, images):
        path.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")
    for detector in DEFAULT:
        if isinstance(detector, Judgement):
            draw(detector, images / f"{type(detector).__name__}.png")
    print(f"wrote {folder}, {images} and {semantics}")


if __name__ == "__main__":
    main()
