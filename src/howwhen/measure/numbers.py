r"""Exact numbers as people and models write them: `1,234`, `$7.50`, `\frac{3}{4}`, `60%`."""

import re
from fractions import Fraction

MAX_DIGITS = 400
"""Longer numbers are not read. No answer has so many digits."""

_SCALES = {
    "dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9,
    "trillion": 10**12,
}  # fmt: skip
_SCALE = rf"\s(?:{'|'.join(_SCALES)})(?![A-Za-z])"
_POWER = r"\s?(?:\\times|\\cdot|\u00d7|\*)\s?10\s?(?:\^|\*\*)\s?(?:\{-?\d{1,3}\}|-?\d{1,3}(?!\d))"
_DIGITS = r"(?:\d{1,3}(?:(?:,|(?:\{,\}|,\\!|\\,)\s?)\d{3})+(?!\d)|\d+)"
NUMBER = re.compile(
    rf"(?<![\w.])(?:[-\u2212]?|negative\s)\s?(?:\\?[$€£]\s?)?(?:{_DIGITS}(?:\.\d+)?|\.\d+)"
    rf"(?:/\d+(?![\d/])|\s\d+/\d+(?![\d/])|[eE][-+]?\d{{1,3}}(?!\w)|{_POWER}|{_SCALE})?(?:\s?\\?%)?"
)
"""A number in running text, with its sign, currency, power or scale, and percent sign."""

_UNIT = re.compile(
    r"(?:\\(?:text|mbox|mathrm|textrm)\s*\{[^{}]*\}"
    r"|\^?\{?\\?\^?\{?\\(?:circ|degree)\}*|°"
    r"|\s(?:[A-Za-z/ ]*[A-Za-z]{2}[A-Za-z/ ]*|[A-Za-z]/[A-Za-z]|[mgshlLKVWJN])|[A-Za-z]{2,})"
    r"(?:\^\{?\d\}?|[²³])?\s*$"
)
_PLAIN = re.compile(r"-?(?:\d+(?:\.\d*)?|\.\d+)(?:/\d+)?")
_FRACTION = re.compile(r"(?P<sign>-?)(?P<whole>\d*)\s*\\[dt]?frac\s*(?P<rest>.+)")
_PARTS = re.compile(r"(?:\{(?P<a>-?\d+)\}|(?P<b>\d))\s*(?:\{(?P<c>\d+)\}|(?P<d>\d))")
_SCALED = re.compile(
    rf"(?P<number>.*?[\d}}])(?:(?P<scale>{_SCALE})|(?P<power>{_POWER}|[eE][-+]?\d{{1,3}}(?!\w)))"
)
_MIXED = re.compile(r"(?P<sign>-?)(?P<whole>\d+)\s+(?P<a>\d+)/(?P<b>\d+)")


def as_number(text: str) -> Fraction | None:
    r"""The exact value of a number, percentages as hundredths; None for anything else.

    A unit after it is ignored (`12 apples`, `5\text{ cm}`, `90^\circ`). A variable or a scale is
    not (`5 x`, `5 million`).
    """
    if len(text) > MAX_DIGITS:
        return None
    text, factor = _unscaled(text)
    plain = re.sub(r"\\[$]|[$€£]|(?:\\!|\\,|\{,\})\s?", "", text)
    plain = trim_unit(re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", plain))
    plain = plain.replace("\u2212", "-").strip().rstrip(".").strip()
    plain = re.sub(r"^negative\s+(?=[\d.])", "-", plain)
    is_percent = plain.endswith("%")
    plain = plain.rstrip("%\\ ").strip()
    value = _exact(plain)
    if value is None:
        return None
    return value * factor / (100 if is_percent else 1)


def without_scale(text: str) -> str:
    """A number without the word that scales it.

    If a question asks for millions, `5 million` and 5 are the same answer.
    """
    return re.sub(_SCALE, "", text)


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
    if _PLAIN.fullmatch(plain):
        over, _, under = plain.partition("/")
        return _ratio(Fraction(over), int(under or 1))
    if mixed := _MIXED.fullmatch(plain):
        return _with_whole(mixed["sign"], mixed["whole"], int(mixed["a"]), int(mixed["b"]))
    if (fraction := _FRACTION.fullmatch(plain)) and (parts := _PARTS.fullmatch(fraction["rest"])):
        top, bottom = int(parts["a"] or parts["b"]), int(parts["c"] or parts["d"])
        return _with_whole(fraction["sign"], fraction["whole"] or "0", top, bottom)
    return None


def _with_whole(sign: str, whole: str, top: int, bottom: int) -> Fraction | None:
    part = _ratio(Fraction(top), bottom)
    if part is None:
        return None
    value = int(whole) + part
    return -value if sign else value


def _ratio(top: Fraction, bottom: int) -> Fraction | None:
    return None if bottom == 0 else top / bottom
