r"""Exact numbers as people and models write them: `1,234`, `$7.50`, `\frac{3}{4}`, `60%`."""

import re
from fractions import Fraction

MOST_DIGITS = 400
"""Longer numbers are not read: no answer has so many digits."""

_DIGITS = r"(?:\d{1,3}(?:(?:,|\{,\}|,\\!|\\,)\s?\d{3})+(?!\d)|\d+)"
NUMBER = re.compile(
    rf"(?<![\w.])[-\u2212]?\s?(?:\\?[$€£]\s?)?(?:{_DIGITS}(?:\.\d+)?|\.\d+)"
    r"(?:/\d+(?![\d/]))?(?:\s?\\?%)?"
)
"""A number in running text, with its sign, currency and per cent."""

_UNIT = re.compile(
    r"(?:\\(?:text|mbox|mathrm|textrm)\s*\{[^{}]*\}"
    r"|\^?\{?\\?\^?\{?\\(?:circ|degree)\}*|°|\s[A-Za-z/ ]+|[A-Za-z]{2,})"
    r"(?:\^\{?\d\}?|[²³])?\s*$"
)
_PLAIN = re.compile(r"-?(?:\d+(?:\.\d*)?|\.\d+)(?:/\d+)?")
_FRACTION = re.compile(r"(?P<sign>-?)(?P<whole>\d*)\s*\\[dt]?frac\s*(?P<rest>.+)")
_PARTS = re.compile(r"(?:\{(?P<a>-?\d+)\}|(?P<b>\d))\s*(?:\{(?P<c>\d+)\}|(?P<d>\d))")
_MIXED = re.compile(r"(?P<sign>-?)(?P<whole>\d+)\s+(?P<a>\d+)/(?P<b>\d+)")


def as_number(text: str) -> Fraction | None:
    r"""The exact value of a number, per cents as hundredths; None of anything else.

    A unit after it is ignored (`12 apples`, `5\text{ cm}`, `90^\circ`).
    """
    if len(text) > MOST_DIGITS:
        return None
    plain = trim_unit(re.sub(r"\\[$]|[$€£]|\\!|\\,|\{,\}|(?<=\d),\s?(?=\d{3}(?!\d))", "", text))
    plain = plain.replace("\u2212", "-").strip().rstrip(".").strip()
    is_percent = plain.endswith("%")
    plain = plain.rstrip("%\\ ").strip()
    value = _exact(plain)
    return value / 100 if value is not None and is_percent else value


def trim_unit(text: str) -> str:
    """A text without the unit at its end, where what is left still ends like a quantity."""
    without = _UNIT.sub("", text).rstrip()
    return without if re.search(r"[\d})%]$", without) and without != text else text


def _exact(plain: str) -> Fraction | None:
    if _PLAIN.fullmatch(plain):
        over, _, under = plain.partition("/")
        return _ratio(Fraction(over), int(under or 1))
    if mixed := _MIXED.fullmatch(plain):
        return _with_whole(mixed["sign"], mixed["whole"], int(mixed["a"]), int(mixed["b"]))
    if (found := _FRACTION.fullmatch(plain)) and (parts := _PARTS.fullmatch(found["rest"])):
        top, bottom = int(parts["a"] or parts["b"]), int(parts["c"] or parts["d"])
        return _with_whole(found["sign"], found["whole"] or "0", top, bottom)
    return None


def _with_whole(sign: str, whole: str, top: int, bottom: int) -> Fraction | None:
    part = _ratio(Fraction(top), bottom)
    if part is None:
        return None
    value = int(whole) + part
    return -value if sign else value


def _ratio(top: Fraction, bottom: int) -> Fraction | None:
    return None if bottom == 0 else top / bottom
