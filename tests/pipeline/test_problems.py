"""Problem and trace files are parsed once in a run, and again after they changed."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from howwhen.collect import problems, traces
from howwhen.pipeline.plan import check_plan, problems_digest
from howwhen.pipeline.problems import draw_split, read_written
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
