import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from howwhen import Pipeline, Reporter, find_pair, make_settings, open_run
from howwhen.errors import StoreError
from howwhen.records import LADDER, Grade
from howwhen.store import STEPS
from tests.killed_run import MOMENTS, SETTINGS

ROOT = Path(__file__).parents[1]


def run_until(folder: Path, moment: str) -> int:
    command = [sys.executable, "-m", "tests.killed_run", str(folder), moment]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of all six steps."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert run_until(folder, "never") == 0
    return folder


def test_a_run_killed_in_every_step_ends_with_the_same_files(
    finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    for moment in MOMENTS:
        assert run_until(folder, moment) == -signal.SIGKILL, moment
    assert run_until(folder, "never") == 0
    whole, resumed = contents(finished), contents(folder)
    assert whole.keys() == resumed.keys()
    assert [name for name in whole if whole[name] != resumed[name]] == []


def test_the_measurement_has_every_rung_and_adds_up(finished: Path) -> None:
    measurement = json.loads((finished / "5-measure" / "measurement.json").read_text())
    assert measurement["n"] == 12
    assert tuple(measurement["rungs"]) == LADDER
    for rung in measurement["rungs"].values():
        assert set(rung) >= {
            "accuracy", "accuracy_ci", "counts", "steered_fraction", "changed_fraction",
            "gap_recovered", "gap_recovered_ci",
        }  # fmt: skip
        assert sum(rung["counts"].values()) == 12
        assert set(rung["counts"]) == {grade.value for grade in Grade}


def test_the_scores_list_every_cell_and_choose_one(finished: Path) -> None:
    cells = json.loads((finished / "2-discover" / "scores.json").read_text())
    assert {(cell["layer"], cell["size"], cell["k"]) for cell in cells} == {
        (1, 4, 1), (1, 6, 1), (2, 4, 1), (2, 6, 1)
    }  # fmt: skip
    assert sum(cell["chosen"] for cell in cells) == 1
    assert all(0 <= cell["nmi"] <= 1 and 0 < cell["purity"] <= 1 for cell in cells)
    assert all(0 < cell["fvu"] < 1 for cell in cells)


def test_counts_kept_and_dropped_add_up(finished: Path) -> None:
    counts = {
        step: json.loads((finished / f"{i}-{step}" / "provenance.json").read_text())["counts"]
        for i, step in enumerate(STEPS, start=1)
    }
    assert sum(counts["collect"]["problems"].values()) == 30
    assert counts["collect"]["rollouts"] == 18
    discovered = counts["discover"]
    kept, short = discovered["sentences_kept"], discovered["sentences_too_short"]
    assert kept + short == discovered["sentences"] == counts["collect"]["sentences"]
    assert sum(counts["elicit"]["decisions_per_category"]) == counts["elicit"]["decisions"]


def test_the_report_shows_the_ladder(finished: Path) -> None:
    report = (finished / "6-present" / "report.md").read_text()
    for rung in LADDER:
        assert f"| {rung} |" in report
    assert "purity" in report


def _pipeline(folder: Path, changes: dict[str, object]) -> None:
    with open_run(folder) as run:
        settings = make_settings(SETTINGS, changes)
        Pipeline(find_pair("tally-rl"), settings, run, Reporter()).run()


def test_a_changed_setting_redoes_exactly_what_depends_on_it(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(finished), str(folder)], check=True)
    before = contents(folder)
    _pipeline(folder, {"measure": {"confidence": 0.5}})
    said = capsys.readouterr().err
    assert said.count("already done") == 4
    assert "5/6 measure: settings or input changed" in said
    assert "6/6 present: settings or input changed" in said
    after = contents(folder)
    assert all(after[name] == before[name] for name in before if name[0] in "1234")
    assert after["5-measure/measurement.json"] != before["5-measure/measurement.json"]


def test_a_damaged_step_stops_the_later_ones(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(finished), str(folder)], check=True)
    vectors = folder / "3-elicit" / "vectors.safetensors"
    vectors.write_bytes(vectors.read_bytes()[:-100])
    with pytest.raises(StoreError, match=r"vectors\.safetensors is damaged"):
        _pipeline(folder, {})


def test_a_step_without_its_input_names_the_command(tmp_path: Path) -> None:
    with open_run(tmp_path / "new") as run:
        pipeline = Pipeline(find_pair("tally-rl"), make_settings(SETTINGS), run, Reporter())
        with pytest.raises(StoreError, match="howwhen collect PAIR --out"):
            pipeline.do("discover")
    assert not (tmp_path / "new" / "2-discover").exists()
