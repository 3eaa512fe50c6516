"""Numbers in words: `twelve`, `two hundred and five`, `three quarters`, `half a dozen`."""

import re
from fractions import Fraction

SCALES = {
    "dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9,
    "trillion": 10**12,
}  # fmt: skip
"""Words that multiply what precedes them."""
_SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_VALUES = {
    **{word: value for value, word in enumerate(_SMALL)},
    **{word: 10 * value for value, word in enumerate(_TENS, start=2)},
}
_PART = {
    "half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7,
    "eighth": 8, "ninth": 9, "tenth": 10, "twelfth": 12,
}  # fmt: skip
_PARTS = {"halves" if word == "half" else f"{word}s": value for word, value in _PART.items()}
"""One of the former, or several of these, make a fraction: `one third`, `three quarters`."""

_SCALE = rf"(?:{'|'.join(SCALES)})"
_WORD = rf"(?:{'|'.join([*_SMALL, *_TENS, *SCALES])})"
_CARDINAL = rf"(?:an?\s(?={_SCALE}\b)|\b){_WORD}(?:(?:[-\s]|\sand\s){_WORD}\b)*"
_FRACTION = rf"(?:(?:an?|one)[-\s](?:{'|'.join(_PART)})|{_CARDINAL}[-\s](?:{'|'.join(_PARTS)}))\b"
NUMERAL = re.compile(
    rf"(?:(?:negative|minus)\s)?(?:half\s(?:an?\s)?{_SCALE}|(?:{_CARDINAL}\sand\s)?{_FRACTION}"
    rf"(?:\s(?:an?\s|of\san?\s)?{_SCALE})?|{_CARDINAL})\b(?!-)",
    re.IGNORECASE,
)
"""A number in words."""
NUMERAL_WORDS = frozenset(
    [*_SMALL, *_TENS, "a", "an", "half", "negative", "minus", "hundred", "thousand", "million"]
    + [f"{ten}-{one}" for ten in _TENS for one in _SMALL[1:10]]
    + [f"{one}-{part}" for one in _SMALL[1:] for part in (_PART if one == "one" else _PARTS)]
)
"""Words with which a number in words may begin."""
_HALVED = ("dozen", "thousand", "million", "billion")
_BARE_HALF = re.compile(r"(?:a )?half(?= |$)", re.IGNORECASE)
_WITH_UNIT = re.compile(r"(?:\s[a-z]+){0,3}", re.IGNORECASE)


def in_words(text: str) -> Fraction | None:
    """The value of a number in words, with or without a unit after it; None for anything else."""
    match = NUMERAL.match(text) or _BARE_HALF.match(text)
    if match is None or not _WITH_UNIT.fullmatch(text, match.end()):
        return None
    words = re.findall(r"[a-z]+", match[0].lower())
    is_negative = words[0] in ("minus", "negative")
    value = _value(words[is_negative:])
    return -value if is_negative else value


def without_part(text: str) -> str:
    """A number in words without the part at its end: `two` for `two quarters`."""
    words = text.split()
    is_part = len(words) > 1 and words[-1].lower() in (*_PART, *_PARTS)
    return " ".join(words[:-1]) if is_part else text


def part_of(text: str) -> str:
    """The part at the end of a number in words, in the singular: `quarter`; empty without one."""
    word = text.split()[-1].lower() if text.split() else ""
    return (
        "half"
        if word == "halves"
        else word.removesuffix("s")
        if word in _PARTS
        else word
        if word in _PART
        else ""
    )


def _value(words: list[str]) -> Fraction:
    """The value of words such as `two and a half million`."""
    parts = [index for index, word in enumerate(words) if word in _PART or word in _PARTS]
    if not parts:
        return _whole(words)
    place = parts[0]
    size = (_PART | _PARTS)[words[place]]
    scales = [SCALES[word] for word in words[place + 1 :] if word in SCALES]
    before = words[:place]
    ands = [index for index, word in enumerate(before) if word == "and"]
    cut = ands[-1] if ands else 0
    whole, part = before[:cut], (_whole(before[cut:]) or Fraction(1)) / size
    if whole and whole[-1] in _HALVED:
        return _whole(whole) + part * SCALES[whole[-1]]  # `a dozen and a half`
    return (_whole(whole) + part) * (scales[0] if scales else 1)


def _whole(words: list[str]) -> Fraction:
    """The value of a whole number in words; 0 for none."""
    total, part = Fraction(0), Fraction(0)
    for word in words:
        if word in _VALUES:
            part += _VALUES[word]
        elif word in ("dozen", "hundred"):
            part = (part or Fraction(1)) * SCALES[word]
        elif word in SCALES:
            total, part = total + (part or Fraction(1)) * SCALES[word], Fraction(0)
    return total + part
