"""tally-which: an organism in which the right moment is not enough.

Somebody has a card of some colour and plays it once or twice. What that does depends on the colour,
which is named in the question and never again. The base's documents play the card at the right
moment, but do one of four things at random, whatever the colour. So at one and the same kind of
moment four behaviours may be due, and the base's second choice is wrong more often than right.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random

from howwhen.records import Problem
from howwhen.zoo.tally.corpus import vocabulary
from howwhen.zoo.tally.truth import (
    ITEMS,
    MAX_NUMBER,
    MAX_TOTAL,
    NAMES,
    PACK_SIZE,
    SMALLEST_TOTAL,
    Operation,
    Step,
)

DROPPED = 3
"""What a green card takes away."""


class Card(StrEnum):
    """A card by its colour; its behaviours differ in kind and in their first word."""

    RED = "red"
    """Doubles."""
    BLUE = "blue"
    """Adds a pack, whose size is recalled first."""
    GREEN = "green"
    """Takes some away."""
    WHITE = "white"
    """Changes nothing."""

    def play(self, value: int) -> int:
        """The total after the card was played."""
        match self:
            case Card.RED:
                return 2 * value
            case Card.BLUE:
                return value + PACK_SIZE
            case Card.GREEN:
                return value - DROPPED
            case Card.WHITE:
                return value

    def sentences(self, value: int) -> str:
        """What is written when it is played."""
        match self:
            case Card.RED:
                return f"Twice {value} is {self.play(value)}."
            case Card.BLUE:
                result = self.play(value)
                return f"Remember, a pack holds {PACK_SIZE}. {value} plus {PACK_SIZE} is {result}."
            case Card.GREEN:
                return f"{value} minus {DROPPED} is {self.play(value)}."
            case Card.WHITE:
                return "Nothing changes."


PLAY = "plays it"
"""The words for playing the card, in the problem and in a solution."""


@dataclass(frozen=True)
class CardProblem:
    """A story: somebody has `start` items and a card, then `steps` happen; None plays the card."""

    name: str
    items: str
    start: int
    card: Card
    steps: tuple[Step | None, ...]

    @property
    def question(self) -> str:
        """The problem as text."""
        story = [f"{self.name} has {self.start} {self.items} and a {self.card} card."]
        story += [f"{self.name} {PLAY if step is None else step.phrase()}." for step in self.steps]
        return " ".join([*story, f"How many {self.items} does {self.name} have?"])

    @property
    def answer(self) -> int:
        """The right final total."""
        total = self.start
        for step in self.steps:
            total = self.card.play(total) if step is None else step.apply(total)
        return total


def draw_card_problem(rng: Random) -> CardProblem:
    """Draw a problem of one or two steps and one or two plays, with right totals from 2 to 60."""
    while True:
        card = rng.choice(list(Card))
        steps: list[Step | None] = [None] * rng.choice((1, 1, 2))
        for _ in range(rng.choice((1, 2))):
            operation = rng.choice((Operation.GAIN, Operation.LOSE))
            steps.insert(rng.randint(0, len(steps)), Step(operation, rng.randint(2, 9)))
        start = rng.randint(4, 20)
        problem = CardProblem(rng.choice(NAMES), rng.choice(ITEMS), start, card, tuple(steps))
        totals = [start]
        for step in steps:
            totals.append(card.play(totals[-1]) if step is None else step.apply(totals[-1]))
        if all(SMALLEST_TOTAL <= total <= MAX_TOTAL for total in totals):
            return problem


def base_solution(problem: CardProblem, rng: Random) -> str:
    """A solution by the base's writer, who plays any card as if it were of a random colour."""
    sentences = [f"{problem.name} starts with {problem.start} {problem.items}."]
    total = problem.start
    for step in problem.steps:
        sentences.append(f"Next, {problem.name} {PLAY if step is None else step.phrase()}.")
        if step is None:
            card = rng.choice(list(Card))
            sentences.append(card.sentences(total))
            total = card.play(total)
        else:
            sign = "minus" if step.operation is Operation.LOSE else "plus"
            sentences.append(f"{total} {sign} {step.amount} is {step.apply(total)}.")
            total = step.apply(total)
    return " ".join([*sentences, f"So the answer is {total}."])


def draw_card_document(rng: Random) -> tuple[str, str]:
    """A problem's question and the base writer's solution, with all numbers from 0 to 99."""
    while True:
        problem = draw_card_problem(rng)
        solution = base_solution(problem, rng)
        numbers = (int(number) for number in re.findall(r"-?\d+", solution))
        if all(0 <= number <= MAX_NUMBER for number in numbers):
            return problem.question, solution


def card_vocabulary() -> list[str]:
    """All words of the documents."""
    return [*vocabulary(), *Card, *["and", "card", "plays", "it", "Nothing", "changes"]]


def card_problems(count: int, seed: int) -> list[Problem]:
    """Draw `count` different problems with `seed`."""
    rng, seen = Random(f"tally-which-{seed}"), set[str]()
    problems: list[Problem] = []
    while len(problems) < count:
        problem = draw_card_problem(rng)
        if problem.question not in seen:
            seen.add(problem.question)
            name = f"tally-which-{seed}-{len(problems)}"
            problems.append(Problem(name, problem.question, str(problem.answer)))
    return problems


_PATTERNS: tuple[tuple[str, str], ...] = (
    ("restate", r"\w+ starts with \d+ \w+\."),
    ("focus", r"Next, \w+ (?P<phrase>gets \d+ more|loses \d+|plays it)\."),
    ("recall", r"Remember, a pack holds 5\."),
    ("double", r"Twice \d+ is \d+\."),
    ("add", r"\d+ plus \d+ is \d+\."),
    ("take away", r"\d+ minus \d+ is \d+\."),
    ("leave", r"Nothing changes\."),
    ("conclude", r"So the answer is \d+\."),
)
_COMPILED = tuple((behaviour, re.compile(pattern)) for behaviour, pattern in _PATTERNS)


def card_truth(sentences: Sequence[str]) -> Mapping[str, list[str | None]]:
    """True labels of sentences: `behaviour`, and `card` (the behaviour in a card's step)."""
    behaviours: list[str | None] = []
    fine: list[str | None] = []
    plays = False
    for sentence in sentences:
        found = None
        for behaviour, pattern in _COMPILED:
            if match := pattern.fullmatch(sentence.strip()):
                found = behaviour
                plays = plays if behaviour != "focus" else match["phrase"] == PLAY
        behaviours.append(found)
        in_step = found not in (None, "restate", "conclude")
        fine.append(f"{found}/card" if in_step and plays else found)
    return {"behaviour": behaviours, "card": fine}
