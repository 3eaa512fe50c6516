"""The notebook runs from top to bottom, and shows what it says it shows."""

from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

TOUR = Path(__file__).parents[1] / "examples" / "tour.ipynb"


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown_as(cell: Any, kind: str) -> str:
    """Everything that a cell shows in a format, such as `text/html`."""
    parts = [output.get("data", {}).get(kind, "") for output in cell.outputs]
    return "".join(parts)


def test_the_notebook_is_kept_without_outputs() -> None:
    notebook = nbformat.read(TOUR, as_version=4)
    nbformat.validate(notebook)
    assert [cell.source for cell in code_cells(notebook) if cell.outputs] == []
    assert [cell.source for cell in code_cells(notebook) if cell.execution_count] == []


@pytest.mark.slow
def test_the_notebook_runs_and_shows_the_run_an_answer_the_taxonomy_and_the_vectors(
    tmp_path: Path,
) -> None:
    notebook = nbformat.read(TOUR, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    cells = {cell.source.splitlines()[-1]: cell for cell in code_cells(notebook)}
    assert "gap recovered" in shown_as(cells["run"], "text/html")
    assert "6/6 present" in shown_as(cells[")"], "text/html")
    trace = cells['run.trace("hybrid", problem)']
    assert "steered with" in shown_as(trace, "text/html")
    assert shown_as(trace, "text/plain").startswith("<hybrid on ")
    assert "typical sentences" in shown_as(cells["run.taxonomy"], "text/html")
    assert "norm" in shown_as(cells["run.vectors"], "text/html")
    assert sorted(path.name for path in (tmp_path / "runs/tour/tables").iterdir()) == [
        "decisions.parquet", "grades.parquet", "ladder.parquet", "problems.parquet",
        "sentences.parquet", "tokens.parquet",
    ]  # fmt: skip
    errors = [
        output.text
        for cell in code_cells(notebook)
        for output in cell.outputs
        if output.output_type == "stream" and output.name == "stderr"
    ]
    assert [text for text in errors if "TqdmWarning" not in text] == []
