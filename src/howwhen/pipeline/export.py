"""A run's tables as files for other tools: Parquet, Arrow or CSV, one file per table.

A table is written batch by batch, so it need not fit in memory. A file appears whole or not at all.
"""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

from howwhen.errors import SettingsError
from howwhen.formats.files import cannot_write
from howwhen.pipeline.frames import RunTables, arrow_schema, load_pyarrow, to_batch
from howwhen.pipeline.reader import read_run
from howwhen.pipeline.rows import ROWS, Row, TableName

TableFormat = Literal["parquet", "arrow", "csv"]
TABLE_FORMATS: tuple[TableFormat, ...] = get_args(TableFormat)
FOLDER = "tables"
"""Folder of the files, in the run's folder, unless another one is given."""


def export_run(root: Path, to: str, out: Path | None = None) -> list[Path]:
    """Write every table of a run whose step is finished.

    Args:
        root: the run's folder.
        to: one of `TABLE_FORMATS`. CSV needs no extra package; the others need pyarrow.
        out: folder of the files, made if it is missing; `tables` in the run's folder by default.

    Returns:
        The files written, one per table.

    Raises:
        SettingsError: no such format.
        MissingExtraError: pyarrow is not installed.
        StoreError: there is no run, no step of it is finished, a file is damaged, or the folder
            cannot be written.
    """
    if to not in TABLE_FORMATS:
        raise SettingsError(f"cannot export to {to!r}; expected {', '.join(TABLE_FORMATS)}")
    if to != "csv":
        load_pyarrow()
    tables = RunTables(read_run(root))
    tables.run.finished("collect")
    folder = root / FOLDER if out is None else out
    return [_write_table(tables, name, to, folder / f"{name}.{to}") for name in tables.available()]


def _write_table(tables: RunTables, name: TableName, to: str, path: Path) -> Path:
    write = _write_csv if to == "csv" else _write_arrow
    with _whole_file(path) as partial:
        write(tables.batches(name), name, to, partial)
    return path


@contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` when the block ends well."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise cannot_write(path, error) from error


def _write_csv(batches: Iterator[list[Row]], name: TableName, _: str, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(ROWS[name].__annotations__)
        for rows in batches:
            writer.writerows(rows)


def _write_arrow(batches: Iterator[list[Row]], name: TableName, to: str, path: Path) -> None:
    pa, schema = load_pyarrow(), arrow_schema(name)
    with _open_writer(pa, to, path, schema) as writer:
        for rows in batches:
            writer.write_batch(to_batch(rows, schema))


def _open_writer(pa: Any, to: str, path: Path, schema: Any) -> Any:
    if to == "arrow":
        return pa.ipc.new_file(path, schema)
    import pyarrow.parquet

    return pyarrow.parquet.ParquetWriter(path, schema)
