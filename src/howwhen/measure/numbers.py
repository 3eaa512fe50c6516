r"""Exact numbers as people and models write them: `1,234`, `$7.50`, `\frac{3}{4}`, `twelve`."""

import re
from collections.abc import Container
from fractions import Fraction
from functools import lru_cache

MAX_DIGITS = 400
"""Longer numbers are not read. No answer has so many digits."""

_SCALES = {
    "dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9,
    "trillion": 10**12,
}  # fmt: skip
_SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_WORDS = {
    **{word: value for value, word in enumerate(_SMALL)},
    **{word: 10 * value for value, word in enumerate(_TENS, start=2)},
}
_PARTS_OF_ONE = {"half": 2, "third": 3, "quarter": 4}
_PARTS = {
    "halves": 2, "thirds": 3, "quarters": 4, "fourths": 4, "fifths": 5, "sixths": 6, "eighths": 8,
    "tenths": 10,
}  # fmt: skip
"""Several of them make a fraction: `three quarters`."""
_SCALE = rf"\s(?:{'|'.join(_SCALES)})(?![A-Za-z])"
_POWER = r"\s?(?:\\times|\\cdot|\u00d7|\*)\s?10\s?(?:\^|\*\*)\s?(?:\{-?\d{1,3}\}|-?\d{1,3}(?!\d))"
_BLANK = "[ \u00a0\u2009\u202f]"
"""Blanks that may separate thousands."""
_DIGITS = (
    r"(?:\d{1,3}(?:(?:,|(?:\{,\}|\\[!,;:]|~)\s?)\d{3})+(?!\d)|\d{1,2}(?:,\d{2})+,\d{3}(?!\d)"
    rf"|[1-9]\d{{0,2}}(?:{_BLANK}\d{{3}})+(?![\d/])|\d+)"
)
_MINUS = r"[-\u2212\u2013]"
NUMBER = re.compile(
    rf"(?<![\w.])(?:{_MINUS}(?=[\d.$€£\\])|(?:negative|minus)\s)?(?:\\?[$€£₹¥]\s?)?"
    rf"(?:{_DIGITS}(?:\.\d+)?|\.\d+)"
    rf"(?:/\d+(?![\d/])|\s\d+/\d+(?![\d/])|[eE][-+]?\d{{1,3}}(?!\w)|{_POWER}|{_SCALE}"
    r"|(?:st|nd|rd|th)(?!\w))?(?:\s?\\?%|\sper\s?cent\b)?"
)
"""A number in digits in running text, with its sign, currency, power or scale, and percent sign."""
_NUMERAL = rf"(?:{'|'.join([*_SMALL, *_TENS, *list(_SCALES)[1:]])})"
NUMERAL = re.compile(
    rf"(?:(?:negative|minus)\s)?(?:an?\s(?=hundred|thousand|million)|\b){_NUMERAL}"
    rf"(?:(?:[-\s]|\sand\s){_NUMERAL})*"
    rf"(?:\sand\sa\s(?:half|quarter|third)|[-\s](?:{'|'.join(_PARTS)}))?\b(?!-)",
    re.IGNORECASE,
)
"""A whole number in words: `twelve`, `minus one`, `two hundred and five`."""
NUMERAL_WORDS = frozenset(
    [*_SMALL, *_TENS, "a", "an", "negative", "minus", "hundred", "thousand", "million"]
    + [f"{ten}-{one}" for ten in _TENS for one in _SMALL[1:10]]
)
"""Words with which a number in words may begin."""

