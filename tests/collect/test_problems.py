import gzip
from pathlib import Path

import pytest

from howwhen.collect.problems import read_problems, split_problems
from howwhen.errors import ProblemError
from howwhen.records import Problem, Split
from howwhen.settings import CollectSettings
from tests.conftest import DATA, needs_data

GOOD = '{"id": "a", "question": "What is 2 + 2?", "answer": "4"}\n'
BAD = [
    ("", "holds no problems"),
    ("\n\n", "holds no problems"),
    ("not json\n", "line 1 is not JSON"),
    (GOOD + '{"question": "Q?"}\n', "line 2 is a problem without 'answer'"),
    (GOOD + '{"question": "Q?", "answer": null}\n', "line 2 is a problem without 'answer'"),
    (GOOD + '{"question": "Q?", "answer": ""}\n', "line 2 is a problem without 'answer'"),
    ('{"question": "  ", "answer": 3}\n', "line 1 is a problem without 'question'"),
    ("[1, 2]\n", "line 1 is a problem without 'question'"),
    (GOOD + GOOD, "id 'a' twice"),
]


@pytest.mark.parametrize(("content", "message"), BAD)
def test_bad_files_are_refused_with_the_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(content)
    with pytest.raises(ProblemError, match=message):
        read_problems(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match="cannot read problems"):
        read_problems(tmp_path / "none.jsonl")


def test_a_broken_gzip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl.gz"
    path.write_bytes(gzip.compress(GOOD.encode())[:-9])
    with pytest.raises(ProblemError, match="cannot read problems"):
        read_problems(path)


def test_numbers_and_missing_ids_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"question": "Q?", "answer": 3}\n\n{"question": "R?", "answer": 0.5}\n')
    assert read_problems(path) == [Problem("own-1", "Q?", "3"), Problem("own-3", "R?", "0.5")]


@needs_data
@pytest.mark.parametrize(
    ("file", "rows"),
    [("gsm8k_test.jsonl", 1319), ("gsm8k_train.jsonl.gz", 7473), ("math500.jsonl", 500)],
)
def test_published_files_are_read_whole(file: str, rows: int) -> None:
    assert len(read_problems(DATA / file)) == rows
    assert len(read_problems(DATA / file, limit=8)) == 8


def _problems(count: int) -> list[Problem]:
    return [Problem(str(number), f"Q{number}?", "1") for number in range(count)]


def test_splits_are_disjoint_and_lose_nothing() -> None:
    split = split_problems(_problems(100), CollectSettings())
    assert sorted(int(problem.id) for problem in split) == list(range(100))
    counts = {one: sum(problem.split is one for problem in split) for one in Split}
    assert counts == {Split.TEST: 40, Split.SELECTION: 10, Split.TRAIN: 50}


def test_the_split_depends_on_the_seed_only() -> None:
    first, again, other = (
        split_problems(_problems(50), CollectSettings(seed=seed)) for seed in (0, 0, 1)
    )
    assert first == again != other


def test_too_few_problems_are_refused() -> None:
    with pytest.raises(ProblemError, match="3 problems cannot be split"):
        split_problems(_problems(3), CollectSettings())
