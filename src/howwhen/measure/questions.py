"""What a question asks for: the noun, the unit, and what is already given in it."""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from howwhen.measure.grammar import MATH, inside_math, word_set
from howwhen.measure.kinds import without_text
from howwhen.measure.numbers import NUMBER, as_number, scale_of, trim_unit, without_scale
from howwhen.measure.numerals import part_of, without_part
from howwhen.measure.units import in_all_units


class Asked(NamedTuple):
    """What a question asks for. All words are stems."""

    nouns: frozenset[str] = frozenset()
    """What is counted or measured: `how many MULES`, `in what PLACE`."""
    words: frozenset[str] = frozenset()
    """The other words of the sentence that asks."""
    is_money: bool = False
    is_percentage: bool = False
    givens: frozenset[str] = frozenset()
    """Numbers that the question states itself, as `plain_number` writes them."""

    sentences: frozenset[str] = frozenset()
    """What the question says, in lower case, without the stops at the end."""

    options: tuple[tuple[str, str], ...] = ()
    """Letters and texts of the options to choose from."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known of the question."""
        return not (self.nouns or self.words or self.givens)

    @property
    def wants_unit(self) -> bool:
        """Whether it is known in which unit the answer is."""
        return bool(self.nouns) or self.is_money


_CONDITION = re.compile(
    r"^\W*(?:if|when|given|since|suppose)\b.*,\s*(?=\w)|,?\s(?:if|given that)\s.*$", re.I
)
_OPTION_LINE = re.compile(r"(?m)^\s*\(?(?P<letter>[A-J])[.):]\s+(?P<text>\S.*)$")
_OPTION_INLINE = re.compile(
    r"(?<=[ \t])\((?P<letter>[A-J])\)\s*(?P<text>[^\n]+?)(?=\s*\([A-J]\)|\s*\n|\s*$)"
)
_ASKS = re.compile(
    r"\b(?:how|what|which|find|compute|calculate|determine|evaluate|simplify|express|when|who|where)\b",
    re.IGNORECASE,
)
_COUNTED = re.compile(
    r"\bhow (?:many|much)(?: more| fewer| less| additional| other| extra| total)?\s+(?P<noun>(?:(?!"
    r"(?:do|does|did|is|are|was|were|will|would|can|could|has|have|had|should|must|in|on|of|at|to|"
    r"from|for|than|he|she|they|it|we|you|there|the|his|her|that|more|per|each|if|when)\b)"
    r"[A-Za-z'-]+\s*){1,4})",
    re.IGNORECASE,
)
_NAMED = re.compile(
    r"\b(?:what|find|compute|calculate|determine|evaluate|which)(?:'s| is| are| was| were"
    r"| will be| would be)?\s+(?:the\s+|his\s+|her\s+|their\s+)?(?P<noun>(?:(?!"
    r"(?:of|in|on|at|for|if|when|that|does|do|did|is|are|was|were|to|will|can|per|he|she|they)\b)"
    r"[A-Za-z'-]+\s*){1,4})",
    re.IGNORECASE,
)
_IN_UNIT = re.compile(
    r"\b(?:in|in terms of|to the nearest|how many|number of)\s+(?:the\s+)?(?:nearest\s+)?(?P<unit>"
    r"minutes?|hours?|days?|weeks?|months?|years?|seconds?|dollars?|cents?|inch(?:es)?|feet|foot|"
    r"miles?|meters?|metres?|kilometers?|centimeters?|yards?|pounds?|ounces?|grams?|kilograms?|"
    r"degrees?|percent(?:age)?|square \w+|cubic \w+|gallons?|liters?|litres?|units?)\b",
    re.IGNORECASE,
)
_MONEY = re.compile(
    r"\b(?:money|dollars?|cents?|costs?|price|paid|pay|spend|spent|earn(?:s|ed|ings)?|charge[sd]?|"
    r"profits?|revenue|salary|wage|income|budget|fee|bill|tax|worth|donat\w+|sav(?:e[sd]?|ings)|"
    r"owe[sd]?|refund|discount|change|make|made|sell|sold)\b",
    re.IGNORECASE,
)
_HOW_MUCH = re.compile(
    r"\bhow much\b(?!\s+(?:water|time|weight|longer|taller|more weight))", re.IGNORECASE
)
_TIMES = word_set("second minute hour day week month year")
_LENGTHS = word_set("inch foot yard mile meter metre kilometer kilometre centimeter cm km")
_WEIGHTS = word_set("pound ounce gram kilogram kg ton lb")
_AGES = word_set("year old")
_HOW = {
    "long": _TIMES | _LENGTHS, "old": _AGES, "far": _LENGTHS, "tall": _LENGTHS, "high": _LENGTHS,
    "wide": _LENGTHS, "deep": _LENGTHS, "heavy": _WEIGHTS,
    "fast": word_set("mile mph kilometer meter foot"), "often": word_set("time"),
}  # fmt: skip
"""Units of the answer to `how long`, `how old` and the like."""
_MEASURED = {"weigh": _WEIGHTS, "age": _AGES}
"""Units of the answer to a question with such a word."""
_HOW_LONG = re.compile(rf"\bhow (?:much )?({'|'.join(_HOW)})(?:er)?\b", re.IGNORECASE)
_WEIGHS = re.compile(rf"\b({'|'.join(_MEASURED)})\b", re.IGNORECASE)
_EMPTY = word_set(
    "the a an is are was were be do does did will would can could has have had how many much "
    "what which find in on of at to for and or if when that this it its he she they his her "
    "their there with by from as then than each per all total so not you your we i answer "
    "number value compute calculate determine evaluate simplify express give please who where "
    "whose after before let more"
)
"""Words that say nothing about what is asked."""
_IRREGULAR = {
    "feet": "foot", "people": "person", "children": "child", "men": "man", "women": "woman",
    "mice": "mouse", "geese": "goose", "teeth": "tooth", "inches": "inch", "knives": "knife",
    "leaves": "leaf", "loaves": "loaf", "halves": "half", "lives": "life", "dice": "die",
    "mins": "minute", "min": "minute", "hrs": "hour", "hr": "hour", "lbs": "pound", "lb": "pound",
    "$": "dollar", "metres": "meter", "metre": "meter",
}  # fmt: skip


