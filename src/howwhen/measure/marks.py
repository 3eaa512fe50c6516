"""Answers that a text marks as such: in a box, after `####`, or after `the answer is`."""

import re
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple

from howwhen.collect.latex import closing_brace
from howwhen.measure.conclusions import conclude
from howwhen.measure.endings import SENTENCE_END
from howwhen.measure.equality import read_option
from howwhen.measure.grammar import MATH, inside_math
from howwhen.measure.kinds import Kind, Wanted, without_text
from howwhen.measure.numbers import NUMBER, as_number
from howwhen.measure.numerals import NUMERAL
from howwhen.measure.parts import MAX_ANSWER_LENGTH
from howwhen.measure.questions import Asked
from howwhen.measure.units import COMPOUND, UNITS, as_quantities, unit_name


class Rule(StrEnum):
    """How an answer was found, strict rules first."""

    BOXED = "boxed"
    r"""In the last `\boxed{...}`, or in several side by side."""
    MARKED = "marked"
    """After `####` or `<answer>`, on the same line."""
    STATED = "stated"
    """After `the answer is` or `Answer:`, with nothing but an answer behind it."""
    CONCLUDED = "concluded"
    """In the sentence that concludes the text."""
    REPEATED = "repeated"
    """What a text that was cut off concludes most often."""


class Answer(NamedTuple):
    """An answer as text, and the rule that found it."""

    text: str
    rule: Rule


_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BETWEEN_BOXES = re.compile(r"[\s$\\,;()\[\].*]{0,20}(?:and|or)?[\s$\\,;()\[\].*]{0,20}")
_MARKED = re.compile(r"(?:####[ \t]*|<answer>\s*)(?P<answer>[^\n<]+)")
_STATED = re.compile(
    r"(?<!by step )(?<!by-step )\banswer\b\"?"
    r"(?:\s+(?:to|for|of)\s+[^.:,\n]{1,80}?)?"
    r"[*_\s]{0,4}(?:\bis\b|\bare\b|\bshould be\b|\bwould be\b|\bwill be\b|\bmust be\b|=|:)"
    r"[*_ \t]{0,4}:?",
    re.IGNORECASE,
)
_WORD = re.compile(r"(?<![\\{A-Za-z])[A-Za-z]{3,}")
_LIST = re.compile(r"[ \t*_:]*\n\s*\d{1,2}[.)]\s")
_MATH_WORDS = {
    "and", "sqrt", "infinity", "inf", "sin", "cos", "tan", "cot", "sec", "csc", "log", "degrees",
    "arcsin", "arccos", "arctan", "mod", "exp", "units",
}  # fmt: skip
_UNIT_WORDS = re.compile(r"(?<=[\dπ})])\s+[A-Za-z][A-Za-z /]*$")
_DIGIT = re.compile(r"\d")
_GOES_ON = re.compile(
    r"[π√]|[A-Za-z](?![A-Za-z])|\s*(?:[\\^_/*+=({]|-\s*[\d\\(]|:\s*\d|(?:,|and|or)\s*-?\\?[\d(])"
)
"""After a number: an expression or a list, not a number alone."""
_DENIED_FIRST = re.compile(r"\s*(?:is\s+)?not\s[^.\n]{1,60}?\bbut\s+(?:rather\s+)?", re.IGNORECASE)
_CLOCK = re.compile(r"\d{1,2}:\d{2}(?:\s*[ap]\.?m\b\.?)?", re.IGNORECASE)
_RATIO = re.compile(r"\d+ to \d+\b")
_ALL = re.compile(
    r"(?:all|any) real numbers?\b|no solutions?\b|(?:the )?empty set\b", re.IGNORECASE
)
_EITHER = re.compile(r"either\s|\S+\s+or\s", re.IGNORECASE)


def last_mark(text: str, wanted: Wanted) -> Answer | None:
    """The last answer that a text marks as its answer; None if it marks none."""
    found = [
        mark for mark in (_boxed(text, wanted), _hashed(text, wanted), _said(text, wanted)) if mark
    ]
    return max(found)[1] if found else None


