"""Tally's truth: word problems, labelled solutions, and what a solver should do next.

Everything that a taxonomy or a gate is scored against is defined here: the seven behaviours, their
sentences, and the rule for which behaviours are right after any prefix of a solution. Nothing in
this file depends on models.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random

PACK_SIZE = 5
MAX_NUMBER = 99
NAMES = ("Ann", "Bob", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana")
ITEMS = ("apples", "books", "coins", "eggs", "marbles", "pens", "shells", "stamps")


class Behaviour(StrEnum):
    """What a sentence of a solution does."""

    RESTATE = "restate"
    FOCUS = "focus"
    RECALL = "recall"
    COMPUTE = "compute"
    CHECK = "check"
    BACKTRACK = "backtrack"
    CONCLUDE = "conclude"


class Operation(StrEnum):
    """One step of a word problem."""

    GAIN = "gain"
    LOSE = "lose"
    DOUBLE = "double"
    PACKS = "packs"


@dataclass(frozen=True)
class Step:
    """An operation and its operand: 0 for a doubling, the number of packs for packs."""

    operation: Operation
    amount: int

    def apply(self, value: int) -> int:
        """The right result of this step."""
        match self.operation:
            case Operation.GAIN:
                return value + self.amount
            case Operation.LOSE:
                return value - self.amount
            case Operation.DOUBLE:
                return 2 * value
            case Operation.PACKS:
                return value + PACK_SIZE * self.amount

    def misapply(self, value: int) -> int:
        """The result with this step's typical mistake; the right result if it has none."""
        match self.operation:
            case Operation.DOUBLE:
                return 2 * value + 2
            case Operation.PACKS:
                return value + self.amount
            case _:
                return self.apply(value)

    def phrase(self) -> str:
        """The words for this step, in the problem and in a solution."""
        match self.operation:
            case Operation.GAIN:
                return f"gets {self.amount} more"
            case Operation.LOSE:
                return f"loses {self.amount}"
            case Operation.DOUBLE:
                return "doubles them"
            case Operation.PACKS:
                return f"buys {self.amount} packs"


@dataclass(frozen=True)
class TallyProblem:
    """A story: somebody has `start` items, then `steps` happen."""

    name: str
    items: str
    start: int
    steps: tuple[Step, ...]

    @property
    def question(self) -> str:
        """The problem as text."""
        story = [f"{self.name} has {self.start} {self.items}."]
        story += [f"{self.name} {step.phrase()}." for step in self.steps]
        return " ".join([*story, f"How many {self.items} does {self.name} have?"])

    @property
    def values(self) -> tuple[int, ...]:
        """Right running totals: the start, then one after each step."""
        totals = [self.start]
        for step in self.steps:
            totals.append(step.apply(totals[-1]))
        return tuple(totals)

    @property
    def answer(self) -> int:
        """The right final total."""
        return self.values[-1]


STEP_COUNTS = (2, 3, 4, 5)
STEP_COUNT_WEIGHTS = (4, 2, 2, 2)
DOCUMENT_MIX: Mapping[Operation, int] = {
    Operation.GAIN: 3,
    Operation.LOSE: 3,
    Operation.DOUBLE: 2,
    Operation.PACKS: 2,
}
"""Weights of the operations in the base's documents."""
TASK_MIX: Mapping[Operation, int] = {**DOCUMENT_MIX, Operation.GAIN: 4, Operation.LOSE: 4}
"""Weights of the operations in problems, which are somewhat easier than the documents."""
SMALLEST_TOTAL, MAX_TOTAL = 2, 60


def draw_problem(rng: Random, mix: Mapping[Operation, int] = TASK_MIX) -> TallyProblem:
    """Draw one problem whose right totals are all from 2 to 60."""
    steps: list[Step] = []
    start = total = rng.randint(2, 12)
    for _ in range(rng.choices(STEP_COUNTS, STEP_COUNT_WEIGHTS)[0]):
        step = _draw_step(rng, total, mix)
        steps.append(step)
        total = step.apply(total)
    return TallyProblem(rng.choice(NAMES), rng.choice(ITEMS), start, tuple(steps))


def draw_problems(count: int, seed: int, without: Sequence[str] = ()) -> list[TallyProblem]:
    """Draw `count` different problems whose questions are not in `without`."""
    rng, seen = Random(f"tally-{seed}"), set(without)
    problems: list[TallyProblem] = []
    while len(problems) < count:
        problem = draw_problem(rng)
        if problem.question not in seen:
            seen.add(problem.question)
            problems.append(problem)
    return problems


def _draw_step(rng: Random, total: int, mix: Mapping[Operation, int]) -> Step:
    while True:
        operation = rng.choices(list(mix), list(mix.values()))[0]
        largest = {Operation.GAIN: 9, Operation.LOSE: 9, Operation.DOUBLE: 0, Operation.PACKS: 4}
        amount = 0 if operation is Operation.DOUBLE else rng.randint(2, largest[operation])
        step = Step(operation, amount)
        if SMALLEST_TOTAL <= step.apply(total) <= MAX_TOTAL:
            return step


