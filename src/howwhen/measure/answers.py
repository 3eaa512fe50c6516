r"""Reading the final answer out of a text: the rules, in the order in which they are tried.

Strict mode takes only an answer that is marked as one: in a box, after `####`, or in a short
statement such as `the answer is 12`. Flexible mode also reads the sentence that concludes. The
rules know the question and what kind of answer is wanted, never the gold answer's value. All of
them take time linear in the text.
"""

import re
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import NamedTuple

from howwhen.collect.latex import closing_brace
from howwhen.measure.conclusions import TAIL, conclude
from howwhen.measure.equality import OPTION, read_option
from howwhen.measure.grammar import (
    ABBREVIATIONS,
    MATH,
    inside_math,
)
from howwhen.measure.kinds import Kind, Wanted, without_text
from howwhen.measure.numbers import (
    COMPOUND,
    NUMBER,
    NUMERAL,
    as_number,
    as_quantities,
    trim_unit,
)
from howwhen.measure.parts import MAX_TAIL, Parts
from howwhen.measure.questions import Asked


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


class Reader(NamedTuple):
    """What a rule may look at."""

    parts: Parts
    final: str
    """The final part, up to where another problem begins; without the last sentence of a text that
    was cut off."""
    wanted: Wanted
    asked: Asked
    is_complete: bool
    """Whether the text ended by itself."""


def _marked_in_final(reader: Reader) -> Answer | None:
    marked = last_mark(reader.final, reader.wanted)
    if marked and not reader.is_complete and _WITHDRAWN.search(_after_last_box(reader.final)):
        return None
    return marked


def _after_last_box(text: str) -> str:
    return text[max(text.rfind("\\boxed"), text.rfind("answer"), 0) :]


def _concluded_in_final(reader: Reader) -> Answer | None:
    if not reader.is_complete or not reader.final.strip():
        return None
    return _concluded(reader.final, reader.wanted, reader.asked)


def _marked_in_closed_thinking(reader: Reader) -> Answer | None:
    """A model that closed its thinking and was cut off in its answer had made up its mind."""
    if reader.parts.is_open:
        return None
    return last_mark(reader.parts.thinking, reader.wanted)


def _of_open_thinking(reader: Reader) -> Answer | None:
    """A text that ended by itself in the middle of its thinking concludes there."""
    if not (reader.parts.is_open and reader.is_complete):
        return None
    thinking = reader.parts.thinking
    marked = last_mark(thinking, reader.wanted)
    return marked or _concluded(thinking, reader.wanted, reader.asked)


def _called_in_cut_final(reader: Reader) -> Answer | None:
    if reader.is_complete or thinks_aloud(reader.final):
        return None
    return _called_answer(reader.final, reader.wanted, reader.asked)


def _repeated_in_cut_text(reader: Reader) -> Answer | None:
    if reader.is_complete or reader.parts.is_open:
        return None
    return _repeated(f"{reader.parts.thinking}\n{reader.final}", reader.wanted, reader.asked)


STRICT_RULES: tuple[Callable[[Reader], Answer | None], ...] = (_marked_in_final,)
"""Nothing is read out of thinking, closed or not."""
RULES: tuple[Callable[[Reader], Answer | None], ...] = (
    _marked_in_final,
    _concluded_in_final,
    _of_open_thinking,
    _marked_in_closed_thinking,
    _called_in_cut_final,
    _repeated_in_cut_text,
)
"""The flexible mode, in order: the first rule that finds an answer decides."""

