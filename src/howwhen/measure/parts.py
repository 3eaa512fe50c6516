"""The parts of an answer: what was thought, what was answered, and where the answer ends.

Models mark their thinking in different ways, and some go on after their answer: with marks of a
chat, or with the same words again and again.
"""

import re
from typing import NamedTuple

MARKERS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<seed:think>", "</seed:think>"),
)
"""What models open and close their thinking with."""
_CHANNEL = re.compile(r"<\|channel\|>\s*(?P<name>\w+)[^<]*<\|message\|>")
"""The head of a message of the harmony format, in which `final` names the answer."""
_END_OF_TURN = re.compile(
    r"<\|(?:im_end|eot_id|end_of_text|endoftext|end|return|user|im_start|start_header_id|eom_id)\|>"
    r"|</s>|<eos>|<end_of_turn>|<start_of_turn>|<\uff5c(?:end\u2581of\u2581sentence|User)\uff5c>|\[INST\]|\[/INST\]"
)
"""Marks of a chat after which an answer is over."""
_PARTS_OF_MARKS = ("<|", "</s>", "<eos>", "_of_turn>", "<\uff5c", "INST]")
"""A text without any of these has no such mark."""
MAX_ANSWER_LENGTH = 500
"""Longer texts are not answers."""
MAX_TAIL = 20_000
"""Characters at the end of a text that are searched for what it repeats."""


class Parts(NamedTuple):
    """An answer in parts."""

    thinking: str
    """What was thought, as far as it is marked."""
    final: str
    """What was answered; empty while the thinking is not closed."""
    is_open: bool
    """Whether the thinking was opened, or began with the text, and never closed."""


def split_parts(
    text: str, think_tags: tuple[str, str] | None = None, starts_in_thinking: bool = False
) -> Parts:
    """Part an answer at the end of its thinking.

    Args:
        text: everything the model wrote.
        think_tags: what this model opens and closes its thinking with, beside the known ones.
        starts_in_thinking: whether the prompt ended in the opening mark.
    """
    heads = list(_CHANNEL.finditer(text))
    if heads:
        return _of_channels(text, heads)
    markers = MARKERS if think_tags is None else (think_tags, *MARKERS)
    closed = max(
        (text.rfind(close) + len(close) for _, close in markers if close in text), default=0
    )
    opened = [text.rfind(start) for start, _ in markers]
    if max(opened) >= closed and max(opened) >= 0:
        return Parts(text, "", is_open=True)
    if not closed and starts_in_thinking:
        return Parts(text, "", is_open=True)
    return Parts(text[:closed], end_turn(text[closed:]), is_open=False)


def _of_channels(text: str, heads: list[re.Match[str]]) -> Parts:
    last = heads[-1]
    if last["name"] != "final":
        return Parts(text, "", is_open=True)
    return Parts(text[: last.start()], end_turn(text[last.end() :]), is_open=False)


def end_turn(text: str) -> str:
    """A text up to the first mark of a chat that ends it, or all of it."""
    if not any(part in text for part in _PARTS_OF_MARKS):
        return text
    for match in _END_OF_TURN.finditer(text):
        if text[: match.start()].strip():
            return text[: match.start()]
    return text


LOOP = 40
"""Characters at the end of a text that are looked for before it."""


def is_loop(text: str) -> bool:
    """Whether a text ends in the same words, again and again: four times and 200 characters."""
    tail = text[-MAX_TAIL:].rstrip()
    piece = tail[-LOOP:]
    before = tail.rfind(piece, 0, len(tail) - 1) if len(piece) == LOOP else -1
    if before < 0:
        return False
    period = len(tail) - len(piece) - before
    span = max(4 * period, 5 * LOOP)
    return span <= len(tail) and tail[-span:-period] == tail[len(tail) - span + period :]
