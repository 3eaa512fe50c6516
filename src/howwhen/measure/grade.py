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
from typing import Literal, NamedTuple

from howwhen.measure.answers import read_answer
from howwhen.measure.endings import looks_truncated
from howwhen.measure.equality import as_intervals, compare_exactly, without_idle_digits
from howwhen.measure.kinds import Kind, wanted_of
from howwhen.measure.marks import Answer
from howwhen.measure.parts import Parts, is_loop, split_parts
from howwhen.measure.questions import in_asked_unit, read_question
from howwhen.measure.workers import Verdict, Workers
from howwhen.records import Finish, Grade

Mode = Literal["flexible", "strict"]
"""Which rules of `answers` may find the answer: all of them, or only those for marked answers."""


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
    question: str | None = None
    """What was asked. It decides among several results that a text names."""
    think_tags: tuple[str, str] | None = None
    """What this model opens and closes its thinking with, beside the known ones."""
    starts_in_thinking: bool = False
    """Whether the prompt ended in the opening mark, so that the text begins inside thinking."""


class Graded(NamedTuple):
    """A grade, and how it came about."""

    grade: Grade
    answer: Answer | None
    """The answer that was graded; None if none was found."""
    is_open: bool = False
    """Whether the text stops inside its thinking."""
    is_loop: bool = False
    """Whether the text ends in the same words again and again."""


class Second(NamedTuple):
    """What a second reader, independent of our rules, makes of an answer."""

    grade: Grade
    answer: str
    """As it was read; empty if nothing was."""


class Found(NamedTuple):
    """What was found in a text, before it is compared with the gold answer."""

    answer: Answer | None
    grade: Grade
    """That of a text without an answer."""
    parts: Parts
    """The text in parts."""


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
        found = [find_answer(item, mode) for item in named]
        pairs = [
            (_as_asked(one.answer.text, item), item.gold)
            for item, one in zip(named, found, strict=True)
            if one.answer is not None
        ]
        grades = iter(self.compare(pairs))
        return [
            Graded(
                one.grade if one.answer is None else next(grades),
                one.answer,
                one.parts.is_open,
                is_loop(item.text),
            )
            for item, one in zip(named, found, strict=True)
        ]

    def read_again(self, items: Sequence[Item]) -> list[Second | None]:
        """Grade answers by Math-Verify's own reading of them, in order.

        It reads numbers and formulas: None where the gold answer is a word or an option.
        """
        readable_items = [
            (index, item)
            for index, item in enumerate(items)
            if wanted_of(item.gold, item.dataset).kind in (Kind.NUMBER, Kind.EXPRESSION)
        ]
        texts = [_whole_answer(item) for _, item in readable_items]
        golds = [readable(item.gold) for _, item in readable_items]
        replies = self.workers.extract(list(zip(texts, golds, strict=True)))
        found: list[Second | None] = [None] * len(items)
        for (index, _), reply in zip(readable_items, replies, strict=True):
            found[index] = Second(_GRADE_OF[reply.verdict], reply.answer)
        return found

    def compare(self, pairs: Sequence[tuple[str, str]]) -> list[Grade]:
        """Whether answers and gold answers mean the same, pair by pair."""
        grades: dict[tuple[str, str], Grade] = {}
        undecided = []
        for pair in dict.fromkeys(pairs):
            if known := self._known.get(pair):
                grades[pair] = known
            elif exact := compare_exactly(*pair):
                grades[pair] = _GRADE_OF[exact]
            else:
                undecided.append(pair)
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


def _as_asked(answer: str, item: Item) -> str:
    asked = read_question(item.question or "")
    if asked.is_empty or wanted_of(item.gold, item.dataset).kind is not Kind.NUMBER:
        return answer
    return in_asked_unit(answer, asked)


def _whole_answer(item: Item) -> str:
    """What a second reader reads: the end of the answer, without thinking that was closed."""
    parts = split_parts(item.text, item.think_tags, item.starts_in_thinking)
    if parts.is_open and _is_cut(item, parts):
        return ""  # it was still thinking
    return (parts.final or parts.thinking)[-MAX_SECOND:]


MAX_SECOND = 4000
"""Characters at the end of an answer that the second reader reads."""


def find_answer(item: Item, mode: Mode) -> Found:
    """The answer that a text gives, or the grade of a text that gives none."""
    parts = split_parts(item.text, item.think_tags, item.starts_in_thinking)
    is_cut = _is_cut(item, parts)
    answer = read_answer(
        parts,
        wanted_of(item.gold, item.dataset),
        read_question(item.question or ""),
        not is_cut,
        is_strict=mode == "strict",
    )
    return Found(answer, Grade.TRUNCATED if is_cut else Grade.NO_ANSWER, parts)


def _is_cut(item: Item, parts: Parts) -> bool:
    if item.finish is None:
        return looks_truncated(item.text, parts)
    return item.finish is Finish.LENGTH


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
    text = re.sub(r"\\varnothing", r"\\emptyset", as_intervals(answer).translate(_UNICODE))
    text = without_idle_digits(text)
    text = re.sub(r"√\s*(\d+(?:\.\d+)?|[A-Za-z]|\([^()]*\))", r"\\sqrt{\1}", text)
    text = re.sub(r"(?<![\\A-Za-z])sqrt\s*(\d+|\([^()]*\))", r"\\sqrt{\1}", text)
    text = re.sub(r"(?<![\\A-Za-z])(pi|infinity|inf)\b", lambda match: _NAMED[match[1]], text)
    return re.sub(r"(?<=\d)\s*\*\*\s*(?=[\d{(])", "^", text)


_NAMED = {"pi": r"\pi ", "infinity": r"\infty ", "inf": r"\infty "}
