r"""Five-way grading: exact arithmetic for numbers, Math-Verify in killable workers for the rest.

Math-Verify can hang. Off the main thread, or past its own time limit, it says "wrong" when it means
"do not know". Here it runs in separate processes without its time limits, and a process is killed
at our deadline. A failure never becomes "wrong": an answer that cannot be read is `no_answer`, one
that takes too long is `timed_out`.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal, NamedTuple

from howwhen.measure.answers import (
    Answer,
    Kind,
    flexible_answer,
    looks_truncated,
    read_option,
    strict_answer,
    without_text,
)
from howwhen.measure.numbers import as_number, without_scale
from howwhen.measure.workers import Verdict, Workers
from howwhen.records import Finish, Grade

Mode = Literal["flexible", "strict"]
"""Which rules of `answers` may find the answer: all of them, or only those for marked answers."""

LONG_DECIMAL = 10
"""A gold answer with so many decimals or more counts as a rounded fraction."""


class Item(NamedTuple):
    """An answer to be graded."""

    text: str
    """Everything the model wrote."""
    gold: str
    """The final answer only: a number, LaTeX, a word or an option."""
    dataset: str = ""
    """Name of the problem set. It matters for `mmlu_pro` only, whose answers are options."""
    finish: Finish | None = None
    """Why the text ended; None if that is not known."""


class Graded(NamedTuple):
    """A grade, and the answer that was graded; None if none was found."""

    grade: Grade
    answer: Answer | None


def grade_answers(
    items: Sequence[Item | tuple[str, str, str]],
    *,
    mode: Mode = "flexible",
    deadline_seconds: float = 5.0,
) -> list[Grade]:
    """Grade answers, one five-way grade each, in order.

    Works from any thread. Each call starts its own workers if it needs them. Use `open_grader` to
    keep them for several calls.

    Args:
        items: answer text, gold answer and name of the data set. A fourth part may say why the text
            ended (`Finish`). By default that is guessed from how the text ends.
        mode: `flexible` also reads the sentence that concludes; `strict` only an answer that is
            marked as one.
        deadline_seconds: longest time for one answer.
    """
    with open_grader(deadline_seconds) as grader:
        return [graded.grade for graded in grader.grade(items, mode)]


@dataclass
class Grader:
    """Grades answers, with worker processes started when first needed. Made by `open_grader`."""

    workers: Workers
    _known: dict[tuple[str, str], Grade] = field(default_factory=dict)

    def grade(
        self, items: Sequence[Item | tuple[str, str, str]], mode: Mode = "flexible"
    ) -> list[Graded]:
        """Grade answers in order."""
        named = [item if isinstance(item, Item) else Item(*item) for item in items]
        answers = [find_answer(item, mode) for item in named]
        pairs = [
            (answer.text, item.gold) if isinstance(answer, Answer) else None
            for item, answer in zip(named, answers, strict=True)
        ]
        grades = iter(self.compare([pair for pair in pairs if pair is not None]))
        return [
            Graded(next(grades), answer) if isinstance(answer, Answer) else Graded(answer, None)
            for answer in answers
        ]

    def compare(self, pairs: Sequence[tuple[str, str]]) -> list[Grade]:
        """Whether answers and gold answers mean the same, pair by pair."""
        grades: dict[tuple[str, str], Grade] = {}
        undecided = []
        for pair in dict.fromkeys(pairs):
            grade = self._known.get(pair) or compare_exactly(*pair)
            if grade is None:
                undecided.append(pair)
            else:
                grades[pair] = grade
        readable_pairs = [(readable(answer), readable(gold)) for answer, gold in undecided]
        for pair, verdict in zip(undecided, self.workers.ask(readable_pairs), strict=True):
            grades[pair] = _GRADE_OF[verdict]
        if len(self._known) > MAX_KNOWN:
            self._known.clear()
        self._known.update(grades)
        return [grades[pair] for pair in pairs]


MAX_KNOWN = 100_000
"""Comparisons kept in memory, so that equal answers are compared only once."""
_GRADE_OF: dict[Verdict, Grade] = {
    "same": Grade.CORRECT,
    "different": Grade.WRONG,
    "unreadable": Grade.NO_ANSWER,
    "too long": Grade.TIMED_OUT,
}


@contextmanager
def open_grader(deadline_seconds: float = 5.0, workers: int = 2) -> Iterator[Grader]:
    """A grader whose workers are ended when the block ends."""
    with Workers(deadline_seconds, workers) as pool:
        yield Grader(pool)


def find_answer(item: Item, mode: Mode) -> Answer | Grade:
    """The answer that a text gives, or the grade of a text that gives none."""
    is_cut = looks_truncated(item.text) if item.finish is None else item.finish is Finish.LENGTH
    kind = kind_of(item.gold, item.dataset)
    read = strict_answer if mode == "strict" else flexible_answer
    answer = read(item.text, kind, not is_cut)
    if answer is not None:
        return answer
    return Grade.TRUNCATED if is_cut else Grade.NO_ANSWER


def kind_of(gold: str, dataset: str = "") -> Kind:
    """What kind of answer a gold answer is."""
    plain = without_text(gold).strip("() .")
    if re.fullmatch(r"[A-J]", plain) and (
        "mmlu" in dataset.lower() or "\\text" in gold or "(" in gold
    ):
        return Kind.LETTER
    if as_number(gold) is not None and "frac" not in gold and "/" not in gold:
        return Kind.NUMBER
    if re.fullmatch(r"[A-Za-z]{2,}(?:[ -][A-Za-z]+)*", plain) and "\\" not in plain:
        return Kind.WORDS
    return Kind.EXPRESSION


def compare_exactly(answer: str, gold: str) -> Grade | None:
    """Compare by exact arithmetic or letter by letter; None if that does not decide."""
    if _canonical(answer) == _canonical(gold):
        return Grade.CORRECT
    kind = kind_of(gold)
    if kind is Kind.LETTER:
        option = read_option(without_text(answer))
        is_gold = option is not None and option == read_option(without_text(gold))
        return Grade.CORRECT if is_gold else Grade.WRONG
    if kind is Kind.WORDS:
        return Grade.CORRECT if _contains_words(answer, without_text(gold)) else Grade.WRONG
    ours, theirs = as_number(answer), as_number(gold)
    if ours is None or theirs is None:
        return None
    bare = as_number(without_scale(answer))  # if the question asks for thousands
    is_same = theirs == bare or _same_number(ours, theirs, answer, gold)
    return Grade.CORRECT if is_same else Grade.WRONG


def _same_number(ours: Fraction, theirs: Fraction, answer: str, gold: str) -> bool:
    if ours == theirs:
        return True
    if ("%" in answer) != ("%" in gold) and ours == (
        theirs / 100 if "%" in answer else theirs * 100
    ):
        return True
    if len(gold.partition(".")[2]) < LONG_DECIMAL:
        return False
    error, decimals = abs(ours - theirs), len(re.sub(r"\D", "", answer.partition(".")[2]))
    half_unit = Fraction(1, 2 * 10**decimals)
    is_rounded = decimals >= 2 and error <= half_unit and error <= abs(theirs) / 100
    return is_rounded or error <= abs(theirs) / 10**9


def _contains_words(answer: str, gold: str) -> bool:
    """Whether an answer in words contains the gold words and does not negate them."""
    ours, theirs = (re.findall(r"[a-z0-9]+", without_text(text).lower()) for text in (answer, gold))
    if {"not", "neither", "nor"} & set(ours):
        return ours == theirs
    return any(ours[start : start + len(theirs)] == theirs for start in range(len(ours)))


def _canonical(answer: str) -> str:
    """LaTeX without what does not change its meaning: blanks, sizes, dollar signs, final stops."""
    text = re.sub(r"\\(?:left|right|!|,|;|\s)|[\s$]", "", answer)
    return text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").rstrip(".")


_UNICODE = str.maketrans(
    {
        "π": r"\pi ", "\u00d7": r"\times ", "·": r"\cdot ", "\u2212": "-", "\u2013": "-",
        "∞": r"\infty ", "\u222a": r"\cup ", "∩": r"\cap ", "≤": r"\leq ", "≥": r"\geq ",
        "θ": r"\theta ", "±": r"\pm ", "²": "^2", "³": "^3", "°": r"^\circ", "÷": "/",
        "∈": r"\in ", "½": r"\frac12",
    }
)  # fmt: skip


def readable(answer: str) -> str:
    """Plain text as LaTeX that Math-Verify can read."""
    text = answer.translate(_UNICODE)
    text = re.sub(r"√\s*(\d+(?:\.\d+)?|[A-Za-z]|\([^()]*\))", r"\\sqrt{\1}", text)
    text = re.sub(r"(?<![\\A-Za-z])sqrt\s*(\d+|\([^()]*\))", r"\\sqrt{\1}", text)
    text = re.sub(r"(?<![\\A-Za-z])(pi|infinity|inf)\b", lambda match: _NAMED[match[1]], text)
    return re.sub(r"(?<=\d)\s*\*\*\s*(?=[\d{(])", "^", text)


_NAMED = {"pi": r"\pi ", "infinity": r"\infty ", "inf": r"\infty "}
