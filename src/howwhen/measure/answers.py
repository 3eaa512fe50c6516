r"""Reading the final answer out of a text, by named rules.

Strict mode takes only an answer that is marked as one: in a box, after `####`, or in a short
statement such as `the answer is 12`. Flexible mode also reads the number (or the expression) in the
sentence that concludes, and falls back to the last number. All rules take time linear in the text.
None looks at the gold answer's value, only at its kind.
"""

import re
from collections.abc import Iterator
from enum import StrEnum
from fractions import Fraction
from typing import NamedTuple

from howwhen.collect.latex import closing_brace
from howwhen.measure.numbers import NUMBER, as_number, trim_unit


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
    LAST_NUMBER = "last-number"
    """The last number of the text."""


class Answer(NamedTuple):
    """An answer as text, and the rule that found it."""

    text: str
    rule: Rule


class Kind(StrEnum):
    """What kind of answer the gold answer is."""

    NUMBER = "number"
    LETTER = "letter"
    """An option, `A` to `J`."""
    WORDS = "words"
    EXPRESSION = "expression"


MAX_ANSWER_LENGTH = 500
"""Longer texts are not answers."""
MAX_READ_CHARACTERS = 20_000
"""Characters at the end of a text that are searched for what it repeats."""
TAIL = 2000
"""Characters at the end of a text that are searched for its conclusion."""

