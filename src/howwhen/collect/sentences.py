"""Cutting the thinking part of an answer into sentences, by offset.

The rule cuts after `. ! ? ;` or a newline. Blanks after a cut belong to the next sentence, since
word tokens include the blank before them. Newlines right after a cut belong to the sentence they
end. Decimals, abbreviations of single letters and factorials are not cut. Any other segmenter is a
function of the same type (see `segmenters`), and its sentences must tile the text.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from howwhen.errors import InputError
from howwhen.lm.prompts import THINK_TAGS, ThinkTags
from howwhen.records import SentenceSpan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Segmenter = Callable[[str], list[tuple[int, int]]]
"""Half-open character ranges of a text's sentences, which tile it."""
_CUT = re.compile(r"[.!?;]+[\"')\]*]*\n*|\n+")
_INITIALS = re.compile(r"(?:^|[\s(])(?:[A-Za-z]\.)*[A-Za-z]$")
_INITIAL = re.compile(r"[A-Za-z]\.")
_NEW_SENTENCE = re.compile(r"\s+[A-Z]")
_NAME = re.compile(r" [A-Z][a-z]+")
_OPERAND = re.compile(r"(?:\d|\)|\b[a-zA-Z])$")
_AFTER_SHOUT = re.compile(r"\s+[A-Z]|\s*$|\n")
_REPLACEMENT = "\ufffd"
"""What decoding shows for a token that ends inside a character."""
_MAX_WAIT_TOKENS = 16
"""After so many tokens, bytes that still make no character are taken to never make one."""
_MAX_CHARACTER_TOKENS = 4
"""A character has at most this many bytes, so at most this many tokens end inside it."""


def thinking_part(
    text: str, think_tags: ThinkTags = THINK_TAGS, starts_in_thinking: bool = False
) -> tuple[int, int]:
    """Half-open character range of the thinking in an answer.

    It begins after the first opening tag and ends before the first closing tag. Either may be
    missing: the prompt opened the thinking, or the answer was cut off. Without both, the whole text
    is thinking. Further tags inside the thinking are part of it. An opening tag after the first
    closing tag (a second block, or a mention) is part of the answer.

    Args:
        text: the whole answer.
        think_tags: what opens and closes the thinking part.
        starts_in_thinking: whether the prompt opened it; opening tags are mentions then.
    """
    opening, closing = think_tags
    opened, closed = text.find(opening), text.find(closing)
    is_begun = starts_in_thinking or opened < 0 or 0 <= closed < opened
    start = 0 if is_begun else opened + len(opening)
    closed = text.find(closing, start)
    return start, closed if closed >= 0 else len(text)


def cut_sentences(text: str) -> list[tuple[int, int]]:
    """Half-open character ranges of the sentences: they tile the text, so nothing is lost."""
    return cut_at(text, (match.end() for match in _CUT.finditer(text) if _is_cut(text, match)))


def cut_at(text: str, cuts: Iterable[int]) -> list[tuple[int, int]]:
    """The ranges between ascending cuts. A range of only white space is joined to the previous one.

    At the start of the text, it is joined to the next one instead.
    """
    joined: list[tuple[int, int]] = []
    was_blank = False
    for start, end in pairwise(_bounds(len(text), cuts)):
        is_blank = not text[start:end].strip()
        if joined and (is_blank or was_blank):
            joined[-1] = (joined[-1][0], end)
            was_blank = was_blank and is_blank
        else:
            joined.append((start, end))
            was_blank = is_blank
    return joined


def _bounds(length: int, cuts: Iterable[int]) -> Iterator[int]:
    """Where the ranges between the cuts begin and end. An empty text has no bounds."""
    last = 0
    if length:
        yield last
    for cut in cuts:
        if last < cut < length:
            yield (last := cut)
    if length:
        yield length


def _is_cut(text: str, match: re.Match[str]) -> bool:
    mark, (start, end) = match[0], match.span()
    if "\n" in mark or end == len(text):
        return True
    if mark == ".":
        return not (_is_inside_number(text, start, end) or _is_abbreviation(text, start, end))
    if mark == "!":
        return not _is_factorial(text, start, end)
    return True


def _is_inside_number(text: str, start: int, end: int) -> bool:
    before = text[start - 1 : start]
    return text[end].isdigit() and (not before or before.isdigit() or before.isspace())


def _is_abbreviation(text: str, start: int, end: int) -> bool:
    """`e.g. this`, `U.S. Army`, `J. Smith`; but not `at 5 p.m. Then` or `is x. Then`."""
    tail = _INITIALS.search(text[max(0, start - 12) : start])
    if tail is None:
        return False
    letters = tail[0].strip(" (\n\t")
    if _INITIAL.match(text, end):
        return True
    if "." in letters:
        return letters.isupper() or not _NEW_SENTENCE.match(text, end)
    return letters.isupper() and letters != "I" and bool(_NAME.match(text, end))