_PHRASE = r"(?P<phrase>gets \d+ more|loses \d+|doubles them|buys \d+ packs)"
_PATTERNS: tuple[tuple[Behaviour, str], ...] = (
    (Behaviour.RESTATE, r"(?:Okay, )?\w+ starts with \d+ \w+\."),
    (Behaviour.FOCUS, rf"Next, \w+ {_PHRASE}\."),
    (Behaviour.RECALL, r"Remember, a pack holds 5\."),
    (Behaviour.RECALL, r"Count packs: 5(, \d+)*\."),
    (Behaviour.COMPUTE, r"\d+ (?:plus|minus) \d+ is (?P<result>\d+)\."),
    (Behaviour.COMPUTE, r"Twice \d+ is (?P<result>\d+)\."),
    (Behaviour.CHECK, r"Check: half of \d+ is \d+, (?P<verdict>right|wrong)\."),
    (Behaviour.CHECK, r"Check: \d+ (?:plus|minus) \d+ is \d+, (?P<verdict>right|wrong)\."),
    (Behaviour.BACKTRACK, r"Wait, let me redo that\."),
    (Behaviour.CONCLUDE, r"(?:So|Altogether,) the answer is (?P<result>\d+)\."),
)
_COMPILED = tuple((behaviour, re.compile(pattern)) for behaviour, pattern in _PATTERNS)
_OPERATION_OF_WORD = {
    "gets": Operation.GAIN,
    "loses": Operation.LOSE,
    "doubles": Operation.DOUBLE,
    "buys": Operation.PACKS,
}


@dataclass(frozen=True)
class Label:
    """The truth about one sentence, on two levels: behaviour, and behaviour with operation."""

    behaviour: Behaviour
    operation: Operation | None = None
    """The current step's; None outside a step."""
    result: int | None = None
    """The number computed or concluded."""
    verdict: str | None = None
    """The outcome of a check."""

    @property
    def fine(self) -> str:
        """The second level's name, such as `compute/double`."""
        return f"{self.behaviour}/{self.operation}" if self.operation else str(self.behaviour)


def label_sentences(sentences: Sequence[str]) -> list[Label | None]:
    """Label the sentences of one solution in order; None for a sentence that fits no behaviour."""
    labels: list[Label | None] = []
    current: Operation | None = None
    for sentence in sentences:
        label = _label(sentence.strip(), current)
        labels.append(label)
        if label is not None and label.behaviour is Behaviour.FOCUS:
            current = label.operation
    return labels


def _label(sentence: str, current: Operation | None) -> Label | None:
    for behaviour, pattern in _COMPILED:
        if match := pattern.fullmatch(sentence):
            groups = match.groupdict()
            result = groups.get("result")
            operation = current
            if phrase := groups.get("phrase"):
                operation = _OPERATION_OF_WORD[phrase.split()[0]]
            if behaviour in (Behaviour.RESTATE, Behaviour.CONCLUDE):
                operation = None
            return Label(
                behaviour,
                operation,
                int(result) if result else None,
                groups.get("verdict"),
            )
    return None


def right_next(problem: TallyProblem, labels: Sequence[Label | None]) -> frozenset[Behaviour]:
    """Behaviours that are right after a prefix of a solution of `problem`.

    A behaviour is right when it is needed (recalling the size of a pack before computing with it,
    checking a doubling, redoing a step found wrong) or moves on without losing the answer. The set
    is empty if the prefix holds a sentence that fits no behaviour, or an error that was not
    corrected before the next step.
    """
    if any(label is None for label in labels):
        return frozenset()
    known = [label for label in labels if label is not None]
    if not known:
        return frozenset({Behaviour.RESTATE, Behaviour.FOCUS})
    done = sum(label.behaviour is Behaviour.FOCUS for label in known)
    last = known[-1]
    match last.behaviour:
        case Behaviour.RESTATE:
            return frozenset({Behaviour.FOCUS})
        case Behaviour.FOCUS:
            needs_recall = last.operation is Operation.PACKS
            return frozenset({Behaviour.RECALL if needs_recall else Behaviour.COMPUTE})
        case Behaviour.RECALL | Behaviour.BACKTRACK:
            return frozenset({Behaviour.COMPUTE})
        case Behaviour.COMPUTE | Behaviour.CHECK:
            return _after_result(problem, known, done)
        case Behaviour.CONCLUDE:
            return frozenset()


def _after_result(
    problem: TallyProblem, labels: Sequence[Label], done: int
) -> frozenset[Behaviour]:
    last = labels[-1]
    redone = len(labels) > 1 and labels[-2].behaviour is Behaviour.BACKTRACK
    results = (label.result for label in reversed(labels) if label.behaviour is Behaviour.COMPUTE)
    computed = next(results, None)
    onward = Behaviour.FOCUS if done < len(problem.steps) else Behaviour.CONCLUDE
    is_right = done <= len(problem.steps) and computed == problem.values[done]
    if last.behaviour is Behaviour.CHECK:
        return frozenset({Behaviour.BACKTRACK if last.verdict == "wrong" else onward})
    if last.operation is Operation.DOUBLE and not redone:
        return frozenset({Behaviour.CHECK, onward} if is_right else {Behaviour.CHECK})
    return frozenset({onward}) if is_right else frozenset()
