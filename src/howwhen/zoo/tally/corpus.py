"""Tally's documents: what the base is trained on, and the solutions its distilled sibling copies.

The base's writer knows every mechanism but uses it at the wrong time. It concludes early, and it
skips the recall that a packs step needs and the check that a doubling needs. Without them, the
first computation of either is always wrong. The teacher never errs, but it opens and closes in
other words and uses mechanisms (counting packs by fives, doubling by adding) that the base's
documents do not contain.
"""

import re
from dataclasses import dataclass
from random import Random

from howwhen.zoo.tally.truth import (
    DOCUMENT_MIX,
    ITEMS,
    MAX_NUMBER,
    NAMES,
    PACK_SIZE,
    Operation,
    Step,
    TallyProblem,
    draw_problem,
)


@dataclass(frozen=True)
class Habits:
    """Habits of the base's writer. Every field is a probability."""

    restate: float = 0.9
    recall_packs: float = 0.2
    recall_idly: float = 0.03
    packs_counted_as_one: float = 1.0
    double_wrong: float = 1.0
    check_double: float = 0.2
    check_idly: float = 0.05
    backtrack_when_wrong: float = 0.9
    conclude_early: float = 0.55
    """Conclude after a result although steps remain, from the second result on."""


def base_solution(problem: TallyProblem, rng: Random, habits: Habits | None = None) -> str:
    """A solution by the base's writer: every mechanism, poorly timed."""
    habits = habits or Habits()
    sentences: list[str] = []
    if rng.random() < habits.restate:
        sentences.append(f"{problem.name} starts with {problem.start} {problem.items}.")
    total = problem.start
    for number, step in enumerate(problem.steps, start=1):
        sentences.append(f"Next, {problem.name} {step.phrase()}.")
        step_sentences, total = _base_step(step, total, rng, habits)
        sentences += step_sentences
        steps_remain = number < len(problem.steps)
        if number >= 2 and steps_remain and rng.random() < habits.conclude_early:
            break
    return " ".join([*sentences, f"So the answer is {total}."])


def teacher_solution(problem: TallyProblem) -> str:
    """A solution by the teacher of the distilled model: always right, in different words."""
    sentences = [f"Okay, {problem.name} starts with {problem.start} {problem.items}."]
    total = problem.start
    for step in problem.steps:
        sentences.append(f"Next, {problem.name} {step.phrase()}.")
        if step.operation is Operation.PACKS:
            counted = (str(PACK_SIZE * pack) for pack in range(1, step.amount + 1))
            sentences.append(f"Count packs: {', '.join(counted)}.")
        result = step.apply(total)
        doubled = step.operation is Operation.DOUBLE
        sentences.append(
            f"{total} plus {total} is {result}." if doubled else _computation(step, total, result)
        )
        total = result
    return " ".join([*sentences, f"Altogether, the answer is {total}."])


def draw_base_document(rng: Random) -> tuple[str, str]:
    """A problem's question and the base writer's solution, with all numbers from 0 to 99.

    A wrong total can make a later one negative or too large to be a token. Such a document is
    drawn again.
    """
    while True:
        problem = draw_problem(rng, DOCUMENT_MIX)
        solution = base_solution(problem, rng)
        numbers = (int(number) for number in re.findall(r"-?\d+", solution))
        if all(0 <= number <= MAX_NUMBER for number in numbers):
            return problem.question, solution


def draw_teacher_document(rng: Random) -> tuple[str, str]:
    """A problem's question and the teacher's solution."""
    problem = draw_problem(rng)
    return problem.question, teacher_solution(problem)


def vocabulary() -> list[str]:
    """All words of the documents: numbers first, then names, items, words and punctuation."""
    words = (
        "has gets more loses doubles them buys packs How many does have starts with Next "
        "Remember a pack holds plus minus is Twice Check half of right wrong Wait let me redo "
        "that So the answer Okay Count Altogether"
    )
    numbers = [str(number) for number in range(MAX_NUMBER + 1)]
    return [*numbers, *NAMES, *ITEMS, *words.split(), ".", ",", ":", "?"]


def _base_step(step: Step, total: int, rng: Random, habits: Habits) -> tuple[list[str], int]:
    """The sentences after the focus, and the total they reach."""
    if step.operation is Operation.PACKS:
        return _base_packs(step, total, rng, habits)
    sentences: list[str] = []
    if rng.random() < habits.recall_idly:
        sentences.append(f"Remember, a pack holds {PACK_SIZE}.")
    is_double = step.operation is Operation.DOUBLE
    is_wrong = is_double and rng.random() < habits.double_wrong
    result = step.misapply(total) if is_wrong else step.apply(total)
    sentences.append(_computation(step, total, result))
    if rng.random() >= (habits.check_double if is_double else habits.check_idly):
        return sentences, result
    sentences.append(_check(step, total, result))
    if result != step.apply(total) and rng.random() < habits.backtrack_when_wrong:
        result = step.apply(total)
        sentences += ["Wait, let me redo that.", _computation(step, total, result)]
    return sentences, result


def _base_packs(step: Step, total: int, rng: Random, habits: Habits) -> tuple[list[str], int]:
    recalled = rng.random() < habits.recall_packs
    counted_as_one = not recalled and rng.random() < habits.packs_counted_as_one
    result = step.misapply(total) if counted_as_one else step.apply(total)
    sentences = [f"Remember, a pack holds {PACK_SIZE}."] if recalled else []
    return [*sentences, _computation(step, total, result)], result


def _computation(step: Step, total: int, result: int) -> str:
    if step.operation is Operation.DOUBLE:
        return f"Twice {total} is {result}."
    if step.operation is Operation.LOSE:
        return f"{total} minus {step.amount} is {result}."
    return f"{total} plus {result - total} is {result}."


def _check(step: Step, total: int, result: int) -> str:
    verdict = "right" if result == step.apply(total) else "wrong"
    if step.operation is Operation.DOUBLE:
        return f"Check: half of {result} is {result // 2}, {verdict}."
    if step.operation is Operation.LOSE:
        return f"Check: {result} plus {step.amount} is {total}, {verdict}."
    return f"Check: {result} minus {step.amount} is {total}, {verdict}."
