"""Problem and trace files are parsed once in a run, and again after they changed."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from howwhen.collect import problems, traces
from howwhen.errors import ProblemError
from howwhen.pipeline.plan import check_plan, problems_digest
from howwhen.pipeline.problems import draw_split, read_written
from howwhen.records import Split
from howwhen.settings import RunSettings, make_settings
from howwhen.zoo.pairs import find_pair

PAIR = find_pair("tally-rl")


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was parsed."""
    count: Counter[str] = Counter()

    def file_rows(path: Path, what: str) -> Iterator[tuple[int, Any]]:
        count[path.name] += 1
        return iter(real(path, what))

    real = problems.file_rows
    for module in (problems, traces):
        monkeypatch.setattr(module, "file_rows", file_rows)
    return count


def write(path: Path, count: int, field: str, text: str = "7") -> str:
    rows = [{"question": f"{path.stem}: {n} + 1?", field: text} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def ask_three_times(settings: RunSettings) -> list[str]:
    """What a run asks for: in its checks, in its first step, and for the step's key."""
    check_plan(PAIR, settings, ("collect",))
    read_written(settings.collect)
    problems_digest(PAIR, settings)
    return [problem.answer for problem in draw_split(PAIR, settings)]


def test_problem_files_are_parsed_once(tmp_path: Path, parsed: Counter[str]) -> None:
    train, test = (write(tmp_path / f"{name}.jsonl", 12, "answer") for name in ("train", "test"))
    settings = make_settings({"collect": {"problems": train, "test_problems": test}})
    assert ask_three_times(settings) == ask_three_times(settings) == ["7"] * 24
    assert parsed == {"train.jsonl": 1, "test.jsonl": 1}


def test_trace_files_are_parsed_once(tmp_path: Path, parsed: Counter[str]) -> None:
    path = write(tmp_path / "traces.jsonl", 12, "text")
    settings = make_settings({"collect": {"traces": (path,)}})
    ask_three_times(settings)
    assert parsed == {"traces.jsonl": 1}
    drawn = make_settings({"collect": {"traces": (path,), "limit": 8}})
    assert len(ask_three_times(drawn)) == 8
    assert parsed == {"traces.jsonl": 2}


def test_a_file_that_changes_is_parsed_again(tmp_path: Path, parsed: Counter[str]) -> None:
    path = tmp_path / "own.jsonl"
    settings = make_settings({"collect": {"problems": write(path, 12, "answer")}})
    assert ask_three_times(settings) == ["7"] * 12
    before = problems_digest(PAIR, settings)
    path.unlink()
    write(path, 12, "answer", "8")  # of the same size
    assert ask_three_times(settings) == ["8"] * 12
    assert parsed == {"own.jsonl": 2}
    assert problems_digest(PAIR, settings) != before


def test_callers_cannot_change_what_others_get(tmp_path: Path) -> None:
    path = write(tmp_path / "own.jsonl", 12, "answer")
    settings = make_settings({"collect": {"problems": path}})
    draw_split(PAIR, settings).clear()
    assert len(draw_split(PAIR, settings)) == 12


def numbered(path: Path, count: int) -> str:
    """A file of problems that no other file has."""
    lines = (
        json.dumps({"question": f"{path.stem} {n}?", "answer": "7", "id": f"{path.stem}-{n}"})
        for n in range(count)
    )
    path.write_text("\n".join(lines))
    return str(path)


def test_a_mix_is_all_its_sources_or_a_draw_of_them(tmp_path: Path) -> None:
    sources = (numbered(tmp_path / "a.jsonl", 30), f"{numbered(tmp_path / 'b.jsonl', 30)}[:10]")
    every = draw_split(PAIR, make_settings({"collect": {"problems": sources}}))
    assert Counter(problem.dataset for problem in every) == {"a": 30, "b": 10}
    limited = make_settings({"collect": {"problems": sources, "limit": 20}})
    some = draw_split(PAIR, limited)
    counts = Counter(problem.dataset for problem in some)
    assert counts.total() == 20
    assert counts["a"] > 5
    assert counts["b"] > 1
    assert some == draw_split(PAIR, limited)
    other = make_settings({"collect": {"problems": sources, "limit": 20, "seed": 1}})
    assert {one.id for one in draw_split(PAIR, other)} != {one.id for one in some}


def test_a_selection_set_of_its_own_leaves_all_others_for_training(tmp_path: Path) -> None:
    files = {name: numbered(tmp_path / f"{name}.jsonl", 9) for name in ("a", "b", "c")}
    named = {"problems": files["a"], "selection_problems": files["b"], "test_problems": files["c"]}
    settings = make_settings({"collect": named})
    split = {
        one: {problem.dataset for problem in draw_split(PAIR, settings) if problem.split is one}
        for one in Split
    }
    assert split == {Split.TRAIN: {"a"}, Split.SELECTION: {"b"}, Split.TEST: {"c"}}
    before = problems_digest(PAIR, settings)
    numbered(tmp_path / "b.jsonl", 8)
    assert problems_digest(PAIR, settings) != before
    both = make_settings({"collect": {**named, "selection_problems": files["a"]}})
    with pytest.raises(ProblemError, match="selection problem a-0 asks the same as training"):
        draw_split(PAIR, both)
    tested = make_settings({"collect": {**named, "selection_problems": files["c"]}})
    with pytest.raises(ProblemError, match="test problem c-0 asks the same as training problem"):
        draw_split(PAIR, tested)
    twice = make_settings({"collect": {**named, "problems": (files["a"], files["a"])}})
    with pytest.raises(ProblemError, match=r"a.jsonl has the id 'a-0' twice"):
        draw_split(PAIR, twice)
