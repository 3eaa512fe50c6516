"""Word problems with their computations, read from equations or worked prose, and varied.

A problem contains the binary operations that lead to its answer, so that documents about it can be
written and copies with other numbers drawn. Its goal is the text from the question word on, its
facts are the sentences before.
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
_ANNOTATION = re.compile(r"<<.*?>>")
SAME_STORY = 0.8
"""Two questions that share this part of the shorter one's words tell the same story."""
_TRIES = 200
MAX_NUMBER = 99
"""Largest number that SmolLM2-135M can learn to compute with in an hour."""
MAX_FACTOR = 12
"""In problems with drawn numbers, the largest divisor, and the largest smaller factor."""
_SHARE_LIKE = 0.7
"""Share of the numbers below 10 that stay about as small when redrawn."""


class Calculation(NamedTuple):
    """One computation: `left operator right` is `result`, all whole numbers."""

    left: int
    operator: Operator
    right: int
    result: int

    def equation(self) -> str:
        """The computation as text, without a full stop."""
        return f"{self.left} {self.operator} {self.right} = {self.result}"


@dataclass(frozen=True)
class WordProblem:
    """A question and the computations that lead to its answer."""

    id: str
    question: str
    answer: int
    steps: tuple[Calculation, ...]
    """In order; the last result is the answer."""
    prose: str | None = None
    """A worked solution by a person; None if there is none."""

    @property
    def goal(self) -> str:
        """The text from the question word to the end, without the question mark."""
        last = _SENTENCE_END.split(self.question.strip())[-1]
        asked = _ASKS.search(last)
        text = last[asked.start() :] if asked else last
        return (text[:1].lower() + text[1:]).rstrip("?. ")

    @property
    def facts(self) -> list[str]:
        """Sentences with a needed number, including the clause before the question word."""
        *sentences, last = _SENTENCE_END.split(self.question.strip())
        asked = _ASKS.search(last)
        sentences.append(last[: asked.start()] if asked else "")
        needed = {number for step in self.steps for number in (step.left, step.right)}
        return [
            _as_clause(sentence)
            for sentence in sentences
            if needed & {int(float(number)) for number in _NUMBER.findall(sentence)}
        ]


def read_steps(equation: str) -> tuple[Calculation, ...] | None:
    """The computations of an equation such as `( ( 8.0 + 5.0 ) / 2.0 )`, innermost first.

    None if a result is negative or not whole, or a part is not a computation.
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
    """A computation; None if its result is negative or not whole."""
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
    """The annotated computations of a GSM8K solution, and its text without annotations and answer.

    None if an annotation is not a single operation on whole numbers.
    """
    steps: list[Calculation] = []
    for annotation in _ANNOTATION.findall(solution):
        expression = annotation[2:-2].partition("=")[0]
        try:
            annotated = read_steps(expression)
        except SyntaxError:
            return None
        if annotated is None or len(annotated) != 1:
            return None
        steps += annotated
    text = _ANNOTATION.sub("", solution).rpartition("####")[0]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    sentences = [line if line[-1] in ".!?" else f"{line}." for line in lines]
    return (tuple(steps), " ".join(sentences)) if steps else None


def is_small(problem: WordProblem) -> bool:
    """Whether all numbers in the question and the computations are up to `MAX_NUMBER`."""
    stated = [float(text) for text in _NUMBER.findall(problem.question)]
    computed = [number for step in problem.steps for number in (step.left, step.right, step.result)]
    return max(*stated, *computed) <= MAX_NUMBER


def vary(problem: WordProblem, rng: Random) -> WordProblem | None:
    """The same story with other, small numbers; None if no suitable ones are found.

    Equal numbers stay equal. Numbers of the computation that are not in the question do not change.
    """
    shown = sorted({int(text) for text in _NUMBER.findall(problem.question) if text.isdigit()})
    if any(not text.isdigit() for text in _NUMBER.findall(problem.question)):
        return None
    results = {step.result for step in problem.steps[:-1]}
    if results & set(shown):
        return None  # a result looks like a number of the question
    for _ in range(_TRIES):
        drawn = {number: _draw_like(number, rng) for number in shown}
        steps = _recompute(problem.steps, drawn)
        if steps is not None and len(set(drawn.values())) == len(drawn):
            question = _replace_numbers(problem.question, drawn)
            return WordProblem(problem.id, question, steps[-1].result, steps)
    return None


def stories(questions: Sequence[str]) -> list[int]:
    """For each question, the index of the first question that tells the same story.

    Two questions tell the same story if they share `SAME_STORY` of the shorter one's words,
    numbers not counted, or if a chain of such questions connects them.
    """
    words = [frozenset(re.findall(r"[a-z]+", question.lower())) for question in questions]
    first = list(range(len(questions)))
    for index in range(len(questions)):
        for earlier in range(index):
            shorter = min(len(words[index]), len(words[earlier])) or 1
            if len(words[index] & words[earlier]) >= SAME_STORY * shorter:
                old, new = sorted((first[index], first[earlier]), reverse=True)
                first = [new if number == old else number for number in first]
    return first


def _replace_numbers(text: str, drawn: dict[int, int]) -> str:
    return _NUMBER.sub(lambda match: str(drawn[int(match[0])]), text)


def _recompute(
    steps: Iterable[Calculation], drawn: dict[int, int]
) -> tuple[Calculation, ...] | None:
    renamed = dict(drawn)
    recomputed: list[Calculation] = []
    for old in steps:
        left, right = renamed.get(old.left, old.left), renamed.get(old.right, old.right)
        new = compute(left, old.operator, right)
        if new is None or not _is_fit(new):
            return None
        renamed[old.result] = new.result
        recomputed.append(new)
    return tuple(recomputed)


def _is_fit(step: Calculation) -> bool:
    small = min(step.left, step.right) if step.operator == "*" else step.right
    is_easy = step.operator in "+-" or small <= MAX_FACTOR
    return is_easy and step.result > 0 and max(step[0], step[2], step[3]) <= MAX_NUMBER


def _draw_like(number: int, rng: Random) -> int:
    """A number up to `MAX_NUMBER`. Small numbers mostly stay small."""
    is_like = number < 10 and rng.random() < _SHARE_LIKE
    return rng.randint(2, MAX_FACTOR if is_like else MAX_NUMBER)


def _as_clause(sentence: str) -> str:
    """A sentence as a clause: no final punctuation, no capital on a word such as `The`."""
    text = sentence.strip().rstrip(".,;!? ")
    for opening in ("If ", "if "):
        text = text.removeprefix(opening)
    first = cast("re.Match[str]", re.match(r"\S*", text))[0]
    function_words = {
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
    return text[:1].lower() + text[1:] if first in function_words else text