@lru_cache(maxsize=20_000)
def stem(word: str) -> str:
    """A word without its plural ending, in lower case."""
    word = word.lower().removesuffix("'s").removesuffix("\u2019s").strip("'\u2019")
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("ches", "shes", "sses", "xes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


@lru_cache(maxsize=4096)
def read_question(question: str) -> Asked:
    """What a question asks for; nothing if it is empty."""
    if not question.strip():
        return Asked()
    sentence = _asking_sentence(question)
    formulas = {re.sub(r"\s", "", inside_math(match[0])) for match in MATH.finditer(sentence)}
    nouns = _nouns(sentence)
    words = stems(re.findall(r"[A-Za-z][A-Za-z'\u2019-]*", sentence))
    return Asked(
        frozenset(nouns),
        frozenset(words | formulas) - nouns,
        is_money=bool(_HOW_MUCH.search(sentence) or "$" in nouns) and bool(_MONEY.search(sentence)),
        is_percentage=bool(re.search(r"\bpercent|%", sentence, re.IGNORECASE)),
        sentences=frozenset(plain_sentence(part) for part in _sentences(question)),
        options=_options(question),
        givens=frozenset(plain_number(match[0]) for match in NUMBER.finditer(question)),
    )


def _options(question: str) -> tuple[tuple[str, str], ...]:
    found = (*_OPTION_INLINE.finditer(question), *_OPTION_LINE.finditer(question))
    return tuple({match["letter"]: match["text"].strip(" .;,") for match in found}.items())


def _asking_sentence(question: str) -> str:
    """The last sentence that asks; the last one if none does."""
    sentences = _sentences(question)
    asking = next(
        (part for part in reversed(sentences) if part.endswith("?") or _ASKS.search(part)),
        sentences[-1],
    )
    return _CONDITION.sub("", asking)


def _sentences(question: str) -> list[str]:
    return [part for part in re.split(r"(?<=[.?!])\s+", question.strip()) if part]


_RATE = re.compile(r"\b(?:an?|every|each)\b", re.IGNORECASE)
"""After a noun: `hours A day`."""


def _nouns(sentence: str) -> frozenset[str]:
    nouns: set[str] = set()
    for match in _IN_UNIT.finditer(sentence):
        nouns |= set(map(stem, match["unit"].split()))
    matches = list(_COUNTED.finditer(sentence)) or list(_NAMED.finditer(sentence))
    for match in matches:
        phrase = [stem(word) for word in _RATE.split(match["noun"])[0].split()]
        nouns |= {word for word in phrase if word not in _EMPTY}
    for words, pattern in ((_HOW, _HOW_LONG), (_MEASURED, _WEIGHS)):
        found = {match[1].lower() for match in pattern.finditer(sentence)}
        for word, units in words.items():
            if word in found and not nouns & units:
                nouns |= units
    return frozenset(nouns)


def in_asked_unit(text: str, asked: Asked) -> str:
    """An answer in the unit that a question asks for, without the unit.

    Asked for dollars, `75 cents` is 0.75; asked for months, `5 years` is 60; asked for eggs, `2
    dozen` is 24, and asked for dozens, 2. Anything else is returned as it is.
    """
    if part_of(text) in asked.nouns:
        return without_part(text)  # `two quarters` are two where quarters are counted
    scale = scale_of(text)
    if scale and scale in asked.nouns | asked.words:
        return without_scale(text)
    plain = without_text(text)
    units = in_all_units(plain)
    if "cent" in units and "dollar" in asked.words - asked.nouns and "cent" not in asked.nouns:
        return str(units["dollar"])
    values = [value for unit, value in units.items() if unit in asked.nouns]
    number = as_number(text)
    if len(values) == 1:
        return trim_unit(plain) if number == values[0] else str(values[0])
    return str(number) if scale and number is not None else text


def plain_sentence(sentence: str) -> str:
    """A sentence in lower case, without stops at its end, as `Asked.sentences` has them."""
    return " ".join(sentence.lower().rstrip(".?").split())


def plain_number(text: str) -> str:
    """A number without currency, percent sign and separators, to compare it letter by letter."""
    plain = text.strip(" $€£%\\").partition(" ")[0].rstrip("%").replace(",", "")
    return plain.strip("0").rstrip(".") if "." in plain else plain


def stems(words: Iterable[str]) -> frozenset[str]:
    """The stems of words, without those that say nothing."""
    return frozenset(stem(word) for word in words if word not in _EMPTY)