MAX_ANSWER_LENGTH = 500
"""Longer texts are not answers."""

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
_ANOTHER_PROBLEM = re.compile(
    r"\n\s{0,4}(?:\*\*|#{1,4} )?(?:Question|Problem|Exercise|Instruction|Human|User|Q)\s?\d{0,3}:"
    r"|\n\s{0,4}You are an AI assistant"
    r"|\n\s{0,4}(?:\*\*|#{1,4} )?Step 1\b"
)
_SENTENCE_END = re.compile(
    "(?<=[.!?])"
    + "".join(rf"(?<!\b{name.capitalize()}\.)" for name in sorted(ABBREVIATIONS) if name.isalpha())
    + r"[\"'*)\]]{0,3}\s+|(?<=[.!?])$|\n+|(?<=[.!?])(?=\*\*)"
)
_LABEL = re.compile(
    r"^[\s*_#>-]*(?:Step\s*\d+\s*[:.)]|\d{1,3}[.)](?=\s)|(?:Final )?Answer\s*:)?[\s*_#>-]*(?=\S)",
    re.IGNORECASE,
)
_CUE = re.compile(
    r"^\W*(?:therefore|thus|hence|so|in conclusion|conclusion|consequently|altogether|in total|"
    r"finally|final|answer|as a result|overall|in summary)\b",
    re.IGNORECASE,
)
_WORD = re.compile(r"(?<![\\{A-Za-z])[A-Za-z]{3,}")
_ANSWER = re.compile(r"\banswer\b", re.IGNORECASE)
_WEIGHTY = re.compile(
    r"\b(?:total|altogether|in all|correct|therefore|thus|overall)\b", re.IGNORECASE
)
_DOUBT = re.compile(r"\b(?:wait|hmm)\b", re.IGNORECASE)
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
_UNFINISHED = re.compile(r"(?:\b(?:is|are|equals|after|to|of|the|a)|=|answer:)\s*$", re.IGNORECASE)
_GIVES_UP = re.compile(
    r"\b(?:cannot|can't|could not|couldn't|not able to|unable to|impossible to) (?:be )?"
    r"(?:decided?|say|said|determined?|tell|told|settled?|found|find|solved?|concluded?)\b"
    r"|\bnot sure\b|\bdo(?:es)?(?: not|n't) (?:know|give enough)",
    re.IGNORECASE,
)
_WITHDRAWN = re.compile(
    r"\blet me (?:redo|start over)|\bthat ignores|\bthat(?:'s| is) (?:wrong|incorrect|not right)"
    r"|\bi (?:forgot|made an? (?:mistake|error))|\bstart over|\bscratch that",
    re.IGNORECASE,
)
"""In a text that was cut off: its last mark no longer stands."""
_ITEM_BEGUN = re.compile(r"\n[ \t]+$|\n\s*(?:[-*]|\d{1,2}\.)\s*$")
_EITHER = re.compile(r"either\s|\S+\s+or\s", re.IGNORECASE)
_UNFINISHED_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{(?:[^{}]|\{[^{}]*\})*$")


def read_answer(
    parts: Parts, wanted: Wanted, asked: Asked, is_complete: bool, *, is_strict: bool
) -> Answer | None:
    """The answer that a text gives, by the first rule that finds one; None if none does."""
    if is_strict:
        wanted = wanted._replace(parts=1)  # results in several places are not one marked answer
    parts = parts._replace(final=_mended(parts.final), thinking=_mended(parts.thinking))
    final = _first_problem(parts.final, wanted, asked)
    is_complete = is_complete or len(final) < len(parts.final)  # it goes on after its answer
    if not is_complete:
        if _breaks_off_in_another_box(final):
            return None
        final = _without_last_sentence(final)
    reader = Reader(parts, final, wanted, asked, is_complete)
    for rule in STRICT_RULES if is_strict else RULES:
        if answer := rule(reader):
            return answer
    return None


def _breaks_off_in_another_box(text: str) -> bool:
    """Whether a cut text ends within a box, and not one that it has repeated before."""
    begun = _UNFINISHED_BOX.search(text, max(0, len(text) - MAX_ANSWER_LENGTH))
    return begun is not None and text.count(begun[0]) == 1


def _mended(text: str) -> str:
    """A text with boxes that lost their braces, or their backslash to an escape."""
    if "oxed" not in text:
        return text
    return re.sub(r"\\boxed\s+(\w+)", r"\\boxed{\1}", text.replace("\x08oxed", "\\boxed"))


def looks_truncated(text: str, parts: Parts) -> bool:
    """Whether a text stops in the middle. For texts whose finish reason is not known.

    Args:
        text: everything the model wrote.
        parts: the same in parts. Thinking that was never closed, or that goes on without a mark
            ("Wait"), counts as truncated.
    """
    if parts.is_open:
        return True
    end = parts.final.rstrip()
    if not end:
        return bool(parts.thinking)
    if not parts.thinking and thinks_aloud(text):
        return True
    if _ITEM_BEGUN.search(text) or (parts.thinking and text.endswith("\n")):
        return True
    return end[-1] not in ".!?}])$*|\"'`…。>%" and len(text) > TAIL


def thinks_aloud(text: str) -> bool:
    """Whether a text doubts itself, as thinking does, more than once."""
    return len(_DOUBT.findall(text[-MAX_TAIL:])) > 1


# Where an answer ends


def _first_problem(text: str, wanted: Wanted, asked: Asked) -> str:
    """The text up to where it goes on to another problem or starts again after its answer."""
    for index, match in enumerate(_ANOTHER_PROBLEM.finditer(text)):
        head = text[: match.start()]
        if index == 8:
            break
        if "Step 1" in match[0] and "Step 1" not in head:
            continue
        if "assistant" in match[0] and head.strip():
            return head
        if last_mark(head, wanted) or _called_answer(head, wanted, asked) or _ends_in_cue(head):
            return head
        if "Step 1" not in match[0] and len(head) > 40 and _concluded(head, wanted, asked):
            return head
    return text


def _ends_in_cue(text: str) -> bool:
    sentences = _sentences(text[-TAIL:])
    return bool(sentences) and bool(_CUE.search(sentences[-1]))


def _without_last_sentence(text: str) -> str:
    """A cut text up to its last complete sentence; unchanged if it has none."""
    ends = [match.start() for match in _SENTENCE_END.finditer(text, max(0, len(text) - TAIL))]
    ends = [end for end in ends if text[:end].strip() and end < len(text.rstrip())]
    return text[: ends[-1]] if ends else text


def _sentences(text: str) -> list[str]:
    """Sentences without labels such as `Step 4:`, in order."""
    parts = (_LABEL.sub("", part) for part in _SENTENCE_END.split(text) if part)
    return [part.strip() for part in parts if part.strip(" *_#-")]


# Marks


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
    for match in _from_the_end(_BOX, text, 16):
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
    for match in _from_the_end(_MARKED, text):
        if value := _value("\n" + match["answer"], wanted):
            return match.start(), Answer(value, Rule.MARKED)
    return None


def _said(text: str, wanted: Wanted) -> tuple[int, Answer] | None:
    for match in _from_the_end(_STATED, text):
        if text[match.start() - 1 : match.start()] == '"' and ":" in match[0]:
            continue  # a key of JSON
        if value := _value(text[match.end() : match.end() + MAX_ANSWER_LENGTH], wanted):
            return match.start(), Answer(value, Rule.STATED)
    return None


def _from_the_end(pattern: re.Pattern[str], text: str, limit: int = 8) -> Iterator[re.Match[str]]:
    """The last `limit` matches, the last one first."""
    return iter(list(pattern.finditer(text))[: -limit - 1 : -1])


def _value(rest: str, wanted: Wanted) -> str | None:
    """The answer at the start of `rest`; None if anything but an answer is there."""
    if _LIST.match(rest):
        return None
    rest = re.sub(r"^[\s*_:>\"]+", "", rest)
    rest = _DENIED_FIRST.sub("", rest, count=1) if _DENIED_FIRST.match(rest) else rest
    if wanted.kind is Kind.LETTER:
        return _options(without_text(rest))
    value = _short_value(rest, wanted)
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
    sentence = _SENTENCE_END.split(rest, maxsplit=1)[0].strip().rstrip('.*_" ')
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
        return number[0].strip() if is_unit else None
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


# Conclusions


def _called_answer(text: str, wanted: Wanted, asked: Asked) -> Answer | None:
    """What a text calls its answer in some sentence."""
    for match in _from_the_end(_STATED, text):
        rest = text[match.end() : match.end() + MAX_ANSWER_LENGTH].lstrip(" *_:\n")
        sentence = _SENTENCE_END.split(rest, maxsplit=1)[0]
        if _LABEL.sub("", sentence) != sentence or not sentence:
            continue
        if value := _of_sentence(f"It is {sentence}", wanted, asked):
            return Answer(value, Rule.CONCLUDED)
    return None


def _concluded(text: str, wanted: Wanted, asked: Asked) -> Answer | None:
    """The answer in the sentence that concludes a text that ended by itself."""
    if _GIVES_UP.search(text[-200:]) or _UNFINISHED.search(text.rstrip("*_$ \n")):
        return None
    if called := _called_answer(text, wanted, asked):
        return called
    if wanted.kind is Kind.EXPRESSION and (plain := _plain_expression(text, wanted)):
        return Answer(plain, Rule.CONCLUDED)
    if wanted.kind in (Kind.NUMBER, Kind.EXPRESSION):
        value = conclude(text, wanted, asked)
        return Answer(value, Rule.CONCLUDED) if value else None
    for sentence in reversed(_sentences(text[-TAIL:])[-6:]):
        if not sentence.endswith("?") and (value := _of_sentence(sentence, wanted, asked)):
            return Answer(value, Rule.CONCLUDED)
    return None


_VERB = re.compile(
    r"(?:\b(?:is|are|was|were|be|equals?|becomes?|gives|makes)\b|[=≈:])"
    r"(?:\s(?:equal to|indeed|then))*\s*"
)


def _plain_expression(text: str, wanted: Wanted) -> str | None:
    """An expression without LaTeX, after the last verb of a sentence that has no LaTeX either."""
    for sentence in reversed(_sentences(text[-TAIL:])[-4:]):
        if MATH.search(sentence) or sentence.endswith("?"):
            return None
        for verb in reversed(list(_VERB.finditer(sentence))):
            value = _value(sentence[verb.end() :], wanted)
            if value and as_number(value) is None and (len(value) > 1 or not value.isalnum()):
                return trim_unit(value)
        if _DIGIT.search(sentence):
            return None
    return None


def _of_sentence(sentence: str, wanted: Wanted, asked: Asked) -> str | None:
    """The answer within a sentence of prose."""
    if wanted.kind is Kind.LETTER:
        options = OPTION.findall(sentence)
        return options[-1] if options else _of_options(sentence, asked)
    if wanted.kind is Kind.WORDS:
        return sentence.removeprefix("It is ").strip(" .*_")[:MAX_ANSWER_LENGTH] or None
    if wanted.kind is Kind.EXPRESSION and (
        value := _value(sentence.removeprefix("It is "), wanted)
    ):
        return trim_unit(value)
    return conclude(sentence, wanted, asked)


def _of_options(sentence: str, asked: Asked) -> str | None:
    """The option whose text a sentence names, if it names just one."""
    named = [letter for letter, text in asked.options if text.lower() in sentence.lower()]
    return named[0] if len(named) == 1 else None


def _repeated(text: str, wanted: Wanted, asked: Asked) -> Answer | None:
    """What a cut text concludes most often.

    In a text that thinks aloud, a sentence about an answer has weight 2, and one that only goes on
    with `so` has weight 0.5. Percentages count as steps there, not as answers. The winner needs a
    weight of at least 4 and 1.5 times that of the next.
    """
    text = text[-MAX_TAIL:]
    is_thinking = thinks_aloud(text)
    weights: dict[object, float] = {}
    texts: dict[object, str] = {}
    for sentence in _sentences(text):
        weight = _weight(sentence) if is_thinking else float(bool(_CUE.search(sentence)))
        value = _of_sentence(sentence, wanted, asked) if weight else None
        if value is not None and not (is_thinking and "%" in value):
            number = as_number(value)
            key = value if number is None else number
            weights[key] = weights.pop(key, 0.0) + weight  # ties: the last one wins
            texts[key] = value
    best = max(reversed(weights), key=lambda key: weights[key], default=None)
    if best is None:
        return None
    rest = max((weight for key, weight in weights.items() if key != best), default=0.0)
    if is_thinking and (weights[best] < 4 or weights[best] < 1.5 * rest):
        return None
    return Answer(texts[best], Rule.REPEATED)


def _weight(sentence: str) -> float:
    if _ANSWER.search(sentence):
        return 2.0
    return 1.0 if _WEIGHTY.search(sentence) else 0.5 * bool(_CUE.search(sentence))