_UNIT = re.compile(
    r"(?:\\(?:text|mbox|mathrm|textrm)\s*\{[^{}]*\}"
    r"|\^?\{?\\?\^?\{?\\(?:circ|degree)\}*|°|[\u3040-\u30ff\u4e00-\u9fff]+"
    r"|\s(?:[A-Za-z/ -]*[A-Za-z]{2}[A-Za-z/ ]*|[A-Za-z]/[A-Za-z]|[mgshlLKVWJN])|[A-Za-z]{2,})"
    r"(?:\^\{?\d\}?|[²³])?\s*$"
)
_PLAIN = re.compile(r"-?(?:\d+(?:\.\d*)?|\.\d+)(?:/\d+)?")
_FRACTION = re.compile(r"(?P<sign>-?)(?P<whole>\d*)\s*\\[dt]?frac\s*(?P<rest>.+)")
_TWO_PARTS = re.compile(r"(?:\{(?P<a>-?\d+)\}|(?P<b>\d))\s*(?:\{(?P<c>\d+)\}|(?P<d>\d))")
_SCALED = re.compile(
    rf"(?P<number>.*?[\d}}])(?:(?P<scale>{_SCALE})|(?P<power>{_POWER}|[eE][-+]?\d{{1,3}}(?!\w)))"
)
_MIXED = re.compile(r"(?P<sign>-?)(?P<whole>\d+)\s+(?P<a>\d+)/(?P<b>\d+)")
_REPEATING = re.compile(
    r"(?P<sign>-?)(?P<whole>\d*)\.(?P<fixed>\d*)\\(?:overline|bar)\{(?P<period>\d{1,20})\}"
)
_DECIMAL_COMMA = re.compile(r"^(\D{0,3}\d+),(\d\d)(?![\d,])")
_SCALE_IN_TEXT = re.compile(rf"\\text\{{\s*({'|'.join(_SCALES)})\s*\}}")
_COLOUR = re.compile(r"\\(?:text)?color\s*\{[^{}]*\}")
_FRACTION_SIGNS = {
    "¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5",
    "⅘": "4/5", "⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8",
}  # fmt: skip
_PERCENT = re.compile(r"(?<=[\d}])\s*\\?%|\sper\s?cent(?:age points?)?\b")

_DIVISIONS = {
    "dollar": ("cent", 100), "euro": ("cent", 100), "pound": ("ounce", 16), "hour": ("minute", 60),
    "hr": ("min", 60), "h": ("min", 60), "minute": ("second", 60), "min": ("sec", 60),
    "foot": ("inch", 12), "feet": ("inch", 12), "ft": ("in", 12), "yard": ("foot", 3),
    "day": ("hour", 24), "week": ("day", 7), "year": ("month", 12), "kilometer": ("meter", 1000),
    "kilometre": ("metre", 1000), "km": ("m", 1000), "meter": ("centimeter", 100),
    "metre": ("centimetre", 100), "m": ("cm", 100), "kilogram": ("gram", 1000), "kg": ("g", 1000),
    "gallon": ("quart", 4), "dozen": ("", 12),
}  # fmt: skip
"""Units, and how many of the next smaller unit they hold."""
COMPOUND = re.compile(
    r"\$?(?P<large>\d[\d,.]*)\s(?P<unit>[a-z]+)(?:,?\sand\s|,\s|\s)\$?(?P<small>\d+(?:\.\d+)?)"
    r"\s(?P<part>[a-z]+)",
    re.IGNORECASE,
)
"""A quantity in two units: `1 hour and 35 minutes`. Only `as_quantities` knows which units fit."""


