"""smol's problems, which come with the package: SVAMP, split by story, and short GSM8K problems.

SVAMP (Patel et al. 2021) varies about a hundred stories, and its usual split has the same stories
on both sides. Here, questions that share four fifths of the shorter one's words are on the same
side. About two thirds of the problems are for training, the rest for the test. (The same story in
very different words can still be on both sides. `README.md` reports how often.) If a number in the
question or in a computation is over 99, all numbers are redrawn to be smaller. Problems without a
computation that leads to a whole number are left out, since smol is not about arithmetic. From
GSM8K's training set (Cobbe et al. 2021), the problems with one or two computations are used.
`data/README.md` lists sources and licences.
"""

import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

from howwhen.records import Problem
from howwhen.zoo.smol.word_problems import (
    WordProblem,
    is_small,
    read_prose,
    read_steps,
    stories,
    vary,
)

DATA = Path(__file__).parent / "data"
TEST_PROBLEMS = 320
"""Stories are reserved for the test until they hold this many problems."""


def smol_problems(count: int, seed: int) -> list[Problem]:
    """Up to `count` problems of the training stories, drawn with `seed`."""
    return _draw(_svamp()[0], count, seed)


def smol_test_problems(count: int, seed: int) -> list[Problem]:
    """Up to `count` problems of the test stories, drawn with `seed`."""
    return _draw(_svamp()[1], count, seed)


def svamp_train() -> list[WordProblem]:
    """All problems of the training stories."""
    return list(_svamp()[0])


def gsm8k_train() -> list[WordProblem]:
    """Short GSM8K training problems with their prose, whose last computation is the answer."""
    problems: list[WordProblem] = []
    for row in _read("gsm8k_train_short"):
        solution = read_prose(row["solution"])
        if solution is None:
            continue
        steps, prose = solution
        answer = steps[-1].result
        if str(answer) == row["answer"]:
            problems.append(WordProblem(row["id"], row["question"], answer, steps, prose))
    return problems


@lru_cache
def _svamp() -> tuple[Sequence[WordProblem], Sequence[WordProblem]]:
    """Problems of the training stories and of the test stories."""
    rows = _read("svamp")
    story_of_row = stories([row["question"] for row in rows])
    order = sorted(set(story_of_row))
    Random("smol-stories").shuffle(order)
    test_stories: set[int] = set()
    for story in order:
        if sum(number in test_stories for number in story_of_row) >= TEST_PROBLEMS:
            break
        test_stories.add(story)
    parts: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for row, story in zip(rows, story_of_row, strict=True):
        parts[story in test_stories].append(row)
    train, test = parts
    return tuple(_with_steps(train)), tuple(_with_steps(test))


def _with_steps(rows: Sequence[dict[str, Any]]) -> Iterator[WordProblem]:
    """Problems whose computations have whole results, with small numbers."""
    for row in rows:
        steps = read_steps(row["equation"])
        if steps is None or steps[-1].result != int(row["answer"]):
            continue
        problem = WordProblem(row["id"], row["question"], steps[-1].result, steps)
        if is_small(problem):
            yield problem
        elif varied := vary(problem, Random(f"smol-{problem.id}")):
            yield replace(varied, id=f"{problem.id}-redrawn")


def _draw(problems: Iterable[WordProblem], count: int, seed: int) -> list[Problem]:
    drawn = list(problems)
    Random(f"smol-{seed}").shuffle(drawn)
    return [
        Problem(problem.id, problem.question, str(problem.answer), dataset="svamp")
        for problem in drawn[:count]
    ]


def _read(name: str) -> list[dict[str, Any]]:
    raw = gzip.decompress((DATA / f"{name}.jsonl.gz").read_bytes())
    return [json.loads(line) for line in raw.decode().splitlines()]
