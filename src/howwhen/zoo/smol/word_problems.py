"""Word problems with their computations: read from equations or from worked prose, and varied.

A problem knows the binary operations that lead to its answer, so that documents about it can be
written, and copies of it with other numbers drawn. What is asked for is the text from the
question word on; the sentences before it are what is known.
"""

import ast
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from random import Random
from typing import Literal, NamedTuple, cast

Operator = Literal["+", "-", "*", "/"]
_OPERATORS: dict[type[ast.operator], Operator] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
}
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_ASKS = re.compile(r"\b(?:how|what|find)\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.?!])\s+")
_MARK = re.compile(r"<<.*?>>")
SAME_STORY = 0.8
"""Two questions with this share of the shorter one's words in common tell the same story."""
_TRIES = 200
MAX_NUMBER = 99
"""What SmolLM2-135M can be taught to reckon with in an hour."""
MAX_FACTOR = 12
"""At least one factor, and every divisor, is at most this in problems with drawn numbers."""
_SHARE_LIKE = 0.7
"""Of the numbers below 10 that stay about as small when drawn again."""


class Calculation(NamedTuple):
    """One computation: `left operator right` is `result`, all whole numbers."""

    left: int
    operator: Operator
    right: int
    result: int

    def said(self) -> str:
        """The computation as an equation, without a full stop."""
        return f"{self.left} {self.operator} {self.right} = {self.result}"


@dataclass(frozen=True)
class WordProblem:
    """A question and the way to its answer."""

    id: str
    question: str
    answer: int
    steps: tuple[Calculation, ...]
    """In the order in which they are computed; the last one's result is the answer."""
    prose: str | None = None
    """A worked solution by a person, where there is one."""

    @property
    def goal(self) -> str:
        """What is asked for, from the question word to the end, without the question mark."""
        last = _SENTENCE_END.split(self.question.strip())[-1]
        asked = _ASKS.search(last)
        text = last[asked.start() :] if asked else last
        return (text[:1].lower() + text[1:]).rstrip("?. ")

    @property
    def facts(self) -> list[str]:
        """The sentences, and the clause before the question word, that hold a needed number."""
        *told, last = _SENTENCE_END.split(self.question.strip())
        asked = _ASKS.search(last)
        told.append(last[: asked.start()] if asked else "")
        needed = {number for step in self.steps for number in (step.left, step.right)}
        return [
            _as_clause(sentence)
            for sentence in told
            if needed & {int(float(number)) for number in _NUMBER.findall(sentence)}
        ]


def read_steps(equation: str) -> tuple[Calculation, ...] | None:
    """The computations of an equation such as `( ( 8.0 + 5.0 ) / 2.0 )`, innermost first.

    None where one of them leaves the whole numbers from 0 on, or is no computation.
    """
    steps: list[Calculation] = []

    def walk(node: ast.expr) -> int | None:
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return int(node.value) if node.value == int(node.value) else None
        if not isinstance(node, ast.BinOp) or type(node.op) not in _OPERATORS:
            return None
        left, right = walk(node.left), walk(node.right)
        if left is None or right is None:
            return None
        step = compute(left, _OPERATORS[type(node.op)], right)
        if step is not None:
            steps.append(step)
        return step.result if step else None

    value = walk(ast.parse(equation.strip(), mode="eval").body)
    return tuple(steps) if value is not None and steps else None


def compute(left: int, operator: Operator, right: int) -> Calculation | None:
    """A computation, or None where its result is negative or broken."""
    if operator == "/" and right == 0:
        return None
    exact = {
        "+": lambda: Fraction(left + right),
        "-": lambda: Fraction(left - right),
        "*": lambda: Fraction(left * right),
        "/": lambda: Fraction(left, right),
    }[operator]()
    if exact < 0 or exact.denominator != 1:
        return None
    return Calculation(left, operator, right, int(exact))


