"""CSV and Parquet: the tidy frame of ``History.to_pandas``, as records come or of a whole run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradwatch.errors import InvalidSetting, LogdirError
from gradwatch.history import History
from gradwatch.names import printable
from gradwatch.records import Finding, Record
from gradwatch.statistics import RATIOS, STATISTICS

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("step", "layer", "tensor", *STATISTICS, *RATIOS)

ROWS_PER_GROUP = 65_536
"""Rows of a Parquet row group. A group's description takes 3 kB, as much as 30 rows do: one a record would double the file."""

LONGEST_ROW = 2**16
"""Bytes at the end of a CSV file in which its last line break is looked for."""


class TableWriter:
    """Writes one row per step, layer and tensor that was seen, with the columns of ``History.to_pandas``.

    Numbers keep every bit; before version 3.1 pandas needs ``read_csv(..., float_precision="round_trip")`` to keep them too. A
    CSV file grows with every record, and one that exists is continued. A Parquet file can be read once the writer is closed.
    Control characters in a layer's name appear as their escapes, so that a row is a line.

    Args:
        path: Ends in ``.csv`` or ``.parquet``; its directory is made where it is missing.

    Raises:
        InvalidSetting: Another suffix, no pyarrow, a CSV file with other columns, or a Parquet file that exists, as it cannot
            be continued.
        LogdirError: The file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        with _writing(self._path):
            self._sink = _sink(self._path, fresh=False)

    def write(self, record: Record) -> None:
        """Appends the record's rows."""
        with _writing(self._path):
            self._sink.append(_frame(record))

    def report(self, finding: Finding) -> None:
        """Nothing: a table of statistics has no place for a finding."""

    def close(self) -> None:
        """Completes the file."""
        with _writing(self._path):
            self._sink.close()


def export(history: History, path: str | os.PathLike[str]) -> None:
    """Writes a whole history as a table; a file that exists is replaced.

    Args:
        history: As ``gradwatch.load`` returns it.
        path: Ends in ``.csv`` or ``.parquet``.

    Raises:
        InvalidSetting: Another suffix, or no pyarrow.
        LogdirError: The file cannot be written.
    """
    with _writing(Path(path)):
        sink = _sink(Path(path), fresh=True)
        try:
            for record in history:
                sink.append(_frame(record))
        finally:
            sink.close()


def _frame(record: Record) -> pd.DataFrame:
    history = History()
    history.append(record)
    frame: pd.DataFrame = history.to_pandas()[list(COLUMNS)]
    frame["layer"] = [printable(layer) for layer in frame["layer"]]
    return frame


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LogdirError(f"{str(path)!r} cannot be written: {error}; give a path that can") from error


def _sink(path: Path, *, fresh: bool) -> _Csv | _Parquet:
    kinds: dict[str, type[_Csv | _Parquet]] = {".csv": _Csv, ".parquet": _Parquet}
    if path.suffix.lower() not in kinds:
        raise InvalidSetting(f"{str(path)!r} must end in .csv or .parquet, and ends in {path.suffix!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return kinds[path.suffix.lower()](path, fresh=fresh)


class _Csv:
    HEADER = ",".join(COLUMNS) + "\n"

    def __init__(self, path: Path, *, fresh: bool) -> None:
        continued = not fresh and path.exists() and path.stat().st_size > 0
        if continued:
            self._check(path)
        if not continued:
            path.write_text(self.HEADER, encoding="utf-8")
        self._file = path.open("a", encoding="utf-8", newline="")

    def _check(self, path: Path) -> None:
        """Refuses a table of something else, and removes the row at which a killed run stopped."""
        with path.open("rb+") as file:
            if file.readline() != self.HEADER.encode():
                raise InvalidSetting(f"{str(path)!r} exists and has other columns; give another path")
            start = file.seek(max(file.seek(0, os.SEEK_END) - LONGEST_ROW, 0))
            file.truncate(start + file.read().rfind(b"\n") + 1)

    def append(self, frame: pd.DataFrame) -> None:
        frame.to_csv(self._file, header=False, index=False, lineterminator="\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _Parquet:
    def __init__(self, path: Path, *, fresh: bool) -> None:
        try:
            import pyarrow as pa
            from pyarrow import parquet
        except ImportError as error:
            raise InvalidSetting(f"{str(path)!r} needs pyarrow; install gradwatch[parquet], or give a .csv path") from error
        if path.exists() and not fresh:
            raise InvalidSetting(f"{str(path)!r} exists, and a Parquet file cannot be continued; give another path, or a .csv")
        types = {"step": pa.int64(), "layer": pa.string(), "tensor": pa.string()}
        self._schema = pa.schema([(name, types.get(name, pa.float64())) for name in COLUMNS])
        self._writer = parquet.ParquetWriter(path, self._schema)
        self._tables: list[Any] = []

    def append(self, frame: pd.DataFrame) -> None:
        import pyarrow as pa

        # NaN is a value here, which pandas' own conversion would store as a missing one.
        columns = [pa.array(frame[field.name].to_numpy(), field.type, from_pandas=False) for field in self._schema]
        self._tables.append(pa.Table.from_arrays(columns, schema=self._schema))
        if sum(len(table) for table in self._tables) >= ROWS_PER_GROUP:
            self._write()

    def close(self) -> None:
        try:
            self._write()
        finally:
            self._writer.close()

    def _write(self) -> None:
        import pyarrow as pa

        if self._tables:
            group, self._tables = pa.concat_tables(self._tables), []
            self._writer.write_table(group, row_group_size=len(group))
