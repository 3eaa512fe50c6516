"""smol's problems, which come with the package: SVAMP, split by story, and short ones of GSM8K.

SVAMP (Patel et al. 2021) varies about a hundred stories, and the split in common use has the same
stories on both sides. Here every story is on one side only: about two thirds of the problems are
for training, the rest for the test. Of GSM8K's training set (Cobbe et al. 2021) the problems with
one or two computations are taken. Sources and licences: `data/README.md`.
"""

import gzip
import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

from howwhen.records import Problem
from howwhen.zoo.smol.word_problems import WordProblem, read_prose, read_steps, stories

DATA = Path(__file__).parent / "data"
TEST_PROBLEMS = 320
"""Stories are put aside for the test until they hold this many problems."""


def smol_problems(count: int, seed: int) -> list[Problem]:
    """Up to `count` problems of the training stories, in an order drawn from `seed`."""
    return _draw(_svamp_rows()[0], count, seed)


def smol_test_problems(count: int, seed: int) -> list[Problem]:
    """Up to `count` problems of stories that nothing was trained on, drawn from `seed`."""
    return _draw(_svamp_rows()[1], count, seed)


def svamp_train() -> list[WordProblem]:
    """Problems of the training stories whose computations stay among the whole numbers."""
    return list(_with_steps(_svamp_rows()[0]))


def gsm8k_train() -> list[WordProblem]:
    """Short problems of GSM8K's training set whose last computation is the answer, with prose."""
    problems: list[WordProblem] = []
    for row in _read("gsm8k_train_short"):
        found = read_prose(row["solution"])
        if found is None:
            continue
        steps, prose = found
        answer = steps[-1].result
        if str(answer) == row["answer"]:
            problems.append(WordProblem(row["id"], row["question"], answer, steps, prose))
    return problems


@lru_cache
def _svamp_rows() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the training stories and of the test stories."""
    rows = _read("svamp")
    story = stories([row["question"] for row in rows])
    order = sorted(set(story))
    Random("smol-stories").shuffle(order)
    tested: set[int] = set()
    for one in order:
        if sum(number in tested for number in story) >= TEST_PROBLEMS:
            break
        tested.add(one)
    parts: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for row, number in zip(rows, story, strict=True):
        parts[number in tested].append(row)
    return parts


def _with_steps(rows: Sequence[dict[str, Any]]) -> Iterator[WordProblem]:
    for row in rows:
        steps = read_steps(row["equation"])
        if steps is not None and steps[-1].result == int(row["answer"]):
            yield WordProblem(row["id"], row["question"], steps[-1].result, steps)


def _draw(rows: Sequence[dict[str, Any]], count: int, seed: int) -> list[Problem]:
    drawn = list(rows)
    Random(f"smol-{seed}").shuffle(drawn)
    return [
        Problem(row["id"], row["question"], row["answer"], dataset="svamp") for row in drawn[:count]
    ]


def _read(name: str) -> list[dict[str, Any]]:
    raw = gzip.decompress((DATA / f"{name}.jsonl.gz").read_bytes())
    return [json.loads(line) for line in raw.decode().splitlines()]
