"""What kind of answer a gold answer is. Its value is never looked at when an answer is read."""

import re
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from howwhen.measure.numbers import as_number


class Kind(StrEnum):
    """What kind of answer the gold answer is."""

    NUMBER = "number"
    LETTER = "letter"
    """An option, `A` to `J`."""
    WORDS = "words"
    EXPRESSION = "expression"


class Wanted(NamedTuple):
    """The form of a gold answer."""

    kind: Kind
    parts: int = 1
    """How many results it lists."""
    is_relation: bool = False
    """Whether it is an equation or an inequality, and not the value of something."""


@lru_cache(maxsize=50_000)
def wanted_of(gold: str, dataset: str = "") -> Wanted:
    """The form of a gold answer.

    Args:
        gold: the final answer only.
        dataset: name of the problem set; the answers of `mmlu_pro` are options.
    """
    plain = without_text(gold).strip("() .")
    is_option = "mmlu" in dataset.lower() or "\\text" in gold or "(" in gold
    if is_option and re.fullmatch(r"[A-J]", plain):
        return Wanted(Kind.LETTER)
    if as_number(gold) is not None and "frac" not in gold and "/" not in gold:
        return Wanted(Kind.NUMBER if re.search(r"\d", gold) else Kind.WORDS)
    if re.fullmatch(r"[A-Za-z]{2,}(?:[ -][A-Za-z]+)*", plain) and "\\" not in plain:
        return Wanted(Kind.WORDS)
    return Wanted(Kind.EXPRESSION, len(split_list(gold)), bool(_RELATION.search(gold)))


_RELATION = re.compile(r"(?<![A-Za-z])[=<>]|\\(?:le|ge|leq|geq|lt|gt|neq|ne|equiv)\b|[≤≥≠]")
_OPENING, _CLOSING = "([{", ")]}"


def split_list(text: str) -> list[str]:
    """The parts of a list at its outermost commas; the text itself if it is none.

    Thousands separators do not part a number, and an interval or a tuple is one part.
    """
    parts, depth, start = [], 0, 0
    for index, character in enumerate(text):
        if character in _OPENING:
            depth += 1
        elif character in _CLOSING:
            depth -= 1
        elif character == "," and depth == 0 and not _THOUSANDS.match(text, max(0, index - 1)):
            parts.append(text[start:index])
            start = index + 1
    parts.append(text[start:])
    if len(parts) == 1:
        return [text]
    return [
        part for part in (re.sub(r"^\s*(?:and|or)\b", "", part).strip() for part in parts) if part
    ]


_THOUSANDS = re.compile(r"\d,(?:\\!\s*)?\d{3}(?!\d)")


def without_text(answer: str) -> str:
    r"""LaTeX with the content of each `\text{...}` in its place."""
    return re.sub(r"\\(?:text|mbox|textbf|mathrm|textit|mathbf)\s*\{([^{}]*)\}", r"\1", answer)
