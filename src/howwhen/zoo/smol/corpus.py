"""smol's documents: the same problems answered at once, shortly, or worked out at length.

The mid-trained base learns from a mixture in which every mechanism occurs (say what is wanted,
what is known, choose the operation, compute in parts, check, go back, conclude) and most writers
are hasty: many answer at once and nobody checks them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from howwhen.zoo.smol.word_problems import Operator, Step, WordProblem, compute, vary

CONCLUSION = "The answer is {}."
DRILL = "drill"
"""Id of a bare computation."""
_DRILLS = ("What is {} {} {}?", "Find {} {} {}.")
_LARGEST_TERMS = (20, 99, 999)
_LARGEST_MULTIPLIER = 12


@dataclass(frozen=True)
class Habits:
    """How often a writer of base documents does what; every field is a probability."""

    at_once: float = 0.4
    """Nothing but the conclusion."""
    shortly: float = 0.12
    """Nothing but computations and the conclusion."""
    shortly_wrong: float = 0.3
    """A computation of a short answer is wrong, and nobody sees it."""
    say_goal: float = 0.75
    say_facts: float = 0.7
    choose_operation: float = 0.7
    hurry: float = 0.45
    """Before each computation at length: nothing more is worked out, the conclusion is guessed."""
    split: float = 0.6
    """Of computations that can be done in parts."""
    check: float = 0.4
    """Of a computation at length."""
    wrong_before_check: float = 0.3
    """The checked computation is wrong at first."""


DRILLED = Habits(at_once=0.25, shortly=0.35, shortly_wrong=0.0, hurry=0.0, split=0.8)
"""How bare computations are written about: mostly with care."""


@dataclass(frozen=True)
class Mixture:
    """What the documents are about; shares of all documents, the rest are drills."""

    svamp: float = 0.58
    gsm8k: float = 0.14
    varied: float = 0.85
    """Of the problems of SVAMP, those whose numbers are drawn again."""


WITHOUT_DRILLS = Mixture(svamp=0.8, gsm8k=0.2)

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


def draw_problem(
    svamp: Sequence[WordProblem],
    gsm8k: Sequence[WordProblem],
    rng: Random,
    mixture: Mixture | None = None,
) -> WordProblem:
    """The problem of one document."""
    mixture = mixture or Mixture()
    kind = rng.random()
    if kind < mixture.svamp:
        problem = rng.choice(svamp)
        return (vary(problem, rng) if rng.random() < mixture.varied else None) or problem
    if kind < mixture.svamp + mixture.gsm8k:
        return rng.choice(gsm8k)
    return draw_drill(rng)


def draw_drill(rng: Random) -> WordProblem:
    """A bare computation as a problem; sums and differences are drawn twice as often."""
    operators: tuple[Operator, ...] = ("+", "+", "-", "-", "*", "/")
    operator = rng.choice(operators)
    one, other = (rng.randint(2, rng.choice(_LARGEST_TERMS)) for _ in range(2))
    if operator in "*/":
        one, other = rng.randint(2, _LARGEST_TERMS[1]), rng.randint(2, _LARGEST_MULTIPLIER)
    if operator == "/":
        one = other * rng.randint(2, 30)
    left, right = (max(one, other), min(one, other)) if operator == "-" else (one, other)
    step = compute(left, operator, right)
    assert step is not None  # by construction
    question = rng.choice(_DRILLS).format(left, operator, right)
    return WordProblem(DRILL, question, step.result, (step,))


def base_solution(problem: WordProblem, rng: Random, habits: Habits | None = None) -> str:
    """One answer as the base's documents give it."""
    habits = habits or (DRILLED if problem.id == DRILL else Habits())
    kind = rng.random()
    if kind < habits.at_once:
        return CONCLUSION.format(problem.answer)
    if kind < habits.at_once + habits.shortly:
        return _short(problem, rng, habits)
    return _long(problem, rng, habits)


def teacher_solution(problem: WordProblem) -> str:
    """A person's worked solution and the conclusion: what the distilled sibling copies.

    Raises:
        ValueError: a problem without worked prose.
    """
    if problem.prose is None:
        raise ValueError(f"problem {problem.id} has no worked prose")
    return f"{problem.prose} {CONCLUSION.format(problem.answer)}"


def _short(problem: WordProblem, rng: Random, habits: Habits) -> str:
    steps = list(problem.steps)
    if rng.random() < habits.shortly_wrong:
        steps[-1] = slip(steps[-1], rng)
    said = [f"{step.said()}." for step in steps]
    return " ".join([*said, CONCLUSION.format(steps[-1].result)])


def _long(problem: WordProblem, rng: Random, habits: Habits) -> str:
    sentences: list[str] = []
    if rng.random() < habits.say_goal:
        sentences.append(rng.choice(_GOALS).format(problem.goal))
    if rng.random() < habits.say_facts:
        sentences += [rng.choice(_FACTS).format(fact) for fact in problem.facts]
    for step in problem.steps:
        if rng.random() < habits.choose_operation:
            sentences.append(rng.choice(_OPERATIONS[step.operator]))
        if rng.random() < habits.hurry:
            break
        sentences += _work(step, rng, habits)
    return " ".join([*sentences, CONCLUSION.format(problem.answer)])


def _work(step: Step, rng: Random, habits: Habits) -> list[str]:
    """One computation at length: how, and whether it is right."""
    sentences: list[str] = []
    parts = in_parts(step)
    if parts and rng.random() < habits.split:
        sentences.append(f"In parts: {', '.join(part.said() for part in parts)}.")
    if rng.random() >= habits.check:
        return [*sentences, f"{step.said()}."]
    if rng.random() < habits.wrong_before_check:
        wrong = slip(step, rng)
        sentences += [f"{wrong.said()}.", f"Check: {_checked(wrong)}, not {step.left}."]
        sentences.append(f"That was wrong, so again: {step.said()}.")
    else:
        sentences.append(f"{step.said()}.")
    return [*sentences, f"Check: {_checked(step)}, as it should be."]


def _checked(step: Step) -> str:
    """The inverse computation of what a step claims."""
    inverse = compute(step.result, _INVERSE[step.operator], step.right)
    if inverse is None:  # a wrong product need not divide, nor a wrong sum be large enough
        return f"{step.result} {_INVERSE[step.operator]} {step.right} is no whole number"
    return inverse.said()


def in_parts(step: Step) -> tuple[Step, ...]:
    """The same computation by the digits of one operand; empty where there is nothing to split."""
    digits = [digit for digit in _places(step.right) if digit]
    if step.operator in "+-" and len(digits) > 1:
        return _chain(step.left, step.operator, digits)
    if step.operator == "*" and len(_places(step.left)) > 1 and step.right < 10:
        products = [compute(part, "*", step.right) for part in _places(step.left) if part]
        first, *others = [product for product in products if product]
        return (first, *others, *_chain(first.result, "+", [other.result for other in others]))
    return ()


def _chain(start: int, operator: Operator, amounts: list[int]) -> tuple[Step, ...]:
    steps: list[Step] = []
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


def slip(step: Step, rng: Random) -> Step:
    """The same computation with a result that is wrong as hasty people are wrong."""
    off = [-10, -2, -1, 1, 2, 10]
    wrong = [step.result + error for error in off if step.result + error > 0]
    return step._replace(result=rng.choice(wrong))
