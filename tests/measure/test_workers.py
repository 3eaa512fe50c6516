"""Hostile answers end at the deadline, and the workers live on, whoever asks."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from howwhen.errors import HowwhenError
from howwhen.measure.grade import Item, grade_answers, open_grader
from howwhen.measure.workers import Workers
from howwhen.records import Finish, Grade

HANGING = "9^{9^{9^{9}}}"
ROOTS = ("2\\sqrt{2}", "\\sqrt{8}")


def test_a_question_past_its_deadline_is_no_verdict_and_the_next_one_is_answered() -> None:
    with Workers(1.0, 1) as pool:
        started = time.monotonic()
        pairs = [ROOTS, (HANGING, "\\sqrt{8}"), ROOTS, ("\\sqrt{7}", "\\sqrt{8}")]
        assert pool.ask(pairs[:1]) == ["same"]
        assert pool.ask(pairs) == ["same", "too long", "same", "different"]
        assert time.monotonic() - started < 60


def test_an_answer_that_comes_too_late_is_not_taken_for_the_next_one() -> None:
    with Workers(0.0005, 1) as pool:
        late = pool.ask([ROOTS] * 5)
        pool.deadline_seconds = 20.0
        assert pool.ask([("\\sqrt{7}", "\\sqrt{8}")]) == ["different"]
    assert set(late) <= {"too long", "same"}


def test_a_child_that_has_answered_enough_is_replaced() -> None:
    with Workers(20.0, 1, questions_per_child=3) as pool:
        pairs = [(f"\\sqrt{{{n}}}", f"\\sqrt{{{n}}}") for n in range(10)]
        assert pool.ask(pairs) == ["same"] * 10


def test_a_process_that_cannot_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with Workers(1.0, 1) as pool, pytest.raises(HowwhenError, match="grading process ended"):
        pool.ask([ROOTS])


HOSTILE = [
    "\\boxed{" * 200_000,
    "answer is " * 100_000,
    "#### " * 200_000,
    "$" * 10**6,
    "9" * 10**6,
    "The answer is " + "9" * 10**6,
    "\\boxed{" + "(" * 10**6,
    "\n" * 10**6,
    "Step 1\n" * 140_000,
    "wait hmm so " * 80_000,
    "1," * 500_000,
    "= 5 so " * 100_000,
    "answer to " * 100_000,
    "\nQuestion: the answer is 5" * 40_000,
    "</think>" * 100_000,
]


@pytest.mark.slow
@pytest.mark.parametrize("finish", [Finish.STOP, Finish.LENGTH])
def test_a_million_characters_are_read_in_seconds(finish: Finish) -> None:
    for text in HOSTILE:
        started = time.monotonic()
        grade_answers([Item(text, "12", "", finish)], deadline_seconds=1.0)
        assert time.monotonic() - started < 10, text[:20]


def test_hostile_answers_never_become_wrong() -> None:
    hard = [HANGING, "{" * 200, "\\frac{" * 30 + "1" + "}{2}" * 30, "(10^9)!"]
    items = [(f"\\boxed{{{answer}}}", "\\sqrt{8}", "") for answer in hard]
    grades = grade_answers([*items, ("\\boxed{2\\sqrt{2}}", "\\sqrt{8}", "")], deadline_seconds=1.0)
    assert set(grades[:-1]) <= {Grade.TIMED_OUT, Grade.NO_ANSWER}
    assert grades[-1] is Grade.CORRECT


def test_any_thread_may_grade_and_several_at_once() -> None:
    def grade(number: int) -> list[Grade]:
        root = f"\\boxed{{{number}\\sqrt{{2}}}}"
        return grade_answers(
            [(root, f"\\sqrt{{{2 * number**2}}}", ""), (root, "\\sqrt{3}", "")],
            deadline_seconds=30.0,
        )

    assert threading.current_thread() is threading.main_thread()
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(grade, range(2, 8))) == [[Grade.CORRECT, Grade.WRONG]] * 6


def test_one_grader_serves_many_threads_and_equal_answers_are_compared_once() -> None:
    with open_grader(30.0) as grader, ThreadPoolExecutor(4) as pool:
        items = [("\\boxed{2\\sqrt{2}}", "\\sqrt{8}", "")] * 50
        results = list(pool.map(lambda _: grader.grade(items), range(8)))
    assert all(graded.grade is Grade.CORRECT for result in results for graded in result)


PLAIN_NUMBERS = """
import random, time
from howwhen.measure.grade import grade_answers
rng = random.Random(0)
items = [
    (f"She counts and counts. In all she has {rng.randrange(9999)} pens.", "12", "gsm8k")
    for _ in range(3000)
]
started = time.process_time()
grade_answers(items)
print(len(items) / (time.process_time() - started))
"""


def test_plain_numbers_are_graded_fast() -> None:
    """In a process of its own, where types are not checked at run time."""
    command = [sys.executable, "-c", PLAIN_NUMBERS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) > 1000
