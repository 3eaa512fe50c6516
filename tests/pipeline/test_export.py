"""Exported files hold the tables, whatever the format."""

import csv
import hashlib
import sys
from pathlib import Path
from typing import Any

import pytest

import howwhen as hw
from howwhen.errors import MissingExtraError, SettingsError, StoreError
from howwhen.pipeline.export import TABLE_FORMATS, export_run
from howwhen.pipeline.frames import RunTables
from howwhen.pipeline.reader import read_run
from howwhen.pipeline.rows import ROWS, TABLE_NAMES
from tests.finished_run import make_run

pa = pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("export") / "run"
    make_run(root)
    return root


def read_back(path: Path) -> Any:
    if path.suffix == ".arrow":
        return pa.ipc.open_file(path).read_all()
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path)


@pytest.mark.parametrize("to", ["parquet", "arrow"])
def test_every_table_comes_back_as_it_is(run: Path, tmp_path: Path, to: str) -> None:
    paths = export_run(run, to, tmp_path)
    assert [path.name for path in paths] == [f"{name}.{to}" for name in TABLE_NAMES]
    tables = RunTables(read_run(run))
    for name, path in zip(TABLE_NAMES, paths, strict=True):
        assert read_back(path).equals(tables.arrow(name))


def test_csv_has_a_header_and_every_row_and_needs_no_package(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("pandas", "pyarrow"):
        monkeypatch.setitem(sys.modules, package, None)
    tables = RunTables(read_run(run))
    for name, path in zip(TABLE_NAMES, export_run(run, "csv", tmp_path), strict=True):
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = list(csv.reader(file))
        assert header == list(ROWS[name].__annotations__)
        expected = [row for batch in tables.batches(name) for row in batch]
        assert rows == [["" if cell is None else str(cell) for cell in row] for row in expected]


def test_files_go_into_the_run_unless_another_folder_is_given(tmp_path: Path) -> None:
    make_run(tmp_path / "run", "collect")
    paths = export_run(tmp_path / "run", "csv")
    assert paths == [
        tmp_path / "run" / "tables" / f"{name}.csv" for name in ("sentences", "problems")
    ]
    assert all(path.is_file() for path in paths)
    assert hw.load(tmp_path / "run").export("csv", tmp_path / "out") == [
        tmp_path / "out" / path.name for path in paths
    ]


def test_what_cannot_be_exported_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StoreError, match="there is no run in"):
        export_run(tmp_path / "nothing", "csv")
    make_run(tmp_path / "run", "discover")
    with pytest.raises(StoreError, match="the step collect .* is not finished"):
        export_run(tmp_path / "run", "csv")
    with pytest.raises(
        SettingsError, match="cannot export to 'xlsx'; expected parquet, arrow, csv"
    ):
        export_run(tmp_path / "run", "xlsx")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"howwhen\[frames\]"):
        export_run(tmp_path / "run", "parquet")


@pytest.mark.parametrize("to", TABLE_FORMATS)
def test_a_failure_leaves_no_half_a_file(tmp_path: Path, to: str) -> None:
    folder = make_run(tmp_path / "run")
    traces = folder.step("hybrid").path / "traces" / "thinking-0.jsonl"
    traces.write_bytes(traces.read_bytes()[:-40])
    provenance = folder.step("hybrid").read_object("provenance.json")
    content = hashlib.sha256(traces.read_bytes()).hexdigest()
    provenance["outputs"]["traces/thinking-0.jsonl"] = content  # damaged before it was finished
    folder.step("hybrid").write_json("provenance.json", provenance)
    with pytest.raises(StoreError, match="cannot read"):
        export_run(tmp_path / "run", to, tmp_path / "out")
    names = {path.stem for path in (tmp_path / "out").iterdir()}
    assert names == {"ladder", "grades"}


def test_a_folder_that_cannot_be_made_is_one_paragraph(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot write"):
        export_run(run, "csv", tmp_path / "file" / "out")
