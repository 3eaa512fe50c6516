"""The tables of a run hold what its records hold, no more and no less."""

import sys
from pathlib import Path

import pytest

from howwhen.errors import MissingExtraError, SettingsError, StoreError
from howwhen.pipeline.frames import RunTables, arrow_schema
from howwhen.pipeline.reader import read_run
from howwhen.pipeline.rows import ROWS, TABLE_NAMES
from howwhen.records import Grade
from tests.finished_run import (
    PROBLEMS,
    RIGHT,
    SEEDS,
    SENTENCES,
    TITLES,
    make_run,
    make_trace,
    traces_of,
)

pd = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> RunTables:
    root = tmp_path_factory.mktemp("frames") / "run"
    make_run(root)
    return RunTables(read_run(root))


def test_every_token_of_every_answer_has_a_row(tables: RunTables) -> None:
    tokens = tables.frame("tokens")
    expected = [
        (rung, trace.problem_id, trace.seed, position, token.id)
        for rung in SEEDS
        for trace in traces_of(rung)
        for position, token in enumerate(trace.tokens)
    ]
    columns = ["rung", "problem_id", "seed", "position", "id"]
    assert list(tokens[columns].itertuples(index=False, name=None)) == expected
    for _, answer in tokens.groupby(["rung", "problem_id", "seed"]):
        assert "".join(answer["text"]) == "".join(SENTENCES)


def test_what_does_not_apply_is_missing_and_no_number(tables: RunTables) -> None:
    tokens = tables.frame("tokens")
    base, taken = tokens[tokens["rung"] == "base"], tokens[tokens["rung"] == "takeover"]
    for column in ("thinking_id", "thinking_text", "thinking_log_prob", "category", "window"):
        assert base[column].isna().all(), column
    assert taken["is_decision"].sum() == 3
    assert taken[["category", "title", "coefficient", "window"]].isna().all().all()
    assert tokens["knocked_out"].isna().all()
    steered = tokens[tokens["category"].notna()]
    assert set(steered["rung"]) == {"hybrid", "random-vectors"}
    assert set(steered["title"]) == {TITLES[1]}
    assert set(steered["coefficient"]) == {2.5}
    assert steered["category"].dtype == pd.Int64Dtype()


def test_decisions_are_the_tokens_at_which_a_rung_intervened(tables: RunTables) -> None:
    tokens, decisions = tables.frame("tokens"), tables.frame("decisions")
    assert list(decisions.columns) == list(tokens.columns)
    assert len(decisions) == tokens["is_decision"].sum() == 3 * (1 + 2 + 1)
    assert decisions["is_changed"].all()


def test_the_ladder_is_the_measurement(tables: RunTables) -> None:
    ladder, measurement = tables.frame("ladder"), tables.run.measurement()
    assert list(ladder.index) == list(measurement.rungs)
    for name, rung in measurement.rungs.items():
        assert ladder.loc[name, "accuracy"] == rung.accuracy
        assert ladder.loc[name, "gap_recovered"] == rung.gap_recovered
        assert [ladder.loc[name, grade.value] for grade in Grade] == list(rung.counts.values())
    assert ladder.loc["random-vectors", "seeds"] == 2
    assert pd.isna(ladder.loc["hybrid", "p_value"])
    assert ladder.loc["takeover", "only_it_right"] == 1


def test_grades_have_a_row_for_every_answer(tables: RunTables) -> None:
    grades = tables.frame("grades")
    assert len(grades) == 3 * sum(map(len, SEEDS.values()))
    correct = grades[grades["flexible"] == "correct"]
    for rung, right in RIGHT.items():
        assert set(correct.loc[correct["rung"] == rung, "problem_id"]) == set(right)
    assert grades.loc[grades["flexible"] == "no_answer", ["answer", "rule"]].isna().all().all()


def test_sentences_have_their_categories_once_there_is_a_taxonomy(
    tables: RunTables, tmp_path: Path
) -> None:
    sentences = tables.frame("sentences")
    assert list(sentences["text"]) == [*SENTENCES] * 2
    assert list(sentences["title"]) == [TITLES[0], TITLES[1]] * 2
    assert list(sentences["runner_up"]) == [3, 2] * 2
    make_run(tmp_path / "run", "collect")
    bare = RunTables(read_run(tmp_path / "run")).frame("sentences")
    assert list(bare["text"]) == list(sentences["text"])
    assert bare[["category", "title", "strength", "runner_up"]].isna().all().all()


def test_problems_of_all_splits_are_listed(tables: RunTables) -> None:
    problems = tables.frame("problems")
    assert list(problems["problem_id"]) == [problem.id for problem in PROBLEMS]
    assert list(problems["split"]) == ["train"] * 2 + ["test"] * 3


@pytest.mark.parametrize("name", TABLE_NAMES)
def test_arrow_has_the_columns_of_the_rows_with_their_types(tables: RunTables, name: str) -> None:
    table = tables.arrow(name)
    assert table.column_names == list(ROWS[name].__annotations__)  # type: ignore[index]
    assert table.schema == arrow_schema(name)
    for column in table.schema:
        assert column.nullable or table[column.name].null_count == 0


def test_one_rung_is_the_same_rows_alone(tables: RunTables) -> None:
    for name in ("tokens", "decisions", "grades", "ladder"):
        rows = [row for batch in tables.batches(name) for row in batch]
        alone = [row for batch in tables.batches(name, "hybrid") for row in batch]
        assert alone == [row for row in rows if row[0] == "hybrid"]
        assert alone


def test_a_name_that_begins_another_is_not_taken_for_it(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", "collect", "elicit")
    step = folder.step("hybrid")
    step.write_json("passes.json", ["traces/base-0.jsonl", "traces/base-step-by-step-0.jsonl"])
    upstream = {name: folder.step(name).digest for name in ("collect", "discover", "elicit")}
    step.write_json("provenance.json", {"key": "k", "upstream": upstream, "outputs": {}})
    for rung in ("base", "base-step-by-step"):
        step.write_records(f"traces/{rung}-0.jsonl", [make_trace(rung, PROBLEMS[2])])
    [traces] = read_run(tmp_path / "run").passes("base")
    assert [trace.rung for trace in traces] == ["base"]


def test_what_is_not_there_is_refused_with_what_is(tables: RunTables, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no table 'token'; expected one of ladder, grades"):
        tables.batches("token")
    with pytest.raises(SettingsError, match="'self-gate' was not run .* hybrid, base, random-v"):
        tables.batches("tokens", "self-gate")
    with pytest.raises(SettingsError, match="the table problems has no rungs"):
        tables.batches("problems", "hybrid")
    make_run(tmp_path / "run", "collect")
    with pytest.raises(StoreError, match=r"step hybrid .* not finished; type `howwhen run tally"):
        RunTables(read_run(tmp_path / "run")).batches("tokens")


@pytest.mark.parametrize("package", ["pandas", "pyarrow"])
def test_a_missing_package_comes_with_what_to_type(
    tables: RunTables, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'howwhen\[frames\]'"):
        tables.frame("ladder")