def read_prose(solution: str) -> tuple[tuple[Calculation, ...], str] | None:
    """The computations in the marks of a GSM8K solution, and its text without marks and answer.

    None where a mark is more than one operation on whole numbers.
    """
    steps: list[Calculation] = []
    for mark in _MARK.findall(solution):
        expression = mark[2:-2].partition("=")[0]
        try:
            found = read_steps(expression)
        except SyntaxError:
            return None
        if found is None or len(found) != 1:
            return None
        steps += found
    text = _MARK.sub("", solution).rpartition("####")[0]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    sentences = [line if line[-1] in ".!?" else f"{line}." for line in lines]
    return (tuple(steps), " ".join(sentences)) if steps else None


def is_small(problem: WordProblem) -> bool:
    """Whether no number, told or computed, is over `MAX_NUMBER`."""
    told = [float(text) for text in _NUMBER.findall(problem.question)]
    reckoned = [number for step in problem.steps for number in (step.left, step.right, step.result)]
    return max(*told, *reckoned) <= MAX_NUMBER


def vary(problem: WordProblem, rng: Random) -> WordProblem | None:
    """The same story with other, small numbers, or None where no fitting ones are found.

    Equal numbers stay equal; numbers of the computation that the question does not hold stay.
    """
    shown = sorted({int(text) for text in _NUMBER.findall(problem.question) if text.isdigit()})
    if any(not text.isdigit() for text in _NUMBER.findall(problem.question)):
        return None
    results = {step.result for step in problem.steps[:-1]}
    if results & set(shown):
        return None  # a result cannot be told from a number of the question
    for _ in range(_TRIES):
        drawn = {number: _draw_like(number, rng) for number in shown}
        steps = _recompute(problem.steps, drawn)
        if steps is not None and len(set(drawn.values())) == len(drawn):
            question = _replace_numbers(problem.question, drawn)
            return WordProblem(problem.id, question, steps[-1].result, steps)
    return None


def stories(questions: Sequence[str]) -> list[int]:
    """For each question the number of its story: the first question that tells the same one.

    Questions are joined where they share `SAME_STORY` of the words of the shorter one, numbers
    aside, directly or through others.
    """
    words = [frozenset(re.findall(r"[a-z]+", question.lower())) for question in questions]
    first = list(range(len(questions)))
    for one in range(len(questions)):
        for other in range(one):
            shorter = min(len(words[one]), len(words[other])) or 1
            if len(words[one] & words[other]) >= SAME_STORY * shorter:
                old, new = sorted((first[one], first[other]), reverse=True)
                first = [new if number == old else number for number in first]
    return first


def _replace_numbers(text: str, drawn: dict[int, int]) -> str:
    return _NUMBER.sub(lambda found: str(drawn[int(found[0])]), text)


def _recompute(
    steps: Iterable[Calculation], drawn: dict[int, int]
) -> tuple[Calculation, ...] | None:
    renamed = dict(drawn)
    again: list[Calculation] = []
    for old in steps:
        left, right = renamed.get(old.left, old.left), renamed.get(old.right, old.right)
        new = compute(left, old.operator, right)
        if new is None or not _is_fit(new):
            return None
        renamed[old.result] = new.result
        again.append(new)
    return tuple(again)


def _is_fit(step: Calculation) -> bool:
    small = min(step.left, step.right) if step.operator == "*" else step.right
    is_easy = step.operator in "+-" or small <= MAX_FACTOR
    return is_easy and step.result > 0 and max(step[0], step[2], step[3]) <= MAX_NUMBER


def _draw_like(number: int, rng: Random) -> int:
    """A number up to `MAX_NUMBER`; small ones mostly stay small."""
    is_like = number < 10 and rng.random() < _SHARE_LIKE
    return rng.randint(2, MAX_FACTOR if is_like else MAX_NUMBER)


def _as_clause(sentence: str) -> str:
    """A sentence as it goes on after a word: without its end, small where it began with 'the'."""
    text = sentence.strip().rstrip(".,;!? ")
    for opening in ("If ", "if "):
        text = text.removeprefix(opening)
    first = cast("re.Match[str]", re.match(r"\S*", text))[0]
    usual = {
        "The",
        "There",
        "Each",
        "In",
        "He",
        "She",
        "They",
        "It",
        "A",
        "An",
        "At",
        "After",
        "For",
    }
    return text[:1].lower() + text[1:] if first in usual else text
