r"""Exact numbers as people and models write them: `1,234`, `$7.50`, `\frac{3}{4}`, `twelve`."""

import re
from fractions import Fraction
from functools import lru_cache

from howwhen.measure.numerals import SCALES, in_words

MAX_DIGITS = 400
"""Longer numbers are not read. No answer has so many digits."""

_SCALE = rf"\s(?:{'|'.join(SCALES)})(?![A-Za-z])"
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
_SCALE_IN_TEXT = re.compile(rf"\\text\{{\s*({'|'.join(SCALES)})\s*\}}")
_COLOUR = re.compile(r"\\(?:text)?color\s*\{[^{}]*\}")
_FRACTION_SIGNS = {
    "¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5",
    "⅘": "4/5", "⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8",
}  # fmt: skip
_PERCENT = re.compile(r"(?<=[\d}])\s*\\?%|\sper\s?cent(?:age points?)?\b")


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
        value = in_words(plain)
    if value is None:
        return None
    return value * factor / (100 if percents else 1)


def scale_of(text: str) -> str:
    """The word that scales a number, such as `million`; empty if none does."""
    scale = re.search(_SCALE, _SCALE_IN_TEXT.sub(r" \1", text))
    return scale[0].strip() if scale else ""


def without_scale(text: str) -> str:
    """A number without the word that scales it.

    If a question asks for millions, `5 million` and 5 are the same answer.
    """
    return re.sub(_SCALE, "", _SCALE_IN_TEXT.sub(r" \1", text))


def _unscaled(text: str) -> tuple[str, Fraction]:
    """A text without the power or scale after its first number, and the factor that was there."""
    match = _SCALED.match(text)
    if match is None:
        return text, Fraction(1)
    rest = match["number"] + text[match.end() :]
    if match["scale"]:
        return rest, Fraction(SCALES[match["scale"].strip()])
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


def _with_whole(sign: str, whole: str, top: int, bottom: int) -> Fraction | None:
    part = _ratio(Fraction(top), bottom)
    if part is None:
        return None
    value = int(whole) + part
    return -value if sign else value


def _ratio(top: Fraction, bottom: int) -> Fraction | None:
    return None if bottom == 0 else top / bottom