def _boxed(text: str, wanted: Wanted) -> tuple[int, Answer] | None:
    """The last box that is neither asked nor denied; boxes side by side are one answer."""
    boxes: list[str] = []
    right = None
    place = 0
    for match in last_matches(_BOX, ("\\boxed", "\\fbox"), text, 16):
        end = closing_brace(text, match.end(), MAX_ANSWER_LENGTH)
        if right is not None and not _joins(text, end or right, right, wanted):
            break
        if end is None or _is_doubted(text, match.start(), end):
            continue
        inside = _unboxed(text[match.end() : end - 1].strip())
        if inside and (not boxes or inside != boxes[0]):
            boxes.insert(0, inside)
        place, right = place or match.start(), match.start()
    if not boxes:
        return None
    said = ", ".join(boxes) if len(boxes) > 1 else _in_words(boxes[0], wanted)
    if wanted.kind is Kind.LETTER:
        said = _options(without_text(said)) or said
    return place, Answer(said, Rule.BOXED)


def _joins(text: str, end: int, start: int, wanted: Wanted) -> bool:
    """Whether what is between two boxes makes them one answer."""
    if _BETWEEN_BOXES.fullmatch(text, end, start):
        return True
    return wanted.parts > 1 and start - end < 80 and "\\boxed" not in text[end:start]


def _is_doubted(text: str, start: int, end: int) -> bool:
    r"""Whether a box is asked, `\boxed{5}?`, or denied, `not \boxed{5}`."""
    after = text[end : end + 12].lstrip(" $\\)]*}")
    before = text[max(0, start - 16) : start].rstrip(" $\\([*").lower()
    return after.startswith("?") or before.endswith((" not", "n't", "cannot be", "isn't"))


def _unboxed(inside: str) -> str:
    box = _BOX.match(inside)
    if box is None:
        return inside
    end = closing_brace(inside, box.end(), MAX_ANSWER_LENGTH)
    return inside[box.end() : end - 1].strip() if end == len(inside) else inside


def _in_words(inside: str, wanted: Wanted) -> str:
    r"""What a box says, if it holds a sentence: `\text{The answer is } 42`."""
    if wanted.kind is not Kind.NUMBER or not _WORD.search(without_text(inside)):
        return inside
    if as_number(inside) is not None:
        return inside
    plain = without_text(inside)
    return conclude(plain, wanted, Asked()) or inside


def _hashed(text: str, wanted: Wanted) -> tuple[int, Answer] | None:
    for match in last_matches(_MARKED, ("####", "<answer>"), text):
        if value := value_at("\n" + match["answer"], wanted):
            return match.start(), Answer(value, Rule.MARKED)
    return None


def _said(text: str, wanted: Wanted) -> tuple[int, Answer] | None:
    for match in said_answers(text):
        if text[match.start() - 1 : match.start()] == '"' and ":" in match[0]:
            continue  # a key of JSON
        if value := value_at(text[match.end() : match.end() + MAX_ANSWER_LENGTH], wanted):
            return match.start(), Answer(value, Rule.STATED)
    return None


def last_matches(
    pattern: re.Pattern[str], openings: Sequence[str], text: str, limit: int = 8
) -> Iterator[re.Match[str]]:
    """The last `limit` matches, the last one first.

    Args:
        pattern: what is looked for.
        openings: what each match begins with.
        text: is searched from its end.
        limit: matches returned at most.
    """
    places = [text.rfind(opening) for opening in openings]
    while limit and (place := max(places)) >= 0:
        index = places.index(place)
        places[index] = text.rfind(openings[index], 0, place)
        if match := pattern.match(text, place):
            limit -= 1
            yield match


def said_answers(text: str) -> Iterator[re.Match[str]]:
    """Where a text says `the answer is` or the like, the last one first."""
    return last_matches(_STATED, ("answer", "Answer", "ANSWER"), text)


