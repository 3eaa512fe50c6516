"""Where sentences end, and whether a text ends by itself or stops in the middle."""

import re

from howwhen.measure.conclusions import TAIL
from howwhen.measure.grammar import ABBREVIATIONS
from howwhen.measure.parts import MAX_ANSWER_LENGTH, MAX_TAIL, Parts

SENTENCE_END = re.compile(
    "(?<=[.!?])"
    + "".join(rf"(?<!\b{name.capitalize()}\.)" for name in sorted(ABBREVIATIONS) if name.isalpha())
    + r"[\"'*)\]]{0,3}\s+|(?<=[.!?])$|\n+|(?<=[.!?])(?=\*\*)"
)
LABEL = re.compile(
    r"^[\s*_#>-]*+(?:Step\s*\d+\s*[:.)]|\d{1,3}[.)](?=\s)|(?:Final )?Answer\s*:)?[\s*_#>-]*+(?=\S)",
    re.IGNORECASE,
)
_DOUBT = re.compile(r"\b(?:wait|hmm)\b", re.IGNORECASE)
_ITEM_BEGUN = re.compile(r"\n[ \t]+$|\n\s*(?:[-*]|\d{1,2}\.)\s*$")
MAX_ITEM = 100
"""Characters at the end of a text in which an item of a list may just have begun."""
_UNFINISHED_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{(?:[^{}]|\{[^{}]*\})*$")


def looks_truncated(text: str, parts: Parts) -> bool:
    """Whether a text stops in the middle. For texts whose finish reason is not known.

    Args:
        text: everything the model wrote.
        parts: the same in parts. Thinking that was never closed, or that goes on without a mark
            ("Wait"), counts as truncated.
    """
    if parts.is_open:
        return True
    end = parts.final.rstrip()
    if not end:
        return bool(parts.thinking)
    if not parts.thinking and thinks_aloud(text):
        return True
    if _ITEM_BEGUN.search(text[-MAX_ITEM:]) or (parts.thinking and text.endswith("\n")):
        return True
    return end[-1] not in ".!?}])$*|\"'`…。>%" and len(text) > TAIL


def thinks_aloud(text: str) -> bool:
    """Whether a text doubts itself, as thinking does, more than once."""
    tail = text[-MAX_TAIL:]
    if not any(part in tail for part in ("ait", "AIT", "mm", "MM")):
        return False
    return len(_DOUBT.findall(tail)) > 1


def breaks_off_in_a_box(text: str) -> bool:
    """Whether a cut text ends within a box, and not one that it has repeated before."""
    begun = _UNFINISHED_BOX.search(text, max(0, len(text) - MAX_ANSWER_LENGTH))
    return begun is not None and text.count(begun[0]) == 1


def without_last_sentence(text: str) -> str:
    """A cut text up to its last complete sentence; unchanged if it has none."""
    ends = [match.start() for match in SENTENCE_END.finditer(text, max(0, len(text) - TAIL))]
    ends = [end for end in ends if text[:end].strip() and end < len(text.rstrip())]
    return text[: ends[-1]] if ends else text


def split_sentences(text: str) -> list[str]:
    """Sentences without labels such as `Step 4:`, in order."""
    parts = (LABEL.sub("", part) for part in SENTENCE_END.split(text) if part)
    return [part.strip() for part in parts if part.strip(" *_#-")]
