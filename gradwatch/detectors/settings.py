"""Thresholds of one's own: read from TOML, written to it, learnt from healthy runs."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path

from gradwatch.codec import load
from gradwatch.detectors.base import Detector, Judgement, judge, raise_error
from gradwatch.detectors.default import DEFAULT
from gradwatch.errors import InvalidSetting
from gradwatch.history import History
from gradwatch.records import Record

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MARGIN = 2
"""Steps by which a bound that had to give way is moved on, so that the next healthy run does not touch it."""

STEPS = 60
"""Steps after which a bound is not moved any further: with a factor of two no dimensionless bound is that far off."""


def read(path: str | PathLike[str], detectors: Sequence[Detector] = DEFAULT) -> tuple[Detector, ...]:
    """Detectors with the settings of a TOML file: a table for each class, a key for each setting that differs.

    Args:
        path: For example ``[VanishingGradient]`` and below it ``share = 1e-4``; ``enabled = false`` leaves a detector out.
        detectors: Whose settings are meant.

    Raises:
        InvalidSetting: The file is no TOML, or names a detector or a setting that there is not, or gives one of another type.
    """
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidSetting(f"{path}: {error}") from error
    known = {type(detector).__name__: detector for detector in detectors if isinstance(detector, Judgement)}
    for name, table in tables.items():
        if name not in known or not isinstance(table, dict):
            raise InvalidSetting(f"{path}: there is no detector {name!r}; there are {', '.join(known)}")
    configured: list[Detector] = []
    for detector in detectors:
        table = dict(tables.get(type(detector).__name__, {}))
        if table.pop("enabled", True):
            configured.append(_configure(detector, table, path) if table else detector)
    return tuple(configured)


def _configure(detector: Detector, table: dict[str, object], path: str | PathLike[str]) -> Detector:
    assert isinstance(detector, Judgement)
    name = type(detector).__name__
    types = {field.name: type(getattr(detector, field.name)) for field in dataclasses.fields(detector)}
    changes: dict[str, float] = {}
    for key, value in table.items():
        if key not in types:
            raise InvalidSetting(f"{path}: {name} has no setting {key!r}; it has {', '.join(types)}")
        if isinstance(value, bool) or not isinstance(value, int if types[key] is int else (int, float)):
            raise InvalidSetting(f"{path}: {name}.{key} = {value!r} is no {types[key].__name__}")
        changes[key] = types[key](value)
    return dataclasses.replace(detector, **changes)


def write(detectors: Iterable[Detector], path: str | PathLike[str]) -> None:
    """Writes the settings of detectors as TOML, for ``read``; plain functions have none."""
    tables = [_table(settings) for settings in detectors if isinstance(settings, Judgement)]
    Path(path).write_text("\n\n".join(tables) + "\n", encoding="utf-8")


def _table(detector: object) -> str:
    assert isinstance(detector, Judgement)
    settings = [f"{key} = {value!r}" for key, value in dataclasses.asdict(detector).items()]
    return "\n".join([f"[{type(detector).__name__}]", *settings])


def fit(
    runs: Iterable[str | PathLike[str] | History],
    detectors: Sequence[Detector] = DEFAULT,
    path: str | PathLike[str] | None = None,
) -> tuple[Detector, ...]:
    """Widens the bounds of detectors until they are silent about healthy runs, and a little further.

    Bounds are only ever widened: some healthy runs show where a bound is too narrow, but none shows that it is too wide.

    Args:
        runs: Healthy runs: log directories, event files or histories.
        detectors: Whose bounds to fit; those that have none (``NonFinite``) are returned as they are.
        path: Where to write the result as TOML, for ``gradwatch check RUN --config``; None: nowhere.

    Returns:
        The detectors, in their order.

    Raises:
        InvalidSetting: There is no run; or a detector speaks however wide its bounds are, so that a run was not healthy.
        RunError: A path holds no recorded run.
    """
    kept = [list(run if isinstance(run, History) else load(run)) for run in runs]
    if not kept:
        raise InvalidSetting("fit() needs at least one healthy run to learn from")
    fitted = tuple(_widen(detector, kept) for detector in detectors)
    if path is not None:
        write(fitted, path)
    return fitted


def _widen(detector: Detector, runs: list[list[Record]]) -> Detector:
    if not isinstance(detector, Judgement) or not _speaks(detector, runs):
        return detector
    for _ in range(STEPS if detector.WIDER else 0):
        detector = _step(detector)
        if not _speaks(detector, runs):
            for _ in range(MARGIN):
                detector = _step(detector)
            return detector
    name = type(detector).__name__
    raise InvalidSetting(f"{name} speaks about one of the runs however wide its bounds are: look at that run with gradwatch.check")


def _step(detector: Judgement) -> Judgement:
    changes: dict[str, float] = {}
    for setting, factor in detector.WIDER.items():
        now = getattr(detector, setting)
        # A share that may not pass 1 moves towards it by the same factor.
        changes[setting] = 1 - (1 - now) * factor if setting in detector.SHARES else now * factor
    return dataclasses.replace(detector, **changes)  # type: ignore[arg-type]  # the settings of a subclass


def _speaks(detector: Detector, runs: list[list[Record]]) -> bool:
    return any(judge(run, [detector], raise_error) for run in runs)
