"""Cutting the thinking part of an answer into sentences, by offset.

A cut falls after `. ! ? ;` or a newline. Blanks after a cut belong to the next sentence, as word
tokens carry the blank before them; newlines right after a cut belong to the sentence they end.
Decimals, abbreviations of single letters and factorials are not cut.
"""

import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from howwhen.records import SentenceSpan

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
_CUT = re.compile(r"[.!?;]+[\"')\]*]*\n*|\n+")
_INITIALS = re.compile(r"(?:^|[\s(])(?:[A-Za-z]\.)*[A-Za-z]$")
_REPLACEMENT = "\ufffd"
"""What decoding shows for a token that ends inside a character."""


def thinking_part(text: str) -> tuple[int, int]:
    """Half-open character range of the thinking in an answer.

    What stands between `<think>` and `</think>`; either tag may be missing, and without both the
    whole text is thinking.
    """
    opened = text.find(THINK_OPEN)
    start = opened + len(THINK_OPEN) if opened >= 0 else 0
    closed = text.find(THINK_CLOSE, start)
    return start, closed if closed >= 0 else len(text)


def cut_sentences(text: str) -> list[tuple[int, int]]:
    """Half-open character ranges of the sentences: they tile the text, so nothing is lost."""
    spans, start = [], 0
    for found in _CUT.finditer(text):
        if _is_cut(text, found):
            spans.append((start, found.end()))
            start = found.end()
    if start < len(text):
        spans.append((start, len(text)))
    return _join_blank(text, spans)


def _is_cut(text: str, found: re.Match[str]) -> bool:
    mark, before, after = found[0], text[: found.start()], text[found.end() :]
    if "\n" in mark or not after:
        return True
    if mark == ".":
        return not (_is_inside_number(before, after) or _is_abbreviation(before, after))
    if mark == "!":
        return not _is_factorial(before, after)
    return True


def _is_inside_number(before: str, after: str) -> bool:
    return after[0].isdigit() and (not before or before[-1].isdigit() or before[-1].isspace())


def _is_abbreviation(before: str, after: str) -> bool:
    """`e.g. this`, `U.S. Army`, `J. Smith`; but not `at 5 p.m. Then` or `is x. Then`."""
    tail = _INITIALS.search(before[-12:])
    if tail is None:
        return False
    letters = tail[0].strip(" (\n\t")
    if re.match(r"[A-Za-z]\.", after):
        return True
    if "." in letters:
        return letters.isupper() or not re.match(r"\s+[A-Z]", after)
    return letters.isupper() and letters != "I" and bool(re.match(r" [A-Z][a-z]+", after))


def _is_factorial(before: str, after: str) -> bool:
    is_operand = bool(re.search(r"(?:\d|\)|\b[a-zA-Z])$", before))
    return is_operand and not re.match(r"\s+[A-Z]|\s*$|\n", after)


def _join_blank(text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Give a span of only white space to the one before it (or after it, at the start)."""
    joined: list[tuple[int, int]] = []
    for start, end in spans:
        if joined and (not text[start:end].strip() or not text[slice(*joined[-1])].strip()):
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def token_ends(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[str, list[int]]:
    """Decode `ids` and say at which character of the text each token ends.

    Tokens are decoded in short windows, so that the cost is linear. A token that ends inside a
    multi-byte character ends where that character ends.
    """
    text, ends, pending = "", [], 0
    prefix = read = 0
    for index in range(len(ids)):
        pending += 1
        known = _decode(tokenizer, ids[prefix:read])
        window = _decode(tokenizer, ids[prefix : index + 1])
        is_last = index + 1 == len(ids)
        if not window.endswith(_REPLACEMENT) or is_last:
            text += window[len(known) :]
            ends += [len(text)] * pending
            prefix, read, pending = read, index + 1, 0
    return text, ends


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    text = tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return str(text)


def sentence_spans(text: str, ends: Sequence[int]) -> tuple[SentenceSpan, ...]:
    """Sentences of the thinking part, in characters and tokens.

    A token belongs to the sentence that holds its last character; `ends` is as `token_ends`
    gives it. Sentences that no token ends in are merged into the next one.
    """
    start, end = thinking_part(text)
    spans: list[SentenceSpan] = []
    token = sum(one <= start for one in ends)
    left = start
    for _, cut in cut_sentences(text[start:end]):
        first = token
        while token < len(ends) and ends[token] <= start + cut:
            token += 1
        if token > first:
            spans.append(SentenceSpan(left, start + cut, first, token))
            left = start + cut
    return tuple(spans)