@lru_cache(maxsize=50_000)
def as_number(text: str) -> Fraction | None:
    r"""The exact value of a number, percentages as hundredths; None for anything else.

    A unit after it is ignored (`12 apples`, `5\text{ cm}`, `90^\circ`). A variable or a scale is
    not (`5 x`, `5 million`).
    """
    if len(text) > MAX_DIGITS:
        return None
    if text.isascii() and text.isdigit():
        return Fraction(int(text))
    text = _SCALE_IN_TEXT.sub(r" \1", text)
    text, factor = _unscaled(_COLOUR.sub("", _with_plain_fractions(text)))
    text, percents = _PERCENT.subn("", text)
    plain = re.sub(
        r"\\[$]|[$€£₹¥]|(?:\\[!,;:]|\{,\}|(?<=\d)~(?=\d))\s?", "", text.replace("\\ ", " ")
    )
    plain = re.sub(rf"(?<=\d)(?:,|{_BLANK})(?=\d{{3}}(?![\d/])|\d\d,)", "", plain)
    plain = _DECIMAL_COMMA.sub(r"\1.\2", plain)
    plain = trim_unit(re.sub(r"(?<=\d)(?:st|nd|rd|th)(?!\w)", "", plain))
    plain = re.sub(rf"{_MINUS}\s*", "-", plain).strip().rstrip(".").strip()
    plain = re.sub(r"^(?:negative|minus)\s+(?=[\d.])", "-", plain)
    value = _exact(re.sub(r"^\{([^{}]*)\}$", r"\1", plain.rstrip("\\ ")))
    if value is None and plain[:1].isalpha():
        value = _in_words(plain)
    if value is None:
        return None
    return value * factor / (100 if percents else 1)


def as_quantities(text: str) -> tuple[Fraction, ...]:
    """What a quantity with a unit is in that and in neighbouring units; empty for others.

    `1 hour and 35 minutes` is 95 (minutes) and 19/12 (hours), `75 cents` is 75 and 3/4 (dollars).
    """
    match = COMPOUND.fullmatch(text.strip())
    if match is None:
        return _in_neighbouring_units(text.strip())
    unit, part = (_singular(match[name].lower()) for name in ("unit", "part"))
    smaller, count = _DIVISIONS.get(unit, ("", 0))
    if not smaller or part not in (smaller, {"foot": "feet", "feet": "foot"}.get(smaller)):
        return ()
    total = Fraction(match["large"].replace(",", "").rstrip(".")) * count + Fraction(match["small"])
    return total, total / count


def _in_neighbouring_units(text: str) -> tuple[Fraction, ...]:
    match = _WITH_UNIT.fullmatch(text)
    value = None if match is None else as_number(match["number"])
    if match is None or value is None:
        return ()
    unit = _singular(match["unit"].lower())
    others = [value * count for name, (_, count) in _DIVISIONS.items() if name == unit]
    others += [value / count for part, count in _DIVISIONS.values() if part == unit]
    return (value, *dict.fromkeys(others)) if others else ()


UNITS = frozenset(_DIVISIONS) | {part for part, _ in _DIVISIONS.values() if part}
"""Units, in the singular, that have a neighbour."""
_WITH_UNIT = re.compile(r"(?P<number>[-\u2212]?\$?\d[\d,./]*)\s(?P<unit>[A-Za-z]+)")


def _singular(word: str) -> str:
    if word == "inches":
        return "inch"
    return word[:-1] if word.endswith("s") and len(word) > 2 else word


def without_scale(text: str) -> str:
    """A number without the word that scales it.

    If a question asks for millions, `5 million` and 5 are the same answer.
    """
    return re.sub(_SCALE, "", _SCALE_IN_TEXT.sub(r" \1", text))


def in_asked_unit(text: str, asked: Container[str]) -> str:
    """An answer in the unit that a question asks for, where that is a matter of cents or scales.

    Asked for dollars, `75 cents` is 0.75; asked for eggs, `2 dozen` is 24; asked for dozens, it
    is 2.

    Args:
        text: the answer.
        asked: stems of the question's words.
    """
    if (cents := _CENTS.fullmatch(text.strip())) and "dollar" in asked and "cent" not in asked:
        return str(Fraction(cents[1]) / 100)
    scale = re.search(_SCALE, _SCALE_IN_TEXT.sub(r" \1", text))
    if scale is None or (value := as_number(text)) is None:
        return text
    if scale[0].strip() in asked:
        return without_scale(text)
    return str(value)


_CENTS = re.compile(r"(\d+(?:\.\d+)?) cents?")


