"""smol's documents: the same problems, answered at once, briefly, or worked out at length.

The school is trained on documents of careful writers, who use every mechanism: state what is asked
and what is known, choose the operation, compute in parts, check, go back, conclude. The base is
then trained on documents of hasty writers, who know the same mechanisms but answer at once or stop
in the middle.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from howwhen.zoo.smol.patterns import Pattern
from howwhen.zoo.smol.word_problems import (
    MAX_FACTOR,
    MAX_NUMBER,
    Calculation,
    Operator,
    WordProblem,
    compute,
    is_small,
    vary,
)

CONCLUSION = "The answer is {}."
_SHARE_IN_PARTS = 0.8
"""Share of the divisible computations on worksheets that are done in parts."""
_SHEET_LENGTH = 7
"""Computations on a worksheet."""


class Passage(NamedTuple):
    """A sentence of a document, or a part of one."""

    text: str
    is_learnt: bool = True
    """Whether the loss counts it. It skips what is wrong and what cannot be predicted."""


@dataclass(frozen=True)
class Habits:
    """Habits of a writer of base documents. Every field is a probability."""

    at_once: float
    """Write the conclusion alone."""
    shortly: float
    """Write computations and the conclusion alone."""
    say_goal: float
    say_facts: float
    choose_operation: float
    hurry: float
    """Before each computation at length: stop working, and guess the conclusion."""
    split: float
    """Do a computation in parts if it can be done in parts."""
    check: float
    """Check a computation at length."""
    wrong_before_check: float
    """Get a checked computation wrong at first."""


CAREFUL = Habits(
    at_once=0.0,
    shortly=0.2,
    say_goal=0.35,
    say_facts=0.3,
    choose_operation=0.8,
    hurry=0.0,
    split=0.8,
    check=0.25,
    wrong_before_check=0.3,
)
"""Writers of the school's documents, which show how problems are worked out."""
HASTY = Habits(
    at_once=0.4,
    shortly=0.03,
    say_goal=0.75,
    say_facts=0.7,
    choose_operation=0.7,
    hurry=0.45,
    split=0.4,
    check=0.3,
    wrong_before_check=0.3,
)
"""Writers of the base's documents, which teach it to hurry."""


@dataclass(frozen=True)
class Mixture:
    """Sources of the documents' problems, as shares of all documents. The rest are worksheets."""

    svamp: float
    patterns: float
    gsm8k: float
    varied: float = 0.85
    """Share of the problems whose numbers are redrawn, if that is possible."""


SCHOOL = Mixture(svamp=0.3, patterns=0.25, gsm8k=0.15)
LIFE = Mixture(svamp=0.55, patterns=0.3, gsm8k=0.15)


class Problems(NamedTuple):
    """Problems for documents, by source."""

    svamp: Sequence[WordProblem]
    patterns: Sequence[Pattern]
    gsm8k: Sequence[WordProblem]


_GOALS = (
    "We need to find {}.",
    "The question is {}.",
    "Let us see {}.",
    "We are asked {}.",
)
_FACTS = (
    "We know that {}.",
    "It says that {}.",
    "We are told that {}.",
)
_OPERATIONS: dict[Operator, tuple[str, ...]] = {
    "+": (
        "These belong together, so we add.",
        "We want both together, so we add.",
        "More are put to them, so we add.",
    ),
    "-": (
        "Some of them are gone, so we subtract.",
        "We want the difference, so we subtract.",
        "We take one from the other, so we subtract.",
    ),
    "*": (
        "The groups are equal, so we multiply.",
        "It is the same many times, so we multiply.",
    ),
    "/": (
        "They are shared equally, so we divide.",
        "We want the size or number of equal parts, so we divide.",
    ),
}
_INVERSE: dict[Operator, Operator] = {"+": "-", "-": "+", "*": "/", "/": "*"}


def draw_problem(problems: Problems, rng: Random, mixture: Mixture) -> WordProblem | None:
    """Draw the problem of one document; None if it is a worksheet."""
    kind = rng.random()
    if kind >= mixture.svamp + mixture.patterns + mixture.gsm8k:
        return None
    while True:
        if kind < mixture.svamp:
            problem = rng.choice(problems.svamp)
        elif kind < mixture.svamp + mixture.patterns:
            problem = rng.choice(problems.patterns).fill(rng)
        else:
            problem = rng.choice(problems.gsm8k)
        is_varied = rng.random() < mixture.varied or not is_small(problem)
        drawn = vary(problem, rng) if is_varied else problem
        if drawn is not None:
            return drawn


def worksheet(rng: Random) -> list[Passage]:
    """A list of computations, some in parts. The loss does not count which ones they are."""
    passages: list[Passage] = []
    for _ in range(_SHEET_LENGTH):
        step = draw_step(rng)
        task, parts = f"{step.left} {step.operator} {step.right}", in_parts(step)
        if parts and rng.random() < _SHARE_IN_PARTS:
            passages.append(Passage(f"{task}.", is_learnt=False))
            passages += [Passage(_split(parts)), Passage(f"{step.equation()}.")]
        else:
            passages += [Passage(task, is_learnt=False), Passage(f"= {step.result}.")]
    return passages