_CLOSE = "</think>"
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BETWEEN_BOXES = re.compile(r"[\s$\\,;()\[\].*]{0,20}(?:and|or)?[\s$\\,;()\[\].*]{0,20}")
_MARKED = re.compile(r"(?:####|<answer>)[ \t]*(?P<answer>[^\n<]+)")
_STATED = re.compile(
    r"(?<!by step )(?<!by-step )\banswer\b"
    r"(?:\s+(?:to|for|of)\s+[^.:\n]{1,80}?)?"
    r"[*_\s]{0,4}(?:\bis\b|\bare\b|\bshould be\b|\bwould be\b|\bwill be\b|\bmust be\b|=|:)"
    r"[*_ \t]{0,4}:?",
    re.IGNORECASE,
)
_ANOTHER_PROBLEM = re.compile(
    r"\n\s{0,4}(?:\*\*|#{1,4} )?(?:Question|Problem|Exercise|Instruction|Human|User|Q)\s?\d{0,3}:"
    r"|\n\s{0,4}You are an AI assistant"
    r"|\n\s{0,4}(?:\*\*|#{1,4} )?Step 1\b"
)
_ABBREVIATION = "".join(rf"(?<!\b{name}\.)" for name in ("Mr", "Mrs", "Ms", "Dr", "St", "vs"))
_SENTENCE_END = re.compile(
    rf"(?<=[.!?]){_ABBREVIATION}[\"'*)\]]{{0,3}}\s+|(?<=[.!?])$|\n+|(?<=[.!?])(?=\*\*)"
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
_COPULA = re.compile(
    r"(?:\b(?:is|are|was|were|be|equals?|becomes?|costs?|total of|to be|gives|makes)\b|=|≈|:)"
    r"(?:\s+(?:therefore|thus|also|exactly|about|approximately|only|just|a total of|equal to|"
    r"simply|then|now|indeed|still|currently))*\s*[:*]*\s*",
    re.IGNORECASE,
)
_MATH = re.compile(
    r"\$\$(?P<a>.+?)\$\$|(?<![\\\d])\$(?!\d[\d,.]*(?:\s|[.,;]\s|$))(?P<b>(?:\\\$|[^$\n])+?)(?<!\\)\$"
    r"|\\\((?P<c>.+?)\\\)|\\\[(?P<d>.+?)\\\]",
    re.DOTALL,
)
_WORD = re.compile(r"(?<![\\{A-Za-z])[A-Za-z]{3,}")
_CHECKING = re.compile(
    r"\b(?:verif|check|correct|consistent|includes?\b)|\bconfirm(?!\w* that)", re.IGNORECASE
)
_COMPUTED = re.compile(r"[=≈]\s*(?:\\text\{[^}]{0,9}\})?(?=[-\u2212$€£\\]{0,3}\s?\d)")
_LEADING_CLAUSE = re.compile(
    r"^\W*(?:(?:therefore|thus|hence|so|then|finally)\b[\s,]*)?(?:that\s+)?"
    r"(?:in|after|at|for|with|when|if|since|by|on|out of|given|from|during|because)\b[^,]*,\s",
    re.IGNORECASE,
)
_TRAILING_CLAUSE = re.compile(
    r"[\s,]+(?:if|when|after|before|because|since|given|while|which|so that|in order|"
    r"that (?:costs?|has|have|can|will|is|are|was|were)|"
    r"to (?:ensure|make|reach|get|have|cover|meet|buy|finish|complete|be))\b",
    re.IGNORECASE,
)
_TRAILING_PHRASE = re.compile(
    r"\s(?:with|by|out of|for|in|than|from|over|during|at|on|per|of (?:the|his|her|their|its))\b",
    re.IGNORECASE,
)
_ASIDE = re.compile(
    r"^\W*(?:(?:this|these)\s(?!gives|makes|is\s\W*\d)|note|let's|let us|remember|please|thank|"
    r"is|yes|you|i|we can see|if|it's|for example|"
    r"the (?:problem|calculation|reasoning|solution|step|answer)s?\b)",
    re.IGNORECASE,
)
_ANSWER = re.compile(r"\banswer\b", re.IGNORECASE)
_SO = re.compile(r"[,;] so\b")
_WEIGHTY = re.compile(
    r"\b(?:total|altogether|in all|correct|therefore|thus|overall)\b", re.IGNORECASE
)
_DOUBT = re.compile(r"\b(?:wait|hmm|alternatively)\b", re.IGNORECASE)
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
_OPTION = re.compile(
    r"(?:\((?=[A-J]\))|\b(?=[A-HJ]\b)|\b(?=I\b\s*(?:[.):*}$]|$)))(?P<letter>[A-J])\b\)?(?![\w'])"
)
"""An option. A bare `I` among other words is the pronoun."""


def strict_answer(text: str, kind: Kind, is_complete: bool) -> Answer | None:
    """The answer that a text marks as its answer; None if it marks none.

    If there is a `</think>`, only what follows it counts. The last sentence of a text that was cut
    off does not count.
    """
    final = final_part(text)
    first = _first_problem(final, kind)
    if not is_complete and len(first) == len(final):
        first = _without_last_sentence(first)
    return _marked_answer(first, kind)


def flexible_answer(text: str, kind: Kind, is_complete: bool) -> Answer | None:
    """The answer that a reader would understand a text to give; None if there is none.

    Args:
        text: everything the model wrote.
        kind: of the gold answer.
        is_complete: whether the text ended by itself. The last sentence of a text that was cut off
            is ignored. Only what it marks, calls its answer or repeats counts.
    """
    thoughts, _, rest = text.rpartition(_CLOSE)
    final = _first_problem(rest, kind)
    if not is_complete and len(final) == len(rest):
        final = _without_last_sentence(final)
    if marked := _marked_answer(final, kind) or _marked_answer(thoughts, kind):
        return marked
    if is_complete and final.strip():
        return _concluded(final, kind)
    if not _thinks_aloud(final) and (called := _called_answer(final, kind)):
        return called
    return _repeated(f"{thoughts}\n{final}", kind)


def final_part(text: str) -> str:
    """What follows the thinking; everything if no thinking was closed."""
    return text.rpartition(_CLOSE)[2]


def looks_truncated(text: str) -> bool:
    """Whether a text stops in the middle. For texts whose finish reason is not known.

    A text that thinks aloud without closing its thinking counts as truncated, however it ends.
    """
    end = final_part(text).rstrip()
    if not end:
        return _CLOSE in text
    if _CLOSE not in text and _thinks_aloud(text):
        return True
    return end[-1] not in ".!?}])$*|\"'`…。>%" and len(text) > TAIL


def _first_problem(text: str, kind: Kind) -> str:
    """The text up to where it goes on to another problem or starts again after its answer."""
    for index, match in enumerate(_ANOTHER_PROBLEM.finditer(text)):
        head = text[: match.start()]
        if index == 8:
            break
        if "Step 1" in match[0] and "Step 1" not in head:
            continue
        if "assistant" in match[0] and head.strip():
            return head
        if _marked_answer(head, kind) or _called_answer(head, kind) or _ends_in_cue(head):
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


def _repeated(text: str, kind: Kind) -> Answer | None:
    """What a cut text concludes most often.

    In a text that thinks aloud, a sentence about an answer has weight 2, and one that only goes on
    with `so` has weight 0.5. Percentages count as steps there, not as answers. The winner needs a
    weight of at least 4 and 1.5 times that of the next.
    """
    text = text[-MAX_READ_CHARACTERS:]
    thinks_aloud = _thinks_aloud(text)
    weights: dict[Fraction | str, float] = {}
    texts: dict[Fraction | str, str] = {}
    for sentence in _sentences(text):
        weight = _weight(sentence) if thinks_aloud else float(bool(_CUE.search(sentence)))
        value = _of_sentence(sentence, "", kind) if weight else None
        if value is not None and not (thinks_aloud and "%" in value):
            number = as_number(value)
            key = value if number is None else number
            weights[key] = weights.pop(key, 0.0) + weight  # ties: the last one wins
            texts[key] = value
    best = max(reversed(weights), key=lambda key: weights[key], default=None)
    if best is None:
        return None
    rest = max((weight for key, weight in weights.items() if key != best), default=0.0)
    if thinks_aloud and (weights[best] < 4 or weights[best] < 1.5 * rest):
        return None
    return Answer(texts[best], Rule.REPEATED)


def _thinks_aloud(text: str) -> bool:
    return len(_DOUBT.findall(text[-MAX_READ_CHARACTERS:])) > 1


def _weight(sentence: str) -> float:
    if _ANSWER.search(sentence):
        return 2.0
    return 1.0 if _WEIGHTY.search(sentence) else 0.5 * bool(_CUE.search(sentence))


def _sentences(text: str) -> list[str]:
    """Sentences without labels such as `Step 4:`, in order."""
    parts = (_LABEL.sub("", part) for part in _SENTENCE_END.split(text) if part)
    return [part.strip() for part in parts if part.strip(" *_#-")]


def _marked_answer(text: str, kind: Kind) -> Answer | None:
    if boxed := _last_boxed(text):
        return Answer(boxed, Rule.BOXED)
    for match in _from_the_end(_MARKED, text):
        if value := _value("\n" + match["answer"], kind):
            return Answer(value, Rule.MARKED)
    for match in _from_the_end(_STATED, text):
        if value := _value(text[match.end() : match.end() + MAX_ANSWER_LENGTH], kind):
            return Answer(value, Rule.STATED)
    return None


def _from_the_end(pattern: re.Pattern[str], text: str, limit: int = 8) -> Iterator[re.Match[str]]:
    """The last `limit` matches, the last one first."""
    return iter(list(pattern.finditer(text))[: -limit - 1 : -1])


def _last_boxed(text: str) -> str | None:
    """The content of the last box; boxes side by side are one answer of several parts."""
    boxes: list[str] = []
    right = None
    for match in _from_the_end(_BOX, text, 16):
        end = closing_brace(text, match.end(), MAX_ANSWER_LENGTH)
        if right is not None and not _BETWEEN_BOXES.fullmatch(text, end or right, right):
            break
        if end is None:
            continue
        inside = text[match.end() : end - 1].strip()
        if inside and (not boxes or inside != boxes[0]):
            boxes.insert(0, inside)
        right = match.start()
    return ", ".join(boxes) or None


def _value(rest: str, kind: Kind) -> str | None:
    """The answer at the start of `rest`; None if anything but an answer is there."""
    if _LIST.match(rest):
        return None
    rest = re.sub(r"^[\s*_:>]+", "", rest)
    if kind is Kind.LETTER:
        return read_option(without_text(rest))
    value = _short_value(rest, kind)
    if value is None or (kind is Kind.NUMBER and not _DIGIT.search(value)):
        return None
    is_prose = kind is Kind.NUMBER and _WORD.search(value) and as_number(value) is None
    return None if is_prose else value


def without_text(answer: str) -> str:
    r"""LaTeX with the content of each `\text{...}` in its place."""
    return re.sub(r"\\(?:text|mbox|textbf|mathrm)\s*\{([^{}]*)\}", r"\1", answer)


def read_option(text: str) -> str | None:
    """The option that a text begins with; None if it begins otherwise."""
    option = _OPTION.match(text.lstrip(" $\\({*"))
    return option["letter"] if option else None


def _short_value(rest: str, kind: Kind) -> str | None:
    if boxed := _BOX.search(rest[:40]):
        end = closing_brace(rest, boxed.end())
        return rest[boxed.end() : end - 1].strip() or None if end else None
    if math := _MATH.match(rest):
        return _joined_math(rest, math)
    number = NUMBER.match(rest)
    sentence = _SENTENCE_END.split(rest, maxsplit=1)[0].strip().rstrip(".*_ ")
    if number and not _GOES_ON.match(rest, number.end()):
        unit = sentence[number.end() :]
        is_unit = len(_WORD.findall(unit)) <= 5 and not _DIGIT.search(unit)
        return number[0].strip() if is_unit else None
    if kind is Kind.WORDS:
        return sentence if sentence and len(_WORD.findall(sentence)) <= 4 else None
    sentence = _UNIT_WORDS.sub("", sentence)
    prose = [word for word in _WORD.findall(sentence) if word.lower() not in _MATH_WORDS]
    return sentence if sentence and not prose else None


def _joined_math(text: str, math: re.Match[str]) -> str:
    """One piece of LaTeX, or several with only commas or `and` between."""
    parts = [_inside(math)]
    while True:
        joint = re.compile(r"\s*(?:,|and|or|, and|, or)\s*").match(text, math.end())
        following = _MATH.match(text, joint.end()) if joint else None
        if following is None:
            return ", ".join(parts)
        math = following
        parts.append(_inside(math))


def _inside(math: re.Match[str]) -> str:
    inside = next(part for part in math.groups() if part is not None)
    if boxed := _last_boxed(inside):
        return boxed
    return inside.strip().rstrip(".,")


def _called_answer(text: str, kind: Kind) -> Answer | None:
    """What a text calls its answer in some sentence."""
    for match in _from_the_end(_STATED, text):
        rest = text[match.end() : match.end() + MAX_ANSWER_LENGTH].lstrip(" *_:\n")
        sentence = _SENTENCE_END.split(rest, maxsplit=1)[0]
        if _LABEL.sub("", sentence) != sentence:
            continue
        if value := _of_sentence(sentence, text[: match.start()][-TAIL:], kind):
            return Answer(value, Rule.CONCLUDED)
    return None


def _concluded(text: str, kind: Kind) -> Answer | None:
    """The answer in the sentence that concludes a complete text."""
    if called := _called_answer(text, kind):
        return called
    tail = text[-TAIL:]
    sentences = _sentences(tail)
    for sentence in _by_weight(sentences):
        before = tail[: tail.rfind(sentence)]
        if value := _of_sentence(sentence, before, kind):
            return Answer(value, Rule.CONCLUDED)
    numbers = list(NUMBER.finditer(tail))
    if kind is Kind.NUMBER and numbers:
        return Answer(numbers[-1][0].strip(), Rule.LAST_NUMBER)
    return None


def _by_weight(sentences: list[str]) -> list[str]:
    """The last sentences, in the order in which they are searched for the answer.

    The last one that starts with `therefore` or the like comes first, unless something is computed
    after it. Then the others, latest first. Those that only check or remark come last.
    """
    last = sentences[:-7:-1]
    cues = [index for index, sentence in enumerate(last) if _CUE.search(sentence)]
    if cues and not any(
        _COMPUTED.search(sentence) or _SO.search(sentence) for sentence in last[: cues[0]]
    ):
        last.insert(0, last.pop(cues[0]))
        return last[:1] + sorted(last[1:], key=_is_aside)
    return sorted(last, key=_is_aside)


def _is_aside(sentence: str) -> bool:
    return bool(_CHECKING.search(sentence) or _ASIDE.match(sentence))


def _of_sentence(sentence: str, before: str, kind: Kind) -> str | None:
    """The answer within a sentence of prose."""
    if kind is Kind.LETTER:
        options = _OPTION.findall(sentence)
        return options[-1] if options else None
    if kind is Kind.WORDS:
        return sentence.strip(" .*_")[:MAX_ANSWER_LENGTH] or None
    if kind is Kind.NUMBER:
        return _number_of(sentence, before)
    return _expression_of(sentence)


def _number_of(sentence: str, before: str) -> str | None:
    """The number that a sentence is about.

    That is the number computed in it, else the one it says something *is*, else the result computed
    before it, else the first number of its main clause.
    """
    sentence = re.sub(r"\\[()\[\]]|[$*]", "", sentence)
    if len(_numbers(sentence)) <= 1:
        return next(iter(_numbers(sentence)), None)
    if computed := _last_computed(sentence):
        return computed
    consequence = _SO.split(sentence)[-1]
    sentence = consequence if NUMBER.search(consequence) else sentence
    main = _trimmed(_LEADING_CLAUSE.sub("", sentence), _TRAILING_CLAUSE) or sentence
    stated = [
        number[0].strip()
        for copula in _COPULA.finditer(main)
        if (number := NUMBER.match(main, copula.end()))
    ]
    if stated:
        return stated[-1]
    earlier = _last_computed(before)
    if earlier is not None and as_number(earlier) in map(as_number, _numbers(main)):
        return earlier
    return _numbers(_trimmed(main, _TRAILING_PHRASE) or main)[0]


def _numbers(text: str) -> list[str]:
    return [match[0].strip() for match in NUMBER.finditer(text)]


def _trimmed(text: str, clause: re.Pattern[str]) -> str | None:
    """A text up to the first such clause that has a number before it; None without a number."""
    if not NUMBER.search(text):
        return None
    for match in clause.finditer(text):
        if NUMBER.search(text[: match.start()]):
            return text[: match.start()]
    return text


def _last_computed(text: str) -> str | None:
    """The number after the last equals sign that has one."""
    for match in _from_the_end(_COMPUTED, text, 1):
        if number := NUMBER.match(text, match.end()):
            return number[0].strip()
    return None


def _expression_of(sentence: str) -> str | None:
    """What follows the last verb of a sentence, else its last piece of LaTeX."""
    pieces = [_inside(math) for math in _MATH.finditer(sentence)]
    copulas = list(_COPULA.finditer(sentence))
    for copula in reversed(copulas):
        if value := _value(sentence[copula.end() :], Kind.EXPRESSION):
            return trim_unit(value)
    return pieces[-1] if pieces else _number_of(sentence, "")