def _is_factorial(text: str, start: int, end: int) -> bool:
    is_operand = bool(_OPERAND.search(text[max(0, start - 3) : start]))
    return is_operand and not _AFTER_SHOUT.match(text, end)


def token_ends(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> tuple[str, list[int]]:
    """Decode `ids`, and find the character of the text at which each token ends.

    Tokens are decoded in short windows, so the cost is linear. A token that ends inside a
    multi-byte character is counted to end where that character ends.
    """
    text, ends, known = "", list[int](), ""
    prefix = read = 0
    for index in range(len(ids)):
        until, shown = _settled(tokenizer, ids, prefix, read, index)
        if until > read:
            inner = _decode(tokenizer, ids[prefix : until - 1]) if until - read > 1 else ""
            split = len(inner) if shown.startswith(inner) else len(shown)
            offset = len(text) - len(known)
            ends += [offset + split] * (until - read - 1) + [offset + len(shown)]
            text += shown[len(known) :]
            prefix, read = read, until
            known = _decode(tokenizer, ids[prefix:read])
    return text, ends


def _settled(
    tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int], prefix: int, read: int, index: int
) -> tuple[int, str]:
    """The token up to which the text can no longer change, and the text from `prefix` to there."""
    shown = _decode(tokenizer, ids[prefix : index + 1])
    if not shown.endswith(_REPLACEMENT) or index + 1 == len(ids):
        return index + 1, shown
    if index - read > _MAX_WAIT_TOKENS:
        head = _decode(tokenizer, ids[prefix : index + 1 - _MAX_CHARACTER_TOKENS])
        if shown.startswith(head):
            return index + 1 - _MAX_CHARACTER_TOKENS, head
    return read, shown


def _decode(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    text = tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return str(text)


def text_tokens(tokenizer: "PreTrainedTokenizerBase", text: str) -> tuple[list[int], list[int]]:
    """Token ids of a text, and the character of the text at which each token ends.

    The ends are the tokenizer's offsets, so they fit the text even if decoding would alter it.

    Raises:
        InputError: the tokenizer does not report offsets.
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"{type(tokenizer).__name__} does not report the offsets of its tokens; expected a "
            "fast tokenizer. Save one with tokenizer.json next to the model"
        )
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ends = accumulate((end for _, end in encoding["offset_mapping"]), max)
    return list(encoding["input_ids"]), list(ends)


def sentence_spans(
    text: str,
    ends: Sequence[int],
    think_tags: ThinkTags = THINK_TAGS,
    segmenter: Segmenter = cut_sentences,
    starts_in_thinking: bool = False,
) -> tuple[SentenceSpan, ...]:
    """Sentences of the thinking part, in characters and tokens.

    A token belongs to the sentence that holds its last character. Sentences in which no token ends
    are merged into the next one, and the last ones into the one before.

    Args:
        text: the whole answer.
        ends: the character at which each token ends, from `token_ends` or `text_tokens`.
        think_tags: what opens and closes the thinking part.
        segmenter: cuts the thinking part into sentences.
        starts_in_thinking: whether the prompt opened the thinking part.

    Raises:
        InputError: the segmenter's sentences do not tile the text.
    """
    start, end = thinking_part(text, think_tags, starts_in_thinking)
    spans: list[SentenceSpan] = []
    token = bisect_right(ends, start) if start else 0
    left = start
    for _, cut in _tiles(text[start:end], segmenter):
        last = bisect_right(ends, start + cut, lo=token)
        if last > token:
            spans.append(SentenceSpan(left, start + cut, token, last))
            left, token = start + cut, last
    if spans:
        spans[-1] = spans[-1]._replace(end_char=end)
    return tuple(spans)


def _tiles(text: str, segmenter: Segmenter) -> list[tuple[int, int]]:
    """A segmenter's sentences, checked: nothing of the text may be lost."""
    sentences = segmenter(text)
    bounds = [0, *(end for _, end in sentences)]
    starts = [start for start, _ in sentences]
    if starts != bounds[:-1] or bounds[-1] != len(text) or sorted(set(bounds)) != bounds:
        raise InputError(
            f"a segmenter gave {_shown(sentences)} for a text of {len(text)} characters; expected "
            "sentences that follow each other from 0 to the end of the text. Type "
            "--collect.segmenter rule, or repair the segmenter"
        )
    return sentences


def _shown(sentences: Sequence[tuple[int, int]]) -> str:
    return f"{', '.join(map(str, sentences[:5]))}{', ...' if len(sentences) > 5 else ''}"