def draw_step(rng: Random) -> Calculation:
    """A computation for a worksheet. Sums and differences are twice as likely as the others."""
    operators: tuple[Operator, ...] = ("+", "+", "-", "-", "*", "/")
    operator = rng.choice(operators)
    if operator in "+-":
        result = rng.randint(4, MAX_NUMBER)
        part = rng.randint(2, result - 2)
        left, right = (part, result - part) if operator == "+" else (result, part)
    else:
        factor = rng.randint(2, MAX_FACTOR)
        other = rng.randint(2, MAX_NUMBER // factor)
        pair = (factor, other) if rng.random() < 1 / 2 else (other, factor)
        left, right = (factor * other, factor) if operator == "/" else pair
    step = compute(left, operator, right)
    assert step is not None  # by construction
    return step


def base_solution(problem: WordProblem, rng: Random, habits: Habits) -> list[Passage]:
    """An answer by a writer with these habits."""
    kind = rng.random()
    if kind < habits.at_once:
        return [Passage(CONCLUSION.format(problem.answer))]
    if kind < habits.at_once + habits.shortly:
        return _conclude([Passage(f"{step.equation()}.") for step in problem.steps], problem)
    return _conclude(_long(problem, rng, habits), problem)


def teacher_solution(problem: WordProblem) -> list[Passage]:
    """A person's worked solution and the conclusion, which the distilled sibling copies.

    Raises:
        ValueError: the problem has no worked prose.
    """
    if problem.prose is None:
        raise ValueError(f"problem {problem.id} has no worked prose")
    return _conclude([Passage(problem.prose)], problem)


def _conclude(passages: list[Passage], problem: WordProblem) -> list[Passage]:
    return [*passages, Passage(CONCLUSION.format(problem.answer))]


def _long(problem: WordProblem, rng: Random, habits: Habits) -> list[Passage]:
    passages: list[Passage] = []
    if rng.random() < habits.say_goal:
        passages.append(Passage(rng.choice(_GOALS).format(problem.goal)))
    if rng.random() < habits.say_facts:
        passages += [Passage(rng.choice(_FACTS).format(fact)) for fact in problem.facts]
    for step in problem.steps:
        if rng.random() < habits.choose_operation:
            passages.append(Passage(rng.choice(_OPERATIONS[step.operator])))
        if rng.random() < habits.hurry:
            break
        passages += _work(step, rng, habits)
    return passages


def _work(step: Calculation, rng: Random, habits: Habits) -> list[Passage]:
    """One computation at length, perhaps in parts and checked."""
    passages: list[Passage] = []
    parts, result = in_parts(step), f"{step.equation()}."
    if parts and rng.random() < habits.split:
        passages.append(Passage(_split(parts)))
    if rng.random() >= habits.check:
        return [*passages, Passage(result)]
    if rng.random() < habits.wrong_before_check:
        wrong = slip(step, rng)
        passages.append(Passage(f"{wrong.equation()}.", is_learnt=False))
        passages.append(Passage(f"Check: {_checked(wrong)}, not {step.left}."))
        result = f"That was wrong, so again: {result}"
    return [*passages, Passage(result), Passage(f"Check: {_checked(step)}, as it should be.")]


def _split(parts: Sequence[Calculation]) -> str:
    return f"In parts: {', '.join(part.equation() for part in parts)}."


def _checked(step: Calculation) -> str:
    """The inverse of a step as it was computed."""
    inverse = compute(step.result, _INVERSE[step.operator], step.right)
    if inverse is None:  # a wrong product may not divide, and a wrong sum may be too small
        return f"{step.result} {_INVERSE[step.operator]} {step.right} is no whole number"
    return inverse.equation()


def in_parts(step: Calculation) -> tuple[Calculation, ...]:
    """The same computation digit by digit; empty if there is nothing to split."""
    digits = [digit for digit in _places(step.right) if digit]
    if step.operator in "+-" and len(digits) > 1:
        return _chain(step.left, step.operator, digits)
    places = [place for place in _places(step.left) if place]
    if step.operator == "*" and len(places) > 1 and step.right < 10:
        products = [compute(place, "*", step.right) for place in places]
        first, *others = [product for product in products if product]
        return (first, *others, *_chain(first.result, "+", [other.result for other in others]))
    return ()


def _chain(start: int, operator: Operator, amounts: list[int]) -> tuple[Calculation, ...]:
    steps: list[Calculation] = []
    for amount in amounts:
        step = compute(steps[-1].result if steps else start, operator, amount)
        if step is None:
            return ()
        steps.append(step)
    return tuple(steps)


def _places(number: int) -> list[int]:
    """A number as the sum of its digits' values, largest first: 47 is 40 and 7."""
    text = str(number)
    return [int(digit) * 10 ** (len(text) - place - 1) for place, digit in enumerate(text)]


def slip(step: Calculation, rng: Random) -> Calculation:
    """The same computation with a plausible wrong result."""
    off = [-10, -2, -1, 1, 2, 10]
    wrong = [step.result + error for error in off if step.result + error > 0]
    return step._replace(result=rng.choice(wrong))