def value_at(rest: str, wanted: Wanted) -> str | None:
    """The answer at the start of `rest`; None if anything but an answer is there."""
    if _LIST.match(rest):
        return None
    rest = re.sub(r"^[\s*_:>\"]+", "", rest)
    rest = _DENIED_FIRST.sub("", rest, count=1) if _DENIED_FIRST.match(rest) else rest
    if wanted.kind is Kind.LETTER:
        return _options(without_text(rest))
    value = _short_value(rest, wanted)
    if value is not None and not value.strip("\\()[]$ "):
        return None  # a formula with nothing in it
    if value is None or wanted.kind is not Kind.NUMBER:
        return value
    is_number = as_number(value) is not None or as_quantities(value)
    return value if is_number or (_DIGIT.search(value) and not _WORD.search(value)) else None


_SEVERAL_OPTIONS = re.compile(r"\W*[A-J]\W{0,3}(?:,|and|or|&)\W{0,3}[A-J]\b(?![\w'])")
_SMALL_OPTION = re.compile(r"\W*\((?P<letter>[a-j])\)")


def _options(text: str) -> str | None:
    """The option that a text begins with, or all of several."""
    if several := _SEVERAL_OPTIONS.match(text):
        return several[0].strip()
    if small := _SMALL_OPTION.match(text):
        return small["letter"].upper()
    return read_option(text)


def _short_value(rest: str, wanted: Wanted) -> str | None:
    if boxed := _BOX.search(rest[:40]):
        end = closing_brace(rest, boxed.end())
        return rest[boxed.end() : end - 1].strip() or None if end else None
    if math := MATH.match(rest):
        return _joined_math(rest, math)
    sentence = SENTENCE_END.split(rest, maxsplit=1)[0].strip().rstrip('.*_" ')
    if wanted.kind is Kind.WORDS:
        return _short_words(sentence)
    special = _CLOCK.match(rest) or _RATIO.match(rest) or _ALL.match(rest)
    if special and wanted.kind is Kind.EXPRESSION:
        return special[0]
    if (compound := COMPOUND.match(rest)) and as_quantities(compound[0]):
        return compound[0] if len(sentence) <= compound.end() + 20 else None
    if _EITHER.match(sentence):
        return _undecided(sentence)
    number = NUMBER.match(rest) or NUMERAL.match(rest)
    if number and not _GOES_ON.match(rest, number.end()):
        unit = sentence[number.end() :]
        is_unit = len(_WORD.findall(unit)) <= 5 and not _DIGIT.search(unit) and "?" not in unit
        if not is_unit:
            return None
        name = unit.split(maxsplit=1)[0] if unit.strip() else ""
        is_known = unit_name(name) in UNITS and (name != "in" or unit.strip() == "in")
        return f"{number[0].strip()} {name}" if is_known else number[0].strip()
    sentence = _UNIT_WORDS.sub("", sentence)
    prose = [word for word in _WORD.findall(sentence) if word.lower() not in _MATH_WORDS]
    return sentence if sentence and not prose else None


def _short_words(sentence: str) -> str | None:
    """An answer in words, up to its reason."""
    head = re.split(r",|;|\s(?:because|since|as)\s", sentence, maxsplit=1)[0].strip()
    return head if head and len(_WORD.findall(head)) <= 4 else None


def _undecided(sentence: str) -> str | None:
    """Both answers of a sentence that does not decide between two."""
    numbers = [match[0].strip() for match in NUMBER.finditer(sentence)]
    return " or ".join(numbers) if len(numbers) == 2 else None


def _joined_math(text: str, math: re.Match[str]) -> str:
    """One piece of LaTeX, or several with only commas or `and` between."""
    parts = [_inside(math)]
    while True:
        joint = re.compile(r"\s*(?:,|and|or|, and|, or)\s*").match(text, math.end())
        following = MATH.match(text, joint.end()) if joint else None
        if following is None:
            return ", ".join(parts)
        math = following
        parts.append(_inside(math))


def _inside(math: re.Match[str]) -> str:
    inside = inside_math(math[0])
    boxed = _boxed(inside, Wanted(Kind.EXPRESSION))
    return boxed[1].text if boxed else inside
