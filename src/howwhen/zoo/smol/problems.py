"""smol's problems, which come with the package: SVAMP, split by story, and short ones of GSM8K.

SVAMP (Patel et al. 2021) varies about a hundred stories, and the split in common use has the same
stories on both sides. Here questions that share four fifths of the shorter one's words are on one
side: about two thirds of the problems are for training, the rest for the test. (A story told in
very different words can still be on both; `README.md` says how often it is.) Problems with a
number over 99, told or computed, are asked with smaller ones, drawn anew, and such that tell no
way to a whole number are left out: reckoning is not what smol is about. Of GSM8K's training set
(Cobbe et al. 2021) the problems with one or two computations are taken. Sources and licences:
`data/README.md`.
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
"""Stories are put aside for the test until they hold this many problems."""


def smol_problems(count: int, seed: int) -> list[Problem]:
    """Up to `count` problems of the training stories, in an order drawn from `seed`."""
    return _draw(_svamp()[0], count, seed)


def smol_test_problems(count: int, seed: int) -> list[Problem]:
    """Up to `count` problems of the stories put aside for the test, drawn from `seed`."""
    return _draw(_svamp()[1], count, seed)


def svamp_train() -> list[WordProblem]:
    """Problems of the training stories."""
    return list(_svamp()[0])


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
def _svamp() -> tuple[Sequence[WordProblem], Sequence[WordProblem]]:
    """Problems of the training stories and of the test stories."""
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
    train, test = parts
    return tuple(_with_steps(train)), tuple(_with_steps(test))


def _with_steps(rows: Sequence[dict[str, Any]]) -> Iterator[WordProblem]:
    """Problems whose computations stay among the whole numbers, with small ones."""
    for row in rows:
        steps = read_steps(row["equation"])
        if steps is None or steps[-1].result != int(row["answer"]):
            continue
        told = WordProblem(row["id"], row["question"], steps[-1].result, steps)
        varied = told if is_small(told) else vary(told, Random(f"smol-{told.id}"))
        if varied is not None:
            yield varied if varied is told else replace(varied, id=f"{told.id}-redrawn")


def _draw(problems: Iterable[WordProblem], count: int, seed: int) -> list[Problem]:
    drawn = list(problems)
    Random(f"smol-{seed}").shuffle(drawn)
    return [
        Problem(one.id, one.question, str(one.answer), dataset="svamp") for one in drawn[:count]
    ]


def _read(name: str) -> list[dict[str, Any]]:
    raw = gzip.decompress((DATA / f"{name}.jsonl.gz").read_bytes())
    return [json.loads(line) for line in raw.decode().splitlines()]
