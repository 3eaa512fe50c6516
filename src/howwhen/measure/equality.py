r"""Whether two answers mean the same, as far as that is exact: numbers, words, options, times.

What is left undecided goes to Math-Verify. Some of what it would equate is refused here first: an
equation and its right side, sequences with dots.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

from howwhen.measure.kinds import Kind, split_list, wanted_of, without_text
from howwhen.measure.numbers import as_number, without_scale
from howwhen.measure.units import as_quantities

Same = Literal["same", "different"]

LONG_DECIMAL = 10
"""A gold answer with so many decimals or more counts as a rounded fraction."""
MAX_EXPONENT = 4000
"""Larger powers are not computed."""

OPTION = re.compile(
    r"(?:\((?=[A-J]\))|\b(?=[A-HJ]\b)|\b(?=I\b\s*(?:[.):*}$]|$)))(?P<letter>[A-J])\b\)?(?![\w'])"
)
"""An option. A bare `I` among other words is the pronoun."""


def read_option(text: str) -> str | None:
    """The option that a text begins with; None if it begins otherwise."""
    option = OPTION.match(text.lstrip(" $\\({*"))
    return option["letter"] if option else None


_VALUE_FIRST = re.compile(r"(?P<value>[^=]*\d[^=]*)=\s*[A-Za-z]\s*")
"""`23 = n` for `n = 23`."""
_MODULUS = re.compile(r"\s*(?:\\pmod\s*\{?\d+\}?|\\b?mod\s*\{?\d+\}?|\(mod\s*\d+\))\s*$")


def compare_exactly(answer: str, gold: str) -> Same | None:
    """Compare by exact arithmetic or letter by letter; None if that does not decide."""
    if "mod" in answer and "mod" not in gold:
        answer = _MODULUS.sub("", answer)
    if "=" not in gold and (turned := _VALUE_FIRST.fullmatch(answer)):
        answer = turned["value"]
    ours, theirs = canonical(answer), canonical(gold)
    if ours == theirs:
        return "same"
    kind = wanted_of(gold).kind
    if kind is Kind.LETTER:
        options = set(OPTION.findall(without_text(answer)))
        return _same(options == {read_option(without_text(gold))})
    if kind is Kind.WORDS:
        return _same(same_words(without_text(answer), without_text(gold)))
    if (moment := _clock(without_text(gold))) is not None:
        return _same(_same_moment(_clock(without_text(answer)), moment))
    for compare in (_numbers, _alternatives, _ratios, _bases, _with_dots, _named_parts, _equations):
        if verdict := compare(answer, gold):
            return verdict
    return None


def _same(is_same: bool) -> Same:
    return "same" if is_same else "different"


def canonical(answer: str) -> str:
    """LaTeX without what does not change its meaning: blanks, sizes, dollar signs, final stops."""
    text = re.sub(r"\\(?:left|right|[bB]igg?[lr]?|displaystyle)(?![A-Za-z])", "", answer)
    text = re.sub(r"\\(?:!|,|;|:|\s|quad|qquad)|[\s$~]", "", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"\\varnothing|\\\{\\\}", r"\\emptyset", text)
    text = re.sub(r"\\(?:text)?color\{[^{}]*\}", "", text)
    text = re.sub(
        r"(?i)(?:\\text\{)?(?:all|any)realnumbers?\}?|\\mathbb\{?R\}?", r"(-\\infty,\\infty)", text
    )
    text = re.sub(
        r"(?i)(?:\\text\{)?(?<!\\)(?:nosolutions?|(?:the)?emptyset)\}?(?![A-Za-z])",
        r"\\emptyset",
        text,
    )
    return without_idle_digits(text).rstrip(".")


def without_idle_digits(text: str) -> str:
    """`14.0 - 1.0i` as `14 - i`."""
    text = re.sub(r"(\d)\.0+(?!\d)", r"\1", text)
    return re.sub(r"(?<![\d.])1(?=i(?![A-Za-z]))", "", text)


# Numbers


def _numbers(answer: str, gold: str) -> Same | None:
    theirs = as_number(gold)
    if theirs is None:
        theirs = value_of(gold)
        ours = value_of(answer)
        return None if theirs is None or ours is None else _same(ours == theirs)
    if (measures := _measures(answer, gold)) is not None:
        return _same(measures)
    quantities = as_quantities(without_text(answer)).values()
    if theirs in quantities:
        return "same"
    ours = as_number(answer)
    if ours is None:
        ours = value_of(answer)
    if ours is None:
        return "different" if quantities else None
    bare = as_number(without_scale(answer))  # if the question asks for thousands
    return _same(theirs == bare or _same_number(ours, theirs, answer, gold))


_IN_BASE_UNITS = {
    **{name: ("length", Fraction(f)) for name, f in (("mm", "1/1000"), ("cm", "1/100"),
       ("m", "1"), ("km", "1000"), ("meter", "1"), ("kilometer", "1000"), ("centimeter", "1/100"),
       ("inch", "127/5000"), ("ft", "381/1250"), ("feet", "381/1250"), ("foot", "381/1250"),
       ("mile", "201168/125"))},
    **{name: ("mass", Fraction(f)) for name, f in (("mg", "1/1000"), ("g", "1"), ("kg", "1000"),
       ("gram", "1"), ("kilogram", "1000"))},
    **{name: ("time", Fraction(f)) for name, f in (("s", "1"), ("second", "1"), ("min", "60"),
       ("minute", "60"), ("h", "3600"), ("hour", "3600"), ("day", "86400"))},
}  # fmt: skip
"""Units that may be compared, with what they measure."""
_UNIT_IN_TEXT = re.compile(
    r"(?P<number>.*\d.*?)\\(?:text|mbox|mathrm)\{\s*(?P<unit>[A-Za-z]+)\s*\}"
)


def _measures(answer: str, gold: str) -> bool | None:
    """Whether two measures with units are the same; None unless both have a unit."""
    found = []
    for text in (answer, gold):
        match = _UNIT_IN_TEXT.fullmatch(text.strip())
        unit = match["unit"] if match else ""
        base = _IN_BASE_UNITS.get(unit) or _IN_BASE_UNITS.get(unit.removesuffix("s"))
        value = as_number(match["number"]) if match and base else None
        if base is None or value is None:
            return None
        found.append((base[0], value * base[1]))
    return found[0] == found[1]


def _same_number(ours: Fraction, theirs: Fraction, answer: str, gold: str) -> bool:
    if ours == theirs:
        return True
    is_percentage, is_gold_percentage = map(_is_percentage, (answer, gold))
    if is_percentage and not is_gold_percentage and 100 * ours == theirs:
        return theirs >= 1  # 0.35 % is not 0.35
    if is_gold_percentage and not is_percentage and ours == 100 * theirs:
        return True
    if len(gold.partition(".")[2]) < LONG_DECIMAL:
        return False
    error, decimals = abs(ours - theirs), len(re.sub(r"\D", "", answer.partition(".")[2]))
    half_unit = Fraction(1, 2 * 10**decimals)
    is_rounded = decimals >= 2 and error <= half_unit and error <= abs(theirs) / 100
    return is_rounded or error <= abs(theirs) / 10**9


def _is_percentage(text: str) -> bool:
    return "%" in text or re.search(r"\bper\s?cent", text) is not None


_ARITHMETIC = re.compile(r"\d+(?:\.\d+)?|[-+*/^(){}]")


def value_of(text: str) -> Fraction | None:
    r"""The exact value of an arithmetic expression of numbers; None for anything else.

    It knows `+ - * / ^`, `\cdot`, `\times`, `\div` and `\frac`, and refuses powers that are large.
    """
    if re.search(r",\s", text):
        return None  # a list
    plain = canonical(text)
    plain = re.sub(r"\\(?:cdot|times)", "*", plain).replace("\\div", "/")
    plain = re.sub(r"(?<=\d),(?=\d{3}(?!\d))|\{,\}", "", plain)
    plain = re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", plain)
    before = ""
    while plain != before:
        before = plain
        plain = re.sub(r"\\frac\{([^{}\\]*)\}\{([^{}\\]*)\}", r"((\1)/(\2))", plain)
        plain = re.sub(r"\^\{([^{}]*)\}", r"^(\1)", plain)
    plain = plain.replace("\u2212", "-").replace("\u00d7", "*").replace("÷", "/")
    tokens = _ARITHMETIC.findall(plain)
    if not tokens or len(tokens) > 200 or "".join(tokens) != plain or "{" in plain:
        return None
    try:
        value, rest = _sum(tokens)
    except (ArithmeticError, IndexError, ValueError):
        return None
    return value if not rest else None


def _sum(tokens: Sequence[str]) -> tuple[Fraction, Sequence[str]]:
    value, tokens = _product(tokens)
    while tokens and tokens[0] in "+-":
        other, rest = _product(tokens[1:])
        value, tokens = (value + other if tokens[0] == "+" else value - other), rest
    return value, tokens


def _product(tokens: Sequence[str]) -> tuple[Fraction, Sequence[str]]:
    value, tokens = _power(tokens)
    while tokens and (tokens[0] in "*/" or tokens[0] == "("):
        other, rest = _power(tokens if tokens[0] == "(" else tokens[1:])
        value, tokens = (value / other if tokens[0] == "/" else value * other), rest
    return value, tokens


def _power(tokens: Sequence[str]) -> tuple[Fraction, Sequence[str]]:
    if tokens[0] == "-":
        value, rest = _power(tokens[1:])
        return -value, rest
    if tokens[0] == "(":
        base, rest = _sum(tokens[1:])
        if rest[0] != ")":
            raise ValueError
        rest = rest[1:]
    else:
        base, rest = Fraction(tokens[0]), tokens[1:]
    if not rest or rest[0] != "^":
        return base, rest
    exponent, rest = _power(rest[1:])
    if (
        exponent.denominator != 1
        or abs(exponent) > MAX_EXPONENT
        or base.numerator.bit_length() > 64
    ):
        raise ValueError
    return base**exponent.numerator, rest


# Alternatives, sequences, equations


def _alternatives(answer: str, gold: str) -> Same | None:
    """Two numbers between which an answer does not decide are none of them."""
    parts = [as_number(part) for part in re.split(r"\s+or\s+", answer)]
    if len(parts) < 2 or None in parts:
        return None
    if len(set(parts)) == 1:
        return _same(parts[0] == as_number(gold))
    theirs = [as_number(part) for part in split_list(re.sub(r"\s+or\s+", ",", gold))]
    return _same(len(parts) == len(theirs) and set(parts) == set(theirs))


_RATIO = re.compile(r"\\?(\d+)\s*(?:to|\{?:\}?)\s*(\d+)")


def _ratios(answer: str, gold: str) -> Same | None:
    ours, theirs = (_RATIO.fullmatch(without_text(text).strip("$ ")) for text in (answer, gold))
    if ours is None or theirs is None:
        return None
    return _same(int(ours[1]) * int(theirs[2]) == int(theirs[1]) * int(ours[2]))


_BASE = re.compile(r"_\{?(?P<base>\d+|\\text\{[^{}]*\})\}?$")


def _bases(answer: str, gold: str) -> Same | None:
    """Numbers in other bases are compared as they are written."""
    theirs = _BASE.search(canonical(gold))
    if theirs is None or not canonical(gold)[: theirs.start()].isalnum():
        return None
    ours = _BASE.search(canonical(answer))
    digits = canonical(answer)[: ours.start()] if ours else canonical(answer)
    is_same_base = ours is None or ours["base"] == theirs["base"]
    return _same(is_same_base and digits == canonical(gold)[: theirs.start()])


def _named_parts(answer: str, gold: str) -> Same | None:
    """`y = -1, x = 4` is the pair (4, -1): values in the order of their names."""
    plain = canonical(gold)
    if not (plain.startswith("(") and plain.endswith(")")):
        return None
    lines = re.sub(r"\\begin\{\w+\*?\}|\\end\{\w+\*?\}|&", "", answer)
    lines = re.sub(r"\\\\|\\text\{\s*and\s*\}|\band\b", ",", lines)
    named = [re.fullmatch(r"([A-Za-z])=(.+)", canonical(part)) for part in split_list(lines)]
    if len(named) < 2 or not all(named):
        return None
    values = {match[1]: match[2] for match in named if match}
    theirs = split_list(plain[1:-1])
    ours = [values[name] for name in sorted(values)]
    if len(ours) != len(theirs):
        return "different"
    verdicts = [compare_exactly(one, other) for one, other in zip(ours, theirs, strict=True)]
    return None if None in verdicts else _same(set(verdicts) == {"same"})


_DOTS = re.compile(r"\\(?:[lc]?dots[a-z]?)(?![A-Za-z])|\.\.\.|…")


def _with_dots(answer: str, gold: str) -> Same | None:
    """Sequences with dots are the same if all that they name is."""
    if not (_DOTS.search(answer) or _DOTS.search(gold)):
        return None
    ours, theirs = (
        [canonical(_DOTS.sub("...", part)) for part in split_list(text)] for text in (answer, gold)
    )
    return _same(ours == theirs)


_INEQUALITY = re.compile(
    r"(?P<name>[A-Za-z])(?P<sign><|>|\\leq?|\\geq?|\\lt|\\gt|≤|≥)(?P<bound>[^<>]+)"
)
_OR = re.compile(r"\\(?:text|mbox|mathrm)\s*\{\s*or\s*\}|\bor\b|\\(?:lor|vee)(?![A-Za-z])|\\cup")


def as_intervals(answer: str) -> str:
    r"""`x < -1 \text{ or } x > 3` as a union of intervals; anything else as it is."""
    parts = [_INEQUALITY.fullmatch(canonical(part)) for part in _OR.split(answer)]
    if len(parts) < 2 or len({part["name"] for part in parts if part}) != 1 or not all(parts):
        return answer
    intervals = []
    for part in parts:
        sign, bound = (part["sign"], part["bound"]) if part else ("", "")
        is_closed = "e" in sign or sign in "≤≥"
        if sign in ("<", "≤") or sign.startswith("\\l"):
            intervals.append(rf"(-\infty,{bound}{']' if is_closed else ')'}")
        else:
            intervals.append(rf"{'[' if is_closed else '('}{bound},\infty)")
    return r" \cup ".join(intervals)


_EQUALS = re.compile(r"(?<![<>!\\])=(?!=)")
_NAME = re.compile(
    r"\\?[A-Za-z]+(?:_\{?\w+\}?)?'?(?:\([A-Za-z0-9,+-]*\))?"
    r"|\((?:\\?[A-Za-z]+(?:_\{?\w+\}?)?,?)+\)|\\(?:text|angle|overline|frac)\b.*|\|[A-Za-z]+\|"
    r"|[A-Z]{2,3}|[A-Za-z](?:[-+*][A-Za-z])+"
)
"""What may stand before an equals sign and be left away: `x`, `f(2)`, `(x, y)`, `AB`, `m + n`."""
_FUNCTION = re.compile(r"y|[fgh]\([a-z]\)")


def _equations(answer: str, gold: str) -> Same | None:
    """An equation is not its right side, unless that is the value of a name."""
    ours, theirs = (_EQUALS.split(canonical(text)) for text in (answer, gold))
    if len(ours) == len(theirs):
        names = ours[0], theirs[0]
        if len(ours) == 2 and names[0] != names[1] and all(map(_FUNCTION.fullmatch, names)):
            return compare_exactly(ours[1], theirs[1])
        return None
    if len(ours) > 1 and len(theirs) == 1:
        is_chain = all(value_of(side) is not None for side in ours[:-1])
        if not (_NAME.fullmatch(ours[0]) or is_chain or _is_chain_to(ours)):
            return "different"
    return None


def _is_chain_to(sides: Sequence[str]) -> bool:
    """Whether an expression is transformed until it is a number: `3x = 3 * 4 = 12`."""
    return len(sides) > 2


# Words and times


_DENIED = re.compile(
    r"[,;]?\s*\b(?:but\s+not|not|rather than|instead of|neither)\b\s+[^,;.]*",
    re.IGNORECASE,
)
_YES_NO = {"yes": True, "no": False, "true": True, "false": False}


def same_words(answer: str, gold: str) -> bool:
    """Whether an answer in words contains the gold words and does not deny them."""
    theirs = re.findall(r"[a-z0-9]+", gold.lower())
    said = re.findall(r"[a-z0-9]+", answer.lower())
    if len(theirs) == 1 and theirs[0] in _YES_NO:
        first = next((word for word in said if word in _YES_NO), None)
        return first is not None and _YES_NO[first] == _YES_NO[theirs[0]]
    if "not" in theirs:
        return said == theirs
    asserted = re.sub(r"\bnot\b[^,;.]*?\bbut\b", " ", answer, flags=re.IGNORECASE)
    asserted = _DENIED.sub(" | ", asserted)
    ours = re.findall(r"[a-z0-9]+", asserted.lower())
    if {"not", "neither", "nor"} & set(ours) or re.search(r"n['\u2019]t\b", asserted):
        return False
    return any(ours[start : start + len(theirs)] == theirs for start in range(len(ours)))


_TIME = re.compile(
    r"\s*(?P<hour>\d{1,2})(?::(?P<minute>\d{2}))?\s*(?P<half>[ap]\.?\s?m\b\.?)?\s*", re.IGNORECASE
)
Moment = tuple[int, int, str | None]


def _clock(text: str) -> Moment | None:
    """Hour, minute and half of the day (if it is said) of a time; None for anything else."""
    match = _TIME.fullmatch(re.sub(r"[\\${}]|\\text", "", text))
    if match is None or not (match["minute"] or match["half"]):
        return None
    hour, half = int(match["hour"]), match["half"]
    if match["half"] is None and match["minute"] and hour > 23:
        return None
    return hour, int(match["minute"] or 0), half[0].lower() if half else None


def _same_moment(ours: Moment | None, theirs: Moment) -> bool:
    if ours is None:
        return False
    if ours[:2] == theirs[:2]:
        return ours[2] is None or theirs[2] is None or ours[2] == theirs[2]
    return _of_day(ours) == _of_day(theirs) and None not in (_of_day(ours), _of_day(theirs))


def _of_day(moment: Moment) -> tuple[int, int] | None:
    """Hour from 0 to 23 and minute, if the half of the day is known."""
    hour, minute, half = moment
    if half is None:
        return (hour, minute) if hour > 12 else None
    return hour % 12 + 12 * (half == "p"), minute
