import json
from dataclasses import replace

import pytest

from howwhen.discover.judge_scores import JudgedScores
from howwhen.discover.report import GridRow, row_from_json, row_to_json
from howwhen.discover.validate import TruthScores
from tests.discover.pages import cell

JUDGED = JudgedScores(0.5, 0.25, 1.0, 0.6, None, 30, 2, 20, ())
TRUTH = {"behaviour": TruthScores(0.5, 0.75, 0.25, 8), "operation": TruthScores(0.1, 0.2, 0.3, 8)}


@pytest.mark.parametrize("row", [
    cell(1, 5, 0.3, chosen=True),
    GridRow(replace(cell(1, 5, 0.3).scores, metrics=None, method="kmeans"), False),
    GridRow(replace(cell(1, 5, 0.3).scores, judged=JUDGED, truth=TRUTH), True),
])  # fmt: skip
def test_rows_of_the_grid_survive_json(row: GridRow) -> None:
    flat = row_to_json(row)
    assert row_from_json(json.loads(json.dumps(flat))) == row
    assert (flat["score"], flat["chosen"]) == (0.3, row.is_chosen)
    if row.scores.judged:
        assert (flat["judged_score"], flat["nmi_operation"]) == (0.6, 0.1)
