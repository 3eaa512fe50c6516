"""Problems from JSONL files, and their split into disjoint sets."""

import gzip
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from howwhen.errors import ProblemError
from howwhen.records import Problem, Split
from howwhen.settings import CollectSettings


def read_problems(path: Path, limit: int | None = None) -> list[Problem]:
    """The first `limit` problems of a JSONL file, plain or gzipped.

    Each line is an object with `question` and `answer` (text or number), and optionally `id`.
    Other fields are ignored.

    Raises:
        ProblemError: the file is missing, empty or not JSONL, a line lacks a question or an
            answer, or an id occurs twice; the message names the line.
    """
    problems: list[Problem] = []
    for number, line in enumerate(_lines(path), start=1):
        if limit is not None and len(problems) == limit:
            break
        if line.strip():
            problems.append(_parse(path, number, line))
    if not problems:
        raise ProblemError(
            f"{path} holds no problems; expected one JSON object per line, such as "
            '{"id": "1", "question": "What is 2 + 2?", "answer": "4"}'
        )
    _refuse_repeated_ids(path, problems)
    return problems


def split_problems(problems: Sequence[Problem], settings: CollectSettings) -> list[Problem]:
    """Shuffle by `settings.seed` and mark each problem train, selection or test.

    Raises:
        ProblemError: too few problems for all three sets to have at least one.
    """
    shuffled = list(problems)
    Random(f"split-{settings.seed}").shuffle(shuffled)
    test = max(1, round(len(shuffled) * settings.test_fraction))
    selection = max(1, round(len(shuffled) * settings.selection_fraction))
    if len(shuffled) - test - selection < 2:
        raise ProblemError(
            f"{len(shuffled)} problems cannot be split into training, selection and test sets "
            f"({test} for test, {selection} for selection, at least 2 to train on); "
            "raise --collect.limit or give a longer file"
        )
    return [
        replace(problem, split=_split_at(index, test, selection))
        for index, problem in enumerate(shuffled)
    ]


def _split_at(index: int, test: int, selection: int) -> Split:
    if index < test:
        return Split.TEST
    return Split.SELECTION if index < test + selection else Split.TRAIN


def _lines(path: Path) -> list[str]:
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ProblemError(
            f"cannot read problems from {path}: {error}; expected a UTF-8 JSONL file"
        ) from error
    return text.split("\n")


def _parse(path: Path, number: int, line: str) -> Problem:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ProblemError(
            f"{path}, line {number} is not JSON ({error}); expected one object per line"
        ) from error
    question = _field(path, number, row, "question")
    answer = _field(path, number, row, "answer")
    identity = str(row.get("id", f"{path.name.split('.')[0]}-{number}"))
    return Problem(identity, question, answer)


def _field(path: Path, number: int, row: Any, name: str) -> str:
    value = row.get(name) if isinstance(row, dict) else None
    usable = isinstance(value, str | int | float) and not isinstance(value, bool)
    if not usable or not str(value).strip():
        raise ProblemError(
            f"{path}, line {number} is a problem without {name!r} (found {value!r}); every line "
            "needs a question and a gold answer, as text or a number. Fix or remove the line"
        )
    return str(value)


def _refuse_repeated_ids(path: Path, problems: Sequence[Problem]) -> None:
    seen: set[str] = set()
    for problem in problems:
        if problem.id in seen:
            raise ProblemError(f"{path} has the id {problem.id!r} twice; ids must differ")
        seen.add(problem.id)
