"""The sentence rule with slices of the text on both sides of every mark: clear, and quadratic."""

import re
from itertools import pairwise

CUT = re.compile(r"[.!?;]+[\"')\]*]*\n*|\n+")
INITIALS = re.compile(r"(?:^|[\s(])(?:[A-Za-z]\.)*[A-Za-z]$")


def cut_sentences(text: str) -> list[tuple[int, int]]:
    """Ranges of the sentences."""
    cuts = [found.end() for found in CUT.finditer(text) if is_cut(text, found)]
    bounds = [0, *cuts, len(text)]
    spans = [(one, two) for one, two in pairwise(bounds) if one < two]
    joined: list[tuple[int, int]] = []
    for start, end in spans:
        if joined and (is_blank(text, start, end) or is_blank(text, *joined[-1])):
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def is_blank(text: str, start: int, end: int) -> bool:
    """Whether a range is white space only."""
    return not text[start:end].strip()


def is_cut(text: str, found: re.Match[str]) -> bool:
    """Whether a mark ends a sentence."""
    mark, before, after = found[0], text[: found.start()], text[found.end() :]
    if "\n" in mark or not after:
        return True
    if mark == ".":
        inside = not before or before[-1].isdigit() or before[-1].isspace()
        return not (after[0].isdigit() and inside) and not is_abbreviation(before, after)
    if mark == "!":
        is_operand = re.search(r"(?:\d|\)|\b[a-zA-Z])$", before)
        return not is_operand or bool(re.match(r"\s+[A-Z]|\s*$|\n", after))
    return True


def is_abbreviation(before: str, after: str) -> bool:
    """Whether the letters before a full stop are initials."""
    tail = INITIALS.search(before[-12:])
    if tail is None:
        return False
    letters = tail[0].strip(" (\n\t")
    if re.match(r"[A-Za-z]\.", after):
        return True
    if "." in letters:
        return letters.isupper() or not re.match(r"\s+[A-Z]", after)
    return letters.isupper() and letters != "I" and bool(re.match(r" [A-Z][a-z]+", after))
