"""Quantities with units, as people write them: `5 years`, `75 cents`, `1 hour and 35 minutes`."""

import re
from collections.abc import Mapping
from fractions import Fraction

from howwhen.measure.numbers import as_number

_DIVISIONS = {
    "dollar": ("cent", 100), "euro": ("cent", 100),
    "minute": ("second", 60), "hour": ("minute", 60), "day": ("hour", 24), "week": ("day", 7),
    "year": ("month", 12),
    "foot": ("inch", 12), "yard": ("foot", 3), "mile": ("foot", 5280),
    "centimeter": ("millimeter", 10), "meter": ("centimeter", 100), "kilometer": ("meter", 1000),
    "pound": ("ounce", 16), "kilogram": ("gram", 1000), "gram": ("milligram", 1000),
    "liter": ("milliliter", 1000), "gallon": ("quart", 4), "dozen": ("", 12),
}  # fmt: skip
"""Units, and how many of the next smaller unit they hold."""
_NAMES = {
    "hr": "hour", "h": "hour", "min": "minute", "sec": "second", "feet": "foot", "ft": "foot",
    "in": "inch", "inches": "inch", "km": "kilometer", "m": "meter", "cm": "centimeter",
    "mm": "millimeter", "kg": "kilogram", "g": "gram", "mg": "milligram", "lb": "pound",
    "oz": "ounce", "l": "liter", "ml": "milliliter", "kilometre": "kilometer", "metre": "meter",
    "centimetre": "centimeter", "millimetre": "millimeter", "litre": "liter",
    "millilitre": "milliliter",
}  # fmt: skip
"""Short for a unit, or another spelling."""
UNITS = frozenset([*_DIVISIONS, *(part for part, _ in _DIVISIONS.values() if part), *_NAMES])
"""Units, in the singular, that have a neighbour."""
COMPOUND = re.compile(
    r"\$?(?P<large>\d[\d,.]*)\s(?P<unit>[a-z]+)(?:,?\sand\s|,\s|\s)\$?(?P<small>\d+(?:\.\d+)?)"
    r"\s(?P<part>[a-z]+)",
    re.IGNORECASE,
)
"""A quantity in two units: `1 hour and 35 minutes`. Only `as_quantities` knows which units fit."""
_CENTS = re.compile(r"(\d+(?:\.\d+)?)\s?\u00a2")


def as_quantities(text: str) -> Mapping[str, Fraction]:
    """What a quantity is in its own and in neighbouring units; empty for anything else.

    `1 hour and 35 minutes` is 95 minutes and 19/12 hours, `75 cents` is 75 cents, 3/4 dollars and
    3/4 euros.
    """
    text = " ".join(text.split())
    if compound := COMPOUND.fullmatch(text):
        unit, part = (unit_name(compound[name]) for name in ("unit", "part"))
        smaller, count = _DIVISIONS.get(unit, ("", 0))
        if not smaller or part != smaller:
            return {}
        large = Fraction(compound["large"].replace(",", "").rstrip("."))
        total = large * count + Fraction(compound["small"])
        return {part: total, unit: total / count}
    number, _, unit = _CENTS.sub(r"\1 cents", text).rpartition(" ")
    unit = unit_name(unit)
    value = as_number(number) if unit in UNITS else None
    return {} if value is None else {unit: value, **_neighbours(unit, value)}


def in_all_units(text: str) -> Mapping[str, Fraction]:
    """What a quantity is in every unit that measures the same; empty for anything else.

    Unlike for `as_quantities`, a sum with a dollar sign is one.
    """
    found = dict(as_quantities(text))
    if not found and "$" in text and (value := as_number(text)) is not None:
        found = {"dollar": value}
    waiting = list(found)
    while waiting:
        unit = waiting.pop()
        for other, value in _neighbours(unit, found[unit]).items():
            if other not in found:
                found[other] = value
                waiting.append(other)
    return found


def _neighbours(unit: str, value: Fraction) -> dict[str, Fraction]:
    """A value in the units next to its own."""
    part, count = _DIVISIONS.get(unit, ("", 0))
    found = {part: value * count} if count else {}
    return found | {
        large: value / count for large, (part, count) in _DIVISIONS.items() if part == unit
    }


def unit_name(word: str) -> str:
    """The name of a unit in the singular, for its plural, its short form or another spelling."""
    word = word.lower()
    singular = word.removesuffix("s") if len(word) > 2 else word
    return _NAMES.get(word) or _NAMES.get(singular) or singular