def _unscaled(text: str) -> tuple[str, Fraction]:
    """A text without the power or scale after its first number, and the factor that was there."""
    match = _SCALED.match(text)
    if match is None:
        return text, Fraction(1)
    rest = match["number"] + text[match.end() :]
    if match["scale"]:
        return rest, Fraction(_SCALES[match["scale"].strip()])
    exponent = int(re.findall(r"[-+]?\d+", match["power"])[-1])
    return rest, Fraction(10) ** exponent


def trim_unit(text: str) -> str:
    """A text without the unit at its end, if the rest still ends like a quantity."""
    without = _UNIT.sub("", text).rstrip()
    return without if re.search(r"[\d})%]$", without) and without != text else text


def _exact(plain: str) -> Fraction | None:
    if repeating := _REPEATING.fullmatch(plain):
        return _repeating(repeating)
    if _PLAIN.fullmatch(plain):
        over, _, under = plain.partition("/")
        return _ratio(Fraction(over), int(under or 1))
    if mixed := _MIXED.fullmatch(plain):
        return _with_whole(mixed["sign"], mixed["whole"], int(mixed["a"]), int(mixed["b"]))
    if (fraction := _FRACTION.fullmatch(plain)) and (
        parts := _TWO_PARTS.fullmatch(fraction["rest"])
    ):
        top, bottom = int(parts["a"] or parts["b"]), int(parts["c"] or parts["d"])
        return _with_whole(fraction["sign"], fraction["whole"] or "0", top, bottom)
    return None


def _repeating(match: re.Match[str]) -> Fraction:
    r"""`0.1\overline{6}` is 1/6."""
    places, period = len(match["fixed"]), match["period"]
    value = Fraction(int(match["whole"] or 0) * 10**places + int(match["fixed"] or 0), 10**places)
    value += Fraction(int(period), (10 ** len(period) - 1) * 10**places)
    return -value if match["sign"] else value


def _with_plain_fractions(text: str) -> str:
    """A text with `¾` as `3/4`, and `2½` as `2 1/2`."""
    if text.isascii():
        return text
    return re.sub(
        f"(\\d?)([{''.join(_FRACTION_SIGNS)}])",
        lambda match: f"{match[1]} {_FRACTION_SIGNS[match[2]]}".strip(),
        text,
    )


_MORE_IN_WORDS = re.compile(r"\s(?:half|third|quarter|dozen)\b", re.IGNORECASE)
_MIXED_IN_WORDS = re.compile(rf"\band\b.*\b(?:{'|'.join(_PARTS)})\b", re.IGNORECASE)
"""`one half`, `two dozen`, `two and three quarters`: left to others rather than read wrong."""


def _in_words(plain: str) -> Fraction | None:
    """The value of a whole number in words, with or without a unit after it."""
    match = NUMERAL.match(plain)
    if match is None or not re.fullmatch(r"(?:\s[a-z]+){0,3}", plain[match.end() :], re.IGNORECASE):
        return None
    if _MORE_IN_WORDS.match(plain, match.end()) or _MIXED_IN_WORDS.search(match[0]):
        return None
    total, part = Fraction(0), Fraction(0)
    words = re.findall(r"[a-z]+", match[0].lower())
    for word in words:
        scale = _SCALES.get(word, 0)
        if word in _WORDS:
            part += _WORDS[word]
        elif word in _PARTS_OF_ONE:
            part += Fraction(1, _PARTS_OF_ONE[word])
        elif word in _PARTS:
            part /= _PARTS[word]
        elif scale == 100:
            part = (part or Fraction(1)) * scale
        elif scale:
            total, part = total + (part or Fraction(1)) * scale, Fraction(0)
    value = total + part
    return Fraction(-value if words[0] in ("minus", "negative") else value)


def _with_whole(sign: str, whole: str, top: int, bottom: int) -> Fraction | None:
    part = _ratio(Fraction(top), bottom)
    if part is None:
        return None
    value = int(whole) + part
    return -value if sign else value


def _ratio(top: Fraction, bottom: int) -> Fraction | None:
    return None if bottom == 0 else top / bottom
